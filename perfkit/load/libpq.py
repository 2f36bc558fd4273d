"""One connection to PostgreSQL, its answers read by the event loop straight from libpq.

psycopg connects and writes parameters; between sending a statement and its last row only libpq and the event
loop run, which costs far less than psycopg's own cursor. A statement is prepared when it has been sent
as often as psycopg would wait before preparing it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import DiagnosticField, ExecStatus

from perfkit.errors import ServerError, UsageError
from perfkit.postgres.extended import require_reading
from perfkit.postgres.parameters import exact, sendable
from perfkit.postgres.placeholders import numbered
from perfkit.text import first_line

PREPARE_AFTER = 5
_MISREAD = "55000"  # object not in prerequisite state
_OK = {int(status) for status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY)}
_COPY = {int(status) for status in (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH)}


@dataclass(frozen=True, slots=True)
class Bound:
    """A statement with its parameters, as libpq sends them."""

    text: bytes
    values: list[Any] | None
    types: tuple[int, ...] | None
    formats: list[Any] | None


def bound(sql: str, params: Mapping[str, Any] | None) -> Bound:
    """A statement and its values ready to be sent. Raises ValueError for what cannot be."""
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
        raise ValueError(f"%({lacking[0]})s is no column of the parameters; expected one of: {', '.join(row)}")
    given, transformer = [row[name] for name in placed.names], Transformer()
    try:
        values = transformer.dump_sequence(given, [PyFormat.AUTO] * len(given))
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

    def __init__(self, owner: psycopg.AsyncConnection[Any], prepare: bool) -> None:
        self._owner, self._pg, self._prepare = owner, owner.pgconn, prepare
        self._loop, self._fd = asyncio.get_running_loop(), owner.pgconn.socket
        self._sent: Counter[tuple[bytes, tuple[int, ...] | None]] = Counter()
        self._names: dict[tuple[bytes, tuple[int, ...] | None], bytes] = {}
        self._waiting: asyncio.Future[int] | None = None
        self._result: Any = None
        self.broken = False
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def open(cls, conninfo: str, *, timeout_s: float, prepare: bool, **options: Any) -> Self:
        """Connect. Raises psycopg.Error, also where the server would misread a text."""
        found = psycopg.AsyncConnection[Any]
        owner = await found.connect(conninfo, autocommit=True, connect_timeout=max(2, int(timeout_s)), **options)
        try:
            require_reading(owner.pgconn)
        except ServerError as error:
            await owner.close()
            raise psycopg.OperationalError(str(error)) from None
        return cls(owner, prepare)

    @property
    def pid(self) -> int:
        """The server's process, on the server's machine."""
        return self._pg.backend_pid

    async def run(self, statement: Bound) -> int:
        """Send a statement and read its whole answer; returns the number of rows.

        Raises Failure where the server refuses it or would misread it, psycopg.OperationalError where the connection
        is lost, TimeoutError where it expired.
        """
        # As when the connection was opened: an earlier statement may have changed it.
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
        """The rows of what was sent, once they are there."""
        self._waiting, self._result = self._loop.create_future(), None
        if self._pg.flush():
            self._loop.add_writer(self._fd, self._writable)
        return self._waiting

    def expire(self) -> None:
        """Wait no longer: whoever does gets a TimeoutError."""
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
            self._lost(error)

    def _writable(self) -> None:
        try:
            if not self._pg.flush():
                self._loop.remove_writer(self._fd)
        except psycopg.Error as error:
            self._lost(error)

    def _finish(self) -> None:
        """Everything was read."""
        result, waiting = self._result, self._waiting
        if result is None or waiting is None or waiting.done():
            return
        if result.status in _OK:
            waiting.set_result(result.ntuples)
            return
        sqlstate, message = (result.error_field(f) for f in (DiagnosticField.SQLSTATE, DiagnosticField.MESSAGE_PRIMARY))
        waiting.set_exception(Failure((sqlstate or b"XX000").decode(), (message or b"").decode("utf-8", "replace")))

    def _lost(self, error: Exception) -> None:
        """What still comes would answer the next statement."""
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
        """Ask the server to stop what it is still doing for an expired statement."""
        with suppress(psycopg.Error):
            await self._owner.cancel_safe(timeout=2)

    async def close(self) -> None:
        """Close the connection."""
        self._detach()
        await self._owner.close()
