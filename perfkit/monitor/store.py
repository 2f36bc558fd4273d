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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from perfkit.base.bundle import read_object, write_atomically
from perfkit.base.errors import BundleError, UsageError
from perfkit.config import ReviewConfig, Watch, restored
from perfkit.monitor.model import About, Event, Probe, Record, Tick, What


class Lines:
    """A file of lines, open for appending. Raises OSError if it cannot be opened.

    When `write` returns, the line is on the disk or waits in memory; of more than `waiting` lines the oldest are lost.
    """

    def __init__(self, path: Path, waiting: int) -> None:
        self.path, self.reason, self.lost = path, "", 0
        self._queue: deque[bytes] = deque(maxlen=waiting)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._size = 0

    def cut(self) -> None:
        """Remove an incomplete last line, which a crash left. Raises OSError."""
        self._size = whole(self.descriptor)
        os.ftruncate(self.descriptor, self._size)

    @property
    def waiting(self) -> int:
        """The number of waiting lines."""
        return len(self._queue)

    def write(self, line: str) -> None:
        """Append the waiting lines and this one, in order."""
        self.lost += len(self._queue) == self._queue.maxlen
        self._queue.append(line.encode("utf-8", "backslashreplace") + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write the waiting lines, as far as possible."""
        try:
            while self._queue:
                self._append(self._queue[0])
                self._queue.popleft()
        except OSError as error:
            self.reason = error.strerror or type(error).__name__
            with suppress(OSError):  # the next attempt truncates again
                os.ftruncate(self.descriptor, self._size)
        else:
            self.reason = ""

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self.descriptor)

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


FORMAT = 1
ABOUT, TICKS, EVENTS = "watch.json", "ticks.jsonl", "events.jsonl"
_WAIT_S = 3600.0  # of intervals that may wait in memory
_EVENTS = 10_000  # events that may wait in memory
_LAST = 253_402_214_400.0  # seconds since 1970: the last day of the year 9999
_LARGE = 1e18  # more than any count of bytes; sums of squares stay finite

_T = TypeVar("_T")


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
        except OSError as error:
            _close(opened)
            if isinstance(error, BlockingIOError):
                raise UsageError(f"{folder}: another watch writes here; expected a folder of its own") from None
            raise UsageError(f"{folder}: cannot be written ({error.strerror}); expected a writable folder") from None
        except BaseException:
            _close(opened)
            raise
        return cls(folder, stored, last, *opened)

    @property
    def trouble(self) -> str:
        """Why lines wait in memory, and how many; empty if all are written."""
        reason = self._ticks.reason or self._events.reason
        if not reason:
            return ""
        waiting, lost = self._ticks.waiting + self._events.waiting, self._ticks.lost + self._events.lost
        text = f"{self.folder}: cannot be written ({reason}); {_lines(waiting)} in memory"
        return f"{text}, {lost} given up" if lost else text

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
        _close([self._ticks, self._events])


def read(folder: Path) -> Record:
    """Read the folder of a watch, which may still be running. Raises BundleError if it is none.

    Damaged lines, and intervals that go back in time, are skipped and counted.
    """
    about = _about(folder / ABOUT)
    ticks, events, damaged = list[Tick](), list[Event](), 0
    for tick in _read(folder / TICKS, Tick.of, _valid_tick):
        if tick is None or (ticks and tick.t < ticks[-1].t):
            damaged += 1
        else:
            ticks.append(tick)
    for event in _read(folder / EVENTS, Event.of, _valid_event):
        if event is None:
            damaged += 1
        else:
            events.append(event)
    return Record(about, ticks, events, damaged)


def held(folder: Path) -> bool:
    """Return whether a process writes to the folder: it holds its lock for as long as it lives, even if it hangs."""
    try:
        with (folder / TICKS).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def settings(about: About) -> tuple[Watch, ReviewConfig]:
    """Return the rules and targets that a watch began with. Raises BundleError if perfkit did not write them."""
    stored, where = about.settings, f"{ABOUT}: settings"
    return restored(Watch, stored.get("watch", {}), where), restored(ReviewConfig, stored.get("review", {}), where)


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
        write_atomically(path, json.dumps(asdict(about), indent=1, ensure_ascii=False))
        return about, None
    record = read(folder)
    for key, old, new in (
        ("sends", dict(record.about.kinds), dict(about.kinds)),
        ("rate", record.about.rate, about.rate),
        ("every_s", record.about.every_s, about.every_s),
    ):
        if old != new:
            texts = [", ".join(value) if isinstance(value, dict) else f"{value:g}" for value in (old, new)]
            raise UsageError(f"{path}: {key} {texts[0]}, not {texts[1]}; expected the same settings, or another folder")
    return record.about, record.ticks[-1] if record.ticks else None


def _about(path: Path) -> About:
    if not path.parent.is_dir():
        raise BundleError(f"{path.parent}: no such folder; expected the folder of a watch")
    fields = read_object(path, "the folder of a watch", "a watch", FORMAT)
    try:
        about = About(**fields)
        valid = (
            all(isinstance(text, str) for text in (about.id, about.title, about.target))
            and _numbers((about.began, about.every_s, about.rate))
            and 0 <= about.began < _LAST
            and min(about.every_s, about.rate) > 0
            and set(about.kinds.values()) <= {"request", "query"}
            and isinstance(about.settings, dict)
        )
    except (TypeError, AttributeError):
        valid = False
    if not valid:
        raise BundleError(f"{path}: damaged; expected the description that a watch wrote")
    return about


def _read(path: Path, of: Callable[[Mapping[str, Any]], _T], valid: Callable[[_T], bool]) -> Iterator[_T | None]:
    """Yield the object of each line; None for a damaged or incomplete line."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    value = of(json.loads(line, parse_constant=_refuse)) if line.endswith(b"\n") else None
                    yield value if value is not None and valid(value) else None
                except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
                    yield None
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); expected the file of a watch") from None


def _valid_tick(tick: Tick) -> bool:
    """Return whether all numbers of an interval are numbers, and possible."""
    return (
        isinstance(tick.n, int)
        and _numbers((tick.t, tick.at, tick.seconds))
        and 0 < tick.seconds <= tick.t + 1 < _LAST  # rounded
        and 0 <= tick.at < _LAST
        and (tick.server is None or _numbers(tick.server.values()))
        and _numbers(tick.scans.values())
        and all(_valid_probe(probe) for probe in tick.probes.values())
    )


def _valid_probe(probe: Probe) -> bool:
    numbers = (*probe.outcomes.values(), *probe.statuses.values(), probe.pending, probe.oldest_s, *probe.ms)
    return _numbers(numbers) and min(numbers) >= 0 and sum(probe.statuses.values()) <= probe.sent


def _valid_event(event: Event) -> bool:
    words = (event.id, event.text, event.rule, event.level, event.action)
    figures = (event.t, event.at, event.since, event.value or 0.0, event.limit or 0.0)
    valid = event.what in get_args(What) and all(isinstance(word, str) for word in words) and _numbers(figures)
    return valid and 0 <= event.at < _LAST


def _numbers(values: Iterable[object]) -> bool:
    """Return whether all values are numbers of a possible size."""
    return all((type(value) is float or type(value) is int) and -_LARGE < value < _LARGE for value in values)


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _close(opened: Iterable[Lines]) -> None:
    for lines in opened:
        lines.close()


def _lines(number: int) -> str:
    return "1 line waits" if number == 1 else f"{number} lines wait"
