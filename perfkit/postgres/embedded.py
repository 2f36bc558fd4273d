"""An embedded PostgreSQL server: started on first use, shared by processes, gone after its last user.

The cluster is made at the start and deleted at the end, so it holds nothing worth an fsync. Every user
process holds a lease (see `cluster`), which the kernel drops however the process ends. A child made by plain
`os.fork` shares its parent's lease and keeps the server for as long as it lives; spawned ones do not.
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

if sys.platform != "win32":  # so that start() can say what is wrong there
    from perfkit.postgres import cluster

#: What the server runs with unless the caller says otherwise; the report prints them.
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
    # In the data folder, so that it goes with it; containers also have little of the other kind.
    "dynamic_shared_memory_type": "mmap",
    # The least that still writes WAL for an index build, so that it can be counted.
    "wal_level": "replica",
    "compute_query_id": "on",
    "track_io_timing": "on",
    "track_functions": "all",
    "timezone": "UTC",
}

# How perfkit reaches the server and its log; `settings` refuses a caller's value for one of these.
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
# What `postgres -C` needs in place of a cluster; nothing is started.
_NO_CLUSTER = ("config_file=/dev/null", "hba_file=/dev/null", "ident_file=/dev/null", "data_directory=/nonexistent")
_ANSWER_S = 30.0


@dataclass(slots=True, eq=False)
class EmbeddedServer:
    """A running server and this process's lease on it; a context manager that ends the lease."""

    name: ClassVar = "embedded"
    foreign: ClassVar = False
    pooler: ClassVar = False
    permissions: ClassVar = frozenset({"writes", "ddl"})
    port: ClassVar = 5432  # in the socket's name
    version: int
    pid: int
    socket_dir: Path
    data_dir: Path
    bin_dir: Path
    settings: Mapping[str, str]
    _lease: int | None = field(default=None, repr=False)

    def conninfo(self, dbname: str = "", user: str = "") -> str:
        """Connection string for libpq; `perfkit` may log in and nothing else, `postgres` is the superuser."""
        return make_conninfo(  # with what the environment might add: PGHOSTADDR leads a socket's folder elsewhere
            host=str(self.socket_dir),
            hostaddr="",
            port=self.port,
            dbname=dbname or "postgres",
            user=user or "perfkit",
            options="",
            target_session_attrs="any",
        )

    def connect(self, dbname: str = "", user: str = "") -> Connection:
        """A connection in autocommit mode; rows come as dictionaries. Raises psycopg.Error."""
        return psycopg.connect(
            self.conninfo(dbname, user),
            autocommit=True,
            row_factory=dict_row,
            cursor_factory=Extended,
            application_name="perfkit",
            client_encoding="utf8",
        )

    def alive(self) -> bool:
        """Whether this very server still runs (False within half a second of its death)."""
        return self.data_dir.exists() and cluster.exists(self.pid)

    def log_tail(self, lines: int = 5) -> str:
        """The last `lines` messages of the server's log, oldest first; of a dead server, its last words."""
        kept = self.data_dir.parent / "last-log.json"
        for log in (self.data_dir / "log" / "server.json", kept):
            with contextlib.suppress(OSError):
                return "\n".join(_messages(log.read_text("utf-8", "replace"))[-lines:])
        return ""

    def close(self) -> None:
        """End this process's use of the server; it stops when nobody else uses it. May be called again."""
        if self._lease is not None:
            # Closed, not unlocked: an unlock would also drop the lease for a forked parent.
            os.close(self._lease)
            self._lease = None
            atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def start(version: int = 18, settings: Mapping[str, str] | None = None, home: Path | None = None) -> EmbeddedServer:
    """A server of `version` (16, 18) with `settings` over SETTINGS: the one that runs already, or a new one.

    `home` (else $PERFKIT_HOME, else /var/lib/perfkit for root, else perfkit in the user's cache folder) holds
    its data. UsageError for a wrong argument, ServerError if it cannot start; both one line.
    """
    if sys.platform == "win32":
        raise ServerError("the embedded server needs Linux or macOS (WSL works)")
    wanted = {**SETTINGS, **_settable(settings or {})}
    with _home(home) as base:
        return _start(version, wanted, base)


def require_known(version: int, settings: Mapping[str, str], home: Path | None = None) -> None:
    """Ask the server's program whether it takes these settings, without starting it. Raises UsageError, ServerError."""
    with _home(home) as base:
        _make_folder(base)
        _require_known(cluster.locate(version, base), _settable(settings))


@contextlib.contextmanager
def _home(home: Path | None) -> Iterator[Path]:
    """The folder of the embedded servers. Raises ServerError if it cannot be used."""
    base = (home or _default_home()).expanduser().absolute()
    try:
        yield base
    except OSError as error:
        reason = error.strerror or error
        raise ServerError(
            f"cannot use {base} for the embedded server: {reason}; set PERFKIT_HOME to a folder you can write"
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
    """Make `path` and its missing parents, as root open to the server's user; others stay as they are."""
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
    """Raise UsageError with the server's words for the first setting that it does not know or a value that is wrong."""
    if not _refused(bin_dir, settings):
        return
    for name, value in settings.items():
        if words := _refused(bin_dir, {name: value}):
            raise UsageError(f"setting {name} = {value!r}: {words}")


def _refused(bin_dir: Path, settings: Mapping[str, str]) -> str:
    """What the server's program says against these settings; "" if nothing."""
    given = [*_NO_CLUSTER, *(f"{name}={value}" for name, value in settings.items())]
    command = [str(bin_dir / "postgres"), "-C", "max_connections", *(part for own in given for part in ("-c", own))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_ANSWER_S
    )
    if not done.returncode:
        return ""
    said = re.search(r"(?:FATAL|ERROR): +(.*)", done.stderr.decode("utf-8", "replace"))
    return visible(said[1]) if said else ""  # whatever else is wrong, the start will say


def _messages(log: str) -> list[str]:
    """The messages of JSON log lines; a line cut in two counts as none."""
    messages = []
    for line in log.splitlines():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
            messages.append(str(json.loads(line)["message"]))
    return messages
