"""What was found out about one slow statement: its figures, its example values, and all of it as one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perfkit.display.advice import advice
from perfkit.display.html import code, escape, page
from perfkit.display.plans import PlanView
from perfkit.display.slow import SlowView, one_line
from perfkit.display.table import Cell, Table
from perfkit.display.whatif import WhatIfView
from perfkit.indexes.advice import Advice
from perfkit.slow.examples import Value
from perfkit.slow.model import SlowQueries

if TYPE_CHECKING:
    from perfkit.report.run import Run


def figures(found: SlowQueries, position: int) -> Table:
    """A statement's own row of the table of all."""
    table = SlowView(found, position).table()
    return replace(table, caption="What it costs", rows=table.rows[position - 1 :])


def examples(sets: Sequence[Sequence[Value]]) -> Table:
    """One row for each value."""
    rows = tuple(
        (
            Cell(str(at)),
            Cell(f"${value.number}"),
            Cell(value.type),
            Cell("NULL" if value.text is None else value.text, code=True),
            Cell(value.origin),
        )
        for at, own in enumerate(sets, 1)
        for value in own
    )
    columns = ("set", "parameter", "type", "value", "from")
    return Table("Example parameters", columns, rows, headers=2, note="" if rows else "the statement has none")


@dataclass(frozen=True, slots=True)
class StatementEvidence:
    """A statement, by its position in what was found, with what was made of it; in the order of the page."""

    found: SlowQueries
    position: int
    sql: str
    plans: Sequence[PlanView] = ()
    advice: Sequence[Advice] = ()
    trials: Sequence[tuple[str, WhatIfView]] = ()  # each with its CREATE INDEX
    runs: Sequence[Run] = ()

    def page(self) -> str:
        """A page of its own, which requests nothing."""
        return page(f"Slow statement: {one_line(self.sql, 60)}", "".join(self._parts()))

    def _parts(self) -> Iterator[str]:
        yield f"<h1>Slow statement {self.position}</h1><p>{escape(self.found.source)}</p>{code(self.sql, name='SQL')}"
        yield figures(self.found, self.position).to_html()
        for plan in self.plans:
            yield f"<h2>Plan</h2>{plan.html()}"
        for made in self.advice:
            yield f"<h2>Advice</h2>{advice(made).html}"
        for index, trial in self.trials:
            yield f"<h2>What if</h2>{code(index, name='SQL')}{trial.html()}"
        for run in self.runs:
            yield f"<h2>Measured</h2>{run.decision.html}{run.levels.to_html()}{run.index_costs.to_html()}"
            yield run.weaknesses.html
