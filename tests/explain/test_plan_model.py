"""The plan model against plans of real servers: nothing counted twice, nothing lost, names as the server says them."""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit.base import bundle
from perfkit.base.errors import PlanError
from perfkit.explain import documents
from perfkit.explain.comparison import fingerprint, in_words, indexes_under, scans
from perfkit.explain.findings.model import cut_short
from perfkit.explain.plan import COUNTERS, Node, Plan, read_plan
from perfkit.postgres import embedded

GATHERS = ("Gather", "Gather Merge")
SERVERS = ["18", "16", pytest.param("system", marks=pytest.mark.system)]


@dataclass(frozen=True)
class Live:
    """The whole corpus captured anew on one server, and the pages of its tables."""

    captured: Mapping[str, corpus.Captured]
    pages: Mapping[str, int]
    connect: corpus.Connect

    def __getitem__(self, name: str) -> Plan:
        return read_plan(self.captured[name].document)

    @property
    def plans(self) -> Mapping[str, Plan]:
        return {name: self[name] for name in self.captured}

    def explain(self, sql: str, options: str = "ANALYZE, BUFFERS", **settings: str) -> Plan:
        case = corpus.Case("", sql, settings, options=options)
        with self.connect() as connection:
            return read_plan(json.loads(corpus.explained(connection, case, 0, "JSON")))


@pytest.fixture(scope="module", params=SERVERS)
def live(request: pytest.FixtureRequest, server_home: Path) -> Iterator[Live]:
    if request.param == "system":
        with corpus.system_cluster() as (_, connect):
            yield gathered(connect, corpus.VERSION, system=True)
        return
    running: embedded.EmbeddedServer = request.getfixturevalue("server" if request.param == "18" else "server16")
    with corpus.prepared(running, "plan_model") as connect:
        yield gathered(connect, int(request.param))


def gathered(connect: corpus.Connect, version: int, *, system: bool = False) -> Live:
    found = {each.case.name: each for each in corpus.capture(connect, version, system=system)}
    with connect() as connection:
        rows = connection.execute("SELECT relname AS name, relpages AS pages FROM pg_class WHERE relkind = 'r'")
        pages = {row["name"]: row["pages"] for row in rows} if not system else dict(rows)
    return Live(found, pages, connect)


@pytest.fixture(scope="module")
def files() -> Mapping[str, Plan]:
    found = corpus.committed()
    return {f"{path.parent.name}/{path.stem}": read_plan(bundle.loads(path.read_text())) for path in found}


def node(plan: Plan, title: str, number: int = 0) -> Node:
    """The node of a title, the first of several."""
    return [each for each in plan.nodes if each.title == title][number]


def by_title(plan: Plan) -> dict[str, float]:
    """What each node is charged, in pages, where it is charged anything."""
    return {each.title: each.own_pages for each in plan.nodes if each.own_pages}


def raw_ms(each: Node) -> float:
    return each.value("Actual Total Time") * each.loops / each.processes


def under_gather(each: Node) -> bool:
    return any(above.kind in GATHERS for above in each.above())


def counted_wrongly(plan: Plan) -> list[str]:
    """What is wrong with the counts of blocks."""
    wrong = [
        f"{key} of {each.title} is {each.own[key]}"
        for key in COUNTERS
        for each in plan.nodes
        if each.own.get(key, 0) < 0
    ]
    sums = {key: sum(each.own.get(key, 0) for each in plan.nodes) for key in COUNTERS}
    return wrong + [
        f"{key} sum to {found}"
        for key, found in sums.items()
        if found != plan.root.value(key) + plan.outside.get(key, 0)
    ]


def timed_wrongly(plan: Plan) -> list[str]:
    """What is wrong with the times, rounding aside."""
    if not plan.timed:
        return [] if all(each.exclusive_ms is None for each in plan.nodes) else ["times without timing"]
    wrong = [f"{each.title} took {each.exclusive_ms} ms" for each in plan.nodes if (each.exclusive_ms or 0) < -1e-9]
    whole = (plan.root.inclusive_ms or 0) + plan.outside_ms
    total = sum(each.exclusive_ms or 0 for each in plan.nodes)
    return wrong + ([f"times sum to {total}, not {whole}"] if abs(total - whole) > 1e-6 + whole * 1e-9 else [])


def adjusted(plan: Plan) -> list[str]:
    """Nodes whose time was changed by more than the server's rounding explains.

    Workers go on while the leader does something else, so that what is below a Gather may exceed it.
    """
    return [
        f"{each.title}: {raw_ms(each):.4f} ms became {each.inclusive_ms:.4f}"
        for each in plan.nodes
        if plan.timed
        and not under_gather(each)
        and abs((each.inclusive_ms or 0) - raw_ms(each)) > each.rounding_ms + 1e-6
    ]


# every plan


def test_the_committed_corpus_has_a_file_of_every_case_that_is_not_only_captured_anew() -> None:
    names = {path.stem for path in corpus.committed()}
    assert names == {case.name for case in corpus.CASES if not case.live}
    assert sum(path.stat().st_size for path in corpus.PLANS.rglob("*")) < 750_000


def test_the_corpus_has_every_node_type_of_the_executor(files: Mapping[str, Plan]) -> None:
    expected = """
        Aggregate; Append; Bitmap Heap Scan; Bitmap Index Scan; BitmapAnd; BitmapOr; CTE Scan; Foreign Scan;
        Function Scan; Gather; Gather Merge; Group; Hash; Hash Join; Incremental Sort; Index Only Scan; Index Scan;
        Limit; LockRows; Materialize; Memoize; Merge Append; Merge Join; ModifyTable; Named Tuplestore Scan;
        Nested Loop; ProjectSet; Recursive Union; Result; Sample Scan; Seq Scan; SetOp; Sort; Subquery Scan;
        Table Function Scan; Tid Range Scan; Tid Scan; Unique; Values Scan; WindowAgg; WorkTable Scan
    """
    found = {each.kind for plan in files.values() for each in plan.nodes}
    assert found == {name.strip() for name in expected.split(";")}
    joins = {each.join_type for plan in files.values() for each in plan.nodes} - {""}
    assert joins == {"Inner", "Left", "Right", "Full", "Semi", "Anti", "Right Anti", "Right Semi"}


def test_every_committed_plan_adds_up(files: Mapping[str, Plan]) -> None:
    wrong = {name: counted_wrongly(plan) + timed_wrongly(plan) + adjusted(plan) for name, plan in files.items()}
    assert {name: what for name, what in wrong.items() if what} == {}


def test_every_live_plan_adds_up(live: Live) -> None:
    wrong = {name: counted_wrongly(plan) + timed_wrongly(plan) + adjusted(plan) for name, plan in live.plans.items()}
    assert {name: what for name, what in wrong.items() if what} == {}


def test_nodes_are_named_as_the_servers_own_text_names_them(live: Live) -> None:
    line = re.compile(r"^ *(?:->  )?(\S[^\n]*?)  \((?:cost|actual|never)", re.MULTILINE)
    compared = 0
    for name, captured in live.captured.items():
        if captured.case.options == "COSTS OFF":
            continue
        said, nodes = line.findall(captured.text), live[name].nodes
        assert len(said) == len(nodes), name
        for text, each in zip(said, nodes, strict=True):
            bare = re.sub(r'"((?:[^"]|"")*)"', lambda m: m[1].replace('""', '"'), text)
            schema = each.schema
            assert each.title == (bare.replace(f" on {schema}.", " on ", 1) if schema else bare), name
            compared += 1
    assert compared > 500


def test_a_sequential_scan_is_charged_its_table_once_for_each_loop_and_nothing_else(live: Live) -> None:
    checked = 0
    for name, plan in live.plans.items():
        for each in plan.nodes:
            gather = next((above for above in each.above() if above.kind in GATHERS), None)
            size = live.pages.get(each.relation, 0)
            written = any(other.kind == "ModifyTable" for other in plan.nodes)
            if each.kind != "Seq Scan" or not each.executed or cut_short(each) or written or not plan.buffers:
                continue
            scanned = gather.loops if gather and each.raw["Parallel Aware"] else each.loops
            assert each.own_pages == size * scanned, (name, each.number, each.title)
            checked += 1
    assert checked > 100


def test_nodes_that_only_pass_rows_on_are_charged_no_page(live: Live) -> None:
    passing = {"CTE Scan", "Result", "Limit", "Append", "Merge Append", "Hash", "Materialize", "Subquery Scan"}
    passing |= {"Values Scan", "WorkTable Scan", "Recursive Union", "Unique", "BitmapAnd", "BitmapOr", "ProjectSet"}
    charged = {
        f"{name}: {each.title}": each.own_pages
        for name, plan in live.plans.items()
        for each in plan.nodes
        if each.kind in passing and each.own_pages and not under_gather(each)
    }
    assert charged == {}


# known answers


def test_an_initplans_pages_are_not_those_of_the_scan_that_asks_for_its_value(live: Live) -> None:
    pages = live.pages
    plan = live["initplan"]
    heap, index = (each for each in plan.nodes if each.kind in ("Bitmap Heap Scan", "Bitmap Index Scan"))
    assert plan.root.pages == pages["clinics"] + heap.own_pages + index.own_pages
    assert heap.own_pages == heap.exact_pages
    assert by_title(live["initplan_output"]) == {
        "Seq Scan on visits": pages["visits"],
        "Seq Scan on clinics": pages["clinics"],
    }


def test_twelve_initplans_are_told_apart_by_their_whole_names(live: Live) -> None:
    for name in ("initplan_twelve", "initplan_twelve_below"):
        plan = live[name]
        inner = [each for each in plan.nodes if each.relationship == "InitPlan"]
        assert len(inner) == 12
        assert all(each.pages > 0 and each.own_pages == each.pages for each in inner)


def test_an_initplan_that_nobody_asks_for_is_never_executed(live: Live) -> None:
    plan = live["initplan_never_asked"]
    initplan = next(each for each in plan.nodes if each.relationship == "InitPlan")
    assert not initplan.executed and initplan.exclusive_ms == 0 and not initplan.own
    assert "clinics" not in in_words(plan)


def test_an_initplan_of_workers_is_charged_to_the_gather_that_hands_its_value_to_them(live: Live) -> None:
    plan = live["initplan_gather"]
    scan = node(plan, "Parallel Seq Scan on visits")
    gather = next(above for above in scan.above() if above.kind == "Gather")
    assert gather.own_pages == 0
    assert scan.own_pages == live.pages["visits"]
    assert gather.pages == live.pages["visits"] + live.pages["clinics"]


def test_an_initplan_by_which_partitions_are_pruned_is_charged_to_the_append(live: Live) -> None:
    plan = live["append_pruned_later"]
    assert [each.executed for each in plan.root.children if each.relationship == "Member"] == [False, True, False]
    scan = next(each for each in plan.root.children if each.executed and each.relationship == "Member")
    assert (plan.root.own_pages, scan.pages) == (0, sum(each.own_pages for each in scan.below()))


def test_a_name_in_a_constant_is_no_reference(live: Live) -> None:
    plan = live["initplan_said_in_text"]
    assert node(plan, "Seq Scan on clinics").own_pages == live.pages["clinics"]
    assert counted_wrongly(plan) == []
    odd = live["hostile_initplan"]
    assert all(each.own_pages >= 0 for each in odd.nodes) and odd.root.own_pages > 0


def test_a_cte_is_charged_once_however_often_it_is_read(live: Live) -> None:
    plan = live["cte_twice"]
    assert [each.kind for each in plan.nodes].count("CTE Scan") == 2
    assert by_title(plan) == {"Seq Scan on visits": live.pages["visits"]}


def test_a_cte_of_the_same_name_is_that_of_the_inner_statement(live: Live) -> None:
    plan = live["cte_shadowed"]
    assert by_title(plan) == {
        "Seq Scan on visits": live.pages["visits"],
        "Seq Scan on clinics": live.pages["clinics"],
    }


def test_a_cte_that_nobody_reads_costs_nothing(live: Live) -> None:
    plan = live["cte_unread"]
    assert not [each for each in plan.nodes if each.relation == "visits" and (each.executed or each.own_pages)]


def test_a_cte_that_writes_and_is_not_read_is_executed_outside_of_the_root(live: Live) -> None:
    plan = live["cte_update_unread"]
    update = node(plan, "Update on stock")
    assert plan.outside_ms == pytest.approx(update.inclusive_ms)
    assert plan.buffers == plan.root.pages + update.pages
    assert plan.root.own_pages == plan.root.pages > 0
    assert plan.execution_ms >= (plan.root.inclusive_ms or 0) + plan.outside_ms


def test_a_cte_that_writes_and_is_read_to_its_end_is_charged_to_its_reader(live: Live) -> None:
    plan = live["cte_insert_read"]
    assert (plan.outside_ms, plan.outside) == (0, {})
    assert node(plan, "CTE Scan on w").own_pages == 0


def test_workers_of_a_cte_that_is_not_read_to_its_end_are_waited_for_by_the_node_that_lists_it(live: Live) -> None:
    plan = live["cte_workers_stopped"]
    gather = node(plan, "Gather")
    assert plan.root.own_pages == 0 and node(plan, "CTE Scan on w").own_pages == 0
    assert gather.inclusive_ms == pytest.approx(raw_ms(gather))  # not cut down to what its reader saw of it


def test_a_workers_time_is_divided_by_the_processes_that_ran(live: Live) -> None:
    for name, leader in {"gather": 1, "gather_leader_off": 0, "gather_not_launched": 1, "gather_merge": 1}.items():
        gather = next(each for each in live[name].nodes if each.kind in GATHERS)
        below = gather.children[0]
        assert below.loops <= gather.workers_launched + leader, name
        assert below.processes == max(below.loops, 1), name
        assert below.inclusive_ms == pytest.approx(below.value("Actual Total Time"), abs=0.05), name


def test_a_gather_that_is_executed_again_divides_all_its_loops(live: Live) -> None:
    plan = live["gather_rescanned"]
    gather = node(plan, "Gather")
    assert gather.loops == 3
    assert gather.children[0].processes == gather.children[0].loops / 3 <= 3
    assert node(plan, "Parallel Seq Scan on visits").own_pages == 3 * live.pages["visits"]


def test_without_workers_nothing_is_divided(live: Live) -> None:
    plan = live["gather_not_launched"]
    assert {each.processes for each in plan.nodes} == {1.0}
    assert node(plan, "Gather").workers_planned == 2


def test_a_subplan_is_charged_to_the_node_that_lists_it_for_all_its_loops(live: Live) -> None:
    plan = live["subplan_output"]
    below = plan.root.children[0]
    assert (below.relationship, below.loops) == ("SubPlan", 60)
    assert plan.root.own_pages == live.pages["clinics"]
    assert plan.root.pages == live.pages["clinics"] + sum(each.own_pages for each in below.below())


def test_a_memoized_node_keeps_its_time_though_the_cache_above_it_rounds_to_less(live: Live) -> None:
    plan = live["memoize"]
    memoize = next(each for each in plan.nodes if each.kind == "Memoize")
    assert memoize.loops > 500 and memoize.children[0].loops == 50
    assert (memoize.inclusive_ms or 0) >= (memoize.children[0].inclusive_ms or 0) - 1e-9
    assert adjusted(plan) == []


# estimates


def test_an_estimate_for_one_process_is_compared_with_the_rows_of_all(live: Live) -> None:
    for name in ("gather", "gather_leader_off", "gather_not_launched"):
        gather, scan = node(live[name], "Gather"), node(live[name], "Parallel Seq Scan on visits")
        assert scan.partial and not gather.partial
        assert scan.rows == gather.rows
        assert scan.estimated == pytest.approx(gather.estimated, rel=0.02), name
    planned = live["planned_workers"]
    assert node(planned, "Parallel Seq Scan on visits").estimated == pytest.approx(6000, rel=0.01)


def test_what_every_worker_does_by_itself_is_not_partial(live: Live) -> None:
    plan = live["parallel_hash_shared_not"]
    assert not node(plan, "Seq Scan on clinics b").partial
    assert node(plan, "Parallel Seq Scan on visits a").partial
    assert node(plan, "Seq Scan on clinics b").estimated == 60 * node(plan, "Seq Scan on clinics b").loops


def test_exact_estimates_are_no_misestimates(live: Live) -> None:
    titles = {"Seq Scan on visits", "Seq Scan on clinics", "Parallel Seq Scan on visits"}
    for name in ("aggregate_plain", "hash_join", "partial_aggregate", "nested_loop", "cte_once", "materialize"):
        for each in live[name].nodes:
            if each.title in titles:
                assert 0.9 <= each.misestimate <= 1.1, (name, each.title)


def test_bitmaps_that_are_combined_have_no_rows_and_so_no_misestimate(live: Live) -> None:
    found = [
        each
        for name in ("bitmap_and", "bitmap_or")
        for each in live[name].nodes
        if each.kind in ("BitmapAnd", "BitmapOr")
    ]
    assert len(found) == 2
    assert {each.misestimate for each in found} == {1.0}


@pytest.mark.parametrize(
    ("raw", "times"),
    [
        ({"Plan Rows": 10, "Actual Rows": 100, "Actual Loops": 1}, 10),
        ({"Plan Rows": 100, "Actual Rows": 10.0, "Actual Loops": 1}, 0.1),
        ({"Plan Rows": 1, "Actual Rows": 0, "Actual Loops": 1}, 1),  # the planner never expects less
        ({"Plan Rows": 1, "Actual Rows": 0.02, "Actual Loops": 500}, 1),
        ({"Plan Rows": 4, "Actual Rows": 0, "Actual Loops": 500}, 0.25),
        ({"Plan Rows": 7, "Actual Rows": 0, "Actual Loops": 0}, 1),  # never executed
        ({"Plan Rows": 7}, 1),
    ],
)
def test_how_far_an_estimate_is_off(raw: dict[str, Any], times: float) -> None:
    assert read_plan({"Plan": {"Node Type": "Seq Scan", **raw}}).root.misestimate == pytest.approx(times)


@pytest.mark.parametrize(
    ("name", "relation", "short"),
    [
        ("index_scan_backward", "visits", True),  # LIMIT
        ("sort_top", "visits", False),  # LIMIT, but a sort reads everything first
        ("nested_semi", "visits", True),  # the first match is enough
        ("nested_semi", "clinics", False),
        ("hash_anti", "visits", False),
        ("hash_anti", "clinics", False),
        ("initplan_exists", "visits", True),
        ("cte_stopped", "visits", True),  # its reader stops
        ("cte_once", "visits", False),
        ("cte_twice", "visits", False),
        ("window_run_condition", "visits", True),
        ("subplan_materialized", "clinics", False),
        ("seq_scan", "visits", False),
        ("initplan_output", "visits", True),  # a subquery that may stop at its second row; its aggregate reads all
    ],
)
def test_a_node_is_cut_short_where_something_above_may_stop_asking(
    live: Live, name: str, relation: str, short: bool
) -> None:
    found = next(each for each in live[name].nodes if each.relation == relation and each.kind.endswith("Scan"))
    aggregated = any(above.kind == "Aggregate" for above in found.above())
    assert cut_short(found) == (short and not aggregated)


def test_the_outer_side_of_a_hash_join_is_cut_short_by_an_empty_hash(live: Live) -> None:
    off = {"enable_nestloop": "off", "enable_mergejoin": "off", "enable_indexscan": "off", "enable_bitmapscan": "off"}
    plan = live.explain("SELECT * FROM visits v JOIN clinics c ON c.id = v.clinic WHERE c.name = 'none'", **off)
    outer = node(plan, "Seq Scan on visits v")
    assert outer.rows < 100 and cut_short(outer)
    full = live.explain("SELECT * FROM visits v JOIN clinics c ON c.id = v.clinic WHERE c.name = 'clinic 7'", **off)
    assert not cut_short(node(full, "Seq Scan on visits v"))


def test_an_inner_statements_reader_of_the_same_name_does_not_go_round_in_circles(live: Live) -> None:
    sql = (
        "WITH w AS MATERIALIZED (WITH w AS MATERIALIZED (SELECT id FROM visits) SELECT id FROM w WHERE id > 3)"
        " SELECT id FROM w LIMIT 2"
    )
    assert [cut_short(each) for each in live.explain(sql).nodes if each.kind == "Seq Scan"] == [True]


# the rest of the document


def test_nodes_that_a_setting_forbade_are_told_in_both_spellings(live: Live) -> None:
    assert [each.title for each in live["disabled"].nodes if each.disabled] == ["Seq Scan on sparse"]
    below = [each for each in live["disabled_below"].nodes if each.disabled]
    assert {each.relation for each in below} == {"sparse", "clinics"} and len(below) == 2
    assert not [each for name in ("seq_scan", "hash_join", "gather") for each in live[name].nodes if each.disabled]
    assert live["disabled"].settings["enable_seqscan"] == "off"


def test_triggers_are_told_with_their_time(live: Live) -> None:
    names = [trigger.name for trigger in live["insert_triggers"].triggers]
    assert names == ["halved", "looked"]
    cascade = live["delete_cascade"].triggers
    assert [trigger.constraint for trigger in cascade] == ["children_parent_fkey"]
    assert all(trigger.ms > 0 and trigger.calls == 5 for trigger in cascade)


def test_a_plan_that_was_not_analysed_has_estimates_alone(live: Live) -> None:
    plan = live["planned"]
    assert (plan.analyzed, plan.timed, plan.rows, plan.buffers) == (False, False, 0, 0)
    assert [scan.relation for scan in scans(plan)]
    assert {each.misestimate for each in plan.nodes} == {1.0}


def test_without_timing_there_are_rows_and_pages(live: Live) -> None:
    plan = live["no_timing"]
    assert (plan.analyzed, plan.timed) == (True, False)
    assert plan.rows == 1 and plan.buffers > 0
    assert by_title(plan)["Seq Scan on visits"] == live.pages["visits"]


def test_the_time_of_execution_is_the_roots_where_the_server_tells_none(live: Live) -> None:
    plan = live["no_summary"]
    assert plan.execution_ms == plan.root.inclusive_ms > 0
    assert live["seq_scan"].execution_ms > live["seq_scan"].root.inclusive_ms


def test_shares_of_all_nodes_are_no_more_than_the_whole(live: Live) -> None:
    for name, plan in live.plans.items():
        assert 0 <= sum(plan.share(each) for each in plan.nodes) <= 1 + 1e-9, name


def test_serialization_is_beside_the_root(live: Live) -> None:
    told = {name for name, plan in live.plans.items() if plan.serialization_ms}
    assert told == {"serialized"} & set(live.captured)  # since 17


def test_compiling_and_reading_are_told_where_the_server_tells_them(files: Mapping[str, Plan]) -> None:
    old = {name.split("/")[1]: plan for name, plan in files.items()}
    assert ("JIT" in old["jit"].document) == (old["jit"].jit_ms > 0)
    assert old["foreign_append"].root.children[0].name == "Async Foreign Scan"


def test_a_bitmaps_table_is_that_of_the_heap_scan_above_it(live: Live) -> None:
    plan = live["bitmap_or"]
    assert (
        in_words(plan)
        == "Bitmap Index Scan using visits_clinic on visits, Bitmap Index Scan using visits_day on visits"
    )
    assert indexes_under(plan.root) == ("visits_clinic", "visits_day")
    assert indexes_under(node(live["index_scan"], "Index Scan using visits_pkey on visits")) == ("visits_pkey",)


def test_hostile_names_stay_as_they_are(live: Live) -> None:
    plan = live["hostile"]
    assert plan.root.relation == "</script><b>'$0' (InitPlan 1).col1"
    assert plan.root.alias == 'it\'s "t" </script>'
    assert "\u202edesrever" in plan.root.filter
    assert read_plan(documents.read_documents(bundle.dumps(plan.document))[0]).root.raw == plan.root.raw


# fingerprints

SQL = "SELECT v.id FROM visits v JOIN clinics c ON c.id = v.clinic WHERE v.day = 7 AND c.kind > 1"
NESTED = {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_memoize": "off", "enable_material": "off"}
HASHED = {"enable_nestloop": "off", "enable_mergejoin": "off", "enable_bitmapscan": "off"}
PLANNED = "VERBOSE"


def test_the_same_plan_has_the_same_fingerprint_whatever_its_constants_rows_and_loops(live: Live) -> None:
    first = fingerprint(live.explain(SQL, **HASHED))
    assert fingerprint(live.explain(SQL.replace("= 7", "= 300").replace("> 1", "> 2"), **HASHED)) == first
    assert fingerprint(live.explain(SQL, "ANALYZE, TIMING OFF", **HASHED)) == first
    with live.connect() as connection, connection.transaction(force_rollback=True):
        for name, value in {**HASHED, "plan_cache_mode": "force_generic_plan"}.items():
            connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        connection.execute(f"PREPARE q AS {SQL.replace('= 7', '= $1').replace('> 1', '> $2')}".encode())
        rows = connection.execute("EXPLAIN (FORMAT JSON) EXECUTE q (7, 1)").fetchone()
        connection.execute("DEALLOCATE q")
    assert rows is not None
    generic = next(iter(rows.values())) if isinstance(rows, dict) else rows[0]
    assert fingerprint(read_plan(generic)) == first


def test_workers_that_were_not_launched_leave_the_fingerprint_as_it_is(live: Live) -> None:
    prints = {fingerprint(live[name]) for name in ("gather", "gather_not_launched", "gather_fewer_launched")}
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, NESTED),  # another join
        ({"visits v": "sparse v", "v.clinic": "v.k", "v.day": "v.id"}, HASHED),  # another table
        ({"v.day": "v.id"}, HASHED),  # another column and index
        ({"= 7": "> 7"}, HASHED),  # another condition
        ({" JOIN ": " LEFT JOIN ", " AND c.kind > 1": ""}, HASHED),
        ({"v.id FROM": "v.id FROM", "c.kind > 1": "c.kind > 1 ORDER BY v.note"}, HASHED),
        ({}, {**HASHED, "enable_indexscan": "off"}),  # another scan
    ],
)
def test_another_plan_has_another_fingerprint(live: Live, change: dict[str, str], options: dict[str, str]) -> None:
    sql = SQL
    for old, new in change.items():
        sql = sql.replace(old, new)
    assert fingerprint(live.explain(sql, PLANNED, **options)) != fingerprint(live.explain(SQL, PLANNED, **HASHED))


def test_cases_of_the_corpus_have_a_fingerprint_each_unless_they_are_the_same_plan(live: Live) -> None:
    prints = {name: fingerprint(plan) for name, plan in live.plans.items()}
    assert len(set(prints.values())) > 0.9 * len(prints)
    assert prints == {name: fingerprint(plan) for name, plan in live.plans.items()}


# any document at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("InitPlan 1 (returns $0)", "InitPlan 1", "InitPlan 10", "CTE a", "CTE b", "SubPlan 1")
KINDS = (
    "Seq Scan",
    "Gather",
    "CTE Scan",
    "Append",
    "Limit",
    "Aggregate",
    "Hash Join",
    "ModifyTable",
    "Memoize",
    "Hash",
)
RELATIONSHIPS = ("Outer", "Inner", "InitPlan", "SubPlan", "Member", "Subquery")
figures = st.integers(0, 50) | st.floats(0, 1e6) | st.floats()
shape = st.fixed_dictionaries(
    {"Node Type": st.sampled_from(KINDS)},
    optional={
        "Parent Relationship": st.sampled_from(RELATIONSHIPS),
        "Subplan Name": st.sampled_from(NAMES),
        "CTE Name": st.sampled_from("ab"),
        "Filter": st.sampled_from(["(x > $0)", "(x > (InitPlan 1).col1)", "(x = '(InitPlan 10).col1')"]),
        "Join Type": st.sampled_from(["Inner", "Semi", "Left"]),
        "Parallel Aware": st.booleans(),
        "Strategy": st.sampled_from(["Plain", "Sorted", "Hashed"]),
        "Plan Rows": figures,
        "Actual Rows": figures,
        "Workers Planned": figures,
        "Workers Launched": figures,
        "Shared Hit Blocks": st.integers(0, 1000),
        "Temp Read Blocks": st.integers(0, 1000),
    },
)
timing = st.fixed_dictionaries({"Actual Loops": st.integers(0, 5), "Actual Total Time": st.floats(0, 100)})
trees = st.recursive(
    st.builds(lambda a, b: {**a, **b}, shape, timing),
    lambda inner: st.builds(lambda a, b, c: {**a, **b, "Plans": c}, shape, timing, st.lists(inner, max_size=4)),
    max_leaves=12,
)
keys = st.sampled_from([*COUNTERS, "Node Type", "Plans", "Actual Loops", "Actual Rows", "Subplan Name", "Alias"])
odd_nodes = st.recursive(
    st.dictionaries(keys, st.sampled_from(KINDS) | json_values, max_size=6),
    lambda inner: st.fixed_dictionaries(
        {"Node Type": st.sampled_from(KINDS), "Plans": st.lists(inner | json_values, max_size=3)}
    ),
    max_leaves=5,
)


def use(plan: Plan) -> None:
    """Everything that a plan tells."""
    whole = (plan.analyzed, plan.timed, plan.planning_ms, plan.execution_ms, plan.buffers, plan.rows, plan.settings)
    assert whole and isinstance(in_words(plan), str) and len(fingerprint(plan)) == 16
    assert plan.jit_ms >= 0 and plan.serialization_ms >= 0 and plan.triggers is not None
    for each in plan.nodes:
        assert isinstance(each.title, str)
        told = (each.rows, each.pages, each.own_pages, each.rounding_ms, each.estimated)
        assert all(isinstance(number, float) for number in map(float, told))
        assert each.misestimate >= 0 and plan.share(each) == plan.share(each)
        assert {each.disabled, each.partial, cut_short(each), each.executed} <= {True, False}


@given(json_values | odd_nodes | st.builds(lambda plan, more: [{"Plan": plan, **more}], odd_nodes, st.dictionaries(
    st.sampled_from(["Settings", "Triggers", "JIT", "Serialization", "Execution Time", "Planning Time"]), json_values
)))  # fmt: skip
def test_any_json_is_a_plan_or_one_line_that_says_it_is_none(value: Any) -> None:
    try:
        plan = read_plan(value)
    except PlanError as error:
        assert "expected EXPLAIN" in str(error) and "\n" not in str(error)
    else:
        use(plan)


@settings(max_examples=300)
@given(trees)
def test_whatever_the_figures_say_the_parts_sum_to_the_whole(tree: dict[str, Any]) -> None:
    try:
        plan = read_plan({"Plan": tree})
    except PlanError as error:
        assert "read each other" in str(error)
        return
    use(plan)
    for key in ("Shared Hit Blocks", "Temp Read Blocks"):
        total = sum(each.own.get(key, 0) for each in plan.nodes)
        assert total == plan.root.value(key) + plan.outside.get(key, 0)
    whole = (plan.root.inclusive_ms or 0) + plan.outside_ms
    assert sum(each.exclusive_ms or 0 for each in plan.nodes) == pytest.approx(whole, rel=0.01, abs=1e-6)
    assert all((each.exclusive_ms or 0) >= -1e-6 for each in plan.nodes)


def chain(depth: int, **more: Any) -> dict[str, Any]:
    """Nodes one below the other, made without recursion."""
    found: dict[str, Any] = {"Node Type": "Seq Scan", "Actual Loops": 1, "Actual Total Time": 1.0}
    for level in range(depth - 1):
        found = {"Node Type": "Limit", "Actual Loops": 1, "Actual Total Time": 1.0, **more, "Plans": [found]}
        found["Filter"] = f"(x > ${level})"
    return found


@pytest.mark.parametrize("more", [{}, {"Parent Relationship": "InitPlan", "Subplan Name": "InitPlan 1 (returns $0)"}])
def test_a_plan_a_thousand_levels_deep_is_read_written_and_recognised(more: dict[str, Any]) -> None:
    started = time.monotonic()
    text = bundle.dumps([{"Plan": chain(1000, **more), "Unknown": {"kept": [1, 2.50, None]}}])
    (found,) = documents.read_documents(text)
    plan = read_plan(found)
    assert len(plan.nodes) == 1000 and plan.nodes[-1].depth == 999
    assert bundle.dumps(found) == bundle.dumps(bundle.loads(text)[0])
    assert {cut_short(each) for each in plan.nodes[1:]} == {True}
    assert len(fingerprint(plan)) == 16
    assert time.monotonic() - started < 10


def test_a_plan_of_twenty_megabytes_is_read_and_recognised() -> None:
    scan = {"Node Type": "Seq Scan", "Relation Name": "t", "Actual Loops": 1, "Filter": f"(x = '{'y' * 900}'::text)"}
    members = [{**scan, "Parent Relationship": "Member", "New Key": n, "Shared Hit Blocks": 1} for n in range(20_000)]
    whole = [{"Plan": {"Node Type": "Append", "Actual Loops": 1, "Shared Hit Blocks": 20_000, "Plans": members}}]
    text = bundle.dumps(whole)
    assert len(text) > 20_000_000
    started = time.monotonic()
    (found,) = documents.read_documents(text)
    plan = read_plan(found)
    assert [found] == whole
    assert (len(plan.nodes), plan.root.own_pages) == (20_001, 0)
    assert len(fingerprint(plan)) == 16
    assert time.monotonic() - started < 20


def test_many_initplans_and_references_do_not_take_long() -> None:
    plans: list[dict[str, Any]] = [
        {"Node Type": "Result", "Parent Relationship": "InitPlan", "Subplan Name": f"InitPlan {n}", "Actual Loops": 1}
        for n in range(2000)
    ]
    asks = " ".join(f"(InitPlan {n}).col1" for n in range(2000))
    scans = [
        {"Node Type": "Seq Scan", "Parent Relationship": "Member", "Actual Loops": n % 2, "Filter": asks}
        for n in range(200)
    ]
    started = time.monotonic()
    plan = read_plan(
        {"Plan": {"Node Type": "Append", "Actual Loops": 1, "Shared Hit Blocks": 1, "Plans": plans + scans}}
    )
    assert len(plan.nodes) == 2201
    assert time.monotonic() - started < 10


def test_keys_and_nodes_that_nobody_knows_yet_survive() -> None:
    text = '[{"Plan":{"Node Type":"Quantum Scan","Entangled":{"a":[1,2.50]},"Plans":[{"Node Type":"X"}]},"Later":"ü"}]'
    (found,) = documents.read_documents(text)
    plan = read_plan(found)
    assert [each.title for each in plan.nodes] == ["Quantum Scan", "X"]
    assert bundle.loads(bundle.dumps(found)) == json.loads(text)[0]
    assert '"Later": "ü"' in bundle.dumps(found)


def test_ctes_that_read_each_other_are_no_plan() -> None:
    def cte(name: str, reads: str) -> dict[str, Any]:
        return {
            "Node Type": "CTE Scan",
            "CTE Name": reads,
            "Actual Loops": 1,
            "Parent Relationship": "InitPlan",
            "Subplan Name": f"CTE {name}",
        }

    with pytest.raises(PlanError, match=r"^not a plan \(its CTEs read each other\); expected EXPLAIN's own JSON$"):
        read_plan({"Plan": {"Node Type": "Result", "Actual Loops": 1, "Plans": [cte("a", "b"), cte("b", "a")]}})


@pytest.mark.process
@pytest.mark.parametrize("version", [18, 16])
def test_the_corpus_is_written_anew_by_its_command(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp(prefix="perfkit-plans-"))
    try:
        shutil.copy(corpus.PLANS / "cases.sql", folder)
        monkeypatch.setattr(corpus, "PLANS", folder)
        corpus.main(str(version))
        here = corpus.PLANS / str(version)
        assert {path.name for path in (folder / str(version)).iterdir()} == {path.name for path in here.iterdir()}
    finally:
        shutil.rmtree(folder)


def test_nodes_of_several_kinds_come_in_the_plans_order() -> None:
    scans = [{"Node Type": kind} for kind in ("Seq Scan", "Index Scan", "Bitmap Heap Scan", "Seq Scan")]
    plan = read_plan({"Plan": {"Node Type": "Append", "Plans": scans}})
    kinds = frozenset({"Seq Scan", "Index Scan", "Bitmap Heap Scan"})
    assert [node.number for node in plan.of_kind(*kinds)] == [2, 3, 4, 5]


def test_a_list_of_any_depth_in_a_node_is_no_reason_to_fail() -> None:
    output: list[Any] = []
    for _ in range(1200):
        output = [output]
    plan = read_plan({"Plan": {"Node Type": "Result", "Output": output}})
    assert plan.root.kind == "Result"
