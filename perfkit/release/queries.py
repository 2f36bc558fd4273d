"""The queries that a rollback looks at: their text, their values, and whether they may be sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perfkit.bundle import Bundle
from perfkit.comparison import Text, is_file, sql_of
from perfkit.errors import PerfkitError, PlanError
from perfkit.explain.capture import Capture, ExplainSpec, Parameters, capture, named, single, typical_parameters
from perfkit.explain.facts import NO_FACTS, PlanFacts, read_facts
from perfkit.explain.plan import Plan, read_plan
from perfkit.explain.safety import effects, require_harmless
from perfkit.postgres.place import Database


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query that is looked at; `known` is its name in the run from before the release."""

    name: str
    sql: str
    parameters: Parameters
    known: str = ""
    plan: Plan | None = None  # while the indexes are there
    unsent: str = ""  # why it is not sent, only planned

    @property
    def generic(self) -> bool:
        """Whether it is planned for any values, as there are none."""
        return self.parameters is None and bool(named(self.sql))


def captured(place: Database, query: JudgedQuery) -> Capture:
    """A query's plan, which executes nothing. Raises PlanError."""
    try:
        return capture(place.session, query.sql, query.parameters, ExplainSpec(analyze=False, generic=query.generic))
    except PlanError as error:
        raise PlanError(f"{query.name}: {error}") from None


def planned_in(run: Bundle, arm: str, query: str) -> tuple[Plan, PlanFacts]:
    """A query's plan in an arm of a run, and what the catalogue said of its tables. Raises PlanError, BundleError."""
    tables = run.beside_plan(arm, query).get("tables")
    return read_plan(run.plan(arm, query)), read_facts(tables) if tables else NO_FACTS


def asked_for(given: Sequence[Text], against: Bundle | None) -> Iterator[tuple[str, str, str]]:
    """Name and text of each query, and its name in the run; without any, the run's own."""
    known: Mapping[str, Any] = against.run["queries"] if against else {}
    texts = {_plain(own["sql"]): name for name, own in known.items()}
    for number, own in enumerate(given, 1):
        sql = sql_of(own)
        name = texts.get(_plain(sql), "")
        yield name or f"query {number}{f' ({Path(own).stem})' if is_file(own) else ''}", sql, name
    if not given:
        yield from ((name, run["sql"], name) for name, run in known.items())


def looked_at(place: Database, name: str, sql: str, known: str, rows: Sequence[Mapping[str, Any]]) -> JudgedQuery:
    """With values that give most rows their plan, and why it is not sent, where that is so. Raises PlanError."""
    try:
        text, wants = single(sql), set(named(sql))
        fits = bool(rows) and wants <= rows[0].keys()
        query = JudgedQuery(name, sql, typical_parameters(place.session, text, rows) if fits and wants else None, known)
        query = replace(query, plan=captured(place, query).plan)
        if query.generic:
            return replace(query, unsent="it needs values: --parameters")
        found = effects(place.session, sql, query.parameters)
    except PlanError as error:
        raise PlanError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    try:
        require_harmless(found, writes_allowed=False, volatile_allowed=(), where=name)
    except PerfkitError:
        return replace(query, unsent="it writes, locks rows or calls a volatile function")
    return query


def _plain(sql: str) -> str:
    return " ".join(sql.split()).rstrip("; ")
