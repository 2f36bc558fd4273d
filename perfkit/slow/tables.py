"""Slow statements and current activity as tables, pictures and text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from textwrap import wrap
from typing import Any

from perfkit.base import units
from perfkit.base.errors import visible
from perfkit.base.units import NONE, count
from perfkit.explain.findings.model import counted, duration, ms, share
from perfkit.show.html import Cell, Table, View, code, escape
from perfkit.slow.statements import Activity, Branch, Running, SlowQueries, SlowStatement

WIDTH = 100  # columns of text
_SUMMARY = 80  # characters of a folded statement
# Characters of an unfolded statement: a single INSERT can be a hundred megabytes of VALUES.
_LONGEST = 20_000
_CELL = 20  # characters of any other cell in text
_SEGMENTS = 8  # statements with a segment of their own in the picture
_ACROSS, _HIGH = 720, 22  # width and height of the picture


@dataclass(frozen=True, slots=True)
class Text(Cell):
    """A statement on one line that unfolds to its full text."""

    id: str = ""

    def html(self) -> str:
        """Return the line with the full text folded below."""
        line, whole = one_line(self.text, _SUMMARY), shortened(self.text)
        label = f"<small>id {escape(self.id)}</small>" if self.id else ""
        return f"<details><summary><code>{escape(line)}</code></summary>{code(whole, name='SQL')}{label}</details>"


@dataclass(frozen=True, slots=True)
class TimeShare(Cell):
    """A share of the total time, with a bar."""

    part: float = 0.0

    def html(self) -> str:
        """Return the percentage on its bar."""
        return f'<span class="bar" style="--p:{min(1.0, max(0.0, self.part)):.3g}">{escape(self.text)}</span>'


@dataclass(frozen=True, repr=False)
class SlowView(View):
    """The slow statements of one source; at most `limit` of them."""

    found: SlowQueries
    limit: int = 20

    @property
    def shown(self) -> Sequence[SlowStatement]:
        """Return the statements that are shown, the largest total time first."""
        return self.found.statements[: self.limit]

    def html(self) -> str:
        """Return source, picture, table and notes for a page that has the style sheet."""
        first, *rest = self._heading()
        heading = f"<p><strong>{escape(first)}</strong>{''.join(f' · {escape(part)}' for part in rest)}</p>"
        notes = "".join(f'<p class="note">{escape(line)}</p>' for line in self._notes())
        return f"{heading}{picture(self.found)}{self.table().to_html()}{notes}"

    def text(self, width: int = WIDTH) -> str:
        """Return the most important columns as text, `width` characters wide."""
        notes = [line for note in self._notes() for line in wrap(visible(note), width)]
        return "\n".join([*wrap(visible(" · ".join(self._heading())), width), "", *self._lines(width), *notes])

    def table(self) -> Table:
        """Return one row for each statement, without the columns that are empty for all statements."""
        columns = [column for column in self._columns() if any(column.known(s) for s in self.shown)]
        rows = tuple(
            (Cell(str(position)), Text(statement.text, id=statement.id), *(c.cell(statement) for c in columns))
            for position, statement in enumerate(self.shown, 1)
        )
        names = [column.name for column in columns]
        return Table("Statements by total time", ("", "statement", *names), rows, frozenset(names) - {"share"})

    def _lines(self, width: int) -> list[str]:
        """Return the table in text, with the statement in the width that the figures leave."""
        columns = [c for c in self._columns() if c.name in _IN_TEXT and any(c.known(s) for s in self.shown)]
        names = ("", *(column.name for column in columns))
        rows = [(Cell(str(n)), *(column.cell(s) for column in columns)) for n, s in enumerate(self.shown, 1)]
        return fitted(names, rows, [statement.text for statement in self.shown], frozenset(names), width)

    def _columns(self) -> Iterator[_Column]:
        """Yield all possible columns in their order."""
        unit, scale = ("s", 1000.0) if any(s.total_ms >= 1000 for s in self.shown) else ("ms", 1.0)
        yield _Column("calls", lambda s: Cell(units.count(s.calls)))
        yield _Column("mean, ms", lambda s: Cell(ms(s.mean_ms)))
        yield _Column("p95, ms", lambda s: _cell(s.p95_ms, ms), lambda s: s.p95_ms is not None)
        yield _Column(f"total, {unit}", lambda s: Cell(units.significant(s.total_ms / scale)))
        yield _Column("share", lambda s: TimeShare(share(self.found.share(s)), part=self.found.share(s)))
        yield _each("rows a call", lambda s: s.rows, units.significant)
        yield _each("pages a call", lambda s: s.buffers, units.significant)
        yield _each("temporary a call", lambda s: s.temp_bytes, units.size)
        yield _each("WAL a call", lambda s: s.wal_bytes, units.size)
        yield _Column("first seen", lambda s: _cell(s.first, moment), lambda s: s.first is not None)
        yield _Column("last seen", lambda s: _cell(s.last, moment), lambda s: s.last is not None)

    def _heading(self) -> Iterator[str]:
        """Yield the source, the time it covers, and the totals."""
        found = self.found
        yield found.source
        if found.since and found.until:
            length = duration((found.until - found.since).total_seconds() * 1000)
            yield f"{moment(found.since)} to {moment(found.until)} ({length})"
        elif when := found.since or found.until:
            yield f"{'since' if found.since else 'until'} {moment(when)}"
        calls = sum(statement.calls for statement in found.statements)
        yield f"{counted(len(found.statements), 'statement')}, {counted(calls, 'call')}, {duration(found.total_ms)}"

    def _notes(self) -> Iterator[str]:
        """Yield what the table leaves out, the entries that were not read, and the notes of the source."""
        if rest := self.found.statements[self.limit :]:
            part = sum(statement.total_ms for statement in rest) / (self.found.total_ms or 1.0)
            yield f"and {units.count(len(rest))} more, {share(part)} of the time"
        if unread := [_unread(number, reason) for reason, number in self.found.unread.items() if number]:
            yield f"{'; '.join(unread)}."
        yield from self.found.notes


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


def picture(found: SlowQueries) -> str:
    """Return the total time as one bar with a segment for each of the first statements; "" without statements."""
    parts = [(str(n), found.share(s), s.text) for n, s in enumerate(found.statements[:_SEGMENTS], 1)]
    parts = [part for part in parts if part[1] > 0]
    if not parts:
        return ""
    if (left := 1.0 - sum(part for _, part, _ in parts)) > 0.0005:
        parts.append(("others", left, "all other statements"))
    shares = ", ".join(f"{name} {share(part)}" for name, part, _ in parts)
    return (
        f'<svg class="chart shares" viewBox="0 0 {_ACROSS} {_HIGH + 18}" role="img" '
        f'aria-label="{escape(f"Share of the total time by statement: {shares}")}">{"".join(_segments(parts))}</svg>'
    )


def _segments(parts: Sequence[tuple[str, float, str]]) -> Iterator[str]:
    left = 0.0
    for index, (name, part, text) in enumerate(parts):
        wide = part * _ACROSS
        faint = 0.15 if name == "others" else 1.0 - 0.11 * index
        yield (
            f'<rect x="{left:.1f}" width="{max(0.5, wide - 1.5):.1f}" height="{_HIGH}" fill-opacity="{faint:.2f}">'
            f"<title>{escape(f'{name}: {share(part)}, {one_line(text, _SUMMARY)}')}</title></rect>"
        )
        label = f"{name}: {share(part)}"
        if wide >= 7 * len(label) or wide >= 7 * len(label := name) + 3:
            yield f'<text x="{left:.1f}" y="{_HIGH + 14}" font-size="12" fill="currentColor">{escape(label)}</text>'
        left += wide


def fitted(
    names: Sequence[str], rows: Sequence[tuple[Cell, ...]], texts: Sequence[str], numeric: frozenset[str], width: int
) -> list[str]:
    """Return the lines of a table in text; its last column, the statement, gets the width that the others leave."""
    if not rows:
        return ["none"]
    short = [tuple(Cell(one_line(cell.plain(), _CELL)) for cell in row) for row in rows]
    used = sum(max(len(name), *(len(row[i].text) for row in short)) + 2 for i, name in enumerate(names))
    complete = zip(short, (Cell(one_line(text, max(20, width - used))) for text in texts), strict=True)
    table = Table("", (*names, "statement"), tuple((*row, text) for row, text in complete), numeric)
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in table.to_text().split("\n")[2:]]


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


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    cell: Callable[[SlowStatement], Cell]
    known: Callable[[SlowStatement], bool] = lambda statement: True


_IN_TEXT = frozenset({"calls", "mean, ms", "p95, ms", "total, ms", "total, s", "share"})


def _each(name: str, value: Callable[[SlowStatement], int | None], shown: Callable[[float], str]) -> _Column:
    """Return a column of means per call."""

    def cell(statement: SlowStatement) -> Cell:
        total = value(statement)
        return Cell(units.NONE if total is None else shown(total / (statement.calls or 1)))

    return _Column(name, cell, lambda statement: value(statement) is not None)


def _cell(value: Any, shown: Callable[[Any], str]) -> Cell:
    return Cell(units.NONE if value is None else shown(value))


_HIDDEN = "hidden from this role"
_LEVELS = 12  # of the tree that are indented
_COLUMNS = ("session", "who", "state", "for", "waits for")
_TREE = ("session", "blocked by", *_COLUMNS[1:])
_NUMERIC = frozenset({"for"})


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
        parts = [f"<p><strong>{escape(self.sentence)}</strong></p>"]
        if self.found.blocking:
            branches = self.found.blocking[: self.limit]
            rows = tuple((*_branch(branch), _statement(branch.running)) for branch in branches)
            parts.append(
                Table(
                    "Blocked sessions, below the session that blocks them", (*_TREE, "statement"), rows, _NUMERIC
                ).to_html()
            )
        if self.found.running:
            rows = tuple((*_session(running), _statement(running)) for running in self.found.running[: self.limit])
            parts.append(Table("Active sessions", (*_COLUMNS, "statement"), rows, _NUMERIC).to_html())
        return "".join([*parts, *(f'<p class="note">{escape(line)}</p>' for line in self._notes())])

    def text(self, width: int = WIDTH) -> str:
        """Return summary, tree and table as text, `width` characters wide."""
        parts = [wrap(visible(self.sentence), width)]
        if branches := self.found.blocking[: self.limit]:
            texts = [_text(branch.running) for branch in branches]
            rows = [(key, by, *rest) for key, by, _, *rest in map(_branch, branches)]  # the table below has the user
            parts.append(fitted([*_TREE[:2], *_TREE[3:]], rows, texts, _NUMERIC, width))
        if sessions := self.found.running[: self.limit]:
            texts = [_text(session) for session in sessions]
            parts.append(fitted(_COLUMNS, [_session(session) for session in sessions], texts, _NUMERIC, width))
        if notes := [line for note in self._notes() for line in wrap(visible(note), width)]:
            parts.append(notes)
        return "\n\n".join("\n".join(part) for part in parts)

    def _notes(self) -> Iterator[str]:
        for kind, lines in (("blocked", self.found.blocking), ("active", self.found.running)):
            if len(lines) > self.limit:
                yield f"and {count(len(lines) - self.limit)} more {kind} sessions"
        yield from self.found.notes


def _session(running: Running) -> tuple[Cell, ...]:
    """Return the cells of a session: key, user, state, duration and wait."""
    holds_locks = running.state.startswith("idle in transaction")
    return (
        Cell(one_line(running.key, 28)),
        Cell(one_line(running.user or running.kind, 20), one_line(running.application, 20) if running.user else ""),
        Cell(running.state or NONE, state="unsure" if holds_locks else ""),
        Cell(NONE if running.seconds is None else duration(max(0.0, running.seconds) * 1000)),
        Cell(running.wait or NONE, state="bad" if running.blocked_by else ""),
    )


def _branch(branch: Branch) -> tuple[Cell, ...]:
    """Return the cells of a session, indented below the session that blocks it."""
    key, *rest = _session(branch.running)
    line = f"└{'─' * min(branch.depth, _LEVELS)} " if branch.depth else ""
    blockers = ", ".join(branch.running.blocked_by[:5]) + (", …" if len(branch.running.blocked_by) > 5 else "")
    by = Cell(one_line(blockers, 28) or NONE, "deadlock" if branch.circle else "", "bad" if branch.circle else "")
    return (Cell(f"{line}{key.text}"), by, *rest)


def _text(running: Running) -> str:
    return _HIDDEN if running.hidden else running.text


def _statement(running: Running) -> Cell:
    if running.hidden or not running.text:
        return Cell(_text(running) or NONE, state="quiet")
    return Text(running.text, id=running.id)
