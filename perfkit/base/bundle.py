"""JSON files of perfkit's: written completely or not at all, and checked when read."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from perfkit.base.errors import BundleError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

_Record = TypeVar("_Record", bound="BaseModel")
_MAX_DEPTH = 10_000  # Python's limit is 1,000 calls; a plan needs two for each level
_recursion_limit = threading.Lock()
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which UTF-8 cannot encode
_INDENTED_LEVELS = 200  # the number of spaces grows with the square of the levels


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError if the text is not JSON or is nested too deep."""
    with deep():
        return json.loads(text)


def dumps(value: object, *, ascii_only: bool = False) -> str:
    """Return a JSON text that a file can hold, indented unless spaces would be most of it.

    Raises ValueError if the value is nested too deep.
    """
    with deep():
        indent = 1 if _levels(value) < _INDENTED_LEVELS else None
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        return json.dumps(value, indent=indent) if _LONE_SURROGATE.search(text) else text


@contextmanager
def deep() -> Iterator[None]:
    """Raise Python's recursion limit inside the block. Raises ValueError for deeper nesting."""
    with _recursion_limit:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _MAX_DEPTH))
        try:
            yield
        except RecursionError:
            raise ValueError(f"nested deeper than {_MAX_DEPTH:,} values") from None
        finally:
            sys.setrecursionlimit(limit)


def _levels(value: object) -> int:
    """Return the depth of nested values, up to _INDENTED_LEVELS."""
    levels, layer = 0, [value] if isinstance(value, dict | list) else []
    while layer and levels < _INDENTED_LEVELS:
        children = (outer.values() if isinstance(outer, dict) else outer for outer in layer)
        layer = [item for values in children for item in values if isinstance(item, dict | list)]
        levels += 1
    return levels


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise BundleError if code in the block fails on the content of a file, which is not checked key by key."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BundleError(f"{path}: damaged ({reason}); expected what perfkit wrote") from error


def require_spare(path: Path, start: str) -> Path:
    """Return the path of a file to write. Raises UsageError if the path could be a file of a run or a watch.

    In such a folder the file's name must begin with `start`; in its subfolders no name is allowed.
    """
    for depth, folder in enumerate(path.resolve().parents[:3]):  # plans lie two levels below run.json
        if any((folder / name).exists() for name in ("run.json", "watch.json")) and (
            depth or not path.name.startswith(start)
        ):
            raise UsageError(f"{path}: in the folder of a run or a watch; expected {start}... there, or another folder")
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a file completely or not at all. Raises BundleError, e.g. if the disk is full or the path is a device."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # unique if several processes write the file
    try:
        if path.exists() and not path.is_file():  # replacing a device would destroy it
            raise OSError(errno.EINVAL, "not a regular file")
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}); nothing was overwritten") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def read_json(path: Path, expected: str) -> Any:
    """Return the value in a JSON file. Raises BundleError if the file is damaged or missing.

    `expected` names the file's content in the error, for example "a plan".
    """
    try:
        return loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: no such file; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: damaged ({error}); expected JSON written by perfkit") from None


def read_object(path: Path, expected: str, kind: str, version: int) -> dict[str, Any]:
    """Return the object in a JSON file that states its format. Raises BundleError for another format, as read_json.

    `kind` names the object in the error, for example "a bundle".
    """
    content = read_json(path, expected)
    format_ = content.get("format") if isinstance(content, dict) else None
    if format_ != version:
        raise BundleError(f"{path}: format {format_!r}; expected {kind} of format {version}")
    return dict(content)


def read_record(path: Path, model: type[_Record], expected: str, kind: str) -> _Record:
    """Return the record in a JSON file; its model has the field `format`, whose default is the only one accepted.

    Keys that the model does not know are ignored: older versions may have written them. `expected` and `kind` name
    the file and the record in errors, for example "a bundle's folder", "a bundle". Raises BundleError.
    """
    content = read_object(path, expected, kind, model.model_fields["format"].default)
    try:
        return model.model_validate(content, extra="ignore")
    except ValueError as error:
        raise BundleError(f"{path}: damaged ({first_fault(error)}); expected what perfkit wrote") from None


def first_fault(error: ValueError) -> str:
    """Return the first fault that a model found, with the key that has it: "parameters.blocks: Field required"."""
    from pydantic import ValidationError  # loading it takes 0.1 s, which reading other JSON does not need

    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
