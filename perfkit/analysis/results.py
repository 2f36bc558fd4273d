"""Results of a run: estimates, comparisons, and the sentences about them.

Frozen results only; `perfkit.analysis.run_analysis` makes them from a bundle. All times are milliseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perfkit.base import stats
from perfkit.base.bundle import FLOOR
from perfkit.base.stats import Difference, Interval, Ratio, Verdict, differences
from perfkit.base.units import millis
from perfkit.runs.rounds import Key, SampleCell

if TYPE_CHECKING:  # an `Analysis` holds what is concluded from the records above it
    from perfkit.analysis.caveats import Caveat
    from perfkit.analysis.policy import Decision, Judgement


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
            if (found.after, found.scenario, found.metric) == (after, scenario, metric) and item in (None, found.item):
                return found
        return None


# Every arm compared with `before`: latencies, capacity, error rates, and how sure that is. Pure.

Cells = Mapping[tuple[str, Key], SampleCell]
TAILS = {"p95": 95, "p99": 99}


@dataclass(frozen=True, slots=True)
class Changes:
    """The comparisons of a run.

    Throughput is judged, within Holm's family and for shipping, only of a scenario that searches for the highest
    rate: there it is what was asked, and its latencies, each at another rate, are not compared. At a given rate
    it is that rate, less the failures, which the error rates judge; in the closed model it is the users over the
    mean latency, so that judging it too would weaken every other comparison to say the same thing twice.
    There it is shown with its interval.
    """

    comparisons: tuple[Comparison, ...] = ()
    errors: tuple[ErrorChange, ...] = ()
    throughputs: tuple[Change, ...] = ()

    @classmethod
    def of(cls, run: Mapping[str, Any], cells: Cells) -> Changes:
        """Every arm against `before`, the control first: its intervals may widen the margin for the others."""
        scenarios = {scenario["name"]: scenario for scenario in run["scenarios"]}
        before = of_role(run, "before")[0]
        comparisons: list[Comparison] = []
        errors: list[ErrorChange] = []
        throughputs: list[Change] = []
        control: dict[tuple[Key, str], list[Ratio]] = defaultdict(list)
        controls = of_role(run, "control")
        for arm in [*controls, *of_role(run, "after")]:
            pairs = {
                key: (own, cells[arm, key]) for (a, key), own in cells.items() if a == before and (arm, key) in cells
            }
            failing = _error_changes(before, arm, {k: p for k, p in pairs.items() if not scenarios[k[0]].get("search")})
            rows = list(
                _rows(pairs, scenarios, {(e.scenario, e.item): e.fewer_answered for e in failing if e.significant})
            )
            judged = _judged(before, arm, rows, control, run["config"])
            errors += failing
            comparisons += judged
            throughputs += _throughputs(before, arm, pairs, scenarios)
            for found in judged if arm in controls else ():
                if found.ratio:
                    control[(found.scenario, found.item), found.metric].append(found.ratio)
        return cls(tuple(comparisons), tuple(errors), tuple(throughputs))


def worth(config: Mapping[str, Any]) -> float:
    """The least gain that is worth having, as a share; the default in a bundle from before there was the key."""
    return float(config.get("worth", 0.1))


def of_role(run: Mapping[str, Any], role: str) -> list[str]:
    """Arms of one role, in the run's order."""
    return [name for name in run["parameters"]["arms"] if run["roles"][name] == role]


@dataclass(frozen=True, slots=True)
class _Row:
    """One metric of one load level, before it is judged together with the others."""

    key: Key
    metric: str
    before: SampleCell
    after: SampleCell
    ratio: Ratio | None
    step: float = 1.0  # the factor to within which the values are known
    fewer: float = 0.0
    bound: str = ""

    @property
    def healthy(self) -> bool:
        return not (self.before.faults or self.after.faults)


def _rows(
    pairs: Mapping[Key, tuple[SampleCell, SampleCell]],
    scenarios: Mapping[str, Mapping[str, Any]],
    fewer: Mapping[Key, float],
) -> Iterator[_Row]:
    """A tail without the samples for it is no comparison; a median or a capacity without a ratio an invalid one."""
    searched = set()
    for key, (before, after) in pairs.items():
        if search := scenarios[key[0]].get("search"):
            if key[0] not in searched:  # the rate is that of the scenario, whatever it sends
                searched.add(key[0])
                step = search["growth"] ** (0.5 ** search["closer"])
                yield _Row(
                    key, "throughput", before, after, _capacity(before, after, step), step, bound=_bound(before, after)
                )
            continue
        for metric in ("p50", *TAILS):
            ratio = _latency(before, after, metric)
            if ratio or metric == "p50":
                yield _Row(key, metric, before, after, ratio, fewer=fewer.get(key, 0.0))


def _latency(before: SampleCell, after: SampleCell, metric: str) -> Ratio | None:
    """Paired by block; tails only where both arms have the samples for them."""
    blocks = sorted(before.medians.keys() & after.medians.keys())
    if metric == "p50":
        return stats.ratio([before.medians[b] for b in blocks], [after.medians[b] for b in blocks])
    q = TAILS[metric]
    if not all(stats.supported(cell.n, q) for cell in (before, after)):
        return None
    return stats.tail_ratio([before.blocks[b] for b in blocks], [after.blocks[b] for b in blocks], q)


def _capacity(before: SampleCell, after: SampleCell, step: float) -> Ratio | None:
    """None where in a round no rate held: leaving it out would flatter."""
    if before.unheld or after.unheld:
        return None
    blocks = sorted(before.rates.keys() & after.rates.keys())
    found = stats.ratio([before.rates[b] for b in blocks], [after.rates[b] for b in blocks])
    return stats.known_within(found, step) if found else None


def _bound(before: SampleCell, after: SampleCell) -> str:
    """What a ratio of capacities is where a search ended before the target did."""
    if before.limited and after.limited:
        return "not known"
    return "at least" if after.limited else "at most" if before.limited else ""


def _judged(
    before: str,
    after: str,
    rows: Sequence[_Row],
    control: Mapping[tuple[Key, str], Sequence[Ratio]],
    config: Mapping[str, Any],
) -> list[Comparison]:
    """Verdicts of one pair of arms, Holm's correction over all of them for differences and for equivalence."""
    declared, least = config["margin"], worth(config)
    margins = [stats.widened_margin(control.get((row.key, row.metric), ()), declared) for row in rows]
    different = stats.holm([row.ratio.p if row.ratio else 1.0 for row in rows])
    alike = stats.holm(
        [stats.equivalence(r.ratio, m, r.step) if r.ratio else 1.0 for r, m in zip(rows, margins, strict=True)]
    )
    found = []
    for row, margin, p, p_alike in zip(rows, margins, different, alike, strict=True):
        more = row.metric == "throughput"
        verdict = stats.verdict(
            row.ratio, p, margin, healthy=row.healthy, declared=declared, p_equivalent=p_alike, more_is_better=more
        )
        verdict = _limited(_of_survivors(verdict, row.fewer), row.bound)
        needed = None
        if row.ratio and verdict is Verdict.INCONCLUSIVE and not row.bound:
            needed = stats.blocks_needed(row.ratio, margin)
        found.append(
            Comparison(
                before,
                after,
                *row.key,
                metric=row.metric,
                ratio=row.ratio,
                p_holm=p,
                p_equivalent=p_alike,
                margin=margin,
                verdict=verdict,
                blocks_needed=needed,
                fewer_answered=row.fewer,
                p_gain=stats.gain(row.ratio, least, row.step, more_is_better=more) if row.ratio else 1.0,
                bound=row.bound,
            )
        )
    return found


def _of_survivors(verdict: Verdict, fewer: float) -> Verdict:
    """A verdict on those answered, where one arm answered significantly fewer.

    Requests that time out or are dropped are the slow ones, and those that fail leave room for others: the arm
    that fails more looks faster than it is. What that alone could have brought about is invalid; a change that
    shows in spite of it stays, and so does equivalence with a `before` that fails more: it is faster, if anything.
    """
    flattered = {True: (Verdict.FASTER, Verdict.EQUIVALENT), False: (Verdict.SLOWER,)}
    return Verdict.INVALID if fewer and verdict in flattered[fewer > 0] else verdict


def _limited(verdict: Verdict, bound: str) -> Verdict:
    """A verdict on capacities of which one or both are known to be at least so much."""
    known = {"": set(Verdict), "at least": {Verdict.FASTER}, "at most": {Verdict.SLOWER}, "not known": set()}[bound]
    return verdict if verdict in known or verdict is Verdict.INVALID else Verdict.INCONCLUSIVE


def _error_changes(before: str, after: str, pairs: Mapping[Key, tuple[SampleCell, SampleCell]]) -> list[ErrorChange]:
    """Differences of error rates, corrected over their own table.

    They are a family of their own: permuting six blocks cannot give less than 3 %, so that within the latencies'
    family an arm could fail every request and not be found to.
    """
    blocks = sorted({block for pair in pairs.values() for cell in pair for block in cell.counts})
    counts = [
        tuple([cell.counts.get(block, (0, 0)) for block in blocks] for cell in (one, other))
        for one, other in pairs.values()
    ]
    found = differences([(one, other) for one, other in counts])
    changes = []
    for (key, (one, other)), own in zip(pairs.items(), found, strict=True):
        if own and (one.errors or other.errors):
            answered = [1 - cell.errors / cell.outcomes.total() for cell in (one, other)]
            most = max(answered)
            fewer = (answered[0] - answered[1]) / most if most else 0.0
            changes.append(ErrorChange(before, after, *key, own, fewer, own.p_table <= stats.ALPHA))
    return changes


def _throughputs(
    before: str,
    after: str,
    pairs: Mapping[Key, tuple[SampleCell, SampleCell]],
    scenarios: Mapping[str, Mapping[str, Any]],
) -> Iterator[Change]:
    """What is shown: not of a search, and not at a given rate that was met."""
    for key, (one, other) in pairs.items():
        scenario = scenarios[key[0]]
        met = scenario.get("rate") and not (one.errors or other.errors)
        if met or scenario.get("search"):
            continue
        blocks = sorted(one.rates.keys() & other.rates.keys())
        ratio = stats.ratio([one.rates[b] for b in blocks], [other.rates[b] for b in blocks])
        if ratio:
            yield Change(before, after, *key, ratio)


# A run in words: the sentence under the decision.

FLOOR_FACTOR = 3.0  # below this many times the floor's median, a latency is mostly the client's own


def headline(run: Mapping[str, Any], analysis: Analysis) -> str:
    """The load level that was worst before, in numbers, and what else a decision needs."""
    parts = [_worst(run, analysis), *_counted(run, analysis), _errors(analysis), _checks(run)]
    said = "; ".join(part for part in parts if part)
    return f"{said[0].upper()}{said[1:]}." if said else "Nothing was measured."


def _worst(run: Mapping[str, Any], analysis: Analysis) -> str:
    """By the p95, or the median where no p95 has the samples for it."""
    before = [level for level in analysis.levels if level.arm in of_role(run, "before")]
    for metric, share in (("p95", "95 of 100 requests were"), ("p50", "half of the requests were")):
        found = [(interval.value, level) for level in before if (interval := getattr(level, metric))]
        if found:
            value, worst = max(found, key=lambda pair: pair[0])
            after = of_role(run, "after")
            changes = [change for arm in after if (change := _change(run, analysis, worst, arm, metric))]
            label = next(s["label"] for s in run["scenarios"] if s["name"] == worst.scenario)
            when = " before" if after else ""
            return ", ".join([f"{label}: {share} answered within {millis(value)}{when}", *changes])
    return ""


def _change(run: Mapping[str, Any], analysis: Analysis, worst: Summary, arm: str, metric: str) -> str:
    level = analysis.level(arm, worst.scenario, worst.item)
    found = analysis.comparison(arm, worst.scenario, metric, worst.item)
    interval = getattr(level, metric) if level else None
    if interval is None:
        return ""
    text = f"{millis(interval.value)} {_named(run, arm)}"
    return f"{text} ({_times(found)})" if found and found.ratio else text


def _counted(run: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    """Where several queries were measured, how many became faster and slower: one is not all of them."""
    for arm in of_role(run, "after") if len(run["queries"]) > 1 and not run["config"]["request"] else ():
        found = [c.verdict for c in analysis.comparisons if c.after == arm and c.metric == "p50"]
        faster, slower = found.count(Verdict.FASTER), found.count(Verdict.SLOWER)
        yield f"of {len(found)} medians {faster} faster and {slower} slower {_named(run, arm)}"


def _named(run: Mapping[str, Any], arm: str) -> str:
    """An arm's title as it goes on in a sentence."""
    title = str(run["arms"][arm]["title"] or arm)
    return title if title.startswith(("with ", "without ")) else f"with {title}"


def _times(found: Comparison) -> str:
    """A ratio as a person would say it."""
    assert found.ratio
    value, lo, hi = found.ratio.value, found.ratio.lo, found.ratio.hi
    if found.verdict is Verdict.FASTER:
        return f"{_three(1 / value)} times as fast, 95 % interval {_three(1 / hi)} to {_three(1 / lo)}"
    if found.verdict is Verdict.SLOWER:
        return f"{_three(value)} times as slow, 95 % interval {_three(lo)} to {_three(hi)}"
    return f"{found.verdict}: ratio {_three(value)}, 95 % interval {_three(lo)} to {_three(hi)}"


def _errors(analysis: Analysis) -> str:
    levels = [level for level in analysis.levels if level.arm != FLOOR]
    errors, sent = sum(level.errors for level in levels), sum(level.sent for level in levels)
    plural = "" if errors == 1 else "s"
    return f"{errors or 'no'} unexpected outcome{plural} in {sent:,} requests" if sent else ""


def _checks(run: Mapping[str, Any]) -> str:
    results = [check for checks in run["checks"].values() for check in checks]
    passed = sum(check["passed"] for check in results)
    return f"{passed} of {len(results)} functional checks passed" if results else ""


def complete_blocks(run: Mapping[str, Any]) -> int:
    """Blocks that every arm has been through; where arms follow one another, the last comes last."""
    arms = set(run["parameters"]["arms"])
    return sum(arms <= block["state"].keys() for block in run["blocks"])


def _three(value: float) -> str:
    """Three significant digits without an exponent: two would hide on which side of 1 a bound is."""
    return f"{float(f'{value:.3g}'):,.10g}"
