"""Figures of a window of time: of the service, and of the server.

Pure. A window is a sequence of intervals in the order of time. Whose latency and errors: one item's, or those of all
requests, or of all queries where no request is sent. Percentiles are of raw samples and only given with the samples
for them (`perfkit.base.stats.supported`). An interval is down where something was due and nothing was answered as
expected: what ended failed, or nothing ended and the oldest has been due for the whole interval, at least for a
second. Time in which nobody watched is neither up nor down.

On a connection of its own, in read-only transactions with a time limit. What a role may not see is left out.
"""

from __future__ import annotations

import os
import socket
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import psycopg
from psycopg.rows import dict_row

from perfkit.base.errors import PerfkitError, TargetRefused, first_line, visible
from perfkit.base.stats import percentile, supported
from perfkit.config.judging import Watch
from perfkit.monitor.model import OK, SERVER, Kind, Probe, Tick
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import Database

_MB = 1024 * 1024
_COUNTED = ("commits", "rollbacks", "blocks_hit", "blocks_read", "temp_bytes", "deadlocks", "checksum_failures")
_NOW = ("lock_wait_s", "transaction_s", "invalid_indexes")


def server_figures(ticks: Sequence[Tick]) -> dict[str, float | None]:
    """The server's metrics: counters from the first interval's end to the last's, others as last known."""
    said = [tick.server for tick in ticks if tick.server]
    counted = {name: grown(said, name) for name in _COUNTED}
    mb = counted["temp_bytes"]
    return {
        "connections_share": _share(_last(said, "connections"), _last(said, "connections_max")),
        **{name: _last(said, name) for name in _NOW},
        "deadlocks": counted["deadlocks"],
        "checksum_failures": counted["checksum_failures"],
        "cache_misses": _part(counted["blocks_read"], counted["blocks_hit"]),
        "temp_mb": None if mb is None else mb / _MB,
        "rollback_rate": _part(counted["rollbacks"], counted["commits"]),
    }


def grown(said: Sequence[Mapping[str, float]], name: str) -> float | None:
    """By how much a counter grew; None with fewer than two readings.

    A value below the one before has begun anew at 0, after a crash or a reset, and counts whole. A restart after an
    orderly shutdown keeps the counters, so another `started` alone is no new beginning.
    """
    values = [one[name] for one in said if name in one]
    if len(values) < 2:
        return None
    return sum(now - before if now >= before else now for before, now in pairwise(values))


def _last(said: Sequence[Mapping[str, float]], name: str) -> float | None:
    return next((one[name] for one in reversed(said) if name in one), None)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _part(one: float | None, other: float | None) -> float | None:
    """Of two counts the first's share of both; None where nothing was counted."""
    return None if one is None or other is None else _share(one, one + other)


# Figures of a window of intervals: latency, errors, throughput, downtime, and what the server said of itself.

GAP_S = 0.5  # between two intervals: more, and nobody watched
_HANGS_S = 1.0  # a probe that has been due for less may yet be answered, however short the interval was


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is usual: the figures of the first healthy stretch."""

    throughput: float  # answered as expected, per second
    p50_ms: float


def window(ticks: Sequence[Tick], seconds: float) -> Sequence[Tick]:
    """The intervals that ended in the last so many seconds of the time line."""
    return ticks[bisect_right(ticks, ticks[-1].t - seconds, key=lambda tick: tick.t) :] if ticks else ticks


def gaps(ticks: Sequence[Tick]) -> list[tuple[float, float]]:
    """Stretches of the time line, from and until, in which nobody watched."""
    return [(one.t, other.start) for one, other in pairwise(ticks) if parted(one, other)]


def parted(one: Tick, other: Tick) -> bool:
    """Whether nobody watched between two intervals."""
    return other.start - one.t > GAP_S


def chosen(kinds: Mapping[str, Kind], item: str = "") -> list[str]:
    """Whose figures: the item's where it is sent, or those of all requests, or of all queries without a request."""
    if item:
        return [item] if item in kinds else []
    return [name for name, kind in kinds.items() if kind == "request"] or list(kinds)


def probes(ticks: Iterable[Tick], names: Iterable[str]) -> list[Probe]:
    """The intervals' probes of these names."""
    names = list(names)
    return [tick.probes[name] for tick in ticks for name in names if name in tick.probes]


def samples(ticks: Iterable[Tick], names: Iterable[str]) -> list[float]:
    """Response times in ms of what was answered as expected."""
    return [ms for probe in probes(ticks, names) for ms in probe.ms]


def is_down(tick: Tick, names: Iterable[str]) -> bool | None:
    """Whether an interval is down, seen by its probes of these names; None where nothing was to be answered."""
    found = probes([tick], names)
    if any(probe.outcomes.get(OK) for probe in found):
        return False
    hangs = max(tick.seconds, _HANGS_S)
    return True if any(p.sent or (p.pending and p.oldest_s >= hangs) for p in found) else None


def stretches(ticks: Iterable[Tick], so: Callable[[Tick], bool | None]) -> list[tuple[float, float]]:
    """Stretches of the time line, from and until, of intervals that are so.

    One that says nothing (None) is passed over between two that are; where nobody watched, a stretch ends.
    """
    found, before, on = list[tuple[float, float]](), None, False
    for tick in ticks:
        on = on and before is not None and not parted(before, tick)
        if now := so(tick):
            found.append((found.pop()[0] if on else tick.start, tick.t))
        on, before = bool(now) or (on and now is None), tick
    return found


def service_down(tick: Tick, kinds: Mapping[str, Kind]) -> bool | None:
    """Whether no request was answered as expected (no query, where no request is sent); None where none was due."""
    return is_down(tick, chosen(kinds))


def database_down(tick: Tick, kinds: Mapping[str, Kind]) -> bool | None:
    """Whether the server said nothing and no query was answered; None where nobody asked it."""
    if tick.server:  # it answers: queries that fail meanwhile wait for a lock, or are wrong
        return False
    queries = is_down(tick, [name for name, kind in kinds.items() if kind == "query"])
    return True if queries is None and tick.server is None else queries


def healthy(tick: Tick, kinds: Mapping[str, Kind], item: str = "") -> bool:
    """Whether something was answered in an interval and nothing failed."""
    found = probes([tick], chosen(kinds, item))
    return any(probe.ms for probe in found) and not any(probe.failed for probe in found)


def baseline(ticks: Iterable[Tick], kinds: Mapping[str, Kind], watch: Watch, item: str = "") -> Baseline | None:
    """What the first `baseline_s` healthy seconds show; None before there were as many."""
    found, seconds = list[Tick](), 0.0
    for tick in ticks:
        if healthy(tick, kinds, item):
            found.append(tick)
            seconds += tick.seconds
        if seconds >= watch.baseline_s:
            usual = samples(found, chosen(kinds, item))
            return Baseline(len(usual) / seconds, percentile(usual, 50))
    return None


def figures(
    ticks: Sequence[Tick],
    kinds: Mapping[str, Kind],
    baseline: Baseline | None,
    item: str = "",
    *,
    before: Tick | None = None,
    few: bool = False,
) -> dict[str, float | None]:
    """Every `Metric` of config/watching.py; None where there are not enough samples, or it is not known.

    `before` is the interval before the first, from which counters are counted; with `few`, percentiles are of
    however few samples.
    """
    names = chosen(kinds, item)
    own = probes(ticks, names)
    watched = sum(tick.seconds for tick in ticks)
    ended, failed = sum(probe.sent for probe in own), sum(probe.failed for probe in own)
    throughput = (ended - failed) / watched if watched and own else None
    latency = _latency(sorted(samples(ticks, names)), few)
    p50, p_usual = latency["p50_ms"], baseline.p50_ms if baseline else 0.0
    usual = baseline.throughput if baseline else 0.0
    down = sum(tick.seconds for tick in ticks if is_down(tick, names))
    return {
        **latency,
        "error_rate": failed / ended if ended else None,
        "throughput": throughput,
        "throughput_drop": 1 - throughput / usual if throughput is not None and usual else None,
        "slowdown": p50 / p_usual if p50 is not None and p_usual else None,
        "success_rate": _succeeded(ticks, names, kinds) / ended if ended else None,
        "availability": 1 - down / watched if watched and own else None,
        "service_down_s": _standing(ticks, lambda tick: service_down(tick, kinds)),
        "database_down_s": _standing(ticks, lambda tick: database_down(tick, kinds)),
        **server_figures(([before] if before else []) + list(ticks)),
    }


def _latency(ms: Sequence[float], few: bool) -> dict[str, float | None]:
    n = len(ms)
    said = {q: percentile(ms, q) if n and (few or supported(n, q)) else None for q in (50, 95, 99)}
    mean = sum(ms) / n if n else None
    return {"p50_ms": said[50], "p95_ms": said[95], "p99_ms": said[99], "mean_ms": mean}


def _succeeded(ticks: Iterable[Tick], names: Sequence[str], kinds: Mapping[str, Kind]) -> int:
    """Requests answered with a 2xx, whatever was expected; queries answered."""
    return sum(
        sum(n for status, n in probe.statuses.items() if status.startswith("2"))
        if kinds.get(name) == "request"
        else probe.outcomes.get(OK, 0)
        for tick in ticks
        for name in names
        if (probe := tick.probes.get(name))
    )


def _standing(ticks: Sequence[Tick], down: Callable[[Tick], bool | None]) -> float | None:
    """How long it has been down at the end of the window, in seconds; None where no interval says so or otherwise.

    An interval that says nothing is passed over; where nobody watched, nobody saw it down.
    """
    seconds, later = None, None
    for tick in reversed(ticks):
        if later and parted(tick, later):
            break
        if (so := down(tick)) is False:
            return seconds or 0.0
        if so:
            seconds = ticks[-1].t - tick.start
        later = tick
    return seconds


# The server's own figures in each interval, asked in a thread so that nobody waits for a server that does not
# answer.

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
