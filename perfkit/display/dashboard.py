"""A watch's page in words and tables: what stands now, the figures, the server, and what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from perfkit import numbers
from perfkit.config.watching import Metric
from perfkit.display.html import Block, headed, listed
from perfkit.display.table import Cell, Table
from perfkit.monitor import figures, severity
from perfkit.monitor.incidents import Alert
from perfkit.monitor.model import Event
from perfkit.monitor.period import clock, lasting, stamp
from perfkit.monitor.sentences import against, said
from perfkit.monitor.standing import Standing

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


def banner(found: Standing, every_s: float) -> Block:
    """What stands, since when, how fresh that is; `every_s` is how often the page is written."""
    state, word = _word(found)
    told = [*_silence(found), *_alerts(found)]
    meta = " · ".join(_meta(found, every_s))
    html = headed(state, found.record.about.title, word, told[0], listed(told[1:]), meta)
    return Block(html, "\n".join([word, *told, meta]))


def _word(found: Standing) -> tuple[str, str]:
    """The state of the style sheet and the word for it: an alert that stands outweighs a watch that ended."""
    if found.missed and found.running:
        return "bad", "NOT WATCHING"
    if found.open:
        level = found.open[0].level
        return LEVELS.get(level, "bad"), f"{level} {found.open[0].rule}"
    if not found.running:
        return "unsure", "ENDED"
    return "good", "ALL QUIET"


def _silence(found: Standing) -> Iterator[str]:
    at = f"{_clock(found.last.at)} UTC"
    if not found.running:
        yield f"The watch has ended: its last interval was at {at}, and nobody has watched since."
    elif found.missed:
        yield (
            f"The watch has not written for {numbers.count(found.missed)} intervals, since {at}: its process hangs, "
            "or cannot write."
        )


def _alerts(found: Standing) -> Iterator[str]:
    for alert in found.open:
        lasted = lasting(found.last.t - alert.since)
        rule = next((rule for rule in found.watch.rule if rule.name == alert.rule and not rule.item), None)
        value = found.values[rule.metric] if rule else None
        now = f", now {said(rule.metric, value)}" if rule and value is not None else ""
        yield f"{alert.level} {alert.rule}, for {lasted}{now}: {alert.text}"
    if not found.open:
        since = found.whole.wall(found.quiet_since)
        lasted = lasting(found.last.t - found.quiet_since)
        yield f"No alert {'has stood ' if found.alerts else ''}since {clock(since)} UTC, for {lasted}."


def _meta(found: Standing, every_s: float) -> Iterator[str]:
    about = found.record.about
    yield about.target
    yield f"watched since {clock(about.began)} UTC, every {lasting(about.every_s)}"
    yield f"this page is of {_clock(found.now)} UTC, {lasting(found.age_s)} after the last interval ended"
    if found.running:
        yield f"it is written anew about every {lasting(every_s)}: if yours is much older, nobody watches"
    if found.record.damaged:
        yield f"{found.record.damaged} lines of the record could not be read"


def overview(found: Standing) -> Table:
    """The figures of the last minutes, the last hour and the whole watch, beside their limits."""
    rows = tuple(
        (
            Cell(name),
            *(_cell(found, metric, values[metric], i == 0) for i, values in enumerate(found.spans.values())),
            Cell(_limits(found, metric), state="quiet"),
        )
        for metric, name in FIGURES.items()
    )
    names = figures.chosen(found.record.about.kinds)
    note = (
        f"Of {', '.join(names)}, from when each was due. Rules look at the last {lasting(found.watch.window_s)}. "
        "A dash: not enough samples for it."
    )
    columns = ("figure", *found.spans, "limits")
    return Table("Now and before", columns, rows, frozenset(found.spans), note=note)


def _cell(found: Standing, metric: Metric, value: float | None, judged: bool) -> Cell:
    level = found.level(metric) if judged else ""
    return Cell(said(metric, value), level, LEVELS.get(level, "") if level else "")


def _limits(found: Standing, metric: Metric) -> str:
    """The limits of the rules about everything, the gravest first."""
    rules = [rule for rule in found.watch.rule if rule.metric == metric and not rule.item]
    return ", ".join(f"{rule.level} {against(rule)}" for rule in sorted(rules, key=severity.gravity))


def items(found: Standing) -> Table:
    """Each request and query over the last minutes."""
    about, recent = found.record.about, found.recent
    columns = ("request or query", "P50", "P95", "P99", "error rate", "answered", "unanswered")
    rows = []
    for name, kind in about.kinds.items():
        own = figures.figures(recent, about.kinds, None, name)
        pending = found.last.probes[name].pending if name in found.last.probes else 0
        latency = (Cell(said(metric, own[metric])) for metric in ("p50_ms", "p95_ms", "p99_ms"))
        failed = Cell(said("error_rate", own["error_rate"]), state="bad" if own["error_rate"] else "")
        rows.append(
            (Cell(name, kind), *latency, failed, Cell(said("throughput", own["throughput"])), Cell(str(pending)))
        )
    return Table(f"By request and query, {next(iter(found.spans))}", columns, tuple(rows), frozenset(columns[1:]))


def events(found: Standing) -> Table:
    """Alerts and the watch's own notes, those that stand first, then the latest."""
    wall = found.whole.wall
    rows = [(alert.noticed, _alert(found, alert, wall)) for alert in found.alerts]
    standing = [row for _, row in rows[: len(found.open)]]
    notes = [(event.t, _note(event)) for event in found.record.events if event.what == "note"]
    gaps = [(until, _gap(since, until, wall)) for since, until in figures.gaps(found.record.ticks)]
    past = [row for _, row in sorted([*rows[len(found.open) :], *notes, *gaps], key=lambda own: -own[0])]
    columns = ("level", "what", "since", "until", "value", "limit", "action")
    left = len(standing) + len(past) - EVENTS
    note = f"{numbers.count(left)} earlier ones are in events.jsonl." if left > 0 else ""
    return Table(
        "Alerts and notes, UTC",
        columns,
        tuple((standing + past)[:EVENTS]),
        frozenset({"value", "limit"}),
        note=note or ("" if standing or past else "none so far"),
    )


def _alert(found: Standing, alert: Alert, wall: Callable[[float], float]) -> tuple[Cell, ...]:
    metric = next((rule.metric for rule in found.watch.rule if rule.name == alert.rule), None)
    until = Cell("stands", state="bad") if alert.ended is None else Cell(_clock(wall(alert.ended)))
    return (
        Cell(alert.level, state=LEVELS.get(alert.level, "")),
        Cell(alert.rule, alert.text),
        Cell(_clock(wall(alert.since))),
        until,
        Cell(said(metric, alert.value)),
        Cell(said(metric, alert.limit)),
        Cell(alert.action),
    )


def _gap(since: float, until: float, wall: Callable[[float], float]) -> tuple[Cell, ...]:
    what = Cell(f"nobody watched for {lasting(until - since)}")
    times = Cell(_clock(wall(since))), Cell(_clock(wall(until)))
    return (Cell("gap", state="unsure"), what, *times, *[Cell("")] * 3)


def _note(event: Event) -> tuple[Cell, ...]:
    return (Cell("note", state="quiet"), Cell(event.text), Cell(_clock(event.at)), *[Cell("")] * 4)


def _clock(at: float) -> str:
    return numbers.unbroken(stamp(at))
