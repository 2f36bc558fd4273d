"""Rollbacks: what counts as before, and one that is rehearsed on a server of perfkit's own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import QUERY, SET, TABLES
from scripts import run_all

from perfkit import config
from perfkit.analysis.results import Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.app import api
from perfkit.base.errors import BundleError, UsageError
from perfkit.base.judgement import Outcome, Verdict
from perfkit.base.stats import Ratio
from perfkit.config import Arm
from perfkit.explain.plan import Plan, read_plan
from perfkit.indexes.writes import design_writes
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.index_builds import IndexOutcome
from perfkit.postgres.index_sets import IndexStatement, IndexStatus, read_set
from perfkit.release.report import RolledBack
from perfkit.release.report import rollback as shown
from perfkit.release.rollback import (
    WORDS,
    Rollback,
    RollbackItem,
    RollbackPlan,
    index_items,
    latency_item,
    plan_item,
    round_trip,
    size_items,
)
from perfkit.runs.records import Bundle

# What counts as before


def scan(**node: Any) -> Plan:
    return read_plan([{"Plan": {"Node Type": "Seq Scan", "Relation Name": "orders", "Total Cost": 9.0, **node}}])


BY_INDEX = {"Node Type": "Index Scan", "Index Name": "orders_customer", "Index Cond": "(customer = 7)"}


def test_a_plan_is_as_before_whatever_its_constants_and_costs() -> None:
    before, after = scan(Filter="(customer = 7)"), scan(Filter="(customer = 8)", **{"Total Cost": 12.0})
    item = plan_item(RollbackPlan("mine", after, before=before), {"orders_customer"})
    assert (item.outcome, item.text) == (Outcome.HOLDS, "mine: the same plan as before.")


def test_a_plan_that_still_names_an_index_of_the_set_is_not_as_before() -> None:
    item = plan_item(RollbackPlan("mine", scan(**BY_INDEX), before=scan(**BY_INDEX)), {"orders_customer"})
    assert (item.outcome, item.text) == (Outcome.BROKEN, "mine: the plan still uses orders_customer.")


def test_a_plan_that_differs_for_another_reason_says_that_the_set_is_not_in_it() -> None:
    item = plan_item(RollbackPlan("mine", scan(**BY_INDEX), before=scan()), {"another"})
    assert item.outcome is Outcome.BROKEN
    assert item.text.startswith("mine: Seq Scan on orders -> Index Scan using orders_customer; ")
    assert item.text.endswith("; the plan uses no index of the set: statistics, data or settings differ.")


def test_plans_that_could_not_be_made_alike_settle_nothing() -> None:
    item = plan_item(
        RollbackPlan("mine", scan(**BY_INDEX), before=scan(), unlike="planned without values"), {"another"}
    )
    assert item.outcome is Outcome.UNPROVEN and item.text.endswith("; planned without values, which may be the cause.")


def test_without_a_plan_from_before_a_plan_is_shown_and_not_judged() -> None:
    item = plan_item(RollbackPlan("mine", scan(), with_set=scan(**BY_INDEX)), {"orders_customer"})
    assert item.outcome is None
    assert item.text.startswith("mine: Index Scan using orders_customer on orders -> Seq Scan; ")
    assert item.text.endswith("; the plan uses no index of the set; the plan before them is not known.")


def compared(verdict: Verdict, lo: float, hi: float, metric: str = "p50", needed: int | None = 40) -> RollbackItem:
    found = Ratio(1.02, lo, hi, 0.5, 6, 0.1)
    comparison = Comparison("before", "rolled-back", "ten", "book", metric, found, 1.0, 1.0, 0.05, verdict, needed)
    return latency_item(comparison, 6)


@pytest.mark.parametrize(
    ("verdict", "lo", "hi", "word", "said"),
    [
        (Verdict.EQUIVALENT, 0.98, 1.04, Outcome.HOLDS, "[0.980, 1.04]: equivalent within 5 %."),
        (Verdict.FASTER, 0.8, 0.9, Outcome.HOLDS, ": faster."),
        (Verdict.SLOWER, 1.1, 1.3, Outcome.BROKEN, "[1.10, 1.30]: slower."),
        (Verdict.INVALID, 0.9, 1.1, Outcome.UNPROVEN, "too few healthy rounds to compare."),
        (
            Verdict.INCONCLUSIVE,
            0.9,
            1.12,
            Outcome.HOLDS,
            "at most 12 % slower; about 40 blocks instead of 6 would show whether it is equivalent.",
        ),
        (
            Verdict.INCONCLUSIVE,
            0.7,
            1.5,
            Outcome.UNPROVEN,
            "inconclusive, up to 50 % slower is possible; about 40 blocks in",
        ),
    ],
)
def test_a_latency_is_as_before_where_its_interval_excludes_a_slowdown(
    verdict: Verdict, lo: float, hi: float, word: Outcome, said: str
) -> None:
    item = compared(verdict, lo, hi)
    assert item.outcome is word and said in item.text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_tail_that_says_nothing_is_shown_and_decides_nothing() -> None:
    assert compared(Verdict.INCONCLUSIVE, 0.7, 1.5, "p95").outcome is None
    assert "more than 1,000 blocks instead of 6" in compared(Verdict.INCONCLUSIVE, 0.7, 1.5, needed=None).text


def test_a_comparison_without_rounds_is_not_settled() -> None:
    found = Comparison("before", "rolled-back", "ten", "book", "p50", None, 1.0, 1.0, 0.05, Verdict.INVALID, None)
    assert latency_item(found, 6).outcome is Outcome.UNPROVEN


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_sizes_are_as_before_within_a_tenth_or_eight_pages(before: int, after: int) -> None:
    [item] = size_items({"t": {"bytes": before}}, {"t": {"bytes": after}})
    near = abs(after - before) <= max(before / 10, 8 * 8192)
    assert item.outcome is (Outcome.HOLDS if near else Outcome.BROKEN)


def test_a_table_that_is_gone_is_not_as_before() -> None:
    [item] = size_items({"t": {"bytes": 10**6, "index_bytes": 0}}, {})
    assert (item.outcome, item.text) == (Outcome.BROKEN, "t: the table 0 B, before 977 kB; its indexes 0 B as before.")


def statement(folder: Path, text: str = "CREATE INDEX a ON t (b)") -> IndexStatement:
    path = folder / "one.sql"
    path.write_text(text)
    return read_set(path).indexes[0]


def test_every_index_that_is_left_is_named_with_why(tmp_path: Path) -> None:
    found = IndexStatus(statement(tmp_path), "missing")
    states = [
        found,
        replace(found, state="other", undroppable="a exists already as b; expected c"),
        replace(found, state="invalid"),
        replace(found, state="impossible", undroppable="cannot be judged: no right"),
    ]
    items = list(index_items(states, [IndexOutcome("a", "dropped", bytes=8192, seconds=0.0123)]))
    assert [(item.outcome, item.text) for item in items] == [
        (Outcome.HOLDS, "a: dropped in 12.3 ms, 8 kB freed."),
        (Outcome.BROKEN, "a still exists: a exists already as b; expected c."),
        (Outcome.BROKEN, "a still exists and is invalid."),
        (Outcome.UNPROVEN, "a: cannot be judged: no right."),
    ]


outcomes = st.sampled_from([*WORDS, None])
items = st.lists(
    st.builds(RollbackItem, group=st.just("plans"), name=st.text(), outcome=outcomes, text=st.text()), max_size=6
)


@given(items)
def test_one_thing_that_is_not_as_before_outranks_what_is_not_settled_and_that_the_rest(
    found: list[RollbackItem],
) -> None:
    result = Rollback(where="here", indexes=("a",), items=tuple(found))
    outcomes = {item.outcome for item in found}
    worse = [bad for bad in (Outcome.BROKEN, Outcome.UNPROVEN) if bad in outcomes]
    assert result.outcome is (worse[0] if worse else Outcome.HOLDS)
    assert Rollback.model_validate(json.loads(json.dumps(result.content()))) == result


def test_what_a_server_says_is_inert_in_the_page_and_in_the_terminal() -> None:
    evil = "\x1b[2J<script>alert(1)</script>"
    item = RollbackItem(group="indexes", name=evil, outcome=Outcome.BROKEN, text=evil)
    block = shown(Rollback(where=evil, indexes=(evil,), items=(item,), unseen=(evil,)))
    assert "<script" not in block.html() and "\x1b" not in block.html()
    assert "\x1b" not in repr(block) and "not as before" in repr(block)


# The arm


def test_an_arm_that_is_rolled_back_needs_indexes_and_a_server_that_perfkit_starts() -> None:
    booking = config.load()
    bad = Arm(name="gone", role="after", rolled_back=True)
    with pytest.raises(ValueError, match="arm 'gone': rolled_back; expected indexes, on a server that perfkit starts"):
        config.Config.model_validate({**booking.model_dump(), "arm": [*booking.arm, bad]})


# Rehearsed


@pytest.fixture
def home(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    return server_home


def shop(folder: Path, meanwhile: str = "SELECT 1", tables: str = TABLES) -> Path:
    """A configuration of two tables; `meanwhile` is done in every arm, in one while the indexes are there."""
    (folder / "tables.sql").write_text(tables)
    (folder / "set.sql").write_text(SET)
    (folder / "query.sql").write_text(QUERY)
    (folder / "meanwhile.sql").write_text(meanwhile)
    path = folder / "perfkit.toml"
    path.write_text(
        'title = "Shop"\n[database]\nprepare = ["tables.sql"]\n[[query]]\nname = "mine"\nfile = "query.sql"\n'
        '[[scenario]]\nname = "alone"\nlabel = "one connection"\nsend = ["mine"]\nrequests = 20\nwarm = 1\n'
        '[[arm]]\nname = "before"\nrole = "before"\nmeanwhile = ["meanwhile.sql"]\n'
        '[[arm]]\nname = "after"\nrole = "after"\nindexes = "set.sql"\n'
    )
    return path


def texts(found: Rollback, group: str) -> dict[str, RollbackItem]:
    return {item.name: item for item in found.items if item.group == group}


def test_a_rehearsal_proves_it_by_catalogue_plans_sizes_and_rounds(home: Path, tmp_path: Path) -> None:
    done = api.rollback(config=shop(tmp_path), reports=tmp_path / "reports")
    found = done.found
    assert found.indexes == ("orders_customer", "others_total")
    for group in ("indexes", "plans", "sizes"):
        assert {item.outcome for item in texts(found, group).values()} == {Outcome.HOLDS}, texts(found, group)
    assert [item.text for item in texts(found, "plans").values()] == ["mine: the same plan as before."]
    assert "alone: mine, p50" in texts(found, "latency")
    assert any("5 % of the rows changed and changed back in total of orders" in line for line in found.unseen)
    run = Bundle.open(done.folder).run
    assert run.rollback["word"] == found.word and run.arms["rolled-back"].indexes == []
    assert run.command.startswith("perfkit rollback --config ")
    assert run.arms["before"].table_bytes == run.arms["rolled-back"].table_bytes
    page = done.render().read_text()
    assert "Rolled back: is everything as before?" in page and "<script" not in page
    assert f"<title>{found.word}: Rollback of set: Shop</title>" in page


REPLACED = """
DO $$ BEGIN
    IF to_regclass('orders_customer') IS NOT NULL THEN
        DROP INDEX others_total;
        CREATE INDEX others_total ON others (total DESC);
        UPDATE others SET total = total + 1;
    END IF;
END $$
"""


@pytest.mark.slow
def test_a_rehearsal_finds_an_index_that_somebody_defined_otherwise_and_a_table_that_grew(
    home: Path, tmp_path: Path
) -> None:
    found = api.rollback(config=shop(tmp_path, REPLACED), reports=tmp_path / "reports").found
    assert found.outcome is Outcome.BROKEN
    left = texts(found, "indexes")["others_total"]
    assert left.outcome is Outcome.BROKEN
    assert left.text.startswith(
        "others_total still exists: others_total exists already as CREATE INDEX others_total ON "
    )
    assert texts(found, "indexes")["orders_customer"].outcome is Outcome.HOLDS
    assert texts(found, "sizes")["others"].outcome is Outcome.BROKEN
    assert texts(found, "sizes")["orders"].outcome is Outcome.HOLDS


@pytest.mark.slow
def test_a_rehearsal_finds_what_the_indexes_left_in_others_where_updates_had_room_without_them(
    home: Path, tmp_path: Path
) -> None:
    roomy = TABLES.replace("total int NOT NULL)", "total int NOT NULL) WITH (fillfactor = 50)")
    path = shop(tmp_path, "UPDATE orders SET customer = customer + 1", roomy)
    found = api.rollback(config=path, reports=tmp_path / "reports").found
    assert found.outcome is Outcome.BROKEN
    grown = texts(found, "sizes")["orders"]
    assert grown.outcome is Outcome.BROKEN and "its indexes " in grown.text, grown
    assert grown.text.endswith("row changes bloated the indexes; REINDEX TABLE CONCURRENTLY removes that.")
    assert {item.outcome for item in texts(found, "indexes").values()} == {Outcome.HOLDS}


def test_rows_that_are_changed_and_changed_back_are_other_versions_of_the_same(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    databases.create(server, "churn_test")
    (tmp_path / "tables.sql").write_text(TABLES)
    (tmp_path / "set.sql").write_text(SET)
    databases.prepare(server, "churn_test", [tmp_path / "tables.sql"], {})
    writes = design_writes(server, "churn_test", read_set(tmp_path / "set.sql").indexes)
    updates = [write for write in writes.writes if write.kind == "update"]
    with server.connect("churn_test") as connection:

        def look() -> tuple[Any, Any]:
            said = connection.execute(
                "SELECT md5(string_agg(o::text, ' ' ORDER BY id)) AS said FROM orders o"
            ).fetchone()
            places = connection.execute("SELECT id, ctid::text FROM orders").fetchall()
            return said, {row["id"]: row["ctid"] for row in places}

        said, places = look()
        for number, write in enumerate(updates):
            run_all(connection, round_trip(write, number))
        after, moved = look()
    databases.drop(server, "churn_test")
    assert after == said and len(updates) >= 3
    assert 1500 < sum(places[row] != moved[row] for row in places) < 2500  # two columns, 5 % each


@pytest.mark.slow
def test_the_booking_systems_seven_indexes_leave_nothing_behind(home: Path, tmp_path: Path) -> None:
    done = api.rollback(scale="seed", reports=tmp_path)
    found = done.found
    assert len(texts(found, "indexes")) == 7 and len(texts(found, "plans")) == 4 and len(texts(found, "sizes")) == 3
    assert {item.outcome for item in found.items if item.group != "latency"} == {Outcome.HOLDS}
    assert len(texts(found, "latency")) >= 9
    assert analyse(Bundle.open(done.folder)).errors == ()


def test_what_cannot_be_rehearsed_is_said_and_leaves_no_folder(home: Path, tmp_path: Path) -> None:
    path = shop(tmp_path)
    path.write_text(path.read_text().replace('indexes = "set.sql"\n', 'settings = { work_mem = "1MB" }\n'))
    with pytest.raises(UsageError, match="no arm with 'indexes'"):
        api.rollback(config=path, reports=tmp_path / "reports")
    assert list((tmp_path / "reports").iterdir()) == []


def test_a_folder_without_a_rollback_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"rollback\.json: no such file; expected the folder of a rollback"):
        RolledBack(tmp_path)
    (tmp_path / "rollback.json").write_text('{"format": 1, "items": [{}]}')
    with pytest.raises(BundleError, match="damaged"):
        RolledBack(tmp_path)
