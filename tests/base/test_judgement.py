"""Outcomes, marks and exit codes; an interval judged against a limit; the evidence that an open question needs."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from perfkit.base.judgement import (
    MARKS,
    MAX_FACTOR,
    Judgement,
    Outcome,
    evidence_needed,
    reaches,
    requests_needed,
    samples_needed,
    under,
    within,
    worst,
)
from perfkit.base.stats import MIN_SAMPLES, Estimate, error_bound

values = st.floats(0.001, 1e6)
estimates = st.tuples(values, values, values).map(sorted).map(lambda ends: Estimate(ends[1], ends[0], ends[2]))


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_word_an_exit_code_and_a_mark_of_its_own(outcome: Outcome) -> None:
    others = [other for other in Outcome if other is not outcome]
    assert Outcome.of(outcome.decision) is outcome
    assert outcome.mark == MARKS[outcome.state]
    for fact in (lambda one: one.decision, lambda one: one.exit_code(), lambda one: one.mark):
        assert fact(outcome) not in [fact(other) for other in others]


def test_invalid_comparisons_change_the_exit_code_of_an_open_question_only() -> None:
    codes = {outcome: outcome.exit_code(invalid=True) for outcome in Outcome}
    assert codes == {Outcome.HOLDS: 0, Outcome.BROKEN: 99, Outcome.ABSENT: 96, Outcome.UNPROVEN: 98}


def test_nothing_judged_is_unproven_and_what_is_only_shown_decides_nothing() -> None:
    assert worst([]) is worst([None]) is Outcome.UNPROVEN
    assert worst([None, Outcome.HOLDS]) is Outcome.HOLDS


def test_a_reason_names_the_evidence_that_is_needed() -> None:
    open_ = Judgement(name="p95", outcome=Outcome.UNPROVEN, text="p95 is not known.", needs="72 answers.")
    assert open_.reason == "p95 is not known. Needed: 72 answers."


@given(estimates, values)
def test_an_estimate_is_under_a_limit_exactly_if_it_does_not_reach_the_limit(estimate: Estimate, limit: float) -> None:
    opposite = {Outcome.HOLDS: Outcome.BROKEN, Outcome.BROKEN: Outcome.HOLDS, Outcome.UNPROVEN: Outcome.UNPROVEN}
    assert reaches(estimate, limit) is opposite[under(estimate, limit)]


@given(estimates, values, values)
def test_a_whole_interval_inside_holds_outside_is_broken_and_across_an_end_is_open(
    estimate: Estimate, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    inside = [low <= end <= high for end in (estimate.lo, estimate.hi)]
    outcome = within(estimate, low, high)
    assert (outcome is Outcome.HOLDS) is all(inside)
    assert outcome is not Outcome.BROKEN or not any(inside)


@given(estimates, values)
def test_an_open_question_needs_more_than_the_data_so_far_and_a_settled_one_does_not(
    estimate: Estimate, limit: float
) -> None:
    assume(not any(math.isclose(at, limit) for at in (estimate.value, estimate.lo, estimate.hi)))
    settled = under(estimate, limit) is not Outcome.UNPROVEN
    assert (evidence_needed(estimate, limit) <= 1) is settled


def test_an_interval_without_an_end_or_without_room_never_settles() -> None:
    assert evidence_needed(Estimate(10.0, 0.0, math.inf), 12.0) == math.inf
    assert evidence_needed(Estimate(10.0, 9.0, 11.0), 10.0) == math.inf


def test_four_times_the_data_halve_an_interval_of_either_sign() -> None:
    assert evidence_needed(Estimate(0.0, -2.0, 2.0), 1.0) == pytest.approx(4.0)
    assert evidence_needed(Estimate(1.0, 1 / 4, 4.0), 2.0) == pytest.approx(4.0)


def test_samples_and_requests_needed_are_enough() -> None:
    assert samples_needed(36, 95) * 36 == MIN_SAMPLES[95]
    assert samples_needed(0, 95) == math.inf
    factor = requests_needed(1, 100, 0.02)
    assert error_bound(round(factor), round(100 * factor)) <= 0.02 < error_bound(1, 100)
    assert requests_needed(3, 100, 0.02) == math.inf and MAX_FACTOR > 1
