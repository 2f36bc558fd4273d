"""Queries of sql/catalog by name, and the time limits of every statement to a server that perfkit did not start.

A statement that waits for a lock makes other sessions wait behind it, and one that runs long holds back VACUUM. So a
session gets both limits as soon as it is connected. Behind a pooler, a session's settings would also reach the
pooler's next client: there each transaction gets its own limits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from perfkit.base import resources
from perfkit.base.errors import PerfkitError, visible

Connection = psycopg.Connection[dict[str, Any]]


@functools.cache
def get(name: str) -> str:
    """The text of a catalogue query.

    >>> get("settings").splitlines()[0][:2]
    '--'
    """
    return resources.path(f"sql/catalog/{name}.sql").read_text(encoding="utf-8")


def rows(connection: Connection, name: str) -> list[dict[str, Any]]:
    """Every row that a catalogue query gives."""
    return connection.execute(get(name).encode()).fetchall()


def row(connection: Connection, name: str) -> dict[str, Any]:
    """The first row of a catalogue query; an empty one where there is none."""
    return connection.execute(get(name).encode()).fetchone() or {}


STATEMENT_S, LOCK_S = 60.0, 3.0
# Two commands in one round trip; no name or value in them is anybody else's.
_LOCAL = f"SET LOCAL statement_timeout = {STATEMENT_S * 1000:.0f}; SET LOCAL lock_timeout = {LOCK_S * 1000:.0f}"


class Pooled(psycopg.Connection[dict[str, Any]]):
    """A connection through a pooler, or perhaps so: every transaction has limits of its own."""

    noted: Callable[[str], AbstractContextManager[Any]] = nullcontext  # writes an audit

    def limit_transaction(self) -> None:
        """Give the transaction that begins here, or began just now, both limits."""
        with self.noted(_LOCAL):
            psycopg.Cursor(self).execute(_LOCAL)

    @contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        """As psycopg's, with the limits where it begins one."""
        begins = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(*args, **options) as transaction:
            if begins:
                self.limit_transaction()
            yield transaction


def limit(connection: psycopg.Connection[Any]) -> None:
    """Set both limits for a session of perfkit's own."""
    limits = {"statement": f"{STATEMENT_S:.0f}s", "lock": f"{LOCK_S:.0f}s"}
    connection.execute(get("limits").encode(), limits)


@contextmanager
def limited(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Give a statement's transaction the limits where a pooler may be in between and the statement begins it."""
    if not isinstance(connection, Pooled) or connection.info.transaction_status != TransactionStatus.IDLE:
        yield
    elif connection.autocommit:
        with connection.transaction():
            yield
    else:
        connection.limit_transaction()
        yield


def holders(connect: Callable[[], psycopg.Connection[Any]], error: BaseException) -> str:
    """Say who holds exclusive locks, in brackets, where an error is that of a lock which was not to be had."""
    if not isinstance(error, psycopg.errors.LockNotAvailable):
        return ""
    with suppress(psycopg.Error, PerfkitError), connect() as connection:
        cursor = connection.cursor(row_factory=dict_row)
        rows = cursor.execute(get("exclusive_locks").encode()).fetchall()
        said = [f"{visible(row['table'])} by process {row['pid']}{_since(row['seconds'])}" for row in rows]
        return f" (locked: {', '.join(said)})" if said else ""
    return ""


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f" for {seconds:,.0f} s"
