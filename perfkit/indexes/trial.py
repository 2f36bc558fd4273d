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
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psycopg

from perfkit.base.errors import UsageError, first_line
from perfkit.base.units import count, significant
from perfkit.explain.candidates import limited
from perfkit.explain.capture import (
    Capture,
    ExplainSpec,
    Parameters,
    explain_json,
    explained,
    named,
    numbered,
    session,
    set_limits,
    single,
)
from perfkit.explain.comparison import fingerprint
from perfkit.explain.conditions import SCANS
from perfkit.explain.facts import ask, fetched, parsed, quoted, relations
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import Node, Plan, load_plan
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.commands import pin, send
from perfkit.postgres.databases import Database
from perfkit.postgres.parser import parse_statements
from perfkit.postgres.sqltext import sendable, split

SOUND = (1, 4, 5)  # the first version of HypoPG without the fault
_ON_ONE_TABLE = ("SelectStmt", "UpdateStmt", "DeleteStmt")
_ELSEWHERE = ("JoinExpr", "RangeFunction", "RangeSubselect", "RangeTableFunc", "JsonTable", "WithClause", "SubLink")


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
    if numbers[oldest] >= SOUND:
        return ""
    return (
        f"HypoPG {oldest if numbers[oldest] else 'of an unknown version'} can ignore a partial or expression index, or "
        "crash the server for it, unless the statement reads only its table, and directly"
    )


def only_table(text: str) -> str:
    """Return the name, as SQL, of the only relation that a statement reads or changes; "" if unsure.

    >>> only_table('SELECT * FROM "Sales".orders o WHERE id = $1')
    '"Sales".orders'
    >>> only_table("SELECT * FROM orders WHERE id IN (SELECT id FROM orders)")
    ''
    """
    statements = parse_statements(text)
    if len(statements) != 1 or statements[0].kind not in _ON_ONE_TABLE:
        return ""
    nodes = [*statements[0].walk()]
    tables = [node for node in nodes if node.kind == "RangeVar"]
    nested = [node for node in nodes if node.kind in (*_ELSEWHERE, *_ON_ONE_TABLE)]
    if len(nested) != 1 or len(tables) != 1 or tables[0].text("catalogname"):
        return ""
    return ".".join(quoted(name) for key in ("schemaname", "relname") if (name := tables[0].text(key)))


def _number(version: str | None) -> tuple[int, ...]:
    """Return the numbers of a version; none if it is not a version."""
    return tuple(map(int, version.split("."))) if version and re.fullmatch(r"\d+(\.\d+)*", version) else ()


# The cost of a query by its plan, and the gain that makes an index worth building. Pure.

SLACK = 16.0  # pages, or units of cost: a few lookups, which nobody notices, so that tiny tables never get an index
ROOM = 32.0  # pages by which a smaller index may exceed a larger one: nobody notices so few
MOSTLY = 0.3  # share of a table's rows from which on a scan counts as one of the whole index
TRUSTED = 2.0  # factor between expected and actual rows up to which the planner's costs are believed
# An index helps if the pages fall to half, without the slack, or if the time falls to a third, which a single
# measurement shows safely: but only a time that people notice, and only if hardly more pages are read than before,
# because on another day they are not in memory. It also helps if it avoids the sort of many rows for a LIMIT and the
# pages do not increase.
HALF, QUICKER, FELT_MS, AS_MANY, SORTED = 2.0, 3.0, 5.0, 1.25, 1000.0


@dataclass(frozen=True, slots=True)
class CostFigures:
    """The cost of a query with the checks of its foreign keys; pages and ms are None if nothing was executed."""

    pages: float | None
    ms: float | None
    cost: float
    sorted: float = 0.0  # rows sorted for a LIMIT
    narrow: float = 0.0  # pages saved only because an index that is read as a whole is smaller than its table
    again: float = 0.0  # of the pages, those touched repeatedly, which costs next to nothing

    @property
    def work(self) -> float:
        """Return the pages, or the planner's cost if nothing was executed."""
        return (self.cost if self.pages is None else self.pages) + self.narrow

    def __str__(self) -> str:
        return f"cost {significant(self.cost)}" if self.pages is None else f"{count(self.pages)} pages"


def figures(look: FindingContext) -> CostFigures:
    """Return the cost of one plan."""
    plan, root = look.plan, look.plan.root
    sort = sum(_sorted(plan, node) for node in plan.nodes if node.kind == "Sort")
    narrow = sum(_narrow(look, node) for node in plan.nodes if node.kind == "Index Only Scan")
    pages, ms = (plan.buffers, plan.execution_ms) if plan.analyzed else (None, None)
    return CostFigures(pages, ms, root.cost, sort, narrow, _again(plan))


def helps(before: CostFigures, after: CostFigures) -> bool:
    """Return whether an index is worth keeping for a query."""
    spared = before.sorted >= SORTED and not after.sorted and after.work <= before.work
    return spared or quicker(before, after) or (after.work + SLACK) * HALF <= before.work + SLACK


def quicker(before: CostFigures, after: CostFigures) -> bool:
    """Return whether the measured time falls so far that the pages, nearly as many as before, do not matter."""
    if before.ms is None or after.ms is None or before.ms < FELT_MS:
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
    return max(0.0, plan.buffers - plan.root.cost) if trusted else 0.0


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
    if node.index_condition and (node.loops > 1 or rows < MOSTLY * table.rows):
        return 0.0
    return max(0.0, table.pages - (node.own_pages if look.plan.analyzed else node.cost))


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


class IndexTrial(ABC):
    """A way to explain statements as if some indexes existed.

    `made` are the tried indexes, `failed` the server's messages on the others, by CREATE INDEX statement.
    """

    evidence: str  # the evidence class of the plans

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.made: dict[str, Made] = {}
        self.failed: dict[str, str] = {}

    def avoided(self, text: str, statement: str) -> str:
        """Return why an index is not tried for a statement, as a clause; "" if it is tried."""
        return ""

    @abstractmethod
    def explain(self, text: str, parameters: Parameters, present: Collection[str]) -> Capture:
        """Return a statement's plan with these indexes, without the avoided ones. Raises psycopg.Error."""

    def _make_each(self, statements: Sequence[str], make: Callable[[str], Made]) -> None:
        """Make an index for each statement. `make` raises psycopg.Error, or UsageError if it made nothing."""
        for statement in statements:
            with _restored(self.connection, keep=True):
                try:
                    self.made[statement] = make(statement)
                except (psycopg.Error, UsageError) as error:
                    self.failed[statement] = first_line(error)
                    _back(self.connection)


@contextmanager
def trying(
    database: Database, statements: Sequence[str], timeout_s: float = 60.0, *, executed: bool = True
) -> Iterator[IndexTrial | None]:
    """Return the best way to try these CREATE INDEX statements in a database; None if there is none.

    With real indexes, statements are executed unless `executed` is false. Raises PlanError with the server's message
    if a statement cannot be explained.
    """
    if not database.server.foreign:
        with session(database.session, timeout_s, read_only=False) as connection:
            yield _Rolled(connection, statements, timeout_s, executed)
        return
    with session(database.session, timeout_s) as connection:
        hypopg = catalog.row(connection, "hypopg")
        connection.rollback()
        yield _Imagined(connection, statements, timeout_s, hypopg) if hypopg else None


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


class _Rolled(IndexTrial):
    """Real indexes in a transaction that is rolled back; each different plan is executed once."""

    def __init__(self, connection: Connection, statements: Sequence[str], timeout_s: float, executed: bool) -> None:
        super().__init__(connection)
        self.executed, self.evidence = executed, MEASURED if executed else ESTIMATED
        self._prepared = 0
        self._known: dict[tuple[str, str, str], Capture] = {}
        self._expressive: set[str] = set()
        self._oids = {row["oid"] for row in catalog.rows(connection, "own_indexes")}
        connection.execute("SET LOCAL statement_timeout = 0")
        self._make_each(statements, self._make)
        for table in sorted(self._expressive):  # an expression has no statistics until its index is analysed
            connection.execute(f"ANALYZE {table}".encode())
        connection.execute(f"SET LOCAL statement_timeout = {max(1, int(timeout_s * 1000))}".encode())

    def _make(self, statement: str) -> Made:
        send(self.connection.cursor(), statement)
        new = [row for row in catalog.rows(self.connection, "own_indexes") if row["oid"] not in self._oids]
        if not new:
            raise UsageError("an index of this name exists already")
        self._oids |= {row["oid"] for row in new}
        self._expressive |= {row["on_table"] for row in new if row["expressive"]}
        names, size = frozenset(row["name"] for row in new), sum(row["bytes"] for row in new)
        return Made(names, next(row["quoted"] for row in new if not row["part"]), int(size))

    def explain(self, text: str, parameters: Parameters, present: Collection[str]) -> Capture:
        """Drop the other indexes, explain, and roll back to the savepoint."""
        text = single(text)
        absent = [made.quoted for statement, made in self.made.items() if statement not in present]
        with _restored(self.connection):
            if absent:
                self.connection.execute(f"DROP INDEX {', '.join(absent)}".encode())
            planned = explained(self.connection, text, parameters, ExplainSpec(analyze=False))
            if not self.executed:
                return self._captured(planned)
            measured = self._measured(text, parameters, planned)
            generic = self._generic(text, parameters, planned) if parameters else None
        return max(measured, generic or measured, key=lambda capture: capture.plan.buffers)

    def _measured(self, text: str, parameters: Parameters, planned: Plan) -> Capture:
        """Execute the statement once for each plan, and return the plan with actual figures."""
        key = (text, repr(parameters), fingerprint(planned))
        if key not in self._known:
            executed = self._executed(text, parameters)
            if executed.execution_ms < _AGAIN_MS:  # with its pages in memory, as an index just built has
                again = (self._executed(text, parameters) for _ in range(2))
                executed = min(again, key=lambda executed: executed.execution_ms)
            self._known[key] = self._captured(executed)
        return self._known[key]

    def _executed(self, text: str, parameters: Parameters) -> Plan:
        with _restored(self.connection):
            return explained(self.connection, text, parameters, ExplainSpec(writes=True), forced=True)

    def _generic(self, text: str, parameters: Parameters, planned: Plan) -> Capture | None:
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
            if generic.root.cost > planned.root.cost + planning:
                return None
            return self._measured(execute, None, generic)

    def _captured(self, plan: Plan) -> Capture:
        return Capture((plan,), tuple(ask(self.connection, plan)))


class _Imagined(IndexTrial):
    """Hypothetical indexes of HypoPG, which only the planner of this backend knows; nothing is executed.

    `fault` is the fault of this HypoPG with partial and expression indexes, which are `delicate` in that case.
    """

    evidence = ESTIMATED

    def __init__(
        self, connection: Connection, statements: Sequence[str], timeout_s: float, hypopg: Mapping[str, str]
    ) -> None:
        super().__init__(connection)
        self.timeout_s, self.schema = timeout_s, hypopg["schema"]
        self.fault, self.delicate = fault(hypopg["version"], hypopg["files"]), frozenset[str]()
        self._plain: dict[str, bool] = {}
        self._tables: dict[frozenset[tuple[str, str]], tuple[object, ...]] = {}
        with self._transaction():
            self._make_each(statements, self._imagine)
            if self.fault:
                query = f"SELECT indexname FROM {self.schema}.hypopg() WHERE coalesce(indexprs, indpred) IS NOT NULL"
                names = {row["indexname"] for row in connection.execute(query.encode())}
                self.delicate = frozenset(s for s, made in self.made.items() if made.names & names)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Open a transaction with time limits; at its end forget the hypothetical indexes and roll back.

        No transaction stays open while perfkit reads a plan: it would hold back VACUUM on the user's server. The
        indexes live in the backend, which a pooler gives to other clients between two transactions.
        """
        set_limits(self.connection, self.timeout_s)
        self.connection.execute(f"SAVEPOINT {_SAVED}".encode())
        try:
            yield
        finally:
            _back(self.connection)
            self.connection.execute(f"SELECT {self.schema}.hypopg_reset()".encode())
            self.connection.rollback()

    def avoided(self, text: str, statement: str) -> str:
        """Return the fault of this HypoPG if the index is delicate and the statement reads other relations."""
        if statement not in self.delicate:
            return ""
        if text not in self._plain:
            name, query = only_table(numbered(positional(text, ["%s"]))), catalog.get("plain_table").encode()
            with self._transaction():
                self._plain[text] = bool(name and self.connection.execute(query, {"name": name}).fetchone())
        return "" if self._plain[text] else self.fault

    def explain(self, text: str, parameters: Parameters, present: Collection[str]) -> Capture:
        """Imagine the indexes and explain in one transaction; read the plan after its end."""
        tried = [statement for statement in present if not self.avoided(text, statement)]
        text = single(text)
        self.made |= {statement: replace(self.made[statement], names=frozenset()) for statement in present}
        with self._transaction():
            self.made |= {statement: self._imagine(statement) for statement in tried}  # by another name each time
            raw = explain_json(self.connection, text, parameters, ExplainSpec(analyze=False))
        plan = load_plan(raw)
        if (tables := relations(plan)) not in self._tables:
            with self._transaction():
                facts = fetched(self.connection, plan)
            self._tables[tables] = tuple(parsed(facts))
        return Capture((plan,), self._tables[tables])

    def _imagine(self, statement: str) -> Made:
        schema = self.schema.replace("%", "%%")
        sizes, create = f"{schema}.hypopg_relation_size(indexrelid)", f"{schema}.hypopg_create_index(%s)"
        query = f"SELECT indexname AS name, {sizes} AS bytes FROM {create}".encode()
        pin(self.connection)  # HypoPG reads the statement by this session's settings
        [row] = self.connection.execute(query, [sendable(statement)]).fetchall()
        return Made(frozenset({row["name"]}), "", int(row["bytes"]))


@contextmanager
def _restored(connection: Connection, *, keep: bool = False) -> Iterator[None]:
    """Set a savepoint and roll back to it afterwards, or release it with `keep`."""
    connection.execute(f"SAVEPOINT {_SAVED}".encode())
    yield  # no cleanup after an error, which ends the whole transaction
    if not keep:
        _back(connection)
    connection.execute(f"RELEASE SAVEPOINT {_SAVED}".encode())


def _back(connection: Connection) -> None:
    connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVED}".encode())
