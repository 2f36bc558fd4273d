"""Commands about indexes: which of a database's earn their keep; building a set of them, and taking it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any

import click

from perfkit.cli.databases import opened
from perfkit.cli.group import echo, target_options
from perfkit.errors import UsageError
from perfkit.indexes.counters import MIN_AGE
from perfkit.nested import dumps

if TYPE_CHECKING:
    from perfkit.indexes.apply import Applied, Dropped


@click.group()
def indexes() -> None:
    """What the indexes of a database are worth; build a set of them, or take it back.

    \b
    Examples:
      perfkit indexes use --db service=staging
      perfkit indexes apply set.sql --db service=staging
    """  # noqa: D301 - click wants the character


@indexes.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option(
    "--plan", "files", multiple=True, type=click.Path(path_type=Path), help="Plans of the workload's queries."
)
@click.option(
    "--standby", "standbys", multiple=True, metavar="CONNINFO", help="A standby, whose use counts too; several times."
)
@click.option(
    "--min-age",
    type=click.FloatRange(min=0),
    default=MIN_AGE,
    show_default=True,
    help="Days of counting without which no index is dropped as unused.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@target_options
def use(
    db: str,
    files: tuple[Path, ...],
    standbys: tuple[str, ...],
    min_age: float,
    as_json: bool,
    tls: bool,
    confirm: tuple[str, ...],
    production: tuple[str, ...],
) -> None:
    """Which indexes are duplicate, redundant, unused, broken or missing, and why; nothing is changed.

    All statements that are printed may be run together. A primary with standbys that are not named, and counters that
    are young, give no statement to drop an unused index.

    \b
    Examples:
      perfkit indexes use --db service=staging
      perfkit indexes use --db service=primary --standby service=standby
      perfkit indexes use --db service=staging --plan slow.json --json
    """  # noqa: D301 - click wants the character
    from dataclasses import asdict

    from perfkit.display.index_use import index_use
    from perfkit.explain.document import read
    from perfkit.explain.plan import read_plan
    from perfkit.indexes.use import ask, joined, judge

    plans = [read_plan(document) for path in files for document in read(_text(path))]
    facts = ask(opened(db, tls, confirm, production))
    facts = joined(facts, {name: ask(opened(name, tls, confirm, production)) for name in standbys})
    remarks = judge(facts, plans, min_age)
    if as_json:
        counters = {name: value for name, value in asdict(facts.counters).items() if name not in ("database", "server")}
        shown = ("name", "table", "bytes", "scans", "definition")
        there = [{name: getattr(index, name) for name in shown} for index in facts.indexes]
        said = [asdict(remark) for remark in remarks]
        click.echo(dumps({"counters": counters, "indexes": there, "remarks": said}, ascii_only=True))
    else:
        echo(repr(index_use(facts, remarks)))


def _set_options(left: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An index set, the database that it is for, and a dry run, which with a database shows what is `left`."""

    def given(command: Callable[..., Any]) -> Callable[..., Any]:
        options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
            click.argument("file", metavar="SET.sql", type=click.Path(path_type=Path)),
            click.option("--db", default="", metavar="CONNINFO", help="service=NAME, or a libpq string, no password."),
            click.option("--dry-run", is_flag=True, help=f"Print the SQL for psql; with --db only what is {left}."),
            click.option(
                "--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS."
            ),
            target_options,
        ]
        for option in reversed(options):
            command = option(command)
        return command

    return given


@indexes.command()
@_set_options("still to be done")
def apply(file: Path, db: str, dry_run: bool, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """Build the indexes of a file, CONCURRENTLY, in a database that others use meanwhile.

    The file holds CREATE INDEX and ANALYZE statements. All of them are tried on empty tables first. What is there
    with the same definition is left, what is there and invalid is built anew; so it can be run again at any time.
    The owner allows it with: perfkit allow --ddl

    \b
    Examples:
      perfkit indexes apply set.sql --dry-run
      perfkit indexes apply set.sql --db service=staging
    """  # noqa: D301 - click wants the character
    from perfkit.arms.janitor import Janitor
    from perfkit.display.progress import progress
    from perfkit.indexes import apply as sets
    from perfkit.indexes.statements import read_set

    wanted = read_set(file)
    if not db:
        _require_dry(dry_run)
        click.echo(sets.script(wanted), nl=False)
        return
    external = opened(db, tls, confirm, production)
    if dry_run:
        click.echo(sets.script(wanted, sets.survey(external, external.address.dbname, wanted)), nl=False)
        return
    janitor = Janitor()
    try:
        with progress() as say:
            found = sets.apply(external, external.address.dbname, wanted, say, keeper=janitor)
    finally:
        janitor.close()
    for index in found:
        echo(_applied(index))
    options = ["--db", db, *([] if tls else ["--no-tls"])]
    options += [part for name in confirm for part in ("--confirm", name)]
    options += [part for name in production for part in ("--production", name)]
    echo(f"to take it back: {join(['perfkit', 'indexes', 'rollback', str(file), *options])}")


@indexes.command()
@_set_options("there to be dropped")
def rollback(
    file: Path, db: str, dry_run: bool, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]
) -> None:
    """Drop the indexes of a file, CONCURRENTLY, where they are there as the file defines them.

    An index of such a name that is defined otherwise is left alone, and named.

    \b
    Examples:
      perfkit indexes rollback set.sql --dry-run
      perfkit indexes rollback set.sql --db service=staging
    """  # noqa: D301 - click wants the character
    from perfkit.display.progress import progress
    from perfkit.indexes import apply as sets
    from perfkit.indexes.statements import read_set

    wanted = read_set(file)
    if not db:
        _require_dry(dry_run)
        click.echo(sets.rollback_script(wanted), nl=False)
        return
    external = opened(db, tls, confirm, production)
    if dry_run:
        click.echo(sets.rollback_script(wanted, sets.look(external, external.address.dbname, wanted)), nl=False)
        return
    with progress() as say:
        gone = sets.rollback(external, external.address.dbname, wanted, say)
    for index in gone:
        echo(_dropped(index))


def _require_dry(dry_run: bool) -> None:
    if not dry_run:
        raise UsageError("no database; expected --db CONNINFO, or --dry-run to see the SQL")


def _applied(index: Applied) -> str:
    from perfkit.numbers import seconds, size

    if index.how == "there":
        return f"{index.name} on {index.table}: there already, {size(index.bytes)}"
    anew = ", in place of an invalid one" if index.how == "rebuilt" else ""
    return f"{index.name} on {index.table}: built in {seconds(index.seconds)}, {size(index.bytes)}{anew}"


def _dropped(index: Dropped) -> str:
    from perfkit.numbers import size

    if index.how == "dropped":
        return f"{index.name}: dropped, {size(index.bytes)}"
    return f"{index.name}: " + ("not there" if index.how == "absent" else f"left alone: {index.why}")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a file with plans") from None
