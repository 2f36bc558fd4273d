"""Text on its way to a server: as one command, which the server itself sees to, and read as perfkit reads it.

A text that perfkit did not write (a user's, a file's, a log's, a bundle's) may hold a second command that perfkit's
own reading of the text does not see. Such a text goes by the extended protocol, in which the server refuses a second
command before it runs the first ("cannot insert multiple commands into a prepared statement"), never by the simple
protocol, in which the server runs them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import tuple_row

from perfkit.errors import ServerError
from perfkit.postgres.limits import Pooled
from perfkit.postgres.parameters import sendable

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
