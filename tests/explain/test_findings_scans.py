"""Rules about scans: what they find, what they advise, that it helps, and where they say nothing."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run_all

from perfkit.base.errors import PlanError
from perfkit.explain.capture import Capture, ExplainSpec, capture
from perfkit.explain.facts import NO_FACTS
from perfkit.explain.findings import RULES, Finding, Severity, findings
from perfkit.explain.findings.model import FindingContext, FindingLimits
from perfkit.explain.findings.scans import (
    blocked_condition,
    heap_fetches,
    index_filter,
    lossy_bitmap,
    ordered_limit,
    sequential_scan,
)
from perfkit.explain.plan import read_plan
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.slow  # the pages' examples of every rule are in test_findings

MINE = (sequential_scan, index_filter, heap_fetches, lossy_bitmap, blocked_condition, ordered_limit)
ANY_TIME = FindingLimits(worth_ms=0.0, worth_share=0.0)  # the machine's speed does not matter
NAMES = {rule.__name__.replace("_", "-") for rule in MINE}

# A visit has one clinic of 200, one of 5 states, a minute and a day of its own; `words` sorts by language.
TABLES = """
CREATE COLLATION words (locale = 'C.UTF-8');
CREATE TABLE clinics (id int PRIMARY KEY, name text);
INSERT INTO clinics SELECT n, 'clinic ' || n FROM generate_series(1, 200) n;
CREATE TABLE visits (
    id int PRIMARY KEY, clinic int, state text, urgent boolean, price numeric, at timestamptz, local timestamp,
    day date, name text COLLATE words, code varchar(20), email text, data jsonb, tags text[], span int4range
);
INSERT INTO visits
SELECT n, n % 200, CASE WHEN n % 5000 = 7 THEN 'open' ELSE 'done' END, n % 5000 = 8, n % 4001,
       '2024-01-01Z'::timestamptz + n * interval '1 minute', '2024-01-01'::timestamp + n * interval '1 minute',
       '2024-01-01'::date + n / 100, 'Name ' || n, 'c' || n, 'Mail' || n || '@example.org',
       jsonb_build_object('k', n), array['t' || n], int4range(n, n + 2)
FROM generate_series(1, 40000) n;
CREATE TABLE bookings (id int PRIMARY KEY, clinic int, slot int, state int, day int, note text);
INSERT INTO bookings SELECT n, n % 4, n % 1000, n % 500, n % 3653, 'note ' || n FROM generate_series(1, 40000) n;
CREATE INDEX bookings_clinic ON bookings (clinic, slot);
CREATE TABLE tiny (id int, name text);
INSERT INTO tiny SELECT n, 'name ' || n FROM generate_series(1, 300) n;
CREATE TABLE days (id int, day int, kind int) PARTITION BY RANGE (day);
CREATE TABLE days_a PARTITION OF days FOR VALUES FROM (0) TO (100);
CREATE TABLE days_b PARTITION OF days FOR VALUES FROM (100) TO (200);
INSERT INTO days SELECT n, n % 200, n % 2000 FROM generate_series(1, 60000) n;
CREATE SCHEMA "Ärzte"; CREATE TABLE "Ärzte"."Or""der" (id int, "select" int, "a.b" text);
INSERT INTO "Ärzte"."Or""der" SELECT n, n, 'x''' || n FROM generate_series(1, 40000) n;
"""
PARALLEL = """SET max_parallel_workers_per_gather = 2;
SET min_parallel_table_scan_size = 0;
SET min_parallel_index_scan_size = 0;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
"""


class Database:
    """A database of tables that have few indexes."""

    def __init__(self, server: EmbeddedServer, name: str) -> None:
        self.server, self.name = server, name

    def run(self, *statements: str) -> None:
        with databases.connected(self.server, self.name) as connection:
            for statement in statements:
                run_all(connection, statement.encode())

    def indexes(self) -> set[str]:
        with databases.connected(self.server, self.name) as connection:
            wanted = "relkind IN ('i', 'I') AND NOT relispartition AND oid > 16384"
            rows = connection.execute(f"SELECT oid::regclass::text AS name FROM pg_class WHERE {wanted}".encode())
            return {row["name"] for row in rows}

    def ask(self, sql: str) -> Any:
        with databases.connected(self.server, self.name) as connection:
            return next(iter((run_all(connection, sql.encode()).fetchone() or {}).values()))

    def explained(self, sql: str, **options: Any) -> Capture:
        *sets, statement = [part.strip() for part in re.split(r";\s*\n", sql)]

        def connect() -> psycopg.Connection[Any]:
            connection = self.server.connect(self.name)
            for setting in sets:
                run_all(connection, setting.encode())
            return connection

        return capture(connect, statement, None, ExplainSpec(writes=True, repeats=1, **options))

    def found(self, sql: str, **options: Any) -> list[Finding]:
        captured = self.explained(sql, **options)
        return [f for f in findings(captured.plan, captured.facts, ANY_TIME) if f.rule in NAMES]

    def assert_found(
        self, sql: str, rule: str, text: str, cure: str = "", advice: str = "", rewritten: str = ""
    ) -> Finding:
        """A rule speaks; what it advises is done for real, and then it is silent."""
        every = self.found(sql)
        of = [f for f in every if f.rule == rule]
        assert of, f"{rule} is silent; found {every}"
        assert re.search(text, of[0].text), of[0].text
        assert of[0].sql == cure and advice in of[0].advice, of[0]
        if cure.startswith("CREATE") or rewritten:
            before = self.indexes()
            self.run(*of[0].sql.split(";\n") if of[0].sql else ())
            try:
                after = self.found(rewritten or sql)
                assert rule not in {f.rule for f in after}, after
            finally:
                self.run(*(f"DROP INDEX {name}" for name in self.indexes() - before))
        return of[0]

    def assert_silent(self, sql: str, *rules: str, **options: Any) -> None:
        found = [f for f in self.found(sql, **options) if not rules or f.rule in rules]
        assert not found, found


@pytest.fixture(scope="module", params=["server", "server16"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(server, "findings_scans")
    database = Database(server, "findings_scans")
    try:
        database.run(TABLES, "VACUUM ANALYZE")
        yield database
    finally:
        databases.drop(server, "findings_scans")


# sequential-scan


def test_a_scan_that_keeps_few_rows_gets_an_index(db: Database) -> None:
    text = r"^Full scan of visits: 40,000 rows read, 1 \(0\.0025 %\) matched; [\d,]+ pages\.$"
    db.assert_found("SELECT * FROM visits WHERE email = 'Mail7@example.org'", "sequential-scan", text,
                    "CREATE INDEX ON visits (email)")  # fmt: skip


def test_equality_comes_first_the_most_selective_foremost_and_then_one_range(db: Database) -> None:
    sql = "SELECT * FROM visits WHERE day > '2024-06-01' AND state = 'open' AND clinic = 7"
    db.assert_found(sql, "sequential-scan", "matched", "CREATE INDEX ON visits (clinic, state, day)")


def test_the_order_of_a_limit_follows_equality(db: Database) -> None:
    sql = "SELECT id FROM visits v WHERE clinic = 7 ORDER BY day DESC LIMIT 3"
    found = db.assert_found(sql, "sequential-scan", "200", "CREATE INDEX ON visits (clinic, day)")
    assert "order" in found.advice
    sql = "SELECT id FROM visits WHERE clinic = 7 ORDER BY day DESC, email LIMIT 3"
    db.assert_found(sql, "sequential-scan", "200", "CREATE INDEX ON visits (clinic)")


def test_a_range_goes_before_an_order_by_another_column(db: Database) -> None:
    sql = "SELECT id FROM visits WHERE clinic = 7 AND day > '2024-12-01' ORDER BY email LIMIT 3"
    db.assert_found(sql, "sequential-scan", "matched", "CREATE INDEX ON visits (clinic, day)")


def test_rows_that_are_null_or_true_or_of_a_list_are_equality(db: Database) -> None:
    db.assert_found("SELECT * FROM visits WHERE urgent", "sequential-scan", "8 ", "CREATE INDEX ON visits (urgent)")
    sql = "SELECT * FROM visits WHERE clinic IN (3, 4) AND code IS NULL"
    db.assert_found(sql, "sequential-scan", "none matched; ", "CREATE INDEX ON visits (code, clinic)")


def test_varchar_is_compared_as_text_and_its_plain_index_serves_it(db: Database) -> None:
    sql = "SELECT * FROM visits WHERE code = 'c5'"
    db.assert_found(sql, "sequential-scan", "read, 1 ", "CREATE INDEX ON visits (code)")
    db.assert_silent(sql, "blocked-condition")


def test_the_beginning_of_a_text_gets_an_index_that_knows_patterns(db: Database) -> None:
    sql = "SELECT * FROM visits WHERE name LIKE 'Name 399%'"
    db.assert_found(sql, "sequential-scan", "111", "CREATE INDEX ON visits (name text_pattern_ops)")


def test_a_comparison_of_rows_gets_an_index_of_all_their_columns(db: Database) -> None:
    sql = "SELECT * FROM visits v WHERE (day, email) > ('2025-02-03', 'a')"
    db.assert_found(sql, "sequential-scan", "matched", "CREATE INDEX ON visits (day, email)")


def test_processes_share_one_scan_and_its_rows_are_all_of_theirs(db: Database) -> None:
    sql = PARALLEL + "SELECT * FROM visits WHERE clinic = 7"
    db.assert_found(sql, "sequential-scan", r"visits: (40,000|39,999|40,00\d) rows read, about (198|200|201) ",
                    "CREATE INDEX ON visits (clinic)")  # fmt: skip


def test_a_scan_that_is_repeated_counts_all_its_rows(db: Database) -> None:
    sql = """SELECT t.id, v.n FROM (SELECT id FROM tiny WHERE id < 6) t, LATERAL
             (SELECT count(*) n FROM visits v WHERE v.clinic = t.id AND v.state <> 'x') v"""
    text = "^Full scan of visits, 5 times: 200,000 rows read, about 1,000 "
    db.assert_found(sql, "sequential-scan", text, "CREATE INDEX ON visits (clinic)")


def test_a_subquery_of_each_row_is_a_repeated_scan_too(db: Database) -> None:
    sql = "SELECT id, (SELECT max(day) FROM visits v WHERE v.clinic = t.id) FROM tiny t WHERE id < 4"
    db.assert_found(sql, "sequential-scan", r"visits, 3 times: 120,000 rows", "CREATE INDEX ON visits (clinic)")


def test_partitions_get_one_index_on_the_whole(db: Database) -> None:
    found = db.found("SELECT * FROM days d WHERE kind = 7")
    assert [f.rule for f in found] == ["sequential-scan"]
    db.assert_found("SELECT * FROM days d WHERE kind = 7", "sequential-scan",
                    r"^Full scan of days in 2 partitions: 60,000 rows read, 30 ",
                    "CREATE INDEX ON days (kind)")  # fmt: skip
    one = "SELECT * FROM days WHERE kind = 7 AND day < 50"
    db.assert_found(one, "sequential-scan", "^Full scan of days_a: ", "CREATE INDEX ON days (kind, day)")


def test_an_or_of_columns_gets_an_index_for_each(db: Database) -> None:
    sql = "SELECT * FROM visits WHERE email = 'Mail7@example.org' OR clinic = 5"
    cure = "CREATE INDEX ON visits (email);\nCREATE INDEX ON visits (clinic)"
    db.assert_found(sql, "sequential-scan", "201", cure, "UNION")
    db.assert_silent("SELECT * FROM visits WHERE clinic = 5 OR clinic + id = 7 OR price > 5", "sequential-scan")


@pytest.mark.parametrize(
    ("condition", "cure", "advice"),
    [
        ("""data @> '{"k": 7}'""", "CREATE INDEX ON visits USING gin (data jsonb_path_ops)", "GIN"),
        ("tags @> array['t7']", "CREATE INDEX ON visits USING gin (tags)", "GIN"),
        ("tags && array['t7', 't8']", "CREATE INDEX ON visits USING gin (tags)", "GIN"),
        ("span @> 70", "CREATE INDEX ON visits USING gist (span)", "GiST"),
        ("to_tsvector('english', email) @@ 'mail7'::tsquery",
         "CREATE INDEX ON visits USING gin (to_tsvector('english'::regconfig, email))", "GIN"),
        ("state <> 'done'", "CREATE INDEX ON visits (state) WHERE state <> 'done'::text", "small"),
    ],
)  # fmt: skip
def test_what_no_b_tree_serves_gets_another_kind_of_index(db: Database, condition: str, cure: str, advice: str) -> None:
    db.assert_found(f"SELECT id FROM visits v WHERE {condition}", "sequential-scan", "matched", cure, advice)


def test_a_regular_expression_that_fixes_the_beginning_gets_an_index_that_knows_patterns(db: Database) -> None:
    sql = "SELECT * FROM visits WHERE email ~ '^Mail399'"
    db.assert_found(sql, "sequential-scan", "111", "CREATE INDEX ON visits (email text_pattern_ops)")


def test_where_the_planner_may_be_right_about_an_index_it_did_not_take_nothing_is_said(db: Database) -> None:
    db.run("CREATE INDEX visits_clinic ON visits (clinic)")
    try:
        off = "SET enable_indexscan = off;\nSET enable_bitmapscan = off;\n"
        db.assert_silent(off + "SELECT * FROM visits WHERE clinic < 7")
        assert db.found(off + "SELECT * FROM visits WHERE clinic = 7")
    finally:
        db.run("DROP INDEX visits_clinic")


def test_what_needs_an_extension_or_a_rewrite_is_said_without_sql(db: Database) -> None:
    advice = "CREATE EXTENSION pg_trgm, then CREATE INDEX ON visits USING gin (email gin_trgm_ops)"
    db.assert_found("SELECT * FROM visits WHERE email LIKE '%l77@%'", "sequential-scan", "read, 1 ", "", advice)
    db.assert_found("SELECT * FROM visits WHERE email ILIKE 'mail77@%'", "sequential-scan", "read, 1 ", "", "trgm")
    db.assert_found("SELECT * FROM visits WHERE 't7' = ANY (tags)", "sequential-scan", "", "", "tags @> ARRAY['t7'")


def test_an_index_that_is_there_is_not_suggested_again(db: Database) -> None:
    settings = "SET enable_indexscan = off;\nSET enable_bitmapscan = off;\n"
    cure = "RESET enable_indexscan;\nRESET enable_bitmapscan"
    sql = settings + "SELECT * FROM visits WHERE id = 7"
    db.assert_found(sql, "sequential-scan", "read, 1 ", cure, "did not use the existing index visits_pkey: enable")
    db.run("CREATE TABLE jumps AS SELECT n, n AS k FROM generate_series(1, 40000) n",
           "UPDATE jumps SET k = 1 WHERE n < 39990", "ANALYZE jumps", "UPDATE jumps SET k = n",
           "CREATE INDEX jumps_k ON jumps (k)")  # fmt: skip
    try:
        sql = "SELECT * FROM jumps WHERE k = 1"
        db.assert_found(sql, "sequential-scan", "read, 1 ", "ANALYZE jumps", "jumps_k")
        db.run("ANALYZE jumps")
        db.assert_silent(sql)
    finally:
        db.run("DROP TABLE jumps")


def test_an_index_that_is_broken_is_built_again(db: Database) -> None:
    db.run("CREATE INDEX visits_email ON visits (email)")
    with databases.connected(db.server, db.name, user="postgres") as connection:
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'visits_email'::regclass")
    try:
        sql = "SELECT * FROM visits WHERE email = 'x'"
        found = db.assert_found(sql, "sequential-scan", "", "REINDEX INDEX public.visits_email", "invalid")
        db.run(found.sql)
        db.assert_silent(sql)
    finally:
        db.run("DROP INDEX visits_email")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM tiny WHERE name = 'name 7'",
        "SELECT count(*), sum(price) FROM visits",
        "SELECT count(*) FROM visits WHERE clinic < 100",
        "SELECT * FROM visits WHERE clinic = 7 LIMIT 3",
        "SELECT * FROM visits WHERE state = 'done' ORDER BY email LIMIT 5",
        "SELECT * FROM visits WHERE id = 7 AND email = 'Mail7@example.org'",
        "SELECT * FROM visits WHERE false AND email = 'x'",
        "SELECT * FROM visits WHERE clinic = 900 AND (SELECT id FROM tiny WHERE id < 0) = 1",
        "SELECT * FROM visits WHERE random() < 0.001",
        "SELECT * FROM pg_class WHERE relpages = 7",
        "SELECT * FROM visits WHERE data <@ '{\"k\": 7}'",
        "SELECT DISTINCT state FROM visits",
        "SELECT c.name, count(*) FROM visits v JOIN clinics c ON c.id = v.clinic GROUP BY 1",
    ],
)
def test_healthy_scans_are_silent(db: Database, sql: str) -> None:
    db.assert_silent(sql, "sequential-scan", "index-filter")


def test_a_plan_that_was_not_executed_says_expected(db: Database) -> None:
    (found,) = db.found("SELECT * FROM visits WHERE email = 'x'", analyze=False)
    text = r"Full scan of visits: 40,000 rows to be read, about 1 \(.*\) expected to match; [\d,]+ pages\."
    assert re.fullmatch(text, found.text)
    assert found.severity == Severity.LOW and found.sql == "CREATE INDEX ON visits (email)"
    captured = db.explained("SELECT * FROM visits WHERE email = 'x'", analyze=False)
    assert not findings(captured.plan, NO_FACTS), "how many rows there are is not in the plan"
    assert not db.found("SELECT * FROM visits WHERE id = 7", analyze=False)


def test_without_times_rows_are_enough_and_weigh_little(db: Database) -> None:
    (found,) = db.found("SELECT * FROM visits WHERE email = 'x'", timing=False)
    assert found.severity == Severity.LOW and found.rule == "sequential-scan"


def test_without_the_catalogue_the_plan_alone_is_enough(db: Database) -> None:
    captured = db.explained("SELECT * FROM visits v WHERE v.clinic = 7 AND v.day < '2024-02-01'")
    (found,) = [f for f in findings(captured.plan) if f.rule == "sequential-scan"]
    assert found.sql == "CREATE INDEX ON visits (clinic, day)"


def test_hostile_names_are_quoted_in_sql(db: Database) -> None:
    sql = 'SELECT * FROM "Ärzte"."Or""der" "a b" WHERE "select" = 7'
    db.assert_found(sql, "sequential-scan", '^Full scan of Or"der: ', 'CREATE INDEX ON "Ärzte"."Or""der" ("select")')
    sql = """SELECT * FROM "Ärzte"."Or""der" "a b" WHERE upper("a.b") = 'X''7'"""
    db.assert_found(sql, "blocked-condition", "", 'CREATE INDEX ON "Ärzte"."Or""der" (upper("a.b"))')
    sql = """SELECT * FROM "Ärzte"."Or""der" "a b" WHERE "a.b" <> 'x''7' AND id = 7"""
    db.assert_found(sql, "sequential-scan", "", 'CREATE INDEX ON "Ärzte"."Or""der" (id)')


# index-filter


def test_an_index_whose_rows_are_thrown_away_gets_the_filters_column(db: Database) -> None:
    sql = "SET enable_seqscan = off;\nSELECT * FROM bookings b WHERE clinic = 3 AND state = 7"
    text = r"^bookings_clinic returns 10,000 rows of bookings, and the filter \(state = 7\) keeps (\d+ \(|none)"
    db.assert_found(sql, "index-filter", text, "CREATE INDEX ON bookings (state, clinic)")


def test_a_range_of_the_index_and_one_of_the_filter_go_into_one_index(db: Database) -> None:
    sql = "SET enable_seqscan = off;\nSELECT * FROM bookings WHERE clinic = 3 AND slot < 900 AND day < 20"
    db.assert_found(sql, "index-filter", "bookings_clinic", "CREATE INDEX ON bookings (clinic, slot, day)")


def test_a_filter_inside_a_nested_loop_counts_every_round(db: Database) -> None:
    sql = """SET enable_seqscan = off;\nSET enable_hashjoin = off;\nSET enable_mergejoin = off;
             SET enable_material = off;\nSELECT * FROM (VALUES (0), (1), (2), (3)) t (c)
             JOIN bookings b ON b.clinic = t.c WHERE b.state = 7"""
    db.assert_found(sql, "index-filter", r"returns 40,000 rows of bookings in 4 executions",
                    "CREATE INDEX ON bookings (state, clinic)")  # fmt: skip


def test_a_filter_of_several_processes_counts_all_of_theirs(db: Database) -> None:
    sql = PARALLEL + "SET enable_seqscan = off;\nSELECT * FROM bookings WHERE clinic < 3 AND state = 7"
    db.assert_found(sql, "index-filter", r"returns (29,99\d|30,00\d) rows", "CREATE INDEX ON bookings (state, clinic)")


def test_a_filter_that_no_b_tree_serves_gets_its_own_kind_of_index(db: Database) -> None:
    sql = "SET enable_seqscan = off;\nSELECT * FROM bookings WHERE clinic = 3 AND note LIKE '%39999'"
    db.assert_found(sql, "index-filter", "keeps 1 ", "", "pg_trgm")


@pytest.mark.parametrize(
    "sql",
    [
        "SET enable_seqscan = off;\nSELECT * FROM bookings WHERE clinic = 3 AND state < 400",
        "SELECT * FROM bookings WHERE clinic = 3 AND slot = 7 AND state = 7",
        "SELECT * FROM bookings WHERE clinic = 3 AND slot = 7",
        "SELECT * FROM bookings WHERE clinic = 3 AND state > 5 ORDER BY slot LIMIT 5",
        "SELECT * FROM visits WHERE id BETWEEN 5 AND 300 AND email = 'x'",
    ],
)
def test_an_index_that_finds_mostly_what_is_wanted_is_silent(db: Database, sql: str) -> None:
    db.assert_silent(sql, "index-filter")


# heap-fetches


@pytest.fixture
def changed(db: Database) -> Iterator[Callable[[str], None]]:
    db.run("CREATE TABLE slots (id int PRIMARY KEY, day int) WITH (autovacuum_enabled = off)",
           "INSERT INTO slots SELECT n, n FROM generate_series(1, 40000) n", "ANALYZE slots")  # fmt: skip
    yield lambda statement: db.run(statement)
    db.run("DROP TABLE slots")


FORCED = "SET enable_seqscan = off;\nSET enable_bitmapscan = off;\n"


def test_an_index_only_scan_of_a_table_never_vacuumed_wants_vacuum(db: Database, changed: Callable[..., None]) -> None:
    sql = FORCED + "SELECT count(id) FROM slots WHERE id < 30000"
    text = r"^slots_pkey covers the query, but 29,999 rows of 29,999 were looked up in slots, because"
    found = db.assert_found(sql, "heap-fetches", text, "VACUUM slots")
    db.run(found.sql)
    db.assert_silent(sql)
    changed("UPDATE slots SET day = 0 WHERE id < 20000")
    assert "heap-fetches" in {f.rule for f in db.found(sql)}


def test_repeated_index_only_scans_are_counted_once(db: Database, changed: Callable[..., None]) -> None:
    sql = (
        FORCED
        + """SET enable_hashjoin = off;\nSET enable_mergejoin = off;\nSET enable_material = off;
                      \nSELECT count(s.id) FROM generate_series(1, 20000) n LEFT JOIN slots s ON s.id = n"""
    )
    db.assert_found(sql, "heap-fetches", "20,000 rows of 20,000 were", "VACUUM slots")


def test_parallel_index_only_scans_are_counted_once(db: Database, changed: Callable[..., None]) -> None:
    sql = PARALLEL + FORCED + "SELECT count(id) FROM slots WHERE id < 30000"
    db.assert_found(sql, "heap-fetches", r"29,999 rows of (29,999|30,00\d) were", "VACUUM slots")


def test_few_heap_fetches_are_silent(db: Database, changed: Callable[..., None]) -> None:
    db.assert_silent(FORCED + "SELECT id FROM slots WHERE id < 500", "heap-fetches")  # few rows
    db.run("VACUUM slots")
    db.assert_silent(FORCED + "SELECT count(id) FROM slots", "heap-fetches")
    changed("UPDATE slots SET day = 0 WHERE id < 300")  # a few pages
    db.assert_silent(FORCED + "SELECT count(id) FROM slots", "heap-fetches")
    db.assert_silent(FORCED + "SELECT count(id) FROM slots", "heap-fetches", analyze=False)


# lossy-bitmap


@pytest.fixture(scope="module")
def wide(db: Database) -> Iterator[None]:
    db.run("CREATE TABLE wide (id int, kind int, other int, pad char(400))",
           "INSERT INTO wide SELECT n, n % 10, n % 7, 'x' FROM generate_series(1, 60000) n",
           "CREATE INDEX wide_kind ON wide (kind)", "CREATE INDEX wide_other ON wide (other)",
           "VACUUM ANALYZE wide")  # fmt: skip
    yield
    db.run("DROP TABLE wide")


SMALL = "SET work_mem = '64kB';\nSET enable_seqscan = off;\nSET enable_indexscan = off;\n"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(pad) FROM wide WHERE kind = 3",
        "SELECT count(pad) FROM wide WHERE kind = 3 OR other = 2",
        "SET enable_hashjoin = off;\nSET enable_mergejoin = off;\nSET enable_material = off;\nSELECT count(w.pad) FROM "
        "(VALUES (1), (2), (3)) t (k) JOIN wide w ON w.kind = t.k",
    ],
    ids=["one", "or", "loops"],
)
def test_a_bitmap_that_does_not_fit_gets_the_work_mem_that_makes_it_exact(db: Database, wide: None, sql: str) -> None:
    found = db.assert_found(SMALL + sql, "lossy-bitmap", r"for wide did not fit into work_mem: of [\d,]+ pages",
                            "SET work_mem = '1MB'")  # fmt: skip
    *settings, statement = (SMALL + sql).split(";\n")
    after = db.explained(";\n".join([*settings, found.sql, statement])).plan
    bitmap = next(node for node in after.nodes if node.kind == "Bitmap Heap Scan")
    assert not bitmap.lossy_pages and bitmap.exact_pages


def test_a_bitmap_of_several_processes_counts_the_pages_of_all(db: Database, wide: None) -> None:
    captured = db.explained(PARALLEL + SMALL + "SELECT count(pad) FROM wide WHERE kind = 3")
    bitmap = next(node for node in captured.plan.nodes if node.kind == "Bitmap Heap Scan")
    found = [f for f in findings(captured.plan, captured.facts, ANY_TIME) if f.rule == "lossy-bitmap"]
    if db.server.version >= 18:
        assert found and found[0].sql == "SET work_mem = '1MB'"
        assert re.search(r"of 3,[34]\d\d pages", found[0].text), "every page is in somebody's part"
    else:  # the leader's part alone is in the plan, and may be any
        idle = not any(worker["Actual Rows"] for worker in bitmap.raw["Workers"])
        assert bool(found) == ((1 if idle else 3) * bitmap.lossy_pages >= FindingLimits().lossy_pages)


@pytest.mark.parametrize(("worker", "pages"), [({"Actual Rows": 0}, 3000), ({"Actual Rows": 5}, 9000),
                                               ({"Actual Rows": 5, "Lossy Heap Blocks": 100}, 3100)],
                         ids=["came-late", "pages-unknown", "pages-known"])  # fmt: skip
def test_workers_that_found_nothing_to_do_multiply_no_pages(worker: dict[str, int], pages: int) -> None:
    scan = {"Node Type": "Bitmap Heap Scan", "Parent Relationship": "Outer", "Parallel Aware": True,
            "Relation Name": "t", "Plan Rows": 5, "Actual Rows": 5,
            "Actual Loops": 3, "Actual Total Time": 50.0, "Actual Startup Time": 0.1,
            "Lossy Heap Blocks": 3000, "Exact Heap Blocks": 0, "Rows Removed by Index Recheck": 9,
            "Workers": [{"Worker Number": 0, "Actual Loops": 1, **worker}]}  # fmt: skip
    gather = {"Node Type": "Gather", "Plan Rows": 5, "Actual Rows": 5, "Actual Loops": 1, "Actual Total Time": 60.0,
              "Actual Startup Time": 0.1, "Workers Planned": 2, "Workers Launched": 2, "Plans": [scan]}  # fmt: skip
    plan = read_plan([{"Plan": gather, "Execution Time": 60.0}])
    (found,) = lossy_bitmap(FindingContext(plan, limits=ANY_TIME))
    assert f"of {pages:,} pages" in found.text


def test_bitmaps_that_fit_are_silent(db: Database, wide: None) -> None:
    forced = "SET enable_seqscan = off;\nSET enable_indexscan = off;\n"
    db.assert_silent(forced + "SELECT count(pad) FROM wide WHERE kind = 3", "lossy-bitmap")
    db.assert_silent(forced + "SELECT count(pad) FROM wide WHERE kind = 3 AND other = 2", "lossy-bitmap")
    db.assert_silent(SMALL + "SELECT count(pad) FROM wide WHERE kind = 99", "lossy-bitmap")
    db.assert_silent(SMALL + "SELECT count(pad) FROM wide WHERE kind = 3", "lossy-bitmap", analyze=False)
    db.assert_silent("SET enable_seqscan = off;\nSELECT pad FROM wide WHERE kind = 3 LIMIT 5", "lossy-bitmap")


# blocked-condition


@pytest.mark.parametrize(
    ("condition", "rewrite"),
    [
        ("at::date = '2024-01-05'", "(at)::date = '2024-01-05'::date AND at >= '2024-01-04' AND at < '2024-01-07'"),
        ("at::date >= '2024-01-28'", "(at)::date >= '2024-01-28'::date AND at >= '2024-01-27'"),
        ("date(at) < '2024-01-02'", "date(at) < '2024-01-02'::date AND at < '2024-01-04'"),
        ("local::date = '2024-01-05'", "local >= '2024-01-05' AND local < '2024-01-06'"),
        ("local::date >= '2024-01-28'", "local >= '2024-01-28'"),
        ("local::date < '2024-01-02'", "local < '2024-01-02'"),
        ("local::date > '2024-01-27'", "local >= '2024-01-28'"),
        ("date(local) <= '2024-01-01'", "local < '2024-01-02'"),
        ("date_trunc('hour', at) = '2024-01-05 06:00Z'",
         "date_trunc('hour'::text, at) = '2024-01-05 06:00:00+00'::timestamp with time zone AND "
         "at >= '2024-01-05 06:00:00+00'::timestamptz AND "
         "at <= '2024-01-05 06:00:00+00'::timestamptz + interval '1 hour'"),
        ("date_trunc('hour', local) = '2024-01-05 06:00'",
         "local >= '2024-01-05 06:00:00' AND local < '2024-01-05 07:00:00'"),
        ("date_trunc('day', local) < '2024-01-01 12:00'", "local < '2024-01-02'"),
        ("extract(year FROM local) = 2025", "local >= '2025-01-01' AND local < '2026-01-01'"),
        ("date_part('year', local) = 2025", "local >= '2025-01-01' AND local < '2026-01-01'"),
        ("at + interval '1 day' < '2024-01-03'",
         "(at + '1 day'::interval) < '2024-01-03 00:00:00+00'::timestamp with time zone AND "
         "at <= '2024-01-03 00:00:00+00'::timestamptz + interval '24 hours'"),
        ("id = 7.0", "id = 7"),
        ("id::bigint = 7", "id = 7"),
        ("id::text = '7'", "id = 7"),
        ("id = 7::double precision", "id = 7"),
        ("id IS NOT DISTINCT FROM 7", "id = 7"),
    ],
)  # fmt: skip
def test_what_is_done_to_a_column_is_written_as_a_condition_on_it(db: Database, condition: str, rewrite: str) -> None:
    statement = "SELECT id FROM visits v WHERE {}"
    found = db.assert_found(statement.format(condition), "blocked-condition", "40,000 rows of visits", "", rewrite)
    column = re.search(r"CREATE INDEX ON visits \((\w+)\)|which the index visits_(?:pkey) serves", found.advice)
    assert column, found.advice
    rows = "SELECT array_agg(id ORDER BY id) FROM visits WHERE {}"
    assert db.ask(rows.format(rewrite)) == db.ask(rows.format(condition))
    db.run(f"CREATE INDEX rewritten ON visits ({column[1] or 'id'})")
    try:
        db.assert_silent(statement.format(rewrite))
        again = [f for f in db.found(statement.format(condition)) if f.rule == "blocked-condition"]
        assert again and ", which the index " in again[0].advice
    finally:
        db.run("DROP INDEX rewritten")


def test_an_index_that_is_there_is_used_for_a_calculation_with_its_column(db: Database) -> None:
    db.run("CREATE INDEX visits_day ON visits (day)")
    try:
        sql = "SELECT * FROM visits WHERE day + 7 < '2024-01-09'"
        advice = "Write (day + 7) < '2024-01-09'::date AND day < '2024-01-02', which the index visits_day serves."
        db.assert_found(sql, "blocked-condition", "compares day", "", advice)
        db.assert_silent(sql + " AND day < '2024-01-02'")
    finally:
        db.run("DROP INDEX visits_day")


@pytest.mark.parametrize(
    ("condition", "key"),
    [
        ("lower(email) = 'mail7@example.org'", "lower(email)"),
        ("upper(code) = 'C7'", "upper((code)::text)"),
        ("lower(email) LIKE 'mail77%'", "lower(email) text_pattern_ops"),
        ("lower(email) IN ('mail7@example.org', 'mail8@example.org')", "lower(email)"),
        ("price * 2 = 14", "(price * '2'::numeric)"),
        ("id % 10000 = 7", "(id % 10000)"),
        ("abs(price - 5) = 3", "abs((price - '5'::numeric))"),
        ("coalesce(clinic, 0) = 7 AND upper(email) = 'MAIL7@EXAMPLE.ORG'", "COALESCE(clinic, 0)"),
        ("data ->> 'k' = '7'", "(data ->> 'k'::text)"),
        ("(data ->> 'k')::int = 7", "(((data ->> 'k'::text))::integer)"),
        ("email = 'x' COLLATE words", "email COLLATE words"),
        ("substr(email, 5, 2) = '7@'", "substr(email, 5, 2)"),
        ("left(email, 5) = 'Mail7'", '("left"(email, 5))'),
        ("email || '' = 'Mail7@example.org'", "(email || ''::text)"),
        ("trim(email) = 'Mail7@example.org'", "TRIM(BOTH FROM email)"),
        ("-id = -7", "(- id)"),
        ("id + 5 = 100", "(id + 5)"),
        ("100 - id > 90", "(100 - id)"),
        ("price::text = '77'", "((price)::text)"),
        ("price::int = 77", "((price)::integer)"),
        ("id::text = '007'", "((id)::text)"),
        ("id::text LIKE '3999%'", "((id)::text) text_pattern_ops"),
        ("code::char(3) = 'c77'", "((code)::character(3))"),
        ("local::time = '12:00'", "((local)::time without time zone)"),
        ("local + interval '1 month' = '2024-03-05' AND clinic > 0", "(local + '1 mon'::interval)"),
        ("day + 7 < '2024-01-09'", "(day + 7)"),
        ("(at AT TIME ZONE 'UTC')::date = '2024-01-05'", "(((at AT TIME ZONE 'UTC'::text))::date)"),
        ("extract(minute FROM local) = 2", "EXTRACT(minute FROM local)"),
        ("date_trunc('day', local) = '2024-01-02 12:00'", "date_trunc('day'::text, local)"),
        ("date '2026-01-01' - day = 710", "('2026-01-01'::date - day)"),
    ],
)
def test_what_cannot_be_rewritten_gets_an_index_on_the_expression(db: Database, condition: str, key: str) -> None:
    sql = f"SELECT * FROM visits v WHERE {condition}"
    db.assert_found(sql, "blocked-condition", "40,000 rows", f"CREATE INDEX ON visits ({key})", "serves it")


def test_an_expression_that_may_not_be_immutable_is_not_made_into_a_statement(db: Database) -> None:
    sql = "SELECT * FROM visits WHERE to_char(at, 'YYYY-MM-DD HH24') = '2024-01-05 06'"
    db.assert_found(sql, "blocked-condition", "to_char", "", "may depend on the session's TimeZone")
    sql = "SELECT * FROM visits WHERE to_char(local, 'YYYY-MM-DD HH24') = '2024-01-05 06'"
    db.assert_found(sql, "blocked-condition", "to_char", "", "IMMUTABLE")
    sql = "SELECT * FROM visits WHERE tags::text = '{t7}'"
    db.assert_found(sql, "blocked-condition", "tags cast to text", "", "IMMUTABLE")
    sql = "SELECT * FROM visits WHERE date_trunc('day', local AT TIME ZONE 'UTC') = '2024-01-05Z'"
    db.assert_found(
        sql, "blocked-condition", "AT TIME ZONE", "", "Comparing local with a range returns the same rows only"
    )
    sql = "SELECT * FROM visits WHERE (local AT TIME ZONE 'UTC')::date = '2024-01-05'"
    db.assert_found(sql, "blocked-condition", "AT TIME ZONE", "", "may depend on the session's TimeZone")
    sql = "SELECT * FROM visits WHERE extract(hour FROM at) = 6 AND extract(minute FROM at) = 7"
    db.assert_found(sql, "blocked-condition", "EXTRACT", "", "may depend on the session's TimeZone")


def test_a_time_since_is_compared_with_the_time_itself(db: Database) -> None:
    advice = "Write (now() - at) > '5000 days'::interval AND at < now() - interval '120000 hours', and"
    db.assert_found(
        "SELECT * FROM visits WHERE now() - at > interval '5000 days'", "blocked-condition", "none", "", advice
    )
    sql = "SELECT * FROM visits WHERE age(now(), at) > interval '5000 days'"
    db.assert_found(sql, "blocked-condition", "none", "", "returns different rows if it has months or days")


def test_an_enumeration_as_text_is_not_immutable(db: Database) -> None:
    db.run("CREATE TYPE mood AS ENUM ('a', 'b')",
           "CREATE TABLE moods AS SELECT n, 'a'::mood AS mood FROM generate_series(1, 40000) n")  # fmt: skip
    try:
        sql = "SELECT * FROM moods WHERE lower(mood::text) = 'b'"
        db.assert_found(sql, "blocked-condition", "none", "", "IMMUTABLE")
        sql = "SELECT * FROM moods WHERE mood::text = 'b'"
        db.assert_found(sql, "blocked-condition", "none", "", "Comparing mood with", "")
    finally:
        db.run("DROP TABLE moods", "DROP TYPE mood")


def test_a_pattern_with_an_index_that_sorts_by_language_gets_one_that_does_not(db: Database) -> None:
    db.run("CREATE INDEX visits_name ON visits (name)")
    try:
        sql = "SELECT * FROM visits WHERE name LIKE 'Name 399%'"
        db.assert_found(sql, "blocked-condition", "the beginning of name",
                        "CREATE INDEX ON visits (name text_pattern_ops)", "operator class")  # fmt: skip
    finally:
        db.run("DROP INDEX visits_name")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM tiny WHERE lower(name) = 'name 7'",
        "SELECT * FROM visits WHERE id = 7 AND lower(email) = 'mail7@example.org'",
        "SELECT count(*) FROM visits WHERE lower(state) = 'done'",
        "SELECT * FROM visits WHERE code = 'c7'",
        "SELECT * FROM visits WHERE position('l77' in email) > 0",
        "SELECT * FROM visits WHERE code::text = 'c7'",
        "SELECT * FROM visits WHERE at > now() - interval '1 day'",
        "SELECT lower(email) FROM visits WHERE email = 'Mail7@example.org'",
        "SELECT * FROM visits WHERE lower(email) <> 'x' AND clinic = 7",
        "SELECT * FROM visits WHERE (clinic, id) > (198, 39000)",
        "SELECT * FROM visits WHERE clinic = 7 AND lower(state) = 'done'",
        "SELECT * FROM visits WHERE lower(email) LIKE 'mail%' LIMIT 5",
    ],
)
def test_conditions_that_block_nothing_are_silent(db: Database, sql: str) -> None:
    db.assert_silent(sql, "blocked-condition")


# ordered-limit


def test_a_walk_in_order_past_what_the_filter_does_not_want_gets_an_index(db: Database) -> None:
    db.run("CREATE TABLE walked AS SELECT n AS id, n / 39990 AS rare, n % 9 AS day FROM generate_series(1, 40000) n",
           "ALTER TABLE walked ADD PRIMARY KEY (id)", "ANALYZE walked")  # fmt: skip
    try:
        text = r"^walked_pkey was read in order .*: (39,99\d|40,000) rows.* were read, and the filter kept 5 "
        sql = "SET enable_sort = off;\nSELECT * FROM walked WHERE rare = 1 ORDER BY id LIMIT 5"
        db.assert_found(sql, "ordered-limit", text, "CREATE INDEX ON walked (rare, id)", "MATERIALIZED")
        sql = "SET enable_sort = off;\nSELECT * FROM walked WHERE rare = 7 AND day = 3 ORDER BY id DESC LIMIT 5"
        db.assert_found(
            sql,
            "ordered-limit",
            "40,000 rows of walked were read, and the filter kept none",
            "CREATE INDEX ON walked (day, rare, id)",
        )
        sql = "SET enable_sort = off;\nSELECT id FROM walked WHERE id > 5 AND rare = 1 ORDER BY id LIMIT 5"
        db.assert_found(sql, "ordered-limit", "walked_pkey", "CREATE INDEX ON walked (rare, id)")
        sql = "SET enable_sort = off;\nSELECT * FROM walked WHERE rare % 7 = 1 ORDER BY id LIMIT 5"
        db.assert_found(sql, "ordered-limit", "walked_pkey", "", "MATERIALIZED")
        sql = PARALLEL + "SET enable_sort = off;\nSELECT * FROM walked WHERE rare = 1 ORDER BY id LIMIT 5"
        db.assert_found(sql, "ordered-limit", "walked_pkey", "CREATE INDEX ON walked (rare, id)")
        db.assert_silent(sql, "index-filter")
        sql = "SET enable_seqscan = off;\nSELECT min(id) FROM walked WHERE rare = 1"
        db.assert_found(sql, "ordered-limit", "walked_pkey", "CREATE INDEX ON walked (rare, id)")
    finally:
        db.run("DROP TABLE walked")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM bookings ORDER BY id LIMIT 10",
        "SELECT * FROM bookings WHERE state < 400 ORDER BY id LIMIT 10",
        "SELECT * FROM bookings WHERE state = 7 ORDER BY id",
        "SELECT * FROM bookings WHERE clinic = 1 AND slot = 5 ORDER BY id LIMIT 10",
        "SELECT id FROM bookings WHERE id < 900 AND state = 7 ORDER BY id LIMIT 10",
        "SELECT * FROM bookings WHERE note = 'note 40000' LIMIT 1",
    ],
)
def test_a_limit_that_stops_early_or_has_its_index_is_silent(db: Database, sql: str) -> None:
    db.assert_silent(sql, "ordered-limit")


# every rule

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
conditions = st.one_of(
    json_values,
    st.text(alphabet="()'\"ab. =<>~:%ANDORNOT$1,[]", max_size=60),
    st.sampled_from(["(a = 1)", "(v.a)::date = '2024-02-30'::date", "(NOT (a IS DISTINCT FROM b))", "(a ~~ 'x%'::text)",
                     "((v.a + 1) = 5)", "(EXTRACT(year FROM a) = '9999'::numeric)", "ROW(a, b) > ROW(1, 2)",
                     "((a = 1) OR (b = 2))", "(lower(a) = 'x'::text)", "(a = 'x'::text COLLATE \"C\")",
                     "(v.a)::date <= '9999-12-31'::date", "('x'::text = ANY (v.a))"]),
)  # fmt: skip
KINDS = ["Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Bitmap Index Scan", "Limit", "Sort",
         "Append", "Nested Loop", "Gather"]  # fmt: skip
numbers = json_values | st.sampled_from([0, 1, 5, 40_000, 1e9, 0.33])
raw_nodes = st.fixed_dictionaries(
    {"Node Type": st.sampled_from(KINDS)},
    optional={
        **dict.fromkeys(["Filter", "Index Cond", "Recheck Cond", "Sort Key"], conditions),
        **dict.fromkeys(["Actual Rows", "Actual Loops", "Actual Total Time", "Rows Removed by Filter", "Plan Rows",
                         "Heap Fetches", "Lossy Heap Blocks", "Exact Heap Blocks", "Rows Removed by Index Recheck"],
                        numbers),
        "Relation Name": st.sampled_from(["v", "t", 'a"b']) | json_values,
        "Alias": st.sampled_from(["v", "v_1", 'a"b']) | json_values,
        "Schema": json_values, "Index Name": json_values, "Workers": json_values, "Parallel Aware": json_values,
        "Parent Relationship": st.sampled_from(["Outer", "Inner", "SubPlan"]) | json_values,
    },
)  # fmt: skip
trees = st.recursive(
    raw_nodes,
    lambda inner: st.builds(lambda top, below: {**top, "Plans": below}, raw_nodes, st.lists(inner, max_size=3)),
    max_leaves=8,
)


@given(trees, st.fixed_dictionaries({}, optional={"Execution Time": numbers, "Settings": json_values}))
@settings(max_examples=200, deadline=None)
def test_no_rule_raises_for_a_plan_that_could_be_read(tree: dict[str, Any], document: dict[str, Any]) -> None:
    try:
        plan = read_plan({"Plan": tree, **document})
    except PlanError:
        return
    for rule in RULES:
        for finding in rule(FindingContext(plan)):
            assert finding.text.endswith(".") and finding.advice.endswith(".")


def test_what_takes_no_time_worth_a_change_is_silent(db: Database) -> None:
    captured = db.explained("SELECT * FROM visits WHERE email = 'x'")
    assert findings(captured.plan, captured.facts, ANY_TIME)
    assert not findings(captured.plan, captured.facts, FindingLimits(worth_ms=60_000.0))
    assert not findings(captured.plan, captured.facts, FindingLimits(worth_share=1.1))


def without_verbose(*above: dict[str, Any]) -> str:
    """The SQL that is advised for a plan of one table as most files hold it: without VERBOSE, so without qualifiers."""
    times = {"Actual Loops": 1, "Actual Startup Time": 1.0, "Startup Cost": 0.0, "Plan Width": 8, "Plan Rows": 3}
    scan = {"Node Type": "Seq Scan", "Relation Name": "orders", "Alias": "orders", "Filter": "(customer = 7)"}
    tree = times | scan | {"Actual Rows": 3, "Actual Total Time": 90.0, "Rows Removed by Filter": 500_000}
    tree["Total Cost"] = 9000.0
    for node in reversed(above):
        tree = times | {"Actual Rows": 3, "Actual Total Time": 91.0, "Total Cost": 9001.0} | node | {"Plans": [tree]}
    return next(f.sql for f in findings(read_plan({"Plan": tree})) if f.rule == "sequential-scan")


def test_the_order_of_a_limit_is_read_without_qualifiers_and_only_from_the_sort_next_to_the_scan() -> None:
    newest = {"Node Type": "Sort", "Sort Key": ["placed_at DESC"]}
    assert without_verbose({"Node Type": "Limit"}, newest) == "CREATE INDEX ON orders (customer, placed_at)"
    other, own = ({"Node Type": "Sort", "Sort Key": [key]} for key in "ba")
    window = {"Node Type": "WindowAgg"}
    assert without_verbose({"Node Type": "Limit"}, other, window, own) == "CREATE INDEX ON orders (customer)"
