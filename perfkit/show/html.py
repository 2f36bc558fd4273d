"""What people see, described once: tables, texts, banners and pages, shown as HTML, as text and as Markdown.

A room describes its output with the parts of this module. Their HTML comes from `templates/parts.html.j2`; a part of
a room's own has a template of its own beside it. Templates escape every value, and `render` makes control and
direction-changing characters visible, so that no text from elsewhere becomes markup or hides something.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, cast

import markupsafe
from markupsafe import Markup

from perfkit.base import units
from perfkit.base.errors import visible
from perfkit.base.judgement import MARKS
from perfkit.base.stats import Estimate, Interval, Ratio
from perfkit.base.units import NONE, unbroken

if TYPE_CHECKING:
    from jinja2 import Environment
    from pandas import DataFrame

HERE = Path(__file__).parent
PARTS = "parts.html.j2"
R = TypeVar("R")


def escape(text: object) -> str:
    """Return text as inert HTML, safe inside a quoted attribute too."""
    return str(markupsafe.escape(visible(text)))


def render(template: str, macro: str = "", **values: object) -> str:
    """Return the HTML of a template, or of one of its macros; every value is escaped.

    Control and direction-changing characters are made visible here, in the whole output, so that no template can
    forget it.
    """
    found = _environment().get_template(template)
    html = getattr(found.module, macro)(**values) if macro else found.render(**values)
    return visible(html)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # 0.1 s, which commands that print do without

    loader = FileSystemLoader(HERE / "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals |= {"marks": MARKS, "inline_of": _inline}
    return made


@cache
def style() -> str:
    """Return the style sheet; all its rules apply under the class `pk` only."""
    return (HERE / "style.css").read_text(encoding="utf-8")


def page(title: str, *parts: Part | str, again_s: float = 0.0) -> str:
    """Return a whole page that requests nothing and runs nothing; it reloads every `again_s` seconds, or never (0)."""
    content = "".join(part if isinstance(part, str) else part.html() for part in parts)
    return render(PARTS, "page", title=title, content=Markup(content), style=Markup(style()), again_s=again_s)


def markdown(text: str) -> str:
    """Return text on one line, escaped so that Markdown shows every character."""
    text = " ".join(visible(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text)


class Part(ABC):
    """A piece of output: HTML, and the same content as plain text; displays itself in a notebook and a terminal."""

    template: ClassVar[str] = PARTS
    macro: ClassVar[str] = ""  # of the template; "" renders the whole template

    def html(self) -> str:
        """Return HTML for a container of the class `pk`."""
        return render(self.template, self.macro, part=self)

    @abstractmethod
    def text(self) -> str:
        """Return the same content as plain text."""

    def _repr_html_(self) -> str:
        return f'<div class="pk">{self.html()}</div>'

    def __repr__(self) -> str:
        return visible(self.text())


class View(Part):
    """A result that is shown on its own, so that its HTML carries the style sheet."""

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style><div class='pk'>{self.html()}</div>"


@dataclass(frozen=True, slots=True)
class Inline:
    """Some words of a line in an HTML element; `state` is a class of the style sheet. A link leads to its text."""

    text: str
    tag: str = "strong"
    state: str = ""


Words = str | Inline | Sequence[str | Inline]  # of a line


def _inline(words: Words) -> list[Inline]:
    parts = [words] if isinstance(words, str | Inline) else words
    return [Inline(part, "") if isinstance(part, str) else part for part in parts]


def plain(words: Words) -> str:
    """Return the words of a line without their elements."""
    return "".join(part.text for part in _inline(words))


@dataclass(frozen=True, slots=True, repr=False)
class Paragraph(Part):
    """A paragraph; `kind` is a class of the style sheet."""

    macro = "paragraph"
    words: Words
    kind: str = ""

    def text(self) -> str:
        """Return the words."""
        return plain(self.words)


def note(words: Words) -> Paragraph:
    """Return a remark in small print."""
    return Paragraph(words, "note")


@dataclass(frozen=True, slots=True, repr=False)
class Code(Part):
    """Source text to scroll and copy; a screen reader announces `name`."""

    macro = "code"
    source: str
    name: str = ""

    def text(self) -> str:
        """Return the source."""
        return self.source


@dataclass(frozen=True, slots=True, repr=False)
class Bullets(Part):
    """Lines as a list; `kind` is a class of the style sheet."""

    macro = "bullets"
    lines: Sequence[Words]
    kind: str = ""

    def text(self) -> str:
        """Return the lines, each behind a dash."""
        return "\n".join(f"- {plain(line)}" for line in self.lines)


@dataclass(frozen=True, slots=True, repr=False)
class Terms(Part):
    """Terms and their meanings."""

    macro = "terms"
    pairs: Sequence[tuple[str, str]]

    def text(self) -> str:
        """Return a line for each term."""
        return "\n".join(f"{name}: {meaning}" for name, meaning in self.pairs)


@dataclass(frozen=True, slots=True, repr=False)
class Section(Part):
    """Parts below each other, under an optional title of a heading's `level`; `kind` is a class of the style sheet.

    In text, `gap` is between the parts.
    """

    macro = "section"
    parts: Sequence[Part]
    title: str = ""
    level: int = 3
    kind: str = ""
    gap: str = "\n\n"

    def text(self) -> str:
        """Return the texts of the parts; source text is indented below a title."""
        texts = [indent(part.text(), "  ") if self.title and isinstance(part, Code) else part.text()
                 for part in self.parts]  # fmt: skip
        body = self.gap.join(text for text in texts if text)
        if not self.title or not body:
            return body
        return f"{self.title}\n\n{body}" if self.level < 3 else f"{self.title}:\n{body}"


class Sheet(Section, View):
    """Parts that are shown on their own, with the style sheet."""

    _repr_html_ = View._repr_html_


def stacked(*parts: Part | None, gap: str = "\n\n") -> Section:
    """Return parts below each other; those that are None are left out."""
    return Section([part for part in parts if part is not None], gap=gap)


@dataclass(frozen=True, slots=True, repr=False)
class Folded(Part):
    """Parts that a reader opens by a click on their summary; text has them open, or not at all (`in_text`)."""

    macro = "folded"
    summary: str
    parts: Sequence[Part]
    in_text: bool = True

    def text(self) -> str:
        """Return the summary and the texts of the parts."""
        return "\n\n".join([self.summary, *filter(None, (part.text() for part in self.parts))]) if self.in_text else ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a whole: its name, its share of 1, a label, and what a pointer shows."""

    name: str
    share: float
    label: str
    title: str


@dataclass(frozen=True, slots=True, repr=False)
class Shares(Part):
    """A bar divided into the shares of a whole, and the same in words."""

    macro = "shares"
    caption: str
    segments: Sequence[Segment]

    def text(self) -> str:
        """Return the shares in words."""
        return self.caption


@dataclass(frozen=True, slots=True, repr=False)
class Banner(Part):
    """The head of a page in the colours of a state: title, word, sentence, reasons, more parts, and small print.

    `mark` stands before the word: in text, and in HTML as an icon, unless the word has it already (`icon`).
    """

    macro = "banner"
    state: str
    title: str
    word: str
    sentence: str
    reasons: Sequence[str] = ()
    meta: str = ""
    more: Sequence[Part] = ()
    icon: str = ""  # good, bad, neutral, unsure or unfinished

    def text(self) -> str:
        """Return word and title, the sentence, and the reasons."""
        word = f"{MARKS.get(self.icon, '…')} {self.word}" if self.icon else self.word
        lines = ["  ".join(filter(None, (word, self.title))), self.sentence]
        return "\n".join([*lines, *(f"- {reason}" for reason in self.reasons)])


@dataclass(frozen=True, slots=True)
class Cell:
    """Text with an optional second, smaller line; `state` is good, bad, neutral, unsure, quiet or empty.

    `value` is what a frame holds for the cell, by default the text. An estimate becomes three values, and a mapping
    one for each key. `full` is the whole of a text that the cell only begins, with an `id`; `share` of 1 draws a bar.
    """

    text: str
    note: str = ""
    state: str = ""
    code: bool = False
    value: object = field(default=None, compare=False)
    full: str = ""
    id: str = ""
    share: float | None = None

    def plain(self) -> str:
        """Return both lines as one line of text."""
        note = self.note if self.note.startswith("[") else f"({self.note})" if self.note else ""
        return " ".join(visible(f"{self.text} {note}").split())

    def values(self) -> Mapping[str, object]:
        """Return the values for a frame by the ending of their columns' names."""
        match self.value:
            case None:
                return {"": None if self.text in ("", NONE) else self.text}
            case Estimate() as estimate:
                return {"": estimate.value, "_lo": estimate.lo, "_hi": estimate.hi}
            case Mapping() as several:
                return {f"_{key}" if key else "": value for key, value in several.items()}
        return {"": self.value}


def marked(state: str, word: str, note: str = "") -> Cell:
    """Return a cell with a word and the mark of its state."""
    return Cell(unbroken(f"{MARKS[state]} {word}"), note, state, value=str(word))


def cell(value: object, show: Callable[..., str] | None = None, state: str = "") -> Cell:
    """Return the cell of a value: as `show` writes it, or an estimate with its interval; None is a dash."""
    match value:
        case Cell():
            return value
        case None:
            return Cell(NONE, state="quiet")
        case Interval():
            return Cell(*units.estimate(value), state, value=value)
        case Ratio():
            return Cell(*units.ratio(value), state, value=value)
        case str() if show is None:
            return Cell(value, state=state)
        case int() if show is None:
            return Cell(units.count(value), state=state, value=value)
        case float() if show is None:
            return Cell(units.significant(value), state=state, value=value)
    return Cell(show(value) if show else str(value), state=state, value=value)


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of a table: its heading, the value of a row, and how a value is written (see `cell`).

    Without `value`, a row is a sequence that has the value at the column's position. `key` names the values in a
    frame, with their unit; by default it is the heading as an identifier.
    """

    name: str
    value: Callable[[R], object] | None = None
    show: Callable[..., str] | None = None
    numeric: bool = False
    key: str = ""

    def cell(self, row: R, position: int) -> Cell:
        """Return the cell of a row."""
        value = self.value(row) if self.value else cast("Sequence[object]", row)[position]
        return cell(value, self.show)


def number(
    name: str, value: Callable[[R], object] | None = None, show: Callable[..., str] | None = None, key: str = ""
) -> Column[R]:
    """Return a column that is aligned to the right."""
    return Column(name, value, show, True, key)


@dataclass(frozen=True, slots=True, repr=False)
class Table(Part):
    """Rows under named columns, shown as HTML, plain text, Markdown or a data frame.

    `numeric` names the columns to align to the right. The first `headers` cells of a row are its headers; with
    `grouped`, neighbouring rows with an equal first cell share that cell. `keys` names the columns of the frame.
    """

    macro = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[str] = frozenset()
    headers: int = 1
    grouped: bool = False
    note: str = ""
    keys: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        caption: str,
        columns: Sequence[Column[R]],
        records: Iterable[R],
        *,
        headers: int = 1,
        grouped: bool = False,
        note: str = "",
    ) -> Table:
        """Return the table of records: one row for each, with a cell for each column."""
        rows = tuple(tuple(column.cell(record, i) for i, column in enumerate(columns)) for record in records)
        names, keys = tuple(column.name for column in columns), tuple(column.key for column in columns)
        numeric = frozenset(column.name for column in columns if column.numeric)
        return cls(caption, names, rows, numeric, headers, grouped, note, keys)

    @property
    def frame(self) -> DataFrame:
        """The rows as a pandas DataFrame: numbers as numbers, units in the names, estimates with _lo and _hi."""
        from pandas import DataFrame  # half a second, which showing a table does without

        keys = [
            key or re.sub(r"\W+", "_", name).strip("_").lower() or f"column_{i}"
            for i, (name, key) in enumerate(zip(self.columns, self.keys or self.columns, strict=True))
        ]
        rows = [
            {f"{key}{end}": value for key, cell in zip(keys, row, strict=True) for end, value in cell.values().items()}
            for row in self.rows
        ]
        return DataFrame(rows, columns=None if rows else keys)

    @property
    def groups(self) -> Iterator[tuple[Cell | None, list[tuple[Cell, ...]]]]:
        """The bodies of the table: the cell that all rows share, if any, and the rows without it."""
        if not self.grouped:
            yield None, list(self.rows)
            return
        for first, rows in groupby(self.rows, key=lambda row: row[0]):
            yield first, [row[1:] for row in rows]

    def text(self) -> str:
        """Return aligned columns for a terminal."""
        if not self.rows:
            return visible(f"{self.caption}: {self.note or 'none'}")
        lines = [[visible(c) for c in self.columns], *([cell.plain() for cell in row] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        padded = ["  ".join(self._pad(i, text, widths[i]) for i, text in enumerate(line)).rstrip() for line in lines]
        padded.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([visible(self.caption), "", *padded, *([visible(self.note)] if self.note else [])])

    def markdown(self) -> str:
        """Return a pipe table whose cells cannot break out of it."""
        rule = ["---:" if c in self.numeric else "---" for c in self.columns]
        lines = [[markdown(c) for c in self.columns], rule]
        lines += [[markdown(cell.plain()) for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _pad(self, column: int, text: str, width: int) -> str:
        return text.rjust(width) if self.columns[column] in self.numeric else text.ljust(width)
