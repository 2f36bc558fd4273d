"""Databases on a server that perfkit started: made from SQL files, frozen, cloned anew, dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from perfkit.errors import ServerError, UsageError
from perfkit.postgres import catalog
from perfkit.postgres.embedded import Server
from perfkit.postgres.statements import read, substitute

OWNER = "perfkit"


@contextmanager
def connected(
    server: Server, database: str = "postgres", user: str = OWNER
) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit mode to a server that perfkit started; rows come as dictionaries.

    Raises ServerError with the server's own words.
    """
    try:
        with psycopg.connect(
            server.conninfo(database, user), autocommit=True, row_factory=dict_row, application_name="perfkit"
        ) as connection:
            yield connection
    except psycopg.Error as error:
        tail = "" if server.alive() else f"; the server is gone: {server.log_tail()}"
        raise ServerError(f"{database}: {_words(error)}{tail}") from None


def create(server: Server, name: str, template: str = "template0") -> None:
    """Create a database, or clone one file by file. Whatever had the name before is dropped."""
    drop(server, name)
    statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY").format(
        sql.Identifier(name), sql.Identifier(OWNER), sql.Identifier(template)
    )
    with connected(server, user="postgres") as connection:
        connection.execute(statement)


def drop(server: Server, name: str) -> None:
    """Drop a database and whoever is connected to it."""
    with connected(server, user="postgres") as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def prepare(server: Server, name: str, files: Sequence[Path], variables: Mapping[str, int]) -> None:
    """Run SQL files in a database as its owner. Raises UsageError with the file and the server's words."""
    with connected(server, name) as connection:
        for path in files:
            try:
                connection.execute(substitute(read(path), variables).encode())
            except psycopg.Error as error:
                raise UsageError(f"{path}: {_words(error)}") from None


def freeze(server: Server, name: str, tables: Sequence[str]) -> None:
    """VACUUM (FREEZE, ANALYZE), so that no round pays for hint bits or stale statistics."""
    with connected(server, name) as connection:
        for table in tables:
            connection.execute(sql.SQL("VACUUM (FREEZE, ANALYZE) {}").format(sql.Identifier(table)))


def sizes(server: Server, name: str) -> dict[str, dict[str, int]]:
    """By table: exact rows, bytes of the table and of its indexes."""
    with connected(server, name) as connection:
        found = {row["table"]: row for row in connection.execute(catalog.get("sizes").encode())}
        for table, row in found.items():
            count = connection.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(sql.Identifier(table)))
            row["rows"] = (count.fetchone() or {"n": 0})["n"]
    return {
        table: {"rows": row["rows"], "bytes": row["bytes"], "index_bytes": row["index_bytes"]}
        for table, row in found.items()
    }


def rows(server: Server, name: str, path: Path, limit: int) -> list[dict[str, Any]]:
    """The parameter rows a SELECT gives, as JSON values. Raises UsageError where it gives none."""
    text = substitute(read(path), {"rows": limit}).strip().rstrip(";")
    with connected(server, name) as connection:
        try:
            cursor = connection.execute(f"SELECT to_jsonb(p) AS row FROM (\n{text}\n) p".encode())
            found = [row["row"] for row in cursor]
        except psycopg.Error as error:
            raise UsageError(f"{path}: {_words(error)}") from None
    if not found:
        raise UsageError(f"{path}: gave no rows; expected at least one set of parameters")
    return found


def scans(server: Server, name: str, *, terminate: bool = False) -> dict[str, int]:
    """Scans so far by index name and, as `seq:table`, by table.

    A connection publishes its statistics when it ends, or seconds later: this waits for the load's
    connections, and with `terminate` ends everyone else's.
    """
    others = catalog.get("terminate_others" if terminate else "load_connections").encode()
    with connected(server, name, user="postgres") as connection:
        deadline = monotonic() + 5
        while (connection.execute(others).fetchone() or {"n": 0})["n"] and monotonic() < deadline:
            sleep(0.005)
        return {row["name"]: row["scans"] or 0 for row in connection.execute(catalog.get("scans").encode())}


def settings(server: Server) -> dict[str, str]:
    """The server's settings that were chosen or that matter."""
    with connected(server, user="postgres") as connection:
        return {row["name"]: row["value"] for row in connection.execute(catalog.get("settings").encode())}


def server_version(server: Server) -> str:
    """The exact version, e.g. `18.4`."""
    with connected(server) as connection:
        return str((connection.execute("SHOW server_version").fetchone() or {})["server_version"])


def _words(error: psycopg.Error) -> str:
    """The server's own first line."""
    return (error.diag.message_primary or str(error).strip() or type(error).__name__).splitlines()[0]
