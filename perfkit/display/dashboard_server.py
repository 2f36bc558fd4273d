"""The database server on a watch's page: what it says of itself, and how much of it happened in the last minutes."""

from __future__ import annotations

from collections.abc import Iterator

from perfkit import numbers
from perfkit.config.watching import Metric
from perfkit.display.dashboard import LEVELS
from perfkit.display.table import Cell, Table
from perfkit.monitor.sentences import said
from perfkit.monitor.server_figures import grown
from perfkit.monitor.standing import Standing


def server(found: Standing) -> Table:
    """What the database server says of itself, and how much of it happened in the last minutes."""
    span = next(iter(found.spans))
    rows = tuple(_server(found)) if found.last.server else ()
    none = "the database does not answer" if found.last.server is None else "not watched"
    note = "" if rows else none
    return Table(f"Database server, {span}", ("figure", "value"), rows, note=note)


def _server(found: Standing) -> Iterator[tuple[Cell, Cell]]:
    now, values = found.last.server or {}, found.values
    readings = [tick.server for tick in found.recent if tick.server]
    seconds = found.recent[-1].t - found.recent[0].t

    def count(name: str) -> str:
        return numbers.count(now[name])

    def row(name: str, value: str, metric: str = "", note: str = "") -> tuple[Cell, Cell]:
        level = found.level(metric) if metric else ""
        return Cell(name), Cell(value, ", ".join(filter(None, (level, note))), LEVELS.get(level, ""))

    def metric(name: str, key: Metric) -> Iterator[tuple[Cell, Cell]]:
        if values[key] is not None:
            yield row(name, said(key, values[key]), key)

    if "connections" in now:
        limit = f" of {count('connections_max')}" if "connections_max" in now else ""
        yield row("Connections", f"{count('connections')}{limit}", "connections_share")
    states = {"active": "active", "waiting": "waiting for a lock", "idle_in_transaction": "idle in a transaction"}
    if known := [f"{count(key)} {words}" for key, words in states.items() if key in now]:
        yield row("Sessions", ", ".join(known))
    yield from metric("Longest wait for a lock", "lock_wait_s")
    yield from metric("Oldest transaction", "transaction_s")
    if "locks_held" in now:
        yield row("Locks on tables and indexes", count("locks_held"))
    commits = grown(readings, "commits")
    if commits is not None and seconds:
        yield row("Transactions committed", f"{numbers.significant(commits / seconds)}/s")
    yield from metric("Rolled back", "rollback_rate")
    if (misses := values["cache_misses"]) is not None:
        yield row("Pages found in shared buffers", numbers.percent(1 - misses), "cache_misses")
    yield from metric("Temporary files", "temp_mb")
    wal = grown(readings, "wal_bytes")
    if wal is not None and seconds:
        yield row("WAL", f"{numbers.size(wal / seconds)}/s")
    yield from metric("Deadlocks", "deadlocks")
    yield from metric("Wrong checksums", "checksum_failures")
    if "invalid_indexes" in now:
        yield row("Invalid indexes", count("invalid_indexes"), "invalid_indexes")
    yield from _scans(found)


def _scans(found: Standing) -> Iterator[tuple[Cell, Cell]]:
    """How many indexes were scanned since the watch began, and which were not."""
    known = [tick.scans for tick in found.record.ticks if tick.scans]
    if not known:
        return
    idle = [name for name in known[-1] if not grown(known, name)]
    text = f"{len(known[-1]) - len(idle)} of {len(known[-1])} since the watch began"
    yield Cell("Indexes used"), Cell(text, f"not used: {', '.join(sorted(idle))}" if idle else "")
