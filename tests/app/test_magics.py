"""`%load_ext perfkit`: statements explained in a cell, with the notebook's variables, on its own connection."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty
from subprocess import DEVNULL
from typing import Any

import pytest
from ipykernel.kernelspec import get_kernel_dict
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from scripts import run_all
from traitlets.config import Config
from watched import until

import perfkit
from perfkit.app.evidence import Explained
from perfkit.base.errors import PerfkitError, TargetRefused, UsageError
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

TABLES = """
CREATE TABLE visits AS SELECT n AS id, n % 300 AS clinic, repeat('x', 60) AS note FROM generate_series(1, 300000) n;
ANALYZE;
"""


@pytest.fixture(scope="module")
def where(server: EmbeddedServer) -> Iterator[tuple[str, str]]:
    """A database as libpq names it, and as perfkit does."""
    databases.create(server, "magic")
    with databases.connected(server, "magic") as connection:
        run_all(connection, TABLES)
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
    with pytest.raises(PerfkitError) as caught:
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
        ("--analyze", "DELETE FROM visits", "a statement writes; the owner can allow this"),
        ("", "SELECT %(absent)s", "%%explain: no variable 'absent'; expected one for %(absent)s"),
        ("--wrong", "SELECT 1", "%%explain: No such option '--wrong'. (see %%explain --help)"),
        ("--generic --analyze", "SELECT $1", "generic with analyze: a plan for any values cannot be executed"),
        ("--repeats 0", "SELECT 1", "repeats = 0, timeout = 60; expected more than 0"),
        ("", "SELECT 1; SELECT 2", "EXPLAIN takes one statement; found 2"),
        ("--param 'clinic", "SELECT $1", "no closing quotation; expected every quotation mark closed"),
    ],
)
def test_what_is_wrong_is_one_line(connected: InteractiveShell, line: str, sql: str, said: str) -> None:
    assert said in refused(connected, line, sql)


WRONG = """
-- visits of a clinic
SELECT *
  FROM visits
 WHERE clinc = 7 AND note LIKE 'é%'
"""


def shown(error: BaseException) -> list[str]:
    """What IPython prints in place of a traceback."""
    return "\n".join(error._render_traceback_()).split("\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", ["", "--analyze"])
def test_an_error_in_the_statement_marks_its_place_and_passes_on_the_servers_hint(
    connected: InteractiveShell, line: str
) -> None:
    with pytest.raises(PerfkitError) as caught:
        connected.run_cell_magic("explain", line, WRONG)
    said, text, mark, hint = shown(caught.value)
    assert said == str(caught.value) and said.endswith('column "clinc" does not exist')
    assert text == "     WHERE clinc = 7 AND note LIKE 'é%'"
    assert mark == " " * text.index("clinc") + "^"
    assert hint == 'hint: Perhaps you meant to reference the column "visits.clinic".'


def test_the_place_is_right_for_names_that_are_sent_as_numbers(connected: InteractiveShell) -> None:
    connected.push({"a_long_name": 1})
    with pytest.raises(PerfkitError) as caught:
        connected.run_cell_magic("explain", "", "SELECT * FROM visits WHERE id = %(a_long_name)s AND x = 1")
    _, text, mark = shown(caught.value)
    assert text[len(mark) - 1 :] == "x = 1"
    with pytest.raises(PerfkitError) as caught:
        connected.run_cell_magic("explain", "--generic", "SELECT * FROM visits\nWHERE id = $1 AND x = 1")
    _, text, mark = shown(caught.value)
    assert text == "    WHERE id = $1 AND x = 1" and text[len(mark) - 1 :] == "x = 1"


def test_of_a_long_line_the_part_around_the_place_is_shown(connected: InteractiveShell) -> None:
    with pytest.raises(PerfkitError) as caught:
        connected.run_cell_magic("explain", "", f"SELECT {'id, ' * 500} nope {', id' * 500} FROM visits")
    _, text, mark, *_ = shown(caught.value)
    assert len(text) < 100 and text[len(mark) - 1 :].startswith("nope")


def test_what_a_server_says_cannot_steer_a_terminal(connected: InteractiveShell) -> None:
    with pytest.raises(PerfkitError) as caught:
        connected.run_cell_magic("explain", "", 'SELECT "\x1b[31m\u202e" FROM visits')
    assert not set("".join(shown(caught.value))) & set("\x1b\u202e")


def test_an_error_shows_no_traceback_and_the_next_cell_works(
    connected: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not connected.run_cell(f"%%explain\n{WRONG}").success
    said = capsys.readouterr()
    assert "clinc" in said.out + said.err and "Traceback" not in said.out + said.err
    assert connected.run_cell("%%explain\nSELECT 1").success


def test_without_a_database_it_says_how_to_connect(shell: InteractiveShell) -> None:
    assert refused(shell, "", "SELECT 1").endswith("expected %perfkit connect service=NAME before it")


@pytest.mark.parametrize("line", ["", "disconnect", "connect --wrong"])
def test_an_unknown_command_says_what_there_is(shell: InteractiveShell, line: str) -> None:
    with pytest.raises(UsageError, match=r"connect, demo, slow, activity|see %perfkit connect --help"):
        shell.run_line_magic("perfkit", line)


def test_a_target_that_nobody_confirmed_is_asked_for(
    shell: InteractiveShell, where: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conninfo, name = where
    monkeypatch.setattr("builtins.input", lambda question: "no")
    with pytest.raises(TargetRefused, match="the typed name differs; nothing was sent to it"):
        shell.run_line_magic("perfkit", f"connect {conninfo}")
    monkeypatch.setattr("builtins.input", lambda question: name)
    shell.run_line_magic("perfkit", f"connect {conninfo}")


def test_help_is_shown_and_is_no_error(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("explain", "--help")
    assert "--analyze" in capsys.readouterr().out


# what is slow, and what an index does to it

LOGGED = {
    "timestamp": "2026-03-01 12:00:00.000 UTC",
    "pid": 7,
    "dbname": "magic",
    "error_severity": "LOG",
    "message": "duration: 812.5 ms  statement: SELECT * FROM visits WHERE clinic = 7",
    "query_id": 77,
}


def test_the_table_of_slow_statements_is_shown_and_kept(connected: InteractiveShell, tmp_path: Path) -> None:
    log = tmp_path / "server.json"
    log.write_text("".join(json.dumps(LOGGED, separators=(",", ":")) + "\n" for _ in range(2)))
    found = connected.run_line_magic("perfkit", f"slow --source {log} --to table")
    assert connected.user_ns["table"] is found and len(found) == 1
    assert "1.62" in repr(found) and 'class="shares"' in found._repr_html_()  # both executions, in s
    assert "Seq Scan on visits" in repr(found[1].explain())


def test_a_log_that_may_not_be_read_is_one_line_that_says_what_would_help(connected: InteractiveShell) -> None:
    with pytest.raises(PerfkitError, match="pg_stat_statements") as caught:
        connected.run_line_magic("perfkit", "slow")
    assert len(shown(caught.value)) == 1


def test_what_runs_now_is_shown(connected: InteractiveShell, server: EmbeddedServer) -> None:
    with databases.connected(server, "magic") as other:
        other.autocommit = False
        other.execute("SELECT count(*) FROM visits WHERE clinic = 7")
        found = connected.run_line_magic("perfkit", "activity")
        other.rollback()
    assert "idle in transaction" in repr(found) and "clinic = 7" in found._repr_html_()


@pytest.mark.parametrize(
    ("line", "sql", "said"),
    [
        ("", " ", "%measure: no statement; expected %%measure, and the statement below it"),
        ("", "SELECT %(absent)s", "%%measure: no variable 'absent'; expected one for %(absent)s"),
        ("", "SELECT 1", "%%measure: perfkit advises no index; expected --index"),
        ("--index 'DROP TABLE visits'", "SELECT 1", "'DROP TABLE visits': expected one CREATE INDEX statement"),
        (
            "--index 'CREATE INDEX ON visits (id)'",
            "SELECT * FROM nothing WHERE id = $1",
            'relation "nothing" does not exist',
        ),
        ("--index 'CREATE INDEX ON visits (id)' --way none", "SELECT * FROM visits", "way"),
    ],
)
def test_what_cannot_be_measured_is_one_line(connected: InteractiveShell, line: str, sql: str, said: str) -> None:
    with pytest.raises(PerfkitError) as caught:
        connected.run_cell_magic("measure", line, sql)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_statement_is_measured_without_and_with_an_index(
    shell: InteractiveShell, server_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    shell.run_line_magic("perfkit", "demo --scale seed --seconds 2")
    table = shell.run_line_magic("perfkit", "slow")
    assert "FROM appointments" in table[1].statement.text
    place = shell.magics_manager.registry["PerfkitMagics"].session.database
    with place.connect() as connection:
        one = connection.execute("SELECT org_id, contact_id FROM appointments LIMIT 1").fetchone()
    shell.push({"org": one["org_id"], "contact": one["contact_id"]})
    sql = "SELECT * FROM appointments WHERE org_id = %(org)s AND contact_id = %(contact)s"
    index = "CREATE INDEX ON appointments (org_id, contact_id)"
    options = f"--index '{index}' --users 1 --reports {tmp_path} --to run"
    found = shell.run_cell_magic("measure", options, sql)
    assert "faster" in repr(found) and "<svg" in found._repr_html_() and "<style>" in found._repr_html_()
    run = shell.user_ns["run"]
    assert run.bundle.run.status == "complete" and run.bundle.path.parent == tmp_path
    (row,) = [row for row in run.levels.rows if row[1].text == "after"]
    assert any("faster" in cell.text for cell in row)
    (source,) = run.bundle.path.glob("parameters.sql")
    assert one["org_id"].hex in source.read_text()  # the values were the notebook's
    again = shell.run_cell_magic("explain", "", sql)
    assert "appointments" in repr(again)  # the session is as it was


# in a kernel


Sent = list[dict[str, Any]]


class ThisInterpreter(KernelManager):
    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


class Kernel:
    """A kernel in this interpreter, driven as JupyterLab drives one."""

    def __init__(self, folder: Path) -> None:
        self._manager = ThisInterpreter(config=Config({"KernelManager": {"transport_encryption": "auto"}}))
        self._manager.start_kernel(stderr=DEVNULL, cwd=str(folder))
        self._client: Any = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)

    def run(self, code: str, interrupt_when: Callable[[], bool] = lambda: False) -> tuple[str, Sent, float]:
        """The cell's status, everything that it sent, and the seconds from an interrupt to its end."""
        asked, interrupted = self._client.execute(code), 0.0
        sent: Sent = []
        while not (sent and sent[-1].get("execution_state") == "idle"):
            if not interrupted and interrupt_when():
                interrupted = time.monotonic()
                self._manager.interrupt_kernel()
            with suppress(Empty):
                message = self._client.get_iopub_msg(timeout=0.05)
                if message["parent_header"].get("msg_id") == asked:
                    sent.append({"type": message["msg_type"], **message["content"]})
        took = time.monotonic() - interrupted
        while (reply := self._client.get_shell_msg(timeout=10))["parent_header"]["msg_id"] != asked:
            pass
        return reply["content"]["status"], sent, took

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(where: tuple[str, str], tmp_path_factory: pytest.TempPathFactory, server_home: Path) -> Iterator[Kernel]:
    conninfo, name = where
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    try:
        for cell in ("%load_ext perfkit", f"%perfkit connect {conninfo} --confirm {name} --volatile pg_sleep"):
            assert kernel.run(cell)[0] == "ok"
        yield kernel
    finally:
        kernel.close()


def sessions(server: EmbeddedServer, condition: str = "true") -> int:
    """How many other sessions there are in the database."""
    others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with databases.connected(server, "magic") as connection:
        return connection.execute(f"{others} AND {condition}".encode()).rowcount


def sleeping(server: EmbeddedServer) -> int:
    return sessions(server, "wait_event = 'PgSleep' AND query LIKE '%pg_sleep(300)%'")


def drawn(sent: Sent) -> list[str]:
    """The text of every display, in the order in which it was made or changed."""
    kinds = ("display_data", "update_display_data")
    return [message["data"]["text/plain"] for message in sent if message["type"] in kinds]


def test_a_short_call_shows_its_result_and_nothing_besides(kernel: Kernel) -> None:
    kernel.run("clinic = 7")
    status, sent, _ = kernel.run("%%explain --analyze\nSELECT * FROM visits WHERE clinic = %(clinic)s")
    (result,) = [message for message in sent if "data" in message]
    assert status == "ok" and result["type"] == "execute_result"
    assert "Seq Scan on visits" in result["data"]["text/html"] and "Seq Scan on visits" in result["data"]["text/plain"]


@pytest.mark.slow
def test_a_call_that_lasts_shows_one_line_meanwhile_that_clears_itself(kernel: Kernel) -> None:
    slow = "%%explain --analyze --repeats 1\nSELECT pg_sleep(2.5)"
    status, sent, _ = kernel.run(slow)
    assert (status, drawn(sent)) == ("ok", ["explaining", ""])


def test_an_interrupt_cancels_the_statement_on_the_server_and_the_next_cell_works(
    kernel: Kernel, server: EmbeddedServer
) -> None:
    sleep = "%%explain --analyze --timeout 300\nSELECT pg_sleep(300)"
    status, sent, took = kernel.run(sleep, interrupt_when=lambda: sleeping(server) > 0)
    assert status == "error"
    assert sleeping(server) == 0
    (error,) = [message for message in sent if message["type"] == "error"]
    assert error["traceback"] == ["interrupted; the statement was cancelled on the server"]
    assert (error["ename"], error["evalue"]) == ("Interrupted", error["traceback"][0])
    assert took < 30  # of the 300 that it would have slept
    until(lambda: sessions(server) == 0)  # its connection is closed too
    assert kernel.run("%%explain\nSELECT 1")[0] == "ok"


def test_an_interrupt_of_a_call_in_a_cell_cancels_it_on_the_server_too(kernel: Kernel, server: EmbeddedServer) -> None:
    conninfo, name = server.conninfo("magic"), f"{server.socket_dir}:{server.port}/magic"
    kernel.run(f"import perfkit\nsession = perfkit.connect({conninfo!r}, confirm={name!r}, volatile='pg_sleep')")
    asked = "session.explain('SELECT pg_sleep(300)', analyze=True, timeout_s=300)"
    status, sent, took = kernel.run(asked, interrupt_when=lambda: sleeping(server) > 0)
    assert (status, sleeping(server)) == ("error", 0) and took < 30
    (error,) = [message for message in sent if message["type"] == "error"]
    assert error["traceback"] == ["interrupted; the statement was cancelled on the server"]


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
