"""The booking service over real HTTP: both handlers, every answer, and its life as a process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import aiohttp
import psycopg
import pytest
from aiohttp.test_utils import make_mocked_request

from perfkit.base.resources import CHECKOUT
from perfkit.booking import service as handlers
from perfkit.booking.service import BaselineHandler, BookingService, PooledHandler
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

FILES = [CHECKOUT / "sql" / "booking" / f"{s}.sql" for s in ("schema", "data", "constraints")]
SMALL = {"organizations": 5, "contacts": 200, "appointments": 1000}
NOBODY = "3f8c2a10-5b6d-4e7f-8a9b-0c1d2e3f4a5b"  # an id that no row has
HANDLERS = ["baseline", "pooled"]

Answer = tuple[int, Any]
Connection = psycopg.Connection[Any]


def make(server: EmbeddedServer, name: str) -> None:
    databases.create(server, name)
    databases.prepare(server, name, FILES, SMALL)


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[Connection]:
    """A small booking database."""
    make(server, "booking_http")
    with databases.connected(server, "booking_http") as connection:
        yield connection
    databases.drop(server, "booking_http")


@dataclass(frozen=True)
class Running:
    """A service process and where it answers."""

    process: subprocess.Popen[str]
    base: str

    def ask(self, method: str, path: str, **options: Any) -> Answer:
        return self.ask_all([(method, path, options)])[0]

    def book(self, **fields: Any) -> Answer:
        return self.ask("POST", "/webhook/book", json=fields)

    def book_all(self, wishes: Sequence[dict[str, Any]]) -> list[Answer]:
        return self.ask_all([("POST", "/webhook/book", {"json": wish}) for wish in wishes])

    def ask_all(self, requests: Sequence[tuple[str, str, dict[str, Any]]]) -> list[Answer]:
        """The answers to requests that are sent at the same time, at most thirty in flight."""

        async def send() -> list[Answer]:
            connector = aiohttp.TCPConnector(limit=30)
            async with aiohttp.ClientSession(self.base, connector=connector) as session:

                async def one(method: str, path: str, options: dict[str, Any]) -> Answer:
                    async with session.request(method, path, **options) as response:
                        assert response.content_type == "application/json"
                        return response.status, await response.json()

                return await asyncio.gather(*(one(*request) for request in requests))

        return asyncio.run(send())

    def wait_healthy(self, resets: int = 0) -> None:
        wait_until(lambda: self.ask("GET", "/health") == (200, {"status": "ok", "resets": resets}))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 15
    while not condition():
        assert monotonic() < deadline
        sleep(0.02)


def command(handler: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "perfkit.booking.service", "--handler", handler, *options]


@contextmanager
def running(conninfo: str, handler: str, *options: str, healthy: bool = True) -> Iterator[Running]:
    with subprocess.Popen(
        command(handler, "--watch-stdin", *options),
        env={**os.environ, "PERFKIT_DATABASE": conninfo},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            service = Running(process, f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}")
            if healthy:
                service.wait_healthy()
            yield service
        finally:
            process.kill()


@pytest.fixture(scope="module", params=HANDLERS)
def service(request: pytest.FixtureRequest, server: EmbeddedServer, database: Connection) -> Iterator[Running]:
    """Each handler in turn, on the same database."""
    with running(server.conninfo("booking_http"), request.param) as service:
        yield service


@pytest.fixture
def patient(database: Connection) -> dict[str, str]:
    """A contact of its own for one test: org_id and contact_id."""
    return new_patient(database, 1)


def new_patient(database: Connection, clinic: int) -> dict[str, str]:
    row = database.execute(
        "INSERT INTO contacts (org_id, name, phone)"
        " SELECT id, 'Patient', '+15550000000' FROM organizations ORDER BY id OFFSET %s LIMIT 1"
        " RETURNING org_id::text, id::text AS contact_id",
        [clinic],
    ).fetchone()
    assert row
    return dict(row)


def at(hours: float) -> str:
    """A time on a day to come, `hours` after its midnight."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight + timedelta(days=30, hours=hours)).isoformat()


def wish(patient: dict[str, str], hours: float = 9, minutes: int = 30) -> dict[str, Any]:
    return {**patient, "scheduled_at": at(hours), "duration_minutes": minutes}


def booked(database: Connection, patient: dict[str, str]) -> list[dict[str, Any]]:
    return database.execute(
        "SELECT * FROM appointments WHERE contact_id = %(contact_id)s ORDER BY scheduled_at", patient
    ).fetchall()


# Booking


def test_a_booking_is_in_the_table(service: Running, database: Connection, patient: dict[str, str]) -> None:
    status, answer = service.book(**wish(patient), notes="Überweisung")
    (row,) = booked(database, patient)
    assert status == 201
    assert answer["id"] == str(row["id"])
    assert (row["scheduled_at"], row["duration_minutes"]) == (datetime.fromisoformat(at(9)), 30)
    assert (str(row["org_id"]), row["status"], row["notes"]) == (patient["org_id"], "booked", "Überweisung")


@pytest.mark.parametrize(
    ("hours", "minutes", "expected"),
    [
        (9, 120, 409),  # the same time
        (10.75, 30, 409),  # begins before it ends
        (8.5, 31, 409),  # ends after it begins
        (9.5, 30, 409),  # lies within it
        (8, 120, 409),
        (11, 30, 201),  # begins when it ends
        (8.5, 30, 201),  # ends when it begins
    ],
)
def test_only_an_overlap_is_a_conflict(
    service: Running, patient: dict[str, str], hours: float, minutes: int, expected: int
) -> None:
    assert service.book(**wish(patient, 9, 120))[0] == 201
    status, answer = service.book(**wish(patient, hours, minutes))
    assert status == expected
    assert status == 201 or answer["error"] == "taken"


def test_a_cancelled_appointment_frees_its_slot(
    service: Running, database: Connection, patient: dict[str, str]
) -> None:
    service.book(**wish(patient))
    database.execute("UPDATE appointments SET status = 'cancelled' WHERE contact_id = %(contact_id)s", patient)
    assert service.book(**wish(patient))[0] == 201


def test_other_contacts_may_book_the_same_time(service: Running, database: Connection) -> None:
    wishes = [wish(new_patient(database, clinic)) for clinic in (1, 1, 2)]
    assert [status for status, _ in service.book_all(wishes)] == [201, 201, 201]


def test_an_unknown_contact_cannot_book(service: Running, patient: dict[str, str]) -> None:
    for stranger in ({"contact_id": str(uuid4())}, {"org_id": str(uuid4())}):
        status, answer = service.book(**wish(patient | stranger))
        assert (status, answer["error"]) == (404, "unknown")


def test_a_hundred_contested_slots_have_one_winner_each(service: Running, database: Connection) -> None:
    patients = [new_patient(database, clinic % 5) for clinic in range(20)]
    # Five contenders per slot, each ten minutes after the other: every one overlaps every other.
    slots = [[wish(p, 6 + 3 * n + late / 6, 60) for late in range(5)] for n in range(5) for p in patients]
    answers = service.book_all([contender for slot in slots for contender in slot])
    statuses = [sorted(status for status, _ in answers[n : n + 5]) for n in range(0, len(answers), 5)]
    assert statuses == [[201, 409, 409, 409, 409]] * 100
    ids = [patient["contact_id"] for patient in patients]
    rows = database.execute("SELECT contact_id, scheduled_at FROM appointments WHERE contact_id = ANY(%s)", [ids])
    per_slot = Counter((row["contact_id"], (row["scheduled_at"].hour - 6) // 3) for row in rows)
    assert len(per_slot) == 100
    assert set(per_slot.values()) == {1}


# Isolation of clinics


def test_no_clinic_books_or_sees_anothers_contact(service: Running, database: Connection) -> None:
    mine, theirs = new_patient(database, 1), new_patient(database, 2)
    crossed = {"org_id": mine["org_id"], "contact_id": theirs["contact_id"]}
    _, appointment = service.book(**wish(theirs))
    assert service.book(**wish(crossed, 14))[0] == 404
    upcoming = f"/contacts/{theirs['contact_id']}/appointments"
    assert service.ask("GET", upcoming, params={"org_id": mine["org_id"]}) == (200, {"appointments": []})
    day = {"date": at(9)[:10]}
    _, ours = service.ask("GET", f"/clinics/{mine['org_id']}/day", params=day)
    assert appointment["id"] not in {row["id"] for row in ours["appointments"]}
    _, own = service.ask("GET", f"/clinics/{theirs['org_id']}/day", params=day)
    assert appointment["id"] in {row["id"] for row in own["appointments"]}


# Reading


def test_upcoming_lists_what_is_ahead_and_not_cancelled(
    service: Running, database: Connection, patient: dict[str, str]
) -> None:
    ids = [service.book(**wish(patient, hours))[1]["id"] for hours in (12, 10, 8)]
    database.execute("UPDATE appointments SET status = 'cancelled' WHERE id = %s", [ids[1]])
    past = {**patient, "at": datetime.now(UTC) - timedelta(hours=1)}
    database.execute(
        "INSERT INTO appointments (org_id, contact_id, scheduled_at, duration_minutes)"
        " VALUES (%(org_id)s, %(contact_id)s, %(at)s, 30)",
        past,
    )
    path = f"/contacts/{patient['contact_id']}/appointments"
    status, answer = service.ask("GET", path, params={"org_id": patient["org_id"]})
    assert status == 200
    assert [row["id"] for row in answer["appointments"]] == [ids[2], ids[0]]
    assert datetime.fromisoformat(answer["appointments"][0]["scheduled_at"]) == datetime.fromisoformat(at(8))


def test_a_day_and_the_status_counts_are_the_tables(service: Running, database: Connection) -> None:
    row = database.execute(
        "SELECT org_id::text, (scheduled_at AT TIME ZONE 'UTC')::date::text AS day, count(*) AS size"
        " FROM appointments GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 1"
    ).fetchone()
    assert row
    _, answer = service.ask("GET", f"/clinics/{row['org_id']}/day", params={"date": row["day"]})
    assert len(answer["appointments"]) == row["size"] > 1
    counted = database.execute(
        "SELECT status, count(*) FROM appointments WHERE org_id = %s GROUP BY 1", [row["org_id"]]
    )
    expected = {line["status"]: line["count"] for line in counted}
    assert service.ask("GET", f"/clinics/{row['org_id']}/status") == (200, {"statuses": expected})


def test_an_unknown_clinic_is_empty(service: Running) -> None:
    assert service.ask("GET", f"/clinics/{uuid4()}/status") == (200, {"statuses": {}})
    day = service.ask("GET", f"/clinics/{uuid4()}/day?date=9999-12-31")
    assert day == (200, {"appointments": []})


# Invalid requests


@pytest.mark.parametrize(
    "change",
    [
        {"org_id": None},
        {"org_id": 7},
        {"org_id": ["x"]},
        {"contact_id": "not-a-uuid"},
        {"contact_id": "\0" * 32},
        {"contact_id": "'; DROP TABLE contacts; --"},
        {"scheduled_at": "tomorrow"},
        {"scheduled_at": 1893456000},
        {"scheduled_at": "2099-01-01T09:00:00"},
        {"scheduled_at": "2001-01-01T09:00:00Z"},
        {"scheduled_at": "0001-01-01T00:00:00+23:59"},
        {"scheduled_at": "9999-12-31T23:59:59-23:59"},
        {"scheduled_at": "infinity"},
        {"duration_minutes": 4},
        {"duration_minutes": 121},
        {"duration_minutes": 30.0},
        {"duration_minutes": "30"},
        {"duration_minutes": True},
        {"duration_minutes": 10**30},
        {"notes": "a\0b"},
        {"notes": "\ud800"},
        {"notes": 5},
        {"notes": "x" * 2001},
    ],
    ids=repr,
)
def test_a_field_that_cannot_be_meant_is_named(
    service: Running, database: Connection, patient: dict[str, str], change: dict[str, Any]
) -> None:
    status, answer = service.book(**wish(patient) | change)
    assert (status, answer["error"]) == (400, "malformed")
    assert next(iter(change)) in answer["detail"]
    assert booked(database, patient) == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b"[" * 10_000, b"1" * 10_000, b'{"org_id": NaN}'],
    ids=lambda body: repr(body[:8]),
)
def test_a_body_that_is_no_booking_is_refused(service: Running, body: bytes) -> None:
    status, answer = service.ask("POST", "/webhook/book", data=body)
    assert (status, answer["error"]) == (400, "malformed")


def test_a_huge_body_is_refused(service: Running) -> None:
    assert service.ask("POST", "/webhook/book", data=b" " * 1_000_000)[0] == 413


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/clinics/no/day?date=2030-01-31", 400),
        (f"/clinics/{NOBODY}/day", 400),
        (f"/clinics/{NOBODY}/day?date=2030-02-30", 400),
        (f"/clinics/{NOBODY}/day?date=99999-01-01", 400),
        ("/clinics/%00/status", 400),
        (f"/contacts/{NOBODY}/appointments", 400),
        (f"/contacts/%F0%9F/appointments?org_id={NOBODY}", 400),
        ("/nothing/here", 404),
        ("/webhook/book", 405),
    ],
)
def test_a_path_that_cannot_be_meant_is_refused(service: Running, path: str, status: int) -> None:
    answered, answer = service.ask("GET", path)
    assert answered == status
    assert set(answer) == {"error", "detail"}


# Failures of the database


@contextmanager
def held(server: EmbeddedServer, patient: dict[str, str]) -> Iterator[None]:
    """The contact's booking lock, held by someone else meanwhile."""
    with psycopg.connect(server.conninfo("booking_http")) as other:
        other.execute("SELECT pg_advisory_xact_lock(booking_lock(%(org_id)s, %(contact_id)s))", patient)
        yield


def active(database: Connection) -> int:
    """Statements that run in this database now, other than this one."""
    row = database.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row
    return int(row["count"])


@contextmanager
def under_way(service: Running, database: Connection, patient: dict[str, str]) -> Iterator[Future[Answer]]:
    """A booking that waits in the server for the held lock."""
    with ThreadPoolExecutor(1) as threads:
        booking = threads.submit(service.book, **wish(patient))
        wait_until(lambda: active(database) == 1)
        yield booking


@pytest.mark.slow
def test_a_timeout_stops_the_work_in_the_server(
    server: EmbeddedServer, database: Connection, patient: dict[str, str]
) -> None:
    with running(server.conninfo("booking_http"), "pooled", "--pool-size", "1") as service:
        with held(server, patient):
            with under_way(service, database, patient) as booking:
                status, answer = booking.result()
            assert (status, answer["error"]) == (504, "timeout")
            assert active(database) == 0
        assert booked(database, patient) == []
        assert service.book(**wish(patient))[0] == 201  # on the very same connection


def test_the_service_itself_cancels_what_takes_too_long(
    server: EmbeddedServer, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_for_it() -> None:
        handler = PooledHandler(server.conninfo("booking_http"), 1)
        await handler.open()
        while not handler._pool:
            await asyncio.sleep(0.01)
        # From here on the server's own limit is far longer than the service's.
        monkeypatch.setattr(handlers, "REQUEST_TIMEOUT", 0.2)
        with pytest.raises(TimeoutError):
            await handler.select("SELECT pg_sleep(60)", {})
        assert active(database) == 0
        await handler.close()

    asyncio.run(wait_for_it())


@pytest.mark.slow
def test_the_work_stops_even_if_the_service_was_killed_meanwhile(
    server: EmbeddedServer, database: Connection, patient: dict[str, str]
) -> None:
    with running(server.conninfo("booking_http"), "pooled") as service, held(server, patient):
        with under_way(service, database, patient) as booking:
            service.process.kill()
            assert isinstance(booking.exception(), aiohttp.ClientError)
        wait_until(lambda: active(database) == 0)
    assert booked(database, patient) == []


@pytest.mark.slow
def test_an_exhausted_pool_says_so(server: EmbeddedServer, database: Connection, patient: dict[str, str]) -> None:
    conninfo = server.conninfo("booking_http")
    with running(conninfo, "pooled", "--pool-size", "1") as service, held(server, patient):
        answers = service.book_all([wish(patient), wish(patient)])
    assert {(status, answer["error"]) for status, answer in answers} == {
        (504, "timeout"),
        (503, "unavailable"),
    }


@pytest.mark.process
@pytest.mark.parametrize("handler", HANDLERS)
def test_a_database_out_of_reach_is_503(tmp_path: Path, handler: str) -> None:
    conninfo = f"host='{tmp_path}' dbname=none user=perfkit"
    with running(conninfo, handler, healthy=False) as service:
        for status, answer in (
            service.book(**wish({"org_id": str(uuid4()), "contact_id": str(uuid4())})),
            service.ask("GET", "/health"),
        ):
            assert (status, answer["error"]) == (503, "unavailable")
            assert str(tmp_path) not in answer["detail"]


@pytest.mark.parametrize("handler", HANDLERS)
def test_sighup_makes_it_use_the_database_that_took_the_olds_place(server: EmbeddedServer, handler: str) -> None:
    make(server, "booking_reset")
    with running(server.conninfo("booking_reset"), handler) as service:
        databases.drop(server, "booking_reset")
        assert service.ask("GET", "/health")[0] == 503
        make(server, "booking_reset")
        service.process.send_signal(signal.SIGHUP)
        service.wait_healthy(resets=1)
        health = [service.ask("GET", "/health")[0] for _ in range(25)]  # every connection of the pool
        assert set(health) == {200}
    databases.drop(server, "booking_reset")


def test_sighup_gives_the_pool_new_connections(server: EmbeddedServer, database: Connection) -> None:
    def pids() -> set[int]:
        rows = database.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'pool'")
        return {row["pid"] for row in rows}

    with running(server.conninfo("booking_http") + " application_name=pool", "pooled") as service:
        before = pids()
        service.process.send_signal(signal.SIGHUP)
        service.wait_healthy(resets=1)
        assert len(before) == len(pids()) == 10
        assert not before & pids()


def test_health_asked_before_a_reset_is_not_taken_for_one_after_it() -> None:
    class Slow(BaselineHandler):
        async def select(self, sql: str, parameters: Mapping[str, Any]) -> list[Any]:
            await answer.wait()
            return []

    answer = asyncio.Event()

    async def ask() -> Any:
        service = BookingService(Slow(""))
        asked = asyncio.create_task(service.health(make_mocked_request("GET", "/health")))
        await asyncio.sleep(0)
        await service.reset()
        answer.set()
        return json.loads((await asked).text or "")

    assert asyncio.run(ask())["resets"] == 0


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_nobody_foresaw_is_500_without_internals(server: EmbeddedServer, handler: str) -> None:
    databases.create(server, "booking_empty")
    with running(server.conninfo("booking_empty"), handler) as service:
        status, answer = service.ask("GET", f"/clinics/{uuid4()}/status")
    assert status == 500
    assert answer == {"error": "internal", "detail": "the service failed; its log says why"}
    databases.drop(server, "booking_empty")


# The service as a process


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("how", ["stdin", "signal"])
def test_it_ends_at_once_and_leaves_no_connection(
    server: EmbeddedServer, database: Connection, patient: dict[str, str], handler: str, how: str
) -> None:
    conninfo = server.conninfo("booking_http") + " application_name=ending"
    left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ending'"
    with running(conninfo, handler) as service, held(server, patient):
        with under_way(service, database, patient):
            if how == "stdin":
                assert service.process.stdin
                service.process.stdin.close()
            else:
                service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(timeout=2) == 0
        wait_until(lambda: database.execute(left).fetchone() == {"count": 0})
    assert booked(database, patient) == []


@pytest.mark.process
def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            command("baseline", "--port", port),
            env={**os.environ, "PERFKIT_DATABASE": "dbname=none"},
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert port in line


@pytest.mark.process
@pytest.mark.parametrize(
    ("handler", "options", "word"),
    [
        ("baseline", [], "PERFKIT_DATABASE"),
        ("other", [], "--handler"),
        ("pooled", ["--pool-size", "0"], "--pool-size"),
    ],
)
def test_wrong_usage_is_said_without_a_traceback(handler: str, options: list[str], word: str) -> None:
    environment = {**os.environ, "PERFKIT_DATABASE": "" if word == "PERFKIT_DATABASE" else "dbname=none"}
    result = subprocess.run(command(handler, *options), env=environment, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2
    assert word in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
