"""Indexes that might serve a plan: the best one for a scan, and every one that is worth a trial."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from perfkit.explain.conditions import SCANS, blocks, column_of, comparable, conditions, distinct, home, plain, usable
from perfkit.explain.facts import (
    Index,
    PlanFacts,
    Predicate,
    TableFacts,
    alternatives,
    bare_name,
    columns_in,
    predicates,
    qualified,
    quoted,
    squeezed,
    unquoted,
)
from perfkit.explain.plan import Node, Plan

TINY = 16.0  # pages that are read as fast as an index is searched
INCLUDED = 3  # maximum number of INCLUDE columns
RARE = 0.2  # maximum share of a table's rows in a partial index; a larger one is hardly smaller than a full index
_WIDE = ("json", "jsonb", "bytea", "xml", "tsvector")
_JOINS = ("Hash Cond", "Merge Cond", "Join Filter")
_FEW_VALUES = 50.0  # maximum number of distinct values of a column for a partial index on one of them
_COLUMN = re.compile(r'(?:(?:"(?:[^"]|"")*"|[\w$]+)\.)?("(?:[^"]|"")*"|[^\W\d][\w$]*)')
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
        return qualified(self.schema, self.table)

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


def _word(key: str) -> str:
    """Return the words of a key, for the name of an index."""
    key = re.sub(r"::\w+|\b\w+_ops\b|'[^']*'", lambda m: m[0][1:-1] if m[0][0] == "'" else "", key)
    return re.sub(r"\W+", "_", key).strip("_")


# The best index for the conditions of one scan: columns of equality first, then those of the order, then one range.


@dataclass(frozen=True, slots=True)
class Candidate:
    """An index that would serve conditions: its CREATE INDEX, and the equal index that exists already."""

    sql: str
    columns: tuple[str, ...]
    existing: Index | None = None


def index_for(facts: PlanFacts, node: Node, found: Sequence[Predicate], order: Sequence[str] = ()) -> Candidate | None:
    """Return an index that serves the conditions, whether it exists or not."""
    table = facts.of(node)
    if len(found) == 1 and (row := _row(found[0], table)):
        found, order = (), row
    good = candidate(*home(facts, node), usable(found, table), table, order)
    if good and table:
        prefix = f"{quoted(good.columns[-1])} text_pattern_ops"
        if good.existing and "COLLATE" in good.existing.definition:
            good = replace(good, existing=None)
        if good.sql.endswith(f"{prefix})"):
            keys = tuple(quoted(name) for name in good.columns)
            ready = (i for i in table.indexes if i.keys[: len(keys)] == keys and prefix in i.definition and i.valid)
            good = replace(good, existing=next(ready, None))
    return good


def candidate(
    schema: str, relation: str, conditions: Iterable[Predicate], table: TableFacts | None, order: Sequence[str] = ()
) -> Candidate | None:
    """Return an index on the plain columns of the conditions; None if no condition can use an index.

    `order` names columns that follow the equality columns in this order. An index with the same leading columns is
    returned as existing unless it is invalid or partial.
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
    design = IndexDesign(schema, relation, tuple(keys))
    return Candidate(f"CREATE INDEX ON {design.title}", columns, _existing(table, keys, len(equal)))


def _existing(table: TableFacts | None, keys: Sequence[str], equal: int) -> Index | None:
    """Return a valid B-tree, not partial, that begins with these keys; equality keys may be in any order."""
    for index in table.indexes if table else ():
        begins = [re.sub(r" (ASC|DESC)?( NULLS \w+)?$", "", key) for key in index.keys[: len(keys)]]
        same = set(begins[:equal]) == set(keys[:equal]) and begins[equal:] == list(keys[equal:])
        if index.method == "btree" and index.valid and not index.predicate and same and len(begins) == len(keys):
            return index
    return None


def _row(predicate: Predicate, table: TableFacts | None) -> tuple[str, ...]:
    """Return the columns of a row comparison, `ROW(a, b) > ROW(1, 2)`, which is one range over them."""
    found = re.fullmatch(r"ROW\(([^()']+)\)", predicate.subject) if predicate.range else None
    names = [_COLUMN.fullmatch(name) for name in found[1].split(", ")] if found else []
    return tuple(bare_name(name[1]) for name in names if name) if all(names) else ()


def broken(table: TableFacts, columns: Sequence[str]) -> Index | None:
    """Return an index on these columns that a failed CREATE INDEX CONCURRENTLY left invalid."""
    keys = tuple(quoted(name) for name in columns)
    return next((i for i in table.indexes if not i.valid and i.keys == keys and not i.predicate), None)


# Every index that might serve a plan.

Move = tuple[IndexDesign, ...]  # tried together: an OR needs an index for each of its parts


def derive(plan: Plan, facts: PlanFacts, variable: frozenset[tuple[str, str]], share: Share) -> list[Move]:
    """Return every index that might serve a plan, the most promising ones first.

    `variable` are the conditions, by alias and column, whose values change from call to call.
    """
    moves: list[Move] = []
    for node in plan.of_kind(*SCANS):
        table = facts.of(node)
        if table and not table.schema.startswith("pg_") and not _tiny(node, table):
            moves += _of_scan(plan, facts, node, table, variable, share)
    return list(dict.fromkeys(moves))


def _tiny(node: Node, table: TableFacts) -> bool:
    """Return whether a table is read only once and is so small that an index cannot be faster."""
    repeated = any(above.kind == "Nested Loop" or above.relationship == "SubPlan" for above in (node, *node.above()))
    return table.size is not None and table.size <= TINY and not table.parent and not repeated


def _of_scan(
    plan: Plan, facts: PlanFacts, node: Node, table: TableFacts, variable: frozenset[tuple[str, str]], share: Share
) -> Iterator[Move]:
    alias = node.alias
    own = conditions(facts, node, "Filter", "Index Cond", "Recheck Cond")
    where = home(facts, node)
    fixed = [key for p in own if not p.joined and p.equality and (key := key_for(facts, node, p))]
    ranges = [key for p in own if not p.joined and not p.equality and (key := key_for(facts, node, p))]
    joined = [quoted(column_of(p, table)) for p in usable([*own, *_joined(facts, node)], table)
              if p.joined and p.equality]  # fmt: skip
    order = [key for key in limit_order(facts, node) if key.split(" ")[0] not in fixed]
    orders = dict.fromkeys([tuple(order), *_walked(node, table, fixed)])
    tails = [keys for keys in orders if keys] + [(key,) for key in dict.fromkeys(ranges) if key not in fixed]
    needed = _needed(plan, facts, node, alias)
    for base in _bases(table, fixed, joined):
        for tail in tails or [()]:
            yield from _with_included(where, (*base, *(key for key in tail if key not in base)), needed, table)
    for keys in _smaller(table, list(dict.fromkeys([*joined, *fixed])), tails):
        yield (IndexDesign(*where, keys),)
    for few in _few(facts, node, own, variable, share):
        columns = {key_for(facts, node, p) for p in few}
        condition = " AND ".join(_pretty(plain(p.text, alias)) for p in few)
        for base in _bases(table, [key for key in fixed if key not in columns], joined):
            for tail in tails or [()]:
                keys = (*base, *(key for key in tail if key not in base and key not in columns))
                keys = keys or tuple(quoted(p.column) for p in few[:1])
                rest = needed - {p.column for p in few} if needed is not None else None
                for (design,) in _with_included(where, keys, rest, table):
                    yield (replace(design, where=condition),)
    for p in own:
        yield from _either(facts, node, p)


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


def key_for(facts: PlanFacts, node: Node, p: Predicate) -> str:
    """Return the key of an index that serves a condition; "" if no index does."""
    table = facts.of(node)
    if usable([p], table):
        return quoted(column_of(p, table)) + (" text_pattern_ops" if p.prefix else "")
    block = blocks(facts, node, p)
    return _LITERAL.sub(r"\1", block.key) if block and not block.rewrite else ""


def _joined(facts: PlanFacts, node: Node) -> Iterator[Predicate]:
    """Yield the conditions of joins above a scan that compare its columns with other tables."""
    table, alias = facts.of(node), node.alias
    names = frozenset(column.name for column in table.columns) if table else None
    for above in node.above():
        for text in (text for key in _JOINS for text in above.texts(key)):
            yield from (p for p in predicates(text, alias, names) if p.joined)


def _few(
    facts: PlanFacts, node: Node, own: Sequence[Predicate], variable: frozenset[tuple[str, str]], share: Share
) -> Iterator[tuple[Predicate, ...]]:
    """Yield the conditions on constants that few rows meet, alone and together, for a partial index."""
    table, alias = facts.of(node), node.alias
    rare = []
    for p in own:
        if not table or p.joined or not p.column or (alias, p.column) in variable or "$" in p.value:
            continue
        named = p.operator in ("=", "<>") and 0 < distinct(table, p.column) <= _FEW_VALUES and p.value[:1] == "'"
        if not (named or p.operator in ("IS NULL", "IS NOT NULL", "IS TRUE", "IS FALSE")):
            continue
        if share(*home(facts, node), _pretty(plain(p.text, alias))) <= RARE:
            rare.append(p)
    yield from ((p,) for p in rare)
    if len(rare) > 1:
        yield tuple(rare)


def parts_of_or(facts: PlanFacts, node: Node, p: Predicate) -> list[tuple[Predicate, ...]]:
    """Return the conditions of each part of an OR, each of which needs an index; empty for another condition."""
    table = facts.of(node)
    names = frozenset(column.name for column in table.columns) if table else None
    return [predicates(text, node.alias, names) for text in alternatives(p)]


def _either(facts: PlanFacts, node: Node, p: Predicate) -> Iterator[Move]:
    """Yield an index for each part of an OR, to try them together."""
    parts = parts_of_or(facts, node, p)
    keys = [next((key for q in part if not q.joined and (key := key_for(facts, node, q))), "") for part in parts]
    if keys and all(keys):
        yield tuple(dict.fromkeys(IndexDesign(*home(facts, node), (key,)) for key in keys))


def _pretty(condition: str) -> str:
    """Return a condition as a person would write it."""
    inner = condition[1:-1] if condition.startswith("(") and condition.endswith(")") else condition
    balanced = inner.count("(") == inner.count(")") and inner.find(")") >= inner.find("(")
    return _LITERAL.sub(r"\1", inner if balanced else condition)


def _needed(plan: Plan, facts: PlanFacts, node: Node, alias: str) -> frozenset[str] | None:
    """Return the table's columns that the statement reads; None if it reads whole rows, or writes.

    A scan below another node can output unused columns, so its own output is ignored.
    """
    texts = [text for key in ("Filter", "Index Cond", "Recheck Cond") for text in node.texts(key)]
    texts += node.output if node.parent is None else []
    for other in plan.nodes:
        if other.kind in ("ModifyTable", "LockRows"):
            return None
        if other is not node and other.kind not in SCANS:
            texts += [text for key in other.raw for text in other.texts(key)]
        elif other is not node:  # a condition there may compare with this table
            texts += [text for key in ("Filter", "Index Cond") for text in other.texts(key)]
    whole = re.compile(rf"(?<![\w.]){re.escape(quoted(alias))}\.\*")
    if any(whole.search(unquoted(text)) for text in texts):
        return None
    table = facts.of(node)
    names = frozenset(column.name for column in table.columns) if table else frozenset()
    return frozenset().union(*(columns_in(text, alias, names) for text in texts))


# The order in which the first rows are needed.


def limited(node: Node) -> Node | None:
    """Return the LIMIT that stops a scan; None if a node in between collects all rows."""
    for above in node.above():
        if above.kind == "Limit":
            return above
        if above.kind not in ("LockRows", "Result", "Subquery Scan", "Gather Merge", "Nested Loop", "Unique"):
            return None
        if node.relationship == "Inner":
            return None
        node = above
    return None


def walks(node: Node) -> bool:
    """Return whether an index is read in order, without a value to look up, until a LIMIT above has enough rows."""
    if node.kind not in ("Index Scan", "Index Only Scan") or not limited(node):
        return False
    return not any(p.equality for p in predicates(node.index_condition, node.alias))


def limit_order(facts: PlanFacts, node: Node) -> tuple[str, ...]:
    """Return the keys by which only a table's first rows are needed: of ORDER BY ... LIMIT, or of min() and max()."""
    alias, table = re.escape(node.alias), facts.of(node)
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
