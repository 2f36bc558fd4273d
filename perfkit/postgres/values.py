"""Values that perfkit makes: SQL that fits the planner's statistics, new values for copied rows, and examples.

An expression that fits statistics depends on ROW, the number of the row, counted from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import expm1, gcd
from random import Random
from uuid import UUID

ROW = '"perfkit row"'
_INTEGERS = ("smallint", "integer", "bigint")
_NUMBERS = (*_INTEGERS, "numeric", "real", "double precision", "money")
_SPANS = ("interval", "time without time zone")
_TIMES = ("timestamp without time zone", "timestamp with time zone", *_SPANS)
_TEXTS = ("text", "character varying", "character", '"char"', "name")
_ELEMENTS = 50  # most common elements of an array or document that are used
_ENDLESS = {"infinity", "-infinity", "nan"}


@dataclass(frozen=True, slots=True)
class CopiedColumn:
    """A column with the planner's statistics of its values, as sql/catalog/copy_columns.sql returns it."""

    table: str
    name: str
    type: str
    full_type: str
    most: int | None  # characters
    not_null: bool
    labels: Sequence[str] | None  # of an enum
    null_frac: float
    n_distinct: float
    correlation: float
    width: int
    common: Sequence[str]
    frequencies: Sequence[float]
    bounds: Sequence[str]
    elements: Sequence[str]
    element_frequencies: Sequence[float]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Context for drawing values: the server's quoting of literals, the seed, and the number of rows to spread over."""

    quote: Callable[[object], str]
    seed: int
    spread: int

    def uniform(self, *purpose: object) -> str:
        """Return a number in [0, 1) that depends on the row and the purpose only."""
        return f"pg_temp.pk_uniform({ROW}, {self.quote('/'.join(map(str, (self.seed, *purpose))))})"

    def in_order(self, row: str = ROW) -> str:
        """Return the row's relative position among all rows, in (0, 1)."""
        return f"((({row} - 1) % {self.spread} + 0.5) / {self.spread})::double precision"

    def reordered(self, column: CopiedColumn) -> str:
        """Return row numbers reordered to match the column's correlation with the physical order."""
        if column.correlation > 0.5 or self.spread < 2:
            return ROW
        other = f"{self.spread} + 1 - {ROW}"
        if column.correlation > -0.5:
            step = next(n for n in range(int(self.spread * 0.618) + 1, 2 * self.spread) if gcd(n, self.spread) == 1)
            other = f"(1 + {ROW}::bigint * {step} % {self.spread})::integer"
        return f"(CASE WHEN {ROW} <= {self.spread} THEN {other} ELSE {ROW} END)"

    def ordered(self, column: CopiedColumn) -> str:
        """Return a uniform number in [0, 1), correlated with the row order as the column's values are."""
        name, correlation = column.name, column.correlation
        free = self.uniform("place", name)
        if abs(correlation) < 0.05:
            return free
        along = self.in_order() if correlation > 0 else f"1 - {self.in_order()}"
        return f"CASE WHEN {self.uniform('order', name)} < {abs(correlation)} THEN {along} ELSE {free} END"

    def or_null(self, column: CopiedColumn, purpose: object, value: str) -> str:
        """Return the value, or NULL as often as the column has NULLs."""
        if column.not_null or not column.null_frac:
            return value
        return f"CASE WHEN {self.uniform('null', purpose)} < {column.null_frac} THEN NULL ELSE {value} END"

    def array(self, texts: Sequence[str]) -> str:
        """Return a constant array of text."""
        return f"({self.quote(list(texts))}::text[])"


def distinct(column: CopiedColumn, rows: int) -> int:
    """Return how many distinct values a column with `rows` rows should have; 0 if unknown."""
    number = float(column.n_distinct)
    return round(min(rows, number if number > 0 else -number * rows))


def _levels(wanted: int, rows: float) -> int:
    """Return the number of values to draw from so that about `wanted` of them appear in `rows` draws."""
    low, high = wanted, 64 * wanted
    while low < high:
        middle = (low + high) // 2
        appear = middle * -expm1(-rows / middle)
        low, high = (middle + 1, high) if appear < wanted else (low, middle)
    return low


def common(draw: Drawing, column: CopiedColumn, values: str, many: int, rest: str | None) -> str:
    """Return one of `many` common values with the column's frequencies, otherwise `rest`."""
    present = max(1e-9, 1 - column.null_frac)
    sums = list(accumulate(frequency / present for frequency in column.frequencies[:many]))
    drawn = draw.uniform("common", column.name)
    scaled = drawn if rest else f"{drawn} * {sums[-1]}"
    bucket = f"width_bucket({scaled}, {draw.quote(sums)}::double precision[])"
    picked = f"{values}[least({many}, 1 + {bucket})]"
    return f"CASE WHEN {drawn} < {sums[-1]} THEN {picked} ELSE {rest} END" if rest else picked


def value(draw: Drawing, column: CopiedColumn, unique: bool) -> str:
    """Return an expression for a column: a different value for each row if unique, else by its statistics."""
    every = (1 - column.null_frac) * 0.99
    own = unique or (not column.common and -column.n_distinct >= every)
    found = (_unique(draw, column) if own else None) or _fitted(draw, column) or _plain(draw, column)
    return draw.or_null(column, column.name, f"({found})::{column.full_type}")


def _fitted(draw: Drawing, column: CopiedColumn) -> str | None:
    """Return a common value or a value from the histogram; None if the column has neither."""
    values, bounds = column.common, _bounds(column)
    full = column.full_type
    rest = None
    if len(bounds) > 1:
        drawn = draw.spread * max(0.0, 1 - column.null_frac - sum(column.frequencies))
        wanted = distinct(column, draw.spread) - len(values)
        levels = max(_levels(wanted, drawn) if wanted > 0 else 0, len(bounds) - 1)
        level = f"floor({draw.ordered(column)} * {levels})::bigint"
        rest = _between(draw, column, bounds, f"(({level} + 0.5) / {levels})", level, levels)
    if values:
        picked = common(draw, column, draw.array(values), len(values), None if rest is None else f"({rest})::text")
        return f"({picked})::{full}"
    return rest


def _bounds(column: CopiedColumn) -> list[str]:
    return [bound for bound in column.bounds if bound.lower() not in _ENDLESS]


def _between(draw: Drawing, column: CopiedColumn, bounds: Sequence[str], place: str, level: str, levels: int) -> str:
    """Return the value at a position in [0, 1) of a histogram; interpolate if the type allows it."""
    kind, full = column.type, column.full_type
    buckets = len(bounds) - 1
    at = f"least({buckets} * {place}, {buckets} - 0.000001)"
    low, high = (f"{draw.array(bounds)}[{n} + floor({at})::integer]::{full}" for n in (1, 2))
    step = f"({at} - floor({at}))"
    if kind in _INTEGERS:
        return f"{low} + floor({step}::numeric * ({high}::numeric - {low}::numeric))"
    if kind == "numeric":
        return f"{low} + {step}::numeric * ({high} - {low})"
    if kind == "date":
        return f"{low} + floor({step} * ({high} - {low}))::integer"
    if kind in (*_NUMBERS, *_TIMES):
        return f"{low} + {step}::double precision * ({high} - {low})"
    if kind in _TEXTS and levels > buckets:
        return _own_text(draw, column, f"({low})::text", f"'~' || {level}")
    if kind == "uuid":
        return f"md5({draw.quote(str(draw.seed))} || {level})::uuid"
    if kind == "bytea" and levels > buckets:
        return f"{low} || int8send({level})"
    return low


def _own_text(draw: Drawing, column: CopiedColumn, text: str, suffix: str) -> str:
    """Return a text of about the same length and beginning that ends in the suffix."""
    kept = f"greatest(length({text}) - length({suffix}), length({text}) / 2)"
    if column.most:
        kept = f"greatest(0, least({kept}, {column.most} - length({suffix})))"
    return f"left({text}, {kept}) || {suffix}"


def _unique(draw: Drawing, column: CopiedColumn) -> str | None:
    """Return a different value for every row; None for types without a rule."""
    kind, bounds = column.type, _bounds(column)
    row = draw.reordered(column)
    if labels := column.labels:
        return f"{draw.array(labels)}[{row}]"
    if draw.spread <= len(bounds) and not column.null_frac:
        return f"{draw.array(bounds)}[{row}]"
    if kind == "uuid":
        return f"md5({draw.quote(str(draw.seed))} || {row})::uuid"
    if kind in _TEXTS and (column.most or 99) < 8:
        return f"lpad(to_hex({row}), {column.most}, '0')"
    if len(bounds) < 2:
        return _numbered(kind, row)
    between = _between(draw, column, bounds, draw.in_order(row), row, draw.spread)
    if kind in _INTEGERS:
        first, last = int(bounds[0]), int(bounds[-1])
        if last - first < 1.05 * draw.spread:
            return f"{first} + {row} - 1"
    if kind in (*_INTEGERS, "date"):  # the histogram's place, or the next free value after the one before
        return f"max({between} - {row}) OVER (ORDER BY {row}) + {row}"
    return between if kind in (*_NUMBERS, *_TIMES, *_TEXTS, "bytea") else _numbered(kind, row)


def _numbered(kind: str, number: str) -> str | None:
    """Return a value for an integer, different for each one; None for types without a rule."""
    if kind in _NUMBERS:
        return number
    if kind in _TEXTS:
        return f"'v' || {number}"
    return {
        "date": f"date '2000-01-01' + {number}",
        "interval": f"{number} * interval '1 minute'",
        "bytea": f"int4send({number})",
        "inet": f"inet '10.0.0.0' + {number}",
        **dict.fromkeys(_TIMES[:2], f"timestamp '2000-01-01' + {number} * interval '1 minute'"),
    }.get(kind)


def _plain(draw: Drawing, column: CopiedColumn) -> str:
    """Return a value for a column without statistics, as wide columns are; NULL for types without a rule."""
    kind, drawn = column.type, draw.uniform("plain", column.name)
    number = f"floor({drawn} * 1000)::integer"
    text = f"rpad('value ' || {number}, greatest(9, {column.width}), 'x')"
    if labels := column.labels:
        return f"{draw.array(labels)}[1 + floor({drawn} * {len(labels)})::integer]"
    if kind in _TEXTS:
        return text
    if kind in _NUMBERS and kind not in _INTEGERS:
        return f"({drawn} * 0.9)::numeric"  # the type may allow few digits before the point
    return (
        {
            "boolean": f"{drawn} < 0.5",
            "time without time zone": f"time '00:00' + {drawn} * interval '1 day'",
            "uuid": f"md5({draw.quote(str(draw.seed))} || {drawn})::uuid",
            "json": f"json_build_object('number', {number}, 'text', {text})",
            "jsonb": f"jsonb_build_object('number', {number}, 'text', {text})",
            "bytea": f"convert_to({text}, 'UTF8')",
            "array": _elements(draw, column),
            "tsvector": f"array_to_tsvector({_elements(draw, column)})",
            "range": "'empty'",
        }.get(kind)
        or _numbered(kind, number)
        or "NULL"
    )


def _elements(draw: Drawing, column: CopiedColumn) -> str:
    """Return an array that contains each of the most common elements with its frequency."""
    known = sorted(zip(column.element_frequencies, column.elements, strict=False), reverse=True)[:_ELEMENTS]
    if not known:
        return "'{}'"
    texts = draw.array([text for _, text in known])
    often = f"{draw.quote([frequency for frequency, _ in known])}::double precision[]"
    kind = "text" if column.type == "tsvector" else column.full_type.removesuffix("[]")
    return (
        f"ARRAY(SELECT element::{kind} FROM unnest({texts}, {often}) AS known (element, often) "
        f"WHERE pg_temp.pk_uniform({ROW}, element || {draw.quote(str(draw.seed))}) < often)"
    )


# New values for the unique columns of copied rows, and examples for parameters that no column has values for.

_DIGEST = "md5('perfkit {0} ' || s.{1})"
_FRESH = {  # by type
    "uuid": f"{_DIGEST}::uuid",
    **dict.fromkeys(("text", "character varying"), _DIGEST),
    **dict.fromkeys(("integer", "bigint"), "(SELECT max({1}) FROM {2}) + {3} + row_number() OVER ()"),
}
_EXAMPLES = {"N": "1", "B": "true", "D": "2026-01-01", "T": "1 hour", "S": "a", "A": "{}", "I": "127.0.0.1", "V": "0",
             "R": "empty"}  # fmt: skip
_EXAMPLES_OF_TYPES = {"json": "{}", "jsonb": "{}", "bytea": "\\x00", "time without time zone": "12:00",
                      "time with time zone": "12:00+00"}  # fmt: skip


def has_fresh(kind: str) -> bool:
    """Return whether new values of a type can be made from existing rows."""
    return kind in _FRESH


def fresh(kind: str, salt: str, column: str, table: str, offset: int) -> str:
    """Return a new value for a quoted column of a copy of row `s`; another salt or offset gives other values.

    >>> fresh("uuid", "insert", "id", "visits", 0)
    "md5('perfkit insert ' || s.id)::uuid"
    """
    return _FRESH[kind].format(salt, column, table, offset)


def example(draw: Random, kind: str, category: str, label: str | None, *, new: bool) -> str | None:
    """Return a plain value of a type as text, by its category in pg_type; with `new`, another one each time.

    `label` is one of an enum. Return None for a type without a rule.

    >>> example(Random(1), "date", "D", None, new=False)
    '2026-01-01'
    """
    if kind == "uuid":
        return str(UUID(int=draw.getrandbits(128), version=4))
    if new and category in "NS":
        return str(draw.randrange(10**4, 3 * 10**4 if kind == "smallint" else 2 * 10**9))
    return _EXAMPLES_OF_TYPES.get(kind) or label or _EXAMPLES.get(category)
