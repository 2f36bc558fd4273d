"""Index sets applied to and removed from a database in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Literal, Protocol, TypeVar

import psycopg
from psycopg import sql

from perfkit.base.errors import Interrupted, PerfkitError, ServerError, UsageError, first_line
from perfkit.postgres import catalog
from perfkit.postgres.capabilities import require_allowed, require_direct
from perfkit.postgres.catalog import Connection
from perfkit.postgres.commands import send
from perfkit.postgres.index_builds import (
    LOCK_TIMEOUT,
    Found,
    examine,
    places,
    unhurried,
    unknown,
    wait_for_locks,
    watched,
)
from perfkit.postgres.index_sets import IndexSet
from perfkit.postgres.servers import External, Server

_ATTEMPTS, _PAUSE_S = 5, 0.5


def remove(site: Server, database: str, names: Sequence[str]) -> list[str]:
    """Drop the indexes of these names, in whatever schema, invalid ones too; those that are left, quoted."""
    left = [sql.Identifier(name).as_string() for name in names]
    for _ in range(_ATTEMPTS):
        try:
            with site.connect(database) as connection:
                unhurried(connection, LOCK_TIMEOUT)
                left = places(connection, names)
                for name in left:
                    connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.SQL(name)))
                return []
        except psycopg.Error:
            sleep(_PAUSE_S)
    return left


def clear(site: Server, database: str, index: str, *, lock: str = LOCK_TIMEOUT, wait: str = LOCK_TIMEOUT) -> None:
    """Drop an index, quoted and with its schema, if it is invalid and nobody is building it.

    Waits `lock` for its table and `wait` for transactions on that. Raises psycopg.Error where that is too short.
    """
    asked = """
        SELECT x.indisvalid AS valid, t.relkind IN ('r', 'p') AS lockable,
               quote_ident(n.nspname) || '.' || quote_ident(t.relname) AS "table"
        FROM pg_index x JOIN pg_class t ON t.oid = x.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
        WHERE x.indexrelid = to_regclass(%s::text)
    """
    with site.connect(database) as connection:
        unhurried(connection, lock)
        row = connection.execute(asked, [index]).fetchone()
        if row and row["lockable"]:
            probe(connection, row["table"])  # a build that is under way holds the lock, and may make it valid
            row = connection.execute(asked, [index]).fetchone()
        if row and not row["valid"]:
            wait_for_locks(connection, wait)
            connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}".encode())


def probe(connection: Connection, table: str) -> None:
    """Get the lock on a table that CONCURRENTLY needs, and give it back. Raises psycopg.Error."""
    with connection.transaction(force_rollback=True):
        connection.execute(f"LOCK TABLE ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE".encode())


# Applying an index set to a database in use, and taking it back: CONCURRENTLY, and rerunnable at any point.

Say = Callable[[str], None]
T = TypeVar("T")
_LOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: for a table's lock, how often for that, and for transactions of others to end.

    The lock that CONCURRENTLY takes holds up no reader or writer, neither while it is waited for nor afterwards.
    """

    lock: str = "5s"
    attempts: int = 5
    pause_s: float = 2.0
    transactions: str = "10min"


class Keeper(Protocol):
    """Who removes what is left invalid should this process be killed: the janitor."""

    def promise(self, external: External, kind: Literal["leftovers"], names: Sequence[str]) -> None:
        """These are about to be made, and must not stay invalid."""

    def released(self, kind: Literal["leftovers"], names: Sequence[str]) -> None:
        """These are valid, or gone."""


@dataclass(frozen=True, slots=True)
class Applied:
    """One index of a set: `built`, `rebuilt` in place of an invalid one, or `there` before; seconds of its build."""

    name: str
    table: str
    how: Literal["built", "rebuilt", "there"]
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """One index of a set after a rollback: `dropped` in so many seconds, `absent` before, or `left` alone, and why."""

    name: str
    how: Literal["dropped", "absent", "left"]
    why: str = ""
    bytes: int = 0
    seconds: float = 0.0


def apply(
    site: Server,
    database: str,
    wanted: IndexSet,
    say: Say,
    *,
    patience: Patience = Patience(),
    keeper: Keeper | None = None,
) -> list[Applied]:
    """Build what is missing of a set CONCURRENTLY, and run its ANALYZE statements. Whatever stops it can be run again.

    Raises UsageError before anything is changed where a statement cannot be; ServerError and Interrupted when a
    build ended early: its invalid index is removed, what was built before is kept and named.
    """
    found = survey(site, database, wanted, patience)
    return _Work(site, database, wanted.path, say, patience, keeper).apply(found, wanted.analyze)


def rollback(
    site: Server, database: str, wanted: IndexSet, say: Say, *, patience: Patience = Patience()
) -> list[Dropped]:
    """Drop those indexes of a set that are there with its definition, the last first; others are left alone.

    Raises ServerError, Interrupted.
    """
    found = look(site, database, wanted, patience)
    return _Work(site, database, wanted.path, say, patience).rollback(found)


def survey(site: Server, database: str, wanted: IndexSet, patience: Patience = Patience()) -> list[Found]:
    """How each statement of a set stands; nothing is changed. Raises UsageError for the first that cannot be built."""
    found = look(site, database, wanted, patience)
    problems = [f":{own.index.line}: {own.problem}" for own in found if own.problem]
    # A schema may be written in one statement and left to the search path in another.
    firsts: dict[str, Found] = {}
    for own in found:
        if own.quoted and (first := firsts.setdefault(own.quoted, own)) is not own:
            where = f"{own.quoted} is in line {first.index.line} already"
            problems.append(f":{own.index.line}: {where}; expected every name once")
    problems += [f": {problem}" for problem in _asked(site, database, patience, lambda c: list(unknown(c, wanted)))]
    if problems:
        raise UsageError(f"{wanted.path}{problems[0]}")
    return found


def look(site: Server, database: str, wanted: IndexSet, patience: Patience = Patience()) -> list[Found]:
    """How each statement of a set stands, whatever is wrong with it. Raises TargetRefused, ServerError."""
    if isinstance(site, External):
        require_direct(site, "to build indexes")
        require_allowed(site, "ddl", "indexes may not be built in it")
    return _asked(site, database, patience, lambda connection: list(examine(connection, wanted)))


def script(wanted: IndexSet, found: Sequence[Found] | None = None) -> str:
    """What `apply` would run, for psql; of a database that was looked at only what is still to be done."""
    if found is None:
        lines = [index.sql(concurrently=True, if_not_exists=index.if_not_exists) for index in wanted.indexes]
    else:
        lines = []
        for own in found:
            lines += [_drop(own)] if own.state == "invalid" else []
            lines += [own.index.sql(concurrently=True)] if own.state in ("invalid", "missing") else []
    return _script([*lines, *wanted.analyze])


def rollback_script(wanted: IndexSet, found: Sequence[Found] | None = None) -> str:
    """What `rollback` would run, for psql."""
    if found is None:
        return _script([]) + wanted.rollback()
    return _script([_drop(own) for own in reversed(found) if _droppable(own)])


def _script(lines: Sequence[str]) -> str:
    head = ["SET statement_timeout = 0", f"SET lock_timeout = '{Patience().transactions}'"]
    return "".join(f"{line};\n" for line in (*head, *lines))


def _drop(own: Found) -> str:
    return f"DROP INDEX CONCURRENTLY {own.quoted}"


def _droppable(own: Found) -> bool:
    return own.state in ("there", "invalid") and not own.undroppable


@dataclass(slots=True)
class _Work:
    """One call, and how far it is, for the message should it end early."""

    site: Server
    database: str
    path: Path
    say: Say
    patience: Patience
    keeper: Keeper | None = None
    done: list[str] = field(default_factory=list)
    after: str = ""  # what became of the index whose build failed

    def apply(self, found: Sequence[Found], analyze: Sequence[str]) -> list[Applied]:
        """Build what is missing, in the set's order; then ANALYZE."""
        applied, todo = [], [own for own in found if own.state != "there"]
        for own in found:
            if own.state == "there":
                applied.append(Applied(own.index.name, own.table, "there", 0.0, own.bytes))
                continue
            label = f"building {own.index.name} ({todo.index(own) + 1} of {len(todo)})"
            with self._told(self._where(own), own.table, "built and kept"):
                applied.append(self._built(own, label))
            self.done.append(own.index.name)
        for text in analyze:
            self.say(text)
            with self._told(f"{self.path}: {text}", "", "built and kept"):
                _tried(partial(self._run, text), self.patience)
        return applied

    def rollback(self, found: Sequence[Found]) -> list[Dropped]:
        """Drop what is there as the set has it, the last first."""
        gone = []
        for own in reversed(found):
            name = own.index.name
            if not _droppable(own):
                gone.append(Dropped(name, "left" if own.undroppable else "absent", own.undroppable))
                continue
            self.say(f"dropping {name}")
            start = perf_counter()
            with self._told(self._where(own), own.table, "dropped"):
                _tried(partial(self._dropped, own), self.patience)
            self.done.append(name)
            gone.append(Dropped(name, "dropped", bytes=own.bytes, seconds=perf_counter() - start))
        return gone

    def _built(self, own: Found, label: str) -> Applied:
        """Build one, with another try where a lock is not to be had."""
        how: Literal["built", "rebuilt"] = "rebuilt" if own.state == "invalid" else "built"
        if own.state == "invalid":
            self.say(f"{label}: removing the invalid one")
            _tried(partial(self._cleared, own, self.patience.transactions), self.patience)
        _tried(partial(self._probed, own, label), self.patience)
        seconds = _tried(partial(self._created, own, label), self.patience, (psycopg.errors.DeadlockDetected,))
        with _session(self.site, self.database, self.patience.lock) as connection:
            given = {"table": own.table, "name": own.index.name}
            place = connection.execute(catalog.get("index_place").encode(), given).fetchone()
        if not place or not place["valid"]:
            raise ServerError(f"{self._where(own)} is not valid after it was built")
        return Applied(own.index.name, own.table, how, seconds, place["bytes"])

    def _probed(self, own: Found, label: str) -> None:
        """Wait for the table's lock only so long, before anything is made that could be left behind."""
        self.say(f"{label}: waiting for the lock on {own.table}")
        with _session(self.site, self.database, self.patience.lock) as connection:
            if own.lockable:
                probe(connection, own.table)

    def _created(self, own: Found, label: str) -> float:
        """The seconds that it took. Whatever ends it early, no invalid index is left if that can be helped."""
        with _session(self.site, self.database, self.patience.transactions) as connection:
            self._promise(own)
            start = perf_counter()
            try:
                with watched(self.site, self.database, connection.info.backend_pid, label, self.say):
                    send(connection.cursor(), own.index.sql(concurrently=True))
            except psycopg.errors.DuplicateTable:
                self._release(own)  # somebody else's, made meanwhile
                raise
            except BaseException as error:
                self.say(f"{label}: failed, removing what is left of it")
                if not self._clean(own) and isinstance(error, psycopg.errors.DeadlockDetected):
                    raise ServerError(f"{self._where(own)}: {first_line(error)}") from None  # no second try
                raise
            self._release(own)
            return perf_counter() - start

    def _clean(self, own: Found) -> bool:
        """Remove what a build left invalid, as long as the server is there; whether that worked."""
        for _ in range(self.patience.attempts):
            with suppress(psycopg.Error, PerfkitError):
                self._cleared(own, self.patience.lock)
                self._release(own)
                self.after = f"; no invalid {own.index.name} is left"
                return True
            if not self.site.alive():
                break
            sleep(self.patience.pause_s)
        self.after = f"; {own.index.name} may be left and invalid, which the next run removes, or: {_drop(own)}"
        return False

    def _cleared(self, own: Found, wait: str) -> None:
        clear(self.site, self.database, own.quoted, lock=self.patience.lock, wait=wait)

    def _dropped(self, own: Found) -> None:
        with _session(self.site, self.database, self.patience.lock) as connection:
            if own.lockable:
                probe(connection, own.table)
            wait_for_locks(connection, self.patience.transactions)
            connection.execute(_drop(own).encode())

    def _run(self, text: str) -> None:
        with _session(self.site, self.database, self.patience.lock) as connection:
            send(connection.cursor(), text)

    def _promise(self, own: Found) -> None:
        if self.keeper and isinstance(self.site, External):
            self.keeper.promise(self.site, "leftovers", [own.quoted])

    def _release(self, own: Found) -> None:
        if self.keeper and isinstance(self.site, External):
            self.keeper.released("leftovers", [own.quoted])

    def _where(self, own: Found) -> str:
        return f"{self.path}:{own.index.line}: {own.index.name}"

    @contextmanager
    def _told(self, what: str, table: str, done: str) -> Iterator[None]:
        """Say in one line what stopped it, and how things are."""
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(f"{what}: stopped{self._standing(done)}") from None
        except PerfkitError as error:
            raise type(error)(f"{error}{self._standing(done)}") from None
        except psycopg.Error as error:
            words = first_line(error) if self.site.alive() else f"the server is gone ({first_line(error)})"
            if isinstance(error, _LOCKED):
                words += self._holders(table)
            raise ServerError(f"{what}: {words}{self._standing(done)}") from None

    def _standing(self, done: str) -> str:
        return self.after + (f"; {done}: {', '.join(self.done)}" if self.done else "") + "; run it again to go on"

    def _holders(self, table: str) -> str:
        with suppress(psycopg.Error, PerfkitError), self.site.connect(self.database) as connection:
            rows = connection.execute(catalog.get("lock_holders").encode(), {"table": table or None}).fetchall()
            pids = [str(row["pid"]) for row in rows if row["conflicts"]] or [str(row["pid"]) for row in rows]
            return f" (held by process {', '.join(pids)})" if pids else ""
        return ""


def _asked(site: Server, database: str, patience: Patience, question: Callable[[Connection], T]) -> T:
    """The answer. Raises ServerError with the server's words."""

    def ask() -> T:
        with _session(site, database, patience.lock) as connection:
            return question(connection)

    try:
        return _tried(ask, patience)
    except psycopg.Error as error:
        raise ServerError(f"{site.name if site.foreign else database}: {first_line(error)}") from None


@contextmanager
def _session(site: Server, database: str, lock: str) -> Iterator[Connection]:
    with site.connect(database) as connection:
        unhurried(connection, lock)
        yield connection


def _tried(work: Callable[[], T], patience: Patience, again: tuple[type[psycopg.Error], ...] = _LOCKED) -> T:
    """Do it, again after a pause where a lock is not to be had. Raises the last psycopg.Error."""
    for _ in range(patience.attempts - 1):
        try:
            return work()
        except again:
            sleep(patience.pause_s)
    return work()
