"""Queries of sql/catalog by name, and the time limits of statements to servers that perfkit did not start.

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

Row = dict[str, Any]  # a row of any query, by column
Connection = psycopg.Connection[Row]
AnyConnection = psycopg.Connection[Any]  # also with rows of another form


@functools.cache
def get(name: str) -> str:
    """Return the text of a catalogue query.

    >>> get("settings").splitlines()[0][:2]
    '--'
    """
    return resources.path(f"sql/catalog/{name}.sql").read_text(encoding="utf-8")


def rows(connection: Connection, name: str) -> list[Row]:
    """Return every row of a catalogue query."""
    return connection.execute(get(name).encode()).fetchall()


def row(connection: Connection, name: str) -> Row:
    """Return the first row of a catalogue query; an empty mapping if it has none."""
    return connection.execute(get(name).encode()).fetchone() or {}


STATEMENT_S, LOCK_S = 60.0, 3.0
# Two commands in one round trip: every name and value in them is a constant.
_LOCAL = f"SET LOCAL statement_timeout = {STATEMENT_S * 1000:.0f}; SET LOCAL lock_timeout = {LOCK_S * 1000:.0f}"


class Pooled(Connection):
    """A connection that may go through a pooler: each transaction sets its own limits."""

    noted: Callable[[str], AbstractContextManager[object]] = nullcontext  # records a statement in the audit

    def limit_transaction(self) -> None:
        """Set both limits for the transaction that starts here or has just started."""
        with self.noted(_LOCAL):
            psycopg.Cursor(self).execute(_LOCAL)

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Open a transaction as psycopg does; set the limits if it is not a nested one."""
        begins = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if begins:
                self.limit_transaction()
            yield transaction


def limit(connection: AnyConnection) -> None:
    """Set both limits for a session without a pooler."""
    limits = {"statement": f"{STATEMENT_S:.0f}s", "lock": f"{LOCK_S:.0f}s"}
    connection.execute(get("limits").encode(), limits)


@contextmanager
def limited(connection: AnyConnection) -> Iterator[None]:
    """Set the limits for a statement's transaction if a pooler may be in between and the statement starts it."""
    if not isinstance(connection, Pooled) or connection.info.transaction_status != TransactionStatus.IDLE:
        yield
    elif connection.autocommit:
        with connection.transaction():
            yield
    else:
        connection.limit_transaction()
        yield


def holders(connect: Callable[[], AnyConnection], error: BaseException) -> str:
    """Return the processes that hold exclusive locks, in brackets, if the error is a lock timeout; else ""."""
    if not isinstance(error, psycopg.errors.LockNotAvailable):
        return ""
    with suppress(psycopg.Error, PerfkitError), connect() as connection:
        cursor = connection.cursor(row_factory=dict_row)
        locks = cursor.execute(get("exclusive_locks").encode()).fetchall()
        held = [f"{visible(lock['table'])} by process {lock['pid']}{_duration(lock['seconds'])}" for lock in locks]
        return f" (locked: {', '.join(held)})" if held else ""
    return ""


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f" for {seconds:,.0f} s"
