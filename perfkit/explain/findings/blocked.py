"""Conditions on something made of a column, which an index on the column itself cannot serve."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from perfkit.explain.candidates import comparable, quoted
from perfkit.explain.conditions import Predicate, squeezed
from perfkit.explain.facts import Index
from perfkit.explain.findings.model import Finding, Look
from perfkit.explain.findings.where import (
    COLLATED,
    column_of,
    conditions,
    explained,
    placed,
    plain,
    sifted,
    wasteful,
    why_unused,
)
from perfkit.explain.findings.words import counted
from perfkit.explain.plan import Node

_SCANS = frozenset({"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan"})
# Functions of which every variant is IMMUTABLE, so that an index on them can be made.
_IMMUTABLE = frozenset(
    "abs ascii bit_length btrim ceil ceiling char_length character_length chr coalesce decode encode floor greatest "
    "initcap least left length lower lpad ltrim md5 mod nullif octet_length repeat replace reverse right round rpad "
    "rtrim sha256 sign split_part sqrt strpos substr substring translate trunc upper jsonb_extract_path_text "
    "jsonb_array_length array_length cardinality regexp_replace".split()
)
_SAFE_CASTS = frozenset({"integer", "bigint", "smallint", "numeric", "text", "double precision", "boolean", "uuid"})
_CALCULATED = ("smallint", "integer", "bigint", "numeric", "real", "double", "date", "time")
# Types whose conversion to text and calculations depend on no setting.
_PLAIN = ("text", "character", "smallint", "integer", "bigint", "numeric", "real", "double", "boolean", "uuid", "json")
_COLUMN = r'(?P<column>(?:"(?:[^"]|"")*"|[^\W\d][\w$]*))'
_VALUE = r"(?P<value>'(?:[^']|'')*'(?:::[\w ]+)?|\d[\d.]*|\$\d+)"
_SHIFTED = re.compile(rf"(?:{_COLUMN} (?P<sign>[-+]) {_VALUE}|{_VALUE.replace('value', 'first')} \+ "
                      rf"{_COLUMN.replace('column', 'last')})")  # fmt: skip
_TAKEN = re.compile(rf"(?P<from>now\(\)|CURRENT_\w+|{_VALUE.replace('?P<value>', '')}) - {_COLUMN}")
_FLIPPED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_TRUNCATED = re.compile(rf"date_trunc\('(?P<unit>\w+)'(?:::text)?, {_COLUMN}\)")
_YEAR = re.compile(rf"(?:EXTRACT\(year FROM |date_part\('year'(?:::text)?, ){_COLUMN}\)")
_DISTINCT = re.compile(r"\(*NOT \((?P<subject>.+) IS DISTINCT FROM (?P<value>.+?)\)+")
_DAY = re.compile(r"'(\d{4}-\d\d-\d\d)'::date")
_UNITS = frozenset("hour day week month quarter year minute second".split())


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between a condition and an index: the rewrite, or the expression that an index can be made on."""

    what: str
    rewrite: str = ""
    key: str = ""
    hint: str = ""  # where neither is certain


def blocked_condition(look: Look) -> Iterator[Finding]:
    """A function, cast, calculation, collation or pattern that keeps a condition from an index on its column."""
    for node in look.plan.nodes:
        if node.kind not in _SCANS or not (found := sifted(look, node)) or not wasteful(look, node, found):
            continue
        table, condition = look.facts.of(node), conditions(look, node, "Filter")
        if explained(condition, table) <= 2 * found.share:
            continue  # the other conditions alone keep so few
        for p in condition:
            if not (block := blocks(look, node, p)):
                continue
            advice, sql = _advice(look, node, p, block)
            yield look.finding(
                "blocked-condition",
                node,
                f"{_shown(p, node)} compares {block.what}, which an index on {_columns(p)} alone cannot serve: "
                f"{counted(found.seen, 'row')} of {node.relation} {'were' if look.plan.analyzed else 'will be'} "
                f"looked at to keep {found.few}.",
                advice,
                sql=sql,
            )


def blocks(look: Look, node: Node, p: Predicate) -> Block | None:
    """Why no index on the column serves a condition that one could serve; None for all others."""
    alias, table = node.text("Alias"), look.facts.of(node)
    if not p.operator and len(p.columns) == 1 and (found := _DISTINCT.fullmatch(p.text)):
        subject = plain(found["subject"], alias)
        return Block("with IS NOT DISTINCT FROM", f"{subject} = {found['value']} (and {subject} IS NULL for NULL)")
    if not (p.equality or p.range or p.operator == "~~") or len(p.columns) != 1 or p.operator.startswith("IS "):
        return None
    (name,) = p.columns
    subject = plain(p.subject, alias)
    if collation := COLLATED.match(p.subject + " " + p.value):
        key = f"{subject.partition(' COLLATE')[0]} COLLATE {collation[1]}"
        return Block(f"in the collation {collation[1]}", key=key)
    if p.column:
        return _pattern(look, node, p)
    if comparable(p, table) or subject.startswith("ROW(") or (p.operator == "~~" and not p.prefix):
        return None
    column = table.column(name) if table else None
    kind = column.type if column else ""
    if subject.lower().startswith(("position(", "strpos(")):
        return None  # a search inside a text, which a B-tree would not help
    if cast := p.cast or ("date" if subject == f"date({quoted(name)})" and kind.startswith("timestamp") else ""):
        return _cast(p, quoted(name), cast, kind)
    return _time(p, subject) or _moved(p, subject, kind) or _expression(p, subject, kind, placed(look, node))


def _advice(look: Look, node: Node, p: Predicate, block: Block) -> tuple[str, str]:
    table = look.facts.of(node)
    (name,) = p.columns
    if block.rewrite:
        ready = next((i for i in table.indexes if i.keys[:1] == (quoted(name),) and i.valid), None) if table else None
        if ready and not ready.predicate:
            return f"Write {block.rewrite}: the index {ready.name} serves that.", ""
        return f"Write {block.rewrite}, and CREATE INDEX ON {placed(look, node)} ({quoted(name)}) for it.", ""
    if not block.key:
        return block.hint, ""
    wanted = squeezed(block.key.removesuffix(" text_pattern_ops"))
    for index in table.indexes if table else ():
        patterns = block.key.endswith(" text_pattern_ops")
        if index.valid and not index.predicate and index.keys and squeezed(index.keys[0]) == wanted and not (
            patterns and "text_pattern_ops" not in index.definition
        ):  # fmt: skip
            return why_unused(look, node, index)
    what = "An index with that operator class" if p.column and p.prefix else "An index on the expression itself"
    what = f"An index in that collation on {name}" if " COLLATE " in block.key else what
    return f"{what} serves it.{block.hint}", f"CREATE INDEX ON {placed(look, node)} ({block.key})"


def _pattern(look: Look, node: Node, p: Predicate) -> Block | None:
    """LIKE 'x%' with an index that is there, but sorted in the order of a language."""
    table = look.facts.of(node)
    if not p.prefix or not (name := column_of(p, table)):
        return None
    key = quoted(name)
    plain_ones: list[Index] = [i for i in (table.indexes if table else ()) if i.keys[:1] == (key,) and i.valid]
    if not plain_ones or any("_pattern_ops" in i.definition for i in plain_ones):
        return None
    return Block(f"the beginning of {key}, in a database that sorts by language", key=f"{key} text_pattern_ops")


def _cast(p: Predicate, name: str, cast: str, kind: str) -> Block | None:
    if cast == "date" and (rewrite := _days(p, name)):
        return Block(f"the day of {name}", rewrite)
    if cast == "text" and kind == "text":
        return Block(f"{name} in another collation", hint=f"Leave out COLLATE, or make an index on {name} with it.")
    if not p.equality:
        hint = f"Compare {name} itself, with a value of its own type{f' ({kind})' if kind else ''}."
        return Block(f"{name} made into {cast}", hint=hint)
    if p.operator != "=" or not kind:
        of = f" ({kind})" if kind else ""
        return Block(f"{name} made into {cast}", hint=f"Compare {name} itself, with values of its own type{of}.")
    literal = re.fullmatch(r"('(?:[^']|'')*'|[\d.]+|\$\d+)(?:::[\w ]+)?", p.value)
    value = literal[1] if literal else f"({p.value})"
    if kind in ("smallint", "integer", "bigint") and re.search(r"\.\d*[1-9]", value):
        return None  # never true, and rounding would make it so
    return Block(f"{name} made into {cast}", f"{name} = {value}::{kind}")


def _days(p: Predicate, name: str) -> str:
    """A comparison of days as one of times."""
    literal = _DAY.fullmatch(p.value)
    value = f"'{literal[1]}'" if literal else p.value
    after = f"{p.value} + 1"
    if literal:
        try:
            after = f"'{date.fromisoformat(literal[1]) + timedelta(1)}'"
        except (OverflowError, ValueError):
            after = f"date {value} + 1"
    return {
        "=": f"{name} >= {value} AND {name} < {after}",
        ">=": f"{name} >= {value}",
        "<": f"{name} < {value}",
        ">": f"{name} >= {after}",
        "<=": f"{name} < {after}",
    }.get(p.operator, "")


def _time(p: Predicate, subject: str) -> Block | None:
    """date_trunc and the year as ranges."""
    if (found := _TRUNCATED.fullmatch(subject)) and found["unit"] in _UNITS:
        name, value = found["column"], p.value
        end = f"{value} + interval '{'3 months' if found['unit'] == 'quarter' else '1 ' + found['unit']}'"
        what = f"the {found['unit']} of {name}"
        if p.operator == "=":
            return Block(what, f"{name} >= {value} AND {name} < {end}")
        if p.operator in (">=", "<"):  # for a value that begins a unit, as one that is compared with it does
            return Block(what, f"{name} {p.operator} {value}")
        if p.operator in (">", "<="):
            return Block(what, f"{name} {'>=' if p.operator == '>' else '<'} {end}")
        return None
    year = re.match(r"'?(\d{4})'?(?![\d.])", p.value)
    if (found := _YEAR.fullmatch(subject)) and year and p.operator == "=":
        name = found["column"]
        first, last = f"'{year[1]}-01-01'", f"'{int(year[1]) + 1:04}-01-01'"
        return Block(f"the year of {name}", f"{name} >= {first} AND {name} < {last}")
    return None


def _moved(p: Predicate, subject: str, kind: str) -> Block | None:
    """A calculation that can be done on the other side."""
    if p.operator not in _FLIPPED:
        return None
    if taken := _TAKEN.fullmatch(subject):
        name = taken["column"]
        return Block(f"a calculation with {name}", f"{name} {_FLIPPED[p.operator]} {taken['from']} - {p.value}")
    if not (found := _SHIFTED.fullmatch(subject)):
        return None
    name, by = found["column"] or found["last"], found["value"] or found["first"]
    sign = "-" if found["first"] or found["sign"] == "+" else "+"
    if (kind and not kind.startswith(_CALCULATED)) or by.endswith("::text"):
        return None
    return Block(f"a calculation with {name}", f"{name} {p.operator} {p.value} {sign} {by}")


def _expression(p: Predicate, subject: str, kind: str, where: str) -> Block:
    """Anything else that is made of a column."""
    bare = re.sub(r"'(?:[^']|'')*'", "''", subject)
    functions = {name.lower() for name in re.findall(r'([\w."]+)\(', bare)}
    casts = {cast.strip() for cast in re.findall(r"::([a-z][a-z ]*[a-z])", bare)}
    call = re.fullmatch(r"[\w.]+\(.*\)", subject)
    key = subject if call and _closes(subject) else f"({subject})"
    key += " text_pattern_ops" if p.prefix else ""
    known = functions <= _IMMUTABLE and casts <= _SAFE_CASTS and kind.startswith(_PLAIN)
    if known and ("||" not in bare or kind.startswith(("text", "character"))):
        return Block(subject, key=key)
    if re.search(r"\b(?:now\(\)|CURRENT_|LOCALTIME)", bare):
        return Block(subject, hint="Compare the column itself, and do the calculation on the other side.")
    return Block(
        subject,
        hint=f"Compare the column itself, with a range for instance; or CREATE INDEX ON {where} ({key}), which is "
        "possible if everything in it is IMMUTABLE.",
    )


def _closes(subject: str) -> bool:
    """Whether the first parenthesis is closed by the last character."""
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
