"""Commands that measure indexes: what each of a set costs, and which of them to keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import join
from typing import Any

import click

from perfkit.cli.group import ask, echo, reports_option, target_options
from perfkit.errors import UsageError


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
    from perfkit import api

    _rendered(api.ablate(bundle=bundle, ask=ask(), command=_command("ablate", options), **options))


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
    from perfkit import api

    _rendered(api.ablate(reads=False, ask=ask(), command=_command("cost", options), **options))


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
    from perfkit import api, config
    from perfkit.bundle import write_atomically
    from perfkit.comparison import sql_of
    from perfkit.postgres.statements import read

    if options["db"] and not options["query"]:
        raise UsageError("no query; expected at least one --query beside --db")
    if dry_run:
        if options["db"]:
            texts = [sql_of(given) for given in options["query"]]
        else:
            path = options["config"]
            texts = [read(query.file) for query in config.load(Path(path) if path else None).query]
        built = not options["db"] or options["way"]
        how = "ANALYZE, " if built or options["analyze"] else ""
        for text in texts:
            echo(f"EXPLAIN ({how}FORMAT JSON)\n{text.strip().rstrip(';')};")
        tried = "BEGIN; CREATE INDEX ...; EXPLAIN ...; ROLLBACK;" if built else "SELECT hypopg_create_index('...');"
        echo(f"-- and for every candidate: {tried}")
        return
    found = api.advise(**options, ask=ask())
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
    import tempfile

    from perfkit import config
    from perfkit.comparison import index_set
    from perfkit.lab.design import ablation

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
