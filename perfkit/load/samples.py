"""Samples of requests: outcomes, buffers, clocks, limits and the client's health.

A scheduler leaves a connection where it first came to lie. On its client's own processor it answers a statement of
30 µs in half the time that it takes on another one, which has to be woken. By that chance alone two arms of one plan
may differ by a factor of two for a whole round.

Sleep until shortly before it, then look at the clock at every turn of the loop, so that answers are still read.
On Linux a timer of the kernel ends the sleep within about 0.1 ms; elsewhere the loop's own does, in good time.

A histogram is an HDR histogram of response times in microseconds, three digits, in the encoding that every
implementation of it reads and that can be merged without loss. What is beyond its range is an error, never lost.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic_ns
from typing import Any, Self

from hdrh.histogram import HdrHistogram


def pin_to_processors(pids: Sequence[int]) -> Callable[[], None] | None:
    """Keep this process to the first of its processors and the server's `pids` to the next; returns the way back.

    None, and nothing moves, where there is one processor, where the system has no say in it (macOS), and where a
    process is another user's. What moved of the server ends with its connection.
    """
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


# Whether a round's numbers are the target's: what the client did wrong, by the limits of the configuration. Pure.

LATE = "the typical request left {:.3g} ms late"
BUSY = "a worker was busy {:.0f} % of the time"


def faults(health: Mapping[str, float], p50_ms: float, limits: Mapping[str, float]) -> dict[str, float]:
    """The reasons for which a round is invalid, as texts to be filled with their number; empty where it is healthy.

    Schedule lag counts beyond `lag_ms` and beyond a share of the round's own median.

    >>> limits = {"lag_ms": 5, "lag_share": 0.25, "worker_cpu": 0.95}
    >>> faults({"lag_p50_ms": 6, "worker_cpu": 0.5}, 100, limits)
    {}
    >>> faults({"lag_p50_ms": 6, "worker_cpu": 0.5}, 10, limits)
    {'the typical request left {:.3g} ms late': 6}
    """
    found = {}
    if health["lag_p50_ms"] > max(limits["lag_ms"], limits["lag_share"] * p50_ms):
        found[LATE] = health["lag_p50_ms"]
    if health["worker_cpu"] > limits["worker_cpu"]:
        found[BUSY] = 100 * health["worker_cpu"]
    return found


# Waiting for an instant of the monotonic clock, more exactly than an event loop's timers, which count in ms.

EARLY_NS = 150_000  # what a kernel's timer may be late
EARLY_LOOP_NS = 2_000_000
TURN_NS = 20_000  # a turn of the loop that took longer did some work
_MONOTONIC, _ABSOLUTE = 1, 1


class Clock:
    """One sleeper of one event loop. `spun_ns`: time spent looking at the clock, which is no work."""

    def __init__(self) -> None:
        self.spun_ns = 0
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._libc = ctypes.CDLL(None)
        self._fd = _timer(self._libc)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._rang)

    async def until(self, at: int) -> None:
        """Return at the instant `at` (ns of the monotonic clock), or at once where that is over."""
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
        """Give the timer back."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _timer(libc: ctypes.CDLL) -> int:
    """A file descriptor that can be read when the time has come; -1 where there is none."""
    if sys.platform != "linux":
        return -1
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    return int(libc.timerfd_create(_MONOTONIC, flags))


# What bounds load on a target that perfkit did not start. Each worker keeps its share by itself.

OK = "ok"
NOTHING = -1  # of requests: which is not the same as no bound


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds by name; 0 means none.

    Requests per second (each worker may send its first at once), requests in flight, requests in the run, an
    instant of the monotonic clock (ns) after which nothing is sent; and the circuit breaker, which every worker
    has for itself: it opens when of the last `breaker_window` responses, after the first `grace`, a share of
    `breaker_errors` failed or more than half took longer than `breaker_ms`.
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
        """How many workers can share this, each with a request in flight."""
        return min(most, self.in_flight or most)

    def left(self, sent: int) -> Caps:
        """What may still be done when so many requests of the run were sent."""
        return replace(self, total=max(self.total - sent, 0) or NOTHING) if self.total else self

    def share(self, worker: int, workers: int) -> Caps:
        """What one of several workers may do; together never more than the whole."""
        total, in_flight = (
            whole if whole <= 0 else whole // workers + (worker < whole % workers) or NOTHING
            for whole in (self.total, self.in_flight)
        )
        return replace(self, rate=self.rate / workers, total=NOTHING if in_flight < 0 else total, in_flight=in_flight)


class RateGate:
    """Lets requests through one by one, or says why no more are. Pure: it is told the time, in ns."""

    def __init__(self, caps: Caps) -> None:
        self._caps, self._next, self.sent, self.reason = caps, 0, 0, ""
        self._seen = 0
        self._last: deque[tuple[str, float]] = deque(maxlen=caps.breaker_window)

    def renew(self, caps: Caps) -> None:
        """Another round, with its share of what is left; pace and circuit breaker go on."""
        self._caps, self.sent = caps, 0

    def admit(self, now: int) -> int | None:
        """The instant at which one more request may be sent, or None when none may; `reason` says why."""
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
        """An answer came; it may open the circuit breaker."""
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


# What came of one request.


@dataclass(slots=True)
class Answer:
    """Stamps in ns of the monotonic clock, the outcome, its first message, and the body where it is kept."""

    acquired: int
    done: int
    outcome: str = OK
    detail: str = ""
    body: str = ""
    attempts: int = 1


def first_words(error: Exception) -> str:
    """An error's kind and the beginning of what it says."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]


# What a round's requests leave behind: every time up to a limit, beyond it histograms of bounded size.

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3
OVER_RANGE = "over_range"  # an outcome: answered, but later than a histogram can hold
DROPPED = "dropped"  # an outcome: it arrived when as many as may be were in flight, and was never sent


@dataclass(slots=True)
class Rest:
    """The requests of one item beyond those whose times are kept."""

    outcomes: Counter[str] = field(default_factory=Counter)
    times: HdrHistogram = field(default_factory=lambda: HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS))
    first_ns: int = 0  # when the first of them was due
    last_ns: int = 0  # when the last of them was done

    def add(self, scheduled: int, done: int, outcome: str) -> None:
        """One more; stamps in ns from the release."""
        if outcome == OK and not self.times.record_value(max((done - scheduled) // 1000, LOWEST_US)):
            outcome = OVER_RANGE
        self.first_ns = min(self.first_ns, scheduled) if self.outcomes else scheduled
        self.last_ns = max(self.last_ns, done)
        self.outcomes[outcome] += 1

    def merge(self, other: Rest) -> None:
        """Take another's in."""
        if not other.outcomes:
            return
        self.times.add(other.times)
        self.first_ns = min(self.first_ns, other.first_ns) if self.outcomes else other.first_ns
        self.last_ns = max(self.last_ns, other.last_ns)
        self.outcomes.update(other.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        times = self.times.encode().decode() if self.outcomes[OK] else ""
        return {"outcomes": dict(self.outcomes), "times": times, "first_ns": self.first_ns, "last_ns": self.last_ns}

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """From JSON."""
        own = cls(Counter(found["outcomes"]), first_ns=found["first_ns"], last_ns=found["last_ns"])
        if found["times"]:
            own.times = HdrHistogram.decode(found["times"])
        return own

    def values_ms(self, most: int) -> list[float]:
        """The successes' response times in ms in order, thinned evenly where there are more than `most`."""
        total = self.times.get_total_count()
        if not total:
            return []
        share = min(1.0, most / total)
        found: list[float] = []
        seen = 0
        for item in self.times.get_recorded_iterator():
            seen += item.count_at_value_iterated_to
            value = (self.times.get_lowest_equivalent_value(item.value_iterated_to) + item.value_iterated_to) / 2000
            found += [value] * (int(seen * share + 0.5) - len(found))
        return found


def merged(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What several workers kept, by item."""
    found: dict[str, Rest] = {}
    for part in parts:
        for item, own in part.items():
            found.setdefault(item, Rest()).merge(Rest.of(own))
    return {item: own.as_dict() for item, own in found.items()}


# What a worker writes down of each request while a batch runs: into columns that are there before it begins.


class SampleBuffer:
    """The requests of a batch, column by column, in ns from its release; those that do not fit, as histograms."""

    def __init__(self, size: int, at: int, *, keep_body: bool = False) -> None:
        self._size, self._at, self._n = size, at, 0
        self._stamps = tuple(array("q", bytes(8 * size)) for _ in range(4))
        self._users, self._attempts = array("q", bytes(8 * size)), array("q", bytes(8 * size))
        self._items, self._outcomes, self._details = [""] * size, [""] * size, [""] * size
        self._bodies: list[str] | None = [""] * size if keep_body else None
        self.rest: dict[str, Rest] = {}

    def add(self, item: str, user: int, scheduled: int, started: int, answer: Answer) -> None:
        """One request; stamps in ns of the monotonic clock."""
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

    def columns(self) -> dict[str, list[Any]]:
        """What was written, for JSON."""
        n = self._n
        names = ("scheduled", "started", "acquired", "done")
        found: dict[str, list[Any]] = {name: own[:n].tolist() for name, own in zip(names, self._stamps, strict=True)}
        found |= {"user": self._users[:n].tolist(), "attempts": self._attempts[:n].tolist()}
        found |= {"item": self._items[:n], "outcome": self._outcomes[:n], "detail": self._details[:n]}
        return found if self._bodies is None else {**found, "body": self._bodies[:n]}
