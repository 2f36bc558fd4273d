"""Figures of a window of time: of the service, and of the server.

Pure. A window is a sequence of intervals in the order of time. Whose latency and errors: one item's, or those of all
requests, or of all queries where no request is sent. Percentiles are of raw samples and only given with the samples
for them (`perfkit.base.stats.supported`). An interval is down where something was due and nothing was answered as
expected: what ended failed, or nothing ended and the oldest has been due for the whole interval, at least for a
second. Time in which nobody watched is neither up nor down.

On a connection of its own, in read-only transactions with a time limit. What a role may not see is left out.
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
from perfkit.monitor.incidents import Period, lasting
from perfkit.monitor.model import OK, About, Kind, Probe, Tick
from perfkit.monitor.notifications import share

_MB = 1024 * 1024
_COUNTED = ("commits", "rollbacks", "blocks_hit", "blocks_read", "temp_bytes", "deadlocks", "checksum_failures")
_NOW = ("lock_wait_s", "transaction_s", "invalid_indexes")


def server_figures(ticks: Sequence[Tick]) -> dict[str, float | None]:
    """The server's metrics: counters from the first interval's end to the last's, others as last known."""
    said = [tick.server for tick in ticks if tick.server]
    counted = {name: grown(said, name) for name in _COUNTED}
    mb = counted["temp_bytes"]
    return {
        "connections_share": _share(_last(said, "connections"), _last(said, "connections_max")),
        **{name: _last(said, name) for name in _NOW},
        "deadlocks": counted["deadlocks"],
        "checksum_failures": counted["checksum_failures"],
        "cache_misses": _part(counted["blocks_read"], counted["blocks_hit"]),
        "temp_mb": None if mb is None else mb / _MB,
        "rollback_rate": _part(counted["rollbacks"], counted["commits"]),
    }


def grown(said: Sequence[Mapping[str, float]], name: str) -> float | None:
    """By how much a counter grew; None with fewer than two readings.

    A value below the one before has begun anew at 0, after a crash or a reset, and counts whole. A restart after an
    orderly shutdown keeps the counters, so another `started` alone is no new beginning.
    """
    values = [one[name] for one in said if name in one]
    if len(values) < 2:
        return None
    return sum(now - before if now >= before else now for before, now in pairwise(values))


def _last(said: Sequence[Mapping[str, float]], name: str) -> float | None:
    return next((one[name] for one in reversed(said) if name in one), None)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _part(one: float | None, other: float | None) -> float | None:
    """Of two counts the first's share of both; None where nothing was counted."""
    return None if one is None or other is None else _share(one, one + other)


# Figures of a window of intervals: latency, errors, throughput, downtime, and what the server said of itself.

GAP_S = 0.5  # between two intervals: more, and nobody watched
_HANGS_S = 1.0  # a probe that has been due for less may yet be answered, however short the interval was


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is usual: the figures of the first healthy stretch."""

    throughput: float  # answered as expected, per second
    p50_ms: float


def window(ticks: Sequence[Tick], seconds: float) -> Sequence[Tick]:
    """The intervals that ended in the last so many seconds of the time line."""
    return ticks[bisect_right(ticks, ticks[-1].t - seconds, key=lambda tick: tick.t) :] if ticks else ticks


def gaps(ticks: Sequence[Tick]) -> list[tuple[float, float]]:
    """Stretches of the time line, from and until, in which nobody watched."""
    return [(one.t, other.start) for one, other in pairwise(ticks) if parted(one, other)]


def parted(one: Tick, other: Tick) -> bool:
    """Whether nobody watched between two intervals."""
    return other.start - one.t > GAP_S


def chosen(kinds: Mapping[str, Kind], item: str = "") -> list[str]:
    """Whose figures: the item's where it is sent, or those of all requests, or of all queries without a request."""
    if item:
        return [item] if item in kinds else []
    return [name for name, kind in kinds.items() if kind == "request"] or list(kinds)


def probes(ticks: Iterable[Tick], names: Iterable[str]) -> list[Probe]:
    """The intervals' probes of these names."""
    names = list(names)
    return [tick.probes[name] for tick in ticks for name in names if name in tick.probes]


def samples(ticks: Iterable[Tick], names: Iterable[str]) -> list[float]:
    """Response times in ms of what was answered as expected."""
    return [ms for probe in probes(ticks, names) for ms in probe.ms]


def is_down(tick: Tick, names: Iterable[str]) -> bool | None:
    """Whether an interval is down, seen by its probes of these names; None where nothing was to be answered."""
    found = probes([tick], names)
    if any(probe.outcomes.get(OK) for probe in found):
        return False
    hangs = max(tick.seconds, _HANGS_S)
    return True if any(p.sent or (p.pending and p.oldest_s >= hangs) for p in found) else None


def stretches(ticks: Iterable[Tick], so: Callable[[Tick], bool | None]) -> list[tuple[float, float]]:
    """Stretches of the time line, from and until, of intervals that are so.

    One that says nothing (None) is passed over between two that are; where nobody watched, a stretch ends.
    """
    found, before, on = list[tuple[float, float]](), None, False
    for tick in ticks:
        on = on and before is not None and not parted(before, tick)
        if now := so(tick):
            found.append((found.pop()[0] if on else tick.start, tick.t))
        on, before = bool(now) or (on and now is None), tick
    return found


def service_down(tick: Tick, kinds: Mapping[str, Kind]) -> bool | None:
    """Whether no request was answered as expected (no query, where no request is sent); None where none was due."""
    return is_down(tick, chosen(kinds))


def database_down(tick: Tick, kinds: Mapping[str, Kind]) -> bool | None:
    """Whether the server said nothing and no query was answered; None where nobody asked it."""
    if tick.server:  # it answers: queries that fail meanwhile wait for a lock, or are wrong
        return False
    queries = is_down(tick, [name for name, kind in kinds.items() if kind == "query"])
    return True if queries is None and tick.server is None else queries


def healthy(tick: Tick, kinds: Mapping[str, Kind], item: str = "") -> bool:
    """Whether something was answered in an interval and nothing failed."""
    found = probes([tick], chosen(kinds, item))
    return any(probe.ms for probe in found) and not any(probe.failed for probe in found)


def baseline(ticks: Iterable[Tick], kinds: Mapping[str, Kind], watch: Watch, item: str = "") -> Baseline | None:
    """What the first `baseline_s` healthy seconds show; None before there were as many."""
    found, seconds = list[Tick](), 0.0
    for tick in ticks:
        if healthy(tick, kinds, item):
            found.append(tick)
            seconds += tick.seconds
        if seconds >= watch.baseline_s:
            usual = samples(found, chosen(kinds, item))
            return Baseline(len(usual) / seconds, percentile(usual, 50))
    return None


def figures(
    ticks: Sequence[Tick],
    kinds: Mapping[str, Kind],
    baseline: Baseline | None,
    item: str = "",
    *,
    before: Tick | None = None,
    few: bool = False,
) -> dict[str, float | None]:
    """Every `Metric` of config/watching.py; None where there are not enough samples, or it is not known.

    `before` is the interval before the first, from which counters are counted; with `few`, percentiles are of
    however few samples.
    """
    names = chosen(kinds, item)
    own = probes(ticks, names)
    watched = sum(tick.seconds for tick in ticks)
    ended, failed = sum(probe.sent for probe in own), sum(probe.failed for probe in own)
    throughput = (ended - failed) / watched if watched and own else None
    latency = _latency(sorted(samples(ticks, names)), few)
    p50, p_usual = latency["p50_ms"], baseline.p50_ms if baseline else 0.0
    usual = baseline.throughput if baseline else 0.0
    down = sum(tick.seconds for tick in ticks if is_down(tick, names))
    return {
        **latency,
        "error_rate": failed / ended if ended else None,
        "throughput": throughput,
        "throughput_drop": 1 - throughput / usual if throughput is not None and usual else None,
        "slowdown": p50 / p_usual if p50 is not None and p_usual else None,
        "success_rate": _succeeded(ticks, names, kinds) / ended if ended else None,
        "availability": 1 - down / watched if watched and own else None,
        "service_down_s": _standing(ticks, lambda tick: service_down(tick, kinds)),
        "database_down_s": _standing(ticks, lambda tick: database_down(tick, kinds)),
        **server_figures(([before] if before else []) + list(ticks)),
    }


def _latency(ms: Sequence[float], few: bool) -> dict[str, float | None]:
    n = len(ms)
    said = {q: percentile(ms, q) if n and (few or supported(n, q)) else None for q in (50, 95, 99)}
    mean = sum(ms) / n if n else None
    return {"p50_ms": said[50], "p95_ms": said[95], "p99_ms": said[99], "mean_ms": mean}


def _succeeded(ticks: Iterable[Tick], names: Sequence[str], kinds: Mapping[str, Kind]) -> int:
    """Requests answered with a 2xx, whatever was expected; queries answered."""
    return sum(
        sum(n for status, n in probe.statuses.items() if status.startswith("2"))
        if kinds.get(name) == "request"
        else probe.outcomes.get(OK, 0)
        for tick in ticks
        for name in names
        if (probe := tick.probes.get(name))
    )


def _standing(ticks: Sequence[Tick], down: Callable[[Tick], bool | None]) -> float | None:
    """How long it has been down at the end of the window, in seconds; None where no interval says so or otherwise.

    An interval that says nothing is passed over; where nobody watched, nobody saw it down.
    """
    seconds, later = None, None
    for tick in reversed(ticks):
        if later and parted(tick, later):
            break
        if (so := down(tick)) is False:
            return seconds or 0.0
        if so:
            seconds = ticks[-1].t - tick.start
        later = tick
    return seconds


Down = Callable[[Tick, Mapping[str, Kind]], bool | None]

PERCENTILES: Mapping[Metric, int] = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
STATES = ("connections_share", "lock_wait_s", "transaction_s", "invalid_indexes")  # of a moment: the worst counts
OUTAGES: Mapping[str, Down] = {"service_down_s": service_down, "database_down_s": database_down}


@dataclass(frozen=True, slots=True)
class Actual:
    """A figure with what is known of it: the true one is between `lo` and `hi`, 95 % sure where it was sampled."""

    value: float | None
    lo: float
    hi: float
    n: int  # probes, or intervals, that it comes from
    how: str  # from what, in words
    lacks: str = ""  # why there is none, or why it settles nothing

    @classmethod
    def none(cls, lacks: str, n: int = 0) -> Actual:
        """No figure, and why."""
        return cls(None, -math.inf, math.inf, n, "", lacks)


def actual(metric: Metric, item: str | None, period: Period, about: About, baseline: Baseline | None) -> Actual:
    """One figure over the whole time."""
    names = chosen(about.kinds, item or "")
    if not names:
        return Actual.none(f"the watch does not send {item or 'anything'}")
    if metric in PERCENTILES:
        return _percentile(PERCENTILES[metric], names, period)
    if metric in _SAMPLED:
        return _SAMPLED[metric](names, period)
    if metric == "availability":
        return _availability(names, period)
    return _counted(metric, item, period, about, baseline)


def within(found: Actual, say: Callable[[float], str]) -> str:
    """Where the true figure is, 95 % sure, in words; empty where there is no more to say."""
    if found.value is None or found.lo == found.hi:
        return ""
    low, high = (say(found.lo) if found.lo > 0 else "", say(found.hi) if found.hi < math.inf else "")
    text = (
        f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else "no bound"
    )
    return units.unbroken(text)


def _percentile(q: int, names: Sequence[str], period: Period) -> Actual:
    blocks = [samples(block, names) for block in period.blocks()]
    n = sum(map(len, blocks))
    found = stats.tail(blocks, q)
    if found is None:
        return Actual.none(units.too_few(n, q), n)
    return Actual(found.value, found.lo, found.hi, n, _in_blocks(n, "answers", period, found.rounds))


def _mean(names: Sequence[str], period: Period) -> Actual:
    blocks = [ms for block in period.blocks() if (ms := samples(block, names))]
    return _quotient([sum(own) for own in blocks], [len(own) for own in blocks], sum(map(len, blocks)), period)


def _throughput(names: Sequence[str], period: Period) -> Actual:
    answered = [sum(probe.outcomes.get(OK, 0) for probe in probes(block, names)) for block in period.blocks()]
    return _quotient(
        answered, [sum(tick.seconds for tick in block) for block in period.blocks()], sum(answered), period
    )


def _error_rate(names: Sequence[str], period: Period) -> Actual:
    sent = probes(period.ticks, names)
    return _share_of_probes(sum(probe.failed for probe in sent), sum(probe.sent for probe in sent), "failed")


def _share_of_probes(bad: int, n: int, what: str) -> Actual:
    if not n:
        return Actual.none("no probe ended")
    how = f"{units.count(bad)} of {units.count(n)} probes {what}"
    return Actual(bad / n, -math.inf, stats.error_bound(bad, n), n, how)


def _availability(names: Sequence[str], period: Period) -> Actual:
    """Every interval of the time was looked at, so only those in which nobody watched leave it open."""
    known = [is_down(tick, names) for tick in period.ticks]
    if all(down is None for down in known):
        return Actual.none("nothing was to be answered")
    lengths = [tick.seconds for tick, down in zip(period.ticks, known, strict=True) if down]
    watched, down = period.watched, sum(lengths)
    unknown = sum(end - start for start, end in gaps(period.ticks))
    weight = max(tick.seconds for tick in period.ticks) / watched
    intervals = units.count(len(period.ticks))
    how = f"{units.count(len(lengths))} of {intervals} intervals down; one weighs {share(weight)}"
    lo, hi = (1 - (down + gap) / (watched + unknown) for gap in (unknown, 0.0))
    lacks = f"nobody watched for {lasting(unknown)}" if unknown else ""
    return Actual(1 - down / watched, lo, hi, len(period.ticks), how, lacks)


def _counted(metric: Metric, item: str | None, period: Period, about: About, baseline: Baseline | None) -> Actual:
    """What is no sample but was read off: the worst moment, the longest outage, or what came together."""

    def at(ticks: Sequence[Tick]) -> float | None:
        return figures(ticks, about.kinds, baseline, item or "")[metric]

    value, how = at(period.ticks), "over the whole time"
    if metric == "success_rate" and value is not None:
        sent = sum(probe.sent for probe in probes(period.ticks, chosen(about.kinds, item or "")))
        bad = _share_of_probes(round((1 - value) * sent), sent, "did not succeed")
        return Actual(value, 1 - bad.hi, math.inf, sent, bad.how)
    if metric in STATES:
        moments = [moment for tick in period.ticks if (moment := at([tick])) is not None]
        value, how = max(moments, default=None), "the worst of all intervals"
    elif metric in OUTAGES:
        down = OUTAGES[metric]
        outages = stretches(period.ticks, lambda tick: down(tick, about.kinds))
        value, how = max((end - start for start, end in outages), default=0.0), "the longest without a break"
    if value is None:
        return Actual.none("the watch could not read it")
    return Actual(value, value, value, len(period.ticks), how)


def _quotient(above: Sequence[float], below: Sequence[float], n: int, period: Period) -> Actual:
    """A quotient of sums over blocks, its variance linearised over them, with their number less one as freedom."""
    if not n or not sum(below):
        return Actual.none("no probe was answered")
    tops, bottoms = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    value, blocks = float(tops.sum() / bottoms.sum()), len(tops)
    how = _in_blocks(n, "answers", period, blocks)
    if blocks < 2:
        return Actual(value, 0.0, math.inf, n, how)
    rest = tops - value * bottoms
    error = math.sqrt(blocks / (blocks - 1) * float(rest @ rest)) / float(bottoms.sum())
    half = float(special.stdtrit(blocks - 1, 1 - stats.ALPHA / 2)) * error
    return Actual(value, max(value - half, 0.0), value + half, n, how)


def _in_blocks(n: int, what: str, period: Period, blocks: int) -> str:
    return f"{units.count(n)} {what} in {blocks} × {lasting(period.width)}"


_SAMPLED: Mapping[str, Callable[[Sequence[str], Period], Actual]] = {
    "mean_ms": _mean,
    "throughput": _throughput,
    "error_rate": _error_rate,
}
