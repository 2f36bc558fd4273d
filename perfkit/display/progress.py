"""One transient line of progress: on the terminal, or in a notebook, where it clears itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]


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
    handle = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def say(line: str) -> None:
        handle.update({"text/plain": line}, raw=True)

    return say
