"""The scans a plan makes, as the server counts them, and one line in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from perfkit.explain.plan import Node, Plan

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
