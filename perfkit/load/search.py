"""The search for the highest rate at which a target keeps the thresholds: which rate is next, what the steps show.

Pure. The caller sends each step's load; a step is one round of the open model at a constant rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from perfkit.base.stats import percentile
from perfkit.config import Limits, RateSearch, Thresholds
from perfkit.load.pool import Load, combined
from perfkit.load.samples import OK, Rest, faults


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A rate that was tried, per second; whether the thresholds held, and whether the client kept up."""

    rate: float
    held: bool
    healthy: bool = True


def next_rate(search: RateSearch, first: float, steps: Sequence[SearchStep]) -> float | None:
    """Return the rate of the next step, or None if the search is over.

    The rate grows by `growth` until a threshold breaks or `most` is reached. Then come `closer` geometric means of
    the highest rate that held and the lowest that broke. If the first rate broke, the next is below it.

    >>> search = RateSearch(most=100, growth=2, closer=1)
    >>> next_rate(search, 10, [SearchStep(10, True), SearchStep(20, True), SearchStep(40, False)])
    28.284271247461902
    """
    held, broke = highest_rate(steps), min((step.rate for step in steps if not step.held), default=math.inf)
    if not steps:
        return first
    if broke == math.inf:
        return min(held * search.growth, search.most) if held < search.most else None
    since = len(steps) - 1 - next(n for n, step in enumerate(steps) if not step.held)
    if since >= search.closer:
        return None
    return math.sqrt(held * broke) if held else broke / search.growth


def highest_rate(steps: Sequence[SearchStep]) -> float:
    """Return the highest rate that held, below every rate that broke; 0 if no rate held."""
    broke = min((step.rate for step in steps if not step.held), default=math.inf)
    return max((step.rate for step in steps if step.held and step.rate < broke), default=0.0)


def is_open_ended(search: RateSearch, steps: Sequence[SearchStep]) -> bool:
    """Return whether the target might sustain more: no rate broke, or the client failed at the lowest that did."""
    broke = [step for step in steps if not step.held]
    return not broke or not min(broke, key=lambda step: step.rate).healthy


def judge_step(rate: float, load: Load, thresholds: Thresholds, limits: Limits) -> SearchStep:
    """Judge a step by the thresholds; response times count from the instants at which requests were due."""
    columns = load.columns
    counted = [i for i, counts in enumerate(columns["counted"]) if counts]
    rests = [Rest.of(rest) for rest in load.rest.values()]
    times = [(columns["done"][i] - columns["scheduled"][i]) / 1e6 for i in counted if columns["outcome"][i] == OK]
    for rest in rests:
        times += rest.values_ms(limits.samples)
    sent = len(counted) + sum(rest.outcomes.total() for rest in rests)
    failed = sent - sum(columns["outcome"][i] == OK for i in counted) - sum(rest.outcomes[OK] for rest in rests)
    if not times:
        return SearchStep(rate, held=False)
    healthy = not faults(load.health, percentile(times, 50), limits.model_dump())
    bounds = ((50, thresholds.p50_ms), (95, thresholds.p95_ms), (99, thresholds.p99_ms))
    in_time = all(limit is None or percentile(times, q) <= limit for q, limit in bounds)
    return SearchStep(rate, in_time and failed <= thresholds.error_rate * sent, healthy)


def combined_steps(loads: Sequence[Load], steps: Sequence[SearchStep], open_ended: bool) -> Load:
    """Return all steps as one round: `batch` is a step's number, and only requests at the highest rate count."""
    rate, parts = highest_rate(steps), []
    for number, (load, step) in enumerate(zip(loads, steps, strict=True)):
        best = step.rate == rate
        counted = [best and counts for counts in load.columns["counted"]]
        columns = {**load.columns, "counted": counted, "batch": [number] * len(counted)}
        parts.append(replace(load, columns=columns, rest=load.rest if best else {}))
    whole = combined(parts, numbered=False)
    return replace(whole, health={**whole.health, "rate": rate, "limited": float(open_ended)})
