"""Advice as it shows itself: the indexes in one table, the queries that none will help, and the set to copy."""

from __future__ import annotations

from collections.abc import Iterator

from perfkit.display.html import Block, code, escape, listed
from perfkit.display.table import Cell, Table
from perfkit.indexes.advice import Advice
from perfkit.indexes.cost import CostFigures
from perfkit.numbers import NONE, count, seconds, size


def advice(found: Advice) -> Block:
    """All of it."""
    tables = [proposed(found), *([refused(found)] if found.refusals else [])]
    rewrites = [(refusal.query, refusal.rewrite) for refusal in found.refusals if refusal.rewrite]
    html = "".join(table.to_html() for table in tables)
    text = [table.to_text() for table in tables]
    for query, rewrite in rewrites:
        title = f"{query}, written so that an index can be used"
        html += f"<h3>{escape(title)}</h3>{code(rewrite, name=title)}"
        text += [f"{title}:\n{_indented(rewrite)}"]
    if found.limitations:
        html += f"<h3>Limitations</h3>{listed(found.limitations)}"
        text += ["Limitations:\n" + "\n".join(f"- {limitation}" for limitation in found.limitations)]
    if found.proposals:
        html += f"<h3>The set</h3>{code(found.sql, name='The set of indexes')}"
        text += [f"The set:\n{_indented(found.sql)}"]
    return Block(html, "\n\n".join(text))


def proposed(found: Advice) -> Table:
    """One line for each query that an index serves."""
    rows = tuple(
        (Cell(proposal.design.title, code=True), Cell(size(proposal.bytes) if proposal.bytes is not None else NONE),
         Cell(served.query), *_cells(served.before, served.after, proposal.evidence))
        for proposal in found.proposals
        for served in proposal.queries
    )  # fmt: skip
    several = "index" if len(found.proposals) == 1 else "indexes"
    note = f"{count(len(found.proposals))} {several}, {size(found.bytes)}; {found.evidence}." if rows else "none"
    columns = ("index", "size", "query", "before", "after", "evidence")
    return Table("Indexes to make", columns, rows, frozenset({"size", "before", "after"}), note=note)


def refused(found: Advice) -> Table:
    """The queries that no index will help."""
    rows = tuple((Cell(refusal.query), Cell(refusal.sentence)) for refusal in found.refusals)
    return Table("Queries without an index", ("query", "why"), rows)


def _cells(before: CostFigures, after: CostFigures, evidence: str) -> Iterator[Cell]:
    for found in (before, after):
        yield Cell(str(found), seconds(found.ms / 1000) if found.ms is not None else "")
    yield Cell(evidence)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.strip().splitlines())
