"""Reading a `perfkit.toml`: every mistake at once, one line each with file, key, value and what was expected."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from perfkit.base import resources
from perfkit.config.fields import FOLDER, Model
from perfkit.config.model import Config
from perfkit.errors import BundleError, UsageError

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
