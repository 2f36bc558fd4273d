"""A statement's parameters by name, as psycopg writes them, turned into what a server or pgbench takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_PLACEHOLDER = re.compile(r"%(?:(%)|\((\w+)\)[stb]|.|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Placed:
    """A statement with its placeholders replaced, and the names that it had, each once, in order."""

    text: str
    names: tuple[str, ...]


def numbered(sql: str) -> Placed:
    """Placeholders as the server takes them. Raises ValueError for one without a name.

    >>> numbered("SELECT %(b)s, %(a)s, %(b)s, 10 %% 3")
    Placed(text='SELECT $1, $2, $1, 10 % 3', names=('b', 'a'))
    """
    return _placed(sql, lambda _, number: f"${number}")


def named(sql: str) -> Placed:
    """Placeholders as pgbench's variables. Raises ValueError for one without a name.

    >>> named("SELECT %(b)s::int + %(b)s").text
    'SELECT :b::int + :b'
    """
    return _placed(sql, lambda name, _: f":{name}")


def _placed(sql: str, shown: Callable[[str, int], str]) -> Placed:
    names: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return "%"
        if not match[2]:
            raise ValueError(
                f"{match[0]!r} in a statement with parameters; expected %(name)s, or %% for a percent sign"
            )
        if match[2] not in names:
            names.append(match[2])
        return shown(match[2], names.index(match[2]) + 1)

    return Placed(_PLACEHOLDER.sub(replace, sql), tuple(names))
