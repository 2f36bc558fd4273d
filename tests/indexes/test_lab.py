"""The index lab: a real one on a small shop whose answer is known, and the choosing, the claims, the statements."""

import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scripts import run_all
from synthetic import make_run

from perfkit.analysis.claims import JudgedClaim
from perfkit.analysis.report import Run
from perfkit.analysis.run_analysis import estimate
from perfkit.app import api
from perfkit.base.errors import BundleError, UsageError
from perfkit.base.judgement import Outcome
from perfkit.base.resources import CHECKOUT
from perfkit.base.stats import Interval, Ratio
from perfkit.config import Scenario
from perfkit.indexes import designs, lab_results
from perfkit.indexes.designs import MeasuredSets, ablation, choose, latencies
from perfkit.indexes.lab_results import read, sentence
from perfkit.indexes.lab_tables import IndexLab
from perfkit.indexes.writes import Writes, design_writes
from perfkit.load.schedule import MIN_TURNS, turns
from perfkit.postgres import databases, embedded
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.index_sets import read_set
from perfkit.runs.records import Bundle

SHOP = """
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id int NOT NULL REFERENCES customers,
    placed_at timestamptz NOT NULL,
    state text NOT NULL,
    note text NOT NULL
);
INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 2000) n;
INSERT INTO orders (customer_id, placed_at, state, note)
SELECT n * 7 % 2000 + 1, timestamptz '2026-01-01' + n * interval '1 minute', (ARRAY['open', 'paid', 'sent'])[n % 3 + 1],
       n || repeat('x', 100)
FROM generate_series(1, 60000) n;
"""
# The first serves both queries, the second only one of them, the third what nobody asks, the fourth what a key does.
SET = """
CREATE INDEX orders_customer_placed ON orders (customer_id, placed_at);
CREATE INDEX orders_customer ON orders (customer_id);
CREATE INDEX orders_state ON orders (state);
CREATE INDEX customers_id ON customers (id);
"""
CONFIG = """
title = "A shop"
margin = 0.2
[database]
prepare = ["shop.sql"]
[parameters.customers]
rows = 500
columns = { customer = { integer = [1, 2000] } }
[[query]]
name = "of_customer"
file = "of_customer.sql"
parameters = "customers"
[[query]]
name = "latest"
file = "latest.sql"
parameters = "customers"
[[scenario]]
name = "alone"
label = "one connection"
send = ["of_customer", "latest"]
[[arm]]
name = "before"
role = "before"
[[arm]]
name = "after"
role = "after"
indexes = "indexes.sql"
[[claim]]
text = "all are built within an hour"
measure = "build_total_s"
high = 3600
[[claim]]
text = "a customer's orders take a hundredth"
measure = "latency_saved"
query = "of_customer"
low = 0.2
[[claim]]
text = "inserts become faster"
measure = "insert_slowdown"
high = -0.5
"""
# What the notebook shows of a lab.
SHOWN = ("answer", "verdicts", "picture", "statements", "confirmation", "weaknesses", "costs", "scans", "details")
PERFKIT = [sys.executable, "-P", "-m", "perfkit"]
INTERRUPT = (signal.SIGINT, signal.default_int_handler)  # a background job's children would ignore it
QUERIES = {
    "of_customer.sql": "SELECT sum(length(note)) FROM orders WHERE customer_id = %(customer)s",
    "latest.sql": "SELECT id FROM orders WHERE customer_id = %(customer)s ORDER BY placed_at DESC LIMIT 1",
}


def shop(folder: Path, **texts: str) -> Path:
    """The shop's configuration in a folder; `texts` replace its files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"perfkit.toml": CONFIG, "shop.sql": SHOP, "indexes.sql": SET, **QUERIES}
    for name, text in {**files, **{name.replace("_sql", ".sql"): text for name, text in texts.items()}}.items():
        (folder / name).write_text(text)
    return folder / "perfkit.toml"


@dataclass(frozen=True)
class Held:
    """What the server saw that the lab ran on: transactions, and its databases when the lab was over."""

    lab: IndexLab
    analysed: list[str]  # the folders of the bundles that were analysed, each time
    transactions: int
    databases: list[str]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    """A lab of the shop's four indexes, measured once for all tests here; its server is held to be asked afterwards."""
    folder = tmp_path_factory.mktemp("lab")
    with embedded.start(18) as running, databases.connected(running, user="postgres") as connection:
        first = connection.execute("SELECT pg_current_xact_id()::text::bigint AS n").fetchone()
        analysed: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            counting = lambda bundle, *arms: analysed.append(bundle.path.name) or estimate(bundle, *arms)  # noqa: E731
            patch.setattr(lab_results, "estimate", counting)
            lab = api.ablate(profile="quick", config=shop(folder / "shop"), reports=folder / "reports")
            _ = [repr(getattr(lab, name)) for name in SHOWN]
        last = connection.execute("SELECT pg_current_xact_id()::text::bigint AS n").fetchone()
        left = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'pk%'").fetchall()
    assert first and last
    return Held(lab, analysed, last["n"] - first["n"], [row["datname"] for row in left])


@pytest.fixture
def found(held: Held) -> IndexLab:
    return held.lab


@pytest.mark.slow
class TestALabOfFourIndexes:
    def test_keeps_the_one_that_both_queries_need(self, found: IndexLab) -> None:
        assert [worth.name for worth in found.lab.kept] == ["orders_customer_placed"]
        assert sentence(found.lab).startswith("Keep 1 of 4 indexes (orders_customer_placed). The other 3 add ")

    def test_shows_what_each_does_alone_with_intervals_and_verdicts(self, found: IndexLab) -> None:
        by_name = {worth.name: worth for worth in found.lab.index_values}
        assert {c.item for c in by_name["orders_customer_placed"].faster} == {"of_customer", "latest"}
        assert {c.item for c in by_name["orders_customer"].faster} == {"of_customer", "latest"}
        for name in ("orders_state", "customers_id"):
            assert by_name[name].faster == [] and by_name[name].missed == []
        for worth in by_name.values():
            assert [c.item for c in worth.alone] == ["of_customer", "latest"] == [c.item for c in worth.without]
            assert all(c.ratio and c.ratio.lo < c.ratio.hi and c.ratio.pairs == 6 for c in worth.alone)

    def test_confirms_the_choice_by_rounds_of_another_run_with_other_requests(self, found: IndexLab) -> None:
        last = found.lab.last
        first = found.lab.ablation.bundle
        assert last and last.bundle.run.parameters.seed != first.run.parameters.seed
        assert [c.item for c in found.lab.confirmed] == ["of_customer", "latest"]
        assert [c.item for c in found.lab.whole] == ["of_customer", "latest"]

    def test_measures_inserts_updates_and_deletes_and_counts_what_they_leave(self, found: IndexLab) -> None:
        worth = next(worth for worth in found.lab.index_values if worth.name == "orders_customer_placed")
        kinds = {(cost.write.kind, cost.write.column) for cost in worth.writes}
        assert {("insert", ""), ("delete", ""), ("update", "placed_at"), ("update", "note")} <= kinds
        insert, moved, other = worth.write("insert"), worth.write("update"), worth.write("update", own=False)
        assert insert and insert.wal and insert.wal[1] > insert.wal[0] > 50  # an index entry on top of the row
        assert moved and moved.hot and moved.hot[0] > 0.5 > 0 == moved.hot[1]  # the index must hear of every one
        assert other and other.hot and other.hot[1] > 0.5
        assert worth.churn and worth.churn.after > worth.churn.before == worth.bytes
        assert worth.overhead and 0.1 < worth.overhead < 0.3  # (8 + 4 + 8) of (27 + 8 + 4 + 8 + 4 + 104)

    def test_says_how_often_each_was_used_and_what_the_catalogue_says(self, found: IndexLab) -> None:
        used = found.lab.scans
        assert used["orders_customer_placed"] > 100 and used.get("orders_state", 0) == 0
        text = repr(found.scans)
        assert "orders_customer is covered by orders_customer_placed" in text
        assert "customers_id is a duplicate of customers_pkey" in text

    def test_holds_the_claims_against_what_it_measured(self, found: IndexLab) -> None:
        lines = [line for line in repr(found.claims).splitlines() if "held" in line or "did not" in line]
        assert [word in line for word, line in zip(("✓", "✓", "✕"), lines[1:], strict=True)] == [True, True, True]

    def test_gives_the_set_to_keep_and_what_removes_the_others_as_sql_that_runs(
        self, found: IndexLab, server: EmbeddedServer, tmp_path: Path
    ) -> None:
        found.render()
        databases.create(server, "lab_sql")
        (tmp_path / "shop.sql").write_text(SHOP + SET)
        databases.prepare(server, "lab_sql", [tmp_path / "shop.sql"], {})
        with databases.connected(server, "lab_sql") as connection:
            for name in ("remove.sql", "keep.sql"):
                for statement in (found.lab.folder / name).read_text().split(";\n"):
                    run_all(connection, statement.encode())
            rows = connection.execute(
                "SELECT indexname FROM pg_indexes WHERE indexname !~ '_pkey' ORDER BY 1"
            ).fetchall()
        databases.drop(server, "lab_sql")
        assert "orders_customer_placed" in [row["indexname"] for row in rows]
        assert not {"orders_customer", "orders_state", "customers_id"} & {row["indexname"] for row in rows}

    def test_is_one_page_that_requests_nothing_and_comes_out_the_same_again(self, found: IndexLab) -> None:
        page = found.render().read_text()
        assert "Content-Security-Policy" in page and "src=" not in page.replace("data:", "")
        assert all(worth.name in page for worth in found.lab.index_values)
        assert found.render().read_text() == page

    def test_its_summary_is_taken_into_a_report(self, found: IndexLab, tmp_path: Path) -> None:
        shutil.copytree(found.lab.folder / "confirmation-1", tmp_path / "run")
        run = api.run(bundle=tmp_path / "run", lab=found.lab.folder)
        assert sentence(found.lab) in repr(run.index_lab)
        assert sentence(found.lab) in repr(Run(run.bundle).index_lab)  # it is kept in the bundle
        (claim,) = run.bundle.run.lab.claims
        assert (claim["measure"], claim["text"]) == ("insert_slowdown", "inserts become faster") and claim[
            "value"
        ] > -0.5

    def test_analyses_each_of_its_bundles_once(self, held: Held) -> None:
        tried = [confirmation.name for confirmation in held.lab.lab.record.confirmations]
        assert held.analysed == ["ablation", *tried]

    def test_leaves_no_database_on_the_server(self, held: Held) -> None:
        assert held.transactions > 1000  # it was this server that all the inserts, updates and deletes went to
        assert held.databases == []

    @pytest.mark.parametrize("name", ["lab.json", "ablation/run.json", "{last}/run.json"])
    def test_a_damaged_file_is_one_line(self, found: IndexLab, tmp_path: Path, name: str) -> None:
        assert found.lab.last
        name = name.format(last=found.lab.last.bundle.path.name)
        shutil.copytree(found.lab.folder, tmp_path / "lab")
        (tmp_path / "lab" / name).write_text('{"format": 1')
        with pytest.raises(BundleError, match="damaged") as caught:
            read(tmp_path / "lab")
        assert name.split("/")[-1] in str(caught.value) and "\n" not in str(caught.value)

    def test_an_unfinished_one_says_so_and_shows_what_there_is(self, found: IndexLab, tmp_path: Path) -> None:
        shutil.copytree(found.lab.folder, tmp_path / "lab")
        for confirmation in (tmp_path / "lab").glob("confirmation-*"):
            shutil.rmtree(confirmation)
        record = json.loads((tmp_path / "lab" / "lab.json").read_text())
        record |= {"status": "interrupted", "message": "stopped by the user", "confirmations": []}
        (tmp_path / "lab" / "lab.json").write_text(json.dumps(record))
        lab = IndexLab(tmp_path / "lab")
        assert "Incomplete." in repr(lab.answer)
        assert "The lab is interrupted: stopped by the user." in repr(lab.weaknesses)
        assert "orders_state" in repr(lab.verdicts) and "remove" not in repr(lab.verdicts)
        assert lab.render().exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lab that an earlier version measured."""
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(CHECKOUT / "tests" / "stored" / "lab.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


class TestALabOfAnEarlierVersion:
    def test_opens_and_analyses_each_of_its_bundles_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        analysed: list[str] = []
        counting = lambda bundle, *arms: analysed.append(bundle.path.name) or estimate(bundle, *arms)  # noqa: E731
        monkeypatch.setattr(lab_results, "estimate", counting)
        lab = IndexLab(folder)
        assert all(repr(getattr(lab, name)) for name in (*SHOWN, "claims", "reproduce", "summary"))
        assert sorted(analysed) == ["ablation", "confirmation-1"]

    def test_has_data_frames_of_numbers_with_their_units(self, folder: Path) -> None:
        lab = IndexLab(folder)
        frame = lab.indexes.frame.set_index("index")
        assert frame.size_bytes["idx_organizations_id"] == 16384 and frame.insert_ratio.dtype == float
        assert {"insert_ratio_lo", "insert_ratio_hi"} <= set(frame)
        counted = lab.costs.parts[1].frame  # type: ignore[attr-defined]
        assert counted.wal_to_build_bytes.min() > 0 and counted.hot_share_after.max() <= 1

    def test_its_summary_is_kept_by_a_run(self, folder: Path, tmp_path: Path) -> None:
        bundle = make_run(tmp_path / "run")
        bundle.update(lab=IndexLab(folder).summary)
        stored = Bundle.open(bundle.path).run.lab
        assert stored and [claim["measure"] for claim in stored.claims] == ["insert_slowdown"]
        claims = Run(Bundle.open(bundle.path)).claims.text()
        assert "no risk: they do not affect data" in claims

    def test_draws_into_any_axes(self, folder: Path) -> None:
        ax = Figure().add_subplot()
        assert IndexLab(folder).plot.gain_cost(ax=ax) is ax
        assert {text.get_text() for text in ax.texts} == {w.name for w in IndexLab(folder).lab.index_values}

    def test_with_a_wrong_value_is_one_line_that_names_the_file_and_the_key(self, folder: Path, tmp_path: Path) -> None:
        record = json.loads((folder / "lab.json").read_text()) | {"margin": "wide"}
        (tmp_path / "lab.json").write_text(json.dumps(record))
        with pytest.raises(BundleError, match=r"lab.json: damaged \(margin: .*expected what perfkit wrote") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


class TestTheSearch:
    """What is chosen from ratios to all indexes together."""

    @staticmethod
    def measured(
        alone: dict[str, tuple[float, ...]], none: tuple[float, ...], sizes: dict[str, int], *missed: str
    ) -> MeasuredSets:
        queries = [f"q{n}" for n in range(len(none))]
        pairs = {name: dict(zip(queries, own, strict=True)) for name, own in alone.items()}
        return MeasuredSets(pairs, dict(zip(queries, none, strict=True)), sizes, frozenset(missed))

    def test_one_index_that_serves_all_is_preferred_to_two_that_share_the_work(self) -> None:
        found = self.measured({"a": (1, 9), "b": (9, 1), "ab": (1, 1)}, (9, 9), {"a": 1, "b": 1, "ab": 3})
        assert choose(found, 0.05) == ("ab",)

    def test_of_two_that_do_the_same_the_smaller_is_kept(self) -> None:
        found = self.measured({"big": (1.0,), "small": (1.02,)}, (50,), {"big": 9, "small": 2})
        assert choose(found, 0.05) == ("small",)

    def test_what_is_missed_where_it_alone_is_left_out_is_kept_whatever_it_does_alone(self) -> None:
        found = self.measured({"a": (3,), "half": (9,)}, (9,), {"a": 1, "half": 1}, "half")
        assert choose(found, 0.05) == ("a", "half")

    def test_chance_keeps_nothing(self) -> None:
        found = self.measured({"a": (0.95, 1.02), "b": (1.04, 0.97)}, (1.0, 1.0), {"a": 1, "b": 1})
        assert choose(found, 0.05) == ()

    def test_slower_is_what_seems_to_be_by_more_than_the_margin_and_by_more_than_the_client_itself_moved(self) -> None:
        def ms(value: float, lo: float, hi: float) -> Interval:
            return Interval(value, lo, hi, n=600, rounds=6)

        def by(value: float, lo: float, hi: float) -> Ratio:
            return Ratio(value, lo, hi, p=0.01, pairs=6, sd_log=0.1)

        floor, before = ms(0.04, 0.03, 0.06), ms(0.1, 0.09, 0.11)
        assert designs.worse(by(1.5, 1.2, 1.9), 0.2, before, ms(0.15, 0.1, 0.2), floor)
        assert not designs.worse(by(1.1, 1.05, 1.3), 0.2, before, ms(0.11, 0.1, 0.2), floor)  # not by the margin
        assert not designs.worse(by(1.5, 0.9, 2.5), 0.2, before, ms(0.15, 0.1, 0.2), floor)  # not known to be slower
        assert not designs.worse(None, 0.2, before, before, floor)
        near = ms(0.03, 0.03, 0.06)  # a connection on another processor: twice as long, and the floor moved as far
        assert not designs.worse(by(1.9, 1.5, 2.4), 0.2, near, ms(0.057, 0.03, 0.06), floor)

    def test_a_budget_of_bytes_is_kept_to(self) -> None:
        found = self.measured({"best": (1,), "good": (2,)}, (50,), {"best": 30, "good": 5})
        assert choose(found, 0.05, budget=10) == ("good",)

    @given(st.data())
    def test_no_query_is_left_that_an_index_of_the_set_could_make_faster_by_more_than_chance(self, data: Any) -> None:
        ratio = st.floats(0.5, 100)
        queries = data.draw(st.integers(1, 4))
        names = [f"i{n}" for n in range(data.draw(st.integers(1, 6)))]
        alone = {name: tuple(data.draw(ratio) for _ in range(queries)) for name in names}
        sizes = {name: data.draw(st.integers(1, 100)) for name in names}
        found = self.measured(alone, tuple(data.draw(ratio) for _ in range(queries)), sizes)
        kept = choose(found, 0.05)
        now = latencies(found, kept)
        slack = (1 + designs.SLACK * 0.05) * 1.0001
        for name in names:
            assert all(now[q] <= found.alone[name][q] * slack for q in now)
        assert set(kept) <= set(names)


class TestTurns:
    """Where arms take turns at every request."""

    def test_every_arm_sends_every_number_once_in_its_order(self) -> None:
        order = turns(level(requests=20, warm=2), {"a": 0.1, "b": 0.2}, random.Random(1))
        assert [n for name, n in order if name == "a"] == list(range(22)) == [n for name, n in order if name == "b"]
        assert [name for name, _ in order[:2]] in (["a", "b"], ["b", "a"])
        assert {tuple(name for name, _ in order[i : i + 2]) for i in range(0, 44, 2)} == {("a", "b"), ("b", "a")}

    def test_an_arm_that_takes_long_sits_out_evenly(self) -> None:
        order = turns(
            level(requests=100, warm=1, seconds=1), {"fast": 1.0, "slow": 100.0, "slower": 9000.0}, random.Random(1)
        )
        numbers = {name: [n - 1 for own, n in order if own == name and n] for name in ("fast", "slow", "slower")}
        assert numbers["fast"] == list(range(100))
        assert numbers["slow"] == list(range(9, 100, 10))
        assert len(numbers["slower"]) == MIN_TURNS

    def test_arms_of_about_the_same_pace_are_compared_on_the_same_requests(self) -> None:
        order = turns(level(requests=100, warm=0, seconds=0.1), {"a": 2.0, "b": 7.0, "floor": 0.0}, random.Random(1))
        by_arm = {arm: [n for own, n in order if own == arm] for arm in ("a", "b", "floor")}
        assert by_arm["a"] == by_arm["b"] and len(by_arm["a"]) == 50


def level(**given_: Any) -> Scenario:
    return Scenario(name="s", label="s", send=("q",), alternate=True, **given_)


@pytest.mark.parametrize(
    ("low", "high", "value", "interval", "judgement"),
    [
        (None, 10, 3, None, Outcome.HOLDS),
        (None, 10, 13, None, Outcome.BROKEN),
        (0.6, 0.7, 0.65, (0.62, 0.68), Outcome.HOLDS),
        (0.6, 0.7, 0.65, (0.5, 0.68), Outcome.UNPROVEN),
        (0.6, 0.7, 0.98, (0.97, 0.99), Outcome.BROKEN),
        (0.6, None, None, None, None),
    ],
)
def test_a_claim_holds_where_the_whole_interval_lies_within_it(
    low: float | None,
    high: float | None,
    value: float | None,
    interval: tuple[float, float] | None,
    judgement: Outcome | None,
) -> None:
    assert JudgedClaim("claimed", low, high, "share", "", value, interval).judgement is judgement


TABLES = {
    "composite key of references": (
        "CREATE TABLE a (id int PRIMARY KEY); "
        "CREATE TABLE t (a int REFERENCES a, b int, note text, PRIMARY KEY (a, b));"
        "INSERT INTO a SELECT generate_series(1, 50);"
        "INSERT INTO t SELECT n % 50 + 1, n, 'note ' || n FROM generate_series(1, 500) n",
        "CREATE INDEX i ON t (note)",
        {"insert", "delete", "update of note"},
    ),
    "names that need quotes, a percent sign, an enum and a generated column": (
        """CREATE TYPE "Mood" AS ENUM ('sad', 'glad'); CREATE TABLE "T %s" (
            "Key" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "a%(b)s" "Mood" NOT NULL,
            "select" int NOT NULL, twice int GENERATED ALWAYS AS ("select" * 2) STORED);
        INSERT INTO "T %s" ("a%(b)s", "select") SELECT (ARRAY['sad', 'glad']::"Mood"[])[n % 2 + 1], n
        FROM generate_series(1, 300) n""",
        'CREATE INDEX i ON "T %s" ("a%(b)s")',
        {"insert", "delete", "update of a%(b)s", "update of select"},
    ),
    "a unique text beside an identity": (
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text UNIQUE NOT NULL, "
        "age int NOT NULL);"
        "INSERT INTO t (email, age) SELECT n || '@example.org', n % 90 FROM generate_series(1, 300) n",
        "CREATE INDEX i ON t (lower(email), age)",
        {"insert", "delete", "update of age"},
    ),
    "no key": (
        "CREATE TABLE t (a int NOT NULL, b int NOT NULL); INSERT INTO t SELECT n, n FROM generate_series(1, 300) n",
        "CREATE INDEX i ON t (a)",
        {"insert"},
    ),
    "a unique date": (
        "CREATE TABLE t (day date PRIMARY KEY, n int NOT NULL);"
        "INSERT INTO t SELECT date '2026-01-01' + n, n FROM generate_series(1, 300) n",
        "CREATE INDEX i ON t (n)",
        {"update of n"},
    ),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("version", ["server", "server16"])
def test_the_statements_that_change_a_tables_rows_fit_it(
    request: pytest.FixtureRequest, version: str, case: str, tmp_path: Path
) -> None:
    running: EmbeddedServer = request.getfixturevalue(version)
    schema, index, expected = TABLES[case]
    found = _designed(running, schema, index, tmp_path)
    assert {write.title for write in found.writes} == expected
    if len(expected) < 3:
        assert found.lacking


def test_a_statement_that_the_server_refuses_is_said_and_left_out(server: EmbeddedServer, tmp_path: Path) -> None:
    schema = TABLES["no key"][0].replace("b int NOT NULL", "b int NOT NULL, PRIMARY KEY (b), CHECK (a = b)")
    found = _designed(server, schema, "CREATE INDEX i ON t (a)", tmp_path)
    assert "violates check constraint" in " ".join(found.lacking)
    assert {write.kind for write in found.writes}.isdisjoint({"update"})


def _designed(running: EmbeddedServer, schema: str, index: str, folder: Path) -> Writes:
    (folder / "schema.sql").write_text(f"{schema}; ANALYZE")
    (folder / "indexes.sql").write_text(index)
    databases.create(running, "writes_test")
    try:
        databases.prepare(running, "writes_test", [folder / "schema.sql"], {})
        return design_writes(running, "writes_test", read_set(folder / "indexes.sql").indexes)
    finally:
        databases.drop(running, "writes_test")


def test_the_sets_are_none_all_each_alone_and_all_but_one(tmp_path: Path) -> None:
    def sets(count: int) -> dict[str, tuple[str, ...]]:
        path = tmp_path / "indexes.sql"
        path.write_text("".join(f"CREATE INDEX i{n} ON t (c{n});\n" for n in range(1, count + 1)))
        return {arm.name: arm.indexes for arm in ablation(read_set(path))}

    assert list(sets(1)) == ["none", "all"]
    assert list(sets(2)) == ["none", "all", "only-1", "only-2"]
    assert sets(3)["without-2"] == ("i1", "i3") and len(sets(3)) == 8


class TestBadInput:
    def test_a_workload_in_place_cannot_be_looked_at(self, tmp_path: Path) -> None:
        text = CONFIG.replace('prepare = ["shop.sql"]', 'target = "host=127.0.0.1 dbname=shop"\nway = "in-place"')
        path = shop(tmp_path / "shop")
        path.write_text('allow = ["127.0.0.1:5432/shop"]\n' + text)
        control = '[[arm]]\nname = "control"\nrole = "control"\n'
        path.write_text(path.read_text().replace("[[claim]]", f"{control}[[claim]]", 1))
        with pytest.raises(UsageError, match="side by side; expected another 'way'"):
            api.ablate(config=path, reports=tmp_path / "reports")

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"margin": 5.0}, "margin = 5; expected a share over 0 and under 1, as 0.05"),
            ({"budget_mb": -1.0}, "budget = -1 MB; expected more than 0"),
            ({"indexes": "ANALYZE orders"}, "indexes.sql: no index; expected CREATE INDEX ..."),
            ({"profile": "fast"}, "profile 'fast' is unknown; expected one of: quick, standard, thorough"),
        ],
    )
    def test_a_wrong_value_is_one_line_and_leaves_no_folder(self, tmp_path: Path, given: Any, said: str) -> None:
        with pytest.raises(UsageError, match="expected") as caught:
            api.ablate(config=shop(tmp_path / "shop"), reports=tmp_path / "reports", **given)
        assert said in str(caught.value) and "\n" not in str(caught.value)
        assert not list((tmp_path / "reports").iterdir())

    def test_what_is_no_index_is_named_with_its_line_and_nothing_is_left(self, tmp_path: Path) -> None:
        path = shop(tmp_path / "shop", indexes_sql="CREATE INDEX a ON orders (state);\nDROP TABLE orders;\n")
        with pytest.raises(UsageError, match=r"indexes.sql:2: .*DROP TABLE orders.*; expected CREATE INDEX"):
            api.ablate(config=path, reports=tmp_path / "reports")
        assert not list((tmp_path / "reports").iterdir())

    def test_an_index_on_a_missing_column_is_the_servers_words_with_file_and_line(
        self, tmp_path: Path, server_home: Path
    ) -> None:
        path = shop(tmp_path / "shop", indexes_sql="CREATE INDEX a ON orders (nothing);\n")
        with pytest.raises(UsageError, match=r'column "nothing" does not exist'):
            api.ablate(profile="quick", config=path, reports=tmp_path / "reports")


@pytest.mark.slow
def test_ctrl_c_ends_a_lab_within_seconds_readable_and_with_nothing_left(tmp_path: Path, server_home: Path) -> None:
    path = shop(tmp_path / "shop")
    command = [*PERFKIT, "indexes", "ablate", "--config", str(path), "--profile", "quick"]
    environment = {**os.environ, "PERFKIT_HOME": str(server_home), "TMPDIR": str(tmp_path)}
    command += ["--reports", str(tmp_path / "reports")]
    start = {
        "env": environment,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": lambda: signal.signal(*INTERRUPT),
    }
    with subprocess.Popen(command, **start) as running:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("reports/*/ablation/rounds/*.json")):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 105 and "Traceback" not in said
    folder = next((tmp_path / "reports").iterdir())
    lab = IndexLab(folder)
    assert lab.lab.record.status == "interrupted"
    assert "interrupted" in repr(lab.weaknesses)


def test_the_notebooks_parameters_are_the_calls() -> None:
    declared = papermill.inspect_notebook(str(CHECKOUT / "notebooks" / "index_lab.ipynb"))
    taken = inspect.signature(api.ablate).parameters
    assert set(declared) <= set(taken)
    assert {"bundle", "config", "db", "indexes", "margin", "budget_mb"} <= set(declared)
    defaults = {name: json.loads(own["default"]) for name, own in declared.items()}
    assert all(taken[name].default in (value, ()) for name, value in defaults.items())


@pytest.mark.process
def test_a_dry_run_prints_every_set_and_measures_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PERFKIT, "indexes", "ablate", "--config", str(shop(tmp_path / "shop")), "--dry-run"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.startswith("-- none\n-- all\nCREATE INDEX orders_customer_placed ON orders")
    assert "-- without-4" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop"]
