"""Fixtures that more than one test module uses: real servers, in folders that root's can reach."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import open_folder

from perfkit import config
from perfkit.postgres import embedded
from perfkit.runs.experiment import measure
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection

# Started in the background the suite may have been told to ignore it, and would hand that down to every process.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start a server or other processes by their fixtures; all others are unit tests."""
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        fixtures = {*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))}
        if fixtures & {"server_home", "server", "server16"} or item.get_closest_marker("system"):
            item.add_marker("server")
        if "processes" in fixtures:
            item.add_marker("process")


_unit_test: list[str] = []  # the unit test that runs now, if one does


def _no_process(event: str, _details: object) -> None:
    if _unit_test and event in ("subprocess.Popen", "os.posix_spawn", "os.fork"):
        raise AssertionError(
            f"{_unit_test[0]} starts a process; expected the mark `process` or the fixture `processes`"
        )


sys.addaudithook(_no_process)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep unit tests free of other processes, so that they stay fast."""
    if not any(item.get_closest_marker(name) for name in ("server", "process", "slow", "alone")):
        _unit_test[:] = [item.nodeid]
    try:
        return (yield)
    finally:
        _unit_test.clear()


@pytest.fixture(scope="session")
def processes() -> None:
    """Stand for what a fixture starts that is no server: a kernel, a command, load workers."""


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """A folder for embedded servers; pytest's own temporary folders are closed to other users."""
    yield from open_folder()


@pytest.fixture(scope="session")
def server(server_home: Path) -> Iterator[embedded.EmbeddedServer]:
    """PostgreSQL 18, shared by the whole run; make your own database in it."""
    with embedded.start(18, {"shared_buffers": "256MB"}, server_home) as running:
        yield running


@pytest.fixture(scope="session")
def server16(server_home: Path) -> Iterator[embedded.EmbeddedServer]:
    """PostgreSQL 16, likewise."""
    with embedded.start(16, {"shared_buffers": "256MB"}, server_home) as running:
        yield running


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, server_home: Path) -> Bundle:
    """A complete quick run of the booking system at its smallest scale; do not write to it."""
    os.environ["PERFKIT_HOME"] = str(server_home)
    folder = tmp_path_factory.mktemp("runs") / "quick"
    return measure(Selection(lighter(config.load()), RunSpec(profile="quick", scale="seed")), folder)


def lighter(booking: config.Config) -> config.Config:
    """The same scenarios with fewer requests: enough for every number, not for small differences."""
    fewer = {"sustained": {"batches": 3}, "burst": {"batches": 1}, "queries": {"requests": 2}}
    scenarios = tuple(s.model_copy(update=fewer.get(s.name, {})) for s in booking.scenario)
    return booking.model_copy(update={"scenario": scenarios})
