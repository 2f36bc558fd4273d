"""Indexes that might help a workload, derived from its plans and foreign keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from perfkit.explain.candidates import SCANS, blocks, column_of, conditions, distinct, home, plain, usable
from perfkit.explain.facts import (
    Index,
    Predicate,
    TableFacts,
    alternatives,
    columns_in,
    predicates,
    quoted,
    squeezed,
    unquoted,
)
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.findings.scans import walks
from perfkit.explain.plan import Node
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.parser import parse_statements


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key whose referencing columns have no index."""

    parent: tuple[str, str]  # schema and name
    parent_columns: tuple[str, ...]
    schema: str
    table: str
    columns: tuple[str, ...]
    pages: float

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the columns as keys of an index."""
        return tuple(map(quoted, self.columns))


def references(connection: Connection) -> list[Reference]:
    """Return every foreign key of the database that no index serves."""
    return [
        Reference(
            (row["parent_schema"], row["parent"]),
            tuple(row["parent_columns"]),
            row["schema"],
            row["table_name"],
            tuple(row["columns"]),
            float(row["pages"]),
        )
        for row in catalog.rows(connection, "referencing")
    ]


def probes(text: str, look: FindingContext, pointing: Sequence[Reference]) -> dict[Reference, tuple[str, float]]:
    """Return the foreign keys that the server checks for a statement: the check as a query and its number of rows."""
    found = {}
    for node in look.plan.nodes:
        if node.kind != "ModifyTable" or node.operation not in ("Delete", "Update"):
            continue
        changed = _set(text) if node.operation == "Update" else None
        for reference in pointing:
            same = reference.parent == (node.schema, node.table)
            if same and (changed is None or changed & set(reference.parent_columns)):
                found[reference] = _check(reference), max(1.0, _rows(look, node))
    return found


def _check(reference: Reference) -> str:
    """Return the server's check of one row as a query, with an existing key."""
    schema, parent = map(quoted, reference.parent)
    pairs = zip(reference.keys, map(quoted, reference.parent_columns), strict=True)
    same = " AND ".join(f"x.{own} = (SELECT p.{key} FROM {schema}.{parent} p LIMIT 1)" for own, key in pairs)
    return f"SELECT 1 FROM {quoted(reference.schema)}.{quoted(reference.table)} x WHERE {same}"


def _rows(look: FindingContext, node: Node) -> float:
    below = node.children[0] if node.children else node
    return below.rows if look.plan.analyzed else below.estimated


def _set(text: str) -> set[str]:
    """Return the columns that a statement's UPDATEs set; none if the parser does not know the statement."""
    updates = (node for statement in parse_statements(text) for node in statement.walk() if node.kind == "UpdateStmt")
    return {target.text("name") for update in updates for target in update.nodes("targetList")}


TINY = 16.0  # pages that are read as fast as an index is searched
INCLUDED = 3  # maximum number of INCLUDE columns
_WIDE = ("json", "jsonb", "bytea", "xml", "tsvector")
_JOINS = ("Hash Cond", "Merge Cond", "Join Filter")
_FEW_VALUES = 50.0  # maximum number of distinct values of a column for a partial index on one of them
_LITERAL = re.compile(r"('(?:[^']|'')*')::text\b")
Share = Callable[[str, str, str], float]  # (schema, table, condition): planned share of rows that meet the condition


@dataclass(frozen=True, slots=True)
class IndexDesign:
    """A possible index: `keys` are SQL, `where` is the condition of a partial index."""

    schema: str
    table: str
    keys: tuple[str, ...]
    include: tuple[str, ...] = ()
    where: str = ""

    @property
    def name(self) -> str:
        """Return a name for the index, which may be in use already."""
        words = ["idx", self.table, *(_word(key) for key in self.keys)]
        words += ["incl", *map(_word, self.include)] if self.include else []
        words += ["where", _word(self.where)] if self.where else []
        return "_".join(words).lower().encode()[:60].decode(errors="ignore").rstrip("_")

    @property
    def on(self) -> str:
        """Return the table as SQL."""
        schema = f"{quoted(self.schema)}." if self.schema not in ("", "public") else ""
        return schema + quoted(self.table)

    @property
    def title(self) -> str:
        """Return the definition, such as `orders (customer_id, placed_at) WHERE status = 'open'`."""
        include = f" INCLUDE ({', '.join(map(quoted, self.include))})" if self.include else ""
        where = f" WHERE {self.where}" if self.where else ""
        return f"{self.on} ({', '.join(self.keys)}){include}{where}"

    def statement(self, name: str) -> str:
        """Return the CREATE INDEX statement."""
        return f"CREATE INDEX {quoted(name)} ON {self.title}"

    @property
    def expressive(self) -> bool:
        """Return whether a key is an expression, which has statistics only after ANALYZE."""
        return any("(" in key for key in self.keys)

    def begins(self, other: IndexDesign) -> bool:
        """Return whether `other` can replace this index: it begins with the same keys and has its rows and columns."""
        same = (self.schema, self.table, self.where) == (other.schema, other.table, other.where)
        held = {*other.keys, *map(quoted, other.include)}
        return same and other.keys[: len(self.keys)] == self.keys and {*map(quoted, self.include)} <= held

    def covered_by(self, index: Index) -> bool:
        """Return whether an existing index can replace this one."""
        names = index.definition.partition(" INCLUDE (")[2].partition(")")[0].split(", ")
        include = tuple(name.strip('"') for name in names if name)
        existing = IndexDesign(self.schema, self.table, index.keys, include, "")
        same = squeezed(index.predicate) == squeezed(self.where)
        return index.valid and index.method == "btree" and same and replace(self, where="").begins(existing)


Move = tuple[IndexDesign, ...]  # tried together: an OR needs an index for each of its parts


def derive(look: FindingContext, variable: frozenset[tuple[str, str]], share: Share) -> list[Move]:
    """Return every index that might serve a plan, the most promising ones first.

    `variable` are the conditions, by alias and column, whose values change from call to call.
    """
    moves: list[Move] = []
    for node in look.plan.nodes:
        table = look.facts.of(node)
        if node.kind in SCANS and table and not table.schema.startswith("pg_") and not _tiny(node, table):
            moves += _of_scan(look, node, table, variable, share)
    return list(dict.fromkeys(moves))


def _tiny(node: Node, table: TableFacts) -> bool:
    """Return whether a table is read only once and is so small that an index cannot be faster."""
    repeated = any(above.kind == "Nested Loop" or above.relationship == "SubPlan" for above in (node, *node.above()))
    return table.size is not None and table.size <= TINY and not table.parent and not repeated


def _of_scan(
    look: FindingContext, node: Node, table: TableFacts, variable: frozenset[tuple[str, str]], share: Share
) -> Iterator[Move]:
    alias = node.alias
    own = conditions(look.facts, node, "Filter", "Index Cond", "Recheck Cond")
    where = home(look.facts, node)
    fixed = [key for p in own if not p.joined and p.equality and (key := _key(look, node, p))]
    ranges = [key for p in own if not p.joined and not p.equality and (key := _key(look, node, p))]
    joined = [quoted(column_of(p, table)) for p in usable([*own, *_joined(look, node)], table)
              if p.joined and p.equality]  # fmt: skip
    order = [key for key in limit_order(look, node) if key.split(" ")[0] not in fixed]
    orders = dict.fromkeys([tuple(order), *_walked(node, table, fixed)])
    tails = [keys for keys in orders if keys] + [(key,) for key in dict.fromkeys(ranges) if key not in fixed]
    needed = _needed(look, node, alias)
    for base in _bases(table, fixed, joined):
        for tail in tails or [()]:
            yield from _with_included(where, (*base, *(key for key in tail if key not in base)), needed, table)
    for keys in _smaller(table, list(dict.fromkeys([*joined, *fixed])), tails):
        yield (IndexDesign(*where, keys),)
    for few in _few(look, node, own, variable, share):
        columns = {_key(look, node, p) for p in few}
        condition = " AND ".join(_pretty(plain(p.text, alias)) for p in few)
        for base in _bases(table, [key for key in fixed if key not in columns], joined):
            for tail in tails or [()]:
                keys = (*base, *(key for key in tail if key not in base and key not in columns))
                keys = keys or tuple(quoted(p.column) for p in few[:1])
                rest = needed - {p.column for p in few} if needed is not None else None
                for (design,) in _with_included(where, keys, rest, table):
                    yield (replace(design, where=condition),)
    for p in own:
        yield from _either(look, node, p, table)


def _bases(table: TableFacts, fixed: Sequence[str], joined: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the columns compared with a value, the most selective first; with the columns of joins and without."""
    for keys in (dict.fromkeys([*joined, *fixed]), dict.fromkeys(fixed)) if joined else (dict.fromkeys(fixed),):
        yield tuple(sorted(keys, key=lambda key: -distinct(table, key.strip('"'))))


def _smaller(table: TableFacts, fixed: Sequence[str], tails: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Yield shorter keys, which may find nearly as few rows in a much smaller index."""
    several = len(fixed) + len(tails) > 1
    counts = {key: distinct(table, key.strip('"')) for key in fixed}
    for key in sorted(fixed, key=lambda key: -counts[key]) if several else ():
        if counts[key] >= _FEW_VALUES or len(fixed) == 1:
            yield (key,)
            yield from ((key, *(k for k in tail if k != key)) for tail in tails if len(fixed) > 1)
    if fixed and tails:
        yield tuple(sorted(fixed, key=lambda key: -counts[key]))
        yield from (tail for tail in tails if len(tail) == 1)


def _with_included(
    where: tuple[str, str], keys: tuple[str, ...], needed: frozenset[str] | None, table: TableFacts
) -> Iterator[Move]:
    """Yield the index, and variants with the few columns that allow an index-only scan."""
    if not keys:
        return
    yield (IndexDesign(*where, keys),)
    rest = sorted(needed - {key.split(" ")[0].strip('"') for key in keys}) if needed is not None else []
    types = [column.type for name in rest if (column := table.column(name))]
    if rest and len(rest) <= INCLUDED and len(types) == len(rest) and not any(t.startswith(_WIDE) for t in types):
        yield (IndexDesign(*where, keys, include=tuple(rest)),)
        yield (IndexDesign(*where, (*keys, *map(quoted, rest))),)  # unlike INCLUDE, PostgreSQL deduplicates its entries


def _key(look: FindingContext, node: Node, p: Predicate) -> str:
    """Return the key of an index that serves a condition; "" if no index does."""
    table = look.facts.of(node)
    if usable([p], table):
        return quoted(column_of(p, table)) + (" text_pattern_ops" if p.prefix else "")
    block = blocks(look.facts, node, p)
    return _LITERAL.sub(r"\1", block.key) if block and not block.rewrite else ""


def _joined(look: FindingContext, node: Node) -> Iterator[Predicate]:
    """Yield the conditions of joins above a scan that compare its columns with other tables."""
    table, alias = look.facts.of(node), node.alias
    names = frozenset(column.name for column in table.columns) if table else None
    for above in node.above():
        for text in (text for key in _JOINS for text in above.texts(key)):
            yield from (p for p in predicates(text, alias, names) if p.joined)


def limit_order(look: FindingContext, node: Node) -> tuple[str, ...]:
    """Return the keys by which only a table's first rows are needed: of ORDER BY ... LIMIT, or of min() and max()."""
    alias, table = re.escape(node.alias), look.facts.of(node)
    for above in node.above():
        if above.kind in ("Sort", "Incremental Sort") and (keys := _ordered(above, node.alias)):
            return keys
        if above.kind == "Aggregate" and above.strategy == "Plain":
            outputs = [re.fullmatch(rf"\(?(?:min|max)\((?:PARTIAL )?(?:{alias}\.)?(\w+)\)\)?", text)
                       for text in above.output]  # fmt: skip
            columns = {found[1] for found in outputs if found}
            known = len(columns) == 1 and all(outputs) and table is not None and table.column(*columns)
            return tuple(map(quoted, columns)) if known else ()
    return ()


def _walked(node: Node, table: TableFacts, fixed: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the possible orders for which a plan reads an index up to a LIMIT: its first key, or all its keys.

    Such a plan has no Sort, and does not tell how many of the keys the statement orders by.
    """
    index = next((i for i in table.indexes if i.name == node.index), None)
    if index and walks(node):
        keys = tuple(key for key in index.keys if key not in fixed)
        yield keys[:1]
        if " DESC" not in index.definition and " NULLS " not in index.definition:
            yield keys


def _ordered(sort: Node, alias: str) -> tuple[str, ...]:
    top = next((above for above in sort.above() if above.kind not in ("Gather Merge", "LockRows", "Result")), None)
    if top is None or top.kind != "Limit":
        return ()
    keys = [plain(key, alias) for key in sort.sort_keys]
    plain_ones = [re.fullmatch(r'(\w+|"(?:[^"]|"")*")( DESC)?', key) for key in keys]
    if not all(plain_ones) or any(key == before for key, before in zip(keys, sort.sort_keys, strict=True)):
        return ()  # columns of another table, or expressions
    downward = {bool(found[2]) for found in plain_ones if found}
    return tuple(found[1] + (found[2] or "" if len(downward) > 1 else "") for found in plain_ones if found)


def _needed(look: FindingContext, node: Node, alias: str) -> frozenset[str] | None:
    """Return the table's columns that the statement reads; None if it reads whole rows, or writes.

    A scan below another node can output unused columns, so its own output is ignored.
    """
    texts = [text for key in ("Filter", "Index Cond", "Recheck Cond") for text in node.texts(key)]
    texts += node.output if node.parent is None else []
    for other in look.plan.nodes:
        if other.kind in ("ModifyTable", "LockRows"):
            return None
        if other is not node and other.kind not in SCANS:
            texts += [text for key in other.raw for text in other.texts(key)]
        elif other is not node:  # a condition there may compare with this table
            texts += [text for key in ("Filter", "Index Cond") for text in other.texts(key)]
    whole = re.compile(rf"(?<![\w.]){re.escape(quoted(alias))}\.\*")
    if any(whole.search(unquoted(text)) for text in texts):
        return None
    table = look.facts.of(node)
    names = frozenset(column.name for column in table.columns) if table else frozenset()
    return frozenset().union(*(columns_in(text, alias, names) for text in texts))


def _few(
    look: FindingContext, node: Node, own: Sequence[Predicate], variable: frozenset[tuple[str, str]], share: Share
) -> Iterator[tuple[Predicate, ...]]:
    """Yield the conditions on constants that few rows meet, alone and together, for a partial index."""
    table, alias = look.facts.of(node), node.alias
    rare = []
    for p in own:
        if not table or p.joined or not p.column or (alias, p.column) in variable or "$" in p.value:
            continue
        named = p.operator in ("=", "<>") and 0 < distinct(table, p.column) <= _FEW_VALUES and p.value[:1] == "'"
        if not (named or p.operator in ("IS NULL", "IS NOT NULL", "IS TRUE", "IS FALSE")):
            continue
        if share(*home(look.facts, node), _pretty(plain(p.text, alias))) <= RARE:
            rare.append(p)
    yield from ((p,) for p in rare)
    if len(rare) > 1:
        yield tuple(rare)


RARE = 0.2  # maximum share of a table's rows in a partial index; a larger one is hardly smaller than a full index


def _either(look: FindingContext, node: Node, predicate: Predicate, table: TableFacts) -> Iterator[Move]:
    """Yield an index for each part of an OR, to try them together."""
    names = frozenset(column.name for column in table.columns)
    parts = [predicates(text, node.alias, names) for text in alternatives(predicate)]
    keys = [next((key for p in part if not p.joined and (key := _key(look, node, p))), "") for part in parts]
    if keys and all(keys):
        yield tuple(dict.fromkeys(IndexDesign(*home(look.facts, node), (key,)) for key in keys))


def _pretty(condition: str) -> str:
    """Return a condition as a person would write it."""
    inner = condition[1:-1] if condition.startswith("(") and condition.endswith(")") else condition
    balanced = inner.count("(") == inner.count(")") and inner.find(")") >= inner.find("(")
    return _LITERAL.sub(r"\1", inner if balanced else condition)


def _word(key: str) -> str:
    """Return the words of a key, for the name of an index."""
    key = re.sub(r"::\w+|\b\w+_ops\b|'[^']*'", lambda m: m[0][1:-1] if m[0][0] == "'" else "", key)
    return re.sub(r"\W+", "_", key).strip("_")
