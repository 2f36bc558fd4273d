"""A rollback of an index set: what counts as before, and a rollback done in a database in use.

In a database in use, the queries are planned (not executed) before the indexes are dropped, and those that only read
are sent a few times a second for some seconds; afterwards the same again. The indexes are dropped as by
`perfkit indexes rollback`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer

from perfkit import config as configuration
from perfkit.analysis.results import Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.base.bundle import reading, write_atomically
from perfkit.base.errors import Interrupted, PerfkitError, PlanError, ServerError, UsageError
from perfkit.base.judgement import Judgement, Outcome, Verdict, worst
from perfkit.base.units import count, millis, percent, ratio, seconds, size
from perfkit.explain.capture import Capture, ExplainSpec, Parameters, capture, effects, named, require_harmless, single
from perfkit.explain.comparison import PLANNED, diff, typical_parameters
from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.plan import Plan
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.index_builds import Dropped, inspect_set, rollback
from perfkit.postgres.index_sets import IndexSet, IndexStatus, read_set, rollback_script
from perfkit.postgres.servers import External, open_external
from perfkit.release.decision import json_text
from perfkit.runs import selection
from perfkit.runs.experiment import measure
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec
from perfkit.runs.selection import alone as selection_alone
from perfkit.runs.targets import ComparisonSpec, Text, admitted, is_file, sql_of

FILE = "rollback.json"
SLOWER_BY = 0.25  # an inconclusive median counts as not slower where its interval excludes this much
_SHOWN = 3  # reasons in the sentence
_HELD = {
    "indexes": "indexes dropped: {}",
    "plans": "plans as before: {}",
    "sizes": "tables as large as before, with their remaining indexes: {}",
    "latency": "comparisons that are not slower: {}",
}
LARGER_BY = 0.1  # share by which a table or its indexes may have grown
_PAGES = 8 * 8192  # bytes by which even a small table may have grown


#: What an outcome is called in a rollback, also in its file.
WORDS = {Outcome.HOLDS: "as before", Outcome.BROKEN: "not as before", Outcome.UNPROVEN: "not settled"}


def _outcome_of(word: object) -> object:
    return next((outcome for outcome, text in WORDS.items() if text == word), word)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackItem(Judgement):
    """One item that was checked, as a sentence; an item without an outcome is shown but decides nothing."""

    group: str  # one of `_HELD`
    outcome: Annotated[
        Outcome | None,
        BeforeValidator(_outcome_of),
        PlainSerializer(lambda outcome: WORDS.get(outcome)),
        Field(alias="word"),
    ]

    @property
    def word(self) -> str:
        """The outcome in words."""
        return WORDS[self.outcome] if self.outcome else "not judged"


class Rollback(BaseModel, frozen=True):
    """A rollback as rollback.json has it: where, which indexes, and whether everything is as before.

    `unseen` says what was not checked.
    """

    format: Literal[1] = 1
    where: str
    indexes: tuple[str, ...]  # names of the set
    items: tuple[RollbackItem, ...]
    unseen: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Broken if any item is not as before; otherwise unproven if any item is not settled."""
        return worst([Outcome.HOLDS, *(item.outcome for item in self.items)])

    @property
    def word(self) -> str:
        """The outcome of the whole rollback in words."""
        return WORDS[self.outcome]

    @property
    def sentence(self) -> str:
        """The reasons against "as before", and the number of items that are as before."""
        outcomes = (Outcome.BROKEN, Outcome.UNPROVEN)
        against = [i.text.partition(";")[0].rstrip(".") for bad in outcomes for i in self.items if i.outcome is bad]
        more = f"; and {len(against) - _SHOWN} more" if len(against) > _SHOWN else ""
        groups = Counter(item.group for item in self.items if item.outcome is Outcome.HOLDS)
        held = "; ".join(_HELD[group].format(times) for group, times in groups.items())
        sentences = [f"{'; '.join(against[:_SHOWN])}{more}"] if against else []
        sentences += [f"{held[0].upper()}{held[1:]}"] if held else []
        return f"{'. '.join(sentences) or 'Nothing was checked'}."

    def content(self) -> dict[str, object]:
        """Return the content of rollback.json, which the bundle of a rehearsal has too."""
        said = {"word": self.word, "sentence": self.sentence}
        return {"format": self.format, **said, **self.model_dump(mode="json", by_alias=True)}

    def write(self, folder: Path) -> None:
        """Write rollback.json into a folder. Raises BundleError."""
        write_atomically(folder / FILE, json_text(self.content()))


def index_items(states: Sequence[IndexStatus], drops: Sequence[Dropped]) -> Iterator[RollbackItem]:
    """Judge whether an index of a set still exists; `states` are those after the `drops`."""
    dropped = {drop.name: drop for drop in drops if drop.how == "dropped"}
    for state in states:
        name, outcome = state.index.name, Outcome.BROKEN
        text = f"{name} still exists{' and is invalid' if state.state == 'invalid' else ''}"
        text += f": {state.undroppable}" if state.undroppable else ""
        if state.state == "impossible":
            outcome, text = Outcome.UNPROVEN, f"{name}: {state.undroppable or state.problem}"
        elif state.state == "missing":
            drop = dropped.get(name)
            how = f"dropped in {seconds(drop.seconds)}, {size(drop.bytes)} freed" if drop else "did not exist"
            outcome, text = Outcome.HOLDS, f"{name}: {how}"
        yield RollbackItem(group="indexes", name=name, outcome=outcome, text=f"{text}.")


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """A query's plan without the indexes, and, if known, its plan from before they were built."""

    query: str
    after: Plan
    facts: PlanFacts = NO_FACTS
    before: Plan | None = None
    before_facts: PlanFacts = NO_FACTS
    with_set: Plan | None = None  # with the indexes
    unlike: str = ""  # why the two plans were not made in the same way


def plan_item(planned: RollbackPlan, names: Collection[str]) -> RollbackItem:
    """Judge whether a plan is the same as before; `names` are the set's indexes, which it must not use."""
    outcome, text = _judged_plan(planned, names)
    return RollbackItem(group="plans", name=planned.query, outcome=outcome, text=f"{planned.query}: {text}.")


def _judged_plan(planned: RollbackPlan, names: Collection[str]) -> tuple[Outcome | None, str]:
    used = dict.fromkeys(node.index for node in planned.after.nodes if node.index in names)
    if used:
        return Outcome.BROKEN, f"the plan still uses {', '.join(used)}"
    if planned.before is None:
        text = f"{diff(planned.with_set, planned.after).sentence}; " if planned.with_set else ""
        return None, f"{text}the plan uses no index of the set; the plan before them is not known"
    change = diff(planned.before, planned.after)
    if change.same:
        return Outcome.HOLDS, "the same plan as before"
    if planned.unlike:
        return Outcome.UNPROVEN, f"{change.sentence}; {planned.unlike}, which may be the cause"
    why = _other_causes(planned) or "statistics, data or settings differ"
    return Outcome.BROKEN, f"{change.sentence}; the plan uses no index of the set: {why}"


def _other_causes(planned: RollbackPlan) -> str:
    """Return the changes of the plan's tables since, by the catalogue."""
    changes = []
    for after in planned.facts.tables:
        if (before := planned.before_facts.named(after.name, after.schema)) is None:
            continue
        if not _near(before.rows, after.rows, 0.01) or not _near(before.pages, after.pages, 0.01):
            then, now = (f"{count(t.rows)} rows in {count(t.pages)} pages" for t in (before, after))
            changes.append(f"the statistics of {after.name} say {now}, before {then}")
        elif before.analyzed and [c.distinct for c in before.columns] != [c.distinct for c in after.columns]:
            changes.append(f"{after.name} was analysed again, with other counts of distinct values")
        names, names_before = ({index.name: None for index in t.indexes} for t in (after, before))
        changes += [f"{name} is new on {after.name}" for name in names if name not in names_before]
        changes += [f"{name} is no longer on {after.name}" for name in names_before if name not in names]
    return "; ".join(changes)


Sizes = Mapping[str, Mapping[str, int]]  # by table: bytes of it, index_bytes of its indexes


def size_items(before: Sizes, after: Sizes) -> Iterator[RollbackItem]:
    """Judge whether tables and their remaining indexes are as large as before, within a tenth or 64 kB."""
    for table in dict.fromkeys([*before, *after]):
        then, now = before.get(table, {}), after.get(table, {})
        sizes, alike = [], True
        for key, what in (("bytes", "the table"), ("index_bytes", "its indexes")):
            was, is_now = then.get(key, 0), now.get(key, 0)
            alike &= _near(was, is_now, LARGER_BY) or abs(is_now - was) <= _PAGES
            sizes.append(f"{what} {size(is_now)}" + (f", before {size(was)}" if was != is_now else " as before"))
        if not alike and now.get("index_bytes", 0) > then.get("index_bytes", 0):
            sizes.append("row changes bloated the indexes; REINDEX TABLE CONCURRENTLY removes that")
        outcome = Outcome.HOLDS if alike else Outcome.BROKEN
        yield RollbackItem(group="sizes", name=table, outcome=outcome, text=f"{table}: {'; '.join(sizes)}.")


def latency_item(comparison: Comparison, blocks: int) -> RollbackItem:
    """Judge by its interval whether a comparison with before shows a slowdown."""
    name = f"{comparison.scenario}: {comparison.item}, {comparison.metric}"
    outcome, text = _judged_latency(comparison, blocks)
    return RollbackItem(group="latency", name=name, outcome=outcome, text=f"{name}: {text}.")


def _judged_latency(comparison: Comparison, blocks: int) -> tuple[Outcome | None, str]:
    few = "too few healthy rounds to compare"
    if comparison.ratio is None:
        return Outcome.UNPROVEN, few
    value, interval = ratio(comparison.ratio)
    numbers, verdict = f"{value} of before {interval}", comparison.verdict
    if verdict is Verdict.INCONCLUSIVE:
        needed = f"about {count(comparison.blocks_needed)}" if comparison.blocks_needed else "more than 1,000"
        needs = f"{needed} blocks instead of {blocks} would show whether it is equivalent"
        slower = percent(max(0.0, comparison.ratio.hi - 1))
        if comparison.ratio.hi <= 1 + SLOWER_BY:
            return Outcome.HOLDS, f"{numbers}: at most {slower} slower; {needs}"
        outcome = Outcome.UNPROVEN if comparison.metric == "p50" else None
        return outcome, f"{numbers}: inconclusive, up to {slower} slower is possible; {needs}"
    within = f" within {percent(comparison.margin)}" if verdict is Verdict.EQUIVALENT else ""
    outcome = _OF_VERDICT.get(verdict, Outcome.UNPROVEN)
    return outcome, f"{numbers}: {few if verdict is Verdict.INVALID else f'{verdict}{within}'}"


_OF_VERDICT = {
    Verdict.EQUIVALENT: Outcome.HOLDS,
    Verdict.FASTER: Outcome.HOLDS,
    Verdict.SLOWER: Outcome.BROKEN,
}


def _near(before: float, after: float, share: float) -> bool:
    return abs(after - before) <= share * before


# A rollback in a database in use: check, drop, check again.

RATE, SECONDS = 2.0, 5.0  # executions of a query per second, and the duration of a round
USERS = 4  # most queries in flight
Medians = Mapping[str, str]  # by query, with unit
WITH, WITHOUT = "with", "without"
Say = Callable[[str], None]


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

    def _drop(self, say: Say) -> list[Dropped]:
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
