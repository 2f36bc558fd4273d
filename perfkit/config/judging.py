"""What a configuration may say of checks, thresholds, claims and a release."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from perfkit.config.workload import Conninfo, Count, File, Label, Model, Name, Seconds, Settings, Url, require_different

Share = Annotated[float, Field(gt=0, le=1)]


class Arm(Model):
    """One variant of the system: what is different about it, and its part in the comparison."""

    name: Name
    """What it is called."""
    role: Literal["before", "control", "after"]
    """`before` once; `control` the same again, which shows chance; `after` what is to be shipped."""
    title: str = ""
    """What is different, in a few words."""
    prepare: tuple[File, ...] = ()
    """SQL files run in its database."""
    indexes: File | None = None
    """A file of CREATE INDEX statements (ANALYZE too): built, measured and checked."""
    meanwhile: tuple[File, ...] = ()
    """SQL files run in it once its indexes are there: changes of rows that they must live through."""
    rolled_back: bool = False
    """Its indexes are built, used, and dropped again before anything is measured."""
    settings: Settings = {}
    """Server settings, for its database or, where only a start can set them, for a server of its own. Settings that
    run programs, load libraries, name files, open the server to others or loosen perfkit's guards are refused;
    `search_path` holds for the statements of the workload."""
    postgres: Literal[16, 18] | None = None
    """Another version of PostgreSQL, where perfkit starts it."""
    rewrite: dict[Name, File] = {}
    """By query, a file with the same in other words; both must return the same rows."""
    service: dict[str, str] = {}
    """Values for the service's command."""
    database: Conninfo = ""
    """Another database of yours, measured in place."""
    url: Url = ""
    """Another service of yours."""
    warmup: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Requests of each kind before each block that do not count."""

    def prepared(self) -> dict[str, Any]:
        """What makes this arm what it is; equal for an arm and its control."""
        return self.model_dump(exclude={"name", "role", "title"})


class CheckStep(Model):
    """One request of a check, and what must come back."""

    request: Name
    """The request to send."""
    row: str = "a"
    """The parameter row to fill it from; `*` sends it once for each row."""
    values: dict[str, str] = {}
    """Values in place of the row's; `{row.column}` and what earlier steps saved can be used."""
    times: Annotated[int, Field(ge=1, le=100)] = 1
    """How many are sent at one instant."""
    expect: Annotated[dict[int, Count], Field(min_length=1)]
    """By status code, how many must come back."""
    contains: tuple[str, ...] = ()
    """Text that every body must hold."""
    lacks: tuple[str, ...] = ()
    """Text that no body may hold."""
    save: dict[str, str] = {}
    """By name for later steps, the key of the JSON body to keep."""
    max_ms: Annotated[float, Field(gt=0)] | None = None
    """The longest that it may take, in ms."""


class Check(Model):
    """A functional check through HTTP: steps in order, all of which must give what they expect."""

    name: str
    """What it proves."""
    group: str
    """Which checks it belongs to: smoke, acceptance."""
    parameters: Name
    """The source of its rows."""
    rows: tuple[str, ...] = ("a",)
    """Names of the rows that it draws."""
    distinct: str | None = None
    """A column in which these rows must differ."""
    step: Annotated[tuple[CheckStep, ...], Field(min_length=1)]
    """What it does."""


class Thresholds(Model):
    """What an arm must hold at every load level to be shipped."""

    p50_ms: Annotated[float, Field(gt=0)] | None = None
    """Half of the requests must be answered within this, in ms."""
    p95_ms: Annotated[float, Field(gt=0)] | None = None
    """95 of 100 requests must be answered within this, in ms; without one of the three no latency is too long."""
    p99_ms: Annotated[float, Field(gt=0)] | None = None
    """99 of 100 requests must be answered within this, in ms; needs 368 requests of each load level."""
    throughput: Annotated[float, Field(gt=0)] | None = None
    """Requests per second that must be reached, at the load level where most are answered."""
    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The share of unexpected outcomes that is too much."""

    @model_validator(mode="after")
    def _rising(self) -> Thresholds:
        given = [(name, value) for name in ("p50_ms", "p95_ms", "p99_ms") if (value := getattr(self, name)) is not None]
        for (low, less), (high, more) in pairwise(given):
            if less > more:
                raise ValueError(f"{low} = {less:g} of at most {high} = {more:g}")
        return self


class Limits(Model):
    """Bounds on what perfkit does, and the health a round must have to count.

    Those from `rate` to `breaker_grace` protect targets that perfkit did not start: the load workers keep them,
    and where one is reached the run ends.
    """

    request_timeout_s: Seconds = 10.0
    """How long a request may take."""
    statement_timeout_s: Seconds = 60.0
    """How long a statement may take, enforced by the server."""
    rate: Annotated[float, Field(ge=0)] = 0.0
    """Requests per second; 0 for none."""
    in_flight: Count = 50
    """Requests in flight."""
    requests: Count = 100_000
    """Requests in the whole run."""
    seconds: Seconds = 3600.0
    """How long load may go on."""
    breaker_errors: Share = 0.5
    """The share of the last requests that may fail."""
    breaker_ms: Annotated[float, Field(gt=0)] = 10_000.0
    """What more than half of the last requests may take, in ms."""
    breaker_window: Annotated[int, Field(ge=5, le=1000)] = 20
    """How many the last requests are."""
    breaker_grace: Annotated[int, Field(ge=0)] = 20
    """Requests that are let off first."""
    samples: Count = 100_000
    """Requests of a round of which every time is kept; of those beyond, a histogram to three digits."""
    lag_share: Annotated[float, Field(gt=0)] = 0.25
    """Schedule lag as a share of the median beyond which a round's client was too slow."""
    lag_ms: Annotated[float, Field(gt=0)] = 5.0
    """Schedule lag that is never too much, in ms."""
    worker_cpu: Share = 0.95
    """The share of a core beyond which a load worker was too busy."""


# What was said of the change before anything was measured.

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


# What belongs to a release beside what is measured: questions for people, plan, risks, who signs.


def _as_text(value: object) -> object:
    """A date of TOML as text; anything else is left to the type to judge."""
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


When = Annotated[str, BeforeValidator(_as_text)]


class Question(Model):
    """Something that only people can say; unanswered it leaves the decision open, a no forbids it."""

    name: Label
    """What is asked: "Team ready for launch"."""
    answer: Literal["", "yes", "no"] = ""
    """What was said; `perfkit gate --answer` says it for one run."""
    by: str = ""
    """Who said it."""
    on: When = ""
    """When."""

    @model_validator(mode="after")
    def _said(self) -> Question:
        if self.answer and not self.by.strip():
            raise ValueError(f"by, who said answer = {self.answer!r}")
        return self


class PlanStep(Model):
    """One line of the plan of the release, shown and not carried out."""

    action: Label
    """What is done."""
    time: str = ""
    """How long it takes, as planned."""
    when: When = ""
    """When it is done."""
    risk: str = ""
    """What it may break."""
    rollback: str = ""
    """How it is taken back."""
    measures: tuple[str, ...] = ()
    """Claims of the configuration, by their text, whose measured values are shown beside it."""


class Risk(Model):
    """One risk of the release, shown with what was measured of it."""

    name: Label
    """What might happen."""
    severity: Literal["low", "medium", "high"]
    """How bad it would be, as judged beforehand."""
    mitigation: tuple[str, ...] = ()
    """What is done against it."""
    measures: tuple[str, ...] = ()
    """Claims of the configuration, by their text, whose measured values are shown beside it."""


class Release(Model):
    """What a decision to ship needs beside measurements."""

    monitoring: bool = False
    """Whether a watch must be running for a GO: `perfkit gate --watch FOLDER`."""
    sign_off: tuple[Label, ...] = ()
    """Who signs the printed decision."""
    question: tuple[Question, ...] = ()
    """What people are asked."""
    step: tuple[PlanStep, ...] = ()
    """The plan."""
    risk: tuple[Risk, ...] = ()
    """The risks."""

    @model_validator(mode="after")
    def _names(self) -> Release:
        require_different("questions", [question.name for question in self.question])
        return self


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
