"""The dashboard of a watch: the page `watch.html` in its folder, for the engineer on call.

python -m perfkit.monitor.dashboard FOLDER

The page requests nothing and runs no script; it reloads itself while the watch runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from perfkit.base import units
from perfkit.base.bundle import reading, write_atomically
from perfkit.base.errors import PerfkitError, visible
from perfkit.config.judging import Metric, WatchRule
from perfkit.monitor import figures, model, store
from perfkit.monitor.alerts import HOUR_S, WatchStatus, watch_status
from perfkit.monitor.charts import LEVELS as CHART_LEVELS
from perfkit.monitor.charts import Limit, Line, Panel, Span, WatchSeries, draw, legend
from perfkit.monitor.figures import increase
from perfkit.monitor.incidents import DAY_S, Alert, Period, clock, duration_text, stamp
from perfkit.monitor.model import Event, Record, limit
from perfkit.monitor.notifications import formatted, limit_text
from perfkit.show.html import Block, Cell, Table, escape, headed, listed
from perfkit.show.html import page as html_page

NAME = "watch.html"
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


def banner(status: WatchStatus, every_s: float) -> Block:
    """Return the active alerts, their age, and the age of the page, which is rewritten every `every_s` seconds."""
    state, word = _headline(status)
    sentences = [*_silence(status), *_alerts(status)]
    meta = " · ".join(_meta(status, every_s))
    html = headed(state, status.record.about.title, word, sentences[0], listed(sentences[1:]), meta)
    return Block(html, "\n".join([word, *sentences, meta]))


def _headline(status: WatchStatus) -> tuple[str, str]:
    """Return the state for the style sheet, and its word.

    An active alert outweighs the end of the watch, but not a watch that hangs: its alerts may be out of date.
    """
    if status.missed and status.running:
        return "bad", "NOT WATCHING"
    if status.active:
        level = status.active[0].level
        return STATES.get(level, "bad"), f"{level} {status.active[0].rule}"
    if not status.running:
        return "unsure", "ENDED"
    return "good", "ALL QUIET"


def _silence(status: WatchStatus) -> Iterator[str]:
    at = f"{_clock(status.last.at)} UTC"
    if not status.running:
        yield f"The watch has ended: its last interval was at {at}. Monitoring is not running."
    elif status.missed:
        yield (
            f"The watch has written nothing for {units.count(status.missed)} intervals, since {at}: its process hangs "
            "or cannot write."
        )


def _alerts(status: WatchStatus) -> Iterator[str]:
    for alert in status.active:
        lasted = duration_text(status.last.t - alert.since)
        rule = next((rule for rule in status.watch.rule if rule.name == alert.rule and not rule.item), None)
        value = status.values[rule.metric] if rule else None
        now = f", now {formatted(rule.metric, value)}" if rule and value is not None else ""
        yield f"{alert.level} {alert.rule}, for {lasted}{now}: {alert.text}"
    if not status.active:
        since = status.whole.wall(status.quiet_since)
        lasted = duration_text(status.last.t - status.quiet_since)
        yield f"No {'active ' if status.alerts else ''}alert since {clock(since)} UTC, for {lasted}."


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
    rows = tuple(
        (
            Cell(name),
            *(_cell(status, metric, values[metric], i == 0) for i, values in enumerate(status.spans.values())),
            Cell(_limits(status, metric), state="quiet"),
        )
        for metric, name in FIGURES.items()
    )
    names = figures.item_names(status.record.about.kinds)
    note = (
        f"Of {', '.join(names)}, from when each was due. Rules use the last {duration_text(status.watch.window_s)}. "
        "A dash: not enough samples."
    )
    columns = ("figure", *status.spans, "limits")
    return Table("Now and before", columns, rows, frozenset(status.spans), note=note)


def _cell(status: WatchStatus, metric: Metric, value: float | None, judged: bool) -> Cell:
    level = status.level(metric) if judged else ""
    return Cell(formatted(metric, value), level, STATES.get(level, "") if level else "")


def _limits(status: WatchStatus, metric: Metric) -> str:
    """Return the limits of the rules without an item, the gravest first."""
    rules = [rule for rule in status.watch.rule if rule.metric == metric and not rule.item]
    return ", ".join(f"{rule.level} {limit_text(rule)}" for rule in sorted(rules, key=model.gravity))


def items(status: WatchStatus) -> Table:
    """Return the figures of each request and query over the last minutes."""
    about, recent = status.record.about, status.recent
    columns = ("request or query", "P50", "P95", "P99", "error rate", "answered", "unanswered")
    rows = []
    for name, kind in about.kinds.items():
        values = figures.compute_figures(recent, about.kinds, None, name)
        pending = status.last.probes[name].pending if name in status.last.probes else 0
        latency = (Cell(formatted(metric, values[metric])) for metric in ("p50_ms", "p95_ms", "p99_ms"))
        failed = Cell(formatted("error_rate", values["error_rate"]), state="bad" if values["error_rate"] else "")
        rows.append(
            (
                Cell(name, kind),
                *latency,
                failed,
                Cell(formatted("throughput", values["throughput"])),
                Cell(str(pending)),
            )
        )
    return Table(f"By request and query, {next(iter(status.spans))}", columns, tuple(rows), frozenset(columns[1:]))


def events(status: WatchStatus) -> Table:
    """Return alerts, gaps and notes of the watch: active alerts first, then the latest."""
    wall = status.whole.wall
    rows = [(alert.noticed, _alert(status, alert, wall)) for alert in status.alerts]
    active = [row for _, row in rows[: len(status.active)]]
    notes = [(event.t, _note(event)) for event in status.record.events if event.what == "note"]
    gaps = [(until, _gap(since, until, wall)) for since, until in figures.find_gaps(status.record.ticks)]
    past = [row for _, row in sorted([*rows[len(status.active) :], *notes, *gaps], key=lambda timed: -timed[0])]
    columns = ("level", "what", "since", "until", "value", "limit", "action")
    left = len(active) + len(past) - MAX_EVENTS
    note = f"{units.count(left)} earlier ones are in events.jsonl." if left > 0 else ""
    return Table(
        "Alerts and notes, UTC",
        columns,
        tuple((active + past)[:MAX_EVENTS]),
        frozenset({"value", "limit"}),
        note=note or ("" if active or past else "none so far"),
    )


def _alert(status: WatchStatus, alert: Alert, wall: Callable[[float], float]) -> tuple[Cell, ...]:
    metric = next((rule.metric for rule in status.watch.rule if rule.name == alert.rule), None)
    until = Cell("active", state="bad") if alert.ended is None else Cell(_clock(wall(alert.ended)))
    return (
        Cell(alert.level, state=STATES.get(alert.level, "")),
        Cell(alert.rule, alert.text),
        Cell(_clock(wall(alert.since))),
        until,
        Cell(formatted(metric, alert.value)),
        Cell(formatted(metric, alert.limit)),
        Cell(alert.action),
    )


def _gap(since: float, until: float, wall: Callable[[float], float]) -> tuple[Cell, ...]:
    what = Cell(f"not watched for {duration_text(until - since)}")
    times = Cell(_clock(wall(since))), Cell(_clock(wall(until)))
    return (Cell("gap", state="unsure"), what, *times, *[Cell("")] * 3)


def _note(event: Event) -> tuple[Cell, ...]:
    return (Cell("note", state="quiet"), Cell(event.text), Cell(_clock(event.at)), *[Cell("")] * 4)


def _clock(at: float) -> str:
    return units.unbroken(stamp(at))


def server(status: WatchStatus) -> Table:
    """Return the figures of the database server: now, or over the last minutes."""
    span = next(iter(status.spans))
    rows = tuple(_server(status)) if status.last.server else ()
    missing = "the database does not answer" if status.last.server is None else "not watched"
    note = "" if rows else missing
    return Table(f"Database server, {span}", ("figure", "value"), rows, note=note)


def _server(status: WatchStatus) -> Iterator[tuple[Cell, Cell]]:
    now, values = status.last.server or {}, status.values
    readings = [tick.server for tick in status.recent if tick.server]
    seconds = status.recent[-1].t - status.recent[0].t

    def count(name: str) -> str:
        return units.count(now[name])

    def row(name: str, value: str, metric: str = "", note: str = "") -> tuple[Cell, Cell]:
        level = status.level(metric) if metric else ""
        return Cell(name), Cell(value, ", ".join(filter(None, (level, note))), STATES.get(level, ""))

    def metric(name: str, key: Metric) -> Iterator[tuple[Cell, Cell]]:
        if values[key] is not None:
            yield row(name, formatted(key, values[key]), key)

    if "connections" in now:
        limit = f" of {count('connections_max')}" if "connections_max" in now else ""
        yield row("Connections", f"{count('connections')}{limit}", "connections_share")
    states = {"active": "active", "waiting": "waiting for a lock", "idle_in_transaction": "idle in a transaction"}
    if known := [f"{count(key)} {words}" for key, words in states.items() if key in now]:
        yield row("Sessions", ", ".join(known))
    yield from metric("Longest wait for a lock", "lock_wait_s")
    yield from metric("Oldest transaction", "transaction_s")
    if "locks_held" in now:
        yield row("Locks on tables and indexes", count("locks_held"))
    commits = increase(readings, "commits")
    if commits is not None and seconds:
        yield row("Transactions committed", f"{units.significant(commits / seconds)}/s")
    yield from metric("Rolled back", "rollback_rate")
    if (misses := values["cache_misses"]) is not None:
        yield row("Pages found in shared buffers", units.percent(1 - misses), "cache_misses")
    yield from metric("Temporary files", "temp_mb")
    wal = increase(readings, "wal_bytes")
    if wal is not None and seconds:
        yield row("WAL", f"{units.size(wal / seconds)}/s")
    yield from metric("Deadlocks", "deadlocks")
    yield from metric("Wrong checksums", "checksum_failures")
    if "invalid_indexes" in now:
        yield row("Invalid indexes", count("invalid_indexes"), "invalid_indexes")
    yield from _scans(status)


def _scans(status: WatchStatus) -> Iterator[tuple[Cell, Cell]]:
    """Yield the number of indexes scanned since the watch began, and the names of the others."""
    known = [tick.scans for tick in status.record.ticks if tick.scans]
    if not known:
        return
    idle = [name for name in known[-1] if not increase(known, name)]
    text = f"{len(known[-1]) - len(idle)} of {len(known[-1])} since the watch began"
    yield Cell("Indexes used"), Cell(text, f"not used: {', '.join(sorted(idle))}" if idle else "")


# The metrics whose rules each panel shows.
_RULES: Mapping[Metric, tuple[Metric, ...]] = {
    "p50_ms": ("p50_ms", "mean_ms", "slowdown"),
    "p95_ms": ("p95_ms",),
    "p99_ms": ("p99_ms",),
    "error_rate": ("error_rate",),
    "throughput": ("throughput", "throughput_drop"),
}


def panels(status: WatchStatus, period: Period, slug: str) -> Iterator[Panel]:
    """Yield the panels of one period; `slug` makes their HTML ids unique on the page."""
    series, everywhere = WatchSeries(period, status.record.about), [*_unwatched(period), *_down(status, period)]
    for metric, line in _lines(series):
        unit = {"error_rate": "%", "throughput": "per second"}.get(metric, "ms")
        yield Panel(
            f"{slug}-{metric}",
            f"{FIGURES[metric]}, {unit}",
            f"{_now(status, metric)}, {next(iter(status.spans))}",
            unit,
            line,
            list(_panel_limits(status, metric)),
            [*everywhere, *_panel_alerts(status, metric)],
            series.slowest() if metric == "p99_ms" else None,
        )


def _now(status: WatchStatus, metric: Metric) -> str:
    value = status.values[metric]
    return "not enough samples" if value is None else formatted(metric, value)


def _lines(series: WatchSeries) -> Iterator[tuple[Metric, Line]]:
    yield "p50_ms", series.percentile(50)
    yield "p95_ms", series.percentile(95)
    yield "p99_ms", series.percentile(99)
    errors = series.error_rate()
    yield "error_rate", replace(errors, y=errors.y * 100)
    yield "throughput", series.throughput()


def _panel_limits(status: WatchStatus, metric: Metric) -> Iterator[Limit]:
    """Yield the limits of the rules without an item; limits relative to the baseline need a baseline."""
    for rule in status.watch.rule:
        if rule.metric in _RULES[metric] and not rule.item and (value := _in_panel(status, rule)) is not None:
            yield Limit(value, rule.level)


def _in_panel(status: WatchStatus, rule: WatchRule) -> float | None:
    """Return the limit of a rule in the unit of its panel."""
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
        if metrics.get(alert.rule) not in elsewhere:
            # The record may hold any text as a level: only known ones are drawn.
            level = alert.level if alert.level in CHART_LEVELS else "alert"
            yield Span(alert.since, status.last.t if alert.ended is None else alert.ended, level)


def _unwatched(period: Period) -> Iterator[Span]:
    for since, until in figures.find_gaps(period.ticks):
        yield Span(since, until, "unwatched")


def _down(status: WatchStatus, period: Period) -> Iterator[Span]:
    """Yield the times in which the service or the database was down."""
    kinds = status.record.about.kinds
    for since, until in figures.find_stretches(
        period.ticks, lambda tick: figures.service_down(tick, kinds) or figures.database_down(tick, kinds)
    ):
        yield Span(since, until, "down")


def write(folder: Path) -> Path:
    """Write the page of a watch's folder and return its path. Raises PerfkitError if it is no watch's folder."""
    record = store.read(folder)
    path = folder / NAME
    running = store.held(folder)
    # A damaged record may hold figures that no chart can show: one line then names the folder.
    with reading(folder):
        text = page(record, time.time(), running=running)
    write_atomically(path, text)
    return path


def page(record: Record, now: float, *, running: bool) -> str:
    """Return the page as of `now`, in seconds since 1970; `running` if the watch still runs."""
    every_s = max(LEAST_S, record.about.every_s)
    title = record.about.title
    if not record.ticks:
        content = f"<h1>{escape(title)}</h1><p>The watch has no interval yet.</p>"
    else:
        content = "".join(_sections(watch_status(record, now, running=running), every_s))
    return html_page(f"{title}: watch", f"<main>{content}</main>", again_s=every_s if running else 0.0)


def _sections(status: WatchStatus, every_s: float) -> Iterator[str]:
    yield banner(status, every_s).html
    now = f"{overview(status).to_html()}{items(status).to_html()}"
    yield f'<div class="columns"><div>{now}</div><div>{server(status).to_html()}</div></div>'
    hour, *day = _periods(status)
    yield _panels(status, hour, "hour")
    yield events(status).to_html()
    yield from (_panels(status, period, "day") for period in day)


def _panels(status: WatchStatus, period: Period, slug: str) -> str:
    drawn = "".join(draw(panel, period) for panel in panels(status, period, slug))
    title = escape(f"Last {duration_text(period.seconds)}")
    return (
        f'<section aria-label="{title}"><h2>{title}</h2><div class="gallery panels">{drawn}{legend()}</div></section>'
    )


def _periods(status: WatchStatus) -> Iterator[Period]:
    """Yield the last hour and, if the watch is longer, the last day."""
    yield status.period(HOUR_S)
    if status.whole.seconds > HOUR_S + status.last.seconds:
        yield status.period(DAY_S)


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
