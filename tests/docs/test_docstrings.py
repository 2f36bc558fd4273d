"""The examples in docstrings are true."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
import watching
from matplotlib import pyplot
from synthetic import make_run

from perfkit.analysis.report import Run
from perfkit.base.resources import CHECKOUT
from perfkit.monitor.loop import WatchSummary
from perfkit.monitor.store import Store

ROOT = CHECKOUT
MODULES = sorted(path for path in (ROOT / "perfkit").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that examples call `run`."""
    return Run(make_run(tmp_path_factory.mktemp("run") / "run"))


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> WatchSummary:
    """The watch that examples call `watch`: two minutes without a failure."""
    folder = tmp_path_factory.mktemp("watch")
    store = Store.open(folder, watching.about())
    for tick in watching.quiet(1 / 30):
        store.append(tick)
    store.close()
    return WatchSummary.of(folder)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_example_gives_what_it_says(path: Path, run: Run, watch: WatchSummary) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(import_module(name), extraglobs={"run": run, "watch": watch})
    pyplot.close("all")
    assert found.attempted > 0 and found.failed == 0
