"""The dashboard of a watch: the page `watch.html` in its folder, for the engineer on call.

python -m perfkit.monitor.dashboard FOLDER

The page requests nothing and runs no script; it reloads itself while the watch runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Literal

from perfkit.base import units
from perfkit.base.bundle import reading, write_atomically
from perfkit.base.errors import PerfkitError, visible
from perfkit.base.units import DAY_S, clock, duration_text, stamp
from perfkit.config.judging import Metric, WatchRule
from perfkit.monitor import store
from perfkit.monitor.charts import LEVELS as CHART_LEVELS
from perfkit.monitor.charts import Panel, Span, WatchSeries, exceptions, legend
from perfkit.monitor.figures import (
    compute_baseline,
    compute_figures,
    database_down,
    find_gaps,
    increase,
    item_names,
    service_down,
    window,
)
from perfkit.monitor.model import MISSED, Alert, Period, Record, gravest, gravity, limit
from perfkit.monitor.notifications import formatted, limit_text
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


class WatchStatus:
    """The status of a watch with at least one interval, as of `now` (wall clock, seconds since 1970).

    `running` says whether a watch writes to its folder. Raises BundleError for damaged settings.
    """

    def __init__(self, record: Record, now: float, *, running: bool) -> None:
        about, ticks = record.about, record.ticks
        self.record, self.now, self.running, self.watch = record, now, running, about.watch
        self.last, self.whole = ticks[-1], Period(ticks)
        self.recent = window(ticks, self.watch.window_s)
        self.baseline = compute_baseline(ticks, about.kinds, self.watch)
        latest = sorted(record.alerts, key=lambda alert: -alert.raised.t)
        # Active alerts come first, the gravest of them at the top.
        self.active = sorted((alert for alert in latest if not alert.cleared), key=lambda alert: alert.raised.level)
        self.alerts = [*self.active, *(alert for alert in latest if alert.cleared)]
        # The figures by the time that they cover, the shortest first: the one that the rules use.
        shorter = [seconds for seconds in (self.watch.window_s, HOUR_S) if self.watch.window_s <= seconds]
        times = {f"last {duration_text(seconds)}": seconds for seconds in shorter if seconds < self.whole.seconds}
        times[f"all {duration_text(self.whole.seconds)}"] = self.whole.seconds + 1
        self.spans = {
            name: compute_figures(window(ticks, seconds), about.kinds, self.baseline) for name, seconds in times.items()
        }
        self.span, self.values = next(iter(self.spans.items()))
        # 0 if the clock was set back.
        self.age_s = max(now - self.last.at, 0.0)
        missed = int(self.age_s / about.every_s)
        self.missed = missed if missed >= MISSED else 0

    def wall(self, t: float) -> str:
        """Return the time of the wall clock at a point of the time line."""
        return _clock(self.whole.wall(t))

    def rules(self, metric: str) -> list[WatchRule]:
        """Return the rules on a metric of all items, the gravest first."""
        rules = [rule for rule in self.watch.rule if rule.metric == metric and not rule.item]
        return sorted(rules, key=gravity)

    def level(self, metric: str) -> str:
        """Return the gravest level of a metric whose limit is broken now, without an item; empty if none is."""
        broken = gravest(self.rules(metric), self.values.get(metric))
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
        since = max((alert.ended or 0.0 for alert in status.alerts), default=status.whole.start)
        at, lasted = clock(status.whole.wall(since)), duration_text(status.last.t - since)
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
    kinds = status.record.about.kinds
    values = {name: compute_figures(status.recent, kinds, None, name) for name in kinds}

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
    now, missing = (
        status.last.server or {},
        "the database does not answer" if status.last.server is None else "not watched",
    )
    rows = [(name, text, metric) for name, text, metric in _server(status, now) if text] if now else []

    def value(row: tuple[str, str, str]) -> Cell:
        level = status.level(row[2])
        return Cell(row[1], level, STATES.get(level, ""))

    table = Table.of(f"Database server, {status.span}", [Column("figure", itemgetter(0)), Column("value", value)], rows)
    scans = [tick.scans for tick in status.record.ticks if tick.scans] if now else []
    if not scans:
        return replace(table, note="" if rows else missing)
    idle = sorted(name for name in scans[-1] if not increase(scans, name))
    text = f"{len(scans[-1]) - len(idle)} of {len(scans[-1])} since the watch began"
    used = Cell(text, f"not used: {', '.join(idle)}" if idle else "")
    return replace(table, rows=(*table.rows, (Cell("Indexes used"), used)))


def _server(status: WatchStatus, now: Mapping[str, float]) -> Iterator[tuple[str, str, Metric | Literal[""]]]:
    """Yield name, value and metric of the server's figures; the value is empty if it is unknown."""
    seconds = status.recent[-1].t - status.recent[0].t

    def current(key: str, words: str = "") -> str:
        return f"{units.count(now[key])}{words}" if key in now else ""

    def figure(metric: Metric) -> str:
        value = status.values[metric]
        return "" if value is None else formatted(metric, value)

    def rate(counter: str, show: Callable[[float], str]) -> str:
        growth = increase([tick.server for tick in status.recent if tick.server], counter)
        return f"{show(growth / seconds)}/s" if growth is not None and seconds else ""

    misses = status.values["cache_misses"]
    states = {"active": " active", "waiting": " waiting for a lock", "idle_in_transaction": " idle in a transaction"}
    known = [current(key, words) for key, words in states.items() if key in now]
    most = f" of {current('connections_max')}" if "connections_max" in now else ""
    yield "Connections", current("connections", most), "connections_share"
    yield "Sessions", ", ".join(known), ""
    yield "Longest wait for a lock", figure("lock_wait_s"), "lock_wait_s"
    yield "Oldest transaction", figure("transaction_s"), "transaction_s"
    yield "Locks on tables and indexes", current("locks_held"), ""
    yield "Transactions committed", rate("commits", units.significant), ""
    yield "Rolled back", figure("rollback_rate"), "rollback_rate"
    yield "Pages found in shared buffers", "" if misses is None else units.percent(1 - misses), "cache_misses"
    yield "Temporary files", figure("temp_mb"), "temp_mb"
    yield "WAL", rate("wal_bytes", units.size), ""
    yield "Deadlocks", figure("deadlocks"), "deadlocks"
    yield "Wrong checksums", figure("checksum_failures"), "checksum_failures"
    yield "Invalid indexes", current("invalid_indexes"), "invalid_indexes"


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
    """Write the page of a watch's folder and return its path. Raises PerfkitError if the folder is not a watch's."""
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
        parts = list(_sections(WatchStatus(record, now, running=running), every_s))
    return html_page(f"{title}: watch", "<main>", *parts, "</main>", again_s=every_s if running else 0.0)


def _sections(status: WatchStatus, every_s: float) -> Iterator[Part]:
    yield banner(status, every_s)
    yield Section([Section([overview(status), items(status)]), server(status)], kind="columns")
    ticks = status.record.ticks
    yield _panels(status, Period(window(ticks, HOUR_S)), "hour")
    yield events(status)
    if status.whole.seconds > HOUR_S + status.last.seconds:
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
