"""The commands that give something slow to look at, and a page on what is slow: demo, report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from psycopg.conninfo import make_conninfo

from perfkit.base import resources
from perfkit.cli.databases import opened
from perfkit.cli.group import echo, reports_option, target_options
from perfkit.cli.slow import json_option, limit_option, seconds_option, source_option
from perfkit.cli.slow_output import show, write
from perfkit.errors import UsageError

if TYPE_CHECKING:
    from perfkit.query import Session

NOTEBOOK = resources.path("notebooks/explore_slow_queries.ipynb")
SHIFT_S = 5.0  # of the demo's load: between two it can be seen whether it shall end


@click.command()
@click.option("--for", "lasting", default=0.0, metavar="S", help="End after so many seconds; default: at Ctrl-C.")
@click.option("--scale", default="small", show_default=True, help="Size of the data: seed, small, standard or large.")
@click.option("--seed", default=1, show_default=True, help="Decides everything that is random.")
@limit_option
@json_option
@click.option("--report", "page", metavar="FILE", type=click.Path(path_type=Path), help="Write the table there too.")
def demo(lasting: float, scale: str, seed: int, limit: int, as_json: bool, page: Path | None) -> None:
    """A clinic at work on the booking system's data, without its indexes: something slow to look at.

    \b
    Examples:
      perfkit slow demo                   until Ctrl-C; look at it from another terminal
      perfkit slow demo --for 10 --report slow.html
    """  # noqa: D301 - click wants the character
    from perfkit.clinic import clinic
    from perfkit.display.progress import progress
    from perfkit.query import made

    if lasting < 0:
        raise UsageError(f"--for {lasting:g}; expected seconds, more than 0")
    with progress() as say, made(scale=scale, arm="before", say=say) as session:
        try:
            with clinic(session, seed) as work:
                say("")
                echo(
                    f"A clinic works{f' for {lasting:g} s' if lasting else ', until Ctrl-C'}. From another terminal:",
                    err=as_json,
                )
                echo(f"  perfkit slow top {_named(session)}", err=as_json)
                _until(lasting, work)
        finally:
            found = session.slow(source="log").found
            if page:
                write(page, found, limit)
            show(found, limit, as_json=as_json)


def _until(lasting: float, work: Callable[[float], object]) -> None:
    """Work in shifts, for so many seconds or for ever."""
    end = time.monotonic() + lasting
    while (left := end - time.monotonic() if lasting else SHIFT_S) > 0:
        work(min(left, SHIFT_S))


@click.command()
@click.option("--db", default="", metavar="CONNINFO", help="A database of yours; default: the clinic of the demo.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@click.option("--log", default="", metavar="FILE", help="A log file instead of what the server tells.")
@source_option
@seconds_option
@click.option("--position", default=1, show_default=True, help="The statement to look into, by its place.")
@click.option("--index", default="", metavar="SQL", help="A CREATE INDEX to try; default: the first that is advised.")
@click.option("--measure", is_flag=True, help="With --db: measure it without and with the index, in a private copy.")
@click.option("--profile", default="quick", show_default=True, help="quick (6 blocks), standard, thorough.")
@click.option("--scale", default="small", show_default=True, help="Size of the demo's data.")
@reports_option
@target_options
def report(
    db: str, tls: bool, log: str, reports: str, confirm: tuple[str, ...], production: tuple[str, ...], **options: Any
) -> None:
    """Write one page: what is slow, the plan of one statement, the index for it, and the proof.

    It executes notebooks/explore_slow_queries.ipynb, without a database on the clinic of perfkit slow demo.

    \b
    Examples:
      perfkit slow report                                 the demo, about two minutes
      perfkit slow report --db service=staging --seconds 60
      perfkit slow report --db service=staging --log postgresql.json --position 2 --measure
    """  # noqa: D301 - click wants the character
    from perfkit import api
    from perfkit.bundle import write_atomically
    from perfkit.report.render import execute, page

    if log and not Path(log).is_file():
        raise UsageError(f"--log {log}: no such file; expected a log file of PostgreSQL")
    if db:  # asked for here, where somebody can answer
        confirm = (*confirm, opened(db, tls, confirm, production).name)
    folder = api.new_folder(reports, "slow")
    given = {
        **options,
        "db": db,
        "tls": tls,
        "log": str(Path(log).resolve()) if log else "",
        "measure": options["measure"] or not db,
        "confirm": ",".join(confirm),
        "production": ",".join(production),
        "reports": str(folder.resolve()),
    }
    try:
        html = page(execute(NOTEBOOK, given), "Slow queries")
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    write_atomically(folder / "slow.html", html)
    echo(str(folder / "slow.html"))


def _named(session: Session) -> str:
    """The options by which another process reaches a session's database, as one who may read the server's log."""
    from perfkit.guards.address import resolve
    from perfkit.postgres.embedded import EmbeddedServer

    site, database = session.place.site, session.place.name
    assert isinstance(site, EmbeddedServer)
    conninfo = make_conninfo("", host=str(site.socket_dir), port=site.port, dbname=database, user="postgres")
    return shlex.join(["--db", conninfo, "--confirm", resolve(conninfo).name])
