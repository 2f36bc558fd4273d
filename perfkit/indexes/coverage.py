"""Which index replaces another, and how far counters can be trusted.

An index replaces another one if no plan is lost: it serves every condition, order and index-only scan of the other on
the same rows, and costs little more to read. An index that a promise hangs on (uniqueness, a constraint, the replica
identity, the order for CLUSTER) is never replaced without its owner's decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

# Days of counting without which no index is dropped as unused: longer than any month, for what runs once in each.
MIN_AGE = 35.0


@dataclass(frozen=True, slots=True)
class Counters:
    """When counting began, and who else counts.

    Use is counted at least since the day `since`, `days` ago; "" and None where that is unknown. `replicas` is the
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
        """Return the counters of a primary together with those of a standby: only as old as the younger ones."""
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
        """Return why no index may be dropped for not being used; "" if the counters tell."""
        if not self.counted:
            return "use is not counted (track_counts is off)"
        if self.replica:
            return "this is a standby, and other servers count their own use: ask the primary, with --standby"
        if self.replicas > self.standbys:
            return (
                f"standbys count their own use, and {self.standbys} of {self.replicas} were asked: name each with "
                "--standby, or look at idx_scan in its pg_stat_user_indexes"
            )
        if self.days is None and min_age > 0:
            return "since when use is counted is not known: a restore, an upgrade and a crash begin anew"
        if self.days is not None and self.days < min_age:
            return f"the counters are {self.days:.1f} days old, less than {min_age:g}"
        return ""


# Which index another one replaces, and which foreign keys an index serves: decided from definitions alone.

MUCH_SMALLER = 4  # times; reading fewer pages may be what an index is for
_BACKWARD = 3  # the bits DESC and NULLS FIRST, which reading backwards turns both
# Classes for LIKE that share the equality operator of the default class, by which foreign keys are looked up.
PATTERN_CLASSES = ("text_pattern_ops", "varchar_pattern_ops", "bpchar_pattern_ops")


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
    clustered: bool
    nulls_equal: bool
    constraint: str
    referenced: bool  # by foreign keys, or by what else depends on it
    valid: bool
    busy: bool  # something holds the lock of a build on its table
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
        """Return what the index is for beyond being read; "" for nothing."""
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
        """Return the statement that makes the index anew."""
        if self.partitioned:
            return self.definition.replace(" ON ONLY ", " ON ", 1)
        return self.definition.replace("INDEX ", "INDEX CONCURRENTLY ", 1)


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
class Replaced:
    """An index and the one that replaces it."""

    index: IndexFacts
    by: IndexFacts


def replaced(indexes: Iterable[IndexFacts]) -> list[Replaced]:
    """Return the indexes that another one replaces. That other one is itself replaced by none, or has a promise.

    The broadest are looked at first, so that whatever replaces an index is known to stay.
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
    """Return whether one serves and promises all that the other does, on the rows that both hold."""
    if by.method != index.method or not index.parts.keys() <= by.parts.keys() or not _keeps_promise(by, index):
        return False
    if index.method != "btree":
        return alike(by, index)
    n = len(index.keys)
    same = (by.keys[:n], by.kinds[:n], by.collations[:n]) == (index.keys, index.kinds, index.collations)
    orders = by.orders[:n], tuple(order ^ _BACKWARD for order in by.orders[:n])
    return same and index.orders in orders and {*index.include} <= {*by.keys, *by.include}


def alike(by: IndexFacts, index: IndexFacts) -> bool:
    """Return whether two indexes are the same but for what they promise."""
    shapes = [(i.method, i.keys, i.kinds, i.collations, i.orders, {*i.include}, i.predicate) for i in (by, index)]
    return shapes[0] == shapes[1] and (index.method == "btree" or {*by.options} == {*index.options})


def size_on(by: IndexFacts, index: IndexFacts) -> int:
    """Return the bytes of one index on the tables of the other."""
    return sum(by.parts[table] for table in index.parts)


def much_smaller(index: IndexFacts, by: IndexFacts) -> bool:
    """Return whether an index takes so few bytes that the other one is no substitute for it."""
    return index.bytes * MUCH_SMALLER <= size_on(by, index)


def alone_used(index: IndexFacts, by: IndexFacts) -> bool:
    """Return whether an index was used and the other one was not: the planner prefers it."""
    return index.scans > 0 and by.scans == 0


def served(key: ForeignKey, indexes: Iterable[IndexFacts]) -> bool:
    """Return whether on all tables of a foreign key an index begins with its columns, in any order."""
    found = {table for index in indexes if _begins(index, key) for table in index.parts}
    return key.parts.keys() <= found


def losing(keys: Iterable[ForeignKey], before: Sequence[IndexFacts], after: Sequence[IndexFacts]) -> list[ForeignKey]:
    """Return the foreign keys that some indexes serve, all together, and others no longer do."""
    return [key for key in keys if served(key, before) and not served(key, after)]


def _rank(index: IndexFacts) -> tuple[Any, ...]:
    promises = (index.primary, bool(index.constraint), index.referenced, index.unique, index.identity, index.clustered)
    size = (-len(index.keys), -len(set(index.include)), -len(index.parts))
    return (*size, *(not promise for promise in promises), -index.scans, index.oid)


def _replacement(index: IndexFacts, staying: Sequence[IndexFacts]) -> IndexFacts | None:
    """Return the index that does as well, if there is one; of several one that is the same."""
    above = [by for by in staying if covers(by, index) and by.predicate == index.predicate]
    above.sort(key=lambda by: not alike(by, index))
    return next(
        (by for by in above if alike(by, index) or not (much_smaller(index, by) or alone_used(index, by))), None
    )


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
