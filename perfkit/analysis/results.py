"""What a run says: estimates per arm and load level, comparisons, warnings, the decision.

Frozen results only; `perfkit.analysis` makes them from a bundle. All times are milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from perfkit.analysis.cautions import Caveat
from perfkit.analysis.error_rates import Difference
from perfkit.analysis.policy import Decision, Judgement
from perfkit.stats import Interval, Ratio, Verdict


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm under one load level, or one query of a SQL scenario (`item`); times in ms.

    Latencies count from the scheduled instant. Requests beyond `limits.samples` of a round count in every number but
    lag, wait, service and attempts.
    """

    arm: str
    scenario: str
    item: str  # the request or query that was sent
    n: int  # counted samples that succeeded
    errors: int  # unexpected outcomes among all requests sent
    sent: int
    p50: Interval | None  # of the rounds' medians
    p95: Interval | None
    p99: Interval | None
    maximum: float
    throughput: Interval | None  # successful requests per second, typical round; of a search the rate that held
    lag_p99: float  # scheduled to started
    healthy: bool
    lag_p50: float
    wait_p50: float  # started to a connection
    wait_p99: float
    service_p50: float  # started to done
    service_p99: float
    dropped: int  # of the errors: arrived when as many as may be were in flight
    attempts: float  # mean of the requests that were sent
    rounds: int  # those without an answer included
    fault: str  # why the numbers are the client's and not the server's; empty where healthy
    limited: int  # of a search: rounds that ended at its bound or at the client, so that more might hold
    unheld: int  # of a search: rounds in which no rate held


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one load level, `after` compared with `before`."""

    before: str
    after: str
    scenario: str
    item: str
    metric: str  # "p50", "p95", "p99"; of a search "throughput", where more is better
    ratio: Ratio | None
    p_holm: float
    p_equivalent: float  # of the arms differing by more than the margin, Holm's correction as well
    margin: float  # the declared one, widened to the control's interval where that excludes 1
    verdict: Verdict
    blocks_needed: int | None  # about how many blocks would settle an inconclusive one
    fewer_answered: float = 0.0  # share by which significantly fewer were answered after; below 0: before
    p_gain: float = 1.0  # of a gain above `worth`, one-sided, of this comparison alone
    bound: str = ""  # of a search: the ratio is "at least", "at most" or, with both arms limited, "not known"

    @property
    def qualification(self) -> str:
        """What has to be said with the ratio; empty where nothing has."""
        if self.fewer_answered:
            where = self.after if self.fewer_answered > 0 else self.before
            return f"of those answered; {100 * abs(self.fewer_answered):.2g} % fewer were on {where}"
        return {"": "", "not known": "both searches were limited"}.get(
            self.bound, f"{self.bound}: a search was limited"
        )


@dataclass(frozen=True, slots=True)
class ErrorChange:
    """Unexpected outcomes of one load level, `after` compared with `before`; levels without one are left out."""

    before: str
    after: str
    scenario: str
    item: str
    difference: Difference
    fewer_answered: float  # share by which fewer were answered after; below 0: before
    significant: bool


@dataclass(frozen=True, slots=True)
class Change:
    """Requests per second, after/before, of a load level where that is not judged; more is better."""

    before: str
    after: str
    scenario: str
    item: str
    ratio: Ratio


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
    cautions: tuple[Caveat, ...]  # gravest first
    levels: tuple[Summary, ...]  # every arm and the floor (arm == "floor")
    comparisons: tuple[Comparison, ...]  # every after arm and the control arm against before
    margin: float  # the declared one
    margin_used: float  # the widest that any comparison was judged by
    plans: tuple[PlanUse, ...]
    errors: tuple[ErrorGroup, ...]
    error_changes: tuple[ErrorChange, ...] = ()
    throughputs: tuple[Change, ...] = ()

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What the cautions found, without their kinds and advice."""
        return tuple(caution.text for caution in self.cautions)

    def saying(self, headline: str, cautions: tuple[Caveat, ...]) -> Analysis:
        """The same analysis with its sentences."""
        return replace(self, headline=headline, cautions=cautions)

    def level(self, arm: str, scenario: str, item: str | None = None) -> Summary | None:
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
