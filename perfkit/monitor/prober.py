"""Probes of a watched target, and how the target is reached.

The probes run in one event loop, in a thread of its own. Response times count from when a probe was due; no probe is
retried.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic_ns
from typing import TypeVar

from perfkit.base.errors import ServerError, UsageError
from perfkit.base.process import run
from perfkit.config import Arm, Config, Query, Request, Watch
from perfkit.explain.capture import effects, require_harmless
from perfkit.load.http import HttpSender
from perfkit.load.pool import sql_target
from perfkit.load.samples import DROPPED, OK, Clock
from perfkit.load.schedule import Draw, Message, Row, http_message
from perfkit.load.senders import SqlSender
from perfkit.monitor.model import Probe, Tally
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission
from perfkit.postgres.servers import External, open_external
from perfkit.runs import selection
from perfkit.runs.experiment import workbench
from perfkit.runs.selection import RunSpec, Selection, alone
from perfkit.runs.targets import LOADED, SAFE_METHODS, Targets, admitted

NEARLY_USED_UP = 0.8  # share of a source's rows from which on it draws new ones
SEED = "watch"
Rows = Mapping[str, Sequence[Row]]  # by source
Reach = Callable[[], Database]


class Supply:
    """The parameter rows of a source, in a random order, again from the first once all are used."""

    def __init__(self, rows: Sequence[Row]) -> None:
        # The seed is a new one, so that a restarted watch books other slots.
        self._draw, self._size, self.used = Draw({"": rows}, f"watch/{monotonic_ns()}"), len(rows), 0

    def __call__(self) -> Row:
        """Return the next row."""
        self.used += 1
        return self._draw("")

    @property
    def nearly_used_up(self) -> bool:
        """Whether most rows have been used."""
        return self.used >= NEARLY_USED_UP * self._size


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """What to watch, admitted by the guards and not yet touched: the requests and queries to send."""

    chosen: Selection
    items: Mapping[str, Request | Query]
    targets: Targets

    @property
    def live(self) -> bool:
        """Whether the target runs already; else perfkit starts it."""
        service, database = self.chosen.config.service, self.chosen.config.database
        return not (service and service.command) and bool(service or (database and database.target))

    @property
    def arm(self) -> Arm:
        """The live variant of the system."""
        return self.chosen.arms[0]

    @property
    def name(self) -> str:
        """The name of the target, without secrets."""
        if not self.live:
            return f"{self.arm.name}, started by perfkit"
        services, databases = self.targets.origins.values(), self.targets.addresses.values()
        return " and ".join([*(origin.name for origin in services), *(address.name for address in databases)])

    def text(self, item: Request | Query) -> str:
        """Return the SQL text of a query, or method and path of a request."""
        return self.chosen.text(self.arm.name, item.name) if isinstance(item, Query) else f"{item.method} {item.path}"


@dataclass(frozen=True, slots=True)
class WatchedTarget:
    """A service, a database or both, which run or are being started."""

    plan: ProbePlan
    service: tuple[str, str] | None  # its origin, and the address to connect to ("" for that of the origin)
    reach: Reach | None  # returns the database; raises ServerError while it does not answer, TargetRefused

    def rows(self, database: Database | None = None) -> dict[str, Sequence[Row]]:
        """Return the parameter rows of the sources that query the database or, without it, of the others.

        Raises ServerError, UsageError.
        """
        used = {item.parameters for item in self.plan.items.values()}
        sources = self.plan.chosen.config.parameters
        return {
            name: self.source(name, database)
            for name, source in sources.items()
            if name in used and bool(database) == (isinstance(source, Path) and source.suffix.lower() != ".csv")
        }

    def source(self, name: str, database: Database | None) -> Sequence[Row]:
        """Return the current rows of a source. Raises ServerError, UsageError."""
        return selection.rows(name, self.plan.chosen.config.parameters[name], database, SEED)

    def draw(self, reach: Reach) -> tuple[Database, Rows]:
        """Return the database and its parameter rows, after checking that no query can do harm there.

        Raises ServerError while the database does not answer, TargetRefused, UsageError, PlanError.
        """
        database = reach()
        rows = self.rows(database)
        if isinstance(database.server, External):
            self._require_harmless(database, {**self.rows(), **rows})
        return database, rows

    def _require_harmless(self, database: Database, rows: Rows) -> None:
        settings, where = self.plan.chosen.config.database, database.server.name
        allowed = settings.volatile if settings else ()
        for item in self.plan.items.values():
            if isinstance(item, Query):
                row = rows[item.parameters][0] if item.parameters else None
                caused = effects(database.session, self.plan.text(item), row)
                require_harmless(caused, writes_allowed=False, volatile_allowed=allowed, where=where)


def plan_probes(config: Config, permission: Permission, arm: str = "", scale: str = "") -> ProbePlan:
    """Return the variant to watch, and the items to send: `send`, or by default all queries and reading requests.

    Raises UsageError, TargetRefused, and ServerError if a name has no address.
    """
    service, database = config.service, config.database
    if service and service.command and database and database.way in LOADED:
        raise UsageError("watch: [service] is started by perfkit on a database of yours; expected its url")
    chosen = alone(config, RunSpec(scale=scale, arms=(arm,) if arm else ()))
    known: dict[str, Request | Query] = {**chosen.requests, **chosen.queries}
    reading = [request.name for request in config.request if request.method in SAFE_METHODS]
    items = {name: known[name] for name in config.watch.send or (*reading, *chosen.queries)}
    if not items:
        raise UsageError("watch: nothing to send; expected requests in 'send', or a GET or a query to choose")
    # The guards then ask for permission for no other request.
    requests = tuple(request for request in config.request if request.name in items)
    selection = Selection(chosen.config.model_copy(update={"request": requests}), chosen.options)
    plan = ProbePlan(selection, items, admitted(selection.config, selection.arms, permission))
    offered, most = config.watch.rate * len(items), config.limits.rate
    if plan.live and 0 < most < offered:
        raise UsageError(f"watch: {len(items)} x {config.watch.rate:g}/s; expected at most limits.rate = {most:g}/s")
    return plan


@contextmanager
def open_target(plan: ProbePlan, audit: Audit, say: Callable[[str], None]) -> Iterator[WatchedTarget]:
    """Yield the running target; what perfkit starts ends with the context. A user's target need not answer yet.

    Raises UsageError, and ServerError or ServiceError if perfkit cannot start the target.
    """
    if plan.live:
        yield _running(plan, audit)
        return
    chosen, arm, targets = plan.chosen, plan.arm, plan.targets
    with workbench(chosen, targets, audit, say, shared=True) as stage:
        stage.base(chosen.scale)
        stage.refresh([arm])
        stage.serve([arm])
        database = stage.database(arm)
        assert database
        say("")
        yield WatchedTarget(plan, stage.service_address(arm) if chosen.config.service else None, lambda: database)


def _running(plan: ProbePlan, audit: Audit) -> WatchedTarget:
    """Return the user's service and database; the database is opened at its first use."""
    arm, targets = plan.arm, plan.targets
    address, origin = targets.addresses.get(arm.name), targets.origins.get(arm.name)
    servers: list[External] = []
    lock = threading.Lock()

    def reach() -> Database:
        assert address
        with lock:
            if not servers:
                external = open_external(address, targets.permission, audit)
                external.pooler |= targets.pooler
                servers.append(external)
        return Database(servers[0], address.dbname, arm.settings)

    return WatchedTarget(plan, (origin.name, origin.address) if origin else None, reach if address else None)


MISSED_S = 1.0  # probes that are due for longer are skipped: the machine was suspended
START_S = 10.0  # for the database's first answer; after that the watch begins without it
AGAIN_S = 1.0  # between attempts to reach a database that does not answer
RENEW_S = 2.0  # between checks whether rows are nearly used up
CONNECTIONS = 10  # maximum to the database, however many probes hang: the others are for its users
Observe = Callable[[str, str, float], None]
_Result = TypeVar("_Result")


class Prober:
    """Sends probes from `start` to `close`. Thread-safe.

    `observe` is called with item, outcome and seconds of every probe that ends.
    """

    def __init__(self, target: WatchedTarget, watch: Watch, observe: Observe, note: Callable[[str, str], None]) -> None:
        self._target, self._items, self._watch = target, target.plan.items, watch
        self._observe, self._note, self._tally = observe, note, Tally(self._items)
        self._most = int(watch.timeout_s * watch.rate) + 2  # maximum in flight, of each item
        self._supply = {name: Supply(rows) for name, rows in target.rows().items()}
        self._http: HttpSender | None = None
        self._sql: SqlSender | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop: Callable[[], object] = lambda: None
        self._ready: Future[None] = Future()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="perfkit-watch-probes", daemon=True)

    def start(self) -> None:
        """Start sending. Raises UsageError, TargetRefused if a mistake shows at once."""
        self._thread.start()
        self._ready.result()

    def require_alive(self) -> None:
        """Raise the error that ended the probes, such as TargetRefused for a database that was not confirmed."""
        if self._failed:
            raise self._failed

    def cut(self) -> dict[str, Probe]:
        """Return the probes that ended since the last cut, and the pending ones."""
        return self._tally.cut()

    def close(self) -> None:
        """Stop sending, and abandon the probes in flight."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # the loop has ended meanwhile
                self._stop()
            self._thread.join(2.0)

    def _run(self) -> None:
        # psycopg would log failures that the outcomes already count.
        logging.getLogger("psycopg").addHandler(logging.NullHandler())
        try:
            run(self._serve())
        except BaseException as error:
            self._failed = error
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        clock, stopping = Clock(), asyncio.create_task(stop.wait())
        works: set[asyncio.Task[object]] = {stopping}
        try:
            works |= await self._open()
            self._ready.set_result(None)
            works.add(asyncio.create_task(self._pace(clock)))
            while not stopping.done():
                done, works = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in (*works, *self._tasks):
                task.cancel()
            await asyncio.gather(*works, *self._tasks, return_exceptions=True)
            clock.close()
            for sender in (self._http, self._sql):
                if sender:
                    await sender.close()

    async def _open(self) -> set[asyncio.Task[object]]:
        """Prepare sending and return the tasks that still run, such as reaching the database.

        Raises TargetRefused, UsageError.
        """
        works: set[asyncio.Task[object]] = set()
        if self._target.service:
            base, address = self._target.service
            self._http = HttpSender(base, self._watch.timeout_s, address=address)
            await self._http.open(0)
        if self._target.reach:
            tried = asyncio.Event()
            works.add(reaching := asyncio.create_task(self._until_reached(self._target.reach, tried)))
            waiting = asyncio.create_task(tried.wait())
            await asyncio.wait({reaching, waiting}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if reaching.done():
                reaching.result()
        # Make one message of each item: a mistake in the configuration must show at the start.
        for name in self._items:
            if self._sendable(name):
                self._message(name)
        return works

    async def _until_reached(self, reach: Reach, tried: asyncio.Event) -> None:
        """Draw parameter rows and open the SQL sender as soon as the database answers. Raises PerfkitError."""
        while True:
            try:
                database, rows = await _in_thread(lambda: self._target.draw(reach))
                break
            except ServerError as error:
                self._note("database", f"not reached yet: {error}")
                tried.set()
                await asyncio.sleep(AGAIN_S)
        server, limit = database.server, self._watch.timeout_s
        conninfo, settings = server.conninfo(database.name), database.settings
        spec = sql_target(conninfo, limit, limit, pooler=server.pooler, read_only=True, settings=settings)
        sender = SqlSender(**spec["options"])
        sender.stand_by(CONNECTIONS)
        self._supply |= {name: Supply(drawn) for name, drawn in rows.items()}
        self._sql = sender
        tried.set()
        requests = [item for item in self._items.values() if isinstance(item, Request)]
        written = {item.parameters for item in requests if item.method not in SAFE_METHODS}
        await self._renew(database, [name for name in rows if name in written])

    async def _renew(self, database: Database, sources: Iterable[str]) -> None:
        """Draw new rows before those of a source are used up, for ever: a slot cannot be booked twice."""
        while True:
            await asyncio.sleep(RENEW_S)
            for source in [name for name in sources if self._supply[name].nearly_used_up]:
                try:
                    self._supply[source] = Supply(await _in_thread(partial(self._target.source, source, database)))
                except (ServerError, UsageError) as error:
                    self._supply[source].used = 0
                    self._note(f"rows of {source}", f"the same parameter rows come again: {error}")

    async def _pace(self, clock: Clock) -> None:
        """Send the items in turn, evenly spaced, each at its rate."""
        names = list(self._items)
        apart, begun = int(1e9 / (self._watch.rate * len(names))), monotonic_ns()
        for number in count():
            due, name = begun + number * apart, names[number % len(names)]
            late = monotonic_ns() - due > MISSED_S * 1e9
            message = self._next(name) if not late and self._sendable(name) else None
            await clock.until(due)
            if message is None:
                continue
            if self._tally.in_flight(name) >= self._most:
                self._ended(name, DROPPED, 0.0)
                continue
            task = asyncio.create_task(self._probe(name, number, due, *message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _sendable(self, name: str) -> bool:
        """Return whether an item has its rows and its sender; a query has them once the database was reached."""
        item = self._items[name]
        there = item.parameters is None or item.parameters in self._supply
        return there and (isinstance(item, Request) or self._sql is not None)

    def _next(self, name: str) -> tuple[HttpSender | SqlSender, Message] | None:
        """Return the next message; None if its parameter row does not fit, which is no failure of the target."""
        try:
            return self._message(name)
        except UsageError as error:
            self._note(f"probe {name}", str(error))
            return None

    async def _probe(self, name: str, number: int, due: int, sender: HttpSender | SqlSender, message: Message) -> None:
        """Send one probe and count its answer; a cancelled probe leaves no trace."""
        self._tally.begin(name, number, due)
        try:
            answer = await sender.send(message)
        finally:
            self._tally.give_up(name, number)
        status = answer.detail if answer.outcome == OK else answer.outcome.removeprefix("http_")
        self._ended(name, answer.outcome, (answer.done - due) / 1e9, status if status.isdigit() else "")

    def _ended(self, name: str, outcome: str, seconds: float, status: str = "") -> None:
        self._tally.end(name, outcome, seconds, status)
        self._observe(name, outcome, seconds)

    def _message(self, name: str) -> tuple[HttpSender | SqlSender, Message]:
        """Return the next request or query with its sender. Raises UsageError if it cannot be sent."""
        item = self._items[name]
        row = self._supply[item.parameters]() if item.parameters is not None else None
        sender: HttpSender | SqlSender | None = self._http if isinstance(item, Request) else self._sql
        assert sender
        if isinstance(item, Request):
            message = http_message(item, row or {})
        else:
            message = {"item": name, "sql": self._target.plan.text(item), "params": row}
        try:
            sender.check(message)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from None
        return sender, message


async def _in_thread(work: Callable[[], _Result]) -> _Result:
    """Return the result of a function that may hang, in a daemon thread, which the end does not wait for."""
    future: Future[_Result] = Future()
    # Otherwise a result that comes after a cancellation would raise an error.
    future.set_running_or_notify_cancel()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=carry_out, name="perfkit-watch-draws", daemon=True).start()
    return await asyncio.wrap_future(future)
