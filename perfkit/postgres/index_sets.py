"""Index sets as SQL: read, checked, compared with a database, and written again.

To examine a statement, perfkit runs it on an empty temporary table with the same columns, in a transaction that is
rolled back: the server itself checks columns, operator classes and expressions, and reports the definition. No lock is
taken on the user's table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn
from zlib import crc32

import psycopg

from perfkit.base.errors import UsageError, first_line
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection, Row
from perfkit.postgres.commands import parse, send
from perfkit.postgres.sqltext import Token, read, tokens

LOCK_WAIT = "10min"  # for transactions of others to end, which CONCURRENTLY waits for without blocking anyone
_LONGEST = 63  # bytes of a name


@dataclass(frozen=True, slots=True)
class IndexStatement:
    """One CREATE INDEX: `name` as the server stores it; the other parts as written."""

    text: str
    line: int
    name: str
    table: str
    unique: bool
    concurrently: bool
    if_not_exists: bool
    only: bool
    method: str
    keys: tuple[str, ...]
    include: tuple[str, ...]
    nulls_not_distinct: bool
    options: tuple[str, ...]
    tablespace: str
    where: str
    written: str = field(repr=False)  # the name as written, for use in SQL
    body: str = field(repr=False)  # everything after the table

    def sql(self, *, concurrently: bool, if_not_exists: bool = False) -> str:
        """Return the statement in the names form, with the index's name."""
        words = ["CREATE", "UNIQUE" * self.unique, "INDEX", "CONCURRENTLY" * concurrently]
        words += ["IF NOT EXISTS" * if_not_exists, self.written, "ON", "ONLY" * self.only, self.table, self.body]
        return " ".join(filter(None, words))

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the schema, if the statement has one, and of the index, as the server stores them."""
        return (*map(stored_name, _parts(self.table)[:-1]), self.name)

    @property
    def qualified(self) -> str:
        """The name as written, with the schema of the table if the statement has one."""
        return ".".join([*_parts(self.table)[:-1], self.written])


@dataclass(frozen=True, slots=True)
class IndexSet:
    """The contents of a file: its indexes and its ANALYZE statements, each in the order of the file."""

    path: Path
    indexes: tuple[IndexStatement, ...]
    analyze: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names of the indexes."""
        return [index.name for index in self.indexes]

    def rollback(self, *, concurrently: bool = True) -> str:
        """Return a DROP INDEX statement for each index, the last index first."""
        form = "DROP INDEX CONCURRENTLY IF EXISTS" if concurrently else "DROP INDEX IF EXISTS"
        return "".join(f"{form} {index.qualified};\n" for index in reversed(self.indexes))


def read_set(path: Path) -> IndexSet:
    """Parse a file. Raises UsageError with file and line for any other statement, or for a name used twice."""
    indexes: dict[tuple[str, ...], IndexStatement] = {}
    analyze = []
    for reader in _split(path, read(path)):
        if reader.take("ANALYZE") or reader.take("ANALYSE"):
            list(reader.analyzed())
            analyze.append(reader.text)
            continue
        index = reader.create_index()
        if before := indexes.get(index.key):
            expected = "expected every name once in a schema"
            raise UsageError(f"{path}:{index.line}: {index.name} is in line {before.line} already; {expected}")
        indexes[index.key] = index
    return IndexSet(path, tuple(indexes.values()), tuple(analyze))


def analyzed(path: Path, text: str) -> list[str]:
    """Return the tables that an ANALYZE names, as written."""
    [reader] = _split(path, text)
    reader.position = 1
    return list(reader.analyzed())


class _Reader:
    """The tokens of a statement, and the position of the next one to read."""

    def __init__(self, path: Path, source: str, tokens: list[Token]) -> None:
        self.path, self.source, self.tokens, self.position = path, source, tokens, 0
        self.text = source[tokens[0].start : tokens[-1].end]
        self.shown = self.text.splitlines()[0][:60]

    def line(self, token: Token) -> int:
        """Return the line of a token in the file."""
        return self.source.count("\n", 0, token.start) + 1

    def take(self, *words: str) -> bool:
        """Read these words if they are next; return whether they were."""
        upcoming = self.tokens[self.position : self.position + len(words)]
        match = [t.text.upper() if t.kind in ("word", "mark", "sign") else "" for t in upcoming] == list(words)
        self.position += len(words) if match else 0
        return match

    def expect(self, word: str, meaning: str = "") -> None:
        """Read this word, or refuse the statement."""
        if not self.take(word):
            self.refuse(meaning or word)

    def refuse(self, expected: str) -> NoReturn:
        """Raise UsageError at the next token."""
        at = self.tokens[min(self.position, len(self.tokens) - 1)]
        found = repr(at.text.splitlines()[0][:40]) if self.position < len(self.tokens) else "the end"
        raise UsageError(f"{self.path}:{self.line(at)}: {self.shown!r}: found {found}, expected {expected}")

    def name(self, what: str) -> str:
        """Read a name; return it as written."""
        if self.position == len(self.tokens) or self.tokens[self.position].kind not in ("word", "quoted"):
            self.refuse(what)
        self.position += 1
        return self.tokens[self.position - 1].text

    def table(self) -> tuple[str, bool]:
        """Read a table; return it with its schema, and whether ONLY precedes it."""
        only = self.take("ONLY")
        enclosed = only and self.take("(")
        parts = [self.name("a table")]
        while self.take("."):
            parts.append(self.name("a table"))
        if enclosed:
            self.expect(")")
        elif not only:
            self.take("*")
        return ".".join(parts), only

    def group(self, what: str) -> tuple[str, ...]:
        """Read parentheses; return the parts between them as written."""
        self.expect("(", what)
        depth, parts, start = 1, [], self.position
        while depth:
            if self.position == len(self.tokens):
                self.refuse("')'")
            token, self.position = self.tokens[self.position].text, self.position + 1
            depth += (token in ("(", "[")) - (token in (")", "]"))
            if depth == 0 or (depth == 1 and token == ","):
                self.position -= 1
                parts.append(self.since(start, what))
                self.position += 1
                start = self.position
        return tuple(parts)

    def since(self, start: int, what: str) -> str:
        """Return the text read since `start`, as written. Raises UsageError if it is empty."""
        if start == self.position:
            self.refuse(what)
        return self.source[self.tokens[start].start : self.tokens[self.position - 1].end]

    def analyzed(self) -> Iterator[str]:
        """Yield the tables of an ANALYZE."""
        if not self.take("VERBOSE") and [t.text for t in self.tokens[self.position : self.position + 1]] == ["("]:
            self.group("options")
        while self.position < len(self.tokens):
            yield self.table()[0]
            if [t.text for t in self.tokens[self.position : self.position + 1]] == ["("]:
                self.group("columns")
            if self.position < len(self.tokens):
                self.expect(",", "',' or the end")
                if self.position == len(self.tokens):
                    self.refuse("a table")

    def create_index(self) -> IndexStatement:
        """Read the whole statement, which must be a CREATE INDEX."""
        unique, line = self.take("CREATE", "UNIQUE", "INDEX"), self.line(self.tokens[0])
        if not unique and not self.take("CREATE", "INDEX"):
            raise UsageError(f"{self.path}:{line}: {self.shown!r}; expected CREATE INDEX ... or ANALYZE")
        concurrently, if_not_exists = self.take("CONCURRENTLY"), self.take("IF", "NOT", "EXISTS")
        written = "" if not if_not_exists and self.take("ON") else self.name("the index's name")
        if written:
            self.expect("ON")
        written = written or _generated(self.text)
        if written[:2].upper() == "U&":
            self.refuse("the index's name without U&")
        table, only = self.table()
        body = (
            self.source[self.tokens[self.position].start : self.tokens[-1].end]
            if self.position < len(self.tokens)
            else ""
        )
        method = self.name("a method") if self.take("USING") else "btree"
        keys = self.group("'(' and columns")
        include = self.group("columns") if self.take("INCLUDE") else ()
        distinct = self.take("NULLS", "DISTINCT")
        not_distinct = not distinct and self.take("NULLS", "NOT", "DISTINCT")
        options = self.group("options") if self.take("WITH") else ()
        tablespace = self.name("a tablespace") if self.take("TABLESPACE") else ""
        where = ""
        if self.take("WHERE"):
            start, self.position = self.position, len(self.tokens)
            where = self.since(start, "a condition")
        if self.position < len(self.tokens):
            self.refuse("INCLUDE, NULLS [NOT] DISTINCT, WITH, TABLESPACE, WHERE (in this order) or the end")
        return IndexStatement(
            self.text, line, stored_name(written), table, unique, concurrently, if_not_exists, only,
            stored_name(method), keys, include, not_distinct, options, tablespace, where, written, body,
        )  # fmt: skip


def stored_name(written: str) -> str:
    """Return a name as the server stores it: ASCII letters in lower case unless quoted, cut to 63 bytes."""
    if written.startswith('"'):
        name = written[1:-1].replace('""', '"')
    else:
        name = "".join(c.lower() if c.isascii() else c for c in written)
    return name.encode()[:_LONGEST].decode(errors="ignore")


def _generated(text: str) -> str:
    """Return a name that depends on the statement alone, so that a later rollback can find the index."""
    return f"perfkit_{crc32(' '.join(text.split()).encode()):08x}"


def _parts(table: str) -> list[str]:
    """Return the parts of a qualified table name, each as written."""
    return re.findall(r'(?:[uU]&)?"(?:[^"]|"")+"|[^."]+', table)


def _split(path: Path, source: str) -> list[_Reader]:
    """Return a reader for each statement of a text, without semicolons."""
    runs: list[list[Token]] = [[]]
    for token in tokens(source, str(path)):
        if token.text == ";":
            runs.append([])
        else:
            runs[-1].append(token)
    return [_Reader(path, source, run) for run in runs if run]


# How an index set and a database agree: what exists, what is missing, what prevents a build.

State = Literal["missing", "there", "invalid", "other", "impossible"]
_TABLES = ("r", "m", "p")  # tables, materialized views and partitioned tables


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """One index of a set in a database: its state, and the table and the index, quoted and with their schema.

    `problem` says why the index cannot be built, `undroppable` why it cannot be dropped.
    """

    index: IndexStatement
    state: State
    problem: str = ""
    undroppable: str = ""
    table: str = ""
    quoted: str = ""
    lockable: bool = True  # LOCK TABLE takes tables only, no materialized views
    bytes: int = 0


def examine(connection: Connection, index_set: IndexSet) -> Iterator[IndexStatus]:
    """Yield the status of each index without changing anything. Raises psycopg.Error if the server cannot answer."""
    for index in index_set.indexes:
        try:
            yield _status(connection, index)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            yield IndexStatus(index, "impossible", first_line(error), f"cannot be judged: {first_line(error)}")


def analyze_problems(connection: Connection, index_set: IndexSet) -> Iterator[str]:
    """Yield the problems of the set's ANALYZE statements."""
    for text in index_set.analyze:
        try:
            parse(connection, text)
            for table in analyzed(index_set.path, text):
                if not connection.execute("SELECT 1 WHERE to_regclass(%s::text) IS NOT NULL", [table]).fetchone():
                    yield f"{text}: no table {table}; expected an existing table"
        except psycopg.ProgrammingError as error:
            yield f"{text}: {first_line(error)}"


def _status(connection: Connection, index: IndexStatement) -> IndexStatus:
    parse(connection, index.sql(concurrently=True))
    names = {"table": index.table, "name": index.name}
    facts = connection.execute(catalog.get("index_place").encode(), names).fetchone()
    if facts is None:
        return IndexStatus(index, "impossible", f"no table {index.table}; expected an existing table")
    status = IndexStatus(
        index, "missing", "", "", facts["table"], facts["quoted"], facts["kind"] in ("r", "p"), facts["bytes"]
    )
    if facts["relation"] and not facts["on_it"]:
        what = facts["definition"] or f"{facts['quoted']}, which is not an index"
        taken = f"{facts['bare_index']} exists already as {what}; expected an unused name"
        return replace(status, state="other", problem=taken, undroppable=taken)
    if problem := _unbuildable(facts):
        return replace(status, state="impossible", problem=problem, undroppable=problem)
    wants, has = _definitions(connection, index, facts)
    if has is None:
        return replace(status, problem=_partitioned(index, facts) or _not_creatable(facts))
    if other := _other(index, facts, wants, has):
        return replace(status, state="other", problem=other, undroppable=other)
    stuck = _undroppable(facts)
    if facts["valid"]:
        return replace(status, state="there", undroppable=stuck)
    return replace(status, state="invalid", problem=stuck, undroppable=stuck)


def _other(index: IndexStatement, facts: Row, wants: Row, has: Row) -> str:
    """Return both definitions if they differ, else "". A tablespace counts only if the statement names one."""
    where, has_where = (
        f" TABLESPACE {definition['tablespace']}" if index.tablespace else "" for definition in (wants, has)
    )
    if (wants["unique"], wants["rest"], where) == (has["unique"], has["rest"], has_where):
        return ""
    unique = "UNIQUE " if wants["unique"] else ""
    expected = f"CREATE {unique}INDEX {facts['bare_index']} ON {facts['table']} {wants['rest']}{where}"
    return f"{facts['bare_index']} exists already as {has['whole']}{has_where}; expected {expected}"


def _unbuildable(facts: Row) -> str:
    """Return why the table cannot have this or any other index; "" if it can."""
    if facts["kind"] not in _TABLES or facts["system"]:
        return f"{facts['table']} cannot have indexes of yours; expected a table"
    if not facts["owner"]:
        return f"{facts['table']} belongs to {facts['owned_by']}; expected the owner to build its indexes"
    return ""


def _undroppable(facts: Row) -> str:
    """Return why the existing index cannot be dropped or rebuilt; "" if it can."""
    if facts["builder"]:
        return f"{facts['quoted']} is being built by process {facts['builder']}; wait until that build ends"
    if facts["constraint"]:
        return f"{facts['quoted']} belongs to the constraint {facts['constraint']}"
    if facts["index_kind"] == "I":
        return f"{facts['quoted']} is partitioned, and CONCURRENTLY cannot drop it; run: DROP INDEX {facts['quoted']}"
    return ""


def _not_creatable(facts: Row) -> str:
    return "" if facts["creatable"] else f"no CREATE privilege on schema {facts['schema']}; expected it"


def _partitioned(index: IndexStatement, facts: Row) -> str:
    if facts["kind"] != "p":
        return ""
    alone = replace(index, only=True).sql(concurrently=False)
    return (
        f"{facts['table']} is partitioned, and CONCURRENTLY cannot index it; run: {alone}; then for each partition "
        f"CREATE INDEX CONCURRENTLY and ALTER INDEX {facts['quoted']} ATTACH PARTITION"
    )


def _definitions(connection: Connection, index: IndexStatement, facts: Row) -> tuple[Row, Row | None]:
    """Return the server's definitions of the statement and of the existing index, in a form to compare."""
    temporary = f"pg_temp.{facts['bare']}"
    with connection.transaction(force_rollback=True):
        connection.execute(f"CREATE TEMPORARY TABLE {temporary} ({facts['columns']})".encode())
        send(connection.cursor(), replace(index, table=temporary, only=False).sql(concurrently=False))
        names = {"temporary": f"pg_temp.{facts['bare_index']}", "there": facts["relation"]}
        rows = connection.execute(catalog.get("index_definitions").encode(), names).fetchall()
    found = {row["temporary"]: row for row in rows}
    return found[True], found.get(False)


# Scripts for psql, made from a set and, if a database was examined, from what it has of that set.


def script(index_set: IndexSet, statuses: Sequence[IndexStatus] | None = None) -> str:
    """Return the statements that `apply` would run; with `statuses`, only those that are still to be done."""
    if statuses is None:
        lines = [index.sql(concurrently=True, if_not_exists=index.if_not_exists) for index in index_set.indexes]
    else:
        lines = []
        for status in statuses:
            lines += [drop_statement(status)] if status.state == "invalid" else []
            lines += [status.index.sql(concurrently=True)] if status.state in ("invalid", "missing") else []
    return _script([*lines, *index_set.analyze])


def rollback_script(index_set: IndexSet, statuses: Sequence[IndexStatus] | None = None) -> str:
    """Return the statements that `rollback` would run, for psql."""
    if statuses is None:
        return _script([]) + index_set.rollback()
    return _script([drop_statement(status) for status in reversed(statuses) if droppable(status)])


def _script(lines: Sequence[str]) -> str:
    head = ["SET statement_timeout = 0", f"SET lock_timeout = '{LOCK_WAIT}'"]
    return "".join(f"{line};\n" for line in (*head, *lines))


def drop_statement(status: IndexStatus) -> str:
    """Return the DROP INDEX statement for an index in a database in use."""
    return f"DROP INDEX CONCURRENTLY {status.quoted}"


def droppable(status: IndexStatus) -> bool:
    """Whether a rollback drops this index."""
    return status.state in ("there", "invalid") and not status.undroppable
