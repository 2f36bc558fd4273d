"""The arms, checks, thresholds, claims, release, watch rules and review targets of a configuration."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from perfkit.config.workload import Conninfo, Count, File, Label, Model, Name, Seconds, Settings, Url, require_different

Share = Annotated[float, Field(gt=0, le=1)]


class Arm(Model):
    """One variant of the system: how it differs from the others, and its role in the comparison."""

    name: Name
    """The arm's name in reports and options."""
    role: Literal["before", "control", "after"]
    """`before`: the baseline, exactly one arm; `control`: a copy of it, to show chance; `after`: what to ship."""
    title: str = ""
    """What is different, in a few words."""
    prepare: tuple[File, ...] = ()
    """SQL files to run in the arm's database."""
    indexes: File | None = None
    """A file of CREATE INDEX statements (ANALYZE is allowed). The indexes are built, measured and checked."""
    meanwhile: tuple[File, ...] = ()
    """SQL files to run after the indexes are built: row changes that the indexes must survive."""
    rolled_back: bool = False
    """Build the indexes, use them, and drop them again before measuring."""
    settings: Settings = {}
    """Server settings of the arm's database. A setting that only a server start can change gives the arm a server of
    its own. Settings that run programs, load libraries, name files, open the server to others or loosen perfkit's
    guards are refused. `search_path` applies to the workload's statements."""
    postgres: Literal[16, 18] | None = None
    """The PostgreSQL version of this arm, if perfkit starts the server."""
    rewrite: dict[Name, File] = {}
    """Rewritten queries: the query's name and a file with the new statement. Both must return the same rows."""
    service: dict[str, str] = {}
    """Values to fill into the service's command."""
    database: Conninfo = ""
    """Another database of yours, measured in place."""
    url: Url = ""
    """The origin of another service of yours."""
    warmup: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Number of warm-up requests of each kind before each block; not counted."""

    def prepared(self) -> dict[str, object]:
        """Return everything that defines the arm; an arm and its control return equal values."""
        return self.model_dump(exclude={"name", "role", "title"})


class CheckStep(Model):
    """One request of a check, and the expected responses."""

    request: Name
    """The name of the request to send."""
    row: str = "a"
    """The parameter row that fills the request; `*` sends the request once for each row."""
    values: dict[str, str] = {}
    """Values that override the row's. `{row.column}` and values saved by earlier steps are filled in."""
    times: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of copies to send at the same instant."""
    expect: Annotated[dict[int, Count], Field(min_length=1)]
    """The expected number of responses for each status code."""
    contains: tuple[str, ...] = ()
    """Text that every response body must contain."""
    lacks: tuple[str, ...] = ()
    """Text that no response body may contain."""
    save: dict[str, str] = {}
    """Values to save for later steps: a name, and the key of the JSON body to read."""
    max_ms: Annotated[float, Field(gt=0)] | None = None
    """The longest response time allowed, in ms."""


class Check(Model):
    """A functional check through HTTP. Its steps run in order, and every step must get the responses it expects."""

    name: str
    """What the check proves."""
    group: str
    """The group that the check belongs to, for example `smoke` or `acceptance`."""
    parameters: Name
    """The parameter source of the rows."""
    rows: tuple[str, ...] = ("a",)
    """Names for the rows that the check draws."""
    distinct: str | None = None
    """A column in which the rows must differ."""
    step: Annotated[tuple[CheckStep, ...], Field(min_length=1)]
    """The steps."""


class Thresholds(Model):
    """The limits that an arm must meet at every load level before it ships."""

    p50_ms: Annotated[float, Field(gt=0)] | None = None
    """The longest median latency allowed, in ms."""
    p95_ms: Annotated[float, Field(gt=0)] | None = None
    """The longest 95th percentile of latency allowed, in ms. Without these three limits, any latency passes."""
    p99_ms: Annotated[float, Field(gt=0)] | None = None
    """The longest 99th percentile of latency allowed, in ms. Needs 368 requests at each load level."""
    throughput: Annotated[float, Field(gt=0)] | None = None
    """The lowest throughput allowed, in requests per second, at the load level with the highest throughput."""
    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The highest share of unexpected outcomes allowed."""

    @model_validator(mode="after")
    def _rising(self) -> Thresholds:
        limits = [
            (name, value) for name in ("p50_ms", "p95_ms", "p99_ms") if (value := getattr(self, name)) is not None
        ]
        for (low, less), (high, more) in pairwise(limits):
            if less > more:
                raise ValueError(f"{low} = {less:g} of at most {high} = {more:g}")
        return self


class Limits(Model):
    """Limits on the load that perfkit sends, and on the health of a round.

    The limits from `rate` to `breaker_grace` protect targets that perfkit did not start: the load workers enforce
    them, and the run ends if one is reached.
    """

    request_timeout_s: Seconds = 10.0
    """The longest time for a request, in seconds."""
    statement_timeout_s: Seconds = 60.0
    """The longest time for a statement, in seconds; the server enforces this limit."""
    rate: Annotated[float, Field(ge=0)] = 0.0
    """The highest rate, in requests per second; 0 for no limit."""
    in_flight: Count = 50
    """The highest number of requests in flight."""
    requests: Count = 100_000
    """The highest number of requests in the whole run."""
    seconds: Seconds = 3600.0
    """The longest duration of load, in seconds."""
    breaker_errors: Share = 0.5
    """End the run if at least this share of the latest requests failed."""
    breaker_ms: Annotated[float, Field(gt=0)] = 10_000.0
    """End the run if more than half of the latest requests took longer than this, in ms."""
    breaker_window: Annotated[int, Field(ge=5, le=1000)] = 20
    """The number of latest requests that `breaker_errors` and `breaker_ms` look at."""
    breaker_grace: Annotated[int, Field(ge=0)] = 20
    """Number of requests at the start that `breaker_errors` and `breaker_ms` ignore."""
    samples: Count = 100_000
    """Number of requests in a round with exact times; a histogram with three digits holds the times of the rest."""
    lag_share: Annotated[float, Field(gt=0)] = 0.25
    """A round is invalid if its schedule lag is above this share of the median latency: the client was too slow."""
    lag_ms: Annotated[float, Field(gt=0)] = 5.0
    """A schedule lag up to this never invalidates a round, in ms."""
    worker_cpu: Share = 0.95
    """A round is invalid if a load worker used more than this share of a core."""


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
    """A statement made before measuring, and the figure that confirms or refutes the statement."""

    text: str
    """The claim in its own words."""
    measure: Measure
    """The figure. For the indexes: `index_kb` (total size in kB), `index_share` (share of the bytes of their tables),
    `table_mb` (size of the largest of these tables with its indexes, in MB), `build_s` (the slowest build, in
    seconds), `build_total_s` (all builds). For a query: `execution_ms` (execution time in EXPLAIN), `latency_ms`
    (median under load). For a scenario: `p50_ms`, `p95_ms`, `throughput` (requests per second), `throughput_change`
    (change of the throughput, as a share). For a query or a scenario: `latency_saved` (share of the latency that the
    change saves: a query's median, a scenario's p95). For an arm: `error_rate` (share of requests that failed). In
    the index lab only: `insert_slowdown` (time that the indexes add to an insert, as a share)."""
    query: Name | None = None
    """The query that the claim is about."""
    scenario: Name | None = None
    """The load level that the claim is about."""
    arm: Name | None = None
    """The arm that the claim is about; by default the first `after` arm."""
    preset: Name | None = None
    """The only preset to which the claim applies; runs with other set-ups leave the claim out."""
    low: float | None = None
    """The lowest value claimed."""
    high: float | None = None
    """The highest value claimed."""

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


def _as_text(value: object) -> object:
    """Return a TOML date as text, and any other value unchanged: pydantic judges that by its type."""
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


When = Annotated[str, BeforeValidator(_as_text)]


class Question(Model):
    """A question that only people can answer. Without an answer the decision stays open; a `no` means NO-GO."""

    name: Label
    """The question, for example "Team ready for launch"."""
    answer: Literal["", "yes", "no"] = ""
    """The answer; `perfkit gate --answer` gives one for a single run."""
    by: str = ""
    """Who answered."""
    on: When = ""
    """When the question was answered."""

    @model_validator(mode="after")
    def _answered_by_a_name(self) -> Question:
        if self.answer and not self.by.strip():
            raise ValueError(f"by: the name of the person who gave answer = {self.answer!r}")
        return self


class PlanStep(Model):
    """One step of the release plan. perfkit shows the step and does not carry it out."""

    action: Label
    """What to do."""
    time: str = ""
    """The planned duration."""
    when: When = ""
    """The planned date or week."""
    risk: str = ""
    """What the step may break."""
    rollback: str = ""
    """How to undo the step."""
    measures: tuple[str, ...] = ()
    """The texts of claims whose measured values are shown beside the step."""


class Risk(Model):
    """One risk of the release, shown with related measurements."""

    name: Label
    """What might happen."""
    severity: Literal["low", "medium", "high"]
    """The severity, as judged before measuring."""
    mitigation: tuple[str, ...] = ()
    """Measures against the risk."""
    measures: tuple[str, ...] = ()
    """The texts of claims whose measured values are shown beside the risk."""


class Release(Model):
    """What a decision to ship needs in addition to measurements."""

    monitoring: bool = False
    """Whether a GO requires a running watch: `perfkit gate --watch FOLDER`."""
    sign_off: tuple[Label, ...] = ()
    """The people or roles that sign the printed decision."""
    question: tuple[Question, ...] = ()
    """Questions for people to answer."""
    step: tuple[PlanStep, ...] = ()
    """The release plan."""
    risk: tuple[Risk, ...] = ()
    """The risks."""

    @model_validator(mode="after")
    def _names(self) -> Release:
        require_different("questions", [question.name for question in self.question])
        return self


#: The figures of a watch that rules and review targets can use; `perfkit.monitor.figures` computes them.
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
    """Raise ValueError if the metric can never cross the limit, as with 5 instead of 0.05 for 5 %."""
    for name, limit in limits.items():
        if limit is not None and metric in _SHARES and not 0 <= limit <= 1:
            raise ValueError(f"{name} = {limit:g} as a share, 0 to 1: {metric} of 5 % is 0.05")
        if limit is not None and limit < 0:
            raise ValueError(f"{name} = {limit:g} of at least 0: no {metric} is below that")


class WatchRule(Model):
    """A rule that raises an alert: a metric, its limit and duration, the severity and the action to take."""

    name: Name
    """The rule's name."""
    level: Literal["P1", "P2", "P3"]
    """The severity. P1: act at once; P2: within the hour; P3: within the day."""
    metric: Metric
    """The metric, computed over the last `window_s` seconds."""
    above: float | None = None
    """The metric is bad above this limit."""
    below: float | None = None
    """The metric is bad below this limit."""
    clear: float | None = None
    """The metric is good again only beyond this value, so that alerts do not flap; default: 10 % inside the limit."""
    for_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that the metric must stay bad before the alert is raised."""
    clear_for_s: Annotated[float, Field(ge=0)] = 120.0
    """Seconds that the metric must stay good before the alert is cleared."""
    item: Name | None = None
    """The request or query that the rule is about; by default all requests or, without a service, all queries."""
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
    """How perfkit watches a live target."""

    every_s: Annotated[float, Field(ge=0.5, le=3600)] = 10.0
    """Length of an interval in seconds. A crash loses at most one interval, and the start of an incident is known to
    within one."""
    rate: Annotated[float, Field(gt=0, le=20)] = 2.0
    """Probes per second for each request and query, evenly spaced, regardless of how long the responses take."""
    send: tuple[Name, ...] = ()
    """Requests and queries to send; by default every query and every request that only reads."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    """The longest time for a probe, in seconds."""
    window_s: Seconds = 300.0
    """Seconds of history that a rule looks at."""
    baseline_s: Seconds = 600.0
    """Number of healthy seconds at the start that define the usual throughput and latency."""
    rule: tuple[WatchRule, ...] = ()
    """The rules that raise alerts."""
    notify: tuple[str, ...] = ()
    """Command to run for every alert; receives the alert as JSON on stdin."""
    notify_timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """The longest time for the `notify` command, in seconds."""

    @model_validator(mode="after")
    def _names(self) -> Watch:
        require_different("rules", [rule.name for rule in self.rule])
        if self.window_s < self.every_s:
            raise ValueError(f"window_s = {self.window_s:g} of at least one interval, every_s = {self.every_s:g}")
        return self


class Target(Model):
    """One row of the review: a metric over the whole period, or a value that a person enters, and its target."""

    name: Label
    """The row's name, for example "P95 latency"."""
    metric: Metric | None = None
    """The metric; without one, a person enters the value: `perfkit review --value "NAME=4.3"`."""
    item: Name | None = None
    """The request or query that the target is about."""
    at_least: float | None = None
    """The lowest good value."""
    at_most: float | None = None
    """The highest good value."""
    unit: str = ""
    """The unit of a value that a person enters."""

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
    """The targets for the review after the first day."""

    target: tuple[Target, ...] = ()
    """The rows of the review's table."""

    @model_validator(mode="after")
    def _names(self) -> ReviewConfig:
        require_different("targets", [target.name for target in self.target])
        return self
