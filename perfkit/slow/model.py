"""One table of slow statements, whatever they were found in. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One execution that really was: its text, its values as text (None: NULL) for `$1`, `$2`, ..., its time in ms.

    A text with its values written into it has no parameters.
    """

    sql: str
    parameters: tuple[str | None, ...] = ()
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class SlowStatement:
    """One statement, whatever its values, with what it cost in the source's time. None: the source does not tell."""

    id: str  # the server's query id, or a digest of the normalised text
    text: str  # normalised, values as `$1`, `$2`, ...; where nothing better is known, as it was logged once
    calls: int
    total_ms: float
    p95_ms: float | None = None
    rows: int | None = None
    buffers: int | None = None  # pages found in memory or read
    temp_bytes: int | None = None
    wal_bytes: int | None = None
    first: datetime | None = None  # seen
    last: datetime | None = None
    example: Example | None = None  # the slowest that is known
    plan: Any = None  # EXPLAIN's document of the slowest execution whose plan was logged

    @property
    def mean_ms(self) -> float:
        """The mean time of an execution, in ms."""
        return self.total_ms / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class SlowQueries:
    """What a source told: its statements, the largest total first, and what could not be read of it."""

    source: str  # in words: "pg_stat_statements of host:port/database", "the log server.json"
    statements: tuple[SlowStatement, ...]
    since: datetime | None = None  # the time that the source covers
    until: datetime | None = None
    unread: Mapping[str, int] = field(default_factory=dict)  # by reason in words, how many records
    notes: tuple[str, ...] = ()  # what a reader has to know: sampled, a threshold, own statements only

    @property
    def total_ms(self) -> float:
        """The time of all statements together, in ms."""
        return sum(statement.total_ms for statement in self.statements)

    def share(self, statement: SlowStatement) -> float:
        """A statement's part of the time of all."""
        return statement.total_ms / self.total_ms if self.total_ms else 0.0
