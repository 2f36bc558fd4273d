"""What a watch tells people while it runs.

Figures and alerts in words, the status line of the terminal, the notification command, and the process that rewrites
the dashboard.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from perfkit.base import units
from perfkit.base.errors import UsageError, visible
from perfkit.base.process import MODULE, spawn, stop
from perfkit.base.units import clock, duration_text, stamp
from perfkit.config.judging import Metric, WatchRule
from perfkit.monitor.model import Event, limit

Note = Callable[[str, str], None]  # receives the kind of a note, and its text
Values = Mapping[str, float | None]  # figures by metric; None if unknown

#: For each metric: its name, a template or function for its value, and whether it covers the whole window.
METRICS: Mapping[Metric, tuple[str, str | Callable[[float], str], bool]] = {
    "p50_ms": ("p50", "{} ms", True),
    "p95_ms": ("p95", "{} ms", True),
    "p99_ms": ("p99", "{} ms", True),
    "mean_ms": ("mean latency", "{} ms", True),
    "error_rate": ("error rate", units.percent, True),
    "throughput": ("throughput", "{}/s", True),
    "throughput_drop": ("throughput below the usual by", units.percent, True),
    "slowdown": ("p50 against the usual", "×{}", True),
    "success_rate": ("success rate", units.percent, True),
    "availability": ("availability", units.percent, True),
    "service_down_s": ("service down for", duration_text, False),
    "database_down_s": ("database down for", duration_text, False),
    "connections_share": ("connections in use", units.percent, False),
    "lock_wait_s": ("longest wait for a lock", duration_text, False),
    "transaction_s": ("oldest transaction open for", duration_text, False),
    "deadlocks": ("deadlocks:", units.count, True),
    "checksum_failures": ("pages with a wrong checksum:", units.count, True),
    "invalid_indexes": ("invalid indexes:", units.count, False),
    "cache_misses": ("pages not found in cache", units.percent, True),
    "temp_mb": ("temporary files", "{} MB", True),
    "rollback_rate": ("transactions rolled back", units.percent, True),
}


def formatted(metric: Metric | None, value: float | None, unit: str = "", *, exact: bool = False) -> str:
    """Return a value with its unit, without line breaks; a dash for None. `unit` is used if there is no metric.

    A limit or target has the digits that the configuration has (`exact`).

    >>> formatted("availability", 0.999, exact=True).split(), formatted("throughput", 30, exact=True)
    (['99.9', '%'], '30/s')
    """
    if value is None:
        return units.NONE
    return units.unbroken(_measured(metric, value, exact=exact) if metric else f"{value:g} {unit}".strip())


def figure_text(rule: WatchRule, value: float | None, window_s: float) -> str:
    """Return the figure of a rule with its item, name, value and window."""
    name, _, windowed = METRICS[rule.metric]
    item = f"{rule.item}: " if rule.item else ""
    over = f" over the last {duration_text(window_s)}" if windowed else ""
    return f"{item}{name} {'unknown' if value is None else _measured(rule.metric, value)}{over}"


def limit_text(rule: WatchRule) -> str:
    """Return the limit in words; empty for a limit of 0."""
    text = _measured(rule.metric, limit(rule), exact=True)
    return f"{'above' if rule.above is not None else 'below'} {text}" if limit(rule) else ""


def raised_text(rule: WatchRule, value: float, window_s: float, since: float, now: float) -> str:
    """Return the text of an alert: figure, limit, start, action. `since` and `now` are in seconds since 1970."""
    at = clock(since, day=False) if clock(since)[:10] == clock(now)[:10] else stamp(since)
    parts = (figure_text(rule, value, window_s), limit_text(rule), f"since {at} UTC")
    return ", ".join(part for part in parts if part) + (f": {rule.action}" if rule.action else "")


def cleared_text(rule: WatchRule, value: float | None, window_s: float, lasted_s: float) -> str:
    """Return the text of a cleared alert: the figure now, and how long the alert lasted."""
    after, (name, unit, _) = f"after {duration_text(lasted_s)}", METRICS[rule.metric]
    if limit_text(rule):
        return f"{figure_text(rule, value, window_s)}, no longer {limit_text(rule)} {after}"
    if unit is duration_text:
        return f"{name.removesuffix(' for')}: over {after}"
    return f"{figure_text(rule, value, window_s)}, good again {after}"


def _measured(metric: Metric, value: float, *, exact: bool = False) -> str:
    unit = METRICS[metric][1]
    if isinstance(unit, str):
        return unit.format(units.exact(value) if exact else units.significant(value))
    if exact and unit is units.count:
        return units.exact(value)
    return units.exact_percent(value) if exact and unit is units.percent else unit(value)


WAITING = 100  # events in the queue of the command
AGAIN_S = (1.0, 5.0)  # before each retry


def require_program(command: Sequence[str]) -> None:
    """Raise UsageError if the program of the command does not exist."""
    if command and shutil.which(command[0]) is None:
        raise UsageError(f"notify: no program {command[0]!r}; expected a command that can be run")


class Notifier:
    """Runs the notification command for every alert, in a thread; `note` receives failures by their kind.

    The command receives the event as JSON on standard input, and PERFKIT_EVENT_ID and PERFKIT_EVENT ("raised" or
    "cleared") in its environment. A command that fails or takes too long is killed with its children, and runs again
    up to two times.
    """

    def __init__(self, command: Sequence[str], timeout_s: float, note: Note) -> None:
        self._command, self._timeout_s, self._note = tuple(command), timeout_s, note
        self._events: queue.Queue[Event | None] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._running: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._serve, name="perfkit-watch-notify", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Queue an alert for the command; notes are ignored. Returns at once."""
        if not self._command or event.what == "note":
            return
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._note("notify-full", f"more than {WAITING} alerts are waiting; {event.id} is dropped")

    def close(self, wait_s: float) -> None:
        """Work off the queue for at most `wait_s` seconds, then kill the command."""
        with suppress(queue.Full):
            self._events.put_nowait(None)
        self._thread.join(wait_s)
        self._closing.set()
        if running := self._running:
            with suppress(OSError):
                os.killpg(running.pid, signal.SIGKILL)
        self._thread.join(1.0)

    def _serve(self) -> None:
        while (event := self._events.get()) and not self._closing.is_set():
            for pause in (*AGAIN_S, None):
                if not (trouble := self._run(event)):
                    break
                kind = f"notify-{trouble.split()[0]}"
                self._note(kind, f"notify: {self._command[0]} {trouble}; for alert {event.id}")
                if pause is None or self._closing.wait(pause):
                    break

    def _run(self, event: Event) -> str:
        """Run the command for one event; return what went wrong, or an empty text."""
        environment = {**os.environ, "PERFKIT_EVENT_ID": event.id, "PERFKIT_EVENT": event.what}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = spawn(self._command, env=environment, stdin=pipe, stdout=null, stderr=null)
        except OSError as error:
            return f"cannot be run ({error.strerror or error})"
        self._running = process
        try:
            process.communicate(f"{event.line()}\n".encode(), self._timeout_s)
        except subprocess.TimeoutExpired:
            return f"took longer than {self._timeout_s:g} s"
        finally:
            self._running = None
            if process.returncode is None:
                stop(process, 0.0)
        return f"failed with status {process.returncode}" if process.returncode else ""


_STATUS: tuple[Metric, ...] = ("p50_ms", "p95_ms", "error_rate", "throughput")


def status_line(seconds: float, figures: Values, active: Sequence[Event]) -> str:
    """Return the status line: time watched, the figures of the last window, and the active alerts."""
    p50, p95, errors, served = (
        units.NONE if (value := figures.get(metric)) is None else _measured(metric, value) for metric in _STATUS
    )
    alerts = ", ".join(f"{event.level} {event.rule}" for event in active) or "no alert"
    return f"watching: {duration_text(seconds)}, p50 {p50}, p95 {p95}, errors {errors}, {served}; {visible(alerts)}"


def event_line(event: Event) -> str:
    """Return one event in one line; the text of an alert says what to do."""
    kind = "note" if event.what == "note" else f"{event.level} {event.what}"
    return visible(f"{clock(event.at, day=False)}  {kind}  {event.text}")


RENEW_LEAST_S = 30.0  # between two versions of the dashboard
PATIENCE_S = 300.0  # a process that takes longer is killed
RENEW_LAST_S = 60.0  # for the last page


class Renewal:
    """Rewrites the dashboard in a process of its own, which no probe waits for; `note` receives failures."""

    def __init__(self, folder: Path, every_s: float, note: Note) -> None:
        self._command = _command(folder)
        self._every_s, self._note = max(RENEW_LEAST_S, every_s), note
        self._begun = -math.inf
        self._process: subprocess.Popen[bytes] | None = None

    def due(self, now: float) -> None:
        """Rewrite the dashboard if it is due and no process runs; `now` is in seconds. Returns at once."""
        if self._running():
            if now - self._begun > PATIENCE_S:
                self.close()
                self._note("dashboard", f"the dashboard took longer than {PATIENCE_S:g} s")
        elif now - self._begun >= self._every_s:
            self._begun = now
            try:
                # A full pipe that nobody reads would block the process.
                self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
                self._process = spawn(self._command, stdout=subprocess.DEVNULL, stderr=self._errors)
            except OSError as error:
                self._note("dashboard", f"the dashboard cannot be written ({error.strerror or error})")

    def close(self) -> None:
        """Kill a running process: `last_page` follows."""
        if self._process:
            stop(self._process, 0.0)
            self._errors.close()
            self._process = None

    def _running(self) -> bool:
        """Return whether the process runs; note its failure if it has ended with one."""
        if self._process is None:
            return False
        if (status := self._process.poll()) is None:
            return True
        with self._errors:
            self._errors.seek(0)
            lines = self._errors.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        self._process = None
        if status:
            self._note("dashboard", f"the dashboard cannot be written: {lines[-1] if lines else f'status {status}'}")
        return False


def last_page(folder: Path) -> None:
    """Write the dashboard of a watch that has ended. A failure is ignored: the record holds all that the page shows."""
    with suppress(OSError, subprocess.SubprocessError):
        process = spawn(_command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(RENEW_LAST_S)
        finally:
            process.kill()


def _command(folder: Path) -> list[str]:
    return [*MODULE, "perfkit.monitor.dashboard", str(folder)]
