"""SQL files: split into statements with their lines, fill in `:variables`, read the comment on top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot.errors import SqlglotError

from perfkit.errors import UsageError

_PARAMETER = re.compile(r"(?<![\w$])\$(?=\d)")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as it stands in its file, without the semicolon, and the line it starts on."""

    text: str
    line: int


def split(sql: str) -> list[Statement]:
    r"""The statements of a text; quotes, dollar quotes and comments are respected.

    >>> [s.text for s in split("SELECT ';' ; -- one; two\nSELECT $$;$$")]
    ["SELECT ';'", 'SELECT $$;$$']
    >>> len(split("SELECT ($1,$2); SELECT $1"))
    2
    """
    try:
        tokens = _tokens(sql)
    except SqlglotError as error:
        raise UsageError(f"SQL that cannot be read: {str(error).splitlines()[0]}") from None
    runs = groupby(tokens, lambda token: token.token_type.name == "SEMICOLON")
    found = [list(run) for between, run in runs if not between]
    return [Statement(sql[run[0].start : run[-1].end + 1], run[0].line) for run in found]


def first_word(sql: str) -> str:
    """The word a statement begins with, in capitals; parentheses and comments before it do not count.

    >>> first_word("/* all */ (select 1)")
    'SELECT'
    """
    words = (token.text.upper() for token in _tokens(sql))
    return next((text for text in words if text != "("), "")


def _tokens(sql: str) -> list[Any]:
    """At the same places as in the text. `$1,$2` is two parameters, and to sqlglot a quoted "," before a 2."""
    return sqlglot.tokenize(_PARAMETER.sub("_", sql), read="postgres")


def substitute(sql: str, variables: Mapping[str, int]) -> str:
    """Replace `:name` by its number; `::type` casts and unknown names stay.

    >>> substitute("SELECT :rows::int, :other", {"rows": 5})
    'SELECT 5::int, :other'
    """
    return re.sub(r"(?<!:):([a-z_]+)\b", lambda m: str(variables[m[1]]) if m[1] in variables else m[0], sql)


def comment(sql: str) -> str:
    """The first comment line of a file, which says what it is for."""
    first = sql.lstrip().splitlines()[0] if sql.strip() else ""
    return first.removeprefix("--").strip() if first.startswith("--") else ""


def read(path: Path) -> str:
    """A SQL file's text. Raises UsageError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: cannot be read ({reason}); expected a file in UTF-8") from None
