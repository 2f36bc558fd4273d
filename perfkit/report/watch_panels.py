"""The five panels of a watch's page: latency at P50, P95 and P99, error rate and throughput over one period."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from perfkit.config.watching import Metric, WatchRule
from perfkit.display.dashboard import FIGURES
from perfkit.monitor import figures
from perfkit.monitor.period import Period
from perfkit.monitor.sentences import said
from perfkit.monitor.severity import limit
from perfkit.monitor.standing import Standing
from perfkit.report.watch_chart import LEVELS, Limit, Panel, Span
from perfkit.report.watch_series import Line, WatchSeries

# The figures whose rules a panel shows, beside its own.
_RULES: Mapping[Metric, tuple[Metric, ...]] = {
    "p50_ms": ("p50_ms", "mean_ms", "slowdown"),
    "p95_ms": ("p95_ms",),
    "p99_ms": ("p99_ms",),
    "error_rate": ("error_rate",),
    "throughput": ("throughput", "throughput_drop"),
}


def panels(found: Standing, period: Period, slug: str) -> Iterator[Panel]:
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


def _now(found: Standing, metric: Metric) -> str:
    value = found.values[metric]
    return "not enough samples" if value is None else said(metric, value)


def _lines(series: WatchSeries) -> Iterator[tuple[Metric, Line]]:
    yield "p50_ms", series.percentile(50)
    yield "p95_ms", series.percentile(95)
    yield "p99_ms", series.percentile(99)
    errors = series.error_rate()
    yield "error_rate", replace(errors, y=errors.y * 100)
    yield "throughput", series.throughput()


def _panel_limits(found: Standing, metric: Metric) -> Iterator[Limit]:
    """Limits about everything, in the unit of the panel; a multiple of what is usual needs to know what that is."""
    for rule in found.watch.rule:
        if rule.metric in _RULES[metric] and not rule.item and (value := _in_panel(found, rule)) is not None:
            yield Limit(value, rule.level)


def _in_panel(found: Standing, rule: WatchRule) -> float | None:
    usual = found.baseline
    match rule.metric:
        case "error_rate":
            return limit(rule) * 100
        case "slowdown":
            return limit(rule) * usual.p50_ms if usual else None
        case "throughput_drop":
            return (1 - limit(rule)) * usual.throughput if usual else None
    return limit(rule)


def _panel_alerts(found: Standing, metric: Metric) -> Iterator[Span]:
    """Alerts about the panel's figure, and those that no panel is about."""
    metrics = {rule.name: rule.metric for rule in found.watch.rule}
    elsewhere = {own for name, others in _RULES.items() if name != metric for own in others}
    for alert in found.alerts:
        if metrics.get(alert.rule) not in elsewhere:
            level = alert.level if alert.level in LEVELS else "alert"  # a record's word is not drawn unseen
            yield Span(alert.since, found.last.t if alert.ended is None else alert.ended, level)


def _unwatched(period: Period) -> Iterator[Span]:
    for since, until in figures.gaps(period.ticks):
        yield Span(since, until, "unwatched")


def _down(found: Standing, period: Period) -> Iterator[Span]:
    """Where the service or the database was down."""
    kinds = found.record.about.kinds
    for since, until in figures.stretches(
        period.ticks, lambda tick: figures.service_down(tick, kinds) or figures.database_down(tick, kinds)
    ):
        yield Span(since, until, "down")
