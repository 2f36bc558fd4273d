"""From a bundle to its analysis. Pure apart from reading the bundle's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from perfkit import stats
from perfkit.analysis import policy
from perfkit.analysis.benefit import Evidence, benefit_rule
from perfkit.analysis.cells import Key, RoundReading, SampleCell, Times
from perfkit.analysis.changes import Changes, of_role
from perfkit.analysis.plan_use import Scans, plan_uses
from perfkit.analysis.results import Analysis, ErrorGroup, Summary
from perfkit.analysis.rules import left_open, rules_of
from perfkit.analysis.sentences import headline
from perfkit.analysis.weaknesses import cautions
from perfkit.bundle import FLOOR, Bundle, reading
from perfkit.errors import BundleError
from perfkit.load.samples import DROPPED


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
