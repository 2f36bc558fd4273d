"""What is compared and how it is judged: arms, functional checks, thresholds, limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from perfkit.config.fields import Conninfo, Count, File, Model, Name, Seconds, Settings, Url

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
