"""The tokens of SQL: strings of every kind, quoted names, comments within comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from perfkit.errors import UsageError

# PostgreSQL's own lexical rules: its white space is ASCII, and every other character may be in a name.
_LETTER = r"A-Za-z_\x80-\U0010ffff"
_ESCAPED, _PLAIN = r"(?:[^'\\]|''|\\.)*+", r"(?:[^']|'')*+"  # possessive: a quote that is doubled ends nothing
_NEXT_LINE = r"(?:[ \t\f\v]*(?:--[^\n\r]*)?[\n\r](?:[ \t\f\v\n\r]|--[^\n\r]*[\n\r])*'"  # goes on as it began
_TOKEN = re.compile(
    rf"""(?P<blank>[ \t\n\r\f\v]+|--[^\n\r]*)
    |(?P<comment>/\*)
    |(?P<string>[eE]'{_ESCAPED}'{_NEXT_LINE}{_ESCAPED}')*
        |(?:[bBxXnN]|[uU]&)?'{_PLAIN}'
        |\$(?P<tag>(?:[{_LETTER}][{_LETTER}0-9]*)?)\$.*?\$(?P=tag)\$)
    |(?P<quoted>(?:[uU]&)?"(?:[^"\0]|"")++")
    |(?P<word>(?![eEbBxXnN]')[{_LETTER}][{_LETTER}0-9$]*)
    |(?P<other>[0-9][A-Za-z0-9_.]*|\$[0-9]+|[-()\[\],;:.+*/<>=~!@#%^&|`?])""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A word, a quoted name, a string or a sign; where it stands, and in which line."""

    kind: str
    text: str
    start: int
    end: int
    line: int


def tokens(source: str, where: str = "") -> Iterator[Token]:
    """Yield a text's tokens. Raises UsageError for a quote or comment that is not closed, or a strange sign."""
    place, line = 0, 1
    while place < len(source):
        match = _TOKEN.match(source, place)
        end = match and (_end_of_comment(source, place) if match["comment"] else match.end())
        if not match or not end:
            found = source[place:].splitlines()[0][:40] or repr(source[place])
            expected = "expected SQL whose quotes and comments are closed"
            at = f"{where}:{line}" if where else f"line {line}"
            raise UsageError(f"{at}: {found!r}: SQL that cannot be read; {expected}")
        if match.lastgroup not in ("blank", "comment"):
            kind = "string" if match["string"] else str(match.lastgroup)
            yield Token(kind, source[place:end], place, end, line)
        line += source.count("\n", place, end)
        place = end


def _end_of_comment(source: str, place: int) -> int:
    """Where the comment that begins here ends; 0 where it does not. Comments can be within comments."""
    depth = 0
    for mark in re.compile(r"/\*|\*/").finditer(source, place):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return 0
