"""A plan drawn: what it says of every step, in HTML that runs and requests nothing, and in text."""

import copy
import json
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser, needs_browser
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run_all

from perfkit.base.resources import CHECKOUT
from perfkit.explain.comparison import diff
from perfkit.explain.findings import Finding, Severity, findings
from perfkit.explain.html import DiffView, PlanView
from perfkit.explain.plan import Plan, read_plan
from perfkit.explain.text import PlanFigures
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.show.html import page

DATA = """
CREATE TABLE clinics AS SELECT n AS id, 'clinic ' || n AS name FROM generate_series(1, 200) n;
CREATE TABLE visits AS SELECT n AS id, n % 200 + 1 AS clinic, n % 365 AS day, 'x' AS note
  FROM generate_series(1, 40000) n;
CREATE TABLE parts (id int, day int) PARTITION BY RANGE (day);
DO $$ BEGIN FOR n IN 0..149 LOOP
  EXECUTE format('CREATE TABLE parts_%s PARTITION OF parts FOR VALUES FROM (%s) TO (%s)', n, n, n + 1);
END LOOP; END $$;
INSERT INTO parts SELECT n, n % 150 FROM generate_series(1, 9000) n;
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE children (parent int REFERENCES parents ON DELETE CASCADE);
INSERT INTO parents SELECT generate_series(1, 50);
INSERT INTO children SELECT n % 50 + 1 FROM generate_series(1, 5000) n;
ANALYZE;
"""
PARALLEL = """SET LOCAL max_parallel_workers_per_gather = 2; SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0"""
STATEMENTS = {
    "scan": ("", "SELECT * FROM visits WHERE day = 7 AND clinic = 8"),
    "index": ("CREATE INDEX visits_day ON visits (clinic, day)", "SELECT * FROM visits WHERE day = 7 AND clinic = 8"),
    "initplan": ("", "SELECT count(*) FROM visits WHERE day > (SELECT avg(id) FROM clinics)"),
    "cte": (
        "",
        "WITH a AS MATERIALIZED (SELECT clinic FROM visits) "
        "SELECT count(*) FROM a JOIN a b USING (clinic) WHERE a.clinic = 5",
    ),
    "parallel": (PARALLEL, "SELECT clinic, count(*) FROM visits WHERE note LIKE 'x%' GROUP BY 1"),
    "sort": ("SET LOCAL work_mem = '64kB'", "SELECT * FROM visits ORDER BY note, day"),
    "never": (
        "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off",
        "SELECT * FROM clinics c JOIN visits v ON v.clinic = c.id AND c.name = 'none'",
    ),
    "delete": ("", "DELETE FROM parents WHERE id < 9"),
    "many": (
        "",
        "SELECT a.day FROM parts a UNION ALL SELECT b.day FROM parts b UNION ALL SELECT c.day + 1 FROM parts c",
    ),
    "estimated": ("", "SELECT count(*) FROM visits JOIN clinics ON clinics.id = clinic"),
}
HIGH = Finding(
    "a", Severity.HIGH, 1, "It reads 40,000 rows to keep 1.", "Make an index.", "CREATE INDEX ON visits (day)", 0.9, 9.0
)
MEDIUM = Finding("b", Severity.MEDIUM, None, "Statistics are old.", "Analyze visits.", "ANALYZE visits", 0.2, 2.0)
LOW = Finding("c", Severity.LOW, 1, "A detail to know.", "Nothing has to be done.")
ALLOWED = {
    *("div", "h4", "p", "strong", "dl", "dt", "dd", "details", "summary", "span", "ul", "li", "small", "em", "b", "i"),
    *("pre", "code", "table", "caption", "thead", "tbody", "tr", "th", "td"),
}


@pytest.fixture(scope="module")
def documents(server: EmbeddedServer) -> Iterator[dict[str, Any]]:
    """What a real server says of each statement."""
    databases.create(server, "plan_display")
    found = {}
    with server.connect("plan_display") as connection:
        run_all(connection, DATA.encode())
        for name, (before, sql) in STATEMENTS.items():
            options = "" if name == "estimated" else "ANALYZE, BUFFERS, WAL, "
            connection.execute("BEGIN")
            if before:
                run_all(connection, before.encode())
            row = connection.execute(f"EXPLAIN ({options}VERBOSE, SETTINGS, FORMAT JSON) {sql}".encode()).fetchone()
            connection.execute("ROLLBACK")
            assert row
            found[name] = next(iter(row.values() if isinstance(row, dict) else row))
    yield found
    databases.drop(server, "plan_display")


@pytest.fixture(scope="module")
def plans(documents: dict[str, Any]) -> dict[str, Plan]:
    return {name: read_plan(document) for name, document in documents.items()}


class Drawing(HTMLParser):
    """HTML as a reader gets it: tags, text, and which elements were left open."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.deepest = 0
        self.feed(html)
        self.text = " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
            self.deepest = max(self.deepest, len(self.open))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def classed(self, name: str) -> list[str]:
        return [tag for tag, a in self.tags if name in (a.get("class") or "").split()]


def node(kind: str = "Seq Scan", *children: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A node that took 1 ms and a page, unless said otherwise; underscores stand for spaces."""
    figures = {"Plan Rows": 10, "Total Cost": 5.0, "Actual Rows": 10, "Actual Loops": 1, "Actual Total Time": 1.0}
    given = {key.replace("_", " "): value for key, value in keys.items()}
    below = {"Plans": [{"Parent Relationship": "Outer", **child} for child in children]} if children else {}
    return {"Node Type": kind, **figures, "Shared Hit Blocks": 1, **given, **below}


def drawing(top: dict[str, Any], *found: Finding, **document: Any) -> Drawing:
    extra = {key.replace("_", " "): value for key, value in document.items()}
    return Drawing(PlanView(read_plan({"Plan": top, **extra}), found).html())


def chain(depth: int) -> dict[str, Any]:
    """A plan as deep as that."""
    top = node()
    for _ in range(depth):
        top = node("Append", top)
    return top


# What is said of a step


def test_every_step_is_a_row_in_the_servers_order(plans: dict[str, Plan]) -> None:
    for name in ("initplan", "cte", "parallel", "sort", "never", "delete", "estimated"):
        told = Drawing(PlanView(plans[name]).html()).text
        at = -1
        for step in plans[name].nodes:
            label = step.subplan
            found = told.find(f"{step.number} {f'{label} ' if label else ''}{step.title}", at + 1)
            assert found > at, (name, step.title)
            at = found


def test_the_time_and_the_pages_of_a_step_are_its_own(plans: dict[str, Plan]) -> None:
    plan = plans["initplan"]
    lines = repr(PlanView(plan)).splitlines()
    for step in plan.nodes:
        row = next(line for line in lines if line.startswith(f"{step.number} "))
        assert PlanFigures(plan).time(step) in row.split()
        assert f"{step.own_pages:,.0f}" in row.split()
    scan = plan.nodes[-1]
    assert scan.own_pages == plan.buffers - 2  # the clinics have two


def test_shares_are_of_the_whole_execution_and_bars_as_long() -> None:
    html = PlanView(
        read_plan({"Plan": node("Sort", node(Actual_Total_Time=3.0), Actual_Total_Time=4.0), "Execution Time": 4.0})
    ).html()
    assert "<small>25 %</small>" in html and "--p:0.25" in html
    assert "<b>3.00<i> ms</i></b><small>75 %</small>" in html and "--p:0.75" in html


def test_rows_far_from_the_estimate_are_marked_either_way() -> None:
    assert "12 expected → 40,000 came ≠ 3,300× more" in drawing(node(Plan_Rows=12, Actual_Rows=40000)).text
    assert "8,000 expected → 200 came ≠ 40× fewer" in drawing(node(Plan_Rows=8000, Actual_Rows=200)).text
    assert "≠" not in drawing(node(Plan_Rows=12, Actual_Rows=119)).text
    assert "≠ 3,300× more  12 → 40,000" in repr(PlanView(read_plan({"Plan": node(Plan_Rows=12, Actual_Rows=40000)})))


def test_rows_that_nobody_asked_for_are_no_mistake() -> None:
    scan = node(Plan_Rows=8000, Actual_Rows=2)
    assert "≠" not in drawing(node("Limit", scan, Plan_Rows=2, Actual_Rows=2)).text
    ands = node("BitmapAnd", Plan_Rows=8000, Actual_Rows=0)
    assert "≠" not in drawing(node("Bitmap Heap Scan", ands)).text, "the server never counts its rows"


def test_loops_and_processes_are_said_where_there_is_more_than_one(plans: dict[str, Plan]) -> None:
    assert "7 loops" in drawing(node("Nested Loop", node(Actual_Loops=7))).text
    assert "loop" not in drawing(node()).text.replace("each loop", "").replace("Each loop", "")
    gathered = node("Gather", node(Actual_Loops=3, Parallel_Aware=True), Workers_Planned=2, Workers_Launched=2)
    assert (
        "3 loops, 3 processes" in drawing(gathered).text and "2 workers planned, 2 launched" in drawing(gathered).text
    )


def test_a_step_that_never_ran_says_so_and_has_no_figures(plans: dict[str, Plan]) -> None:
    step = next(step for step in plans["never"].nodes if not step.executed)
    told = Drawing(PlanView(plans["never"]).html()).text
    assert f"{step.title} never executed" in told
    line = next(line for line in repr(PlanView(plans["never"])).splitlines() if "never executed" in line)
    assert line.split()[-6:] == ["–", "–", "–", f"{step.estimated:,.0f}", "→", "–"]


def test_what_was_not_measured_is_a_dash() -> None:
    bare = {key: value for key, value in node().items() if key not in ("Actual Total Time", "Shared Hit Blocks")}
    told = drawing(bare).text
    assert "Nodes were not timed." in told and "Pages were not counted." in told and "– –" in told
    assert " ms" not in told.replace("own time, ms", "")


def test_rounding_is_said_where_it_matters() -> None:
    memoize = node("Memoize", Actual_Loops=200_000, Actual_Total_Time=0.0)
    assert "0 ± 100 ms" in drawing(node("Nested Loop", memoize, Actual_Total_Time=90.0)).text
    assert "±" not in drawing(node("Nested Loop", node(Actual_Loops=100))).text


def test_what_became_of_rows_and_memory_stands_below_the_step(plans: dict[str, Plan]) -> None:
    told = Drawing(PlanView(plans["scan"]).html()).text
    assert "Filter: ((visits.day = 7) AND (visits.clinic = 8)) · " in told and "rows removed by the filter" in told
    assert re.search(r"external merge, [\d.]+ \wB on disk", Drawing(PlanView(plans["sort"]).html()).text)


def test_every_key_of_the_document_can_be_reached(documents: dict[str, Any]) -> None:
    raw = copy.deepcopy(documents["parallel"][0])
    raw["Plan"]["Colour of the sky"] = {"a": ["deep", {"er": "blue"}]}
    raw["Weather"] = "fine"
    told = PlanView(read_plan(raw)).html()
    assert all(text in told for text in ("Colour of the sky", "deep", "er blue", "Weather", "fine"))
    for step in read_plan(raw).nodes:
        for key, value in step.raw.items():
            if isinstance(value, str) and key not in ("Parent Relationship", "Partial Mode", "Strategy", "Node Type"):
                assert value in unescape(told), key
        for key in ("Peak Memory Usage", "Total Cost", "Plan Width"):
            value = step.raw.get(key)
            assert not value or f"{value:,.10g}" in told, key


def test_long_lists_and_conditions_are_cut() -> None:
    columns = [f"column_{n}" for n in range(300)]
    html = PlanView(read_plan({"Plan": node(Output=columns, Filter=f"x = ANY ('{{{','.join(columns)}}}')")})).html()
    assert len(html) < 4_000 and "294 more" in html and "…" in html


# What is said of the whole


def test_the_whole_comes_first_with_its_evidence(plans: dict[str, Plan]) -> None:
    told = Drawing(PlanView(plans["scan"], title="One day").html()).text
    assert re.match(
        r"One day [\d.,]+ ms executing · [\d.]+ ms planning · \d+ pages \([\d.]+ \wB\) · \d+ rows? · measured once ",
        told,
    )
    assert told.count("a single timing is not") == 1
    estimated = Drawing(PlanView(plans["estimated"]).html()).text
    assert "estimated: the statement was not executed" in estimated and "executing" not in estimated
    assert "came" not in estimated and "own time" not in estimated


def test_what_the_statement_cost_beside_its_steps_is_said(plans: dict[str, Plan]) -> None:
    assert re.search(r"children_parent_fkey on parents: 8 calls, [\d.]+ ms, [\d.]+ %", repr(PlanView(plans["delete"])))
    assert "work_mem = 64kB" in repr(PlanView(plans["sort"]))
    told = drawing(
        node(), Execution_Time=10.0, JIT={"Functions": 3, "Timing": {"Total": 4.0}}, Serialization={"Time": 2.5}
    ).text
    assert "JIT compilation 4 ms (40 % of the execution)" in told and "Serialization 2.5 ms" in told
    cte = {
        **node("ModifyTable", Operation="Insert", Actual_Total_Time=3.0),
        "Parent Relationship": "InitPlan",
        "Subplan Name": "CTE w",
    }
    late = {**node("Result"), "Plans": [cte]}
    assert "After the last row 3 ms" in drawing(late, Execution_Time=4.0).text


# Findings


def test_findings_stand_at_their_steps_and_only_slight_ones_are_folded() -> None:
    html = PlanView(read_plan({"Plan": node()}), [HIGH, MEDIUM, LOW]).html()
    seen = Drawing(re.sub(r"<details(?! open).*?</details>", "", html, flags=re.DOTALL)).text
    assert "3 findings: ▲ high at 1, △ medium of the statement, ▹ low at 1" in seen
    assert "▲ high It reads 40,000 rows to keep 1. Make an index. CREATE INDEX ON visits (day)" in seen
    assert "△ medium Statistics are old. Analyze visits." in seen
    assert "A detail to know." not in seen and "▹ low A detail to know." in Drawing(html).text
    assert seen.index("Statistics are old") < seen.index("own time") < seen.index("1 Seq Scan") < seen.index("It reads")


def test_a_finding_at_a_step_that_is_not_there_is_said_of_the_statement() -> None:
    lost = Finding("d", Severity.HIGH, 99, "It is slow.", "")
    assert "▲ high of the statement: It is slow." in repr(PlanView(read_plan({"Plan": node()}), [lost]))


def test_in_text_findings_come_below_the_tree_gravest_first() -> None:
    lines = repr(PlanView(read_plan({"Plan": node()}), [LOW, MEDIUM, HIGH])).splitlines()
    at = lines.index("▲ high at 1: It reads 40,000 rows to keep 1. Make an index.")
    assert lines[at + 1 : at + 3] == [
        "    CREATE INDEX ON visits (day)",
        "△ medium of the statement: Statistics are old. Analyze visits.",
    ]
    assert lines[-1].startswith("▹ low") and lines[at - 1] == ""


# Text


def test_the_text_is_a_tree_with_aligned_columns(plans: dict[str, Plan]) -> None:
    scan = node(Relation_Name="b", Actual_Total_Time=2.0, Filter="(x > 1)", Rows_Removed_by_Filter=9)
    never = node(Relation_Name="c", Actual_Loops=0, Actual_Rows=0, Actual_Total_Time=0.0, Shared_Hit_Blocks=0)
    join = node("Nested Loop", scan, never, Actual_Total_Time=2.5, Shared_Hit_Blocks=1)
    assert repr(PlanView(read_plan([{"Plan": join, "Execution Time": 5.0, "Planning Time": 0.25}]))).splitlines() == [
        "5 ms executing · 0.25 ms planning · 1 page (8 kB) · 10 rows · measured once",
        "Page counts are reproducible; a single timing is not.",
        "",
        "  step                               own ms        pages  expected → came",
        "1 Nested Loop                         0.500  10 %      0          10 → 10",
        "2 ├─ Seq Scan on b                     2.00  40 %      1          10 → 10",
        "  │       Filter: (x > 1) · 9 rows removed by the filter",
        "3 └─ Seq Scan on c (never executed)       –     –      –           10 → –",
    ]


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name != "many"])
def test_the_text_fits_eighty_columns(plans: dict[str, Plan], name: str) -> None:
    lines = PlanView(plans[name], [HIGH, MEDIUM, LOW]).text(80).splitlines()
    assert max(map(len, lines)) <= 80
    told = " ".join(PlanView(plans[name]).text(80).replace("│", " ").split())
    assert all(step.name.split()[0] in told for step in plans[name].nodes)


# What changed


def test_a_diff_marks_what_became_of_every_step_in_words(plans: dict[str, Plan]) -> None:
    view = DiffView(PlanView(plans["scan"], [HIGH], "without"), PlanView(plans["index"], (), "with"))
    told = Drawing(view.html()).text
    assert told.startswith(diff(plans["scan"], plans["index"]).sentence)
    assert "≠ changed to 1 Seq Scan on visits" in told and "≠ changed from 1 " in told
    assert told.count("a single timing is not") == 1 and told.count("It reads 40,000 rows") == 1
    assert all(word in told for word in ("without", "with"))
    both = Drawing(DiffView(PlanView(plans["scan"]), PlanView(plans["sort"])).html()).text
    assert "+ added Sort" in both and "Signs:" in both
    other = Drawing(DiffView(PlanView(plans["sort"]), PlanView(plans["scan"])).html()).text
    assert "− removed Sort" in other


def test_a_diff_in_text_has_both_figures_of_every_step(plans: dict[str, Plan]) -> None:
    before, after = plans["scan"], plans["index"]
    lines = repr(DiffView(PlanView(before), PlanView(after))).splitlines()
    assert (
        f"pages  {before.buffers:14,.0f}".split()
        == next(line for line in lines if line.startswith("pages")).split()[:2]
    )
    row = next(line for line in lines if line.startswith("1 ≠"))
    assert f"{before.root.own_pages:,.0f} → {after.root.own_pages:,.0f}" in row
    gone = repr(DiffView(PlanView(plans["sort"]), PlanView(plans["scan"])))
    assert re.search(r"^− Sort \([\d.]+ ms, \d+ pages\) removed$", gone, re.MULTILINE)
    assert max(map(len, DiffView(PlanView(plans["sort"], [HIGH]), PlanView(plans["scan"])).text(80).splitlines())) <= 80


def test_a_diff_of_estimates_says_costs_and_nothing_measured(plans: dict[str, Plan]) -> None:
    view = DiffView(PlanView(plans["estimated"]), PlanView(plans["estimated"]))
    for told in (Drawing(view.html()).text, repr(view)):
        assert "cost (estimated)" in told and "execution time" not in told and "pages" not in told


# Hostile text, any shape, any size


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.sampled_from(
            [
                "</summary><script>alert(1)</script>",
                "\x1b[31m\u202e",
                "'\"><img src=x onerror=alert(1)>",
                "&lt;b&gt;",
                "]]>",
                "\ud800",
            ]
        ),
    )
)
def test_nothing_hostile_becomes_markup_or_control(text: str) -> None:
    top = node(
        "Index Scan",
        node(text or "x", Alias=text),
        Relation_Name=text,
        Index_Name=text,
        Filter=text,
        Output=[text],
        Schema=text,
        Subplan_Name=text,
    )
    top[f"key {text}"] = {text: [text]}
    document = {
        "Plan": top,
        "Settings": {text: text},
        "Triggers": [{"Trigger Name": text, "Relation": text, "Time": 1, "Calls": 1}],
        "Query Text": text,
        text + "!": text,
    }
    finding = Finding("r", Severity.HIGH, 1, text, text, text)
    plan = read_plan(document)
    other = read_plan({"Plan": node("Index Scan", Relation_Name=text)})
    changed = DiffView(PlanView(plan, [finding], text), PlanView(other, [finding], text + "2"))
    for html in (PlanView(plan, [finding], text).html(), changed.html()):
        found = Drawing(html)
        assert {tag for tag, _ in found.tags} <= ALLOWED
        assert not [key for _, a in found.tags for key in a if key.startswith("on") or key in ("id", "src", "href")]
        assert found.open == [] and not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\ud800-\udfff]", html)
    for told in (repr(PlanView(plan, [finding], text)), changed.text(80)):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", told)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_keys = st.sampled_from(
    [
        "Actual Loops",
        "Actual Rows",
        "Actual Total Time",
        "Total Cost",
        "Plan Rows",
        "Workers",
        "Output",
        "Filter",
        "Sort Method",
        "Sort Space Used",
        "Alias",
        "Index Name",
        "Subplan Name",
        "Parent Relationship",
        "Shared Hit Blocks",
        "Heap Fetches",
        "Workers Planned",
        "Rows Removed by Filter",
        "odd",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    figures=st.lists(st.dictionaries(_keys, _values, max_size=8), min_size=1, max_size=6),
    rest=st.dictionaries(
        st.sampled_from(["Settings", "Triggers", "JIT", "Serialization", "Planning", "Execution Time", "odd"]), _values
    ),
)
def test_any_values_can_be_drawn(figures: list[dict[str, Any]], rest: dict[str, Any]) -> None:
    top: dict[str, Any] = {"Node Type": "Seq Scan"}
    for keys in figures:
        top = {"Node Type": "Append", **keys, "Plans": [top, {"Node Type": "CTE Scan", **keys}]}
    plan = read_plan({**rest, "Plan": top})
    assert Drawing(PlanView(plan).html()).open == []
    assert PlanView(plan).text(80) and repr(PlanView(plan))


def test_every_captured_plan_is_drawn_with_all_its_steps() -> None:
    paths = sorted((CHECKOUT / "tests" / "plans").glob("*/*.json"))
    assert len(paths) > 100
    for path in paths:
        plan = read_plan(json.loads(path.read_text(encoding="utf-8")))
        view = PlanView(plan, findings(plan))
        found, text = Drawing(view.html()), view.text(80)
        assert found.open == [], path
        assert all(f" {step.number} " in found.text for step in plan.nodes), path
        assert sum(re.match(r" *\d+ +\S", line) is not None for line in text.splitlines()) >= len(plan.nodes), path


def test_a_large_plan_stays_small_and_says_what_is_folded(plans: dict[str, Plan]) -> None:
    plan = plans["many"]
    assert len(plan.nodes) == 451
    html = PlanView(plan).html()
    assert len(html.encode()) < 400_000
    found = Drawing(html)
    assert re.search(r"451 steps, of which 4\d\d with less than 1 % of time and pages each", found.text)
    assert all(f" {step.number} " in found.text for step in plan.nodes), "folded, but there"
    assert sum(tag == "details" and "open" in a for tag, a in found.tags) < 20
    assert len(repr(PlanView(plan)).splitlines()) < 100


def test_four_hundred_steps_in_full_stay_below_the_limit(documents: dict[str, Any]) -> None:
    raw = copy.deepcopy(documents["many"][0])
    raw["Plan"]["Plans"] = raw["Plan"]["Plans"][:399]
    while len(read_plan(raw).nodes) > 400:
        raw["Plan"]["Plans"].pop()
    html = PlanView(read_plan(raw)).html()
    assert "folded" not in html and html.count("Each loop") > 390
    assert len(html.encode()) < 400_000


def test_a_grave_finding_is_never_folded_away(plans: dict[str, Plan]) -> None:
    plan = plans["many"]
    step = next(step for step in plan.nodes if step in PlanFigures(plan).negligible)
    grave = Finding("x", Severity.HIGH, step.number, "This one matters.", "Look.")
    seen = re.sub(r"<details>.*?</details>", "", PlanView(plan, [grave]).html(), flags=re.DOTALL)
    assert "This one matters." in seen
    assert f"\n{step.number} ".strip() in PlanView(plan, [grave]).text()


def test_what_changed_is_never_folded_away(plans: dict[str, Plan], documents: dict[str, Any]) -> None:
    raw = copy.deepcopy(documents["many"][0])
    read_plan(raw).nodes[-1].raw["Filter"] = "(day <> 4)"  # type: ignore[index]
    lines = repr(DiffView(PlanView(plans["many"]), PlanView(read_plan(raw)))).splitlines()
    assert any("≠" in line and "parts_149" in line for line in lines)


def test_sixteen_thousand_steps_leave_out_what_hardly_counts() -> None:
    top = node(
        "Append",
        *[node(Relation_Name=f"p{n}") for n in range(16_000)],
        Actual_Total_Time=16_000.0,
        Shared_Hit_Blocks=16_000,
    )
    plan = read_plan({"Plan": top})
    assert len(PlanView(plan).html()) < 20_000 and "left out" in PlanView(plan).html()
    assert "16,000 steps of less than 1 % each" in repr(PlanView(plan))


def test_a_thousand_levels_are_drawn_and_do_not_push_the_rows_off() -> None:
    plan = read_plan({"Plan": chain(1000)})
    found = Drawing(PlanView(plan).html())
    assert found.open == [] and found.deepest < 400, "browsers stop at 512 nested elements"
    lines = PlanView(plan).text(100).splitlines()
    assert max(map(len, lines)) <= 100 and "Seq Scan" in lines[-1]
    assert DiffView(PlanView(plan), PlanView(plan)).html()


# In a notebook and in a browser


def test_alone_in_a_cell_a_plan_brings_its_style(plans: dict[str, Plan]) -> None:
    for view in (PlanView(plans["scan"]), DiffView(PlanView(plans["scan"]), PlanView(plans["index"]))):
        html = view._repr_html_()
        assert html.startswith("<style>.pk {") and "<div class='pk'>" in html
        assert "<style" not in view.html() and "@import" not in html and "url(" not in html


@pytest.fixture
def shown(plans: dict[str, Plan], tmp_path: Path) -> Path:
    """A page with two plans and a diff, one of them deep."""
    views = [
        PlanView(plans["initplan"], [HIGH, MEDIUM, LOW]),
        PlanView(plans["initplan"], [HIGH]),
        PlanView(read_plan({"Plan": chain(60)})),
        DiffView(PlanView(plans["scan"]), PlanView(plans["sort"])),
    ]
    path = tmp_path / "plans.html"
    path.write_text(page("Plans", "".join(view.html() for view in views)), encoding="utf-8")
    return path


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as found:
        yield found


@needs_browser
@pytest.mark.system
def test_a_browser_runs_nothing_requests_nothing_and_no_names_collide(shown: Path, tab: Page) -> None:
    tab.open(shown.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.evaluate("document.querySelectorAll('.plan [id]').length") == 0
    assert tab.requests() == [shown.as_uri()] and tab.complaints() == []
    lists = tab.evaluate(
        "[...document.querySelectorAll('.plan ul')].every(u => [...u.children].every(c => c.tagName == 'LI'))"
    )
    assert lists, "the parser rearranged the lists"


@needs_browser
@pytest.mark.system
def test_the_keyboard_reaches_every_fold(shown: Path, tab: Page) -> None:
    tab.open(shown.as_uri())

    def press(key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    reached = set()
    for _ in range(8):
        press("Tab", 9)
        reached.add(tab.evaluate("document.activeElement.textContent.slice(0, 40)"))
    assert len(reached) == 8 or "▹ low" in "".join(reached)
    tab.evaluate("document.querySelectorAll('.tree summary')[1].focus()")
    before = tab.evaluate("document.activeElement.parentElement.open")
    press("Enter", 13, "\r")
    assert tab.evaluate("document.activeElement.parentElement.open") is not before
    press("Tab", 9)
    assert tab.evaluate("document.activeElement.matches(':focus-visible')")
    outline = "parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
    assert tab.evaluate("document.activeElement.tagName") == "SUMMARY" and tab.evaluate(outline) >= 1


@needs_browser
@pytest.mark.system
def test_folding_a_step_hides_what_is_below_and_says_how_much(shown: Path, tab: Page) -> None:
    tab.open(shown.as_uri())
    told = "document.querySelector('.tree li').innerText"
    assert "+ 3 steps" not in tab.evaluate(told)
    tab.evaluate("document.querySelector('.tree summary').click()")
    assert "+ 3 steps" in tab.evaluate(told) and "▲ high" in tab.evaluate(told)
    assert "Seq Scan on visits" not in tab.evaluate(told)


@needs_browser
@pytest.mark.system
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)])
def test_it_fits_and_can_be_read_in_any_width_and_light(shown: Path, tab: Page, width: int, dark: bool) -> None:
    tab.open(shown.as_uri(), width=width, dark=dark)
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("Math.min(...[...document.querySelectorAll('.t')].map(t => t.clientWidth))") > 100
    poor = json.loads(tab.evaluate(CONTRAST))
    assert not poor


@needs_browser
@pytest.mark.system
def test_figures_stand_in_columns_whatever_the_depth(shown: Path, tab: Page) -> None:
    tab.open(shown.as_uri())
    cells = "[...document.querySelector('.tree').querySelectorAll('.row .b:nth-child(2)')]"
    edges = f"[...new Set({cells}.map(b => Math.round(b.getBoundingClientRect().right)))]"
    assert len(tab.evaluate(edges)) == 1


CONTRAST = """(() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = parts(c).map(linear);
    return .2126 * r + .7152 * g + .0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (parts(c).length < 4 || parts(c)[3] > 0) return c } return 'rgb(255, 255, 255)' };
  const found = new Set();
  for (const e of document.querySelectorAll('.plan *')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return JSON.stringify([...found]);
})()"""
