"""Plans compared: their scans, their fingerprints, and what changed; and the rows of a query and its rewrite."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

import psycopg
from psycopg.rows import tuple_row

from perfkit.base.errors import PlanError
from perfkit.explain.capture import READING, Connect, ExplainSpec, Parameters, explain_json, session, single
from perfkit.explain.plan import JOINS, Node, Plan, load_plan
from perfkit.postgres.catalog import Connection
from perfkit.postgres.commands import exact, send
from perfkit.postgres.sqltext import first_word

# The scans of a plan, as the server's statistics count them.

NO_TABLE = "no table read"


@dataclass(frozen=True, slots=True)
class IndexScan:
    """How a plan reads one table; `counter` names the statistic that counts the scan (`seq:table` or an index)."""

    kind: str
    relation: str
    index: str
    counter: str

    def __str__(self) -> str:
        return f"{self.kind} using {self.index} on {self.relation}" if self.index else f"{self.kind} on {self.relation}"


def scans(plan: Plan) -> tuple[IndexScan, ...]:
    """Return the scans in tree order, without those never executed, whose counters do not move."""
    return tuple(_scans(plan))


def in_words(plan: Plan) -> str:
    """Return the scans in one line."""
    return ", ".join(map(str, scans(plan))) or NO_TABLE


def heap_of(node: Node) -> str:
    """Return the table that the bitmap of a bitmap index scan is for."""
    return next((above.relation for above in node.above() if above.kind == "Bitmap Heap Scan"), "")


def _scans(plan: Plan) -> Iterator[IndexScan]:
    for node in plan.nodes:
        if plan.analyzed and not node.executed:
            continue
        index = node.index
        if node.kind == "Bitmap Index Scan":
            yield IndexScan(node.kind, heap_of(node), index, index)
        elif index:
            yield IndexScan(node.kind, node.relation, index, index)
        elif node.kind == "Seq Scan":
            yield IndexScan(node.kind, node.relation, "", f"seq:{node.relation}")


def indexes_under(node: Node) -> tuple[str, ...]:
    """Return the indexes that a scan uses: its own, or those of the bitmaps below it."""
    if node.kind != "Bitmap Heap Scan":
        return node.texts("Index Name")
    return tuple(below.index for below in node.below() if below.kind == "Bitmap Index Scan")


# The fingerprint of a plan: its structure without constants, rows and costs.

CONDITIONS = (
    *("Index Cond", "Order By", "Recheck Cond", "TID Cond", "Hash Cond", "Merge Cond", "Join Filter", "Filter"),
    *("One-Time Filter", "Run Condition", "Sort Key", "Presorted Key", "Group Key", "Grouping Sets", "Cache Key"),
    *("Function Call", "Conflict Filter"),
)
_CONSTANT = re.compile(
    r"""(?P<name>"(?:[^"]|"")*")"""  # a quoted name may hold digits and quotes
    r"""|(?:(?<![\w$])[EBX])?'(?:[^']|'')*'|\$\d+|(?<![\w$.])\d+(?:\.\d+)?(?:e[+-]?\d+)?\b""",
    re.IGNORECASE,
)


def fingerprint(plan: Plan) -> str:
    """Return sixteen characters that equal plans share, whatever their constants, rows, costs and workers."""
    parts = [f"{node.depth}:{_shape(node)}" for node in plan.nodes]
    return blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


@lru_cache(maxsize=4096)
def without_constants(expression: str) -> str:
    """Return an expression with a question mark for each constant and parameter.

    >>> without_constants("((day = 7) AND (note_2 = 'it''s'::text) AND (id = $1))")
    '((day = ?) AND (note_2 = ?::text) AND (id = ?))'
    """
    return _CONSTANT.sub(lambda m: m["name"] or "?", expression)


def conditions(node: Node) -> str:
    """Return a node's conditions and its order, without constants."""
    keys = [key for key in CONDITIONS if key in node.raw]
    return "; ".join([f"{key}: {', '.join(map(without_constants, node.texts(key)))}" for key in keys])


def _shape(node: Node) -> str:
    get = node.raw.get
    sub = without_constants(node.subplan) if "Subplan Name" in node.raw else ""
    where = f"{get('Schema')}.{node.relation} {get('Index Name')}"
    return f"{get('Parent Relationship')} {sub} {node.name} {where} {conditions(node)}"


# The change between two plans of one statement: nodes aligned by their kind and by the tables they work on.

_FAMILIES = {"Incremental Sort": "Sort", "Gather Merge": "Gather", "Group": "Aggregate", "Unique": "Aggregate"}
_NAMED = 3  # number of changes that the sentence names


class ChangeKind(StrEnum):
    """What happened to a node."""

    SAME = "same"
    CHANGED = "changed"
    MOVED = "moved"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class PlanChange:
    """One node before and after; None if a plan does not have it."""

    kind: ChangeKind
    before: Node | None
    after: Node | None


@dataclass(frozen=True, slots=True)
class Diff:
    """Two plans and the change of each node: the second plan's nodes in order, then removed nodes."""

    before: Plan
    after: Plan
    changes: tuple[PlanChange, ...]
    same: bool  # the plans differ at most in numbers and constants

    @property
    def evidence(self) -> str:
        """The evidence class of the numbers."""
        return "measured once" if self.before.analyzed and self.after.analyzed else "estimated"

    @property
    def sentence(self) -> str:
        """The change in one line: `Seq Scan on visits -> Index Scan using visits_day; 312 -> 7 buffers`."""
        parts = ["the same plan"] if self.same else _worded(self.changes)
        if self.evidence == "estimated":
            costs = (plan.root.cost for plan in (self.before, self.after))
            return f"{', '.join(parts)}; cost {_to(*costs)} (estimated)"
        return f"{', '.join(parts)}; {_to(self.before.buffers, self.after.buffers)} buffers"


def diff(before: Plan, after: Plan) -> Diff:
    """Align two plans: exact matches first, then the same table read in another way, then the same join or step."""
    pairs: dict[Node, Node] = {}
    left, right = list(before.nodes), list(after.nodes)
    tables = {node: found for plan in (before, after) for node, found in _tables(plan).items()}
    keys: tuple[Callable[[Node], Hashable], ...] = (
        lambda node: (_exact(node), tables[node]),
        _exact,
        lambda node: (node.schema, node.relation, node.alias) if node.relation else None,
        lambda node: (_family(node), tables[node]),
        lambda node: (_family(node), conditions(node)) if conditions(node) else None,
    )
    for key in keys:
        _match(left, right, key, pairs)
        matched = set(pairs.values())
        left, right = [node for node in left if node not in pairs], [node for node in right if node not in matched]
    origin = {second: first for first, second in pairs.items()}
    changes = [PlanChange(_kind(node, origin, pairs), origin.get(node), node) for node in after.nodes]
    changes += [PlanChange(ChangeKind.REMOVED, node, None) for node in left]
    return Diff(before, after, tuple(changes), fingerprint(before) == fingerprint(after))


def _match(
    left: Iterable[Node], right: Iterable[Node], key: Callable[[Node], Hashable], pairs: dict[Node, Node]
) -> None:
    """Pair nodes with equal keys in the order of the plans."""
    waiting: dict[Hashable, list[Node]] = defaultdict(list)
    for node in right:
        waiting[key(node)].append(node)
    for found in waiting.values():
        found.reverse()
    for node in left:
        if (value := key(node)) is not None and waiting[value]:
            pairs[node] = waiting[value].pop()


def _exact(node: Node) -> Hashable:
    where = (node.schema, node.relation, node.alias, node.index)
    return node.name, where, conditions(node)


def _family(node: Node) -> str:
    return "join" if node.kind in JOINS else _FAMILIES.get(node.kind, node.kind)


def _tables(plan: Plan) -> dict[Node, int]:
    """Return a hash of the tables read at and below each node."""
    found: dict[Node, int] = dict.fromkeys(plan.nodes, 0)
    for node in reversed(plan.nodes):
        if node.relation:
            found[node] ^= hash((node.schema, node.relation, node.alias))
        if node.parent:
            found[node.parent] ^= found[node]
    return found


def _kind(node: Node, origin: Mapping[Node, Node], pairs: Mapping[Node, Node]) -> ChangeKind:
    """Return the change of a node; it moved if the nearest paired nodes above it are not a pair."""
    if (before := origin.get(node)) is None:
        return ChangeKind.ADDED
    if _exact(before) != _exact(node):
        return ChangeKind.CHANGED
    above = next((origin[n] for n in node.above() if n in origin), None)
    return ChangeKind.SAME if above is next((n for n in before.above() if n in pairs), None) else ChangeKind.MOVED


def _worded(changes: Iterable[PlanChange]) -> list[str]:
    """Return the most important changes in words: scans, else joins and steps, else conditions."""
    changes = list(changes)
    found = list(dict.fromkeys(_scans_of(changes))) or list(dict.fromkeys(_steps(changes))) or ["other conditions"]
    return found[:_NAMED] + ([f"{len(found) - _NAMED} more"] if len(found) > _NAMED else [])


def _scans_of(changes: Iterable[PlanChange]) -> Iterator[str]:
    for change in changes:
        before, after = change.before, change.after
        if before and after and before.table and _scan(before) != _scan(after):
            yield f"{_scan(before)} -> {_scan(after, short=True)}"


def _steps(changes: Iterable[PlanChange]) -> Iterator[str]:
    for change in changes:
        before, after = change.before, change.after
        if before and after and before.name != after.name:
            yield f"{before.name} -> {after.name}"
        elif not (before and after):
            node = before or after
            assert node
            yield f"{node.title} {change.kind}"


def _scan(node: Node, *, short: bool = False) -> str:
    """Return how a table is read, with the indexes; `short` omits the table."""
    used = indexes_under(node)
    using = f" using {', '.join(used)}" if used else ""
    return f"{node.name}{using}" if short else f"{node.name}{using} on {node.relation}"


def _to(before: float, after: float) -> str:
    return f"{before:,.0f} -> {after:,.0f}"


# Statements compared on a server: parameters with the usual plan, and the rows of a query and its rewrite.

Row = TypeVar("Row", bound=Parameters)
PLANNED = 15  # number of parameter rows that are planned to find the most frequent plan


def typical_parameters(connect: Connect, sql: str, rows: Sequence[Row]) -> Row:
    """Return the first parameter row that gets the most frequent plan; nothing is executed."""
    with session(connect, 60.0) as connection:
        plans = [explain_json(connection, single(sql), row, ExplainSpec(analyze=False)) for row in rows]
    shapes = [fingerprint(load_plan(plan)) for plan in plans]
    most, _ = Counter(shapes).most_common(1)[0]
    return rows[shapes.index(most)]


RowParameters = Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class RowSets:
    """The number of parameter sets with equal rows, and a sentence on the first with different rows."""

    compared: int
    equal: int
    first_difference: str


def compare(
    connect: Connect,
    before: str,
    after: str,
    rows: Sequence[RowParameters],
    *,
    timeout_s: float,
) -> RowSets:
    """Compare the multisets of rows, for each parameter set, in one repeatable-read transaction.

    Rows are compared by the text of their values: 1 and 1.00 differ, an integer and a bigint do not. Column names and
    the order of rows do not count. The server returns only a row count and a digest for each query, so no data leaves
    it. Raises PlanError with the server's message.
    """
    for text in map(single, (before, after)):
        if (word := first_word(text)) not in READING:
            raise PlanError(f"{word} returns no rows to compare; expected a SELECT and a rewrite of it")
    equal, first = 0, ""
    with session(connect, timeout_s) as connection:
        connection.rollback()  # the isolation level can only be set before the transaction begins
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for number, row in enumerate(rows, 1):
            found = [_digest(connection, single(text), row, timeout_s) for text in (before, after)]
            if found[0] == found[1]:
                equal += 1
            elif not first:
                counts = [f"{count:,} rows" for count, _ in found]
                what = (
                    f"{counts[1]} instead of {counts[0]}" if counts[0] != counts[1] else f"other values in {counts[0]}"
                )
                first = f"parameter set {number}: {what}; {equal} of {len(rows)} sets agree so far"
    return RowSets(len(rows), equal, first)


def _digest(connection: Connection, text: str, row: RowParameters, timeout_s: float) -> tuple[int, str]:
    """Return the number of rows, and a digest of them in any order."""
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.execute(f"SET LOCAL statement_timeout = {max(1, int(timeout_s * 1000))}")
    send(
        cursor,
        "SELECT count(*), md5(coalesce(string_agg(h, '' ORDER BY h), '')) FROM "
        f"(SELECT md5((q.*)::text) AS h FROM (\n{text}\n) q) hashed",
        exact(row),
    )
    count, digest = cursor.fetchone() or (0, "")
    return int(count), str(digest)
