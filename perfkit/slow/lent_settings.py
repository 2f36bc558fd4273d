"""Settings lent to the new sessions of a database or a role, and taken back to exactly what was before.

What was before is kept in a file, written before the change takes effect and removed when it is undone. The process
that made the change holds a lock on the file; a file that nobody holds is left over from one that was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from perfkit.errors import ServerError, UsageError
from perfkit.postgres import catalog
from perfkit.postgres.external import External
from perfkit.postgres.site import Connection, Server
from perfkit.text import first_line, visible

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
