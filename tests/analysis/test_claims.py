"""Claims against what was measured: which figure, which interval, and whether it held, is open or is not known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_run

from perfkit import config
from perfkit.analysis import claims as display
from perfkit.analysis.claims import ClaimEvidence, JudgedClaim, elsewhere, judge, judged
from perfkit.analysis.report import Run, summary, verdict
from perfkit.analysis.run_analysis import analyse
from perfkit.analysis.tables import Subject
from perfkit.base.stats import error_bound
from perfkit.config import Claim
from perfkit.explain.capture import Capture
from perfkit.explain.plan import read_plan
from perfkit.indexes.designs import LabRecord
from perfkit.indexes.lab_results import LabRun
from perfkit.indexes.lab_results import judged as lab_judged
from perfkit.runs.records import Bundle, LabSummary
from perfkit.runs.selection import RunSpec, Selection

Numbers = st.floats(-1e6, 1e6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A made-up run: before 18 ms and more, after-index a sixth of that, two indexes of 15 MB on 61 MB."""
    bundle = make_run(tmp_path_factory.mktemp("claims") / "run")
    bundle.run.config.claim = []
    bundle.update()
    return Run(bundle)


def held_against(run: Run, **claim: Any) -> JudgedClaim:
    """One claim judged on the made-up run."""
    said = Claim.model_validate({"text": "said", **claim})
    own = ClaimEvidence(run.bundle.run, run.analysis, run.bundle, "before", "after-index")
    (found,) = judge([said], own)
    return found


OUTCOMES = {
    # low, high, good end, value, interval -> outcome
    "inside": (10, 20, "", 15, (12, 18), "held"),
    "a value alone, inside": (10, 20, "", 15, None, "held"),
    "on both ends": (10, 20, "", 15, (10, 20), "held"),
    "over the upper end": (10, 20, "", 25, (22, 28), "not held"),
    "under the lower end": (10, 20, "", 5, (4, 6), "not held"),
    "across the upper end": (10, 20, "", 19, (15, 23), "open"),
    "across the lower end": (10, 20, "", 11, (9, 13), "open"),
    "across both": (10, 20, "", 15, (5, 25), "open"),
    "under it where less is better": (10, 20, "low", 5, (4, 6), "better"),
    "across the lower end where less is better": (10, 20, "low", 11, (9, 13), "held"),
    "across the upper end where less is better": (10, 20, "low", 19, (15, 23), "open"),
    "across both where less is better": (10, 20, "low", 15, (5, 25), "open"),
    "over it where less is better": (10, 20, "low", 25, (22, 28), "not held"),
    "over it where more is better": (10, 20, "high", 25, (22, 28), "better"),
    "across the upper end where more is better": (10, 20, "high", 19, (15, 23), "held"),
    "under it where more is better": (10, 20, "high", 5, (4, 6), "not held"),
    "no lower end": (None, 20, "low", 1, (0, 2), "held"),
    "no upper end": (10, None, "high", 99, (50, 150), "held"),
    "no upper bound known": (None, 20, "low", 15, (10, float("inf")), "open"),
    "not measured": (10, 20, "low", None, None, "not measured"),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_a_claim_is_held_broken_or_open(case: str) -> None:
    low, high, good, value, interval, outcome = OUTCOMES[case]
    assert JudgedClaim("said", low, high, "ms", "", value, interval, good=good).outcome == outcome  # type: ignore[arg-type]


@given(st.lists(Numbers, min_size=5, max_size=5).map(sorted), Numbers, Numbers)
def test_what_holds_is_never_called_broken_and_less_than_claimed_never_worse(
    values: list[float], one: float, other: float
) -> None:
    low, high = min(one, other), max(one, other)
    least, _, value, _, most = values
    strict, kind = (
        JudgedClaim("said", low, high, "ms", "", value, (least, most), good=good)  # type: ignore[arg-type]
        for good in ("", "low")
    )
    assert (strict.outcome == "held") == (low <= least and most <= high)
    assert (
        kind.outcome in {"held": ["held"], "open": ["open", "held"], "not held": ["not held", "better"]}[strict.outcome]
    )
    assert most > high or kind.outcome in ("held", "better")


def test_bytes_of_the_indexes_are_kilobytes_a_share_of_their_table_and_a_table_that_grew(made: Run) -> None:
    assert held_against(made, measure="index_kb", high=1).value == pytest.approx(30_000_000 / 1024)
    assert held_against(made, measure="index_share", high=1).value == pytest.approx(30 / 61)
    assert held_against(made, measure="table_mb", high=1).value == pytest.approx(91_000_000 / 1024**2)
    assert held_against(made, measure="table_mb", arm="before", high=1).value == pytest.approx(61_000_000 / 1024**2)


def test_build_times_are_the_slowest_with_the_span_of_all_and_their_sum(made: Run) -> None:
    slowest, total = (held_against(made, measure=measure, high=1) for measure in ("build_s", "build_total_s"))
    assert (slowest.value, slowest.interval) == (0.31, (0.31, 0.31))
    assert (total.value, total.interval) == (0.62, None)
    assert {slowest.evidence, total.evidence} == {"measured once"}


def test_the_execution_time_is_that_of_the_plan_shown_with_the_span_of_every_execution(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path / "run"))
    last = run.bundle.plan("before", "conflict_check").plan
    first = read_plan({**last.document, "Execution Time": 99.0})
    run.bundle.add_plan("before", "conflict_check", Capture((first, last)))
    found = held_against(run, measure="execution_ms", query="conflict_check", arm="before", low=80, high=100)
    assert found.value == pytest.approx(41.22)
    assert found.interval == (pytest.approx(41.22), 99.0)
    assert found.outcome == "open"


def test_figures_under_load_are_those_of_the_tables_with_their_intervals(made: Run) -> None:
    level = made.analysis.level("after-index", "burst")
    assert level and level.p95 and level.p50 and level.throughput
    for measure, own in (("p95_ms", level.p95), ("p50_ms", level.p50), ("throughput", level.throughput)):
        found = held_against(made, measure=measure, scenario="burst", high=1)
        assert (found.value, found.interval, found.evidence) == (own.value, (own.lo, own.hi), "measured under load")
    query = made.analysis.level("after-index", "queries", "conflict_check")
    assert query and query.p50
    assert held_against(made, measure="latency_ms", query="conflict_check", high=1).value == query.p50.value


def test_what_is_saved_and_what_is_added_come_from_the_comparisons(made: Run) -> None:
    p95 = made.analysis.comparison("after-index", "burst", "p95")
    p50 = made.analysis.comparison("after-index", "queries", "p50", "conflict_check")
    assert p95 and p95.ratio and p50 and p50.ratio
    saved = held_against(made, measure="latency_saved", scenario="burst", low=0.6, high=0.7)
    assert saved.value == 1 - p95.ratio.value
    assert saved.interval == (1 - p95.ratio.hi, 1 - p95.ratio.lo)
    assert saved.outcome == "better"  # five sixths
    assert held_against(made, measure="latency_saved", query="conflict_check", low=0.6).value == 1 - p50.ratio.value
    change = next(c for c in made.analysis.throughputs if (c.after, c.scenario) == ("after-index", "burst"))
    more = held_against(made, measure="throughput_change", scenario="burst", low=-0.05, high=0.05)
    assert (more.value, more.interval) == (change.ratio.value - 1, (change.ratio.lo - 1, change.ratio.hi - 1))


def test_no_error_in_n_requests_excludes_only_rates_above_three_in_n(made: Run) -> None:
    sent = sum(level.sent for level in made.analysis.levels if level.arm == "after-index")
    none = held_against(made, measure="error_rate", high=0.001)
    assert (none.value, none.interval) == (0, (0, pytest.approx(3 / sent, rel=0.01)))
    assert none.outcome == "open" if sent < 3000 else "held"
    assert held_against(made, measure="error_rate", high=0.5).outcome == "held"


def test_errors_that_are_there_have_a_lower_bound_too(made: Run) -> None:
    levels = tuple(replace(x, errors=x.sent // 10) if x.arm == "after-index" else x for x in made.analysis.levels)
    own = ClaimEvidence(made.bundle.run, replace(made.analysis, levels=levels), made.bundle, "before", "after-index")
    claim = Claim(text="none", measure="error_rate", high=0.001)
    (found,) = judge([claim], own)
    failed, sent = (sum(getattr(x, key) for x in levels if x.arm == "after-index") for key in ("errors", "sent"))
    assert found.interval == (1 - error_bound(sent - failed, sent), error_bound(failed, sent))
    assert found.outcome == "not held"


LACKING: dict[str, tuple[dict[str, Any], str]] = {
    "an arm that was left out": ({"measure": "index_kb", "arm": "gone"}, "gone was not measured"),
    "an arm without indexes": ({"measure": "build_s", "arm": "before"}, "no index is built on before"),
    "a query without a plan": ({"measure": "execution_ms", "query": "gone"}, "no plan of gone on after-index"),
    "a level that was left out": ({"measure": "p95_ms", "scenario": "gone"}, "no round of gone on after-index"),
    "what no one compares": ({"measure": "latency_saved", "scenario": "gone"}, "not compared on after-index"),
    "before against itself": ({"measure": "throughput_change", "scenario": "ten", "arm": "before"}, "not compared"),
    "what only the lab measures": ({"measure": "insert_slowdown"}, "only the index lab measures it"),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_was_not_measured_says_why(case: str, made: Run) -> None:
    claim, why = LACKING[case]
    found = held_against(made, **claim, high=1)
    assert (found.value, found.outcome) == (None, "not measured")
    assert found.why.startswith(why)


def test_a_percentile_without_the_samples_for_it_says_how_many_it_takes(made: Run) -> None:
    few = tuple(replace(x, p95=None, n=30) if x.scenario == "burst" else x for x in made.analysis.levels)
    run = Run(made.bundle)
    run.analysis = replace(made.analysis, levels=few)
    found = held_against(run, measure="p95_ms", scenario="burst", high=1)
    assert (found.outcome, found.why) == ("not measured", "72 requests are needed, 30 were answered")


def test_numbers_of_a_client_that_was_too_slow_are_held_against_nothing(made: Run) -> None:
    slow = tuple(replace(x, healthy=False, fault="lag 9 ms") for x in made.analysis.levels)
    run = Run(made.bundle)
    run.analysis = replace(made.analysis, levels=slow)
    found = held_against(run, measure="p95_ms", scenario="burst", high=1)
    assert (found.outcome, found.why) == ("not measured", "the client was too slow: lag 9 ms")


@pytest.fixture(scope="module")
def booking(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with the claims of the booking system's configuration."""
    return Run(make_run(tmp_path_factory.mktemp("booking") / "run"))


class TestOfTheBookingSystem:
    """The checklist's own claims, in a run of its configuration."""

    def test_those_of_a_set_up_are_judged_there_alone(self, booking: Run) -> None:
        every = booking.bundle.run.config.claim
        own = [claim.text for claim in every if claim.preset is None]
        assert [claim.text for claim in judged(booking.bundle.run, booking.analysis, booking.bundle)] == own
        assert elsewhere(booking.bundle.run) == {"checklist": len(every) - len(own)}
        there = booking.bundle.run.model_copy(deep=True)
        there.parameters.preset = "checklist"
        assert len(judged(there, booking.analysis, booking.bundle)) == len(every)
        assert elsewhere(there) == {}

    def test_the_documents_tables_are_claimed_whole(self, booking: Run) -> None:
        claimed = {(c.scenario, c.arm) for c in booking.bundle.run.config.claim if c.measure == "p95_ms"}
        levels = {
            (load, arm) for load in ("single", "ramp-up", "ten", "burst") for arm in ("after-index", "after-full")
        }
        assert claimed == levels | {(load, "before") for load in ("single", "ramp-up", "burst")}

    def test_the_page_says_how_many_held_and_shows_each(self, booking: Run) -> None:
        text = repr(booking.claims)
        assert text.startswith("Expected and measured\n\nOf 11 claims: ")
        assert "more apply only in the set-up 'checklist': perfkit report --preset checklist." in text
        assert "they take about 340 kB of 2.2 MB (after-index)" in text
        assert "the index lab measures it: perfkit indexes ablate" in text
        assert "<h2>Expected and measured</h2>" in booking.claims.html()

    def test_in_the_set_up_a_table_by_load_level_stands_beside_the_documents(self, booking: Run) -> None:
        there = booking.bundle.run.model_copy(deep=True)
        there.parameters.preset = "checklist"
        subject = Subject(Bundle(booking.bundle.path, there), booking.analysis)
        lines = repr(display.claims_block(subject)).splitlines()
        (burst,) = (line for line in lines if line.startswith("30 at once (burst)"))
        assert [words in burst for words in ("669 to 817", "432 to 528", "405 to 495")] == [True] * 3
        (ten,) = (line for line in lines if line.startswith("10 concurrent (ten)"))
        assert "no claim" in ten
        assert any("Set-up 'checklist': scale standard, a round trip of 0 ms" in line for line in lines)

    def test_the_verdict_holds_each_with_its_outcome_and_the_summary_those_that_did_not_hold(
        self, booking: Run
    ) -> None:
        said = json.loads(verdict(booking.subject))["claims"]
        assert [claim["outcome"] for claim in said] == [
            c.outcome for c in judged(booking.bundle.run, booking.analysis, booking.bundle)
        ]
        assert {"text", "low", "high", "unit", "evidence", "value", "interval", "why"} <= said[0].keys()
        text = summary(booking.subject)
        assert "Expected and measured. Of 11 claims: " in text
        assert text.count("- not held: ") == sum(claim["outcome"] == "not held" for claim in said) > 0

    def test_a_labs_summary_in_the_run_is_used_for_what_the_lab_alone_measures(self, booking: Run) -> None:
        text = "no risk: they do not affect data"
        own = JudgedClaim(text, None, 0, "share", "measured under load", 0.12, (0.05, 0.2), measure="insert_slowdown")
        lab = json.loads(json.dumps({"sentence": "", "claims": [dict(_fields(own))]}))
        run = booking.bundle.run.model_copy(update={"lab": LabSummary(**lab)})
        found = judged(run, booking.analysis, booking.bundle)
        assert next(claim for claim in found if claim.text == text) == own
        older = booking.bundle.run.model_copy(update={"lab": LabSummary(sentence="Keep 1 of 7.")})
        old = judged(older, booking.analysis, booking.bundle)
        assert next(claim for claim in old if claim.text == text).outcome == "not measured"


def _fields(claim: JudgedClaim) -> list[tuple[str, Any]]:
    return [(name, getattr(claim, name)) for name in JudgedClaim.__dataclass_fields__]


def test_a_run_without_claims_and_an_older_bundle_have_no_such_section(made: Run) -> None:
    assert not made.bundle.run.config.claim and not made.bundle.run.parameters.preset
    assert (made.claims.html(), repr(made.claims)) == ("", "")
    assert json.loads(verdict(made.subject))["claims"] == []
    assert "Expected and measured" not in summary(made.subject)


def test_one_arm_alone_has_changed_nothing_and_is_held_against_no_claim(booking: Run) -> None:
    alone = booking.bundle.run.model_copy(deep=True)
    alone.roles, alone.parameters.arms = {"after-index": "before"}, ["after-index"]
    assert judged(alone, booking.analysis, booking.bundle) == []


def test_what_is_rolled_back_again_keeps_no_claim() -> None:
    settings = config.load()
    arms = tuple(arm.model_copy(update={"rolled_back": bool(arm.indexes)}) for arm in settings.arm)
    described = Selection(settings.model_copy(update={"arm": arms}), RunSpec()).describe()
    assert described.config.claim == []


def test_hostile_text_in_a_claim_is_shown_and_does_nothing(made: Run, tmp_path: Path) -> None:
    bundle = make_run(tmp_path / "run")
    text = "<script>alert(1)</script> \x1b[31m | `"
    bundle.run.config.claim = [Claim(text=text, measure="index_kb", high=1)]
    bundle.update()
    run = Run(bundle)
    assert "<script>" not in run.claims.html() and "&lt;script&gt;" in run.claims.html()
    assert "\x1b" not in repr(run.claims)
    assert "<script>" not in summary(run.subject)


class TestInALab:
    class Lab:
        """What a lab's claims look at, of the made-up run: after-index has the indexes, before none."""

        def __init__(self, run: Run, claims: list[dict[str, Any]], baseline: str | None = "before") -> None:
            arms = {"none": "before", "all": "after-index"}
            facts = run.bundle.run.model_copy(deep=True)
            facts.arms = {new: facts.arms[old] for new, old in arms.items()}
            facts.parameters.arms = list(arms)
            bundle = Bundle(run.bundle.path, facts)
            names = {old: new for new, old in arms.items()}
            levels = tuple(replace(x, arm=names[x.arm]) for x in run.analysis.levels if x.arm in names)
            comparisons = tuple(replace(c, after=names[c.after]) for c in run.analysis.comparisons if c.after in names)
            analysis = replace(run.analysis, levels=levels, comparisons=comparisons)
            self.ablation = LabRun(bundle, analysis, {"none": [], "all": ["one"]})
            self.changes = comparisons
            about = {"title": "", "margin": 0.05, "indexes": [], "parameters": {"profile": "", "scale": "", "seed": 1}}
            self.record = LabRecord.model_validate({**about, "claims": claims, "baseline": baseline})

        def is_insert(self, c: Any) -> bool:
            return bool(c.item == "status_counts")

    def test_all_indexes_are_meant_and_none_where_a_claim_is_about_before(self, made: Run) -> None:
        said: list[dict[str, Any]] = [
            {"measure": "index_kb"},
            {"measure": "latency_ms", "query": "conflict_check"},
            {"measure": "latency_ms", "query": "conflict_check", "arm": "before"},
            {"measure": "insert_slowdown"},
            {"measure": "p95_ms", "scenario": "burst"},
            {"measure": "error_rate"},
            {"measure": "table_mb", "preset": "checklist"},
        ]
        claims = [Claim.model_validate({"text": "said", "high": 1, **one}).model_dump() for one in said]
        size, after, before, insert = lab_judged(self.Lab(made, claims))  # type: ignore[arg-type]
        assert size.value == pytest.approx(30_000_000 / 1024)
        assert (after.arm, before.arm) == ("all", "none")
        assert after.value and before.value and before.value > 3 * after.value
        assert insert.value is not None and insert.value < 0

    def test_the_record_of_an_older_lab_has_claims_without_an_arm(self, made: Run) -> None:
        old = {"text": "said", "measure": "build_total_s", "query": None, "low": None, "high": 10}
        (found,) = lab_judged(self.Lab(made, [old], None))  # type: ignore[arg-type]
        assert (found.value, found.outcome) == (0.62, "held")


def test_the_analysis_of_a_bundle_and_its_claims_agree_after_a_round_trip_through_the_disk(made: Run) -> None:
    again = Bundle.open(made.bundle.path)
    run = again.run.model_copy(deep=True)
    run.config.claim = [Claim(text="said", measure="index_kb", high=1)]
    assert judged(run, analyse(again), again) == judged(run, made.analysis, made.bundle)
