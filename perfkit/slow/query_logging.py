"""Query logging switched on for a while, and settings put back afterwards.

What was before is kept in a file, written before the change takes effect and removed when it is undone. The process
that made the change holds a lock on the file; a file that nobody holds is left over from one that was killed.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from perfkit.base.errors import PerfkitError, ServerError, TargetRefused, UsageError, first_line, visible
from perfkit.postgres import catalog
from perfkit.postgres.capabilities import require_allowed, some
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import connected
from perfkit.postgres.servers import External, Server

Values = Mapping[str, str | None]  # by setting; None: none


@dataclass(frozen=True, slots=True)
class Where:
    """Whose sessions: a role's, those in a database, or a role's in a database. Empty: any. Never both."""

    role: str = ""
    database: str = ""

    def __post_init__(self) -> None:
        if not (self.role or self.database):
            raise UsageError("settings for every session of the server; expected a role, a database or both")

    def __str__(self) -> str:
        words = [f"{kind} {name}" for kind, name in (("role", self.role), ("database", self.database)) if name]
        return " in ".join(words)

    def change(self, setting: str, value: str | None) -> sql.Composed:
        """The statement that lends a setting; None takes it away."""
        kind = "ALTER ROLE {}" + " IN DATABASE {}" * bool(self.database) if self.role else "ALTER DATABASE {}"
        where = sql.SQL(kind).format(*(sql.Identifier(name) for name in (self.role, self.database) if name))
        if value is None:
            return sql.SQL("{} RESET {}").format(where, sql.Identifier(setting))
        return sql.SQL("{} SET {} = {}").format(where, sql.Identifier(setting), sql.Literal(value))

    def script(self, values: Values) -> str:
        """Statements in one line."""
        return "; ".join(self.change(name, value).as_string() for name, value in values.items())


@dataclass(frozen=True, slots=True)
class Saved:
    """What is in the file."""

    server: str
    database: int  # by number, for names may change; 0: any
    role: int
    where: str  # as it was called
    pid: int
    since: str
    kept: bool  # whether it is meant to outlive the process
    changed: Mapping[str, str]
    before: Values


@dataclass(frozen=True, slots=True)
class Numbers:
    """A database and a role by their numbers, which stay when they are renamed; 0: any."""

    database: int
    role: int

    @classmethod
    def of(cls, connection: Connection, where: Where) -> Numbers:
        """Raises UsageError where there is no such role or database."""
        found = connection.execute(catalog.get("slow_where").encode(), asdict(where)).fetchone() or {}
        for kind, name in asdict(where).items():
            if name and found[kind] is None:
                raise UsageError(f"there is no {kind} {visible(name)}; expected one that is there")
        return cls(found["database"] or 0, found["role"] or 0)

    def settings(self, connection: Connection) -> tuple[Where | None, dict[str, str]]:
        """Their names now, None where they are gone, and what their new sessions bring along."""
        row = connection.execute(catalog.get("slow_settings").encode(), asdict(self)).fetchone() or {}
        settings = dict(item.split("=", 1) for item in row["settings"])
        gone = (self.database and row["database"] is None) or (self.role and row["role"] is None)
        return None if gone else Where(row["role"] or "", row["database"] or ""), settings


class Note:
    """A file that is open and locked by this process; `saved` is what it holds."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError where another holds it, OSError where it cannot be made."""
        import fcntl  # not on Windows

        while True:
            self.path, self._descriptor = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):  # somebody may have removed it in between
                    if os.fstat(self._descriptor).st_ino == path.stat().st_ino:
                        return
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)

    @property
    def saved(self) -> Saved | None:
        """None where nothing was written to its end: then nothing was changed either."""
        return _read(self.path)

    def write(self, saved: Saved) -> None:
        """On the disk when this returns."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(saved)).encode(), 0)
        os.fsync(self._descriptor)

    def remove(self) -> None:
        """It is no longer needed."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave it to whoever comes next."""
        os.close(self._descriptor)


@contextmanager
def note(site: Server, numbers: Numbers, where: Where) -> Iterator[Note]:
    """The file for these sessions; closed, and removed where nothing is in it, when something goes wrong.

    Raises UsageError where another process has it, or where it cannot be written.
    """
    path = _folder(site) / f"{_prefix(site)}{numbers.database}-{numbers.role}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = Note(path)
    except BlockingIOError:
        other = _read(path)
        who = f" by process {other.pid} since {other.since}" if other else ""
        raise UsageError(f"{visible(where)}: switched on{who}; expected it to be switched off there first") from None
    except OSError as error:
        what = f"{path}: cannot be written ({error.strerror}); set PERFKIT_HOME to a folder you can write"
        raise UsageError(f"{what}: what was before is kept there") from None
    try:
        yield held
    except BaseException:
        held.close() if held.saved else held.remove()
        raise


def lend(connection: Connection, where: Where, values: Mapping[str, str]) -> dict[str, psycopg.Error]:
    """Change settings in the transaction that is open; those the server refuses by name, with its words."""
    refused: dict[str, psycopg.Error] = {}
    for name, value in values.items():
        try:
            with connection.transaction():
                connection.execute(where.change(name, value))
        except psycopg.Error as error:
            if connection.broken:
                raise
            refused[name] = error
    return refused


def put_back(connection: Connection, held: Note) -> tuple[str, ...]:
    """Take back what the file says, and remove it; what somebody else changed since stays, and is said.

    Raises ServerError with the SQL for it where the server refuses; then the file stays.
    """
    saved, said = held.saved, []
    where, settings = Numbers(saved.database, saved.role).settings(connection) if saved else (None, {})
    if saved and where:
        ours = {name: value for name, value in saved.changed.items() if settings.get(name) == value}
        values = {name: saved.before[name] for name in ours}
        said += [
            f"{where}: {name} is {settings.get(name)!r} by now, so it was left as it is"
            for name in saved.changed
            if name not in ours and settings.get(name) != saved.before[name]
        ]
        try:
            with connection.transaction():
                for name, value in values.items():
                    connection.execute(where.change(name, value))
        except psycopg.Error as error:
            what = f"{saved.server}: {first_line(error)}; expected its owner to run: {where.script(values)}"
            raise ServerError(visible(what)) from None
    held.remove()
    return tuple(map(visible, said))


def left(site: Server) -> Iterator[tuple[Saved, Note | None]]:
    """What is lent on this server as far as this user's files tell; without a note where a process that runs has it.

    The caller removes or closes each note.
    """
    for path in sorted(_folder(site).glob(f"{_prefix(site)}*.json")):
        try:
            held = Note(path)
        except BlockingIOError:
            if other := _read(path):
                yield other, None
            continue
        except OSError:
            continue  # of another user
        if saved := held.saved:
            yield saved, held
        else:
            held.remove()


def _folder(site: Server) -> Path:
    """State, and not a cache, which anybody may empty; for a server of perfkit's own it goes with the server."""
    if not site.foreign:
        return Path(str(conninfo_to_dict(site.conninfo())["host"])) / "lent-settings"
    if home := os.environ.get("PERFKIT_HOME"):
        return Path(home) / "lent-settings"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "perfkit" / "lent-settings"


def _prefix(site: Server) -> str:
    """By the cluster, by whatever address it is reached."""
    system = site.system if isinstance(site, External) else ""
    return hashlib.sha256(system.encode()).hexdigest()[:16] + "-"


def _read(path: Path) -> Saved | None:
    try:
        said: dict[str, Any] = json.loads(path.read_bytes())
        return Saved(**said)
    except (OSError, ValueError, TypeError):
        return None


# Logging slow statements, switched on for a database or a role, and off again to exactly what was before.

RESTORE = "perfkit slow logging --restore"
NEW_ONLY = "for new sessions: those that are connected now, a pool's too, are logged as before"


@dataclass(frozen=True, slots=True)
class LoggingSpec:
    """What to log: statements that take `ms` or longer, or a part of them; with plans where auto_explain is there."""

    ms: float = 100.0
    rate: float = 1.0  # the part of them that is logged, above 0 and at most 1
    plans: bool = True
    analyze: bool = False  # plans with what really happened: every statement pays for that, slow or not

    def __post_init__(self) -> None:
        if not 0 <= self.ms < 2**31:
            raise UsageError(f"ms = {self.ms}; expected 0 or more, and less than 2147483648")
        if not 0 < self.rate <= 1:
            raise UsageError(f"rate = {self.rate}; expected more than 0 and at most 1")

    @property
    def least(self) -> dict[str, str]:
        """The settings without which there is nothing to be had."""
        if self.rate == 1:
            return {"log_min_duration_statement": self._ms}
        return {"log_min_duration_sample": self._ms, "log_statement_sample_rate": f"{self.rate:g}"}

    @property
    def explaining(self) -> dict[str, str]:
        """The settings of auto_explain."""
        switch = "on" if self.analyze else "off"
        names = ("log_min_duration", "log_format", "log_analyze", "log_buffers", "log_timing", "sample_rate")
        # Without the times of every step, which cost most; the buffers tell as much.
        values = (self._ms, "json", switch, switch, "off", f"{self.rate:g}")
        return {f"auto_explain.{name}": value for name, value in zip(names, values, strict=True)}

    @property
    def _ms(self) -> str:
        return str(round(self.ms))


@dataclass(slots=True)
class Logging:
    """Query logging that is on; a context manager that switches it off."""

    where: Where
    changed: Mapping[str, str]  # by setting
    notes: tuple[str, ...]
    _site: Server = field(repr=False)
    _database: str = field(repr=False)
    _held: Note | None = field(repr=False)  # None: it is off, or kept

    def off(self) -> tuple[str, ...]:
        """Put back what was before; what somebody else changed since stays, and is returned in words.

        May be called again. Raises ServerError where it cannot be put back now; `restore` can later.
        """
        if self._held is None:
            return ()
        try:  # an interrupt leaves it as it is: on, and to be switched off
            with connected(self._site, self._database, user="postgres") as connection:
                said = put_back(connection, self._held)
        except PerfkitError as error:
            self._held.close()
            self._ended()
            raise ServerError(f"{error}; query logging is still on: {RESTORE}") from None
        self._ended()
        return said

    def at_exit(self) -> None:
        """The same when the process ends, where nobody can catch an error."""
        try:
            self.off()
        except PerfkitError as error:
            sys.stderr.write(f"perfkit: {error}\n")

    def _ended(self) -> None:
        self._held = None
        atexit.unregister(self.at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> None:
        self.off()


def logging_on(
    site: Server, database: str, options: LoggingSpec | None = None, where: Where | None = None, *, keep: bool = False
) -> Logging:
    """Switch it on `where`: else for the database, or where the server refuses that, for one's own role in it.

    It ends with `off`, with the process, or after a crash with the next call here or of `restore`; with `keep` only
    with `restore`. Raises TargetRefused where the owner has not allowed DDL, or with the SQL for its owner where the
    server refuses; UsageError where it is on already; ServerError.
    """
    options = options or LoggingSpec()
    if isinstance(site, External):
        require_allowed(site, "ddl", "its settings may not be changed")
    restore(site, database, killed_only=True)
    refusals: list[str] = []
    with connected(site, database, user="postgres") as connection:
        facts = catalog.row(connection, "slow_logging")
        wanted, notes = _wanted(connection, options, facts)
        for place in (where,) if where else (Where(database=database), Where(facts["user"], database)):
            try:
                held, saved, refused = _switched(connection, site, place, wanted, options, keep)
            except _Refused as refusal:
                refusals.append(str(refusal))
                continue
            on = Logging(place, saved.changed, (*notes, *refused, *_others(connection, saved)), site, database, held)
            if keep:
                held.close()
                on._held = None
            else:
                atexit.register(on.at_exit)
            return on
    raise TargetRefused(visible(f"{site.name}: {refusals[0]}"))


def script(
    site: Server, database: str, options: LoggingSpec | None = None, where: Where | None = None
) -> tuple[str, str]:
    """The SQL for its owner to switch it on, and to put back what is there now; nothing is changed. Raises ServerError.

    Without `where` for the database.
    """
    place = where or Where(database=database)
    with connected(site, database, user="postgres") as connection:
        wanted, _ = _wanted(connection, options or LoggingSpec(), catalog.row(connection, "slow_logging"))
        settings = Numbers.of(connection, place).settings(connection)[1]
    return place.script(wanted), place.script({name: settings.get(name) for name in wanted})


def restore(site: Server, database: str, *, killed_only: bool = False) -> tuple[str, ...]:
    """Switch off what is on at this server, as far as this user's files tell; what was done, in words.

    With `killed_only` only what a process left that is no more. Raises ServerError where the server refuses, with SQL
    for its owner.
    """
    said: list[str] = []
    for saved, held in left(site):
        if held is None:
            said.append(f"{saved.where}: on since {saved.since}, by process {saved.pid}, which is there to end it")
        elif saved.kept and killed_only:
            held.close()
        else:
            try:
                with connected(site, database, user="postgres") as connection:
                    said += [*put_back(connection, held), f"{saved.where}: as it was before {saved.since}"]
            except BaseException:
                held.close()
                raise
    return tuple(map(visible, said))


class _Refused(Exception):
    """The server does not let this role log statements; its words, and the SQL for somebody else."""


def _switched(
    connection: Connection, site: Server, place: Where, wanted: Mapping[str, str], options: LoggingSpec, keep: bool
) -> tuple[Note, Saved, list[str]]:
    """Change what may be changed; the file that tells so is there before it takes effect."""
    numbers = Numbers.of(connection, place)
    with note(site, numbers, place) as held:
        if already := held.saved:
            raise UsageError(f"{visible(place)}: on since {already.since}, to be kept; expected {RESTORE} first")
        settings = numbers.settings(connection)[1]
        before = {name: settings.get(name) for name in wanted}
        with connection.transaction():
            refused = lend(connection, place, wanted)
            if unmet := [refused[name] for name in options.least if name in refused]:
                script = f"{place.script(wanted)}; and afterwards: {place.script(before)}"
                raise _Refused(f"{first_line(unmet[0])}; expected its owner or a superuser to run: {script}")
            settings = numbers.settings(connection)[1]  # as the server keeps them
            changed = {name: settings[name] for name in wanted if name not in refused}
            since, earlier = datetime.now(UTC).isoformat(timespec="seconds"), {name: before[name] for name in changed}
            numbered = (site.name, numbers.database, numbers.role, str(place), os.getpid(), since)
            held.write(saved := Saved(*numbered, keep, changed, earlier))
        said = [f"not set: {visible(first_line(error))}" for error in refused.values()]
        return held, saved, said


def _wanted(connection: Connection, options: LoggingSpec, facts: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The settings to change, those without which there is nothing first; and what a reader has to know."""
    wanted, notes = dict(options.least), [NEW_ONLY]
    if facts["query_id"] == "off" or (facts["query_id"] == "auto" and not facts["statements_loaded"]):
        wanted["compute_query_id"] = "on"
    if facts["parameters"] == "0":
        wanted["log_parameter_max_length"] = "1024"
    if not options.plans:
        return wanted, notes
    if not facts["auto_explain_loaded"]:
        if facts["preloaded"] != "":
            why = "this role may not load auto_explain"
            if facts["preloaded"]:
                why = "session_preload_libraries is set, and without auto_explain"
            return wanted, [*notes, f"no plans: {why}"]
        try:
            connection.execute("LOAD 'auto_explain'")
        except psycopg.Error as error:
            return wanted, [*notes, f"no plans: {visible(first_line(error))}"]
        facts = catalog.row(connection, "slow_logging")
        wanted["session_preload_libraries"] = "auto_explain"
    if facts["plan_parameters"] == "0":
        wanted["auto_explain.log_parameter_max_length"] = "1024"
    if options.analyze:
        notes.append("plans with what really happened: every statement is a little slower for that, slow or not")
    return wanted | options.explaining, notes


def _others(connection: Connection, saved: Saved) -> list[str]:
    """Whose own settings go before these."""
    if saved.role:
        return []
    asked = {"database": saved.database, "setting": next(iter(saved.changed))}
    found = [row["role"] for row in connection.execute(catalog.get("slow_overrides").encode(), asked)]
    return [visible(f"{asked['setting']} of its own, which stays: role {some(found)}")] if found else []
