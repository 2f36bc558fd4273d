"""Reading a plan's JSON: the scans it makes, its buffers and time, and one line in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from perfkit.errors import PlanError

Node = Mapping[str, Any]
NO_TABLE = "no table read"


@dataclass(frozen=True, slots=True)
class Scan:
    """How a plan reads one table; `counter` names the statistic that counts it (`seq:table` or an index)."""

    kind: str
    relation: str
    index: str
    counter: str

    def __str__(self) -> str:
        return f"{self.kind} using {self.index} on {self.relation}" if self.index else f"{self.kind} on {self.relation}"


@dataclass(frozen=True, slots=True)
class Summary:
    """One execution: scans in tree order, 8 kB buffers hit and read, ms, and rows of the root."""

    scans: tuple[Scan, ...]
    buffers: int
    execution_ms: float
    rows: float

    def __str__(self) -> str:
        return ", ".join(map(str, self.scans)) or NO_TABLE


def root(document: Any) -> Node:
    """The root node of EXPLAIN's JSON. Raises PlanError where there is none."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict) or not isinstance(first.get("Plan"), dict):
        raise PlanError("not a plan; expected EXPLAIN (FORMAT JSON) output with a 'Plan'")
    node: Node = first["Plan"]
    return node


def walk(node: Node) -> Iterator[Node]:
    """Every node, parents first."""
    yield node
    for child in node.get("Plans", []):
        yield from walk(child)


def summarize(document: Any) -> Summary:
    """What a plan reads and what one execution of it cost. Raises PlanError for what is no plan."""
    top = root(document)
    first = document[0] if isinstance(document, list) else document
    try:
        buffers = sum(int(top.get(key, 0)) for key in ("Shared Hit Blocks", "Shared Read Blocks"))
        time, rows = float(first.get("Execution Time", 0.0)), float(top.get("Actual Rows", 0.0))
        return Summary(tuple(_scans(top)), buffers, time, rows)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PlanError(f"not a plan ({type(error).__name__}: {error}); expected EXPLAIN's own JSON") from None


def _scans(top: Node) -> Iterator[Scan]:
    for node in walk(top):
        kind, relation, index = node["Node Type"], node.get("Relation Name", ""), node.get("Index Name", "")
        if node.get("Actual Loops", 1) == 0:
            continue  # planned, never executed: its counter does not move
        if kind == "Bitmap Index Scan":
            yield Scan("Bitmap Index Scan", _heap_of(top, node), index, index)
        elif index:
            yield Scan(kind, relation, index, index)
        elif kind == "Seq Scan":
            yield Scan(kind, relation, "", f"seq:{relation}")


def _heap_of(top: Node, wanted: Node) -> str:
    """The table whose heap a bitmap index scan feeds."""
    for node in walk(top):
        if node["Node Type"] == "Bitmap Heap Scan" and any(child is wanted for child in walk(node)):
            return str(node.get("Relation Name", ""))
    return ""
