"""Index sets as SQL: read, checked, and written again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from zlib import crc32

from perfkit.base.errors import UsageError
from perfkit.postgres.sqltext import Token, read, tokens

_LONGEST = 63  # bytes of a name


@dataclass(frozen=True, slots=True)
class IndexStatement:
    """One CREATE INDEX: `name` as the server will call it; the other parts as they are written."""

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
    written: str = field(repr=False)  # the name, as it can be used in SQL
    body: str = field(repr=False)  # everything after the table

    def sql(self, *, concurrently: bool, if_not_exists: bool = False) -> str:
        """The same statement in that form, with its name."""
        words = ["CREATE", "UNIQUE" * self.unique, "INDEX", "CONCURRENTLY" * concurrently]
        words += ["IF NOT EXISTS" * if_not_exists, self.written, "ON", "ONLY" * self.only, self.table, self.body]
        return " ".join(filter(None, words))

    @property
    def place(self) -> tuple[str, ...]:
        """The names of the schema, if one is written, and of the index, as the server will call them."""
        return (*map(called, _parts(self.table)[:-1]), self.name)

    @property
    def qualified(self) -> str:
        """The name with the schema of its table, where one is written."""
        return ".".join([*_parts(self.table)[:-1], self.written])


@dataclass(frozen=True, slots=True)
class IndexSet:
    """What a file holds: its indexes and its ANALYZE statements, each in their order."""

    path: Path
    indexes: tuple[IndexStatement, ...]
    analyze: tuple[str, ...]

    def rollback(self, *, concurrently: bool = True) -> str:
        """DROP INDEX for each, the last first."""
        form = "DROP INDEX CONCURRENTLY IF EXISTS" if concurrently else "DROP INDEX IF EXISTS"
        return "".join(f"{form} {index.qualified};\n" for index in reversed(self.indexes))


def read_set(path: Path) -> IndexSet:
    """Parse a file. Raises UsageError with file and line of any other statement, or of a name used twice."""
    indexes: dict[tuple[str, ...], IndexStatement] = {}
    analyze = []
    for reader in _split(path, read(path)):
        if reader.take("ANALYZE") or reader.take("ANALYSE"):
            list(reader.analyzed())
            analyze.append(reader.text)
            continue
        index = reader.create_index()
        if before := indexes.get(index.place):
            expected = "expected every name once in a schema"
            raise UsageError(f"{path}:{index.line}: {index.name} is in line {before.line} already; {expected}")
        indexes[index.place] = index
    return IndexSet(path, tuple(indexes.values()), tuple(analyze))


def analyzed(path: Path, text: str) -> list[str]:
    """The tables that an ANALYZE names, as they are written."""
    [reader] = _split(path, text)
    reader.place = 1
    return list(reader.analyzed())


class _Reader:
    """A statement's tokens and how far they have been read."""

    def __init__(self, path: Path, source: str, tokens: list[Token]) -> None:
        self.path, self.source, self.tokens, self.place = path, source, tokens, 0
        self.text = source[tokens[0].start : tokens[-1].end]
        self.shown = self.text.splitlines()[0][:60]

    def take(self, *words: str) -> bool:
        """Whether these words are next; then they have been read."""
        found = self.tokens[self.place : self.place + len(words)]
        next_are = [t.text.upper() if t.kind in ("word", "other") else "" for t in found] == list(words)
        self.place += len(words) if next_are else 0
        return next_are

    def expect(self, word: str, meaning: str = "") -> None:
        """Read this word, or refuse the statement."""
        if not self.take(word):
            self.refuse(meaning or word)

    def refuse(self, expected: str) -> NoReturn:
        """Raise UsageError at the token that is next."""
        at = self.tokens[min(self.place, len(self.tokens) - 1)]
        found = repr(at.text.splitlines()[0][:40]) if self.place < len(self.tokens) else "the end"
        raise UsageError(f"{self.path}:{at.line}: {self.shown!r}: found {found}, expected {expected}")

    def name(self, what: str) -> str:
        """A name as it is written."""
        if self.place == len(self.tokens) or self.tokens[self.place].kind not in ("word", "quoted"):
            self.refuse(what)
        self.place += 1
        return self.tokens[self.place - 1].text

    def table(self) -> tuple[str, bool]:
        """A table with its schema, and whether ONLY it is meant."""
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
        """The parts between parentheses, as they are written."""
        self.expect("(", what)
        depth, parts, start = 1, [], self.place
        while depth:
            if self.place == len(self.tokens):
                self.refuse("')'")
            token, self.place = self.tokens[self.place].text, self.place + 1
            depth += (token in ("(", "[")) - (token in (")", "]"))
            if depth == 0 or (depth == 1 and token == ","):
                self.place -= 1
                parts.append(self.since(start, what))
                self.place += 1
                start = self.place
        return tuple(parts)

    def since(self, start: int, what: str) -> str:
        """What was read since, as it is written; refused where that is nothing."""
        if start == self.place:
            self.refuse(what)
        return self.source[self.tokens[start].start : self.tokens[self.place - 1].end]

    def analyzed(self) -> Iterator[str]:
        """The tables of an ANALYZE."""
        if not self.take("VERBOSE") and [t.text for t in self.tokens[self.place : self.place + 1]] == ["("]:
            self.group("options")
        while self.place < len(self.tokens):
            yield self.table()[0]
            if [t.text for t in self.tokens[self.place : self.place + 1]] == ["("]:
                self.group("columns")
            if self.place < len(self.tokens):
                self.expect(",", "',' or the end")
                if self.place == len(self.tokens):
                    self.refuse("a table")

    def create_index(self) -> IndexStatement:
        """The whole statement, which must be one."""
        unique = self.take("CREATE", "UNIQUE", "INDEX")
        if not unique and not self.take("CREATE", "INDEX"):
            line = self.tokens[0].line
            raise UsageError(f"{self.path}:{line}: {self.shown!r}; expected CREATE INDEX ... or ANALYZE")
        concurrently, if_not_exists = self.take("CONCURRENTLY"), self.take("IF", "NOT", "EXISTS")
        written = "" if not if_not_exists and self.take("ON") else self.name("the index's name")
        if written:
            self.expect("ON")
        written = written or _generated(self.text)
        if written[:2].upper() == "U&":
            self.refuse("the index's name without U&")
        table, only = self.table()
        body = self.source[self.tokens[self.place].start : self.tokens[-1].end] if self.place < len(self.tokens) else ""
        method = self.name("a method") if self.take("USING") else "btree"
        keys = self.group("'(' and columns")
        include = self.group("columns") if self.take("INCLUDE") else ()
        distinct = self.take("NULLS", "DISTINCT")
        not_distinct = not distinct and self.take("NULLS", "NOT", "DISTINCT")
        options = self.group("options") if self.take("WITH") else ()
        tablespace = self.name("a tablespace") if self.take("TABLESPACE") else ""
        where = ""
        if self.take("WHERE"):
            start, self.place = self.place, len(self.tokens)
            where = self.since(start, "a condition")
        if self.place < len(self.tokens):
            self.refuse("INCLUDE, NULLS [NOT] DISTINCT, WITH, TABLESPACE, WHERE (in this order) or the end")
        return IndexStatement(
            self.text, self.tokens[0].line, called(written), table, unique, concurrently, if_not_exists, only,
            called(method), keys, include, not_distinct, options, tablespace, where, written, body,
        )  # fmt: skip


def called(written: str) -> str:
    """What the server makes of a name: ASCII letters small unless it is quoted, cut to 63 bytes."""
    if written.startswith('"'):
        name = written[1:-1].replace('""', '"')
    else:
        name = "".join(c.lower() if c.isascii() else c for c in written)
    return name.encode()[:_LONGEST].decode(errors="ignore")


def _generated(text: str) -> str:
    """A name that the statement alone decides: it must be known to be removed."""
    return f"perfkit_{crc32(' '.join(text.split()).encode()):08x}"


def _parts(table: str) -> list[str]:
    """A table's name and those before it, each as it is written."""
    return re.findall(r'(?:[uU]&)?"(?:[^"]|"")+"|[^."]+', table)


def _split(path: Path, source: str) -> list[_Reader]:
    """The statements of a text, without the semicolons between them."""
    runs: list[list[Token]] = [[]]
    for token in tokens(source, str(path)):
        if token.text == ";":
            runs.append([])
        else:
            runs[-1].append(token)
    return [_Reader(path, source, run) for run in runs if run]
