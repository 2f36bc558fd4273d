"""Arms as databases of their own: a template each, cloned anew for every block.

On servers that perfkit starts, from SQL files or from a private copy of a database of the user's; or beside
that database, on its own server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from perfkit.arms.stage import Workbench, without_autovacuum
from perfkit.config import Arm
from perfkit.errors import ServerError
from perfkit.indexes.apply import Dropped, rollback
from perfkit.indexes.build import Built, build
from perfkit.indexes.statements import read_set
from perfkit.postgres import catalog, databases, embedded
from perfkit.postgres.capabilities import require_allowed, require_direct
from perfkit.postgres.copies import Copied, Copying, copy_into
from perfkit.postgres.external import External
from perfkit.postgres.place import Database
from perfkit.postgres.site import Server

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
