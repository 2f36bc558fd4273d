"""Which indexes a workload needs: derived from its plans, tried, and kept only where a plan uses them and it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from perfkit.errors import PlanError
from perfkit.explain.capture import WRITING, Parameters
from perfkit.explain.findings.model import FindingContext
from perfkit.indexes.advice import Advice, Proposal, Refusal, Served
from perfkit.indexes.choosing import AdvisedQuery, IndexSearch, tried_in_vain
from perfkit.indexes.cost import figures
from perfkit.indexes.derive import IndexDesign, Move, derive
from perfkit.indexes.fresh import analyze_first, doubts, renew
from perfkit.indexes.references import Reference, probes, references
from perfkit.indexes.refuse import reason
from perfkit.indexes.trial import UNVERIFIED, positional, trying
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.statements import first_word

if TYPE_CHECKING:
    from perfkit.query import Session

Say = Callable[[str], None]
MOST = 60  # candidates that are tried


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

    On a server that perfkit started tables with stale statistics are analysed, indexes built and rolled back, and
    queries executed. On any other nothing is built, and a query of a table with stale statistics gets no advice but to
    analyse it; with `analyze` the queries as they are are executed, behind the guards of `Session.explain`; HypoPG
    tells what an index would bring where it is installed. All indexes together have at most `max_bytes`. Raises
    PlanError with the query's name, UsageError, TargetRefused.
    """
    own = not session.place.site.foreign
    executed = own if analyze is None else analyze
    renewed = [*renew(session, queries)] if own else []
    with connected(session.place.site, session.place.name) as connection:
        pointing, taken = references(connection), {row["name"] for row in catalog.rows(connection, "relation_names")}
    asked = [_asked(session, name, *query, executed, timeout_s, pointing) for name, query in queries.items()]
    refused = (
        [] if own else [Refusal(one.name, old, certain=False) for one in asked if (old := analyze_first(one.look))]
    )
    asked = [one for one in asked if one.name not in {refusal.query for refusal in refused}]
    limitations = [*renewed, *dict.fromkeys(line for one in asked for line in doubts(one.look) if not executed)]
    advice = _advice(session, asked, taken, timeout_s, max_bytes, say)
    order = list(queries)
    refusals = sorted([*refused, *advice.refusals], key=lambda refusal: order.index(refusal.query))
    return replace(advice, refusals=tuple(refusals), limitations=(*limitations, *advice.limitations))


def _advice(
    session: Session, asked: Sequence[AdvisedQuery], taken: set[str], timeout_s: float, max_bytes: float, say: Say
) -> Advice:
    """Advice by what the candidates bring, where they can be tried."""
    moves = _moves(session, asked)
    names = _names([design for move in moves for design in move], taken)
    statements = [design.statement(name) for design, name in names.items()]
    say(f"{len(statements)} candidates for {len(asked)} queries")
    with trying(session.place, statements, timeout_s) as trial:
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
        found = session.explain(text, parameters, analyze=executed, repeats=1, timeout_s=timeout_s).capture
    except PlanError as error:
        raise PlanError(f"{name}: {error}") from None
    look = FindingContext(found.plan, found.facts)
    caused = probes(text, look, pointing) if first_word(text) in WRITING else {}
    generic = None
    if parameters:
        with suppress(PlanError):  # some statements cannot be planned without values
            found = session.explain(positional(text, parameters), generic=True).capture
            generic = FindingContext(found.plan, found.facts)
    return AdvisedQuery(name, text, parameters, look, generic, tuple(caused.values()), tuple(caused))


def _moves(session: Session, asked: Sequence[AdvisedQuery]) -> list[Move]:
    """What might help any of the queries, without what an index that is there does already."""
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


def _names(designs: Sequence[IndexDesign], taken: set[str]) -> dict[IndexDesign, str]:
    """A name for each that nothing else has."""
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
    """For each query what looks best in its plan; nothing could be tried."""
    serving: dict[IndexDesign, list[Served]] = {}
    refusals = []
    for one in asked:
        now = figures(one.look)
        own = [move for move in derive(one.look, one.variable, lambda *_: 1.0) if move in moves]
        own += [(IndexDesign(r.schema, r.table, r.keys),) for r in one.references]
        because = reason(one.text, one.look, one.generic)
        if because:
            refusals.append(Refusal(one.name, *because))
        elif own:
            for design in own[0]:
                serving.setdefault(design, []).append(Served(one.name, now, now))
        else:
            refusals.append(Refusal(one.name, tried_in_vain(now, None, 0), certain=False))
    kept = [d for d in serving if not any(d is not other and d.begins(other) for other in serving)]
    for design in serving.keys() - set(kept):
        longer = next(other for other in kept if design.begins(other))
        serving[longer] += serving[design]
    proposals = (Proposal(names[d], d.on, d, tuple(serving[d]), None, UNVERIFIED) for d in kept)
    return Advice(session.name, UNVERIFIED, tuple(proposals), tuple(refusals))
