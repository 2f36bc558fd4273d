"""A rollback rehearsed: the indexes built, rows changed while they are there, the indexes dropped, and all measured.

The arm `rolled-back` is measured beside `before` and `control`, which get the same changes of rows without the
indexes: what differs is what the indexes left behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from perfkit.analysis import analyse
from perfkit.arms.clones import Clones
from perfkit.bundle import Bundle, write_atomically
from perfkit.comparison import Text, index_set
from perfkit.config import Arm, Config, Thresholds
from perfkit.errors import UsageError
from perfkit.experiment import measure, staged
from perfkit.guards.admission import Permission
from perfkit.guards.audit import Audit
from perfkit.indexes.apply import look
from perfkit.indexes.statements import IndexSet
from perfkit.lab.writes import Write, Writes, design
from perfkit.postgres import databases
from perfkit.postgres.place import Database
from perfkit.process import alone
from perfkit.release.queries import planned_in
from perfkit.release.rollback import (
    FILE,
    Rollback,
    RollbackItem,
    RollbackPlan,
    index_items,
    latency_item,
    plan_item,
    size_items,
)
from perfkit.selection import RunSpec, Selection
from perfkit.targets import admitted

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
        stage = stack.enter_context(staged(chosen, targets, Audit(None), say))
        assert isinstance(stage, Clones)
        say(f"making the data ({chosen.scale})" if chosen.scale else "reaching the data")
        base = stage.base(chosen.scale)
        assert base
        writes = design(base.site, base.name, wanted.indexes)
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
    found, analysis = look(after.site, after.name, wanted), analyse(bundle)
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
