"""Statistics as pure functions: intervals, paired ratios, tests, and error rates by rounds.

The unit of all statistics is the round, because requests inside a round resemble each other, and so do their failures
(a pool is full, a server restarts): a test that counts requests would claim too much. Samples come as one sequence per
round, in any unit; rounds of two arms are paired by block. Every interval is a 95 % interval. Every ratio is
after/before, so a latency ratio below 1 means faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

ALPHA = 0.05
MIN_SAMPLES = {50: 6, 95: 72, 99: 368}
"""Smallest number of samples at which both ends of a distribution-free 95 % interval are samples:
max(p, 1-p)^n <= 0.025."""

Samples = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; without a bound from the data, `lo` is 0 (or -inf) and `hi` infinite."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class Interval(Estimate):
    """A statistic of one arm in the samples' unit."""

    n: int  # samples
    rounds: int


def percentile(samples: Samples, q: float) -> float:
    """Return the q-th percentile (0..100) by linear interpolation (type 7). Raises ValueError without samples."""
    if len(samples) == 0:
        raise ValueError(f"the {q:g}th percentile needs at least one sample")
    # For the few samples of a round, plain Python takes a fortieth of numpy's time.
    ordered = sorted(map(float, samples))
    rank = (len(ordered) - 1) * q / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def supported(n: int, q: float) -> bool:
    """Return whether n samples give a finite distribution-free 95 % interval of the q-th percentile."""
    p = q / 100
    return n > 0 and max(p, 1 - p) ** n <= ALPHA / 2


def typical(per_round: Samples, n: int) -> Interval | None:
    """Return the geometric mean of a per-round statistic with its t interval on logs; n counts the samples behind it.

    None without rounds, or if a round's value is not positive and finite: leaving the round out would flatter the arm.
    """
    if len(per_round) == 0 or not all(positive(value) for value in per_round):
        return None
    rounds, logs = len(per_round), np.log(per_round)
    half = t_limit(rounds - 1) * float(logs.std(ddof=1)) / math.sqrt(rounds) if rounds > 1 else math.inf
    centre = float(logs.mean())
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n, rounds)


def median(per_round: Samples, n: int) -> Interval | None:
    """Return the median of rounds' medians, with two of them as its interval, by exact binomial ranks.

    n counts the samples behind the medians. The interval assumes nothing about their distribution, as benchstat's
    (order statistics, David & Nagaraja 2003, 7.1). With fewer than six rounds no two medians enclose the true one with
    95 % confidence: `lo` is 0 and `hi` infinite. None without rounds. A ratio's estimate is a geometric mean over
    pairs, so the quotient of two such medians is close to the ratio, not equal.
    """
    rounds = len(per_round)
    if rounds == 0:
        return None
    below, above = _ranks(rounds, rounds, 0.5)
    ends = [0.0, *sorted(map(float, per_round)), math.inf]
    return Interval(percentile(per_round, 50), ends[below], ends[above], n, rounds)


def tail(rounds: Sequence[Samples], q: float) -> Interval | None:
    """Return the pooled q-th percentile with an interval that respects rounds; None with too few samples.

    The variance of the share of samples up to the percentile, linearised over rounds, gives an effective number of
    samples, never above the true one (Woodruff 1952; Korn & Graubard 1998, with Satterthwaite's degrees of freedom
    for the part between rounds). An exact binomial test with that number is inverted through the pooled order
    statistics. A single round gives no bounds. If no order statistic is an upper end, `hi` is the 97.5 % prediction
    bound of one more round's maximum: two to four times as far, and safe.

    Simulated coverage of the p95 at 6, 12 and 24 rounds of 15 to 300, round SD 0 to 0.3, lognormal SD 0.3 to
    0.8: mean 96 %, worst cell 92 % (p99: 96, 89). Ignoring rounds: down to 19 %; logit interval: 79 %;
    jackknife: 80 %; Korn & Graubard as published: 93 to 99 %, but without an upper end up to twice as often.
    The order statistics leave `hi` open in 46 % of runs of 6 x 15 with round SD up to 0.1, 11 % of 6 x 30,
    4 % of 6 x 60. The prediction bound that takes over then missed in none of 9,600 simulated runs of 6 and 12
    rounds of 30 and 60, and in under 1 % of 9,600 runs with rounds of 15 and 20.
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
    below, above = _ranks(n, _effective_samples(counts, sizes), p)
    ends = np.concatenate(([0.0], pooled, [math.inf]))
    hi = float(ends[above]) if above <= n else _next_maximum(filled, p)
    return Interval(value, float(ends[below]), hi, n, len(filled))


def _next_maximum(rounds: Sequence[NDArray[np.float64]], p: float) -> float:
    """Return the upper 97.5 % prediction bound of one more round's maximum, log-normal between rounds.

    Infinite if a round is so small that its maximum is more likely below the percentile than above.
    """
    maxima = np.array([samples.max() for samples in rounds])
    if p ** min(map(len, rounds)) > 0.5 or maxima.min() <= 0:
        return math.inf
    logs, count = np.log(maxima), len(maxima)
    half = t_limit(count - 1) * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / count)
    return math.exp(float(logs.mean()) + half)


def share(rounds: Sequence[tuple[int, int]]) -> Interval | None:
    """Return the pooled share of events with an interval that respects rounds; a round is (events, samples).

    Clopper and Pearson's interval with the effective number of samples of `tail` (Korn & Graubard 1998). A single
    round gives the interval 0 to 1. None without samples.

    Simulated at 6, 12 and 24 rounds of 30 and 100, rates of 0.1 to 5 %: the lower end is above the true rate in 0 to
    2.3 % of runs, also with a correlation within rounds of up to 0.1. The upper end is below the true rate in up to
    6 % at a correlation of 0.02; at 0.1, where few rounds hold most events, in up to 26 %.
    """
    filled = np.array([pair for pair in rounds if pair[1]], dtype=float).reshape(-1, 2)
    if not len(filled):
        return None
    events, sizes = filled.T
    n = int(sizes.sum())
    value = float(events.sum()) / n
    if len(filled) == 1:
        return Interval(value, 0.0, 1.0, n, 1)
    effective = _effective_samples(events, sizes)
    with_event, without = value * effective, (1 - value) * effective
    lo = float(special.betaincinv(with_event, without + 1, ALPHA / 2)) if with_event else 0.0
    hi = float(special.betaincinv(with_event + 1, without, 1 - ALPHA / 2)) if without else 1.0
    return Interval(value, lo, hi, n, len(filled))


def _effective_samples(counts: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """Return the number of independent samples that estimate a share as precisely as these rounds do."""
    n, rounds_n = int(sizes.sum()), len(sizes)
    pooled = counts.sum() / n
    binomial = pooled * (1 - pooled) / n
    clustered = rounds_n / (rounds_n - 1) * float(np.sum((counts - pooled * sizes) ** 2)) / n**2
    effect = max(1.0, clustered / binomial) if binomial else 1.0
    # With few rounds, the variance between them is often underestimated, and then its few degrees of freedom would
    # not count. Half a binomial variance more lifts the worst coverage from 89 to 92 %.
    between = effect - 0.5
    df = effect**2 / (between**2 / (rounds_n - 1) + 1 / n)
    return float(n / effect * (t_limit(n - 1) / t_limit(min(df, n - 1))) ** 2)


def _ranks(n: int, effective: float, p: float) -> tuple[int, int]:
    """Return the 1-based ranks of the order statistics that enclose the p-quantile; 0 and n + 1 if none does."""
    at_least = np.arange(1, n + 1) * effective / n
    fewer = np.arange(n) * effective / n
    too_high = special.betainc(at_least, effective - at_least + 1, p) <= ALPHA / 2
    too_low = special.betainc(fewer + 1, effective - fewer, p) >= 1 - ALPHA / 2
    return int(too_low.sum()), n + 1 - int(too_high.sum())


def positive(value: float) -> bool:
    """Return whether the value has a finite logarithm."""
    return math.isfinite(value) and value > 0


def t_limit(df: float) -> float:
    """Return the two-sided 95 % limit of the t distribution."""
    return float(special.stdtrit(df, 1 - ALPHA / 2))


@dataclass(frozen=True, slots=True)
class Ratio(Estimate):
    """After/before over paired rounds; `sd_log` is the standard deviation of one pair's log ratio."""

    p: float  # two-sided, of the hypothesis that the ratio is 1
    pairs: int
    sd_log: float


def ratio(before: Samples, after: Samples) -> Ratio | None:
    """Return the ratio of a per-round statistic: a paired t interval on log(after/before), one value per block and arm.

    A block counts if both values are positive and finite; None with fewer than two such blocks.
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if positive(a) and positive(b)]
    if len(pairs) < 2:
        return None
    logs = np.array([math.log(b / a) for a, b in pairs])
    return _t_ratio(float(logs.mean()), float(logs.std(ddof=1)), len(logs))


def tail_ratio(before_rounds: Sequence[Samples], after_rounds: Sequence[Samples], q: float) -> Ratio | None:
    """Return the ratio of the pooled q-th percentiles, paired by block; None with too few samples or blocks.

    A t interval on the log ratio with R - 1 degrees of freedom, whose standard error is the larger of two: a
    delete-one-block jackknife of the Harrell-Davis estimate (the plain percentile jumps from one order
    statistic to the next; Harrell & Davis 1982) and the paired one of per-round percentiles.

    Simulated p95 at 6, 12 and 24 blocks of 30 and 60, round SD 0 to 0.3: with identical arms it claims a difference
    in 4.5 % (worst cell 6.7 %); with different shapes it covers 95.3 % (worst 93.2 %). Jackknife of the plain
    percentile: 6.1 % (7.8 %) and 92.2 % (90.5 %); paired t on per-round percentiles: 4.9 % (5.9 %) but 91 %
    (81 %), biased for the pooled ratio; bootstrap-t over blocks: 7.8 % (13 %) and intervals 1.5 times as wide.
    p99 at 12 and 24 blocks of 60: 5.9 % (7.7 %).
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
    """Return the standard deviation that one block adds to the log ratio of smooth pooled percentiles."""
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
    """Return the ratio of values that are known only to within a factor `step`: the interval widens by that factor.

    A search tries rates that lie `step` apart and cannot tell rates in between.
    """
    centre = math.copysign(max(abs(math.log(r.value)) - math.log(step), 0.0), math.log(r.value))
    p = _t_ratio(centre, r.sd_log, r.pairs).p
    return Ratio(r.value, r.lo / step, r.hi * step, p, r.pairs, r.sd_log)


def equivalence(r: Ratio, margin: float, step: float = 1.0) -> float:
    """Return the p-value of the ratio being outside 1 - margin to 1 + margin, by two one-sided tests (Schuirmann 1987).

    The larger of two t tests of the log ratio, against log(1 - margin) and log(1 + margin): these are the limits of
    "within 5 %"; in logs the lower is a little farther from 0 (by 0.0025 at 5 %). The value is below 0.05 exactly if
    the 90 % interval is inside. A factor `step` (see `known_within`) narrows the limits.
    """
    centre = math.log(r.value)
    low = (math.log1p(-margin) if margin < 1 else -math.inf) + math.log(step)
    return _one_sided(r, min(centre - low, math.log1p(margin) - math.log(step) - centre))


def gain(r: Ratio, worth: float, step: float = 1.0, *, more_is_better: bool = False) -> float:
    """Return the one-sided p-value of a gain above `worth`: a ratio under 1 - worth, of a throughput over 1 + worth.

    The t test of the paired log ratio that is one half of `equivalence`; at 0.05 or less the one-sided 95 % bound
    excludes such a gain. A factor `step` (see `known_within`) narrows the limit.
    """
    gained, limit = log_gains(r, worth, more_is_better)
    return _one_sided(r, limit - math.log(step) - gained)


def _one_sided(r: Ratio, room: float) -> float:
    """Return the p-value of a t test of the log ratio against a limit that is `room` away."""
    if not r.sd_log:
        return 0.0 if room >= 0 else 1.0
    return float(special.stdtr(r.pairs - 1, -room / (r.sd_log / math.sqrt(r.pairs))))


def log_gains(r: Ratio, worth: float, more_is_better: bool) -> tuple[float, float]:
    """Return the measured gain and the smallest gain worth having, as logarithms; above 0 is better."""
    if more_is_better:
        return math.log(r.value), math.log1p(worth)
    return -math.log(r.value), -math.log1p(-worth)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the order of the input, never above 1 (Holm 1979)."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def error_bound(errors: int, n: int) -> float:
    """Return the one-sided 95 % upper bound of a rate (Clopper & Pearson 1934); about 3/n without errors."""
    return float(special.betaincinv(errors + 1, n - errors, 1 - ALPHA)) if errors < n else 1.0


EXACT_BLOCKS = 12
"""The largest number of blocks for which all 2^blocks ways to swap arms are tried."""

Counts = Sequence[tuple[int, int]]  # failed and sent requests, by block; (0, 0) for a missing round


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """Error rate after minus before, over pooled counts; `p` is two-sided, `p_table` is corrected over the table."""

    p: float
    p_table: float
    blocks: int


def differences(levels: Sequence[tuple[Counts, Counts]], seed: int = 1) -> list[Difference | None]:
    """Compare the error rates before and after at every load level; None if an arm sent nothing.

    Every level has the same blocks in the same order. If only the labels of the arms differ, the two rounds of a block
    can be swapped: `p` is the share of swaps of whole blocks whose difference is at least as large as the measured
    one, over all swaps up to 12 blocks, else over 4095 random swaps and the measured order (Phipson & Smyth 2010).
    At least six blocks are needed to reach 5 %. `p_table` is that share for the largest standardised difference of
    all levels, swapped together (Westfall & Young 1993). Unlike Holm's correction, `p_table` loses no power to levels
    without failures nor, with few blocks, to several levels that fail in the same way.
    """
    swaps = _swaps(len(levels[0][0]), seed) if levels else np.zeros((1, 0))
    swapped = [_swapped(np.array(before, float), np.array(after, float), swaps) for before, after in levels]
    spreads = [float(np.sqrt(np.mean(values**2))) if values is not None else 0.0 for values in swapped]
    scores = [np.abs(v) / spread for v, spread in zip(swapped, spreads, strict=True) if v is not None and spread]
    largest = np.max(scores, axis=0) if scores else np.zeros(len(swaps))
    results: list[Difference | None] = []
    for (before, after), values, spread in zip(levels, swapped, spreads, strict=True):
        if values is None:
            results.append(None)
            continue
        p = _share(np.abs(values), abs(float(values[0]))) if spread else 1.0
        p_table = _share(largest, abs(float(values[0])) / spread) if spread else 1.0
        lo, hi = _interval(np.array(before, float), np.array(after, float))
        blocks = sum(b[1] > 0 and a[1] > 0 for b, a in zip(before, after, strict=True))
        results.append(Difference(float(values[0]), lo, hi, p, p_table, blocks))
    return results


def _swaps(blocks: int, seed: int) -> NDArray[np.float64]:
    """Return a row for each way to swap arms, with 1 for a swapped block; the first row swaps no block."""
    if blocks <= EXACT_BLOCKS:
        return (np.arange(2**blocks)[:, None] >> np.arange(blocks) & 1).astype(float)
    swaps = np.random.default_rng(seed).integers(0, 2, (2**EXACT_BLOCKS, blocks)).astype(float)
    swaps[0] = 0
    return swaps


def _swapped(
    before: NDArray[np.float64], after: NDArray[np.float64], swaps: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return the difference of pooled rates for every way to swap arms, over the blocks that have both arms."""
    paired = (before[:, 1] > 0) & (after[:, 1] > 0) if len(before) else np.zeros(0, bool)
    if not paired.any():
        return None
    before, after, swaps = before[paired], after[paired], swaps[:, paired]
    moved = swaps @ (after - before)
    one, other = before.sum(0) + moved, after.sum(0) - moved
    return np.asarray(other[:, 0] / other[:, 1] - one[:, 0] / one[:, 1])


def _share(values: NDArray[np.float64], measured: float) -> float:
    return float(np.mean(values >= measured * (1 - 1e-9)))


def _interval(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the difference: at each end, the wider of two intervals.

    The first treats requests as independent, and so knows what n requests without a failure leave open (Newcombe 1998,
    method 10). The second, a t interval over blocks of the linearised rates (Cochran 1977, 6.3), knows how much rounds
    differ, and nothing if no request failed. Simulated coverage at 6 and 12 rounds of 30 and 100, rates of 0.2 to
    50 %, correlation in a round up to 0.3: 91 to 100 %; 89 % at 2 % in six rounds where whole rounds fail.
    """
    paired = (before[:, 1] > 0) & (after[:, 1] > 0)
    before, after = before[paired], after[paired]
    blocks = len(before)
    (failed, sent), (failed_after, sent_after) = before.sum(0), after.sum(0)
    one, other = failed / sent, failed_after / sent_after
    low, high = _wilson(failed, sent)
    low_after, high_after = _wilson(failed_after, sent_after)
    below = math.hypot(other - low_after, high - one)
    above = math.hypot(high_after - other, one - low)
    if blocks > 1:
        residuals = (after[:, 0] - other * after[:, 1]) / sent_after - (before[:, 0] - one * before[:, 1]) / sent
        half = float(special.stdtrit(blocks - 1, 1 - ALPHA / 2)) * float(residuals.std(ddof=1)) * math.sqrt(blocks)
    else:
        half = 1.0
    value = other - one
    return max(-1.0, value - max(below, half)), min(1.0, value + max(above, half))


def _wilson(failed: float, sent: float) -> tuple[float, float]:
    """Return the score interval of one rate (Wilson 1927)."""
    z = float(special.ndtri(1 - ALPHA / 2))
    rate = failed / sent
    centre, half = rate + z * z / (2 * sent), z * math.sqrt(rate * (1 - rate) / sent + z * z / (4 * sent * sent))
    return (centre - half) / (1 + z * z / sent), (centre + half) / (1 + z * z / sent)
