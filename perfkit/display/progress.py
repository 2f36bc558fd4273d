"""One transient line of progress: on the terminal, or in a notebook, where it clears itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from time import monotonic
from typing import Any

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
