"""An index for a condition: equality first, then the order that is wanted, then one range."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perfkit.explain.conditions import Predicate
from perfkit.explain.facts import Index, TableFacts
from perfkit.postgres.keywords import KEYWORDS

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An index that would serve a condition: the statement, or the index that is there already."""

    sql: str
    columns: tuple[str, ...]
    existing: Index | None = None


def candidate(
    schema: str, relation: str, conditions: Iterable[Predicate], table: TableFacts | None, order: Sequence[str] = ()
) -> Candidate | None:
    """An index on the columns that are compared as they are; None where nothing in the conditions can use one.

    `order` are columns wanted in this order after the equality columns. An index of the same leading columns is
    returned as existing, one that is broken or partial is not.
    """
    usable = [(column, p) for p in conditions if (column := comparable(p, table))]
    equal = list(dict.fromkeys(column for column, p in usable if p.equality))
    if table:
        equal.sort(key=lambda name: -distinct(table, name))
    ranged = [(column, p) for column, p in usable if (p.range or p.prefix) and column not in equal]
    last = [name for name in order if name not in equal] or [column for column, _ in ranged[:1]]
    if not (columns := (*equal, *last)):
        return None
    keys = [quoted(name) for name in columns]
    if not order and ranged and ranged[0][1].prefix:
        keys[-1] += " text_pattern_ops"
    where = f"{quoted(schema)}.{quoted(relation)}" if schema not in ("", "public") else quoted(relation)
    return Candidate(f"CREATE INDEX ON {where} ({', '.join(keys)})", columns, _existing(table, keys, len(equal)))


def comparable(predicate: Predicate, table: TableFacts | None) -> str:
    """The column whose plain index serves a condition; "" where none would.

    PostgreSQL compares varchar as text and prints a cast, which costs nothing and blocks no index.
    """
    if predicate.column or predicate.cast != "text":
        return predicate.column
    (name,) = predicate.columns
    column = table.column(name) if table else None
    return name if column is None or column.type.startswith("character varying") else ""


def quoted(name: str) -> str:
    """Return a name as PostgreSQL's quote_ident writes it.

    >>> quoted("visits"), quoted("Day"), quoted("order"), quoted("left"), quoted("a$b")
    ('visits', '"Day"', '"order"', '"left"', '"a$b"')
    """
    plain = _PLAIN.fullmatch(name) and name not in KEYWORDS
    return name if plain else '"' + name.replace('"', '""') + '"'


def _existing(table: TableFacts | None, keys: Sequence[str], equal: int) -> Index | None:
    """A whole, valid B-tree that begins with these keys; those for equality in any order."""
    for index in table.indexes if table else ():
        begins = [re.sub(r" (ASC|DESC)?( NULLS \w+)?$", "", key) for key in index.keys[: len(keys)]]
        same = set(begins[:equal]) == set(keys[:equal]) and begins[equal:] == list(keys[equal:])
        if index.method == "btree" and index.valid and not index.predicate and same and len(begins) == len(keys):
            return index
    return None


def distinct(table: TableFacts, name: str) -> float:
    """How many values a column has, as far as the statistics tell."""
    column = table.column(name)
    if column is None or column.distinct is None:
        return 0.0
    return column.distinct if column.distinct >= 0 else -column.distinct * table.rows
