"""Tests of a configuration from a stranger: the settings that it may hold, and what its scripts may do."""

from pathlib import Path
from typing import Any

import pytest
import tomlkit

import perfkit
from perfkit import config
from perfkit.base.errors import UsageError
from perfkit.base.refusals import REFUSED, require_harmless_commands, require_settable
from perfkit.load.pgbench import ScriptQuery, _file, script
from perfkit.postgres import embedded

RUNS, LOADS, FILES = "run programs or code", "load libraries", "names files"
HARMFUL = {
    "archive_command": RUNS,
    "Restore_Command": RUNS,
    "SSL_PASSPHRASE_COMMAND": RUNS,
    "plperl.on_init": RUNS,
    "pltcl.start_proc": RUNS,
    "session_preload_libraries": LOADS,
    "local_preload_libraries": LOADS,
    "shared_preload_libraries": LOADS,
    "dynamic_library_path": LOADS,
    "jit_provider": LOADS,
    "hba_file": FILES,
    "data_directory": FILES,
    "include": FILES,
    "include_dir": FILES,
    "Listen_Addresses": "who can reach the server",
    "port": "who can reach the server",
    "unix_socket_directories": "who can reach the server",
    "primary_conninfo": "who can reach the server",
    "statement_timeout": "time limits",
    "LOCK_TIMEOUT": "time limits",
    "idle_in_transaction_session_timeout": "time limits",
    "transaction_timeout": "time limits",
    "default_transaction_read_only": "read-only transactions",
    "transaction_read_only": "read-only transactions",
    "role": "as which role perfkit acts",
    "session_authorization": "as which role perfkit acts",
    "row_security": "which rows",
    "session_replication_role": "which rows",
    "event_triggers": "which rows",
    "standard_conforming_strings": "read a statement in the same way",
    "backslash_quote": "read a statement in the same way",
    "client_encoding": "read a statement in the same way",
    "log_directory": "reads the log",
}
NO_NAMES = ["", " port", "port ", '"port"', "'port'", "work_mem = 1\nport", "a=b", "a\0b", "naïve", "work_mem--"]
NO_VALUES = ["1MB\nport = 1", "1MB\rport", "a\0b", "\x1b[2J"]


def toml(folder: Path, *, arm: Any = None, database: Any = None, scripts: Any = None) -> Path:
    """Write a configuration with these settings or pgbench scripts."""
    (folder / "made.sql").write_text("SELECT 1")
    level = {"script": scripts, "engine": "pgbench", "seconds": 1} if scripts else {"send": ["q"]}
    document = {
        "title": "from a stranger",
        "database": {"prepare": ["made.sql"], "settings": database or {}},
        "query": [{"name": "q", "file": "made.sql"}],
        "scenario": [{"name": "s", "label": "S", **level}],
        "arm": [{"name": "before", "role": "before", "settings": arm or {}}],
    }
    path = folder / "perfkit.toml"
    path.write_text(tomlkit.dumps(document))
    return path


def mistake(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        config.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Settings


@pytest.mark.parametrize(("name", "reason"), HARMFUL.items())
def test_a_harmful_setting_is_refused_wherever_it_is_named(tmp_path: Path, name: str, reason: str) -> None:
    for where, key in (("arm", "arm.0.settings"), ("database", "database.settings")):
        said = mistake(toml(tmp_path, **{where: {name: "1"}}))
        assert said.startswith(f"{tmp_path / 'perfkit.toml'}: {key}: expected a setting other than '{name}': ")
        assert reason in said
    with pytest.raises(UsageError, match=f"settings: expected a setting other than '{name}'"):
        perfkit.compare(db="service=x", query="SELECT 1", settings={name: "1"})
    with pytest.raises(UsageError, match=reason):
        embedded.start(18, {name: "1"}, tmp_path / "unused")
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    assert "expected the name of a PostgreSQL setting, not " in mistake(toml(tmp_path, arm={name: "1"}))


@pytest.mark.parametrize("value", NO_VALUES)
def test_a_value_of_several_lines_or_with_control_characters_is_refused(tmp_path: Path, value: str) -> None:
    assert "expected a value in one line for setting 'work_mem'" in mistake(toml(tmp_path, arm={"work_mem": value}))


def test_settings_that_change_plans_are_taken(tmp_path: Path) -> None:
    given = {
        "search_path": "sales, public",
        "Work_Mem": "8MB",
        "default_transaction_isolation": "repeatable read",
        "plan_cache_mode": "force_generic_plan",
        "auto_explain.log_min_duration": "0",
        "shared_preload_libraries": "auto_explain, pg_stat_statements",
    }
    assert config.load(toml(tmp_path, arm=given)).arm[0].settings == given


def test_every_refused_name_is_one_that_could_be_written() -> None:
    for name in REFUSED:
        with pytest.raises(ValueError, match="a setting other than"):
            require_settable({name.upper(): "on"})


@pytest.mark.parametrize("version", [16, 18])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("no_such_setting", "1", "unrecognized configuration parameter"),
        ("work_mem", "a lot", "invalid value"),
        ("random_page_cost", "-1", "outside the valid range"),
        ("plan_cache_mode", "auto or not", "invalid value"),
        ("block_size", "1", "cannot be changed"),
    ],
)
def test_what_the_server_does_not_take_is_known_before_it_starts(
    server_home: Path, version: int, name: str, value: str, words: str
) -> None:
    before = sorted(server_home.glob("server-*"))
    with pytest.raises(UsageError) as caught:
        embedded.require_known(version, {"jit": "off", name: value}, server_home)
    assert str(caught.value).startswith(f"setting {name} = {value!r}: ")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(server_home.glob("server-*")) == before


def test_a_backslash_in_a_value_stays_in_it(server_home: Path) -> None:
    settings = {"shared_buffers": "16MB", "cluster_name": r"it's \a\\"}
    with embedded.start(18, settings, server_home) as own, own.connect() as connection:
        assert connection.execute("SHOW cluster_name").fetchone() == {"cluster_name": r"it's \a\\"}


# pgbench's scripts


PROGRAMS = {
    "plain": r"\shell touch /tmp/x",
    "into a variable": r"\setshell n echo 5",
    "in capitals": r"\SHELL touch",
    "after blanks": "\t  \\shell touch",
    "with blanks before its name": "\\  \tshell touch",
    "continued before its name": "\\\\\nshell touch",
    "continued as Windows does": "\\ \\\r\nshell touch",
    "continued after its name": "\\shell\\\n touch",
    "behind a statement": "SELECT 1 \\shell touch",
    "behind what looks like a comment": "SELECT '--' \\shell touch",
    "behind what looks like a string": "/* it's */ \\shell touch",
    "alone": "\\shell",
}


@pytest.mark.parametrize("text", PROGRAMS.values(), ids=list(PROGRAMS))
def test_a_script_that_runs_programs_is_refused_when_it_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.sql"
    path.write_bytes(f"SELECT 1;\n\n{text}\n".encode())
    said = mistake(toml(tmp_path, scripts=["own.sql"]))
    assert "scenario.0: expected no \\s" in said and f" at {path}:3, which runs programs" in said


@pytest.mark.parametrize("command", [r"\exec ls", r"\i /etc/passwd", r"\copy t to program 'x'", r"  \!", r"\o |sh"])
def test_a_command_that_is_not_known_to_be_harmless_is_refused(tmp_path: Path, command: str) -> None:
    (tmp_path / "own.sql").write_text(f"SELECT 1;\n{command}\n")
    said = mistake(toml(tmp_path, scripts=["own.sql"]))
    assert f"{tmp_path / 'own.sql'}:2, which is not known to be harmless" in said


def test_harmless_commands_and_backslashes_in_strings_are_taken(tmp_path: Path) -> None:
    text = "\\set n random(1, 5)\n  \\IF :n > 1\nSELECT '\\d+' ~ 'x' AS a \\gset\n\\else\n\\sleep 1 ms\n\\endif\n"
    (tmp_path / "own.sql").write_text(text)
    assert config.load(toml(tmp_path, scripts=["own.sql"])).scenario[0].script == (tmp_path / "own.sql",)


def test_a_script_that_changed_since_it_was_read_is_refused_when_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "own.sql"
    path.write_text("SELECT 1;\n\\shell touch\n")
    with pytest.raises(UsageError, match=r"own\.sql:2, which runs programs"):
        _file(tmp_path, path, 0, None)


@pytest.mark.parametrize("text", ["SELECT 1 \\shell touch", "SELECT 1\n\\SetShell n id", "SELECT 1 \\gset", "\\ set"])
def test_a_query_that_is_made_a_script_brings_no_command(text: str) -> None:
    with pytest.raises(UsageError, match="is a command to pgbench; expected engine 'asyncio'"):
        script(ScriptQuery("q", text), 0, 1, paced=False)


def test_a_long_script_is_read_in_linear_time() -> None:
    require_harmless_commands(" " * 1_000_000 + "\n" + "\\ " * 500_000 + "a" * 1_000_000, "own.sql")
