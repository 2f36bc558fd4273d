"""How one statement is sent and timed, and which sender a target needs. Runs inside a load worker only.

A sender stamps `acquired` when it holds a connection and `done` when the last byte of the answer is read;
what the answer means is decided after the clock has stopped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic_ns
from typing import Any

import psycopg

from perfkit.load.answer import Answer, first_words
from perfkit.load.http import HttpSender
from perfkit.load.libpq import Failure, LibpqConnection, bound
from perfkit.load.limits import OK
from perfkit.postgres.parameters import options
from perfkit.text import first_line

AGAIN = ("40001", "40P01")  # serialization failure, deadlock: the same statement may succeed now
_KINDS: dict[type[Exception], str] = {TimeoutError: "timeout", ConnectionError: "refused"}  # the rest: reset


class SqlSender:
    """libpq, autocommit; connections are taken and given back, the one used last first."""

    warm: dict[str, Any] | None = None  # connecting is enough

    def __init__(
        self,
        conninfo: str,
        timeout_s: float,
        session: dict[str, str],
        prepare: bool,
        retries: int = 0,
        connections: int = 0,
    ) -> None:
        self._conninfo, self._timeout_s, self._prepare = conninfo, timeout_s, prepare
        self._retries, self._most = retries, connections
        self._options: dict[str, Any] = {"application_name": "perfkit load", "client_encoding": "UTF8"}
        if session:
            self._options["options"] = options(session)
        self._free: deque[LibpqConnection | None] = deque()  # None: one that was lost
        self._queue: deque[asyncio.Future[LibpqConnection | None]] = deque()

    async def open(self, users: int) -> None:
        """Open a connection for each user, or as many as there may be. Raises ConnectionError in the server's words."""
        self._loop, wanted = asyncio.get_running_loop(), min(users, self._most or users)
        try:
            self._free.append(await self.connect())
            async with asyncio.timeout(self._timeout_s):
                self._free += await asyncio.gather(*(self.connect() for _ in range(wanted - 1)))
        except TimeoutError:
            raise ConnectionError(f"{wanted} connections could not be had within {self._timeout_s:g} s") from None

    @property
    def pids(self) -> list[int]:
        """The server's processes of the connections that are open and free."""
        return [connection.pid for connection in self._free if connection]

    def stand_by(self, users: int) -> None:
        """Be ready for so many users of a server that need not answer yet: who sends first connects."""
        self._loop = asyncio.get_running_loop()
        self._free.extend([None] * users)

    async def connect(self) -> LibpqConnection:
        """One connection. Raises ConnectionError with the server's words."""
        try:
            return await LibpqConnection.open(
                self._conninfo, timeout_s=self._timeout_s, prepare=self._prepare, **self._options
            )
        except psycopg.Error as error:
            raise ConnectionError(first_words(error)) from None

    def check(self, message: dict[str, Any]) -> None:
        """Turn the statement into what is sent. Raises ValueError for parameters that it cannot take."""
        message["bound"] = bound(message["sql"], message["params"])

    async def send(self, message: dict[str, Any]) -> Answer:
        """Run one statement and read every row, again where it met a conflict."""
        acquired, attempts, statement = monotonic_ns(), 0, message["bound"]
        try:
            connection = self._free.pop() if self._free else await self._wait()
        except TimeoutError:
            return Answer(acquired, monotonic_ns(), "pool_timeout", f"no connection within {self._timeout_s:g} s")
        late = None
        try:
            if connection is None or connection.broken:
                connection = await self._anew(connection)
            acquired = monotonic_ns()
            late = self._loop.call_later(self._timeout_s, connection.expire)
            while True:
                attempts += 1
                try:
                    rows = await connection.run(statement)
                    return Answer(acquired, monotonic_ns(), OK, f"{rows} rows", "", attempts)
                except Failure as error:
                    if error.sqlstate not in AGAIN or attempts > self._retries:
                        outcome = f"sqlstate_{error.sqlstate}"
                        return Answer(acquired, monotonic_ns(), outcome, first_line(error), "", attempts)
        except (psycopg.Error, TimeoutError, ConnectionError) as error:
            done = monotonic_ns()
            if isinstance(error, TimeoutError) and connection:
                await connection.cancel()
            return Answer(acquired, done, _KINDS.get(type(error), "reset"), first_words(error), "", attempts)
        finally:
            if late:
                late.cancel()
            self._give_back(connection)

    async def _anew(self, lost: LibpqConnection | None) -> LibpqConnection:
        """Another connection for one that was lost. Raises ConnectionError."""
        if lost:
            await lost.close()
        return await self.connect()

    async def _wait(self) -> LibpqConnection | None:
        """The next connection that is given back. Raises TimeoutError."""
        waiter: asyncio.Future[LibpqConnection | None] = self._loop.create_future()
        self._queue.append(waiter)
        async with asyncio.timeout(self._timeout_s):
            return await waiter

    def _give_back(self, connection: LibpqConnection | None) -> None:
        while self._queue:
            if not (waiter := self._queue.popleft()).done():
                waiter.set_result(connection)
                return
        self._free.append(connection)

    async def close(self) -> None:
        """Close every connection; the server publishes their statistics with it."""
        await asyncio.gather(*(connection.close() for connection in self._free if connection))
        self._free.clear()


class AlternatingSender:
    """Several databases, a connection to each; a message names its own."""

    warm: dict[str, Any] | None = None

    def __init__(self, targets: dict[str, dict[str, Any]]) -> None:
        self._senders = {name: SqlSender(**own) for name, own in targets.items()}

    async def open(self, users: int) -> None:
        """Open every connection, for the one user that there is. Raises ConnectionError with the server's words."""
        if users != 1:
            raise ConnectionError(f"{users} users; expected one, for the databases take turns")
        for sender in self._senders.values():
            await sender.open(1)

    @property
    def pids(self) -> list[int]:
        """The servers' processes of all connections."""
        return [pid for sender in self._senders.values() for pid in sender.pids]

    def check(self, message: dict[str, Any]) -> None:
        """As for one database."""
        self._senders[message["arm"]].check(message)

    async def send(self, message: dict[str, Any]) -> Answer:
        """Run one statement where it belongs and read every row."""
        return await self._senders[message["arm"]].send(message)

    async def close(self) -> None:
        """Close every connection."""
        for sender in self._senders.values():
            await sender.close()


Sender = HttpSender | SqlSender | AlternatingSender


def make(spec: dict[str, Any]) -> Sender:
    """The sender that a target description from the parent asks for."""
    kinds: dict[str, type[Sender]] = {"http": HttpSender, "sql": SqlSender, "alternating": AlternatingSender}
    return kinds[spec["kind"]](**spec["options"])
