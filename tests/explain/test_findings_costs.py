"""Rules about memory, repetition, estimates and overheads: what they say of real plans, and where they are silent."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from finding_pages import FAST, PAGES, Page, explained
from hosted import Hosted, hosted
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run_all

from perfkit.base.errors import PlanError
from perfkit.explain.capture import Capture, ExplainSpec, capture
from perfkit.explain.facts import NO_FACTS, ColumnFacts, PlanFacts, ReferenceFacts, TableFacts
from perfkit.explain.findings import Finding, Severity, findings
from perfkit.explain.findings.model import FindingContext, FindingLimits, memory, rounded
from perfkit.explain.findings.operations import (
    correlated_subplan,
    hash_batches,
    nested_loop,
    sort_spill,
    workers_not_launched,
)
from perfkit.explain.findings.statement import jit_share, misestimate, planner_setting, planning_share, trigger_time
from perfkit.explain.plan import read_plan
from perfkit.postgres import databases
from perfkit.postgres.commands import Extended
from perfkit.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.slow  # the pages' examples of every rule are in test_findings

MINE = (
    *(misestimate, sort_spill, hash_batches, nested_loop, correlated_subplan, workers_not_launched, jit_share),
    *(trigger_time, planning_share, planner_setting),
)
# The values of city, postcode and region go together. Nothing refers to "Odd; Name" but what is tested.
TABLES = """
CREATE TABLE patients (id int PRIMARY KEY, city int, postcode int, region int, name text);
INSERT INTO patients SELECT n, n % 8, n % 8 * 10, n % 8 / 2, 'patient ' || n FROM generate_series(1, 20000) n;
CREATE TABLE visits (id int, patient int, day int, note text);
INSERT INTO visits SELECT n, n * 7919 % 20000 + 1, n % 365, 'note ' || n FROM generate_series(1, 60000) n;
CREATE INDEX visits_patient ON visits (patient);
CREATE TABLE clinics (id int PRIMARY KEY, name text, "Zone" int);
INSERT INTO clinics SELECT n, 'clinic ' || n, n % 7 FROM generate_series(1, 300) n;
CREATE TABLE stays (id int, clinic int, paid int, nights int);
INSERT INTO stays SELECT n, n % 300 + 1, n % 90, n % 9 FROM generate_series(1, 6000) n;
CREATE TABLE wards (code int, name text);
INSERT INTO wards SELECT n, 'ward ' || n FROM generate_series(1, 3) n;
CREATE SCHEMA "Other; x";
CREATE TABLE "Other; x"."Odd "" Name" (id int, "a'b; --" int, "C" int);
INSERT INTO "Other; x"."Odd "" Name" SELECT n, n % 10, n % 10 FROM generate_series(1, 20000) n;
CREATE TABLE accounts (id int PRIMARY KEY, name text, "Owner" int);
INSERT INTO accounts SELECT n, 'account ' || n, 1 FROM generate_series(1, 1000) n;
CREATE TABLE "Other; x"."Entries" (id int, "Account No" int CONSTRAINT entries_account REFERENCES accounts);
INSERT INTO "Other; x"."Entries" SELECT n, n % 500 + 1 FROM generate_series(1, 20000) n;
CREATE TABLE bookings (id int, account int CONSTRAINT bookings_account REFERENCES accounts);
INSERT INTO bookings SELECT n, n % 500 + 1 FROM generate_series(1, 20000) n;
CREATE INDEX ON bookings (account);
CREATE TABLE noted (id int, what text);
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM sum(n) FROM generate_series(1, 20000) n; RETURN new; END $$;
CREATE TRIGGER "Slow; trigger" BEFORE INSERT ON noted FOR EACH ROW EXECUTE FUNCTION slowly();
CREATE TABLE many (id int, x int);
INSERT INTO many SELECT n, n FROM generate_series(1, 50) n;
CREATE TABLE parts (id int, day int) PARTITION BY LIST (day);
CREATE FUNCTION few() RETURNS SETOF int LANGUAGE sql ROWS 10 VOLATILE AS 'SELECT generate_series(1, 5000)';
"""
PARTS = "".join(f"CREATE TABLE parts_{n} PARTITION OF parts FOR VALUES IN ({n});" for n in range(60))
PARALLEL = (
    *("max_parallel_workers_per_gather = 2", "parallel_setup_cost = 0", "parallel_tuple_cost = 0"),
    "min_parallel_table_scan_size = 0",
)
NO_HASH = ("enable_hashjoin = off", "enable_mergejoin = off")


@dataclass(frozen=True)
class Database:
    """A database on a real server."""

    connect: Callable[[], psycopg.Connection[Any]]

    def explained(self, sql: str, *session: str, **options: Any) -> Capture:
        """A statement's plan, with settings of its session."""

        def connect() -> psycopg.Connection[Any]:
            connection = self.connect()
            for setting in session:
                connection.execute((setting if setting.startswith(("SET ", "RESET ")) else f"SET {setting}").encode())
            return connection

        return capture(connect, sql, None, ExplainSpec(writes=True, **options))

    def found(self, rule: str, sql: str, *session: str, facts: bool = True, **options: Any) -> list[Finding]:
        """What one rule finds in it."""
        got = self.explained(sql, *session, **options)
        look = FindingContext(got.plan, got.facts if facts else NO_FACTS, FAST)
        return [f for each in MINE for f in each(look) if f.rule == rule]

    def assert_found(self, rule: str, sql: str, text: str, cure: str, *session: str, **options: Any) -> Finding:
        """It finds one thing, says so, and advises a statement."""
        got = self.found(rule, sql, *session, **options)
        assert len(got) == 1, got
        assert re.search(text, got[0].text), got[0].text
        assert got[0].sql == cure
        return got[0]

    def run(self, sql: str) -> None:
        with self.connect() as connection:
            for statement in sql.split(";\n"):
                run_all(connection, statement.encode())


@pytest.fixture(scope="module", params=["server", "server16"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(server, "findings_costs")
    try:
        with databases.connected(server, "findings_costs") as connection:
            for text in (TABLES, PARTS, "SELECT pg_stat_force_next_flush()", "VACUUM ANALYZE"):
                run_all(connection, text.encode())
        yield Database(lambda: server.connect("findings_costs", "postgres"))
    finally:
        databases.drop(server, "findings_costs")


@pytest.fixture
def scratch(db: Database) -> Iterator[Callable[[str], None]]:
    """Run statements that cure, undone afterwards by the statements given here."""
    undo: list[str] = []

    def run(sql: str) -> None:
        with db.connect() as connection:
            before = {row["oid"] for row in connection.execute(_OBJECTS)}
            for statement in sql.split(";\n"):
                run_all(connection, statement.encode())
            undo.extend(row["drop"] for row in connection.execute(_OBJECTS) if row["oid"] not in before)

    yield run
    for statement in undo:
        db.run(statement)


_OBJECTS = b"""
SELECT oid::text, 'DROP INDEX ' || oid::regclass AS drop FROM pg_class WHERE relkind = 'i'
UNION ALL SELECT oid::text, format('DROP STATISTICS %I.%I', stxnamespace::regnamespace::text, stxname)
FROM pg_statistic_ext
"""


def judged(node: dict[str, Any], facts: PlanFacts = NO_FACTS, **document: Any) -> dict[str, Finding]:
    """The findings of a plan made by hand, by rule."""
    plan = read_plan({"Plan": node, "Planning Time": 0.1, "Execution Time": 1000.0, **document})
    return {f.rule: f for rule in MINE for f in rule(FindingContext(plan, facts))}


def node(kind: str, *below: dict[str, Any], loops: float = 1, rows: float = 1, ms: float = 0.0, **more: Any) -> dict:
    """A node made by hand; the others' relationships are those of a join's sides."""
    for at, child in enumerate(below):
        child.setdefault("Parent Relationship", "Inner" if at else "Outer")
    figures = {"Actual Loops": loops, "Actual Rows": rows, "Plan Rows": rows, "Actual Total Time": ms}
    keys = {key.replace("_", " "): value for key, value in more.items()}
    return {"Node Type": kind, "Plan Width": 8, **figures, **keys, "Plans": list(below)}


# misestimate

TOGETHER = "p.city = 7 AND p.postcode = 70 AND p.region = 3"


def test_columns_that_go_together_need_statistics_of_both(db: Database, scratch: Callable[[str], None]) -> None:
    sql = f"SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE {TOGETHER}"
    found = db.assert_found(
        "misestimate",
        sql,
        r"^Seq Scan on patients p returned 2,500 rows, but the planner expected \d+, \d\d times too few; the \w+ \w+",
        "CREATE STATISTICS IF NOT EXISTS patients_city_postcode_region_stats (dependencies, mcv)"
        " ON city, postcode, region FROM patients;\nANALYZE patients",
    )
    assert found.ms > 0
    scratch(found.sql)
    assert not db.found("misestimate", sql)


def test_the_lowest_node_is_named_and_not_those_that_inherit_its_error(db: Database) -> None:
    sql = f"""SELECT * FROM patients p JOIN visits v ON v.patient = p.id JOIN visits w ON w.patient = p.id
              WHERE {TOGETHER} ORDER BY v.note"""
    (found,) = db.found("misestimate", sql)
    assert found.text.startswith("Seq Scan on patients p returned 2,500 rows")


def test_a_condition_on_an_expression_needs_statistics_of_it(db: Database, scratch: Callable[[str], None]) -> None:
    sql = "SELECT * FROM patients q JOIN visits v ON v.patient = q.id WHERE left(q.name, 7) = 'patient'"
    found = db.assert_found(
        "misestimate",
        sql,
        r"returned 20,000 rows, but the planner expected 100, 200 times too few",
        """CREATE STATISTICS IF NOT EXISTS patients_name_stats ON ("left"(name, 7)) FROM patients;\nANALYZE patients""",
    )
    scratch(found.sql)
    assert not db.found("misestimate", sql)


def test_a_table_without_statistics_is_to_be_analysed(db: Database) -> None:
    db.run(
        "CREATE TABLE fresh (id int, kind text);\nINSERT INTO fresh SELECT n, 'one' FROM generate_series(1, 30000) n"
    )
    sql = "SELECT * FROM fresh f JOIN visits v ON v.id = f.id WHERE f.kind = 'one'"
    try:
        found = db.assert_found("misestimate", sql, r"^Seq Scan on fresh f returned 30,000 rows", "ANALYZE fresh")
        assert found.advice == "fresh has no statistics yet: ANALYZE it."
        db.run(found.sql)
        assert not db.found("misestimate", sql)
    finally:
        db.run("DROP TABLE fresh")


def test_statistics_older_than_a_tenth_of_the_rows_are_to_be_renewed(db: Database) -> None:
    db.run(
        "CREATE TABLE aged AS SELECT n AS id, 0 AS kind FROM generate_series(1, 20000) n;\n"
        "SELECT pg_stat_force_next_flush();\n"
        "ANALYZE aged;\nUPDATE aged SET kind = 1;\nSELECT pg_stat_force_next_flush();\nSELECT 1"
    )
    sql = "SELECT * FROM aged a JOIN visits v ON v.id = a.id WHERE a.kind = 1"
    try:
        found = db.assert_found("misestimate", sql, r"20,000 rows, but the planner expected 1,", "ANALYZE aged")
        assert found.advice.startswith("20,000 rows of aged changed since")
        db.run(found.sql)
        assert not db.found("misestimate", sql)
    finally:
        db.run("DROP TABLE aged")


def test_without_facts_only_analyze_is_advised(db: Database) -> None:
    sql = f"SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE {TOGETHER}"
    db.assert_found("misestimate", sql, "Seq Scan on patients p", "ANALYZE patients", facts=False)


def test_an_error_inside_of_a_cte_is_named_there(db: Database) -> None:
    sql = f"""WITH chosen AS MATERIALIZED (SELECT id FROM patients p WHERE {TOGETHER})
              SELECT * FROM chosen JOIN visits v ON v.patient = chosen.id"""
    (found,) = db.found("misestimate", sql)
    assert found.text.startswith("Seq Scan on patients p returned 2,500 rows")


def test_a_function_that_gives_more_than_it_says_is_named(db: Database) -> None:
    (found,) = db.found("misestimate", "SELECT * FROM few() AS f (id) JOIN visits v ON v.id = f.id")
    assert "returned 5,000 rows, but the planner expected 10, 500 times too few" in found.text
    assert "ALTER FUNCTION" in found.advice


def test_too_many_rows_expected_is_found_too(db: Database) -> None:
    found = db.found(
        "misestimate",
        "SELECT * FROM visits v LEFT JOIN patients p ON p.id = v.patient AND p.city + 0 < 0",
    )
    assert [("times too many" in f.text, "no statistics on p.city + 0" in f.advice) for f in found] == [(True, True)]


def test_parallel_workers_rows_are_added_up(db: Database) -> None:
    sql = f"SELECT count(v.note) FROM patients p JOIN visits v ON v.patient = p.id WHERE {TOGETHER}"
    (found,) = db.found("misestimate", sql, *PARALLEL)
    assert re.match(r"(Parallel )?Seq Scan on patients p returned 2,(499|500|501) rows, but", found.text)


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT * FROM patients p WHERE {TOGETHER}",
        f"SELECT * FROM patients p WHERE {TOGETHER} ORDER BY name",
        "SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE p.city = 7",
        "SELECT * FROM patients p JOIN visits v ON v.patient = p.id LIMIT 5",
        "SELECT * FROM patients p WHERE EXISTS (SELECT FROM visits v WHERE v.patient = p.id) LIMIT 3",
        "SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE p.id < 0",
        "SELECT * FROM visits v JOIN patients p ON p.id = v.patient JOIN clinics c ON c.id = v.day WHERE c.id < 0",
        "SELECT * FROM clinics c WHERE c.id = 1",
    ],
)
def test_estimates_that_are_right_or_lead_nowhere_are_no_finding(db: Database, sql: str) -> None:
    assert not db.found("misestimate", sql)


def test_a_plan_that_was_not_executed_says_nothing_of_its_estimates(db: Database) -> None:
    sql = f"SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE {TOGETHER}"
    assert not db.found("misestimate", sql, analyze=False)
    assert db.found("misestimate", sql, timing=False)[0].severity is Severity.LOW


def test_a_merge_join_reads_its_inner_side_again_without_that_being_an_error() -> None:
    inner = node("Index Scan", rows=50000, ms=100, Plan_Rows=500) | {"Plan Rows": 500}
    assert not judged(node("Merge Join", node("Sort", rows=500, ms=1), inner, rows=500, ms=500))


def of_table(name: str, *columns: str, referenced_by: tuple[ReferenceFacts, ...] = ()) -> PlanFacts:
    """Facts about one analysed table of a million rows."""
    known = tuple(ColumnFacts(column, "integer", -0.5, 0.1) for column in columns)
    return PlanFacts((TableFacts("public", name, 1e6, 9e3, 0.0, 0.0, True, known, (), referenced_by),))


def scan(condition: str, rows: float = 20_000, expected: float = 10) -> dict[str, Any]:
    named = {"Relation Name": "t", "Schema": "public", "Alias": "t", "Filter": condition}
    return node("Seq Scan", rows=rows, ms=5) | named | {"Plan Rows": expected}


@pytest.mark.parametrize(
    ("condition", "sql"),
    [
        ("(t.a = 5)", "ALTER TABLE t ALTER COLUMN a SET STATISTICS 1000;\nANALYZE t"),
        (
            '((t.a = 5) AND (t."B" > 7))',
            'CREATE STATISTICS IF NOT EXISTS "t_a_B_stats" (dependencies, mcv) ON a, "B" FROM t;\nANALYZE t',
        ),
        ("((t.a % 2) = 1)", "CREATE STATISTICS IF NOT EXISTS t_a_stats ON (a % 2) FROM t;\nANALYZE t"),
        ("(mine(t.a) = 1)", ""),
        ("(t.a = o.x)", ""),
        ("(t.a = $1)", ""),
    ],
)
def test_the_cure_is_that_of_the_condition(condition: str, sql: str) -> None:
    join = node("Nested Loop", scan(condition), node("Index Scan", loops=20_000, ms=0.04), ms=900)
    assert judged(join, of_table("t", "a", "B"))["misestimate"].sql == sql


def test_groups_of_several_columns_need_their_combinations_counted() -> None:
    groups = node("Aggregate", scan("", rows=1e6, expected=1e6), rows=500_000, ms=800, Strategy="Hashed")
    groups |= {"Plan Rows": 200, "HashAgg Batches": 9, "Disk Usage": 9000, "Group Key": ["t.a", 't."B"']}
    found = judged(groups, of_table("t", "a", "B"))["misestimate"]
    assert found.sql == 'CREATE STATISTICS IF NOT EXISTS "t_a_B_stats" (ndistinct) ON a, "B" FROM t;\nANALYZE t'
    assert "its groups therefore spilled to disk" in found.text


def test_partitions_that_are_all_off_are_one_finding() -> None:
    parts = node("Append", *(scan("(t.a = 5)") for _ in range(5)), rows=100_000, ms=50) | {"Plan Rows": 50}
    plan = read_plan({"Plan": node("Hash Join", parts, node("Hash", ms=1), ms=900), "Execution Time": 999.0})
    assert len([*misestimate(FindingContext(plan, of_table("t", "a")))]) == 1


def test_a_hash_join_that_found_nothing_to_look_into_read_no_further() -> None:
    empty = node("Hash", rows=0, ms=300)
    assert not judged(
        node("Hash Join", scan("(t.a = 5)", rows=1, expected=9e5), empty, rows=0, ms=900), of_table("t", "a")
    )


# sort-spill


@pytest.mark.parametrize(
    ("sql", "session"),
    [
        ("SELECT id FROM visits ORDER BY day, id", "work_mem = '1MB'"),
        ("SELECT * FROM visits ORDER BY note", "work_mem = '1MB'"),
        ("SELECT day FROM visits ORDER BY day", "work_mem = '64kB'"),
        ("SELECT repeat(note, 40) AS long FROM visits ORDER BY note DESC", "work_mem = '4MB'"),
        ("SELECT * FROM visits ORDER BY note LIMIT 30000", "work_mem = '1MB'"),
        ("SELECT * FROM visits v ORDER BY day, note", "work_mem = '256kB'"),
        ("SELECT patient, row_number() OVER (PARTITION BY day ORDER BY note) FROM visits", "work_mem = '1MB'"),
        ("SELECT note::numeric(20) FROM (SELECT id AS note FROM visits) v ORDER BY 1", "work_mem = '1MB'"),
    ],
)
def test_a_sort_on_disk_gets_the_memory_that_it_needs(db: Database, sql: str, session: str) -> None:
    (found,) = db.found("sort-spill", sql, session)
    assert re.match(r"Sorting 60,000 rows by .* spilled [\d.]+ [kM]B to disk, because", found.text)
    assert re.fullmatch(r"SET work_mem = '\d+MB'", found.sql)
    assert not db.found("sort-spill", sql, session, found.sql)


def test_the_advised_memory_is_not_far_more_than_needed(db: Database) -> None:
    sql = "SELECT * FROM visits ORDER BY note"
    (found,) = db.found("sort-spill", sql, "work_mem = '1MB'")
    mb = int(re.findall(r"\d+", found.sql)[0])
    assert db.found("sort-spill", sql, f"work_mem = '{mb // 4}MB'")


def test_a_sort_in_workers_is_counted_for_each_process(db: Database) -> None:
    sql = "SELECT * FROM visits ORDER BY note"
    # On a busy machine the first process may have read the whole table before another has started.
    for _ in range(50):
        (found,) = db.found("sort-spill", sql, "work_mem = '256kB'", *PARALLEL)
        if "processes" in found.text:
            break
    assert re.search(r"^Sorting 60,00\d rows .* to disk in [23] processes, because", found.text), found.text
    assert not db.found("sort-spill", sql, found.sql, *PARALLEL)


def test_an_index_is_mentioned_where_only_the_first_rows_are_wanted(db: Database) -> None:
    (found,) = db.found("sort-spill", "SELECT * FROM visits ORDER BY note LIMIT 30000", "work_mem = '1MB'")
    assert "an index on (visits.note) returns them in order" in found.advice
    (found,) = db.found("sort-spill", "SELECT * FROM visits ORDER BY note", "work_mem = '1MB'")
    assert "index" not in found.advice


def test_more_memory_than_anybody_should_give_is_not_advised() -> None:
    child = node("Seq Scan", rows=1e8, ms=100)
    found = judged(node("Sort", child, rows=1e8, ms=900, Sort_Space_Type="Disk", Sort_Space_Used=9_000_000))
    assert found["sort-spill"].sql == ""
    assert re.search(r"takes about 1[\d.]+ GB, too much", found["sort-spill"].advice)


def test_an_incremental_sort_counts_its_largest_group() -> None:
    groups = {"Group Count": 3, "Sort Space Disk": {"Average Sort Space Used": 9000, "Peak Sort Space Used": 20000}}
    sort = node("Incremental Sort", node("Seq Scan", rows=1000, ms=1), ms=900, Pre_sorted_Groups=groups)
    sort["Pre-sorted Groups"] = groups
    assert "19.5 MB to disk" in judged(sort)["sort-spill"].text


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM visits ORDER BY note LIMIT 10",
        "SELECT * FROM clinics ORDER BY name",
        "SELECT * FROM visits WHERE day = 3 ORDER BY note",
        "SELECT patient FROM visits ORDER BY patient LIMIT 100",
    ],
)
def test_sorts_in_memory_are_no_finding(db: Database, sql: str) -> None:
    assert not db.found("sort-spill", sql)


def test_a_sort_on_disk_that_takes_no_time_is_no_finding() -> None:
    sort = node("Sort", node("Seq Scan", ms=900), ms=910, Sort_Space_Type="Disk", Sort_Space_Used=5000)
    assert not judged(sort)
    del sort["Actual Total Time"], sort["Plans"][0]["Actual Total Time"]
    assert judged(sort)["sort-spill"].severity is Severity.LOW


# hash-batches


@pytest.mark.parametrize(
    ("sql", "session"),
    [
        ("SELECT * FROM visits a JOIN visits b ON a.id = b.patient", "work_mem = '512kB'"),
        ("SELECT a.id FROM visits a JOIN visits b ON a.id = b.id", "work_mem = '64kB'"),
        ("SELECT * FROM patients a LEFT JOIN visits b ON a.name = b.note", "work_mem = '256kB'"),
        ("SELECT * FROM patients a JOIN patients b ON a.name = b.name AND a.city = b.city", "work_mem = '256kB'"),
        ("SELECT note, count(*) FROM visits GROUP BY note", "work_mem = '1MB'"),
        ("SELECT id, sum(day), max(note) FROM visits GROUP BY id", "work_mem = '512kB'"),
        ("SELECT DISTINCT note, day FROM visits", "work_mem = '1MB'"),
        ("WITH k AS MATERIALIZED (SELECT * FROM visits) SELECT count(*) FROM k WHERE day < 9", "work_mem = '1MB'"),
        ("SELECT id, count(*) OVER () FROM visits", "work_mem = '256kB'"),
    ],
)
def test_what_is_hashed_or_kept_on_disk_gets_the_memory_that_it_needs(db: Database, sql: str, session: str) -> None:
    always = ("enable_sort = off", "enable_mergejoin = off", session)
    (found,) = db.found("hash-batches", sql, *always)
    assert re.fullmatch(r"SET (work_mem = '\d+MB'|hash_mem_multiplier = \d+)", found.sql)
    assert not db.found("hash-batches", sql, *always, found.sql), (found.text, found.sql)


def test_a_shared_hash_table_may_use_the_memory_of_all_processes(db: Database) -> None:
    sql = "SELECT count(a.note) FROM visits a JOIN visits b ON a.id = b.patient"
    (found,) = db.found("hash-batches", sql, "work_mem = '256kB'", "enable_mergejoin = off", *PARALLEL)
    assert "60,000 rows" in found.text
    assert not db.found("hash-batches", sql, "work_mem = '256kB'", "enable_mergejoin = off", *PARALLEL, found.sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM patients a JOIN clinics b ON a.city = b.id",
        "SELECT day, count(*) FROM visits GROUP BY day",
        "SELECT count(*) OVER () FROM clinics",
        "WITH k AS MATERIALIZED (SELECT * FROM clinics) SELECT * FROM k",
        "SELECT id FROM visits",
    ],
)
def test_what_fits_into_memory_is_no_finding(db: Database, sql: str) -> None:
    assert not db.found("hash-batches", sql)


def test_a_hash_that_was_never_built_is_no_finding() -> None:
    unbuilt = node("Hash", node("Seq Scan", loops=0), loops=0, Hash_Batches=8)
    assert not judged(node("Hash Join", node("Seq Scan", rows=0, ms=900), unbuilt, ms=990))


def test_more_batches_than_planned_are_told() -> None:
    built = node("Hash", node("Seq Scan", rows=9e5, ms=100), rows=9e5, ms=300, Hash_Batches=16, Original_Hash_Batches=2)
    found = judged(node("Hash Join", node("Seq Scan", ms=9), built, ms=900))["hash-batches"]
    assert "in 16 batches (2 were planned)" in found.text


# nested-loop


def test_an_inner_side_without_an_index_gets_one_on_the_joins_column(
    db: Database, scratch: Callable[[str], None]
) -> None:
    sql = 'SELECT s.id FROM clinics c JOIN stays s ON s.clinic = c.id WHERE c."Zone" < 6'
    session = (*NO_HASH, "enable_material = off", "enable_indexscan = off", "enable_bitmapscan = off")
    found = db.found("nested-loop", sql, *session)
    assert len(found) == 1
    assert re.search(
        r"^(stays|clinics) is read in full [\d,]+ times, once for each row of the other side", found[0].text
    )


def test_rows_kept_in_memory_and_gone_through_again_are_found(db: Database, scratch: Callable[[str], None]) -> None:
    sql = """SELECT s.id FROM stays s JOIN patients p ON p.city = s.nights AND p.region = s.id
             WHERE s.id < 300 AND p.id < 3000"""
    found = db.assert_found(
        "nested-loop", sql, r"^stays is read in full [\d,]+ times", "CREATE INDEX ON stays (id, nights)", *NO_HASH
    )
    scratch(found.sql)
    assert not db.found("nested-loop", sql, *NO_HASH)


def test_an_or_between_tables_is_to_be_a_union(db: Database) -> None:
    sql = 'SELECT count(*) FROM clinics c JOIN stays s ON s.clinic = c.id OR s.paid = c."Zone"'
    (found,) = db.found("nested-loop", sql)
    assert found.sql == ""
    assert "UNION" in found.advice


def test_a_join_on_an_expression_is_to_compare_columns(db: Database) -> None:
    sql = "SELECT count(*) FROM clinics c JOIN stays s ON s.clinic + 1 = c.id + 0"
    (found,) = db.found("nested-loop", sql, *NO_HASH)
    assert found.sql == ""
    assert "compare plain columns of" in found.advice


def test_a_join_without_a_condition_is_asked_about(db: Database) -> None:
    (found,) = db.found("nested-loop", "SELECT count(*) FROM clinics, stays")
    assert "check for a missing condition" in found.advice
    assert "1,800,000 rows" in found.text


def test_an_index_searched_far_more_often_than_expected_leads_to_the_estimate(
    db: Database, scratch: Callable[[str], None]
) -> None:
    sql = f"SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE {TOGETHER}"
    session = ("random_page_cost = 0.1",)
    found = db.found("nested-loop", sql, *session)
    assert [re.sub(r"\d[\d,.]*", "N", f.text).split(", and")[0] for f in found] == [
        "Index Scan using visits_patient on visits v is searched N times, though the planner expected N times"
    ]
    scratch(found[0].sql)
    assert not db.found("nested-loop", sql, *session)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE p.id < 300",
        "SELECT * FROM visits v JOIN wards w ON v.day % 3 < w.code",
        "SELECT * FROM clinics a JOIN wards b ON b.code < a.id",
        "SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE p.id = 7",
        "SELECT * FROM patients p, LATERAL (SELECT * FROM visits v WHERE v.patient = p.id LIMIT 1) l WHERE p.id < 2000",
    ],
)
def test_loops_that_are_short_or_were_meant_are_no_finding(db: Database, sql: str) -> None:
    assert not db.found("nested-loop", sql)


def test_a_lateral_subquery_that_reads_all_each_time_is_found(db: Database) -> None:
    sql = "SELECT * FROM clinics c, LATERAL (SELECT max(paid) FROM stays s WHERE s.clinic = c.id) l"
    found = db.found("nested-loop", sql)
    assert [f.sql for f in found] == ["CREATE INDEX ON stays (clinic)"]


def test_a_loop_inside_of_workers_counts_the_executions_of_all(db: Database) -> None:
    sql = 'SELECT count(*) FROM clinics c JOIN stays s ON s.clinic = c.id OR s.paid = c."Zone"'
    (found,) = db.found("nested-loop", sql, *PARALLEL)
    assert "1,800,000 rows read" in found.text or "read in full" in found.text


# correlated-subplan


def test_a_subquery_in_the_list_of_columns_reads_all_for_every_row(
    db: Database, scratch: Callable[[str], None]
) -> None:
    sql = "SELECT name, (SELECT sum(paid) FROM stays s WHERE s.clinic = c.id) FROM clinics c"
    found = db.assert_found(
        "correlated-subplan",
        sql,
        r"^SubPlan 1 is executed 300 times, once for each row of Seq Scan on clinics c, and reads all of stays"
        r" each time, 1,800,000 rows in total",
        "CREATE INDEX ON stays (clinic)",
    )
    assert "GROUP BY clinic" in found.advice
    scratch(found.sql)
    assert not db.found("correlated-subplan", sql)


@pytest.mark.parametrize(
    ("sql", "rewrite"),
    [
        ("SELECT * FROM clinics c WHERE id < 0 OR EXISTS (SELECT FROM stays s WHERE s.clinic > c.id + 9000)", "EXISTS"),
        (
            "SELECT (SELECT s.id FROM stays s WHERE s.clinic = c.id ORDER BY paid DESC LIMIT 1) FROM clinics c",
            "DISTINCT ON",
        ),
        ("SELECT (SELECT s.paid FROM stays s WHERE s.id = c.id) FROM clinics c", "LEFT JOIN"),
        ("SELECT (SELECT count(*) FROM stays s WHERE s.paid > c.id) FROM clinics c", "GROUP BY"),
    ],
)
def test_the_rewrite_is_that_of_the_subquerys_use(db: Database, sql: str, rewrite: str) -> None:
    (found,) = db.found("correlated-subplan", sql)
    assert rewrite in found.advice


def test_not_in_over_more_than_fits_into_memory_is_to_be_not_exists(db: Database) -> None:
    sql = "SELECT count(*) FROM clinics WHERE id NOT IN (SELECT id + 1000 FROM stays)"
    (found,) = db.found("correlated-subplan", sql, "work_mem = '64kB'")
    assert "NOT EXISTS" in found.advice
    assert not db.found("correlated-subplan", sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT c.name, (SELECT sum(paid) FROM stays s WHERE s.clinic = c.id) FROM clinics c WHERE c.id < 3",
        "SELECT id, (SELECT count(*) FROM visits v WHERE v.patient = p.id) FROM patients p WHERE id < 2000",
        "SELECT id, (SELECT max(code) FROM wards w WHERE w.code < p.id) FROM patients p WHERE id < 2000",
        "SELECT id, (SELECT max(code) FROM wards) FROM patients",
        "SELECT * FROM clinics c WHERE EXISTS (SELECT FROM stays s WHERE s.clinic = c.id)",
    ],
)
def test_subqueries_that_are_few_or_cheap_are_no_finding(db: Database, sql: str) -> None:
    assert not db.found("correlated-subplan", sql)


def test_an_index_in_a_subquery_is_enough_until_there_are_very_many() -> None:
    def plan(loops: float) -> dict[str, Any]:
        sub = node("Index Scan", loops=loops, ms=900 / loops, Parent_Relationship="SubPlan", Subplan_Name="SubPlan 1")
        return node("Seq Scan", sub, rows=loops, ms=990)

    assert not judged(plan(9_000))
    assert "executed 20,000 times" in judged(plan(20_000))["correlated-subplan"].text


# workers-not-launched


def test_workers_that_were_not_allowed_are_named_with_the_setting(db: Database) -> None:
    sql = "SELECT count(*) FROM visits WHERE note LIKE '%7%8%'"
    found = db.assert_found(
        "workers-not-launched",
        sql,
        "^Gather planned 2 workers but got 0, so",
        "SET max_parallel_workers = 2",
        *PARALLEL,
        "max_parallel_workers = 0",
    )
    assert not db.found("workers-not-launched", sql, *PARALLEL, "max_parallel_workers = 0", found.sql)


def test_one_worker_of_two_is_found_too(db: Database) -> None:
    sql = "SELECT count(*) FROM visits WHERE note LIKE '%7%8%'"
    (found,) = db.found("workers-not-launched", sql, *PARALLEL, "max_parallel_workers = 1")
    assert "got 1," in found.text


def test_workers_taken_by_others_need_a_setting_of_the_server() -> None:
    work = node("Seq Scan", loops=2, ms=900)
    found = judged(node("Gather Merge", work, ms=950, Workers_Planned=4, Workers_Launched=1))["workers-not-launched"]
    assert found.text.startswith("Gather Merge planned 4 workers but got 1")
    assert (found.sql, found.severity) == ("", Severity.HIGH)
    assert found.ms == pytest.approx(950 * 3 / 5)


def test_workers_that_came_or_were_not_needed_are_no_finding(db: Database) -> None:
    sql = "SELECT count(*) FROM visits WHERE note LIKE '%7%8%'"
    assert not db.found("workers-not-launched", sql, *PARALLEL)
    assert not db.found("workers-not-launched", sql)
    assert not db.found("workers-not-launched", sql, *PARALLEL, "max_parallel_workers = 0", analyze=False)
    short = node("Gather", node("Seq Scan", ms=10), ms=20, Workers_Planned=2, Workers_Launched=0)
    assert not judged(node("Hash Join", short, node("Hash", ms=3), ms=999))
    assert not judged(node("Append", node("Gather", loops=0, Workers_Planned=2), ms=999))


# jit-share


def jit(total: float, **more: Any) -> dict[str, Any]:
    return {"JIT": {"Functions": 12, "Timing": {"Generation": {"Deform": 0.1, "Total": 1.0}, "Total": total}, **more}}


def test_compiling_is_found_by_its_share() -> None:
    found = judged(node("Seq Scan", ms=990), **jit(400.0))["jit-share"]
    assert found.text == (
        "Compiling 12 expressions to machine code (JIT) took 400 ms (40 % of the execution) and did not pay off."
    )
    assert (found.sql, found.severity) == ("SET jit = off", Severity.HIGH)


def test_compiling_in_every_process_is_divided_among_them() -> None:
    work = node("Seq Scan", loops=4, ms=900)
    gather = node("Gather", work, ms=950, Workers_Planned=3, Workers_Launched=3)
    assert judged(gather, **jit(1200.0))["jit-share"].ms == 300
    assert not judged(gather, **jit(900.0))


def test_little_compiling_is_no_finding() -> None:
    assert not judged(node("Seq Scan", ms=990))
    assert not judged(node("Seq Scan", ms=990), **jit(200.0))
    assert not judged(node("Seq Scan", ms=990), JIT={"Functions": 3})
    assert not judged(node("Seq Scan", ms=5), **jit(4.0), **{"Execution Time": 6.0})


# trigger-time


def test_an_unindexed_foreign_key_is_named_with_its_index(db: Database, scratch: Callable[[str], None]) -> None:
    found = db.assert_found(
        "trigger-time",
        "DELETE FROM accounts WHERE id BETWEEN 601 AND 640",
        r"^The foreign key entries_account was checked for accounts 40 times, ",
        'CREATE INDEX ON "Other; x"."Entries" ("Account No")',
    )
    scratch(found.sql)
    assert not db.found("trigger-time", "DELETE FROM accounts WHERE id BETWEEN 601 AND 640")


def test_without_facts_the_foreign_key_is_named_all_the_same(db: Database) -> None:
    (found,) = db.found("trigger-time", "DELETE FROM accounts WHERE id BETWEEN 601 AND 640", facts=False)
    assert found.sql == ""
    assert "check that its columns there are indexed" in found.advice


def test_a_trigger_of_ones_own_is_named(db: Database) -> None:
    (found,) = db.found("trigger-time", "INSERT INTO noted SELECT n, 'x' FROM generate_series(1, 20) n")
    assert found.text.startswith("The trigger Slow; trigger ran for noted 20 times, ")
    assert "transition table" in found.advice


def test_a_check_that_refers_to_itself_is_not_blamed_for_the_other_direction() -> None:
    facts = of_table("t", referenced_by=(ReferenceFacts("t_parent", "t", ("parent",), False),))
    trigger = {"Constraint Name": "t_parent", "Relation": "t", "Time": 500.0, "Calls": 9}
    added = {"Triggers": [trigger | {"Trigger Name": "RI_ConstraintTrigger_c_17"}]}
    gone = {"Triggers": [trigger | {"Trigger Name": "RI_ConstraintTrigger_a_17"}]}
    assert judged(node("ModifyTable", ms=1), facts, **added)["trigger-time"].sql == ""
    assert judged(node("ModifyTable", ms=1), facts, **gone)["trigger-time"].sql == "CREATE INDEX ON t (parent)"


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE accounts SET name = 'x' WHERE id > 500",
        "INSERT INTO bookings SELECT n, n % 500 + 1 FROM generate_series(1, 200) n",
        "DELETE FROM bookings WHERE id < 500",
        "DELETE FROM accounts WHERE id = -1",
        "SELECT * FROM accounts",
    ],
)
def test_triggers_that_take_little_are_no_finding(db: Database, sql: str) -> None:
    assert not db.found("trigger-time", sql)


# planning-share

JOINED = "SELECT * FROM many a " + " ".join(f"JOIN many {name} USING (id)" for name in "bcdefghij") + " WHERE a.x = 5"


def test_a_join_of_many_tables_takes_its_time_to_plan(db: Database) -> None:
    (found,) = db.found("planning-share", JOINED, "join_collapse_limit = 12", "geqo = off")
    assert re.match(r"Planning of 9 joins took [\d.,]+ ms, [\d.]+ % of planning and execution together", found.text)
    assert "join_collapse_limit" in found.advice
    assert found.node is None


def test_partitions_are_counted_with_those_that_were_left_out() -> None:
    append = node("Append", *(node("Seq Scan") for _ in range(30)), ms=1, Subplans_Removed=10)
    found = judged(append, **{"Planning Time": 80.0, "Execution Time": 1.0})["planning-share"]
    assert found.text.startswith("Planning of 40 partitions took 80 ms, 98.8 % of planning")
    assert "partition key" in found.advice


def test_without_a_reason_preparing_is_advised() -> None:
    found = judged(node("Seq Scan", ms=1), **{"Planning Time": 8.0, "Execution Time": 1.0})["planning-share"]
    assert found.text.startswith("Planning took 8 ms")
    assert found.advice.startswith("Prepare the statement once")


def test_planning_that_is_short_or_pays_is_no_finding(db: Database) -> None:
    assert not db.found("planning-share", "SELECT * FROM many a JOIN many b USING (id) WHERE a.x = 5")
    assert not db.found("planning-share", "SELECT count(*) FROM visits a JOIN visits b USING (patient)")
    assert not db.found("planning-share", JOINED, "join_collapse_limit = 12", "geqo = off", analyze=False)
    assert not judged(node("Seq Scan", ms=100), **{"Planning Time": 90.0, "Execution Time": 100.0})


# planner-setting


def test_a_setting_that_forces_the_plan_is_to_be_reset(db: Database) -> None:
    sql = "SELECT * FROM patients WHERE id = 7"
    found = db.assert_found(
        "planner-setting",
        sql,
        r"^A planner setting forced this plan: enable_indexscan is off\.$",
        "RESET enable_indexscan",
        "enable_indexscan = off",
    )
    assert not db.found("planner-setting", sql, "enable_indexscan = off", found.sql)


def test_a_node_that_nothing_else_was_possible_for_is_named(db: Database) -> None:
    found = db.assert_found(
        "planner-setting",
        "SELECT count(*) FROM stays",
        r"enable_seqscan is off; Seq Scan on stays is used anyway",
        "RESET enable_seqscan",
        "enable_seqscan = off",
    )
    assert found.node == 2


def test_a_plan_that_was_not_executed_tells_its_settings_too(db: Database) -> None:
    sql = "SELECT * FROM clinics c JOIN stays s ON s.clinic = c.id"
    found = db.found("planner-setting", sql, *NO_HASH, analyze=False)
    assert [f.sql for f in found] == ["RESET enable_hashjoin;\nRESET enable_mergejoin"]
    assert "enable_hashjoin, enable_mergejoin are off" in found[0].text


def test_a_disabled_node_is_found_without_settings_since_18_and_by_a_setting_before() -> None:
    assert judged(node("Sort", Disabled=True))["planner-setting"].sql == "RESET enable_sort"
    costly = node("Seq Scan", Total_Cost=1e10 + 5)
    assert not judged(costly), "a plan may really cost so much"
    assert "Seq Scan" in judged(costly, Settings={"enable_seqscan": "off"})["planner-setting"].text


@pytest.mark.parametrize(
    "session",
    [("enable_seqscan = on",), ("work_mem = '9MB'", "random_page_cost = 1.1"), ("enable_partitionwise_join = on",)],
)
def test_settings_that_forbid_nothing_are_no_finding(db: Database, session: tuple[str, ...]) -> None:
    assert not db.found("planner-setting", "SELECT count(*) FROM stays", *session)


def test_a_made_up_setting_gets_into_no_statement() -> None:
    hostile = {"enable_x; DROP TABLE visits": "off", 'enable_"x"': "off", "enable_sort\n": "off"}
    assert not judged(node("Seq Scan"), Settings=hostile)


# all of them


def test_odd_names_are_quoted_in_statements_that_run(db: Database, scratch: Callable[[str], None]) -> None:
    odd = '"Other; x"."Odd "" Name"'
    sql = f"""SELECT * FROM {odd} "T 1" JOIN visits v ON v.id = "T 1".id WHERE "a'b; --" = 3 AND "C" = 3"""
    (found,) = db.found("misestimate", sql, session_statistics := "enable_nestloop = on")
    assert found.sql.endswith(f"""ON "a'b; --", "C" FROM {odd};\nANALYZE {odd}""")
    scratch(found.sql)
    assert not db.found("misestimate", sql, session_statistics)
    sql = f"""SELECT (SELECT count(*) FROM {odd} o WHERE o."C" = c."Zone" + 1) FROM clinics c"""
    (found,) = db.found("correlated-subplan", sql)
    assert found.sql == f'CREATE INDEX ON {odd} ("C")'
    scratch(found.sql)


def test_healthy_statements_have_no_finding_at_all(db: Database) -> None:
    for sql in (
        "SELECT * FROM patients WHERE id = 5",
        "SELECT count(*) FROM visits",
        "SELECT day, count(*) FROM visits GROUP BY day",
        "SELECT * FROM visits WHERE patient = 5 ORDER BY id",
        "SELECT * FROM wards ORDER BY name",
        "SELECT * FROM patients p JOIN visits v ON v.patient = p.id WHERE p.id = 7",
        "INSERT INTO noted SELECT 1, 'x' WHERE false",
    ):
        got = db.explained(sql)
        found = [f for rule in MINE for f in rule(FindingContext(got.plan, got.facts))]
        assert not found, (sql, found)


def test_a_plan_that_was_only_estimated_tells_nothing_but_its_settings(db: Database) -> None:
    for sql in ("SELECT * FROM visits ORDER BY note", "SELECT count(*) FROM clinics, stays", "DELETE FROM accounts"):
        got = db.explained(sql, "work_mem = '64kB'", "enable_hashagg = off", *PARALLEL, analyze=False)
        assert {f.rule for rule in MINE for f in rule(FindingContext(got.plan, got.facts))} == {"planner-setting"}


def test_thresholds_are_limits_that_a_caller_may_set(db: Database) -> None:
    got = db.explained("SELECT * FROM visits ORDER BY note", "work_mem = '1MB'")
    assert any(f.rule == "sort-spill" for f in findings(got.plan, got.facts, FAST))
    assert not any(f.rule == "sort-spill" for f in findings(got.plan, got.facts, FindingLimits(worth_ms=1e9)))


def test_thirty_healthy_nodes_are_judged_in_no_time() -> None:
    top = node("Seq Scan", ms=1)
    for _ in range(14):
        top = node("Hash Join", top, node("Hash", ms=0.1), ms=top["Actual Total Time"] + 1)
    plan = read_plan({"Plan": top, "Execution Time": 20.0, "Planning Time": 0.1})
    took = []
    for _ in range(50):
        start = time.perf_counter()
        found = [f for rule in MINE for f in rule(FindingContext(plan))]
        took.append(time.perf_counter() - start)
    assert not found
    took.sort()
    parse = time.perf_counter()
    read_plan(plan.document)
    parse = time.perf_counter() - parse
    assert took[0] < 3 * parse, "judging should cost about as much as reading"


def test_memory_is_read_as_the_server_prints_it() -> None:
    assert [memory({"work_mem": text}) for text in ("64kB", "4MB", "1GB", "", "x", "9" * 400)] == [
        *(64.0, 4096.0, 1048576.0, 4096.0, 4096.0, 2.0**31)
    ]
    assert memory({}) == 4096
    assert [rounded(kb) for kb in (1, 1024, 1025, 5000, 8192, 8193)] == [1, 1, 2, 8, 8, 16]


KINDS = (
    "Sort,Incremental Sort,Hash,Hash Join,Nested Loop,Merge Join,Materialize,Memoize,Aggregate,CTE Scan,Seq Scan,"
    "Index Scan,Gather,Gather Merge,Append,Limit,WindowAgg,Bitmap Heap Scan,Function Scan,Result,ModifyTable"
).split(",")
WORDS = st.sampled_from(
    ["a", "Disk", "Memory", "Outer", "Inner", "SubPlan", "InitPlan", "CTE a", "SubPlan 1", "off", "enable_sort", "t"]
)
CONDITION = st.sampled_from(
    [
        "(a.b = 1)",
        "((a.b = c.d) OR (a.e > 5))",
        "(lower(a.b) = 'x'::text)",
        "((a.b = $1) AND (a.c = 2))",
        "((",
        "'",
        "a.",
    ]
)
NUMBER = st.one_of(st.integers(-5, 5), st.sampled_from([1e3, 1e6, 1e12, 1e18, 1e30, 10**30]), st.floats())
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, WORDS, CONDITION, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=4,
)
TEXTUAL = (
    "Parent Relationship,Subplan Name,CTE Name,Relation Name,Alias,Schema,Filter,Join Filter,Index Cond,Sort Key,"
    "Group Key,Sort Space Type,Storage,Strategy,Join Type,Partial Mode"
).split(",")
NUMERIC = (
    "Actual Rows,Actual Loops,Actual Total Time,Plan Rows,Plan Width,Total Cost,Sort Space Used,Hash Batches,"
    "Original Hash Batches,HashAgg Batches,Disk Usage,Peak Memory Usage,Maximum Storage,Temp Written Blocks,"
    "Workers Planned,Workers Launched,Rows Removed by Filter,Subplans Removed"
).split(",")
OTHER = ("Workers", "Full-sort Groups", "Pre-sorted Groups", "Disabled", "Parallel Aware", "Inner Unique")
KEYS = st.one_of(
    st.dictionaries(st.sampled_from(NUMERIC), st.one_of(NUMBER, VALUE), max_size=8),
    st.dictionaries(st.sampled_from((*TEXTUAL, *OTHER)), st.one_of(WORDS, CONDITION, VALUE), max_size=8),
)
RAW = st.recursive(
    st.builds(lambda kind, a, b: {"Node Type": kind, **a, **b}, st.sampled_from(KINDS), KEYS, KEYS),
    lambda inner: st.builds(lambda top, below: {**top, "Plans": below}, inner, st.lists(inner, max_size=3)),
    max_leaves=12,
)
TABLE = st.builds(
    TableFacts, *(st.just("public"), st.just("t")), *[st.floats(0, 1e9)] * 4, st.booleans(), *[st.just(())] * 3
)


@settings(max_examples=200, deadline=None)
@given(
    RAW,
    st.dictionaries(st.sampled_from(["Settings", "Triggers", "JIT", "Planning Time", "Execution Time"]), VALUE),
    TABLE,
)
def test_no_rule_raises_for_a_plan_that_could_be_read(top: Any, document: Any, table: TableFacts) -> None:
    try:
        plan = read_plan({"Plan": top, **document})
    except PlanError:
        return
    for facts in (NO_FACTS, PlanFacts((table,))):
        for rule in MINE:
            for found in rule(FindingContext(plan, facts, FindingLimits(worth_ms=0, worth_share=0))):
                assert 0 <= found.share <= 1


# a server of the system's, which has JIT and is older


@pytest.fixture(scope="module")
def system() -> Iterator[Hosted]:
    with hosted() as running:
        yield running


def extended(system: Hosted, dbname: str = "shop") -> psycopg.Connection[Any]:
    """A connection whose cursors know the extended protocol alone, as perfkit's own do."""
    connection = system.connect("postgres", dbname)
    connection.cursor_factory = Extended
    return connection


@pytest.mark.system
def test_the_pages_that_need_a_system_server_hold_on_it(system: Hosted) -> None:
    class Named:
        def connect(self, dbname: str) -> psycopg.Connection[Any]:
            connection = extended(system, dbname)
            connection.execute("SET search_path = pg_temp, public")
            return connection

    for page in [page for page in map(Page, PAGES) if page.blocks.get("needs")]:
        for text in page.blocks["setup"]:
            system.run(*[part for part in text.split(";\n") if part.strip()], dbname="bare")
        assert system.run(*page.statements("needs"), dbname="bare") == [(True,)]
        for kind, wanted in (("silent", False), ("found", True)):
            for sql in page.statements(kind):
                got = explained(Named(), "bare", sql)  # type: ignore[arg-type]
                found = [f for f in findings(got.plan, got.facts, FAST if wanted else None) if f.rule == page.rule]
                assert bool(found) == wanted, (sql, found)
                for finding in found:
                    after = explained(Named(), "bare", sql, [finding.sql])  # type: ignore[arg-type]
                    assert not [f for f in findings(after.plan, after.facts) if f.rule == page.rule]


@pytest.mark.system
def test_an_older_server_gets_advice_that_cures_too(system: Hosted) -> None:
    setup = TABLES.split("CREATE TABLE clinics")[0]
    system.run(*[part for part in setup.split(";\n") if part.strip()], "ANALYZE", dbname="shop")
    db = Database(lambda: extended(system))
    for rule, sql in (
        ("sort-spill", "SELECT * FROM visits ORDER BY note"),
        ("sort-spill", "SELECT day FROM visits ORDER BY day"),
        ("hash-batches", "SELECT * FROM visits a JOIN visits b ON a.id = b.patient"),
        ("hash-batches", "SELECT note, count(*) FROM visits GROUP BY note"),
        ("hash-batches", "SELECT id, count(*) OVER () FROM visits"),
    ):
        always = ("work_mem = '256kB'", "enable_mergejoin = off")
        (found,) = db.found(rule, sql, *always)
        assert not db.found(rule, sql, *always, found.sql), (found.text, found.sql)
