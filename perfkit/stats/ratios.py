"""After/before over rounds that are paired by block, in an interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from perfkit.stats.estimates import Samples, percentile, positive, supported, t_limit


@dataclass(frozen=True, slots=True)
class Ratio:
    """After/before over paired rounds; `sd_log` is the standard deviation of one pair's log ratio."""

    value: float
    lo: float
    hi: float
    p: float  # two-sided, of the hypothesis that the ratio is 1
    pairs: int
    sd_log: float


def ratio(before: Samples, after: Samples) -> Ratio | None:
    """Ratio of a per-round statistic: a paired t interval on log(after/before), one value per block and arm.

    A block in which either value is not positive and finite does not count; None with fewer than two that do.
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if positive(a) and positive(b)]
    if len(pairs) < 2:
        return None
    logs = np.array([math.log(b / a) for a, b in pairs])
    return _t_ratio(float(logs.mean()), float(logs.std(ddof=1)), len(logs))


def tail_ratio(before_rounds: Sequence[Samples], after_rounds: Sequence[Samples], q: float) -> Ratio | None:
    """Ratio of the pooled q-th percentiles, rounds paired by block; None with too few samples or blocks.

    A t interval on the log ratio with R - 1 degrees of freedom, whose standard error is the larger of two: a
    delete-one-block jackknife of the Harrell-Davis estimate (the plain percentile jumps from one order
    statistic to the next; Harrell & Davis 1982) and the paired one of per-round percentiles.

    Simulated p95 at 6, 12 and 24 blocks of 30 and 60, round SD 0 to 0.3, arms alike: claims a difference in
    4.5 % (worst cell 6.7 %) and covers 95.3 % (worst 93.2 %) where the shapes differ. Jackknife of the plain
    percentile: 6.1 % (7.8 %) and 92.2 % (90.5 %); paired t on per-round percentiles: 4.9 % (5.9 %) but 91 %
    (81 %), being biased for the pooled ratio; bootstrap-t over blocks: 7.8 % (13 %) and intervals 1.5 times
    as wide. p99 at 12 and 24 blocks of 60: 5.9 % (7.7 %).
    """
    paired = zip(before_rounds, after_rounds, strict=True)
    blocks = [(np.asarray(a, float), np.asarray(b, float)) for a, b in paired if len(a) and len(b)]
    if len(blocks) < 2 or not all(supported(sum(map(len, arm)), q) for arm in zip(*blocks, strict=True)):
        return None
    if min(float(samples.min()) for block in blocks for samples in block) <= 0:
        return None
    before, after = (np.concatenate(arm) for arm in zip(*blocks, strict=True))
    per_round = np.log([percentile(b, q) / percentile(a, q) for a, b in blocks])
    sd = max(_jackknife_sd(blocks, q / 100), float(per_round.std(ddof=1)))
    return _t_ratio(math.log(percentile(after, q) / percentile(before, q)), sd, len(blocks))


def _jackknife_sd(blocks: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], p: float) -> float:
    """Standard deviation that one block contributes to the log ratio of smooth pooled percentiles."""
    count = len(blocks)
    left_out = np.empty(count)
    for i in range(count):
        before, after = zip(*(block for j, block in enumerate(blocks) if j != i), strict=True)
        left_out[i] = math.log(_harrell_davis(after, p) / _harrell_davis(before, p))
    return float((count - 1) * left_out.std(ddof=1))


def _harrell_davis(rounds: Sequence[NDArray[np.float64]], p: float) -> float:
    pooled = np.sort(np.concatenate(rounds))
    n = len(pooled)
    weights = np.diff(special.betainc((n + 1) * p, (n + 1) * (1 - p), np.arange(n + 1) / n))
    return float(weights @ pooled)


def _t_ratio(centre: float, sd: float, pairs: int) -> Ratio:
    error = sd / math.sqrt(pairs)
    half = t_limit(pairs - 1) * error
    score = abs(centre) / error if error else (math.inf if centre else 0.0)
    p = 2 * float(special.stdtr(pairs - 1, -score))
    return Ratio(math.exp(centre), math.exp(centre - half), math.exp(centre + half), p, pairs, sd)


def known_within(r: Ratio, step: float) -> Ratio:
    """The ratio of values that are known to within a factor `step` only: so much wider, and judged beyond it.

    The rates that a search tries lie `step` apart, and what is between two of them it cannot tell.
    """
    centre = math.copysign(max(abs(math.log(r.value)) - math.log(step), 0.0), math.log(r.value))
    p = _t_ratio(centre, r.sd_log, r.pairs).p
    return Ratio(r.value, r.lo / step, r.hi * step, p, r.pairs, r.sd_log)
