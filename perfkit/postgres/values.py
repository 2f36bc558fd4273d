"""SQL expressions for generated values, and copies of a database filled with generated rows.

Every expression depends on ROW, the number of the row, counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import expm1, gcd, prod
from typing import Any

import psycopg
from psycopg import sql

from perfkit.base.errors import ServerError, first_line
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection

ROW = '"perfkit row"'
_INTEGERS = ("smallint", "integer", "bigint")
_NUMBERS = (*_INTEGERS, "numeric", "real", "double precision", "money")
_SPANS = ("interval", "time without time zone")
_TIMES = ("timestamp without time zone", "timestamp with time zone", *_SPANS)
_TEXTS = ("text", "character varying", "character", '"char"', "name")
_ELEMENTS = 50  # most common elements of an array or document that are used
_ENDLESS = {"infinity", "-infinity", "nan"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """Context for drawing values: the server's quoting of literals, the seed, and the number of rows to spread over."""

    quote: Callable[[Any], str]
    seed: int
    spread: int

    def uniform(self, *purpose: object) -> str:
        """Return a number in [0, 1) that depends on the row and the purpose only."""
        return f"pg_temp.pk_uniform({ROW}, {self.quote('/'.join(map(str, (self.seed, *purpose))))})"

    def in_order(self, row: str = ROW) -> str:
        """Return the row's relative position among all rows, in (0, 1)."""
        return f"((({row} - 1) % {self.spread} + 0.5) / {self.spread})::double precision"

    def reordered(self, column: Mapping[str, Any]) -> str:
        """Return row numbers reordered to match the column's correlation with the physical order."""
        if column["correlation"] > 0.5 or self.spread < 2:
            return ROW
        other = f"{self.spread} + 1 - {ROW}"
        if column["correlation"] > -0.5:
            step = next(n for n in range(int(self.spread * 0.618) + 1, 2 * self.spread) if gcd(n, self.spread) == 1)
            other = f"(1 + {ROW}::bigint * {step} % {self.spread})::integer"
        return f"(CASE WHEN {ROW} <= {self.spread} THEN {other} ELSE {ROW} END)"

    def ordered(self, column: Mapping[str, Any]) -> str:
        """Return a uniform number in [0, 1), correlated with the row order as the column's values are."""
        name, correlation = column["column"], column["correlation"]
        free = self.uniform("place", name)
        if abs(correlation) < 0.05:
            return free
        along = self.in_order() if correlation > 0 else f"1 - {self.in_order()}"
        return f"CASE WHEN {self.uniform('order', name)} < {abs(correlation)} THEN {along} ELSE {free} END"

    def or_null(self, column: Mapping[str, Any], purpose: object, value: str) -> str:
        """Return the value, or NULL as often as the column has NULLs."""
        if column["not_null"] or not column["null_frac"]:
            return value
        return f"CASE WHEN {self.uniform('null', purpose)} < {column['null_frac']} THEN NULL ELSE {value} END"

    def array(self, texts: Sequence[str]) -> str:
        """Return a constant array of text."""
        return f"({self.quote(list(texts))}::text[])"


def distinct(column: Mapping[str, Any], rows: int) -> int:
    """Return how many distinct values a column with `rows` rows should have; 0 if unknown."""
    number = float(column["n_distinct"])
    return round(min(rows, number if number > 0 else -number * rows))


def _levels(wanted: int, rows: float) -> int:
    """Return the number of values to draw from so that about `wanted` of them appear in `rows` draws."""
    low, high = wanted, 64 * wanted
    while low < high:
        middle = (low + high) // 2
        appear = middle * -expm1(-rows / middle)
        low, high = (middle + 1, high) if appear < wanted else (low, middle)
    return low


def common(draw: Drawing, column: Mapping[str, Any], values: str, many: int, rest: str | None) -> str:
    """Return one of `many` common values with the column's frequencies, otherwise `rest`."""
    present = max(1e-9, 1 - column["null_frac"])
    sums = list(accumulate(frequency / present for frequency in column["frequencies"][:many]))
    drawn = draw.uniform("common", column["column"])
    scaled = drawn if rest else f"{drawn} * {sums[-1]}"
    bucket = f"width_bucket({scaled}, {draw.quote(sums)}::double precision[])"
    picked = f"{values}[least({many}, 1 + {bucket})]"
    return f"CASE WHEN {drawn} < {sums[-1]} THEN {picked} ELSE {rest} END" if rest else picked


def value(draw: Drawing, column: Mapping[str, Any], unique: bool) -> str:
    """Return an expression for a column: a different value for each row if unique, else by its statistics."""
    every = (1 - column["null_frac"]) * 0.99
    own = unique or (not column["common"] and -column["n_distinct"] >= every)
    found = (_unique(draw, column) if own else None) or _fitted(draw, column) or _plain(draw, column)
    return draw.or_null(column, column["column"], f"({found})::{column['full_type']}")


def _fitted(draw: Drawing, column: Mapping[str, Any]) -> str | None:
    """Return a common value or a value from the histogram; None if the column has neither."""
    values, bounds = column["common"], _bounds(column)
    full = column["full_type"]
    rest = None
    if len(bounds) > 1:
        drawn = draw.spread * max(0.0, 1 - column["null_frac"] - sum(column["frequencies"]))
        wanted = distinct(column, draw.spread) - len(values)
        levels = max(_levels(wanted, drawn) if wanted > 0 else 0, len(bounds) - 1)
        level = f"floor({draw.ordered(column)} * {levels})::bigint"
        rest = _between(draw, column, bounds, f"(({level} + 0.5) / {levels})", level, levels)
    if values:
        picked = common(draw, column, draw.array(values), len(values), None if rest is None else f"({rest})::text")
        return f"({picked})::{full}"
    return rest


def _bounds(column: Mapping[str, Any]) -> list[str]:
    return [bound for bound in column["bounds"] if bound.lower() not in _ENDLESS]


def _between(
    draw: Drawing, column: Mapping[str, Any], bounds: Sequence[str], place: str, level: str, levels: int
) -> str:
    """Return the value at a position in [0, 1) of a histogram; interpolate if the type allows it."""
    kind, full = column["type"], column["full_type"]
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


def _own_text(draw: Drawing, column: Mapping[str, Any], text: str, suffix: str) -> str:
    """Return a text of about the same length and beginning that ends in the suffix."""
    kept = f"greatest(length({text}) - length({suffix}), length({text}) / 2)"
    if column["most"]:
        kept = f"greatest(0, least({kept}, {column['most']} - length({suffix})))"
    return f"left({text}, {kept}) || {suffix}"


def _unique(draw: Drawing, column: Mapping[str, Any]) -> str | None:
    """Return a different value for every row; None for types without a rule."""
    kind, bounds = column["type"], _bounds(column)
    row = draw.reordered(column)
    if labels := column["labels"]:
        return f"{draw.array(labels)}[{row}]"
    if draw.spread <= len(bounds) and not column["null_frac"]:
        return f"{draw.array(bounds)}[{row}]"
    if kind == "uuid":
        return f"md5({draw.quote(str(draw.seed))} || {row})::uuid"
    if kind in _TEXTS and (column["most"] or 99) < 8:
        return f"lpad(to_hex({row}), {column['most']}, '0')"
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


def _plain(draw: Drawing, column: Mapping[str, Any]) -> str:
    """Return a value for a column without statistics, as wide columns are; NULL for types without a rule."""
    kind, drawn = column["type"], draw.uniform("plain", column["column"])
    number = f"floor({drawn} * 1000)::integer"
    text = f"rpad('value ' || {number}, greatest(9, {column['width']}), 'x')"
    if labels := column["labels"]:
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


def _elements(draw: Drawing, column: Mapping[str, Any]) -> str:
    """Return an array that contains each of the most common elements with its frequency."""
    known = sorted(zip(column["element_frequencies"], column["elements"], strict=False), reverse=True)[:_ELEMENTS]
    if not known:
        return "'{}'"
    texts = draw.array([text for _, text in known])
    often = f"{draw.quote([frequency for frequency, _ in known])}::double precision[]"
    kind = "text" if column["type"] == "tsvector" else column["full_type"].removesuffix("[]")
    return (
        f"ARRAY(SELECT element::{kind} FROM unnest({texts}, {often}) AS known (element, often) "
        f"WHERE pg_temp.pk_uniform({ROW}, element || {draw.quote(str(draw.seed))}) < often)"
    )


# Rows generated in the server itself, to fit the planner's statistics of the source.

_WHOLE = 1000  # tables with at most this many rows keep their size
_SPARE = 3  # candidates per row if some may not fit
_GOLDEN = 0.6180339887  # its multiples modulo 1 spread evenly
_PLACE = '"perfkit place"'  # the position of a row among those that a key can refer to

Described = Mapping[str, Any]  # a row of a catalogue query


@dataclass(frozen=True, slots=True)
class ValueSource:
    """Catalogue data of the source's tables by quoted name, and the number of rows to generate."""

    tables: Mapping[str, Described]
    columns: Mapping[str, Sequence[Described]]
    keys: Sequence[Described]
    uniques: Mapping[str, Sequence[Described]]
    counts: Mapping[str, int]


def rows(read: Connection, write: Connection, wanted: int, seed: int, progress: Callable[[str], None]) -> list[str]:
    """Fill every table, parents first; return descriptions of what could not be kept.

    Read only the catalogue of the source. Its most common values and histogram bounds are real values.
    """
    write.execute(catalog.get("copy_helpers").encode())
    source = _described(read, write, wanted)
    order = _parents_first(source)
    missing = [
        f"statistics of {table}, which was never analysed: its rows are a guess"
        for table, row in source.tables.items()
        if row["unknown"]
    ]
    later: list[tuple[str, Described]] = []
    filled: set[str] = set()
    for number, table in enumerate(order, 1):
        progress(f"generating rows: {table} ({number} of {len(order)})")
        keys = [key for key in source.keys if key["child"] == table]
        later += [(table, key) for key in keys if not filled.issuperset(key["parents"])]
        earlier = [key for key in keys if filled.issuperset(key["parents"])]
        missing += _fill(write, source, table, earlier, seed)
        filled.add(table)
    for table, key in later:
        _refer(write, source, table, key, seed)
    write.execute(b"DROP FUNCTION pg_temp.pk_uniform(bigint, text)")
    return missing


def _described(read: Connection, write: Connection, wanted: int) -> ValueSource:
    # The bounds of a hash partition contain the table's oid, so they come from the copy.
    bounds = {row["table"]: row["bounds"] for row in catalog.rows(write, "copy_tables")}
    found = [row for row in catalog.rows(read, "copy_tables") if row["table"] in bounds]
    tables = {row["table"]: {**row, "bounds": bounds[row["table"]]} for row in found}
    share = min(1.0, wanted / max([1, *(row["rows"] for row in tables.values())]))
    keys = [key for key in catalog.rows(read, "copy_foreign_keys") if tables.keys() >= {key["child"], *key["parents"]}]
    columns, uniques = (
        {table: [row for row in described if row["table"] == table] for table in tables}
        for described in (catalog.rows(read, "copy_columns"), catalog.rows(read, "copy_uniques"))
    )
    counts = {table: max(min(row["rows"], _WHOLE), round(row["rows"] * share)) for table, row in tables.items()}
    return ValueSource(tables, columns, keys, uniques, counts)


def _parents_first(source: ValueSource) -> list[str]:
    """Return tables after those that they refer to; break a cycle anywhere."""
    order: list[str] = []
    left = list(source.tables)
    while left:
        waiting = {key["child"] for key in source.keys if (set(key["parents"]) - {key["child"]}) & set(left)}
        free = [table for table in left if table not in waiting]
        order += free or left[:1]
        left = [table for table in left if table not in order]
    return order


def _fill(write: Connection, source: ValueSource, table: str, keys: Sequence[Described], seed: int) -> list[str]:
    """Insert the rows; drop constraints that they violate, and return their names."""
    count = source.counts[table]
    if not count:
        return []
    statement = f"INSERT INTO {table} SELECT FROM generate_series(1, {count})"  # a table without columns
    if source.columns[table]:
        statement = _insert(write, source, table, keys, seed)
    missing: list[str] = []
    while True:
        try:
            write.execute(statement.encode())
            return missing
        except (psycopg.errors.CheckViolation, psycopg.errors.NotNullViolation) as error:
            missing.append(_drop_broken(write, table, error))
        except psycopg.Error as error:
            raise ServerError(f"rows of {table} could not be generated: {first_line(error)}") from None


def _drop_broken(write: Connection, table: str, error: psycopg.Error) -> str:
    """Drop the constraint that an error names; return its description."""
    diag = error.diag
    owner: sql.Composable
    if diag.datatype_name:
        owner = sql.Identifier(diag.schema_name or "public", diag.datatype_name)
        kind, where = sql.SQL("DOMAIN"), f"domain {diag.datatype_name}"
    else:
        kind, owner, where = sql.SQL("TABLE"), sql.SQL(table), table
    if isinstance(error, psycopg.errors.NotNullViolation):
        column = sql.SQL("ALTER COLUMN {} ").format(sql.Identifier(diag.column_name or ""))
        change = sql.SQL("{}DROP NOT NULL").format(sql.SQL("") if diag.datatype_name else column)
        name = f"NOT NULL of {diag.column_name or 'every column'}"
    else:
        name = f"constraint {diag.constraint_name}"
        change = sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(diag.constraint_name or ""))
        if not diag.datatype_name:
            found = write.execute(catalog.get("copy_check_owner"), [table, diag.constraint_name]).fetchone()
            owner = sql.SQL(found["table"] if found else table)
    write.execute(sql.SQL("ALTER {} {} {}").format(kind, owner, change))
    return f"{name} of {where}, which generated rows violate"


def _insert(write: Connection, source: ValueSource, table: str, keys: Sequence[Described], seed: int) -> str:
    """Return the statement that generates the rows, from extra candidates if some will not fit."""
    count, bounds, uniques = source.counts[table], source.tables[table]["bounds"], source.uniques[table]
    columns = {column["column"]: column for column in source.columns[table]}
    moduli = re.findall(r"satisfies_hash_partition\('\d+'::oid, (\d+),", bounds or "")
    spread = count * prod(map(int, moduli))
    draw = Drawing(lambda given: sql.Literal(given).as_string(write), seed, spread)
    alone = {unique["columns"][0] for unique in uniques if len(unique["columns"]) == 1 and not unique["predicate"]}
    taken: dict[str, str] = {}
    joins, conditions = "", []
    for number, key in enumerate(keys):
        reference = _reference(write, source, draw, number, key, taken)
        joins += reference.join
        taken |= reference.values
        conditions.append(reference.condition)
    own = {name: value(draw, column, name in alone) for name, column in columns.items() if name not in taken}
    given = own | taken
    spare = _SPARE if bounds or any(len(unique["columns"]) > 1 or unique["predicate"] for unique in uniques) else 1
    numbered, first = "", ""
    for number, unique in enumerate(uniques):
        numbered += f", {_number(unique)} AS {_name('unique', number)}"
        first += f" AND {_name('unique', number)} = 1"
    listed = ", ".join(f"{expression} AS {name}" for name, expression in given.items())
    return (
        f"INSERT INTO {table} ({', '.join(given)}) OVERRIDING SYSTEM VALUE SELECT {', '.join(given)} FROM ("
        f"SELECT * FROM (SELECT *{numbered} FROM (SELECT {ROW}, {listed} "
        f"FROM (SELECT generate_series(1, {spread * spare}) AS {ROW}) made{joins}"
        f" WHERE {' AND '.join(['true', *filter(None, conditions)])}) candidate WHERE {bounds or 'true'}) numbered "
        # A candidate that replaces another one takes its position, so that the rows keep their order.
        f"WHERE true{first} ORDER BY {ROW} LIMIT {count}) chosen ORDER BY ({ROW} - 1) % {spread}, {ROW}"
    )


def _name(what: str, number: int) -> str:
    """Return an identifier that no column has."""
    return f'"perfkit {what} {number}"'


def _number(unique: Described) -> str:
    """Return the number of rows up to this one that a unique index considers equal."""
    keys = [f"({key})" for key in unique["columns"]]
    counted = [f"({unique['predicate']})"] if unique["predicate"] else []
    if not unique["nulls_equal"]:
        counted += [f"{key} IS NOT NULL" for key in keys]
    counted = counted or ["true"]
    same = ", ".join([*keys, *counted])
    return f"CASE WHEN {' AND '.join(counted)} THEN row_number() OVER (PARTITION BY {same} ORDER BY {ROW}) ELSE 1 END"


@dataclass(frozen=True, slots=True)
class CopiedReference:
    """How rows get the columns of a foreign key: a join, the new columns' values, and a condition or ""."""

    join: str
    values: Mapping[str, str]
    condition: str


def _reference(
    write: Connection, source: ValueSource, draw: Drawing, number: int, key: Described, taken: Mapping[str, str]
) -> CopiedReference:
    """Return a reference to a parent row for each new row; columns that are already `taken` must agree."""
    columns = {column["column"]: column for column in source.columns[key["child"]]}
    pairs = list(zip(key["columns"], key["parent_columns"], strict=True))
    shared = {parent: taken[name] for name, parent in pairs if name in taken}
    new = [name for name, _ in pairs if name not in taken]
    optional = not all(columns[name]["not_null"] for name in new)
    p, groups = f"p{number}", f"g{number}"
    condition = "" if new and optional else f"{p}.{_PLACE} IS NOT NULL"
    if shared:
        by, drawn = ", ".join(shared), draw.uniform("parent", number, *key["columns"])
        join = (
            f" LEFT JOIN (SELECT {by}, count(*) AS rows FROM {key['parent_rows']} GROUP BY {by}) {groups}"
            f" ON {_equal(groups, shared)} LEFT JOIN {_numbered_rows(key, by)} {p}"
            f" ON {_equal(p, shared)} AND {p}.{_PLACE} = 1 + floor({drawn} * {groups}.rows)::bigint"
        )
        if condition:  # a key that contains NULL refers to no row
            condition = f"({' OR '.join([condition, *(f'{value} IS NULL' for value in shared.values())])})"
    else:
        join = f" LEFT JOIN {_numbered_rows(key)} {p} ON {p}.{_PLACE} = {_position(write, source, draw, key)}"
    values = {
        name: draw.or_null(columns[name], f"key {number}", f"{p}.{parent}") for name, parent in pairs if name in new
    }
    return CopiedReference(join, values, condition)


def _equal(alias: str, shared: Mapping[str, str]) -> str:
    return " AND ".join(f"{alias}.{parent} = {value}" for parent, value in shared.items())


def _numbered_rows(key: Described, by: str = "") -> str:
    """Return the rows that a key can refer to, numbered from 1 in physical order, by group if given."""
    group = f"PARTITION BY {by} " if by else ""
    complete = " AND ".join(f"{column} IS NOT NULL" for column in key["parent_columns"])
    return (
        f"(SELECT {', '.join(key['parent_columns'])}, row_number() OVER ({group}ORDER BY tableoid, ctid) "
        f"AS {_PLACE} FROM {key['parent_rows']} WHERE {complete})"
    )


def _position(write: Connection, source: ValueSource, draw: Drawing, key: Described) -> str:
    """Return the position of the parent row, with the frequencies and number of values of the child's statistics."""
    found = write.execute(f"SELECT count(*) AS n FROM {_numbered_rows(key)} p".encode()).fetchone()
    parents = (found or {"n": 0})["n"]
    ones = set(key["columns"])
    if any(ones.issuperset(unique["columns"]) and not unique["predicate"] for unique in source.uniques[key["child"]]):
        return f"1 + floor({draw.in_order()} * {parents})::bigint"
    parent_of = dict(zip(key["columns"], key["parent_columns"], strict=True))
    candidates = [column for column in source.columns[key["child"]] if column["column"] in parent_of]
    column = max(candidates, key=lambda column: distinct(column, draw.spread))
    parent = parent_of[column["column"]]
    there = max(1, sum(source.tables[table]["rows"] for table in key["parents"]))
    number = column["n_distinct"]
    referred = max(1, round(number / there * parents if number > 0 else -number * draw.spread)) if number else parents
    values = column["common"]
    rest = max(1, min(parents, referred) - len(values))
    level = f"floor({draw.ordered(column)} * {rest})"
    position = f"1 + floor(({level} + 0.5) * {parents} / {rest})::bigint"
    if not values or not parents:
        return position
    # The row with the same value if the parent has one, else any row, but a different one for each value.
    known = f"SELECT {parent}::text AS value, {_PLACE} AS n FROM {_numbered_rows(key)} p"
    numbers = write.execute(f"{known} WHERE {parent}::text = ANY ({draw.array(values)})".encode())
    same = {row["value"]: row["n"] for row in numbers}
    places = [same.get(text, 1 + int((n + 1) * _GOLDEN % 1 * parents)) for n, text in enumerate(values)]
    complete = sum(column["frequencies"]) / max(1e-9, 1 - column["null_frac"]) > 0.999
    return common(draw, column, f"({draw.quote(places)}::bigint[])", len(places), None if complete else position)


def _refer(write: Connection, source: ValueSource, table: str, key: Described, seed: int) -> None:
    """Set the columns of a key that refers to the table itself or to a table that was filled later.

    Within one table a row refers to an earlier row, so that there is no cycle of rows.
    """
    fixed = {column for unique in source.uniques[table] for column in unique["columns"]}
    fixed |= {c for other in source.keys if other["child"] == table and other is not key for c in other["columns"]}
    taken = {name: f"r.{name}" for name in key["columns"] if name in fixed}
    if len(taken) == len(key["columns"]):
        taken = {}
    draw = Drawing(lambda given: sql.Literal(given).as_string(write), seed, max(1, source.counts[table]))
    reference = _reference(write, source, draw, 0, key, taken)
    shared = [parent for name, parent in zip(key["columns"], key["parent_columns"], strict=True) if name in taken]
    group = f"PARTITION BY {', '.join(shared)} " if shared else ""
    join = reference.join
    if key["parents"] == [table]:
        nullable = not all(c["not_null"] for c in source.columns[table] if c["column"] in reference.values)
        equal = _equal("p0", {parent: f"r.{parent}" for parent in shared}) or "true"
        join = (
            f" LEFT JOIN {_numbered_rows(key, ', '.join(shared))} p0 ON {equal} AND p0.{_PLACE} "
            f"= 1 + floor({draw.uniform('earlier', *key['columns'])} * (r.{_PLACE} - 1))::bigint"
            f" AND p0.{_PLACE} {'<' if nullable else '<='} r.{_PLACE}"
        )
    changes = ", ".join(f"{name} = {expression}" for name, expression in reference.values.items())
    write.execute(
        (
            f"UPDATE ONLY {table} child SET {changes} FROM (SELECT ctid AS {_name('row', 0)}, *, row_number() OVER "
            f"(ORDER BY ctid) AS {ROW}, row_number() OVER ({group}ORDER BY ctid) AS {_PLACE} FROM ONLY {table}) r"
            f"{join} WHERE child.ctid = r.{_name('row', 0)}"
        ).encode()
    )
    write.execute(f"VACUUM (FULL) {table}".encode())
