"""SQL files: split into statements with their lines, fill in `:variables`, read the comment on top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perfkit.errors import UsageError
from perfkit.postgres.parameters import sendable
from perfkit.postgres.tokens import Token, tokens


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as it stands in its file, without the semicolon, and the line it starts on."""

    text: str
    line: int


def split(sql: str, where: str = "") -> list[Statement]:
    r"""Return the statements of a text; a semicolon in a quote, a comment, parentheses or a routine's body ends none.

    Raises UsageError for a text that cannot be read, with `where` it is from.

    >>> [s.text for s in split("SELECT ';' ; -- one; two\nSELECT $$;$$")]
    ["SELECT ';'", 'SELECT $$;$$']
    >>> len(split("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3"))
    2
    """
    sql = sendable(sql, where or "SQL")
    found: list[Statement] = []
    first: Token | None = None  # of the statement that is read, and where it ends so far; a file may have millions
    end, parentheses, body, before = 0, 0, 0, ""
    for token in tokens(sql, where):
        word = token.text.upper() if token.kind in ("word", "other") else ""
        parentheses += (word == "(") - (word == ")")
        if (before, word) == ("BEGIN", "ATOMIC"):
            body = 1
        elif body:  # which ends at an END that is no CASE's, as psql counts them
            body += (word == "CASE") - (word == "END")
        if word == ";" and parentheses <= 0 and not body:
            found += [Statement(sql[first.start : end], first.line)] if first else []
            first, parentheses = None, 0
        else:
            first, end = first or token, token.end
        before = word
    return [*found, Statement(sql[first.start : end], first.line)] if first else found


def first_word(sql: str) -> str:
    """Return the word a statement begins with, in capitals; parentheses and comments before it do not count.

    >>> first_word("/* all /* of it */ */ (select 1)")
    'SELECT'
    """
    return next((token.text.upper() for token in tokens(sql) if token.text != "("), "")


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
        return sendable(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: cannot be read ({reason}); expected a file in UTF-8") from None
