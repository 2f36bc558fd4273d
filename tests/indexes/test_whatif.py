"""What-if: a statement's plan with an index that is not there, and nothing of it afterwards."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hosted import Hosted, hosted
from scripts import run_all

from perfkit.app.session import Session, connect
from perfkit.app.specs import ConnectSpec
from perfkit.base.errors import PlanError, UsageError
from perfkit.base.resources import CHECKOUT
from perfkit.explain import capture, plan
from perfkit.indexes import trial
from perfkit.indexes.search import index_advice
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer

TABLES = """
CREATE TABLE visits (id int PRIMARY KEY, clinic int NOT NULL, day int NOT NULL, note text NOT NULL);
INSERT INTO visits SELECT n, n % 500, n % 365, 'a note about visit ' || n FROM generate_series(1, 40000) n;
CREATE TABLE parts (day int, x int) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
INSERT INTO parts SELECT n % 200, n FROM generate_series(1, 40000) n;
"""
QUERY = "SELECT * FROM visits WHERE clinic = 7"
INDEX = "CREATE INDEX ON visits (clinic)"
CATALOGUE = "SELECT oid::text, relname, relpages FROM pg_class ORDER BY oid"


def catalogue(place: Database) -> list[dict[str, Any]]:
    with place.connect() as connection:
        return connection.execute(CATALOGUE.encode()).fetchall()


@pytest.fixture(scope="module", params=["server", "server16"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    server: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(server, "whatif")
    try:
        with databases.connected(server, "whatif") as connection:
            run_all(connection, TABLES.encode())
        databases.freeze(server, "whatif")
        yield Session(Database(server, "whatif"))
    finally:
        databases.drop(server, "whatif")


def test_an_index_that_helps_is_used_and_gone_again(session: Session) -> None:
    before = catalogue(session.database)
    found = session.whatif(QUERY, INDEX)
    assert found.used and found.evidence == "measured once" and found.bytes > 8192
    assert found.before.plan.root.name == "Seq Scan" and found.before.plan.analyzed
    assert found.after.plan.buffers < found.before.plan.buffers / 2
    assert found.after.plan.rows == found.before.plan.rows == 80
    assert not found.diff.same
    assert catalogue(session.database) == before


def test_it_shows_a_sentence_and_both_plans(session: Session) -> None:
    found = session.whatif(QUERY, INDEX)
    pages = f"{found.before.plan.buffers:,.0f} -> {found.after.plan.buffers:,.0f} pages"
    sentence = f"would be used: {pages}, measured once on a rolled-back build; "
    assert repr(found).startswith(sentence) and "Seq Scan on visits -> " in repr(found)
    html = found._repr_html_()
    assert "would be used: " in html and "without the index" in html and "with the index" in html


def test_an_index_that_the_planner_does_not_take_is_not_used(session: Session) -> None:
    found = session.whatif(QUERY, "CREATE INDEX ON visits (note)")
    assert not found.used and found.diff.same and "would not be used" in repr(found)


def test_parameters_are_those_of_the_statement(session: Session) -> None:
    found = session.whatif("SELECT * FROM visits WHERE clinic = %(clinic)s", INDEX, {"clinic": 7})
    assert found.used and found.after.plan.rows == 80


def test_without_analyze_nothing_is_executed(session: Session) -> None:
    found = session.whatif(QUERY, INDEX, analyze=False)
    assert found.used and found.evidence == "estimated" and not found.after.plan.analyzed
    assert "cost " in repr(found) and "estimated on a rolled-back build" in repr(found)


def test_a_statement_that_writes_changes_nothing(session: Session) -> None:
    found = session.whatif("DELETE FROM visits WHERE clinic = 7", INDEX)
    assert found.used and found.after.plan.analyzed
    assert session.explain(QUERY, analyze=True).plan.rows == 80


@pytest.mark.parametrize(
    "index",
    [
        "CREATE INDEX CONCURRENTLY mine ON visits (clinic)",
        "create unique index on visits (clinic, id)",
        "CREATE INDEX IF NOT EXISTS mine ON visits USING hash (clinic);",
        "CREATE INDEX mine ON visits (clinic) INCLUDE (day) WHERE day < 400",
    ],
)
def test_create_index_may_have_any_form(session: Session, index: str) -> None:
    assert session.whatif(QUERY + " AND day < 400", index).used


def test_an_index_on_a_partitioned_table_is_used_in_its_partitions(session: Session) -> None:
    found = session.whatif("SELECT * FROM parts WHERE day = 7", "CREATE INDEX ON parts (day)")
    assert found.used and found.bytes > 0


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("DROP TABLE visits", "'DROP TABLE visits': expected one CREATE INDEX statement"),
        (f"{INDEX}; DROP TABLE visits", "expected one CREATE INDEX statement"),
        ("", "expected one CREATE INDEX statement"),
        ("CREATE INDEX ON visits (nothing)", 'column "nothing" does not exist'),
        ("CREATE INDEX ON nowhere (id)", 'relation "nowhere" does not exist'),
        ("CREATE INDEX IF NOT EXISTS visits_pkey ON visits (id)", "an index of this name exists already"),
    ],
)
def test_anything_else_is_refused_in_one_line(session: Session, index: str, says: str) -> None:
    before = catalogue(session.database)
    with pytest.raises(UsageError) as raised:
        session.whatif(QUERY, index)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert catalogue(session.database) == before


def test_a_statement_that_fails_says_so_and_leaves_nothing(session: Session) -> None:
    before = catalogue(session.database)
    with pytest.raises(PlanError, match="division by zero"):
        session.whatif("SELECT 1 / (clinic - 7) FROM visits WHERE clinic = 7", INDEX)
    assert catalogue(session.database) == before


# a server that is not perfkit's own


@pytest.fixture(scope="module")
def system() -> Iterator[Hosted]:
    with hosted() as running:
        running.run(TABLES, "ANALYZE", user="shop")
        running.run("GRANT USAGE ON SCHEMA extensions TO shop")
        schema = (CHECKOUT / "tests" / "support" / "second_schema.sql").read_text()
        running.run("SET statement_timeout = 0", schema, "VACUUM ANALYZE", user="shop", dbname="bare")
        yield running


@pytest.fixture(params=["directly", "through the pooler"])
def foreign(system: Hosted, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    port = system.pooled if request.param == "through the pooler" else 0
    yield opened(system, "shop", port, monkeypatch)


def opened(system: Hosted, dbname: str, port: int, monkeypatch: pytest.MonkeyPatch) -> Session:
    for name, value in system.environment.items():
        monkeypatch.setenv(name, value)
    confirmed = (system.name(dbname, port=port), system.name(dbname))
    return connect(ConnectSpec(system.db(dbname=dbname, port=port), confirm=confirmed, tls=False))


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_hypopg_imagines_the_index(foreign: Session) -> None:
    before = catalogue(foreign.database)
    found = foreign.whatif(QUERY, "CREATE INDEX CONCURRENTLY ON visits (clinic)")
    assert found.used and found.evidence == "estimated" and found.bytes > 8192
    assert not found.before.plan.analyzed and not found.after.plan.analyzed
    assert "estimated by HypoPG" in repr(found)
    assert catalogue(foreign.database) == before
    with foreign.database.connect() as connection:  # the very backend, behind a pooler
        assert connection.execute("SELECT * FROM extensions.hypopg()").fetchall() == []
    assert foreign.explain(QUERY).plan.root.name == "Seq Scan"


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_no_lock_is_taken_that_anybody_could_feel(foreign: Session, system: Hosted) -> None:
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        with system.connect() as connection:
            while not done.is_set():
                rows = connection.execute("SELECT mode FROM pg_locks WHERE relation = 'visits'::regclass").fetchall()
                seen.update(row[0] for row in rows)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(5):
            foreign.whatif(QUERY, INDEX)
            index_advice(foreign, {"query": (QUERY, None)})
    finally:
        done.set()
        watcher.join()
    assert seen == {"AccessShareLock"}


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_what_hypopg_does_not_know_is_said_in_one_line(foreign: Session) -> None:
    with pytest.raises(UsageError, match=r".*gin"):
        foreign.whatif(QUERY, "CREATE INDEX ON visits USING gin (to_tsvector('simple', note))")
    with pytest.raises(UsageError, match="cannot be executed; expected no analyze"):
        foreign.whatif(QUERY, INDEX, analyze=True)
    with pytest.raises(PlanError, match='relation "nowhere" does not exist'):
        foreign.whatif("SELECT * FROM nowhere", INDEX)
    assert foreign.whatif(QUERY, INDEX).used


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_without_hypopg_it_is_said_what_would_make_it_possible(
    system: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(system, "bare", 0, monkeypatch) as session, pytest.raises(UsageError, match="CREATE EXTENSION hypopg"):
        session.whatif("SELECT * FROM orders WHERE customer_id = 7", "CREATE INDEX ON orders (customer_id)")


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_advice_without_hypopg_is_not_verified(system: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = {
        "one": ("SELECT * FROM orders WHERE customer_id = 7", None),
        "two": ("SELECT * FROM orders WHERE customer_id = 7 AND total > 1000", None),
        "three": ("SELECT avg(total) FROM orders", None),
    }
    with opened(system, "bare", 0, monkeypatch) as session:
        found = index_advice(session, queries)
    assert [p.design.title for p in found.proposals] == ["orders (customer_id, total)"]
    assert found.evidence == found.proposals[0].evidence == "not verified" and found.proposals[0].bytes is None
    assert [r.query for r in found.refusals] == ["three"] and "not verified" in found.sql


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_advice_is_estimated_and_leaves_nothing(system: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    system.run("CREATE EXTENSION IF NOT EXISTS hypopg", dbname="bare")
    try:
        with opened(system, "bare", 0, monkeypatch) as session:
            before = catalogue(session.database)
            for sql, title in {
                "SELECT * FROM orders WHERE customer_id = 7": "orders (customer_id)",
                "SELECT * FROM orders ORDER BY total DESC LIMIT 10": "orders (total)",
                "SELECT * FROM orders WHERE shipped_at IS NULL": "orders (shipped_at) WHERE shipped_at IS NULL",
                "SELECT * FROM customers WHERE lower(email) = 'x'": "customers (lower(email))",
            }.items():
                found = index_advice(session, {"query": (sql, None)})
                assert [p.design.title for p in found.proposals] == [title], found
                (proposal,) = found.proposals
                assert proposal.evidence == "estimated" and proposal.bytes
                (served,) = proposal.queries
                assert served.after.pages is None and served.after.cost < served.before.cost
            for sql, because in {
                "SELECT avg(total) FROM orders": "reads every row",
                "SELECT * FROM countries WHERE name = 'Country 7'": "tiny",
                "SELECT * FROM orders WHERE status = 'delivered'": "selects too many rows",
                "SELECT * FROM orders WHERE id = 7": "orders_pkey already finds",
            }.items():
                found = index_advice(session, {"query": (sql, None)})
                assert not found.proposals and because in found.refusals[0].sentence, found
            assert catalogue(session.database) == before
    finally:
        system.run("DROP EXTENSION hypopg", dbname="bare")


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_no_transaction_is_open_while_a_plan_is_read(
    foreign: Session, system: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[str] = []

    def watched(read: Callable[..., plan.Plan]) -> Callable[..., plan.Plan]:
        def reading(raw: bytes, **options: Any) -> plan.Plan:
            query = "SELECT state FROM pg_stat_activity WHERE usename = 'shop' AND xact_start IS NOT NULL"
            with system.connect() as connection:
                states.extend(row[0] for row in connection.execute(query))
            return read(raw, **options)

        return reading

    monkeypatch.setattr(capture, "_read", watched(capture._read))
    monkeypatch.setattr(trial, "load_plan", watched(plan.load_plan))
    assert foreign.whatif(QUERY, INDEX).used
    assert index_advice(foreign, {"query": (QUERY, None)}).proposals
    assert states == []
