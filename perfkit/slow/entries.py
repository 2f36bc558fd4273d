"""What one record of a log says: the statement in its message, its parameters, its time. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

MESSAGE = re.compile(
    r"duration: (\d{1,15}(?:\.\d{1,9})?) ms"
    r"(?:  (statement|execute fetch from|execute|parse|bind|plan)\b(?:.*?):(?:\s+|$))?"
)
BEGUN = re.compile(r"(?:statement|execute fetch from|execute)\b.*?:(?:\s+|$)")
_VALUE = re.compile(r"\$(\d+) = (?:NULL|'((?:[^']|'')*)')(?:, |$)")
_ZONES = {"UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3, "MSK": 3,
          "JST": 9, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}  # fmt: skip


def statement(message: str) -> str:
    """The statement in the message of a duration."""
    found = MESSAGE.match(message)
    return message[found.end() :] if found else ""


def parameters(detail: str) -> tuple[str | None, ...]:
    """The values in a DETAIL of any version, `$1` first; none where they are not all there in full.

    >>> parameters("parameters: $1 = '7', $2 = NULL, $3 = 'it''s'")
    ('7', None, "it's")
    """
    _, colon, listed = detail.partition("arameters: ")
    found: list[str | None] = []
    place = 0
    while colon and place < len(listed):
        match = _VALUE.match(listed, place)
        if not match or int(match[1]) != len(found) + 1 or (match[2] or "").endswith("..."):  # as the server cuts it
            return ()
        found.append(None if match[2] is None else match[2].replace("''", "'"))
        place = match.end()
    return tuple(found)


def time_of(text: str) -> datetime | None:
    """A time as the log writes it, in UTC; None for what is none."""
    day, _, zone = text.rpartition(" ")
    try:
        if not day:  # %n: seconds since 1970
            return datetime.fromtimestamp(float(text), UTC) if text else None
        return datetime.fromisoformat(day).replace(tzinfo=timezone(offset_of(zone) or timedelta())).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


def offset_of(zone: str) -> timedelta | None:
    """How far a zone is from UTC; None for a name that more than one has."""
    if zone in _ZONES:
        return timedelta(hours=_ZONES[zone])
    if number := re.fullmatch(r"([-+])(\d\d?):?(\d\d)?(?::?\d\d)?", zone):
        return timedelta(hours=int(number[2]), minutes=int(number[3] or 0)) * (-1 if number[1] == "-" else 1)
    return None
