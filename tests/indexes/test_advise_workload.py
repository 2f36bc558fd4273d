"""Advice for several queries at once, and where one index alone is no help; what hypothetical ones leave behind."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hosted import hosted
from scripts import run_all

from perfkit.app.session import Session, connect
from perfkit.app.specs import ConnectSpec
from perfkit.base.errors import PlanError
from perfkit.indexes.advice import Advice
from perfkit.indexes.search import index_advice
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer

# Loans come day by day, so that the rows of a day lie together; a reader's lie anywhere.
LIBRARY = """
CREATE TABLE readers (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE fines (id int PRIMARY KEY, reader_id int NOT NULL REFERENCES readers, note text NOT NULL);
CREATE TABLE holds (id int PRIMARY KEY, reader_id int NOT NULL REFERENCES readers, note text NOT NULL);
CREATE TABLE loans (
    id int PRIMARY KEY, branch int NOT NULL, reader int NOT NULL, day date NOT NULL, note text NOT NULL
);
INSERT INTO readers SELECT n, 'reader ' || n FROM generate_series(1, 5000) n;
INSERT INTO fines SELECT n, n % 4000 + 1, repeat('fine ', 10) FROM generate_series(1, 40000) n;
INSERT INTO holds SELECT n, n % 4000 + 1, repeat('hold ', 10) FROM generate_series(1, 40000) n;
INSERT INTO loans SELECT n, n % 37, n * 7919 % 10000, '2026-01-01'::date + n / 400, repeat('loan ', 10)
FROM generate_series(1, 100000) n;
"""
DAY = "SELECT l.id, r.name FROM loans l JOIN readers r ON r.id = l.reader WHERE branch = 7 AND day = '2026-04-01'"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["server", "server16"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    server: EmbeddedServer = request.getfixturevalue(request.param)
    path = tmp_path_factory.mktemp("library") / "tables.sql"
    path.write_text(LIBRARY)
    databases.create(server, "library")
    databases.prepare(server, "library", [path], {})
    databases.freeze(server, "library")
    yield Session(Database(server, "library"))
    databases.drop(server, "library")


def advised(library: Session, **queries: str) -> Advice:
    return index_advice(library, {name: (sql, None) for name, sql in queries.items()})


def titles(found: Advice) -> list[str]:
    return sorted(proposal.design.title for proposal in found.proposals)


def served(found: Advice) -> dict[str, set[str]]:
    """By index, the queries that it is said to serve."""
    return {p.design.title: {each.query for each in p.queries} for p in found.proposals}


def test_two_indexes_of_which_neither_alone_is_half_the_way_are_found_together(library: Session) -> None:
    found = advised(library, leave="DELETE FROM readers WHERE id = 4900")
    assert titles(found) == ["fines (reader_id)", "holds (reader_id)"]
    (each,) = found.proposals[0].queries
    assert each.before.pages and each.after.pages and each.before.pages > 20 * each.after.pages


def test_rows_that_lie_together_need_no_larger_index(library: Session) -> None:
    assert titles(advised(library, day=DAY)) == ["loans (day)"]


def test_a_query_that_is_not_helped_is_served_by_nothing_and_is_told_why(library: Session) -> None:
    found = advised(
        library,
        one="SELECT * FROM loans WHERE reader = 77",
        most="SELECT count(note) FROM loans WHERE reader < 9000",
        every="SELECT avg(branch) FROM loans",
    )
    assert served(found) == {"loans (reader)": {"one"}}
    assert [refusal.query for refusal in found.refusals] == ["most", "every"]
    because = found.refusals[0].because  # by the statistics of a sample
    assert "selects too many rows" in because and re.search(r"\b(89|9[01])(\.\d+)? % of loans", because), because


def test_one_index_serves_all_queries_that_begin_alike(library: Session) -> None:
    found = advised(
        library,
        one="SELECT * FROM loans WHERE reader = 77",
        latest="SELECT * FROM loans WHERE reader = 77 ORDER BY day DESC LIMIT 3",
        branch="SELECT note FROM loans WHERE reader = 77 AND branch = 3",
    )
    assert served(found) == {"loans (reader)": {"one", "latest", "branch"}}


def test_every_query_is_either_served_or_refused(library: Session) -> None:
    queries = {
        "day": DAY,
        "all": "SELECT * FROM loans",
        "one": "SELECT * FROM loans WHERE reader = 7",
        "none": "SELECT 1",
    }
    found = advised(library, **queries)
    told = set().union(*served(found).values()), {refusal.query for refusal in found.refusals}
    assert told == ({"day", "one"}, {"all", "none"})


FEED = """
CREATE TABLE feed (id int PRIMARY KEY, account int NOT NULL, created int NOT NULL, body text);
INSERT INTO feed SELECT n, n % 400, n * 2, repeat('x', 30) FROM generate_series(1, 100000) n;
CREATE INDEX feed_created ON feed (created); ANALYZE feed;
"""


@pytest.mark.parametrize(
    ("order", "keys"),
    [("created", "created"), ("created DESC", "created"), ("created DESC, id DESC", "created, id")],
)
def test_an_order_that_an_index_gives_already_follows_the_condition(library: Session, order: str, keys: str) -> None:
    with library.database.connect() as connection:
        run_all(connection, FEED.encode())
    try:
        found = advised(library, newest=f"SELECT * FROM feed WHERE account = 77 ORDER BY {order} LIMIT 20")
    finally:
        with library.database.connect() as connection:
            connection.execute("DROP TABLE feed")
    assert titles(found) == [f"feed (account, {keys})"]


# HypoPG


@pytest.mark.system
@pytest.mark.slow
def test_what_is_imagined_needs_no_more_than_reading_and_is_forgotten_whatever_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query: tuple[str, Any] = ("SELECT * FROM visits WHERE clinic = 7", None)
    with hosted() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.run(
            "CREATE TABLE visits AS SELECT n AS id, n % 2000 AS clinic FROM generate_series(1, 40000) n", user="shop"
        )
        server.run("GRANT SELECT ON visits TO clerk; GRANT USAGE ON SCHEMA extensions TO clerk")
        server.run("VACUUM ANALYZE visits", user="shop")
        confirmed = (server.name(port=server.pooled), server.name())
        with connect(ConnectSpec(server.db("clerk", port=server.pooled), confirm=confirmed, tls=False)) as session:
            with server.connect("shop") as owner, owner.transaction(force_rollback=True):
                owner.execute("LOCK TABLE visits IN EXCLUSIVE MODE")  # beside which only reading is possible
                assert session.whatif(query[0], "CREATE INDEX ON visits (clinic)").used
                assert titles(index_advice(session, {"one": query})) == ["visits (clinic)"]
            with pytest.raises(PlanError, match="does not exist"):
                session.whatif("SELECT nothing FROM visits", "CREATE INDEX ON visits (clinic)")
            for _ in range(3):  # on the backends that the pooler hands out again
                assert session.explain(query[0]).plan.root.kind == "Seq Scan"
        assert server.run("SELECT count(*) FROM pg_index WHERE indrelid = 'visits'::regclass") == [(0,)]
