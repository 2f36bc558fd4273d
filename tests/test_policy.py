"""GO, NO-GO or INCONCLUSIVE: each rule with its sentence, and the decision they lead to."""

import math
from itertools import product

import pytest

from perfkit.analysis.policy import (
    Decision,
    Outcome,
    Rule,
    checks_rule,
    comparison_rule,
    decide,
    error_rule,
    index_rule,
    latency_rule,
    which_arms_pass,
)
from perfkit.stats import Interval, Ratio, Verdict


def rule(outcome, arm="after-index", text="A sentence."):
    return Rule(arm, "burst", "p95", 1.0, 2.0, 3.0, "ms", outcome, text)


HOLDS, BROKEN, UNPROVEN = (rule(outcome) for outcome in Outcome)


# rules


@pytest.mark.parametrize(
    ("value", "hi", "outcome", "sentence"),
    [
        (62, 71.25, "holds", "p95 62 ms is under 500 ms (95 % interval 50 to 71.25 ms)."),
        (
            480,
            520,
            "unproven",
            "p95 480 ms is under 500 ms, but its bound is not (95 % interval 50 to 520 ms).",
        ),
        (499.96, 500, "unproven", "but its bound is not"),
        (880.4, 910, "broken", "p95 880.4 ms is not under 500 ms (95 % interval 50 to 910 ms)."),
        (500, 510, "broken", "p95 500 ms is not under 500 ms"),
        (62, math.inf, "unproven", "bound is not; 90 samples in 6 rounds like these set no upper bound."),
    ],
)
def test_a_latency_holds_by_its_bound_and_breaks_by_its_estimate(value, hi, outcome, sentence):
    found = latency_rule("after-index", "burst", 95, Interval(value, 50.0, hi, 90, 6), 500, 90)
    assert found.outcome == outcome
    assert found.text.startswith("after-index, burst: p95 ")
    assert sentence in found.text
    assert (found.value, found.bound, found.limit, found.unit) == (value, hi, 500, "ms")


def test_a_percentile_without_its_samples_proves_nothing():
    found = latency_rule("after-index", "single", 95, None, 500, 40)
    assert (found.outcome, found.value, found.bound) == (Outcome.UNPROVEN, None, None)
    assert found.text == "after-index, single: p95 needs 72 samples, has 40."


@pytest.mark.parametrize(
    ("errors", "n", "limit", "outcome", "sentence"),
    [
        (0, 2460, 0.001, "holds", "0 of 2460 requests failed; rates above 0.12 % are excluded."),
        (1, 2460, 0.001, "holds", "1 of 2460 requests failed; rates above 0.19 % are excluded."),
        (3, 2460, 0.001, "broken", "3 of 2460 requests failed, 0.12 %, not under 0.1 %."),
        (1, 1000, 0.001, "broken", "1 of 1000 requests failed, 0.1 %, not under 0.1 %."),
        (0, 50, 0, "holds", "0 of 50 requests failed; rates above 5.8 % are excluded."),
        (1, 50, 0, "broken", "1 of 50 requests failed, 2 %, not under 0 %."),
        (0, 0, 0.001, "unproven", "no request was counted, so no error rate is known."),
    ],
)
def test_errors_are_judged_by_their_pooled_count(errors, n, limit, outcome, sentence):
    found = error_rule("after-full", errors, n, limit)
    assert (found.outcome, found.text) == (outcome, f"after-full: {sentence}")


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
        "a, ten: p50 is inconclusive (1.1 of before, 95 % interval 0.9 to 1.3), which blocks nothing."
    )


def test_a_comparison_without_a_ratio_says_why():
    found = comparison_rule("a", "ten", "p95", Verdict.INVALID, None)
    assert found.text == "a, ten: p95 cannot be compared: the rounds are too few or unhealthy."
    assert (found.value, found.bound) == (None, None)


# the decision


@pytest.mark.parametrize("outcomes", list(product(Outcome, repeat=3)))
def test_one_broken_rule_is_no_go_one_unproven_is_inconclusive_all_holding_is_go(outcomes):
    found = decide([rule(outcome, text=outcome) for outcome in outcomes], ["after-index"])
    if Outcome.BROKEN in outcomes:
        assert found.decision is Decision.NO_GO
        assert set(found.reasons) == {"broken"}
    elif Outcome.UNPROVEN in outcomes:
        assert found.decision is Decision.INCONCLUSIVE
        assert set(found.reasons) == {"unproven"}
    else:
        assert found.decision is Decision.GO
        assert found.reasons == ("after-index: all 3 rules hold.",)


def test_arms_before_the_change_are_shown_and_do_not_decide():
    before = rule(Outcome.BROKEN, arm="before")
    found = decide([before, HOLDS], ["after-index"])
    assert found.decision is Decision.GO
    assert found.rules == (before, HOLDS)


def test_every_arm_after_the_change_must_hold_and_each_is_also_decided_alone():
    rules = [HOLDS, rule(Outcome.UNPROVEN, "after-full"), rule(Outcome.BROKEN, "after-both")]
    assert decide(rules, ["after-index", "after-full"]).decision is Decision.INCONCLUSIVE
    assert decide(rules, ["after-index", "after-both"]).decision is Decision.NO_GO
    assert which_arms_pass(rules, ["after-index", "after-full", "after-both", "absent"]) == {
        "after-index": Decision.GO,
        "after-full": Decision.INCONCLUSIVE,
        "after-both": Decision.NO_GO,
        "absent": Decision.INCONCLUSIVE,
    }


def test_what_was_not_judged_is_never_a_go():
    assert decide([], []).reasons == ("No arm after the change was judged.",)
    assert decide([HOLDS], []).decision is Decision.INCONCLUSIVE
    found = decide([HOLDS], ["after-index", "after-full"])
    assert found.decision is Decision.INCONCLUSIVE
    assert found.reasons == ("after-full: no rule was judged.",)
