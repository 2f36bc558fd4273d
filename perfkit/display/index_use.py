"""What is to be said of a database's indexes: one table, what frees most bytes first, and the statements for it."""

from __future__ import annotations

from collections.abc import Sequence

from perfkit.display.html import Block, code, escape
from perfkit.display.table import Cell, Table
from perfkit.indexes.use import CatalogueFacts, IndexUse, Remark, script
from perfkit.numbers import NONE, count, size

_STATES = {"invalid": "bad", "overlapping": "quiet", "missing": "unsure"}


def index_use(facts: CatalogueFacts, remarks: Sequence[Remark]) -> Block:
    """The remarks as a table, and below it their statements to copy."""
    table, sql = remarks_table(facts, remarks), script(remarks)
    if not sql:
        return Block(table.to_html(), table.to_text())
    title = "Statements, each to be weighed (one by one, for CONCURRENTLY runs in no transaction)"
    html = f"{table.to_html()}<h3>{escape(title)}</h3>{code(chr(10).join(sql), name=title)}"
    return Block(html, "\n".join([table.to_text(), "", f"{title}:", *(f"  {line}" for line in sql)]))


def remarks_table(facts: CatalogueFacts, remarks: Sequence[Remark]) -> Table:
    """One row for each remark; the note says how many indexes there are and what is known of their use."""
    rows = tuple(
        (
            Cell(remark.kind, state=_STATES.get(remark.kind, "")),
            Cell(remark.table),
            Cell(remark.text, remark.evidence),
            Cell(size(remark.bytes) if remark.bytes else NONE),
        )
        for remark in remarks
    )
    whole = sum(index.bytes for index in facts.indexes)
    since = facts.counters.since
    counters = f"use is counted since {since}" if since else "since when use is counted is not known"
    counters = counters if facts.counters.counted else "use is not counted here (track_counts is off)"
    note = f"{count(len(facts.indexes))} indexes, {size(whole)}; {counters}."
    note = note if rows else f"nothing to say against {note}"
    return Table("Indexes", ("what", "table", "why", "frees"), rows, frozenset({"frees"}), note=note)


def uses(found: Sequence[IndexUse]) -> Table:
    """How often each index was used under a workload."""
    rows = tuple((Cell(use.index), Cell(use.table), Cell(count(use.scans))) for use in found)
    return Table("Scans under the workload", ("index", "table", "scans"), rows, frozenset({"scans"}))
