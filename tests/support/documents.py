"""The documents for readers, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest

from perfkit.app.cli import main
from perfkit.base.resources import CHECKOUT

PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((CHECKOUT / "docs").glob("*.md")),
    *sorted((CHECKOUT / "docs/findings").glob("*.md")),
]


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def prose(page: Path) -> str:
    """Return a page's text without its blocks of code."""
    return re.sub(r"^````?.*?^````?$", "", text(page), flags=re.DOTALL | re.MULTILINE)


def block_lines(page: Path) -> list[str]:
    """Return the lines of a page's shell blocks, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def code(page: Path) -> list[str]:
    """Return what a page's sentences and tables quote as code."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page: Path, program: str) -> Iterator[str]:
    """Return a program's commands: whole ones of the page's blocks, then those that sentences name, perhaps in part."""
    yield from dict.fromkeys(c for c in (*block_lines(page), *code(page)) if c.startswith(f"{program} "))


def parse(command: str, *, whole: bool) -> None:
    """Have a `perfkit` command parse its own options; raise click.UsageError for an option or a value that is wrong.

    A command that a sentence names may leave out required options and the values of options.
    """
    words = list(takewhile(lambda word: word not in (">", "|"), shlex.split(command)[1:]))
    found: click.Command = main
    context = click.Context(main, info_name="perfkit", **main.context_settings)
    while isinstance(found, click.Group):
        if not words or words[0].startswith("-"):
            assert not whole or words, command
            assert all(word in option_names(found) for word in words), command
            return
        assert words[0] in found.commands, command
        found = found.commands[words.pop(0)]
    if "--help" in words:
        words.remove("--help")
        assert not words, command
        return
    try:
        context = found.make_context(found.name, words, parent=context)
    except (click.MissingParameter, click.BadOptionUsage):
        if whole:
            raise
        return
    assert not context.args, command


def option_names(command: click.Command) -> set[str]:
    """Return the names of a command's options."""
    context = click.Context(command, info_name=command.name, **main.context_settings)  # a command keeps its -h
    return {name for parameter in command.get_params(context) for name in parameter.opts}


each_page = pytest.mark.parametrize("page", PAGES, ids=name)
