"""The search for the indexes that a workload needs: candidates are tried, and those that help are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perfkit.base.errors import PlanError
from perfkit.base.units import counted
from perfkit.explain.candidates import IndexDesign, Move, derive
from perfkit.explain.capture import WRITING, Parameters
from perfkit.explain.conditions import SCANS, conditions
from perfkit.explain.findings.model import FindingContext
from perfkit.indexes.advice import (
    Advice,
    Proposal,
    Refusal,
    Served,
    analyze_first,
    caveats,
    reason,
    sql_name,
    stale_tables,
)
from perfkit.indexes.coverage import Reference, probes, references
from perfkit.indexes.trial import (
    UNVERIFIED,
    CostFigures,
    IndexTrial,
    figures,
    gain,
    helps,
    positional,
    trying,
    with_checks,
)
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.sqltext import first_word

if TYPE_CHECKING:
    from perfkit.app.session import Session


Say = Callable[[str], None]
# An index as large as its table must make the queries, all together, this many times twice as cheap.
PRICE = 4.0


@dataclass(frozen=True, slots=True)
class AdvisedQuery:
    """A query of the workload with its current plan and the foreign-key checks that it causes."""

    name: str
    text: str
    parameters: Parameters
    look: FindingContext
    generic: FindingContext | None  # the generic plan of a query with parameters
    probes: tuple[tuple[str, float], ...]  # the checks as statements, with the number of their executions
    references: tuple[Reference, ...]

    @property
    def variable(self) -> frozenset[tuple[str, str]]:
        """Return alias and column of the conditions whose value is a parameter; if unsure, of all conditions."""
        look = self.generic or self.look
        return frozenset(
            (node.alias, column)
            for node in look.plan.nodes
            if node.kind in SCANS and self.parameters
            for p in conditions(look.facts, node, "Filter", "Index Cond", "Recheck Cond")
            for column in p.columns
            if not self.generic or "$" in p.text
        )

    @property
    def tables(self) -> frozenset[tuple[str, str]]:
        """Return schema and name of the tables whose indexes matter to the query."""
        read = {t.parent or (t.schema, t.name) for t in self.look.facts.tables}
        return frozenset(read | {(r.schema, r.table) for r in self.references})


Designs = frozenset[IndexDesign]
_NONE: Designs = frozenset()


class IndexSearch:
    """A greedy search: add the index that gains most until none helps, then drop those no longer needed."""

    def __init__(
        self,
        trial: IndexTrial,
        queries: Sequence[AdvisedQuery],
        names: Mapping[IndexDesign, str],
        moves: Sequence[Move],
        say: Say,
        max_bytes: float,
    ) -> None:
        self.trial, self.queries, self.names, self.say, self.max_bytes = trial, queries, names, say, max_bytes
        statements = {design: design.statement(name) for design, name in names.items()}
        self.statements = {design: text for design, text in statements.items() if text in trial.made}
        self.bytes = {design: trial.made[text].bytes for design, text in self.statements.items()}
        self.pages = {(r.schema, r.table): r.pages for one in queries for r in one.references}
        self.pages |= {(t.schema, t.name): t.pages for one in queries for t in one.look.facts.tables if t.pages}
        self._known: dict[tuple[str, Designs], tuple[CostFigures, Designs]] = {}
        self._values: dict[Designs, float] = {}
        # Some queries need two indexes at once: those that they use if all candidates exist.
        together = (tuple(d for d in names if d in self._tried(one, self._every)[1]) for one in queries)
        possible = [move for move in moves if self.statements.keys() >= set(move)]
        self.moves = list(dict.fromkeys([*possible, *(move for move in together if len(move) > 1)]))

    def advice(self, target: str) -> Advice:
        """Return the chosen indexes for the database `target`, and why the other queries get none."""
        chosen = self._pruned(self._improved(self._fitted(self._pruned(self._grown()))))
        proposals = []
        for design in sorted(chosen, key=self.names.__getitem__):
            using = (one for one in self.queries if design in self._tried(one, chosen)[1])
            served = (one for one in using if self._helps(one, _NONE, chosen))
            costs = tuple(Served(one.name, self._cost(one, _NONE), self._cost(one, chosen)) for one in served)
            proposals.append(Proposal(self.names[design], design, costs, self.bytes[design], self.trial.evidence))
        refusals = [self._refusal(one) for one in self.queries if not self._helps(one, _NONE, chosen)]
        return Advice(target, self.trial.evidence, tuple(proposals), tuple(refusals), tuple(self._limitations()))

    def _refusal(self, one: AdvisedQuery) -> Refusal:
        """Return why a query gets no index."""
        if because := reason(one.text, one.look, one.generic):
            return Refusal(one.name, *because)
        left_out = self._left_out(one)
        tried = [d for d in self._of(one, self._every) - left_out if self.bytes[d] <= self.max_bytes]
        best = min((self._cost(one, frozenset({d})) for d in tried), key=lambda cost: cost.work, default=None)
        in_vain = tried_in_vain(self._cost(one, _NONE), best, len(tried), len(left_out))
        return Refusal(one.name, in_vain, certain=False)

    def _left_out(self, one: AdvisedQuery) -> Designs:
        """Return the indexes that were not tried for a query because they could crash the server."""
        return frozenset(d for d in self._of(one, self._every) if self.trial.avoided(one.text, self.statements[d]))

    def _limitations(self) -> Iterator[str]:
        """Yield which indexes were not tried, for which queries, and why."""
        left_out = [(one, design) for one in self.queries for design in self._left_out(one)]
        if left_out:
            one, design = left_out[0]
            fault = self.trial.avoided(one.text, self.statements[design])
            several = counted(len({design for _, design in left_out}), "partial or expression index")
            names = ", ".join(dict.fromkeys(one.name for one, _ in left_out))
            yield f"Not tried for {names}: {several}. {fault}. Use a copy instead: --way whole"

    def _grown(self) -> Designs:
        """Return the set to which, step by step, the most valuable index or pair of indexes was added."""
        chosen = _NONE
        while True:
            value, helped = self._value(chosen), self._helped(chosen)
            values = {larger: self._value(larger) for larger in self._larger(chosen)}
            better = [larger for larger in values if values[larger] > value or self._helped(larger) > helped]
            if not better:
                return chosen
            best = max(better, key=values.__getitem__)
            self.say(f"{', '.join(design.title for design in best - chosen)} helps")
            chosen = best

    def _fitted(self, chosen: Designs) -> Designs:
        """Return the set with indexes left out or exchanged for smaller ones until it fits into `max_bytes`."""
        while (size := self._size(chosen)) > self.max_bytes:
            smaller = [designs for designs in self._others(chosen) if self._size(designs) < size]
            chosen = max(smaller, key=lambda designs: (len(self._helped(designs)), self._value(designs)))
        return chosen

    def _improved(self, chosen: Designs) -> Designs:
        """Return the set with indexes exchanged or left out as long as that raises its value."""
        while True:
            others = (designs for designs in self._others(chosen) if self._size(designs) <= self.max_bytes)
            helpful = (designs for designs in others if self._helped(designs) >= self._helped(chosen))
            best = max(helpful, key=self._value, default=chosen)
            if self._value(best) <= self._value(chosen):
                return chosen
            chosen = best

    def _pruned(self, chosen: Designs) -> Designs:
        """Return the set without the indexes that no query misses, given the others."""
        full = chosen
        for design in sorted(chosen, key=lambda d: -self.bytes[d]):
            rest = chosen - {design}
            if not any(self._helps(one, rest, full) for one in self.queries):
                chosen = rest
        return chosen

    def _others(self, chosen: Designs) -> Iterator[Designs]:
        """Yield the sets with one index left out or exchanged for another candidate."""
        for design in sorted(chosen, key=self.names.__getitem__):
            rest = chosen - {design}
            yield rest
            yield from (larger for larger in self._larger(rest) if design not in larger)

    def _larger(self, chosen: Designs) -> list[Designs]:
        """Return the sets with one candidate more that helps any query."""
        larger = (chosen | set(move) for move in self.moves if not chosen.issuperset(move))
        return [designs for designs in larger if any(self._helps(one, chosen, designs) for one in self.queries)]

    def _size(self, chosen: Designs) -> int:
        return sum(self.bytes[design] for design in chosen)

    def _value(self, chosen: Designs) -> float:
        """Return what all queries gain, minus the price of the indexes' bytes as shares of their tables' bytes."""
        if chosen not in self._values:
            gained = sum(gain(self._cost(one, _NONE), self._cost(one, chosen)) for one in self.queries)
            pages = ((design, self.pages.get((design.schema, design.table), 0.0)) for design in chosen)
            shares = (self.bytes[design] / (8192 * of_table) for design, of_table in pages if of_table)
            self._values[chosen] = gained - PRICE * sum(shares)
        return self._values[chosen]

    def _helped(self, chosen: Designs) -> frozenset[str]:
        """Return the names of the queries that these indexes help."""
        return frozenset(one.name for one in self.queries if self._helps(one, _NONE, chosen))

    def _helps(self, one: AdvisedQuery, before: Designs, after: Designs) -> bool:
        return helps(self._cost(one, before), self._cost(one, after))

    def _cost(self, one: AdvisedQuery, present: Designs) -> CostFigures:
        return self._tried(one, present)[0]

    @property
    def _every(self) -> Designs:
        return frozenset(self.statements)

    def _of(self, one: AdvisedQuery, designs: Designs) -> Designs:
        """Return the indexes on tables of a query."""
        return frozenset(d for d in designs if (d.schema, d.table) in one.tables)

    def _tried(self, one: AdvisedQuery, present: Designs) -> tuple[CostFigures, Designs]:
        """Return what a query costs with some of the indexes, and which of them its plans use."""
        present = self._of(one, present)
        if (key := (one.name, present)) not in self._known:
            statements = {d: text for d, text in self.statements.items() if d in present}
            used: set[IndexDesign] = set()

            def cost(text: str, parameters: Parameters) -> CostFigures:
                capture = self.trial.explain(text, parameters, list(statements.values()))
                names = {node.index for node in capture.plan.nodes}
                used.update(d for d, statement in statements.items() if self.trial.made[statement].names & names)
                return figures(FindingContext(capture.plan, capture.facts))

            total = cost(one.text, one.parameters)
            for text, times in one.probes:
                total = with_checks(total, cost(text, None), times)
            self._known[key] = total, frozenset(used)
        return self._known[key]


def tried_in_vain(before: CostFigures, best: CostFigures | None, tried: int, left_out: int = 0) -> str:
    """Return what the candidates achieved for a query whose plan does not tell why no index helps."""
    if best is None:
        return (
            f"Not decided: {counted(left_out, 'candidate index')} could not be tried"
            if left_out
            else "Its plan suggests no index that does not exist already"
        )
    what = "the cost" if before.pages is None else "the pages read"
    if best.work < before.work:
        best_of = "The one candidate index" if tried == 1 else f"The best of {tried} candidate indexes"
        return f"{best_of} reduces {what} only from {before.work:,.0f} to {best.work:,.0f}"
    none = "The one candidate index did not reduce" if tried == 1 else f"None of {tried} candidate indexes reduced"
    return f"{none} {what} ({before.work:,.0f})"


MOST = 60  # candidates to try


def index_advice(
    session: Session,
    queries: Mapping[str, tuple[str, Parameters]],
    *,
    analyze: bool | None = None,
    max_bytes: float = math.inf,
    timeout_s: float = 60.0,
    say: Say = lambda text: None,
) -> Advice:
    """Return advice for queries, each given as SQL with typical parameters.

    On a server that perfkit started, stale statistics are renewed, indexes are built and rolled back, and queries are
    executed. On any other server nothing is built: HypoPG, if it is installed, tells what an index would gain, and a
    query of a table with stale statistics gets no advice except to analyse the table. With `analyze` the queries are
    executed there too, without new indexes and behind the guards of `Session.explain`. All indexes together take at
    most `max_bytes`. Raises PlanError with the query's name, UsageError, TargetRefused.
    """
    own_server = not session.database.server.foreign
    executed = own_server if analyze is None else analyze
    renewed = [*renew(session, queries)] if own_server else []
    with connected(session.database.server, session.database.name) as connection:
        pointing, taken = references(connection), {row["name"] for row in catalog.rows(connection, "relation_names")}
    asked = [_asked(session, name, *query, executed, timeout_s, pointing) for name, query in queries.items()]
    stale_ones = [] if own_server else [(one.name, sentence) for one in asked if (sentence := analyze_first(one.look))]
    refused = [Refusal(name, sentence, certain=False) for name, sentence in stale_ones]
    asked = [one for one in asked if one.name not in {refusal.query for refusal in refused}]
    limitations = [*renewed, *dict.fromkeys(line for one in asked for line in caveats(one.look) if not executed)]
    advice = _advice(session, asked, taken, timeout_s, max_bytes, say)
    order = list(queries)
    refusals = sorted([*refused, *advice.refusals], key=lambda refusal: order.index(refusal.query))
    return replace(advice, refusals=tuple(refusals), limitations=(*limitations, *advice.limitations))


def renew(session: Session, queries: Mapping[str, tuple[str, Parameters]]) -> Iterator[str]:
    """Analyse the tables with stale statistics in a database that perfkit made, and yield a sentence for each."""
    reasons: dict[str, str] = {}
    for text, parameters in queries.values():
        with suppress(PlanError):  # the search explains the query again and raises the error with the query's name
            capture = session.explain(text, parameters).capture
            tables = stale_tables(FindingContext(capture.plan, capture.facts))
            reasons |= {sql_name(table): because for table, because in tables.items()}
    for table, because in reasons.items():
        with connected(session.database.server, session.database.name) as connection:
            connection.execute(f"ANALYZE {table}".encode())
        yield f"{because}: analysed here first. If that is so in production too, ANALYZE {table} there"


def _advice(
    session: Session, asked: Sequence[AdvisedQuery], taken: set[str], timeout_s: float, max_bytes: float, say: Say
) -> Advice:
    """Return advice from trying the candidates, or unverified advice if they cannot be tried."""
    moves = _moves(session, asked)
    names = _names([design for move in moves for design in move], taken)
    statements = [design.statement(name) for design, name in names.items()]
    say(f"{len(statements)} candidates for {len(asked)} queries")
    with trying(session.database, statements, timeout_s) as trial:
        if trial is None:
            return _unverified(session, asked, names, moves)
        return IndexSearch(trial, asked, names, moves, say, max_bytes).advice(session.name)


def _asked(
    session: Session,
    name: str,
    text: str,
    parameters: Parameters,
    executed: bool,
    timeout_s: float,
    pointing: Sequence[Reference],
) -> AdvisedQuery:
    try:
        capture = session.explain(text, parameters, analyze=executed, repeats=1, timeout_s=timeout_s).capture
    except PlanError as error:
        raise PlanError(f"{name}: {error}") from None
    look = FindingContext(capture.plan, capture.facts)
    checks = probes(text, look, pointing) if first_word(text) in WRITING else {}
    generic = None
    if parameters:
        with suppress(PlanError):  # some statements cannot be planned without values
            capture = session.explain(positional(text, parameters), generic=True).capture
            generic = FindingContext(capture.plan, capture.facts)
    return AdvisedQuery(name, text, parameters, look, generic, tuple(checks.values()), tuple(checks))


def _moves(session: Session, asked: Sequence[AdvisedQuery]) -> list[Move]:
    """Return the candidates for all queries, without those that an existing index covers."""
    known: dict[tuple[str, str, str], float] = {}

    def share(schema: str, table: str, condition: str) -> float:
        if (key := (schema, table, condition)) not in known:
            rows = next(f.rows for one in asked for f in one.look.facts.tables if (f.schema, f.name) == (schema, table)
                        or f.parent == (schema, table))  # fmt: skip
            where = f"SELECT 1 FROM {IndexDesign(schema, table, ()).on} WHERE {condition}"
            known[key] = session.explain(where).plan.root.estimated / max(rows, 1.0)
        return known[key]

    found: dict[Move, None] = {}
    for one in asked:
        found |= dict.fromkeys((IndexDesign(r.schema, r.table, r.keys),) for r in one.references)
        for move in derive(one.look.plan, one.look.facts, one.variable, share):
            tables = one.look.facts.tables
            missing = tuple(
                design for design in move
                if not any(design.covered_by(i) for t in tables if (t.schema, t.name) == (design.schema, design.table)
                           for i in t.indexes)
            )  # fmt: skip
            if missing:
                found[missing] = None
    return [*found][:MOST]


def _names(designs: Sequence[IndexDesign], taken: set[str]) -> dict[IndexDesign, str]:
    """Return an unused name for each index."""
    names: dict[IndexDesign, str] = {}
    used = set(taken)
    for design in dict.fromkeys(designs):
        free = (name for n in range(1, 1000) if (name := design.name if n == 1 else f"{design.name}_{n}") not in used)
        names[design] = next(free)
        used.add(names[design])
    return names


def _unverified(
    session: Session, asked: Sequence[AdvisedQuery], names: Mapping[IndexDesign, str], moves: Sequence[Move]
) -> Advice:
    """Return for each query the index that looks best by its plan, without a trial."""
    serving: dict[IndexDesign, list[Served]] = {}
    refusals = []
    for one in asked:
        cost = figures(one.look)
        candidates = [
            move for move in derive(one.look.plan, one.look.facts, one.variable, lambda *_: 1.0) if move in moves
        ]
        candidates += [(IndexDesign(r.schema, r.table, r.keys),) for r in one.references]
        because = reason(one.text, one.look, one.generic)
        if because:
            refusals.append(Refusal(one.name, *because))
        elif candidates:
            for design in candidates[0]:
                serving.setdefault(design, []).append(Served(one.name, cost, cost))
        else:
            refusals.append(Refusal(one.name, tried_in_vain(cost, None, 0), certain=False))
    kept = [d for d in serving if not any(d is not other and d.begins(other) for other in serving)]
    for design in serving.keys() - set(kept):
        longer = next(other for other in kept if design.begins(other))
        serving[longer] += serving[design]
    proposals = (Proposal(names[d], d, tuple(serving[d]), None, UNVERIFIED) for d in kept)
    return Advice(session.name, UNVERIFIED, tuple(proposals), tuple(refusals))
