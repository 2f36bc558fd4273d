"""The search for the highest rate that a target sustains."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit import config
from perfkit.config import Limits, RateSearch, Thresholds
from perfkit.load.pool import (
    CalibrationTrial,
    Load,
    SearchStep,
    fewest_workers,
    highest_rate,
    is_open_ended,
    judge_step,
    next_rate,
)
from perfkit.load.samples import Samples
from perfkit.runs.experiment import measure
from perfkit.runs.selection import RunSpec, alone

searches = st.builds(
    lambda most, growth, closer: RateSearch(most=most, growth=growth, closer=closer),
    st.floats(20, 1e5),
    st.floats(1.4, 10),
    st.integers(0, 5),
)


def searched(search: RateSearch, first: float, capacity: float) -> list[SearchStep]:
    """All steps against a target whose thresholds hold up to a capacity."""
    steps: list[SearchStep] = []
    while rate := next_rate(search, first, steps):
        steps.append(SearchStep(rate, rate <= capacity))
        assert len(steps) < 200
    return steps


class TestSteps:
    @given(searches, st.floats(1, 10), st.floats(1, 2e5))
    def test_end_and_enclose_the_capacity(self, search, first, capacity):
        steps = searched(search, first, capacity)
        found = highest_rate(steps)
        broke = [step.rate for step in steps if not step.held]
        assert found <= capacity and all(rate > capacity for rate in broke)
        assert all(rate <= search.most for rate in (step.rate for step in steps))
        if capacity >= search.most:
            assert found == search.most and is_open_ended(search, steps)
        elif steps[0].held:
            assert min(broke) / found <= search.growth ** (2.0**-search.closer) * (1 + 1e-9)
            assert not is_open_ended(search, steps)

    def test_go_down_where_even_the_first_breaks(self):
        search = RateSearch(most=100, growth=2, closer=3)
        assert [step.rate for step in searched(search, 40, 15)] == [40, 20, 10, pytest.approx(200**0.5)]

    def test_that_none_held_find_nothing(self):
        assert highest_rate([SearchStep(10, False), SearchStep(5, False)]) == 0

    def test_that_the_client_could_not_take_are_not_the_targets_limit(self):
        search = RateSearch(most=100, growth=2)
        assert is_open_ended(search, [SearchStep(10, True), SearchStep(20, False, healthy=False)])
        assert not is_open_ended(
            search, [SearchStep(10, True), SearchStep(20, False), SearchStep(40, False, healthy=False)]
        )


@pytest.mark.parametrize(
    ("thresholds", "held"),
    [
        ({"p95_ms": 100}, True),
        ({"p95_ms": 94}, False),
        ({"p50_ms": 52, "p95_ms": 100, "p99_ms": 100}, True),
        ({"p50_ms": 49, "p95_ms": 100}, False),
        ({"p95_ms": 98, "p99_ms": 98}, False),
    ],
)
def test_a_rate_holds_where_every_threshold_of_latency_does(thresholds: dict[str, float], held: bool) -> None:
    times = range(1, 101)  # ms
    done = [ms * 1_000_000 for ms in times]
    columns = Samples(["one"] * 100, counted=[True] * 100, scheduled=[0] * 100, done=done, outcome=["ok"] * 100)
    load = Load(columns, {"lag_p50_ms": 0.1, "worker_cpu": 0.1}, [])
    assert judge_step(10, load, Thresholds(**thresholds), Limits()) == SearchStep(10, held)


@pytest.mark.slow
@pytest.mark.alone
def test_a_target_of_known_capacity_is_found(tmp_path: Path, server_home: Path, monkeypatch: pytest.MonkeyPatch):
    """Two connections that each take 20 ms for a query stand a hundred a second."""
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    (tmp_path / "nap.sql").write_text("SELECT pg_sleep(0.02)")
    (tmp_path / "schema.sql").write_text("SELECT 1")
    (tmp_path / "perfkit.toml").write_text("""
title = "Naps"
[database]
prepare = ["schema.sql"]
[[query]]
name = "nap"
file = "nap.sql"
[[scenario]]
name = "most"
label = "as many as hold"
send = ["nap"]
rate = 20
seconds = 1.5
users = 40
connections = 2
arrivals = "constant"
search = { most = 1000, growth = 2, closer = 2 }
[[arm]]
name = "only"
role = "before"
[thresholds]
p95_ms = 100
""")
    chosen = alone(config.load(tmp_path / "perfkit.toml"), RunSpec(profile="quick", blocks=1))
    bundle = measure(chosen, tmp_path / "run")
    found = next(round_ for round_ in bundle.rounds() if round_.arm == "only")
    assert 55 < found.health["rate"] <= 100
    assert found.health["limited"] == 0
    columns = found.columns
    counted = {number for number, own in zip(columns.batch, columns.counted, strict=True) if own}
    assert len(counted) == 1 and max(columns.batch) >= 3
    assert "dropped" in columns.outcome or max(columns.done) > 1.6e9  # a step beyond it was tried


def test_as_few_workers_are_used_as_are_nearly_as_fast_as_any():
    assert fewest_workers([CalibrationTrial(1, 2.0), CalibrationTrial(2, 1.95), CalibrationTrial(4, 1.9)]) == 1
    assert fewest_workers([CalibrationTrial(1, 4.0), CalibrationTrial(2, 2.1), CalibrationTrial(4, 2.0)]) == 2
    assert fewest_workers([CalibrationTrial(1, 4.0), CalibrationTrial(2, 3.0), CalibrationTrial(4, 2.0)]) == 4
