"""perfkit beside Locust's FastHttpUser on the same service, which does nothing: 30 in flight, no pause between.

Locust runs without its pages, and its raw times are taken from its own events (its statistics cut them to whole
milliseconds). Requests per core are requests by CPU time of the processes that send them; Locust's leading process,
where there are several, is not counted against it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import psutil

from benchmarks import profiling
from benchmarks.results import Figure, Section, publish
from benchmarks.rounds import Round, compared, null_service, of_load, quiet, taking_turns, typical_round
from perfkit.base import process
from perfkit.base.errors import LoadError
from perfkit.base.process import spawn, stop
from perfkit.load.pool import WorkerPool, http_target
from perfkit.load.schedule import Batch, Message

USERS = 30
SECONDS = 3.0  # of a round, about
WARM_S = 1.5  # Locust's users are all there by then
ROUNDS = 8
LOCUST = Path(__file__).parents[1] / ".venv-bench" / "bin" / "locust"
PERFKIT, OTHER = "perfkit", "Locust"
MESSAGE: Message = {"item": "page", "method": "GET", "path": "/", "json": None, "expect": [200]}


def main() -> bool:
    """Print and write the figures; True where all hold. Raises LoadError where Locust is not installed."""
    if not LOCUST.exists():
        raise LoadError(f"{LOCUST}: no such program; expected Locust, which `make bench` installs")
    found: dict[int, dict[str, list[Round]]] = {}
    with quiet(), null_service() as (base, pid), WorkerPool(process.cores()) as crew:
        rate = _perfkit(crew, base, 1, 200).value("rate")
        service, start = psutil.Process(pid), perf_counter()
        before = sum(service.cpu_times()[:2])
        _perfkit(crew, base, 1, int(rate * SECONDS / USERS))
        busy = (sum(service.cpu_times()[:2]) - before) / (perf_counter() - start)
        for processes in sorted({1, process.cores()}):
            each = int(_perfkit(crew, base, processes, 200).value("rate") * SECONDS / USERS)
            tools: dict[str, Callable[[], Round]] = {
                PERFKIT: partial(_perfkit, crew, base, processes, each),
                OTHER: partial(_locust, base, processes),
            }
            found[processes] = taking_turns(tools, ROUNDS, f"{processes} processes")
        profile = profiling.shares(http_target(base, 10, "/"), [[MESSAGE] * 300] * USERS)
    version = subprocess.run([LOCUST, "--version"], capture_output=True, text=True, check=True).stdout.split(" from")[0]
    section = Section("http", "HTTP beside Locust", _figures(found), _notes(found, profile, busy), [version.strip()])
    return publish(section)


def _perfkit(crew: WorkerPool, base: str, processes: int, each: int) -> Round:
    batch = Batch(((MESSAGE,) * each,) * USERS)
    return of_load(crew.run(http_target(base, 10, "/"), [batch], workers=processes))


def _locust(base: str, processes: int) -> Round:
    """One run. Raises LoadError with what Locust says where it does not end or leaves nothing."""
    with TemporaryDirectory() as folder:
        given = {"WARM": WARM_S, "SECONDS": SECONDS, "FOLDER": folder}
        env = {**os.environ, **{f"PERFKIT_BENCH_{name}": str(value) for name, value in given.items()}}
        command = [str(LOCUST), "--locustfile", str(Path(__file__).with_name("locustfile.py")), "--headless"]
        command += ["--users", str(USERS), "--spawn-rate", str(USERS), "--host", base, "--loglevel", "ERROR"]
        command += ["--run-time", f"{round(WARM_S + SECONDS + 1)}s", "--only-summary"]
        command += ["--processes", str(processes)] if processes > 1 else []
        with Path(folder, "words").open("wb") as words:
            process = spawn(command, env=env, stdout=words, stderr=words)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                raise LoadError("Locust did not end within 60 s; expected a run of a few seconds") from None
            finally:
                stop(process)
        parts = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        if len(parts) != processes:
            said = Path(folder, "words").read_text()[-2000:]
            raise LoadError(f"Locust: {len(parts)} processes left times; expected {processes}; it said: {said}")
    return Round(
        times=[time for part in parts for time in part["times"]],
        span_s=max(part["span_s"] for part in parts),
        cpu_s=sum(part["cpu_s"] for part in parts),
        failed=sum(len(part["failed"]) for part in parts),
    )


def _figures(found: dict[int, dict[str, list[Round]]]) -> list[Figure]:
    figures = []
    for processes, rounds in found.items():
        core, p50 = (compared(rounds[OTHER], rounds[PERFKIT], metric) for metric in ("rate per core", "p50"))
        where = f"{processes} process{'es' if processes > 1 else ''}"
        figures += [
            Figure.of(f"{where}: requests per second and core, perfkit / Locust", core, at_least=1.5),
            Figure.of(f"{where}: p50 at {USERS} in flight, perfkit / Locust", p50, at_most=1.0),
        ]
    return figures


def _notes(found: dict[int, dict[str, list[Round]]], profile: dict[str, float], busy: float) -> list[str]:
    head = ["| processes | tool | per second | per second and core | p50, ms | p95, ms |", "|" + "---|" * 6]
    for processes, rounds in found.items():
        for tool, own in rounds.items():
            rate, core, p50, p95 = (typical_round(own, m) for m in ("rate", "rate per core", "p50", "p95"))
            assert rate and core and p50 and p95
            times = f"{p50.value:.2f} | {p95.value:.2f}"
            head.append(f"| {processes} | {tool} | {rate.value:,.0f} | {core.value:,.0f} | {times} |")
    return [
        (__doc__ or "").strip(),
        "\n".join(head),
        f"The service's own process was busy {busy:.0%} of the time while one process of perfkit sent.",
        f"One process of perfkit under a profiler: {profiling.sentence(profile)}.",
    ]
