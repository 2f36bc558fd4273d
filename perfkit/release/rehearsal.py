"""A rollback rehearsed on perfkit's own server: indexes built, rows changed, indexes dropped, every arm measured.

The arm `rolled-back` is measured beside `before` and `control`. The two get the same row changes without the indexes,
so any difference is what the indexes left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from perfkit.analysis.run_analysis import analyse
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import UsageError
from perfkit.config import Arm, Config, Thresholds
from perfkit.indexes.writes import Write, Writes, design_writes
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission
from perfkit.postgres.index_builds import inspect_set
from perfkit.postgres.index_sets import IndexSet
from perfkit.release.rollback import (
    Rollback,
    RollbackItem,
    RollbackPlan,
    Say,
    index_items,
    latency_item,
    plan_item,
    size_items,
)
from perfkit.runs.arms import Clones
from perfkit.runs.experiment import measure, workbench
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.targets import Text, admitted, index_set

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
