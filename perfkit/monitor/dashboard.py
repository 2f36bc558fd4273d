"""The dashboard of a watch: the page `watch.html` in its folder, for the engineer on call.

python -m perfkit.monitor.dashboard FOLDER

The page requests nothing and runs no script; it reloads itself while the watch runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perfkit.base import units
from perfkit.base.bundle import reading, write_atomically
from perfkit.base.errors import PerfkitError, visible
from perfkit.config.judging import Metric, Watch, WatchRule
from perfkit.monitor import store
from perfkit.monitor.charts import LEVELS as CHART_LEVELS
from perfkit.monitor.charts import Panel, Span, WatchSeries, exceptions, legend
from perfkit.monitor.figures import (
    Baseline,
    compute_baseline,
    compute_figures,
    database_down,
    find_gaps,
    increase,
    item_names,
    service_down,
    window,
)
from perfkit.monitor.incidents import DAY_S, Period, clock, duration_text, stamp
from perfkit.monitor.model import MISSED, Alert, Record, Tick, gravest, gravity, limit
from perfkit.monitor.notifications import Values, formatted, limit_text
from perfkit.show.html import Banner, Cell, Column, Paragraph, Part, Section, Table, number
from perfkit.show.html import page as html_page

NAME = "watch.html"
HOUR_S = 3600.0
LEAST_S = 30.0  # between two versions of the page
MAX_EVENTS = 40  # the latest; events.jsonl has all
FIGURES: dict[Metric, str] = {
    "p50_ms": "P50 latency",
    "p95_ms": "P95 latency",
    "p99_ms": "P99 latency",
    "error_rate": "Error rate",
    "throughput": "Throughput",
    "availability": "Availability",
}
STATES = {"P1": "bad", "P2": "bad", "P3": "unsure"}
# The metrics whose rules each panel shows.
_RULES: Mapping[Metric, tuple[Metric, ...]] = {
    "p50_ms": ("p50_ms", "mean_ms", "slowdown"),
    "p95_ms": ("p95_ms",),
    "p99_ms": ("p99_ms",),
    "error_rate": ("error_rate",),
    "throughput": ("throughput", "throughput_drop"),
}


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """The status of a watch with at least one interval, as of `now` (wall clock, seconds since 1970)."""

    record: Record
    watch: Watch
    baseline: Baseline | None
    now: float
    running: bool  # whether a watch writes to its folder
    alerts: list[Alert]  # active alerts, the gravest first, then the latest first
    spans: Mapping[str, Values]  # figures by the time they cover, the shortest first

    @classmethod
    def of(cls, record: Record, now: float, *, running: bool) -> WatchStatus:
        """Return the status of a watch. Raises BundleError for damaged settings."""
        about, ticks, watch = record.about, record.ticks, record.about.watch
        baseline = compute_baseline(ticks, about.kinds, watch)
        ordered = sorted(record.alerts, key=lambda alert: -alert.raised.t)
        ordered.sort(key=lambda alert: (alert.ended is not None, alert.raised.level if alert.ended is None else ""))
        whole_s = ticks[-1].t - ticks[0].start
        shorter = [seconds for seconds in (watch.window_s, HOUR_S) if watch.window_s <= seconds < whole_s]
        names = {f"last {duration_text(seconds)}": seconds for seconds in shorter}
        names |= {f"all {duration_text(whole_s)}": whole_s + 1}
        spans = {
            name: compute_figures(window(ticks, seconds), about.kinds, baseline) for name, seconds in names.items()
        }
        return cls(record, watch, baseline, now, running, ordered, spans)

    @property
    def last(self) -> Tick:
        """The last interval."""
        return self.record.ticks[-1]

    @property
    def span(self) -> str:
        """The time that the rules use, in words."""
        return next(iter(self.spans))

    @property
    def values(self) -> Values:
        """The figures that the rules use."""
        return self.spans[self.span]

    @property
    def age_s(self) -> float:
        """Seconds since the last interval ended; 0 if the clock was set back."""
        return max(self.now - self.last.at, 0.0)

    @property
    def missed(self) -> int:
        """The number of missing intervals since the last one; 0 if the watch is merely late."""
        count = int(self.age_s / self.record.about.every_s)
        return count if count >= MISSED else 0

    @property
    def active(self) -> list[Alert]:
        """The active alerts."""
        return [alert for alert in self.alerts if not alert.cleared]

    def wall(self, t: float) -> str:
        """Return the time of the wall clock at a point of the time line."""
        return _clock(Period(self.record.ticks).wall(t))

    def rules(self, metric: str) -> list[WatchRule]:
        """Return the rules on a metric of all items, the gravest first."""
        rules = [rule for rule in self.watch.rule if rule.metric == metric and not rule.item]
        return sorted(rules, key=gravity)

    def level(self, metric: str) -> str:
        """Return the gravest level of a metric whose limit is broken now, without an item; empty if none is."""
        broken = gravest(self.rules(metric), self.values[metric])
        return broken.level if broken else ""


def _clock(at: float) -> str:
    return units.unbroken(stamp(at))


def banner(status: WatchStatus, every_s: float) -> Banner:
    """Return the active alerts, their age, and the age of the page, which is rewritten every `every_s` seconds."""
    state, word = _headline(status)
    sentence, *more = [*_silence(status), *_alerts(status)]
    return Banner(state, status.record.about.title, word, sentence, more, " · ".join(_meta(status, every_s)))


def _headline(status: WatchStatus) -> tuple[str, str]:
    """Return the state for the style sheet, and its word.

    An active alert outweighs the end of the watch, but not a watch that hangs: its alerts may be out of date.
    """
    if status.missed and status.running:
        return "bad", "NOT WATCHING"
    if status.active:
        gravest_alert = status.active[0].raised
        return STATES.get(gravest_alert.level, "bad"), f"{gravest_alert.level} {gravest_alert.rule}"
    return ("good", "ALL QUIET") if status.running else ("unsure", "ENDED")


def _silence(status: WatchStatus) -> Iterator[str]:
    at = f"{_clock(status.last.at)} UTC"
    if not status.running:
        yield f"The watch has ended: its last interval was at {at}. Monitoring is not running."
    elif status.missed:
        missed = units.count(status.missed)
        yield f"The watch has written nothing for {missed} intervals, since {at}: its process hangs or cannot write."


def _alerts(status: WatchStatus) -> Iterator[str]:
    for alert in status.active:
        raised, lasted = alert.raised, duration_text(status.last.t - alert.raised.since)
        rule = next((rule for rule in status.watch.rule if rule.name == raised.rule and not rule.item), None)
        value = status.values[rule.metric] if rule else None
        now = f", now {formatted(rule.metric, value)}" if rule and value is not None else ""
        yield f"{raised.level} {raised.rule}, for {lasted}{now}: {raised.text}"
    if not status.active:
        ends = [alert.ended for alert in status.alerts if alert.ended is not None]
        since = max(ends, default=status.record.ticks[0].start)
        at, lasted = clock(Period(status.record.ticks).wall(since)), duration_text(status.last.t - since)
        yield f"No {'active ' if status.alerts else ''}alert since {at} UTC, for {lasted}."


def _meta(status: WatchStatus, every_s: float) -> Iterator[str]:
    about = status.record.about
    yield about.target
    yield f"watched since {clock(about.began)} UTC, every {duration_text(about.every_s)}"
    yield f"page written at {_clock(status.now)} UTC, {duration_text(status.age_s)} after the last interval ended"
    if status.running:
        yield f"rewritten about every {duration_text(every_s)}: if yours is much older, monitoring is not running"
    if status.record.damaged:
        yield f"{status.record.damaged} lines of the record could not be read"


def overview(status: WatchStatus) -> Table:
    """Return the figures of the last minutes, the last hour and the whole watch, beside their limits."""

    def figure(span: str, metric: Metric) -> Cell:
        level = status.level(metric) if span == status.span else ""
        return Cell(formatted(metric, status.spans[span][metric]), level, STATES.get(level, ""))

    def limits(metric: Metric) -> Cell:
        return Cell(", ".join(f"{rule.level} {limit_text(rule)}" for rule in status.rules(metric)), state="quiet")

    note = (
        f"Of {', '.join(item_names(status.record.about.kinds))}, from when each was due. Rules use the last "
        f"{duration_text(status.watch.window_s)}. A dash: not enough samples."
    )
    figures = [number(span, partial(figure, span)) for span in status.spans]
    columns = [Column("figure", FIGURES.__getitem__), *figures, Column("limits", limits)]
    return Table.of("Now and before", columns, FIGURES, note=note)


def items(status: WatchStatus) -> Table:
    """Return the figures of each request and query over the last minutes."""
    kinds, recent = status.record.about.kinds, window(status.record.ticks, status.watch.window_s)
    values = {name: compute_figures(recent, kinds, None, name) for name in kinds}

    def figure(metric: Metric, name: str) -> Cell:
        value = values[name][metric]
        return Cell(formatted(metric, value), state="bad" if metric == "error_rate" and value else "")

    def pending(name: str) -> int:
        return status.last.probes[name].pending if name in status.last.probes else 0

    shown: dict[str, Metric] = {"P50": "p50_ms", "P95": "p95_ms", "P99": "p99_ms"}
    shown |= {"error rate": "error_rate", "answered": "throughput"}
    columns = [
        Column("request or query", lambda name: Cell(name, kinds[name])),
        *(number(title, partial(figure, metric)) for title, metric in shown.items()),
        number("unanswered", pending),
    ]
    return Table.of(f"By request and query, {status.span}", columns, kinds)


def events(status: WatchStatus) -> Table:
    """Return alerts, gaps and notes of the watch: active alerts first, then the latest."""
    record, blank = status.record, Cell("")
    active = [_alert(status, alert) for alert in status.active]
    past = [(alert.raised.t, _alert(status, alert)) for alert in status.alerts if alert.cleared]
    for note in record.notes:
        past.append((note.t, (Cell("note", state="quiet"), Cell(note.text), Cell(_clock(note.at)), *[blank] * 4)))
    for since, until in find_gaps(record.ticks):
        what = Cell(f"not watched for {duration_text(until - since)}")
        times = Cell(status.wall(since)), Cell(status.wall(until))
        past.append((until, (Cell("gap", state="unsure"), what, *times, *[blank] * 3)))
    rows = [*active, *(row for _, row in sorted(past, key=lambda timed: -timed[0]))]
    earlier = f"{units.count(len(rows) - MAX_EVENTS)} earlier ones are in events.jsonl."
    columns = ("level", "what", "since", "until", "value", "limit", "action")
    remark = earlier if len(rows) > MAX_EVENTS else "" if rows else "none so far"
    return Table("Alerts and notes, UTC", columns, tuple(rows[:MAX_EVENTS]), frozenset({"value", "limit"}), note=remark)


def _alert(status: WatchStatus, alert: Alert) -> tuple[Cell, ...]:
    raised = alert.raised
    metric = next((rule.metric for rule in status.watch.rule if rule.name == raised.rule), None)
    return (
        Cell(raised.level, state=STATES.get(raised.level, "")),
        Cell(raised.rule, raised.text),
        Cell(status.wall(raised.since)),
        Cell("active", state="bad") if alert.ended is None else Cell(status.wall(alert.ended)),
        Cell(formatted(metric, raised.value)),
        Cell(formatted(metric, raised.limit)),
        Cell(raised.action),
    )


def server(status: WatchStatus) -> Table:
    """Return the figures of the database server: now, or over the last minutes."""
    rows = tuple(_server(status)) if status.last.server else ()
    missing = "the database does not answer" if status.last.server is None else "not watched"
    return Table(f"Database server, {status.span}", ("figure", "value"), rows, note="" if rows else missing)


def _server(status: WatchStatus) -> Iterator[tuple[Cell, Cell]]:
    now, values = status.last.server or {}, status.values
    recent = window(status.record.ticks, status.watch.window_s)
    readings, seconds = [tick.server for tick in recent if tick.server], recent[-1].t - recent[0].t

    def row(name: str, value: str, metric: str = "") -> tuple[Cell, Cell]:
        level = status.level(metric) if metric else ""
        return Cell(name), Cell(value, level, STATES.get(level, ""))

    def metric(name: str, key: Metric) -> Iterator[tuple[Cell, Cell]]:
        if values[key] is not None:
            yield row(name, formatted(key, values[key]), key)

    def rate(counter: str) -> float | None:
        growth = increase(readings, counter)
        return growth / seconds if growth is not None and seconds else None

    if "connections" in now:
        most = f" of {units.count(now['connections_max'])}" if "connections_max" in now else ""
        yield row("Connections", f"{units.count(now['connections'])}{most}", "connections_share")
    states = {"active": "active", "waiting": "waiting for a lock", "idle_in_transaction": "idle in a transaction"}
    if known := [f"{units.count(now[key])} {words}" for key, words in states.items() if key in now]:
        yield row("Sessions", ", ".join(known))
    yield from metric("Longest wait for a lock", "lock_wait_s")
    yield from metric("Oldest transaction", "transaction_s")
    if "locks_held" in now:
        yield row("Locks on tables and indexes", units.count(now["locks_held"]))
    if (commits := rate("commits")) is not None:
        yield row("Transactions committed", f"{units.significant(commits)}/s")
    yield from metric("Rolled back", "rollback_rate")
    if (misses := values["cache_misses"]) is not None:
        yield row("Pages found in shared buffers", units.percent(1 - misses), "cache_misses")
    yield from metric("Temporary files", "temp_mb")
    if (wal := rate("wal_bytes")) is not None:
        yield row("WAL", f"{units.size(wal)}/s")
    yield from metric("Deadlocks", "deadlocks")
    yield from metric("Wrong checksums", "checksum_failures")
    if "invalid_indexes" in now:
        yield row("Invalid indexes", units.count(now["invalid_indexes"]), "invalid_indexes")
    if scans := [tick.scans for tick in status.record.ticks if tick.scans]:
        idle = sorted(name for name in scans[-1] if not increase(scans, name))
        text = f"{len(scans[-1]) - len(idle)} of {len(scans[-1])} since the watch began"
        yield Cell("Indexes used"), Cell(text, f"not used: {', '.join(idle)}" if idle else "")


def panels(status: WatchStatus, period: Period, slug: str) -> Iterator[Panel]:
    """Yield the panels of one period; `slug` makes their HTML ids unique on the page."""
    kinds, series = status.record.about.kinds, WatchSeries(period, status.record.about)
    spans = exceptions(period, lambda tick: service_down(tick, kinds) or database_down(tick, kinds))
    lines = {
        "p50_ms": series.percentile(50),
        "p95_ms": series.percentile(95),
        "p99_ms": series.percentile(99),
        "error_rate": series.error_rate(),
        "throughput": series.throughput(),
    }
    for metric, rules in _RULES.items():
        value, unit = status.values[metric], {"error_rate": "%", "throughput": "per second"}.get(metric, "ms")
        now = "not enough samples" if value is None else formatted(metric, value)
        limits = [(_in_panel(status, rule), rule.level) for other in rules for rule in status.rules(other)]
        yield Panel(
            f"{slug}-{metric}",
            f"{FIGURES[metric]}, {unit}",
            f"{now}, {status.span}",
            unit,
            lines[metric],
            [(at, level) for at, level in limits if at is not None],
            [*spans, *_panel_alerts(status, metric)],
            series.slowest() if metric == "p99_ms" else None,
        )


def _in_panel(status: WatchStatus, rule: WatchRule) -> float | None:
    """Return the limit of a rule in the unit of its panel; None if it is relative to a baseline that is unknown."""
    usual = status.baseline
    match rule.metric:
        case "error_rate":
            return limit(rule) * 100
        case "slowdown":
            return limit(rule) * usual.p50_ms if usual else None
        case "throughput_drop":
            return (1 - limit(rule)) * usual.throughput if usual else None
    return limit(rule)


def _panel_alerts(status: WatchStatus, metric: Metric) -> Iterator[Span]:
    """Yield the alerts on the panel's metric, and those on a metric without a panel."""
    metrics = {rule.name: rule.metric for rule in status.watch.rule}
    elsewhere = {other for name, others in _RULES.items() if name != metric for other in others}
    for alert in status.alerts:
        if metrics.get(alert.raised.rule) not in elsewhere:
            # The record may hold any text as a level: only known ones are drawn.
            level = alert.raised.level if alert.raised.level in CHART_LEVELS else "alert"
            yield Span(alert.raised.since, status.last.t if alert.ended is None else alert.ended, level)


def write(folder: Path) -> Path:
    """Write the page of a watch's folder and return its path. Raises PerfkitError if it is no watch's folder."""
    record = store.read(folder)
    path, running = folder / NAME, store.held(folder)
    # A damaged record may hold figures that no chart can show: one line then names the folder.
    with reading(folder):
        text = page(record, time.time(), running=running)
    write_atomically(path, text)
    return path


def page(record: Record, now: float, *, running: bool) -> str:
    """Return the page as of `now`, in seconds since 1970; `running` if the watch still runs."""
    every_s = max(LEAST_S, record.about.every_s)
    title = record.about.title
    parts: list[Part] = [Section([Paragraph("The watch has no interval yet.")], title, level=1)]
    if record.ticks:
        parts = list(_sections(WatchStatus.of(record, now, running=running), every_s))
    return html_page(f"{title}: watch", "<main>", *parts, "</main>", again_s=every_s if running else 0.0)


def _sections(status: WatchStatus, every_s: float) -> Iterator[Part]:
    yield banner(status, every_s)
    yield Section([Section([overview(status), items(status)]), server(status)], kind="columns")
    ticks = status.record.ticks
    yield _panels(status, Period(window(ticks, HOUR_S)), "hour")
    yield events(status)
    if Period(ticks).seconds > HOUR_S + status.last.seconds:
        yield _panels(status, Period(window(ticks, DAY_S)), "day")


def _panels(status: WatchStatus, period: Period, slug: str) -> Section:
    drawn = [panel.picture(period) for panel in panels(status, period, slug)]
    return Section(
        [Section([*drawn, legend()], kind="gallery panels")], f"Last {duration_text(period.seconds)}", level=2
    )


def main() -> None:
    """Write the page of the folder given as argument, or exit with one line and status 1."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m perfkit.monitor.dashboard FOLDER")
    try:
        write(Path(sys.argv[1]))
    except PerfkitError as error:
        sys.exit(visible(error))
    except OSError as error:
        sys.exit(visible(f"{sys.argv[1]}: {error.strerror or error}; expected the folder of a watch, writable"))


if __name__ == "__main__":
    main()
