"""Commands on slow statements."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from psycopg.conninfo import make_conninfo

from perfkit import config as configuration
from perfkit.app import api
from perfkit.app.api import clinic
from perfkit.app.cli import ask, echo, reports_option, target_options
from perfkit.app.cli.plans import opened
from perfkit.app.session import Session, made
from perfkit.base import resources
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import UsageError, visible
from perfkit.base.process import progress
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.runs.targets import admitted
from perfkit.show import html
from perfkit.show.render import execute, page
from perfkit.slow import logs
from perfkit.slow.query_logging import LoggingSpec, logging_on, restore, script
from perfkit.slow.tables import ActivityView, SlowView

if TYPE_CHECKING:
    from perfkit.slow.statements import Activity, SlowQueries, SlowStatement


_UNUSUAL = (100, 50)  # columns and lines where no terminal tells


def show(found: SlowQueries, limit: int, *, as_json: bool = False, again: bool = False) -> None:
    """Print the first `limit` statements; `again` in place of what was printed before."""
    if as_json:
        click.echo(line(told(found, limit)))
    else:
        _print(SlowView(found, limit).text(_columns()), again=again)


def show_activity(found: Activity, *, as_json: bool) -> None:
    """Print what runs now in place of what was printed before, or as one line of JSON."""
    if as_json:
        click.echo(line(asdict(found)))
    else:
        _print(ActivityView(found).text(_columns()), again=True)


def write(path: Path, found: SlowQueries, limit: int) -> None:
    """Write them as one page that requests nothing. Raises BundleError."""
    write_atomically(path, html.page("Slow statements", SlowView(found, limit).html()))


def told(found: SlowQueries, limit: int) -> dict[str, Any]:
    """What --json prints, as `perfkit slow --help` says."""
    whole = {name: getattr(found, name) for name in ("source", "since", "until", "total_ms", "unread", "notes")}
    statements = [_statement(found, own, position) for position, own in enumerate(found.statements[:limit], 1)]
    return {**whole, "count": len(found.statements), "statements": statements}


def line(value: Any) -> str:
    """One line of JSON in ASCII, for a terminal may be steered by more."""
    return json.dumps(value, default=_plain, allow_nan=False)


def _statement(found: SlowQueries, statement: SlowStatement, position: int) -> dict[str, Any]:
    own = {field.name: getattr(statement, field.name) for field in fields(statement) if field.name != "plan"}
    own["example"] = asdict(statement.example) if statement.example else None
    return {"position": position, **own, "mean_ms": statement.mean_ms, "share": found.share(statement)}


def _plain(value: Any) -> Any:
    """What JSON has no word for: times in ISO 8601, mappings that are no dict."""
    return value.isoformat() if isinstance(value, datetime) else dict(value)


def _print(text: str, *, again: bool) -> None:
    if not again:
        echo(text)
    elif not sys.stdout.isatty():
        echo(f"{text}\n")
    else:  # home, every line cleared to its end, and all below: nothing flickers
        columns, lines = shutil.get_terminal_size(_UNUSUAL)
        shown = [visible(own)[:columns] for own in text.splitlines()[: lines - 1]]
        click.echo("\x1b[H" + "".join(f"{own}\x1b[K\n" for own in shown) + "\x1b[J", nl=False)


def _columns() -> int:
    return shutil.get_terminal_size(_UNUSUAL).columns if sys.stdout.isatty() else _UNUSUAL[0]


# Commands that look for what is slow: top, watch, log, logging.


def _database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which database."""
    for option in reversed(
        [
            click.option("--db", default="", metavar="CONNINFO", help="service=NAME, or a libpq string, no password."),
            click.option("--config", default="", metavar="FILE", help="Without --db: a perfkit.toml with a target."),
            click.option(
                "--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS."
            ),
        ]
    ):
        command = option(command)
    return target_options(command)


limit_option = click.option("--limit", default=10, show_default=True, help="Statements that are shown.")
seconds_option = click.option("--seconds", default=0.0, metavar="N", help="Only what runs in the next N seconds.")
source_option = click.option(
    "--source",
    type=click.Choice(["", "statements", "log"]),
    default="",
    help="pg_stat_statements or the server's log; default: the best there is.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs; see perfkit slow --help.")


@click.group()
def slow() -> None:
    """What is slow, what runs now, and a clinic at work to try it on.

    With --json a command prints one object: `source`, `since` and `until` (ISO 8601, null where unknown), `total_ms`,
    `count` (of all statements), `statements`, `unread` (records by reason) and `notes`. A statement has `position`,
    `id`, `text`, `calls`, `mean_ms`, `p95_ms`, `total_ms`, `share` (of one), `rows`, `buffers` (pages), `temp_bytes`,
    `wal_bytes`, `first`, `last` and `example` (`sql`, `parameters`, `ms`); null is unknown. Times are in ms.

    \b
    Examples:
      perfkit slow top --db service=staging
      perfkit slow log /var/log/postgresql/postgresql.json
      perfkit slow demo
    """  # noqa: D301 - click wants the character


@slow.command()
@_database
@source_option
@seconds_option
@limit_option
@json_option
def top(source: str, seconds: float, limit: int, as_json: bool, **where: Any) -> None:
    """The statements that take most of the server's time.

    \b
    Examples:
      perfkit slow top --db service=staging
      perfkit slow top --db service=staging --seconds 60 --json
      perfkit slow top --db service=staging --source log --limit 20
    """  # noqa: D301 - click wants the character
    with _opened(**where) as session:
        show(session.slow(source=source, seconds=seconds).found, limit, as_json=as_json)


@slow.command()
@_database
@click.option("--every", default=2.0, show_default=True, metavar="S", help="Seconds from one look to the next.")
@click.option("--for", "lasting", default=0.0, metavar="S", help="End after so many seconds; default: at Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One line for each look.")
def watch(every: float, lasting: float, as_json: bool, **where: Any) -> None:
    """What runs now, what it waits for, and who makes whom wait, over and over.

    With --json a line has `source`, `at`, `hidden` (sessions whose statement may not be seen), `notes`, `running` and
    `blocking` (with `depth`, and `circle` for a deadlock). A session has `key` (its process id), `user`, `database`,
    `application`, `client`, `kind`, `state`, `wait`, `id`, `text`, `seconds`, `transaction_s` and `blocked_by` (keys).

    \b
    Examples:
      perfkit slow watch --db service=staging
      perfkit slow watch --db service=staging --every 5 --for 60 --json
    """  # noqa: D301 - click wants the character
    if every <= 0 or lasting < 0:
        raise UsageError(f"--every {every:g} --for {lasting:g}; expected seconds, more than 0")
    with _opened(**where) as session:
        end = time.monotonic() + lasting
        while True:
            show_activity(session.activity().found, as_json=as_json)
            if lasting and time.monotonic() + every > end:
                return
            time.sleep(every)


@slow.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--follow", is_flag=True, help="Go on as the file grows, across rotation, until Ctrl-C.")
@click.option("--prefix", default="", metavar="TEXT", help="log_line_prefix of a log that is not JSON.")
@limit_option
@json_option
@click.option("--html", "page", metavar="FILE", type=click.Path(path_type=Path), help="Write it there as one page.")
def log(files: tuple[Path, ...], follow: bool, prefix: str, limit: int, as_json: bool, page: Path | None) -> None:
    """The statements that take most of the time, from log files: JSON or stderr's.

    With --follow and --json there is one line for each look.

    \b
    Examples:
      perfkit slow log /var/log/postgresql/postgresql.json
      perfkit slow log postgresql.log.1 postgresql.log --prefix '%m [%p] %q%u@%d ' --html slow.html
      perfkit slow log postgresql.json --follow
    """  # noqa: D301 - click wants the character
    if follow and (len(files) > 1 or page):
        raise UsageError("--follow: expected one FILE, and no --html")
    if follow:
        for found in logs.follow(files[0], prefix=prefix):
            show(found, limit, as_json=as_json, again=True)
        return
    found = logs.read(*files, prefix=prefix)
    if page:
        write(page, found, limit)
    show(found, limit, as_json=as_json)


@slow.command()
@_database
@click.option("--on", "do", flag_value="on", help="Log slow statements of new sessions in this database.")
@click.option("--off", "do", flag_value="off", help="Put back what was there before.")
@click.option("--restore", "do", flag_value="off", help="The same, also of a run that crashed.")
@click.option("--sql", "do", flag_value="sql", help="Only the SQL for both, for the database's owner.")
@click.option("--min-ms", default=100.0, show_default=True, help="Statements that take so long.")
@click.option("--no-plans", "plans", flag_value=False, default=True, help="Without plans, where auto_explain is there.")
def logging(do: str | None, min_ms: float, plans: bool, **where: Any) -> None:
    """Switch the logging of slow statements on and off, in one database.

    It changes settings of that database, for which its owner's word is needed: perfkit allow --ddl.

    \b
    Examples:
      perfkit slow logging --db service=staging --sql
      perfkit slow logging --db service=staging --on --min-ms 50
      perfkit slow logging --db service=staging --off
    """  # noqa: D301 - click wants the character
    options = LoggingSpec(min_ms, plans=plans)
    if do is None:
        raise UsageError("expected one of --on, --off and --sql")
    with _opened(**where) as session:
        site, database = session.place.site, session.place.name
        if do == "on":
            on = logging_on(site, database, options, keep=True)
            lines = [f"{name} = {value} for {on.where}" for name, value in on.changed.items()]
            said = (*lines, *on.notes)
        elif do == "off":
            said = restore(site, database) or (f"{site.name}: nothing is on, as far as is known here",)
        else:
            begin, end = script(site, database, options)
            said = (f"{begin};", f"{end};  -- afterwards")
    for line in said:
        echo(line)


def _opened(db: str, config: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> Session:
    """The database that was named on the command line, or in a configuration."""
    if bool(db) == bool(config):
        raise UsageError("expected one of --db and --config")
    if db:
        return api.connect(db, confirm, production, tls=tls, ask=ask())
    settings = configuration.load(Path(config))
    first = settings.baseline()
    sources = admitted(settings, [first], Permission((), confirm, production, ask())).open(Audit(None))
    if first.name not in sources:
        raise UsageError(f"{config}: no target in [database]; expected one, for what perfkit makes has no history")
    external = sources[first.name]
    assert settings.database
    return Session(Database(external, external.address.dbname), frozenset(settings.database.volatile))


# The commands that give something slow to look at, and a page on what is slow: demo, report.

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
    site, database = session.place.site, session.place.name
    assert isinstance(site, EmbeddedServer)
    conninfo = make_conninfo("", host=str(site.socket_dir), port=site.port, dbname=database, user="postgres")
    return shlex.join(["--db", conninfo, "--confirm", resolve(conninfo).name])


for command in (demo, report):
    slow.add_command(command)
