"""A round of queries sent by pgbench: its command, its process, what it cost.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from psycopg.conninfo import make_conninfo

from perfkit.config import Scenario
from perfkit.errors import LoadError, ServerError, UsageError
from perfkit.load.crew import SAMPLES, WATCH_S, Load, Target
from perfkit.load.pgbench_log import Aborted, Written, read
from perfkit.load.pgbench_scripts import MARK, Script, ScriptQuery, script
from perfkit.postgres.parameters import options
from perfkit.postgres.settings import require_harmless
from perfkit.postgres.statements import read as read_script
from perfkit.process import spawn, stop

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

    `target` is perfkit.load.crew.sql_target's; the seed decides the arrivals and the order. Requests due after the
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
            require_harmless(text, own)
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
