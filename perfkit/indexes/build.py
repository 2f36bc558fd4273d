"""Building an index set: what each index costs in time, bytes and WAL, and whether it is valid."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
from psycopg.rows import dict_row

from perfkit.errors import UsageError
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.embedded import Server
from perfkit.postgres.statements import read, split

# Only as far as the name: what follows is the server's to judge, whatever its version knows.
_CREATE = re.compile(
    r"""CREATE\s+(UNIQUE\s+)?INDEX\s+(CONCURRENTLY\s+)?(IF\s+NOT\s+EXISTS\s+)?(?!(CONCURRENTLY|ON)\b)"""
    r"""("(?P<quoted>([^"]|"")+)"|(?P<plain>[^\W\d][\w$]*))\s+ON\b""",
    re.IGNORECASE,
)
_ANALYZE = re.compile(r"ANALY[ZS]E\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Built:
    """One index as built: seconds, bytes on disk, bytes of WAL the build wrote."""

    name: str
    table: str
    definition: str
    seconds: float
    bytes: int
    wal_bytes: int
    valid: bool

    def as_dict(self) -> dict[str, Any]:
        """For the bundle."""
        return asdict(self)


def index_names(path: Path) -> list[str]:
    """The names of the indexes that a file creates. Raises UsageError with the line of anything else."""
    return [name for _, name in _statements(path) if name]


def build(server: Server, database: str, path: Path) -> list[Built]:
    """Create the file's indexes one by one in a database, and run its ANALYZE statements.

    Raises UsageError with file, line and the server's words where a statement fails.
    """
    costs: dict[str, tuple[float, int]] = {}
    with connected(server, database) as connection:
        for (text, line), name in _statements(path):
            before, start = _wal(connection), perf_counter()
            try:
                connection.execute(text.encode())
            except psycopg.Error as error:
                message = (error.diag.message_primary or str(error)).splitlines()[0]
                raise UsageError(f"{path}:{line}: {message}") from None
            if name:
                costs[name] = (perf_counter() - start, _wal(connection) - before)
        found = {row["name"]: row for row in connection.execute(catalog.get("indexes").encode())}
    missing = [name for name in costs if name not in found]
    if missing:
        raise UsageError(
            f"{path}: {', '.join(missing)} not found after the build; expected every index to exist"
        )
    return [Built(seconds=costs[name][0], wal_bytes=costs[name][1], **found[name]) for name in costs]


def _statements(path: Path) -> list[tuple[tuple[str, int], str]]:
    """Statements with their line and, for CREATE INDEX, the index's name (empty for ANALYZE)."""
    found = []
    for statement in split(read(path)):
        if match := _CREATE.match(statement.text):
            quoted, plain = match["quoted"], match["plain"]
            name = quoted.replace('""', '"') if quoted else plain.lower()
        elif _ANALYZE.match(statement.text):
            name = ""
        else:
            first = statement.text.splitlines()[0][:60]
            raise UsageError(f"{path}:{statement.line}: {first!r}; expected CREATE INDEX name ... or ANALYZE")
        found.append(((statement.text, statement.line), name))
    return found


def _wal(connection: psycopg.Connection[Any]) -> int:
    """Bytes of WAL inserted so far on this server."""
    cursor = connection.cursor(row_factory=dict_row)
    row = cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS bytes").fetchone()
    return int(row["bytes"]) if row else 0
