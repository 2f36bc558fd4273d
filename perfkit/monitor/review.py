"""The review of a release: each target against its actual value, the incidents, and a recommendation.

Pure functions. The confidence interval proves, the estimate only disproves: a target is met if the whole 95 % interval
is within the target, missed if the estimate is outside, and unproven otherwise. The recommendation follows the gravest
problem, in this order: an active alert, a P1 incident that has ended, a missed target, an unproven target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from perfkit import config
from perfkit.analysis.results import Summary
from perfkit.analysis.run_analysis import analyse
from perfkit.base import units
from perfkit.base.errors import UsageError
from perfkit.base.judgement import MAX_FACTOR, Judgement, Outcome, evidence_needed, requests_needed, samples_needed
from perfkit.base.stats import Estimate, Interval
from perfkit.base.units import duration_text
from perfkit.config.judging import Metric, Target, Watch, WatchRule
from perfkit.monitor.alerts import Incident, group_incidents
from perfkit.monitor.figures import (
    PERCENTILES,
    Actual,
    Baseline,
    actual_value,
    compute_baseline,
    find_gaps,
    interval_text,
    item_names,
)
from perfkit.monitor.model import BLOCKS, About, Event, Period, Record, gravest, select_period
from perfkit.monitor.notifications import formatted
from perfkit.runs.records import Bundle, ScenarioRecord

LATENCIES = ("p50_ms", "p95_ms", "p99_ms", "mean_ms")
FAILURES = ("availability", "error_rate", "success_rate")
INVESTIGATE = "investigate"
MAX_NAMES = 3  # a headline names up to this number of targets, and counts more
COMPARED: tuple[Metric, ...] = ("p50_ms", "p95_ms", "p99_ms", "error_rate")
#: What an outcome is called for a target.
WORDS = {Outcome.HOLDS: "met", Outcome.BROKEN: "missed", Outcome.UNPROVEN: "unproven"}


@dataclass(frozen=True, slots=True)
class ReportedValue:
    """A value that a person reports for a target that cannot be measured."""

    value: float
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewRow(Judgement):
    """One target judged by its actual value."""

    outcome: Outcome
    target: Target
    actual: Actual

    @property
    def target_text(self) -> str:
        """The target with its unit."""
        target = self.target
        ends = (target.at_least, target.at_most)
        low, high = (None if end is None else formatted(target.metric, end, target.unit, exact=True) for end in ends)
        return f"{low} to {high}" if low and high else f"≥ {low}" if low else f"≤ {high}"

    @property
    def value_text(self) -> str:
        """The actual value with its unit; a dash if there is none."""
        return formatted(self.target.metric, self.actual.value, self.target.unit)

    @property
    def interval_text(self) -> str:
        """The 95 % interval of the actual value."""
        return interval_text(self.actual, lambda value: formatted(self.target.metric, value, self.target.unit))


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do: the outcome holds if the release can stay, and is broken if somebody must act."""

    outcome: Outcome
    headline: str
    reasons: tuple[str, ...]
    actions: tuple[str, ...] = ()  # the actions of the broken rules, the most urgent first


@dataclass(frozen=True, slots=True)
class BeforeRelease:
    """What a run measured of the arm that was released."""

    name: str  # of the run's folder
    arm: str
    levels: Sequence[Summary]  # load levels, the lightest first
    labels: Mapping[str, str]  # by scenario

    def throughput(self, names: Sequence[str]) -> Actual | None:
        """Return requests per second under the highest load; None if not measured, or if the client was too slow."""
        measured = [level for level in self.levels if level.item in names and level.throughput and level.healthy]
        if not measured:
            return None
        level, rate = measured[-1], measured[-1].throughput
        assert rate
        how = f"before the release, under load: {self.label(level)}, {self.arm}, {rate.rounds} rounds"
        return Actual(rate.value, rate.lo, rate.hi, rate.n, how)

    def failures(self, names: Sequence[str]) -> str:
        """Return the number of failed requests in words; empty if none was sent."""
        levels = [level for level in self.levels if level.item in names]
        sent, errors = sum(level.sent for level in levels), sum(level.errors for level in levels)
        return f"before the release {units.count(errors)} of {units.count(sent)} failed under load" if sent else ""

    def label(self, level: Summary) -> str:
        """Return the load of a level in words."""
        return self.labels.get(level.scenario) or level.scenario


@dataclass(frozen=True, slots=True)
class ReleaseComparison:
    """One figure of one request or query: before the release, under the lightest and the highest load, and since."""

    item: str
    metric: str
    lightest: tuple[str, str]  # the figure, and the load
    highest: tuple[str, str]
    since: tuple[str, str]  # the figure, and its 95 % interval


@dataclass(frozen=True, slots=True)
class Reviewed:
    """The result of a review of one period of a watch."""

    about: About
    watch: Watch
    period: Period
    rows: tuple[ReviewRow, ...]
    incidents: tuple[Incident, ...]
    notes: tuple[Event, ...]  # of the watch about itself
    gaps: tuple[tuple[float, float], ...]  # start and end on the time line, without a watch
    recommendation: Recommendation
    caveats: tuple[str, ...]
    before: BeforeRelease | None = None
    comparisons: tuple[ReleaseComparison, ...] = ()


def review(
    record: Record,
    *,
    values: Mapping[str, ReportedValue] | None = None,
    before: BeforeRelease | None = None,
    settings: config.Config | None = None,
    since: str = "",
    until: str = "",
    last: str = "",
) -> Reviewed:
    """Review a record against the targets that the watch began with, or those of `settings`.

    Raises UsageError if a value belongs to no target, or if the period has no interval.
    """
    about = record.about
    watch, targets = (settings or about).watch, (settings or about).review.target
    reported, rows = dict(values or {}), list[ReviewRow]()
    period = select_period(record, since, until, last)
    for target in targets:
        baseline = compute_baseline(record.ticks, about.kinds, watch, target.item or "")
        rows.append(judged_row(target, period, about, baseline, reported.pop(target.name, None), before))
    if reported:
        names = ", ".join(target.name for target in targets) or "none: no target is configured"
        raise UsageError(f"value '{next(iter(reported))}': no such target; expected one of: {names}")
    incidents = tuple(
        incident
        for incident in group_incidents(record.alerts, about.every_s)
        if incident.since <= period.end and (incident.ended is None or incident.ended >= period.start)
    )
    gaps = tuple(find_gaps(period.ticks))
    return Reviewed(
        about,
        watch,
        period,
        tuple(rows),
        incidents,
        tuple(record.notes),
        gaps,
        recommend(rows, incidents, watch, period),
        tuple(_caveats(record, period, gaps)),
        before,
        tuple(release_comparisons(before, period, about)) if before else (),
    )


def _caveats(record: Record, period: Period, gaps: Sequence[tuple[float, float]]) -> Iterator[str]:
    if not period.whole_day:
        yield f"covers {duration_text(period.seconds)}, less than 24 h: the load of the rest of a day is not included"
    if gaps:
        lost = duration_text(sum(end - start for start, end in gaps))
        yield f"not watched for {lost} in {len(gaps)} gap{'s'[: len(gaps) > 1]}; the figures leave this time out"
    if record.damaged:
        yield f"{record.damaged} line{'s'[: record.damaged > 1]} of the record could not be read"


def judged_row(
    target: Target,
    period: Period,
    about: About,
    baseline: Baseline | None,
    reported: ReportedValue | None = None,
    before: BeforeRelease | None = None,
) -> ReviewRow:
    """Return one target, judged by the watch, by the run before the release, or by a reported value.

    The run before the release stands in for figures that probes cannot measure. Raises UsageError if the reported
    value is one that was measured.
    """
    actual, needs = _actual(target, period, about, baseline, before)
    if reported is not None:
        if actual.value is not None:
            raise UsageError(f"value '{target.name}': this target is measured; expected one that is not")
        actual = Actual(reported.value, reported.value, reported.value, 1, f"reported by {reported.by}")
    outcome = outcome_of(target, actual)
    needs = (needs or _needs(target, actual, period, about)) if outcome is Outcome.UNPROVEN else ""
    return ReviewRow(name=target.name, outcome=outcome, text=actual.how, needs=needs, target=target, actual=actual)


def _actual(
    target: Target, period: Period, about: About, baseline: Baseline | None, before: BeforeRelease | None
) -> tuple[Actual, str]:
    """Return the actual value and, if more watching cannot supply it, what can."""
    if target.metric is None:
        return Actual.none(""), f"not provided: pass --value '{target.name}=...' --by WHO"
    actual = actual_value(target.metric, target.item, period, about, baseline)
    names = item_names(about.kinds, target.item or "")
    if not names and before:
        return actual, "; ".join(filter(None, (actual.lacks, before.failures([target.item or ""]))))
    offered = about.rate * len(names)
    if target.metric != "throughput" or target.at_least is None or target.at_least <= offered:
        return actual, ""
    # A few probes per second cannot show a higher throughput: only a run under load can.
    measured = before.throughput(names) if before else None
    sent, least = (formatted("throughput", rate, exact=True) for rate in (offered, target.at_least))
    needs = f"the watch sends only {sent} and cannot prove {least}; name a run under load, --against RUN"
    return (measured, "") if measured else (Actual.none(needs), needs)


def outcome_of(target: Target, actual: Actual) -> Outcome:
    """Return "holds" if value and both bounds are within the target, "broken" if the value is not, else "unproven"."""
    low = -math.inf if target.at_least is None else target.at_least
    high = math.inf if target.at_most is None else target.at_most
    if actual.value is None:
        return Outcome.UNPROVEN
    if not low <= actual.value <= high:
        # Without a watch the service may have been up, which could still bring the share above the target.
        undecided = target.metric == "availability" and low <= actual.hi
        return Outcome.UNPROVEN if undecided else Outcome.BROKEN
    # Without a single interval down, a shorter outage than one interval could still have broken the target.
    coarse = target.metric == "availability" and actual.value == 1 and 1 / actual.n > 1 - low
    return Outcome.HOLDS if low <= actual.lo and actual.hi <= high and not coarse else Outcome.UNPROVEN


def _needs(target: Target, actual: Actual, period: Period, about: About) -> str:
    """Return what would settle an unproven target."""

    def watching(reason: str, factor: float) -> str:
        if factor > MAX_FACTOR:
            return f"{reason}; more watching will not settle it"
        return f"{reason}; about {duration_text(max(factor, 1.1) * period.watched)} of watching in total is needed"

    metric, value = target.metric, actual.value
    if metric is None or value is None:
        percentile = PERCENTILES.get(metric) if metric else None
        if percentile is None or not actual.n:
            return actual.lacks
        return watching(actual.lacks, samples_needed(actual.n, percentile))
    low, high = target.at_least, target.at_most
    if metric == "availability" and low is not None:
        if actual.lacks:
            return f"{actual.lacks}, and this time decides; watch without a gap"
        seconds = about.every_s / (1 - low) if low < 1 else math.inf
        return watching("an outage shorter than an interval could decide", seconds / period.watched)
    # The end of the interval that is outside the target, and the limit that it crosses.
    end, limit = (actual.lo, low) if low is not None and actual.lo < low else (actual.hi, high or 0.0)
    if metric in ("error_rate", "success_rate"):
        failed, most = (value, limit) if metric == "error_rate" else (1 - value, 1 - limit)
        return watching("too few probes", requests_needed(round(failed * actual.n), actual.n, most))
    if math.isinf(end):
        return watching("too few blocks of time", BLOCKS * period.width / period.watched)
    return watching("the interval crosses the limit", evidence_needed(Estimate(value, actual.lo, actual.hi), limit))


def recommend(rows: Sequence[ReviewRow], incidents: Sequence[Incident], watch: Watch, period: Period) -> Recommendation:
    """Return the recommendation that follows from the targets and the incidents of a period."""
    missed = [row for row in rows if row.outcome is Outcome.BROKEN]
    unproven = [row for row in rows if row.outcome is Outcome.UNPROVEN]
    active = any(incident.ended is None for incident in incidents)
    grave = any(incident.level == "P1" for incident in incidents)
    by_urgency = sorted(incidents, key=lambda incident: (incident.ended is not None, incident.level))
    reasons = (
        *(_incident_text(incident, period) for incident in by_urgency),
        *(f"{row.name}: {row.value_text} misses {row.target_text}" for row in missed),
        *(f"{row.name}: {row.needs}" for row in unproven),
    )
    if active or missed or grave:
        actions = _actions(incidents, missed, watch.rule)
        outcome = Outcome.BROKEN if missed or grave else Outcome.UNPROVEN
        return Recommendation(outcome, actions[0][:1].upper() + actions[0][1:], reasons, actions)
    if not rows:
        return Recommendation(Outcome.UNPROVEN, "Configure targets", ("no target is configured",))
    if unproven:
        names = ", ".join(row.name for row in unproven) if len(unproven) <= MAX_NAMES else f"{len(unproven)} targets"
        reported = all(row.target.metric is None for row in unproven)
        headline = f"Report the missing values: {names}" if reported else f"Keep watching: {names} not yet proven"
        return Recommendation(Outcome.UNPROVEN, headline, reasons)
    met = f"all {len(rows)} targets are met" if len(rows) > 1 else "the target is met"
    return Recommendation(Outcome.HOLDS, "Keep", (*reasons, met))


def _actions(incidents: Sequence[Incident], missed: Sequence[ReviewRow], rules: Sequence[WatchRule]) -> tuple[str, ...]:
    """Return the actions, the most urgent first.

    An active alert comes first. A grave incident that has ended must be understood before the missed targets, since
    they may be its consequence.
    """
    active = [alert.raised for incident in incidents for alert in incident.alerts if not alert.cleared]
    grave = [incident for incident in incidents if incident.level == "P1"]
    actions = [
        *(event.action or INVESTIGATE for event in sorted(active, key=lambda event: event.level)),
        *((INVESTIGATE,) if grave or any(row.target.metric in FAILURES for row in missed) else ()),
        *(action for incident in grave for action in incident.actions),
        *(_action_for(row, rules) for row in missed),
    ]
    return tuple(dict.fromkeys(actions))


def _action_for(row: ReviewRow, rules: Sequence[WatchRule]) -> str:
    """Return the action of the gravest rule that a missed target breaks, else of the mildest related rule.

    A rule is related if it is on the same metric or, for a latency without a rule of its own, on any latency.
    """
    same = [rule for rule in rules if rule.metric == row.target.metric and rule.action]
    latency = row.target.metric in LATENCIES
    related = same or [rule for rule in rules if latency and rule.metric in LATENCIES and rule.action]
    rule = gravest(same, row.actual.value) or max(related, key=lambda rule: rule.level, default=None)
    return rule.action if rule else INVESTIGATE


def _incident_text(incident: Incident, period: Period) -> str:
    verb = "is still active after" if incident.ended is None else "lasted"
    return f"{incident.level} {incident.rules} {verb} {duration_text(incident.lasted(period.end))}"


def before_release(bundle: Bundle, arm: str = "") -> BeforeRelease:
    """Return what a run measured of an arm, by default of the last `after` arm. Raises BundleError, UsageError."""
    run, analysis = bundle.run, analyse(bundle)
    arms: list[str] = run.parameters.arms
    if arm and arm not in arms:
        raise UsageError(f"arm '{arm}' is unknown; expected one of: {', '.join(arms)}")
    released = arm or next((name for name in reversed(arms) if run.roles[name] == "after"), arms[-1])
    scenarios = {scenario.name: scenario for scenario in run.scenarios}
    levels = [level for level in analysis.levels if level.arm == released]
    return BeforeRelease(
        bundle.path.resolve().name,
        released,
        sorted(levels, key=lambda level: _load(scenarios[level.scenario])),
        {name: scenario.label for name, scenario in scenarios.items()},
    )


def _load(scenario: ScenarioRecord) -> tuple[float, float]:
    """Return a sort key for load levels: requests in flight, then requests per second."""
    return float(scenario.users), scenario.rate or 0.0


def release_comparisons(before: BeforeRelease, period: Period, about: About) -> Iterator[ReleaseComparison]:
    """Yield percentiles and error rate of every request and query that both the run and the watch sent."""
    for item in about.kinds:
        levels = [level for level in before.levels if level.item == item]
        for metric in COMPARED if levels else ():
            first, last = levels[0], levels[-1]
            now = actual_value(metric, item, period, about, None)
            value = formatted(metric, now.value) if now.value is not None else now.lacks
            lightest, highest = ((_level_figure(level, metric), before.label(level)) for level in (first, last))
            since = (value, interval_text(now, partial(formatted, metric)))
            yield ReleaseComparison(item, metric, lightest, highest if last is not first else (units.NONE, ""), since)


def _level_figure(level: Summary, metric: Metric) -> str:
    if metric == "error_rate":
        return formatted(metric, level.errors / level.sent if level.sent else None)
    interval: Interval | None = getattr(level, metric.removesuffix("_ms"))
    return formatted(metric, interval.value if interval else None)
