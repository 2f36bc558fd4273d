"""A review as tables and text for a notebook, and as the files review.html, review.json and review.md."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit.analysis.report import finite
from perfkit.base.bundle import require_spare, write_atomically
from perfkit.base.errors import BundleError, UsageError, name_of
from perfkit.base.units import clock, duration_text, stamp
from perfkit.config import load
from perfkit.config.judging import WatchRule
from perfkit.monitor import charts
from perfkit.monitor.alerts import Incident, Moment
from perfkit.monitor.dashboard import STATES
from perfkit.monitor.figures import figures_frame
from perfkit.monitor.notifications import limit_text
from perfkit.monitor.review import WORDS, ReportedValue, Reviewed, ReviewRow, before_release, review
from perfkit.monitor.store import read
from perfkit.runs.records import Bundle
from perfkit.show.charts import Picture
from perfkit.show.html import Banner, Bullets, Cell, Column, Part, Table, Terms, markdown, marked, number, stacked
from perfkit.show.render import REVIEW, OpenedPage, page_of

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = 1
MAX_NOTES = 20  # of the watch about itself
DIFFERENT_LOAD = "under load before the release, single probes since: not the same load, so not compared"
_METRICS = {"p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99", "error_rate": "error rate"}


class _Head(Banner):
    """The recommendation; its text ends with the period that was reviewed."""

    __slots__ = ()

    def text(self) -> str:
        """Return the lines of the head."""
        return "\n".join([self.word, self.sentence, *(f"- {reason}" for reason in self.reasons), self.meta])


@dataclass(frozen=True, slots=True)
class ReviewOptions:
    """How to review a watch; an empty text leaves an option out."""

    against: str = ""  # folder of the run before the release
    arm: str = ""  # the arm of that run that was shipped
    values: str = ""  # lines of NAME=X, for targets that nothing measures
    by: str = ""  # who reports the values
    since: str = ""  # ISO 8601, by default UTC
    until: str = ""
    last: str = ""  # "24h", in place of since and until
    config: str = ""  # a configuration file whose targets and rules replace those of the watch


@dataclass(frozen=True, slots=True, repr=False)
class Review(OpenedPage):
    """A reviewed watch; `options` are the parameters of its notebook. Opening and rendering it measures nothing."""

    folder: Path
    reviewed: Reviewed
    options: ReviewOptions

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
        title = f"{self.reviewed.recommendation.headline}: {self.reviewed.about.title}"
        # The slowest file, and the only one that may fail to render, comes first.
        page_of(REVIEW, {"folder": str(self.folder.resolve()), **asdict(self.options)}, out, title)
        write_atomically(out.with_suffix(".json"), as_json(self.reviewed))
        write_atomically(out.with_suffix(".md"), self._markdown())
        return out

    @property
    def recommendation(self) -> Part:
        """What to do, why, and the period that was reviewed."""
        recommended = self.reviewed.recommendation
        state, word = recommended.outcome.state, f"{recommended.outcome.mark} {recommended.headline}"
        title = f"{self.reviewed.about.title}: recommendation after the release"
        return _Head(state, title, word, self._summary(), self._reasons(), self._period())

    @property
    def table(self) -> Table:
        """The targets with their actual values, results and evidence."""

        def evidence(row: ReviewRow) -> Cell:
            return Cell(row.text or row.needs, row.needs if row.text else "")

        columns: list[Column[ReviewRow]] = [
            Column("Metric", lambda row: row.name),
            number("Target", lambda row: row.target_text),
            number("Actual", lambda row: Cell(row.value_text, row.interval_text, value=row.actual.value)),
            Column("Status", lambda row: marked(row.outcome.state, WORDS[row.outcome])),
            Column("Evidence", evidence),
        ]
        note = "Below an actual value: its 95 % confidence interval. Met: the whole interval is within the target."
        empty = "no [[review.target]] in the configuration"
        return Table.of("Targets and actuals", columns, self.reviewed.rows, note=note if self.reviewed.rows else empty)

    @property
    def incidents(self) -> Part:
        """The incidents with their timelines, the times without a watch, and the notes of the watch about itself."""
        reviewed, period = self.reviewed, self.reviewed.period
        notes = [note for note in reviewed.notes if period.start <= note.t <= period.end]
        more = len(notes) - MAX_NOTES
        lines = [
            f"{self._at(start)} to {self._at(end)} ({duration_text(end - start)}): not watched"
            for start, end in reviewed.gaps
        ]
        lines += [f"{self._at(note.t)} {note.text}" for note in notes[:MAX_NOTES]]
        lines += [f"and {more} more"] if more > 0 else []
        return stacked(self._incidents, self._timelines if reviewed.incidents else None, Bullets(lines, "weak"))

    @property
    def _incidents(self) -> Table:
        """One line for each incident."""

        def ended(row: tuple[int, Incident]) -> Cell:
            return Cell("still active", state="bad") if row[1].ended is None else Cell(self._at(row[1].ended))

        columns: list[Column[tuple[int, Incident]]] = [
            Column("", lambda row: str(row[0])),
            Column("Level", lambda row: Cell(row[1].level, state=STATES.get(row[1].level, ""))),
            Column("Began", lambda row: self._at(row[1].since)),
            number("Noticed after", lambda row: duration_text(max(row[1].noticed - row[1].since, 0.0))),
            Column("Ended", ended),
            number("Lasted", lambda row: duration_text(row[1].lasted(self.reviewed.period.end))),
            Column("Rules", lambda row: row[1].rules),
            Column("What to do", lambda row: "; ".join(row[1].actions)),
        ]
        incidents = self.reviewed.incidents
        return Table.of("Each incident", columns, enumerate(incidents, 1), note="" if incidents else "none")

    @property
    def _timelines(self) -> Table:
        columns: list[Column[tuple[str, Moment]]] = [
            Column("Incident", lambda row: row[0]),
            Column("UTC", lambda row: self._at(row[1].t)),
            Column("", lambda row: row[1].stage),
            Column("What", lambda row: row[1].text),
        ]
        moments = [
            (f"{n}: {incident.level}", moment)
            for n, incident in enumerate(self.reviewed.incidents, 1)
            for moment in incident.timeline(self.reviewed.notes)
        ]
        return Table.of("Timelines", columns, moments, headers=2, grouped=True)

    @property
    def against(self) -> Table:
        """The same figures before the release and since."""
        before, comparisons = self.reviewed.before, self.reviewed.comparisons
        if before is None:
            return Table("The same figures", (), (), note="no run was given: --against RUN")
        note = f"Run {before.name}, arm {before.arm}: {DIFFERENT_LOAD}."
        if not comparisons:
            note = f"Run {before.name} sent none of the requests of the watch: {', '.join(self.reviewed.about.kinds)}."
        rows = tuple(
            (Cell(row.item), Cell(_METRICS[row.metric]), Cell(*row.lightest), Cell(*row.highest), Cell(*row.since))
            for row in comparisons
        )
        columns = ("Request or query", "Figure", "Before: lightest load", "Before: highest load", "Since: probes")
        return Table("The same figures", columns, rows, frozenset(columns[2:]), headers=2, grouped=True, note=note)

    @property
    def latency_over_time(self) -> Part:
        """Percentiles over time, with targets and incidents."""
        return charts.latency_over_time(self.reviewed)

    @property
    def availability(self) -> Picture:
        """When the service was down."""
        return charts.availability(self.reviewed)

    @property
    def frame(self) -> DataFrame:
        """One row for each interval of the period and request or query, as `figures_frame` describes it."""
        return figures_frame(self.reviewed.period.ticks, self.reviewed.about)

    @property
    def plot(self) -> charts.WatchPlots:
        """The pictures of the period, each a function that draws into matplotlib axes."""
        alerts = [alert for incident in self.reviewed.incidents for alert in incident.alerts]
        return charts.WatchPlots(self.reviewed.about, self.reviewed.period, alerts)

    @property
    def method(self) -> Part:
        """How the watch measured, and how the review judged."""
        reviewed, about = self.reviewed, self.reviewed.about
        alerts = [alert.raised.rule for incident in reviewed.incidents for alert in incident.alerts]
        columns: list[Column[WatchRule]] = [
            Column("Rule", lambda rule: rule.name),
            Column("Level", lambda rule: str(rule.level)),
            Column("When", _condition),
            number("For", lambda rule: duration_text(rule.for_s)),
            Column("What to do", lambda rule: rule.action),
            number("Alerts", lambda rule: alerts.count(rule.name)),
        ]
        table = Table.of("Rules of the watch", columns, reviewed.watch.rule)
        sent = f"{', '.join(about.kinds)}: {about.rate:g} per second of each"
        values = {"sent": sent, "every": f"{about.every_s:g} s", "width": duration_text(reviewed.period.width)}
        return stacked(Terms([(term, meaning.format(**values)) for term, meaning in _METHODS.items()]), table)

    def __repr__(self) -> str:
        return f"{self.reviewed.about.title}: review of {self._period()}, in {self.folder}"

    def _reasons(self) -> list[str]:
        """Return the reasons of the recommendation, caveats and, if there are several, the actions of broken rules."""
        recommended = self.reviewed.recommendation
        actions = recommended.actions
        more = [f"actions of the broken rules: {', then '.join(actions)}"] if len(actions) > 1 else []
        return [*recommended.reasons, *self.reviewed.caveats, *more]

    def _summary(self) -> str:
        """Return the number of targets that are met, missed and unproven, and of incidents, in one sentence."""
        rows, n = self.reviewed.rows, len(self.reviewed.incidents)
        counts = {word: sum(row.outcome is outcome for row in rows) for outcome, word in WORDS.items()}
        results = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        happened = "no incidents" if not n else "1 incident" if n == 1 else f"{n} incidents"
        if not rows:
            return f"No target is configured; {happened}."
        return f"{len(rows)} target{'s'[: len(rows) > 1]}: {results}; {happened}."

    def _period(self) -> str:
        """Return what was watched, from when to when, and for how long."""
        period = self.reviewed.period
        began, ended = clock(period.wall(period.start)), clock(period.wall(period.end))
        return f"{self.reviewed.about.target} · {began} to {ended} UTC · {duration_text(period.seconds)}"

    def _at(self, t: float) -> str:
        """Return the time of day, with the date if the period covers more than one day."""
        period = self.reviewed.period
        at, first, last = (stamp(period.wall(when)) for when in (t, period.start, period.end))
        return at[11:] if first[:10] == last[:10] else at[5:]

    def _markdown(self) -> str:
        """Return the recommendation, the targets, the incidents and the comparison as Markdown."""
        headline, why = self.reviewed.recommendation.headline, self._reasons()
        lines = [f"**{markdown(headline)}** · {markdown(self.reviewed.about.title)}", "", self._summary(), ""]
        lines += [*(f"- {markdown(reason)}" for reason in why), *([""] if why else []), markdown(self._period()), ""]
        for table in (self.table, self._incidents, *([self.against] if self.reviewed.before else [])):
            shown = [table.caption, "", table.markdown()] if table.rows else [f"{table.caption}: {table.note}"]
            lines += [*shown, ""]
        return "\n".join(lines).rstrip() + "\n"


def _condition(rule: WatchRule) -> str:
    return f"{rule.metric}{f' of {rule.item}' if rule.item else ''} {limit_text(rule) or 'above 0'}"


_METHODS = {
    "probes": "{sent}, evenly spaced, however long the answers take; times count from when a probe was due. The users' "
    "own requests are not measured",
    "percentiles, mean": "over all answers of the period; the intervals come from blocks of {width}, because "
    "consecutive probes resemble each other",
    "error rate": "share of probes with an unexpected outcome; met if the upper bound is within the target",
    "availability": "share of the time, in intervals of {every}: an interval is down if a probe was due and none was "
    "answered as expected, so an outage shorter than an interval may not count",
    "met, missed, unproven": "met: the whole 95 % interval is within the target; missed: the value is not; unproven: "
    "all else",
    "incident": "alerts that overlap in time. An incident begins with the first interval beyond the limit, is noticed "
    "once the rule's time has passed, and ends once the figure has been good for long enough",
    "recommendation": "an active alert comes first, then a P1 incident that has ended, a missed target, an unproven "
    "target; the actions are those of the broken rules",
}


def as_json(reviewed: Reviewed) -> str:
    """Return the review as JSON: wall-clock times in ISO 8601, shares from 0 to 1, null for a missing number."""
    period, recommended = reviewed.period, reviewed.recommendation

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
        "recommendation": {
            "result": WORDS[recommended.outcome],
            "headline": recommended.headline,
            "reasons": recommended.reasons,
            "actions": recommended.actions,
        },
        "rows": [
            {
                "target": row.target.model_dump(),
                "actual": asdict(row.actual),
                "result": WORDS[row.outcome],
                "takes": row.needs,
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
                "rules": [alert.raised.rule for alert in incident.alerts],
                "alerts": [alert.raised.id for alert in incident.alerts],
                "actions": list(incident.actions),
                "timeline": [
                    {"at": at(moment.t), "stage": moment.stage, "text": moment.text}
                    for moment in incident.timeline(reviewed.notes)
                ],
            }
            for incident in reviewed.incidents
        ],
        "gaps": [{"from": at(start), "until": at(end)} for start, end in reviewed.gaps],
        "cautions": list(reviewed.caveats),
        "before": {"run": reviewed.before.name, "arm": reviewed.before.arm} if reviewed.before else None,
        "beside": [asdict(comparison) for comparison in reviewed.comparisons],
    }
    return json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def open_review(folder: Path, options: ReviewOptions | None = None) -> Review:
    """Open the folder of a watch and review it. Raises BundleError if it is not a watch's, UsageError for options."""
    options = options or ReviewOptions()
    if (folder / "run.json").exists() and not (folder / "watch.json").exists():
        raise BundleError(f"{folder}: holds a run; expected the folder of a watch, and the run as --against RUN")
    if options.arm and not options.against:
        raise UsageError(f"arm = '{options.arm}'; expected the run of this arm too: --against RUN")
    reviewed = review(
        read(folder),
        values=reported_values(options.values, options.by),
        before=before_release(Bundle.open(Path(options.against)), options.arm) if options.against else None,
        settings=load(Path(options.config)) if options.config else None,
        since=options.since,
        until=options.until,
        last=options.last,
    )
    # The notebook runs in another folder, so its paths are absolute.
    against, config = (str(Path(path).resolve()) if path else "" for path in (options.against, options.config))
    return Review(folder, reviewed, replace(options, against=against, config=config))


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
            raise UsageError(f"value '{line}' has no reporter; expected --by WHO")
        values[name] = ReportedValue(number, who)
    if who and not values:
        raise UsageError(f"--by {who} has no value to report; expected --value NAME=X")
    return values
