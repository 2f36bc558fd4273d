"""What a ratio says: the tests, their correction over a table, the verdict, and how many blocks one needs. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from scipy import special

from perfkit.stats.estimates import ALPHA
from perfkit.stats.ratios import Ratio


class Verdict(StrEnum):
    """What a comparison says; faster is a shorter latency, or more requests per second."""

    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


def equivalence(r: Ratio, margin: float, step: float = 1.0) -> float:
    """p-value of the ratio being outside 1 - margin to 1 + margin, by two one-sided tests (Schuirmann 1987).

    The larger of two t tests of the log ratio, against log(1 - margin) and log(1 + margin): the limits that "within
    5 %" says, the lower a little farther from 0 in logs (by 0.0025 at 5 %). Below 0.05 exactly where the 90 %
    interval is inside. Values known to within a factor `step` (see `known_within`) have so much less room.
    """
    centre, error = math.log(r.value), r.sd_log / math.sqrt(r.pairs)
    low = (math.log1p(-margin) if margin < 1 else -math.inf) + math.log(step)
    room = min(centre - low, math.log1p(margin) - math.log(step) - centre)
    if not error:
        return 0.0 if room >= 0 else 1.0
    return float(special.stdtr(r.pairs - 1, -room / error))


def gain(r: Ratio, worth: float, step: float = 1.0, *, more_is_better: bool = False) -> float:
    """p-value of a gain above `worth`: a ratio under 1 - worth, of a throughput over 1 + worth. One-sided.

    The t test of the paired log ratio that is one half of `equivalence`; at 0.05 or less the one-sided 95 % bound
    excludes such a gain. Values known to within a factor `step` (see `known_within`) have so much less room.
    """
    seen, limit = _gained(r, more_is_better), _limit(worth, more_is_better)
    room, error = limit - math.log(step) - seen, r.sd_log / math.sqrt(r.pairs)
    if not error:
        return 0.0 if room >= 0 else 1.0
    return float(special.stdtr(r.pairs - 1, -room / error))


def _gained(r: Ratio, more_is_better: bool) -> float:
    """The gain that was seen, as a logarithm above 0."""
    return math.log(r.value) if more_is_better else -math.log(r.value)


def _limit(worth: float, more_is_better: bool) -> float:
    """The least gain that is worth having, as such a logarithm."""
    return math.log1p(worth) if more_is_better else -math.log1p(-worth)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values in the order given, never above 1 (Holm 1979)."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = running
    return adjusted


def error_bound(errors: int, n: int) -> float:
    """One-sided 95 % upper bound of a rate (Clopper & Pearson 1934); none in n requests gives about 3/n."""
    return float(special.betaincinv(errors + 1, n - errors, 1 - ALPHA)) if errors < n else 1.0


def verdict(
    r: Ratio | None,
    p_holm: float,
    margin: float,
    *,
    healthy: bool,
    min_pairs: int = 6,
    declared: float = math.inf,
    p_equivalent: float | None = None,
    more_is_better: bool = False,
) -> Verdict:
    """The first that applies: invalid, equivalent, faster, slower, inconclusive.

    `p_holm` and `p_equivalent` are those of a difference and of `equivalence`, corrected over the table; without
    the second it is that of this ratio alone. Of a throughput `more_is_better`, and faster is above 1.
    A margin that the control arm widened beyond the declared one must not hide a slowdown: an interval on the
    slow side of 1 that is equivalent by the widened margin only is invalid.
    """
    if not healthy or r is None or r.pairs < min_pairs:
        return Verdict.INVALID
    better, worse = (r.lo > 1, r.hi < 1) if more_is_better else (r.hi < 1, r.lo > 1)
    if (equivalence(r, margin) if p_equivalent is None else p_equivalent) <= ALPHA:
        return Verdict.INVALID if worse and equivalence(r, declared) > ALPHA else Verdict.EQUIVALENT
    if better and p_holm < ALPHA:
        return Verdict.FASTER
    if worse and p_holm < ALPHA:
        return Verdict.SLOWER
    return Verdict.INCONCLUSIVE


def widened_margin(control: Sequence[Ratio], margin: float) -> float:
    """The margin, widened to every interval of the control arm that excludes 1."""
    off = [max(1 - r.lo, r.hi - 1) for r in control if r.lo > 1 or r.hi < 1]
    return max([margin, *off])


def blocks_needed(r: Ratio, margin: float) -> int | None:
    """About how many blocks in all, more than there were, until the interval excludes 1 or the arms are equivalent.

    Takes the estimate and its spread as they are, without Holm's correction; None where 1000 do not suffice.
    """
    blocks = np.arange(max(r.pairs + 1, 6), 1001)
    error, centre = r.sd_log / np.sqrt(blocks), math.log(r.value)
    low = math.log1p(-margin) if margin < 1 else -math.inf
    one_sided = special.stdtrit(blocks - 1, 1 - ALPHA) * error
    fits = (centre - one_sided >= low) & (centre + one_sided <= math.log1p(margin))
    decisive = blocks[fits | (special.stdtrit(blocks - 1, 1 - ALPHA / 2) * error < abs(centre))]
    return int(decisive[0]) if len(decisive) else None


def blocks_for_gain(r: Ratio, worth: float, *, more_is_better: bool = False) -> int | None:
    """About how many blocks in all until a gain is proven, or one above `worth` is excluded.

    Takes the estimate and its spread as they are, without Holm's correction; None where 1000 do not suffice.
    """
    blocks = np.arange(max(r.pairs + 1, 6), 1001)
    error, seen = r.sd_log / np.sqrt(blocks), _gained(r, more_is_better)
    excluded = seen + special.stdtrit(blocks - 1, 1 - ALPHA) * error <= _limit(worth, more_is_better)
    decisive = blocks[excluded | (special.stdtrit(blocks - 1, 1 - ALPHA / 2) * error < seen)]
    return int(decisive[0]) if len(decisive) else None


def blocks_for(sd_log: float, margin: float, pairs: int, *, comparisons: int = 1, power: float = 0.8) -> int:
    """Blocks of a run that finds a change of a ratio by the margin with that power, one of several comparisons.

    Planned from the spread alone: `sd_log` of one pair's log ratio in a pilot of `pairs` blocks; the effect it
    showed is no argument. A t test at ALPHA shared out over the comparisons (Holm's first step). That the pilot's
    spread is itself an estimate is in it: by the quantile of the noncentral t with the pilot's degrees of freedom
    and the test's limit as noncentrality, log(1 + margin) * sqrt(n) / sd_log >= tinv(power; pairs - 1, t_limit)
    (Julious & Owen 2006). At least 6. ValueError for fewer than two pairs, a spread that is no number, a margin
    that is not above 0, or no comparison.
    """
    if pairs < 2 or not (sd_log >= 0 and math.isfinite(sd_log)) or not margin > 0 or comparisons < 1:
        raise ValueError(
            f"sd {sd_log:g} of {pairs} pairs, margin {margin:g}, {comparisons} comparisons; expected 2 pairs, a "
            "spread, a margin, a comparison"
        )

    def fits(blocks: int) -> bool:
        limit = float(special.stdtrit(blocks - 1, 1 - ALPHA / 2 / comparisons))
        needed = float(special.nctdtrit(pairs - 1, limit, power))
        return needed * sd_log / math.sqrt(blocks) <= math.log1p(margin)

    least = most = 6
    while not fits(most):
        least, most = most + 1, 2 * most
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(middle) else (middle + 1, most)
    return most
