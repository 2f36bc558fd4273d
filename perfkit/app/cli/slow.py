"""Commands on slow statements: top, watch, log, logging, demo, report."""

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
from perfkit.app.cli import (
    DATABASE,
    ask,
    combined,
    db_option,
    echo,
    profile_option,
    reports_option,
    seed_option,
    target_options,
    tls_option,
)
from perfkit.app.cli.plans import opened
from perfkit.app.session import Session, clinic, open_generated
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


_DEFAULT_SIZE = (100, 50)  # columns and lines if the output is no terminal


def show(queries: SlowQueries, limit: int, *, as_json: bool = False, refresh: bool = False) -> None:
    """Print the first `limit` statements; with `refresh`, over the ones printed before."""
    if as_json:
        click.echo(json_line(as_document(queries, limit)))
    else:
        _print(SlowView(queries, limit).text(_columns()), refresh=refresh)


def show_activity(activity: Activity, *, as_json: bool) -> None:
    """Print what runs now, over what was printed before, or as one line of JSON."""
    if as_json:
        click.echo(json_line(asdict(activity)))
    else:
        _print(ActivityView(activity).text(_columns()), refresh=True)


def write(path: Path, queries: SlowQueries, limit: int) -> None:
    """Write the first `limit` statements as one page that requests nothing. Raises BundleError."""
    write_atomically(path, html.page("Slow statements", SlowView(queries, limit).html()))


def as_document(queries: SlowQueries, limit: int) -> dict[str, Any]:
    """Return what --json prints, as `perfkit slow --help` describes it."""
    head = {name: getattr(queries, name) for name in ("source", "since", "until", "total_ms", "unread", "notes")}
    statements = [_statement(queries, each, position) for position, each in enumerate(queries.statements[:limit], 1)]
    return {**head, "count": len(queries.statements), "statements": statements}


def json_line(value: Any) -> str:
    """Return JSON on one line, in ASCII: other characters of a statement could control the terminal."""
    return json.dumps(value, default=_plain, allow_nan=False)


def _statement(queries: SlowQueries, statement: SlowStatement, position: int) -> dict[str, Any]:
    figures = {field.name: getattr(statement, field.name) for field in fields(statement) if field.name != "plan"}
    figures["example"] = asdict(statement.example) if statement.example else None
    return {"position": position, **figures, "mean_ms": statement.mean_ms, "share": queries.share(statement)}


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: times in ISO 8601, any mapping as a dict."""
    return value.isoformat() if isinstance(value, datetime) else dict(value)


def _print(text: str, *, refresh: bool) -> None:
    if not refresh:
        echo(text)
    elif not sys.stdout.isatty():
        echo(f"{text}\n")
    else:  # cursor home, then clear each line to its end and the rest of the screen: a full clear would flicker
        columns, lines = shutil.get_terminal_size(_DEFAULT_SIZE)
        shown = [visible(line)[:columns] for line in text.splitlines()[: lines - 1]]
        click.echo("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J", nl=False)


def _columns() -> int:
    return shutil.get_terminal_size(_DEFAULT_SIZE).columns if sys.stdout.isatty() else _DEFAULT_SIZE[0]


_database_options = combined(
    db_option,
    click.option("--config", default="", metavar="FILE", help="Without --db: a perfkit.toml that names a database."),
    tls_option,
    target_options,
)
_duration_option = click.option(
    "--for", "duration", default=0.0, metavar="S", help="End after this many seconds; default: at Ctrl-C."
)
_demo_scale_option = click.option(
    "--scale", default="small", show_default=True, help="Size of the demo's data: seed, small, standard or large."
)
limit_option = click.option("--limit", default=10, show_default=True, help="Number of statements to show.")
seconds_option = click.option(
    "--seconds", default=0.0, metavar="N", help="Count only statements of the next N seconds; default: all recorded."
)
source_option = click.option(
    "--source",
    type=click.Choice(["", "statements", "log"]),
    default="",
    help="pg_stat_statements or the server's log; default: the better one that is available.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; perfkit slow --help describes it.")


@click.group()
def slow() -> None:
    """Find slow statements, running statements and blocked sessions.

    With --json, a command prints one object: `source`, `since` and `until` (ISO 8601, null if unknown), `total_ms`,
    `count` (of all statements), `statements`, `unread` (records by reason) and `notes`. A statement has `position`,
    `id`, `text`, `calls`, `mean_ms`, `p95_ms`, `total_ms`, `share` (of one), `rows`, `buffers` (pages), `temp_bytes`,
    `wal_bytes`, `first`, `last` and `example` (`sql`, `parameters`, `ms`); null means unknown. Times are in ms.

    \b
    Examples:
      perfkit slow top --db service=staging
      perfkit slow log /var/log/postgresql/postgresql.json
      perfkit slow demo
    """  # noqa: D301 - click wants the character


@slow.command()
@_database_options
@source_option
@seconds_option
@limit_option
@json_option
def top(source: str, seconds: float, limit: int, as_json: bool, **target: Any) -> None:
    """List the statements that take most of the server's time.

    \b
    Examples:
      perfkit slow top --db service=staging
      perfkit slow top --db service=staging --seconds 60 --json
      perfkit slow top --db service=staging --source log --limit 20
    """  # noqa: D301 - click wants the character
    with _opened(**target) as session:
        show(session.slow(source=source, seconds=seconds).found, limit, as_json=as_json)


@slow.command()
@_database_options
@click.option("--every", default=2.0, show_default=True, metavar="S", help="Seconds between two refreshes.")
@_duration_option
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per refresh.")
def watch(every: float, duration: float, as_json: bool, **target: Any) -> None:
    """Show, again and again, what runs now and which session blocks which.

    With --json, a line has `source`, `at`, `hidden` (sessions whose statement is not visible), `notes`, `running` and
    `blocking` (with `depth`, and `circle` for a deadlock). A session has `key` (its process id), `user`, `database`,
    `application`, `client`, `kind`, `state`, `wait`, `id`, `text`, `seconds`, `transaction_s` and `blocked_by` (keys).

    \b
    Examples:
      perfkit slow watch --db service=staging
      perfkit slow watch --db service=staging --every 5 --for 60 --json
    """  # noqa: D301 - click wants the character
    if every <= 0 or duration < 0:
        raise UsageError(f"--every {every:g} --for {duration:g}; expected seconds, more than 0")
    with _opened(**target) as session:
        end = time.monotonic() + duration
        while True:
            show_activity(session.activity().found, as_json=as_json)
            if duration and time.monotonic() + every > end:
                return
            time.sleep(every)


@slow.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--follow", is_flag=True, help="Continue as the file grows, across rotation, until Ctrl-C.")
@click.option("--prefix", default="", metavar="TEXT", help="log_line_prefix of the server, for a log that is not JSON.")
@limit_option
@json_option
@click.option(
    "--html", "page", metavar="FILE", type=click.Path(path_type=Path), help="Also write the table to this page."
)
def log(files: tuple[Path, ...], follow: bool, prefix: str, limit: int, as_json: bool, page: Path | None) -> None:
    """List the statements that take most of the time, from log files.

    The format of a file is JSON or stderr. With --follow and --json, each refresh is one line.

    \b
    Examples:
      perfkit slow log /var/log/postgresql/postgresql.json
      perfkit slow log postgresql.log.1 postgresql.log --prefix '%m [%p] %q%u@%d ' --html slow.html
      perfkit slow log postgresql.json --follow
    """  # noqa: D301 - click wants the character
    if follow and (len(files) > 1 or page):
        raise UsageError("--follow: expected one FILE, and no --html")
    if follow:
        for queries in logs.follow(files[0], prefix=prefix):
            show(queries, limit, as_json=as_json, refresh=True)
        return
    queries = logs.read(*files, prefix=prefix)
    if page:
        write(page, queries, limit)
    show(queries, limit, as_json=as_json)


@slow.command()
@_database_options
@click.option("--on", "action", flag_value="on", help="Log slow statements of new sessions in this database.")
@click.option("--off", "action", flag_value="off", help="Restore the previous settings.")
@click.option("--restore", "action", flag_value="off", help="Same as --off; use it after a crash.")
@click.option("--sql", "action", flag_value="sql", help="Print the SQL for both, to be run by the database's owner.")
@click.option("--min-ms", default=100.0, show_default=True, help="Shortest duration of a logged statement, in ms.")
@click.option("--no-plans", "plans", flag_value=False, default=True, help="Log no plans, even with auto_explain.")
def logging(action: str | None, min_ms: float, plans: bool, **target: Any) -> None:
    """Switch the logging of slow statements on or off, in one database.

    The command changes settings of that database; its owner permits it with perfkit allow --ddl.

    \b
    Examples:
      perfkit slow logging --db service=staging --sql
      perfkit slow logging --db service=staging --on --min-ms 50
      perfkit slow logging --db service=staging --off
    """  # noqa: D301 - click wants the character
    options = LoggingSpec(min_ms, plans=plans)
    if action is None:
        raise UsageError("expected one of --on, --off and --sql")
    with _opened(**target) as session:
        server, database = session.database.server, session.database.name
        if action == "on":
            on = logging_on(server, database, options, keep=True)
            settings = [f"{name} = {value} for {on.where}" for name, value in on.changed.items()]
            lines = (*settings, *on.notes)
        elif action == "off":
            lines = restore(server, database) or (f"{server.name}: perfkit switched no logging on from here",)
        else:
            begin, end = script(server, database, options)
            lines = (f"{begin};", f"{end};  -- afterwards")
    for line in lines:
        echo(line)


def _opened(db: str, config: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> Session:
    """Open the database that the options or a configuration name. Raises UsageError, TargetRefused, ServerError."""
    if bool(db) == bool(config):
        raise UsageError("expected one of --db and --config")
    if db:
        return api.connect(db, confirm, production, tls=tls, ask=ask())
    settings = configuration.load(Path(config))
    first = settings.baseline()
    sources = admitted(settings, [first], Permission((), confirm, production, ask())).open(Audit(None))
    if first.name not in sources:
        raise UsageError(f"{config}: no target in [database]; expected one, because generated data has no history")
    external = sources[first.name]
    assert settings.database
    return Session(Database(external, external.address.dbname), frozenset(settings.database.volatile))


NOTEBOOK = resources.path("notebooks/explore_slow_queries.ipynb")
SHIFT_S = 5.0  # seconds of the demo's load at a time; an interrupt ends the demo after a shift


@click.command()
@_duration_option
@_demo_scale_option
@seed_option
@limit_option
@json_option
@click.option(
    "--report", "page", metavar="FILE", type=click.Path(path_type=Path), help="Also write the table to this page."
)
def demo(duration: float, scale: str, seed: int, limit: int, as_json: bool, page: Path | None) -> None:
    """Run a clinic on the booking system's data, to have slow statements.

    The data has none of the proposed indexes.

    \b
    Examples:
      perfkit slow demo                   until Ctrl-C; look at it from another terminal
      perfkit slow demo --for 10 --report slow.html
    """  # noqa: D301 - click wants the character
    if duration < 0:
        raise UsageError(f"--for {duration:g}; expected seconds, more than 0")
    with progress() as say, open_generated(scale=scale, arm="before", say=say) as session:
        try:
            with clinic(session, seed) as work:
                say("")
                echo(
                    f"A clinic works{f' for {duration:g} s' if duration else ' until Ctrl-C'}. In another terminal:",
                    err=as_json,
                )
                echo(f"  perfkit slow top {_named(session)}", err=as_json)
                _work(duration, work)
        finally:
            queries = session.slow(source="log").found
            if page:
                write(page, queries, limit)
            show(queries, limit, as_json=as_json)


def _work(duration: float, work: Callable[[float], object]) -> None:
    """Work in shifts for `duration` seconds; 0 is without end."""
    end = time.monotonic() + duration
    while (left := end - time.monotonic() if duration else SHIFT_S) > 0:
        work(min(left, SHIFT_S))


@click.command()
@click.option(
    "--db", default="", metavar="CONNINFO", help=f"Report on a database of yours instead of the demo: {DATABASE}"
)
@tls_option
@click.option("--log", default="", metavar="FILE", help="Read this log file instead of asking the server.")
@source_option
@seconds_option
@click.option("--position", default=1, show_default=True, help="Position of the statement to explain.")
@click.option("--index", default="", metavar="SQL", help="CREATE INDEX to try; default: what perfkit advises.")
@click.option("--measure", is_flag=True, help="With --db: measure the index, in a private copy.")
@profile_option
@_demo_scale_option
@reports_option
@target_options
def report(
    db: str, tls: bool, log: str, reports: str, confirm: tuple[str, ...], production: tuple[str, ...], **options: Any
) -> None:
    """Write one page: slow statements, a plan, an index, the proof.

    perfkit runs notebooks/explore_slow_queries.ipynb; without --db, on the clinic of perfkit slow demo.

    \b
    Examples:
      perfkit slow report                                 the demo, about two minutes
      perfkit slow report --db service=staging --seconds 60
      perfkit slow report --db service=staging --log postgresql.json --position 2 --measure
    """  # noqa: D301 - click wants the character
    if log and not Path(log).is_file():
        raise UsageError(f"--log {log}: no such file; expected a log file of PostgreSQL")
    if db:  # confirmed here: a notebook has no terminal to ask at
        confirm = (*confirm, opened(db, tls, confirm, production).name)
    folder = api.new_folder(reports, "slow")
    parameters = {
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
        html = page(execute(NOTEBOOK, parameters), "Slow queries")
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    write_atomically(folder / "slow.html", html)
    echo(str(folder / "slow.html"))


def _named(session: Session) -> str:
    """Return the options that open a session's database from another process, as a user who may read the log."""
    server, database = session.database.server, session.database.name
    assert isinstance(server, EmbeddedServer)
    conninfo = make_conninfo("", host=str(server.socket_dir), port=server.port, dbname=database, user="postgres")
    return shlex.join(["--db", conninfo, "--confirm", resolve(conninfo).name])


for command in (demo, report):
    slow.add_command(command)
