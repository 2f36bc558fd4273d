"""EXPLAIN as raw JSON, safely: one statement, time limits, and nothing of it stays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from perfkit.errors import Interrupted, PlanError, UsageError
from perfkit.explain.bounds import document, raw_json, require_statement
from perfkit.explain.facts import PlanFacts, fetched, parsed, read_facts
from perfkit.explain.fingerprint import fingerprint
from perfkit.explain.plan import Plan, read_plan
from perfkit.postgres.extended import send, send_unbound
from perfkit.postgres.limits import LOCK_S, holders
from perfkit.postgres.parameters import exact
from perfkit.postgres.statements import first_word, split
from perfkit.text import first_line

Parameters = Mapping[str, Any] | Sequence[Any] | None
Connect = Callable[[], psycopg.Connection[Any]]
READING = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
WRITING = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_NAMED = re.compile(r"%\((\w+)\)s|%%")


class _WouldWrite(PlanError):
    """A statement that a read-only transaction refuses."""


@dataclass(frozen=True, slots=True)
class ExplainSpec:
    """How a statement is explained. `generic`: as a prepared statement's plan, without values and never executed.

    Raises UsageError for what cannot be meant.
    """

    analyze: bool = True
    generic: bool = False
    repeats: int = 2  # executions; the first finds the caches as they are, the last is shown
    timeout_s: float = 60.0
    writes: bool = False
    timing: bool = True
    serialize: bool = False  # since 17: include making the result ready to be sent

    def __post_init__(self) -> None:
        if self.analyze and self.generic:
            raise UsageError("generic with analyze: a plan for any values cannot be executed; expected one of them")
        if self.repeats < 1 or self.timeout_s <= 0:
            raise UsageError(f"repeats = {self.repeats}, timeout = {self.timeout_s:g}; expected more than 0")


@dataclass(frozen=True, slots=True)
class Capture:
    """A statement's plans as they came, one for each execution, and what the catalogue says of its tables."""

    documents: tuple[Any, ...]
    tables: tuple[Any, ...]

    @property
    def plan(self) -> Plan:
        """The plan of the last execution, which found its data in memory where it fits."""
        return read_plan(self.documents[-1])

    @property
    def first(self) -> Plan:
        """The plan of the first execution, with the caches as they were."""
        return read_plan(self.documents[0])

    @property
    def facts(self) -> PlanFacts:
        """The facts about its tables."""
        return read_facts(self.tables)


def capture(connect: Connect, sql: str, parameters: Parameters = None, options: ExplainSpec | None = None) -> Capture:
    """EXPLAIN of one statement, on a connection for each execution.

    With ANALYZE the statement really runs, each time in a transaction that is rolled back. It is read-only, unless
    `options.writes` and the statement writes. Parameters: a mapping for `%(name)s`, a sequence for `$1` or `%s`.
    Raises PlanError for anything but one statement that can be planned, for one that writes where it may not,
    and with the server's own words when it fails.
    """
    options = options or ExplainSpec()
    text = single(sql)
    documents: list[Any] = []
    repeats = options.repeats if options.analyze else 1
    read_only = first_word(text) not in WRITING or not options.writes
    while len(documents) < repeats:
        try:
            with session(connect, options.timeout_s, read_only=read_only) as connection:
                raw = _fetched(connection, text, parameters, options)
        except _WouldWrite:
            if not (read_only and options.writes):
                raise
            read_only = False  # a CTE, a function or a lock, and it may
        else:
            documents.append(_read(raw, options))
    plan = read_plan(documents[-1])
    with session(connect, options.timeout_s) as connection:
        tables = fetched(connection, plan)
    return Capture(tuple(documents), tuple(parsed(tables)))


PLANNED = 15  # parameter rows that are planned to find the plan that most of them get


def typical_parameters(connect: Connect, sql: str, rows: Sequence[Parameters]) -> Parameters:
    """The first of the rows whose plan is that of most rows; nothing is executed."""
    with session(connect, 60.0) as connection:
        plans = [_fetched(connection, single(sql), row, ExplainSpec(analyze=False)) for row in rows]
    shapes = [fingerprint(read_plan(document(plan))) for plan in plans]
    most, _ = Counter(shapes).most_common(1)[0]
    return rows[shapes.index(most)]


@contextmanager
def session(connect: Connect, timeout_s: float, *, read_only: bool = True) -> Iterator[psycopg.Connection[Any]]:
    """A transaction with time limits on a connection of its own, rolled back at the end. Raises Interrupted."""
    try:
        with connect() as connection:
            connection.autocommit = False
            connection.read_only = read_only
            raw_json(connection)
            limits = {"statement_timeout": timeout_s, "lock_timeout": min(timeout_s, LOCK_S)}
            for limit, seconds in limits.items():
                connection.execute(f"SET LOCAL {limit} = {max(1, int(seconds * 1000))}")  # 0 is none
            yield connection
            connection.rollback()
    except KeyboardInterrupt:  # which psycopg raises when it has cancelled what ran
        raise Interrupted("interrupted; the statement was cancelled on the server") from None
    except psycopg.Error as error:
        kind = _WouldWrite if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) else PlanError
        raise marked(kind(f"EXPLAIN failed: {first_line(error)}{holders(connect, error)}"), error) from None


def marked(refusal: PlanError, error: psycopg.Error) -> PlanError:
    """A refusal with notes: the statement's line with a mark below where the server stopped, and the server's hint."""
    for line, below in pairwise(str(error).splitlines()):
        if below.strip() == "^" and (label := re.match(r"\S+ \d+: ", line)):  # its number counts what was put before
            refusal.add_note("\n".join(f"    {shown[label.end() :]}" for shown in (line, below)))
    if error.diag.message_hint:
        refusal.add_note(f"hint: {error.diag.message_hint}")
    return refusal


@lru_cache(maxsize=8)  # a guard, the capture and a rule ask for the same statement in turn
def single(sql: str) -> str:
    """The text of the one statement. Raises PlanError for none, several, or one that is too long or has no plan."""
    require_statement(sql)
    if len(statements := split(sql)) != 1:
        raise PlanError(f"EXPLAIN takes one statement; found {len(statements)}")
    if (word := first_word(statements[0].text)) not in READING | WRITING:
        raise PlanError(f"{word or 'this'} has no plan; expected SELECT, INSERT, UPDATE, DELETE or MERGE")
    return statements[0].text


def numbered(sql: str) -> str:
    """A statement with `$1`, `$2`, ... for its `%(name)s`, one number for each name.

    >>> numbered("SELECT %(a)s, %(b)s, %(a)s WHERE x LIKE '%%y'")
    "SELECT $1, $2, $1 WHERE x LIKE '%y'"
    """
    names = named(sql)
    return _NAMED.sub(lambda m: f"${names.index(m[1]) + 1}" if m[1] else "%", sql) if names else sql


def cursor_for(connection: psycopg.Connection[Any], text: str, parameters: Parameters) -> psycopg.Cursor[Any]:
    """A cursor that takes these parameters as the statement names them; rows come as tuples.

    It is of the connection's own kind, which may be one that writes an audit.
    """
    made: Any = connection.cursor_factory
    if isinstance(parameters, Sequence) and re.search(r"\$\d", text):
        made = type("Numbered", (psycopg.RawCursor, made), {})
    cursor: psycopg.Cursor[Any] = made(connection, row_factory=tuple_row)
    return cursor


def named(sql: str) -> list[str]:
    """The names of a statement's `%(name)s`, each once."""
    return list(dict.fromkeys(m[1] for m in _NAMED.finditer(sql) if m[1]))


def explained(connection: psycopg.Connection[Any], text: str, parameters: Parameters, options: ExplainSpec) -> Any:
    """One EXPLAIN's document."""
    return _read(_fetched(connection, text, parameters, options), options)


def _read(raw: bytes, options: ExplainSpec) -> Any:
    """The document of what was fetched, without the setting that a generic plan takes before 16. Raises PlanError."""
    found = document(raw)
    if options.generic and found:
        found[0].get("Settings", {}).pop("plan_cache_mode", None)  # ours, not the server's
    return found


def _fetched(connection: psycopg.Connection[Any], text: str, parameters: Parameters, options: ExplainSpec) -> bytes:
    """One EXPLAIN's JSON as it comes, to be read when the transaction is over."""
    version = connection.info.server_version // 10_000
    if options.generic:
        return _generic(connection, numbered(text), version)
    explain = f"EXPLAIN ({_wanted(options, version, text)})\n{text}"  # whose lines stay as they are, for errors
    cursor, values = cursor_for(connection, text, parameters), exact(parameters)
    if options.analyze:  # or the planning time would be that of reading the catalogue into a new connection
        # With options in parentheses no ANALYZE can follow, whatever the text begins with.
        send(cursor, f"EXPLAIN (FORMAT JSON)\n{text}", values)
    return _first(cursor, explain, values)


def _generic(connection: psycopg.Connection[Any], text: str, version: int) -> bytes:
    """The plan for any values: EXPLAIN's own since 16; before, that of a prepared statement."""
    cursor = connection.cursor(row_factory=tuple_row)
    if version >= 16:
        unbound = f"EXPLAIN (GENERIC_PLAN, VERBOSE, SETTINGS, FORMAT JSON)\n{text}"
        return _document(send_unbound(cursor, unbound))
    count = max((int(number) for number in re.findall(r"\$(\d+)", text)), default=0)
    cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    send(cursor, f"PREPARE perfkit_generic AS\n{text}")
    values = f"({', '.join(['NULL'] * count)})" if count else ""
    raw = _first(cursor, f"EXPLAIN (VERBOSE, SETTINGS, FORMAT JSON) EXECUTE perfkit_generic{values}", None)
    cursor.execute("DEALLOCATE perfkit_generic")
    return raw


def _wanted(options: ExplainSpec, version: int, text: str) -> str:
    """EXPLAIN's options, as far as this version has them."""
    wanted = ["VERBOSE", "SETTINGS", "FORMAT JSON"]
    if version >= 17:
        wanted.insert(0, "MEMORY")
    if options.analyze:
        wanted = ["ANALYZE", "BUFFERS", *wanted]
        wanted += ["WAL"] if first_word(text) in WRITING else []
        wanted += [] if options.timing else ["TIMING OFF"]
        wanted += ["SERIALIZE TEXT"] if options.serialize and version >= 17 else []
    return ", ".join(wanted)


def _first(cursor: psycopg.Cursor[Any], sql: str, parameters: Any) -> bytes:
    return _document(send(cursor, sql, parameters))


def _document(cursor: psycopg.Cursor[Any]) -> bytes:
    row = cursor.fetchone()
    return row[0] if row else b""
