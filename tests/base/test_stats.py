"""Tests of statistics against scipy and against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.stats.mstats import hdquantiles

from perfkit.base.judgement import Verdict, blocks_for, blocks_needed, verdict, widened_margin
from perfkit.base.stats import (
    MIN_SAMPLES,
    Ratio,
    _ranks,
    equivalence,
    error_bound,
    holm,
    known_within,
    median,
    percentile,
    ratio,
    supported,
    tail,
    tail_ratio,
    typical,
)

repeatable = settings(deadline=None, derandomize=True, max_examples=60)

latency = st.floats(0.01, 60_000)
shares = st.floats(0, 1)


def rounds_of(rng, rounds=6, n=40, round_sd=0.1, sd=0.5):
    return [np.exp(rng.normal(rng.normal(0, round_sd), sd, n)) for _ in range(rounds)]


def result(value=1.0, lo=0.9, hi=1.1, p=0.5, pairs=12, sd_log=0.1):
    return Ratio(value, lo, hi, p, pairs, sd_log)


# percentiles and the samples they need


def test_percentile_interpolates_linearly():
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile(range(101), 95) == 95


def test_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one sample"):
        percentile([], 95)


@pytest.mark.parametrize("q", MIN_SAMPLES)
def test_min_samples_is_where_a_distribution_free_interval_becomes_finite(q):
    def bounded(n):
        """Both ends exist: neither all samples below the percentile nor all above is a 2.5 % surprise."""
        below = scipy_stats.binom(n, q / 100)
        return below.pmf(n) <= 0.025 and below.pmf(0) <= 0.025

    assert bounded(MIN_SAMPLES[q]) and not bounded(MIN_SAMPLES[q] - 1)
    assert supported(MIN_SAMPLES[q], q) and not supported(MIN_SAMPLES[q] - 1, q)


# intervals within an arm


def test_typical_is_the_t_interval_on_logs():
    values = [12.0, 15.0, 11.0, 18.0, 13.0]
    found = typical(values, n=200)
    logs = np.log(values)
    expected = scipy_stats.ttest_1samp(logs, 0).confidence_interval()
    assert found.value == pytest.approx(scipy_stats.gmean(values))
    assert (found.lo, found.hi) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert (found.n, found.rounds) == (200, 5)


@pytest.mark.parametrize("rounds", [6, 8, 9, 12, 17, 30])
def test_the_median_round_lies_between_the_ranks_that_binomial_tosses_leave(rounds):
    values = np.random.default_rng(rounds).permutation(np.arange(1.0, rounds + 1))
    found = median(values, 99)
    ranks = scipy_stats.binom(rounds, 0.5)
    assert found.value == np.median(values) and (found.n, found.rounds) == (99, rounds)
    assert (found.lo, found.hi) == (ranks.ppf(0.025), ranks.ppf(0.975) + 1)  # the values are their own ranks
    assert ranks.cdf(found.hi - 1) - ranks.cdf(found.lo - 1) >= 0.95, "so often the median lies between them"


@pytest.mark.parametrize("rounds", range(1, 6))
def test_fewer_than_six_rounds_enclose_no_median(rounds):
    assert 1 - 2 * 0.5**rounds < 0.95  # even between the least and the largest
    found = median([7.0] * rounds, 10)
    assert (found.value, found.lo, found.hi) == (7, 0, math.inf)
    assert median([], 0) is None


@repeatable
@given(st.lists(latency, min_size=6, max_size=30), st.floats(0.5, 2))
def test_the_median_round_and_its_ends_move_with_what_only_keeps_the_order(values, power):
    one, other = median(values, 0), median([value**power for value in values], 0)
    assert (other.lo, other.hi) == pytest.approx((one.lo**power, one.hi**power))
    assert one.lo <= one.value <= one.hi


def test_one_round_has_a_value_and_no_bounds():
    found = typical([7.0], n=30)
    assert (found.value, found.lo, found.hi) == (pytest.approx(7), 0, math.inf)
    found = tail([list(range(1, 101))], 95)
    assert (found.value, found.lo, found.hi, found.rounds) == (percentile(range(1, 101), 95), 0, math.inf, 1)


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf]])
def test_a_round_without_a_value_leaves_no_typical_one(values):
    assert typical(values, n=10) is None


def test_tail_needs_its_samples():
    assert tail([[1.0, 2.0]] * 35 + [[1.0]], 95) is None
    assert tail([[1.0, 2.0]] * 36, 95) is not None
    assert tail([], 95) is None


@pytest.mark.parametrize(("n", "q"), [(72, 95), (100, 95), (1200, 95), (368, 99), (6, 50), (500, 50)])
def test_independent_samples_give_the_binomial_order_statistics(n, q):
    below = scipy_stats.binom(n, q / 100)
    assert _ranks(n, n, q / 100) == (below.ppf(0.025), below.ppf(0.975) + 1)


def test_fewer_effective_samples_than_the_percentile_needs_leave_no_upper_end():
    assert _ranks(100, 72, 0.95)[1] == 100
    assert _ranks(100, 71, 0.95)[1] == 101


def test_tail_widens_when_the_same_samples_differ_by_round():
    samples = np.sort(np.exp(np.random.default_rng(4).normal(0, 0.5, 1200)))
    shuffled = tail(np.random.default_rng(5).permutation(samples).reshape(12, 100), 95)
    by_round = tail(samples.reshape(12, 100), 95)
    assert shuffled.value == by_round.value
    assert by_round.lo < shuffled.lo and by_round.hi > shuffled.hi
    assert by_round.hi > 2 * by_round.value, "all slow requests in one round of twelve: another may be slower yet"


def test_tail_has_no_upper_end_where_a_round_is_too_small_for_its_maximum_to_tell():
    samples = np.exp(np.random.default_rng(6).normal(0, 0.5, (8, 13)))
    assert tail(list(samples[:6]), 95).hi == math.inf
    assert math.isfinite(tail(list(np.exp(np.random.default_rng(6).normal(0, 0.5, (6, 14)))), 95).hi)


def test_empty_rounds_change_nothing():
    rounds = rounds_of(np.random.default_rng(1))
    assert tail([*rounds, []], 95) == tail(rounds, 95)


@repeatable
@given(st.integers(0, 2**32 - 1), st.sampled_from([50, 95]), st.floats(1e-3, 1e6))
def test_tail_scales_with_its_unit_and_encloses_its_value(seed, q, scale):
    rounds = rounds_of(np.random.default_rng(seed))
    one, other = tail(rounds, q), tail([scale * samples for samples in rounds], q)
    assert one.lo <= one.value <= one.hi
    assert (other.value, other.lo, other.hi) == pytest.approx((scale * one.value, scale * one.lo, scale * one.hi))


# ratios


def test_ratio_is_the_paired_t_interval_on_logs():
    before, after = [10.0, 12.0, 11.0, 14.0, 9.0, 10.0], [7.0, 9.0, 9.5, 9.0, 7.0, 8.0]
    test = scipy_stats.ttest_1samp(np.log(after) - np.log(before), 0)
    interval = test.confidence_interval()
    found = ratio(before, after)
    assert (found.lo, found.hi) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.p == pytest.approx(test.pvalue)
    assert found.value == pytest.approx(scipy_stats.gmean(after) / scipy_stats.gmean(before))
    assert found.pairs == 6


@pytest.mark.parametrize("broken", [0.0, -1.0, math.nan, math.inf])
def test_a_block_without_a_value_is_no_pair(broken):
    assert ratio([1.0, 2.0, 3.0], [2.0, broken, 7.0]) == ratio([1.0, 3.0], [2.0, 7.0])
    assert ratio([1.0, broken], [2.0, 3.0]) is None


def test_arms_of_different_length_are_not_pairs():
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])


def test_blocks_that_agree_exactly_leave_no_doubt():
    assert (ratio([2.0] * 6, [1.0] * 6).p, ratio([2.0] * 6, [2.0] * 6).p) == (0.0, 1.0)


def mirrored(one, other):
    assert (other.value, other.lo, other.hi) == pytest.approx((1 / one.value, 1 / one.hi, 1 / one.lo))
    assert other.p == pytest.approx(one.p)
    assert (other.pairs, other.sd_log) == (one.pairs, pytest.approx(one.sd_log))


@repeatable
@given(st.lists(st.tuples(latency, latency), min_size=3, max_size=20), st.floats(1e-3, 1e3))
def test_ratio_mirrors_when_arms_swap_and_ignores_the_unit(pairs, scale):
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    found = ratio(before, after)
    assume(1e-6 < found.sd_log < 5)
    mirrored(found, ratio(after, before))
    scaled = ratio([scale * a for a in before], [scale * b for b in after])
    assert (scaled.value, scaled.lo, scaled.hi) == pytest.approx((found.value, found.lo, found.hi))


@repeatable
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_tail_ratio_mirrors_when_arms_swap_and_ignores_the_unit(seed, scale):
    rng = np.random.default_rng(seed)
    before, after = rounds_of(rng, n=15), rounds_of(rng, n=20, sd=0.3)
    found = tail_ratio(before, after, 95)
    mirrored(found, tail_ratio(after, before, 95))
    slower = tail_ratio(before, [scale * samples for samples in after], 95)
    assert slower.value == pytest.approx(scale * found.value)
    assert slower.sd_log == pytest.approx(found.sd_log)


def test_tail_ratio_is_that_of_the_pooled_percentiles():
    rng = np.random.default_rng(2)
    before, after = rounds_of(rng), rounds_of(rng, sd=0.8)
    found = tail_ratio(before, after, 95)
    assert found.value == pytest.approx(tail(after, 95).value / tail(before, 95).value)
    assert found.pairs == 6


@repeatable
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_tail_ratio_takes_the_larger_of_jackknife_and_paired_error(seed, round_sd):
    rng = np.random.default_rng(seed)
    before, after = (rounds_of(rng, n=20, round_sd=round_sd) for _ in range(2))

    def smooth(arm, left_out):
        pooled = np.concatenate([samples for i, samples in enumerate(arm) if i != left_out])
        return math.log(hdquantiles(pooled, [0.95])[0])

    left = np.array([smooth(after, i) - smooth(before, i) for i in range(6)])
    jackknife = math.sqrt(5 / 6 * np.sum((left - left.mean()) ** 2))
    paired = scipy_stats.sem(
        [math.log(np.quantile(b, 0.95) / np.quantile(a, 0.95)) for a, b in zip(before, after, strict=True)]
    )
    found = tail_ratio(before, after, 95)
    error = max(jackknife, paired)
    assert found.sd_log / math.sqrt(6) == pytest.approx(error)
    assert math.log(found.hi / found.value) == pytest.approx(scipy_stats.t.ppf(0.975, 5) * error)
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(abs(math.log(found.value)) / error, 5))


def test_tail_ratio_needs_samples_in_both_arms_two_blocks_and_positive_times():
    rng = np.random.default_rng(3)
    many, few = rounds_of(rng), rounds_of(rng, n=10)
    assert tail_ratio(many, few, 95) is None
    assert tail_ratio(few, many, 95) is None
    assert tail_ratio([many[0], []], [many[1], many[2]], 95) is None
    assert tail_ratio(many, [np.zeros(40), *many[1:]], 95) is None


# many comparisons, and errors


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@repeatable
@given(st.lists(shares, min_size=1, max_size=12))
def test_holm_never_lowers_never_reorders_and_lies_below_bonferroni(p):
    adjusted = holm(p)
    assert all(raw <= a <= min(1.0, raw * len(p)) for raw, a in zip(p, adjusted, strict=True))
    assert [adjusted[i] for i in np.argsort(p, kind="stable")] == sorted(adjusted)


@repeatable
@given(st.integers(1, 5000), st.data())
def test_error_bound_is_the_rate_at_which_so_few_errors_are_a_5_percent_surprise(n, data):
    errors = data.draw(st.integers(0, n - 1))
    assert scipy_stats.binom.cdf(errors, n, error_bound(errors, n)) == pytest.approx(0.05, rel=1e-6)


def test_error_bound_at_its_ends():
    assert error_bound(0, 2460) == pytest.approx(3 / 2460, rel=0.003)
    assert error_bound(5, 5) == error_bound(0, 0) == 1


# verdicts


def paired(logs):
    """A ratio of given log ratios, by scipy."""
    test = scipy_stats.ttest_1samp(logs, 0)
    ends = test.confidence_interval()
    numbers = (np.mean(logs), ends.low, ends.high)
    return Ratio(*map(math.exp, numbers), test.pvalue, len(logs), float(np.std(logs, ddof=1)))


def around(value, sd_log, pairs=12):
    """A ratio with this estimate and spread."""
    logs = np.random.default_rng(1).normal(size=pairs)
    return paired(math.log(value) + sd_log * (logs - logs.mean()) / logs.std(ddof=1))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"r": None}, Verdict.INVALID),
        ({"r": around(0.5, 0.1, pairs=5)}, Verdict.INVALID),
        ({"r": around(0.5, 0.1), "healthy": False}, Verdict.INVALID),
        ({"r": around(1.0, 0.05)}, Verdict.EQUIVALENT),
        ({"r": around(0.97, 0.01)}, Verdict.EQUIVALENT),  # it differs, but by less than matters
        ({"r": around(1.0, 0.05), "p_equivalent": 0.06}, Verdict.INCONCLUSIVE),  # not after Holm's correction
        ({"r": around(0.97, 0.01), "p_equivalent": 0.06}, Verdict.FASTER),
        ({"r": around(0.94, 0.01)}, Verdict.FASTER),
        ({"r": around(0.5, 0.2)}, Verdict.FASTER),
        ({"r": around(0.5, 0.2), "p_holm": 0.05}, Verdict.INCONCLUSIVE),
        ({"r": around(1.3, 0.2)}, Verdict.SLOWER),
        ({"r": around(1.3, 0.2), "p_holm": 0.05}, Verdict.INCONCLUSIVE),
        ({"r": around(1.0, 0.2)}, Verdict.INCONCLUSIVE),
        ({"r": around(1.3, 0.2), "more_is_better": True}, Verdict.FASTER),
        ({"r": around(0.7, 0.2), "more_is_better": True}, Verdict.SLOWER),
        ({"r": around(1.0, 0.05), "more_is_better": True}, Verdict.EQUIVALENT),
    ],
)
def test_verdict_is_the_first_row_that_applies(case, expected):
    assert verdict(**{"p_holm": 0.001, "margin": 0.05, "healthy": True, **case}) is expected


@repeatable
@given(st.floats(0.8, 1.25), st.floats(1e-4, 0.3), shares, st.floats(0, 0.3), st.booleans(), st.integers(3, 30))
def test_every_comparison_gets_the_verdict_of_the_table(value, sd_log, p_holm, margin, healthy, pairs):
    r = around(value, sd_log, pairs)
    half = scipy_stats.t.ppf(0.95, pairs - 1) * r.sd_log / math.sqrt(pairs)  # of the 90 % interval
    table = [
        (not healthy or pairs < 6, Verdict.INVALID),
        (1 - margin <= value * math.exp(-half) and value * math.exp(half) <= 1 + margin, Verdict.EQUIVALENT),
        (r.hi < 1 and p_holm < 0.05, Verdict.FASTER),
        (r.lo > 1 and p_holm < 0.05, Verdict.SLOWER),
        (True, Verdict.INCONCLUSIVE),
    ]
    assert verdict(r, p_holm, margin, healthy=healthy) is next(found for holds, found in table if holds)


@repeatable
@given(st.floats(0.8, 1.25), st.floats(1e-3, 0.3), st.floats(0.01, 0.5), st.integers(2, 30))
def test_equivalence_is_the_larger_of_two_one_sided_t_tests(value, sd_log, margin, pairs):
    logs = np.random.default_rng(1).normal(size=pairs)
    logs = math.log(value) + sd_log * (logs - logs.mean()) / logs.std(ddof=1)
    below = scipy_stats.ttest_1samp(logs, math.log(1 - margin), alternative="greater").pvalue
    above = scipy_stats.ttest_1samp(logs, math.log(1 + margin), alternative="less").pvalue
    assert equivalence(paired(logs), margin) == pytest.approx(max(below, above), rel=1e-6, abs=1e-12)


def test_blocks_that_agree_exactly_are_equivalent_or_certainly_not():
    assert equivalence(result(1.04, sd_log=0.0), 0.05) == 0
    assert equivalence(result(1.06, sd_log=0.0), 0.05) == 1
    assert equivalence(result(0.1), 1.5) < 0.05, "a margin beyond 100 % has no lower limit"


def test_rates_that_lie_steps_apart_prove_nothing_within_a_step():
    r = around(1.1, 0.02)
    coarse = known_within(r, 1.107)
    assert (coarse.lo, coarse.hi) == pytest.approx((r.lo / 1.107, r.hi * 1.107))
    assert coarse.p == 1 and r.p < 1e-6
    logs = math.log(2) + 0.1 * np.array([-1.5, -0.5, 0.0, 0.2, 0.8, 1.0])
    beyond = scipy_stats.ttest_1samp(logs, math.log(1.107)).pvalue
    assert known_within(paired(logs), 1.107).p == pytest.approx(beyond)
    assert equivalence(around(1, 0.001), 0.05, 1.107) > 0.5 > equivalence(around(1, 0.001), 0.2, 1.107)


@repeatable
@given(st.floats(0.7, 1.4), st.floats(0.02, 0.4))
def test_so_many_blocks_settle_it_and_one_fewer_does_not(value, sd):
    def settled(blocks):
        error = sd / math.sqrt(blocks)
        two_sided, one_sided = scipy_stats.t.ppf([0.975, 0.95], blocks - 1) * error
        low, high = math.log(value) - one_sided, math.log(value) + one_sided
        return abs(math.log(value)) > two_sided or (low >= math.log(0.95) and high <= math.log(1.05))

    r = result(value, sd_log=sd, pairs=6)
    blocks = blocks_needed(r, 0.05)
    if blocks is None:
        assert not settled(1000)
    else:
        assert settled(blocks) and (blocks == 7 or not settled(blocks - 1))


# planning from a pilot's spread


def power_of(blocks, sd_log, margin, pairs, comparisons):
    """How often the change is found, integrated over the pilots that would have asked for so many blocks.

    With the pilot's spread as it is the true one is unknown: the plan is a frequentist's, so a pilot of true spread
    1 asks for n by its own estimate, and what counts is the mean over such pilots.
    """
    draws = np.sqrt(scipy_stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, pairs - 1) / (pairs - 1))
    reach = math.log(1 + margin) * math.sqrt(blocks) / sd_log  # what the plan multiplies the pilot's spread by
    limit = scipy_stats.t.ppf(1 - 0.025 / comparisons, blocks - 1)
    return np.mean(scipy_stats.norm.cdf(reach * draws - limit))


@repeatable
@given(st.floats(0.01, 0.5), st.floats(0.02, 0.5), st.integers(2, 20), st.integers(1, 20))
def test_so_many_blocks_find_the_margin_in_80_percent_and_one_fewer_does_not(sd_log, margin, pairs, comparisons):
    blocks = blocks_for(sd_log, margin, pairs, comparisons=comparisons)
    assert blocks >= 6
    assert power_of(blocks, sd_log, margin, pairs, comparisons) > 0.797
    assert blocks == 6 or power_of(blocks - 1, sd_log, margin, pairs, comparisons) < 0.803


def test_with_a_long_pilot_the_plan_is_that_of_a_known_spread():
    """The textbook's n: the least for which (t + z) * sd / sqrt(n) is within the change."""
    ns = np.arange(6, 200)
    reach = (scipy_stats.t.ppf(0.975, ns - 1) + scipy_stats.norm.ppf(0.8)) / np.sqrt(ns)
    assert blocks_for(0.1, math.expm1(0.05), 5000) == ns[0.1 * reach <= 0.05][0]


@repeatable
@given(st.floats(0.01, 0.5), st.integers(2, 19))
def test_more_pilot_pairs_a_quieter_machine_and_a_wider_margin_never_need_more_blocks(sd_log, pairs):
    blocks = blocks_for(sd_log, 0.05, pairs)
    assert blocks_for(sd_log, 0.05, pairs + 1) <= blocks
    assert blocks_for(sd_log / 2, 0.05, pairs) <= blocks
    assert blocks_for(sd_log, 0.1, pairs) <= blocks


def test_a_plan_holds_what_it_promises_whatever_the_pilot_drew():
    """A change by the margin is found in 80 % of plans from four blocks; in fewer, their own spread believed."""
    rng, sd, planned, naive = np.random.default_rng(3), 0.1, 0, 0
    for pilot in rng.normal(0, sd, (2000, 4)).std(axis=1, ddof=1):
        known = blocks_for(float(pilot), 0.05, 5000)
        for n, counts in ((blocks_for(float(pilot), 0.05, 4), True), (known, False)):
            drawn = rng.normal(math.log(1.05), sd, n)
            hit = scipy_stats.ttest_1samp(drawn, 0).pvalue < 0.05
            planned += counts and hit
            naive += not counts and hit
    assert planned >= scipy_stats.binom.ppf(0.0005, 2000, 0.8)
    assert naive < 0.75 * 2000


@pytest.mark.parametrize("bad", [(0.1, 0.05, 1), (math.nan, 0.05, 6), (math.inf, 0.05, 6), (0.1, 0.0, 6)])
def test_a_plan_without_a_pilot_or_a_margin_is_refused(bad):
    with pytest.raises(ValueError, match="expected 2 pairs, a spread, a margin, a comparison"):
        blocks_for(*bad)


def test_what_a_thousand_blocks_cannot_settle_has_no_number():
    assert blocks_needed(result(1.0, sd_log=3), 0.05) is None
    assert blocks_needed(result(1.0, sd_log=0.1), 0.05) > 12


def test_the_margin_widens_to_a_control_that_differs():
    assert widened_margin([result(1, 0.8, 1.3)], 0.05) == 0.05
    assert widened_margin([], 0.05) == 0.05
    assert widened_margin([result(1.04, 1.01, 1.08), result(0.98, 0.97, 0.99)], 0.05) == pytest.approx(0.08)
    assert widened_margin([result(0.9, 0.88, 0.93)], 0.05) == pytest.approx(0.12)


def test_a_widened_margin_hides_no_slowdown_but_still_calls_a_small_gain_noise():
    slower, faster = around(1.35, 0.05), around(0.8, 0.05)
    assert verdict(slower, 1e-6, 0.4, healthy=True, declared=0.05) is Verdict.INVALID
    assert verdict(faster, 1e-6, 0.4, healthy=True, declared=0.05) is Verdict.EQUIVALENT
    assert verdict(slower, 1e-6, 0.05, healthy=True, declared=0.05) is Verdict.SLOWER
    fewer = {"healthy": True, "declared": 0.05, "more_is_better": True}
    assert verdict(around(0.8, 0.05), 1e-6, 0.4, **fewer) is Verdict.INVALID
    assert verdict(around(1.35, 0.05), 1e-6, 0.4, **fewer) is Verdict.EQUIVALENT


def test_a_margin_that_was_not_widened_hides_nothing():
    """Where the 90 % interval fits and the 95 % interval does not, it is equivalent all the same."""
    r = around(1.035, 0.0258)
    assert r.lo > 1 and r.hi > 1.05
    assert verdict(r, 1e-6, 0.05, healthy=True, declared=0.05) is Verdict.EQUIVALENT
