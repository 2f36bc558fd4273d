"""Error rates of two arms compared by permuting whole blocks."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.base.stats import differences, share

counts = st.integers(1, 50).flatmap(lambda sent: st.tuples(st.integers(0, sent), st.just(sent)))
levels = st.integers(1, 7).flatmap(lambda blocks: st.tuples(*[st.lists(counts, min_size=blocks, max_size=blocks)] * 2))


def exact(before, after) -> float:
    """The share of all ways to swap arms block by block that differ as much, one by one."""

    def rate(pairs):
        return sum(failed for failed, _ in pairs) / sum(sent for _, sent in pairs)

    seen, hits, ways = rate(after) - rate(before), 0, 0
    for swap in product((False, True), repeat=len(before)):
        one = [a if s else b for s, b, a in zip(swap, before, after, strict=True)]
        other = [b if s else a for s, b, a in zip(swap, before, after, strict=True)]
        hits += abs(rate(other) - rate(one)) >= abs(seen) * (1 - 1e-9)
        ways += 1
    return hits / ways


class TestADifference:
    @given(levels)
    def test_has_the_p_value_of_every_way_to_swap_arms(self, level):
        before, after = level
        (found,) = differences([level])
        expected = exact(before, after)
        assert found.p == pytest.approx(expected if any(f for f, _ in [*before, *after]) else 1.0)

    @given(levels)
    def test_lies_in_its_interval_and_turns_round_with_its_arms(self, level):
        (found,), (other,) = differences([level]), differences([level[::-1]])
        assert -1 <= found.lo <= found.value <= found.hi <= 1
        assert (found.value, found.lo, found.hi) == pytest.approx((-other.value, -other.hi, -other.lo))

    @given(st.lists(levels, min_size=2, max_size=4).filter(lambda found: len({len(one[0]) for one in found}) == 1))
    @pytest.mark.slow
    def test_in_a_table_is_never_surer_than_alone(self, table):
        assert all(found.p_table >= found.p - 1e-9 for found in differences(table))

    def test_of_an_arm_that_fails_every_request_needs_six_blocks(self):
        for blocks, p in {5: 2 / 32, 6: 2 / 64}.items():
            (found,) = differences([([(0, 30)] * blocks, [(30, 30)] * blocks)])
            assert (found.value, found.p) == (1, p)

    def test_is_not_lost_to_levels_without_a_failure(self):
        none, all_fail = ([(0, 30)] * 6, [(0, 30)] * 6), ([(0, 30)] * 6, [(30, 30)] * 6)
        assert [found.p_table for found in differences([none, none, all_fail, none])] == [1, 1, 2 / 64, 1]

    def test_of_no_failures_leaves_open_what_so_many_requests_do(self):
        (found,) = differences([([(0, 50)] * 6, [(0, 50)] * 6)])
        assert found.value == 0 and -found.lo == found.hi == pytest.approx(3.84 / (300 + 3.84), rel=0.05)

    def test_of_an_arm_that_sent_nothing_is_none(self):
        assert differences([([(0, 30)], [(0, 0)])]) == [None] and differences([]) == []

    def test_of_many_blocks_is_drawn_and_the_same_for_the_same_seed(self):
        draw = np.random.default_rng(1)
        level = tuple([(int(draw.binomial(30, rate)), 30) for _ in range(20)] for rate in (0.02, 0.2))
        one, again = differences([level], seed=3), differences([level], seed=3)
        assert one == again and one[0].p < 0.001

    def test_of_alike_arms_is_called_one_in_twenty_runs_at_most(self):
        """Rounds that fail together: 300 runs, whose count stays under the upper 99.9 % point of 5 %."""
        draw, called = np.random.default_rng(7), 0
        for _ in range(300):
            rates = draw.beta(0.5, 5, (2, 6))
            (found,) = differences([tuple([(int(draw.binomial(30, r)), 30) for r in arm] for arm in rates)])
            called += found.p_table < 0.05
        assert called <= 28


class TestAShare:
    @given(st.lists(counts, min_size=1, max_size=12))
    def test_lies_in_its_interval_and_counts_every_request(self, rounds):
        found = share(rounds)
        failed, sent = (sum(column) for column in zip(*rounds, strict=True))
        assert (found.n, found.rounds, found.value) == (sent, len(rounds), pytest.approx(failed / sent))
        assert 0 <= found.lo <= found.value <= found.hi <= 1

    def test_of_one_round_is_bounded_by_nothing_and_of_none_there_is_none(self):
        assert (share([(30, 30)]).lo, share([(0, 30)]).hi) == (0.0, 1.0)
        assert share([]) is share([(0, 0)]) is None

    def test_of_failures_that_come_together_is_less_certain_than_of_as_many_apart(self):
        together, apart = share([(12, 30), *[(0, 30)] * 11]), share([(1, 30)] * 12)
        assert together.value == apart.value and together.lo < apart.lo / 3 and together.hi > apart.hi

    @pytest.mark.parametrize("spread", [0.0, 0.02, 0.1])
    def test_is_over_its_true_value_by_the_lower_end_in_at_most_one_run_in_forty(self, spread):
        """400 runs, whose count stays under the upper 99.9 % point of 2.5 %."""
        draw, over = np.random.default_rng(5), 0
        for _ in range(400):
            alike = (1 - spread) / spread if spread else 0
            rates = draw.beta(0.01 * alike, 0.99 * alike, 12) if spread else np.full(12, 0.01)
            over += share([(int(draw.binomial(30, rate)), 30) for rate in rates]).lo > 0.01
        assert over <= 20
