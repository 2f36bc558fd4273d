"""The intervals, tests and verdicts against simulated rounds whose truth is known.

A round is lognormal with its own level, as measured latencies are: log latency = round (SD `round_sd`) +
request (SD `sd`). Rates are held against binomial 99.9 % bounds of what is claimed, on fixed seeds, so that
a failure is a changed method and not bad luck.
"""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from perfkit.stats import Verdict, holm, ratio, tail, tail_ratio, typical, verdict

Z95 = scipy_stats.norm.ppf(0.95)


def simulate(rng, rounds, n, round_sd, sd, median=100.0):
    """One arm: an array of rounds x n latencies."""
    return median * np.exp(rng.normal(0, round_sd, (rounds, 1)) + rng.normal(0, sd, (rounds, n)))


def quantile_95(round_sd, sd, median=100.0):
    return median * math.exp(Z95 * math.hypot(round_sd, sd))


def bounds(rate, runs):
    """Counts out of `runs` that a true rate leaves in all but one of a thousand tests."""
    return scipy_stats.binom.ppf([0.0005, 0.9995], runs, rate)


def at_least(hits, rate, runs):
    assert hits >= bounds(rate, runs)[0], f"{hits} of {runs}, {rate:.0%} claimed"


def at_most(hits, rate, runs):
    assert hits <= bounds(rate, runs)[1], f"{hits} of {runs}, {rate:.0%} claimed"


def exactly(hits, rate, runs):
    at_least(hits, rate, runs)
    at_most(hits, rate, runs)


def covers(interval, truth):
    return interval.lo <= truth <= interval.hi


def paired_medians(rng, pairs, sd_log, effect=1.0):
    """Per-block values of two arms: what the block brings to both, and a pair's own noise of SD `sd_log`."""
    block = rng.normal(4, 0.3, pairs)
    before = np.exp(block + rng.normal(0, sd_log / math.sqrt(2), pairs))
    return before, effect * np.exp(block + rng.normal(0, sd_log / math.sqrt(2), pairs))


@pytest.mark.parametrize("rounds", [6, 24])
def test_the_typical_round_is_covered_in_95_percent(rounds):
    rng, runs = np.random.default_rng(1), 1500
    found = [typical(np.exp(rng.normal(3, 0.3, rounds)), 100) for _ in range(runs)]
    exactly(sum(covers(interval, math.exp(3)) for interval in found), 0.95, runs)


@pytest.mark.parametrize("round_sd", [0, 0.1, 0.3])
@pytest.mark.parametrize(("rounds", "n"), [(6, 30), (6, 300), (12, 60), (24, 30)])
def test_the_pooled_p95_is_covered_in_at_least_92_percent(rounds, n, round_sd):
    rng, runs, covered = np.random.default_rng(rounds * n), 500, 0
    for i in range(runs):
        sd = (0.3, 0.8)[i % 2]
        covered += covers(tail(simulate(rng, rounds, n, round_sd, sd), 95), quantile_95(round_sd, sd))
    at_least(covered, 0.92, runs)


def test_the_pooled_p95_is_covered_in_93_percent_where_rounds_are_few_and_unlike():
    """Six short rounds that differ as much as their requests do."""
    rng, runs = np.random.default_rng(10), 4000
    found = [tail(simulate(rng, 6, 30, 0.3, 0.3), 95) for _ in range(runs)]
    at_least(sum(covers(interval, quantile_95(0.3, 0.3)) for interval in found), 0.93, runs)


def test_an_interval_that_ignores_rounds_would_fail_this():
    """The check above can fail: independent samples' order statistics cover far less."""
    rng, runs, covered = np.random.default_rng(2), 400, 0
    low, high = scipy_stats.binom.ppf([0.025, 0.975], 720, 0.95).astype(int)
    for _ in range(runs):
        pooled = np.sort(simulate(rng, 12, 60, 0.3, 0.3).ravel())
        covered += pooled[low - 1] <= quantile_95(0.3, 0.3) <= pooled[high]
    assert covered < 0.6 * runs


@pytest.mark.parametrize(("rounds", "n", "share"), [(6, 30, 0.85), (6, 60, 0.95), (12, 30, 0.98)])
def test_the_p95_has_an_upper_end_in_most_quiet_runs(rounds, n, share):
    rng, runs = np.random.default_rng(3), 400
    found = [tail(simulate(rng, rounds, n, 0.05, 0.5), 95) for _ in range(runs)]
    at_least(sum(math.isfinite(interval.hi) for interval in found), share, runs)


@pytest.mark.parametrize("pairs", [6, 12])
def test_nothing_changed_is_called_a_change_in_5_percent(pairs):
    rng, runs = np.random.default_rng(4), 2000
    found = [ratio(*paired_medians(rng, pairs, 0.2)) for _ in range(runs)]
    exactly(sum(r.p < 0.05 for r in found), 0.05, runs)
    exactly(sum(covers(r, 1) for r in found), 0.95, runs)


@pytest.mark.parametrize(("pairs", "sd_log"), [(6, 0.15), (6, 0.3), (12, 0.3), (24, 0.3)])
def test_30_percent_more_is_found_as_often_as_theory_says(pairs, sd_log):
    """Noncentral t: 6 blocks find it in 92 % of runs at a pair's SD of 0.15, in 41 % at 0.3; 12 in 79 %."""
    rng, runs = np.random.default_rng(5), 1000
    shift, critical = math.log(1.3) * math.sqrt(pairs) / sd_log, scipy_stats.t.ppf(0.975, pairs - 1)
    power = scipy_stats.nct.sf(critical, pairs - 1, shift)
    found = [ratio(*paired_medians(rng, pairs, sd_log, 1.3)) for _ in range(runs)]
    exactly(sum(r.lo > 1 for r in found), power, runs)
    exactly(sum(covers(r, 1.3) for r in found), 0.95, runs)


@pytest.mark.parametrize("round_sd", [0, 0.3])
@pytest.mark.parametrize(("rounds", "n"), [(6, 30), (6, 60), (12, 30)])
def test_tails_of_identical_arms_differ_in_at_most_6_percent(rounds, n, round_sd):
    rng, runs, claimed = np.random.default_rng(rounds + n), 200, 0
    for _ in range(runs):
        shared = np.exp(rng.normal(0, 0.2, (rounds, 1)))
        before, after = (shared * simulate(rng, rounds, n, round_sd, 0.5) for _ in range(2))
        claimed += tail_ratio(before, after, 95).p < 0.05
    at_most(claimed, 0.06, runs)


@pytest.mark.parametrize("round_sd", [0, 0.3])
@pytest.mark.parametrize(("rounds", "n"), [(6, 30), (12, 30)])
def test_the_tail_ratio_is_covered_where_the_shape_changes(rounds, n, round_sd):
    """Before is narrow, after wide: a paired t on per-round percentiles misses the pooled ratio here."""
    rng, runs, covered = np.random.default_rng(rounds), 200, 0
    truth = quantile_95(round_sd, 0.8) / quantile_95(round_sd, 0.3)
    for _ in range(runs):
        before, after = (simulate(rng, rounds, n, round_sd, sd) for sd in (0.3, 0.8))
        covered += covers(tail_ratio(before, after, 95), truth)
    at_least(covered, 0.93, runs)


def test_a_p95_that_doubles_is_found_in_six_blocks():
    rng, runs = np.random.default_rng(6), 200
    found = [tail_ratio(simulate(rng, 6, 40, 0.1, 0.5), simulate(rng, 6, 40, 0.1, 0.5, 200), 95) for _ in range(runs)]
    at_least(sum(r.lo > 1 for r in found), 0.95, runs)


def test_a_table_of_five_levels_without_a_change_has_a_false_claim_in_5_percent():
    """Holm's correction holds the error rate of the whole table, not of each row."""
    rng, runs, tables = np.random.default_rng(7), 600, 0
    for _ in range(runs):
        rows = [ratio(*paired_medians(rng, 6, 0.2)) for _ in range(5)]
        adjusted = holm([r.p for r in rows])
        verdicts = [verdict(r, p, 0.05, healthy=True) for r, p in zip(rows, adjusted, strict=True)]
        tables += any(v in (Verdict.FASTER, Verdict.SLOWER) for v in verdicts)
    at_most(tables, 0.05, runs)


def test_a_change_beyond_the_margin_is_rarely_called_equivalent():
    """Two one-sided tests: at the margin's own edge at most 2.5 % are."""
    rng, runs = np.random.default_rng(8), 1500
    found = [ratio(*paired_medians(rng, 12, 0.05, 1.05)) for _ in range(runs)]
    at_most(sum(verdict(r, r.p, 0.05, healthy=True) is Verdict.EQUIVALENT for r in found), 0.025, runs)


def test_arms_alike_are_called_equivalent_when_the_rounds_are_quiet():
    rng, runs = np.random.default_rng(9), 300
    found = [ratio(*paired_medians(rng, 12, 0.04)) for _ in range(runs)]
    at_least(sum(verdict(r, r.p, 0.05, healthy=True) is Verdict.EQUIVALENT for r in found), 0.9, runs)


@pytest.mark.parametrize(("n", "round_sd", "sd"), [(20, 0.0, 0.8), (20, 0.1, 0.3), (30, 0.3, 0.3)])
def test_the_upper_end_of_a_tail_is_finite_and_holds_also_in_six_short_rounds(n, round_sd, sd):
    rng, runs = np.random.default_rng(8), 400
    found = [tail(list(simulate(rng, 6, n, round_sd, sd)), 95) for _ in range(runs)]
    assert all(math.isfinite(interval.hi) for interval in found)
    at_least(sum(interval.hi >= quantile_95(round_sd, sd) for interval in found), 0.96, runs)
