"""The selection: what one run measures of a configuration, and where its parameter rows come from."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import TypeVar
from uuid import UUID

from perfkit.base import process
from perfkit.base.errors import UsageError
from perfkit.base.options import Spec, command, option
from perfkit.config import COPIES, Arm, Config, Generator, ParameterColumn, Query, Request, Scenario
from perfkit.load import pgbench
from perfkit.load.schedule import Row
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.index_sets import read_set
from perfkit.postgres.sqltext import comment, read
from perfkit.runs.records import JudgingRecord, QueryRecord, RequestRecord, RunParameters, RunRecord, ScenarioRecord

LIMIT = 5000  # maximum number of rows of a source that a run uses

_Item = TypeVar("_Item", Arm, Scenario)
_Known = TypeVar("_Known")


def rows(name: str, source: Path | Generator, database: Database | None, seed: str) -> list[Row]:
    """Return the rows of a source. Raises UsageError if it has none."""
    if isinstance(source, Generator):
        return generated(source, f"{seed}/{name}")
    if source.suffix.lower() == ".csv":
        return _csv_rows(source)
    if database is None:
        raise UsageError(f"{source}: a SELECT needs a [database]; expected a CSV file or a generator")
    return list(databases.fetched(database.server, database.name, source, LIMIT))


def generated(source: Generator, seed: str) -> list[Row]:
    """Return rows whose values the seed alone decides, with dates and UUIDs as text."""
    draw = Random(seed)
    return [{name: _value(column, draw) for name, column in source.columns.items()} for _ in range(source.rows)]


def _value(column: ParameterColumn, draw: Random) -> object:
    if column.integer:
        return draw.randint(*column.integer)
    if column.number:
        return draw.uniform(*column.number)
    if column.choice:
        return draw.choice(column.choice)
    if column.date:
        first, last = column.date
        return (first + timedelta(days=draw.randint(0, (last - first).days))).isoformat()
    return str(UUID(int=draw.getrandbits(128), version=4))


def _csv_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file: every value as text, an empty one as NULL."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, lines = reader.fieldnames or [], list(islice(reader, LIMIT))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected CSV in UTF-8 with a header line") from None
    if not lines:
        raise UsageError(f"{path}: gave no rows; expected a header line and at least one set of parameters")
    if len(set(header) - {""}) != len(header):
        raise UsageError(
            f"{path}: a column has no name or the name of another; expected a name for each column in the first line"
        )
    if any(None in row or None in row.values() for row in lines):
        raise UsageError(f"{path}: lines of different lengths; expected a value for every column")
    return [{name: value or None for name, value in row.items()} for row in lines]


MAX_RTT_MS = 10_000
MIN_BLOCKS = 6  # with fewer, no comparison can be decided
OWN_SERVER_WAYS = ("made", *COPIES)  # ways in which perfkit starts the server of the arms


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec(Spec):
    """The options of one run; an empty one leaves the configuration's value."""

    config: str = option("")  # the configuration file as the user named it
    blocks: int = option(0)
    profile: str = option("standard")
    plan_for: float = option(0.0)  # the change in percent that must be found; a pilot plans the blocks for it
    max_minutes: float = option(15.0, flag="max-time")  # maximum duration of the planned blocks
    scale: str = option("")
    seed: int = option(1)
    postgres: int = option(0)
    rtt_ms: float = option(0.0)
    connect_rtts: int = option(6)
    arms: tuple[str, ...] = option((), flag="arm")
    scenarios: tuple[str, ...] = option((), flag="scenario")
    p95_ms: float | None = option(None)
    error_rate: float | None = option(None)
    verb: tuple[str, ...] = ("report",)  # the words of the command that repeats the run

    @property
    def alone(self) -> bool:
        """Whether the run is of one arm without a comparison, see `alone`."""
        return self.verb == ("measure",)


@dataclass(frozen=True)
class Selection:
    """The part of a configuration that one run measures, checked before anything starts.

    Raises UsageError if an option names what the configuration lacks or contradicts it.
    """

    config: Config
    options: RunSpec

    def __post_init__(self) -> None:
        options, database, service = self.options, self.config.database, self.config.service
        _choice("profile", options.profile, self.config.profiles)
        least = 1 if options.alone or options.plan_for else MIN_BLOCKS  # a pilot plans the blocks
        if options.blocks and options.blocks < least:
            raise UsageError(f"blocks = {options.blocks}; expected {least} or more")
        if options.scale and not (database and database.prepare):
            raise UsageError(f"scale '{options.scale}'; expected none, because the data is not perfkit's")
        _choice("scale", self.scale, database.scales if database and database.scales else {self.scale: {}})
        if self.config.baseline() not in self.arms:
            raise UsageError(f"arms: {', '.join(options.arms)}; expected '{self.config.baseline().name}' among them")
        _chosen("scenario", options.scenarios, self.config.scenario)
        if service and service.port and len(self.arms) > 1:
            raise UsageError(f"service.port = {service.port}; expected 0, because each arm has a service of its own")
        if self.postgres not in (16, 18):
            raise UsageError(f"postgres = {self.postgres}; expected 16 or 18")
        if not 0 <= options.rtt_ms <= MAX_RTT_MS:
            raise UsageError(f"rtt_ms = {options.rtt_ms:g}; expected 0 to {MAX_RTT_MS} milliseconds")
        if options.rtt_ms and not (service and service.command and self.on_own_server):
            raise UsageError(f"rtt_ms = {options.rtt_ms:g}; expected 0, because perfkit starts no service to delay")
        _ = self.sql, self.rewrites, self.expected_indexes  # raises here if a file cannot be read
        for scenario in self.scenarios:
            if scenario.pgbench:
                pgbench.require(scenario, foreign=not self.on_own_server)
        if not 0 <= options.plan_for < 100 or not 0 < options.max_minutes < 10_000:
            given = f"plan_for = {options.plan_for:g}, max_minutes = {options.max_minutes:g}"
            raise UsageError(f"{given}; expected a percentage under 100, and minutes")
        if options.plan_for and (options.alone or len(self.arms) < 2 or self.config.sequential):
            raise UsageError(f"plan_for = {options.plan_for:g}; expected arms that are compared and alternate")
        if options.connect_rtts < 1:
            raise UsageError(f"connect_rtts = {options.connect_rtts}; expected 1 or more round trips")

    @property
    def blocks(self) -> int:
        """The number of blocks: from the options, else from the profile."""
        return self.options.blocks or self.config.profiles[self.options.profile]

    @property
    def scale(self) -> str:
        """The name of the data's scale."""
        database = self.config.database
        return self.options.scale or (database.scale if database and database.prepare else "")

    @property
    def preset(self) -> str:
        """The name of the preset that equals this run's options; "" if none does."""
        options, database = self.options, self.config.database
        setup = (self.scale, options.rtt_ms, options.connect_rtts)
        usual = database.scale if database and database.prepare else ""
        names = (n for n, p in self.config.presets.items() if (p.scale or usual, p.rtt_ms, p.connect_rtts) == setup)
        return next(names, "")

    @property
    def postgres(self) -> int:
        """The major version of the embedded server."""
        return self.options.postgres or (self.config.database.postgres if self.config.database else 18)

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms that take part."""
        return _chosen("arm", self.options.arms, self.config.arm)

    @cached_property
    def scenarios(self) -> list[Scenario]:
        """The scenarios that are run."""
        return _chosen("scenario", self.options.scenarios, self.config.scenario)

    @cached_property
    def requests(self) -> dict[str, Request]:
        """HTTP requests by name."""
        return {request.name: request for request in self.config.request}

    @cached_property
    def queries(self) -> dict[str, Query]:
        """SQL queries by name."""
        return {query.name: query for query in self.config.query}

    @cached_property
    def sql(self) -> dict[str, str]:
        """The text of every query by name."""
        return {query.name: read(query.file) for query in self.config.query}

    @cached_property
    def expected_indexes(self) -> dict[str, list[str]]:
        """By arm, the names of the indexes that exist while the arm is measured."""
        paths = {arm.name: arm.indexes for arm in self.arms if not arm.rolled_back}
        return {arm.name: read_set(path).names if (path := paths.get(arm.name)) else [] for arm in self.arms}

    @property
    def changes(self) -> dict[str, list[str]]:
        """By arm, the configuration keys that differ from the baseline; the warm-up is not part of a change."""
        before = self.config.baseline().prepared()
        return {
            arm.name: [key for key, value in arm.prepared().items() if key != "warmup" and value != before[key]]
            for arm in self.arms
        }

    @cached_property
    def rewrites(self) -> dict[tuple[str, str], str]:
        """By arm and query, the text of the arm's own version of the query."""
        return {(arm.name, query): read(file) for arm in self.arms for query, file in arm.rewrite.items()}

    def text(self, arm: str, query: str) -> str:
        """Return the text that an arm sends for a query."""
        return self.rewrites.get((arm, query), self.sql[query])

    @property
    def on_own_server(self) -> bool:
        """Whether the arms are on a server that perfkit starts."""
        return self.config.database is not None and self.config.database.way in OWN_SERVER_WAYS

    def queries_on(self, arm: Arm) -> list[Query]:
        """Return the queries whose plans are captured on an arm: not those that only other arms receive."""
        others = {q for s in self.scenarios if s.arms and arm.name not in s.arms for q in s.send}
        sent = {q for s in self.scenarios if not s.arms or arm.name in s.arms for q in s.send}
        return [query for query in self.config.query if query.plan and query.name not in others - sent]

    def is_sql(self, scenario: Scenario) -> bool:
        """Return whether a scenario goes to the database, not to the service."""
        return bool(scenario.script) or scenario.send[0] in self.queries

    @property
    def scenario_records(self) -> list[ScenarioRecord]:
        """The load levels as `run.json` records them."""
        return [ScenarioRecord(**scenario.model_dump()) for scenario in self.scenarios]

    def describe(self, started: str = "") -> RunRecord:
        """Return the record of the run before anything ran."""
        config, options, scenarios = self.config, self.options, [scenario.name for scenario in self.scenarios]
        rolled_back = any(arm.rolled_back for arm in self.arms)
        requests = [RequestRecord(name=r.name, expect=list(r.expect), runs=list(r.runs)) for r in config.request]
        return RunRecord(
            started=started,
            perfkit=process.packages().get("perfkit", ""),
            title=config.title,
            command=self.command(),
            parameters=RunParameters(
                profile="" if options.blocks else options.profile,
                blocks=self.blocks,
                scale=self.scale,
                seed=options.seed,
                rtt_ms=options.rtt_ms,
                connect_rtts=options.connect_rtts,
                postgres=self.postgres if self.on_own_server else 0,
                preset=self.preset,
                arms=[arm.name for arm in self.arms],
                scenarios=scenarios,
            ),
            left_out={
                "arms": [arm.name for arm in config.arm if arm not in self.arms],
                "scenarios": [scenario.name for scenario in config.scenario if scenario.name not in scenarios],
            },
            order="sequential" if config.sequential and len(self.arms) > 1 else "interleaved",
            roles={arm.name: arm.role for arm in self.arms},
            changes=self.changes,
            scenarios=self.scenario_records,
            config=JudgingRecord(
                request=requests,
                claim=[] if rolled_back else list(config.claim),  # a claim is about a change that stays
                thresholds=config.thresholds,
                release=config.release,
                limits=config.limits,
                margin=config.margin,
                need=config.need,
                worth=config.worth,
            ),
            queries={name: QueryRecord(sql=sql, comment=comment(sql)) for name, sql in self.sql.items()},
            host=process.facts(),
            packages=process.packages(),
            blocks=[],
            checks={},
        )

    def command(self) -> str:
        """Return the command that repeats this run."""
        options = self.options
        shown = replace(
            options,
            config=_display_path(options.config) if options.config else "",
            scale=self.scale,
            postgres=self.postgres if self.on_own_server else 0,
        )
        # The command is to give the same run even if a default changes.
        always = {"profile", "scale", "seed"}
        always |= {"postgres"} if self.on_own_server else set()
        always |= {"max_minutes"} if options.plan_for else set()
        always |= {"connect_rtts"} if options.rtt_ms else set()
        without = {"profile" if options.blocks and options.alone else "blocks"}
        return command(("perfkit", *options.verb), shown, always=always, without=without)


def alone(config: Config, options: RunSpec) -> Selection:
    """Return the selection of one arm and its scenarios, without a comparison.

    Without a name, the arm is the last `after` arm, which would be deployed, else `before`. It takes the role of
    `before`, beside which the floor is measured. Thresholds of the options replace those of the configuration.
    Raises UsageError.
    """
    deployed = [arm for arm in config.arm if arm.role == "after"][-1:] or [config.baseline()]
    arms = _chosen("arm", options.arms, config.arm) if options.arms else deployed
    if len(arms) > 1:
        raise UsageError(f"arms: {', '.join(arm.name for arm in arms)}; expected one, because nothing is compared")
    arm: Arm = arms[0].model_copy(update={"role": "before"})
    scenarios = tuple(s for s in config.scenario if not s.arms or arm.name in s.arms)
    if not scenarios:
        raise UsageError(f"arm '{arm.name}': no scenario runs on this arm; expected at least one")
    limits = {"p95_ms": options.p95_ms, "error_rate": options.error_rate}
    thresholds = {name: value for name, value in limits.items() if value is not None}
    if options.p95_ms is not None and not 0 < options.p95_ms < math.inf:
        raise UsageError(f"p95_ms = {options.p95_ms:g}; expected more than 0 milliseconds")
    if options.error_rate is not None and not 0 <= options.error_rate <= 1:
        raise UsageError(f"error_rate = {options.error_rate:g}; expected a share from 0 to 1")
    changed = {"arm": (arm,), "scenario": scenarios, "thresholds": config.thresholds.model_copy(update=thresholds)}
    return Selection(config.model_copy(update=changed), replace(options, verb=("measure",), arms=(arm.name,)))


def fitted(chosen: Selection, took_ms: Mapping[str, float]) -> Selection:
    """Return the selection with fewer requests in scenarios whose rounds would exceed their time.

    `took_ms` is the time of one execution of each query by itself; more users than cores wait for each other.
    """

    def fit(scenario: Scenario) -> Scenario:
        if scenario.alternate or scenario.rate or scenario.pgbench:  # limited by each arm's own time, or a duration
            return scenario
        each = sum(took_ms.get(name, 0.0) for name in scenario.send) / 1000
        alone = each * scenario.batches * max(1.0, scenario.users / process.cores())
        if not scenario.seconds or alone * scenario.requests <= scenario.seconds:
            return scenario
        return scenario.model_copy(update={"requests": max(1, int(scenario.seconds / alone))})

    scenarios = tuple(map(fit, chosen.config.scenario))
    return replace(chosen, config=chosen.config.model_copy(update={"scenario": scenarios}))


def _display_path(path: str) -> str:
    """Return a path as a report may show it: relative if it is below the working folder, else the file name."""
    full = Path(path).resolve()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else full.name


def _choice(what: str, name: str, known: Mapping[str, _Known]) -> _Known:
    if name not in known:
        raise UsageError(f"{what} '{name}' is unknown; expected one of: {', '.join(known)}")
    return known[name]


def _chosen(what: str, names: Sequence[str], known: Sequence[_Item]) -> list[_Item]:
    by_name = {item.name: item for item in known}
    return [_choice(what, name, by_name) for name in dict.fromkeys(names or by_name)]
