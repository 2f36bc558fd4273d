"""What a plan needs to be judged: tables, scans, fingerprints; plans from elsewhere, and what changed.

The server counts a session's changes up to a second after they were made. Rows loaded and analysed in one session
are therefore counted as changed since ANALYZE, although the statistics have seen them all.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from perfkit.base.bundle import deep
from perfkit.base.errors import PlanError
from perfkit.explain.plan import Node, Plan, document
from perfkit.postgres import catalog
from perfkit.postgres.databases import KEYWORDS


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """`distinct`: values, or with a minus their share of the rows; None without statistics, as `commonest`."""

    name: str
    type: str
    distinct: float | None
    commonest: float | None  # share of rows with the commonest value


@dataclass(frozen=True, slots=True)
class Index:
    """`keys` are columns or expressions as PostgreSQL writes them, without those that are only included."""

    name: str
    method: str
    unique: bool
    valid: bool
    predicate: str
    keys: tuple[str, ...]
    definition: str


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """A foreign key of another table that points here, and whether an index there begins with its columns."""

    constraint: str
    table: str
    columns: tuple[str, ...]
    indexed: bool


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table: rows and pages by its statistics, its counters of changes, its columns, indexes and references.

    `changed` counts since ANALYZE, `inserted` and `rewritten` (updated, deleted) since the counters were reset.
    """

    schema: str
    name: str
    rows: float
    pages: float
    dead: float
    changed: float
    analyzed: bool
    columns: tuple[ColumnFacts, ...]
    indexes: tuple[Index, ...]
    referenced_by: tuple[ReferenceFacts, ...]
    parent: tuple[str, str] | None = None  # schema and name of the partitioned table that it is a part of
    size: float | None = None  # pages that it has; None where that was not kept, or it has none of its own
    inserted: float = 0.0
    rewritten: float = 0.0
    vacuumed: bool = False  # after it was analysed
    hidden: bool = False  # whether its statistics are there for others alone

    def column(self, name: str) -> ColumnFacts | None:
        """A column by its name."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """Tables of a plan; empty where nobody could be asked."""

    tables: tuple[TableFacts, ...] = ()

    def of(self, node: Node) -> TableFacts | None:
        """The table that a node reads or writes."""
        return self.named(node.text("Relation Name"), node.text("Schema"))

    def named(self, name: str, schema: str = "") -> TableFacts | None:
        """A table by its name."""
        return next((t for t in self.tables if t.name == name and schema in ("", t.schema)), None) if name else None


NO_FACTS = PlanFacts()


def ask(connection: psycopg.Connection[Any], plan: Plan) -> list[Any]:
    """The facts about a plan's tables as JSON values. Raises psycopg.Error."""
    return parsed(fetched(connection, plan))


def parsed(tables: Sequence[Any]) -> list[Any]:
    """JSON values of facts as they came; a connection may have parsed them already."""
    return [document(table) if isinstance(table, bytes) else table for table in tables]


def fetched(connection: psycopg.Connection[Any], plan: Plan) -> list[Any]:
    """The facts about a plan's tables as they come. Raises psycopg.Error."""
    wanted = {(node.text("Schema"), name) for node in plan.nodes if (name := node.text("Relation Name"))}
    if not wanted:
        return []
    schemas, tables = zip(*sorted(wanted), strict=True)
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.execute(catalog.get("plan_tables").encode(), {"schemas": list(schemas), "tables": list(tables)})
    return [row[0] for row in cursor]


def read_facts(tables: Sequence[Mapping[str, Any]]) -> PlanFacts:
    """Facts from the JSON values that were kept. Raises PlanError where they are none."""
    try:
        return PlanFacts(tuple(_table(table) for table in tables))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlanError(f"facts about tables that cannot be read ({type(error).__name__}: {error})") from None


def _keys(written: Iterable[str]) -> tuple[str, ...]:
    """Return an index's keys with the quotes that the newest server would write."""
    return tuple(f'"{key}"' if key in KEYWORDS else key for key in written)


def _table(table: Mapping[str, Any]) -> TableFacts:
    columns = [ColumnFacts(c["name"], c["type"], c["distinct"], c["commonest"]) for c in table["columns"] or ()]
    indexes = [
        Index(i["name"], i["method"], i["unique"], i["valid"], i["predicate"] or "", _keys(i["keys"]), i["definition"])
        for i in table["indexes"] or ()
    ]
    references = [
        ReferenceFacts(r["constraint"], r["table"], tuple(r["columns"]), r["indexed"])
        for r in table["referenced_by"] or ()
    ]
    return TableFacts(
        schema=table["schema"],
        name=table["name"],
        rows=float(table["rows"] or 0),
        pages=float(table["pages"] or 0),
        dead=float(table["dead"] or 0),
        changed=float(table["changed"] or 0),
        analyzed=table["analyzed"],
        columns=tuple(columns),
        indexes=tuple(indexes),
        referenced_by=tuple(references),
        parent=(str(parent[0]), str(parent[1])) if (parent := table.get("parent")) else None,
        size=None if table.get("size") is None else float(table["size"]),
        inserted=float(table.get("inserted") or 0),
        rewritten=float(table.get("rewritten") or 0),
        vacuumed=bool(table.get("vacuumed")),
        hidden=bool(table.get("hidden")),
    )


# The scans a plan makes, as the server counts them, and one line in words.

NO_TABLE = "no table read"


@dataclass(frozen=True, slots=True)
class IndexScan:
    """How a plan reads one table; `counter` names the statistic that counts it (`seq:table` or an index)."""

    kind: str
    relation: str
    index: str
    counter: str

    def __str__(self) -> str:
        return f"{self.kind} using {self.index} on {self.relation}" if self.index else f"{self.kind} on {self.relation}"


def scans(plan: Plan) -> tuple[IndexScan, ...]:
    """The scans in tree order; one that was planned and never executed is left out, as its counter does not move."""
    return tuple(_scans(plan))


def in_words(plan: Plan) -> str:
    """The scans in one line."""
    return ", ".join(map(str, scans(plan))) or NO_TABLE


def heap_of(node: Node) -> str:
    """The table whose heap a bitmap index scan feeds."""
    return next((above.relation for above in node.above() if above.kind == "Bitmap Heap Scan"), "")


def _scans(plan: Plan) -> Iterator[IndexScan]:
    for node in plan.nodes:
        if plan.analyzed and not node.executed:
            continue
        index = node.text("Index Name")
        if node.kind == "Bitmap Index Scan":
            yield IndexScan(node.kind, heap_of(node), index, index)
        elif index:
            yield IndexScan(node.kind, node.relation, index, index)
        elif node.kind == "Seq Scan":
            yield IndexScan(node.kind, node.relation, "", f"seq:{node.relation}")


def indexes_under(node: Node) -> tuple[str, ...]:
    """The indexes by which a table is read: the scan's own, or those of the bitmaps below it."""
    if node.kind != "Bitmap Heap Scan":
        return node.texts("Index Name")
    return tuple(below.text("Index Name") for below in node.below() if below.kind == "Bitmap Index Scan")


# Whether two plans are the same plan: their structure without numbers, constants and costs.

CONDITIONS = (
    *("Index Cond", "Order By", "Recheck Cond", "TID Cond", "Hash Cond", "Merge Cond", "Join Filter", "Filter"),
    *("One-Time Filter", "Run Condition", "Sort Key", "Presorted Key", "Group Key", "Grouping Sets", "Cache Key"),
    *("Function Call", "Conflict Filter"),
)
_CONSTANT = re.compile(
    r"""(?P<name>"(?:[^"]|"")*")"""  # whose digits and quotes are its own
    r"""|(?:(?<![\w$])[EBX])?'(?:[^']|'')*'|\$\d+|(?<![\w$.])\d+(?:\.\d+)?(?:e[+-]?\d+)?\b""",
    re.IGNORECASE,
)


def fingerprint(plan: Plan) -> str:
    """Sixteen characters that are the same for the same plan, whatever its constants, rows, costs and workers."""
    parts = [f"{node.depth}:{_shape(node)}" for node in plan.nodes]
    return blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


@lru_cache(maxsize=4096)
def without_constants(expression: str) -> str:
    """An expression with a question mark for each constant and parameter.

    >>> without_constants("((day = 7) AND (note_2 = 'it''s'::text) AND (id = $1))")
    '((day = ?) AND (note_2 = ?::text) AND (id = ?))'
    """
    return _CONSTANT.sub(lambda m: m["name"] or "?", expression)


def conditions(node: Node) -> str:
    """What a node's rows must fulfil and how they are ordered, without constants."""
    said = [key for key in CONDITIONS if key in node.raw]
    return "; ".join([f"{key}: {', '.join(map(without_constants, node.texts(key)))}" for key in said]) if said else ""


def _shape(node: Node) -> str:
    get = node.raw.get
    sub = without_constants(node.text("Subplan Name")) if "Subplan Name" in node.raw else ""
    where = f"{get('Schema')}.{node.relation} {get('Index Name')}"
    return f"{get('Parent Relationship')} {sub} {node.name} {where} {conditions(node)}"


# Whether the statistics of a table still fit it: by its size, and by its counters where the size cannot tell.

GROWN = 16.0  # pages more than the statistics know; fewer change no plan


def stale(table: TableFacts, share: float, least: float = 0.0) -> str:
    """Return why a table's statistics do not fit it, as a clause; "" where they do.

    `share` of its rows, and more than `least` of them, have to be changed.
    """
    limit = max(share * max(table.rows, 1.0), least)
    many = table.changed > limit
    if _unknown(table) and (many or not table.analyzed):
        return f"{table.name} has no statistics yet"
    grown = table.size is not None and table.size - table.pages > max(share * table.pages, GROWN)
    if many and (grown or table.size is None or (_unseen(table) > limit and not _counted_late(table))):
        return f"{table.changed:,.0f} rows of {table.name} changed since its statistics were made for {table.rows:,.0f}"
    if grown:
        return f"{table.name} grew from {table.pages:,.0f} to {table.size:,.0f} pages after its statistics were made"
    return ""


def doubt(table: TableFacts, share: float, least: float = 0.0) -> str:
    """Return why the statistics may not fit, as a clause, where neither size nor counters tell; else ""."""
    limit = max(share * max(table.rows, 1.0), least)
    if stale(table, share, least) or min(table.changed, table.rewritten) <= limit:
        return ""
    return f"{table.rewritten:,.0f} rows of {table.name} were updated or deleted, before or after its last ANALYZE"


def _unknown(table: TableFacts) -> bool:
    """Whether no column has statistics, as far as they are shown to this role."""
    return bool(table.columns) and not table.hidden and all(column.distinct is None for column in table.columns)


def _unseen(table: TableFacts) -> float:
    """Return how many of the changed rows may not show in the table's size.

    An update or a deletion reuses space. A VACUUM after ANALYZE notes the size anew, so that no growth is seen.
    """
    return table.changed if table.vacuumed else min(table.changed, table.rewritten)


def _counted_late(table: TableFacts) -> bool:
    """Whether ANALYZE came before any change was counted, and yet found the rows."""
    return table.analyzed and table.changed >= table.inserted + table.rewritten


# Plans from elsewhere: JSON from a file, psql with its frame, a CSV cell, or auto_explain's entries in a log.

EXPECTED = "expected EXPLAIN (FORMAT JSON) output, psql's or auto_explain's"
_HEADER = re.compile(r"^[ \t|│║\"]*QUERY PLAN\b\"?", re.MULTILINE)
_FRAME = re.compile(r"^[ \t|│║:,]+|[ \t]*[+↵]?[ \t]*[|│║]?[ \t]*$")  # no line of EXPLAIN's JSON begins or ends so
_BEGINS = re.compile(r"[\[{]\s*[\[{\"]")  # as JSON does, and a log's prefix does not
_ENTRY = re.compile(r"plan:\s*(?=\{)")
_TEXT = re.compile(
    r"\((?:cost=\d+\.\d+\.\.\d+\.\d+|actual (?:time|rows)=[\d.]+)[^)\n]*\)"
    r"|^[\s|│║]*(?:QUERY PLAN[\s|│║]*)?- Plan:|<explain ",
    re.MULTILINE,
)
_SPACE = re.compile(r"\s*")
_CSV_LIMIT = 1 << 28


def read(text: str) -> list[Any]:
    """Every plan in a text, each as a document with a 'Plan'. Raises PlanError saying what was expected."""
    text = text.lstrip("\ufeff").strip()
    try:
        with deep():
            for values in (_json, _framed, _logged):
                if found := [document for value in values(text) for document in _documents(value)]:
                    return found
            if _BEGINS.match(text):
                json.JSONDecoder().raw_decode(text)  # says where it is wrong
    except ValueError as error:
        raise PlanError(f"not JSON ({error}); {EXPECTED}") from None
    if _TEXT.search(text):
        raise PlanError("a plan that is not JSON; expected EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) output")
    raise PlanError(f"no plan in it; {EXPECTED}")


def _json(text: str) -> Iterator[Any]:
    """JSON values one after the other; what follows (psql's count of rows) is left alone."""
    if text.startswith(('"[', '"{')):  # a cell of CSV
        text = text[1:].replace('""', '"')
    at, decoder = 0, json.JSONDecoder()
    while text.startswith(("[", "{"), at):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return
        yield value
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches anything


def _framed(text: str) -> Iterator[Any]:
    """Output of psql, with the lines around its cells, expanded or not, as CSV too."""
    for part in _HEADER.split(text)[1:] or ([text] if text.startswith(("[", "{")) else []):
        lines = [_FRAME.sub("", line) for line in part.splitlines()]
        start = next((n for n, line in enumerate(lines) if line.lstrip('"').startswith(("[", "{"))), len(lines))
        yield from _json("\n".join(lines[start:]))


def _logged(text: str) -> Iterator[Any]:
    """auto_explain's entries in a log of any format; one that was cut off is left out."""
    if text.startswith("{"):
        parts = [_message(line) for line in text.splitlines()]
    elif '{""' in text or '""Query Text""' in text:
        parts = _cells(text)
    else:
        parts = [text]
    decoder = json.JSONDecoder()
    for part in parts:
        at = 0
        while entry := _ENTRY.search(part, at):
            at = entry.end()
            with suppress(ValueError):
                value, at = decoder.raw_decode(part, at)
                yield value


def _cells(text: str) -> list[str]:
    """The messages of a CSV log."""
    csv.field_size_limit(_CSV_LIMIT)
    try:
        return [cell for row in csv.reader(io.StringIO(text)) for cell in row if "plan:" in cell]
    except csv.Error:
        return []


def _message(line: str) -> str:
    """The message of a line of a JSON log."""
    try:
        value = json.loads(line)
    except ValueError:
        return ""
    return str(value.get("message", "")) if isinstance(value, dict) else ""


def _documents(value: Any) -> Iterator[Any]:
    """Documents of an array, of one statement, or of a node that somebody cut out."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("Plan"), dict):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("Node Type"), str):
            yield {"Plan": item}


# What changed between two plans of one statement: nodes aligned by what they are and what they work on.

_JOINS = frozenset({"Nested Loop", "Hash Join", "Merge Join"})
_FAMILIES = {"Incremental Sort": "Sort", "Gather Merge": "Gather", "Group": "Aggregate", "Unique": "Aggregate"}
_SAID = 3  # changes that the sentence names


class ChangeKind(StrEnum):
    """What happened to a node."""

    SAME = "same"
    CHANGED = "changed"
    MOVED = "moved"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class PlanChange:
    """One node before and after; None where there is none."""

    kind: ChangeKind
    before: Node | None
    after: Node | None


@dataclass(frozen=True, slots=True)
class Diff:
    """Two plans and what became of each node: the second plan's in its order, then those that are gone."""

    before: Plan
    after: Plan
    changes: tuple[PlanChange, ...]
    same: bool  # the plans differ in numbers and constants at most

    @property
    def evidence(self) -> str:
        """The evidence class of the numbers."""
        return "measured once" if self.before.analyzed and self.after.analyzed else "estimated"

    @property
    def sentence(self) -> str:
        """What changed, in one line: `Seq Scan on visits -> Index Scan using visits_day; 312 -> 7 buffers`."""
        said = ["the same plan"] if self.same else _worded(self.changes)
        if self.evidence == "estimated":
            costs = (plan.root.value("Total Cost") for plan in (self.before, self.after))
            return f"{', '.join(said)}; cost {_to(*costs)} (estimated)"
        return f"{', '.join(said)}; {_to(self.before.buffers, self.after.buffers)} buffers"


def diff(before: Plan, after: Plan) -> Diff:
    """Align two plans. Exact matches come first, then the same table read otherwise, then the same join or step."""
    pairs: dict[Node, Node] = {}
    left, right = list(before.nodes), list(after.nodes)
    tables = {node: found for plan in (before, after) for node, found in _tables(plan).items()}
    keys: tuple[Callable[[Node], Hashable], ...] = (
        lambda node: (_exact(node), tables[node]),
        _exact,
        lambda node: (node.text("Schema"), node.relation, node.text("Alias")) if node.relation else None,
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
    """Pair nodes of equal keys in the plans' order."""
    waiting: dict[Hashable, list[Node]] = defaultdict(list)
    for node in right:
        waiting[key(node)].append(node)
    for found in waiting.values():
        found.reverse()
    for node in left:
        if (wanted := key(node)) is not None and waiting[wanted]:
            pairs[node] = waiting[wanted].pop()


def _exact(node: Node) -> Hashable:
    where = (node.text("Schema"), node.relation, node.text("Alias"), node.text("Index Name"))
    return node.name, where, conditions(node)


def _family(node: Node) -> str:
    return "join" if node.kind in _JOINS else _FAMILIES.get(node.kind, node.kind)


def _tables(plan: Plan) -> dict[Node, int]:
    """For each node a number that stands for the tables read at and below it."""
    found: dict[Node, int] = dict.fromkeys(plan.nodes, 0)
    for node in reversed(plan.nodes):
        if node.relation:
            found[node] ^= hash((node.text("Schema"), node.relation, node.text("Alias")))
        if node.parent:
            found[node.parent] ^= found[node]
    return found


def _kind(node: Node, origin: Mapping[Node, Node], pairs: Mapping[Node, Node]) -> ChangeKind:
    """What happened to a node; it moved where the nearest pair above it is not a pair for both."""
    if (before := origin.get(node)) is None:
        return ChangeKind.ADDED
    if _exact(before) != _exact(node):
        return ChangeKind.CHANGED
    above = next((origin[n] for n in node.above() if n in origin), None)
    return ChangeKind.SAME if above is next((n for n in before.above() if n in pairs), None) else ChangeKind.MOVED


def _worded(changes: Iterable[PlanChange]) -> list[str]:
    """The changes that say most, in words: other scans, else other joins and steps, else conditions."""
    changes = list(changes)
    found = list(dict.fromkeys(_scans_of(changes))) or list(dict.fromkeys(_steps(changes))) or ["other conditions"]
    return found[:_SAID] + ([f"{len(found) - _SAID} more"] if len(found) > _SAID else [])


def _scans_of(changes: Iterable[PlanChange]) -> Iterator[str]:
    for change in changes:
        before, after = change.before, change.after
        if before and after and before.text("Relation Name") and _scan(before) != _scan(after):
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
    """How a table is read, with the indexes; `short` leaves the table to what was said before."""
    used = indexes_under(node)
    using = f" using {', '.join(used)}" if used else ""
    return f"{node.name}{using}" if short else f"{node.name}{using} on {node.relation}"


def _to(before: float, after: float) -> str:
    return f"{before:,.0f} -> {after:,.0f}"
