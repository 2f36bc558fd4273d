"""The tables of a report: p95 at a glance, load levels, thresholds, checks, errors, health of the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perfkit.analysis.policy import BENEFIT, Rule
from perfkit.analysis.results import Analysis, Comparison, Summary
from perfkit.base import units
from perfkit.base.judgement import MARKS, Outcome, Verdict
from perfkit.base.stats import error_bound
from perfkit.runs.records import FLOOR, Bundle, CheckResult, Round, RunRecord
from perfkit.show.html import Cell, Table, marked


@dataclass(frozen=True, slots=True)
class Subject:
    """What a report shows: a bundle and its analysis."""

    bundle: Bundle
    analysis: Analysis

    @property
    def run(self) -> RunRecord:
        """The content of `run.json`."""
        return self.bundle.run

    @property
    def complete(self) -> bool:
        """Whether the run finished as planned; a GO needs that."""
        return self.run.status == "complete"

    @property
    def alone(self) -> bool:
        """Whether the run measured a single arm, without a comparison."""
        return self.run.alone

    @property
    def word(self) -> str:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE; for a single arm HOLDS, BROKEN or UNPROVEN."""
        outcome = self.analysis.decision.outcome
        return outcome.upper() if self.alone else outcome.decision

    @property
    def decision(self) -> str:
        """The word; UNFINISHED if a run did not finish and nothing is broken yet; a rollback has its own word."""
        if rollback := self.run.rollback:
            return str(rollback["word"])
        broken = self.analysis.decision.outcome is Outcome.BROKEN
        return self.word if self.complete or broken else "UNFINISHED"

    @property
    def arms(self) -> list[str]:
        """The arms in the order of the configuration, without the floor."""
        return self.run.parameters.arms

    def role(self, arm: str) -> str:
        """Return before, control, after or floor."""
        return self.run.roles.get(arm, FLOOR if arm == FLOOR else "")

    def title(self, arm: str) -> str:
        """Return an arm's title."""
        if arm == FLOOR:
            return "the client alone"
        return self.run.arm(arm).title

    @property
    def before(self) -> str:
        """The arm that the others are compared with."""
        return next((arm for arm in self.arms if self.role(arm) == "before"), "before")

    @property
    def after(self) -> list[str]:
        """The arms that decide."""
        return [arm for arm in self.arms if self.role(arm) == "after"]

    @property
    def queries(self) -> list[str]:
        """SQL queries of the workload by name."""
        return list(self.run.queries)

    @property
    def loads(self) -> list[tuple[str, str]]:
        """(scenario, item) of every load level in the order of the configuration.

        With a service, only its requests: queries have a table of their own, except in a run of one arm.
        """
        order = [scenario.name for scenario in self.run.scenarios]
        every = [(level.scenario, level.item) for level in self.analysis.levels]
        requests = [pair for pair in every if pair[1] not in self.queries]
        shown = dict.fromkeys(every if self.alone else requests or every)
        return sorted(shown, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))

    def label(self, scenario: str) -> str:
        """Return a load level's label."""
        labels = {s.name: s.label for s in self.run.scenarios}
        return labels.get(scenario) or scenario


_VERDICTS = {
    Verdict.FASTER: ("▼", "good"),
    Verdict.SLOWER: ("▲", "bad"),
    Verdict.EQUIVALENT: ("=", ""),
    Verdict.INCONCLUSIVE: ("?", ""),
    Verdict.INVALID: ("!", "unsure"),
}
_HAS = {Outcome.HOLDS: "yes", Outcome.ABSENT: "none", Outcome.UNPROVEN: "not proven", Outcome.BROKEN: "none"}


def glance(subject: Subject) -> Table:
    """Return the p95 by load level and arm against its limit, or the p50 against before: a reader's first question."""
    rules = {(r.scenario, r.item, r.arm): r for r in subject.analysis.decision.rules if r.name == "p95"}
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
        for scenario, item in sorted(known, key=lambda pair: _rank(subject, pair[0]))
    )
    limit_text = f" (limit {units.significant(limit)} ms)" if limit is not None else ""
    caption = f"95 of 100 requests were answered within, ms{limit_text}"
    note = (
        "≤ and ≥ mark the bounds of the 95 % interval. ✓ even the upper bound is within the limit; ✕ not even the "
        "lower bound is; ? only one of them is, or there are too few samples."
    )
    return Table(caption, ("load", *arms), rows, frozenset(arms), note=note)


def _rank(subject: Subject, scenario: str) -> int:
    """Return a load level's rank in the order of the configuration."""
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
    note = "Brackets: 95 % confidence intervals (of the ratio, in comparisons)."
    return Table("Half of the requests were answered within, ms", ("load", *arms), rows, frozenset(arms), note=note)


def _median(subject: Subject, arm: str, scenario: str, item: str) -> Cell:
    level, change = (
        subject.analysis.level(arm, scenario, item),
        subject.analysis.comparison(arm, scenario, "p50", item),
    )
    if level is None or level.p50 is None:
        return Cell(units.NONE, state="quiet")
    value, interval = units.estimate(level.p50)
    if change is None:
        return Cell(value, interval)
    verdict = compared(change)
    return Cell(value, f"{verdict.text} {verdict.note}", verdict.state)


def levels(subject: Subject) -> Table:
    """Return every load level in every arm, compared with `before`, with the control and the floor."""
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
    widened = (
        f", or within the control's difference if that is larger (up to {units.percent(used)})"
        if used > declared
        else ""
    )
    note = (
        f"Brackets: 95 % confidence intervals. Equivalent means within {units.percent(declared)}{widened}. "
        "The control is identical to before, so its ratios show what chance does; "
        "the floor is the client against a target that does nothing."
    )
    return Table(
        "Response time by load level, before and after", columns, rows, frozenset(columns[2:-1]), 2, True, note
    )


def thresholds(subject: Subject) -> Table:
    """Return every rule on every arm: value, bound, limit and result."""
    single = [rule for rule in subject.analysis.decision.rules if not _compares(rule)]
    rules = {(r.name, r.scenario, r.item, r.arm): r for r in single}
    arms = [arm for arm in subject.arms if any(rule.arm == arm for rule in single)]
    names = list(dict.fromkeys(r.name for r in single))
    keys = dict.fromkeys((r.name, r.scenario, r.item) for r in single)
    ranked = sorted(keys, key=lambda key: (names.index(key[0]), _rank(subject, key[1])))
    rows = [_rule(subject, [rules.get((*key, arm)) for arm in arms], *key) for key in ranked]
    if comparisons := [rule for rule in subject.analysis.decision.rules if _compares(rule)]:
        counted = (_counted([rule for rule in comparisons if rule.arm == arm]) for arm in arms)
        rows.append((Cell("not slower"), Cell("all comparisons"), Cell("none"), *counted))
    note = (
        "✓ the whole interval is within the limit; ✕ no part of it is; ? too little data to decide. An error rate is ✓ "
        "if its estimate is within the limit; the true rate is below the number under it (95 % confidence)."
        f"{'' if subject.alone else ' ○ the change has no benefit. Only arms with a change count for the decision.'}"
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
    """Return the functional checks in every arm: the expected result, and the actual one if it differs."""
    results = subject.run.checks
    arms = [arm for arm in subject.arms if arm in results]
    named = {(c.group, c.name): c.expected for arm in arms for c in results[arm]}
    by_arm = {(arm, c.group, c.name): c for arm in arms for c in results[arm]}
    rows = tuple(
        (Cell(group), Cell(name, expected), *(_checked(by_arm.get((arm, group, name))) for arm in arms))
        for (group, name), expected in named.items()
    )
    return Table("Functional checks", ("group", "check and expected result", *arms), rows, frozenset(), 2, True)


def errors(subject: Subject) -> Table:
    """Return the unexpected outcomes with the first message; without any, the bound of the true error rate."""
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
    none = "None; no request was sent."
    if least:
        excluded = units.percent(error_bound(0, least))
        of = f"{units.count(least)} or more requests per arm"
        none = f"None in {of}. The true error rate is below {excluded} (95 % confidence)."
    columns = ("arm", "load", "outcome", "count", "first message")
    return Table("Unexpected outcomes", columns, rows, frozenset(["count"]), 1, False, "" if rows else none)


def load_cell(subject: Subject, scenario: str, item: str, fault: str = "") -> Cell:
    """Return the cell that names a load level, and its request or query if there are several."""
    several = len({other for name, other in subject.loads if name == scenario}) > 1
    name = f"{scenario}: {item}" if several else scenario
    return Cell(subject.label(scenario), f"{name}; {fault}" if fault else name, "unsure" if fault else "")


def compared(comparison: Comparison | None) -> Cell:
    """Return a verdict with its ratio and interval."""
    if comparison is None:
        return Cell("", state="quiet")
    mark, state = _VERDICTS[comparison.verdict]
    value, interval = units.ratio(comparison.ratio)
    note = "; ".join(part for part in (interval, comparison.qualification) if part)
    return Cell(f"{mark} {comparison.verdict} {value}", note, state)


def _level(subject: Subject, level: Summary, label: str, name: str, metrics: Sequence[str]) -> tuple[Cell, ...]:
    quiet = "quiet" if subject.role(level.arm) in (FLOOR, "control") else ""
    p50, p50_interval = units.estimate(level.p50)
    ratios = [
        compared(subject.analysis.comparison(level.arm, level.scenario, metric, level.item)) for metric in metrics
    ]
    return (
        Cell(label, name),
        Cell(level.arm, level.fault, quiet),
        Cell(p50, p50_interval, quiet),
        tail(level, 95, quiet),
        tail(level, 99, quiet),
        _throughput(subject, level, quiet),
        Cell(units.count(level.n), "", quiet),
        _failed(subject, level, quiet),
        *ratios,
        Cell(units.unbroken("under load"), f"{level.rounds} rounds", "quiet"),
    )


def _throughput(subject: Subject, level: Summary, state: str) -> Cell:
    """Return requests per second and the ratio to before; for a search, with its verdict."""
    value, interval = units.estimate(level.throughput)
    if judged := subject.analysis.comparison(level.arm, level.scenario, "throughput", level.item):
        verdict = compared(judged)
        return Cell(value, f"{interval} {verdict.text} {verdict.note}".strip(), verdict.state)
    for change in subject.analysis.throughputs:
        if (change.after, change.scenario, change.item) == (level.arm, level.scenario, level.item):
            times, of_ratio = units.ratio(change.ratio)
            return Cell(value, f"{interval} {times} of before {of_ratio}".strip(), state)
    return Cell(value, interval, state)


def _failed(subject: Subject, level: Summary, state: str) -> Cell:
    """Return the unexpected outcomes, and the difference of their rate from before if it is significant."""
    for change in subject.analysis.error_changes:
        if change.significant and (change.after, change.scenario, change.item) == (
            level.arm,
            level.scenario,
            level.item,
        ):
            points = [f"{100 * value:+.2g}" for value in (change.difference.value, change.difference.lo)]
            note = f"{points[0]} percentage points from before ({points[1]} to {100 * change.difference.hi:+.2g})"
            return Cell(units.count(level.errors), note, "bad" if change.difference.value > 0 else "good")
    return Cell(units.count(level.errors), "", "bad" if level.errors else state)


def tail(level: Summary, q: int, state: str) -> Cell:
    """Return a percentile with its interval, or the slowest request if there are too few samples."""
    estimate = level.p95 if q == 95 else level.p99
    if estimate is not None:
        return Cell(*units.estimate(estimate), state)
    return Cell(
        f"max {units.significant(level.maximum)}" if level.n else units.NONE, units.too_few(level.n, q), "quiet"
    )


def _judged(rule: Rule | None) -> Cell:
    if rule is None:
        return Cell(units.NONE, state="quiet")
    mark, state = rule.outcome.mark, rule.outcome.state
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
    """Return the number of an arm's comparisons that are slower, and of those that are invalid."""
    if not rules:
        return Cell(units.NONE, state="quiet")
    broken, unproven = (sum(r.outcome is o for r in rules) for o in (Outcome.BROKEN, Outcome.UNPROVEN))
    state = "bad" if broken else "unsure" if unproven else "good"
    return Cell(f"{MARKS[state]} {broken} of {len(rules)}", f"{unproven} invalid" if unproven else "", state)


def _checked(check: CheckResult | None) -> Cell:
    if check is None:
        return Cell("not run", state="unsure")
    if check.passed:
        return marked("good", "passed", f"{units.significant(check.ms)} ms")
    return marked("bad", "failed", f"got {check.got}")


# a column of health: its heading, its key, how rounds are joined, how the value is written
_Facts = tuple[tuple[str, str, Callable[[Sequence[float]], float], Callable[[float], str]], ...]
_HEALTH: _Facts = (
    ("schedule lag, p50, ms", "lag_p50_ms", max, units.significant),
    ("schedule lag, p99, ms", "lag_p99_ms", max, units.significant),
    ("busiest worker", "worker_cpu", max, units.percent),
    ("garbage collection, ms", "gc_ms", max, units.significant),
    ("parameter look-up, ms", "lookup_ms", max, units.significant),
    ("taken by other machines", "steal", max, units.percent),
    ("rounds with a checkpoint", "checkpoints", sum, units.count),
    ("rounds with autovacuum", "autovacuums", sum, units.count),
    ("pages read", "blocks_read", sum, units.count),
    ("pages found in memory", "blocks_hit", sum, units.count),
)


def health(subject: Subject, rounds: Sequence[Round]) -> Table:
    """Return by load level the client and machine in the worst round, and the server's work in all rounds."""
    arm_rounds = [round_ for round_ in rounds if round_.arm == subject.before]
    known = [fact for fact in _HEALTH if any(fact[1] in round_.health for round_ in arm_rounds)]
    columns = ("load", "rounds", *(heading for heading, *_ in known))
    rows = []
    for name in dict.fromkeys(scenario for scenario, _ in subject.loads):
        facts = [round_.health for round_ in arm_rounds if round_.scenario == name]
        figures = ([health[key] for health in facts if key in health] for _, key, _, _ in known)
        cells = (Cell(show(join(f)) if f else units.NONE) for f, (*_, join, show) in zip(figures, known, strict=True))
        rows.append((load_cell(subject, name, ""), Cell(units.count(len(facts))), *cells))
    limits = subject.run.config.limits
    lag = f"{units.significant(limits.lag_ms)} ms or {units.percent(limits.lag_share)} of the median"
    note = (
        "Values of the worst round; checkpoints, autovacuums and pages are sums. A round is invalid if the typical "
        f"schedule lag is above {lag}, whichever is larger, or a worker is busier than "
        f"{units.percent(limits.worker_cpu)}."
    )
    return Table("Health of the rounds", columns, tuple(rows), frozenset(columns[1:]), note=note)
