"""The first day held against its targets: the table, the incidents, and what to do. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from perfkit import config
from perfkit.config.watching import Watch
from perfkit.errors import UsageError
from perfkit.monitor import figures, store
from perfkit.monitor.before_release import BeforeRelease, ReleaseComparison, beside
from perfkit.monitor.incidents import Incident, incidents
from perfkit.monitor.model import About, Event, Record
from perfkit.monitor.period import Period, cut, lasting
from perfkit.monitor.recommend import Recommendation, recommend
from perfkit.monitor.rows import Row, Said, row


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
