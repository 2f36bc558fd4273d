"""Arms made ready: as clones, in place, or beside a database that is there.

On servers that perfkit starts, from SQL files or from a private copy of a database of the user's; or beside
that database, on its own server.

Arms that change nothing in it alternate. Arms with indexes follow one another: before, after, before again;
the indexes are built CONCURRENTLY and removed at the end, whatever happens in between.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from perfkit.base.errors import ServerError, TargetRefused, UsageError
from perfkit.base.process import MODULE, spawn, stop
from perfkit.config import Arm, Config
from perfkit.postgres import catalog, databases, embedded
from perfkit.postgres.capabilities import require_allowed, require_direct
from perfkit.postgres.copies import Copied, Copying, copy_into
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Origin
from perfkit.postgres.index_builds import Built, build, index_names, places
from perfkit.postgres.index_changes import Dropped, remove, rollback
from perfkit.postgres.index_sets import read_set
from perfkit.postgres.servers import External, Server
from perfkit.runs.janitor import Janitor
from perfkit.runs.service import Service


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


# Arms as databases of their own: a template each, cloned anew for every block.

_MADE = {
    "way": "made by SQL files in PostgreSQL that perfkit started",
    "tells": "how these arms compare on this data",
    "cannot_tell": "how another server, other data or other load would behave",
}
_CLONED = {
    "way": "template clones on the database's own server",
    "tells": "how these arms compare on the whole of the data, on the server's own hardware and settings",
    "cannot_tell": "how they behave beside the load that the database itself carries, or with its bloat",
}


@dataclass(eq=False)
class Clones(Workbench):
    """Template databases, cloned for every block; all arms can alternate."""

    private = True

    version: int  # of the servers that perfkit starts
    _servers: dict[Any, Server] = field(default_factory=dict, init=False)
    _restarting: frozenset[str] | None = field(default=None, init=False)  # settings that need a server of their own
    _bases: dict[int, str] = field(default_factory=dict, init=False)  # by the identity of their server
    _templates: dict[str, tuple[Database, list[Built]]] = field(default_factory=dict, init=False)
    _owned: dict[tuple[int, str], Server] = field(default_factory=dict, init=False)
    dropped: dict[str, list[Dropped]] = field(default_factory=dict, init=False)  # by the arm that was rolled back
    _scale: str = field(default="", init=False)
    _copied: Copied | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self._require_settings()
        self._server(self.config.baseline())
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for service in self.services.values():
            service.end()
        for service in self.services.values():
            service.stop()
        # Where nobody else uses the server it goes with its databases, and after an error there is no time.
        with without_autovacuum():
            for (_, name), site in self._owned.items():
                if kind is None or site.foreign:
                    databases.drop(site, name)
                if isinstance(site, External):
                    self._janitor.released("databases", [name])
        super().__exit__(kind, *exc)

    @property
    def _source(self) -> External | None:
        """The database of the user's that every arm starts from, where there is one."""
        return self.sources.get(self.config.baseline().name)

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the arms were got, and what that can and cannot tell."""
        if (copied := self._copied) is None:
            return _CLONED if self._source else _MADE
        return {
            "way": f"a private copy ({copied.method}) in PostgreSQL that perfkit started",
            "tells": copied.tells,
            "cannot_tell": copied.cannot_tell,
            "missing": list(copied.missing),
            "source_rows": dict(copied.source_rows),
        }

    def base(self, scale: str) -> Database | None:
        """Make the database that the first arm starts from."""
        self._scale = scale
        site = self._server(self.config.baseline())
        return Database(site, self._base(site))

    def prepare(self, arm: Arm) -> tuple[Database, list[Built]]:
        """The arm's template and what its indexes cost; arms that are prepared alike share one."""
        site = self._server(arm)
        key = repr((id(site), arm.prepare, arm.indexes, arm.meanwhile, arm.rolled_back, self._settings(arm)))
        if key not in self._templates:
            name = self._own(site, f"template_{arm.name}")
            databases.create(site, name, self._base(site))
            databases.configure(site, name, self._settings(arm))
            databases.prepare(site, name, arm.prepare, {})
            built = build(site, name, arm.indexes) if arm.indexes else []
            databases.prepare(site, name, arm.meanwhile, {})
            if arm.rolled_back:
                built = self._rolled_back(arm, site, name, built)
            databases.freeze(site, name)
            self._templates[key] = (Database(site, name), built)
        return self._templates[key]

    def _rolled_back(self, arm: Arm, site: Server, name: str, built: list[Built]) -> list[Built]:
        """Drop an arm's indexes again, as is done in a database in use; those that are left."""
        assert arm.indexes
        self.dropped[arm.name] = rollback(site, name, read_set(arm.indexes), self.progress)
        left = {own.name for own in self.dropped[arm.name] if own.how == "left"}
        return [index for index in built if index.name in left]

    def refresh(self, arm: Arm) -> None:
        """A fresh clone of the arm's template under the arm's own name."""
        template, _ = self.prepare(arm)
        name = self._own(template.site, f"clone_{arm.name}")
        databases.create(template.site, name, template.name)
        databases.configure(template.site, name, self._settings(arm))

    def refresh_all(self, arms: Sequence[Arm]) -> None:
        """Two at a time: the server waits for the disk half of it.

        What was there is dropped one after the other before that. Dropped side by side, databases leave their pages'
        places in memory in turns, and of the next ones those that are read first get the better ones.
        """
        for arm in arms:
            place, _ = self.prepare(arm)
            databases.drop(place.site, self._own(place.site, f"clone_{arm.name}"))
        with ThreadPoolExecutor(1 if self._source else 2) as pool:
            list(pool.map(self.refresh, arms))

    def place(self, arm: Arm) -> Database:
        """The arm's clone."""
        return Database(self._server(arm), f"pk_{self.run}_clone_{arm.name}")

    def require_alive(self) -> None:
        """Raise ServerError with the server's last words when it has died."""
        for site in self._servers.values():
            if not site.alive():
                words = site.log_tail(1) or "it left no message"
                raise ServerError(f"PostgreSQL died during the run: {words}; run it again")

    def _server(self, arm: Arm) -> Server:
        """The server that fits an arm: its version, and the settings that only a start can give."""
        assert self.config.database
        if self._source and self.config.database.way == "clone":
            require_direct(self._source, "to clone it")
            require_allowed(self._source, "ddl", "databases may not be made beside it")
            return self._servers.setdefault("source", self._source)
        if self._restarting is None:
            self._restarting = frozenset()  # the plain server is needed to ask which settings these are
            with databases.connected(self._server(arm.model_copy(update={"settings": {}, "postgres": None}))) as plain:
                self._restarting = frozenset(row["name"] for row in catalog.rows(plain, "restarting_settings"))
        version = arm.postgres or self.version
        own = {name: value for name, value in arm.settings.items() if name.lower() in self._restarting}
        key = (version, *sorted(own.items()))
        if key not in self._servers:
            self.progress(f"starting PostgreSQL {version}")
            settings = {**self.config.database.settings, **own}
            self._servers[key] = self._stack.enter_context(embedded.start(version, settings))
        return self._servers[key]

    def _require_settings(self) -> None:
        """Raise UsageError for a setting that a server will not take, before any is started or anything is made."""
        assert self.config.database
        for arm in self.config.arm:
            if self._source and self.config.database.way == "clone":
                databases.require_settings(self._source, arm.settings)
            else:
                given = {**self.config.database.settings, **arm.settings}
                embedded.require_known(arm.postgres or self.version, given)

    def _settings(self, arm: Arm) -> dict[str, str]:
        """The settings that a database can hold."""
        restarting = self._restarting or frozenset()
        return {name: value for name, value in arm.settings.items() if name.lower() not in restarting}

    def _base(self, site: Server) -> str:
        """The server's base database: made by files, copied from the user's, or a clone of it."""
        if id(site) in self._bases:
            return self._bases[id(site)]
        assert self.config.database
        settings, name = self.config.database, self._own(site, "base")
        if self._source and settings.way in ("whole", "sample", "generated"):
            how = Copying(settings.way, rows=settings.sample_rows, max_bytes=settings.copy_limit_mb * 10**6)
            assert isinstance(site, embedded.EmbeddedServer)
            self._copied = copy_into(self._source, site, name, how, self.progress)
        elif self._source:
            databases.create(site, name, self._source.address.dbname)
        else:
            databases.create(site, name)
            databases.prepare(site, name, settings.prepare, settings.scales.get(self._scale, {}))
        databases.freeze(site, name)
        self._bases[id(site)] = name
        return name

    def _own(self, site: Server, suffix: str) -> str:
        """A database name of this run that is dropped at the end."""
        name = f"pk_{self.run}_{suffix}"
        if isinstance(site, External) and (id(site), name) not in self._owned:
            self._janitor.promise(site, "databases", [name])
        self._owned[id(site), name] = site
        return name


# Arms cloned from a database that is there already, on the server of perfkit's own that it is on.


@dataclass(eq=False)
class ExistingDatabaseArms(Clones):
    """Clones of a database that stays as it is; nobody may be connected to it while it is copied."""

    origin_place: Database

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        super().__exit__(None)  # the server goes on, so that the clones must go in any case

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the arms were got."""
        return {
            "way": "clones of the database as it was, in PostgreSQL that perfkit started",
            "tells": "how these arms compare on this data",
            "cannot_tell": "how another server, other data or other load would behave",
        }

    def _server(self, arm: Arm) -> Server:
        return self.origin_place.site

    def _base(self, site: Server) -> str:
        if id(site) not in self._bases:
            self._bases[id(site)] = name = self._own(site, "base")
            databases.create(site, name, self.origin_place.name)
            databases.freeze(site, name)
        return self._bases[id(site)]


# Arms in a database of the user's as it stands.


@dataclass(eq=False)
class InPlace(Workbench):
    """The user's own databases and services, by arm; nothing in them is made but the arms' indexes."""

    private = False

    _built: dict[str, list[Built]] = field(default_factory=dict, init=False)

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the arms were got, and what that can and cannot tell."""
        order = "before, after, before again" if self.config.sequential else "alternating, nothing changed"
        return {
            "way": f"in place ({order})",
            "tells": "how these arms compare on the database as it is, beside whatever else it was doing",
            "cannot_tell": "how much of a difference that other load made, unless the control arm shows it",
        }

    def base(self, scale: str) -> Database | None:
        """The database of the first arm. Raises TargetRefused for what may not, or cannot, be done there."""
        for arm in self.config.arm:
            if source := self.sources.get(arm.name):
                self._require_possible(arm, source)
                if arm.indexes:
                    self._require_buildable(arm, source)
        return self.place(self.config.baseline())

    def phases(self, arms: Sequence[Arm]) -> list[list[Arm]]:
        """All arms alternate, or one follows the other with the control, which is `before` again, at the end."""
        if not self.config.sequential:
            return super().phases(arms)
        order = {"before": 0, "after": 1, "control": 2}
        return [[arm] for arm in sorted(arms, key=lambda arm: order[arm.role])]

    @contextmanager
    def phase(self, arms: Sequence[Arm]) -> Iterator[None]:
        """Remove the indexes of these arms at the end, also after an error or an interrupt."""
        begun = [arm for arm in arms if arm.indexes]
        for arm in begun:
            self._require_buildable(arm, self.sources[arm.name])  # what was so at the start may have changed
            assert arm.indexes
            self._janitor.promise(self.sources[arm.name], "indexes", index_names(arm.indexes))
        try:
            yield
        finally:
            for arm in begun:
                with without_autovacuum():
                    self._remove(arm)

    def prepare(self, arm: Arm) -> tuple[Database | None, list[Built]]:
        """Build the arm's indexes where it has some."""
        place = self.place(arm)
        if place and arm.indexes and arm.name not in self._built:
            self.progress(f"building the indexes of {arm.name}, concurrently")
            comment = f"perfkit run {self.run}"
            self._built[arm.name] = build(place.site, place.name, arm.indexes, in_place=comment)
        return place, self._built.get(arm.name, [])

    def refresh(self, arm: Arm) -> None:
        """Nothing: the database is as it is."""

    def place(self, arm: Arm) -> Database | None:
        """The arm's database."""
        site = self.sources.get(arm.name)
        return Database(site, site.address.dbname, arm.settings) if site else None

    def require_alive(self) -> None:
        """Raise ServerError where a server no longer answers; requests that it fails are counted."""
        for source in self.sources.values():
            if not source.alive():
                raise ServerError(f"{source.name}: the server no longer answers; what was measured so far is kept")

    def _require_possible(self, arm: Arm, source: External) -> None:
        if self.config.service and self.config.service.command:
            require_allowed(source, "writes", "a service may write to it")
        if arm.settings and source.pooler:
            setting, value = next(iter(arm.settings.items()))
            raise TargetRefused(
                f"{source.name}: behind a pooler, which forgets settings; expected a direct connection, or from its "
                f"owner: ALTER ROLE {sql.Identifier(source.address.user).as_string()} SET {setting} = '{value}'"
            )
        databases.require_settings(source, arm.settings)

    def _require_buildable(self, arm: Arm, source: External) -> None:
        """Raise unless building is allowed and none of the indexes is there already."""
        assert arm.indexes
        require_direct(source, "to build indexes")
        require_allowed(source, "ddl", "indexes may not be built in it")
        with databases.connected(source) as connection:
            if found := places(connection, index_names(arm.indexes)):
                raise UsageError(
                    f"{arm.indexes}: index {found[0]} is there already; expected one to build (left behind by an "
                    f"interrupted run? then: DROP INDEX CONCURRENTLY {found[0]})"
                )

    def _remove(self, arm: Arm) -> None:
        """Drop the arm's indexes, which were not there before it, trying again where a lock is not to be had."""
        place = self.place(arm)
        assert place and arm.indexes
        self.progress(f"removing the indexes of {arm.name}")
        names = index_names(arm.indexes)
        if left := remove(place.site, place.name, names):
            statements = "; ".join(f"DROP INDEX CONCURRENTLY IF EXISTS {name}" for name in left)
            raise ServerError(
                f"{arm.name}: not every index could be removed yet (locks?); perfkit tries for ten more minutes, or "
                f"run: {statements}"
            )
        self._janitor.released("indexes", names)
