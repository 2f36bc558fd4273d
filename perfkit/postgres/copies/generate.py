"""Rows made up, in the server itself, to fit what the planner's statistics say about the source's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from perfkit.postgres import catalog
from perfkit.postgres.site import Connection

_LEAST = 10  # rows of a table that the planner knows nothing about
_NUMBERS = {"smallint", "integer", "bigint", "numeric", "real", "double precision"}
_TIMES = {"date", "timestamp without time zone", "timestamp with time zone"}
# Where nothing is known: a value from `u`, uniform in [0, 1).
_PLAIN = {
    **dict.fromkeys(_NUMBERS, "(u * 1000)::integer"),
    **dict.fromkeys(_TIMES, "timestamp '2024-01-01' + u * interval '365 days'"),
    "boolean": "u < 0.5",
    "uuid": "md5(u::text)::uuid",
    "json": "'{}'",
    "jsonb": "'{}'",
}
_UNIQUE = {
    **dict.fromkeys(_NUMBERS, "g"),
    **dict.fromkeys(_TIMES, "timestamp '2000-01-01' + g * interval '1 minute'"),
    "uuid": "md5(g::text)::uuid",
}
_TEXTS = ("text", "character varying", "character", "bpchar", "name")


def rows(read: Connection, write: Connection, wanted: int, seed: int, progress: Callable[[str], None]) -> list[str]:
    """Fill every table, parents first; returns what could not be kept, in words.

    Of the source only pg_stats is read, whose most common values and histogram bounds are real values.
    """
    columns = read.execute(catalog.get("copy_columns").encode()).fetchall()
    keys = read.execute(catalog.get("copy_foreign_keys").encode()).fetchall()
    uniques = read.execute(catalog.get("copy_uniques").encode()).fetchall()
    counts = {row["table"]: row["rows"] for row in columns}
    share = min(1.0, wanted / max([1, *counts.values()]))
    missing: list[str] = []
    order = _parents_first(list(counts), keys)
    for number, table in enumerate(order, 1):
        progress(f"making up rows: {table} ({number} of {len(order)})")
        own = [row for row in columns if row["table"] == table and not row["generated"]]
        refs = [key for key in keys if key["child"] == table and key["parent"] in order[: number - 1]]
        unique = [row["columns"] for row in uniques if row["table"] == table]
        count = max(_LEAST, round(counts[table] * share))
        missing += _fill(write, table, own, refs, unique, count, seed)
        _require_unique(write, table, unique)
    return missing


def _parents_first(tables: Sequence[str], keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tables after those they refer to; a circle is broken anywhere."""
    order: list[str] = []
    left = list(tables)
    while left:
        free = [
            table for table in left
            if not any(k["child"] == table and k["parent"] in left and k["parent"] != table for k in keys)
        ]  # fmt: skip
        order += free or left[:1]
        left = [table for table in left if table not in order]
    return order


def _fill(
    write: Connection,
    table: str,
    columns: Sequence[Mapping[str, Any]],
    keys: Sequence[Mapping[str, Any]],
    unique: Sequence[Sequence[str]],
    count: int,
    seed: int,
) -> list[str]:
    """Insert the rows; a CHECK constraint that they break is dropped and named."""
    referring = {column for key in keys for column in key["columns"]}
    alone = {group[0] for group in unique if len(group) == 1}
    own = [column for column in columns if column["column"] not in referring]
    names = [column["column"] for column in own]
    values = [_value(write, column, seed, column["column"] in alone) for column in own]
    joins = ""
    for number, key in enumerate(keys):
        names += key["columns"]
        values += [f"p{number}.{parent}" for parent in key["parent_columns"]]
        joins += _join(write, number, key, seed)
    statement = (
        f"INSERT INTO {table} ({', '.join(names)}) OVERRIDING SYSTEM VALUE "
        f"SELECT {', '.join(values)} FROM generate_series(1, {count}) g{joins}"
    )
    missing: list[str] = []
    while True:
        try:
            write.execute(statement.encode())
            return missing
        except psycopg.errors.CheckViolation as error:
            name = error.diag.constraint_name or ""
            drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(sql.SQL(table), sql.Identifier(name))
            write.execute(drop)
            missing.append(f"constraint {name} of {table}, which made-up rows do not meet")


def _uniform(write: Connection, *purpose: object) -> str:
    """A number in [0, 1) for row `g` that the purpose alone decides."""
    return f"pg_temp.pk_uniform(g, {_literal(write, '/'.join(map(str, purpose)))})"


def _join(write: Connection, number: int, key: Mapping[str, Any], seed: int) -> str:
    """A random row of the parent for each new one; the earlier ones more often, as foreign keys usually are."""
    parent, name = key["parent"], f"p{number}"
    place = f"power({_uniform(write, seed, number, *key['columns'])}, 1.5) * (SELECT count(*) FROM {parent})"
    return (
        f" LEFT JOIN (SELECT *, row_number() OVER () AS rn FROM {parent}) {name}"
        f" ON {name}.rn = 1 + floor({place})::bigint"
    )


def _value(write: Connection, column: Mapping[str, Any], seed: int, unique: bool) -> str:
    """An expression of `g`, the number of the row, for one column."""
    kind, full, name = column["type"], column["full_type"], column["column"]
    if unique:
        text = "'v' || g" if kind in _TEXTS else _UNIQUE.get(kind, "g")
        return f"({text})::{full}"
    known = _fitted(write, column)
    if known is None:
        plain = _PLAIN.get(kind) or ("'value ' || (u * 1000)::integer" if kind in _TEXTS else "")
        if labels := column["labels"]:
            plain = f"({_literal(write, labels)}::text[])[1 + floor(u * {len(labels)})::integer]"
        known = f"({plain})::{full}" if plain else "NULL"
    if column["null_frac"] and not column["not_null"]:
        nothing = f"{_uniform(write, seed, 'null', name)} < {column['null_frac']}"
        known = f"CASE WHEN {nothing} THEN NULL ELSE {known} END"
    return f"(SELECT {known} FROM (SELECT {_uniform(write, seed, name)} AS u) d)"


def _fitted(write: Connection, column: Mapping[str, Any]) -> str | None:
    """A value as common as the statistics say: one of the most common, or from the histogram."""
    common, bounds = column["common"] or [], column["bounds"] or []
    if not common and len(bounds) < 2:
        return None
    full = column["full_type"]
    total = sum(column["frequencies"] or []) / max(1e-9, 1 - (column["null_frac"] or 0.0))
    rest = _between(write, column["type"], full, bounds, total) if len(bounds) > 1 else None
    if not common:
        return rest
    sums, running = [], 0.0
    for frequency in column["frequencies"]:
        running += frequency / max(1e-9, 1 - (column["null_frac"] or 0.0))
        sums.append(running)
    picked = (
        f"({_literal(write, common)}::text[])[least({len(common)}, 1 + width_bucket((u * {1 if rest else sums[-1]})"
        f"::double precision, {_literal(write, sums)}::double precision[]))]::{full}"
    )
    return f"CASE WHEN u < {total} THEN {picked} ELSE {rest} END" if rest else picked


def _between(write: Connection, kind: str, full: str, bounds: Sequence[str], taken: float) -> str:
    """A value between two neighbouring bounds of the histogram, or one of them where there is no between."""
    buckets = len(bounds) - 1
    place = f"(greatest(0, least(0.999999, (u - {taken}) / {max(1e-9, 1 - taken)})) * {buckets})"
    array = f"({_literal(write, list(bounds))}::text[])"
    low, high = (f"{array}[{n} + floor({place})::integer]::{full}" for n in (1, 2))
    if kind in _NUMBERS or kind in _TIMES:
        step = f"({place} - floor({place}))"
        if kind == "date":
            return f"({low} + floor({step} * ({high} - {low}))::integer)"
        return f"({low} + {step} * ({high} - {low}))::{full}"
    return low


def _require_unique(write: Connection, table: str, unique: Sequence[Sequence[str]]) -> None:
    """Remove rows that a unique constraint would refuse."""
    for columns in unique:
        statement = (
            f"DELETE FROM {table} a USING (SELECT ctid, row_number() OVER (PARTITION BY {', '.join(columns)}) AS n "
            f"FROM {table}) d WHERE a.ctid = d.ctid AND d.n > 1"
        )
        write.execute(statement.encode())


def _literal(write: Connection, value: Any) -> str:
    return sql.Literal(value).as_string(write)
