"""The server's own log, read over a connection: each byte once, across rotations; and what keeps a role from it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hosted
import psycopg
import pytest
from psycopg import sql
from scripts import run_all

from perfkit.base.errors import ServerError
from perfkit.postgres import databases
from perfkit.postgres.catalog import Connection
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import External, open_external
from perfkit.postgres.servers import Server as Site
from perfkit.slow.log_sources import PIECE, ServerLog, follow_server_log, opened, read_server_log
from perfkit.slow.query_logging import LoggingSpec, logging_on
from perfkit.slow.statements import SlowQueries

ODD = "re\"ad; %s {} 'x'"  # a database and a role


def pieces(log: ServerLog, until: str = "") -> bytes:
    """What was written, when it has this text: the server writes it a moment later."""
    found, deadline = b"".join(log.more()), time.monotonic() + 10
    while until.encode() not in found:
        assert time.monotonic() < deadline, found[-1000:]
        found += b"".join(log.more())
    return found


def say(connection: Connection, text: str) -> None:
    connection.execute(sql.SQL("DO $$ BEGIN RAISE LOG '%', {}; END $$").format(sql.SQL(text)))


def wait_for(path: Path, text: str) -> bytes:
    """The file when it has this text."""
    deadline = time.monotonic() + 10
    while text.encode() not in (found := path.read_bytes()):
        assert time.monotonic() < deadline, text
    return found


# A server of perfkit's own


@pytest.fixture(scope="module", params=["server", "server16"])
def own(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """With a database and a role of an odd name."""
    found: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(found, ODD)
    with found.connect("postgres", "postgres") as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(ODD)))
        yield found
        databases.drop(found, ODD)
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(ODD)))


@contextmanager
def logged(own: EmbeddedServer) -> Iterator[Connection]:
    """A session whose statements of 10 ms or more are logged; not perfkit's own, as the log has it."""
    with own.connect(ODD, "postgres") as connection:
        run_all(connection, "SET log_min_duration_statement = 10; SET application_name = 'app'")
        yield connection


def found_in(server: Site, database: str, part: str) -> SlowQueries:
    """The statements with this text, when there are any."""
    deadline = time.monotonic() + 10
    while True:
        found = read_server_log(server, database)
        chosen = tuple(statement for statement in found.statements if part in statement.text)
        if chosen or time.monotonic() > deadline:
            return replace(found, statements=chosen)


def test_statements_that_were_logged_are_read_over_a_connection(own: EmbeddedServer) -> None:
    with logged(own) as connection:
        connection.execute("SELECT pg_sleep(%s), 'of the log' AS logged", [0.02])
    found = found_in(own, ODD, "AS logged")
    [statement] = found.statements
    assert statement.calls == 1 and statement.total_ms >= 20
    assert statement.example and statement.example.parameters == ("0.02",)
    assert found.source == "the log server.json of embedded"
    assert not [s for s in read_server_log(own, "postgres").statements if "AS logged" in s.text], "of another database"


@pytest.mark.slow
def test_what_perfkit_itself_sends_is_left_out(own: EmbeddedServer) -> None:
    path = own.data_dir / "log" / "server.json"
    with logging_on(own, ODD, LoggingSpec(ms=0)):
        for _ in range(2):
            found = read_server_log(own, ODD)
        wait_for(path, "FROM pg_current_logfile(")
        found = read_server_log(own, ODD)
    assert not [s for s in found.statements if "pg_current_logfile" in s.text or "pg_read_binary_file" in s.text]


def test_the_log_is_followed_from_now_on(own: EmbeddedServer) -> None:
    with logged(own) as connection:
        connection.execute("SELECT pg_sleep(0.02), 'before' AS a")
        assert found_in(own, ODD, "AS a").statements
        following = follow_server_log(own, ODD, every_s=0.05)
        assert not next(following).statements
        connection.execute("SELECT pg_sleep(0.02), 'after' AS b")
        for found in following:
            if found.statements:
                break
        [statement] = found.statements
        assert statement.calls == 1
        following.close()


def test_a_log_is_read_piece_by_piece_each_byte_once(own: EmbeddedServer) -> None:
    path = own.data_dir / "log" / "server.json"
    with own.connect(ODD, "postgres") as connection:
        for number in range(3):
            say(connection, f"repeat('x', 1000000) || 'end {number}'")
        whole = wait_for(path, "end 2")
        log = opened(connection, "here", 1 << 40)
        found = list(log.more())
        assert b"".join(found) == whole and max(map(len, found)) == PIECE and not log.skipped
        say(connection, "'and ' || 'more'")
        more = pieces(log, "and more")
        assert whole + more == path.read_bytes()
        assert pieces(log) == b""


def test_the_end_of_a_long_log_begins_with_a_whole_line(own: EmbeddedServer) -> None:
    path = own.data_dir / "log" / "server.json"
    with own.connect(ODD, "postgres") as connection:
        for number in range(3):
            say(connection, f"'line ' || {number}")
        lines = wait_for(path, "line 2").splitlines(keepends=True)
        last = b"".join(lines[-2:])
        assert pieces(opened(connection, "here", len(last))) == last, "where a line begins"
        assert pieces(opened(connection, "here", len(last) + 1)) == last, "where one ends"
        assert pieces(opened(connection, "here", len(last) - 1)) == lines[-1]
        assert pieces(opened(connection, "here", 0)) == b""


def test_a_role_that_may_not_read_the_log_is_told_what_to_grant(own: EmbeddedServer) -> None:
    with own.connect(ODD, ODD) as connection, pytest.raises(ServerError) as raised:
        opened(connection, "here\x1b")
    message = str(raised.value)
    assert message.startswith("here⟨1B⟩: ") and "\n" not in message
    grant = message.partition("to run: ")[2].partition(", or a copy")[0]
    with own.connect(ODD, "postgres") as connection:
        connection.execute(grant)
    try:
        with own.connect(ODD, ODD) as connection:
            assert pieces(opened(connection, "here"))
    finally:
        with own.connect(ODD, "postgres") as connection:
            connection.execute(grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))


# Debian's PostgreSQL, of somebody else


@pytest.fixture(scope="module")
def system() -> Iterator[hosted.Hosted]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hosted.SETTINGS, "log_destination", "jsonlog,stderr")
        patch.setitem(hosted.SETTINGS, "log_filename", "at-%H%M%S.log")
        patch.setitem(hosted.SETTINGS, "log_line_prefix", "%m [%p] %q%u@%d ")
        with hosted.hosted() as running:
            for name, value in running.environment.items():
                patch.setenv(name, value)
            yield running


def server(system: hosted.Hosted, user: str = "postgres") -> External:
    return open_external(resolve(system.db(user)), Permission((), (system.name(),), (), None), Audit(None))


def rotate(connection: Connection) -> None:
    """To a file of another name, which the time in seconds gives."""
    current = "SELECT pg_current_logfile('jsonlog') AS file"
    before = connection.execute(current).fetchone()
    while connection.execute(current).fetchone() == before:
        connection.execute("SELECT pg_rotate_logfile(), pg_sleep(0.1)")


@pytest.mark.system
def test_its_log_is_followed_across_rotations(system: hosted.Hosted) -> None:
    with server(system).connect() as connection:
        log = opened(connection, "there", 0)
        assert log.form == "jsonlog" and pieces(log) == b""
        first = log.file
        say(connection, "'in the ' || 'old one'")
        for number in range(2):
            rotate(connection)
            say(connection, f"'in new ' || 'one {number}'")
            text = pieces(log, f"in new one {number}").decode()
            assert ("in the old one" in text) == (number == 0)
        assert log.file != first
        say(connection, "'before it ' || 'was cut'")
        pieces(log, "before it was cut")
        (system.folder / "data" / log.file).write_bytes(b'{"message": "after"}\n')
        assert pieces(log) == b'{"message": "after"}\n'
        (system.folder / "data" / log.file).unlink()
        assert pieces(log) == b"", "gone"
        rotate(connection)


@pytest.mark.system
@pytest.mark.parametrize("destination", ["jsonlog", "stderr"])
def test_slow_statements_are_found_in_its_log(
    system: hosted.Hosted, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if destination == "stderr":
        monkeypatch.setattr("perfkit.slow.log_sources._FORMS", {"stderr": "stderr"})
    slow = f"SELECT pg_sleep(0.02), 'x' AS in_{destination}, count(*) FROM sales.orders"
    system.run("SET log_min_duration_statement = 10", slow)
    found = found_in(server(system), "shop", f"in_{destination}")
    [statement] = found.statements
    assert statement.calls == 1 and statement.total_ms >= 20
    assert statement.example and statement.example.sql == slow
    assert found.source.endswith(f" of {system.name()}") and not found.unread


@pytest.mark.parametrize(
    ("collector", "destination", "expected"),
    [
        ("off", "stderr", "logging_collector = off; expected on, and a restart"),
        ("on", "csvlog", "log_destination = csvlog; expected jsonlog or stderr in it"),
    ],
)
def test_a_server_that_logs_elsewhere_is_one_line(
    collector: str, destination: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"collector": collector, "destination": destination, "prefix": "", "user": "shop", "lacking": []}
    monkeypatch.setattr("perfkit.postgres.catalog.row", lambda *_: told)
    with pytest.raises(ServerError, match=expected):
        opened(psycopg.Connection.__new__(psycopg.Connection), "there")
