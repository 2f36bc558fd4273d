"""What a run measures on: a database for each arm, however it is got, and a service in front of it."""

from __future__ import annotations

import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from perfkit.arms.janitor import Janitor
from perfkit.config import Arm, Config
from perfkit.errors import ServerError
from perfkit.guards.origin import Origin
from perfkit.indexes.build import Built
from perfkit.postgres.external import External
from perfkit.postgres.place import Database
from perfkit.process import MODULE, spawn, stop
from perfkit.service import Service


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """A network round trip between service and database: `rtt_ms` each, `connect_rtts` of them to connect."""

    rtt_ms: float = 0.0
    connect_rtts: int = 6


@dataclass(eq=False)
class Workbench(ABC):
    """All arms of one run. Leaving it removes every database and stops every process it made."""

    private: ClassVar[bool]  # whether nobody else uses the arms' databases, so that what they count is ours

    config: Config
    run: str  # in the names of what is made
    relay: RelaySpec
    origins: Mapping[str, Origin]  # of services that perfkit did not start, by arm
    sources: Mapping[str, External]  # likewise of databases
    progress: Callable[[str], None]
    services: dict[str, Service] = field(default_factory=dict, init=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False)
    _janitor: Janitor = field(default_factory=Janitor, init=False)
    _relays: dict[str, str] = field(default_factory=dict, init=False)  # the folder that listens, by the server's

    def __post_init__(self) -> None:
        self._stack.callback(self._janitor.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for service in self.services.values():
            service.end()
        self._stack.close()

    @property
    @abstractmethod
    def origin(self) -> Mapping[str, Any]:
        """How the arms were got, and what that can and cannot tell, for the bundle."""

    @abstractmethod
    def base(self, scale: str) -> Database | None:
        """Make or reach the database that every arm starts from; None where there is only a service."""

    def phases(self, arms: Sequence[Arm]) -> list[list[Arm]]:
        """The arms by what can alternate, by default all; phases follow one another."""
        return [list(arms)]

    def phase(self, arms: Sequence[Arm]) -> AbstractContextManager[None]:
        """A context in which these arms can be prepared and measured."""
        return nullcontext()

    @abstractmethod
    def prepare(self, arm: Arm) -> tuple[Database | None, list[Built]]:
        """Where the arm's plans are to be seen, and what its indexes cost."""

    @abstractmethod
    def refresh(self, arm: Arm) -> None:
        """The same state anew, before a block."""

    def refresh_all(self, arms: Sequence[Arm]) -> None:
        """The same for several arms."""
        for arm in arms:
            self.refresh(arm)

    @abstractmethod
    def place(self, arm: Arm) -> Database | None:
        """The database that the arm's load goes to."""

    @abstractmethod
    def require_alive(self) -> None:
        """Raise ServerError with the server's last words when it has died."""

    def serve(self, arms: Sequence[Arm]) -> None:
        """Launch or reset the service of every arm on its database, and wait until all are ready."""
        if self.config.service is None or not self.config.service.command:
            return
        for arm in arms:
            if arm.name in self.services:
                self.services[arm.name].reset()
            else:
                self.services[arm.name] = self._service(arm)
        for arm in arms:
            self.services[arm.name].wait()

    def reached(self, arm: Arm) -> tuple[str, str]:
        """Where the arm's service answers, and the address to use for it ("" for the usual)."""
        if found := self.origins.get(arm.name):
            return found.name, found.address
        return self.services[arm.name].base, ""

    def called(self, arm: str) -> str:
        """What the audit calls the arm's target."""
        if found := self.origins.get(arm):
            return found.name
        place = next((self.place(own) for own in self.config.arm if own.name == arm), None)
        return f"{place.site.name}: {place.name}" if place else arm

    def _service(self, arm: Arm) -> Service:
        assert self.config.service is not None
        place = self.place(arm)
        conninfo = self._through_relay(place.conninfo()) if place else ""
        service = Service(arm.name, self.config.service, arm.service, conninfo)
        self._stack.callback(service.stop)
        service.launch()
        return service

    def _through_relay(self, conninfo: str) -> str:
        """The same database behind a relay, where a round trip was asked for."""
        if not self.relay.rtt_ms:
            return conninfo  # a selection with a round trip is on a server of perfkit's own
        server = str(conninfo_to_dict(conninfo)["host"])
        if server not in self._relays:
            self._relays[server] = self._start_relay(server)
        return make_conninfo(conninfo, host=self._relays[server])

    def _start_relay(self, server: str) -> str:
        folder = Path(server) / f"relay-{self.run}"  # which goes with the server's own folder, come what may
        folder.mkdir(mode=0o700, exist_ok=True)
        delay = ["--rtt-ms", str(self.relay.rtt_ms), "--connect-rtts", str(self.relay.connect_rtts)]
        command = [*MODULE, "perfkit.postgres.relay", "--listen", str(folder), "--server", server, *delay]
        process = spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._stack.callback(stop, process)
        assert process.stdout
        if not process.stdout.readline():
            raise ServerError("the relay did not start; expected its ready line")
        return str(folder)


@contextmanager
def without_autovacuum() -> Iterator[None]:
    """No interrupt while something is put back: it takes seconds and must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
