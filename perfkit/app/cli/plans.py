"""Commands on plans (explain), databases (doctor, allow) and configurations (init, config)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfkit import config as configuration
from perfkit.app import starter
from perfkit.app.cli import (
    DATABASE,
    ask,
    db_option,
    echo,
    postgres_option,
    required_db_option,
    target_options,
    tls_option,
    volatile_option,
)
from perfkit.base.bundle import dumps, write_atomically
from perfkit.base.errors import PlanError, UsageError
from perfkit.config import model
from perfkit.explain.capture import READING, WRITING, Capture, ExplainSpec, read_documents
from perfkit.explain.comparison import fingerprint
from perfkit.explain.findings import findings
from perfkit.explain.html import DiffView, PlanView
from perfkit.postgres import servers
from perfkit.postgres.capabilities import probe
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import open_external
from perfkit.postgres.sqltext import first_word
from perfkit.runs.targets import is_file
from perfkit.show.html import page

if TYPE_CHECKING:
    from perfkit.app.session import Session
    from perfkit.postgres.servers import External


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="SQL|FILE|-...")
@db_option
@click.option(
    "--config", default="", metavar="FILE", help="Without --db: a perfkit.toml; default: the booking system's."
)
@click.option("--scale", default="", help="Without --db: size of the generated data.")
@click.option("--arm", default="", help="Without --db: arm whose indexes the data gets; default: the first.")
@postgres_option
@click.option("--analyze", is_flag=True, help="Execute the statement, in a transaction that is rolled back.")
@click.option("--generic", is_flag=True, help="Show the generic plan, which holds for any values of $1.")
@click.option(
    "--param",
    "values",
    multiple=True,
    metavar="[NAME=]VALUE",
    help="Value for %(NAME)s; without NAME, for $1 and so on, in order. Repeatable.",
)
@click.option("--repeats", default=2, show_default=True, help="Number of executions; the last one is shown.")
@click.option(
    "--timeout", "timeout_s", default=60.0, show_default=True, help="Time limit of one execution, in seconds."
)
@click.option("--serialize", is_flag=True, help="Include the cost of sending the result (PostgreSQL 17).")
@volatile_option
@tls_option
@click.option("--diff", "differ", is_flag=True, help="Compare two plans, before and after.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "html", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write to this file instead of the terminal.")
@target_options
def explain(
    what: tuple[str, ...],
    values: tuple[str, ...],
    differ: bool,
    form: str,
    output: Path | None,
    **options: Any,
) -> None:
    """Show a plan and what is wrong with it, for a statement or from a file.

    The file holds EXPLAIN's JSON, psql's output or auto_explain's log.

    \b
    Examples:
      perfkit explain plan.json                                    what is wrong with it
      perfkit explain --diff before.json after.json                what changed
      perfkit explain slow.sql --db service=staging --analyze      executed, and rolled back
      perfkit explain 'SELECT * FROM visits WHERE day = $1' --db service=staging --generic
      perfkit explain sql/queries/clinic_day.sql --generic --arm after-index
    """  # noqa: D301 - click wants the character
    if differ and len(what) != 2:
        raise UsageError(f"--diff: {len(what)} given; expected two, before and after")

    how = {name: options.pop(name) for name in ("analyze", "generic", "repeats", "timeout_s", "serialize")}
    ExplainSpec(**how)  # refuses wrong options before a server is started
    with ExitStack() as stack:
        source = PlanSource(stack, how, _parameters(values), options)
        captures = [capture for each in what for capture in source.captures(each)]
        text = _diff(captures, form) if differ else _plans(captures, form)
    if output:
        write_atomically(output, text)
    elif form == "text":
        echo(text)
    else:
        click.echo(text)


class PlanSource:
    """Source of plans: files that hold plans, or a database that is opened for the first statement."""

    def __init__(self, stack: ExitStack, how: Mapping[str, Any], parameters: Any, where: Mapping[str, Any]) -> None:
        self._stack, self._how, self._parameters, self._where = stack, how, parameters, where
        self._session: Session | None = None

    def captures(self, what: str) -> list[Capture]:
        """Return the plans in a file or a text, or the plan of a statement. Raises PlanError, with the file's name."""
        try:
            return self._captures(what)
        except PlanError as error:
            raise PlanError(f"{what}: {error}" if what == "-" or is_file(what) else str(error)) from None

    def _captures(self, what: str) -> list[Capture]:
        text = _text(what)
        if _begins(text) in READING | WRITING:
            return [self._opened().explain(text, self._parameters, **self._how).capture]
        return [Capture((document,), ()) for document in read_documents(text)]

    def _opened(self) -> Session:
        from perfkit.app import api  # late: plans from files need none of its rooms, which take a second to import

        if self._session is None:
            self._session = self._stack.enter_context(api.connect(**self._where, ask=ask()))
        return self._session


def _begins(text: str) -> str:
    """Return the first word of a text that may be SQL; "" for a plan's JSON and for what no SQL begins with."""
    if text.lstrip()[:1] in ("{", "[", '"'):
        return ""
    try:
        return first_word(text)
    except UsageError:
        return ""


def _text(what: str) -> str:
    """Return the content of a file, standard input for `-`, or the text itself."""
    if what != "-" and not is_file(what) and not what.endswith((".json", ".txt", ".log")):
        return what
    try:
        data = sys.stdin.buffer.read() if what == "-" else Path(what).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{what}: cannot be read ({error.strerror}); expected SQL, or a file with SQL or plans"
        ) from None
    return data.decode("utf-8-sig", "replace")


def _parameters(values: tuple[str, ...]) -> Any:
    """Return named parameters as a mapping, values alone as a list. Raises UsageError for a mixture."""
    named = [text.partition("=") for text in values]
    if all(equals and name.isidentifier() for name, equals, _ in named):
        return {name: value for name, _, value in named} if values else None
    if any(equals and name.isidentifier() for name, equals, _ in named):
        raise UsageError(f"--param {' '.join(values)}; expected NAME=VALUE for all of them, or VALUE for all")
    return list(values)


def _plans(captures: list[Capture], form: str) -> str:
    views = [_view(capture) for capture in captures]
    if form == "json":  # ASCII only: other characters of a plan could control the terminal
        return dumps([_json(capture) for capture in captures], ascii_only=True)
    if form == "html":
        return page("Plan", "".join(view.html() for view in views))
    return "\n\n".join(view.text(_width()) for view in views)


def _view(capture: Capture, title: str = "") -> PlanView:
    first = capture.first if len(capture.documents) > 1 else None
    return PlanView(capture.plan, findings(capture.plan, capture.facts), title, first)


def _width() -> int | None:
    """Return the width of the terminal; None for another output, where lines may have any length."""
    return max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _diff(captures: list[Capture], form: str) -> str:
    if len(captures) != 2:
        raise UsageError(f"--diff: {len(captures)} plans in the two files; expected one in each")
    view = DiffView(*map(_view, captures))
    if form == "html":
        return page("What changed", view.html())
    if form == "text":
        return view.text(_width())
    changes = [
        {"kind": c.kind, "before": c.before and c.before.number, "after": c.after and c.after.number}
        for c in view.diff.changes
    ]
    diff = {"sentence": view.diff.sentence, "evidence": view.diff.evidence, "same": view.diff.same, "changes": changes}
    return dumps({**diff, "plans": [_json(capture) for capture in captures]}, ascii_only=True)


def _json(capture: Capture) -> dict[str, Any]:
    """Return a plan for programs: EXPLAIN's own document, its fingerprint, and the findings."""
    faults = [asdict(finding) for finding in findings(capture.plan, capture.facts)]
    return {"fingerprint": fingerprint(capture.plan), "findings": faults, "explain": list(capture.documents)}


@click.command()
@required_db_option
@tls_option
@target_options
def doctor(db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """List what perfkit can do in your database, and the SQL that allows the rest.

    \b
    Example:
      perfkit doctor --db service=staging
    """  # noqa: D301 - click wants the character
    echo(repr(starter.capabilities(probe(opened(db, tls, confirm, production)))))


@click.command()
@required_db_option
@click.option("--writes", is_flag=True, help="Permit load that changes data.")
@click.option("--ddl", is_flag=True, help="Permit index builds in the database, and clones beside it.")
@click.option("--days", default=30, show_default=True, help="Days until the permission ends.")
@click.option("--revoke", is_flag=True, help="Withdraw every permission.")
@tls_option
@target_options
def allow(
    db: str,
    writes: bool,
    ddl: bool,
    days: int,
    revoke: bool,
    tls: bool,
    confirm: tuple[str, ...],
    production: tuple[str, ...],
) -> None:
    """Permit perfkit, as the owner of a database, to write or build indexes there.

    \b
    Examples:
      perfkit allow --db service=staging --ddl
      perfkit allow --db service=staging --revoke
    """  # noqa: D301 - click wants the character
    kinds = [kind for kind, wanted in (("writes", writes), ("ddl", ddl)) if wanted]
    if bool(kinds) == revoke:
        raise UsageError("allow: expected --writes, --ddl or both; or --revoke alone")
    external = opened(db, tls, confirm, production)
    with external.connect() as connection:
        if revoke:
            servers.revoke(connection)
            echo(f"{external.name}: perfkit may no longer change anything there")
        else:
            echo(f"{external.name}: {' and '.join(kinds)} allowed until {servers.grant(connection, kinds, days)}")


def opened(db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> External:
    """Open a database of the user's, once its use is confirmed. Raises TargetRefused, ServerError, UsageError."""
    permission = Permission((), confirm, production, ask())
    return open_external(resolve(db, tls), permission, Audit(None))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--db", default="", metavar="CONNINFO", help=f"Write files for a database of yours: {DATABASE}")
@tls_option
@target_options
def init(folder: Path, db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """Write a commented perfkit.toml and its SQL, ready to run.

    \b
    Examples:
      perfkit init mine                         an example on tables of its own
      perfkit init mine --db service=staging    from what is in your database
    """  # noqa: D301 - click wants the character
    external = opened(db, tls, confirm, production) if db else None
    for path in starter.write(folder, external, db, tls=tls):
        echo(str(path))


@click.group()
def config() -> None:
    """Check a configuration, print its defaults, or explain every key.

    \b
    Examples:
      perfkit config show mine/perfkit.toml
      perfkit config reference
    """  # noqa: D301 - click wants the character


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
def show(file: Path | None) -> None:
    """Check a perfkit.toml and print it with every default.

    Without a FILE, it is the booking system's.

    \b
    Example:
      perfkit config show mine/perfkit.toml
    """  # noqa: D301 - click wants the character
    echo(model.show(configuration.load(file)))


@config.command()
def reference() -> None:
    """Print every key of a perfkit.toml: type, default and meaning.

    The output is Markdown.

    \b
    Example:
      perfkit config reference > configuration.md
    """  # noqa: D301 - click wants the character
    echo(model.reference())
