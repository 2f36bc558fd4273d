"""Slow statements: the model, pg_stat_statements, the indexes that they use; and what runs now."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Any

import psycopg
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from perfkit.base import resources
from perfkit.base.errors import ServerError, UsageError, first_line, visible
from perfkit.explain.facts import Predicate, alternatives, predicates, quoted
from perfkit.explain.findings.model import FindingContext, conditions, counted, home
from perfkit.explain.plan import Node
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.sqltext import lexemes, placeholders


@dataclass(frozen=True, slots=True)
class Example:
    """One execution that really was: its text, its values as text (None: NULL) for `$1`, `$2`, ..., its time in ms.

    A text with its values written into it has no parameters.
    """

    sql: str
    parameters: tuple[str | None, ...] = ()
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class SlowStatement:
    """One statement, whatever its values, with what it cost in the source's time. None: the source does not tell."""

    id: str  # the server's query id, or a digest of the normalised text
    text: str  # normalised, values as `$1`, `$2`, ...; where nothing better is known, as it was logged once
    calls: int
    total_ms: float
    p95_ms: float | None = None
    rows: int | None = None
    buffers: int | None = None  # pages found in memory or read
    temp_bytes: int | None = None
    wal_bytes: int | None = None
    first: datetime | None = None  # seen
    last: datetime | None = None
    example: Example | None = None  # the slowest that is known
    plan: Any = None  # EXPLAIN's document of the slowest execution whose plan was logged

    @property
    def mean_ms(self) -> float:
        """The mean time of an execution, in ms."""
        return self.total_ms / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class SlowQueries:
    """What a source told: its statements, the largest total first, and what could not be read of it."""

    source: str  # in words: "pg_stat_statements of host:port/database", "the log server.json"
    statements: tuple[SlowStatement, ...]
    since: datetime | None = None  # the time that the source covers
    until: datetime | None = None
    unread: Mapping[str, int] = field(default_factory=dict)  # by reason in words, how many records
    notes: tuple[str, ...] = ()  # what a reader has to know: sampled, a threshold, own statements only

    @property
    def total_ms(self) -> float:
        """The time of all statements together, in ms."""
        return sum(statement.total_ms for statement in self.statements)

    def share(self, statement: SlowStatement) -> float:
        """A statement's part of the time of all."""
        return statement.total_ms / self.total_ms if self.total_ms else 0.0


# Slow statements as pg_stat_statements counts them: all since it was reset, or those between two looks at it.

NAME = "pg_stat_statements"
GRANT = "GRANT pg_read_all_stats TO"
#: What its versions call a column, the newest first; all else has had one name since PostgreSQL 13.
_NAMES = {
    "toplevel": ("toplevel",),
    "total_ms": ("total_exec_time", "total_time"),
    "wal_bytes": ("wal_bytes",),
    "since": ("stats_since",),
}
_COUNTED = ("rows", "buffers", "temp_bytes", "wal_bytes")
_EXPLAIN = re.compile(r"\s*EXPLAIN\b", re.IGNORECASE)

Key = tuple[int, str, bool | None]  # user, query id, and whether a client sent it (None: not told)
Entry = Mapping[str, Any]  # a row of sql/catalog/slow_entries.sql


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What it had counted at one time. Entries whose text this role may not see, or that is lost, are only counted."""

    source: str
    at: datetime
    entries: Mapping[Key, Entry] = field(repr=False)
    unread: Mapping[str, int]
    reset: datetime | None = None  # since when it counts
    dropped: int | None = None  # how often it made room by dropping the entries that are least used
    most: str = ""  # entries that it keeps, in all databases


def snapshot(connection: Connection, name: str = "") -> Snapshot:
    """What it has counted in this database; `name` is what messages call that.

    Raises ServerError where the extension is missing, not loaded or not for this role, saying what would change that.
    """
    here = visible(name or connection.info.dbname)
    try:
        found = catalog.row(connection, "slow_extension")
        if lacking := _lacking(found):
            raise ServerError(f"{here}: {lacking}")
        names = {"schema": found["schema"]}
        for wanted, known in _NAMES.items():
            names[wanted] = next((column for column in known if column in found["columns"]), "NULL")
        rows = connection.execute(_filled("slow_entries", names)).fetchall()
        since = connection.execute(_filled("slow_reset", names)).fetchone() if found["info"] else None
        at = catalog.row(connection, "slow_clock")["at"]
    except psycopg.Error as error:
        raise ServerError(f"{here}: {visible(first_line(error))}; expected {NAME} to answer") from None
    hidden = sum(row["id"] is None for row in rows)
    lost = sum(row["id"] is not None and row["text"] is None for row in rows)
    unread = {
        f"statements of other roles were hidden ({GRANT} {found['user']} shows them)": hidden,
        "statement texts were lost": lost,
    }
    told = {(r["user"], r["id"], r["toplevel"]): r for r in rows if r["id"] is not None and r["text"] is not None}
    counted = {reason: count for reason, count in unread.items() if count}
    return Snapshot(f"{NAME} of {here}", at, told, counted, **(since or {}), most=found["most"])


def between(before: Snapshot | None, after: Snapshot) -> SlowQueries:
    """What was counted between two looks, or without the first, since it was reset. Pure.

    An entry that began anew in between counts with what it shows, which is less than there was. Raises UsageError for
    looks at two databases.
    """
    if before is None:
        notes = _general(after, after.dropped or 0)
        return SlowQueries(after.source, _merged(after.entries.values()), after.reset, after.at, after.unread, notes)
    if before.source != after.source:
        raise UsageError(f"{before.source} and {after.source}; expected two snapshots of one database")
    anew = before.reset != after.reset
    known: Mapping[Key, Entry] = {} if anew else before.entries
    grown, restarted = [], 0
    for key, entry in after.entries.items():
        base = known.get(key)
        if base and _restarted(base, entry):
            base, restarted = None, restarted + 1
        if entry["calls"] > (base["calls"] if base else 0):
            grown.append(_less(entry, base) if base else entry)
    gone = len(known.keys() - after.entries.keys())
    unread = dict(after.unread)
    if gone or restarted:
        unread["entries were dropped or reset between the two snapshots (counted in part)"] = gone + restarted
    notes = _general(after, (after.dropped or 0) - (0 if anew else before.dropped or 0))
    since = before.at
    if anew and after.reset:
        since = max(before.at, after.reset)
        notes = (f"{NAME} was reset at {after.reset:%H:%M:%S}; earlier statements are not included", *notes)
    return SlowQueries(after.source, _merged(grown), since, after.at, unread, notes)


def _lacking(found: Mapping[str, Any]) -> str:
    """Why it cannot be asked here, and what would change that; "" where it can."""
    if not found:
        return f"no {NAME} in this database; expected CREATE EXTENSION {NAME}, or the server's log in its place"
    if found["most"] is None:
        return f"{NAME} is not loaded; expected it in shared_preload_libraries, and a restart"
    if not found["usable"]:
        return f"{NAME} is out of reach; expected GRANT USAGE ON SCHEMA {found['schema']} TO {found['user']}"
    if not found["readable"]:
        return f"{NAME} may not be read; expected GRANT SELECT ON {found['schema']}.{NAME} TO {found['user']}"
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
    """One statement for every query id, whoever sent it, without perfkit's own; the largest total first."""
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
    """Whether perfkit sent it: a catalogue query, by its first line; or an EXPLAIN, which is nobody's load."""
    return bool(_EXPLAIN.match(text)) or text.lstrip().partition("\n")[0].rstrip() in _headers()


@cache
def _headers() -> frozenset[str]:
    """The comments that catalogue queries begin with; the server keeps them."""
    paths = resources.path("sql/catalog").glob("*.sql")
    return frozenset(path.read_text(encoding="utf-8").partition("\n")[0].rstrip() for path in paths)


# Which column of which table each `$n` of a statement is compared with, or written to: from its plan, and its text.

_CONDITIONS = ("Index Cond", "Recheck Cond", "Filter", "Order By")
_PLANNED = re.compile(r"\b(?:InitPlan|SubPlan|hashed)\b|\$")  # a value that only the whole plan knows
_RETURNS = re.compile(r"\(returns (\$[\d,$]+)\)")
WRITTEN = "="  # the operator of a column that is written


@dataclass(frozen=True, slots=True)
class StatementUse:
    """A parameter and what it meets: `subject` is SQL over the table's columns."""

    number: int
    subject: str
    column: str  # the one column in the subject; "" where there are several
    operator: str
    bare: bool  # the value is the parameter and no more
    unique: bool = False  # it is written to a column that has no value twice

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Which of several uses tells most about the values: the smallest."""
        return self.operator not in ("=", "= ANY", "ANY ="), not self.column, not self.bare


@dataclass(frozen=True, slots=True)
class StatementScan:
    """A table as a statement reads it, its parameters' uses, and the conditions that hold for any of them."""

    schema: str
    table: str
    alias: str
    pages: float
    uses: tuple[StatementUse, ...]
    always: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The table as SQL writes it."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"


def scans(look: FindingContext, text: str) -> tuple[StatementScan, ...]:
    """The tables in whose rows values for a statement's `$n` are found; each `$n` once, where most is known of it.

    `look` is at its generic plan.
    """
    taken = {number for node in look.plan.nodes for number in _inner(node)}
    found = [*_written(look, text), *(scan for node in look.plan.nodes if (scan := _read(look, node, taken)))]
    best: dict[int, tuple[tuple[bool, bool, bool], int]] = {}
    for at, scan in enumerate(found):
        for use in scan.uses:
            best[use.number] = min(best.get(use.number, (use.rank, at)), (use.rank, at))
    kept = []
    for at, scan in enumerate(found):
        own = [use for use in scan.uses if best[use.number] == (use.rank, at)]
        once = {use.number: use for use in reversed(own)}
        if once:
            kept.append(replace(scan, uses=_told(scan, once.values())))
    return tuple(kept)


def _told(scan: StatementScan, uses: Iterable[StatementUse]) -> tuple[StatementUse, ...]:
    """A parameter that bounds a column on two sides is in the middle: it equals the column."""
    times = Counter(use.number for use in scan.uses)
    middle = (
        replace(u, operator="=") if not u.bare or (times[u.number] > 1 and u.operator != "= ANY") else u for u in uses
    )
    return tuple(sorted(middle, key=lambda use: use.number))


def _read(look: FindingContext, node: Node, taken: set[int]) -> StatementScan | None:
    """A node that reads a table, with its conditions."""
    if not node.text("Relation Name") or node.kind == "ModifyTable":
        return None
    schema, table = home(look, node)
    known, alias = look.facts.of(node), node.text("Alias") or table
    names = frozenset(column.name for column in known.columns) if known else None
    all_ = list(dict.fromkeys(conditions(look, node, *_CONDITIONS)))
    one_of = [p for whole in all_ for part in alternatives(whole) for p in predicates(part, alias, names)]
    uses = [use for p in (*all_, *one_of) for use in _uses(p, alias) if use.number not in taken]
    always = tuple(p.text for p in all_ if p.operator and not p.joined and not _PLANNED.search(p.text))
    return StatementScan(schema, table, alias, known.pages if known else 0.0, tuple(uses), always)


def _uses(predicate: Predicate, alias: str) -> Iterator[StatementUse]:
    """The parameters of one condition."""
    if predicate.joined or predicate.operator == "OR":
        return
    single = next(iter(predicate.columns)) if len(predicate.columns) == 1 else ""
    subject, numbers = predicate.subject, placeholders(predicate.value)
    if not predicate.operator or placeholders(subject):  # not understood, or the column is within what is computed
        if not single:
            return
        subject, numbers = f"{quoted(alias)}.{quoted(single)}", placeholders(predicate.text)
    for number in numbers:
        bare = re.fullmatch(rf"[(\s]*\${number}[)\s]*(?:::[\w \[\].\"()]+)?", predicate.value) is not None
        yield StatementUse(
            number, subject, predicate.column or (single if predicate.cast else ""), predicate.operator, bare
        )


def _inner(node: Node) -> Iterator[int]:
    """Before 17 a plan calls what its own parts return `$n` too."""
    if found := _RETURNS.search(node.text("Subplan Name")):
        yield from placeholders(found[1])


def _written(look: FindingContext, text: str) -> Iterator[StatementScan]:
    """The columns that an INSERT or UPDATE writes a parameter to."""
    target = next((node for node in look.plan.nodes if node.kind == "ModifyTable"), None)
    if target is None:
        return
    readable = "".join(f'"{x.text}"' if x.kind == "placeholder" else x.text for x in lexemes(text))
    with suppress(SqlglotError):
        statement = sqlglot.parse_one(readable, read="postgres")
        known, alias = look.facts.of(target), target.text("Alias") or target.text("Relation Name")
        inserted = isinstance(statement, exp.Insert)
        single = {i.keys[0] for i in known.indexes if i.unique and len(i.keys) == 1} if known and inserted else set()
        uses = [
            StatementUse(number, f"{quoted(alias)}.{quoted(column)}", column, WRITTEN, True, quoted(column) in single)
            for column, value in _pairs(statement)
            for number in _numbers(value)
        ]
        yield StatementScan(*home(look, target), alias, known.pages if known else 0.0, tuple(uses))


def _pairs(statement: exp.Expr) -> Iterator[tuple[str, exp.Expr]]:
    """Columns with the expressions that are written to them."""
    if isinstance(statement, exp.Insert) and isinstance(statement.this, exp.Schema):
        columns, source = list(map(_name, statement.this.expressions)), statement.expression
        rows = [row.expressions for row in source.expressions] if isinstance(source, exp.Values) else []
        for row in rows or ([source.expressions] if isinstance(source, exp.Select) else []):
            yield from zip(columns, row, strict=False)
    for change in statement.expressions if isinstance(statement, exp.Update) else ():
        if isinstance(change, exp.EQ) and isinstance(change.this, exp.Column):
            yield _name(change.this.this), change.expression


def _numbers(value: exp.Expr) -> Iterator[int]:
    for column in value.find_all(exp.Column):
        if column.name[:1] == "$" and column.name[1:].isdigit():
            yield int(column.name[1:])


def _name(identifier: exp.Expr) -> str:
    return identifier.name if identifier.args.get("quoted") else identifier.name.lower()


# What runs in a database now: since when, what it waits for, and who makes whom wait.


@dataclass(frozen=True, slots=True)
class Running:
    """A session that is not idle, or one that others wait for; or a prepared transaction, which has no session."""

    key: str  # the process id; of a prepared transaction `prepared` and its name
    user: str
    database: str
    application: str
    client: str  # its address; "" through a socket
    kind: str  # "client backend", "autovacuum worker", ..., "prepared transaction"
    state: str  # "active", "idle in transaction", ...; "" where it may not be seen
    wait: str  # "Lock: transactionid"; "" while it does not wait
    id: str  # the server's query id; "" where it has none
    text: str  # what runs, or of an idle session its last statement; "" where it may not be seen
    seconds: float | None  # since the statement began, or in the state it is in
    transaction_s: float | None  # since its transaction began
    hidden: bool = False  # whether this role may not see its statement
    blocked_by: tuple[str, ...] = ()  # keys, those before it in a queue for a lock too


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of the tree of who waits for whom: `depth` 0 waits for nobody, unless it is in a circle."""

    depth: int
    running: Running
    circle: bool = False  # whether it waits for one of those below it: a deadlock that is not resolved yet


@dataclass(frozen=True, slots=True)
class Activity:
    """What runs, the longest first, without the session that asked; and the tree of those who wait, line by line."""

    source: str
    at: datetime
    running: tuple[Running, ...]
    blocking: tuple[Branch, ...]
    hidden: int = 0  # sessions whose statement this role may not see
    notes: tuple[str, ...] = ()


def now(connection: Connection, name: str = "") -> Activity:
    """What runs in the connection's database; `name` is what messages call that.

    Outside a transaction, within which the server always gives the same answer. Raises ServerError.
    """
    here = name or connection.info.dbname
    try:
        rows = catalog.rows(connection, "slow_activity")
        prepared = catalog.rows(connection, "slow_prepared")
        said = catalog.row(connection, "slow_clock")
    except psycopg.Error as error:
        raise ServerError(f"{visible(here)}: {visible(first_line(error))}; expected to read its activity") from None
    sessions = [_session(row) for row in rows]
    blockers = {key for session in sessions for key in session.blocked_by}
    held = [found for row in prepared if (found := _prepared(row)).key in blockers]
    shown = [s for s in sessions if s.database == said["database"] and s.state not in ("", "idle")]
    hidden = sum(session.hidden for session in sessions)
    notes = (f"{counted(hidden, 'statement')} hidden; {GRANT} {said['user']} shows them",) if hidden else ()
    running = tuple(sorted(shown, key=lambda r: -(r.seconds or 0)))
    return Activity(f"activity in {here}", said["at"], running, tree([*sessions, *held]), hidden, notes)


def tree(everything: Iterable[Running]) -> tuple[Branch, ...]:
    """Who blocks whom, each session once: below the blocker that is nearest to the one who waits for nobody.

    Those in a queue for one lock are all blocked by its holder and by those before them; they come below the holder.
    A circle begins with the one in it that waits longest. Blockers that are gone count as none. Pure.
    """
    known = {running.key: running for running in everything}
    waiting = {key: [b for b in r.blocked_by if b in known and b != key] for key, r in known.items()}
    behind: dict[str, list[str]] = {}
    for key, blockers in waiting.items():
        for blocker in blockers:
            behind.setdefault(blocker, []).append(key)
    parents: dict[str, str] = {}
    placed: set[str] = set()
    roots = [key for key in behind if not waiting[key]]
    _spread(roots, behind, parents, placed)
    circles = set()
    for key in sorted(behind, key=lambda key: -(known[key].seconds or 0)):
        if key not in placed:
            roots.append(key)
            circles.add(key)
            _spread([key], behind, parents, placed)
    return tuple(_lines(known, roots, parents, circles))


def _spread(level: list[str], behind: Mapping[str, list[str]], parents: dict[str, str], placed: set[str]) -> None:
    """Place everybody who waits for these, directly or not, level by level."""
    placed.update(level)
    while level:
        following = []
        for blocker in level:
            for key in behind.get(blocker, ()):
                if key not in placed:
                    placed.add(key)
                    parents[key] = blocker
                    following.append(key)
        level = following


def _lines(
    known: Mapping[str, Running], roots: list[str], parents: Mapping[str, str], circles: Collection[str]
) -> Iterable[Branch]:
    """The tree from the top, at every level those who wait longest first."""
    children: dict[str, list[str]] = {}
    for key, parent in parents.items():
        children.setdefault(parent, []).append(key)

    def longest_last(keys: Iterable[str], depth: int) -> list[tuple[str, int]]:
        return [(key, depth) for key in sorted(keys, key=lambda key: known[key].seconds or 0)]

    left = longest_last(roots, 0)
    while left:
        key, depth = left.pop()
        yield Branch(depth, known[key], key in circles)
        left += longest_last(children.get(key, ()), depth + 1)


def _session(row: Mapping[str, Any]) -> Running:
    words = {name: row[name] or "" for name in ("user", "database", "application", "client", "kind", "state", "wait")}
    prepared = [f"prepared {gid}" for gid in row["prepared"]]
    return Running(
        str(row["pid"]),
        **words,
        id=row["id"] or "",
        text=row["text"] or "",
        seconds=row["seconds"],
        transaction_s=row["transaction_seconds"],
        hidden=row["hidden"],
        blocked_by=(*map(str, row["blocked_by"]), *prepared),
    )


def _prepared(row: Mapping[str, Any]) -> Running:
    return Running(
        f"prepared {row['gid']}",
        row["user"] or "",
        row["database"] or "",
        application="",
        client="",
        kind="prepared transaction",
        state="prepared",
        wait="",
        id="",
        text="",
        seconds=row["seconds"],
        transaction_s=row["seconds"],
    )
