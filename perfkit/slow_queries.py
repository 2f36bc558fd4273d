"""What is slow: where to look for it, and the table of what was found, through which each statement is reached."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit.display.progress import Say, progress
from perfkit.display.slow import SlowView, one_line
from perfkit.errors import ServerError, UsageError
from perfkit.postgres.databases import connected
from perfkit.query import Session
from perfkit.slow import statements
from perfkit.slow.model import SlowQueries
from perfkit.slow_query import SlowQuery

if TYPE_CHECKING:
    from pandas import DataFrame

_COLUMNS = ("id", "text", "calls", "mean_ms", "p95_ms", "total_ms", "rows", "buffers", "temp_bytes", "wal_bytes",
            "first", "last")  # fmt: skip


@dataclass(frozen=True, repr=False)
class SlowTable:
    """What was found to be slow; it shows itself. `table[1]`, `table["part of the text"]` and an id give a statement.

    Without a session, from a file alone, statements are only shown.
    """

    found: SlowQueries
    session: Session | None = None

    @cached_property
    def queries(self) -> tuple[SlowQuery, ...]:
        """All of them, the largest total time first."""
        return tuple(SlowQuery(n, s, self.found, self.session) for n, s in enumerate(self.found.statements, 1))

    def __len__(self) -> int:
        return len(self.found.statements)

    def __iter__(self) -> Iterator[SlowQuery]:
        return iter(self.queries)

    def __getitem__(self, key: int | str) -> SlowQuery:
        """By position from 1, by id, or by its text or a part of that. Raises UsageError, saying what there is."""
        if isinstance(key, int):
            chosen = [q for q in self.queries if q.position == key]
        else:
            part, texts = _plain(key), {q: _plain(q.statement.text) for q in self.queries}
            exact = [q for q in self.queries if key == q.statement.id or part == texts[q]]
            chosen = exact or [q for q in self.queries if part in texts[q]]
        if len(chosen) != 1:
            raise UsageError(f"{key!r}: {len(chosen) or 'no'} such statements; expected one of {self._listed(chosen)}")
        return chosen[0]

    def frame(self) -> DataFrame:
        """One row for each statement, by its position; times in ms, `share` of the total time from 0 to 1."""
        from pandas import DataFrame, Index

        rows = [{name: getattr(s, name) for name in _COLUMNS} | {"share": self.found.share(s)}
                for s in self.found.statements]  # fmt: skip
        positions = Index(range(1, len(rows) + 1), name="position")
        return DataFrame(rows, index=positions, columns=[*_COLUMNS, "share"])

    def _listed(self, chosen: Sequence[SlowQuery]) -> str:
        many = chosen or self.queries
        shown = [f"{q.position} ({one_line(q.statement.text, 40)})" for q in many[:5]]
        return ", ".join([*shown, f"... {many[-1].position}"] if len(many) > 5 else shown) or "none: nothing was found"

    def _repr_html_(self) -> str:
        return SlowView(self.found)._repr_html_()

    def __repr__(self) -> str:
        return repr(SlowView(self.found))


def look(session: Session, source: str | Path = "", seconds: float = 0.0) -> SlowTable:
    """The slow statements of a session's server; see `Session.slow`."""
    if seconds < 0:
        raise UsageError(f"seconds = {seconds:g}; expected 0 or more")
    known = {"statements": _statements, "log": _log}
    if source and source not in known:
        return in_file(source, session)
    with progress() as say:
        if source:
            return SlowTable(known[str(source)](session, seconds, say), session)
        try:
            return SlowTable(_statements(session, seconds, say), session)
        except ServerError as absent:
            try:
                found = _log(session, seconds, say)
            except ServerError as error:
                raise ServerError(f"{absent}; {error}") from None
            return SlowTable(replace(found, notes=(f"The log, because: {absent}.", *found.notes)), session)


def in_file(source: str | Path, session: Session | None = None) -> SlowTable:
    """The slow statements in a log file. Raises UsageError for what is no file."""
    from perfkit.slow import log

    if not Path(source).is_file():
        raise UsageError(f"source = {str(source)!r}; expected 'statements', 'log', or the name of a log file")
    return SlowTable(log.read(Path(source)), session)


def _statements(session: Session, seconds: float, say: Say) -> SlowQueries:
    with connected(session.place.site, session.place.name, user="postgres") as connection:
        before = statements.snapshot(connection, session.name) if seconds else None
        stopped = _wait(seconds, say)
        found = statements.between(before, statements.snapshot(connection, session.name))
    return replace(found, notes=(*found.notes, *stopped))


def _log(session: Session, seconds: float, say: Say) -> SlowQueries:
    from perfkit.slow import server_log

    place, stopped = session.place, tuple[str, ...]()
    if not seconds:
        found = server_log.read_server_log(place.site, place.name)
    else:
        looks = server_log.follow_server_log(place.site, place.name, every_s=0.0)
        next(looks)  # where it ends now
        stopped = _wait(seconds, say)
        found = next(looks)
    if not found.statements:
        stopped += ("Statements get into the log while session.query_logging(ms=100) is on.",)
    return replace(found, notes=(*found.notes, *stopped))


def _wait(seconds: float, say: Say) -> tuple[str, ...]:
    """Let time pass; an interrupt ends that, and what there is by then is shown with a note."""
    began = time.monotonic()
    try:
        while (left := began + seconds - time.monotonic()) > 0:
            say(f"looking: {left:.0f} s more; an interrupt shows what there is by then")
            time.sleep(min(left, 0.5))
    except KeyboardInterrupt:
        return (f"Interrupted after {time.monotonic() - began:.1f} of {seconds:g} s.",)
    finally:
        say("")
    return ()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
