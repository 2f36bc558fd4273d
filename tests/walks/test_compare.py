"""`perfkit compare`: a query of the user's before and after, in one line; the database is one that others started."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import perfkit
from perfkit.analysis.report import Run
from perfkit.base.errors import PerfkitError, PlanError, ServerError, TargetRefused, UsageError
from perfkit.explain import comparison
from perfkit.postgres import databases, embedded
from perfkit.runs.selection import Selection

pytestmark = pytest.mark.slow  # the module takes more than a minute

DATABASE = "pk_compare"
BY_CUSTOMER = "SELECT id, note FROM orders WHERE customer = %(customer)s AND note LIKE 'n%%' ORDER BY id"
BY_NOTE = "SELECT count(*) FROM orders WHERE note LIKE 'n12%'"
INDEX = "CREATE INDEX ON orders (customer)"


@pytest.fixture(scope="module")
def shop(server: embedded.EmbeddedServer) -> Iterator[embedded.EmbeddedServer]:
    """The user's server with a database of orders."""
    databases.create(server, DATABASE)
    with server.connect(DATABASE) as connection:
        connection.execute(
            "CREATE TABLE orders AS SELECT n AS id, n % 200 AS customer, nullif('n' || n % 50, 'n7') AS note "
            "FROM generate_series(1, 20000) n"
        )
        connection.execute("ANALYZE orders")
    yield server
    databases.drop(server, DATABASE)


@pytest.fixture
def given(
    shop: embedded.EmbeddedServer, tmp_path: Path, server_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """What every comparison here has; nothing that it started is left at the end."""
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    before = set(psutil.Process().children(recursive=True))
    name = f"{shop.socket_dir}:5432/{DATABASE}"
    db = f"host={shop.socket_dir} port=5432 dbname={DATABASE} user=perfkit"
    yield {"db": db, "reports": tmp_path / "reports", "confirm": [name]}
    assert set(psutil.Process().children(recursive=True)) <= before
    with shop.connect(DATABASE) as connection:  # nothing was made in the database, and nobody is left in it
        assert (
            len(connection.execute("SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall()) == 1
        )
        others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert connection.execute(others).fetchall() == []


@pytest.fixture
def compare(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`perfkit.compare` with one block: enough to see what is sent where."""
    monkeypatch.setattr(Selection, "blocks", property(lambda _: 1))

    def compare(query: Any, **options: Any) -> Run:
        found: Run = perfkit.compare(query=query, **{**given, "users": 2, **options})
        outcomes = {outcome for round_ in found.rounds for outcome in round_.columns.outcome}
        assert outcomes == {"ok"}
        return found

    return compare


def answers(run: Run, arm: str) -> set[str]:
    return {detail for round_ in run.rounds if round_.arm == arm for detail in round_.columns.detail}


def left_in(reports: Path) -> list[Path]:
    return list(reports.iterdir()) if reports.exists() else []


def command(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "perfkit", *map(str, args)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


# One line


def test_one_line_gives_a_report_and_a_folder_that_measures_it_again(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "by customer.sql").write_text(f"\ufeff-- What did they order?\n{BY_CUSTOMER};\n")
    (tmp_path / "indexes.sql").write_text(f"{INDEX}; -- not the last one\n-- nor this")
    (tmp_path / "values.csv").write_text("customer\n7\n8\n")
    done = command(
        "compare", "--db", given["db"], "--confirm", given["confirm"][0], "--reports", given["reports"],
        "--query", tmp_path / "by customer.sql", "--query", "SELECT count(*) FROM orders",
        "--index", tmp_path / "indexes.sql", "--index", "CREATE INDEX by_note ON orders (note); ANALYZE orders",
        "--parameters", tmp_path / "values.csv", "--set", "work_mem=8MB", "--users", 1,
    )  # fmt: skip
    decision, page = done.stdout.splitlines()
    (folder,) = given["reports"].iterdir()
    assert decision.split(":")[0] in ("GO", "NO-GO", "NO BENEFIT", "INCONCLUSIVE")
    assert page == f"{folder}/report.html" and Path(page).stat().st_size > 20_000
    run = json.loads((folder / "run.json").read_text())
    assert (run["status"], run["title"], len(run["blocks"])) == ("complete", "by customer before and after", 6)
    after = run["arms"]["after"]
    assert [index["name"] for index in after["indexes"]][1:] == ["by_note"] and len(after["indexes"]) == 2
    assert after["title"] == "with 2 index sets, with work_mem = 8MB" and after["settings"] == {"work_mem": "8MB"}
    assert list(run["queries"]) == ["query-1", "query-2"]
    assert "Seq Scan" in (folder / "plans/before/query-1.json").read_text()
    assert "perfkit_" in (folder / "plans/after/query-1.json").read_text()
    assert given["confirm"][0] in (folder / "audit.jsonl").read_text()

    monkeypatch.setattr(Selection, "blocks", property(lambda _: 1))
    config = folder / "perfkit.toml"
    same = perfkit.run("quick", config=config, confirm=given["confirm"], reports=tmp_path / "again").bundle.run
    assert same.as_json["queries"] == run["queries"] and same.status == "complete"
    assert definitions(same.as_json) == definitions(run)


def definitions(run: dict[str, Any]) -> list[str]:
    return [index["definition"] for index in run["arms"]["after"]["indexes"]]


# The decision


def gated(given: dict[str, Any], *options: object, code: int) -> dict[str, Any]:
    """A command that ends with this exit code; its verdict.json."""
    where = ("--db", given["db"], "--confirm", given["confirm"][0], "--reports", given["reports"])
    done = command("compare", *where, *options, "--gate", code=code)
    (folder,) = given["reports"].iterdir()
    verdict: dict[str, Any] = json.loads((folder / "verdict.json").read_text())
    assert done.stdout.startswith(f"{verdict['decision']}: ") and verdict["arms"] == {"after": verdict["decision"]}
    assert verdict["decision"] in (folder / "report.html").read_text()
    assert verdict["decision"] in (folder / "summary.md").read_text()
    return verdict


SLOW = "SELECT count(*) FROM orders WHERE id % 7 = 3"  # about as long in every arm


def test_an_index_that_no_plan_uses_is_no_benefit_and_exits_96(given: dict[str, Any]) -> None:
    index = "CREATE INDEX by_note ON orders (note)"
    verdict = gated(given, "--query", SLOW, "--index", index, "--users", 1, code=96)
    assert verdict["decision"] == "NO BENEFIT"
    (reason,) = verdict["reasons"]
    said = ("after: no plan of this workload uses the index by_note. Other workloads may.", "no gain above 10 %")
    assert any(text in reason for text in said)


def test_an_index_that_its_query_uses_is_a_go_and_exits_0(given: dict[str, Any]) -> None:
    query = "SELECT note FROM orders WHERE id = 777"
    verdict = gated(given, "--query", query, "--index", "CREATE INDEX ON orders (id)", "--users", 1, code=0)
    (benefit,) = [rule for rule in verdict["rules"] if rule["name"] == "benefit"]
    assert (verdict["decision"], benefit["outcome"]) == ("GO", "holds")


def test_one_connection_that_somebody_ends_is_inconclusive_and_named(
    given: dict[str, Any], shop: embedded.EmbeddedServer
) -> None:
    ended, stop = [], threading.Event()

    def end_one() -> None:
        """End one connection, once, while it runs the rewritten query in a round that is not the first."""
        one = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() "
            "AND query LIKE 'SELECT count(*)%7 = 3 AND true%' LIMIT 1"
        )
        with shop.connect(DATABASE) as connection:
            connection.autocommit = True
            while not ended and not stop.wait(0.001):
                if any(given["reports"].glob("*/rounds/*.json")):
                    ended.extend(connection.execute(one).fetchall())

    helper = threading.Thread(target=end_one)
    helper.start()
    try:
        run = perfkit.compare(query=SLOW, rewrite=f"{SLOW} AND true", way="in-place", need="none", users=1, **given)
    finally:
        stop.set()
        helper.join()
    assert ended
    assert run.analysis.decision.outcome.decision == "INCONCLUSIVE"
    (rule,) = [rule for rule in run.analysis.decision.rules if (rule.arm, rule.name) == ("after", "error rate")]
    assert rule.outcome == "unproven" and "1 of 126 requests failed" in rule.text
    assert "terminating connection due to administrator command" in rule.text


# From Python


def test_it_is_one_call_in_a_notebook(compare: Any, tmp_path: Path) -> None:
    run = compare(BY_CUSTOMER, parameters="SELECT DISTINCT customer FROM orders LIMIT :rows", index=INDEX)
    assert (run.bundle.run.parameters.profile, run.bundle.path.parent) == ("quick", tmp_path / "reports")
    assert {scenario.users for scenario in run.bundle.run.scenarios} == {1, 2}
    assert "before and after" in repr(run)
    assert (
        answers(run, "before")
        == answers(run, "after")
        == {"100 rows", "98 rows", "50 rows", "0 rows"} & (answers(run, "before"))
    )
    assert run.bundle.run.origin.way.startswith("a private copy")


def test_importing_perfkit_imports_little_else() -> None:
    heavy = {"numpy", "pandas", "pydantic", "psycopg", "click"}
    script = f"import sys, perfkit; print({heavy} & {{m.split('.')[0] for m in sys.modules}}, perfkit.compare.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set() compare\n"


def test_settings_need_no_text_and_reach_every_session_of_their_arm(compare: Any) -> None:
    query = "SELECT 1 / (current_setting('work_mem') = '3MB')::int"
    with pytest.raises(PlanError, match="division by zero"):
        compare(query, settings={"max_parallel_workers_per_gather": 0})
    run = compare(
        "SELECT 1 FROM generate_series(1, CASE current_setting('statement_mem', true) WHEN '' THEN 1 ELSE"
        " current_setting('join_collapse_limit')::int END)",
        settings={"join_collapse_limit": 3},
    )
    assert (answers(run, "before"), answers(run, "control"), answers(run, "after")) == (
        {"8 rows"}, {"8 rows"}, {"3 rows"},
    )  # fmt: skip


@pytest.mark.parametrize("query", [BY_NOTE, BY_CUSTOMER.replace("%(customer)s", "'3'").replace("%%", "%")])
def test_a_percent_sign_needs_no_care_where_there_are_no_parameters(compare: Any, query: str) -> None:
    assert answers(compare(query, users=1, index=INDEX), "before") <= {"1 rows", "100 rows"}


# Rewrites


@pytest.mark.parametrize(
    "rewrite",
    [
        "SELECT o.id, o.note FROM orders o JOIN (SELECT %(customer)s::int AS c) x ON x.c = o.customer "
        "WHERE note ~ '^n'",
        "SELECT id::bigint AS number, note AS text FROM orders WHERE customer = %(customer)s AND note IS NOT NULL "
        "ORDER BY id DESC",
    ],
    ids=["other words", "other order, names and widths"],
)
def test_a_rewrite_with_the_same_rows_is_compared(compare: Any, tmp_path: Path, rewrite: str) -> None:
    (tmp_path / "values.sql").write_text("SELECT n AS customer FROM generate_series(0, 20) n LIMIT :rows")
    run = compare(BY_CUSTOMER, rewrite=rewrite, parameters=tmp_path / "values.sql", users=1)
    (check,) = run.bundle.run.checks["after"]
    assert (check.passed, check.got) == (True, "the same for 15 of 15 parameter sets")
    assert run.analysis.decision.outcome.decision != "NO-GO"


def test_a_rewrite_with_other_rows_is_a_no_go_that_says_so_before_any_time(compare: Any) -> None:
    run = compare(BY_NOTE, rewrite="SELECT count(note) + 1 FROM orders WHERE note = 'n12'", users=1)
    (check,) = run.bundle.run.checks["after"]
    assert check.got.startswith("parameter set 1: other values in 1 rows")
    assert run.analysis.decision.outcome.decision == "NO-GO"
    first = run.analysis.decision.reasons[0]
    assert "Rows of query" in first and " ms" not in first


SAME = [
    ("VALUES (1), (2), (2)", "VALUES (2), (1), (2)"),
    ("SELECT 1::int AS a", "SELECT 1::bigint AS b"),
    ("SELECT NULL::text, ''", "SELECT NULL::int, ''::varchar"),
    ("SELECT 1 WHERE false", "SELECT 'x' WHERE false"),
    ("SELECT 1 AS id, 2 AS id", "SELECT 1, 2 -- and so on;"),
]
DIFFERENT = [
    ("VALUES (1), (2)", "VALUES (1), (2), (2)", "3 rows instead of 2 rows"),
    ("VALUES (1), (1), (2)", "VALUES (1), (2), (2)", "other values in 3 rows"),
    ("SELECT NULL::text", "SELECT ''", "other values in 1 rows"),
    ("SELECT 1", "SELECT 1.00", "other values in 1 rows"),
    ("SELECT 'a', 'b,c'", "SELECT 'a,b', 'c'", "other values in 1 rows"),
    ("SELECT 1 AS q, 2 AS x", "SELECT 1 AS q, 3 AS x", "other values in 1 rows"),
    ("SELECT 1 AS a, 2 AS b", "SELECT 2 AS b, 1 AS a", "other values in 1 rows"),
    ("SELECT 1", "SELECT 1 WHERE false", "0 rows instead of 1 rows"),
]


def compared(shop: embedded.EmbeddedServer, before: str, after: str, rows: Any = (None,)) -> comparison.RowSets:
    return comparison.compare(lambda: shop.connect(DATABASE), before, after, rows, timeout_s=5)


@pytest.mark.parametrize(("before", "after"), SAME)
def test_rows_are_the_same_in_any_order_and_under_any_names(
    shop: embedded.EmbeddedServer, before: str, after: str
) -> None:
    assert compared(shop, before, after) == comparison.RowSets(1, 1, "")


@pytest.mark.parametrize(("before", "after", "said"), DIFFERENT)
def test_duplicates_nulls_and_every_value_count(
    shop: embedded.EmbeddedServer, before: str, after: str, said: str
) -> None:
    found = compared(shop, before, after)
    assert (found.equal, found.first_difference) == (0, f"parameter set 1: {said}; 0 of 1 sets agree so far")


def test_the_first_parameter_set_that_differs_is_named(shop: embedded.EmbeddedServer) -> None:
    rows = [{"n": 1}, {"n": 2}, {"n": 1.5}, {"n": 3}]
    found = compared(shop, "SELECT %(n)s", "SELECT CASE %(n)s WHEN 1.5 THEN 0 ELSE %(n)s END", rows)
    assert (found.compared, found.equal) == (4, 3)
    assert found.first_difference == "parameter set 3: other values in 1 rows; 2 of 4 sets agree so far"


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("SELECT nothing", 'column "nothing" does not exist'),
        ("DELETE FROM orders RETURNING id", "DELETE returns no rows to compare"),
        ("WITH gone AS (DELETE FROM orders RETURNING id) SELECT * FROM gone", "must be at the top level"),
        ("SELECT 1; SELECT 2", "one statement; found 2"),
        ("SELECT pg_sleep(60)", "statement timeout"),
    ],
)
def test_what_cannot_be_compared_is_one_line(shop: embedded.EmbeddedServer, after: str, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        comparison.compare(lambda: shop.connect(DATABASE), "SELECT 1", after, [None], timeout_s=0.2)
    assert "\n" not in str(caught.value)


# What cannot be meant


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no query; expected at least one --query"),
        (["--query", BY_NOTE], "nothing to compare; expected --index, --set or --rewrite"),
        (["--query", BY_NOTE, "--set", "work_mem"], "--set work_mem; expected NAME=VALUE"),
    ],
)
def test_a_command_that_lacks_something_is_one_line(given: dict[str, Any], options: list[str], said: str) -> None:
    done = command(
        "compare",
        "--db",
        given["db"],
        "--confirm",
        given["confirm"][0],
        "--reports",
        given["reports"],
        *options,
        code=2,
    )
    assert (done.stdout, done.stderr) == ("", f"perfkit: {said}\n")
    assert left_in(given["reports"]) == []


WRONG = {
    "no query": ({"query": []}, "no query; expected at least one --query"),
    "nothing to compare": ({"index": ()}, "nothing to compare; expected --index, --set or --rewrite"),
    "a rewrite of two": ({"query": [BY_NOTE, BY_NOTE], "rewrite": BY_NOTE}, "--rewrite with 2 queries; expected one"),
    "a missing file": ({"query": "gone.sql"}, "gone.sql: cannot be read (No such file or directory); expected"),
    "a folder": ({"query": Path("/")}, "/: cannot be read (Is a directory); expected"),
    "no UTF-8": ({"query": "latin.sql"}, "latin.sql: cannot be read (not UTF-8); expected"),
    "a missing source": ({"parameters": "gone.csv"}, "gone.csv: cannot be read (No such file or directory)"),
    "no statement": ({"query": "-- nothing"}, "'-- nothing': EXPLAIN takes one statement; found 0"),
    "two statements": ({"query": "SELECT 1; DROP TABLE orders"}, "EXPLAIN takes one statement; found 2"),
    "no plan": ({"query": "VACUUM"}, "'VACUUM': VACUUM cannot be explained; expected SELECT"),
    "an open quote": ({"query": "SELECT 'a"}, "SQL that cannot be read"),
    "no values": ({"query": BY_CUSTOMER, "parameters": None}, "%(customer)s needs values; expected --parameters"),
    "no index": ({"index": "-- none"}, "'-- none': no statement; expected CREATE INDEX"),
    "no such index file": ({"index": "gone.sql"}, "gone.sql: cannot be read (No such file or directory)"),
    "another statement": ({"index": "DROP TABLE orders"}, "index.sql:1: 'DROP TABLE orders'; expected CREATE INDEX"),
    "a setting without a name": (
        {"settings": {"": "1"}},
        "settings: expected the name of a PostgreSQL setting, not ''",
    ),
    "a setting with a quote": ({"settings": {"a'b": "1"}}, 'expected the name of a PostgreSQL setting, not "a\'b"'),
    "a profile": ({"profile": "fast"}, "profile 'fast' is unknown; expected one of: quick, standard, thorough"),
    "a way": ({"way": "teleport"}, "perfkit.toml: database.way = 'teleport'; expected: "),
    "no users": ({"users": 0}, "users = 0; expected at least 1"),
    "too many users": ({"users": 501}, "perfkit.toml: scenario.1.users = 501; expected: "),
    "no limit": ({"p95_ms": 0}, "perfkit.toml: thresholds.p95_ms = 0; expected: "),
    "a password": ({"db": "host=db password=hunter2 dbname=x"}, "db: expected no password in it: use ~/.pgpass"),
    "a password in a URI": ({"db": "postgresql://me:hunter2@db/x"}, "db: expected no password in it"),
    "no conninfo": ({"db": "staging"}, "db: expected a libpq connection string, postgresql:// URI or service=NAME"),
    "no database": ({"db": "host=/tmp user=perfkit dbname="}, "db names no database; expected dbname=..."),
}


@pytest.mark.parametrize(("options", "said"), WRONG.values(), ids=list(WRONG))
def test_whatever_cannot_be_meant_is_one_line_and_leaves_nothing(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.sql").write_bytes("SELECT 'é'".encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        perfkit.compare(**{"query": BY_NOTE, "index": INDEX, **given, **options})
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value) and str(given["reports"]) not in str(caught.value)
    assert left_in(given["reports"]) == []


def test_what_nobody_confirmed_is_refused_and_leaves_nothing(given: dict[str, Any]) -> None:
    with pytest.raises(TargetRefused, match="was not started by perfkit; to use it: --confirm "):
        perfkit.compare(query=BY_NOTE, index=INDEX, **{**given, "confirm": []})
    assert left_in(given["reports"]) == []


def test_a_server_that_does_not_answer_is_one_line_and_leaves_nothing(given: dict[str, Any], tmp_path: Path) -> None:
    db = f"host={tmp_path} port=5432 dbname=x user=perfkit"
    with pytest.raises(ServerError, match="expected a reachable server") as caught:
        perfkit.compare(query=BY_NOTE, index=INDEX, **{**given, "db": db, "confirm": [f"{tmp_path}:5432/x"]})
    assert "\n" not in str(caught.value)
    assert left_in(given["reports"]) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"query": "SELECT * FROM nowhere"}, 'relation "nowhere" does not exist'),
        ({"settings": {"work_mem": "a lot"}}, "setting work_mem = 'a lot': "),
        ({"settings": {"no_such": "1"}}, "setting no_such = '1': unrecognized configuration parameter"),
        ({"index": "CREATE INDEX ON orders (nothing)"}, 'index.sql:1: column "nothing" does not exist'),
        ({"query": BY_CUSTOMER, "parameters": "SELECT 1 AS id"}, "customer"),
        ({"query": "SELECT %(id)s LIKE 'a%'", "parameters": "SELECT 'a' AS id"}, "%"),
    ],
    ids=["no table", "a wrong value", "no such setting", "no column", "no such parameter", "a single percent sign"],
)
def test_what_only_the_server_can_find_is_one_line_and_keeps_the_record_of_what_was_asked(
    given: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PerfkitError) as caught:
        perfkit.compare(**{"query": BY_NOTE, "index": INDEX, **given, **options})
    assert said in str(caught.value) and "\n" not in str(caught.value)
    (folder,) = given["reports"].iterdir()
    run = json.loads((folder / "run.json").read_text())
    assert (run["status"], said in run["message"]) == ("failed", True)
    audit = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert {entry["target"] for entry in audit if "target" in entry} == set(given["confirm"])


def test_a_folder_that_cannot_be_written_is_one_line(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PerfkitError, match="cannot be created") as caught:
        perfkit.compare(query=BY_NOTE, index=INDEX, **{**given, "reports": tmp_path / "file"})
    assert "\n" not in str(caught.value)


def test_nobody_but_perfkit_is_asked_where_there_is_no_terminal(given: dict[str, Any]) -> None:
    done = command(
        "compare", "--db", given["db"], "--query", BY_NOTE, "--index", INDEX, "--reports", given["reports"], code=97
    )
    assert done.stderr.startswith("perfkit: ") and f"--confirm {given['confirm'][0]}" in done.stderr
