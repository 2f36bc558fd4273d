"""Duplicate, redundant, unused, broken and missing indexes.

All statements of one judgement can be run together: for every duplicate that is dropped another index stays, every
foreign key that has an index keeps one, and an index that does more than speed up reads (a constraint, a replica
identity) is never dropped. No statement relies on counters that are too young or that leave out a standby.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from perfkit.base.errors import UsageError
from perfkit.base.units import count, size
from perfkit.explain.facts import Predicate, predicates
from perfkit.explain.plan import Node, Plan
from perfkit.indexes.coverage import (
    MIN_AGE,
    PATTERN_CLASSES,
    Counters,
    ForeignKey,
    IndexFacts,
    Replaced,
    alike,
    alone_used,
    covers,
    losing,
    much_smaller,
    replaced,
    served,
    size_on,
)
from perfkit.postgres import catalog
from perfkit.postgres.databases import connected
from perfkit.postgres.servers import Server
from perfkit.show.html import Cell, Code, Column, Section, Table, number, stacked

SMALL = 32 * 1024  # bytes below which an unused index is not reported
_LEFTOVER = re.compile(r"_cc(new|old)\d*$")
_CONDITIONS = ("Filter", "Index Cond", "Recheck Cond", "Join Filter", "Hash Cond", "Merge Cond")
_TEXTS = (*_CONDITIONS, "Sort Key", "Group Key", "Presorted Key", "Output")
_PATTERNS = frozenset({"~~", "~", "^@"})
_EQUAL = frozenset({"=", "= ANY", "IS NULL", "IS NOT NULL"})
_SERVED = {  # operators by operator class; other classes are never reported as unmatched
    **dict.fromkeys(
        PATTERN_CLASSES,
        _EQUAL | _PATTERNS | {"~<~", "~<=~", "~>~", "~>=~"},
    ),
    "jsonb_path_ops": frozenset({"@>", "@?", "@@"}),
}
KINDS = ("invalid", "duplicate", "redundant", "unmatched", "unused", "overlapping", "missing")  # the most certain first
_STATES = {"invalid": "bad", "overlapping": "quiet", "missing": "unsure"}


@dataclass(frozen=True, slots=True)
class CatalogueFacts:
    """The indexes and foreign keys of a database, with its usage counters."""

    indexes: tuple[IndexFacts, ...]
    foreign_keys: tuple[ForeignKey, ...]
    counters: Counters


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding on an index or, if an index is missing, on a foreign key; `bytes` are what `sql` frees.

    `kept` names the index, with its schema, that replaces the dropped one; `undo` says how to undo `sql`.
    """

    kind: str  # one of KINDS
    index: str
    table: str
    text: str
    evidence: str
    sql: str = ""
    bytes: int = 0
    kept: str = ""
    undo: str = ""


def ask(server: Server, database: str = "") -> CatalogueFacts:
    """Return the facts of a database; any role may read them. Raises ServerError."""
    with connected(server, database) as connection:
        row = connection.execute(catalog.get("index_use").encode()).fetchone() or {}
    return TypeAdapter(CatalogueFacts).validate_python(row)


def joined(primary: CatalogueFacts, standbys: Mapping[str, CatalogueFacts]) -> CatalogueFacts:
    """Return the facts of a primary plus the scans on its standbys. Raises UsageError for any other server."""
    seen = {primary.counters.server: "--db"}
    whole = primary
    for name, standby in standbys.items():
        theirs = standby.counters
        if primary.counters.replica or not theirs.replica or theirs.database != primary.counters.database:
            raise UsageError(f"{name}: expected a standby of the database that --db names, which is the primary")
        if theirs.server in seen:
            raise UsageError(f"{name}: the same server as {seen[theirs.server]}; expected each standby only once")
        seen[theirs.server] = name
        there = {index.oid: index for index in standby.indexes}
        indexes = []
        for index in whole.indexes:
            scans, table_scans = (on.scans, on.table_scans) if (on := there.get(index.oid)) else (0, 0)
            scans, table_scans = index.scans + scans, index.table_scans + table_scans
            indexes.append(replace(index, scans=scans, table_scans=table_scans))
        whole = replace(whole, indexes=tuple(indexes), counters=whole.counters.including(theirs))
    return whole


def judge(facts: CatalogueFacts, plans: Sequence[Plan] = (), min_age: float = MIN_AGE) -> list[Remark]:
    """Return remarks on the indexes, those that free most bytes first.

    With `plans`, also report indexes that the plans cannot use. Counters younger than `min_age` days are no reason to
    drop an index.
    """
    whole = [index for index in facts.indexes if index.valid]
    pairs = replaced(whole)
    gone = {pair.index.oid for pair in pairs if not pair.index.promise}
    reasons = {pair.by.oid for pair in pairs}
    staying = [index for index in whole if index.oid not in gone]
    remarks = [_covered(pair) for pair in pairs]
    idle = [index for index in staying if not (index.scans or index.promise or index.oid in reasons)]
    doubt = facts.counters.doubt(min_age)
    for index in sorted(idle, key=lambda index: -index.bytes):
        if remark := _unmatched(index, _about(index, facts, plans)) or _unused(index, facts):
            rest = [other for other in staying if other is not index]
            needed = losing(facts.foreign_keys, staying, rest)
            unread = "" if _read(index, facts) else "its table was not read either"
            remarks.append(_withheld(remark, needed, doubt or unread))
            staying = rest if remarks[-1].sql else staying
    named = {(remark.index, remark.table) for remark in remarks}
    others = (index for index in staying if (index.name, index.table) not in named)
    remarks += [remark for index in others if (remark := _overlapping(index, staying))]
    remarks += [_broken(index) for index in facts.indexes if not index.valid]
    remarks.sort(key=lambda r: (-r.bytes, KINDS.index(r.kind), r.table, r.index))
    return [*remarks, *_missing([key for key in facts.foreign_keys if not served(key, whole)])]


def script(remarks: Sequence[Remark]) -> list[str]:
    """Return the statements as lines for psql, each below its reason; CREATE INDEX comes before DROP INDEX."""
    lines = []
    for remark in sorted((r for r in remarks if r.sql), key=lambda r: r.sql.startswith("DROP ")):
        lines += [f"-- {_one_line(remark.text)}", f"-- to undo: {_one_line(remark.undo)}"]
        # Other sessions queue behind a statement that waits for its lock, except with CONCURRENTLY.
        timeout = [] if remark.sql.split(" ")[2] == "CONCURRENTLY" else ["SET lock_timeout = '5s';"]
        lines += [*timeout, f"{remark.sql};", *(["RESET lock_timeout;"] if timeout else [])]
    return lines


def remarks_block(facts: CatalogueFacts, remarks: Sequence[Remark]) -> Section:
    """Return the remarks as a table with their statements below it, to copy."""
    title = "Statements to review (run them one by one: CONCURRENTLY cannot run in a transaction)"
    lines = script(remarks)
    return stacked(remarks_table(facts, remarks), Section([Code("\n".join(lines), title)], title) if lines else None)


def remarks_table(facts: CatalogueFacts, remarks: Sequence[Remark]) -> Table:
    """Return one row for each remark, with a note on the number of indexes and on their usage counters."""
    columns: list[Column[Remark]] = [
        Column("finding", lambda remark: Cell(remark.kind, state=_STATES.get(remark.kind, ""))),
        Column("table", lambda remark: remark.table),
        Column("reason", lambda remark: Cell(remark.text, remark.evidence)),
        number("frees", lambda remark: remark.bytes or None, size, "frees_bytes"),
    ]
    since = facts.counters.since
    counters = f"use counted since {since}" if since else "the start of counting is unknown"
    counters = counters if facts.counters.counted else "use is not counted (track_counts is off)"
    note = f"{count(len(facts.indexes))} indexes, {size(sum(index.bytes for index in facts.indexes))}; {counters}."
    return Table.of("Indexes", columns, remarks, note=note if remarks else f"no problems found in {note}")


def _one_line(text: str) -> str:
    """Return text for an SQL comment, which a line break would end."""
    return " ".join(text.splitlines())


def _covered(pair: Replaced) -> Remark:
    index, by = pair.index, pair.by
    evidence = f"catalogue: {index.shown} beside {by.shown}"
    if alike(by, index):
        kind = "duplicate"
        text = f"{index.name} is a duplicate of {by.name}, which is kept: {_preference(index, by)}"
    else:
        kind = "redundant"
        backward = "" if index.orders == by.orders[: len(index.keys)] else ", read backwards"
        keys = ", ".join(index.keys)
        text = f"{index.name} is covered by {by.name}, which begins with its keys ({keys}){backward}"
        times = size_on(by, index) / max(index.bytes, 1)
        evidence += f"; it is {times:.1f} times smaller" if times >= 1.5 else ""
    if index.promise:
        evidence += f"; no statement, because {index.name} {index.promise}"
        evidence += ", which an ON CONFLICT may name" if index.constraint else ""
        return Remark(kind, index.name, index.table, text, evidence)
    return _dropping(kind, index, text, evidence, by.quoted)


def _preference(index: IndexFacts, by: IndexFacts) -> str:
    """Return why one of two equal indexes is kept."""
    if by.promise:
        return f"it {by.promise}"
    if len(by.parts) > len(index.parts):
        return "it is on the partitioned table, not on a partition"
    return f"it is used more ({by.scans} scans, {index.scans})" if by.scans > index.scans else "it is the older"


def _dropping(kind: str, index: IndexFacts, text: str, evidence: str, kept: str = "") -> Remark:
    return Remark(kind, index.name, index.table, text, evidence, index.drop, index.bytes, kept, index.create)


def _withheld(remark: Remark, needed: Sequence[ForeignKey], doubt: str) -> Remark:
    """Return a remark without its statement if a foreign key needs the index, or if its use is in doubt."""
    bare = replace(remark, sql="", bytes=0, kept="", undo="")
    if needed:
        key = needed[0]
        text = f"{remark.text}, but is the only index for the foreign key {key.name}: changes of {key.parent} need it"
        return replace(bare, text=text)
    return replace(bare, evidence=f"{remark.evidence}; no statement, because {doubt}") if doubt else remark


def _read(index: IndexFacts, facts: CatalogueFacts) -> bool:
    """Return whether anything read the table of an index since the counters began."""
    return bool(index.table_scans or any(i.scans for i in facts.indexes if not i.parts.keys().isdisjoint(index.parts)))


def _overlapping(index: IndexFacts, staying: Sequence[IndexFacts]) -> Remark | None:
    """Return a remark on an index that is nearly covered: only it is used, or it is partial or far smaller."""
    for by in (by for by in staying if by is not index and covers(by, index) and size_on(by, index) >= SMALL):
        times = size_on(by, index) / max(index.bytes, 1)
        smaller = f"{times:.1f} times smaller: it may still be worth it" if times >= 1.5 else "and hardly smaller"
        if by.predicate == index.predicate and alone_used(index, by):
            text = f"{index.name} is covered by {by.name}, but only {index.name} is used ({index.scans} scans)"
        elif by.predicate == index.predicate:
            text = f"{index.name} is covered by {by.name}, and {smaller}" if much_smaller(index, by) else ""
        else:
            text = "" if by.predicate else f"{index.name} is the part of {by.name} where {index.predicate}, {smaller}"
        if text:
            return Remark("overlapping", index.name, index.table, text, f"catalogue: {index.shown} beside {by.shown}")
    return None


def _broken(index: IndexFacts) -> Remark:
    evidence = "catalogue: indisvalid, indisready or indislive is false; it is never read, and may be written to"
    text = f"{index.name} is invalid: a build failed or was interrupted"
    # CONCURRENTLY does not support exclusion constraints.
    sql = f"REINDEX INDEX {'' if index.exclusion else 'CONCURRENTLY '}{index.quoted}"
    undo = "nothing to undo; the index is rebuilt unchanged"
    if index.busy:
        text = f"{index.name} is invalid, but a build may still be running: check again when its table is idle"
        evidence, sql, undo = f"{evidence}; ShareUpdateExclusiveLock is held on its table", "", ""
    elif index.partitioned:
        text, sql, undo = f"{index.name} is invalid: a partition has no index attached to it, or an invalid one", "", ""
    elif _LEFTOVER.search(index.name) and not index.exclusion:
        text = f"{index.name} was left behind by an interrupted REINDEX CONCURRENTLY"
        return _dropping("invalid", index, text, evidence)
    return Remark("invalid", index.name, index.table, text, evidence, sql, undo=undo)


def _unused(index: IndexFacts, facts: CatalogueFacts) -> Remark | None:
    if index.bytes < SMALL or not facts.counters.counted:
        return None
    # The catalogue has no creation dates: an index that is younger than the counters was counted for less time.
    since = facts.counters.since
    text = f"{index.name} was not used since " + (f"{since} or since it was built" if since else "counting began")
    standbys = facts.counters.standbys
    evidence = "counters: no scan" + (f"; standbys that were asked too: {standbys}" if standbys else "")
    if any(not re.fullmatch(r'"(?:[^"]|"")*"|\w[\w$]*', key) for key in index.keys):
        evidence += "; the planner may use the statistics of its expression, which CREATE STATISTICS can replace"
        text += "; dropping it also drops the statistics of its expression"
    return _dropping("unused", index, text, evidence)


def _missing(keys: Sequence[ForeignKey]) -> list[Remark]:
    """Return one remark for each group of foreign keys that one index would serve, the largest tables first."""
    groups: list[list[ForeignKey]] = []
    for key in sorted(keys, key=lambda key: (-len(key.columns), -len(key.parts))):
        if group := next((group for group in groups if _also_serves(group[0], key)), None):
            group.append(key)
        else:
            groups.append([key])
    groups.sort(key=lambda group: -sum(group[0].parts.values()))
    return [_missing_for(group) for group in groups]


def _also_serves(first: ForeignKey, key: ForeignKey) -> bool:
    """Return whether an index for one foreign key would serve another one of the same table or of its partition."""
    return key.parts.keys() <= first.parts.keys() and {*first.columns[: len(key.columns)]} == {*key.columns}


def _missing_for(keys: Sequence[ForeignKey]) -> Remark:
    key, columns = keys[0], ", ".join(keys[0].columns)
    names = ", ".join(sorted(each.name for each in keys))
    parents = ", ".join(sorted({each.parent for each in keys}))
    changes, size = sum({each.parent: each.changes for each in keys}.values()), sum(key.parts.values())
    plural, look = ("s", "look") if len(keys) > 1 else ("", "looks")
    text = f"no index begins with ({columns}), which the foreign key{plural} {names} {look} up for rows of {parents}"
    text += "; building the index blocks writes, because the table is partitioned" if key.partitioned else ""
    evidence = f"catalogue; {changes} rows of {parents} were changed or deleted, and each would read {size} bytes"
    sql = f"CREATE INDEX {'' if key.partitioned else 'CONCURRENTLY '}ON {key.quoted_table} ({columns})"
    return Remark("missing", "", key.table, text, evidence, sql, undo="drop the index that this statement creates")


def _unmatched(index: IndexFacts, plans: Sequence[Plan]) -> Remark | None:
    """Return a remark on an index whose first key the plans compare, but never with an operator of its class."""
    leading = predicates(f"(({index.keys[0]}) = 0)")
    plain = bool(leading and leading[0].column)
    kind, collation = index.kinds[0], index.collations[0]
    if not leading or (plain and kind not in _SERVED and not collation):
        return None
    if any(node.index in index.members for plan in plans for node in plan.nodes):
        return None
    wanted = _squeezed(index.keys[0])
    if not plain and any(wanted in _squeezed(text) for plan in plans for text in _texts(plan)):
        return None
    compared = [p for plan in plans for p in _compared(plan, index) if p.columns & leading[0].columns]
    if not compared or (plain and any(_matches(p, kind, collation) for p in compared)):
        return None
    made = index.keys[0] if not plain else f"{index.keys[0]} {kind}" if kind else f"{index.keys[0]} in {collation}"
    seen = "; ".join(list(dict.fromkeys(p.text for p in compared))[:3])
    text = f"{index.name} is on {made}, but no condition of the given statements can use that"
    return _dropping("unmatched", index, text, f"conditions in {len(plans)} plans: {seen}")


def _about(index: IndexFacts, facts: CatalogueFacts, plans: Sequence[Plan]) -> list[Plan]:
    """Return the plans that read the table; none if a plan, which names no schema, could mean another table."""
    tables = {other.table for other in facts.indexes}
    alike = [table for table in tables if table.rpartition(".")[2] == index.table.rpartition(".")[2]]
    return [plan for plan in plans if len(alike) == 1 and any(_reads(node, index) for node in plan.nodes)]


def _reads(node: Node, index: IndexFacts) -> bool:
    schema, _, table = index.table.rpartition(".")
    return node.table == table and node.schema in ("", schema or "public")


def _texts(plan: Plan) -> Iterator[str]:
    return (text for node in plan.nodes for key in _TEXTS for text in node.texts(key))


def _compared(plan: Plan, index: IndexFacts) -> Iterator[Predicate]:
    """Yield the conditions on the table: unqualified at its scan, with the table's alias elsewhere."""
    for scan in (node for node in plan.nodes if _reads(node, index)):
        alias = scan.alias
        below = [*scan.below()]
        for node in plan.nodes:
            names = None if node in below else frozenset[str]()
            for key in _CONDITIONS:
                yield from (p for text in node.texts(key) for p in predicates(text, alias, names))


def _matches(p: Predicate, kind: str, collation: str) -> bool:
    """Return whether an index on the plain column can serve the condition; if in doubt, it can."""
    if not p.operator or p.operator == "OR":
        return True
    if collation:
        return p.operator in _PATTERNS or p.operator.startswith("IS ") or f"COLLATE {collation}" in p.text
    return p.operator in _SERVED[kind]


def _squeezed(text: str) -> str:
    """Return an expression without qualifiers, parentheses and spaces, which differ from place to place."""
    return re.sub(r"""("(?:[^"]|"")*"|[A-Za-z_][\w$]*)\.(?=["A-Za-z_])|[() ]""", "", text)
