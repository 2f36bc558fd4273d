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
from typing import TYPE_CHECKING

import numpy as np

from perfkit.base import stats, units
from perfkit.base.stats import percentile, supported
from perfkit.base.units import duration_text
from perfkit.config.judging import Metric, Watch
from perfkit.monitor.model import OK, About, Kind, Period, Probe, Tick
from perfkit.monitor.notifications import Values

if TYPE_CHECKING:
    from pandas import DataFrame

PERCENTILES: Mapping[Metric, int] = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
_MB = 1024 * 1024
_COUNTED = ("commits", "rollbacks", "blocks_hit", "blocks_read", "temp_bytes", "deadlocks", "checksum_failures")


def server_figures(ticks: Sequence[Tick]) -> Values:
    """Return the server's metrics: the growth of counters from first to last interval, else the latest value."""
    readings = [tick.server for tick in ticks if tick.server]
    latest: dict[str, float] = {}
    for reading in readings:
        latest.update(reading)
    counts = {name: increase(readings, name) for name in _COUNTED}
    mb = counts["temp_bytes"]
    return {
        "connections_share": _share(latest.get("connections"), latest.get("connections_max")),
        **{name: latest.get(name) for name in ("lock_wait_s", "transaction_s", "invalid_indexes")},
        **{name: counts[name] for name in ("deadlocks", "checksum_failures")},
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


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _part(count: float | None, rest: float | None) -> float | None:
    """Return the share of a count in the sum of both; None if the sum is 0 or unknown."""
    return None if count is None or rest is None else _share(count, count + rest)


GAP_S = 0.5  # a longer time between two intervals is a gap, a time without a watch
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
) -> Values:
    """Return the figure of every `Metric`; None if it is unknown or has too few samples.

    `before` is the interval before the first, at whose end counters start. With `few`, percentiles need no minimum
    number of samples.
    """
    names = item_names(kinds, item)
    ended, ms = probes(ticks, names), sorted(samples(ticks, names))
    watched = sum(tick.seconds for tick in ticks)
    sent, failed = sum(probe.sent for probe in ended), sum(probe.failed for probe in ended)
    throughput = (sent - failed) / watched if watched and ended else None
    enough = {name: bool(ms) and (few or supported(len(ms), q)) for name, q in PERCENTILES.items()}
    latencies: Values = {str(name): percentile(ms, PERCENTILES[name]) if enough[name] else None for name in PERCENTILES}
    change = _share(throughput, baseline.throughput if baseline else None)
    down = sum(tick.seconds for tick in ticks if is_down(tick, names))
    return {
        **latencies,
        "mean_ms": sum(ms) / len(ms) if ms else None,
        "error_rate": failed / sent if sent else None,
        "throughput": throughput,
        "throughput_drop": None if change is None else 1 - change,
        "slowdown": _share(latencies["p50_ms"], baseline.p50_ms if baseline else None),
        "success_rate": _succeeded(ticks, names, kinds) / sent if sent else None,
        "availability": 1 - down / watched if watched and ended else None,
        **{metric: _down_for(ticks, kinds, down) for metric, down in OUTAGES.items()},
        **server_figures(([before] if before else []) + list(ticks)),
    }


def _succeeded(ticks: Iterable[Tick], names: Sequence[str], kinds: Mapping[str, Kind]) -> int:
    """Count requests answered with a 2xx, even if the configuration expects another status, and answered queries."""
    return sum(
        sum(n for status, n in probe.statuses.items() if status.startswith("2"))
        if kinds.get(name) == "request"
        else probe.outcomes.get(OK, 0)
        for name in names
        for probe in probes(ticks, [name])
    )


def _down_for(ticks: Sequence[Tick], kinds: Mapping[str, Kind], down: Down) -> float | None:
    """Return for how many seconds the target has been down at the end of the window; None if no interval tells.

    An interval that does not tell is skipped. Time before a gap does not count: the target may have been up meanwhile.
    """
    seconds, later = None, None
    for tick in reversed(ticks):
        if later and unwatched_between(tick, later):
            break
        is_down_then = down(tick, kinds)
        if is_down_then is False:
            return seconds or 0.0
        if is_down_then:
            seconds = ticks[-1].t - tick.start
        later = tick
    return seconds


Down = Callable[[Tick, Mapping[str, Kind]], bool | None]
# Figures of a moment rather than of a window: their worst moment counts.
STATES = ("connections_share", "lock_wait_s", "transaction_s", "invalid_indexes")
OUTAGES: Mapping[str, Down] = {"service_down_s": service_down, "database_down_s": database_down}


def figures_frame(ticks: Iterable[Tick], about: About) -> DataFrame:
    """Return the intervals of a watch as a table, one row for each interval and request or query.

    Parameters
    ----------
    ticks : iterable of Tick
        The intervals.
    about : About
        The description of the watch.

    Returns
    -------
    pandas.DataFrame
        `ended` (UTC) and `t_s` (seconds since the watch began) of the interval's end, its length in `seconds`, `item`
        and `kind` of what was sent, the number of probes `sent`, `failed` and `pending`, and `p50_ms`, `p95_ms` and
        `max_ms` of the response times in ms, from however few samples; NaN without an answer.

    Examples
    --------
    >>> frame = watch.frame
    >>> int(frame["sent"].sum()), int(frame["failed"].sum())
    (720, 0)
    """
    from pandas import DataFrame, to_datetime  # late: half a second, which a watch does without

    rows = []
    for tick in ticks:
        for item, kind in about.kinds.items():
            probe = tick.probes.get(item, Probe())
            p50, p95 = (percentile(probe.ms, q) if probe.ms else math.nan for q in (50, 95))
            counts = (probe.sent, probe.failed, probe.pending)
            rows.append((tick.at, tick.t, tick.seconds, item, kind, *counts, p50, p95, max(probe.ms, default=math.nan)))
    columns = ["ended", "t_s", "seconds", "item", "kind", "sent", "failed", "pending", "p50_ms", "p95_ms", "max_ms"]
    frame = DataFrame(rows, columns=columns)
    return frame.assign(ended=to_datetime(frame["ended"], unit="s", utc=True))


@dataclass(frozen=True, slots=True)
class Actual:
    """A figure of a whole period; `lo` and `hi` are its 95 % interval, or the value itself if it was not sampled."""

    value: float | None
    lo: float
    hi: float
    n: int  # number of probes, or of intervals, behind it
    how: str  # the data behind the value, in words
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
    sent = probes(period.ticks, names)
    n, answers = sum(probe.sent for probe in sent), [samples(block, names) for block in period.blocks()]
    match metric:
        case "p50_ms" | "p95_ms" | "p99_ms":
            return _percentile(PERCENTILES[metric], answers, period)
        case "mean_ms":
            return _ratio([(sum(ms), len(ms)) for ms in answers if ms], sum(map(len, answers)), period)
        case "throughput":
            seconds = [sum(tick.seconds for tick in block) for block in period.blocks()]
            counts = [sum(probe.outcomes.get(OK, 0) for probe in probes(block, names)) for block in period.blocks()]
            return _ratio(list(zip(counts, seconds, strict=True)), sum(counts), period)
        case "error_rate":
            return _share_of_probes(sum(probe.failed for probe in sent), n, "failed")
        case "availability":
            return _availability(names, period)
    value = compute_figures(period.ticks, about.kinds, baseline, item or "")[metric]
    if metric == "success_rate" and value is not None:
        failures = _share_of_probes(round((1 - value) * n), n, "did not succeed")
        return Actual(value, 1 - failures.hi, math.inf, n, failures.how)
    return _read(metric, item or "", period, about, baseline, value)


def interval_text(actual: Actual, to_text: Callable[[float], str]) -> str:
    """Return the 95 % interval in words; empty if there is no value, or if it is exact."""
    if actual.value is None or actual.lo == actual.hi:
        return ""
    low, high = (to_text(actual.lo) if actual.lo > 0 else "", to_text(actual.hi) if actual.hi < math.inf else "")
    if low and high:
        return units.unbroken(f"{low} to {high}")
    return units.unbroken(f"at least {low}" if low else f"at most {high}" if high else "no bound")


def _percentile(q: int, blocks: Sequence[Sequence[float]], period: Period) -> Actual:
    n, tail = sum(map(len, blocks)), stats.tail(blocks, q)
    if tail is None:
        return Actual.none(units.too_few(n, q), n)
    return Actual(tail.value, tail.lo, tail.hi, n, _in_blocks(n, period, tail.rounds))


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
    intervals, one = units.count(len(period.ticks)), units.percent(weight)
    how = f"{units.count(len(lengths))} of {intervals} intervals down; one interval is {one} of the time"
    lo, hi = (1 - (down + gap) / (watched + unknown) for gap in (unknown, 0.0))
    lacks = f"not watched for {duration_text(unknown)}" if unknown else ""
    return Actual(1 - down / watched, lo, hi, len(period.ticks), how, lacks)


def _read(
    metric: Metric, item: str, period: Period, about: About, baseline: Baseline | None, total: float | None
) -> Actual:
    """Return a figure that is read rather than sampled: the worst moment, the longest outage, or a total."""
    value, how = total, "over the whole time"
    if metric in STATES:
        moments = (compute_figures([tick], about.kinds, baseline, item)[metric] for tick in period.ticks)
        value, how = max((moment for moment in moments if moment is not None), default=None), "the worst interval"
    elif metric in OUTAGES:
        outages = find_stretches(period.ticks, lambda tick: OUTAGES[metric](tick, about.kinds))
        value, how = max((end - start for start, end in outages), default=0.0), "the longest outage"
    if value is None:
        return Actual.none("the watch could not read it")
    return Actual(value, value, value, len(period.ticks), how)


def _ratio(blocks: Sequence[tuple[float, float]], n: int, period: Period) -> Actual:
    """Return a ratio of sums over blocks of time, with a t interval; a block is its part of both sums.

    Neighbouring probes resemble each other, so an interval from single probes would be too narrow. The variance of the
    ratio is linearised over the blocks, with their number less one as degrees of freedom.
    """
    if not n or not sum(bottom for _, bottom in blocks):
        return Actual.none("no probe was answered")
    top, bottom = np.array(blocks, dtype=float).T
    value, how = float(top.sum() / bottom.sum()), _in_blocks(n, period, len(blocks))
    if len(blocks) < 2:
        return Actual(value, 0.0, math.inf, n, how)
    rest = top - value * bottom
    error = math.sqrt(len(blocks) / (len(blocks) - 1) * float(rest @ rest)) / float(bottom.sum())
    half = stats.t_limit(len(blocks) - 1) * error
    return Actual(value, max(value - half, 0.0), value + half, n, how)


def _in_blocks(n: int, period: Period, blocks: int) -> str:
    return f"{units.count(n)} answers in {blocks} × {duration_text(period.width)}"
