"""Figures of a window of intervals: latency, errors, throughput, downtime, and what the server said of itself.

Pure. A window is a sequence of intervals in the order of time. Whose latency and errors: one item's, or those of all
requests, or of all queries where no request is sent. Percentiles are of raw samples and only given with the samples
for them (`perfkit.stats.supported`). An interval is down where something was due and nothing was answered as expected:
what ended failed, or nothing ended and the oldest has been due for the whole interval, at least for a second. Time in
which nobody watched is neither up nor down.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from perfkit.config.watching import Watch
from perfkit.monitor import server_figures
from perfkit.monitor.model import OK, Kind, Probe, Tick
from perfkit.stats import percentile, supported

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
        **server_figures.server_figures(([before] if before else []) + list(ticks)),
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
