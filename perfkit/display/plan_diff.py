"""What changed between two plans, drawn: the sentence, the figures of both, and what became of every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from perfkit import numbers
from perfkit.display import plan_html, plan_lines, plan_whole
from perfkit.display.html import escape
from perfkit.display.plan_figures import PlanFigures, duration
from perfkit.display.table import Cell, Table
from perfkit.explain.diff import ChangeKind, Diff, PlanChange
from perfkit.explain.plan import Node
from perfkit.text import visible

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
        plan_html.drawn(figures, label, whole=False, mark=lambda node: _html(changes[node], node))
        for figures, label in zip((before, after), labels, strict=True)
    )
    weakness = dict.fromkeys((plan_whole.weakness(before), plan_whole.weakness(after)))
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
            rows.append(("pages", [numbers.count(f.plan.buffers) for f in pair]))
        rows.append(("rows", [numbers.count(f.plan.rows) for f in pair]))
    else:
        rows.append(("cost (estimated)", [f.cost(f.plan.root) for f in pair]))
        rows.append(("rows expected", [numbers.count(f.plan.root.estimated) for f in pair]))
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
