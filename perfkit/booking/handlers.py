"""The two ways to book: as it was first written, and as it was proposed to be written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol
from uuid import UUID

from psycopg import AsyncConnection, OperationalError
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from perfkit.base import resources
from perfkit.booking.model import Booking, ContactUnknown, SlotTaken

REQUEST_TIMEOUT = 5.0  # seconds, of a pooled request as a whole
POOL_TIMEOUT = 3.0  # seconds of it that may pass waiting for a connection
CONNECT_TIMEOUT = 5  # seconds

# The pool's own words are several lines for each connection and attempt.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
_log = logging.getLogger(__name__)

_LOCK = "SELECT pg_advisory_xact_lock(booking_lock(%(org_id)s, %(contact_id)s))"
_CONTACT = "SELECT 1 FROM contacts WHERE id = %(contact_id)s AND org_id = %(org_id)s"
_INSERT = """
    INSERT INTO appointments (org_id, contact_id, scheduled_at, duration_minutes, notes)
    VALUES (%(org_id)s, %(contact_id)s, %(scheduled_at)s, %(duration_minutes)s, %(notes)s)
    RETURNING id
"""
_BOOK = """
    SELECT outcome, appointment_id
    FROM book_appointment(%(org_id)s, %(contact_id)s, %(scheduled_at)s, %(duration_minutes)s, %(notes)s)
"""


def query(name: str) -> str:
    """The text of `sql/queries/<name>.sql`. Raises OSError."""
    return resources.path(f"sql/queries/{name}.sql").read_text(encoding="utf-8")


class Handler(Protocol):
    """How the service reaches its database. Both ways to use it raise psycopg's errors and TimeoutError."""

    async def open(self) -> None:
        """Begin; does not wait for the database."""

    async def close(self) -> None:
        """Give every connection back."""

    async def reset(self) -> None:
        """Forget every connection and begin anew: the database behind them may be another one."""

    async def book(self, booking: Booking) -> UUID:
        """The new appointment's id. Raises ContactUnknown or SlotTaken."""

    async def select(self, sql: str, parameters: Mapping[str, Any]) -> list[DictRow]:
        """The rows of a query with named parameters."""


class BaselineHandler:
    """A connection per request, a statement per step."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._conflict_check = query("conflict_check")

    async def open(self) -> None:
        """Nothing to begin."""

    async def close(self) -> None:
        """Nothing to give back."""

    async def reset(self) -> None:
        """Nothing to forget."""

    async def book(self, booking: Booking) -> UUID:
        """Lock, check contact, check conflict, insert, commit: a round trip each, and those to connect."""
        wanted = asdict(booking)
        async with await self._connect() as connection:
            # A statement of its own: the check's snapshot must be younger than the lock.
            await connection.execute(_LOCK, wanted)
            if not await (await connection.execute(_CONTACT, wanted)).fetchone():
                raise ContactUnknown
            if await (await connection.execute(self._conflict_check, wanted)).fetchone():
                raise SlotTaken
            (row,) = await (await connection.execute(_INSERT, wanted)).fetchall()
        new: UUID = row["id"]
        return new

    async def select(self, sql: str, parameters: Mapping[str, Any]) -> list[DictRow]:
        """The rows of a query, on a connection of its own."""
        async with await self._connect() as connection:
            return await (await connection.execute(sql, parameters)).fetchall()

    async def _connect(self) -> AsyncConnection[DictRow]:
        return await AsyncConnection.connect(self._conninfo, row_factory=dict_row, connect_timeout=CONNECT_TIMEOUT)


class PooledHandler:
    """Connections kept open, one round trip per booking, an end to every request after REQUEST_TIMEOUT."""

    def __init__(self, conninfo: str, size: int) -> None:
        self._conninfo = conninfo
        self._size = size
        self._pool: AsyncConnectionPool[AsyncConnection[DictRow]] | None = None
        self._filling: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def open(self) -> None:
        """Begin to fill a pool; until it is full, requests are refused as if the database were away."""
        self._filling = asyncio.create_task(self._fill())

    async def close(self) -> None:
        """Close idle connections now and the others when their request is done."""
        pool, self._pool = self._pool, None  # before anything waits: a health check may be on its way
        if self._filling:
            self._filling.cancel()
            with suppress(asyncio.CancelledError):
                await self._filling
        if pool:
            await pool.close()

    async def reset(self) -> None:
        """Close the pool and begin to fill another."""
        async with self._one_at_a_time:
            await self.close()
            await self.open()

    async def book(self, booking: Booking) -> UUID:
        """Lock, checks and insert in the server, by one statement that is its own transaction."""
        (row,) = await self.select(_BOOK, asdict(booking))
        if row["outcome"] == "unknown":
            raise ContactUnknown
        if row["outcome"] == "taken":
            raise SlotTaken
        new: UUID = row["appointment_id"]
        return new

    async def select(self, sql: str, parameters: Mapping[str, Any]) -> list[DictRow]:
        """The rows of one statement; TimeoutError after REQUEST_TIMEOUT, when the server has dropped it."""
        if not self._pool:
            raise OperationalError("the pool is not full yet")
        # psycopg cancels the statement on the server when its task is interrupted.
        async with asyncio.timeout(REQUEST_TIMEOUT), self._pool.connection() as connection:
            return await (await connection.execute(sql, parameters)).fetchall()

    async def _fill(self) -> None:
        """Open pools until one is full: the database may come later than the service."""
        while not self._pool:
            pool = self._new_pool()
            try:
                await pool.open(wait=True, timeout=CONNECT_TIMEOUT)
                self._pool = pool
            except PoolTimeout:
                _log.warning("the database cannot be reached; trying on")
            except asyncio.CancelledError:
                await pool.close()
                raise

    def _new_pool(self) -> AsyncConnectionPool[AsyncConnection[DictRow]]:
        return AsyncConnectionPool(
            self._conninfo,
            open=False,
            min_size=self._size,
            kwargs={"autocommit": True, "row_factory": dict_row, "connect_timeout": CONNECT_TIMEOUT},
            configure=_limit_statements,
            timeout=POOL_TIMEOUT,
        )


async def _limit_statements(connection: AsyncConnection[DictRow]) -> None:
    """The server's own limit, for when this process is gone or its cancel request does not get through."""
    await connection.execute(f"SET statement_timeout = {int(REQUEST_TIMEOUT * 1000)}")
