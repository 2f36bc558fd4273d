"""A bundle analysed: everything that a report shows, computed once.

`_level` makes the estimates of one arm under one load level: `perfkit.base.stats` computes their intervals from the
rounds (`median` for a p50, `tail` for a p95 or p99, `typical` for throughput).

"No gain" is claimed only where every comparison excludes a gain above `worth` by its own one-sided 95 % bound. That
is an intersection-union test (Berger 1982): what is rejected is "at least one comparison gains more than `worth`",
and if that is true of one comparison, this one is wrongly excluded in at most 5 % of runs, whatever the others show.
So the claim is false in at most 5 % of runs without a correction for the number of comparisons. *Faster* is the
reverse, a union of claims of which one suffices: there Holm's correction keeps the 5 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from perfkit.analysis import policy
from perfkit.analysis.caveats import cautions
from perfkit.analysis.policy import BENEFIT, Outcome, Rule, left_open, number, percent, rules_of, some
from perfkit.analysis.results import (
    Analysis,
    Changes,
    Comparison,
    ErrorGroup,
    PlanUse,
    Summary,
    headline,
    of_role,
    worth,
)
from perfkit.base import stats
from perfkit.base.bundle import FLOOR, Bundle, reading
from perfkit.base.errors import BundleError, PlanError
from perfkit.base.stats import Verdict
from perfkit.explain.comparison import IndexScan, fingerprint, in_words, scans
from perfkit.explain.plan import Plan, read_plan
from perfkit.load.samples import DROPPED
from perfkit.runs.rounds import Key, RoundReading, SampleCell, Times, Use


def plan_uses(bundle: Bundle, sent: Mapping[str, Sequence[Use]]) -> list[PlanUse]:
    """What each captured plan scans, and in how many executions the server's counters agree with it.

    `sent` are by arm the queries sent as SQL; those that a service executed are in the run's blocks.
    """
    found = []
    for arm in bundle.run["parameters"]["arms"]:
        plans = {query: bundle.plan(arm, query) for query in bundle.run["queries"]}
        read = {query: _plan(bundle, arm, query, plan) for query, plan in plans.items() if plan is not None}
        uses = [*sent.get(arm, ()), *_http_uses(arm, bundle.run)]
        for query, plan in read.items():
            executed, used = _used(query, scans(plan), uses)
            cost = (plan.execution_ms, int(plan.buffers), plan.rows)
            found.append(
                PlanUse(arm, query, in_words(plan), fingerprint(plan), *cost, executed, used, 0 < executed == used)
            )
    return found


@dataclass(frozen=True, slots=True)
class Scans:
    """What is known of the use of indexes, by arm: in captured plans, and by the server's counters in all rounds."""

    planned: Mapping[str, frozenset[str]]  # only where every query's plan was captured
    shapes: Mapping[str, Mapping[str, str]]  # fingerprints of the plans by query
    counted: Mapping[str, Mapping[str, int]]  # only where every execution was counted, by index

    @classmethod
    def of(cls, bundle: Bundle, read: RoundReading) -> Scans:
        """Raises BundleError for a plan that cannot be read."""
        run = bundle.run
        plans = {
            arm: {query: _plan(bundle, arm, query, own) for query in run["queries"] if (own := bundle.plan(arm, query))}
            for arm in run["parameters"]["arms"]
        }
        whole = {arm: own for arm, own in plans.items() if own.keys() == run["queries"].keys()}
        return cls(
            {arm: frozenset(_indexes(own.values())) for arm, own in whole.items()},
            {arm: {query: fingerprint(plan) for query, plan in own.items()} for arm, own in plans.items()},
            {arm: counted for arm in plans if (counted := _counted(arm, run, read)) is not None},
        )


def _indexes(plans: Iterable[Plan]) -> set[str]:
    """Every index that a plan names, whether that part of it was executed or not."""
    return {name for plan in plans for node in plan.nodes for name in node.texts("Index Name")}


def _counted(arm: str, run: Mapping[str, Any], read: RoundReading) -> Counter[str] | None:
    """Scans by index in all rounds and by the service between them; None where some were not counted.

    Nothing is counted on a server that others use, and not by query where one round sends several in an open model.
    """
    single = {s["name"] for s in run["scenarios"] if len(s["send"]) == 1}
    closed = {s["name"] for s in run["scenarios"] if not s.get("rate") and s.get("engine") != "pgbench"}
    queries = {s["name"] for s in run["scenarios"] if set(s["send"]) <= run["queries"].keys()}
    known = all(r.usage or r.scenario not in queries for r in read.rounds if r.arm == arm)
    if not run["blocks"] or not all(arm in block["http_scans"] for block in run["blocks"]):
        return None
    if not known or queries - single - closed:
        return None
    found = Counter[str]()
    for counts in (*(block["http_scans"][arm] for block in run["blocks"]), *(own for _, own in read.uses[arm])):
        found.update(counts)
    return found


def _plan(bundle: Bundle, arm: str, query: str, document: Any) -> Plan:
    try:
        return read_plan(document)
    except PlanError as error:
        raise BundleError(f"{bundle.path}/plans/{arm}/{query}.json: {error}") from None


def _http_uses(arm: str, run: Mapping[str, Any]) -> list[Use]:
    runs = {request["name"]: request["runs"] for request in run["config"]["request"]}
    uses: list[Use] = []
    for block in run["blocks"]:
        executions: Counter[str] = Counter()
        for item, count in block["http_requests"].get(arm, {}).items():
            executions.update(dict.fromkeys(runs.get(item, ()), count))
        uses.append((executions, block["http_scans"].get(arm, {})))
    return uses


def _used(query: str, expected: Sequence[IndexScan], uses: Iterable[Use]) -> tuple[int, int]:
    """How often a query was executed, and in how many of these the server counted every scan of its plan."""
    executed = used = 0
    for executions, counted in uses:
        count = executions.get(query, 0)
        executed += count
        used += min([count, *(counted.get(scan.counter, 0) for scan in expected)]) if expected else 0
    return executed, used


# Whether a change is good for anything: what it made faster or mended, or that there is no gain worth having. Pure.

_MENDED = ("p50", "p95", "p99", "throughput", "error rate", "capacity")  # thresholds that a change may mend


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the benefit of a run's arms is judged by; a run that is not `whole` proves no lack of it."""

    run: Mapping[str, Any]
    rules: tuple[Rule, ...]
    changes: Changes
    scans: Scans
    whole: bool = True

    def compared(self, arm: str) -> list[Comparison]:
        """An arm's comparisons with before."""
        return [c for c in self.changes.comparisons if c.after == arm]

    @property
    def worth(self) -> float:
        """The least gain that is worth having, as a share."""
        return worth(self.run["config"])

    def excluded(self, c: Comparison) -> bool:
        """Whether a comparison excludes a gain above that."""
        return excludes(c, self.worth, self.run["config"]["margin"])


def benefit_rule(arm: str, given: Evidence) -> Rule:
    """Whether one arm after the change has a benefit: the first that applies."""
    if given.run["config"].get("need", "benefit") == "none":
        return _rule(arm, Outcome.HOLDS, 'the configuration asks for no benefit (need = "none").')
    own = given.compared(arm)
    borne = [c for c in own if borne_out(c, given.run["config"]["margin"])]
    if borne:
        return _rule(arm, Outcome.HOLDS, f"{len(borne)} of {len(own)} comparisons are faster: {_shown(borne)}.")
    if mended := list(_mended(arm, given)):
        return _rule(arm, Outcome.HOLDS, f"a threshold that was broken before holds now: {some(mended)}.")
    if given.whole and not any(c.verdict is Verdict.FASTER for c in own):
        if _settled(arm, given) and own and all(given.excluded(c) for c in own):
            where = "its comparison" if len(own) == 1 else f"any of its {len(own)} comparisons"
            text = f"no gain above {percent(given.worth)} in {where} with before (95 % confidence)."
            return _rule(arm, Outcome.ABSENT, text)
        if unused := _unused(arm, given):
            which = f"the index {unused[0]}" if len(unused) == 1 else f"any of its {len(unused)} indexes"
            return _rule(arm, Outcome.ABSENT, f"no plan of this workload uses {which}. Other workloads may.")
    return _open(arm, own, given)


def borne_out(c: Comparison, declared: float) -> bool:
    """Whether a comparison is faster, and by more than the control arm, which changes nothing, shows there."""
    if c.verdict is not Verdict.FASTER or c.ratio is None:
        return False
    if c.margin <= declared:
        return True
    return c.ratio.lo > 1 + c.margin if c.metric == "throughput" else c.ratio.hi < 1 - c.margin


def excludes(c: Comparison, least: float, declared: float) -> bool:
    """Whether a comparison excludes a gain above the least that is worth having.

    It does not where the control arm alone shows as much, nor where a search ended before the target after did.
    """
    valid, bounded = c.verdict is not Verdict.INVALID, c.bound in ("", "at most")
    return valid and c.margin <= max(least, declared) and bounded and c.p_gain <= stats.ALPHA


def _rule(arm: str, outcome: Outcome, text: str, lacking: str = "") -> Rule:
    return Rule(arm, "", BENEFIT, None, None, None, "", outcome, f"{arm}: {text}", needs=lacking)


def _mended(arm: str, given: Evidence) -> Iterator[str]:
    """Thresholds that `before` broke by the whole interval, which no control held, and that hold now."""

    def place(rule: Rule) -> tuple[str, ...]:
        return (rule.name,) if rule.name == "throughput" else (rule.name, rule.scenario, rule.item)

    by_arm = {(rule.arm, *place(rule)): rule.outcome for rule in given.rules}
    before, controls = of_role(given.run, "before")[0], of_role(given.run, "control")
    for rule in given.rules:
        if rule.arm != arm or rule.name not in _MENDED or rule.outcome is not Outcome.HOLDS:
            continue
        held = any(by_arm.get((control, *place(rule))) is Outcome.HOLDS for control in controls)
        if by_arm.get((before, *place(rule))) is Outcome.BROKEN and not held:
            yield " of ".join(part for part in (rule.name, rule.scenario, rule.item) if part)


def _settled(arm: str, given: Evidence) -> bool:
    """Whether nothing else speaks for a gain, or against comparing: fewer failures, or a `before` that drifted."""
    fewer = any(e.after == arm and e.significant and e.difference.value < 0 for e in given.changes.errors)
    agree = (rule.outcome is Outcome.HOLDS for rule in given.rules if rule.arm == arm and rule.name == "befores agree")
    return not fewer and all(agree)


def _unused(arm: str, given: Evidence) -> Sequence[str]:
    """The indexes of an arm that adds nothing else, where its workload certainly uses none of them.

    Every query's plan was captured, none names one of them, and all are those of `before`; and the server counted no
    scan of them in any round, whatever plans other parameters or a prepared statement got there.
    """
    run, scans, before = given.run, given.scans, of_role(given.run, "before")[0]
    names = run.get("arms", {}).get(arm, {}).get("expected_indexes") or ()
    if run.get("changes", {}).get(arm) != ["indexes"] or arm not in scans.planned or arm not in scans.counted:
        return ()
    used = scans.planned[arm] | {name for name, count in scans.counted[arm].items() if count}
    alike = scans.shapes.get(arm) == scans.shapes.get(before)
    return names if alike and not used & set(names) else ()


def _open(arm: str, own: Sequence[Comparison], given: Evidence) -> Rule:
    """Neither: what is open, and about how many blocks would settle the last of it."""
    faster = [c for c in own if c.verdict is Verdict.FASTER]
    if faster:
        text = f"faster only by as much as the control, which changes nothing: {_shown(faster)}."
        return _rule(arm, Outcome.UNPROVEN, text, "another run, in which the control is like before.")
    open_ = [c for c in own if not given.excluded(c)]
    more = f"a gain above {percent(given.worth)} cannot be ruled out in {len(open_)} of {len(own)}"
    text = f"no comparison is faster, and {more}"
    if not own:
        return _rule(arm, Outcome.UNPROVEN, "nothing was compared with before.", "rounds of both.")
    if not open_:
        return _rule(arm, Outcome.UNPROVEN, f"no comparison is faster; whether {arm} gains nothing stays open.")
    ratios = [(c, c.ratio) for c in open_ if c.ratio and c.verdict is not Verdict.INVALID and not c.bound]
    blocks = [stats.blocks_for_gain(r, given.worth, more_is_better=c.metric == "throughput") for c, r in ratios]
    lacking = "complete blocks in which the client keeps up."
    if blocks and None not in blocks:
        lacking = f"about {max(filter(None, blocks))} blocks in all, if the spread stays as it is."
    elif blocks:
        lacking = "more than 1,000 blocks, or a larger `worth`."
    return _rule(arm, Outcome.UNPROVEN, f"{text}: {_shown(open_)}.", lacking)


def _shown(found: Sequence[Comparison]) -> str:
    """Comparisons with their ratios, the largest gain first."""
    return some(f"{c.scenario} {c.metric} of {c.item}{_times(c)}" for c in sorted(found, key=_size))


def _size(c: Comparison) -> float:
    if c.ratio is None:
        return 2.0
    return 1 / c.ratio.value if c.metric == "throughput" else c.ratio.value


def _times(c: Comparison) -> str:
    if c.ratio is None:
        return ""
    return f" (x{number(c.ratio.value)}, 95 % interval {number(c.ratio.lo)} to {number(c.ratio.hi)})"


# From a bundle to its analysis. Pure apart from reading the bundle's files.


def analyse(bundle: Bundle) -> Analysis:
    """Everything a bundle says. Raises BundleError where a file is damaged."""
    with reading(bundle.path):
        return _analyse(bundle)


def _analyse(bundle: Bundle) -> Analysis:
    run = bundle.run
    read = RoundReading.of(bundle.rounds(), run)
    _require_whole(bundle, read)
    levels = [_level(arm, key, cell) for (arm, key), cell in read.cells.items()]
    changes = Changes.of(run, read.cells)
    plans = plan_uses(bundle, read.uses)
    arms = list(run["parameters"]["arms"])
    compared = len(arms) > 1
    judged = of_role(run, "after") if compared else arms
    rules, partial = rules_of(run, levels, changes, read), left_open(run)
    if compared:
        evidence = Evidence(run, tuple(rules), changes, Scans.of(bundle, read), whole=not partial)
        rules += [benefit_rule(arm, evidence) for arm in judged]
    judgement = _partial(policy.decide(rules, judged, compared=compared), partial)
    alone = {arm: _partial(policy.decide(rules, [arm], compared=compared), partial).decision for arm in judged}
    found = Analysis(
        title=run["title"],
        judgement=judgement,
        headline="",
        arm_decisions=alone,
        cautions=(),
        levels=tuple(levels),
        comparisons=changes.comparisons,
        margin=run["config"]["margin"],
        margin_used=max((c.margin for c in changes.comparisons), default=run["config"]["margin"]),
        plans=tuple(plans),
        errors=tuple(ErrorGroup(*key, *own) for key, own in sorted(read.errors.items())),
        error_changes=changes.errors,
        throughputs=changes.throughputs,
    )
    medians = {(arm, *key): cell.medians for (arm, key), cell in read.cells.items()}
    return found.saying(headline(run, found), cautions(run, found, read.rounds, medians))


def _level(arm: str, key: Key, cell: SampleCell) -> Summary:
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
    found = stats.tail(rounds, q)
    return replace(found, n=n) if found else None


def _percentile(times: Times, q: float) -> float:
    return stats.percentile(times, q) if len(times) else float("nan")


def _partial(judgement: policy.Judgement, reasons: Sequence[str]) -> policy.Judgement:
    """A run that is not whole decides nothing for shipping; what it broke stays broken."""
    if judgement.decision is policy.Decision.NO_GO or not reasons:
        return judgement
    return policy.Judgement(policy.Decision.INCONCLUSIVE, judgement.rules, (*reasons, *judgement.reasons))


def _require_whole(bundle: Bundle, read: RoundReading) -> None:
    """Raise BundleError where a round of a block that was complete, or a plan of an arm, is gone."""
    run, found = bundle.run, {(r.block, r.scenario, r.arm) for r in read.rounds}
    before = of_role(run, "before")[0]
    limited = {scenario["name"]: scenario.get("arms") for scenario in run["scenarios"]}
    for block in run["blocks"]:
        arms = [*block["state"], *([FLOOR] if before in block["state"] else [])]
        for scenario, arm in product(run["parameters"]["scenarios"], arms):
            skipped = limited[scenario] and arm not in (*limited[scenario], FLOOR)
            if not skipped and (block["block"], scenario, arm) not in found:
                lost = f"no round of {scenario} on {arm} in block {block['block']}"
                raise BundleError(f"{bundle.path}: {lost}; expected every round of a complete block")
    for arm, facts in run.get("arms", {}).items():
        for query in facts.get("plans", run["queries"]) if facts["postgres"] else ():
            if bundle.plan(arm, query) is None:
                raise BundleError(f"{bundle.path}: no plan of {query} on {arm}; expected that of every query")
