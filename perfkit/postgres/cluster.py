"""The folder of one embedded cluster: who runs it, launching that, and removing what a killed one left.

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
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfkit.errors import ServerError

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
