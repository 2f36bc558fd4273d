"""perfkit's open model beside `pgbench --rate`: 500 transactions a second for 20 s, arriving as a Poisson process.

A transaction keeps the server busy for about 1 ms. Both tools have 20 connections and one thread, and count from the
instant at which a transaction was due.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from benchmarks import pgbench
from benchmarks.results import Figure, Section, publish
from benchmarks.rounds import Round, compared, of_load, quiet, taking_turns, typical_round
from benchmarks.sql import DATABASE, WORK_MS, filled, transactions
from perfkit.load.pool import WorkerPool, sql_target
from perfkit.load.schedule import Arrivals, Message
from perfkit.postgres import databases

RATE = 500.0  # per second
SECONDS = 20
CONNECTIONS = 20
IN_FLIGHT = 1000  # what finds no connection free waits for one, as in pgbench
SERVER_MS = 1.0
ROUNDS = 6
PERFKIT, PGBENCH = "perfkit", "pgbench"


def main() -> bool:
    """Print and write the figures; True where all hold."""
    with quiet(), filled() as (server, loops), WorkerPool(1) as crew:
        target = sql_target(server.conninfo(DATABASE), 30, 30, connections=CONNECTIONS)
        work = transactions(int(loops * SERVER_MS / WORK_MS))[1]
        message: Message = {"item": work.name, "sql": work.sql, "params": None}
        seeds = count()

        def by_perfkit() -> Round:
            arrivals = Arrivals((message,), ((RATE, RATE, SECONDS),), IN_FLIGHT, str(next(seeds)))
            return of_load(crew.run(target, [arrivals]))

        def by_pgbench() -> Round:
            return pgbench.run(
                server, DATABASE, work.script, clients=CONNECTIONS, threads=1, seconds=SECONDS, rate=RATE
            )

        tools: dict[str, Callable[[], Round]] = {PERFKIT: by_perfkit, PGBENCH: by_pgbench}
        found = taking_turns(tools, ROUNDS, "open model")
        version = databases.server_version(server)
    return publish(
        Section("open_model", "Open model beside pgbench", _figures(found), _notes(found), [f"PostgreSQL {version}"])
    )


def _figures(found: dict[str, list[Round]]) -> list[Figure]:
    own = found[PERFKIT]
    figures = [
        Figure.of("schedule lag, p50", typical_round(own, "lag p50"), unit=" ms", at_most=0.05),
        Figure.of("schedule lag, p99", typical_round(own, "lag p99"), unit=" ms", at_most=2.0),
    ]
    for metric in ("p50", "p95"):
        ratio = compared(found[PGBENCH], own, metric)
        name = f"response {metric}, perfkit / pgbench"
        figures.append(Figure.of(name, ratio, at_least=0.9, at_most=1.1))
    return figures


def _notes(found: dict[str, list[Round]]) -> list[str]:
    metrics = ("lag p50", "lag p99", "p50", "p95", "rate")
    rows = [f"| tool | {' | '.join(metrics)} |", "|" + "---|" * (1 + len(metrics))]
    for tool, own in found.items():
        values = [typical_round(own, metric) for metric in metrics]
        rows.append(f"| {tool} | {' | '.join(f'{value.value:.4g}' for value in values if value)} |")
    return [(__doc__ or "").strip() + " Times in ms, the rate per second.", "\n".join(rows)]
