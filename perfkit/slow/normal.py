"""A statement's text without its values, so that executions of one statement can be recognised. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice

# PostgreSQL's own lexical rules, but nothing is refused: what a cut text leaves open reaches to its end.
_LETTER = r"A-Za-z_\x80-\U0010ffff"
_SIGN = r"(?!--|/\*)[-+*/<>=]"
_ANY_SIGN = r"(?!--|/\*)[-+*/<>=~!@#%^&|`?]"
_NORMAL_TOKEN = re.compile(
    rf"""(?P<word>(?![eEbBxXnN]'|[uU]&['"])[{_LETTER}][{_LETTER}0-9$]*)
    |(?P<blank>[ \t\n\r\f\v\0]+|--[^\n\r]*)
    |(?P<mark>[(),.;\[\]](?![0-9]))
    |(?P<string>(?:[bBxXnN]|[uU]&)?'[^']*+(?:''[^']*+)*+(?:'|\Z)
        |[eE]'(?:[^'\\]++|''|\\.)*+(?:'|\\?\Z)
        |\$(?P<tag>(?:[{_LETTER}][{_LETTER}0-9]*)?)\$.*?(?:\$(?P=tag)\$|\Z))
    |\$(?P<parameter>[0-9]{{1,9}})
    |(?P<number>0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+
        |(?:[0-9][0-9_]*(?:\.(?!\.)[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?)
    |(?P<comment>/\*)
    |(?P<quoted>(?:[uU]&)?"(?:[^"]|"")*+(?:"|\Z))
    |(?P<sign>::|(?:{_SIGN})*(?=[~!@#%^&|`?])(?:{_ANY_SIGN})+|(?:{_SIGN})*(?!/\*)[*/<>=]|[-+]|:=?|.)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"/\*|\*/")
# After these a minus is part of the number behind it; after any other word it subtracts.
_BEFORE_A_VALUE = frozenset(
    "ALL AND ANY AS BETWEEN BY CASE DEFAULT DISTINCT ELSE FROM HAVING ILIKE IN IS LIKE LIMIT NOT OFFSET ON OR "
    "RETURNING SELECT SET THEN TO UNION USING VALUES WHEN WHERE".split()
)
_SPACED = _BEFORE_A_VALUE | {"EXCEPT", "EXISTS", "FILTER", "INTERSECT", "INTO", "JOIN", "LATERAL", "OVER", "WITH"}
_ENDS_BY = frozenset("FETCH FOR FROM HAVING SELECT SET VALUES WHERE WINDOW".split())
_MOST = 50_000  # tokens that are looked at
_NORMAL_PLAIN = re.compile(r"""("[^"]*(?:"|\Z))|'[^']*(?:'|\Z)|(?<![\w$.])\d+(?:\.\d+)?(?![\w.])""")
_DOLLAR = re.compile(r"\$(?!\d)")
_BY = re.compile(r"""\bBY\b(?:(?!(?<!")\b(?:LIMIT|OFFSET)\b).)*?(?<![\w$.])\d""", re.IGNORECASE | re.DOTALL)
_REMEMBERED, _SHORT = 4_000, 4_000  # texts; characters of one

_Item = str | int  # a value is the number of its parameter, 0 for one that is written out


def normal(text: str) -> str:
    """The text with `$1`, `$2`, ... for its values in order of appearance, without comments, evenly spaced.

    A list of values after IN or in ARRAY[] counts as one value, rows of values of one shape as one row. The numbers
    of columns in ORDER BY and GROUP BY are no values. What was normalised stays as it is.

    >>> normal("select * from t1 where id = -7 and day in ('a', 'b') -- now")
    'select * from t1 where id = $1 and day in ($2)'
    """
    return _spaced(_numbered(_items(text)))


def digest(text: str) -> str:
    """Sixteen characters for a normalised text, as an id where the server gives none."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class Normals:
    """Normalised texts, remembered: most statements of a log come again, with other values at most."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, text: str) -> str:
        """What `normal` gives."""
        if (found := self._known.get(text)) is not None:
            return found
        if len(text) > _SHORT:
            return normal(text)
        key = _skeleton(text)
        if (found := self._known.get(key)) is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[key] = normal(text)
        return found


def _skeleton(text: str) -> str:
    """A text with its plain values replaced, quickly; the text itself where there is more to it than those.

    Texts of one skeleton are normalised to one text.
    """
    if "\\" in text or "--" in text or "/*" in text or "\0" in text or _DOLLAR.search(text):
        return text
    key = _NORMAL_PLAIN.sub(lambda found: found[1] or ("'" if found[0][0] == "'" else "0"), text)
    return text if _BY.search(key) else key


def _items(text: str) -> list[_Item]:
    """What a text is made of, lists of values folded."""
    out: list[_Item] = []
    opened: list[int] = []  # where each bracket is
    row = (0, 0)  # the first row after VALUES, from its bracket to behind it
    by = -1  # how deep the ORDER BY or GROUP BY is, whose plain numbers are columns
    after_string = False
    for kind, token in islice(_statement_tokens(text), _MOST):
        if kind == "string":
            if not after_string:  # strings that follow each other are one
                out.append(0)
        elif kind == "parameter":
            out.append(int(token))
        elif kind == "number":
            if by == len(opened) and token.isdigit() and (out[-1] == "," or _upper(out[-1]) == "BY"):
                out.append(token)
            else:
                if out and out[-1] in ("-", "+") and not _operand(out[-2] if len(out) > 1 else "("):
                    out.pop()
                out.append(0)
        elif token in ("(", "["):
            opened.append(len(out))
            out.append(token)
        elif token in (")", "]"):
            start = opened.pop() if opened else 0
            by = -1 if len(opened) < by else by
            before = out[start - 1] if start else ""
            if _upper(before) in ("IN", "ARRAY"):
                _fold(out, start)
            out.append(token)
            if _upper(before) == "VALUES":
                row = (start, len(out))
            elif before == "," and row[1] == start - 1 and _shape(out[start:]) == _shape(out[row[0] : row[1]]):
                del out[start - 1 :]
        else:
            if kind == "word":
                word = token.upper()
                ended = word in ("LIMIT", "OFFSET") or (word in _ENDS_BY and by == len(opened))
                by = len(opened) if word == "BY" else -1 if ended else by
            out.append(token)
        after_string = kind == "string"
    while out and out[-1] == ";":
        out.pop()
    return out


def _statement_tokens(text: str) -> Iterator[tuple[str, str]]:
    """Each token with its kind; blanks and comments, which can be within comments, are left out."""
    place = 0
    while match := _NORMAL_TOKEN.match(text, place):
        kind, place = match.lastgroup, match.end()
        if kind == "comment":
            depth = 1
            while depth and (mark := _COMMENT.search(text, place)):
                depth, place = depth + (1 if mark[0] == "/*" else -1), mark.end()
            place = len(text) if depth else place
        elif kind != "blank":
            kind = "string" if kind == "tag" else str(kind)
            yield kind, match[kind]


def _fold(out: list[_Item], start: int) -> None:
    """Leave the first of the values since a bracket, where there is nothing but values, with or without casts."""
    at = begin = len(out)
    while True:
        cast = at >= 3 and out[at - 2] == "::" and isinstance(out[at - 3], int)
        begin = at - 3 if cast else at - 1
        if begin <= start or not isinstance(out[begin], int):
            return
        if begin == start + 1:
            del out[at:]
            return
        if out[begin - 1] != ",":
            return
        at = begin - 1


def _shape(items: list[_Item]) -> list[_Item]:
    return [0 if isinstance(item, int) else item for item in items]


def _upper(item: _Item) -> str:
    return item.upper() if isinstance(item, str) else ""


def _operand(item: _Item) -> bool:
    """Whether a minus behind it subtracts."""
    if isinstance(item, int) or item in (")", "]") or item.endswith('"'):
        return True
    return (item[0].isalnum() or item[0] in '_"' or item[0] >= "\x80") and item.upper() not in _BEFORE_A_VALUE


def _numbered(items: list[_Item]) -> Iterator[str]:
    """Values numbered by their first appearance: a parameter keeps its number wherever it comes again."""
    numbers: dict[int, int] = {}
    count = 0
    for item in items:
        if isinstance(item, str):
            yield item
            continue
        if item not in numbers or item == 0:
            count += 1
            numbers[item] = count
        yield f"${numbers[item]}"


def _spaced(items: Iterator[str]) -> str:
    """One space between items, none where SQL is commonly written without."""
    parts: list[str] = []
    last = ""
    for item in items:
        word = last[:1].isalpha() or last[:1] in ("_", '"')
        if (
            not last
            or last in ("(", "[", ".", "::")
            or item in (")", "]", ",", ";", ".", "[")
            or (item == "::" and (word or last in (")", "]") or last[0] == "$"))
            or (item == "(" and word and last.upper() not in _SPACED)
        ):
            parts.append(item)
        else:
            parts += (" ", item)
        last = item
    return "".join(parts)
