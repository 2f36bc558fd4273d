"""The notebook that explores slow queries, in a real kernel: on the demo as it is, on a log alone, on a database."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from perfkit.app.cli import main
from perfkit.app.cli.slow import NOTEBOOK
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.runs.records import Bundle
from perfkit.show.render import execute, page


@pytest.fixture
def home(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    return server_home


def shown(notebook: Any, cell: str) -> str:
    """What a cell put out, in text."""
    (found,) = (own for own in notebook.cells if own.id == cell)
    return "\n".join(output["data"]["text/plain"] for output in found.outputs if "data" in output)


@pytest.mark.slow
def test_untouched_it_ends_at_the_right_index_with_the_proof(home: Path, tmp_path: Path) -> None:
    done = execute(NOTEBOOK, {"reports": str(tmp_path)})
    first = next(line for line in shown(done, "slow-top").splitlines() if re.match(r" *1 ", line))
    assert "SELECT id, contact_id" in first
    assert "ALTER" not in shown(done, "slow-top")
    assert "Seq Scan on" in shown(done, "slow-plan")
    # A patient has few appointments: whatever stands beside the patient in the index, a handful of pages is read.
    assert re.search(r"CREATE INDEX \w+ ON appointments \((org_id, )?contact_id[,)]", shown(done, "slow-advice"))
    before, after = map(int, re.findall(r"^pages +(\d+) +(\d+)$", shown(done, "slow-whatif"), re.MULTILINE)[0])
    assert before > 50 * after
    (run,) = (Bundle.open(path.parent) for path in tmp_path.glob("*/run.json"))
    assert run.run.status == "complete"
    assert shown(done, "slow-decision").count("▼ faster") == 2
    html = page(done, "Slow queries")
    assert not re.search(r"<script|<link|src=\"http", html) and "api.demo" not in html
    assert "CREATE INDEX" in (tmp_path / "statement.html").read_text()


@pytest.mark.process
def test_a_log_alone_is_shown_and_the_rest_says_what_it_lacks(tmp_path: Path) -> None:
    entry = {"timestamp": "2026-03-01 09:00:00.123 UTC", "error_severity": "LOG", "query_id": 11}
    log = tmp_path / "server.json"
    message = "duration: 30.0 ms  statement: SELECT * FROM big WHERE id = 1"
    log.write_text(json.dumps({**entry, "message": message}, separators=(",", ":")) + "\n")
    reports = tmp_path / "kept"
    done = CliRunner().invoke(main, ["slow", "report", "--log", str(log), "--reports", str(reports)])
    assert done.exit_code == 0, done.output
    (written,) = reports.glob("*/slow.html")
    html = written.read_text()
    assert done.stdout.strip() == str(written)
    assert "FROM big" in html and "connect to a database to explain it" in html and "no index to try" in html
    assert "<script" not in html and "Content-Security-Policy" in html


def test_on_a_database_of_somebody_else_nothing_is_built_and_the_page_says_so(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    databases.create(server, "explored")
    try:
        with databases.connected(server, "explored") as connection:
            connection.execute(
                "CREATE TABLE visits AS SELECT n AS id, n % 500 AS clinic FROM generate_series(1, 90000) n"
            )
        databases.freeze(server, "explored")
        databases.configure(server, "explored", {"log_min_duration_statement": "0"})
        with databases.connected(server, "explored") as connection:
            for clinic in range(3):
                connection.execute("SELECT max(id) FROM visits WHERE clinic = %s", [clinic])
        databases.configure(server, "explored", {"log_min_duration_statement": "-1"})
        where = ["--db", server.conninfo("explored", "postgres"), "--reports", str(tmp_path / "kept")]
        refused = CliRunner().invoke(main, ["slow", "report", *where])
        assert (refused.exit_code, list(tmp_path.iterdir())) == (97, [])
        name = f"{server.socket_dir}:{server.port}/explored"
        done = CliRunner().invoke(main, ["slow", "report", *where, "--confirm", name])
        assert done.exit_code == 0, done.output
        with databases.connected(server, "explored") as connection:
            assert connection.execute("SELECT FROM pg_indexes WHERE tablename = 'visits'").fetchall() == []
    finally:
        databases.drop(server, "explored")
    html = Path(done.stdout.strip()).read_text()
    assert "FROM visits" in html and "Seq Scan on" in html and "Not measured" in html
    assert re.search(r"CREATE INDEX \w+ ON (public\.)?visits \(clinic", html) and "expected HypoPG" in html
