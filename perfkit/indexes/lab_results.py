"""Results of an index lab, read from its folder: the value and the write cost of each index, and the conclusion.

<folder>/lab.json         the sets, the measurements and the choice; written step by step
<folder>/ablation         the bundle of no index, each alone, all but one, and all
<folder>/confirmation-1   the bundle of the chosen set against all; further ones if the choice did not hold
<folder>/sets             SQL files that the runs read
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from perfkit.analysis.caveats import circumstances
from perfkit.analysis.claims import ClaimEvidence, JudgedClaim, judge
from perfkit.analysis.results import FLOOR_FACTOR, Comparison, Estimates
from perfkit.analysis.run_analysis import estimate
from perfkit.base import units
from perfkit.base.bundle import read_record, reading, write_atomically
from perfkit.base.judgement import Verdict
from perfkit.explain.facts import quoted
from perfkit.indexes.designs import (
    ABLATION,
    ADVISED,
    ALL,
    CHOSEN,
    NONE,
    LabIndex,
    LabRecord,
    MeasuredSets,
    within,
    worse,
)
from perfkit.indexes.writes import Churn, Write
from perfkit.postgres.index_builds import Built
from perfkit.runs.records import FLOOR, Bundle


@dataclass(frozen=True, slots=True)
class WriteCost:
    """The cost of one write with only this index, compared with none; WAL in bytes per statement, HOT as a share."""

    write: Write
    latency: Comparison
    wal: tuple[float, float] | None  # without and with the index
    hot: tuple[float, float] | None  # share of updates, without and with the index


@dataclass(frozen=True, slots=True)
class IndexValue:
    """The costs of one index, its effect alone, the effect of its absence, and whether it is kept."""

    name: str
    table: str
    definition: str
    sql: str
    bytes: int
    table_bytes: int
    seconds: float  # to build it with the other indexes
    wal_bytes: int  # to build it
    overhead: float | None  # see `LabRecord.overhead`
    alone: tuple[Comparison, ...]  # queries with only this index, against none
    without: tuple[Comparison, ...]  # queries with all but this index, against all
    writes: tuple[WriteCost, ...]
    churn: Churn | None
    kept: bool
    columns: tuple[str, ...] = ()  # its columns that the lab updates, in the order of its keys

    @property
    def faster(self) -> list[Comparison]:
        """Return the queries that are faster with only this index than with none."""
        return [c for c in self.alone if c.verdict is Verdict.FASTER]

    @property
    def missed(self) -> list[Comparison]:
        """Return the queries that are slower without this index than with all."""
        return [c for c in self.without if c.verdict is Verdict.SLOWER]

    @property
    def drop(self) -> str:
        """Return the statement that drops the index without blocking writes."""
        schema, dot, _ = self.table.rpartition(".")
        name = f"{quoted(schema)}.{quoted(self.name)}" if dot else quoted(self.name)
        return f"DROP INDEX CONCURRENTLY IF EXISTS {name}"

    def write(self, kind: str, *, own: bool = True) -> WriteCost | None:
        """Return the cost of a kind of write; `own` chooses updates of the index's own column or of another one."""
        costs = [cost for cost in self.writes if cost.write.kind == kind]
        if kind == "update":
            costs = [cost for cost in costs if (cost.write.column in self.columns) == own]
            costs.sort(key=lambda cost: -self.columns.index(cost.write.column) if own else 0)
        return costs[0] if costs else None


@dataclass(frozen=True, slots=True)
class LabRun:
    """A run of a lab, analysed once: the indexes of its arms, and all medians compared with two baselines."""

    bundle: Bundle
    estimates: Estimates
    arms: Mapping[str, Sequence[str]]

    @classmethod
    def open(cls, path: Path, arms: Mapping[str, Sequence[str]]) -> LabRun:
        """Read and analyse a bundle. Raises BundleError."""
        bundle = Bundle.open(path)
        return cls(bundle, estimate(bundle, ALL), arms)

    def arm(self, indexes: Collection[str]) -> str:
        """Return the arm with exactly these indexes; "" if there is none."""
        sets = ((name, {*names}) for name, names in self.arms.items() if name != ADVISED)
        return next((name for name, names in sets if names == {*indexes}), "")

    def built(self, arm: str) -> list[Built]:
        """Return the indexes of an arm as they were built."""
        return self.bundle.run.arm(arm).indexes

    def medians(self, baseline: str, arm: str | None = None) -> tuple[Comparison, ...]:
        """Return the medians of an arm, or of all arms, compared with those of a baseline."""
        comparisons = (*self.estimates.comparisons, *self.estimates.rebased.get(ALL, ()))
        of_baseline = (c for c in comparisons if c.metric == "p50" and c.before == baseline)
        return tuple(c for c in of_baseline if arm in (None, c.after))


@dataclass(frozen=True)
class Lab:
    """An index lab in its folder. Each of its bundles is analysed once, also while the lab is running."""

    folder: Path
    record: LabRecord
    _runs: dict[str, LabRun] = field(default_factory=dict, repr=False)

    def updated(self, **values: object) -> Lab:
        """Return the lab with new values in its record, which is written to `lab.json`."""
        lab = replace(self, record=self.record.model_copy(update=values))
        lab.write()
        return lab

    def write(self) -> None:
        """Write `lab.json`."""
        content = json.dumps(self.record.model_dump(), indent=1, ensure_ascii=False)
        write_atomically(self.folder / "lab.json", content)

    @property
    def ablation(self) -> LabRun:
        """Return the run of no index, each alone, all but one, and all. Raises BundleError if it is missing."""
        return self._run(ABLATION, self.record.ablation)

    @property
    def last(self) -> LabRun | None:
        """Return the last confirming run; None if there is none."""
        tried = self.record.confirmations
        return self._run(tried[-1].name, tried[-1].sets) if tried else None

    def _run(self, name: str, arms: Mapping[str, Sequence[str]]) -> LabRun:
        if name not in self._runs:
            self._runs[name] = LabRun.open(self.folder / name, arms)
        return self._runs[name]

    @cached_property
    def writes(self) -> dict[str, Write]:
        """Return the lab's writes by item; every other item is a query of the workload."""
        return {write.item: write for write in self.record.writes}

    @property
    def queries(self) -> list[str]:
        """Return the names of the workload's queries."""
        return [name for name in self.ablation.bundle.run.queries if name not in self.writes]

    @property
    def measured(self) -> MeasuredSets:
        """Return the measurements from which a set is chosen."""
        run, unchanged = self.ablation, dict.fromkeys(self.queries, 1.0)

        def ratios(arm: str) -> dict[str, float]:
            return {c.item: c.ratio.value if c.ratio else 1.0 for c in self._reads(run.medians(ALL, arm))}

        def missed(c: Comparison) -> bool:
            return c.verdict is Verdict.SLOWER and c.ratio is not None and c.ratio.value > 1 + self.record.margin

        names = self.record.names
        alone = {name: ratios(run.arm([name])) or unchanged for name in names}
        sizes = {index.name: index.bytes for index in run.built(ALL)}
        return MeasuredSets(
            alone, ratios(NONE), sizes, frozenset(n for n in names if any(map(missed, self._without(n))))
        )

    @cached_property
    def index_values(self) -> tuple[IndexValue, ...]:
        """Return the value of every index, in the set's order."""
        built = {index.name: index for index in self.ablation.built(ALL)}
        return tuple(
            self._index_value(index, built[index.name]) for index in self.record.indexes if index.name in built
        )

    @property
    def kept(self) -> list[IndexValue]:
        """Return the indexes to keep."""
        return [index for index in self.index_values if index.kept]

    @property
    def dropped(self) -> list[IndexValue]:
        """Return the indexes to remove."""
        return [index for index in self.index_values if not index.kept]

    @property
    def whole(self) -> tuple[Comparison, ...]:
        """Return the comparisons of all indexes with none, by query."""
        return self._reads(self.ablation.medians(NONE, ALL))

    def confirming(self, arm: str) -> tuple[Comparison, ...]:
        """Return the comparisons of an arm of the last confirming run with all indexes, by query."""
        return self._reads(self.last.medians(ALL, arm)) if self.last else ()

    @property
    def confirmed(self) -> tuple[Comparison, ...]:
        """Return the comparisons of the chosen indexes with all, by query, in rounds that the choice did not use."""
        return self.confirming(CHOSEN)

    @property
    def slower(self) -> list[Comparison]:
        """Return the confirmed comparisons in which the chosen indexes are slower, see `designs.worse`."""
        medians = {(x.arm, x.item): x.p50 for x in self.last.estimates.levels} if self.last else {}
        slower = []
        for c in self.confirmed:
            before, after, floor = (medians.get((arm, c.item)) for arm in (c.before, c.after, FLOOR))
            if before and after and floor and worse(c.ratio, self.record.margin, before, after, floor):
                slower.append(c)
        return slower

    @property
    def lighter(self) -> tuple[Comparison, ...]:
        """Return the comparisons of the chosen indexes with all, by write."""
        return tuple(c for c in self.last.medians(ALL, CHOSEN) if c.item in self.writes) if self.last else ()

    @property
    def needs(self) -> dict[str, tuple[Comparison, ...]]:
        """Return by chosen index the comparisons of the chosen set without it with all indexes; empty if untested."""
        chosen = {*self.last.arms[CHOSEN]} if self.last else set[str]()
        arms = {index.name: self.last.arm(chosen - {index.name}) for index in self.kept if self.last}
        return {name: self.confirming(arm) if name in chosen else () for name, arm in arms.items()}

    @property
    def holds(self) -> bool:
        """Return whether the chosen set is proven as good as all: every query's whole interval is within the margin."""
        confirmed = self.confirmed
        return self.record.complete and bool(confirmed) and all(within(c, self.record.margin) for c in confirmed)

    @property
    def changes(self) -> list[Comparison]:
        """Return the comparisons of all indexes with none: queries and writes, those of the largest table first."""
        sizes = self.ablation.bundle.run.arms[ALL].table_bytes
        return sorted(self.ablation.medians(NONE, ALL), key=lambda c: -sizes.get(self.table_of(c.item), 0))

    @property
    def scans(self) -> Counter[str]:
        """Return how often each index was scanned in the rounds of the arm with all indexes."""
        scans: Counter[str] = Counter()
        for block in self.ablation.bundle.run.blocks:
            scans.update(block.http_scans.get(ALL, {}))
        return scans

    @property
    def near_floor(self) -> list[str]:
        """Return the queries that take little more time with all indexes than the client itself."""
        ms = {(x.arm, x.item): x.p50.value for x in self.ablation.estimates.levels if x.p50}
        return [q for q in self.queries if ms.get((ALL, q), 0.0) < FLOOR_FACTOR * ms.get((FLOOR, q), 0.0)]

    def is_insert(self, c: Comparison) -> bool:
        """Return whether a comparison is of inserts."""
        return c.item in self.writes and self.writes[c.item].kind == "insert"

    def table_of(self, item: str) -> str:
        """Return the table that a write changes; "" for a query."""
        return self.writes[item].table if item in self.writes else ""

    def title_of(self, item: str) -> str:
        """Return the name of a query or write for readers."""
        return f"{self.writes[item].title}, {self.writes[item].table}" if item in self.writes else item

    def _reads(self, comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
        return tuple(c for c in comparisons if c.item not in self.writes)

    def _without(self, name: str) -> tuple[Comparison, ...]:
        run, names = self.ablation, {*self.record.names}
        return self._reads(run.medians(ALL, run.arm(names - {name})))

    def _index_value(self, index: LabIndex, built: Built) -> IndexValue:
        record, name, table = self.record, index.name, built.table
        alone = self.ablation.medians(NONE, self.ablation.arm([name]))
        updated = {w.column for w in record.writes if w.column and name in w.indexes}
        return IndexValue(
            name=name,
            table=table,
            definition=built.definition,
            sql=index.sql,
            bytes=built.bytes,
            table_bytes=self.ablation.bundle.run.arms[ALL].table_bytes.get(table, 0),
            seconds=built.seconds,
            wal_bytes=built.wal_bytes or 0,
            overhead=record.overhead.get(name),
            alone=self._reads(alone),
            without=self._without(name),
            writes=tuple(self._write_cost(c) for c in alone if self.table_of(c.item) == table),
            churn=next((counts.churn for counts in record.wear if counts.index == name), None),
            kept=record.kept is None or name in record.kept,
            columns=tuple(sorted(updated, key=" ".join(index.keys).find)),
        )

    def _write_cost(self, c: Comparison) -> WriteCost:
        """Return the cost of a write with only one index; the server's counts have the same arms as the rounds."""
        write, counted = self.writes[c.item], {counts.arm: counts.counted for counts in self.record.wear}
        none, alone = (counted.get(arm, {}).get(c.item) for arm in (NONE, c.after))
        if not none or not alone:
            return WriteCost(write, c, None, None)
        hot = (none.hot / none.updated, alone.hot / alone.updated) if write.kind == "update" else None
        return WriteCost(write, c, (none.wal / none.sent, alone.wal / alone.sent), hot)


def read(folder: Path) -> Lab:
    """Return the lab in a folder. Raises BundleError that names the missing or damaged file."""
    lab = Lab(folder, read_record(folder / "lab.json", LabRecord, "the folder of an index lab", "a lab"))
    if (folder / ABLATION).exists():
        with reading(folder):
            _ = lab.index_values, lab.last
    return lab


def judged(lab: Lab) -> list[JudgedClaim]:
    """Return the judged claims, without those on load levels, failures or one preset, which a lab cannot judge.

    A claim on the configuration's `before` arm is judged with no index, a claim on any other arm with all indexes.
    """
    claims = [
        claim.model_copy(update={"arm": NONE if claim.arm and claim.arm == lab.record.baseline else ALL})
        for claim in lab.record.claims
        if not claim.scenario and not claim.preset and claim.measure != "error_rate"
    ]
    inserts = [c.item for c in lab.changes if lab.is_insert(c)]
    run = lab.ablation
    return judge(claims, ClaimEvidence(run.bundle.run, run.estimates, run.bundle, NONE, ALL, inserts))


def sentence(lab: Lab) -> str:
    """Return which indexes to keep, what the others cost, and how sure that is."""
    if not lab.confirmed:
        return "Incomplete." if not lab.record.complete else "This lab measured costs only, not which indexes to keep."
    kept, dropped = lab.kept, lab.dropped
    margin = f"by more than {units.exact_percent(lab.record.margin)}"
    if not dropped:
        return f"Keep all {len(kept)} indexes: without any one of them, a query becomes slower {margin}."
    names = ", ".join(index.name for index in kept)
    keep = f"Keep {len(kept)} of {len(lab.index_values)} indexes ({names})"
    keep = keep if kept else f"Keep none of the {len(lab.index_values)} indexes"
    others = f"The other {len(dropped)} add{'s' if len(dropped) == 1 else ''}" if kept else "They add"
    size = units.size(sum(index.bytes for index in dropped))
    return f"{keep}. {others} {size}{_inserts(lab)}{_queries(lab, margin)}."


def _inserts(lab: Lab) -> str:
    """Return what the dropped indexes add to an insert into the table with most bytes of them, as a clause."""
    sizes = {t: sum(w.bytes for w in lab.dropped if w.table == t) for t in {w.table for w in lab.dropped}}
    inserts = [c for c in lab.lighter if lab.is_insert(c) and sizes.get(lab.table_of(c.item))]
    c = max(inserts, key=lambda c: sizes[lab.table_of(c.item)], default=None)
    if c is None or c.ratio is None or c.verdict is not Verdict.FASTER:
        return ""
    value, low, high = (units.percent(1 / r - 1) for r in (c.ratio.value, c.ratio.hi, c.ratio.lo))
    return f" and {value} ({low} to {high}) to the latency of inserts into {lab.table_of(c.item)}"


def _queries(lab: Lab, margin: str) -> str:
    """Return whether the kept indexes are as good as all, as far as the separate rounds tell, as a clause."""
    if lab.holds:
        faster = [c for c in lab.confirmed if c.verdict is Verdict.FASTER]
        also = f"; {queries_of(faster)} is faster without them" if faster else ""
        speed = "speeds up" if len(lab.dropped) == 1 and lab.kept else "speed up"
        return f", but {speed} no query {margin} (confirmed by separate rounds){also}"
    if slower := lab.slower:
        return f"; without them, {queries_of(slower)} may be slower {margin}"
    possible = [c for c in lab.confirmed if c.ratio and c.ratio.hi > 1 + lab.record.margin]
    widest = max((c.ratio.hi for c in possible if c.ratio), default=1.0)
    return (
        f". Without them, no query was found to be slower {margin}, though up to {units.percent(widest - 1)} for "
        f"{queries_of(possible)} cannot be ruled out"
    )


def reason(lab: Lab, index: IndexValue) -> str:
    """Return why an index is kept or removed."""
    if index.kept:
        slower = [c for c in lab.needs.get(index.name, ()) if c.verdict is Verdict.SLOWER]
        if slower:
            return f"without it, {_changes(slower)}"
        if index.missed:
            return f"needed even with all the other indexes: without it, {_changes(index.missed)}"
        return f"the most useful index for {queries_of(index.faster)}" if index.faster else "not proven unnecessary"
    if not index.faster:
        return "no query is faster with it alone"
    others = [k.name for k in lab.kept if {c.item for c in k.faster} & {c.item for c in index.faster}]
    return f"{', '.join(others)} can replace it" if others else "not needed with the other indexes"


def caveats(lab: Lab) -> Iterator[str]:
    """Yield what limits the result."""
    if not lab.record.complete:
        yield f"The lab is {lab.record.status}: {lab.record.message}."
    if (tried := len(lab.record.confirmations)) > 1:
        yield (
            f"Separate rounds tested {tried} sets and the last is shown; every further test raises the chance of "
            "a false result."
        )
    if lab.confirmed and not lab.holds:
        margin = f"within {units.exact_percent(lab.record.margin)} of all indexes"
        yield f"The kept indexes are not proven to be {margin} for every query; run more blocks (--profile thorough)."
    for c in lab.lighter:
        if c.verdict is Verdict.SLOWER and c.ratio:
            times = f"×{units.significant(c.ratio.value)}"
            yield f"{lab.title_of(c.item)}: {times} with only the kept indexes; not a statement of the workload."
    for line in lab.record.lacking:
        yield f"Not measured: {line}."
    if near := lab.near_floor:
        yield (
            f"Queries that take less than {FLOOR_FACTOR:g} times the client's own time, so that the true gain of the "
            f"indexes is larger than shown: {', '.join(near)}."
        )
    yield from circumstances(lab.ablation.bundle.run)


def queries_of(comparisons: Sequence[Comparison]) -> str:
    """Return the names of the compared queries, each once."""
    return ", ".join(dict.fromkeys(c.item for c in comparisons))


def _changes(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(f"{c.item} takes {units.significant(c.ratio.value)}× as long" for c in comparisons if c.ratio)
