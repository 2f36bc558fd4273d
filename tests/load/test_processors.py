"""A client and the connections that answer it, on a processor each while a round lasts."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from perfkit.load.pool import WorkerPool, sql_target
from perfkit.load.samples import pin_to_processors
from perfkit.load.schedule import Batch
from perfkit.postgres.embedded import EmbeddedServer

ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
#: CI has two: there a test that lacks them fails.
several = pytest.mark.skipif(len(ALL) < 2 and not os.environ.get("CI"), reason="needs two processors")


@pytest.fixture
def other(processes: None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that waits."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate(b"\n")


@several
def test_both_sides_keep_to_their_own_processor_until_the_way_back(other: subprocess.Popen[bytes]) -> None:
    first, second, *_ = sorted(ALL)
    back = pin_to_processors([other.pid])
    assert back
    try:
        assert (os.sched_getaffinity(0), os.sched_getaffinity(other.pid)) == ({first}, {second})
    finally:
        back()
    assert os.sched_getaffinity(0) == ALL


@pytest.mark.process
@several
def test_nothing_moves_with_one_processor_no_connection_or_one_that_is_gone(other: subprocess.Popen[bytes]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pids in ([], [gone.pid]):
        assert pin_to_processors(pids) is None
        assert os.sched_getaffinity(0) == ALL
    try:
        os.sched_setaffinity(0, {min(ALL)})
        assert pin_to_processors([other.pid]) is None
        assert os.sched_getaffinity(0) == {min(ALL)}
        assert os.sched_getaffinity(other.pid) == ALL
    finally:
        os.sched_setaffinity(0, ALL)


@several
def test_a_round_of_one_user_is_sent_so_and_the_worker_goes_back(server: EmbeddedServer) -> None:
    first, second, *_ = sorted(ALL)
    slow = Batch((({"item": "q", "sql": "SELECT pg_sleep(1)", "params": None},),))
    with WorkerPool(1) as crew, server.connect("postgres", "postgres") as connection:
        (worker,) = _children()
        target = sql_target(server.conninfo("postgres"), 10, 10, pinned=True)
        round_ = threading.Thread(target=crew.run, args=(target, [slow]))
        round_.start()
        backend, end = None, time.monotonic() + 10
        while backend is None and time.monotonic() < end:
            backend = connection.execute(SLEEPING).fetchone()
        during = os.sched_getaffinity(worker), os.sched_getaffinity(backend["pid"]) if backend else None
        round_.join()
        assert during == ({first}, {second})
        assert os.sched_getaffinity(worker) == ALL


def _children() -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "perfkit"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]
