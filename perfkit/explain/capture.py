"""Plans obtained: EXPLAIN run on a server behind its guards, or read from files, psql output and logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from shlex import quote
from typing import Any

import psycopg
from psycopg import sql
from psycopg.adapt import Buffer, Loader
from psycopg.rows import tuple_row

from perfkit.base.errors import Interrupted, PlanError, TargetRefused, UsageError, first_line
from perfkit.explain.documents import Raw, list_nodes, one_statement, parse
from perfkit.explain.facts import PlanFacts, fetched, parsed, read_facts
from perfkit.explain.plan import Plan, read_plan
from perfkit.postgres import catalog
from perfkit.postgres.capabilities import allowing
from perfkit.postgres.catalog import LOCK_S, Connection, holders
from perfkit.postgres.commands import exact, send, send_unbound
from perfkit.postgres.servers import External, Server
from perfkit.postgres.sqltext import first_word, split, tokens

Parameters = Mapping[str, object] | Sequence[object] | None
Cursor = psycopg.Cursor[tuple[object, ...]]
Connect = Callable[[], Connection]
READING = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
WRITING = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
# A written statement has kilobytes, one with a list of values perhaps 1 MB. A plan of 10,000 partitions with VERBOSE
# has about 20 MB. The planner folds constants: the plan of `SELECT repeat('a', 1000000000)` has 1 GB, which perfkit
# refuses to copy, parse or keep.
STATEMENT, PLAN = 2_000_000, 64_000_000  # bytes at most
_NAMED = re.compile(r"%\((\w+)\)s|%%")


class _WouldWrite(PlanError):
    """A statement that failed because its transaction is read-only."""


@dataclass(frozen=True, slots=True)
class ExplainSpec:
    """How a statement is explained; `generic`: the plan for any values, never executed.

    Raises UsageError for contradictory options and for limits that are not above 0.
    """

    analyze: bool = True
    generic: bool = False
    repeats: int = 2  # executions: the first finds the caches as they are, the last is shown
    timeout_s: float = 60.0
    writes: bool = False
    timing: bool = True
    serialize: bool = False  # since 17: include the conversion of the result for sending

    def __post_init__(self) -> None:
        if self.analyze and self.generic:
            raise UsageError("generic with analyze: a plan for any values cannot be executed; expected one of the two")
        if self.repeats < 1 or self.timeout_s <= 0:
            raise UsageError(f"repeats = {self.repeats}, timeout = {self.timeout_s:g}; expected more than 0")


@dataclass(frozen=True)
class Capture:
    """The plans of a statement, one for each execution, and the catalogue's facts about its tables, as JSON values."""

    plans: tuple[Plan, ...]
    tables: tuple[object, ...] = ()

    @property
    def plan(self) -> Plan:
        """The plan of the last execution, which found its data in memory if it fits."""
        return self.plans[-1]

    @property
    def first(self) -> Plan | None:
        """The plan of the first of several executions, with the caches as they were; None if there was only one."""
        return self.plans[0] if len(self.plans) > 1 else None

    @property
    def documents(self) -> tuple[list[Raw], ...]:
        """EXPLAIN's JSON of each execution."""
        return tuple([plan.document] for plan in self.plans)

    @cached_property
    def facts(self) -> PlanFacts:
        """The facts about its tables."""
        return read_facts(self.tables)


def capture(connect: Connect, sql: str, parameters: Parameters = None, options: ExplainSpec | None = None) -> Capture:
    """Explain one statement, with a new connection for each execution.

    With ANALYZE the statement is executed, each time in a transaction that is rolled back. The transaction is read-only
    unless `options.writes` allows writes and the statement needs them. Parameters are a mapping for `%(name)s` or a
    sequence for `$1` or `%s`. Raises PlanError if the text is not one statement that can be planned, if it writes
    without permission, and with the server's message if it fails.
    """
    options = options or ExplainSpec()
    text = single(sql)
    plans: list[Plan] = []
    repeats = options.repeats if options.analyze else 1
    read_only = first_word(text) not in WRITING or not options.writes
    while len(plans) < repeats:
        try:
            with session(connect, options.timeout_s, read_only=read_only) as connection:
                raw = explain_json(connection, text, parameters, options)
        except _WouldWrite:
            if not (read_only and options.writes):
                raise
            read_only = False  # a CTE or function writes, or rows are locked, which is allowed
        else:
            plans.append(_read(raw, forced=options.generic))
    with session(connect, options.timeout_s) as connection:
        tables = fetched(connection, plans[-1])
    return Capture(tuple(plans), tuple(parsed(tables)))


def require_statement(sql: str) -> None:
    """Raise PlanError for a statement that is too long."""
    if len(sql) > STATEMENT // 4 and (size := len(sql.encode("utf-8", "replace"))) > STATEMENT:
        raise PlanError(f"a statement of {size / 1e6:,.1f} MB; expected at most {STATEMENT / 1e6:,.0f} MB")


def require_plan(size: int) -> None:
    """Raise PlanError for a plan of too many bytes."""
    if size > PLAN:
        raise PlanError(
            f"a plan of {size / 1e6:,.0f} MB; expected at most {PLAN / 1e6:,.0f} MB (a long constant in the statement? "
            "the planner writes it out)"
        )


class _Unparsed(Loader):
    def load(self, data: Buffer) -> bytes:
        require_plan(len(data))
        return bytes(data)


def raw_json(connection: Connection) -> None:
    """Make a connection return JSON unparsed, so that no transaction stays open while it is parsed."""
    connection.adapters.register_loader("json", _Unparsed)


@contextmanager
def session(connect: Connect, timeout_s: float, *, read_only: bool = True) -> Iterator[Connection]:
    """Open a transaction with time limits on a new connection, and roll it back at the end. Raises Interrupted."""
    try:
        with connect() as connection:
            connection.autocommit = False
            connection.read_only = read_only
            raw_json(connection)
            set_limits(connection, timeout_s)
            yield connection
            connection.rollback()
    except KeyboardInterrupt:  # psycopg raises it after cancelling the statement
        raise Interrupted("interrupted; the statement was cancelled on the server") from None
    except psycopg.Error as error:
        kind = _WouldWrite if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) else PlanError
        raise marked(kind(f"EXPLAIN failed: {first_line(error)}{holders(connect, error)}"), error) from None


def set_limits(connection: Connection, timeout_s: float) -> None:
    """Limit the statements of the transaction that begins here, and their waits for locks."""
    limits = {"statement_timeout": timeout_s, "lock_timeout": min(timeout_s, LOCK_S)}
    for limit, seconds in limits.items():
        connection.execute(f"SET LOCAL {limit} = {max(1, int(seconds * 1000))}")  # 0 means no limit


def marked(refusal: PlanError, error: psycopg.Error) -> PlanError:
    """Add notes to an error: the statement's line with a mark where the server stopped, and the server's hint."""
    for line, below in pairwise(str(error).splitlines()):
        if below.strip() == "^" and (label := re.match(r"\S+ \d+: ", line)):  # its number counts EXPLAIN too
            refusal.add_note("\n".join(f"    {shown[label.end() :]}" for shown in (line, below)))
    if error.diag.message_hint:
        refusal.add_note(f"hint: {error.diag.message_hint}")
    return refusal


@lru_cache(maxsize=8)  # a guard, the capture and a rule check the same statement in turn
def single(sql: str) -> str:
    """Return the text of the one statement. Raises PlanError if there is not exactly one, or if it has no plan."""
    require_statement(sql)
    if len(statements := split(sql)) != 1:
        raise PlanError(f"EXPLAIN takes one statement; found {len(statements)}")
    if (word := first_word(statements[0].text)) not in READING | WRITING:
        raise PlanError(
            f"{word or 'this statement'} cannot be explained; expected SELECT, INSERT, UPDATE, DELETE or MERGE"
        )
    return statements[0].text


def numbered(sql: str) -> str:
    """Return a statement with `$1`, `$2`, ... for its `%(name)s`, one number for each name.

    >>> numbered("SELECT %(a)s, %(b)s, %(a)s WHERE x LIKE '%%y'")
    "SELECT $1, $2, $1 WHERE x LIKE '%y'"
    """
    names = named(sql)
    return _NAMED.sub(lambda m: f"${names.index(m[1]) + 1}" if m[1] else "%", sql) if names else sql


def cursor_for(connection: Connection, text: str, parameters: Parameters) -> Cursor:
    """Return a cursor for these parameters as the statement writes them, with rows as tuples.

    The cursor has the connection's own class, which may write an audit.
    """
    made: type[psycopg.Cursor[Any]] = connection.cursor_factory
    if isinstance(parameters, Sequence) and re.search(r"\$\d", text):
        made = type("Numbered", (psycopg.RawCursor, made), {})
    return made(connection, row_factory=tuple_row)


def named(sql: str) -> list[str]:
    """Return the distinct names of a statement's `%(name)s`."""
    return list(dict.fromkeys(m[1] for m in _NAMED.finditer(sql) if m[1]))


def explained(
    connection: Connection, text: str, parameters: Parameters, options: ExplainSpec, *, forced: bool = False
) -> Plan:
    """Return the plan of one EXPLAIN; `forced`: perfkit made the server use the generic plan."""
    return _read(explain_json(connection, text, parameters, options), forced=forced or options.generic)


def _read(raw: bytes, *, forced: bool) -> Plan:
    """Return the plan of EXPLAIN's JSON, without the setting by which perfkit forced it. Raises PlanError."""
    document = parse(raw)
    if forced and isinstance(settings := one_statement(document).get("Settings"), dict):
        settings.pop("plan_cache_mode", None)
    return read_plan(document)


def explain_json(connection: Connection, text: str, parameters: Parameters, options: ExplainSpec) -> bytes:
    """Return EXPLAIN's JSON unparsed, so that no transaction stays open while it is parsed."""
    version = connection.info.server_version // 10_000
    if options.generic:
        return _generic(connection, numbered(text), version)
    explain = f"EXPLAIN ({_wanted(options, version, text)})\n{text}"  # the lines stay unchanged, for error positions
    cursor, values = cursor_for(connection, text, parameters), exact(parameters)
    if options.analyze:  # warm the new connection's catalogue cache, whose loading would count as planning time
        # With options in parentheses no ANALYZE can follow, whatever the text begins with.
        send(cursor, f"EXPLAIN (FORMAT JSON)\n{text}", values)
    return _document(send(cursor, explain, values))


def _generic(connection: Connection, text: str, version: int) -> bytes:
    """Return the plan for any values: by GENERIC_PLAN since 16, before by a prepared statement."""
    cursor = connection.cursor(row_factory=tuple_row)
    if version >= 16:
        unbound = f"EXPLAIN (GENERIC_PLAN, VERBOSE, SETTINGS, FORMAT JSON)\n{text}"
        return _document(send_unbound(cursor, unbound))
    count = max((int(number) for number in re.findall(r"\$(\d+)", text)), default=0)
    cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    send(cursor, f"PREPARE perfkit_generic AS\n{text}")
    values = f"({', '.join(['NULL'] * count)})" if count else ""
    raw = _document(send(cursor, f"EXPLAIN (VERBOSE, SETTINGS, FORMAT JSON) EXECUTE perfkit_generic{values}", None))
    cursor.execute("DEALLOCATE perfkit_generic")
    return raw


def _wanted(options: ExplainSpec, version: int, text: str) -> str:
    """Return the options of EXPLAIN that this version supports."""
    wanted = ["VERBOSE", "SETTINGS", "FORMAT JSON"]
    if version >= 17:
        wanted.insert(0, "MEMORY")
    if options.analyze:
        wanted = ["ANALYZE", "BUFFERS", *wanted]
        wanted += ["WAL"] if first_word(text) in WRITING else []
        wanted += [] if options.timing else ["TIMING OFF"]
        wanted += ["SERIALIZE TEXT"] if options.serialize and version >= 17 else []
    return ", ".join(wanted)


def _document(cursor: Cursor) -> bytes:
    row = cursor.fetchone()
    return row[0] if row and isinstance(row[0], bytes) else b""


# The effects of a statement besides reading, found without executing it.

# Possessive quantifiers: every word is taken whole, so that a text is scanned in linear time.
_WORD = re.compile(r'("(?:[^"]|"")++"|[^\W\d][\w$]*+)(\s*+\()?')
_SYMBOL = re.compile(r"[-+*/<>=~!@#%^&|`?]+")
_NAME_BYTES = 63  # the server cuts longer names
# Volatile because their result changes, although they change nothing.
_HARMLESS = frozenset(
    {"clock_timestamp", "gen_random_uuid", "random", "random_normal", "timeofday", "uuidv4", "uuidv7"}
)


@dataclass(frozen=True, slots=True)
class Effects:
    """Whether a statement writes or locks rows, and which volatile functions it may call."""

    writes: bool
    locks: bool
    volatile: tuple[str, ...]


def guarded(
    server: Server,
    connect: Connect,
    sql: str,
    parameters: Parameters,
    options: ExplainSpec,
    volatile: Collection[str] = (),
) -> Capture:
    """Explain a statement after checking that its execution is harmless, on servers that perfkit did not start.

    Raises PlanError, and TargetRefused if the statement writes or calls a volatile function without permission.
    """
    writable = "writes" in server.permissions
    if isinstance(server, External) and options.analyze:
        require_harmless(
            effects(connect, sql, parameters),
            writes_allowed=writable,
            volatile_allowed=volatile,
            where=server.name,
            allow=allowing(server, "writes"),
        )
    return capture(connect, sql, parameters, replace(options, writes=writable))


def effects(connect: Connect, statement: str, parameters: Parameters) -> Effects:
    """Return the effects of one statement from its plan, made in a read-only transaction without executing it.

    Functions are found by name in the statement, in its verbose plan, and recursively in the views, functions,
    operators, casts and domains named there. Not seen: the body of a function in a language other than SQL and
    PL/pgSQL, and dynamic SQL. No transaction is open while a plan or a lookup is parsed. Raises PlanError if the
    statement cannot be planned.
    """
    text = single(statement)
    try:
        with connect() as connection:
            connection.autocommit = False
            raw_json(connection)
            cursor = connection.cursor(row_factory=tuple_row)
            cursor.execute("SET TRANSACTION READ ONLY")  # the planner may try functions not declared volatile
            planned = cursor_for(connection, text, parameters)
            send(planned, f"EXPLAIN (VERBOSE, FORMAT JSON)\n{text}", exact(parameters))
            raw = _document(planned)
            connection.rollback()
            nodes, _ = list_nodes(one_statement(parse(raw))["Plan"])  # with all of their texts, uncut
            volatile = _volatile(cursor, _called(text), [text, *(part for node in nodes for part in _planned(node))])
    except psycopg.Error as error:
        raise marked(PlanError(f"cannot be planned: {first_line(error)}{holders(connect, error)}"), error) from None
    kinds = {node["Node Type"] for node in nodes}
    return Effects("ModifyTable" in kinds or first_word(text) in WRITING, "LockRows" in kinds, volatile)


def require_harmless(
    found: Effects, *, writes_allowed: bool, volatile_allowed: Collection[str], where: str, allow: str = "perfkit allow"
) -> None:
    """Raise TargetRefused for effects without permission; `allow` is the command by which an owner allows writes."""
    if (found.writes or found.locks) and not writes_allowed:
        what = "writes" if found.writes else "locks rows"
        raise TargetRefused(f"{where}: a statement {what}; the owner can allow this with: {allow}")
    allowed = {name.lower() for name in volatile_allowed}
    unknown = [name for name in found.volatile if not {name.lower(), name.lower().split(".")[-1]} & allowed]
    if unknown:
        raise TargetRefused(
            f"{where}: a statement calls volatile {', '.join(unknown)}; if it may: 'volatile' in [database], or "
            + " ".join(f"--volatile {quote(name)}" for name in unknown)
        )


def _volatile(cursor: Cursor, calls: set[str], texts: Iterable[str]) -> tuple[str, ...]:
    """Return volatile functions in the calls and texts, and recursively in the objects that these name."""
    found: set[str] = set()
    seen: set[str] = set()
    while new := set(texts) - seen:
        seen |= new
        words = [found for text in new for found in _WORD.findall(text)]
        asked = {
            "calls": calls | {_plain(name) for name, call in words if call},
            "words": {_plain(name) for name, _ in words},
            "symbols": {cut for text in new for all_ in _SYMBOL.findall(text) for cut in (all_, all_.rstrip("+-"))},
        }
        names = {name: sorted({_as_stored(value) for value in values}) for name, values in asked.items()}
        cursor.execute("SET LOCAL search_path = pg_catalog")  # an arm's may put other tables before the catalogue
        rows = cursor.execute(catalog.get("volatile").encode(), names).fetchall()
        cursor.connection.rollback()
        found |= {str(name) for name, volatile, _ in rows if volatile}
        texts = {str(text) for _, _, text in rows if text}
    return tuple(sorted(found - _HARMLESS))


def _called(text: str) -> set[str]:
    """Return the names before a parenthesis in a statement, as the server keeps them; strings and comments hold none.

    Raises PlanError for a name in the form U&"...", which hides what is called.
    """
    names = set()
    for token, following in pairwise(tokens(text)):
        if token.kind == "quoted" and token.text[0] in "uU":
            raise PlanError('U&"..." hides a name; expected it written out')
        if following.text == "(" and token.kind in ("word", "quoted"):
            names.add(token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text.lower())
    return names


def _planned(node: Raw) -> Iterator[str]:
    """Yield a node's expressions, and a call of the function that it scans."""
    if name := node.get("Function Name"):
        yield f"{sql.Identifier(str(name)).as_string()}()"
    for key, value in node.items():
        if key != "Plans":
            yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str))


def _as_stored(name: str) -> str:
    """Return a name as the server stores it, cut to its maximum length."""
    return name if len(name) <= _NAME_BYTES // 4 else name.encode()[:_NAME_BYTES].decode("utf-8", "ignore")


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
