"""A whole watch of the booking service while things go wrong with it: each shows as what it was, when it was.

What is known of when something began is one interval, and where the target hangs rather than refuses, what a probe
may take besides (`timeout_s`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil
import psycopg
import pytest
from hosted import free_port
from watched import Postgres, postgres, until

from perfkit.base.resources import CHECKOUT
from perfkit.monitor.figures import compute_figures
from perfkit.monitor.model import Event, Period, Record
from perfkit.monitor.store import read
from perfkit.postgres.sqltext import read as text_of
from perfkit.postgres.sqltext import substitute

pytestmark = pytest.mark.slow

EVERY_S, TIMEOUT_S = 1.0, 2.0
SCALE = {"organizations": 20, "contacts": 1000, "appointments": 5000}
CONFIG = """
title = "Booking"
allow = ["http://127.0.0.1:{http}", "127.0.0.1:{sql}/booking"]
[database]
target = "host=127.0.0.1 port={sql} dbname=booking user=postgres"
way = "in-place"
[service]
url = "http://127.0.0.1:{http}"
writes = true
[parameters]
bookings = "perfkit:sql/parameters/bookings.sql"
[[query]]
name = "conflict_check"
file = "perfkit:sql/queries/conflict_check.sql"
parameters = "bookings"
[[request]]
name = "book"
method = "POST"
path = "/webhook/book"
parameters = "bookings"
expect = [201, 409]
[request.body]
org_id = "{{org_id}}"
contact_id = "{{contact_id}}"
scheduled_at = "{{scheduled_at}}"
duration_minutes = "{{duration_minutes}}"
[[request]]
name = "upcoming"
path = "/contacts/{{contact_id}}/appointments?org_id={{org_id}}"
parameters = "bookings"
[[scenario]]
name = "single"
label = "one"
send = ["book"]
[[arm]]
name = "live"
role = "before"
[watch]
send = ["book", "upcoming", "conflict_check"]
every_s = 1
rate = 8
timeout_s = 2
window_s = 8
baseline_s = 4
notify = {notify}
notify_timeout_s = 1
{rules}
"""
RULES = (
    ("service-down", "P1", "service_down_s", 0, 1, ""),
    ("database-down", "P1", "database_down_s", 0, 1, ""),
    ("errors", "P2", "error_rate", 0.01, 0, ""),
    ("lock-held", "P2", "lock_wait_s", 0.5, 0, ""),
    ("book-slow", "P3", "p50_ms", 800, 0, 'item = "book"'),
)
RULE = '[[watch.rule]]\nname = "{}"\nlevel = "{}"\nmetric = "{}"\nabove = {}\nfor_s = {}\n{}\nclear_for_s = 2\n'


class Booking:
    """The booking service as a process that can be killed and started again, on one port."""

    def __init__(self, database: str) -> None:
        self.port, self._environment = free_port(), {**os.environ, "PERFKIT_DATABASE": database}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["-P", "-m", "perfkit.booking.service", "--handler", "baseline", "--port", str(self.port)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(
            [sys.executable, *words], env=self._environment, stdin=null, stdout=subprocess.PIPE, stderr=null
        )
        assert self.process.stdout and self.process.stdout.readline()

    def hang(self, number: int = signal.SIGSTOP) -> None:
        """Answer nothing and refuse nothing, until SIGCONT."""
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None


class Watch:
    """`perfkit watch` as a process, and its folder as it grows."""

    def __init__(self, folder: Path, service: Booking, server: Postgres, notify: str = "[]") -> None:
        self.path, self.folder, self._service, self._server = folder / "perfkit.toml", folder / "watch", service, server
        rules = "".join(RULE.format(*rule) for rule in RULES)
        self.path.write_text(CONFIG.format(http=service.port, sql=server.port, notify=notify, rules=rules))
        self.process: subprocess.Popen[str] | None = None

    def start(self, lasts: str = "10min", *more: str) -> None:
        named = (f"http://127.0.0.1:{self._service.port}", f"127.0.0.1:{self._server.port}/booking")
        words = ["watch", "--for", lasts, "--config", str(self.path), "--folder", str(self.folder), *more]
        words += [part for name in named for part in ("--confirm", name)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-m", "perfkit", *words], stdout=pipe, stderr=pipe, text=True)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Its exit code, and what it said."""
        assert self.process
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        assert self.process
        out, err = self.process.communicate(timeout=60)
        code, self.process = self.process.returncode, None
        return code, out, err

    @property
    def record(self) -> Record:
        return read(self.folder)

    def ticks(self) -> int:
        return len(self.record.ticks) if (self.folder / "watch.json").exists() else 0

    def until(self, what: Callable[[], object], seconds: float) -> None:
        """Wait until something is so; what a watch said that ended meanwhile."""
        until(lambda: what() or (self.process and self.process.poll() is not None), seconds)
        assert self.process and self.process.poll() is None, self.ended()

    def goes_on(self, count: int = 2) -> None:
        """Wait for so many more intervals."""
        wanted = self.ticks() + count
        self.until(lambda: self.ticks() >= wanted, 30)

    def event(self, rule: str, what: str, after: float = 0.0) -> Event:
        """The first of a rule's events after an instant of the wall clock; waits for it."""

        def found() -> list[Event]:
            return [e for e in self.record.events if (e.rule, e.what) == (rule, what) and e.at > after]

        self.until(found, 40)
        return found()[0]

    def began(self, event: Event) -> float:
        """When it began, by the wall clock."""
        return Period(self.record.ticks).wall(event.since)

    def quiet(self) -> None:
        """Wait until no alert stands."""

        def active() -> set[str]:
            state = {event.rule: event.what for event in self.record.events if event.what != "note"}
            return {rule for rule, what in state.items() if what == "raised"}

        self.until(lambda: not active(), 60)


@pytest.fixture(scope="module")
def server(server_home: Path) -> Iterator[Postgres]:
    with postgres(18, server_home) as running:
        running.run("CREATE DATABASE booking")
        for name in ("schema", "data", "constraints"):
            text = substitute(text_of(CHECKOUT / "sql" / "booking" / f"{name}.sql"), SCALE)
            running.run(text, dbname="booking")
        running.run("ANALYZE", dbname="booking")
        yield running


@pytest.fixture
def service(server: Postgres) -> Iterator[Booking]:
    own = Booking(server.db("booking"))
    own.start()
    yield own
    own.kill()
    if server.process is None:
        server.start()
    else:
        server.freeze(signal.SIGCONT)


@contextmanager
def watching(folder: Path, service: Booking, server: Postgres, *more: str, notify: str = "[]") -> Iterator[Watch]:
    own = Watch(folder, service, server, notify)
    own.start("10min", *more)
    try:
        own.until(lambda: own.ticks() >= 5, 30)
        yield own
    finally:
        if own.process:
            own.process.kill()
            own.process.communicate()


def test_whatever_goes_wrong_is_an_alert_of_its_rule_from_when_it_began_and_is_taken_back(
    tmp_path: Path, service: Booking, server: Postgres
) -> None:
    hanging = json.dumps(["/bin/sleep", "600"])
    with watching(tmp_path, service, server, notify=hanging) as watch:
        killed = time.time()
        service.kill()
        raised = watch.event("service-down", "raised")
        time.sleep(max(0.0, killed + 5 - time.time()))
        service.start()
        back = time.time()
        assert watch.began(raised) == pytest.approx(killed, abs=EVERY_S + 0.1)
        cleared = watch.event("service-down", "cleared")
        assert (cleared.id, cleared.since) == (raised.id, raised.since)
        watch.quiet()

        restarted = time.time()
        server.stop()
        time.sleep(0.3)
        server.start()
        errors = watch.event("errors", "raised", restarted)
        assert watch.began(errors) == pytest.approx(restarted, abs=EVERY_S + 0.1)
        watch.quiet()
        assert any(event.text.startswith("PostgreSQL was restarted") for event in watch.record.events)

        stopped = time.time()
        server.stop()
        raised = watch.event("database-down", "raised", stopped)
        time.sleep(max(0.0, stopped + 5 - time.time()))
        server.start()
        up = time.time()
        assert watch.began(raised) == pytest.approx(stopped, abs=EVERY_S + 0.1)
        assert watch.event("database-down", "cleared", stopped).id == raised.id
        watch.quiet()

        with psycopg.connect(server.db("booking")) as holder:
            holder.execute("LOCK TABLE appointments IN SHARE MODE")
            locked = time.time()
            lock = watch.event("lock-held", "raised", locked)
            slow = watch.event("errors", "raised", locked)  # bookings that wait time out, the rest is answered
            holder.rollback()
        assert watch.began(lock) == pytest.approx(locked, abs=EVERY_S + 0.1)
        assert -0.1 < watch.began(slow) - locked < EVERY_S + TIMEOUT_S + 0.1  # a hang is none before the timeout
        watch.quiet()
        assert {e.rule for e in watch.record.events if e.what == "raised" and e.at > locked} <= {
            "lock-held", "errors", "book-slow",
        }  # fmt: skip

        hung = time.time()
        service.hang()
        raised = watch.event("service-down", "raised", hung)
        service.hang(signal.SIGCONT)
        assert -0.1 < watch.began(raised) - hung < EVERY_S + TIMEOUT_S + 0.1
        watch.quiet()

        frozen = time.time()
        server.freeze()
        raised = watch.event("database-down", "raised", frozen)
        server.freeze(signal.SIGCONT)
        assert -0.1 < watch.began(raised) - frozen < EVERY_S + TIMEOUT_S + 0.1
        watch.quiet()

        assert watch.process
        memory = psutil.Process(watch.process.pid).memory_info().rss / 2**20
        code, _, err = watch.stop()
        record = watch.record

    assert code == 105 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("perfkit: stopped; watched for ")
    assert memory < 150
    for start, end in ((killed, back), (stopped, up)):
        around = [tick for tick in record.ticks if start - 3 < tick.at < end + 3]
        available = compute_figures(around, record.about.kinds, None)["availability"]
        assert available is not None
        downtime = (1 - available) * sum(tick.seconds for tick in around)
        assert end - start - 2 * EVERY_S - 0.1 < downtime < end - start + 0.1  # an interval with an answer is up
    notes = [event.text for event in record.events if event.what == "note"]
    assert [text for text in notes if "took longer than 1 s" in text]
    assert len(notes) == len(set(notes))  # once for each kind of trouble
    assert sorted(tick.seconds for tick in record.ticks)[-1] < EVERY_S + 0.5  # nothing that hung delayed an interval
    assert (watch.folder / "watch.html").stat().st_size > 10_000
    audit = [json.loads(line) for line in (watch.folder / "audit.jsonl").read_text().splitlines()]
    said = [entry["load"]["requests"] for entry in audit if "load" in entry]
    assert said == [None, sum(probe.sent for tick in record.ticks for probe in tick.probes.values())]


def test_a_watch_that_is_killed_goes_on_in_its_folder_with_the_same_alerts_and_loses_at_most_an_interval(
    tmp_path: Path, service: Booking, server: Postgres
) -> None:
    with watching(tmp_path, service, server) as watch:
        service.kill()
        raised = watch.event("service-down", "raised")
        watch.goes_on()
        assert watch.process
        watch.process.kill()
        died = time.time()
        watch.process.communicate()
        watch.process = None
        before = watch.record
        assert died - before.ticks[-1].at < EVERY_S + 0.3
        until(
            lambda: str(watch.folder) not in [part for own in psutil.process_iter(["cmdline"]) for part in words(own)]
        )

        watch.start()
        watch.goes_on()
        service.start()
        cleared = watch.event("service-down", "cleared")
        code, _, _ = watch.stop(signal.SIGTERM)
        after = watch.record
    assert code == 105
    assert cleared.id == raised.id
    assert [tick.n for tick in after.ticks] == list(range(len(after.ticks)))
    assert [e.id for e in after.events if (e.rule, e.what) == ("service-down", "raised")] == [raised.id]
    gap = after.ticks[len(before.ticks)].start - before.ticks[-1].t
    assert gap >= died - before.ticks[-1].at - 0.1  # nobody watched then, and the time line knows
    assert after.about == before.about and after.damaged == 0


def words(process: psutil.Process) -> list[str]:
    """Its command; of one that is gone, nothing."""
    return process.info["cmdline"] or []


def test_it_tells_prometheus_and_no_other_watch_may_write_into_its_folder(
    tmp_path: Path, service: Booking, server: Postgres
) -> None:
    port = free_port()
    with watching(tmp_path, service, server, "--metrics", str(port)) as first:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            said = answer.read().decode()
        assert float(said.partition('perfkit_probes_total{item="book",kind="request",outcome="ok"} ')[2].split()[0]) > 8
        assert "perfkit_server_connections_limit 100.0" in said and "perfkit_database_up 1.0" in said
        second = Watch(tmp_path, service, server)
        second.start("5s")
        code, out, err = second.ended()
        assert (code, out) == (2, "")
        assert err == f"perfkit: {first.folder}: another watch writes here; expected a folder of its own\n"
        first.goes_on()


def test_it_begins_while_nothing_answers_and_records_that(tmp_path: Path, service: Booking, server: Postgres) -> None:
    service.kill()
    server.stop()
    with watching(tmp_path, service, server) as watch:
        assert watch.event("database-down", "raised").since <= EVERY_S
        server.start()
        service.start()
        until(lambda: all(probe.outcomes.get("ok") for probe in watch.record.ticks[-1].probes.values()), 30)
        watch.quiet()
        code, out, _ = watch.stop()
    assert code == 105
    assert "not reached yet" in out


def test_it_ends_by_itself_and_says_how_it_was(tmp_path: Path, service: Booking, server: Postgres) -> None:
    watch = Watch(tmp_path, service, server)
    watch.start("6s", "--quiet", "--metrics", "0")
    code, out, err = watch.ended()
    assert (code, err) == (0, "")
    assert out == f"watched for 6 s: availability 100 %; alerts: none; {watch.folder}\n"


def test_a_full_disk_is_noted_and_loses_nothing_that_memory_holds(
    tmp_path: Path, service: Booking, server: Postgres
) -> None:
    with watching(tmp_path, service, server) as watch:
        assert watch.process
        size = max((watch.folder / name).stat().st_size for name in ("ticks.jsonl", "events.jsonl"))
        limit = psutil.Process(watch.process.pid)
        limit.rlimit(psutil.RLIMIT_FSIZE, (size + 100, psutil.RLIM_INFINITY))
        told = watch.ticks()
        time.sleep(4 * EVERY_S)  # nothing on disk tells that it still goes on
        assert watch.ticks() <= told + 2
        limit.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        watch.goes_on(6)
        code, _, _ = watch.stop()
        record = watch.record
    assert code == 105
    assert [tick.n for tick in record.ticks] == list(range(len(record.ticks)))
    assert record.damaged == 0
    texts = [event.text for event in record.events if event.what == "note"]
    assert any("cannot be written" in text for text in texts)
    assert "all waiting lines are on disk now" in texts
