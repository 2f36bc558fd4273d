"""What runs in a database now, as it shows itself: a table, and who waits for whom as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap

from perfkit.display.html import View, escape
from perfkit.display.plan_figures import duration, plural
from perfkit.display.slow import WIDTH, Text, fitted, moment, one_line
from perfkit.display.table import Cell, Table
from perfkit.numbers import NONE, count
from perfkit.slow.activity import Activity, Branch, Running
from perfkit.text import visible

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
