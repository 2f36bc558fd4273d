"""Arms are any difference: settings, versions, data, a query's words, databases, services; each gets its own."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import pytest
from aiohttp import web
from scripts import run_all

import perfkit
from perfkit.analysis.report import Run
from perfkit.base.errors import PerfkitError
from perfkit.postgres import databases, embedded, servers
from perfkit.runs.selection import Selection

HEAD = 'title = "Any difference"\n'
SCENARIO = '[[scenario]]\nname = "alone"\nlabel = "1"\nsend = [{}]\nrequests = 2\n'
# Each tells by the number of its rows what the session that ran it had.
QUERIES = {
    "memory": "SELECT 1 FROM generate_series(1, pg_size_bytes(current_setting('work_mem')) / 1048576)",
    "buffers": "SELECT 1 FROM generate_series(1, pg_size_bytes(current_setting('shared_buffers')) / 1048576 / 64)",
    "version": "SELECT 1 FROM generate_series(1, current_setting('server_version_num')::int / 10000)",
    "things": "SELECT id, name FROM things",
    "writable": "SELECT 1 FROM generate_series(1, (current_setting('transaction_read_only') = 'off')::int)",
}
THINGS = "CREATE TABLE things AS SELECT n AS id, 'thing ' || n AS name FROM generate_series(1, 3) n"


@pytest.fixture(scope="module")
def home(server_home: Path) -> Iterator[Path]:
    """One block a run: enough to see what is sent where."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFKIT_HOME", str(server_home))
        patch.setattr(Selection, "blocks", property(lambda _: 1))
        yield server_home


def measured(folder: Path, text: str, **options: object) -> Run:
    """A run of a perfkit.toml with the queries above in its folder."""
    for name, query in QUERIES.items():
        (folder / f"{name}.sql").write_text(query)
    (folder / "perfkit.toml").write_text(HEAD + text)
    return perfkit.run("quick", config=folder / "perfkit.toml", reports=folder / "runs", **options)  # type: ignore[arg-type]


def queries(*names: str) -> str:
    tables = "".join(f'[[query]]\nname = "{name}"\nfile = "{name}.sql"\n' for name in names)
    return tables + SCENARIO.format(", ".join(f'"{name}"' for name in names))


def arm(name: str, role: str = "after", *lines: str) -> str:
    return "\n".join(["[[arm]]", f'name = "{name}"', f'role = "{role}"', *lines, ""])


def answers(run: Run, item: str) -> dict[str, set[str]]:
    """By arm, what came back for a query: the number of its rows."""
    found: dict[str, set[str]] = {}
    for round_ in run.rounds:
        if round_.arm != "floor":
            columns = zip(round_.columns.item, round_.columns.outcome, round_.columns.detail, strict=True)
            found.setdefault(round_.arm, set()).update(f"{o}: {d}" for i, o, d in columns if i == item)
    return found


def rows(**counts: int) -> dict[str, set[str]]:
    return {name: {f"ok: {count} rows"} for name, count in counts.items()}


# On servers that perfkit starts


@pytest.fixture(scope="module")
def own(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with an arm for every kind of difference."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "made.sql").write_text(THINGS)
    (folder / "more.sql").write_text("INSERT INTO things SELECT n, 'more' FROM generate_series(4, 5) n")
    (folder / "reworded.sql").write_text("SELECT id, name FROM things t WHERE EXISTS (SELECT) ORDER BY 1 DESC")
    database = '[database]\nprepare = ["made.sql"]\nsettings = { shared_buffers = "64MB" }\n'
    arms = [
        arm("before", "before"),
        arm("control", "control"),
        arm("memory", "after", 'settings = { Work_Mem = "8MB" }'),
        arm("restarted", "after", 'settings = { shared_buffers = "128MB", work_mem = "2MB" }'),
        arm("older", "after", "postgres = 16"),
        arm("fuller", "after", 'prepare = ["more.sql"]'),
        arm("reworded", "after", 'rewrite = { things = "reworded.sql" }'),
    ]
    with embedded.start(18, {"shared_buffers": "64MB"}, home) as server:
        run = measured(folder, database + queries(*QUERIES) + "".join(arms))
        with server.connect("postgres") as connection:
            left = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'pk\\_%'").fetchall()
    assert left == []
    return run


def test_a_setting_holds_in_every_session_of_its_arm_and_in_no_other(own: Run) -> None:
    assert answers(own, "memory") == rows(before=4, control=4, memory=8, restarted=2, older=4, fuller=4, reworded=4)
    assert own.bundle.run.arms["memory"].settings == {"Work_Mem": "8MB"}


def test_what_only_a_start_can_set_gets_a_server_of_its_own(own: Run) -> None:
    assert answers(own, "buffers") == rows(before=1, control=1, memory=1, restarted=2, older=1, fuller=1, reworded=1)


def test_another_version_of_postgresql_is_an_arm(own: Run) -> None:
    assert answers(own, "version") == rows(
        before=18, control=18, memory=18, restarted=18, older=16, fuller=18, reworded=18
    )
    assert {name: facts.postgres for name, facts in own.bundle.run.arms.items() if name != "older"} == (
        dict.fromkeys(("before", "control", "memory", "restarted", "fuller", "reworded"), 18)
    )
    assert own.bundle.run.arms["older"].postgres == 16


def test_prepared_data_is_the_arms_own(own: Run) -> None:
    assert answers(own, "things") == rows(before=3, control=3, memory=3, restarted=3, older=3, fuller=5, reworded=3)
    (state,) = [block.state for block in own.bundle.run.blocks]
    assert (state["before"]["things"]["rows"], state["fuller"]["things"]["rows"]) == (3, 5)


def test_a_rewrite_is_sent_by_its_arm_alone_after_its_rows_were_compared(own: Run) -> None:
    assert "Sort" in str(own.bundle.plan("reworded", "things").documents)
    assert "Sort" not in str(own.bundle.plan("before", "things").documents)
    assert list(own.bundle.run.checks) == ["reworded"]
    (check,) = own.bundle.run.checks["reworded"]
    assert (check.passed, check.got) == (True, "the same for 1 of 1 parameter sets")


def test_copies_of_the_same_data_come_into_the_servers_memory_alike(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped one by one, read one by one in an order drawn for each block, and once for nothing before the first."""
    seen: list[tuple[str, str]] = []

    def noted(what: str) -> None:
        own = getattr(databases, what)

        def call(server: object, name: str, *rest: object, **options: object) -> object:
            if "_clone_" in name and (what != "drop" or threading.current_thread() is threading.main_thread()):
                seen.append((what, name.partition("_clone_")[2]))
            return own(server, name, *rest, **options)

        monkeypatch.setattr(databases, what, call)

    for what in ("drop", "create", "sizes"):
        noted(what)
    monkeypatch.setattr(Selection, "blocks", property(lambda _: 4))
    (tmp_path / "made.sql").write_text(THINGS)
    database = '[database]\nprepare = ["made.sql"]\n'
    measured(tmp_path, database + queries("things") + arm("before", "before") + arm("control", "control"))
    steps = [(what, sorted(name for _, name in own)) for what, own in groupby(seen, key=lambda one: one[0])]
    both = ["before", "control"]
    assert steps[:15] == 5 * [("drop", both), ("create", both), ("sizes", both)]
    assert {name for what, name in [one for one in seen if one[0] == "sizes"][::2]} == set(both)  # who is read first


def test_arms_on_perfkits_own_server_alternate(own: Run) -> None:
    assert own.bundle.run.order == "interleaved"
    assert own.bundle.run.origin.way == "made by SQL files in PostgreSQL that perfkit started"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('settings = { work_mem = "a lot" }', "setting work_mem = 'a lot': "),
        ('settings = { work_men = "1MB" }', "setting work_men = '1MB': unrecognized configuration parameter"),
        ('settings = { shared_buffers = "a lot" }', 'invalid value for parameter "shared_buffers": "a lot"'),
        (
            'settings = { port = "1" }',
            "settings: expected a setting other than 'port': the setting decides who can reach",
        ),
        ('prepare = ["things.sql", "version.sql", "broken.sql"]', 'broken.sql: syntax error at or near "BROKEN"'),
        ('rewrite = { things = "broken.sql" }', "BROKEN cannot be explained"),
    ],
)
def test_a_difference_that_cannot_be_made_is_one_line(home: Path, tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "made.sql").write_text(THINGS)
    (tmp_path / "broken.sql").write_text("BROKEN")
    database = '[database]\nprepare = ["made.sql"]\nsettings = { shared_buffers = "64MB" }\n'
    with pytest.raises(PerfkitError) as caught:
        measured(tmp_path, database + queries("things") + arm("before", "before") + arm("after", "after", lines))
    assert said in str(caught.value) and "\n" not in str(caught.value)


# In databases of the user's


@pytest.fixture
def two(server: embedded.EmbeddedServer) -> Iterator[embedded.EmbeddedServer]:
    """Two databases of the user's on one server, the second with more rows."""
    for name, more in (("pk_one", ""), ("pk_two", "INSERT INTO things SELECT 4, 'four'")):
        databases.create(server, name)
        with server.connect(name) as connection:
            run_all(connection, f"{THINGS}; {more}; ANALYZE")
    yield server
    for name in ("pk_one", "pk_two"):
        databases.drop(server, name)


def in_place(server: embedded.EmbeddedServer, name: str = "pk_one") -> tuple[str, str]:
    """How a configuration names a database, and what has to be confirmed."""
    return f"host={server.socket_dir} dbname={name} user=perfkit", f"{server.socket_dir}:5432/{name}"


def test_two_databases_are_compared_as_they_stand(home: Path, two: embedded.EmbeddedServer, tmp_path: Path) -> None:
    (one, first), (other, second) = in_place(two), in_place(two, "pk_two")
    text = f'allow = ["{first}", "{second}"]\n[database]\ntarget = "{one}"\nway = "in-place"\n'
    text += queries("things", "writable", "memory")
    arms = (
        arm("before", "before"),
        arm("other", "after", f'database = "{other}"'),
        arm("set", "after", 'settings = { work_mem = "8MB" }'),
    )
    run = measured(tmp_path, text + "".join(arms), confirm=[first, second])
    assert run.bundle.run.order == "interleaved"
    assert answers(run, "things") == rows(before=3, other=4, set=3)
    assert answers(run, "writable") == rows(before=0, other=0, set=0)
    assert answers(run, "memory") == rows(before=4, other=4, set=8)
    audit = (run.bundle.path / "audit.jsonl").read_text()
    assert first in audit and second in audit
    for name in ("pk_one", "pk_two"):
        with two.connect(name) as connection:
            kept = connection.execute("SELECT setting FROM pg_settings WHERE name = 'work_mem'").fetchone()
            tables = connection.execute("SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace")
            assert (kept, len(tables.fetchall())) == ({"setting": "4096"}, 1)


def test_indexes_in_place_follow_one_another_and_are_gone_at_the_end(
    home: Path, two: embedded.EmbeddedServer, tmp_path: Path
) -> None:
    target, name = in_place(two)
    (tmp_path / "index.sql").write_text("CREATE INDEX things_name ON things (name)")
    with two.connect("pk_one") as connection:
        servers.grant(connection, ["ddl"], 1)
    text = f'allow = ["{name}"]\n[database]\ntarget = "{target}"\nway = "in-place"\n' + queries("things")
    arms = arm("before", "before") + arm("control", "control") + arm("after", "after", 'indexes = "index.sql"')
    run = measured(tmp_path, text + arms, confirm=[name])
    assert run.bundle.run.order == "sequential"
    order = [found.arm for found in sorted(run.rounds, key=lambda r: r.position) if found.arm != "floor"]
    assert [name for name, _ in groupby(order)] == ["before", "after", "control"]
    assert run.bundle.run.arms["after"].indexes[0].valid
    with two.connect("pk_one") as connection:
        assert connection.execute("SELECT FROM pg_indexes WHERE schemaname = 'public'").fetchall() == []


# Services


@contextmanager
def service(status: int = 200) -> Iterator[tuple[str, Counter[str]]]:
    """A real HTTP service in a thread: where it answers, and what it was asked for."""
    asked: Counter[str] = Counter()
    ready, loop = threading.Event(), asyncio.new_event_loop()
    where: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked[request.path] += 1
        return web.Response(status=200 if request.path == "/health" else status, text="hello")

    async def serve() -> None:
        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        server = web.TCPSite(runner, "127.0.0.1", 0)
        await server.start()
        where.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()
        await stopped.wait()
        await runner.cleanup()

    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield where[0], asked
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


REQUEST = """
[parameters.numbers]
rows = 10
columns = { n = { integer = [1, 3] } }
[[request]]
name = "hello"
path = "/hello/{n}"
parameters = "numbers"
"""


def test_two_urls_of_a_service_are_asked_for_the_same_with_no_database(home: Path, tmp_path: Path) -> None:
    with service() as (one, first), service() as (other, second):
        arms = arm("before", "before", "warmup = 5") + arm("after", "after", f'url = "{other}"', "warmup = 5")
        text = f'allow = ["{one}", "{other}"]\n[service]\nurl = "{one}"\n' + REQUEST + SCENARIO.format('"hello"') + arms
        run = measured(tmp_path, text, confirm=[one, other])
    assert answers(run, "hello") == {"before": {"ok: 200"}, "after": {"ok: 200"}}
    asked = [Counter({path: n for path, n in found.items() if path != "/health"}) for found in (first, second)]
    assert asked[0] == asked[1] and sum(asked[0].values()) == 5 + 2  # to warm up, and what counts
    assert set(asked[0]) <= {"/hello/1", "/hello/2", "/hello/3"}
    audit = [json.loads(line)["load"] for line in (run.bundle.path / "audit.jsonl").read_text().splitlines()]
    told = Counter({arm: sum(own["requests"] for own in audit if own["arm"] == arm) for arm in ("before", "after")})
    assert told == {"before": 7, "after": 7} and {own["scenario"] for own in audit} >= {"warm-up"}


def test_a_service_that_answers_otherwise_shows_in_its_arm_alone(home: Path, tmp_path: Path) -> None:
    with service() as (one, _), service(status=503) as (other, _):
        arms = arm("before", "before", "warmup = 0") + arm("after", "after", f'url = "{other}"', "warmup = 0")
        text = f'allow = ["{one}", "{other}"]\n[service]\nurl = "{one}"\n' + REQUEST + SCENARIO.format('"hello"') + arms
        run = measured(tmp_path, text, confirm=[one, other])
    assert answers(run, "hello") == {"before": {"ok: 200"}, "after": {"http_503: hello"}}
    assert run.analysis.decision.outcome.decision == "INCONCLUSIVE"  # of a single round, which bounds no rate
    assert any(
        "100 % (95 % interval 0 % to 100 %)" in said and "x http_503" in said for said in run.analysis.decision.reasons
    )
