"""A server, queries of sql/catalog by their name, time limits of statements, and parameters as they are sent.

A statement that waits for a lock makes others wait behind it, and one that runs on holds back VACUUM. So a session
has both limits as soon as it is connected. Behind a pooler, a session's settings would be the next client's too:
there each transaction gets both limits of its own.

A text that perfkit did not write (a user's, a file's, a log's, a bundle's) may hold a second command that perfkit's
own reading of the text does not see. Such a text goes by the extended protocol, in which the server refuses a second
command before it runs the first ("cannot insert multiple commands into a prepared statement"), never by the simple
protocol, in which the server runs them all.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import dict_row, tuple_row

from perfkit.base import resources
from perfkit.base.errors import PerfkitError, ServerError, UsageError, first_line, visible

Connection = psycopg.Connection[dict[str, Any]]


class Server(Protocol):
    """The embedded server, or one of the user's that the guards let through."""

    @property
    def name(self) -> str:
        """What reports and the audit call it."""

    @property
    def version(self) -> int:
        """The major version."""

    @property
    def foreign(self) -> bool:
        """Whether somebody else started it."""

    @property
    def pooler(self) -> bool:
        """Whether sessions end with their transaction: nothing that belongs to a session can be relied on."""

    @property
    def permissions(self) -> frozenset[str]:
        """What may be done there: of "writes" and "ddl"."""

    def conninfo(self, dbname: str = "", user: str = "") -> str:
        """Connection string for libpq, without a password."""

    def connect(self, dbname: str = "", user: str = "") -> Connection:
        """A connection in autocommit mode; rows come as dictionaries. Raises psycopg.Error."""

    def alive(self) -> bool:
        """Whether it still runs, as far as perfkit can tell without asking it."""

    def log_tail(self, lines: int = 5) -> str:
        """The last messages of its log, where perfkit can read that."""


# Catalogue queries, one file each under `sql/catalog/`, loaded by name.


@functools.cache
def get(name: str) -> str:
    """The text of a catalogue query.

    >>> get("settings").splitlines()[0][:2]
    '--'
    """
    return resources.path(f"sql/catalog/{name}.sql").read_text(encoding="utf-8")


def rows(connection: Connection, name: str) -> list[dict[str, Any]]:
    """Every row that a catalogue query gives."""
    return connection.execute(get(name).encode()).fetchall()


def row(connection: Connection, name: str) -> dict[str, Any]:
    """The first row of a catalogue query; an empty one where there is none."""
    return connection.execute(get(name).encode()).fetchone() or {}


# Time limits of every statement to a server that perfkit did not start, and who holds the lock that ran into one.

STATEMENT_S, LOCK_S = 60.0, 3.0
# Two commands in one round trip; no name or value in them is anybody else's.
_LOCAL = f"SET LOCAL statement_timeout = {STATEMENT_S * 1000:.0f}; SET LOCAL lock_timeout = {LOCK_S * 1000:.0f}"


class Pooled(psycopg.Connection[dict[str, Any]]):
    """A connection through a pooler, or perhaps so: every transaction has limits of its own."""

    noted: Callable[[str], AbstractContextManager[Any]] = nullcontext  # writes an audit

    def limit_transaction(self) -> None:
        """Give the transaction that begins here, or began just now, both limits."""
        with self.noted(_LOCAL):
            psycopg.Cursor(self).execute(_LOCAL)

    @contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        """As psycopg's, with the limits where it begins one."""
        begins = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(*args, **options) as transaction:
            if begins:
                self.limit_transaction()
            yield transaction


def limit(connection: psycopg.Connection[Any]) -> None:
    """Set both limits for a session of perfkit's own."""
    limits = {"statement": f"{STATEMENT_S:.0f}s", "lock": f"{LOCK_S:.0f}s"}
    connection.execute(get("limits").encode(), limits)


@contextmanager
def limited(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Give a statement's transaction the limits where a pooler may be in between and the statement begins it."""
    if not isinstance(connection, Pooled) or connection.info.transaction_status != TransactionStatus.IDLE:
        yield
    elif connection.autocommit:
        with connection.transaction():
            yield
    else:
        connection.limit_transaction()
        yield


def holders(connect: Callable[[], psycopg.Connection[Any]], error: BaseException) -> str:
    """Say who holds exclusive locks, in brackets, where an error is that of a lock which was not to be had."""
    if not isinstance(error, psycopg.errors.LockNotAvailable):
        return ""
    with suppress(psycopg.Error, PerfkitError), connect() as connection:
        cursor = connection.cursor(row_factory=dict_row)
        rows = cursor.execute(get("exclusive_locks").encode()).fetchall()
        said = [f"{visible(row['table'])} by process {row['pid']}{_since(row['seconds'])}" for row in rows]
        return f" (locked: {', '.join(said)})" if said else ""
    return ""


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f" for {seconds:,.0f} s"


# Values of parameters, and settings of a session, on their way to the server.

_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


def sendable(text: str, what: str = "a text for the server") -> str:
    """Return the text. Raises UsageError, with the line, for a character that no server takes: NUL, half a surrogate.

    Cut off at a NUL, the text that is sent would not be the one that was looked at.
    """
    if found := _UNSENDABLE.search(text):
        line, code = text.count("\n", 0, found.start()) + 1, ord(found[0])
        raise UsageError(f"{what}: the character U+{code:04X} in line {line}; expected text in UTF-8 without it")
    return text


def exact(row: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, Any] | list[Any] | None:
    """The same with decimals for floats: `numeric_column = 1.5::float8` could not use an index.

    The server turns a decimal into whatever number a column holds, but never a column into a decimal's type.
    Raises UsageError for text that no server takes.
    """
    if isinstance(row, Mapping):
        return {name: _exact(value) for name, value in row.items()}
    return None if row is None else [_exact(value) for value in row]


def texts(values: Sequence[Any]) -> tuple[str | None, ...]:
    """Values as the server reads them in a text. Raises UsageError for one that has no such form.

    >>> texts([7, None, True, [1, 2], "a'b"])
    ('7', None, 't', '{1,2}', "a'b")
    """
    try:
        sent = Transformer().dump_sequence([_exact(value) for value in values], [PyFormat.TEXT] * len(values))
    except psycopg.Error as error:
        raise UsageError(f"parameters that cannot be sent: {first_line(error)}") from None
    return tuple(None if value is None else bytes(value).decode() for value in sent)


def options(settings: Mapping[str, str]) -> str:
    r"""Settings as libpq's `options` take them.

    >>> options({"work_mem": "64MB", "search_path": "a, b"})
    '-c work_mem=64MB -c search_path=a,\\ b'
    """
    return " ".join(f"-c {name}=" + re.sub(r"([\\\s])", r"\\\1", value) for name, value in settings.items())


def number(text: str) -> float | str:
    """A JSON number that is no integer; as text where a float would not hold all its digits."""
    found = float(text)
    return found if Decimal(repr(found)) == Decimal(text) else text


def _exact(value: Any) -> Any:
    if isinstance(value, list):
        return [_exact(item) for item in value]
    if isinstance(value, str):
        return sendable(value, "a parameter")
    return Decimal(repr(value)) if isinstance(value, float) else value


# A statement's parameters by name, as psycopg writes them, turned into what a server or pgbench takes.

_PLACEHOLDER = re.compile(r"%(?:(%)|\((\w+)\)[stb]|.|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Placed:
    """A statement with its placeholders replaced, and the names that it had, each once, in order."""

    text: str
    names: tuple[str, ...]


def numbered(sql: str) -> Placed:
    """Placeholders as the server takes them. Raises ValueError for one without a name.

    >>> numbered("SELECT %(b)s, %(a)s, %(b)s, 10 %% 3")
    Placed(text='SELECT $1, $2, $1, 10 % 3', names=('b', 'a'))
    """
    return _placed(sql, lambda _, number: f"${number}")


def named(sql: str) -> Placed:
    """Placeholders as pgbench's variables. Raises ValueError for one without a name.

    >>> named("SELECT %(b)s::int + %(b)s").text
    'SELECT :b::int + :b'
    """
    return _placed(sql, lambda name, _: f":{name}")


def _placed(sql: str, shown: Callable[[str, int], str]) -> Placed:
    names: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return "%"
        if not match[2]:
            raise ValueError(
                f"{match[0]!r} in a statement with parameters; expected %(name)s, or %% for a percent sign"
            )
        if match[2] not in names:
            names.append(match[2])
        return shown(match[2], names.index(match[2]) + 1)

    return Placed(_PLACEHOLDER.sub(replace, sql), tuple(names))


# Text on its way to a server: as one command, which the server itself sees to, and read as perfkit reads it.

Row = TypeVar("Row")

# The settings that decide where a string ends, and thereby a command. The others that concern texts only refuse one
# (backslash_quote), warn of one (escape_string_warning), or belong to the application whose plans are wanted
# (search_path, transform_null_equals).
READING = {"standard_conforming_strings": "on", "client_encoding": "UTF8"}
_PIN = "SELECT " + ", ".join(f"set_config('{name}', '{value}', %(local)s)" for name, value in READING.items())


class Extended(psycopg.Cursor[Row]):
    """A cursor that knows the extended protocol alone; every connection that perfkit opens makes such cursors."""

    parsed: bytes | None = None  # what the server has just taken as one command, see `send_unbound`

    def _execute_send(self, query: Any, *, force_extended: bool = False, binary: bool | None = None) -> None:
        # The one place where psycopg chooses a protocol: the simple one for a statement without parameters.
        super()._execute_send(query, force_extended=query.query != self.parsed, binary=binary)


if not hasattr(psycopg.Cursor, "_execute_send"):  # or the override would be one of nothing, and the guard gone
    raise ImportError(f"psycopg {psycopg.__version__}; expected a version whose Cursor has _execute_send")


def _cursor(cursor: psycopg.Cursor[Any]) -> Extended[Any]:
    if not isinstance(cursor, Extended):
        raise TypeError(f"{type(cursor).__name__}; expected a cursor that knows the extended protocol alone")
    return cursor


def send(
    cursor: psycopg.Cursor[Any], text: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None
) -> psycopg.Cursor[Any]:
    """Send a text that perfkit did not write, and return its cursor; without parameters `%` is itself.

    Raises UsageError for a text that no server takes, ServerError unless the server reads the text as perfkit does,
    psycopg.Error where the server refuses the text, as it does a second command.
    """
    sent = sendable(text).encode()
    with _together(cursor.connection):
        pin(cursor.connection)
        return _cursor(cursor).execute(sent, parameters)


def send_unbound(cursor: psycopg.Cursor[Any], text: str) -> psycopg.Cursor[Any]:
    """Send a text with `$1`, `$2`, ... and no values for these, as EXPLAIN (GENERIC_PLAN) alone takes it.

    The extended protocol demands values, by which the plan would not be generic. So the server first parses the very
    same bytes by that protocol, in the same transaction, and refuses a second command there. Raises as `send`.
    """
    unbound = _cursor(cursor)
    with _together(cursor.connection):
        unbound.parsed = parse(cursor.connection, text)
        try:
            return cursor.execute(unbound.parsed)
        finally:
            unbound.parsed = None


def parse(connection: psycopg.Connection[Any], text: str) -> bytes:
    """Have the server parse a text as one command, which runs nothing; returns what was sent. Raises as `send`."""
    sent = sendable(text).encode()
    with _together(connection):
        pin(connection)
        result = connection.pgconn.prepare(b"", sent)
    if result.status != ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(result)
    return sent


def _together(connection: psycopg.Connection[Any]) -> AbstractContextManager[object]:
    """One transaction for the settings and their text, where a pooler could give each of them another session."""
    alone = connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE
    return connection.transaction() if alone and isinstance(connection, Pooled) else nullcontext()


def pin(connection: psycopg.Connection[Any]) -> None:
    """Have the server read texts as perfkit does: in this transaction, or outside of one in this session.

    The server is asked before each text, in the text's own transaction: what ran before may have changed a setting,
    and behind a pooler the next transaction may be another session's. Raises ServerError for any other answer.
    """
    local = not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE
    answer = connection.cursor(row_factory=tuple_row).execute(_PIN, {"local": local}).fetchone()
    if answer != (expected := tuple(READING.values())):
        raise ServerError(f"{', '.join(READING)}: the server answers {answer}; expected {expected}")
    require_reading(connection.pgconn)


def require_reading(pgconn: Any) -> None:
    """Raise ServerError unless the server has reported to this connection that it reads texts as perfkit does."""
    for name, value in READING.items():
        reported = (pgconn.parameter_status(name.encode()) or b"").decode("utf-8", "replace")
        if reported.upper() != value.upper():  # a pooler repeats a client's own spelling
            raise ServerError(f"{name}: the server reports {reported!r}; expected {value!r}, or it would misread texts")
