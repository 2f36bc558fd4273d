"""A rollback of an index set in a database in use.

The queries are planned (not executed) before the indexes are dropped, and those that only read are sent a few times a
second for some seconds; afterwards the same again. The indexes are dropped as by `perfkit indexes rollback`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from perfkit import config as configuration
from perfkit.analysis.run_analysis import analyse
from perfkit.base.bundle import reading
from perfkit.base.errors import Interrupted, PerfkitError, PlanError, ServerError, UsageError
from perfkit.base.units import millis
from perfkit.explain.capture import Capture, ExplainSpec, Parameters, capture, effects, named, require_harmless, single
from perfkit.explain.comparison import PLANNED, typical_parameters
from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.plan import Plan
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.index_builds import IndexOutcome, inspect_set, rollback
from perfkit.postgres.index_sets import IndexSet, IndexStatus, read_set, rollback_script
from perfkit.postgres.servers import External, open_external
from perfkit.release.rollback import Rollback, RollbackItem, RollbackPlan, Say, index_items, plan_item
from perfkit.runs import selection
from perfkit.runs.experiment import measure
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec
from perfkit.runs.selection import alone as selection_alone
from perfkit.runs.targets import ComparisonSpec, Text, admitted, is_file, sql_of

RATE, SECONDS = 2.0, 5.0  # executions of a query per second, and the duration of a round
USERS = 4  # most queries in flight
Medians = Mapping[str, str]  # by query, with unit
WITH, WITHOUT = "with", "without"


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query that a rollback checks; `known` is its name in the run from before the release."""

    name: str
    sql: str
    parameters: Parameters
    known: str = ""
    plan: Plan | None = None  # with the indexes
    unsent: str = ""  # why the query is planned but not sent

    @property
    def generic(self) -> bool:
        """Whether the query is planned without values, because none are known."""
        return self.parameters is None and bool(named(self.sql))


def capture_plan(database: Database, query: JudgedQuery) -> Capture:
    """Return a query's plan without executing the query. Raises PlanError."""
    try:
        return capture(database.session, query.sql, query.parameters, ExplainSpec(analyze=False, generic=query.generic))
    except PlanError as error:
        raise PlanError(f"{query.name}: {error}") from None


def query_texts(queries: Sequence[Text], against: Bundle | None) -> Iterator[tuple[str, str, str]]:
    """Yield name, SQL and name in the run `against` of each query; without queries, of those of the run."""
    known = against.run.queries if against else {}
    names = {_one_line(query.sql): name for name, query in known.items()}
    for position, text in enumerate(queries, 1):
        sql = sql_of(text)
        name = names.get(_one_line(sql), "")
        yield name or f"query {position}{f' ({Path(text).stem})' if is_file(text) else ''}", sql, name
    if not queries:
        yield from ((name, query.sql, name) for name, query in known.items())


def prepare_query(
    database: Database, name: str, sql: str, known: str, rows: Sequence[Mapping[str, object]]
) -> JudgedQuery:
    """Plan a query with typical parameters, and find out whether it may be sent. Raises PlanError."""
    try:
        text, placeholders = single(sql), set(named(sql))
        usable = bool(rows) and bool(placeholders) and placeholders <= rows[0].keys()
        query = JudgedQuery(name, sql, typical_parameters(database.session, text, rows) if usable else None, known)
        query = replace(query, plan=capture_plan(database, query).plan)
        if query.generic:
            return replace(query, unsent="it needs values: --parameters")
        query_effects = effects(database.session, sql, query.parameters)
    except PlanError as error:
        raise PlanError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    try:
        require_harmless(query_effects, writes_allowed=False, volatile_allowed=(), where=name)
    except PerfkitError:
        return replace(query, unsent="it writes, locks rows or calls a volatile function")
    return query


def _one_line(sql: str) -> str:
    return " ".join(sql.split()).rstrip("; ")


@dataclass(frozen=True, slots=True)
class RollbackSpec:
    """What to roll back, and what to check; `against` is the folder of a run from before the release."""

    db: str
    indexes: Path
    query: Sequence[Text] = ()
    parameters: Path | None = None
    against: Path | None = None
    rounds: int = 3  # before, and again after; 0 sends no query
    tls: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rounds <= 100:
            raise UsageError(f"rounds = {self.rounds}; expected 0 to 100")


@dataclass(frozen=True, slots=True)
class PreparedRollback:
    """A rollback that is checked and connected; nothing is dropped yet."""

    spec: RollbackSpec
    external: External
    permission: Permission
    indexes: IndexSet
    states: Sequence[IndexStatus]
    queries: Sequence[JudgedQuery]
    against: Bundle | None

    @property
    def database(self) -> Database:
        """The database."""
        return Database(self.external, self.external.address.dbname)

    @property
    def sent(self) -> list[JudgedQuery]:
        """The queries that the rounds send."""
        return [query for query in self.queries if not query.unsent] if self.spec.rounds else []

    def script(self) -> str:
        """Return the SQL that would run; comments say what would be checked before and after it."""
        lines = [f"-- planned before and after, not executed: {query.name}" for query in self.queries]
        each = f"{self.spec.rounds} rounds of {SECONDS:g} s, {RATE:g} a second, read-only"
        lines += [f"-- sent before and after, {each}: {query.name}" for query in self.sent]
        lines += [f"-- not sent: {query.name}: {query.unsent}" for query in self.queries if query.unsent]
        return rollback_script(self.indexes, self.states) + "".join(f"{' '.join(line.split())}\n" for line in lines)

    def run(self, folder: Path, say: Say) -> Rollback:
        """Check, drop and check again, and write the result into a folder; an interrupted rollback can be run again.

        Rounds that fail do not stop the rollback: a system in trouble may be the reason for it. Raises ServerError or
        Interrupted, with the indexes that were dropped and those that are left; PlanError.
        """
        missing: list[str] = []
        before = self._measured(folder, WITH, say, missing)
        drops = self._drop(say)
        say("checking the result")
        states = inspect_set(self.external, self.database.name, self.indexes)
        names = tuple(index.name for index in self.indexes.indexes)
        items = (*index_items(states, drops), *(plan_item(planned, names) for planned in self._planned()))
        unseen = tuple(self._unseen(missing))
        Rollback(where=self.external.name, indexes=names, items=items, unseen=unseen).write(folder)
        after = self._measured(folder, WITHOUT, say, missing)
        items, unseen = (*items, *self._latencies(before, after)), tuple(self._unseen(missing))
        result = Rollback(where=self.external.name, indexes=names, items=items, unseen=unseen)
        result.write(folder)
        return result

    def _drop(self, say: Say) -> list[IndexOutcome]:
        try:
            return rollback(self.external, self.database.name, self.indexes, say)
        except (Interrupted, ServerError) as error:
            left = ""
            with suppress(PerfkitError, KeyboardInterrupt):
                states = inspect_set(self.external, self.database.name, self.indexes)
                mark = {"invalid": " (invalid)"}
                names = [s.index.name + mark.get(s.state, "") for s in states if s.state != "missing"]
                left = f"; left: {', '.join(names) or 'none'}"
            raise type(error)(f"{error}{left}") from None

    def _planned(self) -> Iterator[RollbackPlan]:
        """Yield every query's plan now, with its plan from before the release."""
        before = _before(self.against) if self.against else ""
        no_plan: tuple[Plan | None, PlanFacts] = (None, NO_FACTS)
        for query in self.queries:
            now = capture_plan(self.database, query)
            then, facts = no_plan
            if self.against and query.known and (stored := self.against.plan(before, query.known)):
                then, facts = stored.plan, stored.facts
            unlike = "planned without values, but before with values (--parameters)" if query.generic else ""
            yield RollbackPlan(query.name, now.plan, now.facts, then, facts, query.plan, unlike)

    def _measured(self, folder: Path, name: str, say: Say, missing: list[str]) -> Medians:
        """Measure the queries that only read; if that fails, add the reason to `missing`."""
        try:
            return self._rounds(folder, name, say) if self.sent else {}
        except Interrupted:
            raise
        except PerfkitError as error:
            missing.append(f"Not measured {name} the indexes: {error}.")
            return {}

    def _rounds(self, folder: Path, name: str, say: Say) -> Medians:
        """Return medians by query, measured through the guards for load on a server that perfkit did not start."""
        spec, texts = self.spec, [query.sql for query in self.sent]
        values = spec.parameters if any(named(text) for text in texts) else None
        load = ComparisonSpec(
            spec.db,
            texts,
            parameters=values,
            way="in-place",
            users=USERS,
            tls=spec.tls,
            bare=True,
            rate=RATE * len(texts),
            seconds=SECONDS,
        )
        load_folder = folder / f"{name}-load"
        load_folder.mkdir()
        settings = configuration.load(load.write(load_folder))
        chosen = selection_alone(
            settings, RunSpec(profile="quick", blocks=spec.rounds, config=str(load_folder / "perfkit.toml"))
        )
        targets = admitted(chosen.config, chosen.arms, self.permission)
        run = measure(chosen, folder / name, lambda text: say(text and f"{name} the indexes, {text}"), targets)
        medians = _medians(run)
        return {
            query.name: medians.get(sent.name, "") for query, sent in zip(self.sent, chosen.config.query, strict=True)
        }

    def _latencies(self, before: Medians, after: Medians) -> Iterator[RollbackItem]:
        """Yield each query's medians with and without the indexes, and from before the release; no verdict."""
        then = _medians(self.against) if self.against and before and after else {}
        for query in self.sent:
            if (median := before.get(query.name)) and (now := after.get(query.name)):
                text = f"{query.name}: median {median} with the indexes, {now} without"
                if query.known in then:
                    text += f"; {then[query.known]} before the release, on another machine or under other load"
                yield RollbackItem(group="latency", name=query.name, outcome=None, text=f"{text}.")

    def _unseen(self, missing: Sequence[str]) -> Iterator[str]:
        yield from missing
        if not self.queries:
            yield "No plan was checked: expected --query, or --against with a run from before the release."
        elif not self.against:
            yield "The plans from before the indexes are not known: expected --against with a run from that time."
        yield from (f"Not sent: {query.name}: {query.unsent}." for query in self.queries if query.unsent)
        if self.sent:
            each = f"{self.spec.rounds} rounds of {SECONDS:g} s, {RATE:g} a second"
            yield f"Medians are of {each}, one after the other, under whatever other load: shown, not judged."
        else:
            yield "No query was sent, so no latency is known; a rehearsal (without --db) measures latency."


def prepare(spec: RollbackSpec, permission: Permission, say: Say) -> PreparedRollback:
    """Connect, and find the state of the indexes and queries; change nothing.

    Raises TargetRefused, ServerError, UsageError or PlanError.
    """
    indexes = read_set(spec.indexes)
    against = Bundle.open(spec.against) if spec.against else None
    say("connecting")
    external = open_external(resolve(spec.db, spec.tls), permission, Audit(None))
    permission = replace(permission, confirm=(*permission.confirm, external.name))  # asked once
    states = inspect_set(external, external.address.dbname, indexes)
    database = Database(external, external.address.dbname)
    rows = selection.rows("parameters", spec.parameters, database, "1")[:PLANNED] if spec.parameters else []
    with reading(spec.against or Path()):
        texts = list(query_texts(spec.query, against))
        _ = _before(against) if against else ""
    queries = [prepare_query(database, *text, rows) for text in texts]
    return PreparedRollback(spec, external, permission, indexes, states, queries, against)


def _before(run: Bundle) -> str:
    return next(arm for arm, role in run.run.roles.items() if role == "before")


def _medians(run: Bundle) -> Medians:
    """Return each query's median on the arm `before` in the first load level that sent it."""
    medians: dict[str, str] = {}
    for level in analyse(run).levels:
        if level.arm == _before(run) and level.p50:
            medians.setdefault(level.item, millis(level.p50.value))
    return medians
