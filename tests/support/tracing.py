"""The modules of the package that take part in a walk: those whose functions run."""

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import perfkit

PACKAGE = Path(perfkit.__file__).parent


@contextmanager
def traced() -> Iterator[set[str]]:
    """Collect the modules outside `base` whose functions run inside the block, in this and in new threads.

    The bodies of modules and classes, which run on import, do not count. Another process is not seen: trace what it
    runs by calling the function in this process.

    >>> with traced() as modules:
    ...     from perfkit.show.html import escape
    ...     text = escape("<")
    >>> modules
    {'show.html'}
    """
    files: dict[str, bool] = {}

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:
            files[code.co_filename] = True

    before, modules = sys.getprofile(), set[str]()
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield modules
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]  # typeshed lacks None
        modules |= {name for file in files if (name := _module(file)) and not name.startswith("base.")}


def _module(file: str) -> str:
    """Return the module of a file, relative to the package; "" for a file of others, and for a template."""
    path = Path(file)
    if path.suffix != ".py" or not path.is_relative_to(PACKAGE):
        return ""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
