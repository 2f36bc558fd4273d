"""Whether a change is good for anything: faster, a threshold mended, no gain worth having, or an index nothing uses."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import record_of

from perfkit.analysis.policy import BENEFIT, Rule, decide
from perfkit.analysis.results import Comparison, ErrorChange, Estimates
from perfkit.analysis.run_analysis import Evidence, Scans, beats_control, benefit_rule, excludes
from perfkit.base import judgement, stats
from perfkit.base.judgement import Outcome, Verdict
from perfkit.base.stats import Difference, Ratio
from perfkit.runs.records import ArmRecord

ROLES = {"before": "before", "control": "control", "after": "after"}


def run(changes=("indexes",), **config):
    record = record_of(ROLES, **config)
    record.arms, record.changes = {"after": ArmRecord(expected_indexes=["by_note"])}, {"after": list(changes)}
    return record


USED, PLANS = frozenset({"by_id"}), {"orders": "Seq Scan"}
UNUSED = Scans(
    {"before": USED, "after": USED}, {"before": PLANS, "after": PLANS}, {"after": {"by_id": 9, "by_note": 0}}
)
UNKNOWN = Scans({}, {}, {})


def ratio(value, spread=0.02, pairs=12):
    half = spread / math.sqrt(pairs) * 2.2
    return Ratio(value, value * math.exp(-half), value * math.exp(half), 0.5, pairs, spread)


def compared(value, verdict=Verdict.INCONCLUSIVE, margin=0.05, metric="p50", spread=0.02, **more):
    r = ratio(value, spread)
    p = stats.gain(r, 0.1, more_is_better=metric == "throughput")
    known = {"p_holm": 0.01, "p_equivalent": 0.5, "p_gain": p, "blocks_needed": None}
    return Comparison("before", "after", "burst", "book", metric, r, margin=margin, verdict=verdict, **known, **more)


FASTER, ALIKE, OPEN = compared(0.4, Verdict.FASTER), compared(1.0, Verdict.EQUIVALENT), compared(0.85, spread=0.5)


def judged(*comparisons, scans=UNKNOWN, rules=(), errors=(), complete=True, **config):
    estimates = Estimates(comparisons=comparisons, error_changes=tuple(errors))
    return benefit_rule("after", Evidence(run(**config), tuple(rules), estimates, scans, complete))


def rule(name, outcome, arm, scenario="burst"):
    return Rule(name=name, outcome=outcome, text="A sentence.", arm=arm, scenario=scenario, value=1.0, unit="ms")


# what is a benefit


def test_a_faster_comparison_is_a_benefit_and_the_largest_is_named():
    found = judged(FASTER, compared(0.2, Verdict.FASTER, metric="p95"), ALIKE)
    assert (found.name, found.outcome) == (BENEFIT, Outcome.HOLDS)
    assert found.text.startswith("after: 2 of 3 comparisons are faster: burst p95 of book (x0.2, 95 % interval ")


@pytest.mark.parametrize(
    ("comparison", "borne"),
    [
        (compared(0.93, Verdict.FASTER), True),
        (compared(0.93, Verdict.FASTER, margin=0.2), False),
        (compared(0.5, Verdict.FASTER, margin=0.2), True),
        (compared(1.1, Verdict.FASTER, margin=0.2, metric="throughput"), False),
        (compared(1.5, Verdict.FASTER, margin=0.2, metric="throughput"), True),
        (ALIKE, False),
    ],
)
def test_what_the_control_shows_too_is_no_benefit(comparison, borne):
    assert beats_control(comparison, 0.05) is borne
    found = judged(comparison)
    assert (found.outcome is Outcome.HOLDS) is borne
    if comparison.verdict is Verdict.FASTER and not borne:
        assert "faster, but not by more than the control differs by chance" in found.text and found.needs


@pytest.mark.parametrize(
    ("before", "control", "after", "benefit"),
    [
        ("broken", "broken", "holds", True),
        ("broken", "unproven", "holds", True),
        ("broken", "holds", "holds", False),  # chance mends it too
        ("unproven", "unproven", "holds", False),
        ("broken", "broken", "unproven", False),
        ("holds", "holds", "holds", False),
    ],
)
@pytest.mark.parametrize("name", ["p95", "error rate", "throughput", "capacity"])
def test_a_threshold_that_was_broken_before_and_holds_now_is_a_benefit(name, before, control, after, benefit):
    outcomes = {"before": before, "control": control, "after": after}
    rules = [rule(name, Outcome(own), arm) for arm, own in outcomes.items()]
    found = judged(OPEN, rules=rules)
    assert (found.outcome is Outcome.HOLDS) is benefit
    assert not benefit or f"a threshold that was broken before holds now: {name}" in found.text


def test_a_configuration_may_ask_for_no_benefit():
    assert judged(ALIKE, need="none").outcome is Outcome.HOLDS
    assert judged(ALIKE, need="benefit").outcome is Outcome.ABSENT


# where there is none


def test_no_gain_is_said_where_every_comparison_excludes_one_that_is_worth_having():
    found = judged(ALIKE, compared(0.97))
    assert found.outcome is Outcome.ABSENT
    assert found.text == "after: no gain above 10 % in any of its 2 comparisons with before (95 % confidence)."
    assert judged(ALIKE, OPEN).outcome is Outcome.UNPROVEN
    assert judged(ALIKE, compared(0.97), worth=0.01).text.startswith("after: no gain above 1 % in any of")


@pytest.mark.parametrize(
    "comparison",
    [
        replace(ALIKE, verdict=Verdict.INVALID),
        replace(ALIKE, ratio=None, p_gain=1.0, verdict=Verdict.INVALID),
        replace(ALIKE, margin=0.3),  # the control alone shows more
        compared(1.0, metric="throughput", bound="at least"),
        compared(1.0, metric="throughput", bound="not known"),
    ],
)
def test_what_bounds_no_gain_excludes_none(comparison):
    assert not excludes(comparison, 0.1, 0.05)
    assert judged(ALIKE, comparison).outcome is Outcome.UNPROVEN


def test_fewer_failures_or_a_before_that_drifted_leave_no_gain_open():
    fewer = Difference(-0.1, -0.2, -0.05, 0.01, 0.01, 12)
    assert (
        judged(ALIKE, errors=[ErrorChange("before", "after", "burst", "book", fewer, -0.1, True)]).outcome == "unproven"
    )
    assert judged(ALIKE, rules=[rule("befores agree", Outcome.UNPROVEN, "after")]).outcome is Outcome.UNPROVEN
    assert judged(ALIKE, rules=[rule("befores agree", Outcome.HOLDS, "after")]).outcome is Outcome.ABSENT


def test_a_run_that_is_not_whole_proves_no_lack_of_benefit():
    assert judged(ALIKE, complete=False, scans=UNUSED).outcome is Outcome.UNPROVEN


def test_an_index_that_no_plan_uses_is_no_benefit_of_this_workload():
    found = judged(OPEN, scans=UNUSED)
    assert found.outcome is Outcome.ABSENT
    assert found.text == "after: no plan of this workload uses the index by_note. Other workloads may."


@pytest.mark.parametrize(
    "scans",
    [
        replace(UNUSED, planned={"before": USED}),  # a plan is missing
        replace(UNUSED, planned={"after": USED | {"by_note"}}),
        replace(UNUSED, counted={}),  # others use the server
        replace(UNUSED, counted={"after": {"by_note": 1}}),  # another plan, of a prepared statement for example
        replace(UNUSED, shapes={"before": PLANS, "after": {"orders": "Index Scan"}}),  # its statistics changed a plan
    ],
)
def test_an_index_that_may_be_used_is_not_called_useless(scans):
    assert judged(OPEN, scans=scans).outcome is Outcome.UNPROVEN


@pytest.mark.parametrize("changes", [(), ("indexes", "settings"), ("service",)])
def test_a_change_that_is_more_than_an_index_is_not_judged_by_its_plans(changes):
    found = benefit_rule("after", Evidence(run(changes), (), Estimates(comparisons=(OPEN,)), UNUSED))
    assert found.outcome is Outcome.UNPROVEN


def test_what_is_open_says_which_and_about_how_many_blocks_it_would_take():
    found = judged(ALIKE, OPEN)
    assert (
        "no comparison is faster, and a gain above 10 % cannot be ruled out in 1 of 2: burst p50 of book (x0.85"
        in found.text
    )
    assert found.needs.startswith("about ") and "blocks in all" in found.needs
    assert judged().text == "after: nothing was compared with before."


# what holds of every table

ratios = st.builds(
    compared,
    st.floats(0.2, 3.0),
    st.sampled_from(list(Verdict)),
    st.sampled_from([0.05, 0.08, 0.3]),
    st.sampled_from(["p50", "p95", "throughput"]),
    st.floats(0.001, 1.0),
)


@given(st.lists(ratios, max_size=5), st.sampled_from([UNUSED, UNKNOWN]), st.sampled_from(["benefit", "none"]))
def test_a_go_has_a_benefit_and_no_benefit_has_no_faster_comparison(comparisons, scans, need):
    found = judged(*comparisons, scans=scans, need=need)
    decision = decide([found], ["after"]).outcome
    if decision is Outcome.HOLDS:
        assert need == "none" or any(c.verdict is Verdict.FASTER for c in comparisons)
    if decision is Outcome.ABSENT:
        assert need == "benefit" and not any(c.verdict is Verdict.FASTER for c in comparisons)
        assert scans is UNUSED or all(excludes(c, 0.1, 0.05) for c in comparisons)
    assert (found.outcome is Outcome.UNPROVEN) is (decision is Outcome.UNPROVEN)


@given(st.floats(0.5, 2), st.floats(0.01, 0.9), st.floats(0.01, 0.5))
def test_a_gain_is_excluded_where_the_one_sided_bound_does_and_in_the_same_way_for_throughput(value, spread, worth):
    r = ratio(value, spread)
    half = 1.796 * spread / math.sqrt(12)  # Student's t with 11 degrees of freedom, 95 %
    if abs(math.log(value) - half - math.log(1 - worth)) > 1e-3:
        assert (stats.gain(r, worth) <= 0.05) is (value * math.exp(-half) > 1 - worth)
    if abs(math.log(value) + half - math.log(1 + worth)) > 1e-3:
        assert (stats.gain(r, worth, more_is_better=True) <= 0.05) is (value * math.exp(half) < 1 + worth)


def test_blocks_for_a_gain_are_enough_where_the_spread_stays():
    r = ratio(1.0, 0.3)
    blocks = judgement.blocks_for_gain(r, 0.1)
    assert stats.gain(replace(r, pairs=blocks), 0.1) <= 0.05 < stats.gain(replace(r, pairs=blocks - 1), 0.1)
    assert judgement.blocks_for_gain(ratio(0.95, 5.0), 0.1) is None
