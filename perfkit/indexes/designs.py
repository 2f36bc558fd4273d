"""Designs of an index lab: the sets to compare, the statements that change rows, the search.

Inserted rows are copies of rows that are there, with new values in what must be unique; deletes take copies that
every arm got before its indexes were built, so that nothing refers to them. Updates go round a few rows, as they
do in tables with hot spots: only then is there room on a page for an update that no index hears of (HOT).

A set's latency is taken to be that of its best index alone, for the planner takes one of them; what only two
together give shows where one of them is missed. Fresh rounds must confirm what comes out of it.
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
        return max(MIN_TURNS, min(most, int(1000 * seconds / self.ms))) if self.ms else most

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


def design_writes(site: Server, database: str, indexes: Sequence[IndexStatement]) -> Writes:
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


# A configuration's queries with the parameters that give most of them their plan.


def workload(settings: Config, place: Database, seed: int) -> dict[str, tuple[str, Parameters]]:
    """By query, its text and typical parameters. Raises UsageError, PlanError, ServerError."""
    found: dict[str, tuple[str, Parameters]] = {}
    for query in settings.query:
        text, rows = read(query.file), []
        if query.parameters:
            rows = selection.rows(query.parameters, settings.parameters[query.parameters], place, str(seed))[:PLANNED]
        found[query.name] = (text, typical_parameters(place.session, text, rows) if rows else None)
    return found


# The runs of a lab as configurations: arms that differ in their indexes, one load level for each query and table.

NONE, ALL, CHOSEN, CONTROL, ADVISED = "none", "all", "chosen", "control", "advised"
READS, WRITES = 100, 100  # requests of a round, of reads as far as they do not take longer than a round should
MORE = 2  # times as many reads where few arms are to be told apart to a hair
Sets = Mapping[str, Sequence[str]]  # by arm, the names of its indexes


@dataclass(frozen=True, slots=True)
class LabDesign:
    """What all runs of a lab have in common; their files are in `folder`."""

    settings: Config
    folder: Path
    indexes: IndexSet
    writes: Writes
    seconds: float  # that a query's round may take
    advised: str = ""  # another set, as SQL

    def config(self, sets: Sets, baseline: str, written: Sequence[str] = (), more: int = 1) -> Config:
        """A run of these arms; the control is the baseline again. Tables are written to on the arms `written`."""
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
        """Write the files that the runs read."""
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
        """The file of a subset; arms of the same indexes share it, and so the database that they are cloned from."""
        own = [index for index in self.indexes.indexes if index.name in names]
        numbers = "-".join(str(self.indexes.indexes.index(index) + 1) for index in own)
        path = self.file(f"indexes-{numbers}" if len(own) < len(self.indexes.indexes) else "indexes-all")
        if own and not path.exists():
            write_atomically(path, "".join(f"{index.sql(concurrently=False)};\n" for index in own))
        return path

    def alone(self, arm: str) -> str:
        """The index of an arm that has one alone; "" for other arms."""
        names: list[str] = [index.name for index in self.indexes.indexes]
        if arm == ALL and len(names) == 1:
            return names[0]
        number = arm.removeprefix("only-")
        return names[int(number) - 1] if number != arm else ""

    def concerns(self, arm: str, table: str) -> bool:
        """Whether changes of a table are of interest on an arm: it has all indexes or none, or one of this table's."""
        return self.alone(arm) in ("", *self.writes.tables.get(table, ()))

    def file(self, name: str) -> Path:
        """Where a file of this name is."""
        return self.folder / f"{name}.sql"

    def _write_levels(self, arms: Sequence[str]) -> list[Scenario]:
        """By table, on the arms that it concerns; what takes long is sent less often, and so apart from the rest."""
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
    """Raise UsageError if two indexes have one name: plans, which name no schema, could mean either."""
    names = [index.name for index in indexes.indexes]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        expected = "expected every name once, in whatever schema, to tell what each index is worth"
        raise UsageError(f"{indexes.path}: two indexes are called {twice}; {expected}")


def ablation(indexes: IndexSet) -> dict[str, list[str]]:
    """No index, all, each alone, and all but one. Raises UsageError if two have one name."""
    require_unique_names(indexes)
    names = [index.name for index in indexes.indexes]
    sets: dict[str, list[str]] = {NONE: [], ALL: names}
    if len(names) > 1:  # one alone is all
        sets |= {f"only-{n}": [name] for n, name in enumerate(names, 1)}
    if len(names) > 2:  # of two, all but one is the other alone
        sets |= {f"without-{n}": [other for other in names if other != name] for n, name in enumerate(names, 1)}
    return sets


# Choosing indexes from what was measured of each alone and of all but one. Pure.

SLACK = 2.0  # margins by which one estimate must differ from another to be taken for more than chance
CLOSE = 0.95  # of the best gain: of indexes as good as that, the smallest is taken

Latencies = Mapping[str, float]  # by query, as a ratio to all indexes together


@dataclass(frozen=True, slots=True)
class MeasuredSets:
    """By index its latencies alone and its bytes; `none`: latencies without any.

    `missed` are those without which, all others being there, a query is slower by more than the margin.
    """

    alone: Mapping[str, Latencies]
    none: Latencies
    bytes: Mapping[str, int]
    missed: frozenset[str]


def choose(found: MeasuredSets, margin: float, budget: float = math.inf) -> list[str]:
    """The indexes to keep, of at most `budget` bytes: greedily the largest gain, then without what is spare.

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
    """What a set is expected to take, by query."""
    return {query: min([none, *(found.alone[name][query] for name in chosen)]) for query, none in found.none.items()}


def _gain(found: MeasuredSets, chosen: Collection[str], name: str, margin: float) -> float:
    """Sum of logarithms over the queries that become faster by more than chance."""
    least, now = math.log1p(SLACK * margin), latencies(found, chosen)
    gains = (math.log(now[query] / found.alone[name][query]) for query in now)
    return sum(gain for gain in gains if gain > least)


def within(c: Comparison, margin: float) -> bool:
    """Whether a query is known to be at most so much slower, by its whole interval."""
    return c.ratio is not None and c.ratio.hi <= 1 + margin


def worse(ratio: Ratio | None, margin: float, before: Interval, after: Interval, floor: Interval) -> bool:
    """Whether a query is slower and seems to be by more than the margin, if not by its whole interval.

    And by more than the client's own time moved between rounds: a statement that takes little more than the client
    takes twice that wherever its connection came to lie on another processor, which is no index's doing.
    """
    if ratio is None or not (ratio.value > 1 + margin and ratio.lo > 1):
        return False
    return after.value - before.value > floor.hi - floor.lo


def helper(found: MeasuredSets, chosen: Collection[str], slower: Sequence[str], budget: float = math.inf) -> str:
    """Of the indexes left out, the one that does most for queries that became slower; "" for none."""
    room = budget - sum(found.bytes[name] for name in chosen)
    left = {
        n: min(found.alone[n][q] for q in slower) for n in found.alone if n not in chosen and found.bytes[n] <= room
    }
    now = latencies(found, chosen)
    useful = {n: t for n, t in left.items() if any(found.alone[n][q] < now[q] for q in slower)}
    return min(useful or left, key=lambda n: (left[n], found.bytes[n]), default="")
