"""A run from start to end: targets, data, arms, plans, checks, blocks; the bundle grows as the run goes.

Set-up, cloning and resetting services happen between rounds; inside a round there is only load.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from perfkit.base import process
from perfkit.base.errors import Interrupted, LoadError, PerfkitError, PlanError, redact_home
from perfkit.base.process import MODULE, alone, spawn, stop
from perfkit.config import Arm
from perfkit.explain import comparison
from perfkit.explain.capture import Capture, ExplainSpec, guarded
from perfkit.explain.comparison import PLANNED, fingerprint, typical_parameters
from perfkit.load.pool import CalibrationTrial, WorkerPool, calibrate, fewest_workers, http_target, sql_target
from perfkit.load.schedule import Draw, Message, Row
from perfkit.postgres import databases
from perfkit.postgres.capabilities import headroom
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission
from perfkit.runs import selection
from perfkit.runs.arms import Clones, InPlace, Workbench
from perfkit.runs.block import BlockClock, Progress, Rows, RunBlock, RunContext
from perfkit.runs.records import ArmRecord, Bundle, CheckResult, DataRecord, ServerRecord
from perfkit.runs.rounds import PILOT_BLOCKS, RoundReading, planned
from perfkit.runs.selection import Selection, fitted
from perfkit.runs.service import RelaySpec, run_checks
from perfkit.runs.targets import LOADED, Targets, admitted, caps

MAX_WORKERS = 16
NULL: Message = {"item": "null", "method": "GET", "path": "/", "json": None, "expect": [200]}


def measure(
    chosen: Selection,
    folder: Path,
    progress: Progress = lambda _: None,
    targets: Targets | None = None,
    bench: Workbench | None = None,
) -> Bundle:
    """Run the experiment into a new bundle in `folder`; without `targets`, no foreign target is used.

    A `bench` that the caller opened (see `workbench`) is used and stays open. Whatever happens, the bundle
    stays readable and states how far the run came, and nothing is left running.
    Raises PerfkitError, and Interrupted if the user stopped the run.
    """
    targets = targets or admitted(chosen.config, chosen.arms, Permission())
    experiment = Experiment(chosen, targets, progress)
    bundle = Bundle.create(folder, chosen.describe(_now()))
    try:
        experiment.run(bundle, bench)
        bundle.update(status="complete", finished=_now())
    except (KeyboardInterrupt, Interrupted):
        bundle.update(status="interrupted", finished=_now(), message="stopped by the user")
        raise Interrupted(f"stopped; what was measured so far is in {folder}") from None
    except PerfkitError as error:
        failure = {"message": redact_home(str(error)), "error": type(error).__name__}
        bundle.update(status="failed", finished=_now(), **failure)
        raise
    except BaseException as error:
        bundle.update(status="failed", finished=_now(), message=redact_home(f"{type(error).__name__}: {error}"))
        raise
    finally:
        progress("")
    return bundle


@contextmanager
def workbench(
    chosen: Selection, targets: Targets, audit: Audit, progress: Progress, *, shared: bool = False
) -> Iterator[Workbench]:
    """Connect to admitted targets, or start PostgreSQL; yield the workbench, whose databases end with the context.

    A run is alone on this machine, unless it is `shared`. Raises ServerError, TargetRefused.
    """
    with nullcontext() if shared else alone(progress):
        progress("connecting" if targets.addresses else "starting PostgreSQL")
        database, relay = chosen.config.database, RelaySpec(chosen.options.rtt_ms, chosen.options.connect_rtts)
        common = (chosen.config, secrets.token_hex(3), relay, targets.origins, targets.open(audit), progress)
        in_place = database is None or database.way == "in-place"
        with InPlace(*common) if in_place else Clones(*common, version=chosen.postgres) as bench:
            yield bench


class Experiment:
    """One run of a selection on its targets; the seed decides everything random."""

    def __init__(self, chosen: Selection, targets: Targets, progress: Progress) -> None:
        self._chosen, self._targets, self._progress, self._clock = chosen, targets, progress, BlockClock()
        self._users = max((scenario.users for scenario in chosen.scenarios), default=1)

    def run(self, bundle: Bundle, bench: Workbench | None = None) -> None:
        """Set up; then, phase by phase, prepare the arms, check them and measure every block."""
        chosen, clock = self._chosen, self._clock
        with ExitStack() as stack:
            audit = Audit(bundle.path / "audit.jsonl")
            if bench is None:
                stack.enter_context(alone(self._progress))  # the wait for another run is no time of this server
                with clock.timed("server"):
                    common = chosen, self._targets, audit, self._progress
                    bench = stack.enter_context(workbench(*common, shared=True))
            bench.config = chosen.config
            rows = self._set_up(bench, bundle)
            with clock.timed("workers"):
                most = min(2 * process.cores(), self._users, MAX_WORKERS)  # beyond two a core, they wait for each other
                pool = stack.enter_context(WorkerPool(most, bench.require_alive))
                null = stack.enter_context(null_service()) if chosen.config.service else ""
            bundle.update(arms={}, checks={})
            limits = caps(chosen.config, self._targets)
            context = RunContext(chosen, bench, pool, null, rows, {}, limits, audit, clock, self._progress)
            first = 0
            for arms in bench.phases(chosen.arms):
                self._require_headroom(bench, arms)
                with bench.phase(arms):
                    self._prepare(context, arms, bundle)
                    if first == 0:  # the plans of `before` show how long a query takes
                        took = self._took(arms, bundle)
                        context = replace(context, chosen=self._fitted(took, bundle), took=took)
                        self._calibrate(context, bundle)
                        context = self._planned(context, arms, bundle)
                    for number in range(context.chosen.blocks):
                        first = RunBlock(context, number, arms, first).run(bundle)
                        bundle.update(timings=dict(clock.seconds))

    def check(self) -> dict[str, list[CheckResult]]:
        """Run only the functional checks; return their results by arm."""
        chosen = self._chosen
        with ExitStack() as stack:
            audit = Audit(None)
            bench = stack.enter_context(workbench(chosen, self._targets, audit, self._progress))
            rows = self._rows(bench.base(chosen.scale))
            pool = stack.enter_context(WorkerPool(process.cores(), bench.require_alive))
            limits = caps(chosen.config, self._targets)
            context = RunContext(chosen, bench, pool, "", rows, {}, limits, audit, self._clock, self._progress)
            results: dict[str, list[CheckResult]] = {}
            for arms in bench.phases(chosen.arms):
                with bench.phase(arms):
                    for arm in arms:
                        bench.prepare(arm)
                    results |= self._checks(context, arms)
            return results

    def _planned(self, context: RunContext, arms: Sequence[Arm], bundle: Bundle) -> RunContext:
        """Return the context with the number of blocks that a pilot's spread requires, if that was asked for.

        The pilot's rounds are not part of the run.
        """
        options = context.chosen.options
        if not options.plan_for:
            return context
        pilot = Bundle.create(bundle.path / "pilot", bundle.run.model_copy(update={"blocks": []}))
        context = replace(context, chosen=replace(context.chosen, options=replace(options, blocks=PILOT_BLOCKS)))
        done = 0
        for number in range(PILOT_BLOCKS):
            done = RunBlock(context, number, arms, done, "pilot").run(pilot)
        pilot.update(status="complete")
        cells = RoundReading.of(pilot.rounds(), pilot.run).cells
        block_s = sum(block.seconds for block in pilot.run.blocks) / PILOT_BLOCKS
        before = context.chosen.config.baseline().name
        plan = planned(cells, before, options.plan_for / 100, block_s, 60 * options.max_minutes)
        if plan is None:
            raise LoadError("the pilot gave no medians to plan from; expected requests that are answered")
        self._progress(plan.sentence)
        blocks = plan.blocks
        bundle.update(planning=plan, parameters=bundle.run.parameters.model_copy(update={"blocks": blocks}))
        return replace(context, chosen=replace(context.chosen, options=replace(options, blocks=blocks)))

    def _calibrate(self, context: RunContext, bundle: Bundle) -> None:
        """Reduce the pool to the number of workers with which this machine is fastest; the bundle keeps the trials."""
        pool, workbench, chosen = context.pool, context.workbench, self._chosen
        trials: tuple[CalibrationTrial, ...] = ()
        with self._clock.timed("workers"):
            if len(pool) > 1 and context.null:
                null = http_target(context.null, chosen.config.limits.request_timeout_s)
                trials = calibrate(pool, null, NULL, self._users)
            elif len(pool) > 1 and workbench.private:
                database, _ = workbench.prepare(chosen.config.baseline())
                assert database
                target = sql_target(database.server.conninfo(database.name), 10, 10)
                trials = calibrate(pool, target, {"item": "null", "sql": "SELECT 1", "params": None}, self._users)
            pool.shrink(fewest_workers(trials) if trials else process.cores())
        bundle.update(workers=len(pool), calibration=list(trials))

    def _set_up(self, workbench: Workbench, bundle: Bundle) -> Rows:
        """Make the base database; return the parameter rows."""
        chosen, clock = self._chosen, self._clock
        with clock.timed("data"):
            base = workbench.base(chosen.scale)
        bundle.update(origin=workbench.origin, database=DataRecord(scale=chosen.scale))
        if base:
            sizes = databases.sizes(base.server, base.name, exact=workbench.private)
            bundle.update(
                server=ServerRecord(
                    kind=base.server.name,
                    version=databases.server_version(base.server),
                    settings=databases.settings(base.server, base.name),
                ),
                database=DataRecord(
                    scale=chosen.scale,
                    rows={table: size["rows"] for table, size in sizes.items()},
                    bytes={table: size["bytes"] for table, size in sizes.items()},
                    seconds=round(clock.seconds["data"], 2),
                ),
            )
        return self._rows(base)

    def _rows(self, base: Database | None) -> Rows:
        seed = str(self._chosen.options.seed)
        sources = self._chosen.config.parameters.items()
        return {name: selection.rows(name, source, base, seed) for name, source in sources}

    def _require_headroom(self, workbench: Workbench, arms: Sequence[Arm]) -> None:
        """Raise TargetRefused if a burst would take a foreign server's last connections."""
        database = self._chosen.config.database
        if database is None or database.way not in LOADED:
            return
        for external in {id(e): e for e in (workbench.sources.get(arm.name) for arm in arms) if e}.values():
            headroom(external, self._users)

    def _prepare(self, context: RunContext, arms: Sequence[Arm], bundle: Bundle) -> None:
        """Prepare the arms with their indexes, capture the plan of every query on each, and run their checks."""
        for arm in arms:
            self._progress(f"preparing {arm.name}")
            facts = self._facts(context.workbench, arm, context.rows, bundle)
            bundle.update(arms={**bundle.run.arms, arm.name: facts})
        bundle.update(checks={**bundle.run.checks, **self._checks(context, arms)})

    def _took(self, arms: Sequence[Arm], bundle: Bundle) -> dict[tuple[str, str], float]:
        """Return a query's execution time at the capture of its plan, in ms, by arm: the shortest of equal plans."""
        keys = [(arm.name, query.name) for arm in arms for query in self._chosen.queries_on(arm)]
        plans = {key: capture.plan for key in keys if (capture := bundle.plan(*key))}
        alike = {key: (key[1], fingerprint(plan)) for key, plan in plans.items()}
        least: dict[tuple[str, str], float] = {}
        for key, plan in plans.items():
            least[alike[key]] = min(plan.execution_ms, least.get(alike[key], plan.execution_ms))
        return {key: least[alike[key]] for key in plans}

    def _fitted(self, took: Mapping[tuple[str, str], float], bundle: Bundle) -> Selection:
        """Return the selection with fewer requests in rounds that would exceed their time."""
        before = self._chosen.config.baseline().name
        chosen = fitted(self._chosen, {query: ms for (arm, query), ms in took.items() if arm == before})
        bundle.update(scenarios=chosen.scenario_records)
        return chosen

    def _facts(self, workbench: Workbench, arm: Arm, rows: Rows, bundle: Bundle) -> ArmRecord:
        with self._clock.timed("indexes"):
            database, built = workbench.prepare(arm)
        with self._clock.timed("plans"):
            for query in self._chosen.queries_on(arm) if database else ():
                assert database
                text, parameters = self._chosen.text(arm.name, query.name), rows.get(query.parameters or "", ())
                file = arm.rewrite.get(query.name, query.file)
                try:
                    capture = self._plan(database, text, parameters[:PLANNED])
                    bundle.add_plan(arm.name, query.name, capture)
                except PlanError as error:
                    raise PlanError(f"{redact_home(str(file))}: {error}") from None
        sizes = databases.sizes(database.server, database.name, exact=False) if database else {}
        return ArmRecord(
            title=arm.title,
            role=arm.role,
            settings=arm.settings,
            server_settings=databases.settings(database.server, database.name) if database else {},
            postgres=database.server.version if database else 0,
            rewrite={query: self._chosen.text(arm.name, query) for query in arm.rewrite},
            indexes=built,
            expected_indexes=self._chosen.expected_indexes[arm.name],
            table_bytes={table: size["bytes"] for table, size in sizes.items()},
            plans=[query.name for query in self._chosen.queries_on(arm)] if database else [],
        )

    def _plan(self, database: Database, text: str, rows: Sequence[Row]) -> Capture:
        """Run EXPLAIN ANALYZE with typical parameters; on a foreign server only if the query is harmless."""
        typical = typical_parameters(database.session, text, rows) if rows else None
        config = self._chosen.config
        allowed = config.database.volatile if config.database else ()
        options = ExplainSpec(timeout_s=config.limits.statement_timeout_s)
        return guarded(database.server, database.session, text, typical, options, allowed)

    def _checks(self, context: RunContext, arms: Sequence[Arm]) -> dict[str, list[CheckResult]]:
        """Check the rewrites and the service of every arm except the control, on clones that no round uses."""
        checked = [arm for arm in arms if arm.role != "control"]
        results: dict[str, list[CheckResult]] = {arm.name: [] for arm in checked}
        with self._clock.timed("checks"):
            self._progress("checks")
            for arm in checked:
                results[arm.name] += self._same_rows(context, arm)
            if self._chosen.config.service and self._chosen.config.check:
                context.workbench.refresh(checked)
                context.workbench.serve(checked)
                for arm in checked:
                    results[arm.name] += self._functional(context, arm)
        return {arm: of_arm for arm, of_arm in results.items() if of_arm}

    def _functional(self, context: RunContext, arm: Arm) -> list[CheckResult]:
        config = self._chosen.config
        base, address = context.workbench.service_address(arm)
        limits = context.caps.get(arm.name)
        target = http_target(base, config.limits.request_timeout_s, address=address, limits=limits)
        draw, start = Draw(context.rows, f"{self._chosen.options.seed}/checks"), perf_counter()
        try:
            return run_checks(config, target, context.pool, draw)
        finally:
            if limits:
                name = context.workbench.target_name(arm.name)
                steps = {step.request for check in config.check for step in check.step}
                asked = [f"{r.method} {r.path}" for r in config.request if r.name in steps]
                context.audit.load(name, "functional checks", arm.name, asked, None, perf_counter() - start)

    def _same_rows(self, context: RunContext, arm: Arm) -> list[CheckResult]:
        """Check that each rewritten query returns the rows of the query that it replaces."""
        results = []
        for name in arm.rewrite:
            database, _ = context.workbench.prepare(arm)
            assert database
            source = self._chosen.queries[name].parameters
            parameters: Sequence[Row | None] = context.rows[source][:PLANNED] if source else [None]
            limit = self._chosen.config.limits.statement_timeout_s
            rows = comparison.compare(
                database.session, self._chosen.sql[name], self._chosen.text(arm.name, name), parameters, timeout_s=limit
            )
            got = rows.first_difference or f"the same for {rows.equal} of {rows.compared} parameter sets"
            passed = rows.equal == rows.compared
            results.append(
                CheckResult(
                    name=f"Rows of {name}",
                    group="rewrite",
                    passed=passed,
                    expected="the rows of before",
                    got=got,
                    ms=0.0,
                )
            )
        return results


@contextmanager
def null_service() -> Iterator[str]:
    """Run the null service, for the floor; yield its URL."""
    process = spawn([*MODULE, "perfkit.load.http"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise LoadError("the null service did not start; expected its port")
        yield f"http://127.0.0.1:{json.loads(line)['port']}"
    finally:
        stop(process)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
