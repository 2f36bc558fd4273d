"""What is chosen to run, and where its parameters come from."""

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
from shlex import quote
from typing import Any
from uuid import UUID

from perfkit.base import process
from perfkit.base.errors import UsageError
from perfkit.config import COPIES, Arm, Config, Generator, ParameterColumn, Query, Request, Scenario
from perfkit.load import pgbench
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.index_builds import index_names
from perfkit.postgres.sqltext import comment, read

LIMIT = 5000  # rows of a source that a run uses at most

Row = Mapping[str, Any]


def rows(name: str, source: Path | Generator, place: Database | None, seed: str) -> list[Row]:
    """The rows of one source. Raises UsageError where it gives none."""
    if isinstance(source, Generator):
        return generated(source, f"{seed}/{name}")
    if source.suffix.lower() == ".csv":
        return _lines(source)
    if place is None:
        raise UsageError(f"{source}: a SELECT needs a [database]; expected a CSV file or a generator")
    return list(databases.fetched(place.site, place.name, source, LIMIT))


def generated(source: Generator, seed: str) -> list[Row]:
    """Rows whose values the seed alone decides; dates and UUIDs as text."""
    draw = Random(seed)
    return [{name: _value(column, draw) for name, column in source.columns.items()} for _ in range(source.rows)]


def _value(column: ParameterColumn, draw: Random) -> Any:
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


def _lines(path: Path) -> list[Row]:
    """Every value as text; an empty one is NULL."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, found = reader.fieldnames or [], list(islice(reader, LIMIT))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected CSV in UTF-8 with a header line") from None
    if not found:
        raise UsageError(f"{path}: gave no rows; expected a header line and at least one set of parameters")
    if len(set(header) - {""}) != len(header):
        raise UsageError(f"{path}: a column twice or without a name; expected a name for each in the first line")
    if any(None in row or None in row.values() for row in found):
        raise UsageError(f"{path}: lines of different lengths; expected a value for every column")
    return [{name: value or None for name, value in row.items()} for row in found]


# What one run is: a configuration and the options that choose from it, checked before anything starts.

MAX_RTT_MS = 10_000
MIN_BLOCKS = 6  # fewer could settle no comparison
OWN = ("made", *COPIES)  # ways that end in a server which perfkit starts


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What one run varies; empty means the configuration's own."""

    profile: str = "standard"
    scale: str = ""
    seed: int = 1
    rtt_ms: float = 0.0
    connect_rtts: int = 6
    postgres: int = 0
    arms: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    config: str = ""  # the file, as it was named
    blocks: int = 0
    alone: bool = False  # one arm, compared with nothing: see `alone`
    p95_ms: float | None = None
    error_rate: float | None = None
    plan_for: float = 0.0  # percent: as many blocks as a pilot asks for, to find a change by so much
    max_minutes: float = 15.0  # that these may take


@dataclass(frozen=True)
class Selection:
    """The part of a configuration that one run measures. Raises UsageError for what it does not know."""

    config: Config
    options: RunSpec

    def __post_init__(self) -> None:
        _choice("profile", self.options.profile, self.config.profiles)
        least = 1 if self.options.alone else MIN_BLOCKS
        if self.options.blocks and self.options.blocks < least and not self.options.plan_for:  # of a pilot
            raise UsageError(f"blocks = {self.options.blocks}; expected {least} or more")
        database = self.config.database
        made = database is not None and bool(database.prepare)
        if self.options.scale and not made:
            raise UsageError(f"scale '{self.options.scale}'; expected none, for the data is not perfkit's")
        _choice("scale", self.scale, database.scales if database and database.scales else {self.scale: {}})
        if self.config.baseline() not in self.arms:
            chosen = ", ".join(self.options.arms)
            raise UsageError(f"arms: {chosen}; expected '{self.config.baseline().name}' among them")
        _chosen("scenario", self.options.scenarios, self.config.scenario)
        service = self.config.service
        if service and service.port and len(self.arms) > 1:
            raise UsageError(f"service.port = {service.port}; expected 0, for each arm has a service of its own")
        if self.postgres not in (16, 18):
            raise UsageError(f"postgres = {self.postgres}; expected 16 or 18")
        if not 0 <= self.options.rtt_ms <= MAX_RTT_MS:
            raise UsageError(f"rtt_ms = {self.options.rtt_ms:g}; expected 0 to {MAX_RTT_MS} milliseconds")
        if self.options.rtt_ms and not (service and service.command and self.on_own_server):
            raise UsageError(
                f"rtt_ms = {self.options.rtt_ms:g}; expected 0, for there is no service of perfkit's to put it before"
            )
        _ = self.sql, self.rewrites, self.expected_indexes  # files that cannot be read are found now
        for scenario in self.scenarios:
            if scenario.pgbench:
                pgbench.require(scenario, foreign=not self.on_own_server)
        if not 0 <= self.options.plan_for < 100 or not 0 < self.options.max_minutes < 10_000:
            given = f"plan_for = {self.options.plan_for:g}, max_minutes = {self.options.max_minutes:g}"
            raise UsageError(f"{given}; expected a percentage under 100, and minutes")
        if self.options.plan_for and (self.options.alone or len(self.arms) < 2 or self.config.sequential):
            raise UsageError(f"plan_for = {self.options.plan_for:g}; expected arms that are compared and take turns")
        if self.options.connect_rtts < 1:
            raise UsageError(f"connect_rtts = {self.options.connect_rtts}; expected 1 or more round trips")

    @property
    def blocks(self) -> int:
        """How many blocks are measured: those of the profile, unless a number is given."""
        return self.options.blocks or self.config.profiles[self.options.profile]

    @property
    def scale(self) -> str:
        """The name of the data's size."""
        database = self.config.database
        return self.options.scale or (database.scale if database and database.prepare else "")

    @property
    def preset(self) -> str:
        """The name of the set-up that this run has, however its options were given; "" where it has none."""
        options, database = self.options, self.config.database
        own = (self.scale, options.rtt_ms, options.connect_rtts)
        usual = database.scale if database and database.prepare else ""
        found = (n for n, p in self.config.presets.items() if (p.scale or usual, p.rtt_ms, p.connect_rtts) == own)
        return next(found, "")

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
        """By arm, the names of the indexes that its file promises and that are there when it is measured."""
        kept = {arm.name: arm.indexes for arm in self.arms if not arm.rolled_back}
        return {arm.name: index_names(path) if (path := kept.get(arm.name)) else [] for arm in self.arms}

    @property
    def changes(self) -> dict[str, list[str]]:
        """By arm, in what it is prepared otherwise than the baseline; the warm-up is no part of a change."""
        before = self.config.baseline().prepared()
        return {
            arm.name: [key for key, value in arm.prepared().items() if key != "warmup" and value != before[key]]
            for arm in self.arms
        }

    @cached_property
    def rewrites(self) -> dict[tuple[str, str], str]:
        """By arm and query, the text of the arm's own version of it."""
        return {(arm.name, query): read(file) for arm in self.arms for query, file in arm.rewrite.items()}

    def text(self, arm: str, query: str) -> str:
        """What an arm sends for a query."""
        return self.rewrites.get((arm, query), self.sql[query])

    @property
    def on_own_server(self) -> bool:
        """Whether the arms are on a server that perfkit starts."""
        return self.config.database is not None and self.config.database.way in OWN

    def queries_on(self, arm: Arm) -> list[Query]:
        """The queries whose plans on an arm are captured: not those that only other arms are sent."""
        others = {q for s in self.scenarios if s.arms and arm.name not in s.arms for q in s.send}
        own = {q for s in self.scenarios if not s.arms or arm.name in s.arms for q in s.send}
        return [query for query in self.config.query if query.plan and query.name not in others - own]

    def is_sql(self, scenario: Scenario) -> bool:
        """Whether a scenario goes to the database rather than the service."""
        return bool(scenario.script) or scenario.send[0] in self.queries

    def describe(self) -> dict[str, Any]:
        """What `run.json` says before anything ran."""
        return {
            "perfkit": process.packages().get("perfkit", ""),
            "title": self.config.title,
            "command": self.command(),
            "parameters": {
                "profile": "" if self.options.blocks else self.options.profile,
                "blocks": self.blocks,
                "scale": self.scale,
                "seed": self.options.seed,
                "rtt_ms": self.options.rtt_ms,
                "connect_rtts": self.options.connect_rtts,
                "postgres": self.postgres if self.on_own_server else 0,
                "preset": self.preset,
                "arms": [arm.name for arm in self.arms],
                "scenarios": [scenario.name for scenario in self.scenarios],
            },
            "left_out": {
                "arms": [arm.name for arm in self.config.arm if arm not in self.arms],
                "scenarios": [s.name for s in self.config.scenario if s not in self.scenarios],
            },
            "order": "sequential" if self.config.sequential and len(self.arms) > 1 else "interleaved",
            "roles": {arm.name: arm.role for arm in self.arms},
            "changes": self.changes,
            "scenarios": [scenario.model_dump(mode="json") for scenario in self.scenarios],
            "config": self.config.model_dump(
                mode="json",
                include={
                    "thresholds": True,
                    "limits": True,
                    "margin": True,
                    "need": True,
                    "worth": True,
                    "release": True,
                    **({} if any(arm.rolled_back for arm in self.arms) else {"claim": True}),  # of a change that stays
                    "request": {"__all__": {"name", "runs", "expect"}},
                },
            ),
            "queries": {name: {"sql": sql, "comment": comment(sql)} for name, sql in self.sql.items()},
            "host": process.facts(),
            "packages": process.packages(),
            "blocks": [],
            "checks": {},
        }

    def command(self) -> str:
        """The command that runs the same again."""
        options = self.options
        parts = [
            f"perfkit {'measure' if options.alone else 'report'}",
            *([f"--config {quote(_shown(options.config))}"] if options.config else []),
            f"--blocks {options.blocks}" if options.blocks and options.alone else f"--profile {options.profile}",
            *([f"--plan-for {options.plan_for:g} --max-time {options.max_minutes:g}"] if options.plan_for else []),
            *([f"--scale {self.scale}"] if self.scale else []),
            f"--seed {options.seed}",
            *([f"--postgres {self.postgres}"] if self.on_own_server else []),
        ]
        if options.rtt_ms:
            parts += [f"--rtt-ms {options.rtt_ms:g}", f"--connect-rtts {options.connect_rtts}"]
        parts += [f"--arm {name}" for name in options.arms] + [f"--scenario {name}" for name in options.scenarios]
        parts += [f"--p95-ms {options.p95_ms:g}"] if options.p95_ms is not None else []
        parts += [f"--error-rate {options.error_rate:g}"] if options.error_rate is not None else []
        return " ".join(parts)


def alone(config: Config, options: RunSpec) -> Selection:
    """The selection of one arm and the scenarios that are run on it, compared with nothing.

    Without a name it is the last `after` arm, which is what would be deployed, or else `before`. It takes the
    place of `before`, as whose the floor is measured. Thresholds of the options replace those of the
    configuration. Raises UsageError.
    """
    arms = _chosen("arm", options.arms, config.arm) if options.arms else _deployed(config)
    if len(arms) > 1:
        raise UsageError(f"arms: {', '.join(arm.name for arm in arms)}; expected one, for nothing is compared")
    arm: Arm = arms[0].model_copy(update={"role": "before"})
    scenarios = tuple(s for s in config.scenario if not s.arms or arm.name in s.arms)
    if not scenarios:
        raise UsageError(f"arm '{arm.name}': no scenario is run on it; expected one at least")
    given = {"p95_ms": options.p95_ms, "error_rate": options.error_rate}
    thresholds = {name: value for name, value in given.items() if value is not None}
    if options.p95_ms is not None and not 0 < options.p95_ms < math.inf:
        raise UsageError(f"p95_ms = {options.p95_ms:g}; expected more than 0 milliseconds")
    if options.error_rate is not None and not 0 <= options.error_rate <= 1:
        raise UsageError(f"error_rate = {options.error_rate:g}; expected a share from 0 to 1")
    changed = {"arm": (arm,), "scenario": scenarios, "thresholds": config.thresholds.model_copy(update=thresholds)}
    return Selection(config.model_copy(update=changed), replace(options, alone=True, arms=(arm.name,)))


def _deployed(config: Config) -> list[Arm]:
    return [arm for arm in config.arm if arm.role == "after"][-1:] or [config.baseline()]


def fitted(chosen: Selection, took_ms: Mapping[str, float]) -> Selection:
    """The same with fewer requests in scenarios whose rounds would last longer than they should.

    `took_ms` is what one execution of each query took alone; more users than cores wait for one another.
    """

    def fit(scenario: Scenario) -> Scenario:
        if scenario.alternate or scenario.rate or scenario.pgbench:  # each arm by what it takes itself, or by time
            return scenario
        each = sum(took_ms.get(name, 0.0) for name in scenario.send) / 1000
        alone = each * scenario.batches * max(1.0, scenario.users / process.cores())
        if not scenario.seconds or alone * scenario.requests <= scenario.seconds:
            return scenario
        return scenario.model_copy(update={"requests": max(1, int(scenario.seconds / alone))})

    scenarios = tuple(map(fit, chosen.config.scenario))
    return replace(chosen, config=chosen.config.model_copy(update={"scenario": scenarios}))


def _shown(path: str) -> str:
    """A path as a report may show it: below the working folder, else its name alone."""
    found = Path(path).resolve()
    return str(found.relative_to(Path.cwd())) if found.is_relative_to(Path.cwd()) else found.name


def _choice(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise UsageError(f"{what} '{name}' is unknown; expected one of: {', '.join(known)}")
    return known[name]


def _chosen(what: str, names: Sequence[str], known: Sequence[Any]) -> list[Any]:
    by_name = {item.name: item for item in known}
    return [_choice(what, name, by_name) for name in dict.fromkeys(names or by_name)]
