"""perfkit's engines beside pgbench on the same transactions: latency at 1, 5 and 30 connections, throughput at 30.

Three transactions: `lookup` costs the server next to nothing, so that clients meet their own limits; `work` keeps a
core of the server busy for more than 2 ms; `wait` lasts 2 ms and costs the server nothing, so that what a client
adds cannot hide behind the server's cores. At 30 connections that is 15,000 transactions a second, more than one
interpreter sends; there its latency is shown and not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks import pgbench, profiling
from benchmarks.results import Figure, Section, publish
from benchmarks.rounds import ROUNDS, WARM, Round, compared, of_load, quiet, taking_turns, typical_round
from perfkit.base import process
from perfkit.config import Scenario
from perfkit.load import pgbench as engine
from perfkit.load.pgbench import ScriptQuery
from perfkit.load.pool import WorkerPool, calibrate, fewest_workers, sql_target
from perfkit.load.schedule import Batch, Message
from perfkit.postgres import databases, embedded

DATABASE = "perfkit_sql"
CONNECTIONS = (1, 5, 30)
SECONDS = 1.0  # of a round, about
ENGINE_S = 2  # as long as the engine's program goes on for SECONDS
WORK_MS = 2.5  # on one connection, so that it stays above 2 where the machine is faster at times
ROWS = 100_000
DATA = f"""
CREATE TABLE accounts (id int PRIMARY KEY, balance int);
INSERT INTO accounts SELECT n, n FROM generate_series(1, {ROWS}) n;
GRANT SELECT ON accounts TO PUBLIC;
VACUUM ANALYZE accounts;
"""
ASYNCIO, ENGINE, PGBENCH, TIMED = "asyncio", "pgbench engine", "pgbench", "pgbench by time"
KEYS = 1000  # of `lookup`, as many as a run of perfkit hands to pgbench at most


@dataclass(frozen=True, slots=True)
class Transaction:
    """One statement, as pgbench's script and as perfkit's query."""

    name: str
    script: str
    sql: str
    keys: int = 0  # how many values its parameter has; 0: no parameter

    def messages(self, count: int, draw: Random) -> tuple[Message, ...]:
        """So many requests of it."""
        return tuple(
            {"item": self.name, "sql": self.sql, "params": {"id": draw.randint(1, self.keys)} if self.keys else None}
            for _ in range(count)
        )

    def query(self, draw: Random) -> ScriptQuery:
        """It with the rows of its parameter, which the engine turns into a script."""
        return ScriptQuery(
            self.name, self.sql, [{"id": draw.randint(1, self.keys)} for _ in range(KEYS)] if self.keys else None
        )


def transactions(loops: int) -> tuple[Transaction, ...]:
    """The three; `work` counts to `loops`."""
    work, wait = f"SELECT sum(n) FROM generate_series(1, {loops}) n", "SELECT pg_sleep(0.002)"
    lookup = "SELECT balance FROM accounts WHERE id = "
    return (
        Transaction("lookup", f"\\set id random(1, {ROWS})\n{lookup}:id;\n", f"{lookup}%(id)s", ROWS),
        Transaction("work", f"{work};\n", work),
        Transaction("wait", f"{wait};\n", wait),
    )


def main() -> bool:
    """Print and write the figures; True where all hold."""
    with quiet(), filled() as (server, loops), WorkerPool(2 * process.cores()) as crew:
        target = sql_target(server.conninfo(DATABASE), 30, 30)
        null: Message = {"item": "null", "sql": "SELECT 1", "params": None}
        crew.shrink(fewest_workers(calibrate(crew, target, null, max(CONNECTIONS))))
        found = {
            (own.name, users): _measured(server, crew, target, own, users)
            for own in transactions(loops)
            for users in CONNECTIONS
        }
        lookup = transactions(loops)[0]
        queues = [lookup.messages(2000, Random(0)) for _ in range(max(CONNECTIONS))]
        profile = profiling.shares(target, queues)
        version = databases.server_version(server)
        workers = len(crew)
    return publish(
        Section(
            "sql", "SQL beside pgbench", _figures(found), _notes(found, profile, workers), [f"PostgreSQL {version}"]
        )
    )


@contextmanager
def filled() -> Iterator[tuple[embedded.EmbeddedServer, int]]:
    """A server with the table, and how far a query counts in WORK_MS there."""
    with embedded.start(18) as server:
        databases.create(server, DATABASE)
        try:
            with server.connect(DATABASE) as connection:
                for statement in filter(str.strip, DATA.split(";")):
                    connection.execute(statement.encode())
                loops, took = 10_000, []
                for _ in range(50):
                    start = perf_counter()
                    connection.execute(f"SELECT sum(n) FROM generate_series(1, {loops}) n".encode())
                    took.append(perf_counter() - start)
            yield server, int(loops * WORK_MS / 1e3 / median(took))
        finally:
            databases.drop(server, DATABASE)


def _measured(
    server: embedded.EmbeddedServer, crew: WorkerPool, target: Any, own: Transaction, users: int
) -> dict[str, list[Round]]:
    """Rounds of every tool, of as many transactions as pgbench does in a second.

    The engine goes by time. Where connections end one by one, as by number, the last have the server for themselves,
    so it has a pgbench by time beside it.
    """
    threads = min(users, process.cores())
    run = partial(pgbench.run, server, DATABASE, own.script, clients=users, threads=threads)
    each = max(20, int(run(seconds=1).value("rate") * SECONDS / users))

    def by_asyncio() -> Round:
        draw = Random(0)
        lead = Batch(tuple(own.messages(WARM, draw) for _ in range(users)), counted=False)
        whole = Batch(tuple(own.messages(each, draw) for _ in range(users)))
        return of_load(crew.run(target, [lead, whole]))

    level = Scenario(
        name=own.name, label="", send=(own.name,), users=users, engine="pgbench", seconds=SECONDS, warm=WARM
    )
    samples = 2 * users * each + 10_000  # the program goes on for a moment after the second

    def by_engine() -> Round:
        return of_load(
            engine.run(server.bin_dir / "pgbench", target, level, [own.query(Random(0))], "0", samples=samples)
        )

    tools: dict[str, Callable[[], Round]] = {
        PGBENCH: partial(run, transactions=each),
        TIMED: partial(run, seconds=ENGINE_S),
        ENGINE: by_engine,
        ASYNCIO: by_asyncio,
    }
    return taking_turns(tools, ROUNDS, f"{own.name}, {users}")


def _figures(found: dict[tuple[str, int], dict[str, list[Round]]]) -> list[Figure]:
    figures = []
    for (name, users), rounds in found.items():
        judged = name == "work" or (name == "wait" and users < max(CONNECTIONS))
        for tool, other, limit in ((ENGINE, TIMED, 1.05), (ASYNCIO, PGBENCH, 1.1 if judged else None)):
            figures += [
                Figure.of(
                    f"{name}, {users} connections: {metric}, {tool} / {other}",
                    compared(rounds[other], rounds[tool], metric),
                    at_most=limit,
                )
                for metric in ("p50", "p95")
            ]
    busiest = found["lookup", max(CONNECTIONS)]
    rate = compared(busiest[PGBENCH], busiest[ASYNCIO], "rate")
    return [*figures, Figure.of("lookup, 30 connections: throughput, asyncio / pgbench", rate)]


def _notes(found: dict[tuple[str, int], dict[str, list[Round]]], profile: dict[str, float], workers: int) -> list[str]:
    rows = []
    for (name, users), rounds in found.items():
        for tool, own in rounds.items():
            p50, rate, core = (typical_round(own, metric) for metric in ("p50", "rate", "rate per core"))
            assert p50 and rate and core
            cost = 1e6 / core.value
            rows.append(f"| {name} | {users} | {tool} | {p50.value:.3f} | {rate.value:,.0f} | {cost:.0f} |")
    head = "| transaction | connections | tool | p50, ms | per second | client CPU each, µs at most |"
    return [
        (__doc__ or "").partition("\n\n")[2].strip(),
        f"pgbench: prepared statements, a thread a core. asyncio: {workers} worker processes, as calibrated.",
        "\n".join([head, "|" + "---|" * 6, *rows]),
        f"One worker, `lookup` on 30 connections, under a profiler: {profiling.sentence(profile)}.",
    ]
