"""Statements that change rows of a table, made from its catalogue: what an index costs where rows change.

Inserted rows are copies of rows that are there, with new values in what must be unique; deletes take copies that
every arm got before its indexes were built, so that nothing refers to them. Updates go round a few rows, as they
do in tables with hot spots: only then is there room on a page for an update that no index hears of (HOT).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import psycopg

from perfkit.indexes.statements import IndexStatement
from perfkit.load.plan import LEAST
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.site import Connection, Server
from perfkit.text import first_line

ROWS, HOT_ROWS = 3000, 20  # rows that inserts and deletes draw from; rows that updates go round
_DIGESTS = {"uuid": "md5('perfkit {0} ' || s.{1})::uuid", "text": "md5('perfkit {0} ' || s.{1})"}
_FRESH = {
    "uuid": _DIGESTS["uuid"],
    **dict.fromkeys(("text", "character varying"), _DIGESTS["text"]),
    **dict.fromkeys(("integer", "bigint"), "(SELECT max({1}) FROM {2}) + {3} + row_number() OVER ()"),
}
_SALTS = {"insert": 0, "delete": ROWS}


@dataclass(frozen=True, slots=True)
class Write:
    """One statement: `kind` is insert, delete or update, `indexes` those of the set that it must renew."""

    item: str  # its name as a query
    kind: str
    table: str
    column: str  # what is updated
    indexes: tuple[str, ...]
    sql: str
    source: str  # the SELECT of its parameters
    quoted: str  # the table
    quoted_column: str
    ms: float = 0.0  # that one takes without any of the indexes, about

    def times(self, most: int, seconds: float) -> int:
        """How many of them fit into a time, at least a few."""
        return max(LEAST, min(most, int(1000 * seconds / self.ms))) if self.ms else most

    @property
    def title(self) -> str:
        """As a reader knows it."""
        return f"{self.kind} of {self.column}" if self.column else self.kind


@dataclass(frozen=True, slots=True)
class Writes:
    """The statements, what every arm's database needs for them, and what cannot be measured, in words."""

    writes: tuple[Write, ...] = ()
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # with the indexes of the set on each
    prepare: str = ""
    lacking: tuple[str, ...] = ()


def design(site: Server, database: str, indexes: Sequence[IndexStatement]) -> Writes:
    """The statements for the tables of a set, each tried and rolled back. Raises ServerError."""
    tables = list(dict.fromkeys(index.table for index in indexes))
    found: list[Writes] = []
    with connected(site, database) as connection:
        facts = connection.execute(catalog.get("write_tables").encode(), {"tables": tables}).fetchall()
        given = {own["given"]: own["oid"] for own in facts}
        for number, table in enumerate(sorted(facts, key=lambda own: tables.index(own["given"])), 1):
            own = [index for index in indexes if given.get(index.table, table["oid"]) == table["oid"]]
            found.append(_tried(connection, _Table(f"t{number}", table, own)))
    return Writes(
        tuple(write for table in found for write in table.writes),
        {table: names for own in found for table, names in own.tables.items()},
        "".join(table.prepare for table in found),
        tuple(line for table in found for line in table.lacking),
    )


class _Table:
    """The statements for one table."""

    def __init__(self, short: str, facts: dict[str, Any], indexes: Sequence[IndexStatement]) -> None:
        self.short, self.facts, self.indexes = short, facts, indexes
        self.columns = {column["number"]: column for column in facts["columns"]}
        self.name: str = facts["table"]
        self.lacking: list[str] = []
        self.key: Sequence[int] = (facts["keys"] or [[]])[0]
        self.used = {
            index.name: self._mentioned(" ".join((*index.keys, *index.include, index.where))) for index in indexes
        }
        self.uniques: list[list[int]] = [
            *(unique or [] for unique in facts["uniques"] or ()),
            *(self._mentioned(" ".join(index.keys)) for index in indexes if index.unique),
        ]

    def writes(self) -> Writes:
        """What can be sent to it; the table's rows are what there is to choose from."""
        own = [write for write in (*self._new_rows(), *self._updates()) if write]
        inserts = self._new("delete") if any(write.kind == "delete" for write in own) else ""
        tables = {self.name: tuple(index.name for index in self.indexes)}
        return Writes(tuple(own), tables, inserts, tuple(self.lacking))

    def _new_rows(self) -> Iterator[Write]:
        foreign = {number for key in self.facts["foreign_keys"] for number in key}
        self.fresh: set[int] = set()
        for unique in self.uniques:
            able = [n for n in unique if self._replaceable(n) and n not in foreign]
            if not able:
                names = ", ".join(self.columns[n]["quoted"] for n in unique) or "an expression"
                self.lacking.append(
                    f"{self.name}: no insert or delete, for ({names}) must be unique and nothing in it can be made new"
                )
                return
            if not self.fresh & set(able):
                self.fresh.add(able[0])
        stored = self._stored()
        values = ", ".join(f"%(c{c['number']})s::{_doubled(c['type'])}" for c in stored)
        every = tuple(index.name for index in self.indexes)
        yield self._write(
            "insert",
            "",
            every,
            f"INSERT INTO {self._quoted()} ({self._names()}) OVERRIDING SYSTEM VALUE VALUES ({values})",
            self._rows("insert"),
        )
        if self.fresh and self.key:
            yield self._write(
                "delete",
                "",
                every,
                f"DELETE FROM {self._quoted()} WHERE {self._found()}",
                self._rows("delete", self.key),
            )

    def _updates(self) -> Iterator[Write]:
        if not self.key:
            self.lacking.append(f"{self.name}: no update or delete, for nothing identifies a row")
            return
        several = {number for key in self.facts["foreign_keys"] if len(key) > 1 for number in key}
        never = {number for unique in self.uniques for number in unique} | several
        touched: dict[int, list[str]] = {}
        for index in self.indexes:
            able = [n for n in self._by_key(index) if n not in never and not self.columns[n]["generated"]]
            if able:
                touched.setdefault(able[0], []).append(index.name)
            else:
                self.lacking.append(f"{index.name}: no update of its columns, for they are keys")
        held = {*self.facts["indexed"], *(n for used in self.used.values() for n in used)} | never
        foreign = {number for key in self.facts["foreign_keys"] for number in key}
        others = [n for n, c in self.columns.items() if n not in held | foreign and not c["generated"] and c["filled"]]
        for number in [*others[:1], *touched]:
            every = tuple(name for name, used in self.used.items() if number in used)
            yield self._write(
                "update", self.columns[number]["name"], every, self._update(number), self._changes(number)
            )
        if not others:
            self.lacking.append(f"{self.name}: no update of a column without an index, for there is none")

    def _update(self, number: int) -> str:
        quoted, kind = _doubled(self.columns[number]["quoted"]), _doubled(self.columns[number]["type"])
        other = f"CASE WHEN {quoted}::text IS DISTINCT FROM %(a)s::text THEN %(a)s::text ELSE %(b)s::text END"
        return f"UPDATE {self._quoted()} SET {quoted} = ({other})::{kind} WHERE {self._found()}"

    def _changes(self, number: int) -> str:
        """A few rows, each with its own value and another one."""
        column, key = (
            self.columns[number]["quoted"],
            ", ".join(f"{self.columns[n]['quoted']}::text AS c{n}" for n in self.key),
        )
        inner = f"SELECT {key}, {column}::text AS b, lead({column}::text) OVER () AS a FROM {self._sample()} s"
        return f"SELECT * FROM ({inner}) changed WHERE a <> b LIMIT {HOT_ROWS}"

    def _rows(self, kind: str, numbers: Sequence[int] = ()) -> str:
        columns = [c for c in self._stored() if c["number"] in numbers or not numbers]
        chosen = ", ".join(f"({self._value(c, kind)})::text AS c{c['number']}" for c in columns)
        return f"SELECT {chosen} FROM {self._sample()} s"

    def _new(self, kind: str) -> str:
        names = ", ".join(column["quoted"] for column in self._stored())
        values = ", ".join(self._value(column, kind) for column in self._stored())
        new = f"SELECT {values} FROM {self._sample()} s"
        return f"INSERT INTO {self.facts['quoted']} ({names}) OVERRIDING SYSTEM VALUE {new};\n"

    def _value(self, column: dict[str, Any], kind: str) -> str:
        if column["number"] not in self.fresh:
            return f"s.{column['quoted']}"
        return _FRESH[column["base"]].format(kind, column["quoted"], self.facts["quoted"], _SALTS[kind])

    def _sample(self) -> str:
        """About so many rows, the same whenever it is asked of the same table."""
        share = min(100.0, 130.0 * ROWS / max(self.facts["rows"], 1))
        order = ", ".join(self.columns[n]["quoted"] for n in self.key)
        ordered = f" ORDER BY {order}" if order else ""
        chosen = f"{self.facts['quoted']} TABLESAMPLE BERNOULLI ({share:.6f}) REPEATABLE (1)"
        return f"(SELECT * FROM {chosen}{ordered} LIMIT {ROWS})"

    def _found(self) -> str:
        return " AND ".join(
            f"{_doubled(self.columns[n]['quoted'])} = %(c{n})s::{_doubled(self.columns[n]['type'])}" for n in self.key
        )

    def _stored(self) -> list[dict[str, Any]]:
        return [column for column in self.columns.values() if not column["generated"]]

    def _names(self) -> str:
        return _doubled(", ".join(column["quoted"] for column in self._stored()))

    def _quoted(self) -> str:
        return _doubled(self.facts["quoted"])

    def _replaceable(self, number: int) -> bool:
        column = self.columns[number]
        return column["base"] in _FRESH and column["long"] and not column["generated"]

    def _mentioned(self, text: str) -> list[int]:
        """The columns that stand in an index's definition."""
        words = set(re.findall(r'"(?:[^"]|"")*"|[\w$]+', text))
        return [
            n
            for n, column in self.columns.items()
            if {column["quoted"], column["name"]} & words or column["quoted"] in {w.lower() for w in words}
        ]

    def _by_key(self, index: IndexStatement) -> list[int]:
        """Its columns, the last key first: ranges and states change more often than what rows belong to."""
        return [n for part in (*reversed(index.keys), *index.include, index.where) for n in self._mentioned(part)]

    def _write(self, kind: str, column: str, indexes: tuple[str, ...], sql: str, source: str) -> Write:
        number = next((n for n, own in self.columns.items() if own["name"] == column), 0)
        item, quoted = (
            f"{self.short}-{kind}{f'-{number}' if column else ''}",
            self.columns[number]["quoted"] if number else "",
        )
        return Write(item, kind, self.name, column, indexes, sql, source, self.facts["quoted"], quoted)


def _tried(connection: Connection, table: _Table) -> Writes:
    """Those of a table's statements that the server takes; what it says of the others."""
    found = table.writes()
    good: list[Write] = []
    lacking = list(found.lacking)
    with connection.transaction(force_rollback=True):
        rows = {write.item: connection.execute(write.source.encode()).fetchmany(3) for write in found.writes}
        try:
            with connection.transaction():
                connection.execute(found.prepare.encode())
        except psycopg.Error as error:
            lacking.append(f"{table.name}: no delete ({first_line(error)})")
            found = replace(found, writes=tuple(w for w in found.writes if w.kind != "delete"))
        for write in found.writes:
            try:
                with connection.transaction(force_rollback=True):
                    start = perf_counter()
                    changed = [connection.execute(write.sql.encode(), row).rowcount for row in rows[write.item]]
                    ms = 1000 * (perf_counter() - start) / max(len(changed), 1)
            except psycopg.Error as error:
                lacking.append(f"{table.name}: no {write.title} ({first_line(error)})")
                continue
            if changed and all(changed):
                good.append(replace(write, ms=ms))
            else:
                lacking.append(f"{table.name}: no {write.title} (it has no rows for that)")
    prepare = found.prepare if any(write.kind == "delete" for write in good) else ""
    return Writes(tuple(good), found.tables, prepare, tuple(lacking))


def _doubled(text: str) -> str:
    """A percent sign means a parameter to psycopg."""
    return text.replace("%", "%%")
