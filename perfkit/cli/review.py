"""The command that reviews the first day of a release."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from perfkit.cli.group import echo

GATE = {"met": 0, "missed": 99, "unproven": 100}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", default="", metavar="RUN", help="The run before the release, shown beside it.")
@click.option(
    "--arm", default="", help="The arm of that run that was shipped; the last one after the change without it."
)
@click.option("--value", "values", multiple=True, metavar="NAME=X", help="What people say of a row; several times.")
@click.option("--by", default="", metavar="WHO", help="Who says it.")
@click.option("--since", default="", metavar="TIME", help="From when: 2026-01-15T09:00, UTC without a zone.")
@click.option("--until", default="", metavar="TIME", help="Until when.")
@click.option("--last", default="", metavar="TIME", help="In place of these, the last so long: 24h.")
@click.option("--config", default="", metavar="FILE", help="Other targets and rules than the watch was begun with.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="The page; by default in the watch's folder."
)
@click.option("--gate", is_flag=True, help="Exit 99 where a target was missed or a P1 happened, 100 where it is open.")
def review(folder: Path, values: tuple[str, ...], out: Path | None, gate: bool, **options: Any) -> None:
    """Hold a watch against its targets: write review.html, review.json, review.md, and say what to do.

    The watch may still run: its record is only read.

    \b
    Examples:
      perfkit review reports/20260115-090000-watch
      perfkit review reports/20260115-090000-watch --last 24h --against reports/20260115-080000-standard
      perfkit review reports/20260115-090000-watch --value "User rating=4.3" --by "Product Lead" --gate
    """  # noqa: D301 - click wants the character
    from perfkit import api

    found = api.review(folder, values="\n".join(values), **options)
    page = found.render(out)
    echo(repr(found.table))
    echo("")
    echo(repr(found.recommendation))
    echo(str(page))
    if gate:
        sys.exit(GATE[found.found.recommendation.result])
