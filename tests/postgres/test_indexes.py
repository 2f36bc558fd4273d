"""Building an index set on a real server: what each index costs, and what is refused."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
import pytest
from scripts import run_all

from perfkit.base.errors import UsageError
from perfkit.base.resources import CHECKOUT
from perfkit.postgres import databases
from perfkit.postgres.commands import send
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.index_builds import Built, build, existing_indexes
from perfkit.postgres.index_sets import read_set

TABLE = """
CREATE TABLE visits (id int, clinic int, note text);
INSERT INTO visits SELECT n, n % 50, 'note ' || n FROM generate_series(1, 2000) n;
"""
SET = """
-- one; comment; with semicolons
CREATE INDEX visits_clinic ON visits (clinic);  /* another; */
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS visits_id ON visits (id);
create index Visits_Upper on visits (clinic, id desc) where note <> $$a;b$$ and note <> 'it''s; over';
CREATE INDEX "Visits ""by"" Note" ON visits (note text_pattern_ops) INCLUDE (id) WITH (fillfactor = 80);
CREATE UNIQUE INDEX visits_distinct ON ONLY visits (id) NULLS NOT DISTINCT;
ANALYZE visits;
"""
NAMES = ["visits_clinic", "visits_id", "visits_upper", 'Visits "by" Note', "visits_distinct"]


@pytest.fixture(params=["server", "server16"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[EmbeddedServer, str]]:
    """A database with one table of 2,000 rows that was never analysed, on PostgreSQL 18 and 16."""
    server: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(server, "indexes_test")
    databases.prepare(server, "indexes_test", [file(tmp_path, TABLE)], {})
    yield server, "indexes_test"
    databases.drop(server, "indexes_test")


def file(folder: Path, text: str) -> Path:
    path = folder / "indexes.sql"
    path.write_text(text)
    return path


def ask(database: tuple[EmbeddedServer, str], sql: str) -> list[Any]:
    with databases.connected(*database) as connection:
        return [next(iter(row.values())) for row in run_all(connection, sql.encode())]


def refused(database: tuple[EmbeddedServer, str], path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        build(*database, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_index_of_the_file_is_built_in_order_valid_and_with_its_costs(
    database: tuple[EmbeddedServer, str], tmp_path: Path
) -> None:
    built = build(*database, file(tmp_path, SET))
    assert [index.name for index in built] == NAMES
    there = ask(database, "SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")
    assert sorted(there) == sorted(NAMES)
    for index in built:
        assert index.valid and index.table == "visits"
        assert index.seconds > 0
        assert index.bytes >= 8192 * 2
        assert index.wal_bytes > index.bytes / 4  # wal_level counts a build; pages are logged without holes
    assert built[0].definition == "CREATE INDEX visits_clinic ON public.visits USING btree (clinic)"
    assert Built(**asdict(built[0])) == built[0]


def test_the_names_are_known_before_anything_is_built(tmp_path: Path) -> None:
    assert read_set(file(tmp_path, SET)).names == NAMES
    assert len(read_set(CHECKOUT / "sql/indexes/performance_indexes.sql").names) == 7


def test_analyze_in_the_file_is_run(database: tuple[EmbeddedServer, str], tmp_path: Path) -> None:
    analysed = "SELECT reltuples::int FROM pg_class WHERE relname = 'visits'"
    assert ask(database, analysed) == [-1]
    assert build(*database, file(tmp_path, "ANALYZE visits")) == []
    assert ask(database, analysed) == [2000]


def test_an_index_that_is_there_already_is_not_taken_for_one_that_was_built(
    database: tuple[EmbeddedServer, str], tmp_path: Path
) -> None:
    ask(database, "INSERT INTO visits VALUES (1, 1, 'twice') RETURNING id")
    text = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS visits_id ON visits (id)"
    assert refused(database, file(tmp_path, text)).endswith('could not create unique index "visits_id"')
    path = file(tmp_path, text)  # what the failed build left behind is there, and invalid
    assert refused(database, path) == f"{path}: visits_id exists already; expected new indexes only"


def test_an_index_without_a_name_gets_one_that_its_statement_alone_decides(
    database: tuple[EmbeddedServer, str], tmp_path: Path
) -> None:
    path = file(tmp_path, "CREATE INDEX ON visits (id);\ncreate unique index  on visits (id, note, clinic)")
    names = read_set(path).names
    assert len(set(names)) == 2 and all(name.startswith("perfkit_") for name in names)
    assert [index.name for index in build(*database, path)] == names
    assert read_set(file(tmp_path, "CREATE INDEX CONCURRENTLY ON visits (id)")).names != names[:1]


def test_an_index_is_found_in_whatever_schema_its_table_is(
    database: tuple[EmbeddedServer, str], tmp_path: Path
) -> None:
    server, name = database
    text = "CREATE SCHEMA app; CREATE TABLE app.visits (id int); CREATE INDEX there ON visits (id)"
    databases.prepare(server, name, [file(tmp_path, text)], {})
    built = build(server, name, file(tmp_path, "CREATE INDEX there ON app.visits (id)"))
    assert [(index.name, index.table) for index in built] == [("there", "app.visits")]
    with databases.connected(server, name) as connection:
        assert sorted(existing_indexes(connection, ["there"])) == ["app.there", "public.there"]


@pytest.mark.parametrize(
    "statement",
    [
        "DROP INDEX visits_clinic",
        "CREATE TABLE other (id int)",
        "INSERT INTO visits VALUES (1)",
        "VACUUM ANALYZE visits",
        "SET enable_seqscan = off",
        "-- ANALYZE\nSELECT 1",
        "not even SQL",
    ],
)
def test_any_other_statement_is_refused_with_file_and_line_before_anything_is_built(
    server: EmbeddedServer, tmp_path: Path, statement: str
) -> None:
    text = f"-- comment\nCREATE INDEX visits_clinic\n  ON visits (clinic);\n\n{statement};"
    path = file(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        build(server, "postgres", path)  # which has no such table: nothing was tried
    line = 5 + statement.startswith("--")
    first = statement.splitlines()[-1]
    assert str(caught.value) == f"{path}:{line}: {first!r}; expected CREATE INDEX ... or ANALYZE"


def test_a_statement_that_fails_is_one_line_with_the_servers_words(
    database: tuple[EmbeddedServer, str], tmp_path: Path
) -> None:
    path = file(tmp_path, "CREATE INDEX a ON visits (id);\n\nCREATE INDEX b ON visits (nothing);")
    assert refused(database, path) == f'{path}:3: column "nothing" does not exist'
    path = file(tmp_path, "CREATE INDEX c ON visits (id, id + 1);\nANALYZE nothing")
    assert refused(database, path) == f'{path}:1: syntax error at or near "+"'
    path = file(tmp_path, "CREATE INDEX c ON visits (id);\nANALYZE nothing")
    assert refused(database, path) == f'{path}: ANALYZE nothing: relation "nothing" does not exist'


def test_a_statement_that_the_server_reads_as_two_is_run_as_none(
    database: tuple[EmbeddedServer, str], tmp_path: Path
) -> None:
    one, _ = database
    with databases.connected(one, "indexes_test", "postgres") as connection:
        connection.execute("ALTER ROLE perfkit SET standard_conforming_strings = off")
    try:
        path = file(tmp_path, r"CREATE INDEX a ON visits (id) WHERE note <> 'a\' AND note <> '; DROP TABLE visits; --'")
        assert [index.name for index in build(one, "indexes_test", path)] == ["a"]  # means what it means everywhere
    finally:
        with databases.connected(one, "indexes_test", "postgres") as connection:
            connection.execute("ALTER ROLE perfkit RESET standard_conforming_strings")
    with databases.connected(one, "indexes_test") as connection, pytest.raises(psycopg.errors.SyntaxError):
        send(connection.cursor(), "CREATE INDEX b ON visits (id); DROP TABLE visits")
    assert ask((one, "indexes_test"), "SELECT count(*) FROM visits") == [2000]


def test_sql_that_cannot_be_read_and_a_missing_file_are_one_line(
    database: tuple[EmbeddedServer, str], tmp_path: Path
) -> None:
    assert refused(database, file(tmp_path, "CREATE INDEX a ON visits ('open)"))
    assert "cannot be read" in refused(database, tmp_path / "gone.sql")
