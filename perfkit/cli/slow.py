"""Commands that look for what is slow: top, watch, log, logging."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfkit.cli.group import ask, echo, target_options
from perfkit.cli.slow_output import show, show_activity, write
from perfkit.errors import UsageError

if TYPE_CHECKING:
    from perfkit.query import Session


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
    from perfkit.slow import log as logs

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
    from perfkit.slow.query_logging import LoggingSpec, logging_on, restore, script

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
    from perfkit import api
    from perfkit import config as configuration
    from perfkit.guards.admission import Permission
    from perfkit.guards.audit import Audit
    from perfkit.postgres.place import Database
    from perfkit.query import Session
    from perfkit.targets import admitted

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
