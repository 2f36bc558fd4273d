"""Logging slow statements: on, and off again to exactly what was before, after a crash too."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hosted
import pytest
from click.testing import CliRunner
from psycopg import sql

from perfkit.app.cli import main
from perfkit.base.errors import ServerError, TargetRefused, UsageError
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import External, open_external
from perfkit.postgres.servers import Server as Site
from perfkit.slow.query_logging import NEW_ONLY, RESTORE, LoggingSpec, Where, logging_on, restore, script

ODD = "lo\"g; %s {} 'x'"  # a database and a role
ON = "log_min_duration_statement"
ROWS = """
    SELECT d.datname, r.rolname, s.setconfig FROM pg_db_role_setting s
    LEFT JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole ORDER BY 1, 2
"""


def change(server: Site, statement: str, *names: str) -> None:
    """As a superuser, with quoted names."""
    with server.connect("postgres", "postgres") as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def settings(server: Site, database: str = "postgres") -> list[tuple[Any, ...]]:
    """What every session to come brings along, and because of what."""
    with server.connect(database, "postgres") as connection:
        return [tuple(row.values()) for row in connection.execute(ROWS).fetchall()]


def shown(server: Site, database: str, setting: str = ON, user: str = "") -> str:
    """A setting as a new session has it."""
    with server.connect(database, user) as connection:
        return str((connection.execute("SELECT current_setting(%s) AS value", [setting]).fetchone() or {})["value"])


# Options


@pytest.mark.parametrize("wrong", [{"ms": -1}, {"ms": 2**31}, {"ms": float("nan")}, {"rate": 0}, {"rate": 1.1}])
def test_options_that_cannot_be_meant_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        LoggingSpec(**wrong)


def test_the_whole_server_is_never_meant() -> None:
    with pytest.raises(UsageError, match="expected a role, a database or both"):
        Where()


# A server of perfkit's own


@pytest.fixture(scope="module", params=["server", "server16"])
def odd(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """With a database and a role of an odd name."""
    found: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(found, ODD)
    change(found, "CREATE ROLE {} LOGIN", ODD)
    yield found
    databases.drop(found, ODD)
    change(found, "DROP ROLE {}", ODD)


@pytest.fixture
def own(odd: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """The same, with a setting that is there already; nothing is on afterwards."""
    change(odd, "ALTER DATABASE {} SET statement_timeout = '77s'", ODD)
    yield odd
    restore(odd, "postgres")
    change(odd, "ALTER DATABASE {} RESET ALL", ODD)
    change(odd, "ALTER ROLE {} RESET ALL", ODD)
    change(odd, "ALTER ROLE postgres IN DATABASE {} RESET ALL", ODD)
    assert not [row for row in settings(odd) if ODD in row]


@pytest.mark.parametrize(
    "where", [None, Where(database=ODD), Where(ODD, ODD), Where(ODD)], ids=["default", "database", "both", "role"]
)
def test_it_is_on_for_new_sessions_and_then_as_it_was(own: EmbeddedServer, where: Where | None) -> None:
    before = settings(own)
    with own.connect(ODD, ODD) as old:
        with logging_on(own, ODD, LoggingSpec(ms=40), where) as on:
            assert shown(own, ODD, user=ODD) == "40ms"
            assert on.changed == {ON: "40"} and on.where == (where or Where(database=ODD))
            assert on.notes[0] == NEW_ONLY and on.notes[1].startswith("no plans: could not access file")
            assert (old.execute(f"SHOW {ON}").fetchone() or {})[ON] == "-1"
            if where == Where(database=ODD):
                assert shown(own, "postgres", user=ODD) == "-1"
        assert settings(own) == before and on.off() == ()
    assert shown(own, ODD, user=ODD) == "-1"


def test_values_that_were_there_come_back_as_they_were(own: EmbeddedServer) -> None:
    change(own, f"ALTER DATABASE {{}} SET {ON} = '1min'", ODD)
    change(own, "ALTER DATABASE {} SET log_statement_sample_rate = '0.250'", ODD)
    before = settings(own)
    with logging_on(own, ODD, LoggingSpec(rate=0.5)):
        assert shown(own, ODD, "log_statement_sample_rate") == "0.5"
        assert shown(own, ODD, "log_min_duration_sample") == "100ms" and shown(own, ODD) == "1min"
    assert settings(own) == before
    with logging_on(own, ODD, LoggingSpec(ms=1)):
        assert shown(own, ODD) == "1ms"
    assert settings(own) == before


def test_query_ids_and_parameters_are_logged_where_they_were_not(own: EmbeddedServer) -> None:
    change(own, "ALTER ROLE postgres IN DATABASE {} SET compute_query_id = 'off'", ODD)
    change(own, "ALTER ROLE postgres IN DATABASE {} SET log_parameter_max_length = 0", ODD)
    before = settings(own)
    with logging_on(own, ODD, where=Where("postgres", ODD)) as on:
        assert on.changed == {ON: "100", "compute_query_id": "on", "log_parameter_max_length": "1024"}
        assert shown(own, ODD, "compute_query_id", "postgres") == "on"
    assert settings(own) == before


def test_an_interrupt_while_it_is_switched_off_leaves_it_to_be_tried_again(
    own: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settings(own)
    on = logging_on(own, ODD)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("perfkit.slow.query_logging.put_back", interrupted)
        on.off()
    assert settings(own) != before
    on.off()
    assert settings(own) == before


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_error_in_between_switches_it_off(own: EmbeddedServer) -> None:
    before = settings(own)
    with pytest.raises(ZeroDivisionError), logging_on(own, ODD):
        assert settings(own) != before
        raise ZeroDivisionError
    assert settings(own) == before


def test_what_somebody_else_changed_meanwhile_stays_and_is_said(own: EmbeddedServer) -> None:
    on = logging_on(own, ODD)
    change(own, f"ALTER DATABASE {{}} SET {ON} = '3s'", ODD)
    assert on.off() == (f"database {ODD}: {ON} was changed to '3s' meanwhile, so it was not restored",)
    assert shown(own, ODD) == "3s"


def test_two_at_once_do_not_overwrite_what_was_before(own: EmbeddedServer) -> None:
    before = settings(own)
    with logging_on(own, ODD):
        with pytest.raises(UsageError, match=rf"switched on by process {os.getpid()} since .*; expected it"):
            logging_on(own, ODD, LoggingSpec(ms=1))
        assert restore(own, ODD)[0].endswith(f"; process {os.getpid()} is running and will end it")
        assert shown(own, ODD) == "100ms"
        with logging_on(own, ODD, LoggingSpec(ms=7), Where(ODD, ODD)):  # somewhere else is another matter
            assert (shown(own, ODD, user=ODD), shown(own, ODD)) == ("7ms", "100ms")
    assert settings(own) == before and restore(own, ODD) == ()


def test_one_that_is_kept_ends_with_restore_alone(own: EmbeddedServer) -> None:
    before = settings(own)
    on = logging_on(own, ODD, keep=True)
    assert on.off() == () and shown(own, ODD) == "100ms"
    assert restore(own, ODD, killed_only=True) == () and shown(own, ODD) == "100ms"
    with pytest.raises(UsageError, match=f"already on since .*; expected {RESTORE} first"):
        logging_on(own, ODD)
    [said] = restore(own, ODD)
    assert said.startswith(f"database {ODD}: restored to before 20")
    assert settings(own) == before


HELD = """
import sys, time
from pathlib import Path
from perfkit.postgres.embedded import start
from perfkit.slow.query_logging import logging_on
version, home, database, end = sys.argv[1:]
with start(int(version), {"shared_buffers": "256MB"}, Path(home)) as own:
    on = logging_on(own, database)
    print("on", flush=True)
    if end == "wait":
        time.sleep(600)
"""


@contextmanager
def elsewhere(own: EmbeddedServer, server_home: Path, end: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, in which it is on."""
    command = [sys.executable, "-P", "-c", HELD, str(own.version), str(server_home), ODD, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "on\n"
            yield process
        finally:
            process.kill()


def test_after_a_kill_the_next_one_puts_back_what_was_before_first(own: EmbeddedServer, server_home: Path) -> None:
    before = settings(own)
    with elsewhere(own, server_home, "wait") as process:
        with pytest.raises(UsageError, match=f"switched on by process {process.pid}"):
            logging_on(own, ODD)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert settings(own) != before
    with logging_on(own, ODD, LoggingSpec(ms=3)):
        assert shown(own, ODD) == "3ms"
    assert settings(own) == before


def test_after_a_kill_restore_puts_it_back_whatever_the_database_is_called_by_now(
    own: EmbeddedServer, server_home: Path
) -> None:
    before = settings(own)
    with elsewhere(own, server_home, "wait") as process:
        process.kill()
        process.wait()
    change(own, "ALTER DATABASE {} RENAME TO renamed", ODD)
    try:
        assert len(restore(own, "postgres")) == 1
    finally:
        change(own, "ALTER DATABASE renamed RENAME TO {}", ODD)
    assert settings(own) == before


def test_after_a_kill_a_database_that_is_gone_is_no_matter(own: EmbeddedServer, server_home: Path) -> None:
    with elsewhere(own, server_home, "wait") as process:
        process.kill()
        process.wait()
    databases.create(own, ODD)
    assert len(restore(own, "postgres")) == 1 and restore(own, "postgres") == ()


def test_a_process_that_just_ends_switches_it_off(own: EmbeddedServer, server_home: Path) -> None:
    before = settings(own)
    with elsewhere(own, server_home, "end") as process:
        assert process.wait(20) == 0
    assert settings(own) == before


def test_a_file_that_was_not_written_to_its_end_is_no_matter(own: EmbeddedServer) -> None:
    with logging_on(own, ODD):
        [path] = (own.socket_dir / "lent-settings").iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        whole = path.read_bytes()
    before = settings(own)
    for text in (b"", whole[:50], b"[]", b"\xff"):
        path.write_bytes(text)
        assert restore(own, ODD) == () and not path.exists()
    assert settings(own) == before


def test_a_database_or_role_that_is_not_there_is_one_line(own: EmbeddedServer) -> None:
    with pytest.raises(UsageError, match="there is no role no⟨1B⟩body; expected one that is there"):
        logging_on(own, ODD, where=Where("no\x1bbody"))
    assert not list((own.socket_dir / "lent-settings").glob("*"))


def test_a_role_with_a_setting_of_its_own_is_named(own: EmbeddedServer) -> None:
    change(own, f"ALTER ROLE {{}} SET {ON} = '5s'", ODD)
    with logging_on(own, ODD) as on:
        assert on.notes[-1] == f"{ON} is overridden for role {ODD}"
        assert shown(own, ODD, user=ODD) == "5s"


# Debian's PostgreSQL, of somebody else


@pytest.fixture(scope="module")
def system() -> Iterator[hosted.Hosted]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hosted.SETTINGS, "log_destination", "jsonlog,stderr")
        patch.setitem(hosted.SETTINGS, "log_filename", "at-%H%M%S.log")
        patch.setitem(hosted.SETTINGS, "log_line_prefix", "%m [%p] %q%u@%d ")
        with hosted.hosted() as running:
            running.run("ALTER ROLE clerk SET work_mem = '5MB'")
            yield running


@pytest.fixture
def home(system: hosted.Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {**system.environment, "PERFKIT_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def allowed(system: hosted.Hosted, home: Path) -> Iterator[None]:
    """The owner's word that settings may be changed."""
    run = ["allow", "--db", system.db(), "--confirm", system.name()]
    assert CliRunner().invoke(main, [*run, "--ddl"]).exit_code == 0
    yield
    assert CliRunner().invoke(main, [*run, "--revoke"]).exit_code == 0


@contextmanager
def granted(system: hosted.Hosted, *parameters: str, to: str) -> Iterator[None]:
    names = ", ".join(parameters)
    system.run(f"GRANT SET ON PARAMETER {names} TO {to}")
    try:
        yield
    finally:
        system.run(f"REVOKE SET ON PARAMETER {names} FROM {to}")


def server(system: hosted.Hosted, user: str = "postgres", port: int = 0, audit: Path | None = None) -> External:
    names = (system.name(port=port), system.name())
    return open_external(resolve(system.db(user, port=port)), Permission((), names, (), None), Audit(audit))


def rows(system: hosted.Hosted) -> list[tuple[Any, ...]]:
    return system.run(ROWS)


@pytest.mark.system
def test_without_the_owners_word_nothing_is_changed(system: hosted.Hosted, home: Path) -> None:
    before = rows(system)
    with pytest.raises(
        TargetRefused, match=r"may not be changed; the owner can allow this with: perfkit allow --db .*--ddl"
    ):
        logging_on(server(system), "shop")
    assert rows(system) == before and not list(home.iterdir())


def scripts(message: str) -> tuple[str, str]:
    on, _, off = message.partition("to run: ")[2].partition("; and afterwards: ")
    return on, off


@pytest.mark.system
@pytest.mark.usefixtures("allowed")
def test_a_role_that_may_not_gets_the_sql_for_its_owner(system: hosted.Hosted, home: Path) -> None:
    before = rows(system)
    with pytest.raises(TargetRefused) as raised:
        logging_on(server(system, "shop"), "shop", LoggingSpec(plans=False))
    message = str(raised.value)
    assert message.startswith(f"{system.name()}: permission denied to set parameter")
    assert script(server(system, "shop"), "shop", LoggingSpec(plans=False)) == scripts(message)
    assert rows(system) == before and not list((home / "lent-settings").iterdir())
    on, off = scripts(message)
    system.run(*on.split("; "))
    assert system.run(f"SHOW {ON}", user="shop") == [("100ms",)]
    system.run(*off.split("; "))
    assert rows(system) == before


@pytest.mark.system
@pytest.mark.usefixtures("allowed")
def test_a_role_that_was_granted_the_parameter_may(system: hosted.Hosted, tmp_path: Path) -> None:
    before = rows(system)
    audit = tmp_path / "audit.jsonl"
    with granted(system, ON, to="shop"):
        with logging_on(server(system, "shop", audit=audit), "shop") as on:
            assert system.run(f"SHOW {ON}", user="clerk") == [("100ms",)]
            assert any(note.startswith("no plans: ") for note in on.notes)
        assert rows(system) == before
    sent = [json.loads(line).get("statement", "") for line in audit.read_text().splitlines()]
    assert f'ALTER DATABASE "shop" SET "{ON}" = \'100\'' in sent
    assert f'ALTER DATABASE "shop" RESET "{ON}"' in sent


@pytest.mark.system
@pytest.mark.usefixtures("allowed")
def test_who_does_not_own_the_database_logs_the_own_role_in_it(system: hosted.Hosted) -> None:
    before = rows(system)
    with granted(system, ON, to="clerk"), logging_on(server(system, "clerk"), "shop") as on:
        assert str(on.where) == "role clerk in database shop"
        assert system.run(f"SHOW {ON}", user="clerk") == [("100ms",)]
        assert system.run(f"SHOW {ON}", user="shop") == [("-1",)]
    assert rows(system) == before


@pytest.mark.system
@pytest.mark.usefixtures("allowed")
def test_where_it_cannot_be_put_back_it_is_said_how_and_can_be_later(system: hosted.Hosted) -> None:
    before = rows(system)
    with granted(system, ON, to="shop"):
        on = logging_on(server(system, "shop"), "shop")
    with pytest.raises(ServerError) as raised:
        on.off()
    assert f'expected its owner to run: ALTER DATABASE "shop" RESET "{ON}"' in str(raised.value)
    assert RESTORE in str(raised.value) and rows(system) != before
    assert len(restore(server(system), "shop")) == 1
    assert rows(system) == before


@pytest.mark.system
@pytest.mark.usefixtures("allowed")
def test_through_a_pooler_it_is_the_same_server(system: hosted.Hosted) -> None:
    before = rows(system)
    with logging_on(server(system, "postgres"), "shop"), pytest.raises(UsageError, match="switched on by process"):
        logging_on(server(system, port=system.pooled), "shop")
    assert rows(system) == before


def logged(system: hosted.Hosted) -> list[dict[str, Any]]:
    found = sorted((system.folder / "data" / "log").glob("*.json"))
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


@pytest.mark.system
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("analyze", [False, True])
def test_plans_are_logged_where_auto_explain_can_be_loaded(system: hosted.Hosted, analyze: bool) -> None:
    before = rows(system)
    with logging_on(server(system), "shop", LoggingSpec(ms=10, analyze=analyze)) as on:
        system.run(f"SELECT pg_sleep(0.02), 'analyze {analyze}'", user="shop")
        assert on.changed["session_preload_libraries"] == "auto_explain" and "compute_query_id" not in on.changed
        assert any("slow down every statement" in note for note in on.notes) is analyze
    assert rows(system) == before
    [plan] = [m for e in logged(system) if "plan:\n" in (m := e["message"]) and f"'analyze {analyze}'" in m]
    root = json.loads(plan.partition("plan:\n")[2])["Plan"]
    assert ("Actual Rows" in root) is analyze and "Actual Total Time" not in root


@pytest.mark.system
def test_other_libraries_of_a_session_are_left_alone(system: hosted.Hosted, home: Path, allowed: None) -> None:
    system.run("ALTER DATABASE shop SET session_preload_libraries = 'pg_stat_statements'")
    try:
        with logging_on(server(system), "shop") as on:
            assert set(on.changed) == {ON}
            assert "no plans: session_preload_libraries is set, and without auto_explain" in on.notes
    finally:
        system.run("ALTER DATABASE shop RESET session_preload_libraries")


@pytest.mark.system
def test_a_folder_that_cannot_be_written_stops_it_before_anything_changes(
    system: hosted.Hosted, home: Path, allowed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(system)
    (home / "file").touch()
    monkeypatch.setenv("PERFKIT_HOME", str(home / "file"))
    with pytest.raises(UsageError, match=r"cannot be written .*set PERFKIT_HOME"):
        logging_on(server(system), "shop")
    assert rows(system) == before
