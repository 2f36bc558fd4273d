"""A block: one round of every arm and the floor under every scenario, on fresh clones, in random order."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from perfkit.arms import Stage
from perfkit.bundle import FLOOR, Bundle, Round
from perfkit.config import Arm, Scenario
from perfkit.errors import LoadError
from perfkit.load.crew import Crew, Load, Target, http_target, joined, sql_target
from perfkit.load.plan import Batch, Draw, Message, batches, http_message
from perfkit.postgres import databases
from perfkit.selection import Selection

Progress = Callable[[str], None]
Rows = Mapping[str, Sequence[Mapping[str, Any]]]
WARM_USERS = 5


@dataclass(slots=True)
class Clock:
    """Seconds by phase of a run."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add what the body takes to a phase."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = round(self.seconds[phase] + perf_counter() - start, 3)


@dataclass(frozen=True, slots=True)
class Ground:
    """What blocks run on: the arms' databases and services, the workers, the null service, parameter rows."""

    chosen: Selection
    stage: Stage
    crew: Crew
    null: str
    rows: Rows
    clock: Clock
    progress: Progress


class Block:
    """One block by its number, which with the seed decides its requests and its order."""

    def __init__(self, ground: Ground, number: int) -> None:
        self._ground, self._number, self._chosen = ground, number, ground.chosen
        self._done = number * len(self._chosen.scenarios) * (len(self._chosen.arms) + 1)
        self._started = perf_counter()
        seed = f"{self._chosen.options.seed}/{number}"
        self._order = random.Random(f"{seed}/order")
        names = [arm.name for arm in self._chosen.arms]
        self._draws = {name: Draw(ground.rows, seed) for name in [*names, FLOOR]}
        self._warm_draws = {name: Draw(ground.rows, seed, last_first=True) for name in names}
        self._answered: dict[str, Counter[str]] = {name: Counter() for name in names}
        self._failures: Counter[str] = Counter()
        self._sql_scans: dict[str, Counter[str]] = {name: Counter() for name in names}

    def run(self, bundle: Bundle) -> None:
        """Clone, warm up, run every round; each round and then the block's record go to the bundle."""
        clock, stage, arms = self._ground.clock, self._ground.stage, self._chosen.arms
        self._say("cloning")
        with clock.timed("clones"):
            for arm in arms:
                stage.clone(arm)
        with clock.timed("services"):
            stage.serve(arms)
        with clock.timed("state"):
            state = {arm.name: databases.sizes(stage.server, stage.database(arm)) for arm in arms}
            begin = {arm.name: self._scans(arm) for arm in arms}
        with clock.timed("warm-up"):
            self._warm_up()
        with clock.timed("load"):
            for scenario in self._chosen.scenarios:
                for chosen in self._order.sample([*arms, None], len(arms) + 1):
                    self._round(scenario, chosen, bundle)
        with clock.timed("scans"):
            end = {arm.name: self._scans(arm, terminate=True) for arm in arms}
        record = {
            "block": self._number,
            "seconds": round(perf_counter() - self._started, 2),
            "state": state,
            "warm_up_failures": dict(self._failures),
            "http_requests": {arm: dict(answered) for arm, answered in self._answered.items()},
            "http_scans": {arm: _minus(end[arm], begin[arm], self._sql_scans[arm]) for arm in end},
        }
        bundle.update(blocks=[*bundle.run["blocks"], record])

    def _warm_up(self) -> None:
        """Fill caches and, in pools, statements' plans: as many requests of each kind as the arm asks for.

        Their rows are drawn apart from the rounds', which must be the same in every arm.
        """
        sent = {name for scenario in self._chosen.scenarios for name in scenario.send}
        for arm in self._chosen.arms:
            each = arm.warmup // WARM_USERS
            for name in sorted(sent & self._chosen.requests.keys()) if each else ():
                request, draw = self._chosen.requests[name], self._warm_draws[arm.name]
                queues = tuple(
                    tuple(http_message(request, draw(request.parameters)) for _ in range(each))
                    for _ in range(WARM_USERS)
                )
                load = self._ground.crew.run(self._http(arm), [Batch(queues)])
                self._count(arm.name, load)
                self._failures[arm.name] += sum(outcome != "ok" for outcome in load.columns["outcome"])

    def _round(self, scenario: Scenario, arm: Arm | None, bundle: Bundle) -> None:
        name = arm.name if arm else FLOOR
        self._say(f"{scenario.name} on {name}")
        usage: dict[str, dict[str, int]] = {}
        try:
            if self._chosen.is_sql(scenario):
                load = self._query_round(scenario, arm, usage)
            else:
                load = self._load(scenario, name, self._http(arm))
            self._ground.stage.require_alive()
        except LoadError as error:
            raise LoadError(f"block {self._number}, {scenario.name} on {name}: {error}") from None
        if arm and not usage:
            self._count(name, load)
        bundle.add_round(
            Round(self._number, self._done, scenario.name, name, load.columns, load.health, usage)
        )
        self._done += 1

    def _query_round(self, scenario: Scenario, arm: Arm | None, usage: dict[str, dict[str, int]]) -> Load:
        """One query after the other, so that every scan the server counts has its query (in `usage`)."""
        loads = []
        for item in scenario.send:
            single = scenario.model_copy(update={"send": (item,)})
            before = self._scans(arm) if arm else {}
            loads.append(self._load(single, arm.name if arm else FLOOR, self._sql(arm)))
            if arm:
                usage[item] = _minus(self._scans(arm), before)
                self._sql_scans[arm.name].update(usage[item])
        return joined(loads)

    def _load(self, scenario: Scenario, name: str, target: Target) -> Load:
        return self._ground.crew.run(target, batches(scenario, lambda item: self._message(name, item)))

    def _count(self, arm: str, load: Load) -> None:
        """Requests that were answered as expected: each of them ran its statements."""
        items, outcomes = load.columns["item"], load.columns["outcome"]
        self._answered[arm].update(i for i, o in zip(items, outcomes, strict=True) if o == "ok")

    def _message(self, arm: str, item: str) -> Message:
        """The next request or query of that name; the floor gets the same, addressed to nobody."""
        draw, chosen = self._draws[arm], self._chosen
        if item in chosen.requests:
            message = http_message(chosen.requests[item], draw(chosen.requests[item].parameters))
            return message | {"expect": [200]} if arm == FLOOR else message
        parameters = draw(chosen.queries[item].parameters)
        if arm == FLOOR:
            return {"item": item, "sql": "SELECT 1", "params": None}
        return {"item": item, "sql": chosen.sql[item], "params": parameters}

    def _sql(self, arm: Arm | None) -> Target:
        stage, limits = self._ground.stage, self._chosen.config.limits
        conninfo = stage.server.conninfo(stage.database(arm) if arm else "postgres")
        return sql_target(conninfo, limits.request_timeout_s, limits.statement_timeout_s)

    def _http(self, arm: Arm | None) -> Target:
        limit, service = self._chosen.config.limits.request_timeout_s, self._chosen.config.service
        if arm is None or service is None:
            return http_target(self._ground.null, limit, "/")
        return http_target(self._ground.stage.services[arm.name].base, limit, service.health)

    def _scans(self, arm: Arm, *, terminate: bool = False) -> dict[str, int]:
        stage = self._ground.stage
        return databases.scans(stage.server, stage.database(arm), terminate=terminate)

    def _say(self, what: str) -> None:
        blocks = self._chosen.blocks
        total = blocks * len(self._chosen.scenarios) * (len(self._chosen.arms) + 1)
        phases = ("clones", "services", "state", "warm-up", "load", "scans")
        spent = sum(self._ground.clock.seconds.get(phase, 0.0) for phase in phases)
        left = ""
        if self._number:
            minutes, seconds = divmod(int(spent / self._number * (blocks - self._number)), 60)
            left = f", about {minutes}:{seconds:02} left"
        self._ground.progress(
            f"block {self._number + 1} of {blocks}: {what} (round {self._done + 1} of {total}{left})"
        )


def _minus(counts: Mapping[str, int], *others: Mapping[str, int]) -> dict[str, int]:
    """Counts less those that came before or belong elsewhere."""
    return {name: count - sum(other.get(name, 0) for other in others) for name, count in counts.items()}
