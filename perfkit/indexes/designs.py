"""Designs of an index lab: the sets to compare, the writes to measure, and the choice of the set to keep.

Inserted rows are copies of existing rows, with new values in unique columns. Deletes remove copies that every arm got
before its indexes were built, so that no other row refers to them. Updates repeat on a few rows, as in tables with hot
spots: only then does a page have room for HOT updates.

The latency of a set is estimated as that of its best index alone, because the planner uses one of them. If a query
needs two indexes together, it is slower without either of them. Separate rounds must confirm the choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg

from perfkit.analysis.results import Comparison
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import UsageError, first_line
from perfkit.base.stats import Interval, Ratio
from perfkit.config import Arm, Config, Query, Scenario
from perfkit.explain.capture import Parameters
from perfkit.explain.comparison import PLANNED, typical_parameters
from perfkit.load.schedule import MIN_TURNS
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import Database, connected
from perfkit.postgres.index_sets import IndexSet, IndexStatement
from perfkit.postgres.servers import Server
from perfkit.postgres.sqltext import read
from perfkit.runs import selection

ROWS, HOT_ROWS = 3000, 20  # rows that inserts and deletes draw from; rows that updates repeat on
_DIGESTS = {"uuid": "md5('perfkit {0} ' || s.{1})::uuid", "text": "md5('perfkit {0} ' || s.{1})"}
_FRESH = {
    "uuid": _DIGESTS["uuid"],
    **dict.fromkeys(("text", "character varying"), _DIGESTS["text"]),
    **dict.fromkeys(("integer", "bigint"), "(SELECT max({1}) FROM {2}) + {3} + row_number() OVER ()"),
}
_SALTS = {"insert": 0, "delete": ROWS}


@dataclass(frozen=True, slots=True)
class Write:
    """A statement that changes rows; `kind` is insert, delete or update, `indexes` are those that it must update."""

    item: str  # its name as a query
    kind: str
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
    tables = list(dict.fromkeys(index.table for index in indexes))
    by_table: list[Writes] = []
    with connected(server, database) as connection:
        facts = connection.execute(catalog.get("write_tables").encode(), {"tables": tables}).fetchall()
        given = {own["given"]: own["oid"] for own in facts}
        for number, table in enumerate(sorted(facts, key=lambda own: tables.index(own["given"])), 1):
            own = [index for index in indexes if given.get(index.table, table["oid"]) == table["oid"]]
            by_table.append(_tried(connection, _Table(f"t{number}", table, own)))
    return Writes(
        tuple(write for writes in by_table for write in writes.writes),
        {table: names for writes in by_table for table, names in writes.tables.items()},
        "".join(writes.prepare for writes in by_table),
        tuple(line for writes in by_table for line in writes.lacking),
    )


class _Table:
    """The maker of the writes for one table."""

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
        """Return the possible writes; their values come from the table's rows."""
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
                    f"{self.name}: no insert or delete, because no new values can be generated for the unique ({names})"
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
            self.lacking.append(f"{self.name}: no update or delete, because it has no key")
            return
        several = {number for key in self.facts["foreign_keys"] if len(key) > 1 for number in key}
        never = {number for unique in self.uniques for number in unique} | several
        touched: dict[int, list[str]] = {}
        for index in self.indexes:
            able = [n for n in self._by_key(index) if n not in never and not self.columns[n]["generated"]]
            if able:
                touched.setdefault(able[0], []).append(index.name)
            else:
                self.lacking.append(f"{index.name}: no update of its columns, because they are keys")
        held = {*self.facts["indexed"], *(n for used in self.used.values() for n in used)} | never
        foreign = {number for key in self.facts["foreign_keys"] for number in key}
        others = [n for n, c in self.columns.items() if n not in held | foreign and not c["generated"] and c["filled"]]
        for number in [*others[:1], *touched]:
            every = tuple(name for name, used in self.used.items() if number in used)
            yield self._write(
                "update", self.columns[number]["name"], every, self._update(number), self._changes(number)
            )
        if not others:
            self.lacking.append(f"{self.name}: no update of a column without an index, because there is none")

    def _update(self, number: int) -> str:
        quoted, kind = _doubled(self.columns[number]["quoted"]), _doubled(self.columns[number]["type"])
        other = f"CASE WHEN {quoted}::text IS DISTINCT FROM %(a)s::text THEN %(a)s::text ELSE %(b)s::text END"
        return f"UPDATE {self._quoted()} SET {quoted} = ({other})::{kind} WHERE {self._found()}"

    def _changes(self, number: int) -> str:
        """Return the SELECT of a few rows, each with its own value and the value of another row."""
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
        """Return a sample of about ROWS rows as SQL; the same rows for the same table."""
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
        """Return the numbers of the columns in an index's definition."""
        words = set(re.findall(r'"(?:[^"]|"")*"|[\w$]+', text))
        return [
            n
            for n, column in self.columns.items()
            if {column["quoted"], column["name"]} & words or column["quoted"] in {w.lower() for w in words}
        ]

    def _by_key(self, index: IndexStatement) -> list[int]:
        """Return an index's columns, the last key first: dates and states change more often than owners of rows."""
        return [n for part in (*reversed(index.keys), *index.include, index.where) for n in self._mentioned(part)]

    def _write(self, kind: str, column: str, indexes: tuple[str, ...], sql: str, source: str) -> Write:
        number = next((n for n, own in self.columns.items() if own["name"] == column), 0)
        item, quoted = (
            f"{self.short}-{kind}{f'-{number}' if column else ''}",
            self.columns[number]["quoted"] if number else "",
        )
        return Write(item, kind, self.name, column, indexes, sql, source, self.facts["quoted"], quoted)


def _tried(connection: Connection, table: _Table) -> Writes:
    """Try a table's writes; return those that the server accepts, and its messages on the others."""
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
                lacking.append(f"{table.name}: no {write.title} (the table has no suitable rows)")
    prepare = found.prepare if any(write.kind == "delete" for write in good) else ""
    return Writes(tuple(good), found.tables, prepare, tuple(lacking))


def _doubled(text: str) -> str:
    """Return text for a psycopg query, in which a single percent sign begins a parameter."""
    return text.replace("%", "%%")


def workload(settings: Config, place: Database, seed: int) -> dict[str, tuple[str, Parameters]]:
    """Return by query its text and typical parameters. Raises UsageError, PlanError, ServerError."""
    queries: dict[str, tuple[str, Parameters]] = {}
    for query in settings.query:
        text, rows = read(query.file), []
        if query.parameters:
            rows = selection.rows(query.parameters, settings.parameters[query.parameters], place, str(seed))[:PLANNED]
        queries[query.name] = (text, typical_parameters(place.session, text, rows) if rows else None)
    return queries


NONE, ALL, CHOSEN, CONTROL, ADVISED = "none", "all", "chosen", "control", "advised"
READS, WRITES = 100, 100  # maximum number of requests in a round
MORE = 2  # factor on reads in confirming runs, which have few arms and small differences
Sets = Mapping[str, Sequence[str]]  # by arm, the names of its indexes


@dataclass(frozen=True, slots=True)
class LabDesign:
    """What all runs of a lab share; their SQL files are in `folder`."""

    settings: Config
    folder: Path
    indexes: IndexSet
    writes: Writes
    seconds: float  # maximum time of a query's round
    advised: str = ""  # another set to compare with, as SQL

    def config(self, sets: Sets, baseline: str, written: Sequence[str] = (), more: int = 1) -> Config:
        """Return the configuration of a run of these sets, with writes on the arms `written`.

        The control arm is a copy of the baseline. Each query and each table has a load level of its own.
        """
        arms = [self._arm(name, own, "before" if name == baseline else "after") for name, own in sets.items()]
        first = next(arm for arm in arms if arm.name == baseline)
        arms.insert(1, first.model_copy(update={"name": CONTROL, "role": "control"}))
        reads, writes = self.settings.query, self.writes.writes
        changes = [Query(name=w.item, file=self.file(w.item), parameters=w.item, plan=False) for w in writes]
        levels = [
            _level(f"reads-{number}", "SQL, one connection", [q.name], more * READS, seconds=more * self.seconds)
            for number, q in enumerate(reads, 1)
        ]
        changed: dict[str, object] = {
            "arm": tuple(arms),
            "query": (*reads, *changes),
            "parameters": {**self.settings.parameters, **{w.item: self.file(f"{w.item}-rows") for w in writes}},
            "scenario": (*levels, *self._write_levels([CONTROL, *written])),
        }
        return self.settings.model_copy(update=changed | {"service": None, "request": (), "check": ()})

    def write(self) -> None:
        """Write the SQL files that the runs read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for write in self.writes.writes:
            write_atomically(self.file(write.item), f"{write.sql}\n")
            write_atomically(self.file(f"{write.item}-rows"), f"{write.source}\n")
        write_atomically(self.file("rows-to-delete"), self.writes.prepare)

    def _arm(self, name: str, own: Sequence[str], role: str) -> Arm:
        path = self._subset(own) if name != ADVISED else self.file(ADVISED)
        if name == ADVISED:
            write_atomically(path, self.advised)
        prepare = (self.file("rows-to-delete"),) if self.writes.prepare else ()
        title = "the advised indexes" if name == ADVISED else f"{len(own)} indexes"
        return Arm.model_validate(
            {
                "name": name,
                "role": role,
                "title": title,
                "prepare": prepare,
                "indexes": path if own or name == ADVISED else None,
            }
        )

    def _subset(self, names: Sequence[str]) -> Path:
        """Return the file of a subset; arms with the same indexes share the file and so their template database."""
        own = [index for index in self.indexes.indexes if index.name in names]
        numbers = "-".join(str(self.indexes.indexes.index(index) + 1) for index in own)
        path = self.file(f"indexes-{numbers}" if len(own) < len(self.indexes.indexes) else "indexes-all")
        if own and not path.exists():
            write_atomically(path, "".join(f"{index.sql(concurrently=False)};\n" for index in own))
        return path

    def alone(self, arm: str) -> str:
        """Return the name of the arm's only index; "" if it has none or several."""
        names: list[str] = [index.name for index in self.indexes.indexes]
        if arm == ALL and len(names) == 1:
            return names[0]
        number = arm.removeprefix("only-")
        return names[int(number) - 1] if number != arm else ""

    def concerns(self, arm: str, table: str) -> bool:
        """Return whether to write to a table on an arm: yes, unless the arm's only index is on another table."""
        return self.alone(arm) in ("", *self.writes.tables.get(table, ()))

    def file(self, name: str) -> Path:
        """Return the path of a file of the lab."""
        return self.folder / f"{name}.sql"

    def _write_levels(self, arms: Sequence[str]) -> list[Scenario]:
        """Return the load levels of the writes: one for each table and, for slow writes, number of requests."""
        levels: dict[tuple[str, int], list[str]] = {}
        for write in self.writes.writes if len(arms) > 1 else ():
            times = write.times(WRITES, self.seconds)
            levels.setdefault((write.table, times), []).append(write.item)
        found = []
        for number, ((table, times), items) in enumerate(levels.items(), 1):
            own = tuple(dict.fromkeys(arm for arm in arms if self.concerns(arm, table)))
            label = f"changes of {table}, one connection"
            found.append(_level(f"writes-{number}", label, items, times, arms=own))
        return found


def _level(name: str, label: str, send: Sequence[str], requests: int, **more: Any) -> Scenario:
    return Scenario(name=name, label=label, send=tuple(send), requests=requests, warm=1, alternate=True, **more)


def require_unique_names(indexes: IndexSet) -> None:
    """Raise UsageError if two indexes have the same name, because plans name no schema and could mean either."""
    names = [index.name for index in indexes.indexes]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        expected = "expected unique names across all schemas"
        raise UsageError(f"{indexes.path}: two indexes are called {twice}; {expected}")


def ablation(indexes: IndexSet) -> dict[str, list[str]]:
    """Return the sets to compare: none, all, each alone, and all but one. Raises UsageError for duplicate names."""
    require_unique_names(indexes)
    names = [index.name for index in indexes.indexes]
    sets: dict[str, list[str]] = {NONE: [], ALL: names}
    if len(names) > 1:  # one alone is all
        sets |= {f"only-{n}": [name] for n, name in enumerate(names, 1)}
    if len(names) > 2:  # of two, all but one is the other alone
        sets |= {f"without-{n}": [other for other in names if other != name] for n, name in enumerate(names, 1)}
    return sets


SLACK = 2.0  # number of margins by which two estimates must differ to count as different
CLOSE = 0.95  # share of the best gain: of the indexes that reach it, the smallest is chosen

Latencies = Mapping[str, float]  # by query, as a ratio to all indexes together


@dataclass(frozen=True, slots=True)
class MeasuredSets:
    """By index, the latencies with it alone and its bytes; `none` are the latencies without any index.

    `missed` are the indexes whose absence, with all others present, slows a query down by more than the margin.
    """

    alone: Mapping[str, Latencies]
    none: Latencies
    bytes: Mapping[str, int]
    missed: frozenset[str]


def choose(found: MeasuredSets, margin: float, budget: float = math.inf) -> list[str]:
    """Return the indexes to keep, of at most `budget` bytes: the largest gain first, then without superfluous ones.

    >>> alone = {"a": {"q": 1.0, "r": 9.0}, "b": {"q": 1.01, "r": 1.0}, "c": {"q": 5.0, "r": 9.0}}
    >>> choose(MeasuredSets(alone, {"q": 5.0, "r": 9.0}, {"a": 1, "b": 9, "c": 1}, frozenset()), 0.05)
    ['b']
    """
    chosen = [name for name in found.alone if name in found.missed and found.bytes[name] <= budget]
    while left := {
        name: gain
        for name in found.alone
        if name not in chosen
        and sum(found.bytes[n] for n in (*chosen, name)) <= budget
        and (gain := _gain(found, chosen, name, margin)) > 0
    }:
        best = max(left.values())
        chosen.append(min((n for n, gain in left.items() if gain >= CLOSE * best), key=found.bytes.__getitem__))
    for name in sorted(chosen, key=found.bytes.__getitem__, reverse=True):
        others = [n for n in chosen if n != name]
        if name not in found.missed and _gain(found, others, name, margin) <= 0:
            chosen = others
    return [name for name in found.alone if name in chosen]


def latencies(found: MeasuredSets, chosen: Collection[str]) -> Latencies:
    """Return the expected latencies with a set, by query."""
    return {query: min([none, *(found.alone[name][query] for name in chosen)]) for query, none in found.none.items()}


def _gain(found: MeasuredSets, chosen: Collection[str], name: str, margin: float) -> float:
    """Return the sum of logarithms of the speed-ups that are larger than chance."""
    least, now = math.log1p(SLACK * margin), latencies(found, chosen)
    gains = (math.log(now[query] / found.alone[name][query]) for query in now)
    return sum(gain for gain in gains if gain > least)


def within(c: Comparison, margin: float) -> bool:
    """Return whether a query is at most `margin` slower, by its whole interval."""
    return c.ratio is not None and c.ratio.hi <= 1 + margin


def worse(ratio: Ratio | None, margin: float, before: Interval, after: Interval, floor: Interval) -> bool:
    """Return whether a query is slower for certain, and by its estimate by more than the margin.

    The difference must also exceed the variation of the client's own time: a statement that takes little more than
    the client can take twice as long just because its connection moved to another processor.
    """
    if ratio is None or not (ratio.value > 1 + margin and ratio.lo > 1):
        return False
    return after.value - before.value > floor.hi - floor.lo


def helper(found: MeasuredSets, chosen: Collection[str], slower: Sequence[str], budget: float = math.inf) -> str:
    """Return the omitted index that helps the slower queries most; "" if none fits into the budget."""
    room = budget - sum(found.bytes[name] for name in chosen)
    left = {
        n: min(found.alone[n][q] for q in slower) for n in found.alone if n not in chosen and found.bytes[n] <= room
    }
    now = latencies(found, chosen)
    useful = {n: t for n, t in left.items() if any(found.alone[n][q] < now[q] for q in slower)}
    return min(useful or left, key=lambda n: (left[n], found.bytes[n]), default="")
