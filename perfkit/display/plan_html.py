"""A plan as nested lists: one row a node, with bars, findings beneath, and all else folded; nothing runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from perfkit import numbers
from perfkit.display import plan_whole
from perfkit.display.html import code, escape, explained
from perfkit.display.plan_details import brief, details, pairs
from perfkit.display.plan_figures import STATES, FigureGroup, PlanFigures, badge, ms, plural, share
from perfkit.explain.findings.model import Finding, Severity
from perfkit.explain.plan import Node

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
    first, *rest = plan_whole.whole_plan(figures)
    parts = []
    if whole:
        told = "".join(f" · {escape(text)}" for text in rest)
        parts.append(f'<p class="whole"><strong>{escape(first)}</strong>{told}</p>')
    if aside := plan_whole.aside(figures):
        parts.append(explained(aside))
    if whole:
        parts.append(f'<p class="note">{escape(plan_whole.weakness(figures))}</p>')
    if summary := plan_whole.summary(figures):
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
        yield f'<p class="note">{escape(plan_whole.folding(figures, _LEFT_OUT if skip else _FOLDED))}</p>'
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
    return text if text == numbers.NONE else f"{text}<i> {unit}</i>"


def _group(figures: PlanFigures, group: FigureGroup) -> str:
    """The row of steps that hardly count one by one."""
    name, spent, pages = figures.group(group)
    title = f'<span class="t">{name}</span>'
    if not figures.plan.analyzed:
        return title
    part = figures.part(spent)
    time, of = (_unit(ms(spent), "ms"), share(part)) if figures.plan.timed else (numbers.NONE, numbers.NONE)
    touched = _unit(numbers.count(pages), "pages") if figures.paged else numbers.NONE
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
