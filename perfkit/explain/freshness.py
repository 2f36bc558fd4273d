"""Whether the statistics of a table still fit it: by its size, and by its counters where the size cannot tell.

The server counts a session's changes up to a second after they were made. Rows loaded and analysed in one session
are therefore counted as changed since ANALYZE, although the statistics have seen them all.
"""

from __future__ import annotations

from perfkit.explain.facts import TableFacts

GROWN = 16.0  # pages more than the statistics know; fewer change no plan


def stale(table: TableFacts, share: float, least: float = 0.0) -> str:
    """Return why a table's statistics do not fit it, as a clause; "" where they do.

    `share` of its rows, and more than `least` of them, have to be changed.
    """
    limit = max(share * max(table.rows, 1.0), least)
    many = table.changed > limit
    if _unknown(table) and (many or not table.analyzed):
        return f"{table.name} has no statistics yet"
    grown = table.size is not None and table.size - table.pages > max(share * table.pages, GROWN)
    if many and (grown or table.size is None or (_unseen(table) > limit and not _counted_late(table))):
        return f"{table.changed:,.0f} rows of {table.name} changed since its statistics were made for {table.rows:,.0f}"
    if grown:
        return f"{table.name} grew from {table.pages:,.0f} to {table.size:,.0f} pages after its statistics were made"
    return ""


def doubt(table: TableFacts, share: float, least: float = 0.0) -> str:
    """Return why the statistics may not fit, as a clause, where neither size nor counters tell; else ""."""
    limit = max(share * max(table.rows, 1.0), least)
    if stale(table, share, least) or min(table.changed, table.rewritten) <= limit:
        return ""
    return f"{table.rewritten:,.0f} rows of {table.name} were updated or deleted, before or after its last ANALYZE"


def _unknown(table: TableFacts) -> bool:
    """Whether no column has statistics, as far as they are shown to this role."""
    return bool(table.columns) and not table.hidden and all(column.distinct is None for column in table.columns)


def _unseen(table: TableFacts) -> float:
    """Return how many of the changed rows may not show in the table's size.

    An update or a deletion reuses space. A VACUUM after ANALYZE notes the size anew, so that no growth is seen.
    """
    return table.changed if table.vacuumed else min(table.changed, table.rewritten)


def _counted_late(table: TableFacts) -> bool:
    """Whether ANALYZE came before any change was counted, and yet found the rows."""
    return table.analyzed and table.changed >= table.inserted + table.rewritten
