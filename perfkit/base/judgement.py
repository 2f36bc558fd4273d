"""Estimates judged: outcomes with their marks and exit codes, verdicts on ratios, and the evidence that is needed.

Everything that perfkit decides is made of judgements: a threshold on an arm, an item of a decision, a check of a
rollback, a target of a review. Each has an outcome, a sentence with its numbers and, if it is unproven, the evidence
that it needs. `worst` joins outcomes into one. What an outcome is called depends on what is judged: "holds" is GO for a
decision and "as before" for a rollback. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import special

from perfkit.base.stats import ALPHA, MIN_SAMPLES, Estimate, Ratio, equivalence, error_bound, log_gains

MAX_FACTOR = 1000.0  # evidence that takes a larger multiple of the data so far is out of reach

#: The mark of a state, for readers who do not see its colour.
MARKS: Mapping[str, str] = {"good": "✓", "bad": "✕", "neutral": "○", "unsure": "?"}


class Outcome(StrEnum):
    """Whether what is judged holds, is broken or is unproven, by its whole interval; or that it has no benefit."""

    HOLDS = "holds"
    BROKEN = "broken"
    UNPROVEN = "unproven"
    ABSENT = "no benefit"

    @property
    def decision(self) -> str:
        """What the outcome means for shipping a change: GO, NO-GO, NO BENEFIT or INCONCLUSIVE."""
        return _DECISIONS[self]

    @classmethod
    def of(cls, decision: str) -> Outcome:
        """Return the outcome of a decision. Raises ValueError for another text."""
        return next(outcome for outcome, word in _DECISIONS.items() if word == decision)

    def exit_code(self, *, invalid: bool = False) -> int:
        """Return the exit code of a command that gates on the outcome; invalid comparisons outrank "unproven"."""
        return _INVALID_CODE if invalid and self is Outcome.UNPROVEN else _EXIT_CODES[self]

    @property
    def state(self) -> str:
        """The style of the outcome in tables and pages."""
        return _STATES[self]

    @property
    def mark(self) -> str:
        """The mark of the outcome's state."""
        return MARKS[self.state]


_DECISIONS = {
    Outcome.HOLDS: "GO",
    Outcome.BROKEN: "NO-GO",
    Outcome.ABSENT: "NO BENEFIT",
    Outcome.UNPROVEN: "INCONCLUSIVE",
}
_INVALID_CODE = 98  # another run is needed, not more rounds
_EXIT_CODES = {Outcome.HOLDS: 0, Outcome.ABSENT: 96, Outcome.BROKEN: 99, Outcome.UNPROVEN: 100}
_STATES = {Outcome.HOLDS: "good", Outcome.BROKEN: "bad", Outcome.UNPROVEN: "unsure", Outcome.ABSENT: "neutral"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One thing judged; without an outcome it is shown and decides nothing."""

    name: str
    outcome: Outcome | None
    text: str  # one or two plain sentences with their numbers
    needs: str = ""  # the evidence that is needed while it is unproven

    @property
    def reason(self) -> str:
        """The text, and the evidence that is needed."""
        return f"{self.text} Needed: {self.needs}" if self.needs else self.text


def worst(outcomes: Iterable[Outcome | None]) -> Outcome:
    """Return the first of broken, no benefit and unproven that occurs, else holds; unproven if nothing was judged.

    >>> worst([Outcome.HOLDS, Outcome.UNPROVEN, None]).exit_code(), worst([]).mark
    (100, '?')
    """
    judged = {outcome for outcome in outcomes if outcome}
    order = (Outcome.BROKEN, Outcome.ABSENT, Outcome.UNPROVEN)
    return next((bad for bad in order if bad in judged), Outcome.HOLDS if judged else Outcome.UNPROVEN)


def under(estimate: Estimate, limit: float) -> Outcome:
    """Judge an estimate that must be under a limit: its whole interval has to be on one side.

    >>> [str(under(Estimate(5.0, 4.0, hi), 6.0)) for hi in (5.9, 6.0)]
    ['holds', 'unproven']
    """
    return Outcome.HOLDS if estimate.hi < limit else Outcome.BROKEN if estimate.lo >= limit else Outcome.UNPROVEN


def reaches(estimate: Estimate, least: float) -> Outcome:
    """Judge an estimate that must be `least` or more: its whole interval has to be on one side."""
    return Outcome.HOLDS if estimate.lo >= least else Outcome.BROKEN if estimate.hi < least else Outcome.UNPROVEN


def within(estimate: Estimate, low: float, high: float) -> Outcome:
    """Judge an estimate that must lie from `low` to `high`: its whole interval has to be inside or outside."""
    if low <= estimate.lo and estimate.hi <= high:
        return Outcome.HOLDS
    return Outcome.BROKEN if estimate.hi < low or estimate.lo > high else Outcome.UNPROVEN


# The evidence that is needed, as a multiple of the data so far; infinite if no amount would settle the question.


def evidence_needed(estimate: Estimate, limit: float) -> float:
    """Return the multiple of the data after which the interval ends at a limit, from the estimate's side.

    Assumes that the estimate stays and that the distance of the ends (in logs, if all values are positive) shrinks with
    the square root of the amount of data. Infinite if the interval has no end on that side, or no room to shrink to.

    >>> round(evidence_needed(Estimate(10.0, 5.0, 14.4), 12.0), 6)
    4.0
    """
    end = estimate.hi if estimate.value < limit else estimate.lo
    if not math.isfinite(end):
        return math.inf
    scale = math.log if min(end, limit, estimate.value) > 0 else float
    room, reach = (abs(scale(at) - scale(estimate.value)) for at in (limit, end))
    return (reach / room) ** 2 if room else math.inf


def samples_needed(n: int, q: int) -> float:
    """Return the multiple of n samples that gives the q-th percentile an interval; infinite without samples."""
    return MIN_SAMPLES[q] / n if n else math.inf


def requests_needed(failed: int, n: int, limit: float) -> float:
    """Return the multiple of n requests, with the same share of failures, whose error bound is within a limit."""
    factor = 1.0
    while factor <= MAX_FACTOR and error_bound(round(failed * factor), round(n * factor)) > limit:
        factor *= 1.1
    return factor if factor <= MAX_FACTOR else math.inf


# The verdict on a ratio, and the number of blocks that would settle it.


class Verdict(StrEnum):
    """The result of a comparison; faster means a shorter latency, or more requests per second."""

    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


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
    """Return the first verdict that applies: invalid, equivalent, faster, slower, inconclusive.

    `p_holm` and `p_equivalent` are the p-values of a difference and of `equivalence`, corrected over the table;
    without `p_equivalent`, the value of this ratio alone is used. A throughput needs `more_is_better`: above 1 is then
    faster. If the control arm widened the margin beyond the declared one, the wider margin must not hide a slowdown:
    an interval on the slow side of 1 that is equivalent only by the wider margin is invalid.
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
    """Return the margin, widened to every interval of the control arm that excludes 1."""
    return max([margin, *(max(1 - r.lo, r.hi - 1) for r in control if r.lo > 1 or r.hi < 1)])


def blocks_needed(r: Ratio, margin: float) -> int | None:
    """Estimate the total number of blocks until the interval excludes 1 or the arms are equivalent.

    Uses the estimate and its spread without Holm's correction; more than the run had, None if above 1000.
    """
    blocks = np.arange(max(r.pairs + 1, 6), 1001)
    error, centre = r.sd_log / np.sqrt(blocks), math.log(r.value)
    low = math.log1p(-margin) if margin < 1 else -math.inf
    one_sided = special.stdtrit(blocks - 1, 1 - ALPHA) * error
    fits = (centre - one_sided >= low) & (centre + one_sided <= math.log1p(margin))
    decisive = blocks[fits | (special.stdtrit(blocks - 1, 1 - ALPHA / 2) * error < abs(centre))]
    return int(decisive[0]) if len(decisive) else None


def blocks_for_gain(r: Ratio, worth: float, *, more_is_better: bool = False) -> int | None:
    """Estimate the total number of blocks until a gain is proven, or a gain above `worth` is excluded.

    Uses the estimate and its spread without Holm's correction; more than the run had, None if above 1000.
    """
    blocks = np.arange(max(r.pairs + 1, 6), 1001)
    error, (gained, limit) = r.sd_log / np.sqrt(blocks), log_gains(r, worth, more_is_better)
    excluded = gained + special.stdtrit(blocks - 1, 1 - ALPHA) * error <= limit
    decisive = blocks[excluded | (special.stdtrit(blocks - 1, 1 - ALPHA / 2) * error < gained)]
    return int(decisive[0]) if len(decisive) else None


def blocks_for(sd_log: float, margin: float, pairs: int, *, comparisons: int = 1, power: float = 0.8) -> int:
    """Return the number of blocks (minimum 6) that finds a change of a ratio by the margin with the given power.

    The plan uses only the spread of a pilot of `pairs` blocks (`sd_log` of one pair's log ratio), not the effect that
    the pilot showed. The test is a t test at ALPHA divided by the number of comparisons (Holm's first step). The
    pilot's spread is itself an estimate; the quantile of the noncentral t with the pilot's degrees of freedom and the
    test's limit as noncentrality accounts for that: log(1 + margin) * sqrt(n) / sd_log >= tinv(power; pairs - 1,
    t_limit) (Julious & Owen 2006). Raises ValueError for fewer than two pairs, an infinite or negative spread, a
    margin that is not above 0, or no comparison.
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
