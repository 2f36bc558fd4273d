"""A bundle analysed: everything that a report shows, computed once.

`level_of` makes the estimates of one arm under one load level: `perfkit.base.stats` computes their intervals from the
rounds (`median` for a p50, `tail` for a p95 or p99, `typical` for throughput).

"No gain" is claimed only if every comparison excludes a gain above `worth` by its own one-sided 95 % bound. This is an
intersection-union test (Berger 1982) of the hypothesis that at least one comparison gains more than `worth`. If one
comparison does, its gain is wrongly excluded in at most 5 % of runs, whatever the others show. So the claim is false in
at most 5 % of runs, without a correction for the number of comparisons. *Faster* is the reverse: one comparison is
enough for the claim, so Holm's correction keeps the 5 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from perfkit.analysis import policy
from perfkit.analysis.caveats import caveats
from perfkit.analysis.policy import BENEFIT, Rule, gaps_of, rules_of
from perfkit.analysis.results import Analysis, Comparison, ErrorGroup, Estimates, PlanUse, Summary, compare, headline
from perfkit.base import judgement, stats
from perfkit.base.bundle import reading
from perfkit.base.errors import BundleError
from perfkit.base.judgement import Outcome, Verdict
from perfkit.base.units import number, percent, some
from perfkit.explain.comparison import IndexScan, fingerprint, in_words, scans
from perfkit.explain.plan import Plan
from perfkit.load.samples import DROPPED
from perfkit.runs.records import FLOOR, Bundle, RunRecord
from perfkit.runs.rounds import Key, RoundReading, SampleCell, Times, Use


def plan_uses(bundle: Bundle, sent: Mapping[str, Sequence[Use]]) -> list[PlanUse]:
    """Return the scans of each captured plan, and the number of executions in which the server counted them.

    `sent` has the queries sent as SQL, by arm; the run's blocks have those that a service executed.
    """
    plan_use = []
    for arm in bundle.run.parameters.arms:
        captured = _plans(bundle, arm)
        uses = [*sent.get(arm, ()), *_http_uses(arm, bundle.run)]
        for query, plan in captured.items():
            executed, used = _used(query, scans(plan), uses)
            cost = (plan.execution_ms, int(plan.buffers), plan.rows)
            plan_use.append(
                PlanUse(arm, query, in_words(plan), fingerprint(plan), *cost, executed, used, 0 < executed == used)
            )
    return plan_use


@dataclass(frozen=True, slots=True)
class Scans:
    """The use of indexes by arm: in captured plans, and by the server's counters over all rounds."""

    planned: Mapping[str, frozenset[str]]  # index names; only arms with a plan of every query
    shapes: Mapping[str, Mapping[str, str]]  # fingerprints of the plans, by query
    counted: Mapping[str, Mapping[str, int]]  # scans by index; only arms of which every execution was counted

    @classmethod
    def of(cls, bundle: Bundle, read: RoundReading) -> Scans:
        """Read the use of indexes from a bundle. Raises BundleError if a plan cannot be read."""
        run = bundle.run
        plans = {arm: _plans(bundle, arm) for arm in run.parameters.arms}
        complete = {arm: by_query for arm, by_query in plans.items() if by_query.keys() == run.queries.keys()}
        return cls(
            {arm: frozenset(_indexes(by_query.values())) for arm, by_query in complete.items()},
            {arm: {query: fingerprint(plan) for query, plan in by_query.items()} for arm, by_query in plans.items()},
            {arm: counted for arm in plans if (counted := _counted(arm, run, read)) is not None},
        )


def _indexes(plans: Iterable[Plan]) -> set[str]:
    """Return every index that the plans name, also in parts that were not executed."""
    return {name for plan in plans for node in plan.nodes for name in node.texts("Index Name")}


def _counted(arm: str, run: RunRecord, read: RoundReading) -> Counter[str] | None:
    """Return the scans by index over all rounds, those of the service included; None if some were not counted.

    perfkit does not count on a server that others use, nor by query if one round of an open model sends several.
    """
    single = {s.name for s in run.scenarios if len(s.send) == 1}
    closed = {s.name for s in run.scenarios if not s.rate and not s.pgbench}
    queries = {s.name for s in run.scenarios if set(s.send) <= run.queries.keys()}
    known = all(r.usage or r.scenario not in queries for r in read.rounds if r.arm == arm)
    if not run.blocks or not all(arm in block.http_scans for block in run.blocks):
        return None
    if not known or queries - single - closed:
        return None
    scan_counts = Counter[str]()
    for counts in (*(block.http_scans[arm] for block in run.blocks), *(counted for _, counted in read.uses[arm])):
        scan_counts.update(counts)
    return scan_counts


def _plans(bundle: Bundle, arm: str) -> dict[str, Plan]:
    """Return the captured plans of an arm, by query. Raises BundleError."""
    return {query: capture.plan for query in bundle.run.queries if (capture := bundle.plan(arm, query))}


def _http_uses(arm: str, run: RunRecord) -> list[Use]:
    runs = {request.name: request.runs for request in run.config.request}
    uses: list[Use] = []
    for block in run.blocks:
        executions: Counter[str] = Counter()
        for item, count in block.http_requests.get(arm, {}).items():
            executions.update(dict.fromkeys(runs.get(item, ()), count))
        uses.append((executions, block.http_scans.get(arm, {})))
    return uses


def _used(query: str, expected: Sequence[IndexScan], uses: Iterable[Use]) -> tuple[int, int]:
    """Return the executions of a query, and those in which the server counted every scan of its plan."""
    executed = used = 0
    for executions, counted in uses:
        count = executions.get(query, 0)
        executed += count
        used += min([count, *(counted.get(scan.counter, 0) for scan in expected)]) if expected else 0
    return executed, used


# The benefit of a change: what it made faster or fixed, or the proof that no gain is worthwhile.

_FIXABLE = ("p50", "p95", "p99", "throughput", "error rate", "capacity")  # thresholds that a change may fix


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence on the benefit of a run's arms; a run that is not `complete` cannot prove that there is none."""

    run: RunRecord
    rules: tuple[Rule, ...]
    estimates: Estimates
    scans: Scans
    complete: bool = True

    def compared(self, arm: str) -> list[Comparison]:
        """Return an arm's comparisons with before."""
        return [c for c in self.estimates.comparisons if c.after == arm]

    @property
    def worth(self) -> float:
        """The smallest gain that is worthwhile, as a share."""
        return self.run.config.worth

    def excluded(self, c: Comparison) -> bool:
        """Return whether a comparison excludes a gain above `worth`."""
        return excludes(c, self.worth, self.run.config.margin)


def benefit_rule(arm: str, evidence: Evidence) -> Rule:
    """Judge whether an arm after the change has a benefit; the first case that applies."""
    if evidence.run.config.need == "none":
        return _rule(arm, Outcome.HOLDS, 'the configuration needs no benefit (need = "none").')
    comparisons = evidence.compared(arm)
    faster = [c for c in comparisons if beats_control(c, evidence.run.config.margin)]
    if faster:
        return _rule(
            arm, Outcome.HOLDS, f"{len(faster)} of {len(comparisons)} comparisons are faster: {_shown(faster)}."
        )
    if fixed := list(_fixed(arm, evidence)):
        return _rule(arm, Outcome.HOLDS, f"a threshold that was broken before holds now: {some(fixed)}.")
    if evidence.complete and not any(c.verdict is Verdict.FASTER for c in comparisons):
        if _comparable(arm, evidence) and comparisons and all(evidence.excluded(c) for c in comparisons):
            where = "its comparison" if len(comparisons) == 1 else f"any of its {len(comparisons)} comparisons"
            text = f"no gain above {percent(evidence.worth)} in {where} with before (95 % confidence)."
            return _rule(arm, Outcome.ABSENT, text)
        if unused := _unused(arm, evidence):
            which = f"the index {unused[0]}" if len(unused) == 1 else f"any of its {len(unused)} indexes"
            return _rule(arm, Outcome.ABSENT, f"no plan of this workload uses {which}. Other workloads may.")
    return _unproven(arm, comparisons, evidence)


def beats_control(c: Comparison, declared: float) -> bool:
    """Return whether a comparison is faster, and by more than the control arm differs there by chance."""
    if c.verdict is not Verdict.FASTER or c.ratio is None:
        return False
    if c.margin <= declared:
        return True
    return c.ratio.lo > 1 + c.margin if c.metric == "throughput" else c.ratio.hi < 1 - c.margin


def excludes(c: Comparison, least: float, declared: float) -> bool:
    """Return whether a comparison excludes a gain above `least`.

    It cannot if the control arm differs by as much, or if the search on the arm after the change ended early.
    """
    valid, bounded = c.verdict is not Verdict.INVALID, c.bound in ("", "at most")
    return valid and c.margin <= max(least, declared) and bounded and c.p_gain <= stats.ALPHA


def _rule(arm: str, outcome: Outcome, text: str, lacking: str = "") -> Rule:
    return Rule(name=BENEFIT, outcome=outcome, text=f"{arm}: {text}", needs=lacking, arm=arm)


def _fixed(arm: str, evidence: Evidence) -> Iterator[str]:
    """Yield the thresholds that hold now, that `before` broke by its whole interval, and that no control held."""

    def key(rule: Rule) -> tuple[str, ...]:
        return (rule.name,) if rule.name == "throughput" else (rule.name, rule.scenario, rule.item)

    by_arm = {(rule.arm, *key(rule)): rule.outcome for rule in evidence.rules}
    before, controls = evidence.run.of_role("before")[0], evidence.run.of_role("control")
    for rule in evidence.rules:
        if rule.arm != arm or rule.name not in _FIXABLE or rule.outcome is not Outcome.HOLDS:
            continue
        held = any(by_arm.get((control, *key(rule))) is Outcome.HOLDS for control in controls)
        if by_arm.get((before, *key(rule))) is Outcome.BROKEN and not held:
            yield " of ".join(part for part in (rule.name, rule.scenario, rule.item) if part)


def _comparable(arm: str, evidence: Evidence) -> bool:
    """Return whether the comparisons tell all: the arm does not fail less often, and `before` did not drift."""
    fewer = any(e.after == arm and e.significant and e.difference.value < 0 for e in evidence.estimates.error_changes)
    agree = (
        rule.outcome is Outcome.HOLDS for rule in evidence.rules if rule.arm == arm and rule.name == "befores agree"
    )
    return not fewer and all(agree)


def _unused(arm: str, evidence: Evidence) -> Sequence[str]:
    """Return the indexes of an arm that adds nothing else, if the workload certainly uses none of them.

    That is certain if every query's plan was captured, no plan names an index of the arm, and all plans are those of
    `before`. The server must also have counted no scan of the indexes in any round, because other parameters or a
    prepared statement may have led to other plans.
    """
    run, scans, before = evidence.run, evidence.scans, evidence.run.of_role("before")[0]
    names = run.arm(arm).expected_indexes
    if run.changes.get(arm) != ["indexes"] or arm not in scans.planned or arm not in scans.counted:
        return ()
    used = scans.planned[arm] | {name for name, count in scans.counted[arm].items() if count}
    same_plans = scans.shapes.get(arm) == scans.shapes.get(before)
    return names if same_plans and not used & set(names) else ()


def _unproven(arm: str, comparisons: Sequence[Comparison], evidence: Evidence) -> Rule:
    """Say which comparisons are open, and about how many blocks would settle the last of them."""
    faster = [c for c in comparisons if c.verdict is Verdict.FASTER]
    if faster:
        text = f"faster, but not by more than the control differs by chance: {_shown(faster)}."
        return _rule(arm, Outcome.UNPROVEN, text, "another run, in which the control agrees with before.")
    open_ = [c for c in comparisons if not evidence.excluded(c)]
    if not comparisons:
        return _rule(arm, Outcome.UNPROVEN, "nothing was compared with before.", "rounds of both arms.")
    if not open_:
        return _rule(arm, Outcome.UNPROVEN, f"no comparison is faster; whether {arm} has any gain is open.")
    ratios = [(c, c.ratio) for c in open_ if c.ratio and c.verdict is not Verdict.INVALID and not c.bound]
    blocks = [judgement.blocks_for_gain(r, evidence.worth, more_is_better=c.metric == "throughput") for c, r in ratios]
    lacking = "complete blocks in which the client keeps up."
    if blocks and None not in blocks:
        lacking = f"about {max(filter(None, blocks))} blocks in all, if the spread stays as it is."
    elif blocks:
        lacking = "more than 1,000 blocks, or a larger `worth`."
    gain = f"a gain above {percent(evidence.worth)} cannot be ruled out in {len(open_)} of {len(comparisons)}"
    return _rule(arm, Outcome.UNPROVEN, f"no comparison is faster, and {gain}: {_shown(open_)}.", lacking)


def _shown(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons with their ratios, the largest gain first."""
    return some(f"{c.scenario} {c.metric} of {c.item}{_times(c)}" for c in sorted(comparisons, key=_relative_time))


def _relative_time(c: Comparison) -> float:
    if c.ratio is None:
        return 2.0
    return 1 / c.ratio.value if c.metric == "throughput" else c.ratio.value


def _times(c: Comparison) -> str:
    if c.ratio is None:
        return ""
    return f" (x{number(c.ratio.value)}, 95 % interval {number(c.ratio.lo, 1.0)} to {number(c.ratio.hi, 1.0)})"


# From a bundle to its analysis.


def analyse(bundle: Bundle) -> Analysis:
    """Analyse a bundle. Raises BundleError if a file is damaged or missing."""
    with reading(bundle.path):
        return _analyse(bundle)


def estimate(bundle: Bundle, *baselines: str) -> Estimates:
    """Return what the rounds of a bundle tell, without plans and decision; `baselines` are more arms to compare with.

    Raises BundleError if a file is damaged or missing.
    """
    with reading(bundle.path):
        run, read = bundle.run, RoundReading.of(bundle.rounds(), bundle.run)
        _require_rounds(bundle, read)
        rebased = {arm: _rebased(run, arm, read) for arm in baselines if run.roles.get(arm) == "after"}
        return replace(_estimates(run, read), rebased=rebased)


def _estimates(run: RunRecord, read: RoundReading) -> Estimates:
    levels = tuple(level_of(arm, key, cell) for (arm, key), cell in read.cells.items())
    return replace(compare(run, read.cells), levels=levels)


def _analyse(bundle: Bundle) -> Analysis:
    run = bundle.run
    read = RoundReading.of(bundle.rounds(), run)
    _require_rounds(bundle, read)
    _require_plans(bundle)
    estimates, arms = _estimates(run, read), list(run.parameters.arms)
    compared = len(arms) > 1
    judged = run.of_role("after") if compared else arms
    rules, gaps = rules_of(run, estimates, read), gaps_of(run)
    if compared:
        evidence = Evidence(run, tuple(rules), estimates, Scans.of(bundle, read), complete=not gaps)
        rules += [benefit_rule(arm, evidence) for arm in judged]
    decision = _with_gaps(policy.decide(rules, judged, compared=compared), gaps)
    alone = {arm: _with_gaps(policy.decide(rules, [arm], compared=compared), gaps).outcome for arm in judged}
    analysis = Analysis(
        title=run.title,
        decision=decision,
        headline="",
        arm_decisions=alone,
        caveats=(),
        levels=estimates.levels,
        comparisons=estimates.comparisons,
        margin=run.config.margin,
        margin_used=max((c.margin for c in estimates.comparisons), default=run.config.margin),
        plans=tuple(plan_uses(bundle, read.uses)),
        errors=tuple(ErrorGroup(*key, *own) for key, own in sorted(read.errors.items())),
        error_changes=estimates.error_changes,
        throughputs=estimates.throughputs,
    )
    medians = {(arm, *key): cell.medians for (arm, key), cell in read.cells.items()}
    return replace(analysis, headline=headline(run, analysis), caveats=caveats(run, analysis, read.rounds, medians))


def _rebased(run: RunRecord, baseline: str, read: RoundReading) -> tuple[Comparison, ...]:
    """Return the comparisons with another baseline; the control, a copy of `before`, is an arm like the others."""
    roles = dict.fromkeys(run.roles, "after") | {baseline: "before"}
    return compare(run.model_copy(update={"roles": roles}), read.cells).comparisons


def level_of(arm: str, key: Key, cell: SampleCell) -> Summary:
    """Return the estimates of one arm under one load level: percentiles, throughput and their intervals."""
    rounds = list(cell.blocks.values())
    lags, waits, services = (np.concatenate(parts) for parts in (cell.lags, cell.waits, cell.services))
    return Summary(
        arm=arm,
        scenario=key[0],
        item=key[1],
        n=cell.n,
        errors=cell.errors,
        sent=cell.outcomes.total(),
        p50=stats.median(list(cell.medians.values()), cell.n),
        p95=_tail(rounds, 95, cell.n),
        p99=_tail(rounds, 99, cell.n),
        maximum=cell.maximum,
        throughput=stats.typical(list(cell.rates.values()), cell.n),
        lag_p99=_percentile(lags, 99),
        healthy=not cell.faults,
        lag_p50=_percentile(lags, 50),
        wait_p50=_percentile(waits, 50),
        wait_p99=_percentile(waits, 99),
        service_p50=_percentile(services, 50),
        service_p99=_percentile(services, 99),
        dropped=cell.outcomes[DROPPED],
        attempts=cell.attempts / cell.stamped if cell.stamped else float("nan"),
        rounds=len(cell.blocks),
        fault=cell.fault,
        limited=cell.limited,
        unheld=cell.unheld,
    )


def _tail(rounds: Sequence[Times], q: float, n: int) -> stats.Interval | None:
    interval = stats.tail(rounds, q)
    return replace(interval, n=n) if interval else None


def _percentile(times: Times, q: float) -> float:
    return stats.percentile(times, q) if len(times) else float("nan")


def _with_gaps(decision: policy.Decision, reasons: Sequence[str]) -> policy.Decision:
    """Make the decision INCONCLUSIVE if a run has gaps; a NO-GO stays."""
    if decision.outcome is Outcome.BROKEN or not reasons:
        return decision
    return policy.Decision(Outcome.UNPROVEN, decision.rules, (*reasons, *decision.reasons))


def _require_rounds(bundle: Bundle, read: RoundReading) -> None:
    """Raise BundleError if a round of a complete block is missing."""
    run, rounds = bundle.run, {(r.block, r.scenario, r.arm) for r in read.rounds}
    before = run.of_role("before")[0]
    limited = {scenario.name: scenario.arms for scenario in run.scenarios}
    for block in run.blocks:
        arms = [*block.state, *([FLOOR] if before in block.state else [])]
        for scenario, arm in product(run.parameters.scenarios, arms):
            skipped = limited[scenario] and arm not in (*limited[scenario], FLOOR)
            if not skipped and (block.block, scenario, arm) not in rounds:
                lost = f"no round of {scenario} on {arm} in block {block.block}"
                raise BundleError(f"{bundle.path}: {lost}; expected every round of a complete block")


def _require_plans(bundle: Bundle) -> None:
    """Raise BundleError if a plan of an arm is missing."""
    run = bundle.run
    for arm, facts in run.arms.items():
        planned = run.queries if facts.plans is None else facts.plans
        for query in planned if facts.postgres else ():
            if bundle.plan(arm, query) is None:
                raise BundleError(f"{bundle.path}: no plan of {query} on {arm}; expected that of every query")
