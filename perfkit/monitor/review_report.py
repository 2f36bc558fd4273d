"""A review as a notebook shows it, and the files that are kept of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from perfkit.analysis.report import finite
from perfkit.base.bundle import Bundle, require_spare, write_atomically
from perfkit.base.errors import BundleError, UsageError
from perfkit.config import load
from perfkit.monitor import charts
from perfkit.monitor.dashboard import LEVELS
from perfkit.monitor.incidents import Incident, clock, lasting, stamp
from perfkit.monitor.notifications import against as limit
from perfkit.monitor.review import DIFFERENT_LOAD, Result, Reviewed, before_release, review, values_of
from perfkit.monitor.store import read
from perfkit.show.html import MARKS, Block, Cell, OpenedPage, Table, explained, headed, listed, markdown, marked
from perfkit.show.render import REVIEW, page_of

_STATES = {Result.MET: "good", Result.MISSED: "bad", Result.UNPROVEN: "unsure"}
NOTES = 20  # of the watch on itself, shown
_METRICS = {"p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99", "error_rate": "error rate"}


def recommendation(found: Reviewed) -> Block:
    """What to do, why, and of what time that is said."""
    state = _STATES[found.recommendation.result]
    why = reasons(found)
    counts, headline = summary(found), f"{MARKS[state]} {found.recommendation.headline}"
    title = f"{found.about.title}: recommendation after the release"
    html = headed(state, title, headline, counts, listed(why), when(found))
    lines = [headline, counts, *(f"- {reason}" for reason in why), when(found)]
    return Block(html, "\n".join(lines))


def reasons(found: Reviewed) -> list[str]:
    """Why, what weakens it, and everything that the broken rules say where that is more than the headline."""
    told = found.recommendation
    more = [f"what the broken rules say: {', then '.join(told.actions)}"] if len(told.actions) > 1 else []
    return [*told.reasons, *found.cautions, *more]


def summary(found: Reviewed) -> str:
    """How many targets are met, missed and unproven, and how many incidents there were, in one sentence."""
    counts = {result: sum(row.result is result for row in found.rows) for result in Result}
    told = ", ".join(f"{count} {result}" for result, count in counts.items() if count)
    incidents = len(found.incidents)
    many = "no incident" if not incidents else "1 incident" if incidents == 1 else f"{incidents} incidents"
    return f"Of {len(found.rows)} targets {told}; {many}." if found.rows else f"No target is configured; {many}."


def when(found: Reviewed) -> str:
    """What was watched, from when to when."""
    period = found.period
    began, ended = clock(period.wall(period.start)), clock(period.wall(period.end))
    return f"{found.about.target} · {began} to {ended} UTC · {lasting(period.seconds)}"


def review_table(found: Reviewed) -> Table:
    """Metric, target, actual and status as the checklist has them, each with its evidence."""
    rows = tuple(
        (
            Cell(row.name),
            Cell(row.aim),
            Cell(row.said, row.range),
            marked(_STATES[row.result], row.result),
            Cell(row.actual.how or row.takes, row.takes if row.actual.how else ""),
        )
        for row in found.rows
    )
    note = "Below an actual value: where the true one is, 95 % sure. Met: all of that is within the target."
    columns = ("Metric", "Target", "Actual", "Status", "Evidence")
    empty = "no [[review.target]] in the configuration"
    return Table("Targets and actuals", columns, rows, frozenset({"Target", "Actual"}), note=note if rows else empty)


def incidents(found: Reviewed) -> Block:
    """Every incident in a line, then what became of each, what the watch noted of itself, and when nobody watched."""
    parts = [incident_table(found), *([_timelines(found)] if found.incidents else [])]
    notes = [f"{_at(found, note.t)} {note.text}" for note in found.notes[:NOTES]]
    notes += [f"and {len(found.notes) - NOTES} more"] if len(found.notes) > NOTES else []
    gaps = [
        f"{_at(found, start)} to {_at(found, end)} ({lasting(end - start)}): nobody watched"
        for start, end in found.gaps
    ]
    html = "".join(part.to_html() for part in parts) + listed((*gaps, *notes), "weak")
    text = "\n\n".join(part.to_text() for part in parts)
    return Block(html, "\n".join([text, *(f"- {line}" for line in (*gaps, *notes))]))


def incident_table(found: Reviewed) -> Table:
    """Every incident in a line."""
    rows = tuple(
        (
            Cell(f"{number}"),
            Cell(own.level, state=LEVELS.get(own.level, "")),
            Cell(_at(found, own.since)),
            Cell(lasting(max(own.noticed - own.since, 0.0))),
            Cell(_at(found, own.ended) if own.ended is not None else "still stands", state="" if own.ended else "bad"),
            Cell(lasting(own.lasted(found.period.end))),
            Cell(", ".join(dict.fromkeys(alert.rule for alert in own.alerts))),
            Cell("; ".join(own.actions)),
        )
        for number, own in enumerate(found.incidents, 1)
    )
    columns = ("", "Level", "Began", "Noticed after", "Ended", "Lasted", "Rules", "What to do")
    return Table("Each incident", columns, rows, frozenset({"Noticed after", "Lasted"}), note="" if rows else "none")


def _timelines(found: Reviewed) -> Table:
    rows = tuple(
        (Cell(_name(number, own)), Cell(_at(found, moment.t)), Cell(moment.stage), Cell(moment.text))
        for number, own in enumerate(found.incidents, 1)
        for moment in own.timeline()
    )
    return Table("What became of it", ("Incident", "UTC", "", "What"), rows, headers=2, grouped=True)


def _name(number: int, incident: Incident) -> str:
    return f"{number}: {incident.level}"


def _at(found: Reviewed, t: float) -> str:
    """Time of day; with the date where the review is of more than one."""
    at, first, last = (stamp(found.period.wall(when)) for when in (t, found.period.start, found.period.end))
    return at[11:] if first[:10] == last[:10] else at[5:]


def against(found: Reviewed) -> Table:
    """The same figures before the release and since."""
    before = found.before
    if before is None:
        return Table("The same figures", (), (), note="no run was named: --against RUN")
    rows = tuple(
        (
            Cell(own.item),
            Cell(_METRICS[own.metric]),
            Cell(*own.lightest),
            Cell(*own.highest),
            Cell(*own.since),
        )
        for own in found.beside
    )
    columns = ("Request or query", "Figure", "Before: lightest load", "Before: highest load", "Since: probes")
    note = f"Run {before.name}, arm {before.arm}: {DIFFERENT_LOAD}."
    if not rows:
        note = f"Run {before.name} sent none of what the watch sends: {', '.join(found.about.kinds)}."
    return Table("The same figures", columns, rows, frozenset(columns[2:]), headers=2, grouped=True, note=note)


def rules(found: Reviewed) -> Table:
    """The rules that raise alerts."""
    rows = tuple(
        (
            Cell(rule.name),
            Cell(rule.level),
            Cell(f"{rule.metric}{f' of {rule.item}' if rule.item else ''} {limit(rule) or 'above 0'}"),
            Cell(lasting(rule.for_s)),
            Cell(rule.action),
            Cell(str(sum(alert.rule == rule.name for own in found.incidents for alert in own.alerts))),
        )
        for rule in found.watch.rule
    )
    columns = ("Rule", "Level", "When", "For", "What to do", "Alerts")
    return Table("Rules of the watch", columns, rows, frozenset({"For", "Alerts"}))


def method(found: Reviewed) -> Block:
    """What was watched and how it was judged."""
    words, shown = list(_words(found)), rules(found)
    text = "\n".join(f"{name}: {text}" for name, text in words)
    return Block(f"{explained(words)}{shown.to_html()}", f"{text}\n\n{shown.to_text()}")


def _words(found: Reviewed) -> Iterator[tuple[str, str]]:
    about, period = found.about, found.period
    yield (
        "probes",
        (
            f"{', '.join(about.kinds)}: {about.rate:g} per second of each, evenly spaced, whatever the answers take; "
            "times count from when a probe was due. Nothing is known of the users' own requests"
        ),
    )
    yield (
        "percentiles, mean",
        (
            f"over all answers of the time; their intervals are from blocks of {lasting(period.width)}, "
            "since neighbouring probes resemble each other"
        ),
    )
    yield "error rate", "unexpected outcomes among all probes; met where this many exclude more than the target"
    yield (
        "availability",
        (
            f"share of the time, in intervals of {about.every_s:g} s: one is down where something was due and nothing "
            "was answered as expected, so an outage that only touches an interval does not count"
        ),
    )
    yield (
        "met, missed, unproven",
        ("both ends of the 95 % interval are within the target; the value itself is not; neither"),
    )
    yield (
        "incident",
        (
            "alerts that overlap in time; it began with the first interval beyond the limit, was noticed when the "
            "rule's time had passed, and ended when it had been good for long enough"
        ),
    )
    yield (
        "recommendation",
        (
            "an alert that stands comes first, then a P1 incident that ended, then what was missed, then what is "
            "unproven; what to do is what the broken rules say"
        ),
    )


# A review as a notebook shows it, and the files that are kept of it.

FORMAT = 1


@dataclass(frozen=True, slots=True, repr=False)
class Review(OpenedPage):
    """A watch held against its targets; nothing here measures. `asked` is what its notebook is given."""

    folder: Path
    found: Reviewed
    asked: Mapping[str, str]

    def render(self, out: Path | None = None) -> Path:
        """Write review.html, review.json and review.md into the watch's folder, or `out` and two beside it.

        Returns the page. The same record gives the same bytes. Raises BundleError, UsageError.
        """
        out = require_spare(out or self.folder / "review.html", "review")
        if out.suffix != ".html":
            raise UsageError(f"{out}; expected a name that ends in .html")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BundleError(f"{out}: cannot be written ({error.strerror}); expected a writable folder") from None
        title = f"{self.found.recommendation.headline}: {self.found.about.title}"
        page_of(REVIEW, {"folder": str(self.folder.resolve()), **self.asked}, out, title)  # a second or two: first
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
        """What happened, and when nobody watched."""
        return incidents(self.found)

    @property
    def against(self) -> Table:
        """Before the release and since."""
        return against(self.found)

    @property
    def latency_over_time(self) -> Block:
        """Percentiles of every half hour."""
        return charts.latency_over_time(self.found)

    @property
    def availability(self) -> Block:
        """When it was down."""
        return charts.availability(self.found)

    @property
    def method(self) -> Block:
        """How it was judged."""
        return method(self.found)

    def __repr__(self) -> str:
        return f"{self.found.about.title}: review of {when(self.found)}, in {self.folder}"


def as_json(found: Reviewed) -> str:
    """The review for machines: times on the wall clock in ISO 8601, shares of one, null where there is no number."""
    period = found.period

    def at(t: float | None) -> str | None:
        return None if t is None else f"{stamp(period.wall(t)).replace(' ', 'T')}Z"

    told = {
        "format": FORMAT,
        "title": found.about.title,
        "watch": found.about.id,
        "target": found.about.target,
        "from": at(period.start),
        "until": at(period.end),
        "seconds": period.seconds,
        "watched_s": period.watched,
        "recommendation": asdict(found.recommendation),
        "rows": [
            {
                "target": row.target.model_dump(),
                "actual": asdict(row.actual),
                "result": row.result,
                "takes": row.takes,
            }
            for row in found.rows
        ],
        "incidents": [
            {
                "level": own.level,
                "began": at(own.since),
                "noticed": at(own.noticed),
                "eased": at(own.eased),
                "ended": at(own.ended),
                "seconds": own.lasted(period.end),
                "rules": [alert.rule for alert in own.alerts],
                "alerts": [alert.id for alert in own.alerts],
                "actions": list(own.actions),
                "timeline": [{"at": at(m.t), "stage": m.stage, "text": m.text} for m in own.timeline()],
            }
            for own in found.incidents
        ],
        "gaps": [{"from": at(start), "until": at(end)} for start, end in found.gaps],
        "cautions": list(found.cautions),
        "before": {"run": found.before.name, "arm": found.before.arm} if found.before else None,
        "beside": [asdict(own) for own in found.beside],
    }
    return json.dumps(finite(told), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_markdown(found: Reviewed) -> str:
    """The recommendation, the table and the incidents as Markdown."""
    lines = [
        f"**{markdown(found.recommendation.headline)}** · {markdown(found.about.title)}",
        "",
        summary(found),
        "",
    ]
    why = reasons(found)
    lines += [
        *(f"- {markdown(reason)}" for reason in why),
        *([""] if why else []),
        markdown(when(found)),
        "",
    ]
    tables = [review_table(found), incident_table(found), *([against(found)] if found.before else [])]
    for table in tables:
        lines += [table.caption, "", table.to_markdown(), ""] if table.rows else [f"{table.caption}: {table.note}", ""]
    return "\n".join(lines).rstrip() + "\n"


def opened(
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
    """A watch's folder held against its targets, or those of a configuration.

    `values` are lines of NAME=X. Raises BundleError for a folder that is no watch's, UsageError for wrong values.
    """
    if (folder / "run.json").exists() and not (folder / "watch.json").exists():
        raise BundleError(f"{folder}: the folder of a run; expected that of a watch, and a run as --against")
    if arm and not against:
        raise UsageError(f"arm = '{arm}'; expected with it the run that it is of: --against RUN")
    record = read(folder)
    found = review(
        record,
        values=values_of(values, by),
        before=before_release(Bundle.open(Path(against)), arm) if against else None,
        settings=load(Path(config)) if config else None,
        since=since,
        until=until,
        last=last,
    )
    asked = {"values": values, "by": by, "arm": arm, "since": since, "until": until, "last": last}
    paths = {"against": against, "config": config}  # the notebook runs elsewhere
    whole = {name: str(Path(path).resolve()) if path else "" for name, path in paths.items()}
    return Review(folder, found, {**asked, **whole})
