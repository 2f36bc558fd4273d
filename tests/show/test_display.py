"""What is shown is escaped, aligned, and says in words what it cannot draw."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from synthetic import make_run

from perfkit.analysis.report import Run
from perfkit.base import units
from perfkit.base.errors import UsageError, visible
from perfkit.runs.records import Bundle, RunRecord
from perfkit.show.html import Cell, Part, Table, escape, style
from perfkit.show.render import shown

HOSTILE = "<script>alert(1)</script>\"' onclick=x \x1b[31m\u202e`|*"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(make_run(tmp_path_factory.mktemp("display") / "run"))


@given(st.text())
def test_no_text_becomes_markup_or_stays_invisible(text: str) -> None:
    shown = escape(text)
    assert not set(shown) & set("<>\"'\x1b\x00\u202e\u2066\u200b")
    shown.encode("utf-8")  # half a surrogate pair would make the whole page unwritable


@settings(deadline=None)  # the first call compiles the template
@given(st.text(), st.text())
def test_no_cell_breaks_out_of_a_table(text: str, note: str) -> None:
    table = Table(text, (text, "b"), ((Cell(text, note), Cell(note, text, code=True)),), note=note)
    assert table.html().count("<td") == 1
    assert table.html().count("<tr>") == 2
    assert all(line.replace("\\|", "").count("|") == 3 for line in table.markdown().split("\n"))
    assert len(table.markdown().split("\n")) == 3


def test_control_characters_are_made_visible_and_lines_kept() -> None:
    assert visible("a\x1b[0m\n\tb\u202ec") == "a⟨1B⟩[0m\n\tb⟨202E⟩c"


def test_a_table_names_its_rows_columns_and_groups() -> None:
    rows = tuple((Cell(g), Cell(name), Cell("1")) for g, name in (("x", "a"), ("x", "b"), ("y", "a")))
    html = Table("what", ("group", "row", "n"), rows, frozenset(["n"]), 2, True).html()
    assert "<caption><span>what</span></caption>" in html
    assert html.count('scope="col"') == 3
    assert html.count('<th scope="rowgroup" rowspan="2">x</th>') == 1
    assert html.count('scope="row"') == 3
    assert html.count('class="n"') == 4


def test_an_empty_table_says_so() -> None:
    table = Table("Unexpected outcomes", ("a",), (), note="none in 10 requests")
    assert "<table" not in table.html() and "none in 10 requests" in table.html()
    assert repr(table) == "Unexpected outcomes: none in 10 requests"


def test_text_is_aligned_for_a_terminal() -> None:
    table = Table("t", ("name", "ms"), ((Cell("a"), Cell("1.00")), (Cell("long"), Cell("12.0"))), frozenset(["ms"]))
    assert table.text().splitlines()[2:] == ["name    ms", "----  ----", "a     1.00", "long  12.0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004567, "0.000457"),
        (0.4, "0.400"),
        (12.345, "12.3"),
        (99.96, "100"),
        (999.5, "1,000"),
        (123456, "123,000"),
        (0, "0"),
        (-2.345, "-2.35"),
        (math.inf, "∞"),
        (math.nan, "–"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert units.significant(value) == text


def test_units() -> None:
    assert units.size(340 * 1024) == "340 kB"
    assert units.size(3 * 1024**3) == "3 GB"
    assert units.percent(0.00125) == "0.12 %"
    assert units.seconds(0.31) == "310 ms"
    assert " ".join(units.too_few(40, 95).split()) == "not enough samples (40 of 72)"


def test_everything_a_run_shows_has_html_and_words(run: Run) -> None:
    names = [name for name, kind in vars(Run).items() if isinstance(kind, shown)]
    assert len(names) >= 13
    for name in names:
        part = getattr(run, name)
        assert isinstance(part, Part)
        assert part._repr_html_().startswith('<div class="pk">')
        assert len(repr(part)) > 20, name


def test_the_levels_show_every_arm_the_floor_and_missing_percentiles_in_words(run: Run) -> None:
    table = run.levels
    assert [row[1].text for row in table.rows[:5]] == [
        "before",
        "control",
        "after-index",
        "after-full",
        "floor",
    ]
    assert len({row[0] for row in table.rows}) == 5
    assert table.rows[0][4].text.startswith("max ")
    assert "not enough samples" in table.rows[0][4].plain()
    faster = next(row for row in table.rows if row[1].text == "after-full")
    assert faster[8].text.startswith("▼ faster ×") and faster[8].state == "good"


def test_thresholds_say_value_bound_and_result_for_every_arm(run: Run) -> None:
    table = run.thresholds
    assert table.columns == ("rule", "load", "limit", "before", "control", "after-index", "after-full")
    burst = next(row for row in table.rows if row[1].note == "burst")
    assert burst[3].text.startswith("✕ ") and burst[6].text.startswith("✓ ")
    assert burst[6].note.startswith("≤")


def test_the_cost_of_the_indexes_has_a_total(run: Run) -> None:
    rows = run.index_costs.rows
    assert rows[0][0].text == "idx_appointments_org_contact_date"
    assert rows[-1][2].text == units.size(30_000_000)


def test_a_missing_index_is_shown(run: Run, tmp_path: Path) -> None:
    bundle = make_run(tmp_path / "run")
    bundle.run.arms["after-full"].expected_indexes.append("idx_forgotten")
    assert ("idx_forgotten", "missing") in [(row[0].text, row[0].note) for row in Run(bundle).index_costs.rows]


def test_errors_are_listed_and_their_absence_bounded(run: Run, tmp_path: Path) -> None:
    assert "None in " in repr(run.errors) and "The true error rate is below " in repr(run.errors)
    shown = repr(Run(make_run(tmp_path / "run", fail="connection reset by peer")).errors)
    assert "connection reset by peer" in shown


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_an_unfinished_run_is_never_go(tmp_path: Path, status: str) -> None:
    shown = Run(make_run(tmp_path / "run", status=status))
    assert shown.subject.decision == "UNFINISHED"
    assert "✓ GO" not in repr(shown.decision) and ">GO<" not in shown.decision.html()
    assert "6 of 6 blocks" in repr(shown.decision)


def test_a_run_that_has_just_begun_can_be_shown(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole")
    early = {"title", "parameters", "config", "roles", "scenarios", "queries", "host", "packages", "started", "perfkit"}
    bundle = Bundle.create(tmp_path / "early", RunRecord(**whole.run.model_dump(include=early)))
    early_run = Run(bundle)
    for name in (name for name, kind in vars(Run).items() if isinstance(kind, shown)):
        assert getattr(early_run, name)._repr_html_()


def test_all_styles_stay_below_their_class() -> None:
    plain = [line for line in style().splitlines() if "{" in line and not line.startswith(("@", " ", "}"))]
    assert all(".pk" in line for line in plain)


def test_a_run_gives_its_requests_as_a_data_frame(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path / "run"))
    frame = run.samples
    assert len(frame) == sum(len(r.columns) for r in run.subject.rounds)
    assert set(frame["arm"]) == {*run.subject.arms, "floor"}
    assert (frame["done_ms"] >= frame["scheduled_ms"]).all()
    assert frame["counted"].dtype == bool and frame["done_ms"].dtype == float


def test_a_run_gives_its_levels_as_a_tidy_data_frame(run: Run) -> None:
    frame = run.levels.frame
    assert len(frame) == len(run.levels.rows)
    assert set(frame["scenario"]) == {scenario for scenario, _ in run.subject.loads}
    after = frame[(frame["arm"] == "after-full") & (frame["scenario"] == "burst")].iloc[0]
    level = run.analysis.level("after-full", "burst", after["scenario_item"])
    assert level and level.p50
    assert (after["p50_ms"], after["p50_ms_lo"], after["requests"]) == (level.p50.value, level.p50.lo, level.n)
    assert after["p50_ratio_verdict"] == "faster" and after["p50_ratio"] < 1
    numbers = ["p50_ms", "p50_ms_hi", "p95_ms", "p99_ms", "per_second", "p50_ratio", "p50_ratio_hi"]
    assert {str(frame[name].dtype) for name in numbers} == {"float64"}
    assert frame["requests"].dtype == frame["errors"].dtype == int


def test_every_picture_of_a_run_draws_into_axes_and_returns_them(run: Run) -> None:
    for draw in (run.plot.ecdf, run.plot.rounds, run.plot.levels, run.plot.latency):
        ax = Figure().add_subplot()
        assert draw(ax=ax) is ax and ax.has_data()
    with pytest.raises(UsageError, match=r"scenario = 'none'; expected one of: .*burst"):
        run.plot.ecdf("none")
    with pytest.raises(UsageError, match=r"metric = 'mean'; expected p50, p95 or p99"):
        run.plot.levels("mean")
