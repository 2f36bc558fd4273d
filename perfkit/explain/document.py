"""Plans from elsewhere: JSON from a file, psql with its frame, a CSV cell, or auto_explain's entries in a log."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perfkit.errors import PlanError

EXPECTED = "expected EXPLAIN (FORMAT JSON) output, psql's or auto_explain's"
_DEEP = 10_000  # nested values that are followed; Python's own limit is 1,000, a plan takes two for each level
_deepening = threading.Lock()
_HEADER = re.compile(r"^[\s|│║]*QUERY PLAN[\s|│║]*$", re.MULTILINE)
_FRAME = re.compile(r"^[ \t]*[|│║]?[ \t]?|[ \t]*[+↵]?[ \t]*[|│║]?[ \t]*$")
_ENTRY = re.compile(r"plan:\s*(?=\{)")
_TEXT = re.compile(r"\(cost=\d+\.\d+\.\.\d+\.\d+ rows=\d+ width=\d+\)|^\s*- Plan:|<explain ", re.MULTILINE)
_CSV_LIMIT = 1 << 28


def read(text: str) -> list[Any]:
    """Every plan in a text, each as a document with a 'Plan'. Raises PlanError saying what was expected."""
    with deep():
        found = [document for value in _values(text.lstrip("\ufeff")) for document in _documents(value)]
    if not found:
        if _TEXT.search(text):
            raise PlanError("a plan that is not JSON; expected EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) output")
        raise PlanError(f"no plan in it; {EXPECTED}")
    return found


def loads(text: str | bytes) -> Any:
    """JSON however deep a plan may be. Raises PlanError."""
    with deep():
        return json.loads(text)


def dumps(document: Any) -> str:
    """A plan as text that public viewers take. Raises PlanError."""
    with deep():
        return json.dumps(document, indent=1, ensure_ascii=False)


@contextmanager
def deep() -> Iterator[None]:
    """Python's own limit on nested values raised, and what is wrong with JSON as a PlanError."""
    with _deepening:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _DEEP))
        try:
            yield
        except RecursionError:
            raise PlanError("nested too deeply for a plan; expected EXPLAIN's own JSON") from None
        except ValueError as error:
            raise PlanError(f"not JSON ({error}); {EXPECTED}") from None
        finally:
            sys.setrecursionlimit(limit)


def _values(text: str) -> Iterator[Any]:
    """JSON values in a text of one of the kinds that are known."""
    if header := _HEADER.search(text):
        lines = text[header.end() :].splitlines()
        start = next((n for n, line in enumerate(lines) if _FRAME.sub("", line).startswith(("[", "{"))), len(lines))
        yield _first("\n".join(_FRAME.sub("", line) for line in lines[start:]))
        return
    stripped = text.strip()
    if stripped.startswith(('"[', '"{')):
        stripped = stripped[1:].replace('""', '"')
    if stripped.startswith(("[", "{")) and not _ENTRY.search(text):
        yield _first(stripped)
        return
    yield from _logged(text)


def _logged(text: str) -> Iterator[Any]:
    """auto_explain's entries in a log of any format; one that was cut off is left out."""
    if text.lstrip().startswith("{"):
        parts = [_message(line) for line in text.splitlines()]
    elif '{""' in text or '""Query Text""' in text:
        csv.field_size_limit(_CSV_LIMIT)
        parts = [cell for row in csv.reader(io.StringIO(text)) for cell in row if "plan:" in cell]
    else:
        parts = [text]
    for part in parts:
        for entry in _ENTRY.finditer(part):
            try:
                yield json.JSONDecoder().raw_decode(part, entry.end())[0]
            except ValueError:
                continue


def _message(line: str) -> str:
    """The message of a line of a JSON log."""
    try:
        value = json.loads(line)
    except ValueError:
        return ""
    return str(value.get("message", "")) if isinstance(value, dict) else ""


def _first(text: str) -> Any:
    """The JSON value that a text begins with; what follows (psql's count of rows) is left alone."""
    return json.JSONDecoder().raw_decode(text.lstrip())[0]


def _documents(value: Any) -> Iterator[Any]:
    """Documents of an array, of one statement, or of a node that somebody cut out."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("Plan"), dict):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("Node Type"), str):
            yield {"Plan": item}
