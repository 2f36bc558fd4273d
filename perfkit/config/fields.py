"""What every table of a `perfkit.toml` is made of: files, names, connection strings, headers."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from perfkit.base import resources
from perfkit.postgres.settings import require_settable

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
