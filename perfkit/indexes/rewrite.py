"""A statement with one of its conditions written otherwise; all other text stays as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

_ENDS = frozenset("GROUP_BY ORDER_BY LIMIT OFFSET HAVING UNION EXCEPT INTERSECT RETURNING FETCH FOR WINDOW SEMICOLON"
                  .split())  # fmt: skip
_COMPARED = (exp.EQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike, exp.In, exp.NullSafeEQ)


@dataclass(frozen=True, slots=True)
class _Part:
    """A condition of a WHERE: where it begins and ends in the text."""

    start: int
    end: int
    text: str


def replaced(text: str, column: str, condition: str, value: str = "") -> str:
    """A statement with the one condition on something made of a column replaced; "" where there is not just one.

    Where `value` is given it stands in `condition` for what the statement compares with.

    >>> replaced("SELECT 1 FROM t WHERE a = 1 AND t.day::text = '7' LIMIT 1", "day", "day = '7'")
    "SELECT 1 FROM t WHERE a = 1 AND t.day = '7' LIMIT 1"
    """
    found = [(part, other) for part in _parts(text) if (other := _compared(part.text, column))]
    if len(found) != 1:
        return ""
    part, other = found[0]
    if value:
        if value not in condition:
            return ""
        condition = condition.replace(value, other)
    if qualifier := re.search(rf"(\w+|\"[^\"]+\")\.\"?{re.escape(column)}\b", part.text):
        condition = re.sub(rf"(?<![\w.'])(\"?{re.escape(column)}\b\"?)(?!')", rf"{qualifier[1]}.\1", condition)
    return text[: part.start] + condition + text[part.end :]


def either(text: str) -> str:
    """A SELECT with an OR as a UNION ALL of both, with the same rows; "" where that is not certain."""
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return ""
    simple = isinstance(parsed, exp.Select) and len([*parsed.find_all(exp.Select)]) == 1
    if not simple or any(parsed.args.get(key) for key in ("group", "order", "limit", "distinct", "having", "offset")):
        return ""
    if parsed.find(exp.AggFunc, exp.Window):
        return ""
    parts = [*_parts(text)]
    for part in parts:
        inner = part.text[1:-1] if _wrapped(part.text) else part.text
        if len(sides := [*_split(inner, "OR")]) == 2:
            one, other = (side.text for side in sides)
            first = text[: part.start] + one + text[part.end :]
            second = text[: part.start] + f"{other} AND ({one}) IS NOT TRUE" + text[part.end :]
            return f"{first.rstrip().rstrip(';')}\nUNION ALL\n{second.rstrip().rstrip(';')}"
    return ""


def _parts(text: str) -> Iterator[_Part]:
    """The conditions of every WHERE that must all hold."""
    tokens = sqlglot.tokenize(text, read="postgres")
    for at, token in enumerate(tokens):
        if token.token_type.name != "WHERE":
            continue
        depth, end = 0, token.end
        for inner in tokens[at + 1 :]:
            depth += (inner.token_type.name == "L_PAREN") - (inner.token_type.name == "R_PAREN")
            if depth < 0 or (depth == 0 and inner.token_type.name in _ENDS):
                break
            end = inner.end
        start = token.end + 1
        whole = text[start : end + 1]
        if len([*_split(whole, "OR")]) > 1:
            blank = len(whole) - len(whole.lstrip())
            yield _Part(start + blank, end + 1, whole.strip())
            continue
        for part in _split(whole, "AND"):
            yield _Part(start + part.start, start + part.end, part.text)


def _split(text: str, word: str) -> Iterator[_Part]:
    """The parts between a word outside parentheses; BETWEEN keeps its AND."""
    depth, between, start, end = 0, 0, -1, 0
    tokens: list[Any] = sqlglot.tokenize(text, read="postgres")
    for token in tokens:
        kind = token.token_type.name
        depth += (kind == "L_PAREN") - (kind == "R_PAREN")
        between += kind == "BETWEEN" and depth == 0
        if depth == 0 and kind == word:
            if word == "AND" and between:
                between -= 1
            else:
                yield _Part(start, end, text[start:end])
                start = -1
                continue
        start, end = (token.start if start < 0 else start), token.end + 1
    if start >= 0:
        yield _Part(start, end, text[start:end])


def _compared(text: str, column: str) -> str:
    """What a condition on something made of the column alone compares it with; "" for any other condition."""
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return ""
    while isinstance(parsed, exp.Paren):
        parsed = parsed.this
    if not isinstance(parsed, _COMPARED) or {c.name for c in parsed.find_all(exp.Column)} != {column}:
        return ""
    sides = [parsed.this, parsed.args.get("expression")]
    if isinstance(parsed, exp.ILike):
        return str(sides[1].sql("postgres"))
    if any(isinstance(side, exp.Column) for side in sides):
        return ""
    others = [side for side in sides if side is not None and not side.find(exp.Column)]
    return f"({others[0].sql('postgres')})" if others else "IN"


def _wrapped(text: str) -> bool:
    if not (text.startswith("(") and text.endswith(")")):
        return False
    depth = 0
    for token in sqlglot.tokenize(text, read="postgres"):
        depth += (token.token_type.name == "L_PAREN") - (token.token_type.name == "R_PAREN")
        if depth == 0:
            return bool(token.end == len(text) - 1)
    return False
