"""Where logs come from: files, and the log of a running server over a connection, also while they grow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import psycopg

from perfkit.base.errors import ServerError, UsageError, first_line, visible
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import connected
from perfkit.postgres.servers import Server
from perfkit.slow.digest import STATEMENTS
from perfkit.slow.logs import CHUNK, LogReader
from perfkit.slow.statements import SlowQueries, own


def read(*paths: str | os.PathLike[str], form: str = "", prefix: str = "", limit: int = STATEMENTS) -> SlowQueries:
    """Return the statements of log files. Raises UsageError for a file that cannot be read or is a CSV log."""
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
    """Yield the statements of a growing log every `every_s` seconds, without end.

    With `whole`, start at the beginning of the file, otherwise at its end. Follows a rotation to the new file, and
    restarts a file that was emptied in place. Raises UsageError as `read` does.
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
            if _rotated(path, file):
                _feed(reader, file, path)  # entries written just before the rotation
                reader.end()
                file.close()
                file = _opened(path)
                continue
            yield reader.result()
            time.sleep(every_s)
    finally:
        file.close()


def _feed(reader: LogReader, file: BinaryIO, path: str | os.PathLike[str]) -> None:
    """Read the file to its current end."""
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


def _rotated(path: Path, file: BinaryIO) -> bool:
    """Return whether the path is another file now; in the middle of a rotation it can be missing."""
    try:
        current = path.stat()
    except OSError:
        return False
    opened_file = os.fstat(file.fileno())
    return (current.st_dev, current.st_ino) != (opened_file.st_dev, opened_file.st_ino)


PIECE = 1 << 20  # bytes to read over a connection at once
LAST = 64 * PIECE  # bytes to read from the end of a longer log
_FORMS = {"jsonlog": "json", "stderr": "stderr"}  # by log_destination, the form for LogReader


@dataclass(slots=True)
class ServerLog:
    """A position in a server's log, read over a connection; starts `last` bytes before the end of the log."""

    connection: Connection
    name: str
    form: str  # as in log_destination
    prefix: str
    last: int
    skipped: int = 0  # bytes before the first ones that were read
    file: str = field(default="", init=False)
    _at: int = field(default=0, init=False)

    def more(self) -> Iterator[bytes]:
        """Yield what was written since the last call, in pieces. Raises ServerError if the log cannot be read."""
        try:
            current = self._row("slow_log_place", {"form": self.form})
            if not current["file"]:
                raise ServerError(f"{visible(self.name)}: the server is not writing a log; expected a log file")
            size = current["size"] or 0
            if not self.file:
                self.file, self.skipped = current["file"], max(0, size - self.last)
                yield from self._from_a_line(self.skipped)
            elif current["file"] != self.file:
                yield from self._rest()
                self.file, self._at = current["file"], 0
            elif size < self._at:
                self._at = 0
            yield from self._rest()
        except psycopg.Error as error:
            what = f"{self.name}: the log cannot be read: {first_line(error)}"
            raise ServerError(f"{visible(what)}; expected the files in log_directory to be readable") from None

    def _rest(self) -> Iterator[bytes]:
        """Yield pieces up to the end of the file, even if the file grows meanwhile."""
        while piece := self._piece():
            yield piece

    def _from_a_line(self, start: int) -> Iterator[bytes]:
        """Yield the rest of the piece in which the first whole line from `start` begins."""
        if not start:
            return
        self._at = start - 1  # this byte may be the line break before a whole line
        while piece := self._piece():
            _, newline, rest = piece.partition(b"\n")
            if newline:
                yield rest
                return

    def _piece(self) -> bytes:
        range_ = {"file": self.file, "start": self._at, "length": PIECE}
        piece: bytes = self._row("slow_log_piece", range_)["piece"] or b""  # None: the file was removed
        self._at += len(piece)
        return piece

    def _row(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        query = catalog.get(name).encode()
        return self.connection.execute(query, parameters, binary=True).fetchone() or {}


def opened(connection: Connection, name: str, last: int = LAST) -> ServerLog:
    """Return the log of the connection's server. Raises ServerError that says what to set or to grant."""
    facts = catalog.row(connection, "slow_log")
    kinds = [kind.strip().lower() for kind in facts["destination"].split(",")]
    form = next((form for form in _FORMS if form in kinds), "")
    otherwise = "or a copy of the log as a file"
    if facts["collector"] != "on":
        obstacle = f"logging_collector = off; expected on, and a restart, {otherwise}"
    elif not form:
        obstacle = f"log_destination = {facts['destination']}; expected jsonlog or stderr in it, {otherwise}"
    elif facts["lacking"]:
        grant = f"GRANT EXECUTE ON FUNCTION {', '.join(facts['lacking'])} TO {facts['user']}"
        obstacle = f"{facts['user']} may not read the server's log; expected a superuser to run: {grant}, {otherwise}"
    else:
        return ServerLog(connection, name, form, facts["prefix"], last)
    raise ServerError(visible(f"{name}: {obstacle}"))


def read_server_log(server: Server, database: str, last: int = LAST) -> SlowQueries:
    """Return the slow statements of a database from the last `last` bytes of the server's log. Raises ServerError."""
    with connected(server, database, user="postgres") as connection:
        log = opened(connection, server.name, last)
        reader = _reader(log, database)
        for piece in log.more():
            reader.feed(piece)
        return _statements(log, reader)


def follow_server_log(server: Server, database: str, every_s: float = 2.0, last: int = 0) -> Iterator[SlowQueries]:
    """Yield what was logged from now on, or from `last` bytes ago, every `every_s` seconds. Raises ServerError."""
    with connected(server, database, user="postgres") as connection:
        log = opened(connection, server.name, last)
        reader = _reader(log, database)
        while True:
            for piece in log.more():
                reader.feed(piece)
            yield _statements(log, reader)
            time.sleep(every_s)


def _reader(log: ServerLog, database: str) -> LogReader:
    return LogReader(_FORMS[log.form], log.prefix, database=database)


def _statements(log: ServerLog, reader: LogReader) -> SlowQueries:
    """Return what a reader has found, without the statements that perfkit itself sent."""
    slow = reader.result()
    notes = (f"the first {log.skipped / 1e6:,.0f} MB of the log were not read",) if log.skipped and log.last else ()
    source = f"the log {log.file.rpartition('/')[2]} of {log.name}"
    others = tuple(s for s in slow.statements if not own(s.example.sql if s.example else s.text))
    return replace(slow, source=source, statements=others, notes=(*slow.notes, *notes))
