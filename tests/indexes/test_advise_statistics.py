"""Advice where the statistics are stale, or only look it, and where HypoPG is one that cannot be relied on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hosted import Hosted, hosted

from perfkit.app.session import Session, connect
from perfkit.app.specs import ConnectSpec
from perfkit.base.errors import UsageError
from perfkit.explain.facts import ColumnFacts, TableFacts, doubt, stale
from perfkit.indexes import trial
from perfkit.indexes.advice import Advice, Refusal
from perfkit.indexes.search import index_advice, tried_in_vain
from perfkit.indexes.trial import CostFigures, helps
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer

COUNT = "SELECT count(*) FROM shipments WHERE state = 'active'"
COLUMNS = (ColumnFacts("state", "text", 1.0, 1.0),)
FITTING = TableFacts("public", "people", 50_000, 300, 0, 0, True, COLUMNS, (), (), None, 300.0, 50_000, 0)


# by size and counters


def test_rows_counted_after_their_analyze_do_not_make_statistics_stale() -> None:
    assert not stale(replace(FITTING, changed=50_000), 0.1)
    assert not doubt(replace(FITTING, changed=50_000), 0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": 340.0}, "people grew from 300 to 340 pages after its statistics were made"),
        ({"size": 340.0, "changed": 6_000}, "6,000 rows of people changed since its statistics were made for 50,000"),
        ({"changed": 20_000, "rewritten": 20_000}, "20,000 rows of people changed"),
        ({"changed": 20_000, "vacuumed": True}, "20,000 rows of people changed"),
        ({"size": None, "changed": 20_000}, "20,000 rows of people changed"),
        ({"columns": (ColumnFacts("state", "text", None, None),), "analyzed": False}, "people has no statistics yet"),
        ({"columns": (ColumnFacts("state", "text", None, None),), "changed": 50_000}, "people has no statistics yet"),
    ],
)
def test_growth_changes_in_place_and_missing_statistics_make_them_stale(change: dict[str, Any], says: str) -> None:
    assert stale(replace(FITTING, **change), 0.1).startswith(says)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"size": 329.0},
        {"changed": 4_000, "rewritten": 4_000},
        {"analyzed": False, "inserted": 0.0},  # a standby, or counters that were lost
        {"columns": (ColumnFacts("state", "text", None, None),), "hidden": True, "changed": 50_000},
    ],
)
def test_few_changes_and_what_is_only_hidden_do_not(change: dict[str, Any]) -> None:
    assert not stale(replace(FITTING, **change), 0.1)


def test_updates_that_may_have_come_before_or_after_analyze_leave_a_doubt() -> None:
    found = replace(FITTING, changed=70_000, rewritten=20_000)
    assert not stale(found, 0.1)
    assert doubt(found, 0.1) == "20,000 rows of people were updated or deleted, before or after its last ANALYZE"


# on a server of perfkit's own


@pytest.fixture(params=["server", "server16"])
def own(request: pytest.FixtureRequest) -> Iterator[Session]:
    server: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(server, "loaded")
    try:
        yield Session(Database(server, "loaded"))
    finally:
        databases.drop(server, "loaded")


def asked(session: Session, *texts: str) -> Advice:
    return index_advice(session, {f"query {n}": (text, None) for n, text in enumerate(texts, 1)})


def titles(found: Advice) -> list[str]:
    return [proposal.design.title for proposal in found.proposals]


def load(session: Session, *statements: str) -> None:
    """Run statements in one session."""
    with session.database.connect() as connection:
        for statement in statements:
            connection.execute(statement.encode())


PEOPLE = (
    "CREATE TABLE people AS SELECT n AS id, n % 1000 AS town, repeat('x', 20) AS name FROM generate_series(1, 50000) n"
)


@pytest.mark.slow
def test_a_table_loaded_and_analysed_in_one_session_is_advised_as_it_is(own: Session) -> None:
    load(own, PEOPLE, "ANALYZE people")
    found = asked(own, "SELECT * FROM people WHERE town = 7")
    assert titles(found) == ["people (town)"] and not found.refusals and not found.limitations


@pytest.mark.slow
@pytest.mark.parametrize("before", [(), ("INSERT INTO shipments VALUES (0, 'archived')", "ANALYZE shipments")])
def test_a_copy_is_analysed_before_it_is_asked(own: Session, before: tuple[str, ...]) -> None:
    load(own, "CREATE TABLE shipments (id int, state text) WITH (autovacuum_enabled = off)", *before)
    load(own, "INSERT INTO shipments SELECT n, 'active' FROM generate_series(1, 50000) n")
    found = asked(own, "SELECT * FROM shipments WHERE state = 'active'")
    assert not found.proposals and "selects too many rows" in found.refusals[0].sentence
    (limitation,) = found.limitations
    assert "shipments" in limitation and "analysed here first" in limitation and limitation in repr(found)


# on a server that is not


@pytest.fixture(scope="module")
def system() -> Iterator[Hosted]:
    with hosted() as running:
        running.run("GRANT USAGE ON SCHEMA extensions TO shop")
        running.run("CREATE VIEW listed AS SELECT * FROM sales.orders WHERE total >= 0", "ANALYZE", user="shop")
        yield running


@pytest.fixture
def foreign(system: Hosted, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    for name, value in system.environment.items():
        monkeypatch.setenv(name, value)
    yield connect(ConnectSpec(system.db(), confirm=(system.name(),), tls=False))
    system.run("DROP TABLE IF EXISTS shipments, people", user="shop")


def shipments(system: Hosted, *changes: str, options: str = "autovacuum_enabled = off") -> None:
    """Half a table, analysed; each change in a session of its own."""
    system.run(
        f"CREATE TABLE shipments (id int PRIMARY KEY, state text) WITH ({options})",
        "INSERT INTO shipments SELECT n, 'archived' FROM generate_series(1, 50000) n",
        user="shop",
    )
    system.run("VACUUM ANALYZE shipments", user="shop")
    for change in changes:
        system.run(change, user="shop")


INSERT = "INSERT INTO shipments SELECT n, 'active' FROM generate_series(50001, 100000) n"


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ((INSERT,), "autovacuum_enabled = off"),
        ((INSERT, "VACUUM shipments"), "autovacuum_enabled = off"),
        (("UPDATE shipments SET state = 'active' WHERE id % 2 = 0",), "autovacuum_enabled = off, fillfactor = 40"),
    ],
    ids=["grown", "grown and vacuumed", "updated in place"],
)
def test_elsewhere_stale_statistics_are_to_be_made_anew_before_any_advice(
    system: Hosted, foreign: Session, changes: tuple[str, ...], options: str
) -> None:
    shipments(system, *changes, options=options)
    found = asked(foreign, COUNT, "SELECT * FROM sales.orders WHERE customer_id = 7")
    assert titles(found) == ["sales.orders (customer_id)"]
    (refusal,) = found.refusals
    assert refusal.sentence.startswith("ANALYZE shipments first: ")
    assert "statistics were made" in refusal.sentence
    imagined = foreign.whatif(COUNT, "CREATE INDEX ON shipments (state)")
    assert refusal.sentence in imagined.text() and refusal.sentence in imagined._repr_html_()
    system.run("ANALYZE shipments", user="shop")
    found = asked(foreign, COUNT)
    assert not any(proposal.design.where for proposal in found.proposals)
    assert not any("ANALYZE" in refusal.sentence for refusal in found.refusals)


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_a_value_that_young_rows_may_have_is_a_limitation(system: Hosted, foreign: Session) -> None:
    shipments(system)
    assert not asked(foreign, COUNT).limitations  # none has it, and none can
    system.run("INSERT INTO shipments SELECT n, 'active' FROM generate_series(50001, 52000) n", user="shop")
    found = asked(foreign, COUNT, "SELECT * FROM shipments WHERE id = 7")
    (limitation,) = found.limitations
    assert limitation.startswith("The statistics of shipments know no row with state = 'active'")
    assert titles(found)


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_a_table_without_statistics_is_to_be_analysed_first(system: Hosted, foreign: Session) -> None:
    system.run(PEOPLE, user="shop")
    found = asked(foreign, "SELECT * FROM people WHERE town = 7")
    assert [refusal.sentence for refusal in found.refusals] == ["ANALYZE people first: people has no statistics yet"]
    assert not found.proposals


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_a_table_loaded_and_analysed_in_one_session_is_advised_as_it_is(
    system: Hosted, foreign: Session
) -> None:
    system.run(PEOPLE, "ANALYZE people", user="shop")
    found = asked(foreign, "SELECT * FROM people WHERE town = 7")
    assert titles(found) == ["people (town)"] and not found.refusals and not found.limitations


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_reasons_have_the_figures_of_the_table(system: Hosted, foreign: Session) -> None:
    system.run(PEOPLE, "CREATE UNIQUE INDEX ON people (id)", "ANALYZE people", user="shop")
    found = asked(foreign, "SELECT name FROM people WHERE id = 7 AND town > 7", "SELECT * FROM customers")
    first, second = (refusal.sentence for refusal in found.refusals)
    assert "tiny" not in first and "0 pages" not in first
    assert "reading the 200 rows in its 2 pages is just as fast" in second


@pytest.mark.system
@pytest.mark.slow
def test_elsewhere_a_tiny_table_gets_no_index_unless_it_is_read_again_and_again(
    system: Hosted, foreign: Session
) -> None:
    narrow = "CREATE TABLE people AS SELECT n AS id, n % 1000 AS town FROM generate_series(1, 3000) n"
    system.run(narrow, "ANALYZE people", user="shop")
    once = "SELECT * FROM people WHERE town = 7"
    often = "SELECT id, (SELECT max(p.id) FROM people p WHERE p.town = o.id) FROM sales.orders o"
    assert [proposal.design.table for proposal in asked(foreign, often).proposals] == ["people"]
    found = asked(foreign, once)
    assert not found.proposals
    assert "people is tiny: reading the 3,000 rows in its 14 pages is just as fast" in found.refusals[0].sentence


# what came of the candidates


@pytest.mark.parametrize(
    ("best", "tried", "left_out", "says"),
    [
        (277, 5, 0, "None of 5 candidate indexes reduced the pages read (277)"),
        (277, 1, 0, "The one candidate index did not reduce the pages read (277)"),
        (200, 5, 0, "The best of 5 candidate indexes reduces the pages read only from 277 to 200"),
        (None, 0, 3, "Not decided: 3 candidate indexes could not be tried"),
        (None, 0, 0, "Its plan suggests no index that does not exist already"),
    ],
)
def test_candidates_that_did_not_help_are_counted(best: float | None, tried: int, left_out: int, says: str) -> None:
    after = None if best is None else CostFigures(best, 1.0, 1.0)
    found = Refusal("query", tried_in_vain(CostFigures(277, 1.0, 1.0), after, tried, left_out), certain=False)
    assert found.sentence == says


@pytest.mark.parametrize(
    ("before", "after", "helped"),
    [
        (CostFigures(1_700, 30.0, 9.0), CostFigures(1_630, 2.0, 9.0), True),  # a row on every page
        (CostFigures(1_700, 30.0, 9.0), CostFigures(1_750, 2.0, 9.0), True),  # and the index's own
        (CostFigures(1_700, 30.0, 9.0), CostFigures(1_630, 12.0, 9.0), False),
        (CostFigures(1_700, 3.0, 9.0), CostFigures(1_630, 0.2, 9.0), False),  # nobody felt it before
        (CostFigures(1_700, 30.0, 9.0), CostFigures(9_000, 2.0, 9.0), False),  # in memory, this time
        (CostFigures(None, None, 1_700.0), CostFigures(None, None, 1_630.0), False),
    ],
)
def test_an_index_that_takes_a_third_of_the_time_helps_though_as_many_pages_are_read(
    before: CostFigures, after: CostFigures, helped: bool
) -> None:
    assert helps(before, after) == helped


@pytest.mark.slow
def test_rows_on_every_page_are_found_in_less_time_by_an_index(own: Session) -> None:
    load(own, "CREATE TABLE steps AS SELECT n AS id, n % 100 AS kind, n % 7 AS day FROM generate_series(1, 300000) n")
    load(own, "VACUUM ANALYZE steps")
    found = asked(own, "DELETE FROM steps WHERE kind = 7")
    assert titles(found) == ["steps (kind)"] and " ms -> " in found.sql


# HypoPG's versions


@pytest.mark.parametrize("version", ["1.1.0", "1.3.1", "1.4.2", "1.4.3", "1.4.4", "1.5beta", "", None])
def test_versions_that_ignore_or_crash_and_unknown_ones_are_not_relied_on(version: str | None) -> None:
    assert trial.fault("1.4.5", version) and trial.fault(version, "1.4.5")


@pytest.mark.parametrize("version", ["1.4.5", "1.5", "1.10.0", "2.0.0"])
def test_later_versions_are(version: str) -> None:
    assert not trial.fault(version, version)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM t WHERE x = $1 ORDER BY y LIMIT 3",
        "UPDATE t SET x = 1 WHERE y = 2",
        "DELETE FROM t WHERE x = 1",
        "SELECT t.x FROM ONLY t",
    ],
)
def test_a_statement_of_one_relation_names_it(text: str) -> None:
    assert trial.only_table(text) == "t"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM u, t",
        "SELECT * FROM t JOIN u USING (x)",
        "SELECT * FROM (SELECT * FROM t) s",
        "WITH s AS (SELECT * FROM t) SELECT 1",
        "SELECT * FROM generate_series(1, 3) g, t",
        "SELECT * FROM f(1)",
        "SELECT * FROM t WHERE x IN (SELECT 1)",
        "SELECT * FROM t WHERE x IN (VALUES (1))",
        "SELECT * FROM t UNION ALL SELECT * FROM t",
        "UPDATE t SET x = u.x FROM u",
        "DELETE FROM t USING u WHERE t.x = u.x",
        "INSERT INTO t SELECT * FROM u",
        "SELECT FROM WHERE",
        "SELECT 1",
    ],
)
def test_any_other_statement_names_none(text: str) -> None:
    assert not trial.only_table(text)


Pretend = Callable[[str], None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Let the server's HypoPG call itself by another version."""

    def version(number: str) -> None:
        row = trial.catalog.row

        def changed(connection: Any, name: str) -> dict[str, Any]:
            return row(connection, name) | ({"version": number, "files": number} if name == "hypopg" else {})

        monkeypatch.setattr(trial.catalog, "row", changed)

    return version


PARTIAL = "CREATE INDEX ON sales.orders (id) WHERE customer_id = 7"
BEHIND = [
    "SELECT * FROM listed WHERE customer_id = 7",
    "SELECT * FROM customers c, sales.orders o WHERE o.customer_id = 7 AND c.name = 'customer 7'",
    "SELECT * FROM (SELECT * FROM sales.orders) o WHERE customer_id = 7",
]


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("sql", BEHIND, ids=["a view", "second in FROM", "a subquery"])
@pytest.mark.parametrize("version", ["", "1.4.2", "1.4.3", "unheard of"])
def test_a_partial_index_that_could_crash_the_server_is_not_imagined(
    foreign: Session, pretend: Pretend, sql: str, version: str
) -> None:
    if version:
        pretend(version)
    with pytest.raises(UsageError, match=r"HypoPG \S+ .*can ignore a partial or expression index, .*--way whole"):
        foreign.whatif(sql, PARTIAL)
    with pytest.raises(UsageError, match="HypoPG"):
        foreign.whatif(sql, "CREATE INDEX ON sales.orders ((total + 1))")
    assert foreign.whatif(sql, "CREATE INDEX ON sales.orders (customer_id)").used


@pytest.mark.system
@pytest.mark.slow
def test_where_the_table_stands_alone_it_is(foreign: Session) -> None:
    assert foreign.whatif("SELECT * FROM sales.orders WHERE customer_id = 7", PARTIAL).used


@pytest.mark.system
@pytest.mark.slow
def test_a_version_that_is_sound_is_asked(foreign: Session, pretend: Pretend) -> None:
    pretend("1.4.5")
    assert not foreign.whatif(BEHIND[1], PARTIAL).used  # by the faulty one that it is


@pytest.mark.system
@pytest.mark.slow
def test_advice_says_what_was_not_tried_and_where_it_can_be(system: Hosted, foreign: Session) -> None:
    system.run(PEOPLE, "CREATE VIEW townsfolk AS SELECT * FROM people", "ANALYZE people", user="shop")
    queries = {
        "behind": ("SELECT * FROM townsfolk WHERE lower(name) = 'x'", None),
        "direct": ("SELECT * FROM people WHERE lower(name) = 'x'", None),
    }
    try:
        found = index_advice(foreign, queries)
    finally:
        system.run("DROP VIEW townsfolk", user="shop")
    assert titles(found) == ["people (lower(name))"]
    assert [each.query for each in found.proposals[0].queries] == ["direct"]
    assert [(refusal.query, refusal.sentence) for refusal in found.refusals] == [
        ("behind", "Not decided: 3 candidate indexes could not be tried")
    ]
    (limitation,) = found.limitations
    assert limitation.startswith("Not tried for behind: 3 partial or expression indexes. HypoPG 1.3.1 can ignore")
    assert (
        limitation.endswith("Use a copy instead: --way whole") and limitation in repr(found) and limitation in found.sql
    )
