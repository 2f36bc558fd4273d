"""Conditions of a statement rewritten in its text, so that an index can serve them.

Which conditions return the same rows is decided in perfkit/explain/rewrites.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from perfkit.explain.rewrites import Condition, Rewrite, operand, span_of

_ENDS = frozenset("GROUP_BY ORDER_BY LIMIT OFFSET HAVING UNION EXCEPT INTERSECT RETURNING FETCH FOR WINDOW SEMICOLON"
                  .split())  # fmt: skip
_OPERATORS: Mapping[type, str] = {
    exp.EQ: "=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.ILike: "~~*",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM",
}
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


# Clauses that need all rows of a SELECT at once, and expressions whose result can differ between two executions:
# both forbid to split the SELECT into two.
_OF_ALL = ("group", "order", "limit", "distinct", "having", "offset", "locks", "into", "windows", "qualify", "sample")
_UNSTEADY = (exp.AggFunc, exp.Window, exp.Anonymous, exp.Rand, exp.TableSample, exp.Uuid)


@dataclass(frozen=True, slots=True)
class _Part:
    """A condition of a WHERE clause, with its start and end in the statement."""

    start: int
    end: int
    text: str


def replaced(text: str, alias: str, column: str, condition: Condition, rewrite: Rewrite) -> str:
    """Return a statement with one condition of its WHERE rewritten; "" unless exactly one matches the plan's.

    `condition` is the condition as the plan prints it. Names alone do not identify it, because a view or a second
    table can have a condition on a column of the same name, so whole expressions are compared.
    """
    if re.search(r"\bCONFLICT\b", text, re.IGNORECASE):
        return ""  # the WHERE of ON CONFLICT identifies a partial index
    for written in (text, _expanded(text, column)):
        matched = [(part, same) for part in _parts(written) if (same := _same(part.text, alias, column, condition))]
        if len(matched) == 1:
            (part, (name, value)) = matched[0]
            typed = f"{value}::{rewrite.type}" if rewrite.type and value.startswith("'") else value
            new = rewrite.filled(name, operand(typed), part.text)
            return written[: part.start] + new + written[part.end :]
    return ""


def either(text: str) -> str:
    """Return a SELECT with an OR as a UNION ALL of both sides; "" if that might return other rows."""
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return ""
    simple = isinstance(parsed, exp.Select) and len([*parsed.find_all(exp.Select)]) == 1
    if not simple or any(parsed.args.get(key) for key in _OF_ALL) or parsed.find(*_UNSTEADY):
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
    """Yield the conditions of every WHERE clause that are joined by AND."""
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
    """Yield the parts between a keyword outside parentheses; the AND of a BETWEEN does not split."""
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


def _expanded(text: str, column: str) -> str:
    """Return a statement with its BETWEEN on an expression of the column written as two comparisons."""
    for part in _parts(text):
        parsed = _parsed(part.text)
        if isinstance(parsed, exp.Between) and {_named(c.this) for c in parsed.find_all(exp.Column)} == {column}:
            subject, low, high = (parsed.args[key].sql("postgres") for key in ("this", "low", "high"))
            return f"{text[: part.start]}{subject} >= {low} AND {subject} <= {high}{text[part.end :]}"
    return ""


def _same(text: str, alias: str, column: str, condition: Condition) -> tuple[str, str] | None:
    """Return the column and the value as a condition writes them, if it is the plan's condition."""
    parsed = _parsed(text)
    operator = _OPERATORS.get(type(parsed)) if parsed else None
    subject, value = _parsed(condition.subject), _parsed(condition.value)
    if parsed is None or operator is None or subject is None or value is None:
        return None
    left, right = parsed.this, parsed.expression
    if not left.find(exp.Column):
        left, right, operator = right, left, _FLIPPED.get(operator, operator)
    columns = [*left.find_all(exp.Column)]
    matches = len(columns) == 1 and _named(columns[0].this) == column
    matches = matches and (columns[0].args.get("table") is None or _named(columns[0].args["table"]) == alias)
    if operator != condition.operator or not matches or right.find(exp.Column):
        return None
    if _shape(left, True) not in (_shape(subject, True), _shape(subject, False)) or not _equal(value, right):
        return None
    return columns[0].sql("postgres"), _bare(right).sql("postgres")


def _parsed(text: str) -> exp.Expression | None:
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return None
    return _bare(parsed) if isinstance(parsed, exp.Expression) else None


def _bare(parsed: Any) -> Any:
    while isinstance(parsed, exp.Paren):
        parsed = parsed.this
    return parsed


def _named(name: Any) -> str:
    """Return a name as the catalogue stores it."""
    return str(name.name if name.args.get("quoted") else name.name.lower())


def _shape(parsed: Any, casts: bool) -> Any:
    """Return an expression without the differences in spelling between plans and statements.

    Without `casts`, casts of the column are ignored too.
    """
    parsed = _bare(parsed)
    if isinstance(parsed, exp.Column):
        return "column"
    if (constant := _constant(parsed)) is not None:
        return constant
    if isinstance(parsed, exp.Cast):
        inner = _shape(parsed.this, casts)
        return ("cast", inner, parsed.to.sql("postgres")) if casts or inner != "column" else inner
    if isinstance(parsed, exp.Expression):
        return (type(parsed).__name__, *(_shape(part, casts) for part in parsed.iter_expressions()))
    return parsed


def _constant(parsed: Any) -> tuple[str, Any] | None:
    """Return a constant without its type; all parameters count as the same constant."""
    if isinstance(parsed, exp.Placeholder | exp.Parameter):
        return "parameter", None
    if isinstance(parsed, exp.Var):
        return "constant", parsed.name.lower()
    if isinstance(parsed, exp.Interval):
        unit = f" {parsed.args['unit'].name}" if parsed.args.get("unit") else ""
        return _interval(f"{parsed.this.name}{unit}")
    if isinstance(parsed, exp.Cast) and (inner := _constant(_bare(parsed.this))):
        return _interval(inner[1]) if parsed.is_type("interval") and inner[1] is not None else inner
    if isinstance(parsed, exp.Neg) and isinstance(parsed.this, exp.Literal):
        return "constant", f"-{parsed.this.name}"
    return (
        ("constant", parsed.name.lower() if parsed.is_string and parsed.name.isalpha() else parsed.name)
        if (isinstance(parsed, exp.Literal))
        else None
    )


def _interval(text: str) -> tuple[str, Any]:
    """Return months, days and seconds of an interval, or its text if it is written in another way."""
    plain = re.sub(r"\bmonth", "mon", text.lower())
    weeks = re.fullmatch(r"(-?\d+) weeks?", plain)
    hours = re.fullmatch(r"(-?\d+) (hour|minute|second)s?", plain)
    if weeks:
        return "interval", (0, 7 * int(weeks[1]), 0)
    if hours:
        return "interval", (0, 0, int(hours[1]) * {"hour": 3600, "minute": 60, "second": 1}[hours[2]])
    return "interval", span_of(plain) or plain


def _equal(printed: Any, written: Any) -> bool:
    """Return whether two values, of the plan and of the statement, are equal; never for 'today' and similar words."""
    one, other = _constant(_bare(printed)), _constant(_bare(written))
    if one is None or other is None:
        return one is other and bool(_shape(printed, True) == _shape(written, True))
    if one == other or one[0] != other[0] or one[0] != "constant":
        return one == other
    with suppress(InvalidOperation):
        return Decimal(one[1]) == Decimal(other[1])
    with suppress(ValueError):
        times = [datetime.fromisoformat(constant[1]) for constant in (one, other)]
        if not all(time.tzinfo for time in times):
            times = [time.replace(tzinfo=None) for time in times]
        return times[0] == times[1]
    return False


def _wrapped(text: str) -> bool:
    if not (text.startswith("(") and text.endswith(")")):
        return False
    depth = 0
    for token in sqlglot.tokenize(text, read="postgres"):
        depth += (token.token_type.name == "L_PAREN") - (token.token_type.name == "R_PAREN")
        if depth == 0:
            return bool(token.end == len(text) - 1)
    return False
