"""IPython's magics, and the check of a notebook's parameters.

papermill does not check parameters. An unknown name or a word for a number is refused here, in one line, before
anything is measured.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class
from psycopg.conninfo import make_conninfo

from perfkit.app.api import connect, demo
from perfkit.app.evidence import ROWS, Explained, SlowQuery
from perfkit.app.runs import measure_statement
from perfkit.app.session import Session
from perfkit.base.errors import Interrupted, PerfkitError, UsageError, visible
from perfkit.base.process import progress
from perfkit.explain.capture import named, numbered
from perfkit.postgres.commands import named_placeholders, texts
from perfkit.show.html import Paragraph, Sheet
from perfkit.slow.examples import Value
from perfkit.slow.statements import Example, SlowQueries, SlowStatement
from perfkit.slow.tables import ActivityView

if TYPE_CHECKING:
    from perfkit.analysis.report import Run
    from perfkit.app.session import SlowTable


INJECTED = "# Parameters"  # papermill's first line in the cell that it adds after the typed one
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "float or None": (float, int, type(None)),  # papermill takes no other spelling for a parameter
    "bool": (bool,),
}


def read(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the declared parameters with their values, from a notebook's `globals()`.

    From then on, the notebook shows an error of perfkit as one line, without a traceback. Raises UsageError with the
    name of every unknown or ill-typed parameter.
    """
    _one_line_errors()
    declared, injected = _cells(namespace.get("In", ()))
    if wrong := [*_unknown(declared, injected), *_ill_typed(declared, namespace)]:
        raise UsageError("; ".join(wrong))
    return {name: namespace[name] for name in declared}


def _cells(history: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return names and types of the latest typed cell, and the names that papermill added right after it."""
    injected: list[str] = []
    for source in reversed(history[:-1]):
        lines = _assignments(source)
        if lines and all(isinstance(line, ast.AnnAssign) for line in lines):
            return {name: ast.unparse(line.annotation) for line in lines for name in _targets(line)}, injected
        injected = [name for line in lines for name in _targets(line)] if source.startswith(INJECTED) else []
    raise UsageError("no cell with typed parameters was run; expected one before this cell")


def _assignments(source: str) -> list[Any]:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []  # not Python: a cell with a magic
    return body if all(isinstance(line, ast.Assign | ast.AnnAssign) for line in body) else []


def _targets(line: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _unknown(declared: Mapping[str, str], injected: Sequence[str]) -> Iterator[str]:
    for name in injected:
        if name not in declared:
            yield f"parameter '{name}' is unknown; expected one of: {', '.join(declared)}"


def _ill_typed(declared: Mapping[str, str], namespace: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in declared.items():
        value = namespace[name]
        fits = isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
        if not fits:
            yield f"parameter {name} = {value!r}; expected {kind}"


def _one_line_errors() -> None:
    from IPython import get_ipython

    def show(shell: Any, kind: type[BaseException], error: BaseException, _trace: Any, tb_offset: Any = None) -> None:
        shell._showtraceback(kind, error, [f"{kind.__name__}: {error}"])

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((PerfkitError,), show)


_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


def _in_one_line(magic: _F) -> _F:
    """Make an interrupt end in one line, as perfkit's errors do; the cell still fails."""

    @wraps(magic)
    def run(*args: Any) -> Any:
        try:
            return magic(*args)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        except SystemExit:  # argparse exits after --help
            return None

    return cast(_F, run)


def _connect_parser() -> _Parser:
    parser = _Parser(prog="%perfkit connect", description="Connect to the database that the magics use.")
    parser.add_argument(
        "db",
        nargs="*",
        help="service=NAME or a libpq string; default: the booking system's data",
    )
    parser.add_argument(
        "--confirm",
        action="append",
        default=[],
        metavar="HOST:PORT/DB",
        help="allow this target; else the cell asks",
    )
    parser.add_argument(
        "--production",
        action="append",
        default=[],
        metavar="HOST:PORT/DB",
        help="allow this database even though its name suggests production",
    )
    parser.add_argument(
        "--volatile", action="append", default=[], metavar="FUNCTION", help="allow this volatile function"
    )
    parser.add_argument("--no-tls", action="store_true", help="allow a connection to another machine without TLS")
    parser.add_argument("--config", default="", help="without db: a perfkit.toml; default: the booking system's")
    parser.add_argument("--scale", default="", help="without db: size of the generated data")
    parser.add_argument("--arm", default="", help="without db: arm whose indexes the data gets")
    return parser


def _demo_parser() -> _Parser:
    parser = _Parser(prog="%perfkit demo", description="Use the booking system's data after some work.")
    parser.add_argument("--scale", default="small", help="size of the data: seed, small, standard or large")
    parser.add_argument("--seconds", type=float, default=8, help="seconds of the clinic's work")
    return parser


def _slow_parser() -> _Parser:
    parser = _Parser(prog="%perfkit slow", description="List the statements that took the most time.")
    parser.add_argument("--source", default="", help="statements (pg_stat_statements) or log; default: the better one")
    parser.add_argument("--seconds", type=float, default=0, help="count only the next seconds; default: all recorded")
    parser.add_argument("--to", default="", metavar="NAME", help="store the table in this variable")
    return parser


def _activity_parser() -> _Parser:
    return _Parser(prog="%perfkit activity", description="Show what runs now, and which session blocks which.")


def _explain_parser() -> _Parser:
    parser = _Parser(
        prog="%%explain",
        description="Show the plan of the statement in the cell; %(name)s takes the notebook's variable of that name.",
    )
    parser.add_argument("--analyze", action="store_true", help="execute the statement, and roll back")
    parser.add_argument("--generic", action="store_true", help="show the generic plan, for any values of $1")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME", help="variable for $1, $2, ...; repeatable"
    )
    parser.add_argument("--repeats", type=int, default=2, help="number of executions; the last one is shown")
    parser.add_argument(
        "--timeout", dest="timeout_s", type=float, default=60.0, help="time limit of one execution, in seconds"
    )
    parser.add_argument("--serialize", action="store_true", help="include the cost of sending the result")
    parser.add_argument("--to", default="", metavar="NAME", help="store the result in this variable")
    return parser


def _measure_parser() -> _Parser:
    parser = _Parser(
        prog="%%measure",
        description="Measure the statement in the cell without and with an index, in paired rounds. "
        "%(name)s takes the notebook's variable of that name; $1 without --param takes values from the statistics.",
    )
    parser.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="SQL",
        help="default: what perfkit advises; repeatable",
    )
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME", help="variable for $1, $2, ...; repeatable"
    )
    parser.add_argument("--profile", default="quick", help="number of blocks: quick, standard or thorough")
    parser.add_argument("--way", default="", help="as in perfkit compare: whole, sample, ...")
    parser.add_argument("--users", type=int, default=10, help="number of connections")
    parser.add_argument(
        "--reports",
        default="",
        metavar="FOLDER",
        help="folder in which the run gets its own folder; default: as for perfkit measure",
    )
    parser.add_argument("--to", default="", metavar="NAME", help="store the run in this variable")
    return parser


@magics_class
class PerfkitMagics(Magics):
    """Magics that share one session for the notebook."""

    session: Session | None = None

    @line_magic
    @_in_one_line
    def perfkit(self, line: str) -> Any:
        """`%perfkit connect service=staging --confirm HOST:PORT/DB`, `%perfkit slow`, `%perfkit activity`."""
        command, *words = _words(line) or [""]
        if command not in _COMMANDS:
            raise UsageError(f"%perfkit {command}; expected %perfkit {', '.join(_COMMANDS)} (each has --help)")
        parser, carry_out = _COMMANDS[command]
        return carry_out(self, **vars(parser().parse_args(words)))

    def _connect(self, db: Sequence[str], no_tls: bool, **options: Any) -> None:
        """Connect to a database; by default, to the booking system's data."""
        self._take(lambda: connect(_conninfo(db), tls=not no_tls, ask=_ask, **options))

    def _demo(self, **options: Any) -> None:
        """Use generated data, with slow statements in the log."""
        self._take(lambda: demo(**options))

    def _take(self, opened: Callable[[], Session]) -> None:
        self.close()
        self.session = opened()
        print(f"connected to {visible(self.session.name)}")  # noqa: T201 - the cell's output

    def _slow(self, source: str, seconds: float, to: str) -> SlowTable:
        return self._store(to, self._connected("%perfkit slow").slow(source, seconds))

    def _activity(self) -> ActivityView:
        return self._connected("%perfkit activity").activity()

    @line_cell_magic
    @_in_one_line
    def explain(self, line: str, cell: str = "") -> Explained:
        """`%%explain --analyze`: draw the plan of the cell's statement, with what is wrong with it."""
        options = _explain_parser().parse_args(_words(line))
        session, values = self._connected("%%explain"), self._parameters("%%explain", cell, options)
        settings = vars(options)
        name = settings.pop("to")
        del settings["param"]
        with progress() as say:
            say("explaining")
            return self._store(name, session.explain(cell, values, **settings))

    @line_cell_magic
    @_in_one_line
    def measure(self, line: str, cell: str = "") -> Sheet:
        """`%%measure --index "CREATE INDEX ..."`: measure what an index does to the cell's statement under load."""
        options = _measure_parser().parse_args(_words(line))
        session, values = self._connected("%%measure"), self._parameters("%%measure", cell, options)
        settings = vars(options)
        name, index = settings.pop("to"), settings.pop("index")
        del settings["param"]
        run = self._store(name, _measure(session, cell, values, index, **settings))
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

    def _parameters(self, magic: str, cell: str, options: argparse.Namespace) -> Any:
        """Return the variables for the names in a statement, or those that --param lists for `$1`, `$2`, ...."""
        if not cell.strip():
            raise UsageError(f"{magic[1:]}: no statement; expected {magic}, and the statement below it")
        variables = options.param or named(cell)
        if getattr(options, "generic", False) or not variables:
            return None
        if absent := [name for name in variables if name not in self._shell.user_ns]:
            raise UsageError(f"{magic}: no variable {absent[0]!r}; expected one for %({absent[0]})s")
        values = {name: self._shell.user_ns[name] for name in variables}
        return list(values.values()) if options.param else values

    @property
    def _shell(self) -> Any:
        return self.shell


_COMMANDS: dict[str, tuple[Callable[[], _Parser], Callable[..., Any]]] = {
    "connect": (_connect_parser, PerfkitMagics._connect),
    "demo": (_demo_parser, PerfkitMagics._demo),
    "slow": (_slow_parser, PerfkitMagics._slow),
    "activity": (_activity_parser, PerfkitMagics._activity),
}


def _measure(session: Session, cell: str, values: Any, index: Sequence[str], **options: Any) -> Run:
    """Measure paired rounds of a statement, with these values for its parameters or with sampled ones."""
    text = numbered(cell) if isinstance(values, Mapping) else cell
    parameters = texts(list(values.values()) if isinstance(values, Mapping) else values or ())
    statement = SlowStatement("cell", text, 0, 0.0, example=Example(text, parameters) if parameters else None)
    query = SlowQuery(1, statement, SlowQueries("the cell", (statement,)), session)
    if not index and not (index := [proposal.statement for proposal in query.advise().proposals]):
        raise UsageError('%%measure: perfkit advises no index; expected --index "CREATE INDEX ..."')
    one = tuple(Value(number, "", value, "given") for number, value in enumerate(parameters, 1))
    rows = [one] if one else query.example_parameters(ROWS).sets
    with progress() as say:
        return measure_statement(session, named_placeholders(query.text), rows, index, seed=1, say=say, **options)


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


def load_ipython_extension(shell: Any) -> None:
    """Register the magics; `%load_ext perfkit` calls this."""
    magics = PerfkitMagics(shell)
    shell.register_magics(magics)
    atexit.register(magics.close)
