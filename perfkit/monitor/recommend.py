"""What to do after the first day, derived from what was broken: data in, a headline with its reasons out.

In this order: an alert that still stands, a P1 incident that ended, what was missed, what is unproven; else keep it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perfkit.config.watching import Watch, WatchRule
from perfkit.monitor.incidents import Alert, Incident
from perfkit.monitor.period import Period, lasting
from perfkit.monitor.rows import Result, Row
from perfkit.monitor.severity import gravest

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
