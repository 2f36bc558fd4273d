"""What a client may ask of the booking system, checked before the database sees any of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

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
