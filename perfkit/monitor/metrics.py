"""Metrics of a watch: the database server's, read in each interval, and all of them for Prometheus.

Names and units follow OpenMetrics. Histograms of several watches or items may be added. The server is read over a
connection of its own, in read-only transactions with a time limit; what the role may not see is left out.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from queue import SimpleQueue
from socketserver import TCPServer
from typing import SupportsFloat

import psycopg
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, MetricsHandler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg.rows import dict_row

from perfkit.base.errors import PerfkitError, TargetRefused, UsageError, first_line, visible
from perfkit.monitor import figures
from perfkit.monitor.model import OK, SERVER, About, Event, Tick
from perfkit.monitor.notifications import Note
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import Database

LOCAL = "127.0.0.1"
#: Upper ends in seconds. The usual limits of a booking service are among them, so that a share below one is exact.
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 5, 10, 30)
OUTCOMES = 50  # number of outcome labels; further outcomes count as `other`
OTHER = "other"
_SCRAPE_S = 10.0  # a scraper that neither sends nor reads for longer is disconnected


class Metrics(Collector):
    """The metrics of one watch. Thread-safe; never waits for a scraper."""

    def __init__(self, about: About) -> None:
        self._kinds = about.kinds
        self._rules = {(rule.name, str(rule.level)) for rule in about.watch.rule}
        self._labels = {item: (visible(item), kind) for item, kind in about.kinds.items()}
        self._outcomes = {OK}
        self._latest: tuple[Tick, tuple[Event, ...]] | None = None
        self._server: _Server | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        names = {"id": visible(about.id), "title": visible(about.title)}
        Info("perfkit_watch", "The watch.", registry=self._registry).info(names)
        of = ("item", "kind")
        self._probes = Counter("perfkit_probes", "Probes that ended.", (*of, "outcome"), registry=self._registry)
        self._durations = Histogram(
            "perfkit_probe_duration_seconds",
            "Response times from when a probe was due, of those answered as expected.",
            of,
            buckets=BUCKETS,
            registry=self._registry,
        )
        # Every series starts at 0: a rate needs a first value.
        for labels in self._labels.values():
            self._probes.labels(*labels, OK)
            self._durations.labels(*labels)

    def observe(self, item: str, outcome: str, seconds: float) -> None:
        """Count a probe that ended `seconds` after it was due."""
        labels = self._labels[item]
        if outcome not in self._outcomes and len(self._outcomes) >= OUTCOMES:
            outcome = OTHER
        self._outcomes.add(outcome)
        self._probes.labels(*labels, visible(outcome)).inc()
        if outcome == OK:
            self._durations.labels(*labels).observe(seconds)

    def update(self, tick: Tick, active: Sequence[Event]) -> None:
        """Publish the last interval and the active alerts."""
        self._latest = tick, tuple(active)

    def serve(self, port: int = 0, address: str = LOCAL) -> int:
        """Serve scrapes at an address, in threads; return the port, a free one for 0.

        Raises UsageError if the address or port cannot be used.
        """
        try:
            self._server = _Server((address, port), _Handler.factory(self._registry))
        except (OSError, OverflowError) as error:
            words = getattr(error, "strerror", None) or str(error)
            expected = "expected an address and a free port of this machine"
            raise UsageError(f"metrics: {visible(address)} port {port}: {words}; {expected}") from None
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges and counters of the last interval; none before the first."""
        if self._latest is None:
            return
        tick, active = self._latest
        yield _gauge("watch_interval_end_timestamp_seconds", "When the last interval ended.", tick.at)
        pending = GaugeMetricFamily("perfkit_probes_pending", "Probes due and not ended.", labels=("item",))
        for item, probe in tick.probes.items():
            pending.add_metric((visible(item),), probe.pending)
        yield pending
        for part, down in (("service", figures.service_down), ("database", figures.database_down)):
            if (is_down := down(tick, self._kinds)) is not None:
                meaning = f"1 while the {part} answers as expected, 0 while it does not."
                yield _gauge(f"{part}_up", meaning, 1.0 - is_down)
        # Without the server's figures while the database does not answer.
        for key, value in (tick.server or {}).items():
            name, meaning = SERVER[key]
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"perfkit_server_{name}", f"{meaning[0].upper()}{meaning[1:]}.", value)
        alerts = GaugeMetricFamily("perfkit_alert_standing", "1 while the alert is active.", labels=("rule", "level"))
        now = {(event.rule, event.level) for event in active}
        for rule, level in sorted(self._rules | now):
            alerts.add_metric((visible(rule), visible(level)), float((rule, level) in now))
        yield alerts


def endpoint(text: str) -> tuple[str, int]:
    """Return address and port of `PORT`, which only this machine reaches, or `ADDRESS:PORT`. Raises UsageError.

    >>> endpoint("9187"), endpoint("0.0.0.0:0")
    (('127.0.0.1', 9187), ('0.0.0.0', 0))
    """
    address, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) < 65_536):
        raise UsageError(f"metrics = {visible(text)!r}; expected PORT from 0 to 65535, or ADDRESS:PORT")
    return address or LOCAL, int(port)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"perfkit_{name}", help_text, value)


class _Handler(MetricsHandler):
    timeout = _SCRAPE_S


class _Server(ThreadingHTTPServer):
    """Serves each scrape in a thread of its own."""

    def server_bind(self) -> None:
        """Bind, without asking a name server for the name of this machine."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error: a scraper that hung up does not concern the watch."""


QUERIES = ("watch_sessions", "watch_counters", "watch_wal", "watch_indexes")
# Unknown without checksums, or on a standby fed by archives: no lack of rights.
_MAY_LACK = {"checksum_failures", "wal_bytes"}


@dataclass(frozen=True, slots=True)
class ServerReading:
    """The readable figures of a server, by keys of `SERVER`, and its scans by index."""

    server: Mapping[str, float]
    scans: Mapping[str, int] = field(default_factory=dict)


class ServerProbe:
    """Reads a server's figures in a thread, so that the watch never waits for a server that does not answer.

    `reach` returns the database, and raises ServerError while it does not answer; `note` receives, by its kind, what
    cannot be read.
    """

    def __init__(self, reach: Callable[[], Database], timeout_s: float, note: Note) -> None:
        self._reach, self._timeout_s, self._note = reach, timeout_s, note
        self._asked: SimpleQueue[Future[ServerReading | None] | None] = SimpleQueue()
        self._answer: Future[ServerReading | None] = Future()
        self._answer.set_result(None)
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None  # the socket of the connection, to shut it down from another thread
        self._thread = threading.Thread(target=self._serve, name="perfkit-watch-server", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Start a reading, unless an earlier one hangs; return at once."""
        if self._answer.done():
            self._answer = Future()
            self._asked.put(self._answer)

    def answer(self, wait_s: float = 0.0) -> ServerReading | None:
        """Return the reading since `ask`, waiting at most `wait_s`; None if the server has not answered.

        A connection without an answer is shut down.
        """
        try:
            return self._answer.result(wait_s)
        except TimeoutError:
            with self._lock, suppress(OSError):
                if self._socket:
                    self._socket.shutdown(socket.SHUT_RDWR)
            return None

    def close(self) -> None:
        """Stop reading, and close the connection."""
        self._asked.put(None)
        self.answer()  # shuts down a connection that hangs
        self._thread.join(1.0)

    def _serve(self) -> None:
        while asked := self._asked.get():
            asked.set_result(self._read())
        self._disconnect()

    def _read(self) -> ServerReading | None:
        """Return all readable figures; None if the server does not answer."""
        columns: dict[str, object] = {}
        try:
            connection = self._connected()
            for name in QUERIES:
                with suppress(_LeftOut):
                    columns |= self._row(connection, name)
        except (psycopg.Error, PerfkitError, OSError) as error:
            self._disconnect()
            # Such as another server that answers at the same address.
            if isinstance(error, TargetRefused):
                self._note("server", str(error))
            return None
        if not columns:
            return None
        counts = columns.pop("scans", None)
        scans = {str(name): int(count) for name, count in counts.items()} if isinstance(counts, dict) else {}
        known = {name: value for name, value in columns.items() if name in SERVER}
        server = {name: float(value) for name, value in known.items() if isinstance(value, SupportsFloat)}
        if hidden := sorted(columns.keys() - server.keys() - _MAY_LACK):
            self._note("rights", f"the role may not see {', '.join(hidden)}; pg_read_all_stats shows them")
        return ServerReading(server, scans)

    def _row(self, connection: Connection, name: str) -> dict[str, object]:
        """Return the row of one query, in one round trip. Raises _LeftOut if it fails, psycopg.Error if lost."""
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
            self._note(name, f"{name.removeprefix('watch_')} cannot be read: {visible(first_line(error))}")
            raise _LeftOut from None

    def _connected(self) -> Connection:
        """Return the connection, reopened if it was lost. Raises psycopg.Error, PerfkitError."""
        if self._connection is None:
            database = self._reach()
            connection = database.server.connect(database.name, user="postgres")
            # The audit has these queries once for the whole watch, so the cursor does not record each of them.
            connection.cursor_factory, connection.row_factory = psycopg.Cursor, dict_row
            connection.prepare_threshold = None
            with self._lock:
                self._connection = connection
                self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        return self._connection

    def _disconnect(self) -> None:
        with self._lock:
            connection, own_socket, self._connection, self._socket = self._connection, self._socket, None, None
        if own_socket:
            own_socket.close()
        if connection:
            with suppress(psycopg.Error):
                connection.close()


class _LeftOut(Exception):
    """The server refused one query; the others may still work."""
