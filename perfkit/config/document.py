"""A configuration written out with its defaults, and the reference of every key; both made from the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel

from perfkit.base import resources
from perfkit.config.claims import Claim
from perfkit.config.judging import Arm, Check, CheckStep, Limits, Thresholds
from perfkit.config.model import Config
from perfkit.config.presets import Preset
from perfkit.config.release import PlanStep, Question, Release, Risk
from perfkit.config.targets import DatabaseConfig, ServiceConfig
from perfkit.config.watching import ReviewConfig, Target, Watch, WatchRule
from perfkit.config.workload import Generator, LoadStage, ParameterColumn, Query, RateSearch, Request, Scenario

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
