"""How a live target is watched, what raises an alert, and what a review of it is held against."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from perfkit.config.fields import Label, Model, Name, Seconds, require_different

#: What a rule or a target of the review can be about; see `perfkit.monitor.figures`.
Metric = Literal[
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "mean_ms",
    "error_rate",
    "throughput",
    "throughput_drop",
    "slowdown",
    "success_rate",
    "availability",
    "service_down_s",
    "database_down_s",
    "connections_share",
    "lock_wait_s",
    "transaction_s",
    "deadlocks",
    "checksum_failures",
    "invalid_indexes",
    "cache_misses",
    "temp_mb",
    "rollback_rate",
]


_SHARES = (
    "error_rate",
    "throughput_drop",
    "success_rate",
    "availability",
    "connections_share",
    "cache_misses",
    "rollback_rate",
)


def _require_possible(metric: Metric, **limits: float | None) -> None:
    """Raise ValueError for a limit that the figure is always, or never, beyond: 5 in place of 5 %."""
    for name, limit in limits.items():
        if limit is not None and metric in _SHARES and not 0 <= limit <= 1:
            raise ValueError(f"{name} = {limit:g} as a share, 0 to 1: {metric} of 5 % is 0.05")
        if limit is not None and limit < 0:
            raise ValueError(f"{name} = {limit:g} of at least 0: no {metric} is below that")


class WatchRule(Model):
    """When something is an incident: a figure beyond its limit for so long; how grave that is and what to do."""

    name: Name
    """What it is called."""
    level: Literal["P1", "P2", "P3"]
    """P1: at once; P2: within the hour; P3: within the day."""
    metric: Metric
    """The figure, over the last `window_s`."""
    above: float | None = None
    """The figure is bad above this."""
    below: float | None = None
    """The figure is bad below this."""
    clear: float | None = None
    """It is good again only beyond this, so that it does not flap; by default a tenth better than the limit."""
    for_s: Annotated[float, Field(ge=0)] = 60.0
    """How long it must be bad, without a break, before the alert is raised."""
    clear_for_s: Annotated[float, Field(ge=0)] = 120.0
    """How long it must be good before the alert is taken back."""
    item: Name | None = None
    """The request or query that it is about; without one, all requests, or all queries where there is no service."""
    action: str = ""
    """What to do, in a few words."""

    @model_validator(mode="after")
    def _sensible(self) -> WatchRule:
        if (self.above is None) == (self.below is None):
            raise ValueError("either above or below")
        worse = self.above is not None and self.clear is not None and self.clear > self.above
        if worse or (self.below is not None and self.clear is not None and self.clear < self.below):
            limit = f"above = {self.above:g}" if self.above is not None else f"below = {self.below:g}"
            raise ValueError(f"clear = {self.clear:g} on the good side of {limit}")
        _require_possible(self.metric, above=self.above, below=self.below, clear=self.clear)
        return self


class Watch(Model):
    """How a live target is watched."""

    every_s: Annotated[float, Field(ge=0.5, le=3600)] = 10.0
    """Seconds of one interval: what is lost at most, and how exactly an incident's start is known."""
    rate: Annotated[float, Field(gt=0, le=20)] = 2.0
    """Probes per second of each request and query that is sent, evenly spaced, whatever the answers take."""
    send: tuple[Name, ...] = ()
    """Requests and queries that are sent; without any, the requests that only read, and every query."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    """How long a probe may take."""
    window_s: Seconds = 300.0
    """Seconds that a rule looks back on."""
    baseline_s: Seconds = 600.0
    """The first so many healthy seconds say what throughput and latency are usual."""
    rule: tuple[WatchRule, ...] = ()
    """What raises an alert."""
    notify: tuple[str, ...] = ()
    """A command of yours that is told of every alert, as JSON on its standard input."""
    notify_timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """How long it may take."""

    @model_validator(mode="after")
    def _names(self) -> Watch:
        require_different("rules", [rule.name for rule in self.rule])
        if self.window_s < self.every_s:
            raise ValueError(f"window_s = {self.window_s:g} of at least one interval, every_s = {self.every_s:g}")
        return self


class Target(Model):
    """One row of the review: a figure of the whole time, or what a person says, beside what was aimed at."""

    name: Label
    """How the row is called: "P95 latency"."""
    metric: Metric | None = None
    """The figure; without one it is what a person says: `perfkit review --value "NAME=4.3"`."""
    item: Name | None = None
    """The request or query that it is about."""
    at_least: float | None = None
    """The least that is good."""
    at_most: float | None = None
    """The most that is good."""
    unit: str = ""
    """The unit of what a person says."""

    @model_validator(mode="after")
    def _bounded(self) -> Target:
        if self.at_least is None and self.at_most is None:
            raise ValueError("at_least, at_most or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least = {self.at_least:g} up to at_most = {self.at_most:g}")
        if self.metric:
            _require_possible(self.metric, at_least=self.at_least, at_most=self.at_most)
        return self


class ReviewConfig(Model):
    """What the first day is held against."""

    target: tuple[Target, ...] = ()
    """The rows of its table."""

    @model_validator(mode="after")
    def _names(self) -> ReviewConfig:
        require_different("targets", [target.name for target in self.target])
        return self
