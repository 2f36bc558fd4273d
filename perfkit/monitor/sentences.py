"""Figures, limits and alerts in words, with their numbers and units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from perfkit.config.watching import Metric, WatchRule
from perfkit.monitor.period import clock, lasting, stamp
from perfkit.monitor.severity import limit
from perfkit.numbers import NONE, percent, significant, unbroken


def share(value: float) -> str:
    """A share of one as a percentage that is 100 % only where nothing is missing.

    >>> share(0.99957), share(1.0), share(0.98), share(0.0004)
    ('99.957 %', '100 %', '98.0 %', '0.0400 %')
    """
    missing = 100 * (1 - value)
    if value <= 0.9 or missing < 1e-9:
        return percent(value)
    return f"{100 * value:.{max(1 - math.floor(math.log10(missing)), 0)}f} %"


def count(value: float) -> str:
    """A count, or a figure without a unit."""
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else significant(value)


#: The name of a figure, its unit around a number or how it is said, and whether it is of the whole window.
METRICS: Mapping[Metric, tuple[str, str | Callable[[float], str], bool]] = {
    "p50_ms": ("p50", "{} ms", True),
    "p95_ms": ("p95", "{} ms", True),
    "p99_ms": ("p99", "{} ms", True),
    "mean_ms": ("mean latency", "{} ms", True),
    "error_rate": ("error rate", share, True),
    "throughput": ("throughput", "{}/s", True),
    "throughput_drop": ("throughput below the usual by", share, True),
    "slowdown": ("p50 against the usual", "×{}", True),
    "success_rate": ("success rate", share, True),
    "availability": ("availability", share, True),
    "service_down_s": ("service down for", lasting, False),
    "database_down_s": ("database down for", lasting, False),
    "connections_share": ("connections in use", share, False),
    "lock_wait_s": ("longest wait for a lock", lasting, False),
    "transaction_s": ("oldest transaction open for", lasting, False),
    "deadlocks": ("deadlocks:", count, True),
    "checksum_failures": ("pages with a wrong checksum:", count, True),
    "invalid_indexes": ("invalid indexes:", count, False),
    "cache_misses": ("pages not found in cache", share, True),
    "temp_mb": ("temporary files", "{} MB", True),
    "rollback_rate": ("transactions rolled back", share, True),
}


def said(metric: Metric | None, value: float | None, unit: str = "") -> str:
    """A figure with its unit on one line, a dash for none; without a metric, what a person says, in the unit given."""
    if value is None:
        return NONE
    return unbroken(_measured(metric, value) if metric else f"{value:g} {unit}".strip())


def bound(metric: Metric | None, value: float, unit: str = "") -> str:
    """A target as it was written, with its unit: no digits that say nothing.

    >>> bound("availability", 0.999).split(), bound("p95_ms", 500).split(), bound("throughput", 30)
    (['99.9', '%'], ['500', 'ms'], '30/s')
    """
    return unbroken(_written(metric, value)) if metric else said(metric, value, unit)


def figure(rule: WatchRule, value: float | None, window_s: float) -> str:
    """The figure of a rule, and of how long."""
    name, _, windowed = METRICS[rule.metric]
    whose = f"{rule.item}: " if rule.item else ""
    over = f" over the last {lasting(window_s)}" if windowed else ""
    return f"{whose}{name} {'unknown' if value is None else _measured(rule.metric, value)}{over}"


def against(rule: WatchRule) -> str:
    """The limit in words; nothing for a limit of none at all."""
    if not limit(rule):
        return ""
    return f"{'above' if rule.above is not None else 'below'} {_written(rule.metric, limit(rule))}"


def raised(rule: WatchRule, value: float, window_s: float, since: float, now: float) -> str:
    """That it is bad, since when (wall clock, seconds since 1970), and what to do."""
    at = clock(since, day=False) if clock(since)[:10] == clock(now)[:10] else stamp(since)
    parts = (figure(rule, value, window_s), against(rule), f"since {at} UTC")
    return ", ".join(part for part in parts if part) + (f": {rule.action}" if rule.action else "")


def cleared(rule: WatchRule, value: float | None, window_s: float, lasted_s: float) -> str:
    """That it is good again, and how long it was not."""
    after = f"after {lasting(lasted_s)}"
    name, unit, _ = METRICS[rule.metric]
    if against(rule):
        return f"{figure(rule, value, window_s)}, no longer {against(rule)} {after}"
    if unit is lasting:
        return f"{name.removesuffix(' for')}: over {after}"
    return f"{figure(rule, value, window_s)}, good again {after}"


def _measured(metric: Metric, value: float) -> str:
    unit = METRICS[metric][1]
    return unit.format(significant(value)) if isinstance(unit, str) else unit(value)


def _written(metric: Metric, value: float) -> str:
    unit = METRICS[metric][1]
    if unit is share:
        return f"{100 * value:.10g} %"
    return unit.format(f"{value:.10g}") if isinstance(unit, str) else unit(value)
