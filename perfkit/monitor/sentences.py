"""What an alert says: one plain sentence with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from perfkit.config.watching import Metric, WatchRule
from perfkit.display.numbers import percent, significant
from perfkit.monitor.severity import limit


def duration(seconds: float) -> str:
    """A stretch of time as people say it, to the second.

    >>> [duration(s) for s in (20, 300, 310, 7260, 90000)]
    ['20 s', '5 minutes', '5 min 10 s', '2 h 1 min', '25 hours']
    """
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min" if minutes else _of(hours, "hour")
    if minutes:
        return f"{minutes} min {rest} s" if rest else _of(minutes, "minute")
    return f"{significant(seconds)} s" if seconds < 10 and seconds != whole else f"{whole} s"


def _of(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


def _ms(value: float) -> str:
    return f"{significant(value)} ms"


def _times(value: float) -> str:
    return f"×{significant(value)}"


def _plain(value: float) -> str:
    """A count, or a figure without a unit."""
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else significant(value)


METRICS: Mapping[str, tuple[str, Callable[[float], str], bool]] = {  # name, unit, whether it is of the whole window
    "p50_ms": ("p50", _ms, True),
    "p95_ms": ("p95", _ms, True),
    "p99_ms": ("p99", _ms, True),
    "mean_ms": ("mean latency", _ms, True),
    "error_rate": ("error rate", percent, True),
    "throughput": ("throughput", lambda value: f"{significant(value)}/s", True),
    "throughput_drop": ("throughput below the usual by", percent, True),
    "slowdown": ("p50 against the usual", _times, True),
    "success_rate": ("success rate", percent, True),
    "availability": ("availability", percent, True),
    "service_down_s": ("service down for", duration, False),
    "database_down_s": ("database down for", duration, False),
    "connections_share": ("connections in use", percent, False),
    "lock_wait_s": ("longest wait for a lock", duration, False),
    "transaction_s": ("oldest transaction open for", duration, False),
    "deadlocks": ("deadlocks:", _plain, True),
    "checksum_failures": ("pages with a wrong checksum:", _plain, True),
    "invalid_indexes": ("invalid indexes:", _plain, False),
    "cache_misses": ("pages not found in cache", percent, True),
    "temp_mb": ("temporary files", lambda value: f"{significant(value)} MB", True),
    "rollback_rate": ("transactions rolled back", percent, True),
}


def with_unit(metric: Metric, value: float | None) -> str:
    """A figure with its unit."""
    return "unknown" if value is None else METRICS[metric][1](value)


def figure(rule: WatchRule, value: float | None, window_s: float) -> str:
    """The figure of a rule, and of how long."""
    name, _, windowed = METRICS[rule.metric]
    whose = f"{rule.item}: " if rule.item else ""
    over = f" over the last {duration(window_s)}" if windowed else ""
    return f"{whose}{name} {with_unit(rule.metric, value)}{over}"


def against(rule: WatchRule) -> str:
    """The limit in words; nothing for a limit of none at all."""
    if not limit(rule):
        return ""
    unit = METRICS[rule.metric][1]
    short = {_ms: f"{limit(rule):g} ms", _times: f"×{limit(rule):g}", percent: f"{limit(rule) * 100:g} %"}
    return f"{'above' if rule.above is not None else 'below'} {short.get(unit) or unit(limit(rule))}"


def raised(rule: WatchRule, value: float, window_s: float, since: float, now: float) -> str:
    """That it is bad, since when (wall clock, seconds since 1970), and what to do."""
    parts = (figure(rule, value, window_s), against(rule), f"since {clock(since, now)}")
    return ", ".join(part for part in parts if part) + (f": {rule.action}" if rule.action else "")


def cleared(rule: WatchRule, value: float | None, window_s: float, lasted_s: float) -> str:
    """That it is good again, and how long it was not."""
    after = f"after {duration(lasted_s)}"
    name, unit, _ = METRICS[rule.metric]
    if against(rule):
        return f"{figure(rule, value, window_s)}, no longer {against(rule)} {after}"
    if unit is duration:
        return f"{name.removesuffix(' for')}: over {after}"
    return f"{figure(rule, value, window_s)}, good again {after}"


def clock(at: float, now: float) -> str:
    """A time of day in UTC, with its date where that is not the day of `now`; both in seconds since 1970."""
    then, today = (datetime.fromtimestamp(seconds, UTC) for seconds in (at, now))
    return f"{then:%H:%M:%S} UTC" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M:%S} UTC"
