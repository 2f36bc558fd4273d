"""What bounds load on a target that perfkit did not start. Each worker keeps its share by itself."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

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
