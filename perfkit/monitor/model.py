"""The record of a watch: intervals, events, severities, tallies.

Two clocks: `t` is the time line, in seconds since the watch began. It never goes back, even if the machine's clock is
set or the watch restarts, so every window is cut along it. `at` is the wall clock, in seconds since 1970 (UTC), for
people only.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic_ns
from typing import Any, Literal, Self

from perfkit.config.judging import WatchRule


def gravest(rules: Iterable[WatchRule], value: float | None) -> WatchRule | None:
    """Return the gravest of some rules on one figure that a value breaks at this moment; None if it breaks none."""
    broken = (rule for rule in rules if value is not None and beyond(rule, value))
    return min(broken, key=gravity, default=None)


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
    clear = rule.clear if rule.clear is not None else limit(rule) - (abs(limit(rule)) / 10 * _side(rule))
    return (clear - value) * _side(rule) >= 0


def _side(rule: WatchRule) -> int:
    """Return 1 if large values are bad, else -1."""
    return 1 if rule.above is not None else -1


OK = "ok"

Kind = Literal["request", "query"]


@dataclass(frozen=True, slots=True)
class Probe:
    """The probes of one request or query that ended in one interval."""

    outcomes: Mapping[str, int] = field(
        default_factory=dict
    )  # number by outcome: `ok`, or the name of an unexpected one
    statuses: Mapping[str, int] = field(default_factory=dict)  # number of HTTP answers by status code
    ms: tuple[float, ...] = ()  # response times of `ok` probes, from when they were due
    pending: int = 0  # due and not ended at the interval's end
    oldest_s: float = 0.0  # time since the oldest pending probe was due

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

    n: int  # number of the interval in the record, from 0
    t: float  # end on the time line
    at: float  # end by the wall clock
    seconds: float  # length
    probes: Mapping[str, Probe]
    server: Mapping[str, float] | None = field(default_factory=dict)
    scans: Mapping[str, int] = field(default_factory=dict)  # scans so far, by index

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
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the interval that a JSON object describes. Raises KeyError, TypeError if it describes none."""
        probes = {
            name: Probe(**{**probe, "ms": tuple(probe.get("ms", ()))})
            for name, probe in fields.get("probes", {}).items()
        }
        return cls(**{**fields, "probes": probes})


#: Figures of the server in an interval. Those marked "so far" count since its statistics were reset.
SERVER: Mapping[str, str] = {
    "started": "when the server started, seconds since 1970",
    "connections": "sessions of clients",
    "connections_max": "maximum number of sessions",
    "active": "sessions that run a statement",
    "waiting": "sessions that wait for a lock",
    "lock_wait_s": "how long the longest of them has waited",
    "idle_in_transaction": "sessions idle in a transaction",
    "transaction_s": "how long the oldest transaction has been open",
    "commits": "transactions committed, so far",
    "rollbacks": "transactions rolled back, so far",
    "blocks_hit": "pages found in shared buffers, so far",
    "blocks_read": "pages read from outside shared buffers, so far",
    "temp_bytes": "bytes written to temporary files, so far",
    "wal_bytes": "bytes of WAL, so far",
    "deadlocks": "deadlocks, so far",
    "checksum_failures": "pages whose checksum was wrong, so far",
    "invalid_indexes": "indexes that the planner cannot use",
    "locks_held": "locks on tables and indexes held by clients",
}

What = Literal["raised", "cleared", "note"]
METRICS = "metrics"  # kind of the note with the address of the metrics


@dataclass(frozen=True, slots=True)
class Event:
    """An alert that was raised or cleared, or a note of the watch about itself.

    An alert keeps its `id` when it is cleared or sent again, and after a restart of the watch.
    """

    what: What
    id: str
    t: float  # when noticed, on the time line
    at: float  # when noticed, by the wall clock
    text: str  # one plain sentence with its numbers
    rule: str = ""
    level: str = ""  # "P1", "P2", "P3"
    since: float = 0.0  # start on the time line
    value: float | None = None  # figure at that moment
    limit: float | None = None
    action: str = ""  # what to do

    def line(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the event that a JSON object describes. Raises TypeError if it describes none."""
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class About:
    """The description of a watch in `watch.json`, written once, at its first start."""

    id: str  # unique for each watch
    title: str
    target: str  # what is watched, without secrets
    began: float  # wall clock, seconds since 1970
    every_s: float
    kinds: Mapping[str, Kind]  # by name of request or query
    rate: float  # probes per second of each request and query
    settings: Mapping[str, Any]  # the configuration's [watch] and [review], as JSON
    format: int = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A watch read back from its folder."""

    about: About
    ticks: Sequence[Tick]
    events: Sequence[Event]
    damaged: int = 0  # number of unreadable lines; a crash leaves at most one

    @property
    def active(self) -> list[Event]:
        """The events that raised the active alerts, the oldest first."""
        raised: dict[str, Event] = {}
        for event in self.events:
            if event.what == "raised":
                raised[event.id] = event
            elif event.what == "cleared":
                raised.pop(event.id, None)
        return list(raised.values())


@dataclass(slots=True)
class _Ended:
    """The probes of one item that ended since the last cut."""

    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)


class Tally:
    """Counts probes between one cut and the next. Thread-safe; instants are ns of the monotonic clock."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._ended = {name: _Ended() for name in names}
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
            ended = self._ended[name]
            ended.outcomes[outcome] += 1
            if status:
                ended.statuses[status] += 1
            if outcome == OK:
                ended.ms.append(round(seconds * 1000, 3))

    def cut(self) -> dict[str, Probe]:
        """Return the probes that ended since the last cut, and the number of pending ones."""
        with self._lock:
            ended, self._ended = self._ended, {name: _Ended() for name in self._ended}
            waiting = {name: list(due.values()) for name, due in self._due.items()}
        now = monotonic_ns()
        return {
            name: Probe(
                dict(item.outcomes),
                dict(item.statuses),
                tuple(item.ms),
                len(waiting[name]),
                round((now - min(waiting[name])) / 1e9, 3) if waiting[name] else 0.0,
            )
            for name, item in ended.items()
        }
