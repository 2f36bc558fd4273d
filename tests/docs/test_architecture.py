"""The map of the code is complete and true: every module is in it."""

import re

from perfkit.base.resources import CHECKOUT as ROOT

MAP = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_every_name_in_it_exists():
    for cell in re.findall(r"^\| (`perfkit.*?) \|", MAP, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", cell):
            assert any((ROOT / base / name).exists() for base in ("", "perfkit")), name


def test_the_map_leaves_no_module_out():
    named = " ".join(re.findall(r"^\| (`perfkit.*?) \|", MAP, re.MULTILINE))
    for path in (ROOT / "perfkit").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in named, path.name
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"{path.name}/" in named, path.name
