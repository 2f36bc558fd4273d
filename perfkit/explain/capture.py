"""EXPLAIN as raw JSON, safely: one statement, read only, with time limits, rolled back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from perfkit.errors import PlanError
from perfkit.explain.plan import summarize
from perfkit.postgres.statements import split

Parameters = Mapping[str, Any]


def typical_parameters(conninfo: str, sql: str, rows: Sequence[Parameters]) -> Parameters:
    """The first of the rows whose plan reads tables as the plans of most rows do; nothing is executed."""
    shapes = []
    with _session(conninfo, 60.0) as connection:
        for row in rows:
            cursor = connection.execute(f"EXPLAIN (FORMAT JSON) {_single(sql)}", row)
            shapes.append(str(summarize((cursor.fetchone() or ([],))[0])))
    most, _ = Counter(shapes).most_common(1)[0]
    return rows[shapes.index(most)]


def explain(
    conninfo: str, sql: str, parameters: Parameters, *, repeats: int = 2, timeout_s: float = 60.0
) -> Any:
    """EXPLAIN (ANALYZE, BUFFERS, SETTINGS) of one SELECT as parsed JSON.

    The last of `repeats` executions is kept: a warm one. The statement really runs,
    inside a read-only transaction on a connection of its own.
    Raises PlanError for anything but one statement, and with the server's own words when it fails.
    """
    with _session(conninfo, timeout_s) as connection:
        for _ in range(repeats):
            cursor = connection.execute(
                f"EXPLAIN (ANALYZE, BUFFERS, SETTINGS, FORMAT JSON) {_single(sql)}", parameters
            )
            row = cursor.fetchone()
    return row[0] if row else []


@contextmanager
def _session(conninfo: str, timeout_s: float) -> Iterator[psycopg.Connection[Any]]:
    """A read-only transaction with time limits on a connection of its own, rolled back at the end."""
    try:
        with psycopg.connect(conninfo, application_name="perfkit explain") as connection:
            connection.read_only = True
            for limit in ("statement_timeout", "lock_timeout"):
                connection.execute(f"SET LOCAL {limit} = {max(1, int(timeout_s * 1000))}")  # 0 is none
            yield connection
            connection.rollback()
    except psycopg.Error as error:
        raise PlanError(f"EXPLAIN failed: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def _single(sql: str) -> str:
    """The text of the one statement. Raises PlanError for none or several."""
    if len(statements := split(sql)) != 1:
        raise PlanError(f"EXPLAIN takes one statement; found {len(statements)}")
    return statements[0].text
