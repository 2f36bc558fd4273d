"""PostgreSQL's jsonlog (15 and later): one JSON object a line."""

from __future__ import annotations

import json
import re
from typing import Any

from perfkit.slow.digest import Digest
from perfkit.slow.entries import statement

BEGINS = b'{"timestamp":"'
NO_RECORD = "line that is no record of a jsonlog"
CUT = "record that the log's end cut off"
TOO_LARGE = "record of more than 32 MB"
LARGEST = 32_000_000  # bytes of a record
_MESSAGE = b'"message":"'
_WANTED = frozenset((b"dura", b"stat", b"exec"))  # as the messages begin that are read
_EXECUTION = re.compile(
    rb'"message":"duration: (\d{1,15}\.\d{1,9}) ms  (?:statement|execute (?!fetch from)[^:"\\]{1,200}): '
)
_BEGIN = re.compile(rb'\{"timestamp":"([^"\\]{1,60})",(?:"user":"[^"\\]*",)?(?:"dbname":"[^"\\]*",)?"pid":(\d{1,9}),')
_QUERY_ID = b'"query_id":'
_SHORT = 10_000  # bytes of a record that is kept for a while
_TIME = re.compile(rb'\{"timestamp":"([^"\\]{1,60})"')
_lenient = json.JSONDecoder(strict=False).decode  # control characters in a text are let through


class JsonLog:
    """Lines of a jsonlog given to a digest; of one database only where it is named."""

    __slots__ = ("_database",)

    def __init__(self, database: str = "") -> None:
        self._database = database

    @staticmethod
    def boundary(data: bytes) -> int:
        """Where the last record that is complete ends; 0 where none is."""
        return data.rfind(b"\n") + 1

    @staticmethod
    def next_record(data: bytes) -> int:
        """Where the first record behind this one begins; 0 where none does."""
        return data.find(b"\n") + 1

    def take(self, block: bytes, digest: Digest, reason: str = NO_RECORD) -> None:
        """Whole lines. What cannot be read is counted, for this reason."""
        first = last = b""
        quick = not self._database
        for line in block.split(b"\n"):
            # A quote within a text is written \", so these bytes are a key and never part of a text.
            at = line.find(_MESSAGE)
            if at >= 0 and line[at + 11 : at + 15] in _WANTED:
                if not ((quick and _counted(line, at, digest)) or self._take(line, digest, reason)):
                    continue
            elif not (line.startswith(BEGINS) and line.rstrip(b"\r").endswith(b"}")):
                if line.strip():
                    digest.unread[reason] += 1
                continue
            first, last = first or line, line
        for line in (first, last):
            if found := _TIME.match(line):
                digest.until = found[1].decode("utf-8", "replace")
                digest.since = digest.since or digest.until

    def copy(self) -> JsonLog:
        """It has no state."""
        return self

    def end(self, rest: bytes, digest: Digest) -> None:
        """What follows the last whole line."""
        self.take(rest, digest, CUT)

    def _take(self, line: bytes, digest: Digest, reason: str) -> bool:
        """Whether a line could be read. One that was cut off can have the next behind it."""
        if len(line) > LARGEST:
            digest.unread[TOO_LARGE] += 1
            return False
        record = _record(line)
        if record is None:
            digest.unread[reason] += 1
            again = line.rfind(BEGINS)
            return again > 0 and self._take(line[again:], digest, reason)
        get = record.get
        if self._database and get("dbname") != self._database:
            return True
        message, detail, backend, query_id = get("message"), get("detail", ""), get("pid"), get("query_id")
        digest.take(
            message if isinstance(message, str) else "",
            detail if isinstance(detail, str) else "",
            backend if isinstance(backend, int) else 0,
            str(get("timestamp", "")),
            query_id if isinstance(query_id, int) else 0,
        )
        return True


def _counted(line: bytes, at: int, digest: Digest) -> bool:
    """Count an execution of a statement that is known by its id, without reading the whole record; False where not."""
    head, found = _BEGIN.match(line), _EXECUTION.match(line, at)
    end = line.rfind(_QUERY_ID, at)
    if (
        not head
        or not found
        or end < 0
        or line[-1] != 125  # }
        or len(line) > _SHORT
        or line.find(b";", at) > 0  # it may be several statements
        or line.find(BEGINS, 1) > 0  # behind one that was cut off
    ):
        return False
    query_id = line[end + len(_QUERY_ID) : -1].decode("ascii", "replace")
    return digest.count(query_id, float(found[1]), int(head[2]), head[1].decode("ascii", "replace"), line)


def text_of(line: bytes) -> str:
    """The statement in a record."""
    return statement(str((_record(line) or {}).get("message", "")))


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        try:
            record = _lenient(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
    return record if isinstance(record, dict) else None
