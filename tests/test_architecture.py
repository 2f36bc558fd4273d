"""The map of the code is complete and true: every module is in it, and imports point down it."""

import ast
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


UPWARD = {
    ("proof", "api"): "a statement in a database of yours is measured as the command line compares it",
    ("indexes", "display"): "advice shows itself in a cell",
    ("query", "slow_queries"): "a database says what is slow in it",
    ("config", "postgres"): "a configuration is refused for a setting that would run a program or loosen a guard",
    ("guards", "postgres"): "a guarded connection has the time limits of a server that perfkit did not start",
}


def test_imports_point_down_its_map():
    """Of modules that another room is imported from, all but the ones that are named here, with their reason."""
    rows = re.findall(r"^\| (`perfkit.*?) \|", MAP, re.MULTILINE)
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
