"""What a scan's conditions let through, and the index that would find it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from perfkit.explain.candidates import Candidate, candidate, comparable, quoted
from perfkit.explain.conditions import Predicate, predicates
from perfkit.explain.facts import Index, TableFacts
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.findings.words import percent, worth
from perfkit.explain.freshness import stale
from perfkit.explain.plan import Node

COLLATED = re.compile(r"""(?s)^(?:'(?:[^']|'')*'|[^'])*?COLLATE ((?:"[^"]+"|\w+)(?:\.(?:"[^"]+"|\w+))?)""")
_UNSTABLE = re.compile(r"\b(?:random|clock_timestamp|nextval|timeofday|gen_random_uuid)\(")
_OWN = r"""'(?:[^']|'')*'|(?P<own>(?:"(?:[^"]|"")*"|[^\W\d][\w$]*)\.)(?=["\w])"""
_KEY = re.compile(r'(?:(?:"(?:[^"]|"")*"|[\w$]+)\.)?("(?:[^"]|"")*"|[^\W\d][\w$]*)(?P<down> DESC)?')
_SETTINGS = ("enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan")


@dataclass(frozen=True, slots=True)
class Sifted:
    """How many rows a scan looked at, all loops and processes together, and how many it kept."""

    kept: float
    seen: float
    ms: float  # its own time

    @property
    def share(self) -> float:
        """Kept of those seen."""
        return self.kept / self.seen if self.seen else 1.0

    @property
    def few(self) -> str:
        """How many it kept, in words."""
        return f"{self.kept:,.0f} ({percent(self.share)})" if round(self.kept) else "none"


def sifted(look: FindingContext, node: Node) -> Sifted | None:
    """What a scan kept; expected where nothing was executed, None where nothing is known."""
    if "Filter" not in node.raw:
        return None
    if look.plan.analyzed:
        kept = node.rows
        seen = kept + node.value("Rows Removed by Filter") * node.loops
        return Sifted(kept, seen, node.exclusive_ms or 0.0) if node.executed else None
    table = look.facts.of(node) if node.kind == "Seq Scan" else None
    return Sifted(node.estimated, table.rows, 0.0) if table else None


def wasteful(look: FindingContext, node: Node, found: Sifted) -> bool:
    """Whether a scan looked at many rows to keep few, in a time that matters."""
    limits = look.limits
    return found.seen >= limits.sifted_rows and found.share <= limits.sifted_share and worth(look, found.ms)


def conditions(look: FindingContext, node: Node, *keys: str) -> tuple[Predicate, ...]:
    """A scan's conditions of some kinds, taken apart."""
    table = look.facts.of(node)
    names = frozenset(column.name for column in table.columns) if table else None
    alias = node.text("Alias") or node.text("Relation Name")
    return tuple(p for key in keys for text in node.texts(key) for p in predicates(text, alias, names))


def column_of(predicate: Predicate, table: TableFacts | None) -> str:
    """The column whose plain index serves a condition; "" where a collation or a volatile value is in the way."""
    if COLLATED.match(predicate.subject + " " + predicate.value) or _UNSTABLE.search(predicate.value):
        return ""
    column = table.column(predicate.column) if table and predicate.column else None
    if column and column.type in ("json", "xml", "point", "box", "polygon", "tsvector"):
        return ""
    return comparable(predicate, table)


def usable(found: Iterable[Predicate], table: TableFacts | None) -> list[Predicate]:
    """The conditions that an index on the plain column would serve."""
    return [p for p in found if (p.equality or p.range or p.prefix) and column_of(p, table)]


def home(look: FindingContext, node: Node) -> tuple[str, str]:
    """Schema and name of the table that gets an index: of a partition, the whole."""
    table = look.facts.of(node)
    if table and table.parent:
        return table.parent
    return (table.schema if table else node.text("Schema")), node.text("Relation Name")


def placed(look: FindingContext, node: Node) -> str:
    """That table as SQL writes it."""
    schema, name = home(look, node)
    return f"{quoted(schema)}.{quoted(name)}" if schema not in ("", "public") else quoted(name)


def index_for(
    look: FindingContext, node: Node, found: Sequence[Predicate], order: Sequence[str] = ()
) -> Candidate | None:
    """An index that serves conditions, or the one that is there and would."""
    table = look.facts.of(node)
    if len(found) == 1 and (row := _row(found[0], table)):
        found, order = (), row
    good = candidate(*home(look, node), usable(found, table), table, order)
    if good and table:
        prefix = f"{quoted(good.columns[-1])} text_pattern_ops"
        if good.existing and "COLLATE" in good.existing.definition:
            good = replace(good, existing=None)
        if good.sql.endswith(f"{prefix})"):
            keys = tuple(quoted(name) for name in good.columns)
            ready = (i for i in table.indexes if i.keys[: len(keys)] == keys and prefix in i.definition and i.valid)
            good = replace(good, existing=next(ready, None))
    return good


def broken(table: TableFacts, columns: Sequence[str]) -> Index | None:
    """An index on these columns that a failed CREATE INDEX CONCURRENTLY left invalid."""
    keys = tuple(quoted(name) for name in columns)
    return next((i for i in table.indexes if not i.valid and i.keys == keys and not i.predicate), None)


def why_unused(look: FindingContext, node: Node, index: Index) -> tuple[str, str]:
    """What may keep the planner from an index that is there, and what to do: advice and SQL."""
    there = f"There is an index for it, {index.name}, which the planner did not take"
    table, settings = look.facts.of(node), look.plan.settings
    if off := [name for name in _SETTINGS if settings.get(name) == "off"]:
        return f"{there}: {' and '.join(off)} is off.", ";\n".join(f"RESET {name}" for name in off)
    old = table is not None and stale(table, look.limits.stale_share)
    if old or (look.plan.analyzed and node.misestimate <= 1 / look.limits.misestimate):
        expected = f" because it expected {node.estimated:,.0f} rows" if look.plan.analyzed else ""
        return f"{there}{expected}: its statistics should be renewed.", f"ANALYZE {placed(look, node)}"
    return (
        f"{there}. See with SET enable_seqscan = off whether it is faster; if it is, random_page_cost is too high for "
        "this server (1.1 suits SSDs and data that is in memory).",
        "",
    )


def explained(found: Sequence[Predicate], table: TableFacts | None) -> float:
    """The share of rows that equality with columns lets through, as far as the statistics tell; 1 for not at all."""
    columns = {p.column for p in usable(found, table) if p.operator == "="}
    known = [table.column(name) for name in columns] if table else []
    counts = [c.distinct if c.distinct > 0 else -c.distinct * (table.rows if table else 0.0) for c in known
              if c and c.distinct]  # fmt: skip
    return prod(1 / max(count, 1.0) for count in counts)


def plain(text: str, alias: str) -> str:
    """An expression without the table's name in front of its columns.

    >>> plain("lower(v.note) = 'v.x'::text", "v")
    "lower(note) = 'v.x'::text"
    """
    names = (alias + ".", f'"{alias.replace(chr(34), chr(34) * 2)}".')
    return re.sub(_OWN, lambda m: "" if m["own"] in names else m[0], text)


def wanted_order(node: Node, alias: str) -> tuple[str, ...]:
    """The columns of the ORDER BY above a scan whose first rows are all that is wanted; () for anything else."""
    sort = node.parent
    if sort is None or sort.kind != "Sort":
        return ()
    top = next((above for above in sort.above() if above.kind != "Gather Merge"), None)
    if top is None or top.kind != "Limit":
        return ()
    keys = [_KEY.fullmatch(plain(key, alias)) for key in sort.texts("Sort Key")]
    if not all(keys) or len({bool(key["down"]) for key in keys if key}) != 1:
        return ()
    return tuple(key[1][1:-1].replace('""', '"') if key[1].startswith('"') else key[1] for key in keys if key)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _row(predicate: Predicate, table: TableFacts | None) -> tuple[str, ...]:
    """The columns of a comparison of rows, `ROW(a, b) > ROW(1, 2)`, which is one range over them."""
    found = re.fullmatch(r"ROW\(([^()']+)\)", predicate.subject) if predicate.range else None
    names = [_KEY.fullmatch(name) for name in found[1].split(", ")] if found else []
    return tuple(name[1].strip('"') for name in names if name) if all(names) else ()
