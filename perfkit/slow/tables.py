"""Slow statements and activity as they show themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from textwrap import wrap
from typing import Any

from perfkit.base import units
from perfkit.base.errors import visible
from perfkit.base.units import NONE, count
from perfkit.explain.text import duration, ms, plural, share
from perfkit.show.html import Cell, Table, View, code, escape
from perfkit.slow.statements import Activity, Branch, Running, SlowQueries, SlowStatement

WIDTH = 100  # columns of text
_SUMMARY = 80  # characters of a statement that are seen before it is opened
_MOST = 20_000  # characters of one that is opened; a statement can be a hundred megabytes of VALUES
_CELL = 20  # characters of any other cell in text
_SEGMENTS = 8
_ACROSS, _HIGH = 720, 22  # of the picture


@dataclass(frozen=True, slots=True)
class Text(Cell):
    """A statement on one line, that opens to the whole of it."""

    id: str = ""

    def html(self) -> str:
        """The line, and the whole behind it where there is more."""
        line, whole = one_line(self.text, _SUMMARY), cut(self.text)
        named = f"<small>id {escape(self.id)}</small>" if self.id else ""
        return f"<details><summary><code>{escape(line)}</code></summary>{code(whole, name='SQL')}{named}</details>"


@dataclass(frozen=True, slots=True)
class TimeShare(Cell):
    """A part of the whole, with a bar."""

    part: float = 0.0

    def html(self) -> str:
        """The percentage on its bar."""
        return f'<span class="bar" style="--p:{min(1.0, max(0.0, self.part)):.3g}">{escape(self.text)}</span>'


@dataclass(frozen=True, repr=False)
class SlowView(View):
    """What a source told of slow statements, the first `limit` of them."""

    found: SlowQueries
    limit: int = 20

    @property
    def shown(self) -> Sequence[SlowStatement]:
        """The statements that are shown, the largest total first."""
        return self.found.statements[: self.limit]

    def html(self) -> str:
        """Where it is from, the picture, the table and what has to be known of it, for a page that has the style."""
        first, *rest = self._above()
        above = f"<p><strong>{escape(first)}</strong>{''.join(f' · {escape(part)}' for part in rest)}</p>"
        below = "".join(f'<p class="note">{escape(line)}</p>' for line in self._below())
        return f"{above}{picture(self.found)}{self.table().to_html()}{below}"

    def text(self, width: int = WIDTH) -> str:
        """The table's first columns in text, `width` characters wide."""
        below = [line for said in self._below() for line in wrap(visible(said), width)]
        return "\n".join([*wrap(visible(" · ".join(self._above())), width), "", *self._lines(width), *below])

    def table(self) -> Table:
        """One row for each statement; what is known of none has no column."""
        columns = [column for column in self._columns() if any(column.known(s) for s in self.shown)]
        rows = tuple(
            (Cell(str(position)), Text(statement.text, id=statement.id), *(c.cell(statement) for c in columns))
            for position, statement in enumerate(self.shown, 1)
        )
        names = [column.name for column in columns]
        return Table("Statements by total time", ("", "statement", *names), rows, frozenset(names) - {"share"})

    def _lines(self, width: int) -> list[str]:
        """The statement last, in what its figures leave of the width."""
        columns = [c for c in self._columns() if c.name in _IN_TEXT and any(c.known(s) for s in self.shown)]
        names = ("", *(column.name for column in columns))
        rows = [(Cell(str(n)), *(column.cell(s) for column in columns)) for n, s in enumerate(self.shown, 1)]
        return fitted(names, rows, [statement.text for statement in self.shown], frozenset(names), width)

    def _columns(self) -> Iterator[_Column]:
        """All columns that there could be, in their order."""
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

    def _above(self) -> Iterator[str]:
        """The source, the time that it covers, and how much there is."""
        found = self.found
        yield found.source
        if found.since and found.until:
            lasted = duration((found.until - found.since).total_seconds() * 1000)
            yield f"{moment(found.since)} to {moment(found.until)} ({lasted})"
        elif when := found.since or found.until:
            yield f"{'since' if found.since else 'until'} {moment(when)}"
        calls = sum(statement.calls for statement in found.statements)
        yield f"{plural(len(found.statements), 'statement')}, {plural(calls, 'call')}, {duration(found.total_ms)}"

    def _below(self) -> Iterator[str]:
        """What is not shown, what could not be read, and what else a reader has to know."""
        if rest := self.found.statements[self.limit :]:
            part = sum(statement.total_ms for statement in rest) / (self.found.total_ms or 1.0)
            yield f"and {units.count(len(rest))} more, {share(part)} of the time"
        if unread := {reason: count for reason, count in self.found.unread.items() if count}:
            told = (f"{units.count(count)} ({reason})" for reason, count in unread.items())
            yield f"Could not be read: {', '.join(told)}."
        yield from self.found.notes


def picture(found: SlowQueries) -> str:
    """The total time as one bar, a part for each of the first statements and one for the rest; "" without any."""
    parts = [(str(n), found.share(s), s.text) for n, s in enumerate(found.statements[:_SEGMENTS], 1)]
    parts = [part for part in parts if part[1] > 0]
    if not parts:
        return ""
    if (left := 1.0 - sum(part for _, part, _ in parts)) > 0.0005:
        parts.append(("others", left, "all other statements"))
    said = ", ".join(f"{name} {share(part)}" for name, part, _ in parts)
    return (
        f'<svg class="chart shares" viewBox="0 0 {_ACROSS} {_HIGH + 18}" role="img" '
        f'aria-label="{escape(f"Share of the total time by statement: {said}")}">{"".join(_segments(parts))}</svg>'
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
    """Lines of a table in text, whose last column is a statement in what the others leave of the width."""
    if not rows:
        return ["none"]
    short = [tuple(Cell(one_line(cell.plain(), _CELL)) for cell in row) for row in rows]
    taken = sum(max(len(name), *(len(row[i].text) for row in short)) + 2 for i, name in enumerate(names))
    whole = zip(short, (Cell(one_line(text, max(20, width - taken))) for text in texts), strict=True)
    table = Table("", (*names, "statement"), tuple((*row, text) for row, text in whole), numeric)
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in table.to_text().split("\n")[2:]]


def one_line(text: str, most: int) -> str:
    r"""A statement's beginning on one line of at most so many characters.

    >>> one_line("SELECT *\n  FROM visits", 40), one_line("SELECT * FROM visits", 10)
    ('SELECT * FROM visits', 'SELECT *…')
    """
    line = visible(" ".join(text[: 8 * most].split()))
    return line if len(line) <= most and len(text) <= 8 * most else line[: most - 1].rstrip() + "…"


def cut(text: str) -> str:
    """A statement, of one that is very long the beginning."""
    return text if len(text) <= _MOST else f"{text[:_MOST]}\n… and {units.count(len(text) - _MOST)} more characters"


def moment(when: datetime) -> str:
    """A time to the second, in the zone that it came in, on one line.

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
    """A column of what one call takes in the mean."""

    def cell(statement: SlowStatement) -> Cell:
        whole = value(statement)
        return Cell(units.NONE if whole is None else shown(whole / (statement.calls or 1)))

    return _Column(name, cell, lambda statement: value(statement) is not None)


def _cell(value: Any, shown: Callable[[Any], str]) -> Cell:
    return Cell(units.NONE if value is None else shown(value))


# What runs in a database now, as it shows itself: a table, and who waits for whom as a tree.

_HIDDEN = "may not be seen"
_LEVELS = 12  # that are indented
_COLUMNS = ("session", "who", "state", "for", "waits for")
_TREE = ("session", "blocked by", *_COLUMNS[1:])
_NUMERIC = frozenset({"for"})


@dataclass(frozen=True, repr=False)
class ActivityView(View):
    """What runs, the longest first, and the tree of those who wait; of each at most `limit` lines."""

    found: Activity
    limit: int = 50

    @property
    def sentence(self) -> str:
        """`what runs in app, 2026-03-01 09:05:07 UTC: 3 statements, 1 waits for another session`."""
        waiting = {branch.running.key for branch in self.found.blocking if branch.running.blocked_by}
        wait = f"{count(len(waiting))} {'waits' if len(waiting) == 1 else 'wait'} for another session"
        running = plural(len(self.found.running), "session")
        return (
            f"{self.found.source}, {moment(self.found.at)}: {running}, {wait if waiting else 'none waits for another'}"
        )

    def html(self) -> str:
        """The sentence, the tree and the table, for a page that has the style sheet."""
        parts = [f"<p><strong>{escape(self.sentence)}</strong></p>"]
        if self.found.blocking:
            branches = self.found.blocking[: self.limit]
            rows = tuple((*_branch(branch), _statement(branch.running)) for branch in branches)
            parts.append(Table("Who waits for whom", (*_TREE, "statement"), rows, _NUMERIC).to_html())
        if self.found.running:
            rows = tuple((*_session(running), _statement(running)) for running in self.found.running[: self.limit])
            parts.append(Table("What runs", (*_COLUMNS, "statement"), rows, _NUMERIC).to_html())
        return "".join([*parts, *(f'<p class="note">{escape(line)}</p>' for line in self._below())])

    def text(self, width: int = WIDTH) -> str:
        """The same in text, `width` characters wide."""
        parts = [wrap(visible(self.sentence), width)]
        if branches := self.found.blocking[: self.limit]:
            texts = [_said(branch.running) for branch in branches]
            rows = [(key, by, *rest) for key, by, _, *rest in map(_branch, branches)]  # who it is says the table below
            parts.append(fitted([*_TREE[:2], *_TREE[3:]], rows, texts, _NUMERIC, width))
        if running := self.found.running[: self.limit]:
            texts = [_said(one) for one in running]
            parts.append(fitted(_COLUMNS, [_session(one) for one in running], texts, _NUMERIC, width))
        if below := [line for said in self._below() for line in wrap(visible(said), width)]:
            parts.append(below)
        return "\n\n".join("\n".join(part) for part in parts)

    def _below(self) -> Iterator[str]:
        for name, lines in (("who wait", self.found.blocking), ("that run", self.found.running)):
            if len(lines) > self.limit:
                yield f"and {count(len(lines) - self.limit)} more {name}"
        yield from self.found.notes


def _session(running: Running) -> tuple[Cell, ...]:
    """Who it is, what it does and since when."""
    holds = running.state.startswith("idle in transaction")
    return (
        Cell(one_line(running.key, 28)),
        Cell(one_line(running.user or running.kind, 20), one_line(running.application, 20) if running.user else ""),
        Cell(running.state or NONE, state="unsure" if holds else ""),
        Cell(NONE if running.seconds is None else duration(max(0.0, running.seconds) * 1000)),
        Cell(running.wait or NONE, state="bad" if running.blocked_by else ""),
    )


def _branch(branch: Branch) -> tuple[Cell, ...]:
    """The same, moved in below the one that it waits for."""
    key, *rest = _session(branch.running)
    line = f"└{'─' * min(branch.depth, _LEVELS)} " if branch.depth else ""
    blockers = ", ".join(branch.running.blocked_by[:5]) + (", …" if len(branch.running.blocked_by) > 5 else "")
    by = Cell(one_line(blockers, 28) or NONE, "in a circle" if branch.circle else "", "bad" if branch.circle else "")
    return (Cell(f"{line}{key.text}"), by, *rest)


def _said(running: Running) -> str:
    return _HIDDEN if running.hidden else running.text


def _statement(running: Running) -> Cell:
    if running.hidden or not running.text:
        return Cell(_said(running) or NONE, state="quiet")
    return Text(running.text, id=running.id)
