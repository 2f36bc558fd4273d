"""The booking service: routes, handlers, and the figures of its data.

PERFKIT_DATABASE=CONNINFO python -m perfkit.booking.service --handler baseline|pooled [--port N]

prints {"port": N} when it listens on 127.0.0.1, and ends on SIGTERM or, with --watch-stdin, with its stdin.
SIGHUP makes it forget its connections; /health answers 200 again when new ones are there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from aiohttp import web
from aiohttp.typedefs import Handler as NextHandler
from psycopg import AsyncConnection, OperationalError
from psycopg.errors import QueryCanceled
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from perfkit.base import resources
from perfkit.base.process import run, stop_event

DURATION = range(5, 121)  # minutes, as the table's own rule
LATEST = timedelta(days=5 * 365)
NOTES_LENGTH = 2000


class Malformed(ValueError):
    """A request that cannot be meant; its text says which field and what was expected."""


class ContactUnknown(LookupError):
    """No such contact in that clinic, whether or not another clinic has it."""


class SlotTaken(LookupError):
    """The contact has an overlapping appointment in that clinic."""


@dataclass(frozen=True, slots=True)
class Booking:
    """A wish for an appointment; the fields are the parameters of the statements that book it."""

    org_id: UUID
    contact_id: UUID
    scheduled_at: datetime
    duration_minutes: int
    notes: str | None

    @classmethod
    def parse(cls, body: bytes) -> Booking:
        """A booking from a JSON object. Raises Malformed; other keys are ignored."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            raise Malformed("the body is not JSON") from None
        if not isinstance(fields, dict):
            raise Malformed("the body is not a JSON object")
        return cls(
            identifier("org_id", fields.get("org_id")),
            identifier("contact_id", fields.get("contact_id")),
            _start(fields.get("scheduled_at")),
            _duration(fields.get("duration_minutes")),
            _notes(fields.get("notes")),
        )


def identifier(name: str, value: Any) -> UUID:
    """The UUID in `value`. Raises Malformed."""
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise Malformed(f"{name} must be a UUID") from None


def day(value: Any) -> date:
    """The date in `value`, YYYY-MM-DD. Raises Malformed."""
    try:
        return date.fromisoformat(value)
    except (ValueError, TypeError):
        raise Malformed("date must be a date such as 2030-01-31") from None


def _start(value: Any) -> datetime:
    try:
        start = datetime.fromisoformat(value)
    except (ValueError, TypeError):
        raise Malformed("scheduled_at must be a time such as 2030-01-31T09:00:00Z") from None
    if start.tzinfo is None:
        raise Malformed("scheduled_at must say its offset from UTC, such as Z or +01:00")
    if not timedelta(0) <= start - datetime.now(UTC) <= LATEST:
        raise Malformed(f"scheduled_at must lie within the next {LATEST.days} days")
    return start


def _duration(value: Any) -> int:
    # A bool is an int to Python, and 30.0 would be in the range.
    if type(value) is not int or value not in DURATION:
        raise Malformed(f"duration_minutes must be a whole number from {DURATION[0]} to {DURATION[-1]}")
    return value


def _notes(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > NOTES_LENGTH:
        raise Malformed(f"notes must be text of at most {NOTES_LENGTH} characters")
    # JSON can spell two things that PostgreSQL's text cannot hold: NUL and half a surrogate pair.
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Malformed("notes must be text without NUL and lone surrogates")
    return value


# The two ways to book: as it was first written, and as it was proposed to be written.

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


# The booking service's HTTP side: routes, answers and errors as JSON, the same for every handler.

BODY_LIMIT = 16 * 1024  # bytes

_route_log = logging.getLogger(__name__)

# The first that fits counts: QueryCanceled is an OperationalError too.
_ANSWERS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (Malformed, 400, "malformed", ""),
    (ContactUnknown, 404, "unknown", "no such contact in this clinic"),
    (SlotTaken, 409, "taken", "the contact has an overlapping appointment in this clinic"),
    (TimeoutError, 504, "timeout", "the database took too long and was told to stop"),
    (QueryCanceled, 504, "timeout", "the database took too long and was told to stop"),
    (OperationalError, 503, "unavailable", "the database cannot be reached or has no connection free"),
)


class BookingService:
    """The routes, in front of one handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._resets = 0
        self._upcoming = query("upcoming_for_contact")
        self._day = query("clinic_day")
        self._status = query("status_counts")

    def application(self) -> web.Application:
        """The aiohttp application; it opens and closes the handler."""
        app = web.Application(client_max_size=BODY_LIMIT, middlewares=[_errors_as_json])
        app.add_routes(
            [
                web.post("/webhook/book", self.book),
                web.get("/contacts/{contact_id}/appointments", self.upcoming),
                web.get("/clinics/{org_id}/day", self.day),
                web.get("/clinics/{org_id}/status", self.status),
                web.get("/health", self.health),
            ]
        )
        app.on_startup.append(lambda _: self._handler.open())
        app.on_cleanup.append(lambda _: self._handler.close())
        return app

    async def reset(self) -> None:
        """Reset the handler; /health counts the resets, so that a caller sees its own has happened."""
        await self._handler.reset()
        self._resets += 1

    async def book(self, request: web.Request) -> web.Response:
        """Book: 201 with the appointment, or 400, 404, 409."""
        booking = Booking.parse(await request.read())
        new = await self._handler.book(booking)
        return _json(201, {"id": new, "scheduled_at": booking.scheduled_at, "status": "booked"})

    async def upcoming(self, request: web.Request) -> web.Response:
        """A contact's upcoming appointments in clinic `org_id`; none if it is another clinic's contact."""
        contact = identifier("contact_id", request.match_info["contact_id"])
        clinic = identifier("org_id", request.query.get("org_id"))
        rows = await self._handler.select(self._upcoming, {"org_id": clinic, "contact_id": contact})
        return _json(200, {"appointments": rows})

    async def day(self, request: web.Request) -> web.Response:
        """A clinic's appointments on the day `date` (UTC)."""
        clinic = identifier("org_id", request.match_info["org_id"])
        rows = await self._handler.select(self._day, {"org_id": clinic, "day": day(request.query.get("date"))})
        return _json(200, {"appointments": rows})

    async def status(self, request: web.Request) -> web.Response:
        """A clinic's appointments counted by status."""
        clinic = identifier("org_id", request.match_info["org_id"])
        rows = await self._handler.select(self._status, {"org_id": clinic})
        return _json(200, {"statuses": {row["status"]: row["appointments"] for row in rows}})

    async def health(self, _: web.Request) -> web.Response:
        """200 when the database answers (and a pool is full), and how often the handler was reset."""
        resets = self._resets  # as of before: the answer of a connection that a reset overtakes is an old one
        await self._handler.select("SELECT 1", {})
        return _json(200, {"status": "ok", "resets": resets})


@web.middleware
async def _errors_as_json(request: web.Request, handler: NextHandler) -> web.StreamResponse:
    """Every failure as a status and a JSON object; what was not foreseen is logged and stays inside."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _json(error.status, {"error": error.reason.lower(), "detail": f"{request.method} {request.path}"})
    except Exception as error:
        for kind, status, word, detail in _ANSWERS:
            if isinstance(error, kind):
                return _json(status, {"error": word, "detail": detail or str(error)})
        _route_log.error("%s %s: %s: %s", request.method, request.path, type(error).__name__, error)
        return _json(500, {"error": "internal", "detail": "the service failed; its log says why"})


def _json(status: int, content: dict[str, Any]) -> web.Response:
    return web.Response(
        status=status, body=json.dumps(content, default=_plain).encode(), content_type="application/json"
    )


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


# The booking service as a process.

_GRACE = 0.1  # seconds for requests under way when told to stop; then their statements are cancelled
_HARD_STOP = 0.4  # seconds until the process ends whatever still hangs


async def serve(service: BookingService, port: int, watch_stdin: bool) -> int:
    """Serve until told to stop; returns an exit code. Raises OSError if the port is taken."""
    stop = stop_event(watch_stdin)
    resets: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive

    def reset() -> None:
        resets.add(task := asyncio.create_task(service.reset()))
        task.add_done_callback(resets.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reset)
    runner = web.AppRunner(service.application(), access_log=None, shutdown_timeout=_GRACE)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)  # noqa: T201
        await stop.wait()
    finally:
        # A database that does not answer must not keep the process: what hangs by then ends with it.
        asyncio.get_running_loop().call_later(_HARD_STOP, os._exit, 0)
        await runner.cleanup()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perfkit.booking.service", allow_abbrev=False)
    parser.add_argument("--handler", required=True, choices=["baseline", "pooled"])
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--pool-size", type=int, default=10, help="connections of the pooled handler")
    parser.add_argument("--watch-stdin", action="store_true", help="end when stdin ends")
    given = parser.parse_args()
    if not os.environ.get("PERFKIT_DATABASE"):
        parser.error("PERFKIT_DATABASE must hold the connection string of the database")
    if not 0 <= given.port < 65536 or given.pool_size < 1:
        parser.error("--port must lie between 0 and 65535, --pool-size be at least 1")
    return given


def _handler(name: str, pool_size: int) -> Handler:
    conninfo = os.environ["PERFKIT_DATABASE"]
    return BaselineHandler(conninfo) if name == "baseline" else PooledHandler(conninfo, pool_size)


def main() -> int:
    """Run the service; returns its exit code."""
    given = _arguments()
    try:
        service = BookingService(_handler(given.handler, given.pool_size))
        return run(serve(service, given.port, given.watch_stdin))
    except OSError as error:
        print(f"booking service: {error.strerror}: {error.filename or given.port}", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
