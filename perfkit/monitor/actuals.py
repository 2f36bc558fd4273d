"""What a watch found of one figure over the whole time: its value, how sure that is, and from what.

Pure functions. Blocks of time stand where a measured run has rounds: neighbouring probes resemble each other, so an
interval from single probes would be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from perfkit import numbers, stats
from perfkit.config.watching import Metric
from perfkit.monitor import figures
from perfkit.monitor.model import OK, About, Kind, Tick
from perfkit.monitor.period import Period, lasting
from perfkit.monitor.sentences import share

Down = Callable[[Tick, Mapping[str, Kind]], bool | None]

PERCENTILES: Mapping[Metric, int] = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
STATES = ("connections_share", "lock_wait_s", "transaction_s", "invalid_indexes")  # of a moment: the worst counts
OUTAGES: Mapping[str, Down] = {"service_down_s": figures.service_down, "database_down_s": figures.database_down}


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


def actual(metric: Metric, item: str | None, period: Period, about: About, baseline: figures.Baseline | None) -> Actual:
    """One figure over the whole time."""
    names = figures.chosen(about.kinds, item or "")
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
    return numbers.unbroken(text)


def _percentile(q: int, names: Sequence[str], period: Period) -> Actual:
    blocks = [figures.samples(block, names) for block in period.blocks()]
    n = sum(map(len, blocks))
    found = stats.tail(blocks, q)
    if found is None:
        return Actual.none(numbers.too_few(n, q), n)
    return Actual(found.value, found.lo, found.hi, n, _in_blocks(n, "answers", period, found.rounds))


def _mean(names: Sequence[str], period: Period) -> Actual:
    blocks = [ms for block in period.blocks() if (ms := figures.samples(block, names))]
    return _quotient([sum(own) for own in blocks], [len(own) for own in blocks], sum(map(len, blocks)), period)


def _throughput(names: Sequence[str], period: Period) -> Actual:
    answered = [sum(probe.outcomes.get(OK, 0) for probe in figures.probes(block, names)) for block in period.blocks()]
    return _quotient(
        answered, [sum(tick.seconds for tick in block) for block in period.blocks()], sum(answered), period
    )


def _error_rate(names: Sequence[str], period: Period) -> Actual:
    probes = figures.probes(period.ticks, names)
    return _share(sum(probe.failed for probe in probes), sum(probe.sent for probe in probes), "failed")


def _share(bad: int, n: int, what: str) -> Actual:
    if not n:
        return Actual.none("no probe ended")
    how = f"{numbers.count(bad)} of {numbers.count(n)} probes {what}"
    return Actual(bad / n, -math.inf, stats.error_bound(bad, n), n, how)


def _availability(names: Sequence[str], period: Period) -> Actual:
    """Every interval of the time was looked at, so only those in which nobody watched leave it open."""
    known = [figures.is_down(tick, names) for tick in period.ticks]
    if all(down is None for down in known):
        return Actual.none("nothing was to be answered")
    lengths = [tick.seconds for tick, down in zip(period.ticks, known, strict=True) if down]
    watched, down = period.watched, sum(lengths)
    unknown = sum(end - start for start, end in figures.gaps(period.ticks))
    weight = max(tick.seconds for tick in period.ticks) / watched
    intervals = numbers.count(len(period.ticks))
    how = f"{numbers.count(len(lengths))} of {intervals} intervals down; one weighs {share(weight)}"
    lo, hi = (1 - (down + gap) / (watched + unknown) for gap in (unknown, 0.0))
    lacks = f"nobody watched for {lasting(unknown)}" if unknown else ""
    return Actual(1 - down / watched, lo, hi, len(period.ticks), how, lacks)


def _counted(
    metric: Metric, item: str | None, period: Period, about: About, baseline: figures.Baseline | None
) -> Actual:
    """What is no sample but was read off: the worst moment, the longest outage, or what came together."""

    def at(ticks: Sequence[Tick]) -> float | None:
        return figures.figures(ticks, about.kinds, baseline, item or "")[metric]

    value, how = at(period.ticks), "over the whole time"
    if metric == "success_rate" and value is not None:
        sent = sum(probe.sent for probe in figures.probes(period.ticks, figures.chosen(about.kinds, item or "")))
        bad = _share(round((1 - value) * sent), sent, "did not succeed")
        return Actual(value, 1 - bad.hi, math.inf, sent, bad.how)
    if metric in STATES:
        moments = [moment for tick in period.ticks if (moment := at([tick])) is not None]
        value, how = max(moments, default=None), "the worst of all intervals"
    elif metric in OUTAGES:
        down = OUTAGES[metric]
        outages = figures.stretches(period.ticks, lambda tick: down(tick, about.kinds))
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
    return f"{numbers.count(n)} {what} in {blocks} × {lasting(period.width)}"


_SAMPLED: Mapping[str, Callable[[Sequence[str], Period], Actual]] = {
    "mean_ms": _mean,
    "throughput": _throughput,
    "error_rate": _error_rate,
}
