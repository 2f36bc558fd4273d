"""Probes as they are counted between one cut and the next. For any thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic_ns

from perfkit.load.limits import OK
from perfkit.monitor.model import Probe


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
