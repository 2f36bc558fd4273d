"""Whether a query and its rewrite return the same rows, before anybody compares their times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from perfkit.errors import PlanError
from perfkit.explain.capture import READING, session, single
from perfkit.postgres.extended import send
from perfkit.postgres.parameters import exact
from perfkit.postgres.statements import first_word

RowParameters = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class RowSets:
    """For how many parameter sets both returned the same rows, and the first where they did not, in words."""

    compared: int
    equal: int
    first_difference: str


def compare(
    connect: Callable[[], psycopg.Connection[Any]],
    before: str,
    after: str,
    rows: Sequence[RowParameters],
    *,
    timeout_s: float,
) -> RowSets:
    """Compare the multisets of rows, for each parameter set, in one repeatable-read transaction.

    Rows are compared by the text of their values, so that 1 and 1.00 differ and an integer and a bigint do
    not; names of columns and the order of rows do not count. One number of rows and one digest come back for
    each query: no data leaves the server. Raises PlanError with the server's words.
    """
    for text in map(single, (before, after)):
        if (word := first_word(text)) not in READING:
            raise PlanError(f"{word} has no rows that could be compared; expected a SELECT and a rewrite of it")
    equal, first = 0, ""
    with session(connect, timeout_s) as connection:
        connection.rollback()  # the isolation level can only be set before the transaction begins
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for number, row in enumerate(rows, 1):
            found = [_digest(connection, single(text), row, timeout_s) for text in (before, after)]
            if found[0] == found[1]:
                equal += 1
            elif not first:
                counts = [f"{count:,} rows" for count, _ in found]
                what = (
                    f"{counts[1]} instead of {counts[0]}" if counts[0] != counts[1] else f"other values in {counts[0]}"
                )
                first = f"parameter set {number}: {what}; {equal} of {len(rows)} sets agree so far"
    return RowSets(len(rows), equal, first)


def _digest(connection: psycopg.Connection[Any], text: str, row: RowParameters, timeout_s: float) -> tuple[int, str]:
    """The number of rows and a digest of all of them in any order."""
    cursor = connection.cursor()
    cursor.row_factory = tuple_row
    cursor.execute(f"SET LOCAL statement_timeout = {max(1, int(timeout_s * 1000))}")
    send(
        cursor,
        "SELECT count(*), md5(coalesce(string_agg(h, '' ORDER BY h), '')) FROM "
        f"(SELECT md5((q.*)::text) AS h FROM (\n{text}\n) q) hashed",
        exact(row),
    )
    count, digest = cursor.fetchone() or (0, "")
    return int(count), str(digest)
