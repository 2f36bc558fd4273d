"""The options of each verb that has more than one surface: command, call, notebook or magic.

A spec names its fields in the order of --help. A verb that is only a command has its spec beside the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit.base.options import Names, Option, Spec, Text, Texts, about, names, option

if TYPE_CHECKING:
    from perfkit.postgres.guards import Permission

Ask = Callable[[str], str]

RUNS_GO_TO = (
    "reports/ of the nearest folder, from the working folder upward, that has a perfkit.toml or is a checkout of "
    "perfkit; else reports/ of the working folder"
)
DATABASE = "service=NAME, or a libpq connection string without a password."
COPIES = ("whole", "sample", "generated")

ANALYZE = Option("Execute the statement, in a transaction that is rolled back.")
ARM_OF_DATA = Option("Without --db: arm whose indexes the data gets; default: the first.")
BUNDLE = Option("Render this run again, and measure nothing.", "FOLDER")
CONFIG = Option("A perfkit.toml; default: the booking system's.", "FILE")
CONFIG_OF_DATA = Option("Without --db: a perfkit.toml; default: the booking system's.", "FILE")
CONNECT_RTTS = Option("Round trips that a new connection takes (TLS, SCRAM).", usual=6)
DB = Option(f"Database: {DATABASE}", "CONNINFO")
GENERIC = Option("Show the generic plan, which holds for any values of $1.")
INDEX_SET = ("CREATE INDEX statements; default: a set of the configuration.", "[SET.sql]")
PARAMETERS = Option("With --db: values for %(name)s, from a SELECT (.sql) or rows (.csv).", "FILE")
POSTGRES = Option("Embedded PostgreSQL: 18 (default) or 16.")
PROFILE = Option("Profile: quick (6 blocks), standard or thorough.")
REPEATS = Option("Number of executions; the last one is shown.")
REPORTS = Option(f"Folder in which the run gets its own folder. Default: {RUNS_GO_TO}.", "FOLDER")
RTT_MS = Option("Added network round trip between service and database, in ms.")
SCALE = Option("Size of the generated data: seed, small, standard (default) or large.")
SCALE_OF_DATA = Option("Without --db: size of the generated data.")
SCALE_OF_DEMO = Option("Size of the demo's data: seed, small, standard or large.")
SCENARIOS = Option("Use only this scenario. Repeatable.", flag="scenario")
SECONDS = Option("Count only statements of the next N seconds; default: all recorded.", "N")
SEED = Option("Seed of all random choices.")
SERIALIZE = Option("Include the cost of sending the result (PostgreSQL 17).")
SOURCE = Option(
    "pg_stat_statements or the server's log; default: the better one that is available.",
    choices=("", "statements", "log"),
)
TIMEOUT = Option("Time limit of one execution, in seconds.", flag="timeout")
TLS = Option("Allow a connection to another machine without TLS.")
VOLATILE = Option("Allow calls of this volatile function. Repeatable.", "FUNCTION")
WORKLOAD = Option("A perfkit.toml with the workload; default: the booking system's.", "FILE")
WORKLOAD_DB = Option(f"Run --query in a database of yours instead: {DATABASE}", "CONNINFO")
WORKLOAD_QUERY = Option("With --db: query of the workload. Repeatable.", "SQL|FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSpec(Spec):
    """What lets perfkit use a target that it did not start: names, or a question to the user."""

    LAST = True

    confirm: Names = option(
        (), "Allow this target, which perfkit did not start; otherwise perfkit asks. Repeatable.", "HOST:PORT/DB"
    )
    production: Names = option(
        (), "Allow this database even though its name suggests production. Repeatable.", "HOST:PORT/DB"
    )
    ask: Ask | None = field(
        default=None,
        metadata={"help": "Called with a question for the user; returns the answer. Default: perfkit does not ask."},
    )

    @property
    def permission(self) -> Permission:
        """Return the permission that the guards look at."""
        from perfkit.postgres.guards import Permission  # late: psycopg takes 0.2 s to import, and --help needs none

        return Permission(confirm=names(self.confirm), production=names(self.production), ask=self.ask)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSpec(AdmissionSpec):
    """Options by which a command opens a database of the user's."""

    LAST = True

    tls: bool = option(True, TLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSpec(AdmissionSpec):
    """Options of `perfkit check`, and of every run of several arms."""

    config: Text = option("", CONFIG)
    scale: str = option("", SCALE)
    arms: Names = option((), "Use only this arm. Repeatable.", flag="arm")
    seed: int = option(1, SEED)
    rtt_ms: float | None = option(None, RTT_MS)
    connect_rtts: int | None = option(None, CONNECT_RTTS)
    postgres: int = option(0, POSTGRES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSpec(CheckSpec):
    """Options of `perfkit report` and `perfkit.run`.

    A preset of the configuration sets profile, scale, rtt_ms and connect_rtts unless these are given; without a preset
    they are standard, the data's own, 0 and 6.
    """

    profile: str = field(
        default="",
        kw_only=False,
        metadata=about("Profile: quick (6 blocks), standard (12) or thorough (24).", usual="standard"),
    )
    plan_for: float = option(
        0.0,
        "Let a pilot of 4 blocks set the number of blocks that detects a change of PCT %; overrides the profile.",
        "PCT",
    )
    max_minutes: float = option(15.0, "With --plan-for: time limit in minutes.", flag="max-time")
    scenarios: Names = option((), SCENARIOS)
    preset: str = option(
        "",
        "Take profile, scale and round trip from [presets.NAME] of the configuration; the options above win.",
        "NAME",
    )
    reports: Text = option("", REPORTS)
    bundle: Text = option("", BUNDLE)
    lab: Text = option("", "Add the summary of this index lab to the report.", "FOLDER")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSpec(AdmissionSpec):
    """Options of `perfkit compare` and `perfkit.compare`."""

    db: str = field(kw_only=False, metadata=DB.metadata)
    query: Texts = field(default=(), kw_only=False, metadata=about("Query to measure. Repeatable.", "SQL|FILE"))
    index: Texts = field(
        default=(), kw_only=False, metadata=about("Change to measure: CREATE INDEX. Repeatable.", "SQL|FILE")
    )
    settings: Mapping[str, str] | Names | None = option(
        (), "Change to measure: a server setting. Repeatable.", "NAME=VALUE", "set"
    )
    rewrite: Text | None = option(None, "Change to measure: another query that returns the same rows.", "SQL|FILE")
    parameters: Text | None = option(None, "Values for %(name)s, from a SELECT (.sql) or rows (.csv).", "FILE")
    way: str = option(
        "whole",
        "Where to measure: in a private copy (whole, sample, generated), in clones beside the database, or in place.",
        choices=(*COPIES, "clone", "in-place"),
    )
    users: int = option(10, "Number of connections at the second load level.")
    p95_ms: float | None = option(None, "Limit in ms that 95 of 100 executions must meet; default: no limit.")
    need: str = option(
        "benefit",
        "What a GO requires: a benefit, or (none) only that nothing gets worse.",
        choices=("benefit", "none"),
    )
    volatile: Names = option((), VOLATILE)
    tls: bool = option(True, TLS)
    pooler: bool = option(False, "The database is behind a pooler in transaction mode.")
    profile: str = option("quick", PROFILE)
    seed: int = option(1, SEED)
    reports: Text = option("", REPORTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSpec(AdmissionSpec):
    """Options of `perfkit measure` and `perfkit.measure`."""

    config: Text = option("", CONFIG)
    arm: str = option("", "Arm to measure; default: the last `after` arm, which would be deployed.")
    scenarios: Names = option((), SCENARIOS)
    profile: str = field(
        default="standard",
        kw_only=False,
        metadata=about("Profile: quick (6 blocks), standard (12) or thorough."),
    )
    blocks: int = option(0, "Number of blocks; overrides the profile (minimum 1).", "N")
    scale: str = option("", SCALE)
    seed: int = option(1, SEED)
    rtt_ms: float = option(0.0, RTT_MS)
    connect_rtts: int = option(6, CONNECT_RTTS)
    postgres: int = option(0, POSTGRES)
    p95_ms: float = option(0.0, "Limit in ms that 95 of 100 requests must meet; default: the configuration's.", "MS")
    error_rate: float = option(
        -1.0, "Highest acceptable share of failed requests; default: the configuration's.", "SHARE"
    )
    db: str = option("", f"Measure --query in a database of yours: {DATABASE}", "CONNINFO")
    query: Texts = option((), "With --db: query to send. Repeatable.", "SQL|FILE")
    parameters: Text | None = option(None, PARAMETERS)
    way: str = option(
        "whole",
        "With --db: in a private copy (whole, sample, generated), in a clone beside the database, or in place.",
        choices=(*COPIES, "clone", "in-place"),
    )
    users: int = option(10, "With --db: number of connections; with --rate, most requests in flight.")
    rate: float = option(0.0, "With --db: requests per second, sent whether or not answers arrive.", "N")
    seconds: float = option(10.0, "With --rate: duration of a round in seconds.")
    tls: bool = option(True, TLS)
    reports: Text = option("", REPORTS)
    bundle: Text = option("", BUNDLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSpec(AdmissionSpec):
    """Options of `perfkit indexes cost`, which an ablation takes too."""

    indexes: Text = option(
        "", Option("CREATE INDEX statements; default: the first set of the configuration.", "[SET.sql]", argument=True)
    )
    config: Text = option("", WORKLOAD)
    profile: str = field(
        default="standard", kw_only=False, metadata=about("Number of blocks: quick, standard or thorough.")
    )
    scale: str = option("", SCALE)
    seed: int = option(1, SEED)
    postgres: int = option(0, POSTGRES)
    db: str = option("", WORKLOAD_DB)
    query: Texts = option((), WORKLOAD_QUERY)
    parameters: Text | None = option(None, PARAMETERS)
    way: str = option(
        "whole",
        "With --db: in a private copy (whole, sample, generated), or in clones beside the database.",
        choices=(*COPIES, "clone"),
    )
    tls: bool = option(True, TLS)
    reports: Text = option("", REPORTS)
    dry_run: bool = option(False, "Print the SQL that would be run; run nothing.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateSpec(CostSpec):
    """Options of `perfkit indexes ablate` and `perfkit.ablate`."""

    margin: float = option(0.0, "Slowdown that does not matter, as a share; default: 0.05.")
    budget_mb: float = option(0.0, "Size limit in MB for all kept indexes together; default: no limit.")
    advised: Text = option("", "Another index set to compare; auto: perfkit advises one.", "SQL|FILE")
    bundle: Text = option("", BUNDLE)
    reads: bool = field(default=True, metadata={"help": "Measure the queries too, not only what the indexes cost."})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviseSpec(AdmissionSpec):
    """Options of `perfkit indexes advise` and `perfkit.advise`."""

    config: Text = field(default="", kw_only=False, metadata=WORKLOAD.metadata)
    scale: str = option("", SCALE)
    seed: int = option(1, SEED)
    postgres: int = option(0, POSTGRES)
    db: str = option("", WORKLOAD_DB)
    query: Texts = option((), WORKLOAD_QUERY)
    parameters: Text | None = option(None, PARAMETERS)
    way: str = option(
        "",
        "With --db: build candidates in a private copy; default: HypoPG, or the plans alone.",
        choices=("", *COPIES),
    )
    analyze: bool | None = option(None, "With --db: execute the queries, and roll back.")
    tls: bool = option(True, TLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSpec(AdmissionSpec):
    """Options of `perfkit rollback` and `perfkit.rollback`."""

    indexes: Text = field(
        default="",
        kw_only=False,
        metadata=about("CREATE INDEX statements; default: those of the configuration.", "[SET.sql]", argument=True),
    )
    config: Text = option("", CONFIG)
    scale: str = option("", SCALE)
    profile: str = option("quick", "Profile: quick (6 blocks), standard (12) or thorough (24).")
    seed: int = option(1, SEED)
    postgres: int = option(0, POSTGRES)
    db: str = option("", f"Drop the indexes in a database of yours: {DATABASE}", "CONNINFO")
    query: Texts = option((), "With --db: query whose plan is compared. Repeatable.", "SQL|FILE")
    parameters: Text | None = option(None, PARAMETERS)
    against: Text | None = option(None, "With --db: run from before the release, whose plans must return.", "RUN")
    rounds: int = option(3, "With --db: number of rounds of 5 s, before and after, of the queries that only read.")
    tls: bool = option(True, TLS)
    reports: Text = option("", REPORTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec(Spec):
    """Options of `perfkit gate` and `perfkit.decide`."""

    run: Text = field(
        default="", kw_only=False, metadata=about("Folder of the run to decide on.", argument=True, required=True)
    )
    arm: str = field(default="", kw_only=False, metadata=about("Decide on this arm only."))
    watch: Text = option("", "Include a watch, which must be running.", "FOLDER")
    answers: Names = option((), "Answer of a person. Repeatable.", "QUESTION=yes|no", "answer")
    by: str = option("", "Person who answers.", "NAME")
    junit: Text = option("", "Also write the items as JUnit XML.", "FILE")
    json: Text = option("", "Also write the decision as JSON.", "FILE")
    bundle: Text = field(default="", metadata={"help": "Folder of a decision to show; nothing is decided."})


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSpec(AdmissionSpec):
    """Options of `perfkit watch` and `perfkit.watch`; an empty one leaves the configuration's value."""

    lasts: str = field(default="24h", kw_only=False, metadata=about("Duration: 90s, 30min, 24h, 2d.", "TIME", "for"))
    every: str = field(
        default="",
        kw_only=False,
        metadata=about("Length of one interval; default: the configuration's, 10s.", "TIME"),
    )
    config: Text = option("", CONFIG)
    folder: Text = option(
        "",
        f"Folder of the record; an existing watch is continued. Default: a new folder in {RUNS_GO_TO}.",
        "FOLDER",
    )
    arm: str = option("", "Arm that is live; default: the last `after` arm.")
    scale: str = option("", "Size of the generated data: seed, small, standard or large.")
    rate: float = option(0.0, "Probes per second of each request and query; default: as configured.", "N")
    metrics: str = option(
        "",
        "Serve metrics for Prometheus at this port; 0: a free port. Without ADDRESS, only this machine can connect.",
        "[ADDRESS:]PORT",
    )
    notify: str = option("", "Command to run for every alert; reads it as JSON on stdin.", "COMMAND")
    quiet: bool = option(False, "Print only how the watch ended.")
    reports: Text = field(default="", metadata={"help": "Folder in which the watch gets its own folder."})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewSpec(Spec):
    """Options of `perfkit review` and `perfkit.review`."""

    folder: Path | str = field(kw_only=False, metadata=about("Folder of the watch.", argument=True))
    against: Text = option("", "Run from before the release, shown beside the watch.", "RUN")
    arm: str = option("", "Arm of that run that was shipped; default: the last `after` arm.")
    values: Mapping[str, float] | Names = option(
        (), "Value of a row that nothing measures. Repeatable.", "NAME=X", "value"
    )
    by: str = option("", "Person who reports the values.", "NAME")
    since: str = option("", "Start of the review: 2026-01-15T09:00, in UTC if no zone is given.", "TIME")
    until: str = option("", "End of the review.", "TIME")
    last: str = option("", "Review the last 24h, for example, instead of --since and --until.", "TIME")
    config: Text = option("", "A perfkit.toml whose targets and rules replace those of the watch.", "FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSpec(AdmissionSpec):
    """Options of `%perfkit connect` and `perfkit.connect`, and those by which `perfkit explain` opens a database."""

    db: str = field(default="", kw_only=False, metadata=DB.metadata)
    volatile: Names = option((), VOLATILE)
    tls: bool = option(True, TLS)
    config: Text = option("", CONFIG_OF_DATA)
    scale: str = option("", SCALE_OF_DATA)
    arm: str = option("", ARM_OF_DATA)
    postgres: int = option(0, POSTGRES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowSpec(AdmissionSpec):
    """Options of `perfkit.slow`."""

    source: Text = field(default="", kw_only=False, metadata=SOURCE.metadata)
    seconds: float = option(0.0, SECONDS)
    db: str = option("", DB)
    volatile: Names = option((), VOLATILE)
    tls: bool = option(True, TLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSpec(Spec):
    """Options of `%perfkit demo` and `perfkit.demo`."""

    scale: str = field(default="small", kw_only=False, metadata=SCALE_OF_DEMO.metadata)
    seconds: float = option(8.0, "Seconds of the clinic's work.", "S")
    seed: int = option(1, SEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploreSpec(DatabaseSpec):
    """Options of `perfkit slow report`, and the parameters of its notebook."""

    db: str = option("", f"Report on a database of yours instead of the demo: {DATABASE}", "CONNINFO")
    log: str = option("", "Read this log file instead of asking the server.", "FILE")
    source: str = option("", SOURCE)
    seconds: float = option(0.0, SECONDS)
    position: int = option(1, "Position of the statement to explain.")
    index: str = option("", "CREATE INDEX to try; default: what perfkit advises.", "SQL")
    measure: bool = option(False, "With --db: measure the index, in a private copy.")
    profile: str = option("quick", PROFILE)
    scale: str = option("small", SCALE_OF_DEMO)
    reports: Text = option("", REPORTS)
    way: str = "whole"


HOW = ("analyze", "generic", "repeats", "timeout_s", "serialize")  # how a statement is explained


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainCellSpec(Spec):
    """Options of `%%explain`."""

    analyze: bool = option(False, ANALYZE)
    generic: bool = option(False, GENERIC)
    param: Names = option((), "Variable for $1, $2, .... Repeatable.", "NAME")
    repeats: int = option(2, REPEATS)
    timeout_s: float = option(60.0, TIMEOUT)
    serialize: bool = option(False, SERIALIZE)
    to: str = option("", "Store the result in this variable.", "NAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementSpec(Spec):
    """Options of `perfkit.slow(...)[1].measure`, and of every measurement of one statement in a session."""

    index: Texts = field(
        default=(),
        kw_only=False,
        metadata=about("CREATE INDEX to measure; default: what perfkit advises. Repeatable.", "SQL"),
    )
    profile: str = option("quick", PROFILE)
    way: str = option("", "As in perfkit compare: whole, sample, ....")
    users: int = option(10, "Number of connections.")
    reports: Text = option("", REPORTS)
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureCellSpec(StatementSpec):
    """Options of `%%measure`."""

    param: Names = option((), "Variable for $1, $2, .... Repeatable.", "NAME")
    to: str = option("", "Store the run in this variable.", "NAME")
