"""Why no index will help a statement, in one sentence with its numbers, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from perfkit.explain.candidates import quoted
from perfkit.explain.conditions import Predicate
from perfkit.explain.facts import TableFacts
from perfkit.explain.findings.blocked import Blocker, added, blocks, condition
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.findings.scans import limited
from perfkit.explain.findings.where import conditions, home, placed, plain
from perfkit.explain.findings.words import counted, percent
from perfkit.explain.plan import Node
from perfkit.explain.rewrites import rewritten
from perfkit.indexes.derive import SCANS, TINY
from perfkit.indexes.rewrite import either, replaced

MANY = 0.05  # of a table's rows: to find so many, most pages are needed in any case
EARLY = 0.1  # of a table's pages, at most, for a LIMIT that stops early
Because = tuple[str, str]  # the reason, and the rewrite


def reason(text: str, look: FindingContext, generic: FindingContext | None = None) -> Because | None:
    """Why no index helps and the statement to write instead; None where its plan does not tell.

    `generic` is the plan for any values of a statement with parameters, whose rewrite must keep them.
    """
    scans = [node for node in look.plan.nodes if node.kind in SCANS and look.facts.of(node)]
    scans.sort(key=lambda node: -_weight(look, node))
    if not scans:
        return None
    for find in (_blocked, _pattern, _early, _either, _found, _tiny, _whole, _many):
        if found := find(text, look, generic, scans):
            return found
    return None


def _blocked(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    for node, p, block in _blocks(look, scans):
        if generic is not None:
            block = _for_any_value(generic, node, p, block)
        if not block.rewrite and (block.key or not block.hint):
            continue
        if _pages(look, node) <= TINY:
            continue
        said = f"{_shown(node, p)} compares {block.what}, which an index on {', '.join(sorted(p.columns))} cannot find"
        if not block.rewrite:
            return f"{said}: {block.hint[0].lower()}{block.hint[1:].rstrip('.')}", ""
        table = _table(look, node)
        (name,) = p.columns
        ready = next((i for i in table.indexes if i.keys[:1] == (quoted(name),) and i.valid and not i.predicate), None)
        by = f"the index {ready.name}" if ready else f"CREATE INDEX ON {placed(look, node)} ({quoted(name)})"
        return f"{said}; {by} serves {block.rewrite}", _rewritten(text, generic or look, node, name)
    return None


def _for_any_value(generic: FindingContext, node: Node, p: Predicate, block: Blocker) -> Blocker:
    """Return the block of the same condition in the plan for any values of the parameters."""
    for _, same, found in _blocks(generic, _alike(generic, node)):
        if (same.columns, same.operator) == (p.columns, p.operator):
            return found
    return replace(block, rewrite="", hint=block.hint or f"{_NOT_FOR_ALL} {block.rewrite}")


_NOT_FOR_ALL = "for these parameters only, the same rows are found by"


def _rewritten(text: str, look: FindingContext, node: Node, name: str) -> str:
    """Return the statement with all such conditions on a column rewritten; "" where one of them is not certain.

    A condition of a table that the statement does not name is a view's, whose columns can have other types.
    """
    if not _names(text, look, node):
        return ""
    new = text
    for same, p, block in _blocks(look, _alike(look, node)):
        if p.columns == {name} and block.found:
            new = replaced(new, same.text("Alias"), name, condition(look, same, p), block.found)
    return new if new != text else ""


def _names(text: str, look: FindingContext, node: Node) -> bool:
    return any(
        re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) for name in (node.relation, home(look, node)[1])
    )


def _alike(look: FindingContext, node: Node) -> list[Node]:
    return [n for n in look.plan.nodes if n.kind in SCANS and n.text("Alias") == node.text("Alias")]


def _pattern(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    for node in scans:
        for p in conditions(look, node, "Filter"):
            if p.operator not in ("~~", "~~*", "~", "~*") or p.prefix or _pages(look, node) <= TINY:
                continue
            shown, (name, *_) = _shown(node, p), sorted(p.columns)
            c = condition(look, node, p) if len(p.columns) == 1 else None
            if c and p.operator == "~~*" and (found := rewritten(c)):
                made = f"CREATE INDEX ON {placed(look, node)} (lower({quoted(name)}) text_pattern_ops)"
                alone = generic is None and _names(text, look, node)
                rewrite = replaced(text, node.text("Alias"), name, c, found) if alone else ""
                serves = found.filled(quoted(name), c.value.removesuffix("::text"), "")
                return f"ILIKE ignores case and a B-tree does not; {made} serves {serves}", rewrite
            what = "may begin with anything" if p.operator == "~~" else "is not the beginning of a text"
            return (
                f"{shown} looks for a pattern that {what}, which a B-tree cannot find; a trigram index (GIN, "
                "extension pg_trgm) can",
                "",
            )
    return None


def _early(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    pages = _table(look, node).pages
    if look.plan.analyzed and limited(node) and pages > TINY and node.own_pages <= max(EARLY * pages, TINY):
        return f"the LIMIT stops it after {counted(node.own_pages, 'page')} of {pages:,.0f}", ""
    if not look.plan.analyzed and (top := limited(node)):
        part = top.value("Total Cost") / max(node.value("Total Cost"), 1.0)
        if pages > TINY and part <= EARLY:
            return f"the LIMIT is expected to stop it after {percent(part)} of {pages:,.0f} pages", ""
    return None


def _either(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    for node in look.plan.nodes:
        condition = node.text("Join Filter")
        tables = set(re.findall(r"(\w+)\.\w+", re.sub(r"'(?:[^']|'')*'", "", condition)))
        if " OR " in condition and len(tables) > 1:
            return (
                f"its OR is over columns of several tables ({', '.join(sorted(tables))}), so that it is known only "
                "after they are joined; a UNION of both parts can use an index for each",
                either(text),
            )
    return None


def _found(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    """Everything that is read is found by an index that is there."""
    if any(n.kind == "Seq Scan" and _pages(look, n) > TINY for n in scans):
        return None
    by = [n for n in scans if n.kind != "Seq Scan"]
    if not by or any("Filter" in n.raw and n.value("Rows Removed by Filter") > n.value("Actual Rows") for n in by):
        return None
    names = list(dict.fromkeys(b.text("Index Name") for n in by for b in n.below() if b.text("Index Name")))
    if any(not c.text("Index Cond") for n in by for c in n.below() if c.text("Index Name")) and not limited(by[0]):
        return None  # an index read from end to end
    pages = f" in {counted(look.plan.buffers, 'page')}" if look.plan.analyzed else ""
    rows = look.plan.rows if look.plan.analyzed else look.plan.root.estimated
    one = "already finds its" if len(names) == 1 else "already find its"
    return f"{' and '.join(names)} {one} {counted(rows, 'row')}{pages}", ""


def _tiny(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    """The table has few pages, or few of its pages are read."""
    node = scans[0]
    table = _table(look, node)
    pages = table.pages if table.size is None else table.size
    if table.size == 0:
        return f"{node.relation} is empty", ""
    if 0 < pages <= TINY:
        rows = f"the {counted(table.rows, 'row')} in " if table.rows and table.pages <= pages else ""
        return f"{node.relation} is tiny: reading {rows}its {counted(pages, 'page')} is as quick", ""
    if look.plan.analyzed and node.own_pages <= TINY:
        return f"it reads only {counted(node.own_pages, 'page')} of the {pages:,.0f} of {node.relation}", ""
    return None


def _whole(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    if "Filter" in node.raw or any("Index Cond" in n.raw for n in node.below()):
        return None
    groups = any(above.kind == "Aggregate" for above in node.above())
    joins = any(key in above.raw for above in node.above() for key in ("Hash Cond", "Merge Cond", "Join Filter"))
    rows = node.rows if look.plan.analyzed else node.estimated
    what = "aggregates" if groups else "joins" if joins else "returns"
    return f"it reads every row: it {what} all {rows:,.0f} of {node.relation}, without a condition that picks some", ""


def _many(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    rows = max(_table(look, node).rows, 1.0)
    kept = node.rows if look.plan.analyzed else node.estimated
    if (node.kind == "Seq Scan" and "Filter" not in node.raw) or kept < MANY * rows or kept > 2 * rows:
        return None
    what = plain(node.text("Filter") or node.text("Recheck Cond") or node.text("Index Cond"), node.text("Alias"))
    return (
        f"{what} selects too much: {counted(kept, 'row')}, {percent(min(1.0, kept / rows))} of {node.relation}, are on "
        "most of its pages",
        "",
    )


def _blocks(look: FindingContext, scans: Sequence[Node]) -> Iterator[tuple[Node, Predicate, Blocker]]:
    for node in scans:
        every = conditions(look, node, "Filter")
        for p in every:
            if (block := blocks(look, node, p)) and not added(block, p, every):
                yield node, p, block


def _table(look: FindingContext, node: Node) -> TableFacts:
    table = look.facts.of(node)
    assert table
    return table


def _pages(look: FindingContext, node: Node) -> float:
    """Pages that a scan touches once, as far as known."""
    if look.plan.analyzed:
        return node.own_pages / max(node.loops, 1.0)
    return _table(look, node).pages if node.kind == "Seq Scan" else 0.0


def _weight(look: FindingContext, node: Node) -> float:
    return node.own_pages if look.plan.analyzed else node.value("Total Cost") * max(node.loops, 1.0)


def _shown(node: Node, p: Predicate) -> str:
    text = plain(p.text, node.text("Alias"))
    return text if len(text) <= 80 else text[:79] + "…"
