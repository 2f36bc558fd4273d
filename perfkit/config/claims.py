"""What was said of the change before anything was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import model_validator

from perfkit.config.fields import Model, Name

Measure = Literal[
    "index_kb",
    "index_share",
    "table_mb",
    "build_s",
    "build_total_s",
    "execution_ms",
    "latency_ms",
    "p50_ms",
    "p95_ms",
    "latency_saved",
    "throughput",
    "throughput_change",
    "error_rate",
    "insert_slowdown",
]
_ABOUT: Mapping[str, tuple[str, ...]] = {
    "execution_ms": ("query",),
    "latency_ms": ("query",),
    "p50_ms": ("scenario",),
    "p95_ms": ("scenario",),
    "latency_saved": ("query", "scenario"),
    "throughput": ("scenario",),
    "throughput_change": ("scenario",),
}


class Claim(Model):
    """One thing that was said beforehand, and the figure that it is held against."""

    text: str
    """The claim in its own words."""
    measure: Measure
    """The figure. Of the indexes: kB of all (`index_kb`), their share of their tables' bytes (`index_share`), MB of
    the largest of these tables with them (`table_mb`), seconds of the slowest build (`build_s`) and of all
    (`build_total_s`). Of a query: ms of its EXPLAIN (`execution_ms`), its median under load (`latency_ms`). Of a
    scenario: `p50_ms`, `p95_ms`, requests per second (`throughput`), and what the change adds to these as a share
    (`throughput_change`). Of either: the share of its latency that the change saves (`latency_saved`), of a query's
    median or a scenario's p95. Of an arm: the share of requests that failed (`error_rate`). In the index lab alone:
    what the indexes add to the latency of an insert (`insert_slowdown`)."""
    query: Name | None = None
    """The query that it is about."""
    scenario: Name | None = None
    """The load level that it is about."""
    arm: Name | None = None
    """The arm that it is about; by default the first `after` arm."""
    preset: Name | None = None
    """The only set-up in which it makes sense; elsewhere it is left out."""
    low: float | None = None
    """The least that was claimed."""
    high: float | None = None
    """The most."""

    @model_validator(mode="after")
    def _about_something(self) -> Claim:
        known = _ABOUT.get(self.measure, ())
        given = tuple(name for name in ("query", "scenario") if getattr(self, name) is not None)
        if len(given) != min(1, len(known)) or set(given) - set(known):
            raise ValueError(f"{self.measure} with {' or '.join(known) or 'neither query nor scenario'}")
        if self.low is None and self.high is None:
            raise ValueError("low, high or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low = {self.low:g} of at most high = {self.high:g}")
        return self
