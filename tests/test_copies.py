"""Private copies of a database into PostgreSQL that perfkit started: whole, a sample, or made-up rows that fit."""

import json
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
from hosted import Hosted, hosted
from psycopg import sql

from perfkit.errors import PerfkitError, ServerError, TargetRefused
from perfkit.guards.address import resolve
from perfkit.guards.admission import Permission
from perfkit.guards.audit import Audit
from perfkit.postgres import databases, embedded
from perfkit.postgres.copies import Copied, Copying, copy_into, dump
from perfkit.postgres.external import External, open_external

METHODS = ("whole", "sample", "generated")
HOSTILE = 'we"ird; DROP TABLE plain; -- %s %(x)s %\n\u2028{0} ünï'
LONG = "ü" * 31 + "x"  # 63 bytes

EVERYTHING = r"""
CREATE SCHEMA "Sales Dept";
CREATE SCHEMA other;
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok", {}', 'happy');
CREATE DOMAIN other.email AS varchar(40) CHECK (VALUE ~ '@');
CREATE DOMAIN other.work_email AS other.email NOT NULL;
CREATE TYPE other.pair AS (a int, b text);
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trigger fired'; END $$;
CREATE SEQUENCE other.numbers START 100 INCREMENT 5;

CREATE TABLE tenants (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE customers (
    tenant_id int NOT NULL REFERENCES tenants, id bigint GENERATED ALWAYS AS IDENTITY, email other.work_email UNIQUE,
    mood mood NOT NULL DEFAULT 'happy', born date, size numeric(8, 2), pair other.pair, tags text[], doc jsonb,
    shout text GENERATED ALWAYS AS (upper(email::text)) STORED, PRIMARY KEY (tenant_id, id)
);
CREATE TABLE "Sales Dept"."Order" (
    "Id" serial PRIMARY KEY, tenant int NOT NULL, customer bigint, total numeric CHECK (total >= 0),
    during tstzrange, FOREIGN KEY (tenant, customer) REFERENCES customers
);
CREATE TABLE "Sales Dept".lines (
    "order" int REFERENCES "Sales Dept"."Order" ON DELETE CASCADE, n int, product text, PRIMARY KEY ("order", n)
);
CREATE INDEX ON "Sales Dept".lines (lower(product)) WHERE n > 1;
CREATE TABLE staff (id int PRIMARY KEY, boss int REFERENCES staff, team int, name text NOT NULL);
CREATE TABLE teams (id int PRIMARY KEY, lead int NOT NULL REFERENCES staff);
ALTER TABLE staff ADD FOREIGN KEY (team) REFERENCES teams DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE keyless (a int, b text);
CREATE TABLE nothing (id int PRIMARY KEY, at timestamptz);
CREATE TABLE columnless ();
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, customer int REFERENCES tenants);
CREATE TABLE large (id int PRIMARY KEY, body text, raw bytea);
CREATE TABLE events (id bigint, at date NOT NULL, tenant int REFERENCES tenants, PRIMARY KEY (id, at))
    PARTITION BY RANGE (at);
CREATE TABLE events_old PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE events_new PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY HASH (id);
CREATE TABLE events_new_0 PARTITION OF events_new FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE events_new_1 PARTITION OF events_new FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE notes (id int PRIMARY KEY, event bigint, at date, FOREIGN KEY (event, at) REFERENCES events);
CREATE TABLE animals (id int PRIMARY KEY, name text);
CREATE TABLE dogs (tail int) INHERITS (animals);
CREATE TABLE hidden (id int PRIMARY KEY, owner text);
CREATE VIEW totals AS SELECT tenant, sum(total) AS total FROM "Sales Dept"."Order" GROUP BY tenant;
CREATE MATERIALIZED VIEW frozen AS SELECT mood, count(*) FROM customers GROUP BY mood;
CREATE UNIQUE INDEX ON frozen (mood);

INSERT INTO tenants SELECT n, 'tenant ' || n FROM generate_series(1, 20) n;
INSERT INTO customers (tenant_id, email, mood, born, size, pair, tags, doc)
    SELECT 1 + n % 20, 'c' || n || '@x.org', (enum_range(NULL::mood))[1 + n % 3], date '1950-01-01' + n * 3, n / 7.0,
           ROW(n, E'tab\t, "quoted"')::other.pair, ARRAY['a', NULL, 'b' || n % 5], jsonb_build_object('n', n)
    FROM generate_series(1, 3000) n;
INSERT INTO "Sales Dept"."Order" (tenant, customer, total, during)
    SELECT tenant_id, id, n, tstzrange('2025-01-01', timestamptz '2025-01-01' + n * interval '1 hour')
    FROM customers, generate_series(1, 2) n;
INSERT INTO "Sales Dept".lines SELECT o, n, 'Product ' || n FROM generate_series(1, 6000) o, generate_series(1, 2) n;
BEGIN;
INSERT INTO staff SELECT n, nullif(n / 3, 0), 1 + n % 5, 's' || n FROM generate_series(1, 1500) n;
INSERT INTO teams SELECT n, n * 7 FROM generate_series(1, 5) n;
COMMIT;
INSERT INTO keyless SELECT 1, E'back\\slash\nnew line' FROM generate_series(1, 30);
INSERT INTO columnless DEFAULT VALUES;
INSERT INTO unlogged SELECT n, 1 + n % 20 FROM generate_series(1, 50) n;
INSERT INTO large SELECT n, repeat(md5(n::text), 32768), convert_to(md5(n::text), 'UTF8') FROM generate_series(1, 3) n;
INSERT INTO events SELECT n, date '2024-01-01' + n % 700, 1 + n % 20 FROM generate_series(1, 4000) n;
INSERT INTO notes SELECT id, id, at FROM events WHERE id % 2 = 0;
INSERT INTO animals VALUES (1, 'cat');
INSERT INTO dogs VALUES (2, 'rex', 30);
INSERT INTO hidden VALUES (1, 'someone');
SELECT nextval('other.numbers'), nextval('other.numbers');
REFRESH MATERIALIZED VIEW frozen;
ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON hidden USING (owner = current_user);
CREATE TRIGGER refused BEFORE INSERT OR UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@dataclass(frozen=True)
class Copier:
    """Copies databases of one server into another, and says what is there afterwards."""

    folder: Path
    source: embedded.Server
    server: embedded.Server

    def external(self, name: str, user: str = "perfkit") -> External:
        address = resolve(f"host={self.source.socket_dir} port=5432 dbname={name} user={user}")
        return open_external(address, Permission(confirm=(address.name,)), Audit(self.folder / "audit.jsonl"))

    def copy(
        self, name: str, *, user: str = "perfkit", progress: Callable[[str], None] = lambda _: None, **how
    ) -> Copied:
        return copy_into(self.external(name, user), self.server, "pk_copy", Copying(**how), progress)

    def refused(self, name: str, **how) -> str:
        """The one line of a copy that cannot be made; nothing of it is left."""
        with pytest.raises(PerfkitError) as caught:
            self.copy(name, **how)
        assert self.there() == []
        text = str(caught.value)
        assert "\n" not in text
        return text

    def query(self, query: str, *values: object) -> list[tuple]:
        return ask(self.server, "pk_copy", query, *values)

    def there(self) -> list[tuple]:
        return ask(self.server, "postgres", "SELECT datname FROM pg_database WHERE datname = 'pk_copy'")

    def audited(self) -> list[str]:
        entries = [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]
        return [entry["statement"] for entry in entries if "statement" in entry]


def ask(server: embedded.Server, name: str, query: str, *values: object) -> list[tuple]:
    with psycopg.connect(server.conninfo(name, "postgres"), autocommit=True) as connection:
        return connection.execute(query, values or None).fetchall()


def run(server: embedded.Server, name: str, *statements: str, user: str = "perfkit") -> None:
    with server.connect(name, user) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture(autouse=True)
def leaves_nothing(server: embedded.Server, server16: embedded.Server, tmp_path: Path, monkeypatch) -> Iterator[None]:
    """No program still runs, no folder is left; the copy itself is dropped here."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    for each in (server, server16):
        databases.drop(each, "pk_copy")
    assert list(scratch.iterdir()) == []
    left = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not {"pg_dump", "pg_restore"} & set(left)


@pytest.fixture
def up(server: embedded.Server, server16: embedded.Server, tmp_path: Path) -> Copier:
    """From 16 to 18."""
    return Copier(tmp_path, server16, server)


@pytest.fixture
def down(server: embedded.Server, server16: embedded.Server, tmp_path: Path) -> Copier:
    """From 18 to 16."""
    return Copier(tmp_path, server, server16)


@pytest.fixture
def same(server: embedded.Server, tmp_path: Path) -> Copier:
    """Within 18, where plans can be compared."""
    return Copier(tmp_path, server, server)


@pytest.fixture(scope="module")
def everything(server: embedded.Server, server16: embedded.Server) -> Iterator[str]:
    """A database of every kind of thing, on both servers."""
    hostile, long = (sql.Identifier(name).as_string() for name in (HOSTILE, LONG))
    for each in (server, server16):
        databases.create(each, "pk_everything")
        with each.connect("pk_everything") as connection:
            connection.execute(EVERYTHING.encode())
            connection.execute(f"CREATE TABLE {hostile} ({hostile} text PRIMARY KEY, {long} int UNIQUE)".encode())
            connection.execute(f"INSERT INTO {hostile} SELECT 'v' || n, n FROM generate_series(1, 9) n".encode())
            connection.execute(
                f"CREATE TABLE {long} (id int PRIMARY KEY, {hostile} text DEFAULT 'x' REFERENCES {hostile})".encode()
            )
            connection.execute(f"INSERT INTO {long} SELECT n, 'v' || n FROM generate_series(1, 9) n".encode())
            connection.execute("ANALYZE")
    yield "pk_everything"
    for each in (server, server16):
        databases.drop(each, "pk_everything")


def database(server: embedded.Server, name: str, *statements: str, user: str = "perfkit") -> None:
    databases.create(server, name)
    run(server, name, *statements, user=user)


def contents(server: embedded.Server, name: str) -> dict[str, tuple]:
    """The number and a hash of the rows of everything that has some."""
    listed = ask(
        server, name,
        "SELECT format('%I.%I', n.nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE relkind IN ('r', 'p', 'm', 'v') AND nspname !~ '^pg_' AND nspname <> 'information_schema'",
    )  # fmt: skip
    return {
        table: ask(server, name, f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t")[0]
        for (table,) in listed
    }


def definitions(server: embedded.Server, name: str) -> dict[str, list]:
    """Everything but rows, as the server words it; NOT NULL is no constraint of its own before 18."""
    queries = {
        "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname !~ '^pg_'",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated "
        "FROM pg_constraint WHERE contype <> 'n' AND oid >= 16384 AND conparentid = 0",
        "columns": "SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, "
        "attgenerated, pg_get_expr(adbin, adrelid) FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND "
        "adnum = attnum JOIN pg_class c ON c.oid = attrelid WHERE attrelid >= 16384 AND attnum > 0 "
        "AND relkind IN ('r', 'p', 'v', 'm')",
        "sequences": "SELECT schemaname, sequencename, last_value, increment_by FROM pg_sequences",
        "triggers": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
        "policies": "SELECT tablename, policyname, qual FROM pg_policies",
        "parents": "SELECT inhrelid::regclass::text, inhparent::regclass::text FROM pg_inherits WHERE inhrelid >= 16384 "
        "AND EXISTS (SELECT FROM pg_class c WHERE c.oid = inhrelid AND relkind IN ('r', 'p'))",
        "functions": "SELECT proname, prosrc FROM pg_proc WHERE oid >= 16384",
        "kinds": "SELECT oid::regclass::text, relkind, relpersistence, relrowsecurity FROM pg_class "
        "WHERE oid >= 16384 AND relkind NOT IN ('t', 'c')",
    }
    return {what: sorted(ask(server, name, query), key=str) for what, query in queries.items()}


def broken_keys(server: embedded.Server, name: str) -> list[tuple]:
    """Constraints that do not hold now: each is checked again."""
    found = ask(server, name, "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND NOT convalidated")
    return [row for row in found if row[0]]


class TestAWholeCopy:
    @pytest.mark.parametrize("way", ["up", "down"])
    def test_has_the_same_rows_and_the_same_of_everything_else(self, way: str, request, everything: str) -> None:
        copier: Copier = request.getfixturevalue(way)
        copied = copier.copy(everything, method="whole")
        assert copied.missing == ()
        assert contents(copier.server, "pk_copy") == contents(copier.source, everything)
        theirs, ours = definitions(copier.source, everything), definitions(copier.server, "pk_copy")
        for what in theirs:
            assert ours[what] == theirs[what], what
        assert copied.rows["customers"] == copied.source_rows["customers"] == 3000
        assert copied.rows["columnless"] == 1

    def test_from_18_that_16_cannot_hold_is_refused_in_one_line(self, down: Copier) -> None:
        database(down.source, "pk_new", "CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL)")
        try:
            text = down.refused("pk_new", method="whole")
            assert re.search(r"lack a table: CREATE TABLE public.t .*; the source is of a newer PostgreSQL$", text)
        finally:
            databases.drop(down.source, "pk_new")

    def test_larger_than_the_limit_is_refused(self, up: Copier, everything: str) -> None:
        assert "expected at most 1 MB" in up.refused(everything, method="whole", max_bytes=10**6)

    def test_of_what_needs_a_superuser_names_it_and_copies_the_rest(self, up: Copier) -> None:
        database(
            up.source, "pk_foreign", "CREATE FOREIGN DATA WRAPPER far", "CREATE SERVER there FOREIGN DATA WRAPPER far",
            "CREATE FOREIGN TABLE remote (a int) SERVER there", "CREATE TABLE here AS SELECT 1 AS a",
            "GRANT SELECT ON here TO perfkit", user="postgres",
        )  # fmt: skip
        try:
            for method in METHODS:
                copied = up.copy("pk_foreign", method=method)
                assert copied.rows == {"here": 1}
                assert sum("CREATE FOREIGN TABLE public.remote" in line for line in copied.missing) == 1
        finally:
            databases.drop(up.source, "pk_foreign")

    def test_whose_rows_the_server_refuses_is_none(self, up: Copier) -> None:
        with up.source.connect(user="postgres") as connection:
            connection.execute("DROP DATABASE IF EXISTS pk_ascii")
            connection.execute("CREATE DATABASE pk_ascii TEMPLATE template0 ENCODING 'SQL_ASCII' OWNER perfkit")
        try:
            with psycopg.connect(up.source.conninfo("pk_ascii"), autocommit=True, client_encoding="sql_ascii") as raw:
                raw.execute("CREATE TABLE t (a text)")
                raw.execute(b"INSERT INTO t VALUES ('caf\xe9')")
            assert re.search(
                r'not complete: COPY failed for table "t": ERROR:  invalid byte', up.refused("pk_ascii", method="whole")
            )
        finally:
            databases.drop(up.source, "pk_ascii")


class TestEveryCopy:
    @pytest.mark.parametrize("method", METHODS)
    def test_is_recorded_and_only_reads(self, method: str, up: Copier, everything: str) -> None:
        before = contents(up.source, everything), definitions(up.source, everything)
        up.copy(everything, method=method)
        assert (contents(up.source, everything), definitions(up.source, everything)) == before
        dumps = [statement for statement in up.audited() if statement.startswith("pg_dump ")]
        sections = [found[1] for text in dumps for found in [re.search(r"--section=(\S+)", text)] if found]
        assert sections == ([] if method == "whole" else ["pre-data", "post-data"])
        assert len(dumps) == max(1, len(sections))
        assert not any("dbname" in text or "host" in text for text in dumps)

    @pytest.mark.parametrize("method", METHODS)
    def test_of_a_table_that_may_not_be_read_is_refused_before_anything_is_copied(
        self, method: str, up: Copier
    ) -> None:
        database(
            up.source, "pk_closed", "CREATE TABLE open (a int)", 'CREATE TABLE "Top secret" (a int)',
            "GRANT SELECT ON open TO perfkit", user="postgres",
        )  # fmt: skip
        try:
            assert 'public."Top secret" may not be read; expected' in up.refused("pk_closed", method=method)
            assert not any(text.startswith("pg_dump") for text in up.audited())
            run(up.source, "pk_closed", 'GRANT SELECT ON "Top secret" TO perfkit', user="postgres")
            run(up.source, "pk_closed", 'ALTER TABLE "Top secret" ENABLE ROW LEVEL SECURITY', user="postgres")
            assert "row-level security hides rows of" in up.refused("pk_closed", method=method)
        finally:
            databases.drop(up.source, "pk_closed")

    @pytest.mark.parametrize("method", METHODS)
    def test_keeps_the_settings_of_the_source_out_of_its_values(self, method: str, up: Copier) -> None:
        database(
            up.source, "pk_dates",
            "CREATE TABLE t (id int PRIMARY KEY, at date, span interval, n float8)",
            "INSERT INTO t SELECT n, date '2024-02-03', '-1 day 02:03:04', 0.1::float8 + 0.2 FROM generate_series(1, 300) n",
            "ALTER DATABASE pk_dates SET DateStyle = 'SQL, DMY'", "ALTER DATABASE pk_dates SET extra_float_digits = 0",
            "ALTER DATABASE pk_dates SET IntervalStyle = 'sql_standard'", "ANALYZE",
        )  # fmt: skip
        try:
            up.copy("pk_dates", method=method)
            assert up.query(
                "SELECT count(*), count(*) FILTER (WHERE at = '2024-02-03' AND span = '-1 day 2:03:04' AND n = 0.1::float8 + 0.2) FROM t"
            ) == [(300, 300)]
        finally:
            databases.drop(up.source, "pk_dates")

    @pytest.mark.parametrize("method", METHODS)
    def test_lets_the_workload_insert_where_the_source_would(self, method: str, up: Copier) -> None:
        database(
            up.source, "pk_serial", "CREATE TABLE t (id serial PRIMARY KEY, a int GENERATED BY DEFAULT AS IDENTITY)",
            "INSERT INTO t (a) SELECT n FROM generate_series(1, 50) n", "SELECT setval('t_id_seq', 70)", "ANALYZE",
        )  # fmt: skip
        try:
            up.copy("pk_serial", method=method)
            inserted = up.query("INSERT INTO t DEFAULT VALUES RETURNING id, a")[0]
            assert inserted == (71, 1 if method == "whole" else 51)  # the column's sequence was never used there
        finally:
            databases.drop(up.source, "pk_serial")


class TestASample:
    def test_holds_what_its_rows_refer_to_and_every_definition(self, up: Copier, everything: str) -> None:
        copied = up.copy(everything, method="sample", rows=1500)
        assert copied.missing == ()
        theirs, ours = definitions(up.source, everything), definitions(up.server, "pk_copy")
        assert ours == theirs  # constraints made after the rows, and so proven
        assert broken_keys(up.server, "pk_copy") == []
        source, mine = contents(up.source, everything), contents(up.server, "pk_copy")
        small = [
            t for t in mine if source[t][0] <= 1000 and ".totals" not in t and ".frozen" not in t and "event" not in t
        ]
        assert len(small) > 10
        assert {table: mine[table] for table in small} == {table: source[table] for table in small}
        assert 1300 <= copied.rows["Sales Dept.lines"] <= 1700  # of 12 000
        assert copied.rows["Sales Dept.Order"] < 6000

    def test_is_the_same_for_the_same_seed_and_another_for_another(self, up: Copier, everything: str) -> None:
        found = []
        for seed in (1, 1, 2):
            up.copy(everything, method="sample", rows=1200, seed=seed)
            found.append(contents(up.server, "pk_copy"))
        assert found[0] == found[1] != found[2]

    def test_of_a_table_that_was_never_analysed_is_no_copy_of_it_all(self, up: Copier) -> None:
        database(up.source, "pk_raw", "CREATE TABLE t AS SELECT n AS a FROM generate_series(1, 50000) n")
        try:
            copied = up.copy("pk_raw", method="sample", rows=2000)
            assert 1000 < copied.rows["t"] < 10_000
        finally:
            databases.drop(up.source, "pk_raw")
