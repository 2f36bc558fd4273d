"""A text in which `$n` stands for every constant, made one that a server can prepare. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from perfkit.slow.placing import Lexeme, lexemes, placeholders

_TYPES = frozenset("interval date time timetz timestamp timestamptz uuid inet json jsonb".split())
_ZONED = re.compile(r"^time(?:stamp)? (?:with|without) time zone$")


def preparable(text: str) -> str:
    """The same where a placeholder stands for a constant that belongs to the name of its type, or to EXTRACT.

    >>> preparable("SELECT now() - interval $1, extract($2 FROM x), timestamp with time zone $3")
    'SELECT now() - $1::interval, date_part($2, x), $3::timestamp with time zone'
    """
    found, done, at = list(lexemes(text)), [], 0
    while at < len(found):
        ahead = found[at : at + 10] if found[at].word in _TYPES or found[at].word == "extract" else []
        if ahead and ahead[0].word == "extract":
            replaced, length = _extract(ahead)
        else:
            replaced, length = _typed(ahead)
        done.append(replaced or found[at].text)
        at += length or 1
    return "".join(done)


def cast(text: str, at: int, kind: str) -> str:
    """The same with the placeholder that an operator at a position (from 1) is followed or preceded by as a type.

    >>> cast("SELECT x::date + $1", 16, "integer")
    'SELECT x::date + $1::integer'
    """
    done, place, before, after = [], 1, -1, -1
    for n, lexeme in enumerate(lexemes(text)):
        if lexeme.kind == "placeholder":
            before, after = (n, after) if place < at else (before, n if after < 0 else after)
        elif lexeme.kind != "space" and place < at:
            before = -1
        elif lexeme.kind != "space" and place > at and after < 0:
            after = n  # something else
        done.append(lexeme.text)
        place += len(lexeme.text)
    chosen = next((n for n in (after, before) if n >= 0 and re.fullmatch(r"\$\d+", done[n])), None)
    if chosen is not None:
        done[chosen] += f"::{kind}"
    return "".join(done)


def cast_number(text: str, number: int, kind: str) -> str:
    """The same with every placeholder of a number as a type.

    >>> cast_number("SELECT jsonb_build_object($1, x)", 1, "text")
    'SELECT jsonb_build_object($1::text, x)'
    """
    casts = {f"${number}": f"${number}::{kind}"}
    return "".join(casts.get(x.text, x.text) if x.kind == "placeholder" else x.text for x in lexemes(text))


def unified(text: str) -> str:
    """The same where what is grouped or ordered by is again what is selected: one constant had got several numbers.

    >>> unified("SELECT date_trunc($1, x), count(*) FROM t GROUP BY date_trunc($2, x)")
    'SELECT date_trunc($1, x), count(*) FROM t GROUP BY date_trunc($1, x)'
    """
    pieces = list(lexemes(text))
    meant = [at for at, piece in enumerate(pieces) if piece.kind != "space"]
    words = [pieces[at].word for at in meant]
    grouped = next((n for n, two in enumerate(pairwise(words)) if two == ("group", "by")), len(words))
    first: dict[tuple[str, ...], list[int]] = {}
    for start in range(len(meant) - 1):
        if pieces[meant[start]].kind == "name" and pieces[meant[start + 1]].text == "(":
            call = _call(pieces, meant[start:])
            key = tuple("$" if pieces[at].kind == "placeholder" else pieces[at].word for at in call)
            for at, same in zip(call, first.setdefault(key, call), strict=True):
                if start > grouped and pieces[at].kind == "placeholder":
                    pieces[at] = pieces[same]
    left = {f"${old}": f"${new}" for new, old in enumerate(placeholders("".join(p.text for p in pieces)), 1)}
    return "".join(left[p.text] if p.kind == "placeholder" else p.text for p in pieces)


def _typed(ahead: Sequence[Lexeme]) -> tuple[str, int]:
    """A placeholder after a type's name as a cast, and how many pieces that replaces; 0 where there is none."""
    for length, lexeme in enumerate(ahead):
        if lexeme.kind == "placeholder":
            kind = " ".join(x.word for x in ahead[:length] if x.kind == "name")
            plain = kind in _TYPES or _ZONED.search(kind)
            return (f"{lexeme.text}::{kind}", length + 1) if plain else ("", 0)
        if lexeme.kind not in ("space", "name"):
            break
    return "", 0


def _extract(ahead: Sequence[Lexeme]) -> tuple[str, int]:
    """`extract($1 from` as the function it stands for, likewise."""
    words = [(n, x) for n, x in enumerate(ahead) if x.kind != "space"][:4]
    if [x.word for _, x in words[1::2]] == ["(", "from"] and words[2][1].kind == "placeholder":
        return f"date_part({words[2][1].text},", words[3][0] + 1
    return "", 0


def _call(pieces: Sequence[Lexeme], places: Sequence[int]) -> list[int]:
    """Where the pieces of a function's call stand, from its name to the parenthesis that ends it."""
    depth = 0
    for n, at in enumerate(places):
        depth += {"(": 1, ")": -1}.get(pieces[at].text, 0)
        if n and not depth:
            return list(places[: n + 1])
    return []
