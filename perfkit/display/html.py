"""Text into HTML and nothing else: whatever comes in is escaped, and what cannot be seen is made visible."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from perfkit.text import visible

_NOTHING = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_BODY = " body { margin: 16px; background: var(--paper); }"


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


def page(title: str, content: str, *, again_s: float = 0.0) -> str:
    """A whole page of its own: it requests nothing and runs nothing; with `again_s` it loads itself every so often."""
    again = f'<meta http-equiv="refresh" content="{again_s:.0f}">' if again_s else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{escape(title)}</title><style>{style()}"
        "body { margin: 16px; background: var(--paper); }</style></head>"
        f'<body class="pk">{content}</body></html>\n'
    )


@cache
def style() -> str:
    """The style sheet of everything shown here; all of it lives under the class `pk`."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, repr=False)
class Block:
    """Something to show: HTML where that can be drawn, else the same in words."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return f'<div class="pk">{self.html}</div>'

    def __repr__(self) -> str:
        return visible(self.text)
