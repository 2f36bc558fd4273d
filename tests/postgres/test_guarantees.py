"""A text that perfkit did not write runs as one command wherever it reaches a server: see docs/guarantees.md.

Each place gets a second command, in a database where a backslash in a string hides a quote, and once with perfkit's
own reading of texts switched off: then the server alone refuses it.
"""

import ast
import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hosted import Hosted, hosted

from perfkit.base.errors import PerfkitError, ServerError, UsageError
from perfkit.config import Scenario
from perfkit.explain import capture, comparison
from perfkit.indexes import trial
from perfkit.load import pgbench, senders
from perfkit.load.pool import sql_target
from perfkit.postgres import databases, index_builds, index_sets
from perfkit.postgres.commands import exact, options, send
from perfkit.postgres.databases import Database as Place
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.index_sets import IndexSet, read_set
from perfkit.postgres.servers import open_external
from perfkit.postgres.sqltext import Statement, read
from perfkit.slow import examples

pytestmark = [pytest.mark.system, pytest.mark.slow]

ROWS = 100
VICTIM = f"CREATE TABLE victim AS SELECT n FROM generate_series(1, {ROWS}) n"
SECOND = "; COMMIT; DELETE FROM victim; --"
HIDDEN = rf"SELECT '\', '{SECOND}'"  # with standard strings it is two of them; else one, a second command, a comment

Parameters = Mapping[str, Any] | None
Query = Callable[[Place, str, Parameters], object]
# Places whose guarantee another test sees to.
OTHERS = {
    "own queries": "test_only_named_modules_send_text_of_their_own_making",
    "script for pgbench": "tests/load/test_pgbench.py",
    "copy of a database": "tests/postgres/test_copies.py",
}


# Modules that send text of their own making: constants, numbers, values as parameters, names as the server quotes them.
OWN = {
    "app/starter.py", "booking/service.py", "explain/capture.py", "explain/comparison.py", "indexes/search.py",
    "indexes/trial.py", "indexes/writes.py", "monitor/metrics.py", "postgres/capabilities.py",
    "postgres/catalog.py", "postgres/commands.py", "postgres/copies.py", "postgres/databases.py", "postgres/guards.py",
    "postgres/index_builds.py", "postgres/index_sets.py", "postgres/servers.py", "postgres/copied_rows.py",
    "slow/log_sources.py", "slow/query_logging.py", "slow/statements.py",
}  # fmt: skip


@dataclass(frozen=True)
class Database:
    """A database with standard_conforming_strings = off, as a user of perfkit reaches it."""

    place: Place
    admin: Callable[[], psycopg.Connection[Any]]

    def unharmed(self) -> bool:
        with self.admin() as connection:
            row: Any = connection.execute("SELECT count(*), current_setting('standard_conforming_strings') FROM victim")
            assert next(row)[1] == "off"
        with self.admin() as connection:
            return next(connection.execute("SELECT count(*) FROM victim")) == (ROWS,)


@pytest.fixture(scope="module")
def system() -> Iterator[Hosted]:
    with hosted() as running:
        running.run("ALTER DATABASE bare SET standard_conforming_strings = off")
        running.run(VICTIM, user="shop", dbname="bare")
        running.run("CREATE SCHEMA extensions", "CREATE EXTENSION hypopg SCHEMA extensions", dbname="bare")
        running.run("GRANT USAGE ON SCHEMA extensions TO shop", dbname="bare")
        yield running


SERVERS = ["15", "15 through PgBouncer", "16", "18"]


@pytest.fixture(params=SERVERS)
def database(request: pytest.FixtureRequest, system: Hosted, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    if request.param.startswith("15"):
        for name, value in system.environment.items():
            monkeypatch.setenv(name, value)
        port = system.pooled if "PgBouncer" in request.param else system.port
        confirmed = (system.name("bare", port), system.name("bare"))
        server = open_external(
            resolve(system.db(dbname="bare", port=port)), Permission((), confirmed, (), None), Audit(None)
        )
        yield Database(Place(server, "bare"), lambda: system.connect("shop", "bare"))
        return
    embedded: EmbeddedServer = request.getfixturevalue("server" if request.param == "18" else "server16")
    databases.create(embedded, "pk_guarantees")
    databases.configure(embedded, "pk_guarantees", {"standard_conforming_strings": "off"})
    with embedded.connect("pk_guarantees") as connection:
        connection.execute(VICTIM)
    yield Database(Place(embedded, "pk_guarantees"), lambda: psycopg.connect(embedded.conninfo("pk_guarantees")))
    databases.drop(embedded, "pk_guarantees")


def plan(**how: Any) -> Query:
    return lambda place, text, given: capture.capture(place.session, text, given, capture.ExplainSpec(**how))


def effects(place: Place, text: str, given: Parameters) -> object:
    return capture.effects(place.session, text, given)


async def sent(place: Place, text: str, given: Parameters, times: int) -> object:
    target = sql_target(place.conninfo(), 5, 5, pooler=place.server.pooler)["options"]
    conninfo = senders.load_conninfo(target["conninfo"], target["session"])
    connection = await senders.LibpqConnection.open(conninfo, timeout_s=5, prepare=target["prepare"])
    try:
        return [await connection.run(senders.bound(text, given)) for _ in range(times)]
    except senders.Failure as failure:
        raise ServerError(str(failure)) from None
    finally:
        await connection.close()


def load(times: int) -> Query:
    return lambda place, text, given: asyncio.run(sent(place, text, given, times))


def by_pgbench(place: Place, text: str, given: Parameters) -> object:
    scenario = Scenario(name="round", label="", engine="pgbench", send=("q",), seconds=0.2)
    work = pgbench.ScriptQuery("q", text, [given] if given else None)
    target = sql_target(place.conninfo(), 5, 5)
    found = pgbench.run(pgbench.program(place.server.bin_dir), target, scenario, [work], "1")
    if failed := [outcome for outcome in found.columns.outcome if outcome != "ok"]:
        raise ServerError(failed[0])
    return found


def tried(place: Place, statements: Sequence[str]) -> AbstractContextManager[trial.IndexTrial]:
    return trial.trying(place, statements, 9)


def whatif(place: Place, text: str, given: Parameters) -> object:
    with tried(place, ["CREATE INDEX ON victim (n)"]) as trying:
        return trying.explain(text, given, ["CREATE INDEX ON victim (n)"])


def of_a_log(text: str) -> str:
    return text.replace("%(n)s", "$1")


# What is done with the text of a query, by the name that docs/guarantees.md gives the place.
QUERIES: dict[str, Query] = {
    "plan": plan(analyze=False),
    "plan, executed": plan(analyze=True),
    "plan for any values": lambda place, text, _: plan(analyze=False, generic=True)(place, text, None),
    "effects": effects,
    "typical parameters": lambda place, text, given: comparison.typical_parameters(place.session, text, [given]),
    "rows compared": lambda place, text, given: comparison.compare(place.session, text, text, [given], timeout_s=9),
    "logged statement": lambda place, text, _: examples.prepared(place, of_a_log(text)),
    "example values": lambda place, text, _: examples.example_rows(place, of_a_log(text)),
    "query with an index tried": whatif,
    "load": load(1),
    "load, prepared": load(2 * senders.PREPARE_AFTER),
    "load by pgbench": by_pgbench,
}


# pgbench is refused on a server that perfkit did not start.
@pytest.mark.parametrize("parameters", [None, {"n": 7}], ids=["without parameters", "with parameters"])
@pytest.mark.parametrize(
    ("database", "name"),
    [(s, n) for s in SERVERS for n in QUERIES if n != "load by pgbench" or not s.startswith("15")],
    indirect=["database"],
)
def test_a_second_command_in_a_query_is_not_run(
    database: Database, name: str, parameters: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = HIDDEN.replace("SELECT", "SELECT %(n)s::int,") if parameters else HIDDEN
    pooled_load = name.startswith("load") and database.place.server.pooler
    with pytest.raises(psycopg.OperationalError, match="reports 'off'") if pooled_load else nullcontext():
        QUERIES[name](database.place, text, parameters)  # one command, as perfkit reads it
    unread(monkeypatch)
    refused = "standard_conforming_strings" if pooled_load else r"cannot insert multiple commands|3 statements"
    with pytest.raises((PerfkitError, psycopg.OperationalError), match=refused):
        second = enclosed(2) if name == "rows compared" else text.split(",")[0].replace(r"'\'", "1") + SECOND
        QUERIES[name](database.place, second, None if name == "rows compared" else parameters)
    assert database.unharmed()


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off perfkit's own reading of texts, so that only the server's is left."""
    for module in (capture, comparison, trial):
        monkeypatch.setattr(module, "single", lambda text: text)
    monkeypatch.setattr(databases, "split", lambda text, _: [Statement(text, 1)])


def index_set(place: Place, path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> IndexSet:
    path.write_text("CREATE INDEX second ON victim (n); ANALYZE victim")
    found = read_set(path)
    indexes = tuple(replace(index, body=index.body + text) for index in found.indexes)
    made = IndexSet(path, indexes, tuple(analyze + text for analyze in found.analyze))
    monkeypatch.setattr(index_builds, "read_set", lambda _: made)
    return made


def examined(place: Place, wanted: IndexSet) -> object:
    with place.connect() as connection:
        problems = [found.problem for found in index_sets.examine(connection, wanted)]
        raise UsageError("; ".join([*problems, *index_sets.analyze_problems(connection, wanted)]))


def built(place: Place, wanted: IndexSet) -> object:
    return index_builds.build(place.server, place.name, wanted.path)


def applied(place: Place, wanted: IndexSet) -> object:
    found = index_sets.IndexStatus(wanted.indexes[0], "missing", table="victim", quoted="public.second", lockable=False)
    work = index_builds._Work(place.server, place.name, wanted.path, lambda _: None, index_builds.Patience(attempts=1))
    return work.apply([found], [])


def analyzed(place: Place, wanted: IndexSet) -> object:
    work = index_builds._Work(place.server, place.name, wanted.path, lambda _: None, index_builds.Patience(attempts=1))
    return work.apply([], wanted.analyze)


def index_tried(place: Place, wanted: IndexSet) -> object:
    [index] = wanted.indexes
    statement = index.sql(concurrently=False)
    with tried(place, [statement]) as trying:
        if trying.failed:
            raise UsageError(trying.failed[statement])
    if place.server.foreign:  # HypoPG reads several statements itself, and runs none of them
        raise UsageError("cannot insert multiple commands")


# What is done with the statements of an index set.
INDEXES: dict[str, Callable[[Place, IndexSet], object]] = {
    "index set examined": examined,
    "index set built": built,
    "index set applied": applied,
    "ANALYZE of an index set": analyzed,
    "index tried": index_tried,
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_second_command_in_an_index_set_is_not_run(
    database: Database, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = index_set(database.place, tmp_path / "indexes.sql", monkeypatch, SECOND)
    with pytest.raises(PerfkitError, match="cannot insert multiple commands"):
        INDEXES[name](database.place, wanted)
    assert database.unharmed()


def enclosed(levels: int) -> str:
    """The second command for a place that puts a text between parentheses."""
    return f"SELECT 1{') x' * levels}{SECOND.removesuffix('--')} SELECT 1{' FROM (SELECT 1' * levels}"


def parameter_source(place: Place, path: Path) -> object:
    return databases.fetched(place.server, place.name, path, 5)


def prepare(place: Place, path: Path) -> object:
    return databases.prepare(place.server, place.name, [path], {})


# What is done with a file of SQL: its text, and a second command in it.
FILES: dict[str, tuple[Callable[[Place, Path], object], str]] = {
    "parameter source": (parameter_source, enclosed(1)),
    "prepare": (prepare, "SELECT 1" + SECOND),
}


@pytest.mark.parametrize("name", FILES)
def test_a_second_command_in_a_file_is_not_run(
    database: Database, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (use, second), path = FILES[name], tmp_path / "text.sql"
    path.write_text(HIDDEN)
    use(database.place, path)
    unread(monkeypatch)
    path.write_text(second)
    with pytest.raises(UsageError, match=r"text\.sql.*cannot insert multiple commands"):
        use(database.place, path)
    assert database.unharmed()


def of_the_session(place: Place, value: str) -> object:
    with Place(place.server, place.name, {"work_mem": value}).session() as connection:
        return connection.execute("SELECT 1")


def of_the_database(place: Place, value: str) -> object:
    return databases.configure(place.server, place.name, {"work_mem": value})


def of_the_load(place: Place, value: str) -> object:
    target = sql_target(place.conninfo(), 5, 5, settings={"work_mem": value})["options"]
    return psycopg.connect(target["conninfo"], options=options(target["session"]))


# Where the value of a setting goes.
SETTINGS: dict[str, Callable[[Place, str], object]] = {
    "setting of a session": of_the_session,
    "setting of a database": of_the_database,
    "setting of the load": of_the_load,
}


# Behind a pooler no session has settings: tests/postgres/test_hosted.py has how they are refused.
@pytest.mark.parametrize("database", [s for s in SERVERS if "PgBouncer" not in s], indirect=True)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_a_value(database: Database, name: str) -> None:
    with pytest.raises((UsageError, psycopg.Error), match=r"invalid value|must be owner|not allowed"):
        SETTINGS[name](database.place, r"4MB\'; COMMIT; DELETE FROM victim; --")
    assert database.unharmed()


def test_a_setting_that_was_changed_before_a_text_is_seen_to(database: Database) -> None:
    with database.place.session() as connection:
        for _ in range(2):
            send(connection.cursor(), "SELECT set_config('standard_conforming_strings', 'off', true)")
            row = send(connection.cursor(), HIDDEN).fetchone()
            assert (row and list(row.values()) == [SECOND]) or len(row) == 2
        connection.rollback()
    assert database.unharmed()


def test_nothing_stays_in_a_session_that_a_pooler_lends(database: Database) -> None:
    with database.place.session() as connection:
        send(connection.cursor(), "SELECT 1")
        connection.rollback()
        row = connection.execute("SELECT current_setting('standard_conforming_strings') AS now").fetchone()
    assert row == {"now": "off"}


def test_a_cursor_that_knows_the_simple_protocol_gets_no_text(database: Database) -> None:
    with database.place.session() as connection, pytest.raises(TypeError, match="Cursor; expected"):
        send(psycopg.Cursor(connection), "SELECT 1")


@pytest.mark.parametrize(
    "text, code", [("SELECT 1\n\0; DELETE", "0000"), ("SELECT 1\n, '\ud800'", "D800")], ids=["NUL", "a lone surrogate"]
)
def test_what_no_server_takes_is_one_line_before_anything_is_sent(text: str, code: str, tmp_path: Path) -> None:
    code = rf"the character U\+{code} in line 2; expected text in UTF-8 without it"
    with pytest.raises(UsageError, match=code):
        capture.single(text)
    with pytest.raises(UsageError, match=code.replace("line 2", "line 1")):
        exact({"n": [text.replace("\n", " ")]})
    if "\0" in text:
        (tmp_path / "query.sql").write_text(text)
        with pytest.raises(UsageError, match=rf"query\.sql: {code}"):
            read(tmp_path / "query.sql")


def text_of(call: ast.Call) -> bool:
    """Whether a call's first argument is a text of perfkit's own: a constant, or a query of the catalogue's."""
    given = call.args[0] if call.args else None
    while isinstance(given, ast.Call) and isinstance(given.func, ast.Attribute) and given.func.attr == "encode":
        given = given.func.value
    return given is None or isinstance(given, ast.Constant) or ast.unparse(given).startswith("catalog.get(")


def modules() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(Path("perfkit").rglob("*.py")):
        yield path.relative_to("perfkit").as_posix(), ast.parse(path.read_text("utf-8"))


def test_only_named_modules_send_text_of_their_own_making() -> None:
    """Everything else goes by `commands.send`; what is named here is made of constants, numbers and quoted names."""
    sends = {"execute", "executemany", "stream"}
    found = {
        name
        for name, tree in modules()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in sends
        if not text_of(call)
    }
    assert found == OWN


def test_nothing_else_reaches_a_server() -> None:
    """Connections are opened in a few places; the simple protocol and psql are for constants."""
    opened, simple, programs = set(), set(), set()
    for name, tree in modules():
        nodes = list(ast.walk(tree))
        types = {id(node.value) for node in nodes if isinstance(node, ast.Subscript)}  # psycopg.Cursor[Any]
        for node in nodes:
            if isinstance(node, ast.Attribute) and (node.attr in ("exec_", "send_query")):
                simple.add(name)
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "psycopg.Cursor" and id(node) not in types:
                simple.add(name)
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            given = {str(keyword.arg) for keyword in node.keywords} if isinstance(node, ast.Call) else set()
            if called.endswith(".connect") and given & {"autocommit", "connect_timeout"}:
                opened.add(name)
            if isinstance(node, ast.Constant) and node.value == "psql":
                programs.add(name)
    assert programs == {"postgres/supervisor.py"}
    assert simple == {"monitor/metrics.py", "postgres/catalog.py"}
    assert opened == {
        "booking/service.py", "load/senders.py", "postgres/embedded.py", "postgres/guards.py", "postgres/servers.py",
    }  # fmt: skip


def test_the_document_names_every_place() -> None:
    rows = re.findall(r"^\| ([^|]+?) +\|", Path("docs/guarantees.md").read_text(), re.MULTILINE)[1:]
    assert rows == [*QUERIES, *INDEXES, *FILES, *SETTINGS, *OTHERS]
