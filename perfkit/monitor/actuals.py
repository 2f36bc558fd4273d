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

from perfkit import stats
from perfkit.config.watching import Metric
from perfkit.display import numbers
from perfkit.monitor import figures
from perfkit.monitor.model import OK, About, Kind, Probe, Tick
from perfkit.monitor.period import Period, lasting
from perfkit.monitor.sentences import with_unit

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


def items_of(kinds: Mapping[str, Kind], item: str | None) -> tuple[str, ...]:
    """What a row is about: one item where it is sent, else all requests, or all queries where there is no request."""
    return tuple(name for name in figures.chosen(kinds, item or "") if name in kinds)


def actual(metric: Metric, item: str | None, period: Period, about: About, baseline: figures.Baseline | None) -> Actual:
    """One figure over the whole time."""
    names = items_of(about.kinds, item)
    if not names:
        return Actual.none(f"the watch does not send {item or 'anything'}")
    if metric in PERCENTILES:
        return _percentile(PERCENTILES[metric], names, period)
    if metric in _SAMPLED:
        return _SAMPLED[metric](names, period)
    if metric == "availability":
        return _availability(names, period)
    return _counted(metric, item, period, about, baseline)


def times(ticks: Sequence[Tick], names: Sequence[str]) -> list[float]:
    """Response times in ms of what was answered as expected."""
    return [ms for probe in _probes(ticks, names) for ms in probe.ms]


def _percentile(q: int, names: Sequence[str], period: Period) -> Actual:
    blocks = [times(block, names) for block in period.blocks()]
    n = sum(map(len, blocks))
    found = stats.tail(blocks, q)
    if found is None:
        return Actual.none(numbers.too_few(n, q), n)
    return Actual(found.value, found.lo, found.hi, n, _in_blocks(n, "answers", period, found.rounds))


def _mean(names: Sequence[str], period: Period) -> Actual:
    blocks = [ms for block in period.blocks() if (ms := times(block, names))]
    return _quotient([sum(own) for own in blocks], [len(own) for own in blocks], sum(map(len, blocks)), period)


def _throughput(names: Sequence[str], period: Period) -> Actual:
    answered = [sum(probe.outcomes.get(OK, 0) for probe in _probes(block, names)) for block in period.blocks()]
    return _quotient(
        answered, [sum(tick.seconds for tick in block) for block in period.blocks()], sum(answered), period
    )


def _error_rate(names: Sequence[str], period: Period) -> Actual:
    probes = _probes(period.ticks, names)
    return _share(sum(probe.failed for probe in probes), sum(probe.sent for probe in probes), "failed")


def _share(bad: int, n: int, what: str) -> Actual:
    if not n:
        return Actual.none("no probe ended")
    how = f"{numbers.count(bad)} of {numbers.count(n)} probes {what}"
    return Actual(bad / n, -math.inf, stats.error_bound(bad, n), n, how)


def _availability(names: Sequence[str], period: Period) -> Actual:
    """Every interval of the time was looked at, so only those in which nobody watched leave it open."""
    lengths = [tick.seconds for tick in period.ticks if is_down(tick, names)]
    watched, down = period.watched, sum(lengths)
    unknown = sum(end - start for start, end in figures.gaps(period.ticks))
    weight = max(tick.seconds for tick in period.ticks) / watched
    intervals = numbers.count(len(period.ticks))
    how = f"{numbers.count(len(lengths))} of {intervals} intervals down; one weighs {share(weight)}"
    lo, hi = (1 - (down + gap) / (watched + unknown) for gap in (unknown, 0.0))
    lacks = f"nobody watched for {lasting(unknown)}" if unknown else ""
    return Actual(1 - down / watched, lo, hi, len(period.ticks), how, lacks)


def is_down(tick: Tick, names: Sequence[str]) -> bool:
    """Whether something was due in an interval and nothing was answered as expected."""
    return bool(figures.is_down(figures.of(tick, names), tick.seconds))


def _counted(
    metric: Metric, item: str | None, period: Period, about: About, baseline: figures.Baseline | None
) -> Actual:
    """What is no sample but was read off: the worst moment, the longest outage, or what came together."""

    def at(ticks: Sequence[Tick]) -> float | None:
        return figures.figures(ticks, about.kinds, baseline, item or "")[metric]

    value, how = at(period.ticks), "over the whole time"
    if metric == "success_rate" and value is not None:
        sent = sum(probe.sent for probe in _probes(period.ticks, items_of(about.kinds, item)))
        bad = _share(round((1 - value) * sent), sent, "did not succeed")
        return Actual(value, 1 - bad.hi, math.inf, sent, bad.how)
    if metric in STATES:
        moments = [moment for tick in period.ticks if (moment := at([tick])) is not None]
        value, how = max(moments, default=None), "the worst of all intervals"
    elif metric in OUTAGES:
        value, how = _longest(period.ticks, OUTAGES[metric], about.kinds), "the longest without a break"
    if value is None:
        return Actual.none("the watch could not read it")
    return Actual(value, value, value, len(period.ticks), how)


def _longest(ticks: Sequence[Tick], down: Down, kinds: Mapping[str, Kind]) -> float:
    worst = now = 0.0
    for tick in ticks:
        now = now + tick.seconds if down(tick, kinds) else 0.0
        worst = max(worst, now)
    return worst


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


def _probes(ticks: Sequence[Tick], names: Sequence[str]) -> list[Probe]:
    return [probe for tick in ticks for probe in figures.of(tick, names)]


def share(value: float) -> str:
    """A share of one as a percentage that is 100 % only where nothing is missing.

    >>> share(0.99957), share(1.0), share(0.98), share(0.0004)
    ('99.957 %', '100 %', '98.0 %', '0.0400 %')
    """
    missing = 100 * (1 - value)
    if value <= 0.9 or missing < 1e-9:
        return numbers.percent(value)
    return f"{100 * value:.{max(1 - math.floor(math.log10(missing)), 0)}f} %"


_SHARES = ("error_rate", "success_rate", "availability", "throughput_drop", "connections_share", "cache_misses")


def said(metric: Metric | None, value: float, unit: str = "") -> str:
    """A figure with its unit; without a metric, what a person says, in the unit given."""
    if metric in (*_SHARES, "rollback_rate"):
        return numbers.unbroken(share(value))
    return numbers.unbroken(with_unit(metric, value) if metric else f"{value:g} {unit}".strip())


def bound(metric: Metric | None, value: float, unit: str = "") -> str:
    """A target as it was written, with its unit: no digits that say nothing.

    >>> bound("availability", 0.999).split(), bound("p95_ms", 500).split(), bound("throughput", 30)
    (['99.9', '%'], ['500', 'ms'], '30/s')
    """
    if metric in (*_SHARES, "rollback_rate"):
        return numbers.unbroken(f"{100 * value:.10g} %")
    if metric == "throughput":
        return f"{value:.10g}/s"
    return numbers.unbroken(f"{value:.10g} ms") if metric and metric.endswith("_ms") else said(metric, value, unit)


_SAMPLED: Mapping[str, Callable[[Sequence[str], Period], Actual]] = {
    "mean_ms": _mean,
    "throughput": _throughput,
    "error_rate": _error_rate,
}
