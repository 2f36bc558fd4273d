"""Results of an index lab, read from its folder: the value and the write cost of each index, and the conclusion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from perfkit.analysis.caveats import circumstances
from perfkit.analysis.claims import ClaimEvidence, JudgedClaim, judge
from perfkit.analysis.results import FLOOR_FACTOR, Analysis, Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.base import units
from perfkit.base.bundle import FLOOR, Bundle, read_object, reading
from perfkit.base.judgement import Verdict
from perfkit.base.stats import Interval
from perfkit.explain.facts import quoted
from perfkit.indexes.designs import ADVISED, ALL, CHOSEN, CONTROL, NONE, MeasuredSets, within, worse

FORMAT = 1


@dataclass(frozen=True, slots=True)
class WriteCost:
    """The cost of one write with only this index, compared with none; WAL in bytes per statement, HOT as a share."""

    item: str
    kind: str
    column: str
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
    valid: bool
    bytes: int
    table_bytes: int
    seconds: float  # to build it with the other indexes
    wal_bytes: int  # to build it
    overhead: float | None  # expected bytes that an insert adds to it, as a share of the row's bytes
    alone: tuple[Comparison, ...]  # queries with only this index, against none
    without: tuple[Comparison, ...]  # queries with all but this index, against all
    writes: tuple[WriteCost, ...]
    churn: tuple[int, int] | None  # bytes before and after rows were changed
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
        costs = [w for w in self.writes if w.kind == kind]
        if kind == "update" and own:
            costs = sorted((w for w in costs if w.column in self.columns), key=lambda w: -self.columns.index(w.column))
        elif kind == "update":
            costs = [w for w in costs if w.column not in self.columns]
        return costs[0] if costs else None


@dataclass(frozen=True)
class Lab:
    """An index lab, read from its folder."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Return the title of the measured configuration."""
        return str(self.record["title"])

    @property
    def complete(self) -> bool:
        """Return whether the lab was measured to the end."""
        return bool(self.record["status"] == "complete")

    @property
    def margin(self) -> float:
        """Return the tolerated slowdown, as a share."""
        return float(self.record["margin"])

    @property
    def names(self) -> list[str]:
        """Return the names of the set's indexes, in its order."""
        return [index["name"] for index in self.record["indexes"]]

    @cached_property
    def ablation(self) -> Bundle:
        """Return the run of no index, each alone, all but one, and all. Raises BundleError if it is missing."""
        return Bundle.open(self.folder / "ablation")

    @cached_property
    def last(self) -> Bundle | None:
        """Return the last confirming run; None if there is none."""
        tried = self.record.get("confirmations", ())
        return Bundle.open(self.folder / tried[-1]["name"]) if tried else None

    @property
    def tried(self) -> int:
        """Return the number of sets that separate rounds tested."""
        return len(self.record.get("confirmations", ()))

    @cached_property
    def queries(self) -> list[str]:
        """Return the names of the workload's queries, without the lab's writes."""
        return [name for name in self.ablation.run["queries"] if name not in self._items]

    @property
    def measured(self) -> MeasuredSets:
        """Return the measurements from which a set is chosen."""
        ratios = {arm: self._ratios(comparisons) for arm, comparisons in self._to_all.items()}
        alone = {
            name: ratios.get(self._arm("only", name)) or ratios.get(ALL) or dict.fromkeys(self.queries, 1.0)
            for name in self.names
        }
        sizes = {index["name"]: index["bytes"] for index in self._built}
        missed = frozenset(name for name in self.names if any(self._missing(c) for c in self._without(name)))
        return MeasuredSets(alone, ratios[NONE], sizes, missed)

    @cached_property
    def index_values(self) -> tuple[IndexValue, ...]:
        """Return the value of every index, in the set's order."""
        by_name = {index["name"]: index for index in self._built}
        return tuple(
            self._index_value(own, by_name[own["name"]]) for own in self.record["indexes"] if own["name"] in by_name
        )

    @property
    def kept(self) -> list[IndexValue]:
        """Return the indexes to keep."""
        return [worth for worth in self.index_values if worth.kept]

    @property
    def dropped(self) -> list[IndexValue]:
        """Return the indexes to remove."""
        return [worth for worth in self.index_values if not worth.kept]

    @property
    def whole(self) -> tuple[Comparison, ...]:
        """Return the comparisons of all indexes with none, by query."""
        return self._reads(self._to_none.get(ALL, ()))

    @cached_property
    def confirmed(self) -> tuple[Comparison, ...]:
        """Return the comparisons of the chosen indexes with all, by query, in rounds that the choice did not use."""
        return self._reads(self._last.get(CHOSEN, ()))

    @property
    def slower(self) -> list[Comparison]:
        """Return the confirmed comparisons in which the chosen indexes are slower, see `designs.worse`."""
        return [c for c in self.confirmed if (own := self._own(c)) and worse(c.ratio, self.margin, *own)]

    @cached_property
    def advised(self) -> tuple[Comparison, ...]:
        """Return the comparisons of the advised indexes with all, by query, in the same rounds."""
        return self._reads(self._last.get(ADVISED, ()))

    @property
    def lighter(self) -> tuple[Comparison, ...]:
        """Return the comparisons of the chosen indexes with all, by write."""
        return tuple(c for c in self._last.get(CHOSEN, ()) if c.item in self._items)

    @property
    def needs(self) -> Mapping[str, tuple[Comparison, ...]]:
        """Return by chosen index the comparisons of the chosen set without it with all indexes."""
        return {
            worth.name: self._reads(self._last.get(f"chosen-without-{self.names.index(worth.name) + 1}", ()))
            for worth in self.kept
        }

    @property
    def holds(self) -> bool:
        """Return whether the chosen set is proven as good as all: every query's whole interval is within the margin."""
        return self.complete and bool(self.confirmed) and all(within(c, self.margin) for c in self.confirmed)

    @property
    def advised_indexes(self) -> list[Mapping[str, Any]]:
        """Return the advised indexes as they were built."""
        return list(self.last.run["arms"].get(ADVISED, {}).get("indexes", ())) if self.last else []

    @property
    def changes(self) -> tuple[Comparison, ...]:
        """Return the comparisons of all indexes with none: queries and writes, those of the largest table first."""
        sizes = self.ablation.run["arms"][ALL]["table_bytes"]
        return tuple(sorted(self._to_none.get(ALL, ()), key=lambda c: -sizes.get(self.table_of(c.item), 0)))

    @cached_property
    def scans(self) -> Mapping[str, int]:
        """Return how often each index was scanned in the rounds of the arm with all indexes."""
        scans: Counter[str] = Counter()
        for block in self.ablation.run["blocks"]:
            scans.update(block["http_scans"].get(ALL, {}))
        return scans

    @property
    def plans(self) -> list[Any]:
        """Return EXPLAIN's JSON of every query with all indexes and with none."""
        documents = (self.ablation.plan(arm, query) for arm in (ALL, NONE) for query in self.queries)
        return [document for document in documents if document is not None]

    @cached_property
    def circumstances(self) -> tuple[str, ...]:
        """Return the caveats that apply to all runs of the lab."""
        return circumstances(self.ablation.run, self.analysis)

    @cached_property
    def near_floor(self) -> list[str]:
        """Return the queries that take little more time with all indexes than the client itself."""
        ms = {(x.arm, x.item): x.p50.value for x in self.analysis.levels if x.p50}
        return [q for q in self.queries if ms.get((ALL, q), 0.0) < FLOOR_FACTOR * ms.get((FLOOR, q), 0.0)]

    @cached_property
    def analysis(self) -> Analysis:
        """Return the analysis of the run of all sets."""
        return analyse(self.ablation)

    def is_insert(self, c: Comparison) -> bool:
        """Return whether a comparison is of inserts."""
        return bool(self._items.get(c.item, {}).get("kind") == "insert")

    def table_of(self, item: str) -> str:
        """Return the table that a write changes; "" for a query."""
        return str(self._items.get(item, {}).get("table", ""))

    def title_of(self, item: str) -> str:
        """Return the name of a query or write for readers."""
        write = self._items.get(item)
        if not write:
            return item
        return f"{write['kind']}{' of ' + write['column'] if write['column'] else ''}, {write['table']}"

    @cached_property
    def _items(self) -> dict[str, Mapping[str, Any]]:
        return {write["item"]: write for write in self.record.get("writes", ())}

    @property
    def _built(self) -> Sequence[Mapping[str, Any]]:
        return list(self.ablation.run.get("arms", {}).get(ALL, {}).get("indexes", ()))

    @cached_property
    def _to_none(self) -> dict[str, list[Comparison]]:
        return _medians(self.ablation, NONE)

    @cached_property
    def _to_all(self) -> dict[str, list[Comparison]]:
        return _medians(self.ablation, ALL)

    @cached_property
    def _last(self) -> dict[str, list[Comparison]]:
        return _medians(self.last, ALL) if self.last else {}

    @cached_property
    def _last_p50(self) -> Mapping[tuple[str, str], Interval | None]:
        return {(x.arm, x.item): x.p50 for x in analyse(self.last).levels} if self.last else {}

    def _missing(self, c: Comparison) -> bool:
        return c.verdict is Verdict.SLOWER and c.ratio is not None and c.ratio.value > 1 + self.margin

    def _own(self, c: Comparison) -> tuple[Interval, Interval, Interval] | None:
        """Return the medians before, after and of the floor, in ms; None if one is missing."""
        before, after, floor = (self._last_p50.get((arm, c.item)) for arm in (c.before, c.after, FLOOR))
        return (before, after, floor) if before and after and floor else None

    @cached_property
    def _counted(self) -> dict[tuple[str, str], Mapping[str, float]]:
        """Return by arm and write the number of statements, WAL in bytes, updated rows, and HOT updates."""
        costs = self.record.get("wear", ())
        return {(cost["arm"], item): counts for cost in costs for item, counts in cost["counted"].items()}

    def _arm(self, kind: str, name: str) -> str:
        return f"{kind}-{self.names.index(name) + 1}"

    def _alone(self, name: str) -> Sequence[Comparison]:
        return self._to_none.get(ALL if len(self.names) == 1 else self._arm("only", name), [])

    def _without(self, name: str) -> tuple[Comparison, ...]:
        arm = self._arm("without", name)
        if len(self.names) == 2:
            arm = self._arm("only", next(other for other in self.names if other != name))
        return self._reads(self._to_all.get(NONE if len(self.names) == 1 else arm, []))

    def _reads(self, found: Sequence[Comparison]) -> tuple[Comparison, ...]:
        return tuple(c for c in found if c.item not in self._items)

    def _ratios(self, found: Sequence[Comparison]) -> dict[str, float]:
        return {c.item: c.ratio.value if c.ratio else 1.0 for c in self._reads(found)}

    def _index_value(self, own: Mapping[str, Any], built: Mapping[str, Any]) -> IndexValue:
        name, table = own["name"], built["table"]
        churned = {w["index"]: w["churn"] for w in self.record.get("wear", ()) if w["churn"]}
        written = [c for c in self._alone(name) if c.item in self._items and self._items[c.item]["table"] == table]
        sizes = self.ablation.run["arms"][ALL]["table_bytes"]
        held = {w["column"] for w in self._items.values() if w["column"] and name in w["indexes"]}
        keys = " ".join(own["keys"])
        return IndexValue(
            name=name,
            table=table,
            definition=built["definition"],
            sql=own["sql"],
            valid=built["valid"],
            bytes=built["bytes"],
            table_bytes=sizes.get(table, 0),
            seconds=built["seconds"],
            wal_bytes=built["wal_bytes"] or 0,
            overhead=self.record.get("overhead", {}).get(name),
            alone=self._reads(self._alone(name)),
            without=self._without(name),
            writes=tuple(self._write(c) for c in written),
            churn=(churned[name]["before"], churned[name]["after"]) if name in churned else None,
            kept=name in self.record.get("kept", self.names),
            columns=tuple(sorted(held, key=keys.find)),
        )

    def _write(self, c: Comparison) -> WriteCost:
        own = self._items[c.item]
        none, alone = self._counted.get((NONE, c.item)), self._counted.get((c.after, c.item))
        if not none or not alone:
            return WriteCost(c.item, own["kind"], own["column"], c, None, None)
        wal = (none["wal"] / none["sent"], alone["wal"] / alone["sent"])
        hot = (none["hot"] / none["updated"], alone["hot"] / alone["updated"]) if own["kind"] == "update" else None
        return WriteCost(c.item, own["kind"], own["column"], c, wal, hot)


def read(folder: Path) -> Lab:
    """Return the lab in a folder. Raises BundleError that names the missing or damaged file."""
    lab = Lab(folder, read_object(folder / "lab.json", "the folder of an index lab", "a lab", FORMAT))
    if (folder / "ablation").exists():
        with reading(folder):
            _ = lab.index_values, lab.confirmed
    return lab


def _medians(bundle: Bundle, baseline: str) -> dict[str, list[Comparison]]:
    """Return by arm its medians compared with the baseline's."""
    # The control is a copy of the run's own baseline and says nothing about another one.
    copied = bundle.run["roles"][baseline] == "before"
    control = {CONTROL: "control"} if copied else {}
    roles = dict.fromkeys(bundle.run["roles"], "after") | {baseline: "before"} | control
    medians: dict[str, list[Comparison]] = {}
    for c in analyse(Bundle(bundle.path, {**bundle.run, "roles": roles})).comparisons:
        if c.metric == "p50":
            medians.setdefault(c.after, []).append(c)
    return medians


def judged(lab: Lab) -> list[JudgedClaim]:
    """Return the judged claims, without those on load levels, failures or one preset, which a lab cannot judge.

    A claim on the configuration's `before` arm is judged with no index, a claim on any other arm with all indexes.
    """
    claims = [
        {**own, "arm": NONE if own.get("arm") and own["arm"] == lab.record.get("baseline") else ALL}
        for own in lab.record.get("claims", ())
        if not own.get("scenario") and not own.get("preset") and own["measure"] != "error_rate"
    ]
    inserts = [c.item for c in lab.changes if lab.is_insert(c)]
    return judge(claims, ClaimEvidence(lab.ablation.run, lab.analysis, lab.ablation, NONE, ALL, inserts))


def sentence(lab: Lab) -> str:
    """Return which indexes to keep, what the others cost, and how sure that is."""
    if not lab.confirmed:
        return "Incomplete." if not lab.complete else "This lab measured costs only, not which indexes to keep."
    kept, dropped = lab.kept, lab.dropped
    margin = f"by more than {100 * lab.margin:g} %"
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
    possible = [c for c in lab.confirmed if c.ratio and c.ratio.hi > 1 + lab.margin]
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
    if not lab.complete:
        yield f"The lab is {lab.record['status']}: {lab.record.get('message', 'it has not finished')}."
    if lab.tried > 1:
        yield (
            f"Separate rounds tested {lab.tried} sets and the last is shown; every further test raises the chance of "
            "a false result."
        )
    if lab.confirmed and not lab.holds:
        margin = f"within {100 * lab.margin:g} % of all indexes"
        yield f"The kept indexes are not proven to be {margin} for every query; run more blocks (--profile thorough)."
    for c in lab.lighter:
        if c.verdict is Verdict.SLOWER and c.ratio:
            times = f"×{units.significant(c.ratio.value)}"
            yield f"{lab.title_of(c.item)}: {times} with only the kept indexes; not a statement of the workload."
    for line in lab.record.get("lacking", ()):
        yield f"Not measured: {line}."
    if near := lab.near_floor:
        yield (
            f"Queries that take less than {FLOOR_FACTOR:g} times the client's own time, so that the true gain of the "
            f"indexes is larger than shown: {', '.join(near)}."
        )
    yield from lab.circumstances


def queries_of(comparisons: Sequence[Comparison]) -> str:
    """Return the names of the compared queries, each once."""
    return ", ".join(dict.fromkeys(c.item for c in comparisons))


def _changes(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(f"{c.item} takes {units.significant(c.ratio.value)}× as long" for c in comparisons if c.ratio)
