"""Fixtures that more than one test module uses: real servers, in folders that root's can reach."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import open_folder

from perfkit import config
from perfkit.base.bundle import Bundle
from perfkit.postgres import embedded
from perfkit.runs.experiment import measure
from perfkit.runs.selection import RunSpec, Selection

# Started in the background the suite may have been told to ignore it, and would hand that down to every process.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a server: each needs a folder for it, and a system's PostgreSQL is marked by hand."""
    for item in items:
        if "server_home" in getattr(item, "fixturenames", ()) or item.get_closest_marker("system"):
            item.add_marker("server")


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
