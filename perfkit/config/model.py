"""A whole configuration: its model, reading it from a file, and writing it with its reference."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomlkit
from pydantic import BaseModel, Field, ValidationError, model_validator

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
    """The whole of a `perfkit.toml`."""

    title: str
    """What is measured, in a few words: the report's title."""
    allow: tuple[str, ...] = ()
    """Targets that perfkit did not start and that it may use once they are confirmed: `host:port/database`, `https://host:port`."""
    production: tuple[str, ...] = ()
    """Those of them whose name looks like production and which are meant all the same."""
    database: DatabaseConfig | None = None
    """The data."""
    service: ServiceConfig | None = None
    """The HTTP service in front of it, where there is one."""
    parameters: dict[Name, Source] = {}
    """Sources of parameters by name: a file with a SELECT (.sql), one with lines (.csv), or a generator."""
    query: tuple[Query, ...] = ()
    """SQL statements."""
    request: tuple[Request, ...] = ()
    """HTTP requests."""
    scenario: tuple[Scenario, ...]
    """Load levels."""
    arm: tuple[Arm, ...]
    """What is compared."""
    check: tuple[Check, ...] = ()
    """Functional checks."""
    claim: tuple[Claim, ...] = ()
    """What was claimed beforehand; reports put what was measured beside it."""
    thresholds: Thresholds = Thresholds()
    """When it is fit to ship."""
    release: Release = Release()
    """What people answer, plan, risk and sign."""
    watch: Watch = Watch()
    """How it is watched once it is live."""
    review: ReviewConfig = ReviewConfig()
    """What it is reviewed against after the first day."""
    limits: Limits = Limits()
    """What perfkit may do."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Differences up to this share do not matter: they are called equivalent."""
    need: Literal["benefit", "none"] = "benefit"
    """What a GO asks of the change: a `benefit`, or `none` where code or settings change for another reason."""
    worth: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The least gain worth having, as a share; where every comparison excludes it, the decision is NO BENEFIT."""
    profiles: dict[Name, Annotated[int, Field(ge=6)]] = {"quick": 6, "standard": 12, "thorough": 24}
    """By profile, how many blocks are measured; fewer than 6 could settle nothing."""
    presets: dict[Name, Preset] = {}
    """Set-ups by name: `--preset NAME`."""

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
        for what, named in (("watch: rule", self.watch.rule), ("review: target", self.review.target)):
            for own in named:
                yield from _known(f"{what} '{own.name}': item", [own.item] if own.item else [], sent)
        claims = {claim.text for claim in self.claim}
        beside = [*(own.measures for own in self.release.step), *(own.measures for own in self.release.risk)]
        yield from _known("release: measures", [text for measures in beside for text in measures], claims)
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

    def _senseless(self) -> Iterator[str]:
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
        yield from self._unreachable()
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

    def _unreachable(self) -> Iterator[str]:
        """What the way of using the database, or the service, cannot give."""
        service, way = self.service, self.database.way if self.database else ""
        if not way and (self.query or not (service and service.url)):
            yield "[database] is missing; expected one, for there are queries, or a service that needs it"
        if service and bool(service.command) == bool(service.url):
            yield "service: expected either a command or a url"
        for arm in self.arm:
            if arm.url and not (service and service.url):
                yield f"arm '{arm.name}': url; expected a [service] with a url of its own"
            if arm.service and not (service and service.command):
                yield f"arm '{arm.name}': service; expected a [service] with a command to fill its values in"
            for key in () if way else ("prepare", "meanwhile", "indexes", "settings"):
                if getattr(arm, key):
                    yield f"arm '{arm.name}': {key}; expected a [database] to do that in"
            if arm.database and way != "in-place":
                yield f"arm '{arm.name}': database is for way 'in-place'; expected none"
            if arm.rolled_back and (not arm.indexes or way in ("", "in-place", "clone")):
                yield f"arm '{arm.name}': rolled_back; expected indexes, on a server that perfkit starts"
            if (arm.prepare or arm.meanwhile) and way == "in-place":
                what = "prepare" if arm.prepare else "meanwhile"
                yield f"arm '{arm.name}': {what} cannot be undone in place; expected indexes alone"
            if arm.postgres and way not in ("made", *COPIES):
                yield f"arm '{arm.name}': postgres = {arm.postgres}; expected a server that perfkit starts"
        if self.sequential and not any(arm.role == "control" for arm in self.arm):
            yield "arm: in place, expected one with role = 'control': 'before' once more, at the end"

    @property
    def sequential(self) -> bool:
        """Whether arms must follow one another: they change a database that cannot be cloned."""
        in_place = self.database is not None and self.database.way == "in-place"
        return in_place and any(arm.indexes for arm in self.arm)

    def baseline(self) -> Arm:
        """The arm that every other is compared with."""
        return next(arm for arm in self.arm if arm.role == "before")


def _known(where: str, names: Iterable[str], known: set[str]) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{where} = '{name}'; expected one of: {', '.join(sorted(known)) or 'none defined'}"


# Reading a `perfkit.toml`: every mistake at once, one line each with file, key, value and what was expected.

_M = TypeVar("_M", bound=Model)

BOOKING = resources.PACKAGE / "booking" / "perfkit.toml"


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
        return Config.model_validate(data, context={FOLDER: path.resolve().parent})
    except ValidationError as error:
        raise UsageError(mistakes(str(path), error)) from None


def mistakes(where: str, error: ValidationError) -> str:
    """What is wrong with values that came from `where`, a line for each."""
    return "\n".join(line for item in error.errors() for line in _lines(where, item))


def restored(model: type[_M], said: object, where: str) -> _M:
    """A part of a configuration as a run or a watch kept it; `where` says in which file. Raises BundleError."""
    try:
        return model.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        key, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise BundleError(f"{where}: {key}: {what}; expected what perfkit wrote") from None


def _lines(path: str, item: Any) -> list[str]:
    """One mistake as one line: file, key, value and what was expected."""
    loc = [part for n, part in enumerate(item["loc"]) if not (n == 2 and item["loc"][0] == "parameters")]
    key = ".".join(str(part) for part in loc)
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return [f"{path}: {line}" for line in message.splitlines()]
    if item["type"] == "missing":
        return [f"{path}: {key}: missing; expected a value"]
    if item["type"] == "extra_forbidden":
        return [f"{path}: {key}: unknown key; expected only documented ones"]
    given = item["input"]
    if isinstance(given, dict) or loc[-1] in ("target", "database", "url"):  # these may hold a password
        return [f"{path}: {key}: expected {message}"]
    value = repr(str(given) if isinstance(given, Path) else given)
    return [f"{path}: {key} = {value if len(value) < 80 else value[:77] + '...'}; expected: {message}"]


# A configuration written out with its defaults, and the reference of every key; both made from the model.

# In the order in which a file has them; `[[...]]` may come several times.
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

Made from the model by `perfkit config reference`. `perfkit config show FILE` checks a file, prints every mistake
with its key, value and what was expected, or else the whole of it with its defaults. A path is relative to the
file that names it; `perfkit:sql/...` names a file that comes with perfkit.
"""


def show(settings: Config) -> str:
    """The configuration as TOML, every default written out; what is None has no line."""
    return tomlkit.dumps(_plain(settings.model_dump()))


def reference() -> str:
    """Markdown: a section for each table, a row for each key with its type, default and meaning."""
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
    """What the example has in these tables."""
    start = name.replace("presets.NAME", "presets.far").replace("NAME", "days") or "title ="
    starts = ("[parameters]", start) if start == "[parameters.days]" else (start,)
    parts = EXAMPLE.read_text(encoding="utf-8").strip().split("\n\n")
    return "\n\n".join(part for part in parts if part.startswith(starts))


def _default(key: str, schema: Mapping[str, Any]) -> str:
    if key in schema.get("required", ()):
        return "required"
    value = schema["properties"][key].get("default")
    nested = isinstance(value, dict) and "$ref" in schema["properties"][key]  # has a section of its own
    return "" if nested or value in (None, "", [], {}) else f"`{json.dumps(value)}`"


def _kind(field: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
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


def _plain(value: Any) -> Any:
    """As TOML says it: without what has no value, with keys of text and a path as a configuration names it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, Path):
        return resources.name_of(value) or str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
