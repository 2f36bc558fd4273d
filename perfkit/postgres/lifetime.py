"""How a helper process lives: on uvloop where there is one, until told to stop or its parent is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

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
