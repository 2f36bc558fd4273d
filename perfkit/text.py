"""Text from elsewhere, made fit to be seen: what a terminal, a page or a reader would take for more than text."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: object) -> str:
    r"""Text with every control or direction-changing character written as its code point; \n, \t stay.

    >>> visible("\x1b[31mred\u202e")
    '⟨1B⟩[31mred⟨202E⟩'
    """
    return _CONTROL.sub(lambda m: f"⟨{ord(m[0]):02X}⟩", str(text))


def first_line(error: BaseException) -> str:
    """What an error says first, and its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
