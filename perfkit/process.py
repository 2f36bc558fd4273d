"""Start and stop child processes so that none outlives its work.

A child started here has its own session, so a terminal's Ctrl-C reaches only its parent, and on Linux the
kernel kills it when its parent dies, however that dies. macOS has no such signal: there a child of a parent
killed with SIGKILL lives on until it notices (its stdin at end of file, say).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from perfkit.errors import LoadError

# Runs in the child before the program itself. A separate interpreter rather than `preexec_fn`, which forks a
# process full of threads (BLAS, uvloop) and may deadlock in it. Python ignores two signals, and exec would
# hand that down. The parent may have died before its death was asked for.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""

#: The start of a command that runs one of perfkit's modules: -P, or whatever lies in the current folder is imported.
MODULE = (sys.executable, "-P", "-m")

# The kernel's "parent" is the thread that forked, so a child asked for by a short-lived thread is forked by
# this one, which lives as long as the process.
_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="perfkit-spawn")


def spawn(
    args: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    die_with_parent: bool = True,
) -> subprocess.Popen[bytes]:
    """Start `args` in a new session; FileNotFoundError if there is no such program.

    With `die_with_parent` (Linux only; macOS ignores it) the child is killed when this process ends. Any
    thread may call this.
    """
    if shutil.which(args[0], path=None if env is None else env.get("PATH")) is None:
        raise FileNotFoundError(f"no program {args[0]!r}")
    bound = die_with_parent and sys.platform == "linux"
    launcher = [sys.executable, "-IS", "-c", _LAUNCHER, str(os.getpid())] if bound else []

    def popen() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*launcher, *args], env=env, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )

    if threading.current_thread() is threading.main_thread():
        return popen()
    return _forker.submit(popen).result()


def stop(proc: subprocess.Popen[bytes], grace: float = 1.0) -> None:
    """SIGTERM to the child, within `grace` seconds SIGKILL to its whole group; reaps it and never raises."""
    # Once reaped by someone else its id may belong to another.
    if proc.returncode is None:
        _quietly(proc.terminate)
        with contextlib.suppress(subprocess.TimeoutExpired):
            proc.wait(grace)
        # After a clean exit too: what the child started may still be there.
        _quietly(lambda: os.killpg(proc.pid, signal.SIGKILL))
        proc.wait()
    for stream in (proc.stdin, proc.stdout, proc.stderr):
        if stream is not None:
            _quietly(stream.close)


@contextlib.contextmanager
def alone(say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other run of this user measures on this machine: two at once would measure each other."""
    import fcntl

    path = Path(tempfile.gettempdir()) / f"perfkit-measuring-{os.getuid()}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LoadError(f"{path}: cannot be opened ({error.strerror}); expected a file of yours, or none") from None
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                say("waiting for another run on this machine to end")
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def _quietly(action: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        action()
