"""Senders of SQL: how one statement is sent and timed, and which sender a target needs. For load workers only.

psycopg connects and converts parameters. Between sending a statement and its last row only libpq and the event
loop run, which costs far less than psycopg's cursor. A statement is prepared once it has been sent as often as
psycopg would wait before preparing it.

A sender stamps `acquired` when it holds a connection and `done` when the last byte of the answer is read. It decides
what the answer means after the clock has stopped. A request without an answer after `timeout_s` expires: the
connection is given up, the server is asked to cancel the statement, and the outcome is `samples.TIMEOUT`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic_ns
from typing import Self

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import PyFormat, Transformer
from psycopg.conninfo import make_conninfo
from psycopg.pq import DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

from perfkit.base.errors import ServerError, UsageError, first_line
from perfkit.load.http import HttpSender
from perfkit.load.samples import OK, POOL_TIMEOUT, REFUSED, RESET, TIMEOUT, Answer, first_words
from perfkit.load.schedule import Message, Row, SqlOptions, Target
from perfkit.postgres.commands import exact, numbered, options, require_reading
from perfkit.postgres.sqltext import sendable

PREPARE_AFTER = 5
_MISREAD = "55000"  # object not in prerequisite state
_OK = {int(status) for status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY)}
_COPY = {int(status) for status in (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH)}


@dataclass(frozen=True, slots=True)
class Bound:
    """A statement with its parameters in the form that libpq sends."""

    text: bytes
    values: list[Buffer | None] | None
    types: tuple[int, ...] | None
    formats: list[Format] | None


def bound(sql: str, params: Row | None) -> Bound:
    """Return a statement and its values ready to be sent. Raises ValueError if they cannot be sent."""
    try:
        sendable(sql)
        row = exact(params)
    except UsageError as error:
        raise ValueError(str(error)) from None
    if params is None:
        return Bound(sql.encode(), None, None, None)
    placed = numbered(sql)
    assert isinstance(row, Mapping)
    if lacking := [name for name in placed.names if name not in row]:
        raise ValueError(f"%({lacking[0]})s is not a column of the parameters; expected one of: {', '.join(row)}")
    parameters, transformer = [row[name] for name in placed.names], Transformer()
    try:
        values = transformer.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
    except psycopg.Error as error:
        raise ValueError(f"parameters that cannot be sent: {first_line(error)}") from None
    formats = list(transformer.formats or ())
    return Bound(placed.text.encode(), list(values), transformer.types or None, formats or None)


class Failure(Exception):
    """The server refused a statement."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class LibpqConnection:
    """A connection that runs one statement at a time. Once `broken` it must be closed and opened anew."""

    def __init__(self, owner: psycopg.AsyncConnection[TupleRow], prepare: bool) -> None:
        self._owner, self._pg, self._prepare = owner, owner.pgconn, prepare
        self._loop, self._fd = asyncio.get_running_loop(), owner.pgconn.socket
        self._sent: Counter[tuple[bytes, tuple[int, ...] | None]] = Counter()
        self._names: dict[tuple[bytes, tuple[int, ...] | None], bytes] = {}
        self._waiting: asyncio.Future[int] | None = None
        self._result: PGresult | None = None
        self._farewell = ""
        self.broken = False
        owner.add_notice_handler(self._noticed)
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def open(cls, conninfo: str, *, timeout_s: float, prepare: bool) -> Self:
        """Connect. Raises psycopg.Error, also if the server would misread a text."""
        wait = max(2, int(timeout_s))
        owner = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, connect_timeout=wait)
        try:
            require_reading(owner.pgconn)
        except ServerError as error:
            await owner.close()
            raise psycopg.OperationalError(str(error)) from None
        return cls(owner, prepare)

    @property
    def pid(self) -> int:
        """The process of this connection on the server's machine."""
        return self._pg.backend_pid

    async def run(self, statement: Bound) -> int:
        """Send a statement and read its whole answer; return the number of rows.

        Raises Failure if the server refuses the statement or would misread it, psycopg.OperationalError if the
        connection is lost, TimeoutError if the statement expires.
        """
        # Checked before every statement, because an earlier one may have changed the setting.
        if (reported := self._pg.parameter_status(b"standard_conforming_strings")) != b"on":
            raise Failure(
                _MISREAD, f"standard_conforming_strings: a statement left it {(reported or b'').decode()}; expected on"
            )
        key = (statement.text, statement.types)
        if (name := self._names.get(key)) is None and self._prepare:
            self._sent[key] += 1
            if self._sent[key] > PREPARE_AFTER:
                name = f"perfkit_{len(self._names)}".encode()
                self._pg.send_prepare(name, statement.text, statement.types)
                await self._answer()
                self._names[key] = name
        if name is None:
            self._pg.send_query_params(statement.text, statement.values, statement.types, statement.formats)
        else:
            self._pg.send_query_prepared(name, statement.values, statement.formats)
        return await self._answer()

    def _answer(self) -> asyncio.Future[int]:
        """Return a future that brings the number of rows."""
        self._waiting, self._result = self._loop.create_future(), None
        if self._pg.flush():
            self._loop.add_writer(self._fd, self._writable)
        return self._waiting

    def expire(self) -> None:
        """Give up the answer: the pending `run` raises TimeoutError."""
        self._lost(TimeoutError("no answer in time"))

    def _readable(self) -> None:
        try:
            self._pg.consume_input()
            while not self._pg.is_busy():
                result = self._pg.get_result()
                if result is None:
                    self._finish()
                    return
                self._result = result
                if result.status in _COPY:
                    self._lost(Failure("0A000", "COPY; expected a statement that returns rows or nothing"))
                    return
        except psycopg.Error as error:
            # A server that ends a session says why before it closes the socket: that is the error to name.
            if self._result is not None and self._result.status not in _OK:
                self._finish()
            self._lost(psycopg.OperationalError(self._farewell) if self._farewell else error)

    def _noticed(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Keep the reason of a server that ends the session between two statements: libpq makes a notice of it."""
        if diagnostic.severity_nonlocalized == "FATAL":
            self._farewell = diagnostic.message_primary or ""

    def _writable(self) -> None:
        try:
            if not self._pg.flush():
                self._loop.remove_writer(self._fd)
        except psycopg.Error as error:
            self._lost(error)

    def _finish(self) -> None:
        """Resolve the pending future; the whole answer was read."""
        result, waiting = self._result, self._waiting
        if result is None or waiting is None or waiting.done():
            return
        if result.status in _OK:
            waiting.set_result(result.ntuples)
            return
        sqlstate, message = (result.error_field(f) for f in (DiagnosticField.SQLSTATE, DiagnosticField.MESSAGE_PRIMARY))
        waiting.set_exception(Failure((sqlstate or b"XX000").decode(), (message or b"").decode("utf-8", "replace")))

    def _lost(self, error: Exception) -> None:
        """Give up the connection: what still arrives would be taken for the next statement's answer."""
        self.broken = True
        self._detach()
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(error)

    def _detach(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1

    async def cancel(self) -> None:
        """Ask the server to cancel the expired statement."""
        with suppress(psycopg.Error):
            await self._owner.cancel_safe(timeout=2)

    async def close(self) -> None:
        """Close the connection."""
        self._detach()
        await self._owner.close()


def load_conninfo(conninfo: str, session: Mapping[str, str]) -> str:
    """Return the conninfo of a session that sends load, with its settings."""
    settings = {"options": options(session)} if session else {}
    return make_conninfo(conninfo, application_name="perfkit load", client_encoding="UTF8", **settings)


CONFLICTS = ("40001", "40P01")  # serialization failure, deadlock: the same statement may succeed now
_OUTCOMES: dict[type[Exception], str] = {TimeoutError: TIMEOUT, ConnectionError: REFUSED}  # all others: RESET


class SqlSender:
    """Sends statements in autocommit mode over a pool of connections; the one used last is used first."""

    warm: Message | None = None  # connecting is enough

    def __init__(
        self,
        conninfo: str,
        timeout_s: float,
        session: dict[str, str],
        prepare: bool,
        retries: int = 0,
        connections: int = 0,
    ) -> None:
        self._conninfo, self._timeout_s, self._prepare = load_conninfo(conninfo, session), timeout_s, prepare
        self._retries, self._most = retries, connections
        self._free: deque[LibpqConnection | None] = deque()  # None: a connection that was lost
        self._queue: deque[asyncio.Future[LibpqConnection | None]] = deque()

    async def open(self, users: int) -> None:
        """Open a connection for each user, up to the limit. Raises ConnectionError with the server's message."""
        self._loop, count = asyncio.get_running_loop(), min(users, self._most or users)
        try:
            self._free.append(await self.connect())
            async with asyncio.timeout(self._timeout_s):
                self._free += await asyncio.gather(*(self.connect() for _ in range(count - 1)))
        except TimeoutError:
            raise ConnectionError(f"{count} connections could not be opened within {self._timeout_s:g} s") from None

    @property
    def pids(self) -> list[int]:
        """The server's processes of the open connections that are free."""
        return [connection.pid for connection in self._free if connection]

    def stand_by(self, users: int) -> None:
        """Be ready for so many users of a server that need not answer yet: who sends first connects."""
        self._loop = asyncio.get_running_loop()
        self._free.extend([None] * users)

    async def connect(self) -> LibpqConnection:
        """Open a connection. Raises ConnectionError with the server's message."""
        try:
            return await LibpqConnection.open(self._conninfo, timeout_s=self._timeout_s, prepare=self._prepare)
        except psycopg.Error as error:
            raise ConnectionError(first_words(error)) from None

    def check(self, message: Message) -> None:
        """Prepare the statement for sending. Raises ValueError if its parameters cannot be sent."""
        message["bound"] = bound(message["sql"], message["params"])

    async def send(self, message: Message) -> Answer:
        """Run a statement and read every row; retry after a conflict."""
        acquired, attempts, statement = monotonic_ns(), 0, message["bound"]
        try:
            connection = self._free.pop() if self._free else await self._wait()
        except TimeoutError:
            return Answer(acquired, monotonic_ns(), POOL_TIMEOUT, f"no connection within {self._timeout_s:g} s")
        late = None
        try:
            if connection is None or connection.broken:  # lost: a new one takes its place
                if connection:
                    await connection.close()
                connection = await self.connect()
            acquired = monotonic_ns()
            late = self._loop.call_later(self._timeout_s, connection.expire)
            while True:
                attempts += 1
                try:
                    rows = await connection.run(statement)
                    return Answer(acquired, monotonic_ns(), OK, f"{rows} rows", "", attempts)
                except Failure as error:
                    if error.sqlstate not in CONFLICTS or attempts > self._retries:
                        outcome = f"sqlstate_{error.sqlstate}"
                        return Answer(acquired, monotonic_ns(), outcome, first_line(error), "", attempts)
        except (psycopg.Error, TimeoutError, ConnectionError) as error:
            done = monotonic_ns()
            if isinstance(error, TimeoutError) and connection:
                await connection.cancel()
            return Answer(acquired, done, _OUTCOMES.get(type(error), RESET), first_words(error), "", attempts)
        finally:
            if late:
                late.cancel()
            self._give_back(connection)

    async def _wait(self) -> LibpqConnection | None:
        """Return the next connection that is given back. Raises TimeoutError."""
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
        """Close every connection, upon which the server publishes their statistics."""
        await asyncio.gather(*(connection.close() for connection in self._free if connection))
        self._free.clear()


class AlternatingSender:
    """Sends to several databases over a connection to each; the key `arm` of a message names its database."""

    warm: Message | None = None

    def __init__(self, targets: Mapping[str, SqlOptions]) -> None:
        self._senders = {name: SqlSender(**options) for name, options in targets.items()}

    async def open(self, users: int) -> None:
        """Open every connection, for a single user. Raises ConnectionError with the server's message."""
        if users != 1:
            raise ConnectionError(f"{users} users; expected one, because the databases take turns")
        for sender in self._senders.values():
            await sender.open(1)

    @property
    def pids(self) -> list[int]:
        """The servers' processes of all open connections."""
        return [pid for sender in self._senders.values() for pid in sender.pids]

    def check(self, message: Message) -> None:
        """Prepare the statement for sending. Raises ValueError if its parameters cannot be sent."""
        self._senders[message["arm"]].check(message)

    async def send(self, message: Message) -> Answer:
        """Run a statement on its database and read every row."""
        return await self._senders[message["arm"]].send(message)

    async def close(self) -> None:
        """Close every connection."""
        for sender in self._senders.values():
            await sender.close()


Sender = HttpSender | SqlSender | AlternatingSender


def make(target: Target) -> Sender:
    """Return the sender for a target."""
    if target["kind"] == "http":
        return HttpSender(**target["options"])
    return SqlSender(**target["options"]) if target["kind"] == "sql" else AlternatingSender(target["options"])
