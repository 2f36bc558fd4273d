"""What a configuration may say of data, targets, queries, requests, load and presets."""

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
from perfkit.base.errors import UsageError, require_header
from perfkit.base.harmless import require_harmless, require_settable

FOLDER = "folder"  # the key in pydantic's context that says where the file is


class Model(BaseModel):
    """Base of every table: frozen, no key that perfkit does not know, documented under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def folder_of(info: ValidationInfo) -> Path:
    """The folder of the file that is being read."""
    return Path((info.context or {}).get(FOLDER, Path()))


def _existing(path: Path, info: ValidationInfo) -> Path:
    """Resolve a configured path and insist that it is a readable file."""
    text = str(path)
    shipped = text.startswith(resources.PREFIX)
    found = resources.path(text.removeprefix(resources.PREFIX)) if shipped else folder_of(info) / path
    if not found.is_file():
        raise ValueError("an existing file")
    return found


def require_no_password(text: str) -> str:
    """Insist on what libpq can read and anybody may see; the text is not repeated in the error."""
    try:
        given = conninfo_to_dict(text)
    except psycopg.Error:
        raise ValueError("a libpq connection string, postgresql:// URI or service=NAME") from None
    if given.keys() & {"password", "sslpassword"}:
        raise ValueError("no password in it: use ~/.pgpass, PGPASSFILE or PGPASSWORD")
    return text


def _is_origin(text: str) -> str:
    """Insist on an origin alone: no path, and nobody's name or password."""
    if text and not re.fullmatch(r"https?://[A-Za-z0-9.\-_:\[\]]+/?", text):
        raise ValueError("http(s)://host[:port] and nothing more")
    return text


def _as_json(value: Any) -> Any:
    """A value of TOML as JSON has it: dates and times as text."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def require_different(what: str, names: Sequence[str]) -> None:
    """Raise ValueError for a name that two have."""
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what} of different names, not '{double[0]}' twice")


def _is_label(text: str) -> str:
    """Insist on something to read, in one line."""
    if not text.strip() or len(text.splitlines()) > 1:
        raise ValueError("some words in one line")
    return text.strip()


File = Annotated[Path, AfterValidator(_existing)]
Conninfo = Annotated[str, AfterValidator(require_no_password)]
Url = Annotated[str, AfterValidator(_is_origin)]
Settings = Annotated[dict[str, str], AfterValidator(require_settable)]
Json = Annotated[Any, AfterValidator(_as_json)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Label = Annotated[str, AfterValidator(_is_label)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


# What is run: parameter sources, queries, requests, and the load levels at which they are sent.


class ParameterColumn(Model):
    """Values of one generated parameter: exactly one kind; ranges include both ends."""

    integer: tuple[int, int] | None = None
    """Whole numbers from the first to the second."""
    number: tuple[float, float] | None = None
    """Numbers from the first to the second."""
    choice: Annotated[tuple[Json, ...], Field(min_length=1)] | None = None
    """One of these."""
    date: tuple[datetime.date, datetime.date] | None = None
    """Days from the first to the second."""
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
    """Parameter rows drawn at random from the run's seed."""

    columns: Annotated[dict[str, ParameterColumn], Field(min_length=1)]
    """By parameter name, how its values are drawn."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """How many sets of values there are."""


Source = Annotated[
    Annotated[File, Tag("file")] | Annotated[Generator, Tag("generator")],
    Discriminator(lambda value: "generator" if isinstance(value, dict | Generator) else "file"),
]


class Query(Model):
    """A SQL statement of the workload."""

    name: Name
    """What reports call it."""
    file: File
    """The file that holds it, one statement; `%(name)s` stands for a parameter."""
    parameters: Name | None = None
    """The source of its parameters."""
    plan: bool = True
    """Whether its plan is captured, for which it is executed and rolled back."""


class Request(Model):
    """An HTTP request of the workload; `{column}` comes from the parameter row."""

    name: Name
    """What reports call it."""
    path: str
    """The path with its query string; `{column}` is filled in, escaped."""
    parameters: Name | None = None
    """The source of its parameters."""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    """The HTTP method."""
    headers: dict[str, str] = {}
    """Headers; `{column}` is filled in, and `{env:NAME}` from the environment of perfkit, which keeps secrets out
    of files."""
    body: dict[str, Json] | None = None
    """A JSON body; `{column}` is filled in, alone with the value's own type."""
    expect: tuple[int, ...] = (200,)
    """Status codes that are no error."""
    contains: tuple[str, ...] = ()
    """Text that the body must hold; an answer without it counts as an error."""
    runs: tuple[Name, ...] = ()
    """Queries that it executes, so that the report can tell whether the plans shown are those in use."""

    @model_validator(mode="after")
    def _stays_at_its_target(self) -> Request:
        if not re.fullmatch(r"/(?![/\\])[^\s\\]*", self.path):
            raise ValueError(f"path {self.path!r} to begin with one '/'")
        for name, value in self.headers.items():
            require_header(name, value)
        return self


class LoadStage(Model):
    """A part of a round in which arrivals go evenly from the rate before it to its own."""

    rate: Annotated[float, Field(gt=0)]
    """Arrivals per second at its end; the same as before to hold them."""
    seconds: Seconds
    """How long it lasts."""


class RateSearch(Model):
    """Steps of a growing rate until a threshold breaks, then closer steps in between."""

    most: Annotated[float, Field(gt=0)]
    """The rate, per second, beyond which the search does not go."""
    growth: Annotated[float, Field(gt=1, le=10)] = 1.5
    """How many times the rate of one step that of the next is."""
    closer: Annotated[int, Field(ge=0, le=10)] = 2
    """Steps between the highest rate that held and the lowest that broke, each halving their distance."""


class Scenario(Model):
    """How load is offered in a round.

    Closed model: `batches` times, `users` released at once, each sending `requests`, the next one when the one
    before is answered. Open model, with a `rate`: requests arrive whether the ones before are answered or not.
    """

    name: Name
    """What it is called."""
    label: str
    """What reports say it offers: "5 users, joining one by one"."""
    send: tuple[Name, ...] = ()
    """Requests, or queries, that each user sends one after the other."""
    users: Annotated[int, Field(ge=1, le=500)] = 1
    """How many at once; with a `rate`, the most in flight: what arrives beyond that is dropped, and counted; with
    pgbench it waits, and is skipped after the timeout."""
    requests: Annotated[int, Field(ge=1, le=10_000)] = 1
    """How often each user sends all of them."""
    batches: Annotated[int, Field(ge=1, le=1_000)] = 1
    """How often all users are released."""
    ramp: bool = False
    """Users join one by one first; only full concurrency counts."""
    warm: Annotated[int, Field(ge=0, le=100)] = 0
    """Batches of one request each before what counts; with pgbench, each client's first transactions."""
    seconds: Seconds | None = None
    """Queries that take long are sent less often, so that a round takes no longer than about this. With a `rate` or
    pgbench, how long it lasts."""
    rate: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Arrivals per second: the open model."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """Whether arrivals are independent of each other or evenly spaced."""
    stage: tuple[LoadStage, ...] = ()
    """After the first `seconds`, further parts with rates of their own."""
    search: RateSearch | None = None
    """Find the highest rate, from `rate` on, at which the thresholds hold; every step lasts `seconds`."""
    connections: Annotated[int, Field(ge=1, le=500)] | None = None
    """With a `rate` of queries, connections that they wait for; without it, as many as may be in flight."""
    retries: Annotated[int, Field(ge=0, le=100)] = 0
    """How often a query that met a serialization failure or a deadlock is tried again; its latency includes that."""
    engine: Literal["asyncio", "pgbench"] = "asyncio"
    """Who sends queries: perfkit's own workers, or pgbench, whose client costs less."""
    script: tuple[File, ...] = ()
    """Scripts for pgbench, in place of `send`; each client runs one after the other, chosen at random. Commands that
    run programs (`\\shell`, `\\setshell`) are refused."""
    arms: tuple[Name, ...] = ()
    """Only on these arms; empty: on all."""
    alternate: bool = False
    """One query at a time, the arms taking turns at every one, each on a connection of its own: for what takes so
    little that a machine's pace changes more from one second to the next."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Scenario:
        if self.alternate and (self.users > 1 or self.batches > 1 or self.ramp or self.rate or self.pgbench):
            raise ValueError("alternate with one user and one batch, closed model")
        if bool(self.send) == bool(self.script):
            raise ValueError("either send or script")
        for path in self.script:
            _require_harmless(path)
        if self.script and not self.pgbench:
            raise ValueError("script with engine = 'pgbench'")
        if (self.rate or self.pgbench) and not self.seconds:
            raise ValueError("seconds, for a rate or pgbench goes on until they are over")
        if (self.rate or self.pgbench) and (self.batches > 1 or self.ramp or self.requests > 1):
            raise ValueError("no batches, requests or ramp with a rate or pgbench")
        if (self.stage or self.search or self.connections) and not self.rate:
            raise ValueError("stage, search and connections with a rate")
        if self.search and (self.stage or self.pgbench or self.search.most <= (self.rate or 0)):
            raise ValueError("search from a rate to a higher one, without stages, by asyncio")
        if self.pgbench and self.stage:
            raise ValueError("no stages by pgbench, which has one rate")
        return self

    @property
    def pgbench(self) -> bool:
        """Whether pgbench sends its queries."""
        return self.engine == "pgbench"

    @property
    def items(self) -> tuple[str, ...]:
        """What its samples are called: what it sends, or its scripts."""
        return self.send or tuple(path.stem for path in self.script)

    @property
    def lasts_s(self) -> float | None:
        """How long arrivals last in all, in s; None in the closed model."""
        return None if not self.rate else (self.seconds or 0.0) + sum(stage.seconds for stage in self.stage)


def _require_harmless(path: Path) -> None:
    """Raise ValueError for a script that pgbench could harm something with, or that is no text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{path} to be a text in UTF-8") from None
    require_harmless(text, path)


# Set-ups that have a name: what `--preset` chooses, and what options given beside it replace.


class Preset(Model):
    """One set-up by name; an option that is given replaces its value."""

    scale: str = ""
    """Size of the data; without one the database's own."""
    rtt_ms: Annotated[float, Field(ge=0)] = 0.0
    """Network round trip between service and database, in ms."""
    connect_rtts: Annotated[int, Field(ge=1)] = 6
    """Round trips that connecting costs."""
    profile: str = "standard"
    """How many blocks are measured; not part of the set-up that claims are limited to."""


def options(presets: Mapping[str, Preset], name: str, **given: Any) -> dict[str, Any]:
    """The options of a preset with those that are given (neither None nor empty) in their place.

    Without a name they are perfkit's own. Raises UsageError for an unknown name.
    """
    if name and name not in presets:
        raise UsageError(f"preset '{name}' is unknown; expected one of: {', '.join(presets) or 'none defined'}")
    chosen = presets[name] if name else Preset()
    return chosen.model_dump() | {key: value for key, value in given.items() if value not in (None, "")}


# Where the data and the service come from.

Way = Literal["made", "whole", "sample", "generated", "clone", "in-place"]
COPIES = ("whole", "sample", "generated")


class DatabaseConfig(Model):
    """Where the data comes from: SQL files run in a server that perfkit starts, or a database of yours."""

    prepare: tuple[File, ...] = ()
    """SQL files that make tables and rows in a new database of perfkit's own; `:name` stands for a number of the
    scale."""
    target: Conninfo = ""
    """A database of yours: `service=NAME`, a libpq string or a `postgresql://` URI, without a password."""
    way: Way = "made"
    """How a target is used. `whole`, `sample` and `generated` bring a private copy into a server that perfkit
    starts; `clone` makes databases beside it on its own server; `in-place` measures it as it stands."""
    pooler: bool = False
    """The target is reached through a pooler in transaction mode. PgBouncer is found out without this."""
    sample_rows: Count = 100_000
    """Rows of the largest table in a `sample` or `generated` copy; other tables in proportion."""
    copy_limit_mb: Count = 2_000
    """The largest database that is copied `whole`, in MB with its indexes."""
    tls: bool = True
    """Insist on TLS beyond this machine."""
    volatile: tuple[str, ...] = ()
    """Volatile functions that statements may call on a server that perfkit did not start."""
    postgres: Literal[16, 18] = 18
    """The version of PostgreSQL that perfkit starts."""
    scale: str = "standard"
    """Which of the scales is used where the command line names none."""
    scales: dict[Name, dict[str, Count]] = {}
    """By name, the numbers that `prepare` files are filled with."""
    settings: Settings = {}
    """Server settings of the PostgreSQL that perfkit starts, for all arms; the same are refused as in an arm."""

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
    """The HTTP service: launched by `command` for every arm, or one of yours at `url`."""

    command: tuple[str, ...] = ()
    """Program and arguments. `{python}`, `{port}`, `{folder}` (of the perfkit.toml) and the arm's own values are
    filled in; the database is in the environment as `PERFKIT_DATABASE`."""
    url: Url = ""
    """The origin of a service of yours: `https://host:port`, without a path."""
    writes: bool = False
    """Whether requests other than GET may be sent to the service at `url`."""
    health: str = "/health"
    """A path that answers 200 when the service is ready."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """The port of the launched service; 0 finds a free one."""
    reset: Literal["restart", "hup"] = "restart"
    """How the launched service forgets its connections between blocks: a new process, or SIGHUP."""
    start_timeout_s: Seconds = 10.0
    """How long it may take until it is ready."""

    @field_validator("command")
    @classmethod
    def _in_folder(cls, command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        folder = str(folder_of(info)).replace("{", "{{").replace("}", "}}")
        return tuple(part.replace("{folder}", folder) for part in command)
