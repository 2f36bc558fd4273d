"""Advice for a workload: the indexes to create, and why no index helps the other queries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from perfkit.base.errors import visible
from perfkit.base.units import count, counted, millis, percent, seconds, size
from perfkit.explain.candidates import TINY, IndexDesign, limited
from perfkit.explain.conditions import (
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
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import Node
from perfkit.explain.rewrites import rewritten
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
    scans.sort(key=lambda n: n.own_pages if look.plan.analyzed else n.cost * max(n.loops, 1.0), reverse=True)
    return _Reasons(text, look, generic, scans).first() if scans else None


@dataclass(frozen=True, slots=True)
class _Reasons:
    """The possible reasons why no index helps a statement; `scans` read its tables, the most expensive one first."""

    text: str
    look: FindingContext
    generic: FindingContext | None
    scans: Sequence[Node]

    def first(self) -> Because | None:
        """Return the first reason that applies, with the rewritten statement."""
        if because := self.blocked() or self.pattern():
            return because
        if sentence := self.early():
            return sentence, ""
        if because := self.either():
            return because
        sentence = self.found() or self.tiny() or self.whole() or self.many()
        return (sentence, "") if sentence else None

    def blocked(self) -> Because | None:
        """Return the condition that no index on its column can find, and a form that an index serves."""
        for node, p, block in _blocks(self.look, self.scans):
            if self.generic is not None:
                block = _for_any_value(self.generic, node, p, block)
            if (not block.rewrite and (block.key or not block.hint)) or self.pages(node) <= TINY:
                continue
            names = ", ".join(sorted(p.columns))
            cause = f"{_shown(node, p)} compares {block.what}, which an index on {names} cannot find"
            if not block.rewrite:
                return f"{cause}: {block.hint[0].lower()}{block.hint[1:].rstrip('.')}", ""
            (name,) = p.columns
            existing = (i for i in self.table(node).indexes if i.keys[:1] == (quoted(name),))
            ready = next((i for i in existing if i.valid and not i.predicate), None)
            made = f"CREATE INDEX ON {placed(self.look.facts, node)} ({quoted(name)})"
            index = f"the index {ready.name}" if ready else made
            return f"{cause}; {index} serves {block.rewrite}", self.rewritten(node, name)
        return None

    def rewritten(self, node: Node, name: str) -> str:
        """Return the statement with all blocked conditions on a column rewritten; "" if a rewrite is not certain."""
        look, new = self.generic or self.look, self.text
        for same, p, block in _blocks(look, _alike(look, node)) if self.names(look, node) else ():
            if p.columns == {name} and block.found:
                new = replaced(new, same.alias, name, condition(look.facts, same, p), block.found)
        return new if new != self.text else ""

    def names(self, look: FindingContext, node: Node) -> bool:
        """Return whether the statement names a table; otherwise it is behind a view, with columns of other types."""
        names = (node.relation, home(look.facts, node)[1])
        return any(re.search(rf"\b{re.escape(name)}\b", self.text, re.IGNORECASE) for name in names)

    def pattern(self) -> Because | None:
        """Return the condition on a pattern that a B-tree cannot find."""
        facts = self.look.facts
        searched = ((node, p) for node in self.scans for p in conditions(facts, node, "Filter"))
        for node, p in searched:
            if p.operator not in ("~~", "~~*", "~", "~*") or p.prefix or self.pages(node) <= TINY:
                continue
            name = min(p.columns)
            c = condition(facts, node, p) if len(p.columns) == 1 else None
            if c and p.operator == "~~*" and (found := rewritten(c)):
                made = f"CREATE INDEX ON {placed(facts, node)} (lower({quoted(name)}) text_pattern_ops)"
                alone = self.generic is None and self.names(self.look, node)
                rewrite = replaced(self.text, node.alias, name, c, found) if alone else ""
                serves = found.filled(quoted(name), c.value.removesuffix("::text"), "")
                return f"ILIKE ignores case and a B-tree does not; {made} serves {serves}", rewrite
            what = "may begin with anything" if p.operator == "~~" else "is not the beginning of a text"
            return (
                f"{_shown(node, p)} searches for a pattern that {what}; a B-tree cannot find such patterns, a trigram "
                "index (GIN, extension pg_trgm) can",
                "",
            )
        return None

    def early(self) -> str:
        """Return that a LIMIT stops the scan before it reads many pages."""
        node, top, pages = self.scans[0], limited(self.scans[0]), self.table(self.scans[0]).pages
        if not top or pages <= TINY:
            return ""
        if self.look.plan.analyzed:
            few = node.own_pages <= max(EARLY * pages, TINY)
            return f"the LIMIT stops it after {counted(node.own_pages, 'page')} of {pages:,.0f}" if few else ""
        part = top.cost / max(node.cost, 1.0)
        return f"the LIMIT is expected to stop it after {percent(part)} of {pages:,.0f} pages" if part <= EARLY else ""

    def either(self) -> Because | None:
        """Return the OR over columns of several tables, and a UNION of both parts."""
        for joined in (node.join_filter for node in self.look.plan.nodes):
            tables = set(re.findall(r"(\w+)\.\w+", re.sub(r"'(?:[^']|'')*'", "", joined)))
            if " OR " in joined and len(tables) > 1:
                return (
                    f"its OR compares columns of several tables ({', '.join(sorted(tables))}) and can be evaluated "
                    "only after the join; a UNION of both parts can use an index for each",
                    either(self.text),
                )
        return None

    def found(self) -> str:
        """Return the existing indexes that already find all rows that are read."""
        by = [n for n in self.scans if n.kind != "Seq Scan"]
        full = any(n.kind == "Seq Scan" and self.pages(n) > TINY for n in self.scans)
        if full or not by or any(n.filter and n.removed_by_filter > n.rows_per_loop for n in by):
            return ""
        indexed = [below for n in by for below in n.below() if below.index]
        if any(not below.index_condition for below in indexed) and not limited(by[0]):
            return ""  # an index read from end to end
        plan, names = self.look.plan, list(dict.fromkeys(below.index for below in indexed))
        pages = f" in {counted(plan.buffers, 'page')}" if plan.analyzed else ""
        rows = plan.rows if plan.analyzed else plan.root.estimated
        finds = "already finds its" if len(names) == 1 else "already find its"
        return f"{' and '.join(names)} {finds} {counted(rows, 'row')}{pages}"

    def tiny(self) -> str:
        """Return that the table is tiny, or that few of its pages are read."""
        node, table = self.scans[0], self.table(self.scans[0])
        pages = table.pages if table.size is None else table.size
        if table.size == 0:
            return f"{node.relation} is empty"
        if 0 < pages <= TINY:
            rows = f"the {counted(table.rows, 'row')} in " if table.rows and table.pages <= pages else ""
            return f"{node.relation} is tiny: reading {rows}its {counted(pages, 'page')} is just as fast"
        few = self.look.plan.analyzed and node.own_pages <= TINY
        read = counted(node.own_pages, "page")
        return f"it reads only {read} of the {pages:,.0f} of {node.relation}" if few else ""

    def whole(self) -> str:
        """Return that the statement reads every row, without a condition."""
        node = self.scans[0]
        if node.filter or any(n.index_condition for n in node.below()):
            return ""
        groups = any(above.kind == "Aggregate" for above in node.above())
        joins = any(key in above.raw for above in node.above() for key in ("Hash Cond", "Merge Cond", "Join Filter"))
        what = "aggregates" if groups else "joins" if joins else "returns"
        rows = f"{self.rows(node):,.0f} of {node.relation}"
        return f"it reads every row: it {what} all {rows}, without a condition to select some"

    def many(self) -> str:
        """Return that a condition selects so many rows that they are on most pages."""
        node, rows = self.scans[0], max(self.table(self.scans[0]).rows, 1.0)
        selected = self.rows(node)
        if (node.kind == "Seq Scan" and not node.filter) or not MANY * rows <= selected <= 2 * rows:
            return ""
        what = plain(node.filter or node.recheck_condition or node.index_condition, node.alias)
        share = f"{counted(selected, 'row')}, {percent(min(1.0, selected / rows))} of {node.relation}"
        return f"{what} selects too many rows: {share}, are spread over most of its pages"

    def table(self, node: Node) -> TableFacts:
        """Return the facts about a scan's table, which `reason` asked for."""
        table = self.look.facts.of(node)
        assert table
        return table

    def rows(self, node: Node) -> float:
        """Return the rows that a scan returns, as far as known."""
        return node.rows if self.look.plan.analyzed else node.estimated

    def pages(self, node: Node) -> float:
        """Return the pages that one scan touches, as far as known."""
        if self.look.plan.analyzed:
            return node.own_pages / max(node.loops, 1.0)
        return self.table(node).pages if node.kind == "Seq Scan" else 0.0


def _for_any_value(generic: FindingContext, node: Node, p: Predicate, block: Blocker) -> Blocker:
    """Return the blocker of the same condition in the generic plan."""
    for _, same, found in _blocks(generic, _alike(generic, node)):
        if (same.columns, same.operator) == (p.columns, p.operator):
            return found
    only = f"for these parameters only, the same rows are returned by {block.rewrite}"
    return replace(block, rewrite="", hint=block.hint or only)


def _alike(look: FindingContext, node: Node) -> list[Node]:
    return [n for n in look.plan.nodes if n.kind in SCANS and n.alias == node.alias]


def _blocks(look: FindingContext, scans: Sequence[Node]) -> Iterator[tuple[Node, Predicate, Blocker]]:
    for node in scans:
        every = conditions(look.facts, node, "Filter")
        for p in every:
            if (block := blocks(look.facts, node, p)) and not added(block, p, every):
                yield node, p, block


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
