"""Commands on plans, databases and configurations."""

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
from perfkit.app import api, starter
from perfkit.app.cli import ask, echo, target_options
from perfkit.app.evidence import capabilities
from perfkit.base.bundle import dumps, write_atomically
from perfkit.base.errors import PlanError, UsageError
from perfkit.config.model import reference as model_reference
from perfkit.config.model import show as written
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
@click.option("--db", default="", metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option("--config", default="", metavar="FILE", help="Without --db: a perfkit.toml; the booking system's.")
@click.option("--scale", default="", help="Size of its data.")
@click.option("--arm", default="", help="Its arm, with that arm's indexes; the first by default.")
@click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16.")
@click.option("--analyze", is_flag=True, help="Execute it: in a transaction that is rolled back.")
@click.option("--generic", is_flag=True, help="The plan for any values, for a text with $1.")
@click.option("--param", "given", multiple=True, metavar="[NAME=]VALUE", help="For %(NAME)s, or in order for $1.")
@click.option("--repeats", default=2, show_default=True, help="Executions; the last is shown.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds that one execution may take.")
@click.option("--serialize", is_flag=True, help="With what sending the result costs (PostgreSQL 17).")
@click.option("--volatile", multiple=True, metavar="FUNCTION", help="A volatile function that may be called.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@click.option("--diff", "differ", is_flag=True, help="What changed between two.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "html", "json"]),
    default="text",
    show_default=True,
    help="How it is shown.",
)
@click.option("--output", type=click.Path(path_type=Path), help="A file instead of the terminal.")
@target_options
def explain(
    what: tuple[str, ...],
    given: tuple[str, ...],
    differ: bool,
    form: str,
    output: Path | None,
    **options: Any,
) -> None:
    """Read a plan: of a statement, or from a file with EXPLAIN's JSON, psql's output or auto_explain's log.

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
    ExplainSpec(**how)  # what is wrong is said before a server is started
    with ExitStack() as stack:
        source = PlanSource(stack, how, _parameters(given), options)
        found = [capture for each in what for capture in source.captures(each)]
        text = _diff(found, form) if differ else _plans(found, form)
    if output:
        write_atomically(output, text)
    elif form == "text":
        echo(text)
    else:
        click.echo(text)


class PlanSource:
    """Where plans come from: files that hold some, or a database that is opened for the first statement."""

    def __init__(self, stack: ExitStack, how: Mapping[str, Any], parameters: Any, where: Mapping[str, Any]) -> None:
        self._stack, self._how, self._parameters, self._where = stack, how, parameters, where
        self._session: Session | None = None

    def captures(self, what: str) -> list[Capture]:
        """The plans in a file or a text, or the plan of a statement. Raises PlanError with the file's name."""
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
    """What was given: a file's content, standard input for `-`, or the text itself."""
    if what != "-" and not is_file(what) and not what.endswith((".json", ".txt", ".log")):
        return what
    try:
        data = sys.stdin.buffer.read() if what == "-" else Path(what).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{what}: cannot be read ({error.strerror}); expected SQL, or a file with SQL or plans"
        ) from None
    return data.decode("utf-8-sig", "replace")


def _parameters(given: tuple[str, ...]) -> Any:
    """Named parameters as a mapping, values alone as a list. Raises UsageError for a mixture."""
    named = [text.partition("=") for text in given]
    if all(equals and name.isidentifier() for name, equals, _ in named):
        return {name: value for name, _, value in named} if given else None
    if any(equals and name.isidentifier() for name, equals, _ in named):
        raise UsageError(f"--param {' '.join(given)}; expected NAME=VALUE for all of them, or VALUE for all")
    return list(given)


def _plans(found: list[Capture], form: str) -> str:
    views = [_view(capture) for capture in found]
    if form == "json":
        return dumps([_told(capture) for capture in found], ascii_only=True)  # a terminal may be steered by more
    if form == "html":
        return page("Plan", "".join(view.html() for view in views))
    return "\n\n".join(view.text(_width()) for view in views)


def _view(capture: Capture, title: str = "") -> PlanView:
    first = capture.first if len(capture.documents) > 1 else None
    return PlanView(capture.plan, findings(capture.plan, capture.facts), title, first)


def _width() -> int | None:
    """Of the terminal; None where the text goes elsewhere, which may be as wide as it needs."""
    return max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _diff(found: list[Capture], form: str) -> str:
    if len(found) != 2:
        raise UsageError(f"--diff: {len(found)} plans in the two files; expected one in each")
    view = DiffView(*map(_view, found))
    if form == "html":
        return page("What changed", view.html())
    if form == "text":
        return view.text(_width())
    changes = [
        {"kind": c.kind, "before": c.before and c.before.number, "after": c.after and c.after.number}
        for c in view.diff.changes
    ]
    told = {"sentence": view.diff.sentence, "evidence": view.diff.evidence, "same": view.diff.same, "changes": changes}
    return dumps({**told, "plans": [_told(capture) for capture in found]}, ascii_only=True)


def _told(capture: Capture) -> dict[str, Any]:
    """A plan for programs: EXPLAIN's own document, its fingerprint, and the findings."""
    found = [asdict(finding) for finding in findings(capture.plan, capture.facts)]
    return {"fingerprint": fingerprint(capture.plan), "findings": found, "explain": list(capture.documents)}


# Commands about a database of the user's and about configurations: doctor, allow, init, config.


@click.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@target_options
def doctor(db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """What perfkit can do in a database of yours, what it cannot, and the SQL that allows it.

    \b
    Example:
      perfkit doctor --db service=staging
    """  # noqa: D301 - click wants the character
    echo(repr(capabilities(probe(opened(db, tls, confirm, production)))))


@click.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option("--writes", is_flag=True, help="Load may change data there.")
@click.option("--ddl", is_flag=True, help="Indexes may be built there, and databases beside it.")
@click.option("--days", default=30, show_default=True, help="How long that holds.")
@click.option("--revoke", is_flag=True, help="Take every permission back.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
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
    """Mark a database of yours, as its owner, as one that perfkit may write to or build indexes in.

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
    """A database of the user's, named and confirmed."""
    permission = Permission((), confirm, production, ask())
    return open_external(resolve(db, tls), permission, Audit(None))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--db", default="", metavar="CONNINFO", help="A database to look at: service=NAME.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@target_options
def init(folder: Path, db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """Write a perfkit.toml and its SQL, with comments, that run as they are.

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
    """Check a configuration, print it with its defaults, or explain every key.

    \b
    Examples:
      perfkit config show mine/perfkit.toml
      perfkit config reference
    """  # noqa: D301 - click wants the character


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
def show(file: Path | None) -> None:
    """Check a perfkit.toml and print it with every default; the booking system's without one.

    \b
    Example:
      perfkit config show mine/perfkit.toml
    """  # noqa: D301 - click wants the character
    echo(written(configuration.load(file)))


@config.command()
def reference() -> None:
    """Every key of a perfkit.toml with its type, default and meaning, as Markdown.

    \b
    Example:
      perfkit config reference > configuration.md
    """  # noqa: D301 - click wants the character
    echo(model_reference())
