"""Values of parameters, and settings of a session, on their way to the server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.adapt import PyFormat, Transformer

from perfkit.errors import UsageError
from perfkit.text import first_line

_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


def sendable(text: str, what: str = "a text for the server") -> str:
    """Return the text. Raises UsageError, with the line, for a character that no server takes: NUL, half a surrogate.

    Cut off at a NUL, the text that is sent would not be the one that was looked at.
    """
    if found := _UNSENDABLE.search(text):
        line, code = text.count("\n", 0, found.start()) + 1, ord(found[0])
        raise UsageError(f"{what}: the character U+{code:04X} in line {line}; expected text in UTF-8 without it")
    return text


def exact(row: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, Any] | list[Any] | None:
    """The same with decimals for floats: `numeric_column = 1.5::float8` could not use an index.

    The server turns a decimal into whatever number a column holds, but never a column into a decimal's type.
    Raises UsageError for text that no server takes.
    """
    if isinstance(row, Mapping):
        return {name: _exact(value) for name, value in row.items()}
    return None if row is None else [_exact(value) for value in row]


def texts(values: Sequence[Any]) -> tuple[str | None, ...]:
    """Values as the server reads them in a text. Raises UsageError for one that has no such form.

    >>> texts([7, None, True, [1, 2], "a'b"])
    ('7', None, 't', '{1,2}', "a'b")
    """
    try:
        sent = Transformer().dump_sequence([_exact(value) for value in values], [PyFormat.TEXT] * len(values))
    except psycopg.Error as error:
        raise UsageError(f"parameters that cannot be sent: {first_line(error)}") from None
    return tuple(None if value is None else bytes(value).decode() for value in sent)


def options(settings: Mapping[str, str]) -> str:
    r"""Settings as libpq's `options` take them.

    >>> options({"work_mem": "64MB", "search_path": "a, b"})
    '-c work_mem=64MB -c search_path=a,\\ b'
    """
    return " ".join(f"-c {name}=" + re.sub(r"([\\\s])", r"\\\1", value) for name, value in settings.items())


def number(text: str) -> float | str:
    """A JSON number that is no integer; as text where a float would not hold all its digits."""
    found = float(text)
    return found if Decimal(repr(found)) == Decimal(text) else text


def _exact(value: Any) -> Any:
    if isinstance(value, list):
        return [_exact(item) for item in value]
    if isinstance(value, str):
        return sendable(value, "a parameter")
    return Decimal(repr(value)) if isinstance(value, float) else value
