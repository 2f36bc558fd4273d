"""A sample of every large table, with each row that a sampled row refers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from psycopg import IsolationLevel, sql

from perfkit.postgres import catalog
from perfkit.postgres.site import Connection

_BATCH = 10_000  # rows named in one statement
_WHOLE = 1000  # tables of no more rows are copied as they are

Row = tuple[str, str]  # table (quoted, with its schema) and ctid


def rows(read: Connection, write: Connection, wanted: int, seed: int, progress: Callable[[str], None]) -> None:
    """Copy about `wanted` rows of the largest table, of others in proportion, and all they refer to.

    Everything is read in one repeatable-read transaction. The constraints that come later prove the rest.
    """
    read.autocommit = False
    read.isolation_level = IsolationLevel.REPEATABLE_READ
    made = {row["table"] for row in catalog.rows(write, "copy_tables")}
    tables = {row["table"]: row for row in catalog.rows(read, "copy_tables") if row["table"] in made}
    keys = catalog.rows(read, "copy_foreign_keys")
    share = min(1.0, wanted / max([1, *(row["rows"] for row in tables.values())]))
    chosen: dict[str, set[str]] = {table: set() for table in tables}
    fresh = [(table, ctid) for table, row in tables.items() for ctid in _sampled(read, table, row["rows"], share, seed)]
    while fresh:
        by_table: dict[str, set[str]] = defaultdict(set)
        for table, ctid in fresh:
            by_table[table].add(ctid)
        new = {table: ctids - chosen[table] for table, ctids in by_table.items() if table in made}
        for table, ctids in new.items():
            chosen[table] |= ctids
        fresh = [row for key in keys for row in _referred(read, key, new.get(key["child"], ()))]
    for number, (table, ctids) in enumerate(chosen.items(), 1):
        progress(f"copying rows: {table} ({number} of {len(chosen)})")
        _transfer(read, write, table, tables[table]["columns"], ctids)
    read.rollback()


def _sampled(read: Connection, table: str, count: int, share: float, seed: int) -> list[str]:
    """The rows to begin with; a table that was never analysed counts as small."""
    query = f"SELECT ctid::text AS ctid FROM ONLY {table}"
    if count > _WHOLE and share < 1:
        percent = max(share, _WHOLE / count) * 100
        query += f" TABLESAMPLE BERNOULLI ({percent:.9f}) REPEATABLE ({seed})"
    return [row["ctid"] for row in read.execute(query.encode())]


def _referred(read: Connection, key: dict[str, Any], children: Iterable[str]) -> Iterator[Row]:
    """The rows that these rows of a child refer to by one foreign key."""
    pairs = " AND ".join(f"p.{p} = c.{c}" for p, c in zip(key["parent_columns"], key["columns"], strict=True))
    for batch in _batches(children):
        query = (
            "SELECT format('%I.%I', n.nspname, t.relname) AS name, f.ctid FROM "
            f"(SELECT DISTINCT p.tableoid, p.ctid::text FROM ONLY {key['child']} c JOIN {key['parent_rows']} p "
            f"ON {pairs} WHERE c.ctid = ANY ({_literal(read, batch)}::tid[])) f "
            "JOIN pg_class t ON t.oid = f.tableoid JOIN pg_namespace n ON n.oid = t.relnamespace"
        )
        for row in read.execute(query.encode()).fetchall():
            yield row["name"], row["ctid"]


def _transfer(read: Connection, write: Connection, table: str, columns: str | None, ctids: Iterable[str]) -> None:
    """Rows by their place, through COPY on both sides."""
    if columns is None:  # rows of nothing
        write.execute(f"INSERT INTO {table} SELECT FROM generate_series(1, {len(set(ctids))})".encode())
        return
    for batch in _batches(ctids):
        which = f"ctid = ANY ({_literal(read, batch)}::tid[])"
        out = f"COPY (SELECT {columns} FROM ONLY {table} WHERE {which}) TO STDOUT"
        with (
            read.cursor().copy(out.encode()) as source,
            write.cursor().copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as sink,
        ):
            for data in source:
                sink.write(data)


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    source = iter(sorted(items))
    while batch := list(islice(source, _BATCH)):
        yield batch


def _literal(connection: Connection, ctids: list[str]) -> str:
    return sql.Literal(ctids).as_string(connection)
