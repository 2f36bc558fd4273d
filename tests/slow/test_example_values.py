"""Values for `$1`, `$2`, ...: a statement's text taken apart, and examples that are real and find something."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run_all

from perfkit.base.errors import PlanError
from perfkit.explain import facts, plan
from perfkit.postgres import databases
from perfkit.postgres.commands import aligned, fixed, named_placeholders, numbered, placeholders
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.sqltext import scan
from perfkit.slow.examples import Value, cast, example_rows, preparable, prepared, unified

TABLES = """
CREATE TYPE colour AS ENUM ('red', 'green', 'blue');
CREATE DOMAIN short AS text CHECK (length(value) < 50);
CREATE TABLE "Shops" (id uuid PRIMARY KEY, "Name" short NOT NULL, tags text[] NOT NULL, facts jsonb NOT NULL);
INSERT INTO "Shops" SELECT md5(n::text)::uuid, 'Shop ' || n, ARRAY['t' || n % 7, 'all'], jsonb_build_object('n', n)
FROM generate_series(1, 400) n;
CREATE TABLE sales (
    id bigint PRIMARY KEY, shop uuid NOT NULL REFERENCES "Shops", colour colour NOT NULL, sold timestamptz NOT NULL,
    day date NOT NULL, at time NOT NULL, price numeric(8, 2) NOT NULL, code char(6) NOT NULL, email text, size smallint
);
INSERT INTO sales
SELECT n, md5((n % 400 + 1)::text)::uuid, (ARRAY['red', 'red', 'red', 'green', 'blue'])[1 + n % 5]::colour,
       '2025-01-01Z'::timestamptz + n * interval '10 minutes', '2025-01-01'::date + n % 300,
       '08:00'::time + n % 600 * interval '1 minute', n % 1000 + 0.5, lpad(n::text, 6, '0'),
       CASE WHEN n % 3 = 0 THEN 'User' || n || '@Example.com' END, n % 9
FROM generate_series(1, 20000) n;
CREATE TABLE parts (day int NOT NULL, x int NOT NULL) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
INSERT INTO parts SELECT n % 200, n FROM generate_series(1, 4000) n;
CREATE TABLE empty (id int PRIMARY KEY, note text);
CREATE VIEW dear AS SELECT * FROM sales WHERE price > 500;
CREATE TABLE many (id uuid, n int, kind text); -- never analysed
INSERT INTO many SELECT md5(n::text)::uuid, n, 'k' || n % 3 FROM generate_series(1, 5000) n;
"""

KINDS = {
    "bit(4)": "B'1010'", "bit varying": "B'101'", "money": "'12.5'", "int4range": "'[1,5)'", '"char"': "'x'",
    "name": "'nm'", "oid": "1259", "regclass": "'pg_class'", "bytea": "'\\x0102'", "varchar(5)": "'ab''c'",
    "double precision": "1.1", "real": "2.1", "macaddr": "'08:00:2b:01:02:03'", "inet": "'10.0.0.1'",
    "cidr": "'10.0.0.0/8'", "tsvector": "'a b'", "interval": "'3 days'", "timetz": "'12:00+02'",
    "timestamp": "'infinity'", "boolean": "true", "jsonb": """'{"a": [1, "x"]}'""", "int[]": "'{1,2}'",
    "text[]": """'{"a,b","c\\"d"}'""", "colour": "'red'", "colour[]": "'{red,blue}'", "short": "'x'", "pg_lsn": "'0/1'",
    "daterange": "'[2020-01-01,2020-02-01)'", "numeric": "'NaN'", "xid": "'5'", "char(4)": "'q'", "tsquery": "'a & b'",
}  # fmt: skip


@pytest.fixture(scope="module", params=["server", "server16"])
def place(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(server, "examples")
    try:
        with databases.connected(server, "examples") as connection:
            run_all(connection, TABLES.encode())
            connection.execute('VACUUM (ANALYZE) "Shops", sales, parts, empty')
        yield Database(server, "examples")
    finally:
        databases.drop(server, "examples")


def examples(place: Database, text: str, n: int = 1, seed: int = 1) -> list[tuple[Value, ...]]:
    return example_rows(place, prepared(place, text), n, seed)


def executed(place: Database, text: str, row: tuple[Value, ...]) -> list[dict[str, Any]]:
    """The rows that a statement gives for these values, in a transaction that is rolled back."""
    with place.session() as connection:
        cursor = connection.execute(
            named_placeholders(prepared(place, text)).encode(), {f"p{value.number}": value.text for value in row}
        )
        found = cursor.fetchall()
        connection.rollback()
        return found


# the text

PIECES = st.sampled_from(
    ["SELECT", " ", "\n", "$1", "$2", "$13", "'a $1'", "'it''s %'", "E'\\' $3'", '"$4"', "$$ $5 % $$", "$t$ $6 $t$",
     "%", "-- $7 %\n", "/* $8 /* $9 */ */", "a$10", "::int", "(", ")", "LIKE", "'%(p1)s'", "%%", "1.5", "+", ".", ";"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=25))
def test_named_placeholders_are_the_same_statement_again_when_numbered(pieces: list[str]) -> None:
    text = " ".join(pieces)  # pieces that touch could make another piece
    wanted = sorted({int(piece[1:]) for piece in pieces if re.fullmatch(r"\$\d+", piece)})
    assert placeholders(text) == tuple(wanted)
    if not wanted:
        assert named_placeholders(text) == text
        return
    back = numbered(named_placeholders(text))
    numbers = [int(name[1:]) for name in back.names]
    assert sorted(numbers) == wanted
    renumbered = {f"${n}": f"${numbers.index(n) + 1}" for n in numbers}
    assert back.text == " ".join(renumbered.get(piece, piece) for piece in pieces)


@given(st.text(st.characters(codec="utf-8")) | st.text("'\"$-/*eE\\ \n1a%;"))
def test_any_text_is_cut_into_pieces_that_are_the_text(text: str) -> None:
    assert "".join(token.text for token in scan(text)) == text


CONSTANTS = st.one_of(
    st.integers(-(10**6), 10**6).map(lambda n: (str(n), str(n))),
    st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(lambda t: ("'" + t.replace("'", "''") + "'", t)),
    st.just(("$$it's$$", "it's")),
    st.sampled_from([("NULL", None), ("true", "true")]),
)


@given(st.lists(CONSTANTS, min_size=1, max_size=5))
def test_the_constants_of_an_execution_are_the_values_of_the_normalised_text(
    given: list[tuple[str, str | None]],
) -> None:
    names = [f"c{n}" for n in range(len(given))]
    text = "SELECT * FROM t WHERE " + " AND ".join(f"{c} = ${n}" for n, c in enumerate(names, 1))
    example = "select *\n  from t -- then\nwhere " + " and ".join(
        f"{c}={sql}" for c, (sql, _) in zip(names, given, strict=True)
    )
    assert aligned(text, example + ";") == {n: value for n, (_, value) in enumerate(given, 1)}


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("SELECT $1", "SELECT 1, 2"),
        ("SELECT $1, $2", "SELECT 1"),
        ("SELECT $1 FROM a", "SELECT 1 FROM b"),
        ("SELECT $1, $1", "SELECT 1, 2"),
        ("SELECT $1", "SELECT x"),
        ("SELECT $1", "SELECT $1"),
        ("SELECT $1", "SELECT E'a\\nb'"),
        ("SELECT * FROM t WHERE id IN ($1 /*, ... */)", "SELECT * FROM t WHERE id IN (1, 2, 3)"),
    ],
)
def test_what_is_another_statement_tells_no_values(text: str, example: str) -> None:
    assert aligned(text, example) is None


def test_an_execution_with_parameters_of_its_own_tells_them() -> None:
    assert aligned("SELECT $1", "SELECT N'cost $5 each one'") is None
    assert aligned("SELECT $1 WHERE a = $2 LIMIT $3", "SELECT $2 WHERE a = $1 LIMIT 5", ["x", None]) == {
        1: None, 2: "x", 3: "5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("SELECT now() - interval $1", "SELECT now() - $1::interval"),
        ("SELECT INTERVAL  $1 day", "SELECT $1::interval day"),
        ("SELECT timestamp with time zone $1", "SELECT $1::timestamp with time zone"),
        ("SELECT x::timestamp AT TIME ZONE $1", "SELECT x::timestamp AT TIME ZONE $1"),
        ("SELECT 'interval $1', date /* $2 */ $3", "SELECT 'interval $1', $3::date"),
        ("SELECT EXTRACT($1 FROM sold)", "SELECT date_part($1, sold)"),
        ("SELECT extract(epoch FROM sold - $1)", "SELECT extract(epoch FROM sold - $1)"),
        ('SELECT "interval" + $1', 'SELECT "interval" + $1'),
    ],
)
def test_a_constant_in_the_name_of_a_type_is_made_a_cast(text: str, fit: str) -> None:
    assert preparable(text) == fit


def test_a_cast_goes_to_the_placeholder_beside_the_operator() -> None:
    assert cast("SELECT $1 - day, $2", 11, "integer") == "SELECT $1::integer - day, $2"
    assert cast("SELECT day + $1 + $2", 12, "integer") == "SELECT day + $1::integer + $2"
    assert cast("SELECT day + x, $1", 12, "integer") == "SELECT day + x, $1"


def test_calls_that_are_the_same_get_the_same_placeholders() -> None:
    text = "SELECT f($1, g($2)), f($3, x) FROM t WHERE g($4) GROUP BY f($5, g($6)), F ( $7, x ) LIMIT $8"
    same = "SELECT f($1, g($2)), f($3, x) FROM t WHERE g($4) GROUP BY f($1, g($2)), F ( $3, x ) LIMIT $5"
    assert unified(text) == same and unified("SELECT f($1") == "SELECT f($1"


def test_some_places_take_some_values_only() -> None:
    found = fixed("SELECT date_trunc($1, x AT TIME ZONE $2) FROM t LIMIT $3 OFFSET ($4)")
    assert found == {1: ("day", "DATE_TRUNC"), 2: ("UTC", "ZONE"), 3: ("10", "LIMIT")}


# the values

FINDING = {
    "a key": "SELECT * FROM sales WHERE id = $1",
    "a key of another number's type": "SELECT * FROM sales WHERE id = $1::int",
    "several columns of one table": "SELECT * FROM sales WHERE shop = $1 AND colour = $2 AND price = $3 AND sold = $4",
    "a span": "SELECT * FROM sales WHERE shop = $1 AND sold > $2 AND sold < $3",
    "a number between two": "SELECT * FROM sales WHERE price BETWEEN $1 AND $2 AND id > $3",
    "a day": "SELECT * FROM sales WHERE sold >= $1::date AND sold < $1::date + 1",
    "a day whose arithmetic lost its types": "SELECT * FROM sales WHERE day < $1::date + $2 AND day >= $1::date",
    "a function of a column": "SELECT * FROM sales WHERE lower(email) = $1",
    "text of fixed length": "SELECT * FROM sales WHERE code = $1",
    "a name that has to be quoted": 'SELECT * FROM "Shops" AS "S" WHERE "S"."Name" = $1',
    "a pattern": 'SELECT * FROM "Shops" WHERE "Name" LIKE $1 AND id = $2',
    "a list": "SELECT * FROM sales WHERE id IN ($1, $2, $3)",
    "an array of keys": "SELECT * FROM sales WHERE id = ANY ($1) AND price > $2",
    "a value in the column's array": 'SELECT * FROM "Shops" WHERE $1 = ANY (tags)',
    "an array in the column's": 'SELECT * FROM "Shops" WHERE tags @> $1 AND facts @> $2',
    "what it must not be": "SELECT * FROM sales WHERE colour <> $1 AND id = $2",
    "one of two": "SELECT * FROM sales WHERE id = $1 OR shop = $2",
    "a join": 'SELECT * FROM sales s JOIN "Shops" x ON x.id = s.shop WHERE s.id = $1 AND s.colour = $2',
    "conditions without parameters": "SELECT * FROM sales WHERE colour = 'blue' AND email IS NOT NULL AND shop = $1",
    "a view": "SELECT * FROM dear WHERE shop = $1 AND colour = $2",
    "a partitioned table": "SELECT * FROM parts WHERE day = $1 AND x = $2",
    "a time of day": "SELECT * FROM sales WHERE at = $1 AND size = $2",
    "a page of a list": "SELECT * FROM sales WHERE colour = $1 ORDER BY sold LIMIT $2 OFFSET $3",
    "a unit": "SELECT date_trunc($1, sold), extract($2 FROM sold) FROM sales WHERE day = $3",
    "what is grouped by": """SELECT date_trunc($1, sold), count(*) FROM sales WHERE day = $2
        GROUP BY date_trunc($3, sold) LIMIT $4""",
    "a document that is built": "SELECT jsonb_build_object($1, id, $2, day) FROM sales WHERE id = $3",
    "an interval": "SELECT * FROM sales WHERE sold > $1::timestamptz - interval $2 AND shop = $3",
    "a table without statistics": "SELECT * FROM many WHERE id = $1",
    "a column that is changed": "UPDATE sales SET price = $1, colour = $2 WHERE id = $3 RETURNING id",
    "a row that is deleted": "DELETE FROM sales WHERE id = $1 RETURNING id",
    "a row that is new": "INSERT INTO sales VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id",
    "columns of a new row": "INSERT INTO empty (id, note) VALUES ($1, $2), ($3, $4) RETURNING id",
    "rows made from others": "INSERT INTO many (id, n) SELECT shop, $1 FROM sales WHERE id = $2 RETURNING id",
    "nothing but values": "SELECT $1::uuid, $2::jsonb, $3::inet, $4::colour, $5::bytea, $6::int4range, $7::time",
}


@pytest.mark.parametrize("text", FINDING.values(), ids=FINDING.keys())
def test_values_find_something(place: Database, text: str) -> None:
    if text.startswith("INSERT INTO sales"):  # without its columns named only a plain value can be had
        with place.connect() as connection:
            shop = connection.execute('SELECT id::text FROM "Shops" LIMIT 1').fetchone() or {}
        (row,) = examples(place, text)
        row = tuple(v if v.number != 2 else Value(2, v.type, shop["id"], "given") for v in row)
        with pytest.raises(Exception, match="sales_pkey"):
            executed(place, text, row)
        return
    for row in examples(place, text, 3):
        assert [value.number for value in row] == list(placeholders(prepared(place, text)))
        assert all(value.origin for value in row)
        assert executed(place, text, row), row


def test_each_value_says_where_it_is_from(place: Database) -> None:
    (row,) = examples(
        place, "SELECT * FROM sales WHERE shop = $1 AND price > $2 AND sold < now() - $3::interval LIMIT $4"
    )
    assert [(value.type, value.origin) for value in row] == [
        ("uuid", "a row of sales"),
        ("numeric", "a row of sales"),
        ("interval", "no column to take it from: a plain one"),
        ("bigint", "a usual value for LIMIT"),
    ]
    (row,) = examples(place, "SELECT * FROM sales WHERE colour = $1")
    assert (row[0].type, row[0].origin) == ("colour", "pg_stats of sales.colour")
    (row,) = examples(place, "INSERT INTO empty (id) VALUES ($1)")
    assert row[0].origin == "a new one, for it is unique"


def test_a_value_of_any_type_finds_its_row(place: Database) -> None:
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(KINDS))
    with place.connect() as connection:
        connection.execute(f"CREATE TABLE kinds (id int, {columns})".encode())
        connection.execute(f"INSERT INTO kinds VALUES (1, {', '.join(KINDS.values())})".encode())
    for n, kind in enumerate(KINDS):
        text = f"SELECT id FROM kinds WHERE c{n} = $1 AND id = $2"
        (row,) = examples(place, text)
        assert executed(place, text, row), (kind, row)
    with place.connect() as connection:
        connection.execute("DROP TABLE kinds")


def test_values_from_statistics_come_as_often_as_their_rows(place: Database) -> None:
    found = [row[0].text for row in examples(place, "SELECT * FROM sales WHERE colour = $1", 500)]
    assert set(found) == {"red", "green", "blue"}
    assert 0.5 < found.count("red") / 500 < 0.7  # of the rows 0.6


def test_the_same_seed_gives_the_same_values_and_another_one_others(place: Database) -> None:
    text = "SELECT * FROM sales WHERE shop = $1 AND price = $2"
    first = examples(place, text, 5, seed=7)
    assert first == examples(place, text, 5, seed=7) != examples(place, text, 5, seed=8)
    assert len({row[0].text for row in first}) > 1


def test_what_must_not_be_is_the_rarest_value(place: Database) -> None:
    (row,) = examples(place, "SELECT * FROM many WHERE n <> $1 AND kind <> $2")
    assert row[1].text in ("k0", "k1", "k2")
    (row,) = examples(place, "SELECT * FROM sales WHERE colour <> $1 AND id = $2")
    assert row[0].text in ("green", "blue")


def test_what_a_part_of_a_plan_gives_is_no_parameter(place: Database) -> None:
    text = "SELECT * FROM sales WHERE id = (SELECT max(id) FROM sales WHERE shop = $1 AND day = $2)"
    (row,) = examples(place, text)
    if place.server.version < 17:  # where plans call both `$1`
        assert "no column" in row[0].origin
    else:
        assert executed(place, text, row)


def test_a_table_that_may_not_be_read_is_one_clear_line(place: Database) -> None:
    with place.server.connect(place.name, "postgres") as connection:
        connection.execute("CREATE TABLE secret (id int, name text)")
        with pytest.raises(PlanError, match="permission denied for table secret"):
            examples(place, "SELECT * FROM secret WHERE id = $1 AND name = $2")
        connection.execute("DROP TABLE secret")


def test_without_rows_values_are_plain(place: Database) -> None:
    (row,) = examples(place, "SELECT * FROM empty WHERE id = $1 AND note = $2")
    assert [(value.text, value.type) for value in row] == [("1", "integer"), ("a", "text")]


def test_a_condition_that_writes_is_not_evaluated(place: Database) -> None:
    with place.connect() as connection:
        connection.execute("CREATE SEQUENCE counted")
        before = connection.execute("SELECT last_value, is_called FROM counted").fetchone()
        examples(place, "SELECT * FROM sales WHERE nextval('counted') > 0 AND shop = $1 AND day = $2")
        assert connection.execute("SELECT last_value, is_called FROM counted").fetchone() == before
        connection.execute("DROP SEQUENCE counted")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SELECT * FROM sales WHERE", "syntax error at end of input; expected the whole statement"),
        ("SELECT * FROM sales WHERE id = $1 AND (day", "expected the whole statement; this text is truncated"),
        ("SELECT * FROM sales GROUP $1", "expected its values written out"),
        ("SELECT $1 + $2 + foo", 'column "foo" does not exist'),
        ("SELECT * FROM nowhere WHERE id = $1", 'relation "nowhere" does not exist'),
    ],
)
def test_a_text_that_cannot_be_prepared_is_one_clear_line(place: Database, text: str, said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)) as error:
        examples(place, text)
    assert "\n" not in str(error.value)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(["'$9'", "$1::int", "$$ $8 $$", "/* $7 */ 1", '1 AS "$6"', "E'\\'$5'", "$2::text"]), min_size=1
    )
)
def test_the_server_finds_the_same_placeholders(place: Database, parts: list[str]) -> None:
    text = f"SELECT {', '.join(parts)}"
    if placeholders(text) in ((1,), (1, 2)):
        (row,) = example_rows(place, text)
        assert tuple(value.number for value in row) == placeholders(text)


def test_no_transaction_is_open_while_the_plan_is_read(place: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    text, reads = prepared(place, "SELECT * FROM sales WHERE colour = $1 AND size > $2"), []

    def watched(read: Callable[[Any], object]) -> Callable[[Any], object]:
        def reading(raw: Any) -> object:
            query = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = 'examples' AND state ~ 'in transaction'"
            with databases.connected(place.server, "postgres", user="postgres") as connection:
                reads.extend(row["n"] for row in connection.execute(query))
            return read(raw)

        return reading

    monkeypatch.setattr("perfkit.slow.examples.load_plan", watched(plan.load_plan))
    monkeypatch.setattr("perfkit.slow.examples.parsed", watched(facts.parsed))
    assert example_rows(place, text) and reads and not any(reads)
