"""The tables of a report: levels, thresholds, checks, errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfkit.analysis.policy import BENEFIT, Decision, Outcome, Rule
from perfkit.analysis.results import Analysis, Comparison, Summary
from perfkit.base import units
from perfkit.base.bundle import FLOOR, Bundle, Round
from perfkit.base.stats import Verdict, error_bound
from perfkit.show.html import MARKS, Cell, Table, marked

ALONE = {Decision.GO: "HOLDS", Decision.NO_GO: "BROKEN", Decision.INCONCLUSIVE: "UNPROVEN"}
"""What is said of one arm's thresholds, where there is no change to ship."""


def is_alone(run: Mapping[str, Any]) -> bool:
    """Whether a run measured one arm and compared it with nothing."""
    return list(run.get("roles", {}).values()) == ["before"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is shown: the bundle and what was concluded from it."""

    bundle: Bundle
    analysis: Analysis

    @property
    def run(self) -> Mapping[str, Any]:
        """The content of `run.json`."""
        return self.bundle.run

    @property
    def complete(self) -> bool:
        """Whether the run ended as planned; without that there is no GO."""
        return self.run.get("status") == "complete"

    @property
    def alone(self) -> bool:
        """Whether one arm was measured and compared with nothing."""
        return is_alone(self.run)

    @property
    def word(self) -> str:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE; of one arm alone HOLDS, BROKEN or UNPROVEN."""
        found = self.analysis.judgement.decision
        return ALONE[found] if self.alone else str(found)

    @property
    def decision(self) -> str:
        """The word; UNFINISHED where a run did not end and nothing is broken yet; of a rollback its own."""
        if found := self.run.get("rollback"):
            return str(found["word"])
        broken = self.analysis.judgement.decision is Decision.NO_GO
        return self.word if self.complete or broken else "UNFINISHED"

    @property
    def arms(self) -> list[str]:
        """Every arm in the order of the configuration, without the floor."""
        return list(self.run.get("parameters", {}).get("arms", ()))

    def role(self, arm: str) -> str:
        """before, control or after; `floor` for the floor."""
        return str(self.run.get("roles", {}).get(arm, FLOOR if arm == FLOOR else ""))

    def title(self, arm: str) -> str:
        """What an arm is, in words."""
        if arm == FLOOR:
            return "the client alone"
        return str(self.run.get("arms", {}).get(arm, {}).get("title", ""))

    @property
    def before(self) -> str:
        """The arm that every other is compared with."""
        return next((arm for arm in self.arms if self.role(arm) == "before"), "before")

    @property
    def after(self) -> list[str]:
        """The arms on which the decision rests."""
        return [arm for arm in self.arms if self.role(arm) == "after"]

    @property
    def queries(self) -> list[str]:
        """SQL queries of the workload by name."""
        return list(self.run.get("queries", {}))

    @property
    def loads(self) -> list[tuple[str, str]]:
        """(scenario, item) of every load level in the order of the configuration.

        Where there is a service, its requests; queries have a table of their own then, but not for one arm alone.
        """
        order = [s["name"] for s in self.run.get("scenarios", ())]
        every = [(level.scenario, level.item) for level in self.analysis.levels]
        requests = [pair for pair in every if pair[1] not in self.queries]
        found = dict.fromkeys(every if self.alone else requests or every)
        return sorted(found, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))

    def label(self, scenario: str) -> str:
        """What a load level offers, in words."""
        labels = {s["name"]: s.get("label", "") for s in self.run.get("scenarios", ())}
        return str(labels.get(scenario) or scenario)


# What was measured under load, as tables: load levels, thresholds, checks, errors.

_VERDICTS = {
    Verdict.FASTER: ("▼", "good"),
    Verdict.SLOWER: ("▲", "bad"),
    Verdict.EQUIVALENT: ("=", ""),
    Verdict.INCONCLUSIVE: ("?", ""),
    Verdict.INVALID: ("!", "unsure"),
}
STATES = {Outcome.HOLDS: "good", Outcome.BROKEN: "bad", Outcome.UNPROVEN: "unsure", Outcome.ABSENT: "neutral"}
"""How an outcome looks."""
_HAS = {Outcome.HOLDS: "yes", Outcome.ABSENT: "none", Outcome.UNPROVEN: "not proven", Outcome.BROKEN: "none"}


def glance(subject: Subject) -> Table:
    """p95 by load level and arm against its limit, or p50 against before: what a stakeholder asks first."""
    rules = {(r.scenario, r.item, r.arm): r for r in subject.analysis.judgement.rules if r.name == "p95"}
    arms = [arm for arm in subject.arms if subject.role(arm) != "control"]
    if not rules:
        return _medians(subject, arms)
    limit = next((r.limit for r in rules.values() if r.limit is not None), None)
    known = dict.fromkeys((scenario, item) for scenario, item, arm in rules if arm == subject.before)
    rows = tuple(
        (
            Cell(subject.label(scenario), f"{scenario}: {item}" if item else scenario),
            *(_judged(rules.get((scenario, item, arm))) for arm in arms),
        )
        for scenario, item in sorted(known, key=lambda pair: _place(subject, pair[0]))
    )
    said = f" (limit {units.significant(limit)} ms)" if limit is not None else ""
    caption = f"95 of 100 requests were answered within, ms{said}"
    note = (
        "≤ and ≥ are ends of the 95 % interval. ✓ even the upper end is within the limit; ✕ not even the lower; "
        "? neither, or too few samples."
    )
    return Table(caption, ("load", *arms), rows, frozenset(arms), note=note)


def _place(subject: Subject, scenario: str) -> int:
    """A load level's place in the order of the configuration."""
    order = [name for name, _ in subject.loads]
    return order.index(scenario) if scenario in order else len(order)


def _medians(subject: Subject, arms: list[str]) -> Table:
    several = len(subject.loads) > len({scenario for scenario, _ in subject.loads})
    rows = tuple(
        (
            Cell(subject.label(scenario), item if several else scenario),
            *(_median(subject, arm, scenario, item) for arm in arms),
        )
        for scenario, item in subject.loads
    )
    note = "In brackets: 95 % intervals; of the ratio where arms are compared."
    return Table("Half of the requests were answered within, ms", ("load", *arms), rows, frozenset(arms), note=note)


def _median(subject: Subject, arm: str, scenario: str, item: str) -> Cell:
    found, change = (
        subject.analysis.level(arm, scenario, item),
        subject.analysis.comparison(arm, scenario, "p50", item),
    )
    if found is None or found.p50 is None:
        return Cell(units.NONE, state="quiet")
    value, interval = units.estimate(found.p50)
    if change is None:
        return Cell(value, interval)
    verdict = compared(change)
    return Cell(value, f"{verdict.text} {verdict.note}", verdict.state)


def levels(subject: Subject) -> Table:
    """Every load level in every arm, compared with `before`; the control arm and the floor beside them."""
    metrics = ["p50", "p95", *(["p99"] if any(c.metric == "p99" for c in subject.analysis.comparisons) else [])]
    columns = (
        "load",
        "arm",
        "p50, ms",
        "p95, ms",
        "p99, ms",
        "per second",
        "requests",
        "errors",
        *(f"{metric} / before" for metric in metrics),
        "evidence",
    )
    several = len(subject.loads) > len({scenario for scenario, _ in subject.loads})
    rows = tuple(
        _level(subject, found, subject.label(scenario), f"{scenario}: {item}" if several else scenario, metrics)
        for scenario, item in subject.loads
        for arm in [*subject.arms, FLOOR]
        if (found := subject.analysis.level(arm, scenario, item))
    )
    used, declared = subject.analysis.margin_used, subject.analysis.margin
    widened = f", or where the control shows more, within that (up to {units.percent(used)})" if used > declared else ""
    note = (
        f"In brackets: 95 % intervals. Equivalent means within {units.percent(declared)}{widened}. "
        "The control is the same as before, so its ratios are what chance alone shows; "
        "the floor is the client against a target that does nothing."
    )
    return Table(
        "Response time by load level, before and after", columns, rows, frozenset(columns[2:-1]), 2, True, note
    )


def thresholds(subject: Subject) -> Table:
    """Every rule on every arm: value, bound, limit and result."""
    single = [rule for rule in subject.analysis.judgement.rules if not _compares(rule)]
    rules = {(r.name, r.scenario, r.item, r.arm): r for r in single}
    arms = [arm for arm in subject.arms if any(rule.arm == arm for rule in single)]
    names = list(dict.fromkeys(r.name for r in single))
    keys = dict.fromkeys((r.name, r.scenario, r.item) for r in single)
    ranked = sorted(keys, key=lambda key: (names.index(key[0]), _place(subject, key[1])))
    rows = [_rule(subject, [rules.get((*key, arm)) for arm in arms], *key) for key in ranked]
    if comparisons := [rule for rule in subject.analysis.judgement.rules if _compares(rule)]:
        counted = (_counted([rule for rule in comparisons if rule.arm == arm]) for arm in arms)
        rows.append((Cell("not slower"), Cell("all comparisons"), Cell("none"), *counted))
    note = (
        "✓ the whole interval is within the limit; ✕ none of it is; ? too little data to say. An error rate is ✓ where "
        "its estimate is within the limit; the true rate is below the number under it (95 % confidence)."
        f"{'' if subject.alone else ' ○ the change has no benefit. Only arms with a change decide.'}"
    )
    return Table(
        "Thresholds: what must hold",
        ("rule", "load", "limit", *arms),
        tuple(rows),
        frozenset(["limit", *arms]),
        2,
        True,
        note,
    )


def checks(subject: Subject) -> Table:
    """Functional checks in every arm: expected, and what came where that differs."""
    results: Mapping[str, list[dict[str, Any]]] = subject.run.get("checks", {})
    arms = [arm for arm in subject.arms if arm in results]
    named = {(c["group"], c["name"]): c["expected"] for arm in arms for c in results[arm]}
    by_arm = {(arm, c["group"], c["name"]): c for arm in arms for c in results[arm]}
    rows = tuple(
        (Cell(group), Cell(name, expected), *(_checked(by_arm.get((arm, group, name))) for arm in arms))
        for (group, name), expected in named.items()
    )
    return Table("Functional checks", ("group", "check, and what it expects", *arms), rows, frozenset(), 2, True)


def errors(subject: Subject) -> Table:
    """Unexpected outcomes with the first message; where there are none, below which rate the true one is."""
    rows = tuple(
        (
            Cell(e.arm),
            Cell(subject.label(e.scenario), e.scenario),
            Cell(e.outcome),
            Cell(units.count(e.count)),
            Cell(e.message),
        )
        for e in subject.analysis.errors
    )
    sent = {arm: sum(x.sent for x in subject.analysis.levels if x.arm == arm) for arm in subject.arms}
    least = min(sent.values(), default=0)
    none = "None; nothing was sent."
    if least:
        excluded = units.percent(error_bound(0, least))
        of = f"{units.count(least)} or more requests an arm"
        none = f"None in {of}. The true error rate is below {excluded} (95 % confidence)."
    columns = ("arm", "load", "outcome", "count", "first message")
    return Table("Unexpected outcomes", columns, rows, frozenset(["count"]), 1, False, "" if rows else none)


def load_cell(subject: Subject, scenario: str, item: str, wrong: str = "") -> Cell:
    """What a load level is called; with several requests or queries, which."""
    several = len({other for name, other in subject.loads if name == scenario}) > 1
    name = f"{scenario}: {item}" if several else scenario
    return Cell(subject.label(scenario), f"{name}; {wrong}" if wrong else name, "unsure" if wrong else "")


def compared(found: Comparison | None) -> Cell:
    """A verdict with its ratio and interval."""
    if found is None:
        return Cell("", state="quiet")
    mark, state = _VERDICTS[found.verdict]
    value, interval = units.ratio(found.ratio)
    note = "; ".join(part for part in (interval, found.qualification) if part)
    return Cell(f"{mark} {found.verdict} {value}", note, state)


def _level(subject: Subject, found: Summary, label: str, name: str, metrics: Sequence[str]) -> tuple[Cell, ...]:
    quiet = "quiet" if subject.role(found.arm) in (FLOOR, "control") else ""
    p50, p50_interval = units.estimate(found.p50)
    ratios = [
        compared(subject.analysis.comparison(found.arm, found.scenario, metric, found.item)) for metric in metrics
    ]
    return (
        Cell(label, name),
        Cell(found.arm, found.fault, quiet),
        Cell(p50, p50_interval, quiet),
        tail(found, 95, quiet),
        tail(found, 99, quiet),
        _throughput(subject, found, quiet),
        Cell(units.count(found.n), "", quiet),
        _failed(subject, found, quiet),
        *ratios,
        Cell(units.unbroken("under load"), f"{found.rounds} rounds", "quiet"),
    )


def _throughput(subject: Subject, found: Summary, state: str) -> Cell:
    """Requests per second, and the ratio to before: of a search with its verdict."""
    value, interval = units.estimate(found.throughput)
    place = (found.arm, found.scenario, found.item)
    if judged := subject.analysis.comparison(found.arm, found.scenario, "throughput", found.item):
        verdict = compared(judged)
        return Cell(value, f"{interval} {verdict.text} {verdict.note}".strip(), verdict.state)
    for change in subject.analysis.throughputs:
        if (change.after, change.scenario, change.item) == place:
            times, of_ratio = units.ratio(change.ratio)
            return Cell(value, f"{interval} {times} of before {of_ratio}".strip(), state)
    return Cell(value, interval, state)


def _failed(subject: Subject, found: Summary, state: str) -> Cell:
    """Unexpected outcomes; where their rate differs from that of before, by how much."""
    for change in subject.analysis.error_changes:
        if change.significant and (change.after, change.scenario, change.item) == (
            found.arm,
            found.scenario,
            found.item,
        ):
            points = [f"{100 * value:+.2g}" for value in (change.difference.value, change.difference.lo)]
            note = f"{points[0]} % points against before ({points[1]} to {100 * change.difference.hi:+.2g})"
            return Cell(units.count(found.errors), note, "bad" if change.difference.value > 0 else "good")
    return Cell(units.count(found.errors), "", "bad" if found.errors else state)


def tail(found: Summary, q: int, state: str) -> Cell:
    """A percentile with its interval, or the slowest request where the samples are too few for it."""
    estimate = found.p95 if q == 95 else found.p99
    if estimate is not None:
        return Cell(*units.estimate(estimate), state)
    return Cell(
        f"max {units.significant(found.maximum)}" if found.n else units.NONE, units.too_few(found.n, q), "quiet"
    )


def _judged(rule: Rule | None) -> Cell:
    if rule is None:
        return Cell(units.NONE, state="quiet")
    state = STATES[rule.outcome]
    mark = MARKS[state]
    if rule.name == BENEFIT:
        return Cell(f"{mark} {_HAS[rule.outcome]}", rule.reason, state)
    if rule.value is None:
        return Cell(mark, rule.reason, state)
    known = rule.bound is not None and math.isfinite(rule.bound)
    sign = "≥" if (rule.name == "throughput") is not (rule.outcome is Outcome.BROKEN) else "≤"
    bound = units.unbroken(f"{sign} {_with_unit(rule.bound, rule.unit)}" if known else "no bound")
    bound = "" if rule.bound is None else bound
    if rule.unit == "share" and rule.bound is not None:
        bound = units.unbroken(f"below {units.percent(rule.bound)}")
    if not bound and rule.outcome is not Outcome.HOLDS:
        bound = rule.text
    return Cell(f"{mark} {_with_unit(rule.value, rule.unit)}", bound, state)


def _with_unit(value: float | None, unit: str) -> str:
    if value is None:
        return units.NONE
    if unit == "share":
        return units.percent(value)
    unit = {"indexes": "index", "checks": "check"}.get(unit, unit) if value == 1 else unit
    return f"{units.count(value) if float(value).is_integer() else units.significant(value)} {unit}".strip()


def _compares(rule: Rule) -> bool:
    return "slower" in rule.name


def _rule(subject: Subject, by_arm: list[Rule | None], name: str, scenario: str, item: str) -> tuple[Cell, ...]:
    known = next(rule for rule in by_arm if rule)
    load = Cell(subject.label(scenario), f"{scenario}: {item}" if item else scenario) if scenario else Cell("whole run")
    return (Cell(name), load, Cell(_with_unit(known.limit, known.unit)), *(_judged(rule) for rule in by_arm))


def _counted(rules: list[Rule]) -> Cell:
    """Comparisons of one arm with before: how many are slower, how many could not be judged."""
    if not rules:
        return Cell(units.NONE, state="quiet")
    broken, unproven = (sum(r.outcome is o for r in rules) for o in (Outcome.BROKEN, Outcome.UNPROVEN))
    state = "bad" if broken else "unsure" if unproven else "good"
    return Cell(f"{MARKS[state]} {broken} of {len(rules)}", f"{unproven} invalid" if unproven else "", state)


def _checked(check: Mapping[str, Any] | None) -> Cell:
    if check is None:
        return Cell("not run", state="unsure")
    if check["passed"]:
        return marked("good", "passed", f"{units.significant(float(check['ms']))} ms")
    return marked("bad", "failed", f"got {check['got']}")


# what a column of health shows: its heading, the key, how rounds become one, how that is written
_Facts = tuple[tuple[str, str, Callable[[Sequence[float]], float], Callable[[float], str]], ...]
_HEALTH: _Facts = (
    ("schedule lag, p50, ms", "lag_p50_ms", max, units.significant),
    ("schedule lag, p99, ms", "lag_p99_ms", max, units.significant),
    ("busiest worker", "worker_cpu", max, units.percent),
    ("garbage collection, ms", "gc_ms", max, units.significant),
    ("looking parameters up, ms", "lookup_ms", max, units.significant),
    ("taken by other machines", "steal", max, units.percent),
    ("rounds with a checkpoint", "checkpoints", sum, units.count),
    ("rounds with autovacuum", "autovacuums", sum, units.count),
    ("pages read", "blocks_read", sum, units.count),
    ("pages found in memory", "blocks_hit", sum, units.count),
)


def health(subject: Subject, rounds: Sequence[Round]) -> Table:
    """By load level, the worst round's client and machine, and what the server did in all rounds."""
    own = [round_ for round_ in rounds if round_.arm == subject.before]
    known = [fact for fact in _HEALTH if any(fact[1] in round_.health for round_ in own)]
    columns = ("load", "rounds", *(heading for heading, *_ in known))
    rows = []
    for name in dict.fromkeys(scenario for scenario, _ in subject.loads):
        found = [round_.health for round_ in own if round_.scenario == name]
        figures = ([health[key] for health in found if key in health] for _, key, _, _ in known)
        cells = (Cell(show(join(f)) if f else units.NONE) for f, (*_, join, show) in zip(figures, known, strict=True))
        rows.append((load_cell(subject, name, ""), Cell(units.count(len(found))), *cells))
    limits = subject.run["config"]["limits"]
    lag = f"{units.significant(limits['lag_ms'])} ms or {units.percent(limits['lag_share'])} of the median"
    note = (
        "Of the worst round; checkpoints, autovacuums and pages of all. A round is invalid where the typical schedule "
        f"lag is above {lag}, whichever is larger, or a worker is busy above {units.percent(limits['worker_cpu'])}."
    )
    return Table("Health of the rounds", columns, tuple(rows), frozenset(columns[1:]), note=note)
