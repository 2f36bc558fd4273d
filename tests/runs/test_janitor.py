"""What a run made on a server of the user's is gone afterwards, also when the run was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hosted import Hosted, hosted
from scripts import run_all

pytestmark = [pytest.mark.system, pytest.mark.slow]

INDEX = "CREATE INDEX orders_customer ON sales.orders (customer_id)"
VALID = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('sales.orders_customer') AND indisvalid"
WAITING = "SELECT 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for%'"
LEFT = """
    SELECT relname FROM pg_class WHERE relname = 'orders_customer'
    UNION ALL SELECT datname FROM pg_database WHERE datname ~ '^pk_'
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Hosted]:
    with hosted() as running:
        perfkit(running, "allow", "--ddl").check_returncode()
        running.run("ALTER ROLE shop CREATEDB")
        yield running


def perfkit(server: Hosted, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(server, command, *options), env=environment(server), capture_output=True, text=True)


def arguments(server: Hosted, command: str, *options: str) -> list[str]:
    name = ["--db", server.db(), "--confirm", server.name()]
    return [sys.executable, "-P", "-m", "perfkit", command, *name, *options]


def environment(server: Hosted) -> dict[str, str]:
    return {**os.environ, **server.environment, "TMPDIR": str(server.folder)}  # where runs wait for one another


def comparing(server: Hosted, folder: Path, way: str) -> subprocess.Popen[bytes]:
    options = ["--query", "SELECT count(*) FROM sales.orders WHERE customer_id = 7", "--index", INDEX]
    options += ["--way", way, "--users", "1", "--reports", str(folder)]
    return subprocess.Popen(arguments(server, "compare", *options), env=environment(server), stderr=subprocess.DEVNULL)


def wait_for(server: Hosted, query: str, *, gone: bool = False) -> None:
    deadline = time.monotonic() + 60
    while bool(server.run(query)) is gone:
        assert time.monotonic() < deadline, query
        time.sleep(0.02)


def kill(running: subprocess.Popen[bytes]) -> None:
    running.send_signal(signal.SIGKILL)
    running.wait()


def janitors() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "perfkit.runs.targets" in (p.info["cmdline"] or ())]


def test_a_run_that_is_killed_while_its_index_is_there_leaves_none(server: Hosted, tmp_path: Path) -> None:
    running = comparing(server, tmp_path, "in-place")
    wait_for(server, VALID)
    kill(running)
    wait_for(server, LEFT, gone=True)
    [run] = tmp_path.iterdir()
    assert "DROP INDEX CONCURRENTLY" in (run / "audit.jsonl").read_text()


def test_a_run_that_is_killed_while_it_builds_leaves_no_invalid_index(server: Hosted, tmp_path: Path) -> None:
    with server.connect("shop") as writer:
        run_all(writer, "BEGIN; UPDATE sales.orders SET total = total WHERE id = 1")
        running = comparing(server, tmp_path, "in-place")
        wait_for(server, WAITING)
        kill(running)
        wait_for(server, WAITING, gone=True)
        writer.execute("ROLLBACK")
    wait_for(server, LEFT, gone=True)


def test_a_run_that_is_killed_leaves_no_database_beside_the_users(server: Hosted, tmp_path: Path) -> None:
    running = comparing(server, tmp_path, "clone")
    wait_for(server, "SELECT 1 FROM pg_database WHERE datname ~ '^pk_.*_clone_'")
    kill(running)
    wait_for(server, LEFT, gone=True)


def test_it_ends_with_its_work(server: Hosted) -> None:
    deadline = time.monotonic() + 30
    while janitors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert janitors() == []
