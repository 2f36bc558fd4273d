"""The dashboard of a watch, written anew now and then by a process of its own, which nobody waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from perfkit.process import MODULE, spawn

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
    return [*MODULE, "perfkit.report.dashboard", str(folder)]
