"""What runs now: since when, what it waits for, and the tree of who makes whom wait."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from scripts import run_all

from perfkit.postgres import databases, embedded
from perfkit.postgres.catalog import Connection
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.slow.activity import Activity, Branch, Running, now, tree

HERE = "active"  # the database


def running(key: str, *blocked_by: str, seconds: float = 1.0) -> Running:
    words = dict.fromkeys(("user", "database", "application", "client", "state", "wait", "id", "text"), "")
    return Running(key, **words, kind="client backend", seconds=seconds, transaction_s=None, blocked_by=blocked_by)


def shape(branches: tuple[Branch, ...]) -> list[str]:
    """The tree as lines: indented, circles marked."""
    return ["  " * branch.depth + branch.running.key + " circle" * branch.circle for branch in branches]


# The tree


def test_who_waits_for_whom_is_a_tree_the_longest_wait_first() -> None:
    found = tree([running("1"), running("2", "1", seconds=5), running("3", "2"), running("4", "1", seconds=9)])
    assert shape(found) == ["1", "  4", "  2", "    3"]


def test_sessions_that_have_nothing_to_do_with_a_lock_are_not_in_it() -> None:
    assert tree([running("1"), running("2")]) == ()


def test_a_queue_for_one_lock_stands_below_its_holder_each_once() -> None:
    queue = [running(str(n), *map(str, range(n)), seconds=1000 - n) for n in range(1, 300)]
    found = tree([running("0"), *queue])
    assert shape(found) == ["0", *(f"  {n}" for n in range(1, 300))]
    assert found[-1].running.blocked_by == tuple(map(str, range(299)))


def test_who_waits_for_several_is_there_once_and_names_all_of_them() -> None:
    found = tree([running("1", seconds=2), running("2"), running("3", "1", "2")])
    assert shape(found) == ["1", "  3", "2"]
    assert found[1].running.blocked_by == ("1", "2")


def test_a_circle_begins_with_the_longest_wait_and_is_said() -> None:
    found = tree([running("1", "2"), running("2", "1", seconds=3), running("3", "1")])
    assert shape(found) == ["2 circle", "  1", "    3"]


def test_one_that_waits_for_itself_or_for_one_that_is_gone_breaks_nothing() -> None:
    assert shape(tree([running("1", "1"), running("2", "99"), running("3", "2", "98")])) == ["2", "  3"]


def test_a_chain_of_thousands_is_no_matter() -> None:
    found = tree([running("0"), *(running(str(n), str(n - 1)) for n in range(1, 5000))])
    assert [branch.depth for branch in found] == list(range(5000))


# Servers


@pytest.fixture(scope="module", params=[18, 16])
def server(request: pytest.FixtureRequest, server_home: Path) -> Iterator[EmbeddedServer]:
    with embedded.start(request.param, {"max_prepared_transactions": "5"}, server_home) as found:
        databases.create(found, HERE)
        with found.connect(HERE) as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY, a int)")
        yield found


@pytest.fixture
def opened(server: EmbeddedServer) -> Iterator[Callable[..., Connection]]:
    """Sessions that begin with statements and end with the test; with three rows in `t`."""
    with server.connect(HERE) as connection:
        run_all(connection, "TRUNCATE t; INSERT INTO t VALUES (1, 0), (2, 0), (3, 0)")
    with ExitStack() as stack:

        def session(*statements: str, user: str = "perfkit", name: str = "app") -> Connection:
            connection = server.connect(HERE, user)
            stack.callback(connection.close)
            for statement in (f"SET application_name = '{name}'", "SET deadlock_timeout = '1h'")[
                : 1 + (user != "perfkit")
            ]:
                run_all(connection, statement.encode())
            for statement in statements:
                run_all(connection, statement.encode())
            return connection

        yield session
        with server.connect("postgres", "postgres") as connection:  # they do not notice that nobody waits any more
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [HERE]
            )


def send(connection: Connection, statement: str) -> str:
    """Without waiting for an answer; returns the session's key."""
    connection.pgconn.send_query(statement.encode())
    connection.pgconn.flush()
    return key(connection)


def key(connection: Connection) -> str:
    return str(connection.info.backend_pid)


def seen(server: EmbeddedServer, until: Callable[[Activity], bool], user: str = "postgres") -> Activity:
    """What runs, when it is as expected."""
    deadline = time.monotonic() + 10
    with server.connect(HERE, user) as connection:
        while not until(found := now(connection, "here")):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
    return found


def lines(found: Activity) -> int:
    return len(found.blocking)


def test_what_runs_is_told_with_its_text_and_wait_but_not_who_asks_or_idles(
    server: EmbeddedServer, opened: Callable
) -> None:
    opened("SELECT 'idle'")
    active = send(opened(name="the \x1b[31m<b>app"), "SELECT pg_sleep(30)")
    found = seen(server, lambda found: bool(found.running))
    [only] = found.running
    assert (only.key, only.user, only.database, only.kind) == (active, "perfkit", HERE, "client backend")
    assert (only.state, only.wait, only.text) == ("active", "Timeout: PgSleep", "SELECT pg_sleep(30)")
    assert int(only.id) and only.seconds is not None and 0 <= only.seconds < 30 and only.transaction_s is not None
    assert only.blocked_by == () and only.client == "" and not only.hidden
    assert found.source == "activity in here" and found.blocking == () and found.notes == ()


def test_the_longest_comes_first(server: EmbeddedServer, opened: Callable) -> None:
    first = send(opened(), "SELECT pg_sleep(30)")
    seen(server, lambda found: len(found.running) == 1)
    second = send(opened(), "SELECT pg_sleep(31)")
    found = seen(server, lambda found: len(found.running) == 2)
    assert [r.key for r in found.running] == [first, second]


def test_who_forgot_a_transaction_is_named_with_its_last_statement(server: EmbeddedServer, opened: Callable) -> None:
    forgot = opened("BEGIN", "UPDATE t SET a = 1 WHERE id = 1", "SELECT 'for lunch'")
    waits = send(opened(), "UPDATE t SET a = 2 WHERE id = 1")
    queued = send(opened(), "DELETE FROM t WHERE id = 1")
    found = seen(server, lambda found: lines(found) == 3)
    assert shape(found.blocking) == [key(forgot), f"  {waits}", f"    {queued}"]
    top, next_one, _ = (branch.running for branch in found.blocking)
    assert (top.state, top.text, top.wait) == ("idle in transaction", "SELECT 'for lunch'", "Client: ClientRead")
    assert next_one.wait == "Lock: transactionid" and next_one.blocked_by == (key(forgot),)


def test_two_readers_block_one_who_wants_to_change_the_table(server: EmbeddedServer, opened: Callable) -> None:
    readers = [key(opened("BEGIN", "LOCK TABLE t IN SHARE MODE")) for _ in range(2)]
    waits = send(opened(), "ALTER TABLE t ADD COLUMN b int")
    found = seen(server, lambda found: lines(found) == 3)
    assert shape(found.blocking) in ([readers[0], f"  {waits}", readers[1]], [readers[1], readers[0], f"  {waits}"])
    [blocked] = [b.running for b in found.blocking if b.running.key == waits]
    assert sorted(blocked.blocked_by) == sorted(readers)


def test_an_idle_session_that_holds_an_advisory_lock_is_in_the_tree_alone(
    server: EmbeddedServer, opened: Callable
) -> None:
    holder = opened("SELECT pg_advisory_lock(7)")
    waits = send(opened(), "SELECT pg_advisory_lock(7)")
    found = seen(server, lambda found: lines(found) == 2)
    assert shape(found.blocking) == [key(holder), f"  {waits}"]
    assert [r.key for r in found.running] == [waits] and found.blocking[0].running.state == "idle"


def test_a_deadlock_that_is_not_resolved_yet_is_a_circle(server: EmbeddedServer, opened: Callable) -> None:
    one = opened("BEGIN", "UPDATE t SET a = 1 WHERE id = 1", user="postgres")
    two = opened("BEGIN", "UPDATE t SET a = 1 WHERE id = 2", user="postgres")
    send(one, "UPDATE t SET a = 1 WHERE id = 2")
    seen(server, lambda found: lines(found) == 2)
    send(two, "UPDATE t SET a = 1 WHERE id = 1")
    found = seen(server, lambda found: any(branch.circle for branch in found.blocking))
    assert shape(found.blocking) == [f"{key(one)} circle", f"  {key(two)}"]


def test_a_prepared_transaction_blocks_by_its_name(server: EmbeddedServer, opened: Callable) -> None:
    gids = ["an <i>odd</i> 'name\x1b", "another"]
    for number, gid in enumerate(gids, 1):
        quoted = psycopg.sql.Literal(gid).as_string()
        opened("BEGIN", f"UPDATE t SET a = 1 WHERE id = {number}", f"PREPARE TRANSACTION {quoted}")
    try:
        waits = send(opened(), "UPDATE t SET a = 2 WHERE id = 1")
        found = seen(server, lambda found: lines(found) == 2)
        assert shape(found.blocking) == [f"prepared {gids[0]}", f"  {waits}"]
        top = found.blocking[0].running
        assert (top.kind, top.user, top.database) == ("prepared transaction", "perfkit", HERE)
        assert top.seconds is not None and top.seconds >= 0
        assert [r.key for r in found.running] == [waits]
    finally:
        with server.connect(HERE) as connection:
            for gid in gids:
                connection.execute(psycopg.sql.SQL("ROLLBACK PREPARED {}").format(psycopg.sql.Literal(gid)))


def test_what_a_role_may_not_see_is_said_with_the_grant_and_the_tree_is_still_there(
    server: EmbeddedServer, opened: Callable
) -> None:
    hidden = opened("BEGIN", "UPDATE t SET a = 1 WHERE id = 1", user="postgres")
    waits = send(opened(user="postgres"), "UPDATE t SET a = 2 WHERE id = 1")
    found = seen(server, lambda found: lines(found) == 2, user="perfkit")
    assert shape(found.blocking) == [key(hidden), f"  {waits}"]
    assert all(b.running.hidden and b.running.text == "" and b.running.user == "postgres" for b in found.blocking)
    assert found.hidden == 2 and found.running == ()
    assert found.notes == ("2 statements hidden; GRANT pg_read_all_stats TO perfkit shows them",)


def test_a_session_in_another_database_is_not_there(server: EmbeddedServer, opened: Callable) -> None:
    elsewhere = server.connect("postgres")
    try:
        send(elsewhere, "SELECT pg_sleep(30)")
        here = send(opened(), "SELECT pg_sleep(30)")
        found = seen(server, lambda found: bool(found.running))
        assert [r.key for r in found.running] == [here]
    finally:
        elsewhere.cancel_safe()
        elsewhere.close()
