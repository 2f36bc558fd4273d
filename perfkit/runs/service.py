"""The HTTP service as a process, the relay that puts a network round trip before its database, and its checks."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Self

from perfkit import config
from perfkit.base.errors import ServerError, ServiceError, UsageError
from perfkit.base.process import MODULE, spawn, stop
from perfkit.config import Check, CheckStep, Config
from perfkit.load.pool import Load, WorkerPool
from perfkit.load.samples import OK
from perfkit.load.schedule import Batch, Draw, Message, Row, Target, fill, http_message
from perfkit.runs.records import CheckResult


class Service:
    """A service that perfkit starts; the environment variable `PERFKIT_DATABASE` names its database."""

    def __init__(self, name: str, spec: config.ServiceConfig, values: Mapping[str, str], conninfo: str) -> None:
        self._name, self._spec = name, spec
        self._values, self._conninfo = values, conninfo
        self._process: subprocess.Popen[bytes] | None = None
        self._stale: bytes | None = None
        self.port = 0

    @property
    def base(self) -> str:
        """The URL of the service, without a path."""
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
        """Start the process. Raises ServiceError if its port or command cannot be used."""
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
            raise ServiceError(
                f"{self._name}: service.command: {error}; expected literal braces to be doubled"
            ) from None
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
        """Wait until the health path answers 200. Raises ServiceError with the last line of the service's output."""
        deadline = monotonic() + self._spec.start_timeout_s
        while self._health() in (None, self._stale) or not self._runs():
            if not self._runs():
                raise ServiceError(f"{self._name}: the service ended while starting: {self._last_line()}")
            if monotonic() > deadline:
                raise ServiceError(
                    f"{self._name}: {self._spec.health} did not answer 200 within {self._spec.start_timeout_s:g} s"
                )
            sleep(0.01)

    def reset(self) -> None:
        """Make the service drop its connections: by SIGHUP if the service supports it, else by a new process.

        Returns at once; `wait` returns when the service is ready again. A service that supports SIGHUP answers its
        health path differently afterwards, so that `wait` recognizes an answer from before the signal.
        """
        if self._spec.reset == "hup" and self._process is not None and self._process.poll() is None:
            self._stale = self._health()
            self._process.send_signal(signal.SIGHUP)
        else:
            self.stop()
            self.launch()

    def end(self) -> None:
        """Ask the process to end; do not wait for it."""
        if self._process is not None and self._runs():
            self._process.terminate()

    def stop(self) -> None:
        """End the process, upon which the server publishes its connections' statistics."""
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
        """Return the body of the health path's answer, or None if the service is not healthy."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", self._spec.health)
            response = connection.getresponse()
            return response.read() if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it left no message"


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """A network round trip of `rtt_ms` between service and database; connecting takes `connect_rtts` of them."""

    rtt_ms: float = 0.0
    connect_rtts: int = 6


@contextmanager
def relay_started(spec: RelaySpec, server: str, run: str) -> Iterator[str]:
    """Run a relay to the server that listens in the folder `server`; yield the folder in which the relay listens.

    Raises ServerError if the relay does not start.
    """
    # Below the server's own folder, so that it is deleted with the server even if this process is killed.
    folder = Path(server) / f"relay-{run}"
    folder.mkdir(mode=0o700, exist_ok=True)
    delay = ["--rtt-ms", str(spec.rtt_ms), "--connect-rtts", str(spec.connect_rtts)]
    command = [*MODULE, "perfkit.postgres.relay", "--listen", str(folder), "--server", server, *delay]
    process = spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        if not process.stdout.readline():
            raise ServerError("the relay did not start; expected its ready line")
        yield str(folder)
    finally:
        stop(process)


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


def run_checks(config: Config, target: Target, pool: WorkerPool, draw: Draw) -> list[CheckResult]:
    """Run every check of the configuration against a service, each as steps of HTTP requests.

    Raises UsageError if a check names a column or a saved value that does not exist.
    """
    results = []
    for check in config.check:
        try:
            results.append(_run(config, check, target, pool, draw))
        except KeyError as error:
            raise UsageError(
                f"check '{check.name}': {error.args[0]!r} has no value; expected a column of its rows or a "
                "value that an earlier step saves"
            ) from None
    return results


def _run(config: Config, check: Check, target: Target, pool: WorkerPool, draw: Draw) -> CheckResult:
    rows = _rows(check, draw)
    context: dict[str, object] = {f"{name}.{key}": value for name, row in rows.items() for key, value in row.items()}
    expected, got, slowest = [], [], 0.0
    passed = True
    for step in check.step:
        load = pool.run(target, [Batch(tuple((m,) for m in _messages(config, step, rows, context)))], keep_bodies=True)
        slowest = max(slowest, *load.columns.times_ms(range(len(load.columns))))
        step_expected, step_got, good = _judge(step, load, context)
        expected.append(step_expected)
        got.append(step_got)
        passed = passed and good
        saved = _saved(step, load)
        if lacking := step.save.keys() - saved.keys():
            got.append(f"no {', '.join(sorted(step.save[name] for name in lacking))} in the answer")
            good = passed = False
        context |= saved
        if not good:
            break
    return CheckResult(
        name=check.name,
        group=check.group,
        passed=passed,
        expected="; ".join(expected),
        got="; ".join(got),
        ms=round(slowest, 1),
    )


def _rows(check: Check, draw: Draw) -> dict[str, Row]:
    """Return a fresh parameter row for each name; their values in the `distinct` column differ."""
    rows: dict[str, Row] = {}
    for name in check.rows:
        row = draw(check.parameters)
        for _ in range(10_000):
            if check.distinct is None or row[check.distinct] not in {r[check.distinct] for r in rows.values()}:
                break
            row = draw(check.parameters)
        rows[name] = row
    return rows


def _messages(config: Config, step: CheckStep, rows: Mapping[str, Row], context: Row) -> list[Message]:
    request = next(request for request in config.request if request.name == step.request)
    chosen = list(rows.values()) if step.row == "*" else [rows[step.row]] * step.times
    messages = []
    for row in chosen:
        values = {**row, **context, **{key: fill(value, context) for key, value in step.values.items()}}
        messages.append(http_message(request, values) | {"expect": list(step.expect)})
    return messages


def _judge(step: CheckStep, load: Load, context: Row) -> tuple[str, str, bool]:
    """Return what the step expects, what it received, and whether they agree."""
    answers = zip(load.columns.outcome, load.columns.detail, strict=True)
    statuses = Counter(detail if outcome == OK else outcome.removeprefix("http_") for outcome, detail in answers)
    counts = Counter({str(status): count for status, count in step.expect.items()})
    expected, got, good = _tally(counts), _tally(statuses), statuses == counts
    for word, needles, must in (("with", step.contains, True), ("without", step.lacks, False)):
        for needle in needles:
            having = [str(fill(needle, context)) in body for body in load.bodies]
            contains = all(having) if must else any(having)
            expected += f" {word} {needle}"
            good = good and contains is must
            got += "" if contains is must else f" {'with' if contains else 'without'} {needle}"
    if step.max_ms is not None:
        slowest = max(load.columns.times_ms(range(len(load.columns))))
        expected += f" within {step.max_ms:g} ms"
        got += f" in {slowest:.0f} ms"
        good = good and slowest <= step.max_ms
    return f"{step.request}: {expected}", f"{step.request}: {got}", good


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))


def _saved(step: CheckStep, load: Load) -> dict[str, object]:
    """Return values for later steps, each from the first body that contains it."""
    saved: dict[str, object] = {}
    for name, key in step.save.items():
        for body in load.bodies:
            try:
                saved.setdefault(name, json.loads(body)[key])
            except (ValueError, KeyError, TypeError):
                continue
    return saved
