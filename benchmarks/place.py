"""What copies of the same data and rounds of the same statement differ by, where nobody arranges where they take place.

A table of 70 MB is read into the server's memory from two copies: one after the other, as perfkit does it, or page by
page in turns, as it happens where both are read at once or memory was given back in turns. Then both are scanned.

And four connections, as four arms would have them, take turns at a statement that costs next to nothing: left to the
scheduler, and with client and server on a processor each. They are alike, and should not differ.
"""

from __future__ import annotations

import math
import statistics

from benchmarks.results import Figure, Section, publish
from perfkit.base import stats
from perfkit.load.pool import WorkerPool, alternating_target, sql_target
from perfkit.load.schedule import Batch, Message
from perfkit.postgres import databases, embedded
from perfkit.postgres.embedded import EmbeddedServer

ROUNDS = 8
COPIES = ("copy_a", "copy_b")
PAGES = 16  # read from one copy before the other's turn
TABLE = "CREATE TABLE things AS SELECT n, n % 2000 AS kind, repeat('x', 100) AS note FROM generate_series(1, 500000) n"
SCAN = "SELECT kind, count(*) FROM things WHERE n < 0 GROUP BY kind"


def main(rounds: int = ROUNDS) -> bool:
    """Print and write the figures; True where all hold."""
    with embedded.start(18) as server, WorkerPool(1) as crew:
        databases.create(server, "things")
        with server.connect("things") as connection:
            connection.execute(TABLE)
        databases.freeze(server, "things")
        _copied(server, in_turns=False)  # what comes to lie in fresh memory is another matter
        scans: dict[bool, list[float]] = {False: [], True: []}
        light: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for in_turns, found in scans.items():
                _copied(server, in_turns)
                found.append(statistics.mean(_p50(crew, server, name, SCAN, 8, pinned=True) for name in COPIES))
            for pinned, found in light.items():
                found.append(_apart_by(crew, server, pinned))
        for name in (*COPIES, "things"):
            databases.drop(server, name)
    return publish(judged(scans, light))


def judged(scans: dict[bool, list[float]], light: dict[bool, list[float]]) -> Section:
    """The ratio of scans, from each round's p50 in ms, and how far four connections are apart, from each round's."""
    figures = [
        Figure.of("a scan: pages in turns / one after the other, p50", stats.ratio(scans[False], scans[True])),
        Figure.of("four connections, left to the scheduler: slowest / fastest", stats.median(light[False], 0)),
        Figure.of("four connections, a processor each: slowest / fastest", stats.median(light[True], 0)),
    ]
    doc = (__doc__ or "").partition("\n\n")[2].strip()
    every = {"scan, one after the other": scans[False], "scan, in turns": scans[True],
             "four, left to the scheduler": light[False], "four, a processor each": light[True]}  # fmt: skip
    lines = ["| rounds of | a scan's p50, ms; slowest / fastest of four |", "|---|---|"]
    lines += [f"| {name} | {', '.join(f'{value:.3g}' for value in sorted(found))} |" for name, found in every.items()]
    return Section("place", "Where a round takes place", figures, [doc, "\n".join(lines)])


def _copied(server: EmbeddedServer, in_turns: bool) -> None:
    """Fresh copies of the data, read into memory in one way or the other."""
    for name in COPIES:
        databases.drop(server, name)
    for name in COPIES:
        databases.create(server, name, "things")
    if not in_turns:
        for name in COPIES:
            databases.sizes(server, name)
        return
    first, second = (server.connect(name) for name in COPIES)
    with first, second:
        row = first.execute("SELECT pg_relation_size('things') / 8192 AS pages").fetchone() or {"pages": 0}
        for start in range(0, math.ceil(row["pages"]), PAGES):
            for connection in (first, second):
                connection.execute(
                    f"SELECT count(*) FROM things WHERE ctid >= '({start},0)' AND ctid < '({start + PAGES},0)'".encode()
                )


def _p50(crew: WorkerPool, server: EmbeddedServer, name: str, sql: str, count: int, *, pinned: bool) -> float:
    target = sql_target(server.conninfo(name), 30, 30, pinned=pinned)
    query: Message = {"item": "q", "sql": sql, "params": None}
    queue = (query,) * count
    columns = crew.run(target, [Batch((queue,))]).columns
    times = [(done - started) / 1e6 for started, done in zip(columns.started, columns.done, strict=True)]
    return stats.percentile(times[1:], 50)


def _apart_by(crew: WorkerPool, server: EmbeddedServer, pinned: bool) -> float:
    """The slowest p50 of four connections over the fastest."""
    own = sql_target(server.conninfo("things"), 30, 30, pinned=pinned)
    arms = ("a", "b", "c", "d")
    turns: list[Message] = [{"item": arm, "sql": "SELECT 1", "params": None, "arm": arm} for arm in arms]
    queue = (*turns,) * 300
    columns = crew.run(alternating_target(dict.fromkeys(arms, own)), [Batch((queue,))]).columns
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm, started, done in zip(columns.item, columns.started, columns.done, strict=True):
        times[arm].append(done - started)
    medians = [stats.percentile(found, 50) for found in times.values()]
    return max(medians) / min(medians)
