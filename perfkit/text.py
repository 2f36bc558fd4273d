"""Text from elsewhere, made fit to be sent or seen: what a server, a terminal or a page would take for more."""

from __future__ import annotations

import re
from pathlib import Path

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)

_CLIENTS_HEADERS = re.compile(
    r"host|connection|content-length|transfer-encoding|te|trailer|upgrade|expect|keep-alive|proxy-.*|x-forwarded-host",
    re.IGNORECASE,
)


def require_header(name: str, value: str) -> None:
    """Raise ValueError for a header that could lead a request elsewhere, or make two of it."""
    if _CLIENTS_HEADERS.fullmatch(name):
        raise ValueError(f"no header {name!r}: the client sets it")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or re.search(r"[\r\n\0]", value):
        raise ValueError(f"header {name!r} of letters, digits, '_' and '-', with a value of one line")


def visible(text: object) -> str:
    r"""Text with every control or direction-changing character written as its code point; \n, \t stay.

    >>> visible("\x1b[31mred\u202e")
    '⟨1B⟩[31mred⟨202E⟩'
    """
    return _CONTROL.sub(lambda m: f"⟨{ord(m[0]):02X}⟩", str(text))


def first_line(error: BaseException) -> str:
    """What an error says first, and its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def redact_home(text: str) -> str:
    """A message without the name of anybody's home folder, for what is mailed."""
    return text.replace(str(Path.home()), "~")
