"""A rollback of an index set: rehearsed on perfkit's own server, or done in a database in use.

A rehearsal measures the arm `rolled-back` beside `before` and `control`. The two get the same row changes without the
indexes, so any difference is what the indexes left behind.

In a database in use, the queries are planned (not executed) before the indexes are dropped, and those that only read
are sent a few times a second for some seconds; afterwards the same again. The indexes are dropped as by
`perfkit indexes rollback`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from perfkit import config as configuration
from perfkit.analysis.results import Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.base.bundle import reading, write_atomically
from perfkit.base.errors import Interrupted, PerfkitError, ServerError, UsageError
from perfkit.base.judgement import Verdict
from perfkit.base.units import count, percent, ratio, seconds, significant, size
from perfkit.config import Arm, Config, Thresholds
from perfkit.explain.capture import named
from perfkit.explain.comparison import PLANNED, diff
from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.plan import Plan
from perfkit.indexes.writes import Write, Writes, design_writes
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.index_builds import Dropped, inspect_set, rollback
from perfkit.postgres.index_sets import IndexSet, IndexStatus, read_set, rollback_script
from perfkit.postgres.servers import External, open_external
from perfkit.release.gate import JudgedQuery, capture_plan, prepare_query, query_texts
from perfkit.runs import selection
from perfkit.runs.arms import Clones
from perfkit.runs.experiment import measure, workbench
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.selection import alone as selection_alone
from perfkit.runs.targets import ComparisonSpec, Text, admitted, index_set

FORMAT = 1
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


class Word(StrEnum):
    """The outcome of one item of a rollback, and of the whole rollback."""

    SAME = "as before"
    DIFFERENT = "not as before"
    OPEN = "not settled"


EXIT: Mapping[Word, int] = {Word.SAME: 0, Word.DIFFERENT: 99, Word.OPEN: 100}


@dataclass(frozen=True, slots=True)
class RollbackItem:
    """One item that was checked, as a sentence; an item without a word is shown but decides nothing."""

    group: str  # one of `_HELD`
    name: str
    word: Word | None
    text: str


@dataclass(frozen=True, slots=True)
class Rollback:
    """A rollback: where, which indexes, and whether everything is as before; `unseen` says what was not checked."""

    where: str
    indexes: tuple[str, ...]  # names of the set
    items: tuple[RollbackItem, ...]
    unseen: tuple[str, ...] = ()

    @property
    def word(self) -> Word:
        """Not as before if any item is not; otherwise not settled if any item is not settled."""
        words = {item.word for item in self.items}
        return next((word for word in (Word.DIFFERENT, Word.OPEN) if word in words), Word.SAME)

    @property
    def sentence(self) -> str:
        """The reasons against "as before", and the number of items that are as before."""
        worst = [item for word in (Word.DIFFERENT, Word.OPEN) for item in self.items if item.word is word]
        against = [item.text.partition(";")[0].rstrip(".") for item in worst]
        more = f"; and {len(against) - _SHOWN} more" if len(against) > _SHOWN else ""
        judged = [item.group for item in self.items if item.word is Word.SAME]
        held = "; ".join(_HELD[group].format(judged.count(group)) for group in dict.fromkeys(judged))
        sentences = [f"{'; '.join(against[:_SHOWN])}{more}"] if against else []
        sentences += [f"{held[0].upper()}{held[1:]}"] if held else []
        return f"{'. '.join(sentences) or 'Nothing was checked'}."

    def as_dict(self) -> dict[str, Any]:
        """Return the content of rollback.json, which the bundle of a rehearsal has too."""
        return {"format": FORMAT, "word": str(self.word), "sentence": self.sentence, **asdict(self)}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Make a rollback from the content of rollback.json. Raises KeyError, TypeError or ValueError if malformed."""
        items = tuple(RollbackItem(**{**i, "word": Word(i["word"]) if i["word"] else None}) for i in content["items"])
        return cls(content["where"], tuple(content["indexes"]), items, tuple(content["unseen"]))


def index_items(states: Sequence[IndexStatus], drops: Sequence[Dropped]) -> Iterator[RollbackItem]:
    """Judge whether an index of a set still exists; `states` are those after the `drops`."""
    dropped = {drop.name: drop for drop in drops if drop.how == "dropped"}
    for state in states:
        name = state.index.name
        if state.state == "impossible":
            yield RollbackItem("indexes", name, Word.OPEN, f"{name}: {state.undroppable or state.problem}.")
        elif state.state == "missing":
            drop = dropped.get(name)
            how = f"dropped in {seconds(drop.seconds)}, {size(drop.bytes)} freed" if drop else "did not exist"
            yield RollbackItem("indexes", name, Word.SAME, f"{name}: {how}.")
        else:
            invalid = " and is invalid" if state.state == "invalid" else ""
            why = f": {state.undroppable}" if state.undroppable else ""
            yield RollbackItem("indexes", name, Word.DIFFERENT, f"{name} still exists{invalid}{why}.")


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
    query, before = planned.query, planned.before
    used = dict.fromkeys(name for node in planned.after.nodes for name in node.texts("Index Name") if name in names)
    if used:
        return RollbackItem("plans", query, Word.DIFFERENT, f"{query}: the plan still uses {', '.join(used)}.")
    if before is None:
        text = f"{diff(planned.with_set, planned.after).sentence}; " if planned.with_set else ""
        text += "the plan uses no index of the set; the plan before them is not known"
        return RollbackItem("plans", query, None, f"{query}: {text}.")
    change = diff(before, planned.after)
    if change.same:
        return RollbackItem("plans", query, Word.SAME, f"{query}: the same plan as before.")
    if planned.unlike:
        text = f"{change.sentence}; {planned.unlike}, which may be the cause"
        return RollbackItem("plans", query, Word.OPEN, f"{query}: {text}.")
    why = _other_causes(planned) or "statistics, data or settings differ"
    return RollbackItem(
        "plans", query, Word.DIFFERENT, f"{query}: {change.sentence}; the plan uses no index of the set: {why}."
    )


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
        yield RollbackItem("sizes", table, Word.SAME if alike else Word.DIFFERENT, f"{table}: {'; '.join(sizes)}.")


def latency_item(comparison: Comparison, blocks: int) -> RollbackItem:
    """Judge by its interval whether a comparison with before shows a slowdown."""
    name = f"{comparison.scenario}: {comparison.item}, {comparison.metric}"
    if comparison.ratio is None:
        return RollbackItem("latency", name, Word.OPEN, f"{name}: too few healthy rounds to compare.")
    value, interval = ratio(comparison.ratio)
    numbers = f"{name}: {value} of before {interval}"
    if comparison.verdict is Verdict.INCONCLUSIVE:
        enough = (
            f"about {count(comparison.blocks_needed)} blocks" if comparison.blocks_needed else "more than 1,000 blocks"
        )
        needed = f"{enough} instead of {blocks} would show whether it is equivalent"
        slower = percent(max(0.0, comparison.ratio.hi - 1))
        if comparison.ratio.hi <= 1 + SLOWER_BY:
            return RollbackItem("latency", name, Word.SAME, f"{numbers}: at most {slower} slower; {needed}.")
        word = Word.OPEN if comparison.metric == "p50" else None
        return RollbackItem(
            "latency", name, word, f"{numbers}: inconclusive, up to {slower} slower is possible; {needed}."
        )
    word, text = {
        Verdict.EQUIVALENT: (Word.SAME, f"equivalent within {percent(comparison.margin)}"),
        Verdict.FASTER: (Word.SAME, "faster"),
        Verdict.SLOWER: (Word.DIFFERENT, "slower"),
    }.get(comparison.verdict, (Word.OPEN, "too few healthy rounds to compare"))
    return RollbackItem("latency", name, word, f"{numbers}: {text}.")


def _near(before: float, after: float, share: float) -> bool:
    return abs(after - before) <= share * before


# A rehearsal: the indexes are built, rows are changed, the indexes are dropped, and every arm is measured.

ARM = "rolled-back"
SHARE, PASSES = 5, 3  # percent of the rows changed in each pass
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RehearsalSpec:
    """What to rehearse: the workload and data of a configuration, and an index set, by default the configuration's."""

    settings: Config
    options: RunSpec
    indexes: Text = ""


def rehearse(spec: RehearsalSpec, folder: Path, permission: Permission, say: Say) -> Bundle:
    """Run a rehearsal into a new folder and return its bundle; the result is in the bundle and in rollback.json.

    Raises PerfkitError as `measure` does; UsageError if the configuration cannot be rehearsed.
    """
    indexes = index_set(spec.settings, spec.indexes, folder)
    options = replace(spec.options, verb=("rollback", *([indexes.path.name] if spec.indexes else [])))
    chosen = Selection(_config(spec.settings, indexes, ()), options)
    if not chosen.on_own_server:
        raise UsageError(f"{spec.settings.title}: its data is not on a server that perfkit starts; expected --db")
    targets = admitted(chosen.config, chosen.arms, permission)
    with workbench(chosen, targets, Audit(None), say) as stage:
        assert isinstance(stage, Clones)
        base = stage.base(chosen.scale)
        assert base
        writes = design_writes(base.server, base.name, indexes.indexes)
        chosen = Selection(_config(spec.settings, indexes, tuple(_written(writes, folder))), options)
        bundle = measure(chosen, folder, say, targets, stage)
        result = _proof(bundle, stage, indexes, writes)
    document = json.dumps(result.as_dict(), indent=1, ensure_ascii=False)
    bundle.update(rollback=json.loads(document))
    write_atomically(folder / FILE, f"{document}\n")
    return bundle


def _config(settings: Config, wanted: IndexSet, files: tuple[Path, ...]) -> Config:
    """Make a configuration of three arms that differ only in the indexes; every arm runs the files of row changes."""
    before = settings.baseline()
    before = before.model_copy(update={"meanwhile": (*before.meanwhile, *files)})
    title = f"{len(wanted.indexes)} indexes built, used, and dropped again"
    gone = {"name": ARM, "role": "after", "title": title, "indexes": wanted.path, "rolled_back": True}
    control = {"name": "control", "role": "control", "title": "the same as before: what chance alone shows"}
    arms = (before, *(before.model_copy(update=change) for change in (control, gone)))
    levels = [level.model_copy(update={"arms": ()}) for level in settings.scenario if not level.search]
    if not levels:
        raise UsageError(f"{settings.title}: every scenario searches for a rate; expected a load level to compare")
    named = f"Rollback of {wanted.path.stem}: {settings.title}"
    limits = Thresholds(error_rate=settings.thresholds.error_rate)  # nothing is shipped: no latency is too long
    changed = {"title": named, "arm": arms, "scenario": tuple(levels), "thresholds": limits, "need": "none"}
    return settings.model_copy(update=changed)


def _written(writes: Writes, folder: Path) -> Iterator[Path]:
    """Write files that change rows, if any can be changed, and yield their paths.

    Each file is one transaction, so that a later one finds the space that an earlier one left.
    """
    texts = [writes.prepare] if writes.prepare else []
    updates = [write for write in writes.writes if write.kind == "update"]
    for first in range(0, PASSES * len(updates), max(1, len(updates))):  # every pass changes other rows
        texts.append("".join(round_trip(write, seed) for seed, write in enumerate(updates, first)))
    for number, text in enumerate(texts, 1):
        (folder / "writes").mkdir(exist_ok=True)
        path = folder / "writes" / f"{number}.sql"
        write_atomically(path, text)
        yield path


def round_trip(write: Write, seed: int) -> str:
    """Return SQL that swaps a column's values between rows and back, so that the data stay the same.

    Each update makes a new version of the row, which every index on the column must record.
    """
    table, column = write.quoted, write.quoted_column
    sample = f"SELECT ctid AS place, {column} AS own FROM {table} TABLESAMPLE BERNOULLI ({SHARE}) REPEATABLE ({seed})"
    pairs = f"SELECT place, own, lead(own) OVER (ORDER BY place) AS other FROM ({sample}) s"
    return (
        f"CREATE TEMP TABLE perfkit_kept AS SELECT ctid AS place, {column} AS own FROM {table} LIMIT 0;\n"
        f"WITH changed AS (UPDATE {table} t SET {column} = p.other FROM ({pairs}) p WHERE t.ctid = p.place "
        "AND p.other IS NOT NULL RETURNING t.ctid, p.own) INSERT INTO perfkit_kept SELECT * FROM changed;\n"
        f"UPDATE {table} t SET {column} = k.own FROM perfkit_kept k WHERE t.ctid = k.place;\n"
        "DROP TABLE perfkit_kept;\n"
    )


def _proof(bundle: Bundle, stage: Clones, wanted: IndexSet, writes: Writes) -> Rollback:
    """Judge a rehearsal by the catalogue, the plans and the rounds."""
    before, after = (_database(stage, name) for name in (stage.config.baseline().name, ARM))
    states, analysis = inspect_set(after.server, after.name, wanted), analyse(bundle)
    names = tuple(index.name for index in wanted.indexes)
    then, now = (databases.sizes(database.server, database.name, exact=False) for database in (before, after))
    blocks = len(bundle.run.blocks)
    items = [
        *index_items(states, stage.dropped[ARM]),
        *(plan_item(planned, names) for planned in _plans(bundle, stage.config.baseline().name)),
        *size_items(then, now),
        *(latency_item(c, blocks) for c in analysis.comparisons if c.after == ARM),
    ]
    return Rollback(f"{after.server.name}, rehearsed", names, tuple(items), tuple(_unseen(writes, items)))


def _database(stage: Clones, name: str) -> Database:
    arm: Arm = next(arm for arm in stage.config.arm if arm.name == name)
    return stage.prepare(arm)[0]


def _plans(bundle: Bundle, before: str) -> Iterator[RollbackPlan]:
    for query in bundle.run.arms[ARM].plans or ():
        now, then = (bundle.plan(arm, query) for arm in (ARM, before))
        if now and then:
            yield RollbackPlan(query, now.plan, now.facts, then.plan, then.facts)


def _unseen(writes: Writes, items: Sequence[RollbackItem]) -> Iterator[str]:
    """Say what was done while the indexes existed, and what was not checked."""
    changed = [f"{write.column} of {write.table}" for write in writes.writes if write.kind == "update"]
    inserted = "rows inserted, then " if writes.prepare else ""
    if changed:
        changes = f"{inserted}{PASSES} times {SHARE} % of the rows changed and changed back in {', '.join(changed)}"
        yield f"While the indexes existed: {changes}. Before and control had the same changes without the indexes."
    elif inserted:
        yield "While the indexes existed, rows were inserted but not changed."
    else:
        yield "No row was changed while the indexes existed, so the traces of such changes were not checked."
    yield from (f"Not changed: {line}." for line in writes.lacking)
    if not any(item.group == "plans" for item in items):
        yield "No plan was checked: the configuration has no [[query]]."


# A rollback in a database in use: check, drop, check again.

RATE, SECONDS = 2.0, 5.0  # executions of a query per second, and the duration of a round
USERS = 4  # most queries in flight
Medians = Mapping[str, str]  # by query, with unit
WITH, WITHOUT = "with", "without"


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
        items = [*index_items(states, drops), *(plan_item(planned, names) for planned in self._planned())]
        self._write(folder, Rollback(self.external.name, names, tuple(items), tuple(self._unseen(missing))))
        after = self._measured(folder, WITHOUT, say, missing)
        items += self._latencies(before, after)
        result = Rollback(self.external.name, names, tuple(items), tuple(self._unseen(missing)))
        self._write(folder, result)
        return result

    def _write(self, folder: Path, result: Rollback) -> None:
        write_atomically(folder / FILE, json.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n")

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
                yield RollbackItem("latency", query.name, None, f"{text}.")

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
            medians.setdefault(level.item, f"{significant(level.p50.value)} ms")
    return medians
