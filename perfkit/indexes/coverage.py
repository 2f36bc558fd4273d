"""Facts of indexes, foreign keys and usage counters, and which index can replace another.

An index replaces another one if no plan is lost: it serves every condition, order and index-only scan of the other on
the same rows, and costs little more to read. An index that does more than speed up reads (uniqueness, a constraint,
the replica identity, the order for CLUSTER) is never replaced without its owner's decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from perfkit.explain.facts import quoted
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import Node
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.parser import parse_statements

# Days of counting before an index is dropped as unused: longer than a month, because some jobs run once a month.
MIN_AGE = 35.0


@dataclass(frozen=True, slots=True)
class Counters:
    """When the server began to count, and whether standbys count too.

    Use is counted at least since the day `since`, `days` ago; "" and None if that is unknown. `replicas` is the
    number of standbys that the server knows of, `standbys` the number of those whose counters are included.
    """

    since: str
    days: float | None
    replica: bool
    replicas: int
    counted: bool
    database: str  # the same on a primary and its standbys
    server: str  # another on each
    standbys: int = 0

    def including(self, standby: Counters) -> Self:
        """Return the counters of a primary and a standby together; they are as old as the younger ones."""
        known = None not in (self.days, standby.days)
        return replace(
            self,
            since=max(self.since, standby.since) if known else "",
            days=min(self.days or 0.0, standby.days or 0.0) if known else None,
            replicas=self.replicas + standby.replicas,
            standbys=self.standbys + 1,
            counted=self.counted and standby.counted,
        )

    def doubt(self, min_age: float) -> str:
        """Return why the counters do not prove that an index is unused; "" if they do."""
        if not self.counted:
            return "use is not counted (track_counts is off)"
        if self.replica:
            return "this is a standby, and each server counts its own use: connect to the primary and add --standby"
        if self.replicas > self.standbys:
            return (
                f"standbys count their own use, and {self.standbys} of {self.replicas} were read: name each with "
                "--standby, or look at idx_scan in its pg_stat_user_indexes"
            )
        if self.days is None and min_age > 0:
            return "the start of counting is unknown: a restore, an upgrade or a crash resets the counters"
        if self.days is not None and self.days < min_age:
            return f"the counters are {self.days:.1f} days old, less than {min_age:g}"
        return ""


MUCH_SMALLER = 4  # times; an index may exist because it has fewer pages to read
_BACKWARD = 3  # the bits DESC and NULLS FIRST; reading backwards inverts both
# Classes for LIKE with the equality operator of the default class, which foreign keys use.
PATTERN_CLASSES = ("text_pattern_ops", "varchar_pattern_ops", "bpchar_pattern_ops")


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """An index with those of its partitions; keys and `include` are SQL, `parts` are bytes by the table's oid."""

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
    identity: bool  # logical replication identifies rows by it
    clustered: bool
    nulls_equal: bool
    constraint: str
    referenced: bool  # by foreign keys or other objects
    valid: bool
    busy: bool  # a session holds the lock of a build on its table
    parts: Mapping[str, int]
    members: tuple[str, ...]
    scans: int
    table_scans: int  # sequential, of its table

    @property
    def bytes(self) -> int:
        """Return the size on disk of all partitions."""
        return sum(self.parts.values())

    @property
    def promise(self) -> str:
        """Return what the index does besides speeding up reads; "" for nothing."""
        promises = {
            f"backs the constraint {self.constraint}": bool(self.constraint),
            "is unique": self.unique,
            "is the replica identity": self.identity,
            "is the order that CLUSTER keeps": self.clustered,
            "is needed by other objects": self.referenced,
        }
        return next((words for words, made in promises.items() if made), "")

    @property
    def shown(self) -> str:
        """Return the definition after the table."""
        return self.definition.partition(" USING ")[2]

    @property
    def drop(self) -> str:
        """Return the statement that removes the index."""
        return f"DROP INDEX {'' if self.partitioned else 'CONCURRENTLY '}{self.quoted}"

    @property
    def create(self) -> str:
        """Return the statement that creates the index again."""
        if self.partitioned:
            return self.definition.replace(" ON ONLY ", " ON ", 1)
        return self.definition.replace("INDEX ", "INDEX CONCURRENTLY ", 1)


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key; `parts` are bytes by table oid, `changes` the rows of the parent updated or deleted."""

    name: str
    table: str
    quoted_table: str
    partitioned: bool
    parent: str
    columns: tuple[str, ...]
    parts: Mapping[str, int]
    changes: int


@dataclass(frozen=True, slots=True)
class Replaced:
    """An index and the index that replaces it."""

    index: IndexFacts
    by: IndexFacts


def replaced(indexes: Iterable[IndexFacts]) -> list[Replaced]:
    """Return the indexes that another one replaces, each with an index that stays.

    The broadest indexes come first, so that the replacement of an index is already known to stay.
    """
    staying: list[IndexFacts] = []
    pairs = []
    for index in sorted(indexes, key=_rank):
        by = _replacement(index, staying)
        if by:
            pairs.append(Replaced(index, by))
        if not by or index.promise:
            staying.append(index)
    return pairs


def covers(by: IndexFacts, index: IndexFacts) -> bool:
    """Return whether `by` does everything that `index` does, on all of its rows."""
    if by.method != index.method or not index.parts.keys() <= by.parts.keys() or not _keeps_promise(by, index):
        return False
    if index.method != "btree":
        return alike(by, index)
    n = len(index.keys)
    same = (by.keys[:n], by.kinds[:n], by.collations[:n]) == (index.keys, index.kinds, index.collations)
    orders = by.orders[:n], tuple(order ^ _BACKWARD for order in by.orders[:n])
    return same and index.orders in orders and {*index.include} <= {*by.keys, *by.include}


def alike(by: IndexFacts, index: IndexFacts) -> bool:
    """Return whether two indexes differ at most in what they do besides speeding up reads."""
    shapes = [(i.method, i.keys, i.kinds, i.collations, i.orders, {*i.include}, i.predicate) for i in (by, index)]
    return shapes[0] == shapes[1] and (index.method == "btree" or {*by.options} == {*index.options})


def size_on(by: IndexFacts, index: IndexFacts) -> int:
    """Return the bytes of one index on the tables of the other."""
    return sum(by.parts[table] for table in index.parts)


def much_smaller(index: IndexFacts, by: IndexFacts) -> bool:
    """Return whether an index is so small that the other one is no substitute for it."""
    return index.bytes * MUCH_SMALLER <= size_on(by, index)


def alone_used(index: IndexFacts, by: IndexFacts) -> bool:
    """Return whether only `index` was used: the planner prefers it."""
    return index.scans > 0 and by.scans == 0


def served(key: ForeignKey, indexes: Iterable[IndexFacts]) -> bool:
    """Return whether every table of a foreign key has an index that begins with its columns, in any order."""
    found = {table for index in indexes if _begins(index, key) for table in index.parts}
    return key.parts.keys() <= found


def losing(keys: Iterable[ForeignKey], before: Sequence[IndexFacts], after: Sequence[IndexFacts]) -> list[ForeignKey]:
    """Return the foreign keys that have an index in `before` and none in `after`."""
    return [key for key in keys if served(key, before) and not served(key, after)]


def _rank(index: IndexFacts) -> tuple[int, ...]:
    promises = (index.primary, bool(index.constraint), index.referenced, index.unique, index.identity, index.clustered)
    size = (-len(index.keys), -len(set(index.include)), -len(index.parts))
    return (*size, *(not promise for promise in promises), -index.scans, index.oid)


def _replacement(index: IndexFacts, staying: Sequence[IndexFacts]) -> IndexFacts | None:
    """Return the index that can replace this one, an equal one if possible; None if there is none."""
    above = [by for by in staying if covers(by, index) and by.predicate == index.predicate]
    equal = [by for by in above if alike(by, index)]
    broader = (by for by in above if not (much_smaller(index, by) or alone_used(index, by)))
    return equal[0] if equal else next(broader, None)


def _keeps_promise(by: IndexFacts, index: IndexFacts) -> bool:
    if not index.promise:
        return True
    if index.primary or index.exclusion or index.identity or index.referenced or index.clustered:
        return False
    same = (by.unique, by.exclusion, by.immediate) == (True, False, index.immediate)
    same = same and by.nulls_equal == index.nulls_equal and by.predicate == index.predicate
    return same and len(by.keys) == len(index.keys) and bool(by.constraint or not index.constraint)


def _begins(index: IndexFacts, key: ForeignKey) -> bool:
    n = len(key.columns)
    equal = all(kind in ("", *PATTERN_CLASSES) for kind in index.kinds[:n]) and not any(index.collations[:n])
    whole = index.predicate in ("", *(f"({column} IS NOT NULL)" for column in key.columns))
    return index.method in ("btree", "hash") and equal and whole and {*index.keys[:n]} == {*key.columns}


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
