"""Logs: how fast and in how much memory perfkit reads them, and pgBadger beside it on the same one.

The log is the booking system's as its server would write it: of 101 lines 88 are durations of executions (a third of
the statements have their values in the text, the others are sent with parameters), 4 of binding, 1 is a plan of
auto_explain, and 8 are something else. Times, sessions, values and line numbers all differ. pgBadger runs as one
process and is told the prefix.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from json.encoder import encode_basestring as quoted
from pathlib import Path
from random import Random
from uuid import UUID

from benchmarks.results import Figure, Section, publish
from benchmarks.rounds import quiet
from perfkit.base import resources
from perfkit.postgres.commands import numbered
from perfkit.slow.log_sources import read
from perfkit.slow.statements import SlowQueries

JSON_MB, STDERR_MB, ROUNDS = 1_000, 100, 3
PREFIX = "%m [%p] %q%u@%d "
VALUES = {
    "org_id": "uuid", "contact_id": "uuid", "scheduled_at": "time", "day": "day", "duration_minutes": "minutes",
}  # fmt: skip
MORE = (
    "INSERT INTO appointments (org_id, contact_id, scheduled_at, duration_minutes, status) "
    "VALUES (%(org_id)s::uuid, %(contact_id)s::uuid, %(scheduled_at)s::timestamptz, %(duration_minutes)s, 'booked')",
    "SELECT id, name, phone FROM contacts WHERE org_id = %(org_id)s::uuid AND id = %(contact_id)s::uuid",
    "UPDATE appointments SET status = 'cancelled' WHERE org_id = %(org_id)s::uuid AND id = %(contact_id)s::uuid",
    "SELECT count(*) FROM appointments WHERE org_id = %(org_id)s::uuid AND scheduled_at >= %(day)s::date",
    "SELECT id FROM contacts WHERE org_id = %(org_id)s::uuid ORDER BY created_at DESC LIMIT 20",
    "SELECT max(scheduled_at) FROM appointments WHERE contact_id = %(contact_id)s::uuid",
    "DELETE FROM appointments WHERE org_id = %(org_id)s::uuid AND scheduled_at < %(day)s::date",
    "SELECT name FROM organizations WHERE id = %(org_id)s::uuid",
)
NOISE = (
    "connection received: host=10.1.4.{n} port={port}", "checkpoint starting: time",
    "checkpoint complete: wrote {port} buffers (2.1%); 0 WAL file(s) added, 0 removed, 3 recycled; write=26.9 s",
    "could not receive data from client: Connection reset by peer", "automatic vacuum of table \"booking.public.t{n}\"",
)  # fmt: skip
PLAN = {"Node Type": "Index Scan", "Relation Name": "appointments", "Index Name": "appointments_pkey",
        "Startup Cost": 0.42, "Total Cost": 8.44, "Plan Rows": 1, "Plan Width": 56, "Actual Rows": 1.0}  # fmt: skip


def statements() -> tuple[str, ...]:
    """The booking system's, with `%(name)s` for their values."""
    files = sorted(resources.path("sql/queries").glob("*.sql"))
    texts = (re.sub(r"^\s*--.*\n", "", file.read_text("utf-8"), flags=re.MULTILINE).strip() for file in files)
    return (*texts, *MORE)


def records(seed: int = 1) -> Iterator[tuple[str, str, str, str, int, int]]:
    """Without end: message, detail, time, session, backend, query id."""
    draw, own = Random(seed), statements()
    at = datetime(2026, 3, 2, 8, tzinfo=UTC)
    placed = [numbered(text) for text in own]
    backends = [draw.randint(1000, 99999) for _ in range(60)]
    while True:
        at += timedelta(milliseconds=draw.randint(0, 4))
        when = f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} UTC"
        backend, kind, n = draw.choice(backends), draw.randrange(100), int(draw.random() ** 2 * len(own))
        session, query_id = f"67c40a{backend:02x}.{backend:x}", (n + 3) * 1_234_567_890_123_457
        values = {name: _value(VALUES[name], draw) for name in placed[n].names}
        ms = f"{draw.lognormvariate(2.0, 0.8) * (n + 1) ** 2 / 4 + 0.02:.3f}"
        listed = ", ".join(f"${k + 1} = '{value}'" for k, value in enumerate(values.values()))
        apart = n % 3 > 0  # values as parameters: one way for each statement, as pgBadger takes two for two statements
        text = placed[n].text if apart else own[n] % {name: f"'{value}'" for name, value in values.items()}
        detail = f"Parameters: {listed}" if listed and apart else ""
        if kind < 88:
            if kind == 0:  # the execution that follows is in auto_explain's hands as well
                document = json.dumps({"Query Text": text, "Plan": PLAN}, indent=2)
                yield f"duration: {ms} ms  plan:\n{document}", "", when, session, backend, query_id
            how = "execute <unnamed>" if apart else "statement"
            yield f"duration: {ms} ms  {how}: {text}", detail, when, session, backend, query_id
        elif kind < 92:
            yield f"duration: {ms} ms  bind <unnamed>: {placed[n].text}", detail, when, session, backend, query_id
        else:
            message = draw.choice(NOISE).format(n=n, port=draw.randint(30000, 60000))
            yield message, "", when, session, backend, 0


def _value(kind: str, draw: Random) -> str:
    if kind == "uuid":
        return str(UUID(int=draw.getrandbits(128), version=4))
    if kind == "minutes":
        return str(15 * draw.randint(1, 8))
    day = f"2026-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    return day if kind == "day" else f"{day} {draw.randint(7, 19):02d}:{15 * draw.randint(0, 3):02d}:00+00"


def write(path: Path, form: str, size: int) -> None:
    """A log of about so many bytes."""
    with path.open("w", encoding="utf-8", buffering=1 << 20) as file:
        done = 0
        for number, (message, detail, when, session, backend, query_id) in enumerate(records()):
            if form == "json":
                said = f'"message":{quoted(message)},' + (f'"detail":{quoted(detail)},' if detail else "")
                line = (
                    f'{{"timestamp":"{when}","user":"booking","dbname":"booking","pid":{backend},'
                    f'"remote_host":"10.1.4.17","remote_port":{40000 + backend % 20000},"session_id":"{session}",'
                    f'"line_num":{number % 9000},"ps":"SELECT","session_start":"{when[:19]} UTC",'
                    f'"vxid":"{backend % 99}/{number}","txid":0,"error_severity":"LOG",{said}'
                    f'"application_name":"booking-webhook","backend_type":"client backend","query_id":{query_id}}}\n'
                )
            else:
                head = f"{when} [{backend}] booking@booking "
                line = f"{head}LOG:  {message}\n".replace("\n", "\n\t")[:-1]
                line += f"{head}DETAIL:  {detail}\n" if detail else ""
            done += file.write(line)
            if done >= size:
                return


def main() -> bool:
    """Print and write the figures; True where all hold."""
    if not shutil.which("pgbadger"):
        print("logs: no pgbadger; expected Debian's package")
        return False
    with quiet(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "postgresql.json"
        write(log, "json", JSON_MB * 1_000_000)
        rates, memory = [], 0.0
        for _ in range(ROUNDS):
            _, seconds, memory = _child(log)
            rates.append(log.stat().st_size / 1e6 / seconds)
        log.unlink()
        plain = folder / "postgresql.log"
        write(plain, "stderr", STDERR_MB * 1_000_000)
        ratios, own_rates, same = [], [], 0
        for _ in range(ROUNDS):
            ours, _, _ = _child(plain)
            start = time.perf_counter()
            theirs = pgbadger(plain, folder)
            took = time.perf_counter() - start
            ratios.append(ours / took)
            own_rates.append(plain.stat().st_size / 1e6 / ours)
            same = agreeing(read(plain, prefix=PREFIX), theirs)
    version = subprocess.run(["pgbadger", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    figures = [
        _figure("jsonlog of 1 GB, one core", rates, " MB/s", at_least=60.0),
        Figure("the same: most memory of the process", memory, memory, memory, " MB", at_most=300.0),
        _figure("stderr log: perfkit / pgBadger, time", ratios, at_most=1.0),
        Figure("the same: statements of the top ten by rank, text, calls and total", same, same, same, at_least=10),
        _figure("the same, perfkit", own_rates, " MB/s"),
    ]
    notes = [
        (__doc__ or "").partition("\n\n")[2].strip(),
        "The range is that of the rounds. Beside pgBadger the time is the whole process's, Python's start included.",
    ]
    return publish(Section("logs", "Slow statements out of logs", figures, notes, [version]))


def _figure(name: str, found: list[float], unit: str = "", **limits: float) -> Figure:
    ranked = sorted(found)
    return Figure(name, ranked[len(ranked) // 2], ranked[0], ranked[-1], unit, **limits)


def _child(path: Path) -> tuple[float, float, float]:
    """What a process of its own takes to read a log: seconds of the process, of the reading, and MB at most."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.logs", str(path)]
    done = subprocess.run(command, cwd=resources.CHECKOUT, capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    return time.perf_counter() - start, seconds, kilobytes / 1000


def pgbadger(log: Path, folder: Path) -> list[tuple[str, int, float]]:
    """pgBadger's top ten by total time: its text, calls, ms."""
    out = folder / "pgbadger.json"
    command = ["pgbadger", "-q", "-j", "1", "-f", "stderr", "-p", PREFIX, "-x", "json", "-o", str(out), str(log)]
    subprocess.run(command, check=True, capture_output=True)
    by_database = json.loads(out.read_text("utf-8"))["normalyzed_info"]
    found = [(text, own["count"], own["duration"]) for own in by_database.values() for text, own in own.items()]
    return sorted(found, key=lambda item: -item[2])[:10]


def agreeing(found: SlowQueries, theirs: list[tuple[str, int, float]]) -> int:
    """How many of pgBadger's top ten are perfkit's at the same rank, with the same text, calls and total."""
    pairs = zip(found.statements, theirs, strict=False)
    return sum(
        _letters(own.text) == _letters(text) and own.calls == calls and abs(own.total_ms - ms) <= 1e-6 * ms
        for own, (text, calls, ms) in pairs
    )


def _letters(text: str) -> str:
    """A normalised text without what each tool writes in its own way."""
    return re.sub(r"\$\d+|[\W_]", "", text).lower()


if __name__ == "__main__":
    begun = time.perf_counter()
    read(sys.argv[1], prefix=PREFIX)
    print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
