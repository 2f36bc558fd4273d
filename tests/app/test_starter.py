"""`perfkit init`: a first perfkit.toml with its SQL, an example or from the user's database, that runs as it is."""

import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import psycopg.sql
import pytest
from click.testing import CliRunner, Result
from hosted import Hosted, hosted
from scripts import run_all

import perfkit
from perfkit import config
from perfkit.analysis.report import Run
from perfkit.app import starter
from perfkit.app.cli import main
from perfkit.config import Config
from perfkit.postgres import databases, embedded
from perfkit.postgres.sqltext import split
from perfkit.runs.selection import Selection

pytestmark = pytest.mark.slow  # the module takes more than a minute

Init = Callable[..., Path]


@pytest.fixture
def database(server: embedded.EmbeddedServer) -> Iterator[psycopg.Connection]:
    """A database of the user's, empty yet."""
    databases.create(server, "pk_starter")
    with server.connect("pk_starter") as connection:
        yield connection
    databases.drop(server, "pk_starter")


@pytest.fixture
def init(server: embedded.EmbeddedServer, tmp_path: Path) -> Init:
    """`perfkit init` on that database; the folder that it wrote."""

    def init() -> Path:
        done = perfkit_init(tmp_path / "mine", *options(server))
        assert done.exit_code == 0, done.stderr
        written = [Path(line) for line in done.stdout.splitlines()]
        assert written[0].name == "perfkit.toml" and set(written) == set((tmp_path / "mine").iterdir())
        return tmp_path / "mine"

    return init


@pytest.fixture
def one_block(monkeypatch: pytest.MonkeyPatch, server_home: Path) -> None:
    """As little as shows that a run comes to its end."""
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    monkeypatch.setattr(Selection, "blocks", property(lambda _: 1))


def perfkit_init(*args: object) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, args)])


def options(server: embedded.EmbeddedServer, dbname: str = "pk_starter") -> list[str]:
    name = f"{server.socket_dir}:{server.port}/{dbname}"
    return ["--db", psycopg.conninfo.make_conninfo(server.conninfo(dbname)), "--confirm", name]


def read(folder: Path) -> Config:
    return config.load(folder / "perfkit.toml")


def measured(folder: Path, server: embedded.EmbeddedServer, tmp_path: Path) -> Run:
    """Run it by the command that it says itself."""
    (said,) = [line for line in (folder / "perfkit.toml").read_text().splitlines() if "perfkit report" in line]
    words = shlex.split(said.partition("perfkit ")[2])
    assert words[:5] == ["report", "--config", "perfkit.toml", "--profile", "quick"] and words[5] == "--confirm"
    run = perfkit.run("quick", config=folder / "perfkit.toml", confirm=[words[6]], reports=tmp_path / "runs")
    assert {outcome for round_ in run.rounds for outcome in round_.columns.outcome} == {"ok"}
    assert run.bundle.run.status == "complete"
    return run


# Without a database


@pytest.mark.usefixtures("one_block")
def test_without_a_database_it_is_an_example_that_runs(tmp_path: Path) -> None:
    done = perfkit_init(tmp_path / "mine")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, f"{tmp_path}/mine/perfkit.toml")
    run = perfkit.run("quick", config=tmp_path / "mine/perfkit.toml", scenarios="alone", reports=tmp_path / "runs")
    assert run.bundle.run.status == "complete"
    assert run.bundle.run.arms["after"].indexes[0].valid


@pytest.mark.parametrize("name", ["perfkit.toml", "tables.sql"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    done = perfkit_init(tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"perfkit: {tmp_path / name} already exists; expected a folder without it\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_link_to_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/tables.sql").symlink_to(tmp_path / "elsewhere.sql")
    assert perfkit_init(tmp_path / "mine").exit_code == 2
    assert not (tmp_path / "elsewhere.sql").exists()


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/mine"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    done = perfkit_init(tmp_path / folder)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.endswith("expected a writable folder\n")


# From a database


SHOP = """
CREATE TABLE customers (id int PRIMARY KEY, name text);
CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers, day date NOT NULL);
CREATE TABLE lines (order_id int REFERENCES orders, number int, note text, PRIMARY KEY (order_id, number));
CREATE TABLE visits (customer int REFERENCES customers, at int);
CREATE INDEX ON visits (at, customer);
INSERT INTO customers SELECT n, 'c' || n FROM generate_series(1, 100) n;
INSERT INTO orders SELECT n, nullif(n % 100, 0), date '2026-01-01' + n FROM generate_series(1, 500) n;
INSERT INTO lines SELECT n / 3 + 1, n % 3, 'note' FROM generate_series(0, 1400) n;
INSERT INTO visits SELECT n % 100 + 1, n FROM generate_series(1, 300) n;
"""


@pytest.mark.usefixtures("one_block")
def test_what_it_finds_is_asked_by_keys_and_runs_as_it_is(
    database: psycopg.Connection, init: Init, server: embedded.EmbeddedServer, tmp_path: Path
) -> None:
    run_all(database, SHOP)
    database.execute("ANALYZE")
    folder = init()
    found = read(folder)
    assert [query.name for query in found.query] == ["by_orders", "by_visits", "one_of_lines", "one_of_orders"]
    assert (folder / "indexes.sql").read_text() == (
        "CREATE INDEX ON public.orders (customer);\nCREATE INDEX ON public.visits (customer);\n"
    )
    text = (folder / "perfkit.toml").read_text()
    assert "# public.orders: about 500 rows, 0.0 MB" in text
    assert "key order_id, number; order_id -> public.orders" in text
    assert "public.visits: about 300 rows" in text and "no primary key; customer -> public.customers" in text
    run = measured(folder, server, tmp_path)
    assert len(run.bundle.run.arms["after"].indexes) == 2
    answers = {
        item: {d for r in run.rounds for i, d in zip(r.columns.item, r.columns.detail, strict=True) if i == item}
        for item in ("by_orders", "one_of_lines")
    }
    assert answers["by_orders"] - {"1 rows"} == {"5 rows"}  # the floor's, and an order of a customer is one of five
    assert answers["one_of_lines"] == {"1 rows"}


@pytest.mark.usefixtures("one_block")
def test_it_runs_before_anything_was_analysed_and_where_all_keys_have_indexes(
    database: psycopg.Connection, init: Init, server: embedded.EmbeddedServer, tmp_path: Path
) -> None:
    run_all(database, "CREATE TABLE things (id uuid PRIMARY KEY, price numeric); ")
    database.execute("INSERT INTO things SELECT gen_random_uuid(), n / 7.0 FROM generate_series(1, 50) n")
    folder = init()
    assert not (folder / "indexes.sql").exists()
    assert read(folder).arm[2].settings == {"work_mem": "64MB"}
    assert measured(folder, server, tmp_path).bundle.run.arms["after"].settings == {"work_mem": "64MB"}


HOSTILE = [
    'say "hi"; DROP TABLE x; --',
    "two\nlines = 1",
    "100%s %(p1)s",
    "[[arm]]",
    "jobs",
    "jobs_parameters",
    "\u202eevil",
    "SELECT",
    "ö" * 30,
]


@pytest.mark.usefixtures("one_block")
def test_no_name_breaks_out_of_a_file(
    database: psycopg.Connection,
    init: Init,
    server: embedded.EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each table has its name on its column too, and a foreign key by it to one with the worst of names."""
    monkeypatch.setattr(starter, "LOOKUPS", 20)
    monkeypatch.setattr(starter, "KEYS", 20)
    parent = 'the "parent"\n[x]'
    database.execute(psycopg.sql.SQL("CREATE TABLE {} (id int PRIMARY KEY)").format(psycopg.sql.Identifier(parent)))
    run_all(
        database, psycopg.sql.SQL("INSERT INTO {} SELECT generate_series(1, 20)").format(psycopg.sql.Identifier(parent))
    )
    for name in HOSTILE:
        table, column, key, refers = map(psycopg.sql.Identifier, (name, name, f"k {name}", parent))
        run_all(
            database,
            psycopg.sql.SQL("CREATE TABLE {} ({} int REFERENCES {}, {} int PRIMARY KEY)").format(
                table, column, refers, key
            ),
        )
        database.execute(psycopg.sql.SQL("INSERT INTO {} SELECT n, n FROM generate_series(1, 20) n").format(table))
    folder = init()
    found = read(folder)
    assert len(found.query) == len(HOSTILE) * 2 + 1
    assert len({query.file for query in found.query} | set(found.parameters.values())) == 2 * len(found.query)
    assert [arm.name for arm in found.arm] == ["before", "control", "after"]
    assert len(split((folder / "indexes.sql").read_text())) == len(HOSTILE)
    assert "\u202e" not in (folder / "perfkit.toml").read_text()
    run = measured(folder, server, tmp_path)
    assert len(run.bundle.run.arms["after"].indexes) == len(HOSTILE)


def test_a_database_with_a_name_for_the_shell_is_quoted_in_the_command(
    server: embedded.EmbeddedServer, tmp_path: Path
) -> None:
    name = "my shop; rm -rf 'x' $HOME"
    databases.create(server, name)
    try:
        with server.connect(name) as connection:
            run_all(connection, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        done = perfkit_init(tmp_path / "mine", *options(server, name))
        assert done.exit_code == 0, done.stderr
        (line,) = [ln for ln in (tmp_path / "mine/perfkit.toml").read_text().splitlines() if "perfkit report" in ln]
        echoed = subprocess.run(["sh", "-c", f"printf '%s\\n' {line.partition('perfkit ')[2]}"], capture_output=True)
        assert echoed.stdout.decode().splitlines()[-1] == f"{server.socket_dir}:5432/{name}"
    finally:
        databases.drop(server, name)


def test_partitions_are_one_table(database: psycopg.Connection, init: Init) -> None:
    run_all(
        database,
        "CREATE TABLE events (id int, day date, note text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);"
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');"
        "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');"
        "INSERT INTO events SELECT n, date '2026-01-01' + n % 50, repeat('x', 100) FROM generate_series(1, 2000) n;",
    )
    database.execute("ANALYZE events_1, events_2")
    folder = init()
    assert [query.name for query in read(folder).query] == ["one_of_events"]
    assert (folder / "one_of_events.sql").read_text() == (
        "SELECT * FROM public.events WHERE day = %(p1)s AND id = %(p2)s LIMIT 100\n"
    )
    assert "# public.events: about 2,000 rows, 0." in (folder / "perfkit.toml").read_text()


def test_an_expression_in_front_leaves_a_foreign_key_without_an_index(database: psycopg.Connection, init: Init) -> None:
    run_all(
        database,
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (a int REFERENCES a, c int REFERENCES a, d int);"
        "INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1, 1);"
        "CREATE INDEX ON b ((d + 1), a); CREATE INDEX ON b (c) WHERE d > 5; CREATE INDEX ON b (d) INCLUDE (a, c);",
    )
    assert (init() / "indexes.sql").read_text().splitlines() == [
        "CREATE INDEX ON public.b (a);", "CREATE INDEX ON public.b (c);",
    ]  # fmt: skip


def test_two_foreign_keys_on_one_column_need_one_index(database: psycopg.Connection, init: Init) -> None:
    run_all(
        database,
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (a int REFERENCES a);"
        "ALTER TABLE b ADD CONSTRAINT again FOREIGN KEY (a) REFERENCES a;"
        "INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)",
    )
    assert (init() / "indexes.sql").read_text() == "CREATE INDEX ON public.b (a);\n"


def test_what_has_no_values_is_not_asked_for(database: psycopg.Connection, init: Init) -> None:
    run_all(
        database,
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE empty (id int PRIMARY KEY, a int REFERENCES a);"
        "CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO b SELECT generate_series(1, 5)",
    )
    assert [query.name for query in read(init()).query] == ["one_of_b"]


def test_a_large_database_is_sampled(database: psycopg.Connection, init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(database, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 50000)")
    monkeypatch.setattr(config.DatabaseConfig.model_fields["copy_limit_mb"], "default", 1)
    assert read(init()).database.way == "sample"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "made", ["", "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE t (id int); INSERT INTO t VALUES (1)"]
)
def test_a_database_without_anything_to_ask_for_is_one_line(
    database: psycopg.Connection, server: embedded.EmbeddedServer, tmp_path: Path, made: str
) -> None:
    run_all(database, made)
    done = perfkit_init(tmp_path / "mine", *options(server))
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no readable table has rows and a key; expected at least one" in done.stderr
    assert not (tmp_path / "mine").exists()


def test_a_database_that_nobody_confirmed_is_not_looked_at(server: embedded.EmbeddedServer, tmp_path: Path) -> None:
    done = perfkit_init(tmp_path / "mine", *options(server)[:2])
    assert done.exit_code == 97 and "--confirm" in done.stderr
    assert not (tmp_path / "mine").exists()


# On a hosted server


@contextmanager
def at_hosted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosted]:
    with hosted() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.mark.system
def test_the_statements_that_take_longest_are_there_where_the_role_may_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_hosted(monkeypatch) as running:
        for _ in range(3):
            running.run("SELECT count(*) FROM sales.orders o, customers c\n/* ; */ WHERE total > 95", user="shop")
        given = ["--db", running.db(), "--confirm", running.name()]
        done = perfkit_init(tmp_path / "without", *given)
        assert done.exit_code == 0, done.stderr
        assert not (tmp_path / "without/statements.sql").exists()

        running.run("GRANT USAGE ON SCHEMA extensions TO shop")
        assert perfkit_init(tmp_path / "with", *given).exit_code == 0
        text = (tmp_path / "with/statements.sql").read_text()
        assert "-- 3 calls, " in text and "WHERE total > $1" in text
        assert all(line.startswith("-- ") or not line for line in text.splitlines())
        assert read(tmp_path / "with").query[0].name == "by_orders"
