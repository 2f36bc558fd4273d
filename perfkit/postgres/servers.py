"""Servers: what every server offers, those that perfkit did not start, and the owner's permission on them.

The permission is a schema `perfkit_allowed`. Its comment names the kinds of change that are allowed, the database, the
cluster and the last day: a restored dump, a clone or a copy has the schema, but not the permission.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Protocol

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from perfkit.base.errors import ServerError, TargetRefused, UsageError, first_line, visible
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection, Pooled, Row, limit
from perfkit.postgres.guards import (
    Address,
    Audit,
    Permission,
    admit,
    audited,
    bracketed,
    canonical,
    here,
    looks_like_production,
    normal,
)


class Server(Protocol):
    """The embedded server, or a server of the user's that the guards admitted."""

    @property
    def name(self) -> str:
        """The name in reports and in the audit."""

    @property
    def version(self) -> int:
        """The major version."""

    @property
    def foreign(self) -> bool:
        """Whether perfkit did not start this server."""

    @property
    def pooler(self) -> bool:
        """Whether a pooler is in between: session state is lost after each transaction."""

    @property
    def permissions(self) -> frozenset[str]:
        """The kinds of change that are allowed: "writes", "ddl"."""

    def conninfo(self, dbname: str = "", user: str = "") -> str:
        """Return a connection string for libpq, without a password."""

    def connect(self, dbname: str = "", user: str = "") -> Connection:
        """Open a connection in autocommit mode whose rows are dictionaries. Raises psycopg.Error."""

    def alive(self) -> bool:
        """Whether the server still runs, as far as perfkit can tell without a query."""

    def log_tail(self, lines: int = 5) -> str:
        """Return the last messages of the server's log if perfkit can read the log."""


# The owner's permission.

SCHEMA = "perfkit_allowed"
KINDS = frozenset({"writes", "ddl"})


def permissions(connection: Connection) -> frozenset[str]:
    """Return the kinds of change that the owner allows in this database today: "writes", "ddl"."""
    row = catalog.row(connection, "marker")
    if not row["by_owner"]:
        return frozenset()
    try:
        marker = json.loads(row["comment"] or "")
        identity = (row["database"], cluster(connection, row["identifiable"]))
        valid = (marker["database"], marker["system"]) == identity and date.fromisoformat(marker["until"]) >= _today()
        return KINDS & frozenset(marker["permissions"]) if valid and "" not in identity else frozenset()
    except (ValueError, KeyError, TypeError):
        return frozenset()


def cluster(connection: Connection, identifiable: bool) -> str:
    """Return the identity of the cluster; "" if this role cannot see it."""
    return str(catalog.row(connection, "cluster").get("system", "")) if identifiable else ""


def grant(connection: Connection, kinds: Collection[str], days: int) -> str:
    """Grant the permission for `days` from today; return the last day on which it holds.

    Raises UsageError; TargetRefused with SQL for the owner, or if the cluster cannot be told from a copy.
    """
    if days < 1:
        raise UsageError(f"days = {days}; expected at least 1")
    row = catalog.row(connection, "marker")
    until = (_today() + timedelta(days=days)).isoformat()
    if not (system := cluster(connection, row["identifiable"])):
        function = "EXECUTE ON FUNCTION pg_control_system()"
        raise TargetRefused(f"this cluster cannot be told from a copy; expected its owner to run: GRANT {function} ...")
    marker = {"permissions": sorted(kinds), "database": row["database"], "system": system, "until": until}
    owned = sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}")
    made = owned.format(sql.Identifier(SCHEMA), sql.Identifier(row["owner"]))
    marked = sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(SCHEMA), sql.Literal(json.dumps(marker)))
    statements = sql.SQL("; ").join([made, marked]).as_string(connection)
    try:
        with connection.transaction():
            connection.execute(made)
            connection.execute(marked)
    except psycopg.Error as error:
        raise TargetRefused(f"{first_line(error)}; expected the database's owner to run: {statements}") from None
    if permissions(connection) != frozenset(kinds):
        raise TargetRefused(f"another role owns the schema {SCHEMA}; expected its owner to drop it")
    return until


def revoke(connection: Connection) -> None:
    """Revoke every permission. Raises TargetRefused."""
    try:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {}").format(sql.Identifier(SCHEMA)))
    except psycopg.Error as error:
        raise TargetRefused(f"{first_line(error)}; expected the owner to run: DROP SCHEMA {SCHEMA}") from None


def _today() -> date:
    return datetime.now(UTC).date()


# A PostgreSQL server of the user's: admitted, reached at one address, and recognised by its identity.

CONNECT_TIMEOUT = 5  # seconds
_ASK_S = 2.0


@dataclass(slots=True)
class External:
    """One database of a server that perfkit did not start; every statement to it is in the audit."""

    address: Address
    audit: Audit
    version: int = 0
    pooler: bool = True  # until perfkit knows that there is none
    permissions: frozenset[str] = frozenset()
    system: str = ""  # identifies the server if another one answers at its address
    answered: float = 0.0  # the time of the last answer, on the monotonic clock

    @property
    def name(self) -> str:
        """`host:port/database`."""
        return self.address.name

    @property
    def foreign(self) -> bool:
        """True: perfkit did not start this server."""
        return True

    def conninfo(self, dbname: str = "", user: str = "") -> str:
        """Return a libpq string pinned to the address, without a password. `user` is ignored: there is only one."""
        return self.address.conninfo(dbname)

    def connect(self, dbname: str = "", user: str = "") -> Connection:
        """Open a connection in autocommit mode, with time limits for every statement.

        Raises psycopg.Error; TargetRefused if another server answers.
        """
        kind = Pooled if self.pooler else Connection
        connection: Connection = kind.connect(
            self.conninfo(dbname),
            autocommit=True,
            row_factory=dict_row,
            prepare_threshold=None if self.pooler else 5,
            cursor_factory=audited(self.audit, self.name),
            application_name="perfkit",
            connect_timeout=CONNECT_TIMEOUT,
            client_encoding="utf8",  # otherwise a database in SQL_ASCII returns bytes for text
        )
        try:
            if isinstance(connection, Pooled):
                connection.noted = partial(self.audit.noted, self.name)
            else:
                limit(connection)
            if self.system and _system(connection, catalog.row(connection, "answering")) != self.system:
                raise TargetRefused(f"{self.name}: a different server answers than before; nothing more was sent to it")
        except BaseException:
            connection.close()
            raise
        return connection

    def alive(self) -> bool:
        """Whether the address answers; ping at most every 2 s, and twice before reporting a failure."""
        if monotonic() - self.answered < _ASK_S:
            return True
        conninfo = make_conninfo(self.conninfo(), connect_timeout=CONNECT_TIMEOUT).encode()
        if pq.PGconn.ping(conninfo) == pq.Ping.NO_RESPONSE:
            sleep(_ASK_S / 2)
            if pq.PGconn.ping(conninfo) == pq.Ping.NO_RESPONSE:
                return False
        self.answered = monotonic()
        return True

    def log_tail(self, lines: int = 5) -> str:
        """Return nothing: perfkit does not read this server's log."""
        return ""


def open_external(address: Address, permission: Permission, audit: Audit) -> External:
    """Admit the address, connect, and check that the named server answers.

    Raises TargetRefused, or ServerError with the server's message.
    """
    admit(address, permission)
    external = External(address, audit)
    try:
        with external.connect() as connection:
            answer = catalog.row(connection, "answering")
            _require_same(address, answer, _direct(connection, answer), permission)
            external.version = connection.info.server_version // 10000
            external.pooler = connection.info.backend_pid != answer["pid"]
            external.system = _system(connection, answer)
            external.permissions = permissions(connection)
    except psycopg.Error as error:
        expected = "expected a reachable server and a working login"
        raise ServerError(f"{address.name}: {visible(first_line(error))}; {expected}") from None
    if external.version < 13:
        raise ServerError(f"{address.name}: PostgreSQL {external.version}; expected 13 or later")
    return external


def _system(connection: Connection, answer: Row) -> str:
    """Return the cluster's identity, or the address that the server reports if this role cannot see it."""
    system = cluster(connection, answer["identifiable"])
    return system or f"{answer['address']}:{answer['listens']}"


def _direct(connection: Connection, answer: Row) -> bool:
    """Whether the connection is direct: the server reports the same socket as this process."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as local_socket:
        if local_socket.family == socket.AF_UNIX:
            return answer["client_address"] is None and _listener(local_socket) in ("postgres", "postmaster")
        address, port = local_socket.getsockname()[:2]
    return (canonical(answer["client_address"] or ""), answer["client_port"]) == (canonical(address), port)


def _listener(local_socket: socket.socket) -> str:
    """Return the program that listens in a socket folder; "" if that is not visible."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS does not tell
        return "postgres"
    pid, _, _ = struct.unpack(
        "3i", local_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _require_same(address: Address, answer: Row, direct: bool, permission: Permission) -> None:
    """Raise TargetRefused if a tunnel or pooler leads to a server that the user did not name as well."""
    if answer["database"] != address.dbname:
        name = f"{bracketed(address.host)}:{address.port}/{answer['database']}"
        _require_named(address, name, permission)
    if not direct and (address.local or here(address.address)):
        _require_named(address, _behind(address, answer), permission)


def _behind(address: Address, answer: Row) -> str:
    """Return the name of a server behind a tunnel or pooler: the address that the server reports.

    The prefix `tunnel:` keeps the name apart from that of the tunnel itself.
    """
    port = answer["port"] or answer["listens"]
    host = canonical(answer["address"]) if answer["address"] else "unix"
    name = f"{bracketed(host)}:{port}/{answer['database']}"
    alike = port == address.port and (host == "unix" or ipaddress.ip_address(host).is_loopback)
    return f"tunnel:{name}" if alike else name


def _require_named(address: Address, name: str, permission: Permission) -> None:
    leads, shown = f"{address.name} leads to {visible(name)}", visible(name)
    if normal(name) not in map(normal, (*permission.allow, *permission.confirm)):
        raise TargetRefused(f"{leads} (a tunnel, a proxy, a pooler?); to use it: --confirm {shown}")
    if looks_like_production([name]) and normal(name) not in map(normal, permission.production):
        raise TargetRefused(f"{leads}, which looks like production; to use it anyway: --production {shown}")
