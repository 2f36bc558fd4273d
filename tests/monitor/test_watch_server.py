"""The server's own figures: every version, roles that may see little, servers that do not answer."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from hosted import free_port
from watched import Postgres, postgres, until

from perfkit.monitor.metrics import ServerProbe, ServerReading
from perfkit.monitor.model import SERVER
from perfkit.postgres.databases import Database
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import External, open_external

TABLES = (
    "CREATE TABLE appointments (id int PRIMARY KEY, org_id int)",
    "INSERT INTO appointments SELECT n, n % 7 FROM generate_series(1, 500) n",
    "CREATE INDEX by_org ON appointments (org_id)",
    "CREATE SCHEMA other",
    "CREATE TABLE other.t (id int PRIMARY KEY)",
    "ANALYZE",
)


def prepared(running: Postgres) -> Postgres:
    running.run("CREATE DATABASE shop", "CREATE ROLE clerk LOGIN", "CREATE ROLE seer LOGIN IN ROLE pg_read_all_stats")
    running.run(*TABLES, dbname="shop")
    return running


@pytest.fixture(scope="module")
def server18(server_home: Path) -> Iterator[Postgres]:
    with postgres(18, server_home) as running:
        yield prepared(running)


@pytest.fixture(scope="module")
def server16(server_home: Path) -> Iterator[Postgres]:
    with postgres(16, server_home) as running:
        yield prepared(running)


@pytest.fixture(scope="module")
def server15(server_home: Path) -> Iterator[Postgres]:
    if not Path("/usr/lib/postgresql/15/bin/postgres").exists():
        pytest.skip("needs the system's PostgreSQL 15")
    with postgres(15, server_home) as running:
        yield prepared(running)


class Asked:
    """A server's figures as a role sees them, and what was noted."""

    def __init__(self, running: Postgres, user: str, folder: Path, timeout_s: float = 1.0) -> None:
        self.running, self.user, self.notes = running, user, list[tuple[str, str]]()
        self.audit, self._opened = folder / "audit.jsonl", list[External]()
        self.server = ServerProbe(self.reach, timeout_s, lambda *note: self.notes.append(note))

    def reach(self) -> Database:
        if not self._opened:
            address = resolve(self.running.db("shop", self.user))
            self._opened.append(open_external(address, Permission(confirm=(address.name,)), Audit(self.audit)))
        return Database(self._opened[0], "shop")

    def now(self, wait_s: float = 5.0) -> ServerReading | None:
        self.server.ask()
        return self.server.answer(wait_s)

    def figures(self) -> ServerReading:
        found = self.now()
        assert found
        return found


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    made: list[Asked] = []

    def make(running: Postgres, user: str = "postgres", timeout_s: float = 1.0) -> Asked:
        made.append(Asked(running, user, tmp_path, timeout_s))
        return made[-1]

    yield make
    for own in made:
        own.server.close()


@contextmanager
def lock_held(running: Postgres) -> Iterator[psycopg.Connection]:
    """Somebody locks the table, and somebody else waits for it."""
    with (
        psycopg.connect(running.db("shop"), autocommit=False) as holder,
        psycopg.connect(running.db("shop"), autocommit=True) as waiter,
    ):
        holder.execute("LOCK TABLE appointments IN ACCESS EXCLUSIVE MODE")
        thread = threading.Thread(target=lambda: waiter.execute("SELECT count(*) FROM appointments"))
        thread.start()
        try:
            yield holder
        finally:
            holder.rollback()
            thread.join()


@pytest.mark.usefixtures("server_home")
@pytest.mark.parametrize("version", [15, 16, 18])
def test_every_figure_is_there_for_who_may_see_it(
    version: int, asked: Callable[..., Asked], request: pytest.FixtureRequest
) -> None:
    running = request.getfixturevalue(f"server{version}")
    for user in ("postgres", "seer"):
        own = asked(running, user)
        found = own.figures()
        assert SERVER.keys() - found.server.keys() <= {"checksum_failures"}  # 18 makes clusters with checksums
        assert own.notes == []
    assert ("checksum_failures" in found.server) == (version >= 18)
    assert found.scans.keys() == {"appointments_pkey", "by_org", "other.t_pkey"}
    assert found.server["connections_max"] == 100 and found.server["started"] == pytest.approx(time.time(), abs=120)


@pytest.mark.usefixtures("server_home")
@pytest.mark.parametrize("version", [15, 16, 18])
def test_what_a_role_may_not_see_is_left_out_and_noted_once(
    version: int, asked: Callable[..., Asked], request: pytest.FixtureRequest
) -> None:
    running = request.getfixturevalue(f"server{version}")
    own = asked(running, "clerk")
    with lock_held(running):
        until(lambda: own.figures().server.get("waiting") == 1)
        found = own.figures().server
    assert found["connections"] >= 2 and found["locks_held"] >= 1
    assert found["lock_wait_s"] > 0
    assert not {"active", "idle_in_transaction", "transaction_s"} & found.keys()
    assert set(own.notes) == {
        ("rights", "the role may not see active, idle_in_transaction, transaction_s; pg_read_all_stats shows them")
    }


def test_a_lock_that_is_waited_for_is_seen_with_how_long(server18: Postgres, asked: Callable[..., Asked]) -> None:
    own = asked(server18)
    quiet = own.figures().server
    assert (quiet["waiting"], quiet["lock_wait_s"], quiet["transaction_s"]) == (0, 0, 0)
    with lock_held(server18):
        until(lambda: own.figures().server["waiting"] == 1)
        first = own.figures().server
        until(lambda: own.figures().server["lock_wait_s"] > first["lock_wait_s"] + 0.2)
        found = own.figures().server
        assert (found["waiting"], found["active"], found["idle_in_transaction"]) == (1, 1, 1)
        assert found["transaction_s"] >= found["lock_wait_s"]
        assert found["connections"] == quiet["connections"] + 2
    until(lambda: own.figures().server["waiting"] == 0)


def test_an_invalid_index_is_counted_and_one_that_is_being_built_is_not(
    server18: Postgres, asked: Callable[..., Asked]
) -> None:
    own = asked(server18)
    with psycopg.connect(server18.db("shop")) as holder:  # it keeps the build from ending
        holder.execute("INSERT INTO appointments VALUES (0)")
        build = psycopg.connect(server18.db("shop"), autocommit=True)
        thread = threading.Thread(target=cancelled, args=[build])
        thread.start()
        until(lambda: "slow" in own.figures().scans)
        assert own.figures().server["invalid_indexes"] == 0
        build.cancel()
        thread.join()
        build.close()
    until(lambda: own.figures().server["invalid_indexes"] == 1)
    server18.run("DROP INDEX slow", dbname="shop")
    assert own.figures().server["invalid_indexes"] == 0


def cancelled(connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("CREATE INDEX CONCURRENTLY slow ON appointments (org_id, id)")


def test_scans_count_on_and_at_most_a_hundred_indexes_are_shown(
    server18: Postgres, asked: Callable[..., Asked]
) -> None:
    own = asked(server18)
    before = own.figures().scans["by_org"]
    server18.run(*["SET enable_seqscan = off", *["SELECT 1 FROM appointments WHERE org_id = 3"] * 3], dbname="shop")
    until(lambda: own.figures().scans["by_org"] == before + 3)
    server18.run("CREATE TABLE wide (n int)", *[f"CREATE INDEX w{n} ON wide (n)" for n in range(120)], dbname="shop")
    try:
        assert sorted(own.figures().scans) == sorted(f"w{n}" for n in range(20, 120))
    finally:
        server18.run("DROP TABLE wide", dbname="shop")


def test_a_server_that_stops_and_comes_back_is_seen_to_do_both(server18: Postgres, asked: Callable[..., Asked]) -> None:
    own = asked(server18)
    started = own.figures().server["started"]
    server18.stop()
    assert own.now() is None
    server18.start()
    assert own.figures().server["started"] > started


def test_a_server_that_is_down_at_the_start_is_asked_until_it_answers(
    server18: Postgres, asked: Callable[..., Asked]
) -> None:
    server18.stop()
    try:
        own = asked(server18)
        assert own.now() is None
        assert own.notes == []
    finally:
        server18.start()
    assert own.figures().server["connections"] >= 0


def test_another_server_in_its_place_is_asked_nothing(
    server18: Postgres, server16: Postgres, asked: Callable[..., Asked]
) -> None:
    own = asked(server18)
    own.figures()
    port, server18.port = server18.port, free_port()
    server18.stop()
    server16.stop()
    kept, server16.port = server16.port, port
    try:
        server16.start()
        until(lambda: own.now() is None and own.notes)
        assert own.notes[0][0] == "server" and "a different server answers than before" in own.notes[0][1]
    finally:
        server16.stop()
        server16.port, server18.port = kept, port
        server16.start()
        server18.start()


def test_a_server_that_answers_nothing_keeps_nobody_waiting(server18: Postgres, asked: Callable[..., Asked]) -> None:
    own = asked(server18)
    own.figures()
    server18.freeze()
    try:
        for _ in range(3):
            began = time.monotonic()
            own.server.ask()
            assert time.monotonic() - began < 0.1
            assert own.server.answer(0.2) is None
            assert time.monotonic() - began < 0.5
    finally:
        server18.freeze(signal.SIGCONT)
    until(lambda: own.now() is not None)


def test_a_catalogue_that_takes_too_long_is_left_out_and_the_rest_is_there(
    server18: Postgres, asked: Callable[..., Asked]
) -> None:
    own = asked(server18, timeout_s=0.3)
    own.figures()
    with psycopg.connect(server18.db("shop")) as holder:
        holder.execute("LOCK TABLE pg_index IN ACCESS EXCLUSIVE MODE")  # as a long ALTER does for a moment
        found = own.figures()
    assert "invalid_indexes" not in found.server and found.scans == {}
    assert found.server["connections"] >= 1
    assert own.notes == [("watch_indexes", "indexes cannot be read: canceling statement due to statement timeout")]


def test_it_reads_only_and_the_audit_names_its_connections_not_every_question(
    server18: Postgres, asked: Callable[..., Asked]
) -> None:
    own = asked(server18)
    for _ in range(20):
        own.figures()
    assert len(own.audit.read_text().splitlines()) < 20
