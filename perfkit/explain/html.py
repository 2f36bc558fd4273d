"""Views of a plan, of a change between two plans, and of a what-if: HTML for pages, text for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from perfkit.base import units
from perfkit.base.bundle import dumps
from perfkit.base.errors import PlanError, visible
from perfkit.base.units import counted, percent, seconds, server_ms
from perfkit.explain import text as plan_text
from perfkit.explain.capture import Capture
from perfkit.explain.comparison import CONDITIONS, ChangeKind, Diff, PlanChange, diff
from perfkit.explain.documents import Raw
from perfkit.explain.findings import findings as judge
from perfkit.explain.findings.model import Finding, Severity
from perfkit.explain.plan import COUNTERS, Node, Plan
from perfkit.explain.text import REMOVED_ROWS, SHORT, STATES, FigureGroup, PlanFigures, badge, brief, shortened
from perfkit.show.html import Column, Inline, Paragraph, Section, Table, View, note, number, render, stacked

if TYPE_CHECKING:
    from pandas import DataFrame

_NESTED = 40  # levels; deeper nodes are listed flat, because browsers stop at 512 nested elements
_WIDE_STEPS = 10  # levels that are indented in full
_DRAWN = 2_000  # number of nodes from which negligible ones are only counted
_ABOVE = frozenset({"Plan", "Planning Time", "Execution Time", "Settings"})  # keys shown above the tree


@dataclass(frozen=True, repr=False)
class PlanDrawing(View):
    """A plan as nested lists; without the figures of the `whole` and with `changes` beside another plan."""

    figures: PlanFigures
    title: str = ""
    whole: bool = True
    changes: Mapping[Node, PlanChange] | None = None

    def html(self) -> str:
        """Return the drawing, for a page with the style sheet."""
        skip = len(self.figures.plan.nodes) > _DRAWN
        return render(
            "plan.html.j2",
            f=self.figures,
            title=self.title,
            whole=self.whole,
            changes=self.changes,
            skip=skip,
            entries=_entries(self.figures, skip=skip),
            more=list(pairs(self.figures.plan.document, set(_ABOVE))),
            text=plan_text,
            details=details,
            brief=brief,
            badge=badge,
            counted=counted,
            count=units.count,
            ms=server_ms,
            share=percent,
            states=STATES,
            low_severity=Severity.LOW,
            signs=SIGNS,
            same=ChangeKind.SAME,
            nested=_NESTED,
            wide=_WIDE_STEPS,
            none_known=units.NONE,
        )

    def text(self, width: int | None = None) -> str:
        """Return the tree as text; without `width`, as wide as needed."""
        parts = [[visible(self.title)] if self.title else [], plan_text.above(self.figures, width)]
        parts += [[""], plan_text.lines(self.figures, width)]
        if findings := list(plan_text.findings(self.figures, width)):
            parts += [[""], findings]
        return "\n".join(line for part in parts for line in part)


def _entries(figures: PlanFigures, *, skip: bool) -> Iterator[tuple[str, Node | FigureGroup | None]]:
    """Yield rows from the top down: "leaf", "open" and "close", and for negligible steps "group" or "counted".

    What closes an element waits in the same list as nodes, so that depth needs no recursion.
    """
    waiting: list[Node | FigureGroup | None] = [figures.plan.root]
    while waiting:
        item = waiting.pop()
        if item is None:
            yield "close", None
        elif isinstance(item, FigureGroup):
            yield "counted" if skip else "group", item
            waiting += [] if skip else [None, *reversed(item.steps)]
        else:
            steps = figures.steps(item)
            opened = bool(steps) and item.depth < _NESTED
            yield "open" if opened else "leaf", item
            waiting += [*([None] if opened else []), *reversed(steps)]


# The change between two plans: a sentence, the figures of both, and the change of every step.

SIGNS = {
    ChangeKind.SAME: "=",
    ChangeKind.CHANGED: "≠",
    ChangeKind.MOVED: "↕",
    ChangeKind.ADDED: "+",
    ChangeKind.REMOVED: "−",
}


def lines(
    diff: Diff, before: PlanFigures, after: PlanFigures, labels: tuple[str, str], width: int | None
) -> Iterator[str]:
    """Yield the second plan's tree with the figures of both, then removed steps, and the findings of each plan."""
    changes = _changes(diff)
    yield from plan_text.wrapped(diff.sentence, width)
    yield ""
    yield from _totals(before, after, labels).text().splitlines()[2:]
    yield ""
    yield from plan_text.lines(
        after,
        width,
        heads=("own ms", "pages", "rows") if diff.evidence != "estimated" else ("cost", "rows expected"),
        columns=lambda node: _columns(changes[node], before, after),
        mark=lambda node: f"{SIGNS[changes[node].kind]} ",
    )
    gone = [change.before for change in diff.changes if change.before and not change.after]
    for node in gone:
        figures = f"{before.time(node)} ms, {before.pages(node)} pages" if before.plan.analyzed else before.cost(node)
        yield from plan_text.wrapped(
            f"{SIGNS[ChangeKind.REMOVED]} {node.title} ({figures}) {ChangeKind.REMOVED}", width, "  "
        )
    yield ""
    yield from plan_text.wrapped(_legend(diff), width)
    for label, side in zip(labels, (before, after), strict=True):
        if found := list(plan_text.findings(side, width)):
            yield from ("", f"{visible(label)}:", *found)


def _changes(diff: Diff) -> Mapping[Node, PlanChange]:
    return {node: change for change in diff.changes for node in (change.before, change.after) if node}


def _legend(diff: Diff) -> str:
    kinds = {change.kind for change in diff.changes}
    return "Signs: " + ", ".join(f"{SIGNS[kind]} {kind}" for kind in ChangeKind if kind in kinds) + "."


def _totals(before: PlanFigures, after: PlanFigures, labels: tuple[str, str]) -> Table:
    """Return the figures of the whole, one line each."""
    pair = (before, after)
    rows: list[tuple[str, list[str]]] = []
    if all(figures.plan.analyzed for figures in pair):
        if all(figures.plan.execution_ms for figures in pair):
            rows.append(("execution time", [seconds(f.plan.execution_ms / 1000) for f in pair]))
        if all(figures.paged for figures in pair):
            rows.append(("pages", [units.count(f.plan.buffers) for f in pair]))
        rows.append(("rows", [units.count(f.plan.rows) for f in pair]))
    else:
        rows.append(("cost (estimated)", [f.cost(f.plan.root) for f in pair]))
        rows.append(("rows expected", [units.count(f.plan.root.estimated) for f in pair]))
    if all("Planning Time" in figures.plan.document for figures in pair):
        rows.append(("planning time", [seconds(f.plan.planning_ms / 1000) for f in pair]))
    columns: list[Column[tuple[str, ...]]] = [Column("", key="figure"), *(number(label) for label in labels)]
    return Table.of("The statement as a whole", columns, [(name, *texts) for name, texts in rows])


def _columns(change: PlanChange, before: PlanFigures, after: PlanFigures) -> tuple[str, ...]:
    """Return a step's figures before and after."""
    old, new = change.before, change.after
    assert new
    if not (before.plan.analyzed and after.plan.analyzed):
        was = (before.cost(old), before.rows(old)[0]) if old else ("", "")
        return _to(was[0], after.cost(new)), _to(was[1], after.rows(new)[0])
    then = (before.time(old), before.pages(old), before.rows(old)[1]) if old else ("", "", "")
    now = (after.time(new), after.pages(new), after.rows(new)[1])
    return tuple(map(_to, then, now))


def _to(before: str, after: str) -> str:
    return f"{before} → {after}".strip() if before != after else after


# Views for a notebook, a report and a terminal.

_PINNED = 400  # maximum number of changed steps that are never folded


@dataclass(frozen=True, repr=False)
class PlanView(View):
    """A plan with its findings."""

    plan: Plan
    findings: Sequence[Finding] = ()
    title: str = ""
    first: Plan | None = None  # of the first execution, if there was more than one

    @classmethod
    def of(cls, capture: Capture, title: str = "") -> PlanView:
        """Return the last plan of a capture with its findings, and the figures of the first."""
        return cls(capture.plan, judge(capture.plan, capture.facts), title, capture.first)

    def html(self) -> str:
        """Return the drawing, for a page with the style sheet."""
        return PlanDrawing(self.figures(), self.title).html()

    def text(self, width: int | None = None) -> str:
        """Return the tree as text; without `width`, as wide as needed."""
        return PlanDrawing(self.figures(), self.title).text(width)

    @property
    def frame(self) -> DataFrame:
        """One row per step: times in ms and pages of 8 kB of the step alone, rows of all its executions.

        Returns
        -------
        pandas.DataFrame
            step, level (0 for the root), name, table, index, own_ms, own_share (of the execution time), own_pages,
            rows_expected, rows and loops. A figure that was not measured is NaN.

        Examples
        --------
        >>> import perfkit
        >>> (plan,) = perfkit.plans('[{"Plan": {"Node Type": "Seq Scan", "Relation Name": "visits", "Plan Rows": 9}}]')
        >>> plan.frame[["step", "name", "table", "rows_expected"]].values.tolist()
        [[1, 'Seq Scan', 'visits', 9.0]]
        """
        analyzed, timed = self.plan.analyzed, self.plan.timed
        columns: tuple[Column[Node], ...] = (
            Column("step", lambda node: node.number),
            Column("level", lambda node: node.depth),
            Column("name", lambda node: node.name),
            Column("table", lambda node: node.relation),
            Column("index", lambda node: node.index),
            Column("own_ms", lambda node: node.exclusive_ms),
            Column("own_share", lambda node: self.plan.share(node) if timed else None),
            Column("own_pages", lambda node: node.own_pages if analyzed else None),
            Column("rows_expected", lambda node: float(node.estimated)),
            Column("rows", lambda node: node.rows if analyzed else None),
            Column("loops", lambda node: node.loops if analyzed else None),
        )
        return Table.of("Steps", columns, self.plan.nodes).frame

    def figures(self, pinned: Collection[Node] = ()) -> PlanFigures:
        """Return the plan's figures as text; nodes in `pinned` are never folded."""
        return PlanFigures(self.plan, self.findings, pinned, self.first)


@dataclass(frozen=True, repr=False)
class DiffView(View):
    """The change between two plans, each with its findings and its title."""

    before: PlanView
    after: PlanView

    @cached_property
    def diff(self) -> Diff:
        """The plans aligned."""
        return diff(self.before.plan, self.after.plan)

    def html(self) -> str:
        """Return the sentence, the figures of both, and both plans side by side."""
        sides, changes = self._figures(), _changes(self.diff)
        caveats = dict.fromkeys(map(plan_text.caveats, sides))
        drawings = [PlanDrawing(side, label, False, changes) for side, label in zip(sides, self._labels, strict=True)]
        return stacked(
            Paragraph(Inline(self.diff.sentence), "changed"),
            _totals(*sides, self._labels),
            note(f"{' '.join(caveats)} {_legend(self.diff)}"),
            Section(drawings, kind="pair"),
        ).html()

    def text(self, width: int | None = None) -> str:
        """Return the sentence, and the second plan's tree with each step's figures before and after."""
        return "\n".join(lines(self.diff, *self._figures(), self._labels, width))

    @property
    def _labels(self) -> tuple[str, str]:
        return self.before.title or "before", self.after.title or "after"

    def _figures(self) -> tuple[PlanFigures, PlanFigures]:
        changed = [change for change in self.diff.changes if change.kind != ChangeKind.SAME]
        pinned = {node for change in changed[:_PINNED] for node in (change.before, change.after) if node}
        return self.before.figures(pinned), self.after.figures(pinned)


_LONG = 1_000  # characters of any value
_OUTPUT = 6  # number of columns that are named
_WORKERS = 16
_IN_TITLE = (  # keys that a node's title shows
    *("Node Type", "Relation Name", "Function Name", "CTE Name", "Table Function Name", "Tuplestore Name"),
    *("Alias", "Index Name", "Join Type", "Strategy", "Partial Mode", "Scan Direction", "Subplan Name", "Command"),
)
_BRIEF = (*REMOVED_ROWS, "Heap Fetches", "Workers Planned", "Workers Launched")  # numbers in the brief line


def details(node: Node) -> Iterator[tuple[str, str]]:
    """Yield name and value of all other details; omit 0, `false` and values that `brief` shows in full."""
    raw, done = node.raw, {"Plans", *(key for key in _IN_TITLE if node.raw.get(key))}
    done |= {key for key in CONDITIONS if (texts := node.texts(key)) and len(", ".join(texts)) <= SHORT}
    done |= {key for key in _BRIEF if _plain(raw, key)}
    if node.sort_method and _plain(raw, "Sort Space Used"):
        done |= {"Sort Method", "Sort Space Used", "Sort Space Type"}
    if _plain(raw, "Total Cost"):
        yield "Cost", _cost(node)
        done |= {"Startup Cost", "Total Cost", "Plan Rows", "Plan Width"}
    if _plain(raw, "Actual Loops") and node.executed:
        yield "Each loop", _loop(node)
        done |= {"Actual Loops", "Actual Rows", "Actual Startup Time", "Actual Total Time"}
    if node.children and node.inclusive_ms is not None and node.executed:
        yield "With all below", f"{server_ms(node.inclusive_ms)} ms, {counted(node.pages, 'page')}"
    if buffers := _buffers(node):
        yield "Buffers, with all below", buffers
    done |= {key for key in COUNTERS if _plain(raw, key)}
    if outputs := node.output:
        more = f" and {len(outputs) - _OUTPUT} more" if len(outputs) > _OUTPUT else ""
        yield "Output", shortened(", ".join(outputs[:_OUTPUT]), SHORT) + more
        done.add("Output")
    yield from pairs(raw, done)


def pairs(raw: Raw, done: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the keys that are not in `done` with their values as text; omit 0 and false."""
    for key, value in raw.items():
        if key in done or not value:
            continue
        if key == "Workers" and isinstance(value, list):
            for at, worker in enumerate(value[:_WORKERS]):
                figures = (
                    {k: v for k, v in worker.items() if k != "Worker Number"} if isinstance(worker, dict) else worker
                )
                yield f"Worker {at}", _flat(figures)
            if len(value) > _WORKERS:
                yield "Workers", f"{len(value) - _WORKERS} more"
        else:
            yield key, _flat(value) + (" ms" if key.endswith(" Time") and _plain(raw, key) else "")


def _cost(node: Node) -> str:
    start, end = (f"{node.value(key):,.10g}" for key in ("Startup Cost", "Total Cost"))
    rows = counted(node.rows_planned, "row")
    return f"{start} to {end} for {rows} of {counted(node.width, 'byte')}"


def _loop(node: Node) -> str:
    rows = f"{node.rows_per_loop:,.10g} rows"
    if "Actual Total Time" not in node.raw:
        return rows
    start, end = (server_ms(node.value(key)) for key in ("Actual Startup Time", "Actual Total Time"))
    return f"{rows}, first after {start} ms, last after {end} ms"


def _buffers(node: Node) -> str:
    found: dict[str, list[str]] = {}
    for key in COUNTERS:
        if count := node.value(key):
            kind, what, _ = key.lower().split(" ")
            found.setdefault(kind, []).append(f"{what} {units.count(count)}")
    return "; ".join(f"{kind} {', '.join(counts)}" for kind, counts in found.items())


def _plain(raw: Raw, key: str) -> bool:
    """Return whether a value is a number, as EXPLAIN writes it."""
    return isinstance(raw.get(key), int | float) and not isinstance(raw[key], bool)


def _flat(value: object, depth: int = 3) -> str:
    """Return any value of a document on one line, without parts that are 0 or false."""
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
