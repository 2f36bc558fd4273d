"""The HTTP service of an arm as a process of its own: launched, ready, reset between blocks, stopped."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from time import monotonic, sleep
from typing import Self

from perfkit import config
from perfkit.errors import ServiceError
from perfkit.process import spawn, stop


class Service:
    """One launched service; the database it uses is in its environment as `PERFKIT_DATABASE`."""

    def __init__(self, name: str, spec: config.ServiceConfig, values: Mapping[str, str], conninfo: str) -> None:
        self._name, self._spec = name, spec
        self._values, self._conninfo = values, conninfo
        self._process: subprocess.Popen[bytes] | None = None
        self._stale: bytes | None = None
        self.port = 0

    @property
    def base(self) -> str:
        """Where the service answers, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.launch()
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def launch(self) -> None:
        """Start the process. Raises ServiceError where its port or command cannot be used."""
        self.port, self._stale = self._spec.port or _free_port(), None
        if self._spec.port and not _is_free(self._spec.port):
            raise ServiceError(f"{self._name}: port {self._spec.port} is in use; expected a free one (0 finds one)")
        values = {"python": sys.executable, "port": str(self.port), **self._values}
        try:
            args = [part.format_map(values) for part in self._spec.command]
        except KeyError as error:
            raise ServiceError(
                f"{self._name}: service.command uses {{{error.args[0]}}}; expected a value for it"
            ) from None
        except ValueError as error:
            raise ServiceError(f"{self._name}: service.command: {error}; literal braces are doubled") from None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        environment = {**os.environ, "PERFKIT_DATABASE": self._conninfo}
        try:
            self._process = spawn(
                args, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._log
            )
        except OSError as error:
            self._log.close()
            raise ServiceError(
                f"{self._name}: {args[0]} cannot be run ({error.strerror or error}); expected a command"
            ) from None

    def wait(self) -> None:
        """Return when the health path answers 200. Raises ServiceError with the service's last words."""
        deadline = monotonic() + self._spec.start_timeout_s
        while self._health() in (None, self._stale) or not self._runs():
            if not self._runs():
                raise ServiceError(f"{self._name}: the service ended while starting: {self._last_words()}")
            if monotonic() > deadline:
                raise ServiceError(
                    f"{self._name}: {self._spec.health} did not answer 200 within {self._spec.start_timeout_s:g} s"
                )
            sleep(0.01)

    def reset(self) -> None:
        """Forget every connection: by SIGHUP where the service knows it, else by a new process.

        Returns at once; `wait` tells when the service is ready again. A service that knows SIGHUP answers its
        health path differently afterwards, so that an answer from before it is not taken for one.
        """
        if self._spec.reset == "hup" and self._process is not None and self._process.poll() is None:
            self._stale = self._health()
            self._process.send_signal(signal.SIGHUP)
        else:
            self.stop()
            self.launch()

    def end(self) -> None:
        """Ask the process to end, without waiting for it."""
        if self._process is not None and self._runs():
            self._process.terminate()

    def stop(self) -> None:
        """End the process; it publishes its connections' statistics with it."""
        if self._process is None:
            return
        if self._process.stdin:
            self._process.stdin.close()
        stop(self._process)
        self._process = None
        self._log.close()

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _health(self) -> bytes | None:
        """The body of a healthy answer; None without one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", self._spec.health)
            response = connection.getresponse()
            return response.read() if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
