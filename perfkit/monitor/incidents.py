"""Periods of a record, the incidents in them, and times in words.

Pure functions. All times are seconds on the time line of the watch; people see the wall clock.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median_low
from typing import Literal

from perfkit.base.errors import UsageError
from perfkit.monitor.model import Alert, Event, Record, Tick

DAY_S = 86_400.0
BLOCKS = 12  # minimum number of blocks, if the intervals allow it: fewer give too wide a confidence interval
_WIDTHS = (1800.0, 600.0, 300.0, 120.0, 60.0, 30.0, 10.0, 5.0, 1.0)  # seconds of a block, the widest that fits
_UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": DAY_S}


@dataclass(frozen=True, slots=True)
class Period:
    """Consecutive intervals of a watch, at least one."""

    ticks: Sequence[Tick]

    @property
    def start(self) -> float:
        """The start on the time line, in seconds."""
        return self.ticks[0].start

    @property
    def end(self) -> float:
        """The end on the time line, in seconds."""
        return self.ticks[-1].t

    @property
    def seconds(self) -> float:
        """The time from start to end, gaps included."""
        return self.end - self.start

    @property
    def watched(self) -> float:
        """The watched time in seconds, without gaps."""
        return sum(tick.seconds for tick in self.ticks)

    @property
    def whole_day(self) -> bool:
        """Whether the period is 24 hours long, to within an interval."""
        return self.seconds + self.ticks[0].seconds >= DAY_S

    def wall(self, t: float) -> float:
        """Return the wall clock, in seconds since 1970, at a point of the time line."""
        at = bisect_left(self.ticks, t, key=lambda tick: tick.t)
        tick = self.ticks[min(at, len(self.ticks) - 1)]
        return tick.at - (tick.t - t)

    @property
    def width(self) -> float:
        """The width of a block in seconds: 30 minutes for a day, less for a shorter period, at least an interval."""
        least = median_low(tick.seconds for tick in self.ticks)
        widths = [width for width in _WIDTHS if width >= least] or [least]
        return next((width for width in widths if self.seconds >= BLOCKS * width), widths[-1])

    def blocks(self) -> list[Sequence[Tick]]:
        """Return the intervals in blocks of equal time, without empty blocks."""
        width = self.width
        blocks: dict[int, list[Tick]] = {}
        for tick in self.ticks:
            # The middle decides: the ends of an interval are not exactly at multiples of its length.
            blocks.setdefault(int((tick.t - tick.seconds / 2 - self.start) / width), []).append(tick)
        return list(blocks.values())


def select_period(record: Record, since: str = "", until: str = "", last: str = "") -> Period:
    """Return the intervals from `since` to `until` (ISO 8601, by default UTC), of the `last` "24h", or all.

    Raises UsageError if a time is malformed, or if no interval is left.
    """
    if last and (since or until):
        raise UsageError("last together with since or until; expected one way to choose the period")
    ticks = record.ticks
    if last and ticks:
        ticks = [tick for tick in ticks if tick.start >= ticks[-1].t - parse_duration(last, "last") - tick.seconds / 2]
    low = parse_time(since, "since") if since else float("-inf")
    high = parse_time(until, "until") if until else float("inf")
    selected = [n for n, tick in enumerate(ticks) if tick.at - tick.seconds >= low and tick.at <= high]
    if not selected:
        if not record.ticks:
            raise UsageError("the watch has no interval yet; expected a watch with at least one")
        whole = Period(record.ticks)
        available = f"{stamp(whole.wall(whole.start))} to {stamp(whole.wall(whole.end))}"
        raise UsageError(f"no interval of the watch in that time; expected a time from {available}")
    # A clock that was set back leaves holes in the selection; the period has none.
    return Period(ticks[selected[0] : selected[-1] + 1])


def parse_duration(text: str, name: str) -> float:
    """Return the seconds of "90s", "30min", "24h" or "2d"; errors quote `name`. Raises UsageError.

    >>> parse_duration("1.5h", "last")
    5400.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)\s*", text)
    if not match or not float(match[1]):
        raise UsageError(f"{name} = '{text}'; expected a time like 90s, 24h or 2d")
    return float(match[1]) * _UNITS[match[2]]


def parse_time(text: str, name: str) -> float:
    """Return the seconds since 1970 of a time in ISO 8601, by default UTC. Raises UsageError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{name} = '{text}'; expected a time like 2026-01-15T09:00") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def clock(at: float, *, day: bool = True) -> str:
    """Return date and time of day in UTC, or the time of day with seconds.

    >>> clock(0.0), clock(61.0, day=False)
    ('1970-01-01 00:00', '00:01:01')
    """
    time = datetime.fromtimestamp(round(at), UTC)
    return f"{time:%Y-%m-%d %H:%M}" if day else f"{time:%H:%M:%S}"


def stamp(at: float) -> str:
    """Return date and time of day to the second in UTC; `at` is in seconds since 1970.

    >>> stamp(61.0)
    '1970-01-01 00:01:01'
    """
    return f"{clock(at)[:10]} {clock(at, day=False)}"


def duration_text(seconds: float) -> str:
    """Return a duration in words, in at most two units.

    >>> [duration_text(s) for s in (0.25, 1.5, 42, 150, 3 * 3600 + 240, DAY_S, 9e5)]
    ['0.25 s', '1.5 s', '42 s', '2 min 30 s', '3 h 4 min', '24 h', '10 days 10 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if 0 < seconds < 9.5 else f"{whole} s"
    names, size, part = ("min", "s"), 60, 1
    if whole >= 3600:
        names, size, part = (("h", "min"), 3600, 60) if whole < 4 * DAY_S else (("days", "h"), 86_400, 3600)
    rest = whole % size // part
    return f"{whole // size} {names[0]}" + (f" {rest} {names[1]}" if rest else "")


Stage = Literal["began", "noticed", "note", "eased", "ended"]


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of an incident's timeline."""

    t: float
    stage: Stage
    text: str


@dataclass(frozen=True, slots=True)
class Incident:
    """Alerts that overlap in time, the gravest first."""

    alerts: tuple[Alert, ...]

    @property
    def level(self) -> str:
        """The level of the gravest alert."""
        return self.alerts[0].raised.level

    @property
    def since(self) -> float:
        """When the first alert began."""
        return min(alert.raised.since for alert in self.alerts)

    @property
    def noticed(self) -> float:
        """When the first alert was raised."""
        return min(alert.raised.t for alert in self.alerts)

    @property
    def ended(self) -> float | None:
        """When the last alert was cleared; None while one is active."""
        return _last(alert.ended for alert in self.alerts)

    @property
    def eased(self) -> float | None:
        """When the last figure was good again; None while one is not."""
        return _last(alert.eased for alert in self.alerts)

    @property
    def rules(self) -> str:
        """The rules of the alerts, that of the gravest first."""
        return ", ".join(dict.fromkeys(alert.raised.rule for alert in self.alerts))

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions of the rules, those of the gravest alert first."""
        return tuple(dict.fromkeys(alert.raised.action for alert in self.alerts if alert.raised.action))

    def lasted(self, now: float) -> float:
        """Return the seconds from the start until the figures were good again, or until `now`."""
        return max((now if self.eased is None else self.eased) - self.since, 0.0)

    def timeline(self, notes: Iterable[Event] = ()) -> list[Moment]:
        """Return the course of the incident in the order of time, with the notes that name one of its alerts."""
        moments = list[Moment]()
        for alert in self.alerts:
            raised, cleared, name = alert.raised, alert.cleared, f"{alert.raised.level} {alert.raised.rule}"
            moments += [Moment(raised.since, "began", name), Moment(raised.t, "noticed", raised.text)]
            moments += [Moment(note.t, "note", note.text) for note in notes if raised.id in note.text]
            if cleared:
                moments.append(
                    Moment(cleared.t if alert.eased is None else alert.eased, "eased", f"{name}: good again")
                )
                moments.append(Moment(cleared.t, "ended", cleared.text))
        return sorted(moments, key=lambda moment: moment.t)


def _last(times: Iterable[float | None]) -> float | None:
    """Return the latest of some times; None if one of them is still to come."""
    known = [math.inf if t is None else t for t in times]
    return max(known) if max(known) < math.inf else None


def group_incidents(alerts: Iterable[Alert], join_s: float = 0.0) -> list[Incident]:
    """Return the incidents of some alerts, the earliest first.

    Alerts of any rules that overlap, or are at most `join_s` apart, form one incident.
    """
    groups: list[list[Alert]] = []
    end = -math.inf
    for alert in sorted(alerts, key=lambda alert: (alert.raised.since, alert.raised.t)):
        if not groups or alert.raised.since > end + join_s:
            groups.append([])
            end = -math.inf
        groups[-1].append(alert)
        end = max(end, math.inf if alert.ended is None else alert.ended)
    ordered = (sorted(group, key=lambda alert: (alert.raised.level, alert.raised.since)) for group in groups)
    return [Incident(tuple(group)) for group in ordered]
