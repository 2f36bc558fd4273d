"""docs/cli.md lists every command and option as the specs have them; PERFKIT_GOLDEN=write writes it anew."""

import os
from collections.abc import Iterator

import click

from perfkit.app.cli import main
from perfkit.base.resources import CHECKOUT

PAGE = CHECKOUT / "docs/cli.md"
COMMANDS, END = "## Commands\n\n", "\nWith `make`:\n"
OPTIONS = "## Options\n\n"


def commands(group: click.Group, path: str = "perfkit") -> Iterator[tuple[str, click.Command]]:
    for name in sorted(group.commands):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def first_sentence(command: click.Command) -> str:
    sentence = " ".join(str(command.help).partition("\n\n")[0].split())
    return f"{sentence[0].lower()}{sentence[1:]}".removesuffix(".")


def options(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    rows = [p.get_help_record(context) for p in command.params if isinstance(p, click.Option)]
    if rows:
        yield "| option | meaning |\n|---|---|\n"
    for flag, meaning in filter(None, rows):
        form, text = (part.replace("|", "\\|") for part in (flag, meaning))
        yield f"| `{form}` | {text.replace('  [', ' [')} |\n"


def generated() -> str:
    """Return the page with its table of commands and its options written anew."""
    text = PAGE.read_text()
    listed = [(path, command) for path, command in commands(main)]
    table = "".join(f"| `{path}` | {first_sentence(command)} |\n" for path, command in listed)
    head, rest = text.split(COMMANDS)[0], text.partition(END)[2].partition(OPTIONS)[0]
    parts = []
    for path, command in listed:
        words = " ".join(
            p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
        )
        parts.append(f"### `{f'{path} {words}'.strip()}`\n\n" + ("".join(options(command)) or "No options.\n"))
    return f"{head}{COMMANDS}| command | what it does |\n|---|---|\n{table}{END}{rest}{OPTIONS}" + "\n".join(parts)


def test_the_page_has_every_command_and_option_as_help_has_them() -> None:
    page = generated()
    if os.environ.get("PERFKIT_GOLDEN") == "write":
        PAGE.write_text(page)
    assert PAGE.read_text() == page
