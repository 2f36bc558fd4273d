"""The log that pgbench writes of a round, read as samples.

A line (PostgreSQL's manual, pgbench, "Per-Transaction Logging"; 16 and 18 write the same) gives when a transaction
ended and how long it took: with a rate from the instant for which it was scheduled, else from its begin. With a rate
it adds how long after that instant it began. A transaction that failed for good or was skipped has only its end.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from perfkit.bundle import COLUMNS
from perfkit.load.limits import OK
from perfkit.load.samples import Rest

ABORTED = "client_aborted"  # an outcome: an error after which pgbench's client sends nothing more
SKIPPED = "skipped"  # an outcome: it could not begin within the time limit for requests, and was never sent
_OUTCOMES = {"serialization": "sqlstate_40001", "deadlock": "sqlstate_40P01"}


@dataclass(frozen=True, slots=True)
class Aborted:
    """A client that ended early; its script by number, the server's words, ns of the epoch."""

    client: int
    script: int
    words: str
    at: int


@dataclass(frozen=True, slots=True)
class Written:
    """What pgbench wrote, a file for each of its threads, and how it is to be understood."""

    paths: Sequence[Path]
    items: Sequence[str]  # what each script is called
    apart: Collection[int]  # scripts by number of which every other transaction is a lookup
    paced: bool
    retried: bool
    warm: int  # a client's first requests, which do not count
    seconds: float  # after which no more count


@dataclass(frozen=True, slots=True)
class _Line:
    """A transaction; stamps in ns of the epoch."""

    client: int
    script: int
    outcome: str
    scheduled: int
    started: int
    done: int
    attempts: int


@dataclass(slots=True)
class Samples:
    """The times of so many requests, evenly from all files, column by column; of those beyond, histograms."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    rest: dict[str, Rest] = field(default_factory=dict)
    lags: array[int] = field(default_factory=lambda: array("q"))  # of requests kept, beyond a wait for their client
    last: int = 0  # when the last was done, in ns from the release

    def keep(self, item: str, line: _Line, release: int, *, counted: bool, detail: str = "") -> None:
        """One more whose times are kept."""
        due, began, done = (at - release for at in (line.scheduled, line.started, line.done))
        row = (item, line.client, 0, counted, due, began, began, done, line.outcome, detail, line.attempts)
        for name, value in zip(COLUMNS, row, strict=True):
            self.columns[name].append(value)
        self.last = max(self.last, done)

    def count(self, item: str, line: _Line, release: int) -> None:
        """One more beyond those."""
        due, done = line.scheduled - release, line.done - release
        self.rest.setdefault(item, Rest()).add(due, done, line.outcome)
        self.last = max(self.last, done)


def read(written: Written, aborted: Sequence[Aborted], most: int) -> Samples:
    """Up to about `most` samples of a log, and of the clients that ended early.

    The release is the instant at which the first request was due.
    """
    due = (line.scheduled for path in written.paths for line in _lines(written, path))
    release = min(chain(due, (client.at for client in aborted)), default=0)
    found = Samples()
    for path in written.paths:
        _read(written, path, release, found, max(1, most // len(written.paths)))
    for own in aborted:
        line = _Line(own.client, own.script, ABORTED, own.at, own.at, own.at, 1)
        found.keep(written.items[own.script], line, release, counted=True, detail=own.words)
    return found


def _read(written: Written, path: Path, release: int, found: Samples, room: int) -> None:
    """One file, whose clients are in no other."""
    over = release + int(written.seconds * 1e9)
    free: dict[int, int] = {}  # when a client had nothing to do
    sent: Counter[int] = Counter()
    for line in _requests(written, path, free):
        sent[line.client] += 1
        item, counted = written.items[line.script], sent[line.client] > written.warm and line.scheduled < over
        if room:
            room -= 1
            found.keep(item, line, release, counted=counted)
            if line.outcome == OK:
                found.lags.append(line.started - max(line.scheduled, free.get(line.client, 0)))
        elif counted:
            found.count(item, line, release)


def _requests(written: Written, path: Path, free: dict[int, int]) -> Iterator[_Line]:
    """The lines that are no lookups. A client has a row when it looked one up, until its query succeeded."""
    has_row: set[tuple[int, int]] = set()
    for line in _lines(written, path):
        own = (line.client, line.script)
        if line.script not in written.apart or own in has_row:
            yield line
            if line.outcome == OK:
                has_row.discard(own)
        elif line.outcome == OK:
            has_row.add(own)
        free[line.client] = line.done


def _lines(written: Written, path: Path) -> Iterator[_Line]:
    with path.open() as file:
        for text in file:
            client, _, took, script, seconds, micros, *more = text.split()
            done = (int(seconds) * 1_000_000 + int(micros)) * 1000
            known = took.isdigit()
            scheduled = done - int(took) * 1000 if known else done
            started = scheduled + int(more[0]) * 1000 if known and written.paced else scheduled
            attempts = 0 if took == SKIPPED else int(more[-1]) + 1 if written.retried else 1
            outcome = OK if known else _OUTCOMES.get(took, took)
            yield _Line(int(client), int(script), outcome, scheduled, started, done, attempts)
