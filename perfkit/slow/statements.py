"""Slow statements: their model, pg_stat_statements, and the columns that parameters meet."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Any

import psycopg

from perfkit.base import resources
from perfkit.base.errors import ServerError, UsageError, first_line, visible
from perfkit.explain.conditions import conditions, home
from perfkit.explain.facts import Predicate, alternatives, predicates, quoted
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import Node
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.commands import placeholders
from perfkit.postgres.parser import SqlNode, parse_statements


@dataclass(frozen=True, slots=True)
class Example:
    """One logged execution: its text, its values for `$1`, `$2`, ... as text (None: NULL), and its time in ms.

    A text that contains its values has no parameters.
    """

    sql: str
    parameters: tuple[str | None, ...] = ()
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class SlowStatement:
    """One normalised statement with its cost in the time of the source. None: the source does not tell."""

    id: str  # the server's query id, or a digest of the normalised text
    text: str  # with values as `$1`, `$2`, ...; if it could not be normalised, as it was logged once
    calls: int
    total_ms: float
    p95_ms: float | None = None
    rows: int | None = None
    buffers: int | None = None  # pages found in memory or read
    temp_bytes: int | None = None
    wal_bytes: int | None = None
    first: datetime | None = None  # time of the first execution
    last: datetime | None = None
    example: Example | None = None  # the slowest execution that is known
    plan: Any = None  # EXPLAIN's document of the slowest execution whose plan was logged

    @property
    def mean_ms(self) -> float:
        """Return the mean time of an execution, in ms."""
        return self.total_ms / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class SlowQueries:
    """The statements of a source, the largest total first, and what could not be read of it."""

    source: str  # its name in messages: "pg_stat_statements of host:port/database", "the log server.json"
    statements: tuple[SlowStatement, ...]
    since: datetime | None = None  # the time that the source covers
    until: datetime | None = None
    unread: Mapping[str, int] = field(default_factory=dict)  # number of entries by reason, a clause in the plural
    notes: tuple[str, ...] = ()  # limits of the source: a threshold, sampling, hidden statements

    @property
    def total_ms(self) -> float:
        """Return the time of all statements together, in ms."""
        return sum(statement.total_ms for statement in self.statements)

    def share(self, statement: SlowStatement) -> float:
        """Return a statement's share of the total time."""
        return statement.total_ms / self.total_ms if self.total_ms else 0.0


NAME = "pg_stat_statements"
GRANT = "GRANT pg_read_all_stats TO"
# Names of columns in the versions of pg_stat_statements, the newest first; the others never changed since 13.
_NAMES = {
    "toplevel": ("toplevel",),
    "total_ms": ("total_exec_time", "total_time"),
    "wal_bytes": ("wal_bytes",),
    "since": ("stats_since",),
}
_COUNTED = ("rows", "buffers", "temp_bytes", "wal_bytes")
_EXPLAIN = re.compile(r"\s*EXPLAIN\b", re.IGNORECASE)

Key = tuple[int, str, bool | None]  # user, query id, and whether a client sent the statement (None: unknown)
Entry = Mapping[str, Any]  # a row of sql/catalog/slow_entries.sql


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The entries of pg_stat_statements at one time; entries without a visible text are only counted."""

    source: str
    at: datetime
    entries: Mapping[Key, Entry] = field(repr=False)
    unread: Mapping[str, int]
    reset: datetime | None = None  # when counting began
    dropped: int | None = None  # how often the least used entries were dropped to make room
    most: str = ""  # maximum number of entries, in all databases


def snapshot(connection: Connection, name: str = "") -> Snapshot:
    """Return what pg_stat_statements has counted in this database, which messages call `name`.

    Raises ServerError if the extension is missing, not loaded or not readable for this role, with the remedy.
    """
    here = visible(name or connection.info.dbname)
    try:
        facts = catalog.row(connection, "slow_extension")
        if obstacle := _obstacle(facts):
            raise ServerError(f"{here}: {obstacle}")
        names = {"schema": facts["schema"]}
        for column, candidates in _NAMES.items():
            names[column] = next((candidate for candidate in candidates if candidate in facts["columns"]), "NULL")
        rows = connection.execute(_filled("slow_entries", names)).fetchall()
        since = connection.execute(_filled("slow_reset", names)).fetchone() if facts["info"] else None
        at = catalog.row(connection, "slow_clock")["at"]
    except psycopg.Error as error:
        raise ServerError(f"{here}: {visible(first_line(error))}; expected {NAME} to answer") from None
    hidden = sum(row["id"] is None for row in rows)
    lost = sum(row["id"] is not None and row["text"] is None for row in rows)
    unread = {
        f"statements of other roles were hidden ({GRANT} {facts['user']} shows them)": hidden,
        "statement texts were lost": lost,
    }
    entries = {(r["user"], r["id"], r["toplevel"]): r for r in rows if r["id"] is not None and r["text"] is not None}
    unread = {reason: count for reason, count in unread.items() if count}
    return Snapshot(f"{NAME} of {here}", at, entries, unread, **(since or {}), most=facts["most"])


def between(before: Snapshot | None, after: Snapshot) -> SlowQueries:
    """Return what was counted between two snapshots; without the first, since the reset. Pure.

    An entry that was reset in between counts from its reset. Raises UsageError for snapshots of two databases.
    """
    if before is None:
        notes = _general(after, after.dropped or 0)
        return SlowQueries(after.source, _merged(after.entries.values()), after.reset, after.at, after.unread, notes)
    if before.source != after.source:
        raise UsageError(f"{before.source} and {after.source}; expected two snapshots of one database")
    was_reset = before.reset != after.reset
    earlier: Mapping[Key, Entry] = {} if was_reset else before.entries
    grown, restarted = [], 0
    for key, entry in after.entries.items():
        base = earlier.get(key)
        if base and _restarted(base, entry):
            base, restarted = None, restarted + 1
        if entry["calls"] > (base["calls"] if base else 0):
            grown.append(_less(entry, base) if base else entry)
    gone = len(earlier.keys() - after.entries.keys())
    unread = dict(after.unread)
    if gone or restarted:
        unread["entries were dropped or reset between the two snapshots (counted in part)"] = gone + restarted
    notes = _general(after, (after.dropped or 0) - (0 if was_reset else before.dropped or 0))
    since = before.at
    if was_reset and after.reset:
        since = max(before.at, after.reset)
        notes = (f"{NAME} was reset at {after.reset:%H:%M:%S}; earlier statements are not included", *notes)
    return SlowQueries(after.source, _merged(grown), since, after.at, unread, notes)


def _obstacle(found: Mapping[str, Any]) -> str:
    """Return why pg_stat_statements cannot be read here, and the remedy; "" if it can."""
    if not found:
        return f"no {NAME} in this database; expected CREATE EXTENSION {NAME}, or the server's log in its place"
    if found["most"] is None:
        return f"{NAME} is not loaded; expected it in shared_preload_libraries, and a restart"
    if not found["usable"]:
        return (
            f"{NAME} is in a schema without access; expected GRANT USAGE ON SCHEMA {found['schema']} TO {found['user']}"
        )
    if not found["readable"]:
        return f"{NAME} is not readable; expected GRANT SELECT ON {found['schema']}.{NAME} TO {found['user']}"
    return ""


def _filled(name: str, names: Mapping[str, str]) -> bytes:
    return re.sub(r"(?<!:):(\w+)", lambda m: names.get(m[1], m[0]), catalog.get(name)).encode()


def _restarted(base: Entry, entry: Entry) -> bool:
    fell = any((entry[name] or 0) < (base[name] or 0) for name in ("calls", "total_ms", *_COUNTED))
    return fell or base["since"] != entry["since"]


def _less(entry: Entry, base: Entry) -> Entry:
    counted = {name: None if entry[name] is None else entry[name] - (base[name] or 0) for name in _COUNTED}
    more = {"calls": entry["calls"] - base["calls"], "total_ms": entry["total_ms"] - base["total_ms"]}
    return {**entry, **more, **counted}


def _merged(entries: Iterable[Entry]) -> tuple[SlowStatement, ...]:
    """Return one statement for each query id of all users, without perfkit's own; the largest total first."""
    by_id: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry["calls"] and not own(entry["text"]):
            by_id[entry["id"]].append(entry)
    return tuple(sorted(map(_statement, by_id.values()), key=lambda s: (-s.total_ms, s.id)))


def _statement(entries: list[Entry]) -> SlowStatement:
    counted = {name: [entry[name] for entry in entries] for name in _COUNTED}
    since = [entry["since"] for entry in entries if entry["since"]]
    return SlowStatement(
        entries[0]["id"],
        entries[0]["text"],
        sum(entry["calls"] for entry in entries),
        sum(entry["total_ms"] for entry in entries),
        **{name: None if None in values else sum(values) for name, values in counted.items()},
        first=min(since, default=None),
    )


def _general(after: Snapshot, dropped: int) -> tuple[str, ...]:
    notes = []
    if dropped:
        notes.append(
            f"{NAME} dropped its least used entries {dropped:,} time{'s' * (dropped > 1)} to make room "
            f"({NAME}.max = {after.most})"
        )
    if any(toplevel is False for _, _, toplevel in after.entries):
        notes.append("the time of a statement inside a function is also part of the statement that called the function")
    return tuple(notes)


def own(text: str) -> bool:
    """Return whether perfkit sent a statement: a query of its catalogue, by the first line, or an EXPLAIN."""
    return bool(_EXPLAIN.match(text)) or text.lstrip().partition("\n")[0].rstrip() in _headers()


@cache
def _headers() -> frozenset[str]:
    """Return the comments at the beginning of perfkit's catalogue queries; the server keeps them in its texts."""
    paths = resources.path("sql/catalog").glob("*.sql")
    return frozenset(path.read_text(encoding="utf-8").partition("\n")[0].rstrip() for path in paths)


_CONDITIONS = ("Index Cond", "Recheck Cond", "Filter", "Order By")
_PLANNED = re.compile(r"\b(?:InitPlan|SubPlan|hashed)\b|\$")  # a value from another part of the plan
_RETURNS = re.compile(r"\(returns (\$[\d,$]+)\)")
WRITTEN = "="  # the operator of a column that is written


@dataclass(frozen=True, slots=True)
class StatementUse:
    """A parameter and the SQL expression over a table's columns, `subject`, that it is compared with or written to."""

    number: int
    subject: str
    column: str  # the only column in the subject; "" if there are several
    operator: str
    bare: bool  # whether the value is the parameter alone, not an expression
    unique: bool = False  # whether it is written to a unique column

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Return a sort key: of several uses of a parameter, the smallest tells most about its values."""
        return self.operator not in ("=", "= ANY", "ANY ="), not self.column, not self.bare


@dataclass(frozen=True, slots=True)
class StatementScan:
    """A table that a statement reads, the uses of its parameters, and the conditions without parameters."""

    schema: str
    table: str
    alias: str
    pages: float
    uses: tuple[StatementUse, ...]
    always: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the table as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"


def scans(look: FindingContext, text: str) -> tuple[StatementScan, ...]:
    """Return the tables whose rows have values for a statement's `$n`; each `$n` once, at its most telling use.

    `look` is at the generic plan of the statement.
    """
    internal = {number for node in look.plan.nodes for number in _internal_parameters(node)}
    tables = [*_written(look, text), *(scan for node in look.plan.nodes if (scan := _read(look, node, internal)))]
    best: dict[int, tuple[tuple[bool, bool, bool], int]] = {}
    for at, scan in enumerate(tables):
        for use in scan.uses:
            best[use.number] = min(best.get(use.number, (use.rank, at)), (use.rank, at))
    chosen = []
    for at, scan in enumerate(tables):
        uses = [use for use in scan.uses if best[use.number] == (use.rank, at)]
        once = {use.number: use for use in reversed(uses)}
        if once:
            chosen.append(replace(scan, uses=_middle(scan, once.values())))
    return tuple(chosen)


def _middle(scan: StatementScan, uses: Iterable[StatementUse]) -> tuple[StatementUse, ...]:
    """Return the uses with "=" for a parameter that bounds a column on two sides: a value between both bounds."""
    times = Counter(use.number for use in scan.uses)
    middle = (
        replace(u, operator="=") if not u.bare or (times[u.number] > 1 and u.operator != "= ANY") else u for u in uses
    )
    return tuple(sorted(middle, key=lambda use: use.number))


def _read(look: FindingContext, node: Node, internal: set[int]) -> StatementScan | None:
    """Return the table that a node reads, with its conditions; None if it reads none."""
    if not node.table or node.kind == "ModifyTable":
        return None
    schema, table = home(look.facts, node)
    known, alias = look.facts.of(node), node.alias or table
    names = frozenset(column.name for column in known.columns) if known else None
    all_ = conditions(look.facts, node, *_CONDITIONS)
    one_of = [p for whole in all_ for part in alternatives(whole) for p in predicates(part, alias, names)]
    uses = [use for p in (*all_, *one_of) for use in _uses(p, alias) if use.number not in internal]
    always = tuple(p.text for p in all_ if p.operator and not p.joined and not _PLANNED.search(p.text))
    return StatementScan(schema, table, alias, known.pages if known else 0.0, tuple(uses), always)


def _uses(predicate: Predicate, alias: str) -> Iterator[StatementUse]:
    """Yield the uses of parameters in one condition."""
    if predicate.joined or predicate.operator == "OR":
        return
    single = next(iter(predicate.columns)) if len(predicate.columns) == 1 else ""
    subject, numbers = predicate.subject, placeholders(predicate.value)
    if not predicate.operator or placeholders(subject):  # not understood, or the parameter is part of the subject
        if not single:
            return
        subject, numbers = f"{quoted(alias)}.{quoted(single)}", placeholders(predicate.text)
    for number in numbers:
        bare = re.fullmatch(rf"[(\s]*\${number}[)\s]*(?:::[\w \[\].\"()]+)?", predicate.value) is not None
        yield StatementUse(
            number, subject, predicate.column or (single if predicate.cast else ""), predicate.operator, bare
        )


def _internal_parameters(node: Node) -> Iterator[int]:
    """Yield the numbers of a plan's internal values, which PostgreSQL before 17 prints as `$n` too."""
    if found := _RETURNS.search(node.subplan):
        yield from placeholders(found[1])


def _written(look: FindingContext, text: str) -> Iterator[StatementScan]:
    """Yield the table with the columns that an INSERT or UPDATE writes a parameter to."""
    target = next((node for node in look.plan.nodes if node.kind == "ModifyTable"), None)
    if target is None:
        return
    for statement in parse_statements(text)[:1]:
        known, alias = look.facts.of(target), target.alias or target.table
        inserted = statement.kind == "InsertStmt"
        single = {i.keys[0] for i in known.indexes if i.unique and len(i.keys) == 1} if known and inserted else set()
        uses = [
            StatementUse(
                node.number("number"), f"{quoted(alias)}.{quoted(column)}", column, WRITTEN, True,
                quoted(column) in single,
            )
            for column, value in _pairs(statement)
            for node in value.walk()
            if node.kind == "ParamRef"
        ]  # fmt: skip
        yield StatementScan(*home(look.facts, target), alias, known.pages if known else 0.0, tuple(uses))


def _pairs(statement: SqlNode) -> Iterator[tuple[str, SqlNode]]:
    """Yield the written columns, each with its expression."""
    columns = [column.text("name") for column in statement.nodes("cols")]
    for source in statement.nodes("selectStmt"):
        for row in source.nodes("valuesLists"):
            yield from zip(columns, row.nodes("items"), strict=False)
        selected = (target.nodes("val")[0] for target in source.nodes("targetList"))
        yield from zip(columns, selected, strict=False)
    for change in statement.nodes("targetList") if statement.kind == "UpdateStmt" else ():
        if not change.nodes("indirection"):  # an element of an array is not its column
            yield from ((change.text("name"), v) for v in change.nodes("val") if v.kind != "MultiAssignRef")
