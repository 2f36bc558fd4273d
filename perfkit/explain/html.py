"""A plan, a change of plan and a what-if drawn as HTML."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from perfkit.base import units
from perfkit.base.errors import visible
from perfkit.base.units import count, significant, size
from perfkit.explain import text
from perfkit.explain import text as plan_lines
from perfkit.explain.comparison import ChangeKind, Diff, PlanChange, diff
from perfkit.explain.findings.model import Finding, Severity
from perfkit.explain.plan import Node, Plan
from perfkit.explain.text import (
    STATES,
    FigureGroup,
    PlanFigures,
    badge,
    brief,
    details,
    duration,
    ms,
    pairs,
    plural,
    share,
)
from perfkit.show.html import Cell, Table, View, code, escape, explained

Mark = Callable[[Node], str]  # HTML that stands at a node: what a diff says of it
_NESTED = 40  # levels; below, nodes are listed one after the other, because browsers stop at 512 nested elements
_WIDE_STEPS = 10  # levels that are indented in full
_DRAWN = 2_000  # nodes from which those that hardly count are only numbered
_FOLDED, _LEFT_OUT = "folded, and without details", "left out where they stand side by side"
_TOLD = frozenset({"Plan", "Planning Time", "Execution Time", "Settings"})  # keys shown above the tree


def drawn(figures: PlanFigures, title: str = "", *, whole: bool = True, mark: Mark = lambda node: "") -> str:
    """A plan with what is said above its tree; without the figures of the `whole` where they stand elsewhere."""
    named = f"<h4>{escape(title)}</h4>" if title else ""
    parts = (named, _above(figures, whole=whole), *_tree(figures, mark), _below(figures))
    return f'<div class="plan">{"".join(parts)}</div>'


def _above(figures: PlanFigures, *, whole: bool) -> str:
    """The figures of the whole, what it cost aside from nodes, and findings about the statement."""
    first, *rest = text.whole_plan(figures)
    parts = []
    if whole:
        told = "".join(f" · {escape(text)}" for text in rest)
        parts.append(f'<p class="whole"><strong>{escape(first)}</strong>{told}</p>')
    if aside := text.aside(figures):
        parts.append(explained(aside))
    if whole:
        parts.append(f'<p class="note">{escape(text.weakness(figures))}</p>')
    if summary := text.summary(figures):
        parts.append(f'<p class="found"><strong>{escape(summary)}</strong></p>')
    parts += [_finding(finding) for finding in figures.found.get(None, ())]
    return "".join(parts)


def _below(figures: PlanFigures) -> str:
    """What else EXPLAIN gave of the statement, folded."""
    rest = list(pairs(figures.plan.document, set(_TOLD)))
    return (
        f'<details class="rest"><summary>more about the statement</summary>{explained(rest)}</details>' if rest else ""
    )


def _tree(figures: PlanFigures, mark: Mark) -> Iterator[str]:
    """Rows from the top down; what is open is closed from the same list, so that depth costs no recursion."""
    analyzed, skip = figures.plan.analyzed, len(figures.plan.nodes) > _DRAWN
    if figures.little:
        yield f'<p class="note">{escape(text.folding(figures, _LEFT_OUT if skip else _FOLDED))}</p>'
    heads = ("own time, ms", "own pages") if analyzed else ("cost, with all below", "")
    rows = "rows: expected → came" if analyzed else "rows expected"
    columns = "".join(f"<span>{head}</span>" for head in ("step", *heads, rows) if head)
    yield f'<div class="tree{"" if analyzed else " guess"}"><div class="row head" aria-hidden="true">{columns}</div>'
    yield f'<ul role="list" aria-label="{plural(len(figures.plan.nodes), "step")}">'
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
    slight, steps = node in figures.little, figures.steps(node)
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
    """The title with its number, then the figures, each with its unit for who cannot see the column's head."""
    said, label = figures.said(node), figures.label(node)
    before = f"<em>{escape(label)}</em> " if label else ""
    after = f" <small>{escape(said)}</small>" if said else ""
    depth = f"<small>level {node.depth}</small> " if node.depth > _NESTED else ""
    title = f"{mark(node)}{depth}{before}{escape(node.title)}{after}{_folded(figures, node)}"
    return f'<span class="t"><small>{node.number}</small> {title}</span>{_figures(figures, node)}'


def _figures(figures: PlanFigures, node: Node) -> str:
    expected, came = figures.rows(node)
    if not figures.plan.analyzed:
        part = node.value("Total Cost") / figures.highest_cost
        return f"{_bar(part)}<b>{figures.cost(node)}</b><i> cost</i></span><span>{expected}<i> rows expected</i></span>"
    part, off = figures.plan.share(node), figures.off(node)
    time = _unit(figures.time(node), "ms")
    time = f"<b>{time}</b>" if part >= 0.1 else time
    rows = f"<span>{expected}<i> expected</i> → {_unit(came, 'came')}</span>"
    return (
        f"{_bar(part)}{time}<small>{figures.share(node)}</small></span>"
        f"{_bar(figures.page_part(node.own_pages))}{_unit(figures.pages(node), 'pages')}</span>{rows}"
        + (f'<small class="off unsure">≠ {off}</small>' if off else "")
    )


def _unit(text: str, unit: str) -> str:
    """A figure with its unit, which is seen where there is no room for columns."""
    return text if text == units.NONE else f"{text}<i> {unit}</i>"


def _group(figures: PlanFigures, group: FigureGroup) -> str:
    """The row of steps that hardly count one by one."""
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
    """What is said of the steps below while they are folded."""
    count, spent = figures.below[node]
    if not count:
        return ""
    grave = figures.gravest.get(node)
    told = [f"+ {plural(count, 'step')}", *([f"{ms(spent)} ms"] if figures.plan.timed else [])]
    return f' <small class="shut">{", ".join([*told, *([badge(grave)] if grave else [])])}</small>'


def _beneath(figures: PlanFigures, node: Node, *, slight: bool) -> str:
    """Findings at a node, and its details."""
    found = "".join(_finding(finding) for finding in figures.found.get(node.number, ()))
    line = brief(node)
    if slight:
        more = f'<p class="c">{escape(line)}</p>' if line else ""
    elif rest := list(details(node)):
        more = f'<details class="c"><summary>{escape(line or "details")}</summary>{explained(rest)}</details>'
    else:
        more = f'<p class="c">{escape(line)}</p>' if line else ""
    return f'<div class="u">{found}{more}</div>' if found or more else ""


def _finding(finding: Finding) -> str:
    """What is wrong and what to do; what is slight is folded."""
    head = f'<strong class="{STATES[finding.severity]}">{badge(finding)}</strong> {escape(finding.text)}'
    advice = f"<p>{escape(finding.advice)}</p>" if finding.advice else ""
    sql = code(finding.sql, name="SQL") if finding.sql else ""
    if finding.severity == Severity.LOW:
        return f'<details class="f"><summary>{head}</summary>{advice}{sql}</details>'
    return f'<div class="f {STATES[finding.severity]}"><p>{head}</p>{advice}{sql}</div>'


# What changed between two plans, drawn: the sentence, the figures of both, and what became of every step.

SIGNS = {
    ChangeKind.SAME: "=",
    ChangeKind.CHANGED: "≠",
    ChangeKind.MOVED: "↕",
    ChangeKind.ADDED: "+",
    ChangeKind.REMOVED: "−",
}


def diff_drawn(diff: Diff, before: PlanFigures, after: PlanFigures, labels: tuple[str, str]) -> str:
    """Both plans side by side below the sentence and the figures of the whole."""
    changes = _changes(diff)
    columns = "".join(
        drawn(figures, label, whole=False, mark=lambda node: _html(changes[node], node))
        for figures, label in zip((before, after), labels, strict=True)
    )
    weakness = dict.fromkeys((text.weakness(before), text.weakness(after)))
    return (
        f'<p class="changed"><strong>{escape(diff.sentence)}</strong></p>{_totals(before, after, labels).to_html()}'
        f'<p class="note">{escape(" ".join(weakness))} {escape(_legend(diff))}</p><div class="pair">{columns}</div>'
    )


def lines(
    diff: Diff, before: PlanFigures, after: PlanFigures, labels: tuple[str, str], width: int | None
) -> Iterator[str]:
    """The second plan's tree with the figures of both; then what is gone, and what was found in each."""
    changes = _changes(diff)
    yield from plan_lines.wrapped(diff.sentence, width)
    yield ""
    yield from _totals(before, after, labels).to_text().splitlines()[2:]
    yield ""
    yield from plan_lines.lines(
        after,
        width,
        heads=("own ms", "pages", "rows") if diff.evidence != "estimated" else ("cost", "rows expected"),
        columns=lambda node: _columns(changes[node], before, after),
        mark=lambda node: f"{SIGNS[changes[node].kind]} ",
    )
    gone = [change.before for change in diff.changes if change.before and not change.after]
    for node in gone:
        figures = f"{before.time(node)} ms, {before.pages(node)} pages" if before.plan.analyzed else before.cost(node)
        yield from plan_lines.wrapped(
            f"{SIGNS[ChangeKind.REMOVED]} {node.title} ({figures}) {ChangeKind.REMOVED}", width, "  "
        )
    yield ""
    yield from plan_lines.wrapped(_legend(diff), width)
    for label, side in zip(labels, (before, after), strict=True):
        if found := list(plan_lines.findings(side, width)):
            yield from ("", f"{visible(label)}:", *found)


def _changes(diff: Diff) -> Mapping[Node, PlanChange]:
    return {node: change for change in diff.changes for node in (change.before, change.after) if node}


def _legend(diff: Diff) -> str:
    kinds = {change.kind for change in diff.changes}
    return "Signs: " + ", ".join(f"{SIGNS[kind]} {kind}" for kind in ChangeKind if kind in kinds) + "."


def _html(change: PlanChange, node: Node) -> str:
    """What became of a node, and its number in the other plan."""
    other = change.before if node is change.after else change.after
    if change.kind == ChangeKind.SAME:
        return f'<em title="same as {other.number}">=</em> ' if other else ""
    where = f" {'from' if node is change.after else 'to'} {other.number}" if other else ""
    return f'<em class="{change.kind}">{SIGNS[change.kind]} {change.kind}{where}</em> '


def _totals(before: PlanFigures, after: PlanFigures, labels: tuple[str, str]) -> Table:
    """The figures of the whole, one line each."""
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
    """A step's figures before and after."""
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


# A plan, and what changed between two, as they show themselves in a notebook, a report and a terminal.

_KEPT = 400  # changed steps that are shown however little they count


@dataclass(frozen=True, repr=False)
class PlanView(View):
    """A plan with what was found in it."""

    plan: Plan
    findings: Sequence[Finding] = ()
    title: str = ""
    first: Plan | None = None  # the first execution, where there was more than one

    def html(self) -> str:
        """The drawing, for a page that has the style sheet."""
        return drawn(self.figures(), self.title)

    def text(self, width: int | None = None) -> str:
        """The tree in text, `width` characters wide; None: as wide as needed."""
        figures = self.figures()
        parts = [[visible(self.title)] if self.title else [], plan_lines.above(figures, width)]
        parts += [[""], plan_lines.lines(figures, width)]
        if found := list(plan_lines.findings(figures, width)):
            parts += [[""], found]
        return "\n".join(line for part in parts for line in part)

    def figures(self, kept: Collection[Node] = ()) -> PlanFigures:
        """Its figures as text; `kept` are nodes that are never folded."""
        return PlanFigures(self.plan, self.findings, kept, self.first)


@dataclass(frozen=True, repr=False)
class DiffView(View):
    """What changed between two plans, each with what was found in it; their titles tell them apart."""

    before: PlanView
    after: PlanView

    @cached_property
    def diff(self) -> Diff:
        """The plans aligned."""
        return diff(self.before.plan, self.after.plan)

    def html(self) -> str:
        """The sentence, the figures of both, and both plans side by side."""
        return diff_drawn(self.diff, *self._figures(), self._labels)

    def text(self, width: int | None = None) -> str:
        """The sentence, and the second plan's tree with each step's figures before and after."""
        return "\n".join(lines(self.diff, *self._figures(), self._labels, width))

    @property
    def _labels(self) -> tuple[str, str]:
        return self.before.title or "before", self.after.title or "after"

    def _figures(self) -> tuple[PlanFigures, PlanFigures]:
        changed = [change for change in self.diff.changes if change.kind != ChangeKind.SAME]
        kept = {node for change in changed[:_KEPT] for node in (change.before, change.after) if node}
        return self.before.figures(kept), self.after.figures(kept)


# What an index would change, as it shows itself: one sentence, and below it both plans.


@dataclass(frozen=True, repr=False)
class WhatIfView(View):
    """Plans without and with an index; `built`: it was real for a moment, else HypoPG's; `limitation` of both."""

    plans: DiffView
    used: bool
    bytes: int
    evidence: str
    built: bool
    limitation: str = ""

    @property
    def sentence(self) -> str:
        """`would be used: 9,091 -> 3 pages, measured once on a rolled-back build; 22 MB`."""
        verb = "would be used" if self.used else "would not be used"
        how = "on a rolled-back build" if self.built else "by HypoPG"
        about = "" if self.built else "about "
        return f"{verb}: {self._figures()}, {self.evidence} {how}; {about}{size(self.bytes)}"

    def html(self) -> str:
        """The sentence and the plans, for a page that has the style sheet."""
        limitation = f"<p>{escape(self.limitation)}</p>" if self.limitation else ""
        return f"<p><strong>{escape(self.sentence)}</strong></p>{limitation}{self.plans.html()}"

    def text(self, width: int | None = None) -> str:
        """The same in text."""
        return "\n\n".join(part for part in (self.sentence, self.limitation, self.plans.text(width)) if part)

    def _figures(self) -> str:
        before, after = self.plans.before.plan, self.plans.after.plan
        if before.analyzed and after.analyzed:
            return f"{count(before.buffers)} -> {count(after.buffers)} pages"
        costs = (significant(plan.root.value("Total Cost")) for plan in (before, after))
        return f"cost {' -> '.join(costs)}"
