"""Commands on indexes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any

import click

from perfkit import config
from perfkit.app import api
from perfkit.app.cli import ask as cli_ask
from perfkit.app.cli import echo, reports_option, target_options
from perfkit.app.cli.plans import opened
from perfkit.base.bundle import dumps, write_atomically
from perfkit.base.errors import UsageError
from perfkit.base.process import progress
from perfkit.base.units import seconds, size
from perfkit.explain.capture import read_documents
from perfkit.explain.plan import read_plan
from perfkit.indexes.coverage import MIN_AGE
from perfkit.indexes.designs import ablation
from perfkit.indexes.tables import index_use
from perfkit.indexes.use import ask, joined, judge
from perfkit.postgres import index_changes as sets
from perfkit.postgres.index_sets import read_set
from perfkit.postgres.sqltext import read as sqltext_read
from perfkit.runs.janitor import Janitor
from perfkit.runs.targets import index_set, sql_of

if TYPE_CHECKING:
    from perfkit.postgres.index_changes import Applied, Dropped


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
    plans = [read_plan(document) for path in files for document in read_documents(_text(path))]
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
    if index.how == "there":
        return f"{index.name} on {index.table}: there already, {size(index.bytes)}"
    anew = ", in place of an invalid one" if index.how == "rebuilt" else ""
    return f"{index.name} on {index.table}: built in {seconds(index.seconds)}, {size(index.bytes)}{anew}"


def _dropped(index: Dropped) -> str:
    if index.how == "dropped":
        return f"{index.name}: dropped, {size(index.bytes)}"
    return f"{index.name}: " + ("not there" if index.how == "absent" else f"left alone: {index.why}")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a file with plans") from None


# Commands that measure indexes: what each of a set costs, and which of them to keep.


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every lab."""
    for option in reversed(
        [
            click.argument("indexes", required=False, default="", metavar="[SET.sql]"),
            click.option("--config", default="", metavar="FILE", help="The workload; the booking system without it."),
            click.option("--profile", default="standard", show_default=True, help="quick, standard or thorough."),
            click.option("--scale", default="", help="Size of the data: seed, small, standard (default) or large."),
            click.option("--seed", default=1, show_default=True, help="Decides everything that is random."),
            click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16."),
            click.option("--db", default="", metavar="CONNINFO", help="A database of yours instead of a --config."),
            click.option("--query", multiple=True, metavar="SQL|FILE", help="With --db: the workload; several times."),
            click.option("--parameters", metavar="FILE", help="With --db: values for %(name)s (.sql or .csv)."),
            click.option(
                "--way",
                type=click.Choice(["whole", "sample", "generated", "clone"]),
                default="whole",
                show_default=True,
                help="With --db: a private copy, or clones beside the database.",
            ),
            click.option(
                "--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS."
            ),
            reports_option,
            click.option("--dry-run", is_flag=True, help="Print the SQL that would be run, and run nothing."),
        ]
    ):
        command = option(command)
    return target_options(command)


@click.command()
@_options
@click.option("--margin", default=0.0, help="The slowdown that does not matter, as a share; default: 0.05.")
@click.option("--budget-mb", default=0.0, help="What the kept indexes may take together.")
@click.option("--advised", default="", metavar="SQL|FILE", help="Another set to compare; auto: perfkit's own advice.")
@click.option("--bundle", default="", metavar="FOLDER", help="Render this lab again; measures nothing.")
def ablate(dry_run: bool, bundle: str, **options: Any) -> None:
    """Measure the workload under no index, each alone, all but one, and all; say which to keep.

    \b
    Examples:
      perfkit indexes ablate                        the booking system's seven, about 11 minutes
      perfkit indexes ablate --profile quick        6 blocks, about 5 minutes
      perfkit indexes ablate mine.sql --db service=staging --query slow.sql --query other.sql
      perfkit indexes ablate --bundle reports/LAB   render once more, measure nothing
    """  # noqa: D301 - click wants the character
    if dry_run:
        _say_sql(options)
        return

    _rendered(api.ablate(bundle=bundle, ask=cli_ask(), command=_command("ablate", options), **options))


@click.command()
@_options
def cost(dry_run: bool, **options: Any) -> None:
    """Measure what each index costs: size, build, and inserts, updates and deletes with it alone and with all.

    \b
    Examples:
      perfkit indexes cost --profile quick
      perfkit indexes cost mine.sql --config mine/perfkit.toml
    """  # noqa: D301 - click wants the character
    if dry_run:
        _say_sql(options)
        return

    _rendered(api.ablate(reads=False, ask=cli_ask(), command=_command("cost", options), **options))


@click.command()
@click.option("--config", default="", metavar="FILE", help="The workload; the booking system without it.")
@click.option("--scale", default="", help="Size of the data: seed, small, standard (default) or large.")
@click.option("--seed", default=1, show_default=True, help="Decides everything that is random.")
@click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16.")
@click.option("--db", default="", metavar="CONNINFO", help="A database of yours instead of a --config.")
@click.option("--query", multiple=True, metavar="SQL|FILE", help="With --db: the workload; several times.")
@click.option("--parameters", metavar="FILE", help="With --db: values for %(name)s (.sql or .csv).")
@click.option(
    "--way",
    type=click.Choice(["", "whole", "sample", "generated"]),
    default="",
    help="With --db: a private copy to build in; without it HypoPG or the plans alone.",
)
@click.option("--analyze", is_flag=True, default=None, help="With --db: execute the queries, rolled back.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the set there.")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would be run, and run nothing.")
@target_options
def advise(dry_run: bool, output: Path | None, **options: Any) -> None:
    """Which indexes a workload needs, and why none would help the rest of it.

    \b
    Examples:
      perfkit indexes advise                                      the booking system's queries
      perfkit indexes advise --db service=staging --query slow.sql --output set.sql
      perfkit indexes advise --db service=staging --query slow.sql --way whole
    """  # noqa: D301 - click wants the character
    if options["db"] and not options["query"]:
        raise UsageError("no query; expected at least one --query beside --db")
    if dry_run:
        if options["db"]:
            texts = [sql_of(given) for given in options["query"]]
        else:
            path = options["config"]
            texts = [sqltext_read(query.file) for query in config.load(Path(path) if path else None).query]
        built = not options["db"] or options["way"]
        how = "ANALYZE, " if built or options["analyze"] else ""
        for text in texts:
            echo(f"EXPLAIN ({how}FORMAT JSON)\n{text.strip().rstrip(';')};")
        tried = "BEGIN; CREATE INDEX ...; EXPLAIN ...; ROLLBACK;" if built else "SELECT hypopg_create_index('...');"
        echo(f"-- and for every candidate: {tried}")
        return
    found = api.advise(**options, ask=cli_ask())
    echo(repr(found))
    if output and found.proposals:
        write_atomically(output, found.sql)
        echo(str(output))


def _rendered(lab: Any) -> None:
    page = lab.render()
    echo(repr(lab.answer))
    echo(str(page))


def _say_sql(options: dict[str, Any]) -> None:
    """Every set of the ablation, as the statements that make it."""
    if options["db"] and not options["indexes"]:
        raise UsageError("no index set; expected SET.sql beside --db")
    settings = config.load(Path(options["config"]) if options["config"] else None)
    with tempfile.TemporaryDirectory() as folder:
        found = index_set(settings, options["indexes"], Path(folder))
    by_name = {index.name: index.sql(concurrently=False) for index in found.indexes}
    for arm, names in ablation(found).items():
        echo(f"-- {arm}")
        for name in names:
            echo(f"{by_name[name]};")


def _command(name: str, options: dict[str, Any]) -> str:
    """The command that measures the same again."""
    words = ["perfkit", "indexes", name, *([options["indexes"]] if options["indexes"] else [])]
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if key in ("indexes", "reports", "production", "tls") or value in ("", 0, 0.0, (), None, False):
            continue
        words += [word for one in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(one))]
    return join(words)


for command in (ablate, cost, advise):
    indexes.add_command(command)
