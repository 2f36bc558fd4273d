"""Servers that perfkit did not start: how they are opened, and the owner's marker.

A schema `perfkit_allowed` whose comment names what is allowed, in which database of which cluster and until
when: a restored dump, a clone or a copy carries the schema but not the permission.
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
from typing import Any, Protocol

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from perfkit.base.errors import ServerError, TargetRefused, UsageError, first_line, visible
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection, Pooled, limit
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
    """The embedded server, or one of the user's that the guards let through."""

    @property
    def name(self) -> str:
        """What reports and the audit call it."""

    @property
    def version(self) -> int:
        """The major version."""

    @property
    def foreign(self) -> bool:
        """Whether somebody else started it."""

    @property
    def pooler(self) -> bool:
        """Whether sessions end with their transaction: nothing that belongs to a session can be relied on."""

    @property
    def permissions(self) -> frozenset[str]:
        """What may be done there: of "writes" and "ddl"."""

    def conninfo(self, dbname: str = "", user: str = "") -> str:
        """Connection string for libpq, without a password."""

    def connect(self, dbname: str = "", user: str = "") -> Connection:
        """A connection in autocommit mode; rows come as dictionaries. Raises psycopg.Error."""

    def alive(self) -> bool:
        """Whether it still runs, as far as perfkit can tell without asking it."""

    def log_tail(self, lines: int = 5) -> str:
        """The last messages of its log, where perfkit can read that."""


# The owner's marker.

SCHEMA = "perfkit_allowed"
KINDS = frozenset({"writes", "ddl"})


def permissions(connection: Connection) -> frozenset[str]:
    """What the owner allowed here and now, of "writes" and "ddl"."""
    row = catalog.row(connection, "marker")
    if not row["by_owner"]:
        return frozenset()
    try:
        said = json.loads(row["comment"] or "")
        here = (row["database"], cluster(connection, row["identifiable"]))
        valid = (said["database"], said["system"]) == here and date.fromisoformat(said["until"]) >= _today()
        return KINDS & frozenset(said["permissions"]) if valid and "" not in here else frozenset()
    except (ValueError, KeyError, TypeError):
        return frozenset()


def cluster(connection: Connection, identifiable: bool) -> str:
    """The identity of the cluster; "" where this role may not see it."""
    return str(catalog.row(connection, "cluster").get("system", "")) if identifiable else ""


def grant(connection: Connection, kinds: Collection[str], days: int) -> str:
    """Give the permission for `days` from today; returns the day until which it holds.

    Raises UsageError; TargetRefused with SQL for the owner, or where the permission could not be told from a copy's.
    """
    if days < 1:
        raise UsageError(f"days = {days}; expected at least 1")
    row = catalog.row(connection, "marker")
    until = (_today() + timedelta(days=days)).isoformat()
    if not (system := cluster(connection, row["identifiable"])):
        function = "EXECUTE ON FUNCTION pg_control_system()"
        raise TargetRefused(f"this cluster cannot be told from a copy; expected its owner to run: GRANT {function} ...")
    said = {"permissions": sorted(kinds), "database": row["database"], "system": system, "until": until}
    owned = sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}")
    made = owned.format(sql.Identifier(SCHEMA), sql.Identifier(row["owner"]))
    marked = sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(SCHEMA), sql.Literal(json.dumps(said)))
    statements = sql.SQL("; ").join([made, marked]).as_string(connection)
    try:
        with connection.transaction():
            connection.execute(made)
            connection.execute(marked)
    except psycopg.Error as error:
        raise TargetRefused(f"{first_line(error)}; expected the database's owner to run: {statements}") from None
    if permissions(connection) != frozenset(kinds):
        raise TargetRefused(f"a schema {SCHEMA} of somebody else is in the way; expected it to be dropped")
    return until


def revoke(connection: Connection) -> None:
    """Take every permission back. Raises TargetRefused."""
    try:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {}").format(sql.Identifier(SCHEMA)))
    except psycopg.Error as error:
        raise TargetRefused(f"{first_line(error)}; expected the owner to run: DROP SCHEMA {SCHEMA}") from None


def _today() -> date:
    return datetime.now(UTC).date()


# A PostgreSQL server of the user's: admitted, reached at one address, and known again when it answers.

CONNECT_TIMEOUT = 5  # seconds
_ASK_S = 2.0


@dataclass(slots=True)
class External:
    """One database of a server that somebody else runs; every statement to it is in the audit."""

    address: Address
    audit: Audit
    version: int = 0
    pooler: bool = True  # until it is known that there is none
    permissions: frozenset[str] = frozenset()
    system: str = ""  # what tells it from another server that might answer in its place
    answered: float = 0.0  # when it was last asked whether it lives, on the monotonic clock

    @property
    def name(self) -> str:
        """`host:port/database`."""
        return self.address.name

    @property
    def foreign(self) -> bool:
        """It is not perfkit's own."""
        return True

    def conninfo(self, dbname: str = "", user: str = "") -> str:
        """For libpq, pinned to the address; without a password. There is one user, whatever is asked for."""
        return self.address.conninfo(dbname)

    def connect(self, dbname: str = "", user: str = "") -> Connection:
        """A connection in autocommit mode, with time limits for all that is sent.

        Raises psycopg.Error, TargetRefused where another server answers.
        """
        kind = Pooled if self.pooler else psycopg.Connection[dict[str, Any]]
        connection: Connection = kind.connect(
            self.conninfo(dbname),
            autocommit=True,
            row_factory=dict_row,
            prepare_threshold=None if self.pooler else 5,
            cursor_factory=audited(self.audit, self.name),
            application_name="perfkit",
            connect_timeout=CONNECT_TIMEOUT,
            client_encoding="utf8",  # or a database in SQL_ASCII gives bytes for text
        )
        try:
            if isinstance(connection, Pooled):
                connection.noted = partial(self.audit.noted, self.name)
            else:
                limit(connection)
            if self.system and _system(connection, catalog.row(connection, "answering")) != self.system:
                raise TargetRefused(f"{self.name}: another server answers than before; nothing more was sent to it")
        except BaseException:
            connection.close()
            raise
        return connection

    def alive(self) -> bool:
        """Whether anything answers at its address, asked every other second at most; once more before it is lost."""
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
        """Its log is not perfkit's to read."""
        return ""


def open_external(address: Address, permission: Permission, audit: Audit) -> External:
    """Admit, connect, and see that what answers is what was named.

    Raises TargetRefused, or ServerError with the server's words.
    """
    admit(address, permission)
    external = External(address, audit)
    try:
        with external.connect() as connection:
            found = catalog.row(connection, "answering")
            _require_same(address, found, _direct(connection, found), permission)
            external.version = connection.info.server_version // 10000
            external.pooler = connection.info.backend_pid != found["pid"]
            external.system = _system(connection, found)
            external.permissions = permissions(connection)
    except psycopg.Error as error:
        expected = "expected a server that can be reached and a login that works"
        raise ServerError(f"{address.name}: {visible(first_line(error))}; {expected}") from None
    if external.version < 13:
        raise ServerError(f"{address.name}: PostgreSQL {external.version}; expected 13 or later")
    return external


def _system(connection: Connection, found: dict[str, Any]) -> str:
    """The cluster's identity, or where that may not be seen, where the server itself says it is."""
    system = cluster(connection, found["identifiable"])
    return system or f"{found['address']}:{found['listens']}"


def _direct(connection: Connection, found: dict[str, Any]) -> bool:
    """Whether nothing is in between: the server sees the very socket that is held here."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as own:
        if own.family == socket.AF_UNIX:
            return found["client_address"] is None and _listener(own) in ("postgres", "postmaster")
        address, port = own.getsockname()[:2]
    return (canonical(found["client_address"] or ""), found["client_port"]) == (canonical(address), port)


def _listener(own: socket.socket) -> str:
    """The program that listens at a socket folder; "" where that cannot be seen."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS tells nothing
        return "postgres"
    pid, _, _ = struct.unpack("3i", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _require_same(address: Address, found: dict[str, Any], direct: bool, permission: Permission) -> None:
    """Behind an address of this machine may be a tunnel or a pooler: what answers must have been named too."""
    if found["database"] != address.dbname:
        name = f"{bracketed(address.host)}:{address.port}/{found['database']}"
        _require_named(address, name, permission)
    if not direct and (address.local or here(address.address)):
        _require_named(address, _behind(address, found), permission)


def _behind(address: Address, found: dict[str, Any]) -> str:
    """What to call a server behind something: where it says it is, unless the way to it could be called the same."""
    port = found["port"] or found["listens"]
    host = canonical(found["address"]) if found["address"] else "unix"
    name = f"{bracketed(host)}:{port}/{found['database']}"
    alike = port == address.port and (host == "unix" or ipaddress.ip_address(host).is_loopback)
    return f"tunnel:{name}" if alike else name


def _require_named(address: Address, name: str, permission: Permission) -> None:
    leads, shown = f"{address.name} leads to {visible(name)}", visible(name)
    if normal(name) not in map(normal, (*permission.allow, *permission.confirm)):
        raise TargetRefused(f"{leads} (a tunnel, a proxy, a pooler?); if that is meant: --confirm {shown}")
    if looks_like_production([name]) and normal(name) not in map(normal, permission.production):
        raise TargetRefused(f"{leads}, which looks like production; if that is meant: --production {shown}")
