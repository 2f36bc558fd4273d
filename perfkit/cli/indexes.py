"""Commands about indexes: which of a database's earn their keep."""

from __future__ import annotations

from pathlib import Path

import click

from perfkit.cli.databases import opened
from perfkit.cli.group import echo, target_options
from perfkit.errors import UsageError
from perfkit.nested import dumps


@click.group()
def indexes() -> None:
    """What the indexes of a database are worth.

    \b
    Example:
      perfkit indexes use --db service=staging
    """  # noqa: D301 - click wants the character


@indexes.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option(
    "--plan", "files", multiple=True, type=click.Path(path_type=Path), help="Plans of the workload's queries."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@target_options
def use(
    db: str, files: tuple[Path, ...], as_json: bool, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]
) -> None:
    """Which indexes are duplicate, redundant, unused, broken or missing, and why; nothing is changed.

    \b
    Examples:
      perfkit indexes use --db service=staging
      perfkit indexes use --db service=staging --plan slow.json --json
    """  # noqa: D301 - click wants the character
    from dataclasses import asdict

    from perfkit.display.index_use import index_use
    from perfkit.explain.document import read
    from perfkit.explain.plan import read_plan
    from perfkit.indexes.use import ask, judge

    plans = [read_plan(document) for path in files for document in read(_text(path))]
    facts = ask(opened(db, tls, confirm, production))
    remarks = judge(facts, plans)
    if as_json:
        counters = {name: getattr(facts, name) for name in ("since", "days", "replica", "replicas", "counted")}
        shown = ("name", "table", "bytes", "scans", "definition")
        there = [{name: getattr(index, name) for name in shown} for index in facts.indexes]
        said = [asdict(remark) for remark in remarks]
        click.echo(dumps({"counters": counters, "indexes": there, "remarks": said}, ascii_only=True))
    else:
        echo(repr(index_use(facts, remarks)))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a file with plans") from None
