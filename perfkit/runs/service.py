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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

from perfkit import config
from perfkit.base.errors import ServerError, ServiceError, UsageError
from perfkit.base.process import MODULE, spawn, stop
from perfkit.config import Check, CheckStep, Config
from perfkit.load.pool import Load, Target, WorkerPool
from perfkit.load.schedule import Batch, Draw, Message, Row, fill, http_message


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


# Functional checks through HTTP: requests in steps, what was expected, what came.


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: whether it passed, what it expected and what came, and its slowest request in ms."""

    name: str
    group: str
    passed: bool
    expected: str
    got: str
    ms: float

    def as_dict(self) -> dict[str, Any]:
        """For the bundle."""
        return asdict(self)


def run_checks(config: Config, target: Target, pool: WorkerPool, draw: Draw) -> list[CheckResult]:
    """Run every check of the configuration against one service.

    Raises UsageError for a check that names a column or a saved value that nothing gives.
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
    context: dict[str, Any] = {f"{name}.{key}": value for name, row in rows.items() for key, value in row.items()}
    expected, got, slowest = [], [], 0.0
    passed = True
    for step in check.step:
        load = pool.run(target, [Batch(tuple((m,) for m in _messages(config, step, rows, context)))], keep_bodies=True)
        slowest = max(slowest, *(_latencies(load)))
        wanted, came, good = _judge(step, load, context)
        expected.append(wanted)
        got.append(came)
        passed = passed and good
        saved = _saved(step, load)
        if lacking := step.save.keys() - saved.keys():
            got.append(f"no {', '.join(sorted(step.save[name] for name in lacking))} in the answer")
            good = passed = False
        context |= saved
        if not good:
            break
    return CheckResult(check.name, check.group, passed, "; ".join(expected), "; ".join(got), round(slowest, 1))


def _rows(check: Check, draw: Draw) -> dict[str, Row]:
    """A fresh parameter row for each name, with all different values in the `distinct` column."""
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
    """What the step wanted, what came, and whether they agree."""
    statuses = Counter(map(_status, load.columns["outcome"], load.columns["detail"]))
    expected = Counter({str(status): count for status, count in step.expect.items()})
    wanted, came, good = _tally(expected), _tally(statuses), statuses == expected
    for word, needles, must in (("with", step.contains, True), ("without", step.lacks, False)):
        for needle in needles:
            having = [str(fill(needle, context)) in body for body in load.bodies]
            found = all(having) if must else any(having)
            wanted += f" {word} {needle}"
            good = good and found is must
            came += "" if found is must else f" {'with' if found else 'without'} {needle}"
    if step.max_ms is not None:
        slowest = max(_latencies(load))
        wanted += f" within {step.max_ms:g} ms"
        came += f" in {slowest:.0f} ms"
        good = good and slowest <= step.max_ms
    return f"{step.request}: {wanted}", f"{step.request}: {came}", good


def _status(outcome: str, detail: str) -> str:
    """The HTTP status where one came, else what went wrong."""
    return detail if outcome == "ok" else outcome.removeprefix("http_")


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))


def _latencies(load: Load) -> Sequence[float]:
    return [(d - s) / 1e6 for d, s in zip(load.columns["done"], load.columns["scheduled"], strict=True)]


def _saved(step: CheckStep, load: Load) -> dict[str, Any]:
    """Values that later steps refer to, from the first body that holds them."""
    saved: dict[str, Any] = {}
    for name, key in step.save.items():
        for body in load.bodies:
            try:
                saved.setdefault(name, json.loads(body)[key])
            except (ValueError, KeyError, TypeError):
                continue
    return saved
