"""The record of a run, as the files in its folder hold it: typed, and checked when read.

<folder>/run.json                                what was run, on which target, and how far the run got
    <folder>/rounds/003.burst.after-index.json       samples of one round, column by column
    <folder>/plans/after-index/conflict_check.json   EXPLAIN's JSON, untouched
    .../conflict_check.facts.json                    earlier executions, and facts about the tables from the catalogue

A crash loses at most the round that was running. Keys that this version does not know are ignored, and keys that an
older version did not write have defaults, so that old bundles load.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, field_validator, model_validator

from perfkit.base.bundle import dumps, first_fault, read_json, read_record, reading, write_atomically
from perfkit.base.errors import BundleError, PlanError
from perfkit.config import Claim, Limits, Question, Release, Scenario, Thresholds
from perfkit.explain.capture import Capture
from perfkit.explain.plan import read_plan
from perfkit.load.pool import CalibrationTrial
from perfkit.load.samples import COLUMNS, RestRecord, Samples
from perfkit.postgres.index_builds import Built

_FACTS = ".facts.json"
# A report, its verdict and its claims read the same plans: each is parsed once, as long as its files do not change.
_CAPTURES: dict[Path, tuple[object, Capture]] = {}
_KEPT_CAPTURES = 500  # a long session reads many bundles
FLOOR = "floor"  # the arm's name in rounds against a target that does nothing


class StoredRecord(BaseModel):
    """Base class of every part of a record; an assignment is checked like the file's content."""

    model_config = ConfigDict(validate_assignment=True, use_attribute_docstrings=True)


class RunParameters(StoredRecord):
    """The options of a run, with the values that the configuration gave."""

    profile: str = ""
    """The profile; empty if the number of blocks was given."""
    blocks: int
    """Planned number of blocks."""
    scale: str = ""
    """Size of the data; empty for data that perfkit did not make."""
    seed: int = 1
    """What decides everything random."""
    rtt_ms: float = 0.0
    """Added network round trip between service and database, in ms."""
    connect_rtts: int = 6
    """Number of round trips that a new connection takes."""
    postgres: int = 0
    """Major version of PostgreSQL that perfkit starts; 0 on a server of the user's."""
    preset: str = ""
    """The preset with these options; empty if there is none."""
    arms: list[str]
    """The arms that take part, in their order."""
    scenarios: list[str]
    """The load levels that are run, in their order."""


class ScenarioRecord(Scenario):
    """A load level as it was run. Its scripts may be gone, so that they are not read again."""

    script: tuple[Path, ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> ScenarioRecord:
        return self


class RequestRecord(StoredRecord):
    """A request of the workload, as far as judging needs it."""

    name: str
    expect: list[int] = [200]
    """Status codes that do not count as errors."""
    runs: list[str] = []
    """Queries that the request executes."""


class ThresholdsRecord(Thresholds):
    """The thresholds as the run was judged: an option may have replaced one that the others were in order with."""

    @model_validator(mode="after")
    def _rising(self) -> ThresholdsRecord:
        return self


class QuestionRecord(Question):
    """A question as it was written down; earlier versions did not ask who answered."""

    @model_validator(mode="after")
    def _answered_by_a_name(self) -> QuestionRecord:
        return self


class ReleaseRecord(Release):
    """What a release needed, as it was written down."""

    sign_off: tuple[str, ...] = ()
    question: tuple[QuestionRecord, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> ReleaseRecord:
        return self


class JudgingRecord(StoredRecord):
    """The part of the configuration by which the run is judged."""

    request: list[RequestRecord] = []
    claim: list[Claim] = []
    thresholds: ThresholdsRecord = ThresholdsRecord()
    release: ReleaseRecord = ReleaseRecord()
    limits: Limits = Limits()
    margin: float = 0.05
    """The largest difference that does not matter, as a share."""
    need: Literal["benefit", "none"] = "benefit"
    worth: float = 0.1
    """The smallest gain worth having, as a share."""

    @field_validator("thresholds", "release", mode="before")
    @classmethod
    def _as_written(cls, value: object) -> object:
        return value.model_dump() if isinstance(value, BaseModel) else value or {}


class QueryRecord(StoredRecord):
    """A query's text, and the comment at its beginning."""

    sql: str
    comment: str = ""


class BlockRecord(StoredRecord):
    """One block: what the server counted besides the samples, which are in the rounds. All by arm."""

    block: int
    seconds: float = 0.0
    state: dict[str, dict[str, dict[str, int]]] = {}
    """Rows and bytes of every table at the start of the block; empty on a server that others use."""
    warm_up_failures: dict[str, int] = {}
    http_requests: dict[str, dict[str, int]] = {}
    """Answered requests, by request."""
    http_scans: dict[str, dict[str, int]] = {}
    """Scans for these requests, by index or `seq:table`."""

    def merged(self, other: BlockRecord) -> BlockRecord:
        """Return the record of both: of the arms in this phase and in another."""
        return BlockRecord(
            block=self.block,
            seconds=self.seconds + other.seconds,
            state=self.state | other.state,
            warm_up_failures=self.warm_up_failures | other.warm_up_failures,
            http_requests=self.http_requests | other.http_requests,
            http_scans=self.http_scans | other.http_scans,
        )


class CheckResult(StoredRecord):
    """A functional check: whether it passed, what was expected and received, and its slowest request in ms."""

    name: str
    group: str
    passed: bool
    expected: str
    got: str
    ms: float


class ArmRecord(StoredRecord):
    """An arm as it was prepared."""

    title: str = ""
    role: str = ""
    settings: dict[str, str] = {}
    """The settings that the arm declares."""
    server_settings: dict[str, str] = {}
    """The settings in the arm's database that differ from the server's defaults."""
    postgres: int = 0
    """Major version of the server; 0 if the arm has no database."""
    rewrite: dict[str, str] = {}
    """The arm's own texts of queries."""
    indexes: list[Built] = []
    """The indexes that were built, and their cost."""
    expected_indexes: list[str] = []
    table_bytes: dict[str, int] = {}
    plans: list[str] | None = None
    """Queries whose plans are in the bundle; older bundles do not say."""


class DataRecord(StoredRecord):
    """The data of the run: rows and bytes by table, and the seconds that making it took."""

    scale: str = ""
    rows: dict[str, int] = {}
    bytes: dict[str, int] = {}
    seconds: float = 0.0


class ServerRecord(StoredRecord):
    """The server of the baseline."""

    kind: str = ""
    version: str = ""
    settings: dict[str, str] = {}


class OriginRecord(StoredRecord):
    """How the arms were made, and what that can and cannot show."""

    way: str = ""
    tells: str = ""
    cannot_tell: str = ""
    missing: list[str] = []
    """What a copy lacks."""
    source_rows: dict[str, int] = {}
    """The planner's estimates of rows in the source of a copy."""


class Spread(StoredRecord):
    """The spread of one comparison's log ratio in the pilot, and the number of blocks that it requires."""

    arm: str
    scenario: str
    item: str
    sd_log: float
    blocks: int


class PlannedBlocks(StoredRecord):
    """The number of blocks of a run: what the widest spread requires, and what the time allows."""

    margin: float
    """The change of any median that must be found with a probability of 80 %."""
    needed: int
    blocks: int
    block_s: float
    """Seconds of a block in the pilot."""
    widest: Spread
    pilot: int
    """Number of blocks in the pilot."""
    sentence: str = ""
    """The plan and its reason, in one line."""


class LabSummary(StoredRecord):
    """The result of an index lab, as the report of a change shows it."""

    sentence: str
    columns: list[str] = []
    rows: list[list[tuple[str, str, str]]] = []
    """Cells with text, note and state."""
    claims: list[dict[str, JsonValue]] = []
    command: str = ""


class RunRecord(StoredRecord):
    """The content of `run.json`: what was run, on what, how far the run got, and why it ended."""

    format: Literal[2] = 2
    status: Literal["running", "complete", "interrupted", "failed"] = "running"
    started: str = ""
    perfkit: str = ""
    """Version of perfkit."""
    title: str
    command: str = ""
    """The command that repeats the run."""
    parameters: RunParameters
    left_out: dict[str, list[str]] = {}
    """Names of `arms` and `scenarios` of the configuration that were not run."""
    order: Literal["interleaved", "sequential"] = "interleaved"
    roles: dict[str, str]
    """`before`, `control` or `after`, by arm."""
    changes: dict[str, list[str]] = {}
    """Configuration keys in which an arm differs from the baseline, by arm."""
    scenarios: list[ScenarioRecord]
    config: JudgingRecord
    queries: dict[str, QueryRecord]
    host: dict[str, str | int | float] = {}
    packages: dict[str, str] = {}
    blocks: list[BlockRecord] = []
    checks: dict[str, list[CheckResult]] = {}
    """Functional checks, by arm."""
    origin: OriginRecord = OriginRecord()
    database: DataRecord = DataRecord()
    server: ServerRecord = ServerRecord()
    arms: dict[str, ArmRecord] = {}
    workers: int | None = None
    """Number of load worker processes."""
    calibration: list[CalibrationTrial] = []
    planning: PlannedBlocks | None = None
    timings: dict[str, float] = {}
    """Seconds by phase."""
    finished: str = ""
    message: str = ""
    """Why the run failed or was stopped."""
    error: str = ""
    """The kind of error that ended the run."""
    lab: LabSummary | None = None
    rollback: dict[str, JsonValue] | None = None
    """The result of a rehearsed rollback."""

    def of_role(self, role: str) -> list[str]:
        """Return the arms of one role, in the run's order."""
        return [name for name in self.parameters.arms if self.roles[name] == role]

    def arm(self, name: str) -> ArmRecord:
        """Return an arm's record; an empty one if the run ended before the arm was prepared."""
        return self.arms.get(name) or ArmRecord()

    @property
    def complete_blocks(self) -> int:
        """The number of blocks that every arm completed; in a sequential run the last arm comes last."""
        return sum(set(self.parameters.arms) <= block.state.keys() for block in self.blocks)

    @property
    def alone(self) -> bool:
        """Whether the run measured a single arm, without a comparison."""
        return list(self.roles.values()) == ["before"]

    @property
    def as_json(self) -> dict[str, JsonValue]:
        """The content of the file: what is known so far, with every key of its parts."""
        return self.model_dump(mode="json", include={"format", "status", *self.model_fields_set})


@dataclass(frozen=True, slots=True)
class Round:
    """One scenario on one arm, once."""

    block: int
    position: int  # order in which the round ran within the run
    scenario: str
    arm: str
    columns: Samples
    health: dict[str, float]  # lag_p50_ms, lag_p99_ms, worker_cpu (share of a core), cpu_ms, gc_ms, wall_ms
    usage: dict[str, dict[str, int]] = field(default_factory=dict)  # scans by query, by index or `seq:table`
    rest: dict[str, RestRecord] = field(default_factory=dict)  # by item: requests whose times are not kept

    @property
    def name(self) -> str:
        """The file's name without suffix."""
        return f"{self.block:03}.{self.scenario}.{self.arm}"


ROUND = TypeAdapter(Round)


def _stamps(path: Path) -> object:
    """Return the time and size of a plan's files, which change if somebody writes them again."""
    files = (path, path.with_name(f"{path.stem}{_FACTS}"))
    return [(stat.st_mtime_ns, stat.st_size) for stat in (file.stat() for file in files if file.is_file())]


@dataclass(frozen=True, slots=True)
class Bundle:
    """The folder of a run; `run` is the content of `run.json`."""

    path: Path
    run: RunRecord

    @classmethod
    def create(cls, path: Path, run: RunRecord) -> Bundle:
        """Start a bundle in a new folder. Raises BundleError if the folder cannot be created."""
        try:
            (path / "rounds").mkdir(parents=True)
            (path / "plans").mkdir()
        except OSError as error:
            raise BundleError(f"{path}: cannot be created ({error.strerror}); expected a writable folder") from None
        bundle = cls(path, run)
        bundle.update()
        return bundle

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open a bundle for reading. Raises BundleError if run.json is missing, damaged or of another format."""
        return cls(path, read_record(path / "run.json", RunRecord, "a bundle's folder", "a bundle"))

    def update(self, **values: object) -> None:
        """Set fields of the record, which are checked, and write `run.json`."""
        for name, value in values.items():
            setattr(self.run, name, value)
        write_atomically(self.path / "run.json", json.dumps(self.run.as_json, indent=1, ensure_ascii=False))

    def add_round(self, round_: Round) -> None:
        """Write one round."""
        content = {name.name: getattr(round_, name.name) for name in fields(round_)}
        content["columns"] = round_.columns.lists
        content["rest"] = {item: asdict(rest) for item, rest in round_.rest.items()}
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        write_atomically(self.path / "rounds" / f"{round_.name}.json", text)

    def rounds(self) -> Iterator[Round]:
        """Yield all rounds in the order of block, scenario and arm name. Raises BundleError for a damaged file."""
        for path in sorted((self.path / "rounds").glob("[!.]*.json")):
            content = read_json(path, "a round")
            try:
                round_ = ROUND.validate_python(content)
            except ValueError as error:
                raise BundleError(f"{path}: not a round ({first_fault(error)}); expected what perfkit wrote") from None
            if lacking := [name for name in COLUMNS if name not in content["columns"]]:
                raise BundleError(f"{path}: not a round (no column {lacking[0]}); expected what perfkit wrote")
            if len({len(getattr(round_.columns, name)) for name in COLUMNS}) != 1:
                raise BundleError(f"{path}: columns of different lengths; expected an entry for every request in each")
            yield round_

    def add_plan(self, arm: str, query: str, capture: Capture) -> None:
        """Write EXPLAIN's JSON of the last execution, unchanged, and a file with earlier ones and facts on tables."""
        path = self._plan_file(arm, query)
        path.parent.mkdir(exist_ok=True)
        *earlier, last = capture.documents
        write_atomically(path, dumps(last))
        write_atomically(path.with_name(f"{query}{_FACTS}"), dumps({"earlier": earlier, "tables": capture.tables}))
        _CAPTURES[path] = _stamps(path), capture

    def plan(self, arm: str, query: str) -> Capture | None:
        """Return the captured plans of a query in an arm, which one process parses once; None if there are none.

        Raises BundleError if a file cannot be read.
        """
        path = self._plan_file(arm, query)
        if not path.is_file():
            return None
        stamps = _stamps(path)
        if _CAPTURES.get(path, (None,))[0] != stamps:
            facts = path.with_name(f"{query}{_FACTS}")
            extra = read_json(facts, "a plan") if facts.is_file() else {}
            if not isinstance(extra, dict):
                raise BundleError(f"{facts}: not a plan's facts; expected an object with 'earlier' and 'tables'")
            document = read_json(path, "a plan")
            try:
                with reading(facts):
                    plans = tuple(map(read_plan, (*(extra.get("earlier") or ()), document)))
                    capture = Capture(plans, tuple(extra.get("tables") or ()))
            except PlanError as error:
                raise BundleError(f"{path}: {error}") from None
            if len(_CAPTURES) >= _KEPT_CAPTURES:
                _CAPTURES.clear()
            _CAPTURES[path] = stamps, capture
        return _CAPTURES[path][1]

    def _plan_file(self, arm: str, query: str) -> Path:
        for name in (arm, query):
            if Path(name).name != name:
                raise BundleError(f"{self.path}/run.json: {name!r}; expected the name of an arm or a query")
        return self.path / "plans" / arm / f"{query}.json"
