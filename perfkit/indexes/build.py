"""Building an index set: what each index costs in time, bytes and WAL, and whether it is valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
from psycopg import sql

from perfkit.errors import UsageError
from perfkit.indexes.statements import IndexStatement, read_set
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.extended import send
from perfkit.postgres.site import Connection, Server
from perfkit.text import first_line

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
