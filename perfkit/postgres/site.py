"""What a PostgreSQL server is to the rest of perfkit, whoever started it."""

from __future__ import annotations

from typing import Any, Protocol

import psycopg

Connection = psycopg.Connection[dict[str, Any]]


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
