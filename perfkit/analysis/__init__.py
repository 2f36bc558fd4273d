"""From a bundle to its analysis. Pure apart from reading the bundle's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from perfkit import stats
from perfkit.analysis import policy
from perfkit.analysis.cells import Cell, Key, Reading, Times
from perfkit.analysis.changes import Changes, of_role
from perfkit.analysis.plan_use import plan_uses
from perfkit.analysis.results import Analysis, Comparison, ErrorGroup, Level
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
    read = Reading.of(bundle.rounds(), run)
    _require_whole(bundle, read)
    levels = [_level(arm, key, cell) for (arm, key), cell in read.cells.items()]
    changes = Changes.of(run, read.cells)
    plans = plan_uses(bundle, read.uses)
    arms = list(run["parameters"]["arms"])
    judgement = policy.decide(_rules(run, levels, changes), arms if len(arms) == 1 else of_role(run, "after"))
    judgement = _partial(judgement, run)
    found = Analysis(
        title=run["title"],
        judgement=judgement,
        headline="",
        arm_decisions=policy.which_arms_pass(judgement.rules, arms),
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


def _level(arm: str, key: Key, cell: Cell) -> Level:
    rounds = list(cell.blocks.values())
    lags, waits, services = (np.concatenate(parts) for parts in (cell.lags, cell.waits, cell.services))
    return Level(
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


def _rules(
    run: Mapping[str, Any],
    levels: Sequence[Level],
    changes: Changes,
) -> list[policy.Rule]:
    """Every rule of every arm."""
    thresholds, requests = run["config"]["thresholds"], {r["name"] for r in run["config"]["request"]}
    requests &= {level.item for level in levels}
    items = {
        scenario: {level.item for level in levels if level.scenario == scenario}
        for scenario in run["parameters"]["scenarios"]
    }
    searches = {s["name"]: s["rate"] for s in run["scenarios"] if s.get("search")}
    rules: list[policy.Rule] = []
    for arm in run["parameters"]["arms"]:
        own = [level for level in levels if level.arm == arm]
        users = [level for level in own if not requests or level.item in requests]  # with a service, theirs is the load
        names = {level: level.item if len(items[level.scenario]) > 1 else "" for level in users}
        for q, level in product((50, 95, 99), users):
            # what held in a search held within the limit
            if (limit := thresholds.get(f"p{q}_ms")) and level.scenario not in searches:
                known = (getattr(level, f"p{q}"), limit, level.n, names[level], level.rounds)
                rules.append(policy.latency_rule(arm, level.scenario, q, *known))
        if (least := thresholds.get("throughput")) and users:
            best = max(users, key=lambda level: level.throughput.value if level.throughput else 0.0)
            rules.append(policy.throughput_rule(arm, best.scenario, best.throughput, least, names[best]))
        if len(run["parameters"]["arms"]) == 1:  # with several, it is the comparison that is invalid
            rules += [policy.health_rule(arm, level.scenario, level.fault) for level in own if level.fault]
        errors, sent = sum(level.errors for level in own), sum(level.sent for level in own)
        rules.append(policy.error_rule(arm, errors, sent, thresholds["error_rate"]))
        for scenario, rate in searches.items():
            if searched := [level for level in own if level.scenario == scenario]:
                first = searched[0]
                rules.append(policy.capacity_rule(arm, scenario, rate, first.rounds, first.unheld))
        if checks := run["checks"].get(arm):
            failed = [check["name"] for check in checks if not check["passed"]]
            rules.append(policy.checks_rule(arm, len(checks) - len(failed), len(checks), failed))
        facts = run.get("arms", {}).get(arm, {})
        if facts.get("expected_indexes"):
            valid = [index["name"] for index in facts["indexes"] if index["valid"]]
            rules.append(policy.index_rule(arm, facts["expected_indexes"], valid))
        rules += [
            policy.comparison_rule(arm, f"{c.scenario}: {c.item}", c.metric, c.verdict, c.ratio, c.qualification)
            for c in changes.comparisons
            if c.after == arm
        ]
        rules += [
            policy.more_errors_rule(
                arm, e.scenario, e.difference, e.significant, e.item if len(items[e.scenario]) > 1 else ""
            )
            for e in changes.errors
            if e.after == arm
        ]
        if run.get("order") == "sequential" and run["roles"][arm] == "after":
            rules.append(_agreement(arm, [c for c in changes.comparisons if c.after in of_role(run, "control")]))
    return rules


def _agreement(arm: str, again: Sequence[Comparison]) -> policy.Rule:
    drifted = [
        f"{c.scenario} {c.metric} of {c.item} ({c.ratio.lo:.3g} to {c.ratio.hi:.3g})"
        for c in again
        if c.ratio and c.verdict in (stats.Verdict.FASTER, stats.Verdict.SLOWER)
    ]
    return policy.agreement_rule(arm, sum(c.ratio is not None for c in again), drifted)


def _partial(judgement: policy.Judgement, run: Mapping[str, Any]) -> policy.Judgement:
    """A run that did not end, or left load levels out, decides nothing for shipping; what it broke stays broken."""
    reasons = []
    if run["status"] != "complete":
        reasons.append(f"the run is {run['status']}: {run.get('message') or 'it has not ended'}")
    alone = len(run["parameters"]["arms"]) == 1  # what was asked for is judged: nothing is to be shipped
    if (left_out := run.get("left_out", {}).get("scenarios")) and not alone:
        reasons.append(f"not every load level was measured: {', '.join(left_out)} left out")
    if judgement.decision is policy.Decision.NO_GO or not reasons:
        return judgement
    return policy.Judgement(policy.Decision.INCONCLUSIVE, judgement.rules, (*reasons, *judgement.reasons))


def _require_whole(bundle: Bundle, read: Reading) -> None:
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
