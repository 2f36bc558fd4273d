"""The booking system's data, its index set and its queries, on a real server."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from scripts import run_all

from perfkit.base.resources import CHECKOUT
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

SQL = CHECKOUT / "sql"
TABLES = ["organizations", "contacts", "appointments"]
SEED = {"organizations": 20, "contacts": 3000, "appointments": 15_000}
MIDDLE = {"organizations": 100, "contacts": 15_000, "appointments": 150_000}
INDEXES = {
    "idx_appointments_org_contact_date",
    "idx_appointments_org_id",
    "idx_appointments_contact_id",
    "idx_appointments_scheduled_at",
    "idx_contacts_org_id_id",
    "idx_organizations_id",
    "idx_appointments_org_status",
}

Connection = psycopg.Connection[Any]


def build(server: EmbeddedServer, name: str, scale: dict[str, int]) -> None:
    databases.create(server, name)
    files = [SQL / "booking" / f"{step}.sql" for step in ("schema", "data", "constraints")]
    databases.prepare(server, name, files, scale)
    databases.freeze(server, name)


@pytest.fixture(scope="module")
def seed(server: EmbeddedServer) -> Iterator[Connection]:
    """The data at its smallest scale; do not change it."""
    build(server, "booking_seed", SEED)
    with databases.connected(server, "booking_seed") as connection:
        yield connection
    databases.drop(server, "booking_seed")


@pytest.fixture(scope="module")
def indexed(server: EmbeddedServer) -> Iterator[Connection]:
    """More data, with the index set."""
    build(server, "booking_indexed", MIDDLE)
    databases.prepare(server, "booking_indexed", [SQL / "indexes" / "performance_indexes.sql"], {})
    with databases.connected(server, "booking_indexed") as connection:
        yield connection
    databases.drop(server, "booking_indexed")


def one(connection: Connection, sql: str) -> Any:
    """The only value of the only row."""
    (row,) = connection.execute(sql).fetchall()
    (value,) = row.values()
    return value


def read(name: str) -> str:
    return (SQL / name).read_text(encoding="utf-8")


def rows(connection: Connection, name: str, limit: int) -> list[dict[str, Any]]:
    return connection.execute(read(f"parameters/{name}.sql").replace(":rows", str(limit))).fetchall()


def index_names(connection: Connection) -> set[str]:
    found = connection.execute("SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")
    return {row["indexname"] for row in found}


def test_the_counts_are_those_asked_for(seed: Connection) -> None:
    assert {table: one(seed, f"SELECT count(*) FROM {table}") for table in TABLES} == SEED


def test_the_seed_scale_has_the_size_of_the_original_table(seed: Connection) -> None:
    assert 2.1e6 < one(seed, "SELECT pg_relation_size('appointments')") < 2.4e6


def test_the_same_rows_come_every_time(server: EmbeddedServer, seed: Connection) -> None:
    digest = "SELECT md5(string_agg(a::text, '' ORDER BY id)) FROM appointments AS a"
    build(server, "booking_again", SEED)
    with databases.connected(server, "booking_again") as again:
        assert one(again, digest) == one(seed, digest)
    databases.drop(server, "booking_again")


def test_clinics_differ_in_size_and_none_is_empty(seed: Connection) -> None:
    sizes = seed.execute("SELECT count(*) AS size FROM appointments GROUP BY org_id ORDER BY 1 DESC").fetchall()
    assert len(sizes) == SEED["organizations"]
    assert 0.05 < sizes[0]["size"] / SEED["appointments"] < 0.20
    assert sizes[0]["size"] > 3 * sizes[-1]["size"]


def test_appointments_belong_to_their_contacts_clinic(seed: Connection) -> None:
    wrong = "FROM appointments AS a JOIN contacts AS c ON c.id = a.contact_id WHERE c.org_id <> a.org_id"
    assert one(seed, f"SELECT count(*) {wrong}") == 0


def test_times_are_past_today_and_ahead_on_working_days_in_working_hours(seed: Connection) -> None:
    day = "(scheduled_at AT TIME ZONE 'UTC')::date - (now() AT TIME ZONE 'UTC')::date"
    share = f"SELECT avg(({day} {{}} 0)::integer)::float8 FROM appointments"
    assert 0.65 < one(seed, share.format("<")) < 0.75
    assert 0 < one(seed, share.format("=")) < 0.02
    assert 0.25 < one(seed, share.format(">")) < 0.35
    local = "scheduled_at AT TIME ZONE 'UTC'"
    assert one(seed, f"SELECT min(extract(hour FROM {local})) FROM appointments") == 8
    assert one(seed, f"SELECT max(extract(hour FROM {local})) FROM appointments") == 17
    assert one(seed, f"SELECT avg((extract(isodow FROM {local}) > 5)::integer) FROM appointments") < 0.1


def test_statuses_fit_the_time(seed: Connection) -> None:
    found = "SELECT DISTINCT status FROM appointments WHERE scheduled_at {} date_trunc('day', now(), 'UTC')"
    past = {row["status"] for row in seed.execute(found.format("<"))}
    ahead = {row["status"] for row in seed.execute(found.format(">="))}
    assert past == {"completed", "cancelled", "no_show"}
    assert ahead == {"booked", "confirmed", "cancelled"}


def test_before_the_index_set_there_are_only_primary_keys(seed: Connection) -> None:
    assert index_names(seed) == {f"{table}_pkey" for table in TABLES}


@pytest.mark.parametrize(
    "change",
    [
        "duration_minutes = 4",
        "duration_minutes = 121",
        "status = 'unheard of'",
        "contact_id = gen_random_uuid()",
    ],
)
def test_the_rules_hold(seed: Connection, change: str) -> None:
    row = "SELECT id FROM appointments LIMIT 1"
    with pytest.raises((psycopg.IntegrityError, psycopg.errors.InvalidTextRepresentation)):
        seed.execute(f"UPDATE appointments SET {change} WHERE id = ({row})")


def test_the_index_set_has_its_seven_valid_names(indexed: Connection) -> None:
    valid = indexed.execute("SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indisvalid")
    assert index_names(indexed) == {f"{table}_pkey" for table in TABLES} | INDEXES
    assert {row["name"] for row in valid} >= INDEXES


def test_the_rollback_takes_exactly_them_away(indexed: Connection) -> None:
    with indexed.transaction(force_rollback=True):
        run_all(indexed, read("indexes/performance_indexes_rollback.sql"))
        assert index_names(indexed) == {f"{table}_pkey" for table in TABLES}


def plan(connection: Connection, query: str, parameters: dict[str, Any]) -> str:
    explain = connection.execute(f"EXPLAIN (COSTS OFF) {read(f'queries/{query}.sql')}", parameters)
    return "\n".join(row["QUERY PLAN"] for row in explain)


@pytest.mark.parametrize(
    ("query", "source", "index"),
    [
        ("conflict_check", "bookings", "Index Scan using idx_appointments_org_contact_date"),
        ("upcoming_for_contact", "contacts", "Index Scan using idx_appointments_org_contact_date"),
        ("clinic_day", "clinics", "idx_appointments_scheduled_at"),
        ("status_counts", "clinics", "Index Only Scan using idx_appointments_org_status"),
    ],
)
def test_each_query_reads_the_table_before_and_an_index_after(
    seed: Connection, indexed: Connection, query: str, source: str, index: str
) -> None:
    assert all("Seq Scan on appointments" in plan(seed, query, row) for row in rows(seed, source, 20))
    after = Counter(index in plan(indexed, query, row) for row in rows(indexed, source, 50))
    assert after[True] >= 45  # a quiet day may make another index as good


def test_the_conflict_check_is_bounded_by_all_three_columns(indexed: Connection) -> None:
    text = plan(indexed, "conflict_check", rows(indexed, "bookings", 1)[0])
    (condition,) = (line for line in text.splitlines() if "Index Cond" in line)
    for part in ("org_id =", "contact_id =", "scheduled_at >", "scheduled_at <"):
        assert part in condition


def test_parameter_rows_are_plain_values_in_a_fixed_order(seed: Connection) -> None:
    for name, columns in (
        ("bookings", {"org_id", "contact_id", "scheduled_at", "duration_minutes"}),
        ("contacts", {"org_id", "contact_id"}),
        ("clinics", {"org_id", "day"}),
    ):
        found = rows(seed, name, 40)
        assert 35 <= len(found) <= 40
        assert set(found[0]) == columns
        assert found == rows(seed, name, 80)[: len(found)]


def test_larger_clinics_come_more_often_in_the_parameters(seed: Connection) -> None:
    clinics = Counter(row["org_id"] for row in rows(seed, "clinics", 2000))
    largest = one(seed, "SELECT mode() WITHIN GROUP (ORDER BY org_id) FROM appointments")
    assert clinics[largest] > 2000 / SEED["organizations"]


def test_no_booking_meets_the_data_or_another_booking(seed: Connection) -> None:
    book = (
        "SELECT outcome FROM book_appointment(%(org_id)s, %(contact_id)s, %(scheduled_at)s, %(duration_minutes)s, NULL)"
    )
    with seed.transaction(force_rollback=True):
        outcomes = Counter(seed.execute(book, row).fetchone()["outcome"] for row in rows(seed, "bookings", 1000))
    assert set(outcomes) == {"booked"}
