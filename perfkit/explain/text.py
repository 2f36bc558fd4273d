"""A plan drawn as text, with its numbers and details as people read them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

from perfkit.base import units
from perfkit.base.bundle import dumps
from perfkit.base.errors import PlanError, visible
from perfkit.explain.comparison import CONDITIONS
from perfkit.explain.findings.model import Finding, Severity
from perfkit.explain.plan import COUNTERS, PAGES, Node, Plan, number

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
    short = units.significant(value)
    return short if value >= 1 else f"{value:.3f}" if value >= 0.0005 else "0"


def duration(value: float) -> str:
    """A duration given in ms, in seconds from one second.

    >>> duration(0.064), duration(75_210)
    ('0.064 ms', '75.2 s')
    """
    return f"{ms(value)} ms" if value < 1000 else f"{units.significant(value / 1000)} s"


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
    return f"{units.count(count)} {one if round(count) == 1 else many or one + 's'}"


def far(factor: float) -> str:
    """A factor of ten or more either way, in words.

    >>> far(3333.3), far(0.025), far(4)
    ('3,300× more', '40× fewer', '')
    """
    if factor >= _OFF:
        return f"{units.significant(factor, 2)}× more"
    return f"{units.significant(1 / factor, 2)}× fewer" if 0 < factor <= 1 / _OFF else ""


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
            return units.NONE
        off = node.rounding_ms
        doubtful = off > 0.1 and off > 0.1 * node.exclusive_ms
        return f"{ms(node.exclusive_ms)} ± {units.significant(off, 2)}" if doubtful else ms(node.exclusive_ms)

    def share(self, node: Node) -> str:
        """A node's own part of the execution's time."""
        return share(self.plan.share(node)) if self.plan.timed and node.executed else units.NONE

    def pages(self, node: Node) -> str:
        """The pages that a node touched itself."""
        return units.count(node.own_pages) if self.paged and node.executed else units.NONE

    def cost(self, node: Node) -> str:
        """The planner's cost of a node, with everything below."""
        return units.significant(node.value("Total Cost"))

    def rows(self, node: Node) -> tuple[str, str]:
        """Rows expected, and rows that came, of all loops."""
        came = units.count(node.rows) if node.executed and node.kind not in _NO_ROWS else units.NONE
        return units.count(node.estimated), came

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
        more = f", {units.count(count)} with all below" if count > len(steps) else ""
        spent = sum((node.exclusive_ms or 0.0) + self.below[node][1] for node in steps)
        pages = sum(below.own_pages for node in steps for below in node.below())
        return f"{units.count(len(steps))} steps of less than 1 % each{more}", spent, pages

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


# What EXPLAIN gave beyond a node's figures: first the line that says most, then every other key.

SHORT = 160  # characters of a condition in the line that says most
_LONG = 1_000  # characters of any value
_OUTPUT = 6  # columns that are named
_WORKERS = 16
_IN_TITLE = (  # texts that a node's title is made of
    *("Node Type", "Relation Name", "Function Name", "CTE Name", "Table Function Name", "Tuplestore Name"),
    *("Alias", "Index Name", "Join Type", "Strategy", "Partial Mode", "Scan Direction", "Subplan Name", "Command"),
)
_REMOVED = {
    "Rows Removed by Filter": "removed by the filter",
    "Rows Removed by Join Filter": "removed by the join filter",
    "Rows Removed by Index Recheck": "removed when rechecked",
    "Rows Removed by Conflict Filter": "removed by the conflict filter",
}
_SAID = (*_REMOVED, "Heap Fetches", "Workers Planned", "Workers Launched")  # numbers that the first line has
_KILOBYTES = {"Peak Memory Usage": "in memory", "Disk Usage": "on disk"}


def brief(node: Node) -> str:
    """The conditions, and what became of rows, memory and workers, in one line; "" for none of it."""
    told = [f"{key}: {shortened(', '.join(texts), SHORT)}" for key in CONDITIONS if (texts := node.texts(key))]
    for key, words in _REMOVED.items():
        if count := node.value(key) * max(node.loops, 1.0):
            told.append(f"{plural(count, 'row')} {words}")
    told += _memory(node)
    if "Heap Fetches" in node.raw:
        told.append(plural(node.value("Heap Fetches"), "heap fetch", "heap fetches"))
    if lossy := node.value("Lossy Heap Blocks"):
        told.append(f"{plural(lossy, 'lossy page')}, {units.count(node.value('Exact Heap Blocks'))} exact")
    if hits := node.value("Cache Hits") + node.value("Cache Misses"):
        told.append(f"{units.count(node.value('Cache Hits'))} of {units.count(hits)} found in the cache")
    if "Workers Planned" in node.raw:
        launched = f", {units.count(node.value('Workers Launched'))} launched" if node.executed else ""
        told.append(f"{plural(node.value('Workers Planned'), 'worker')} planned{launched}")
    return " · ".join(told)


def details(node: Node) -> Iterator[tuple[str, str]]:
    """Everything else that EXPLAIN gave of a node, named; counts of 0, `false` and what `brief` says in full aside."""
    raw, done = node.raw, {"Plans", *(key for key in _IN_TITLE if node.text(key))}
    done |= {key for key in CONDITIONS if (texts := node.texts(key)) and len(", ".join(texts)) <= SHORT}
    done |= {key for key in _SAID if _plain(raw, key)}
    if node.text("Sort Method") and _plain(raw, "Sort Space Used"):
        done |= {"Sort Method", "Sort Space Used", "Sort Space Type"}
    if _plain(raw, "Total Cost"):
        yield "Cost", _cost(node)
        done |= {"Startup Cost", "Total Cost", "Plan Rows", "Plan Width"}
    if _plain(raw, "Actual Loops") and node.executed:
        yield "Each loop", _loop(node)
        done |= {"Actual Loops", "Actual Rows", "Actual Startup Time", "Actual Total Time"}
    if node.children and node.inclusive_ms is not None and node.executed:
        yield "With all below", f"{ms(node.inclusive_ms)} ms, {plural(node.pages, 'page')}"
    if buffers := _buffers(node):
        yield "Buffers, with all below", buffers
    done |= {key for key in COUNTERS if _plain(raw, key)}
    if outputs := node.texts("Output"):
        more = f" and {len(outputs) - _OUTPUT} more" if len(outputs) > _OUTPUT else ""
        yield "Output", shortened(", ".join(outputs[:_OUTPUT]), SHORT) + more
        done.add("Output")
    yield from pairs(raw, done)


def pairs(raw: Mapping[str, Any], done: set[str]) -> Iterator[tuple[str, str]]:
    """The other keys of a part of the document with their values as text; those of 0 and false are left out."""
    for key, value in raw.items():
        if key in done or not value:
            continue
        if key == "Workers" and isinstance(value, list):
            for at, worker in enumerate(value[:_WORKERS]):
                yield (
                    f"Worker {at}",
                    _flat(
                        {k: v for k, v in worker.items() if k != "Worker Number"}
                        if isinstance(worker, dict)
                        else worker
                    ),
                )
            if len(value) > _WORKERS:
                yield "Workers", f"{len(value) - _WORKERS} more"
        else:
            yield key, _flat(value) + (" ms" if key.endswith(" Time") and _plain(raw, key) else "")


def shortened(text: str, limit: int) -> str:
    """A text on one line, cut where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _memory(node: Node) -> Iterator[str]:
    if method := node.text("Sort Method"):
        space = units.size(node.value("Sort Space Used") * 1024)
        yield f"{method}, {space} {'on disk' if node.text('Sort Space Type') == 'Disk' else 'in memory'}"
    batches = node.value("Hash Batches") or node.value("HashAgg Batches")
    if batches > 1:
        yield plural(batches, "batch", "batches")
    for key, words in _KILOBYTES.items():
        if used := node.value(key):
            yield f"{units.size(used * 1024)} {words}"


def _cost(node: Node) -> str:
    start, end = (f"{node.value(key):,.10g}" for key in ("Startup Cost", "Total Cost"))
    rows = plural(node.value("Plan Rows"), "row")
    return f"{start} to {end} for {rows} of {plural(node.value('Plan Width'), 'byte')}"


def _loop(node: Node) -> str:
    rows = f"{node.value('Actual Rows'):,.10g} rows"
    if "Actual Total Time" not in node.raw:
        return rows
    start, end = (ms(node.value(key)) for key in ("Actual Startup Time", "Actual Total Time"))
    return f"{rows}, first after {start} ms, last after {end} ms"


def _buffers(node: Node) -> str:
    found: dict[str, list[str]] = {}
    for key in COUNTERS:
        if count := node.value(key):
            kind, what, _ = key.lower().split(" ")
            found.setdefault(kind, []).append(f"{what} {units.count(count)}")
    return "; ".join(f"{kind} {', '.join(counts)}" for kind, counts in found.items())


def _plain(raw: Mapping[str, Any], key: str) -> bool:
    """Whether a value is the number that it ought to be, and has been said as one."""
    return isinstance(raw.get(key), int | float) and not isinstance(raw[key], bool)


def _flat(value: Any, depth: int = 3) -> str:
    """Any value of a document on one line, without what is 0 or false in it."""
    if isinstance(value, dict | list) and not depth:
        try:
            text = dumps(value)
        except PlanError:
            text = "(nested too deeply)"
    elif isinstance(value, dict):
        text = ", ".join(f"{key} {_flat(part, depth - 1)}" for key, part in value.items() if part)
    elif isinstance(value, list):
        text = ", ".join(_flat(part, depth - 1) for part in value)
    else:
        return shortened(str(value), _LONG)
    return shortened(text if depth == 3 else f"({text})", _LONG)


# What is said of a statement as a whole, in every form: its figures, what weakens them, and its findings.

_WEAK = "Pages repeat from one execution to the next; the time of a single execution is weak evidence."
_GUESSED = "Costs, in the planner's own unit, and rows are what it expects."


def whole_plan(figures: PlanFigures) -> list[str]:
    """The figures of the statement, most important first."""
    plan, document = figures.plan, figures.plan.document
    told = []
    if plan.analyzed:
        if plan.execution_ms:
            told.append(f"{duration(plan.execution_ms)} executing")
    else:
        told.append(f"cost {figures.cost(plan.root)}")
    if "Planning Time" in document:
        told.append(f"{duration(plan.planning_ms)} planning")
    if figures.paged and plan.analyzed:
        told.append(f"{plural(plan.buffers, 'page')} ({units.size(plan.buffers * 8192)})")
    told.append(plural(plan.rows, "row") if plan.analyzed else f"{plural(plan.root.estimated, 'row')} expected")
    return [*told, "measured once" if plan.analyzed else "estimated: the statement was not executed"]


def weakness(figures: PlanFigures) -> str:
    """How far the figures can be believed."""
    told = [_WEAK if figures.plan.analyzed else _GUESSED]
    if figures.plan.analyzed and not figures.plan.timed:
        told.append("Nodes were not timed.")
    if figures.plan.analyzed and not figures.paged:
        told.append("Pages were not counted.")
    return " ".join(told)


def aside(figures: PlanFigures) -> list[tuple[str, str]]:
    """What the statement cost beside its nodes, and the settings that shaped its plan."""
    plan, whole = figures.plan, figures.plan.execution_ms
    told = [("Settings", "; ".join(f"{name} = {value}" for name, value in plan.settings.items()))]
    told.append(("First execution", _first(figures.first) if figures.first else ""))
    told.append(("Triggers", "; ".join(_triggers(plan.triggers, whole))))
    for name, spent in (
        ("JIT compilation", plan.jit_ms),
        ("Serialization", plan.serialization_ms),
        ("After the last row", plan.outside_ms),
    ):
        of = f" ({share(spent / whole)} of the execution)" if whole and name != "Serialization" else ""
        told.append((name, f"{duration(spent)}{of}" if spent else ""))
    return [(name, text) for name, text in told if text]


def _first(plan: Plan) -> str:
    """What the execution took that found the caches as they were."""
    read = sum(plan.root.value(key) for key in ("Shared Read Blocks", "Local Read Blocks"))
    return f"{duration(plan.execution_ms)}, {plural(read, 'page')} read into memory; what is shown is the last one"


def folding(figures: PlanFigures, what: str) -> str:
    """What is folded or left out of a large plan."""
    little = units.count(len(figures.little))
    measure = "time and pages" if figures.plan.analyzed else "cost"
    return (
        f"{plural(len(figures.plan.nodes), 'step')}, of which {little} with less than 1 % of {measure} each, "
        f"all below included, are {what}; EXPLAIN's JSON has everything."
    )


def summary(figures: PlanFigures) -> str:
    """How many findings there are, and where: `2 findings: ▲ high at 4, △ medium at 7`."""
    found = [f for nodes in figures.found.values() for f in nodes]
    if not found:
        return ""
    ranked = sorted(found, key=lambda f: (rank(f), f.node or 0))
    places = dict.fromkeys(f"{badge(f)} {place(figures, f)}" for f in ranked)
    return f"{plural(len(found), 'finding')}: {', '.join(places)}"


def place(figures: PlanFigures, finding: Finding) -> str:
    """Where a finding stands."""
    return "of the statement" if finding in figures.found.get(None, ()) else f"at {finding.node}"


def _triggers(triggers: Sequence[Mapping[str, object]], whole: float, limit: int = 12) -> list[str]:
    told = []
    for trigger in triggers[:limit]:
        name = trigger.get("Constraint Name") or trigger.get("Trigger Name") or "?"
        spent = number(trigger, "Time")
        of = f", {share(spent / whole)}" if whole and spent else ""
        where = f" on {trigger['Relation']}" if trigger.get("Relation") else ""
        told.append(f"{name}{where}: {plural(number(trigger, 'Calls'), 'call')}, {ms(spent)} ms{of}")
    return told + ([f"{len(triggers) - limit} more"] if len(triggers) > limit else [])


# A plan for the terminal: a tree of lines with its figures in columns, findings below by their numbers.

Mark = Callable[[Node], str]
Columns = Callable[[Node], tuple[str, ...]]
_HEADS = {True: ("own ms", "", "pages", "expected → came"), False: ("cost", "rows expected")}
_NARROWEST = 24  # characters of a title
_WIDEST = 100
_BRANCHES = 24  # characters of the tree's lines; deeper ones lose their beginning
_LINE = 160  # characters of a line of words where no width is asked for


def lines(
    figures: PlanFigures,
    width: int | None,
    *,
    heads: tuple[str, ...] = (),
    columns: Columns | None = None,
    mark: Mark = lambda node: "",
) -> Iterator[str]:
    """The tree with its columns, a plan's own unless others are given; `width` None: as wide as needed."""
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
        if not isinstance(what, FigureGroup) and (told := brief(what)):
            yield inner + shortened(visible(told), max(_NARROWEST, (width or _LINE) - len(inner)))


def above(figures: PlanFigures, width: int | None) -> Iterator[str]:
    """What is said of the whole."""
    yield from wrapped(" · ".join(whole_plan(figures)), width)
    for name, text in aside(figures):
        yield from wrapped(f"{name}: {text}", width, "  ")
    yield from wrapped(weakness(figures), width)
    if figures.little:
        yield from wrapped(folding(figures, "left out"), width)


def findings(figures: PlanFigures, width: int | None) -> Iterator[str]:
    """Each finding with the number of its step, gravest first as they came."""
    found = [f for key in sorted(figures.found, key=lambda n: n or 0) for f in figures.found[key]]
    for finding in sorted(found, key=rank):
        told = f"{badge(finding)} {place(figures, finding)}: {finding.text} {finding.advice}"
        yield from wrapped(told, width, "  ")
        for line in finding.sql.splitlines():
            yield f"    {visible(line)}"


def wrapped(text: str, width: int | None, indent: str = "") -> Iterator[str]:
    """Words in lines; a single word is never cut."""
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
    off = figures.off(node)
    rows = f"{expected} → {came}"
    return figures.time(node), figures.share(node), figures.pages(node), f"≠ {off}  {rows}" if off else rows


def _grouped(figures: PlanFigures, group: FigureGroup, heads: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of steps that hardly count one by one; empty beside columns that are not a plan's own."""
    _, spent, pages = figures.group(group)
    if heads != _HEADS[True]:
        return tuple("" for _ in heads)
    time, of = (ms(spent), share(figures.part(spent))) if figures.plan.timed else (units.NONE, units.NONE)
    return time, of, units.count(pages) if figures.paged else units.NONE, ""


def _title(figures: PlanFigures, what: Node | FigureGroup) -> str:
    if isinstance(what, FigureGroup):
        return f"… {figures.group(what)[0]}"
    told = ", ".join(text for text in (figures.said(what), _hidden(figures, what)) if text)
    label = f"{figures.label(what)}: " if figures.label(what) else ""
    return " ".join(visible(f"{label}{what.title}{f' ({told})' if told else ''}").split())


def _hidden(figures: PlanFigures, node: Node) -> str:
    count = figures.below[node][0]
    return f"+ {plural(count, 'step')}" if count and node in figures.little else ""


def _fitting(title: str, room: int, indent: int) -> list[str]:
    """A title in lines that fit beside the figures; what has no space is cut at any character."""
    if len(title) <= room:
        return [title]
    at = title.rfind(" ", indent + 1, room + 1)
    at = at if at > indent + 2 else room
    return [title[:at], *textwrap.wrap(title[at:].strip(), max(_NARROWEST, room - indent))]


def _line(number: str, title: str, digits: int, room: int, row: tuple[str, ...], widths: list[int]) -> str:
    cells = "".join(f"  {cell.rjust(width)}" for cell, width in zip(row, widths, strict=True))
    return f"{number.rjust(digits)} {title.ljust(room)}{cells}".rstrip()


def _entries(figures: PlanFigures) -> Iterator[tuple[Node | FigureGroup, str, str]]:
    """Steps and groups from the top down, each with the tree's lines before it and those beside what follows it."""
    waiting: list[tuple[Node | FigureGroup, str, str]] = [(figures.plan.root, "", "")]
    while waiting:
        what, branch, stem = waiting.pop()
        steps = [] if isinstance(what, FigureGroup) or what in figures.little else figures.steps(what)
        yield what, branch, f"{stem}{'│' if steps else ' '}    "
        stem = stem if len(stem) < _BRANCHES else f"⋯  {stem[6 - _BRANCHES :]}"
        for step in reversed(steps):
            last = step is steps[-1]
            waiting.append((step, f"{stem}{'└─ ' if last else '├─ '}", f"{stem}{'   ' if last else '│  '}"))
