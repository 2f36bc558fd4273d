"""The README's commands work and its map is true."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from perfkit import config
from perfkit.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_every_make_command_has_its_target(command):
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    dry = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr


@pytest.mark.parametrize("command", [c for c in commands() if re.search(r"(^|bin/)perfkit ", c)])
def test_every_perfkit_command_takes_the_options_shown(command):
    words = shlex.split(command)[1:]
    flags = [word for word in words if word.startswith("--")]
    group = main.commands[words[0]]
    named = words[:2] if isinstance(group, click.Group) else words[:1]
    shown = CliRunner().invoke(main, [*named, "--help"])
    assert shown.exit_code == 0
    assert all(flag in shown.output for flag in flags)


@pytest.mark.slow
def test_the_example_to_copy_gives_a_report(tmp_path, server_home):
    shutil.copytree(ROOT / "docs/examples/orders", tmp_path / "mine")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "perfkit", "report", "--config", "mine/perfkit.toml"),
            *("--profile", "quick", "--reports", "runs"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PERFKIT_HOME": str(server_home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GO: ")
    page = next((tmp_path / "runs").glob("*/report.html")).read_text()
    assert "orders_customer_date" in page


def test_every_path_and_notebook_it_names_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    rows = re.findall(r"^\| (`perfkit.*?) \|", README, re.MULTILINE)
    for cell in rows:
        for name in re.findall(r"`([^`]+)`", cell):
            assert any((ROOT / base / name).exists() for base in ("", "perfkit")), name


def test_the_map_leaves_no_module_out():
    named = " ".join(re.findall(r"^\| (`perfkit.*?) \|", README, re.MULTILINE))
    for path in (ROOT / "perfkit").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in named, path.name
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"{path.name}/" in named, path.name


UPWARD = {
    ("proof", "api"): "a statement in a database of yours is measured as the command line compares it",
    ("indexes", "display"): "advice shows itself in a cell",
    ("query", "slow_queries"): "a database says what is slow in it",
}


def test_imports_point_down_its_map():
    """Of modules that another room is imported from, all but the ones that are named here, with their reason."""
    rows = re.findall(r"^\| (`perfkit.*?) \|", README.partition("## Map of the code")[2], re.MULTILINE)
    names = [re.findall(r"`(?:perfkit/)?([^`]+?)(?:/|\.py)?`", row) for row in rows]
    floor = {name: number for number, own in enumerate(names) for name in own}
    upward = set()
    for path in (ROOT / "perfkit").rglob("*.py"):
        room = path.relative_to(ROOT / "perfkit").parts[0].removesuffix(".py")
        for other in _rooms(ast.parse(path.read_text())):
            if room in floor and other in floor and floor[other] < floor[room]:
                upward.add((room, other))
    assert upward == set(UPWARD)


def _rooms(tree):
    """What a module imports of perfkit when it runs, by its first name; for type checkers alone is no import."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.ImportFrom(module="perfkit"):
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module)) if module.startswith("perfkit."):
                yield module.split(".")[1]
            case ast.Import():
                yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("perfkit."))
            case _:
                yield from _rooms(node)


def test_the_profiles_it_promises_exist():
    assert "PROFILE=quick" in README and "quick" in config.load().profiles
