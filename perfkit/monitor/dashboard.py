"""The dashboard of a watch.

python -m perfkit.monitor.dashboard FOLDER

It requests nothing and runs nothing; while the watch goes on it loads itself again.
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
from perfkit.monitor.charts import LEVELS as CHARTS_LEVELS
from perfkit.monitor.charts import Limit, Line, Panel, Span, WatchSeries, draw, legend
from perfkit.monitor.figures import increase
from perfkit.monitor.incidents import DAY_S, Alert, Period, clock, duration_text, stamp
from perfkit.monitor.model import Event, Record, limit
from perfkit.monitor.notifications import formatted, limit_text
from perfkit.show.html import Block, Cell, Table, escape, headed, listed
from perfkit.show.html import page as html_page

EVENTS = 40  # the latest; all are in events.jsonl
FIGURES: dict[Metric, str] = {
    "p50_ms": "P50 latency",
    "p95_ms": "P95 latency",
    "p99_ms": "P99 latency",
    "error_rate": "Error rate",
    "throughput": "Throughput",
    "availability": "Availability",
}
LEVELS = {"P1": "bad", "P2": "bad", "P3": "unsure"}


def banner(found: WatchStatus, every_s: float) -> Block:
    """What stands, since when, how fresh that is; `every_s` is how often the page is written."""
    state, word = _word(found)
    told = [*_silence(found), *_alerts(found)]
    meta = " · ".join(_meta(found, every_s))
    html = headed(state, found.record.about.title, word, told[0], listed(told[1:]), meta)
    return Block(html, "\n".join([word, *told, meta]))


def _word(found: WatchStatus) -> tuple[str, str]:
    """The state of the style sheet and the word for it: an alert that stands outweighs a watch that ended."""
    if found.missed and found.running:
        return "bad", "NOT WATCHING"
    if found.active:
        level = found.active[0].level
        return LEVELS.get(level, "bad"), f"{level} {found.active[0].rule}"
    if not found.running:
        return "unsure", "ENDED"
    return "good", "ALL QUIET"


def _silence(found: WatchStatus) -> Iterator[str]:
    at = f"{_clock(found.last.at)} UTC"
    if not found.running:
        yield f"The watch has ended: its last interval was at {at}, and nobody has watched since."
    elif found.missed:
        yield (
            f"The watch has not written for {units.count(found.missed)} intervals, since {at}: its process hangs, "
            "or cannot write."
        )


def _alerts(found: WatchStatus) -> Iterator[str]:
    for alert in found.active:
        lasted = duration_text(found.last.t - alert.since)
        rule = next((rule for rule in found.watch.rule if rule.name == alert.rule and not rule.item), None)
        value = found.values[rule.metric] if rule else None
        now = f", now {formatted(rule.metric, value)}" if rule and value is not None else ""
        yield f"{alert.level} {alert.rule}, for {lasted}{now}: {alert.text}"
    if not found.active:
        since = found.whole.wall(found.quiet_since)
        lasted = duration_text(found.last.t - found.quiet_since)
        yield f"No alert {'has stood ' if found.alerts else ''}since {clock(since)} UTC, for {lasted}."


def _meta(found: WatchStatus, every_s: float) -> Iterator[str]:
    about = found.record.about
    yield about.target
    yield f"watched since {clock(about.began)} UTC, every {duration_text(about.every_s)}"
    yield f"this page is of {_clock(found.now)} UTC, {duration_text(found.age_s)} after the last interval ended"
    if found.running:
        yield f"it is written anew about every {duration_text(every_s)}: if yours is much older, nobody watches"
    if found.record.damaged:
        yield f"{found.record.damaged} lines of the record could not be read"


def overview(found: WatchStatus) -> Table:
    """The figures of the last minutes, the last hour and the whole watch, beside their limits."""
    rows = tuple(
        (
            Cell(name),
            *(_cell(found, metric, values[metric], i == 0) for i, values in enumerate(found.spans.values())),
            Cell(_limits(found, metric), state="quiet"),
        )
        for metric, name in FIGURES.items()
    )
    names = figures.item_names(found.record.about.kinds)
    note = (
        f"Of {', '.join(names)}, from when each was due. Rules look at the last {duration_text(found.watch.window_s)}. "
        "A dash: not enough samples for it."
    )
    columns = ("figure", *found.spans, "limits")
    return Table("Now and before", columns, rows, frozenset(found.spans), note=note)


def _cell(found: WatchStatus, metric: Metric, value: float | None, judged: bool) -> Cell:
    level = found.level(metric) if judged else ""
    return Cell(formatted(metric, value), level, LEVELS.get(level, "") if level else "")


def _limits(found: WatchStatus, metric: Metric) -> str:
    """The limits of the rules about everything, the gravest first."""
    rules = [rule for rule in found.watch.rule if rule.metric == metric and not rule.item]
    return ", ".join(f"{rule.level} {limit_text(rule)}" for rule in sorted(rules, key=model.gravity))


def items(found: WatchStatus) -> Table:
    """Each request and query over the last minutes."""
    about, recent = found.record.about, found.recent
    columns = ("request or query", "P50", "P95", "P99", "error rate", "answered", "unanswered")
    rows = []
    for name, kind in about.kinds.items():
        own = figures.figures(recent, about.kinds, None, name)
        pending = found.last.probes[name].pending if name in found.last.probes else 0
        latency = (Cell(formatted(metric, own[metric])) for metric in ("p50_ms", "p95_ms", "p99_ms"))
        failed = Cell(formatted("error_rate", own["error_rate"]), state="bad" if own["error_rate"] else "")
        rows.append(
            (Cell(name, kind), *latency, failed, Cell(formatted("throughput", own["throughput"])), Cell(str(pending)))
        )
    return Table(f"By request and query, {next(iter(found.spans))}", columns, tuple(rows), frozenset(columns[1:]))


def events(found: WatchStatus) -> Table:
    """Alerts and the watch's own notes, those that stand first, then the latest."""
    wall = found.whole.wall
    rows = [(alert.noticed, _alert(found, alert, wall)) for alert in found.alerts]
    standing = [row for _, row in rows[: len(found.active)]]
    notes = [(event.t, _note(event)) for event in found.record.events if event.what == "note"]
    gaps = [(until, _gap(since, until, wall)) for since, until in figures.gaps(found.record.ticks)]
    past = [row for _, row in sorted([*rows[len(found.active) :], *notes, *gaps], key=lambda own: -own[0])]
    columns = ("level", "what", "since", "until", "value", "limit", "action")
    left = len(standing) + len(past) - EVENTS
    note = f"{units.count(left)} earlier ones are in events.jsonl." if left > 0 else ""
    return Table(
        "Alerts and notes, UTC",
        columns,
        tuple((standing + past)[:EVENTS]),
        frozenset({"value", "limit"}),
        note=note or ("" if standing or past else "none so far"),
    )


def _alert(found: WatchStatus, alert: Alert, wall: Callable[[float], float]) -> tuple[Cell, ...]:
    metric = next((rule.metric for rule in found.watch.rule if rule.name == alert.rule), None)
    until = Cell("stands", state="bad") if alert.ended is None else Cell(_clock(wall(alert.ended)))
    return (
        Cell(alert.level, state=LEVELS.get(alert.level, "")),
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


# The database server on a watch's page: what it says of itself, and how much of it happened in the last minutes.


def server(found: WatchStatus) -> Table:
    """What the database server says of itself, and how much of it happened in the last minutes."""
    span = next(iter(found.spans))
    rows = tuple(_server(found)) if found.last.server else ()
    none = "the database does not answer" if found.last.server is None else "not watched"
    note = "" if rows else none
    return Table(f"Database server, {span}", ("figure", "value"), rows, note=note)


def _server(found: WatchStatus) -> Iterator[tuple[Cell, Cell]]:
    now, values = found.last.server or {}, found.values
    readings = [tick.server for tick in found.recent if tick.server]
    seconds = found.recent[-1].t - found.recent[0].t

    def count(name: str) -> str:
        return units.count(now[name])

    def row(name: str, value: str, metric: str = "", note: str = "") -> tuple[Cell, Cell]:
        level = found.level(metric) if metric else ""
        return Cell(name), Cell(value, ", ".join(filter(None, (level, note))), LEVELS.get(level, ""))

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
    yield from _scans(found)


def _scans(found: WatchStatus) -> Iterator[tuple[Cell, Cell]]:
    """How many indexes were scanned since the watch began, and which were not."""
    known = [tick.scans for tick in found.record.ticks if tick.scans]
    if not known:
        return
    idle = [name for name in known[-1] if not increase(known, name)]
    text = f"{len(known[-1]) - len(idle)} of {len(known[-1])} since the watch began"
    yield Cell("Indexes used"), Cell(text, f"not used: {', '.join(sorted(idle))}" if idle else "")


# The five panels of a watch's page: latency at P50, P95 and P99, error rate and throughput over one period.

# The figures whose rules a panel shows, beside its own.
_RULES: Mapping[Metric, tuple[Metric, ...]] = {
    "p50_ms": ("p50_ms", "mean_ms", "slowdown"),
    "p95_ms": ("p95_ms",),
    "p99_ms": ("p99_ms",),
    "error_rate": ("error_rate",),
    "throughput": ("throughput", "throughput_drop"),
}


def panels(found: WatchStatus, period: Period, slug: str) -> Iterator[Panel]:
    """The panels of one period of the watch; `slug` tells them from those of another."""
    series, everywhere = WatchSeries(period, found.record.about), [*_unwatched(period), *_down(found, period)]
    for metric, line in _lines(series):
        unit = {"error_rate": "%", "throughput": "per second"}.get(metric, "ms")
        yield Panel(
            f"{slug}-{metric}",
            f"{FIGURES[metric]}, {unit}",
            f"{_now(found, metric)}, {next(iter(found.spans))}",
            unit,
            line,
            list(_panel_limits(found, metric)),
            [*everywhere, *_panel_alerts(found, metric)],
            series.slowest() if metric == "p99_ms" else None,
        )


def _now(found: WatchStatus, metric: Metric) -> str:
    value = found.values[metric]
    return "not enough samples" if value is None else formatted(metric, value)


def _lines(series: WatchSeries) -> Iterator[tuple[Metric, Line]]:
    yield "p50_ms", series.percentile(50)
    yield "p95_ms", series.percentile(95)
    yield "p99_ms", series.percentile(99)
    errors = series.error_rate()
    yield "error_rate", replace(errors, y=errors.y * 100)
    yield "throughput", series.throughput()


def _panel_limits(found: WatchStatus, metric: Metric) -> Iterator[Limit]:
    """Limits about everything, in the unit of the panel; a multiple of what is usual needs to know what that is."""
    for rule in found.watch.rule:
        if rule.metric in _RULES[metric] and not rule.item and (value := _in_panel(found, rule)) is not None:
            yield Limit(value, rule.level)


def _in_panel(found: WatchStatus, rule: WatchRule) -> float | None:
    usual = found.baseline
    match rule.metric:
        case "error_rate":
            return limit(rule) * 100
        case "slowdown":
            return limit(rule) * usual.p50_ms if usual else None
        case "throughput_drop":
            return (1 - limit(rule)) * usual.throughput if usual else None
    return limit(rule)


def _panel_alerts(found: WatchStatus, metric: Metric) -> Iterator[Span]:
    """Alerts about the panel's figure, and those that no panel is about."""
    metrics = {rule.name: rule.metric for rule in found.watch.rule}
    elsewhere = {own for name, others in _RULES.items() if name != metric for own in others}
    for alert in found.alerts:
        if metrics.get(alert.rule) not in elsewhere:
            level = alert.level if alert.level in CHARTS_LEVELS else "alert"  # a record's word is not drawn unseen
            yield Span(alert.since, found.last.t if alert.ended is None else alert.ended, level)


def _unwatched(period: Period) -> Iterator[Span]:
    for since, until in figures.gaps(period.ticks):
        yield Span(since, until, "unwatched")


def _down(found: WatchStatus, period: Period) -> Iterator[Span]:
    """Where the service or the database was down."""
    kinds = found.record.about.kinds
    for since, until in figures.stretches(
        period.ticks, lambda tick: figures.service_down(tick, kinds) or figures.database_down(tick, kinds)
    ):
        yield Span(since, until, "down")


# The page of a watch for whoever is on call: `watch.html` in its folder, written anew as it goes on.

NAME = "watch.html"
LEAST_S = 30.0  # between two pages


def write(folder: Path) -> Path:
    """Write the page of a watch's folder as it is now; returns its path. Raises PerfkitError for what is no watch."""
    record = store.read(folder)
    path = folder / NAME
    running = store.held(folder)
    with reading(folder):  # figures that no clock and no chart can show
        text = page(record, time.time(), running=running)
    write_atomically(path, text)
    return path


def page(record: Record, now: float, *, running: bool) -> str:
    """The page as of `now` (wall clock, seconds since 1970); `running`: somebody watches still."""
    every_s = max(LEAST_S, record.about.every_s)
    title = record.about.title
    if not record.ticks:
        content = f"<h1>{escape(title)}</h1><p>The watch has no interval yet.</p>"
    else:
        content = "".join(_sections(watch_status(record, now, running=running), every_s))
    return html_page(f"{title}: watch", f"<main>{content}</main>", again_s=every_s if running else 0.0)


def _sections(found: WatchStatus, every_s: float) -> Iterator[str]:
    yield banner(found, every_s).html
    now = f"{overview(found).to_html()}{items(found).to_html()}"
    yield f'<div class="columns"><div>{now}</div><div>{server(found).to_html()}</div></div>'
    hour, *day = _periods(found)
    yield _panels(found, hour, "hour")
    yield events(found).to_html()
    yield from (_panels(found, period, "day") for period in day)


def _panels(found: WatchStatus, period: Period, slug: str) -> str:
    drawn = "".join(draw(panel, period) for panel in panels(found, period, slug))
    title = escape(f"Last {duration_text(period.seconds)}")
    return (
        f'<section aria-label="{title}"><h2>{title}</h2><div class="gallery panels">{drawn}{legend()}</div></section>'
    )


def _periods(found: WatchStatus) -> Iterator[Period]:
    """The last hour, and the last day where the watch is longer than an hour."""
    yield found.period(HOUR_S)
    if found.whole.seconds > HOUR_S + found.last.seconds:
        yield found.period(DAY_S)


def main() -> None:
    """Write the page of the folder that is named; one line and status 1 where that cannot be done."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m perfkit.monitor.dashboard FOLDER")
    try:
        write(Path(sys.argv[1]))
    except PerfkitError as error:
        sys.exit(visible(error))
    except OSError as error:
        sys.exit(visible(f"{sys.argv[1]}: {error.strerror or error}; expected the folder of a watch, to be written to"))


if __name__ == "__main__":
    main()
