"""PostgreSQL's plain log (log_destination = stderr), parsed by pgtoolkit."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from copy import copy
from typing import Any

from pgtoolkit.log.parser import LogParser, NoopFilters, PrefixParser, Record, UnknownData

from perfkit.errors import UsageError
from perfkit.slow.digest import Digest

NO_LINE = "line that is no record of PostgreSQL's log"
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
                digest.unread[NO_LINE] += len(found.lines)
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
