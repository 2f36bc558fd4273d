"""Which indexes earn their keep: said of real indexes on real servers, and what is said may be carried out."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from hosted import PASSWORDS, hosted, standby
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import run_all

from perfkit.app.cli import main
from perfkit.base.errors import PerfkitError, UsageError
from perfkit.explain.plan import Plan, read_plan
from perfkit.indexes.coverage import MIN_AGE
from perfkit.indexes.use import CatalogueFacts, Remark, ask, joined, judge, remarks_block, remarks_table, script
from perfkit.postgres import databases, embedded
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import open_external

TABLES = """
CREATE TABLE clinics (id int CONSTRAINT clinics_pkey PRIMARY KEY);
CREATE TABLE visits (a int, b int, c text, d int, day date, data jsonb, span int4range);
INSERT INTO visits SELECT n, n % 50, 'note ' || n, n % 7, '2026-01-01', '{}', int4range(n, n + 1)
FROM generate_series(1, 3000) n;
"""


class Mine:
    """A database with the table `visits`, whose indexes are judged."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server, self.name = server, "index_use"

    def do(self, sql: str, user: str = "") -> list[dict[str, Any]]:
        with databases.connected(self.server, self.name, user) as connection:
            cursor = run_all(connection, sql.encode())
            return cursor.fetchall() if cursor.description else []

    def each(self, sql: str) -> None:
        """Run statements one by one, as CONCURRENTLY wants it."""
        for statement in filter(str.strip, sql.split(";")):
            self.do(statement)

    def facts(self) -> CatalogueFacts:
        return ask(self.server, self.name)

    def remarks(self, *plans: Plan) -> list[Remark]:
        return judge(self.facts(), plans)

    def aged(self, **counters: Any) -> CatalogueFacts:
        """The facts as if use had been counted for months."""
        facts = self.facts()
        old = {"since": "2026-01-01", "days": 90.0, **counters}
        return replace(facts, counters=replace(facts.counters, **old))

    def plan(self, query: str, *first: str) -> Plan:
        with databases.connected(self.server, self.name) as connection:
            for setting in first:
                run_all(connection, setting.encode())
            return read_plan(
                next(iter(connection.execute(f"EXPLAIN (FORMAT JSON) {query}".encode()).fetchone().values()))
            )

    def indexes(self) -> set[str]:
        return {row["indexname"] for row in self.do("SELECT indexname FROM pg_indexes WHERE schemaname !~ '^pg_'")}

    def scan(self, query: str) -> None:
        with databases.connected(self.server, self.name) as connection:
            connection.execute("SET enable_seqscan = off")
            run_all(connection, query.encode())


@pytest.fixture(params=["server", "server16"])
def mine(request: pytest.FixtureRequest) -> Iterator[Mine]:
    yield from made(request.getfixturevalue(request.param), TABLES)


@pytest.fixture
def newest(server: EmbeddedServer) -> Iterator[Mine]:
    """The same on PostgreSQL 18 alone."""
    yield from made(server, TABLES)


def made(server: EmbeddedServer, sql: str) -> Iterator[Mine]:
    databases.create(server, "index_use")
    found = Mine(server)
    found.do(sql)
    yield found
    databases.drop(server, "index_use")


def said(mine: Mine, *plans: Plan, but: str = "unused missing") -> list[str]:
    """What is said, but for what every index on a fresh database is: unused."""
    return [remark.text for remark in mine.remarks(*plans) if remark.kind not in but.split()]


def assert_remarks(mine: Mine, sql: str, *texts: str) -> None:
    """These texts, each as it begins, and no others; with their statements carried out, nothing is left to say."""
    mine.each(sql)
    found = said(mine)
    assert len(found) == len(texts), found
    for text in texts:
        assert any(each.startswith(text) for each in found), found
    for remark in mine.remarks():
        if remark.sql and remark.kind not in ("unused", "missing"):
            mine.do(remark.sql)
    assert said(mine, but="unused missing overlapping") == []


COVERED = {
    "the leading keys of another": (
        "CREATE INDEX visits_a ON visits (a); CREATE INDEX visits_a_b ON visits (a, b)",
        "visits_a is covered by visits_a_b, which begins with its keys (a)",
    ),
    "two keys of three": (
        "CREATE INDEX visits_ab ON visits (a, b); CREATE INDEX visits_abd ON visits (a, b, d)",
        "visits_ab is covered by visits_abd",
    ),
    "a chain, of which the longest is kept": (
        "CREATE INDEX x1 ON visits (a); CREATE INDEX x2 ON visits (a, b); CREATE INDEX x3 ON visits (a, b, d)",
        "x1 is covered by x3",
        "x2 is covered by x3",
    ),
    "the order reversed as a whole": (
        "CREATE INDEX down ON visits (a DESC, b); CREATE INDEX up ON visits (a, b DESC, d)",
        "down is covered by up, which begins with its keys (a, b), read backwards",
    ),
    "one key, reversed": (
        "CREATE INDEX down ON visits (a DESC); CREATE INDEX up ON visits (a, b)",
        "down is covered by up",
    ),
    "an INCLUDE that the other has as a key": (
        "CREATE INDEX inc ON visits (a) INCLUDE (b); CREATE INDEX two ON visits (a, b)",
        "inc is covered by two",
    ),
    "an INCLUDE that the other includes": (
        "CREATE INDEX inc ON visits (a) INCLUDE (b); CREATE INDEX two ON visits (a, d) INCLUDE (b)",
        "inc is covered by two",
    ),
    "the same predicate": (
        "CREATE INDEX part ON visits (a) WHERE d > 3; CREATE INDEX more ON visits (a, b) WHERE d > 3",
        "part is covered by more",
    ),
    "a unique index of more keys": (
        "CREATE INDEX one ON visits (a); CREATE UNIQUE INDEX two ON visits (a, b)",
        "one is covered by two",
    ),
    "the same expression": (
        "CREATE INDEX low ON visits (lower(c)); CREATE INDEX lower_a ON visits (lower(c), a)",
        "low is covered by lower_a",
    ),
    "twice the same": (
        "CREATE INDEX z_first ON visits (a); CREATE INDEX a_second ON visits (a)",
        "a_second is a duplicate of z_first, which is kept: it is the older",
    ),
    "twice the same, and covered": (
        "CREATE INDEX x1 ON visits (a); CREATE INDEX x2 ON visits (a); CREATE INDEX x3 ON visits (a, b)",
        "x1 is covered by x3",
        "x2 is covered by x3",
    ),
    "the same as a primary key": (
        "CREATE INDEX clinics_id ON clinics (id)",
        "clinics_id is a duplicate of clinics_pkey, which is kept: it backs the constraint clinics_pkey",
    ),
    "the same as one, which is named rather than a broader one": (
        "CREATE INDEX x1 ON visits (a); CREATE INDEX x2 ON visits (a) INCLUDE (d);CREATE UNIQUE INDEX x3 ON visits (a)",
        "x1 is a duplicate of x3, which is kept: it is unique",
    ),
    "the same as a unique index, though older": (
        "CREATE INDEX older ON visits (a); CREATE UNIQUE INDEX newer ON visits (a)",
        "older is a duplicate of newer, which is kept: it is unique",
    ),
    "the same of another method": (
        "CREATE INDEX one ON visits USING gin (data); CREATE INDEX two ON visits USING gin (data)",
        "two is a duplicate of one",
    ),
    "an exclusion constraint's own": (
        "ALTER TABLE visits ADD CONSTRAINT apart EXCLUDE USING gist (span WITH &&);"
        "CREATE INDEX spans ON visits USING gist (span)",
        "spans is a duplicate of apart, which is kept: it backs the constraint apart",
    ),
}


@pytest.mark.parametrize("case", COVERED, ids=str)
def test_an_index_is_not_needed_beside(mine: Mine, case: str) -> None:
    sql, *texts = COVERED[case]
    assert_remarks(mine, sql, *texts)


PROMISED = {
    "a unique index": (
        "CREATE UNIQUE INDEX one ON visits (a); ALTER TABLE visits ADD CONSTRAINT two UNIQUE (a)",
        "one is a duplicate of two, which is kept: it backs the constraint two",
        "no statement, because one is unique",
    ),
    "a constraint": (
        "ALTER TABLE visits ADD PRIMARY KEY (a); ALTER TABLE visits ADD CONSTRAINT two UNIQUE (a)",
        "two is a duplicate of visits_pkey, which is kept: it backs the constraint visits_pkey",
        "no statement, because two backs the constraint two, which an ON CONFLICT may name",
    ),
}


@pytest.mark.parametrize("case", PROMISED, ids=str)
def test_a_promise_is_said_to_be_made_twice_and_is_not_dropped(mine: Mine, case: str) -> None:
    sql, text, evidence = PROMISED[case]
    mine.each(sql)
    (found,) = judge(mine.aged())
    assert (found.kind, found.text, found.sql, found.bytes) == ("duplicate", text, "", 0)
    assert found.evidence.endswith(evidence)


NEEDED = {
    "CLUSTER keeps its order": "CREATE INDEX c ON visits (a); ALTER TABLE visits CLUSTER ON c;"
    "CREATE INDEX ON visits (a, b)",
    "it is unique": "CREATE UNIQUE INDEX ON visits (a); CREATE INDEX ON visits (a, b)",
    "it backs a constraint": "ALTER TABLE visits ADD UNIQUE (a); CREATE INDEX ON visits (a, b)",
    "it is the replica identity": "ALTER TABLE visits ALTER a SET NOT NULL; CREATE UNIQUE INDEX r ON visits (a);"
    "ALTER TABLE visits REPLICA IDENTITY USING INDEX r; ALTER TABLE visits ADD CONSTRAINT u UNIQUE (a)",
    "foreign keys refer to it": "CREATE UNIQUE INDEX r ON visits (a); CREATE TABLE parts (a int REFERENCES visits (a));"
    "ALTER TABLE visits ADD CONSTRAINT u UNIQUE (a); CREATE INDEX ON parts (a)",
    "it is the second key of the other": "CREATE INDEX ON visits (b); CREATE INDEX ON visits (a, b)",
    "the order is mixed otherwise": "CREATE INDEX ON visits (a, b); CREATE INDEX ON visits (a, b DESC, d)",
    "NULLs come first": "CREATE INDEX ON visits (a NULLS FIRST); CREATE INDEX ON visits (a, b)",
    "it includes what the other lacks": "CREATE INDEX ON visits (a) INCLUDE (d); CREATE INDEX ON visits (a, b)",
    "only a part of the rows is in the other": "CREATE INDEX ON visits (a); CREATE INDEX ON visits (a, b) WHERE d > 3",
    "the parts differ": "CREATE INDEX ON visits (a) WHERE d > 2; CREATE INDEX ON visits (a, b) WHERE d > 3",
    "the method differs": "CREATE INDEX ON visits USING hash (a); CREATE INDEX ON visits (a, b)",
    "the operator class differs": "CREATE INDEX ON visits (c text_pattern_ops); CREATE INDEX ON visits (c, b)",
    "the collation differs": 'CREATE INDEX ON visits (c COLLATE "POSIX"); CREATE INDEX ON visits (c, b)',
    "the expression differs": "CREATE INDEX ON visits (lower(c)); CREATE INDEX ON visits (upper(c), a)",
    "only a B-tree is ordered": "CREATE INDEX ON visits USING brin (a); CREATE INDEX ON visits USING brin (a, b)",
    "the options of its method differ": "CREATE INDEX ON visits USING brin (a) WITH (pages_per_range = 4);"
    "CREATE INDEX ON visits USING brin (a)",
    "the other is checked later": "CREATE UNIQUE INDEX one ON visits (a);"
    "ALTER TABLE visits ADD CONSTRAINT two UNIQUE (a) DEFERRABLE",
    "NULLs are equal to it": "CREATE UNIQUE INDEX ON visits (a) NULLS NOT DISTINCT; CREATE UNIQUE INDEX ON visits (a)",
    "the uniqueness is of a part": "CREATE UNIQUE INDEX ON visits (a) WHERE d > 3; CREATE INDEX ON visits (a, b)",
}


@pytest.mark.parametrize("case", NEEDED, ids=str)
def test_an_index_is_needed_beside_another_because(mine: Mine, case: str) -> None:
    assert_remarks(mine, NEEDED[case])


def test_how_much_smaller_it_is_decides_and_is_said(mine: Mine) -> None:
    mine.do("CREATE INDEX small ON visits (d)")
    mine.scan("SELECT * FROM visits WHERE d = 3")
    mine.do("CREATE INDEX large ON visits (d, c, lower(c), a, b, day)")
    mine.scan("SELECT * FROM visits WHERE d = 3 AND c = 'note 3'")
    (found,) = [remark for remark in mine.remarks() if remark.index == "small"]
    assert re.match(r"small is covered by large, and [4-9]\.\d times smaller: it may still be worth it", found.text)
    assert (found.sql, found.bytes) == ("", 0)
    mine.do("DROP INDEX large; CREATE INDEX wider ON visits (d, a)")
    mine.scan("SELECT * FROM visits WHERE d = 3 AND a = 3")
    (found,) = [remark for remark in mine.remarks() if remark.kind == "redundant"]
    assert re.search(r"it is [1-3]\.\d times smaller", found.evidence)


def test_a_part_of_another_is_not_called_redundant_for_conditions_on_the_part_alone_need_it(mine: Mine) -> None:
    mine.do("CREATE INDEX pending ON visits (a) WHERE d = 3; CREATE INDEX whole ON visits (a)")
    mine.scan("SELECT * FROM visits WHERE d = 3")
    (found,) = [remark for remark in mine.remarks() if remark.kind not in ("unused", "missing")]
    assert re.match(r"pending is the part of whole where \(d = 3\), [2-9]\.\d times smaller", found.text)
    assert (found.kind, found.sql) == ("overlapping", "")


def test_evidence_names_both_definitions(newest: Mine) -> None:
    newest.do("CREATE INDEX one ON visits (a DESC); CREATE INDEX two ON visits (a, b) WITH (fillfactor = 90)")
    (found,) = [remark for remark in newest.remarks() if remark.kind == "redundant"]
    assert "catalogue: btree (a DESC) beside btree (a, b) WITH (fillfactor='90')" in found.evidence


def test_an_index_that_nothing_used_is_said_with_the_day_and_that_a_young_counter_proves_little(mine: Mine) -> None:
    mine.do(
        "CREATE INDEX used ON visits (a); CREATE INDEX idle ON visits (c); CREATE UNIQUE INDEX promise ON visits (d, a)"
    )
    mine.do("CREATE INDEX tiny ON clinics (id) WHERE id > 1")
    mine.scan("SELECT * FROM visits WHERE a = 7")
    mine.do("SELECT pg_stat_reset()", user="postgres")
    mine.scan("SELECT * FROM visits WHERE a = 7")
    (found,) = mine.remarks()
    assert re.fullmatch(r"idle was not used since \d{4}-\d\d-\d\d or since it was built", found.text)
    assert found.evidence == "counters: no scan; no statement, because the counters are 0.0 days old, less than 35"
    assert (found.sql, found.bytes) == ("", 0)
    (found,) = judge(mine.aged())
    assert (found.text, found.evidence) == (
        "idle was not used since 2026-01-01 or since it was built",
        "counters: no scan",
    )
    assert found.bytes > 32 * 1024 and found.sql == "DROP INDEX CONCURRENTLY public.idle"
    assert judge(mine.aged(days=20.0), min_age=20)[0].sql and not judge(mine.aged(days=20.0), min_age=21)[0].sql


def test_counters_that_do_not_tell_all_give_no_statement(newest: Mine) -> None:
    newest.do("CREATE INDEX idle ON visits (lower(c))")
    newest.scan("SELECT * FROM clinics")
    unread = newest.aged()
    unread = replace(unread, indexes=tuple(replace(index, table_scans=0) for index in unread.indexes))
    for facts, words in (
        (newest.aged(replica=True), "this is a standby, and each server counts its own use: connect to the primary"),
        (newest.aged(replicas=2, standbys=1), "standbys count their own use, and 1 of 2 were read: name each with"),
        (newest.aged(days=None), "the start of counting is unknown"),
        (unread, "its table was not read either"),
    ):
        (found,) = judge(facts)
        assert words in found.evidence and (found.kind, found.sql) == ("unused", "")
    assert judge(newest.aged(counted=False)) == []
    plan = newest.plan("SELECT * FROM visits WHERE c = 'x'")
    for doubtful in ({"counted": False}, {"replicas": 1}, {"days": 1.0}):
        (found,) = judge(newest.aged(**doubtful), [plan])
        assert (found.kind, found.sql) == ("unmatched", "")
    assert judge(newest.aged(), [plan])[0].sql


def test_the_statistics_of_an_expression_are_said_to_go_with_its_index(newest: Mine) -> None:
    newest.do("CREATE INDEX idle ON visits (lower(c))")
    newest.do("SELECT count(*) FROM visits")
    (found,) = judge(newest.aged(replicas=1, standbys=1))
    assert found.text == (
        "idle was not used since 2026-01-01 or since it was built; dropping it also drops the statistics of its "
        "expression"
    )
    assert (
        "standbys that were asked too: 1; the planner may use the statistics of its expression" in found.evidence
        and found.sql
    )


def test_statistics_are_counted_from_their_last_reset(mine: Mine) -> None:
    mine.do("SELECT pg_stat_reset()", user="postgres")
    after = mine.facts().counters
    today = mine.do("SELECT to_char(now(), 'YYYY-MM-DD') AS day")[0]["day"]
    assert after.since == today and after.days is not None and 0 <= after.days < 0.1
    assert after.counted and not after.replica and (after.replicas, after.standbys) == (0, 0)


def test_without_a_reset_the_oldest_date_among_the_counters_says_since_when_at_least(server: EmbeddedServer) -> None:
    for new in made(server, ""):
        with databases.connected(server, new.name) as connection:
            (row,) = connection.execute("SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()")
        assert row["stats_reset"] is None
        new.do(TABLES + "CREATE INDEX idle ON visits (c)")
        facts = new.facts()
        assert facts.counters.days is None or facts.counters.days < 0.1  # never the age of the server
        new.do("ANALYZE visits")
        new.do("SELECT pg_stat_force_next_flush()")
        counters = new.facts().counters
        assert counters.days is not None and 0 <= counters.days < 0.1 and counters.since


def test_a_used_index_is_not_dropped_in_favour_of_a_larger_one_that_nobody_uses(mine: Mine) -> None:
    mine.do("CREATE INDEX narrow ON visits (a)")
    for _ in range(5):
        mine.scan("SELECT * FROM visits WHERE a = 7")
    mine.do("CREATE INDEX wide ON visits (a, b)")
    wide, narrow = mine.remarks()
    assert (wide.kind, wide.index, wide.sql) == ("unused", "wide", "")
    assert narrow.text == "narrow is covered by wide, but only narrow is used (5 scans)"
    assert (narrow.kind, narrow.sql) == ("overlapping", "")
    (found,) = judge(mine.aged())  # the larger one may go
    assert (found.index, found.sql) == ("wide", "DROP INDEX CONCURRENTLY public.wide")


def test_of_two_that_are_the_same_the_one_that_is_used_more_is_kept(mine: Mine) -> None:
    mine.do("CREATE INDEX z_first ON visits (a)")
    mine.do("CREATE INDEX a_second ON visits (a)")
    facts = mine.facts()
    used = tuple(replace(i, scans=9 if i.name == "a_second" else 2) for i in facts.indexes)
    (found,) = judge(replace(facts, indexes=used))
    assert found.text == "z_first is a duplicate of a_second, which is kept: it is used more (9 scans, 2)"


KEPT_INDEX = """
CREATE TABLE t (id int PRIMARY KEY, a int, b int);
INSERT INTO t SELECT i, i % 1000, i FROM generate_series(1, 100000) i;
CREATE INDEX t_b1 ON t (b); CREATE INDEX t_b2 ON t (b); CREATE INDEX t_a ON t (a); CREATE INDEX t_ab ON t (a, b);
"""


@pytest.mark.parametrize("days", [0.0, None, 400.0])
def test_an_index_for_whose_sake_another_is_dropped_stays(mine: Mine, days: float | None) -> None:
    """Nothing was read since the counters began, as in a restored database."""
    mine.do(KEPT_INDEX)
    mine.do("SELECT count(*) FROM t")
    found = {remark.sql: remark.kept for remark in judge(mine.aged(days=days)) if remark.sql}
    assert found == {
        "DROP INDEX CONCURRENTLY public.t_b2": "public.t_b1",
        "DROP INDEX CONCURRENTLY public.t_a": "public.t_ab",
    }


def test_what_frees_most_comes_first_and_what_is_missing_last(mine: Mine) -> None:
    mine.do("ALTER TABLE visits ADD FOREIGN KEY (d) REFERENCES clinics NOT VALID")
    mine.do("CREATE INDEX i1 ON visits (a); CREATE INDEX i2 ON visits (a); CREATE INDEX i3 ON visits (c, a, b, day)")
    mine.do("SELECT count(*) FROM visits")
    found = judge(mine.aged())
    assert [remark.kind for remark in found] == ["unused", "duplicate", "missing"], found
    freed = [remark.bytes for remark in found]
    assert freed == sorted(freed, reverse=True) and freed[-1] == 0 < freed[1]


def test_the_leftover_of_a_build_that_failed_is_rebuilt_or_removed(mine: Mine) -> None:
    mine.do("INSERT INTO visits (a) VALUES (1)")
    with pytest.raises(Exception, match="could not create unique index"):
        mine.do("CREATE UNIQUE INDEX CONCURRENTLY visits_once ON visits (a)")
    (found,) = mine.remarks()
    assert found.text == "visits_once is invalid: a build failed or was interrupted"
    assert found.sql == "REINDEX INDEX CONCURRENTLY public.visits_once"
    with pytest.raises(Exception, match="could not create unique index"):
        mine.do(found.sql)
    left = {remark.index: remark for remark in mine.remarks()}
    assert left["visits_once_ccnew"].text == "visits_once_ccnew was left behind by an interrupted REINDEX CONCURRENTLY"
    mine.do(left["visits_once_ccnew"].sql)
    mine.do("DELETE FROM visits WHERE b IS NULL")
    mine.do(left["visits_once"].sql)
    assert mine.remarks() == []


def test_an_index_that_may_just_be_being_built_is_left_alone(mine: Mine) -> None:
    mine.do("INSERT INTO visits (a) VALUES (1)")
    with pytest.raises(Exception, match="could not create unique index"):
        mine.do("CREATE UNIQUE INDEX CONCURRENTLY visits_once ON visits (a)")
    with databases.connected(mine.server, mine.name) as building:
        run_all(building, "BEGIN; LOCK TABLE visits IN SHARE UPDATE EXCLUSIVE MODE")
        (found,) = mine.remarks()
        assert "a build may still be running" in found.text and found.sql == "" and found.bytes == 0


def test_a_foreign_key_without_an_index_is_said_with_its_statement(mine: Mine) -> None:
    mine.do("ALTER TABLE visits ADD CONSTRAINT clinic FOREIGN KEY (d) REFERENCES clinics NOT VALID")
    (found,) = mine.remarks()
    assert found.kind == "missing"
    assert found.text == "no index begins with (d), which the foreign key clinic looks up for rows of public.clinics"
    assert "0 rows of public.clinics were changed or deleted" in found.evidence
    mine.do(found.sql)
    assert [remark for remark in mine.remarks() if remark.kind == "missing"] == []


SERVES = [
    ("(d)", True), ("(d, a)", True), ("(a, d)", False), ("USING hash (d)", True), ("USING brin (d)", False),
    ("(d) WHERE d IS NOT NULL", True), ("(d) WHERE a > 1", False), ("((d + 0))", False),
]  # fmt: skip


@pytest.mark.parametrize(("index", "serves"), SERVES)
def test_a_foreign_key_is_served_by_an_index_that_its_lookup_can_use(newest: Mine, index: str, serves: bool) -> None:
    newest.do(f"ALTER TABLE visits ADD FOREIGN KEY (d) REFERENCES clinics NOT VALID; CREATE INDEX ON visits {index}")
    assert ("missing" not in {remark.kind for remark in newest.remarks()}) == serves
    plan = newest.plan("SELECT FROM visits WHERE d = 3", "SET enable_seqscan = off", "SET enable_indexonlyscan = off")
    lookup = [n for n in plan.nodes if "(d = 3)" in n.index_condition]  # and the server agrees where it could tell
    assert bool(lookup) == serves or index in ("(a, d)", "USING brin (d)")


def test_the_columns_of_a_foreign_key_may_stand_in_any_order(newest: Mine) -> None:
    newest.do("CREATE TABLE rooms (x int, y int, PRIMARY KEY (x, y))")
    newest.do("ALTER TABLE visits ADD FOREIGN KEY (a, b) REFERENCES rooms NOT VALID; CREATE INDEX ON visits (b, a, d)")
    assert "missing" not in {remark.kind for remark in newest.remarks()}


def test_an_unused_index_that_a_foreign_key_needs_is_not_to_be_dropped(newest: Mine) -> None:
    newest.do("ALTER TABLE visits ADD CONSTRAINT clinic FOREIGN KEY (d) REFERENCES clinics NOT VALID")
    newest.do("CREATE INDEX one ON visits (d, a); CREATE INDEX two ON visits (d, c); SELECT count(*) FROM visits")
    first, second = judge(newest.aged())
    assert (first.index, first.sql) == ("two", "DROP INDEX CONCURRENTLY public.two")
    assert second.text.endswith("is the only index for the foreign key clinic: changes of public.clinics need it")
    assert (second.index, second.sql, second.bytes) == ("one", "", 0)


def test_two_foreign_keys_on_the_same_columns_need_one_index(mine: Mine) -> None:
    mine.do(
        "CREATE TABLE par (id int PRIMARY KEY, x int, UNIQUE (id, x));"
        "CREATE TABLE ch (id int, p int REFERENCES par, x int);"
        "ALTER TABLE ch ADD CONSTRAINT again FOREIGN KEY (p) REFERENCES par (id)"
    )
    (found,) = mine.remarks()
    assert found.sql == "CREATE INDEX CONCURRENTLY ON public.ch (p)"
    assert "which the foreign keys again, ch_p_fkey look up for rows of public.par" in found.text
    mine.do("ALTER TABLE ch ADD CONSTRAINT both_of_them FOREIGN KEY (p, x) REFERENCES par (id, x)")
    (found,) = mine.remarks()
    assert found.sql == "CREATE INDEX CONCURRENTLY ON public.ch (p, x)"
    mine.do(found.sql)
    assert mine.remarks() == []


PARTS = """
CREATE TABLE days (day date, a int, b int) PARTITION BY RANGE (day);
CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
INSERT INTO days SELECT '2026-01-01'::date + n % 59, n, n FROM generate_series(1, 5000) n;
"""


def test_an_index_of_a_partitioned_table_and_those_of_its_parts_are_one(mine: Mine) -> None:
    mine.do(PARTS)
    mine.do("CREATE INDEX whole ON days (a)")
    (index,) = [index for index in mine.facts().indexes if index.table == "days"]
    sizes = "SELECT sum(pg_relation_size(indexrelid)) AS n FROM pg_stat_user_indexes WHERE relname ~ 'days_'"
    assert index.bytes == mine.do(sizes)[0]["n"] > 0
    assert index.members == ("days_1_a_idx", "days_2_a_idx", "whole")
    assert [(remark.kind, remark.index) for remark in mine.remarks()] == [("unused", "whole")]
    mine.do("CREATE INDEX more ON days (a, b); CREATE INDEX own ON days_1 (a, b)")
    mine.scan("SELECT * FROM days WHERE a = 7 AND b = 7")
    found = {remark.index: remark for remark in mine.remarks()}
    assert (
        found["own"].text
        == "own is a duplicate of more, which is kept: it is on the partitioned table, not on a partition"
    )
    assert found["whole"].sql == "DROP INDEX public.whole"  # CONCURRENTLY is not for partitioned tables
    for remark in found.values():
        mine.do(remark.sql)
    assert said(mine) == []


def test_a_part_of_a_table_does_not_cover_the_whole_of_it(mine: Mine) -> None:
    mine.do(PARTS + "CREATE INDEX whole ON days (a); CREATE INDEX own ON days_1 (a, b)")
    assert said(mine) == []


def test_an_index_without_all_parts_attached_is_invalid_and_no_statement_is_given_that_would_not_help(
    mine: Mine,
) -> None:
    mine.do(PARTS + "CREATE INDEX whole ON ONLY days (a)")
    assert [(r.text, r.sql) for r in mine.remarks()] == [
        ("whole is invalid: a partition has no index attached to it, or an invalid one", "")
    ]


def test_a_foreign_key_of_a_partitioned_table_is_served_by_its_index_or_by_one_of_each_part(mine: Mine) -> None:
    mine.do(PARTS + "TRUNCATE days; ALTER TABLE days ADD CONSTRAINT clinic FOREIGN KEY (b) REFERENCES clinics")
    found = [remark for remark in mine.remarks() if remark.kind == "missing"]
    assert [remark.sql for remark in found] == ["CREATE INDEX ON public.days (b)"]
    mine.do("CREATE INDEX ON days_1 (b)")
    assert [remark.kind for remark in mine.remarks()].count("missing") == 1
    mine.do("CREATE INDEX ON days_2 (b)")
    assert [remark.kind for remark in mine.remarks()].count("missing") == 0


def test_names_that_would_break_out_of_a_statement_do_not(mine: Mine) -> None:
    bad = '"x""; DROP TABLE visits; --"'
    mine.do(f'CREATE SCHEMA {bad}; CREATE TABLE {bad}.{bad} ({bad} int CONSTRAINT "c""; --" UNIQUE, "Order" int)')
    mine.do(f'ALTER TABLE {bad}.{bad} ADD CONSTRAINT "a""b" UNIQUE ({bad})')
    mine.do(f'ALTER TABLE {bad}.{bad} ADD FOREIGN KEY ("Order") REFERENCES clinics')
    mine.do(f'CREATE INDEX "i""; SELECT 1" ON {bad}.{bad} ({bad})')
    found = mine.remarks()
    assert sorted(remark.kind for remark in found) == ["duplicate", "duplicate", "missing"]
    for remark in found:
        mine.do(remark.sql or "SELECT 1")
    (left,) = mine.remarks()
    assert "backs the constraint" in left.evidence and mine.do("SELECT count(*) AS n FROM visits") == [{"n": 3000}]
    assert len(mine.facts().indexes) == 4


def test_indexes_of_extensions_and_of_the_system_are_not_the_users(mine: Mine) -> None:
    assert {index.name for index in mine.facts().indexes} == {"clinics_pkey"}


UNMATCHED = [
    ("(upper(c))", "lower(c) = 'x'", True), ("(lower(c))", "lower(c) = 'x'", False), ("(lower(c))", "c = 'x'", True),
    ("(lower(c))", "a = 1", False), ("(c text_pattern_ops)", "c > 'x'", True),
    ("(c text_pattern_ops)", "c LIKE 'x%'", False), ("(c text_pattern_ops)", "c = 'x'", False),
    ('(c COLLATE "POSIX")', "c = 'x'", True), ('(c COLLATE "POSIX")', "c = 'x' COLLATE \"POSIX\"", False),
    ('(c COLLATE "POSIX")', "c LIKE 'x%'", False), ("(c)", "lower(c) = 'x'", False),
    ("USING gin (data jsonb_path_ops)", "data ? 'k'", True), ("USING gin (data jsonb_path_ops)", "data @> '{}'", False),
    ("((data ->> 'k'))", "data -> 'k' = '1'", True), ("((data ->> 'k'))", "data ->> 'k' = '1'", False),
    ("(lower(c))", "c = 'x' ORDER BY lower(c)", False), ("(c text_pattern_ops)", "c = 'x' OR c > 'y'", False),
]  # fmt: skip


@pytest.mark.parametrize(("index", "condition", "unmatched"), UNMATCHED)
def test_an_index_that_no_condition_of_the_workload_can_match(
    newest: Mine, index: str, condition: str, unmatched: bool
) -> None:
    newest.do(f"CREATE INDEX wanted ON visits {index}")
    for query in ("SELECT * FROM visits WHERE", "SELECT * FROM visits v JOIN clinics k ON v.d = k.id WHERE"):
        plan = newest.plan(f"{query} {condition}", "SET enable_indexscan = off", "SET enable_bitmapscan = off")
        found = [remark for remark in newest.remarks(plan) if remark.kind == "unmatched"]
        assert bool(found) == unmatched
        if found:
            assert found[0].text.endswith("but no condition of the given statements can use that")
            assert found[0].evidence.startswith("conditions in 1 plans: ")
    forced = newest.plan(f"SELECT * FROM visits WHERE {condition}", "SET enable_seqscan = off")
    assert not (unmatched and any(n.index_condition for n in forced.nodes))  # and the server could not either


def test_an_index_that_something_else_used_is_not_called_unmatched(newest: Mine) -> None:
    newest.do("CREATE INDEX low ON visits (lower(c))")
    newest.scan("SELECT * FROM visits WHERE lower(c) = 'x'")
    assert newest.remarks(newest.plan("SELECT * FROM visits WHERE c = 'x'")) == []


def test_a_plan_that_names_no_schema_says_nothing_of_two_tables_of_one_name(newest: Mine) -> None:
    newest.do("CREATE INDEX low ON visits (lower(c)); CREATE SCHEMA app; CREATE TABLE app.visits (c text PRIMARY KEY)")
    found = newest.remarks(newest.plan("SELECT * FROM app.visits WHERE c = 'x'"))
    assert "unmatched" not in {remark.kind for remark in found}


def test_it_is_shown_as_a_table_with_its_statements_and_nothing_in_it_is_markup(newest: Mine) -> None:
    newest.do('CREATE INDEX "<b>i</b>" ON visits (a); CREATE INDEX wide ON visits (a, b)')
    facts, remarks = newest.facts(), newest.remarks()
    shown = remarks_block(facts, remarks)
    assert "<b>" not in shown.html() and "&lt;b&gt;i&lt;/b&gt;" in shown.html()
    assert '  DROP INDEX CONCURRENTLY public."<b>i</b>";' in shown.text().splitlines()
    assert "3 indexes, " in shown.text() and "use counted since" in shown.text()
    assert remarks_table(facts, []).text().startswith("Indexes: no problems found in 3 indexes")


def test_the_command_prints_it(newest: Mine, tmp_path: Any) -> None:
    newest.do(
        "CREATE INDEX one ON visits (a); CREATE INDEX two ON visits (a, b); CREATE INDEX low ON visits (lower(c))"
    )
    where = f"{newest.server.socket_dir}:{newest.server.port}/{newest.name}"
    options = ["indexes", "use", "--db", newest.server.conninfo(newest.name), "--confirm", where]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    assert "one is covered by two" in done.stdout and "DROP INDEX CONCURRENTLY public.one;" in done.stdout
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps([newest.plan("SELECT * FROM visits WHERE c = 'x'").document]))
    told = json.loads(CliRunner().invoke(main, [*options, "--json", "--plan", str(plan)]).stdout)
    assert {remark["index"]: remark["kind"] for remark in told["remarks"]} == {
        "one": "redundant", "low": "unmatched",
    }  # fmt: skip
    assert [index["name"] for index in told["indexes"]] == ["clinics_pkey", "low", "one", "two"]
    assert told["counters"]["counted"] is True
    missing = CliRunner().invoke(main, [*options, "--plan", str(tmp_path / "none.json")])
    assert missing.exit_code == 2 and "none.json: cannot be read" in missing.stderr


@pytest.mark.system
@pytest.mark.slow
def test_a_plain_role_of_a_hosted_server_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with hosted() as system:
        for name, value in system.environment.items():
            monkeypatch.setenv(name, value)
        system.run(
            "CREATE INDEX one ON sales.orders (total); CREATE INDEX two ON sales.orders (total, id)", user="shop"
        )
        system.run("CREATE UNIQUE INDEX nulls ON sales.orders (total, id) NULLS NOT DISTINCT", user="shop")
        with pytest.raises(psycopg.Error):
            system.run("CREATE UNIQUE INDEX CONCURRENTLY once ON sales.orders (customer_id)", user="shop")
        permission = Permission((), (system.name(),), (), None)
        texts = {}
        for user in ("shop", "clerk"):  # the second may read one table only
            server = open_external(resolve(system.db(user)), permission, Audit(None))
            texts[user] = [remark.text for remark in judge(ask(server))]
        assert texts["shop"] == texts["clerk"]
        assert sorted(text for text in texts["shop"] if "not used" not in text) == [
            "no index begins with (customer_id), which the foreign key orders_customer_id_fkey looks up for rows of "
            "public.customers",
            "once is invalid: a build failed or was interrupted",
            "one is covered by nulls, which begins with its keys (total)",
            "two is a duplicate of nulls, which is kept: it is unique",
        ]


@pytest.mark.system
@pytest.mark.slow
def test_an_index_that_only_a_standby_uses_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with hosted() as system:
        for name, value in system.environment.items():
            monkeypatch.setenv(name, value)
        system.run("CREATE INDEX busy ON sales.orders (total, id); CREATE INDEX idle ON sales.orders (id, total)")
        system.run("SELECT count(*) FROM sales.orders")
        with standby(system) as port:
            permission = Permission((), (system.name(), system.name(port=port)), (), None)
            servers = [open_external(resolve(system.db(port=p)), permission, Audit(None)) for p in (system.port, port)]

            def facts() -> list[CatalogueFacts]:
                old = {"since": "2026-01-01", "days": 90.0}
                asked = [ask(server) for server in servers]
                return [replace(each, counters=replace(each.counters, **old)) for each in asked]

            primary, theirs = facts()
            assert (primary.counters.replicas, primary.counters.replica, theirs.counters.replica) == (1, False, True)
            unused = [remark for remark in judge(primary) if remark.kind == "unused"]
            assert {remark.index for remark in unused} == {"busy", "idle"}
            assert all("0 of 1 were read" in each.evidence and not each.sql for each in unused)
            assert all(not remark.sql for remark in judge(theirs) if remark.kind == "unused")
            with psycopg.connect(system.db("postgres", port=port), password=PASSWORDS["postgres"]) as connection:
                connection.execute("SET enable_seqscan = off")
                connection.execute("SELECT * FROM sales.orders WHERE total = 5")
            primary, theirs = facts()
            (found,) = [remark for remark in judge(joined(primary, {"there": theirs})) if remark.kind == "unused"]
            assert found.sql == "DROP INDEX CONCURRENTLY sales.idle"
            assert found.evidence == "counters: no scan; standbys that were asked too: 1"
            for standbys, words in (
                ({"there": primary}, "there: expected a standby of the database that --db names"),
                (
                    {"there": theirs, "again": theirs},
                    "again: the same server as there; expected each standby only once",
                ),
            ):
                with pytest.raises(UsageError, match=words):
                    joined(primary, standbys)
            words = ["--db", system.db(), "--standby", system.db(port=port), "--confirm", system.name()]
            done = CliRunner().invoke(main, ["indexes", "use", *words, "--confirm", system.name(port=port), "--json"])
            assert done.exit_code == 0, done.output
            told = json.loads(done.stdout)
            assert told["counters"]["standbys"] == told["counters"]["replicas"] == 1
            assert not [remark for remark in told["remarks"] if remark["kind"] == "unused" and remark["sql"]]


def test_a_crash_leaves_counters_of_unknown_age(server_home: Path) -> None:
    with embedded.start(18, {}, server_home) as crashing:
        for new in made(crashing, TABLES):
            new.do("SELECT pg_stat_reset()", user="postgres")
            assert new.facts().counters.days is not None
            with databases.connected(crashing, new.name, "postgres") as connection, suppress(psycopg.Error):
                connection.execute("SELECT pg_sleep(0)")
                os.kill(connection.info.backend_pid, signal.SIGKILL)
                connection.execute("SELECT 1")
            deadline = time.monotonic() + 20
            while True:
                with suppress(PerfkitError, psycopg.Error):
                    counters = new.facts().counters
                    break
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert (counters.since, counters.days) == ("", None) or counters.days < 0.01
            assert counters.doubt(MIN_AGE)


NASTY = ["a\n; DROP TABLE visits; --", "a\rb", "a\u2028b", 'x"y', "Case", "select", "a b"]


def test_the_script_runs_in_psql_whatever_the_names_and_is_undone_by_what_it_says(newest: Mine) -> None:
    for name in NASTY:
        written = '"' + name.replace('"', '""') + '"'
        newest.do(f"CREATE TABLE {written} ({written} int, other int); CREATE SCHEMA {written}")
        newest.do(
            f'CREATE INDEX ON {written} ({written}, other); CREATE INDEX {written[:-1]}_i" ON {written} ({written})'
        )
    before = newest.do("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
    lines = script(newest.remarks())
    drops = [n for n, line in enumerate(lines) if line.startswith("DROP INDEX CONCURRENTLY public.")]
    assert len(drops) == len(NASTY)
    for n in drops:
        assert lines[n - 2].startswith("-- ") and lines[n - 1].startswith("-- to undo: CREATE INDEX CONCURRENTLY ")
    psql = Path("/usr/bin/psql")
    if not psql.exists():
        pytest.skip("needs psql")
    text = "\n".join(lines)
    target = newest.server.conninfo(newest.name)
    done = subprocess.run([psql, "-X", "-v", "ON_ERROR_STOP=1", target], input=text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    left = newest.do("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
    assert len(left) == len(before) - len(NASTY)
    assert newest.do("SELECT count(*) AS n FROM visits") == [{"n": 3000}]


KEYS = ["a", "b", "d", "c", "lower(c)", "c text_pattern_ops"]
OPTIONS = ["", " DESC", " NULLS FIRST", " DESC NULLS LAST"]
FORBIDDEN = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_incremental_sort")
CONDITIONS = ["", "a = 7", "a > 7", "b = 7", "d = 3", "c = 'note 7'", "c LIKE 'note 7%'", "lower(c) = 'note 7'",
              "a = 7 AND b = 7", "a = 7 AND c = 'note 7'", "a = 7 AND d > 3", "d > 3", "b = 7 AND d > 3"]  # fmt: skip
ORDERS = [
    "",
    "a",
    "a DESC",
    "a NULLS FIRST",
    "b",
    "c",
    "a, b",
    "a, b DESC",
    "a DESC, b",
    "lower(c)",
    "b, a",
    "a, c DESC",
]
OUTPUTS = ["a", "a, b", "a, d", "b, c", "*"]
QUERIES = [
    f"SELECT {output} FROM visits{where and f' WHERE {where}'}{order and f' ORDER BY {order}'}"
    for output, where, order in product(OUTPUTS, CONDITIONS, ORDERS)
    if where or order or output != "*"
]


@pytest.fixture(scope="module")
def random_sets(server: EmbeddedServer) -> Iterator[Mine]:
    for found in made(server, TABLES):
        found.each("VACUUM ANALYZE visits")
        yield found


@st.composite
def index_sets(draw: st.DrawFn) -> list[str]:
    """Statements for up to six indexes, of few columns so that they often have to do with each other."""
    sets = []
    for n in range(draw(st.integers(2, 6))):
        keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
        keys = [key + draw(st.sampled_from([*[""] * 5, *OPTIONS])) for key in keys]
        included = draw(st.sampled_from(["", "", "", " INCLUDE (b)", " INCLUDE (d, b)"]))
        part = draw(st.sampled_from(["", "", "", " WHERE d > 3"]))
        sets.append(f"CREATE INDEX i{n} ON visits ({', '.join(keys)}){included}{part}")
    return sets


def quality(connection: psycopg.Connection[Any], query: str) -> tuple[bool, bool, bool, int] | None:
    """How an index answers a query: without a sort, from the index alone, with how many conditions; None: it cannot."""
    row = connection.execute(f"EXPLAIN (FORMAT JSON) {query}".encode()).fetchone()
    plan = read_plan(next(iter(row.values())))
    scans = [node for node in plan.nodes if node.kind in ("Index Scan", "Index Only Scan")]
    if not scans or any(node.kind == "Seq Scan" for node in plan.nodes):
        return None
    ordered = not any("Sort" in node.kind for node in plan.nodes)
    bound = scans[0].index_condition
    return True, ordered, scans[0].kind == "Index Only Scan", bound.count(" AND ") + bool(bound)


def qualities(connection: psycopg.Connection[Any], queries: list[str], keep: set[str], all_of: set[str]) -> list[Any]:
    """The same of several, with only some of the indexes there."""
    with connection.transaction(force_rollback=True):
        for name in all_of - keep:
            connection.execute(f"DROP INDEX {name}".encode())
        for setting in FORBIDDEN:
            connection.execute(f"SET LOCAL {setting} = off".encode())
        return [quality(connection, query) for query in queries]


seen = {"dropped": 0, "answered": 0}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index_sets(), st.lists(st.sampled_from(QUERIES), min_size=25, max_size=25, unique=True))
def test_no_plan_is_lost_with_what_is_called_duplicate_or_redundant(
    random_sets: Mine, statements: list[str], queries: list[str]
) -> None:
    """Each query that a dropped index alone could answer is answered by those kept; by the one that covers it, as well.

    The plan's shape is compared (no sort, index-only, as many conditions), not its cost: a wider index is a larger one.
    """
    random_sets.do(";".join(statements))
    try:
        covered = [remark for remark in random_sets.remarks() if remark.kind in ("duplicate", "redundant")]
        names = {f"i{n}" for n in range(len(statements))}
        dropped = {remark.index for remark in covered}
        assert dropped < names or not dropped
        with databases.connected(random_sets.server, random_sets.name) as connection:
            left = qualities(connection, queries, names - dropped, names) if dropped else []
            for remark in covered:
                by = re.search(r"(?:covered by|duplicate of) (i\d)", remark.text)[1]
                assert by not in dropped
                alone = qualities(connection, queries, {remark.index}, names)
                instead = qualities(connection, queries, {by}, names)
                for query, had, has, any_left in zip(queries, alone, instead, left, strict=True):
                    if had:
                        seen["answered"] += 1
                        assert has and all(h >= w for h, w in zip(has, had, strict=True)), (
                            remark.text,
                            query,
                            had,
                            has,
                        )
                        assert any_left, (remark.text, query)
            seen["dropped"] += len(dropped)
    finally:
        random_sets.do(f"DROP INDEX IF EXISTS {', '.join(f'i{n}' for n in range(len(statements)))}")


def test_that_property_was_not_empty() -> None:
    if seen["dropped"] or seen["answered"]:  # where the test before was run
        assert seen["dropped"] >= 5 and seen["answered"] >= 20, seen
