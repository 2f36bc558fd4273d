"""Advice on indexes as a specification: a shop's queries, the index that each needs, and those that none helps."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import run_all

from perfkit import config as configuration
from perfkit.app.session import Session
from perfkit.base.errors import PlanError
from perfkit.base.resources import CHECKOUT
from perfkit.indexes.advice import Advice
from perfkit.indexes.search import index_advice
from perfkit.postgres import databases, sqltext
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.index_builds import build

EVERY = "SELECT avg(total) FROM orders"
CATALOGUE = "SELECT oid::text, relname, relpages FROM pg_class WHERE relkind IN ('r', 'i') AND oid >= 16384"
SCHEMA = CHECKOUT / "tests" / "support" / "second_schema.sql"


class Shop:
    """The shop's database, and what is advised for single queries in it."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.session.database.connect() as connection:
            return sorted(tuple(row.values()) for row in run_all(connection, sql.encode()))

    def advise(self, sql: str, parameters: Any = None) -> Advice:
        return index_advice(self.session, {"query": (sql, parameters)})

    def assert_index(self, sql: str, *titles: str, parameters: Any = None) -> Advice:
        found = self.advise(sql, parameters)
        assert sorted(p.design.title for p in found.proposals) == sorted(titles), found
        assert not found.refusals
        for proposal in found.proposals:
            assert proposal.evidence == "measured once" and proposal.bytes
            for served in proposal.queries:
                assert served.after.pages is not None and served.before.pages is not None
        return found

    def assert_no_index(self, sql: str, because: str, rewrite: str = "", parameters: Any = None) -> Advice:
        found = self.advise(sql, parameters)
        assert not found.proposals, found
        (refusal,) = found.refusals
        assert because in refusal.sentence, refusal
        assert refusal.rewrite == rewrite
        if rewrite and not parameters:
            assert self.rows(rewrite) == self.rows(sql) != []
        return found


@pytest.fixture(scope="module")
def shop(server: EmbeddedServer) -> Iterator[Shop]:
    yield from shop_on(server)


@pytest.fixture(scope="module")
def shop16(server16: EmbeddedServer) -> Iterator[Shop]:
    yield from shop_on(server16)


def shop_on(server: EmbeddedServer) -> Iterator[Shop]:
    databases.create(server, "shop")
    try:
        databases.prepare(server, "shop", [SCHEMA], {})
        databases.freeze(server, "shop")
        yield Shop(Session(Database(server, "shop")))
    finally:
        databases.drop(server, "shop")


# queries that an index helps


def test_the_set_is_the_text_of_a_file(shop: Shop) -> None:
    found = shop.advise("SELECT id FROM customers WHERE lower(email) = 'anna77@example.org'")
    lines = found.sql.splitlines()
    assert lines[0] == f"-- Indexes advised for {shop.session.name}; measured once."
    # Times follow the pages if the query takes long, as it may on a busy machine.
    assert re.fullmatch(r"-- query: [\d,]+ pages -> \d+ pages(, [\d.]+ m?s -> [\d.]+ m?s)?", lines[2]), lines
    assert lines[4] == "CREATE INDEX idx_customers_lower_email ON customers (lower(email));"
    assert lines[-1] == "ANALYZE customers;"
    assert len(sqltext.split(found.sql)) == 2


def test_a_name_that_is_taken_is_not_used_again(shop: Shop) -> None:
    with shop.session.database.connect() as connection:
        connection.execute("CREATE TABLE idx_orders_customer_id ()")
    try:
        (proposal,) = shop.advise("SELECT * FROM orders WHERE customer_id = 7").proposals
    finally:
        with shop.session.database.connect() as connection:
            connection.execute("DROP TABLE idx_orders_customer_id")
    assert proposal.name == "idx_orders_customer_id_2"


def test_advice_shows_itself_and_escapes_what_it_shows(shop: Shop) -> None:
    queries = {"<b>one</b>": ("SELECT * FROM orders WHERE customer_id = 7", None), "two": (EVERY, None)}
    found = index_advice(shop.session, queries)
    html, text = found._repr_html_(), repr(found)
    assert "&lt;b&gt;one" in html and "<b>one" not in html
    assert "CREATE INDEX idx_orders_customer_id ON orders (customer_id);" in text
    assert "No index will help: it reads every row" in text and "reads every row" in html


def test_nothing_of_a_trial_stays(shop: Shop) -> None:
    before = shop.rows(CATALOGUE)
    shop.assert_index("SELECT * FROM orders WHERE customer_id = 7", "orders (customer_id)")
    assert shop.rows(CATALOGUE) == before


def test_one_index_serves_several_queries(shop: Shop) -> None:
    found = index_advice(
        shop.session,
        {
            "all": ("SELECT * FROM orders WHERE customer_id = %s", [7]),
            "last": ("SELECT * FROM orders WHERE customer_id = %s ORDER BY placed_at DESC LIMIT 1", [7]),
            "since": ("SELECT * FROM orders WHERE customer_id = %s AND placed_at > %s", [7, "2024-06-01Z"]),
            "every": (EVERY, None),
        },
    )
    assert len(found.proposals) == 1 and found.proposals[0].design.keys[0] == "customer_id"
    assert {"all", "last", "since"} == {served.query for served in found.proposals[0].queries}
    assert [refusal.query for refusal in found.refusals] == ["every"]


def test_a_query_that_cannot_be_planned_is_named(shop: Shop) -> None:
    with pytest.raises(PlanError, match=r'^broken: EXPLAIN failed: relation "nowhere" does not exist$'):
        index_advice(shop.session, {"broken": ("SELECT * FROM nowhere", None)})


def test_equality_gets_an_index_on_its_column(shop: Shop) -> None:
    shop.assert_index("SELECT * FROM orders WHERE customer_id = 7", "orders (customer_id)")


def test_equality_comes_first_and_then_a_range(shop: Shop) -> None:
    shop.assert_index(
        "SELECT * FROM orders WHERE channel = 7 AND total >= 100 AND total < 110", "orders (channel, total)"
    )


def test_a_narrow_range_gets_an_index_by_itself(shop: Shop) -> None:
    shop.assert_index(
        "SELECT * FROM events WHERE at BETWEEN %(from)s AND %(to)s",
        "events (at)",
        parameters={"from": "2024-02-01Z", "to": "2024-02-01 06:00Z"},
    )


def test_the_first_rows_of_an_order_are_read_in_that_order(shop: Shop) -> None:
    shop.assert_index("SELECT * FROM orders ORDER BY total DESC LIMIT 10", "orders (total)")


def test_the_order_of_a_limit_follows_equality(shop: Shop) -> None:
    shop.assert_index(
        "SELECT id, note FROM orders WHERE channel = %s ORDER BY total DESC LIMIT 5",
        "orders (channel, total)",
        parameters=[7],
    )


def test_a_mixed_order_is_kept_as_it_is(shop: Shop) -> None:
    shop.assert_index(
        "SELECT * FROM orders WHERE channel = 7 ORDER BY total DESC, placed_at LIMIT 5",
        "orders (channel, total DESC, placed_at)",
    )


def test_few_rows_of_a_constant_get_a_partial_index(shop: Shop) -> None:
    shop.assert_index(
        "SELECT * FROM orders WHERE status = 'open' AND placed_at < %(until)s ORDER BY placed_at LIMIT 50",
        "orders (placed_at) WHERE status = 'open'",
        parameters={"until": "2024-06-01Z"},
    )


def test_what_is_missing_in_few_rows_gets_a_partial_index(shop: Shop) -> None:
    shop.assert_index("SELECT * FROM orders WHERE shipped_at IS NULL", "orders (shipped_at) WHERE shipped_at IS NULL")


def test_a_parameter_is_no_condition_of_a_partial_index(shop: Shop) -> None:
    shop.assert_index("SELECT * FROM orders WHERE status = %s", "orders (status)", parameters=["open"])


def test_a_condition_on_an_expression_gets_an_index_on_it(shop: Shop) -> None:
    shop.assert_index(
        "SELECT * FROM customers WHERE lower(email) = %(email)s",
        "customers (lower(email))",
        parameters={"email": "anna77@example.org"},
    )


def test_a_key_of_a_document_gets_an_index_on_the_expression(shop: Shop) -> None:
    shop.assert_index("SELECT * FROM events WHERE payload ->> 'device' = 'd42'", "events ((payload ->> 'device'))")


def test_the_beginning_of_a_text_gets_an_index_that_knows_patterns(shop: Shop) -> None:
    shop.assert_index("SELECT * FROM customers WHERE email LIKE 'Anna777%'", "customers (email text_pattern_ops)")
    shop.assert_index(
        "SELECT * FROM customers WHERE lower(email) LIKE 'anna777%'", "customers (lower(email) text_pattern_ops)"
    )


def test_a_narrow_list_of_columns_is_included_where_it_spares_the_table(shop: Shop) -> None:
    shop.assert_index("SELECT sum(total) FROM orders WHERE channel = 7", "orders (channel) INCLUDE (total)")


def test_a_column_of_few_values_is_rather_a_key_for_equal_keys_are_stored_once(shop: Shop) -> None:
    shop.assert_index("SELECT sum(quantity) FROM items WHERE product_id = 77", "items (product_id, quantity)")


def test_a_range_that_lies_together_in_the_table_needs_no_equality_before_it(shop: Shop) -> None:
    sql = "SELECT * FROM orders WHERE channel = 7 AND placed_at >= '2024-03-01Z' AND placed_at < '2024-03-08Z'"
    shop.assert_index(sql, "orders (placed_at)")


def test_a_partial_index_may_include_columns_too(shop: Shop) -> None:
    shop.assert_index(
        "SELECT count(*), max(placed_at) FROM orders WHERE status = 'open' AND channel = %s",
        "orders (channel) INCLUDE (placed_at) WHERE status = 'open'",
        parameters=[0],
    )


def test_a_list_of_values_is_equality(shop: Shop) -> None:
    shop.assert_index(
        "SELECT id, note FROM orders WHERE customer_id = ANY (%(ids)s)",
        "orders (customer_id)",
        parameters={"ids": [7, 70, 700]},
    )


def test_a_join_gets_an_index_on_the_inner_side(shop: Shop) -> None:
    shop.assert_index(
        "SELECT c.name, o.note FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.id IN (7, 8, 9)",
        "orders (customer_id)",
    )


def test_both_sides_of_a_join_may_need_one(shop: Shop) -> None:
    shop.assert_index(
        "SELECT o.note, c.name FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.email = %s",
        "customers (email)",
        "orders (customer_id)",
        parameters=["Anna77@Example.org"],
    )


def test_a_subquery_for_each_row_gets_an_index_on_what_it_compares(shop: Shop) -> None:
    shop.assert_index(
        "SELECT c.name FROM customers c WHERE c.id < 50 AND NOT EXISTS "
        "(SELECT FROM events e WHERE e.customer_id = c.id AND e.at > '2024-01-15Z')",
        "events (customer_id, at)",
    )


def test_deleting_a_parent_gets_an_index_for_its_foreign_key(shop: Shop) -> None:
    before = shop.rows("SELECT count(*) FROM reviews")
    found = shop.assert_index("DELETE FROM products WHERE id = 2995", "items (product_id)", "reviews (product_id)")
    assert all(p.queries[0].before.pages > 50 * p.queries[0].after.pages for p in found.proposals)
    assert shop.rows("SELECT count(*) FROM reviews") == before


def test_an_or_over_columns_of_one_table_gets_an_index_for_each(shop: Shop) -> None:
    shop.assert_index(
        "SELECT * FROM orders WHERE customer_id = 7 OR shipped_at = '2023-06-01Z'",
        "orders (customer_id)",
        "orders (shipped_at)",
    )


def test_the_largest_of_some_rows_is_the_last_of_an_index(shop: Shop) -> None:
    shop.assert_index("SELECT max(total) FROM orders WHERE channel = 7", "orders (channel, total)")


# queries that none helps


def test_a_full_aggregate_reads_every_row(shop: Shop) -> None:
    shop.assert_no_index("SELECT avg(total) FROM orders", because="reads every row")


def test_a_tiny_table_is_read_as_quickly(shop: Shop) -> None:
    found = shop.assert_no_index("SELECT * FROM countries WHERE name = 'Country 7'", because="countries is tiny")
    (row,) = shop.rows("SELECT count(*), pg_relation_size('countries') / 8192 FROM countries")
    assert "reading the {} rows in its {} page".format(*row) in found.refusals[0].because


def test_a_condition_that_most_rows_meet_needs_most_pages(shop: Shop) -> None:
    found = shop.assert_no_index("SELECT * FROM orders WHERE status = 'delivered'", because="selects too many rows")
    assert "94.9 % of orders" in found.refusals[0].because


def test_a_day_of_a_time_is_written_as_a_range(shop: Shop) -> None:
    shop.assert_no_index(
        "SELECT id FROM orders o WHERE channel >= 0 AND o.placed_at::date = '2024-03-07' ORDER BY id",
        because="compares the day of placed_at",
        rewrite="SELECT id FROM orders o WHERE channel >= 0 AND o.placed_at::date = '2024-03-07' AND "
        "o.placed_at >= '2024-03-06' AND o.placed_at < '2024-03-09' ORDER BY id",
    )


def test_a_month_given_by_a_parameter_may_not_begin_one_and_is_not_rewritten(shop: Shop) -> None:
    shop.assert_no_index(
        "SELECT id FROM events WHERE date_trunc('month', at) = %(month)s::timestamptz",
        because="(at >= $1 AND at < $1 + interval '1 month') returns the same rows only if $1 begins a month",
        parameters={"month": "2024-02-01Z"},
    )


def test_a_calculation_that_can_overflow_gets_an_index_on_itself(shop: Shop) -> None:
    shop.assert_index("SELECT note FROM orders WHERE id + 100 = 1000", "orders ((id + 100))")


def test_a_cast_of_the_column_is_a_cast_of_the_value(shop: Shop) -> None:
    shop.assert_no_index(
        "SELECT note FROM orders WHERE id::text = '77'",
        because="compares id cast to text",
        rewrite="SELECT note FROM orders WHERE id = 77",
    )


def test_a_wider_parameter_is_compared_with_the_column_itself(shop: Shop) -> None:
    shop.assert_no_index(
        "SELECT note FROM orders WHERE id::bigint = %(id)s::bigint",
        because="the index orders_pkey serves id = $1::bigint",
        rewrite="SELECT note FROM orders WHERE id = (%(id)s::bigint)::bigint",
        parameters={"id": 77},
    )


@pytest.mark.parametrize("value", [77, None])
def test_a_parameter_that_may_be_null_is_compared_by_equality_or_as_null(shop: Shop, value: int | None) -> None:
    sql = "SELECT id FROM orders WHERE id IS NOT DISTINCT FROM %(id)s::int"
    found = shop.advise(sql, {"id": value})
    new = found.refusals[0].rewrite if found.refusals else ""
    assert value is None or new.endswith("WHERE (id = (%(id)s::int) OR (id IS NULL AND (%(id)s::int) IS NULL))")
    with shop.session.database.connect() as connection:
        rows = [list(connection.execute(one.encode(), {"id": value})) for one in (sql, new or sql)]
    assert rows[0] == rows[1] and len(rows[0]) == (value is not None)


def test_a_pattern_that_begins_with_anything_cannot_be_found(shop: Shop) -> None:
    shop.assert_no_index("SELECT * FROM orders WHERE note LIKE '%7777%'", because="may begin with anything")


def test_a_pattern_that_ignores_case_is_written_with_lower(shop: Shop) -> None:
    shop.assert_no_index(
        "SELECT id FROM customers WHERE email ILIKE 'anna77%'",
        because="CREATE INDEX ON customers (lower(email) text_pattern_ops)",
        rewrite="SELECT id FROM customers WHERE lower(email) LIKE 'anna77%'",
    )


def test_what_an_index_finds_already_needs_no_other(shop: Shop) -> None:
    shop.assert_no_index("SELECT * FROM orders WHERE id = 7", because="orders_pkey already finds its 1 row in 4 pages")


def test_an_or_over_two_tables_is_a_union(shop: Shop) -> None:
    shop.assert_no_index(
        "SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id WHERE o.id = 77 OR c.name = 'Name 7'",
        because="compares columns of several tables (c, o)",
        rewrite="SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id WHERE o.id = 77\nUNION ALL\n"
        "SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id WHERE c.name = 'Name 7' AND (o.id = 77) "
        "IS NOT TRUE",
    )


def test_a_limit_that_is_soon_reached_stops_early(shop: Shop) -> None:
    shop.assert_no_index("SELECT * FROM orders WHERE status = 'delivered' LIMIT 20", because="the LIMIT stops it")


def test_statistics_are_made_first(shop: Shop) -> None:
    with shop.session.database.connect() as connection:
        connection.execute("CREATE TABLE fresh AS SELECT n, n % 2 AS half FROM generate_series(1, 50000) n")
    try:
        found = shop.assert_no_index("SELECT * FROM fresh WHERE half = 1", because="selects too many rows")
        assert found.limitations[0].startswith("fresh has no statistics yet: analysed here first")
    finally:
        with shop.session.database.connect() as connection:
            connection.execute("DROP TABLE fresh")


def test_an_older_server_is_advised_alike(shop16: Shop) -> None:
    shop16.assert_index(
        "SELECT * FROM orders WHERE channel = 7 AND total >= 100 AND total < 110", "orders (channel, total)"
    )
    shop16.assert_index(
        "SELECT * FROM customers WHERE lower(email) = %(email)s",
        "customers (lower(email))",
        parameters={"email": "anna77@example.org"},
    )
    shop16.assert_no_index(EVERY, because="reads every row")
    shop16.assert_no_index(
        "SELECT note FROM orders WHERE id::text = '77'",
        because="the index orders_pkey serves id = 77",
        rewrite="SELECT note FROM orders WHERE id = 77",
    )


# the booking system


@pytest.mark.slow
def test_the_booking_system_needs_few_small_indexes_of_the_seven(server_home: Path, server: EmbeddedServer) -> None:
    os.environ["PERFKIT_HOME"] = str(server_home)
    booking = configuration.load()
    assert booking.database
    databases.create(server, "advised")
    try:
        databases.prepare(server, "advised", booking.database.prepare, booking.database.scales["small"])
        databases.freeze(server, "advised")
        queries = {}
        for query in booking.query:
            rows = databases.fetched(server, "advised", booking.parameters[query.parameters], 10)
            queries[query.name] = (sqltext.read(query.file), rows[0])
        databases.create(server, "seven", "advised")
        whole = sum(built.bytes for built in build(server, "seven", CHECKOUT / "sql/indexes/performance_indexes.sql"))
        found = index_advice(Session(Database(server, "advised")), queries, max_bytes=whole / 2)
    finally:
        databases.drop(server, "seven")
        databases.drop(server, "advised")
    assert 1 <= len(found.proposals) <= 3, found
    assert {proposal.design.table for proposal in found.proposals} == {"appointments"}
    assert not found.refusals, found
    assert found.bytes <= whole / 2, found
