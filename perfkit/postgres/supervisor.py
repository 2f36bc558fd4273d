"""The process that owns one embedded server: it creates the cluster, runs it, and removes it after its last user.

It is run by path with `python -IS` and never imported. It uses the standard library only, so that it starts in a few
hundredths of a second. Its order is one JSON argument:
{"folder", "bin", "settings", "user": [uid, gid] | null, "alive": inherited descriptor}.

Every user process holds a shared lock on <folder>/lease, which the kernel drops however the process ends. If the
supervisor gets this lock exclusively, no user is left. It holds `alive` exclusively while it lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_POLL = 0.2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _IPC_RMID = 1, 36, 0
_libc = ctypes.CDLL(None)


class Abandoned(Exception):
    """The last user has left."""


class Supervisor:
    """One cluster from initdb to removal."""

    def __init__(self, folder: Path, bin_dir: Path, settings: dict[str, str], user: list[int] | None) -> None:
        self.folder, self.bin_dir, self.settings, self.user = folder, bin_dir, settings, user
        self.lease = os.open(folder / "lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.data = folder / f"data-{secrets.token_hex(4)}"
        # A socket's path has at most 107 bytes, so it cannot lie in a folder that the user chose.
        self.socket_dir = Path("/tmp", f"perfkit-{secrets.token_hex(6)}")
        self.children: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Run the whole life of a server; return when the server has ended and its files are removed."""
        try:
            self.prepare()
            postgres = self.launch(["postgres", "-D", str(self.data)], signal.SIGQUIT)
            self.wait_until_ready(postgres)
            self.publish(postgres.pid)
            while postgres.poll() is None:
                self.check_users()
                time.sleep(_POLL)
            _say(f"the server ended by itself (status {postgres.returncode})")
        except Abandoned:
            pass
        finally:
            self.clean_up()

    def prepare(self) -> None:
        """Create private folders for data and socket, the cluster, and its settings."""
        # Recorded on disk before it exists, so that a successor finds it after a kill at any point.
        (self.folder / "socket").write_text(str(self.socket_dir))
        for path in (self.socket_dir, self.data):
            path.mkdir(mode=0o700)
            if self.user:
                os.chown(path, *self.user)
        arguments = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self.complete(["initdb", "-D", str(self.data), "--no-instructions", *arguments])
        with (self.data / "postgresql.conf").open("a") as conf:
            for name, value in {**self.settings, "unix_socket_directories": str(self.socket_dir)}.items():
                quoted = value.replace("\\", r"\\").replace("'", "''")  # a backslash would escape the closing quote
                conf.write(f"{name} = '{quoted}'\n")

    def wait_until_ready(self, postgres: subprocess.Popen[bytes]) -> None:
        """Wait until postmaster.pid says `ready`, then create the unprivileged role."""
        while postgres.poll() is None:
            with contextlib.suppress(OSError):
                lines = (self.data / "postmaster.pid").read_text().splitlines()
                if len(lines) >= 8 and lines[7].strip() == "ready":
                    break
            self.check_users()
            time.sleep(0.01)
        else:
            raise SystemExit(1)
        command = ["psql", "-X", "-q", "-h", str(self.socket_dir), "-U", "postgres", "-d", "postgres"]
        self.complete([*command, "-c", "CREATE ROLE perfkit LOGIN"])

    def publish(self, pid: int) -> None:
        """Publish the server's location; from now on others may use it."""
        info = {"pid": pid, "socket_dir": str(self.socket_dir), "data_dir": str(self.data)}
        draft = self.folder / "info.part"
        draft.write_text(json.dumps(info))
        draft.replace(self.folder / "info.json")

    def complete(self, args: list[str]) -> None:
        """Run one of the server's programs to its end. Raises SystemExit if it fails."""
        proc = self.launch(args, signal.SIGKILL)
        while proc.poll() is None:
            self.check_users()
            time.sleep(0.01)
        if proc.returncode:
            raise SystemExit(1)

    def launch(self, args: list[str], death_signal: signal.Signals) -> subprocess.Popen[bytes]:
        """Start one of the server's programs as the server's user; on Linux it dies with this process."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        uid, gid = self.user or (None, None)
        proc = subprocess.Popen(
            [str(self.bin_dir / args[0]), *args[1:]],
            env={**env, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            user=uid,
            group=gid,
            extra_groups=[] if self.user else None,
            umask=0o077,
            preexec_fn=_dying_with(os.getpid(), death_signal),
        )
        self.children.append(proc)
        return proc

    def check_users(self) -> None:
        """Raise Abandoned if no user is left; keep the lease locked, so that no new user enters."""
        try:
            fcntl.flock(self.lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise Abandoned

    def clean_up(self) -> None:
        """Stop all processes and remove everything except the end of the server's log."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        (self.folder / "info.json").unlink(missing_ok=True)
        for proc in self.children:
            _end(proc)
        _end_orphans()
        _free_interlock(self.data / "postmaster.pid")
        _keep_log(self.data / "log" / "server.json", self.folder / "last-log.json")
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.socket_dir, ignore_errors=True)
        (self.folder / "socket").unlink(missing_ok=True)


def _dying_with(parent: int, death_signal: signal.Signals) -> Callable[[], None]:
    """Return the child's action before exec: request a signal at this process's death, or exit if it is dead."""

    def ask() -> None:
        if sys.platform == "linux":
            _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:
                os._exit(1)

    return ask


def _end(proc: subprocess.Popen[bytes]) -> None:
    """Shut a server down immediately: its data is deleted anyway."""
    if proc.poll() is None:
        proc.send_signal(signal.SIGQUIT)
        try:
            proc.wait(3)
        except subprocess.TimeoutExpired:
            proc.kill()
            proc.wait()


def _end_orphans() -> None:
    """Kill orphans: the backends of a killed postmaster (on Linux, where this process is their reaper)."""
    while sys.platform == "linux":
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid():
                    os.kill(int(status.parent.name), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _free_interlock(pid_file: Path) -> None:
    """Free the 56 bytes of System V memory that a killed postmaster leaves; an orderly shutdown leaves no file."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        _libc.shmctl(int(pid_file.read_text().splitlines()[6].split()[1]), _IPC_RMID, None)


def _keep_log(log: Path, kept: Path, size: int = 65536) -> None:
    with contextlib.suppress(OSError), log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - size))
        kept.write_bytes(source.read())


def _say(text: str) -> None:
    sys.stderr.write(f"perfkit: {text}\n")


def main(order: dict[str, Any]) -> None:
    """Detach from the calling process, and supervise the server."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.set_inheritable(order["alive"], False)
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        Supervisor(Path(order["folder"]), Path(order["bin"]), order["settings"], order["user"]).run()
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"FATAL:  {error}")
        sys.exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
