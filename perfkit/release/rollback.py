"""A rollback: planned, rehearsed on a copy, and done in a database in use.

The arm `rolled-back` is measured beside `before` and `control`, which get the same changes of rows without the
indexes: what differs is what the indexes left behind.

Before anything is dropped the queries are planned, never executed for that, and those that only read are sent a few
times a second for some seconds; afterwards the same again. The indexes are dropped as `perfkit indexes rollback`
does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Any, Self

from perfkit import config as configuration
from perfkit.analysis.results import Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.base.bundle import Bundle, reading, write_atomically
from perfkit.base.errors import Interrupted, PerfkitError, ServerError, UsageError
from perfkit.base.process import alone
from perfkit.base.stats import Verdict
from perfkit.base.units import count, percent, ratio, seconds, significant, size
from perfkit.config import Arm, Config, Thresholds
from perfkit.explain.capture import named
from perfkit.explain.comparison import PLANNED, diff
from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.plan import Plan
from perfkit.indexes.designs import Write, Writes, design_writes
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.index_builds import Dropped, inspect_set, rollback
from perfkit.postgres.index_sets import IndexSet, IndexStatus, read_set, rollback_script
from perfkit.postgres.servers import External, open_external
from perfkit.release.gate import JudgedQuery, asked_for, captured, looked_at, planned_in
from perfkit.runs import selection
from perfkit.runs.arms import Clones
from perfkit.runs.experiment import measure, open_workbench
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.selection import alone as selection_alone
from perfkit.runs.targets import ComparisonSpec, Text, admitted, index_set

FORMAT = 1
FILE = "rollback.json"
SLOWER_BY = 0.25  # an inconclusive median counts as not slower where its interval excludes this much
_SAID = 3  # reasons in the sentence
_HELD = {
    "indexes": "indexes of the set that are gone: {}",
    "plans": "plans as before: {}",
    "sizes": "tables as large as before, with the indexes that they still have: {}",
    "latency": "comparisons that are not slower: {}",
}
LARGER_BY = 0.1  # what a table or its indexes may have grown by
_PAGES = 8 * 8192  # which no table is too small for


class Word(StrEnum):
    """What is said of one thing that was looked at, and of all of them."""

    SAME = "as before"
    DIFFERENT = "not as before"
    OPEN = "not settled"


EXIT: Mapping[Word, int] = {Word.SAME: 0, Word.DIFFERENT: 99, Word.OPEN: 100}


@dataclass(frozen=True, slots=True)
class RollbackItem:
    """One thing that was looked at, in a sentence; without a word it is shown and decides nothing."""

    group: str  # one of `_HELD`
    name: str
    word: Word | None
    text: str


@dataclass(frozen=True, slots=True)
class Rollback:
    """What was taken back, where, and whether all is as before; `unseen` is what was not looked at, in sentences."""

    where: str
    indexes: tuple[str, ...]  # names of the set
    items: tuple[RollbackItem, ...]
    unseen: tuple[str, ...] = ()

    @property
    def word(self) -> Word:
        """Not as before where one thing is not; not settled where one thing is not."""
        words = {item.word for item in self.items}
        return next((word for word in (Word.DIFFERENT, Word.OPEN) if word in words), Word.SAME)

    @property
    def sentence(self) -> str:
        """What is in the way of it, and what held."""
        worst = [item for word in (Word.DIFFERENT, Word.OPEN) for item in self.items if item.word is word]
        against = [item.text.partition(";")[0].rstrip(".") for item in worst]
        more = f"; and {len(against) - _SAID} more" if len(against) > _SAID else ""
        judged = [item.group for item in self.items if item.word is Word.SAME]
        held = "; ".join(_HELD[group].format(judged.count(group)) for group in dict.fromkeys(judged))
        said = [f"{'; '.join(against[:_SAID])}{more}"] if against else []
        said += [f"{held[0].upper()}{held[1:]}"] if held else []
        return f"{'. '.join(said) or 'Nothing was looked at'}."

    def as_dict(self) -> dict[str, Any]:
        """For rollback.json and the bundle."""
        return {"format": FORMAT, "word": str(self.word), "sentence": self.sentence, **asdict(self)}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """From what `as_dict` gave. Raises KeyError, TypeError, ValueError for what is none."""
        items = tuple(RollbackItem(**{**i, "word": Word(i["word"]) if i["word"] else None}) for i in said["items"])
        return cls(said["where"], tuple(said["indexes"]), items, tuple(said["unseen"]))


def index_items(found: Sequence[IndexStatus], gone: Sequence[Dropped]) -> Iterator[RollbackItem]:
    """Whether one of a set's indexes is left, as `inspect_set` found them afterwards; `gone` is what was done."""
    dropped = {own.name: own for own in gone if own.how == "dropped"}
    for own in found:
        name = own.index.name
        if own.state == "impossible":
            yield RollbackItem("indexes", name, Word.OPEN, f"{name}: {own.undroppable or own.problem}.")
        elif own.state == "missing":
            done = dropped.get(name)
            how = f"dropped in {seconds(done.seconds)}, {size(done.bytes)} freed" if done else "was not there"
            yield RollbackItem("indexes", name, Word.SAME, f"{name}: {how}.")
        else:
            valid = " and invalid" if own.state == "invalid" else ""
            why = f": {own.undroppable}" if own.undroppable else ""
            yield RollbackItem("indexes", name, Word.DIFFERENT, f"{name} is left{valid}{why}.")


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """A query's plan once the indexes are gone, and the one before they were built where that is known."""

    query: str
    after: Plan
    facts: PlanFacts = NO_FACTS
    before: Plan | None = None
    before_facts: PlanFacts = NO_FACTS
    with_set: Plan | None = None  # the one while the indexes were there
    unlike: str = ""  # what kept the two from being planned alike


def plan_item(planned: RollbackPlan, names: Collection[str]) -> RollbackItem:
    """Whether a plan is the same as before; `names` are the set's indexes, none of which may be in it."""
    query, before = planned.query, planned.before
    used = dict.fromkeys(name for node in planned.after.nodes for name in node.texts("Index Name") if name in names)
    if used:
        return RollbackItem("plans", query, Word.DIFFERENT, f"{query}: the plan still uses {', '.join(used)}.")
    if before is None:
        change = f"{diff(planned.with_set, planned.after).sentence}; " if planned.with_set else ""
        said = f"{change}no index of the set is in the plan; what it was before them is not known"
        return RollbackItem("plans", query, None, f"{query}: {said}.")
    found = diff(before, planned.after)
    if found.same:
        return RollbackItem("plans", query, Word.SAME, f"{query}: the same plan as before.")
    why = "no index of the set is in it: " + (_elsewise(planned) or "statistics, data or settings are others")
    if planned.unlike:
        return RollbackItem(
            "plans", query, Word.OPEN, f"{query}: {found.sentence}; {planned.unlike}, so that may be why."
        )
    return RollbackItem("plans", query, Word.DIFFERENT, f"{query}: {found.sentence}; {why}.")


def _elsewise(planned: RollbackPlan) -> str:
    """What the catalogue said of the plan's tables then and now, where that is not the same."""
    said = []
    for after in planned.facts.tables:
        if (before := planned.before_facts.named(after.name, after.schema)) is None:
            continue
        if not _near(before.rows, after.rows, 0.01) or not _near(before.pages, after.pages, 0.01):
            then, now = (f"{count(own.rows)} rows in {count(own.pages)} pages" for own in (before, after))
            said.append(f"the statistics of {after.name} say {now}, before {then}")
        elif before.analyzed and [c.distinct for c in before.columns] != [c.distinct for c in after.columns]:
            said.append(f"{after.name} was analysed anew, and its columns' values are counted otherwise")
        there, was = ({index.name: index.definition for index in own.indexes} for own in (after, before))
        said += [f"{name} is new on {after.name}" for name in there if name not in was]
        said += [f"{name} is no longer on {after.name}" for name in was if name not in there]
    return "; ".join(said)


Sizes = Mapping[str, Mapping[str, int]]  # by table: bytes of it, index_bytes of its indexes


def size_items(before: Sizes, after: Sizes) -> Iterator[RollbackItem]:
    """Whether tables, and what indexes they still have, are as large as before, to a tenth or 64 kB."""
    for table in dict.fromkeys([*before, *after]):
        then, now = before.get(table, {}), after.get(table, {})
        said, alike = [], True
        for key, what in (("bytes", "the table"), ("index_bytes", "its indexes")):
            was, is_now = then.get(key, 0), now.get(key, 0)
            alike &= _near(was, is_now, LARGER_BY) or abs(is_now - was) <= _PAGES
            said.append(f"{what} {size(is_now)}" + (f", before {size(was)}" if was != is_now else " as before"))
        if not alike and now.get("index_bytes", 0) > then.get("index_bytes", 0):
            said.append("what rows changed meanwhile left in them goes with REINDEX TABLE CONCURRENTLY")
        yield RollbackItem("sizes", table, Word.SAME if alike else Word.DIFFERENT, f"{table}: {'; '.join(said)}.")


def latency_item(found: Comparison, blocks: int) -> RollbackItem:
    """Whether one comparison with before shows a slowdown, by its interval."""
    name = f"{found.scenario}: {found.item}, {found.metric}"
    if found.ratio is None:
        return RollbackItem("latency", name, Word.OPEN, f"{name}: the rounds are too few or unhealthy to be compared.")
    value, interval = ratio(found.ratio)
    numbers = f"{name}: {value} of before {interval}"
    if found.verdict is Verdict.INCONCLUSIVE:
        enough = f"about {count(found.blocks_needed)} blocks" if found.blocks_needed else "more than 1,000 blocks"
        needed = f"{enough} in place of {blocks} would tell whether it is equivalent"
        slower = percent(max(0.0, found.ratio.hi - 1))
        if found.ratio.hi <= 1 + SLOWER_BY:
            return RollbackItem("latency", name, Word.SAME, f"{numbers}: not slower by more than {slower}; {needed}.")
        word = Word.OPEN if found.metric == "p50" else None
        return RollbackItem(
            "latency", name, word, f"{numbers}: inconclusive, slower by {slower} is possible; {needed}."
        )
    word, said = {
        Verdict.EQUIVALENT: (Word.SAME, f"equivalent within {percent(found.margin)}"),
        Verdict.FASTER: (Word.SAME, "faster, and so not slower"),
        Verdict.SLOWER: (Word.DIFFERENT, "slower"),
    }.get(found.verdict, (Word.OPEN, "the rounds are too few or unhealthy to be compared"))
    return RollbackItem("latency", name, word, f"{numbers}: {said}.")


def _near(before: float, after: float, share: float) -> bool:
    return abs(after - before) <= share * before


# A rollback rehearsed: the indexes built, rows changed while they are there, the indexes dropped, and all measured.

ARM = "rolled-back"
SHARE, PASSES = 5, 3  # percent of the rows changed in each pass
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RehearsalSpec:
    """What is rehearsed: a configuration's workload and data, and a set of indexes, by default its own."""

    settings: Config
    options: RunSpec
    indexes: Text = ""


def rehearse(asked: RehearsalSpec, folder: Path, permission: Permission, say: Say) -> Bundle:
    """Run a rehearsal into a new folder: a bundle, with what it comes to in it and in rollback.json.

    Raises PerfkitError as `measure` does; UsageError for what cannot be rehearsed.
    """
    wanted = index_set(asked.settings, asked.indexes, folder)
    chosen = Selection(_config(asked.settings, wanted, ()), asked.options)
    if not chosen.on_own_server:
        raise UsageError(f"{asked.settings.title}: its data is not on a server that perfkit starts; expected --db")
    targets = admitted(chosen.config, chosen.arms, permission)
    with ExitStack() as stack:
        stack.enter_context(alone(say))
        stage = stack.enter_context(open_workbench(chosen, targets, Audit(None), say))
        assert isinstance(stage, Clones)
        say(f"making the data ({chosen.scale})" if chosen.scale else "reaching the data")
        base = stage.base(chosen.scale)
        assert base
        writes = design_writes(base.site, base.name, wanted.indexes)
        chosen = Selection(_config(asked.settings, wanted, tuple(_written(writes, folder))), asked.options)
        bundle = measure(chosen, folder, say, targets, stage)
        found = _proof(bundle, stage, wanted, writes)
    given = f" {quote(wanted.path.name)}" if asked.indexes else ""
    command = bundle.run["command"].replace("perfkit report", f"perfkit rollback{given}", 1)
    bundle.update(rollback=found.as_dict(), command=command)
    write_atomically(folder / FILE, json.dumps(found.as_dict(), indent=1, ensure_ascii=False) + "\n")
    return bundle


def _config(settings: Config, wanted: IndexSet, files: tuple[Path, ...]) -> Config:
    """Three arms that differ in the indexes that were there alone; every file is run in each, with them or without."""
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
    """Files that change rows, each a transaction of its own, so that a later one finds room that an earlier one left.

    None where nothing can be changed.
    """
    texts = [writes.prepare] if writes.prepare else []
    updates = [write for write in writes.writes if write.kind == "update"]
    for first in range(0, PASSES * len(updates), max(1, len(updates))):  # every statement changes rows of its own
        texts.append("".join(round_trip(write, seed) for seed, write in enumerate(updates, first)))
    for number, text in enumerate(texts, 1):
        (folder / "writes").mkdir(exist_ok=True)
        path = folder / "writes" / f"{number}.sql"
        write_atomically(path, text)
        yield path


def round_trip(write: Write, seed: int) -> str:
    """SQL by which rows get each other's value in a column, and their own again: what they say stays true.

    Each is a new version of the row, of which every index on the column must hear.
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
    """What the catalogue, the plans and the rounds say."""
    before, after = (_place(stage, name) for name in (stage.config.baseline().name, ARM))
    found, analysis = inspect_set(after.site, after.name, wanted), analyse(bundle)
    names = tuple(index.name for index in wanted.indexes)
    then, now = (databases.sizes(place.site, place.name, exact=False) for place in (before, after))
    blocks = len(bundle.run["blocks"])
    items = [
        *index_items(found, stage.dropped[ARM]),
        *(plan_item(planned, names) for planned in _plans(bundle, stage.config.baseline().name)),
        *size_items(then, now),
        *(latency_item(own, blocks) for own in analysis.comparisons if own.after == ARM),
    ]
    return Rollback(f"{after.site.name}, rehearsed", names, tuple(items), tuple(_unseen(writes, items)))


def _place(stage: Clones, name: str) -> Database:
    arm: Arm = next(arm for arm in stage.config.arm if arm.name == name)
    return stage.prepare(arm)[0]


def _plans(bundle: Bundle, before: str) -> Iterator[RollbackPlan]:
    for query in bundle.run["arms"][ARM]["plans"]:
        (now, facts), (then, was) = (planned_in(bundle, arm, query) for arm in (ARM, before))
        yield RollbackPlan(query, now, facts, then, was)


def _unseen(writes: Writes, items: Sequence[RollbackItem]) -> Iterator[str]:
    """What was done while the indexes were there, and what was not looked at."""
    changed = [f"{write.column} of {write.table}" for write in writes.writes if write.kind == "update"]
    inserted = "rows inserted, then " if writes.prepare else ""
    if changed:
        said = f"{inserted}{PASSES} times {SHARE} % of the rows changed and changed back in {', '.join(changed)}"
        yield f"While the indexes were there: {said}. Before and control had the same changes without them."
    elif inserted:
        yield "While the indexes were there rows were inserted, and none changed."
    else:
        yield "No row was changed while the indexes were there: what that leaves behind was not looked at."
    yield from (f"Not changed: {line}." for line in writes.lacking)
    if not any(item.group == "plans" for item in items):
        yield "No plan was looked at: the configuration has no [[query]]."


# A rollback in a database in use: looked at, dropped, looked at again.

RATE, SECONDS = 2.0, 5.0  # a query's executions per second, and how long a round lasts
USERS = 4  # in flight at most
Medians = Mapping[str, str]  # in words, by query
WITH, WITHOUT = "with", "without"


@dataclass(frozen=True, slots=True)
class RollbackSpec:
    """What is taken back, and what is looked at: `against` is the folder of a run from before the release."""

    db: str
    indexes: Path
    query: Sequence[Text] = ()
    parameters: Path | None = None
    against: Path | None = None
    rounds: int = 3  # before and after; 0 sends nothing
    tls: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rounds <= 100:
            raise UsageError(f"rounds = {self.rounds}; expected 0 to 100")


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything that is known before anything is dropped."""

    asked: RollbackSpec
    external: External
    permission: Permission
    wanted: IndexSet
    found: Sequence[IndexStatus]
    queries: Sequence[JudgedQuery]
    against: Bundle | None

    @property
    def place(self) -> Database:
        """The database."""
        return Database(self.external, self.external.address.dbname)

    @property
    def sent(self) -> list[JudgedQuery]:
        """The queries that rounds send."""
        return [query for query in self.queries if not query.unsent] if self.asked.rounds else []

    def script(self) -> str:
        """The SQL that would run, and as comments what would be looked at before it and after it."""
        lines = [f"-- planned before and after, not executed for it: {query.name}" for query in self.queries]
        each = f"{self.asked.rounds} rounds of {SECONDS:g} s, {RATE:g} a second, read-only"
        lines += [f"-- sent before and after, {each}: {query.name}" for query in self.sent]
        lines += [f"-- not sent: {query.name}: {query.unsent}" for query in self.queries if query.unsent]
        return rollback_script(self.wanted, self.found) + "".join(f"{' '.join(line.split())}\n" for line in lines)

    def take_back(self, folder: Path, say: Say) -> Rollback:
        """Look, drop and look again, into a folder. Whatever ends it early can be run again.

        Rounds that fail stop nothing: an ailing system is why indexes are taken back. Raises ServerError and
        Interrupted saying what was dropped and what is left; PlanError.
        """
        missing: list[str] = []
        before = self._measured(folder, WITH, say, missing)
        gone = self._dropped(say)
        say("looking at what is left")
        found = inspect_set(self.external, self.place.name, self.wanted)
        names = tuple(index.name for index in self.wanted.indexes)
        items = [*index_items(found, gone), *(plan_item(planned, names) for planned in self._planned())]
        self._kept(folder, Rollback(self.external.name, names, tuple(items), tuple(self._unseen(missing))))
        after = self._measured(folder, WITHOUT, say, missing)
        items += self._latencies(before, after)
        result = Rollback(self.external.name, names, tuple(items), tuple(self._unseen(missing)))
        self._kept(folder, result)
        return result

    def _kept(self, folder: Path, result: Rollback) -> None:
        write_atomically(folder / FILE, json.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n")

    def _dropped(self, say: Say) -> list[Dropped]:
        try:
            return rollback(self.external, self.place.name, self.wanted, say)
        except (Interrupted, ServerError) as error:
            left = ""
            with suppress(PerfkitError, KeyboardInterrupt):
                there = inspect_set(self.external, self.place.name, self.wanted)
                invalid = {True: " (invalid)", False: ""}
                names = [own.index.name + invalid[own.state == "invalid"] for own in there if own.state != "missing"]
                left = f"; left: {', '.join(names) or 'none'}"
            raise type(error)(f"{error}{left}") from None

    def _planned(self) -> Iterator[RollbackPlan]:
        """Every query's plan as it is now, beside that from before the release."""
        before = _before(self.against) if self.against else ""
        no_plan: tuple[Plan | None, PlanFacts] = (None, NO_FACTS)
        for query in self.queries:
            now = captured(self.place, query)
            then, facts = no_plan
            if self.against and query.known and self.against.plan(before, query.known) is not None:
                then, facts = planned_in(self.against, before, query.known)
            unlike = "planned for any values, and before for given ones (--parameters)" if query.generic else ""
            yield RollbackPlan(query.name, now.plan, now.facts, then, facts, query.plan, unlike)

    def _measured(self, folder: Path, name: str, say: Say, missing: list[str]) -> Medians:
        """A few rounds of what only reads; where they fail, why is added to what is `missing`."""
        try:
            return self._rounds(folder, name, say) if self.sent else {}
        except Interrupted:
            raise
        except PerfkitError as error:
            missing.append(f"Not measured {name} the indexes: {error}.")
            return {}

    def _rounds(self, folder: Path, name: str, say: Say) -> Medians:
        """Medians by query, through the guards of any load on somebody's server."""
        asked, texts = self.asked, [query.sql for query in self.sent]
        values = asked.parameters if any(named(text) for text in texts) else None
        load = ComparisonSpec(
            asked.db,
            texts,
            parameters=values,
            way="in-place",
            users=USERS,
            tls=asked.tls,
            bare=True,
            rate=RATE * len(texts),
            seconds=SECONDS,
        )
        given = folder / f"{name}-load"
        given.mkdir()
        settings = configuration.load(load.write(given))
        chosen = selection_alone(settings, RunSpec("quick", blocks=asked.rounds, config=str(given / "perfkit.toml")))
        targets = admitted(chosen.config, chosen.arms, self.permission)
        run = measure(chosen, folder / name, lambda text: say(text and f"{name} the indexes, {text}"), targets)
        medians = _medians(run)
        return {
            query.name: medians.get(own.name, "") for query, own in zip(self.sent, chosen.config.query, strict=True)
        }

    def _latencies(self, before: Medians, after: Medians) -> Iterator[RollbackItem]:
        """A query's medians with and without the indexes, beside that from before the release: no verdict."""
        then = _medians(self.against) if self.against and before and after else {}
        for query in self.sent:
            if (own := before.get(query.name)) and (now := after.get(query.name)):
                said = f"{query.name}: median {own} with the indexes, {now} without"
                if query.known in then:
                    said += f"; {then[query.known]} before the release, on another machine or under other load"
                yield RollbackItem("latency", query.name, None, f"{said}.")

    def _unseen(self, missing: Sequence[str]) -> Iterator[str]:
        yield from missing
        if not self.queries:
            yield "No plan was looked at: expected --query, or --against with a run from before the release."
        elif not self.against:
            yield "What the plans were before the indexes is not known: expected --against with a run from then."
        yield from (f"Not sent: {query.name}: {query.unsent}." for query in self.queries if query.unsent)
        if self.sent:
            each = f"{self.asked.rounds} rounds of {SECONDS:g} s, {RATE:g} a second"
            yield f"Medians are of {each}, one after the other beside other load: shown, not judged."
        else:
            yield "No query was sent, so that no latency is known; without --db it is rehearsed with rounds."


def ready(asked: RollbackSpec, permission: Permission, say: Say) -> Ready:
    """Connect, and find out how things are; nothing is changed.

    Raises TargetRefused, ServerError, UsageError, PlanError.
    """
    wanted = read_set(asked.indexes)
    against = Bundle.open(asked.against) if asked.against else None
    say("connecting")
    external = open_external(resolve(asked.db, asked.tls), permission, Audit(None))
    permission = replace(permission, confirm=(*permission.confirm, external.name))  # asked once
    found = inspect_set(external, external.address.dbname, wanted)
    place = Database(external, external.address.dbname)
    rows = selection.rows("parameters", asked.parameters, place, "1")[:PLANNED] if asked.parameters else []
    with reading(asked.against or Path()):
        wants = list(asked_for(asked.query, against))
        _ = _before(against) if against else ""
    queries = [looked_at(place, *own, rows) for own in wants]
    return Ready(asked, external, permission, wanted, found, queries, against)


def _before(run: Bundle) -> str:
    return next(str(arm) for arm, role in run.run["roles"].items() if role == "before")


def _medians(run: Bundle) -> Medians:
    """By query, its median on the arm `before` in the first load level that sent it."""
    found: dict[str, str] = {}
    for level in analyse(run).levels:
        if level.arm == _before(run) and level.p50:
            found.setdefault(level.item, f"{significant(level.p50.value)} ms")
    return found
