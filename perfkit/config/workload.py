"""The data, targets, queries, requests, load levels and presets of a configuration."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from perfkit.base import resources
from perfkit.base.errors import UsageError
from perfkit.base.refusals import require_harmless_commands, require_header, require_settable

FOLDER = "folder"  # key in pydantic's context: the folder of the file that is being read


class Model(BaseModel):
    """Base class of every table: frozen, without unknown keys; the text under each field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def folder_of(info: ValidationInfo) -> Path:
    """Return the folder of the file that is being read."""
    return Path((info.context or {}).get(FOLDER, Path()))


def _existing(path: Path, info: ValidationInfo) -> Path:
    """Return the resolved path. Raises ValueError if there is no such file."""
    text = str(path)
    shipped = text.startswith(resources.PREFIX)
    file = resources.path(text.removeprefix(resources.PREFIX)) if shipped else folder_of(info) / path
    if not file.is_file():
        raise ValueError("an existing file")
    return file


def require_no_password(text: str) -> str:
    """Return a connection string. Raises ValueError if libpq cannot read the text or the text holds a password.

    The error does not repeat the text: a text that libpq cannot read may hold a password too.
    """
    try:
        settings = conninfo_to_dict(text)
    except psycopg.Error:
        raise ValueError("a libpq connection string, postgresql:// URI or service=NAME") from None
    if settings.keys() & {"password", "sslpassword"}:
        raise ValueError("no password in it: use ~/.pgpass, PGPASSFILE or PGPASSWORD")
    return text


def _is_origin(text: str) -> str:
    """Return an origin. Raises ValueError for a URL with a path, a user name or a password."""
    if text and not re.fullmatch(r"https?://[A-Za-z0-9.\-_:\[\]]+/?", text):
        raise ValueError("http(s)://host[:port] and nothing more")
    return text


def _as_json(value: object) -> object:
    """Return a TOML value as JSON, with dates and times as text."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def require_different(what: str, names: Sequence[str]) -> None:
    """Raise ValueError if a name occurs twice."""
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what} with different names, not '{duplicates[0]}' twice")


def _is_label(text: str) -> str:
    """Return the text without outer blanks. Raises ValueError if it is empty or has several lines."""
    if not text.strip() or len(text.splitlines()) > 1:
        raise ValueError("one line of text, not empty")
    return text.strip()


File = Annotated[Path, AfterValidator(_existing)]
Conninfo = Annotated[str, AfterValidator(require_no_password)]
Url = Annotated[str, AfterValidator(_is_origin)]
Settings = Annotated[dict[str, str], AfterValidator(require_settable)]
Json = Annotated[object, AfterValidator(_as_json)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Label = Annotated[str, AfterValidator(_is_label)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ParameterColumn(Model):
    """How the values of one generated parameter are drawn. Set exactly one key; ranges include both ends."""

    integer: tuple[int, int] | None = None
    """Whole numbers from the first to the second."""
    number: tuple[float, float] | None = None
    """Numbers from the first to the second."""
    choice: Annotated[tuple[Json, ...], Field(min_length=1)] | None = None
    """One of the values in this list."""
    date: tuple[datetime.date, datetime.date] | None = None
    """Dates from the first to the second."""
    uuid: Literal[True] | None = None
    """Random UUIDs."""

    @model_validator(mode="after")
    def _one_kind(self) -> ParameterColumn:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)}")
        for name in ("integer", "number", "date"):
            if (span := getattr(self, name)) and span[1] < span[0]:
                raise ValueError(f"{name} from the smaller to the larger")
        return self


class Generator(Model):
    """Parameter rows drawn at random; the run's seed decides the values."""

    columns: Annotated[dict[str, ParameterColumn], Field(min_length=1)]
    """The parameters by name."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Number of rows to draw."""


Source = Annotated[
    Annotated[File, Tag("file")] | Annotated[Generator, Tag("generator")],
    Discriminator(lambda value: "generator" if isinstance(value, dict | Generator) else "file"),
]


class Query(Model):
    """A SQL statement of the workload."""

    name: Name
    """The query's name in reports."""
    file: File
    """A file with one statement; `%(name)s` stands for a parameter."""
    parameters: Name | None = None
    """The parameter source."""
    plan: bool = True
    """Whether to capture the plan. perfkit executes the query to capture its plan, and rolls back."""


class Request(Model):
    """An HTTP request of the workload. `{column}` stands for a value of the parameter row."""

    name: Name
    """The request's name in reports."""
    path: str
    """The path with its query string; `{column}` is filled in and escaped."""
    parameters: Name | None = None
    """The parameter source."""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    """The HTTP method."""
    headers: dict[str, str] = {}
    """The headers; `{column}` is filled in. `{env:NAME}` is read from perfkit's environment, so that no file holds a
    secret."""
    body: dict[str, Json] | None = None
    """The JSON body; `{column}` is filled in. A `{column}` that is the whole text keeps the value's type."""
    expect: tuple[int, ...] = (200,)
    """Status codes that do not count as errors."""
    contains: tuple[str, ...] = ()
    """Text that the response body must contain; a response without it counts as an error."""
    runs: tuple[Name, ...] = ()
    """Queries that the request executes. The report uses them to tell whether the service uses the plans shown."""

    @model_validator(mode="after")
    def _stays_at_its_target(self) -> Request:
        if not re.fullmatch(r"/(?![/\\])[^\s\\]*", self.path):
            raise ValueError(f"path {self.path!r} to begin with one '/'")
        for name, value in self.headers.items():
            require_header(name, value)
        return self


class LoadStage(Model):
    """A part of a round in which the arrival rate changes evenly from the previous rate to `rate`."""

    rate: Annotated[float, Field(gt=0)]
    """Arrivals per second at the end of the stage; use the previous rate to keep it."""
    seconds: Seconds
    """Duration of the stage, in seconds."""


class RateSearch(Model):
    """A search for the highest rate: raise the rate until a threshold breaks, then try rates in between."""

    most: Annotated[float, Field(gt=0)]
    """The highest rate to try, per second."""
    growth: Annotated[float, Field(gt=1, le=10)] = 1.5
    """The factor from one rate to the next."""
    closer: Annotated[int, Field(ge=0, le=10)] = 2
    """Number of further steps between the highest rate that held and the lowest that broke; each step halves the
    distance."""


class Scenario(Model):
    """A load level: how a round offers load.

    Closed model: `users` start at the same instant, `batches` times. Each user sends `requests`, the next one after
    the previous response. Open model, with a `rate`: requests arrive whether or not earlier ones were answered.
    """

    name: Name
    """The load level's name in options."""
    label: str
    """The load level in reports, for example "5 users, joining one by one"."""
    send: tuple[Name, ...] = ()
    """The requests, or the queries, that each user sends one after the other."""
    users: Annotated[int, Field(ge=1, le=500)] = 1
    """Number of simultaneous users. With a `rate`, the highest number of requests in flight: requests beyond that are
    dropped and counted; with pgbench they wait, and are skipped after the timeout."""
    requests: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of times that each user sends everything in `send`."""
    batches: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Number of times that all users start together."""
    ramp: bool = False
    """Let users join one by one first; only requests at full concurrency count."""
    warm: Annotated[int, Field(ge=0, le=100)] = 0
    """Number of warm-up batches of one request each; with pgbench, of each client's first transactions. They do not
    count."""
    seconds: Seconds | None = None
    """The duration of a round with a `rate` or pgbench, in seconds. Otherwise about the longest duration: slow queries
    are sent less often to keep it."""
    rate: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Arrivals per second; chooses the open model."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """`poisson`: arrivals are independent of each other; `constant`: evenly spaced."""
    stage: tuple[LoadStage, ...] = ()
    """Further parts of the round, with their own rates, after the first `seconds`."""
    search: RateSearch | None = None
    """Search for the highest rate at which the thresholds hold, starting at `rate`; every step lasts `seconds`."""
    connections: Annotated[int, Field(ge=1, le=500)] | None = None
    """With a `rate` of queries, the number of connections that the queries share; by default one for each query in
    flight."""
    retries: Annotated[int, Field(ge=0, le=100)] = 0
    """Maximum number of retries after a serialization failure or a deadlock; latency includes the retries."""
    engine: Literal["asyncio", "pgbench"] = "asyncio"
    """The client that sends queries: perfkit's own workers, or pgbench, which uses less CPU."""
    script: tuple[File, ...] = ()
    """pgbench scripts to run instead of `send`; each client picks one script after the other at random. Commands that
    run programs (`\\shell`, `\\setshell`) are refused."""
    arms: tuple[Name, ...] = ()
    """The arms that run this load level; empty: all arms."""
    alternate: bool = False
    """Send one query at a time and switch arms after every query, with a connection for each arm. Use this for
    queries so fast that the machine's speed varies more from one second to the next."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Scenario:
        if self.alternate and (self.users > 1 or self.batches > 1 or self.ramp or self.rate or self.pgbench):
            raise ValueError("alternate with one user and one batch, in the closed model")
        if bool(self.send) == bool(self.script):
            raise ValueError("either send or script")
        for path in self.script:
            _require_harmless(path)
        if self.script and not self.pgbench:
            raise ValueError("script with engine = 'pgbench'")
        if (self.rate or self.pgbench) and not self.seconds:
            raise ValueError("seconds, the duration of a round with a rate or pgbench")
        if (self.rate or self.pgbench) and (self.batches > 1 or self.ramp or self.requests > 1):
            raise ValueError("no batches, requests or ramp with a rate or pgbench")
        if (self.stage or self.search or self.connections) and not self.rate:
            raise ValueError("stage, search and connections with a rate")
        if self.search and (self.stage or self.pgbench or self.search.most <= (self.rate or 0)):
            raise ValueError("search from a rate to a higher one, without stages, with engine = 'asyncio'")
        if self.pgbench and self.stage:
            raise ValueError("no stages with engine = 'pgbench', which has one rate")
        return self

    @property
    def pgbench(self) -> bool:
        """Whether pgbench sends the queries."""
        return self.engine == "pgbench"

    @property
    def items(self) -> tuple[str, ...]:
        """The names of its samples: requests, queries or scripts."""
        return self.send or tuple(path.stem for path in self.script)

    @property
    def lasts_s(self) -> float | None:
        """The total duration of arrivals, in s; None in the closed model."""
        return None if not self.rate else (self.seconds or 0.0) + sum(stage.seconds for stage in self.stage)


def _require_harmless(path: Path) -> None:
    """Raise ValueError if a pgbench script is not UTF-8 or has a command that is not known to be harmless."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{path} to be UTF-8 text") from None
    require_harmless_commands(text, path)


class Preset(Model):
    """A named set-up. An option on the command line overrides the preset's value."""

    scale: str = ""
    """Size of the data; by default the database's scale."""
    rtt_ms: Annotated[float, Field(ge=0)] = 0.0
    """Network round trip between service and database, in ms."""
    connect_rtts: Annotated[int, Field(ge=1)] = 6
    """Number of round trips that a new connection takes."""
    profile: str = "standard"
    """The profile, which sets the number of blocks. A claim that is limited to a preset applies with any profile."""


def options(presets: Mapping[str, Preset], name: str, **given: Any) -> dict[str, Any]:
    """Return the options of a preset; given options that are neither None nor empty override them.

    Without a name, perfkit's defaults take the preset's part. Raises UsageError for an unknown name.
    """
    if name and name not in presets:
        raise UsageError(f"preset '{name}' is unknown; expected one of: {', '.join(presets) or 'none defined'}")
    chosen = presets[name] if name else Preset()
    return chosen.model_dump() | {key: value for key, value in given.items() if value not in (None, "")}


Way = Literal["made", "whole", "sample", "generated", "clone", "in-place"]
COPIES = ("whole", "sample", "generated")


class DatabaseConfig(Model):
    """The source of the data: SQL files that perfkit runs in a server of its own, or a database of yours."""

    prepare: tuple[File, ...] = ()
    """SQL files that create tables and rows in a new database; `:name` stands for a number of the scale."""
    target: Conninfo = ""
    """A database of yours: `service=NAME`, a libpq string or a `postgresql://` URI, without a password."""
    way: Way = "made"
    """How to use the target. `whole`, `sample` and `generated` create a private copy in a server that perfkit starts;
    `clone` creates databases beside the target, on its server; `in-place` measures the target itself."""
    pooler: bool = False
    """Whether a pooler in transaction mode stands before the target. perfkit detects PgBouncer without this key."""
    sample_rows: Count = 100_000
    """Number of rows of the largest table in a `sample` or `generated` copy; other tables in proportion."""
    copy_limit_mb: Count = 2_000
    """The largest database to copy `whole`, in MB including indexes."""
    tls: bool = True
    """Require TLS for connections to other machines."""
    volatile: tuple[str, ...] = ()
    """Volatile functions that statements may call on a server that perfkit did not start."""
    postgres: Literal[16, 18] = 18
    """The version of PostgreSQL that perfkit starts."""
    scale: str = "standard"
    """The scale to use if no option or preset names one."""
    scales: dict[Name, dict[str, Count]] = {}
    """The scales by name, each with the numbers to fill into `prepare` files."""
    settings: Settings = {}
    """Server settings for all arms, in the PostgreSQL that perfkit starts. The same settings are refused as for an
    arm."""

    @model_validator(mode="after")
    def _one_origin(self) -> DatabaseConfig:
        if bool(self.prepare) == bool(self.target):
            raise ValueError("either 'prepare' (SQL files) or 'target' (a database of yours)")
        if bool(self.target) == (self.way == "made"):
            ways = ", ".join(("'made' without a target", *COPIES, "clone or in-place with one"))
            raise ValueError(f"way '{self.way}' to fit: {ways}")
        if self.scales and not self.prepare:
            raise ValueError("no 'scales' without 'prepare' files to fill them in")
        if self.settings and self.way in ("clone", "in-place"):
            raise ValueError("no 'settings' for a server that perfkit does not start: they belong to the arms")
        return self


class ServiceConfig(Model):
    """The HTTP service: perfkit launches it with `command` for every arm, or uses one of yours at `url`."""

    command: tuple[str, ...] = ()
    """The program and its arguments. `{python}`, `{port}`, `{folder}` (of the perfkit.toml) and the arm's `service`
    values are filled in. The service finds its database in the environment variable `PERFKIT_DATABASE`."""
    url: Url = ""
    """The origin of a service of yours: `https://host:port`, without a path."""
    writes: bool = False
    """Whether perfkit may send requests other than GET to the service at `url`."""
    health: str = "/health"
    """A path that returns 200 when the service is ready."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """The port of the launched service; 0 picks a free port."""
    reset: Literal["restart", "hup"] = "restart"
    """How the launched service drops its connections between blocks: `restart` starts a new process, `hup` sends
    SIGHUP."""
    start_timeout_s: Seconds = 10.0
    """The longest time until the service is ready, in seconds."""

    @field_validator("command")
    @classmethod
    def _in_folder(cls, command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        folder = str(folder_of(info)).replace("{", "{{").replace("}", "}}")
        return tuple(part.replace("{folder}", folder) for part in command)
