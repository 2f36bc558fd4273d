"""Probes of a live target: when they are sent, what is counted, and what happens while the target is away."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import watched
from watched import Postgres, Web, permission, postgres, until, web, written

from perfkit import config
from perfkit.base.errors import ServerError, TargetRefused, UsageError
from perfkit.monitor.model import Probe
from perfkit.monitor.prober import CONNECTIONS, Prober, Supply, _in_thread, open_target, plan_probes
from perfkit.postgres.guards import Audit

PAGES = """
[[request]]
name = "page"
path = "/page"
[[request]]
name = "item"
path = "/items/{id}"
parameters = "ids"
[[request]]
name = "order"
method = "POST"
path = "/orders"
[[query]]
name = "read"
file = "read.sql"
parameters = "ids"
[parameters]
ids = "ids.sql"
"""


@pytest.fixture(scope="module")
def server(server_home: Path) -> Iterator[Postgres]:
    with postgres(18, server_home) as running:
        running.run("CREATE DATABASE shop")
        running.run("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 50)", dbname="shop")
        yield running


@pytest.fixture
def service() -> Iterator[Web]:
    with web() as running:
        yield running


class Watching:
    """A prober with everything that it told anybody."""

    def __init__(self, folder: Path, service: Web, server: Postgres, watch: str, query: str = "") -> None:
        (folder / "ids.sql").write_text("SELECT id FROM t ORDER BY id LIMIT :rows")
        (folder / "read.sql").write_text(query or "SELECT * FROM t WHERE id = %(id)s")
        path = written(folder, f"{PAGES}\n[watch]\n{watch}", http=service.port, sql=server.port, first="page")
        self.settings = config.load(path)
        self.plan = plan_probes(self.settings, permission(service.port, server.port))
        self.notes: list[tuple[str, str]] = []
        self.observed: list[tuple[str, str, float]] = []
        self.counted: dict[str, Probe] = {}
        self.audit = folder / "audit.jsonl"

    @contextmanager
    def begun(self) -> Iterator[Prober]:
        with open_target(self.plan, Audit(self.audit), lambda _: None) as target:
            prober = Prober(
                target,
                self.settings.watch,
                lambda *seen: self.observed.append(seen),
                lambda *note: self.notes.append(note),
            )
            try:
                prober.start()
                self.prober = prober
                yield prober
            finally:
                prober.close()

    def outcomes(self, name: str) -> set[str]:
        """What came of an item's probes since the last call."""
        self.counted = self.prober.cut()
        return set(self.counted[name].outcomes)


def test_without_send_it_sends_what_only_reads_and_every_query(tmp_path: Path, service: Web, server: Postgres) -> None:
    watching = Watching(tmp_path, service, server, "rate = 20")
    assert list(watching.plan.items) == ["page", "item", "read"]
    with watching.begun() as prober:
        until(lambda: {name for name, *_ in watching.observed} == {"page", "item", "read"})
        prober.require_alive()
    assert {outcome for _, outcome, _ in watching.observed} == {"ok"}
    assert {path.split("/")[1] for path in service.asked} == {"page", "items"}


def test_requests_that_write_need_the_word_of_the_configuration(tmp_path: Path, service: Web, server: Postgres) -> None:
    with pytest.raises(TargetRefused, match="request order may change data there; expected 'writes = true'"):
        Watching(tmp_path, service, server, 'send = ["page", "order"]')


def test_probes_are_evenly_spaced_and_items_take_turns(tmp_path: Path, service: Web, server: Postgres) -> None:
    watching = Watching(tmp_path, service, server, 'rate = 20\nsend = ["page", "read", "item"]')
    with watching.begun():
        until(lambda: len(watching.observed) >= 60)
        counted = watching.prober.cut()
    assert [name for name, *_ in watching.observed[:30]].count("page") == pytest.approx(10, abs=2)
    sent = [counted[name].sent for name in ("page", "read", "item")]
    assert max(sent) - min(sent) <= 2
    assert counted["page"].statuses == {"200": counted["page"].sent} and counted["read"].statuses == {}
    assert len(counted["page"].ms) == counted["page"].sent


def test_a_service_that_hangs_holds_up_no_probe_and_the_wait_counts_from_when_each_was_due(
    tmp_path: Path, service: Web, server: Postgres
) -> None:
    watching = Watching(tmp_path, service, server, 'rate = 10\ntimeout_s = 1\nsend = ["page", "read"]')
    with watching.begun() as prober:
        until(lambda: "ok" in watching.outcomes("page"))
        service.after_s = 60.0
        until(lambda: "timeout" in watching.outcomes("page"))
        waiting = watching.counted["page"]
        assert 8 <= waiting.pending <= 12 and 0.8 < waiting.oldest_s < 1.5
        prober.cut()
        time.sleep(1.0)  # a second of the open model, not of an answer
        ended = prober.cut()
        assert 7 <= ended["page"].outcomes["timeout"] <= 13 and 7 <= ended["read"].outcomes["ok"] <= 13
        assert all(0.95 < s < 1.5 for name, outcome, s in watching.observed if outcome == "timeout")
        service.after_s = 0.0
        service.go_on.set()
        until(lambda: watching.outcomes("page") == {"ok"})


def test_what_is_due_while_as_many_as_may_be_are_in_flight_is_dropped_and_counted(
    tmp_path: Path, service: Web, server: Postgres
) -> None:
    watching = Watching(tmp_path, service, server, 'rate = 20\ntimeout_s = 0.5\nsend = ["page"]')
    service.after_s = 0.08
    with watching.begun() as prober:
        prober._most = 1  # else it takes a hang to come about
        until(lambda: {outcome for _, outcome, _ in watching.observed} == {"ok", "dropped"})
    assert all(seconds == 0.0 for _, outcome, seconds in watching.observed if outcome == "dropped")


def test_a_service_that_goes_away_and_comes_back_is_seen_to_do_both(
    tmp_path: Path, service: Web, server: Postgres
) -> None:
    watching = Watching(tmp_path, service, server, 'rate = 20\nsend = ["page"]')
    with watching.begun():
        until(lambda: "ok" in watching.outcomes("page"))
        service.stop()
        until(lambda: watching.outcomes("page") == {"refused"})
        service.start()
        until(lambda: watching.outcomes("page") == {"ok"})
        service.status = 500
        until(lambda: watching.outcomes("page") == {"http_500"})
        assert watching.counted["page"].statuses == {"500": watching.counted["page"].sent}
        assert watching.counted["page"].ms == ()


def test_a_database_that_goes_away_and_comes_back_is_seen_to_do_both(
    tmp_path: Path, service: Web, server: Postgres
) -> None:
    watching = Watching(tmp_path, service, server, 'rate = 20\nsend = ["read"]')
    with watching.begun():
        until(lambda: "ok" in watching.outcomes("read"))
        server.stop()
        until(lambda: watching.outcomes("read") == {"refused"})
        server.start()
        until(lambda: watching.outcomes("read") == {"ok"})


@pytest.mark.slow
def test_however_many_queries_hang_they_take_a_bounded_number_of_connections(
    tmp_path: Path, service: Web, server: Postgres
) -> None:
    watching = Watching(tmp_path, service, server, 'rate = 20\ntimeout_s = 2\nsend = ["read"]')
    with watching.begun(), psycopg.connect(server.db("shop")) as holder:
        until(lambda: "ok" in watching.outcomes("read"))
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        until(lambda: watching.outcomes("read") and watching.counted["read"].pending > CONNECTIONS)
        until(lambda: watching.outcomes("read") >= {"pool_timeout"})
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'perfkit load'"
        assert holder.execute(count).fetchone()[0] <= CONNECTIONS
        holder.rollback()
        until(lambda: watching.outcomes("read") == {"ok"})


def test_it_begins_while_the_database_is_down_and_draws_parameters_once_it_answers(
    tmp_path: Path, service: Web, server: Postgres
) -> None:
    watching = Watching(tmp_path, service, server, "rate = 20")
    server.stop()
    try:
        with watching.begun():
            until(lambda: "ok" in watching.outcomes("page"))
            assert {name for name, *_ in watching.observed} == {"page"}
            assert [kind for kind, _ in watching.notes][:1] == ["database"]
            server.start()
            until(lambda: {name for name, *_ in watching.observed} == {"page", "item", "read"})
    finally:
        if server.process is None:
            server.start()


def test_a_query_that_writes_is_refused_before_it_is_sent(tmp_path: Path, service: Web, server: Postgres) -> None:
    delete = "DELETE FROM t WHERE id = %(id)s RETURNING id"
    watching = Watching(tmp_path, service, server, 'send = ["read"]', delete)
    with pytest.raises(TargetRefused, match="a statement writes"), watching.begun():
        pass
    assert watching.observed == []


def test_queries_are_sent_in_sessions_that_read_only(tmp_path: Path, service: Web, server: Postgres) -> None:
    text = "SELECT 1 / (current_setting('transaction_read_only') = 'on')::int, current_setting('statement_timeout')"
    watching = Watching(tmp_path, service, server, 'rate = 20\nsend = ["read"]', f"{text} WHERE %(id)s > 0")
    with watching.begun():
        until(lambda: len(watching.observed) > 3)
    assert {outcome for _, outcome, _ in watching.observed} == {"ok"}


def test_a_mistake_in_a_request_is_said_before_the_watch_begins(tmp_path: Path, service: Web, server: Postgres) -> None:
    watching = Watching(tmp_path, service, server, 'send = ["item"]')
    (tmp_path / "ids.sql").write_text("SELECT id AS number FROM t")
    with pytest.raises(UsageError, match=r"request 'item': \{id\} is not a column"), watching.begun():
        pass


def test_a_row_that_makes_no_request_is_noted_and_left_out(tmp_path: Path, service: Web, server: Postgres) -> None:
    watching = Watching(tmp_path, service, server, 'rate = 20\nsend = ["page", "item"]')
    (tmp_path / "ids.sql").write_text("SELECT id FROM t LIMIT :rows")
    with watching.begun() as prober:
        prober._supply["ids"] = Supply([{"id": "7"}, {"other": "8"}])
        until(lambda: watching.notes and len([one for one in watching.observed if one[0] == "item"]) > 5)
        prober.require_alive()
    assert {outcome for _, outcome, _ in watching.observed} == {"ok"}
    assert watching.notes[0][0] == "probe item" and "{id} is not a column" in watching.notes[0][1]


@pytest.mark.slow
def test_nothing_is_written_twice_for_other_rows_are_asked_for_in_time(
    tmp_path: Path, service: Web, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perfkit.monitor.prober.RENEW_S", 0.02)
    monkeypatch.setattr("watched.BEGIN", watched.BEGIN.replace("[service]", "[service]\nwrites = true"))
    put = '[[request]]\nname = "put"\nmethod = "POST"\npath = "/items/{id}"\nparameters = "ids"'
    watching = Watching(tmp_path, service, server, f'rate = 20\nsend = ["put"]\n{put}')
    fresh = "SELECT extract(epoch FROM clock_timestamp())::numeric(20, 6)::text || '-' || n AS id FROM generate_series"
    (tmp_path / "ids.sql").write_text(f"{fresh}(1, 20) n")
    with watching.begun() as prober:
        until(lambda: len(service.asked) > 50)
        prober.require_alive()
    assert len(service.asked) == len(set(service.asked))
    assert not watching.notes


def test_a_source_that_has_no_more_rows_is_noted_and_its_rows_come_again(
    tmp_path: Path, service: Web, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perfkit.monitor.prober.RENEW_S", 0.02)
    monkeypatch.setattr("watched.BEGIN", watched.BEGIN.replace("[service]", "[service]\nwrites = true"))
    put = '[[request]]\nname = "put"\nmethod = "POST"\npath = "/items/{id}"\nparameters = "ids"'
    watching = Watching(tmp_path, service, server, f'rate = 20\nsend = ["put"]\n{put}')
    (tmp_path / "ids.sql").write_text("SELECT 7 AS id WHERE NOT EXISTS (SELECT FROM t WHERE id < 0)")
    with watching.begun() as prober:
        until(lambda: service.asked)
        (tmp_path / "ids.sql").write_text("SELECT 7 AS id WHERE false")
        until(lambda: watching.notes and len(service.asked) > 5)
        prober.require_alive()
    assert watching.notes[0][0] == "rows of ids" and "gave no rows" in watching.notes[0][1]


@pytest.mark.parametrize("late", [ServerError("gone"), None], ids=["fails", "works"])
def test_rows_that_come_when_the_watch_has_ended_are_nobodys_trouble(late: ServerError | None) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def work() -> None:
        asked.set()
        go_on.wait(10)
        if late:
            raise late

    async def given_up() -> None:
        task = asyncio.create_task(_in_thread(work))
        await asyncio.to_thread(asked.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(given_up())
    (thread,) = [own for own in threading.enumerate() if own.name == "perfkit-watch-draws"]
    go_on.set()
    thread.join(10)
    assert not thread.is_alive()


def test_what_is_in_flight_at_the_end_is_given_up_and_counts_as_nothing(
    tmp_path: Path, service: Web, server: Postgres
) -> None:
    watching = Watching(tmp_path, service, server, 'rate = 20\nsend = ["page"]')
    service.after_s = 60.0
    with watching.begun() as prober:
        until(lambda: prober.cut()["page"].pending > 3)
    assert watching.observed == []
    assert prober.cut()["page"].sent == 0


@pytest.mark.process  # as the last test, it stops the server that the module shares
def test_what_reads_only_one_arms_rewrite_is_sent_as_that_arm_has_it() -> None:
    plan = plan_probes(config.load(), permission(0, 0), scale="seed")
    assert (plan.live, list(plan.items)) == (False, ["book", "upcoming", "conflict_check"])
    assert plan.name == "after-full, started by perfkit"
