"""The arms on the server: a template database each, cloned anew for every block, and a service."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from perfkit import config
from perfkit.errors import ServerError
from perfkit.indexes.build import Built, build
from perfkit.postgres import databases
from perfkit.postgres.embedded import Server
from perfkit.process import spawn, stop
from perfkit.service import Service


@dataclass(frozen=True, slots=True)
class Relay:
    """A network round trip between service and database: `rtt_ms` each, `connect_rtts` of them to connect."""

    rtt_ms: float = 0.0
    connect_rtts: int = 6


class Stage:
    """All arms of one run on one server. Leaving it drops every database and stops every process it made."""

    def __init__(self, server: Server, settings: config.Config, run: str, relay: Relay) -> None:
        self.server, self._config, self._relay = server, settings, relay
        self._prefix = f"pk_{run}_"
        self._base = ""
        self._templates: dict[tuple[Any, ...], tuple[str, list[Built]]] = {}
        self._stack = ExitStack()
        self._owned: dict[str, None] = {}  # databases of this run
        self._relay_dir = ""
        self.services: dict[str, Service] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for service in self.services.values():
            service.end()
        self._stack.close()
        if kind is None:  # else there is no time to lose, and the server goes with its last user anyway
            for name in self._owned:
                databases.drop(self.server, name)

    def base(self, scale: str) -> str:
        """Make the base database from the configured files; returns its name."""
        name = self._own("base")
        databases.create(self.server, name)
        variables = self._config.database.scales.get(scale, {})
        databases.prepare(self.server, name, self._config.database.prepare, variables)
        databases.freeze(self.server, name, self._config.database.tables)
        self._base = name
        self._templates[(), None] = (name, [])
        return name

    def template(self, arm: config.Arm) -> tuple[str, list[Built]]:
        """The arm's template and what its indexes cost; arms that are prepared alike share one."""
        key = (arm.prepare, arm.indexes)
        if key not in self._templates:
            name = self._own(f"template_{arm.name}")
            databases.create(self.server, name, self._base)
            databases.prepare(self.server, name, arm.prepare, {})
            built = build(self.server, name, arm.indexes) if arm.indexes else []
            databases.freeze(self.server, name, self._config.database.tables)
            self._templates[key] = (name, built)
        return self._templates[key]

    def clone(self, arm: config.Arm) -> str:
        """A fresh clone of the arm's template under the arm's own name."""
        name = self._own(f"clone_{arm.name}")
        databases.create(self.server, name, self.template(arm)[0])
        return name

    def serve(self, arms: Sequence[config.Arm]) -> None:
        """Launch or reset the service of every arm on its clone, and wait until all are ready."""
        if self._config.service is None:
            return
        for arm in arms:
            if arm.name in self.services:
                self.services[arm.name].reset()
            else:
                self.services[arm.name] = self._service(arm)
        for service in self.services.values():
            service.wait()

    def require_alive(self) -> None:
        """Raise ServerError with the server's last words when it has died."""
        if not self.server.alive():
            words = self.server.log_tail(1) or "it left no message"
            raise ServerError(f"PostgreSQL died during the run: {words}; run it again")

    def database(self, arm: config.Arm) -> str:
        """The name of the arm's clone."""
        return f"{self._prefix}clone_{arm.name}"

    def _service(self, arm: config.Arm) -> Service:
        assert self._config.service is not None
        conninfo = self._through_relay(self.server.conninfo(self.database(arm)))
        service = Service(arm.name, self._config.service, arm.service, conninfo)
        self._stack.callback(service.stop)
        service.launch()
        return service

    def _through_relay(self, conninfo: str) -> str:
        """The same database behind the relay, where a round trip was asked for."""
        if not self._relay.rtt_ms:
            return conninfo
        self._relay_dir = self._relay_dir or self._start_relay()
        return f"{conninfo} host='{self._relay_dir}'"

    def _start_relay(self) -> str:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="perfkit-relay-"))
        process = spawn(
            [
                *(sys.executable, "-m", "perfkit.postgres.relay", "--listen", folder),
                *("--server", str(self.server.socket_dir), "--rtt-ms", str(self._relay.rtt_ms)),
                *("--connect-rtts", str(self._relay.connect_rtts)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stack.callback(stop, process)
        assert process.stdout
        if not process.stdout.readline():
            raise ServerError("the relay did not start; expected its ready line")
        return folder

    def _own(self, suffix: str) -> str:
        """A database name of this run that is dropped at the end."""
        name = self._prefix + suffix
        self._owned[name] = None
        return name


def parameters(
    stage: Stage, settings: config.Config, base: str, limit: int = 5000
) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of every parameter source, drawn from the base database once for all arms."""
    return {
        name: list(databases.rows(stage.server, base, path, limit))
        for name, path in settings.parameters.items()
    }
