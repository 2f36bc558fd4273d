"""What a watch watches: a service and a database that run already, or the booking system as perfkit starts it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfkit import sources
from perfkit.arms.clones import Clones
from perfkit.arms.stage import RelaySpec
from perfkit.config import Arm, Config, Query, Request
from perfkit.errors import UsageError
from perfkit.guards.admission import Permission
from perfkit.guards.audit import Audit
from perfkit.postgres.external import External, open_external
from perfkit.postgres.place import Database
from perfkit.selection import RunSpec, Selection, alone
from perfkit.targets import LOADED, SAFE_METHODS, Targets, admitted

Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]
Reach = Callable[[], Database]
SEED = "watch"


@dataclass(frozen=True, slots=True)
class WatchedTarget:
    """A service, a database or both, and what is sent to them."""

    chosen: Selection
    items: Mapping[str, Request | Query]
    service: tuple[str, str] | None  # its origin, and the address to use for it ("" for the usual)
    reach: Reach | None  # the database: raises ServerError as long as it does not answer, TargetRefused

    @property
    def arm(self) -> Arm:
        """The variant of the system that is live."""
        return self.chosen.arms[0]

    def rows(self) -> dict[str, Sequence[Row]]:
        """Parameter rows that need no database. Raises UsageError."""
        return {name: sources.rows(name, source, None, SEED) for name, source in self._sources(sql=False)}

    def drawn(self, reach: Reach) -> tuple[Database, dict[str, Sequence[Row]]]:
        """The database and the parameter rows from it, once what is sent there is known to harm nothing.

        Raises ServerError as long as it does not answer, TargetRefused, UsageError, PlanError.
        """
        place = reach()
        found = {name: self.source(place, name) for name, _ in self._sources(sql=True)}
        if isinstance(place.site, External):
            self._require_harmless(place, {**self.rows(), **found})
        return place, found

    def source(self, place: Database, name: str) -> Sequence[Row]:
        """The rows that a source gives now. Raises ServerError, UsageError."""
        return sources.rows(name, self.chosen.config.parameters[name], place, SEED)

    def text(self, query: str) -> str:
        """What is sent for a query."""
        return self.chosen.text(self.arm.name, query)

    def _sources(self, *, sql: bool) -> Iterator[tuple[str, Any]]:
        """The sources that are needed: those that ask the database, or the others."""
        wanted = {item.parameters for item in self.items.values()}
        for name, source in self.chosen.config.parameters.items():
            if name in wanted and sql == (isinstance(source, Path) and source.suffix.lower() != ".csv"):
                yield name, source

    def _require_harmless(self, place: Database, rows: Rows) -> None:
        from perfkit.explain.safety import effects, require_harmless  # it brings a parser of SQL

        database = self.chosen.config.database
        allowed = database.volatile if database else ()
        for item in self.items.values():
            if isinstance(item, Query):
                row = rows[item.parameters][0] if item.parameters else None
                found = effects(place.session, self.text(item.name), row)
                require_harmless(found, writes_allowed=False, volatile_allowed=allowed, where=place.site.name)


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """What shall be watched, admitted and not yet touched."""

    chosen: Selection
    items: Mapping[str, Request | Query]
    targets: Targets

    @property
    def live(self) -> bool:
        """Whether it runs already; else perfkit starts it."""
        service, database = self.chosen.config.service, self.chosen.config.database
        return not (service and service.command) and bool(service or (database and database.target))

    @property
    def name(self) -> str:
        """What is watched, without secrets."""
        if not self.live:
            return f"{self.chosen.arms[0].name}, started by perfkit"
        services, databases = self.targets.origins.values(), self.targets.addresses.values()
        return " and ".join([*(origin.name for origin in services), *(address.name for address in databases)])


def planned(config: Config, permission: Permission, arm: str = "", scale: str = "") -> ProbePlan:
    """The variant that is watched, and what is sent: `send`, or requests that only read and every query.

    Raises UsageError, TargetRefused, and ServerError for a name without an address.
    """
    service, database = config.service, config.database
    if service and service.command and database and database.way in LOADED:
        raise UsageError("watch: [service] is started by perfkit on a database of yours; expected its url")
    found = alone(config, RunSpec(scale=scale, arms=(arm,) if arm else ()))
    known: dict[str, Request | Query] = {**found.requests, **found.queries}
    reading = [request.name for request in config.request if request.method in SAFE_METHODS]
    items = {name: known[name] for name in config.watch.send or (*reading, *found.queries)}
    if not items:
        raise UsageError("watch: nothing to send; expected requests in 'send', or a GET or a query to choose")
    requests = tuple(request for request in config.request if request.name in items)  # the guards ask for no others
    selection = Selection(found.config.model_copy(update={"request": requests}), found.options)
    plan = ProbePlan(selection, items, admitted(selection.config, selection.arms, permission))
    offered, most = config.watch.rate * len(items), config.limits.rate
    if plan.live and 0 < most < offered:
        raise UsageError(f"watch: {len(items)} x {config.watch.rate:g}/s; expected at most limits.rate = {most:g}/s")
    return plan


@contextmanager
def opened(plan: ProbePlan, audit: Audit, say: Callable[[str], None]) -> Iterator[WatchedTarget]:
    """What was planned, running; what perfkit started ends with the context. What runs already need not answer yet.

    Raises UsageError, and ServerError or ServiceError for what perfkit cannot start.
    """
    if plan.live:
        yield _running(plan, audit)
        return
    selection, targets = plan.chosen, plan.targets
    own = selection.arms[0]
    where = (RelaySpec(), targets.origins, targets.open(audit))
    with Clones(selection.config, secrets.token_hex(3), *where, say, selection.postgres) as stage:
        say(f"making the data ({selection.scale})" if selection.scale else "reaching the data")
        stage.base(selection.scale)
        stage.refresh(own)
        stage.serve([own])
        place = stage.place(own)
        service = stage.reached(own) if selection.config.service else None
        say("")
        yield WatchedTarget(selection, plan.items, service, lambda: place)


def _running(plan: ProbePlan, audit: Audit) -> WatchedTarget:
    """A service and a database of the user's; the latter is opened when it is first wanted and answers."""
    arm, targets = plan.chosen.arms[0], plan.targets
    address, origin = targets.addresses.get(arm.name), targets.origins.get(arm.name)
    found: list[External] = []
    lock = threading.Lock()

    def reach() -> Database:
        assert address
        with lock:
            if not found:
                external = open_external(address, targets.permission, audit)
                external.pooler |= targets.pooler
                found.append(external)
        return Database(found[0], address.dbname, arm.settings)

    service = (origin.name, origin.address) if origin else None
    return WatchedTarget(plan.chosen, plan.items, service, reach if address else None)
