"""Logs of a server: their formats, read from files in pieces, and from the server itself."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO

import psycopg
from pgtoolkit.log.parser import LogParser, NoopFilters, PrefixParser, Record, UnknownData

from perfkit.base.errors import ServerError, UsageError, first_line, visible
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import connected
from perfkit.postgres.servers import Server
from perfkit.slow.digest import STATEMENTS, Digest, statement
from perfkit.slow.statements import SlowQueries, own

BEGINS = b'{"timestamp":"'
UNKNOWN_LINES = "lines were not recognised as log entries"
CUT = "entries were cut off at the end of the log"
TOO_LARGE = "entries were larger than 32 MB"
LARGEST = 32_000_000  # bytes of an entry
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

    def take(self, block: bytes, digest: Digest, reason: str = UNKNOWN_LINES) -> None:
        """Add whole lines to the digest; count the lines that cannot be read under `reason`."""
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


# PostgreSQL's plain log (log_destination = stderr), parsed by pgtoolkit.

# PostgreSQL's default and Debian's, pgBadger's, RDS's, Supabase's, and some that are common.
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
    """Records of a plain log given to a digest; of one database only where it is named, and the prefix tells it.

    Raises UsageError for a prefix that cannot be meant.
    """

    __slots__ = ("_database", "_filters", "_held", "_parser")

    def __init__(self, prefix: str, head: str, database: str = "") -> None:
        self._database = database
        self._filters = _Wanted()
        self._parser = LogParser(_prefix(prefix, head), self._filters)
        self._held: Record | None = None  # its DETAIL may be the next record

    @staticmethod
    def boundary(data: bytes) -> int:
        """Where the last record begins, which may go on; 0 where no other is before it."""
        at = len(data) - 1
        while (at := data.rfind(b"\n", 0, max(at, 0))) >= 0:
            if data[at + 1] != 9:
                return at + 1
        return 0

    @staticmethod
    def next_record(data: bytes) -> int:
        """Where the first record behind this one begins; 0 where none does."""
        found = _BEGINS.search(data)
        return found.end() if found else 0

    def take(self, block: bytes, digest: Digest) -> None:
        """Whole records. What cannot be read is counted."""
        lines = block.decode("utf-8", "replace").split("\n")
        for found in self._parser.parse(
            [line.removesuffix("\r") for line in lines if line.strip() or line[:1] == "\t"]
        ):
            if isinstance(found, UnknownData):
                digest.unread[UNKNOWN_LINES] += len(found.lines)
            elif found.severity == "DETAIL":
                self._give(digest, _message(found))
            else:
                self._give(digest, "")
                self._held = found

    def copy(self) -> StderrLog:
        """Another in the same state."""
        own = copy(self)
        own._filters = copy(self._filters)
        own._parser = LogParser(self._parser.prefix_parser, own._filters)
        return own

    def end(self, rest: bytes, digest: Digest) -> None:
        """The last record, which nothing continues any more."""
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
    """Drops all but durations, statements that wait for theirs, and the DETAIL of these, before more is looked at."""

    last = False  # whether the record before was wanted

    def stage1(self, record: Record) -> bool | None:  # type: ignore[override]  # as its documentation has it
        if record.severity == "LOG":
            self.last = record.message_lines[0].startswith(("duration: ", "statement: ", "execute "))
            return not self.last
        wanted, self.last = self.last and record.severity == "DETAIL", False
        return not wanted


class _Prefix(PrefixParser):
    """With what pgtoolkit does not know: query ids, any zone, and names of any characters. Values stay text."""

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
        """Its fields; none where it is another's, as a statement can be counted without."""
        match = self.re_.fullmatch(prefix) or self.re_.fullmatch(prefix.rstrip(" "))
        fields: dict[str, Any] = match.groupdict() if match else {}
        fields["timestamp"] = fields.get("timestamp_ms") or fields.get("timestamp") or fields.get("epoch")
        return fields


def _prefix(given: str, head: str) -> PrefixParser:
    """A parser for the prefix given, or for the one that the first lines have."""
    if given:
        return _made(given)
    seen = _HEAD.findall(head)[:200]
    known = ((_made(prefix), prefix) for prefix in PREFIXES)
    return next((own for own, _ in known if seen and _fits(own, seen)), _Prefix(_ANY))


def _fits(own: PrefixParser, seen: Sequence[str]) -> bool:
    return sum(own.re_.fullmatch(prefix) is not None for prefix in seen) >= 0.9 * len(seen)


def _made(prefix: str) -> PrefixParser:
    try:
        return _Prefix.from_configuration(prefix)
    except re.error:
        raise UsageError(f"log_line_prefix {prefix!r}: it cannot be read back; expected each %-letter once") from None


# Slow statements out of a PostgreSQL log, whole or while it is written, in memory that has a limit.

FORMS = ("json", "stderr")
CHUNK = 1 << 20  # bytes that are looked at together
_FILE_HEAD = 65_536  # bytes by which a form is told
_CSV = re.compile(rb'^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [^,"\s]{1,10},(?:"[^"]*")?,(?:"[^"]*")?,\d*,', re.MULTILINE)


class LogReader:
    """A log fed in pieces of any size. `form`: json or stderr, empty to tell it by the first bytes.

    `prefix`: log_line_prefix of a stderr log, empty to guess it; `source`: what the log is called; `database`:
    the only one whose statements count, all without it. Statements beyond `limit`, those with the smallest totals,
    become one line. Raises UsageError.
    """

    def __init__(
        self, form: str = "", prefix: str = "", *, source: str = "a log", database: str = "", limit: int = STATEMENTS
    ) -> None:
        if form not in ("", *FORMS):
            raise UsageError(f"the form of a log: {form!r}; expected {' or '.join(FORMS)}")
        if prefix:
            StderrLog(prefix, "")  # refused before anything is read
        self._form, self._prefix, self._source, self._database = form, prefix, source, database
        self._digest = Digest(limit=limit, text_of=text_of)
        self._log: JsonLog | StderrLog | None = None
        self._parts: list[bytes] = []  # what is not whole yet
        self._size = 0
        self._skipping = False  # a record that is too large
        self._empty = True

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises UsageError where they show that it is a CSV log."""
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
        """What was read so far, the last record too where it looks complete; feeding can go on."""
        if self._empty:
            return self._digest.result(self._source)
        ended = self._copy()
        ended.end()
        return ended._digest.result(self._source)

    def end(self) -> None:
        """Nothing follows what was fed: what is not whole is counted; another file can be fed."""
        if self._log is None and self._parts:
            self._begin()
        if self._log is None:
            return
        rest, skipped = b"".join(self._parts), self._skipping
        self._parts, self._size, self._skipping = [], 0, False
        self._log.end(b"" if skipped else rest, self._digest)

    def _begin(self) -> None:
        """Tell the form by the first bytes, and read them."""
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
        """Take what is whole, keep the rest."""
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


def read(*paths: str | os.PathLike[str], form: str = "", prefix: str = "", limit: int = STATEMENTS) -> SlowQueries:
    """Whole log files, one behind the other. Raises UsageError for what is no file, cannot be read, or is a CSV log."""
    reader = LogReader(form, prefix, source=f"the log {', '.join(map(str, paths))}", limit=limit)
    for path in paths:
        with _opened(Path(path)) as file:
            _feed(reader, file, path)
        reader.end()
    return reader.result()


def follow(
    path: str | os.PathLike[str],
    form: str = "",
    prefix: str = "",
    *,
    every_s: float = 1.0,
    whole: bool = True,
    limit: int = STATEMENTS,
) -> Iterator[SlowQueries]:
    """What a log says, every `every_s` seconds, while it is written, without end.

    `whole`: with what is in it already. A file that takes its name (rotation) is read on from there, as is one that
    was emptied in place. Raises UsageError as `read` does.
    """
    path = Path(path)
    reader = LogReader(form, prefix, source=f"the log {path}", limit=limit)
    file = _opened(path)
    try:
        if not whole:
            file.seek(0, os.SEEK_END)
        while True:
            _feed(reader, file, path)
            if file.tell() > os.fstat(file.fileno()).st_size:  # emptied in place
                reader.end()
                file.seek(0)
                continue
            if _moved(path, file):
                _feed(reader, file, path)  # what was written until it was moved
                reader.end()
                file.close()
                file = _opened(path)
                continue
            yield reader.result()
            time.sleep(every_s)
    finally:
        file.close()


def _form(head: bytes, source: str) -> str:
    """The form of a log. Raises UsageError for a CSV log."""
    if any(line.startswith(BEGINS) for line in head.split(b"\n")):
        return "json"
    if _CSV.search(head):
        raise UsageError(f"{source}: a CSV log; expected log_destination = jsonlog (15 and later) or stderr")
    return "stderr"


def _feed(reader: LogReader, file: BinaryIO, path: str | os.PathLike[str]) -> None:
    """All that is in the file now."""
    try:
        while data := file.read(CHUNK):
            reader.feed(data)
    except OSError as error:
        raise _refused(path, error) from None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: str | os.PathLike[str], error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be read ({error.strerror}); expected a log file of PostgreSQL")


def _moved(path: Path, file: BinaryIO) -> bool:
    """Whether the name has another file now; for a moment it may have none."""
    try:
        now = path.stat()
    except OSError:
        return False
    own = os.fstat(file.fileno())
    return (now.st_dev, now.st_ino) != (own.st_dev, own.st_ino)


# The server's own log, read over a connection in pieces: as it is, and on from there, across rotations.

PIECE = 1 << 20  # bytes
LAST = 64 * PIECE  # of a log that is longer
_FORMS = {"jsonlog": "json", "stderr": "stderr"}  # as the server calls them, and as LogReader does


@dataclass(slots=True)
class ServerLog:
    """Where in the server's log the reading is; `last` bytes before its end at first."""

    connection: Connection
    name: str
    form: str  # as the server calls it
    prefix: str
    last: int
    skipped: int = 0  # bytes before those that were read
    file: str = field(default="", init=False)
    _at: int = field(default=0, init=False)

    def more(self) -> Iterator[bytes]:
        """What was written since the last call, in pieces. Raises ServerError where it cannot be read."""
        try:
            place = self._asked("slow_log_place", {"form": self.form})
            if not place["file"]:
                raise ServerError(f"{visible(self.name)}: no log is written at the moment; expected one to be read")
            size = place["size"] or 0
            if not self.file:
                self.file, self.skipped = place["file"], max(0, size - self.last)
                yield from self._from_a_line(self.skipped)
            elif place["file"] != self.file:
                yield from self._rest()
                self.file, self._at = place["file"], 0
            elif size < self._at:
                self._at = 0
            yield from self._rest()
        except psycopg.Error as error:
            what = f"{self.name}: the log cannot be read: {first_line(error)}"
            raise ServerError(f"{visible(what)}; expected what is in log_directory to be readable") from None

    def _rest(self) -> Iterator[bytes]:
        """To the end, as that is when it is reached."""
        while piece := self._piece():
            yield piece

    def _from_a_line(self, start: int) -> Iterator[bytes]:
        """The rest of the piece in which the first whole line from there begins."""
        if not start:
            return
        self._at = start - 1  # it may be the end of a line
        while piece := self._piece():
            _, newline, rest = piece.partition(b"\n")
            if newline:
                yield rest
                return

    def _piece(self) -> bytes:
        asked = {"file": self.file, "start": self._at, "length": PIECE}
        piece: bytes = self._asked("slow_log_piece", asked)["piece"] or b""  # None: it is gone
        self._at += len(piece)
        return piece

    def _asked(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        query = catalog.get(name).encode()
        return self.connection.execute(query, parameters, binary=True).fetchone() or {}


def opened(connection: Connection, name: str, last: int = LAST) -> ServerLog:
    """The log of the server that the connection is to. Raises ServerError, saying what to set or to grant."""
    found = catalog.row(connection, "slow_log")
    kinds = [kind.strip().lower() for kind in found["destination"].split(",")]
    form = next((form for form in _FORMS if form in kinds), "")
    otherwise = "or a copy of the log as a file"
    if found["collector"] != "on":
        lacking = f"logging_collector = off; expected on, and a restart, {otherwise}"
    elif not form:
        lacking = f"log_destination = {found['destination']}; expected jsonlog or stderr in it, {otherwise}"
    elif found["lacking"]:
        grant = f"GRANT EXECUTE ON FUNCTION {', '.join(found['lacking'])} TO {found['user']}"
        lacking = f"{found['user']} may not read the server's log; expected a superuser to run: {grant}, {otherwise}"
    else:
        return ServerLog(connection, name, form, found["prefix"], last)
    raise ServerError(visible(f"{name}: {lacking}"))


def read_server_log(site: Server, database: str, last: int = LAST) -> SlowQueries:
    """The slow statements of a database in its server's log, of the last bytes of a longer one. Raises ServerError."""
    with connected(site, database, user="postgres") as connection:
        log = opened(connection, site.name, last)
        reader = _reader(log, database)
        for piece in log.more():
            reader.feed(piece)
        return _told(log, reader)


def follow_server_log(site: Server, database: str, every_s: float = 2.0, last: int = 0) -> Iterator[SlowQueries]:
    """What was logged from now on, or from `last` bytes ago, again and again until it is closed. Raises ServerError."""
    with connected(site, database, user="postgres") as connection:
        log = opened(connection, site.name, last)
        reader = _reader(log, database)
        while True:
            for piece in log.more():
                reader.feed(piece)
            yield _told(log, reader)
            sleep(every_s)


def _reader(log: ServerLog, database: str) -> LogReader:
    return LogReader(_FORMS[log.form], log.prefix, database=database)


def _told(log: ServerLog, reader: LogReader) -> SlowQueries:
    found = reader.result()
    notes = (f"the {log.skipped / 1e6:,.0f} MB before it were not read",) if log.skipped and log.last else ()
    source = f"the log {log.file.rpartition('/')[2]} of {log.name}"
    others = tuple(s for s in found.statements if not own(s.example.sql if s.example else s.text))
    return replace(found, source=source, statements=others, notes=(*found.notes, *notes))
