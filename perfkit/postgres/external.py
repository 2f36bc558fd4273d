"""A PostgreSQL server of the user's: admitted, reached at one address, and known again when it answers."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.rows import dict_row

from perfkit.errors import ServerError, TargetRefused
from perfkit.guards.address import Address, bracketed, canonical
from perfkit.guards.admission import Permission, admit, normal
from perfkit.guards.audit import Audit, audited
from perfkit.postgres import catalog, marker
from perfkit.postgres.site import Connection
from perfkit.text import visible

CONNECT_TIMEOUT = 5  # seconds


@dataclass(slots=True)
class External:
    """One database of a server that somebody else runs; every statement to it is in the audit."""

    address: Address
    audit: Audit
    version: int = 0
    pooler: bool = False
    permissions: frozenset[str] = frozenset()
    system: str = ""  # the cluster's identity

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
        """A connection in autocommit mode. Raises psycopg.Error, TargetRefused where another server answers."""
        connection: Connection = psycopg.connect(
            self.conninfo(dbname),
            autocommit=True,
            row_factory=dict_row,
            prepare_threshold=None if self.pooler else 5,
            cursor_factory=audited(self.audit, self.name),
            application_name="perfkit",
            connect_timeout=CONNECT_TIMEOUT,
        )
        if self.system and _answering(connection)["system"] != self.system:
            connection.close()
            raise TargetRefused(f"{self.name}: another server answers than before; nothing more was sent to it")
        return connection

    def alive(self) -> bool:
        """As far as perfkit can tell without asking it."""
        return True

    def log_tail(self, lines: int = 5) -> str:
        """Its log is not perfkit's to read."""
        return ""

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_external(address: Address, permission: Permission, audit: Audit) -> External:
    """Admit, connect, and see that what answers is what was named.

    Raises TargetRefused, or ServerError with the server's words.
    """
    admit(address, permission)
    external = External(address, audit)
    try:
        with external.connect() as connection:
            found = _answering(connection)
            _require_same(address, found, permission)
            external.version = connection.info.server_version // 10000
            external.pooler = connection.info.backend_pid != found["pid"]
            external.system = found["system"] or ""
            external.permissions = marker.permissions(connection)
    except psycopg.Error as error:
        words = visible((str(error).strip() or type(error).__name__).splitlines()[0])
        raise ServerError(
            f"{address.name}: {words}; expected a server that can be reached and a login that works"
        ) from None
    if external.version < 13:
        raise ServerError(f"{address.name}: PostgreSQL {external.version}; expected 13 or later")
    return external


def _answering(connection: Connection) -> dict[str, Any]:
    return connection.execute(catalog.get("answering").encode()).fetchone() or {}


def _require_same(address: Address, found: dict[str, Any], permission: Permission) -> None:
    """Behind a local address may be a tunnel or a pooler: the server that answers must have been named too."""
    if found["database"] != address.dbname:
        name = f"{bracketed(address.host)}:{address.port}/{found['database']}"
        _require_named(address, name, permission)
    elsewhere = found["address"] is not None and canonical(found["address"]) != address.address
    if address.local and (elsewhere or (found["port"] and found["port"] != address.port)):
        _require_named(
            address,
            f"{bracketed(canonical(found['address']))}:{found['port']}/{found['database']}",
            permission,
        )


def _require_named(address: Address, name: str, permission: Permission) -> None:
    if normal(name) not in map(normal, (*permission.allow, *permission.confirm)):
        raise TargetRefused(
            f"{address.name} leads to {visible(name)} (a tunnel, a proxy, a pooler?); if that is meant: "
            f"--confirm {visible(name)}"
        )
