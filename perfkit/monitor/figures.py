"""Figures of a window of time, and actual values of a period with their 95 % intervals.

Pure functions. A window is a sequence of intervals in the order of time. Figures are of one item or, without one, of
all requests (of all queries if no request is sent). Percentiles come from raw samples, and only if there are enough
(`perfkit.base.stats.supported`). An interval is down if a probe was due and none was answered as expected: all that
ended failed, or none ended and the oldest has been due for the whole interval and for at least a second. Time without
a watch is neither up nor down.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import special

from perfkit.base import stats, units
from perfkit.base.stats import percentile, supported
from perfkit.config.judging import Metric, Watch
from perfkit.monitor.incidents import Period, duration_text
from perfkit.monitor.model import OK, About, Kind, Probe, Tick
from perfkit.monitor.notifications import percentage

_MB = 1024 * 1024
_COUNTED = ("commits", "rollbacks", "blocks_hit", "blocks_read", "temp_bytes", "deadlocks", "checksum_failures")
_NOW = ("lock_wait_s", "transaction_s", "invalid_indexes")


def server_figures(ticks: Sequence[Tick]) -> dict[str, float | None]:
    """Return the server's metrics: the growth of counters from first to last interval, else the latest value."""
    readings = [tick.server for tick in ticks if tick.server]
    counts = {name: increase(readings, name) for name in _COUNTED}
    mb = counts["temp_bytes"]
    return {
        "connections_share": _share(_last(readings, "connections"), _last(readings, "connections_max")),
        **{name: _last(readings, name) for name in _NOW},
        "deadlocks": counts["deadlocks"],
        "checksum_failures": counts["checksum_failures"],
        "cache_misses": _part(counts["blocks_read"], counts["blocks_hit"]),
        "temp_mb": None if mb is None else mb / _MB,
        "rollback_rate": _part(counts["rollbacks"], counts["commits"]),
    }


def increase(readings: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Return by how much a counter grew; None with fewer than two readings.

    A value below the previous one restarted from 0 after a crash or a reset, so all of it counts. A restart after a
    clean shutdown keeps the counters, so a new value of `started` alone does not mean a reset.
    """
    values = [reading[name] for reading in readings if name in reading]
    if len(values) < 2:
        return None
    return sum(value - previous if value >= previous else value for previous, value in pairwise(values))


def _last(readings: Sequence[Mapping[str, float]], name: str) -> float | None:
    return next((reading[name] for reading in reversed(readings) if name in reading), None)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _part(count: float | None, rest: float | None) -> float | None:
    """Return the share of a count in the sum of both; None if the sum is 0 or unknown."""
    return None if count is None or rest is None else _share(count, count + rest)


GAP_S = 0.5  # a longer time between two intervals is a gap, in which nobody watched
_HANGS_S = 1.0  # a probe that has been due for less may still be answered, however short the interval was


@dataclass(frozen=True, slots=True)
class Baseline:
    """The usual figures: those of the first healthy time."""

    throughput: float  # answered as expected, per second
    p50_ms: float


def window(ticks: Sequence[Tick], seconds: float) -> Sequence[Tick]:
    """Return the intervals that ended in the last `seconds` of the time line."""
    return ticks[bisect_right(ticks, ticks[-1].t - seconds, key=lambda tick: tick.t) :] if ticks else ticks


def find_gaps(ticks: Sequence[Tick]) -> list[tuple[float, float]]:
    """Return the gaps without a watch, as start and end on the time line."""
    return [(one.t, other.start) for one, other in pairwise(ticks) if unwatched_between(one, other)]


def unwatched_between(one: Tick, other: Tick) -> bool:
    """Return whether there is a gap between two intervals."""
    return other.start - one.t > GAP_S


def item_names(kinds: Mapping[str, Kind], item: str = "") -> list[str]:
    """Return the names whose figures count: the item, or all requests, or all queries if no request is sent.

    Empty if the item is not sent.
    """
    if item:
        return [item] if item in kinds else []
    return [name for name, kind in kinds.items() if kind == "request"] or list(kinds)


def probes(ticks: Iterable[Tick], names: Iterable[str]) -> list[Probe]:
    """Return the probes of these names."""
    names = list(names)
    return [tick.probes[name] for tick in ticks for name in names if name in tick.probes]


def samples(ticks: Iterable[Tick], names: Iterable[str]) -> list[float]:
    """Return the response times in ms of probes that were answered as expected."""
    return [ms for probe in probes(ticks, names) for ms in probe.ms]


def is_down(tick: Tick, names: Iterable[str]) -> bool | None:
    """Return whether an interval is down, by its probes of these names; None if no probe was due."""
    due = probes([tick], names)
    if any(probe.outcomes.get(OK) for probe in due):
        return False
    hangs_s = max(tick.seconds, _HANGS_S)
    return True if any(p.sent or (p.pending and p.oldest_s >= hangs_s) for p in due) else None


def find_stretches(ticks: Iterable[Tick], condition: Callable[[Tick], bool | None]) -> list[tuple[float, float]]:
    """Return the times in which a condition holds, as start and end on the time line.

    An interval of which the condition says nothing (None) does not end such a time; a gap without a watch does.
    """
    times, previous, open_ = list[tuple[float, float]](), None, False
    for tick in ticks:
        open_ = open_ and previous is not None and not unwatched_between(previous, tick)
        holds = condition(tick)
        if holds:
            times.append((times.pop()[0] if open_ else tick.start, tick.t))
        open_, previous = bool(holds) or (open_ and holds is None), tick
    return times


def service_down(tick: Tick, kinds: Mapping[str, Kind]) -> bool | None:
    """Return whether no request (no query, if no request is sent) was answered as expected; None if none was due."""
    return is_down(tick, item_names(kinds))


def database_down(tick: Tick, kinds: Mapping[str, Kind]) -> bool | None:
    """Return whether neither the server answered nor any query; None if neither was asked."""
    # A server that answers is up: queries that fail meanwhile wait for a lock, or are wrong.
    if tick.server:
        return False
    queries = is_down(tick, [name for name, kind in kinds.items() if kind == "query"])
    return True if queries is None and tick.server is None else queries


def healthy(tick: Tick, kinds: Mapping[str, Kind], item: str = "") -> bool:
    """Return whether a probe was answered in an interval and none failed."""
    ended = probes([tick], item_names(kinds, item))
    return any(probe.ms for probe in ended) and not any(probe.failed for probe in ended)


def compute_baseline(ticks: Iterable[Tick], kinds: Mapping[str, Kind], watch: Watch, item: str = "") -> Baseline | None:
    """Return the figures of the first `baseline_s` healthy seconds; None if there were fewer."""
    healthy_ticks, seconds = list[Tick](), 0.0
    for tick in ticks:
        if healthy(tick, kinds, item):
            healthy_ticks.append(tick)
            seconds += tick.seconds
        if seconds >= watch.baseline_s:
            ms = samples(healthy_ticks, item_names(kinds, item))
            return Baseline(len(ms) / seconds, percentile(ms, 50))
    return None


def compute_figures(
    ticks: Sequence[Tick],
    kinds: Mapping[str, Kind],
    baseline: Baseline | None,
    item: str = "",
    *,
    before: Tick | None = None,
    few: bool = False,
) -> dict[str, float | None]:
    """Return the figure of every `Metric`; None if it is unknown or has too few samples.

    `before` is the interval before the first, at whose end counters start. With `few`, percentiles need no minimum
    number of samples.
    """
    names = item_names(kinds, item)
    ended = probes(ticks, names)
    watched = sum(tick.seconds for tick in ticks)
    sent, failed = sum(probe.sent for probe in ended), sum(probe.failed for probe in ended)
    throughput = (sent - failed) / watched if watched and ended else None
    latency = _latency(sorted(samples(ticks, names)), few)
    p50, usual_p50 = latency["p50_ms"], baseline.p50_ms if baseline else 0.0
    usual = baseline.throughput if baseline else 0.0
    down = sum(tick.seconds for tick in ticks if is_down(tick, names))
    return {
        **latency,
        "error_rate": failed / sent if sent else None,
        "throughput": throughput,
        "throughput_drop": 1 - throughput / usual if throughput is not None and usual else None,
        "slowdown": p50 / usual_p50 if p50 is not None and usual_p50 else None,
        "success_rate": _succeeded(ticks, names, kinds) / sent if sent else None,
        "availability": 1 - down / watched if watched and ended else None,
        "service_down_s": _down_for(ticks, lambda tick: service_down(tick, kinds)),
        "database_down_s": _down_for(ticks, lambda tick: database_down(tick, kinds)),
        **server_figures(([before] if before else []) + list(ticks)),
    }


def _latency(ms: Sequence[float], few: bool) -> dict[str, float | None]:
    n = len(ms)
    values = {q: percentile(ms, q) if n and (few or supported(n, q)) else None for q in (50, 95, 99)}
    mean = sum(ms) / n if n else None
    return {"p50_ms": values[50], "p95_ms": values[95], "p99_ms": values[99], "mean_ms": mean}


def _succeeded(ticks: Iterable[Tick], names: Sequence[str], kinds: Mapping[str, Kind]) -> int:
    """Count requests answered with a 2xx, whatever status the configuration expects, and queries answered."""
    return sum(
        sum(n for status, n in probe.statuses.items() if status.startswith("2"))
        if kinds.get(name) == "request"
        else probe.outcomes.get(OK, 0)
        for tick in ticks
        for name in names
        if (probe := tick.probes.get(name))
    )


def _down_for(ticks: Sequence[Tick], down: Callable[[Tick], bool | None]) -> float | None:
    """Return for how many seconds it has been down at the end of the window; None if no interval tells.

    An interval that does not tell is skipped. Time before a gap does not count: nobody saw it down meanwhile.
    """
    seconds, later = None, None
    for tick in reversed(ticks):
        if later and unwatched_between(tick, later):
            break
        is_down_then = down(tick)
        if is_down_then is False:
            return seconds or 0.0
        if is_down_then:
            seconds = ticks[-1].t - tick.start
        later = tick
    return seconds


Down = Callable[[Tick, Mapping[str, Kind]], bool | None]

PERCENTILES: Mapping[Metric, int] = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
# Figures of a moment rather than of a window: their worst moment counts.
STATES = ("connections_share", "lock_wait_s", "transaction_s", "invalid_indexes")
OUTAGES: Mapping[str, Down] = {"service_down_s": service_down, "database_down_s": database_down}


@dataclass(frozen=True, slots=True)
class Actual:
    """A figure of a whole period; `lo` and `hi` are its 95 % interval, or the value itself if it was not sampled."""

    value: float | None
    lo: float
    hi: float
    n: int  # number of probes, or of intervals, behind it
    how: str  # what it was computed from, in words
    lacks: str = ""  # why there is no value, or why the value is not conclusive

    @classmethod
    def none(cls, lacks: str, n: int = 0) -> Actual:
        """Return a figure without a value, and why."""
        return cls(None, -math.inf, math.inf, n, "", lacks)


def actual_value(metric: Metric, item: str | None, period: Period, about: About, baseline: Baseline | None) -> Actual:
    """Return one figure over a whole period."""
    names = item_names(about.kinds, item or "")
    if not names:
        return Actual.none(f"the watch does not send {item or 'anything'}")
    if metric in PERCENTILES:
        return _percentile(PERCENTILES[metric], names, period)
    if metric in _SAMPLED:
        return _SAMPLED[metric](names, period)
    if metric == "availability":
        return _availability(names, period)
    return _counted(metric, item, period, about, baseline)


def interval_text(actual: Actual, to_text: Callable[[float], str]) -> str:
    """Return the 95 % interval in words; empty if there is no value, or if it is exact."""
    if actual.value is None or actual.lo == actual.hi:
        return ""
    low, high = (to_text(actual.lo) if actual.lo > 0 else "", to_text(actual.hi) if actual.hi < math.inf else "")
    if low and high:
        text = f"{low} to {high}"
    else:
        text = f"at least {low}" if low else f"at most {high}" if high else "no bound"
    return units.unbroken(text)


def _percentile(q: int, names: Sequence[str], period: Period) -> Actual:
    blocks = [samples(block, names) for block in period.blocks()]
    n = sum(map(len, blocks))
    tail = stats.tail(blocks, q)
    if tail is None:
        return Actual.none(units.too_few(n, q), n)
    return Actual(tail.value, tail.lo, tail.hi, n, _in_blocks(n, "answers", period, tail.rounds))


def _mean(names: Sequence[str], period: Period) -> Actual:
    blocks = [ms for block in period.blocks() if (ms := samples(block, names))]
    return _ratio([sum(ms) for ms in blocks], [len(ms) for ms in blocks], sum(map(len, blocks)), period)


def _throughput(names: Sequence[str], period: Period) -> Actual:
    answered = [sum(probe.outcomes.get(OK, 0) for probe in probes(block, names)) for block in period.blocks()]
    return _ratio(answered, [sum(tick.seconds for tick in block) for block in period.blocks()], sum(answered), period)


def _error_rate(names: Sequence[str], period: Period) -> Actual:
    sent = probes(period.ticks, names)
    return _share_of_probes(sum(probe.failed for probe in sent), sum(probe.sent for probe in sent), "failed")


def _share_of_probes(failed: int, n: int, what: str) -> Actual:
    if not n:
        return Actual.none("no probe has ended")
    how = f"{units.count(failed)} of {units.count(n)} probes {what}"
    return Actual(failed / n, -math.inf, stats.error_bound(failed, n), n, how)


def _availability(names: Sequence[str], period: Period) -> Actual:
    """Return the share of time up.

    Every watched interval is known, so only the gaps leave the share open: `lo` and `hi` count them as down and as up.
    """
    known = [is_down(tick, names) for tick in period.ticks]
    if all(down is None for down in known):
        return Actual.none("no probe was due")
    lengths = [tick.seconds for tick, down in zip(period.ticks, known, strict=True) if down]
    watched, down = period.watched, sum(lengths)
    unknown = sum(end - start for start, end in find_gaps(period.ticks))
    weight = max(tick.seconds for tick in period.ticks) / watched
    intervals = units.count(len(period.ticks))
    how = f"{units.count(len(lengths))} of {intervals} intervals down; one interval is {percentage(weight)} of the time"
    lo, hi = (1 - (down + gap) / (watched + unknown) for gap in (unknown, 0.0))
    lacks = f"not watched for {duration_text(unknown)}" if unknown else ""
    return Actual(1 - down / watched, lo, hi, len(period.ticks), how, lacks)


def _counted(metric: Metric, item: str | None, period: Period, about: About, baseline: Baseline | None) -> Actual:
    """Return a figure that is read rather than sampled: the worst moment, the longest outage, or a total."""

    def at(ticks: Sequence[Tick]) -> float | None:
        return compute_figures(ticks, about.kinds, baseline, item or "")[metric]

    value, how = at(period.ticks), "over the whole time"
    if metric == "success_rate" and value is not None:
        sent = sum(probe.sent for probe in probes(period.ticks, item_names(about.kinds, item or "")))
        failures = _share_of_probes(round((1 - value) * sent), sent, "did not succeed")
        return Actual(value, 1 - failures.hi, math.inf, sent, failures.how)
    if metric in STATES:
        moments = [moment for tick in period.ticks if (moment := at([tick])) is not None]
        value, how = max(moments, default=None), "the worst interval"
    elif metric in OUTAGES:
        down = OUTAGES[metric]
        outages = find_stretches(period.ticks, lambda tick: down(tick, about.kinds))
        value, how = max((end - start for start, end in outages), default=0.0), "the longest outage"
    if value is None:
        return Actual.none("the watch could not read it")
    return Actual(value, value, value, len(period.ticks), how)


def _ratio(tops: Sequence[float], bottoms: Sequence[float], n: int, period: Period) -> Actual:
    """Return a ratio of sums over blocks of time, with a t interval.

    Neighbouring probes resemble each other, so an interval from single probes would be too narrow. The variance of the
    ratio is linearised over the blocks, with their number less one as degrees of freedom.
    """
    if not n or not sum(bottoms):
        return Actual.none("no probe was answered")
    top, bottom = np.asarray(tops, dtype=float), np.asarray(bottoms, dtype=float)
    value, blocks = float(top.sum() / bottom.sum()), len(top)
    how = _in_blocks(n, "answers", period, blocks)
    if blocks < 2:
        return Actual(value, 0.0, math.inf, n, how)
    rest = top - value * bottom
    error = math.sqrt(blocks / (blocks - 1) * float(rest @ rest)) / float(bottom.sum())
    half = float(special.stdtrit(blocks - 1, 1 - stats.ALPHA / 2)) * error
    return Actual(value, max(value - half, 0.0), value + half, n, how)


def _in_blocks(n: int, what: str, period: Period, blocks: int) -> str:
    return f"{units.count(n)} {what} in {blocks} × {duration_text(period.width)}"


_SAMPLED: Mapping[str, Callable[[Sequence[str], Period], Actual]] = {
    "mean_ms": _mean,
    "throughput": _throughput,
    "error_rate": _error_rate,
}
