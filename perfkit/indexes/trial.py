"""Trials of indexes, built and rolled back or hypothetical (HypoPG), and the cost of plans with them.

HypoPG before 1.4.5 stores the condition and the expressions of a hypothetical index as columns of the first entry of a
statement's range table. That is its table only if the statement reads no other one. Elsewhere (second in FROM, behind
a view, in a subquery, as a partition) the condition is compared with another table's columns: the index is ignored,
and the lookup of their statistics can crash the backend, so that the server restarts and every session is lost.
Observed: 1.3.1 ignores the index, 1.4.2 and 1.4.3 crash. The changelog of 1.4.5 names the remedy ("relid handling ...,
that could lead to a crash").

A build that is rolled back blocks writes to its table until the end, so it happens only in databases that perfkit made.
There all indexes are built once; a trial of some of them drops the others and rolls back to a savepoint.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import psycopg
import sqlglot
from psycopg.rows import dict_row
from sqlglot import exp
from sqlglot.errors import SqlglotError

from perfkit.base.errors import UsageError, first_line
from perfkit.base.units import count, significant
from perfkit.explain.candidates import SCANS
from perfkit.explain.capture import Capture, ExplainSpec, Parameters, explained, named, numbered, session, single
from perfkit.explain.comparison import fingerprint
from perfkit.explain.facts import ask
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.findings.scans import limited
from perfkit.explain.plan import Node, Plan, read_plan
from perfkit.postgres import catalog
from perfkit.postgres.commands import pin, send, sendable
from perfkit.postgres.databases import Database
from perfkit.postgres.sqltext import split

# HypoPG's faults, each with the first version without it.
FAULTS = (
    (
        (1, 4, 5),
        "can ignore a partial or expression index, or crash the server for it, unless the statement reads only its "
        "table, and directly",
    ),
)
_ELSEWHERE = (exp.Join, exp.Lateral, exp.Values, exp.With, exp.Unnest, exp.Subquery, exp.SetOperation)


def fault(*versions: str | None) -> str:
    """Return the fault of the oldest of these versions as a clause; "" for none. An unknown version is the oldest.

    >>> fault("1.4.5", "1.5")
    ''
    >>> fault("1.4.5", "1.4.3").partition(" or ")[0]
    'HypoPG 1.4.3 can ignore a partial'
    >>> fault("1.4.5", None).partition(" or ")[0]
    'HypoPG of an unknown version can ignore a partial'
    """
    numbers = {version: _number(version) for version in versions}
    oldest = min(numbers, key=lambda version: numbers[version])
    named = f"HypoPG {oldest}" if numbers[oldest] else "HypoPG of an unknown version"
    return next((f"{named} {does}" for sound, does in FAULTS if numbers[oldest] < sound), "")


def only_table(text: str) -> str:
    """Return the name, as SQL, of the only relation that a statement reads or changes; "" if unsure.

    >>> only_table('SELECT * FROM "Sales".orders o WHERE id = $1')
    '"Sales".orders'
    >>> only_table("SELECT * FROM orders WHERE id IN (SELECT id FROM orders)")
    ''
    """
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return ""
    tables, selects = [*parsed.find_all(exp.Table)], [*parsed.find_all(exp.Select)]
    simple = isinstance(parsed, exp.Select | exp.Update | exp.Delete) and not parsed.find(*_ELSEWHERE)
    if not simple or len(tables) != 1 or selects != [parsed][: len(selects)]:
        return ""
    table = tables[0]
    if not isinstance(table.this, exp.Identifier) or table.args.get("catalog"):
        return ""
    return exp.Table(this=table.this, db=table.args.get("db")).sql(dialect="postgres")


def _number(version: str | None) -> tuple[int, ...]:
    """Return the numbers of a version; none if it is not a version."""
    return tuple(map(int, version.split("."))) if version and re.fullmatch(r"\d+(\.\d+)*", version) else ()


# What a query costs by its plan, and how much less of it an index must bring to be worth making. Pure.

SLACK = 16.0  # pages, or units of cost: a few lookups, felt by nobody, so that tiny tables never get an index
ROOM = 32.0  # what an index may take more than another that is larger: nobody feels so few pages
MOSTLY = 0.3  # of a table's rows: an index that is read for so many stands for its table as one that is read whole
TRUSTED = 2.0  # times as many rows as expected, at most, for the planner's costs to be taken for anything
HALF = 2.0  # an index helps a query that then touches at most half the pages, the slack aside,
QUICKER = 3.0  # or takes a third of its time, which a single measurement shows safely
FELT = 5.0  # where that was so many ms,
AS_MANY = 1.25  # and reads hardly more pages than before: on another day they are not in memory
SORTED = 1000.0  # or where it spares sorting at least so many rows for a LIMIT, and more pages are not touched


@dataclass(frozen=True, slots=True)
class CostFigures:
    """What a query costs, foreign keys' checks included; pages and ms are None where nothing was executed."""

    pages: float | None
    ms: float | None
    cost: float
    sorted: float = 0.0  # rows sorted for a LIMIT
    narrow: float = 0.0  # pages spared only because an index that is read from end to end is smaller than its table
    again: float = 0.0  # of the pages, those touched again and again, which costs next to nothing

    @property
    def work(self) -> float:
        """Pages, or the planner's cost where nothing was executed."""
        return (self.cost if self.pages is None else self.pages) + self.narrow

    def __str__(self) -> str:
        return f"cost {significant(self.cost)}" if self.pages is None else f"{count(self.pages)} pages"


def figures(look: FindingContext) -> CostFigures:
    """What one plan costs."""
    plan, root = look.plan, look.plan.root
    done = plan.analyzed
    sort = sum(_sorted(plan, node) for node in plan.nodes if node.kind == "Sort")
    narrow = sum(_narrow(look, node) for node in plan.nodes if node.kind == "Index Only Scan")
    pages, ms = (plan.buffers, plan.execution_ms) if done else (None, None)
    return CostFigures(pages, ms, root.value("Total Cost"), sort, narrow, _again(plan))


def helps(before: CostFigures, after: CostFigures) -> bool:
    """The rule by which an index is kept."""
    spared = before.sorted >= SORTED and not after.sorted and after.work <= before.work
    return spared or quicker(before, after) or (after.work + SLACK) * HALF <= before.work + SLACK


def quicker(before: CostFigures, after: CostFigures) -> bool:
    """Whether the time that was measured falls so far that the pages, nearly as many, do not matter."""
    if before.ms is None or after.ms is None or before.ms < FELT:
        return False
    return after.ms * QUICKER <= before.ms and after.work <= AS_MANY * before.work + SLACK


def gain(before: CostFigures, after: CostFigures) -> float:
    """Return a query's gain as a power of two; an avoided sort adds a little."""
    spared = 0.5 if before.sorted >= SORTED and not after.sorted else 0.0
    return math.log2((before.work - before.again + ROOM) / (after.work - after.again + ROOM)) + spared


def _again(plan: Plan) -> float:
    """Return the pages beyond the planner's expectation for adjacent rows; 0 if its row estimates were wrong."""
    scans = [node for node in plan.nodes if node.kind in SCANS]
    trusted = plan.analyzed and not any(node.kind == "Limit" for node in plan.nodes)
    trusted = trusted and all(node.misestimate <= TRUSTED for node in scans)
    return max(0.0, plan.buffers - plan.root.value("Total Cost")) if trusted else 0.0


def _sorted(plan: Plan, node: Node) -> float:
    """Return the number of rows that enter a Sort below a LIMIT."""
    top = next((above for above in node.above() if above.kind not in ("Gather Merge", "LockRows", "Result")), None)
    below = node.children[0] if node.children else node
    return (below.rows if plan.analyzed else below.estimated) if top is not None and top.kind == "Limit" else 0.0


def _narrow(look: FindingContext, node: Node) -> float:
    """Return the pages saved by an index that is read as a whole in place of its larger table."""
    table = look.facts.of(node)
    if table is None or limited(node):
        return 0.0
    rows = node.rows if look.plan.analyzed else node.estimated
    if node.text("Index Cond") and (node.loops > 1 or rows < MOSTLY * table.rows):
        return 0.0
    return max(0.0, table.pages - (node.own_pages if look.plan.analyzed else node.value("Total Cost")))


def with_checks(total: CostFigures, more: CostFigures, times: float) -> CostFigures:
    """Return the cost of a statement plus the checks that it causes; its time includes them already."""
    pages = None if total.pages is None else total.pages + times * (more.pages or 0.0)
    again = total.again + times * more.again
    return CostFigures(pages, total.ms, total.cost + times * more.cost, total.sorted, total.narrow, again)


MEASURED, ESTIMATED, UNVERIFIED = "measured once", "estimated", "not verified"
_CREATE = re.compile(r"(CREATE\s+(?:UNIQUE\s+)?INDEX\s+)(?:CONCURRENTLY\s+)?", re.IGNORECASE)
_SAVED = "perfkit_trial"
_AGAIN_MS = 500.0
_PLANNING = 2.5  # the server's charge for planning a relation: plancache.c, cached_plan_cost


@dataclass(frozen=True, slots=True)
class Made:
    """A tried index: its names in plans (several on a partitioned table) and its bytes."""

    names: frozenset[str]
    quoted: str
    bytes: int


class IndexTrial(Protocol):
    """A way to explain statements as if some indexes existed."""

    @property
    def evidence(self) -> str:
        """Return the evidence class of the plans."""

    @property
    def made(self) -> Mapping[str, Made]:
        """Return the tried index of each CREATE INDEX statement."""

    @property
    def failed(self) -> Mapping[str, str]:
        """Return the server's message for each statement that failed."""

    def avoided(self, text: str, statement: str) -> str:
        """Return why an index is not tried for a statement, as a clause; "" if it is tried."""

    def explain(self, text: str, parameters: Parameters, present: Collection[str]) -> Capture:
        """Return a statement's plan with these indexes, without the avoided ones. Raises psycopg.Error."""


@contextmanager
def trying(
    place: Database, statements: Sequence[str], timeout_s: float = 60.0, *, executed: bool = True
) -> Iterator[IndexTrial | None]:
    """Return the best way to try these CREATE INDEX statements in a database; None if there is none.

    With real indexes, statements are executed unless `executed` is false. Raises PlanError with the server's message
    if a statement cannot be explained.
    """
    if not place.server.foreign:
        with session(place.session, timeout_s, read_only=False) as connection:
            yield _Rolled(connection, statements, timeout_s, executed)
        return
    with session(place.session, timeout_s) as connection:
        if there := catalog.row(connection, "hypopg"):
            schema = there["schema"]
            with _restored(connection):
                try:
                    yield _Imagined(connection, statements, schema, fault(there["version"], there["files"]))
                finally:  # hypothetical indexes live in the backend, so reset them on the same connection
                    _back(connection)
                    connection.execute(f"SELECT {schema}.hypopg_reset()".encode())
            return
    yield None


def one_index(statement: str) -> str:
    """Return the only CREATE INDEX of a text, without CONCURRENTLY. Raises UsageError for anything else."""
    found = split(statement)
    match = _CREATE.match(found[0].text) if found else None
    if len(found) != 1 or not match:
        shown = " ".join(statement.split())[:60]
        raise UsageError(f"{shown!r}: expected one CREATE INDEX statement")
    return match[1] + found[0].text[match.end() :]


def positional(text: str, parameters: Parameters) -> str:
    """Return a text with `$1`, `$2`, ... in place of `%s`.

    >>> positional("SELECT %s, %s LIKE 'a%%'", [1, 2])
    "SELECT $1, $2 LIKE 'a%'"
    """
    if isinstance(parameters, Mapping) or "%s" not in text:
        return text
    counter = itertools.count(1)
    return re.sub("%[s%]", lambda m: f"${next(counter)}" if m[0] == "%s" else "%", text)


@dataclass(eq=False)
class _Rolled:
    """Real indexes in a transaction that is rolled back; each different plan is executed once."""

    connection: psycopg.Connection[Any]
    statements: Sequence[str]
    timeout_s: float
    executed: bool = True
    _prepared: int = 0
    made: dict[str, Made] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    _known: dict[tuple[str, str, str], Capture] = field(default_factory=dict)

    @property
    def evidence(self) -> str:
        return MEASURED if self.executed else ESTIMATED

    def __post_init__(self) -> None:
        self.connection.execute("SET LOCAL statement_timeout = 0")
        expressive: set[str] = set()
        known = {row["oid"] for row in self._indexes()}
        for statement in self.statements:
            with _restored(self.connection, keep=True):
                try:
                    send(self.connection.cursor(), statement)
                except psycopg.Error as error:
                    self.failed[statement] = first_line(error)
                    _back(self.connection)
                    continue
            new = [row for row in self._indexes() if row["oid"] not in known]
            known |= {row["oid"] for row in new}
            if not new:
                self.failed[statement] = "an index of this name exists already"
                continue
            names, size = frozenset(row["name"] for row in new), sum(row["bytes"] for row in new)
            self.made[statement] = Made(names, next(row["quoted"] for row in new if not row["part"]), int(size))
            expressive |= {row["on_table"] for row in new if row["expressive"]}
        for table in sorted(expressive):  # an expression has no statistics until its index is analysed
            self.connection.execute(f"ANALYZE {table}".encode())
        self.connection.execute(f"SET LOCAL statement_timeout = {max(1, int(self.timeout_s * 1000))}".encode())

    def avoided(self, text: str, statement: str) -> str:
        return ""

    def explain(self, text: str, parameters: Parameters, present: Collection[str]) -> Capture:
        text = single(text)
        absent = [made.quoted for statement, made in self.made.items() if statement not in present]
        with _restored(self.connection):
            if absent:
                self.connection.execute(f"DROP INDEX {', '.join(absent)}".encode())
            planned = explained(self.connection, text, parameters, ExplainSpec(analyze=False))
            if not self.executed:
                return _captured(self.connection, planned)
            found = self._measured(text, parameters, planned)
            if parameters and (kept := self._kept(text, parameters, read_plan(planned))):
                return max(found, kept, key=lambda capture: capture.plan.buffers)
        return found

    def _measured(self, text: str, parameters: Parameters, planned: Any) -> Capture:
        """Execute the statement once for each plan, and return the plan with actual figures."""
        key = (text, repr(parameters), fingerprint(read_plan(planned)))
        if key not in self._known:
            document = self._executed(text, parameters)
            if read_plan(document).execution_ms < _AGAIN_MS:  # with its pages in memory, as an index just built has
                document = min(
                    (self._executed(text, parameters) for _ in range(2)), key=lambda d: read_plan(d).execution_ms
                )
            document[0].get("Settings", {}).pop("plan_cache_mode", None)  # ours, not the server's
            self._known[key] = _captured(self.connection, document)
        return self._known[key]

    def _executed(self, text: str, parameters: Parameters) -> Any:
        with _restored(self.connection):
            return explained(self.connection, text, parameters, ExplainSpec(writes=True))

    def _kept(self, text: str, parameters: Parameters, planned: Plan) -> Capture | None:
        """Execute the statement as a prepared one with its generic plan, which drivers end up with.

        Return None if the server would not use the generic plan, because plans for the values are cheaper.
        """
        self._prepared += 1
        name = f"perfkit_trial_{self._prepared}"
        values = [parameters[key] for key in named(text)] if isinstance(parameters, Mapping) else [*(parameters or ())]
        execute = f"EXECUTE {name}({', '.join(['%s'] * len(values))})" if values else f"EXECUTE {name}"
        with _restored(self.connection):
            try:
                send(self.connection.cursor(), f"PREPARE {name} AS {numbered(positional(text, parameters))}")
                self.connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
                execute = psycopg.ClientCursor(self.connection).mogrify(execute.encode(), values)
                generic = explained(self.connection, execute, None, ExplainSpec(analyze=False))
            except psycopg.Error:
                return None  # the statement cannot be planned without values
            planning = _PLANNING * (1 + len(planned.nodes))
            if read_plan(generic).root.value("Total Cost") > planned.root.value("Total Cost") + planning:
                return None
            return self._measured(execute, None, generic)

    def _indexes(self) -> list[dict[str, Any]]:
        return self.connection.cursor(row_factory=dict_row).execute(catalog.get("own_indexes").encode()).fetchall()


@dataclass(eq=False)
class _Imagined:
    """Hypothetical indexes of HypoPG, which only the planner of this backend knows; nothing is executed.

    `fault` is the fault of this HypoPG with partial and expression indexes, which are `delicate` in that case.
    """

    connection: psycopg.Connection[Any]
    statements: Sequence[str]
    schema: str
    fault: str
    evidence: str = ESTIMATED
    made: dict[str, Made] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    delicate: frozenset[str] = frozenset()
    _plain: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for statement in self.statements:
            with _restored(self.connection, keep=True):
                try:
                    self.made[statement] = self._imagine(statement)
                except psycopg.Error as error:
                    self.failed[statement] = first_line(error)
                    _back(self.connection)
        if self.fault:
            asked = (
                f"SELECT indexname AS name FROM {self.schema}.hypopg() WHERE coalesce(indexprs, indpred) IS NOT NULL"
            )
            rows = self.connection.cursor(row_factory=dict_row).execute(asked.encode()).fetchall()
            names = {row["name"] for row in rows}
            self.delicate = frozenset(s for s, made in self.made.items() if made.names & names)

    def avoided(self, text: str, statement: str) -> str:
        if statement not in self.delicate:
            return ""
        if text not in self._plain:
            name = only_table(numbered(positional(text, ["%s"])))
            asked = catalog.get("plain_table").encode()
            self._plain[text] = bool(name) and self.connection.execute(asked, {"name": name}).fetchone() is not None
        return "" if self._plain[text] else self.fault

    def explain(self, text: str, parameters: Parameters, present: Collection[str]) -> Capture:
        self.connection.execute(f"SELECT {self.schema}.hypopg_reset()".encode())
        for statement in present:
            if self.avoided(text, statement):
                self.made[statement] = replace(self.made[statement], names=frozenset())
            else:
                self.made[statement] = self._imagine(statement)  # by another name each time
        with _restored(self.connection):
            return _captured(self.connection, explained(self.connection, single(text), parameters, ExplainSpec(False)))

    def _imagine(self, statement: str) -> Made:
        schema = self.schema.replace("%", "%%")
        sizes, create = f"{schema}.hypopg_relation_size(indexrelid)", f"{schema}.hypopg_create_index(%s)"
        query = f"SELECT indexname AS name, {sizes} AS bytes FROM {create}".encode()
        pin(self.connection)  # HypoPG reads the statement by this session's settings
        row = self.connection.cursor(row_factory=dict_row).execute(query, [sendable(statement)]).fetchone() or {}
        return Made(frozenset({row["name"]}), "", int(row["bytes"]))


@contextmanager
def _restored(connection: psycopg.Connection[Any], *, keep: bool = False) -> Iterator[None]:
    """Set a savepoint and roll back to it afterwards, or release it with `keep`."""
    connection.execute(f"SAVEPOINT {_SAVED}".encode())
    yield  # no cleanup after an error, which ends the whole transaction
    if not keep:
        _back(connection)
    connection.execute(f"RELEASE SAVEPOINT {_SAVED}".encode())


def _back(connection: psycopg.Connection[Any]) -> None:
    connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVED}".encode())


def _captured(connection: psycopg.Connection[Any], document: Any) -> Capture:
    return Capture((document,), tuple(ask(connection, read_plan(document))))
