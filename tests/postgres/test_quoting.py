"""A name is quoted where PostgreSQL's quote_ident quotes it, on every version."""

from collections.abc import Iterator

import psycopg
import pytest
from hosted import hosted
from scripts import run_all

from perfkit.explain.candidates import candidate
from perfkit.explain.facts import ask, predicates, quoted, read_facts
from perfkit.explain.plan import read_plan
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.sqltext import KEYWORDS

QUOTED_BY_SERVER = "SELECT word, quote_ident(word) AS quoted FROM pg_get_keywords()"
NAMES = ["visits", "Day", "a b", "a$b", "1st", "_x", 'say "so"', "naïve", "x9", "", "a.b"]


@pytest.fixture(scope="module", params=["server", "server16"])
def connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    with databases.connected(request.getfixturevalue(request.param), "postgres") as found:
        yield found


def test_the_list_is_that_of_the_newest_server(server: EmbeddedServer) -> None:
    with databases.connected(server, "postgres") as newest:
        rows = newest.execute("SELECT word FROM pg_get_keywords() WHERE catcode <> 'U'").fetchall()
    assert {row["word"] for row in rows} == KEYWORDS


def test_keywords_and_names_are_quoted_as_the_server_quotes_them(connection: psycopg.Connection) -> None:
    """An older server leaves a name alone that a newer one made a keyword."""
    rows = connection.execute(QUOTED_BY_SERVER).fetchall()
    rows += connection.execute("SELECT n AS word, quote_ident(n) AS quoted FROM unnest(%s::text[]) n", [NAMES])
    assert len(rows) > 400
    newer = KEYWORDS if connection.info.server_version < 180000 else frozenset()
    wrong = {row["word"] for row in rows if quoted(row["word"]) != row["quoted"]}
    assert all(word in newer and f'"{word}"' == quoted(word) for word in wrong), wrong
    assert len(wrong) < 10


def test_every_keyword_can_be_the_key_of_an_advised_index(connection: psycopg.Connection) -> None:
    with connection.transaction(force_rollback=True):
        columns = ", ".join(f'"{word}" int' for word in sorted(KEYWORDS))
        connection.execute(f'CREATE TEMPORARY TABLE "table" ({columns})'.encode())
        for word in sorted(KEYWORDS):
            advised = candidate("public", "table", predicates(f'("{word}" = 5)'), None)
            assert advised and advised.columns == (word,)
            connection.execute(advised.sql.encode())


def test_an_index_on_a_column_that_only_newer_servers_quote_is_found(server16: EmbeddedServer) -> None:
    with databases.connected(server16, "postgres") as older:
        run_all(older, 'CREATE TEMPORARY TABLE notes (json int, "left" int)')
        run_all(older, 'CREATE INDEX ON notes (json); CREATE INDEX ON notes ("left")')
        plan = read_plan([{"Plan": {"Node Type": "Seq Scan", "Relation Name": "notes"}}])
        (table,) = read_facts(ask(older, plan)).tables
    assert sorted(index.keys for index in table.indexes) == [('"json"',), ('"left"',)]


@pytest.mark.system
@pytest.mark.slow
def test_the_systems_server_quotes_no_word_that_is_not_quoted_here() -> None:
    with hosted() as hosting:
        rows = hosting.run("SELECT word, quote_ident(word) FROM pg_get_keywords()")
    wrong = {word for word, by_server in rows if quoted(word) != by_server}
    assert wrong <= {"json"}  # a keyword since 17
