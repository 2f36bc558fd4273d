"""The examples in docstrings are true."""

import doctest
import inspect
import re
import tarfile
from importlib import import_module
from pathlib import Path

import pytest
import watching
from matplotlib import pyplot
from synthetic import make_run

import perfkit
from perfkit.analysis.report import Run
from perfkit.base.resources import CHECKOUT
from perfkit.monitor.loop import WatchSummary
from perfkit.monitor.store import Store

ROOT = CHECKOUT
MODULES = sorted(path for path in (ROOT / "perfkit").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> WatchSummary:
    """The watch that examples call `watch`: two minutes without a failure."""
    folder = tmp_path_factory.mktemp("watch")
    store = Store.open(folder, watching.about())
    for tick in watching.quiet(1 / 30):
        store.append(tick)
    store.close()
    return WatchSummary.of(folder)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, watch: WatchSummary) -> dict[str, object]:
    """What examples name: a run, and the folders of a run, a lab and a watch that were kept."""
    base = tmp_path_factory.mktemp("stored")
    for name in ("run", "lab", "watch"):
        with tarfile.open(ROOT / "tests" / "stored" / f"{name}.tar.xz") as archive:
            archive.extractall(base / name, filter="data")
    folders = {f"{name}_folder": base / name for name in ("run", "lab", "watch")}
    return {"perfkit": perfkit, "run": Run(make_run(base / "made")), "watch": watch, **folders}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_example_gives_what_it_says(path: Path, names: dict[str, object]) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(import_module(name), extraglobs=names)
    pyplot.close("all")
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.parametrize("name", perfkit.__all__)
def test_a_public_call_documents_its_parameters_result_and_errors(name: str) -> None:
    call = getattr(perfkit, name)
    text = inspect.getdoc(call) or ""
    headings = re.findall(r"^(\w+)\n-+$", text, re.MULTILINE)
    assert headings == ["Parameters", "Returns", "Raises", "Examples"]
    documented = dict(re.findall(r"^(\w+) : .*\n((?:    \S.*\n)*)", text, re.MULTILINE))
    assert list(documented) == list(inspect.signature(call).parameters)
    assert all(documented.values()), [name for name, words in documented.items() if not words]
