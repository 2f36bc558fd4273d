"""README and docs/ are true: their commands, options, links and paths exist."""

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path

import click
import documents
import pytest
from documents import each_page

from perfkit.app.cli import main
from perfkit.base import errors
from perfkit.base.resources import CHECKOUT

MAKEFILE = (CHECKOUT / "Makefile").read_text(encoding="utf-8")


@each_page
def test_every_perfkit_command_takes_the_options_shown(page: Path) -> None:
    whole = documents.block_lines(page)
    for command in documents.commands(page, "perfkit"):
        try:
            documents.parse(command, whole=command in whole)
        except click.UsageError as error:
            pytest.fail(f"{command}: {error.format_message()}")


@pytest.mark.process
@each_page
def test_every_make_command_has_its_target(page: Path) -> None:
    for command in documents.commands(page, "make"):
        words = shlex.split(command)
        assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), command
        done = subprocess.run(["make", "-n", *words[1:]], cwd=CHECKOUT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@each_page
def test_every_papermill_command_has_its_notebook_and_parameters(page: Path) -> None:
    for command in documents.commands(page, "papermill"):
        words = shlex.split(command)
        given = {words[at + 1] for at, word in enumerate(words) if word == "-p"}
        assert given <= parameters(CHECKOUT / words[1]), command


def parameters(notebook: Path) -> set[str]:
    """Return the names that a notebook's parameters cell sets."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    return {node.target.id for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]


@each_page
def test_every_link_and_its_section_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", documents.prose(page)):
        if link.startswith("http"):
            continue
        path, _, section = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not section or section in sections(target), link


def sections(page: Path) -> set[str]:
    """Return the names by which links reach a page's headings."""
    titles = re.findall(r"^#+ (.*)$", documents.text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_every_path_of_the_checkout_exists(page: Path) -> None:
    for word in (word for text in documents.code(page) for word in text.split()):
        if re.match(r"(\.ci|benchmarks|docs|notebooks|perfkit|sql|tests)/[\w./-]*$", word):
            assert (CHECKOUT / word).exists(), word


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = set(), [CHECKOUT / "README.md"]
    while ahead:
        page = ahead.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", documents.prose(page))
        ahead += [page.parent / link for link in links if not link.startswith("http")]
    assert {page.resolve() for page in documents.PAGES} - reached == {(CHECKOUT / "CHANGELOG.md").resolve()}


def test_the_command_line_page_lists_every_command_and_no_other() -> None:
    rows = re.findall(r"^\| `(perfkit .*?)` \|", documents.text(CHECKOUT / "docs/cli.md"), re.MULTILINE)
    assert sorted(rows) == sorted(leaves(main, "perfkit"))


def leaves(group: click.Group, path: str) -> list[str]:
    """Return the full names of the commands of a group and of the groups in it."""
    found = []
    for name, command in group.commands.items():
        own = f"{path} {name}"
        found += leaves(command, own) if isinstance(command, click.Group) else [own]
    return found


def test_the_command_line_page_lists_every_exit_code_of_an_error() -> None:
    codes = set(re.findall(r"^\| (\d+) \|", documents.text(CHECKOUT / "docs/cli.md"), re.MULTILINE))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PerfkitError)]
    assert {str(kind.exit_code) for kind in kinds} <= codes
