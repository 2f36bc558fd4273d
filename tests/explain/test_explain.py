"""Plans from real servers: captured without changing anything, read as the server's own counters say."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from scripts import run_all

from perfkit.base.errors import PerfkitError, PlanError
from perfkit.explain.capture import ExplainSpec, capture, effects
from perfkit.explain.comparison import in_words, scans, typical_parameters
from perfkit.explain.plan import Plan
from perfkit.postgres import databases
from perfkit.postgres.commands import Extended
from perfkit.postgres.embedded import EmbeddedServer

# Clinic 1 has nearly all visits, so that its parameter gets another plan than the others'.
TABLES = """
CREATE TABLE clinics (id int PRIMARY KEY, name text);
INSERT INTO clinics SELECT n, 'clinic ' || n FROM generate_series(1, 200) n;
CREATE TABLE visits (id int PRIMARY KEY, clinic int, day int, note text);
INSERT INTO visits
SELECT n, CASE WHEN n % 100 < 90 THEN 1 ELSE n % 200 + 1 END, n % 365,
       'note ' || n || CASE n WHEN 7 THEN '' ELSE repeat(' padding', 30) END
FROM generate_series(1, 20000) n;
CREATE INDEX visits_clinic ON visits (clinic);
CREATE INDEX visits_day ON visits (day);
CREATE SEQUENCE tickets;
CREATE FUNCTION note_it() RETURNS int LANGUAGE sql VOLATILE
AS $$ INSERT INTO clinics VALUES (1000, 'noted') RETURNING id $$;
"""
PLAIN = "SELECT * FROM visits WHERE note = 'note 7'"


class Database:
    """A database on a real server, and how often its tables and indexes were scanned."""

    def __init__(self, server: EmbeddedServer, name: str) -> None:
        self.server, self.name = server, name

    def connect(self) -> psycopg.Connection[Any]:
        return self.server.connect(self.name)

    def explain(self, sql: str, parameters: Any = None, **options: Any) -> Plan:
        return capture(self.connect, sql, parameters, ExplainSpec(**options)).plan

    def scanned(self, sql: str) -> tuple[Plan, dict[str, int]]:
        """One execution's plan, and what the server counted for it."""
        before = self.scans()
        plan = self.explain(sql, {}, repeats=1)
        after = self.scans()
        return plan, {name: n - before[name] for name, n in after.items() if n != before[name]}

    def scans(self) -> dict[str, int]:
        return databases.scans(self.server, self.name, terminate=True)

    def ask(self, sql: str) -> Any:
        with databases.connected(self.server, self.name) as connection:
            return next(iter((run_all(connection, sql.encode()).fetchone() or {}).values()))


@pytest.fixture(scope="module", params=["server", "server16"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    server: EmbeddedServer = request.getfixturevalue(request.param)
    path: Path = tmp_path_factory.mktemp("explain") / "tables.sql"
    path.write_text(TABLES)
    databases.create(server, "explain_test")
    databases.prepare(server, "explain_test", [path], {})
    databases.freeze(server, "explain_test")
    yield Database(server, "explain_test")
    databases.drop(server, "explain_test")


def refused(database: Database, sql: str, **options: Any) -> str:
    with pytest.raises(PerfkitError) as caught:
        database.explain(sql, {}, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# capturing


def test_a_plan_is_the_servers_own_json_of_a_real_execution(database: Database) -> None:
    (plan,) = capture(database.connect, PLAIN).documents[-1]
    assert plan == json.loads(json.dumps(plan))
    assert plan["Plan"]["Actual Loops"] == 1
    assert plan["Plan"]["Rows Removed by Filter"] == 19_999
    assert {"Planning Time", "Execution Time", "Settings"} <= plan.keys()


def test_every_execution_is_kept_as_many_as_were_asked_for_the_first_with_the_caches_as_they_were(
    database: Database,
) -> None:
    before = database.scans()["seq:visits"]
    found = capture(database.connect, PLAIN, options=ExplainSpec(repeats=3))
    assert database.scans()["seq:visits"] == before + 3
    assert len(found.documents) == 3
    times = [document[0]["Execution Time"] for document in found.documents]
    assert (found.first.execution_ms, found.plan.execution_ms) == (times[0], times[-1])


def test_parameters_are_bound_not_pasted(database: Database) -> None:
    note = "'; DROP TABLE visits; --"
    sql = "SELECT id FROM visits WHERE note = %(note)s AND id > %(low)s;"
    assert database.explain(sql, {"note": note, "low": 0}).rows == 0
    assert database.explain(sql, {"note": "note 7", "low": 0, "spare": 1}).rows == 1


@pytest.mark.parametrize(
    ("sql", "count"),
    [("", 0), ("-- nothing", 0), (" ; ", 0), ("SELECT 1;COMMIT;", 2)],
)
def test_only_one_statement_is_taken(database: Database, sql: str, count: int) -> None:
    assert refused(database, sql) == f"EXPLAIN takes one statement; found {count}"


def test_a_semicolon_in_a_string_or_comment_is_no_second_statement(database: Database) -> None:
    assert database.explain("SELECT ';', $$;$$ -- ; SELECT 2\n /* ; */ ;", {}).rows == 1


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("WITH gone AS (DELETE FROM visits RETURNING id) SELECT count(*) FROM gone", "SELECT"),
        ("INSERT INTO clinics VALUES (1000, 'new')", "INSERT"),
        ("SELECT note_it()", "INSERT"),
        ("SELECT nextval('tickets')", "nextval()"),
        ("SELECT * FROM clinics FOR UPDATE", "SELECT FOR UPDATE"),
    ],
)
def test_whatever_writes_is_refused_and_changes_nothing(database: Database, sql: str, what: str) -> None:
    state = "SELECT (SELECT count(*) FROM visits) || ' ' || (SELECT count(*) FROM clinics)"
    before = database.ask(state)
    assert refused(database, sql) == f"EXPLAIN failed: cannot execute {what} in a read-only transaction"
    assert database.ask(state) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT set_config('transaction_read_only', 'off', true)",
        "DROP TABLE visits",
        "CREATE TABLE copy AS SELECT 1",
    ],
)
def test_there_is_no_way_around_it(database: Database, sql: str) -> None:
    assert refused(database, sql)
    assert database.ask("SELECT count(*) FROM visits") == 20_000
    assert database.ask("SELECT to_regclass('copy')") is None


@pytest.mark.parametrize("timeout_s", [0.05, 0.0001])
def test_a_statement_that_takes_too_long_is_cancelled(database: Database, timeout_s: float) -> None:
    assert refused(database, "SELECT pg_sleep(30)", timeout_s=timeout_s) == (
        "EXPLAIN failed: canceling statement due to statement timeout"
    )


def test_a_lock_is_not_waited_for_longer_than_that(database: Database) -> None:
    with databases.connected(database.server, database.name) as connection, connection.transaction():
        connection.execute("LOCK TABLE visits")
        assert refused(database, PLAIN, timeout_s=0.05).startswith("EXPLAIN failed: canceling statement due to")


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FROM nothing", 'EXPLAIN failed: relation "nothing" does not exist'),
        ("SELECT 1 FROM", "EXPLAIN failed: syntax error at end of input"),
        ("SELEC 1", "SELEC cannot be explained; expected SELECT, INSERT, UPDATE, DELETE or MERGE"),
        ("SELECT %(absent)s", "EXPLAIN failed: query parameter missing: absent"),
        ("SELECT 'open", """line 1: "'open": SQL that cannot be read"""),
        ("COMMIT", "COMMIT cannot be explained"),
        ("CALL p()", "CALL cannot be explained"),
        ("DO $$BEGIN END$$", "DO cannot be explained"),
        ("COPY clinics TO PROGRAM 'true'", "COPY cannot be explained"),
    ],
)
def test_what_fails_is_one_line_in_the_servers_words(database: Database, sql: str, said: str) -> None:
    assert refused(database, sql).startswith(said)


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(PlanError, match=r"^EXPLAIN failed: .+$"):
        capture(lambda: psycopg.connect("host=/nonexistent"), "SELECT 1")


def test_typical_parameters_are_the_first_whose_plan_most_rows_get(database: Database) -> None:
    sql = "SELECT note FROM visits WHERE clinic = %(clinic)s"
    many, few = [{"clinic": 1}], [{"clinic": n} for n in range(95, 100)]
    counted = database.scans()
    assert typical_parameters(database.connect, sql, many + few) == few[0]
    assert typical_parameters(database.connect, sql, few[:2] + many * 3) == many[0]
    assert database.scans() == counted  # planned, never executed
    plans = {in_words(database.explain(sql, row)) for row in (many[0], few[0])}
    assert plans == {"Seq Scan on visits", "Index Scan using visits_clinic on visits"}


# how

POSITIONAL = "SELECT id FROM visits WHERE clinic = {} AND day < {}"


def test_parameters_may_be_numbered_or_in_order(database: Database) -> None:
    expected = database.explain("SELECT id FROM visits WHERE clinic = 95 AND day < 100").rows
    assert expected > 0
    assert database.explain(POSITIONAL.format("$1", "$2"), [95, 100]).rows == expected
    assert database.explain(POSITIONAL.format("%s", "%s"), [95, 100]).rows == expected


def test_whatever_is_sent_goes_through_the_connections_own_kind_of_cursor(database: Database) -> None:
    sent: list[str] = []

    class Audited(Extended[Any]):
        def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            sent.append(query.decode() if isinstance(query, bytes) else str(query))
            return super().execute(query, *args, **options)

    def connect() -> psycopg.Connection[Any]:
        connection = database.connect()
        connection.cursor_factory = Audited
        return connection

    for marks, values in ((("$1", "$2"), [95, 100]), (("%s", "%s"), [95, 100]), (("95", "100"), None)):
        capture(connect, POSITIONAL.format(*marks), values)
        effects(connect, POSITIONAL.format(*marks), values)
    assert sum(text.startswith("EXPLAIN (ANALYZE") for text in sent) == 6
    assert sum(text.startswith("EXPLAIN (VERBOSE") for text in sent) == 3


@pytest.mark.parametrize("sql", [POSITIONAL.format("$1", "$2"), POSITIONAL.format("%(clinic)s", "%(day)s")])
def test_a_generic_plan_needs_no_values_and_executes_nothing(database: Database, sql: str) -> None:
    before = database.scans()
    plan = database.explain(sql, analyze=False, generic=True)
    assert not plan.analyzed
    assert "$1" in str(plan.document)
    assert database.scans() == before


def test_without_analyze_nothing_is_executed(database: Database) -> None:
    before = database.scans()
    assert not database.explain(PLAIN, analyze=False).analyzed
    assert not database.explain("DELETE FROM visits", analyze=False).analyzed
    assert database.scans() == before


def test_a_statement_that_may_write_is_executed_and_leaves_nothing(database: Database) -> None:
    plan = database.explain("UPDATE visits SET day = 1 WHERE id < 100", writes=True, repeats=1)
    assert plan.root.name == "Update"
    assert plan.root.value("WAL Records") > 0
    assert database.ask("SELECT count(*) FROM visits WHERE day = 1 AND id < 100") == 1


@pytest.mark.parametrize(
    "sql",
    [
        "WITH gone AS (DELETE FROM visits RETURNING id) SELECT count(*) FROM gone",
        "SELECT note_it()",
        "SELECT * FROM clinics WHERE id = 1 FOR UPDATE",
    ],
)
def test_a_select_is_read_only_until_the_server_says_that_it_writes_and_it_may(database: Database, sql: str) -> None:
    opened: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        opened.append(database.connect())
        return opened[-1]

    capture(connect, PLAIN, None, ExplainSpec(writes=True))
    assert [connection.read_only for connection in opened] == [
        True,
        True,
        True,
    ]  # the last for the facts about its tables
    opened.clear()
    capture(connect, sql, None, ExplainSpec(writes=True))
    assert [connection.read_only for connection in opened] == [True, False, False, True]
    assert database.ask("SELECT count(*) FROM visits") == 20_000
    assert database.ask("SELECT count(*) FROM clinics") == 200


def test_options_are_those_that_the_version_has(database: Database) -> None:
    plan = database.explain(PLAIN, serialize=True, timing=False)
    assert not plan.timed and plan.analyzed
    assert plan.root.schema == "public"
    assert ("Serialization" in plan.document) == (database.server.version >= 17)
    assert ("Memory Used" in plan.document.get("Planning", {})) == (database.server.version >= 17)


def test_the_catalogues_facts_come_with_a_plan(database: Database) -> None:
    facts = capture(database.connect, "SELECT * FROM visits v JOIN clinics c ON c.id = v.clinic").facts
    assert {table.name for table in facts.tables} == {"visits", "clinics"}
    visits = facts.named("visits", "public")
    assert visits and visits.rows == 20_000 and visits.analyzed
    assert [index.keys for index in visits.indexes] == [("clinic",), ("day",), ("id",)]
    day = visits.column("day")
    assert day and (day.type, day.distinct) == ("integer", 365)


# reading


@pytest.mark.parametrize(
    ("sql", "said", "counters"),
    [
        (PLAIN, "Seq Scan on visits", {"seq:visits": 1}),
        ("SELECT * FROM visits WHERE id = 7", "Index Scan using visits_pkey on visits", {"visits_pkey": 1}),
        (
            "SELECT id FROM visits WHERE id = 7",
            "Index Only Scan using visits_pkey on visits",
            {"visits_pkey": 1},
        ),
        (
            "SELECT * FROM visits WHERE day = 9",
            "Bitmap Index Scan using visits_day on visits",
            {"visits_day": 1},
        ),
        (
            "SELECT * FROM visits WHERE clinic = 95 OR day = 9",
            "Bitmap Index Scan using visits_clinic on visits, Bitmap Index Scan using visits_day on visits",
            {"visits_clinic": 1, "visits_day": 1},
        ),
        (
            "SELECT * FROM visits WHERE clinic BETWEEN 90 AND 120 AND day BETWEEN 5 AND 15",
            "Bitmap Index Scan using visits_day on visits, Bitmap Index Scan using visits_clinic on visits",
            {"visits_clinic": 1, "visits_day": 1},
        ),
        (
            "SELECT (SELECT count(*) FROM clinics), (SELECT max(id) FROM visits)",
            "Seq Scan on clinics, Index Only Scan using visits_pkey on visits",
            {"seq:clinics": 1, "visits_pkey": 1},
        ),
        ("SELECT 1", "no table read", {}),
        ("SELECT * FROM visits WHERE false", "no table read", {}),
    ],
)
def test_the_scans_of_a_plan_are_those_the_server_counts(
    database: Database, sql: str, said: str, counters: dict[str, int]
) -> None:
    plan, counted = database.scanned(sql)
    assert sorted(in_words(plan).split(", ")) == sorted(said.split(", "))
    assert Counter(scan.counter for scan in scans(plan)) == counters
    # The planner may look up the ends of an index, which the server counts too.
    assert {name: min(n, counters.get(name, 0)) for name, n in counted.items()} == counters


def test_a_scan_that_was_planned_and_never_executed_is_left_out(database: Database) -> None:
    sql = """
        SELECT * FROM (SELECT clinic FROM visits WHERE id = -1) v
        JOIN LATERAL (SELECT * FROM clinics WHERE id = v.clinic OFFSET 0) c ON true
    """
    plan, counted = database.scanned(sql)
    assert {"visits", "clinics"} == {node.table for node in plan.nodes} - {""}
    assert in_words(plan) == "Index Scan using visits_pkey on visits"
    assert counted == {"visits_pkey": 1}


def test_buffers_are_those_of_the_whole_tree_and_rows_those_of_its_root(database: Database) -> None:
    pages = database.ask("SELECT pg_relation_size('visits') / 8192")
    found = database.explain("SELECT count(*) FROM visits WHERE note > ''")
    assert (found.buffers, found.rows) == (pages, 1)
    assert found.execution_ms > 0
    assert 0 < database.explain("SELECT * FROM visits WHERE id = 7").buffers < 10
