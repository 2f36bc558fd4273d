"""The server's own figures in each interval, asked in a thread so that nobody waits for a server that does not answer.

On a connection of its own, in read-only transactions with a time limit. What a role may not see is left out.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

from perfkit.errors import PerfkitError, TargetRefused
from perfkit.monitor.model import SERVER
from perfkit.postgres import catalog
from perfkit.postgres.place import Database
from perfkit.postgres.site import Connection
from perfkit.text import first_line, visible

QUERIES = ("watch_sessions", "watch_counters", "watch_wal", "watch_indexes")
_MAY_LACK = {"checksum_failures", "wal_bytes"}  # without checksums, or on a standby that archives feed: nothing to see


@dataclass(frozen=True, slots=True)
class ServerReading:
    """What the server said: keys of `SERVER`, those that could be had, and scans by index."""

    server: Mapping[str, float]
    scans: Mapping[str, int] = field(default_factory=dict)


class ServerProbe:
    """Asks a server for its figures: `ask` begins and returns at once, `answer` is what there is by then.

    `reach` gives the database, and raises ServerError as long as it does not answer; `note` is told what cannot be
    seen, by its kind.
    """

    def __init__(self, reach: Callable[[], Database], timeout_s: float, note: Callable[[str, str], None]) -> None:
        self._reach, self._timeout_s, self._note = reach, timeout_s, note
        self._wake, self._changed = threading.Event(), threading.Condition()
        self._asked = self._answered = 0
        self._reading: ServerReading | None = None
        self._connection: Connection | None = None
        self._line: socket.socket | None = None  # the connection's own, to cut it from another thread
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="perfkit-watch-server", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Begin to ask, unless an earlier question hangs."""
        with self._changed:
            if self._answered == self._asked:
                self._asked += 1
                self._wake.set()

    def answer(self, wait_s: float = 0.0) -> ServerReading | None:
        """What the server has said since `ask`, waiting for it at most so long; None where it has not answered.

        A connection that it does not answer on is cut.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._answered == self._asked, wait_s)
            if self._answered == self._asked:
                return self._reading
            if self._line:
                with suppress(OSError):
                    self._line.shutdown(socket.SHUT_RDWR)
            return None

    def close(self) -> None:
        """Ask no more, and close the connection."""
        self._closed = True
        self._wake.set()
        self.answer()  # cuts it where it hangs
        self._thread.join(1.0)

    def _serve(self) -> None:
        while self._wake.wait() and not self._closed:
            self._wake.clear()
            reading = self._read()
            with self._changed:
                self._reading, self._answered = reading, self._asked
                self._changed.notify_all()
        self._disconnect()

    def _read(self) -> ServerReading | None:
        """Everything that can be had; None where the server does not answer."""
        found: dict[str, Any] = {}
        try:
            connection = self._connected()
            for name in QUERIES:
                with suppress(_LeftOut):
                    found |= self._row(connection, name)
        except (psycopg.Error, PerfkitError, OSError) as error:
            self._disconnect()
            if isinstance(error, TargetRefused):  # such as another server that answers in its place
                self._note("server", str(error))
            return None
        if not found:
            return None
        scans = {str(name): int(count) for name, count in (found.pop("scans", None) or {}).items()}
        server = {name: float(value) for name, value in found.items() if name in SERVER and value is not None}
        if unseen := sorted(found.keys() - server.keys() - _MAY_LACK):
            self._note("rights", f"the role may not see {', '.join(unseen)}; pg_read_all_stats shows them")
        return ServerReading(server, scans)

    def _row(self, connection: Connection, name: str) -> dict[str, Any]:
        """One query's row, in one round trip. Raises _LeftOut where the server refuses it, psycopg.Error where lost."""
        ms = max(1, int(self._timeout_s * 1000))
        limit = f"BEGIN READ ONLY; SET LOCAL statement_timeout = {ms}; SET LOCAL lock_timeout = {ms};"
        try:
            cursor = connection.execute(f"{limit}\n{catalog.get(name)}\n; COMMIT".encode())
            while cursor.description is None and cursor.nextset():
                pass
            return cursor.fetchone() or {}
        except psycopg.Error as error:
            if connection.closed or connection.broken:
                raise
            connection.execute("ROLLBACK")
            self._note(name, f"{name.removeprefix('watch_')} cannot be had: {visible(first_line(error))}")
            raise _LeftOut from None

    def _connected(self) -> Connection:
        """The connection, opened anew where it was lost. Raises psycopg.Error, PerfkitError."""
        if self._connection is None:
            place = self._reach()
            connection = place.site.connect(place.name, user="postgres")
            connection.cursor_factory, connection.row_factory = psycopg.Cursor, dict_row  # audited once, as a load
            connection.prepare_threshold = None
            with self._changed:
                self._connection = connection
                self._line = socket.socket(fileno=os.dup(connection.fileno()))
        return self._connection

    def _disconnect(self) -> None:
        with self._changed:
            connection, line, self._connection, self._line = self._connection, self._line, None, None
        if line:
            line.close()
        if connection:
            with suppress(psycopg.Error):
                connection.close()


class _LeftOut(Exception):
    """The server refused one query; the others may go on."""
