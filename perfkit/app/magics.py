"""IPython's magics, and the parameter cells of the notebooks.

papermill passes on whatever it is given: an unknown name or a word for a number is found here, before
anything is measured, and said in one line.
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
from perfkit.app.evidence import measured
from perfkit.app.session import ROWS, Explained, Session, SlowQuery
from perfkit.base.errors import Interrupted, PerfkitError, UsageError, visible
from perfkit.base.process import progress
from perfkit.explain.capture import named, numbered
from perfkit.postgres.commands import texts
from perfkit.postgres.sqltext import named_placeholders as by_name
from perfkit.show.html import Block, Table, style
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
    """The declared parameters with their values, from a notebook's `globals()`.

    Afterwards an error of perfkit shows as one line instead of a traceback.
    Raises UsageError naming every unknown or ill-typed parameter.
    """
    _one_line_errors()
    declared, injected = _cells(namespace.get("In", ()))
    if wrong := [*_unknown(declared, injected), *_ill_typed(declared, namespace)]:
        raise UsageError("; ".join(wrong))
    return {name: namespace[name] for name in declared}


def _cells(history: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Names and types of the latest typed cell, and the names that papermill added right after it."""
    injected: list[str] = []
    for source in reversed(history[:-1]):
        lines = _assignments(source)
        if lines and all(isinstance(line, ast.AnnAssign) for line in lines):
            return {name: ast.unparse(line.annotation) for line in lines for name in _targets(line)}, injected
        injected = [name for line in lines for name in _targets(line)] if source.startswith(INJECTED) else []
    raise UsageError("no cell with typed parameters was run; expected it before this one")


def _assignments(source: str) -> list[Any]:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []  # a magic
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


# IPython's magics: `%load_ext perfkit`, then `%perfkit connect`, `%perfkit slow`, `%%explain` and `%%measure`.

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


def _in_one_line(magic: _F) -> _F:
    """What the user stops ends in one line, as perfkit's errors do; the cell fails all the same."""

    @wraps(magic)
    def run(*args: Any) -> Any:
        try:
            return magic(*args)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        except SystemExit:  # --help was shown
            return None

    return cast(_F, run)


def _connect_parser() -> _Parser:
    parser = _Parser(prog="%perfkit connect", description="The database that %%explain works in from now on.")
    parser.add_argument("db", nargs="*", help="service=NAME or a libpq string; the booking system's data without it")
    parser.add_argument("--confirm", action="append", default=[], metavar="HOST:PORT/DB", help="it may be used")
    parser.add_argument("--production", action="append", default=[], metavar="HOST:PORT/DB", help="it is meant")
    parser.add_argument("--volatile", action="append", default=[], metavar="FUNCTION", help="it may be called")
    parser.add_argument("--no-tls", action="store_true", help="connect beyond loopback without TLS")
    parser.add_argument("--config", default="", help="without a database: a perfkit.toml whose data is made")
    parser.add_argument("--scale", default="", help="the size of that data")
    parser.add_argument("--arm", default="", help="the arm whose indexes it has")
    return parser


def _demo_parser() -> _Parser:
    parser = _Parser(prog="%perfkit demo", description="The booking system's data, on which a clinic has worked.")
    parser.add_argument("--scale", default="small", help="the size of that data")
    parser.add_argument("--seconds", type=float, default=8, help="how long it worked")
    return parser


def _slow_parser() -> _Parser:
    parser = _Parser(prog="%perfkit slow", description="The statements that took the most time.")
    parser.add_argument("--source", default="", help="statements (pg_stat_statements) or log; the best there is")
    parser.add_argument("--seconds", type=float, default=0, help="look for so long, instead of at all since a reset")
    parser.add_argument("--to", default="", metavar="NAME", help="keep the table in this variable")
    return parser


def _activity_parser() -> _Parser:
    return _Parser(prog="%perfkit activity", description="What runs now, and who waits for whom.")


def _explain_parser() -> _Parser:
    parser = _Parser(
        prog="%%explain",
        description="The plan of the statement in the cell; %(name)s takes the notebook's variable of that name.",
    )
    parser.add_argument("--analyze", action="store_true", help="execute it, in a transaction that is rolled back")
    parser.add_argument("--generic", action="store_true", help="the plan for any values, for a text with $1")
    parser.add_argument("--param", action="append", default=[], metavar="NAME", help="a variable for $1, $2, ...")
    parser.add_argument("--repeats", type=int, default=2, help="executions; the last is shown")
    parser.add_argument(
        "--timeout", dest="timeout_s", type=float, default=60.0, help="seconds that one execution may take"
    )
    parser.add_argument("--serialize", action="store_true", help="with what sending the result costs")
    parser.add_argument("--to", default="", metavar="NAME", help="keep the result in this variable")
    return parser


def _measure_parser() -> _Parser:
    parser = _Parser(
        prog="%%measure",
        description="Paired rounds of the statement in the cell without and with an index, on clones or on a copy; "
        "%(name)s takes the notebook's variable of that name, $1 without --param takes values from the statistics.",
    )
    parser.add_argument(
        "--index", action="append", default=[], metavar="SQL", help="a CREATE INDEX; what perfkit advises without it"
    )
    parser.add_argument("--param", action="append", default=[], metavar="NAME", help="a variable for $1, $2, ...")
    parser.add_argument("--profile", default="quick", help="how many rounds: quick, standard, ...")
    parser.add_argument("--way", default="", help="for a database of yours, as for perfkit compare: whole, sample, ...")
    parser.add_argument("--users", type=int, default=10, help="connections that send it at once")
    parser.add_argument(
        "--reports",
        default="",
        metavar="FOLDER",
        help="where the folder of this run is made; default: as for perfkit measure",
    )
    parser.add_argument("--to", default="", metavar="NAME", help="keep the run in this variable")
    return parser


@magics_class
class PerfkitMagics(Magics):
    """Magics with one connection for the notebook."""

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
        """Another database; without one, the booking system's data."""
        self._take(lambda: connect(_conninfo(db), tls=not no_tls, ask=_ask, **options))

    def _demo(self, **options: Any) -> None:
        """Data of perfkit's own, with something slow in its log."""
        self._take(lambda: demo(**options))

    def _take(self, opened: Callable[[], Session]) -> None:
        self.close()
        self.session = opened()
        print(f"connected to {visible(self.session.name)}")  # noqa: T201 - the cell's output

    def _slow(self, source: str, seconds: float, to: str) -> SlowTable:
        return self._kept(to, self._connected("%perfkit slow").slow(source, seconds))

    def _activity(self) -> ActivityView:
        return self._connected("%perfkit activity").activity()

    @line_cell_magic
    @_in_one_line
    def explain(self, line: str, cell: str = "") -> Explained:
        """`%%explain --analyze`: the plan of the cell's statement, drawn, with what is wrong with it."""
        options = _explain_parser().parse_args(_words(line))
        session, values = self._connected("%%explain"), self._parameters("%%explain", cell, options)
        given = vars(options)
        keep = given.pop("to")
        del given["param"]
        with progress() as say:
            say("explaining")
            return self._kept(keep, session.explain(cell, values, **given))

    @line_cell_magic
    @_in_one_line
    def measure(self, line: str, cell: str = "") -> Block:
        """`%%measure --index "CREATE INDEX ..."`: what an index does to the cell's statement under load."""
        options = _measure_parser().parse_args(_words(line))
        session, values = self._connected("%%measure"), self._parameters("%%measure", cell, options)
        given = vars(options)
        keep, index = given.pop("to"), given.pop("index")
        del given["param"]
        run = self._kept(keep, _measured(session, cell, values, index, **given))
        parts = (run.decision, run.levels, run.index_costs, run.weaknesses)
        html = "".join(part.to_html() if isinstance(part, Table) else part.html for part in parts)
        return Block(f"<style>{style()}</style>{html}", "\n\n".join(map(repr, (run, *parts))))

    def close(self) -> None:
        """End the session that there is."""
        if self.session is not None:
            self.session.close()
            self.session = None

    def _connected(self, magic: str) -> Session:
        if self.session is None:
            raise UsageError(f"{magic}: no database; expected %perfkit connect service=NAME before it")
        return self.session

    def _kept(self, name: str, found: _T) -> _T:
        if name:
            self._shell.user_ns[name] = found
        return found

    def _parameters(self, magic: str, cell: str, options: argparse.Namespace) -> Any:
        """The notebook's variables for the names in a statement, or for `$1` those that were listed."""
        if not cell.strip():
            raise UsageError(f"{magic[1:]}: no statement; expected {magic}, and the statement below it")
        wanted = options.param or named(cell)
        if getattr(options, "generic", False) or not wanted:
            return None
        if absent := [name for name in wanted if name not in self._shell.user_ns]:
            raise UsageError(f"{magic}: no variable {absent[0]!r}; expected one for %({absent[0]})s")
        values = {name: self._shell.user_ns[name] for name in wanted}
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


def _measured(session: Session, cell: str, values: Any, index: Sequence[str], **options: Any) -> Run:
    """Paired rounds of a statement, with these values for its parameters or with sampled ones."""
    text = numbered(cell) if isinstance(values, Mapping) else cell
    given = texts(list(values.values()) if isinstance(values, Mapping) else values or ())
    statement = SlowStatement("cell", text, 0, 0.0, example=Example(text, given) if given else None)
    query = SlowQuery(1, statement, SlowQueries("the cell", (statement,)), session)
    if not index and not (index := [proposal.statement for proposal in query.advise().proposals]):
        raise UsageError('%%measure: no index was found that helps; expected --index "CREATE INDEX ..."')
    one = tuple(Value(number, "", value, "given") for number, value in enumerate(given, 1))
    rows = [one] if one else query.example_parameters(ROWS).sets
    with progress() as say:
        return measured(session, by_name(query.text), rows, index, seed=1, say=say, **options)


def _words(line: str) -> list[str]:
    """A line as a shell would part it."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line}: {str(error).lower()}; expected every quotation mark closed") from None


def _conninfo(words: Sequence[str]) -> str:
    """A connection string from the words that a shell's quoting left of it."""
    pairs = [word.partition("=") for word in words]
    if all(equals and name.isidentifier() for name, equals, _ in pairs):
        return make_conninfo("", **{name: value for name, _, value in pairs})
    return " ".join(words)


def _ask(question: str) -> str:
    return input(f"{question}: ")


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext perfkit` calls."""
    magics = PerfkitMagics(shell)
    shell.register_magics(magics)
    atexit.register(magics.close)
