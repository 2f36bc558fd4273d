"""Rollbacks in a database in use: what is asked first, dropped, looked at, compared; interrupted too."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from hosted import hosted
from orders import QUERY, SET, TABLES
from scripts import run_all

from perfkit.app.cli import main
from perfkit.base.judgement import Outcome
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import resolve
from perfkit.release.report import RolledBack
from perfkit.release.rollback import Rollback, RollbackItem


@pytest.fixture
def home(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    return server_home


def texts(found: Rollback, group: str) -> dict[str, RollbackItem]:
    return {item.name: item for item in found.items if item.group == group}


class Theirs:
    """A database whose owner allowed DDL, with the set's indexes in it."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self.server, self.folder, self.name = server, folder, "rollback_test"
        self.db = server.conninfo(self.name)
        self.set = folder / "set.sql"

    def command(self, *arguments: str) -> list[str]:
        where = ["--db", self.db, "--confirm", resolve(self.db).name]
        return [sys.executable, "-P", "-m", "perfkit", *arguments, *where]

    def perfkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, check=False)

    def rollback(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.perfkit("rollback", str(self.set), "--reports", str(self.folder / "reports"), *options)

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        return self.server.connect(self.name)

    def run(self, statement: str) -> list[Any]:
        with self.connect() as connection:
            cursor = run_all(connection, statement.encode())
            return [next(iter(row.values())) for row in cursor] if cursor.description else []

    def indexes(self) -> dict[str, bool]:
        there = "SELECT relname || ' ' || indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid"
        found = self.run(f"{there} WHERE NOT indisprimary AND oid >= 16384 AND relname !~ '^pg_'")
        return {name: valid == "true" for name, valid in (line.split() for line in found)}

    @property
    def result(self) -> Rollback:
        return RolledBack(max((self.folder / "reports").iterdir())).found


@pytest.fixture
def theirs(server: EmbeddedServer, home: Path, tmp_path: Path) -> Iterator[Theirs]:
    databases.create(server, "rollback_test")
    (tmp_path / "tables.sql").write_text(TABLES)
    (tmp_path / "set.sql").write_text(SET)
    databases.prepare(server, "rollback_test", [tmp_path / "tables.sql"], {})
    found = Theirs(server, tmp_path)
    assert found.perfkit("allow", "--ddl").returncode == 0
    found.run(SET)
    yield found
    databases.drop(server, "rollback_test")


def test_nothing_is_dropped_without_its_owners_permission(theirs: Theirs) -> None:
    assert theirs.perfkit("allow", "--revoke").returncode == 0
    done = theirs.rollback("--query", QUERY)
    assert (done.returncode, done.stdout) == (97, "")
    assert "the owner can allow this with: perfkit allow" in done.stderr
    assert len(theirs.indexes()) == 2 and not (theirs.folder / "reports").exists()


def test_a_dry_run_shows_the_sql_and_what_would_be_looked_at(theirs: Theirs) -> None:
    writes = "UPDATE orders SET total = 0 WHERE customer = 7"
    done = theirs.perfkit("rollback", str(theirs.set), "--dry-run", "--query", QUERY, "--query", writes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [
        "DROP INDEX CONCURRENTLY public.others_total;",
        "DROP INDEX CONCURRENTLY public.orders_customer;",
        "-- planned before and after, not executed: query 1",
        "-- planned before and after, not executed: query 2",
        "-- sent before and after, 3 rounds of 5 s, 2 a second, read-only: query 1",
        "-- not sent: query 2: it writes, locks rows or calls a volatile function",
    ]
    assert len(theirs.indexes()) == 2


def test_without_queries_the_catalogue_alone_is_the_proof(theirs: Theirs) -> None:
    done = theirs.rollback()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("as before: Indexes dropped: 2.\n")
    assert "No plan was checked" in done.stdout and theirs.indexes() == {}
    page = Path(done.stdout.splitlines()[-1])
    assert page.name == "rollback.html" and "Content-Security-Policy" in page.read_text()
    again = theirs.rollback()
    assert again.returncode == 0 and again.stdout.count(": did not exist.") == 2


def test_a_statement_that_writes_is_planned_and_not_executed(theirs: Theirs) -> None:
    before = theirs.run("SELECT sum(total) FROM orders")
    done = theirs.rollback("--query", "UPDATE orders SET total = 0 WHERE customer = 7", "--rounds", "0")
    assert done.returncode == 0, done.stderr
    assert "-> Seq Scan" in texts(theirs.result, "plans")["query 1"].text
    assert theirs.run("SELECT sum(total) FROM orders") == before


def test_rounds_that_fail_keep_nothing_from_being_dropped(theirs: Theirs) -> None:
    done = theirs.rollback("--query", "SELECT sum(1 / (total - total)) FROM orders", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert theirs.indexes() == {}
    assert [line.partition(" the indexes: ")[0] for line in theirs.result.unseen[:2]] == [
        "Not measured with",
        "Not measured without",
    ]
    assert all("division by zero" in line for line in theirs.result.unseen[:2])


def test_an_index_defined_otherwise_is_left_alone_and_named(theirs: Theirs) -> None:
    theirs.run("DROP INDEX others_total; CREATE INDEX others_total ON others (total DESC)")
    done = theirs.rollback("--rounds", "0")
    assert done.returncode == 99
    assert done.stdout.startswith(
        "not as before: others_total still exists: others_total exists already as CREATE INDEX"
    )
    assert theirs.indexes() == {"others_total": True}


@pytest.mark.slow
def test_plans_come_back_to_those_of_a_run_from_before_the_release(theirs: Theirs, tmp_path: Path) -> None:
    theirs.run("DROP INDEX orders_customer, others_total")
    few = "SELECT sum(total) FROM orders WHERE id < %(top)s"
    (tmp_path / "rows.csv").write_text("top\n100\n")
    sent = ["--query", QUERY, "--query", few, "--parameters", str(tmp_path / "rows.csv")]
    options = ["--way", "in-place", "--blocks", "1", "--users", "1", "--reports", str(tmp_path / "before")]
    assert theirs.perfkit("measure", *sent, *options).returncode == 0
    [run] = (tmp_path / "before").iterdir()
    theirs.run(SET)
    done = theirs.rollback("--against", str(run), "--parameters", str(tmp_path / "rows.csv"), "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    said = [item.text for item in texts(theirs.result, "plans").values()]
    assert said == ["query-1: the same plan as before.", "query-2: the same plan as before."]
    medians = texts(theirs.result, "latency")
    assert [item.outcome for item in medians.values()] == [None, None]
    assert all("without; " in i.text and "before the release, on another machine" in i.text for i in medians.values())

    theirs.run("DELETE FROM orders WHERE id > 60")  # few rows, which need no index
    theirs.run("VACUUM FULL ANALYZE orders")
    theirs.run(SET)
    done = theirs.rollback("--against", str(run), "--parameters", str(tmp_path / "rows.csv"), "--rounds", "0")
    assert done.returncode == 99
    changed = texts(theirs.result, "plans")["query-2"]
    assert "Index Scan using orders_pkey on orders -> Seq Scan" in changed.text
    assert (
        "the plan uses no index of the set: the statistics of orders say 60 rows in 1 pages, before 20,000"
        in changed.text
    )

    done = theirs.rollback("--against", str(run), "--rounds", "0")
    assert (
        texts(theirs.result, "plans")["query-2"].outcome is Outcome.UNPROVEN
    )  # without values it is another plan, or not


def test_an_interrupt_says_what_is_dropped_and_what_is_left_and_the_next_run_goes_on(theirs: Theirs) -> None:
    command = theirs.command("rollback", str(theirs.set), "--reports", str(theirs.folder / "reports"))
    pipe = subprocess.PIPE
    with theirs.connect() as reader, subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as running:
        run_all(reader, "BEGIN; SELECT 1 FROM orders LIMIT 1")  # which CONCURRENTLY waits for
        deadline = time.monotonic() + 30
        while theirs.indexes() != {"orders_customer": False}:
            assert time.monotonic() < deadline and running.poll() is None, running.communicate()
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=30)
        reader.execute("ROLLBACK")
    assert (running.returncode, out) == (105, "")
    said = (
        "orders_customer: stopped; dropped: others_total; run this again to continue; left: orders_customer (invalid)"
    )
    assert err.splitlines()[-1] == f"perfkit: {theirs.set}:1: {said}"
    done = theirs.rollback()
    assert done.returncode == 0 and "orders_customer: dropped in " in done.stdout, done.stderr
    assert theirs.indexes() == {}


@pytest.mark.system
@pytest.mark.slow
def test_a_plain_owner_of_a_hosted_database_takes_a_set_back_but_not_through_a_pooler(tmp_path: Path) -> None:
    (tmp_path / "set.sql").write_text("CREATE INDEX orders_customer ON sales.orders (customer_id);\n")
    query = "SELECT count(*) FROM sales.orders WHERE customer_id = 7"

    def perfkit(*arguments: str, port: int = 0) -> subprocess.CompletedProcess[str]:
        where = ["--db", theirs.db(port=port), "--confirm", theirs.name(port=port), "--confirm", theirs.name()]
        command = [sys.executable, "-P", "-m", "perfkit", *arguments, *where, *(["--no-tls"] if port else [])]
        environment = {**os.environ, **theirs.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    with hosted() as theirs:
        assert perfkit("allow", "--ddl").returncode == 0
        assert perfkit("indexes", "apply", str(tmp_path / "set.sql")).returncode == 0
        sent = [str(tmp_path / "set.sql"), "--query", query, "--rounds", "1", "--reports", str(tmp_path / "reports")]
        done = perfkit("rollback", *sent, port=theirs.pooled)
        assert done.returncode == 97 and "behind a pooler; expected a direct connection" in done.stderr
        done = perfkit("rollback", *sent)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "query 1: median " in done.stdout and "orders_customer: dropped in " in done.stdout
        written = [path for path in (tmp_path / "reports").rglob("*") if path.is_file()]
        assert written and not [path for path in written if b"Secret-" in path.read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--query", "SELECT 1"], "--query without --db; expected --db too"),
        (["--dry-run"], "--dry-run without --db; expected --db too"),
        (["--db", "dbname=x", "--scale", "seed", "set.sql"], "--scale with --db; expected none"),
        (["--db", "dbname=x"], "no index set; expected SET.sql with the indexes to be dropped"),
        (["--db", "dbname=x", "set.sql", "--rounds", "-1"], "rounds = -1; expected 0 to 100"),
        (["gone.sql"], "gone.sql: cannot be read"),
        (["--profile", "fast"], "profile 'fast' is unknown"),
    ],
)
def test_a_command_that_cannot_be_meant_is_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["rollback", *arguments, "--reports", str(tmp_path / "reports")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"perfkit: {said}")
