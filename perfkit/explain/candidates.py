"""Conditions of a plan, and the index that each asks for.

PostgreSQL prints every operation in parentheses of its own, so that splitting at the outermost level is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from perfkit.explain.facts import Index, TableFacts
from perfkit.postgres.databases import KEYWORDS

_TOKEN = re.compile(
    r"""(?P<string>[EBX]?'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*"|[^\W\d][\w$]*)|(?P<open>[(\[])|(?P<close>[)\]])"""
    r"""|(?P<cast>::)|(?P<operator>[-+*/<>=~!@#%^&|`?]+)|(?P<other>\$\d+|\d[\w.]*|\S)""",
    re.IGNORECASE,
)
_SUBPLAN = re.compile(r"\((?:hashed )?SubPlan \w+\)|\((?:alternatives: )?(?:hashed )?SubPlan [^()]*\)", re.IGNORECASE)
_WORDS = frozenset(
    "and or not is null true false any all some array row case when then else end distinct from in like ilike similar "
    "between collate at time zone interval date timestamp current_date current_timestamp current_user localtime "
    "localtimestamp session_user user unknown operator escape to initplan subplan hashed exists".split()
)
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "= ANY": "ANY ="}  # the last: a value in the column's array
_RANGES = frozenset({"<", "<=", ">", ">=", "~<~", "~<=~", "~>~", "~>=~"})


@dataclass(frozen=True, slots=True)
class Predicate:
    """One condition on a table: `subject operator value`; `column` is set where the subject is a column alone."""

    text: str
    subject: str
    operator: str  # as printed: "=", "= ANY", "~~", "IS NULL", ...; "OR" and "" where there is no single one
    value: str
    column: str
    columns: frozenset[str]  # of the table, in the subject
    joined: bool  # the value is another table's

    @property
    def equality(self) -> bool:
        """Whether it fixes its subject to one value or a few."""
        return self.operator in ("=", "= ANY", "IS NULL", "IS TRUE", "IS FALSE")

    @property
    def range(self) -> bool:
        """Whether it bounds its subject on a side."""
        return self.operator in _RANGES

    @property
    def prefix(self) -> bool:
        """Whether it is a LIKE that fixes the beginning."""
        return self.operator == "~~" and bool(re.match(r"'[^%_\\']", self.value))

    @property
    def cast(self) -> str:
        """The type that the column is cast to, where a cast is all that is done to it."""
        found = re.fullmatch(r"\(?([\w.\"$]+)\)?::([\w .\"]+(?:\(\d+(?:,\d+)?\))?)", self.subject)
        return found[2] if found and len(self.columns) == 1 else ""


@lru_cache(maxsize=4096)
def predicates(condition: str, alias: str = "", names: frozenset[str] | None = None) -> tuple[Predicate, ...]:
    """The conditions that must all hold, of those that say something about the table called `alias`.

    `names` are the table's columns where they are known. A condition that is not understood has no operator.
    """
    return tuple(found for text in _split(_bare(condition), "and") if (found := _predicate(text, alias, names)))


def alternatives(predicate: Predicate) -> tuple[str, ...]:
    """The conditions of an OR, of which one must hold."""
    return tuple(_split(predicate.subject, "or")) if predicate.operator == "OR" else ()


def _predicate(text: str, alias: str, names: frozenset[str] | None) -> Predicate | None:
    inner = _bare(text)
    own = columns_in(inner, alias, names)
    if not own:
        return None
    whole = Predicate(text, inner, "", "", "", own, False)
    if _SUBPLAN.search(unquoted(inner)):
        return whole
    if len(_split(inner, "or")) > 1:
        return Predicate(text, inner, "OR", "", "", own, False)
    left, operator, right = _operation(inner)
    if not operator:
        negated = inner.lower().startswith("not ")
        subject = _bare(inner[4:] if negated else inner)
        column = _column(subject, own)
        return Predicate(text, subject, "IS TRUE", str(not negated).lower(), column, own, False) if column else whole
    if not columns_in(left, alias, names):
        left, right, operator = right, left, _FLIPPED.get(operator, operator)
    subject, mine = _bare(left), columns_in(left, alias, names)
    if columns_in(right, alias, names):
        return whole  # compared with itself
    return Predicate(text, subject, operator, right, _column(subject, mine), mine, _qualified(right, alias))


def _operation(text: str) -> tuple[str, str, str]:
    """Left side, operator and right side of the operation at the outermost level; no operator where there is none."""
    if found := re.fullmatch(r"(?s)(.+) (IS (?:NOT )?(?:NULL|TRUE|FALSE|UNKNOWN))", text):
        return found[1], found[2], ""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += bool(token["open"]) - bool(token["close"])
        if depth == 0 and token["operator"] and token.start():
            right = text[token.end() :].strip()
            if quantified := re.match(r"(?i)(ANY|ALL) ?(?=\()", right):
                return (
                    text[: token.start()].strip(),
                    f"{token[0]} {quantified[1].upper()}",
                    _bare(right[quantified.end() :]),
                )
            return text[: token.start()].strip(), token[0], right
        if depth == 0 and (found := re.match(r"IS (NOT )?DISTINCT FROM", text[token.start() :])):
            return text[: token.start()].strip(), found[0], text[token.start() + found.end() :].strip()
    return text, "", ""


def _split(text: str, word: str) -> list[str]:
    """The parts between a word at the outermost level."""
    parts, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        depth += bool(token["open"]) - bool(token["close"])
        if depth == 0 and token["name"] and token[0].lower() == word:
            parts.append(text[start : token.start()].strip())
            start = token.end()
    return [*parts, text[start:].strip()]


def _bare(text: str) -> str:
    """Without the parentheses around all of it."""
    text = text.strip()
    while text.startswith("(") and text.endswith(")"):
        depth = 0
        for token in _TOKEN.finditer(text):
            depth += bool(token["open"]) - bool(token["close"])
            if depth == 0:
                break
        if depth or token.end() != len(text):
            break
        text = text[1:-1].strip()
    return text


def columns_in(text: str, alias: str, names: frozenset[str] | None) -> frozenset[str]:
    """The columns of the table called `alias` in a text; `names` are all that it has, where they are known."""
    return frozenset(column for qualifier, column in _references(text) if _is_own(qualifier, column, alias, names))


def _qualified(text: str, alias: str) -> bool:
    """Whether a column of another table is in it."""
    return any(qualifier not in ("", alias) for qualifier, _ in _references(text))


def _is_own(qualifier: str, column: str, alias: str, names: frozenset[str] | None) -> bool:
    if qualifier:
        return qualifier == alias or not alias
    return column in names if names is not None else True


def _references(text: str) -> Iterator[tuple[str, str]]:
    """(qualifier or "", column) of every column named in a text."""
    tokens = list(_TOKEN.finditer(text))
    casting = False
    for at, token in enumerate(tokens):
        if token["cast"]:
            casting = True
            continue
        if not token["name"]:
            casting = casting and token[0] in ".[]"
            continue
        following = tokens[at + 1][0] if at + 1 < len(tokens) else ""
        before = tokens[at - 1][0] if at else ""
        if casting:  # the name of a type, of several words perhaps
            casting = following not in ("", ")", ",") and tokens[at + 1]["operator"] is None
            continue
        if following in ("(", ".", "FROM") or (token[0].lower() in _WORDS and before != "."):
            continue
        qualifier = _name(tokens[at - 2][0]) if before == "." and at >= 2 and tokens[at - 2]["name"] else ""
        if before != "." or qualifier:
            yield qualifier, _name(token[0])


def _column(subject: str, own: frozenset[str]) -> str:
    """The column that a subject is, without its qualifier; "" where more is done to it."""
    found = re.fullmatch(r'(?:(?:"(?:[^"]|"")*"|[\w$]+)\.)?("(?:[^"]|"")*"|[^\W\d][\w$]*)', subject)
    return _name(found[1]) if found and _name(found[1]) in own else ""


def _name(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def unquoted(text: str) -> str:
    """SQL whose string literals are empty."""
    return re.sub(r"'(?:[^']|'')*'", "''", text)


def squeezed(expression: str) -> str:
    """An expression without what the planner's and the catalogue's spelling differ in."""
    return re.sub(r"[\s()]|::text", "", expression)


# An index for a condition: equality first, then the order that is wanted, then one range.

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An index that would serve a condition: the statement, or the index that is there already."""

    sql: str
    columns: tuple[str, ...]
    existing: Index | None = None


def candidate(
    schema: str, relation: str, conditions: Iterable[Predicate], table: TableFacts | None, order: Sequence[str] = ()
) -> Candidate | None:
    """An index on the columns that are compared as they are; None where nothing in the conditions can use one.

    `order` are columns wanted in this order after the equality columns. An index of the same leading columns is
    returned as existing, one that is broken or partial is not.
    """
    usable = [(column, p) for p in conditions if (column := comparable(p, table))]
    equal = list(dict.fromkeys(column for column, p in usable if p.equality))
    if table:
        equal.sort(key=lambda name: -distinct(table, name))
    ranged = [(column, p) for column, p in usable if (p.range or p.prefix) and column not in equal]
    last = [name for name in order if name not in equal] or [column for column, _ in ranged[:1]]
    if not (columns := (*equal, *last)):
        return None
    keys = [quoted(name) for name in columns]
    if not order and ranged and ranged[0][1].prefix:
        keys[-1] += " text_pattern_ops"
    where = f"{quoted(schema)}.{quoted(relation)}" if schema not in ("", "public") else quoted(relation)
    return Candidate(f"CREATE INDEX ON {where} ({', '.join(keys)})", columns, _existing(table, keys, len(equal)))


def comparable(predicate: Predicate, table: TableFacts | None) -> str:
    """The column whose plain index serves a condition; "" where none would.

    PostgreSQL compares varchar as text and prints a cast, which costs nothing and blocks no index.
    """
    if predicate.column or predicate.cast != "text":
        return predicate.column
    (name,) = predicate.columns
    column = table.column(name) if table else None
    return name if column is None or column.type.startswith("character varying") else ""


def quoted(name: str) -> str:
    """Return a name as PostgreSQL's quote_ident writes it.

    >>> quoted("visits"), quoted("Day"), quoted("order"), quoted("left"), quoted("a$b")
    ('visits', '"Day"', '"order"', '"left"', '"a$b"')
    """
    plain = _PLAIN.fullmatch(name) and name not in KEYWORDS
    return name if plain else '"' + name.replace('"', '""') + '"'


def _existing(table: TableFacts | None, keys: Sequence[str], equal: int) -> Index | None:
    """A whole, valid B-tree that begins with these keys; those for equality in any order."""
    for index in table.indexes if table else ():
        begins = [re.sub(r" (ASC|DESC)?( NULLS \w+)?$", "", key) for key in index.keys[: len(keys)]]
        same = set(begins[:equal]) == set(keys[:equal]) and begins[equal:] == list(keys[equal:])
        if index.method == "btree" and index.valid and not index.predicate and same and len(begins) == len(keys):
            return index
    return None


def distinct(table: TableFacts, name: str) -> float:
    """How many values a column has, as far as the statistics tell."""
    column = table.column(name)
    if column is None or column.distinct is None:
        return 0.0
    return column.distinct if column.distinct >= 0 else -column.distinct * table.rows
