"""A private copy of a database of the user's, in a server that perfkit started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import sql

from perfkit.errors import ServerError, TargetRefused
from perfkit.postgres import catalog, databases
from perfkit.postgres.capabilities import require_direct, some
from perfkit.postgres.copies import dump, generate, sample
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.external import External
from perfkit.postgres.site import Connection
from perfkit.text import first_line, visible

_TELLS = {
    "whole": (
        "how the arms compare on the same rows, tables and indexes as the source had when it was copied",
        "what the source's own hardware, settings, bloat, cache and other load would add",
    ),
    "sample": (
        "how the arms compare on a sample of the rows with everything that they refer to",
        "the times on the whole data, where tables are larger and plans may be others",
    ),
    "generated": (
        "which plans the arms get on rows made up to fit the planner's statistics of the source",
        "the times on the real rows: how columns depend on one another was not known",
    ),
}


@dataclass(frozen=True, slots=True)
class Copying:
    """How to copy: rows of the largest table for a sample or made-up rows; most bytes to copy whole."""

    method: Literal["whole", "sample", "generated"]
    rows: int = 100_000
    max_bytes: int = 2 * 10**9
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, what could not be brought along, and what the copy can and cannot tell."""

    method: str
    rows: Mapping[str, int]
    source_rows: Mapping[str, int]  # as the planner there estimates them
    missing: tuple[str, ...]
    tells: str
    cannot_tell: str


def copy_into(
    source: External, server: EmbeddedServer, name: str, how: Copying, progress: Callable[[str], None]
) -> Copied:
    """Make the database `name` on `server` from `source`. Only reading happens there.

    Raises TargetRefused where it is too large or behind a pooler, ServerError with the servers' words; nothing
    half made is left.
    """
    require_direct(source, "for a copy")
    sizes = _readable_sizes(source, how)
    total = sum(size["bytes"] + size["index_bytes"] for size in sizes.values())
    if how.method == "whole" and total > how.max_bytes:
        raise TargetRefused(
            f"{source.name}: {total / 1e6:,.0f} MB; expected at most {how.max_bytes / 1e6:,.0f} MB to copy whole "
            "(copy_limit_mb), or --way sample"
        )
    if not sizes:
        raise ServerError(f"{source.name}: no table that can be seen; expected at least one to copy")
    progress(f"copying {source.name} ({how.method}, {total / 1e6:,.0f} MB)")
    try:
        databases.create(server, name)
        missing = _copied(source, server, name, how, progress)
        rows = {table: size["rows"] for table, size in databases.sizes(server, name).items()}
    except BaseException as error:
        with suppress(ServerError):  # where that server is gone, so is the database
            databases.drop(server, name)
        if isinstance(error, psycopg.Error | OSError):
            said = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            raise ServerError(f"{source.name}: the copy failed: {visible(said)}") from None
        raise
    tells, cannot = _TELLS[how.method]
    there = {table: size["rows"] for table, size in sizes.items()}
    return Copied(how.method, rows, there, tuple(missing), tells, cannot)


def _readable_sizes(source: External, how: Copying) -> dict[str, dict[str, Any]]:
    """Rows and bytes by table. Raises TargetRefused naming what the role cannot see all of."""
    with databases.connected(source) as connection:
        connection.execute(catalog.get("copy_session").encode())
        _require_readable(source, catalog.rows(connection, "copy_unreadable"), how)
        return {row["table"]: row for row in catalog.rows(connection, "sizes")}


def _require_readable(source: External, found: Sequence[Mapping[str, Any]], how: Copying) -> None:
    hidden = [row for row in found if how.method == "whole" or not row["sequence"]]
    filtered = [row["name"] for row in hidden if row["readable"]]
    unreadable = [row["name"] for row in hidden if not row["readable"]]
    if unreadable:
        named, expected = visible(some(unreadable)), "USAGE on the schema and SELECT on all of it"
        raise TargetRefused(f"{source.name}: {named} may not be read; expected {expected}")
    if filtered:
        named, expected = visible(some(filtered)), "the owner's login, or a role with BYPASSRLS"
        raise TargetRefused(f"{source.name}: row-level security hides rows of {named}; expected {expected}")


def _copied(
    source: External, server: EmbeddedServer, name: str, how: Copying, progress: Callable[[str], None]
) -> list[str]:
    """Copy by one of the methods; what could not be brought along."""
    missing = _order_of_text(source, server, name)
    if how.method == "whole":
        return missing + dump.transfer(source, server, name)
    missing += dump.transfer(source, server, name, "pre-data")
    with source.connect() as read, server.connect(name) as write:
        read.execute(catalog.get("copy_session").encode())
        write.execute(b"SET search_path = ''")
        sequences = catalog.rows(read, "copy_sequences")
        if how.method == "sample":
            sample.rows(read, write, how.rows, how.seed, progress)
        else:
            missing += generate.rows(read, write, how.rows, how.seed, progress)
        _position(write, sequences)
    return missing + dump.transfer(source, server, name, "post-data", missing)


def _order_of_text(source: External, server: EmbeddedServer, name: str) -> list[str]:
    """Where text sorts otherwise in the copy, in words: it decides which indexes can serve LIKE."""
    query = b"SELECT datcollate AS name FROM pg_database WHERE datname = current_database()"
    with source.connect() as read, server.connect(name) as write:
        theirs, ours = (((c.execute(query).fetchone()) or {"name": ""})["name"] for c in (read, write))
    return [] if theirs == ours else [f"the order of text, {visible(theirs)}; here it is {ours}"]


def _position(write: Connection, sequences: Sequence[Mapping[str, Any]]) -> None:
    """Put every sequence where it stands in the source, and beyond the values of its own column."""
    known = {row["name"] for row in catalog.rows(write, "copy_sequences")}
    for row in (row for row in sequences if row["name"] in known):
        position: sql.Composable = sql.Literal(row["last_value"])
        if row["table"] and row["ascending"]:
            position = sql.SQL("greatest({0}, (SELECT max({2}) FROM {1} WHERE {2} <= {3}))").format(
                position, sql.SQL(row["table"]), sql.SQL(row["column"]), row["maximum"]
            )
        write.execute(sql.SQL("SELECT setval({}::regclass, {}::bigint)").format(row["name"], position))
