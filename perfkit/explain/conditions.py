"""The index that a condition asks for: on its columns, on its expression, or none without a rewrite."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from perfkit.explain.facts import Index, PlanFacts, Predicate, TableFacts, bare, predicates, qualified, quoted
from perfkit.explain.plan import Node
from perfkit.explain.rewrites import NOT_DISTINCT, UNITS, Condition, Rewrite, operand, rewritten

SCANS = frozenset({"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan"})
COLLATED = re.compile(r"""(?s)^(?:'(?:[^']|'')*'|[^'])*?COLLATE ((?:"[^"]+"|\w+)(?:\.(?:"[^"]+"|\w+))?)""")
_UNSTABLE = re.compile(r"\b(?:random|clock_timestamp|nextval|timeofday|gen_random_uuid)\(")
_OWN = r"""'(?:[^']|'')*'|(?P<own>(?:"(?:[^"]|"")*"|[^\W\d][\w$]*)\.)(?=["\w])"""


# The conditions of a scan, and the plain columns that an index serves them by.


def conditions(facts: PlanFacts, node: Node, *keys: str, join: str = "") -> tuple[Predicate, ...]:
    """Return a scan's distinct conditions of these kinds, parsed, and those on its table in a join's condition."""
    table = facts.of(node)
    names = frozenset(column.name for column in table.columns) if table else None
    alias = node.alias or node.table
    texts = [*(text for key in keys for text in node.texts(key)), *([join] if join else [])]
    return tuple(dict.fromkeys(p for text in texts for p in predicates(text, alias, names)))


def plain(text: str, alias: str) -> str:
    """Return an expression without the table's name in front of its columns.

    >>> plain("lower(v.note) = 'v.x'::text", "v")
    "lower(note) = 'v.x'::text"
    """
    names = (alias + ".", f'"{alias.replace(chr(34), chr(34) * 2)}".')
    return re.sub(_OWN, lambda m: "" if m["own"] in names else m[0], text)


def comparable(predicate: Predicate, table: TableFacts | None) -> str:
    """Return the column whose plain index serves a condition; "" if there is none.

    PostgreSQL compares varchar as text and prints a cast, which costs nothing and blocks no index.
    """
    if predicate.column or predicate.cast != "text":
        return predicate.column
    (name,) = predicate.columns
    column = table.column(name) if table else None
    return name if column is None or column.type.startswith("character varying") else ""


def column_of(predicate: Predicate, table: TableFacts | None) -> str:
    """Return the column whose plain index serves a condition; "" if a collation or a volatile value prevents it."""
    if COLLATED.match(predicate.subject + " " + predicate.value) or _UNSTABLE.search(predicate.value):
        return ""
    column = table.column(predicate.column) if table and predicate.column else None
    if column and column.type in ("json", "xml", "point", "box", "polygon", "tsvector"):
        return ""
    return comparable(predicate, table)


def usable(found: Iterable[Predicate], table: TableFacts | None) -> list[Predicate]:
    """Return the conditions that an index on the plain column serves."""
    return [p for p in found if (p.equality or p.range or p.prefix) and column_of(p, table)]


def explained(found: Sequence[Predicate], table: TableFacts | None) -> float:
    """Return the share of rows that equality conditions keep, by the statistics; 1 if these know nothing."""
    columns = {p.column for p in usable(found, table) if p.operator == "="}
    known = [table.column(name) for name in columns] if table else []
    counts = [c.distinct if c.distinct > 0 else -c.distinct * (table.rows if table else 0.0) for c in known
              if c and c.distinct]  # fmt: skip
    return prod(1 / max(count, 1.0) for count in counts)


def distinct(table: TableFacts, name: str) -> float:
    """Return the number of distinct values of a column by the statistics; 0 if unknown."""
    column = table.column(name)
    if column is None or column.distinct is None:
        return 0.0
    return column.distinct if column.distinct >= 0 else -column.distinct * table.rows


# The B-tree for conditions: columns of equality first, then those of the order, then one range.


def home(facts: PlanFacts, node: Node) -> tuple[str, str]:
    """Return schema and name of the table to index: for a partition, the partitioned table."""
    table = facts.of(node)
    if table and table.parent:
        return table.parent
    return (table.schema if table else node.schema), node.table


def placed(facts: PlanFacts, node: Node) -> str:
    """Return the table to index as SQL writes its name."""
    return qualified(*home(facts, node))


# Conditions on an expression, which an index on the column alone cannot serve.

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


def blocks(facts: PlanFacts, node: Node, p: Predicate) -> Blocker | None:
    """Return what keeps an index on the column from serving a condition; None if nothing does, or no index could."""
    if len(p.columns) != 1 or p.operator.startswith("IS "):
        return None
    (name,) = p.columns
    alias, table = node.alias, facts.of(node)
    subject = plain(p.subject, alias)
    c = condition(facts, node, p)
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
        return _pattern(facts, node, p)
    if comparable(p, table) or subject.startswith("ROW(") or (p.operator == "~~" and not p.prefix):
        return None
    if subject.lower().startswith(("position(", "strpos(")):
        return None  # a search inside a text, which a B-tree would not help
    if p.cast == "text" and c.type == "text":
        return Blocker(f"{name} in another collation", hint=f"Omit COLLATE, or create an index on {name} with it.")
    what = _what(c, quoted(name), p.cast)
    found = rewritten(c)
    itself = _expression(p, c, what, quoted(name), placed(facts, node))
    # An index on the expression leaves the statement as it is; an existing index on the column needs only a rewrite.
    if found and found.sides and itself.key and not ready(facts, node, name):
        return itself
    if found:
        return Blocker(what, _filled(found, name, c), found=found)
    if c.type in _INTEGERS and p.cast in ("numeric", "double precision", "real") and p.operator == "=":
        return None  # no integer equals this constant
    return itself


def condition(facts: PlanFacts, node: Node, p: Predicate) -> Condition:
    """Return a predicate on one column in the form that rewrite rules read."""
    (name,) = p.columns
    alias, table = node.alias, facts.of(node)
    column = table.column(name) if table else None
    kind, text = column.type if column else "", plain(p.text, alias)
    if not p.operator and (negated := NOT_DISTINCT.fullmatch(text)):
        return Condition(text, negated["column"], "IS NOT DISTINCT FROM", negated["value"], kind)
    return Condition(text, plain(p.subject, alias), p.operator, bare(p.value), kind)


def added(block: Blocker, p: Predicate, others: Iterable[Predicate]) -> bool:
    """Return whether the statement already has the conditions that a rewrite adds."""
    there = {q.operator[0] for q in others if q.column in p.columns and (q.range or q.operator == "=")}
    return block.found is not None and bool(block.found.sides) and block.found.sides <= there


def ready(facts: PlanFacts, node: Node, name: str) -> Index | None:
    """Return a valid index, not partial, whose first key is the column."""
    table = facts.of(node)
    own = (i for i in (table.indexes if table else ()) if i.keys[:1] == (quoted(name),))
    return next((i for i in own if i.valid and not i.predicate), None)


def _filled(found: Rewrite | None, name: str, c: Condition) -> str:
    value = c.value.replace(f"::{_TZ}", "::timestamptz").replace(f"::{_TS}", "::timestamp")
    return found.filled(quoted(name), operand(value), bare(c.text)) if found else ""


def _pattern(facts: PlanFacts, node: Node, p: Predicate) -> Blocker | None:
    """Return the blocker of LIKE 'x%' if the column has an index, but in the order of a language."""
    table = facts.of(node)
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
    operands = re.sub(r"''(?:::[\w ]+\w)?", "''", re.sub(r"'(?:[^']|'')*'", "''", c.subject))
    operands = re.sub(r"(::[a-z ]+)\(\d+(?:,\d+)?\)", r"\1", operands)
    functions = {name.strip('"').lower() for name in re.findall(r'([\w."]+)\(', operands)}
    casts = {cast.strip() for cast in re.findall(r"::([a-z][a-z ]*[a-z])", operands)}
    call = re.fullmatch(r"[\w.]+(\(.*\))", c.subject)
    key = c.subject if call and bare(call[1]) != call[1] else f"({c.subject})"
    key += " text_pattern_ops" if p.prefix else ""
    hint = _otherwise(c, name, p.cast)
    # A timestamptz AT TIME ZONE 'a constant' is a timestamp; a timestamp AT TIME ZONE is a timestamptz.
    zoned = operands.count(" AT TIME ZONE ''")
    kind = {_TZ: _TS, _TS: _TZ}.get(c.type, c.type) if zoned == 1 else "" if " AT TIME ZONE " in operands else c.type
    allowed = _OF_TIMES.get(kind, (_IMMUTABLE, _SAFE_CASTS) if kind.startswith(_PLAIN) else None)
    known = allowed is not None and functions <= allowed[0] and casts <= allowed[1] and not (casts and "[]" in kind)
    moving = re.search(r"\b(?:now\(\)|CURRENT_|LOCALTIME)", operands)
    if known and not moving and ("||" not in operands or c.type.startswith(("text", "character"))):
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


# Conditions that another kind of index serves.

_CONSTANT = re.compile(r"(?:'(?:[^']|'')*'|\d+(?:\.\d+)?)(?:::[\w ]+)?|")
_GIN = {"@>": " jsonb_path_ops", "@?": " jsonb_path_ops", "@@": " jsonb_path_ops"}
_CONTAINMENT = frozenset({"@>", "<@", "&&", "?", "?|", "?&", "@?", "@@", "-|-", "ANY ="})
_PATTERNS = frozenset({"~~", "~~*", "~", "~*"})
Remedy = tuple[str, str]  # advice and SQL


def other_kind(facts: PlanFacts, node: Node, p: Predicate) -> Remedy | None:
    """Return the index for conditions that no B-tree serves: patterns, JSON, arrays, ranges, full text."""
    key, table = plain(p.subject, node.alias), facts.of(node)
    name = quoted(column_of(p, table))
    if p.operator == "~" and name != '""' and re.match(r"'\^[\w ]{2}", p.value):
        ready = any(i.keys[:1] == (name,) and "_pattern_ops" in i.definition for i in (table.indexes if table else ()))
        made = f"CREATE INDEX ON {placed(facts, node)} ({name} text_pattern_ops)"
        return (
            None
            if ready
            else (f"An index on {name} with text_pattern_ops finds values that begin with this text.", made)
        )
    if p.operator in _PATTERNS and not p.prefix and name != '""':
        return (
            f"A pattern without a fixed beginning needs a trigram index: CREATE EXTENSION pg_trgm, then CREATE "
            f"INDEX ON {placed(facts, node)} USING gin ({name} gin_trgm_ops).",
            "",
        )
    if p.operator not in _CONTAINMENT or p.joined or not (p.column or "tsvector(" in p.subject):
        return None
    column = table.column(p.column) if table and p.column else None
    kind = column.type if column else (re.findall(r"::([\w\[\]]+)$", p.value) or [""])[0]
    method, ops = "gin", ""
    if kind == "jsonb" and p.operator not in ("<@", "&&", "-|-"):
        ops = _GIN.get(p.operator, "")
    elif "range" in kind:
        method = "gist"
    elif not kind.endswith("[]") and kind not in ("tsvector", "tsquery") and p.column:
        return None
    if p.operator == "ANY =":
        found = rewritten(condition(facts, node, p))
        rewrite = (
            f" Write {found.filled(key, p.value, '')} for {p.value} = ANY ({key}), which no index serves."
            if found
            else f" No index serves {p.value} = ANY ({key}): write it with @> and an array of the column's type."
        )
        return f"A GIN index on {key} finds these rows.{rewrite}", ""
    if any(i.method == method and i.keys == (key,) and i.valid for i in (table.indexes if table else ())):
        return None
    made = f"CREATE INDEX ON {placed(facts, node)} USING {method} ({key}{ops})"
    return f"A {'GiST' if method == 'gist' else 'GIN'} index on {key} serves {p.operator}; a B-tree does not.", made


def partial_index(facts: PlanFacts, node: Node, p: Predicate) -> Remedy | None:
    """Return a partial index of the few rows that differ from a constant."""
    if not p.column or p.operator not in ("<>", "IS NOT NULL") or not _CONSTANT.fullmatch(p.value):
        return None
    table, condition = facts.of(node), plain(p.text, node.alias)
    if table and any(_same(i.predicate, condition) for i in table.indexes):
        return None
    made = f"CREATE INDEX ON {placed(facts, node)} ({quoted(p.column)}) WHERE {condition}"
    return f"Few rows meet {condition}: a partial index of only those rows is small and finds them.", made


def _same(one: str, other: str) -> bool:
    return re.sub(r"[\s()]", "", one) == re.sub(r"[\s()]", "", other)
