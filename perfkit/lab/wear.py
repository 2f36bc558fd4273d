"""What changes of rows leave behind: WAL, updates that every index must hear of, indexes that grow.

Counted by the server on a clone of each arm, one arm after the other; time plays no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from psycopg import sql

from perfkit.arms.stage import Workbench
from perfkit.lab.design import LabDesign
from perfkit.lab.writes import Write
from perfkit.postgres import catalog, databases
from perfkit.postgres.place import Database
from perfkit.postgres.site import Connection

STATEMENTS, SECONDS = 100, 0.3  # of each kind, as far as they take no longer
SHARE, PASSES = 5, 3  # percent of the rows changed in each pass, each followed by VACUUM


def write_cost(stage: Workbench, base: Database, design: LabDesign, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """By arm: WAL in bytes a statement and HOT updates as a share; bytes of its only index before and after churn."""
    rows = {}
    for write in design.writes.writes:
        every = databases.fetched(base.site, base.name, design.file(f"{write.item}-rows"), STATEMENTS)
        rows[write.item] = every[: write.times(STATEMENTS, SECONDS)]
    found = []
    for arm in stage.config.arm:
        name = design.alone(arm.name)
        own = [write for write in design.writes.writes if design.concerns(arm.name, write.table)]
        if arm.role == "control" or arm.name.startswith("without-") or not own:
            continue
        say(f"counting what {arm.title} cost where rows change")
        stage.refresh(arm)
        place = stage.place(arm)
        assert place
        with databases.connected(place.site, place.name) as connection:
            counted = {write.item: _counted(connection, write, rows[write.item]) for write in own}
            found.append({"arm": arm.name, "index": name, "counted": counted, "churn": _churned(connection, name, own)})
    return found


def _counted(connection: Connection, write: Write, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Sums over the statements of one kind, and how many there were."""
    before, sent = _look(connection, write), 0
    for row in rows:
        connection.execute(write.sql.encode(), row)
        sent += 1
    return {key: value - before[key] for key, value in _look(connection, write).items()} | {"sent": sent}


def _look(connection: Connection, write: Write) -> dict[str, float]:
    connection.execute("SELECT pg_stat_force_next_flush()")
    return connection.execute(catalog.get("written").encode(), {"table": write.quoted}).fetchone() or {}


def _churned(connection: Connection, name: str, own: Sequence[Write]) -> dict[str, Any] | None:
    """An index's bytes before and after rows got each other's values in a column that it has."""
    change = next((w for w in reversed(own) if w.kind == "update" and name in w.indexes), None)
    if change is None:
        return None
    before = _bytes(connection, name)
    for number in range(PASSES):
        connection.execute(_change(change, number).encode())
        connection.execute(sql.SQL("VACUUM {}").format(sql.SQL(change.quoted)))
    return {"column": change.column, "before": before, "after": _bytes(connection, name)}


def _change(write: Write, number: int) -> str:
    """A twentieth of the rows get each other's value; others in each pass."""
    column, table = write.quoted_column, write.quoted
    sample = f"SELECT ctid AS place, {column} AS own FROM {table} TABLESAMPLE BERNOULLI ({SHARE}) REPEATABLE ({number})"
    pairs = f"SELECT place, lead(own) OVER (ORDER BY md5(place::text)) AS other FROM ({sample}) s"
    return f"UPDATE {table} t SET {column} = p.other FROM ({pairs}) p WHERE t.ctid = p.place AND p.other IS NOT NULL"


def _bytes(connection: Connection, name: str) -> int:
    return next(int(row["bytes"]) for row in catalog.rows(connection, "indexes") if row["name"] == name)
