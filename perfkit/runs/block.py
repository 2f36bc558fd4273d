"""A block: one round of every arm and of the floor for every scenario, on fresh clones, in random order."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from time import perf_counter

from perfkit.base.errors import LoadError
from perfkit.config import Arm, RateSearch, Scenario
from perfkit.load import pgbench
from perfkit.load.pgbench import ScriptQuery
from perfkit.load.pool import (
    Load,
    SearchStep,
    WorkerPool,
    alternating_target,
    combined,
    combined_steps,
    http_target,
    is_open_ended,
    judge_step,
    next_rate,
    selected,
    sql_target,
)
from perfkit.load.samples import DROPPED, OK, Caps
from perfkit.load.schedule import Batch, Draw, HttpTarget, Message, Row, SqlTarget, Target, batches, http_message, turns
from perfkit.postgres import databases, embedded
from perfkit.postgres.capabilities import Surroundings, between
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit
from perfkit.runs.arms import Workbench
from perfkit.runs.records import FLOOR, BlockRecord, Bundle, Round
from perfkit.runs.selection import Selection

Progress = Callable[[str], None]
Rows = Mapping[str, Sequence[Row]]
WARM_USERS = 5
FLOOR_SQL = "SELECT 1"
PGBENCH_ROWS = 1000  # maximum number of a query's parameter rows for pgbench, which repeats them
PHASES = ("clones", "services", "state", "warm-up", "load", "scans")  # the parts of a block that are timed


@dataclass(slots=True)
class BlockClock:
    """Seconds by phase of a run."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time that the body takes to a phase."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = round(self.seconds[phase] + perf_counter() - start, 3)


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all blocks of a run share: databases and services, workers, the null service's URL, parameter rows."""

    chosen: Selection
    workbench: Workbench
    pool: WorkerPool
    null: str
    rows: Rows
    took: Mapping[tuple[str, str], float]  # ms of one execution, by arm and query
    caps: Mapping[str, Caps]
    audit: Audit
    clock: BlockClock
    progress: Progress


class RunBlock:
    """One block of the arms that can alternate; the floor is measured beside `before`.

    The seed, the block's number and `of` ("pilot" or "") decide its requests and their order.
    """

    def __init__(self, context: RunContext, number: int, arms: Sequence[Arm], first: int, of: str = "") -> None:
        self._context, self._number, self._chosen = context, number, context.chosen
        self._arms, self._done = list(arms), first
        self._started, self._earlier = perf_counter(), sum(map(context.clock.seconds.get, PHASES, repeat(0.0)))
        self._of, seed = of, f"{self._chosen.options.seed}/{of}{number}"
        self._order = random.Random(f"{seed}/order")
        names = [arm.name for arm in arms]
        self._draws = {name: Draw(context.rows, seed) for name in [*names, FLOOR]}
        self._warm_draws = {name: Draw(context.rows, seed, last_first=True) for name in names}
        self._answered: dict[str, Counter[str]] = {name: Counter() for name in names}
        self._failures: Counter[str] = Counter()
        self._sql_scans: dict[str, Counter[str]] = {name: Counter() for name in names}
        self._around = Surroundings()

    def run(self, bundle: Bundle) -> int:
        """Run every round on a fresh state, into the bundle; return the number of rounds so far."""
        clock, workbench, arms = self._context.clock, self._context.workbench, self._arms
        self._say("cloning")
        with clock.timed("clones"):
            workbench.refresh(arms)
            # What touches the server's memory first lies better in it, so the first clones are read once and replaced.
            if workbench.private and not self._number:
                self._state()
                workbench.refresh(arms)
        with clock.timed("services"):
            workbench.serve(arms)
        with clock.timed("state"):
            state = self._state()
            begin = {arm.name: self._scans(arm) for arm in arms}
        with clock.timed("warm-up"):
            self._warm_up()
        with clock.timed("load"), self._around:
            for scenario in self._chosen.scenarios:
                takers: list[Arm | None] = [arm for arm in arms if not scenario.arms or arm.name in scenario.arms]
                takers += [None] if self._chosen.config.baseline() in takers else []  # None: the floor
                if scenario.alternate:
                    self._alternating(scenario, takers, bundle)
                    continue
                for arm in self._order.sample(takers, len(takers)):
                    self._round(scenario, arm, bundle)
        with clock.timed("scans"):
            end = {arm.name: self._scans(arm, terminate=True) for arm in arms}
        exact = workbench.private  # otherwise the counters include other users' scans
        record = BlockRecord(
            block=self._number,
            seconds=round(perf_counter() - self._started, 2),
            state=state,
            warm_up_failures=dict(self._failures),
            http_requests={arm: dict(answered) for arm, answered in self._answered.items() if exact},
            http_scans={a: _minus(end[a], begin[a], self._sql_scans[a]) for a in end if exact},
        )
        earlier = bundle.run.blocks[self._number : self._number + 1]  # of the arms in an earlier phase
        blocks = [*bundle.run.blocks[: self._number], earlier[0].merged(record) if earlier else record]
        bundle.update(blocks=[*blocks, *bundle.run.blocks[self._number + 1 :]])
        return self._done

    def _warm_up(self) -> None:
        """Fill caches and the statement plans of pooled connections, with the arm's number of requests of each kind.

        Warm-up rows are drawn separately, because the rounds must use the same rows in every arm.
        """
        sent = {name for scenario in self._chosen.scenarios for name in scenario.send}
        for arm in self._arms:
            each = arm.warmup // WARM_USERS
            for name in sorted(sent & self._chosen.requests.keys()) if each else ():
                request, draw = self._chosen.requests[name], self._warm_draws[arm.name]
                queues = tuple(
                    tuple(http_message(request, _drawn(draw, request.parameters)) for _ in range(each))
                    for _ in range(WARM_USERS)
                )
                start = perf_counter()
                load = self._context.pool.run(self._http(arm), [Batch(queues)])
                if arm.name in self._context.caps:
                    target, asked = self._context.workbench.target_name(arm.name), [f"{request.method} {request.path}"]
                    count = len(load.columns)
                    self._context.audit.load(target, "warm-up", arm.name, asked, count, perf_counter() - start)
                self._count(arm.name, load)
                self._failures[arm.name] += sum(outcome != "ok" for outcome in load.columns.outcome)

    def _round(self, scenario: Scenario, arm: Arm | None, bundle: Bundle) -> None:
        name = arm.name if arm else FLOOR
        self._say(f"{scenario.name} on {name}")
        usage: dict[str, dict[str, int]] = {}
        target = arm or self._chosen.config.baseline()  # the floor of queries is measured on the baseline
        before = self._beside(scenario, arm)
        start, load = perf_counter(), None
        try:
            if self._chosen.is_sql(scenario):
                load = self._query_round(scenario, arm, usage)
            else:
                load = self._load(scenario, arm, self._http(arm))
            self._context.workbench.require_alive()
        except LoadError as error:
            raise LoadError(f"block {self._number}, {scenario.name} on {name}: {error}") from None
        finally:
            if target.name in self._context.caps and (arm or self._chosen.is_sql(scenario)):
                self._audit(scenario, arm, target.name, load, perf_counter() - start)
        if arm and not usage:
            self._count(name, load)
        health = {**load.health, **between(before, self._beside(scenario, arm))}
        rest = {item: requests.record for item, requests in load.rest.items()}
        bundle.add_round(Round(self._number, self._done, scenario.name, name, load.columns, health, usage, rest))
        self._done += 1

    def _alternating(self, scenario: Scenario, arms: Sequence[Arm | None], bundle: Bundle) -> None:
        """Run a round of every arm at once; the arms take turns, request by request."""
        self._say(f"{scenario.name} on {len(arms)} arms in turn")
        targets = {arm.name if arm else FLOOR: self._sql(arm, scenario) for arm in arms}
        loads: dict[str, list[Load]] = {name: [] for name in targets}
        start, count = perf_counter(), scenario.warm + scenario.requests
        before = [self._beside(scenario, arm) for arm in arms]
        for item in scenario.send:
            order = turns(scenario, {name: self._context.took.get((name, item), 0.0) for name in targets}, self._order)
            messages = {name: [self._message(name, item) | {"arm": name} for _ in range(count)] for name in targets}
            queue = tuple(messages[name][number] for name, number in order)
            try:
                load = self._context.pool.run(alternating_target(targets), [Batch((queue,))])
                self._context.workbench.require_alive()
            except LoadError as error:
                raise LoadError(f"block {self._number}, {scenario.name}: {error}") from None
            for name in targets:
                counted = [number >= scenario.warm if turn == name else None for turn, number in order]
                loads[name].append(selected(load, counted))
        beside = [between(was, self._beside(scenario, arm)) for was, arm in zip(before, arms, strict=True)]
        for arm, facts, (name, parts) in zip(arms, beside, loads.items(), strict=True):
            load = combined(parts)
            if arm:
                self._count(name, load)
            if (target := (arm or self._chosen.config.baseline()).name) in self._context.caps:
                self._audit(scenario, arm, target, load, perf_counter() - start)
            health = {**load.health, **facts}
            bundle.add_round(Round(self._number, self._done, scenario.name, name, load.columns, health))
            self._done += 1

    def _query_round(self, scenario: Scenario, arm: Arm | None, usage: dict[str, dict[str, int]]) -> Load:
        """Run a round of queries; return its samples and add each query's scans to `usage`.

        In the closed model queries run one after the other, so that every scan that the server counts belongs to a
        known query. In the open model and with pgbench, that holds only for a round with a single query.
        """
        closed = not (scenario.rate or scenario.pgbench)
        parts = [scenario.model_copy(update={"send": (item,)}) for item in scenario.send] if closed else [scenario]
        loads = []
        for one in parts:
            before = self._scans(arm) if arm else {}
            loads.append(self._load(one, arm, self._sql(arm, one)))
            if arm and self._context.workbench.private:
                scans = _minus(self._scans(arm), before)
                self._sql_scans[arm.name].update(scans)
                if len(one.send) == 1:
                    usage[one.send[0]] = scans
        return combined(loads)

    def _audit(self, scenario: Scenario, arm: Arm | None, target: str, load: Load | None, seconds: float) -> None:
        """Record in the audit what was sent to a foreign target; after an abort the number of requests is unknown."""
        queries = [name for name in scenario.send if name in self._chosen.queries]
        texts = [self._chosen.text(target, name) if arm else FLOOR_SQL for name in queries]
        asked = [f"{r.method} {r.path}" for r in self._chosen.config.request if r.name in scenario.send]
        sent = sum(n for (_, outcome), n in load.counts().items() if outcome != DROPPED) if load else None
        name = self._context.workbench.target_name(target)
        self._context.audit.load(name, scenario.name, target, texts or asked, sent, seconds)

    def _load(self, scenario: Scenario, arm: Arm | None, target: Target) -> Load:
        name, limits = arm.name if arm else FLOOR, self._chosen.config.limits
        seed = f"{self._chosen.options.seed}/{self._of}{self._number}/{scenario.name}"  # the same arrivals in every arm
        if scenario.pgbench and target["kind"] == "sql":
            return self._by_pgbench(scenario, arm, target, seed)
        if scenario.search and arm:
            return self._searched(scenario, scenario.search, name, target, seed)
        whole = batches(scenario, lambda item: self._message(name, item), seed)
        return self._context.pool.run(target, whole, samples=limits.samples)

    def _by_pgbench(self, scenario: Scenario, arm: Arm | None, target: SqlTarget, seed: str) -> Load:
        database = self._context.workbench.database(arm or self._chosen.config.baseline())
        assert database and isinstance(
            database.server, embedded.EmbeddedServer
        )  # `pgbench.require` refuses other servers
        work: list[ScriptQuery | Path] = list(scenario.script)
        if arm is None:
            work = [ScriptQuery(item, FLOOR_SQL) for item in scenario.items]
        for item in scenario.send if arm else ():
            assert arm
            source, draw = self._chosen.queries[item].parameters, self._draws[arm.name]
            count = min(PGBENCH_ROWS, len(self._context.rows[source])) if source else 0
            rows = [draw(source) for _ in range(count)] if source else None
            work.append(ScriptQuery(item, self._chosen.text(arm.name, item), rows))
        program, samples = pgbench.program(database.server.bin_dir), self._chosen.config.limits.samples
        watch = self._context.workbench.require_alive
        return pgbench.run(program, target, scenario, work, seed, samples=samples, watch=watch)

    def _searched(self, scenario: Scenario, search: RateSearch, name: str, target: Target, seed: str) -> Load:
        """Search for the highest rate that holds, step by step; only the samples of that step count."""
        steps: list[SearchStep] = []
        loads: list[Load] = []
        assert scenario.rate
        while rate := next_rate(search, scenario.rate, steps):
            self._say(f"{scenario.name} on {name}, {rate:,.0f}/s")
            paced = scenario.model_copy(update={"rate": rate})
            whole = batches(paced, lambda item: self._message(name, item), f"{seed}/{rate:.3f}")
            loads.append(self._context.pool.run(target, whole, samples=self._chosen.config.limits.samples))
            steps.append(judge_step(rate, loads[-1], self._chosen.config.thresholds, self._chosen.config.limits))
        return combined_steps(loads, steps, is_open_ended(search, steps))

    def _beside(self, scenario: Scenario, arm: Arm | None) -> Mapping[str, float]:
        """Return what server and machine have counted so far; the floor of HTTP requests uses no server."""
        target = arm or (self._chosen.config.baseline() if self._chosen.is_sql(scenario) else None)
        return self._around.read(self._context.workbench.database(target) if target else None)

    def _count(self, arm: str, load: Load) -> None:
        """Count successful requests: each of them ran its statements."""
        self._answered[arm].update({item: n for (item, outcome), n in load.counts().items() if outcome == OK})

    def _message(self, arm: str, item: str) -> Message:
        """Return the next request or query of a name; the floor sends the same request to the null service."""
        draw, chosen = self._draws[arm], self._chosen
        if item in chosen.requests:
            message = http_message(chosen.requests[item], _drawn(draw, chosen.requests[item].parameters))
            return message | {"expect": [200], "contains": []} if arm == FLOOR else message
        source = chosen.queries[item].parameters
        parameters = draw(source) if source else None
        if arm == FLOOR:
            return {"item": item, "sql": FLOOR_SQL, "params": None}
        return {"item": item, "sql": chosen.text(arm, item), "params": parameters}

    def _sql(self, arm: Arm | None, scenario: Scenario) -> SqlTarget:
        limits, name = self._chosen.config.limits, (arm or self._chosen.config.baseline()).name
        database = self._context.workbench.database(arm or self._chosen.config.baseline())
        assert database
        return sql_target(
            database.server.conninfo(database.name),
            limits.request_timeout_s,
            limits.statement_timeout_s,
            pooler=database.server.pooler,
            read_only="writes" not in database.server.permissions,
            settings=database.settings,
            limits=self._context.caps.get(name),
            retries=scenario.retries,
            connections=scenario.connections,
            pinned=not database.server.foreign and scenario.users == 1 and not scenario.rate,
        )

    def _http(self, arm: Arm | None) -> HttpTarget:
        limit, service = self._chosen.config.limits.request_timeout_s, self._chosen.config.service
        if arm is None or service is None:
            return http_target(self._context.null, limit, "/")
        base, address = self._context.workbench.service_address(arm)
        caps = self._context.caps.get(arm.name)
        return http_target(base, limit, service.health, address=address, limits=caps)

    def _state(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return the sizes of each arm's tables.

        Counting rows also reads the tables into the server's memory. The position there makes scans faster or slower,
        so the order of the arms is drawn anew for every block.
        """
        order = random.Random(f"{self._chosen.options.seed}/{self._of}{self._number}/memory")
        arms = {arm.name: self._private(arm) for arm in order.sample(self._arms, len(self._arms))}
        return {arm: databases.sizes(own.server, own.name) if own else {} for arm, own in arms.items()}

    def _scans(self, arm: Arm, *, terminate: bool = False) -> dict[str, int]:
        own = self._private(arm)
        return databases.scans(own.server, own.name, terminate=terminate) if own else {}

    def _private(self, arm: Arm) -> Database | None:
        """Return the arm's database if nobody else uses it, so that its counters show this run alone."""
        return self._context.workbench.database(arm) if self._context.workbench.private else None

    def _say(self, what: str) -> None:
        blocks = self._chosen.blocks
        total = blocks * sum(len(s.arms or self._chosen.arms) + 1 for s in self._chosen.scenarios)
        spent = self._earlier + perf_counter() - self._started
        left = ""
        if self._done:
            minutes, seconds = divmod(int(spent / self._done * (total - self._done)), 60)
            left = f", about {minutes}:{seconds:02} left"
        where = f"{self._of} block {self._number + 1} of {blocks}".lstrip()
        self._context.progress(f"{where}: {what} (round {self._done + 1} of {total}{left})")


def _drawn(draw: Draw, source: str | None) -> Row:
    """Return the next parameter row, or an empty one if there is no source."""
    return draw(source) if source else {}


def _minus(counts: Mapping[str, int], *others: Mapping[str, int]) -> dict[str, int]:
    """Return the counts minus all others."""
    return {name: count - sum(other.get(name, 0) for other in others) for name, count in counts.items()}
