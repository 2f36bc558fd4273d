"""The review of a release: targets and actuals row by row, and what to do.

Pure functions. Blocks of time stand where a measured run has rounds: neighbouring probes resemble each other, so an
interval from single probes would be too narrow.

Under load and alone are two things: many users at once before, one probe now and then afterwards.

A bound proves, an estimate only breaks: a target is met where the whole 95 % interval is on its good side, missed
where the estimate is on its bad one, and unproven between the two. Pure functions.

In this order: an alert that still stands, a P1 incident that ended, what was missed, what is unproven; else keep it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from perfkit import config
from perfkit.analysis.results import Summary
from perfkit.analysis.run_analysis import analyse
from perfkit.base import stats, units
from perfkit.base.bundle import Bundle
from perfkit.base.errors import UsageError, name_of
from perfkit.base.stats import Interval
from perfkit.config.judging import Metric, Target, Watch, WatchRule
from perfkit.monitor import figures, store
from perfkit.monitor.figures import PERCENTILES, Actual, actual, within
from perfkit.monitor.incidents import Alert, Incident, Period, cut, incidents, lasting
from perfkit.monitor.model import About, Event, Record, gravest
from perfkit.monitor.notifications import bound, said

# The run that was made before the release, beside what the watch found: shown, never judged as a comparison.

DIFFERENT_LOAD = "under load before the release, single probes since: different load, so no verdict"

BESIDE: tuple[Metric, ...] = ("p50_ms", "p95_ms", "p99_ms", "error_rate")


@dataclass(frozen=True, slots=True)
class BeforeRelease:
    """What a run measured of the arm that was shipped; levels in the order of load, the lightest first."""

    name: str  # of the run's folder
    arm: str
    title: str
    levels: Sequence[Summary]
    labels: Mapping[str, str]  # by scenario

    def of(self, item: str) -> list[Summary]:
        """The load levels of one request or query, the lightest first."""
        return [level for level in self.levels if level.item == item]

    def throughput(self, names: Sequence[str]) -> Actual | None:
        """Requests per second under the highest load; None where that was not measured or the client was too slow."""
        found = [level for level in self.levels if level.item in names and level.throughput and level.healthy]
        if not found:
            return None
        level = found[-1]
        rate = level.throughput
        assert rate
        how = f"before the release, under load: {self.label(level)}, {self.arm}, {rate.rounds} rounds"
        return Actual(rate.value, rate.lo, rate.hi, rate.n, how)

    def failed(self, names: Sequence[str]) -> str:
        """How many failed of those that were sent; empty where none was."""
        own = [level for level in self.levels if level.item in names]
        sent, errors = sum(level.sent for level in own), sum(level.errors for level in own)
        return f"before the release {units.count(errors)} of {units.count(sent)} failed under load" if sent else ""

    def label(self, level: Summary) -> str:
        """What its load level offers, in words."""
        return self.labels.get(level.scenario) or level.scenario


@dataclass(frozen=True, slots=True)
class ReleaseComparison:
    """One figure of one request before the release, under the lightest and the highest load, and since."""

    item: str
    metric: str
    lightest: tuple[str, str]  # the figure, and what the load was
    highest: tuple[str, str]
    since: tuple[str, str]  # the figure, and where the true one is


def before_release(bundle: Bundle, arm: str = "") -> BeforeRelease:
    """A run's shipped arm, the last `after` arm unless another is named. Raises BundleError, UsageError."""
    run, found = bundle.run, analyse(bundle)
    arms: list[str] = list(run["parameters"]["arms"])
    if arm and arm not in arms:
        raise UsageError(f"arm '{arm}' is unknown; expected one of: {', '.join(arms)}")
    chosen = arm or next((name for name in reversed(arms) if run["roles"][name] == "after"), arms[-1])
    scenarios = {scenario["name"]: scenario for scenario in run["scenarios"]}
    levels = [level for level in found.levels if level.arm == chosen]
    return BeforeRelease(
        bundle.path.resolve().name,
        chosen,
        str(run.get("arms", {}).get(chosen, {}).get("title", "")),
        sorted(levels, key=lambda level: _load(scenarios[level.scenario])),
        {name: str(scenario.get("label", "")) for name, scenario in scenarios.items()},
    )


def _load(scenario: Mapping[str, Any]) -> tuple[float, float]:
    """How heavy a load level is: by requests in flight, then by their rate."""
    return float(scenario.get("users") or 0), float(scenario.get("rate") or 0)


def beside(before: BeforeRelease, period: Period, about: About) -> Iterator[ReleaseComparison]:
    """Percentiles and error rate of everything that both the run and the watch sent."""
    for item in about.kinds:
        if levels := before.of(item):
            first, last = levels[0], levels[-1]
            for metric in BESIDE:
                now = actual(metric, item, period, about, None)
                shown = said(metric, now.value) if now.value is not None else now.lacks
                yield ReleaseComparison(
                    item,
                    metric,
                    (_of_level(first, metric), before.label(first)),
                    (_of_level(last, metric), before.label(last)) if last is not first else (units.NONE, ""),
                    (shown, within(now, partial(said, metric))),
                )


def _of_level(level: Summary, metric: Metric) -> str:
    if metric == "error_rate":
        return said(metric, level.errors / level.sent if level.sent else None)
    found: Interval | None = getattr(level, metric.removesuffix("_ms"))
    return said(metric, found.value if found else None)


# One row of the review's table: what was aimed at, what came, and whether that is proven.

MOST = 1000.0  # beyond so many times as long, more watching is no advice


class Result(StrEnum):
    """Whether a target is met by estimate and bound, missed by its estimate, or neither."""

    MET = "met"
    MISSED = "missed"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Said:
    """What a person says of a row."""

    value: float
    by: str


def values_of(text: str, by: str) -> dict[str, Said]:
    """Lines of NAME=X as what somebody says. Raises UsageError."""
    found: dict[str, Said] = {}
    who = name_of(by)
    for line in filter(str.strip, text.splitlines()):
        name, _, value = line.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name.strip() or not math.isfinite(number):
            raise UsageError(f"value '{line}'; expected NAME=X with a number, like User rating=4.3")
        if name.strip() in found:
            raise UsageError(f"value '{line}'; expected one of '{name.strip()}', not two")
        if not who:
            raise UsageError(f"value '{line}' is said by nobody; expected --by WHO")
        found[name.strip()] = Said(number, who)
    if who and not found:
        raise UsageError(f"--by {who}; expected a --value with it")
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    target: Target
    actual: Actual
    result: Result
    takes: str  # of an unproven one: what it would take

    @property
    def name(self) -> str:
        """How it is called."""
        return self.target.name

    @property
    def aim(self) -> str:
        """What was aimed at, with its unit."""
        low, high = (
            None if end is None else bound(self.target.metric, end, self.target.unit)
            for end in (self.target.at_least, self.target.at_most)
        )
        return f"{low} to {high}" if low and high else f"≥ {low}" if low else f"≤ {high}"

    @property
    def said(self) -> str:
        """The actual value with its unit; a dash where there is none."""
        return self._with_unit(self.actual.value)

    @property
    def range(self) -> str:
        """Where the true one is, 95 % sure."""
        return within(self.actual, self._with_unit)

    def _with_unit(self, value: float | None) -> str:
        return said(self.target.metric, value, self.target.unit)


def row(
    target: Target,
    period: Period,
    about: About,
    baseline: figures.Baseline | None,
    value: Said | None = None,
    before: BeforeRelease | None = None,
) -> Row:
    """One target judged: by what was watched, before the release where probes cannot tell, or by what somebody says."""
    found, takes = _found(target, period, about, baseline, before)
    if value is not None:
        if found.value is not None:
            raise UsageError(f"value '{target.name}' is measured; expected one of a row that is not")
        found = Actual(value.value, value.value, value.value, 1, f"said by {value.by}")
    result = judged(target, found)
    takes = (takes or _takes(target, found, period, about)) if result is Result.UNPROVEN else ""
    return Row(target, found, result, takes)


def _found(
    target: Target, period: Period, about: About, baseline: figures.Baseline | None, before: BeforeRelease | None
) -> tuple[Actual, str]:
    """What is known of a figure, and where that is nothing, what it takes."""
    if target.metric is None:
        return Actual.none(""), f"to be said: --value '{target.name}=...' --by WHO"
    found = actual(target.metric, target.item, period, about, baseline)
    names = figures.chosen(about.kinds, target.item or "")
    if not names and before:
        return found, "; ".join(filter(None, (found.lacks, before.failed([target.item or ""]))))
    offered = about.rate * len(names)
    if target.metric != "throughput" or target.at_least is None or target.at_least <= offered:
        return found, ""
    reach, least = (bound("throughput", rate) for rate in (offered, target.at_least))
    measured = before.throughput(names) if before else None
    takes = f"the watch offers {reach} and cannot reach {least}: name a run under load, --against RUN"
    return (measured, "") if measured else (Actual.none(takes), takes)


def judged(target: Target, found: Actual) -> Result:
    """Met by value and both bounds, missed by the value, else unproven."""
    low = -math.inf if target.at_least is None else target.at_least
    high = math.inf if target.at_most is None else target.at_most
    if found.value is None:
        return Result.UNPROVEN
    if not low <= found.value <= high:
        # Intervals in which nobody watched may have been better than the others.
        open_ = target.metric == "availability" and low <= found.hi
        return Result.UNPROVEN if open_ else Result.MISSED
    coarse = target.metric == "availability" and found.value == 1 and 1 / found.n > 1 - low
    return Result.MET if low <= found.lo and found.hi <= high and not coarse else Result.UNPROVEN


def _takes(target: Target, found: Actual, period: Period, about: About) -> str:
    """What would settle an unproven row."""
    if found.value is None:
        q = PERCENTILES.get(target.metric) if target.metric else None
        return f"{found.lacks}: {_longer(stats.MIN_SAMPLES[q] / found.n, period)}" if q and found.n else found.lacks
    if target.metric == "availability":
        if found.lacks:
            return f"{found.lacks}, and what was then decides: watch without a break"
        assert target.at_least is not None
        need = about.every_s / (1 - target.at_least) if target.at_least < 1 else math.inf
        return f"an outage of less than an interval would decide: {_longer(need / period.watched, period)}"
    limit = target.at_least if target.at_least is not None and found.lo < target.at_least else target.at_most
    assert limit is not None
    if target.metric in ("error_rate", "success_rate"):
        bad = found.value if target.metric == "error_rate" else 1 - found.value
        factor = _samples_factor(round(bad * found.n), found.n, limit if target.metric == "error_rate" else 1 - limit)
    else:
        end = found.lo if limit == target.at_least else found.hi
        room = abs(found.value - limit)
        factor = (abs(end - found.value) / room) ** 2 if room and math.isfinite(end) else math.inf
        if math.isinf(end):
            return (
                f"its interval has no bound from so few blocks: {_longer(12 * period.width / period.watched, period)}"
            )
    return f"its bound is not within the target: {_longer(factor, period)}"


def _longer(factor: float, period: Period) -> str:
    if not math.isfinite(factor) or factor > MOST:
        return "more watching will not settle it"
    return f"about {lasting(max(factor, 1.1) * period.watched)} of watching in all"


def _samples_factor(bad: int, n: int, limit: float) -> float:
    """How many times as many samples like these exclude a rate of more than `limit`."""
    factor = 1.0
    while factor <= MOST and stats.error_bound(round(bad * factor), round(n * factor)) > limit:
        factor *= 1.1
    return factor


# What to do after the first day, derived from what was broken: data in, a headline with its reasons out.

LATENCY = ("p50_ms", "p95_ms", "p99_ms", "mean_ms")
AVAILABLE = ("availability", "error_rate", "success_rate")
INVESTIGATE = "investigate"
NAMED = 3  # rows by their names in a headline; more are counted


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, in a few words; `result` is met for keeping the release, missed for acting, else unproven."""

    result: Result
    headline: str
    reasons: tuple[str, ...]
    actions: tuple[str, ...]  # what the broken rules say, the most urgent first


def recommend(rows: Sequence[Row], incidents: Sequence[Incident], watch: Watch, period: Period) -> Recommendation:
    """The recommendation on a table and the incidents of the same time."""
    missed = [row for row in rows if row.result is Result.MISSED]
    unproven = [row for row in rows if row.result is Result.UNPROVEN]
    standing = [incident for incident in incidents if incident.ended is None]
    grave = [incident for incident in incidents if incident.level == "P1"]
    reasons = (
        *(
            _incident(incident, period)
            for incident in sorted(incidents, key=lambda own: (own.ended is not None, own.level))
        ),
        *(f"{row.name}: {row.said} misses {row.aim}" for row in missed),
        *(f"{row.name}: {row.takes}" for row in unproven),
    )
    urgent = [alert for incident in standing for alert in incident.alerts if alert.ended is None]
    if urgent or missed or grave:
        actions = _actions(urgent, missed, grave, watch)
        result = Result.MISSED if missed or grave else Result.UNPROVEN
        return Recommendation(result, _capital(actions[0]), reasons, actions)
    if not rows:
        return Recommendation(Result.UNPROVEN, "Say what it is held against", ("no target is configured",), ())
    if unproven:
        people = all(row.target.metric is None for row in unproven)
        names = ", ".join(row.name for row in unproven) if len(unproven) <= NAMED else f"{len(unproven)} targets"
        headline = f"Ask for what is missing: {names}" if people else f"Watch on: {names} unproven"
        return Recommendation(Result.UNPROVEN, headline, reasons, ())
    met = (f"all {len(rows)} targets are met" if len(rows) > 1 else "the target is met",)
    return Recommendation(Result.MET, "Keep", (*reasons, *met), ())


def _actions(
    urgent: Sequence[Alert], missed: Sequence[Row], grave: Sequence[Incident], watch: Watch
) -> tuple[str, ...]:
    """What stands is acted on first; a grave incident that ended must be understood, then comes what was missed."""
    found = [
        *(alert.action or INVESTIGATE for alert in sorted(urgent, key=lambda alert: alert.level)),
        *((INVESTIGATE,) if grave or any(row.target.metric in AVAILABLE for row in missed) else ()),
        *(action for incident in grave for action in incident.actions),
        *(action for row in missed for action in _against(row, watch.rule)),
    ]
    return tuple(dict.fromkeys(found))


def _against(row: Row, rules: Sequence[WatchRule]) -> Iterator[str]:
    """What the rules say of a figure that missed its target: the gravest that it breaks, else the mildest that is near.

    Near is a rule on the same figure, or for a latency without one, on any latency.
    """
    same = [rule for rule in rules if rule.metric == row.target.metric and rule.action]
    near = same or [rule for rule in rules if row.target.metric in LATENCY and rule.metric in LATENCY and rule.action]
    chosen = gravest(same, row.actual.value) or max(near, key=lambda rule: rule.level, default=None)
    yield chosen.action if chosen else INVESTIGATE


def _incident(incident: Incident, period: Period) -> str:
    what = ", ".join(dict.fromkeys(alert.rule for alert in incident.alerts))
    how_long = lasting(incident.lasted(period.end))
    if incident.ended is None:
        return f"{incident.level} {what} still stands after {how_long}"
    return f"{incident.level} {what} lasted {how_long}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# The first day held against its targets: the table, the incidents, and what to do. Pure functions.


@dataclass(frozen=True, slots=True)
class Reviewed:
    """All that a review says of one period of a watch."""

    about: About
    watch: Watch
    period: Period
    rows: tuple[Row, ...]
    incidents: tuple[Incident, ...]
    notes: tuple[Event, ...]  # what the watch said of itself
    gaps: tuple[tuple[float, float], ...]  # from, to on the time line: nobody watched
    recommendation: Recommendation
    cautions: tuple[str, ...]
    before: BeforeRelease | None = None
    beside: tuple[ReleaseComparison, ...] = ()


def review(
    record: Record,
    *,
    values: Mapping[str, Said] | None = None,
    before: BeforeRelease | None = None,
    settings: config.Config | None = None,
    since: str = "",
    until: str = "",
    last: str = "",
) -> Reviewed:
    """A record against the targets that it was begun with, or those of `settings`.

    Raises UsageError for a value of no row, and where no interval is in the time asked for.
    """
    watch, aims = (settings.watch, settings.review) if settings else store.settings(record.about)
    values = dict(values or {})
    period = cut(record, since, until, last)
    about, rows = record.about, []
    for target in aims.target:
        usual = figures.baseline(record.ticks, about.kinds, watch, target.item or "")
        rows.append(row(target, period, about, usual, values.pop(target.name, None), before))
    if values:
        names = ", ".join(target.name for target in aims.target) or "none: no target is configured"
        raise UsageError(f"value '{next(iter(values))}' is no row of the table; expected one of: {names}")
    clears = {rule.name: rule.clear_for_s for rule in watch.rule}
    found = tuple(
        own
        for own in incidents(record.events, clears, about.every_s)
        if own.since <= period.end and (own.ended is None or own.ended >= period.start)
    )
    notes = tuple(event for event in record.events if event.what == "note" and period.start <= event.t <= period.end)
    gaps = tuple(figures.gaps(period.ticks))
    return Reviewed(
        about,
        watch,
        period,
        tuple(rows),
        found,
        notes,
        gaps,
        recommend(rows, found, watch, period),
        tuple(_cautions(record, period, gaps)),
        before,
        tuple(beside(before, period, about)) if before else (),
    )


def _cautions(record: Record, period: Period, gaps: Sequence[tuple[float, float]]) -> Iterator[str]:
    if not period.whole_day:
        yield f"{lasting(period.seconds)} are reviewed, less than 24 h: load of the rest of a day is not in it"
    if gaps:
        lost = sum(end - start for start, end in gaps)
        yield f"nobody watched for {lasting(lost)} in {len(gaps)} gap{'s'[: len(gaps) > 1]}: figures are of the rest"
    if record.damaged:
        yield f"{record.damaged} line{'s'[: record.damaged > 1]} of the record could not be read"
