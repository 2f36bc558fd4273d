"""Where a load worker's time goes: a batch run in this process under Python's profiler."""

from __future__ import annotations

import cProfile
import pstats
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from time import monotonic_ns
from typing import Any, cast

from perfkit.base.process import run
from perfkit.load.pool import LEAD_NS
from perfkit.load.schedule import Message, Target
from perfkit.load.senders import SqlSender
from perfkit.load.worker import Worker

REST = "event loop, kernel and waiting"


def shares(target: Target, queues: Sequence[Sequence[Message]]) -> dict[str, float]:
    """Shares of a batch's time by what it was spent in, the largest first; the target is one without bounds.

    Python's functions are told apart by the package that they belong to; the rest is the event loop's own code,
    system calls of its own and waiting. The profiler makes every Python call about twice as dear, so that shares of
    Python code are upper bounds.
    """
    profiler, wall = cProfile.Profile(), 0.0

    async def batch() -> None:
        nonlocal wall
        worker, users = Worker(), dict(enumerate(queues))
        await worker.handle({"do": "open", "target": target, "users": len(users)})
        if isinstance(sender := worker._sender, SqlSender):
            for connection in filter(None, sender._free):
                connection._pg = cast(Any, _Libpq(connection._pg))
        await worker.handle({"do": "arm", "queues": users, "samples": sum(map(len, queues))})
        profiler.enable()
        began = monotonic_ns()
        await worker.handle({"do": "go", "at": began + LEAD_NS, "keep_body": False})
        wall = (monotonic_ns() - began - LEAD_NS) / 1e9
        profiler.disable()
        await worker.handle({"do": "close"})

    run(batch())
    return grouped(pstats.Stats(profiler).stats, wall)  # type: ignore[attr-defined]


class _Libpq:
    """A connection of libpq whose calls the profiler sees: they are compiled in a way that hides them from it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._connection, name)
        if not callable(method):
            return method

        def libpq(*args: Any) -> Any:
            return method(*args)

        setattr(self, name, libpq)
        return libpq


def grouped(stats: Mapping[tuple[str, int, str], Sequence[Any]], wall_s: float) -> dict[str, float]:
    """Own times of a profile as shares of the whole, by owner."""
    found: dict[str, float] = defaultdict(float)
    for (file, _, name), (_, _, own, *_) in stats.items():
        found[_owner(file, name)] += own
    found[REST] += max(0.0, wall_s - sum(found.values()))
    total = sum(found.values())
    return {owner: found[owner] / total for owner in sorted(found, key=found.__getitem__, reverse=True)}


def _owner(file: str, name: str) -> str:
    """The package of a function."""
    if name == "libpq":
        return "libpq and its system calls"
    if file == "~":
        return REST if "uvloop" in name else "Python's built-in functions"
    if found := re.search(r"site-packages/([a-z_0-9]+)", file):
        return REST if found[1] == "uvloop" else found[1]
    if found := re.search(r"/perfkit/(\w+/\w+)\.py$", file):
        return f"perfkit/{found[1]}"
    return "Python's library"


def sentence(found: Mapping[str, float], least: float = 0.02) -> str:
    """The shares in words, small ones left out."""
    return ", ".join(f"{owner} {share:.0%}" for owner, share in found.items() if share >= least)
