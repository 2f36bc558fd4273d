"""Workbenches: how the arms of a run get their databases and services, and how both are removed again.

`Clones` makes a database for each arm: in PostgreSQL that perfkit starts, from SQL files or a private copy of the
user's database, or beside the user's database on its own server. `InPlace` measures the user's database as it is.
Arms that change nothing in it alternate; arms with indexes follow one another: before, after, before again. Their
indexes are built CONCURRENTLY, and removed at the end whatever happens in between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Self

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from perfkit.base.errors import ServerError, TargetRefused, UsageError
from perfkit.config import Arm, Config
from perfkit.postgres import catalog, databases, embedded
from perfkit.postgres.capabilities import require_allowed, require_direct
from perfkit.postgres.copies import Copied, Copying, copy_into
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Origin
from perfkit.postgres.index_builds import Built, IndexOutcome, build, existing_indexes, remove, rollback
from perfkit.postgres.index_sets import read_set
from perfkit.postgres.servers import External, Server
from perfkit.runs.records import OriginRecord
from perfkit.runs.service import RelaySpec, Service, relay_started
from perfkit.runs.targets import Janitor, without_interrupts


@dataclass(eq=False)
class Workbench(ABC):
    """The databases and services of one run's arms. Leaving it removes every database and process that it made."""

    private: ClassVar[bool]  # nobody else uses the arms' databases, so that their counters show this run alone

    config: Config
    run: str  # part of the name of every database that is made
    relay: RelaySpec
    origins: Mapping[str, Origin]  # of services that perfkit did not start, by arm
    sources: Mapping[str, External]  # databases that perfkit did not start, by arm
    progress: Callable[[str], None]
    services: dict[str, Service] = field(default_factory=dict, init=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False)
    _janitor: Janitor = field(default_factory=Janitor, init=False)
    _relays: dict[str, str] = field(default_factory=dict, init=False)  # the relay's folder, by the server's folder

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
    def origin(self) -> OriginRecord:
        """How the arms were made, and what that can and cannot show; for the bundle."""

    def base(self, scale: str) -> Database | None:
        """Make or reach the database that every arm starts from; return None if there is only a service."""
        self.progress(f"making the data ({scale})" if scale else "reaching the data")
        return self._reached(scale)

    @abstractmethod
    def _reached(self, scale: str) -> Database | None: ...

    def phases(self, arms: Sequence[Arm]) -> list[list[Arm]]:
        """Group the arms into phases, which follow one another; by default all arms alternate in one phase."""
        return [list(arms)]

    def phase(self, arms: Sequence[Arm]) -> AbstractContextManager[None]:
        """Return a context in which these arms can be prepared and measured."""
        return nullcontext()

    @abstractmethod
    def prepare(self, arm: Arm) -> tuple[Database | None, list[Built]]:
        """Prepare an arm; return the database for its plans, and what building its indexes cost."""

    def refresh(self, arms: Sequence[Arm]) -> None:
        """Restore the initial state of arms, before a block; by default nothing changes it."""
        return

    @abstractmethod
    def database(self, arm: Arm) -> Database | None:
        """Return the database that receives the arm's load."""

    @abstractmethod
    def require_alive(self) -> None:
        """Raise ServerError with the last line of the server's log if the server died."""

    def serve(self, arms: Sequence[Arm]) -> None:
        """Launch or reset the service of every arm, and wait until all are ready."""
        if self.config.service is None or not self.config.service.command:
            return
        for arm in arms:
            if arm.name in self.services:
                self.services[arm.name].reset()
                continue
            database = self.database(arm)
            conninfo = self._through_relay(database.conninfo()) if database else ""
            service = Service(arm.name, self.config.service, arm.service, conninfo)
            self._stack.callback(service.stop)
            service.launch()
            self.services[arm.name] = service
        for arm in arms:
            self.services[arm.name].wait()

    def service_address(self, arm: Arm) -> tuple[str, str]:
        """Return the URL of the arm's service, and the address to connect to ("": the one that the URL resolves to)."""
        if origin := self.origins.get(arm.name):
            return origin.name, origin.address
        return self.services[arm.name].base, ""

    def target_name(self, arm: str) -> str:
        """Return the name of the arm's target in the audit."""
        if origin := self.origins.get(arm):
            return origin.name
        database = next((self.database(other) for other in self.config.arm if other.name == arm), None)
        return f"{database.server.name}: {database.name}" if database else arm

    def _through_relay(self, conninfo: str) -> str:
        """Return the conninfo of the same database behind a relay, if the run has a round trip time."""
        if not self.relay.rtt_ms:
            return conninfo  # a selection with a round trip runs on a server that perfkit started
        server = str(conninfo_to_dict(conninfo)["host"])
        if server not in self._relays:
            self._relays[server] = self._stack.enter_context(relay_started(self.relay, server, self.run))
        return make_conninfo(conninfo, host=self._relays[server])


_MADE = OriginRecord(
    way="made by SQL files in PostgreSQL that perfkit started",
    tells="how these arms compare on this data",
    cannot_tell="how another server, other data or other load would behave",
)
_CLONED = OriginRecord(
    way="template clones on the database's own server",
    tells="how these arms compare on the whole of the data, on the server's own hardware and settings",
    cannot_tell="how they behave beside the load that the database itself carries, or with its bloat",
)


@dataclass(eq=False)
class Clones(Workbench):
    """A template database for each arm, cloned anew for every block; all arms can alternate."""

    private = True
    version: int  # of the servers that perfkit starts
    _servers: dict[Hashable, Server] = field(default_factory=dict, init=False)
    _restarting: frozenset[str] | None = field(default=None, init=False)  # settings that only a start can change
    _bases: dict[int, str] = field(default_factory=dict, init=False)  # by the identity of the server
    _templates: dict[str, tuple[Database, list[Built]]] = field(default_factory=dict, init=False)
    _owned: dict[tuple[int, str], Server] = field(default_factory=dict, init=False)
    dropped: dict[str, list[IndexOutcome]] = field(default_factory=dict, init=False)  # by the arm that was rolled back
    _scale: str = field(default="", init=False)
    _copied: Copied | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        assert self.config.database  # a server must not reject a setting after anything was made
        for arm in self.config.arm:
            if self._source and self.config.database.way == "clone":
                databases.require_settings(self._source, arm.settings)
            else:
                settings = {**self.config.database.settings, **arm.settings}
                embedded.require_known(arm.postgres or self.version, settings)
        self._server(self.config.baseline())
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for service in self.services.values():
            service.end()
        for service in self.services.values():
            service.stop()
        # A server that perfkit started is deleted with its databases; after an error the run ends as fast as it can.
        with without_interrupts():
            for (_, name), server in self._owned.items():
                if kind is None or server.foreign:
                    databases.drop(server, name)
                if isinstance(server, External):
                    self._janitor.released("databases", [name])
        super().__exit__(kind, *exc)

    @property
    def _source(self) -> External | None:
        """The user's database that every arm starts from, if there is one."""
        return self.sources.get(self.config.baseline().name)

    @property
    def origin(self) -> OriginRecord:
        """How the arms were made, and what that can and cannot show."""
        if (copied := self._copied) is None:
            return _CLONED if self._source else _MADE
        return OriginRecord(
            way=f"a private copy ({copied.method}) in PostgreSQL that perfkit started",
            tells=copied.tells,
            cannot_tell=copied.cannot_tell,
            missing=list(copied.missing),
            source_rows=dict(copied.source_rows),
        )

    def _reached(self, scale: str) -> Database | None:
        self._scale = scale
        server = self._server(self.config.baseline())
        return Database(server, self._base(server))

    def prepare(self, arm: Arm) -> tuple[Database, list[Built]]:
        """Return the arm's template and what its indexes cost; arms with the same preparation share a template."""
        server = self._server(arm)
        key = repr((id(server), arm.prepare, arm.indexes, arm.meanwhile, arm.rolled_back, self._settings(arm)))
        if key not in self._templates:
            name = self._database_name(server, f"template_{arm.name}")
            databases.create(server, name, self._base(server))
            databases.configure(server, name, self._settings(arm))
            databases.prepare(server, name, arm.prepare, {})
            built = build(server, name, arm.indexes) if arm.indexes else []
            databases.prepare(server, name, arm.meanwhile, {})
            if arm.rolled_back:
                built = self._rolled_back(arm, server, name, built)
            databases.freeze(server, name)
            self._templates[key] = (Database(server, name), built)
        return self._templates[key]

    def _rolled_back(self, arm: Arm, server: Server, name: str, built: list[Built]) -> list[Built]:
        """Drop an arm's indexes again, as in a database in use; return those that remain."""
        assert arm.indexes
        self.dropped[arm.name] = rollback(server, name, read_set(arm.indexes), self.progress)
        remaining = {index.name for index in self.dropped[arm.name] if index.how == "left"}
        return [index for index in built if index.name in remaining]

    def refresh(self, arms: Sequence[Arm]) -> None:
        """Clone the arms' templates, two at a time: a server spends half of that time waiting for the disk.

        The old clones are dropped before that, one after the other. Databases that are dropped side by side free
        their buffers alternately, and the next clones to be read would get better places in memory than the others.
        """
        for arm in arms:
            template, _ = self.prepare(arm)
            databases.drop(template.server, self._database_name(template.server, f"clone_{arm.name}"))
        with ThreadPoolExecutor(1 if self._source else 2) as pool:
            list(pool.map(self._clone, arms))

    def _clone(self, arm: Arm) -> None:
        template, _ = self.prepare(arm)
        name = self._database_name(template.server, f"clone_{arm.name}")
        databases.create(template.server, name, template.name)
        databases.configure(template.server, name, self._settings(arm))

    def database(self, arm: Arm) -> Database:
        """Return the arm's clone."""
        return Database(self._server(arm), f"pk_{self.run}_clone_{arm.name}")

    def require_alive(self) -> None:
        """Raise ServerError with the last line of the server's log if the server died."""
        for server in self._servers.values():
            if not server.alive():
                died = server.log_tail(1) or "it left no message"
                raise ServerError(f"PostgreSQL died during the run: {died}; run it again")

    def _server(self, arm: Arm) -> Server:
        """Return the server of an arm's version, started with the arm's settings that only a start can change."""
        assert self.config.database
        if self._source and self.config.database.way == "clone":
            require_direct(self._source, "to clone it")
            require_allowed(self._source, "ddl", "databases may not be made beside it")
            return self._servers.setdefault("source", self._source)
        if self._restarting is None:
            self._restarting = frozenset()  # the plain server knows which settings these are
            with databases.connected(self._server(arm.model_copy(update={"settings": {}, "postgres": None}))) as plain:
                self._restarting = frozenset(row["name"] for row in catalog.rows(plain, "restarting_settings"))
        version = arm.postgres or self.version
        restarting = {name: value for name, value in arm.settings.items() if name.lower() in self._restarting}
        key = (version, *sorted(restarting.items()))
        if key not in self._servers:
            self.progress(f"starting PostgreSQL {version}")
            settings = {**self.config.database.settings, **restarting}
            self._servers[key] = self._stack.enter_context(embedded.start(version, settings))
        return self._servers[key]

    def _settings(self, arm: Arm) -> dict[str, str]:
        """Return the arm's settings that a database can hold."""
        return {name: value for name, value in arm.settings.items() if name.lower() not in (self._restarting or ())}

    def _base(self, server: Server) -> str:
        """Return the name of the server's base database: made by files, copied from the user's, or a clone of it."""
        if id(server) in self._bases:
            return self._bases[id(server)]
        assert self.config.database
        settings, name = self.config.database, self._database_name(server, "base")
        if self._source and settings.way in ("whole", "sample", "generated"):
            how = Copying(settings.way, rows=settings.sample_rows, max_bytes=settings.copy_limit_mb * 10**6)
            assert isinstance(server, embedded.EmbeddedServer)
            self._copied = copy_into(self._source, server, name, how, self.progress)
        elif self._source:
            databases.create(server, name, self._source.address.dbname)
        else:
            databases.create(server, name)
            databases.prepare(server, name, settings.prepare, settings.scales.get(self._scale, {}))
        databases.freeze(server, name)
        self._bases[id(server)] = name
        return name

    def _database_name(self, server: Server, suffix: str) -> str:
        """Return a database name of this run; the database is dropped at the end."""
        name = f"pk_{self.run}_{suffix}"
        if isinstance(server, External) and (id(server), name) not in self._owned:
            self._janitor.promise(server, "databases", [name])
        self._owned[id(server), name] = server
        return name


@dataclass(eq=False)
class ExistingDatabaseArms(Clones):
    """Clones of a database on a server that perfkit started; nobody may be connected to it while it is cloned."""

    origin_database: Database

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        super().__exit__(None)  # the server keeps running, so that the clones must be dropped even after an error

    @property
    def origin(self) -> OriginRecord:
        """How the arms were made."""
        return _MADE.model_copy(update={"way": "clones of the database as it was, in PostgreSQL that perfkit started"})

    def _server(self, arm: Arm) -> Server:
        return self.origin_database.server

    def _base(self, server: Server) -> str:
        if id(server) not in self._bases:
            self._bases[id(server)] = name = self._database_name(server, "base")
            databases.create(server, name, self.origin_database.name)
            databases.freeze(server, name)
        return self._bases[id(server)]


@dataclass(eq=False)
class InPlace(Workbench):
    """The user's own databases and services; nothing is made in them except the arms' indexes."""

    private = False

    _built: dict[str, list[Built]] = field(default_factory=dict, init=False)

    @property
    def origin(self) -> OriginRecord:
        """How the arms were made, and what that can and cannot show."""
        order = "before, after, before again" if self.config.sequential else "alternating, nothing changed"
        return OriginRecord(
            way=f"in place ({order})",
            tells="how these arms compare on the database as it is, beside whatever else it was doing",
            cannot_tell="how much of a difference that other load made, unless the control arm shows it",
        )

    def _reached(self, scale: str) -> Database | None:
        """Return the database of the first arm. Raises TargetRefused if an arm's database cannot take its changes."""
        for arm in self.config.arm:
            if source := self.sources.get(arm.name):
                self._require_possible(arm, source)
                if arm.indexes:
                    self._require_buildable(arm, source)
        return self.database(self.config.baseline())

    def phases(self, arms: Sequence[Arm]) -> list[list[Arm]]:
        """Let all arms alternate, or one follow the other; the control, which is `before` again, comes last."""
        if not self.config.sequential:
            return super().phases(arms)
        order = {"before": 0, "after": 1, "control": 2}
        return [[arm] for arm in sorted(arms, key=lambda arm: order[arm.role])]

    @contextmanager
    def phase(self, arms: Sequence[Arm]) -> Iterator[None]:
        """Remove the indexes of these arms at the end, also after an error or an interrupt."""
        indexed = [arm for arm in arms if arm.indexes]
        for arm in indexed:
            self._require_buildable(arm, self.sources[arm.name])  # the database may have changed since the start
            assert arm.indexes
            self._janitor.promise(self.sources[arm.name], "indexes", read_set(arm.indexes).names)
        try:
            yield
        finally:
            for arm in indexed:
                with without_interrupts():
                    self._remove(arm)

    def prepare(self, arm: Arm) -> tuple[Database | None, list[Built]]:
        """Build the arm's indexes if it has any."""
        database = self.database(arm)
        if database and arm.indexes and arm.name not in self._built:
            self.progress(f"building the indexes of {arm.name}, concurrently")
            comment = f"perfkit run {self.run}"
            self._built[arm.name] = build(database.server, database.name, arm.indexes, in_place=comment)
        return database, self._built.get(arm.name, [])

    def database(self, arm: Arm) -> Database | None:
        """Return the arm's database."""
        server = self.sources.get(arm.name)
        return Database(server, server.address.dbname, arm.settings) if server else None

    def require_alive(self) -> None:
        """Raise ServerError if a server no longer answers; requests that it fails are only counted."""
        for source in self.sources.values():
            if not source.alive():
                raise ServerError(f"{source.name}: the server no longer answers; the rounds measured so far are kept")

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
        """Raise TargetRefused unless indexes may be built, UsageError if one of them exists already."""
        assert arm.indexes
        require_direct(source, "to build indexes")
        require_allowed(source, "ddl", "indexes may not be built in it")
        with databases.connected(source) as connection:
            if existing := existing_indexes(connection, read_set(arm.indexes).names):
                raise UsageError(
                    f"{arm.indexes}: index {existing[0]} exists already; expected a new index (left behind by an "
                    f"interrupted run? then: DROP INDEX CONCURRENTLY {existing[0]})"
                )

    def _remove(self, arm: Arm) -> None:
        """Drop the indexes that were built for the arm; retries if a lock cannot be acquired."""
        database = self.database(arm)
        assert database and arm.indexes
        self.progress(f"removing the indexes of {arm.name}")
        names = read_set(arm.indexes).names
        if remaining := remove(database.server, database.name, names):
            statements = "; ".join(f"DROP INDEX CONCURRENTLY IF EXISTS {name}" for name in remaining)
            raise ServerError(
                f"{arm.name}: not every index could be removed yet (locks?); perfkit retries for ten more minutes, or "
                f"run: {statements}"
            )
        self._janitor.released("indexes", names)
