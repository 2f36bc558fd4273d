"""IPython's magics, and the check of a notebook's parameters.

papermill does not check parameters. An unknown name or a word for a number is refused here, in one line, before
anything is measured.
"""

from __future__ import annotations

import ast
import atexit
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import click
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class
from psycopg.conninfo import make_conninfo

from perfkit.app.api import connect, demo
from perfkit.app.cli import parameters as parameters_of
from perfkit.app.evidence import ROWS, Explained, SlowQuery
from perfkit.app.session import Session, measure_statement
from perfkit.app.specs import HOW, SECONDS, ConnectSpec, DemoSpec, ExplainCellSpec, MeasureCellSpec, StatementSpec
from perfkit.base.errors import Interrupted, PerfkitError, UsageError, visible
from perfkit.base.options import Names, Option, Spec, names, narrowed, option
from perfkit.base.process import progress
from perfkit.explain.capture import Parameters, named, numbered
from perfkit.postgres.commands import named_placeholders, texts
from perfkit.show.html import Paragraph, Sheet
from perfkit.slow.examples import Value
from perfkit.slow.statements import Example, SlowQueries, SlowStatement
from perfkit.slow.tables import ActivityView

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from perfkit.analysis.report import Run
    from perfkit.app.session import SlowTable


INJECTED = "# Parameters"  # papermill's first line in the cell that it adds after the typed one


def read(namespace: Mapping[str, object]) -> dict[str, object]:
    """Return the declared parameters with their values, from a notebook's `globals()`; the spec checks the types.

    From then on, the notebook shows an error of perfkit as one line, without a traceback. Raises UsageError with the
    name of every unknown parameter.
    """
    _one_line_errors()
    declared, injected = _cells(cast("Sequence[str]", namespace.get("In", ())))
    if unknown := [f"parameter '{name}' is unknown" for name in injected if name not in declared]:
        raise UsageError(f"{', '.join(unknown)}; expected one of: {', '.join(declared)}")
    return {name: namespace[name] for name in declared}


def _cells(history: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names in the latest typed cell, and the names that papermill added right after it."""
    injected: list[str] = []
    for source in reversed(history[:-1]):
        lines = _assignments(source)
        names = [name for line in lines for name in _targets(line)]
        if lines and all(isinstance(line, ast.AnnAssign) for line in lines):
            return names, injected
        injected = names if source.startswith(INJECTED) else []
    raise UsageError("no cell with typed parameters was run; expected one before this cell")


def _assignments(source: str) -> list[ast.Assign | ast.AnnAssign]:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []  # not Python: a cell with a magic
    lines = [line for line in body if isinstance(line, ast.Assign | ast.AnnAssign)]
    return lines if len(lines) == len(body) else []


def _targets(line: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _one_line_errors() -> None:
    from IPython import get_ipython

    def show(
        shell: InteractiveShell, kind: type[BaseException], error: BaseException, *_: object, **__: object
    ) -> None:
        shell._showtraceback(kind, error, [f"{kind.__name__}: {error}"])

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((PerfkitError,), show)


_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectLineSpec(ConnectSpec):
    """Options of `%perfkit connect`."""

    words: Names = option((), Option(metavar="[CONNINFO]", argument=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowLineSpec(Spec):
    """Options of `%perfkit slow`."""

    source: str = option(
        "", "pg_stat_statements, the server's log or a log file; default: the better of the first two."
    )
    seconds: float = option(0.0, SECONDS)
    to: str = option("", "Store the table in this variable.", "NAME")


_S = TypeVar("_S", bound=Spec)


def _parsed(magic: str, line: str | Sequence[str], spec: type[_S], purpose: str) -> _S:
    """Return the options on a magic's line. Raises UsageError in one line, and Exit after --help."""
    words = _words(line) if isinstance(line, str) else [*line]
    helping = {"help_option_names": ["-h", "--help"]}
    options = parameters_of(spec, without=("db", "postgres"))
    command = click.Command(magic, params=options, help=purpose, context_settings=helping)
    try:
        context = command.make_context(magic, words)
    except click.ClickException as error:
        raise UsageError(f"{magic}: {error.format_message()} (see {magic} --help)") from None
    return spec(**context.params)


def _in_one_line(magic: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Make an interrupt end in one line, as perfkit's errors do; the cell still fails."""

    @wraps(magic)
    def run(*args: _P.args, **options: _P.kwargs) -> _T | None:
        try:
            return magic(*args, **options)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        except click.exceptions.Exit:  # after --help
            return None

    return run


@magics_class
class PerfkitMagics(Magics):
    """Magics that share one session for the notebook."""

    session: Session | None = None

    @line_magic
    @_in_one_line
    def perfkit(self, line: str) -> object:
        """`%perfkit connect service=staging --confirm HOST:PORT/DB`, `%perfkit slow`, `%perfkit activity`."""
        command, *words = _words(line) or [""]
        if command not in _COMMANDS:
            raise UsageError(f"%perfkit {command}; expected %perfkit {', '.join(_COMMANDS)} (each has --help)")
        spec, purpose, carry_out = _COMMANDS[command]
        return carry_out(self, _parsed(f"%perfkit {command}", words, spec, purpose))

    def _connect(self, spec: ConnectLineSpec) -> None:
        """Connect to a database; by default, to the booking system's data."""
        self._take(lambda: connect(replace(spec, db=_conninfo(spec.words), ask=_ask)))

    def _demo(self, spec: DemoSpec) -> None:
        """Use generated data, with slow statements in the log."""
        self._take(lambda: demo(spec))

    def _take(self, opened: Callable[[], Session]) -> None:
        self.close()
        self.session = opened()
        print(f"connected to {visible(self.session.name)}")  # noqa: T201 - the cell's output

    def _slow(self, spec: SlowLineSpec) -> SlowTable:
        return self._store(spec.to, self._connected("%perfkit slow").slow(spec.source, spec.seconds))

    def _activity(self, _: Spec) -> ActivityView:
        return self._connected("%perfkit activity").activity()

    @line_cell_magic
    @_in_one_line
    def explain(self, line: str, cell: str = "") -> Explained:
        """`%%explain --analyze`: draw the plan of the cell's statement, with what is wrong with it."""
        spec = _parsed(
            "%%explain",
            line,
            ExplainCellSpec,
            "Show the plan of the statement in the cell; %(name)s takes the notebook's variable of that name.",
        )
        values = None if spec.generic else self._parameters("%%explain", cell, names(spec.param))
        session = self._connected("%%explain")
        with progress() as say:
            say("explaining")
            options = {name: getattr(spec, name) for name in HOW}
            return self._store(spec.to, session.explain(cell, values, **options))

    @line_cell_magic
    @_in_one_line
    def measure(self, line: str, cell: str = "") -> Sheet:
        """`%%measure --index "CREATE INDEX ..."`: measure what an index does to the cell's statement under load."""
        spec = _parsed(
            "%%measure",
            line,
            MeasureCellSpec,
            "Measure the statement in the cell without and with an index, in paired rounds. %(name)s takes the "
            "notebook's variable of that name; $1 without --param takes values from the statistics.",
        )
        values = self._parameters("%%measure", cell, names(spec.param))
        run = self._store(spec.to, _measure(self._connected("%%measure"), cell, values, spec))
        return Sheet([Paragraph(repr(run)), run.decision, run.levels, run.index_costs, run.weaknesses])

    def close(self) -> None:
        """Close the session, if one is open."""
        if self.session is not None:
            self.session.close()
            self.session = None

    def _connected(self, magic: str) -> Session:
        if self.session is None:
            raise UsageError(f"{magic}: no database; expected %perfkit connect service=NAME before it")
        return self.session

    def _store(self, name: str, value: _T) -> _T:
        if name:
            self._shell.user_ns[name] = value
        return value

    def _parameters(self, magic: str, cell: str, numbered: Sequence[str]) -> Parameters:
        """Return the variables for the names in a statement, or those that --param lists for `$1`, `$2`, ...."""
        self._connected(magic)
        if not cell.strip():
            raise UsageError(f"{magic[1:]}: no statement; expected {magic}, and the statement below it")
        variables = numbered or named(cell)
        if absent := [name for name in variables if name not in self._shell.user_ns]:
            raise UsageError(f"{magic}: no variable {absent[0]!r}; expected one for %({absent[0]})s")
        values = {name: self._shell.user_ns[name] for name in variables}
        return list(values.values()) if numbered else values or None

    @property
    def _shell(self) -> InteractiveShell:
        return cast("InteractiveShell", self.shell)


_COMMANDS: Mapping[str, tuple[type[Spec], str, Callable[..., object]]] = {
    "connect": (ConnectLineSpec, "Connect to the database that the magics use.", PerfkitMagics._connect),
    "demo": (DemoSpec, "Use the booking system's data after some work.", PerfkitMagics._demo),
    "slow": (SlowLineSpec, "List the statements that took the most time.", PerfkitMagics._slow),
    "activity": (Spec, "Show what runs now, and which session blocks which.", PerfkitMagics._activity),
}


def _measure(session: Session, cell: str, values: Parameters, spec: MeasureCellSpec) -> Run:
    """Measure paired rounds of a statement, with these values for its parameters or with sampled ones."""
    text = numbered(cell) if isinstance(values, Mapping) else cell
    parameters = texts(list(values.values()) if isinstance(values, Mapping) else values or ())
    statement = SlowStatement("cell", text, 0, 0.0, example=Example(text, parameters) if parameters else None)
    query = SlowQuery(1, statement, SlowQueries("the cell", (statement,)), session)
    index = spec.index or [proposal.statement for proposal in query.advise().proposals]
    if not index:
        raise UsageError('%%measure: perfkit advises no index; expected --index "CREATE INDEX ..."')
    one = tuple(Value(number, "", value, "given") for number, value in enumerate(parameters, 1))
    rows = [one] if one else query.example_parameters(ROWS).sets
    measured = narrowed(StatementSpec, spec, index=index)
    with progress() as say:
        return measure_statement(session, named_placeholders(query.text), rows, measured, say)


def _words(line: str) -> list[str]:
    """Split a line as a shell does. Raises UsageError for an open quotation mark."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line}: {str(error).lower()}; expected every quotation mark closed") from None


def _conninfo(words: Sequence[str]) -> str:
    """Return a connection string from words whose quotation marks are already removed."""
    pairs = [word.partition("=") for word in words]
    if all(equals and name.isidentifier() for name, equals, _ in pairs):
        return make_conninfo("", **{name: value for name, _, value in pairs})
    return " ".join(words)


def _ask(question: str) -> str:
    return input(f"{question}: ")


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics; `%load_ext perfkit` calls this."""
    magics = PerfkitMagics(shell)
    shell.register_magics(magics)
    atexit.register(magics.close)
