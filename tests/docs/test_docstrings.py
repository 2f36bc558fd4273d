"""The examples in docstrings are true."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from perfkit.base.resources import CHECKOUT

ROOT = CHECKOUT
MODULES = sorted(path for path in (ROOT / "perfkit").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_example_gives_what_it_says(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(import_module(name))
    assert found.attempted > 0 and found.failed == 0
