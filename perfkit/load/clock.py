"""Waiting for an instant of the monotonic clock, more exactly than an event loop's timers, which count in ms.

Sleep until shortly before it, then look at the clock at every turn of the loop, so that answers are still read.
On Linux a timer of the kernel ends the sleep within about 0.1 ms; elsewhere the loop's own does, in good time.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from time import monotonic_ns

EARLY_NS = 150_000  # what a kernel's timer may be late
EARLY_LOOP_NS = 2_000_000
TURN_NS = 20_000  # a turn of the loop that took longer did some work
_MONOTONIC, _ABSOLUTE = 1, 1


class Clock:
    """One sleeper of one event loop. `spun_ns`: time spent looking at the clock, which is no work."""

    def __init__(self) -> None:
        self.spun_ns = 0
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._libc = ctypes.CDLL(None)
        self._fd = _timer(self._libc)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._rang)

    async def until(self, at: int) -> None:
        """Return at the instant `at` (ns of the monotonic clock), or at once where that is over."""
        await self._sleep(at)
        before = monotonic_ns()
        while before < at:
            await asyncio.sleep(0)
            now = monotonic_ns()
            if now - before < TURN_NS:
                self.spun_ns += now - before
            before = now

    async def _sleep(self, at: int) -> None:
        left = at - monotonic_ns()
        if self._fd < 0:
            if left > EARLY_LOOP_NS:
                await asyncio.sleep((left - EARLY_LOOP_NS) / 1e9)
        elif left > EARLY_NS:
            self._wake = self._loop.create_future()
            seconds, nanoseconds = divmod(at - EARLY_NS, 10**9)
            spec = struct.pack("@llll", 0, 0, seconds, nanoseconds)
            self._libc.timerfd_settime(self._fd, _ABSOLUTE, spec, None)
            await self._wake

    def _rang(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew meanwhile
            return
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    def close(self) -> None:
        """Give the timer back."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _timer(libc: ctypes.CDLL) -> int:
    """A file descriptor that can be read when the time has come; -1 where there is none."""
    if sys.platform != "linux":
        return -1
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    return int(libc.timerfd_create(_MONOTONIC, flags))
