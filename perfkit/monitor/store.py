"""The record of a watch on disk, line by line.

`watch.json` describes the watch; `ticks.jsonl` and `events.jsonl` grow by a line at a time. A crash loses at most the
line that was being written. A full disk loses nothing for an hour: lines wait in memory.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from perfkit.base.bundle import read_record, write_atomically
from perfkit.base.errors import BundleError, UsageError
from perfkit.monitor.model import ABOUT, About, Event, Record, Tick

TICKS, EVENTS = "ticks.jsonl", "events.jsonl"
_WAIT_S = 3600.0  # of intervals that may wait in memory
_EVENTS = 10_000  # events that may wait in memory

_T = TypeVar("_T")


class Lines:
    """A file of lines, open for appending. Raises OSError if it cannot be opened.

    When `write` returns, the line is on the disk or waits in memory; of more than `waiting` lines the oldest are lost.
    """

    def __init__(self, path: Path, waiting: int) -> None:
        self.reason, self.lost = "", 0
        self.queue: deque[bytes] = deque(maxlen=waiting)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._size = 0

    def cut(self) -> None:
        """Remove an incomplete last line, which a crash left. Raises OSError."""
        self._size = whole(self.descriptor)
        os.ftruncate(self.descriptor, self._size)

    def write(self, line: str) -> None:
        """Append the waiting lines and this one, in order."""
        self.lost += len(self.queue) == self.queue.maxlen
        self.queue.append(line.encode("utf-8", "backslashreplace") + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write the waiting lines, as far as possible."""
        try:
            while self.queue:
                self._append(self.queue[0])
                self.queue.popleft()
        except OSError as error:
            self.reason = error.strerror or type(error).__name__
            with suppress(OSError):  # the next attempt truncates again
                os.ftruncate(self.descriptor, self._size)
        else:
            self.reason = ""

    def _append(self, line: bytes) -> None:
        # Remove the part of a line that a failed attempt may have left.
        os.ftruncate(self.descriptor, self._size)
        done = 0
        while done < len(line):
            done += os.pwrite(self.descriptor, line[done:], self._size + done)
        os.fsync(self.descriptor)
        self._size += len(line)


def whole(descriptor: int, block: int = 65536) -> int:
    """Return the size of a file up to the end of its last complete line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


class Store:
    """The folder of a watch, open for writing by one process."""

    def __init__(self, folder: Path, about: About, last: Tick | None, ticks: Lines, events: Lines) -> None:
        self.folder, self.about, self.last = folder, about, last
        self._ticks, self._events = ticks, events

    @classmethod
    def open(cls, folder: Path, about: About) -> Self:
        """Start a watch, or continue the one in the folder, whose `about` then counts.

        Raises UsageError if another watch writes there, if the settings differ, or if the folder holds a run, and
        BundleError if the folder is damaged.
        """
        if (folder / "run.json").exists():
            raise UsageError(f"{folder}: holds a run; expected a folder of its own for a watch")
        opened: list[Lines] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            opened.append(Lines(folder / TICKS, max(1, math.ceil(_WAIT_S / about.every_s))))
            fcntl.flock(opened[0].descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened.append(Lines(folder / EVENTS, _EVENTS))
            stored, last = _begin(folder, about)
            for lines in opened:
                lines.cut()
        except BaseException as error:
            for lines in opened:
                os.close(lines.descriptor)
            if isinstance(error, BlockingIOError):
                raise UsageError(f"{folder}: another watch writes here; expected a folder of its own") from None
            if isinstance(error, OSError):
                words = f"{folder}: cannot be written ({error.strerror}); expected a writable folder"
                raise UsageError(words) from None
            raise
        return cls(folder, stored, last, *opened)

    @property
    def trouble(self) -> str:
        """Why lines wait in memory, and how many; empty if all are written."""
        files = (self._ticks, self._events)
        reason = self._ticks.reason or self._events.reason
        waiting, lost = sum(len(lines.queue) for lines in files), sum(lines.lost for lines in files)
        wait = "1 line waits" if waiting == 1 else f"{waiting} lines wait"
        text = f"{self.folder}: cannot be written ({reason}); {wait} in memory" if reason else ""
        return f"{text}, {lost} given up" if reason and lost else text

    def append(self, tick: Tick) -> None:
        """Write an interval; if that fails, it waits, see `trouble`."""
        self._ticks.write(tick.line())
        self.last = tick

    def add(self, event: Event) -> None:
        """Write an event; if that fails, it waits, see `trouble`."""
        self._events.write(event.line())

    def close(self) -> None:
        """Try to write the waiting lines and release the folder; `trouble` then says what was lost."""
        for lines in (self._ticks, self._events):
            lines.flush()
        for lines in (self._ticks, self._events):  # the first one carries the lock
            os.close(lines.descriptor)


def read(folder: Path) -> Record:
    """Read the folder of a watch, which may still be running. Raises BundleError if the folder is not a watch's.

    Damaged lines, and intervals that go back in time, are skipped and counted.
    """
    about = _about(folder)
    ticks, damaged = list[Tick](), 0
    for tick in _read(folder / TICKS, Tick.of):
        if tick is None or (ticks and tick.t < ticks[-1].t):
            damaged += 1
        else:
            ticks.append(tick)
    events = list(_read(folder / EVENTS, Event.of))
    return Record(about, ticks, [event for event in events if event], damaged + events.count(None))


def held(folder: Path) -> bool:
    """Return whether a process writes to the folder: its lock lasts as long as the process, even one that hangs."""
    try:
        with (folder / TICKS).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def timeline(last: Tick | None, now_wall: float) -> float:
    """Return where the time line continues after a restart, in seconds; 0 for a new watch.

    The wall clock, `now_wall` in seconds since 1970, measures the time without a watch. If it was set back, that time
    counts as one second.
    """
    return last.t + max(now_wall - last.at, 1.0) if last else 0.0


def _begin(folder: Path, about: About) -> tuple[About, Tick | None]:
    """Return the stored description of the watch and its last interval; a new folder stores `about`."""
    path = folder / ABOUT
    if not path.exists():
        write_atomically(path, json.dumps(about.model_dump(mode="json"), indent=1, ensure_ascii=False))
        return about, None
    record = read(folder)
    for key, word in (("kinds", "sends"), ("rate", "rate"), ("every_s", "every_s")):
        old, new = getattr(record.about, key), getattr(about, key)
        if old != new:
            texts = [f"{value:g}" if isinstance(value, float) else ", ".join(value) for value in (old, new)]
            raise UsageError(
                f"{path}: {word} {texts[0]}, not {texts[1]}; expected the same settings, or another folder"
            )
    return record.about, record.ticks[-1] if record.ticks else None


def _about(folder: Path) -> About:
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; expected the folder of a watch")
    return read_record(folder / ABOUT, About, "the folder of a watch", "a watch")


def _read(path: Path, of: Callable[[object], _T]) -> Iterator[_T | None]:
    """Yield the object of each line; None for a damaged or incomplete line."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    yield of(json.loads(line)) if line.endswith(b"\n") else None
                except (ArithmeticError, RecursionError, ValueError):
                    yield None
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); expected the file of a watch") from None
