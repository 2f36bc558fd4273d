"""The tables of a report: p95 at a glance, load levels, thresholds, checks, errors, health of the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from perfkit.analysis.policy import BENEFIT, Rule
from perfkit.analysis.results import Analysis, Comparison, ErrorChange, Summary, ThroughputChange
from perfkit.base import units
from perfkit.base.judgement import MARKS, Outcome, Verdict
from perfkit.base.stats import error_bound
from perfkit.runs.records import FLOOR, Bundle, CheckResult, Round, RunRecord
from perfkit.show.html import Cell, Column, R, Table, cell, marked, number

Key = tuple[str, str, str]  # of a rule: its name, load level, and request or query
COMPARISONS = ("not slower", "", "all comparisons")  # one row for the rules on all comparisons


@dataclass(frozen=True)
class Subject:
    """What a report shows: a bundle and its analysis."""

    bundle: Bundle
    analysis: Analysis

    @property
    def run(self) -> RunRecord:
        """The content of `run.json`."""
        return self.bundle.run

    @cached_property
    def rounds(self) -> list[Round]:
        """Every round, read from disk once."""
        return list(self.bundle.rounds())

    @property
    def complete(self) -> bool:
        """Whether the run finished as planned; a GO needs that."""
        return self.run.status == "complete"

    @property
    def word(self) -> str:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE; for a single arm HOLDS, BROKEN or UNPROVEN."""
        outcome = self.analysis.decision.outcome
        return outcome.upper() if self.run.alone else outcome.decision

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
        return "the client alone" if arm == FLOOR else self.run.arm(arm).title

    @property
    def before(self) -> str:
        """The arm that the others are compared with."""
        return next((arm for arm in self.arms if self.role(arm) == "before"), "before")

    @property
    def after(self) -> list[str]:
        """The arms that decide."""
        return self.run.of_role("after")

    @property
    def loads(self) -> list[tuple[str, str]]:
        """(scenario, item) of every load level in the order of the configuration.

        With a service, only its requests: queries have a table of their own, except in a run of one arm.
        """
        order = [scenario.name for scenario in self.run.scenarios]
        every = [(level.scenario, level.item) for level in self.analysis.levels]
        requests = [pair for pair in every if pair[1] not in self.run.queries]
        shown = dict.fromkeys(every if self.run.alone else requests or every)
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


def load_cell(subject: Subject, scenario: str, item: str = "", fault: str = "", *, named: bool = False) -> Cell:
    """Return the cell that names a load level, and its request or query if there are several or it is `named`."""
    several = named or len({other for name, other in subject.loads if name == scenario}) > 1
    name = f"{scenario}: {item}" if several and item else scenario
    label = subject.label(scenario)
    value = {"": scenario, "item": item, "label": label}
    return Cell(label, f"{name}; {fault}" if fault else name, "unsure" if fault else "", value=value)


def per_arm(arms: Iterable[str], value: Callable[[R, str], object], *, numeric: bool = True) -> list[Column[R]]:
    """Return a column for each arm."""

    def column(arm: str) -> Column[R]:
        return Column(arm, lambda row: value(row, arm), numeric=numeric)

    return list(map(column, arms))


def glance(subject: Subject) -> Table:
    """Return the p95 by load level and arm against its limit, or the p50 against before: a reader's first question."""
    rules = {(r.scenario, r.item, r.arm): r for r in subject.analysis.decision.rules if r.name == "p95"}
    arms = [arm for arm in subject.arms if subject.role(arm) != "control"]
    if not rules:
        several = _several(subject)
        return Table.of(
            "Half of the requests were answered within, ms",
            [
                Column("load", lambda load: Cell(subject.label(load[0]), load[1] if several else load[0])),
                *per_arm(arms, lambda load, arm: _median(subject, arm, *load)),
            ],
            subject.loads,
            note="Brackets: 95 % confidence intervals (of the ratio, in comparisons).",
        )
    limit = next((r.limit for r in rules.values() if r.limit is not None), None)
    loads = dict.fromkeys((scenario, item) for scenario, item, arm in rules if arm == subject.before)
    limited = "" if limit is None else f" (limit {units.significant(limit)} ms)"
    return Table.of(
        f"95 of 100 requests were answered within, ms{limited}",
        [
            Column("load", lambda load: load_cell(subject, *load, named=True)),
            *per_arm(arms, lambda load, arm: _judged(rules.get((*load, arm)))),
        ],
        sorted(loads, key=lambda load: _rank(subject, load[0])),
        note="≤ and ≥ mark the bounds of the 95 % interval. ✓ even the upper bound is within the limit; ✕ not even the "
        "lower bound is; ? only one of them is, or there are too few samples.",
    )


def _several(subject: Subject) -> bool:
    """Return whether a scenario has several requests or queries."""
    return len(subject.loads) > len({scenario for scenario, _ in subject.loads})


def _rank(subject: Subject, scenario: str) -> int:
    """Return a load level's rank in the order of the configuration."""
    order = [name for name, _ in subject.loads]
    return order.index(scenario) if scenario in order else len(order)


def _median(subject: Subject, arm: str, scenario: str, item: str) -> Cell:
    level = subject.analysis.level(arm, scenario, item)
    median = cell(level.p50 if level else None)
    if level is None or level.p50 is None or not (
        change := subject.analysis.comparison(arm, scenario, "p50", item)
    ):  # fmt: skip
        return median
    verdict = compared(change)
    return replace(median, note=f"{verdict.text} {verdict.note}", state=verdict.state)


def levels(subject: Subject) -> Table:
    """Return every load level in every arm, compared with `before`, with the control and the floor."""
    metrics = ["p50", "p95", *(["p99"] if any(c.metric == "p99" for c in subject.analysis.comparisons) else [])]
    several = _several(subject)
    declared, used = subject.analysis.margin, subject.analysis.margin_used
    widened = f", or within the control's difference if that is larger (up to {units.percent(used)})"

    def quiet(level: Summary) -> str:
        return "quiet" if subject.role(level.arm) in (FLOOR, "control") else ""

    def ratio(metric: str) -> Column[Summary]:
        return number(
            f"{metric} / before",
            lambda level: compared(subject.analysis.comparison(level.arm, level.scenario, metric, level.item)),
            key=f"{metric}_ratio",
        )

    columns = [
        Column[Summary]("load", lambda x: load_cell(subject, x.scenario, x.item, named=several), key="scenario"),
        Column("arm", lambda x: Cell(x.arm, x.fault, quiet(x), value=x.arm)),
        number("p50, ms", lambda x: cell(x.p50, state=quiet(x))),
        number("p95, ms", lambda x: tail(x, 95, quiet(x))),
        number("p99, ms", lambda x: tail(x, 99, quiet(x))),
        number("per second", lambda x: _throughput(subject, x, quiet(x)), key="per_second"),
        number("requests", lambda x: cell(x.n, state=quiet(x))),
        number("errors", lambda x: _failed(subject, x, quiet(x))),
        *map(ratio, metrics),
        Column("evidence", under_load),
    ]
    return Table.of(
        "Response time by load level, before and after",
        columns,
        (
            level
            for scenario, item in subject.loads
            for arm in [*subject.arms, FLOOR]
            if (level := subject.analysis.level(arm, scenario, item))
        ),
        headers=2,
        grouped=True,
        note=f"Brackets: 95 % confidence intervals. Equivalent means within {units.percent(declared)}"
        f"{widened if used > declared else ''}. The control is identical to before, so its ratios show what chance "
        "does; the floor is the client against a target that does nothing.",
    )


def under_load(level: Summary) -> Cell:
    """Return the class of a load level's evidence."""
    rounds = f"{level.rounds} round{'' if level.rounds == 1 else 's'}"
    return Cell(units.unbroken("under load"), rounds, "quiet", value={"": "under load", "rounds": level.rounds})


def thresholds(subject: Subject) -> Table:
    """Return every rule on every arm: value, bound, limit and result."""
    single = [rule for rule in subject.analysis.decision.rules if "slower" not in rule.name]
    rules = {(r.name, r.scenario, r.item, r.arm): r for r in single}
    arms = [arm for arm in subject.arms if any(rule.arm == arm for rule in single)]
    names = list(dict.fromkeys(r.name for r in single))
    ranked = sorted(
        dict.fromkeys((r.name, r.scenario, r.item) for r in single),
        key=lambda key: (names.index(key[0]), _rank(subject, key[1])),
    )
    comparisons = [rule for rule in subject.analysis.decision.rules if "slower" in rule.name]

    def result(key: Key, arm: str) -> Cell:
        if key == COMPARISONS:
            return _counted([rule for rule in comparisons if rule.arm == arm])
        return _judged(rules.get((*key, arm)))

    def limit(key: Key) -> str:
        return next((_with_unit(rule.limit, rule.unit) for (*its, _), rule in rules.items() if its == [*key]), "none")

    def load(key: Key) -> Cell:
        _, scenario, item = key
        return load_cell(subject, scenario, item, named=True) if scenario else Cell(item or "whole run")

    return Table.of(
        "Thresholds: what must hold",
        [Column("rule", lambda key: key[0]), Column("load", load), number("limit", limit), *per_arm(arms, result)],
        [*ranked, *([COMPARISONS] if comparisons else [])],
        headers=2,
        grouped=True,
        note="✓ the whole interval is within the limit; ✕ no part of it is; ? too little data to decide. An error rate "
        "is ✓ if its estimate is within the limit; the true rate is below the number under it (95 % confidence)."
        + (
            "" if subject.run.alone else " ○ the change has no benefit. Only arms with a change count for the decision."
        ),
    )


def checks(subject: Subject) -> Table:
    """Return the functional checks in every arm: the expected result, and the actual one if it differs."""
    results = subject.run.checks
    arms = [arm for arm in subject.arms if arm in results]
    named = {(c.group, c.name): c.expected for arm in arms for c in results[arm]}
    by_arm = {(arm, c.group, c.name): c for arm in arms for c in results[arm]}
    return Table.of(
        "Functional checks",
        [
            Column[tuple[str, str]]("group", lambda check: check[0]),
            Column("check and expected result", lambda check: Cell(check[1], named[check]), key="check"),
            *per_arm(arms, lambda check, arm: _checked(by_arm.get((arm, *check))), numeric=False),
        ],
        named,
        headers=2,
        grouped=True,
    )


def errors(subject: Subject) -> Table:
    """Return the unexpected outcomes with the first message; without any, the bound of the true error rate."""
    sent = (sum(x.sent for x in subject.analysis.levels if x.arm == arm) for arm in subject.arms)
    least = min(sent, default=0)
    none = "None; no request was sent."
    if least:
        excluded = units.percent(error_bound(0, least), up=True)
        of = f"{units.count(least)} or more requests per arm"
        none = f"None in {of}. The true error rate is below {excluded} (95 % confidence)."
    return Table.of(
        "Unexpected outcomes",
        [
            Column("arm", lambda x: x.arm),
            Column("load", lambda x: Cell(subject.label(x.scenario), x.scenario, value=x.scenario), key="scenario"),
            Column("outcome", lambda x: x.outcome),
            number("count", lambda x: x.count),
            Column("first message", lambda x: x.message),
        ],
        subject.analysis.errors,
        note="" if subject.analysis.errors else none,
    )


def compared(comparison: Comparison | None) -> Cell:
    """Return a verdict with its ratio and interval."""
    if comparison is None:
        return Cell("", state="quiet")
    mark, state = _VERDICTS[comparison.verdict]
    value, interval = units.ratio(comparison.ratio)
    note = "; ".join(part for part in (interval, comparison.qualification) if part)
    known = comparison.ratio
    figures = {"": known.value, "lo": known.lo, "hi": known.hi} if known else {"": math.nan}
    return Cell(
        f"{mark} {comparison.verdict} {value}", note, state, value={**figures, "verdict": str(comparison.verdict)}
    )


def _throughput(subject: Subject, level: Summary, state: str) -> Cell:
    """Return requests per second and the ratio to before; for a search, with its verdict."""
    rate = cell(level.throughput, state=state)
    if judged := subject.analysis.comparison(level.arm, level.scenario, "throughput", level.item):
        verdict = compared(judged)
        return replace(rate, note=f"{rate.note} {verdict.text} {verdict.note}".strip(), state=verdict.state)
    for change in subject.analysis.throughputs:
        if _about(change, level):
            times, interval = units.ratio(change.ratio)
            return replace(rate, note=f"{rate.note} {times} of before {interval}".strip())
    return rate


def _failed(subject: Subject, level: Summary, state: str) -> Cell:
    """Return the unexpected outcomes, and the difference of their rate from before if it is significant."""
    for change in subject.analysis.error_changes:
        if change.significant and _about(change, level):
            difference = change.difference
            value, low, high = (f"{100 * x:+.2g}" for x in (difference.value, difference.lo, difference.hi))
            note = f"{value} percentage points from before ({low} to {high})"
            return replace(cell(level.errors), note=note, state="bad" if difference.value > 0 else "good")
    return cell(level.errors, state="bad" if level.errors else state)


def _about(change: ErrorChange | ThroughputChange, level: Summary) -> bool:
    """Return whether a change is that of a load level."""
    return (change.after, change.scenario, change.item) == (level.arm, level.scenario, level.item)


def tail(level: Summary, q: int, state: str = "") -> Cell:
    """Return a percentile with its interval, or the slowest request if there are too few samples."""
    if estimate := level.p95 if q == 95 else level.p99:
        return cell(estimate, state=state)
    slowest = f"max {units.significant(level.maximum)}" if level.n else units.NONE
    return Cell(slowest, units.too_few(level.n, q), "quiet", value=math.nan)


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
        bound = units.unbroken(f"below {units.percent(rule.bound, up=True)}")
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


# A column of health: its heading, its key, how rounds are joined, how the value is written.
_Fact = tuple[str, str, Callable[[Sequence[float]], float], Callable[[float], str]]
_HEALTH: tuple[_Fact, ...] = (
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


def health(subject: Subject) -> Table:
    """Return by load level the client and machine in the worst round, and the server's work in all rounds."""
    rounds = [round_ for round_ in subject.rounds if round_.arm == subject.before]

    def figures(scenario: str, key: str) -> list[float]:
        return [r.health[key] for r in rounds if r.scenario == scenario and key in r.health]

    def column(fact: _Fact) -> Column[str]:
        heading, key, join, show = fact
        return number(heading, lambda name: join(found) if (found := figures(name, key)) else None, show, key)

    limits = subject.run.config.limits
    lag = f"{units.significant(limits.lag_ms)} ms or {units.percent(limits.lag_share)} of the median"
    return Table.of(
        "Health of the rounds",
        [
            Column("load", lambda name: load_cell(subject, name), key="scenario"),
            number("rounds", lambda name: sum(r.scenario == name for r in rounds)),
            *(column(fact) for fact in _HEALTH if any(fact[1] in round_.health for round_ in rounds)),
        ],
        dict.fromkeys(scenario for scenario, _ in subject.loads),
        note="Values of the worst round; checkpoints, autovacuums and pages are sums. A round is invalid if the "
        f"typical schedule lag is above {lag}, whichever is larger, or a worker is busier than "
        f"{units.percent(limits.worker_cpu)}.",
    )
