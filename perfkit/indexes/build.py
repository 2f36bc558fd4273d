"""Building an index set: what each index costs in time, bytes and WAL, and whether it is valid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from zlib import crc32

import psycopg
from psycopg import sql

from perfkit.errors import UsageError
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.site import Connection, Site
from perfkit.postgres.statements import read, split
from perfkit.text import first_line

# Only as far as the name: what follows is the server's to judge, whatever its version knows.
_CREATE = re.compile(
    r"""(?P<verb>CREATE\s+(UNIQUE\s+)?INDEX)\s+(?P<concurrently>CONCURRENTLY\s+)?(IF\s+NOT\s+EXISTS\s+)?(?!(CONCURRENTLY|ON)\b)"""
    r"""("(?P<quoted>([^"]|"")+)"|(?P<plain>[^\W\d][\w$]*))\s+ON\b""",
    re.IGNORECASE,
)
_UNNAMED = re.compile(r"(CREATE\s+(?:UNIQUE\s+)?INDEX)\s+(CONCURRENTLY\s+)?(?=ON\b)", re.IGNORECASE)
LOCK_TIMEOUT = "5s"  # waiting longer for a lock would make others wait behind us
_ANALYZE = re.compile(r"ANALY[ZS]E\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Built:
    """One index as built: seconds, bytes on disk, bytes of WAL the build wrote (where it alone wrote any)."""

    name: str
    table: str
    definition: str
    seconds: float
    bytes: int
    wal_bytes: int | None
    valid: bool


def index_names(path: Path) -> list[str]:
    """The names of the indexes that a file creates. Raises UsageError with the line of anything else."""
    return [name for _, _, name in _statements(path) if name]


def build(server: Site, database: str, path: Path, *, in_place: str = "") -> list[Built]:
    """Create the file's indexes one by one in a database, and run its ANALYZE statements.

    With `in_place`, a comment for each index, they are built CONCURRENTLY, waiting for locks only briefly.
    Raises UsageError with file, line and the server's words where a statement fails.
    """
    costs: dict[str, tuple[float, int | None]] = {}
    with connected(server, database) as connection:
        connection.execute("SET statement_timeout = 0")
        if in_place:
            connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
            # Where the server knows it: a build whose client was killed ends too.
            connection.execute(
                "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
            )
        there = {row["oid"] for row in catalog.rows(connection, "indexes")}
        for text, line, name in _statements(path):
            before, start = _wal(connection), perf_counter()
            try:
                connection.execute((_concurrently(text) if in_place else text).encode())
            except psycopg.Error as error:
                raise UsageError(f"{path}:{line}: {first_line(error)}") from None
            if name:
                costs[name] = (perf_counter() - start, None if in_place else _wal(connection) - before)
        found = {row["name"]: row for row in catalog.rows(connection, "indexes") if row["oid"] not in there}
        if missing := [name for name in costs if name not in found]:
            raise UsageError(f"{path}: {', '.join(missing)} is there already; expected every index to be a new one")
        for name in costs if in_place else ():  # whose it is, should it ever be left behind
            mark = sql.SQL("COMMENT ON INDEX {} IS {}")
            connection.execute(mark.format(sql.SQL(found[name]["quoted"]), sql.Literal(in_place)))
    return [_built(found[name], *costs[name]) for name in costs]


def places(connection: Connection, names: Sequence[str]) -> list[str]:
    """The indexes of these names in any schema, quoted and with their schema."""
    return [row["quoted"] for row in catalog.rows(connection, "indexes") if row["name"] in names]


def _built(row: Mapping[str, Any], seconds: float, wal_bytes: int | None) -> Built:
    return Built(row["name"], row["table"], row["definition"], seconds, row["bytes"], wal_bytes, row["valid"])


def _concurrently(text: str) -> str:
    """A CREATE INDEX that lets others write meanwhile; other statements as they are."""
    match = _CREATE.match(text)
    if not match or match["concurrently"]:
        return text
    return f"{match['verb']} CONCURRENTLY {text[match.end('verb') :]}"


def _statements(path: Path) -> list[tuple[str, int, str]]:
    """Statements with their line and, for CREATE INDEX, the index's name (empty for ANALYZE)."""
    found = []
    for statement in split(read(path)):
        text = _named(statement.text)
        if match := _CREATE.match(text):
            quoted, plain = match["quoted"], match["plain"]
            name = quoted.replace('""', '"') if quoted else plain.lower()
            name = name.encode()[:63].decode(errors="ignore")  # as the server cuts it
        elif _ANALYZE.match(text):
            name = ""
        else:
            first = text.splitlines()[0][:60]
            raise UsageError(f"{path}:{statement.line}: {first!r}; expected CREATE INDEX ... or ANALYZE")
        found.append((text, statement.line, name))
    return found


def _named(text: str) -> str:
    """A CREATE INDEX without a name gets one that the statement alone decides: it must be known to be removed."""
    match = _UNNAMED.match(text)
    if not match:
        return text
    name = f"perfkit_{crc32(' '.join(text.split()).encode()):08x}"
    return f"{match[1]} {match[2] or ''}{name} {text[match.end() :]}"


def _wal(connection: Connection) -> int:
    """Bytes of WAL inserted so far on this server."""
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS bytes").fetchone()
    return int(row["bytes"]) if row else 0
