"""Findings on conditions that no index on their column can serve, because they compare an expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from perfkit.explain.facts import Index, Predicate, comparable, quoted, squeezed
from perfkit.explain.findings.model import (
    COLLATED,
    Finding,
    FindingContext,
    column_of,
    conditions,
    counted,
    explained,
    placed,
    plain,
    sifted,
    wasteful,
    why_unused,
)
from perfkit.explain.plan import Node
from perfkit.explain.rewrites import UNITS, Condition, Rewrite, as_condition, operand, rewritten

_SCANS = frozenset({"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan"})
# Functions of which every variant is IMMUTABLE, so that they can be indexed.
_IMMUTABLE = frozenset(
    "abs ascii bit_length btrim ceil ceiling char_length character_length chr coalesce decode encode floor greatest "
    "initcap least left length lower lpad ltrim md5 mod nullif octet_length repeat replace reverse right round rpad "
    "rtrim sha256 sign split_part sqrt strpos substr substring translate trim trunc upper jsonb_extract_path_text "
    "jsonb_array_length array_length cardinality regexp_replace".split()
)
_SAFE_CASTS = frozenset(
    ("integer", "bigint", "smallint", "numeric", "text", "real", "double precision", "boolean", "uuid", "character",
     "character varying")
)  # fmt: skip
_TS, _TZ = "timestamp without time zone", "timestamp with time zone"
# Functions and casts that depend on no setting, for types where others do.
_OF_TIMES = {
    _TS: (frozenset({"date_trunc", "date_part", "extract", "date"}), frozenset({"date", "time without time zone"})),
    "date": (frozenset({"date_part", "extract"}), frozenset({_TS})),
}
# Types whose conversion to text and calculations depend on no setting.
_PLAIN = ("text", "character", "smallint", "integer", "bigint", "numeric", "real", "double", "boolean", "uuid", "json")
_INTEGERS = ("smallint", "integer", "bigint")
_TRUNCATED = re.compile(rf"date_trunc\('(?P<unit>\w+)'(?:::text)?, \(?[\w\"$]+\)?(?:::{_TZ})?\)")
_YEAR = re.compile(r"(?:EXTRACT\(year FROM |date_part\('year')")
_CALCULATED = re.compile(r"(?P<column>\w+) (?P<sign>[-+]) (?P<by>\d{1,9})|(?P<first>\d{1,9}) \+ (?P<last>\w+)")


@dataclass(frozen=True, slots=True)
class Blocker:
    """What keeps an index from serving a condition, and the cure: a rewrite, or an index on the expression."""

    what: str  # the compared expression, in words
    rewrite: str = ""  # the condition that returns the same rows
    key: str = ""  # of an index on the expression
    hint: str = ""  # another way to write the condition, and which rows it would change
    found: Rewrite | None = None


def blocked_condition(context: FindingContext) -> Iterator[Finding]:
    """Find conditions on an expression, collation or pattern, which an index on the column alone cannot serve."""
    for node in context.plan.nodes:
        if node.kind not in _SCANS or not (found := sifted(context, node)) or not wasteful(context, node, found):
            continue
        every = conditions(context, node, "Filter")
        if explained(every, context.facts.of(node)) <= 2 * found.share:
            continue  # the other conditions explain the few rows
        for p in every:
            if not (block := blocks(context, node, p)) or added(block, p, every):
                continue
            advice, sql = _advice(context, node, p, block)
            yield context.finding(
                "blocked-condition",
                node,
                f"{_shown(p, node)} compares {block.what}, which an index on {_columns(p)} alone cannot serve: "
                f"{counted(found.seen, 'row')} of {node.relation} {'were' if context.plan.analyzed else 'will be'} "
                f"read to keep {found.few}.",
                advice,
                sql=sql,
            )


def blocks(context: FindingContext, node: Node, p: Predicate) -> Blocker | None:
    """Return what keeps an index on the column from serving a condition; None if nothing does, or no index could."""
    if len(p.columns) != 1 or p.operator.startswith("IS "):
        return None
    (name,) = p.columns
    alias, table = node.text("Alias"), context.facts.of(node)
    subject = plain(p.subject, alias)
    c = condition(context, node, p)
    if c.operator == "IS NOT DISTINCT FROM":
        found = rewritten(c)
        other = "" if found else f"{c.subject} = {c.value} returns the same rows only if neither side is null."
        return Blocker("with IS NOT DISTINCT FROM", _filled(found, name, c), hint=other, found=found)
    if not (p.equality or p.range or p.operator == "~~"):
        return None
    if collation := COLLATED.match(p.subject + " " + p.value):
        key = f"{subject.partition(' COLLATE')[0]} COLLATE {collation[1]}"
        return Blocker(f"in the collation {collation[1]}", key=key)
    if p.column:
        return _pattern(context, node, p)
    if comparable(p, table) or subject.startswith("ROW(") or (p.operator == "~~" and not p.prefix):
        return None
    if subject.lower().startswith(("position(", "strpos(")):
        return None  # a search inside a text, which a B-tree would not help
    if p.cast == "text" and c.type == "text":
        return Blocker(f"{name} in another collation", hint=f"Omit COLLATE, or create an index on {name} with it.")
    what = _what(c, quoted(name), p.cast)
    found = rewritten(c)
    itself = _expression(p, c, what, quoted(name), placed(context, node))
    # An index on the expression leaves the statement as it is; an existing index on the column needs only a rewrite.
    if found and found.sides and itself.key and not _ready(context, node, name):
        return itself
    if found:
        return Blocker(what, _filled(found, name, c), found=found)
    if c.type in _INTEGERS and p.cast in ("numeric", "double precision", "real") and p.operator == "=":
        return None  # no integer equals this constant
    return itself


def condition(context: FindingContext, node: Node, p: Predicate) -> Condition:
    """Return a predicate on one column in the form that rewrite rules read."""
    (name,) = p.columns
    alias, table = node.text("Alias"), context.facts.of(node)
    column = table.column(name) if table else None
    return as_condition(plain(p.text, alias), plain(p.subject, alias), p, column.type if column else "")


def added(block: Blocker, p: Predicate, others: Iterable[Predicate]) -> bool:
    """Return whether the statement already has the conditions that a rewrite adds."""
    there = {q.operator[0] for q in others if q.column in p.columns and (q.range or q.operator == "=")}
    return block.found is not None and bool(block.found.sides) and block.found.sides <= there


def _filled(found: Rewrite | None, name: str, c: Condition) -> str:
    text = c.text[1:-1] if c.text.startswith("(") and _closes(c.text) else c.text
    value = c.value.replace(f"::{_TZ}", "::timestamptz").replace(f"::{_TS}", "::timestamp")
    return found.filled(quoted(name), operand(value), text) if found else ""


def _advice(context: FindingContext, node: Node, p: Predicate, block: Blocker) -> tuple[str, str]:
    table = context.facts.of(node)
    (name,) = p.columns
    if block.rewrite:
        if ready := _ready(context, node, name):
            return f"Write {block.rewrite}, which the index {ready.name} serves.", ""
        return f"Write {block.rewrite}, and CREATE INDEX ON {placed(context, node)} ({quoted(name)}) to serve it.", ""
    if not block.key:
        return block.hint, ""
    wanted = squeezed(block.key.removesuffix(" text_pattern_ops"))
    for index in table.indexes if table else ():
        patterns = block.key.endswith(" text_pattern_ops")
        if index.keys[:1] == (quoted(name),) and "(" in block.key:
            continue  # squeezed, a cast to text is nothing
        if index.valid and not index.predicate and index.keys and squeezed(index.keys[0]) == wanted and not (
            patterns and "text_pattern_ops" not in index.definition
        ):  # fmt: skip
            return why_unused(context, node, index)
    what = "An index with this operator class" if p.column and p.prefix else "An index on the expression itself"
    what = f"An index on {name} in that collation" if " COLLATE " in block.key else what
    more = f" {block.hint}" if block.hint else ""
    return f"{what} serves it.{more}", f"CREATE INDEX ON {placed(context, node)} ({block.key})"


def _ready(context: FindingContext, node: Node, name: str) -> Index | None:
    """Return a valid index, not partial, whose first key is the column."""
    table = context.facts.of(node)
    own = (i for i in (table.indexes if table else ()) if i.keys[:1] == (quoted(name),))
    return next((i for i in own if i.valid and not i.predicate), None)


def _pattern(context: FindingContext, node: Node, p: Predicate) -> Blocker | None:
    """Return the blocker of LIKE 'x%' if the column has an index, but in the order of a language."""
    table = context.facts.of(node)
    if not p.prefix or not (name := column_of(p, table)):
        return None
    key = quoted(name)
    plain_ones: list[Index] = [i for i in (table.indexes if table else ()) if i.keys[:1] == (key,) and i.valid]
    if not plain_ones or any("_pattern_ops" in i.definition for i in plain_ones):
        return None
    return Blocker(f"the beginning of {key}, in a database that sorts by language", key=f"{key} text_pattern_ops")


def _what(c: Condition, name: str, cast: str) -> str:
    """Return the compared expression in words."""
    if cast == "date" or c.subject == f"date({name})":
        return f"the day of {name}"
    if cast:
        return f"{name} cast to {cast}"
    if found := _TRUNCATED.fullmatch(c.subject):
        return f"the {found['unit']} of {name}"
    if _YEAR.match(c.subject):
        return f"the year of {name}"
    return c.subject


def _expression(p: Predicate, c: Condition, what: str, name: str, where: str) -> Blocker:
    """Return a blocker with an index on the expression, if it can be indexed, and a hint at other conditions."""
    bare = re.sub(r"''(?:::[\w ]+\w)?", "''", re.sub(r"'(?:[^']|'')*'", "''", c.subject))
    bare = re.sub(r"(::[a-z ]+)\(\d+(?:,\d+)?\)", r"\1", bare)
    functions = {name.strip('"').lower() for name in re.findall(r'([\w."]+)\(', bare)}
    casts = {cast.strip() for cast in re.findall(r"::([a-z][a-z ]*[a-z])", bare)}
    call = re.fullmatch(r"[\w.]+\(.*\)", c.subject)
    key = c.subject if call and _closes(c.subject) else f"({c.subject})"
    key += " text_pattern_ops" if p.prefix else ""
    hint = _otherwise(c, name, p.cast)
    # A timestamptz AT TIME ZONE 'a constant' is a timestamp; a timestamp AT TIME ZONE is a timestamptz.
    zoned = bare.count(" AT TIME ZONE ''")
    kind = {_TZ: _TS, _TS: _TZ}.get(c.type, c.type) if zoned == 1 else "" if " AT TIME ZONE " in bare else c.type
    allowed = _OF_TIMES.get(kind, (_IMMUTABLE, _SAFE_CASTS) if kind.startswith(_PLAIN) else None)
    known = allowed is not None and functions <= allowed[0] and casts <= allowed[1] and not (casts and "[]" in kind)
    moving = re.search(r"\b(?:now\(\)|CURRENT_|LOCALTIME)", bare)
    if known and not moving and ("||" not in bare or c.type.startswith(("text", "character"))):
        return Blocker(what, key=key, hint=hint)
    hint = (
        hint
        or f"Comparing {name} with a range returns the same rows only if every row in the range meets the condition."
    )
    if kind == _TZ:
        return Blocker(
            what, hint=f"{hint} The expression cannot be indexed, because it may depend on the session's TimeZone."
        )
    if moving:
        return Blocker(what, hint=hint)
    possible = f"CREATE INDEX ON {where} ({key}), which is possible if all its functions are IMMUTABLE."
    return Blocker(what, hint=f"{hint} Or {possible}")


def _otherwise(c: Condition, name: str, cast: str) -> str:
    """Return another way to write the condition, and which rows it would change; "" if none is known."""
    if found := _TRUNCATED.fullmatch(c.subject):
        unit, step = found["unit"], "3 months" if found["unit"] == "quarter" else f"1 {found['unit']}"
        if c.value.startswith("'") and c.type == _TS and c.operator == "=":
            return f"No row meets it{':' if unit in UNITS else ' if'} {c.value} does not begin a {unit}."
        other = f"{name} >= {c.value} AND {name} < {c.value} + interval '{step}'" if c.operator == "=" else "a range"
        return f"Comparing {name} with a range ({other}) returns the same rows only if {c.value} begins a {unit}."
    if _YEAR.match(c.subject) or cast == "date" or c.subject == f"date({name})":
        return f"Comparing {name} with a range returns the same rows only if the range begins and ends at midnight."
    if cast:
        of = f" ({c.type})" if c.type else ""
        return (
            f"Comparing {name} with a value of its own type{of} returns different rows if the cast to {cast} changes "
            "a value."
        )
    if "age(" in c.subject or "::interval" in c.subject:
        return (
            f"Comparing {name} with the calculation on the other side returns different rows if it has months or days, "
            "which differ in length."
        )
    found, value = _CALCULATED.fullmatch(c.subject), re.fullmatch(r"-?\d{1,9}", c.value)
    if c.type in _INTEGERS and found and value:
        by = int(found["by"] or found["first"]) * (-1 if found["sign"] == "-" else 1)
        return (
            f"{name} {c.operator} {int(c.value) - by} returns the same rows and can use an index on {name}; it only "
            f"avoids the error if the calculation is out of range for {c.type}."
        )
    return ""


def _closes(subject: str) -> bool:
    """Return whether the last character closes the first parenthesis."""
    depth = 0
    bare = re.sub(r"'(?:[^']|'')*'", "''", subject)
    for at, letter in enumerate(bare):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return at == len(bare) - 1
    return False


def _columns(p: Predicate) -> str:
    return ", ".join(sorted(p.columns))


def _shown(p: Predicate, node: Node) -> str:
    text = plain(p.text, node.text("Alias"))
    text = text[1:-1] if text.startswith("(") and _closes(text) else text
    return text if len(text) <= 80 else text[:79] + "…"
