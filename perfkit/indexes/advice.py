"""Advice: the indexes to make, whom each serves, and the queries without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from perfkit.indexes.cost import CostFigures, quicker
from perfkit.indexes.derive import IndexDesign
from perfkit.numbers import millis, size
from perfkit.text import visible


@dataclass(frozen=True, slots=True)
class Served:
    """A query that uses a proposed index, without any and with all that are proposed."""

    query: str
    before: CostFigures
    after: CostFigures


@dataclass(frozen=True, slots=True)
class Proposal:
    """An index to make; `bytes` is None where nothing could be tried."""

    name: str
    table: str
    design: IndexDesign
    queries: tuple[Served, ...]
    bytes: int | None
    evidence: str

    @property
    def statement(self) -> str:
        """The CREATE INDEX."""
        return self.design.statement(self.name)

    @property
    def served(self) -> Iterator[str]:
        """Whom it serves, a line each, then its size and what that rests on."""
        for served in self.queries:
            after = "" if served.before == served.after else f" -> {served.after}"
            if quicker(served.before, served.after):
                after += f", {millis(served.before.ms or 0.0)} -> {millis(served.after.ms or 0.0)}"
            yield " ".join(f"{served.query}: {served.before}{after}".split())
        yield "; ".join([*([size(self.bytes)] if self.bytes is not None else []), self.evidence])


@dataclass(frozen=True, slots=True)
class Refusal:
    """A query without an index, why in one sentence, and what to write instead where that is known.

    `certain`: the plan shows that no index helps; otherwise none was found, or the question is open.
    """

    query: str
    because: str
    rewrite: str = ""
    certain: bool = True

    @property
    def sentence(self) -> str:
        """All of it but the rewrite."""
        return f"No index will help, because {self.because}" if self.certain else self.because


@dataclass(frozen=True, slots=True, repr=False)
class Advice:
    """The indexes for a workload, the queries without one, and what limits both; it shows itself."""

    target: str
    evidence: str
    proposals: tuple[Proposal, ...]
    refusals: tuple[Refusal, ...]
    limitations: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all proposed indexes, as far as known."""
        return sum(proposal.bytes or 0 for proposal in self.proposals)

    @property
    def sql(self) -> str:
        """The set as the text of a file: each index under a comment on whom it serves."""
        where = " ".join(visible(self.target).split())  # a database's name must not end the comment
        lines = [f"-- Indexes advised for {where}; {self.evidence}."]
        lines += [f"-- {' '.join(visible(limitation).split())}" for limitation in self.limitations]
        analysed = {}
        for proposal in self.proposals:
            lines += ["", *(f"-- {line}" for line in proposal.served), f"{proposal.statement};"]
            if proposal.design.expressive:
                analysed[proposal.table] = f"ANALYZE {proposal.table};"
        if analysed:
            lines += ["", "-- What is known of an expression is known through its index.", *analysed.values()]
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        from perfkit.display.advice import advice

        return advice(self)._repr_html_()

    def __repr__(self) -> str:
        from perfkit.display.advice import advice

        return repr(advice(self))
