"""Alerts in words, and the command that is told of them."""

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
from dataclasses import dataclass
from pathlib import Path

from perfkit.base.errors import UsageError, visible
from perfkit.base.process import MODULE, spawn, stop
from perfkit.base.units import NONE, percent, significant, unbroken
from perfkit.config.judging import Metric, WatchRule
from perfkit.monitor.incidents import clock, duration_text, stamp
from perfkit.monitor.model import Event, Record, limit


def percentage(value: float) -> str:
    """A share of one as a percentage that is 100 % only where nothing is missing.

    >>> percentage(0.99957), percentage(1.0), percentage(0.98), percentage(0.0004)
    ('99.957 %', '100 %', '98.0 %', '0.0400 %')
    """
    missing = 100 * (1 - value)
    if value <= 0.9 or missing < 1e-9:
        return percent(value)
    return f"{100 * value:.{max(1 - math.floor(math.log10(missing)), 0)}f} %"


def count_text(value: float) -> str:
    """A count, or a figure without a unit."""
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else significant(value)


#: The name of a figure, its unit around a number or how it is said, and whether it is of the whole window.
METRICS: Mapping[Metric, tuple[str, str | Callable[[float], str], bool]] = {
    "p50_ms": ("p50", "{} ms", True),
    "p95_ms": ("p95", "{} ms", True),
    "p99_ms": ("p99", "{} ms", True),
    "mean_ms": ("mean latency", "{} ms", True),
    "error_rate": ("error rate", percentage, True),
    "throughput": ("throughput", "{}/s", True),
    "throughput_drop": ("throughput below the usual by", percentage, True),
    "slowdown": ("p50 against the usual", "×{}", True),
    "success_rate": ("success rate", percentage, True),
    "availability": ("availability", percentage, True),
    "service_down_s": ("service down for", duration_text, False),
    "database_down_s": ("database down for", duration_text, False),
    "connections_share": ("connections in use", percentage, False),
    "lock_wait_s": ("longest wait for a lock", duration_text, False),
    "transaction_s": ("oldest transaction open for", duration_text, False),
    "deadlocks": ("deadlocks:", count_text, True),
    "checksum_failures": ("pages with a wrong checksum:", count_text, True),
    "invalid_indexes": ("invalid indexes:", count_text, False),
    "cache_misses": ("pages not found in cache", percentage, True),
    "temp_mb": ("temporary files", "{} MB", True),
    "rollback_rate": ("transactions rolled back", percentage, True),
}


def formatted(metric: Metric | None, value: float | None, unit: str = "") -> str:
    """A figure with its unit on one line, a dash for none; without a metric, what a person says, in the unit given."""
    if value is None:
        return NONE
    return unbroken(_measured(metric, value) if metric else f"{value:g} {unit}".strip())


def formatted_limit(metric: Metric | None, value: float, unit: str = "") -> str:
    """Return a limit or target with its unit, with the digits that the configuration has.

    >>> formatted_limit("availability", 0.999).split(), formatted_limit("throughput", 30)
    (['99.9', '%'], '30/s')
    """
    return unbroken(_written(metric, value)) if metric else formatted(metric, value, unit)


def figure_text(rule: WatchRule, value: float | None, window_s: float) -> str:
    """The figure of a rule, and of how long."""
    name, _, windowed = METRICS[rule.metric]
    whose = f"{rule.item}: " if rule.item else ""
    over = f" over the last {duration_text(window_s)}" if windowed else ""
    return f"{whose}{name} {'unknown' if value is None else _measured(rule.metric, value)}{over}"


def limit_text(rule: WatchRule) -> str:
    """The limit in words; nothing for a limit of none at all."""
    if not limit(rule):
        return ""
    return f"{'above' if rule.above is not None else 'below'} {_written(rule.metric, limit(rule))}"


def raised_text(rule: WatchRule, value: float, window_s: float, since: float, now: float) -> str:
    """That it is bad, since when (wall clock, seconds since 1970), and what to do."""
    at = clock(since, day=False) if clock(since)[:10] == clock(now)[:10] else stamp(since)
    parts = (figure_text(rule, value, window_s), limit_text(rule), f"since {at} UTC")
    return ", ".join(part for part in parts if part) + (f": {rule.action}" if rule.action else "")


def cleared_text(rule: WatchRule, value: float | None, window_s: float, lasted_s: float) -> str:
    """That it is good again, and how long it was not."""
    after = f"after {duration_text(lasted_s)}"
    name, unit, _ = METRICS[rule.metric]
    if limit_text(rule):
        return f"{figure_text(rule, value, window_s)}, no longer {limit_text(rule)} {after}"
    if unit is duration_text:
        return f"{name.removesuffix(' for')}: over {after}"
    return f"{figure_text(rule, value, window_s)}, good again {after}"


def _measured(metric: Metric, value: float) -> str:
    unit = METRICS[metric][1]
    return unit.format(significant(value)) if isinstance(unit, str) else unit(value)


def _written(metric: Metric, value: float) -> str:
    unit = METRICS[metric][1]
    if unit is percentage:
        return f"{100 * value:.10g} %"
    return unit.format(f"{value:.10g}") if isinstance(unit, str) else unit(value)


# Telling a command of the user's of every alert, without ever waiting for it.

WAITING = 100  # events that may wait to be told
AGAIN_S = (1.0, 5.0)  # before it is told once more


def require_program(command: Sequence[str]) -> None:
    """Raise UsageError where the command's program is not there."""
    if command and shutil.which(command[0]) is None:
        raise UsageError(f"notify: no program {command[0]!r}; expected a command that can be run")


class Notifier:
    """Runs the command once for each event, in a thread; `note` is told of trouble by its kind.

    The event is JSON on its standard input; PERFKIT_EVENT_ID and PERFKIT_EVENT ("raised", "cleared") are in its
    environment. A command that fails or takes too long is ended with everything it started, and told twice more.
    """

    def __init__(self, command: Sequence[str], timeout_s: float, note: Callable[[str, str], None]) -> None:
        self._command, self._timeout_s, self._note = tuple(command), timeout_s, note
        self._events: queue.Queue[Event | None] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._running: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._serve, name="perfkit-watch-notify", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Let the command know of an alert, as soon as it is its turn; notes are not told."""
        if not self._command or event.what == "note":
            return
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._note("notify-full", f"more than {WAITING} alerts wait to be told; {event.id} is not told")

    def close(self, wait_s: float) -> None:
        """Tell what is left, for so long at most; then end the command."""
        with suppress(queue.Full):
            self._events.put_nowait(None)
        self._thread.join(wait_s)
        self._closing.set()
        if running := self._running:
            _kill(running)
        self._thread.join(1.0)

    def _serve(self) -> None:
        while (event := self._events.get()) and not self._closing.is_set():
            for pause in (*AGAIN_S, None):
                if not (trouble := self._run(event)):
                    break
                self._note(f"notify-{trouble.split()[0]}", f"notify: {self._command[0]} {trouble}; told of {event.id}")
                if pause is None or self._closing.wait(pause):
                    break

    def _run(self, event: Event) -> str:
        """Run it for one event; what went wrong, "" for nothing."""
        own = {"PERFKIT_EVENT_ID": event.id, "PERFKIT_EVENT": event.what}
        null = subprocess.DEVNULL
        try:
            process = spawn(self._command, env={**os.environ, **own}, stdin=subprocess.PIPE, stdout=null, stderr=null)
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
                _kill(process)
                stop(process, 0.0)
        return f"failed with status {process.returncode}" if process.returncode else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The command and everything that it started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


# What a watch says in a terminal: one line that is rewritten, a line for each event, and how it ended.

TerminalFigures = Mapping[str, float | None]


def status_line(seconds: float, figures: TerminalFigures, active: Sequence[Event]) -> str:
    """The line that is rewritten: how long, the last window's figures, and what stands."""
    p50, p95 = (_ms(figures.get(name)) for name in ("p50_ms", "p95_ms"))
    rate, answered = figures.get("error_rate"), figures.get("throughput")
    errors = NONE if rate is None else f"{100 * rate:.2g} %"
    served = NONE if answered is None else f"{significant(answered)}/s"
    alerts = ", ".join(f"{event.level} {event.rule}" for event in active) or "no alert"
    return f"watching: {duration_text(seconds)}, p50 {p50}, p95 {p95}, errors {errors}, {served}; {visible(alerts)}"


def event_line(event: Event) -> str:
    """One event: when and what; of an alert its text says what to do."""
    what = {"raised": f"{event.level} raised", "cleared": f"{event.level} cleared", "note": "note"}[event.what]
    return visible(f"{clock(event.at, day=False)}  {what}  {event.text}")


@dataclass(frozen=True, slots=True, repr=False)
class WatchSummary:
    """How a watch ended: its folder, and what the whole of it shows."""

    folder: Path
    seconds: float  # in which somebody watched, over all its runs
    availability: float | None  # a share
    raised: Mapping[str, int]  # alerts by level
    standing: tuple[str, ...]  # rules whose alerts are active

    @classmethod
    def of(cls, folder: Path, record: Record, figures: TerminalFigures, active: Sequence[Event]) -> WatchSummary:
        """From what is on disk."""
        events = [event for event in record.events if event.what == "raised"]
        raised = {level: sum(event.level == level for event in events) for level in ("P1", "P2", "P3")}
        seconds = sum(tick.seconds for tick in record.ticks)
        return cls(folder, seconds, figures.get("availability"), raised, tuple(event.rule for event in active))

    def __repr__(self) -> str:
        available = "not known" if self.availability is None else f"{100 * self.availability:.4g} %"
        alerts = ", ".join(f"{count} {level}" for level, count in self.raised.items() if count) or "none"
        active = f" ({', '.join(self.standing)} active)" if self.standing else ""
        watched = duration_text(self.seconds)
        return visible(f"watched for {watched}: availability {available}; alerts: {alerts}{active}; {self.folder}")


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{significant(value)} ms"


# The dashboard of a watch, written anew now and then by a process of its own, which nobody waits for.

RENEW_LEAST_S = 30.0  # between one dashboard and the next
PATIENCE_S = 300.0  # a process that takes longer hangs
RENEW_LAST_S = 60.0  # for the page of the whole, at the end


class Renewal:
    """Starts the process when it is due; `note` is told of a failure."""

    def __init__(self, folder: Path, every_s: float, note: Callable[[str, str], None]) -> None:
        self._command = _command(folder)
        self._apart, self._note = max(RENEW_LEAST_S, every_s), note
        self._begun: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def due(self, now: float) -> None:
        """Write it anew where it is time to and the last one is done; `now` in seconds. Returns at once."""
        if self._running():
            if self._begun is not None and now - self._begun > PATIENCE_S:
                self._end(f"took longer than {PATIENCE_S:g} s")
            return
        if self._begun is None or now - self._begun >= self._apart:
            self._begun = now
            self._start()

    def close(self) -> None:
        """End it, done or not: `last_page` is to come."""
        if self._running():
            self._kill()

    def _start(self) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it has ended
        try:
            self._process = spawn(self._command, stdout=subprocess.DEVNULL, stderr=self._words)
        except OSError as error:
            self._words.close()
            self._note("dashboard", f"the dashboard cannot be written ({error.strerror or error})")

    def _running(self) -> bool:
        """Whether it runs still; what it failed with is noted."""
        if self._process is None:
            return False
        if (status := self._process.poll()) is None:
            return True
        self._words.seek(0)
        said = self._words.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        self._process = None
        self._words.close()
        if status:
            self._note("dashboard", f"the dashboard cannot be written: {said[-1] if said else f'status {status}'}")
        return False

    def _end(self, why: str) -> None:
        self._kill()
        self._note("dashboard", f"the dashboard {why}")

    def _kill(self) -> None:
        assert self._process
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._words.close()


def last_page(folder: Path) -> None:
    """Write the dashboard of a watch that has ended, as far as that works: the record has all that is in it."""
    with suppress(OSError, subprocess.SubprocessError):
        process = spawn(_command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(RENEW_LAST_S)
        finally:
            process.kill()


def _command(folder: Path) -> list[str]:
    return [*MODULE, "perfkit.monitor.dashboard", str(folder)]
