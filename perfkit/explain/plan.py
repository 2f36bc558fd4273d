"""A plan as a tree of nodes, read from EXPLAIN's JSON within bounds of size.

A written statement has kilobytes, one with a list of values perhaps 1 MB. A plan of 10,000 partitions with VERBOSE has
about 20 MB. The planner folds constants: the plan of `SELECT repeat('a', 1000000000)` has 1 GB, which perfkit refuses
to copy, parse or keep.

In EXPLAIN's JSON, rows and times are averages per loop, buffers are totals, and all include everything below the node.
`Node` adds each node's own part, considering parallel workers, CTEs, InitPlans and nodes that were never executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
from psycopg.adapt import Buffer, Loader

from perfkit.base.bundle import loads
from perfkit.base.errors import PlanError
from perfkit.explain.accounting import GATHERS, Raw, exclusive, processes, structure

STATEMENT, PLAN = 2_000_000, 64_000_000  # bytes at most
# Rules compare the constants in a node's texts, so long constants are cut first, and then the text as a whole.
_LITERAL, _TEXT = 200, 100_000  # characters
_QUOTED = re.compile(r"'(?:[^']|'')*+'")


def require_statement(sql: str) -> None:
    """Raise PlanError for a statement that is too long."""
    if len(sql) > STATEMENT // 4 and (size := len(sql.encode("utf-8", "replace"))) > STATEMENT:
        raise PlanError(f"a statement of {size / 1e6:,.1f} MB; expected at most {STATEMENT / 1e6:,.0f} MB")


def require_plan(size: int) -> None:
    """Raise PlanError for a plan of too many bytes."""
    if size > PLAN:
        raise PlanError(
            f"a plan of {size / 1e6:,.0f} MB; expected at most {PLAN / 1e6:,.0f} MB (a long constant in the statement? "
            "the planner writes it out)"
        )


def raw_json(connection: psycopg.Connection[Any]) -> None:
    """Make a connection return JSON unparsed, so that no transaction stays open while it is parsed."""
    connection.adapters.register_loader("json", _Raw)


def document(raw: bytes) -> Any:
    """Parse EXPLAIN's JSON; an empty text gives an empty list. Raises PlanError."""
    try:
        return loads(raw) if raw else []
    except ValueError as error:
        raise PlanError(f"EXPLAIN's JSON cannot be read: {error}") from None


def shortened(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a raw node with its long texts cut; the same object if none is long."""
    if not any(_long(value) for value in node.values()):
        return node
    return {key: _shortened(value) if _long(value) else value for key, value in node.items()}


def _long(value: Any) -> bool:
    if type(value) is list:
        return any(type(item) is str and len(item) > _LITERAL for item in value)
    return type(value) is str and len(value) > _LITERAL


def _shortened(value: Any) -> Any:
    if type(value) is list:
        return [_shortened(item) for item in value]
    if type(value) is not str or len(value) <= _LITERAL:
        return value
    text = _QUOTED.sub(_cut, value)
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"


def _cut(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) <= _LITERAL:
        return text
    begin = text[1 : _LITERAL - 2]
    whole = begin[:-1] if begin.count("'") % 2 else begin  # a quote in it is doubled: not half of one
    return f"'{whole}…'"


class _Raw(Loader):
    def load(self, data: Buffer) -> bytes:
        require_plan(len(data))
        return bytes(data)


# The typed view of a plan; EXPLAIN's document stays unchanged.

PAGES = ("Shared Hit Blocks", "Shared Read Blocks", "Local Hit Blocks", "Local Read Blocks")
COUNTERS = (
    *PAGES,
    *("Shared Dirtied Blocks", "Shared Written Blocks", "Local Dirtied Blocks", "Local Written Blocks"),
    *("Temp Read Blocks", "Temp Written Blocks"),
)
_READ = ("I/O Read Time", "Shared I/O Read Time", "Local I/O Read Time")  # the first until 16, the rest since 17
_WRITE = ("I/O Write Time", "Shared I/O Write Time", "Local I/O Write Time")
_DISABLED = 1e10  # what a disabled node's cost begins with until 17
_ROUNDING_MS = 0.0005  # times come with three digits
_READ_FROM = ("Relation Name", "Function Name", "CTE Name", "Table Function Name", "Tuplestore Name")
_LARGEST = 1e18  # no figure of a plan is larger
_STRATEGIES = {"Sorted": "GroupAggregate", "Hashed": "HashAggregate", "Mixed": "MixedAggregate"}
_MATCHED = frozenset({"Inner", "Semi", "Right", "Right Semi", "Right Anti"})  # rows of the outer side need a match
_BITMAPS = frozenset({"Bitmap Index Scan", "BitmapAnd", "BitmapOr"})


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node of a plan. Times are elapsed ms of all loops, None without TIMING; `raw` has all of EXPLAIN's keys."""

    number: int  # in the order in which EXPLAIN lists them, from 1
    depth: int
    raw: Raw
    kind: str  # the node type as EXPLAIN's JSON names it
    parent: Node | None
    children: list[Node]
    loops: float  # executions by all processes; 0: never executed
    processes: float  # processes that divided the loops among them
    inclusive_ms: float | None
    exclusive_ms: float | None
    own: Mapping[str, float]  # exclusive counts of blocks, by their name in COUNTERS; none means 0

    @property
    def name(self) -> str:
        """The node type as EXPLAIN's text form names it: `Parallel Hash Left Join`, `HashAggregate`."""
        kind, raw = self.kind, self.raw
        if kind == "Aggregate":
            kind = _STRATEGIES.get(str(raw.get("Strategy")), "Aggregate")
            mode = raw.get("Partial Mode")
            kind = f"{mode} {kind}" if mode in ("Partial", "Finalize") else kind
        elif kind == "SetOp":
            kind = ("HashSetOp" if raw.get("Strategy") == "Hashed" else "SetOp") + f" {raw.get('Command', '')}"
        elif kind == "ModifyTable":
            kind = self.text("Operation") or kind
        elif kind == "Foreign Scan" and (operation := self.text("Operation")) not in ("", "Select"):
            kind = f"Foreign {operation}"
        join = raw.get("Join Type")
        if isinstance(join, str) and join != "Inner":
            kind = f"{kind.removesuffix(' Join')} {join} Join"
        elif join == "Inner" and kind in ("Hash", "Merge"):
            kind += " Join"
        backward = " Backward" if raw.get("Scan Direction") == "Backward" else ""
        parallel = "Parallel " if raw.get("Parallel Aware") is True else ""
        asynchronous = "Async " if raw.get("Async Capable") is True else ""
        return f"{parallel}{asynchronous}{kind}{backward}".strip()

    @property
    def title(self) -> str:
        """The name with the index and table: `Index Scan using visits_day on visits v`."""
        index, relation = self.text("Index Name"), self.relation
        kind, alias = self.name, self.text("Alias")
        if index:
            kind += f" {'on' if self.kind == 'Bitmap Index Scan' else 'using'} {index}"
        names = dict.fromkeys(name for name in (relation, alias) if name)
        return f"{kind} on {' '.join(names)}" if names else kind

    @property
    def relation(self) -> str:
        """The table, function or CTE that the node reads or writes; "" if there is none."""
        for key in _READ_FROM:
            if found := self.text(key):
                return found
        return ""

    @property
    def relationship(self) -> str:
        """Outer, Inner, InitPlan, SubPlan, Member, Subquery; "" for the root."""
        return self.text("Parent Relationship")

    @property
    def executed(self) -> bool:
        """Whether the node ran; never true in a plan without ANALYZE."""
        return self.loops > 0

    @property
    def rows(self) -> float:
        """Rows of all loops."""
        return self.value("Actual Rows") * self.loops if self.loops else 0.0

    @property
    def pages(self) -> float:
        """The 8 kB pages that the node and everything below touched: shared and local, hit or read."""
        return sum(self.value(key) for key in PAGES)

    @property
    def own_pages(self) -> float:
        """The 8 kB pages that the node itself touched."""
        return sum(self.own.get(key, 0.0) for key in PAGES)

    @property
    def read_ms(self) -> float:
        """Time of all processes spent reading pages, everything below included; needs track_io_timing."""
        return sum(self.value(key) for key in _READ)

    @property
    def write_ms(self) -> float:
        """Time of all processes spent writing pages, everything below included; needs track_io_timing."""
        return sum(self.value(key) for key in _WRITE)

    @property
    def rounding_ms(self) -> float:
        """The maximum error of the times, because the server rounds them to µs per loop."""
        return _ROUNDING_MS * self.loops / self.processes

    @property
    def disabled(self) -> bool:
        """Whether the planner used the node although an enable_ setting disables it."""
        if "Disabled" in self.raw:
            return self.raw["Disabled"] is True
        cost = self.value("Total Cost")
        return cost >= _DISABLED and cost - sum(child.value("Total Cost") for child in self.children) >= _DISABLED / 2

    @property
    def partial(self) -> bool:
        """Whether each process gets a part of the rows, so that the estimate is for one process."""
        node = self
        while node.raw.get("Parallel Aware") is not True:
            if node.kind in GATHERS or node.raw.get("Partial Mode") == "Partial":
                return False
            driving = [child for child in node.children if child.relationship in ("Outer", "Member", "Subquery")]
            if not driving:
                return False
            node = driving[0]
        return True

    @property
    def estimated(self) -> float:
        """The rows that the planner expected, comparable with `rows`."""
        if not self.partial:
            return self.value("Plan Rows") * max(self.loops, 1.0)
        top = next((node for node in (self, *self.above()) if node.parent and node.parent.kind in GATHERS), self)
        gather = top.parent
        workers = gather.value("Workers Planned") if gather else 0.0
        leading = not gather or not top.executed or top.loops > gather.value("Workers Launched") * gather.loops
        divisor = workers + (max(0.0, 1.0 - 0.3 * workers) if leading else 0.0)  # costsize.c: get_parallel_divisor
        return self.value("Plan Rows") * max(divisor, 1.0) * max(self.loops / self.processes, 1.0)

    @property
    def misestimate(self) -> float:
        """The ratio of actual to estimated rows: 10 is ten times as many; 1 if the node did not run.

        Less than one row per loop counts as one, because the planner never expects less. BitmapAnd and BitmapOr do not
        report their rows.
        """
        if not self.executed or self.kind in ("BitmapAnd", "BitmapOr"):
            return 1.0
        rounds = max(self.loops, 1.0)
        return max(self.rows, rounds) / max(self.estimated, rounds)

    @property
    def cut_short(self) -> bool:
        """Whether a node above, such as a LIMIT, a join or a subquery, may have stopped reading early."""
        node = self
        while (above := node.parent) is not None and node.kind not in _BITMAPS:
            if node.relationship == "InitPlan" and node.text("Subplan Name").startswith("CTE "):
                readers = [scan for scan in above.below() if scan.executed and _read_by(scan) is node]
                if not readers:
                    return False
                node = max(readers, key=lambda scan: scan.rows)
                continue
            if node.relationship in ("InitPlan", "SubPlan") or _stops(above, node):
                return True
            if above.kind in ("Sort", "Hash") or above.text("Strategy") in ("Plain", "Hashed", "Mixed"):
                return False
            node = above
        return False

    def above(self) -> Iterator[Node]:
        """Yield the nodes above, nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def below(self) -> Iterator[Node]:
        """Yield the node and every node below, in EXPLAIN's order."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    def value(self, key: str) -> float:
        """Return a number of the document; 0 if there is none."""
        found: Any = self.raw.get(key)
        kind = type(found)  # repeats `number` to save a call: rules read thousands of values
        return float(found) if (kind is int or kind is float) and 0 <= found <= _LARGEST else 0.0

    def text(self, key: str) -> str:
        """Return a text of the document; "" if there is none."""
        found: Any = self.raw.get(key)
        return found if type(found) is str else ""

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the texts of the document, whether a list or a single one."""
        found = self.raw.get(key)
        if type(found) is list:
            return tuple([item for item in found if type(item) is str])
        return (found,) if type(found) is str else ()


@dataclass(frozen=True)
class Plan:
    """A plan; `document` is EXPLAIN's output for one statement, and `nodes` are in its order."""

    document: Mapping[str, Any]
    nodes: tuple[Node, ...]
    outside_ms: float  # executed after the root ended: data-modifying CTEs
    outside: Mapping[str, float]  # blocks of those, by their name in COUNTERS

    @property
    def root(self) -> Node:
        """The node on top."""
        return self.nodes[0]

    @cached_property
    def analyzed(self) -> bool:
        """Whether the statement was executed."""
        return "Actual Loops" in self.root.raw

    @cached_property
    def timed(self) -> bool:
        """Whether each node was timed."""
        return self.root.inclusive_ms is not None

    @property
    def planning_ms(self) -> float:
        """Time of planning."""
        return number(self.document, "Planning Time")

    @property
    def execution_ms(self) -> float:
        """Time of execution as the server reports it, with triggers, executor start and end; else the root's time."""
        if "Execution Time" in self.document:
            return number(self.document, "Execution Time")
        return (self.root.inclusive_ms or 0.0) + self.outside_ms

    def share(self, node: Node) -> float:
        """Return a node's own share of the execution's time, 0 to 1; 0 without times."""
        whole = max(self.execution_ms, (self.root.inclusive_ms or 0.0) + self.outside_ms)
        return (node.exclusive_ms or 0.0) / whole if whole else 0.0

    @property
    def buffers(self) -> float:
        """The 8 kB pages touched by the execution, without planning."""
        return self.root.pages + sum(self.outside.get(key, 0.0) for key in PAGES)

    @property
    def rows(self) -> float:
        """Rows of the result."""
        return self.root.rows

    @property
    def settings(self) -> Mapping[str, str]:
        """Planner settings that differ from the default; needs SETTINGS."""
        found = self.document.get("Settings")
        return {k: str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    @property
    def triggers(self) -> Sequence[Raw]:
        """Triggers that fired: `Trigger Name`, `Constraint Name`, `Relation`, `Time` (ms), `Calls`."""
        found = self.document.get("Triggers")
        return [trigger for trigger in found if isinstance(trigger, dict)] if isinstance(found, list) else []

    @property
    def jit_ms(self) -> float:
        """Time of compiling expressions."""
        jit = self.document.get("JIT")
        timing = jit.get("Timing") if isinstance(jit, dict) else None
        return number(timing, "Total") if isinstance(timing, dict) else 0.0

    @property
    def serialization_ms(self) -> float:
        """Time of converting the result for sending, not part of the root's time; needs SERIALIZE."""
        found = self.document.get("Serialization")
        return number(found, "Time") if isinstance(found, dict) else 0.0


def _read_by(scan: Node) -> Node | None:
    """Return the CTE that a CTE Scan reads: the nearest of its name listed above."""
    name, lists = f"CTE {scan.text('CTE Name')}", (scan, *scan.above())
    ctes = (child for above in lists for child in reversed(above.children) if child.relationship == "InitPlan")
    named = (cte for cte in ctes if cte.text("Subplan Name") == name)
    return next(named, None) if scan.kind == "CTE Scan" else None


def _stops(above: Node, node: Node) -> bool:
    """Return whether a node may leave rows of a node below unread."""
    if above.kind in ("Limit", "Merge Join") or "Run Condition" in above.raw:
        return True
    if above.kind == "Nested Loop":
        first = above.text("Join Type") in ("Semi", "Anti") or above.raw.get("Inner Unique") is True
        return first and node.relationship == "Inner"
    if above.kind == "Hash Join" and node.relationship == "Outer" and above.text("Join Type") in _MATCHED:
        return any(child.kind == "Hash" and not child.rows for child in above.children)  # the hash table is empty
    return False


def number(raw: Raw, key: str) -> float:
    """Return a number of a document if a plan can have it; else 0."""
    found: Any = raw.get(key)
    kind = type(found)  # not isinstance: True is no number, and this runs a hundred times for each node
    return float(found) if (kind is int or kind is float) and 0 <= found <= _LARGEST else 0.0


def _numbers(raws: Sequence[Raw], key: str) -> list[float]:
    """Return the number of a key for every node."""
    values: list[Any] = [raw.get(key) for raw in raws]
    return [number(raw, key) for raw in raws] if any(values) else [0.0] * len(values)


def read_plan(document: Any) -> Plan:
    """Return the plan of EXPLAIN's JSON: of the first element of its array, or of one element. Raises PlanError."""
    first = _of_one_statement(document)
    listed, parents = _listed(first["Plan"])
    raws = [shortened(raw) for raw in listed]
    loops = _numbers(raws, "Actual Loops")
    shared = processes(raws, parents, loops)
    found = structure(raws, parents, loops)
    counts: list[dict[str, float]] = [{} for _ in raws]
    beyond: dict[str, float] = {}
    for key in COUNTERS:
        if any(figures := _numbers(raws, key)):
            own, left = exclusive(found, figures)
            beyond |= {key: left} if left else {}
            for mine, count in zip(counts, own, strict=True):
                if count:
                    mine[key] = count
    inclusive: list[float] | list[None] = [None] * len(raws)
    alone: list[float] | list[None] = inclusive
    outside = 0.0
    if "Actual Total Time" in raws[0]:
        per_loop = _numbers(raws, "Actual Total Time")
        inclusive = [ms * n / p for ms, n, p in zip(per_loop, loops, shared, strict=True)]
        rounding = [_ROUNDING_MS * n / p for n, p in zip(loops, shared, strict=True)]
        alone, outside = exclusive(found, inclusive, rounding)
    nodes: list[Node] = []
    for at, raw in enumerate(raws):
        parent = nodes[parents[at]] if at else None
        depth = parent.depth + 1 if parent else 0
        node = Node(
            at + 1,
            depth,
            raw,
            raw["Node Type"],
            parent,
            [],
            loops[at],
            shared[at],
            inclusive[at],
            alone[at],
            counts[at],
        )
        if parent:
            parent.children.append(node)
        nodes.append(node)
    return Plan(first, tuple(nodes), outside, beyond)


def whole_nodes(document: Any) -> list[Raw]:
    """Return every raw node with its texts uncut, which guards need to see. Raises PlanError."""
    return _listed(_of_one_statement(document)["Plan"])[0]


def _of_one_statement(document: Any) -> dict[str, Any]:
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict) or not isinstance(first.get("Plan"), dict):
        raise PlanError("not a plan; expected EXPLAIN (FORMAT JSON) output with a 'Plan'")
    return first


def _listed(top: Raw) -> tuple[list[Raw], list[int]]:
    """Return the nodes in EXPLAIN's order, and the position of each node's parent."""
    raws: list[Raw] = []
    parents: list[int] = []
    waiting: list[tuple[Any, int]] = [(top, -1)]
    while waiting:
        raw, parent = waiting.pop()
        if not isinstance(raw, dict) or not isinstance(raw.get("Node Type"), str):
            raise PlanError("not a plan (a node without a 'Node Type'); expected EXPLAIN (FORMAT JSON) output")
        below = raw.get("Plans", [])
        if not isinstance(below, list):
            raise PlanError("not a plan ('Plans' is not a list); expected EXPLAIN (FORMAT JSON) output")
        at = len(raws)
        waiting += [(child, at) for child in reversed(below)]
        raws.append(raw)
        parents.append(parent)
    return raws, parents
