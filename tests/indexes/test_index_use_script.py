"""All statements about a database's indexes, run one after the other on databases that chance composes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scripts import run_all

from perfkit.indexes.use import CatalogueFacts, Remark, ask, judge, script
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

NAME = "index_use_script"
TABLES = """
CREATE TABLE p (id int PRIMARY KEY, x int UNIQUE, UNIQUE (id, x));
INSERT INTO p SELECT n, n FROM generate_series(0, 99) n;
CREATE TABLE t (u int NOT NULL, a int, b int, c int, d text);
INSERT INTO t SELECT n, n % 100, n % 100, n % 7, 'note ' || n FROM generate_series(1, 3000) n;
CREATE TABLE q (u int NOT NULL, a int, b int, c int, d text) PARTITION BY RANGE (u);
CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (0) TO (1500);
CREATE TABLE q2 PARTITION OF q FOR VALUES FROM (1500) TO (9999);
INSERT INTO q SELECT * FROM t;
"""
# What is there to be lost: constraints with their indexes, unique and clustered indexes, replica identities.
PROMISES = """
SELECT i.relname, x.indisunique, x.indisprimary, x.indisreplident, x.indisclustered, x.indisvalid,
       pg_get_indexdef(x.indexrelid) AS definition, c.conname
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid LEFT JOIN pg_constraint c ON c.conindid = x.indexrelid
WHERE i.relnamespace = 'public'::regnamespace AND (x.indisunique OR x.indisclustered OR c.oid IS NOT NULL)
ORDER BY i.relname, c.conname
"""
# The foreign keys that an index serves on every table with rows, said without perfkit's own words for it.
SERVED = """
SELECT f.conname FROM pg_constraint f
WHERE f.contype = 'f' AND f.conparentid = 0 AND NOT EXISTS (
    SELECT FROM (SELECT f.conrelid AS oid UNION SELECT relid FROM pg_partition_tree(f.conrelid)) leaf
    JOIN pg_class t ON t.oid = leaf.oid AND t.relkind = 'r'
    WHERE NOT EXISTS (
        SELECT FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam
        WHERE x.indrelid = t.oid AND x.indisvalid AND x.indpred IS NULL AND m.amname IN ('btree', 'hash')
          AND ARRAY(SELECT unnest((x.indkey::int2[])[0:cardinality(f.conkey) - 1]) ORDER BY 1)
            = ARRAY(SELECT unnest(f.conkey) ORDER BY 1)))
ORDER BY f.conname
"""
DEFINITIONS = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname"

KEYS = ["u", "a", "b", "c", "d", "a", "b", "lower(d)", "d text_pattern_ops", 'd COLLATE "C"']
ORDERS = [*[""] * 9, " DESC", " NULLS FIRST", " DESC NULLS LAST"]
FOREIGN_KEYS = [f"({columns}) REFERENCES p ({keys})" for columns, keys in [
    ("a", "id"), ("a", "id"), ("b", "id"), ("b", "x"), ("a, b", "id, x"), ("b, a", "id, x"), ("c", "id"),
]]  # fmt: skip
QUERIES = ["a = 7", "b = 7", "a = 7 AND b = 7", "u = 7", "lower(d) = 'note 7'", "d LIKE 'note 7%'", "c = 3 AND a = 7"]


@dataclass(frozen=True)
class Case:
    """Statements that make indexes and keys, queries that use some, and how far the counters can be trusted."""

    statements: tuple[str, ...]
    queries: tuple[str, ...]
    scans: dict[str, int]  # by index, those of other days
    counters: dict[str, Any]

    @property
    def trusted(self) -> bool:
        return self.counters["days"] == 90.0 and not self.counters["replicas"] and not self.counters["replica"]


@st.composite
def indexes(draw: st.DrawFn, table: str, number: int, earlier: list[list[str]]) -> str:
    """A statement for one index; every other one has the keys of an earlier one, and perhaps one more."""
    if draw(st.integers(0, 9)) == 0:
        method = draw(st.sampled_from(["hash (a)", "hash (b)", "brin (a)", "brin (u)"]))
        return f"CREATE INDEX i{number} ON {table} USING {method}"
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    if earlier and draw(st.booleans()):
        keys = draw(st.sampled_from(earlier)) + draw(st.sampled_from([[], ["c"], ["u"]]))
    earlier.append(keys)
    unique = "UNIQUE " if "u" in keys and draw(st.booleans()) else ""
    distinct = draw(st.sampled_from(["", "", " NULLS NOT DISTINCT"])) if unique else ""
    keys = [key + draw(st.sampled_from(ORDERS)) for key in keys]
    included = draw(st.sampled_from(["", "", "", " INCLUDE (b)", " INCLUDE (c, b)"]))
    part = draw(st.sampled_from(["", "", "", "", " WHERE c > 3"]))
    return f"CREATE {unique}INDEX i{number} ON {table} ({', '.join(keys)}){included}{distinct}{part}"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to nine indexes on a table, a partitioned one and its partitions, with keys of every kind."""
    statements: list[str] = []
    earlier: list[list[str]] = []
    for number in range(draw(st.integers(2, 9))):
        table = draw(st.sampled_from(["t", "t", "t", "q", "q", "q1", "q2"]))
        made = draw(indexes(table, number, earlier))
        statements.append(made)
        plain = "WHERE" not in made and "(lower" not in made and "hash" not in made and "brin" not in made
        if plain and table != "q" and draw(st.integers(0, 9)) == 0:
            statements.append(f"ALTER TABLE {table} CLUSTER ON i{number}")
        if made.startswith("CREATE UNIQUE") and "(u)" in made and plain and table == "t" and draw(st.booleans()):
            statements.append(f"ALTER TABLE t REPLICA IDENTITY USING INDEX i{number}")
    for table in draw(st.lists(st.sampled_from(["t", "t", "q", "q1"]), max_size=4)):
        statements.append(f"ALTER TABLE {table} ADD FOREIGN KEY {draw(st.sampled_from(FOREIGN_KEYS))}")
    for number, columns in enumerate(draw(st.lists(st.sampled_from(["u", "u, a", "a, u"]), max_size=2))):
        kind = draw(st.sampled_from(["UNIQUE", "PRIMARY KEY" if number == 0 else "UNIQUE"]))
        deferrable = draw(st.sampled_from(["", "", " DEFERRABLE"]))
        statements.append(f"ALTER TABLE t ADD CONSTRAINT k{number} {kind} ({columns}){deferrable}")
    queries = [
        f"SELECT * FROM {table} WHERE {condition}"
        for table in ("t", "q")
        for condition in draw(st.lists(st.sampled_from(QUERIES), max_size=5))
    ]
    days = draw(st.sampled_from([90.0, 90.0, 90.0, 0.5, None]))
    counters = {"days": days, "replicas": draw(st.sampled_from([0, 0, 0, 1])), "replica": False}
    scans = {f"i{number}": draw(st.sampled_from([0, 0, 1, 50])) for number in range(9)}
    return Case(tuple(statements), tuple(queries), scans, counters)


@pytest.fixture(scope="module")
def connection(server: EmbeddedServer) -> Iterator[psycopg.Connection[Any]]:
    databases.create(server, NAME)
    with closing(psycopg.connect(server.conninfo(NAME, "postgres"), autocommit=True)) as found:
        yield found
    databases.drop(server, NAME)


def make(connection: psycopg.Connection[Any], case: Case) -> None:
    run_all(connection, "DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO public")
    run_all(connection, TABLES)
    for statement in case.statements:
        connection.execute(statement)
    connection.execute("SET enable_seqscan = off")
    for query in ("SELECT count(*) FROM t", "SELECT count(*) FROM q", *case.queries):
        connection.execute(query)
    connection.execute("RESET enable_seqscan")
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT 1")


def facts(server: EmbeddedServer, case: Case) -> CatalogueFacts:
    found = ask(server, NAME)
    counted = tuple(replace(index, scans=index.scans + case.scans.get(index.name, 0)) for index in found.indexes)
    return replace(found, indexes=counted, counters=replace(found.counters, **case.counters))


def run(connection: psycopg.Connection[Any], lines: list[str]) -> None:
    """What psql would do with the script."""
    for line in lines:
        if not line.startswith("--"):
            assert line.endswith(";")
            connection.execute(line)


def rows(connection: psycopg.Connection[Any], query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query).fetchall()


seen = {"dropped": 0, "unused": 0, "missing": 0, "withheld": 0, "used and dropped": 0}


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=cases())
def test_all_statements_together_lose_no_key_and_nothing_that_another_was_dropped_for(
    server: EmbeddedServer, connection: psycopg.Connection[Any], case: Case
) -> None:
    make(connection, case)
    before = facts(server, case)
    remarks = judge(before)
    promises, served, definitions = (rows(connection, query) for query in (PROMISES, SERVED, DEFINITIONS))
    run(connection, script(remarks))

    after, serving = rows(connection, PROMISES), rows(connection, SERVED)
    assert after == promises
    assert {*served} <= {*serving}
    foreign = rows(connection, "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conparentid = 0")
    assert {*serving} == {*foreign}  # those that were missing were made
    valid = {index.quoted for index in ask(server, NAME).indexes if index.valid}
    dropped = [remark for remark in remarks if remark.sql.startswith("DROP ")]
    for remark in dropped:
        assert remark.kept in valid if remark.kept else remark.kind == "unused"
    by_name = {index.quoted: index for index in before.indexes}
    for remark in dropped:
        index = by_name[f"public.{remark.index}"]
        assert not index.promise
        if index.scans:  # a used one goes for one that is used, or the same but for a promise
            kept = by_name[remark.kept]
            assert kept.scans or (kept.promise and remark.kind == "duplicate")
    if not case.trusted:
        assert all(remark.kept for remark in dropped)
    again = [remark for remark in judge(facts(server, replace_days(case, 0.5))) if remark.sql]
    assert all(remark.kept not in by_name and remark.kept for remark in again)  # only what a new index replaces

    undone = [remark.undo for remark in dropped]
    run(connection, [f"{undo};" for undo in undone])
    made = {name for name, _ in rows(connection, DEFINITIONS)} - {name for name, _ in definitions}
    assert [row for row in rows(connection, DEFINITIONS) if row[0] not in made] == definitions or partitioned(dropped)
    count(remarks, by_name)


def replace_days(case: Case, days: float) -> Case:
    return replace(case, counters={**case.counters, "days": days})


def partitioned(dropped: list[Remark]) -> bool:
    """Whether an index of a partitioned table was dropped: its partitions' are made anew under the server's names."""
    return any(remark.table == "q" for remark in dropped)


def count(remarks: list[Remark], by_name: dict[str, Any]) -> None:
    for remark in remarks:
        seen["dropped"] += remark.sql.startswith("DROP ")
        seen["unused"] += remark.kind == "unused" and bool(remark.sql)
        seen["withheld"] += remark.kind == "unused" and not remark.sql
        seen["missing"] += remark.kind == "missing"
        seen["used and dropped"] += bool(remark.kept and by_name[f"public.{remark.index}"].scans)


def test_chance_composed_enough_of_each() -> None:
    if any(seen.values()):  # where the test before was run
        assert all(number >= 3 for number in seen.values()) and seen["dropped"] >= 40, seen
