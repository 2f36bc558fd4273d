"""pgbench as the measure of SQL: run, and its log read here, apart from how perfkit reads it."""

from __future__ import annotations

import resource
import subprocess
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.rounds import WARM, Round
from perfkit.postgres.embedded import EmbeddedServer


def run(
    server: EmbeddedServer,
    database: str,
    script: str,
    *,
    clients: int,
    threads: int,
    transactions: int = 0,
    seconds: int = 0,
    rate: float = 0.0,
) -> Round:
    """Prepared statements, one log line a transaction. Raises RuntimeError with what pgbench says.

    By number or by time. In the closed model the first transactions of every client are left out; with a rate, times
    count from the schedule and nothing is left out.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "transaction.sql"
        file.write_text(script)
        command = [str(server.bin_dir / "pgbench"), "--no-vacuum", "--protocol=prepared", f"--file={file}"]
        command += [f"--client={clients}", f"--jobs={threads}", "--log", f"--log-prefix={folder}/log"]
        command += [f"--transactions={transactions + WARM}"] if transactions else [f"--time={seconds}"]
        command += [f"--rate={rate}"] if rate else []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, server.conninfo(database)], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"pgbench: {done.stderr.strip()}")
        text = "".join(path.read_text() for path in sorted(Path(folder).glob("log.*")))
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return of_log(text, 0 if rate else WARM, cpu_s)


def of_log(text: str, leave_out: int, cpu_s: float) -> Round:
    """A round from log lines: client, number, time in us, script, end in s and us of the epoch, lag in us with a rate.

    The first `leave_out` transactions of every client do not count. pgbench's CPU covers these too, so it is
    shared out by number.
    """
    clients: dict[str, list[list[str]]] = defaultdict(list)
    for line in text.splitlines():
        fields = line.split()
        clients[fields[0]].append(fields)
    every = sum(map(len, clients.values()))
    lines = [fields for own in clients.values() for fields in own[leave_out:]]
    good = [fields for fields in lines if fields[2].isdigit()]  # else the word for why it failed or was skipped
    ends = [int(fields[4]) * 1_000_000 + int(fields[5]) for fields in good]
    took = [int(fields[2]) for fields in good]
    span = max(ends) - min(end - us for end, us in zip(ends, took, strict=True)) if good else 0
    return Round(
        times=[us / 1e3 for us in took],
        span_s=span / 1e6,
        cpu_s=cpu_s * len(good) / max(every, 1),
        lags=[int(fields[6]) / 1e3 for fields in good if len(fields) > 6],
        failed=len(lines) - len(good),
    )
