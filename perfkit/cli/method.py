"""The command that writes what docs/method.md shows of simulations."""

from __future__ import annotations

from pathlib import Path

import click

from perfkit.cli.group import echo


@click.command()
@click.option("--folder", default="docs", show_default=True, metavar="FOLDER", help="Where method.md is.")
@click.option("--repetitions", default=2000, show_default=True, type=click.IntRange(100), help="Runs per figure.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Decides everything random.")
def method(folder: str, repetitions: int, seed: int) -> None:
    """Simulate runs whose truth is known, and write tables and pictures into docs/method.md.

    Takes about a minute and measures nothing.

    \b
    Example:
      perfkit method --folder docs --repetitions 2000
    """  # noqa: D301 - click wants the character
    from perfkit.method.document import write

    for path in write(Path(folder), repetitions, seed, lambda line: echo(line, err=True)):
        echo(str(path))
