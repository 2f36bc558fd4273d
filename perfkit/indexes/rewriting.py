"""Conditions of a statement rewritten in its text, so that an index can serve them.

Which conditions return the same rows is decided in perfkit/explain/rewrites.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation

from perfkit.explain.facts import bare
from perfkit.explain.rewrites import Condition, Rewrite, operand, span_of
from perfkit.postgres.parser import SqlNode, parse_expression, parse_statements
from perfkit.postgres.sqltext import scan

_ENDS = frozenset("group order limit offset having union except intersect returning fetch for window ;".split())
_COMPARISONS = frozenset({"=", ">", ">=", "<", "<=", "~~*"})
_FLIPPED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_PREFIX = len("SELECT ")  # before an expression that is parsed
_SPELLING = frozenset({"location", "funcformat", "rexpr_list_start", "rexpr_list_end"})

# Clauses that need all rows of a SELECT at once forbid to split the SELECT into two. So does a function unless it
# returns the same result in both: only these certainly do.
_OF_ALL = frozenset(
    "groupClause sortClause limitCount limitOffset distinctClause havingClause lockingClause intoClause windowClause "
    "withClause".split()
)
_STEADY = frozenset(
    "abs array_length btrim cardinality ceil ceiling char_length concat date date_part date_trunc extract floor left "
    "length like_escape lower ltrim md5 mod now overlay position replace right round rtrim split_part starts_with "
    "strpos substring timezone to_char to_date to_timestamp trunc upper".split()
)


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
    statements = parse_statements(text)
    nodes = [node for statement in statements for node in statement.walk()]
    selects = [node for node in nodes if node.kind == "SelectStmt"]
    unsteady = any(
        node.kind == "RangeTableSample" or (node.kind == "FuncCall" and not _STEADY.issuperset(node.names("funcname")))
        for node in nodes
    )
    if len(statements) != 1 or selects != [statements[0]] or _OF_ALL & statements[0].fields.keys() or unsteady:
        return ""
    parts = [*_parts(text)]
    for part in parts:
        if len(sides := [*_split(bare(part.text), "or")]) == 2:
            one, other = (side.text for side in sides)
            first = text[: part.start] + one + text[part.end :]
            second = text[: part.start] + f"{other} AND ({one}) IS NOT TRUE" + text[part.end :]
            return f"{first.rstrip().rstrip(';')}\nUNION ALL\n{second.rstrip().rstrip(';')}"
    return ""


def _parts(text: str) -> Iterator[_Part]:
    """Yield the conditions of every WHERE clause that are joined by AND."""
    tokens = [*scan(text, blanks=False)]
    for at, token in enumerate(tokens):
        if token.word != "where":
            continue
        depth, end = 0, token.end
        for inner in tokens[at + 1 :]:
            depth += (inner.text == "(") - (inner.text == ")")
            if depth < 0 or (depth == 0 and inner.word in _ENDS):
                break
            end = inner.end
        start = token.end
        whole = text[start:end]
        if len([*_split(whole, "or")]) > 1:
            blank = len(whole) - len(whole.lstrip())
            yield _Part(start + blank, end, whole.strip())
            continue
        for part in _split(whole, "and"):
            yield _Part(start + part.start, start + part.end, part.text)


def _split(text: str, word: str) -> Iterator[_Part]:
    """Yield the parts between a keyword outside parentheses and CASE; the AND of a BETWEEN does not split."""
    depth, between, start, end = 0, 0, -1, 0
    for token in scan(text, blanks=False):
        depth += (token.word in ("(", "case")) - (token.word in (")", "end"))
        between += token.word == "between" and depth == 0
        if depth == 0 and token.word == word:
            if word == "and" and between:
                between -= 1
            else:
                yield _Part(start, end, text[start:end])
                start = -1
                continue
        start, end = (token.start if start < 0 else start), token.end
    if start >= 0:
        yield _Part(start, end, text[start:end])


def _expanded(text: str, column: str) -> str:
    """Return a statement with its BETWEEN on an expression of the column written as two comparisons."""
    for part in _parts(text):
        written = bare(part.text)
        node = parse_expression(written)
        if node and node.text("kind") == "AEXPR_BETWEEN" and {names[-1] for names in _columns(node)} == {column}:
            at = node.number("location") - _PREFIX
            bounds = [bound.text for bound in _split(written[at + len("BETWEEN") :], "and")]
            if len(bounds) == 2:
                subject = written[:at].strip()
                both = f"{subject} >= {bounds[0]} AND {subject} <= {bounds[1]}"
                return text[: part.start] + both + text[part.end :]
    return ""


def _same(text: str, alias: str, column: str, condition: Condition) -> tuple[str, str] | None:
    """Return the column and the value as a condition writes them, if it is the plan's condition."""
    written = bare(text)
    comparison = parse_expression(written)
    subject, value = parse_expression(condition.subject), parse_expression(condition.value)
    operator = _operator(comparison) if comparison else ""
    if comparison is None or subject is None or value is None or not operator:
        return None
    (left, right), texts = comparison.nodes("lexpr") + comparison.nodes("rexpr"), _sides(written, comparison)
    if not _columns(left):
        left, right, texts, operator = right, left, texts[::-1], _FLIPPED.get(operator, "")
    columns = _columns(left)
    matches = len(columns) == 1 and columns[0][-1] == column and columns[0][:-1] in ((), (alias,))
    if operator != condition.operator or not matches or _columns(right) or len(texts) != 2:
        return None
    with suppress(RecursionError):  # of an expression that is deeper than any that a rule rewrites
        same = _shape(left, True) in (_shape(subject, True), _shape(subject, False))
        return (_written(written, left), texts[1]) if same and _equal(value, right) else None
    return None


def _operator(comparison: SqlNode) -> str:
    """Return the operator of a comparison as a plan prints it; "" if it is another kind of expression."""
    if comparison.text("kind") == "AEXPR_NOT_DISTINCT":
        return "IS NOT DISTINCT FROM"
    [*names] = comparison.names("name") if comparison.text("kind") in ("AEXPR_OP", "AEXPR_ILIKE") else ()
    binary = len(comparison.nodes("lexpr")) == len(comparison.nodes("rexpr")) == 1
    return names[0] if binary and len(names) == 1 and names[0] in _COMPARISONS else ""


def _sides(text: str, comparison: SqlNode) -> list[str]:
    """Return the texts on both sides of a comparison; none if its operator is written in an unusual form."""
    at = comparison.number("location") - _PREFIX
    words = 4 if comparison.text("kind") == "AEXPR_NOT_DISTINCT" else 1
    operator = [token for token in scan(text, blanks=False) if token.start >= at][:words]
    if not operator or operator[0].start != at or operator[0].word == "operator":
        return []
    return [bare(text[:at]), bare(text[operator[-1].end :])]


def _written(text: str, side: SqlNode) -> str:
    """Return the only column of a side of a comparison as the text writes it."""
    [column] = [node for node in side.walk() if node.kind == "ColumnRef"]
    at = column.number("location") - _PREFIX
    name = [token for token in scan(text, blanks=False) if token.start >= at][: 2 * len(column.names("fields")) - 1]
    return text[at : name[-1].end]


def _columns(node: SqlNode) -> list[tuple[str, ...]]:
    """Return the names of the columns in an expression, each with its qualifiers, as the catalogue stores them."""
    return [below.names("fields") for below in node.walk() if below.kind == "ColumnRef"]


def _shape(node: SqlNode, casts: bool) -> object:
    """Return an expression without the differences in spelling between plans and statements.

    Without `casts`, casts of the column are ignored too.
    """
    if node.kind == "ColumnRef":
        return "column"
    if (constant := _constant(node)) is not None:
        return constant
    if node.kind == "TypeCast":
        inner = _shape(node.nodes("arg")[0], casts)
        if not casts and inner == "column":
            return inner
    parts: list[object] = [node.kind]
    for field, value in sorted(node.fields.items()):
        if field not in _SPELLING:
            names = node.names(field)
            below = tuple(_shape(inner, casts) for inner in node.nodes(field))
            parts.append((field, names if any(names) else below or value))
    return tuple(parts)


def _constant(node: SqlNode) -> tuple[str, object] | None:
    """Return a constant without its type; all parameters count as the same constant."""
    if node.kind == "ParamRef":
        return "parameter", None
    if node.kind == "TypeCast":
        inner = _constant(node.nodes("arg")[0])
        interval = node.nodes("typeName")[0].names("names") == ("interval",)
        return _interval(inner[1]) if inner and interval and isinstance(inner[1], str) else inner
    if node.kind != "A_Const" or "isnull" in node.fields:
        return None
    if "ival" in node.fields:
        return "constant", str(node.nodes("ival")[0].number("ival") if node.nodes("ival") else 0)
    for key in ("fval", "sval"):
        for held in node.nodes(key):
            text = held.text(key)
            return "constant", text.lower() if text.isalpha() else text
    return None


def _interval(text: str) -> tuple[str, object]:
    """Return months, days and seconds of an interval, or its text if it is written in another way."""
    plain = re.sub(r"\bmonth", "mon", text.lower())
    weeks = re.fullmatch(r"(-?\d+) weeks?", plain)
    hours = re.fullmatch(r"(-?\d+) (hour|minute|second)s?", plain)
    if weeks:
        return "interval", (0, 7 * int(weeks[1]), 0)
    if hours:
        return "interval", (0, 0, int(hours[1]) * {"hour": 3600, "minute": 60, "second": 1}[hours[2]])
    return "interval", span_of(plain) or plain


def _equal(printed: SqlNode, written: SqlNode) -> bool:
    """Return whether two values, of the plan and of the statement, are equal; never for 'today' and similar words."""
    one, other = _constant(printed), _constant(written)
    if one is None or other is None:
        return one is other and _shape(printed, True) == _shape(written, True)
    if one == other or one[0] != other[0] or one[0] != "constant":
        return one == other
    with suppress(InvalidOperation):
        return Decimal(str(one[1])) == Decimal(str(other[1]))
    with suppress(ValueError):
        times = [datetime.fromisoformat(str(constant[1])) for constant in (one, other)]
        if not all(time.tzinfo for time in times):
            times = [time.replace(tzinfo=None) for time in times]
        return times[0] == times[1]
    return False
