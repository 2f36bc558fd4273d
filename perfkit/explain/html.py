"""Views of a plan, of a change between two plans, and of a what-if: HTML for pages, text for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from perfkit.base import units
from perfkit.base.bundle import dumps
from perfkit.base.errors import PlanError, visible
from perfkit.explain import text as plan_text
from perfkit.explain.accounting import Raw
from perfkit.explain.capture import Capture
from perfkit.explain.comparison import CONDITIONS, ChangeKind, Diff, PlanChange, diff
from perfkit.explain.findings import findings as judge
from perfkit.explain.findings.model import Finding, Severity, counted, duration, ms, share
from perfkit.explain.plan import COUNTERS, Node, Plan
from perfkit.explain.text import REMOVED_ROWS, SHORT, STATES, FigureGroup, PlanFigures, badge, brief, shortened
from perfkit.show.html import Cell, Table, View, code, escape, explained

Mark = Callable[[Node], str]  # HTML before a node's title, such as its change in a diff
_NESTED = 40  # levels; deeper nodes are listed flat, because browsers stop at 512 nested elements
_WIDE_STEPS = 10  # levels that are indented in full
_DRAWN = 2_000  # number of nodes from which negligible ones are only counted
_FOLDED, _LEFT_OUT = "folded, and without details", "left out if they are adjacent"
_ABOVE = frozenset({"Plan", "Planning Time", "Execution Time", "Settings"})  # keys shown above the tree


def drawn(figures: PlanFigures, title: str = "", *, whole: bool = True, mark: Mark = lambda node: "") -> str:
    """Return a plan as HTML; without the figures of the `whole` if the caller shows them elsewhere."""
    named = f"<h4>{escape(title)}</h4>" if title else ""
    parts = (named, _above(figures, whole=whole), *_tree(figures, mark), _below(figures))
    return f'<div class="plan">{"".join(parts)}</div>'


def _above(figures: PlanFigures, *, whole: bool) -> str:
    """Return the figures of the whole, costs outside the nodes, and findings on the statement."""
    first, *rest = plan_text.whole_plan(figures)
    parts = []
    if whole:
        others = "".join(f" · {escape(text)}" for text in rest)
        parts.append(f'<p class="whole"><strong>{escape(first)}</strong>{others}</p>')
    if aside := plan_text.aside(figures):
        parts.append(explained(aside))
    if whole:
        parts.append(f'<p class="note">{escape(plan_text.caveats(figures))}</p>')
    if summary := plan_text.summary(figures):
        parts.append(f'<p class="found"><strong>{escape(summary)}</strong></p>')
    parts += [_finding(finding) for finding in figures.findings.get(None, ())]
    return "".join(parts)


def _below(figures: PlanFigures) -> str:
    """Return everything else that EXPLAIN reports on the statement, folded."""
    rest = list(pairs(figures.plan.document, set(_ABOVE)))
    return (
        f'<details class="rest"><summary>more about the statement</summary>{explained(rest)}</details>' if rest else ""
    )


def _tree(figures: PlanFigures, mark: Mark) -> Iterator[str]:
    """Yield rows from the top down; closing tags wait in the same list as nodes, so that depth needs no recursion."""
    analyzed, skip = figures.plan.analyzed, len(figures.plan.nodes) > _DRAWN
    if figures.negligible:
        yield f'<p class="note">{escape(plan_text.folding(figures, _LEFT_OUT if skip else _FOLDED))}</p>'
    heads = ("own time, ms", "own pages") if analyzed else ("cost, with all below", "")
    rows = "rows: expected → came" if analyzed else "rows expected"
    columns = "".join(f"<span>{head}</span>" for head in ("step", *heads, rows) if head)
    yield f'<div class="tree{"" if analyzed else " guess"}"><div class="row head" aria-hidden="true">{columns}</div>'
    yield f'<ul role="list" aria-label="{counted(len(figures.plan.nodes), "step")}">'
    waiting: list[Node | FigureGroup | str] = [figures.plan.root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, FigureGroup):
            row = _group(figures, item)
            if skip:
                yield f'<li><div class="row">{row}</div></li>'
                continue
            yield f'<li><details><summary><span class="row">{row}</span></summary><ul role="list">'
            waiting += ["</ul></details></li>", *reversed(item.steps)]
        else:
            yield from _step(figures, item, mark, waiting)
    yield "</ul></div>"


def _step(figures: PlanFigures, node: Node, mark: Mark, waiting: list[Node | FigureGroup | str]) -> Iterator[str]:
    slight, steps = node in figures.negligible, figures.steps(node)
    row, beneath = _row(figures, node, mark), _beneath(figures, node, slight=slight)
    if not steps or node.depth >= _NESTED:
        yield f'<li><div class="row">{row}</div>{beneath}</li>'
    else:
        near = ' class="near"' if node.depth >= _WIDE_STEPS else ""
        yield f'<li><details{"" if slight else " open"}><summary><span class="row">{row}</span></summary>{beneath}'
        yield f'<ul role="list"{near}>'
        waiting.append("</ul></details></li>")
    waiting += reversed(steps)


def _row(figures: PlanFigures, node: Node, mark: Mark) -> str:
    """Return a step's number, title and figures; each figure has its unit for readers without the column heads."""
    said, label = figures.execution(node), node.subplan
    before = f"<em>{escape(label)}</em> " if label else ""
    after = f" <small>{escape(said)}</small>" if said else ""
    depth = f"<small>level {node.depth}</small> " if node.depth > _NESTED else ""
    title = f"{mark(node)}{depth}{before}{escape(node.title)}{after}{_folded(figures, node)}"
    return f'<span class="t"><small>{node.number}</small> {title}</span>{_figures(figures, node)}'


def _figures(figures: PlanFigures, node: Node) -> str:
    expected, came = figures.rows(node)
    if not figures.plan.analyzed:
        part = node.cost / figures.highest_cost
        return f"{_bar(part)}<b>{figures.cost(node)}</b><i> cost</i></span><span>{expected}<i> rows expected</i></span>"
    part, off = figures.plan.share(node), figures.row_error(node)
    time = _unit(figures.time(node), "ms")
    time = f"<b>{time}</b>" if part >= 0.1 else time
    rows = f"<span>{expected}<i> expected</i> → {_unit(came, 'came')}</span>"
    return (
        f"{_bar(part)}{time}<small>{figures.share(node)}</small></span>"
        f"{_bar(figures.page_part(node.own_pages))}{_unit(figures.pages(node), 'pages')}</span>{rows}"
        + (f'<small class="off unsure">≠ {off}</small>' if off else "")
    )


def _unit(text: str, unit: str) -> str:
    """Return a figure with its unit, which is visible if there is no room for columns."""
    return text if text == units.NONE else f"{text}<i> {unit}</i>"


def _group(figures: PlanFigures, group: FigureGroup) -> str:
    """Return the row of a group of negligible steps."""
    name, spent, pages = figures.group(group)
    title = f'<span class="t">{name}</span>'
    if not figures.plan.analyzed:
        return title
    part = figures.part(spent)
    time, of = (_unit(ms(spent), "ms"), share(part)) if figures.plan.timed else (units.NONE, units.NONE)
    touched = _unit(units.count(pages), "pages") if figures.paged else units.NONE
    return f"{title}{_bar(part)}{time}<small>{of}</small></span>{_bar(figures.page_part(pages))}{touched}</span>"


def _bar(part: float) -> str:
    return f'<span class="b" style="--p:{min(1.0, part):.3g}">' if part >= 0.005 else '<span class="b">'


def _folded(figures: PlanFigures, node: Node) -> str:
    """Return the number, time and most severe finding of the steps below, shown while these are folded."""
    count, spent = figures.below[node]
    if not count:
        return ""
    grave = figures.worst.get(node)
    parts = [f"+ {counted(count, 'step')}", *([f"{ms(spent)} ms"] if figures.plan.timed else [])]
    return f' <small class="shut">{", ".join([*parts, *([badge(grave)] if grave else [])])}</small>'


def _beneath(figures: PlanFigures, node: Node, *, slight: bool) -> str:
    """Return the findings at a node, and its details."""
    found = "".join(_finding(finding) for finding in figures.findings.get(node.number, ()))
    line = brief(node)
    if slight:
        more = f'<p class="c">{escape(line)}</p>' if line else ""
    elif rest := list(details(node)):
        more = f'<details class="c"><summary>{escape(line or "details")}</summary>{explained(rest)}</details>'
    else:
        more = f'<p class="c">{escape(line)}</p>' if line else ""
    return f'<div class="u">{found}{more}</div>' if found or more else ""


def _finding(finding: Finding) -> str:
    """Return a finding with its advice; one of low severity is folded."""
    head = f'<strong class="{STATES[finding.severity]}">{badge(finding)}</strong> {escape(finding.text)}'
    advice = f"<p>{escape(finding.advice)}</p>" if finding.advice else ""
    sql = code(finding.sql, name="SQL") if finding.sql else ""
    if finding.severity == Severity.LOW:
        return f'<details class="f"><summary>{head}</summary>{advice}{sql}</details>'
    return f'<div class="f {STATES[finding.severity]}"><p>{head}</p>{advice}{sql}</div>'


# The change between two plans: a sentence, the figures of both, and the change of every step.

SIGNS = {
    ChangeKind.SAME: "=",
    ChangeKind.CHANGED: "≠",
    ChangeKind.MOVED: "↕",
    ChangeKind.ADDED: "+",
    ChangeKind.REMOVED: "−",
}


def diff_drawn(diff: Diff, before: PlanFigures, after: PlanFigures, labels: tuple[str, str]) -> str:
    """Return both plans side by side, below the sentence and the figures of the whole."""
    changes = _changes(diff)
    columns = "".join(
        drawn(figures, label, whole=False, mark=lambda node: _html(changes[node], node))
        for figures, label in zip((before, after), labels, strict=True)
    )
    weakness = dict.fromkeys((plan_text.caveats(before), plan_text.caveats(after)))
    return (
        f'<p class="changed"><strong>{escape(diff.sentence)}</strong></p>{_totals(before, after, labels).to_html()}'
        f'<p class="note">{escape(" ".join(weakness))} {escape(_legend(diff))}</p><div class="pair">{columns}</div>'
    )


def lines(
    diff: Diff, before: PlanFigures, after: PlanFigures, labels: tuple[str, str], width: int | None
) -> Iterator[str]:
    """Yield the second plan's tree with the figures of both, then removed steps, and the findings of each plan."""
    changes = _changes(diff)
    yield from plan_text.wrapped(diff.sentence, width)
    yield ""
    yield from _totals(before, after, labels).to_text().splitlines()[2:]
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


def _html(change: PlanChange, node: Node) -> str:
    """Return the change of a node, and its number in the other plan."""
    other = change.before if node is change.after else change.after
    if change.kind == ChangeKind.SAME:
        return f'<em title="same as {other.number}">=</em> ' if other else ""
    where = f" {'from' if node is change.after else 'to'} {other.number}" if other else ""
    return f'<em class="{change.kind}">{SIGNS[change.kind]} {change.kind}{where}</em> '


def _totals(before: PlanFigures, after: PlanFigures, labels: tuple[str, str]) -> Table:
    """Return the figures of the whole, one line each."""
    pair = (before, after)
    rows: list[tuple[str, list[str]]] = []
    if all(figures.plan.analyzed for figures in pair):
        if all(figures.plan.execution_ms for figures in pair):
            rows.append(("execution time", [duration(f.plan.execution_ms) for f in pair]))
        if all(figures.paged for figures in pair):
            rows.append(("pages", [units.count(f.plan.buffers) for f in pair]))
        rows.append(("rows", [units.count(f.plan.rows) for f in pair]))
    else:
        rows.append(("cost (estimated)", [f.cost(f.plan.root) for f in pair]))
        rows.append(("rows expected", [units.count(f.plan.root.estimated) for f in pair]))
    if all("Planning Time" in figures.plan.document for figures in pair):
        rows.append(("planning time", [duration(f.plan.planning_ms) for f in pair]))
    cells = tuple((Cell(name), *(Cell(text) for text in texts)) for name, texts in rows)
    return Table("The statement as a whole", ("", *labels), cells, frozenset(labels))


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
        return drawn(self.figures(), self.title)

    def text(self, width: int | None = None) -> str:
        """Return the tree as text; without `width`, as wide as needed."""
        figures = self.figures()
        parts = [[visible(self.title)] if self.title else [], plan_text.above(figures, width)]
        parts += [[""], plan_text.lines(figures, width)]
        if found := list(plan_text.findings(figures, width)):
            parts += [[""], found]
        return "\n".join(line for part in parts for line in part)

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
        return diff_drawn(self.diff, *self._figures(), self._labels)

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
    raw, done = node.raw, {"Plans", *(key for key in _IN_TITLE if node.texts(key))}
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
        yield "With all below", f"{ms(node.inclusive_ms)} ms, {counted(node.pages, 'page')}"
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
    start, end = (ms(node.value(key)) for key in ("Actual Startup Time", "Actual Total Time"))
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
