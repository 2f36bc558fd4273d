"""Every rule that a run's numbers are held against, for every arm. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from perfkit.analysis import policy
from perfkit.analysis.cells import RoundReading
from perfkit.analysis.changes import Changes, of_role
from perfkit.analysis.policy import Rule
from perfkit.analysis.results import Comparison, Summary
from perfkit.stats import Verdict

_MESSAGE = 100  # characters of a server's or service's own words in a reason


def rules_of(run: Mapping[str, Any], levels: Sequence[Summary], changes: Changes, read: RoundReading) -> list[Rule]:
    """The rules of every arm in the run's order, but for those on the benefit."""
    found: list[Rule] = []
    for arm in run["parameters"]["arms"]:
        own = [level for level in levels if level.arm == arm]
        found += _of_levels(run, arm, levels)
        found.append(_errors(run, arm, read))
        found += _searches(run, arm, own)
        found += _facts(run, arm)
        found += _compared(run, arm, changes)
    return found


def left_open(run: Mapping[str, Any]) -> list[str]:
    """Why a run decides nothing for shipping: it did not end, or left load levels out."""
    reasons = []
    if run["status"] != "complete":
        reasons.append(f"the run is {run['status']}: {run.get('message') or 'it has not ended'}")
    alone = len(run["parameters"]["arms"]) == 1  # what was asked for is judged: nothing is to be shipped
    if (left_out := run.get("left_out", {}).get("scenarios")) and not alone:
        reasons.append(f"not every load level was measured: {', '.join(left_out)} left out")
    return reasons


def _of_levels(run: Mapping[str, Any], arm: str, levels: Sequence[Summary]) -> Iterator[Rule]:
    """Latencies, throughput and the client's health."""
    thresholds, searches = run["config"]["thresholds"], _rates(run)
    requests = {r["name"] for r in run["config"]["request"]} & {level.item for level in levels}
    own = [level for level in levels if level.arm == arm]
    users = [level for level in own if not requests or level.item in requests]  # with a service, theirs is the load
    sent = {level.scenario: {other.item for other in levels if other.scenario == level.scenario} for level in users}
    names = {level: level.item if len(sent[level.scenario]) > 1 else "" for level in users}
    for q, level in product((50, 95, 99), users):
        # what held in a search held within the limit
        if (limit := thresholds.get(f"p{q}_ms")) and level.scenario not in searches:
            known = (getattr(level, f"p{q}"), limit, level.n, names[level], level.rounds)
            yield policy.latency_rule(arm, level.scenario, q, *known)
    if (least := thresholds.get("throughput")) and users:
        best = max(users, key=lambda level: level.throughput.value if level.throughput else 0.0)
        yield policy.throughput_rule(arm, best.scenario, best.throughput, least, names[best])
    if len(run["parameters"]["arms"]) == 1:  # with several, it is the comparison that is invalid
        yield from (policy.health_rule(arm, level.scenario, level.fault) for level in own if level.fault)


def _errors(run: Mapping[str, Any], arm: str, read: RoundReading) -> Rule:
    """By round: the items of one load level fail together."""
    rounds: dict[tuple[str, int], tuple[int, int]] = {}
    for (own, (scenario, _)), cell in read.cells.items():
        for block, (failed, sent) in cell.counts.items() if own == arm else ():
            before = rounds.get((scenario, block), (0, 0))
            rounds[scenario, block] = before[0] + failed, before[1] + sent
    kinds: dict[str, tuple[int, str]] = {}
    for (own, _, outcome), (count, message) in read.errors.items():
        if own == arm:
            so_far, first = kinds.get(outcome, (0, message))
            kinds[outcome] = so_far + count, first
    ranked = sorted(kinds.items(), key=lambda kind: -kind[1][0])
    said = [_kind(outcome, count, message) for outcome, (count, message) in ranked]
    return policy.error_rule(arm, list(rounds.values()), run["config"]["thresholds"]["error_rate"], said)


def _kind(outcome: str, count: int, message: str) -> str:
    """How often what was answered: "1 x SQLSTATE 57P01 (terminating connection due to administrator command)"."""
    name = outcome.replace("sqlstate_", "SQLSTATE ")
    return f"{count:,} x {name}" + (f" ({message[:_MESSAGE]})" if message else "")


def _searches(run: Mapping[str, Any], arm: str, own: Sequence[Summary]) -> Iterator[Rule]:
    for scenario, rate in _rates(run).items():
        if searched := [level for level in own if level.scenario == scenario]:
            yield policy.capacity_rule(arm, scenario, rate, searched[0].rounds, searched[0].unheld)


def _rates(run: Mapping[str, Any]) -> dict[str, float]:
    """The rate that each search begins with, by scenario."""
    return {s["name"]: s["rate"] for s in run["scenarios"] if s.get("search")}


def _facts(run: Mapping[str, Any], arm: str) -> Iterator[Rule]:
    """What was looked at once: functional checks and indexes."""
    if checks := run["checks"].get(arm):
        failed = [check["name"] for check in checks if not check["passed"]]
        yield policy.checks_rule(arm, len(checks) - len(failed), len(checks), failed)
    facts = run.get("arms", {}).get(arm, {})
    if facts.get("expected_indexes"):
        valid = [index["name"] for index in facts["indexes"] if index["valid"]]
        yield policy.index_rule(arm, facts["expected_indexes"], valid)


def _compared(run: Mapping[str, Any], arm: str, changes: Changes) -> Iterator[Rule]:
    for c in changes.comparisons:
        if c.after == arm:
            where = f"{c.scenario}: {c.item}"
            yield policy.comparison_rule(arm, where, c.metric, c.verdict, c.ratio, c.qualification)
    for e in changes.errors:
        if e.after == arm:
            item = e.item if len({c.item for c in changes.comparisons if c.scenario == e.scenario}) > 1 else ""
            yield policy.more_errors_rule(arm, e.scenario, e.difference, e.significant, item)
    if run.get("order") == "sequential" and run["roles"][arm] == "after":
        yield _agreement(arm, [c for c in changes.comparisons if c.after in of_role(run, "control")])


def _agreement(arm: str, again: Sequence[Comparison]) -> Rule:
    drifted = [
        f"{c.scenario} {c.metric} of {c.item} ({c.ratio.lo:.3g} to {c.ratio.hi:.3g})"
        for c in again
        if c.ratio and c.verdict in (Verdict.FASTER, Verdict.SLOWER)
    ]
    return policy.agreement_rule(arm, sum(c.ratio is not None for c in again), drifted)
