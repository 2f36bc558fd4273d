"""Rewrites return the same rows: every rule, on real servers, over constants and rows at its edges."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import psycopg
import pytest
from scripts import run_all

from perfkit.explain.conditions import blocks, condition, conditions
from perfkit.explain.facts import PlanFacts, ask, read_facts
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import read_plan
from perfkit.explain.rewrites import RULES, UNITS, WHY, operand, rewritten
from perfkit.indexes.advice import reason
from perfkit.indexes.rewriting import either, replaced
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

COMPARED = ("=", "<", "<=", ">", ">=")
ORDINARY = ("UTC", "Europe/Berlin", "Asia/Kolkata")
# Zones whose clocks were set at midnight, past midnight, by half an hour, or by a day; and when.
TURNS = {
    "Europe/Berlin": ("2024-03-31", "2024-10-27"),
    "America/Sao_Paulo": ("2018-02-18", "2018-11-04"),
    "Asia/Beirut": ("2024-03-31", "2024-10-27"),
    "Atlantic/Azores": ("2024-03-31", "2024-10-27"),
    "America/Havana": ("2024-03-10", "2024-11-03"),
    "America/St_Johns": ("2006-04-02", "2006-10-29"),
    "Australia/Lord_Howe": ("2024-04-07", "2024-10-06"),
    "Pacific/Apia": ("2011-12-30", "2011-12-31"),
    "Pacific/Kwajalein": ("1993-08-21", "1993-08-22"),
    "Asia/Manila": ("1844-12-31", "1845-01-01"),
    "America/Juneau": ("1867-10-18", "1867-10-19"),
}
DAYS = ("2024-02-28", "2024-02-29", "2024-03-01", "2023-12-31", "2024-01-01", "2000-02-29", "1900-03-01")
TIMES = (*DAYS, "2024-03-15", "2024-03-01 12:00", "2024-02-29 23:59:59.999999", "2024-01-01 00:00:00.000001")
ODD_TIMES = (
    "infinity",
    "-infinity",
    "4713-01-01 BC",
    "0044-03-15 BC",
    "294276-12-30",
    "9999-12-31",
    "0001-01-01",
)
INTEGERS = ("0", "7", "-7", "5", "100", "32767", "-32768")
NUMBERS = ("5", "5.0", "5.5", "-5.5", "0", "-0.0", "7", "'NaN'", "'Infinity'", "'-Infinity'", "1e3", "1e30", "-7",
           "9007199254740992", "9007199254740993", "16777216", "16777217", "2147483647", "2147483647.5")  # fmt: skip
UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
TEXTS = ("abc%", "ABC%", "Ünï%", "ı%", "I%", "ΑΣ%", "a c%", "''%")

# One table a type; each holds a null.
TABLES = f"""
CREATE TABLE of_integers (id int GENERATED ALWAYS AS IDENTITY, s smallint, i int, b bigint);
INSERT INTO of_integers (s, i, b)
SELECT n, n, n FROM generate_series(-120, 120) n
UNION ALL SELECT 32767, 2147483647, 9223372036854775807 UNION ALL SELECT -32768, -2147483648, -9223372036854775808
UNION ALL SELECT NULL, 16777216 + n, 9007199254740992 + n FROM generate_series(-3, 3) n;
CREATE TABLE of_reals (id int GENERATED ALWAYS AS IDENTITY, r real);
INSERT INTO of_reals (r) VALUES (NULL), (0), ('-0'), ('NaN'), ('Infinity'), ('-Infinity'), (5.5), (0.1), (7);
CREATE TABLE of_uuids (id int GENERATED ALWAYS AS IDENTITY, u uuid);
INSERT INTO of_uuids (u) VALUES (NULL), ('{UUID}'), ('00000000-0000-0000-0000-000000000000');
CREATE TABLE of_texts (id int GENERATED ALWAYS AS IDENTITY, t text, v varchar(20), c char(6));
INSERT INTO of_texts (t, v, c) SELECT x, x, x FROM unnest(ARRAY[
    NULL, '', ' ',
    'abc', 'ABC', 'Abc ', 'abcd', 'a_c', 'a%c', 'üNÏx', 'ÜnïX', 'ı', 'I', 'i', 'İ', 'ας', 'ΑΣ', 'A c']) x;
CREATE TABLE of_arrays (id int GENERATED ALWAYS AS IDENTITY, t text[], v varchar(9)[], i int[], b bigint[], f float8[]);
INSERT INTO of_arrays (t, v, i, b, f) VALUES (NULL, NULL, NULL, NULL, NULL), ('{{}}', '{{}}', '{{}}', '{{}}', '{{}}'),
    ('{{a,NULL}}', '{{a,NULL}}', '{{5,NULL}}', '{{5,NULL}}', '{{-0,NULL}}'),
    ('{{NULL}}', '{{NULL}}', '{{NULL}}', '{{NULL}}', '{{NULL}}'),
    ('{{{{a,b}},{{c,d}}}}', '{{b}}', '{{{{5,6}},{{7,8}}}}', '{{7}}', '{{NaN}}'),
    ('{{"a ","",A}}', '{{A}}', '{{6}}', '{{6}}', '{{0}}');
CREATE TABLE of_times (id int GENERATED ALWAYS AS IDENTITY, at timestamptz, local timestamp, day date);
"""


@dataclass
class Database:
    """A database of edges, what is offered for a condition in it, and whether that returns the same rows."""

    connection: psycopg.Connection[Any]
    used: dict[str, int] = field(default_factory=dict)
    facts: dict[frozenset[tuple[str, str]], PlanFacts] = field(default_factory=dict)

    def look(self, sql: str) -> FindingContext:
        row = self.connection.execute(f"EXPLAIN (FORMAT JSON, VERBOSE) {sql}".encode()).fetchone() or {}
        plan = read_plan(next(iter(row.values())))
        tables = frozenset((node.schema, node.relation) for node in plan.nodes if node.relation)
        if tables not in self.facts:
            self.facts[tables] = read_facts(ask(self.connection, plan))
        return FindingContext(plan, self.facts[tables])

    def offered(self, sql: str) -> Iterator[tuple[str, str, str, str]]:
        """The rule, a condition of a statement, and the condition and statement that are offered for it."""
        look = self.look(sql)
        for node in look.plan.nodes:
            for p in conditions(look.facts, node, "Filter"):
                if len(p.columns) != 1 or (not p.operator and not blocks(look.facts, node, p)):
                    continue
                c, (name,) = condition(look.facts, node, p), p.columns
                if found := rewritten(c):
                    block = blocks(look.facts, node, p)
                    text = block.rewrite if block and block.rewrite else found.filled(name, operand(c.value), c.text)
                    yield found.rule, c.text, text, replaced(sql, node.alias, name, c, found)

    def assert_same(self, table: str, text: str, *, some: bool = False) -> set[str]:
        """What is offered for a condition returns the same rows; the rules that offered it."""
        sql = f"SELECT id FROM {table} x WHERE {text}"
        rules = set()
        for rule, own, other, statement in self.offered(sql):
            rules.add(rule)
            self.used[rule] = self.used.get(rule, 0) + 1
            assert self.different(table, own, other) == 0, f"{rule}: {own}: {other}"
            if statement and self.used[rule] % 5 == 1:
                assert self.rows(statement) == self.rows(sql), f"{rule}: {statement}"
            self.used[f"{rule}, in a statement"] = self.used.get(f"{rule}, in a statement", 0) + bool(statement)
        assert rules or not some, f"nothing is offered for {text}"
        return rules

    def different(self, table: str, one: str, other: str) -> int:
        counted = f"SELECT count(*) AS n FROM {table} x WHERE (({one}) IS TRUE) IS DISTINCT FROM (({other}) IS TRUE)"
        return int((self.connection.execute(counted.encode()).fetchone() or {})["n"])

    def rows(self, sql: str) -> list[Any]:
        with self.connection.transaction(force_rollback=True):
            return sorted(str(tuple(row.values())) for row in self.connection.execute(sql.encode()))

    def zone(self, name: str) -> None:
        self.connection.execute(f"SET TimeZone = '{name}'".encode())

    def fill(self, moments: str) -> None:
        """Times around some moments, and the ends of time."""
        run_all(
            self.connection,
            f"""TRUNCATE of_times;
            INSERT INTO of_times (at, local, day)
            SELECT m + s, (m + s)::timestamp, (m + s)::date
            FROM ({moments}) AS given (m), unnest('{{0,1us,-1us,30min,-30min,1h,-1h,90min,-90min,23h,-23h,1d,
                -1d,25h,-25h,2d,-2d,28d,-28d,29d,-29d,30d,31d,-31d,90d,-90d,365d,-365d,366d,-366d}}'::interval[]) s;
            INSERT INTO of_times (at, local, day)
            VALUES (NULL, NULL, NULL), ('infinity', 'infinity', 'infinity'), ('-infinity', '-infinity', '-infinity'),
                   ('2000-01-01 BC', '2000-01-01 BC', '2000-01-01 BC'), ('200000-01-01', '200000-01-01', '200000-01-01')
            """.encode(),
        )


@pytest.fixture(scope="module", params=["server", pytest.param("server16", marks=pytest.mark.slow)])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: EmbeddedServer = request.getfixturevalue(request.param)
    databases.create(server, "rewrites")
    try:
        with server.connect("rewrites") as connection:
            run_all(connection, TABLES.encode())
            yield Database(connection)
    finally:
        databases.drop(server, "rewrites")


def literals(values: tuple[str, ...], kind: str) -> list[str]:
    return [f"'{value}'::{kind}" for value in values]


# One test a rule; test_every_rule_has_its_test compares their names with the table of rules.


def rule_widened(db: Database) -> None:
    for column, kind, op in product("si", ("int", "bigint"), COMPARED):
        for value in (*INTEGERS, "NULL", "2147483648", "-9223372036854775808"):
            db.assert_same("of_integers", f"{column}::{kind} {op} {value}")
    for op, value in product(COMPARED, ("0", "-0", "NaN", "Infinity", "0.1", "5.5", "16777217")):
        db.assert_same("of_reals", f"r::float8 {op} '{value}'::float8", some=True)


def rule_whole_number(db: Database) -> None:
    for column, kind, op, value in product("sib", ("numeric", "float8", "real"), COMPARED, NUMBERS):
        db.assert_same("of_integers", f"{column}::{kind} {op} {value}")
    for column, op, value in product("b", COMPARED, NUMBERS):
        db.assert_same("of_integers", f"{column} {op} {value}::{'numeric' if value[0] == chr(39) else 'float8'}")
        db.assert_same("of_integers", f"{value}::numeric {op} {column}")


def rule_integer_as_text(db: Database) -> None:
    values = ("7", "-7", "0", "-0", "007", "+7", " 7", "7 ", "", "abc", "7.0", "32768", "2147483647",
              "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1e1", "٧")  # fmt: skip
    for column, op, value in product("sib", COMPARED, values):
        db.assert_same("of_integers", f"{column}::text {op} '{value}'")


def rule_uuid_as_text(db: Database) -> None:
    for op, value in product(COMPARED, (UUID, UUID.upper(), UUID.replace("-", ""), "{" + UUID + "}", "", UUID + " ")):
        db.assert_same("of_uuids", f"u::text {op} '{value}'")


def rule_day_of_a_timestamp(db: Database) -> None:
    of_days(db, "local")


def rule_day_of_a_timestamptz(db: Database) -> None:
    of_days(db, "at")
    for zone, turns in TURNS.items():
        db.zone(zone)
        db.fill(f"VALUES {', '.join(f'(timestamptz {turn!r})' for turn in turns)}")
        for op, day in product(COMPARED, turns):
            db.assert_same("of_times", f"at::date {op} '{day}'", some=True)
            db.assert_same("of_times", f"date(at) {op} date '{day}' + 1", some=True)


def of_days(db: Database, column: str) -> None:
    db.zone("UTC")
    db.fill(f"VALUES {', '.join(f'(timestamptz {day!r})' for day in DAYS)}, (now())")
    for op, day, cast in product(COMPARED, (*DAYS, *ODD_TIMES), (f"{column}::date", f"date({column})")):
        db.assert_same("of_times", f"{cast} {op} '{day.partition(' 2')[0]}'::date", some=day in DAYS)
    for op, day in product(COMPARED, ("CURRENT_DATE", "CURRENT_DATE - 7", "now()::date", "CURRENT_DATE + 400", "NULL")):
        db.assert_same("of_times", f"{column}::date {op} {day}", some=day != "NULL")
    db.assert_same("of_times", f"{column}::date BETWEEN '2024-02-29' AND '2024-03-01'", some=True)
    for op, value in product(
        COMPARED, (*literals(TIMES, "timestamp"), "'today'::date", "ALL ('{2024-02-29}'::date[])")
    ):
        db.assert_same("of_times", f"{column}::date {op} {value}")


def rule_unit_of_a_timestamp(db: Database) -> None:
    db.zone("UTC")
    db.fill(f"VALUES {', '.join(f'(timestamptz {time!r})' for time in TIMES)}")
    for unit, op, time in product((*UNITS, "decade", "century", "milliseconds"), COMPARED, TIMES):
        db.assert_same("of_times", f"date_trunc('{unit}', local) {op} '{time}'")
        db.assert_same("of_times", f"date_trunc('{unit}', local) {op} date_trunc('{unit}', timestamp '{time}')",
                       some=unit in UNITS)  # fmt: skip
    for unit, op, time in product(UNITS, COMPARED, ODD_TIMES):
        db.assert_same("of_times", f"date_trunc('{unit}', local) {op} '{time}'")
    assert not db.assert_same("of_times", "date_trunc('day', local) = '2024-03-01 12:00'")


def rule_near_a_unit(db: Database) -> None:
    for zone, turns in TURNS.items():
        db.zone(zone)
        db.fill(f"VALUES {', '.join(f'(timestamptz {turn!r})' for turn in turns)}")
        of_units(db, turns, UNITS if zone in ("Europe/Berlin", "Australia/Lord_Howe") else ("hour", "day", "month"))
    db.fill("VALUES (now())")
    for column, unit, op in product(("at", "local", "day"), UNITS, COMPARED):
        now = "LOCALTIMESTAMP" if column == "local" else "now()"
        db.assert_same("of_times", f"date_trunc('{unit}', {column}) {op} date_trunc('{unit}', {now})", some=True)
        db.assert_same("of_times", f"date_trunc('{unit}', {column}) {op} {now} - interval '1 month'", some=True)
        db.assert_same("of_times", f"date_trunc('{unit}', {column}) {op} date_trunc('{unit}', CURRENT_DATE)")
    for unit, op, time in product(("hour", "month"), COMPARED, ODD_TIMES):
        db.assert_same("of_times", f"date_trunc('{unit}', at) {op} '{time}'")


def of_units(db: Database, turns: Iterable[str], units: Iterable[str]) -> None:
    for unit, turn in product(units, turns):
        aligned = f"SELECT date_trunc('{unit}', timestamptz '{turn} 00:30') AS v"
        first = (db.connection.execute(aligned.encode()).fetchone() or {})["v"]
        for op, time in product(COMPARED, {turn, f"{turn} 12:30", str(first)}):
            db.assert_same("of_times", f"date_trunc('{unit}', at) {op} '{time}'", some=True)
            if unit != "hour":
                db.assert_same("of_times", f"date_trunc('{unit}', day) {op} '{time}'", some=True)


def rule_year(db: Database) -> None:
    of_years(db, "local", "day")


def rule_year_of_a_timestamptz(db: Database) -> None:
    of_years(db, "at")


def of_years(db: Database, *columns: str) -> None:
    for zone in ("UTC", "Pacific/Apia", "Asia/Manila", "America/Juneau"):
        db.zone(zone)
        db.fill("VALUES (timestamptz '2024-01-01'), ('2024-12-31'), ('2011-12-31'), ('1844-12-31'), ('1867-10-18')")
        years = ("2024", "2025", "2012", "1844", "1845", "1867", "2023.5", "0", "-44", "'NaN'", "'Infinity'")
        for column, op, year in product(columns, COMPARED, years):
            db.assert_same("of_times", f"extract(year FROM {column}) {op} {year}", some=len(year) == 4 and year > "1")
            db.assert_same("of_times", f"date_part('year', {column}) {op} {year}")


SHIFTS = ("1 month", "-1 month", "13 months", "1 day", "-30 days", "1 hour", "90 minutes", "1 month -1 day", "0",
          "1 year 2 months 3 days 04:05:06", "1.5 seconds", "1 week", "-1 month 1 hour")  # fmt: skip


def rule_shifted_time(db: Database) -> None:
    for zone, column in product(("UTC", "Europe/Berlin", "Pacific/Apia"), ("at", "local")):
        db.zone(zone)
        db.fill("VALUES (timestamptz '2024-03-31'), ('2024-02-29'), ('2024-01-31'), ('2011-12-31'), (now())")
        now = "now()" if column == "at" else "LOCALTIMESTAMP"
        for shift, op in product((*SHIFTS, *(f"- {shift}" for shift in SHIFTS[:3])), ("=", "<", ">=")):
            sign, shift = ("-", shift[2:]) if shift.startswith("- ") else ("+", shift)
            for time in ("2024-03-31", "2024-02-29 12:00", "2012-01-31"):
                db.assert_same("of_times", f"{column} {sign} interval '{shift}' {op} '{time}'", some="." not in shift)
            db.assert_same("of_times", f"{column} {sign} interval '{shift}' {op} {now}", some="." not in shift)
            db.assert_same("of_times", f"{column} {sign} interval '{shift}' {op} {now} - interval '3 days'")
        for op, time in product(COMPARED, ODD_TIMES):
            db.assert_same("of_times", f"{column} + interval '1 month' {op} '{time}'")


def rule_shifted_date(db: Database) -> None:
    db.zone("UTC")
    db.fill("VALUES (timestamptz '2024-02-29'), ('2024-03-31'), (now())")
    for op, sign, days in product(COMPARED, "+-", (0, 1, 30, 366)):
        for day in ("'2024-03-01'", "'2024-02-29'", "CURRENT_DATE", "CURRENT_DATE - 7", "now()::date"):
            db.assert_same("of_times", f"day {sign} {days} {op} {day}", some=True)
        for day in ODD_TIMES:
            db.assert_same("of_times", f"day {sign} {days} {op} '{day.partition(' 2')[0]}'::date")
    db.assert_same("of_times", "30 + day > '2024-03-01'", some=True)


def rule_elapsed(db: Database) -> None:
    finite = "of_times_since"  # until 16 the difference of an infinite time is an error
    for zone in ("UTC", "Europe/Berlin", "America/Sao_Paulo"):
        db.zone(zone)
        db.fill("VALUES (now()), (now() - interval '200 days')")
        db.connection.execute(
            f"CREATE TABLE {finite} AS SELECT * FROM of_times WHERE isfinite(at) OR at IS NULL".encode()
        )
        for table in (finite, "of_times") if db.connection.info.server_version >= 170000 else (finite,):
            for op, span in product(
                COMPARED, ("1 hour", "1 day", "30 days", "1 month", "200 days", "-1 day", "1 year")
            ):
                db.assert_same(table, f"now() - at {op} interval '{span}'", some=True)
                db.assert_same(table, f"CURRENT_TIMESTAMP - at {op} interval '{span}'", some=True)
                db.assert_same(table, f"LOCALTIMESTAMP - local {op} interval '{span}'", some=True)
        db.connection.execute(f"DROP TABLE {finite}".encode())


def rule_not_distinct(db: Database) -> None:
    for value in ("7", "NULL", "-7", "2147483647"):
        db.assert_same("of_integers", f"i IS NOT DISTINCT FROM {value}", some=value == "7")
    for column, value in product("tvc", ("abc", "", " ", "ABC", "ı")):
        db.assert_same("of_texts", f"{column} IS NOT DISTINCT FROM '{value}'")
    for value in ("NaN", "-0", "0", "Infinity"):
        db.assert_same("of_reals", f"r IS NOT DISTINCT FROM '{value}'::real", some=True)


def rule_ignoring_case(db: Database) -> None:
    for column, text in product("tvc", TEXTS):
        db.assert_same("of_texts", f"{column} ILIKE '{text}'")
    assert (
        db.assert_same("of_texts", "t ILIKE 'AbC%'") == {"ignoring case"} == db.assert_same("of_texts", "v ILIKE 'a%'")
    )
    for text in ("%abc", "a_c%", "a\\%c%", "", "%", "abc"):
        assert not db.assert_same("of_texts", f"t ILIKE '{text}'")


def rule_member(db: Database) -> None:
    values = {
        "t": ("'a'", "''", "'a '", "'A'", "'it''s'", "NULL"),
        "v": ("'a'",),
        "i": ("5", "NULL", "5.5", "9999999999"),
        "b": ("5", "7", "9999999999"),
        "f": ("'-0'::float8", "'NaN'::float8", "0"),
    }
    for column, several in values.items():
        for value in several:
            db.assert_same("of_arrays", f"{value} = ANY ({column})")
    assert db.assert_same("of_arrays", "'a' = ANY (t)") == {"member"} == db.assert_same("of_arrays", "5 = ANY (b)")


def rule_sides_of_an_or(db: Database) -> None:
    sides = ("x.i = 5", "x.i IS NULL", "x.s > 5", "x.b <> 0", "x.i = x.s", "NULL", "x.s IS NULL AND x.i > 0", "r.r > 0")
    joined = "SELECT x.i, r.r FROM of_integers x LEFT JOIN of_reals r USING (id)"
    for one, other in product(sides, sides):
        for sql in (f"{joined} WHERE {one} OR {other};", f"{joined} WHERE x.id > 3 AND ({one} OR {other})"):
            assert (new := either(sql)), sql
            assert db.rows(new) == db.rows(sql)
    db.used["sides of an or"] = db.used["sides of an or, in a statement"] = 1
    for sql in (
        "SELECT count(*) FROM of_integers WHERE i = 1 OR s = 2",
        "SELECT DISTINCT i FROM of_integers WHERE i = 1 OR s = 2",
        "SELECT DISTINCT ON (i) i FROM of_integers WHERE i = 1 OR s = 2",
        "SELECT i FROM of_integers WHERE i = 1 OR s = 2 ORDER BY i LIMIT 1",
        "SELECT i FROM of_integers WHERE i = 1 OR s = 2 FETCH FIRST 1 ROW ONLY",
        "SELECT i FROM of_integers WHERE i = 1 OR s = 2 FOR UPDATE",
        "SELECT i FROM of_integers WHERE i = 1 OR random() < 0.5",
        "SELECT i FROM of_integers WHERE i = 1 OR some_function(s)",
        "SELECT i FROM of_integers TABLESAMPLE SYSTEM (10) WHERE i = 1 OR s = 2",
        "WITH w AS (SELECT 1) SELECT i FROM of_integers, w WHERE i = 1 OR s = 2",
        "SELECT i FROM of_integers WHERE i = 1 OR s = 2 OR b = 3",
        "SELECT i, row_number() OVER () FROM of_integers WHERE i = 1 OR s = 2",
        "SELECT i FROM of_integers WHERE NOT (i = 1 OR s = 2)",
    ):
        assert not either(sql), sql


TESTED = {name.removeprefix("rule_").replace("_", " "): test for name, test in [*globals().items()] if "rule_" in name}


def test_every_rule_has_its_argument_and_its_test() -> None:
    assert {*RULES, "sides of an or"} == set(WHY) == set(TESTED)


@pytest.mark.parametrize("rule", TESTED)
def test_a_rule_returns_the_same_rows(db: Database, rule: str) -> None:
    db.used.clear()
    TESTED[rule](db)
    assert db.used.get(rule), f"{rule} was never offered"
    assert rule == "member" or db.used.get(f"{rule}, in a statement"), f"{rule} was never offered in a statement"


# The statements as a person writes them


SCHEMA = """
CREATE SCHEMA app;
CREATE TABLE app.t (id bigint PRIMARY KEY, acc int NOT NULL, created timestamptz NOT NULL, local timestamp, day date,
    amount numeric, name text, descr varchar(80), "Größe" int, "user" timestamptz, tags text[]);
INSERT INTO app.t
SELECT i, (i * 7919::bigint) % 2000, '2024-01-01'::timestamptz + i * interval '3 min',
    '2024-01-01'::timestamp + i * interval '3 min', '2024-01-01'::date + i % 700, (i % 1000) / 7.0, 'name ' || i % 6000,
    'd' || i % 3000, i % 300, '2024-01-01'::timestamptz + i * interval '3 min', ARRAY['t' || i % 900]
FROM generate_series(1, 60000) i;
CREATE TABLE app.u (id int PRIMARY KEY, created timestamp, note text);
INSERT INTO app.u SELECT i, '2024-01-01'::timestamp + i * interval '1 hour', 'n' FROM generate_series(1, 20000) i;
CREATE VIEW app.v AS SELECT id, created AS local, local AS created FROM app.t WHERE created::date = '2024-03-01';
ANALYZE app.t, app.u;
"""
# Each was once answered with a condition that returns other rows, or fails.
NEVER = (
    "date_trunc('month', {created}) = '2024-03-15'",
    "date_trunc('day', {created}) = '2024-03-01 12:00'",
    "date_trunc('day', {created}) < '2024-01-01 12:00'",
    "date_trunc('day', {created}) > '2024-05-04 12:00'",
    "date_trunc('day', {created}) >= '2024-05-04 12:00'",
    "date_trunc('day', {created}) <= '2024-01-02 12:00'",
    "amount::int = 5",
    "acc::text = '007'",
    "acc::text = 'abc'",
    "{created} + interval '1 month' = '2024-03-31'",
    "{created} - interval '1 month' = '2024-02-29'",
    "{created}::time = '12:00'",
    "descr::char(3) = 'd77'",
    "to_char({created}, 'YYYY-MM') = '2024-03'",
    "age({created}) > interval '1000 years'",
    "{created}::text = '2024-03-01 00:00:00'",
    "date_trunc('week', {created}) = '2024-03-01'",
    "date_trunc('quarter', {created}) > '2024-03-01'",
    "date_trunc('century', {created}) = '2001-01-01'",
    "{created}::date IN ('2024-03-01', '2024-03-03')",
    "{created}::date BETWEEN '2024-03-01' AND '2024-03-02'",
    "'2024-03-01' = date({created})",
    "acc % 2 = 0",
    "-acc = -5",
    "acc * 2 = 5",
    "acc / 2 = 5",
    "5 = acc::smallint",
    "acc::bigint = 5",
    "acc::numeric = 5.5",
    "acc::numeric > 1998.5",
    "acc::float8 = 'NaN'",
    "acc::text LIKE '77%'",
    "amount + 1 = 5",
    "upper(name) = 'NAME 7'",
    "name || '' = 'name 7'",
    "trim(name) = 'name 7'",
    "left(name, 6) = 'name_7'",
    "coalesce(acc, 5) = 5",
    "NOT (date_trunc('day', {created}) <> '2024-03-01')",
    "NOT (date_trunc('day', {created}) = '2024-03-01' AND acc > 0) AND acc = 7",
    "(date_trunc('day', {created}) = '2024-03-01' OR acc = 7)",
    "CASE WHEN date_trunc('day', {created}) = '2024-03-01' THEN acc = 7 ELSE acc::text = '8' END",
    "{created}::date = 'today'",
    "day::timestamp = '2024-03-01 12:00'",
    "date_trunc('month', day) = '2024-03-01'",
    "extract(year FROM day) = 2024 AND acc = 7",
    "extract(epoch FROM {created}) = 1709251200",
    '"Größe"::bigint = 7',
    '"Größe"::text = $$7$$',
    """date_trunc('day', "user") = '2024-03-01'""",
)


@pytest.fixture(scope="module")
def shop(server: EmbeddedServer) -> Iterator[Database]:
    databases.create(server, "rewritten")
    try:
        with server.connect("rewritten") as connection:
            run_all(connection, SCHEMA.encode())
            yield Database(connection)
    finally:
        databases.drop(server, "rewritten")


def assert_printed_rows(db: Database, sql: str) -> None:
    """Every condition and every statement that findings and advice print for a statement returns its rows."""
    look = db.look(sql)
    if because := reason(sql, look):
        assert not because[1] or db.rows(because[1]) == db.rows(sql), because
    for node in look.plan.nodes:
        for p in conditions(look.facts, node, "Filter"):
            block = blocks(look.facts, node, p)
            if block and block.rewrite:
                c = condition(look.facts, node, p)
                where = f'"{node.schema}"."{node.relation}"'
                assert db.different(where, c.text, block.rewrite) == 0, block


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Beirut"])
@pytest.mark.parametrize("column", ["created", "local"])
def test_what_is_printed_for_a_statement_returns_its_rows(shop: Database, column: str, zone: str) -> None:
    shop.zone(zone)
    for text in NEVER:
        own = text.replace("{created}", column)
        assert_printed_rows(shop, f"SELECT id FROM app.t WHERE {own}")
        joined = own.replace(column, f"x.{column}")
        assert_printed_rows(shop, f"SELECT x.id FROM app.t x JOIN app.u y USING (id) WHERE y.note = 'n' AND {joined}")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT t.id FROM app.t LEFT JOIN app.u ON u.id = t.id AND u.created::date = '2024-03-01' WHERE t.acc = 7",
        "SELECT t.id FROM app.u LEFT JOIN app.t ON u.id = t.id WHERE date_trunc('day', u.created) = '2024-03-01'",
        "SELECT acc FROM app.t GROUP BY acc, day HAVING extract(year FROM day) = 2025 AND count(*) > 1",
        "SELECT id FROM app.t WHERE id IN (SELECT id FROM app.u WHERE created::date = '2024-03-01')",
        "SELECT id FROM app.t WHERE local::date = '2024-03-01' AND EXISTS (SELECT FROM app.u "
        "WHERE created::date = '2024-03-01')",
        "SELECT DISTINCT ON (acc) acc, id FROM app.t WHERE created::date = '2024-03-01' ORDER BY acc, id",
        "SELECT id FROM app.v WHERE created::date = '2024-03-01'",
        "SELECT id FROM app.v v WHERE local::date = '2024-03-01' AND v.created > '2024-01-01'",
        "WITH w AS (SELECT id FROM app.t WHERE created::date >= '2024-05-04') SELECT * FROM w WHERE id % 2 = 0",
        "SELECT count(*) FILTER (WHERE created::date = '2024-03-01') FROM app.t WHERE created::date = '2024-03-01'",
        "SELECT id FROM app.t WHERE (created::date = '2024-03-01') AND (acc::text = '7')",
        "SELECT id FROM app.t WHERE created::date >= '2024-03-01' AND created::date < '2024-03-03'",
        "UPDATE app.t SET name = name WHERE local::date = '2024-03-01' RETURNING id",
        "DELETE FROM app.t WHERE acc::text = '3000' RETURNING id",
        "SELECT id FROM app.t WHERE 't7' = ANY (tags)",
    ],
)
def test_a_condition_is_rewritten_where_it_stands(shop: Database, sql: str) -> None:
    shop.zone("UTC")
    assert_printed_rows(shop, sql)


def test_the_thirteen_are_not_replaced(shop: Database) -> None:
    """What a rewrite adds leaves the original in the statement; casts that lose something are not rewritten at all."""
    for text in NEVER[:13]:
        own = text.replace("{created}", "created")
        found = [rewrite for _, _, rewrite, _ in shop.offered(f"SELECT id FROM app.t WHERE {own}")]
        assert all(rewrite.startswith(("date_trunc('", "(created ")) for rewrite in found), found
        assert bool(found) == ("date_trunc" in text or "interval" in text)


def test_names_are_quoted_and_qualified_in_a_statement(shop: Database) -> None:
    sql = "SELECT x.id FROM app.t x, app.u WHERE u.id = x.id AND x.\"Größe\"::text = '7' AND note = 'n'"
    assert [new for *_, new in shop.offered(sql)] == [sql.replace("x.\"Größe\"::text = '7'", 'x."Größe" = 7')]
    sql = "SELECT id FROM app.t WHERE date_trunc('day', \"user\") >= '2024-05-04'"
    added = " AND \"user\" >= '2024-05-04'::timestamptz - interval '24 hours'"
    assert [new for *_, new in shop.offered(sql)] == [sql + added]


def test_a_view_may_have_columns_of_the_same_name_and_other_types(shop: Database) -> None:
    sql = "SELECT id FROM app.v WHERE created::date = '2024-03-01'"
    because = reason(sql, shop.look(sql))
    assert because and not because[1] and "cannot find" in because[0]


def test_names_are_compared_as_postgresql_folds_them(shop: Database) -> None:
    sql = "SELECT Id FROM App.T WHERE T.Local::Date = '2024-03-01'"
    new = "SELECT Id FROM App.T WHERE T.Local >= '2024-03-01' AND T.Local < '2024-03-02'"
    assert [new for *_, new in shop.offered(sql)] == [new]


def test_a_word_for_the_present_is_not_frozen_into_a_statement(shop: Database) -> None:
    for sql in (
        "SELECT id FROM app.t WHERE local::date = 'today'",
        "SELECT id FROM app.t WHERE created::date = 'today'",
    ):
        assert [new for *_, new in shop.offered(sql)] == [""]
