"""Telling a command of the user's of every alert, without ever waiting for it."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from perfkit.errors import UsageError
from perfkit.monitor.model import Event
from perfkit.process import spawn, stop

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
