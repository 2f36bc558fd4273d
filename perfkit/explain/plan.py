"""A plan as a tree of typed nodes, read once from EXPLAIN's JSON.

In EXPLAIN's JSON, rows and times are averages per loop, buffers are totals, and all include everything below the node.
`Node` adds each node's own part, considering parallel workers, CTEs, InitPlans and nodes that were never executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from perfkit.explain.documents import (
    GATHERS,
    Raw,
    exclusive,
    list_nodes,
    one_statement,
    parse,
    processes,
    read_documents,
    shortened,
    structure,
)

PAGES = ("Shared Hit Blocks", "Shared Read Blocks", "Local Hit Blocks", "Local Read Blocks")
COUNTERS = (
    *PAGES,
    *("Shared Dirtied Blocks", "Shared Written Blocks", "Local Dirtied Blocks", "Local Written Blocks"),
    *("Temp Read Blocks", "Temp Written Blocks"),
)
_DISABLED = 1e10  # what a disabled node's cost begins with until 17
_ROUNDING_MS = 0.0005  # times come with three digits
_READ_FROM = ("Relation Name", "Function Name", "CTE Name", "Table Function Name", "Tuplestore Name")
JOINS = frozenset({"Nested Loop", "Hash Join", "Merge Join"})
_LARGEST = 1e18  # no figure of a plan is larger
_STRATEGIES = {"Sorted": "GroupAggregate", "Hashed": "HashAggregate", "Mixed": "MixedAggregate"}


class _Key:
    """An attribute of a node that reads one key of EXPLAIN; empty or 0 if the key is missing."""

    def __init__(self, key: str) -> None:
        self._key = key


class _Text(_Key):
    def __get__(self, node: Node, owner: object) -> str:
        value = node.raw.get(self._key)
        return value if type(value) is str else ""


class _Texts(_Key):
    def __get__(self, node: Node, owner: object) -> tuple[str, ...]:
        return node.texts(self._key)


class _Number(_Key):
    def __get__(self, node: Node, owner: object) -> float:
        value = node.raw.get(self._key)
        # Repeats `number` to save a call: rules read thousands of values.
        return float(value) if (type(value) is float or type(value) is int) and 0 <= value <= _LARGEST else 0.0


# Not frozen, because a frozen field takes three times as long to set, and a plan can have 10,000 nodes.
@dataclass(slots=True, eq=False)
class Node:
    """One node of a plan. Times are elapsed ms of all loops, None without TIMING; `raw` has all of EXPLAIN's keys."""

    number: int  # in the order in which EXPLAIN lists them, from 1
    depth: int
    raw: Raw
    kind: str  # the node type as EXPLAIN's JSON names it
    relationship: str  # to the parent: Outer, Inner, InitPlan, SubPlan, Member, Subquery; "" for the root
    parent: Node | None
    children: list[Node]
    loops: float  # executions by all processes; 0: never executed
    rows: float  # of all loops
    processes: float  # processes that divided the loops among them
    inclusive_ms: float | None
    exclusive_ms: float | None
    own: Mapping[str, float]  # exclusive counts of blocks, by their name in COUNTERS; none means 0

    schema = _Text("Schema")
    table = _Text("Relation Name")
    alias = _Text("Alias")
    index = _Text("Index Name")
    subplan = _Text("Subplan Name")
    cte = _Text("CTE Name")
    operation = _Text("Operation")
    strategy = _Text("Strategy")
    join_type = _Text("Join Type")
    filter = _Text("Filter")
    index_condition = _Text("Index Cond")
    recheck_condition = _Text("Recheck Cond")
    join_filter = _Text("Join Filter")
    sort_method = _Text("Sort Method")
    sort_space_type = _Text("Sort Space Type")
    storage = _Text("Storage")
    output = _Texts("Output")
    sort_keys = _Texts("Sort Key")
    group_keys = _Texts("Group Key")
    cost = _Number("Total Cost")
    rows_planned = _Number("Plan Rows")  # for one process and one loop; `estimated` is for all
    width = _Number("Plan Width")  # bytes
    rows_per_loop = _Number("Actual Rows")
    removed_by_filter = _Number("Rows Removed by Filter")  # per loop
    removed_by_recheck = _Number("Rows Removed by Index Recheck")  # per loop
    heap_fetches = _Number("Heap Fetches")  # of all loops
    exact_pages = _Number("Exact Heap Blocks")
    lossy_pages = _Number("Lossy Heap Blocks")
    sort_space_kb = _Number("Sort Space Used")
    maximum_storage_kb = _Number("Maximum Storage")
    hash_batches = _Number("Hash Batches")
    hash_batches_planned = _Number("Original Hash Batches")
    group_batches = _Number("HashAgg Batches")
    cache_hits = _Number("Cache Hits")
    cache_misses = _Number("Cache Misses")
    workers_planned = _Number("Workers Planned")
    workers_launched = _Number("Workers Launched")
    subplans_removed = _Number("Subplans Removed")

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
            kind = self.operation or kind
        elif kind == "Foreign Scan" and (operation := self.operation) not in ("", "Select"):
            kind = f"Foreign {operation}"
        join = raw.get("Join Type")
        if isinstance(join, str) and join != "Inner":
            kind = f"{kind.removesuffix(' Join')} {join} Join"
        elif join == "Inner" and kind in ("Hash", "Merge"):
            kind += " Join"
        backward = " Backward" if raw.get("Scan Direction") == "Backward" else ""
        parallel = "Parallel " if self.parallel else ""
        asynchronous = "Async " if raw.get("Async Capable") is True else ""
        return f"{parallel}{asynchronous}{kind}{backward}".strip()

    @property
    def title(self) -> str:
        """The name with the index and table: `Index Scan using visits_day on visits v`."""
        index, relation = self.index, self.relation
        kind, alias = self.name, self.alias
        if index:
            kind += f" {'on' if self.kind == 'Bitmap Index Scan' else 'using'} {index}"
        names = dict.fromkeys(name for name in (relation, alias) if name)
        return f"{kind} on {' '.join(names)}" if names else kind

    @property
    def relation(self) -> str:
        """The table, function or CTE that the node reads or writes; "" if there is none."""
        for key in _READ_FROM:
            if name := self.raw.get(key):
                return name if type(name) is str else ""
        return ""

    @property
    def parallel(self) -> bool:
        """Whether the processes divide the node's work among them."""
        return self.raw.get("Parallel Aware") is True

    @property
    def workers(self) -> list[Raw]:
        """The figures of each worker, as EXPLAIN names them."""
        workers = self.raw.get("Workers")
        return [worker for worker in workers if isinstance(worker, dict)] if isinstance(workers, list) else []

    @property
    def executed(self) -> bool:
        """Whether the node ran; never true in a plan without ANALYZE."""
        return self.loops > 0

    @property
    def pages(self) -> float:
        """The 8 kB pages that the node and everything below touched: shared and local, hit or read."""
        return sum(self.value(key) for key in PAGES)

    @property
    def own_pages(self) -> float:
        """The 8 kB pages that the node itself touched."""
        return sum(self.own.get(key, 0.0) for key in PAGES)

    @property
    def rounding_ms(self) -> float:
        """The maximum error of the times, because the server rounds them to µs per loop."""
        return _ROUNDING_MS * self.loops / self.processes

    @property
    def disabled(self) -> bool:
        """Whether the planner used the node although an enable_ setting disables it."""
        if "Disabled" in self.raw:
            return self.raw["Disabled"] is True
        cost = self.cost
        return cost >= _DISABLED and cost - sum(child.cost for child in self.children) >= _DISABLED / 2

    @property
    def partial(self) -> bool:
        """Whether each process gets a part of the rows, so that the estimate is for one process."""
        node = self
        while not node.parallel:
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
            return self.rows_planned * max(self.loops, 1.0)
        top = next((node for node in (self, *self.above()) if node.parent and node.parent.kind in GATHERS), self)
        gather = top.parent
        workers = gather.workers_planned if gather else 0.0
        leading = not gather or not top.executed or top.loops > gather.workers_launched * gather.loops
        divisor = workers + (max(0.0, 1.0 - 0.3 * workers) if leading else 0.0)  # costsize.c: get_parallel_divisor
        return self.rows_planned * max(divisor, 1.0) * max(self.loops / self.processes, 1.0)

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
        """Return the number of a key; 0 if the key is missing."""
        return number(self.raw, key)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the texts of a key, whether a list or a single one."""
        value = self.raw.get(key)
        if type(value) is list:
            return tuple([item for item in value if type(item) is str])
        return (value,) if type(value) is str else ()


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger that fired, or a foreign key that was checked; `constraint` is "" for other triggers."""

    name: str
    constraint: str
    table: str
    ms: float
    calls: float


@dataclass(frozen=True)
class Plan:
    """A plan; `document` is EXPLAIN's output for one statement, and `nodes` are in its order."""

    document: Raw
    nodes: tuple[Node, ...]
    outside_ms: float  # executed after the root ended: data-modifying CTEs
    outside: Mapping[str, float]  # blocks of those, by their name in COUNTERS

    @property
    def root(self) -> Node:
        """The node on top."""
        return self.nodes[0]

    def of_kind(self, *kinds: str) -> list[Node]:
        """Return the nodes of these kinds; `SubPlan` is that of every subquery that runs once a row."""
        nodes = [node for kind in dict.fromkeys(kinds) for node in self._by_kind.get(kind, ())]
        return sorted(nodes, key=lambda node: node.number) if len(kinds) > 1 else nodes

    @cached_property
    def _by_kind(self) -> Mapping[str, list[Node]]:
        nodes: dict[str, list[Node]] = {}
        for node in self.nodes:
            nodes.setdefault(node.kind, []).append(node)
            if node.relationship == "SubPlan":
                nodes.setdefault("SubPlan", []).append(node)
        return nodes

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
        return {name: str(value) for name, value in inner(self.document, "Settings").items()}

    @property
    def triggers(self) -> list[Trigger]:
        """Triggers that fired."""
        triggers = self.document.get("Triggers")
        return [_trigger(raw) for raw in triggers if isinstance(raw, dict)] if isinstance(triggers, list) else []

    @property
    def jit_ms(self) -> float:
        """Time of compiling expressions, in all processes."""
        return number(inner(inner(self.document, "JIT"), "Timing"), "Total")

    @property
    def jit_functions(self) -> float:
        """Number of compiled functions, in all processes."""
        return number(inner(self.document, "JIT"), "Functions")

    @property
    def serialization_ms(self) -> float:
        """Time of converting the result for sending, not part of the root's time; needs SERIALIZE."""
        return number(inner(self.document, "Serialization"), "Time")


def inner(raw: Raw, key: str) -> Raw:
    """Return the object of a key; empty if there is none."""
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _trigger(raw: Raw) -> Trigger:
    name, constraint, table = (str(raw.get(key) or "") for key in ("Trigger Name", "Constraint Name", "Relation"))
    return Trigger(name, constraint, table, number(raw, "Time"), number(raw, "Calls"))


def number(raw: Raw, key: str) -> float:
    """Return the number of a key; 0 if it is missing, or larger than a plan's numbers can be."""
    value = raw.get(key)
    if value is None:  # most keys are missing, and this runs a hundred times for each node
        return 0.0
    # Not isinstance, because True is no number.
    return float(value) if (type(value) is float or type(value) is int) and 0 <= value <= _LARGEST else 0.0


def _numbers(raws: Sequence[Raw], key: str) -> list[float]:
    """Return the number of a key for every node."""
    values = [raw.get(key) for raw in raws]
    return [number(raw, key) for raw in raws] if any(values) else [0.0] * len(values)


def read_plan(document: object) -> Plan:
    """Return the plan of EXPLAIN's JSON: of the first element of its array, or of one element. Raises PlanError."""
    statement = one_statement(document)
    listed, parents = list_nodes(statement["Plan"])
    raws = [shortened(raw) for raw in listed]
    loops, rows = _numbers(raws, "Actual Loops"), _numbers(raws, "Actual Rows")
    shared = processes(raws, parents, loops)
    found = structure(raws, parents, loops)
    counts: list[dict[str, float]] = [{} for _ in raws]
    outside_counts: dict[str, float] = {}
    for key in COUNTERS:
        if any(figures := _numbers(raws, key)):
            own, outside_counts[key] = exclusive(found, figures)
            for mine, count in zip(counts, own, strict=True):
                if count:
                    mine[key] = count
    inclusive: list[float] | list[None] = [None] * len(raws)
    alone: list[float] | list[None] = inclusive
    outside_ms = 0.0
    if "Actual Total Time" in raws[0]:
        per_loop = _numbers(raws, "Actual Total Time")
        inclusive = [ms * n / p for ms, n, p in zip(per_loop, loops, shared, strict=True)]
        rounding = [_ROUNDING_MS * n / p for n, p in zip(loops, shared, strict=True)]
        alone, outside_ms = exclusive(found, inclusive, rounding)
    nodes: list[Node] = []
    for at, raw in enumerate(raws):
        parent = nodes[parents[at]] if at else None
        depth = parent.depth + 1 if parent else 0
        figures_of_node = (loops[at], rows[at] * loops[at], shared[at], inclusive[at], alone[at], counts[at])
        kind, relationship = str(raw["Node Type"]), str(raw.get("Parent Relationship") or "")
        node = Node(at + 1, depth, raw, kind, relationship, parent, [], *figures_of_node)
        if parent:
            parent.children.append(node)
        nodes.append(node)
    outside = {key: count for key, count in outside_counts.items() if count}
    return Plan(statement, tuple(nodes), outside_ms, outside)


def load_plan(raw: bytes) -> Plan:
    """Return the plan of EXPLAIN's JSON as the server sent it. Raises PlanError."""
    return read_plan(parse(raw))


def read_plans(text: str) -> list[Plan]:
    """Return every plan in a text: JSON, psql output or a log. Raises PlanError if there is none."""
    return [read_plan(document) for document in read_documents(text)]
