"""An embedded PostgreSQL server: started on first use, shared by processes, removed after its last user.

The cluster is created at the start and deleted at the end, so its data needs no fsync. Every user process holds a
lease (see `cluster`), which the kernel drops however the process ends. A child created by plain `os.fork` shares its
parent's lease and keeps the server while it lives; spawned processes do not.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from perfkit.base.errors import ServerError, UsageError, visible
from perfkit.base.refusals import require_settable
from perfkit.postgres.catalog import Connection
from perfkit.postgres.commands import Extended

if sys.platform != "win32":  # so that start() can report the unsupported system
    from perfkit.postgres import cluster

#: The server's settings unless the caller overrides them; the report prints them.
SETTINGS: Mapping[str, str] = {
    "shared_buffers": "1GB",
    "max_connections": "200",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1d",
    "autovacuum": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    # In the data folder, so that it is removed with it; containers also have little POSIX shared memory.
    "dynamic_shared_memory_type": "mmap",
    # The lowest level that writes WAL for an index build, so that perfkit can count this WAL.
    "wal_level": "replica",
    "compute_query_id": "on",
    "track_io_timing": "on",
    "track_functions": "all",
    "timezone": "UTC",
}

# Settings by which perfkit reaches the server and its log; a caller cannot change them.
_OWN = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "logging_collector": "on",
    "log_destination": "jsonlog",
    "log_directory": "log",
    "log_filename": "server.log",
    "log_rotation_age": "0",
    "log_rotation_size": "0",
}
# Options with which `postgres -C` checks settings without a cluster; nothing is started.
_NO_CLUSTER = ("config_file=/dev/null", "hba_file=/dev/null", "ident_file=/dev/null", "data_directory=/nonexistent")
_ANSWER_S = 30.0


@dataclass(slots=True, eq=False)
class EmbeddedServer:
    """A running server and this process's lease on it; leaving the context ends the lease."""

    name: ClassVar = "embedded"
    foreign: ClassVar = False
    pooler: ClassVar = False
    permissions: ClassVar = frozenset({"writes", "ddl"})
    port: ClassVar = 5432  # part of the socket's name
    version: int
    pid: int
    socket_dir: Path
    data_dir: Path
    bin_dir: Path
    settings: Mapping[str, str]
    _lease: int | None = field(default=None, repr=False)

    def conninfo(self, dbname: str = "", user: str = "") -> str:
        """Return a connection string for libpq; `perfkit` has the right to log in only, `postgres` is the superuser."""
        return make_conninfo(  # explicit, because PGHOSTADDR in the environment would lead to another server
            host=str(self.socket_dir),
            hostaddr="",
            port=self.port,
            dbname=dbname or "postgres",
            user=user or "perfkit",
            options="",
            target_session_attrs="any",
        )

    def connect(self, dbname: str = "", user: str = "") -> Connection:
        """Open a connection in autocommit mode whose rows are dictionaries. Raises psycopg.Error."""
        return psycopg.connect(
            self.conninfo(dbname, user),
            autocommit=True,
            row_factory=dict_row,
            cursor_factory=Extended,
            application_name="perfkit",
            client_encoding="utf8",
        )

    def alive(self) -> bool:
        """Whether this server still runs; False within half a second of its death."""
        return self.data_dir.exists() and cluster.exists(self.pid)

    def log_tail(self, lines: int = 5) -> str:
        """Return the last `lines` messages of the log, oldest first; also of a server that is gone."""
        kept = self.data_dir.parent / "last-log.json"
        for log in (self.data_dir / "log" / "server.json", kept):
            with contextlib.suppress(OSError):
                return "\n".join(_messages(log.read_text("utf-8", "replace"))[-lines:])
        return ""

    def close(self) -> None:
        """Release this process's lease; the server stops after the last lease. Can be called again."""
        if self._lease is not None:
            # Closed, not unlocked: unlocking would also drop the lease of a forked parent.
            os.close(self._lease)
            self._lease = None
            atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def start(version: int = 18, settings: Mapping[str, str] | None = None, home: Path | None = None) -> EmbeddedServer:
    """Return a server of `version` (16, 18) with `settings` over SETTINGS: a running one, or a new one.

    `home` (default: $PERFKIT_HOME, /var/lib/perfkit for root, perfkit in the user's cache folder) holds its data.
    Raises UsageError for an invalid argument, ServerError if the server cannot start; both with one line.
    """
    if sys.platform == "win32":
        raise ServerError("the embedded server needs Linux or macOS (WSL works)")
    effective = {**SETTINGS, **_settable(settings or {})}
    with _home(home) as base:
        return _start(version, effective, base)


def require_known(version: int, settings: Mapping[str, str], home: Path | None = None) -> None:
    """Check settings with the server's program, without a start. Raises UsageError for an invalid one, ServerError."""
    with _home(home) as base:
        _make_folder(base)
        _require_known(cluster.locate(version, base), _settable(settings))


@contextlib.contextmanager
def _home(home: Path | None) -> Iterator[Path]:
    """Yield the folder of the embedded servers. Raises ServerError if it cannot be used."""
    base = (home or _default_home()).expanduser().absolute()
    try:
        yield base
    except OSError as error:
        reason = error.strerror or error
        raise ServerError(
            f"cannot use {base} for the embedded server: {reason}; set PERFKIT_HOME to a folder that you can write to"
        ) from error


def _start(version: int, settings: Mapping[str, str], home: Path) -> EmbeddedServer:
    user = cluster.server_user()
    if user is not None:
        cluster.require_reachable(home, user)
    _make_folder(home)
    bin_dir = cluster.locate(version, home)
    _require_known(bin_dir, settings)
    order = {
        "bin": str(bin_dir),
        "settings": {**settings, **_OWN},
        "user": None if user is None else [user.pw_uid, user.pw_gid],
    }
    name = hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()[:12]
    folder = home / f"server-{version}-{name}"
    _make_folder(folder)
    lease = cluster.take_lease(folder)
    try:
        info = cluster.obtain(folder, order)
        socket_dir, data_dir = Path(info["socket_dir"]), Path(info["data_dir"])
        server = EmbeddedServer(version, info["pid"], socket_dir, data_dir, bin_dir, settings, _lease=lease)
        atexit.register(server.close)
    except BaseException:
        os.close(lease)
        raise
    return server


def _default_home() -> Path:
    if chosen := os.environ.get("PERFKIT_HOME"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/perfkit")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perfkit"


def _make_folder(path: Path) -> None:
    """Create `path` and its missing parents, for root open to the server's user; keep existing folders unchanged."""
    for folder in reversed([path, *path.parents]):
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755 if os.geteuid() == 0 else 0o700)


def _settable(settings: Mapping[str, str]) -> Mapping[str, str]:
    try:
        return require_settable(settings)
    except ValueError as error:
        raise UsageError(f"expected {error}") from None


def _require_known(bin_dir: Path, settings: Mapping[str, str]) -> None:
    """Raise UsageError with the server's message for the first unknown setting or invalid value."""
    if not _refused(bin_dir, settings):
        return
    for name, value in settings.items():
        if words := _refused(bin_dir, {name: value}):
            raise UsageError(f"setting {name} = {value!r}: {words}")


def _refused(bin_dir: Path, settings: Mapping[str, str]) -> str:
    """Return the server program's error message for these settings; "" if it accepts them."""
    assignments = [*_NO_CLUSTER, *(f"{name}={value}" for name, value in settings.items())]
    command = [
        str(bin_dir / "postgres"),
        "-C",
        "max_connections",
        *(part for assignment in assignments for part in ("-c", assignment)),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_ANSWER_S
    )
    if not done.returncode:
        return ""
    message = re.search(r"(?:FATAL|ERROR): +(.*)", done.stderr.decode("utf-8", "replace"))
    return visible(message[1]) if message else ""  # the start itself reports other problems


def _messages(log: str) -> list[str]:
    """Return the messages of JSON log lines; skip truncated lines."""
    messages = []
    for line in log.splitlines():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
            messages.append(str(json.loads(line)["message"]))
    return messages
