"""From a bundle to its analysis. Pure apart from reading the bundle's files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from perfkit import policy, stats
from perfkit.bundle import FLOOR, Bundle, Round, reading
from perfkit.errors import BundleError, PlanError
from perfkit.explain.fingerprint import fingerprint
from perfkit.explain.plan import Plan, read_plan
from perfkit.explain.scans import Scan, in_words, scans
from perfkit.results import Analysis, Comparison, ErrorGroup, Level, PlanUse
from perfkit.sentences import headline, weaknesses

Key = tuple[str, str]  # scenario, item


@dataclass(slots=True)
class _Cell:
    """What one arm's rounds of one scenario and item hold, by block; latencies in ms."""

    blocks: dict[int, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)
    healthy: bool = True
    medians: dict[int, float] = field(default_factory=dict)  # of the blocks, once they are all there

    def p50s(self) -> dict[int, float]:
        if len(self.medians) != len(self.blocks):
            self.medians = {block: stats.percentile(times, 50) for block, times in self.blocks.items() if times}
        return self.medians

    @property
    def n(self) -> int:
        return sum(map(len, self.blocks.values()))

    @property
    def errors(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != "ok")


def analyse(bundle: Bundle) -> Analysis:
    """Everything a bundle says. Raises BundleError where a file is damaged."""
    with reading(bundle.path):
        return _analyse(bundle)


def _analyse(bundle: Bundle) -> Analysis:
    rounds = list(bundle.rounds())
    _require_whole(bundle, rounds)
    cells = _cells(rounds, bundle.run["config"]["limits"])
    levels = [_level(arm, key, cell) for (arm, key), cell in cells.items()]
    comparisons = _comparisons(bundle.run, cells)
    plans = _plan_uses(bundle, rounds)
    judgement = policy.decide(_rules(bundle.run, cells, levels, comparisons), _arms(bundle.run, "after"))
    judgement = _partial(judgement, bundle.run)
    found = Analysis(
        title=bundle.run["title"],
        judgement=judgement,
        headline="",
        arm_decisions=policy.which_arms_pass(judgement.rules, bundle.run["parameters"]["arms"]),
        weaknesses=(),
        levels=tuple(levels),
        comparisons=tuple(comparisons),
        margin=bundle.run["config"]["margin"],
        margin_used=max((c.margin for c in comparisons), default=bundle.run["config"]["margin"]),
        plans=tuple(plans),
        errors=tuple(_errors(rounds)),
    )
    return found.saying(headline(bundle.run, found), weaknesses(bundle.run, found))


def _cells(rounds: Iterable[Round], limits: Mapping[str, float]) -> dict[tuple[str, Key], _Cell]:
    cells: dict[tuple[str, Key], _Cell] = {}
    for round_ in rounds:
        c = round_.columns
        for item in dict.fromkeys(c["item"]):
            cell = cells.setdefault((round_.arm, (round_.scenario, item)), _Cell())
            own = [i for i, name in enumerate(c["item"]) if name == item]
            counted = [i for i in own if c["counted"][i] and c["outcome"][i] == "ok"]
            times = [(c["done"][i] - c["scheduled"][i]) / 1e6 for i in counted]
            cell.blocks[round_.block] = times
            cell.outcomes.update(c["outcome"][i] for i in own)
            cell.lags += [(c["started"][i] - c["scheduled"][i]) / 1e6 for i in counted]
            if times:
                cell.rates.append(len(times) / _seconds(c, counted))
                p50 = stats.percentile(times, 50)
                cell.healthy &= round_.arm == FLOOR or _healthy(round_.health, p50, limits)
    return cells


def _seconds(columns: Mapping[str, list[Any]], counted: Sequence[int]) -> float:
    """How long the counted requests took together, batch by batch."""
    spans: dict[int, list[int]] = defaultdict(list)
    for i in counted:
        spans[columns["batch"][i]] += [columns["scheduled"][i], columns["done"][i]]
    return sum(max(span) - min(span) for span in spans.values()) / 1e9


def _healthy(health: Mapping[str, float], p50: float, limits: Mapping[str, float]) -> bool:
    """Whether the client kept up: the typical request left on time, and no worker was busy all the time."""
    lag_limit = max(limits["lag_ms"], limits["lag_share"] * p50)
    return health["lag_p50_ms"] <= lag_limit and health["worker_cpu"] <= limits["worker_cpu"]


def _level(arm: str, key: Key, cell: _Cell) -> Level:
    rounds = list(cell.blocks.values())
    return Level(
        arm=arm,
        scenario=key[0],
        item=key[1],
        n=cell.n,
        errors=cell.errors,
        sent=cell.outcomes.total(),
        p50=stats.typical(list(cell.p50s().values()), cell.n),
        p95=stats.tail(rounds, 95),
        p99=stats.tail(rounds, 99),
        maximum=max((max(times) for times in rounds if times), default=float("nan")),
        throughput=stats.typical(cell.rates, cell.n),
        lag_p99=stats.percentile(cell.lags, 99) if cell.lags else float("nan"),
        healthy=cell.healthy,
    )


def _comparisons(run: Mapping[str, Any], cells: Mapping[tuple[str, Key], _Cell]) -> list[Comparison]:
    """Every arm against `before`, the control first: its intervals may widen the margin for the others."""
    before = _arms(run, "before")[0]
    keys = [key for arm, key in cells if arm == before]
    found: list[Comparison] = []
    control: dict[tuple[Key, str], list[stats.Ratio]] = defaultdict(list)
    for arm in [*_arms(run, "control"), *_arms(run, "after")]:
        pairs = [
            (key, metric, cells[before, key], cells[arm, key])
            for key in keys
            if (arm, key) in cells
            for metric in ("p50", "p95")
        ]
        judged = [(key, metric, b, a, _ratio(b, a, metric)) for key, metric, b, a in pairs]
        # A tail without the samples for it is no comparison; a median without a ratio is an invalid one.
        ratios = [item for item in judged if item[-1] is not None or item[1] == "p50"]
        adjusted = stats.holm([ratio.p if ratio else 1.0 for *_, ratio in ratios])
        for (key, metric, b, a, ratio), p in zip(ratios, adjusted, strict=True):
            declared = run["config"]["margin"]
            margin = stats.widened_margin(control[key, metric], declared)
            verdict = stats.verdict(ratio, p, margin, healthy=b.healthy and a.healthy, declared=declared)
            needed = None
            if ratio and verdict is stats.Verdict.INCONCLUSIVE:
                needed = stats.blocks_needed(ratio, margin)
            found.append(Comparison(before, arm, *key, metric, ratio, p, margin, verdict, needed))
            if ratio and arm in _arms(run, "control"):
                control[key, metric].append(ratio)
    return found


def _ratio(before: _Cell, after: _Cell, metric: str) -> stats.Ratio | None:
    """Paired by block; tails only where both arms have the samples for them."""
    medians, others = before.p50s(), after.p50s()
    blocks = sorted(medians.keys() & others.keys())
    if metric == "p50":
        return stats.ratio([medians[b] for b in blocks], [others[b] for b in blocks])
    if not (stats.supported(before.n, 95) and stats.supported(after.n, 95)):
        return None
    return stats.tail_ratio([before.blocks[b] for b in blocks], [after.blocks[b] for b in blocks], 95)


def _rules(
    run: Mapping[str, Any],
    cells: Mapping[tuple[str, Key], _Cell],
    levels: Sequence[Level],
    comparisons: Sequence[Comparison],
) -> list[policy.Rule]:
    """Every rule of every arm."""
    thresholds, requests = run["config"]["thresholds"], {r["name"] for r in run["config"]["request"]}
    requests &= {level.item for level in levels}
    items = {
        scenario: {level.item for level in levels if level.scenario == scenario}
        for scenario in run["parameters"]["scenarios"]
    }
    rules: list[policy.Rule] = []
    for arm in run["parameters"]["arms"]:
        own = [level for level in levels if level.arm == arm]
        for level in own if thresholds["p95_ms"] else ():
            if not requests or level.item in requests:  # with a service, its users' load is what must hold
                item = level.item if len(items[level.scenario]) > 1 else ""
                limit = thresholds["p95_ms"]
                rules.append(policy.latency_rule(arm, level.scenario, 95, level.p95, limit, level.n, item))
        errors, sent = sum(level.errors for level in own), sum(level.sent for level in own)
        rules.append(policy.error_rule(arm, errors, sent, thresholds["error_rate"]))
        if checks := run["checks"].get(arm):
            failed = [check["name"] for check in checks if not check["passed"]]
            rules.append(policy.checks_rule(arm, len(checks) - len(failed), len(checks), failed))
        facts = run.get("arms", {}).get(arm, {})
        if facts.get("expected_indexes"):
            valid = [index["name"] for index in facts["indexes"] if index["valid"]]
            rules.append(policy.index_rule(arm, facts["expected_indexes"], valid))
        rules += [
            policy.comparison_rule(arm, f"{c.scenario}: {c.item}", c.metric, c.verdict, c.ratio)
            for c in comparisons
            if c.after == arm
        ]
        if run.get("order") == "sequential" and run["roles"][arm] == "after":
            rules.append(_agreement(arm, [c for c in comparisons if c.after in _arms(run, "control")]))
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
    if left_out := run.get("left_out", {}).get("scenarios"):
        reasons.append(f"not every load level was measured: {', '.join(left_out)} left out")
    if judgement.decision is policy.Decision.NO_GO or not reasons:
        return judgement
    return policy.Judgement(policy.Decision.INCONCLUSIVE, judgement.rules, (*reasons, *judgement.reasons))


def _require_whole(bundle: Bundle, rounds: Iterable[Round]) -> None:
    """Raise BundleError where a round of a block that was complete, or a plan of an arm, is gone."""
    run, found = bundle.run, {(r.block, r.scenario, r.arm) for r in rounds}
    before = _arms(run, "before")[0]
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


def _errors(rounds: Iterable[Round]) -> list[ErrorGroup]:
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for round_ in rounds:
        for outcome, detail in zip(round_.columns["outcome"], round_.columns["detail"], strict=True):
            if outcome != "ok":
                groups[round_.arm, round_.scenario, outcome].append(detail)
    return [ErrorGroup(*key, len(details), details[0]) for key, details in sorted(groups.items())]


def _plan_uses(bundle: Bundle, rounds: Sequence[Round]) -> list[PlanUse]:
    """What each captured plan scans, and in how many executions the server's counters agree with it."""
    found = []
    for arm in bundle.run["parameters"]["arms"]:
        plans = {query: bundle.plan(arm, query) for query in bundle.run["queries"]}
        read = {query: _plan(bundle, arm, query, plan) for query, plan in plans.items() if plan is not None}
        uses = [*_sql_uses(arm, rounds), *_http_uses(arm, bundle.run)]
        for query, plan in read.items():
            executed, used = _used(query, scans(plan), uses)
            cost = (plan.execution_ms, int(plan.buffers), plan.rows)
            found.append(
                PlanUse(arm, query, in_words(plan), fingerprint(plan), *cost, executed, used, 0 < executed == used)
            )
    return found


def _plan(bundle: Bundle, arm: str, query: str, document: Any) -> Plan:
    try:
        return read_plan(document)
    except PlanError as error:
        raise BundleError(f"{bundle.path}/plans/{arm}/{query}.json: {error}") from None


Use = tuple[Mapping[str, int], Mapping[str, int]]  # executions by query, scans by counter


def _sql_uses(arm: str, rounds: Iterable[Round]) -> list[Use]:
    return [
        ({query: _succeeded(round_)[query]}, scans)
        for round_ in rounds
        if round_.arm == arm
        for query, scans in round_.usage.items()
    ]


def _succeeded(round_: Round) -> Counter[str]:
    """Requests answered as expected, by item."""
    items, outcomes = round_.columns["item"], round_.columns["outcome"]
    return Counter(item for item, outcome in zip(items, outcomes, strict=True) if outcome == "ok")


def _http_uses(arm: str, run: Mapping[str, Any]) -> list[Use]:
    runs = {request["name"]: request["runs"] for request in run["config"]["request"]}
    uses: list[Use] = []
    for block in run["blocks"]:
        executions: Counter[str] = Counter()
        for item, count in block["http_requests"].get(arm, {}).items():
            executions.update(dict.fromkeys(runs.get(item, ()), count))
        uses.append((executions, block["http_scans"].get(arm, {})))
    return uses


def _used(query: str, expected: Sequence[Scan], uses: Iterable[Use]) -> tuple[int, int]:
    """How often a query was executed, and in how many of these the server counted every scan of its plan."""
    executed = used = 0
    for executions, counted in uses:
        count = executions.get(query, 0)
        executed += count
        used += min([count, *(counted.get(scan.counter, 0) for scan in expected)]) if expected else 0
    return executed, used


def _arms(run: Mapping[str, Any], role: str) -> list[str]:
    """Arms of one role, in the run's order."""
    return [name for name in run["parameters"]["arms"] if run["roles"][name] == role]
