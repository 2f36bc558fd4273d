"""The record of a watch: intervals, events, severities, tallies.

Two clocks: `t` is the time line, seconds since the watch began, which never goes back, whatever is done to the
machine's clock and however often the watch is started again; `at` is the wall clock, in seconds since 1970 (UTC),
and only for people. Every window is cut along `t`.
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
    """Of rules on one figure the gravest that it breaks, without waiting for how long."""
    broken = (rule for rule in rules if value is not None and beyond(rule, value))
    return min(broken, key=gravity, default=None)


def gravity(rule: WatchRule) -> tuple[str, float]:
    """Sorts rules on one figure, the gravest first: by level, and within one by the limit that is farther out."""
    return rule.level, -limit(rule) if rule.above is not None else limit(rule)


def subject(rule: WatchRule) -> tuple[object, ...]:
    """What rules of which only the gravest is told have in common: figure, item, and the side that is bad."""
    return rule.metric, rule.item, rule.above is None


def limit(rule: WatchRule) -> float:
    """Where a figure begins to be bad, itself excluded."""
    return rule.above if rule.above is not None else rule.below or 0.0


def beyond(rule: WatchRule, value: float) -> bool:
    """Whether a figure is bad."""
    return value > limit(rule) if rule.above is not None else value < limit(rule)


def clears(rule: WatchRule, value: float) -> bool:
    """Whether a figure is good enough to take an alert back: beyond `clear`, by default a tenth of the limit."""
    clear = rule.clear if rule.clear is not None else limit(rule) - (abs(limit(rule)) / 10 * _side(rule))
    return (clear - value) * _side(rule) >= 0


def _side(rule: WatchRule) -> int:
    """1 where large figures are bad, else -1."""
    return 1 if rule.above is not None else -1


# What a watch records: an interval of probes and of the server's own figures, and what became of its rules.

OK = "ok"

Kind = Literal["request", "query"]


@dataclass(frozen=True, slots=True)
class Probe:
    """The probes of one request or query that ended in one interval, whenever they were due."""

    outcomes: Mapping[str, int] = field(default_factory=dict)  # `ok`, and unexpected ones by their name
    statuses: Mapping[str, int] = field(default_factory=dict)  # of HTTP answers, by status code
    ms: tuple[float, ...] = ()  # response times from when they were due, of those with `ok`
    pending: int = 0  # due and not ended when the interval was
    oldest_s: float = 0.0  # how long the first of these has been due

    @property
    def sent(self) -> int:
        """How many ended."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """How many of these ended otherwise than expected."""
        return self.sent - self.outcomes.get(OK, 0)


@dataclass(frozen=True, slots=True)
class Tick:
    """One interval. `server` has the keys of `SERVER`, those that could be had; None where the database did not answer.

    Whoever does not watch the server's figures has an empty `server`, not None.
    """

    n: int  # counts the record's intervals from 0
    t: float  # when it ended, on the time line
    at: float  # when it ended, by the wall clock
    seconds: float  # how long it was
    probes: Mapping[str, Probe]
    server: Mapping[str, float] | None = field(default_factory=dict)
    scans: Mapping[str, int] = field(default_factory=dict)  # of indexes so far, by name

    @property
    def start(self) -> float:
        """When it began, on the time line."""
        return self.t - self.seconds

    def line(self) -> str:
        """One line of JSON, without what is empty."""
        said = asdict(self)
        said["probes"] = {name: {k: v for k, v in own.items() if v} for name, own in said["probes"].items()}
        return json.dumps({k: v for k, v in said.items() if v != {}}, separators=(",", ":"))

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """From JSON. Raises KeyError, TypeError for what is none."""
        probes = {
            name: Probe(**{**own, "ms": tuple(own.get("ms", ()))}) for name, own in said.get("probes", {}).items()
        }
        return cls(**{**said, "probes": probes})


#: What the server says in an interval. Those marked "so far" count since its statistics began.
SERVER: Mapping[str, str] = {
    "started": "when the server started, seconds since 1970",
    "connections": "sessions of clients",
    "connections_max": "as many as there may be",
    "active": "sessions that run a statement",
    "waiting": "sessions that wait for a lock",
    "lock_wait_s": "how long the longest of them has waited",
    "idle_in_transaction": "sessions in a transaction that do nothing",
    "transaction_s": "how long the oldest transaction has been open",
    "commits": "transactions committed, so far",
    "rollbacks": "transactions rolled back, so far",
    "blocks_hit": "pages found in shared buffers, so far",
    "blocks_read": "pages that had to be read, so far",
    "temp_bytes": "bytes written to temporary files, so far",
    "wal_bytes": "bytes of WAL, so far",
    "deadlocks": "deadlocks, so far",
    "checksum_failures": "pages whose checksum was wrong, so far",
    "invalid_indexes": "indexes that the planner may not use",
    "locks_held": "locks on tables and indexes held by clients",
}

What = Literal["raised", "cleared", "note"]
METRICS = "metrics"  # the kind of the note that says where a watch's metrics are


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: an alert raised or cleared, or a note of the watch itself.

    `id` is the same when it is raised, cleared and told again, and after a restart of the watch.
    """

    what: What
    id: str
    t: float  # when it was noticed, on the time line
    at: float  # the same by the wall clock
    text: str  # one plain sentence with its numbers
    rule: str = ""
    level: str = ""  # "P1", "P2", "P3"
    since: float = 0.0  # when it began, on the time line
    value: float | None = None  # the figure, when it was raised or cleared
    limit: float | None = None
    action: str = ""  # what to do

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """From JSON. Raises TypeError for what is none."""
        return cls(**said)


@dataclass(frozen=True, slots=True)
class About:
    """What `watch.json` says of a watch: written once, when it first began."""

    id: str  # tells this watch from every other
    title: str
    target: str  # what is watched, without secrets
    began: float  # wall clock, seconds since 1970
    every_s: float
    kinds: Mapping[str, Kind]  # of what is sent, by name
    rate: float  # probes per second of each
    settings: Mapping[str, Any]  # the configuration's [watch] and [review], as JSON
    format: int = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A watch read back from its folder."""

    about: About
    ticks: Sequence[Tick]
    events: Sequence[Event]
    damaged: int = 0  # lines that could not be read: at most the last one after a crash

    @property
    def active(self) -> list[Event]:
        """The events that raised the alerts that stand, the oldest first."""
        found: dict[str, Event] = {}
        for event in self.events:
            if event.what == "raised":
                found[event.id] = event
            elif event.what == "cleared":
                found.pop(event.id, None)
        return list(found.values())


# Probes as they are counted between one cut and the next. For any thread.


@dataclass(slots=True)
class _Ended:
    """What ended of one item since the last cut."""

    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)


class Tally:
    """Counts the probes of these items. Instants are ns of the monotonic clock."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._ended = {name: _Ended() for name in names}
        self._due: dict[str, dict[int, int]] = {name: {} for name in self._ended}  # of those in flight, by number

    def begin(self, name: str, number: int, due: int) -> None:
        """A probe is on its way."""
        with self._lock:
            self._due[name][number] = due

    def give_up(self, name: str, number: int) -> None:
        """It is no longer, whatever came of it."""
        with self._lock:
            del self._due[name][number]

    def in_flight(self, name: str) -> int:
        """How many of an item are on their way."""
        return len(self._due[name])

    def end(self, name: str, outcome: str, seconds: float, status: str = "") -> None:
        """One ended, so many seconds after it was due, with an HTTP status where there was one."""
        with self._lock:
            own = self._ended[name]
            own.outcomes[outcome] += 1
            if status:
                own.statuses[status] += 1
            if outcome == OK:
                own.ms.append(round(seconds * 1000, 3))

    def cut(self) -> dict[str, Probe]:
        """What ended since the last cut, and what is due and has not."""
        with self._lock:
            ended, self._ended = self._ended, {name: _Ended() for name in self._ended}
            waiting = {name: list(own.values()) for name, own in self._due.items()}
        now = monotonic_ns()
        return {
            name: Probe(
                dict(own.outcomes),
                dict(own.statuses),
                tuple(own.ms),
                len(waiting[name]),
                round((now - min(waiting[name])) / 1e9, 3) if waiting[name] else 0.0,
            )
            for name, own in ended.items()
        }
