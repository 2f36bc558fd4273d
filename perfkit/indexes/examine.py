"""An index set beside a database: what is there of it, what is missing, what is in its way.

What a statement would make is tried on an empty temporary table of the same columns, in a transaction that is
rolled back: the server itself judges columns, operator classes and expressions, and says what the definition is.
No lock is taken on the user's table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import psycopg

from perfkit.indexes.statements import IndexSet, IndexStatement, analyzed
from perfkit.postgres import catalog
from perfkit.postgres.extended import parse, send
from perfkit.postgres.site import Connection
from perfkit.text import first_line

State = Literal["missing", "there", "invalid", "other", "impossible"]
_TABLES = ("r", "m", "p")  # and materialized views


@dataclass(frozen=True, slots=True)
class Found:
    """One statement of a set: the table and the index, quoted and with their schema, and how they stand.

    `problem` says what is in the way of building it, `undroppable` what is in the way of dropping it.
    """

    index: IndexStatement
    state: State
    problem: str = ""
    undroppable: str = ""
    table: str = ""
    quoted: str = ""
    lockable: bool = True  # LOCK TABLE knows tables alone
    bytes: int = 0


def examine(connection: Connection, wanted: IndexSet) -> Iterator[Found]:
    """How each statement stands; nothing is changed. Raises psycopg.Error where the server cannot say."""
    for index in wanted.indexes:
        try:
            yield _found(connection, index)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            yield Found(index, "impossible", first_line(error), f"cannot be judged: {first_line(error)}")


def unknown(connection: Connection, wanted: IndexSet) -> Iterator[str]:
    """What is wrong with the set's ANALYZE statements."""
    for text in wanted.analyze:
        try:
            parse(connection, text)
            for table in analyzed(wanted.path, text):
                if not connection.execute("SELECT 1 WHERE to_regclass(%s::text) IS NOT NULL", [table]).fetchone():
                    yield f"{text}: no table {table}; expected one that is there"
        except psycopg.ProgrammingError as error:
            yield f"{text}: {first_line(error)}"


def _found(connection: Connection, index: IndexStatement) -> Found:
    parse(connection, index.sql(concurrently=True))
    given = {"table": index.table, "name": index.name}
    place = connection.execute(catalog.get("index_place").encode(), given).fetchone()
    if place is None:
        return Found(index, "impossible", f"no table {index.table}; expected one that is there")
    found = Found(
        index, "missing", "", "", place["table"], place["quoted"], place["kind"] in ("r", "p"), place["bytes"]
    )
    if place["relation"] and not place["on_it"]:
        what = place["definition"] or f"{place['quoted']}, which is no index"
        taken = f"{place['bare_index']} is there already as {what}; expected a name that is free"
        return replace(found, state="other", problem=taken, undroppable=taken)
    if problem := _unbuildable(place):
        return replace(found, state="impossible", problem=problem, undroppable=problem)
    wants, has = _definitions(connection, index, place)
    if has is None:
        return replace(found, problem=_partitioned(index, place) or _not_creatable(place))
    if other := _other(index, place, wants, has):
        return replace(found, state="other", problem=other, undroppable=other)
    stuck = _undroppable(place)
    if place["valid"]:
        return replace(found, state="there", undroppable=stuck)
    return replace(found, state="invalid", problem=stuck, undroppable=stuck)


def _other(index: IndexStatement, place: dict[str, Any], wants: dict[str, Any], has: dict[str, Any]) -> str:
    """Both definitions, where they are not the same; "" where they are. Only a tablespace that is named counts."""
    where, has_where = (f" TABLESPACE {own['tablespace']}" if index.tablespace else "" for own in (wants, has))
    if (wants["unique"], wants["rest"], where) == (has["unique"], has["rest"], has_where):
        return ""
    unique = "UNIQUE " if wants["unique"] else ""
    expected = f"CREATE {unique}INDEX {place['bare_index']} ON {place['table']} {wants['rest']}{where}"
    return f"{place['bare_index']} is there already as {has['whole']}{has_where}; expected {expected}"


def _unbuildable(place: dict[str, Any]) -> str:
    """What is in the way whatever the index."""
    if place["kind"] not in _TABLES or place["system"]:
        return f"{place['table']} cannot have indexes of yours; expected a table"
    if not place["owner"]:
        return f"{place['table']} is {place['owned_by']}'s; expected its owner to build indexes on it"
    return ""


def _undroppable(place: dict[str, Any]) -> str:
    """What is in the way of dropping the index that is there, or of building it anew."""
    if place["builder"]:
        return f"{place['quoted']} is being built by process {place['builder']}; expected to wait for that"
    if place["constraint"]:
        return f"{place['quoted']} belongs to the constraint {place['constraint']}"
    if place["index_kind"] == "I":
        return (
            f"{place['quoted']} is partitioned, which CONCURRENTLY cannot drop; by hand: DROP INDEX {place['quoted']}"
        )
    return ""


def _not_creatable(place: dict[str, Any]) -> str:
    return "" if place["creatable"] else f"nothing may be made in schema {place['schema']}; expected CREATE on it"


def _partitioned(index: IndexStatement, place: dict[str, Any]) -> str:
    if place["kind"] != "p":
        return ""
    alone = replace(index, only=True).sql(concurrently=False)
    return (
        f"{place['table']} is partitioned, which CONCURRENTLY cannot do; by hand: {alone}; then for each partition "
        f"CREATE INDEX CONCURRENTLY and ALTER INDEX {place['quoted']} ATTACH PARTITION"
    )


def _definitions(
    connection: Connection, index: IndexStatement, place: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the server makes of the statement, and of the index that is there, in words that can be compared."""
    temporary = f"pg_temp.{place['bare']}"
    with connection.transaction(force_rollback=True):
        connection.execute(f"CREATE TEMPORARY TABLE {temporary} ({place['columns']})".encode())
        send(connection.cursor(), replace(index, table=temporary, only=False).sql(concurrently=False))
        given = {"temporary": f"pg_temp.{place['bare_index']}", "there": place["relation"]}
        rows = connection.execute(catalog.get("index_definitions").encode(), given).fetchall()
    found = {row["temporary"]: row for row in rows}
    return found[True], found.get(False)
