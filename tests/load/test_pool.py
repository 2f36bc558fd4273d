"""Load workers against real services and a real database: stamps, outcomes, health."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web

from perfkit.base.errors import LoadError, ServerError
from perfkit.base.process import spawn, stop
from perfkit.load.pool import WorkerPool, http_target, sql_target
from perfkit.load.schedule import Batch

GET = {"item": "get", "method": "GET", "path": "/", "json": None, "expect": [200]}


@contextmanager
def served(**routes):
    """A real aiohttp server in a thread; each keyword is a path with its handler."""
    ready, done = threading.Event(), threading.Event()
    found = {}

    async def run():
        app = web.Application()
        for name, handler in routes.items():
            app.router.add_route("*", f"/{name}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found["port"] = runner.addresses[0][1]
        ready.set()
        await asyncio.to_thread(done.wait)
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{found['port']}"
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def crew(processes):
    with WorkerPool(2) as crew:
        yield crew


@pytest.fixture(scope="module")
def null():
    process = spawn([sys.executable, "-m", "perfkit.load.http"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    stop(process)


def one(path: str = "/", **values) -> list[Batch]:
    return [Batch((({**GET, "path": path, **values},),))]


def test_every_request_becomes_one_sample_with_ordered_stamps(crew, null):
    load = crew.run(http_target(null, 5), [Batch(tuple((GET, GET, GET) for _ in range(7)))] * 2)
    columns = load.columns
    assert {len(column) for column in columns.lists.values()} == {42}
    assert set(columns.outcome) == {"ok"}
    assert sorted(set(columns.user)) == list(range(7))
    assert sorted(set(columns.batch)) == [0, 1]
    for scheduled, started, acquired, done in zip(
        *(getattr(columns, c) for c in ("scheduled", "started", "acquired", "done")), strict=True
    ):
        assert 0 <= scheduled <= started <= acquired <= done


def test_a_user_is_due_again_when_it_is_done(crew, null):
    columns = crew.run(http_target(null, 5), [Batch(((GET, GET, GET),))]).columns
    assert columns.scheduled == [0, *columns.done[:-1]]


def test_thirty_users_are_released_at_one_instant(crew, null):
    columns = crew.run(http_target(null, 5), [Batch(tuple((GET,) for _ in range(30)))]).columns
    assert columns.scheduled == [0] * 30
    assert max(columns.started) < min(columns.done) + 1e9


def test_under_a_ramp_only_requests_begun_at_full_concurrency_count(crew):
    slow = {**GET, "path": "/slow"}

    async def answer(_):
        await asyncio.sleep(0.05)
        return web.Response()

    with served(slow=answer) as base:
        queues = ((slow,) * 6, (slow,) * 2)  # the second user runs dry after two
        plan = [Batch(((slow,),), counted=False), Batch(queues, full_only=True)]
        columns = crew.run(http_target(base, 5), plan).columns
    counted = [u for u, c in zip(columns.user, columns.counted, strict=True) if c]
    assert counted.count(1) == 2
    assert 2 <= counted.count(0) <= 3


def test_the_clock_stops_after_the_last_byte_of_the_body(crew):
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Length": "4"})
        await response.prepare(request)
        await response.write(b"ab")
        await asyncio.sleep(0.3)
        await response.write(b"cd")
        return response

    with served(slow=answer) as base:
        columns = crew.run(http_target(base, 5), one("/slow")).columns
    assert columns.outcome == ["ok"]
    assert columns.done[0] - columns.acquired[0] >= 0.3e9


@pytest.mark.slow
def test_failures_are_named_and_kept(crew):
    async def hang(_):
        await asyncio.sleep(5)

    async def broken(request):
        request.transport.abort()
        return web.Response()

    async def taken(_):
        return web.json_response({"error": "taken"}, status=409)

    with socket.socket() as unused, served(hang=hang, broken=broken, taken=taken) as base:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        outcomes = {
            "timeout": crew.run(http_target(base, 0.2), one("/hang")),
            "reset": crew.run(http_target(base, 5), one("/broken", method="POST")),
            "http_409": crew.run(http_target(base, 5), one("/taken")),
            "ok": crew.run(http_target(base, 5), one("/taken", expect=[409])),
            "refused": crew.run(http_target(nobody, 5), one()),
            "unexpected_body": crew.run(http_target(base, 5), one("/taken", expect=[409], contains=["booked"])),
        }
    assert {name: load.columns.outcome for name, load in outcomes.items()} == {name: [name] for name in outcomes}
    assert outcomes["http_409"].columns.detail == ['{"error": "taken"}']


def test_sql_runs_with_its_parameters_and_reports_the_sqlstate(crew, server):
    target = sql_target(server.conninfo("postgres"), 5, 0.2)
    good = {"item": "q", "sql": "SELECT %(n)s::int", "params": {"n": 1}}
    bad = {"item": "q", "sql": "SELECT 1/%(n)s::int", "params": {"n": 0}}
    slow = {"item": "q", "sql": "SELECT pg_sleep(3)", "params": None}
    columns = crew.run(target, [Batch(((good, bad, slow),))]).columns
    assert columns.outcome == ["ok", "sqlstate_22012", "sqlstate_57014"]
    assert columns.detail[1] == "division by zero"


@pytest.mark.process
def test_a_database_that_cannot_be_reached_is_an_error_and_the_crew_is_spent(tmp_path):
    target = sql_target(f"host={tmp_path} dbname=x", 0.5, 1)
    with WorkerPool(2) as crew:
        with pytest.raises(LoadError, match="OperationalError"):
            crew.run(target, [Batch((({"item": "q", "sql": "SELECT 1", "params": None},),))])
        with pytest.raises(LoadError, match="a load worker died"):
            crew.run(http_target("http://127.0.0.1:1", 1), one())


@pytest.mark.slow
def test_what_the_watch_raises_ends_a_round_that_would_last_longer():
    async def hang(_):
        await asyncio.sleep(30)

    def watch():
        raise ServerError("gone")

    with served(hang=hang) as base, WorkerPool(1, watch) as crew:
        start = time.monotonic()
        with pytest.raises(ServerError, match="gone"):
            crew.run(http_target(base, 60), one("/hang"))
        assert time.monotonic() - start < 20


def test_health_says_what_the_client_cost(crew, null):
    health = crew.run(http_target(null, 5), [Batch(((GET,) * 20,))]).health
    assert set(health) == {"lag_p50_ms", "lag_p99_ms", "worker_cpu", "cpu_ms", "gc_ms", "wall_ms"}
    assert 0 <= health["lag_p50_ms"] <= health["lag_p99_ms"]
    assert 0 < health["worker_cpu"] <= 1.05


@pytest.mark.process
def test_a_worker_that_dies_is_an_error_not_a_hang():
    with WorkerPool(2) as crew:
        os.kill(crew._workers[0]._process.pid, signal.SIGKILL)
        with pytest.raises(LoadError, match="a load worker died"):
            crew.run(http_target("http://127.0.0.1:1", 1), one())


@pytest.mark.process
def test_workers_end_with_their_parent():
    script = (
        "import os; from perfkit.load.pool import WorkerPool as Crew; crew = Crew(2);"
        "print(*[worker._process.pid for worker in crew._workers], flush=True); os.kill(os.getpid(), 9)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    deadline = time.monotonic() + 5
    pids = [int(pid) for pid in output.split()]
    assert len(pids) == 2
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
