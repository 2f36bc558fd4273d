"""Commands on slow statements: top, watch, log, logging, demo, report."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from psycopg.conninfo import make_conninfo

from perfkit import app
from perfkit import config as configuration
from perfkit.app.cli import echo, options
from perfkit.app.cli.plans import opened
from perfkit.app.specs import (
    DB,
    SCALE_OF_DEMO,
    SECONDS,
    SEED,
    SOURCE,
    ConnectSpec,
    DatabaseSpec,
    ExploreSpec,
)
from perfkit.base import resources
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import UsageError, visible
from perfkit.base.options import Names, Option, Spec, listed, names, narrowed, option
from perfkit.base.process import progress
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import Audit, resolve
from perfkit.runs.targets import admitted
from perfkit.show import html
from perfkit.show.render import execute, page
from perfkit.slow import log_sources
from perfkit.slow.query_logging import LoggingSpec, logging_on, restore, script
from perfkit.slow.tables import ActivityView, SlowView

if TYPE_CHECKING:
    from perfkit.app.session import Session
    from perfkit.slow.activity import Activity
    from perfkit.slow.statements import SlowQueries, SlowStatement


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


def as_document(queries: SlowQueries, limit: int) -> dict[str, object]:
    """Return what --json prints, as `perfkit slow --help` describes it."""
    head = {name: getattr(queries, name) for name in ("source", "since", "until", "total_ms", "unread", "notes")}
    statements = [_statement(queries, each, position) for position, each in enumerate(queries.statements[:limit], 1)]
    return {**head, "count": len(queries.statements), "statements": statements}


def json_line(value: object) -> str:
    """Return JSON on one line, in ASCII: other characters of a statement could control the terminal."""
    return json.dumps(value, default=_plain, allow_nan=False)


def _statement(queries: SlowQueries, statement: SlowStatement, position: int) -> dict[str, object]:
    figures = {field.name: getattr(statement, field.name) for field in fields(statement) if field.name != "plan"}
    figures["example"] = asdict(statement.example) if statement.example else None
    return {"position": position, **figures, "mean_ms": statement.mean_ms, "share": queries.share(statement)}


def _plain(value: datetime | Mapping[str, object]) -> object:
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


DURATION = Option("End after this many seconds; default: at Ctrl-C.", "S", "for")
JSON = Option("Print JSON; perfkit slow --help describes it.")
LIMIT = Option("Number of statements to show.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec(DatabaseSpec):
    """Options by which a command opens a server, also by a configuration that names the database."""

    db: str = option("", DB)
    config: str = option("", "Without --db: a perfkit.toml that names a database.", "FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopSpec(ServerSpec):
    """Options of `perfkit slow top`."""

    source: str = option("", SOURCE)
    seconds: float = option(0.0, SECONDS)
    limit: int = option(10, LIMIT)
    json: bool = option(False, JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivitySpec(ServerSpec):
    """Options of `perfkit slow watch`."""

    every: float = option(2.0, "Seconds between two refreshes.", "S")
    duration: float = option(0.0, DURATION)
    json: bool = option(False, "Print one line of JSON per refresh.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSpec(Spec):
    """Options of `perfkit slow log`."""

    files: Names = option((), Option(metavar="FILE...", argument=True, required=True))
    follow: bool = option(False, "Continue as the file grows, across rotation, until Ctrl-C.")
    prefix: str = option("", "log_line_prefix of the server, for a log that is not JSON.", "TEXT")
    limit: int = option(10, LIMIT)
    json: bool = option(False, JSON)
    html: Path | None = option(None, "Also write the table to this page.", "FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchSpec(ServerSpec):
    """Options of `perfkit slow logging`."""

    on: bool = option(False, "Log slow statements of new sessions in this database.")
    off: bool = option(False, "Restore the previous settings.")
    restore: bool = option(False, "Same as --off; use it after a crash.")
    sql: bool = option(False, "Print the SQL for both, to be run by the database's owner.")
    min_ms: float = option(100.0, "Shortest duration of a logged statement, in ms.")
    plans: bool = option(True, "Log no plans, even with auto_explain.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClinicSpec(Spec):
    """Options of `perfkit slow demo`."""

    duration: float = option(0.0, DURATION)
    scale: str = option("small", SCALE_OF_DEMO)
    seed: int = option(1, SEED)
    limit: int = option(10, LIMIT)
    json: bool = option(False, JSON)
    report: Path | None = option(None, "Also write the table to this page.", "FILE")


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
@options(TopSpec)
def top(spec: TopSpec) -> None:
    """List the statements that take most of the server's time.

    \b
    Examples:
      perfkit slow top --db service=staging
      perfkit slow top --db service=staging --seconds 60 --json
      perfkit slow top --db service=staging --source log --limit 20
    """  # noqa: D301 - click wants the character
    with _opened(spec) as session:
        show(session.slow(source=spec.source, seconds=spec.seconds).found, spec.limit, as_json=spec.json)


@slow.command()
@options(ActivitySpec)
def watch(spec: ActivitySpec) -> None:
    """Show, again and again, what runs now and which session blocks which.

    With --json, a line has `source`, `at`, `hidden` (sessions whose statement is not visible), `notes`, `running` and
    `blocking` (with `depth`, and `circle` for a deadlock). A session has `key` (its process id), `user`, `database`,
    `application`, `client`, `kind`, `state`, `wait`, `id`, `text`, `seconds`, `transaction_s` and `blocked_by` (keys).

    \b
    Examples:
      perfkit slow watch --db service=staging
      perfkit slow watch --db service=staging --every 5 --for 60 --json
    """  # noqa: D301 - click wants the character
    if spec.every <= 0 or spec.duration < 0:
        raise UsageError(f"--every {spec.every:g} --for {spec.duration:g}; expected seconds, more than 0")
    with _opened(spec) as session:
        end = time.monotonic() + spec.duration
        while True:
            show_activity(session.activity().found, as_json=spec.json)
            if spec.duration and time.monotonic() + spec.every > end:
                return
            time.sleep(spec.every)


@slow.command()
@options(LogSpec)
def log(spec: LogSpec) -> None:
    """List the statements that take most of the time, from log files.

    The format of a file is JSON or stderr. With --follow and --json, each refresh is one line.

    \b
    Examples:
      perfkit slow log /var/log/postgresql/postgresql.json
      perfkit slow log postgresql.log.1 postgresql.log --prefix '%m [%p] %q%u@%d ' --html slow.html
      perfkit slow log postgresql.json --follow
    """  # noqa: D301 - click wants the character
    if spec.follow and (len(spec.files) > 1 or spec.html):
        raise UsageError("--follow: expected one FILE, and no --html")
    files = [Path(file) for file in spec.files]
    if spec.follow:
        for queries in log_sources.follow(files[0], prefix=spec.prefix):
            show(queries, spec.limit, as_json=spec.json, refresh=True)
        return
    queries = log_sources.read(*files, prefix=spec.prefix)
    if spec.html:
        write(spec.html, queries, spec.limit)
    show(queries, spec.limit, as_json=spec.json)


@slow.command()
@options(SwitchSpec)
def logging(spec: SwitchSpec) -> None:
    """Switch the logging of slow statements on or off, in one database.

    The command changes settings of that database; its owner permits it with perfkit allow --ddl.

    \b
    Examples:
      perfkit slow logging --db service=staging --sql
      perfkit slow logging --db service=staging --on --min-ms 50
      perfkit slow logging --db service=staging --off
    """  # noqa: D301 - click wants the character
    what = LoggingSpec(spec.min_ms, plans=spec.plans)
    if [spec.on, spec.off or spec.restore, spec.sql].count(True) != 1:
        raise UsageError("expected one of --on, --off and --sql")
    with _opened(spec) as session:
        server, database = session.database.server, session.database.name
        if spec.on:
            on = logging_on(server, database, what, keep=True)
            settings = [f"{name} = {value} for {on.where}" for name, value in on.changed.items()]
            lines = (*settings, *on.notes)
        elif spec.off or spec.restore:
            lines = restore(server, database) or (f"{server.name}: perfkit switched no logging on from here",)
        else:
            begin, end = script(server, database, what)
            lines = (f"{begin};", f"{end};  -- afterwards")
    for line in lines:
        echo(line)


def _opened(spec: ServerSpec) -> Session:
    """Open the database that the options or a configuration name. Raises UsageError, TargetRefused, ServerError."""
    if bool(spec.db) == bool(spec.config):
        raise UsageError("expected one of --db and --config")
    if spec.db:
        return app.api.connect(narrowed(ConnectSpec, spec, config=""))
    settings = configuration.load(spec.config)
    first = settings.baseline()
    sources = admitted(settings, [first], spec.permission).open(Audit(None))
    if first.name not in sources:
        raise UsageError(f"{spec.config}: no target in [database]; expected one, because generated data has no history")
    external = sources[first.name]
    assert settings.database
    return app.session.Session(Database(external, external.address.dbname), frozenset(settings.database.volatile))


NOTEBOOK = resources.path("notebooks/explore_slow_queries.ipynb")
SHIFT_S = 5.0  # seconds of the demo's load at a time; an interrupt ends the demo after a shift


@click.command()
@options(ClinicSpec)
def demo(spec: ClinicSpec) -> None:
    """Run a clinic on the booking system's data, to have slow statements.

    The data has none of the proposed indexes.

    \b
    Examples:
      perfkit slow demo                   until Ctrl-C; look at it from another terminal
      perfkit slow demo --for 10 --report slow.html
    """  # noqa: D301 - click wants the character
    duration = spec.duration
    if duration < 0:
        raise UsageError(f"--for {duration:g}; expected seconds, more than 0")
    data = ConnectSpec(scale=spec.scale, arm="before")
    with progress() as say, app.session.open_generated(data, say) as session:
        try:
            with app.session.clinic(session, spec.seed) as work:
                say("")
                length = f" for {duration:g} s" if duration else " until Ctrl-C"
                echo(f"A clinic works{length}. In another terminal:", err=spec.json)
                echo(f"  perfkit slow top {_named(session)}", err=spec.json)
                _work(duration, work)
        finally:
            queries = session.slow(source="log").found
            if spec.report:
                write(spec.report, queries, spec.limit)
            show(queries, spec.limit, as_json=spec.json)


def _work(duration: float, work: Callable[[float], object]) -> None:
    """Work in shifts for `duration` seconds; 0 is without end."""
    end = time.monotonic() + duration
    while (left := end - time.monotonic() if duration else SHIFT_S) > 0:
        work(min(left, SHIFT_S))


@click.command()
@options(ExploreSpec)
def report(spec: ExploreSpec) -> None:
    """Write one page: slow statements, a plan, an index, the proof.

    perfkit runs notebooks/explore_slow_queries.ipynb; without --db, on the clinic of perfkit slow demo.

    \b
    Examples:
      perfkit slow report                                 the demo, about two minutes
      perfkit slow report --db service=staging --seconds 60
      perfkit slow report --db service=staging --log postgresql.json --position 2 --measure
    """  # noqa: D301 - click wants the character
    if spec.log and not Path(spec.log).is_file():
        raise UsageError(f"--log {spec.log}: no such file; expected a log file of PostgreSQL")
    confirm = names(spec.confirm)
    if spec.db:  # confirmed here: a notebook has no terminal to ask at
        confirm = (*confirm, opened(spec, spec.db).name)
    folder = app.starter.new_folder(spec.reports, "slow")
    parameters = {
        **{name: getattr(spec, name) for name in listed(ExploreSpec)},
        "log": str(Path(spec.log).resolve()) if spec.log else "",
        "measure": spec.measure or not spec.db,
        "confirm": ",".join(confirm),
        "production": ",".join(spec.production),
        "reports": str(folder.resolve()),
    }
    with app.starter.discarded(folder, "*"):
        html = page(execute(NOTEBOOK, parameters), "Slow queries")
    write_atomically(folder / "slow.html", html)
    echo(str(folder / "slow.html"))


def _named(session: Session) -> str:
    """Return the options that open a session's database from another process, as a user who may read the log."""
    server, database = session.database.server, session.database.name
    assert isinstance(server, EmbeddedServer)
    conninfo = make_conninfo("", host=str(server.socket_dir), port=server.port, dbname=database, user="postgres")
    return shlex.join(["--db", conninfo, "--confirm", resolve(conninfo).name])


for each in (demo, report):
    slow.add_command(each)
