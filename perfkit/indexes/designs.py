"""Designs of an index lab: arms to compare, the configuration of a run, the lab's record, the choice of a set.

The latency of a set is estimated as that of its best index alone, because the planner uses one of them. If a query
needs two indexes together, it is slower without either of them. Separate rounds must confirm the choice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from perfkit.analysis.results import Comparison
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import UsageError
from perfkit.base.stats import Interval, Ratio
from perfkit.config import Arm, Claim, Config, Query, Scenario
from perfkit.explain.capture import Parameters
from perfkit.explain.comparison import PLANNED, typical_parameters
from perfkit.indexes.writes import Churn, Write, WriteCounts, Writes
from perfkit.postgres.databases import Database
from perfkit.postgres.index_sets import IndexSet
from perfkit.postgres.sqltext import read
from perfkit.runs import selection

NONE, ALL, CHOSEN, CONTROL, ADVISED = "none", "all", "chosen", "control", "advised"
READS, WRITES = 100, 100  # maximum number of requests in a round
ABLATION = "ablation"  # the folder of the first run
MORE = 2  # factor on reads in confirming runs, which have few arms and small differences
PRUNED = 4  # maximum number of chosen indexes for which the set without each of them is measured too


@dataclass(frozen=True, slots=True)
class LabArm:
    """An arm of a lab's run: its indexes, and where it gets writes: on all tables, on its index's own, or on none.

    The advised arm has the indexes of the advised set, whatever their names: for the lab they are unknown.
    """

    name: str
    indexes: tuple[str, ...] = ()
    writes: Literal["all", "own", "none"] = "all"

    def writes_to(self, table: str, writes: Writes) -> bool:
        """Return whether the arm gets the writes to a table."""
        return self.writes == "all" or (self.writes == "own" and self.indexes[0] in writes.tables.get(table, ()))


def require_unique_names(indexes: IndexSet) -> None:
    """Raise UsageError if two indexes have the same name, because plans name no schema and could mean either."""
    names = [index.name for index in indexes.indexes]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        expected = "expected unique names across all schemas"
        raise UsageError(f"{indexes.path}: two indexes are called {twice}; {expected}")


def ablation(indexes: IndexSet, *, reads: bool = True) -> list[LabArm]:
    """Return the arms of the first run: none, all, each index alone, and for reads all but one.

    Raises UsageError for duplicate names.
    """
    require_unique_names(indexes)
    names = tuple(index.name for index in indexes.indexes)
    arms = [LabArm(NONE), LabArm(ALL, names)]
    if len(names) > 1:  # one alone is all
        arms += [LabArm(f"only-{n}", (name,), "own") for n, name in enumerate(names, 1)]
    if reads and len(names) > 2:  # of two, all but one is the other alone
        arms += [LabArm(f"without-{n}", _without(names, name), "none") for n, name in enumerate(names, 1)]
    return arms


def confirmation(names: Sequence[str], kept: Sequence[str], *, advised: bool) -> list[LabArm]:
    """Return the arms of a confirming run: all indexes, the chosen ones, and the chosen ones without each of them."""
    arms = [LabArm(ALL, tuple(names)), LabArm(CHOSEN, tuple(kept))]
    if 1 < len(kept) <= PRUNED:
        arms += [LabArm(f"chosen-without-{names.index(n) + 1}", _without(kept, n), "none") for n in kept]
    return [*arms, LabArm(ADVISED)] if advised else arms


def _without(names: Sequence[str], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)


def workload(settings: Config, database: Database, seed: int) -> dict[str, tuple[str, Parameters]]:
    """Return by query its text and typical parameters. Raises UsageError, PlanError, ServerError."""
    queries: dict[str, tuple[str, Parameters]] = {}
    for query in settings.query:
        text, rows = read(query.file), []
        if query.parameters:
            source = settings.parameters[query.parameters]
            rows = selection.rows(query.parameters, source, database, str(seed))[:PLANNED]
        queries[query.name] = (text, typical_parameters(database.session, text, rows) if rows else None)
    return queries


@dataclass(frozen=True, slots=True)
class LabDesign:
    """What all runs of a lab share; their SQL files are in `folder`."""

    settings: Config
    folder: Path
    indexes: IndexSet
    writes: Writes
    seconds: float  # maximum time of a query's round
    advised: str = ""  # another set to compare with, as SQL

    def config(self, arms: Sequence[LabArm], more: int = 1) -> Config:
        """Return the configuration of a run of these arms, the first of which is the baseline.

        The control arm is a copy of the baseline. Each query and each table has a load level of its own.
        """
        before, *after = [self._arm(arm, "after" if number else "before") for number, arm in enumerate(arms)]
        control = before.model_copy(update={"name": CONTROL, "role": "control"})
        reads, writes = self.settings.query, self.writes.writes
        changes = [Query(name=w.item, file=self.file(w.item), parameters=w.item, plan=False) for w in writes]
        levels = [
            _level(f"reads-{number}", "SQL, one connection", [q.name], more * READS, seconds=more * self.seconds)
            for number, q in enumerate(reads, 1)
        ]
        changed: dict[str, object] = {
            "arm": (before, control, *after),
            "query": (*reads, *changes),
            "parameters": {**self.settings.parameters, **{w.item: self.file(f"{w.item}-rows") for w in writes}},
            "scenario": (*levels, *self._write_levels(arms)),
        }
        return self.settings.model_copy(update=changed | {"service": None, "request": (), "check": ()})

    def write(self) -> None:
        """Write the SQL files that the runs read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for write in self.writes.writes:
            write_atomically(self.file(write.item), f"{write.sql}\n")
            write_atomically(self.file(f"{write.item}-rows"), f"{write.source}\n")
        write_atomically(self.file("rows-to-delete"), self.writes.prepare)
        if self.advised:
            write_atomically(self.file(ADVISED), self.advised)

    def _arm(self, arm: LabArm, role: str) -> Arm:
        advised = arm.name == ADVISED
        return Arm.model_validate(
            {
                "name": arm.name,
                "role": role,
                "title": "the advised indexes" if advised else f"{len(arm.indexes)} indexes",
                "prepare": (self.file("rows-to-delete"),) if self.writes.prepare else (),
                "indexes": self.file(ADVISED) if advised else self._subset(arm.indexes) if arm.indexes else None,
            }
        )

    def _subset(self, names: Sequence[str]) -> Path:
        """Return the file of a subset; arms with the same indexes share the file and so their template database."""
        subset = [(n, index) for n, index in enumerate(self.indexes.indexes, 1) if index.name in names]
        whole = len(subset) == len(self.indexes.indexes)
        path = self.file("indexes-" + ("all" if whole else "-".join(str(n) for n, _ in subset)))
        if not path.exists():
            write_atomically(path, "".join(f"{index.sql(concurrently=False)};\n" for _, index in subset))
        return path

    def file(self, name: str) -> Path:
        """Return the path of a file of the lab."""
        return self.folder / f"{name}.sql"

    def _write_levels(self, arms: Sequence[LabArm]) -> list[Scenario]:
        """Return the load levels of the writes: one for each table and, for slow writes, number of requests."""
        items: dict[tuple[str, int], list[str]] = {}
        for write in self.writes.writes:
            items.setdefault((write.table, write.times(WRITES, self.seconds)), []).append(write.item)
        levels = []
        for number, ((table, times), names) in enumerate(items.items(), 1):
            receivers = (CONTROL, *(arm.name for arm in arms if arm.writes_to(table, self.writes)))
            label = f"changes of {table}, one connection"
            levels.append(_level(f"writes-{number}", label, names, times, arms=receivers))
        return levels


def _level(
    name: str, label: str, send: Sequence[str], requests: int, seconds: float | None = None, arms: Sequence[str] = ()
) -> Scenario:
    settings = {"label": label, "send": send, "requests": requests, "seconds": seconds, "arms": arms}
    return Scenario.model_validate({"name": name, "warm": 1, "alternate": True, **settings})


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class LabParameters(_Stored):
    """What decides the size and the order of a lab's runs."""

    profile: str
    scale: str
    seed: int


class LabIndex(_Stored):
    """An index of the set, with its statement for a database in use."""

    name: str
    table: str
    sql: str
    keys: tuple[str, ...]


class LabRemark(_Stored):
    """A remark of the catalogue on an index or on a table of the lab."""

    kind: str
    index: str
    table: str
    text: str


class ArmCounts(_Stored):
    """What the server counted for the writes of an arm, by item; `index` is the arm's only index, else ""."""

    arm: str
    index: str
    counted: dict[str, WriteCounts]
    churn: Churn | None


class Confirmation(_Stored):
    """A confirming run: its folder, and the indexes of each of its arms."""

    name: str
    sets: dict[str, tuple[str, ...]]


class LabRecord(_Stored):
    """The content of `lab.json`; what the lab has not reached yet is empty."""

    format: Literal[1] = 1
    status: str = "running"
    message: str = "it has not finished"
    title: str
    command: str = ""
    parameters: LabParameters
    margin: float
    budget: float | None = None  # bytes; None: no limit
    indexes: tuple[LabIndex, ...]
    baseline: str | None = None  # the arm of the configuration that claims on "before" name; None in old labs
    claims: tuple[Claim, ...] = ()
    writes: tuple[Write, ...] = ()
    lacking: tuple[str, ...] = ()
    ablation: dict[str, tuple[str, ...]] = {}  # the indexes of each arm
    advised: str = ""
    overhead: dict[str, float] = {}  # expected bytes that an insert adds to an index, as a share of the row's bytes
    remarks: tuple[LabRemark, ...] = ()
    wear: tuple[ArmCounts, ...] = ()
    kept: tuple[str, ...] | None = None
    confirmations: tuple[Confirmation, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the set's indexes, in its order."""
        return tuple(index.name for index in self.indexes)

    @property
    def complete(self) -> bool:
        """Return whether the lab was measured to the end."""
        return self.status == "complete"


SLACK = 2.0  # number of margins by which two estimates must differ to count as different
CLOSE = 0.95  # share of the best gain: of the indexes that reach it, the smallest is chosen

Latencies = Mapping[str, float]  # by query, as a ratio to all indexes together


@dataclass(frozen=True, slots=True)
class MeasuredSets:
    """By index, the latencies with it alone and its bytes; `none` are the latencies without any index.

    `missed` are the indexes whose absence, with all others present, slows a query down by more than the margin.
    """

    alone: Mapping[str, Latencies]
    none: Latencies
    bytes: Mapping[str, int]
    missed: frozenset[str]


def choose(measured: MeasuredSets, margin: float, budget: float = math.inf) -> tuple[str, ...]:
    """Return the indexes to keep, of at most `budget` bytes: the largest gain first, then without superfluous ones.

    >>> alone = {"a": {"q": 1.0, "r": 9.0}, "b": {"q": 1.01, "r": 1.0}, "c": {"q": 5.0, "r": 9.0}}
    >>> choose(MeasuredSets(alone, {"q": 5.0, "r": 9.0}, {"a": 1, "b": 9, "c": 1}, frozenset()), 0.05)
    ('b',)
    """
    names, sizes = list(measured.alone), measured.bytes
    chosen = [name for name in names if name in measured.missed and sizes[name] <= budget]
    while gains := {
        name: gain
        for name in names
        if name not in chosen
        and sum(sizes[n] for n in (*chosen, name)) <= budget
        and (gain := _gain(measured, chosen, name, margin)) > 0
    }:
        best = max(gains.values())
        chosen.append(min((n for n, gain in gains.items() if gain >= CLOSE * best), key=sizes.__getitem__))
    for name in sorted(chosen, key=sizes.__getitem__, reverse=True):
        others = [n for n in chosen if n != name]
        if name not in measured.missed and _gain(measured, others, name, margin) <= 0:
            chosen = others
    return tuple(name for name in names if name in chosen)


def latencies(measured: MeasuredSets, chosen: Collection[str]) -> Latencies:
    """Return the expected latencies with a set, by query."""
    return {
        query: min([none, *(measured.alone[name][query] for name in chosen)]) for query, none in measured.none.items()
    }


def _gain(measured: MeasuredSets, chosen: Collection[str], name: str, margin: float) -> float:
    """Return the sum of logarithms of the speed-ups that are larger than chance."""
    least, now = math.log1p(SLACK * margin), latencies(measured, chosen)
    gains = (math.log(now[query] / measured.alone[name][query]) for query in now)
    return sum(gain for gain in gains if gain > least)


def within(c: Comparison, margin: float) -> bool:
    """Return whether a query is at most `margin` slower, by its whole interval."""
    return c.ratio is not None and c.ratio.hi <= 1 + margin


def worse(ratio: Ratio | None, margin: float, before: Interval, after: Interval, floor: Interval) -> bool:
    """Return whether a query is slower for certain, and by its estimate by more than the margin.

    The difference must also exceed the variation of the client's own time: a statement that takes little more than
    the client can take twice as long just because its connection moved to another processor.
    """
    if ratio is None or not (ratio.value > 1 + margin and ratio.lo > 1):
        return False
    return after.value - before.value > floor.hi - floor.lo


def helper(measured: MeasuredSets, chosen: Collection[str], slower: Sequence[str], budget: float = math.inf) -> str:
    """Return the omitted index that helps the slower queries most; "" if none fits into the budget."""
    alone, sizes = measured.alone, measured.bytes
    room = budget - sum(sizes[name] for name in chosen)
    omitted = {n: min(alone[n][q] for q in slower) for n in alone if n not in chosen and sizes[n] <= room}
    now = latencies(measured, chosen)
    useful = {n: ratio for n, ratio in omitted.items() if any(alone[n][q] < now[q] for q in slower)}
    return min(useful or omitted, key=lambda n: (omitted[n], sizes[n]), default="")
