"""Whether each index earns its keep: what another one does as well, nobody uses, is broken, or is missing.

What is called duplicate or redundant loses no plan: every condition, order and index-only scan that it serves is
served by an index that is kept. What would lose one is said, and no statement given for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from perfkit.errors import UsageError
from perfkit.explain.conditions import Predicate, predicates
from perfkit.explain.plan import Node, Plan
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.site import Site

SMALL = 32 * 1024  # bytes below which an unused index is not worth a word
MUCH_SMALLER = 4  # times; reading fewer pages may be what an index is for
YOUNG = 7  # days of counting that are weak evidence of no use: less than a week's work
_BACKWARD = 3  # the bits DESC and NULLS FIRST, which reading backwards turns both
_LEFTOVER = re.compile(r"_cc(new|old)\d*$")
_CONDITIONS = ("Filter", "Index Cond", "Recheck Cond", "Join Filter", "Hash Cond", "Merge Cond")
_TEXTS = (*_CONDITIONS, "Sort Key", "Group Key", "Presorted Key", "Output")
_PATTERNS = frozenset({"~~", "~", "^@"})
_EQUAL = frozenset({"=", "= ANY", "IS NULL", "IS NOT NULL"})
_SERVED = {  # operators by operator class; of classes that are not here nothing is said
    **dict.fromkeys(
        ("text_pattern_ops", "varchar_pattern_ops", "bpchar_pattern_ops"),
        _EQUAL | _PATTERNS | {"~<~", "~<=~", "~>~", "~>=~"},
    ),
    "jsonb_path_ops": frozenset({"@>", "@?", "@@"}),
}
KINDS = ("invalid", "duplicate", "redundant", "unmatched", "unused", "overlapping", "missing")  # the surest first
_Fact = TypeVar("_Fact", "IndexFacts", "ForeignKey")


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """An index with all its partitions'; keys and `include` as SQL writes them, `parts`: bytes by its table's oid."""

    oid: int
    name: str
    quoted: str
    table: str
    quoted_table: str
    partitioned: bool
    method: str
    definition: str
    keys: tuple[str, ...]
    kinds: tuple[str, ...]  # operator classes with their options; "" for the default
    collations: tuple[str, ...]  # "" for the column's own
    orders: tuple[int, ...]  # 1: DESC, 2: NULLS FIRST
    include: tuple[str, ...]
    predicate: str
    options: tuple[str, ...]
    unique: bool
    primary: bool
    exclusion: bool
    immediate: bool
    identity: bool  # logical replication knows the rows by it
    nulls_equal: bool
    constraint: str
    referenced: bool  # by foreign keys
    valid: bool
    busy: bool  # something holds the lock of a build on its table
    parts: Mapping[str, int]
    members: tuple[str, ...]
    scans: int
    table_scans: int  # sequential, of its table

    @property
    def bytes(self) -> int:
        """On disk, all partitions."""
        return sum(self.parts.values())

    @property
    def promise(self) -> str:
        """What it is for beyond being read; "" for nothing."""
        backs = f"backs the constraint {self.constraint}" if self.constraint else ""
        return backs or ("is unique" if self.unique else "") or ("is the replica identity" if self.identity else "")

    @property
    def shown(self) -> str:
        """Its definition after the table."""
        return self.definition.partition(" USING ")[2]

    @property
    def drop(self) -> str:
        """The statement that removes it."""
        if self.constraint:
            return f"ALTER TABLE {self.quoted_table} DROP CONSTRAINT {_identifier(self.constraint)}"
        return f"DROP INDEX {'' if self.partitioned else 'CONCURRENTLY '}{self.quoted}"


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of `table`; `parts`: bytes by its tables' oid; changes: rows of the parent updated or deleted."""

    name: str
    table: str
    quoted_table: str
    partitioned: bool
    parent: str
    columns: tuple[str, ...]
    parts: Mapping[str, int]
    changes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the catalogue and the counters say; the counters began on the day `since`, `days` ago."""

    indexes: tuple[IndexFacts, ...]
    foreign_keys: tuple[ForeignKey, ...]
    since: str
    days: float
    replica: bool
    replicas: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Remark:
    """One statement about an index or, where one is missing, a foreign key; `bytes` are what `sql` frees."""

    kind: str  # one of KINDS
    index: str
    table: str
    text: str
    evidence: str
    sql: str = ""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Use:
    """How often an index was scanned between two looks at the counters."""

    index: str
    table: str
    scans: int


def ask(site: Site, database: str = "") -> Facts:
    """The facts of a database, as any role may see them. Raises ServerError."""
    with connected(site, database) as connection:
        row = connection.execute(catalog.get("index_use").encode()).fetchone() or {}
    return Facts(
        **{
            **row,
            "indexes": tuple(_made(IndexFacts, each) for each in row["indexes"]),
            "foreign_keys": tuple(_made(ForeignKey, each) for each in row["foreign_keys"]),
        }
    )


def judge(facts: Facts, plans: Sequence[Plan] = ()) -> list[Remark]:
    """What is to be said of the indexes, what frees most bytes first; with `plans`, also what these cannot use."""
    broken = [_broken(index) for index in facts.indexes if not index.valid]
    whole = [index for index in facts.indexes if index.valid]
    covered, kept = _sorted_out(whole)
    said = [_covered(index, by) for index, by in covered]
    scans = {index.oid: index.scans + sum(a.scans for a, by in covered if by is index) for index in kept}
    idle = [index for index in kept if not (scans[index.oid] or index.promise)]
    staying = kept
    for index in sorted(idle, key=lambda index: -index.bytes):
        if remark := _unmatched(index, _about(index, facts, plans)) or _unused(index, facts):
            rest = [other for other in staying if other is not index]
            needed = [key for key in facts.foreign_keys if _served(key, staying) and not _served(key, rest)]
            said.append(_needed(remark, needed) if needed else remark)
            staying = staying if needed else rest
    named = {(remark.index, remark.table) for remark in said}
    others = [index for index in kept if (index.name, index.table) not in named]
    said += [remark for index in others if (remark := _overlapping(index, kept))]
    missing = [_missing(key) for key in facts.foreign_keys if not _served(key, whole)]
    ordered = sorted([*broken, *said], key=lambda r: (-r.bytes, KINDS.index(r.kind), r.table, r.index))
    return [*ordered, *(remark for _, remark in sorted(missing, key=lambda found: -found[0]))]


def used(before: Mapping[str, int], after: Mapping[str, int], indexes: Sequence[IndexFacts]) -> list[Use]:
    """How often each index was used between two of `databases.scans`, the most used first.

    The counters are by name: indexes of one name in several schemas count together. Raises UsageError where a
    counter went back.
    """
    if reset := next((name for name in before if after.get(name, before[name]) < before[name]), ""):
        counts = f"{before[reset]} scans before and {after[reset]} after"
        raise UsageError(f"{reset}: {counts}; expected statistics that nobody resets meanwhile")
    uses = [Use(i.name, i.table, sum(after.get(m, 0) - before.get(m, 0) for m in i.members)) for i in indexes]
    return sorted(uses, key=lambda use: (-use.scans, use.table, use.index))


def _made(kind: type[_Fact], found: Mapping[str, Any]) -> _Fact:
    values = {each.name: found[each.name] for each in fields(kind)}
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return kind(**{**values, **lists})


def _sorted_out(whole: Sequence[IndexFacts]) -> tuple[list[tuple[IndexFacts, IndexFacts]], list[IndexFacts]]:
    """The indexes that another one covers with that one, and those that are kept.

    The broadest are looked at first, so that what covers one is itself kept.
    """
    kept: list[IndexFacts] = []
    covered = []
    for index in sorted(whole, key=_rank):
        above = [by for by in kept if _covers(by, index) and by.predicate == index.predicate]
        above.sort(key=lambda by: not _alike(by, index))
        if by := next((by for by in above if _alike(by, index) or not _much_smaller(index, by)), None):
            covered.append((index, by))
        else:
            kept.append(index)
    return covered, kept


def _rank(index: IndexFacts) -> tuple[Any, ...]:
    promises = (index.primary, bool(index.constraint), index.referenced, index.unique, index.identity)
    size = (-len(index.keys), -len(set(index.include)), -len(index.parts))
    return (*size, *(not promise for promise in promises), index.oid)


def _covers(by: IndexFacts, index: IndexFacts) -> bool:
    """Whether one serves and promises all that the other does, on the rows that both hold."""
    if by.method != index.method or not index.parts.keys() <= by.parts.keys() or not _keeps_promise(by, index):
        return False
    if index.method != "btree":
        return _alike(by, index)
    n = len(index.keys)
    same = (by.keys[:n], by.kinds[:n], by.collations[:n]) == (index.keys, index.kinds, index.collations)
    orders = by.orders[:n], tuple(order ^ _BACKWARD for order in by.orders[:n])
    return same and index.orders in orders and {*index.include} <= {*by.keys, *by.include}


def _alike(by: IndexFacts, index: IndexFacts) -> bool:
    """Whether they are the same but for what they promise."""
    shapes = [(i.method, i.keys, i.kinds, i.collations, i.orders, {*i.include}, i.predicate) for i in (by, index)]
    return shapes[0] == shapes[1] and (index.method == "btree" or {*by.options} == {*index.options})


def _keeps_promise(by: IndexFacts, index: IndexFacts) -> bool:
    if not index.promise:
        return True
    if index.primary or index.exclusion or index.identity or index.referenced:
        return False
    same = (by.unique, by.exclusion, by.immediate) == (True, False, index.immediate)
    same = same and by.nulls_equal == index.nulls_equal and by.predicate == index.predicate
    return same and len(by.keys) == len(index.keys) and bool(by.constraint or not index.constraint)


def _size_on(by: IndexFacts, index: IndexFacts) -> int:
    """Bytes of one on the tables of the other."""
    return sum(by.parts[table] for table in index.parts)


def _much_smaller(index: IndexFacts, by: IndexFacts) -> bool:
    return index.bytes * MUCH_SMALLER <= _size_on(by, index)


def _covered(index: IndexFacts, by: IndexFacts) -> Remark:
    evidence = f"catalogue: {index.shown} beside {by.shown}"
    evidence += "; no ON CONFLICT may name its constraint" if index.constraint else ""
    if _alike(by, index):
        older = "it is the older" if len(by.parts) == len(index.parts) else "its table is the whole"
        why = f"it {by.promise}" if by.promise else older
        text = f"{index.name} is a duplicate of {by.name}, which is kept: {why}"
        return Remark("duplicate", index.name, index.table, text, evidence, index.drop, index.bytes)
    backward = "" if index.orders == by.orders[: len(index.keys)] else ", read backwards"
    times = _size_on(by, index) / max(index.bytes, 1)
    text = f"{index.name} is covered by {by.name}, which begins with its keys ({', '.join(index.keys)}){backward}"
    evidence += f"; it is {times:.1f} times smaller" if times >= 1.5 else ""
    return Remark("redundant", index.name, index.table, text, evidence, index.drop, index.bytes)


def _overlapping(index: IndexFacts, kept: Sequence[IndexFacts]) -> Remark | None:
    """Of one that is nearly covered: it holds a part of the rows, or takes far fewer bytes."""
    evidence = f"catalogue: {index.shown} beside "
    for by in (by for by in kept if by is not index and _covers(by, index) and _size_on(by, index) >= SMALL):
        times = _size_on(by, index) / max(index.bytes, 1)
        smaller = f"{times:.1f} times smaller: it may still be worth it" if times >= 1.5 else "and hardly smaller"
        if by.predicate == index.predicate and _much_smaller(index, by):
            text = f"{index.name} is covered by {by.name}, and {smaller}"
        elif index.predicate and not by.predicate:
            text = f"{index.name} is the part of {by.name} where {index.predicate}, {smaller}"
        else:
            continue
        return Remark("overlapping", index.name, index.table, text, evidence + by.shown)
    return None


def _broken(index: IndexFacts) -> Remark:
    evidence = "catalogue: indisvalid, indisready or indislive is false; it is never read, and may be written to"
    text = f"{index.name} is invalid: a build failed or was interrupted"
    sql = f"REINDEX INDEX CONCURRENTLY {index.quoted}"
    freed = 0
    if index.busy:
        text = f"{index.name} is invalid, and may just be being built: look again when nothing works on its table"
        sql = ""
        evidence += "; ShareUpdateExclusiveLock is held on its table"
    elif index.partitioned:
        text, sql = f"{index.name} is invalid: a partition has no index attached to it, or an invalid one", ""
    elif index.exclusion:
        sql = f"REINDEX INDEX {index.quoted}"  # which cannot be done beside writers
    elif _LEFTOVER.search(index.name):
        text, sql, freed = f"{index.name} is what an interrupted REINDEX CONCURRENTLY left", index.drop, index.bytes
    return Remark("invalid", index.name, index.table, text, evidence, sql, freed)


def _unused(index: IndexFacts, facts: Facts) -> Remark | None:
    if index.bytes < SMALL or not facts.counted:
        return None
    weak = [f"the counters are {facts.days:.1f} days old"] if facts.days < YOUNG else []
    weak += ["this is a replica, and the primary counts its own"] if facts.replica else []
    weak += [f"{facts.replicas} replicas count their own"] if facts.replicas else []
    others = sum(i.scans for i in facts.indexes if not i.parts.keys().isdisjoint(index.parts))
    weak += [] if index.table_scans or others else ["its table was not read either"]
    expression = any(not re.fullmatch(r'"(?:[^"]|"")*"|\w[\w$]*', key) for key in index.keys)
    weak += ["the planner may use the statistics of its expression"] if expression else []
    text = f"{index.name} was not used since {facts.since}"
    evidence = "counters: no scan" + (f"; weak evidence: {', '.join(weak)}" if weak else "")
    return Remark("unused", index.name, index.table, text, evidence, index.drop, index.bytes)


def _needed(remark: Remark, keys: Sequence[ForeignKey]) -> Remark:
    key = keys[0]
    text = f"{remark.text}, and is the only one for the foreign key {key.name}: changes of {key.parent} need it"
    return Remark(remark.kind, remark.index, remark.table, text, remark.evidence)


def _served(key: ForeignKey, indexes: Sequence[IndexFacts]) -> bool:
    """Whether on all its tables an index begins with its columns, in any order."""
    found = {table for index in indexes if _begins(index, key) for table in index.parts}
    return key.parts.keys() <= found


def _begins(index: IndexFacts, key: ForeignKey) -> bool:
    n = len(key.columns)
    plain = index.method in ("btree", "hash") and not any(index.collations[:n])
    whole = index.predicate in ("", *(f"({column} IS NOT NULL)" for column in key.columns))
    return plain and whole and {*index.keys[:n]} == {*key.columns}


def _missing(key: ForeignKey) -> tuple[int, Remark]:
    size, columns = sum(key.parts.values()), ", ".join(key.columns)
    text = f"no index begins with ({columns}), which the foreign key {key.name} looks up for rows of {key.parent}"
    evidence = (
        f"catalogue; {key.changes} rows of {key.parent} were changed or deleted, {size} bytes would be read for each"
    )
    how = "" if key.partitioned else "CONCURRENTLY "
    return size, Remark(
        "missing", "", key.table, text, evidence, f"CREATE INDEX {how}ON {key.quoted_table} ({columns})"
    )


def _unmatched(index: IndexFacts, plans: Sequence[Plan]) -> Remark | None:
    """Of one whose first key the plans' conditions compare, but never in the way that it is made for."""
    leading = predicates(f"(({index.keys[0]}) = 0)")
    plain = bool(leading and leading[0].column)
    kind, collation = index.kinds[0], index.collations[0]
    if not leading or (plain and kind not in _SERVED and not collation):
        return None
    if any(node.text("Index Name") in index.members for plan in plans for node in plan.nodes):
        return None
    wanted = _squeezed(index.keys[0])
    if not plain and any(wanted in _squeezed(text) for plan in plans for text in _texts(plan)):
        return None
    compared = [p for plan in plans for p in _compared(plan, index) if p.columns & leading[0].columns]
    if not compared or (plain and any(_matches(p, kind, collation) for p in compared)):
        return None
    made = index.keys[0] if not plain else f"{index.keys[0]} {kind}" if kind else f"{index.keys[0]} in {collation}"
    seen = "; ".join(list(dict.fromkeys(p.text for p in compared))[:3])
    text = f"{index.name} is on {made}, and no condition of the statements given is"
    return Remark(
        "unmatched", index.name, index.table, text, f"conditions in {len(plans)} plans: {seen}", index.drop, index.bytes
    )


def _about(index: IndexFacts, facts: Facts, plans: Sequence[Plan]) -> list[Plan]:
    """The plans that read its table; none where plans, which name no schema, could mean another of that name."""
    tables = {other.table for other in facts.indexes}
    alike = [table for table in tables if table.rpartition(".")[2] == index.table.rpartition(".")[2]]
    return [plan for plan in plans if len(alike) == 1 and any(_reads(node, index) for node in plan.nodes)]


def _reads(node: Node, index: IndexFacts) -> bool:
    schema, _, table = index.table.rpartition(".")
    return node.text("Relation Name") == table and node.text("Schema") in ("", schema or "public")


def _texts(plan: Plan) -> Iterator[str]:
    return (text for node in plan.nodes for key in _TEXTS for text in node.texts(key))


def _compared(plan: Plan, index: IndexFacts) -> Iterator[Predicate]:
    """The conditions on its table: at the scan without a qualifier, elsewhere with the table's alias."""
    for scan in (node for node in plan.nodes if _reads(node, index)):
        alias = scan.text("Alias")
        below = [*scan.below()]
        for node in plan.nodes:
            names = None if node in below else frozenset[str]()
            for key in _CONDITIONS:
                yield from predicates(node.text(key), alias, names) if node.text(key) else ()


def _matches(p: Predicate, kind: str, collation: str) -> bool:
    """Whether an index on the plain column can serve it; what is not understood might be."""
    if not p.operator or p.operator == "OR":
        return True
    if collation:
        return p.operator in _PATTERNS or p.operator.startswith("IS ") or f"COLLATE {collation}" in p.text
    return p.operator in _SERVED[kind]


def _squeezed(text: str) -> str:
    """Without qualifiers, parentheses and spaces, which depend on where an expression stands."""
    return re.sub(r"""("(?:[^"]|"")*"|[A-Za-z_][\w$]*)\.(?=["A-Za-z_])|[() ]""", "", text)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
