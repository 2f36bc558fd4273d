"""The command that explains: a statement in a database, or plans from files, and what changed between two."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfkit.cli.group import ask, echo, target_options
from perfkit.errors import PlanError, UsageError
from perfkit.nested import dumps

if TYPE_CHECKING:
    from perfkit.display.plans import PlanView
    from perfkit.explain.capture import Capture
    from perfkit.query import Session


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
    from perfkit.explain.capture import ExplainSpec

    how = {name: options.pop(name) for name in ("analyze", "generic", "repeats", "timeout_s", "serialize")}
    ExplainSpec(**how)  # what is wrong is said before a server is started
    with ExitStack() as stack:
        source = PlanSource(stack, how, _parameters(given), options)
        found = [capture for each in what for capture in source.captures(each)]
        text = _diff(found, form) if differ else _plans(found, form)
    if output:
        from perfkit.bundle import write_atomically

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
        from perfkit.comparison import is_file

        try:
            return self._captures(what)
        except PlanError as error:
            raise PlanError(f"{what}: {error}" if what == "-" or is_file(what) else str(error)) from None

    def _captures(self, what: str) -> list[Capture]:
        from perfkit.explain.capture import READING, WRITING, Capture
        from perfkit.explain.document import read
        from perfkit.postgres.statements import first_word

        text = _text(what)
        word = "" if text.lstrip()[:1] in ("{", "[", '"') else first_word(text)
        if word in READING | WRITING:
            return [self._opened().explain(text, self._parameters, **self._how).capture]
        return [Capture((document,), ()) for document in read(text)]

    def _opened(self) -> Session:
        from perfkit import api

        if self._session is None:
            self._session = self._stack.enter_context(api.connect(**self._where, ask=ask()))
        return self._session


def _text(what: str) -> str:
    """What was given: a file's content, standard input for `-`, or the text itself."""
    from perfkit.comparison import is_file

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
    from perfkit.display.html import page

    views = [_view(capture) for capture in found]
    if form == "json":
        return dumps([_told(capture) for capture in found], ascii_only=True)  # a terminal may be steered by more
    if form == "html":
        return page("Plan", "".join(view.html() for view in views))
    return "\n\n".join(view.text(_width()) for view in views)


def _view(capture: Capture, title: str = "") -> PlanView:
    from perfkit.display.plans import PlanView
    from perfkit.explain.findings import findings

    first = capture.first if len(capture.documents) > 1 else None
    return PlanView(capture.plan, findings(capture.plan, capture.facts), title, first)


def _width() -> int | None:
    """Of the terminal; None where the text goes elsewhere, which may be as wide as it needs."""
    return max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _diff(found: list[Capture], form: str) -> str:
    from perfkit.display.html import page
    from perfkit.display.plans import DiffView

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
    from dataclasses import asdict

    from perfkit.explain.findings import findings
    from perfkit.explain.fingerprint import fingerprint

    found = [asdict(finding) for finding in findings(capture.plan, capture.facts)]
    return {"fingerprint": fingerprint(capture.plan), "findings": found, "explain": list(capture.documents)}
