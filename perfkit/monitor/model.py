"""The record of a watch: intervals and periods of them, events, alerts, severities, tallies.

Two clocks: `t` is the time line, in seconds since the watch began. It never goes back, even if the machine's clock is
set or the watch restarts, so every window is cut along it. `at` is the wall clock, in seconds since 1970 (UTC), for
people only.

The types state which numbers are possible; `of` checks them, because a record may come from a disk that was full.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median_low
from time import monotonic_ns
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, TypeAdapter

from perfkit.base.errors import UsageError
from perfkit.base.units import DAY_S, parse_duration, parse_time, stamp
from perfkit.config import ReviewConfig, Watch, restored
from perfkit.config.judging import WatchRule

OK = "ok"
ABOUT = "watch.json"
METRICS = "metrics"  # kind of the note with the address of the metrics
BLOCKS = 12  # minimum number of blocks of a period, if the intervals allow it: fewer give too wide an interval
# Seconds of a block, the widest that fits.
_WIDTHS = (1800.0, 600.0, 300.0, 120.0, 60.0, 30.0, 10.0, 5.0, 1.0)
MISSED = 3  # missing intervals, from which on a watch is not merely late
#: Figures of the server in an interval: their names for Prometheus, and their meanings. Those that count since the
#: statistics of the server were reset end in `_total`.
SERVER: Mapping[str, tuple[str, str]] = {
    "started": ("start_timestamp_seconds", "when the server started, seconds since 1970"),
    "connections": ("connections", "sessions of clients"),
    "connections_max": ("connections_limit", "maximum number of sessions"),
    "active": ("sessions_active", "sessions that run a statement"),
    "waiting": ("sessions_waiting", "sessions that wait for a lock"),
    "lock_wait_s": ("lock_wait_seconds", "how long the longest of them has waited"),
    "idle_in_transaction": ("sessions_idle_in_transaction", "sessions idle in a transaction"),
    "transaction_s": ("transaction_age_seconds", "how long the oldest transaction has been open"),
    "commits": ("commits_total", "transactions committed, so far"),
    "rollbacks": ("rollbacks_total", "transactions rolled back, so far"),
    "blocks_hit": ("blocks_hit_total", "pages found in shared buffers, so far"),
    "blocks_read": ("blocks_read_total", "pages read from outside shared buffers, so far"),
    "temp_bytes": ("temp_bytes_total", "bytes written to temporary files, so far"),
    "wal_bytes": ("wal_bytes_total", "bytes of WAL, so far"),
    "deadlocks": ("deadlocks_total", "deadlocks, so far"),
    "checksum_failures": ("checksum_failures_total", "pages whose checksum was wrong, so far"),
    "invalid_indexes": ("invalid_indexes", "indexes that the planner cannot use"),
    "locks_held": ("locks_held", "locks on tables and indexes held by clients"),
}

Kind = Literal["request", "query"]
What = Literal["raised", "cleared", "note"]
# Larger than any number of bytes, and small enough that sums of squares stay finite.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=-1e18, lt=1e18)]
Positive = Annotated[Number, Field(gt=0)]
AtLeast0 = Annotated[Number, Field(ge=0)]
Count = Annotated[int, Field(strict=True, ge=0, lt=10**18)]
Wall = Annotated[Number, Field(ge=0, lt=253_402_214_400)]  # up to the last day of the year 9999
Text = InstanceOf[str]  # may hold half a character of a file name, which `str` refuses


@dataclass(frozen=True, slots=True)
class Probe:
    """The probes of one request or query that ended in one interval."""

    outcomes: Mapping[str, Count] = field(default_factory=dict)  # number by outcome: `ok`, or an unexpected one
    statuses: Mapping[str, Count] = field(default_factory=dict)  # number of HTTP answers by status code
    ms: tuple[AtLeast0, ...] = ()  # response times of `ok` probes, from when they were due
    pending: Count = 0  # due and not ended at the interval's end
    oldest_s: AtLeast0 = 0.0  # time since the oldest pending probe was due

    @property
    def sent(self) -> int:
        """The number of probes that ended."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """The number of probes with an unexpected outcome."""
        return self.sent - self.outcomes.get(OK, 0)


@dataclass(frozen=True, slots=True)
class Tick:
    """One interval of a watch.

    `server` has the readable keys of `SERVER`. It is None if the database did not answer, and empty if no database is
    watched.
    """

    n: Annotated[int, Field(strict=True)]  # number of the interval in the record, from 0
    t: Number  # end on the time line
    at: Wall  # end by the wall clock
    seconds: Positive  # length
    probes: Mapping[str, Probe] = field(default_factory=dict)
    server: Mapping[str, Number] | None = field(default_factory=dict)
    scans: Mapping[str, Number] = field(default_factory=dict)  # scans so far, by index

    @property
    def start(self) -> float:
        """The start on the time line."""
        return self.t - self.seconds

    def line(self) -> str:
        """Return one line of JSON, without empty fields."""
        fields = asdict(self)
        fields["probes"] = {name: {k: v for k, v in probe.items() if v} for name, probe in fields["probes"].items()}
        return json.dumps({k: v for k, v in fields.items() if v != {}}, separators=(",", ":"))

    @classmethod
    def of(cls, fields: object) -> Tick:
        """Return the interval that a JSON object describes. Raises ValueError if it describes no possible one."""
        tick = _TICK.validate_python(fields)
        # Times are rounded, so the first interval may begin a little before 0.
        if tick.start < -1 or any(sum(probe.statuses.values()) > probe.sent for probe in tick.probes.values()):
            raise ValueError("an interval before the watch, or more answers than probes")
        return tick


@dataclass(frozen=True, slots=True)
class Event:
    """An alert that was raised or cleared, or a note of the watch about itself.

    An alert keeps its `id` when it is cleared or sent again, and after a restart of the watch. The event that clears
    it holds the whole alert, so that a lost line loses no alert.
    """

    what: What
    id: Text
    t: Number  # when noticed, on the time line
    at: Wall  # when noticed, by the wall clock
    text: Text  # one plain sentence with its numbers
    rule: Text = ""
    level: Text = ""  # "P1", "P2", "P3"
    since: Number = 0.0  # start on the time line
    value: Number | None = None  # figure at that moment
    limit: Number | None = None
    action: Text = ""  # what to do
    eased: Number | None = None  # when a cleared alert's figure was good again; it clears only after that has lasted
    raised: Event | None = None  # the event that raised a cleared alert

    def line(self) -> str:
        """Return one line of JSON; only an event that clears an alert has the fields of a cleared one."""
        fields = asdict(self)
        if self.what != "cleared":
            del fields["eased"], fields["raised"]
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def of(cls, fields: object) -> Event:
        """Return the event that a JSON object describes. Raises ValueError if it describes no possible one."""
        return _EVENT.validate_python(fields)


_TICK, _EVENT = TypeAdapter(Tick), TypeAdapter(Event)


class About(BaseModel):
    """The description of a watch in `watch.json`, written once, at its first start."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    id: str  # unique for each watch
    title: str
    target: str  # name of the target, without secrets
    began: Wall
    every_s: Positive
    kinds: Mapping[str, Kind]  # by name of request or query
    rate: Positive  # probes per second of each request and query
    settings: Mapping[str, object]  # the configuration's [watch] and [review], as JSON

    @property
    def watch(self) -> Watch:
        """The rules that the watch began with. Raises BundleError if perfkit did not write them."""
        return restored(Watch, self.settings.get("watch", {}), f"{ABOUT}: settings")

    @property
    def review(self) -> ReviewConfig:
        """The targets that the watch began with. Raises BundleError if perfkit did not write them."""
        return restored(ReviewConfig, self.settings.get("review", {}), f"{ABOUT}: settings")


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert of a rule: the event that raised it and, unless it is active, the event that cleared it."""

    raised: Event
    cleared: Event | None = None

    @property
    def eased(self) -> float | None:
        """When the figure was good again; None while the alert is active."""
        return self.cleared.eased if self.cleared else None

    @property
    def ended(self) -> float | None:
        """When the alert was cleared; None while it is active."""
        return self.cleared.t if self.cleared else None


@dataclass(frozen=True, slots=True)
class Record:
    """A watch read back from its folder."""

    about: About
    ticks: Sequence[Tick]
    events: Sequence[Event]
    damaged: int = 0  # number of unreadable lines; a crash leaves at most one

    @property
    def alerts(self) -> list[Alert]:
        """All alerts in the order in which they were raised. Raises BundleError for damaged settings."""
        return collect_alerts(self.events, {rule.name: rule.clear_for_s for rule in self.about.watch.rule})

    @property
    def active(self) -> list[Event]:
        """The events that raised the active alerts, the oldest first."""
        return [alert.raised for alert in collect_alerts(self.events, {}) if not alert.cleared]

    @property
    def notes(self) -> list[Event]:
        """The notes of the watch about itself."""
        return [event for event in self.events if event.what == "note"]


def collect_alerts(events: Iterable[Event], clear_for_s: Mapping[str, float]) -> list[Alert]:
    """Return the alerts of some events; events with the same id are one alert until one clears it.

    Earlier versions did not store the whole alert with the event that clears it. For their events, `clear_for_s`, by
    rule, says when the figure was good again, and an alert whose first event is missing is left out.
    """
    alerts: dict[str, Alert] = {}
    ended: list[Alert] = []
    for event in sorted(events, key=lambda event: (event.t, event.what != "raised")):
        if event.what == "raised":
            if event.id in alerts and alerts[event.id].cleared:  # its rule was away meanwhile
                ended.append(alerts.pop(event.id))
            alerts.setdefault(event.id, Alert(event))
        elif event.what == "cleared" and (event.raised or event.id in alerts):
            raised = event.raised or alerts[event.id].raised
            eased = max(event.t - clear_for_s.get(event.rule, 0.0), raised.t) if event.eased is None else event.eased
            alerts[event.id] = Alert(raised, replace(event, eased=eased))
    return [*ended, *alerts.values()]


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


# Severities: of the rules on one figure, only the gravest raises an alert.


def gravest(rules: Iterable[WatchRule], value: float | None) -> WatchRule | None:
    """Return the gravest of some rules on one figure that a value breaks at this moment; None if it breaks none."""
    return min((rule for rule in rules if value is not None and beyond(rule, value)), key=gravity, default=None)


def gravity(rule: WatchRule) -> tuple[str, float]:
    """Return a sort key for rules on one figure, the gravest first: by level, then by the limit farther out."""
    return rule.level, -limit(rule) if rule.above is not None else limit(rule)


def subject(rule: WatchRule) -> tuple[object, ...]:
    """Return what rules share of which only the gravest raises an alert: metric, item, and the bad side."""
    return rule.metric, rule.item, rule.above is None


def limit(rule: WatchRule) -> float:
    """Return the limit of a rule, which is itself still good."""
    return rule.above if rule.above is not None else rule.below or 0.0


def beyond(rule: WatchRule, value: float) -> bool:
    """Return whether a value is beyond the limit."""
    return value > limit(rule) if rule.above is not None else value < limit(rule)


def clears(rule: WatchRule, value: float) -> bool:
    """Return whether a value clears an alert: beyond `clear`, by default 10 % better than the limit."""
    side = 1 if rule.above is not None else -1  # on which large values are bad, or small ones
    clear = limit(rule) - abs(limit(rule)) / 10 * side if rule.clear is None else rule.clear
    return (clear - value) * side >= 0


class Tally:
    """Counts probes between one cut and the next. Thread-safe; instants are ns of the monotonic clock."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._ended: dict[str, list[tuple[str, str, float]]] = {name: [] for name in names}  # outcome, status, ms
        self._due: dict[str, dict[int, int]] = {name: {} for name in self._ended}  # of probes in flight, by number

    def begin(self, name: str, number: int, due: int) -> None:
        """Add a probe in flight."""
        with self._lock:
            self._due[name][number] = due

    def give_up(self, name: str, number: int) -> None:
        """Remove a probe from those in flight, with or without an answer."""
        with self._lock:
            del self._due[name][number]

    def in_flight(self, name: str) -> int:
        """Return the number of probes of an item in flight."""
        return len(self._due[name])

    def end(self, name: str, outcome: str, seconds: float, status: str = "") -> None:
        """Count a probe that ended `seconds` after it was due, with its HTTP status if it had one."""
        with self._lock:
            self._ended[name].append((outcome, status, round(seconds * 1000, 3)))

    def cut(self) -> dict[str, Probe]:
        """Return the probes that ended since the last cut, and the number of pending ones."""
        with self._lock:
            every, self._ended = self._ended, {name: [] for name in self._ended}
            waiting = {name: list(due.values()) for name, due in self._due.items()}
        now, probes = monotonic_ns(), {}
        for name, ended in every.items():
            outcomes = dict(Counter(outcome for outcome, _, _ in ended))
            statuses = dict(Counter(status for _, status, _ in ended if status))
            ms = tuple(ms for outcome, _, ms in ended if outcome == OK)
            oldest_s = round((now - min(waiting[name])) / 1e9, 3) if waiting[name] else 0.0
            probes[name] = Probe(outcomes, statuses, ms, len(waiting[name]), oldest_s)
        return probes
