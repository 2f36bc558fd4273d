"""The command that takes an index set back and proves that the system is as it was before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from perfkit.cli.group import ask, echo, reports_option, target_options
from perfkit.errors import UsageError

_REHEARSED = ("config", "scale", "profile", "seed", "postgres")
_SHOWN = ("db", "query", "parameters", "against", "rounds", "tls", "confirm", "production")
_LIVE = ("query", "parameters", "against", "rounds", "dry_run", "tls")


@click.command()
@click.argument("file", metavar="[SET.sql]", required=False, type=click.Path(path_type=Path))
@click.option("--config", default="", metavar="FILE", help="A perfkit.toml; the booking system's without it.")
@click.option("--scale", default="", help="Size of the data: seed, small, standard (default) or large.")
@click.option("--profile", default="quick", show_default=True, help="quick (6 blocks), standard (12), thorough (24).")
@click.option("--seed", default=1, show_default=True, help="Decides everything that is random.")
@click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16.")
@click.option("--db", default="", metavar="CONNINFO", help="Take it back in this database: service=NAME, no password.")
@click.option("--query", multiple=True, metavar="SQL|FILE", help="With --db: whose plan is looked at; several times.")
@click.option("--parameters", metavar="FILE", help="With --db: values for %(name)s, a SELECT (.sql) or lines (.csv).")
@click.option("--against", metavar="RUN", help="With --db: a run from before the release, whose plans must come back.")
@click.option(
    "--rounds", default=3, show_default=True, help="With --db: of 5 s, before and after, of queries that only read."
)
@click.option("--dry-run", is_flag=True, help="With --db: print the SQL, and what would be looked at.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@reports_option
@target_options
def rollback(file: Path | None, dry_run: bool, **options: Any) -> None:
    """Drop an index set, CONCURRENTLY, and prove that the system is as it was before.

    Without --db it is rehearsed on a server that perfkit starts: the indexes are built, rows are changed, the indexes
    are dropped by the code that does it live, and plans, sizes and latencies are compared with those of a system that
    never had them. With --db it is done: nothing of the set may be left, and with --against the plans must be those
    from before the release; latencies are shown, not judged, and --rounds 0 drops without that delay. The owner
    allows it with: perfkit allow --ddl. Exit code 0: as before, 99: not as before, 100: not settled.

    \b
    Examples:
      perfkit rollback                                  the booking system's seven indexes, rehearsed
      perfkit rollback --config mine/perfkit.toml set.sql
      perfkit rollback set.sql --db service=staging --query slow.sql --dry-run
      perfkit rollback set.sql --db service=staging --against reports/RUN
    """  # noqa: D301 - click wants the character
    from perfkit import api
    from perfkit.release.rollback import EXIT, Word

    _require_fitting(file, bool(options["db"]))
    if dry_run:
        click.echo(_script(file or Path(), **{name: options[name] for name in _SHOWN}), nl=False)
        return
    done = api.rollback(file or "", **options, ask=ask())
    page = done.render()
    echo(f"{done.found.word}: {done.found.sentence}")
    for item in done.found.items:
        if options["db"] or item.word is not Word.SAME:
            echo(f"  {item.word or 'not judged'}: {item.text}")
    for line in done.found.unseen:
        echo(f"  {line}")
    echo(str(page))
    sys.exit(EXIT[done.found.word])


def _script(
    file: Path,
    db: str,
    query: tuple[str, ...],
    parameters: str | None,
    against: str | None,
    rounds: int,
    tls: bool,
    confirm: tuple[str, ...],
    production: tuple[str, ...],
) -> str:
    from perfkit.display.progress import progress
    from perfkit.guards.admission import Permission
    from perfkit.release.live import RollbackSpec, ready
    from perfkit.text import visible

    given, run = (Path(name) if name else None for name in (parameters, against))
    with progress() as say:
        found = ready(
            RollbackSpec(db, file, query, given, run, rounds, tls), Permission((), confirm, production, ask()), say
        )
    return visible(found.script())


def _require_fitting(file: Path | None, live: bool) -> None:
    """Options of the other kind would be taken for granted. Raises UsageError."""
    context = click.get_current_context()
    given = click.core.ParameterSource.DEFAULT
    wrong = _REHEARSED if live else _LIVE
    if names := [name for name in wrong if context.get_parameter_source(name) is not given]:
        option = {"tls": "no-tls", "dry_run": "dry-run"}.get(names[0], names[0])
        raise UsageError(f"--{option} {'with' if live else 'without'} --db; expected {'none' if live else '--db too'}")
    if live and not file:
        raise UsageError("no index set; expected SET.sql with the indexes to be dropped")
