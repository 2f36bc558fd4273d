"""A file that grows by a line at a time and holds whole lines only; what cannot be written waits in memory."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from pathlib import Path


class Lines:
    """A file of lines open for appending, cut back to its last whole line. Raises OSError where it cannot be opened.

    A line is on the disk when `write` returns, or waits; of more than `waiting` lines the oldest are given up.
    """

    def __init__(self, path: Path, waiting: int) -> None:
        self.path, self.reason, self.lost = path, "", 0
        self._queue: deque[bytes] = deque(maxlen=waiting)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._size = 0

    def cut(self) -> None:
        """Take off what a crash left of a line. Raises OSError."""
        self._size = whole(self.descriptor)
        os.ftruncate(self.descriptor, self._size)

    @property
    def waiting(self) -> int:
        """How many lines wait."""
        return len(self._queue)

    def write(self, line: str) -> None:
        """Append a line and all that wait before it, in order."""
        self.lost += len(self._queue) == self._queue.maxlen
        self._queue.append(line.encode("utf-8", "backslashreplace") + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as it can be."""
        try:
            while self._queue:
                self._append(self._queue[0])
                self._queue.popleft()
        except OSError as error:
            self.reason = error.strerror or type(error).__name__
            with suppress(OSError):  # the next attempt does it too
                os.ftruncate(self.descriptor, self._size)
        else:
            self.reason = ""

    def close(self) -> None:
        """Close the file, and let go of its lock."""
        os.close(self.descriptor)

    def _append(self, line: bytes) -> None:
        os.ftruncate(self.descriptor, self._size)  # a part of a line that an earlier attempt left
        done = 0
        while done < len(line):
            done += os.pwrite(self.descriptor, line[done:], self._size + done)
        os.fsync(self.descriptor)
        self._size += len(line)


def whole(descriptor: int, block: int = 65536) -> int:
    """Bytes of a file up to the end of its last whole line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - block)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
