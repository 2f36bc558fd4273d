"""Indexes while they are built, and what there is of a set in a database.

What a statement would make is tried on an empty temporary table of the same columns, in a transaction that is
rolled back: the server itself judges columns, operator classes and expressions, and says what the definition is.
No lock is taken on the user's table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any, Literal

import psycopg
from psycopg import sql

from perfkit.base.errors import PerfkitError, UsageError, first_line
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.commands import parse, send
from perfkit.postgres.databases import connected
from perfkit.postgres.index_sets import IndexSet, IndexStatement, analyzed, read_set
from perfkit.postgres.servers import Server

LOCK_TIMEOUT = "5s"  # waiting longer for a lock would make others wait behind us


@dataclass(frozen=True, slots=True)
class Built:
    """One index as built: seconds, bytes on disk, bytes of WAL the build wrote (where it alone wrote any)."""

    name: str
    table: str
    definition: str
    seconds: float
    bytes: int
    wal_bytes: int | None
    valid: bool


def index_names(path: Path) -> list[str]:
    """The names of the indexes that a file creates. Raises UsageError with the line of anything else."""
    return [index.name for index in read_set(path).indexes]


def build(server: Server, database: str, path: Path, *, in_place: str = "") -> list[Built]:
    """Create the file's indexes one by one in a database, then run its ANALYZE statements.

    With `in_place`, a comment for each index, they are built CONCURRENTLY, waiting for locks only briefly.
    Raises UsageError with file, line and the server's words where a statement fails.
    """
    wanted = read_set(path)
    costs: dict[str, tuple[float, int | None]] = {}
    with connected(server, database) as connection:
        unhurried(connection, LOCK_TIMEOUT if in_place else "0")
        there = {row["oid"] for row in catalog.rows(connection, "indexes")}
        for index in wanted.indexes:
            before, start = _wal(connection), perf_counter()
            text = index.sql(concurrently=index.concurrently or bool(in_place), if_not_exists=index.if_not_exists)
            _run(connection, text, f"{path}:{index.line}")
            spent, written = perf_counter() - start, None if in_place else _wal(connection) - before
            costs[_quoted(connection, index)] = (spent, written)
        for text in wanted.analyze:
            _run(connection, text, f"{path}: {text}")
        found = {row["quoted"]: row for row in catalog.rows(connection, "indexes") if row["oid"] not in there}
        if missing := [name.removeprefix("public.") for name in costs if name not in found]:
            raise UsageError(f"{path}: {', '.join(missing)} is there already; expected every index to be a new one")
        for name in costs if in_place else ():  # whose it is, should it ever be left behind
            mark = sql.SQL("COMMENT ON INDEX {} IS {}")
            connection.execute(mark.format(sql.SQL(name), sql.Literal(in_place)))
    return [_built(found[name], *costs[name]) for name in costs]


def _quoted(connection: Connection, index: IndexStatement) -> str:
    """Return the name of an index that is there, quoted and with its schema."""
    row = connection.execute(catalog.get("index_place").encode(), {"table": index.table, "name": index.name}).fetchone()
    return str(row["quoted"]) if row else index.qualified


def unhurried(connection: Connection, lock_timeout: str) -> None:
    """Let this session's statements take the time they need, but wait for a lock no longer than that."""
    catalog.rows(connection, "building")
    wait_for_locks(connection, lock_timeout)


def wait_for_locks(connection: Connection, limit: str) -> None:
    """From now on wait for a lock as long as this; "0" is for ever."""
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(limit)))


def places(connection: Connection, names: Sequence[str]) -> list[str]:
    """The indexes of these names in any schema, quoted and with their schema."""
    return [row["quoted"] for row in catalog.rows(connection, "indexes") if row["name"] in names]


def _built(row: Mapping[str, Any], seconds: float, wal_bytes: int | None) -> Built:
    return Built(row["name"], row["table"], row["definition"], seconds, row["bytes"], wal_bytes, row["valid"])


def _run(connection: Connection, text: str, where: str) -> None:
    try:
        send(connection.cursor(), text)
    except psycopg.Error as error:
        raise UsageError(f"{where}: {first_line(error)}") from None


def _wal(connection: Connection) -> int:
    """Bytes of WAL inserted so far on this server."""
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS bytes").fetchone()
    return int(row["bytes"]) if row else 0


# How far the build of an index is, as a second connection sees it.

_LOOK_S = 0.25  # between two looks


@contextmanager
def watched(site: Server, database: str, pid: int, label: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say how far the build of the process `pid` is; where no second connection is to be had, nothing."""
    ended = Event()

    def watch() -> None:
        with suppress(psycopg.Error, PerfkitError), site.connect(database) as connection:
            while not ended.wait(_LOOK_S):
                row = connection.execute(catalog.get("build_progress").encode(), {"pid": pid}).fetchone()
                if row and not ended.is_set():
                    say(f"{label}: {_words(row)}")

    thread = Thread(target=watch, name="perfkit-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2.0)


def _words(row: dict[str, Any]) -> str:
    """A line of pg_stat_progress_create_index as a person reads it."""
    for unit in ("blocks", "tuples"):
        if total := row[f"{unit}_total"]:
            return f"{row['phase']}, {100 * row[f'{unit}_done'] // total} % of {unit}"
    return f"{row['phase']}, process {row['waits_for']}" if row["waits_for"] else str(row["phase"])


# An index set beside a database: what is there of it, what is missing, what is in its way.

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
