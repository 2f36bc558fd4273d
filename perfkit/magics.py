"""IPython's magics: `%load_ext perfkit`, then `%perfkit connect` and `%%explain`."""

from __future__ import annotations

import argparse
import atexit
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn, TypeVar, cast

from IPython.core.error import UsageError as ShellError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class
from psycopg.conninfo import make_conninfo

from perfkit.api import connect
from perfkit.display.progress import progress
from perfkit.errors import PerfkitError, UsageError
from perfkit.explain.capture import named
from perfkit.query import Explained, Session
from perfkit.text import visible

_F = TypeVar("_F", bound=Callable[..., Any])


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


def _one_line(magic: _F) -> _F:
    """Show perfkit's errors as one line instead of a traceback; the cell fails all the same."""

    @wraps(magic)
    def run(*args: Any) -> Any:
        try:
            return magic(*args)
        except PerfkitError as error:
            raise ShellError(visible(error)) from None
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


def _explain_parser() -> _Parser:
    parser = _Parser(
        prog="%%explain",
        description="The plan of the statement in the cell; %%(name)s takes the notebook's variable of that name.",
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


@magics_class
class PerfkitMagics(Magics):
    """Magics with one connection for the notebook."""

    session: Session | None = None

    @line_magic
    @_one_line
    def perfkit(self, line: str) -> None:
        """`%perfkit connect service=staging --confirm HOST:PORT/DB`; without a database the booking system's data."""
        command, *words = shlex.split(line) or [""]
        if command != "connect":
            raise UsageError(
                f"%perfkit {command}; expected %perfkit connect [service=NAME] (see %perfkit connect --help)"
            )
        options = vars(_connect_parser().parse_args(words))
        self.close()
        self.session = connect(_conninfo(options.pop("db")), tls=not options.pop("no_tls"), ask=_ask, **options)
        print(f"connected to {visible(self.session.name)}")  # noqa: T201 - the cell's output

    @line_cell_magic
    @_one_line
    def explain(self, line: str, cell: str = "") -> Explained:
        """`%%explain --analyze`: the plan of the cell's statement, drawn, with what is wrong with it."""
        options = _explain_parser().parse_args(shlex.split(line))
        if not cell.strip():
            raise UsageError("%explain: no statement; expected %%explain, and the statement below it")
        if self.session is None:
            raise UsageError("%%explain: no database; expected %perfkit connect service=NAME before it")
        given, values = vars(options), self._parameters(cell, options)
        keep = given.pop("to")
        del given["param"]
        with progress() as say:
            say("explaining")
            found = self.session.explain(cell, values, **given)
        if keep:
            self._shell.user_ns[keep] = found
        return found

    def close(self) -> None:
        """End the session that there is."""
        if self.session is not None:
            self.session.close()
            self.session = None

    def _parameters(self, cell: str, options: argparse.Namespace) -> Any:
        """The notebook's variables for the names in a statement, or for `$1` those that were listed."""
        wanted = options.param or named(cell)
        if options.generic or not wanted:
            return None
        if absent := [name for name in wanted if name not in self._shell.user_ns]:
            raise UsageError(f"%%explain: no variable {absent[0]!r}; expected one for %({absent[0]})s")
        values = {name: self._shell.user_ns[name] for name in wanted}
        return list(values.values()) if options.param else values

    @property
    def _shell(self) -> Any:
        return self.shell


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
