"""The examples in docs/: databases and a library that others wrote, measured as their files say."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from psycopg.rows import dict_row

from perfkit import config
from perfkit.analysis.results import Analysis
from perfkit.analysis.run_analysis import analyse
from perfkit.base.resources import CHECKOUT
from perfkit.config import Generator
from perfkit.config import ServiceConfig as Launched
from perfkit.postgres import databases, embedded
from perfkit.runs import selection
from perfkit.runs.records import Bundle
from perfkit.runs.service import Service

EXAMPLES = CHECKOUT / "docs" / "examples"
BENCH = "pk_examples_pgbench"
TPCH = "pk_examples_tpch"
JOBS = "pk_examples_jobs"


def perfkit(*args: object, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it; whatever it says, no traceback and no process left."""
    before = set(psutil.Process().children(recursive=True))
    done = subprocess.run(
        [sys.executable, "-m", "perfkit", *map(str, args)],
        cwd=CHECKOUT,
        env={**os.environ, "PERFKIT_HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert set(psutil.Process().children(recursive=True)) <= before
    return done


def reported(example: Path, folder: Path, *args: object, home: Path, **environment: str) -> Bundle:
    """The run that a quick report of an example leaves, after what every such report must be."""
    done = perfkit(
        *("report", "--config", example / "perfkit.toml", "--profile", "quick", "--reports", folder, *args),
        home=home,
        **environment,
    )
    assert done.returncode == 0, done.stderr
    decision, page = done.stdout.splitlines()
    (run,) = folder.iterdir()
    assert page == f"{run}/report.html"
    html, verdict = Path(page).read_text(), json.loads((run / "verdict.json").read_text())
    assert decision.split(":")[0] == verdict["decision"] and verdict["decision"] in html
    bundle = Bundle.open(run)
    assert bundle.run.status == "complete" and len(bundle.run.blocks) == 6
    assert all(query in html for query in bundle.run.queries)
    return bundle


def faster(found: Analysis, scenario: str, item: str) -> bool:
    """Whether half of the requests were answered sooner after, in the words of the table."""
    (verdict,) = [
        str(c.verdict)
        for c in found.comparisons
        if (c.after, c.scenario, c.metric, c.item) == ("after", scenario, "p50", item)
    ]
    return verdict == "faster"


def plans(found: Analysis, arm: str) -> dict[str, str]:
    return {use.query: use.summary for use in found.plans if use.arm == arm}


def decided(found: Analysis) -> bool:
    """An example has no limit in ms: what decides is whether anything became slower, or could not be compared.

    The latter happens where the control arm, by chance, widens a margin that a slowdown would hide in. Each has queries
    that become several times as fast, which is its benefit.
    """
    verdicts = {str(c.verdict) for c in found.comparisons if c.after == "after"}
    expected = "NO-GO" if "slower" in verdicts else "INCONCLUSIVE" if "invalid" in verdicts else "GO"
    return found.decision.outcome.decision == expected


# pgbench: its own database, made by its own program


@pytest.fixture(scope="module")
def bench(server: embedded.EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What `pgbench -i` makes, and where libpq finds it."""
    databases.create(server, BENCH)
    where = ["-h", server.socket_dir, "-p", str(server.port), "-U", "perfkit", BENCH]
    subprocess.run([server.bin_dir / "pgbench", "-i", "-q", "-s", "5", *where], check=True, capture_output=True)
    file = tmp_path_factory.mktemp("services") / "services.conf"
    lines = [f"host={server.socket_dir}", f"port={server.port}", f"dbname={BENCH}", "user=perfkit"]
    file.write_text("\n".join(["[pgbench]", *lines, ""]))
    yield {"PGSERVICEFILE": str(file)}
    databases.drop(server, BENCH)


def here(server: embedded.EmbeddedServer, folder: Path) -> Path:
    """The example with this server where the usual one is allowed."""
    copy = Path(shutil.copytree(EXAMPLES / "pgbench", folder / "pgbench"))
    text = (copy / "perfkit.toml").read_text()
    assert "/var/run/postgresql:5432/bench" in text
    (copy / "perfkit.toml").write_text(text.replace("/var/run/postgresql:5432/bench", named(server)))
    return copy


def named(server: embedded.EmbeddedServer) -> str:
    return f"{server.socket_dir}:{server.port}/{BENCH}"


@pytest.fixture(scope="module")
def pgbench(
    server: embedded.EmbeddedServer, server_home: Path, bench: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    folder = tmp_path_factory.mktemp("pgbench")
    return reported(here(server, folder), folder / "reports", "--confirm", named(server), home=server_home, **bench)


def test_pgbench_is_refused_until_it_is_confirmed(
    server: embedded.EmbeddedServer, server_home: Path, bench: dict[str, str], tmp_path: Path
) -> None:
    for folder, said in ((EXAMPLES / "pgbench", "is not in 'allow'"), (here(server, tmp_path), "--confirm ")):
        reports = ("--reports", tmp_path / "reports")
        done = perfkit("report", "--config", folder / "perfkit.toml", *reports, home=server_home, **bench)
        assert (done.returncode, done.stdout) == (97, "")
        assert named(server) in done.stderr.splitlines()[-1] and said in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_pgbenchs_accounts_are_found_sooner_with_their_primary_key(pgbench: Bundle) -> None:
    found = analyse(pgbench)
    for scenario in ("alone", "five"):
        assert faster(found, scenario, "read_account") and faster(found, scenario, "update_account")
    assert decided(found)
    before, after = plans(found, "before"), plans(found, "after")
    for query in ("read_account", "update_account"):
        assert before[query] == "Seq Scan on pgbench_accounts"
        assert after[query] == "Index Scan using pgbench_accounts_pkey on pgbench_accounts"
    assert plans(found, "control") == before


@pytest.mark.slow
def test_what_pgbench_changes_is_changed_in_the_copy_alone(pgbench: Bundle, server: embedded.EmbeddedServer) -> None:
    assert "private copy" in pgbench.run.origin.way
    assert pgbench.run.database.rows["pgbench_accounts"] == 500_000
    outcomes = {outcome for round_ in pgbench.rounds() for outcome in round_.columns.outcome}
    assert outcomes == {"ok"}
    with server.connect(BENCH) as connection:
        changed = connection.execute(
            "SELECT (SELECT count(*) FROM pgbench_history) AS n, sum(abs(abalance)) AS sum FROM pgbench_accounts"
        ).fetchone()
        keys = connection.execute("SELECT FROM pg_constraint WHERE contype = 'p' AND conname LIKE 'pgbench%'")
        assert changed == {"n": 0, "sum": 0} and len(keys.fetchall()) == 3


def test_pgbenchs_draws_are_accounts_tellers_and_branches_that_are_there(
    server: embedded.EmbeddedServer, bench: dict[str, str]
) -> None:
    rows = databases.fetched(server, BENCH, EXAMPLES / "pgbench" / "draws.sql", 5000)
    for column, least, most in (("aid", 1, 500_000), ("tid", 1, 50), ("bid", 1, 5), ("delta", -5000, 5000)):
        drawn = [row[column] for row in rows]
        assert least <= min(drawn) < least + most * 0.01 + 2 and most * 0.98 - 1 < max(drawn) <= most


# The wholesaler: ten questions on data after the shape of TPC-H


@pytest.fixture(scope="module")
def wholesaler(server: embedded.EmbeddedServer) -> Iterator[Any]:
    """The smallest data, and a connection to it."""
    found = config.load(EXAMPLES / "tpch" / "perfkit.toml")
    assert found.database
    databases.create(server, TPCH)
    databases.prepare(server, TPCH, found.database.prepare, found.database.scales["small"])
    with server.connect(TPCH) as connection:
        connection.execute("ANALYZE")
        yield connection
    databases.drop(server, TPCH)


@pytest.fixture(scope="module")
def tables(wholesaler: Any) -> dict[str, pd.DataFrame]:
    names = ("region", "nation", "supplier", "customer", "part", "orders", "lineitem")
    found = {name: pd.DataFrame(wholesaler.execute(f"SELECT * FROM {name}").fetchall()) for name in names}
    for table in found.values():
        for column in table:
            if column.endswith("date"):
                table[column] = pd.to_datetime(table[column])
            elif not pd.api.types.is_string_dtype(table[column]):
                table[column] = table[column].astype(float)
    return found


def questions() -> tuple[dict[str, str], list[Any]]:
    found = config.load(EXAMPLES / "tpch" / "perfkit.toml")
    source = found.parameters["questions"]
    assert isinstance(source, Generator)
    return {query.name: query.file.read_text() for query in found.query}, selection.generated(source, "1/questions")


def test_the_wholesalers_data_is_such_as_a_table_that_grew_would_hold(tables: dict[str, pd.DataFrame]) -> None:
    orders, lines = tables["orders"], tables["lineitem"]
    assert len(orders) == 15_000 and 3.5 < len(lines) / len(orders) < 4.5
    assert orders.o_orderdate.is_monotonic_increasing
    every = lines.merge(orders, left_on="l_orderkey", right_on="o_orderkey")
    assert (every.o_orderdate < every.l_shipdate).all() and (every.l_shipdate < every.l_receiptdate).all()
    assert 0.1 < (every.l_commitdate < every.l_receiptdate).mean() < 0.5
    # what is due after the books were closed has not happened
    closed = pd.Timestamp("2024-06-30")
    assert ((every.l_linestatus == "O") == (every.l_shipdate > closed)).all()
    assert ((every.l_returnflag == "N") == (every.l_receiptdate > closed)).all()
    states = every.groupby("o_orderkey").agg(order=("o_orderstatus", "first"), lines=("l_linestatus", set))
    assert {(order, *sorted(lines)) for order, lines in zip(states.order, states.lines, strict=True)} == {
        ("F", "F"),
        ("O", "O"),
        ("P", "F", "O"),
    }
    price = every.groupby("o_orderkey").agg(lines=("l_extendedprice", "sum"), order=("o_totalprice", "first"))
    assert (price.lines - price.order).abs().max() < 0.01
    # a tenth of the customers gives more than a quarter of the orders, and some give none
    each = orders.o_custkey.value_counts()
    assert each.head(150).sum() > 0.25 * len(orders) and 0.8 * 1500 < len(each) < 1500


def test_every_question_uses_its_parameters_and_has_an_answer(wholesaler: Any) -> None:
    queries, rows = questions()
    assert len(queries) == 10
    used = set()
    for name, text in queries.items():
        own = set(re.findall(r"%\((\w+)\)s", text))
        assert own and own <= rows[0].keys(), name
        used |= own
        answered = [bool(wholesaler.execute(text, row).fetchall()) for row in rows[:40]]
        assert sum(answered) >= 0.8 * len(answered), name
    assert used == rows[0].keys()


@pytest.mark.parametrize("number", [0, 7])
def test_every_question_is_answered_as_the_same_asked_of_the_tables_in_another_way(
    wholesaler: Any, tables: dict[str, pd.DataFrame], number: int
) -> None:
    queries, rows = questions()
    given = rows[number]
    day = pd.Timestamp(given["day"])
    lines = tables["lineitem"].assign(net=lambda t: t.l_extendedprice * (1 - t.l_discount))
    every = lines.merge(tables["orders"], left_on="l_orderkey", right_on="o_orderkey")
    bought = every.merge(tables["customer"], left_on="o_custkey", right_on="c_custkey")
    late = lines.l_commitdate < lines.l_receiptdate

    def within(column: str, table: pd.DataFrame, **span: int) -> Any:
        return (table[column] >= day) & (table[column] < day + pd.DateOffset(**span))

    def asked(name: str) -> pd.DataFrame:
        answer = wholesaler.cursor(row_factory=dict_row).execute(queries[name], given).fetchall()
        return pd.DataFrame(answer)

    def same(name: str, column: str, expected: Any) -> None:
        got = asked(name)
        assert [*map(float, got[column])] == pytest.approx([*map(float, expected)]) if len(got) else not len(expected)

    states = lines[lines.l_shipdate <= day].groupby(["l_returnflag", "l_linestatus"])
    same("pricing_summary", "net", states.net.sum())
    same("pricing_summary", "lines", states.size())
    month = lines[within("l_shipdate", lines, months=1)]
    small = month[month.l_discount.between(0.0499, 0.0701) & (month.l_quantity < 24)]
    same("discount_gain", "given", [(small.l_extendedprice * small.l_discount).sum()])
    sold = month.merge(tables["part"], left_on="l_partkey", right_on="p_partkey")
    same("promotion_share", "share", [100 * sold[sold.p_type == "PROMO"].net.sum() / sold.net.sum()])
    waiting = bought[(bought.c_mktsegment == given["segment"]) & (bought.o_orderdate < day) & (bought.l_shipdate > day)]
    same("shipping_priority", "revenue", waiting.groupby("o_orderkey").net.sum().nlargest(10))
    quarter = tables["orders"][within("o_orderdate", tables["orders"], months=3)]
    quarter = quarter[quarter.o_orderkey.isin(lines[late].l_orderkey)]
    same("late_orders", "orders", quarter.groupby("o_orderpriority").size())
    returned = bought[within("o_orderdate", bought, months=3) & (bought.l_returnflag == "R")]
    same("returned_items", "lost", returned.groupby("c_custkey").net.sum().nlargest(20))
    hasty = every[
        every.l_shipmode.isin(["MAIL", "SHIP"])
        & (every.l_shipdate < every.l_commitdate)
        & (every.l_commitdate < every.l_receiptdate)
        & within("l_receiptdate", every, months=1)
    ]
    urgent = hasty.o_orderpriority.isin(["1-URGENT", "2-HIGH"])
    same("ship_modes", "urgent", urgent.groupby(hasty.l_shipmode).sum())
    same("ship_modes", "other", (~urgent).groupby(hasty.l_shipmode).sum())
    near = bought.merge(tables["supplier"], left_on="l_suppkey", right_on="s_suppkey")
    near = near[(near.c_nationkey == near.s_nationkey) & within("o_orderdate", near, years=1)]
    near = near.merge(tables["nation"], left_on="s_nationkey", right_on="n_nationkey")
    near = near.merge(tables["region"], left_on="n_regionkey", right_on="r_regionkey")
    near = near[near.r_name == given["region"]]
    same("local_suppliers", "revenue", near.groupby("n_name").net.sum().sort_values(ascending=False))
    own = every[every.o_custkey == given["customer"]]
    assert sorted(asked("customer_orders").get("o_orderkey", [])) == sorted(own.o_orderkey.unique())
    delivered = lines[lines.l_partkey == given["part"]].groupby("l_suppkey").l_quantity.sum()
    same("part_history", "quantity", delivered.sort_values(ascending=False))


@pytest.mark.slow
def test_the_wholesalers_report_says_which_questions_the_indexes_change(server_home: Path, tmp_path: Path) -> None:
    bundle = reported(EXAMPLES / "tpch", tmp_path, "--scale", "small", home=server_home)
    found = analyse(bundle)
    changed = ("part_history", "discount_gain", "promotion_share", "ship_modes")  # four times as fast and more
    assert all(faster(found, "alone", query) for query in changed)
    assert not faster(found, "alone", "pricing_summary")
    assert decided(found)
    after = plans(found, "after")
    assert "orders_custkey" in after["customer_orders"] and "lineitem_partkey" in after["part_history"]
    buffers = {use.arm: use.buffers for use in found.plans if use.query == "customer_orders"}
    assert buffers["after"] < 0.7 * buffers["before"]
    assert len(bundle.run.arms["after"].indexes) == 5
    page = (bundle.path / "report.html").read_text()
    assert all(name in page for name in ("lineitem_receiptdate", "orders_orderdate"))


# procrastinate: a library with tables, functions and triggers of its own, through its own API


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder as its reader has it after the command that the comment in it names."""
    folder = Path(shutil.copytree(EXAMPLES / "procrastinate", tmp_path_factory.mktemp("library") / "example"))
    assert not (folder / "schema.sql").exists()
    assert "python schema.py > schema.sql" in (folder / "perfkit.toml").read_text()
    with (folder / "schema.sql").open("wb") as file:
        subprocess.run([sys.executable, "schema.py"], cwd=folder, stdout=file, check=True)
    return folder


@pytest.fixture
def queue(server: embedded.EmbeddedServer, library: Path) -> Iterator[str]:
    """The library's schema and a few jobs; where the service finds them."""
    databases.create(server, JOBS)
    files = [library / "schema.sql", library / "jobs.sql"]
    databases.prepare(server, JOBS, files, {"jobs": 2000, "waiting": 200})
    yield server.conninfo(JOBS)
    databases.drop(server, JOBS)


def asked_for(base: str, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(f"{base}{path}", None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or "null")


def test_without_the_librarys_schema_the_missing_file_is_named(server_home: Path) -> None:
    done = perfkit("config", "show", EXAMPLES / "procrastinate" / "perfkit.toml", home=server_home)
    assert done.returncode == 2 and "schema.sql" in done.stderr and "expected: an existing file" in done.stderr


def test_the_queue_is_full_of_finished_jobs_with_the_events_that_the_library_would_have_noted(
    server: embedded.EmbeddedServer, queue: str
) -> None:
    with server.connect(JOBS) as connection:
        states = connection.execute(
            "SELECT status::text, count(*) AS n, count(*) FILTER (WHERE lock IS NOT NULL) AS locked, "
            "count(*) FILTER (WHERE scheduled_at > now()) AS later, count(DISTINCT queue_name) AS queues "
            "FROM procrastinate_jobs GROUP BY status"
        )
        found = {row["status"]: row for row in states}
        assert sum(row["n"] for row in found.values()) == 2000 and found["todo"]["n"] == 200
        assert found["succeeded"]["n"] > 1700 and {"failed", "cancelled"} < found.keys()
        assert found["todo"]["locked"] and 0 < found["todo"]["later"] < 100 and found["todo"]["queues"] == 3
        wrong = connection.execute(
            "SELECT j.id FROM procrastinate_jobs j LEFT JOIN procrastinate_events e ON e.job_id = j.id "
            "GROUP BY j.id HAVING NOT 'deferred' = ANY (array_agg(e.type::text)) "
            "OR (j.status <> 'todo' AND (array_agg(e.type::text ORDER BY e.at DESC))[1] <> j.status::text)"
        )
        assert wrong.fetchall() == []


@pytest.mark.parametrize("way", ["SIGTERM", "the end of stdin"])
def test_the_librarys_service_works_through_its_api_and_ends_when_it_is_told_or_left(
    library: Path, queue: str, way: str
) -> None:
    spec = Launched(command=("{python}", f"{library}/service.py", "--port", "{port}"))
    with Service("example", spec, {}, queue) as service:
        number = asked_for(service.base, "/jobs", {"queue": "mine", "task": "run", "number": 7})["id"]
        assert asked_for(service.base, f"/jobs/{number}") == {"status": "todo"}
        assert asked_for(service.base, "/queues/mine/fetch", {}) == {"id": number, "number": 7}
        assert asked_for(service.base, "/queues/mine/fetch", {}) is None
        assert asked_for(service.base, f"/jobs/{number}") == {"status": "doing"}
        asked_for(service.base, f"/jobs/{number}/finish", {})
        (counted,) = asked_for(service.base, "/queues/mine")
        assert (counted["name"], counted["jobs_count"], counted["succeeded"]) == ("mine", 1, 1)
        process = service._process
        assert process and process.stdin
        if way == "SIGTERM":
            process.terminate()
        else:
            process.stdin.close()
        assert process.wait(timeout=10) == 0


@pytest.mark.slow
def test_a_fetch_is_faster_with_the_librarys_index_on_priority_and_its_checks_pass(
    library: Path, server_home: Path, tmp_path: Path
) -> None:
    bundle = reported(library, tmp_path, home=server_home)
    found = analyse(bundle)
    assert faster(found, "one", "fetch") and faster(found, "five", "fetch")
    checks = [check for own in bundle.run.checks.values() for check in own]
    assert len(checks) == 4 and all(check.passed for check in checks), checks
    index = "procrastinate_jobs_priority_idx_v1"
    assert index in plans(found, "after")["next_job"] and index not in plans(found, "before")["next_job"]
    # The library's function, which cannot be explained from outside, reads what the explained query reads.
    assert all(use.verified for use in found.plans), found.plans
    outcomes = {outcome for round_ in bundle.rounds() for outcome in round_.columns.outcome}
    assert outcomes == {"ok"}
