"""Slow statements and current activity as tables, pictures and text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from textwrap import wrap

from perfkit.base import units
from perfkit.base.errors import visible
from perfkit.base.units import NONE, count, counted, percent, seconds
from perfkit.show.html import (
    Cell,
    Column,
    Inline,
    Paragraph,
    R,
    Segment,
    Shares,
    Table,
    View,
    note,
    number,
    stacked,
)
from perfkit.slow.activity import Activity, Branch, Running
from perfkit.slow.statements import SlowQueries, SlowStatement

WIDTH = 100  # columns of text
_SUMMARY = 80  # characters of a folded statement
# Characters of an unfolded statement: a single INSERT can be a hundred megabytes of VALUES.
_LONGEST = 20_000
_CELL = 20  # characters of any other cell in text
_SEGMENTS = 8  # statements with a segment of their own in the picture


def statement_cell(text: str, id: str) -> Cell:
    """Return a statement on one line that unfolds to its full text."""
    return Cell(one_line(text, _SUMMARY), full=shortened(text), id=id, value=text)


@dataclass(frozen=True, repr=False)
class SlowView(View):
    """The slow statements of one source; at most `limit` of them."""

    slow: SlowQueries
    limit: int = 20

    @property
    def shown(self) -> Sequence[Numbered]:
        """Return the statements that are shown with their positions, the largest total time first."""
        return list(enumerate(self.slow.statements[: self.limit], 1))

    def html(self) -> str:
        """Return source, picture, table and notes for a page that has the style sheet."""
        first, *rest = self._heading()
        heading = Paragraph([Inline(first), *(f" · {part}" for part in rest)])
        return stacked(heading, shares(self.slow), self.table(), *map(note, self._notes())).html()

    def text(self, width: int = WIDTH) -> str:
        """Return the most important columns as text, `width` characters wide."""
        notes = [line for note in self._notes() for line in wrap(visible(note), width)]
        columns = [replace(column, numeric=True) for column in self._columns() if column.name in _IN_TEXT]
        lines = fitted([_POSITION, *columns], self.shown, [s.text for _, s in self.shown], width)
        return "\n".join([*wrap(visible(" · ".join(self._heading())), width), "", *lines, *notes])

    def table(self) -> Table:
        """Return one row for each statement, without the columns that are empty for all statements."""
        statement: Column[Numbered] = Column("statement", lambda row: statement_cell(row[1].text, row[1].id))
        return Table.of("Statements by total time", [_POSITION, statement, *self._columns()], self.shown)

    def _columns(self) -> list[Column[Numbered]]:
        """Return the columns in their order, without those that are unknown for all statements."""
        unit, scale = ("s", 1000.0) if any(s.total_ms >= 1000 for _, s in self.shown) else ("ms", 1.0)
        columns: list[Column[Numbered]] = [
            number("calls", lambda row: row[1].calls),
            number("mean, ms", lambda row: row[1].mean_ms, units.server_ms),
            number("p95, ms", lambda row: row[1].p95_ms, units.server_ms),
            number(f"total, {unit}", lambda row: row[1].total_ms, lambda t: units.significant(t / scale), "total_ms"),
            Column("share", lambda row: self._share(row[1])),
            _each("rows a call", lambda s: s.rows, units.significant, "rows_per_call"),
            _each("pages a call", lambda s: s.buffers, units.significant, "pages_per_call"),
            _each("temporary a call", lambda s: s.temp_bytes, units.size, "temporary_bytes_per_call"),
            _each("WAL a call", lambda s: s.wal_bytes, units.size, "wal_bytes_per_call"),
            number("first seen", lambda row: row[1].first, moment),
            number("last seen", lambda row: row[1].last, moment),
        ]
        return [
            column for column in columns if any(column.value and column.value(row) is not None for row in self.shown)
        ]

    def _share(self, statement: SlowStatement) -> Cell:
        part = self.slow.share(statement)
        return Cell(percent(part), share=part, value=part)

    def _heading(self) -> Iterator[str]:
        """Yield the source, the time it covers, and the totals."""
        slow = self.slow
        yield slow.source
        if slow.since and slow.until:
            length = seconds((slow.until - slow.since).total_seconds())
            yield f"{moment(slow.since)} to {moment(slow.until)} ({length})"
        elif when := slow.since or slow.until:
            yield f"{'since' if slow.since else 'until'} {moment(when)}"
        calls = sum(statement.calls for statement in slow.statements)
        yield f"{counted(len(slow.statements), 'statement')}, {counted(calls, 'call')}, {seconds(slow.total_ms / 1000)}"

    def _notes(self) -> Iterator[str]:
        """Yield what the table leaves out, the entries that were not read, and the notes of the source."""
        if rest := self.slow.statements[self.limit :]:
            part = sum(statement.total_ms for statement in rest) / (self.slow.total_ms or 1.0)
            yield f"and {units.count(len(rest))} more, {percent(part)} of the time"
        if unread := [_unread(number, reason) for reason, number in self.slow.unread.items() if number]:
            yield f"{'; '.join(unread)}."
        yield from self.slow.notes


# The reasons of `SlowQueries.unread` are plural: 43 "lines were not recognised as log entries".
_SINGULAR = (
    ("lines were not recognised as log entries", "line was not recognised as a log entry"),
    ("entries were", "entry was"),
    ("durations had no", "duration had no"),
    ("plans were", "plan was"),
    ("statements of other roles were", "statement of another role was"),
    ("texts were", "text was"),
)


def _unread(number: int, reason: str) -> str:
    """Return how many entries were not read, and why, as a clause.

    >>> _unread(1, "entries were cut off"), _unread(43, "entries were cut off")
    ('1 entry was cut off', '43 entries were cut off')
    """
    for plurals, singular in _SINGULAR if number == 1 else ():
        reason = reason.replace(plurals, singular, 1)
    return f"{units.count(number)} {reason}"


def shares(slow: SlowQueries) -> Shares | None:
    """Return the total time as one bar with a segment for each of the first statements; None without statements."""
    parts = [(str(n), slow.share(s), s.text) for n, s in enumerate(slow.statements[:_SEGMENTS], 1)]
    parts = [part for part in parts if part[1] > 0]
    if not parts:
        return None
    if (left := 1.0 - sum(part for _, part, _ in parts)) > 0.0005:
        parts.append(("others", left, "all other statements"))
    segments = [
        Segment(name, part, f"{name}: {percent(part)}", f"{name}: {percent(part)}, {one_line(text, _SUMMARY)}")
        for name, part, text in parts
    ]
    caption = ", ".join(f"{name} {percent(part)}" for name, part, _ in parts)
    return Shares(f"Share of the total time by statement: {caption}", segments)


def fitted(columns: Sequence[Column[R]], rows: Sequence[R], texts: Sequence[str], width: int) -> list[str]:
    """Return the lines of a table in text; its last column, the statement, gets the width that the others leave."""
    if not rows:
        return ["none"]
    table = Table.of("", columns, rows)
    short = [tuple(Cell(one_line(cell.plain(), _CELL)) for cell in row) for row in table.rows]
    used = sum(max(len(name), *(len(row[i].text) for row in short)) + 2 for i, name in enumerate(table.columns))
    complete = zip(short, (Cell(one_line(text, max(20, width - used))) for text in texts), strict=True)
    whole = Table("", (*table.columns, "statement"), tuple((*row, text) for row, text in complete), table.numeric)
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in whole.text().split("\n")[2:]]


def one_line(text: str, most: int) -> str:
    r"""Return the beginning of a statement on one line of at most `most` characters.

    >>> one_line("SELECT *\n  FROM visits", 40), one_line("SELECT * FROM visits", 10)
    ('SELECT * FROM visits', 'SELECT *…')
    """
    line = visible(" ".join(text[: 8 * most].split()))
    return line if len(line) <= most and len(text) <= 8 * most else line[: most - 1].rstrip() + "…"


def shortened(text: str) -> str:
    """Return a statement, or the beginning of one that is very long."""
    rest = len(text) - _LONGEST
    return text if rest <= 0 else f"{text[:_LONGEST]}\n… and {units.count(rest)} more characters"


def moment(when: datetime) -> str:
    """Return a time to the second, in its own time zone, without a line break.

    >>> moment(datetime(2026, 3, 1, 9, 5, 7)).split()
    ['2026-03-01', '09:05:07']
    """
    return units.unbroken(f"{when:%Y-%m-%d %H:%M:%S}{f' {when:%Z}' if when.tzinfo else ''}")


Numbered = tuple[int, SlowStatement]  # a statement with its position
_POSITION: Column[Numbered] = Column("", lambda row: Cell(str(row[0]), value=row[0]), key="position", numeric=False)
_IN_TEXT = frozenset({"calls", "mean, ms", "p95, ms", "total, ms", "total, s", "share"})


def _each(
    name: str, value: Callable[[SlowStatement], int | None], show: Callable[[float], str], key: str
) -> Column[Numbered]:
    """Return a column of means per call."""

    def mean(row: Numbered) -> float | None:
        total, calls = value(row[1]), row[1].calls or 1
        return None if total is None else total / calls

    return number(name, mean, show, key)


_HIDDEN = "hidden from this role"
_LEVELS = 12  # of the tree that are indented


@dataclass(frozen=True, repr=False)
class ActivityView(View):
    """The active sessions, the longest running first, and the tree of blocked ones; at most `limit` lines of each."""

    found: Activity
    limit: int = 50

    @property
    def sentence(self) -> str:
        """Return a summary such as `activity in app, 2026-03-01 09:05:07 UTC: 3 active sessions, 1 blocked`."""
        number = len(self.found.running)
        active = counted(number, "active session") if number else "no active sessions"
        waiting = {branch.running.key for branch in self.found.blocking if branch.running.blocked_by}
        blocked = f", {count(len(waiting))} blocked" if waiting else ", none blocked" if number else ""
        return f"{self.found.source}, {moment(self.found.at)}: {active}{blocked}"

    def html(self) -> str:
        """Return the summary, the tree and the table for a page that has the style sheet."""
        tree = [*_TREE, Column[Branch]("statement", lambda branch: _statement(branch.running))]
        table = [*_SESSION, Column[Running]("statement", _statement)]
        title = "Blocked sessions, below the session that blocks them"
        return stacked(
            Paragraph(Inline(self.sentence)),
            Table.of(title, tree, self.found.blocking[: self.limit]) if self.found.blocking else None,
            Table.of("Active sessions", table, self.found.running[: self.limit]) if self.found.running else None,
            *map(note, self._notes()),
        ).html()

    def text(self, width: int = WIDTH) -> str:
        """Return summary, tree and table as text, `width` characters wide."""
        parts = [wrap(visible(self.sentence), width)]
        if branches := self.found.blocking[: self.limit]:
            texts = [_text(branch.running) for branch in branches]
            parts.append(fitted([*_TREE[:2], *_TREE[3:]], branches, texts, width))  # the table below has the user
        if sessions := self.found.running[: self.limit]:
            parts.append(fitted(_SESSION, sessions, [_text(session) for session in sessions], width))
        if notes := [line for note in self._notes() for line in wrap(visible(note), width)]:
            parts.append(notes)
        return "\n\n".join("\n".join(part) for part in parts)

    def _notes(self) -> Iterator[str]:
        for kind, lines in (("blocked", self.found.blocking), ("active", self.found.running)):
            if len(lines) > self.limit:
                yield f"and {count(len(lines) - self.limit)} more {kind} sessions"
        yield from self.found.notes


def _user(running: Running) -> Cell:
    application = one_line(running.application, 20) if running.user else ""
    return Cell(one_line(running.user or running.kind, 20), application)


def _state(running: Running) -> Cell:
    holds_locks = running.state.startswith("idle in transaction")
    return Cell(running.state or NONE, state="unsure" if holds_locks else "")


def _wait(running: Running) -> Cell:
    return Cell(running.wait or NONE, state="bad" if running.blocked_by else "")


def _indented(branch: Branch) -> Cell:
    """Return a session, indented below the session that blocks it."""
    line = f"└{'─' * min(branch.depth, _LEVELS)} " if branch.depth else ""
    return Cell(f"{line}{one_line(branch.running.key, 28)}", value=branch.running.key)


def _blockers(branch: Branch) -> Cell:
    blockers = ", ".join(branch.running.blocked_by[:5]) + (", …" if len(branch.running.blocked_by) > 5 else "")
    circle = ("deadlock", "bad") if branch.circle else ("", "")
    return Cell(one_line(blockers, 28) or NONE, *circle)


def _lasted(age: float) -> str:
    return seconds(max(0.0, age))


def _text(running: Running) -> str:
    return _HIDDEN if running.hidden else running.text


def _statement(running: Running) -> Cell:
    if running.hidden or not running.text:
        return Cell(_text(running) or NONE, state="quiet")
    return statement_cell(running.text, running.id)


_SESSION: list[Column[Running]] = [
    Column("session", lambda running: one_line(running.key, 28)),
    Column("who", _user),
    Column("state", _state),
    number("for", lambda running: running.seconds, _lasted, "for_s"),
    Column("waits for", _wait),
]
_TREE: list[Column[Branch]] = [
    Column("session", _indented),
    Column("blocked by", _blockers),
    Column("who", lambda branch: _user(branch.running)),
    Column("state", lambda branch: _state(branch.running)),
    number("for", lambda branch: branch.running.seconds, _lasted, "for_s"),
    Column("waits for", lambda branch: _wait(branch.running)),
]
