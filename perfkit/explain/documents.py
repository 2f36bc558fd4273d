"""EXPLAIN's JSON: parsed within bounds of size, listed as raw nodes, and found in files, psql output and logs.

A written statement has kilobytes, one with a list of values perhaps 1 MB. A plan of 10,000 partitions with VERBOSE has
about 20 MB. The planner folds constants: the plan of `SELECT repeat('a', 1000000000)` has 1 GB, which perfkit refuses
to copy, parse or keep.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress

from perfkit.base.bundle import deep, loads
from perfkit.base.errors import PlanError
from perfkit.explain.accounting import Raw

STATEMENT, PLAN = 2_000_000, 64_000_000  # bytes at most
# Rules compare the constants in a node's texts, so long constants are cut first, and then the text as a whole.
_LITERAL, _LONGEST = 200, 100_000  # characters
_QUOTED = re.compile(r"'(?:[^']|'')*+'")


def require_statement(sql: str) -> None:
    """Raise PlanError for a statement that is too long."""
    if len(sql) > STATEMENT // 4 and (size := len(sql.encode("utf-8", "replace"))) > STATEMENT:
        raise PlanError(f"a statement of {size / 1e6:,.1f} MB; expected at most {STATEMENT / 1e6:,.0f} MB")


def require_plan(size: int) -> None:
    """Raise PlanError for a plan of too many bytes."""
    if size > PLAN:
        raise PlanError(
            f"a plan of {size / 1e6:,.0f} MB; expected at most {PLAN / 1e6:,.0f} MB (a long constant in the statement? "
            "the planner writes it out)"
        )


def parse(raw: bytes) -> object:
    """Return the value of EXPLAIN's JSON; an empty text gives an empty list. Raises PlanError."""
    try:
        return loads(raw) if raw else []
    except ValueError as error:
        raise PlanError(f"EXPLAIN's JSON cannot be read: {error}") from None


def shortened(node: Raw) -> Raw:
    """Return a raw node with its long texts cut; the same object if none is long."""
    if not any(map(_long, node.values())):
        return node
    return {key: _cut_texts(value) if _long(value) else value for key, value in node.items()}


def _long(value: object) -> bool:
    if type(value) is list:
        return any(type(item) is str and len(item) > _LITERAL for item in value)
    return type(value) is str and len(value) > _LITERAL


def _cut_texts(value: object) -> object:
    if type(value) is list:
        return [_cut_texts(item) for item in value]
    if type(value) is not str or len(value) <= _LITERAL:
        return value
    text = _QUOTED.sub(_cut, value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _cut(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) <= _LITERAL:
        return text
    begin = text[1 : _LITERAL - 2]
    whole = begin[:-1] if begin.count("'") % 2 else begin  # a quote in it is doubled: not half of one
    return f"'{whole}…'"


def whole_nodes(document: object) -> list[Raw]:
    """Return every raw node with its texts uncut, which guards need to see. Raises PlanError."""
    return list_nodes(one_statement(document)["Plan"])[0]


def one_statement(document: object) -> Raw:
    """Return EXPLAIN's output for one statement: the first of its array, or the one element. Raises PlanError."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict) or not isinstance(first.get("Plan"), dict):
        raise PlanError("not a plan; expected EXPLAIN (FORMAT JSON) output with a 'Plan'")
    return first


def list_nodes(top: object) -> tuple[list[Raw], list[int]]:
    """Return the nodes in EXPLAIN's order, and the position of each node's parent."""
    raws: list[Raw] = []
    parents: list[int] = []
    waiting: list[tuple[object, int]] = [(top, -1)]
    while waiting:
        raw, parent = waiting.pop()
        if not isinstance(raw, dict) or not isinstance(raw.get("Node Type"), str):
            raise PlanError("not a plan (a node without a 'Node Type'); expected EXPLAIN (FORMAT JSON) output")
        below = raw.get("Plans", [])
        if not isinstance(below, list):
            raise PlanError("not a plan ('Plans' is not a list); expected EXPLAIN (FORMAT JSON) output")
        at = len(raws)
        waiting += [(child, at) for child in reversed(below)]
        raws.append(raw)
        parents.append(parent)
    return raws, parents


# Plans from text: JSON, psql output with its frame, a CSV cell, or auto_explain's entries in a log.

EXPECTED = "expected EXPLAIN (FORMAT JSON) output, psql's or auto_explain's"
_HEADER = re.compile(r"^[ \t|│║\"]*QUERY PLAN\b\"?", re.MULTILINE)
_FRAME = re.compile(
    r"^[ \t|│║:,]+|[ \t]*[+↵]?[ \t]*[|│║]?[ \t]*$"
)  # no line of EXPLAIN's JSON begins or ends like this
_BEGINS = re.compile(r"[\[{]\s*[\[{\"]")  # the beginning of JSON, unlike a log's prefix
_ENTRY = re.compile(r"plan:\s*(?=\{)")
_TEXT = re.compile(
    r"\((?:cost=\d+\.\d+\.\.\d+\.\d+|actual (?:time|rows)=[\d.]+)[^)\n]*\)"
    r"|^[\s|│║]*(?:QUERY PLAN[\s|│║]*)?- Plan:|<explain ",
    re.MULTILINE,
)
_SPACE = re.compile(r"\s*")
_CSV_LIMIT = 1 << 28


def read_documents(text: str) -> list[Raw]:
    """Return every plan in a text as a document with a 'Plan'. Raises PlanError if there is none."""
    text = text.lstrip("\ufeff").strip()
    try:
        with deep():
            for values in (_json, _framed, _logged):
                if found := [document for value in values(text) for document in _documents(value)]:
                    return found
            if _BEGINS.match(text):
                json.JSONDecoder().raw_decode(text)  # raises an error with the position
    except ValueError as error:
        raise PlanError(f"not JSON ({error}); {EXPECTED}") from None
    if _TEXT.search(text):
        raise PlanError("a plan in text format; expected EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) output")
    raise PlanError(f"no plan in it; {EXPECTED}")


def _json(text: str) -> Iterator[object]:
    """Yield consecutive JSON values; ignore text after them (psql's row count)."""
    if text.startswith(('"[', '"{')):  # a cell of CSV
        text = text[1:].replace('""', '"')
    at, decoder = 0, json.JSONDecoder()
    while text.startswith(("[", "{"), at):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return
        yield value
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches anything


def _framed(text: str) -> Iterator[object]:
    """Yield JSON from psql's output, aligned, expanded or CSV."""
    for part in _HEADER.split(text)[1:] or ([text] if text.startswith(("[", "{")) else []):
        lines = [_FRAME.sub("", line) for line in part.splitlines()]
        start = next((n for n, line in enumerate(lines) if line.lstrip('"').startswith(("[", "{"))), len(lines))
        yield from _json("\n".join(lines[start:]))


def _logged(text: str) -> Iterator[object]:
    """Yield auto_explain's entries in a log of any format; omit an entry that was cut off."""
    if text.startswith("{"):
        parts = [_message(line) for line in text.splitlines()]
    elif '{""' in text or '""Query Text""' in text:
        parts = _cells(text)
    else:
        parts = [text]
    decoder = json.JSONDecoder()
    for part in parts:
        at = 0
        while entry := _ENTRY.search(part, at):
            at = entry.end()
            with suppress(ValueError):
                value, at = decoder.raw_decode(part, at)
                yield value


def _cells(text: str) -> list[str]:
    """Return the messages of a CSV log."""
    csv.field_size_limit(_CSV_LIMIT)
    try:
        return [cell for row in csv.reader(io.StringIO(text)) for cell in row if "plan:" in cell]
    except csv.Error:
        return []


def _message(line: str) -> str:
    """Return the message of a line of a JSON log."""
    try:
        value = json.loads(line)
    except ValueError:
        return ""
    return str(value.get("message", "")) if isinstance(value, dict) else ""


def _documents(value: object) -> Iterator[Raw]:
    """Yield documents of an array, of one statement, or of a bare node."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("Plan"), dict):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("Node Type"), str):
            yield {"Plan": item}
