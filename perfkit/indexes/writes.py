"""Writes of an index lab: inserts, updates and deletes for the tables of a set, and what each index adds to them.

Inserted rows are copies of existing rows, with new values in unique columns. Deletes remove copies that every arm got
before its indexes were built, so that no other row refers to them. Updates repeat on a few rows, as in tables with hot
spots: only then does a page have room for HOT updates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal

import psycopg
from psycopg import sql

from perfkit.base.errors import first_line
from perfkit.load.schedule import MIN_TURNS
from perfkit.postgres import catalog, values
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import connected
from perfkit.postgres.index_sets import IndexStatement
from perfkit.postgres.servers import Server

ROWS, HOT_ROWS = 3000, 20  # rows that inserts and deletes draw from; rows that updates repeat on
SHARE, PASSES = 5, 3  # churn: percent of the rows to change in each pass, followed by VACUUM
_SALTS = {"insert": 0, "delete": ROWS}
Kind = Literal["insert", "delete", "update"]


@dataclass(frozen=True, slots=True)
class Write:
    """A statement that changes rows; `indexes` are those that it must update."""

    item: str  # its name as a query
    kind: Kind
    table: str
    column: str  # the updated column; "" for other kinds
    indexes: tuple[str, ...]
    sql: str
    source: str  # the SELECT that returns its parameters
    quoted: str  # the table
    quoted_column: str
    ms: float = 0.0  # approximate time of one statement without any of the indexes

    def times(self, most: int, seconds: float) -> int:
        """Return the number of statements that fit into a time, at most `most` and at least a few."""
        return max(MIN_TURNS, min(most, int(1000 * seconds / self.ms))) if self.ms else most

    @property
    def title(self) -> str:
        """Return its name for readers."""
        return f"{self.kind} of {self.column}" if self.column else self.kind


@dataclass(frozen=True, slots=True)
class Writes:
    """The writes to measure, the SQL that prepares every arm for them, and what cannot be measured, in sentences."""

    writes: tuple[Write, ...] = ()
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # with the indexes of the set on each
    prepare: str = ""
    lacking: tuple[str, ...] = ()


def design_writes(server: Server, database: str, indexes: Sequence[IndexStatement]) -> Writes:
    """Return the writes for the tables of a set, each tried and rolled back. Raises ServerError."""
    names = list(dict.fromkeys(index.table for index in indexes))
    by_table: list[Writes] = []
    with connected(server, database) as connection:
        rows = connection.execute(catalog.get("write_tables").encode(), {"tables": names}).fetchall()
        oids = {row["given"]: row["oid"] for row in rows}
        for number, row in enumerate(sorted(rows, key=lambda row: names.index(row["given"])), 1):
            of_table = [index for index in indexes if oids.get(index.table, row["oid"]) == row["oid"]]
            columns = tuple(_Column(**column) for column in row["columns"])
            facts = _TableFacts(
                row["table"], row["quoted"], row["rows"], columns, row["keys"] or [[]], row["uniques"] or [],
                row["indexed"], row["foreign_keys"],
            )  # fmt: skip
            by_table.append(_tried(connection, _TableWrites(f"t{number}", facts, of_table)))
    return Writes(
        tuple(write for writes in by_table for write in writes.writes),
        {table: names for writes in by_table for table, names in writes.tables.items()},
        "".join(writes.prepare for writes in by_table),
        tuple(line for writes in by_table for line in writes.lacking),
    )


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a table, as sql/catalog/write_tables.sql describes it."""

    number: int
    name: str
    quoted: str
    type: str
    base: str  # the type without its domain
    long: bool  # holds 32 characters
    generated: bool
    filled: bool  # few NULLs


@dataclass(frozen=True, slots=True)
class _TableFacts:
    """A table; the lists name columns by their numbers."""

    name: str
    quoted: str
    rows: int
    columns: tuple[_Column, ...]
    keys: Sequence[Sequence[int]]
    uniques: Sequence[Sequence[int] | None]
    indexed: Sequence[int]
    foreign_keys: Sequence[Sequence[int]]


class _TableWrites:
    """The maker of the writes for one table."""

    def __init__(self, short: str, facts: _TableFacts, indexes: Sequence[IndexStatement]) -> None:
        self.short, self.facts, self.indexes, self.name = short, facts, indexes, facts.name
        self.columns = {column.number: column for column in facts.columns}
        self.stored = [column for column in facts.columns if not column.generated]
        self.quoted = _doubled(facts.quoted)
        self.lacking: list[str] = []
        self.fresh: set[int] = set()  # columns that get new values in copies of rows
        self.key = facts.keys[0]
        self.foreign = {number for key in facts.foreign_keys for number in key}
        self.used = {
            index.name: self._mentioned(" ".join((*index.keys, *index.include, index.where))) for index in indexes
        }
        self.uniques: list[Sequence[int]] = [
            *(unique or [] for unique in facts.uniques),
            *(self._mentioned(" ".join(index.keys)) for index in indexes if index.unique),
        ]

    def writes(self) -> Writes:
        """Return the possible writes; their values come from the table's rows."""
        possible = (*self._new_rows(), *self._updates())
        copies = ""
        if any(write.kind == "delete" for write in possible):
            names = ", ".join(column.quoted for column in self.stored)
            values = ", ".join(self._value(column, "delete") for column in self.stored)
            copies = (
                f"INSERT INTO {self.facts.quoted} ({names}) OVERRIDING SYSTEM VALUE "
                f"SELECT {values} FROM {self._sample()} s;\n"
            )
        return Writes(possible, {self.name: tuple(self.used)}, copies, tuple(self.lacking))

    def _new_rows(self) -> Iterator[Write]:
        for unique in self.uniques:
            replaceable = [n for n in unique if n not in self.foreign and _replaceable(self.columns[n])]
            if not replaceable:
                names = ", ".join(self.columns[n].quoted for n in unique) or "an expression"
                self.lacking.append(
                    f"{self.name}: no insert or delete, because no new values can be generated for the unique ({names})"
                )
                return
            if not self.fresh & set(replaceable):
                self.fresh.add(replaceable[0])
        names = _doubled(", ".join(column.quoted for column in self.stored))
        values = ", ".join(f"%(c{c.number})s::{_doubled(c.type)}" for c in self.stored)
        insert = f"INSERT INTO {self.quoted} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"
        yield self._write("insert", None, tuple(self.used), insert, self._rows("insert", self.stored))
        if self.fresh and self.key:
            delete = f"DELETE FROM {self.quoted} WHERE {self._by_key()}"
            keys = [column for column in self.stored if column.number in self.key]
            yield self._write("delete", None, tuple(self.used), delete, self._rows("delete", keys))

    def _updates(self) -> Iterator[Write]:
        if not self.key:
            self.lacking.append(f"{self.name}: no update or delete, because it has no key")
            return
        several = {number for key in self.facts.foreign_keys if len(key) > 1 for number in key}
        fixed = {number for unique in self.uniques for number in unique} | several
        fixed |= {column.number for column in self.facts.columns if column.generated}
        chosen = []
        for index in self.indexes:
            # The last key first: dates and states change more often than owners of rows.
            parts = (*reversed(index.keys), *index.include, index.where)
            numbers = (number for part in parts for number in self._mentioned(part) if number not in fixed)
            if (number := next(numbers, None)) is not None:
                chosen.append(number)
            else:
                self.lacking.append(f"{index.name}: no update of its columns, because they are keys")
        busy = fixed.union(self.facts.indexed, *self.used.values(), self.foreign)
        spare = [column.number for column in self.facts.columns if column.number not in busy and column.filled]
        for number in dict.fromkeys([*spare[:1], *chosen]):
            names = tuple(name for name, used in self.used.items() if number in used)
            column = self.columns[number]
            yield self._write("update", column, names, self._update(column), self._changes(column))
        if not spare:
            self.lacking.append(f"{self.name}: no update of a column without an index, because there is none")

    def _update(self, column: _Column) -> str:
        quoted, kind = _doubled(column.quoted), _doubled(column.type)
        other = f"CASE WHEN {quoted}::text IS DISTINCT FROM %(a)s::text THEN %(a)s::text ELSE %(b)s::text END"
        return f"UPDATE {self.quoted} SET {quoted} = ({other})::{kind} WHERE {self._by_key()}"

    def _changes(self, column: _Column) -> str:
        """Return the SELECT of a few rows, each with its own value and the value of another row."""
        key, value = ", ".join(f"{self.columns[n].quoted}::text AS c{n}" for n in self.key), f"{column.quoted}::text"
        inner = f"SELECT {key}, {value} AS b, lead({value}) OVER () AS a FROM {self._sample()} s"
        return f"SELECT * FROM ({inner}) changed WHERE a <> b LIMIT {HOT_ROWS}"

    def _rows(self, kind: Kind, columns: Iterable[_Column]) -> str:
        values = ", ".join(f"({self._value(column, kind)})::text AS c{column.number}" for column in columns)
        return f"SELECT {values} FROM {self._sample()} s"

    def _value(self, column: _Column, kind: Kind) -> str:
        if column.number not in self.fresh:
            return f"s.{column.quoted}"
        return values.fresh(column.base, kind, column.quoted, self.facts.quoted, _SALTS[kind])

    def _sample(self) -> str:
        """Return a sample of about ROWS rows as SQL; the same rows for the same table."""
        share = min(100.0, 130.0 * ROWS / max(self.facts.rows, 1))
        order = ", ".join(self.columns[n].quoted for n in self.key)
        ordered = f" ORDER BY {order}" if order else ""
        sample = f"{self.facts.quoted} TABLESAMPLE BERNOULLI ({share:.6f}) REPEATABLE (1)"
        return f"(SELECT * FROM {sample}{ordered} LIMIT {ROWS})"

    def _by_key(self) -> str:
        columns = (self.columns[n] for n in self.key)
        return " AND ".join(f"{_doubled(c.quoted)} = %(c{c.number})s::{_doubled(c.type)}" for c in columns)

    def _mentioned(self, text: str) -> list[int]:
        """Return the numbers of the columns in an index's definition."""
        words = set(re.findall(r'"(?:[^"]|"")*"|[\w$]+', text))
        lower = {word.lower() for word in words}
        return [n for n, c in self.columns.items() if {c.quoted, c.name} & words or c.quoted in lower]

    def _write(self, kind: Kind, column: _Column | None, indexes: tuple[str, ...], text: str, source: str) -> Write:
        item = f"{self.short}-{kind}{f'-{column.number}' if column else ''}"
        name, quoted = (column.name, column.quoted) if column else ("", "")
        return Write(item, kind, self.name, name, indexes, text, source, self.facts.quoted, quoted)


def _replaceable(column: _Column) -> bool:
    return values.has_fresh(column.base) and column.long and not column.generated


def _doubled(text: str) -> str:
    """Return text for a psycopg query, in which a single percent sign begins a parameter."""
    return text.replace("%", "%%")


def _tried(connection: Connection, table: _TableWrites) -> Writes:
    """Try a table's writes; return those that the server accepts, and its messages on the others."""
    possible = table.writes()
    accepted: list[Write] = []
    lacking = list(possible.lacking)
    with connection.transaction(force_rollback=True):
        rows = {write.item: connection.execute(write.source.encode()).fetchmany(3) for write in possible.writes}
        copied = True
        try:
            with connection.transaction():
                connection.execute(possible.prepare.encode())
        except psycopg.Error as error:
            copied = False
            lacking.append(f"{table.name}: no delete ({first_line(error)})")
        for write in (write for write in possible.writes if copied or write.kind != "delete"):
            try:
                with connection.transaction(force_rollback=True):
                    start = perf_counter()
                    changed = [connection.execute(write.sql.encode(), row).rowcount for row in rows[write.item]]
                    ms = 1000 * (perf_counter() - start) / max(len(changed), 1)
            except psycopg.Error as error:
                lacking.append(f"{table.name}: no {write.title} ({first_line(error)})")
                continue
            if changed and all(changed):
                accepted.append(replace(write, ms=ms))
            else:
                lacking.append(f"{table.name}: no {write.title} (the table has no suitable rows)")
    prepare = possible.prepare if any(write.kind == "delete" for write in accepted) else ""
    return Writes(tuple(accepted), possible.tables, prepare, tuple(lacking))


@dataclass(frozen=True, slots=True)
class WriteCounts:
    """The server's counters over the statements of one write: WAL in bytes, updated rows, HOT updates, statements."""

    wal: float
    updated: float
    hot: float
    sent: int


@dataclass(frozen=True, slots=True)
class Churn:
    """An index's bytes before and after rows exchanged their values in one of its columns."""

    column: str
    before: int
    after: int


def counts(connection: Connection, write: Write, rows: Iterable[Mapping[str, object]]) -> WriteCounts:
    """Execute the statements of one write, and return what the server counted."""
    before, sent = _counters(connection, write), 0
    for row in rows:
        connection.execute(write.sql.encode(), row)
        sent += 1
    after = _counters(connection, write)
    return WriteCounts(after.wal - before.wal, after.updated - before.updated, after.hot - before.hot, sent)


def _counters(connection: Connection, write: Write) -> WriteCounts:
    connection.execute("SELECT pg_stat_force_next_flush()")
    [row] = connection.execute(catalog.get("written").encode(), {"table": write.quoted}).fetchall()
    return WriteCounts(**row, sent=0)


def churn(connection: Connection, name: str, writes: Sequence[Write]) -> Churn | None:
    """Let rows exchange their values in an index's column; return None if no write updates one of its columns."""
    update = next((w for w in reversed(writes) if w.kind == "update" and name in w.indexes), None)
    if update is None:
        return None
    before, column, table = _bytes(connection, name), update.quoted_column, update.quoted
    for number in range(PASSES):  # each pass changes other rows
        sample = f"SELECT ctid AS place, {column} AS own FROM {table} TABLESAMPLE BERNOULLI ({SHARE})"
        sample += f" REPEATABLE ({number})"
        pairs = f"SELECT place, lead(own) OVER (ORDER BY md5(place::text)) AS other FROM ({sample}) s"
        change = f"UPDATE {table} t SET {column} = p.other FROM ({pairs}) p"
        connection.execute(f"{change} WHERE t.ctid = p.place AND p.other IS NOT NULL".encode())
        connection.execute(sql.SQL("VACUUM {}").format(sql.SQL(table)))
    return Churn(update.column, before, _bytes(connection, name))


def _bytes(connection: Connection, name: str) -> int:
    return next(int(row["bytes"]) for row in catalog.rows(connection, "indexes") if row["name"] == name)
