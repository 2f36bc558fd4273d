"""SQL text: its tokens, its single statements, and their normalised form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from perfkit.base.errors import UsageError

# The keywords that `quote_ident` quotes: SELECT word FROM pg_get_keywords() WHERE catcode <> 'U'.
# Some of them may name a column but not an index key (`left`, `verbose`), others the other way round (`coalesce`).
# This is the list of PostgreSQL 18. Older versions have fewer keywords, and a quoted name is right in every version.
KEYWORDS = frozenset(
    """
all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case cast
char character check coalesce collate collation column concurrently constraint create cross current_catalog
current_date current_role current_schema current_time current_timestamp current_user dec decimal default deferrable
desc distinct do else end except exists extract false fetch float for foreign freeze from full grant greatest group
grouping having ilike in initially inner inout int integer intersect interval into is isnull join json json_array
json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize json_table json_value
lateral leading least left like limit localtime localtimestamp merge_action national natural nchar none normalize
not notnull null nullif numeric offset on only or order out outer overlaps overlay placing position precision
primary real references returning right row select session_user setof similar smallint some substring symmetric
system_user table tablesample then time timestamp to trailing treat trim true union unique user using values varchar
variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces
xmlparse xmlpi xmlroot xmlserialize xmltable
""".split()
)

# PostgreSQL's lexical rules: white space is ASCII, and every character above ASCII may be part of a name. Nothing is
# refused here: a quote or comment that a truncated text leaves open reaches to the end. Repetitions are possessive or
# bounded: a doubled quote does not end a string, and no part of a text is read again and again. An operator has at most
# 63 bytes.
_LETTER = r"A-Za-z_\x80-\U0010ffff"
_ESCAPED = r"(?:[^'\\]++|''|\\.)*+"
_NEXT_LINE = (
    r"(?:[ \t\f\v]*(?:--[^\n\r]*)?[\n\r](?:[ \t\f\v\n\r]|--[^\n\r]*[\n\r])*'"  # a string continued on the next line
)
_SIGN = r"(?!--|/\*)[-+*/<>=]"
_ANY_SIGN = r"(?!--|/\*)[-+*/<>=~!@#%^&|`?]"


@cache
def _token() -> re.Pattern[str]:
    """Return the pattern of a token; compiled late, because every load worker imports this module and needs none."""
    return re.compile(
        rf"""(?P<word>(?![eEbBxXnN]'|[uU]&['"])[{_LETTER}][{_LETTER}0-9$]*)
    |(?P<blank>[ \t\n\r\f\v]+|--[^\n\r]*)
    |(?P<mark>[(),;\[\]]|\.(?![0-9]))
    |(?P<number>0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+
        |(?:[0-9][0-9_]*(?:\.(?!\.)[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?)
    |(?P<string>(?:[bBxXnN]|[uU]&)?'[^']*+(?:''[^']*+)*+'
        |[eE]'{_ESCAPED}'{_NEXT_LINE}{_ESCAPED}')*
        |\$(?P<tag>(?:[{_LETTER}][{_LETTER}0-9]*)?)\$.*?\$(?P=tag)\$)
    |(?P<parameter>\$[0-9]{{1,9}})
    |(?P<comment>/\*)
    |(?P<quoted>(?:[uU]&)?"(?:[^"]|"")*+")
    |(?P<sign>::|(?:{_SIGN}){{0,63}}(?=[~!@#%^&|`?])(?:{_ANY_SIGN}){{1,64}}|(?:{_SIGN}){{0,63}}(?!/\*)[*/<>=]|[-+]|:=?)
    |(?P<open>(?:(?:[bBxXnNeE]|[uU]&)?'|(?:[uU]&)?"|\$(?:[{_LETTER}][{_LETTER}0-9]*)?\$).*)
    |(?P<other>.)""",
        re.VERBOSE | re.DOTALL,
    )


_COMMENT = re.compile(r"/\*|\*/")

_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


class Token(NamedTuple):
    """A piece of SQL: word, quoted (a name), string, number, parameter (`$1`), mark, sign, blank, open or other."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The text; a word in lower case."""
        return self.text.lower() if self.kind == "word" else self.text

    @property
    def number(self) -> int:
        """The number of a parameter."""
        return int(self.text[1:])


def scan(text: str, *, blanks: bool = True) -> Iterator[Token]:
    """Yield a whole text in tokens, as PostgreSQL's scanner cuts it; comments are blank, what is not closed is open."""
    # A guard reads every statement by this loop, and one may have 400,000 tokens: it does no work twice.
    start, length, next_match, new = 0, len(text), _token().match, tuple.__new__  # by which a token costs half
    while start < length and (match := next_match(text, start)):
        kind, end = match.lastgroup or "", match.end()
        if kind == "tag":
            kind = "string"
        elif kind == "comment":
            end = _end_of_comment(text, start)
            kind, end = ("blank", end) if end else ("open", length)
        if blanks or kind != "blank":
            yield new(Token, (kind, text[start:end], start, end))
        start = end


def tokens(source: str, where: str = "") -> Iterator[Token]:
    """Yield a text's tokens but blanks. Raises UsageError for an unclosed quote or comment, or an unknown sign."""
    for token in scan(source, blanks=False):
        if token.kind in ("open", "other") or token.text in ('""', "\0"):
            line = source.count("\n", 0, token.start) + 1
            rest = source[token.start :].splitlines()[0][:40] or repr(source[token.start])
            expected = "expected SQL whose quotes and comments are closed"
            at = f"{where}:{line}" if where else f"line {line}"
            raise UsageError(f"{at}: {rest!r}: SQL that cannot be read; {expected}")
        yield token


def ends_operand(item: str) -> bool:
    """Return whether a token ends an operand, so that an operator follows, and a minus subtracts."""
    if item in (")", "]") or item.endswith('"'):
        return True
    return (item[:1].isalnum() or item[:1] in ("_", "$") or item[:1] >= "\x80") and item.upper() not in _BEFORE_A_VALUE


def _end_of_comment(source: str, start: int) -> int:
    """Return the end of the comment that starts here; 0 if it is not closed. Comments can be nested."""
    depth = 0
    for mark in _COMMENT.finditer(source, start):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return 0


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as written in its file, without the semicolon, and its first line."""

    text: str
    line: int


def split(sql: str, where: str = "") -> list[Statement]:
    r"""Return the statements of a text. Semicolons in quotes, comments, parentheses and routine bodies end none.

    Raises UsageError, with `where` the text is from, if the text cannot be read.

    >>> [s.text for s in split("SELECT ';' ; -- one; two\nSELECT $$;$$")]
    ["SELECT ';'", 'SELECT $$;$$']
    >>> len(split("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3"))
    2
    """
    sql = sendable(sql, where or "SQL")
    statements: list[Statement] = []
    first: Token | None = None  # of the current statement; its tokens are not kept: a file may have millions
    line, counted, end, parentheses, body, before = 1, 0, 0, 0, 0, ""
    for token in tokens(sql, where):
        word = token.text.upper() if token.kind in ("word", "mark") else ""
        if first is None and word != ";":
            first, line, counted = token, line + sql.count("\n", counted, token.start), token.start
        parentheses += (word == "(") - (word == ")")
        if (before, word) == ("BEGIN", "ATOMIC"):
            body = 1
        elif body:  # the body ends at an END that belongs to no CASE, as in psql
            body += (word == "CASE") - (word == "END")
        if word == ";" and parentheses <= 0 and not body:
            statements += [Statement(sql[first.start : end], line)] if first else []
            first, parentheses = None, 0
        else:
            end = token.end
        before = word
    return [*statements, Statement(sql[first.start : end], line)] if first else statements


def sendable(text: str, what: str = "a text for the server") -> str:
    """Return the text. Raises UsageError, with the line, for a character that no server accepts: NUL, half a surrogate.

    A NUL would cut the text off, and the server would get another text than perfkit checked.
    """
    if match := _UNSENDABLE.search(text):
        line, code = text.count("\n", 0, match.start()) + 1, ord(match[0])
        raise UsageError(f"{what}: the character U+{code:04X} in line {line}; expected text in UTF-8 without it")
    return text


def first_word(sql: str) -> str:
    """Return the first word of a statement in capitals, after any parentheses and comments.

    >>> first_word("/* all /* of it */ */ (select 1)")
    'SELECT'
    """
    return next((token.text.upper() for token in tokens(sql) if token.text != "("), "")


def substitute(sql: str, variables: Mapping[str, int]) -> str:
    """Replace `:name` by its number; keep `::type` casts and unknown names.

    >>> substitute("SELECT :rows::int, :other", {"rows": 5})
    'SELECT 5::int, :other'
    """
    return re.sub(r"(?<!:):([a-z_]+)\b", lambda m: str(variables[m[1]]) if m[1] in variables else m[0], sql)


def comment(sql: str) -> str:
    """The first comment line of a file, which says what it is for."""
    first = sql.lstrip().splitlines()[0] if sql.strip() else ""
    return first.removeprefix("--").strip() if first.startswith("--") else ""


def read(path: Path) -> str:
    """Return the text of a SQL file. Raises UsageError if the file cannot be read."""
    try:
        return sendable(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: cannot be read ({reason}); expected a file in UTF-8") from None


# Normalised statements: texts without values, by which executions of the same statement are recognised.

# After these words a minus belongs to the number behind it; after any other word it subtracts.
_BEFORE_A_VALUE = frozenset(
    "ALL AND ANY AS BETWEEN BY CASE DEFAULT DISTINCT ELSE FROM HAVING ILIKE IN IS LIKE LIMIT NOT OFFSET ON OR "
    "RETURNING SELECT SET THEN TO UNION USING VALUES WHEN WHERE".split()
)
_SPACED = _BEFORE_A_VALUE | {"EXCEPT", "EXISTS", "FILTER", "INTERSECT", "INTO", "JOIN", "LATERAL", "OVER", "WITH"}
_ENDS_BY = frozenset("FETCH FOR FROM HAVING SELECT SET VALUES WHERE WINDOW".split())
_MOST = 50_000  # maximum number of tokens; the rest of a text is ignored
_NORMAL_PLAIN = re.compile(r"""("[^"]*(?:"|\Z))|'[^']*(?:'|\Z)|(?<![\w$.])\d+(?:\.\d+)?(?![\w.])""")
_DOLLAR = re.compile(r"\$(?!\d)")
_BY = re.compile(r"""\bBY\b(?:(?!(?<!")\b(?:LIMIT|OFFSET)\b).)*?(?<![\w$.])\d""", re.IGNORECASE | re.DOTALL)
_REMEMBERED, _SHORT = 4_000, 4_000  # number of cached texts; maximum length of a cached text

_Item = str | int  # an integer is a value: the number of its parameter, 0 for a constant


def normal(text: str) -> str:
    """Return the text with `$1`, `$2`, ... for its values in order of appearance, without comments, evenly spaced.

    A list of values after IN or in ARRAY[] counts as one value, and rows of values with the same shape as one row.
    Column numbers in ORDER BY and GROUP BY are not values. A normalised text stays unchanged.

    >>> normal("select * from t1 where id = -7 and day in ('a', 'b') -- now")
    'select * from t1 where id = $1 and day in ($2)'
    """
    return _spaced(_numbered(_items(text)))


def digest(text: str) -> str:
    """Return sixteen characters that identify a normalised text if the server has no id for it."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class Normals:
    """A cache of normalised texts: most statements of a log repeat, often with other values."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, text: str) -> str:
        """Return the normalised text, as `normal` does."""
        if (cached := self._known.get(text)) is not None:
            return cached
        if len(text) > _SHORT:
            return normal(text)
        key = _skeleton(text)
        if (cached := self._known.get(key)) is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            cached = self._known[key] = normal(text)
        return cached


def _skeleton(text: str) -> str:
    """Return a text with its plain values replaced, quickly; the text itself if it has other values.

    Texts with the same skeleton have the same normalised text.
    """
    if "\\" in text or "--" in text or "/*" in text or "\0" in text or _DOLLAR.search(text):
        return text
    key = _NORMAL_PLAIN.sub(lambda match: match[1] or ("'" if match[0][0] == "'" else "0"), text)
    return text if _BY.search(key) else key


def _items(text: str) -> list[_Item]:
    """Return the items of a text, with lists of values folded."""
    out: list[_Item] = []
    opened: list[int] = []  # positions of the open brackets
    row = (0, 0)  # the first row after VALUES, with its brackets
    by = -1  # depth of the current ORDER BY or GROUP BY, whose plain numbers are columns
    after_string = False
    for kind, piece, start, _ in islice(scan(text, blanks=False), _MOST):
        if piece == "\0" or piece[:2] == "/*":  # the latter: a comment that was cut off
            continue
        if kind == "open":  # a value or name that was cut off
            kind = "quoted" if piece[0] == '"' or piece[1:3] == '&"' else "string"
        if kind == "string":
            if not after_string:  # consecutive strings are one string
                out.append(0)
        elif kind == "parameter":
            out.append(int(piece[1:]))
        elif kind == "number":
            if by == len(opened) and piece.isdigit() and (out[-1] == "," or _upper(out[-1]) == "BY"):
                out.append(piece)
            else:
                if out and out[-1] in ("-", "+") and not _ends_operand(out[-2] if len(out) > 1 else "("):
                    out.pop()
                out.append(0)
        elif piece in ("(", "["):
            opened.append(len(out))
            out.append(piece)
        elif piece in (")", "]"):
            start = opened.pop() if opened else 0
            by = -1 if len(opened) < by else by
            before = out[start - 1] if start else ""
            if _upper(before) in ("IN", "ARRAY"):
                _fold(out, start)
            out.append(piece)
            if _upper(before) == "VALUES":
                row = (start, len(out))
            elif before == "," and row[1] == start - 1 and _shape(out[start:]) == _shape(out[row[0] : row[1]]):
                del out[start - 1 :]
        else:
            if kind == "word":
                word = piece.upper()
                ended = word in ("LIMIT", "OFFSET") or (word in _ENDS_BY and by == len(opened))
                by = len(opened) if word == "BY" else -1 if ended else by
            out.append(piece)
        after_string = kind == "string"
    while out and out[-1] == ";":
        out.pop()
    return out


def _fold(out: list[_Item], start: int) -> None:
    """Keep only the first value since a bracket if it holds nothing but values, with or without casts."""
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


def _ends_operand(item: _Item) -> bool:
    return isinstance(item, int) or ends_operand(item)


def _numbered(items: list[_Item]) -> Iterator[str]:
    """Yield items with values numbered by first appearance; a repeated parameter keeps its number."""
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
    """Join items with one space, or without one where SQL usually has none."""
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
