"""What server and machine do beside a round, counted on real servers."""

import time
from collections.abc import Callable

import pytest

from perfkit.postgres import databases, embedded
from perfkit.postgres.capabilities import Surroundings, between, machine
from perfkit.postgres.databases import Database

BEFORE = "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 50 0 50 400 0 0 0 0 0 0\ncpu1 50 0 50 400 0 0 0 0 0 0\nprocs_running 3\n"
AFTER = BEFORE.replace("cpu  100 0 100 800 0 0 0 0", "cpu  150 0 110 830 0 0 0 10")


class TestTheMachine:
    def test_steal_is_a_share_of_all_processors_time(self):
        found = between(machine(BEFORE), machine(AFTER))
        assert found == {"steal": pytest.approx(10 / 100), "others": 1.0}  # two beside this one, on two processors

    def test_that_says_nothing_of_it_is_left_out(self):
        assert machine("") == {} and between({}, {}) == {}


@pytest.fixture(params=["server", "server16"])
def place(request: pytest.FixtureRequest) -> Database:
    running: embedded.EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(running, "beside")
    with running.connect("beside") as connection:
        connection.execute("CREATE TABLE filled AS SELECT n, repeat('x', 500) AS pad FROM generate_series(1, 20000) n")
    return Database(running, "beside")


def seen(place: Database, act: Callable[[], None]) -> dict[str, float]:
    """What is counted of something that is done; sessions publish what they did when they end."""
    with Surroundings() as around:
        before = around.read(place)
        act()
        time.sleep(0.3)
        return between(before, around.read(place))


class TestTheServer:
    def test_a_checkpoint_is_seen(self, place: Database):
        def checkpoint() -> None:
            with place.server.connect("beside", user="postgres") as connection:
                connection.execute("CREATE TABLE more AS SELECT * FROM filled")
                connection.execute("CHECKPOINT")

        assert seen(place, checkpoint)["checkpoints"] == 1

    def test_an_idle_round_counts_nothing(self, place: Database):
        with place.server.connect(user="postgres") as connection:
            connection.execute("CHECKPOINT")  # what came before is not written during the next round
        found = seen(place, lambda: None)
        assert (found["checkpoints"], found["autovacuums"]) == (0, 0) and found["blocks_hit"] >= 0

    def test_blocks_of_the_arms_database_are_counted(self, place: Database):
        def scan() -> None:
            with place.server.connect("beside") as connection:
                connection.execute("SELECT count(*) FROM filled")

        found = seen(place, scan)
        assert found["blocks_hit"] + found["blocks_read"] > 1000  # 20,000 rows of more than 500 bytes


def test_autovacuum_at_work_is_seen(server_home):
    settings = {"shared_buffers": "32MB", "autovacuum": "on", "autovacuum_naptime": "1s"}
    with embedded.start(18, settings, server_home) as running:
        databases.create(running, "busy")
        place = Database(running, "busy")
        with Surroundings() as around, running.connect("busy") as connection:
            before = around.read(place)
            connection.execute(
                "CREATE TABLE filled AS SELECT n, repeat('x', 500) AS pad FROM generate_series(1, 20000) n"
            )
            connection.execute("DELETE FROM filled WHERE n % 2 = 0")
            deadline = time.monotonic() + 60
            while not between(before, around.read(place))["autovacuums"]:
                assert time.monotonic() < deadline
                time.sleep(0.2)
