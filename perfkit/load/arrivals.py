"""When requests arrive in the open model: instants that a rate over time and a seed alone decide.

Pure. Arrivals at the cumulative rate's own values: evenly spaced ones where it passes 0.5, 1.5, 2.5 ...; those
of a Poisson process where it passes sums of exponential variates (time rescaling; Brown et al. 2002).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from random import Random

Segment = tuple[float, float, float]  # rate at its start and at its end, per second; seconds


def instants(segments: Sequence[Segment], seed: str | None) -> Iterator[int]:
    """Instants in ns from the start, never decreasing; Poisson with a seed, evenly spaced without.

    >>> [round(at / 1e6) for at in instants([(10, 10, 0.5)], None)]
    [50, 150, 250, 350, 450]
    >>> [round(at / 1e6) for at in instants([(0, 10, 1)], None)]
    [316, 548, 707, 837, 949]
    """
    draw = Random(seed) if seed is not None else None
    passed, start = (draw.expovariate(1.0) if draw else 0.5), 0.0
    before = 0.0  # arrivals expected up to the segment
    for first, last, seconds in segments:
        expected = (first + last) / 2 * seconds
        while passed < before + expected:
            yield int((start + _solved(first, last, seconds, passed - before)) * 1e9)
            passed += draw.expovariate(1.0) if draw else 1.0
        before, start = before + expected, start + seconds


def _solved(first: float, last: float, seconds: float, wanted: float) -> float:
    """The time at which a rate that goes evenly from `first` to `last` has brought so many arrivals."""
    slope = (last - first) / seconds
    root = math.sqrt(max(first * first + 2 * slope * wanted, 0.0))
    return min(2 * wanted / (first + root), seconds) if first + root else 0.0
