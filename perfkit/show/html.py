"""Escaped HTML, whole pages, and tables as HTML, text and Markdown."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from perfkit.base.errors import visible
from perfkit.base.units import unbroken

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_BODY = "body { margin: 16px; background: var(--paper); }"


def escape(text: object) -> str:
    """Return text as inert HTML, safe inside a quoted attribute too."""
    return html.escape(visible(text), quote=True)


def folded(summary: str, content: str) -> str:
    """Return a closed <details>; the summary is text, the content is already HTML."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def code(text: object, *, name: str = "") -> str:
    """Return a block of source text to scroll and copy; a screen reader announces `name`."""
    label = f' role="region" aria-label="{escape(name)}"' if name else ""
    return f'<pre tabindex="0"{label}><code>{escape(text)}</code></pre>'


def listed(lines: Iterable[str], kind: str = "") -> str:
    """Return lines of text as a list; `kind` is a class of the style sheet. Without lines, return ""."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    class_ = f' class="{kind}"' if kind else ""
    return f"<ul{class_}>{items}</ul>" if items else ""


def headed(state: str, title: str, word: str, sentence: str, more: str = "", meta: str = "", icon: str = "") -> str:
    """Return the header of a page in the colours of a state; `more` and `icon` are already HTML."""
    heading = f"<h1>{icon}<span>{escape(word)}</span></h1>" if word else ""
    small = f'<p class="meta">{escape(meta)}</p>' if meta else ""
    return (
        f'<header class="decision {state}"><p class="eyebrow">{escape(title)}</p>{heading}'
        f'<p class="headline">{escape(sentence)}</p>{more}{small}</header>'
    )


def explained(words: Iterable[tuple[str, str]]) -> str:
    """Return words and their meanings as an HTML list."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in words)}</dl>"


def page(title: str, content: str, *, again_s: float = 0.0) -> str:
    """Return a whole page that requests nothing and runs nothing; it reloads every `again_s` seconds, or never (0)."""
    again = f'<meta http-equiv="refresh" content="{again_s:.0f}">' if again_s else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{escape(title)}</title><style>{style()}{_BODY}</style></head>"
        f'<body class="pk">{content}</body></html>\n'
    )


@cache
def style() -> str:
    """Return the style sheet; all its rules apply under the class `pk` only."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


class View(ABC):
    """Base class of results that show themselves in a notebook's cell, with the style sheet, and in a terminal."""

    @abstractmethod
    def html(self) -> str:
        """Return HTML for a container of the class `pk`."""

    @abstractmethod
    def text(self) -> str:
        """Return the same content as plain text."""

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style><div class='pk'>{self.html()}</div>"

    def __repr__(self) -> str:
        return self.text()


class OpenedPage:
    """The result of a notebook's first cell: its text and, in HTML, the style sheet for the cells below."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style><div class='pk'><p>{escape(self)}</p></div>"


@dataclass(frozen=True, slots=True, repr=False)
class Block:
    """A piece of output: HTML, and the same content as plain text."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return f'<div class="pk">{self.html}</div>'

    def __repr__(self) -> str:
        return visible(self.text)


#: The mark of a state, for readers who do not see its colour.
MARKS = {"good": "✓", "bad": "✕", "neutral": "○", "unsure": "?"}
_LONG = 40  # characters; a longer row header wraps, because it would run into the next cell


@dataclass(frozen=True, slots=True)
class Cell:
    """Text with an optional second, smaller line; `state` is good, bad, neutral, unsure, quiet or empty."""

    text: str
    note: str = ""
    state: str = ""
    code: bool = False

    def html(self) -> str:
        """Return the cell's content, escaped."""
        text = f"<code>{escape(self.text)}</code>" if self.code else escape(self.text)
        text = f"<strong>{text}</strong>" if self.state in MARKS else text
        return text + (f"<small>{escape(self.note)}</small>" if self.note else "")

    def plain(self) -> str:
        """Return both lines as one line of text."""
        note = self.note if self.note.startswith("[") else f"({self.note})" if self.note else ""
        return " ".join(visible(f"{self.text} {note}").split())


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """Rows under named columns, shown as HTML, plain text or Markdown.

    `numeric` names the columns to align to the right. The first `headers` cells of a row are its headers; with
    `grouped`, neighbouring rows with an equal first cell share that cell.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[str] = frozenset()
    headers: int = 1
    grouped: bool = False
    note: str = ""

    def to_html(self) -> str:
        """Return a captioned table with scoped headers, inside a container that scrolls on its own."""
        if not self.rows:
            return f"<p><strong>{escape(self.caption)}:</strong> {escape(self.note or 'none')}</p>"
        head = "".join(f'<th scope="col"{self._class(i)}>{escape(c)}</th>' for i, c in enumerate(self.columns))
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(self.caption)}"><table>'
            f"<caption><span>{escape(self.caption)}</span></caption><thead><tr>{head}</tr></thead>"
            f"{''.join(self._bodies())}</table></div>{note}"
        )

    def to_text(self) -> str:
        """Return aligned columns for a terminal."""
        if not self.rows:
            return visible(f"{self.caption}: {self.note or 'none'}")
        lines = [[visible(c) for c in self.columns], *([cell.plain() for cell in row] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        padded = ["  ".join(self._pad(i, text, widths[i]) for i, text in enumerate(line)).rstrip() for line in lines]
        padded.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([visible(self.caption), "", *padded, *([visible(self.note)] if self.note else [])])

    def to_markdown(self) -> str:
        """Return a pipe table whose cells cannot break out of it."""
        rule = ["---:" if c in self.numeric else "---" for c in self.columns]
        lines = [[markdown(c) for c in self.columns], rule]
        lines += [[markdown(cell.plain()) for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _bodies(self) -> Iterator[str]:
        groups = groupby(self.rows, key=lambda row: row[0]) if self.grouped else [(None, iter(self.rows))]
        for first, group in groups:
            rows = list(group)
            lead = f'<th scope="rowgroup" rowspan="{len(rows)}">{first.html()}</th>' if first else ""
            skip = 1 if first else 0
            lines = [f"{lead if i == 0 else ''}{self._cells(row, skip)}" for i, row in enumerate(rows)]
            yield f"<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody>"

    def _cells(self, row: tuple[Cell, ...], skip: int) -> str:
        return "".join(
            f'<th scope="row"{self._class(i, cell.state, "long" if len(cell.text) > _LONG else "")}>{cell.html()}</th>'
            if i < self.headers
            else f"<td{self._class(i, cell.state)}>{cell.html()}</td>"
            for i, cell in enumerate(row[skip:], start=skip)
        )

    def _class(self, column: int, *states: str) -> str:
        names = [*(["n"] if self.columns[column] in self.numeric else []), *filter(None, states)]
        return f' class="{" ".join(names)}"' if names else ""

    def _pad(self, column: int, text: str, width: int) -> str:
        return text.rjust(width) if self.columns[column] in self.numeric else text.ljust(width)

    def _repr_html_(self) -> str:
        return f'<div class="pk">{self.to_html()}</div>'

    def __repr__(self) -> str:
        return self.to_text()


def marked(state: str, word: str, note: str = "") -> Cell:
    """Return a cell with a word and the mark of its state."""
    return Cell(unbroken(f"{MARKS[state]} {word}"), note, state)


def markdown(text: str) -> str:
    """Return text on one line, escaped so that Markdown shows every character."""
    text = " ".join(visible(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text)
