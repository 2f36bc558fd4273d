"""Indexes built and removed: one by one for a run, or as a set CONCURRENTLY in a database in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import perf_counter, sleep
from typing import Literal, Protocol, TypeVar

import psycopg
from psycopg import sql

from perfkit.base.errors import Interrupted, PerfkitError, ServerError, UsageError, first_line
from perfkit.postgres import catalog, index_sets
from perfkit.postgres.capabilities import require_allowed, require_direct
from perfkit.postgres.catalog import Connection, Row
from perfkit.postgres.commands import send
from perfkit.postgres.databases import connected
from perfkit.postgres.index_sets import LOCK_WAIT, IndexSet, IndexStatus, drop_statement, droppable, read_set
from perfkit.postgres.servers import External, Server

LOCK_TIMEOUT = "5s"  # other sessions queue behind a session that waits for a lock
_POLL_S = 0.25  # between two looks at the progress of a build
_ATTEMPTS, _PAUSE_S = 5, 0.5  # to remove indexes by name


@dataclass(frozen=True, slots=True)
class Built:
    """One index as built: seconds, bytes on disk, and bytes of WAL if only the build could write any."""

    name: str
    table: str
    definition: str
    seconds: float
    bytes: int
    wal_bytes: int | None
    valid: bool


def build(server: Server, database: str, path: Path, *, in_place: str = "") -> list[Built]:
    """Create a file's indexes one by one in a database, then run its ANALYZE statements.

    With `in_place`, a comment for each index, build them CONCURRENTLY and wait for locks only briefly.
    Raises UsageError with the file, the line and the server's message if a statement fails.
    """
    index_set = read_set(path)
    costs: dict[str, tuple[float, int | None]] = {}
    with connected(server, database) as connection:
        unhurried(connection, LOCK_TIMEOUT if in_place else "0")
        existing = {row["oid"] for row in catalog.rows(connection, "indexes")}
        for index in index_set.indexes:
            before, start = _wal(connection), perf_counter()
            text = index.sql(concurrently=index.concurrently or bool(in_place), if_not_exists=index.if_not_exists)
            _run(connection, text, f"{path}:{index.line}")
            spent, written = perf_counter() - start, None if in_place else _wal(connection) - before
            place = {"table": index.table, "name": index.name}
            row = connection.execute(catalog.get("index_place").encode(), place).fetchone()
            costs[str(row["quoted"]) if row else index.qualified] = (spent, written)
        for text in index_set.analyze:
            _run(connection, text, f"{path}: {text}")
        built = {row["quoted"]: row for row in catalog.rows(connection, "indexes") if row["oid"] not in existing}
        if missing := [name.removeprefix("public.") for name in costs if name not in built]:
            raise UsageError(f"{path}: {', '.join(missing)} exists already; expected new indexes only")
        # The comment tells the owner of the database where an index comes from that a killed run left behind.
        for name in costs if in_place else ():
            connection.execute(sql.SQL("COMMENT ON INDEX {} IS {}").format(sql.SQL(name), sql.Literal(in_place)))
    return [
        Built(row["name"], row["table"], row["definition"], seconds, row["bytes"], wal_bytes, row["valid"])
        for row, (seconds, wal_bytes) in ((built[name], cost) for name, cost in costs.items())
    ]


def unhurried(connection: Connection, lock_timeout: str) -> None:
    """Lift this session's limit on the duration of statements; wait at most `lock_timeout` for a lock."""
    catalog.rows(connection, "building")
    wait_for_locks(connection, lock_timeout)


def wait_for_locks(connection: Connection, limit: str) -> None:
    """Set how long this session waits for a lock; "0" sets no limit."""
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(limit)))


def existing_indexes(connection: Connection, names: Sequence[str]) -> list[str]:
    """Return the indexes with these names in any schema, quoted and with their schema."""
    return [row["quoted"] for row in catalog.rows(connection, "indexes") if row["name"] in names]


def _run(connection: Connection, text: str, where: str) -> None:
    try:
        send(connection.cursor(), text)
    except psycopg.Error as error:
        raise UsageError(f"{where}: {first_line(error)}") from None


def _wal(connection: Connection) -> int:
    """Return the bytes of WAL that this server has inserted so far."""
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS bytes").fetchone()
    return int(row["bytes"]) if row else 0


@contextmanager
def watched(server: Server, database: str, pid: int, label: str, say: Callable[[str], None]) -> Iterator[None]:
    """Report the progress of the build in process `pid`, or nothing if no second connection can be opened."""
    ended = Event()

    def watch() -> None:
        with suppress(psycopg.Error, PerfkitError), server.connect(database) as connection:
            while not ended.wait(_POLL_S):
                row = connection.execute(catalog.get("build_progress").encode(), {"pid": pid}).fetchone()
                if row and not ended.is_set():
                    say(f"{label}: {_words(row)}")

    thread = Thread(target=watch, name="perfkit-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2.0)


def _words(row: Row) -> str:
    """Return a row of pg_stat_progress_create_index as a sentence for a person."""
    for unit in ("blocks", "tuples"):
        if total := row[f"{unit}_total"]:
            return f"{row['phase']}, {100 * row[f'{unit}_done'] // total} % of {unit}"
    return f"{row['phase']}, process {row['waits_for']}" if row["waits_for"] else str(row["phase"])


def remove(server: Server, database: str, names: Sequence[str]) -> list[str]:
    """Drop the indexes with these names in any schema, also invalid ones; return the quoted names that are left."""
    left = [sql.Identifier(name).as_string() for name in names]
    for _ in range(_ATTEMPTS):
        try:
            with _session(server, database, LOCK_TIMEOUT) as connection:
                left = existing_indexes(connection, names)
                for name in left:
                    connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.SQL(name)))
                return []
        except psycopg.Error:
            sleep(_PAUSE_S)
    return left


def clear(server: Server, database: str, index: str, *, lock: str = LOCK_TIMEOUT, wait: str = LOCK_TIMEOUT) -> None:
    """Drop an index, quoted and with its schema, if it is invalid and no session is building it.

    Wait `lock` for its table and `wait` for transactions on the table. Raises psycopg.Error if that is too short.
    """
    validity = catalog.get("index_validity").encode()
    with _session(server, database, lock) as connection:
        row = connection.execute(validity, [index]).fetchone()
        if row and row["lockable"]:
            probe(connection, row["table"])  # a running build holds this lock, and may make the index valid
            row = connection.execute(validity, [index]).fetchone()
        if row and not row["valid"]:
            wait_for_locks(connection, wait)
            connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}".encode())


def probe(connection: Connection, table: str) -> None:
    """Acquire the table lock that CONCURRENTLY needs, and release it. Raises psycopg.Error."""
    with connection.transaction(force_rollback=True):
        connection.execute(f"LOCK TABLE ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE".encode())


# Index sets applied to a database in use, and rolled back: CONCURRENTLY; both can be rerun at any point.

Say = Callable[[str], None]
T = TypeVar("T")
_LOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a table's lock, how often to retry, and how long to wait for others' transactions.

    The lock that CONCURRENTLY takes blocks no reader or writer, neither while perfkit waits for it nor afterwards.
    """

    lock: str = "5s"
    attempts: int = 5
    pause_s: float = 2.0
    transactions: str = LOCK_WAIT


class Keeper(Protocol):
    """The process that removes invalid indexes if this process is killed: the janitor."""

    def promise(self, external: External, kind: Literal["leftovers"], names: Sequence[str]) -> None:
        """Announce indexes that are about to be created and must not stay invalid."""

    def released(self, kind: Literal["leftovers"], names: Sequence[str]) -> None:
        """Report that these indexes are valid, or gone."""


@dataclass(frozen=True, slots=True)
class IndexOutcome:
    """One index after `apply`, or after `rollback`, which may leave it alone, and `why`; `seconds` of build or drop."""

    name: str
    how: Literal["built", "rebuilt", "there", "dropped", "absent", "left"]  # rebuilt: it was invalid
    table: str = ""
    why: str = ""
    bytes: int = 0
    seconds: float = 0.0


def apply(
    server: Server,
    database: str,
    index_set: IndexSet,
    say: Say,
    *,
    patience: Patience = Patience(),
    keeper: Keeper | None = None,
) -> list[IndexOutcome]:
    """Build the missing indexes of a set CONCURRENTLY, and run its ANALYZE statements. Can be rerun after any failure.

    Raises UsageError before any change if a statement cannot run; ServerError or Interrupted if a build ends early:
    its invalid index is removed, and the message names the indexes that are built and kept.
    """
    statuses = survey(server, database, index_set, patience)
    return _Work(server, database, index_set.path, say, patience, keeper).apply(statuses, index_set.analyze)


def rollback(
    server: Server, database: str, index_set: IndexSet, say: Say, *, patience: Patience = Patience()
) -> list[IndexOutcome]:
    """Drop the indexes of a set that exist as the set defines them, the last one first; leave others alone.

    Raises ServerError, Interrupted.
    """
    statuses = inspect_set(server, database, index_set, patience)
    return _Work(server, database, index_set.path, say, patience).rollback(statuses)


def survey(server: Server, database: str, index_set: IndexSet, patience: Patience = Patience()) -> list[IndexStatus]:
    """Return the status of each index of a set. Raises UsageError for the first that cannot be built."""
    statuses = inspect_set(server, database, index_set, patience)
    problems = [f":{status.index.line}: {status.problem}" for status in statuses if status.problem]
    # One statement may name the schema of a table, while another leaves it to search_path.
    firsts: dict[str, IndexStatus] = {}
    for status in statuses:
        if status.quoted and (first := firsts.setdefault(status.quoted, status)) is not status:
            where = f"{status.quoted} is in line {first.index.line} already"
            problems.append(f":{status.index.line}: {where}; expected every name once")
    analyze = _answer(
        server, database, patience, lambda connection: list(index_sets.analyze_problems(connection, index_set))
    )
    problems += [f": {problem}" for problem in analyze]
    if problems:
        raise UsageError(f"{index_set.path}{problems[0]}")
    return statuses


def inspect_set(
    server: Server, database: str, index_set: IndexSet, patience: Patience = Patience()
) -> list[IndexStatus]:
    """Return the status of each index, also of those that cannot be built. Raises TargetRefused, ServerError."""
    if isinstance(server, External):
        require_direct(server, "to build indexes")
        require_allowed(server, "ddl", "indexes may not be built in it")
    return _answer(server, database, patience, lambda connection: list(index_sets.examine(connection, index_set)))


@dataclass(slots=True)
class _Work:
    """One call of `apply` or `rollback`, and its progress, which the message names if the call ends early."""

    server: Server
    database: str
    path: Path
    say: Say
    patience: Patience
    keeper: Keeper | None = None
    done: list[str] = field(default_factory=list)
    after: str = ""  # what happened to the index whose build failed

    def apply(self, statuses: Sequence[IndexStatus], analyze: Sequence[str]) -> list[IndexOutcome]:
        """Build the missing indexes in the set's order; then run ANALYZE."""
        applied, todo = [], [status for status in statuses if status.state != "there"]
        for status in statuses:
            if status.state == "there":
                applied.append(IndexOutcome(status.index.name, "there", status.table, bytes=status.bytes))
                continue
            label = f"building {status.index.name} ({todo.index(status) + 1} of {len(todo)})"
            with self._explained(self._where(status), status.table, "built and kept"):
                applied.append(self._build(status, label))
            self.done.append(status.index.name)
        for text in analyze:
            self.say(text)
            with self._explained(f"{self.path}: {text}", "", "built and kept"):
                _retried(partial(self._run, text), self.patience)
        return applied

    def rollback(self, statuses: Sequence[IndexStatus]) -> list[IndexOutcome]:
        """Drop the indexes that exist as the set defines them, the last one first."""
        outcomes = []
        for status in reversed(statuses):
            name = status.index.name
            if not droppable(status):
                outcomes.append(IndexOutcome(name, "left" if status.undroppable else "absent", why=status.undroppable))
                continue
            self.say(f"dropping {name}")
            start = perf_counter()
            with self._explained(self._where(status), status.table, "dropped"):
                _retried(partial(self._drop, status), self.patience)
            self.done.append(name)
            outcomes.append(IndexOutcome(name, "dropped", bytes=status.bytes, seconds=perf_counter() - start))
        return outcomes

    def _build(self, status: IndexStatus, label: str) -> IndexOutcome:
        """Build one index; retry if a lock cannot be acquired."""
        how: Literal["built", "rebuilt"] = "rebuilt" if status.state == "invalid" else "built"
        if status.state == "invalid":
            self.say(f"{label}: removing the invalid index")
            _retried(partial(self._remove_invalid, status, self.patience.transactions), self.patience)
        _retried(partial(self._wait_for_table, status, label), self.patience)
        seconds = _retried(partial(self._create, status, label), self.patience, (psycopg.errors.DeadlockDetected,))
        with _session(self.server, self.database, self.patience.lock) as connection:
            names = {"table": status.table, "name": status.index.name}
            row = connection.execute(catalog.get("index_place").encode(), names).fetchone()
        if not row or not row["valid"]:
            raise ServerError(f"{self._where(status)} is invalid after the build")
        return IndexOutcome(status.index.name, how, status.table, bytes=row["bytes"], seconds=seconds)

    def _wait_for_table(self, status: IndexStatus, label: str) -> None:
        """Wait for the table's lock for a limited time, before creating an index that could be left behind."""
        self.say(f"{label}: waiting for the lock on {status.table}")
        with _session(self.server, self.database, self.patience.lock) as connection:
            if status.lockable:
                probe(connection, status.table)

    def _create(self, status: IndexStatus, label: str) -> float:
        """Create the index; return the build's seconds. Remove the invalid index if the build ends early."""
        with _session(self.server, self.database, self.patience.transactions) as connection:
            if self.keeper and isinstance(self.server, External):
                self.keeper.promise(self.server, "leftovers", [status.quoted])
            start = perf_counter()
            try:
                with watched(self.server, self.database, connection.info.backend_pid, label, self.say):
                    send(connection.cursor(), status.index.sql(concurrently=True))
            except psycopg.errors.DuplicateTable:
                self._release(status)  # another session created an index with this name meanwhile
                raise
            except BaseException as error:
                self.say(f"{label}: failed, removing the invalid index")
                if not self._clean(status) and isinstance(error, psycopg.errors.DeadlockDetected):
                    raise ServerError(f"{self._where(status)}: {first_line(error)}") from None  # no retry
                raise
            self._release(status)
            return perf_counter() - start

    def _clean(self, status: IndexStatus) -> bool:
        """Remove the invalid index that a build left, while the server is alive; return whether that worked."""
        for _ in range(self.patience.attempts):
            with suppress(psycopg.Error, PerfkitError):
                self._remove_invalid(status, self.patience.lock)
                self._release(status)
                self.after = f"; no invalid {status.index.name} is left"
                return True
            if not self.server.alive():
                break
            sleep(self.patience.pause_s)
        self.after = f"; {status.index.name} may be left invalid; the next run removes it, or: {drop_statement(status)}"
        return False

    def _remove_invalid(self, status: IndexStatus, wait: str) -> None:
        clear(self.server, self.database, status.quoted, lock=self.patience.lock, wait=wait)

    def _drop(self, status: IndexStatus) -> None:
        with _session(self.server, self.database, self.patience.lock) as connection:
            if status.lockable:
                probe(connection, status.table)
            wait_for_locks(connection, self.patience.transactions)
            connection.execute(drop_statement(status).encode())

    def _run(self, text: str) -> None:
        with _session(self.server, self.database, self.patience.lock) as connection:
            send(connection.cursor(), text)

    def _release(self, status: IndexStatus) -> None:
        if self.keeper and isinstance(self.server, External):
            self.keeper.released("leftovers", [status.quoted])

    def _where(self, status: IndexStatus) -> str:
        return f"{self.path}:{status.index.line}: {status.index.name}"

    @contextmanager
    def _explained(self, what: str, table: str, done: str) -> Iterator[None]:
        """Turn an error into one line: what stopped, why, and the state that it leaves."""
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(f"{what}: stopped{self._remainder(done)}") from None
        except PerfkitError as error:
            raise type(error)(f"{error}{self._remainder(done)}") from None
        except psycopg.Error as error:
            words = first_line(error) if self.server.alive() else f"the server is gone ({first_line(error)})"
            if isinstance(error, _LOCKED):
                words += self._holders(table)
            raise ServerError(f"{what}: {words}{self._remainder(done)}") from None

    def _remainder(self, done: str) -> str:
        return self.after + (f"; {done}: {', '.join(self.done)}" if self.done else "") + "; run this again to continue"

    def _holders(self, table: str) -> str:
        pids: list[str] = []
        with suppress(psycopg.Error, PerfkitError), self.server.connect(self.database) as connection:
            rows = connection.execute(catalog.get("lock_holders").encode(), {"table": table or None}).fetchall()
            pids = [str(row["pid"]) for row in rows if row["conflicts"]] or [str(row["pid"]) for row in rows]
        return f" (held by process {', '.join(pids)})" if pids else ""


def _answer(server: Server, database: str, patience: Patience, question: Callable[[Connection], T]) -> T:
    """Return the answer to a question about the database. Raises ServerError with the server's message."""

    def ask() -> T:
        with _session(server, database, patience.lock) as connection:
            return question(connection)

    try:
        return _retried(ask, patience)
    except psycopg.Error as error:
        raise ServerError(f"{server.name if server.foreign else database}: {first_line(error)}") from None


@contextmanager
def _session(server: Server, database: str, lock: str) -> Iterator[Connection]:
    with server.connect(database) as connection:
        unhurried(connection, lock)
        yield connection


def _retried(work: Callable[[], T], patience: Patience, again: tuple[type[psycopg.Error], ...] = _LOCKED) -> T:
    """Do the work; retry after a pause if a lock cannot be acquired. Raises the last psycopg.Error."""
    for _ in range(patience.attempts - 1):
        try:
            return work()
        except again:
            sleep(patience.pause_s)
    return work()
