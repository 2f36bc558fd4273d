"""How much text guards and rules work on: what is larger is refused in one line, or shortened for reading.

A statement that somebody writes has kilobytes, one with a list of values perhaps 1 MB. A plan of 10,000 partitions
with VERBOSE has about 20 MB. The planner folds constants: the plan of `SELECT repeat('a', 1000000000)` has 1 GB,
which libpq holds, but perfkit does not copy, parse or keep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.adapt import Buffer, Loader

from perfkit.errors import PlanError
from perfkit.nested import loads

STATEMENT, PLAN = 2_000_000, 64_000_000  # bytes at most
# A text of a node is read by rules that compare constants: those beyond these are cut, and then the text as a whole.
_LITERAL, _TEXT = 200, 100_000  # characters
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


def raw_json(connection: psycopg.Connection[Any]) -> None:
    """Have a connection give JSON as it comes, so that it is parsed when the transaction is over."""
    connection.adapters.register_loader("json", _Raw)


def document(raw: bytes) -> Any:
    """The document of EXPLAIN's JSON; an empty list where there was none. Raises PlanError."""
    try:
        return loads(raw) if raw else []
    except ValueError as error:
        raise PlanError(f"EXPLAIN's JSON cannot be read: {error}") from None


def shortened(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A plan's node whose long texts are cut; the very same node where none is long."""
    if not any(_long(value) for value in node.values()):
        return node
    return {key: _shortened(value) if _long(value) else value for key, value in node.items()}


def _long(value: Any) -> bool:
    if type(value) is list:
        return any(type(item) is str and len(item) > _LITERAL for item in value)
    return type(value) is str and len(value) > _LITERAL


def _shortened(value: Any) -> Any:
    if type(value) is list:
        return [_shortened(item) for item in value]
    if type(value) is not str or len(value) <= _LITERAL:
        return value
    text = _QUOTED.sub(_cut, value)
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"


def _cut(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) <= _LITERAL:
        return text
    begin = text[1 : _LITERAL - 2]
    whole = begin[:-1] if begin.count("'") % 2 else begin  # a quote in it is doubled: not half of one
    return f"'{whole}…'"


class _Raw(Loader):
    def load(self, data: Buffer) -> bytes:
        require_plan(len(data))
        return bytes(data)
