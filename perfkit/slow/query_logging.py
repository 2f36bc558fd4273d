"""Query logging switched on temporarily, and the previous settings restored afterwards.

The previous settings are in a file, which is written before the change takes effect and removed when it is undone.
The process that made the change locks the file; a file without a lock is left over from a process that was killed.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from perfkit.base.errors import PerfkitError, ServerError, TargetRefused, UsageError, first_line, visible
from perfkit.postgres import catalog
from perfkit.postgres.capabilities import require_allowed, some
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import connected
from perfkit.postgres.servers import External, Server

Values = Mapping[str, str | None]  # by setting; None: not set


@dataclass(frozen=True, slots=True)
class Where:
    """The sessions to log: of a role, in a database, or of a role in a database. At least one of both is given."""

    role: str = ""
    database: str = ""

    def __post_init__(self) -> None:
        if not (self.role or self.database):
            raise UsageError("neither role nor database given; expected a role, a database or both")

    def __str__(self) -> str:
        return " in ".join(f"{kind} {name}" for kind, name in asdict(self).items() if name)

    def change(self, setting: str, value: str | None) -> sql.Composed:
        """Return the statement that sets a setting; with None, the one that resets it."""
        kind = "ALTER ROLE {}" + " IN DATABASE {}" * bool(self.database) if self.role else "ALTER DATABASE {}"
        where = sql.SQL(kind).format(*(sql.Identifier(name) for name in (self.role, self.database) if name))
        if value is None:
            return sql.SQL("{} RESET {}").format(where, sql.Identifier(setting))
        return sql.SQL("{} SET {} = {}").format(where, sql.Identifier(setting), sql.Literal(value))

    def script(self, values: Values) -> str:
        """Return the statements in one line."""
        return "; ".join(self.change(name, value).as_string() for name, value in values.items())


@dataclass(frozen=True, slots=True)
class Saved:
    """The content of the file."""

    server: str
    database: int  # oid, because names can change; 0: any
    role: int
    where: str  # role and database as they were called
    pid: int
    since: str
    kept: bool  # whether the change outlives the process
    changed: Mapping[str, str]
    before: Values


@dataclass(frozen=True, slots=True)
class Numbers:
    """The oids of a database and a role, which stay the same after a rename; 0: any."""

    database: int
    role: int

    @classmethod
    def of(cls, connection: Connection, where: Where) -> Numbers:
        """Return the oids of a role and a database. Raises UsageError if one does not exist."""
        oids = connection.execute(catalog.get("slow_where").encode(), asdict(where)).fetchone() or {}
        for kind, name in asdict(where).items():
            if name and oids[kind] is None:
                raise UsageError(f"there is no {kind} {visible(name)}; expected one that is there")
        return cls(oids["database"] or 0, oids["role"] or 0)

    def settings(self, connection: Connection) -> tuple[Where | None, dict[str, str]]:
        """Return the current names, None if one is gone, and the settings of new sessions."""
        row = connection.execute(catalog.get("slow_settings").encode(), asdict(self)).fetchone() or {}
        settings = dict(item.split("=", 1) for item in row["settings"])
        gone = (self.database and row["database"] is None) or (self.role and row["role"] is None)
        return None if gone else Where(row["role"] or "", row["database"] or ""), settings


class Note:
    """A file that is open and locked by this process."""

    def __init__(self, path: Path) -> None:
        """Open and lock the file. Raises BlockingIOError if another process holds it, OSError if it cannot be made."""
        import fcntl  # not on Windows

        while True:
            self.path, self._descriptor = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):  # another process may have removed it in between
                    if os.fstat(self._descriptor).st_ino == path.stat().st_ino:
                        return
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)

    def write(self, saved: Saved) -> None:
        """Write the content and wait until it is on the disk."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(saved)).encode(), 0)
        os.fsync(self._descriptor)

    def close(self, *, remove: bool = False) -> None:
        """Close the file and release its lock."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


@contextmanager
def note(server: Server, numbers: Numbers, where: Where) -> Iterator[Note]:
    """Return the file for these sessions; on an error it is closed, and removed if it is empty.

    Raises UsageError if another process holds it or if it cannot be written.
    """
    path = _file(server, f"{numbers.database}-{numbers.role}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = Note(path)
    except BlockingIOError:
        other = _read(path)
        who = f" by process {other.pid} since {other.since}" if other else ""
        raise UsageError(f"{visible(where)}: switched on{who}; expected it to be switched off there first") from None
    except OSError as error:
        what = f"{path}: cannot be written ({error.strerror}); set PERFKIT_HOME to a folder you can write"
        raise UsageError(f"{what}: it stores the previous settings") from None
    try:
        yield held
    except BaseException:
        held.close(remove=_read(held.path) is None)
        raise


def change_settings(connection: Connection, where: Where, values: Mapping[str, str]) -> dict[str, psycopg.Error]:
    """Change settings in the open transaction; return the errors of the refused ones by name."""
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
    """Restore the settings in the file and remove it; return a sentence for each setting that was changed meanwhile.

    A setting that was changed meanwhile stays. Raises ServerError with the SQL to run if the server refuses; then the
    file stays too.
    """
    saved, messages = _read(held.path), []
    where, settings = Numbers(saved.database, saved.role).settings(connection) if saved else (None, {})
    if saved and where:
        values = {name: saved.before[name] for name, value in saved.changed.items() if settings.get(name) == value}
        messages += [
            f"{where}: {name} was changed to {settings.get(name)!r} meanwhile, so it was not restored"
            for name in saved.changed
            if name not in values and settings.get(name) != saved.before[name]
        ]
        try:
            with connection.transaction():
                for name, value in values.items():
                    connection.execute(where.change(name, value))
        except psycopg.Error as error:
            what = f"{saved.server}: {first_line(error)}; expected its owner to run: {where.script(values)}"
            raise ServerError(visible(what)) from None
    held.close(remove=True)
    return tuple(map(visible, messages))


def saved_changes(server: Server) -> Iterator[tuple[Saved, Note | None]]:
    """Yield the changes on this server that this user's files record; without a note if a running process holds it.

    The caller removes or closes each note.
    """
    pattern = _file(server, "*")
    for path in sorted(pattern.parent.glob(pattern.name)):
        try:
            held = Note(path)
        except BlockingIOError:
            if other := _read(path):
                yield other, None
            continue
        except OSError:
            continue  # the file of another user
        if saved := _read(held.path):
            yield saved, held
        else:
            held.close(remove=True)


def _file(server: Server, sessions: str) -> Path:
    """Return the file, or with "*" the pattern of all files; its name is the same for all addresses of a cluster."""
    if not server.foreign:
        home = Path(str(conninfo_to_dict(server.conninfo())["host"]))
    elif perfkit_home := os.environ.get("PERFKIT_HOME"):
        home = Path(perfkit_home)
    else:  # a state folder, because a cache may be emptied
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "perfkit"
    system = server.system if isinstance(server, External) else ""
    return home / "lent-settings" / f"{hashlib.sha256(system.encode()).hexdigest()[:16]}-{sessions}.json"


def _read(path: Path) -> Saved | None:
    """Return the content; None if the file is incomplete: then no setting was changed either."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return Saved(**content)
    except (OSError, ValueError, TypeError):
        return None


RESTORE = "perfkit slow logging --restore"
NEW_ONLY = "applies to new sessions only; existing sessions, including those of a pool, keep their settings"


@dataclass(frozen=True, slots=True)
class LoggingSpec:
    """What to log: statements of `ms` or longer, or a sample of them; with plans if auto_explain is available."""

    ms: float = 100.0
    rate: float = 1.0  # share of these statements to log, above 0 and at most 1
    plans: bool = True
    analyze: bool = False  # plans with actual rows; slows down every statement, not only slow ones

    def __post_init__(self) -> None:
        if not 0 <= self.ms < 2**31:
            raise UsageError(f"ms = {self.ms}; expected 0 or more, and less than 2147483648")
        if not 0 < self.rate <= 1:
            raise UsageError(f"rate = {self.rate}; expected more than 0 and at most 1")

    @property
    def least(self) -> dict[str, str]:
        """Return the settings without which nothing is logged."""
        if self.rate == 1:
            return {"log_min_duration_statement": f"{self.ms:.0f}"}
        return {"log_min_duration_sample": f"{self.ms:.0f}", "log_statement_sample_rate": f"{self.rate:g}"}

    @property
    def explaining(self) -> dict[str, str]:
        """Return the settings of auto_explain."""
        switch = "on" if self.analyze else "off"
        names = ("log_min_duration", "log_format", "log_analyze", "log_buffers", "log_timing", "sample_rate")
        # log_timing stays off: timing every step is the most expensive part, and buffers tell as much.
        values = (f"{self.ms:.0f}", "json", switch, switch, "off", f"{self.rate:g}")
        return {f"auto_explain.{name}": value for name, value in zip(names, values, strict=True)}


@dataclass(slots=True)
class Logging(AbstractContextManager["Logging"]):
    """Query logging that is on; a context manager that switches it off."""

    where: Where
    changed: Mapping[str, str]  # by setting
    notes: tuple[str, ...]
    _server: Server = field(repr=False)
    _database: str = field(repr=False)
    _held: Note | None = field(repr=False)  # None: it is off, or kept

    def off(self) -> tuple[str, ...]:
        """Restore the previous settings; return a sentence for each setting that was changed meanwhile and stays.

        Further calls do nothing. Raises ServerError if the settings cannot be restored now; `restore` can do it later.
        """
        if self._held is None:
            return ()
        try:  # after an interrupt, logging is still on and can be switched off again
            with connected(self._server, self._database, user="postgres") as connection:
                messages = put_back(connection, self._held)
        except PerfkitError as error:
            self._held.close()
            self._ended()
            raise ServerError(f"{error}; query logging is still on: {RESTORE}") from None
        self._ended()
        return messages

    def at_exit(self) -> None:
        """Restore the settings at the end of the process, and print an error instead of raising it."""
        try:
            self.off()
        except PerfkitError as error:
            sys.stderr.write(f"perfkit: {error}\n")

    def _ended(self) -> None:
        self._held = None
        atexit.unregister(self.at_exit)

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> None:
        self.off()


def logging_on(
    server: Server, database: str, options: LoggingSpec | None = None, where: Where | None = None, *, keep: bool = False
) -> Logging:
    """Switch query logging on for `where`; by default for the database or, if refused, for the user's role in it.

    It ends with `off`, with the process or, after a crash, with the next call of this function or of `restore`; with
    `keep` only with `restore`. Raises TargetRefused if DDL is not allowed or the server refuses (with the SQL for the
    owner), UsageError if it is on already, ServerError.
    """
    options = options or LoggingSpec()
    if isinstance(server, External):
        require_allowed(server, "ddl", "its settings may not be changed")
    restore(server, database, killed_only=True)
    refusals: list[str] = []
    with connected(server, database, user="postgres") as connection:
        facts = catalog.row(connection, "slow_logging")
        values, notes = _values(connection, options, facts)
        for sessions in (where,) if where else (Where(database=database), Where(facts["user"], database)):
            try:
                held, saved, refused = _switched(connection, server, sessions, values, options, keep)
            except _Refused as refusal:
                refusals.append(str(refusal))
                continue
            notes += [*refused, *_others(connection, saved)]
            on = Logging(sessions, saved.changed, tuple(notes), server, database, None if keep else held)
            held.close() if keep else atexit.register(on.at_exit)
            return on
    raise TargetRefused(visible(f"{server.name}: {refusals[0]}"))


def script(
    server: Server, database: str, options: LoggingSpec | None = None, where: Where | None = None
) -> tuple[str, str]:
    """Return the SQL for the owner to switch query logging on, and to restore the current settings. Raises ServerError.

    Changes nothing. Without `where`, the SQL is for the database.
    """
    sessions = where or Where(database=database)
    with connected(server, database, user="postgres") as connection:
        values, _ = _values(connection, options or LoggingSpec(), catalog.row(connection, "slow_logging"))
        settings = Numbers.of(connection, sessions).settings(connection)[1]
    return sessions.script(values), sessions.script({name: settings.get(name) for name in values})


def restore(server: Server, database: str, *, killed_only: bool = False) -> tuple[str, ...]:
    """Switch off the query logging that this user's files record for the server; return what was done, in sentences.

    With `killed_only`, only what a killed process left on. Raises ServerError with SQL for the owner if the server
    refuses.
    """
    messages: list[str] = []
    for saved, held in saved_changes(server):
        if held is None:
            messages.append(f"{saved.where}: on since {saved.since}; process {saved.pid} is running and will end it")
        elif saved.kept and killed_only:
            held.close()
        else:
            try:
                with connected(server, database, user="postgres") as connection:
                    messages += [*put_back(connection, held), f"{saved.where}: restored to before {saved.since}"]
            except BaseException:
                held.close()
                raise
    return tuple(map(visible, messages))


class _Refused(Exception):
    """The server does not let this role log statements; the message has the SQL for its owner."""


def _switched(
    connection: Connection, server: Server, sessions: Where, values: Mapping[str, str], options: LoggingSpec, keep: bool
) -> tuple[Note, Saved, list[str]]:
    """Change the settings that the role may change; the file is written before the change takes effect."""
    numbers = Numbers.of(connection, sessions)
    with note(server, numbers, sessions) as held:
        if already := _read(held.path):
            raise UsageError(f"{visible(sessions)}: already on since {already.since}; expected {RESTORE} first")
        settings = numbers.settings(connection)[1]
        before = {name: settings.get(name) for name in values}
        with connection.transaction():
            refused = change_settings(connection, sessions, values)
            if unmet := [refused[name] for name in options.least if name in refused]:
                script = f"{sessions.script(values)}; and afterwards: {sessions.script(before)}"
                raise _Refused(f"{first_line(unmet[0])}; expected its owner or a superuser to run: {script}")
            settings = numbers.settings(connection)[1]  # as the server keeps them
            changed = {name: settings[name] for name in values if name not in refused}
            since, earlier = datetime.now(UTC).isoformat(timespec="seconds"), {name: before[name] for name in changed}
            numbered = (server.name, numbers.database, numbers.role, str(sessions), os.getpid(), since)
            held.write(saved := Saved(*numbered, keep, changed, earlier))
        return held, saved, [f"not set: {visible(first_line(error))}" for error in refused.values()]


def _values(connection: Connection, options: LoggingSpec, facts: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the settings to change, the indispensable ones first, and notes for the user."""
    values, notes = (
        dict(options.least),
        ["applies to new sessions only; existing sessions, including those of a pool, keep their settings"],
    )
    if facts["query_id"] == "off" or (facts["query_id"] == "auto" and not facts["statements_loaded"]):
        values["compute_query_id"] = "on"
    if facts["parameters"] == "0":
        values["log_parameter_max_length"] = "1024"
    if not options.plans:
        return values, notes
    if not facts["auto_explain_loaded"]:
        if facts["preloaded"] != "":
            other = "session_preload_libraries is set, and without auto_explain"
            return values, [
                *notes,
                f"no plans: {other if facts['preloaded'] else 'this role may not load auto_explain'}",
            ]
        try:
            connection.execute("LOAD 'auto_explain'")
        except psycopg.Error as error:
            return values, [*notes, f"no plans: {visible(first_line(error))}"]
        facts = catalog.row(connection, "slow_logging")
        values["session_preload_libraries"] = "auto_explain"
    if facts["plan_parameters"] == "0":
        values["auto_explain.log_parameter_max_length"] = "1024"
    if options.analyze:
        notes.append("plans with actual rows slow down every statement a little")
    return values | options.explaining, notes


def _others(connection: Connection, saved: Saved) -> list[str]:
    """Return a note on the roles whose own settings override these."""
    if saved.role:
        return []
    parameters = {"database": saved.database, "setting": next(iter(saved.changed))}
    roles = [row["role"] for row in connection.execute(catalog.get("slow_overrides").encode(), parameters)]
    return [visible(f"{parameters['setting']} is overridden for role {some(roles)}")] if roles else []
