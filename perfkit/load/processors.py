"""A client, and the server's processes that answer it, on a processor each for as long as a round lasts.

A scheduler leaves a connection where it first came to lie. On its client's own processor it answers a statement of
30 µs in half the time that it takes on another one, which has to be woken. By that chance alone two arms of one plan
may differ by a factor of two for a whole round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial


def apart(pids: Sequence[int]) -> Callable[[], None] | None:
    """Keep this process to the first of its processors and the server's `pids` to the next; returns the way back.

    None, and nothing moves, where there is one processor, where the system has no say in it (macOS), and where a
    process is another user's. What moved of the server ends with its connection.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    mine, *others = sorted(allowed)
    if not others or not pids:
        return None
    try:
        for pid in pids:
            os.sched_setaffinity(pid, others[:1])
        os.sched_setaffinity(0, [mine])
    except OSError:
        return None
    return partial(os.sched_setaffinity, 0, allowed)
