"""Text into HTML and nothing else: whatever comes in is escaped, and what cannot be seen is made visible."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from perfkit.text import visible

_NOTHING = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_BODY = "body { margin: 16px; background: var(--paper); }"


def escape(text: object) -> str:
    """Text as inert HTML, also inside a quoted attribute."""
    return html.escape(visible(text), quote=True)


def folded(summary: str, content: str) -> str:
    """A closed <details>; the summary is text, the content already HTML."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def code(text: object, *, name: str = "") -> str:
    """A block of source text to scroll and copy; `name` is what a screen reader announces."""
    label = f' role="region" aria-label="{escape(name)}"' if name else ""
    return f'<pre tabindex="0"{label}><code>{escape(text)}</code></pre>'


def listed(lines: Iterable[str], kind: str = "") -> str:
    """Lines of text as a list, of a class of the style sheet where one is named; nothing for none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    named = f' class="{kind}"' if kind else ""
    return f"<ul{named}>{items}</ul>" if items else ""


def headed(state: str, title: str, word: str, sentence: str, more: str = "", meta: str = "", icon: str = "") -> str:
    """What a page says first, in the colours of a state; `more` and `icon` are already HTML."""
    heading = f"<h1>{icon}<span>{escape(word)}</span></h1>" if word else ""
    small = f'<p class="meta">{escape(meta)}</p>' if meta else ""
    return (
        f'<header class="decision {state}"><p class="eyebrow">{escape(title)}</p>{heading}'
        f'<p class="headline">{escape(sentence)}</p>{more}{small}</header>'
    )


def explained(words: Iterable[tuple[str, str]]) -> str:
    """Words with what they mean, as HTML."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in words)}</dl>"


def page(title: str, content: str, *, again_s: float = 0.0) -> str:
    """A whole page of its own: it requests nothing and runs nothing; with `again_s` it loads itself every so often."""
    again = f'<meta http-equiv="refresh" content="{again_s:.0f}">' if again_s else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{escape(title)}</title><style>{style()}{_BODY}</style></head>"
        f'<body class="pk">{content}</body></html>\n'
    )


@cache
def style() -> str:
    """The style sheet of everything shown here; all of it lives under the class `pk`."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


class View(ABC):
    """What shows itself in a cell of any notebook, with the style sheet, and in a terminal."""

    @abstractmethod
    def html(self) -> str:
        """Within the class `pk`."""

    @abstractmethod
    def text(self) -> str:
        """The same in words."""

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style><div class='pk'>{self.html()}</div>"

    def __repr__(self) -> str:
        return self.text()


class OpenedPage:
    """What a notebook opens: in HTML the style sheet for everything below it, and its own words."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style><div class='pk'><p>{escape(self)}</p></div>"


@dataclass(frozen=True, slots=True, repr=False)
class Block:
    """Something to show: HTML where that can be drawn, else the same in words."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return f'<div class="pk">{self.html}</div>'

    def __repr__(self) -> str:
        return visible(self.text)
