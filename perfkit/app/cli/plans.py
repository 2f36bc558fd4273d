"""Commands on plans (explain), databases (doctor, allow) and configurations (init, config)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from perfkit import app
from perfkit import config as configuration
from perfkit.app.cli import echo, options
from perfkit.app.specs import (
    ANALYZE,
    ARM_OF_DATA,
    CONFIG_OF_DATA,
    DATABASE,
    DB,
    GENERIC,
    HOW,
    POSTGRES,
    REPEATS,
    SCALE_OF_DATA,
    SERIALIZE,
    TIMEOUT,
    TLS,
    VOLATILE,
    AdmissionSpec,
    ConnectSpec,
    DatabaseSpec,
)
from perfkit.base.bundle import dumps, write_atomically
from perfkit.base.errors import PlanError, UsageError
from perfkit.base.options import Names, Option, narrowed, option
from perfkit.config import model
from perfkit.explain.capture import READING, WRITING, Capture, ExplainSpec, Parameters
from perfkit.explain.comparison import fingerprint
from perfkit.explain.findings import findings
from perfkit.explain.html import DiffView, PlanView
from perfkit.explain.plan import read_plans
from perfkit.postgres import servers
from perfkit.postgres.capabilities import probe
from perfkit.postgres.guards import Audit, resolve
from perfkit.postgres.servers import open_external
from perfkit.postgres.sqltext import first_word
from perfkit.runs.targets import is_file
from perfkit.show.html import page

if TYPE_CHECKING:
    from perfkit.app.session import Session
    from perfkit.postgres.servers import External


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainCommand(AdmissionSpec):
    """Options of `perfkit explain`."""

    what: Names = option((), Option(metavar="SQL|FILE|-...", argument=True, required=True))
    db: str = option("", DB)
    config: str = option("", CONFIG_OF_DATA)
    scale: str = option("", SCALE_OF_DATA)
    arm: str = option("", ARM_OF_DATA)
    postgres: int = option(0, POSTGRES)
    analyze: bool = option(False, ANALYZE)
    generic: bool = option(False, GENERIC)
    values: Names = option(
        (), "Value for %(NAME)s; without NAME, for $1 and so on, in order. Repeatable.", "[NAME=]VALUE", "param"
    )
    repeats: int = option(2, REPEATS)
    timeout_s: float = option(60.0, TIMEOUT)
    serialize: bool = option(False, SERIALIZE)
    volatile: Names = option((), VOLATILE)
    tls: bool = option(True, TLS)
    diff: bool = option(False, "Compare two plans, before and after.")
    format: str = option("text", "Output format.", choices=("text", "html", "json"))
    output: Path | None = option(None, "Write to this file instead of the terminal.")


@click.command()
@options(ExplainCommand)
def explain(spec: ExplainCommand) -> None:
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
    if spec.diff and len(spec.what) != 2:
        raise UsageError(f"--diff: {len(spec.what)} given; expected two, before and after")

    narrowed(ExplainSpec, spec)  # refuses wrong options before a server is started
    parameters = _parameters(spec.values)
    with ExitStack() as stack:
        # Only a statement needs a database, which is opened once.
        session = cache(lambda: stack.enter_context(app.api.connect(narrowed(ConnectSpec, spec))))
        captures = [capture for each in spec.what for capture in _captures(each, spec, parameters, session)]
        text = _diff(captures, spec.format) if spec.diff else _plans(captures, spec.format)
    if spec.output:
        write_atomically(spec.output, text)
    elif spec.format == "text":
        echo(text)
    else:
        click.echo(text)


def _captures(what: str, spec: ExplainCommand, parameters: Parameters, session: Callable[[], Session]) -> list[Capture]:
    """Return the plans in a file or a text, or the plan of a statement. Raises PlanError, with the file's name."""
    text = _text(what)
    try:
        if _begins(text) in READING | WRITING:
            return [session().explain(text, parameters, **{name: getattr(spec, name) for name in HOW}).capture]
        return [Capture((plan,)) for plan in read_plans(text)]
    except PlanError as error:
        raise PlanError(f"{what}: {error}" if what == "-" or is_file(what) else str(error)) from None


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


def _parameters(values: Names) -> Parameters:
    """Return named parameters as a mapping, values alone as a list. Raises UsageError for a mixture."""
    named = [text.partition("=") for text in values]
    if all(equals and name.isidentifier() for name, equals, _ in named):
        return {name: value for name, _, value in named} if values else None
    if any(equals and name.isidentifier() for name, equals, _ in named):
        raise UsageError(f"--param {' '.join(values)}; expected NAME=VALUE for all of them, or VALUE for all")
    return list(values)


def _plans(captures: list[Capture], form: str) -> str:
    views = [PlanView.of(capture) for capture in captures]
    if form == "json":  # ASCII only: other characters of a plan could control the terminal
        return dumps([_json(capture) for capture in captures], ascii_only=True)
    if form == "html":
        return page("Plan", "".join(view.html() for view in views))
    return "\n\n".join(view.text(_width()) for view in views)


def _width() -> int | None:
    """Return the width of the terminal; None for another output, where lines may have any length."""
    return max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _diff(captures: list[Capture], form: str) -> str:
    if len(captures) != 2:
        raise UsageError(f"--diff: {len(captures)} plans in the two files; expected one in each")
    view = DiffView(*map(PlanView.of, captures))
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


def _json(capture: Capture) -> dict[str, object]:
    """Return a plan for programs: EXPLAIN's own document, its fingerprint, and the findings."""
    faults = [asdict(finding) for finding in findings(capture.plan, capture.facts)]
    return {"fingerprint": fingerprint(capture.plan), "findings": faults, "explain": list(capture.documents)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorSpec(DatabaseSpec):
    """Options of `perfkit doctor`."""

    db: str = option("", replace(DB, required=True))


@click.command()
@options(DoctorSpec)
def doctor(spec: DoctorSpec) -> None:
    """List what perfkit can do in your database, and the SQL that allows the rest.

    \b
    Example:
      perfkit doctor --db service=staging
    """  # noqa: D301 - click wants the character
    echo(repr(app.starter.capabilities(probe(opened(spec, spec.db)))))


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowSpec(DatabaseSpec):
    """Options of `perfkit allow`."""

    db: str = option("", replace(DB, required=True))
    writes: bool = option(False, "Permit load that changes data.")
    ddl: bool = option(False, "Permit index builds in the database, and clones beside it.")
    days: int = option(30, "Days until the permission ends.")
    revoke: bool = option(False, "Withdraw every permission.")


@click.command()
@options(AllowSpec)
def allow(spec: AllowSpec) -> None:
    """Permit perfkit, as the owner of a database, to write or build indexes there.

    \b
    Examples:
      perfkit allow --db service=staging --ddl
      perfkit allow --db service=staging --revoke
    """  # noqa: D301 - click wants the character
    kinds = [kind for kind in ("writes", "ddl") if getattr(spec, kind)]
    if bool(kinds) == spec.revoke:
        raise UsageError("allow: expected --writes, --ddl or both; or --revoke alone")
    external = opened(spec, spec.db)
    with external.connect() as connection:
        if spec.revoke:
            servers.revoke(connection)
            echo(f"{external.name}: perfkit may no longer change anything there")
        else:
            echo(f"{external.name}: {' and '.join(kinds)} allowed until {servers.grant(connection, kinds, spec.days)}")


def opened(spec: DatabaseSpec, db: str) -> External:
    """Open a database of the user's, once its use is confirmed. Raises TargetRefused, ServerError, UsageError."""
    return open_external(resolve(db, spec.tls), spec.permission, Audit(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSpec(DatabaseSpec):
    """Options of `perfkit init`."""

    folder: str = option(".", Option(argument=True))
    db: str = option("", f"Write files for a database of yours: {DATABASE}", "CONNINFO")


@click.command()
@options(InitSpec)
def init(spec: InitSpec) -> None:
    """Write a commented perfkit.toml and its SQL, ready to run.

    \b
    Examples:
      perfkit init mine                         an example on tables of its own
      perfkit init mine --db service=staging    from what is in your database
    """  # noqa: D301 - click wants the character
    external = opened(spec, spec.db) if spec.db else None
    for path in app.starter.write(Path(spec.folder), external, spec.db, tls=spec.tls):
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
