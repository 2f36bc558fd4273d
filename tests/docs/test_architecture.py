"""The map of the code is complete and true: it names every room, and in each room every module, and no other."""

import re
from pathlib import Path

import pytest

from perfkit.base.resources import CHECKOUT

MAP = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8")
PACKAGE = CHECKOUT / "perfkit"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def modules(folder: Path) -> set[str]:
    """Return the names of the modules and packages in a folder."""
    inside = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return inside | {path.parent.name for path in folder.glob("*/__init__.py")}


def test_the_table_of_rooms_has_every_room_and_no_other() -> None:
    assert sorted(re.findall(r"^\| `perfkit/(\w+)/` \|", MAP, re.MULTILINE)) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_of_a_room_has_every_module_and_no_other(room: str) -> None:
    table = re.search(rf"^\*\*{room}\*\*\n\n((?:\|.*\n)+)", MAP, re.MULTILINE)
    assert table
    cells = re.findall(r"^\| (`.*?) \|", table[1], re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(modules(PACKAGE / room))


def test_every_file_on_a_walk_exists() -> None:
    paths = re.findall(r"`(?:perfkit/)?(\w+/[\w/]+\.py)`", MAP)
    assert len(paths) > 20
    for path in paths:
        assert (PACKAGE / path).exists() or (CHECKOUT / path).exists(), path


def test_each_question_is_answered_with_at_most_three_files_to_open() -> None:
    answers = MAP.partition("## Where is ...?")[2].split("\n\n**")[1:]
    assert len(answers) == 3
    for answer in answers:
        assert len(set(re.findall(r"`((?:perfkit|docs)/[\w/.]+)`", answer))) <= 3, answer
