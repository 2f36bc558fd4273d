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
from scripts import run_all

from perfkit.base.errors import PerfkitError, ServerError
from perfkit.postgres import copies, databases, embedded
from perfkit.postgres.copies import Copied, Copying, copy_into
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import External, open_external

pytestmark = pytest.mark.slow  # the module takes more than a minute

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
    source: embedded.EmbeddedServer
    server: embedded.EmbeddedServer

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

    def entries(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]

    def audited(self) -> list[str]:
        return [entry["statement"] for entry in self.entries() if "statement" in entry]


def ask(server: embedded.EmbeddedServer, name: str, query: str, *values: object) -> list[tuple]:
    with psycopg.connect(server.conninfo(name, "postgres"), autocommit=True) as connection:
        return connection.execute(query, values or None).fetchall()


def run(server: embedded.EmbeddedServer, name: str, *statements: str, user: str = "perfkit") -> None:
    with server.connect(name, user) as connection:
        for statement in statements:
            run_all(connection, statement)


@pytest.fixture(autouse=True)
def leaves_nothing(
    server: embedded.EmbeddedServer, server16: embedded.EmbeddedServer, tmp_path: Path, monkeypatch
) -> Iterator[None]:
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
def up(server: embedded.EmbeddedServer, server16: embedded.EmbeddedServer, tmp_path: Path) -> Copier:
    """From 16 to 18."""
    return Copier(tmp_path, server16, server)


@pytest.fixture
def down(server: embedded.EmbeddedServer, server16: embedded.EmbeddedServer, tmp_path: Path) -> Copier:
    """From 18 to 16."""
    return Copier(tmp_path, server, server16)


@pytest.fixture
def same(server: embedded.EmbeddedServer, tmp_path: Path) -> Copier:
    """Within 18, where plans can be compared."""
    return Copier(tmp_path, server, server)


@pytest.fixture(scope="module")
def everything(server: embedded.EmbeddedServer, server16: embedded.EmbeddedServer) -> Iterator[str]:
    """A database of every kind of thing, on both servers."""
    hostile, long = (sql.Identifier(name).as_string() for name in (HOSTILE, LONG))
    for each in (server, server16):
        databases.create(each, "pk_everything")
        with each.connect("pk_everything") as connection:
            run_all(connection, EVERYTHING.encode())
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


def database(server: embedded.EmbeddedServer, name: str, *statements: str, user: str = "perfkit") -> None:
    databases.create(server, name)
    run(server, name, *statements, user=user)


def contents(server: embedded.EmbeddedServer, name: str) -> dict[str, tuple]:
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


def definitions(server: embedded.EmbeddedServer, name: str) -> dict[str, list]:
    """Everything but rows, as the server words it; NOT NULL is no constraint of its own before 18."""
    queries = {
        "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname !~ '^pg_'",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated "
        "FROM pg_constraint WHERE contype <> 'n' AND oid >= 16384 AND conparentid = 0",
        "columns": "SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, "
        "attidentity, attgenerated, pg_get_expr(adbin, adrelid) FROM pg_attribute "
        "LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum JOIN pg_class c ON c.oid = attrelid "
        "WHERE attrelid >= 16384 AND attnum > 0 "
        "AND relkind IN ('r', 'p', 'v', 'm')",
        "sequences": "SELECT schemaname, sequencename, last_value, increment_by FROM pg_sequences",
        "triggers": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
        "policies": "SELECT tablename, policyname, qual FROM pg_policies",
        "parents": "SELECT inhrelid::regclass::text, inhparent::regclass::text FROM pg_inherits "
        "WHERE inhrelid >= 16384 AND EXISTS (SELECT FROM pg_class c WHERE c.oid = inhrelid AND relkind IN ('r', 'p'))",
        "functions": "SELECT proname, prosrc FROM pg_proc WHERE oid >= 16384",
        "kinds": "SELECT oid::regclass::text, relkind, relpersistence, relrowsecurity FROM pg_class "
        "WHERE relnamespace::regnamespace::text !~ '^pg_|^information_schema' AND relkind <> 'c'",
    }
    return {what: sorted(ask(server, name, query), key=str) for what, query in queries.items()}


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
            assert re.search(r"lack a table: CREATE TABLE public.t .*; the source runs a newer PostgreSQL$", text)
        finally:
            databases.drop(down.source, "pk_new")

    def test_larger_than_the_limit_is_refused(self, up: Copier, everything: str) -> None:
        assert "expected at most 1 MB" in up.refused(everything, method="whole", max_bytes=10**6)

    def test_of_what_needs_a_superuser_names_it_and_copies_the_rest(self, up: Copier) -> None:
        database(
            up.source, "pk_foreign", "CREATE FOREIGN DATA WRAPPER far", "CREATE SERVER there FOREIGN DATA WRAPPER far",
            "CREATE FOREIGN TABLE remote (a int) SERVER there", "CREATE TABLE here AS SELECT 1 AS a", "ANALYZE here",
            "ANALYZE",
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
        database(
            up.source,
            "pk_strict",
            "CREATE TABLE allowed AS SELECT 1 AS n",
            "CREATE FUNCTION fine(int) RETURNS bool LANGUAGE plpgsql AS "
            "$$ BEGIN RETURN EXISTS (SELECT FROM allowed WHERE n = $1); END $$",
            "CREATE TABLE t (n int CHECK (fine(n)))",
            "INSERT INTO t VALUES (1)",
        )
        try:
            words = 'incomplete: COPY failed for table "t": ERROR:  relation "allowed" does not exist'
            assert words in up.refused("pk_strict", method="whole")
            assert 'relation "allowed" does not exist' in up.refused("pk_strict", method="sample")
        finally:
            databases.drop(up.source, "pk_strict")

    def test_of_bytes_that_are_no_text_is_refused(self, up: Copier) -> None:
        with up.source.connect(user="postgres") as connection:
            connection.execute("DROP DATABASE IF EXISTS pk_bytes")
            connection.execute("CREATE DATABASE pk_bytes TEMPLATE template0 ENCODING 'SQL_ASCII' OWNER perfkit")
        try:
            with psycopg.connect(up.source.conninfo("pk_bytes"), autocommit=True, client_encoding="sql_ascii") as raw:
                raw.execute("CREATE TABLE t (a text)")
                raw.execute(b"INSERT INTO t VALUES ('caf\xe9')")
            for method in ("whole", "sample"):
                assert "invalid byte sequence for encoding" in up.refused("pk_bytes", method=method)
        finally:
            databases.drop(up.source, "pk_bytes")


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
            assert 'this role cannot read public."Top secret"; expected' in up.refused("pk_closed", method=method)
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
            "INSERT INTO t SELECT n, date '2024-02-03', '-1 day 02:03:04', 0.1::float8 + 0.2 "
            "FROM generate_series(1, 300) n",
            "ALTER DATABASE pk_dates SET DateStyle = 'SQL, DMY'", "ALTER DATABASE pk_dates SET extra_float_digits = 0",
            "ALTER DATABASE pk_dates SET IntervalStyle = 'sql_standard'", "ANALYZE",
        )  # fmt: skip
        try:
            up.copy("pk_dates", method=method)
            assert up.query(
                "SELECT count(*) FROM t WHERE at = '2024-02-03' AND span = '-1 day 2:03:04' AND n = 0.1::float8 + 0.2"
            ) == [(300,)]
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
            ((most,),) = up.query("SELECT max(a) FROM t")
            inserted = up.query("INSERT INTO t DEFAULT VALUES RETURNING id, a")[0]
            assert inserted == (71, 1 if method == "whole" else most + 1)  # its own sequence was never used there
        finally:
            databases.drop(up.source, "pk_serial")


class TestASample:
    def test_holds_what_its_rows_refer_to_and_every_definition(self, up: Copier, everything: str) -> None:
        copied = up.copy(everything, method="sample", rows=1500)
        assert copied.missing == ()
        # Constraints are made after the rows, and so proven.
        assert definitions(up.server, "pk_copy") == definitions(up.source, everything)
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


SHAPES = """
CREATE TYPE level AS ENUM ('low', 'mid', 'high');
CREATE DOMAIN code AS varchar(12) CHECK (length(VALUE) > 0);
CREATE TABLE regions (id char(2) PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE users (
    id bigint PRIMARY KEY, region char(2) NOT NULL REFERENCES regions, email text NOT NULL, level level, code code,
    born date, score real, balance numeric(9, 2), active bool NOT NULL, token uuid UNIQUE, address inet,
    seen timestamptz, pause interval, note varchar(20), extra jsonb, raw json, data bytea, tags text[],
    valid daterange, words tsvector, initial char(1), nick text
);
CREATE UNIQUE INDEX ON users (lower(email));
CREATE UNIQUE INDEX ON users (nick) WHERE active;
CREATE INDEX ON users (region);
CREATE INDEX ON users (seen);
CREATE TABLE purchases (
    id bigint PRIMARY KEY, user_id bigint NOT NULL REFERENCES users, at timestamp NOT NULL, amount int,
    status text NOT NULL, referrer bigint REFERENCES users, low int, high int, CHECK (low < high)
);
CREATE INDEX ON purchases (user_id);
CREATE INDEX ON purchases (at);
CREATE INDEX ON purchases (status);
CREATE INDEX ON purchases (referrer);
CREATE TABLE items (purchase_id bigint REFERENCES purchases, n int, sku int NOT NULL, PRIMARY KEY (purchase_id, n));
CREATE INDEX ON items (sku);
SELECT setseed(0.5);
INSERT INTO regions SELECT chr(65 + n / 10) || n % 10, 'Region ' || n FROM generate_series(0, 39) n;
INSERT INTO users SELECT n * 7 + 1000 * (n / 2000), chr(65 + (n % 41 % 40) / 10) || n % 41 % 40 % 10,
    'user' || n || '@Example.org', CASE WHEN n % 10 > 1 THEN 'low'::level WHEN n % 10 = 1 THEN 'high' END,
    'c' || n % 500, date '1950-01-01' + n, n / 3.0, n * 1.5, n % 4 > 0, md5(n::text)::uuid,
    inet '10.0.0.0' + n, timestamptz '2025-01-01' + n * interval '7 minutes', n % 60 * interval '1 minute',
    CASE WHEN n % 5 = 0 THEN 'n' || n % 50 END, jsonb_build_object('k', n % 30),
    json_build_object('text', repeat('y', 400)), int4send(n), ARRAY['t' || n % 6, 'u' || n % 90],
    daterange(current_date, current_date + n), to_tsvector('simple', 'common word' || n % 20), chr(97 + n % 26),
    CASE WHEN n % 3 > 0 THEN 'nick' || n END
FROM generate_series(1, 6000) n;
INSERT INTO purchases SELECT n, 7 * u + 1000 * (u / 2000), timestamp '2025-01-01' + n * interval '5 minutes',
    (random() * 5000)::int, (ARRAY['paid', 'paid', 'paid', 'paid', 'paid', 'paid', 'open', 'lost'])[1 + (n * 13) % 8],
    CASE WHEN n % 4 = 0 THEN 7 * (1 + n % 50) END, n % 100, n % 100 + 1
FROM generate_series(1, 30000) n, LATERAL (SELECT CASE WHEN n % 5 = 0 THEN 17 ELSE 1 + n * 37 % 3000 END AS u) d;
INSERT INTO items SELECT 1 + n / 2, n % 2, (power(random(), 3) * 2000)::int FROM generate_series(1, 40000) n;
ANALYZE;
"""


# Types of which the statistics hold no values, or no order.
UNKNOWN = {"users.raw", "users.valid", "users.words", "users.tags"}
RANGES = {"users.id", "users.score", "users.balance", "purchases.id", "purchases.amount", "items.sku"}
QUERIES = (
    "SELECT * FROM purchases WHERE user_id = 119",
    "SELECT * FROM purchases WHERE user_id = 70",
    "SELECT * FROM purchases WHERE status = 'lost'",
    "SELECT * FROM purchases WHERE status = 'paid'",
    "SELECT * FROM purchases WHERE at BETWEEN '2025-02-01' AND '2025-02-02'",
    "SELECT * FROM purchases WHERE at > '2025-01-02'",
    "SELECT count(*) FROM purchases p JOIN users u ON u.id = p.user_id WHERE u.region = 'A5'",
    "SELECT * FROM purchases p JOIN users u ON u.id = p.user_id ORDER BY p.at DESC LIMIT 20",
    "SELECT * FROM users WHERE lower(email) = 'user77@example.org'",
    "SELECT status, sum(amount) FROM purchases WHERE referrer = 70 GROUP BY status",
    "SELECT sku, count(*) FROM items WHERE sku < 3 GROUP BY sku",
    "SELECT * FROM items i JOIN purchases p ON p.id = i.purchase_id WHERE p.user_id = 70",
    "SELECT u.id FROM users u LEFT JOIN purchases p ON p.user_id = u.id WHERE p.id IS NULL",
)


@pytest.fixture(scope="module")
def fitted(
    server: embedded.EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Copier, Copied]]:
    """A database of many types, and one generated to fit it beside it."""
    copier = Copier(tmp_path_factory.mktemp("fitted"), server, server)
    database(server, "pk_shapes", SHAPES)
    copied = copy_into(copier.external("pk_shapes"), server, "pk_fitted", Copying("generated"), lambda _: None)
    databases.freeze(server, "pk_shapes")
    databases.freeze(server, "pk_fitted")
    yield copier, copied
    for name in ("pk_shapes", "pk_fitted"):
        databases.drop(server, name)


def statistics(server: embedded.EmbeddedServer, name: str) -> dict[str, tuple]:
    found = ask(
        server, name,
        "SELECT s.tablename || '.' || s.attname, null_frac, most_common_freqs::float8[], correlation, "
        "CASE WHEN n_distinct < 0 THEN -n_distinct * reltuples ELSE n_distinct END, histogram_bounds::text::text[] "
        "FROM pg_stats s JOIN pg_class c ON c.oid = format('%I.%I', schemaname, tablename)::regclass "
        "WHERE schemaname = 'public'",
    )  # fmt: skip
    return {column: tuple(rest) for column, *rest in found}


def nodes(plan: dict) -> list[str]:
    """The shape of a plan: each node, and the index or table it reads."""
    own = f"{plan['Node Type']} {plan.get('Index Name') or plan.get('Relation Name') or ''}".strip()
    return [own, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


class TestGeneratedRows:
    def test_are_as_many_as_the_statistics_say(self, fitted: tuple[Copier, Copied]) -> None:
        _, copied = fitted
        for table, count in copied.source_rows.items():
            assert count * 0.95 <= copied.rows[table] <= count, table

    def test_are_made_without_reading_a_row(self, fitted: tuple[Copier, Copied]) -> None:
        copier, _ = fitted
        statements = copier.audited()
        assert len(statements) > 10
        own = re.compile(r"\b(regions|users|purchases|items)\b")
        assert [text for text in statements if own.search(text) or re.search(r"--section=data|\bCOPY\b", text)] == []
        assert all("--section=" in text for text in statements if text.startswith("pg_dump"))

    def test_keep_every_key_and_name_the_check_that_they_break(self, fitted: tuple[Copier, Copied]) -> None:
        copier, copied = fitted
        theirs, ours = definitions(copier.source, "pk_shapes"), definitions(copier.server, "pk_fitted")
        assert ours["indexes"] == theirs["indexes"]
        lost = [row[1] for row in theirs["constraints"] if row not in ours["constraints"]]
        assert lost == ["purchases_check"]
        assert copied.missing == ("constraint purchases_check of public.purchases, which generated rows violate",)

    def test_have_the_nulls_frequencies_distinct_values_and_ranges_of_the_source(
        self, fitted: tuple[Copier, Copied]
    ) -> None:
        copier, _ = fitted
        theirs, ours = statistics(copier.source, "pk_shapes"), statistics(copier.server, "pk_fitted")
        assert ours.keys() == theirs.keys()
        wrong = []
        for column, (nulls, often, order, distinct, bounds) in theirs.items():
            nulls2, often2, order2, distinct2, bounds2 = ours[column]
            if abs(nulls - nulls2) > 0.03:
                wrong.append((column, "nulls", nulls, nulls2))
            top, top2 = (often or [0])[0], (often2 or [0])[0]
            if abs(top - top2) > max(0.02, 0.2 * top):
                wrong.append((column, "most common", top, top2))
            if column not in UNKNOWN and not 0.75 < distinct2 / max(distinct, 1e-9) < 1.34:
                wrong.append((column, "distinct", distinct, distinct2))
            if (
                column not in UNKNOWN
                and order
                and not 0.25 < abs(order) < 0.75
                and abs(abs(order) - abs(order2 or 0)) > 0.25
            ):
                wrong.append((column, "order", order, order2))
            if bounds and column in RANGES:
                ends, ends2 = ((float(b[0]), float(b[-1])) for b in (bounds, bounds2))
                if max(abs(a - b) for a, b in zip(ends, ends2, strict=True)) > 0.05 * (ends[1] - ends[0]):
                    wrong.append((column, "range", ends, ends2))
        assert wrong == [], wrong

    def test_get_the_plans_of_the_real_ones(self, fitted: tuple[Copier, Copied]) -> None:
        copier, _ = fitted
        for query in QUERIES:
            shapes = [
                nodes(ask(copier.server, name, f"EXPLAIN (FORMAT JSON) {query}")[0][0][0]["Plan"])
                for name in ("pk_shapes", "pk_fitted")
            ]
            assert shapes[0] == shapes[1], query

    def test_of_a_guess_are_said_to_be_one(self, up: Copier) -> None:
        database(up.source, "pk_guess", "CREATE TABLE t AS SELECT n AS a FROM generate_series(1, 5000) n")
        try:
            copied = up.copy("pk_guess", method="generated")
            assert 500 < copied.rows["t"] < 5000
            assert copied.missing == ("statistics of public.t, which was never analysed: its rows are a guess",)
        finally:
            databases.drop(up.source, "pk_guess")

    @pytest.mark.parametrize("analysed", [True, False])
    def test_are_found_for_every_type_or_what_forbids_them_is_dropped_and_named(
        self, analysed: bool, up: Copier
    ) -> None:
        database(
            up.source, "pk_types",
            "CREATE EXTENSION vector",
            "CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0)",
            "CREATE TYPE one AS (a int)",
            'CREATE TABLE t (id int PRIMARY KEY, a money NOT NULL, b timetz NOT NULL, c bit(3) NOT NULL, '
            '"d" "char" NOT NULL, '
            "e numeric(2, 2) NOT NULL, f one NOT NULL, g int4multirange NOT NULL, h text[] NOT NULL, "
            "i tsvector NOT NULL, j numrange NOT NULL, k interval NOT NULL, l time NOT NULL, m bytea NOT NULL, "
            "n vector(3), o date, p even, "
            "q point NOT NULL, r int GENERATED ALWAYS AS (id + 1) STORED, CHECK (id >= 0))",
            "CREATE UNIQUE INDEX ON t ((r * 2))",
            "INSERT INTO t SELECT n, n, '10:00+1', '101', 'x', n % 90 / 100.0, ROW(n)::one, '{[1,2]}', '{a}', 'a b', "
            "'[1,2]', n * interval '1 day', time '10:00' + n * interval '1 s', int4send(n), '[1,2,3]', "
            "CASE WHEN n IN (1, 2000) THEN 'infinity' ELSE date '0044-03-15 BC' + n END, n * 4, '(1,2)' "
            "FROM generate_series(1, 2000) n",
            "GRANT SELECT ON t TO perfkit", *(["ANALYZE"] if analysed else []), user="postgres",
        )  # fmt: skip
        try:
            copied = up.copy("pk_types", method="generated")
            assert "NOT NULL of q of public.t, which generated rows violate" in copied.missing
            assert "constraint even_check of domain even, which generated rows violate" in copied.missing
            assert not any("extension" in text for text in copied.missing)
            assert copied.rows["t"] == 2000 if analysed else copied.rows["t"] > 1000
        finally:
            databases.drop(up.source, "pk_types")

    def test_are_fewer_in_proportion_when_fewer_are_wanted(self, up: Copier, everything: str) -> None:
        first = up.copy(everything, method="generated", rows=6000)
        assert first.missing == ()
        rows = contents(up.server, "pk_copy")
        assert definitions(up.server, "pk_copy")["constraints"] == definitions(up.source, everything)["constraints"]
        assert 5400 < first.rows["Sales Dept.lines"] <= 6000  # nearly every pair of its key
        assert first.rows["nothing"] == 0
        assert first.rows["Sales Dept.Order"] == first.source_rows["Sales Dept.Order"] // 2
        assert first.rows["staff"] == 1000
        assert up.query("SELECT count(*) FROM events")[0][0] > 1500  # every partition gets its own
        assert up.query(
            "WITH RECURSIVE up AS (SELECT id, boss, 0 AS depth FROM staff UNION ALL SELECT s.id, s.boss, depth + 1 "
            "FROM up JOIN staff s ON s.id = up.boss WHERE depth < 1000) SELECT max(depth) < 1000 FROM up"
        ) == [(True,)]  # nobody is their own boss's boss
        assert rows["public.frozen"][0] == 3
        up.copy(everything, method="generated", rows=6000)
        assert contents(up.server, "pk_copy") == rows

    def test_fit_columns_that_several_keys_share(self, up: Copier) -> None:
        database(
            up.source, "pk_shared",
            "CREATE TABLE tenants (id int PRIMARY KEY)",
            "CREATE TABLE a (tenant int REFERENCES tenants, id int, PRIMARY KEY (tenant, id))",
            "CREATE TABLE b (tenant int REFERENCES tenants, id int, parent int, PRIMARY KEY (tenant, id), "
            "FOREIGN KEY (tenant, parent) REFERENCES b)",
            "CREATE TABLE c (tenant int NOT NULL REFERENCES tenants, a int NOT NULL, b int, "
            "FOREIGN KEY (tenant, a) REFERENCES a, FOREIGN KEY (tenant, b) REFERENCES b)",
            "CREATE TABLE one (tenant int, a int, PRIMARY KEY (tenant, a), FOREIGN KEY (tenant, a) REFERENCES a)",
            "INSERT INTO tenants SELECT generate_series(1, 30)",
            "INSERT INTO a SELECT t, n FROM generate_series(1, 30) t, generate_series(1, 40) n",
            "INSERT INTO b SELECT t, n, nullif(n / 2, 0) FROM generate_series(1, 30) t, generate_series(1, 40) n",
            "INSERT INTO c SELECT 1 + n % 30, 1 + n % 40, nullif(n % 41, 0) FROM generate_series(1, 5000) n",
            "INSERT INTO one SELECT tenant, id FROM a WHERE id % 2 = 0", "ANALYZE",
        )  # fmt: skip
        try:
            copied = up.copy("pk_shared", method="generated")
            assert copied.missing == ()
            assert (
                definitions(up.server, "pk_copy")["constraints"] == definitions(up.source, "pk_shared")["constraints"]
            )
            for table, count in copied.source_rows.items():  # a key that takes every pair of values loses a few
                assert count * 0.93 < copied.rows[table] <= count
            assert up.query("SELECT count(*) BETWEEN 50 AND 250 FROM c WHERE b IS NULL") == [(True,)]
        finally:
            databases.drop(up.source, "pk_shared")

    def test_follow_the_skew_of_a_foreign_key(self, fitted: tuple[Copier, Copied]) -> None:
        copier, _ = fitted
        for table, column, same in (("purchases", "user_id", False), ("users", "region", True)):
            most = f"SELECT {column}, count(*) FROM {table} GROUP BY 1 ORDER BY 2 DESC LIMIT 1"
            (theirs,), (ours,) = ask(copier.source, "pk_shapes", most), ask(copier.server, "pk_fitted", most)
            assert 0.8 < ours[1] / theirs[1] < 1.25
            assert not same or theirs[0] == ours[0]  # where a parent has that very value it is that one


class TestACopyThatFails:
    @pytest.fixture
    def locked(self, up: Copier) -> Iterator[tuple[str, Callable[[str], None]]]:
        """A database, and how to lock its one table when the copy begins: pg_dump then waits."""
        database(up.source, "pk_slow", "CREATE TABLE t AS SELECT n AS a FROM generate_series(1, 3000) n", "ANALYZE")
        with up.source.connect("pk_slow") as connection, connection.transaction():
            yield "pk_slow", lambda _: connection.execute("LOCK TABLE t") and None
        databases.drop(up.source, "pk_slow")

    def test_because_the_source_ends_the_connection_says_so_in_one_line(self, up: Copier, locked: tuple) -> None:
        name, lock = locked
        with WhenPgDumpWaits(up.source, "SELECT pg_terminate_backend(%s)"):
            text = up.refused(name, method="whole", progress=lock)
        assert re.search(r"pk_slow: pg_dump: .*(terminating connection|closed the connection)", text)

    def test_because_of_ctrl_c_is_an_interrupt_at_once(self, up: Copier, locked: tuple) -> None:
        name, lock = locked
        with WhenPgDumpWaits(up.source, None), pytest.raises(KeyboardInterrupt):
            up.copy(name, method="whole", progress=lock)
        assert up.there() == []
        ended = [entry for entry in up.entries() if entry.get("error") == "KeyboardInterrupt"]
        assert len(ended) == 1
        assert ended[0]["seconds"] < 4.5  # pg_dump itself would wait 5 s for the lock

    def test_because_a_table_is_locked_waits_for_no_longer_than_seconds(self, up: Copier, locked: tuple) -> None:
        name, lock = locked
        lock("before anything was looked at")
        assert "lock timeout" in up.refused(name, method="whole")

    @pytest.mark.parametrize("method", ["sample", "generated"])
    def test_because_a_connection_is_lost_between_tables_leaves_nothing(
        self, method: str, up: Copier, everything: str
    ) -> None:
        def cut(said: str) -> None:
            if "rows:" in said:
                side = up.source if method == "sample" else up.server
                ours = "datname IN ('pk_everything', 'pk_copy')"
                ask(side, "postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")

        with pytest.raises(
            ServerError, match=r"^\S+pk_everything: the copy failed: .*$|^rows of .* could not be generated"
        ):
            up.copy(everything, method=method, progress=cut)
        assert up.there() == []

    def test_because_the_destination_dies_says_so_in_one_line(
        self, up: Copier, everything: str, server_home: Path
    ) -> None:
        def kill(said: str) -> None:
            if "rows:" in said:
                os.kill(doomed.pid, signal.SIGKILL)
                while doomed.alive():
                    time.sleep(0.01)

        with embedded.start(18, {"shared_buffers": "16MB"}, server_home) as doomed:
            with pytest.raises(ServerError) as caught:
                copy_into(up.external(everything), doomed, "pk_copy", Copying("sample"), kill)
            assert "\n" not in str(caught.value)


class WhenPgDumpWaits:
    """While pg_dump waits for a lock there: run a statement with its process id, or interrupt this process."""

    def __init__(self, server: embedded.EmbeddedServer, statement: str | None) -> None:
        self.server, self.statement = server, statement
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if found := ask(self.server, "postgres", query):
                if self.statement:
                    ask(self.server, "postgres", self.statement, found[0][0])
                else:
                    os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exc: object) -> None:
        self.thread.join()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Hosted]:
    """A system's server that wants TLS and scram, with extensions that the embedded one lacks."""
    with hosted() as running:
        running.run(
            'CREATE EXTENSION "uuid-ossp" SCHEMA extensions', "CREATE EXTENSION citext", "CREATE EXTENSION pg_trgm",
            "GRANT USAGE ON SCHEMA extensions TO shop",
        )  # fmt: skip
        running.run(
            "CREATE TABLE keyed (id uuid PRIMARY KEY DEFAULT extensions.uuid_generate_v4(), name text)",
            "CREATE INDEX ON keyed USING gin (name gin_trgm_ops)",
            "CREATE TABLE loose (name citext PRIMARY KEY, n int)",
            "CREATE INDEX ON loose (n)",
            "INSERT INTO keyed (name) SELECT 'n' || n FROM generate_series(1, 50) n",
            "INSERT INTO loose VALUES ('A', 1)",
            "ANALYZE",
            user="shop",
        )
        (running.folder / "data" / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        running.run("SELECT pg_reload_conf()")
        yield running


@pytest.mark.system
class TestFromASystemsServer:
    def external(self, elsewhere: Hosted, folder: Path, monkeypatch: pytest.MonkeyPatch) -> External:
        for name, text in elsewhere.environment.items():
            monkeypatch.setenv(name, text)
        address = resolve(elsewhere.db(sslmode="verify-full", sslrootcert=str(elsewhere.certificate)))
        return open_external(address, Permission(confirm=(address.name,)), Audit(folder / "audit.jsonl"))

    @pytest.mark.parametrize("method", METHODS)
    def test_over_tls_all_comes_but_what_needs_its_extensions(
        self, method: str, elsewhere: Hosted, server: embedded.EmbeddedServer, tmp_path: Path, monkeypatch
    ) -> None:
        source = self.external(elsewhere, tmp_path, monkeypatch)
        copied = copy_into(source, server, "pk_copy", Copying(method), lambda _: None)
        assert copied.rows == {"customers": 200, "keyed": 50, "sales.orders": 4000}
        for name in ("citext", "hypopg", "pg_stat_statements", "pg_trgm", "uuid-ossp"):
            assert f"extension {name}, and everything that needs it" in copied.missing
        others = [text for text in copied.missing if not text.startswith("extension ")]
        assert len(others) == 3
        assert (
            "function extensions.uuid_generate_v4() of uuid-ossp: in the copy it returns pg_catalog.gen_random_uuid()"
            in others
        )
        assert 'table public.loose (type "public.citext" does not exist)' in others
        assert any("keyed_name_idx" in text for text in others)
        assert len(ask(server, "pk_copy", "INSERT INTO keyed DEFAULT VALUES RETURNING id")) == 1
        secrets = [word for word in ("shop-Secret-2", "passwords") if word in (tmp_path / "audit.jsonl").read_text()]
        assert secrets == []

    @pytest.mark.parametrize("preloaded", ["", "/nowhere/libpq.so.5"])
    def test_without_a_library_for_tls_it_fails_in_one_line(
        self, preloaded: str, elsewhere: Hosted, server: embedded.EmbeddedServer, tmp_path: Path, monkeypatch
    ) -> None:
        source = self.external(elsewhere, tmp_path, monkeypatch)
        monkeypatch.setattr(copies, "_with_tls", lambda: {**os.environ, "LD_PRELOAD": preloaded})
        with pytest.raises(
            ServerError, match=r'^127.0.0.1:\d+/shop: pg_dump: .*sslmode value "verify-full" invalid.*$'
        ):
            copy_into(source, server, "pk_copy", Copying("whole"), lambda _: None)
        assert ask(server, "postgres", "SELECT datname FROM pg_database WHERE datname = 'pk_copy'") == []
