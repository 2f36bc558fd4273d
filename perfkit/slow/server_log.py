"""The server's own log, read over a connection in pieces: as it is, and on from there, across rotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import sleep
from typing import Any

import psycopg

from perfkit.errors import ServerError
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.site import Connection, Server
from perfkit.slow.log import LogReader
from perfkit.slow.model import SlowQueries
from perfkit.slow.statements import own
from perfkit.text import first_line, visible

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
