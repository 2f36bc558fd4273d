"""Texts sent to a server as one command each, and their parameters.

A text that perfkit did not write (from a user, a file, a log, a bundle) may hold a second command that perfkit does
not see when it reads the text. perfkit sends such a text by the extended protocol only, in which the server refuses a
second command before it runs the first ("cannot insert multiple commands into a prepared statement"). In the simple
protocol the server would run them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import tuple_row

from perfkit.base.errors import ServerError, UsageError, first_line
from perfkit.postgres.catalog import AnyConnection, Pooled
from perfkit.postgres.sqltext import Token, scan, sendable

CursorRow = TypeVar("CursorRow")

# The settings that decide where a string ends, and therefore where a command ends. Other settings for texts only refuse
# a text (backslash_quote), warn of one (escape_string_warning), or belong to the application whose plans are measured
# (search_path, transform_null_equals).
READING = {"standard_conforming_strings": "on", "client_encoding": "UTF8"}
_PIN = "SELECT " + ", ".join(f"set_config('{name}', '{value}', %(local)s)" for name, value in READING.items())


class Extended(psycopg.Cursor[CursorRow]):
    """A cursor that uses only the extended protocol; every connection that perfkit opens creates such cursors."""

    parsed: bytes | None = None  # the text that the server has just parsed as one command, see `send_unbound`

    def _execute_send(self, query: Any, *, force_extended: bool = False, binary: bool | None = None) -> None:
        # psycopg chooses the protocol only here: the simple one for a statement without parameters.
        super()._execute_send(query, force_extended=query.query != self.parsed, binary=binary)


# Otherwise the method above would override nothing, and the guard would be gone.
if not hasattr(psycopg.Cursor[object], "_execute_send"):
    raise ImportError(f"psycopg {psycopg.__version__}; expected a version whose Cursor has _execute_send")


def _cursor(cursor: psycopg.Cursor[CursorRow]) -> Extended[CursorRow]:
    if not isinstance(cursor, Extended):
        raise TypeError(f"{type(cursor).__name__}; expected a cursor that uses only the extended protocol")
    return cursor


def send(
    cursor: psycopg.Cursor[CursorRow], text: str, parameters: Mapping[str, object] | Sequence[object] | None = None
) -> psycopg.Cursor[CursorRow]:
    """Send a text that perfkit did not write; return its cursor. Without parameters, `%` has no special meaning.

    Raises UsageError for a text that no server accepts, ServerError unless the server reads the text as perfkit does,
    psycopg.Error if the server refuses the text, for example because of a second command.
    """
    sent = sendable(text).encode()
    with _together(cursor.connection):
        pin(cursor.connection)
        return _cursor(cursor).execute(sent, parameters)


def send_unbound(cursor: psycopg.Cursor[CursorRow], text: str) -> psycopg.Cursor[CursorRow]:
    """Send a text with `$1`, `$2`, ... but without values, which only EXPLAIN (GENERIC_PLAN) accepts.

    The extended protocol demands values, and with values the plan would not be generic. So the server first parses
    exactly the same bytes by that protocol, in the same transaction, and refuses a second command there. Raises as
    `send`.
    """
    unbound = _cursor(cursor)
    with _together(cursor.connection):
        unbound.parsed = parse(cursor.connection, text)
        try:
            return cursor.execute(unbound.parsed)
        finally:
            unbound.parsed = None


def parse(connection: AnyConnection, text: str) -> bytes:
    """Have the server parse a text as one command without running it; return the bytes sent. Raises as `send`."""
    sent = sendable(text).encode()
    with _together(connection):
        pin(connection)
        result = connection.pgconn.prepare(b"", sent)
    if result.status != ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(result)
    return sent


def _together(connection: AnyConnection) -> AbstractContextManager[object]:
    """Return a transaction for the settings and their text if a pooler could run them in different sessions."""
    alone = connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE
    return connection.transaction() if alone and isinstance(connection, Pooled) else nullcontext()


def pin(connection: AnyConnection) -> None:
    """Make the server read texts as perfkit does: for this transaction, or for this session outside a transaction.

    perfkit does this before each text, in the text's own transaction: an earlier statement may have changed a setting,
    and behind a pooler the next transaction may run in another session. Raises ServerError for any other answer.
    """
    local = not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE
    answer = connection.cursor(row_factory=tuple_row).execute(_PIN, {"local": local}).fetchone()
    if answer != (expected := tuple(READING.values())):
        raise ServerError(f"{', '.join(READING)}: the server answers {answer}; expected {expected}")
    require_reading(connection.pgconn)


def require_reading(pgconn: PGconn) -> None:
    """Raise ServerError unless the server has reported that it reads texts as perfkit does."""
    for name, value in READING.items():
        reported = (pgconn.parameter_status(name.encode()) or b"").decode("utf-8", "replace")
        if reported.upper() != value.upper():  # a pooler repeats the client's spelling
            raise ServerError(
                f"{name}: the server reports {reported!r}; expected {value!r}, so that it reads texts as perfkit does"
            )


# Values of parameters, and settings of a session, as the server takes them.


def exact(row: Mapping[str, object] | Sequence[object] | None) -> dict[str, object] | list[object] | None:
    """Return the parameters with decimals for floats: `numeric_column = 1.5::float8` could not use an index.

    The server converts a decimal to the type of a column, but never a column to the type of a decimal.
    Raises UsageError for text that no server accepts.
    """
    if isinstance(row, Mapping):
        return {name: _exact(value) for name, value in row.items()}
    return None if row is None else [_exact(value) for value in row]


def texts(values: Sequence[object]) -> tuple[str | None, ...]:
    """Return values in the server's text format. Raises UsageError for a value without such a format.

    >>> texts([7, None, True, [1, 2], "a'b"])
    ('7', None, 't', '{1,2}', "a'b")
    """
    try:
        sent = Transformer().dump_sequence([_exact(value) for value in values], [PyFormat.TEXT] * len(values))
    except psycopg.Error as error:
        raise UsageError(f"parameters that cannot be sent: {first_line(error)}") from None
    return tuple(None if value is None else bytes(value).decode() for value in sent)


def array_literal(texts: Iterable[str]) -> str:
    r"""Return an array as PostgreSQL writes it.

    >>> array_literal(["a", 'b"c'])
    '{"a","b\\"c"}'
    """
    inner = (text.replace("\\", r"\\").replace('"', r"\"") for text in texts)
    return "{" + ",".join(f'"{text}"' for text in inner) + "}"


def options(settings: Mapping[str, str]) -> str:
    r"""Return settings in the form of libpq's `options`.

    >>> options({"work_mem": "64MB", "search_path": "a, b"})
    '-c work_mem=64MB -c search_path=a,\\ b'
    """
    return " ".join(f"-c {name}=" + re.sub(r"([\\\s])", r"\\\1", value) for name, value in settings.items())


def number(text: str) -> float | str:
    """Return a JSON number with a fraction or exponent; as text if a float cannot hold all its digits."""
    value = float(text)
    return value if Decimal(repr(value)) == Decimal(text) else text


def _exact(value: object) -> object:
    if isinstance(value, list):
        return [_exact(item) for item in value]
    if isinstance(value, str):
        return sendable(value, "a parameter")
    return Decimal(repr(value)) if isinstance(value, float) else value


# Placeholders by name, as psycopg writes them, in the form that a server or pgbench takes.

_PLACEHOLDER = re.compile(r"%(?:(%)|\((\w+)\)[stb]|.|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Placed:
    """A statement with its placeholders replaced, and their names, each once, in order."""

    text: str
    names: tuple[str, ...]


def numbered(sql: str) -> Placed:
    """Replace placeholders by those of the server. Raises ValueError for a placeholder without a name.

    >>> numbered("SELECT %(b)s, %(a)s, %(b)s, 10 %% 3")
    Placed(text='SELECT $1, $2, $1, 10 % 3', names=('b', 'a'))
    """
    return _placed(sql, lambda _, number: f"${number}")


def named(sql: str) -> Placed:
    """Replace placeholders by variables of pgbench. Raises ValueError for a placeholder without a name.

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


# Placeholders `$1`, `$2`, ... in a statement: their positions, their values in an execution, and psycopg's form.

_FIXED = {"limit": "10", "first": "10", "next": "10", "offset": "0", "zone": "UTC", "escape": "\\"}  # after a word
_UNITS = frozenset({"date_trunc", "date_part"})  # functions whose first argument is a unit of time
_WORDS = {"true": "true", "false": "false", "null": None}


def placeholders(text: str) -> tuple[int, ...]:
    """Return the numbers of a text's placeholders, each once, in order.

    >>> placeholders("SELECT $2, '$3', $$ $4 $$ -- $5")
    (2,)
    """
    return tuple(sorted(set(placed(text))))


def placed(text: str) -> list[int]:
    """Return the number of every placeholder, in the order of the text."""
    return [token.number for token in scan(text) if token.kind == "parameter"]


def named_placeholders(text: str) -> str:
    """Return the text with `%(p1)s` for `$1` and `%%` for `%`; unchanged if it has no placeholder.

    >>> named_placeholders("SELECT $1 WHERE x LIKE 'a%' AND y = $1")
    "SELECT %(p1)s WHERE x LIKE 'a%%' AND y = %(p1)s"
    """
    if not placeholders(text):
        return text
    parts = (f"%(p{x.number})s" if x.kind == "parameter" else x.text.replace("%", "%%") for x in scan(text))
    return "".join(parts)


def fixed(text: str) -> dict[int, tuple[str, str]]:
    """Return placeholders in positions that restrict their values: a suitable value, and the keyword before it.

    >>> fixed("SELECT date_trunc($1, x) FROM t LIMIT $2")
    {1: ('day', 'DATE_TRUNC'), 2: ('10', 'LIMIT')}
    """
    values: dict[int, tuple[str, str]] = {}
    before = ["", ""]
    for token in scan(text, blanks=False):
        if token.kind == "parameter":
            if value := _FIXED.get(before[-1]):
                values[token.number] = value, before[-1].upper()
            elif before[-1] == "(" and before[-2] in _UNITS:
                values[token.number] = "day", before[-2].upper()
        before = [before[-1], token.word]
    return values


def aligned(text: str, example: str, parameters: Sequence[str | None] = ()) -> dict[int, str | None] | None:
    """Return the values of a text's placeholders in one execution: constants, or the execution's `parameters`.

    Return None if the two are not the same statement, piece by piece.

    >>> aligned("SELECT $1 FROM t WHERE a = $2 AND b = $3", "select 'it''s' from t where a = -5 and b = $1", ["x"])
    {1: "it's", 2: '-5', 3: 'x'}
    """
    values: dict[int, str | None] = {}
    rest = _meaning(example)[::-1]
    for token in _meaning(text):
        try:
            if token.kind != "parameter":
                if rest.pop().word != token.word:
                    return None
                continue
            value = _constant(rest, parameters)
        except (ValueError, IndexError):
            return None
        if values.setdefault(token.number, value) != value:
            return None
    return None if rest else values


def _meaning(text: str) -> list[Token]:
    """Return the tokens without spaces and semicolons at the end."""
    pieces = [*scan(text, blanks=False)]
    while pieces and pieces[-1].text == ";":
        pieces.pop()
    return pieces


def _constant(rest: list[Token], parameters: Sequence[str | None]) -> str | None:
    """Pop the next constant of a reversed list. Raises ValueError or IndexError if there is none."""
    first = rest.pop()
    if first.kind == "parameter":
        return parameters[first.number - 1]
    if first.text == "-" and rest[-1].kind == "number":
        return f"-{rest.pop().text}"
    if first.kind == "number":
        return first.text
    if first.word in _WORDS:
        return _WORDS[first.word]
    if first.kind != "string" or first.text[0] not in "eE'$" or (first.text[0] in "eE" and "\\" in first.text):
        raise ValueError(first.text)
    quoted = first.text.lstrip("eE")
    if quoted.startswith("'"):
        return quoted[1:-1].replace("''", "'")
    tag = quoted.index("$", 1) + 1
    return quoted[tag:-tag]
