"""Slow statements from pg_stat_statements: what was counted, between two looks too, in any of its versions."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import hosted
import psycopg
import pytest
from psycopg.rows import dict_row

from perfkit.base.errors import ServerError, UsageError
from perfkit.postgres.catalog import Connection
from perfkit.postgres.commands import Extended
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.slow.statements import SlowQueries, SlowStatement, Snapshot, between, snapshot

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FIND = "SELECT count(*) FROM sales.orders WHERE customer_id = $1"


def entry(key: str = "1", calls: int = 10, ms: float = 100.0, **more: Any) -> dict[str, Any]:
    given = {"user": 7, "id": key, "text": f"SELECT {key}", "toplevel": True, "calls": calls, "total_ms": ms}
    counted = {"rows": calls, "buffers": 5 * calls, "temp_bytes": 0, "wal_bytes": 0, "since": None}
    return {**given, **counted, **more}


def look(*entries: dict[str, Any], minutes: int = 0, **more: Any) -> Snapshot:
    told = {(e["user"], e["id"], e["toplevel"]): e for e in entries}
    given = {"unread": {}, "reset": NOON - timedelta(days=1), "dropped": 0, "most": "5000", **more}
    return Snapshot("pg_stat_statements of here", NOON + timedelta(minutes=minutes), told, **given)


# Two looks


def test_without_a_first_look_it_is_everything_since_the_reset_the_largest_total_first() -> None:
    found = between(None, look(entry("1", 10, 100), entry("2", 4, 900)))
    assert [s.id for s in found.statements] == ["2", "1"]
    assert (found.since, found.until) == (NOON - timedelta(days=1), NOON)
    assert found.statements[0].mean_ms == 225 and found.share(found.statements[0]) == 0.9


def test_between_two_looks_only_what_came_in_between_counts() -> None:
    before = look(entry("1", 10, 100), entry("2", 4, 900))
    found = between(before, look(entry("1", 13, 160), entry("2", 4, 900), entry("3", 1, 5), minutes=2))
    assert [(s.id, s.calls, s.total_ms, s.rows, s.buffers) for s in found.statements] == [
        ("1", 3, 60, 3, 15),
        ("3", 1, 5, 1, 5),
    ]
    assert (found.since, found.until) == (NOON, NOON + timedelta(minutes=2))
    assert not found.unread and not found.notes


def test_an_entry_that_began_anew_counts_with_what_it_shows_and_that_is_said() -> None:
    found = between(look(entry("1", 10, 100)), look(entry("1", 3, 20)))
    assert [(s.calls, s.total_ms) for s in found.statements] == [(3, 20)]
    assert sum(found.unread.values()) == 1


def test_an_entry_that_began_anew_and_has_more_calls_by_now_is_known_by_its_beginning() -> None:
    before, after = entry("1", 10, 100, since=NOON), entry("1", 30, 200, since=NOON + timedelta(seconds=1))
    found = between(look(before), look(after))
    assert [(s.calls, s.first) for s in found.statements] == [(30, after["since"])]
    assert sum(found.unread.values()) == 1


def test_an_entry_that_is_gone_is_counted_as_unread() -> None:
    found = between(look(entry("1"), entry("2")), look(entry("2")))
    assert not found.statements
    assert found.unread == {"entries were dropped or reset between the two snapshots (counted in part)": 1}


def test_a_reset_between_the_looks_is_said_and_the_time_begins_there() -> None:
    reset = NOON + timedelta(seconds=30)
    found = between(look(entry("1", 10, 100), entry("2")), look(entry("1", 12, 90), reset=reset, minutes=1))
    assert [(s.id, s.calls) for s in found.statements] == [("1", 12)]
    assert found.since == reset and "reset at 12:00:30" in found.notes[0]
    assert not found.unread


def test_entries_dropped_to_make_room_are_said() -> None:
    found = between(look(entry(), dropped=3), look(entry(calls=11), dropped=8))
    [note] = found.notes
    assert "5 times" in note and "max = 5000" in note
    assert between(look(entry(), dropped=3), look(entry(calls=11), dropped=3)).notes == ()


def test_one_statement_of_several_roles_is_one() -> None:
    found = between(None, look(entry(), entry(user=8, calls=2, ms=50), entry(user=9, calls=1, ms=1, wal_bytes=None)))
    [only] = found.statements
    assert (only.calls, only.total_ms, only.rows, only.wal_bytes) == (13, 151, 13, None)


def test_statements_inside_functions_are_there_and_it_is_said_that_they_count_twice() -> None:
    found = between(None, look(entry(), entry("2", toplevel=False)))
    assert len(found.statements) == 2 and "inside a function" in found.notes[0]


def test_two_looks_at_two_databases_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="two snapshots of one database"):
        between(replace(look(), source="there"), look())


# Servers without it


@pytest.mark.parametrize("name", ["server", "server16"])
def test_without_the_extension_one_line_says_what_to_do(name: str, request: pytest.FixtureRequest) -> None:
    server: EmbeddedServer = request.getfixturevalue(name)
    with server.connect("postgres") as connection, pytest.raises(ServerError) as raised:
        snapshot(connection, "embedded\x1b[31m")
    message = str(raised.value)
    assert message.startswith("embedded⟨1B⟩[31m: no pg_stat_statements in this database; expected CREATE EXTENSION")
    assert "\n" not in message


# Debian's PostgreSQL


@pytest.fixture(scope="module")
def system() -> Iterator[hosted.Hosted]:
    with hosted.hosted() as running:
        running.run('CREATE ROLE "evil""; DROP" LOGIN', "GRANT USAGE ON SCHEMA extensions TO PUBLIC")
        yield running


@pytest.fixture
def fresh(system: hosted.Hosted) -> hosted.Hosted:
    """Nothing counted yet."""
    system.run("SELECT extensions.pg_stat_statements_reset()")
    return system


@contextmanager
def looking(system: hosted.Hosted, user: str = "postgres", dbname: str = "shop") -> Iterator[Connection]:
    passwords = system.environment["PGPASSFILE"]
    where = system.db(user, dbname)
    with psycopg.connect(where, autocommit=True, row_factory=dict_row, passfile=passwords) as connection:
        yield connection


def seen(system: hosted.Hosted, before: Snapshot | None = None, user: str = "postgres") -> SlowQueries:
    with looking(system, user) as connection:
        return between(before, snapshot(connection, "the shop"))


def first_look(system: hosted.Hosted, user: str = "postgres") -> Snapshot:
    with looking(system, user) as connection:
        return snapshot(connection, "the shop")


def one(found: SlowQueries, part: str) -> SlowStatement:
    [only] = [statement for statement in found.statements if part in statement.text]
    return only


def find(system: hosted.Hosted, times: int, user: str = "shop") -> None:
    system.run(*[FIND.replace("$1", str(n)) for n in range(times)], user=user)


@pytest.mark.system
def test_what_ran_between_two_looks_is_counted_exactly(fresh: hosted.Hosted) -> None:
    find(fresh, 3)
    before = first_look(fresh)
    find(fresh, 5)
    found = seen(fresh, before)
    statement = one(found, "sales.orders")
    assert (statement.text, statement.calls, statement.rows) == (FIND, 5, 5)
    assert statement.buffers and statement.buffers % 5 == 0 and statement.total_ms > 0
    assert statement.p95_ms is None and statement.temp_bytes == 0
    assert found.source == "pg_stat_statements of the shop" and found.since == before.at
    assert one(seen(fresh), "sales.orders").calls == 8


@pytest.mark.system
def test_wal_and_temporary_files_are_counted_in_bytes(fresh: hosted.Hosted) -> None:
    fresh.run("SET work_mem = '64kB'", "SELECT count(*) FROM (SELECT n FROM generate_series(1, 30000) n ORDER BY -n) s")
    fresh.run(
        "INSERT INTO customers SELECT n, 'x' FROM generate_series(1001, 1100) n",
        "DELETE FROM customers WHERE id > 1000",
    )
    found = seen(fresh)
    sort, insert = one(found, "ORDER BY"), one(found, "INSERT INTO customers")
    assert sort.temp_bytes and sort.temp_bytes % 8192 == 0 and sort.wal_bytes == 0
    assert insert.rows == 100 and insert.wal_bytes and insert.wal_bytes > 100 * 30


@pytest.mark.system
def test_perfkits_own_statements_are_left_out(fresh: hosted.Hosted) -> None:
    find(fresh, 1)
    fresh.run(f"EXPLAIN {FIND.replace('$1', '1')}")
    for _ in range(3):
        found = seen(fresh)
    assert {s.text for s in found.statements} == {FIND, "SELECT extensions.pg_stat_statements_reset()"}
    own = fresh.run("SELECT query FROM extensions.pg_stat_statements WHERE query LIKE '--%'")
    assert len(own) >= 3, "they are there, with their first lines"


@pytest.mark.system
def test_other_databases_are_left_out(fresh: hosted.Hosted) -> None:
    fresh.run("SELECT 'elsewhere', 1, 2, 3", dbname="bare")
    assert not [s for s in seen(fresh).statements if "$4" in s.text]


@pytest.mark.system
def test_texts_of_other_roles_are_counted_with_the_grant_that_shows_them(fresh: hosted.Hosted) -> None:
    find(fresh, 2)
    fresh.run("SELECT name FROM customers WHERE id = 1", user="clerk")
    found = seen(fresh, user="clerk")
    assert "customers" in " ".join(s.text for s in found.statements)
    assert not [s for s in found.statements if "insufficient" in s.text or "orders" in s.text]
    [(reason, count)] = found.unread.items()
    assert "GRANT pg_read_all_stats TO clerk" in reason and count >= 2
    fresh.run("GRANT pg_read_all_stats TO clerk")
    try:
        assert one(seen(fresh, user="clerk"), "sales.orders").calls == 2
        assert not seen(fresh, user="clerk").unread
    finally:
        fresh.run("REVOKE pg_read_all_stats FROM clerk")


@pytest.mark.system
def test_a_hostile_role_name_is_quoted_in_the_grant(fresh: hosted.Hosted) -> None:
    find(fresh, 1)
    with looking(fresh) as connection:
        connection.execute('SET ROLE "evil""; DROP"')
        found = between(None, snapshot(connection))
    assert 'GRANT pg_read_all_stats TO "evil""; DROP" shows them' in next(iter(found.unread))


@pytest.mark.system
def test_a_hostile_text_is_kept_as_it_is(fresh: hosted.Hosted) -> None:
    text = "SELECT name AS \"</pre><script>\x1b[31m\" FROM customers WHERE name = '%s :schema {}' /* \u202e */"
    fresh.run(text)
    assert one(seen(fresh), "<script>").text == text.replace("'%s :schema {}'", "$1")


@pytest.mark.system
@pytest.mark.parametrize("take", ["USAGE ON SCHEMA extensions", "SELECT ON extensions.pg_stat_statements"])
def test_without_a_privilege_one_line_says_which(fresh: hosted.Hosted, take: str) -> None:
    fresh.run(f"REVOKE {take} FROM PUBLIC")
    try:
        with pytest.raises(ServerError) as raised:
            seen(fresh, user="clerk")
        assert str(raised.value).endswith(f"expected GRANT {take} TO clerk")
    finally:
        fresh.run(f"GRANT {take} TO PUBLIC")


@pytest.mark.system
@pytest.mark.parametrize("version", ["1.4", "1.7", "1.8", "1.9", "1.10"])
def test_any_version_of_it_in_any_schema_is_read(fresh: hosted.Hosted, version: str) -> None:
    schema = '"e\'x"";t :total_ms %s"'
    fresh.run(
        f"CREATE SCHEMA {schema}",
        f"CREATE EXTENSION pg_stat_statements SCHEMA {schema} VERSION '{version}'",
        dbname="bare",
    )
    try:
        fresh.run(
            "CREATE TABLE t AS SELECT 1 AS a",
            "SELECT a FROM t WHERE a = 3",
            "SELECT a FROM t WHERE a = 4",
            dbname="bare",
        )
        with looking(fresh, dbname="bare") as connection:
            found = between(None, snapshot(connection))
        statement = one(found, "WHERE a =")
        assert (statement.calls, statement.rows) == (2, 0) and statement.total_ms > 0 and statement.buffers == 2
        assert (statement.wal_bytes is None) == (version in ("1.4", "1.7"))
        assert (found.since is None) == (version in ("1.4", "1.7", "1.8"))
        assert one(found, "CREATE TABLE").wal_bytes != 0
    finally:
        fresh.run("DROP TABLE t", f"DROP SCHEMA {schema} CASCADE", dbname="bare")


@pytest.mark.system
def test_a_reset_between_two_looks_is_noticed(fresh: hosted.Hosted) -> None:
    find(fresh, 3)
    before = first_look(fresh)
    fresh.run("SELECT extensions.pg_stat_statements_reset()")
    find(fresh, 4)
    found = seen(fresh, before)
    assert one(found, "sales.orders").calls == 4
    assert "was reset at" in found.notes[0] and found.since and found.since > before.at


@pytest.mark.system
def test_one_entry_that_was_reset_is_noticed_too(fresh: hosted.Hosted) -> None:
    find(fresh, 3)
    before = first_look(fresh)
    where = "WHERE query LIKE '%sales.orders WHERE%'"
    fresh.run(f"SELECT extensions.pg_stat_statements_reset(0, 0, queryid) FROM extensions.pg_stat_statements {where}")
    find(fresh, 1)
    found = seen(fresh, before)
    assert one(found, "sales.orders WHERE").calls == 1
    assert sum(found.unread.values()) == 1


def vary(system: hosted.Hosted, number: int) -> None:
    """So many statements that differ."""
    shape = "replace(replace(n::bit(14)::text, '0', ' + a'), '1', ' - a')"
    loop = f"FOR n IN 1 .. {number} LOOP EXECUTE 'SELECT a' || {shape} || ' FROM (VALUES (1)) v (a)'; END LOOP;"
    system.run("SET pg_stat_statements.track = 'all'", f"DO $$ BEGIN {loop} END $$")


@pytest.mark.system
def test_five_thousand_entries_come_in_one_query(fresh: hosted.Hosted) -> None:
    vary(fresh, 4950)
    sent: list[str] = []

    class Counted(Extended[dict[str, Any]]):
        def execute(self, query: Any, *args: Any, **more: Any) -> Any:
            sent.append(query.decode())
            return super().execute(query, *args, **more)

    with looking(fresh) as connection:
        connection.cursor_factory = Counted
        start = time.perf_counter()
        found = between(None, snapshot(connection))
        took = time.perf_counter() - start
    sys.stdout.write(f"{len(found.statements):,} statements in {took:.2f} s\n")
    assert len(found.statements) >= 4950
    assert len([query for query in sent if ".pg_stat_statements\n" in query]) == 1 and len(sent) == 4
    assert "inside a function" in found.notes[0]


@pytest.mark.system
def test_entries_that_made_room_for_others_are_noticed(fresh: hosted.Hosted) -> None:
    find(fresh, 1)
    vary(fresh, 4000)
    before = first_look(fresh)
    vary(fresh, 6000)
    found = seen(fresh, before)
    assert "to make room (pg_stat_statements.max = 5000)" in found.notes[0]
    assert sum(found.unread.values()) > 0
