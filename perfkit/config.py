"""What is measured: one validated, frozen model of `perfkit.toml`, read once.

Every error in a file is reported at once, one line each: file, key, value and what was expected.
A path is relative to the file that names it; `perfkit:sql/...` names a file shipped with perfkit.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from perfkit.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
BOOKING = Path(__file__).resolve().parent / "booking" / "perfkit.toml"


def _existing(path: Path, info: ValidationInfo) -> Path:
    """Resolve a configured path and insist that it is a readable file."""
    text = str(path)
    folder = (info.context or {}).get("folder", Path())
    found = ROOT / text.removeprefix("perfkit:") if text.startswith("perfkit:") else folder / path
    if not found.is_file():
        raise ValueError("an existing file")
    return Path(found)


File = Annotated[Path, AfterValidator(_existing)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Count = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Base of every table in the file: frozen, and no key that perfkit does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Database(Model):
    """How the base database is made, inside a server that perfkit starts."""

    prepare: tuple[File, ...]
    tables: tuple[str, ...]
    postgres: Literal[16, 18] = 18
    scale: str = "standard"
    scales: dict[Name, dict[str, Count]] = {}
    settings: dict[str, str] = {}


class Service(Model):
    """How an arm's HTTP service is launched; `{python}`, `{port}` and the arm's own values are filled in."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    health: str = "/health"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    reset: Literal["restart", "hup"] = "restart"
    start_timeout_s: Annotated[float, Field(gt=0)] = 10.0


class Query(Model):
    """A SQL statement of the workload with the source of its parameters."""

    name: Name
    file: File
    parameters: Name


class Request(Model):
    """An HTTP request of the workload; `{column}` in path and body comes from the parameter row."""

    name: Name
    path: str
    parameters: Name
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    body: dict[str, Any] | None = None
    expect: tuple[int, ...] = (200,)
    runs: tuple[Name, ...] = ()


class Scenario(Model):
    """How load is offered in a round: `batches` times, `users` released at once, each sending `requests`.

    With `ramp` they join one by one first; `warm` batches of one request each come before what counts.
    """

    name: Name
    label: str
    send: Annotated[tuple[Name, ...], Field(min_length=1)]
    users: Annotated[int, Field(ge=1, le=500)] = 1
    requests: Annotated[int, Field(ge=1, le=10_000)] = 1
    batches: Annotated[int, Field(ge=1, le=1_000)] = 1
    ramp: bool = False
    warm: Annotated[int, Field(ge=0, le=100)] = 0


class Arm(Model):
    """One variant of the system: its database preparation, its service, and its part in the comparison."""

    name: Name
    role: Literal["before", "control", "after"]
    title: str = ""
    prepare: tuple[File, ...] = ()
    indexes: File | None = None
    service: dict[str, str] = {}
    warmup: Annotated[int, Field(ge=0, le=10_000)] = 20

    def prepared(self) -> tuple[Any, ...]:
        """What makes this arm what it is; equal for an arm and its control."""
        return (self.prepare, self.indexes, self.service, self.warmup)


class Step(Model):
    """One request of a check, sent `times` times at one instant, and what must come back."""

    request: Name
    row: str = "a"
    values: dict[str, str] = {}
    times: Annotated[int, Field(ge=1, le=100)] = 1
    expect: Annotated[dict[int, Count], Field(min_length=1)]
    contains: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    save: dict[str, str] = {}
    max_ms: Annotated[float, Field(gt=0)] | None = None


class Check(Model):
    """A functional check through HTTP: steps in order, all of which must give what they expect."""

    name: str
    group: str
    parameters: Name
    rows: tuple[str, ...] = ("a",)
    distinct: str | None = None
    step: Annotated[tuple[Step, ...], Field(min_length=1)]


class Thresholds(Model):
    """What an arm must hold at every load level to be shipped."""

    p95_ms: Annotated[float, Field(gt=0)] = 500.0
    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.001


class Limits(Model):
    """Bounds on what perfkit does, and the health a round must have to count."""

    request_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    statement_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    lag_share: Annotated[float, Field(gt=0)] = 0.25
    lag_ms: Annotated[float, Field(gt=0)] = 5.0
    worker_cpu: Annotated[float, Field(gt=0, le=1)] = 0.95


class Config(Model):
    """The whole of a `perfkit.toml`."""

    title: str
    database: Database
    service: Service | None = None
    parameters: dict[Name, File] = {}
    query: tuple[Query, ...] = ()
    request: tuple[Request, ...] = ()
    scenario: tuple[Scenario, ...]
    arm: tuple[Arm, ...]
    check: tuple[Check, ...] = ()
    thresholds: Thresholds = Thresholds()
    limits: Limits = Limits()
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    profiles: dict[Name, Count] = {"quick": 6, "standard": 12, "thorough": 24}

    @model_validator(mode="after")
    def _references(self) -> Config:
        """Every name that one table uses must be defined by another; all mistakes at once."""
        if wrong := [*self._duplicates(), *self._unknown(), *self._senseless()]:
            raise ValueError("\n".join(wrong))
        return self

    def _duplicates(self) -> Iterator[str]:
        for kind in ("query", "request", "scenario", "arm", "check"):
            names = [item.name for item in getattr(self, kind)]
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield f"{kind} '{name}' is defined twice; expected different names"
        if "floor" in {arm.name for arm in self.arm}:
            yield "arm 'floor' has the name of the target that does nothing; expected another"

    def _unknown(self) -> Iterator[str]:
        sources, queries = set(self.parameters), {query.name for query in self.query}
        requests = {request.name for request in self.request}
        for kind, items in (("query", self.query), ("request", self.request), ("check", self.check)):
            for item in items:
                yield from _known(f"{kind} '{item.name}': parameters", [item.parameters], sources)
        for request in self.request:
            yield from _known(f"request '{request.name}': runs", request.runs, queries)
        for scenario in self.scenario:
            yield from _known(f"scenario '{scenario.name}': send", scenario.send, requests | queries)
        for check in self.check:
            yield from _known(f"check '{check.name}': request", [s.request for s in check.step], requests)
            yield from _known(f"check '{check.name}': row", [s.row for s in check.step], {*check.rows, "*"})
        scales = set(self.database.scales) or {self.database.scale}
        yield from _known("database: scale", [self.database.scale], scales)

    def _senseless(self) -> Iterator[str]:
        requests = {request.name for request in self.request}
        for scenario in self.scenario:
            if 0 < len(requests & set(scenario.send)) < len(set(scenario.send)):
                yield f"scenario '{scenario.name}': send mixes requests and queries; expected one kind"
        if requests and self.service is None:
            yield "requests are defined, but no [service]; expected its command"
        befores = [arm for arm in self.arm if arm.role == "before"]
        if len(befores) != 1:
            yield "arm: expected exactly one with role = 'before'"
        for arm in self.arm:
            differs = befores and arm.prepared() != befores[0].prepared()
            if arm.role == "control" and differs:
                yield f"arm '{arm.name}' is a control but differs from '{befores[0].name}'; expected the same"

    def baseline(self) -> Arm:
        """The arm that every other is compared with."""
        return next(arm for arm in self.arm if arm.role == "before")


def _known(where: str, names: Iterable[str], known: set[str]) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{where} = '{name}'; expected one of: {', '.join(sorted(known)) or 'none defined'}"


def load(path: Path | None = None) -> Config:
    """Read and validate a configuration; the booking system's own without a path.

    Raises UsageError with one line per mistake.
    """
    path = path or BOOKING
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; expected a perfkit.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}; expected valid TOML") from None
    try:
        return Config.model_validate(data, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise UsageError("\n".join(line for item in error.errors() for line in _lines(path, item))) from None


def _lines(path: Path, item: Any) -> list[str]:
    """One mistake as one line: file, key, value and what was expected."""
    key = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return [f"{path}: {line}" for line in message.splitlines()]
    if item["type"] == "missing":
        return [f"{path}: {key}: missing; expected a value"]
    if item["type"] == "extra_forbidden":
        return [f"{path}: {key}: unknown key; expected only documented ones"]
    given = item["input"]
    value = repr(str(given) if isinstance(given, Path) else given)
    return [f"{path}: {key} = {value if len(value) < 80 else value[:77] + '...'}; expected: {message}"]
