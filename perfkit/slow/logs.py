"""Logs in JSON and stderr format, read in pieces of any size."""

from __future__ import annotations

import json
import re
from collections.abc import MutableMapping, Sequence
from copy import copy
from typing import Any

from pgtoolkit.log.parser import LogParser, NoopFilters, PrefixParser, Record, UnknownData

from perfkit.base.errors import UsageError
from perfkit.slow.digest import STATEMENTS, Digest, statement
from perfkit.slow.statements import SlowQueries

BEGINS = b'{"timestamp":"'
UNKNOWN_LINES = "lines were not recognised as log entries"
CUT = "entries were cut off at the end of the log"
TOO_LARGE = "entries were larger than 32 MB"
LARGEST = 32_000_000  # bytes of an entry
_MESSAGE = b'"message":"'
_WANTED = frozenset((b"dura", b"stat", b"exec"))  # beginnings of the messages to read
_EXECUTION = re.compile(
    rb'"message":"duration: (\d{1,15}\.\d{1,9}) ms  (?:statement|execute (?!fetch from)[^:"\\]{1,200}): '
)
_BEGIN = re.compile(rb'\{"timestamp":"([^"\\]{1,60})",(?:"user":"[^"\\]*",)?(?:"dbname":"[^"\\]*",)?"pid":(\d{1,9}),')
_QUERY_ID = b'"query_id":'
_SHORT = 10_000  # bytes of an entry that the digest may keep for a while
_TIME = re.compile(rb'\{"timestamp":"([^"\\]{1,60})"')
_lenient = json.JSONDecoder(strict=False).decode  # accepts control characters in strings


class JsonLog:
    """Adds the lines of a JSON log to a digest; with `database`, only those of that database."""

    __slots__ = ("_database",)

    def __init__(self, database: str = "") -> None:
        self._database = database

    @staticmethod
    def boundary(data: bytes) -> int:
        """Return the end of the last complete entry; 0 if there is none."""
        return data.rfind(b"\n") + 1

    @staticmethod
    def next_record(data: bytes) -> int:
        """Return the start of the next entry; 0 if there is none."""
        return data.find(b"\n") + 1

    def take(self, block: bytes, digest: Digest, reason: str = UNKNOWN_LINES) -> None:
        """Add whole lines to the digest; count the lines that cannot be read under `reason`."""
        first = last = b""
        quick = not self._database
        for line in block.split(b"\n"):
            # A quote inside a string is written \", so these bytes are always a key.
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
        """Return the same object, which has no state."""
        return self

    def end(self, rest: bytes, digest: Digest) -> None:
        """Add what follows the last whole line."""
        self.take(rest, digest, CUT)

    def _take(self, line: bytes, digest: Digest, reason: str) -> bool:
        """Add a line; return whether it could be read. The next entry can follow a truncated one on the same line."""
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
    """Count an execution of a known query id without parsing its entry; return whether that was possible."""
    # Most entries of a busy log repeat a known statement: this saves parsing their JSON.
    head, execution = _BEGIN.match(line), _EXECUTION.match(line, at)
    end = line.rfind(_QUERY_ID, at)
    if (
        not head
        or not execution
        or end < 0
        or line[-1] != 125  # }
        or len(line) > _SHORT
        or line.find(b";", at) > 0  # possibly several statements
        or line.find(BEGINS, 1) > 0  # follows a truncated entry
    ):
        return False
    query_id = line[end + len(_QUERY_ID) : -1].decode("ascii", "replace")
    return digest.count(query_id, float(execution[1]), int(head[2]), head[1].decode("ascii", "replace"), line)


def text_of(line: bytes) -> str:
    """Return the statement of a JSON entry."""
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


# The default log_line_prefix of PostgreSQL, Debian, pgBadger, RDS and Supabase, and other common ones.
PREFIXES = (
    "%m [%p] %q%u@%d ",
    "%t [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ",
    "%t [%p]: user=%u,db=%d,app=%a,client=%h ",
    "%m [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ",
    "%t:%r:%u@%d:[%p]:",
    "%h %m [%p] %q%u@%d ",
    "%m [%p] %q%u@%d %Q ",
    "%m [%p] %Q ",
    "%m [%p] %Q %q%u@%d ",
    "%t [%p-%l] %q%u@%d ",
    "%t [%p] %q%u@%d ",
)
_HEAD = re.compile(r"^(.{1,500}?)(?:LOG|ERROR|WARNING|FATAL|DETAIL|STATEMENT):  ", re.MULTILINE)
_STDERR_TIME = r"\d{4}-[01]\d-[0-3]\d [0-2]\d:[0-6]\d:[0-6]\d(?:\.\d{3})? (?:[A-Z][A-Za-z]{1,5}|[-+]\d\d(?::?\d\d)?)"
_BEGINS = re.compile(rb"\n(?=[^\t])")
_ANY = re.compile(rf"(?:.*?(?P<timestamp>{_STDERR_TIME}))?(?:.*?\[(?P<pid>\d{{1,9}})\b)?.*", re.DOTALL)


class StderrLog:
    """Adds the entries of a stderr log to a digest; with `database`, only those of that database.

    Entries whose prefix does not name a database count for every database. Raises UsageError for an invalid prefix.
    """

    __slots__ = ("_database", "_filters", "_held", "_parser")

    def __init__(self, prefix: str, head: str, database: str = "") -> None:
        self._database = database
        self._filters = _Wanted()
        self._parser = LogParser(_prefix_parser(prefix, head), self._filters)
        self._held: Record | None = None  # waits for its DETAIL, which may be the next record

    @staticmethod
    def boundary(data: bytes) -> int:
        """Return the start of the last record, which may be incomplete; 0 if it is the only one."""
        at = len(data) - 1
        while (at := data.rfind(b"\n", 0, max(at, 0))) >= 0:
            if data[at + 1] != 9:
                return at + 1
        return 0

    @staticmethod
    def next_record(data: bytes) -> int:
        """Return the start of the next record; 0 if there is none."""
        start = _BEGINS.search(data)
        return start.end() if start else 0

    def take(self, block: bytes, digest: Digest) -> None:
        """Add whole records to the digest; count the lines that cannot be read."""
        lines = block.decode("utf-8", "replace").split("\n")
        for record in self._parser.parse(
            [line.removesuffix("\r") for line in lines if line.strip() or line[:1] == "\t"]
        ):
            if isinstance(record, UnknownData):
                digest.unread[UNKNOWN_LINES] += len(record.lines)
            elif record.severity == "DETAIL":
                self._give(digest, _message(record))
            else:
                self._give(digest, "")
                self._held = record

    def copy(self) -> StderrLog:
        """Return a copy in the same state."""
        other = copy(self)
        other._filters = copy(self._filters)
        other._parser = LogParser(self._parser.prefix_parser, other._filters)
        return other

    def end(self, rest: bytes, digest: Digest) -> None:
        """Add the last record, which nothing can continue."""
        self.take(rest, digest)
        self._give(digest, "")

    def _give(self, digest: Digest, detail: str) -> None:
        held, self._held = self._held, None
        if held is not None and (not self._database or getattr(held, "database", None) in (None, self._database)):
            when = getattr(held, "timestamp", "") or ""
            digest.until = when or digest.until
            digest.since = digest.since or when
            query_id, backend = getattr(held, "query_id", None), getattr(held, "pid", None)
            digest.take(_message(held), detail, int(backend or 0), when, int(query_id or 0))


def _message(record: Record) -> str:
    return "\n".join([record.message_lines[0], *(line.removeprefix("\t") for line in record.message_lines[1:])])


class _Wanted(NoopFilters):
    """A filter for durations, statements logged before their duration, and the DETAIL of both."""

    last = False  # whether the previous record passed the filter

    def stage1(self, record: Record) -> bool | None:  # type: ignore[override]  # as its documentation has it
        if record.severity == "LOG":
            self.last = record.message_lines[0].startswith(("duration: ", "statement: ", "execute "))
            return not self.last
        wanted, self.last = self.last and record.severity == "DETAIL", False
        return not wanted


class _Prefix(PrefixParser):
    """A prefix parser that also knows query ids, any time zone, and names of any characters. Values stay text."""

    _status_pat = PrefixParser._status_pat | {
        "Q": r"(?P<query_id>-?\d{1,20})",
        "L": r"(?P<local>\S*)",
        "P": r"(?P<leader>\d*)",
        "a": r"(?P<application>.*?)",
        "b": r"(?P<backend_type>.*?)",
        "d": r"(?P<database>.*?)",
        "e": r"(?P<error>\w{5})",
        "h": r"(?P<remote_host>\S*?)",
        "i": r"(?P<command_tag>.*?)",
        "m": rf"(?P<timestamp_ms>{_STDERR_TIME})",
        "r": r"(?P<remote_host_r>\S*?)",
        "s": rf"(?P<start>{_STDERR_TIME})",
        "t": rf"(?P<timestamp>{_STDERR_TIME})",
        "u": r"(?P<user>.*?)",
    }
    _format_re = re.compile(f"%([{''.join(_status_pat)}])")

    def parse(self, prefix: str) -> MutableMapping[str, Any]:
        """Return the fields of a prefix; none if it does not match, because a statement counts without them too."""
        match = self.re_.fullmatch(prefix) or self.re_.fullmatch(prefix.rstrip(" "))
        fields: dict[str, Any] = match.groupdict() if match else {}
        fields["timestamp"] = fields.get("timestamp_ms") or fields.get("timestamp") or fields.get("epoch")
        return fields


def _prefix_parser(prefix: str, head: str) -> PrefixParser:
    """Return a parser for a log_line_prefix; without one, for the known prefix that the first lines match."""
    if prefix:
        return _compiled(prefix)
    seen = _HEAD.findall(head)[:200]
    parsers = map(_compiled, PREFIXES) if seen else ()
    return next((parser for parser in parsers if _matches(parser, seen)), _Prefix(_ANY))


def _matches(parser: PrefixParser, seen: Sequence[str]) -> bool:
    return sum(parser.re_.fullmatch(prefix) is not None for prefix in seen) >= 0.9 * len(seen)


def _compiled(prefix: str) -> PrefixParser:
    try:
        return _Prefix.from_configuration(prefix)
    except re.error:
        raise UsageError(f"log_line_prefix {prefix!r}: cannot be parsed; expected each %-letter once") from None


FORMS = ("json", "stderr")
CHUNK = 1 << 20  # bytes to read at once
_FILE_HEAD = 65_536  # bytes that decide the form of a log
_CSV = re.compile(rb'^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [^,"\s]{1,10},(?:"[^"]*")?,(?:"[^"]*")?,\d*,', re.MULTILINE)


class LogReader:
    """Reads a log that is fed in pieces of any size, in bounded memory.

    `form` is json or stderr, or empty to detect it from the first bytes; `prefix` is the log_line_prefix of a stderr
    log, or empty to detect it; `source` is the name of the log in messages. With `database`, only statements of that
    database count. Statements beyond `limit`, those with the smallest totals, become one line. Raises UsageError.
    """

    def __init__(
        self, form: str = "", prefix: str = "", *, source: str = "a log", database: str = "", limit: int = STATEMENTS
    ) -> None:
        if form not in ("", *FORMS):
            raise UsageError(f"form of the log: {form!r}; expected {' or '.join(FORMS)}")
        if prefix:
            StderrLog(prefix, "")  # refuses an invalid prefix before anything is read
        self._form, self._prefix, self._source, self._database = form, prefix, source, database
        self._digest = Digest(limit=limit, text_of=text_of)
        self._log: JsonLog | StderrLog | None = None
        self._parts: list[bytes] = []  # an incomplete entry
        self._size = 0
        self._skipping = False  # whether the current entry is too large
        self._empty = True

    def feed(self, data: bytes) -> None:
        """Read the next bytes. Raises UsageError if they are a CSV log."""
        for start in range(0, len(data), CHUNK):
            piece = data[start : start + CHUNK]
            self._empty = False
            if self._log is None:
                self._keep(piece)
                if self._size < _FILE_HEAD:
                    continue
                self._begin()
            else:
                self._split(piece)

    def result(self) -> SlowQueries:
        """Return what was read so far, with the last entry if it looks complete; feeding can continue."""
        if self._empty:
            return self._digest.result(self._source)
        ended = self._copy()
        ended.end()
        return ended._digest.result(self._source)

    def end(self) -> None:
        """End a file: count what is incomplete; another file can be fed afterwards."""
        if self._log is None and self._parts:
            self._begin()
        if self._log is None:
            return
        rest, skipped = b"".join(self._parts), self._skipping
        self._parts, self._size, self._skipping = [], 0, False
        self._log.end(b"" if skipped else rest, self._digest)

    def _begin(self) -> None:
        """Detect the form from the first bytes, and read them."""
        whole = b"".join(self._parts)
        head = whole[:_FILE_HEAD]
        form = self._form or _form(head, self._source)
        if form == "json":
            self._log = JsonLog(self._database)
        else:
            self._log = StderrLog(self._prefix, head.decode("utf-8", "replace"), self._database)
        self._parts, self._size = [], 0
        self._split(whole)

    def _split(self, piece: bytes) -> None:
        """Read the complete entries and keep the rest."""
        assert self._log is not None
        tail = self._parts[-1][-1:] if self._parts else b""
        if self._skipping and (begins := self._log.next_record(tail + piece)):
            piece, tail = (tail + piece)[begins:], b""
            self._parts, self._size, self._skipping = [], 0, False
        at = self._log.boundary(tail + piece) - len(tail)
        if at < 0 or (at == 0 and tail != b"\n"):
            self._keep(piece)
            return
        whole = b"".join([*self._parts, piece[:at]])
        self._parts, self._size = [], 0
        self._log.take(whole, self._digest)
        self._keep(piece[at:])

    def _keep(self, piece: bytes) -> None:
        if self._log is not None and (self._skipping or self._size + len(piece) > LARGEST):
            if not self._skipping:
                self._digest.unread[TOO_LARGE] += 1
            self._skipping, piece = True, piece[-1:]
            self._parts, self._size = [], 0
        if piece:
            self._parts.append(piece)
            self._size += len(piece)

    def _copy(self) -> LogReader:
        own = LogReader(self._form, self._prefix, source=self._source, database=self._database)
        own._digest = self._digest.copy()
        own._log = self._log.copy() if self._log else None
        own._parts, own._size, own._skipping = list(self._parts), self._size, self._skipping
        return own


def _form(head: bytes, source: str) -> str:
    """Return the form of a log. Raises UsageError for a CSV log."""
    if any(line.startswith(BEGINS) for line in head.split(b"\n")):
        return "json"
    if _CSV.search(head):
        raise UsageError(
            f"{source}: is a CSV log; expected log_destination = jsonlog (PostgreSQL 15 or later) or stderr"
        )
    return "stderr"
