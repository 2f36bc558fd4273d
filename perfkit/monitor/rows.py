"""One row of the review's table: what was aimed at, what came, and whether that is proven.

A bound proves, an estimate only breaks: a target is met where the whole 95 % interval is on its good side, missed
where the estimate is on its bad one, and unproven between the two. Pure functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from perfkit import stats
from perfkit.config.watching import Target
from perfkit.errors import UsageError
from perfkit.monitor import figures
from perfkit.monitor.actuals import PERCENTILES, Actual, actual, within
from perfkit.monitor.before_release import BeforeRelease
from perfkit.monitor.model import About
from perfkit.monitor.period import Period, lasting
from perfkit.monitor.sentences import bound, said
from perfkit.people import name_of

MOST = 1000.0  # beyond so many times as long, more watching is no advice


class Result(StrEnum):
    """Whether a target is met by estimate and bound, missed by its estimate, or neither."""

    MET = "met"
    MISSED = "missed"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Said:
    """What a person says of a row."""

    value: float
    by: str


def values_of(text: str, by: str) -> dict[str, Said]:
    """Lines of NAME=X as what somebody says. Raises UsageError."""
    found: dict[str, Said] = {}
    who = name_of(by)
    for line in filter(str.strip, text.splitlines()):
        name, _, value = line.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name.strip() or not math.isfinite(number):
            raise UsageError(f"value '{line}'; expected NAME=X with a number, like User rating=4.3")
        if name.strip() in found:
            raise UsageError(f"value '{line}'; expected one of '{name.strip()}', not two")
        if not who:
            raise UsageError(f"value '{line}' is said by nobody; expected --by WHO")
        found[name.strip()] = Said(number, who)
    if who and not found:
        raise UsageError(f"--by {who}; expected a --value with it")
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    target: Target
    actual: Actual
    result: Result
    takes: str  # of an unproven one: what it would take

    @property
    def name(self) -> str:
        """How it is called."""
        return self.target.name

    @property
    def aim(self) -> str:
        """What was aimed at, with its unit."""
        low, high = (
            None if end is None else bound(self.target.metric, end, self.target.unit)
            for end in (self.target.at_least, self.target.at_most)
        )
        return f"{low} to {high}" if low and high else f"≥ {low}" if low else f"≤ {high}"

    @property
    def said(self) -> str:
        """The actual value with its unit; a dash where there is none."""
        return self._with_unit(self.actual.value)

    @property
    def range(self) -> str:
        """Where the true one is, 95 % sure."""
        return within(self.actual, self._with_unit)

    def _with_unit(self, value: float | None) -> str:
        return said(self.target.metric, value, self.target.unit)


def row(
    target: Target,
    period: Period,
    about: About,
    baseline: figures.Baseline | None,
    value: Said | None = None,
    before: BeforeRelease | None = None,
) -> Row:
    """One target judged: by what was watched, before the release where probes cannot tell, or by what somebody says."""
    found, takes = _found(target, period, about, baseline, before)
    if value is not None:
        if found.value is not None:
            raise UsageError(f"value '{target.name}' is measured; expected one of a row that is not")
        found = Actual(value.value, value.value, value.value, 1, f"said by {value.by}")
    result = judged(target, found)
    takes = (takes or _takes(target, found, period, about)) if result is Result.UNPROVEN else ""
    return Row(target, found, result, takes)


def _found(
    target: Target, period: Period, about: About, baseline: figures.Baseline | None, before: BeforeRelease | None
) -> tuple[Actual, str]:
    """What is known of a figure, and where that is nothing, what it takes."""
    if target.metric is None:
        return Actual.none(""), f"to be said: --value '{target.name}=...' --by WHO"
    found = actual(target.metric, target.item, period, about, baseline)
    names = figures.chosen(about.kinds, target.item or "")
    if not names and before:
        return found, "; ".join(filter(None, (found.lacks, before.failed([target.item or ""]))))
    offered = about.rate * len(names)
    if target.metric != "throughput" or target.at_least is None or target.at_least <= offered:
        return found, ""
    reach, least = (bound("throughput", rate) for rate in (offered, target.at_least))
    measured = before.throughput(names) if before else None
    takes = f"the watch offers {reach} and cannot reach {least}: name a run under load, --against RUN"
    return (measured, "") if measured else (Actual.none(takes), takes)


def judged(target: Target, found: Actual) -> Result:
    """Met by value and both bounds, missed by the value, else unproven."""
    low = -math.inf if target.at_least is None else target.at_least
    high = math.inf if target.at_most is None else target.at_most
    if found.value is None:
        return Result.UNPROVEN
    if not low <= found.value <= high:
        # Intervals in which nobody watched may have been better than the others.
        open_ = target.metric == "availability" and low <= found.hi
        return Result.UNPROVEN if open_ else Result.MISSED
    coarse = target.metric == "availability" and found.value == 1 and 1 / found.n > 1 - low
    return Result.MET if low <= found.lo and found.hi <= high and not coarse else Result.UNPROVEN


def _takes(target: Target, found: Actual, period: Period, about: About) -> str:
    """What would settle an unproven row."""
    if found.value is None:
        q = PERCENTILES.get(target.metric) if target.metric else None
        return f"{found.lacks}: {_longer(stats.MIN_SAMPLES[q] / found.n, period)}" if q and found.n else found.lacks
    if target.metric == "availability":
        if found.lacks:
            return f"{found.lacks}, and what was then decides: watch without a break"
        assert target.at_least is not None
        need = about.every_s / (1 - target.at_least) if target.at_least < 1 else math.inf
        return f"an outage of less than an interval would decide: {_longer(need / period.watched, period)}"
    limit = target.at_least if target.at_least is not None and found.lo < target.at_least else target.at_most
    assert limit is not None
    if target.metric in ("error_rate", "success_rate"):
        bad = found.value if target.metric == "error_rate" else 1 - found.value
        factor = _samples_factor(round(bad * found.n), found.n, limit if target.metric == "error_rate" else 1 - limit)
    else:
        end = found.lo if limit == target.at_least else found.hi
        room = abs(found.value - limit)
        factor = (abs(end - found.value) / room) ** 2 if room and math.isfinite(end) else math.inf
        if math.isinf(end):
            return (
                f"its interval has no bound from so few blocks: {_longer(12 * period.width / period.watched, period)}"
            )
    return f"its bound is not within the target: {_longer(factor, period)}"


def _longer(factor: float, period: Period) -> str:
    if not math.isfinite(factor) or factor > MOST:
        return "more watching will not settle it"
    return f"about {lasting(max(factor, 1.1) * period.watched)} of watching in all"


def _samples_factor(bad: int, n: int, limit: float) -> float:
    """How many times as many samples like these exclude a rate of more than `limit`."""
    factor = 1.0
    while factor <= MOST and stats.error_bound(round(bad * factor), round(n * factor)) > limit:
        factor *= 1.1
    return factor
