"""Slow statements out of a PostgreSQL log, whole or while it is written, in memory that has a limit."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from perfkit.errors import UsageError
from perfkit.slow import jsonlog, stderr
from perfkit.slow.digest import STATEMENTS, Digest
from perfkit.slow.model import SlowQueries

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
            stderr.StderrLog(prefix, "")  # refused before anything is read
        self._form, self._prefix, self._source, self._database = form, prefix, source, database
        self._digest = Digest(limit=limit, text_of=jsonlog.text_of)
        self._log: jsonlog.JsonLog | stderr.StderrLog | None = None
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
            self._log = jsonlog.JsonLog(self._database)
        else:
            self._log = stderr.StderrLog(self._prefix, head.decode("utf-8", "replace"), self._database)
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
        if self._log is not None and (self._skipping or self._size + len(piece) > jsonlog.LARGEST):
            if not self._skipping:
                self._digest.unread[jsonlog.TOO_LARGE] += 1
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
    if any(line.startswith(jsonlog.BEGINS) for line in head.split(b"\n")):
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
