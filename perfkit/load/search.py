"""The highest rate that a target stands: which one to try next, and what the steps say together. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from perfkit.config import Limits, RateSearch, Thresholds
from perfkit.load.crew import Load, joined
from perfkit.load.health import faults
from perfkit.load.limits import OK
from perfkit.load.samples import Rest
from perfkit.stats import percentile


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A rate that was tried, per second; whether the thresholds held, and whether the client did."""

    rate: float
    held: bool
    healthy: bool = True


def following(search: RateSearch, first: float, steps: Sequence[SearchStep]) -> float | None:
    """The rate of the next step; None where the search is over.

    Up by `growth` until one breaks or `most` is reached, then `closer` times the geometric middle between the
    highest that held and the lowest that broke; below the first where even that broke.

    >>> search = RateSearch(most=100, growth=2, closer=1)
    >>> following(search, 10, [SearchStep(10, True), SearchStep(20, True), SearchStep(40, False)])
    28.284271247461902
    """
    held, broke = best(steps), min((step.rate for step in steps if not step.held), default=math.inf)
    if not steps:
        return first
    if broke == math.inf:
        return min(held * search.growth, search.most) if held < search.most else None
    since = len(steps) - 1 - next(n for n, step in enumerate(steps) if not step.held)
    if since >= search.closer:
        return None
    return math.sqrt(held * broke) if held else broke / search.growth


def best(steps: Sequence[SearchStep]) -> float:
    """The highest rate that held, below all that broke; 0 where none did."""
    broke = min((step.rate for step in steps if not step.held), default=math.inf)
    return max((step.rate for step in steps if step.held and step.rate < broke), default=0.0)


def limited(search: RateSearch, steps: Sequence[SearchStep]) -> bool:
    """Whether the target might stand more: no rate broke, or the lowest that did was the client's failure."""
    broke = [step for step in steps if not step.held]
    return not broke or not min(broke, key=lambda step: step.rate).healthy


def judged(rate: float, load: Load, thresholds: Thresholds, limits: Limits) -> SearchStep:
    """Whether a step's requests were answered as the thresholds want, counted from when they were due."""
    columns = load.columns
    counted = [i for i, own in enumerate(columns["counted"]) if own]
    rest = [Rest.of(own) for own in load.rest.values()]
    times = [(columns["done"][i] - columns["scheduled"][i]) / 1e6 for i in counted if columns["outcome"][i] == OK]
    for own in rest:
        times += own.values_ms(limits.samples)
    sent = len(counted) + sum(own.outcomes.total() for own in rest)
    failed = sent - sum(columns["outcome"][i] == OK for i in counted) - sum(own.outcomes[OK] for own in rest)
    if not times:
        return SearchStep(rate, held=False)
    healthy = not faults(load.health, percentile(times, 50), limits.model_dump())
    bounds = ((50, thresholds.p50_ms), (95, thresholds.p95_ms), (99, thresholds.p99_ms))
    in_time = all(limit is None or percentile(times, q) <= limit for q, limit in bounds)
    return SearchStep(rate, in_time and failed <= thresholds.error_rate * sent, healthy)


def stepped(loads: Sequence[Load], steps: Sequence[SearchStep], open_ended: bool) -> Load:
    """All steps as one round: `batch` is the step's number, and only the best one's requests count."""
    rate, parts = best(steps), []
    for number, (load, step) in enumerate(zip(loads, steps, strict=True)):
        columns, own = load.columns, step.rate == rate
        counted = [own and value for value in columns["counted"]]
        batch = [number] * len(counted)
        rest = load.rest if own else {}
        parts.append(replace(load, columns={**columns, "counted": counted, "batch": batch}, rest=rest))
    found = joined(parts, numbered=False)
    return replace(found, health={**found.health, "rate": rate, "limited": float(open_ended)})
