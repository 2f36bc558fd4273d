"""Plans from elsewhere: JSON from a file, psql with its frame, a CSV cell, or auto_explain's entries in a log."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from perfkit.errors import PlanError
from perfkit.nested import deep

EXPECTED = "expected EXPLAIN (FORMAT JSON) output, psql's or auto_explain's"
_HEADER = re.compile(r"^[ \t|│║\"]*QUERY PLAN\b\"?", re.MULTILINE)
_FRAME = re.compile(r"^[ \t|│║:,]+|[ \t]*[+↵]?[ \t]*[|│║]?[ \t]*$")  # no line of EXPLAIN's JSON begins or ends so
_BEGINS = re.compile(r"[\[{]\s*[\[{\"]")  # as JSON does, and a log's prefix does not
_ENTRY = re.compile(r"plan:\s*(?=\{)")
_TEXT = re.compile(
    r"\((?:cost=\d+\.\d+\.\.\d+\.\d+|actual (?:time|rows)=[\d.]+)[^)\n]*\)"
    r"|^[\s|│║]*(?:QUERY PLAN[\s|│║]*)?- Plan:|<explain ",
    re.MULTILINE,
)
_SPACE = re.compile(r"\s*")
_CSV_LIMIT = 1 << 28


def read(text: str) -> list[Any]:
    """Every plan in a text, each as a document with a 'Plan'. Raises PlanError saying what was expected."""
    text = text.lstrip("\ufeff").strip()
    try:
        with deep():
            for values in (_json, _framed, _logged):
                if found := [document for value in values(text) for document in _documents(value)]:
                    return found
            if _BEGINS.match(text):
                json.JSONDecoder().raw_decode(text)  # says where it is wrong
    except ValueError as error:
        raise PlanError(f"not JSON ({error}); {EXPECTED}") from None
    if _TEXT.search(text):
        raise PlanError("a plan that is not JSON; expected EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) output")
    raise PlanError(f"no plan in it; {EXPECTED}")


def _json(text: str) -> Iterator[Any]:
    """JSON values one after the other; what follows (psql's count of rows) is left alone."""
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


def _framed(text: str) -> Iterator[Any]:
    """Output of psql, with the lines around its cells, expanded or not, as CSV too."""
    for part in _HEADER.split(text)[1:] or ([text] if text.startswith(("[", "{")) else []):
        lines = [_FRAME.sub("", line) for line in part.splitlines()]
        start = next((n for n, line in enumerate(lines) if line.lstrip('"').startswith(("[", "{"))), len(lines))
        yield from _json("\n".join(lines[start:]))


def _logged(text: str) -> Iterator[Any]:
    """auto_explain's entries in a log of any format; one that was cut off is left out."""
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
    """The messages of a CSV log."""
    csv.field_size_limit(_CSV_LIMIT)
    try:
        return [cell for row in csv.reader(io.StringIO(text)) for cell in row if "plan:" in cell]
    except csv.Error:
        return []


def _message(line: str) -> str:
    """The message of a line of a JSON log."""
    try:
        value = json.loads(line)
    except ValueError:
        return ""
    return str(value.get("message", "")) if isinstance(value, dict) else ""


def _documents(value: Any) -> Iterator[Any]:
    """Documents of an array, of one statement, or of a node that somebody cut out."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("Plan"), dict):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("Node Type"), str):
            yield {"Plan": item}
