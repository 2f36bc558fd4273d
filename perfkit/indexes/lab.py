"""An index lab from start to end: ablation, choice of a set, and its confirmation in separate rounds.

<folder>/lab.json         the sets, the measurements and the choice; written step by step
<folder>/ablation         the bundle of no index, each alone, all but one, and all
<folder>/confirmation-1   the bundle of the chosen set against all; further ones if the choice did not hold
<folder>/sets             SQL files that the runs read
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from psycopg import sql

from perfkit.base.bundle import write_atomically
from perfkit.base.errors import Interrupted, PerfkitError, ServerError, UsageError, redact_home
from perfkit.base.process import alone
from perfkit.config import Arm, Config
from perfkit.explain.capture import Parameters
from perfkit.explain.plan import read_plan
from perfkit.indexes import designs
from perfkit.indexes.advice import Advice
from perfkit.indexes.designs import (
    ADVISED,
    ALL,
    CHOSEN,
    MORE,
    NONE,
    LabDesign,
    Sets,
    Write,
    Writes,
    ablation,
    design_writes,
    require_unique_names,
    workload,
)
from perfkit.indexes.lab_results import FORMAT, Lab, read
from perfkit.indexes.use import ask, judge
from perfkit.postgres import catalog, databases
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import Audit, Permission
from perfkit.postgres.index_sets import IndexSet
from perfkit.runs.arms import Workbench
from perfkit.runs.experiment import measure, open_workbench
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.targets import admitted

STATEMENTS, SECONDS = 100, 0.3  # maximum number of counted statements of each kind, and their time
SHARE, PASSES = 5, 3  # percent of the rows to change in each pass, followed by VACUUM
TRIES = 4  # confirming runs at most: every further one raises the chance of a false result
AUTO = "auto"  # compare with the set that perfkit itself advises
PRUNED = 4  # maximum number of chosen indexes for which the set without each of them is measured too
Say = Callable[[str], None]
Advise = Callable[[Database, Mapping[str, tuple[str, Parameters]], Say], Advice]  # queries: text and parameters by name


@dataclass(frozen=True, slots=True)
class LabSpec:
    """What a lab measures; `margin` is the tolerated slowdown as a share, `budget` the maximum bytes to keep."""

    settings: Config
    indexes: IndexSet
    options: RunSpec
    margin: float
    budget: float = math.inf
    advised: str = ""  # another set to compare with, as SQL, or AUTO
    reads: bool = True  # whether to measure the queries; if not, only the cost for writes
    command: str = ""

    def __post_init__(self) -> None:
        require_unique_names(self.indexes)
        if not 0 < self.margin < 1:
            raise UsageError(f"margin = {self.margin:g}; expected a share over 0 and under 1, as 0.05")
        if self.budget <= 0:
            raise UsageError(f"budget = {self.budget / 1024 / 1024:g} MB; expected more than 0")


def run_lab(asked: LabSpec, folder: Path, permission: Permission, advise: Advise, say: Say) -> Lab:
    """Run a lab into a new folder, which stays readable even if the lab fails or is interrupted.

    `advise` returns the set to compare with if `asked.advised` is AUTO. Raises PerfkitError as `measure` does, and
    UsageError for a configuration that a lab cannot measure.
    """
    record = {"format": FORMAT, "status": "running", **_described(asked)}

    def keep(**values: Any) -> None:
        record.update(values)
        write_atomically(folder / "lab.json", json.dumps(record, indent=1, ensure_ascii=False))

    try:
        with ExitStack() as stack:
            bench = _opened(stack, asked, folder, permission, advise, say)
            keep(writes=[asdict(w) for w in bench.design.writes.writes], lacking=bench.design.writes.lacking)
            _measured(bench, asked, keep)
        keep(status="complete")
    except (KeyboardInterrupt, Interrupted):
        keep(status="interrupted", message="stopped by the user")
        again = f"perfkit indexes ablate --bundle {folder}"
        raise Interrupted(f"stopped; the measurements so far are in {folder}: {again}") from None
    except BaseException as error:
        message = str(error) if isinstance(error, PerfkitError) else f"{type(error).__name__}: {error}"
        keep(status="failed", message=redact_home(message))
        raise
    return read(folder)


@dataclass(frozen=True, slots=True)
class _Bench:
    """The workbench of a lab with everything that its runs share."""

    design: LabDesign
    stage: Workbench
    base: Database
    options: RunSpec
    folder: Path
    permission: Permission
    say: Say

    @property
    def lab(self) -> Lab:
        """Return the results so far."""
        return Lab(self.folder, json.loads((self.folder / "lab.json").read_bytes()))

    def run(self, name: str, sets: Sets, baseline: str, written: Sequence[str], seed: int, more: int = 1) -> None:
        """Measure these sets into the bundle `name`."""
        config = self.design.config(sets, baseline, written, more)
        options = replace(self.options, seed=self.options.seed + seed)
        targets = admitted(config, config.arm, self.permission)
        measure(
            Selection(config, options),
            self.folder / name,
            lambda text: self.say(text and f"{name}, {text}"),
            targets,
            self.stage,
        )


def _opened(stack: ExitStack, asked: LabSpec, folder: Path, permission: Permission, advise: Advise, say: Say) -> _Bench:
    """Return the workbench with its data and the design of the runs."""
    settings, database = asked.settings, asked.settings.database
    if database is None or database.way == "in-place":
        raise UsageError(
            f"{settings.title}: way = in-place cannot compare indexes side by side; expected another 'way'"
        )
    if asked.reads and not settings.query:
        raise UsageError(f"{settings.title}: no [[query]]; expected the queries that the indexes are for")
    seconds = 0.15 if settings.profiles.get(asked.options.profile, 0) <= 6 else 0.5
    shared = settings.model_copy(update={"margin": asked.margin, "query": settings.query if asked.reads else ()})
    bare = LabDesign(shared, folder / "sets", asked.indexes, Writes(), seconds, asked.advised)
    sets = _sets(asked)
    bare.write()
    config = bare.config(sets, NONE)
    chosen = Selection(config, asked.options)
    targets = admitted(config, [*config.arm, Arm(name=CHOSEN, role="after")], permission)
    stack.enter_context(alone(say))
    stage = stack.enter_context(open_workbench(chosen, targets, Audit(folder / "audit.jsonl"), say))
    say(f"making the data ({chosen.scale})" if chosen.scale else "reaching the data")
    base = stage.base(chosen.scale)
    assert base
    _require_room(base, len(sets))
    if base.server.foreign:
        writes = Writes(lacking=("writes: measured only on servers that perfkit starts, not on your server",))
    else:
        writes = design_writes(base.server, base.name, asked.indexes.indexes)
    advised = _advised(asked, base, advise, say) if asked.advised == AUTO and asked.reads else asked.advised
    design = replace(bare, writes=writes, advised=advised)
    design.write()
    return _Bench(design, stage, base, asked.options, folder, permission, say)


def _advised(asked: LabSpec, base: Database, advise: Advise, say: Say) -> str:
    """Return the set that perfkit advises for these queries without knowing the lab's set, as SQL."""
    queries = workload(asked.settings, base, asked.options.seed)
    advice = advise(base, queries, lambda text: say(f"advice, {text}"))
    return advice.sql if advice.proposals else ""


def _sets(asked: LabSpec) -> dict[str, list[str]]:
    found = ablation(asked.indexes)
    return found if asked.reads else {arm: names for arm, names in found.items() if not arm.startswith("without-")}


def _measured(bench: _Bench, asked: LabSpec, keep: Callable[..., None]) -> None:
    """Measure all runs, each into its bundle, and record the choice after each."""
    sets = _sets(asked)
    keep(ablation=sets, advised=bench.design.advised)
    bench.run("ablation", sets, NONE, [arm for arm in sets if not arm.startswith("without-")], 0)
    everything = next(arm for arm in bench.stage.config.arm if arm.name == ALL)
    keep(overhead=_overhead(bench.stage, everything))
    keep(remarks=_remarks(bench, everything))
    keep(wear=write_cost(bench.stage, bench.base, bench.design, bench.say))
    if not asked.reads:
        return
    found = bench.lab.measured
    kept = designs.choose(found, asked.margin, asked.budget)
    tried: list[dict[str, Any]] = []
    for number in range(1, TRIES + 1):
        sets = _confirming(asked, kept, bench.design.advised)
        tried.append({"name": f"confirmation-{number}", "sets": sets})
        keep(kept=kept)
        written = [arm for arm in (ALL, CHOSEN, ADVISED) if arm in sets]
        bench.run(f"confirmation-{number}", sets, ALL, written, number, MORE)
        keep(confirmations=tried)
        after = _next(bench.lab, kept, found, asked)
        if after is None or after in [own["sets"][CHOSEN] for own in tried]:
            return
        kept = after


def _confirming(asked: LabSpec, kept: Sequence[str], advised: str) -> dict[str, list[str]]:
    """Return the sets of a confirming run: all indexes, the chosen ones, and the chosen ones without each of them."""
    names = [index.name for index in asked.indexes.indexes]
    sets = {ALL: names, CHOSEN: list(kept)}
    if 1 < len(kept) <= PRUNED:
        sets |= {f"chosen-without-{names.index(name) + 1}": [n for n in kept if n != name] for name in kept}
    return sets | ({ADVISED: []} if advised else {})


def _next(lab: Lab, kept: Sequence[str], found: designs.MeasuredSets, asked: LabSpec) -> list[str] | None:
    """The set to try next: one index more where queries became slower, one fewer where nothing misses it."""
    names = list(found.alone)
    if slower := lab.slower:
        more = designs.helper(found, kept, [c.item for c in slower], asked.budget)
        return [name for name in names if name in (*kept, more)] if more else None
    spare = [name for name, own in lab.needs.items() if own and all(designs.within(c, asked.margin) for c in own)]
    if not spare:
        return None
    least = max(spare, key=found.bytes.__getitem__)
    return [name for name in kept if name != least]


def _overhead(stage: Workbench, everything: Arm) -> Mapping[str, float]:
    """Return by index the bytes that an insert is expected to add to it, as a share of the row's bytes."""
    place, _ = stage.prepare(everything)
    assert place
    with databases.connected(place.server, place.name) as connection:
        return {row["name"]: row["share"] for row in catalog.rows(connection, "index_overhead")}


def _remarks(bench: _Bench, everything: Arm) -> list[dict[str, Any]]:
    """Return the catalogue's remarks on the set's indexes and tables, with the scans that the lab counted."""
    place, _ = bench.stage.prepare(everything)
    assert place
    facts, scans = ask(place.server, place.name), bench.lab.scans
    plans = [read_plan(document) for document in bench.lab.plans]
    facts = replace(facts, indexes=tuple(replace(i, scans=scans.get(i.name, 0)) for i in facts.indexes))
    tables, names = set(bench.design.writes.tables), {index.name for index in bench.design.indexes.indexes}
    remarks = [r for r in judge(facts, plans) if r.index in names or (r.kind == "missing" and r.table in tables)]
    return [{"kind": r.kind, "index": r.index, "table": r.table, "text": r.text} for r in remarks if r.kind != "unused"]


def write_cost(stage: Workbench, base: Database, design: LabDesign, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return by arm the server's counts for each write, and the bytes of the arm's only index before and after churn.

    The counts are sums over the statements: WAL in bytes, updated rows, HOT updates. They are made on one clone after
    the other, because time plays no part in them.
    """
    rows = {}
    for write in design.writes.writes:
        every = databases.fetched(base.server, base.name, design.file(f"{write.item}-rows"), STATEMENTS)
        rows[write.item] = every[: write.times(STATEMENTS, SECONDS)]
    costs = []
    for arm in stage.config.arm:
        name = design.alone(arm.name)
        writes = [write for write in design.writes.writes if design.concerns(arm.name, write.table)]
        if arm.role == "control" or arm.name.startswith("without-") or not writes:
            continue
        say(f"counting what {arm.title} cost writes")
        stage.refresh(arm)
        place = stage.database(arm)
        assert place
        with databases.connected(place.server, place.name) as connection:
            counted = {write.item: _counted(connection, write, rows[write.item]) for write in writes}
            churn = _churned(connection, name, writes)
            costs.append({"arm": arm.name, "index": name, "counted": counted, "churn": churn})
    return costs


def _counted(connection: Connection, write: Write, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Execute the statements of one kind; return sums of the server's counters and the number of statements."""
    before, sent = _counters(connection, write), 0
    for row in rows:
        connection.execute(write.sql.encode(), row)
        sent += 1
    return {key: value - before[key] for key, value in _counters(connection, write).items()} | {"sent": sent}


def _counters(connection: Connection, write: Write) -> dict[str, float]:
    connection.execute("SELECT pg_stat_force_next_flush()")
    return connection.execute(catalog.get("written").encode(), {"table": write.quoted}).fetchone() or {}


def _churned(connection: Connection, name: str, writes: Sequence[Write]) -> dict[str, Any] | None:
    """Return an index's bytes before and after rows exchanged their values in one of its columns."""
    change = next((w for w in reversed(writes) if w.kind == "update" and name in w.indexes), None)
    if change is None:
        return None
    before = _bytes(connection, name)
    for number in range(PASSES):
        connection.execute(_change(change, number).encode())
        connection.execute(sql.SQL("VACUUM {}").format(sql.SQL(change.quoted)))
    return {"column": change.column, "before": before, "after": _bytes(connection, name)}


def _change(write: Write, number: int) -> str:
    """Return the UPDATE in which SHARE percent of the rows exchange their values; each pass changes other rows."""
    column, table = write.quoted_column, write.quoted
    sample = f"SELECT ctid AS place, {column} AS own FROM {table} TABLESAMPLE BERNOULLI ({SHARE}) REPEATABLE ({number})"
    pairs = f"SELECT place, lead(own) OVER (ORDER BY md5(place::text)) AS other FROM ({sample}) s"
    return f"UPDATE {table} t SET {column} = p.other FROM ({pairs}) p WHERE t.ctid = p.place AND p.other IS NOT NULL"


def _bytes(connection: Connection, name: str) -> int:
    return next(int(row["bytes"]) for row in catalog.rows(connection, "indexes") if row["name"] == name)


def _require_room(base: Database, sets: int) -> None:
    """Raise ServerError if the lab would fill the disk: every set needs a template database and a clone."""
    if not isinstance(base.server, EmbeddedServer):
        return
    folder = base.server.data_dir
    with databases.connected(base.server, base.name) as connection:
        row = connection.execute("SELECT pg_database_size(current_database()) AS bytes").fetchone() or {"bytes": 0}
    needed, free = int(row["bytes"] * (sets + 1) * 2.5), shutil.disk_usage(folder).free
    if needed > free:
        expected = f"{needed // 10**6:,} MB for {sets} sets of indexes, each on copies of this data"
        raise ServerError(
            f"{folder}: {free // 10**6:,} MB are free; expected {expected}; use a smaller --scale, or set PERFKIT_HOME "
            "to a folder on a larger disk"
        )


def _described(asked: LabSpec) -> dict[str, Any]:
    options = asked.options
    return {
        "title": asked.settings.title,
        "command": asked.command,
        "parameters": {"profile": options.profile, "scale": options.scale, "seed": options.seed},
        "margin": asked.margin,
        "budget": None if math.isinf(asked.budget) else asked.budget,
        "indexes": [
            {"name": i.name, "table": i.table, "sql": i.sql(concurrently=True, if_not_exists=True), "keys": i.keys}
            for i in asked.indexes.indexes
        ],
        "baseline": asked.settings.baseline().name,
        "claims": [claim.model_dump(mode="json") for claim in asked.settings.claim],
    }
