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
