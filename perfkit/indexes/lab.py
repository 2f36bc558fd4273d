"""An index lab from start to end: ablation, choice of a set, and its confirmation in separate rounds."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from perfkit.base.errors import Interrupted, PerfkitError, ServerError, UsageError, redact_home
from perfkit.config import Arm, Config
from perfkit.explain.capture import Parameters
from perfkit.indexes import designs, writes
from perfkit.indexes.advice import Advice
from perfkit.indexes.designs import (
    ABLATION,
    ALL,
    CHOSEN,
    MORE,
    NONE,
    ArmCounts,
    Confirmation,
    LabArm,
    LabDesign,
    LabIndex,
    LabParameters,
    LabRecord,
    LabRemark,
    require_unique_names,
    workload,
)
from perfkit.indexes.lab_results import Lab
from perfkit.indexes.use import ask, judge
from perfkit.indexes.writes import Writes, design_writes
from perfkit.postgres import catalog, databases
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import Audit, Permission
from perfkit.postgres.index_sets import IndexSet
from perfkit.runs.arms import Workbench
from perfkit.runs.experiment import measure, workbench
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.targets import admitted

STATEMENTS, SECONDS = 100, 0.3  # maximum number of counted statements of each kind, and their time
TRIES = 4  # confirming runs at most: every further one raises the chance of a false result
AUTO = "auto"  # compare with the set that perfkit itself advises
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

    @property
    def arms(self) -> list[LabArm]:
        """Return the arms of the first run."""
        return designs.ablation(self.indexes, reads=self.reads)

    @property
    def record(self) -> LabRecord:
        """Return the record of a lab that has measured nothing yet."""
        options, settings = self.options, self.settings
        return LabRecord(
            title=settings.title,
            command=self.command,
            parameters=LabParameters(profile=options.profile, scale=options.scale, seed=options.seed),
            margin=self.margin,
            budget=None if math.isinf(self.budget) else self.budget,
            indexes=tuple(
                LabIndex(name=i.name, table=i.table, sql=i.sql(concurrently=True, if_not_exists=True), keys=i.keys)
                for i in self.indexes.indexes
            ),
            baseline=settings.baseline().name,
            claims=settings.claim,
        )


def run_lab(spec: LabSpec, folder: Path, permission: Permission, advise: Advise, say: Say) -> Lab:
    """Run a lab into a new folder, which stays readable even if the lab fails or is interrupted.

    `advise` returns the set to compare with if `spec.advised` is AUTO. Raises PerfkitError as `measure` does, and
    UsageError for a configuration that a lab cannot measure.
    """
    run = _Running(Lab(folder, spec.record), spec, permission, say)
    try:
        with ExitStack() as stack:
            run.open(stack, advise)
            run.measure()
        run.keep(status="complete")
    except (KeyboardInterrupt, Interrupted):
        run.keep(status="interrupted", message="stopped by the user")
        again = f"perfkit indexes ablate --bundle {folder}"
        raise Interrupted(f"stopped; the measurements so far are in {folder}: {again}") from None
    except BaseException as error:
        message = str(error) if isinstance(error, PerfkitError) else f"{type(error).__name__}: {error}"
        run.keep(status="failed", message=redact_home(message))
        raise
    return run.lab


@dataclass(eq=False)
class _Running:
    """A lab while it runs: its results so far, and from `open` on its workbench and what its runs share."""

    lab: Lab
    spec: LabSpec
    permission: Permission
    say: Say

    def keep(self, **values: object) -> None:
        """Add values to the record, and write it."""
        self.lab = self.lab.updated(**values)

    def open(self, stack: ExitStack, advise: Advise) -> None:
        """Open the workbench with its data, and design the runs."""
        spec, folder, say, settings = self.spec, self.lab.folder, self.say, self.spec.settings
        if settings.database is None or settings.database.way == "in-place":
            raise UsageError(
                f"{settings.title}: way = in-place cannot compare indexes side by side; expected another 'way'"
            )
        if spec.reads and not settings.query:
            raise UsageError(f"{settings.title}: no [[query]]; expected the queries that the indexes are for")
        seconds = 0.15 if settings.profiles.get(spec.options.profile, 0) <= 6 else 0.5
        shared = settings.model_copy(update={"margin": spec.margin, "query": settings.query if spec.reads else ()})
        bare = LabDesign(shared, folder / "sets", spec.indexes, Writes(), seconds)
        bare.write()
        config = bare.config(spec.arms)
        chosen = Selection(config, spec.options)
        targets = admitted(config, [*config.arm, Arm(name=CHOSEN, role="after")], self.permission)
        audit = Audit(folder / "audit.jsonl")
        self.bench: Workbench = stack.enter_context(workbench(chosen, targets, audit, say))
        base = self.bench.base(chosen.scale)
        assert base
        self.base = base
        _require_room(base, len(spec.arms))
        advised = spec.advised
        if base.server.foreign:
            of_tables = Writes(lacking=("writes: measured only on servers that perfkit starts, not on your server",))
        else:
            of_tables = design_writes(base.server, base.name, spec.indexes.indexes)
        if advised == AUTO and spec.reads:  # the set that perfkit advises without knowing the lab's set
            queries = workload(settings, base, spec.options.seed)
            advice = advise(base, queries, lambda text: say(f"advice, {text}"))
            advised = advice.sql if advice.proposals else ""
        self.design = replace(bare, writes=of_tables, advised=advised)
        self.design.write()
        self.keep(writes=of_tables.writes, lacking=of_tables.lacking)

    def measure(self) -> None:
        """Measure all runs, each into its bundle, and record the choice after each."""
        spec, arms = self.spec, self.spec.arms
        self.keep(ablation={arm.name: arm.indexes for arm in arms}, advised=self.design.advised)
        self._run(ABLATION, arms, 0)
        everything, _ = self.bench.prepare(next(arm for arm in self.bench.config.arm if arm.name == ALL))
        assert everything
        self.keep(overhead=_overhead(everything))
        self.keep(remarks=self._remarks(everything))
        self.keep(wear=tuple(self._counts(arms)))
        if not spec.reads:
            return
        kept = designs.choose(self.lab.measured, spec.margin, spec.budget)
        tried: tuple[Confirmation, ...] = ()
        for number in range(1, TRIES + 1):
            arms = designs.confirmation(self.lab.record.names, kept, advised=bool(self.design.advised))
            tried += (Confirmation(name=f"confirmation-{number}", sets={arm.name: arm.indexes for arm in arms}),)
            self.keep(kept=kept)
            self._run(tried[-1].name, arms, number, MORE)
            self.keep(confirmations=tried)
            after = self._next(kept)
            if after is None or after in [run.sets[CHOSEN] for run in tried]:
                return
            kept = after

    def _run(self, name: str, arms: Sequence[LabArm], seed: int, more: int = 1) -> None:
        """Measure these arms into the bundle `name`."""
        config = self.design.config(arms, more)
        options = replace(self.spec.options, seed=self.spec.options.seed + seed)
        targets = admitted(config, config.arm, self.permission)
        progress = lambda text: self.say(text and f"{name}, {text}")  # noqa: E731
        measure(Selection(config, options), self.lab.folder / name, progress, targets, self.bench)

    def _next(self, kept: Sequence[str]) -> tuple[str, ...] | None:
        """Return the set to try next: one more index if queries became slower, else one fewer if none needs it."""
        measured, margin = self.lab.measured, self.spec.margin
        if slower := self.lab.slower:
            more = designs.helper(measured, kept, [c.item for c in slower], self.spec.budget)
            return tuple(name for name in measured.alone if name in (*kept, more)) if more else None
        needs = self.lab.needs.items()
        spare = [name for name, reads in needs if reads and all(designs.within(c, margin) for c in reads)]
        least = max(spare, key=measured.bytes.__getitem__, default=None)
        return tuple(name for name in kept if name != least) if least else None

    def _remarks(self, everything: Database) -> tuple[LabRemark, ...]:
        """Return the catalogue's remarks on the set's indexes and tables, with the scans that the lab counted."""
        facts, scans, bundle = ask(everything.server, everything.name), self.lab.scans, self.lab.ablation.bundle
        captures = (bundle.plan(arm, query) for arm in (ALL, NONE) for query in self.lab.queries)
        plans = [capture.plan for capture in captures if capture]
        facts = replace(facts, indexes=tuple(replace(i, scans=scans.get(i.name, 0)) for i in facts.indexes))
        tables, names = self.design.writes.tables, self.lab.record.names
        return tuple(
            LabRemark(kind=r.kind, index=r.index, table=r.table, text=r.text)
            for r in judge(facts, plans)
            if r.kind != "unused" and (r.index in names or (r.kind == "missing" and r.table in tables))
        )

    def _counts(self, arms: Sequence[LabArm]) -> list[ArmCounts]:
        """Return the server's counts for each write, by arm.

        The counts are made on one clone after the other, because time plays no part in them.
        """
        base, of_tables = self.base, self.design.writes
        rows = {
            w.item: databases.fetched(base.server, base.name, self.design.file(f"{w.item}-rows"), STATEMENTS)
            for w in of_tables.writes
        }
        configured = {arm.name: arm for arm in self.bench.config.arm}
        counts = []
        for arm in arms:
            of_arm = [write for write in of_tables.writes if arm.writes_to(write.table, of_tables)]
            if not of_arm:
                continue
            self.say(f"counting what {configured[arm.name].title} cost writes")
            self.bench.refresh([configured[arm.name]])
            clone = self.bench.database(configured[arm.name])
            assert clone
            name = arm.indexes[0] if len(arm.indexes) == 1 else ""
            with databases.connected(clone.server, clone.name) as connection:
                counted = {
                    w.item: writes.counts(connection, w, rows[w.item][: w.times(STATEMENTS, SECONDS)]) for w in of_arm
                }
                churn = writes.churn(connection, name, of_arm)
            counts.append(ArmCounts(arm=arm.name, index=name, counted=counted, churn=churn))
        return counts


def _overhead(database: Database) -> dict[str, float]:
    """Return by index the bytes that an insert is expected to add to it, as a share of the row's bytes."""
    with databases.connected(database.server, database.name) as connection:
        return {row["name"]: row["share"] for row in catalog.rows(connection, "index_overhead")}


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
