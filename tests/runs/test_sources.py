"""Parameter sources: a SELECT, the lines of a CSV file, values drawn at random; and how they reach the server."""

import datetime
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.base.errors import UsageError
from perfkit.config import Generator, ParameterColumn
from perfkit.explain.capture import capture
from perfkit.explain.comparison import in_words
from perfkit.load.pool import WorkerPool, sql_target
from perfkit.load.schedule import Batch
from perfkit.postgres import databases, embedded
from perfkit.postgres.commands import exact
from perfkit.postgres.databases import Database
from perfkit.runs import selection


@pytest.fixture(scope="module")
def place(server: embedded.EmbeddedServer) -> Iterator[Database]:
    """Prices with an index for each way to write a number."""
    databases.create(server, "pk_sources")
    with server.connect("pk_sources") as connection:
        connection.execute(
            "CREATE TABLE prices AS SELECT n AS id, (n / 100.0)::numeric(12, 2) AS exact, n / 100.0::float8 AS double, "
            "date '2026-01-01' + n % 300 AS day FROM generate_series(1, 50000) n"
        )
        for column in ("id", "exact", "double", "day"):
            connection.execute(f"CREATE INDEX prices_{column} ON prices ({column})")
        connection.execute("ANALYZE prices")
    yield Database(server, "pk_sources")
    databases.drop(server, "pk_sources")


def selected(place: Database, tmp_path: Path, text: str) -> list[selection.Row]:
    path = tmp_path / "source.sql"
    path.write_text(text)
    return selection.rows("source", path, place, "1")


def lines(tmp_path: Path, content: str | bytes) -> list[selection.Row]:
    path = tmp_path / "source.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return selection.rows("source", path, None, "1")


def refused(what: object, *args: object) -> str:
    with pytest.raises(UsageError) as caught:
        what(*args)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# A SELECT


def test_each_row_of_a_select_is_a_set_of_parameters(place: Database, tmp_path: Path) -> None:
    found = selected(place, tmp_path, "-- some\nSELECT id, day FROM prices ORDER BY id LIMIT 2;\n")
    assert found == [{"id": 1, "day": "2026-01-02"}, {"id": 2, "day": "2026-01-03"}]


def test_a_select_is_told_how_many_rows_are_of_use(place: Database, tmp_path: Path) -> None:
    assert len(selected(place, tmp_path, "SELECT id FROM prices LIMIT :rows")) == selection.LIMIT


def test_a_column_may_have_any_name(place: Database, tmp_path: Path) -> None:
    assert selected(place, tmp_path, "SELECT 1 AS p, NULL AS row") == [{"p": 1, "row": None}]


def test_no_digit_of_a_number_is_lost(place: Database, tmp_path: Path) -> None:
    text = "SELECT 1.50 AS price, 2::bigint ^ 0 AS one, 12345678901234567890.12 AS long, 9007199254740993 AS whole"
    (row,) = selected(place, tmp_path, text)
    assert row == {"price": 1.5, "one": 1, "long": "12345678901234567890.12", "whole": 9007199254740993}
    assert isinstance(row["whole"], int)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SELECT id FROM prices WHERE false", "gave no rows; expected at least one set of parameters"),
        ("SELECT id FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT 1; SELECT 2", 'syntax error at or near ";"'),
        ("CREATE TABLE spoilt (id int)", 'syntax error at or near "CREATE"'),
        ("SELECT setval('s', 1) FROM (SELECT 1) AS x", 'relation "s" does not exist'),
    ],
)
def test_a_select_that_gives_nothing_is_one_line(place: Database, tmp_path: Path, text: str, said: str) -> None:
    found = refused(selected, place, tmp_path, text)
    assert found.startswith(f"{tmp_path}/source.sql: ") and said in found


def test_a_source_cannot_write(place: Database, tmp_path: Path) -> None:
    with place.connect() as connection:
        connection.execute("CREATE SEQUENCE IF NOT EXISTS counted")
    assert "read-only transaction" in refused(selected, place, tmp_path, "SELECT nextval('counted') AS n")


def test_a_select_needs_a_database(tmp_path: Path) -> None:
    (tmp_path / "source.sql").write_text("SELECT 1 AS id")
    found = refused(selection.rows, "source", tmp_path / "source.sql", None, "1")
    assert found.endswith("a SELECT needs a [database]; expected a CSV file or a generator")


# CSV


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("id,name\n1,Ann\n2,Bob\n", [{"id": "1", "name": "Ann"}, {"id": "2", "name": "Bob"}]),
        (b"\xef\xbb\xbfid\r\n1\r\n", [{"id": "1"}]),
        ('id,said\n1,"a, ""b""\nc"\n', [{"id": "1", "said": 'a, "b"\nc'}]),
        ("id,name\n,Ann\n2,\n", [{"id": None, "name": "Ann"}, {"id": "2", "name": None}]),
        ("id\n1\n\n2", [{"id": "1"}, {"id": "2"}]),
        ("name\nZo\u00eb %(x)s {id}\n", [{"name": "Zo\u00eb %(x)s {id}"}]),
    ],
    ids=["plain", "byte order mark", "quotes", "empty is NULL", "empty line", "any text"],
)
def test_each_line_of_a_csv_is_a_set_of_parameters(
    tmp_path: Path, content: str | bytes, rows: list[selection.Row]
) -> None:
    assert lines(tmp_path, content) == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "gave no rows"),
        ("id,name\n", "gave no rows"),
        ("id,name\n1,Ann\n2\n", "lines of different lengths"),
        ("id,name\n1,Ann,too many\n", "lines of different lengths"),
        ('id\n"1\n', "cannot be read"),
        (b"id\n\xff\n", "cannot be read"),
        ("id,id\n1,2\n", "a column has no name or the name of another"),
        ("id,\n1,2\n", "a column has no name or the name of another"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_one_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    found = refused(lines, tmp_path, content)
    assert found.startswith(f"{tmp_path}/source.csv: {said}") and "expected" in found


def test_a_csv_that_is_gone_is_one_line(tmp_path: Path) -> None:
    found = refused(selection.rows, "source", tmp_path / "gone.csv", None, "1")
    assert found.startswith(f"{tmp_path}/gone.csv: cannot be read")


def test_no_more_lines_are_read_than_a_run_uses(tmp_path: Path) -> None:
    assert len(lines(tmp_path, "id\n" + "1\n" * 20_000)) == selection.LIMIT


# Generators

ALL = {
    "n": ParameterColumn(integer=(-3, 3)),
    "x": ParameterColumn(number=(0.5, 1.5)),
    "kind": ParameterColumn(choice=("a", 2, None)),
    "day": ParameterColumn(date=(datetime.date(2024, 2, 28), datetime.date(2024, 3, 1))),
    "key": ParameterColumn(uuid=True),
}


def test_the_seed_alone_decides_what_is_drawn() -> None:
    generator = Generator(columns=ALL, rows=50)
    first, again, other = (selection.rows("a", generator, None, seed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert first != selection.rows("b", generator, None, "1")  # two sources of one run have nothing in common
    assert len(first) == 50


def test_every_kind_of_value_is_drawn_and_both_ends_of_a_range() -> None:
    rows = selection.generated(Generator(columns=ALL, rows=500), "1")
    assert {row["n"] for row in rows} == set(range(-3, 4))
    assert {row["day"] for row in rows} == {"2024-02-28", "2024-02-29", "2024-03-01"}
    assert {row["kind"] for row in rows} == {"a", 2, None}
    assert all(0.5 <= row["x"] <= 1.5 for row in rows)
    assert len({UUID(row["key"]) for row in rows}) == 500
    assert all(UUID(row["key"]).version == 4 for row in rows)
    json.dumps(rows)  # as load workers get them


@given(st.integers(-(2**63), 2**63), st.integers(0, 2**40), st.text())
def test_a_drawn_integer_is_in_its_range(first: int, width: int, seed: str) -> None:
    column = ParameterColumn(integer=(first, first + width))
    assert all(first <= row["n"] <= first + width for row in selection.generated(_one(column), seed))


@given(st.dates(), st.dates(), st.text())
def test_a_drawn_day_is_in_its_range(one: datetime.date, other: datetime.date, seed: str) -> None:
    first, last = sorted((one, other))
    for row in selection.generated(_one(ParameterColumn(date=(first, last))), seed):
        assert first <= datetime.date.fromisoformat(row["n"]) <= last


def _one(column: ParameterColumn) -> Generator:
    return Generator(columns={"n": column}, rows=5)


# On the way to the server


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_becomes_the_decimal_that_it_was_written_as(value: float) -> None:
    found = exact({"x": value, "list": [value, 1], "text": "1.5", "flag": True})
    assert found is not None
    assert isinstance(found["x"], Decimal) and float(found["x"]) == value and found["list"] == [found["x"], 1]
    assert found["text"] == "1.5" and found["flag"] is True


@pytest.mark.parametrize("column", ["id", "exact", "double", "day"])
def test_a_selected_value_finds_its_row_by_index(place: Database, tmp_path: Path, column: str) -> None:
    rows = selected(place, tmp_path, f"SELECT {column} AS value FROM prices WHERE id IN (150, 1225) ORDER BY id")
    plan = capture(place.session, f"SELECT * FROM prices WHERE {column} = %(value)s", rows[0]).plan
    assert f"prices_{column}" in in_words(plan)


def test_load_uses_the_index_that_the_plan_shows(place: Database, tmp_path: Path) -> None:
    """`exact = 1.5::float8` reads the whole table: the sender must not send a float as one."""
    rows = selected(place, tmp_path, "SELECT exact AS value FROM prices WHERE id BETWEEN 151 AND 155")
    sent = "SELECT id FROM prices WHERE exact = %(value)s"
    before = databases.scans(place.server, place.name)
    with WorkerPool(1) as crew:
        queue = tuple({"item": "by_price", "sql": sent, "params": row} for row in rows)
        load = crew.run(sql_target(place.server.conninfo(place.name), 5, 5), [Batch((queue,))])
    after = databases.scans(place.server, place.name)
    assert load.columns.detail == ["1 rows"] * 5
    assert after["prices_exact"] - before["prices_exact"] == 5
    assert after["seq:prices"] == before["seq:prices"]
