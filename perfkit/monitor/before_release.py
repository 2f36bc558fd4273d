"""The run that was made before the release, beside what the watch found: shown, never judged as a comparison.

Under load and alone are two things: many users at once before, one probe now and then afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from perfkit import numbers
from perfkit.analysis import analyse
from perfkit.analysis.results import Summary
from perfkit.bundle import Bundle
from perfkit.config.watching import Metric
from perfkit.errors import UsageError
from perfkit.monitor.actuals import Actual, actual, within
from perfkit.monitor.model import About
from perfkit.monitor.period import Period
from perfkit.monitor.sentences import said
from perfkit.stats import Interval

DIFFERENT_LOAD = "under load before the release, single probes since: different load, so no verdict"

BESIDE: tuple[Metric, ...] = ("p50_ms", "p95_ms", "p99_ms", "error_rate")


@dataclass(frozen=True, slots=True)
class BeforeRelease:
    """What a run measured of the arm that was shipped; levels in the order of load, the lightest first."""

    name: str  # of the run's folder
    arm: str
    title: str
    levels: Sequence[Summary]
    labels: Mapping[str, str]  # by scenario

    def of(self, item: str) -> list[Summary]:
        """The load levels of one request or query, the lightest first."""
        return [level for level in self.levels if level.item == item]

    def throughput(self, names: Sequence[str]) -> Actual | None:
        """Requests per second under the highest load; None where that was not measured or the client was too slow."""
        found = [level for level in self.levels if level.item in names and level.throughput and level.healthy]
        if not found:
            return None
        level = found[-1]
        rate = level.throughput
        assert rate
        how = f"before the release, under load: {self.label(level)}, {self.arm}, {rate.rounds} rounds"
        return Actual(rate.value, rate.lo, rate.hi, rate.n, how)

    def failed(self, names: Sequence[str]) -> str:
        """How many failed of those that were sent; empty where none was."""
        own = [level for level in self.levels if level.item in names]
        sent, errors = sum(level.sent for level in own), sum(level.errors for level in own)
        return f"before the release {numbers.count(errors)} of {numbers.count(sent)} failed under load" if sent else ""

    def label(self, level: Summary) -> str:
        """What its load level offers, in words."""
        return self.labels.get(level.scenario) or level.scenario


@dataclass(frozen=True, slots=True)
class ReleaseComparison:
    """One figure of one request before the release, under the lightest and the highest load, and since."""

    item: str
    metric: str
    lightest: tuple[str, str]  # the figure, and what the load was
    highest: tuple[str, str]
    since: tuple[str, str]  # the figure, and where the true one is


def before_release(bundle: Bundle, arm: str = "") -> BeforeRelease:
    """A run's shipped arm, the last `after` arm unless another is named. Raises BundleError, UsageError."""
    run, found = bundle.run, analyse(bundle)
    arms: list[str] = list(run["parameters"]["arms"])
    if arm and arm not in arms:
        raise UsageError(f"arm '{arm}' is unknown; expected one of: {', '.join(arms)}")
    chosen = arm or next((name for name in reversed(arms) if run["roles"][name] == "after"), arms[-1])
    scenarios = {scenario["name"]: scenario for scenario in run["scenarios"]}
    levels = [level for level in found.levels if level.arm == chosen]
    return BeforeRelease(
        bundle.path.resolve().name,
        chosen,
        str(run.get("arms", {}).get(chosen, {}).get("title", "")),
        sorted(levels, key=lambda level: _load(scenarios[level.scenario])),
        {name: str(scenario.get("label", "")) for name, scenario in scenarios.items()},
    )


def _load(scenario: Mapping[str, Any]) -> tuple[float, float]:
    """How heavy a load level is: by requests in flight, then by their rate."""
    return float(scenario.get("users") or 0), float(scenario.get("rate") or 0)


def beside(before: BeforeRelease, period: Period, about: About) -> Iterator[ReleaseComparison]:
    """Percentiles and error rate of everything that both the run and the watch sent."""
    for item in about.kinds:
        if levels := before.of(item):
            first, last = levels[0], levels[-1]
            for metric in BESIDE:
                now = actual(metric, item, period, about, None)
                shown = said(metric, now.value) if now.value is not None else now.lacks
                yield ReleaseComparison(
                    item,
                    metric,
                    (_of_level(first, metric), before.label(first)),
                    (_of_level(last, metric), before.label(last)) if last is not first else (numbers.NONE, ""),
                    (shown, within(now, partial(said, metric))),
                )


def _of_level(level: Summary, metric: Metric) -> str:
    if metric == "error_rate":
        return said(metric, level.errors / level.sent if level.sent else None)
    found: Interval | None = getattr(level, metric.removesuffix("_ms"))
    return said(metric, found.value if found else None)
