"""Which indexes a workload needs: derived from its plans, tried, and kept only where a plan uses them and it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perfkit.errors import PlanError
from perfkit.explain.capture import WRITING, Parameters
from perfkit.explain.findings.model import Look
from perfkit.explain.findings.scans import limited
from perfkit.explain.findings.where import conditions
from perfkit.explain.plan import Node, Plan
from perfkit.indexes.derive import SCANS, Design, Move, derive
from perfkit.indexes.references import Reference, probes, references
from perfkit.indexes.refuse import reason
from perfkit.indexes.trial import UNVERIFIED, Trial, positional, trying
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.statements import first_word

if TYPE_CHECKING:
    from perfkit.query import Session

Say = Callable[[str], None]
SLACK = 16.0  # pages, or units of cost: a few lookups, felt by nobody, so that tiny tables never get an index
ROOM = 32.0  # what an index may take more than another that is larger: nobody feels so few pages
MOSTLY = 0.3  # of a table's rows: an index that is read for so many stands for its table as one that is read whole
TRUSTED = 2.0  # times as many rows as expected, at most, for the planner's costs to be taken for anything
HALF = 2.0  # an index helps a query that then touches at most half the pages, the slack aside,
SORTED = 1000.0  # or where it spares sorting at least so many rows for a LIMIT, and more pages are not touched
PRICE = 4.0  # doublings that an index as large as its table must bring, all queries together, to be worth its bytes
MOST = 60  # candidates that are tried


@dataclass(frozen=True, slots=True)
class Figures:
    """What a query costs, foreign keys' checks included; pages and ms are None where nothing was executed."""

    pages: float | None
    ms: float | None
    cost: float
    sorted: float = 0.0  # rows sorted for a LIMIT
    narrow: float = 0.0  # pages spared only because an index that is read from end to end is smaller than its table
    again: float = 0.0  # of the pages, those touched again and again, which costs next to nothing

    @property
    def work(self) -> float:
        """Pages, or the planner's cost where nothing was executed."""
        return (self.cost if self.pages is None else self.pages) + self.narrow


@dataclass(frozen=True, slots=True)
class Served:
    """A query that uses a proposed index, without any and with all that are proposed."""

    query: str
    before: Figures
    after: Figures


@dataclass(frozen=True, slots=True)
class Proposal:
    """An index to make; `bytes` is None where nothing could be tried."""

    name: str
    table: str
    design: Design
    queries: tuple[Served, ...]
    bytes: int | None
    evidence: str

    @property
    def statement(self) -> str:
        """The CREATE INDEX."""
        return self.design.statement(self.name)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A query that no index will help, why in one sentence, and what to write instead where that is known."""

    query: str
    because: str
    rewrite: str = ""

    @property
    def sentence(self) -> str:
        """All of it but the rewrite."""
        return f"no index will help, because {self.because}"


@dataclass(frozen=True, slots=True, repr=False)
class Advice:
    """The indexes for a workload, and the queries that none will help; it shows itself."""

    target: str
    evidence: str
    proposals: tuple[Proposal, ...]
    refusals: tuple[Refusal, ...]

    @property
    def bytes(self) -> int:
        """Of all proposed indexes, as far as known."""
        return sum(proposal.bytes or 0 for proposal in self.proposals)

    @property
    def sql(self) -> str:
        """The set as the text of a file."""
        from perfkit.display.advice import sql_text

        return sql_text(self)

    def _repr_html_(self) -> str:
        from perfkit.display.advice import advice

        return advice(self)._repr_html_()

    def __repr__(self) -> str:
        from perfkit.display.advice import advice

        return repr(advice(self))


@dataclass(frozen=True, slots=True)
class Asked:
    """A query of the workload, its plan as things are, and the checks of foreign keys that it causes."""

    name: str
    text: str
    parameters: Parameters
    look: Look
    generic: Look | None  # the plan for any values, of a query with parameters
    probes: tuple[tuple[str, float], ...]  # statements, and how often each is executed
    references: tuple[Reference, ...]

    @property
    def variable(self) -> frozenset[tuple[str, str]]:
        """Alias and column of the conditions whose value is a parameter; of all where that cannot be told."""
        look = self.generic or self.look
        return frozenset(
            (node.text("Alias"), column)
            for node in look.plan.nodes
            if node.kind in SCANS and self.parameters
            for p in conditions(look, node, "Filter", "Index Cond", "Recheck Cond")
            for column in p.columns
            if not self.generic or "$" in p.text
        )

    @property
    def tables(self) -> frozenset[tuple[str, str]]:
        """Schema and name of the tables whose indexes matter to it."""
        own = {t.parent or (t.schema, t.name) for t in self.look.facts.tables}
        return frozenset(own | {(r.schema, r.table) for r in self.references})


def advise(
    session: Session,
    queries: Mapping[str, tuple[str, Parameters]],
    *,
    analyze: bool | None = None,
    max_bytes: float = math.inf,
    timeout_s: float = 60.0,
    say: Say = lambda text: None,
) -> Advice:
    """Advice for queries, each SQL with typical parameters.

    On a server that perfkit started indexes are built and rolled back, and queries executed. On any other nothing is
    built; with `analyze` the queries as they are are executed, behind the guards of `Session.explain`; HypoPG tells
    what an index would bring where it is installed. All indexes together have at most `max_bytes`. Raises PlanError
    with the query's name, UsageError, TargetRefused.
    """
    executed = not session.place.site.foreign if analyze is None else analyze
    with connected(session.place.site, session.place.name) as connection:
        pointing, taken = references(connection), {row["name"] for row in catalog.rows(connection, "relation_names")}
    asked = [_asked(session, name, *query, executed, timeout_s, pointing) for name, query in queries.items()]
    moves = _moves(session, asked)
    names = _names([design for move in moves for design in move], taken)
    statements = [design.statement(name) for design, name in names.items()]
    say(f"{len(statements)} candidates for {len(asked)} queries")
    with trying(session.place, statements, timeout_s) as trial:
        if trial is None:
            return _unverified(session, asked, names, moves)
        return _Search(trial, asked, names, moves, say, max_bytes).advice(session.name)


def figures(look: Look) -> Figures:
    """What one plan costs."""
    plan, root = look.plan, look.plan.root
    done = plan.analyzed
    sort = sum(_sorted(plan, node) for node in plan.nodes if node.kind == "Sort")
    narrow = sum(_narrow(look, node) for node in plan.nodes if node.kind == "Index Only Scan")
    pages, ms = (plan.buffers, plan.execution_ms) if done else (None, None)
    return Figures(pages, ms, root.value("Total Cost"), sort, narrow, _again(plan))


def helps(before: Figures, after: Figures) -> bool:
    """The rule by which an index is kept."""
    spared = before.sorted >= SORTED and not after.sorted and after.work <= before.work
    return spared or (after.work + SLACK) * HALF <= before.work + SLACK


def gain(before: Figures, after: Figures) -> float:
    """How much a query gains, as a power of two; a sort that is spared counts a little more."""
    spared = 0.5 if before.sorted >= SORTED and not after.sorted else 0.0
    return math.log2((before.work - before.again + ROOM) / (after.work - after.again + ROOM)) + spared


def _again(plan: Plan) -> float:
    """Pages beyond what the planner expects to read of rows that lie together; none where it misjudged the rows."""
    scans = [node for node in plan.nodes if node.kind in SCANS]
    trusted = plan.analyzed and not any(node.kind == "Limit" for node in plan.nodes)
    trusted = trusted and all(node.misestimate <= TRUSTED for node in scans)
    return max(0.0, plan.buffers - plan.root.value("Total Cost")) if trusted else 0.0


def _sorted(plan: Plan, node: Node) -> float:
    """The rows that go into a Sort of which a LIMIT above takes the first."""
    top = next((above for above in node.above() if above.kind not in ("Gather Merge", "LockRows", "Result")), None)
    below = node.children[0] if node.children else node
    return (below.rows if plan.analyzed else below.estimated) if top is not None and top.kind == "Limit" else 0.0


def _narrow(look: Look, node: Node) -> float:
    """What an index spares that is read whole, or nearly: it finds nothing, and stands for its table."""
    table = look.facts.of(node)
    if table is None or limited(node):
        return 0.0
    rows = node.rows if look.plan.analyzed else node.estimated
    if node.text("Index Cond") and (node.loops > 1 or rows < MOSTLY * table.rows):
        return 0.0
    return max(0.0, table.pages - (node.own_pages if look.plan.analyzed else node.value("Total Cost")))


def _asked(
    session: Session,
    name: str,
    text: str,
    parameters: Parameters,
    executed: bool,
    timeout_s: float,
    pointing: Sequence[Reference],
) -> Asked:
    try:
        found = session.explain(text, parameters, analyze=executed, repeats=1, timeout_s=timeout_s).capture
    except PlanError as error:
        raise PlanError(f"{name}: {error}") from None
    look = Look(found.plan, found.facts)
    caused = probes(text, look, pointing) if first_word(text) in WRITING else {}
    generic = None
    if parameters:
        with suppress(PlanError):  # some statements cannot be planned without values
            found = session.explain(positional(text, parameters), generic=True).capture
            generic = Look(found.plan, found.facts)
    return Asked(name, text, parameters, look, generic, tuple(caused.values()), tuple(caused))


def _moves(session: Session, asked: Sequence[Asked]) -> list[Move]:
    """What might help any of the queries, without what an index that is there does already."""
    known: dict[tuple[str, str, str], float] = {}

    def share(schema: str, table: str, condition: str) -> float:
        if (key := (schema, table, condition)) not in known:
            rows = next(f.rows for one in asked for f in one.look.facts.tables if (f.schema, f.name) == (schema, table)
                        or f.parent == (schema, table))  # fmt: skip
            where = f"SELECT 1 FROM {Design(schema, table, ()).on} WHERE {condition}"
            known[key] = session.explain(where).plan.root.estimated / max(rows, 1.0)
        return known[key]

    found: dict[Move, None] = {}
    for one in asked:
        found |= dict.fromkeys((Design(r.schema, r.table, r.keys),) for r in one.references)
        for move in derive(one.look, one.variable, share):
            tables = one.look.facts.tables
            missing = tuple(
                design for design in move
                if not any(design.covered_by(i) for t in tables if (t.schema, t.name) == (design.schema, design.table)
                           for i in t.indexes)
            )  # fmt: skip
            if missing:
                found[missing] = None
    return [*found][:MOST]


def _names(designs: Sequence[Design], taken: set[str]) -> dict[Design, str]:
    """A name for each that nothing else has."""
    names: dict[Design, str] = {}
    used = set(taken)
    for design in dict.fromkeys(designs):
        free = (name for n in range(1, 1000) if (name := design.name if n == 1 else f"{design.name}_{n}") not in used)
        names[design] = next(free)
        used.add(names[design])
    return names


@dataclass(eq=False)
class _Search:
    """Add what gains most until nothing helps, then leave out what is no longer needed."""

    trial: Trial
    asked: Sequence[Asked]
    names: Mapping[Design, str]
    moves: Sequence[Move]
    say: Say
    max_bytes: float
    _known: dict[Any, tuple[Figures, frozenset[str]]] = field(default_factory=dict)
    _worths: dict[frozenset[Design], float] = field(default_factory=dict)

    def advice(self, target: str) -> Advice:
        chosen = self._pruned(self._improved(self._fitted(self._pruned(self._grown()))))
        proposals = [self._proposal(design, chosen) for design in sorted(chosen, key=lambda d: self.names[d])]
        refusals = []
        for one in self.asked:
            before, after = self._figures(one, frozenset()), self._figures(one, chosen)
            if not helps(before, after):
                within = self._made().items()
                tried = [d for d, size in within if size <= self.max_bytes and (d.schema, d.table) in one.tables]
                best = min((self._figures(one, frozenset({d})) for d in tried), key=lambda f: f.work, default=None)
                because = reason(one.text, one.look, one.generic) or _tried_in_vain(before, best, len(tried))
                refusals.append(Refusal(one.name, *because))
        return Advice(target, self.trial.evidence, tuple(proposals), tuple(refusals))

    def _grown(self) -> frozenset[Design]:
        chosen: frozenset[Design] = frozenset()
        together = [tuple(d for d in self.names if self.names[d] in self._used_of_all(one)) for one in self.asked]
        self.moves = list(dict.fromkeys([*self.moves, *(move for move in together if len(move) > 1)]))
        while True:
            now, helped = self._worth(chosen), self._helped(chosen)
            larger = (chosen | set(move) for move in self._open(chosen))
            worth = {own: self._worth(own) for own in larger}
            better = [own for own in worth if worth[own] > now or self._helped(own) > helped]
            if not better:
                return chosen
            best = max(better, key=lambda own: worth[own])
            self.say(f"{', '.join(design.title for design in best - chosen)} helps")
            chosen = best

    def _helped(self, chosen: frozenset[Design]) -> frozenset[str]:
        """The queries that these indexes help."""
        none: frozenset[Design] = frozenset()
        return frozenset(one.name for one in self.asked if helps(self._figures(one, none), self._figures(one, chosen)))

    def _bytes(self, chosen: frozenset[Design]) -> int:
        return sum(self._made()[design] for design in chosen)

    def _fitted(self, chosen: frozenset[Design]) -> frozenset[Design]:
        """With indexes exchanged for smaller ones, or left out, until they are small enough together."""
        while (size := self._bytes(chosen)) > self.max_bytes:
            smaller = [own for own in self._others(chosen) if self._bytes(own) < size]
            chosen = max(smaller, key=lambda own: (len(self._helped(own)), self._worth(own)))
        return chosen

    def _others(self, chosen: frozenset[Design]) -> list[frozenset[Design]]:
        """The sets with one index left out, or exchanged for another move."""
        others = []
        for design in sorted(chosen, key=lambda d: self.names[d]):
            rest = chosen - {design}
            others += [rest, *(rest | set(move) for move in self._open(rest) if design not in move)]
        return others

    def _used_of_all(self, one: Asked) -> frozenset[str]:
        """What a query uses where all are there: it may need two of which neither alone helps it."""
        return self._tried(one, frozenset(self._made()))[1]

    def _open(self, chosen: frozenset[Design]) -> list[Move]:
        """The moves that help a query, given what is chosen."""
        return [
            move
            for move in self.moves
            if self._made().keys() >= set(move) and not chosen.issuperset(move)
            if any(helps(self._figures(one, chosen), self._figures(one, chosen | set(move))) for one in self.asked)
        ]

    def _improved(self, chosen: frozenset[Design]) -> frozenset[Design]:
        """With an index exchanged for another, or left out, as long as that is worth more."""
        while True:
            helped = self._helped(chosen)
            others = [own for own in self._others(chosen) if self._bytes(own) <= self.max_bytes]
            others = [own for own in others if self._helped(own) >= helped]
            best = max(others, key=self._worth, default=chosen)
            if self._worth(best) <= self._worth(chosen):
                return chosen
            chosen = best

    def _worth(self, chosen: frozenset[Design]) -> float:
        """What all queries gain, less the price of the indexes' bytes."""
        if chosen not in self._worths:
            gained = sum(gain(self._figures(one, frozenset()), self._figures(one, chosen)) for one in self.asked)
            self._worths[chosen] = gained - PRICE * sum(self._share(design) for design in chosen)
        return self._worths[chosen]

    def _share(self, design: Design) -> float:
        """Its bytes as a share of its table's."""
        tables = (t for one in self.asked for t in one.look.facts.tables)
        pages = next((t.pages for t in tables if (t.schema, t.name) == (design.schema, design.table)), 0.0)
        pages = pages or next((r.pages for one in self.asked for r in one.references
                               if (r.schema, r.table) == (design.schema, design.table)), 0.0)  # fmt: skip
        return self._made()[design] / (8192 * pages) if pages else 0.0

    def _pruned(self, chosen: frozenset[Design]) -> frozenset[Design]:
        """Without those whose absence, given the others, no query feels."""
        full = chosen
        for design in sorted(chosen, key=lambda d: -self._made()[d]):
            rest = chosen - {design}
            if not any(helps(self._figures(one, rest), self._figures(one, full)) for one in self.asked):
                chosen = rest
        return chosen

    def _proposal(self, design: Design, chosen: frozenset[Design]) -> Proposal:
        made = self._made()[design]
        served = [
            Served(one.name, self._figures(one, frozenset()), self._figures(one, chosen))
            for one in self.asked
            if self.names[design] in self._tried(one, chosen)[1]
            and helps(self._figures(one, frozenset()), self._figures(one, chosen))
        ]
        return Proposal(self.names[design], design.on, design, tuple(served), made, self.trial.evidence)

    def _made(self) -> dict[Design, int]:
        """Those that could be made, and their bytes."""
        every = self.trial.made
        return {d: every[s].bytes for d, name in self.names.items() if (s := d.statement(name)) in every}

    def _figures(self, one: Asked, present: frozenset[Design]) -> Figures:
        return self._tried(one, present)[0]

    def _tried(self, one: Asked, present: frozenset[Design]) -> tuple[Figures, frozenset[str]]:
        """What a query costs with some of the indexes, and which of them its plans use."""
        present = frozenset(d for d in present if (d.schema, d.table) in one.tables)
        if (key := (one.name, present)) not in self._known:
            statements = [d.statement(self.names[d]) for d in self.names if d in present]
            captures = [self.trial.explain(one.text, one.parameters, statements)]
            total = figures(Look(captures[0].plan, captures[0].facts))
            for text, times in one.probes:
                captures.append(self.trial.explain(text, None, statements))
                total = _with(total, figures(Look(captures[-1].plan, captures[-1].facts)), times)
            used = {node.text("Index Name") for capture in captures for node in capture.plan.nodes}
            names = {self.names[d] for d in present if self.trial.made[d.statement(self.names[d])].names & used}
            self._known[key] = total, frozenset(names)
        return self._known[key]


def _with(total: Figures, more: Figures, times: float) -> Figures:
    """A statement with the checks that it causes; its time has them in it already."""
    pages = None if total.pages is None else total.pages + times * (more.pages or 0.0)
    again = total.again + times * more.again
    return Figures(pages, total.ms, total.cost + times * more.cost, total.sorted, total.narrow, again)


def _tried_in_vain(before: Figures, best: Figures | None, tried: int) -> tuple[str, str]:
    """Why nothing was found, where its plan does not tell."""
    unit = "cost" if before.pages is None else "pages"
    if best is None:
        return "nothing in its plan could be found by an index that is not there already", ""
    return (
        f"of {tried} tried, the best brings it from {before.work:,.0f} to {best.work:,.0f} {unit} only"
        if best.work < before.work
        else f"of {tried} tried, the planner takes none that brings it below its {before.work:,.0f} {unit}"
    ), ""


def _unverified(session: Session, asked: Sequence[Asked], names: Mapping[Design, str], moves: Sequence[Move]) -> Advice:
    """For each query what looks best in its plan; nothing could be tried."""
    serving: dict[Design, list[Served]] = {}
    refusals = []
    for one in asked:
        now = figures(one.look)
        own = [move for move in derive(one.look, one.variable, lambda *_: 1.0) if move in moves]
        own += [(Design(r.schema, r.table, r.keys),) for r in one.references]
        because = reason(one.text, one.look, one.generic)
        if own and not because:
            for design in own[0]:
                serving.setdefault(design, []).append(Served(one.name, now, now))
        else:
            refusals.append(Refusal(one.name, *(because or _tried_in_vain(now, None, 0))))
    kept = [d for d in serving if not any(d is not other and d.begins(other) for other in serving)]
    for design in serving.keys() - set(kept):
        longer = next(other for other in kept if design.begins(other))
        serving[longer] += serving[design]
    proposals = (Proposal(names[d], d.on, d, tuple(serving[d]), None, UNVERIFIED) for d in kept)
    return Advice(session.name, UNVERIFIED, tuple(proposals), tuple(refusals))
