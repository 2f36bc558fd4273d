"""Index sets: SQL files read exactly, built in a database in use whatever happens meanwhile, and taken back."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from hosted import Hosted, hosted
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scripts import run_all

from perfkit.app.cli import main
from perfkit.base.errors import PerfkitError, ServerError, UsageError
from perfkit.indexes.designs import ablation
from perfkit.postgres import databases, embedded
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.index_builds import IndexOutcome, Patience, apply, build, rollback, survey
from perfkit.postgres.index_sets import IndexSet, read_set, script

HASTY = Patience(lock="100ms", attempts=2, pause_s=0.05, transactions="400ms")
TABLES = """
CREATE TABLE visits (id int, clinic int, note text, "Days" int[], seen date);
INSERT INTO visits SELECT n, n % 50, 'note ' || n, ARRAY[n], '2026-01-01' FROM generate_series(1, 300) n;
CREATE SCHEMA app;
CREATE TABLE app.visits (id int, clinic int, note text COLLATE "C");
CREATE TABLE other (id int);
CREATE VIEW seen AS SELECT id FROM visits;
CREATE MATERIALIZED VIEW counted AS SELECT clinic, count(*) AS n FROM visits GROUP BY 1;
CREATE TABLE parts (id int, day date) PARTITION BY RANGE (day);
CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.03); RETURN $1; END';
"""
SLOW = "CREATE INDEX visits_slow ON visits (slow(id))"  # 9 s
THREE = """
CREATE INDEX visits_clinic ON visits (clinic);
CREATE UNIQUE INDEX visits_id ON public.visits (id) INCLUDE (note);
CREATE INDEX "Visits Upper" ON app.visits (upper(note) text_pattern_ops DESC) WHERE clinic > 3;
ANALYZE visits;
"""


# Reading


def parsed(folder: Path, text: str) -> IndexSet:
    path = folder / "set.sql"
    path.write_text(text)
    return read_set(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parsed(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder / 'set.sql'}:")


def test_a_statement_is_taken_apart_as_it_is_written(tmp_path: Path) -> None:
    text = """
    CREATE UNIQUE INDEX /* a; */ CONCURRENTLY IF NOT EXISTS "A ""b" ON ONLY (app . "T") USING GIN
      (lower(a) text_ops (x = 1, y = '2;,') DESC NULLS LAST, (b[1] || E'\\';'), c COLLATE "C") -- d
      INCLUDE (d, e) NULLS NOT DISTINCT WITH (fillfactor = 70, x) TABLESPACE ts WHERE a <> $$;$$ AND b::text = ';'"""
    [index] = parsed(tmp_path, text).indexes
    assert (index.line, index.name, index.table) == (2, 'A "b', 'app."T"')
    assert index.unique and index.concurrently and index.if_not_exists and index.only and index.nulls_not_distinct
    assert index.method == "gin"
    assert index.keys == ("lower(a) text_ops (x = 1, y = '2;,') DESC NULLS LAST", r"(b[1] || E'\';')", 'c COLLATE "C"')
    assert (index.include, index.options, index.tablespace) == (("d", "e"), ("fillfactor = 70", "x"), "ts")
    assert index.where == "a <> $$;$$ AND b::text = ';'"
    assert index.text == text.strip()


def test_what_a_statement_does_not_say_has_postgresqls_defaults(tmp_path: Path) -> None:
    [index] = parsed(tmp_path, "create index visits_id on visits(id)").indexes
    assert not (index.unique or index.concurrently or index.if_not_exists or index.only or index.nulls_not_distinct)
    assert (index.method, index.keys, index.include, index.options) == ("btree", ("id",), (), ())
    assert (index.tablespace, index.where) == ("", "")


def test_a_statement_is_given_back_in_the_form_that_is_asked_for(tmp_path: Path) -> None:
    [named, unnamed] = parsed(
        tmp_path, "create index if not exists A on only t(a) where b; create unique index concurrently on t (a)"
    ).indexes
    assert named.sql(concurrently=False) == "CREATE INDEX A ON ONLY t (a) where b"
    assert named.sql(concurrently=True) == "CREATE INDEX CONCURRENTLY A ON ONLY t (a) where b"
    assert named.sql(concurrently=True, if_not_exists=True).startswith("CREATE INDEX CONCURRENTLY IF NOT EXISTS A ON")
    assert unnamed.sql(concurrently=False) == f"CREATE UNIQUE INDEX {unnamed.name} ON t (a)"
    assert re.fullmatch("perfkit_[0-9a-f]{8}", unnamed.name)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Visits_ID", "visits_id"),
        ('"Visits_ID"', "Visits_ID"),
        ('"a""b.c"', 'a"b.c'),
        ("grÖße", "grÖße"),  # only ASCII becomes small
        ("a" * 70, "a" * 63),
        ('"' + "ä" * 40 + '"', "ä" * 31),  # cut between characters
        ("a$b$", "a$b$"),
        ("if", "if"),
        ("e", "e"),
        ("unique_", "unique_"),
    ],
)
def test_a_name_is_known_as_the_server_will_call_it(
    server: EmbeddedServer, tmp_path: Path, written: str, name: str
) -> None:
    [index] = parsed(tmp_path, f"CREATE INDEX {written} ON t (a)").indexes
    assert index.name == name
    with server.connect(user="postgres") as connection, connection.transaction(force_rollback=True):
        connection.execute("CREATE TABLE t (a int)")
        connection.execute(index.text.encode())
        [row] = connection.execute(
            "SELECT relname FROM pg_class JOIN pg_index ON oid = indexrelid WHERE indrelid = 't'::regclass"
        )
        assert row["relname"] == name


def test_semicolons_and_commas_in_quotes_and_comments_end_nothing(tmp_path: Path) -> None:
    text = r"""
    /* CREATE INDEX no ON t (a); /* nested; */ ; */
    CREATE INDEX a ON t ((b || 'it''s; '), (c || E'\';,)'), (d || $x$;)$$,$x$), ("e;,)" || E'one'
        '\';')); -- CREATE INDEX no ON t (a);
    CREATE INDEX b ON t (f)
    """
    [first, second] = parsed(tmp_path, text).indexes
    assert len(first.keys) == 4 and first.line == 3
    assert (second.name, second.line) == ("b", 5)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("DROP INDEX a", 1, "'DROP INDEX a'; expected CREATE INDEX ... or ANALYZE"),
        ("\nCREATE TABLE t (a int)", 2, "'CREATE TABLE t (a int)'; expected CREATE INDEX ... or ANALYZE"),
        ("ANALYZE t;\nINSERT INTO t\nVALUES (1)", 2, "'INSERT INTO t'; expected CREATE INDEX ... or ANALYZE"),
        ("CREATE INDEX a ON t (a); ALTER INDEX a RENAME TO b", 1, "'ALTER INDEX a RENAME TO b'; expected CREATE"),
        ("EXPLAIN ANALYZE t", 1, "expected CREATE INDEX ... or ANALYZE"),
        ("CREATE INDEX a ON t", 1, "found the end, expected '(' and columns"),
        ("CREATE INDEX a ON t (a", 1, "found the end, expected ')'"),
        ("CREATE INDEX a ON t (a,\n)", 2, "found ')', expected '(' and columns"),
        ("CREATE INDEX a ON t (a))", 1, "found ')', expected INCLUDE"),
        ("CREATE INDEX a ON t (a) WITH (x) INCLUDE (b)", 1, "found 'INCLUDE', expected INCLUDE"),
        ("CREATE INDEX a ON t (a) WHERE", 1, "found the end, expected a condition"),
        ("CREATE INDEX IF NOT EXISTS ON t (a)", 1, "found 't', expected ON"),
        ("CREATE INDEX a ON t (a)\nCREATE INDEX b ON t (b)", 2, "found 'CREATE', expected INCLUDE"),
        ("ANALYZE t u", 1, "found 'u', expected ','"),
        ("CREATE INDEX a ON t ('a)", 1, "SQL that cannot be read"),
        ("CREATE INDEX a ON t (a) /* /* */", 1, "SQL that cannot be read"),
        ("CREATE INDEX a ON t (a) \\! date", 1, "SQL that cannot be read"),  # psql would run it
        ("CREATE INDEX a ON t (a);\nCREATE INDEX A ON u (b)", 2, "a is in line 1 already; expected every name once"),
        ('CREATE INDEX a ON s.t (a);\nCREATE INDEX a ON "s".u (b)', 2, "a is in line 1 already; expected every name"),
        ('CREATE INDEX U&"a" ON t (a)', 1, "expected the index's name without U&"),
    ],
)
def test_anything_else_is_refused_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{line}: ") and words in message


def test_the_rollback_drops_in_reverse_in_the_tables_schema(tmp_path: Path) -> None:
    found = parsed(tmp_path, 'CREATE INDEX a ON t (a); CREATE INDEX "B" ON "My.app".t (b); ANALYZE t')
    assert found.rollback() == (
        'DROP INDEX CONCURRENTLY IF EXISTS "My.app"."B";\nDROP INDEX CONCURRENTLY IF EXISTS a;\n'
    )
    assert found.rollback(concurrently=False).startswith("DROP INDEX IF EXISTS ")
    assert found.analyze == ("ANALYZE t",)


# Reading as PostgreSQL does: whatever the grammar composes


def some(*texts: str) -> st.SearchStrategy[str]:
    return st.sampled_from(texts)


NAMES = some("", "plain", "MiXed", '"Quo""ted; name"', "ünïcode", "if", "n" * 70, "a$b$c")
ELEMENTS = some(
    "id", '"Odd, name"', "lower(note)", "(id + 1)", "((id)::text)", "(note || ';')", r"(note || E'\');')",
    "(note || $q$;)$q$)", '(note COLLATE "C")', "(days[1])", "(coalesce(note, $$,$$))", "(CASE WHEN id > 1 THEN 2 END)",
    "abs(id)", "(note || U&'d\\0061t')",
)  # fmt: skip
AFTER = some(
    "", "", 'COLLATE "C"', 'COLLATE pg_catalog."POSIX"', "text_pattern_ops", "int4_ops", "DESC", "ASC NULLS FIRST",
    'COLLATE "C" text_pattern_ops DESC NULLS LAST',
)  # fmt: skip
BLANKS = some(" ", "\n", " /* ; ( /* ' */ */ ", "\t-- it's; a comment\n ")
METHODS = some("", "", "USING btree", 'using "btree"', "USING hash", "USING gin", "USING brin")
OPTIONS = some("", "", "WITH (fillfactor = 70)", "with (fillfactor='80')", "WITH (nothing = 1)")
PLACES = some("t", "public.t", '"public" . "t"', "ONLY t", "ONLY (public.t)", "t *", "T", "nowhere")


@st.composite
def statements(draw: st.DrawFn) -> str:
    """CREATE INDEX by the grammar; PostgreSQL does not take all of them."""
    keys = ", ".join(f"{draw(ELEMENTS)} {draw(AFTER)}" for _ in range(draw(st.integers(1, 3))))
    name = draw(NAMES)
    words = [
        draw(some("CREATE", "create")), draw(some("", "UNIQUE")), "InDeX", draw(some("", "CONCURRENTLY")),
        draw(some("", "IF NOT EXISTS")) if name else "", name, "ON", draw(PLACES), draw(METHODS), f"({keys})",
        draw(some("", "", 'INCLUDE (days, "Odd, name")')), draw(some("", "", "NULLS DISTINCT", "NULLS NOT DISTINCT")),
        draw(OPTIONS), draw(some("", "TABLESPACE pg_default")),
        draw(some("", "", "WHERE id > 3 AND note <> ';'", "where (note)::text = any ('{a,b}'::text[])")),
    ]  # fmt: skip
    return draw(BLANKS).join(word for word in words if word)


@pytest.fixture(scope="module")
def bench(server: EmbeddedServer) -> Iterator[psycopg.Connection]:
    """One empty table on which every statement is tried."""
    databases.create(server, "grammar")
    with server.connect("grammar", "postgres") as connection:
        connection.execute('CREATE TABLE t (id int, note text, days int[], "Odd, name" int)')
        yield connection
    databases.drop(server, "grammar")


def made(bench: psycopg.Connection, text: str) -> str:
    """The definition of the index that a text makes, without the name; "" where PostgreSQL makes none of it."""
    before = {row["oid"] for row in bench.execute("SELECT oid FROM pg_class")}
    with suppress(psycopg.Error):
        bench.execute(text.encode(), binary=True)
    asked = """SELECT i.oid, i.oid::regclass::text AS name, i.relname, x.indisvalid AS valid,
                      coalesce(pg_get_indexdef(x.indexrelid), 'not an index') AS definition
               FROM pg_class i LEFT JOIN pg_index x ON x.indexrelid = i.oid"""
    new = [row for row in bench.execute(asked).fetchall() if row["oid"] not in before]
    for row in new:
        bench.execute(f"DROP INDEX {row['name']}")
    return " and ".join(row["definition"].replace(row["name"], "NAME", 1) for row in new if row["valid"])


def check(bench: psycopg.Connection, folder: Path, text: str) -> bool:
    """Whether PostgreSQL takes it, and then what was read makes the same index."""
    expected = made(bench, text)
    try:
        found = parsed(folder, text)
    except UsageError:
        assert not expected, f"refused, but PostgreSQL makes {expected}"
        return False
    for index in found.indexes:
        for concurrently in (False, True):
            assert made(bench, index.sql(concurrently=concurrently)) == (expected if len(found.indexes) == 1 else "")
    return bool(expected)


PROPERTY = settings(
    max_examples=80, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip


@PROPERTY
@given(text=statements())
def test_what_is_read_and_given_back_makes_the_same_index(bench: psycopg.Connection, tmp_path: Path, text: str) -> None:
    check(bench, tmp_path, text)


def test_most_of_what_the_grammar_composes_is_taken_by_postgresql(bench: psycopg.Connection, tmp_path: Path) -> None:
    plain = (
        'CREATE INDEX a ON t (id, lower(note) COLLATE "C" text_pattern_ops DESC) INCLUDE (days) WITH (fillfactor=70)'
    )
    assert check(bench, tmp_path, plain)  # or the property would hold of nothing


PIECES = re.compile(r"\"[^\"]*\"|'[^']*'|\w+|\s+|.", re.DOTALL)


@PROPERTY
@given(text=statements(), at=st.integers(0, 60), other=st.integers(0, 60), how=some("drop", "double", "swap", "cut"))
@example(text="CREATE INDEX a ON t (id)", at=60, other=60, how="cut")
def test_a_text_that_postgresql_refuses_becomes_no_other_index(
    bench: psycopg.Connection, tmp_path: Path, text: str, at: int, other: int, how: str
) -> None:
    pieces = PIECES.findall(text)
    at, other = at % len(pieces), other % len(pieces)
    if how == "drop":
        del pieces[at]
    elif how == "double":
        pieces.insert(at, pieces[at])
    elif how == "swap":
        pieces[at], pieces[other] = pieces[other], pieces[at]
    else:
        del pieces[at:]
    changed = "".join(pieces)
    assume(changed.strip())
    check(bench, tmp_path, changed)


# Building


@pytest.fixture(params=["server", "server16"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["Database"]:
    """A database of its own, on PostgreSQL 18 and 16."""
    yield from fresh(request.getfixturevalue(request.param), tmp_path)


@pytest.fixture
def one(server: EmbeddedServer, tmp_path: Path) -> Iterator["Database"]:
    """The same on 18 alone."""
    yield from fresh(server, tmp_path)


def fresh(server: EmbeddedServer, folder: Path) -> Iterator["Database"]:
    databases.create(server, "sets_test")
    (folder / "tables.sql").write_text(TABLES)
    databases.prepare(server, "sets_test", [folder / "tables.sql"], {})
    yield Database(server, "sets_test", folder)
    databases.drop(server, "sets_test")


class Database:
    """A database, and the set that is applied to it."""

    def __init__(self, server: EmbeddedServer, name: str, folder: Path) -> None:
        self.server, self.name, self.folder = server, name, folder
        self.said: list[str] = []

    def connect(self, user: str = "") -> psycopg.Connection:
        return self.server.connect(self.name, user)

    def run(self, statement: str, user: str = "") -> list[Any]:
        with self.connect(user) as connection:
            cursor = run_all(connection, statement.encode())
            return [next(iter(row.values())) for row in cursor] if cursor.description else []

    def read(self, text: str) -> IndexSet:
        return parsed(self.folder, text)

    def apply(self, text: str, patience: Patience = HASTY) -> list[IndexOutcome]:
        return apply(self.server, self.name, self.read(text), self.said.append, patience=patience)

    def how(self, text: str) -> list[str]:
        return [index.how for index in self.apply(text)]

    def rollback(self, text: str, patience: Patience = HASTY) -> list[tuple[str, str]]:
        gone = rollback(self.server, self.name, self.read(text), self.said.append, patience=patience)
        return [(index.name, index.how) for index in gone]

    def stopped(self, text: str, kind: type[PerfkitError] = UsageError, patience: Patience = HASTY) -> str:
        with pytest.raises(kind) as caught:
            self.apply(text, patience)
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(str(self.folder / "set.sql"))

    def indexes(self) -> dict[str, bool]:
        """Every index by name, and whether it is valid."""
        with self.connect() as connection:
            asked = "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid WHERE oid >= 16384"
            rows = connection.execute(f"{asked} AND relname !~ '^pg_'").fetchall()
            return {row["relname"]: row["indisvalid"] for row in rows}

    def wait(self, query: str) -> None:
        deadline = time.monotonic() + 20
        while not self.run(query, "postgres"):
            assert time.monotonic() < deadline, query
            time.sleep(0.02)


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Do this in a thread of its own; what it raised is there at the end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield raised
    thread.join(60)
    assert not thread.is_alive()


BUILDING = "SELECT 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'building index%'"


def test_every_index_is_built_and_valid_and_its_table_analysed(database: Database) -> None:
    found = database.apply(THREE)
    assert [(i.name, i.table, i.how) for i in found] == [
        ("visits_clinic", "public.visits", "built"),
        ("visits_id", "public.visits", "built"),
        ("Visits Upper", "app.visits", "built"),
    ]
    assert all(i.seconds > 0 and i.bytes >= 8192 for i in found)
    assert database.indexes() == {"visits_clinic": True, "visits_id": True, "Visits Upper": True}
    assert database.run("SELECT reltuples::int FROM pg_class WHERE oid = 'visits'::regclass") == [300]


def test_others_write_to_the_table_meanwhile(one: Database) -> None:
    with meanwhile(lambda: one.apply(SLOW)) as raised:
        one.wait(BUILDING)
        with one.connect() as writer:
            writer.execute("SET lock_timeout = '1s'")
            writer.execute("INSERT INTO visits VALUES (1000)")
        one.run("SELECT pg_cancel_backend(pid) FROM pg_stat_progress_create_index", "postgres")
    assert isinstance(raised[0], ServerError)


def test_progress_tells_which_index_of_how_many_and_how_far_the_server_is(one: Database) -> None:
    one.run("ALTER ROLE perfkit SET statement_timeout = '1s'", "postgres")  # which is for its queries
    try:
        one.apply("CREATE INDEX visits_clinic ON visits (clinic); CREATE INDEX half ON visits (slow(id)) WHERE id < 60")
    finally:
        one.run("ALTER ROLE perfkit RESET statement_timeout", "postgres")
    assert "building visits_clinic (1 of 2): waiting for the lock on public.visits" in one.said
    phases = [line for line in one.said if line.startswith("building half (2 of 2): building index")]
    assert phases and all(re.search(r": scanning table, \d+ % of blocks$", line) for line in phases)


def test_one_name_may_be_in_two_schemas(database: Database) -> None:
    database.run("CREATE SCHEMA other; CREATE TABLE other.t (a int); CREATE TABLE t (a int)")
    both = "CREATE INDEX t_a ON public.t (a);\nCREATE INDEX t_a ON other.t (a)"
    asked = "SELECT schemaname FROM pg_indexes WHERE indexname = 't_a' ORDER BY 1"
    assert database.how(both) == ["built", "built"]
    assert database.run(asked) == ["other", "public"]
    assert database.how(both) == ["there", "there"]
    assert database.rollback(both) == [("t_a", "dropped"), ("t_a", "dropped")]
    assert database.run(asked) == []
    built = build(database.server, database.name, database.read(both).path)
    assert [(index.name, index.table) for index in built] == [("t_a", "t"), ("t_a", "other.t")]


def test_one_name_in_one_schema_is_refused_also_where_the_schema_is_not_written(one: Database) -> None:
    one.run("CREATE TABLE t (a int, b int)")
    twice = "CREATE INDEX t_a ON public.t (a);\nCREATE INDEX t_a ON t (b)"
    assert one.stopped(twice) == ":2: public.t_a is in line 1 already; expected every name once"
    assert "t_a" not in one.indexes()


def test_what_each_index_is_worth_is_told_by_names_that_differ(tmp_path: Path) -> None:
    both = parsed(tmp_path, "CREATE INDEX t_a ON t (a); CREATE INDEX t_a ON other.t (a)")
    with pytest.raises(UsageError, match="two indexes are called t_a; expected unique names across all schemas"):
        ablation(both)


def test_a_second_time_there_is_nothing_to_do(database: Database) -> None:
    database.apply(THREE)
    oids = database.run("SELECT indexrelid FROM pg_index ORDER BY 1")
    assert database.how(THREE) == ["there", "there", "there"]
    assert database.run("SELECT indexrelid FROM pg_index ORDER BY 1") == oids


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("CREATE INDEX a ON visits (id)", "create index concurrently A on public.visits using btree(id ASC)"),
        ("CREATE INDEX a ON visits (lower(note))", "CREATE INDEX a ON visits ((lower((note)::text)))"),
        ("CREATE INDEX a ON other (id) WHERE id IN (1, 2)", "CREATE INDEX a ON other (id) WHERE id = ANY (ARRAY[1,2])"),
        ("CREATE INDEX a ON app.visits (note)", 'CREATE INDEX a ON app.visits (note COLLATE "C" text_ops)'),
        ("ALTER TABLE visits ADD CONSTRAINT a UNIQUE (id)", "CREATE UNIQUE INDEX a ON visits (id)"),
        ("CREATE INDEX a ON visits ((visits.id + 1))", "CREATE INDEX a ON visits ((id+1))"),
        ("CREATE INDEX a ON counted (n)", "CREATE INDEX a ON counted (n)"),
    ],
)  # fmt: skip
def test_an_index_is_the_same_when_the_server_says_so_however_it_is_written(
    one: Database, before: str, now: str
) -> None:
    one.run(before)
    assert one.how(now) == ["there"]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("CREATE INDEX taken ON visits (id)", "CREATE INDEX taken ON visits (clinic)"),
        ("CREATE INDEX taken ON visits (id)", "CREATE UNIQUE INDEX taken ON visits (id)"),
        ("CREATE INDEX taken ON visits (id)", "CREATE INDEX IF NOT EXISTS taken ON visits (id DESC)"),
        ("CREATE INDEX taken ON visits (id)", "CREATE INDEX taken ON visits (id) INCLUDE (note)"),
        ("CREATE INDEX taken ON visits (id)", "CREATE INDEX taken ON visits (id) WITH (fillfactor = 50)"),
        ("CREATE INDEX taken ON visits (id) WHERE clinic = 1", "CREATE INDEX taken ON visits (id) WHERE clinic = 2"),
        ("CREATE INDEX taken ON other (id)", "CREATE INDEX taken ON visits (id)"),
        ("CREATE TABLE taken (id int)", "CREATE INDEX taken ON visits (id)"),
    ],
)
def test_a_name_with_another_definition_is_refused_before_anything_is_built(
    one: Database, before: str, now: str
) -> None:
    one.run(before)
    there = one.indexes()
    message = one.stopped(f"CREATE INDEX visits_clinic ON visits (clinic);\n{now}")
    assert message.startswith(":2: taken exists already as ")
    if before.startswith("CREATE INDEX taken ON visits"):
        has, expected = message.split("; expected ")
        for definition, text in ((has, before), (expected, now)):
            words = text.replace("IF NOT EXISTS ", "").replace(" ON visits (", " ON public.visits USING btree (")
            assert words[: words.index(")")] in definition
    assert one.indexes() == there


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("CREATE INDEX b ON visits (nothing)", ':2: column "nothing" does not exist'),
        ("CREATE INDEX b ON nothing (id)", ":2: no table nothing; expected an existing table"),
        ("CREATE INDEX b ON visits (id gin_trgm_ops)", ':2: operator class "gin_trgm_ops" does not exist'),
        ("CREATE INDEX b ON visits USING nothing (id)", ':2: access method "nothing" does not exist'),
        ("CREATE INDEX b ON visits (random())", ":2: functions in index expression must be marked IMMUTABLE"),
        ("CREATE INDEX b ON visits (id) TABLESPACE nothing", ':2: tablespace "nothing" does not exist'),
        ("CREATE INDEX b ON visits (id + 1)", ':2: syntax error at or near "+"'),
        ("CREATE INDEX select ON visits (id)", ':2: syntax error at or near "select"'),
        ("CREATE INDEX b ON order (id)", ':2: syntax error at or near "order"'),
        ("CREATE INDEX b ON seen (id)", ":2: public.seen cannot have indexes of yours; expected a table"),
        ("CREATE INDEX b ON pg_class (relname)", ":2: pg_catalog.pg_class cannot have indexes of yours"),
        ("ANALYZE visits, nothing", ": ANALYZE visits, nothing: no table nothing; expected an existing table"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_before_anything_is(one: Database, statement: str, words: str) -> None:
    assert one.stopped(f"CREATE INDEX a ON visits (id);\n{statement}").startswith(words)
    assert one.indexes() == {}


def test_a_partitioned_table_is_refused_with_what_to_do_by_hand(one: Database) -> None:
    assert one.stopped("CREATE INDEX a ON visits (id);\nCREATE INDEX b ON parts (id)") == (
        ":2: public.parts is partitioned, and CONCURRENTLY cannot index it; run: CREATE INDEX b ON ONLY parts (id); "
        "then for each partition CREATE INDEX CONCURRENTLY and ALTER INDEX public.b ATTACH PARTITION"
    )
    one.run("CREATE TABLE part PARTITION OF parts DEFAULT; CREATE INDEX b ON parts (id)")
    assert one.how("CREATE INDEX b ON parts (id)") == ["there"]
    assert one.rollback("CREATE INDEX b ON parts (id)") == [("b", "left")]


def test_a_table_of_somebody_elses_is_refused_before_anything_is_built(one: Database) -> None:
    one.run("CREATE TABLE theirs (id int)", "postgres")
    message = one.stopped("CREATE INDEX a ON visits (id);\nCREATE INDEX b ON theirs (id)")
    assert message == ":2: public.theirs belongs to postgres; expected the owner to build its indexes"
    assert one.indexes() == {}


def test_looking_waits_for_no_lock_on_the_tables_and_leaves_nothing(database: Database) -> None:
    before = database.run("SELECT count(*) FROM pg_class")
    with database.connect() as other, other.transaction(force_rollback=True):
        other.execute("LOCK TABLE visits, app.visits IN ACCESS EXCLUSIVE MODE")
        found = survey(database.server, database.name, database.read(THREE), HASTY)
    assert [own.state for own in found] == ["missing", "missing", "missing"]
    assert database.run("SELECT count(*) FROM pg_class") == before


# Faults


def test_an_invalid_index_with_this_definition_is_built_anew(database: Database) -> None:
    database.run("INSERT INTO visits VALUES (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        database.run("CREATE UNIQUE INDEX CONCURRENTLY visits_id ON visits (id) INCLUDE (note)")
    assert database.indexes() == {"visits_id": False}
    database.run("DELETE FROM visits WHERE clinic IS NULL")
    assert database.how(THREE) == ["built", "rebuilt", "built"]
    assert database.indexes() == {"visits_clinic": True, "visits_id": True, "Visits Upper": True}


def test_an_invalid_index_with_another_definition_is_left_to_whoever_made_it(one: Database) -> None:
    one.run("INSERT INTO visits VALUES (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        one.run("CREATE UNIQUE INDEX CONCURRENTLY visits_id ON visits (id)")
    assert "visits_id exists already as CREATE UNIQUE INDEX" in one.stopped(THREE)
    assert one.indexes() == {"visits_id": False}


def test_a_unique_violation_leaves_what_was_built_before_and_no_invalid_index(database: Database) -> None:
    database.run("INSERT INTO visits VALUES (1)")
    message = database.stopped(THREE, ServerError)
    assert message == (
        ':3: visits_id: could not create unique index "visits_id"; no invalid visits_id is left; built and kept: '
        "visits_clinic; run this again to continue"
    )
    assert database.indexes() == {"visits_clinic": True}
    database.run("DELETE FROM visits WHERE clinic IS NULL")
    assert database.how(THREE) == ["there", "built", "built"]


def test_a_lock_that_is_never_granted_ends_it_after_a_few_tries_without_a_trace(database: Database) -> None:
    with database.connect() as other, other.transaction(force_rollback=True):
        other.execute("LOCK TABLE app.visits IN SHARE MODE")
        message = database.stopped(THREE, ServerError)
        assert message == (
            f":4: Visits Upper: canceling statement due to lock timeout (held by process {other.info.backend_pid}); "
            "built and kept: visits_clinic, visits_id; run this again to continue"
        )
        assert len([line for line in database.said if "waiting for the lock on app.visits" in line]) == HASTY.attempts
        assert database.indexes() == {"visits_clinic": True, "visits_id": True}
    assert database.how(THREE) == ["there", "there", "built"]


def test_a_lock_that_is_granted_in_time_is_waited_for(one: Database) -> None:
    with one.connect() as other:
        run_all(other, "BEGIN; LOCK TABLE visits IN SHARE MODE")
        patience = Patience("100ms", 20, 0.1, "5s")
        with meanwhile(lambda: one.apply(THREE, patience)) as raised:
            deadline = time.monotonic() + 20
            while sum("waiting for the lock" in line for line in one.said) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            other.execute("ROLLBACK")
    assert not raised
    assert all(one.indexes().values()) and len(one.indexes()) == 3


def test_a_transaction_that_does_not_end_ends_it_and_the_next_run_puts_it_right(database: Database) -> None:
    with database.connect() as writer, writer.transaction():
        writer.execute("UPDATE visits SET note = note WHERE id = 1")  # which CONCURRENTLY waits for, dropping too
        message = database.stopped(THREE, ServerError)
        expected = f"canceling statement due to lock timeout (held by process {writer.info.backend_pid}); "
        assert message.startswith(f":2: visits_clinic: {expected}")
        assert "visits_clinic may be left invalid; the next run removes it, or: DROP INDEX CONC" in message
        assert any("waiting for writers before build" in line for line in database.said)
    assert database.how(THREE) == ["rebuilt", "built", "built"]
    assert database.indexes() == {"visits_clinic": True, "visits_id": True, "Visits Upper": True}


def test_an_index_that_another_session_is_building_is_not_taken_for_a_leftover(one: Database) -> None:
    with one.connect() as other, meanwhile(lambda: other.execute(SLOW.replace("INDEX", "INDEX CONCURRENTLY"))):
        one.wait(BUILDING)
        expected = f"public.visits_slow is being built by process {other.info.backend_pid}; wait until that build ends"
        assert one.stopped(SLOW) == f":1: {expected}"
        assert one.rollback(SLOW) == [("visits_slow", "left")]
        assert one.indexes() == {"visits_slow": False}
        other.cancel()


def test_a_connection_that_is_killed_in_mid_build_leaves_no_invalid_index(database: Database) -> None:
    text = f"CREATE INDEX visits_clinic ON visits (clinic); {SLOW}"
    with meanwhile(lambda: database.apply(text)) as raised:
        database.wait(BUILDING)
        database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index", "postgres")
    assert isinstance(raised[0], ServerError)
    assert "; no invalid visits_slow is left; built and kept: visits_clinic; run this again to continue" in str(
        raised[0]
    )
    assert database.indexes() == {"visits_clinic": True}


def test_a_server_that_is_killed_in_mid_build_is_one_line(server_home: Path, tmp_path: Path) -> None:
    with embedded.start(16, {"max_connections": "20"}, server_home) as server:
        database = next(fresh(server, tmp_path))
        with meanwhile(lambda: database.apply(SLOW)) as raised:
            database.wait(BUILDING)
            os.kill(server.pid, signal.SIGKILL)
    message = str(raised[0])
    assert isinstance(raised[0], ServerError) and "\n" not in message
    assert ":1: visits_slow: the server is gone (" in message and "the next run removes" in message


def test_a_build_that_needs_more_room_than_it_may_have_leaves_no_invalid_index(database: Database) -> None:
    big = "CREATE INDEX visits_note ON visits (md5(note), md5(note || 'a'), md5(note || 'b'))"
    database.run("INSERT INTO visits SELECT n, 1, n FROM generate_series(1, 30000) n")
    database.run(f"ALTER DATABASE {database.name} SET temp_file_limit = '2MB'", "postgres")
    database.run(f"ALTER DATABASE {database.name} SET maintenance_work_mem = '1MB'", "postgres")
    message = database.stopped(f"CREATE INDEX visits_clinic ON visits (clinic); {big}", ServerError)
    assert message.startswith(":1: visits_note: temporary file size exceeds") and "; no invalid visits_note" in message
    assert database.indexes() == {"visits_clinic": True}
    database.run(f"ALTER DATABASE {database.name} RESET temp_file_limit", "postgres")
    assert database.how(f"CREATE INDEX visits_clinic ON visits (clinic); {big}") == ["there", "built"]


@pytest.fixture
def small_disk(one: Database) -> Iterator[Path]:
    """Three megabytes that the server can write to."""
    folder = Path(tempfile.mkdtemp(prefix="perfkit-disk-"))
    owner = one.server.data_dir.stat()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        if mounted.returncode:
            pytest.skip("no disk of three megabytes: this kernel lets nobody mount one here")
        os.chown(folder, owner.st_uid, owner.st_gid)
        yield folder
        one.run("DROP TABLESPACE small", "postgres")
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", folder], check=True)
        folder.rmdir()


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_leaves_no_invalid_index(one: Database, small_disk: Path) -> None:
    one.run(f"CREATE TABLESPACE small LOCATION '{small_disk}'", "postgres")
    one.run("GRANT CREATE ON TABLESPACE small TO perfkit", "postgres")
    one.run("INSERT INTO visits SELECT n, 1, n FROM generate_series(1, 40000) n")
    big = "CREATE INDEX big ON visits (md5(note), md5(note || 'a'), md5(note || 'b')) TABLESPACE small"
    text = f"CREATE INDEX visits_clinic ON visits (clinic);\n{big}"
    try:
        message = one.stopped(text, ServerError)
        assert "No space left on device; no invalid big is left; built and kept: visits_clinic;" in message
        assert one.indexes() == {"visits_clinic": True}
        subprocess.run(["mount", "-o", "remount,size=30m", small_disk], check=True)
        assert one.how(text) == ["there", "built"]
        assert one.stopped(text.replace("small", "pg_default")).endswith("TABLESPACE pg_default")
    finally:
        one.run("DROP INDEX IF EXISTS big; CHECKPOINT", "postgres")


# Taking it back


def test_a_rollback_drops_what_the_set_defines_and_names_what_it_leaves(database: Database) -> None:
    database.apply(THREE)
    database.run("DROP INDEX visits_clinic; CREATE INDEX visits_clinic ON visits (clinic DESC)")
    gone = rollback(database.server, database.name, database.read(THREE), database.said.append, patience=HASTY)
    assert [(index.name, index.how) for index in gone] == [
        ("Visits Upper", "dropped"),
        ("visits_id", "dropped"),
        ("visits_clinic", "left"),
    ]
    assert "visits_clinic exists already as CREATE INDEX visits_clinic ON public.visits USING btree (clinic DESC)" in (
        gone[2].why
    )
    assert database.indexes() == {"visits_clinic": True}


def test_a_rollback_can_be_repeated_and_drops_invalid_ones_too(one: Database) -> None:
    one.run("INSERT INTO visits VALUES (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        one.run("CREATE UNIQUE INDEX CONCURRENTLY visits_id ON visits (id) INCLUDE (note)")
    names = ["Visits Upper", "visits_id", "visits_clinic"]
    assert one.rollback(THREE) == list(zip(names, ["absent", "dropped", "absent"], strict=True))
    assert one.rollback(THREE) == [(name, "absent") for name in names]
    assert one.indexes() == {}


def test_a_rollback_leaves_an_index_that_a_constraint_needs_or_whose_table_is_gone(one: Database) -> None:
    one.run("ALTER TABLE visits ADD CONSTRAINT visits_id UNIQUE (id)")
    gone = "CREATE UNIQUE INDEX visits_id ON visits (id); CREATE INDEX b ON nothing (id)"
    assert one.rollback(gone) == [("b", "absent"), ("visits_id", "left")]
    assert one.indexes() == {"visits_id": True}


def test_a_rollback_that_gets_no_lock_says_what_it_dropped(one: Database) -> None:
    one.apply(THREE)
    with one.connect() as other, other.transaction(force_rollback=True):
        other.execute("LOCK TABLE visits IN SHARE MODE")
        with pytest.raises(ServerError) as caught:
            one.rollback(THREE)
        held = f"lock timeout (held by process {other.info.backend_pid})"
    assert str(caught.value).endswith(f"{held}; dropped: Visits Upper; run this again to continue")
    assert one.rollback(THREE) == [("Visits Upper", "absent"), ("visits_id", "dropped"), ("visits_clinic", "dropped")]


# As SQL


def test_a_dry_run_needs_no_database_and_prints_sql_for_psql(tmp_path: Path) -> None:
    path = parsed(tmp_path, THREE).path
    done = CliRunner().invoke(main, ["indexes", "apply", str(path), "--dry-run"])
    assert done.exit_code == 0
    assert done.stdout == (
        "SET statement_timeout = 0;\nSET lock_timeout = '10min';\n"
        "CREATE INDEX CONCURRENTLY visits_clinic ON visits (clinic);\n"
        "CREATE UNIQUE INDEX CONCURRENTLY visits_id ON public.visits (id) INCLUDE (note);\n"
        'CREATE INDEX CONCURRENTLY "Visits Upper" ON app.visits (upper(note) text_pattern_ops DESC) WHERE clinic > 3;\n'
        "ANALYZE visits;\n"
    )
    done = CliRunner().invoke(main, ["indexes", "rollback", str(path), "--dry-run"])
    assert done.stdout.splitlines()[2:] == [
        'DROP INDEX CONCURRENTLY IF EXISTS app."Visits Upper";',
        "DROP INDEX CONCURRENTLY IF EXISTS public.visits_id;",
        "DROP INDEX CONCURRENTLY IF EXISTS visits_clinic;",
    ]


def test_what_is_printed_runs_in_psql(one: Database) -> None:
    psql = [one.server.bin_dir / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", one.server.conninfo(one.name)]
    program = shutil.which("psql") or psql[0]
    if not Path(program).exists():
        pytest.skip("no psql here")
    wanted = one.read(THREE)
    subprocess.run([program, *psql[1:]], input=script(wanted).encode(), check=True, capture_output=True)
    assert one.how(THREE) == ["there", "there", "there"]
    one.run("DROP INDEX visits_clinic")
    left = script(wanted, survey(one.server, one.name, wanted))
    assert "visits_clinic" in left and "visits_id" not in left


@pytest.mark.parametrize("command", ["apply", "rollback"])
def test_without_a_database_or_a_set_it_is_one_line(tmp_path: Path, command: str) -> None:
    path = parsed(tmp_path, THREE).path
    for arguments, words in (
        ([str(path)], "no database; expected --db"),
        ([str(tmp_path / "no.sql")], "cannot be read"),
    ):
        done = CliRunner().invoke(main, ["indexes", command, *arguments])
        assert (done.exit_code, done.stdout) == (2, "")
        assert words in done.stderr and done.stderr.count("\n") == 1


# The commands, on a server of the user's, as a plain owner whose statements may take three seconds


SALES = """
CREATE INDEX orders_customer ON sales.orders (customer_id);
CREATE INDEX orders_slow ON sales.orders (slow(id)) WHERE id <= 200;
"""
SALES_SLOW = (
    "SELECT 1 FROM pg_stat_progress_create_index "
    "WHERE phase LIKE 'building%' AND index_relid = to_regclass('sales.orders_slow')"
)
SALES_INDEXES = """
    SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid
    WHERE indrelid = 'sales.orders'::regclass AND NOT indisprimary ORDER BY 1
"""


@pytest.fixture(scope="module")
def theirs() -> Iterator[Hosted]:
    """A hosted server whose owner allowed DDL."""
    with hosted() as running:
        running.run(
            "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql "
            "AS 'BEGIN PERFORM pg_sleep(0.02); RETURN $1; END'",
            user="shop",
        )
        yield running


@pytest.fixture
def sales(theirs: Hosted, tmp_path: Path) -> Iterator[Path]:
    """A set, and none of its indexes before and after."""
    subprocess.run(words(theirs, "allow", "--ddl"), env=environment(theirs), check=True, capture_output=True)
    yield parsed(tmp_path, SALES).path
    theirs.leave_alone()
    theirs.run("DROP INDEX IF EXISTS sales.orders_customer, sales.orders_slow", user="shop")


def words(server: Hosted, *arguments: str, db: str = "") -> list[str]:
    where = ["--db", db or server.db(), "--confirm", server.name()]
    return [sys.executable, "-P", "-m", "perfkit", *arguments, *where]


def environment(server: Hosted) -> dict[str, str]:
    return {**os.environ, **server.environment}


def command(server: Hosted, name: str, file: Path, *options: str, db: str = "") -> subprocess.CompletedProcess[str]:
    arguments = words(server, "indexes", name, str(file), *options, db=db)
    return subprocess.run(arguments, env=environment(server), capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def building(server: Hosted, file: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, when the second index is being built."""
    pipe = subprocess.PIPE
    arguments = words(server, "indexes", "apply", str(file))
    with subprocess.Popen(arguments, env=environment(server), stdout=pipe, stderr=pipe, text=True) as running:
        wait_for(server, SALES_SLOW)
        yield running


def wait_for(server: Hosted, query: str, *, gone: bool = False) -> None:
    deadline = time.monotonic() + 30
    while bool(server.run(query)) is gone:
        assert time.monotonic() < deadline, query
        time.sleep(0.02)


@pytest.mark.system
@pytest.mark.slow
class TestOnAServerOfTheUsers:
    def test_nothing_is_tried_without_its_owners_permission(self, theirs: Hosted, tmp_path: Path) -> None:
        path = parsed(tmp_path, SALES).path
        for options in ([], ["--dry-run"]):
            done = command(theirs, "apply", path, *options)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (97, "", 1)
            assert "indexes may not be built in it; the owner can allow this with: perfkit allow" in done.stderr

    def test_a_set_is_built_found_there_and_taken_back(self, theirs: Hosted, sales: Path) -> None:
        done = command(theirs, "apply", sales, "--dry-run")
        assert done.stdout.count("CREATE INDEX CONCURRENTLY") == 2 and theirs.run(SALES_INDEXES) == []
        done = command(theirs, "apply", sales)
        assert done.returncode == 0, done.stderr
        first, second, back = done.stdout.splitlines()
        assert re.fullmatch(r"orders_customer on sales.orders: built in [\d.]+ m?s, [\d.]+ kB", first)
        assert second.startswith("orders_slow on sales.orders: built in ")  # in more than three seconds
        assert back.startswith(f"to drop them again: perfkit indexes rollback {sales} --db 'host=127.0.0.1 ")
        assert "building orders_customer (1 of 2)" in done.stderr and "building orders_slow (2 of 2)" in done.stderr
        assert theirs.run(SALES_INDEXES) == [("orders_customer", True), ("orders_slow", True)]
        assert command(theirs, "apply", sales).stdout.count(": already exists, ") == 2
        assert "CREATE" not in command(theirs, "apply", sales, "--dry-run").stdout
        assert command(theirs, "rollback", sales, "--dry-run").stdout.splitlines()[2:] == [
            "DROP INDEX CONCURRENTLY sales.orders_slow;",
            "DROP INDEX CONCURRENTLY sales.orders_customer;",
        ]
        assert len(theirs.run(SALES_INDEXES)) == 2
        done = command(theirs, "rollback", sales)
        assert (done.returncode, done.stdout.count(": dropped, ")) == (0, 2)
        assert theirs.run(SALES_INDEXES) == []

    def test_an_interrupt_keeps_what_is_built_and_leaves_nothing_invalid(self, theirs: Hosted, sales: Path) -> None:
        with building(theirs, sales) as running:
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=30)
        assert (running.returncode, out) == (105, "")
        kept = "no invalid orders_slow is left; built and kept: orders_customer; run this again to continue"
        assert err.splitlines()[-1] == f"perfkit: {sales}:3: orders_slow: stopped; {kept}"
        assert theirs.run(SALES_INDEXES) == [("orders_customer", True)]
        done = command(theirs, "apply", sales)
        assert "orders_customer on sales.orders: already exists" in done.stdout
        assert theirs.run(SALES_INDEXES) == [("orders_customer", True), ("orders_slow", True)]

    def test_a_command_that_is_killed_leaves_nothing_invalid_either(self, theirs: Hosted, sales: Path) -> None:
        with building(theirs, sales) as running:
            running.kill()
        wait_for(theirs, "SELECT 1 FROM pg_class WHERE relname = 'orders_slow'", gone=True)
        assert theirs.run(SALES_INDEXES) == [("orders_customer", True)]
        assert command(theirs, "apply", sales).returncode == 0
        assert theirs.run(SALES_INDEXES) == [("orders_customer", True), ("orders_slow", True)]

    def test_who_reads_the_output_of_a_killed_command_need_not_wait_until_all_is_removed(
        self, theirs: Hosted, sales: Path
    ) -> None:
        left = "SELECT 1 FROM pg_class WHERE relname = 'orders_slow'"
        with building(theirs, sales) as running, theirs.connect("shop") as writer:
            run_all(writer, "BEGIN; UPDATE sales.orders SET total = total WHERE id = 1")  # which a removal waits for
            running.kill()
            running.communicate(timeout=30)
            assert theirs.run(left)
            writer.execute("ROLLBACK")
        wait_for(theirs, left, gone=True)

    def test_a_server_that_crashes_in_mid_build_and_comes_back_has_nothing_invalid(
        self, theirs: Hosted, sales: Path
    ) -> None:
        with building(theirs, sales) as running:
            [(pid,)] = theirs.run("SELECT pid FROM pg_stat_progress_create_index")
            os.kill(pid, signal.SIGKILL)
            _, err = running.communicate(timeout=30)
        assert running.returncode == 1
        assert "orders_slow: " in err and "; no invalid orders_slow is left; built and kept: orders_customer" in err
        assert theirs.run(SALES_INDEXES) == [("orders_customer", True)]
        assert command(theirs, "apply", sales).returncode == 0

    def test_a_pooler_is_refused(self, theirs: Hosted, sales: Path) -> None:
        pooled = ["--no-tls", "--confirm", theirs.name(port=theirs.pooled)]
        done = command(theirs, "apply", sales, *pooled, db=theirs.db(port=theirs.pooled))
        assert done.returncode == 97 and "behind a pooler; expected a direct connection" in done.stderr

    def test_somebody_who_does_not_own_the_table_is_refused(self, theirs: Hosted, sales: Path) -> None:
        done = command(theirs, "apply", sales, db=theirs.db(user="clerk"))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert ":2: sales.orders belongs to shop; expected the owner to build its indexes" in done.stderr
        assert theirs.run(SALES_INDEXES) == []
