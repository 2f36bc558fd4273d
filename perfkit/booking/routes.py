"""The booking service's HTTP side: routes, answers and errors as JSON, the same for every handler."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler as NextHandler
from psycopg import OperationalError
from psycopg.errors import QueryCanceled

from perfkit.booking.handlers import Handler, query
from perfkit.booking.model import Booking, ContactUnknown, Malformed, SlotTaken, day, identifier

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
