"""Commands on indexes: use, apply, rollback, ablate, cost, advise."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any

import click

from perfkit import config
from perfkit.app import api
from perfkit.app.cli import (
    DATABASE,
    Decorator,
    ask,
    bundle_option,
    combined,
    db_option,
    echo,
    parameters_option,
    postgres_option,
    reports_option,
    required_db_option,
    scale_option,
    seed_option,
    target_options,
    tls_option,
)
from perfkit.app.cli.plans import opened
from perfkit.base.bundle import dumps, write_atomically
from perfkit.base.errors import UsageError
from perfkit.base.process import progress
from perfkit.base.units import seconds, size
from perfkit.explain.capture import read_documents
from perfkit.explain.plan import read_plan
from perfkit.indexes import use as index_use
from perfkit.indexes.coverage import MIN_AGE
from perfkit.indexes.designs import ablation
from perfkit.postgres import index_builds, sqltext
from perfkit.postgres.index_sets import read_set, rollback_script, script
from perfkit.runs import targets
from perfkit.runs.janitor import Janitor

if TYPE_CHECKING:
    from perfkit.postgres.index_builds import Applied, Dropped


@click.group()
def indexes() -> None:
    """Measure, advise, build and drop indexes.

    \b
    Examples:
      perfkit indexes use --db service=staging
      perfkit indexes apply set.sql --db service=staging
    """  # noqa: D301 - click wants the character


@indexes.command()
@required_db_option
@click.option(
    "--plan",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File with plans of the workload's queries. Repeatable.",
)
@click.option(
    "--standby",
    "standbys",
    multiple=True,
    metavar="CONNINFO",
    help="Standby whose use of the indexes counts too. Repeatable.",
)
@click.option(
    "--min-age",
    type=click.FloatRange(min=0),
    default=MIN_AGE,
    show_default=True,
    help="Days of statistics that dropping an unused index requires.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@tls_option
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
    """List duplicate, redundant, unused, broken and missing indexes.

    perfkit changes nothing. The printed statements may be run together. No statement drops an unused index if the
    statistics are too young, or if the database has standbys that --standby does not name.

    \b
    Examples:
      perfkit indexes use --db service=staging
      perfkit indexes use --db service=primary --standby service=standby
      perfkit indexes use --db service=staging --plan slow.json --json
    """  # noqa: D301 - click wants the character
    plans = [read_plan(document) for path in files for document in read_documents(_text(path))]
    facts = index_use.ask(opened(db, tls, confirm, production))
    others = {name: index_use.ask(opened(name, tls, confirm, production)) for name in standbys}
    facts = index_use.joined(facts, others)
    remarks = index_use.judge(facts, plans, min_age)
    if as_json:
        counters = {name: value for name, value in asdict(facts.counters).items() if name not in ("database", "server")}
        keys = ("name", "table", "bytes", "scans", "definition")
        present = [{key: getattr(index, key) for key in keys} for index in facts.indexes]
        document = {"counters": counters, "indexes": present, "remarks": [asdict(remark) for remark in remarks]}
        click.echo(dumps(document, ascii_only=True))
    else:
        echo(repr(index_use.remarks_block(facts, remarks)))


def _set_options(work: str) -> Decorator:
    """Return the options for an index set in a database; a dry run with a database prints the `work` left to do."""
    return combined(
        click.argument("file", metavar="SET.sql", type=click.Path(path_type=Path)),
        db_option,
        click.option("--dry-run", is_flag=True, help=f"Print the SQL for psql; with --db, only for {work}."),
        tls_option,
        target_options,
    )


@indexes.command()
@_set_options("indexes that are missing or invalid")
def apply(file: Path, db: str, dry_run: bool, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """Build the indexes of a file CONCURRENTLY, in a database in use.

    The file holds CREATE INDEX and ANALYZE statements, which perfkit first tries on empty tables. It leaves an index
    that exists with the same definition, and rebuilds an invalid one; so the command can be repeated at any time. The
    owner permits it with perfkit allow --ddl.

    \b
    Examples:
      perfkit indexes apply set.sql --dry-run
      perfkit indexes apply set.sql --db service=staging
    """  # noqa: D301 - click wants the character
    index_set = read_set(file)
    if not db:
        _require_dry(dry_run)
        click.echo(script(index_set), nl=False)
        return
    external = opened(db, tls, confirm, production)
    if dry_run:
        present = index_builds.survey(external, external.address.dbname, index_set)
        click.echo(script(index_set, present), nl=False)
        return
    janitor = Janitor()
    try:
        with progress() as say:
            applied = index_builds.apply(external, external.address.dbname, index_set, say, keeper=janitor)
    finally:
        janitor.close()
    for index in applied:
        echo(_applied(index))
    options = ["--db", db, *([] if tls else ["--no-tls"])]
    options += [part for name in confirm for part in ("--confirm", name)]
    options += [part for name in production for part in ("--production", name)]
    echo(f"to drop them again: {join(['perfkit', 'indexes', 'rollback', str(file), *options])}")


@indexes.command()
@_set_options("indexes that exist")
def rollback(
    file: Path, db: str, dry_run: bool, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]
) -> None:
    """Drop the indexes of a file CONCURRENTLY, in a database in use.

    perfkit leaves, and reports, an index of that name with another definition.

    \b
    Examples:
      perfkit indexes rollback set.sql --dry-run
      perfkit indexes rollback set.sql --db service=staging
    """  # noqa: D301 - click wants the character
    index_set = read_set(file)
    if not db:
        _require_dry(dry_run)
        click.echo(rollback_script(index_set), nl=False)
        return
    external = opened(db, tls, confirm, production)
    if dry_run:
        present = index_builds.inspect_set(external, external.address.dbname, index_set)
        click.echo(rollback_script(index_set, present), nl=False)
        return
    with progress() as say:
        dropped = index_builds.rollback(external, external.address.dbname, index_set, say)
    for index in dropped:
        echo(_dropped(index))


def _require_dry(dry_run: bool) -> None:
    if not dry_run:
        raise UsageError("no database; expected --db CONNINFO, or --dry-run to see the SQL")


def _applied(index: Applied) -> str:
    if index.how == "there":
        return f"{index.name} on {index.table}: already exists, {size(index.bytes)}"
    replaced = ", replaces an invalid one" if index.how == "rebuilt" else ""
    return f"{index.name} on {index.table}: built in {seconds(index.seconds)}, {size(index.bytes)}{replaced}"


def _dropped(index: Dropped) -> str:
    if index.how == "dropped":
        return f"{index.name}: dropped, {size(index.bytes)}"
    return f"{index.name}: " + ("does not exist" if index.how == "absent" else f"left alone: {index.why}")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a file with plans") from None


_workload_option = click.option(
    "--config", default="", metavar="FILE", help="A perfkit.toml with the workload; default: the booking system's."
)
_query_option = click.option(
    "--query", multiple=True, metavar="SQL|FILE", help="With --db: query of the workload. Repeatable."
)
_database_option = click.option(
    "--db", default="", metavar="CONNINFO", help=f"Run --query in a database of yours instead: {DATABASE}"
)
_dry_run_option = click.option("--dry-run", is_flag=True, help="Print the SQL that would be run; run nothing.")

# What `ablate` and `cost` share.
_lab_options = combined(
    click.argument("indexes", required=False, default="", metavar="[SET.sql]"),
    _workload_option,
    click.option(
        "--profile", default="standard", show_default=True, help="Number of blocks: quick, standard or thorough."
    ),
    scale_option,
    seed_option,
    postgres_option,
    _database_option,
    _query_option,
    parameters_option,
    click.option(
        "--way",
        type=click.Choice(["whole", "sample", "generated", "clone"]),
        default="whole",
        show_default=True,
        help="With --db: in a private copy (whole, sample, generated), or in clones beside the database.",
    ),
    tls_option,
    reports_option,
    _dry_run_option,
    target_options,
)


@click.command()
@_lab_options
@click.option("--margin", default=0.0, help="Slowdown that does not matter, as a share; default: 0.05.")
@click.option("--budget-mb", default=0.0, help="Size limit in MB for all kept indexes together; default: no limit.")
@click.option(
    "--advised",
    default="",
    metavar="SQL|FILE",
    help="Another index set to compare; auto: perfkit advises one.",
)
@bundle_option
def ablate(dry_run: bool, bundle: str, **options: Any) -> None:
    """Measure which indexes of a set the workload needs.

    The workload runs without an index, with each alone, with all but one, and with all. The result says which to keep.

    \b
    Examples:
      perfkit indexes ablate                        the booking system's seven, about 11 minutes
      perfkit indexes ablate --profile quick        6 blocks, about 5 minutes
      perfkit indexes ablate mine.sql --db service=staging --query slow.sql --query other.sql
      perfkit indexes ablate --bundle reports/LAB   render again, measure nothing
    """  # noqa: D301 - click wants the character
    if dry_run:
        _print_sql(options)
        return

    _rendered(api.ablate(bundle=bundle, ask=ask(), command=_command("ablate", options), **options))


@click.command()
@_lab_options
def cost(dry_run: bool, **options: Any) -> None:
    """Measure what each index costs: size, build time, and writes.

    Inserts, updates and deletes are measured with each index alone and with all.

    \b
    Examples:
      perfkit indexes cost --profile quick
      perfkit indexes cost mine.sql --config mine/perfkit.toml
    """  # noqa: D301 - click wants the character
    if dry_run:
        _print_sql(options)
        return

    _rendered(api.ablate(reads=False, ask=ask(), command=_command("cost", options), **options))


@click.command()
@_workload_option
@scale_option
@seed_option
@postgres_option
@_database_option
@_query_option
@parameters_option
@click.option(
    "--way",
    type=click.Choice(["", "whole", "sample", "generated"]),
    default="",
    help="With --db: build candidates in a private copy; default: HypoPG, or the plans alone.",
)
@click.option(
    "--analyze",
    is_flag=True,
    default=None,
    help="With --db: execute the queries, and roll back.",
)
@tls_option
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the index set to this file.")
@_dry_run_option
@target_options
def advise(dry_run: bool, output: Path | None, **options: Any) -> None:
    """Propose indexes for a workload.

    For a query that no index helps, the answer says why.

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
            texts = [targets.sql_of(query) for query in options["query"]]
        else:
            path = options["config"]
            texts = [sqltext.read(query.file) for query in config.load(Path(path) if path else None).query]
        built = not options["db"] or options["way"]
        how = "ANALYZE, " if built or options["analyze"] else ""
        for text in texts:
            echo(f"EXPLAIN ({how}FORMAT JSON)\n{text.strip().rstrip(';')};")
        trial = "BEGIN; CREATE INDEX ...; EXPLAIN ...; ROLLBACK;" if built else "SELECT hypopg_create_index('...');"
        echo(f"-- and for every candidate: {trial}")
        return
    advice = api.advise(**options, ask=ask())
    echo(repr(advice))
    if output and advice.proposals:
        write_atomically(output, advice.sql)
        echo(str(output))


def _rendered(lab: Any) -> None:
    page = lab.render()
    echo(repr(lab.answer))
    echo(str(page))


def _print_sql(options: dict[str, Any]) -> None:
    """Print every set of the ablation, as the statements that create it."""
    if options["db"] and not options["indexes"]:
        raise UsageError("no index set; expected SET.sql beside --db")
    settings = config.load(Path(options["config"]) if options["config"] else None)
    with tempfile.TemporaryDirectory() as folder:
        index_set = targets.index_set(settings, options["indexes"], Path(folder))
    by_name = {index.name: index.sql(concurrently=False) for index in index_set.indexes}
    for arm in ablation(index_set):
        echo(f"-- {arm.name}")
        for name in arm.indexes:
            echo(f"{by_name[name]};")


def _command(name: str, options: dict[str, Any]) -> str:
    """Return the command that repeats the measurement."""
    words = ["perfkit", "indexes", name, *([options["indexes"]] if options["indexes"] else [])]
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if key in ("indexes", "reports", "production", "tls") or value in ("", 0, 0.0, (), None, False):
            continue
        words += [word for one in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(one))]
    return join(words)


for command in (ablate, cost, advise):
    indexes.add_command(command)
