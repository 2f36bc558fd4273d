"""Load by pgbench: its scripts, its run and its log.

Client c of C takes the rows c, c + C, c + 2C, ..., around and around, so that clients share the rows out as
perfkit's own users do. A single row is written into the statement. Of several, numbers are chosen by an expression,
which costs about a microsecond. pgbench has no expressions for text: rows with any are looked up, in an array within
a statement of its own (no table: nothing is written to the database). In the closed model that lookup is a
transaction of its own, which comes before each of the query's and is no sample; with a rate, which spaces
transactions, it is the first statement of the query's, and part of its time.

A line (PostgreSQL's manual, pgbench, "Per-Transaction Logging"; 16 and 18 write the same) gives when a transaction
ended and how long it took: with a rate from the instant for which it was scheduled, else from its begin. With a rate
it adds how long after that instant it began. A transaction that failed for good or was skipped has only its end.

A client that is busy sends nothing else: with a rate, a request that waits for one begins late. That is in its
response time and not the program's fault; the lag in a round's health is what pgbench lost beyond it.
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.conninfo import make_conninfo

from perfkit.base.bundle import COLUMNS
from perfkit.base.errors import LoadError, ServerError, UsageError, first_line
from perfkit.base.process import spawn, stop
from perfkit.base.refusals import COMMAND, HARMLESS, PROGRAMS, require_harmless_commands
from perfkit.config import Scenario
from perfkit.load.pool import SAMPLES, WATCH_S, Load, Target
from perfkit.load.samples import OK, Rest
from perfkit.postgres.commands import exact, named, options
from perfkit.postgres.sqltext import read as read_script
from perfkit.postgres.sqltext import split

MARK = "SELECT /* a row of parameters, perfkit */"  # the lookup's first line, by which pgbench's report calls it
_NAME = r"[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*"
_VARIABLE = re.compile(rf":(?:({_NAME})|:*)")  # as pgbench finds them, in quotes and comments too
_INTEGERS = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class ScriptQuery:
    """A statement with `%(name)s`, and the rows that its parameters come from; None where it takes none."""

    item: str
    sql: str
    rows: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """What pgbench runs, the variables that it begins with, and whether every other transaction is a lookup."""

    text: str
    variables: tuple[str, ...] = ()
    looks_up: bool = False
    apart: bool = False  # the lookup is a transaction of its own


def script(query: ScriptQuery, number: int, clients: int, *, paced: bool) -> Script:
    """The script of a query, by its number among those of a run.

    Raises UsageError for what pgbench cannot be told.
    """
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
        given = {name: _constant(query, value) for name, (value,) in columns.items()}
        return Script(_VARIABLE.sub(lambda found: given[found[1]] if found[1] else found[0], text))
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
    # A transaction that is tried again starts from the top: what tells the two apart changes at their ends.
    first = [rf"\if :{ready} = 0", *lookup, rf"\set {ready} 1", r"\else"]
    lines = [*first, text, rf"\set {ready} 0", after, r"\endif", ""]
    return Script("\n".join(lines), (turn, ready), looks_up=True, apart=True)


def _statement(query: ScriptQuery, text: str, names: Sequence[str]) -> str:
    """The statement and its end. Raises UsageError for several, or where pgbench would find another variable."""
    others = [found[1] for found in _VARIABLE.finditer(query.sql) if found[1]]
    lost = set(names) - {found[1] for found in _VARIABLE.finditer(text)}
    for found in COMMAND.finditer(query.sql):
        if (word := found["word"].lower()) in HARMLESS | PROGRAMS:
            raise UsageError(rf"query '{query.item}': '\{word}' is a command to pgbench; expected engine 'asyncio'")
    if others or lost:
        wrong = f"':{others[0]}' would be a variable" if others else f"'{min(lost)}' would be no variable"
        raise UsageError(f"query '{query.item}': {wrong} to pgbench; expected engine 'asyncio', or other words")
    if (count := len(split(query.sql, f"query '{query.item}'"))) != 1:  # pgbench would cut them apart and send each
        raise UsageError(f"query '{query.item}': {count} statements; expected one")
    return f"{text}\n;"


def _number(value: Any) -> str | None:
    """A value as pgbench's expressions write it, where it comes out of them as it went in."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value in _INTEGERS:
        return str(value)
    return repr(value) if isinstance(value, float) and float(f"{value:.15g}") == value else None


def _choice(values: Sequence[str], first: int) -> str:
    """One of the values by its place, halving.

    >>> _choice(["7", "7", "9"], 1)
    'case when :perfkit_row <= 1 then 7 else case when :perfkit_row <= 2 then 7 else 9 end end'
    """
    if len(set(values)) == 1:
        return values[0]
    half = len(values) // 2
    left, right = _choice(values[:half], first), _choice(values[half:], first + half)
    return f"case when :perfkit_row <= {first + half - 1} then {left} else {right} end"


def _texts(query: ScriptQuery, values: Sequence[Any]) -> list[str | None]:
    """Values as text, as the server reads it. Raises UsageError for those that have none."""
    try:
        given = exact(list(values)) or []
        found = Transformer().dump_sequence(list(given), [PyFormat.TEXT] * len(given))
    except psycopg.Error as error:
        raise UsageError(f"query '{query.item}': parameters that cannot be sent: {first_line(error)}") from None
    return [None if value is None else bytes(value).decode() for value in found]


def _constant(query: ScriptQuery, value: Any) -> str:
    number = _number(value)
    return f"({number})" if number else _literal(_texts(query, [value])[0])


def _array(query: ScriptQuery, values: Sequence[Any]) -> str:
    quoted = []
    for value in _texts(query, values):
        if value is None:
            raise UsageError(f"query '{query.item}': a parameter without a value (null); pgbench has only text")
        quoted.append('"' + value.replace("\\", r"\\").replace('"', r"\"") + '"')
    return "{" + ",".join(quoted) + "}"


def _literal(text: str | None) -> str:
    """A constant without a type, as parameters are; without a colon, which pgbench would take for a variable."""
    if text is None:
        return "NULL"
    return "E'" + text.replace("\\", r"\\").replace("'", "''").replace(":", r"\072") + "'"


# The log that pgbench writes of a round, read as samples.

ABORTED = "client_aborted"  # an outcome: an error after which pgbench's client sends nothing more
SKIPPED = "skipped"  # an outcome: it could not begin within the time limit for requests, and was never sent
_OUTCOMES = {"serialization": "sqlstate_40001", "deadlock": "sqlstate_40P01"}


@dataclass(frozen=True, slots=True)
class Aborted:
    """A client that ended early; its script by number, the server's words, ns of the epoch."""

    client: int
    script: int
    words: str
    at: int


@dataclass(frozen=True, slots=True)
class Written:
    """What pgbench wrote, a file for each of its threads, and how it is to be understood."""

    paths: Sequence[Path]
    items: Sequence[str]  # what each script is called
    apart: Collection[int]  # scripts by number of which every other transaction is a lookup
    paced: bool
    retried: bool
    warm: int  # a client's first requests, which do not count
    seconds: float  # after which no more count


@dataclass(frozen=True, slots=True)
class _Line:
    """A transaction; stamps in ns of the epoch."""

    client: int
    script: int
    outcome: str
    scheduled: int
    started: int
    done: int
    attempts: int


@dataclass(slots=True)
class Samples:
    """The times of so many requests, evenly from all files, column by column; of those beyond, histograms."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    rest: dict[str, Rest] = field(default_factory=dict)
    lags: array[int] = field(default_factory=lambda: array("q"))  # of requests kept, beyond a wait for their client
    last: int = 0  # when the last was done, in ns from the release

    def keep(self, item: str, line: _Line, release: int, *, counted: bool, detail: str = "") -> None:
        """One more whose times are kept."""
        due, began, done = (at - release for at in (line.scheduled, line.started, line.done))
        row = (item, line.client, 0, counted, due, began, began, done, line.outcome, detail, line.attempts)
        for name, value in zip(COLUMNS, row, strict=True):
            self.columns[name].append(value)
        self.last = max(self.last, done)

    def count(self, item: str, line: _Line, release: int) -> None:
        """One more beyond those."""
        due, done = line.scheduled - release, line.done - release
        self.rest.setdefault(item, Rest()).add(due, done, line.outcome)
        self.last = max(self.last, done)


def read(written: Written, aborted: Sequence[Aborted], most: int) -> Samples:
    """Up to about `most` samples of a log, and of the clients that ended early.

    The release is the instant at which the first request was due.
    """
    due = (line.scheduled for path in written.paths for line in _lines(written, path))
    release = min(chain(due, (client.at for client in aborted)), default=0)
    found = Samples()
    for path in written.paths:
        _read(written, path, release, found, max(1, most // len(written.paths)))
    for own in aborted:
        line = _Line(own.client, own.script, ABORTED, own.at, own.at, own.at, 1)
        found.keep(written.items[own.script], line, release, counted=True, detail=own.words)
    return found


def _read(written: Written, path: Path, release: int, found: Samples, room: int) -> None:
    """One file, whose clients are in no other."""
    over = release + int(written.seconds * 1e9)
    free: dict[int, int] = {}  # when a client had nothing to do
    sent: Counter[int] = Counter()
    for line in _requests(written, path, free):
        sent[line.client] += 1
        item, counted = written.items[line.script], sent[line.client] > written.warm and line.scheduled < over
        if room:
            room -= 1
            found.keep(item, line, release, counted=counted)
            if line.outcome == OK:
                found.lags.append(line.started - max(line.scheduled, free.get(line.client, 0)))
        elif counted:
            found.count(item, line, release)


def _requests(written: Written, path: Path, free: dict[int, int]) -> Iterator[_Line]:
    """The lines that are no lookups. A client has a row when it looked one up, until its query succeeded."""
    has_row: set[tuple[int, int]] = set()
    for line in _lines(written, path):
        own = (line.client, line.script)
        if line.script not in written.apart or own in has_row:
            yield line
            if line.outcome == OK:
                has_row.discard(own)
        elif line.outcome == OK:
            has_row.add(own)
        free[line.client] = line.done


def _lines(written: Written, path: Path) -> Iterator[_Line]:
    with path.open() as file:
        for text in file:
            client, _, took, script, seconds, micros, *more = text.split()
            done = (int(seconds) * 1_000_000 + int(micros)) * 1000
            known = took.isdigit()
            scheduled = done - int(took) * 1000 if known else done
            started = scheduled + int(more[0]) * 1000 if known and written.paced else scheduled
            attempts = 0 if took == SKIPPED else int(more[-1]) + 1 if written.retried else 1
            outcome = OK if known else _OUTCOMES.get(took, took)
            yield _Line(int(client), int(script), outcome, scheduled, started, done, attempts)


# A round of queries sent by pgbench: its command, its process, what it cost.

_DRAIN_S = 1.5  # pgbench's time begins before it connects, and what is due at its end begins later
_PATIENCE_S = 3600
_PREFIX = re.compile(r"(?:pgbench:|error:|fatal:| )*")  # written apart from what follows, by several threads at once
_ABORT = re.compile(r"client (\d+) (?:script (\d+) )?aborted\b(?:[^:;]*[:;])? *(.*)")
_ERROR = re.compile(r"(?:ERROR|FATAL): +(.*)")
_UNPREPARED = re.compile(r'prepared statement "P_\d+" does not exist')
_MEAN = re.compile(rf"^ *([\d.]+)(?: +\d+)* +{re.escape(MARK)}", re.MULTILINE)


def program(folder: Path) -> Path:
    """The pgbench among a server's programs. Raises ServerError where there is none."""
    if not (found := folder / "pgbench").is_file():
        raise ServerError(f"{found} does not exist; expected pgbench among the server's programs")
    return found


def require(scenario: Scenario, *, foreign: bool) -> None:
    """Raise UsageError for what pgbench cannot do, and for a server that perfkit did not start (`foreign`)."""
    if foreign:
        raise UsageError(
            f"scenario '{scenario.name}': pgbench keeps no limit on requests and has no circuit breaker; expected "
            "engine 'asyncio' on a server that perfkit did not start"
        )
    if scenario.rate and scenario.arrivals != "poisson":
        raise UsageError(f"scenario '{scenario.name}': arrivals 'constant'; expected 'poisson', as pgbench's are")
    if scenario.connections and scenario.connections != scenario.users:
        raise UsageError(
            f"scenario '{scenario.name}': {scenario.connections} connections for {scenario.users} users; "
            "expected as many, for each of pgbench's clients has its own"
        )


def run(
    binary: Path,
    target: Target,
    scenario: Scenario,
    work: Sequence[ScriptQuery | Path],
    seed: str,
    *,
    samples: int = SAMPLES,
    watch: Callable[[], None] = lambda: None,
) -> Load:
    """A round of a scenario by pgbench: queries with their rows, or the user's own scripts, at random, evenly.

    `target` is perfkit.load.pool.sql_target's; the seed decides the arrivals and the order. Requests due after the
    scenario's seconds do not count. Where parameters had to be looked up, health has the mean of that, `lookup_ms`.
    `watch` as in Crew. Raises UsageError, and LoadError where pgbench could not run as such.
    """
    require(scenario, foreign=bool(target["limits"]))
    jobs = min(scenario.users, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="perfkit-pgbench-") as name:
        folder = Path(name)
        made = {n: _script(own, n, scenario) for n, own in enumerate(work) if isinstance(own, ScriptQuery)}
        args = [*_arguments(target, scenario, made, seed, jobs), "--log-prefix", str(folder / "log")]
        for number, own in enumerate(work):
            args += ["-f", _file(folder, own, number, made.get(number))]
        # Last and without -d, by which 16 understands that it shall tell all it does.
        try:
            ended = _run([str(binary), *args, _conninfo(target)], folder / "report", watch)
        except LoadError as error:
            raise LoadError(_named_as_given(str(error), folder, work)) from None
        written = Written(
            paths=sorted(folder.glob("log.*")),
            items=[own.item if isinstance(own, ScriptQuery) else own.stem for own in work],
            apart={number for number, own in made.items() if own.apart},
            paced=bool(scenario.rate),
            retried=bool(scenario.retries),
            warm=scenario.warm,
            seconds=scenario.seconds or 0.0,
        )
        found = read(written, ended.aborted, samples)
        means = [float(mean) for mean in _MEAN.findall((folder / "report").read_text("utf-8", "replace"))]
    lags = sorted(found.lags) or [0]
    health = {
        "lag_p50_ms": lags[len(lags) // 2] / 1e6,
        "lag_p99_ms": lags[min(len(lags) - 1, int(len(lags) * 0.99))] / 1e6,
        "gc_ms": 0.0,
        "worker_cpu": ended.cpu_s / ended.wall_s / jobs,
        "cpu_ms": ended.cpu_s * 1e3,
        "wall_ms": found.last / 1e6,
    }
    if means:
        health["lookup_ms"] = sum(means) / len(means)
    return Load(found.columns, health, [], {item: rest.as_dict() for item, rest in found.rest.items()})


def _script(query: ScriptQuery, number: int, scenario: Scenario) -> Script:
    return script(query, number, scenario.users, paced=bool(scenario.rate))


def _file(folder: Path, own: ScriptQuery | Path, number: int, made: Script | None) -> str:
    """A script's file and its weight: each runs as often as the others, and lookups come on top."""
    if isinstance(own, Path):  # read once: pgbench must not find another text than the one that was looked at
        text = read_script(own)
        try:
            require_harmless_commands(text, own)
        except ValueError as error:
            raise UsageError(f"expected {error}") from None
    else:
        assert made
        text = made.text
    path = folder / f"{number}.sql"
    path.write_text(text, "utf-8", newline="")
    return f"{path}@{2 if made and made.apart else 1}"


def _named_as_given(message: str, folder: Path, work: Sequence[ScriptQuery | Path]) -> str:
    """Return a message of pgbench's with the user's own files in place of their copies."""
    for number, own in enumerate(work):
        if isinstance(own, Path):
            message = message.replace(str(folder / f"{number}.sql"), str(own))
    return message


def _conninfo(target: Target) -> str:
    own: dict[str, Any] = {"application_name": "perfkit load", "client_encoding": "UTF8"}
    if session := target["options"]["session"]:
        own["options"] = options(session)
    return make_conninfo(target["options"]["conninfo"], **own)


def _arguments(target: Target, scenario: Scenario, made: dict[int, Script], seed: str, jobs: int) -> list[str]:
    args = ["-n", "-l", "--failures-detailed", "-M", "prepared" if target["options"]["prepare"] else "extended"]
    args += ["-c", str(scenario.users), "-j", str(jobs), "-T", str(int((scenario.seconds or 0) + _DRAIN_S))]
    args += ["--random-seed", str(Random(seed).getrandbits(31)), "--max-tries", str(scenario.retries + 1)]
    if scenario.rate:
        args += ["-R", str(scenario.rate), "-L", str(target["options"]["timeout_s"] * 1000)]
    if any(script.looks_up for script in made.values()):
        args.append("-r")
    return args + [f"-D{name}=0" for script in made.values() for name in script.variables]


@dataclass(frozen=True, slots=True)
class _Ended:
    """How pgbench ended: the clients that did so early, and its processor and wall time in s."""

    aborted: list[Aborted]
    cpu_s: float
    wall_s: float


def _run(args: Sequence[str], report: Path, watch: Callable[[], None]) -> _Ended:
    """Run pgbench to its end. Raises LoadError in its words."""
    begun = time.monotonic()
    with report.open("wb") as out:
        # Its messages in English and without colours, for they are read.
        process = spawn(args, env=os.environ | {"LC_ALL": "C", "PG_COLOR": "never"}, stdout=out, stderr=subprocess.PIPE)
    try:
        lines = list(_heard(process, begun + _PATIENCE_S, watch))
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        stop(process)
    aborted = list(_aborted(lines))
    if process.returncode and not aborted:
        raise LoadError(f"pgbench: {lines[0][1] if lines else f'ended with {process.returncode}'}")
    return _Ended(aborted, used.ru_utime + used.ru_stime, time.monotonic() - begun)


def _aborted(lines: Sequence[tuple[int, str]]) -> Iterator[Aborted]:
    """The clients that ended early. That a statement could not be prepared is said in a line before theirs."""
    before = ""
    for at, text in lines:
        if own := _ABORT.match(text):
            said = _ERROR.match(own[3])
            words = said[1] if said else own[3]
            yield Aborted(int(own[1]), int(own[2] or 0), before if _UNPREPARED.match(words) else words, at)
        elif error := _ERROR.match(text):
            before = error[1]


def _heard(process: subprocess.Popen[bytes], deadline: float, watch: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """Its errors until it ends, line by line, each with the instant (ns of the epoch) at which it came."""
    assert process.stderr
    pending = b""
    while True:
        ready, _, _ = select.select([process.stderr], [], [], WATCH_S)
        if not ready:
            watch()
            if time.monotonic() > deadline:
                raise LoadError("pgbench did not end in time")
        elif part := os.read(process.stderr.fileno(), 65536):
            *lines, pending = (pending + part).split(b"\n")
            for text in (line.decode("utf-8", "replace") for line in lines):
                words = _PREFIX.sub("", text, count=1)
                prefix = text[: len(text) - len(words)]
                # The rest is what pgbench or the server notes, of any length.
                if "error:" in prefix or "fatal:" in prefix or _ABORT.match(words) or _ERROR.match(words):
                    yield time.time_ns(), words
        else:
            break
