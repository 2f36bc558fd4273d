"""What every drawing of a plan says in figures: of the whole, and of each node, in the same words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from perfkit import numbers
from perfkit.explain.findings.model import Finding, Severity
from perfkit.explain.plan import PAGES, Node, Plan

SIGNS = {Severity.HIGH: "▲", Severity.MEDIUM: "△", Severity.LOW: "▹"}
STATES = {Severity.HIGH: "bad", Severity.MEDIUM: "unsure", Severity.LOW: "quiet"}
_RANKS = tuple(Severity)
_OFF = 10.0  # how many times more or fewer rows than expected are marked
_MANY = 400  # nodes from which what hardly counts is folded
_GROUPED = 3  # steps side by side that become one line
_LITTLE = 0.01  # of the time, the pages or the cost
_NO_ROWS = frozenset({"BitmapAnd", "BitmapOr"})  # for which the server counts none


def ms(value: float) -> str:
    """Milliseconds to three digits, and never beyond the microsecond to which the server rounds them.

    >>> ms(0.0174), ms(31.76), ms(12345.6), ms(0.0)
    ('0.017', '31.8', '12,300', '0')
    """
    short = numbers.significant(value)
    return short if value >= 1 else f"{value:.3f}" if value >= 0.0005 else "0"


def duration(value: float) -> str:
    """A duration given in ms, in seconds from one second.

    >>> duration(0.064), duration(75_210)
    ('0.064 ms', '75.2 s')
    """
    return f"{ms(value)} ms" if value < 1000 else f"{numbers.significant(value / 1000)} s"


def share(part: float) -> str:
    """A part of the whole as a percentage without decimals.

    >>> share(0.826), share(0.004), share(0.0)
    ('83 %', '<1 %', '0 %')
    """
    return f"{part * 100:.0f} %" if part >= 0.01 else "<1 %" if part >= 0.0001 else "0 %"


def plural(count: float, one: str, many: str = "") -> str:
    """A count with its noun; `many` is the plural where an s does not make it.

    >>> plural(1, "loop"), plural(2000, "loop")
    ('1 loop', '2,000 loops')
    """
    return f"{numbers.count(count)} {one if round(count) == 1 else many or one + 's'}"


def far(factor: float) -> str:
    """A factor of ten or more either way, in words.

    >>> far(3333.3), far(0.025), far(4)
    ('3,300× more', '40× fewer', '')
    """
    if factor >= _OFF:
        return f"{numbers.significant(factor, 2)}× more"
    return f"{numbers.significant(1 / factor, 2)}× fewer" if 0 < factor <= 1 / _OFF else ""


@dataclass(frozen=True, slots=True)
class FigureGroup:
    """Steps side by side of which each hardly counts, with all below them."""

    steps: tuple[Node, ...]


class PlanFigures:
    """A plan's figures as text, with what was not measured left open as a dash."""

    def __init__(
        self, plan: Plan, findings: Sequence[Finding] = (), kept: Collection[Node] = (), first: Plan | None = None
    ) -> None:
        """`kept` are nodes that are never folded, however little they count; `first` is the first execution's plan."""
        self.plan, self.first = plan, first
        self.kept = kept
        self.found: dict[int | None, list[Finding]] = {}
        numbered = {node.number for node in plan.nodes}
        for finding in findings:
            self.found.setdefault(finding.node if finding.node in numbered else None, []).append(finding)
        self.paged = any(key in plan.root.raw for key in PAGES)
        self.large = len(plan.nodes) > _MANY

    @cached_property
    def highest_cost(self) -> float:
        """The cost of the dearest node, above 0."""
        return max(node.value("Total Cost") for node in self.plan.nodes) or 1.0

    def time(self, node: Node) -> str:
        """A node's own ms, with how far rounding may have taken them where that matters."""
        if not self.plan.timed or not node.executed or node.exclusive_ms is None:
            return numbers.NONE
        off = node.rounding_ms
        doubtful = off > 0.1 and off > 0.1 * node.exclusive_ms
        return f"{ms(node.exclusive_ms)} ± {numbers.significant(off, 2)}" if doubtful else ms(node.exclusive_ms)

    def share(self, node: Node) -> str:
        """A node's own part of the execution's time."""
        return share(self.plan.share(node)) if self.plan.timed and node.executed else numbers.NONE

    def pages(self, node: Node) -> str:
        """The pages that a node touched itself."""
        return numbers.count(node.own_pages) if self.paged and node.executed else numbers.NONE

    def cost(self, node: Node) -> str:
        """The planner's cost of a node, with everything below."""
        return numbers.significant(node.value("Total Cost"))

    def rows(self, node: Node) -> tuple[str, str]:
        """Rows expected, and rows that came, of all loops."""
        came = numbers.count(node.rows) if node.executed and node.kind not in _NO_ROWS else numbers.NONE
        return numbers.count(node.estimated), came

    def off(self, node: Node) -> str:
        """How far the rows are from the estimate where that is far, and nothing above stopped asking for more."""
        if node.kind in _NO_ROWS or (node.misestimate < 1 and node.cut_short):
            return ""
        return far(node.misestimate)

    def said(self, node: Node) -> str:
        """What else has to be said beside a node's name: how often and by how many it was executed."""
        told = [plural(node.loops, "loop")] if node.loops > 1 else []
        if node.processes > 1:
            told.append(f"{node.processes:.3g} processes")
        if self.plan.analyzed and not node.executed:
            told.append("never executed")
        if node.disabled:
            told.append("disabled by a setting")
        return ", ".join(told)

    def label(self, node: Node) -> str:
        """The subplan that begins here: `CTE a`, `InitPlan 1`, `SubPlan 2`."""
        return node.text("Subplan Name")

    @cached_property
    def below(self) -> Mapping[Node, tuple[int, float]]:
        """Of each node: how many are under it, and the time spent there in ms."""
        counts = dict.fromkeys(self.plan.nodes, 0)
        spent = dict.fromkeys(self.plan.nodes, 0.0)
        for node in reversed(self.plan.nodes):
            if node.parent:
                counts[node.parent] += counts[node] + 1
                spent[node.parent] += spent[node] + (node.exclusive_ms or 0.0)
        return {node: (counts[node], spent[node]) for node in self.plan.nodes}

    @cached_property
    def gravest(self) -> Mapping[Node, Finding]:
        """The gravest finding at or under each node that has one."""
        found: dict[Node, Finding] = {}
        for node in reversed(self.plan.nodes):
            here = [*self.found.get(node.number, ()), *(found[child] for child in node.children if child in found)]
            if here:
                found[node] = min(here, key=rank)
        return found

    @cached_property
    def little(self) -> frozenset[Node]:
        """Nodes of a large plan that hardly count: with all below less than 1 % of it, and no grave finding."""
        if not self.large:
            return frozenset()
        grave = {n for n, found in self.found.items() if any(f.severity != Severity.LOW for f in found)}
        weight: dict[Node, float] = {}
        for node in reversed(self.plan.nodes):
            own = 1.0 if node.number in grave or node in self.kept else self._weight(node)
            weight[node] = own + sum(weight[child] for child in node.children)
        return frozenset(node for node in self.plan.nodes if node.depth and weight[node] < _LITTLE)

    def steps(self, node: Node) -> list[Node | FigureGroup]:
        """The steps right below, those that hardly count and stand side by side as one group."""
        found: list[Node | FigureGroup] = []
        for slight, run in groupby(node.children, key=self.little.__contains__):
            members = tuple(run)
            found += [FigureGroup(members)] if slight and len(members) >= _GROUPED else members
        return found

    def _weight(self, node: Node) -> float:
        if not self.plan.analyzed:
            return max(0.0, node.value("Total Cost") - sum(c.value("Total Cost") for c in node.children)) / (
                self.highest_cost
            )
        return max(self.plan.share(node), self.page_part(node.own_pages))

    def group(self, group: FigureGroup) -> tuple[str, float, float]:
        """What a group is called, the ms that it took with all below, and the pages."""
        steps = group.steps
        count = sum(1 + self.below[node][0] for node in steps)
        more = f", {numbers.count(count)} with all below" if count > len(steps) else ""
        spent = sum((node.exclusive_ms or 0.0) + self.below[node][1] for node in steps)
        pages = sum(below.own_pages for node in steps for below in node.below())
        return f"{numbers.count(len(steps))} steps of less than 1 % each{more}", spent, pages

    def page_part(self, pages: float) -> float:
        """Some pages as a part of those of the execution."""
        return pages / self.plan.buffers if self.plan.buffers else 0.0

    def part(self, spent: float) -> float:
        """Some ms as a part of the execution."""
        return spent / whole if (whole := max(self.plan.execution_ms, spent)) else 0.0


def badge(finding: Finding) -> str:
    """A finding's severity as a sign and a word."""
    return f"{SIGNS[finding.severity]} {finding.severity}"


def rank(finding: Finding) -> int:
    """Where a finding's severity stands, the gravest first."""
    return _RANKS.index(finding.severity)
