"""Databases, connections to them, and names quoted for them.

`quote_ident` quotes every keyword that is not unreserved: some of these are allowed as a column's name and not as an
index key's (`left`, `verbose`), others the other way round (`coalesce`). The list is PostgreSQL 18's; older versions
know fewer, and a quoted name is right in all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from perfkit.base.errors import ServerError, UsageError, first_line
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection, holders
from perfkit.postgres.commands import number, options, send
from perfkit.postgres.servers import Server
from perfkit.postgres.sqltext import Statement, read, split, substitute

# SELECT word FROM pg_get_keywords() WHERE catcode <> 'U'
KEYWORDS = frozenset(
    """
all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case cast
char character check coalesce collate collation column concurrently constraint create cross current_catalog
current_date current_role current_schema current_time current_timestamp current_user dec decimal default deferrable
desc distinct do else end except exists extract false fetch float for foreign freeze from full grant greatest group
grouping having ilike in initially inner inout int integer intersect interval into is isnull join json json_array
json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize json_table json_value
lateral leading least left like limit localtime localtimestamp merge_action national natural nchar none normalize
not notnull null nullif numeric offset on only or order out outer overlaps overlay placing position precision
primary real references returning right row select session_user setof similar smallint some substring symmetric
system_user table tablesample then time timestamp to trailing treat trim true union unique user using values varchar
variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces
xmlparse xmlpi xmlroot xmlserialize xmltable
""".split()
)


# A database on a server, with what each session of it must bring along.


@dataclass(frozen=True, slots=True)
class Database:
    """A database; `settings` are those that each session must bring along."""

    site: Server
    name: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def connect(self) -> Connection:
        """A connection in autocommit mode. Raises psycopg.Error."""
        return self.site.connect(self.name)

    def session(self) -> Connection:
        """A connection that is not in autocommit mode; with the settings unless a pooler is in between."""
        connection = self.connect()
        try:
            for name, value in () if self.site.pooler else self.settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", [name, value])
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        return connection

    def conninfo(self) -> str:
        """For libpq; with the settings."""
        base = self.site.conninfo(self.name)
        return make_conninfo(base, options=options(self.settings)) if self.settings else base


# Databases on a server: made from SQL files, frozen, cloned anew, dropped; what they hold and count.


@contextmanager
def connected(server: Server, database: str = "", user: str = "") -> Iterator[Connection]:
    """`Site.connect` for a `with`: psycopg's errors become ServerError, with the server's own words."""
    try:
        with server.connect(database, user) as connection:
            yield connection
    except psycopg.Error as error:
        tail = "" if server.alive() else f"; the server is gone: {server.log_tail()}"
        where = server.name if server.foreign else database
        held = holders(lambda: server.connect(database, user), error)
        raise ServerError(f"{where}: {first_line(error)}{held}{tail}") from None


def create(server: Server, name: str, template: str = "template0") -> None:
    """Create a database, or clone one file by file. Whatever had the name before is dropped."""
    drop(server, name)
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    if not server.foreign:
        statement += sql.SQL(" OWNER perfkit")
    if server.version >= 15:
        statement += sql.SQL(" STRATEGY FILE_COPY")
    with connected(server, user="postgres") as connection:
        connection.execute("SET statement_timeout = 0")  # a role's own is for its queries
        if catalog.rows(connection, "share_files"):
            try:
                connection.execute(statement)
                return
            except psycopg.DatabaseError:  # the file system may not know it
                connection.execute("RESET file_copy_method")
        connection.execute(statement)


def drop(server: Server, name: str) -> None:
    """Drop a database and whoever is connected to it."""
    with connected(server, user="postgres") as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def prepare(server: Server, name: str, files: Sequence[Path], variables: Mapping[str, int]) -> None:
    """Run SQL files in a database as its owner. Raises UsageError with the file and the server's words."""
    with connected(server, name) as connection:
        connection.execute("SET statement_timeout = 0")  # the database is perfkit's own
        for path in files:
            try:
                _run(connection, split(substitute(read(path), variables), str(path)))
            except psycopg.Error as error:
                raise UsageError(f"{path}: {first_line(error)}") from None


def _run(connection: Connection, statements: Sequence[Statement]) -> None:
    """Run a file's statements one by one, all or none of them; one alone may be such as runs in no transaction."""
    with connection.transaction() if len(statements) > 1 else nullcontext():
        for statement in statements:
            send(connection.cursor(), statement.text)


def configure(server: Server, name: str, settings: Mapping[str, str]) -> None:
    """Give a database settings of its own, for every session to come. Raises UsageError naming a wrong one."""
    with connected(server, name, user="postgres") as connection:
        for setting, value in settings.items():
            try:
                change = sql.SQL("ALTER DATABASE {} SET {} = {}")
                connection.execute(change.format(sql.Identifier(name), sql.Identifier(setting), sql.Literal(value)))
            except psycopg.Error as error:
                raise UsageError(f"setting {setting} = {value!r}: {first_line(error)}") from None


def require_settings(server: Server, settings: Mapping[str, str]) -> None:
    """Raise UsageError naming a setting that a session may not choose, with the server's words; nothing is changed."""
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
    """By table: rows, counted unless the planner's estimate will do; bytes of the table and of its indexes."""
    with connected(server, name) as connection:
        found = {row["table"]: row for row in catalog.rows(connection, "sizes")}
        if exact:  # by one process, so that pages come into memory in their order
            connection.execute("SET max_parallel_workers_per_gather = 0")
            connection.execute("SET statement_timeout = 0")
        for row in found.values() if exact else ():
            table = sql.SQL(row["quoted"])  # the server's own quoting
            count = connection.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(table)).fetchone()
            row["rows"] = (count or {"n": 0})["n"]
    return {table: {key: row[key] for key in ("rows", "bytes", "index_bytes")} for table, row in found.items()}


def fetched(server: Server, name: str, path: Path, limit: int) -> list[dict[str, Any]]:
    """The parameter rows a SELECT gives, as JSON values. Raises UsageError where it gives none."""
    text = substitute(read(path), {"rows": limit}).strip().rstrip(";")
    with connected(server, name) as connection, connection.transaction():
        try:
            connection.execute("SET TRANSACTION READ ONLY")
            cursor = send(connection.cursor(), f"SELECT to_jsonb(p.*)::text AS row FROM (\n{text}\n) p")
            found = [json.loads(row["row"], parse_float=number) for row in cursor]
        except psycopg.Error as error:
            raise UsageError(f"{path}: {first_line(error)}") from None
    if not found:
        raise UsageError(f"{path}: gave no rows; expected at least one set of parameters")
    return found


def scans(server: Server, name: str, *, terminate: bool = False) -> dict[str, int]:
    """Scans so far by index name and, as `seq:table`, by table.

    A connection publishes its statistics when it ends, or seconds later: this waits for the load's
    connections, and with `terminate` ends everyone else's.
    """
    others = "terminate_others" if terminate else "load_connections"
    with connected(server, name, user="postgres") as connection:
        deadline = monotonic() + 5
        while catalog.row(connection, others)["n"] and monotonic() < deadline:
            sleep(0.005)
        return {row["name"]: row["scans"] or 0 for row in catalog.rows(connection, "scans")}


def settings(server: Server, name: str) -> dict[str, str]:
    """The server's settings that were chosen or that matter, as far as they may be seen."""
    with connected(server, name, user="postgres") as connection:
        return {row["name"]: row["value"] for row in catalog.rows(connection, "settings")}


def server_version(server: Server) -> str:
    """The exact version, e.g. `18.4`."""
    with connected(server) as connection:
        return str((connection.execute("SHOW server_version").fetchone() or {})["server_version"])
