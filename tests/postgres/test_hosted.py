"""A hosted database: what perfkit finds out, does and leaves alone there, as a plain role and through PgBouncer."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hosted import Hosted, hosted
from scripts import run_all

from perfkit.app.cli import main
from perfkit.app.starter import capabilities
from perfkit.base.errors import PlanError, TargetRefused
from perfkit.explain.capture import ExplainSpec, capture, effects, require_harmless
from perfkit.postgres.capabilities import Capabilities, Capability, ConnectionFacts, judge
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import External, open_external
from perfkit.runs.records import Bundle

pytestmark = [pytest.mark.system, pytest.mark.slow]

QUERY = "SELECT count(*) FROM sales.orders WHERE customer_id = 7"
INDEX = "CREATE INDEX orders_customer ON sales.orders (customer_id)"
OURS = "SELECT relname FROM pg_class WHERE relname ~ 'orders_customer|perfkit_'"
CLONES = "SELECT datname FROM pg_database WHERE datname ~ '^pk_'"


@pytest.fixture(scope="module")
def server() -> Iterator[Hosted]:
    with hosted() as running:
        yield running


@pytest.fixture(autouse=True)
def passwords(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def allowed(server: Hosted) -> Iterator[None]:
    """The owner's word that indexes and databases may be made."""
    yield from allowing(server, "--ddl")


def allowing(server: Hosted, *kinds: str) -> Iterator[None]:
    run = ["allow", "--db", server.db(), "--confirm", server.name()]
    assert CliRunner().invoke(main, [*run, *kinds]).exit_code == 0
    yield
    assert CliRunner().invoke(main, [*run, "--revoke"]).exit_code == 0


@contextmanager
def changed(server: Hosted, statement: str, back: str, dbname: str = "shop") -> Iterator[None]:
    """Something an administrator did, undone at the end."""
    server.run(statement, dbname=dbname)
    try:
        yield
    finally:
        server.run(back, dbname=dbname)


@dataclass(frozen=True)
class Done:
    """What a comparison ended with."""

    code: int
    output: str
    error: str  # its last line
    folder: Path | None

    @property
    def bundle(self) -> Bundle:
        assert self.folder, self.error
        return Bundle.open(self.folder)

    @property
    def audit(self) -> list[dict[str, Any]]:
        assert self.folder, self.error
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]

    @property
    def statements(self) -> list[str]:
        return [entry["statement"] for entry in self.audit if "statement" in entry]

    @property
    def loads(self) -> list[dict[str, Any]]:
        return [entry["load"] for entry in self.audit if "load" in entry]


def arguments(server: Hosted, folder: Path, options: tuple[str, ...], db: str, query: str) -> list[str]:
    """The smallest comparison there is."""
    given = ["compare", "--db", db or server.db(), "--query", query, "--profile", "quick", "--reports", str(folder)]
    given += [part for port in (server.port, server.pooled) for part in ("--confirm", server.name(port=port))]
    return [*given, *([] if "--users" in options else ["--users", "1"]), *options]


def ended(code: int, output: str, error: str, reports: Path) -> Done:
    assert "Traceback" not in error, error
    folder = next(reports.iterdir(), None) if reports.exists() else None
    return Done(code, output, (error.splitlines() or [""])[-1], folder)


class Comparison:
    """`perfkit compare` in a process of its own, as a user runs it."""

    def __init__(self, server: Hosted, folder: Path, *options: str) -> None:
        self._reports = folder / "reports"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "perfkit", *arguments(server, self._reports, options, "", QUERY)],
            env={**os.environ, **server.environment, "TMPDIR": str(folder)},  # where runs wait for one another
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> Done:
        try:
            output, error = self._process.communicate(timeout=60)
        finally:
            self._process.kill()
        return ended(self._process.returncode, output, error, self._reports)


@pytest.fixture
def compare(server: Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The same in this process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where runs wait for one another

    def run(*options: str, db: str = "", query: str = QUERY) -> Done:
        reports = tmp_path / "reports"
        done = CliRunner().invoke(main, arguments(server, reports, options, db, query))
        return ended(done.exit_code, done.stdout, done.stderr, reports)

    return run


def eventually(server: Hosted, query: str) -> None:
    """Wait until a query gives something."""
    deadline = time.monotonic() + 60
    with server.connect() as connection:
        while not connection.execute(query).fetchall():
            assert time.monotonic() < deadline, query
            time.sleep(0.01)


# Doctor


def doctor(server: Hosted, db: str = "", *confirm: str) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """What the doctor says: state and detail by capability, and by what it is for what it offers to run."""
    names = [part for name in confirm or (server.name(),) for part in ("--confirm", name)]
    started = time.perf_counter()
    done = CliRunner().invoke(main, ["doctor", "--db", db or server.db(), *names])
    sys.stdout.write(f"the doctor took {time.perf_counter() - started:.2f} s\n")
    assert (done.exit_code, done.stderr) == (0, "")
    table, _, offered = done.stdout.partition("can run to allow more:\n")
    rows = [re.fullmatch(r"(\S.*?)  +[✓?✕] (yes|partly|no) +(.*)", line) for line in table.splitlines()]
    found = {row[1]: (row[2], row[3].strip()) for row in rows if row}
    return found, {line.split("  -- ")[1]: line.split("  -- ")[0].strip(" ;") for line in offered.splitlines() if line}


def states(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {name: state for name, (state, _) in found.items()}


def test_the_owner_of_the_database_may_read_and_copy_but_has_allowed_nothing_yet(server: Hosted) -> None:
    found, _ = doctor(server)
    assert states(found) == {
        "reach it": "yes", "connections": "partly", "clock": "yes", "timeouts": "yes", "plans": "yes",
            "SQL text": "yes",
        "private copy": "yes", "clones beside it": "no", "indexes in place": "no", "writes in place": "no",
        "slow statements": "partly", "hypothetical indexes": "yes", "query logging": "partly",
    }  # fmt: skip
    assert found["clones beside it"][1] == "shop cannot create databases, has no permission for DDL"
    assert found["hypothetical indexes"][1] == "hypopg in schema extensions"
    assert found["timeouts"][1].startswith("statement 3s, lock none, ")
    assert " as shop, encrypted, " in found["reach it"][1]
    reserved = int(server.run("SHOW superuser_reserved_connections")[0][0])
    free = int(found["connections"][1].split()[0])
    assert 15 < free < 30 - reserved


def test_a_superuser_lacks_only_the_owners_word(server: Hosted) -> None:
    found, offered = doctor(server, server.db("postgres"))
    lacking = {"clones beside it", "indexes in place", "writes in place"}
    assert {name for name, state in states(found).items() if state == "no"} == lacking
    assert all(command.startswith("perfkit allow ") for command in offered.values())
    assert found["slow statements"] == ("yes", "pg_stat_statements in schema extensions")


def test_a_role_that_owns_nothing_is_told_what_it_lacks(server: Hosted) -> None:
    found, _ = doctor(server, server.db("clerk"))
    assert found["private copy"] == ("no", "clerk cannot read sales.orders")
    assert "does not own the database (shop does)" in found["clones beside it"][1]
    assert "does not own sales.orders, customers" in found["indexes in place"][1]


def test_through_a_pooler_there_are_no_copies_and_no_indexes(server: Hosted) -> None:
    pooled = server.name(port=server.pooled)
    found, offered = doctor(server, server.db(port=server.pooled), pooled, server.name())
    assert found["connections"][0] == "partly" and "no prepared statements" in found["connections"][1]
    assert found["private copy"] == ("no", "pg_dump needs a direct connection")
    assert found["clones beside it"] == found["indexes in place"] == ("no", "behind a pooler")
    assert not {"clones beside it", "indexes in place"} & offered.keys()


def test_what_is_behind_the_pooler_must_be_confirmed_too(server: Hosted) -> None:
    db, pooled = server.db(port=server.pooled), server.name(port=server.pooled)
    done = CliRunner().invoke(main, ["doctor", "--db", db, "--confirm", pooled])
    assert done.exit_code == 97
    assert f"{pooled} leads to {server.name()}" in done.stderr and f"--confirm {server.name()}" in done.stderr


def test_the_servers_certificate_can_be_insisted_on(server: Hosted, tmp_path: Path) -> None:
    strict = {"sslmode": "verify-full", "sslrootcert": str(server.certificate)}
    found, _ = doctor(server, server.db(**strict))
    assert ", encrypted, " in found["reach it"][1]
    (tmp_path / "other.crt").write_text("")
    db = server.db(**strict | {"sslrootcert": str(tmp_path / "other.crt")})
    done = CliRunner().invoke(main, ["doctor", "--db", db, "--confirm", server.name()])
    assert done.exit_code == 1 and "certificate" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("user", "dbname", "what", "back"),
    [
        ("clerk", "shop", "private copy", "REVOKE pg_read_all_data FROM clerk"),
        ("shop", "shop", "slow statements", "REVOKE pg_read_all_stats FROM shop"),
        ("shop", "shop", "query logging", "ALTER ROLE shop RESET log_min_duration_statement"),
        ("shop", "bare", "hypothetical indexes", "DROP EXTENSION hypopg"),
        ("postgres", "bare", "slow statements", "DROP EXTENSION pg_stat_statements"),
    ],
)
def test_the_sql_that_is_offered_works(server: Hosted, user: str, dbname: str, what: str, back: str) -> None:
    def ask() -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
        return doctor(server, server.db(user, dbname), server.name(dbname))

    before, offered = ask()
    assert before[what][0] != "yes"
    with changed(server, offered[what], back, dbname):
        after, left = ask()
    assert after[what][0] == "yes" and what not in left
    assert {k: v for k, v in states(after).items() if k != what} == {
        k: v for k, v in states(before).items() if k != what
    }


def offers(server: Hosted, user: str) -> list[str]:
    """Everything that is offered, one line after the other."""
    done = CliRunner().invoke(main, ["doctor", "--db", server.db(user), "--confirm", server.name()])
    return [line.split("  -- ")[0].strip(" ;") for line in done.stdout.partition("allow more:\n")[2].splitlines()]


@pytest.mark.parametrize("user", ["shop", "clerk"])
def test_after_everything_that_is_offered_nothing_is_lacking(server: Hosted, user: str) -> None:
    with ExitStack() as undo:
        for back in ("pg_read_all_stats", "pg_read_all_data", *(["shop"] if user == "clerk" else [])):
            undo.callback(server.run, f"REVOKE {back} FROM {user}")
        undo.callback(
            server.run, f"ALTER ROLE {user} NOCREATEDB", f"ALTER ROLE {user} RESET log_min_duration_statement"
        )
        undo.callback(server.run, "DROP SCHEMA IF EXISTS perfkit_allowed")
        for _ in range(2):  # what is allowed already is offered again with the rest
            for line in offers(server, user):
                if line.startswith("perfkit "):
                    done = CliRunner().invoke(main, [*shlex.split(line)[1:], "--confirm", server.name()])
                    assert done.exit_code == 0, done.stderr
                else:
                    server.run(line)
        found, offered = doctor(server, server.db(user))
        assert offered == {}
        assert {name for name, state in states(found).items() if state != "yes"} == {"connections"}


FACTS: dict[str, Any] = {
    "user": "me", "superuser": False, "createdb": True, "owner": True, "reads_stats": True, "owned_by": "me",
    "owner_super": False, "version": "17.2", "major": 17, "standby": False, "bytes": 10**9, "statement_timeout": "0",
    "lock_timeout": "0", "idle_timeout": "0", "log_min_duration": "-1", "statements_loaded": True,
    "auto_explain_loaded": False, "connections": 97, "connected": 3, "role_limit": -1, "role_connected": 1,
    "database_limit": -1, "database_connected": 1, "unreadable": [], "tables": 4, "not_owned": [],
    "table_owners": [], "extensions": {"pg_stat_statements": "public", "hypopg": "public"}, "available": [],
    "quoted": {"user": "me", "owned_by": "me", "dbname": "app"},
    "commands": {"ddl": "perfkit allow --ddl", "writes": "perfkit allow --writes"},
}  # fmt: skip


def judged(
    way: ConnectionFacts | None = None, allowed: frozenset[str] = frozenset({"ddl"}), **facts: Any
) -> dict[str, Capability]:
    way = way or ConnectionFacts("10.0.0.1", "encrypted", False, 1.0, 0.0, 0.001)
    return {found.name: found for found in judge(FACTS | facts, way, allowed)}


def test_a_standby_is_only_read() -> None:
    found = judged(standby=True, allowed=frozenset({"ddl", "writes"}))
    for name in ("clones beside it", "indexes in place", "writes in place"):
        assert (found[name].state, found[name].detail, found[name].allow) == ("no", "the server is a standby", ())
    assert found["private copy"].state == "yes"


@pytest.mark.parametrize(("version", "major", "state"), [("18.4", 18, "yes"), ("19beta1", 19, "no")])
def test_only_servers_that_the_embedded_pg_dump_reads_can_be_copied(version: str, major: int, state: str) -> None:
    assert judged(version=version, major=major)["private copy"].state == state


@pytest.mark.parametrize(
    ("facts", "state", "users"),
    [
        ({}, "yes", 89),
        ({"role_limit": 20, "role_connected": 10}, "partly", 5),
        ({"database_limit": 4, "database_connected": 4}, "no", 0),
        ({"connected": 120}, "no", 0),
    ],
)
def test_the_tightest_limit_decides_how_many_users_fit(facts: dict[str, int], state: str, users: int) -> None:
    found = judged(**facts)["connections"]
    assert (found.state, f"enough for {users} simultaneous users" in found.detail) == (state, True)


def test_clocks_that_differ_are_told_unless_the_way_is_too_long_to_know() -> None:
    assert judged(ConnectionFacts("10.0.0.1", "", False, 5.0, -90.0, 0.003))["clock"].state == "partly"
    assert judged(ConnectionFacts("10.0.0.1", "", False, 4000.0, 1.5, 2.0))["clock"].state == "yes"


def test_nobody_is_offered_the_role_of_a_superuser() -> None:
    found = judged(owner=False, owned_by="postgres", owner_super=True, not_owned=["a"], table_owners=[])
    assert found["clones beside it"].allow == ("ALTER DATABASE app OWNER TO me",)
    assert (found["indexes in place"].state, found["indexes in place"].allow) == ("partly", ())


def test_names_that_need_quotes_are_quoted_where_they_are_shown() -> None:
    block = capabilities(Capabilities("h:1/d", "17", (Capability("x", "no", "<b>", ('GRANT "a<b" TO c',)),)))
    assert '  GRANT "a<b" TO c;  -- x' in repr(block)
    assert "a&lt;b" in block._repr_html_() and "<b>" not in block._repr_html_().replace("<b>", "", 0).split("<h3>")[1]


# In place


SNAPSHOT = """
    SELECT c.oid, c.relname, c.relfilenode, c.reltuples, s.n_tup_ins, s.n_tup_upd, s.n_tup_del, s.n_dead_tup
    FROM pg_class c LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
    WHERE c.relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    ORDER BY c.oid
"""


def log(server: Hosted) -> Path:
    return next((server.folder / "data" / "log").glob("*.csv"))


def logged(server: Hosted, since: int) -> Counter[tuple[str, str]]:
    """The statements in the server's log from there on, as (program, text)."""
    found: Counter[tuple[str, str]] = Counter()
    with log(server).open(newline="") as file:
        file.seek(since)
        for row in csv.reader(file):
            if statement := re.fullmatch(r"(?:statement|execute [^:]+): (.*)", row[13], re.DOTALL):
                found[row[22], statement[1].strip()] += 1
    return found


def test_settings_are_compared_in_place_without_changing_anything(server: Hosted, compare: Callable[..., Done]) -> None:
    before, since = server.run(SNAPSHOT), log(server).stat().st_size
    with changed(server, "ALTER ROLE shop SET log_statement = 'all'", "ALTER ROLE shop RESET log_statement"):
        done = compare("--way", "in-place", "--set", "work_mem=8MB")
    assert done.code == 0, done.error
    assert done.bundle.run.status == "complete" and (done.bundle.path / "report.html").exists()
    assert done.bundle.run.order == "interleaved"
    assert server.run(SNAPSHOT) == before
    assert not any(word in (done.bundle.path / file).read_text() for file in ("run.json", "audit.jsonl") for word in
                   ("Secret", "passfile"))  # fmt: skip

    ran = logged(server, since)
    sent = {_spelled(statement) for statement in done.statements}
    own = {_spelled(text) for program, text in ran if program == "perfkit"}
    assert {t for t in own - sent if not re.match(r"(BEGIN|COMMIT|ROLLBACK)", t)} == set()
    load = Counter({text: times for (program, text), times in ran.items() if program == "perfkit load"})
    noted: Counter[str] = Counter()
    for entry in done.loads:
        assert len(entry["statements"]) == 1
        noted[entry["statements"][0].strip()] += entry["requests"]
    assert load == noted and set(noted) == {QUERY, "SELECT 1"}


def _spelled(text: str) -> str:
    """A statement with its parameters as the server sees them, and without comments."""
    text = " ".join(re.sub(r"--[^\n]*", "", text).split()).rstrip("; ")
    return re.sub(r"%(\(\w+\))?s|\$\d+", "?", text)


def test_indexes_in_place_need_the_owners_word_and_the_refusal_says_how_to_give_it(
    server: Hosted, compare: Callable[..., Done]
) -> None:
    done = compare("--way", "in-place", "--index", INDEX)
    assert done.code == 97 and done.loads == []  # before anything was measured
    command = re.search(r"the owner can allow this with: perfkit (allow .*)", done.error)
    assert command, done.error
    given = CliRunner().invoke(main, [*shlex.split(command[1]), "--confirm", server.name()])
    try:
        assert given.exit_code == 0 and "ddl allowed until" in given.stdout
        assert doctor(server)[0]["indexes in place"] == ("yes", "built CONCURRENTLY and removed at the end")
    finally:
        server.run("DROP SCHEMA IF EXISTS perfkit_allowed")


def test_an_index_is_built_concurrently_measured_between_two_befores_and_removed(
    server: Hosted, compare: Callable[..., Done], allowed: None
) -> None:
    second = "CREATE INDEX orders_customer_name ON customers (name)"
    done = compare("--way", "in-place", "--index", INDEX, "--index", second, "--users", "2")
    assert done.code == 0, done.error
    assert server.run(OURS) == []
    run = done.bundle.run
    assert [entry["arm"] for entry in done.loads if entry["statements"] != ["SELECT 1"]] == [  # 6 blocks of 2 levels
        arm for arm in ("before", "after", "control") for _ in range(12)
    ]
    assert run.order == "sequential"
    built = {index.name: index for index in run.arms["after"].indexes}
    tables = {"orders_customer": "sales.orders", "orders_customer_name": "customers"}
    assert {name: index.table for name, index in built.items() if index.valid} == tables
    made = [text for text in done.statements if "CREATE INDEX" in text]
    gone = [text for text in done.statements if "DROP INDEX" in text]
    assert len(made) == len(gone) == 2 and all(" INDEX CONCURRENTLY " in text for text in made + gone)
    plan = str(done.bundle.plan("after", "query").documents)
    assert "orders_customer" in plan and "orders_customer" not in str(done.bundle.plan("control", "query").documents)
    assert "sequential, drift not cancelled" in (done.bundle.path / "summary.md").read_text()


def test_an_index_that_is_there_already_is_left_alone(
    server: Hosted, compare: Callable[..., Done], allowed: None
) -> None:
    with changed(server, INDEX, "DROP INDEX sales.orders_customer"):
        done = compare("--way", "in-place", "--index", INDEX)
        assert done.code == 2 and "sales.orders_customer exists already" in done.error
        assert done.loads == [] and server.run(OURS) == [("orders_customer",)]


WAITING = "SELECT FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for%'"
LOADING = """
    SELECT FROM pg_stat_activity, pg_index
    WHERE application_name = 'perfkit load' AND indexrelid = to_regclass('sales.orders_customer') AND indisvalid
"""


def test_an_interrupt_in_the_middle_of_the_build_leaves_no_index(server: Hosted, tmp_path: Path, allowed: None) -> None:
    with server.connect("shop") as writer:
        run_all(writer, "BEGIN; UPDATE sales.orders SET total = total WHERE id = 1")
        running = Comparison(server, tmp_path, "--way", "in-place", "--index", INDEX)
        eventually(server, WAITING)
        running.interrupt()
        eventually(server, f"SELECT WHERE NOT EXISTS ({WAITING})")
        writer.execute("ROLLBACK")
    done = running.end()
    assert (done.code, done.bundle.run.status) == (105, "interrupted")
    assert server.run(OURS) == []


def test_an_interrupt_in_the_middle_of_the_load_leaves_no_index(server: Hosted, tmp_path: Path, allowed: None) -> None:
    running = Comparison(server, tmp_path, "--way", "in-place", "--index", INDEX)
    eventually(server, LOADING)
    running.interrupt()
    done = running.end()
    assert (done.code, done.bundle.run.status) == (105, "interrupted")
    assert {entry["arm"] for entry in done.loads} == {"before", "after"}
    assert [entry["requests"] is None for entry in done.loads].index(True) == len(done.loads) - 1
    assert server.run(OURS) == []


def test_a_lock_that_is_not_to_be_had_ends_the_run_in_one_line(
    server: Hosted, compare: Callable[..., Done], allowed: None
) -> None:
    with server.connect("shop") as other:
        run_all(other, "BEGIN; LOCK TABLE sales.orders IN SHARE UPDATE EXCLUSIVE MODE")
        done = compare("--way", "in-place", "--index", INDEX)
    assert done.code == 2 and done.error.endswith("index.sql:1: canceling statement due to lock timeout")
    assert server.run(OURS) == []


def test_an_index_that_cannot_be_built_is_removed(server: Hosted, compare: Callable[..., Done], allowed: None) -> None:
    done = compare("--way", "in-place", "--index", INDEX.replace("CREATE", "CREATE UNIQUE"))
    assert done.code == 2 and done.error.endswith('could not create unique index "orders_customer"')
    assert server.run(OURS) == []


# Clones beside the database


def test_clones_need_a_role_that_may_create_databases(
    server: Hosted, compare: Callable[..., Done], allowed: None
) -> None:
    done = compare("--way", "clone", "--index", INDEX)
    assert done.code == 1 and "permission denied to create database" in done.error


def test_clones_need_the_owners_word(compare: Callable[..., Done]) -> None:
    done = compare("--way", "clone", "--index", INDEX)
    assert done.code == 97 and re.search(r"the owner can allow this with: perfkit allow --db .* --ddl$", done.error)


def test_clones_are_made_beside_the_database_and_removed(
    server: Hosted, compare: Callable[..., Done], allowed: None
) -> None:
    with changed(server, "ALTER ROLE shop CREATEDB", "ALTER ROLE shop NOCREATEDB"):
        server.leave_alone()
        before = server.run(SNAPSHOT)
        server.leave_alone()
        done = compare("--way", "clone", "--index", INDEX)
    assert done.code == 0, done.error
    assert done.bundle.run.order == "interleaved"
    assert "template clones" in done.bundle.run.origin.way
    assert (server.run(SNAPSHOT), server.run(CLONES)) == (before, [])


def test_a_database_that_others_are_connected_to_cannot_be_cloned_whatever_the_roles_timeout(
    server: Hosted, compare: Callable[..., Done], allowed: None
) -> None:
    """The server waits five seconds for them; the role has three."""
    with changed(server, "ALTER ROLE shop CREATEDB", "ALTER ROLE shop NOCREATEDB"), server.connect("clerk"):
        done = compare("--way", "clone", "--index", INDEX)
    assert done.code == 1 and 'source database "shop" is being accessed by other users' in done.error
    assert server.run(CLONES) == []


# Through a pooler in transaction mode


def test_a_query_and_its_rewrite_are_compared_through_a_pooler_without_anything_of_a_session(
    server: Hosted, compare: Callable[..., Done]
) -> None:
    since = log(server).stat().st_size
    with changed(server, "ALTER ROLE shop SET log_statement = 'all'", "ALTER ROLE shop RESET log_statement"):
        server.leave_alone()
        rewrite = QUERY.replace("*", "id")
        done = compare("--way", "in-place", "--rewrite", rewrite, db=server.db(port=server.pooled))
    server.leave_alone()
    assert done.code == 0, done.error
    assert done.bundle.run.checks["after"][0].passed
    assert all(set(found.columns.outcome) == {"ok"} for found in done.bundle.rounds())
    ran = [text for (program, text) in logged(server, since) if program.startswith("perfkit")]
    ran = [text for text in ran if not text.startswith("SET application_name=")]  # the pooler's own
    assert QUERY in ran
    assert [t for t in ran if re.match(r"(SET (?!LOCAL|TRANSACTION)|PREPARE|DEALLOCATE|LISTEN|DECLARE)", t)] == []
    settings = [t for t in ran if "set_config" in t or "pg_advisory" in t]
    assert {t.partition("(")[2].split(",")[0] for t in settings} == {
        "'standard_conforming_strings'"
    }  # how text is read


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--way", "in-place", "--set", "work_mem=8MB"], "ALTER ROLE \"shop\" SET work_mem = '8MB'"),
        (["--way", "in-place", "--index", INDEX], "behind a pooler; expected a direct connection to build indexes"),
        (["--way", "clone", "--index", INDEX], "behind a pooler; expected a direct connection to clone it"),
        (["--way", "whole", "--index", INDEX], "pooler"),
        (["--way", "sample", "--index", INDEX], "pooler"),
    ],
)
def test_what_a_pooler_cannot_give_is_refused_before_anything_is_sent(
    server: Hosted, compare: Callable[..., Done], allowed: None, options: list[str], said: str
) -> None:
    done = compare(*options, db=server.db(port=server.pooled))
    assert done.code == 97 and said in done.error and done.loads == []
    assert all("SELECT" in text or text.startswith("SET LOCAL ") for text in done.statements)


def test_a_pooler_that_does_not_show_can_be_declared(compare: Callable[..., Done]) -> None:
    done = compare("--way", "in-place", "--set", "work_mem=8MB", "--pooler")
    assert done.code == 97 and "behind a pooler, which forgets settings" in done.error


def test_a_time_limit_of_the_role_that_a_pooler_keeps_us_from_lifting_ends_the_run_in_one_line(
    server: Hosted, compare: Callable[..., Done]
) -> None:
    slow = ["SELECT pg_sleep(0.25)", "SELECT pg_sleep(0.26)"]
    done = compare(
        "--way", "in-place", "--rewrite", slow[1], "--volatile", "pg_sleep", query=slow[0],
        db=server.db("hasty", port=server.pooled),
    )  # fmt: skip
    assert done.code == 97
    assert re.search(r"circuit breaker: \d+ of the last \d+ requests failed \(sqlstate_57014\)", done.error)


# Limits


def test_a_burst_that_would_take_the_last_connections_is_refused_before_it_begins(
    server: Hosted, compare: Callable[..., Done]
) -> None:
    with ExitStack() as held:
        free = int(doctor(server)[0]["connections"][1].split()[0])
        for _ in range(free - 4):
            held.enter_context(server.connect("clerk"))
        done = compare("--way", "in-place", "--set", "work_mem=8MB")
    assert done.code == 97
    assert re.search(r": [2-5] connections are free; expected 6 for 1 users and 5 in reserve", done.error)
    assert done.loads == []


def external(server: Hosted, user: str = "shop") -> External:
    return open_external(resolve(server.db(user)), Permission(confirm=(server.name(),)), Audit(None))


def test_our_own_limit_ends_an_explain_in_one_line_and_outranks_the_roles(server: Hosted) -> None:
    hasty = external(server, "hasty")
    with pytest.raises(PlanError) as caught:
        capture(hasty.connect, "SELECT pg_sleep(5)", options=ExplainSpec(timeout_s=0.05))
    assert str(caught.value) == "EXPLAIN failed: canceling statement due to statement timeout"
    assert capture(hasty.connect, "SELECT pg_sleep(0.3)", options=ExplainSpec(timeout_s=10, repeats=1)).documents


# Volatile functions

HIDDEN = """
    CREATE SCHEMA hid;
    CREATE FUNCTION hid.danger(int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION hid."Odd (name)"(int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION hid.rows() RETURNS SETOF int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN NEXT 1; END';
    CREATE FUNCTION hid.outer_(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN hid.danger($1); END';
    CREATE FUNCTION hid.modern(int) RETURNS int LANGUAGE sql STABLE RETURN hid.danger($1);
    CREATE SEQUENCE hid.calls;
    CREATE FUNCTION hid.counted() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT nextval(''hid.calls'')::int';
    CREATE FUNCTION hid.liar() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN hid.counted(); END';
    CREATE FUNCTION hid.same(int, int) RETURNS bool LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1 = $2; END';
    CREATE OPERATOR hid.=== (FUNCTION = hid.same, LEFTARG = int, RIGHTARG = int);
    CREATE VIEW hid.peek AS SELECT hid.danger(id) AS id FROM customers;
    CREATE VIEW hid.few AS SELECT id FROM customers LIMIT hid.danger(1);
    CREATE VIEW hid.twice AS SELECT * FROM hid.few;
    CREATE AGGREGATE hid.total(int) (SFUNC = hid.step, STYPE = int, INITCOND = 0);
    CREATE DOMAIN hid.checked AS int CHECK (hid.danger(VALUE) > 0);
    CREATE TYPE hid.pair AS (a int, b int);
    CREATE TABLE hid.pairs (p hid.pair);
    CREATE FUNCTION hid.paired(hid.pair) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN 1; END';
    CREATE FUNCTION hid.calm(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1 + 1';
"""
STEP = "CREATE FUNCTION hid.step(int, int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END'"


@pytest.fixture(scope="module")
def hidden(server: Hosted) -> Iterator[Hosted]:
    statements = [part.strip() for part in re.split(r";\n", HIDDEN) if part.strip()]
    server.run(statements[0], STEP, *statements[1:], user="shop")
    yield server
    server.run("DROP SCHEMA hid CASCADE")


def found_volatile(server: Hosted, statement: str) -> set[str]:
    return set(effects(external(server).connect, statement, None).volatile)


@pytest.mark.parametrize(
    ("statement", "function"),
    [
        ("SELECT hid.danger(1)", "hid.danger"),
        ("SELECT count(*) FROM customers WHERE hid . danger /* ( */ (id) > 0", "hid.danger"),
        ('SELECT hid."Odd (name)"(1)', "hid.Odd (name)"),
        ("SELECT * FROM hid.rows()", "hid.rows"),
        ("SELECT * FROM hid.peek", "hid.danger"),
        ("SELECT * FROM hid.few", "hid.danger"),
        ('SELECT * FROM "hid"."twice"', "hid.danger"),
        ("SELECT id FROM customers LIMIT hid.danger(1)", "hid.danger"),
        ("SELECT hid.outer_(1)", "hid.danger"),
        ("SELECT hid.modern(1)", "hid.danger"),
        ("SELECT count(*) FROM customers WHERE id OPERATOR(hid.===) 1", "hid.same"),
        ("SELECT hid.total(id) FROM customers", "hid.step"),
        ("SELECT id::hid.checked FROM customers", "hid.danger"),
        ("SELECT nextval('no_such_sequence')", "nextval"),
        ("SELECT pg_sleep(0)", "pg_sleep"),
        ("SELECT pg_advisory_lock(1)", "pg_advisory_lock"),
        ("SELECT query_to_xml('SELECT 1', true, true, '')", "query_to_xml"),
        ("WITH x AS MATERIALIZED (SELECT set_config('a.b', 'c', false)) SELECT 1 FROM x", "set_config"),
    ],
)
def test_a_volatile_function_is_found_wherever_it_hides(hidden: Hosted, statement: str, function: str) -> None:
    try:
        assert function in found_volatile(hidden, statement)
    except PlanError as error:
        assert "no_such_sequence" in str(error)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT now(), random(), clock_timestamp(), gen_random_uuid(), timeofday()",
        "SELECT id FROM customers TABLESAMPLE system (50) ORDER BY random() LIMIT 1",
        "SELECT hid.calm(id), count(*), max(name) FROM customers GROUP BY id HAVING count(*) > 0",
        "SELECT 'hid.danger is only named', name AS danger FROM customers",
        "SELECT total::int, -total, total ^ 2 FROM sales.orders WHERE total BETWEEN 1 AND 5 OR total IN (7)",
    ],
)
def test_what_changes_nothing_needs_nobodys_word(hidden: Hosted, statement: str) -> None:
    assert found_volatile(hidden, statement) == set()


def test_what_the_planner_tries_by_itself_cannot_write(hidden: Hosted) -> None:
    with pytest.raises(PlanError, match="read-only transaction"):
        found_volatile(hidden, "SELECT * FROM customers WHERE id < hid.liar()")
    assert hidden.run("SELECT is_called FROM hid.calls") == [(False,)]


def test_a_function_of_ones_own_is_not_let_through_for_its_harmless_name(hidden: Hosted) -> None:
    own = "FUNCTION hid.random() RETURNS float LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN 1; END'"
    with changed(hidden, f"CREATE {own}", "DROP FUNCTION hid.random()"):
        assert found_volatile(hidden, "SELECT hid.random()") == {"hid.random"}


@pytest.mark.parametrize(
    ("context", "statement"),
    [("", "SELECT p::int4 FROM hid.pairs"), ("AS IMPLICIT", "SELECT chr(p) FROM hid.pairs")],
)
def test_a_cast_is_found_by_its_type_or_wherever_it_may_be_implied(
    hidden: Hosted, context: str, statement: str
) -> None:
    drop = "DROP CAST (hid.pair AS int)"
    with changed(hidden, f"CREATE CAST (hid.pair AS int) WITH FUNCTION hid.paired(hid.pair) {context}", drop):
        assert found_volatile(hidden, statement) == {"hid.paired"}
        assert found_volatile(hidden, "SELECT max(name) FROM customers") == ({"hid.paired"} if context else set())


def test_a_volatile_function_may_be_named_as_it_was_shown(hidden: Hosted) -> None:
    found = effects(external(hidden).connect, 'SELECT hid."Odd (name)"(1), hid.danger(2)', None)
    with pytest.raises(TargetRefused) as caught:
        require_harmless(found, writes_allowed=False, volatile_allowed=(), where="shop")
    options = shlex.split(str(caught.value).partition(", or ")[2])
    assert options == ["--volatile", "hid.Odd (name)", "--volatile", "hid.danger"]
    require_harmless(found, writes_allowed=False, volatile_allowed=options[1::2], where="shop")


def test_a_query_with_a_volatile_function_is_not_even_explained_without_the_users_word(
    hidden: Hosted, compare: Callable[..., Done]
) -> None:
    done = compare("--way", "in-place", "--set", "work_mem=8MB", query="SELECT * FROM hid.peek WHERE id = 3")
    assert done.code == 97 and "calls volatile hid.danger" in done.error and "--volatile hid.danger" in done.error
    assert not any("ANALYZE" in text for text in done.statements) and done.loads == []


# Ends nobody planned


def test_a_server_that_is_killed_in_the_middle_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with hosted() as doomed:
        running = Comparison(doomed, tmp_path, "--way", "in-place", "--set", "work_mem=8MB")
        eventually(doomed, "SELECT FROM pg_stat_activity WHERE application_name = 'perfkit load'")
        doomed.process.kill()
        done = running.end()
    # Between two rounds it is a connection that is refused; inside one the circuit breaker may be first (97).
    assert done.code in (1, 97) and done.error.startswith("perfkit: ")
    assert re.search(r": the server no longer answers; the rounds measured so far are kept$|refused", done.error)
    assert (done.bundle.run.status, done.bundle.run.message) == ("failed", done.error.removeprefix("perfkit: "))
    shown = CliRunner().invoke(main, ["report", "--bundle", str(done.folder)])
    assert shown.exit_code == 0 and shown.stdout.startswith("INCONCLUSIVE: ")


@pytest.mark.parametrize(
    ("major", "parser", "state", "words"),
    [
        (17, "18.4", "yes", "read by the parser of PostgreSQL 18.4"),
        (19, "18.4", "yes", "PostgreSQL 18.4; syntax that only this newer server has gets no rewrites"),
        (17, "", "partly", "no parser here"),
    ],
)
def test_the_parsers_version_stands_beside_the_servers(
    major: int, parser: str, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perfkit.postgres.capabilities.parser_version", lambda: parser)
    found = judged(major=major)["SQL text"]
    assert found.state == state and words in found.detail
