"""Load by pgbench: its scripts, its log, its run.

Client c of C uses the rows c, c + C, c + 2C, ..., in circles, so that clients share the rows as perfkit's own users do.
A single row is written into the statement. Of several rows, numbers are chosen by an expression, which costs about a
microsecond. pgbench has no expressions for text: a row with text is looked up in an array, within a statement of its
own (no table: nothing is written to the database). In the closed model, that lookup is a transaction of its own before
each of the query's, and not a sample. With a rate, which spaces transactions, it is the first statement of the query's
transaction and part of its time.

A line of the log (PostgreSQL's manual, pgbench, "Per-Transaction Logging"; 16 and 18 write the same) states when a
transaction ended and how long it took: with a rate since it was scheduled, else since its start. With a rate the line
adds by how much it started later. Of a transaction that failed for good or was skipped, it states only the end.

A busy client sends nothing else: with a rate, a request that waits for its client starts late. That wait is part of
its response time and not a fault of the client program; the lag in a round's health is what pgbench lost beyond it.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random

import psycopg
from psycopg.adapt import PyFormat, Transformer

from perfkit.base.errors import LoadError, ServerError, UsageError, first_line
from perfkit.base.process import spawn, stop
from perfkit.base.refusals import COMMAND, HARMLESS, PROGRAMS, require_harmless_commands
from perfkit.config import Scenario
from perfkit.load.pool import SAMPLES, WATCH_S, Load, lags_ms
from perfkit.load.samples import COLUMNS, OK, Rest, Samples
from perfkit.load.schedule import Row, SqlTarget
from perfkit.load.senders import load_conninfo
from perfkit.postgres.commands import array_literal, exact, named
from perfkit.postgres.sqltext import read as read_script
from perfkit.postgres.sqltext import split

MARK = "SELECT /* a row of parameters, perfkit */"  # the lookup's first line, its name in pgbench's report
_NAME = r"[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*"
_VARIABLE = re.compile(rf":(?:({_NAME})|:*)")  # as pgbench finds variables: in quotes and comments too
_INTEGERS = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class ScriptQuery:
    """A statement with `%(name)s`, and the rows of its parameters; None if it has no parameters."""

    item: str
    sql: str
    rows: Sequence[Row] | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """A script for pgbench, its variables, which start at 0, and how it looks up rows of parameters."""

    text: str
    variables: tuple[str, ...] = ()
    looks_up: bool = False
    separate_lookup: bool = False  # every other transaction is a lookup


def script(query: ScriptQuery, number: int, clients: int, *, paced: bool) -> Script:
    """Return the script of a query, the `number`th of a run. Raises UsageError if pgbench cannot run it as it is."""
    if query.rows is None:
        return Script(_statement(query, query.sql, ()))
    try:
        placed = named(query.sql)
        text = _statement(query, placed.text, placed.names)
        columns = {name: [row[name] for row in query.rows] for name in placed.names}
    except KeyError as error:
        raise UsageError(f"query '{query.item}': {error} is not a column of its parameters") from None
    except ValueError as error:
        raise UsageError(f"query '{query.item}': {error}") from None
    if not placed.names:
        return Script(text)
    if len(query.rows) == 1:
        constants = {
            name: f"({constant})" if (constant := _number(value)) else _literal(_texts(query, [value])[0])
            for name, (value,) in columns.items()
        }
        return Script(_VARIABLE.sub(lambda match: constants[match[1]] if match[1] else match[0], text))
    turn, ready = f"perfkit_turn{number}", f"perfkit_ready{number}"
    row = rf"\set perfkit_row (:client_id + :{turn} * {clients}) % {len(query.rows)} + 1"
    after = rf"\set {turn} :{turn} + 1"
    numbers = {name: [n for value in values if (n := _number(value))] for name, values in columns.items()}
    if all(len(values) == len(query.rows) for values in numbers.values()):
        sets = [rf"\set {name} {_choice(values, 1)}" for name, values in numbers.items()]
        return Script("\n".join([row, *sets, text, after, ""]), (turn,))
    arrays = [f"({_literal(_array(query, values))}::text[])[:perfkit_row] AS {n}" for n, values in columns.items()]
    lookup = [row, MARK, ",\n".join(arrays) + r" \gset"]
    if paced:
        return Script("\n".join([*lookup, text, after, ""]), (turn,), looks_up=True)
    # pgbench retries a transaction from the top of the script, so the variable that separates a lookup from its query
    # changes only at the end of each.
    lines = [rf"\if :{ready} = 0", *lookup, rf"\set {ready} 1", r"\else", text, rf"\set {ready} 0", after, r"\endif"]
    return Script("\n".join([*lines, ""]), (turn, ready), looks_up=True, separate_lookup=True)


def _statement(query: ScriptQuery, text: str, names: Sequence[str]) -> str:
    """Return the statement and its end. Raises UsageError for several statements, or if pgbench would misread it."""
    others = [match[1] for match in _VARIABLE.finditer(query.sql) if match[1]]
    lost = set(names) - {match[1] for match in _VARIABLE.finditer(text)}
    for match in COMMAND.finditer(query.sql):
        if (word := match["word"].lower()) in HARMLESS | PROGRAMS:
            raise UsageError(rf"query '{query.item}': '\{word}' is a command to pgbench; expected engine 'asyncio'")
    if others or lost:
        wrong = f"':{others[0]}' would be a variable" if others else f"'{min(lost)}' would be no variable"
        raise UsageError(f"query '{query.item}': {wrong} to pgbench; expected engine 'asyncio', or other words")
    if (count := len(split(query.sql, f"query '{query.item}'"))) != 1:  # pgbench would send each by itself
        raise UsageError(f"query '{query.item}': {count} statements; expected one")
    return f"{text}\n;"


def _number(value: object) -> str | None:
    """Return a value as a constant of pgbench's expressions, or None if an expression would change it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value in _INTEGERS:
        return str(value)
    return repr(value) if isinstance(value, float) and float(f"{value:.15g}") == value else None


def _choice(values: Sequence[str], first: int) -> str:
    """Return an expression that chooses one of the values by the row number, by bisection.

    >>> _choice(["7", "7", "9"], 1)
    'case when :perfkit_row <= 1 then 7 else case when :perfkit_row <= 2 then 7 else 9 end end'
    """
    if len(set(values)) == 1:
        return values[0]
    half = len(values) // 2
    left, right = _choice(values[:half], first), _choice(values[half:], first + half)
    return f"case when :perfkit_row <= {first + half - 1} then {left} else {right} end"


def _texts(query: ScriptQuery, values: Sequence[object]) -> list[str | None]:
    """Return values in the server's text format. Raises UsageError if a value has none."""
    try:
        parameters = exact(list(values)) or []
        dumped = Transformer().dump_sequence(list(parameters), [PyFormat.TEXT] * len(parameters))
    except psycopg.Error as error:
        raise UsageError(f"query '{query.item}': parameters that cannot be sent: {first_line(error)}") from None
    return [None if value is None else bytes(value).decode() for value in dumped]


def _array(query: ScriptQuery, values: Sequence[object]) -> str:
    texts = [text for text in _texts(query, values) if text is not None]
    if len(texts) < len(values):
        raise UsageError(f"query '{query.item}': a parameter without a value (null); pgbench has only text")
    return array_literal(texts)


def _literal(text: str | None) -> str:
    """Return an untyped constant, like a parameter; without a colon, which pgbench would take for a variable."""
    if text is None:
        return "NULL"
    return "E'" + text.replace("\\", r"\\").replace("'", "''").replace(":", r"\072") + "'"


ABORTED = "client_aborted"  # an outcome: an error after which pgbench's client sends nothing more
SKIPPED = "skipped"  # an outcome: not started within the request timeout, never sent
_OUTCOMES = {"serialization": "sqlstate_40001", "deadlock": "sqlstate_40P01"}


@dataclass(frozen=True, slots=True)
class TransactionLog:
    """The log files of a round, one for each of pgbench's threads, and what is needed to read them."""

    paths: Sequence[Path]
    items: Sequence[str]  # the name of each script
    separate_lookups: Collection[int]  # numbers of the scripts in which every other transaction is a lookup
    paced: bool
    retried: bool
    warm: int  # number of a client's first requests, which do not count
    seconds: float  # requests due later than this after the release do not count


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction in the log; stamps in ns of the epoch."""

    client: int
    script: int
    outcome: str
    scheduled: int
    started: int
    done: int
    attempts: int = 1
    detail: str = ""  # the message of an error


@dataclass(slots=True)
class LogSamples:
    """The requests of a round: times up to a limit, column by column and evenly from all files, then histograms."""

    columns: Samples = field(default_factory=Samples)
    rest: dict[str, Rest] = field(default_factory=dict)
    lags: array[int] = field(default_factory=lambda: array("q"))  # in `columns`, beyond the wait for the client

    def keep(self, item: str, line: Transaction, release: int, *, counted: bool) -> None:
        """Add a request with its times."""
        due, began, done = (at - release for at in (line.scheduled, line.started, line.done))
        row = (item, line.client, 0, counted, due, began, began, done, line.outcome, line.detail, line.attempts)
        for name, value in zip(COLUMNS, row, strict=True):
            getattr(self.columns, name).append(value)


def read(log: TransactionLog, aborted: Sequence[Transaction], most: int) -> LogSamples:
    """Return a log's samples, with the times of up to about `most`, and those of the clients that ended early.

    The release is the instant at which the first request was due.
    """
    due = (line.scheduled for path in log.paths for line in _lines(log, path))
    release = min(chain(due, (line.scheduled for line in aborted)), default=0)
    samples = LogSamples()
    for path in log.paths:
        _read(log, path, release, samples, max(1, most // len(log.paths)))
    for line in aborted:
        samples.keep(log.items[line.script], line, release, counted=True)
    return samples


def _read(log: TransactionLog, path: Path, release: int, samples: LogSamples, room: int) -> None:
    """Read one file; its clients appear in no other."""
    over = release + int(log.seconds * 1e9)
    free: dict[int, int] = {}  # the instant since which a client is idle
    sent: Counter[int] = Counter()
    for line in _requests(log, path, free):
        sent[line.client] += 1
        item, counted = log.items[line.script], sent[line.client] > log.warm and line.scheduled < over
        if room:
            room -= 1
            samples.keep(item, line, release, counted=counted)
            if line.outcome == OK:
                samples.lags.append(line.started - max(line.scheduled, free.get(line.client, 0)))
        elif counted:
            due, done = line.scheduled - release, line.done - release
            samples.rest.setdefault(item, Rest()).add(due, done, line.outcome)


def _requests(log: TransactionLog, path: Path, free: dict[int, int]) -> Iterator[Transaction]:
    """Yield the lines of queries, without lookups. A client has a row from its lookup until its query succeeds."""
    has_row: set[tuple[int, int]] = set()
    for line in _lines(log, path):
        key = (line.client, line.script)
        if line.script not in log.separate_lookups or key in has_row:
            yield line
            if line.outcome == OK:
                has_row.discard(key)
        elif line.outcome == OK:
            has_row.add(key)
        free[line.client] = line.done


def _lines(log: TransactionLog, path: Path) -> Iterator[Transaction]:
    with path.open() as file:
        for text in file:
            client, _, took, script, seconds, micros, *more = text.split()
            done = (int(seconds) * 1_000_000 + int(micros)) * 1000
            known = took.isdigit()
            scheduled = done - int(took) * 1000 if known else done
            started = scheduled + int(more[0]) * 1000 if known and log.paced else scheduled
            attempts = 0 if took == SKIPPED else int(more[-1]) + 1 if log.retried else 1
            outcome = OK if known else _OUTCOMES.get(took, took)
            yield Transaction(int(client), int(script), outcome, scheduled, started, done, attempts)


_DRAIN_S = 1.5  # pgbench's time starts before it connects, and what is due at its end starts later
_PATIENCE_S = 3600
_PREFIX = re.compile(r"(?:pgbench:|error:|fatal:| )*")  # those of several threads may precede one message
_ABORT = re.compile(r"client (\d+) (?:script (\d+) )?aborted\b(?:[^:;]*[:;])? *(.*)")
_ERROR = re.compile(r"(?:ERROR|FATAL): +(.*)")
_UNPREPARED = re.compile(r'prepared statement "P_\d+" does not exist')
_MEAN = re.compile(rf"^ *([\d.]+)(?: +\d+)* +{re.escape(MARK)}", re.MULTILINE)


def program(folder: Path) -> Path:
    """Return the path of pgbench among a server's programs. Raises ServerError if it is missing."""
    if not (path := folder / "pgbench").is_file():
        raise ServerError(f"{path} does not exist; expected pgbench among the server's programs")
    return path


def require(scenario: Scenario, *, foreign: bool) -> None:
    """Raise UsageError if pgbench cannot send the scenario, or if perfkit did not start the server (`foreign`)."""
    if foreign:
        raise UsageError(
            f"scenario '{scenario.name}': pgbench cannot limit requests and has no circuit breaker; expected "
            "engine 'asyncio' on a server that perfkit did not start"
        )
    if scenario.rate and scenario.arrivals != "poisson":
        raise UsageError(
            f"scenario '{scenario.name}': arrivals 'constant'; expected 'poisson', the only arrivals of pgbench"
        )
    if scenario.connections and scenario.connections != scenario.users:
        raise UsageError(
            f"scenario '{scenario.name}': {scenario.connections} connections for {scenario.users} users; "
            "expected as many connections as users, because each of pgbench's clients has its own"
        )


def run(
    binary: Path,
    target: SqlTarget,
    scenario: Scenario,
    work: Sequence[ScriptQuery | Path],
    seed: str,
    *,
    samples: int = SAMPLES,
    watch: Callable[[], None] = lambda: None,
) -> Load:
    """Run a round of a scenario by pgbench: queries with their rows, or the user's scripts, in random order.

    `target` comes from `pool.sql_target`; the seed decides the arrivals and the order; `watch` is called about twice a
    second, as by `pool.WorkerPool`. Requests due after the scenario's seconds do not count. If parameters had to be
    looked up, `lookup_ms` in the health is the mean time of a lookup. Raises UsageError; LoadError if pgbench fails.
    """
    require(scenario, foreign=bool(target["limits"]))
    jobs = min(scenario.users, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="perfkit-pgbench-") as name:
        folder = Path(name)
        paced = bool(scenario.rate)
        made = {n: script(q, n, scenario.users, paced=paced) for n, q in enumerate(work) if isinstance(q, ScriptQuery)}
        args = [*_arguments(target, scenario, made, seed, jobs), "--log-prefix", str(folder / "log")]
        for number, source in enumerate(work):
            args += ["-f", _file(folder, source, number, made.get(number))]
        # The database comes last and without -d, which pgbench 16 takes for its debug option.
        try:
            conninfo = load_conninfo(target["options"]["conninfo"], target["options"]["session"])
            aborted, cpu_s, wall_s = _run([str(binary), *args, conninfo], folder / "report", watch)
        except LoadError as error:
            message = str(error)
            for number, source in enumerate(work):  # name the user's own files, not their copies
                message = message.replace(str(folder / f"{number}.sql"), str(source)) if number not in made else message
            raise LoadError(message) from None
        log = TransactionLog(
            paths=sorted(folder.glob("log.*")),
            items=[source.item if isinstance(source, ScriptQuery) else source.stem for source in work],
            separate_lookups={number for number, made_script in made.items() if made_script.separate_lookup},
            paced=paced,
            retried=bool(scenario.retries),
            warm=scenario.warm,
            seconds=scenario.seconds or 0.0,
        )
        requests = read(log, aborted, samples)
        means = [float(mean) for mean in _MEAN.findall((folder / "report").read_text("utf-8", "replace"))]
    health = {
        **lags_ms(requests.lags),
        "gc_ms": 0.0,
        "worker_cpu": cpu_s / wall_s / jobs,
        "cpu_ms": cpu_s * 1e3,
        "wall_ms": max([0, *requests.columns.done, *(rest.last_ns for rest in requests.rest.values())]) / 1e6,
    }
    if means:
        health["lookup_ms"] = sum(means) / len(means)
    return Load(requests.columns, health, [], requests.rest)


def _file(folder: Path, source: ScriptQuery | Path, number: int, made: Script | None) -> str:
    """Write a script's file; return its path and weight: each query runs as often as the others, lookups aside."""
    text = made.text if made else ""
    if isinstance(source, Path):  # read once: pgbench must not read another text than the one that was checked
        text = read_script(source)
        try:
            require_harmless_commands(text, source)
        except ValueError as error:
            raise UsageError(f"expected {error}") from None
    path = folder / f"{number}.sql"
    path.write_text(text, "utf-8", newline="")
    return f"{path}@{2 if made and made.separate_lookup else 1}"


def _arguments(target: SqlTarget, scenario: Scenario, made: dict[int, Script], seed: str, jobs: int) -> list[str]:
    args = ["-n", "-l", "--failures-detailed", "-M", "prepared" if target["options"]["prepare"] else "extended"]
    args += ["-c", str(scenario.users), "-j", str(jobs), "-T", str(int((scenario.seconds or 0) + _DRAIN_S))]
    args += ["--random-seed", str(Random(seed).getrandbits(31)), "--max-tries", str(scenario.retries + 1)]
    if scenario.rate:
        args += ["-R", str(scenario.rate), "-L", str(target["options"]["timeout_s"] * 1000)]
    if any(script.looks_up for script in made.values()):
        args.append("-r")
    return args + [f"-D{name}=0" for script in made.values() for name in script.variables]


def _run(args: Sequence[str], report: Path, watch: Callable[[], None]) -> tuple[list[Transaction], float, float]:
    """Run pgbench; return the clients that ended early, CPU and wall time in s. Raises LoadError with its message."""
    begun = time.monotonic()
    with report.open("wb") as out:
        # Its messages are parsed: in English, without colours.
        process = spawn(args, env=os.environ | {"LC_ALL": "C", "PG_COLOR": "never"}, stdout=out, stderr=subprocess.PIPE)
    try:
        lines = list(_error_lines(process, begun + _PATIENCE_S, watch))
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        stop(process)
    aborted = list(_aborted(lines))
    if process.returncode and not aborted:
        raise LoadError(f"pgbench: {lines[0][1] if lines else f'ended with {process.returncode}'}")
    return aborted, used.ru_utime + used.ru_stime, time.monotonic() - begun


def _aborted(lines: Sequence[tuple[int, str]]) -> Iterator[Transaction]:
    """Yield the clients that ended early; a failure to prepare their statement is in an earlier line."""
    before = ""
    for at, text in lines:
        if abort := _ABORT.match(text):
            error = _ERROR.match(abort[3])
            message = error[1] if error else abort[3]
            message = before if _UNPREPARED.match(message) else message
            yield Transaction(int(abort[1]), int(abort[2] or 0), ABORTED, at, at, at, detail=message)
        elif error := _ERROR.match(text):
            before = error[1]


def _error_lines(
    process: subprocess.Popen[bytes], deadline: float, watch: Callable[[], None]
) -> Iterator[tuple[int, str]]:
    """Yield pgbench's error messages until it ends, each with the instant (ns of the epoch) at which it arrived."""
    assert process.stderr
    pending = b""
    while True:
        ready, _, _ = select.select([process.stderr], [], [], WATCH_S)
        if not ready:
            watch()
            if time.monotonic() > deadline:
                raise LoadError("pgbench did not end in time")
        elif not (part := os.read(process.stderr.fileno(), 65536)):
            return
        else:
            *lines, pending = (pending + part).split(b"\n")
            for text in (line.decode("utf-8", "replace") for line in lines):
                message = _PREFIX.sub("", text, count=1)
                prefix = text[: len(text) - len(message)]
                # Other lines are notices of pgbench or the server.
                if "error:" in prefix or "fatal:" in prefix or _ABORT.match(message) or _ERROR.match(message):
                    yield time.time_ns(), message
