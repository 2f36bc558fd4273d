"""The model of a whole configuration: load a file, write it out with defaults, and document every key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomlkit
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from perfkit.base import resources
from perfkit.base.errors import BundleError, UsageError
from perfkit.config.judging import (
    Arm,
    Check,
    CheckStep,
    Claim,
    Limits,
    PlanStep,
    Question,
    Release,
    ReviewConfig,
    Risk,
    Target,
    Thresholds,
    Watch,
    WatchRule,
)
from perfkit.config.workload import (
    COPIES,
    FOLDER,
    DatabaseConfig,
    Generator,
    LoadStage,
    Model,
    Name,
    ParameterColumn,
    Preset,
    Query,
    RateSearch,
    Request,
    Scenario,
    ServiceConfig,
    Source,
)


class Config(Model):
    """The keys and tables at the top of a `perfkit.toml`."""

    title: str
    """What the file measures, in a few words; the report's title."""
    allow: tuple[str, ...] = ()
    """Targets that perfkit did not start and may use after confirmation: `host:port/database`, `https://host:port`."""
    production: tuple[str, ...] = ()
    """Targets from `allow` to use even though their names suggest production."""
    database: DatabaseConfig | None = None
    """The source of the data."""
    service: ServiceConfig | None = None
    """The HTTP service in front of the database, if there is one."""
    parameters: dict[Name, Source] = {}
    """Parameter sources by name: a SELECT statement (.sql), rows (.csv), or a generator."""
    query: tuple[Query, ...] = ()
    """The SQL statements of the workload."""
    request: tuple[Request, ...] = ()
    """The HTTP requests of the workload."""
    scenario: tuple[Scenario, ...]
    """The load levels."""
    arm: tuple[Arm, ...]
    """The variants to compare."""
    check: tuple[Check, ...] = ()
    """Functional checks."""
    claim: tuple[Claim, ...] = ()
    """Claims made before measuring; reports show the measured value beside each."""
    thresholds: Thresholds = Thresholds()
    """The limits for shipping."""
    release: Release = Release()
    """Questions for people, the release plan, risks and sign-off."""
    watch: Watch = Watch()
    """How perfkit watches the live target."""
    review: ReviewConfig = ReviewConfig()
    """Targets for the review after the first day."""
    limits: Limits = Limits()
    """Limits on the load that perfkit sends."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The largest difference that does not matter, as a share; smaller differences count as equivalent."""
    need: Literal["benefit", "none"] = "benefit"
    """What a GO requires: a `benefit`, or `none` if code or settings change for another reason."""
    worth: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The smallest gain worth having, as a share. If every comparison excludes this gain, the decision is
    NO BENEFIT."""
    profiles: dict[Name, Annotated[int, Field(ge=6)]] = {"quick": 6, "standard": 12, "thorough": 24}
    """Number of blocks by profile name (minimum 6: fewer blocks cannot show a significant difference)."""
    presets: dict[Name, Preset] = {}
    """Set-ups by name, for `--preset NAME`."""

    @model_validator(mode="after")
    def _references(self) -> Config:
        """Raise ValueError with a line for every name that is not defined and every contradiction."""
        if lines := [*self._duplicates(), *self._unknown_names(), *self._contradictions()]:
            raise ValueError("\n".join(lines))
        return self

    def _duplicates(self) -> Iterator[str]:
        for kind in ("query", "request", "scenario", "arm", "check"):
            names = [item.name for item in getattr(self, kind)]
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield f"{kind} '{name}' is defined twice; expected different names"
        if "floor" in {arm.name for arm in self.arm}:
            yield "arm 'floor' has the name of the target that does nothing; expected another name"

    def _unknown_names(self) -> Iterator[str]:
        sources, queries = set(self.parameters), {query.name for query in self.query}
        requests = {request.name for request in self.request}
        for kind, items in (("query", self.query), ("request", self.request), ("check", self.check)):
            for item in items:
                if item.parameters is not None:
                    yield from _known(f"{kind} '{item.name}': parameters", [item.parameters], sources)
        for request in self.request:
            yield from _known(f"request '{request.name}': runs", request.runs, queries)
        for scenario in self.scenario:
            yield from _known(f"scenario '{scenario.name}': send", scenario.send, requests | queries)
            yield from _known(f"scenario '{scenario.name}': arms", scenario.arms, {arm.name for arm in self.arm})
        for check in self.check:
            yield from _known(f"check '{check.name}': request", [s.request for s in check.step], requests)
            yield from _known(f"check '{check.name}': row", [s.row for s in check.step], {*check.rows, "*"})
        sent = requests | queries
        yield from _known("watch: send", self.watch.send, sent)
        for table, entries in (("watch: rule", self.watch.rule), ("review: target", self.review.target)):
            for entry in entries:
                yield from _known(f"{table} '{entry.name}': item", [entry.item] if entry.item else [], sent)
        claims = {claim.text for claim in self.claim}
        measures = [*(step.measures for step in self.release.step), *(risk.measures for risk in self.release.risk)]
        yield from _known("release: measures", [text for texts in measures for text in texts], claims)
        for claim in self.claim:
            about = {
                "query": queries,
                "scenario": {scenario.name for scenario in self.scenario},
                "arm": {arm.name for arm in self.arm},
                "preset": set(self.presets),
            }
            for key, known in about.items():
                yield from _known(f"claim '{claim.text}': {key}", filter(None, [getattr(claim, key)]), known)
        for name, preset in self.presets.items():
            scales = set(self.database.scales) if self.database else set()
            yield from _known(f"preset '{name}': scale", filter(None, [preset.scale]), scales)
            yield from _known(f"preset '{name}': profile", [preset.profile], set(self.profiles))
        for arm in self.arm:
            yield from _known(f"arm '{arm.name}': rewrite", arm.rewrite, queries)
        if self.database and self.database.scales:
            yield from _known("database: scale", [self.database.scale], set(self.database.scales))

    def _contradictions(self) -> Iterator[str]:
        requests = {request.name for request in self.request}
        if not self.scenario:
            yield "scenario: none; expected at least one load level"
        for scenario in self.scenario:
            if 0 < len(requests & set(scenario.send)) < len(set(scenario.send)):
                yield f"scenario '{scenario.name}': send mixes requests and queries; expected one kind"
            if requests & set(scenario.send) and (scenario.pgbench or scenario.retries or scenario.connections):
                yield f"scenario '{scenario.name}': engine, retries and connections; expected queries to send"
            if scenario.search and self.thresholds.p95_ms is None:
                yield f"scenario '{scenario.name}': search; expected thresholds.p95_ms to look for"
            if scenario.alternate and (requests & set(scenario.send) or self.sequential):
                yield f"scenario '{scenario.name}': alternate; expected queries on arms that can take turns"
        if requests and self.service is None:
            yield "requests are defined, but no [service]; expected its command or url"
        yield from self._misplaced_keys()
        befores = [arm for arm in self.arm if arm.role == "before"]
        for scenario in self.scenario:
            if scenario.arms and befores and befores[0].name not in scenario.arms:
                yield f"scenario '{scenario.name}': arms; expected '{befores[0].name}' among them, to compare with"
        if len(befores) != 1:
            yield "arm: expected exactly one with role = 'before'"
        for arm in self.arm:
            differs = befores and arm.prepared() != befores[0].prepared()
            if arm.role == "control" and differs:
                yield f"arm '{arm.name}' is a control but differs from '{befores[0].name}'; expected the same"

    def _misplaced_keys(self) -> Iterator[str]:
        """Yield a line for every key that needs another way of using the database, or another service."""
        service, way = self.service, self.database.way if self.database else ""
        if not way and (self.query or not (service and service.url)):
            yield "[database] is missing; expected one because queries, or a service with a command, need it"
        if service and bool(service.command) == bool(service.url):
            yield "service: expected either a command or a url"
        for arm in self.arm:
            if arm.url and not (service and service.url):
                yield f"arm '{arm.name}': url; expected a [service] with a url of its own"
            if arm.service and not (service and service.command):
                yield f"arm '{arm.name}': service; expected a [service] with a command to fill its values in"
            for key in () if way else ("prepare", "meanwhile", "indexes", "settings"):
                if getattr(arm, key):
                    yield f"arm '{arm.name}': {key}; expected a [database] for this key"
            if arm.database and way != "in-place":
                yield f"arm '{arm.name}': database; expected only with way = 'in-place'"
            if arm.rolled_back and (not arm.indexes or way in ("", "in-place", "clone")):
                yield f"arm '{arm.name}': rolled_back; expected indexes, on a server that perfkit starts"
            if (arm.prepare or arm.meanwhile) and way == "in-place":
                key = "prepare" if arm.prepare else "meanwhile"
                yield f"arm '{arm.name}': {key} cannot be undone in place; expected only indexes"
            if arm.postgres and way not in ("made", *COPIES):
                yield f"arm '{arm.name}': postgres = {arm.postgres}; expected a server that perfkit starts"
        if self.sequential and not any(arm.role == "control" for arm in self.arm):
            yield "arm: expected one with role = 'control' in place: 'before' again, at the end"

    @property
    def sequential(self) -> bool:
        """Whether arms run one after the other because they change a database that cannot be cloned."""
        in_place = self.database is not None and self.database.way == "in-place"
        return in_place and any(arm.indexes for arm in self.arm)

    def baseline(self) -> Arm:
        """Return the arm with role `before`, which all others are compared with."""
        return next(arm for arm in self.arm if arm.role == "before")


def _known(where: str, names: Iterable[str], known: set[str]) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{where} = '{name}'; expected one of: {', '.join(sorted(known)) or 'none defined'}"


_M = TypeVar("_M", bound=BaseModel)

BOOKING = resources.PACKAGE / "booking" / "perfkit.toml"


def load(path: str | Path | None = None) -> Config:
    """Load and validate a configuration; without a path, the booking system's.

    Raises UsageError with one line per mistake: file, key, value and what was expected.
    """
    path = Path(path) if path else BOOKING
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; expected a perfkit.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}; expected valid TOML") from None
    try:
        return Config.model_validate(data, context={FOLDER: path.resolve().parent})
    except ValidationError as error:
        raise UsageError(mistakes(str(path), error)) from None


def mistakes(where: str, error: ValidationError) -> str:
    """Return pydantic's errors as text, one line each; `where` names the source of the values."""
    return "\n".join(line for item in error.errors() for line in _lines(where, item))


def restored(model: type[_M], stored: object, where: str) -> _M:
    """Return a table of a configuration from its copy in a run or a watch.

    Raises BundleError, naming the file `where`, if the copy is not valid.
    """
    try:
        return model.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise BundleError(f"{where}: {key}: {reason}; expected what perfkit wrote") from None


def _lines(path: str, item: ErrorDetails) -> list[str]:
    """Return the lines for one of pydantic's errors: file, key, value and what was expected."""
    loc = [part for n, part in enumerate(item["loc"]) if not (n == 2 and item["loc"][0] == "parameters")]
    key = ".".join(str(part) for part in loc)
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return [f"{path}: {line}" for line in message.splitlines()]
    if item["type"] == "missing":
        return [f"{path}: {key}: missing; expected a value"]
    if item["type"] == "extra_forbidden":
        return [f"{path}: {key}: unknown key; expected only documented ones"]
    value = item["input"]
    # The value of such a key may hold a password, and a message may end up in a log.
    if isinstance(value, dict) or loc[-1] in ("target", "database", "url"):
        return [f"{path}: {key}: expected {message}"]
    value = repr(str(value) if isinstance(value, Path) else value)
    return [f"{path}: {key} = {value if len(value) < 80 else value[:77] + '...'}; expected: {message}"]


#: The tables of a configuration, in the order of the reference. A file may repeat `[[...]]`.
TABLES: Mapping[str, type[BaseModel]] = {
    "": Config,
    "[database]": DatabaseConfig,
    "[service]": ServiceConfig,
    "[parameters.NAME]": Generator,
    "[parameters.NAME.columns]": ParameterColumn,
    "[[query]]": Query,
    "[[request]]": Request,
    "[[scenario]]": Scenario,
    "[[scenario.stage]]": LoadStage,
    "[scenario.search]": RateSearch,
    "[[arm]]": Arm,
    "[[check]]": Check,
    "[[check.step]]": CheckStep,
    "[[claim]]": Claim,
    "[presets.NAME]": Preset,
    "[thresholds]": Thresholds,
    "[limits]": Limits,
    "[release]": Release,
    "[[release.question]]": Question,
    "[[release.step]]": PlanStep,
    "[[release.risk]]": Risk,
    "[watch]": Watch,
    "[[watch.rule]]": WatchRule,
    "[review]": ReviewConfig,
    "[[review.target]]": Target,
}
EXAMPLE = Path(__file__).with_name("example.toml")
_INTRO = """# `perfkit.toml`, every key

`perfkit config reference` generates this page from the model. `perfkit config show FILE` checks a file: it prints
every mistake with its key, its value and what was expected or, if there is none, the whole configuration with its
defaults. A path is relative to the file that names it; `perfkit:sql/...` names a file that comes with perfkit.
"""


def show(settings: Config) -> str:
    """Return the configuration as TOML with every default; a key whose value is None has no line."""
    return tomlkit.dumps(as_toml(settings.model_dump()))


def reference() -> str:
    """Return Markdown with a section for each table, and a row for each key: type, default and meaning."""
    return "\n".join([_INTRO, *(line for name, model in TABLES.items() for line in _section(name, model))])


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    schema = model.model_json_schema()
    yield f"## {f'`{name}`' if name else 'At the top'}\n"
    yield f"{' '.join(str(model.__doc__).split())}\n"
    if example := _example(name):
        yield f"```toml\n{example}\n```\n"
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key, field in schema["properties"].items():
        default = _default(key, schema)
        meaning = " ".join(field.get("description", "").split()).replace("|", "\\|")
        yield f"| `{key}` | {_kind(field)} | {default} | {meaning} |"
    yield ""


def _example(name: str) -> str:
    """Return the part of example.toml that shows a table."""
    start = name.replace("presets.NAME", "presets.far").replace("NAME", "days") or "title ="
    starts = ("[parameters]", start) if start == "[parameters.days]" else (start,)
    parts = EXAMPLE.read_text(encoding="utf-8").strip().split("\n\n")
    return "\n\n".join(part for part in parts if part.startswith(starts))


def _default(key: str, schema: Mapping[str, Any]) -> str:
    if key in schema.get("required", ()):
        return "required"
    value = schema["properties"][key].get("default")
    nested = isinstance(value, dict) and "$ref" in schema["properties"][key]  # a table with its own section
    return "" if nested or value in (None, "", [], {}) else f"`{json.dumps(value)}`"


def _kind(field: Mapping[str, Any]) -> str:
    """Return the type of a value in words, from its JSON schema."""
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(option) for option in options if option.get("type") != "null"))
    if "$ref" in field or "allOf" in field:
        return "table"
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    match field.get("type"):
        case "array":
            if "prefixItems" in field:
                return f"two of {_kind(field['prefixItems'][0])}"
            inner = _kind(field.get("items", {}))
            return "tables" if inner == "table" else f"list of {inner}"
        case "object":
            values = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
            inner = next((_kind(value) for value in values if isinstance(value, dict)), "any")
            return "tables by name" if inner == "table" else f"table of {inner}"
        case "string":
            return {"path": "file", "date": "date"}.get(field.get("format", ""), "text")
        case "integer" | "number" as kind:
            return f"{'whole number' if kind == 'integer' else 'number'}{_bounds(field)}"
        case "boolean":
            return "true or false"
    return "any"


def _bounds(field: Mapping[str, Any]) -> str:
    least = next((f" from {field[key]:g}" for key in ("minimum",) if key in field), "")
    least = f" over {field['exclusiveMinimum']:g}" if "exclusiveMinimum" in field else least
    most = f" to {field['maximum']:g}" if "maximum" in field else ""
    most = f" under {field['exclusiveMaximum']:g}" if "exclusiveMaximum" in field else most
    return least + most


def as_toml(table: Mapping[str, object]) -> dict[str, object]:
    """Return a table that TOML can hold: no None, text as keys, and paths as a configuration names them."""
    return {str(key): _plain(item) for key, item in table.items() if item is not None}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return as_toml(value)
    if isinstance(value, Path):
        return resources.name_of(value) or str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
