"""What a round's requests leave behind: every time up to a limit, beyond it histograms of bounded size.

A histogram is an HDR histogram of response times in microseconds, three digits, in the encoding that every
implementation of it reads and that can be merged without loss. What is beyond its range is an error, never lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from hdrh.histogram import HdrHistogram

from perfkit.load.limits import OK

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
