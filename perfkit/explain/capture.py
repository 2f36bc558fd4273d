"""EXPLAIN as raw JSON, safely: one statement, time limits, and nothing of it stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from perfkit.errors import PlanError
from perfkit.explain.plan import read_plan
from perfkit.explain.scans import in_words
from perfkit.postgres.parameters import exact
from perfkit.postgres.statements import first_word, split

Parameters = Mapping[str, Any] | None
Connect = Callable[[], psycopg.Connection[Any]]
READING = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
WRITING = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_LOCK_TIMEOUT_S = 3.0  # waiting longer for a lock would make others wait behind us


def typical_parameters(connect: Connect, sql: str, rows: Sequence[Parameters]) -> Parameters:
    """The first of the rows whose plan reads tables as the plans of most rows do; nothing is executed."""
    shapes = []
    with session(connect, 60.0) as connection:
        for row in rows:
            cursor = _run(connection, f"EXPLAIN (FORMAT JSON) {single(sql)}", row)
            shapes.append(in_words(read_plan((cursor.fetchone() or ([],))[0])))
    most, _ = Counter(shapes).most_common(1)[0]
    return rows[shapes.index(most)]


def explain(
    connect: Connect,
    sql: str,
    parameters: Parameters,
    *,
    repeats: int = 2,
    timeout_s: float = 60.0,
    writes: bool = False,
) -> Any:
    """EXPLAIN (ANALYZE, BUFFERS, SETTINGS) of one statement as parsed JSON.

    The last of `repeats` executions is kept: a warm one. The statement really runs, each time in a transaction
    of its own on a connection of its own that is rolled back, read-only unless `writes`.
    Raises PlanError for anything but one statement that can be planned, for one that writes where it may not,
    and with the server's own words when it fails.
    """
    row = None
    for _ in range(repeats):
        with session(connect, timeout_s, read_only=not writes) as connection:
            row = _run(
                connection, f"EXPLAIN (ANALYZE, BUFFERS, SETTINGS, FORMAT JSON) {single(sql)}", parameters
            ).fetchone()
    return row[0] if row else []


@contextmanager
def session(connect: Connect, timeout_s: float, *, read_only: bool = True) -> Iterator[psycopg.Connection[Any]]:
    """A transaction with time limits on a connection of its own, rolled back at the end."""
    try:
        with connect() as connection:
            connection.autocommit = False
            connection.read_only = read_only
            limits = {"statement_timeout": timeout_s, "lock_timeout": min(timeout_s, _LOCK_TIMEOUT_S)}
            for limit, seconds in limits.items():
                connection.execute(f"SET LOCAL {limit} = {max(1, int(seconds * 1000))}")  # 0 is none
            yield connection
            connection.rollback()
    except psycopg.Error as error:
        raise PlanError(f"EXPLAIN failed: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def single(sql: str) -> str:
    """The text of the one statement. Raises PlanError for none, several, or one that has no plan."""
    if len(statements := split(sql)) != 1:
        raise PlanError(f"EXPLAIN takes one statement; found {len(statements)}")
    if (word := first_word(statements[0].text)) not in READING | WRITING:
        raise PlanError(f"{word or 'this'} has no plan; expected SELECT, INSERT, UPDATE, DELETE or MERGE")
    return statements[0].text


def _run(connection: psycopg.Connection[Any], sql: str, parameters: Parameters) -> psycopg.Cursor[Any]:
    cursor = connection.cursor()
    cursor.row_factory = tuple_row
    return cursor.execute(sql.encode(), exact(parameters))
