"""A statement's text with `$1`, `$2`, ...: where they stand, what they stand for, and the form psycopg takes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LEXEME = re.compile(
    r"""(?P<space>\s+|--[^\n]*)|(?P<comment>/\*)"""
    r"""|(?P<string>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)"""
    r"""|(?P<name>"(?:[^"]|"")*"|[^\W\d][\w$]*)|(?P<placeholder>\$\d+)"""
    r"""|(?P<numeric>(?:\d[\w.]*|\.\d\w*)(?:(?<=[eE])[-+]\d+)?)|(?P<other>.)""",
    re.DOTALL,
)
_FIXED = {"limit": "10", "first": "10", "next": "10", "offset": "0", "zone": "UTC", "escape": "\\"}  # after a word
_UNITS = frozenset({"date_trunc", "date_part"})  # functions whose first argument is a unit of time
_WORDS = {"true": "true", "false": "false", "null": None}


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A piece of SQL: space (comments too), string, name, placeholder, numeric or other."""

    kind: str
    text: str

    @property
    def word(self) -> str:
        """In lower case, where that means the same."""
        return self.text.lower() if self.kind == "name" and not self.text.startswith('"') else self.text

    @property
    def number(self) -> int:
        """Of a placeholder."""
        return int(self.text[1:])


def lexemes(text: str) -> Iterator[Lexeme]:
    """All of a text in pieces, as PostgreSQL cuts it; what is not closed comes character by character."""
    at = 0
    while found := _LEXEME.match(text, at):
        kind, end = found.lastgroup or "", found.end()
        if kind == "comment":
            kind, end = "space", _comment_end(text, at)
        yield Lexeme(kind, text[at:end])
        at = end


def placeholders(text: str) -> tuple[int, ...]:
    """The numbers of its placeholders, each once, in order.

    >>> placeholders("SELECT $2, '$3', $$ $4 $$ -- $5")
    (2,)
    """
    return tuple(sorted(set(placed(text))))


def placed(text: str) -> list[int]:
    """The same as often as they are there, in the text's order, which nothing here changes."""
    return [lexeme.number for lexeme in lexemes(text) if lexeme.kind == "placeholder"]


def named_placeholders(text: str) -> str:
    """The same with `%(p1)s` for `$1`, and `%%` for a percent sign; as it is where it has no placeholder.

    >>> named_placeholders("SELECT $1 WHERE x LIKE 'a%' AND y = $1")
    "SELECT %(p1)s WHERE x LIKE 'a%%' AND y = %(p1)s"
    """
    if not placeholders(text):
        return text
    parts = (f"%(p{x.number})s" if x.kind == "placeholder" else x.text.replace("%", "%%") for x in lexemes(text))
    return "".join(parts)


def fixed(text: str) -> dict[int, tuple[str, str]]:
    """Placeholders that stand where only some values make sense: a value, and what it stands for.

    >>> fixed("SELECT date_trunc($1, x) FROM t LIMIT $2")
    {1: ('day', 'DATE_TRUNC'), 2: ('10', 'LIMIT')}
    """
    found: dict[int, tuple[str, str]] = {}
    before = ["", ""]
    for lexeme in lexemes(text):
        if lexeme.kind == "space":
            continue
        if lexeme.kind == "placeholder":
            if value := _FIXED.get(before[-1]):
                found[lexeme.number] = value, before[-1].upper()
            elif before[-1] == "(" and before[-2] in _UNITS:
                found[lexeme.number] = "day", before[-2].upper()
        before = [before[-1], lexeme.word]
    return found


def aligned(text: str, example: str, parameters: Sequence[str | None] = ()) -> dict[int, str | None] | None:
    """The values for a text's placeholders in one of its executions: constants there, or `parameters` of its own.

    None where the two are not the same statement, piece by piece.

    >>> aligned("SELECT $1 FROM t WHERE a = $2 AND b = $3", "select 'it''s' from t where a = -5 and b = $1", ["x"])
    {1: "it's", 2: '-5', 3: 'x'}
    """
    values: dict[int, str | None] = {}
    rest = _meaning(example)[::-1]
    for wanted in _meaning(text):
        try:
            if wanted.kind != "placeholder":
                if rest.pop().word != wanted.word:
                    return None
                continue
            value = _constant(rest, parameters)
        except (ValueError, IndexError):
            return None
        if values.setdefault(wanted.number, value) != value:
            return None
    return None if rest else values


def _comment_end(text: str, at: int) -> int:
    """Where a comment ends, in which there may be others."""
    depth = 0
    for found in re.compile(r"/\*|\*/").finditer(text, at):
        depth += 1 if found[0] == "/*" else -1
        if depth == 0:
            return found.end()
    return len(text)


def _meaning(text: str) -> list[Lexeme]:
    """Without spaces and the semicolon at the end."""
    found = [lexeme for lexeme in lexemes(text) if lexeme.kind != "space"]
    while found and found[-1].text == ";":
        found.pop()
    return found


def _constant(rest: list[Lexeme], parameters: Sequence[str | None]) -> str | None:
    """Take the constant at the end of what is reversed. Raises ValueError where there is none, IndexError."""
    first = rest.pop()
    if first.kind == "placeholder":
        return parameters[first.number - 1]
    if first.text == "-" and rest[-1].kind == "numeric":
        return f"-{rest.pop().text}"
    if first.kind == "numeric":
        return first.text
    if first.word in _WORDS:
        return _WORDS[first.word]
    if first.kind != "string" or (first.text[0] in "eE" and "\\" in first.text):
        raise ValueError(first.text)
    quoted = first.text.lstrip("eE")
    if quoted.startswith("'"):
        return quoted[1:-1].replace("''", "'")
    tag = quoted.index("$", 1) + 1
    return quoted[tag:-tag]
