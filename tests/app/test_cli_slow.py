"""`perfkit slow`: what is slow and what runs now, for people and for programs, and a clinic at work to try it on."""

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from perfkit.app.cli import main
from perfkit.app.cli.slow import as_document, json_line
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.slow.statements import Example, SlowQueries, SlowStatement

HOSTILE = "SELECT '\x1b[31m<b>\u202e' FROM visits WHERE id = 7"


def perfkit(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["slow", *map(str, args)])


def refusal(code: int, *args: str | Path) -> str:
    done = perfkit(*args)
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("perfkit: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("perfkit: ").rstrip()


def spoken(*args: str | Path) -> str:
    done = perfkit(*args)
    assert done.exit_code == 0, done.output
    return done.stdout


def entry(message: str, at: int = 0, **more: Any) -> str:
    """A line of PostgreSQL's JSON log."""
    common = {"timestamp": f"2026-03-01 09:00:{at:02d}.123 UTC", "user": "u", "dbname": "app", "pid": 7,
              "error_severity": "LOG", "backend_type": "client backend", "application_name": "app"}  # fmt: skip
    return json.dumps({**common, "message": message, **more}, separators=(",", ":")) + "\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two statements, the second more often and with more time in all, and half a record."""
    lines = [
        entry(f"duration: {30 + n}.000 ms  statement: SELECT * FROM big WHERE id = {n}", n, query_id=11)
        for n in range(2)
    ]
    lines += [
        entry(f"duration: 25.000 ms  statement: SELECT * FROM often WHERE id = {n}", n, query_id=22) for n in range(9)
    ]
    path = tmp_path / "postgresql.json"
    path.write_text("".join(lines) + '{"timestamp":"2026-03-01 09:0')
    return path


@pytest.fixture
def home(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers would be; those that were started are gone soon after the test."""
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    before = set(server_home.glob("server-*/socket"))
    yield server_home
    deadline = time.monotonic() + 15
    while left := set(server_home.glob("server-*/socket")) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture(scope="module")
def where(server: EmbeddedServer) -> Iterator[tuple[str, ...]]:
    """The options that name a database, as one that somebody else started."""
    databases.create(server, "slow_cli")
    with databases.connected(server, "slow_cli") as connection:
        connection.execute("CREATE TABLE visits AS SELECT n AS id FROM generate_series(1, 1000) n")
    conninfo = server.conninfo("slow_cli", "postgres")
    yield ("--db", conninfo, "--confirm", f"{server.socket_dir}:{server.port}/slow_cli")
    databases.drop(server, "slow_cli")


# Log files


def test_a_log_is_told_by_total_time_with_what_could_not_be_read(log: Path) -> None:
    text = spoken("log", log)
    assert "postgresql.json" in text and "2 statements, 11 calls" in text
    assert text.index("FROM often") < text.index("FROM big")
    assert "1 entry was cut off at the end of the log." in " ".join(text.split())


def test_the_json_object_has_the_keys_that_help_promises(log: Path) -> None:
    found = json.loads(spoken("log", log, "--json", "--limit", "1"))
    (first,) = found["statements"]
    assert (first["position"], first["calls"], first["total_ms"], first["mean_ms"]) == (1, 9, 225.0, 25.0)
    assert (found["count"], found["total_ms"]) == (2, 286.0) and first["share"] == pytest.approx(225 / 286)
    assert datetime.fromisoformat(first["first"]).second == 0 and datetime.fromisoformat(first["last"]).second == 8
    promised = set(re.findall(r"`(\w+)`", perfkit("--help").output))
    keys = set(found) | set(first) | set(Example("SELECT 1").__dataclass_fields__)
    assert keys == promised


def test_what_programs_read_is_one_line_of_ascii() -> None:
    statement = SlowStatement("1", HOSTILE, 1, 2.0, example=Example(HOSTILE, (None, "é"), 2.0))
    written = json_line(as_document(SlowQueries("the log", (statement,)), 10))
    assert written.isascii() and "\x1b" not in written and "\n" not in written
    assert json.loads(written)["statements"][0]["example"] == {"sql": HOSTILE, "parameters": [None, "é"], "ms": 2.0}


def test_text_from_a_log_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(entry(f"duration: 5.000 ms  statement: {HOSTILE}"))
    page = tmp_path / "slow.html"
    text = spoken("log", path, "--html", page)
    assert "FROM visits" in text and not {"\x1b", "\u202e"} & set(text)
    html = page.read_text()
    assert "FROM visits" in html and "<b>" not in html and "\x1b" not in html
    assert "default-src 'none'" in html and "<script" not in html


def test_several_files_are_told_as_one(log: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.json"
    older.write_text(entry("duration: 900.000 ms  statement: SELECT * FROM big WHERE id = 5", query_id=11))
    found = json.loads(spoken("log", older, log, "--json"))
    assert [(s["calls"], s["total_ms"]) for s in found["statements"]] == [(3, 961.0), (9, 225.0)]


@pytest.mark.process
def test_a_log_is_followed_until_it_is_interrupted(log: Path) -> None:
    command = [sys.executable, "-m", "perfkit", "slow", "log", str(log), "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["total_ms"] == 286.0
        with log.open("a") as file:
            file.write("0\n" + entry("duration: 1000.000 ms  statement: SELECT * FROM often WHERE id = 9", query_id=22))
        grown = next(found for found in map(json.loads, process.stdout) if found["total_ms"] > 286.0)
        assert grown["statements"][0]["calls"] == 10
        process.send_signal(signal.SIGINT)
        assert (process.wait(20), process.stderr.read()) == (105, "perfkit: stopped\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["log", "nowhere.json"], "nowhere.json"),
        (["log", "a.json", "b.json", "--follow"], "--follow: expected one FILE, and no --html"),
        (["top"], "expected one of --db and --config"),
        (["watch", "--db", "service=x", "--every", "0"], "--every 0 --for 0; expected seconds, more than 0"),
        (["logging", "--db", "service=x"], "expected one of --on, --off and --sql"),
        (["logging", "--db", "service=x", "--on", "--min-ms", "-1"], "ms = -1"),
        (["report", "--log", "none.log"], "--log none.log: no such file; expected a log file of PostgreSQL"),
        (["demo", "--for", "-1"], "--for -1; expected seconds, more than 0"),
        (["demo", "--scale", "vast", "--for", "1"], "scale 'vast' is unknown"),
    ],
)
def test_what_cannot_be_meant_is_one_line(args: list[str], said: str) -> None:
    assert said in refusal(2, *args)


# A server


def test_nobody_elses_server_is_looked_at_unasked(where: tuple[str, ...]) -> None:
    for command in ("top", "watch", "logging"):
        said = refusal(97, command, *where[:2], *(["--on"] if command == "logging" else []))
        assert f"was not started by perfkit; to use it: --confirm {where[3]}" in said


def test_the_top_of_a_servers_log(where: tuple[str, ...], server: EmbeddedServer) -> None:
    databases.configure(server, "slow_cli", {"log_min_duration_statement": "0"})
    with databases.connected(server, "slow_cli") as connection:
        for number in range(5):
            connection.execute("SELECT count(*), pg_sleep(0.02) FROM visits WHERE id > %s", [number])
    found = json.loads(spoken("top", *where, "--source", "log", "--json"))
    slowest = next(s for s in found["statements"] if "pg_sleep" in s["text"] and "visits" in s["text"])
    assert slowest["calls"] == 5 and slowest["total_ms"] > 100


def test_a_database_can_come_from_a_configuration(where: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "query.sql").write_text("SELECT count(*) FROM visits")
    (tmp_path / "perfkit.toml").write_text(
        f"""
title = "ours"
allow = ["{where[3]}"]
[database]
target = "{where[1]}"
way = "in-place"
[[query]]
name = "visits"
file = "query.sql"
[[scenario]]
name = "one"
label = "one"
send = ["visits"]
[[arm]]
name = "now"
role = "before"
"""
    )
    config = ("--config", tmp_path / "perfkit.toml")
    assert "--confirm" in refusal(97, "watch", *config, "--for", "0.1")
    assert "activity in" in spoken("watch", *config, *where[2:], "--for", "0.1")
    made = tmp_path / "made.toml"
    made.write_text(
        (tmp_path / "perfkit.toml").read_text().replace("target =", 'prepare = ["query.sql"]  #').replace("way", "#")
    )
    assert "no target in [database]" in refusal(2, "top", "--config", made)


def test_watching_shows_who_blocks_whom(where: tuple[str, ...], server: EmbeddedServer) -> None:
    with server.connect("slow_cli") as holder, server.connect("slow_cli") as waiter:
        holder.autocommit = False
        holder.execute("LOCK TABLE visits")
        held_by = str(holder.info.backend_pid)
        asking = threading.Thread(target=waiter.execute, args=("SELECT count(*) FROM visits",))
        asking.start()
        try:
            while not server_waits(server):
                time.sleep(0.01)
            looks = [
                json.loads(text)
                for text in spoken("watch", *where, "--every", "0.1", "--for", "0.25", "--json").splitlines()
            ]
            text = spoken("watch", *where, "--for", "0.1")
        finally:
            holder.rollback()
            asking.join()
    assert len(looks) >= 2 and all(datetime.fromisoformat(look["at"]) for look in looks)
    top, below = looks[-1]["blocking"]
    assert (top["depth"], below["depth"]) == (0, 1)
    assert below["running"]["blocked_by"] == [top["running"]["key"]] == [held_by]
    assert "SELECT count(*) FROM visits" in text and "\x1b" not in text


def server_waits(server: EmbeddedServer) -> bool:
    with server.connect("slow_cli", "postgres") as connection:
        found = connection.execute(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
        )
        return bool((found.fetchone() or {})["n"])


def test_an_interrupt_ends_watching_with_one_line(where: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "perfkit", "slow", "watch", *where, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["source"].startswith("activity in")
        process.send_signal(signal.SIGINT)
        assert (process.wait(20), process.stderr.read()) == (105, "perfkit: stopped\n")


def test_logging_is_switched_on_with_the_owners_word_only_and_off_again(
    where: tuple[str, ...], server: EmbeddedServer, home: Path
) -> None:
    def settings() -> list[str]:
        with server.connect("slow_cli", "postgres") as connection:
            own = "(SELECT oid FROM pg_database WHERE datname = 'slow_cli')"
            asked = f"SELECT unnest(setconfig) AS own FROM pg_db_role_setting WHERE setdatabase = {own}"
            return sorted(row["own"] for row in connection.execute(asked.encode()))

    databases.configure(server, "slow_cli", {"log_min_duration_statement": "777"})
    assert "perfkit allow" in refusal(97, "logging", *where, "--on")
    allowed = CliRunner().invoke(main, ["allow", *where, "--ddl"])
    assert allowed.exit_code == 0, allowed.output
    sql = spoken("logging", *where, "--sql", "--min-ms", "50")
    assert settings() == ["log_min_duration_statement=777"]
    assert 'ALTER DATABASE "slow_cli" SET "log_min_duration_statement" = \'50\';' in sql
    assert "log_min_duration_statement = 50" in spoken("logging", *where, "--on", "--min-ms", "50", "--no-plans")
    assert "log_min_duration_statement=50" in settings()
    assert "restored to before" in spoken("logging", *where, "--off")
    assert settings() == ["log_min_duration_statement=777"]
    assert "perfkit switched no logging on from here" in spoken("logging", *where, "--restore")


# The demo


@pytest.mark.slow
def test_another_process_can_look_at_the_clinic_while_it_works(home: Path) -> None:
    command = [sys.executable, "-m", "perfkit", "slow", "demo", "--scale", "seed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        named = next(text for text in process.stdout if text.strip().startswith("perfkit slow top"))
        words = shlex.split(named)[2:]
        seen = ""
        while "UPDATE appointments" not in seen or "INSERT INTO appointments" not in seen:
            seen = spoken(*words, "--json")
        process.send_signal(signal.SIGINT)
        text = process.stdout.read()
        assert (process.wait(60), process.stderr.read().splitlines()[-1]) == (105, "perfkit: stopped")
    assert "UPDATE appointments" in text and "INSERT INTO appointments" in text
    assert "ALTER" not in text and "pg_" not in text  # only what the clinic does, not what perfkit does beside it


@pytest.mark.slow
def test_the_clinic_ends_by_itself_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "slow.html"
    text = spoken("demo", "--scale", "seed", "--for", "2", "--report", page)
    assert "A clinic works for 2 s" in text and "UPDATE appointments" in text
    assert "FROM appointments" in page.read_text()


@pytest.mark.slow
def test_the_clinic_tells_programs_what_it_did(home: Path) -> None:
    told = json.loads(spoken("demo", "--scale", "seed", "--for", "1", "--json"))
    assert told["count"] >= 4 and told["statements"][0]["calls"] > 0
