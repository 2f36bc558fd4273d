"""What a run says: estimates per arm and load level, comparisons, warnings, the decision.

Frozen results only; `perfkit.analysis` makes them from a bundle. All times are milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from perfkit.policy import Decision, Judgement
from perfkit.stats import Interval, Ratio, Verdict


@dataclass(frozen=True, slots=True)
class Level:
    """One arm under one load level, or one query of a SQL scenario (`item`); latencies in ms."""

    arm: str
    scenario: str
    item: str  # the request or query that was sent
    n: int  # counted samples that succeeded
    errors: int  # unexpected outcomes among all requests sent
    sent: int
    p50: Interval | None
    p95: Interval | None
    p99: Interval | None
    maximum: float
    throughput: Interval | None  # successful requests per second, typical round
    lag_p99: float  # ms between scheduled and started
    healthy: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one load level, `after` compared with `before`."""

    before: str
    after: str
    scenario: str
    item: str
    metric: str  # "p50" or "p95"
    ratio: Ratio | None
    p_holm: float
    margin: float  # the declared one, widened to the control's interval where that excludes 1
    verdict: Verdict
    blocks_needed: int | None  # about how many blocks would settle an inconclusive one


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Unexpected outcomes of one kind in one arm and scenario, with the first message."""

    arm: str
    scenario: str
    outcome: str
    count: int
    message: str


@dataclass(frozen=True, slots=True)
class PlanUse:
    """What one arm's plan of one query says, and whether the rounds really used it."""

    arm: str
    query: str
    summary: str  # "Index Scan using idx_appointments_org_contact_date"
    fingerprint: str  # the same for the same plan, whatever its numbers and constants
    execution_ms: float  # measured once
    buffers: int  # shared hit + read of the whole plan
    rows: float
    scans_expected: int  # executions in the rounds
    scans_seen: int  # of these, how many made every scan of this plan, as the server counted
    verified: bool


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything a report says, ready to be shown."""

    title: str
    judgement: Judgement
    headline: str  # the decision in one sentence of numbers
    arm_decisions: dict[str, Decision]
    weaknesses: tuple[str, ...]
    levels: tuple[Level, ...]  # every arm and the floor (arm == "floor")
    comparisons: tuple[Comparison, ...]  # every after arm and the control arm against before
    margin: float  # the declared one
    margin_used: float  # the widest that any comparison was judged by
    plans: tuple[PlanUse, ...]
    errors: tuple[ErrorGroup, ...]

    def saying(self, headline: str, weaknesses: tuple[str, ...]) -> Analysis:
        """The same analysis with its sentences."""
        return replace(self, headline=headline, weaknesses=weaknesses)

    def level(self, arm: str, scenario: str, item: str | None = None) -> Level | None:
        """The result of one arm under one load level; None where it was not measured."""
        for found in self.levels:
            if found.arm == arm and found.scenario == scenario and item in (None, found.item):
                return found
        return None

    def comparison(self, after: str, scenario: str, metric: str = "p50", item: str | None = None) -> Comparison | None:
        """The comparison of one arm with `before` under one load level."""
        for found in self.comparisons:
            if (found.after, found.scenario, found.metric) == (after, scenario, metric) and item in (
                None,
                found.item,
            ):
                return found
        return None
