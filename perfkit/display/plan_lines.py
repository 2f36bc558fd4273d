"""A plan for the terminal: a tree of lines with its figures in columns, findings below by their numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from functools import partial

from perfkit import numbers
from perfkit.display import plan_whole
from perfkit.display.plan_details import brief, shortened
from perfkit.display.plan_figures import FigureGroup, PlanFigures, badge, ms, plural, rank, share
from perfkit.explain.plan import Node
from perfkit.text import visible

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
    yield from wrapped(" · ".join(plan_whole.whole_plan(figures)), width)
    for name, text in plan_whole.aside(figures):
        yield from wrapped(f"{name}: {text}", width, "  ")
    yield from wrapped(plan_whole.weakness(figures), width)
    if figures.little:
        yield from wrapped(plan_whole.folding(figures, "left out"), width)


def findings(figures: PlanFigures, width: int | None) -> Iterator[str]:
    """Each finding with the number of its step, gravest first as they came."""
    found = [f for key in sorted(figures.found, key=lambda n: n or 0) for f in figures.found[key]]
    for finding in sorted(found, key=rank):
        told = f"{badge(finding)} {plan_whole.place(figures, finding)}: {finding.text} {finding.advice}"
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
    time, of = (ms(spent), share(figures.part(spent))) if figures.plan.timed else (numbers.NONE, numbers.NONE)
    return time, of, numbers.count(pages) if figures.paged else numbers.NONE, ""


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
