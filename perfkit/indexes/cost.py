"""What a query costs by its plan, and how much less of it an index must bring to be worth making. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from perfkit.explain.findings.model import FindingContext
from perfkit.explain.findings.scans import limited
from perfkit.explain.plan import Node, Plan
from perfkit.indexes.derive import SCANS
from perfkit.numbers import count, significant

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
    """How much a query gains, as a power of two; a sort that is spared counts a little more."""
    spared = 0.5 if before.sorted >= SORTED and not after.sorted else 0.0
    return math.log2((before.work - before.again + ROOM) / (after.work - after.again + ROOM)) + spared


def _again(plan: Plan) -> float:
    """Pages beyond what the planner expects to read of rows that lie together; none where it misjudged the rows."""
    scans = [node for node in plan.nodes if node.kind in SCANS]
    trusted = plan.analyzed and not any(node.kind == "Limit" for node in plan.nodes)
    trusted = trusted and all(node.misestimate <= TRUSTED for node in scans)
    return max(0.0, plan.buffers - plan.root.value("Total Cost")) if trusted else 0.0


def _sorted(plan: Plan, node: Node) -> float:
    """The rows that go into a Sort of which a LIMIT above takes the first."""
    top = next((above for above in node.above() if above.kind not in ("Gather Merge", "LockRows", "Result")), None)
    below = node.children[0] if node.children else node
    return (below.rows if plan.analyzed else below.estimated) if top is not None and top.kind == "Limit" else 0.0


def _narrow(look: FindingContext, node: Node) -> float:
    """What an index spares that is read whole, or nearly: it finds nothing, and stands for its table."""
    table = look.facts.of(node)
    if table is None or limited(node):
        return 0.0
    rows = node.rows if look.plan.analyzed else node.estimated
    if node.text("Index Cond") and (node.loops > 1 or rows < MOSTLY * table.rows):
        return 0.0
    return max(0.0, table.pages - (node.own_pages if look.plan.analyzed else node.value("Total Cost")))


def with_checks(total: CostFigures, more: CostFigures, times: float) -> CostFigures:
    """A statement with the checks that it causes; its time has them in it already."""
    pages = None if total.pages is None else total.pages + times * (more.pages or 0.0)
    again = total.again + times * more.again
    return CostFigures(pages, total.ms, total.cost + times * more.cost, total.sorted, total.narrow, again)
