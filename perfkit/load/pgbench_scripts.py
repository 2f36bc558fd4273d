r"""Scripts for pgbench, made from queries and their parameter rows. Pure.

Client c of C takes the rows c, c + C, c + 2C, ..., around and around, so that clients share the rows out as
perfkit's own users do. A single row is written into the statement. Of several, numbers are chosen by an expression,
which costs about a microsecond. pgbench has no expressions for text: rows with any are looked up, in an array within
a statement of its own (no table: nothing is written to the database). In the closed model that lookup is a
transaction of its own, which comes before each of the query's and is no sample; with a rate, which spaces
transactions, it is the first statement of the query's, and part of its time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.adapt import PyFormat, Transformer

from perfkit.errors import UsageError
from perfkit.postgres.parameters import exact
from perfkit.postgres.placeholders import named
from perfkit.postgres.settings import COMMAND, HARMLESS, PROGRAMS
from perfkit.postgres.statements import split
from perfkit.text import first_line

MARK = "SELECT /* a row of parameters, perfkit */"  # the lookup's first line, by which pgbench's report calls it
_NAME = r"[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*"
_VARIABLE = re.compile(rf":(?:({_NAME})|:*)")  # as pgbench finds them, in quotes and comments too
_INTEGERS = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class ScriptQuery:
    """A statement with `%(name)s`, and the rows that its parameters come from; None where it takes none."""

    item: str
    sql: str
    rows: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """What pgbench runs, the variables that it begins with, and whether every other transaction is a lookup."""

    text: str
    variables: tuple[str, ...] = ()
    looks_up: bool = False
    apart: bool = False  # the lookup is a transaction of its own


def script(query: ScriptQuery, number: int, clients: int, *, paced: bool) -> Script:
    """The script of a query, by its number among those of a run.

    Raises UsageError for what pgbench cannot be told.
    """
    if query.rows is None:
        return Script(_statement(query, query.sql, ()))
    try:
        placed = named(query.sql)
        text = _statement(query, placed.text, placed.names)
        columns = {name: [row[name] for row in query.rows] for name in placed.names}
    except KeyError as error:
        raise UsageError(f"query '{query.item}': {error} is no column of its parameters") from None
    except ValueError as error:
        raise UsageError(f"query '{query.item}': {error}") from None
    if not placed.names:
        return Script(text)
    if len(query.rows) == 1:
        given = {name: _constant(query, value) for name, (value,) in columns.items()}
        return Script(_VARIABLE.sub(lambda found: given[found[1]] if found[1] else found[0], text))
    turn, ready = f"perfkit_turn{number}", f"perfkit_ready{number}"
    row = rf"\set perfkit_row (:client_id + :{turn} * {clients}) % {len(query.rows)} + 1"
    after = rf"\set {turn} :{turn} + 1"
    numbers = {name: [n for value in values if (n := _number(value))] for name, values in columns.items()}
    if all(len(values) == len(query.rows) for values in numbers.values()):
        sets = [rf"\set {name} {_choice(values, 1)}" for name, values in numbers.items()]
        return Script("\n".join([row, *sets, text, after, ""]), (turn,))
    arrays = [f"({_literal(_array(query, values))}::text[])[:perfkit_row] AS {n}" for n, values in columns.items()]
    lookup = [row, MARK, ",\n".join(arrays) + r" \gset"]
    if paced:
        return Script("\n".join([*lookup, text, after, ""]), (turn,), looks_up=True)
    # A transaction that is tried again starts from the top: what tells the two apart changes at their ends.
    first = [rf"\if :{ready} = 0", *lookup, rf"\set {ready} 1", r"\else"]
    lines = [*first, text, rf"\set {ready} 0", after, r"\endif", ""]
    return Script("\n".join(lines), (turn, ready), looks_up=True, apart=True)


def _statement(query: ScriptQuery, text: str, names: Sequence[str]) -> str:
    """The statement and its end. Raises UsageError for several, or where pgbench would find another variable."""
    others = [found[1] for found in _VARIABLE.finditer(query.sql) if found[1]]
    lost = set(names) - {found[1] for found in _VARIABLE.finditer(text)}
    for found in COMMAND.finditer(query.sql):
        if (word := found["word"].lower()) in HARMLESS | PROGRAMS:
            raise UsageError(rf"query '{query.item}': '\{word}' is a command to pgbench; expected engine 'asyncio'")
    if others or lost:
        wrong = f"':{others[0]}' would be a variable" if others else f"'{min(lost)}' would be no variable"
        raise UsageError(f"query '{query.item}': {wrong} to pgbench; expected engine 'asyncio', or other words")
    if (count := len(split(query.sql, f"query '{query.item}'"))) != 1:  # pgbench would cut them apart and send each
        raise UsageError(f"query '{query.item}': {count} statements; expected one")
    return f"{text}\n;"


def _number(value: Any) -> str | None:
    """A value as pgbench's expressions write it, where it comes out of them as it went in."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value in _INTEGERS:
        return str(value)
    return repr(value) if isinstance(value, float) and float(f"{value:.15g}") == value else None


def _choice(values: Sequence[str], first: int) -> str:
    """One of the values by its place, halving.

    >>> _choice(["7", "7", "9"], 1)
    'case when :perfkit_row <= 1 then 7 else case when :perfkit_row <= 2 then 7 else 9 end end'
    """
    if len(set(values)) == 1:
        return values[0]
    half = len(values) // 2
    left, right = _choice(values[:half], first), _choice(values[half:], first + half)
    return f"case when :perfkit_row <= {first + half - 1} then {left} else {right} end"


def _texts(query: ScriptQuery, values: Sequence[Any]) -> list[str | None]:
    """Values as text, as the server reads it. Raises UsageError for those that have none."""
    try:
        given = exact(list(values)) or []
        found = Transformer().dump_sequence(list(given), [PyFormat.TEXT] * len(given))
    except psycopg.Error as error:
        raise UsageError(f"query '{query.item}': parameters that cannot be sent: {first_line(error)}") from None
    return [None if value is None else bytes(value).decode() for value in found]


def _constant(query: ScriptQuery, value: Any) -> str:
    number = _number(value)
    return f"({number})" if number else _literal(_texts(query, [value])[0])


def _array(query: ScriptQuery, values: Sequence[Any]) -> str:
    quoted = []
    for value in _texts(query, values):
        if value is None:
            raise UsageError(f"query '{query.item}': a parameter without a value (null); pgbench has only text")
        quoted.append('"' + value.replace("\\", r"\\").replace('"', r"\"") + '"')
    return "{" + ",".join(quoted) + "}"


def _literal(text: str | None) -> str:
    """A constant without a type, as parameters are; without a colon, which pgbench would take for a variable."""
    if text is None:
        return "NULL"
    return "E'" + text.replace("\\", r"\\").replace("'", "''").replace(":", r"\072") + "'"
