"""The captured corpus: EXPLAIN's JSON of every node type and situation that real servers could be brought to.

    .venv/bin/python tests/support/corpus.py [18|16|system]

writes tests/plans/<version>/<name>.json anew, of all three without an argument. Data and names are fixed; times, and
the workers that a busy machine could launch, are what they were that day.
"""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import tuple_row
from scripts import run_all

sys.path.insert(0, str(Path(__file__).parent))

from hosted import BINARIES, VERSION, as_server, free_port, wait_for

from perfkit.base.resources import CHECKOUT
from perfkit.postgres import databases, embedded

PLANS = CHECKOUT / "tests" / "plans"
Connect = Callable[[], psycopg.Connection[Any]]

TABLES = """
CREATE TABLE clinics (id int PRIMARY KEY, name text, kind int);
INSERT INTO clinics SELECT n, 'clinic ' || n, n % 4 FROM generate_series(1, 60) n;
CREATE TABLE visits (id int PRIMARY KEY, clinic int, day int, note text);
INSERT INTO visits SELECT n, n % 50 + 1, n % 365, 'note ' || n FROM generate_series(1, 6000) n;
CREATE INDEX visits_clinic ON visits (clinic);
CREATE INDEX visits_day ON visits (day);
CREATE TABLE sparse (id int, k int, pad text) WITH (fillfactor = 10);
INSERT INTO sparse SELECT n, (n * 7919) % 1000, repeat('x', 60) FROM generate_series(1, 13000) n;
CREATE INDEX sparse_k ON sparse (k);
CREATE INDEX sparse_id ON sparse (id);
CREATE TABLE parts (day int, x int) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (200) TO (300);
INSERT INTO parts SELECT n % 300, n FROM generate_series(1, 3000) n;
CREATE INDEX parts_day ON parts (day);
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE);
INSERT INTO parents SELECT generate_series(1, 40);
INSERT INTO children SELECT n, n % 40 + 1 FROM generate_series(1, 1000) n;
CREATE TABLE stock (id int PRIMARY KEY, n int);
INSERT INTO stock SELECT n, n FROM generate_series(1, 20) n;
CREATE TABLE noted (id int, n int);
CREATE FUNCTION half() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.n := NEW.n / 2; RETURN NEW; END $$;
CREATE TRIGGER halved BEFORE INSERT ON noted FOR EACH ROW EXECUTE FUNCTION half();
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE line text; said text := '';
BEGIN
    FOR line IN EXECUTE format('EXPLAIN (%s) SELECT sum(n) FROM added WHERE n > 3', current_setting('corpus.options'))
    LOOP said := said || line || E'\\n'; END LOOP;
    PERFORM set_config('corpus.said', said, false);
    RETURN NULL;
END $$;
CREATE TRIGGER looked AFTER INSERT ON noted REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION look();
CREATE FUNCTION slow_sum(int) RETURNS int LANGUAGE plpgsql STABLE
AS $$ BEGIN RETURN (SELECT sum(day) FROM visits WHERE clinic = $1); END $$;
CREATE SCHEMA "say ""hi"" !";
CREATE TABLE "say ""hi"" !"."</script><b>'$0' (InitPlan 1).col1" ("a
b" int, "\u202edesrever" text, "plan: {" int);
INSERT INTO "say ""hi"" !"."</script><b>'$0' (InitPlan 1).col1" SELECT n, 'x', n FROM generate_series(1, 50) n;
CREATE INDEX "it's; -- an index" ON "say ""hi"" !"."</script><b>'$0' (InitPlan 1).col1" ("a
b");
"""
FOREIGN = """
CREATE EXTENSION postgres_fdw;
CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw
    OPTIONS (host '127.0.0.1', port '{port}', dbname 'corpus', use_remote_estimate 'true', async_capable 'true');
CREATE USER MAPPING FOR CURRENT_USER SERVER itself OPTIONS (user 'postgres');
CREATE FOREIGN TABLE far (id int, clinic int, day int, note text) SERVER itself OPTIONS (table_name 'visits');
CREATE FOREIGN TABLE far_clinics (id int, name text, kind int) SERVER itself OPTIONS (table_name 'clinics');
"""
OLDER = frozenset(  # those whose files other versions have too, as they tell them otherwise
    "initplan_output initplan_gather initplan_nested initplan_in_loop initplan_twelve cte_twice subplan_hashed "
    "disabled disabled_below hostile_initplan insert".split()
)
STATISTICS = "VACUUM (FREEZE, ANALYZE)"

_PARALLEL = (
    "max_parallel_workers_per_gather=2 parallel_setup_cost=0 parallel_tuple_cost=0 min_parallel_table_scan_size=0 "
    "min_parallel_index_scan_size=0"
)
SETS = {
    "PARALLEL": _PARALLEL,
    "ALONE": f"{_PARALLEL} parallel_leader_participation=off",
    "NESTED": "enable_hashjoin=off enable_mergejoin=off",
    "HASHED": "enable_nestloop=off enable_mergejoin=off",
    "MERGED": "enable_nestloop=off enable_hashjoin=off",
}


@dataclass(frozen=True)
class Case:
    """A statement under EXPLAIN, its settings, the version it needs, and EXPLAIN's options if not all."""

    name: str
    sql: str
    settings: Mapping[str, str]
    since: int = 0
    options: str = ""
    system: bool = False  # needs what only a system's PostgreSQL has
    inside: bool = False  # the plan is that of a statement in a trigger
    live: bool = False  # only captured anew: much like another one

    def explain(self, version: int, form: str) -> str:
        """Everything that EXPLAIN of this version can tell, in JSON or TEXT."""
        options = self.options or "ANALYZE, BUFFERS, VERBOSE, SETTINGS" + (", WAL" if self.writes else "")
        return f"{options}, FORMAT {form}"

    @property
    def writes(self) -> bool:
        return any(f"{verb} " in self.sql for verb in ("INSERT", "UPDATE", "DELETE", "MERGE"))


def cases() -> Iterator[Case]:
    """Those of cases.sql; names are those of the files."""
    for part in re.split(r"^-- (?=\w+(?: \(|:|$))", (PLANS / "cases.sql").read_text(), flags=re.MULTILINE)[1:]:
        head, sql = part.split("\n", 1)
        name, options, words = re.fullmatch(r"(\w+)(?: \((.*)\))?(?:: (.*))?", head).groups()
        found = [word for each in (words or "").split() for word in SETS.get(each, each).split()]
        since = next((int(word[6:]) for word in found if word.startswith("since:")), 0)
        settings = dict(word.split("=") for word in found if "=" in word)
        sql = re.sub(r"^---.*", "", sql, flags=re.MULTILINE).strip().removesuffix(";")
        marks = (word in found for word in ("system", "inside", "live"))
        yield Case(name, sql, settings, since, options or "", *marks)


CASES = tuple(cases())


@dataclass(frozen=True)
class Captured:
    """One case on one server: EXPLAIN's JSON, and its text form of the same plan."""

    case: Case
    document: Any
    text: str


def wanted(version: int, *, system: bool) -> list[Case]:
    """The cases that this server can be brought to; `force_parallel_mode` has another name since 16."""
    return [
        case
        for case in CASES
        if version >= case.since
        and (system or not case.system)
        and (version < 16 or "force_parallel" not in case.settings)
    ]


def capture(connect: Connect, version: int, *, system: bool = False) -> Iterator[Captured]:
    """Every case on a prepared database, each in a transaction that is rolled back."""
    with connect() as connection:
        for case in wanted(version, system=system):
            document = json.loads(explained(connection, case, version, "JSON"))
            yield Captured(case, document, explained(connection, case, version, "TEXT"))


def explained(connection: psycopg.Connection[Any], case: Case, version: int, form: str) -> str:
    """EXPLAIN's output, in lines."""
    # GENERIC_PLAN takes no values, which the extended protocol demands.
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    cursor.execute("BEGIN")
    try:
        for name, value in case.settings.items():
            cursor.execute("SELECT set_config(%s, %s, true)", (name, value))
        options = case.explain(version, form)
        if case.inside:
            cursor.execute("SELECT set_config('corpus.options', %s, true)", (options.replace(", WAL", ""),))
            cursor.execute(case.sql.encode())
            cursor.execute("SELECT current_setting('corpus.said')")
        else:
            cursor.execute(f"EXPLAIN ({options}) {case.sql}".encode())
        rows = [row[0] for row in cursor]
    finally:
        cursor.execute("ROLLBACK")
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


@contextmanager
def prepared(server: embedded.EmbeddedServer, name: str = "corpus") -> Iterator[Connect]:
    """The corpus's tables in a database of their own on an embedded server."""
    databases.create(server, name)
    try:
        with databases.connected(server, name) as connection:
            run_all(connection, TABLES.encode())
            run_all(connection, STATISTICS)
        yield lambda: server.connect(name)
    finally:
        databases.drop(server, name)


@contextmanager
def system_cluster(**settings: str) -> Iterator[tuple[Path, Connect]]:
    """A throwaway cluster of the system's PostgreSQL with the corpus in it: its folder and how to connect."""
    if not (BINARIES / "postgres").exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs the system's PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="perfkit-corpus-"))
    process = None
    try:
        folder.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        how = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "--no-sync"]
        assert as_server(BINARIES / "initdb", "-D", folder / "data", *how).wait(60) == 0
        port = free_port()
        every = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "autovacuum": "off"}
        words = [
            part
            for k, v in {"port": str(port), "jit": "off", **every, **settings}.items()
            for part in ("-c", f"{k}={v}")
        ]
        process = as_server(BINARIES / "postgres", "-D", folder / "data", *words)
        wait_for(port)

        def connect(dbname: str = "corpus") -> psycopg.Connection[Any]:
            return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname=dbname, autocommit=True)

        with connect("postgres") as connection:
            connection.execute("CREATE DATABASE corpus")
        with connect() as connection:
            run_all(connection, TABLES.encode())
            run_all(connection, FOREIGN.format(port=port).encode())
            run_all(connection, STATISTICS)
        yield folder, connect
    finally:
        if process:
            process.send_signal(signal.SIGQUIT)
            process.wait()
        shutil.rmtree(folder)


def committed() -> list[Path]:
    """The files of the corpus."""
    return sorted(PLANS.glob("*/*.json"))


def write(version: int, found: Iterator[Captured]) -> None:
    """Replace a version's files: all of the newest, of the others those that differ by more than a key."""
    folder = PLANS / str(version)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for captured in found:
        case = captured.case
        if not case.live and (version == 18 or case.system or case.name in OLDER):
            text = json.dumps(captured.document, ensure_ascii=False, separators=(",", ":"))
            (folder / f"{case.name}.json").write_text(text + "\n")


def main(wanted: str) -> None:
    if wanted == "system":
        with system_cluster() as (_, connect):
            write(VERSION, capture(connect, VERSION, system=True))
        return
    home = Path(tempfile.mkdtemp(prefix="perfkit-corpus-"))
    home.chmod(0o755)
    try:
        with embedded.start(int(wanted), {}, home) as server, prepared(server) as connect:
            write(int(wanted), capture(connect, int(wanted)))
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    for each in sys.argv[1:] or ["18", "16", "system"]:
        main(each)
