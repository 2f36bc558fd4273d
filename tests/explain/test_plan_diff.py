"""What changed between two plans, in the words of somebody who looked at both."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import run_all

from perfkit.base.resources import CHECKOUT
from perfkit.explain.capture import ExplainSpec, capture
from perfkit.explain.comparison import ChangeKind, Diff, diff
from perfkit.explain.documents import read_documents
from perfkit.explain.plan import Plan, read_plan
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

TABLES = """
CREATE TABLE clinics AS SELECT n AS id, 'clinic ' || n AS name FROM generate_series(1, 300) n;
CREATE TABLE visits AS
SELECT n AS id, n % 300 + 1 AS clinic, n % 365 AS day, repeat('x', 60) AS note FROM generate_series(1, 30000) n;
ANALYZE;
"""
INDEX = "CREATE INDEX visits_day ON visits (day)"
JOIN = "SELECT c.name, v.note FROM visits v JOIN clinics c ON c.id = v.clinic WHERE v.day = 7 ORDER BY v.id"


@pytest.fixture(scope="module", params=["server", "server16"])
def server(request: pytest.FixtureRequest) -> EmbeddedServer:
    return request.getfixturevalue(request.param)


@pytest.fixture
def name(server: EmbeddedServer) -> Iterator[str]:
    databases.create(server, "diffed")
    with databases.connected(server, "diffed") as connection:
        run_all(connection, TABLES)
    yield "diffed"
    databases.drop(server, "diffed")


def changed(server: EmbeddedServer, name: str, sql: str, change: str, after: str = "", *, analyze: bool = True) -> Diff:
    """The plan of a statement before and after something was done to the database."""
    plans = []
    for text in (sql, after or sql):
        found = capture(lambda: server.connect(name), text, None, ExplainSpec(analyze=analyze))
        plans.append(found.plan)
        if text is sql and len(plans) == 1 and change:
            with databases.connected(server, name) as connection:
                run_all(connection, change.encode())
    return diff(*plans)


def titles(found: Diff, kind: ChangeKind) -> list[str]:
    nodes = [change.after or change.before for change in found.changes if change.kind is kind]
    return [node.title for node in nodes if node]


def test_an_index_that_is_used_is_said_in_one_line_with_pages(server: EmbeddedServer, name: str) -> None:
    found = changed(server, name, "SELECT * FROM visits WHERE id = 7", "CREATE INDEX visits_id ON visits (id)")
    before, after = (f"{plan.buffers:,.0f}" for plan in (found.before, found.after))
    assert found.sentence == f"Seq Scan on visits -> Index Scan using visits_id; {before} -> {after} buffers"
    assert found.evidence == "measured once"
    assert found.after.buffers < 5 < found.before.buffers


def test_bitmaps_are_named_by_their_indexes(server: EmbeddedServer, name: str) -> None:
    found = changed(server, name, "SELECT * FROM visits WHERE day = 7", INDEX)
    assert found.sentence.startswith("Seq Scan on visits -> Bitmap Heap Scan using visits_day; ")
    assert titles(found, ChangeKind.CHANGED) == ["Bitmap Heap Scan on visits"]
    assert titles(found, ChangeKind.ADDED) == ["Bitmap Index Scan on visits_day"]


def test_plans_that_were_only_estimated_say_so(server: EmbeddedServer, name: str) -> None:
    found = changed(server, name, "SELECT * FROM visits WHERE day = 7", INDEX, analyze=False)
    assert found.evidence == "estimated"
    assert found.sentence.endswith(" (estimated)") and "; cost " in found.sentence


@pytest.mark.parametrize("after", ["SELECT * FROM visits WHERE day = 8", "SELECT * FROM visits WHERE day = 7"])
def test_other_constants_are_the_same_plan(server: EmbeddedServer, name: str, after: str) -> None:
    found = changed(server, name, "SELECT * FROM visits WHERE day = 7", "", after)
    assert found.same and found.sentence.startswith("the same plan; ")
    assert {change.kind for change in found.changes} == {ChangeKind.SAME}


def test_another_condition_is_no_longer_the_same(server: EmbeddedServer, name: str) -> None:
    found = changed(server, name, "SELECT * FROM visits WHERE day = 7", "", "SELECT * FROM visits WHERE clinic = 7")
    assert not found.same and found.sentence.startswith("other conditions; ")


def test_what_stays_within_a_join_is_recognised_around_what_changed(server: EmbeddedServer, name: str) -> None:
    found = changed(server, name, JOIN, INDEX)
    assert "Seq Scan on visits -> Bitmap Heap Scan using visits_day" in found.sentence
    assert {"Sort", "Hash Join", "Hash", "Seq Scan on clinics c"} <= set(titles(found, ChangeKind.SAME))


def test_another_join_is_a_change_of_that_join(server: EmbeddedServer, name: str) -> None:
    sql = "SELECT count(*) FROM visits v JOIN clinics c ON c.id = v.clinic"
    found = changed(server, name, sql, f"ALTER DATABASE {name} SET enable_hashjoin = off")
    (join,) = [c for c in found.changes if c.before and c.before.kind == "Hash Join"]
    assert join.kind is ChangeKind.CHANGED and join.after and join.after.kind in ("Merge Join", "Nested Loop")
    assert f"Hash Join -> {join.after.name}" in found.sentence


def test_a_step_that_is_gone_is_said(server: EmbeddedServer, name: str) -> None:
    sql = "SELECT * FROM visits ORDER BY id"
    found = changed(server, name, sql, "", "SELECT * FROM visits")
    assert found.sentence.startswith("Sort removed; ")
    assert titles(found, ChangeKind.REMOVED) == ["Sort"] and titles(found, ChangeKind.MOVED) == []


def test_two_scans_of_one_table_are_kept_apart(server: EmbeddedServer, name: str) -> None:
    sql = "SELECT a.id FROM visits a JOIN visits b ON b.clinic = a.id WHERE a.day = 7 AND b.note = 'y'"
    found = changed(server, name, sql, INDEX)
    for change in found.changes:
        if change.before and change.after and change.before.relation:
            assert change.before.alias == change.after.alias
    assert titles(found, ChangeKind.CHANGED).count("Bitmap Heap Scan on visits a") == 1
    assert "Seq Scan on visits b" in titles(found, ChangeKind.SAME)


def test_a_node_under_another_parent_has_moved() -> None:
    scans = [{"Node Type": "Seq Scan", "Relation Name": t, "Alias": t, "Parent Relationship": "Outer"} for t in "ab"]
    wrap = {"Node Type": "Unique", "Parent Relationship": "Inner"}
    before = {"Node Type": "Append", "Plans": [scans[0], {**wrap, "Plans": [scans[1]]}]}
    after = {"Node Type": "Append", "Plans": [scans[1], {**wrap, "Plans": [scans[0]]}]}
    found = diff(*(read_plan({"Plan": plan}) for plan in (before, after)))
    assert titles(found, ChangeKind.MOVED) == ["Seq Scan on b", "Seq Scan on a"]


names = st.sampled_from(["Seq Scan", "Index Scan", "Hash Join", "Sort", "Hash", "Limit", "Nested Loop"])
nodes = st.recursive(
    st.fixed_dictionaries({"Node Type": names, "Relation Name": st.sampled_from(["a", "b", "c"])}),
    lambda inner: st.fixed_dictionaries({"Node Type": names, "Plans": st.lists(inner, max_size=3)}),
    max_leaves=8,
)


@given(nodes, nodes)
def test_every_node_of_both_plans_is_accounted_for_once(one: dict[str, object], other: dict[str, object]) -> None:
    before, after = read_plan({"Plan": one}), read_plan({"Plan": other})
    found = diff(before, after)
    assert Counter(c.before for c in found.changes if c.before) == Counter(before.nodes)
    assert Counter(c.after for c in found.changes if c.after) == Counter(after.nodes)
    assert "\n" not in found.sentence


@given(nodes)
def test_a_plan_beside_itself_has_not_changed(plan: dict[str, object]) -> None:
    before, after = read_plan({"Plan": plan}), read_plan(json.loads(json.dumps({"Plan": plan})))
    found = diff(before, after)
    assert found.same and {change.kind for change in found.changes} == {ChangeKind.SAME}


def corpus() -> list[Plan]:
    files = sorted((CHECKOUT / "tests" / "plans").rglob("*.json"))
    return [read_plan(document) for file in files for document in read_documents(file.read_text())]


def test_captured_plans_can_all_be_compared() -> None:
    plans = corpus()
    for before, after in pairwise(plans):
        assert diff(before, after).sentence
    assert all(diff(plan, plan).same for plan in plans)
