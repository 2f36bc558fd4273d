"""A review as tables and text for a notebook, and as the files review.html, review.json and review.md."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from perfkit.analysis.report import finite
from perfkit.base.bundle import require_spare, write_atomically
from perfkit.base.errors import BundleError, UsageError, name_of
from perfkit.base.judgement import MARKS
from perfkit.config import load
from perfkit.monitor import charts
from perfkit.monitor.dashboard import STATES
from perfkit.monitor.incidents import clock, duration_text, stamp
from perfkit.monitor.notifications import limit_text
from perfkit.monitor.review import DIFFERENT_LOAD, ReportedValue, Result, Reviewed, before_release, review
from perfkit.monitor.store import read
from perfkit.runs.records import Bundle
from perfkit.show.html import Block, Cell, OpenedPage, Table, explained, headed, listed, markdown, marked
from perfkit.show.render import REVIEW, page_of

_STATES = {Result.MET: "good", Result.MISSED: "bad", Result.UNPROVEN: "unsure"}
MAX_NOTES = 20  # of the watch about itself
_METRICS = {"p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99", "error_rate": "error rate"}


def recommendation(reviewed: Reviewed) -> Block:
    """Return what to do, why, and the period that was reviewed."""
    state = _STATES[reviewed.recommendation.result]
    why, period = reasons(reviewed), period_text(reviewed)
    counts, headline = summary(reviewed), f"{MARKS[state]} {reviewed.recommendation.headline}"
    title = f"{reviewed.about.title}: recommendation after the release"
    html = headed(state, title, headline, counts, listed(why), period)
    lines = [headline, counts, *(f"- {reason}" for reason in why), period]
    return Block(html, "\n".join(lines))


def reasons(reviewed: Reviewed) -> list[str]:
    """Return the reasons of the recommendation, its caveats and, if there are several, the actions of broken rules."""
    recommended = reviewed.recommendation
    actions = recommended.actions
    more = [f"actions of the broken rules: {', then '.join(actions)}"] if len(actions) > 1 else []
    return [*recommended.reasons, *reviewed.caveats, *more]


def summary(reviewed: Reviewed) -> str:
    """Return the number of targets that are met, missed and unproven, and of incidents, in one sentence."""
    counts = {result: sum(row.result is result for row in reviewed.rows) for result in Result}
    results = ", ".join(f"{count} {result}" for result, count in counts.items() if count)
    number = len(reviewed.incidents)
    happened = "no incidents" if not number else "1 incident" if number == 1 else f"{number} incidents"
    if not reviewed.rows:
        return f"No target is configured; {happened}."
    return f"{len(reviewed.rows)} target{'s'[: len(reviewed.rows) > 1]}: {results}; {happened}."


def period_text(reviewed: Reviewed) -> str:
    """Return what was watched, from when to when, and for how long."""
    period = reviewed.period
    began, ended = clock(period.wall(period.start)), clock(period.wall(period.end))
    return f"{reviewed.about.target} · {began} to {ended} UTC · {duration_text(period.seconds)}"


def review_table(reviewed: Reviewed) -> Table:
    """Return the targets with their actual values, results and evidence."""
    rows = tuple(
        (
            Cell(row.target.name),
            Cell(row.target_text),
            Cell(row.value_text, row.interval_text),
            marked(_STATES[row.result], row.result),
            Cell(row.actual.how or row.needed, row.needed if row.actual.how else ""),
        )
        for row in reviewed.rows
    )
    note = "Below an actual value: its 95 % confidence interval. Met: the whole interval is within the target."
    columns = ("Metric", "Target", "Actual", "Status", "Evidence")
    empty = "no [[review.target]] in the configuration"
    return Table("Targets and actuals", columns, rows, frozenset({"Target", "Actual"}), note=note if rows else empty)


def incidents(reviewed: Reviewed) -> Block:
    """Return the incidents with their timelines, the times without a watch, and the notes of the watch about itself."""
    parts = [incident_table(reviewed), *([_timelines(reviewed)] if reviewed.incidents else [])]
    notes = [f"{_at(reviewed, note.t)} {note.text}" for note in reviewed.notes[:MAX_NOTES]]
    notes += [f"and {len(reviewed.notes) - MAX_NOTES} more"] if len(reviewed.notes) > MAX_NOTES else []
    gaps = [
        f"{_at(reviewed, start)} to {_at(reviewed, end)} ({duration_text(end - start)}): not watched"
        for start, end in reviewed.gaps
    ]
    html = "".join(part.to_html() for part in parts) + listed((*gaps, *notes), "weak")
    text = "\n\n".join(part.to_text() for part in parts)
    return Block(html, "\n".join([text, *(f"- {line}" for line in (*gaps, *notes))]))


def incident_table(reviewed: Reviewed) -> Table:
    """Return one line for each incident."""
    rows = tuple(
        (
            Cell(f"{number}"),
            Cell(incident.level, state=STATES.get(incident.level, "")),
            Cell(_at(reviewed, incident.since)),
            Cell(duration_text(max(incident.noticed - incident.since, 0.0))),
            Cell(
                _at(reviewed, incident.ended) if incident.ended is not None else "still active",
                state="" if incident.ended else "bad",
            ),
            Cell(duration_text(incident.lasted(reviewed.period.end))),
            Cell(", ".join(dict.fromkeys(alert.rule for alert in incident.alerts))),
            Cell("; ".join(incident.actions)),
        )
        for number, incident in enumerate(reviewed.incidents, 1)
    )
    columns = ("", "Level", "Began", "Noticed after", "Ended", "Lasted", "Rules", "What to do")
    return Table("Each incident", columns, rows, frozenset({"Noticed after", "Lasted"}), note="" if rows else "none")


def _timelines(reviewed: Reviewed) -> Table:
    rows = tuple(
        (Cell(f"{number}: {incident.level}"), Cell(_at(reviewed, moment.t)), Cell(moment.stage), Cell(moment.text))
        for number, incident in enumerate(reviewed.incidents, 1)
        for moment in incident.timeline()
    )
    return Table("What became of it", ("Incident", "UTC", "", "What"), rows, headers=2, grouped=True)


def _at(reviewed: Reviewed, t: float) -> str:
    """Return the time of day, with the date if the period covers more than one day."""
    at, first, last = (stamp(reviewed.period.wall(when)) for when in (t, reviewed.period.start, reviewed.period.end))
    return at[11:] if first[:10] == last[:10] else at[5:]


def against(reviewed: Reviewed) -> Table:
    """Return the same figures before the release and since."""
    before = reviewed.before
    if before is None:
        return Table("The same figures", (), (), note="no run was given: --against RUN")
    rows = tuple(
        (
            Cell(comparison.item),
            Cell(_METRICS[comparison.metric]),
            Cell(*comparison.lightest),
            Cell(*comparison.highest),
            Cell(*comparison.since),
        )
        for comparison in reviewed.comparisons
    )
    columns = ("Request or query", "Figure", "Before: lightest load", "Before: highest load", "Since: probes")
    note = f"Run {before.name}, arm {before.arm}: {DIFFERENT_LOAD}."
    if not rows:
        note = f"Run {before.name} sent none of the requests of the watch: {', '.join(reviewed.about.kinds)}."
    return Table("The same figures", columns, rows, frozenset(columns[2:]), headers=2, grouped=True, note=note)


def rules(reviewed: Reviewed) -> Table:
    """Return the rules that raise alerts, with the number of alerts of each."""
    rows = tuple(
        (
            Cell(rule.name),
            Cell(rule.level),
            Cell(f"{rule.metric}{f' of {rule.item}' if rule.item else ''} {limit_text(rule) or 'above 0'}"),
            Cell(duration_text(rule.for_s)),
            Cell(rule.action),
            Cell(str(sum(alert.rule == rule.name for incident in reviewed.incidents for alert in incident.alerts))),
        )
        for rule in reviewed.watch.rule
    )
    columns = ("Rule", "Level", "When", "For", "What to do", "Alerts")
    return Table("Rules of the watch", columns, rows, frozenset({"For", "Alerts"}))


def method(reviewed: Reviewed) -> Block:
    """Return how the watch measured, and how the review judged."""
    methods, table = list(_methods(reviewed)), rules(reviewed)
    text = "\n".join(f"{name}: {text}" for name, text in methods)
    return Block(f"{explained(methods)}{table.to_html()}", f"{text}\n\n{table.to_text()}")


def _methods(reviewed: Reviewed) -> Iterator[tuple[str, str]]:
    about, period = reviewed.about, reviewed.period
    yield (
        "probes",
        f"{', '.join(about.kinds)}: {about.rate:g} per second of each, evenly spaced, however long the answers take; "
        "times count from when a probe was due. The users' own requests are not measured",
    )
    yield (
        "percentiles, mean",
        f"over all answers of the period; the intervals come from blocks of {duration_text(period.width)}, "
        "because consecutive probes resemble each other",
    )
    yield "error rate", "share of probes with an unexpected outcome; met if the upper bound is within the target"
    yield (
        "availability",
        f"share of the time, in intervals of {about.every_s:g} s: an interval is down if a probe was due and none was "
        "answered as expected, so an outage shorter than an interval may not count",
    )
    yield (
        "met, missed, unproven",
        "met: the whole 95 % interval is within the target; missed: the value is not; unproven: all else",
    )
    yield (
        "incident",
        "alerts that overlap in time. An incident begins with the first interval beyond the limit, is noticed once "
        "the rule's time has passed, and ends once the figure has been good for long enough",
    )
    yield (
        "recommendation",
        "an active alert comes first, then a P1 incident that has ended, a missed target, an unproven target; the "
        "actions are those of the broken rules",
    )


FORMAT = 1


@dataclass(frozen=True, slots=True, repr=False)
class Review(OpenedPage):
    """A reviewed watch; `parameters` are those of its notebook. Opening and rendering a review measures nothing."""

    folder: Path
    found: Reviewed
    parameters: Mapping[str, str]

    def render(self, out: Path | None = None) -> Path:
        """Write review.html, review.json and review.md into the watch's folder, or `out` and two files beside it.

        Returns the path of the page. The same record gives the same bytes. Raises BundleError, UsageError.
        """
        out = require_spare(out or self.folder / "review.html", "review")
        if out.suffix != ".html":
            raise UsageError(f"{out}: expected a name that ends in .html")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BundleError(f"{out}: cannot be written ({error.strerror}); expected a writable folder") from None
        title = f"{self.found.recommendation.headline}: {self.found.about.title}"
        # The slowest file, and the only one that may fail to render, comes first.
        page_of(REVIEW, {"folder": str(self.folder.resolve()), **self.parameters}, out, title)
        write_atomically(out.with_suffix(".json"), as_json(self.found))
        write_atomically(out.with_suffix(".md"), as_markdown(self.found))
        return out

    @property
    def recommendation(self) -> Block:
        """What to do, and why."""
        return recommendation(self.found)

    @property
    def table(self) -> Table:
        """Targets and actuals."""
        return review_table(self.found)

    @property
    def incidents(self) -> Block:
        """The incidents, and the times without a watch."""
        return incidents(self.found)

    @property
    def against(self) -> Table:
        """The same figures before the release and since."""
        return against(self.found)

    @property
    def latency_over_time(self) -> Block:
        """Percentiles over time, with targets and incidents."""
        return charts.latency_over_time(self.found)

    @property
    def availability(self) -> Block:
        """When the service was down."""
        return charts.availability(self.found)

    @property
    def method(self) -> Block:
        """How the watch measured, and how the review judged."""
        return method(self.found)

    def __repr__(self) -> str:
        return f"{self.found.about.title}: review of {period_text(self.found)}, in {self.folder}"


def as_json(reviewed: Reviewed) -> str:
    """Return the review as JSON: wall-clock times in ISO 8601, shares from 0 to 1, null for a missing number."""
    period = reviewed.period

    def at(t: float | None) -> str | None:
        return None if t is None else f"{stamp(period.wall(t)).replace(' ', 'T')}Z"

    content = {
        "format": FORMAT,
        "title": reviewed.about.title,
        "watch": reviewed.about.id,
        "target": reviewed.about.target,
        "from": at(period.start),
        "until": at(period.end),
        "seconds": period.seconds,
        "watched_s": period.watched,
        "recommendation": asdict(reviewed.recommendation),
        "rows": [
            {
                "target": row.target.model_dump(),
                "actual": asdict(row.actual),
                "result": row.result,
                "takes": row.needed,
            }
            for row in reviewed.rows
        ],
        "incidents": [
            {
                "level": incident.level,
                "began": at(incident.since),
                "noticed": at(incident.noticed),
                "eased": at(incident.eased),
                "ended": at(incident.ended),
                "seconds": incident.lasted(period.end),
                "rules": [alert.rule for alert in incident.alerts],
                "alerts": [alert.id for alert in incident.alerts],
                "actions": list(incident.actions),
                "timeline": [{"at": at(m.t), "stage": m.stage, "text": m.text} for m in incident.timeline()],
            }
            for incident in reviewed.incidents
        ],
        "gaps": [{"from": at(start), "until": at(end)} for start, end in reviewed.gaps],
        "cautions": list(reviewed.caveats),
        "before": {"run": reviewed.before.name, "arm": reviewed.before.arm} if reviewed.before else None,
        "beside": [asdict(comparison) for comparison in reviewed.comparisons],
    }
    return json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_markdown(reviewed: Reviewed) -> str:
    """Return the recommendation, the targets, the incidents and the comparison as Markdown."""
    lines = [
        f"**{markdown(reviewed.recommendation.headline)}** · {markdown(reviewed.about.title)}",
        "",
        summary(reviewed),
        "",
    ]
    why = reasons(reviewed)
    lines += [
        *(f"- {markdown(reason)}" for reason in why),
        *([""] if why else []),
        markdown(period_text(reviewed)),
        "",
    ]
    tables = [review_table(reviewed), incident_table(reviewed), *([against(reviewed)] if reviewed.before else [])]
    for table in tables:
        lines += [table.caption, "", table.to_markdown(), ""] if table.rows else [f"{table.caption}: {table.note}", ""]
    return "\n".join(lines).rstrip() + "\n"


def open_review(
    folder: Path,
    *,
    against: str = "",
    arm: str = "",
    values: str = "",
    by: str = "",
    config: str = "",
    since: str = "",
    until: str = "",
    last: str = "",
) -> Review:
    """Open the folder of a watch and review it against its targets, or those of the configuration file `config`.

    `values` are lines of NAME=X, reported by `by`. Raises BundleError if the folder is not that of a watch, and
    UsageError for wrong values.
    """
    if (folder / "run.json").exists() and not (folder / "watch.json").exists():
        raise BundleError(f"{folder}: holds a run; expected the folder of a watch, and the run as --against RUN")
    if arm and not against:
        raise UsageError(f"arm = '{arm}'; expected the run of this arm too: --against RUN")
    record = read(folder)
    reviewed = review(
        record,
        values=reported_values(values, by),
        before=before_release(Bundle.open(Path(against)), arm) if against else None,
        settings=load(Path(config)) if config else None,
        since=since,
        until=until,
        last=last,
    )
    parameters = {"values": values, "by": by, "arm": arm, "since": since, "until": until, "last": last}
    # The notebook runs in another folder, so its paths are absolute.
    paths = {"against": against, "config": config}
    absolute = {name: str(Path(path).resolve()) if path else "" for name, path in paths.items()}
    return Review(folder, reviewed, {**parameters, **absolute})


def reported_values(text: str, by: str) -> dict[str, ReportedValue]:
    """Return the values that `by` reports, from lines of NAME=X. Raises UsageError."""
    values: dict[str, ReportedValue] = {}
    who = name_of(by)
    for line in filter(str.strip, text.splitlines()):
        name, _, number_text = line.rpartition("=")
        name = name.strip()
        try:
            number = float(number_text)
        except ValueError:
            number = math.nan
        if not name or not math.isfinite(number):
            raise UsageError(f"value '{line}'; expected NAME=X with a number, like User rating=4.3")
        if name in values:
            raise UsageError(f"value '{line}': '{name}' is given twice; expected one value")
        if not who:
            raise UsageError(f"value '{line}' names nobody who reports it; expected --by WHO")
        values[name] = ReportedValue(number, who)
    if who and not values:
        raise UsageError(f"--by {who} has no value to report; expected --value NAME=X")
    return values
