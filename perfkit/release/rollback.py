"""What counts as before when an index set is rolled back, and a rollback rehearsed on perfkit's own server.

A rehearsal measures the arm `rolled-back` beside `before` and `control`. The two get the same row changes without the
indexes, so any difference is what the indexes left behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from perfkit.analysis.results import Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import UsageError
from perfkit.base.judgement import Judgement, Outcome, Verdict, worst
from perfkit.base.units import count, percent, ratio, seconds, size
from perfkit.config import Arm, Config, Thresholds
from perfkit.explain.comparison import diff
from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.plan import Plan
from perfkit.indexes.writes import Write, Writes, design_writes
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission
from perfkit.postgres.index_builds import IndexOutcome, inspect_set
from perfkit.postgres.index_sets import IndexSet, IndexStatus
from perfkit.release.decision import json_text
from perfkit.runs.arms import Clones
from perfkit.runs.experiment import measure, workbench
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.targets import Text, admitted, index_set

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
    if word is None or word in WORDS:
        return word
    if word not in WORDS.values():
        raise ValueError(f"{word!r}; expected one of: {', '.join(WORDS.values())}")
    return next(outcome for outcome, text in WORDS.items() if text == word)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackItem(Judgement):
    """One item that was checked, as a sentence; an item without an outcome is shown but decides nothing."""

    group: Literal["indexes", "plans", "sizes", "latency"]  # the keys of `_HELD`
    outcome: Annotated[
        Outcome | None,
        BeforeValidator(_outcome_of),
        PlainSerializer(lambda outcome: WORDS.get(outcome)),
        Field(alias="word"),
        WithJsonSchema({"enum": [*WORDS.values(), None]}),
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


def index_items(states: Sequence[IndexStatus], drops: Sequence[IndexOutcome]) -> Iterator[RollbackItem]:
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


_OF_VERDICT = {Verdict.EQUIVALENT: Outcome.HOLDS, Verdict.FASTER: Outcome.HOLDS, Verdict.SLOWER: Outcome.BROKEN}


def _near(before: float, after: float, share: float) -> bool:
    return abs(after - before) <= share * before


# A rehearsal: the indexes are built, rows are changed, the indexes are dropped, and every arm is measured.

Say = Callable[[str], None]
ARM = "rolled-back"
SHARE, PASSES = 5, 3  # percent of the rows changed in each pass


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
    bundle.update(rollback=result.content())
    result.write(folder)
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
    items = (
        *index_items(states, stage.dropped[ARM]),
        *(plan_item(planned, names) for planned in _plans(bundle, stage.config.baseline().name)),
        *size_items(then, now),
        *(latency_item(c, blocks) for c in analysis.comparisons if c.after == ARM),
    )
    where, unseen = f"{after.server.name}, rehearsed", tuple(_unseen(writes, items))
    return Rollback(where=where, indexes=names, items=items, unseen=unseen)


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
