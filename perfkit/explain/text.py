"""A plan as text: its figures and details as people read them, and its tree for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

from perfkit.base import units
from perfkit.base.errors import visible
from perfkit.base.units import counted, percent, seconds, server_ms
from perfkit.explain.comparison import CONDITIONS
from perfkit.explain.findings.model import Finding, Severity, cut_short
from perfkit.explain.plan import PAGES, Node, Plan, Trigger

SIGNS = {Severity.HIGH: "▲", Severity.MEDIUM: "△", Severity.LOW: "▹"}
STATES = {Severity.HIGH: "bad", Severity.MEDIUM: "unsure", Severity.LOW: "quiet"}
_RANKS = tuple(Severity)
_OFF = 10.0  # factor from which a wrong row estimate is marked
_MANY = 400  # number of nodes from which negligible ones are folded
_GROUPED = 3  # number of adjacent negligible steps that become one line
_LITTLE = 0.01  # share of the time, the pages or the cost below which a node is negligible
_NO_ROWS = frozenset({"BitmapAnd", "BitmapOr"})  # the server counts no rows for these


def far(factor: float) -> str:
    """Return a factor in words if it is at least ten either way; else "".

    >>> far(3333.3), far(0.025), far(4)
    ('3,300× more', '40× fewer', '')
    """
    if factor >= _OFF:
        return f"{units.significant(factor, 2)}× more"
    return f"{units.significant(1 / factor, 2)}× fewer" if 0 < factor <= 1 / _OFF else ""


@dataclass(frozen=True, slots=True)
class FigureGroup:
    """Adjacent negligible steps, with everything below them."""

    steps: tuple[Node, ...]


class PlanFigures:
    """A plan's figures as text; a dash stands for a figure that was not measured."""

    def __init__(
        self, plan: Plan, findings: Sequence[Finding] = (), pinned: Collection[Node] = (), first: Plan | None = None
    ) -> None:
        """Keep the nodes in `pinned` unfolded, even negligible ones; `first` is the plan of the first execution."""
        self.plan, self.first = plan, first
        self.pinned = pinned
        self.findings: dict[int | None, list[Finding]] = {}
        numbered = {node.number for node in plan.nodes}
        for finding in findings:
            self.findings.setdefault(finding.node if finding.node in numbered else None, []).append(finding)
        self.paged = any(key in plan.root.raw for key in PAGES)
        self.large = len(plan.nodes) > _MANY

    @cached_property
    def highest_cost(self) -> float:
        """The highest cost of a node; above 0."""
        return max(node.cost for node in self.plan.nodes) or 1.0

    def time(self, node: Node) -> str:
        """Return a node's own ms, with the rounding error if it matters."""
        if not self.plan.timed or not node.executed or node.exclusive_ms is None:
            return units.NONE
        time, off = server_ms(node.exclusive_ms), node.rounding_ms
        doubtful = off > 0.1 and off > 0.1 * node.exclusive_ms
        return f"{time} ± {units.significant(off, 2)}" if doubtful else time

    def share(self, node: Node) -> str:
        """Return a node's own share of the execution's time."""
        return percent(self.plan.share(node)) if self.plan.timed and node.executed else units.NONE

    def pages(self, node: Node) -> str:
        """Return the number of pages that the node itself touched."""
        return units.count(node.own_pages) if self.paged and node.executed else units.NONE

    def cost(self, node: Node) -> str:
        """Return the planner's cost of a node and everything below."""
        return units.significant(node.cost)

    def rows(self, node: Node) -> tuple[str, str]:
        """Return the expected and the actual rows of all loops."""
        came = units.count(node.rows) if node.executed and node.kind not in _NO_ROWS else units.NONE
        return units.count(node.estimated), came

    def row_error(self, node: Node) -> str:
        """Return how far off the row estimate is; "" if it is close or a node above stopped reading early."""
        if node.kind in _NO_ROWS or (node.misestimate < 1 and cut_short(node)):
            return ""
        return far(node.misestimate)

    def execution(self, node: Node) -> str:
        """Return a node's loops, processes and whether it ran, to be shown beside its name."""
        parts = [counted(node.loops, "loop")] if node.loops > 1 else []
        if node.processes > 1:
            parts.append(f"{node.processes:.3g} processes")
        if self.plan.analyzed and not node.executed:
            parts.append("never executed")
        if node.disabled:
            parts.append("disabled by a setting")
        return ", ".join(parts)

    @cached_property
    def below(self) -> Mapping[Node, tuple[int, float]]:
        """The number of nodes below each node, and their time in ms."""
        counts = dict.fromkeys(self.plan.nodes, 0)
        spent = dict.fromkeys(self.plan.nodes, 0.0)
        for node in reversed(self.plan.nodes):
            if node.parent:
                counts[node.parent] += counts[node] + 1
                spent[node.parent] += spent[node] + (node.exclusive_ms or 0.0)
        return {node: (counts[node], spent[node]) for node in self.plan.nodes}

    @cached_property
    def worst(self) -> Mapping[Node, Finding]:
        """The most severe finding at or below each node that has one."""
        found: dict[Node, Finding] = {}
        for node in reversed(self.plan.nodes):
            here = [*self.findings.get(node.number, ()), *(found[child] for child in node.children if child in found)]
            if here:
                found[node] = min(here, key=rank)
        return found

    @cached_property
    def negligible(self) -> frozenset[Node]:
        """Nodes of a large plan that, with everything below, are less than 1 % of it and have no severe finding."""
        if not self.large:
            return frozenset()
        grave = {n for n, found in self.findings.items() if any(f.severity != Severity.LOW for f in found)}
        weight: dict[Node, float] = {}
        for node in reversed(self.plan.nodes):
            own = 1.0 if node.number in grave or node in self.pinned else self._weight(node)
            weight[node] = own + sum(weight[child] for child in node.children)
        return frozenset(node for node in self.plan.nodes if node.depth and weight[node] < _LITTLE)

    def steps(self, node: Node) -> list[Node | FigureGroup]:
        """Return the steps directly below a node, with adjacent negligible ones as one group."""
        found: list[Node | FigureGroup] = []
        for slight, run in groupby(node.children, key=self.negligible.__contains__):
            members = tuple(run)
            found += [FigureGroup(members)] if slight and len(members) >= _GROUPED else members
        return found

    def _weight(self, node: Node) -> float:
        if not self.plan.analyzed:
            return max(0.0, node.cost - sum(c.cost for c in node.children)) / (self.highest_cost)
        return max(self.plan.share(node), self.page_part(node.own_pages))

    def group(self, group: FigureGroup) -> tuple[str, float, float]:
        """Return a group's name, and the ms and pages of its steps and everything below."""
        steps = group.steps
        count = sum(1 + self.below[node][0] for node in steps)
        more = f", {units.count(count)} with all below" if count > len(steps) else ""
        spent = sum((node.exclusive_ms or 0.0) + self.below[node][1] for node in steps)
        pages = sum(below.own_pages for node in steps for below in node.below())
        return f"{units.count(len(steps))} steps of less than 1 % each{more}", spent, pages

    def page_part(self, pages: float) -> float:
        """Return pages as a share of the execution's pages."""
        return pages / self.plan.buffers if self.plan.buffers else 0.0

    def part(self, spent: float) -> float:
        """Return ms as a share of the execution's time."""
        return spent / whole if (whole := max(self.plan.execution_ms, spent)) else 0.0


def badge(finding: Finding) -> str:
    """Return a finding's severity as a sign and a word."""
    return f"{SIGNS[finding.severity]} {finding.severity}"


def rank(finding: Finding) -> int:
    """Return the rank of a finding's severity; 0 is the most severe."""
    return _RANKS.index(finding.severity)


# The details of a node: one line with the most important ones, then every other key of EXPLAIN.

SHORT = 160  # characters of a condition in the brief line
REMOVED_ROWS = {
    "Rows Removed by Filter": "removed by the filter",
    "Rows Removed by Join Filter": "removed by the join filter",
    "Rows Removed by Index Recheck": "removed when rechecked",
    "Rows Removed by Conflict Filter": "removed by the conflict filter",
}
_KILOBYTES = {"Peak Memory Usage": "in memory", "Disk Usage": "on disk"}


def brief(node: Node) -> str:
    """Return conditions, removed rows, memory and workers in one line; "" if the node has none of these."""
    parts = [f"{key}: {shortened(', '.join(texts), SHORT)}" for key in CONDITIONS if (texts := node.texts(key))]
    for key, words in REMOVED_ROWS.items():
        if count := node.value(key) * max(node.loops, 1.0):
            parts.append(f"{counted(count, 'row')} {words}")
    parts += _memory(node)
    if "Heap Fetches" in node.raw:
        parts.append(counted(node.heap_fetches, "heap fetch"))
    if lossy := node.lossy_pages:
        parts.append(f"{counted(lossy, 'lossy page')}, {units.count(node.exact_pages)} exact")
    if hits := node.cache_hits + node.cache_misses:
        parts.append(f"{units.count(node.cache_hits)} of {units.count(hits)} found in the cache")
    if "Workers Planned" in node.raw:
        launched = f", {units.count(node.workers_launched)} launched" if node.executed else ""
        parts.append(f"{counted(node.workers_planned, 'worker')} planned{launched}")
    return " · ".join(parts)


def shortened(text: str, limit: int) -> str:
    """Return a text on one line, cut to the limit."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _memory(node: Node) -> Iterator[str]:
    if method := node.sort_method:
        space = units.size(node.sort_space_kb * 1024)
        yield f"{method}, {space} {'on disk' if node.sort_space_type == 'Disk' else 'in memory'}"
    batches = node.hash_batches or node.group_batches
    if batches > 1:
        yield counted(batches, "batch")
    for key, words in _KILOBYTES.items():
        if used := node.value(key):
            yield f"{units.size(used * 1024)} {words}"


# The statement as a whole: its figures, their caveats, and its findings.

_MEASURED = "Page counts are reproducible; a single timing is not."
_ESTIMATED = "Costs (in the planner's own unit) and rows are the planner's estimates."


def whole_plan(figures: PlanFigures) -> list[str]:
    """Return the figures of the statement, most important first."""
    plan, document = figures.plan, figures.plan.document
    parts = [] if plan.analyzed else [f"cost {figures.cost(plan.root)}"]
    if plan.analyzed and plan.execution_ms:
        parts.append(f"{seconds(plan.execution_ms / 1000)} executing")
    if "Planning Time" in document:
        parts.append(f"{seconds(plan.planning_ms / 1000)} planning")
    if figures.paged and plan.analyzed:
        parts.append(f"{counted(plan.buffers, 'page')} ({units.size(plan.buffers * 8192)})")
    parts.append(counted(plan.rows, "row") if plan.analyzed else f"{counted(plan.root.estimated, 'row')} expected")
    return [*parts, "measured once" if plan.analyzed else "estimated: the statement was not executed"]


def caveats(figures: PlanFigures) -> str:
    """Return how far the figures can be trusted."""
    parts = [_MEASURED if figures.plan.analyzed else _ESTIMATED]
    if figures.plan.analyzed and not figures.plan.timed:
        parts.append("Nodes were not timed.")
    if figures.plan.analyzed and not figures.paged:
        parts.append("Pages were not counted.")
    return " ".join(parts)


def aside(figures: PlanFigures) -> list[tuple[str, str]]:
    """Return the statement's costs outside its nodes, and the settings that shaped its plan."""
    plan, whole = figures.plan, figures.plan.execution_ms
    parts = [("Settings", "; ".join(f"{name} = {value}" for name, value in plan.settings.items()))]
    parts.append(("First execution", _first(figures.first) if figures.first else ""))
    parts.append(("Triggers", "; ".join(_triggers(plan.triggers, whole))))
    for name, spent in (
        ("JIT compilation", plan.jit_ms),
        ("Serialization", plan.serialization_ms),
        ("After the last row", plan.outside_ms),
    ):
        of = f" ({percent(spent / whole)} of the execution)" if whole and name != "Serialization" else ""
        parts.append((name, f"{seconds(spent / 1000)}{of}" if spent else ""))
    return [(name, text) for name, text in parts if text]


def _first(plan: Plan) -> str:
    """Return the figures of the first execution, which found the caches as they were."""
    read = sum(plan.root.value(key) for key in ("Shared Read Blocks", "Local Read Blocks"))
    return f"{seconds(plan.execution_ms / 1000)}, {counted(read, 'page')} read into memory; the last one is shown"


def folding(figures: PlanFigures, what: str) -> str:
    """Return a sentence on the steps of a large plan that are folded or left out."""
    little = units.count(len(figures.negligible))
    measure = "time and pages" if figures.plan.analyzed else "cost"
    return (
        f"{counted(len(figures.plan.nodes), 'step')}, of which {little} with less than 1 % of {measure} each, "
        f"everything below included, are {what}; EXPLAIN's JSON has all of them."
    )


def summary(figures: PlanFigures) -> str:
    """Return the number of findings, and their steps: `2 findings: ▲ high at 4, △ medium at 7`."""
    found = [f for nodes in figures.findings.values() for f in nodes]
    if not found:
        return ""
    ranked = sorted(found, key=lambda f: (rank(f), f.node or 0))
    steps = dict.fromkeys(f"{badge(f)} {step_of(figures, f)}" for f in ranked)
    return f"{counted(len(found), 'finding')}: {', '.join(steps)}"


def step_of(figures: PlanFigures, finding: Finding) -> str:
    """Return the step of a finding, in words."""
    return "of the statement" if finding in figures.findings.get(None, ()) else f"at {finding.node}"


def _triggers(triggers: Sequence[Trigger], whole: float, limit: int = 12) -> list[str]:
    parts = []
    for trigger in triggers[:limit]:
        of = f", {percent(trigger.ms / whole)}" if whole and trigger.ms else ""
        where = f" on {trigger.table}" if trigger.table else ""
        name = trigger.constraint or trigger.name or "?"
        parts.append(f"{name}{where}: {counted(trigger.calls, 'call')}, {server_ms(trigger.ms)} ms{of}")
    return parts + ([f"{len(triggers) - limit} more"] if len(triggers) > limit else [])


# A plan for the terminal: a tree with figures in columns, and findings below, by the numbers of their steps.

Mark = Callable[[Node], str]
Columns = Callable[[Node], tuple[str, ...]]
_HEADS = {True: ("own ms", "", "pages", "expected → came"), False: ("cost", "rows expected")}
_NARROWEST = 24  # minimum characters of a title
_WIDEST = 100
_BRANCHES = 24  # maximum characters of the tree's branches; deeper ones lose their beginning
_LINE = 160  # characters of a brief line without a given width


def lines(
    figures: PlanFigures,
    width: int | None,
    *,
    heads: tuple[str, ...] = (),
    columns: Columns | None = None,
    mark: Mark = lambda node: "",
) -> Iterator[str]:
    """Yield the tree with its columns, by default those of a plan; without `width`, as wide as needed."""
    analyzed = figures.plan.analyzed
    entries = list(_entries(figures))
    columns = columns or partial(_columns, figures)
    heads = heads or _HEADS[analyzed]
    table = [_grouped(figures, what, heads) if isinstance(what, FigureGroup) else columns(what) for what, *_ in entries]
    widths = [max(len(head), *(len(row[at]) for row in table)) for at, head in enumerate(heads)]
    digits = len(str(len(figures.plan.nodes)))
    titles = [
        f"{branch}{'' if isinstance(what, FigureGroup) else mark(what)}{_title(figures, what)}"
        for what, branch, _ in entries
    ]
    longest = max(_NARROWEST, *map(len, titles))
    fixed = digits + 1 + sum(widths) + 2 * len(widths)
    room = min(longest, _WIDEST if width is None else max(_NARROWEST, width - fixed))
    yield _line("", "step", digits, room, heads, widths)
    for (what, _, beside), title, row in zip(entries, titles, table, strict=True):
        inner = f"{' ' * digits} {beside}"
        first, *rest = _fitting(title, room, len(inner) - digits - 1)
        yield _line("" if isinstance(what, FigureGroup) else str(what.number), first, digits, room, row, widths)
        yield from (inner + line for line in rest)
        if not isinstance(what, FigureGroup) and (parts := brief(what)):
            yield inner + shortened(visible(parts), max(_NARROWEST, (width or _LINE) - len(inner)))


def above(figures: PlanFigures, width: int | None) -> Iterator[str]:
    """Yield the lines above the tree: figures, costs outside the nodes, and caveats."""
    yield from wrapped(" · ".join(whole_plan(figures)), width)
    for name, text in aside(figures):
        yield from wrapped(f"{name}: {text}", width, "  ")
    yield from wrapped(caveats(figures), width)
    if figures.negligible:
        yield from wrapped(folding(figures, "left out"), width)


def findings(figures: PlanFigures, width: int | None) -> Iterator[str]:
    """Yield each finding with the number of its step, most severe first."""
    found = [f for key in sorted(figures.findings, key=lambda n: n or 0) for f in figures.findings[key]]
    for finding in sorted(found, key=rank):
        parts = f"{badge(finding)} {step_of(figures, finding)}: {finding.text} {finding.advice}"
        yield from wrapped(parts, width, "  ")
        for line in finding.sql.splitlines():
            yield f"    {visible(line)}"


def wrapped(text: str, width: int | None, indent: str = "") -> Iterator[str]:
    """Yield a text in lines of at most `width`; a single word is never cut."""
    line = ""
    for word in visible(text).split():
        if line and width is not None and len(line) + 1 + len(word) > width:
            yield line
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    if line:
        yield line


def _columns(figures: PlanFigures, node: Node) -> tuple[str, ...]:
    expected, came = figures.rows(node)
    if not figures.plan.analyzed:
        return figures.cost(node), expected
    off = figures.row_error(node)
    rows = f"{expected} → {came}"
    return figures.time(node), figures.share(node), figures.pages(node), f"≠ {off}  {rows}" if off else rows


def _grouped(figures: PlanFigures, group: FigureGroup, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of a group; empty if the tree has other columns than a plan's."""
    if heads != _HEADS[True]:
        return ("",) * len(heads)
    _, spent, pages = figures.group(group)
    time, of = (server_ms(spent), percent(figures.part(spent))) if figures.plan.timed else (units.NONE, units.NONE)
    return time, of, units.count(pages) if figures.paged else units.NONE, ""


def _title(figures: PlanFigures, what: Node | FigureGroup) -> str:
    if isinstance(what, FigureGroup):
        return f"… {figures.group(what)[0]}"
    count = figures.below[what][0] if what in figures.negligible else 0
    hidden = f"+ {counted(count, 'step')}" if count else ""
    parts = ", ".join(text for text in (figures.execution(what), hidden) if text)
    label = f"{what.subplan}: " if what.subplan else ""
    return " ".join(visible(f"{label}{what.title}{f' ({parts})' if parts else ''}").split())


def _fitting(title: str, room: int, indent: int) -> list[str]:
    """Return a title in lines that fit beside the figures; a text without spaces is cut anywhere."""
    if len(title) <= room:
        return [title]
    at = title.rfind(" ", indent + 1, room + 1)
    at = at if at > indent + 2 else room
    return [title[:at], *textwrap.wrap(title[at:].strip(), max(_NARROWEST, room - indent))]


def _line(number: str, title: str, digits: int, room: int, row: tuple[str, ...], widths: list[int]) -> str:
    cells = "".join(f"  {cell.rjust(width)}" for cell, width in zip(row, widths, strict=True))
    return f"{number.rjust(digits)} {title.ljust(room)}{cells}".rstrip()


def _entries(figures: PlanFigures) -> Iterator[tuple[Node | FigureGroup, str, str]]:
    """Yield steps and groups from the top down, with the branches before each and those before its next lines."""
    waiting: list[tuple[Node | FigureGroup, str, str]] = [(figures.plan.root, "", "")]
    while waiting:
        what, branch, stem = waiting.pop()
        steps = [] if isinstance(what, FigureGroup) or what in figures.negligible else figures.steps(what)
        yield what, branch, f"{stem}{'│' if steps else ' '}    "
        stem = stem if len(stem) < _BRANCHES else f"⋯  {stem[6 - _BRANCHES :]}"
        for step in reversed(steps):
            last = step is steps[-1]
            waiting.append((step, f"{stem}{'└─ ' if last else '├─ '}", f"{stem}{'   ' if last else '│  '}"))
