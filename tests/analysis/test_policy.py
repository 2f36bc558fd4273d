"""GO, NO-GO, NO BENEFIT or INCONCLUSIVE: each rule with its sentence, and the decision they lead to."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.analysis.policy import (
    BENEFIT,
    WHEN,
    Rule,
    checks_rule,
    comparison_rule,
    decide,
    error_rule,
    index_rule,
    latency_rule,
)
from perfkit.base.judgement import Outcome, Verdict
from perfkit.base.resources import CHECKOUT
from perfkit.base.stats import Interval, Ratio


def rule(outcome, arm="after-index", text="A sentence."):
    return Rule(name="p95", outcome=outcome, text=text, arm=arm, scenario="burst", value=1.0, unit="ms")


ORDINARY = (Outcome.HOLDS, Outcome.BROKEN, Outcome.UNPROVEN)  # of a rule that is not on the benefit
HOLDS, BROKEN, UNPROVEN = map(rule, ORDINARY)
ERRORS = (1, 2, 97, 105)  # exit codes of errors, see perfkit.base.errors


# rules


@pytest.mark.parametrize(
    ("lo", "value", "hi", "outcome", "sentence"),
    [
        (50, 62, 71.25, "holds", "p95 62 ms is under 500 ms (95 % interval 50 to 71.2 ms)."),
        (50, 480, 520, "unproven", "p95 480 ms is under 500 ms, but its upper bound is not (95 % interval 50 to 520"),
        (50, 499.96, 500, "unproven", "but its upper bound is not"),
        (50, 880.4, 910, "unproven", "p95 880 ms is not under 500 ms, but its lower bound is (95 % interval 50 to"),
        (500, 880.4, 910, "broken", "p95 880 ms is not under 500 ms (95 % interval 500 to 910 ms)."),
        (50, 62, math.inf, "unproven", "bound is not; 90 samples in 6 rounds like these set no upper bound."),
    ],
)
def test_a_latency_holds_and_breaks_by_its_whole_interval(lo, value, hi, outcome, sentence):
    found = latency_rule("after-index", "burst", 95, Interval(value, lo, hi, 90, 6), 500, 90)
    assert found.outcome == outcome
    assert found.text.startswith("after-index, burst: p95 ")
    assert sentence in found.text
    assert bool(found.needs) is (outcome == "unproven")
    decides = lo if outcome == "broken" else hi
    assert (found.value, found.bound, found.limit, found.unit) == (value, decides, 500, "ms")


def test_a_percentile_without_its_samples_proves_nothing():
    found = latency_rule("after-index", "single", 95, None, 500, 40)
    assert (found.outcome, found.value, found.bound) == (Outcome.UNPROVEN, None, None)
    assert found.text == "after-index, single: p95 needs 72 samples, has 40."


TERMINATED = "1 x SQLSTATE 57P01 (terminating connection)"
NONE, STRAY = [(0, 30)] * 80, [(1, 30), *[(0, 30)] * 10]


@pytest.mark.parametrize(
    ("rounds", "limit", "outcome", "sentence"),
    [
        (NONE, 0.001, "holds", "none of 2,400 requests failed. The true error rate is below 0.13 % (95 % confidence)."),
        ([(0, 50)], 0, "holds", "none of 50 requests failed. The true error rate is below 5.9 % (95 % confidence)."),
        ([(1, 30), *NONE], 0.001, "holds", f"1 of 2,430 requests failed, 0.041 %; the limit is 0.1 %: {TERMINATED}"),
        (STRAY, 0.001, "unproven", "too few requests to say whether the limit of 0.1 % is broken: 1 x SQLSTATE 57P01"),
        ([(30, 30), *[(0, 30)] * 11], 0.001, "unproven", "30 of 360 requests failed, 8.3 % (95 % interval 0."),
        (
            [(1, 30)] * 12,
            0.001,
            "broken",
            "12 of 360 requests failed, 3.3 % (95 % interval 1.",
        ),
        (
            [(30, 30)] * 6,
            0.001,
            "broken",
            "180 of 180 requests failed, 100 % (95 % interval 97.7 % to 100 %); the limit is 0.1 %",
        ),
        (STRAY, 0, "broken", "1 of 330 requests failed"),
        ([(0, 0)], 0.001, "unproven", "no request was counted, so the error rate is not known."),
        ([], 0.001, "unproven", "no request was counted, so the error rate is not known."),
    ],
)
def test_errors_are_judged_by_their_pooled_count_in_an_interval_by_rounds(rounds, limit, outcome, sentence):
    found = error_rule("after-full", rounds, limit, [TERMINATED])
    assert found.outcome == outcome
    assert found.text.startswith("after-full: ") and sentence in found.text
    assert bool(found.needs) is (outcome == "unproven")


@given(st.lists(st.tuples(st.integers(0, 30), st.just(30)), min_size=1, max_size=12), st.floats(0.0001, 0.9))
def test_an_error_rates_upper_bound_never_stands_in_the_way(rounds, limit):
    found, pooled = error_rule("a", rounds, limit), sum(failed for failed, _ in rounds) / (30 * len(rounds))
    assert (found.outcome is Outcome.HOLDS) is (pooled < limit)
    assert found.outcome is not Outcome.BROKEN or pooled >= limit


@pytest.mark.parametrize(
    ("passed", "total", "failed", "outcome", "sentence"),
    [
        (7, 7, [], "holds", "all 7 functional checks passed."),
        (5, 7, ["isolation", "booking"], "broken", "2 of 7 functional checks failed: isolation, booking."),
        (0, 0, [], "unproven", "no functional check ran."),
    ],
)
def test_every_functional_check_must_pass(passed, total, failed, outcome, sentence):
    found = checks_rule("before", passed, total, failed)
    assert (found.outcome, found.text) == (outcome, f"before: {sentence}")


@pytest.mark.parametrize(
    ("expected", "valid", "outcome", "sentence"),
    [
        (["a", "b"], ["b", "a", "other"], "holds", "all 2 indexes are valid."),
        (["a", "b", "c"], ["b"], "broken", "2 of 3 indexes missing or invalid: a, c."),
        ([], [], "holds", "no index to build."),
    ],
)
def test_every_index_must_be_valid(expected, valid, outcome, sentence):
    found = index_rule("after-index", expected, valid)
    assert (found.outcome, found.text) == (outcome, f"after-index: {sentence}")


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.FASTER, "holds"),
        (Verdict.EQUIVALENT, "holds"),
        (Verdict.SLOWER, "broken"),
        (Verdict.INCONCLUSIVE, "holds"),
        (Verdict.INVALID, "unproven"),
    ],
)
def test_only_slower_breaks_and_only_invalid_leaves_a_comparison_open(verdict, outcome):
    found = comparison_rule("after-index", "ten", "p50", verdict, Ratio(1.1, 0.9, 1.3, 0.2, 12, 0.1))
    assert found.outcome == outcome
    assert found.text.startswith("after-index, ten: p50 ")


def test_an_inconclusive_comparison_says_that_it_blocks_nothing():
    found = comparison_rule("a", "ten", "p50", Verdict.INCONCLUSIVE, Ratio(1.1, 0.9, 1.3, 0.2, 12, 0.1))
    assert found.text == (
        "a, ten: p50 is inconclusive (1.1 of before, 95 % interval 0.9 to 1.3). This does not block a GO."
    )


def test_a_comparison_without_a_ratio_says_why():
    found = comparison_rule("a", "ten", "p95", Verdict.INVALID, None)
    assert found.text == "a, ten: p95 cannot be compared: there are too few healthy rounds."
    assert (found.value, found.bound) == (None, None)


# the decision

tables = st.lists(
    st.builds(lambda arm, outcome: rule(outcome, arm), st.sampled_from(["a", "b"]), st.sampled_from(ORDINARY)),
    max_size=8,
)
benefits = st.tuples(*[st.sampled_from([Outcome.HOLDS, Outcome.UNPROVEN, Outcome.ABSENT])] * 2)


def benefit(outcome, arm="after-index"):
    return replace(rule(outcome, arm), name=BENEFIT)


@given(tables, benefits)
def test_the_decision_is_what_the_rules_of_all_arms_lead_to(rules, has):
    every = [*rules, *map(benefit, has, "ab")]
    found, outcomes = decide(every, ["a", "b"]), {rule.outcome for rule in every}
    expected = Outcome.UNPROVEN
    if Outcome.BROKEN in outcomes:
        expected = Outcome.BROKEN
    elif set(has) == {Outcome.ABSENT}:
        expected = Outcome.ABSENT
    elif outcomes == {Outcome.HOLDS}:
        expected = Outcome.HOLDS
    assert found.outcome is expected
    assert found.reasons and found.rules == tuple(every)


@given(tables, benefits)
def test_the_decision_on_two_arms_follows_from_that_on_each_alone(rules, has):
    every = [*rules, *map(benefit, has, "ab")]
    both, alone = decide(every, ["a", "b"]).outcome, [decide(every, [arm]).outcome for arm in "ab"]
    assert (both is Outcome.BROKEN) is (Outcome.BROKEN in alone)
    assert (both is Outcome.HOLDS) is (set(alone) == {Outcome.HOLDS})
    assert (both is Outcome.ABSENT) is (set(alone) == {Outcome.ABSENT})


@given(st.permutations([HOLDS, UNPROVEN, benefit(Outcome.ABSENT), benefit(Outcome.HOLDS), BROKEN]), st.integers(1, 5))
def test_the_order_of_rules_is_of_no_importance(rules, count):
    chosen = rules[:count]
    assert decide(chosen, ["after-index"]).outcome is decide(chosen[::-1], ["after-index"]).outcome


def test_without_a_benefit_there_is_no_go_and_where_none_was_judged_neither():
    assert decide([HOLDS, benefit(Outcome.HOLDS)], ["after-index"]).outcome is Outcome.HOLDS
    assert decide([HOLDS, benefit(Outcome.UNPROVEN)], ["after-index"]).outcome is Outcome.UNPROVEN
    assert decide([UNPROVEN, benefit(Outcome.ABSENT)], ["after-index"]).outcome is Outcome.ABSENT
    found = decide([HOLDS], ["after-index"])
    assert found.reasons == ("after-index: its benefit was not judged.",)
    assert found.outcome is Outcome.UNPROVEN


def test_one_arm_compared_with_nothing_needs_no_benefit():
    assert decide([HOLDS], ["after-index"], compared=False).outcome is Outcome.HOLDS
    assert decide([UNPROVEN], ["after-index"], compared=False).outcome is Outcome.UNPROVEN


def test_an_arm_without_benefit_beside_one_with_leaves_both_open_and_says_how_to_go_on():
    rules = [benefit(Outcome.HOLDS), benefit(Outcome.ABSENT, "after-full")]
    found = decide(rules, ["after-index", "after-full"])
    assert found.outcome is Outcome.UNPROVEN
    assert found.reasons == ("A sentence. Decide on the other arms without it.",)


def test_arms_before_the_change_are_shown_and_do_not_decide():
    before = rule(Outcome.BROKEN, arm="before")
    found = decide([before, HOLDS, benefit(Outcome.HOLDS)], ["after-index"])
    assert found.outcome is Outcome.HOLDS
    assert found.rules[0] is before


def test_what_was_not_judged_is_never_a_go():
    assert decide([], []).reasons == ("No arm after the change was judged.",)
    assert decide([HOLDS], []).outcome is Outcome.UNPROVEN
    found = decide([HOLDS, benefit(Outcome.HOLDS)], ["after-index", "after-full"])
    assert found.outcome is Outcome.UNPROVEN
    assert found.reasons == ("after-full: no rule was judged.",)


# how a decision leaves the command line


def test_each_decision_has_an_exit_code_of_its_own():
    codes = {outcome.decision: outcome.exit_code() for outcome in Outcome}
    assert codes == {"GO": 0, "NO BENEFIT": 96, "NO-GO": 99, "INCONCLUSIVE": 100}
    assert len({*codes.values(), Outcome.UNPROVEN.exit_code(invalid=True), *ERRORS}) == len(codes) + 1 + len(ERRORS)


def test_the_method_page_has_the_table_of_decisions():
    page = (CHECKOUT / "docs" / "method.md").read_text()
    for outcome, when in WHEN.items():
        assert f"| **{outcome.decision}** | {when} | {outcome.exit_code()} |\n" in page
