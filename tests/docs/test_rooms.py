"""The package's structure: rooms on floors, imports that point down, no circle of files, one meaning a class name."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from importlib import import_module

import pytest

import perfkit
from perfkit.base.resources import CHECKOUT

PACKAGE = CHECKOUT / "perfkit"
FLOORS = [
    {"base"},
    {"config", "show", "postgres", "booking"},
    {"explain", "load"},
    {"runs", "slow"},
    {"analysis"},
    {"indexes", "monitor"},
    {"release"},
    {"app"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OPTIONAL = {"slow", "indexes", "monitor", "release", "app"}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in PACKAGE.rglob("*.py")
    if "_data" not in path.parts
}


def imports(node):
    """Every module of the package that a module imports when it runs, also inside functions."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "perfkit":
                for alias in child.names:
                    name = f"{module}.{alias.name}"
                    yield name if name in MODULES else module
            case _:
                yield from imports(child)


GRAPH = {name: set(imports(tree)) - {name, "perfkit"} for name, tree in MODULES.items()}


def room(module):
    return module.split(".")[1]


def test_every_folder_is_a_room_with_its_floor():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == FLOOR.keys()
    assert len(FLOOR) <= 14
    assert not FLOOR.keys() & set(perfkit.__all__)  # once imported, a room would hide the call of its name
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_imports_point_down():
    upward = {
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if name not in ("perfkit", "perfkit.__main__")
        if room(name) != room(other) and FLOOR[room(name)] <= FLOOR[room(other)]
    }
    assert upward == set()


@pytest.mark.parametrize("name", sorted(FLOOR.keys() - {"config"}))  # which exports names of its modules
def test_a_room_exports_the_modules_that_others_import_and_no_more(name):
    others = {other for module, used in GRAPH.items() if module == "perfkit" or room(module) != name for other in used}
    imported = {other.split(".")[2] for other in others if other.startswith(f"perfkit.{name}.")}
    assert imported == set(getattr(import_module(f"perfkit.{name}"), "__all__", ()))


def test_no_file_imports_itself_around_a_corner():
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the circle


@pytest.mark.process
def test_the_core_imports_no_optional_room():
    core = [name for name in MODULES if "." in name and FLOOR.keys() - OPTIONAL >= {room(name)}]
    script = f"import sys, importlib; [*map(importlib.import_module, {core})]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {room(name) for name in done.stdout.split() if name.startswith("perfkit.")} & OPTIONAL == set()


def test_a_class_name_has_one_meaning():
    names = Counter(
        node.name
        for tree in MODULES.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, times in names.items() if times > 1] == []
