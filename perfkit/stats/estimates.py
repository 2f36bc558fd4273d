"""A statistic of one arm, in an interval that respects rounds. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats has the same and takes most of a second to import

ALPHA = 0.05
MIN_SAMPLES = {50: 6, 95: 72, 99: 368}
"""Smallest n at which both ends of a distribution-free 95 % interval are samples: max(p, 1-p)^n <= 0.025."""

Samples = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic of one arm in the samples' unit; `lo` 0 and `hi` infinite where the data set no bound."""

    value: float
    lo: float
    hi: float
    n: int  # samples
    rounds: int


def percentile(samples: Samples, q: float) -> float:
    """The q-th percentile (0..100) by linear interpolation (type 7); ValueError without samples."""
    if len(samples) == 0:
        raise ValueError(f"the {q:g}th percentile needs at least one sample")
    ordered = sorted(map(float, samples))
    place = (len(ordered) - 1) * q / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)  # a fortieth of numpy's time for a round


def supported(n: int, q: float) -> bool:
    """Whether n samples carry the q-th percentile: a distribution-free 95 % interval is finite."""
    p = q / 100
    return n > 0 and max(p, 1 - p) ** n <= ALPHA / 2


def typical(per_round: Samples, n: int) -> Interval | None:
    """Geometric mean of a per-round statistic with its t interval on logs; n is the samples behind it.

    None without rounds, or where a round's value is not positive and finite: leaving it out would flatter.
    """
    if len(per_round) == 0 or not all(positive(value) for value in per_round):
        return None
    rounds, logs = len(per_round), np.log(per_round)
    half = t_limit(rounds - 1) * float(logs.std(ddof=1)) / math.sqrt(rounds) if rounds > 1 else math.inf
    centre = float(logs.mean())
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n, rounds)


def median(per_round: Samples, n: int) -> Interval | None:
    """The median of rounds' medians between two of them, by exact binomial ranks; n is the samples behind them.

    Assumes nothing of their distribution, as benchstat does (order statistics, David & Nagaraja 2003, 7.1); below
    six rounds no two of them enclose the true one in 95 %, and `lo` is 0 and `hi` infinite. None without rounds.
    A ratio's estimate is a geometric mean over pairs, so it is near the quotient of two of these, not equal to it.
    """
    rounds = len(per_round)
    if rounds == 0:
        return None
    below, above = _ranks(rounds, rounds, 0.5)
    ends = [0.0, *sorted(map(float, per_round)), math.inf]
    return Interval(percentile(per_round, 50), ends[below], ends[above], n, rounds)


def tail(rounds: Sequence[Samples], q: float) -> Interval | None:
    """The pooled q-th percentile in an interval that respects rounds; None with too few samples.

    The variance of the share of samples up to the percentile is linearised over rounds and gives an effective
    number of samples, never above the true one (Woodruff 1952; Korn & Graubard 1998, with Satterthwaite's
    degrees of freedom for the part between rounds); an exact binomial test with that many samples is inverted
    through the pooled order statistics. One round bounds nothing. Where no order statistic is an upper end,
    `hi` is the 97.5 % prediction bound of one more round's maximum: two to four times as far, and safe.

    Coverage of the p95 simulated at 6, 12 and 24 rounds of 15 to 300, round SD 0 to 0.3, lognormal SD 0.3 to
    0.8: mean 96 %, worst cell 92 % (p99: 96, 89). Ignoring rounds: down to 19 %; logit interval: 79 %;
    jackknife: 80 %; Korn & Graubard as published: 93 to 99 %, but without an upper end up to twice as often.
    The order statistics leave `hi` open in 46 % of runs of 6 x 15 with round SD up to 0.1, 11 % of 6 x 30,
    4 % of 6 x 60; where the prediction bound took over it missed in none of 9,600 simulated runs of 6 and 12
    rounds of 30 and 60, and in under 1 % of as many of 15 and 20.
    """
    filled = [np.asarray(samples, dtype=float) for samples in rounds if len(samples)]
    pooled = np.sort(np.concatenate(filled)) if filled else np.empty(0)
    n, p = len(pooled), q / 100
    if not supported(n, q):
        return None
    value = percentile(pooled, q)
    if len(filled) == 1:
        return Interval(value, 0.0, math.inf, n, 1)
    sizes = np.array([len(samples) for samples in filled], dtype=float)
    counts = np.array([np.count_nonzero(samples <= value) for samples in filled], dtype=float)
    below, above = _ranks(n, _effective(counts, sizes), p)
    ends = np.concatenate(([0.0], pooled, [math.inf]))
    hi = float(ends[above]) if above <= n else _next_maximum(filled, p)
    return Interval(value, float(ends[below]), hi, n, len(filled))


def _next_maximum(rounds: Sequence[NDArray[np.float64]], p: float) -> float:
    """Upper 97.5 % prediction bound of one more round's maximum, log-normal between rounds.

    Infinite where a round is so small that its maximum lies under the percentile more often than not.
    """
    maxima = np.array([samples.max() for samples in rounds])
    if p ** min(map(len, rounds)) > 0.5 or maxima.min() <= 0:
        return math.inf
    logs, count = np.log(maxima), len(maxima)
    half = t_limit(count - 1) * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / count)
    return math.exp(float(logs.mean()) + half)


def share(rounds: Sequence[tuple[int, int]]) -> Interval | None:
    """The pooled share of events in an interval that respects rounds, each given as (events, of how many).

    Clopper and Pearson's interval with the effective number of samples of `tail` (Korn & Graubard 1998). One round
    bounds nothing: 0 to 1. None where there was nothing that could have been one.

    Simulated at 6, 12 and 24 rounds of 30 and 100, rates of 0.1 to 5 %: the lower end is above the true rate in 0 to
    2.3 % of runs, with a correlation within rounds of up to 0.1 too. The upper end is below it in up to 6 % at a
    correlation of 0.02; at 0.1, where few rounds hold most events, in up to 26 %.
    """
    own = np.array([pair for pair in rounds if pair[1]], dtype=float).reshape(-1, 2)
    if not len(own):
        return None
    events, sizes = own.T
    n = int(sizes.sum())
    value = float(events.sum()) / n
    if len(own) == 1:
        return Interval(value, 0.0, 1.0, n, 1)
    effective = _effective(events, sizes)
    seen, rest = value * effective, (1 - value) * effective
    lo = float(special.betaincinv(seen, rest + 1, ALPHA / 2)) if seen else 0.0
    hi = float(special.betaincinv(seen + 1, rest, 1 - ALPHA / 2)) if rest else 1.0
    return Interval(value, lo, hi, n, len(own))


def _effective(counts: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """How many independent samples tell a share as well as these rounds do: `counts` have what is looked for."""
    n, rounds_n = int(sizes.sum()), len(sizes)
    pooled = counts.sum() / n
    binomial = pooled * (1 - pooled) / n
    clustered = rounds_n / (rounds_n - 1) * float(np.sum((counts - pooled * sizes) ** 2)) / n**2
    effect = max(1.0, clustered / binomial) if binomial else 1.0
    # With few rounds the part between them is often estimated too small, and then its few degrees of freedom
    # would not count; half a binomial variance more lifts the worst coverage from 89 to 92 %.
    between = effect - 0.5
    df = effect**2 / (between**2 / (rounds_n - 1) + 1 / n)
    return float(n / effect * (t_limit(n - 1) / t_limit(min(df, n - 1))) ** 2)


def _ranks(n: int, effective: float, p: float) -> tuple[int, int]:
    """1-based ranks of the order statistics that enclose the p-quantile; 0 and n + 1 where none does."""
    at_least = np.arange(1, n + 1) * effective / n
    fewer = np.arange(n) * effective / n
    too_high = special.betainc(at_least, effective - at_least + 1, p) <= ALPHA / 2
    too_low = special.betainc(fewer + 1, effective - fewer, p) >= 1 - ALPHA / 2
    return int(too_low.sum()), n + 1 - int(too_high.sum())


def positive(value: float) -> bool:
    """Whether a logarithm can be had of it."""
    return math.isfinite(value) and value > 0


def t_limit(df: float) -> float:
    """The two-sided 95 % limit of the t distribution."""
    return float(special.stdtrit(df, 1 - ALPHA / 2))
