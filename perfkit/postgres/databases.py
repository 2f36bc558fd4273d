"""Databases on a server: created from SQL files, copied, configured, connected to, and measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from perfkit.base.errors import ServerError, UsageError, first_line
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection, Row, holders
from perfkit.postgres.commands import number, options, send
from perfkit.postgres.servers import Server
from perfkit.postgres.sqltext import Statement, read, split, substitute


@dataclass(frozen=True, slots=True)
class Database:
    """A database on a server; every session must have its `settings`."""

    server: Server
    name: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def connect(self) -> Connection:
        """Open a connection in autocommit mode. Raises psycopg.Error."""
        return self.server.connect(self.name)

    def session(self) -> Connection:
        """Open a connection without autocommit; with the settings unless a pooler is in between."""
        connection = self.connect()
        try:
            for name, value in () if self.server.pooler else self.settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", [name, value])
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        return connection

    def conninfo(self) -> str:
        """Return a connection string for libpq, with the settings."""
        base = self.server.conninfo(self.name)
        return make_conninfo(base, options=options(self.settings)) if self.settings else base


@contextmanager
def connected(server: Server, database: str = "", user: str = "") -> Iterator[Connection]:
    """Connect for a `with` block; turn psycopg's errors into ServerError with the server's message."""
    try:
        with server.connect(database, user) as connection:
            yield connection
    except psycopg.Error as error:
        tail = "" if server.alive() else f"; the server is gone: {server.log_tail()}"
        where = server.name if server.foreign else database
        held = holders(lambda: server.connect(database, user), error)
        raise ServerError(f"{where}: {first_line(error)}{held}{tail}") from None


def create(server: Server, name: str, template: str = "template0") -> None:
    """Create a database, or clone `template` file by file. Drop a database that has the name already."""
    drop(server, name)
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    if not server.foreign:
        statement += sql.SQL(" OWNER perfkit")
    if server.version >= 15:
        statement += sql.SQL(" STRATEGY FILE_COPY")
    with connected(server, user="postgres") as connection:
        connection.execute("SET statement_timeout = 0")  # a limit of the role is meant for its queries
        if catalog.rows(connection, "share_files"):
            try:
                connection.execute(statement)
                return
            except psycopg.DatabaseError:  # the file system may not support it
                connection.execute("RESET file_copy_method")
        connection.execute(statement)


def drop(server: Server, name: str) -> None:
    """Drop a database and end all connections to it."""
    with connected(server, user="postgres") as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def prepare(server: Server, name: str, files: Sequence[Path], variables: Mapping[str, int]) -> None:
    """Run SQL files in a database as its owner. Raises UsageError with the file and the server's message."""
    with connected(server, name) as connection:
        connection.execute("SET statement_timeout = 0")  # perfkit created this database
        for path in files:
            try:
                _run(connection, split(substitute(read(path), variables), str(path)))
            except psycopg.Error as error:
                raise UsageError(f"{path}: {first_line(error)}") from None


def _run(connection: Connection, statements: Sequence[Statement]) -> None:
    """Run a file's statements one by one in a transaction; a single statement runs without one, as VACUUM must."""
    with connection.transaction() if len(statements) > 1 else nullcontext():
        for statement in statements:
            send(connection.cursor(), statement.text)


def configure(server: Server, name: str, settings: Mapping[str, str]) -> None:
    """Set a database's settings for all later sessions. Raises UsageError naming an invalid setting."""
    with connected(server, name, user="postgres") as connection:
        for setting, value in settings.items():
            try:
                change = sql.SQL("ALTER DATABASE {} SET {} = {}")
                connection.execute(change.format(sql.Identifier(name), sql.Identifier(setting), sql.Literal(value)))
            except psycopg.Error as error:
                raise UsageError(f"setting {setting} = {value!r}: {first_line(error)}") from None


def require_settings(server: Server, settings: Mapping[str, str]) -> None:
    """Raise UsageError, with the server's message, naming a setting that a session cannot set; change nothing."""
    if not settings:
        return
    with connected(server) as connection:
        for setting, value in settings.items():
            try:
                with connection.transaction(force_rollback=True):
                    connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", [setting, value])
            except psycopg.Error as error:
                raise UsageError(f"setting {setting} = {value!r}: {first_line(error)}") from None


def freeze(server: Server, name: str) -> None:
    """VACUUM (FREEZE, ANALYZE), so that no round pays for hint bits or stale statistics."""
    with connected(server, name) as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute("VACUUM (FREEZE, ANALYZE)")


def sizes(server: Server, name: str, *, exact: bool = True) -> dict[str, dict[str, int]]:
    """Return by table: its rows, counted if `exact`, else estimated; bytes of the table and of its indexes."""
    with connected(server, name) as connection:
        tables = {row["table"]: row for row in catalog.rows(connection, "sizes")}
        if exact:  # in one process, so that pages are read in their order
            connection.execute("SET max_parallel_workers_per_gather = 0")
            connection.execute("SET statement_timeout = 0")
        for row in tables.values() if exact else ():
            table = sql.SQL(row["quoted"])  # the server's own quoting
            count = connection.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(table)).fetchone()
            row["rows"] = (count or {"n": 0})["n"]
    return {table: {key: row[key] for key in ("rows", "bytes", "index_bytes")} for table, row in tables.items()}


def fetched(server: Server, name: str, path: Path, limit: int) -> list[Row]:
    """Return the parameter rows of a SELECT as JSON values. Raises UsageError if there are none."""
    text = substitute(read(path), {"rows": limit}).strip().rstrip(";")
    with connected(server, name) as connection, connection.transaction():
        try:
            connection.execute("SET TRANSACTION READ ONLY")
            cursor = send(connection.cursor(), f"SELECT to_jsonb(p.*)::text AS row FROM (\n{text}\n) p")
            parameters = [json.loads(row["row"], parse_float=number) for row in cursor]
        except psycopg.Error as error:
            raise UsageError(f"{path}: {first_line(error)}") from None
    if not parameters:
        raise UsageError(f"{path}: gave no rows; expected at least one set of parameters")
    return parameters


def scans(server: Server, name: str, *, terminate: bool = False) -> dict[str, int]:
    """Return the number of scans so far by index name and, as `seq:table`, by table.

    A connection publishes its statistics when it ends, or seconds later. So wait for the connections of the load;
    with `terminate`, end all other connections.
    """
    others = "terminate_others" if terminate else "load_connections"
    with connected(server, name, user="postgres") as connection:
        deadline = monotonic() + 5
        while catalog.row(connection, others)["n"] and monotonic() < deadline:
            sleep(0.005)
        return {row["name"]: row["scans"] or 0 for row in catalog.rows(connection, "scans")}


def settings(server: Server, name: str) -> dict[str, str]:
    """Return the server's settings that are not at their default or affect results, as far as they are visible."""
    with connected(server, name, user="postgres") as connection:
        return {row["name"]: row["value"] for row in catalog.rows(connection, "settings")}


def server_version(server: Server) -> str:
    """Return the exact version, e.g. `18.4`."""
    with connected(server) as connection:
        return str((connection.execute("SHOW server_version").fetchone() or {})["server_version"])
