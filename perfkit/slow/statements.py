"""Slow statements as pg_stat_statements counts them: all since it was reset, or those between two looks at it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import psycopg

from perfkit.base import resources
from perfkit.errors import ServerError, UsageError
from perfkit.postgres import catalog
from perfkit.postgres.site import Connection
from perfkit.slow.model import SlowQueries, SlowStatement
from perfkit.text import first_line, visible

NAME = "pg_stat_statements"
GRANT = "GRANT pg_read_all_stats TO"
#: What its versions call a column, the newest first; all else has had one name since PostgreSQL 13.
_NAMES = {
    "toplevel": ("toplevel",),
    "total_ms": ("total_exec_time", "total_time"),
    "wal_bytes": ("wal_bytes",),
    "since": ("stats_since",),
}
_COUNTED = ("rows", "buffers", "temp_bytes", "wal_bytes")
_EXPLAIN = re.compile(r"\s*EXPLAIN\b", re.IGNORECASE)

Key = tuple[int, str, bool | None]  # user, query id, and whether a client sent it (None: not told)
Entry = Mapping[str, Any]  # a row of sql/catalog/slow_entries.sql


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What it had counted at one time. Entries whose text this role may not see, or that is lost, are only counted."""

    source: str
    at: datetime
    entries: Mapping[Key, Entry] = field(repr=False)
    unread: Mapping[str, int]
    reset: datetime | None = None  # since when it counts
    dropped: int | None = None  # how often it made room by dropping the entries that are least used
    most: str = ""  # entries that it keeps, in all databases


def snapshot(connection: Connection, name: str = "") -> Snapshot:
    """What it has counted in this database; `name` is what messages call that.

    Raises ServerError where the extension is missing, not loaded or not for this role, saying what would change that.
    """
    here = visible(name or connection.info.dbname)
    try:
        found = catalog.row(connection, "slow_extension")
        if lacking := _lacking(found):
            raise ServerError(f"{here}: {lacking}")
        names = {"schema": found["schema"]}
        for wanted, known in _NAMES.items():
            names[wanted] = next((column for column in known if column in found["columns"]), "NULL")
        rows = connection.execute(_filled("slow_entries", names)).fetchall()
        since = connection.execute(_filled("slow_reset", names)).fetchone() if found["info"] else None
        at = catalog.row(connection, "slow_clock")["at"]
    except psycopg.Error as error:
        raise ServerError(f"{here}: {visible(first_line(error))}; expected {NAME} to answer") from None
    hidden = sum(row["id"] is None for row in rows)
    lost = sum(row["id"] is not None and row["text"] is None for row in rows)
    unread = {f"statements of other roles ({GRANT} {found['user']} shows them)": hidden, "texts that are lost": lost}
    told = {(r["user"], r["id"], r["toplevel"]): r for r in rows if r["id"] is not None and r["text"] is not None}
    counted = {reason: count for reason, count in unread.items() if count}
    return Snapshot(f"{NAME} of {here}", at, told, counted, **(since or {}), most=found["most"])


def between(before: Snapshot | None, after: Snapshot) -> SlowQueries:
    """What was counted between two looks, or without the first, since it was reset. Pure.

    An entry that began anew in between counts with what it shows, which is less than there was. Raises UsageError for
    looks at two databases.
    """
    if before is None:
        notes = _general(after, after.dropped or 0)
        return SlowQueries(after.source, _merged(after.entries.values()), after.reset, after.at, after.unread, notes)
    if before.source != after.source:
        raise UsageError(f"{before.source} and {after.source}; expected two looks at one database")
    anew = before.reset != after.reset
    known: Mapping[Key, Entry] = {} if anew else before.entries
    grown, restarted = [], 0
    for key, entry in after.entries.items():
        base = known.get(key)
        if base and _restarted(base, entry):
            base, restarted = None, restarted + 1
        if entry["calls"] > (base["calls"] if base else 0):
            grown.append(_less(entry, base) if base else entry)
    gone = len(known.keys() - after.entries.keys())
    unread = dict(after.unread)
    if gone or restarted:
        unread["entries that were dropped or reset between the two looks, in part"] = gone + restarted
    notes = _general(after, (after.dropped or 0) - (0 if anew else before.dropped or 0))
    since = before.at
    if anew and after.reset:
        since = max(before.at, after.reset)
        notes = (f"{NAME} was reset at {after.reset:%H:%M:%S}: what was before is not in it", *notes)
    return SlowQueries(after.source, _merged(grown), since, after.at, unread, notes)


def _lacking(found: Mapping[str, Any]) -> str:
    """Why it cannot be asked here, and what would change that; "" where it can."""
    if not found:
        return f"no {NAME} in this database; expected CREATE EXTENSION {NAME}, or the server's log in its place"
    if found["most"] is None:
        return f"{NAME} is not loaded; expected it in shared_preload_libraries, and a restart"
    if not found["usable"]:
        return f"{NAME} is out of reach; expected GRANT USAGE ON SCHEMA {found['schema']} TO {found['user']}"
    if not found["readable"]:
        return f"{NAME} may not be read; expected GRANT SELECT ON {found['schema']}.{NAME} TO {found['user']}"
    return ""


def _filled(name: str, names: Mapping[str, str]) -> bytes:
    return re.sub(r"(?<!:):(\w+)", lambda m: names.get(m[1], m[0]), catalog.get(name)).encode()


def _restarted(base: Entry, entry: Entry) -> bool:
    fell = any((entry[name] or 0) < (base[name] or 0) for name in ("calls", "total_ms", *_COUNTED))
    return fell or base["since"] != entry["since"]


def _less(entry: Entry, base: Entry) -> Entry:
    counted = {name: None if entry[name] is None else entry[name] - (base[name] or 0) for name in _COUNTED}
    more = {"calls": entry["calls"] - base["calls"], "total_ms": entry["total_ms"] - base["total_ms"]}
    return {**entry, **more, **counted}


def _merged(entries: Iterable[Entry]) -> tuple[SlowStatement, ...]:
    """One statement for every query id, whoever sent it, without perfkit's own; the largest total first."""
    by_id: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry["calls"] and not own(entry["text"]):
            by_id[entry["id"]].append(entry)
    return tuple(sorted(map(_statement, by_id.values()), key=lambda s: (-s.total_ms, s.id)))


def _statement(entries: list[Entry]) -> SlowStatement:
    counted = {name: [entry[name] for entry in entries] for name in _COUNTED}
    since = [entry["since"] for entry in entries if entry["since"]]
    return SlowStatement(
        entries[0]["id"],
        entries[0]["text"],
        sum(entry["calls"] for entry in entries),
        sum(entry["total_ms"] for entry in entries),
        **{name: None if None in values else sum(values) for name, values in counted.items()},
        first=min(since, default=None),
    )


def _general(after: Snapshot, dropped: int) -> tuple[str, ...]:
    notes = []
    if dropped:
        notes.append(
            f"{NAME} dropped its least used entries {dropped:,} time{'s' * (dropped > 1)} to make room for others "
            f"({NAME}.max = {after.most})"
        )
    if any(toplevel is False for _, _, toplevel in after.entries):
        notes.append("statements inside functions also count in the time of the statement that called them")
    return tuple(notes)


def own(text: str) -> bool:
    """Whether perfkit sent it: a catalogue query, by its first line; or an EXPLAIN, which is nobody's load."""
    return bool(_EXPLAIN.match(text)) or text.lstrip().partition("\n")[0].rstrip() in _headers()


@cache
def _headers() -> frozenset[str]:
    """The comments that catalogue queries begin with; the server keeps them."""
    paths = resources.path("sql/catalog").glob("*.sql")
    return frozenset(path.read_text(encoding="utf-8").partition("\n")[0].rstrip() for path in paths)
