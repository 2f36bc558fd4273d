"""`%load_ext perfkit`: statements explained in a cell, with the notebook's variables, on its own connection."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import perfkit
from perfkit.errors import PerfkitError
from perfkit.postgres import databases
from perfkit.postgres.embedded import Server
from perfkit.query import Explained
from perfkit.report.render import execute

TABLES = """
CREATE TABLE visits AS SELECT n AS id, n % 300 AS clinic, repeat('x', 60) AS note FROM generate_series(1, 300000) n;
ANALYZE;
"""


@pytest.fixture(scope="module")
def where(server: Server) -> Iterator[tuple[str, str]]:
    """A database as libpq names it, and as perfkit does."""
    databases.create(server, "magic")
    with databases.connected(server, "magic") as connection:
        connection.execute(TABLES)
    yield server.conninfo("magic"), f"{server.socket_dir}:{server.port}/magic"
    databases.drop(server, "magic")


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    made: Any = InteractiveShell
    shell = made()
    shell.run_line_magic("load_ext", "perfkit")
    yield shell
    shell.magics_manager.registry["PerfkitMagics"].close()


@pytest.fixture
def connected(shell: InteractiveShell, where: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> InteractiveShell:
    conninfo, name = where
    shell.run_line_magic("perfkit", f"connect {conninfo} --confirm {name}")
    assert capsys.readouterr().out == f"connected to {name}\n"
    return shell


def explain(shell: InteractiveShell, line: str, sql: str) -> Explained:
    found = shell.run_cell_magic("explain", line, sql)
    assert isinstance(found, Explained)
    return found


def refused(shell: InteractiveShell, line: str, sql: str) -> str:
    with pytest.raises(UsageError) as caught:
        shell.run_cell_magic("explain", line, sql)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cell_is_planned_and_shows_itself(connected: InteractiveShell) -> None:
    found = explain(connected, "", "SELECT * FROM visits WHERE id = 7")
    assert not found.plan.analyzed
    assert "Seq Scan on visits" in repr(found)
    assert "Seq Scan on visits" in found._repr_html_() and "<script" not in found._repr_html_()


def test_it_is_executed_when_asked_and_says_what_is_wrong(connected: InteractiveShell) -> None:
    found = explain(connected, "--analyze --repeats 3", "SELECT * FROM visits WHERE id = 7")
    assert found.plan.rows == 1 and len(found.capture.documents) == 3
    assert [finding.sql for finding in found.findings] == ["CREATE INDEX ON visits (id)"]


def test_names_are_the_notebooks_variables(connected: InteractiveShell) -> None:
    connected.push({"clinic": 7, "low": 100})
    sql = "SELECT * FROM visits WHERE clinic = %(clinic)s AND id > %(low)s"
    expected = explain(connected, "--analyze", "SELECT * FROM visits WHERE clinic = 7 AND id > 100").plan.rows
    assert explain(connected, "--analyze", sql).plan.rows == expected > 0
    numbered = "SELECT * FROM visits WHERE clinic = $1 AND id > $2"
    assert explain(connected, "--analyze --param clinic --param low", numbered).plan.rows == expected
    assert not explain(connected, "--generic", numbered).plan.analyzed


def test_a_percent_sign_needs_no_doubling_without_names(connected: InteractiveShell) -> None:
    assert explain(connected, "--analyze", "SELECT * FROM visits WHERE note LIKE 'y%'").plan.rows == 0


def test_the_result_can_be_kept(connected: InteractiveShell) -> None:
    found = explain(connected, "--to before", "SELECT * FROM visits")
    assert connected.user_ns["before"] is found


@pytest.mark.parametrize(
    ("line", "sql", "said"),
    [
        ("", " ", "%explain: no statement; expected %%explain, and the statement below it"),
        ("", "SELECT * FROM nothing", 'EXPLAIN failed: relation "nothing" does not exist'),
        ("--analyze", "DELETE FROM visits", "a statement writes; its owner can allow that"),
        ("", "SELECT %(absent)s", "%%explain: no variable 'absent'; expected one for %(absent)s"),
        ("--wrong", "SELECT 1", "%%explain: unrecognized arguments: --wrong (see %%explain --help)"),
        ("--generic --analyze", "SELECT $1", "generic with analyze: a plan for any values cannot be executed"),
        ("--repeats 0", "SELECT 1", "repeats = 0, timeout = 60; expected more than 0"),
        ("", "SELECT 1; SELECT 2", "EXPLAIN takes one statement; found 2"),
    ],
)
def test_what_is_wrong_is_one_line(connected: InteractiveShell, line: str, sql: str, said: str) -> None:
    assert said in refused(connected, line, sql)


def test_without_a_database_it_says_how_to_connect(shell: InteractiveShell) -> None:
    assert refused(shell, "", "SELECT 1").endswith("expected %perfkit connect service=NAME before it")


@pytest.mark.parametrize("line", ["", "disconnect", "connect --wrong"])
def test_an_unknown_command_says_what_there_is(shell: InteractiveShell, line: str) -> None:
    with pytest.raises(UsageError, match="perfkit"):
        shell.run_line_magic("perfkit", line)


def test_a_target_that_nobody_confirmed_is_asked_for(
    shell: InteractiveShell, where: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conninfo, name = where
    monkeypatch.setattr("builtins.input", lambda question: "no")
    with pytest.raises(UsageError, match="something else was typed; nothing was sent to it"):
        shell.run_line_magic("perfkit", f"connect {conninfo}")
    monkeypatch.setattr("builtins.input", lambda question: name)
    shell.run_line_magic("perfkit", f"connect {conninfo}")


def test_help_is_shown_and_is_no_error(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("explain", "--help")
    assert "--analyze" in capsys.readouterr().out


def test_it_works_in_a_kernel_where_progress_clears_itself(
    where: tuple[str, str], tmp_path: Path, server_home: Path
) -> None:
    conninfo, name = where
    cells = [
        "%load_ext perfkit",
        f"%perfkit connect {conninfo} --confirm {name}",
        "clinic = 7",
        "%%explain --analyze\nSELECT * FROM visits WHERE clinic = %(clinic)s",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = tmp_path / "explain.ipynb"
    nbformat.write(notebook, path)
    done = execute(path, {})
    outputs = done.cells[-1].outputs
    html = [out.data["text/html"] for out in outputs if "text/html" in out.get("data", {})]
    assert len(html) == 1 and "Seq Scan on visits" in html[0]
    (line,) = [out for out in outputs if "text/html" not in out.get("data", {})]
    assert line.data["text/plain"] == ""
    assert json.dumps(done)


# without magics


def test_a_call_does_the_same_as_a_magic(where: tuple[str, str]) -> None:
    conninfo, name = where
    with perfkit.connect(conninfo, confirm=name) as session:
        found = session.explain("SELECT * FROM visits WHERE clinic = %(clinic)s", {"clinic": 7}, analyze=True)
    assert found.plan.analyzed and "First execution" in repr(found)
    assert found.capture.first.execution_ms > 0


def test_a_plan_that_somebody_pasted_is_judged_and_drawn(where: tuple[str, str], tmp_path: Path) -> None:
    text = """
                      QUERY PLAN
    ------------------------------------------------------
     [                                                    +
       {"Plan": {"Node Type": "Seq Scan", "Alias": "a",   +
         "Relation Name": "a", "Plan Rows": 1}}           +
     ]
    (1 row)
    """
    (found,) = perfkit.plans(text)
    assert "Seq Scan on a" in repr(found)
    (tmp_path / "plan.txt").write_text(text)
    (again,) = perfkit.plans(tmp_path / "plan.txt")
    assert repr(again) == repr(found)
    with pytest.raises(PerfkitError, match=r"gone\.txt: cannot be read"):
        perfkit.plans(tmp_path / "gone.txt")
