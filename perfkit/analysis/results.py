"""Results of a run: records of estimates and comparisons, how arms are compared, and the headline.

`run_analysis.analyse` makes these records from a bundle. All times are milliseconds. Pure functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perfkit.base import judgement, stats
from perfkit.base.judgement import Outcome, Verdict
from perfkit.base.stats import Difference, Interval, Ratio, differences
from perfkit.base.units import millis, number, percent
from perfkit.runs.records import FLOOR, JudgingRecord, RunRecord, ScenarioRecord
from perfkit.runs.rounds import Key, SampleCell

if TYPE_CHECKING:  # an `Analysis` holds what is concluded from the records above it
    from perfkit.analysis.caveats import Caveat
    from perfkit.analysis.policy import Decision


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm under one load level, or one query of a SQL scenario (`item`); times in ms.

    Latency counts from the scheduled instant. Requests beyond `limits.samples` of a round count in every number
    except lag, wait, service and attempts.
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
    throughput: Interval | None  # successful requests per second in the typical round; of a search, the rate that held
    lag_p99: float  # scheduled to started
    healthy: bool
    lag_p50: float
    wait_p50: float  # started to a connection
    wait_p99: float
    service_p50: float  # started to done
    service_p99: float
    dropped: int  # errors of requests that arrived at the limit of requests in flight
    attempts: float  # mean over the requests that were sent
    rounds: int  # including those without an answer
    fault: str  # why the numbers are the client's, not the server's; empty if healthy
    limited: int  # of a search: rounds that ended at its bound or at the client, so more might hold
    unheld: int  # of a search: rounds in which no rate held


@dataclass(frozen=True, slots=True)
class Change:
    """One load level of the arm `after`, compared with `before`."""

    before: str
    after: str
    scenario: str
    item: str


@dataclass(frozen=True, slots=True)
class Comparison(Change):
    """One metric, judged."""

    metric: str  # "p50", "p95", "p99"; of a search "throughput", where more is better
    ratio: Ratio | None
    p_holm: float
    p_equivalent: float  # of the arms differing by more than the margin, with Holm's correction
    margin: float  # declared, or widened to the control's interval if that excludes 1
    verdict: Verdict
    blocks_needed: int | None  # blocks that would settle an inconclusive comparison, estimated
    fewer_answered: float = 0.0  # share by which after answered significantly fewer requests; below 0: before did
    p_gain: float = 1.0  # of a gain above `worth`: one-sided, this comparison alone
    bound: str = ""  # of a search: the ratio is "at least", "at most" or, if both arms are limited, "not known"

    @property
    def qualification(self) -> str:
        """What to say with the ratio; often empty."""
        if self.fewer_answered:
            arm = self.after if self.fewer_answered > 0 else self.before
            return f"of answered requests; {percent(abs(self.fewer_answered))} fewer on {arm}"
        return {"": "", "not known": "both searches were limited"}.get(
            self.bound, f"{self.bound}: a search was limited"
        )


@dataclass(frozen=True, slots=True)
class ErrorChange(Change):
    """Unexpected outcomes; load levels without any are left out."""

    difference: Difference
    fewer_answered: float  # share by which after answered fewer requests; below 0: before did
    significant: bool


@dataclass(frozen=True, slots=True)
class ThroughputChange(Change):
    """Requests per second, after/before, if throughput is not judged; more is better."""

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
    """One arm's plan of one query, and whether the rounds really used it."""

    arm: str
    query: str
    summary: str  # "Index Scan using idx_appointments_org_contact_date"
    fingerprint: str  # the same for the same plan with other numbers and constants
    execution_ms: float  # measured once
    buffers: int  # shared hit + read of the whole plan
    rows: float
    scans_expected: int  # executions in the rounds
    scans_seen: int  # executions that made every scan of this plan, by the server's counters
    verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """What the rounds of a run tell: every load level, and every arm compared with `before`."""

    levels: tuple[Summary, ...] = ()  # every arm and the floor (arm == "floor")
    comparisons: tuple[Comparison, ...] = ()  # every after arm and the control arm against before
    error_changes: tuple[ErrorChange, ...] = ()
    throughputs: tuple[ThroughputChange, ...] = ()
    rebased: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)  # comparisons with other baselines


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis(Estimates):
    """All results of a run, ready to be shown."""

    title: str
    decision: Decision
    headline: str  # the decision in one sentence of numbers
    arm_decisions: dict[str, Outcome]
    caveats: tuple[Caveat, ...]  # most serious first
    margin: float  # declared
    margin_used: float  # the widest of all comparisons
    plans: tuple[PlanUse, ...]
    errors: tuple[ErrorGroup, ...]

    @property
    def caveat_texts(self) -> tuple[str, ...]:
        """The caveats without their kinds and advice."""
        return tuple(caveat.text for caveat in self.caveats)

    def level(self, arm: str, scenario: str, item: str | None = None) -> Summary | None:
        """Return the results of one arm under one load level; None if not measured."""
        levels = (x for x in self.levels if (x.arm, x.scenario) == (arm, scenario))
        return next((level for level in levels if item in (None, level.item)), None)

    def comparison(self, after: str, scenario: str, metric: str = "p50", item: str | None = None) -> Comparison | None:
        """Return the comparison of one arm with `before` under one load level; None if not compared."""
        comparisons = (c for c in self.comparisons if (c.after, c.scenario, c.metric) == (after, scenario, metric))
        return next((c for c in comparisons if item in (None, c.item)), None)


# Every arm compared with `before`: latency, capacity and error rates, with verdicts.

Cells = Mapping[tuple[str, Key], SampleCell]
TAILS = {"p95": 95, "p99": 99}


def compare(run: RunRecord, cells: Cells) -> Estimates:
    """Compare every arm with `before`, the control first: its intervals may widen the margin for the others.

    Throughput is judged only for a scenario that searches for the highest rate: there it is the question, and
    latencies at different rates are not compared. At a fixed rate, throughput is that rate less the failures, which
    the error rates judge. In the closed model it is the number of users over the mean latency; judging it too would
    say the same twice and weaken all other comparisons by Holm's correction. There it is shown with its interval.
    """
    scenarios, before = {scenario.name: scenario for scenario in run.scenarios}, run.of_role("before")[0]
    comparisons: list[Comparison] = []
    errors: list[ErrorChange] = []
    throughputs: list[ThroughputChange] = []
    control: dict[tuple[Key, str], list[Ratio]] = defaultdict(list)
    controls = run.of_role("control")
    for arm in [*controls, *run.of_role("after")]:
        pairs = {k: (cell, cells[arm, k]) for (a, k), cell in cells.items() if a == before and (arm, k) in cells}
        failing = _error_changes(before, arm, {k: p for k, p in pairs.items() if not scenarios[k[0]].search})
        fewer = {(e.scenario, e.item): e.fewer_answered for e in failing if e.significant}
        judged = _judged(before, arm, list(_rows(pairs, scenarios, fewer)), control, run.config)
        errors += failing
        comparisons += judged
        throughputs += _throughputs(before, arm, pairs, scenarios)
        for c in judged if arm in controls else ():
            if c.ratio:
                control[(c.scenario, c.item), c.metric].append(c.ratio)
    return Estimates(comparisons=tuple(comparisons), error_changes=tuple(errors), throughputs=tuple(throughputs))


@dataclass(frozen=True, slots=True)
class _Row:
    """One metric of one load level, not yet judged."""

    key: Key
    metric: str
    before: SampleCell
    after: SampleCell
    ratio: Ratio | None
    step: float = 1.0  # the factor within which a search knows its rates
    fewer: float = 0.0
    bound: str = ""


def _rows(
    pairs: Mapping[Key, tuple[SampleCell, SampleCell]],
    scenarios: Mapping[str, ScenarioRecord],
    fewer: Mapping[Key, float],
) -> Iterator[_Row]:
    """Yield the metrics to compare; a tail with too few samples is left out, a median without a ratio is invalid."""
    searched = set()
    for key, (before, after) in pairs.items():
        if search := scenarios[key[0]].search:
            if key[0] not in searched:  # one rate for the scenario, whatever it sends
                searched.add(key[0])
                step = search.growth ** (0.5**search.closer)
                yield _Row(
                    key, "throughput", before, after, _capacity(before, after, step), step, bound=_bound(before, after)
                )
            continue
        for metric in ("p50", *TAILS):
            ratio = _latency(before, after, metric)
            if ratio or metric == "p50":
                yield _Row(key, metric, before, after, ratio, fewer=fewer.get(key, 0.0))


def _latency(before: SampleCell, after: SampleCell, metric: str) -> Ratio | None:
    """Return the ratio, paired by block; None for a tail if an arm has too few samples."""
    if metric == "p50":
        return _paired(before.medians, after.medians)
    q, blocks = TAILS[metric], sorted(before.medians.keys() & after.medians.keys())
    if not all(stats.supported(cell.n, q) for cell in (before, after)):
        return None
    return stats.tail_ratio([before.blocks[b] for b in blocks], [after.blocks[b] for b in blocks], q)


def _capacity(before: SampleCell, after: SampleCell, step: float) -> Ratio | None:
    """Return the ratio of rates; None if no rate held in some round, because leaving that round out would flatter."""
    if before.unheld or after.unheld:
        return None
    ratio = _paired(before.rates, after.rates)
    return stats.known_within(ratio, step) if ratio else None


def _paired(before: Mapping[int, float], after: Mapping[int, float]) -> Ratio | None:
    """Return the ratio over the blocks that both arms have."""
    blocks = sorted(before.keys() & after.keys())
    return stats.ratio([before[b] for b in blocks], [after[b] for b in blocks])


def _bound(before: SampleCell, after: SampleCell) -> str:
    """Return which bound a ratio of capacities is, if a search ended at its own limit."""
    if before.limited and after.limited:
        return "not known"
    return "at least" if after.limited else "at most" if before.limited else ""


def _judged(
    before: str,
    after: str,
    rows: Sequence[_Row],
    control: Mapping[tuple[Key, str], Sequence[Ratio]],
    config: JudgingRecord,
) -> list[Comparison]:
    """Return the comparisons of one pair of arms, with Holm's correction for differences and for equivalence."""
    declared, least = config.margin, config.worth
    margins = [judgement.widened_margin(control.get((row.key, row.metric), ()), declared) for row in rows]
    different = stats.holm([row.ratio.p if row.ratio else 1.0 for row in rows])
    equivalent = stats.holm(
        [stats.equivalence(r.ratio, m, r.step) if r.ratio else 1.0 for r, m in zip(rows, margins, strict=True)]
    )
    comparisons = []
    for row, margin, p, p_equivalent in zip(rows, margins, different, equivalent, strict=True):
        more, healthy = row.metric == "throughput", not (row.before.faults or row.after.faults)
        verdict = judgement.verdict(
            row.ratio, p, margin, healthy=healthy, declared=declared, p_equivalent=p_equivalent, more_is_better=more
        )
        verdict = _limited(_of_survivors(verdict, row.fewer), row.bound)
        needed = None
        if row.ratio and verdict is Verdict.INCONCLUSIVE and not row.bound:
            needed = judgement.blocks_needed(row.ratio, margin)
        comparisons.append(
            Comparison(
                before,
                after,
                *row.key,
                metric=row.metric,
                ratio=row.ratio,
                p_holm=p,
                p_equivalent=p_equivalent,
                margin=margin,
                verdict=verdict,
                blocks_needed=needed,
                fewer_answered=row.fewer,
                p_gain=stats.gain(row.ratio, least, row.step, more_is_better=more) if row.ratio else 1.0,
                bound=row.bound,
            )
        )
    return comparisons


def _of_survivors(verdict: Verdict, fewer: float) -> Verdict:
    """Return the verdict on answered requests if one arm answered significantly fewer.

    Requests that time out or are dropped are the slow ones, and failed requests leave room for others, so the arm
    that fails more looks faster than it is. A verdict that this alone could explain is invalid. A change in the other
    direction stays, and so does equivalence with a `before` that fails more: if anything, after is faster.
    """
    flattered = {True: (Verdict.FASTER, Verdict.EQUIVALENT), False: (Verdict.SLOWER,)}
    return Verdict.INVALID if fewer and verdict in flattered[fewer > 0] else verdict


def _limited(verdict: Verdict, bound: str) -> Verdict:
    """Return the verdict on capacities if the search on one or both arms was limited."""
    known = {"": set(Verdict), "at least": {Verdict.FASTER}, "at most": {Verdict.SLOWER}, "not known": set()}[bound]
    return verdict if verdict in known or verdict is Verdict.INVALID else Verdict.INCONCLUSIVE


def _error_changes(before: str, after: str, pairs: Mapping[Key, tuple[SampleCell, SampleCell]]) -> list[ErrorChange]:
    """Return the differences of error rates, corrected over their own table.

    They are a family of their own: permuting six blocks cannot give a p-value below 3 %, so in one family with the
    latencies, even an arm that fails every request would not be significant.
    """
    blocks = sorted({block for pair in pairs.values() for cell in pair for block in cell.counts})
    counts = [
        tuple([cell.counts.get(block, (0, 0)) for block in blocks] for cell in (one, other))
        for one, other in pairs.values()
    ]
    changes = []
    for (key, (one, other)), change in zip(
        pairs.items(), differences([(one, other) for one, other in counts]), strict=True
    ):
        if change and (one.errors or other.errors):
            answered = [1 - cell.errors / cell.outcomes.total() for cell in (one, other)]
            most = max(answered)
            fewer = (answered[0] - answered[1]) / most if most else 0.0
            changes.append(ErrorChange(before, after, *key, change, fewer, change.p_table <= stats.ALPHA))
    return changes


def _throughputs(
    before: str, after: str, pairs: Mapping[Key, tuple[SampleCell, SampleCell]], scenarios: Mapping[str, ScenarioRecord]
) -> Iterator[ThroughputChange]:
    """Yield the changes to show: not for a search, and not for a fixed rate that was reached."""
    for key, (one, other) in pairs.items():
        scenario = scenarios[key[0]]
        reached = scenario.rate and not (one.errors or other.errors)
        if reached or scenario.search:
            continue
        if ratio := _paired(one.rates, other.rates):
            yield ThroughputChange(before, after, *key, ratio)


# The headline: the sentence under the decision.

FLOOR_FACTOR = 3.0  # times the floor's median; a latency below that is mostly the client's


def headline(run: RunRecord, analysis: Analysis) -> str:
    """Return one sentence with the load level that was slowest before, errors and checks."""
    parts = [_worst(run, analysis), *_counted(run, analysis), _errors(analysis), _checks(run)]
    sentence = "; ".join(part for part in parts if part)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else "Nothing was measured."


def _worst(run: RunRecord, analysis: Analysis) -> str:
    """Return the slowest level by its p95, or by its median if no level has enough samples for a p95."""
    before = [level for level in analysis.levels if level.arm in run.of_role("before")]
    for metric, share in (("p95", "95 of 100 requests were"), ("p50", "half of the requests were")):
        known = [(interval.value, level) for level in before if (interval := getattr(level, metric))]
        if known:
            value, worst = max(known, key=lambda pair: pair[0])
            after = run.of_role("after")
            changes = [change for arm in after if (change := _change(run, analysis, worst, arm, metric))]
            label = next(s.label for s in run.scenarios if s.name == worst.scenario)
            when = " before" if after else ""
            return ", ".join([f"{label}: {share} answered within {millis(value)}{when}", *changes])
    return ""


def _change(run: RunRecord, analysis: Analysis, worst: Summary, arm: str, metric: str) -> str:
    level = analysis.level(arm, worst.scenario, worst.item)
    comparison = analysis.comparison(arm, worst.scenario, metric, worst.item)
    interval = getattr(level, metric) if level else None
    if interval is None:
        return ""
    text = f"{millis(interval.value)} {_named(run, arm)}"
    return f"{text} ({_times(comparison)})" if comparison and comparison.ratio else text


def _counted(run: RunRecord, analysis: Analysis) -> Iterator[str]:
    """Yield the number of queries that became faster or slower, if the run has several."""
    for arm in run.of_role("after") if len(run.queries) > 1 and not run.config.request else ():
        verdicts = [c.verdict for c in analysis.comparisons if c.after == arm and c.metric == "p50"]
        faster, slower = verdicts.count(Verdict.FASTER), verdicts.count(Verdict.SLOWER)
        yield f"of {len(verdicts)} medians {faster} faster and {slower} slower {_named(run, arm)}"


def _named(run: RunRecord, arm: str) -> str:
    """Return an arm's title for use within a sentence."""
    title = run.arms[arm].title or arm
    return title if title.startswith(("with ", "without ")) else f"with {title}"


def _times(c: Comparison) -> str:
    """Return a ratio in everyday words."""
    assert c.ratio
    value, lo, hi = c.ratio.value, c.ratio.lo, c.ratio.hi
    if c.verdict is Verdict.FASTER:
        return f"{number(1 / value)} times as fast, 95 % interval {number(1 / hi, 1.0)} to {number(1 / lo, 1.0)}"
    if c.verdict is Verdict.SLOWER:
        return f"{number(value)} times as slow, 95 % interval {number(lo, 1.0)} to {number(hi, 1.0)}"
    return f"{c.verdict}: ratio {number(value)}, 95 % interval {number(lo)} to {number(hi)}"


def _errors(analysis: Analysis) -> str:
    levels = [level for level in analysis.levels if level.arm != FLOOR]
    errors, sent = sum(level.errors for level in levels), sum(level.sent for level in levels)
    plural = "" if errors == 1 else "s"
    return f"{errors or 'no'} unexpected outcome{plural} in {sent:,} requests" if sent else ""


def _checks(run: RunRecord) -> str:
    results = [check for checks in run.checks.values() for check in checks]
    passed = sum(check.passed for check in results)
    return f"{passed} of {len(results)} functional checks passed" if results else ""
