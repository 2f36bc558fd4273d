"""The booking service: parsing of bookings, two handlers, routes, and the process.

PERFKIT_DATABASE=CONNINFO python -m perfkit.booking.service --handler baseline|pooled [--port N]

prints {"port": N} when it listens on 127.0.0.1. The service ends on SIGTERM or, with --watch-stdin, when stdin ends.
SIGHUP makes it drop its connections; /health answers 200 again when new connections are ready.
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
from typing import Protocol
from uuid import UUID

from aiohttp import web
from aiohttp.typedefs import Handler as NextHandler
from psycopg import AsyncConnection, OperationalError
from psycopg.errors import QueryCanceled
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from perfkit.base import resources
from perfkit.base.process import run, stop_event

DURATION = range(5, 121)  # minutes, as in the table's CHECK
LATEST = timedelta(days=5 * 365)
NOTES_LENGTH = 2000


class Malformed(ValueError):
    """A request is invalid; the message names the field and what was expected."""


class ContactUnknown(LookupError):
    """The clinic has no such contact; another clinic may have it."""


class SlotTaken(LookupError):
    """The contact has an overlapping appointment in the clinic."""


@dataclass(frozen=True, slots=True)
class Booking:
    """A requested appointment; the fields are the parameters of the statements that book it."""

    org_id: UUID
    contact_id: UUID
    scheduled_at: datetime
    duration_minutes: int
    notes: str | None

    @classmethod
    def parse(cls, body: bytes) -> Booking:
        """Return a booking from a JSON object, ignoring unknown keys. Raises Malformed if a field is invalid."""
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


def identifier(name: str, value: object) -> UUID:
    """Return the UUID in `value`. Raises Malformed, naming the field, if there is none."""
    try:
        return UUID(value if isinstance(value, str) else "")
    except ValueError:
        raise Malformed(f"{name} must be a UUID") from None


def day(value: object) -> date:
    """Return the date in `value`, YYYY-MM-DD. Raises Malformed if there is none."""
    try:
        return date.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise Malformed("date must be a date such as 2030-01-31") from None


def _start(value: object) -> datetime:
    try:
        start = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise Malformed("scheduled_at must be a time such as 2030-01-31T09:00:00Z") from None
    if start.tzinfo is None:
        raise Malformed("scheduled_at must say its offset from UTC, such as Z or +01:00")
    if not timedelta(0) <= start - datetime.now(UTC) <= LATEST:
        raise Malformed(f"scheduled_at must lie within the next {LATEST.days} days")
    return start


def _duration(value: object) -> int:
    # In Python, a bool is an int, and 30.0 is in the range.
    if not isinstance(value, int) or isinstance(value, bool) or value not in DURATION:
        raise Malformed(f"duration_minutes must be a whole number from {DURATION[0]} to {DURATION[-1]}")
    return value


def _notes(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > NOTES_LENGTH:
        raise Malformed(f"notes must be text of at most {NOTES_LENGTH} characters")
    # JSON can express two characters that PostgreSQL's text cannot hold: NUL and half a surrogate pair.
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Malformed("notes must be text without NUL and lone surrogates")
    return value


REQUEST_TIMEOUT = 5.0  # seconds, for a whole request of the pooled handler
POOL_TIMEOUT = 3.0  # seconds, for the part of a request that waits for a connection
CONNECT_TIMEOUT = 5  # seconds

# The pool itself would log several lines for each connection and attempt.
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
    """Return the text of `sql/queries/<name>.sql`. Raises OSError if there is no such file."""
    return resources.path(f"sql/queries/{name}.sql").read_text(encoding="utf-8")


class Handler(Protocol):
    """The service's access to its database. `book` and `select` raise psycopg's errors and TimeoutError."""

    async def open(self) -> None:
        """Start without waiting for the database."""

    async def close(self) -> None:
        """Close all connections."""

    async def reset(self) -> None:
        """Drop all connections and start again: another database may be behind the address now."""

    async def book(self, booking: Booking) -> UUID:
        """Return the id of the new appointment. Raises ContactUnknown or SlotTaken."""

    async def select(self, sql: str, parameters: Mapping[str, object]) -> list[DictRow]:
        """Return the rows of a query with named parameters."""


class BaselineHandler:
    """The handler in use today: a connection per request, a statement per step."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._conflict_check = query("conflict_check")

    async def open(self) -> None:
        """Do nothing: there is no pool to fill."""

    async def close(self) -> None:
        """Do nothing: each request closes its connection."""

    async def reset(self) -> None:
        """Do nothing: the next request opens a new connection."""

    async def book(self, booking: Booking) -> UUID:
        """Lock, check contact, check conflict, insert, commit: a round trip each, in addition to those to connect."""
        parameters = asdict(booking)
        async with await self._connect() as connection:
            # The lock needs its own statement: the check's snapshot must be younger than the lock.
            await connection.execute(_LOCK, parameters)
            if not await (await connection.execute(_CONTACT, parameters)).fetchone():
                raise ContactUnknown
            if await (await connection.execute(self._conflict_check, parameters)).fetchone():
                raise SlotTaken
            (row,) = await (await connection.execute(_INSERT, parameters)).fetchall()
        appointment_id: UUID = row["id"]
        return appointment_id

    async def select(self, sql: str, parameters: Mapping[str, object]) -> list[DictRow]:
        """Return the rows of a query, on a new connection."""
        async with await self._connect() as connection:
            return await (await connection.execute(sql, parameters)).fetchall()

    async def _connect(self) -> AsyncConnection[DictRow]:
        return await AsyncConnection.connect(self._conninfo, row_factory=dict_row, connect_timeout=CONNECT_TIMEOUT)


class PooledHandler:
    """The proposed handler: pooled connections, one round trip per booking, a time limit for every request."""

    def __init__(self, conninfo: str, size: int) -> None:
        self._conninfo = conninfo
        self._size = size
        self._pool: AsyncConnectionPool[AsyncConnection[DictRow]] | None = None
        self._filling: asyncio.Task[None] | None = None
        self._resetting = asyncio.Lock()

    async def open(self) -> None:
        """Start to fill a pool; until the pool is full, requests fail as if the database were unreachable."""
        self._filling = asyncio.create_task(self._fill())

    async def close(self) -> None:
        """Close idle connections now, and the others when their requests end."""
        pool, self._pool = self._pool, None  # before the first await: a health check may arrive meanwhile
        if self._filling:
            self._filling.cancel()
            with suppress(asyncio.CancelledError):
                await self._filling
        if pool:
            await pool.close()

    async def reset(self) -> None:
        """Close the pool and start to fill another."""
        async with self._resetting:
            await self.close()
            await self.open()

    async def book(self, booking: Booking) -> UUID:
        """Lock, check and insert in the server, by one statement that is a transaction."""
        (row,) = await self.select(_BOOK, asdict(booking))
        if row["outcome"] == "unknown":
            raise ContactUnknown
        if row["outcome"] == "taken":
            raise SlotTaken
        appointment_id: UUID = row["appointment_id"]
        return appointment_id

    async def select(self, sql: str, parameters: Mapping[str, object]) -> list[DictRow]:
        """Return the rows of one statement. Raises TimeoutError after REQUEST_TIMEOUT; the server cancels it then."""
        if not self._pool:
            raise OperationalError("the pool is not full yet")
        # psycopg cancels the statement on the server when the timeout cancels this task.
        async with asyncio.timeout(REQUEST_TIMEOUT), self._pool.connection() as connection:
            return await (await connection.execute(sql, parameters)).fetchall()

    async def _fill(self) -> None:
        """Open pools until one is full: the database may start later than the service."""
        while not self._pool:
            pool = self._new_pool()
            try:
                await pool.open(wait=True, timeout=CONNECT_TIMEOUT)
                self._pool = pool
            except PoolTimeout:
                _log.warning("the database cannot be reached; retrying")
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
    """Set the server's own limit, in case this process dies or its cancel request gets lost."""
    await connection.execute(f"SET statement_timeout = {int(REQUEST_TIMEOUT * 1000)}")


BODY_LIMIT = 16 * 1024  # bytes

# The first match counts: QueryCanceled is an OperationalError too.
_ANSWERS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (Malformed, 400, "malformed", ""),
    (ContactUnknown, 404, "unknown", "no such contact in this clinic"),
    (SlotTaken, 409, "taken", "the contact has an overlapping appointment in this clinic"),
    (TimeoutError, 504, "timeout", "the database took too long; the statement was cancelled"),
    (QueryCanceled, 504, "timeout", "the database took too long; the statement was cancelled"),
    (OperationalError, 503, "unavailable", "the database cannot be reached or has no free connection"),
)


class BookingService:
    """The HTTP routes, with the same answers and errors as JSON for every handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._resets = 0
        self._upcoming = query("upcoming_for_contact")
        self._day = query("clinic_day")
        self._status = query("status_counts")

    def application(self) -> web.Application:
        """Return the aiohttp application, which opens and closes the handler."""
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
        """Reset the handler; /health returns the number of resets, so that a caller can wait for one."""
        await self._handler.reset()
        self._resets += 1

    async def book(self, request: web.Request) -> web.Response:
        """Book an appointment: 201 with the appointment, or 400, 404, 409."""
        booking = Booking.parse(await request.read())
        appointment_id = await self._handler.book(booking)
        return _json(201, {"id": appointment_id, "scheduled_at": booking.scheduled_at, "status": "booked"})

    async def upcoming(self, request: web.Request) -> web.Response:
        """Return a contact's upcoming appointments in clinic `org_id`; an empty list for another clinic's contact."""
        contact = identifier("contact_id", request.match_info["contact_id"])
        clinic = identifier("org_id", request.query.get("org_id"))
        rows = await self._handler.select(self._upcoming, {"org_id": clinic, "contact_id": contact})
        return _json(200, {"appointments": rows})

    async def day(self, request: web.Request) -> web.Response:
        """Return a clinic's appointments on the day `date` (UTC)."""
        clinic = identifier("org_id", request.match_info["org_id"])
        rows = await self._handler.select(self._day, {"org_id": clinic, "day": day(request.query.get("date"))})
        return _json(200, {"appointments": rows})

    async def status(self, request: web.Request) -> web.Response:
        """Return the number of a clinic's appointments for each status."""
        clinic = identifier("org_id", request.match_info["org_id"])
        rows = await self._handler.select(self._status, {"org_id": clinic})
        return _json(200, {"statuses": {row["status"]: row["appointments"] for row in rows}})

    async def health(self, _: web.Request) -> web.Response:
        """Return 200 if the database answers (and a pool is full), and the number of resets."""
        resets = self._resets  # read first: a reset during the SELECT must not count as finished
        await self._handler.select("SELECT 1", {})
        return _json(200, {"status": "ok", "resets": resets})


@web.middleware
async def _errors_as_json(request: web.Request, handler: NextHandler) -> web.StreamResponse:
    """Return every failure as a status and a JSON object; log unexpected errors and keep their text inside."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _json(error.status, {"error": error.reason.lower(), "detail": f"{request.method} {request.path}"})
    except Exception as error:
        for kind, status, word, detail in _ANSWERS:
            if isinstance(error, kind):
                return _json(status, {"error": word, "detail": detail or str(error)})
        _log.error("%s %s: %s: %s", request.method, request.path, type(error).__name__, error)
        return _json(500, {"error": "internal", "detail": "the service failed; its log says why"})


def _json(status: int, content: dict[str, object]) -> web.Response:
    return web.Response(
        status=status, body=json.dumps(content, default=_plain).encode(), content_type="application/json"
    )


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


_GRACE = 0.1  # seconds for open requests after a stop signal; then their statements are cancelled
_HARD_STOP = 0.4  # seconds after a stop signal until the process ends in any case


async def serve(service: BookingService, port: int, watch_stdin: bool) -> int:
    """Serve until a stop signal and return an exit code. Raises OSError if the port is in use."""
    stop = stop_event(watch_stdin)
    resets: set[asyncio.Task[None]] = set()  # the loop keeps only weak references to tasks

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
        # A database that does not answer must not keep the process alive.
        asyncio.get_running_loop().call_later(_HARD_STOP, os._exit, 0)
        await runner.cleanup()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perfkit.booking.service", allow_abbrev=False)
    parser.add_argument("--handler", required=True, choices=["baseline", "pooled"])
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 picks a free port")
    parser.add_argument("--pool-size", type=int, default=10, help="number of connections of the pooled handler")
    parser.add_argument("--watch-stdin", action="store_true", help="end when stdin ends")
    arguments = parser.parse_args()
    if not os.environ.get("PERFKIT_DATABASE"):
        parser.error("PERFKIT_DATABASE must hold the connection string of the database")
    if not 0 <= arguments.port < 65536:
        parser.error(f"--port {arguments.port}; expected 0 to 65535")
    if arguments.pool_size < 1:
        parser.error(f"--pool-size {arguments.pool_size}; expected at least 1")
    return arguments


def _handler(name: str, pool_size: int) -> Handler:
    conninfo = os.environ["PERFKIT_DATABASE"]
    return BaselineHandler(conninfo) if name == "baseline" else PooledHandler(conninfo, pool_size)


def main() -> int:
    """Run the service and return its exit code."""
    arguments = _arguments()
    try:
        service = BookingService(_handler(arguments.handler, arguments.pool_size))
        return run(serve(service, arguments.port, arguments.watch_stdin))
    except OSError as error:
        print(f"booking service: {error.strerror}: {error.filename or arguments.port}", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
