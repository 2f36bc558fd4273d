"""`perfkit explain`: plans of statements and from files, and what changed, as text, HTML and JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import perfkit, refusal
from scripts import run_all

from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

TABLES = """
CREATE TABLE visits AS SELECT n AS id, n % 300 AS clinic, repeat('x', 60) AS note FROM generate_series(1, 300000) n;
CREATE FUNCTION touch() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
ANALYZE;
"""
SLOW = "SELECT * FROM visits WHERE id = %(id)s"


class Mine:
    """A database that perfkit did not make, as far as the command knows."""

    def __init__(self, server: EmbeddedServer, name: str) -> None:
        self.server, self.name = server, name
        self.where = f"{server.socket_dir}:{server.port}/{name}"
        self.options = ("--db", server.conninfo(name), "--confirm", self.where)

    def explain(self, *args: str | Path) -> str:
        done = perfkit("explain", *args, *self.options)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    def do(self, sql: str) -> list[object]:
        with databases.connected(self.server, self.name) as connection:
            cursor = run_all(connection, sql.encode())
            return [next(iter(row.values())) for row in cursor] if cursor.description else []


@pytest.fixture(scope="module")
def mine(server: EmbeddedServer) -> Iterator[Mine]:
    databases.create(server, "explained")
    found = Mine(server, "explained")
    found.do(TABLES)
    yield found
    databases.drop(server, "explained")


@pytest.fixture
def plan(mine: Mine, tmp_path: Path) -> Path:
    """A file with EXPLAIN's JSON, as psql -XAt prints it."""
    with databases.connected(mine.server, mine.name) as connection:
        row = connection.execute("EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM visits WHERE id = 7").fetchone()
    assert row
    path = tmp_path / "before.json"
    path.write_text(json.dumps(row["QUERY PLAN"]))
    return path


def test_a_statement_of_a_database_is_planned_and_not_executed_unless_asked(mine: Mine) -> None:
    assert "Seq Scan on visits" in mine.explain(SLOW, "--param", "id=7")
    assert "estimated" in mine.explain(SLOW, "--param", "id=7")
    assert "measured once" in mine.explain(SLOW, "--param", "id=7", "--analyze")


def test_what_is_wrong_is_said_with_the_statement_that_cures_it(mine: Mine) -> None:
    shown = mine.explain(SLOW, "--param", "id=7", "--analyze")
    assert "CREATE INDEX ON visits (id)" in shown


def test_a_statement_may_come_from_a_file_or_standard_input(mine: Mine, tmp_path: Path) -> None:
    file = tmp_path / "slow.sql"
    file.write_text(f"-- what is slow\n{SLOW};\n")
    assert "Seq Scan on visits" in mine.explain(file, "--param", "id=7")
    done = subprocess.run(
        [sys.executable, "-m", "perfkit", "explain", "-", *mine.options, "--param", "id=7"],
        input=file.read_text(),
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert "Seq Scan on visits" in done.stdout, done.stderr


def test_a_statement_from_pg_stat_statements_needs_no_values(mine: Mine) -> None:
    assert "$1" in mine.explain("SELECT * FROM visits WHERE clinic = $1", "--generic", "--format", "json")
    assert "Seq Scan" in mine.explain("SELECT * FROM visits WHERE clinic = $1", "--param", "7")


def test_a_program_gets_the_document_the_fingerprint_and_the_findings(mine: Mine) -> None:
    (told,) = json.loads(mine.explain(SLOW, "--param", "id=7", "--analyze", "--format", "json"))
    assert told["explain"][-1][0]["Plan"]["Node Type"] == "Seq Scan"
    assert len(told["explain"]) == 2 and len(told["fingerprint"]) == 16
    (found,) = [finding for finding in told["findings"] if finding["rule"] == "sequential-scan"]
    assert (found["node"], found["sql"]) == (1, "CREATE INDEX ON visits (id)")


def test_a_page_is_whole_and_asks_for_nothing(mine: Mine, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    assert mine.explain(SLOW, "--param", "id=7", "--analyze", "--format", "html", "--output", page) == ""
    html = page.read_text()
    assert html.startswith("<!doctype html>") and html.rstrip().endswith("</html>")
    assert "Content-Security-Policy" in html and "<script" not in html and "Seq Scan on visits" in html


def test_a_plan_from_a_file_needs_no_server(plan: Path) -> None:
    done = perfkit("explain", plan)
    assert done.exit_code == 0, done.stderr
    assert "Seq Scan on visits" in done.stdout and "measured once" in done.stdout


def test_what_changed_between_two_files(mine: Mine, plan: Path, tmp_path: Path) -> None:
    after = tmp_path / "after.json"
    mine.do("CREATE INDEX visits_id ON visits (id)")
    try:
        with databases.connected(mine.server, mine.name) as connection:
            row = connection.execute("EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM visits WHERE id = 7").fetchone()
    finally:
        mine.do("DROP INDEX visits_id")
    assert row
    after.write_text(json.dumps(row["QUERY PLAN"]))
    said = "Seq Scan on visits -> Index Scan using visits_id"
    assert said in perfkit("explain", "--diff", plan, after).stdout
    told = json.loads(perfkit("explain", "--diff", plan, after, "--format", "json").stdout)
    assert told["sentence"].startswith(said) and not told["same"]
    assert "visits_id" in perfkit("explain", "--diff", plan, after, "--format", "html").stdout


@pytest.mark.slow
def test_without_a_database_it_is_the_booking_systems_data(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    query = Path("sql/queries/upcoming_for_contact.sql")
    before = perfkit("explain", query, "--scale", "seed", "--generic")
    assert "Seq Scan on appointments" in before.stdout, before.stderr
    after = perfkit("explain", query, "--scale", "seed", "--generic", "--arm", "after-index")
    assert "idx_appointments" in after.stdout, after.stderr


# what is refused


def test_a_target_that_nobody_confirmed_is_left_alone(mine: Mine) -> None:
    said = refusal(97, "explain", SLOW, "--db", mine.server.conninfo(mine.name))
    assert f"--confirm {mine.where}" in said


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DELETE FROM visits", "a statement writes; the owner can allow this with: perfkit allow"),
        ("SELECT touch()", "a statement calls volatile public.touch"),
        ("SELECT * FROM visits FOR UPDATE", "a statement locks rows"),
    ],
)
def test_executing_what_could_change_something_is_refused(mine: Mine, sql: str, said: str) -> None:
    assert said in refusal(97, "explain", sql, "--analyze", *mine.options)
    assert mine.do("SELECT count(*) FROM visits") == [300_000]
    mine.explain(sql)  # planning it is not


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "Missing argument 'SQL|FILE|-...'"),
        (["nowhere.sql"], 2, "nowhere.sql: cannot be read (No such file or directory); expected SQL"),
        (["nowhere.json"], 2, "nowhere.json: cannot be read"),
        (["COPY visits TO STDOUT"], 1, "no plan in it; expected EXPLAIN (FORMAT JSON) output"),
        (["{}"], 1, "no plan in it"),
        (['[{"Plan": {'], 1, "not JSON"),
        (["--diff", "{}"], 2, "--diff: 1 given; expected two"),
        (["SELECT $1", "--analyze", "--generic"], 2, "generic with analyze: a plan for any values cannot be executed"),
        (["SELECT 1", "--repeats", "0"], 2, "repeats = 0, timeout = 60; expected more than 0"),
        (["SELECT 1", "--param", "a=1", "--param", "2"], 2, "--param a=1 2; expected NAME=VALUE for all"),
        (["SELECT 1", "--arm", "nobody"], 2, "arm 'nobody' is unknown; expected one of: before"),
        (["Seq Scan on t  (cost=0.00..1.00 rows=1 width=4)"], 1, "a plan in text format; expected EXPLAIN"),
    ],
)
def test_wrong_input_is_one_line(args: list[str], code: int, said: str) -> None:
    assert said in refusal(code, "explain", *args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["SELECT * FROM nothing"], 'EXPLAIN failed: relation "nothing" does not exist'),
        (["SELECT 1; SELECT 2"], "EXPLAIN takes one statement; found 2"),
        ([SLOW], "EXPLAIN failed: "),
        ([SLOW, "--param", "id=x"], 'EXPLAIN failed: invalid input syntax for type integer: "x"'),
        (["SELECT pg_sleep(9)", "--analyze", "--timeout", "0.05", "--volatile", "pg_sleep"], "statement timeout"),
    ],
)
def test_what_the_server_refuses_is_said_in_its_words(mine: Mine, args: list[str], said: str) -> None:
    assert said in refusal(1, "explain", *args, *mine.options)


@pytest.mark.parametrize("content", ["", "nothing of the kind", "\x00\xff\x00", '{"Plan": 7}'])
def test_a_file_without_a_plan_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "plan.txt"
    file.write_text(content, encoding="latin-1")
    assert refusal(1, "explain", file).startswith(f"{file}: no plan in it; expected EXPLAIN (FORMAT JSON) output")


def test_text_from_elsewhere_cannot_steer_the_terminal(tmp_path: Path) -> None:
    node = {"Node Type": "Seq Scan", "Relation Name": "a\x1b[31mb\u202e", "Alias": "a"}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps([{"Plan": node}]))
    shown = perfkit("explain", file).stdout
    assert "\x1b" not in shown and "⟨1B⟩" in shown and "\u202e" not in shown
    told = perfkit("explain", file, "--format", "json").stdout
    assert told.isascii() and json.loads(told)[0]["explain"][0][0]["Plan"]["Relation Name"] == node["Relation Name"]
