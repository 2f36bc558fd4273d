"""Samples of requests as a load worker takes them: outcomes, buffers, the clock, limits and the client's health."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Self

from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:  # see `schedule`
    from perfkit.config import Limits

# Outcomes of a request. Every outcome except OK is an error; besides these there are `http_<status>` and
# `sqlstate_<code>` for answers that were not expected, and pgbench's own two, see `pgbench`.
OK = "ok"
TIMEOUT = "timeout"  # no answer within the request timeout
POOL_TIMEOUT = "pool_timeout"  # no free connection within the request timeout
REFUSED = "refused"  # no connection
RESET = "reset"  # the connection was lost, or the answer broke the protocol
UNEXPECTED_BODY = "unexpected_body"  # an HTTP body without a text that it must contain
OVER_RANGE = "over_range"  # answered, but later than a histogram can hold
DROPPED = "dropped"  # arrived when the maximum number of requests was in flight, and was never sent


def pin_to_processors(pids: Sequence[int]) -> Callable[[], None] | None:
    """Pin this process to the first of its processors and the server's `pids` to the next; return the way back.

    Returns None and moves nothing if there is only one processor, if the system cannot pin (macOS), or if a process
    belongs to another user. The server's processes end with their connections, so only this one has to be moved back.
    """
    # A scheduler leaves a connection on the processor where it started. On its client's own processor it answers a
    # statement of 30 µs in half the time that it takes on another, which has to be woken. By that chance alone, two
    # arms with the same plan could differ by a factor of two for a whole round.
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    mine, *others = sorted(allowed)
    if not others or not pids:
        return None
    try:
        for pid in pids:
            os.sched_setaffinity(pid, others[:1])
        os.sched_setaffinity(0, [mine])
    except OSError:
        return None
    return partial(os.sched_setaffinity, 0, allowed)


LATE = "the typical request left {:.3g} ms late"
BUSY = "a worker was busy {:.0f} % of the time"


def faults(health: Mapping[str, float], p50_ms: float, limits: Limits) -> dict[str, float]:
    """Return why a round is invalid, as texts with a placeholder and their numbers; empty if the client was healthy.

    Schedule lag is a fault if it exceeds both `lag_ms` and `lag_share` of the round's median response time.

    >>> from perfkit.config import Limits
    >>> limits = Limits(lag_ms=5, lag_share=0.25, worker_cpu=0.95)
    >>> faults({"lag_p50_ms": 6, "worker_cpu": 0.5}, 100, limits)
    {}
    >>> faults({"lag_p50_ms": 6, "worker_cpu": 0.5}, 10, limits)
    {'the typical request left {:.3g} ms late': 6}
    """
    reasons = {}
    if health["lag_p50_ms"] > max(limits.lag_ms, limits.lag_share * p50_ms):
        reasons[LATE] = health["lag_p50_ms"]
    if health["worker_cpu"] > limits.worker_cpu:
        reasons[BUSY] = 100 * health["worker_cpu"]
    return reasons


EARLY_NS = 150_000  # the time by which a kernel's timer may be late
EARLY_LOOP_NS = 2_000_000
TURN_NS = 20_000  # a turn of the loop that takes longer than this has done some work
_MONOTONIC, _ABSOLUTE = 1, 1


class Clock:
    """Waits for instants more exactly than an event loop's timers, which count in ms.

    The clock sleeps until shortly before the instant, then reads the time at every turn of the loop, so that answers
    are still read meanwhile. On Linux a timer of the kernel ends the sleep within about 0.1 ms; elsewhere the loop's
    own timer does, 2 ms early. `spun_ns` is the time spent reading the clock, which is not work.
    """

    def __init__(self) -> None:
        self.spun_ns = 0
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._libc, self._fd = ctypes.CDLL(None), -1  # -1: the system has no timer that a loop can read
        if sys.platform == "linux":
            self._fd = int(self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._rang)

    async def until(self, at: int) -> None:
        """Return at the instant `at` (ns of the monotonic clock), or at once if it has passed."""
        await self._sleep(at)
        before = monotonic_ns()
        while before < at:
            await asyncio.sleep(0)
            now = monotonic_ns()
            if now - before < TURN_NS:
                self.spun_ns += now - before
            before = now

    async def _sleep(self, at: int) -> None:
        left = at - monotonic_ns()
        if self._fd < 0:
            if left > EARLY_LOOP_NS:
                await asyncio.sleep((left - EARLY_LOOP_NS) / 1e9)
        elif left > EARLY_NS:
            self._wake = self._loop.create_future()
            seconds, nanoseconds = divmod(at - EARLY_NS, 10**9)
            spec = struct.pack("@llll", 0, 0, seconds, nanoseconds)
            self._libc.timerfd_settime(self._fd, _ABSOLUTE, spec, None)
            await self._wake

    def _rang(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew meanwhile
            return
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    def close(self) -> None:
        """Close the timer."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


NOTHING = -1  # a limit of no requests at all; 0 means no limit


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits of the load on a target that perfkit did not start; 0 means no limit.

    `rate` is requests per second (each worker may send its first at once), `in_flight` requests at a time, `total`
    requests in the run, `deadline_ns` an instant of the monotonic clock after which nothing is sent. Each worker
    keeps its own share, and has a circuit breaker of its own: it opens if, after the first `grace` responses, a share
    of `breaker_errors` of the last `breaker_window` failed, or more than half of them took longer than `breaker_ms`.
    """

    budget: str = ""
    rate: float = 0.0
    in_flight: int = 0
    total: int = 0
    deadline_ns: int = 0
    breaker_errors: float = 0.0
    breaker_ms: float = 0.0
    breaker_window: int = 20
    grace: int = 20

    def workers(self, most: int) -> int:
        """Return the number of workers, up to `most`, that can each have a request in flight."""
        return min(most, self.in_flight or most)

    def left(self, sent: int) -> Caps:
        """Return the limits that remain after `sent` requests of the run."""
        return replace(self, total=max(self.total - sent, 0) or NOTHING) if self.total else self

    def share(self, worker: int, workers: int) -> Caps:
        """Return one worker's share; all shares together never exceed the whole."""
        total, in_flight = (
            whole if whole <= 0 else whole // workers + (worker < whole % workers) or NOTHING
            for whole in (self.total, self.in_flight)
        )
        return replace(self, rate=self.rate / workers, total=NOTHING if in_flight < 0 else total, in_flight=in_flight)


class RateGate:
    """Admits requests one by one, until a limit gives the reason to stop. Pure: the caller passes the time, in ns."""

    def __init__(self, caps: Caps) -> None:
        self._caps, self._next, self.sent, self.reason = caps, 0, 0, ""
        self._seen = 0
        self._last: deque[tuple[str, float]] = deque(maxlen=caps.breaker_window)

    def renew(self, caps: Caps) -> None:
        """Start another round with its share of the remaining limits; pace and circuit breaker continue."""
        self._caps, self.sent = caps, 0

    def admit(self, now: int) -> int | None:
        """Return the instant at which one more request may be sent, or None if none may; `reason` then says why."""
        caps = self._caps
        at = max(now, self._next)
        if not self.reason and caps.deadline_ns and at >= caps.deadline_ns:
            self.reason = "the time for load on this target is over"
        if not self.reason and caps.total and self.sent >= caps.total:
            self.reason = "the limit on requests to this target is reached"
        if self.reason:
            return None
        if caps.rate:
            self._next = at + int(min(1e9 / caps.rate, 2**62))
        self.sent += 1
        return at

    def note(self, outcome: str, ms: float) -> None:
        """Record an answer, which may open the circuit breaker."""
        caps = self._caps
        self._last.append((outcome, ms))
        self._seen += 1
        if self._seen < max(caps.grace, caps.breaker_window) or self.reason:
            return
        window = len(self._last)
        failed = [name for name, _ in self._last if name != OK]
        slow = sum(took > caps.breaker_ms for _, took in self._last) if caps.breaker_ms else 0
        if caps.breaker_errors and len(failed) >= caps.breaker_errors * window:
            worst = max(set(failed), key=failed.count)
            self.reason = f"circuit breaker: {len(failed)} of the last {window} requests failed ({worst})"
        elif slow > window / 2:
            limit = f"{caps.breaker_ms:,.0f} ms"
            self.reason = f"circuit breaker: {slow} of the last {window} requests took longer than {limit}"


@dataclass(slots=True)
class Answer:
    """What came of one request: stamps in ns of the monotonic clock, the outcome, its first message, the body."""

    acquired: int
    done: int
    outcome: str = OK
    detail: str = ""
    body: str = ""
    attempts: int = 1


def first_words(error: Exception) -> str:
    """Return an error's class and the first line of its message, up to 200 characters."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]


@dataclass(slots=True)
class Samples:
    """The requests of a round, column by column; times in ns since the release of the request's batch.

    A request with the outcome DROPPED was never started. The columns are lists, which the parent fills from the
    workers' answers and a bundle holds as they are; `Run.samples` makes a DataFrame of them.
    """

    item: list[str] = field(default_factory=list)
    user: list[int] = field(default_factory=list)  # in the open model, the number of the arrival
    batch: list[int] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)
    scheduled: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    acquired: list[int | None] = field(default_factory=list)  # when the request had a connection; None: not known
    done: list[int] = field(default_factory=list)
    outcome: list[str] = field(default_factory=list)
    detail: list[str] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.item)

    def served(self, rows: Iterable[int] | None = None) -> list[int]:
        """Return the rows, of all or of these, that count and were answered as expected."""
        every = range(len(self)) if rows is None else rows
        return [row for row in every if self.counted[row] and self.outcome[row] == OK]

    def times_ms(self, rows: Iterable[int]) -> list[float]:
        """Return the response times of some rows in ms, from the instant at which each request was due."""
        return [(self.done[row] - self.scheduled[row]) / 1e6 for row in rows]

    def selected(self, rows: Sequence[int]) -> Samples:
        """Return some rows."""
        return Samples(*([getattr(self, name)[row] for row in rows] for name in COLUMNS))

    def extend(self, other: Samples) -> None:
        """Add the rows of another."""
        for name in COLUMNS:
            getattr(self, name).extend(getattr(other, name))

    @property
    def lists(self) -> dict[str, list[object]]:
        """The columns by name, not copied: `asdict` would copy each value by itself."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(column.name for column in fields(Samples))

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3


@dataclass(frozen=True, slots=True)
class RestRecord:
    """A `Rest` as JSON: the number of requests by outcome, the histogram as text, and the span of time in ns."""

    outcomes: dict[str, int]
    times: str
    first_ns: int
    last_ns: int


@dataclass(slots=True)
class Rest:
    """The requests of one item beyond those whose times are kept: their number by outcome, and a histogram.

    The histogram is an HDR histogram of response times in microseconds with three significant digits, in the encoding
    that every implementation reads; it has a bounded size and is merged without loss. A time beyond its range becomes
    an error, so that no request is lost.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    times: HdrHistogram = field(default_factory=lambda: HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS))
    first_ns: int = 0  # when the first of them was due
    last_ns: int = 0  # when the last of them was done

    def add(self, scheduled: int, done: int, outcome: str) -> None:
        """Add a request; stamps in ns from the release."""
        if outcome == OK and not self.times.record_value(max((done - scheduled) // 1000, LOWEST_US)):
            outcome = OVER_RANGE
        self.first_ns = min(self.first_ns, scheduled) if self.outcomes else scheduled
        self.last_ns = max(self.last_ns, done)
        self.outcomes[outcome] += 1

    def merge(self, other: Rest) -> None:
        """Add the requests of another."""
        if not other.outcomes:
            return
        self.times.add(other.times)
        self.first_ns = min(self.first_ns, other.first_ns) if self.outcomes else other.first_ns
        self.last_ns = max(self.last_ns, other.last_ns)
        self.outcomes.update(other.outcomes)

    @property
    def record(self) -> RestRecord:
        """The requests as a file or a pipe holds them."""
        times = self.times.encode().decode() if self.outcomes[OK] else ""
        return RestRecord(dict(self.outcomes), times, self.first_ns, self.last_ns)

    @classmethod
    def of(cls, record: RestRecord) -> Self:
        """Return the requests of a record."""
        rest = cls(Counter(record.outcomes), first_ns=record.first_ns, last_ns=record.last_ns)
        if record.times:
            rest.times = HdrHistogram.decode(record.times)
        return rest

    def values_ms(self, most: int) -> list[float]:
        """Return the sorted response times of the successes in ms, thinned evenly if there are more than `most`."""
        total = self.times.get_total_count()
        if not total:
            return []
        share = min(1.0, most / total)
        values: list[float] = []
        seen = 0
        for item in self.times.get_recorded_iterator():
            seen += item.count_at_value_iterated_to
            value = (self.times.get_lowest_equivalent_value(item.value_iterated_to) + item.value_iterated_to) / 2000
            values += [value] * (int(seen * share + 0.5) - len(values))
        return values


def merged(parts: Iterable[Mapping[str, Rest]]) -> dict[str, Rest]:
    """Merge the requests of several workers, by item."""
    rests: dict[str, Rest] = {}
    for part in parts:
        for item, rest in part.items():
            rests.setdefault(item, Rest()).merge(rest)
    return rests


class SampleBuffer:
    """The requests of a batch, column by column, in ns from its release; those that do not fit, as histograms.

    The columns are allocated before the batch begins, so that adding a request allocates nothing.
    """

    def __init__(self, size: int, at: int, *, keep_body: bool = False) -> None:
        self._size, self._at, self._n = size, at, 0
        self._stamps = tuple(array("q", bytes(8 * size)) for _ in range(4))
        self._users, self._attempts = array("q", bytes(8 * size)), array("q", bytes(8 * size))
        self._items, self._outcomes, self._details = [""] * size, [""] * size, [""] * size
        self._bodies: list[str] | None = [""] * size if keep_body else None
        self.rest: dict[str, Rest] = {}

    def add(self, item: str, user: int, scheduled: int, started: int, answer: Answer) -> None:
        """Add a request; stamps in ns of the monotonic clock."""
        n, at = self._n, self._at
        if n == self._size:
            self.rest.setdefault(item, Rest()).add(scheduled - at, answer.done - at, answer.outcome)
            return
        due, began, acquired, done = self._stamps
        due[n], began[n], acquired[n], done[n] = scheduled - at, started - at, answer.acquired - at, answer.done - at
        self._items[n], self._users[n], self._attempts[n] = item, user, answer.attempts
        self._outcomes[n], self._details[n] = answer.outcome, answer.detail
        if self._bodies is not None:
            self._bodies[n] = answer.body
        self._n = n + 1

    def answer(self) -> dict[str, object]:
        """Return the requests as JSON for the parent, which knows their batch and whether they count."""
        n, (due, began, acquired, done) = self._n, (stamps[: self._n].tolist() for stamps in self._stamps)
        columns = Samples(
            self._items[:n],
            self._users[:n].tolist(),
            scheduled=due,
            started=began,
            acquired=[*acquired],
            done=done,
            outcome=self._outcomes[:n],
            detail=self._details[:n],
            attempts=self._attempts[:n].tolist(),
        )
        rest = {item: asdict(requests.record) for item, requests in self.rest.items()}
        return {"columns": columns.lists, "rest": rest, "bodies": (self._bodies or [])[:n]}
