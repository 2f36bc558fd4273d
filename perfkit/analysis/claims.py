"""Claims about the change, made beforehand, checked against what was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter

from perfkit.analysis.results import Analysis, Comparison, Estimates, Summary
from perfkit.analysis.tables import Subject, per_arm
from perfkit.base import units
from perfkit.base.judgement import Outcome, within
from perfkit.base.stats import MIN_SAMPLES, Estimate, Interval, Ratio, error_bound
from perfkit.config import Claim
from perfkit.runs.records import Bundle, RunRecord
from perfkit.show.html import Cell, Column, Paragraph, Section, Table, number, stacked

ONCE, LOAD = "measured once", "measured under load"
Span = tuple[float, float]
Good = Literal["", "low", "high"]  # the direction in which more than claimed is better


@dataclass(frozen=True, slots=True)
class JudgedClaim:
    """A claim with its measured value and interval, in `unit`: share, s, ms, kB, MB or /s."""

    text: str
    low: float | None
    high: float | None
    unit: str
    evidence: str
    value: float | None
    interval: Span | None = None
    measure: str = ""
    arm: str = ""  # measured on this arm
    scenario: str = ""
    why: str = ""  # why it was not measured
    good: Good = ""

    @property
    def judgement(self) -> Outcome | None:
        """Whether the value lies within the claim or beyond it on its good side; None if it was not measured."""
        if self.value is None:
            return None
        low = -math.inf if self.low is None or self.good == "low" else self.low
        high = math.inf if self.high is None or self.good == "high" else self.high
        return within(Estimate(self.value, *(self.interval or (self.value, self.value))), low, high)

    @property
    def outcome(self) -> str:
        """The outcome for a reader: held, better, not held, open or not measured."""
        if self.judgement is Outcome.HOLDS and self.value is not None:
            least, most = self.interval or (self.value, self.value)
            less = self.good == "low" and self.low is not None and most < self.low
            if less or (self.good == "high" and self.high is not None and least > self.high):
                return "better"
        return _OUTCOMES[self.judgement]


_OUTCOMES = {None: "not measured", Outcome.HOLDS: "held", Outcome.BROKEN: "not held", Outcome.UNPROVEN: "open"}


# Claims judged by what a run measured.

LAB = "insert_slowdown"  # only the index lab measures it


@dataclass(frozen=True, slots=True)
class ClaimEvidence:
    """A run that claims are checked against; `before` and `arm` are its arms for claims that name none.

    `inserts` are the items of its load that insert rows.
    """

    run: RunRecord
    analysis: Estimates
    bundle: Bundle
    before: str
    arm: str
    inserts: Collection[str] = ()


def judged(run: RunRecord, analysis: Analysis, bundle: Bundle) -> list[JudgedClaim]:
    """Judge every claim that makes sense in a run's set-up.

    There are none if the bundle is older than claims in bundles, or if a single arm was measured.
    """
    preset = run.parameters.preset
    claims = [claim for claim in run.config.claim if claim.preset in (None, preset)]
    roles = run.roles
    after = [arm for arm in run.parameters.arms if roles.get(arm) == "after"]
    if not after:
        return []
    before = next((arm for arm, role in roles.items() if role == "before"), "")
    judged_here = judge(claims, ClaimEvidence(run, analysis, bundle, before, after[0]))
    of_lab = TypeAdapter(list[JudgedClaim]).validate_python(run.lab.claims if run.lab else [])
    by_text = {claim.text: claim for claim in of_lab}
    return [by_text.get(claim.text, claim) for claim in judged_here]


def judge(claims: Iterable[Claim], measured: ClaimEvidence) -> list[JudgedClaim]:
    """Judge claims by what a run measured."""
    return [_judged(claim, measured) for claim in claims]


def elsewhere(run: RunRecord) -> dict[str, int]:
    """Return the number of claims that make sense only in another set-up, by preset."""
    current = run.parameters.preset
    named = [claim.preset for claim in run.config.claim]
    return {name: named.count(name) for name in dict.fromkeys(named) if name and name != current}


def _judged(claim: Claim, measured: ClaimEvidence) -> JudgedClaim:
    measure = claim.measure
    measuring, unit, evidence, good = _MEASURES[measure]
    arm = claim.arm or measured.arm
    found: _Found = f"{arm} was not measured"
    if arm in measured.run.parameters.arms:
        found = measuring(claim, measured, arm)
    why, value, interval = (found, None, None) if isinstance(found, str) else ("", *found)
    better: Good = "" if arm == measured.before else good  # a claim about the past holds or does not
    figures = (unit, evidence, value, interval, measure, arm, claim.scenario or "", why, better)
    return JudgedClaim(claim.text, claim.low, claim.high, *figures)


_Found = tuple[float, Span | None] | str  # a value and its interval, or why there is none


def _size(claim: Claim, measured: ClaimEvidence, arm: str) -> _Found:
    """Measure the arm's indexes in kB, as a share of their tables, or together with the largest table in MB."""
    facts = measured.run.arm(arm)
    built, tables = facts.indexes, facts.table_bytes
    total = sum(index.bytes for index in built)
    if not tables:
        return f"the table sizes on {arm} are not known"
    if claim.measure == "table_mb":
        largest = max({index.table for index in built} or tables, key=lambda name: tables.get(name, 0))
        indexes = sum(index.bytes for index in built if index.table == largest)
        return (tables.get(largest, 0) + indexes) / 1024**2, None
    if not built:
        return f"no index is built on {arm}"
    if claim.measure == "index_kb":
        return total / 1024, None
    return total / max(sum(tables.get(name, 0) for name in {index.table for index in built}), 1), None


def _build(claim: Claim, measured: ClaimEvidence, arm: str) -> _Found:
    seconds = [index.seconds for index in measured.run.arm(arm).indexes]
    if not seconds:
        return f"no index is built on {arm}"
    return (max(seconds), (min(seconds), max(seconds))) if claim.measure == "build_s" else (sum(seconds), None)


def _execution(claim: Claim, measured: ClaimEvidence, arm: str) -> _Found:
    """Measure the last execution of a query under EXPLAIN, with the range of all its executions."""
    bundle, query = measured.bundle, claim.query or ""
    capture = bundle.plan(arm, query)
    times = [plan.execution_ms for plan in capture.plans] if capture else []
    return (times[-1], (min(times), max(times))) if times else f"no plan of {query} on {arm}"


def _level(claim: Claim, measured: ClaimEvidence, arm: str) -> Summary | None:
    """Return the first load level of the claim's scenario or of its query."""
    return next(
        (
            level
            for level in measured.analysis.levels
            if level.arm == arm and (level.scenario == claim.scenario or level.item == claim.query)
        ),
        None,
    )


def _under_load(claim: Claim, measured: ClaimEvidence, arm: str) -> _Found:
    """Measure an estimate of the claim's load level."""
    level = _level(claim, measured, arm)
    if level is None:
        return f"no round of {claim.scenario or claim.query} on {arm}"
    if not level.healthy:
        return f"the client was too slow: {level.fault}"
    name = {"latency_ms": "p50", "p50_ms": "p50", "p95_ms": "p95"}.get(claim.measure, "throughput")
    found: Interval | None = getattr(level, name)
    if found is None:
        return (
            f"{MIN_SAMPLES[95]} requests are needed, {level.n} were answered"
            if name == "p95"
            else "no request was answered"
        )
    return found.value, (found.lo, found.hi)


def _saved(claim: Claim, measured: ClaimEvidence, arm: str) -> _Found:
    metric = "p95" if claim.scenario else "p50"
    found = _first(measured.analysis.comparisons, arm, claim, metric)
    return _share(found.ratio if found else None, arm, saved=True)


def _throughput(claim: Claim, measured: ClaimEvidence, arm: str) -> _Found:
    shown = (c for c in measured.analysis.throughputs if c.after == arm and c.scenario == claim.scenario)
    found = next(shown, None) or _first(measured.analysis.comparisons, arm, claim, "throughput")
    return _share(found.ratio if found else None, arm)


def _inserts(_: Claim, measured: ClaimEvidence, arm: str) -> _Found:
    """Measure the first item that inserts rows, which is that of the largest table."""
    by_item = {c.item: c for c in measured.analysis.comparisons if c.after == arm and c.metric == "p50"}
    first = next((by_item[item] for item in measured.inserts if item in by_item), None)
    return _share(first.ratio, arm) if first else "only the index lab measures it: perfkit indexes ablate"


def _errors(_: Claim, measured: ClaimEvidence, arm: str) -> _Found:
    """Measure the error rate over all requests, with its bounds."""
    levels = [level for level in measured.analysis.levels if level.arm == arm]
    failed, sent = sum(level.errors for level in levels), sum(level.sent for level in levels)
    if not sent:
        return f"no request was sent to {arm}"
    return failed / sent, (1 - error_bound(sent - failed, sent), error_bound(failed, sent))


def _first(comparisons: Sequence[Comparison], arm: str, claim: Claim, metric: str) -> Comparison | None:
    scenario, query = claim.scenario, claim.query
    of_arm = (c for c in comparisons if c.after == arm and c.metric == metric)
    return next((c for c in of_arm if c.scenario == scenario or c.item == query), None)


def _share(ratio: Ratio | None, arm: str, *, saved: bool = False) -> _Found:
    """Return a ratio after/before as the share saved, or as the share added."""
    if ratio is None:
        return f"not compared on {arm}"
    if saved:
        return 1 - ratio.value, (1 - ratio.hi, 1 - ratio.lo)
    return ratio.value - 1, (ratio.lo - 1, ratio.hi - 1)


_Measure = Callable[[Claim, ClaimEvidence, str], _Found]

#: By measure: its function, its unit, its class of evidence, and the direction that is better.
_MEASURES: Mapping[str, tuple[_Measure, str, str, Good]] = {
    "index_kb": (_size, "kB", ONCE, "low"),
    "index_share": (_size, "share", ONCE, "low"),
    "table_mb": (_size, "MB", ONCE, "low"),
    "build_s": (_build, "s", ONCE, "low"),
    "build_total_s": (_build, "s", ONCE, "low"),
    "execution_ms": (_execution, "ms", ONCE, "low"),
    "latency_ms": (_under_load, "ms", LOAD, "low"),
    "p50_ms": (_under_load, "ms", LOAD, "low"),
    "p95_ms": (_under_load, "ms", LOAD, "low"),
    "latency_saved": (_saved, "share", LOAD, "high"),
    "throughput": (_under_load, "/s", LOAD, "high"),
    "throughput_change": (_throughput, "share", LOAD, "high"),
    "error_rate": (_errors, "share", LOAD, "low"),
    LAB: (_inserts, "share", LOAD, "low"),
}


# Expected and measured as tables: p95 by load level and arm, and one row for each other claim.

TITLE = "Expected and measured"
_WORDS = {
    "held": "held",
    "better": "better than claimed",
    "not held": "not held",
    "open": "not settled",
    "not measured": "not measured",
}
_NOTE = "Not settled: the 95 % interval lies partly within the claim, partly outside."


def claims_block(subject: Subject) -> Section:
    """Return the whole section with its title; empty if a run has no claims."""
    claims = judged(subject.run, subject.analysis, subject.bundle)
    if not claims:
        return stacked()
    levels = _by_load(subject, claims)
    rest = [claim for claim in claims if claim not in _at_levels(claims).values()]
    text = " ".join([sentence(claims), _setup(subject), *_left_out(subject)]).strip()
    table = claims_table(rest, "Other claims" if levels else "Claims")
    return Section([Paragraph(text), *([levels] if levels else []), table], TITLE, 2)


def sentence(found: Sequence[JudgedClaim]) -> str:
    """Return the number of claims by outcome."""
    counted = Counter(claim.outcome for claim in found)
    parts = [f"{counted[outcome]} {_WORDS[outcome]}" for outcome in _WORDS if counted[outcome]]
    return f"Of {len(found)} claim{'' if len(found) == 1 else 's'}: {', '.join(parts)}."


def claims_table(found: Sequence[JudgedClaim], caption: str) -> Table:
    """Return a table with one row for each claim."""
    return Table.of(
        caption,
        (
            Column[JudgedClaim]("claim", lambda claim: Cell(claim.text, claim.arm, "sentence")),
            number("expected", expected),
            number("measured", measured),
            Column("held", held),
            Column(
                "evidence", lambda claim: Cell(claim.evidence if claim.value is not None else units.NONE, "", "quiet")
            ),
        ),
        found,
        note=_NOTE,
    )


def expected(claim: JudgedClaim) -> str:
    """Return the claimed range with its unit."""
    factor, unit = (100, "%") if claim.unit == "share" else (1, claim.unit)
    low, high = (None if end is None else units.exact(factor * end) for end in (claim.low, claim.high))
    span = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
    return f"{span} {unit}"


def measured(claim: JudgedClaim) -> Cell:
    """Return the measured value with its interval or range."""
    if claim.value is None:
        return Cell(units.NONE, claim.why or "not measured", "quiet")
    ends = [units.unbroken(_in_unit(end, claim.unit)) for end in claim.interval or ()]
    spread = " to ".join(ends)
    return Cell(_in_unit(claim.value, claim.unit), spread)


def held(claim: JudgedClaim) -> Cell:
    """Return the outcome as a mark and in words."""
    mark, state = _sign(claim)
    return Cell(f"{mark} {_WORDS[claim.outcome]}", "", state)


def _sign(claim: JudgedClaim) -> tuple[str, str]:
    return (claim.judgement.mark, claim.judgement.state) if claim.judgement else (units.NONE, "quiet")


def _at_levels(found: Sequence[JudgedClaim]) -> dict[tuple[str, str], JudgedClaim]:
    """Return the first claim on the p95 of each load level and arm."""
    on_p95 = (claim for claim in reversed(found) if claim.measure == "p95_ms")
    return {(claim.scenario, claim.arm): claim for claim in on_p95}


def _by_load(subject: Subject, found: Sequence[JudgedClaim]) -> Table | None:
    """Return a table with load levels as rows and arms as columns; None without claims on load levels."""
    claimed = _at_levels(found)
    arms = [arm for arm in subject.arms if any(arm == own for _, own in claimed)]
    loads = [scenario for scenario, _ in subject.loads if any(scenario == own for own, _ in claimed)]
    if not arms or not loads:
        return None
    return Table.of(
        "95 of 100 requests were answered within, ms",
        [
            Column("load", lambda load: Cell(subject.label(load), load)),
            *per_arm(arms, lambda load, arm: _at(subject, claimed.get((load, arm)), load, arm)),
        ],
        dict.fromkeys(loads),
        note="✓ held, or better than claimed. Below each value: its 95 % interval, and the claim with its tolerance. "
        + _NOTE,
    )


def _at(subject: Subject, claim: JudgedClaim | None, load: str, arm: str) -> Cell:
    if claim is None:
        level = subject.analysis.level(arm, load)
        value, interval = units.estimate(level.p95 if level else None)
        return Cell(value, f"{interval} {units.unbroken('no claim')}".strip(), "quiet")
    mark, state = _sign(claim)
    claimed = units.unbroken(f"claimed {expected(claim).removesuffix(' ms')}")
    if claim.value is None:
        return Cell(units.NONE, f"{claim.why}; {claimed}", state)
    interval = units.interval(*claim.interval) if claim.interval else ""
    return Cell(f"{mark} {units.significant(claim.value)}", f"{interval} {claimed}".strip(), state)


def _setup(subject: Subject) -> str:
    """Return the set-up that the claims in absolute figures are for, if this run has it."""
    parameters = subject.run.parameters
    if not parameters.preset:
        return ""
    return (
        f"Set-up '{parameters.preset}': scale {parameters.scale}, a round trip of "
        f"{parameters.rtt_ms:g} ms between service and database, {parameters.connect_rtts} to connect."
    )


def _left_out(subject: Subject) -> list[str]:
    """Say how many claims are only for other set-ups."""
    return [
        f"{count} more appl{'ies' if count == 1 else 'y'} only in the set-up '{name}': perfkit report --preset {name}."
        for name, count in elsewhere(subject.run).items()
    ]


def _in_unit(value: float, unit: str) -> str:
    if unit == "share":
        return units.percent(value)
    return units.seconds(value) if unit == "s" else f"{units.significant(value)} {unit}"
