"""What the first report about a database of one's own takes: `compare` on pgbench's, without its primary keys."""

from __future__ import annotations

import subprocess
import time
from tempfile import TemporaryDirectory

from perfkit.analysis.report import render
from perfkit.app import api
from perfkit.postgres import databases, embedded

LIMIT = 120.0  # seconds from the call to the report
SCALE = 10  # a million accounts
SOURCE = {"shared_buffers": "256MB"}  # another server than the one that the copy goes to
DATABASE = "perfkit_compare"
PARAMETERS = "SELECT 1 + (hashint8extended(n, 1) & 2147483647) % 1000000 AS aid FROM generate_series(1, 2000) n"
QUERIES = (
    "SELECT abalance FROM pgbench_accounts WHERE aid = %(aid)s",
    "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = %(aid)s",
)
INDEX = "CREATE UNIQUE INDEX pgbench_accounts_pkey ON pgbench_accounts (aid)"


def main() -> bool:
    """Print the seconds beside their limit; True where it holds."""
    with TemporaryDirectory() as folder, embedded.start(18, SOURCE) as server:
        databases.create(server, DATABASE)
        try:
            _fill(server)
            start = time.perf_counter()
            run = api.compare(
                server.conninfo(DATABASE),
                QUERIES,
                INDEX,
                parameters=PARAMETERS,
                profile="quick",
                reports=folder,
                confirm=f"{server.socket_dir}:{server.port}/{DATABASE}",
            )
            render(run.bundle.path)
            whole = time.perf_counter() - start
        finally:
            databases.drop(server, DATABASE)
    for name, value in {**run.bundle.run.timings, "whole": whole}.items():
        print(f"compare  {name:13} {value:7.2f}" + (f"  (limit {LIMIT:g})" if name == "whole" else ""))
    return whole <= LIMIT


def _fill(server: embedded.EmbeddedServer) -> None:
    """pgbench's own tables, all of its steps but the primary keys."""
    steps = ["--initialize", "--init-steps=dtgv", f"--scale={SCALE}", "--quiet"]
    where = [f"--host={server.socket_dir}", f"--port={server.port}", "--username=perfkit", DATABASE]
    subprocess.run([str(server.bin_dir / "pgbench"), *steps, *where], check=True, capture_output=True)
