"""Advice for a workload: the indexes to create, and why no index helps the other queries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from perfkit.base.errors import visible
from perfkit.base.units import count, millis, percent, seconds, size
from perfkit.explain.candidates import (
    SCANS,
    Blocker,
    added,
    blocks,
    condition,
    conditions,
    distinct,
    home,
    placed,
    plain,
)
from perfkit.explain.facts import GROWN, Predicate, TableFacts, doubt, qualified, quoted, stale
from perfkit.explain.findings.model import FindingContext, counted
from perfkit.explain.findings.scans import limited
from perfkit.explain.plan import Node
from perfkit.explain.rewrites import rewritten
from perfkit.indexes.candidates import TINY, IndexDesign
from perfkit.indexes.rewriting import either, replaced
from perfkit.indexes.trial import CostFigures, quicker
from perfkit.show.html import Bullets, Cell, Code, Column, Section, Table, View, number, stacked

MANY = 0.05  # share of a table's rows from which on most of its pages are needed anyway
EARLY = 0.1  # share of a table's pages below which a LIMIT stops early
Because = tuple[str, str]  # the reason and the rewritten statement; "" for none


@dataclass(frozen=True, slots=True)
class Served:
    """A query that uses a proposed index, and its cost with none and with all of the proposed indexes."""

    query: str
    before: CostFigures
    after: CostFigures


@dataclass(frozen=True, slots=True)
class Proposal:
    """An index to create; `bytes` is None if it could not be tried."""

    name: str
    design: IndexDesign
    queries: tuple[Served, ...]
    bytes: int | None
    evidence: str

    @property
    def statement(self) -> str:
        """Return the CREATE INDEX statement."""
        return self.design.statement(self.name)

    @property
    def served(self) -> Iterator[str]:
        """Yield a line for each query that the index serves, then its size and evidence."""
        for served in self.queries:
            after = "" if served.before == served.after else f" -> {served.after}"
            if quicker(served.before, served.after):
                after += f", {millis(served.before.ms or 0.0)} -> {millis(served.after.ms or 0.0)}"
            yield " ".join(f"{served.query}: {served.before}{after}".split())
        yield "; ".join([*([size(self.bytes)] if self.bytes is not None else []), self.evidence])


@dataclass(frozen=True, slots=True)
class Refusal:
    """A query that gets no index, the reason, and the rewritten statement if there is one.

    `certain`: the plan shows that no index helps; otherwise none was found, or the question is open.
    """

    query: str
    because: str
    rewrite: str = ""
    certain: bool = True

    @property
    def sentence(self) -> str:
        """Return the reason as a sentence."""
        return f"No index will help: {self.because}" if self.certain else self.because


@dataclass(frozen=True, slots=True, repr=False)
class Advice(View):
    """The indexes for a workload, the queries without an index, and the limitations; displays itself."""

    target: str
    evidence: str
    proposals: tuple[Proposal, ...]
    refusals: tuple[Refusal, ...]
    limitations: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Return the bytes of all proposed indexes, as far as they are known."""
        return sum(proposal.bytes or 0 for proposal in self.proposals)

    @property
    def sql(self) -> str:
        """Return the set as an SQL file: each index below a comment on the queries it serves."""
        target = " ".join(visible(self.target).split())  # a line break in a database's name would end the comment
        lines = [f"-- Indexes advised for {target}; {self.evidence}."]
        lines += [f"-- {' '.join(visible(limitation).split())}" for limitation in self.limitations]
        analysed = {}
        for proposal in self.proposals:
            lines += ["", *(f"-- {line}" for line in proposal.served), f"{proposal.statement};"]
            if proposal.design.expressive:
                analysed[proposal.design.on] = f"ANALYZE {proposal.design.on};"
        if analysed:
            lines += ["", "-- An index on an expression has no statistics until ANALYZE.", *analysed.values()]
        return "\n".join(lines) + "\n"

    @property
    def _parts(self) -> Section:
        """The proposals, the refusals with their rewrites, the limitations, and the set as SQL."""
        rewritten = {
            f"{r.query}, rewritten so that an index can be used": r.rewrite for r in self.refusals if r.rewrite
        }
        return stacked(
            proposed(self),
            refused(self) if self.refusals else None,
            *(Section([Code(rewrite.strip(), title)], title) for title, rewrite in rewritten.items()),
            Section([Bullets(self.limitations)], "Limitations") if self.limitations else None,
            Section([Code(self.sql.strip(), "The set of indexes")], "The set") if self.proposals else None,
        )

    def html(self) -> str:
        """Return the advice as HTML."""
        return self._parts.html()

    def text(self) -> str:
        """Return the advice as text."""
        return self._parts.text()


def proposed(advice: Advice) -> Table:
    """Return one row for each query that an index serves."""
    columns: list[Column[tuple[Proposal, Served]]] = [
        Column("index", lambda row: Cell(row[0].design.title, code=True)),
        number("size", lambda row: row[0].bytes, size, "size_bytes"),
        Column("query", lambda row: row[1].query),
        number("before", lambda row: _cost(row[1].before)),
        number("after", lambda row: _cost(row[1].after)),
        Column("evidence", lambda row: row[0].evidence),
    ]
    rows = [(proposal, served) for proposal in advice.proposals for served in proposal.queries]
    noun = "index" if len(advice.proposals) == 1 else "indexes"
    note = f"{count(len(advice.proposals))} {noun}, {size(advice.bytes)}; {advice.evidence}." if rows else "none"
    return Table.of("Indexes to create", columns, rows, note=note)


def refused(advice: Advice) -> Table:
    """Return one row for each query that gets no index."""
    columns: list[Column[Refusal]] = [Column("query", lambda r: r.query), Column("reason", lambda r: r.sentence)]
    return Table.of("Queries without an index", columns, advice.refusals)


def _cost(figures: CostFigures) -> Cell:
    return Cell(str(figures), seconds(figures.ms / 1000) if figures.ms is not None else "", value=figures.work)


def reason(text: str, look: FindingContext, generic: FindingContext | None = None) -> Because | None:
    """Return why no index helps, and the rewritten statement; None if the plan does not tell.

    `generic` is the generic plan of a statement with parameters; a rewrite must be valid for all values.
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
        cause = f"{_shown(node, p)} compares {block.what}, which an index on {', '.join(sorted(p.columns))} cannot find"
        if not block.rewrite:
            return f"{cause}: {block.hint[0].lower()}{block.hint[1:].rstrip('.')}", ""
        table = _table(look, node)
        (name,) = p.columns
        ready = next((i for i in table.indexes if i.keys[:1] == (quoted(name),) and i.valid and not i.predicate), None)
        index = f"the index {ready.name}" if ready else f"CREATE INDEX ON {placed(look.facts, node)} ({quoted(name)})"
        return f"{cause}; {index} serves {block.rewrite}", _rewritten(text, generic or look, node, name)
    return None


def _for_any_value(generic: FindingContext, node: Node, p: Predicate, block: Blocker) -> Blocker:
    """Return the blocker of the same condition in the generic plan."""
    for _, same, found in _blocks(generic, _alike(generic, node)):
        if (same.columns, same.operator) == (p.columns, p.operator):
            return found
    return replace(block, rewrite="", hint=block.hint or f"{_NOT_FOR_ALL} {block.rewrite}")


_NOT_FOR_ALL = "for these parameters only, the same rows are returned by"


def _rewritten(text: str, look: FindingContext, node: Node, name: str) -> str:
    """Return the statement with all blocked conditions on a column rewritten; "" if one rewrite is not certain.

    A table that the statement does not name is behind a view, whose columns can have other types.
    """
    if not _names(text, look, node):
        return ""
    new = text
    for same, p, block in _blocks(look, _alike(look, node)):
        if p.columns == {name} and block.found:
            new = replaced(new, same.alias, name, condition(look.facts, same, p), block.found)
    return new if new != text else ""


def _names(text: str, look: FindingContext, node: Node) -> bool:
    return any(
        re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) for name in (node.relation, home(look.facts, node)[1])
    )


def _alike(look: FindingContext, node: Node) -> list[Node]:
    return [n for n in look.plan.nodes if n.kind in SCANS and n.alias == node.alias]


def _pattern(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    for node in scans:
        for p in conditions(look.facts, node, "Filter"):
            if p.operator not in ("~~", "~~*", "~", "~*") or p.prefix or _pages(look, node) <= TINY:
                continue
            shown, (name, *_) = _shown(node, p), sorted(p.columns)
            c = condition(look.facts, node, p) if len(p.columns) == 1 else None
            if c and p.operator == "~~*" and (found := rewritten(c)):
                made = f"CREATE INDEX ON {placed(look.facts, node)} (lower({quoted(name)}) text_pattern_ops)"
                alone = generic is None and _names(text, look, node)
                rewrite = replaced(text, node.alias, name, c, found) if alone else ""
                serves = found.filled(quoted(name), c.value.removesuffix("::text"), "")
                return f"ILIKE ignores case and a B-tree does not; {made} serves {serves}", rewrite
            what = "may begin with anything" if p.operator == "~~" else "is not the beginning of a text"
            return (
                f"{shown} searches for a pattern that {what}; a B-tree cannot find such patterns, a trigram index "
                "(GIN, extension pg_trgm) can",
                "",
            )
    return None


def _early(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    pages = _table(look, node).pages
    if look.plan.analyzed and limited(node) and pages > TINY and node.own_pages <= max(EARLY * pages, TINY):
        return f"the LIMIT stops it after {counted(node.own_pages, 'page')} of {pages:,.0f}", ""
    if not look.plan.analyzed and (top := limited(node)):
        part = top.cost / max(node.cost, 1.0)
        if pages > TINY and part <= EARLY:
            return f"the LIMIT is expected to stop it after {percent(part)} of {pages:,.0f} pages", ""
    return None


def _either(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    for node in look.plan.nodes:
        condition = node.join_filter
        tables = set(re.findall(r"(\w+)\.\w+", re.sub(r"'(?:[^']|'')*'", "", condition)))
        if " OR " in condition and len(tables) > 1:
            return (
                f"its OR compares columns of several tables ({', '.join(sorted(tables))}) and can be evaluated only "
                "after the join; a UNION of both parts can use an index for each",
                either(text),
            )
    return None


def _found(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    """Return the existing indexes that already find all rows that are read."""
    if any(n.kind == "Seq Scan" and _pages(look, n) > TINY for n in scans):
        return None
    by = [n for n in scans if n.kind != "Seq Scan"]
    if not by or any(n.filter and n.removed_by_filter > n.rows_per_loop for n in by):
        return None
    names = list(dict.fromkeys(b.index for n in by for b in n.below() if b.index))
    if any(not c.index_condition for n in by for c in n.below() if c.index) and not limited(by[0]):
        return None  # an index read from end to end
    pages = f" in {counted(look.plan.buffers, 'page')}" if look.plan.analyzed else ""
    rows = look.plan.rows if look.plan.analyzed else look.plan.root.estimated
    one = "already finds its" if len(names) == 1 else "already find its"
    return f"{' and '.join(names)} {one} {counted(rows, 'row')}{pages}", ""


def _tiny(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    """Return that the table is tiny, or that few of its pages are read."""
    node = scans[0]
    table = _table(look, node)
    pages = table.pages if table.size is None else table.size
    if table.size == 0:
        return f"{node.relation} is empty", ""
    if 0 < pages <= TINY:
        rows = f"the {counted(table.rows, 'row')} in " if table.rows and table.pages <= pages else ""
        return f"{node.relation} is tiny: reading {rows}its {counted(pages, 'page')} is just as fast", ""
    if look.plan.analyzed and node.own_pages <= TINY:
        return f"it reads only {counted(node.own_pages, 'page')} of the {pages:,.0f} of {node.relation}", ""
    return None


def _whole(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    if node.filter or any(n.index_condition for n in node.below()):
        return None
    groups = any(above.kind == "Aggregate" for above in node.above())
    joins = any(key in above.raw for above in node.above() for key in ("Hash Cond", "Merge Cond", "Join Filter"))
    rows = node.rows if look.plan.analyzed else node.estimated
    what = "aggregates" if groups else "joins" if joins else "returns"
    return f"it reads every row: it {what} all {rows:,.0f} of {node.relation}, without a condition to select some", ""


def _many(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    rows = max(_table(look, node).rows, 1.0)
    kept = node.rows if look.plan.analyzed else node.estimated
    if (node.kind == "Seq Scan" and not node.filter) or kept < MANY * rows or kept > 2 * rows:
        return None
    what = plain(node.filter or node.recheck_condition or node.index_condition, node.alias)
    return (
        f"{what} selects too many rows: {counted(kept, 'row')}, {percent(min(1.0, kept / rows))} of {node.relation}, "
        "are spread over most of its pages",
        "",
    )


def _blocks(look: FindingContext, scans: Sequence[Node]) -> Iterator[tuple[Node, Predicate, Blocker]]:
    for node in scans:
        every = conditions(look.facts, node, "Filter")
        for p in every:
            if (block := blocks(look.facts, node, p)) and not added(block, p, every):
                yield node, p, block


def _table(look: FindingContext, node: Node) -> TableFacts:
    table = look.facts.of(node)
    assert table
    return table


def _pages(look: FindingContext, node: Node) -> float:
    """Return the pages that one scan touches, as far as known."""
    if look.plan.analyzed:
        return node.own_pages / max(node.loops, 1.0)
    return _table(look, node).pages if node.kind == "Seq Scan" else 0.0


def _weight(look: FindingContext, node: Node) -> float:
    return node.own_pages if look.plan.analyzed else node.cost * max(node.loops, 1.0)


def _shown(node: Node, p: Predicate) -> str:
    text = plain(p.text, node.alias)
    return text if len(text) <= 80 else text[:79] + "…"


# Whether the statistics that a plan is made from may be wrong.

LEAST = 1000.0  # changed rows before statistics count as stale: fewer rows do not change which index is best
COMMON = 100.0  # rows per known value from which on an unknown value is suspicious


def analyze_first(look: FindingContext) -> str:
    """Return the sentence that asks for fresh statistics before advice; "" if no table's statistics are stale."""
    reasons = stale_tables(look)
    names = ", ".join(dict.fromkeys(map(sql_name, reasons)))
    return f"ANALYZE {names} first: {' and '.join(reasons.values())}" if reasons else ""


def caveats(look: FindingContext) -> Iterator[str]:
    """Yield a sentence for each table whose statistics may be stale or may lack the value of a condition."""
    for table in _read(look):
        if because := doubt(table, look.limits.stale_share, LEAST):
            yield f"{because}: if after, ANALYZE {sql_name(table)} and ask again"
    for node in look.plan.nodes:
        table_read = look.facts.of(node) if node.kind in SCANS else None
        if table_read and node.estimated <= 1 and (unknown := _unknown_values(look, node, table_read)):
            yield (
                f"The statistics of {table_read.name} know no row with {' or '.join(unknown)}, but rows were added or "
                f"changed since: if there are many now, ANALYZE {sql_name(table_read)} and ask again"
            )


def _unknown_values(look: FindingContext, node: Node, table: TableFacts) -> list[str]:
    """Return the conditions on values unknown to the statistics, of columns whose known values have many rows."""
    if not table.changed and (table.size or 0.0) <= table.pages:
        return []
    return [
        plain(p.text, node.alias)
        for p in conditions(look.facts, node, "Filter")
        if p.operator == "=" and p.column and not p.joined and "$" not in p.value
        and 0 < distinct(table, p.column) * COMMON <= table.rows
    ]  # fmt: skip


def stale_tables(look: FindingContext) -> dict[TableFacts, str]:
    """Return the tables with stale statistics, each with its reason."""
    reasons = ((table, stale(table, look.limits.stale_share, LEAST)) for table in _read(look))
    return {table: because for table, because in reasons if because}


def _read(look: FindingContext) -> Iterator[TableFacts]:
    """Yield the tables that a plan reads and that are not tiny, each once."""
    tables = dict.fromkeys(look.facts.of(node) for node in look.plan.nodes if node.kind in SCANS)
    yield from (t for t in tables if t and (t.size is None or t.size > GROWN) and not t.schema.startswith("pg_"))


def sql_name(table: TableFacts) -> str:
    """Return the table as SQL; for a partition, its partitioned table."""
    return qualified(*(table.parent or (table.schema, table.name)))
