"""A watch's figures over time, ready to draw: percentiles of stretches, failures, throughput, and where nobody looked.

Pure functions over one part of the record. A stretch is so many seconds of the time line, the same however often the
page is written; its percentiles are of its own samples, and missing where it has too few of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from perfkit.monitor import figures
from perfkit.monitor.model import OK, About
from perfkit.monitor.period import Period
from perfkit.stats import MIN_SAMPLES, supported

POINTS = 300  # at most so many stretches in a chart
#: Seconds of a stretch, and between the times at an axis.
ROUND_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 14_400, 21_600, 43_200, 86_400)

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over time: at `x` (seconds of the time line, a stretch's middle) `y`, NaN where it is not known."""

    x: Values
    y: Values
    width: float  # seconds of a stretch


class WatchSeries:
    """The figures of everything that counts in a period, cut on demand."""

    def __init__(self, period: Period, about: About) -> None:
        names = figures.chosen(about.kinds)
        own = [figures.probes([tick], names) for tick in period.ticks]
        self._middle = np.array([tick.t - tick.seconds / 2 for tick in period.ticks])
        self._seconds = np.array([tick.seconds for tick in period.ticks])
        self._ok = np.array([sum(probe.outcomes.get(OK, 0) for probe in probes) for probes in own], dtype=float)
        self._sent = np.array([sum(probe.sent for probe in probes) for probes in own], dtype=float)
        samples = [[ms for probe in probes for ms in probe.ms] for probes in own]
        self._ends = np.cumsum([0, *map(len, samples)])
        self._ms = np.fromiter((ms for part in samples for ms in part), float, int(self._ends[-1]))
        self._least = max(period.seconds / POINTS, float(np.median(self._seconds)))

    def percentile(self, q: int, width: float = 0.0) -> Line:
        """The q-th percentile in ms, of stretches of a `width` in seconds; else wide enough to usually have one."""
        rate = len(self._ms) / float(self._seconds.sum())
        needed = 1.2 * MIN_SAMPLES[q] / rate if rate else 0.0
        return self._line(
            width or max(self._least, needed),
            lambda own: float(np.percentile(ms, q)) if supported(len(ms := self._samples(own)), q) else math.nan,
        )

    def slowest(self) -> Line:
        """The slowest answer of each stretch in ms."""
        return self._line(self._least, lambda own: float(self._samples(own).max(initial=-math.inf)))

    def error_rate(self) -> Line:
        """Of the probes that ended those that failed, as a share of one."""
        return self._line(self._least, lambda own: _share((self._sent - self._ok)[own].sum(), self._sent[own].sum()))

    def throughput(self) -> Line:
        """Answers as expected per second of watched time."""
        return self._line(self._least, lambda own: _share(self._ok[own].sum(), self._seconds[own].sum()))

    def _samples(self, own: slice) -> Values:
        return self._ms[self._ends[own.start] : self._ends[own.stop]]

    def _line(self, least: float, value: Callable[[slice], float]) -> Line:
        """The figure of each stretch at least so wide; one without intervals, where nobody watched, has none."""
        width = float(next((width for width in ROUND_S if width >= least), least))
        place = np.floor(self._middle / width)
        edges = [0, *(np.flatnonzero(np.diff(place)) + 1), len(place)]
        known = {place[lo]: value(slice(lo, hi)) for lo, hi in pairwise(edges)}
        every = np.arange(place[0], place[-1] + 1)
        y = np.array([known.get(n, math.nan) for n in every])
        return Line((every + 0.5) * width, np.where(np.isfinite(y), y, math.nan), width)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
