"""How many blocks a run needs, planned from a pilot."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit import config
from perfkit.base.errors import UsageError
from perfkit.base.judgement import blocks_for
from perfkit.runs.experiment import measure
from perfkit.runs.rounds import MIN_PLANNED_BLOCKS, PILOT_BLOCKS, SampleCell, planned
from perfkit.runs.selection import RunSpec, Selection

LOAD = ("burst", "book")


def pilot(sd: float, effect: float = 1.0, seed: int = 1):
    """Medians of two arms over a pilot's blocks."""
    draw = np.random.default_rng(seed)
    before, after = SampleCell(), SampleCell()
    for block in range(PILOT_BLOCKS):
        before.medians[block] = 100 * float(np.exp(draw.normal(0, sd)))
        after.medians[block] = 100 * effect * float(np.exp(draw.normal(0, sd)))
    return {("before", LOAD): before, ("after", LOAD): after, ("floor", LOAD): SampleCell(medians={0: 1.0, 1: 900.0})}


class TestThePlan:
    def test_asks_for_the_blocks_of_the_widest_spread(self):
        cells = pilot(0.02)
        other = ("burst", "look")
        cells |= {(arm, other): cell for (arm, _), cell in pilot(0.2, seed=2).items()}
        found = planned(cells, "before", 0.05, block_s=2, most_s=1e9)
        assert found.widest.item == "look"
        assert found.needed == found.blocks == blocks_for(found.widest.sd_log, 0.05, PILOT_BLOCKS, comparisons=4)

    @given(st.floats(0.01, 0.3), st.floats(0.1, 10))
    def test_does_not_know_the_effect(self, sd, effect):
        plain, changed = (planned(pilot(sd, e), "before", 0.05, 1, 1e9) for e in (1.0, effect))
        assert plain.needed == pytest.approx(changed.needed, abs=1)  # rounding

    def test_keeps_to_the_time_and_says_so(self):
        found = planned(pilot(0.3), "before", 0.05, block_s=10, most_s=300)
        assert found.blocks == 30 < found.needed
        assert found.sentence.startswith(f"to find 5 % needs {found.needed} blocks, about ")
        assert found.sentence.endswith("; the time allows 30")

    def test_never_asks_for_fewer_blocks_than_could_settle_anything(self):
        assert planned(pilot(1e-6), "before", 0.05, block_s=100, most_s=1).blocks == MIN_PLANNED_BLOCKS

    def test_of_a_run_without_comparisons_is_none(self):
        alone = {key: cell for key, cell in pilot(0.1).items() if key[0] != "after"}
        assert planned(alone, "before", 0.05, 1, 100) is None


class TestARun:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> config.Config:
        (tmp_path / "nap.sql").write_text("SELECT pg_sleep(0.002)")
        (tmp_path / "nothing.sql").write_text("SELECT 1")
        (tmp_path / "perfkit.toml").write_text("""
title = "Naps"
database = { prepare = ["nothing.sql"] }
query = [{ name = "nap", file = "nap.sql" }]
scenario = [{ name = "one", label = "one", send = ["nap"], requests = 10 }]
arm = [{ name = "before", role = "before" }, { name = "after", role = "after" }]
""")
        return config.load(tmp_path / "perfkit.toml")

    @pytest.mark.slow
    def test_has_the_blocks_that_its_pilot_asks_for_and_none_of_the_pilots(
        self, settings: config.Config, tmp_path: Path, server_home: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("PERFKIT_HOME", str(server_home))
        said: list[str] = []
        options = RunSpec(profile="quick", plan_for=5, max_minutes=0.2)
        bundle = measure(Selection(settings, options), tmp_path / "run", said.append)
        plan = bundle.run.planning
        assert bundle.run.parameters.blocks == plan.blocks == len(bundle.run.blocks) >= MIN_PLANNED_BLOCKS
        assert plan.sentence in said
        assert len(list((tmp_path / "run" / "pilot" / "rounds").glob("*.json"))) == 3 * PILOT_BLOCKS
        assert {round_.block for round_ in bundle.rounds()} == set(range(plan.blocks))
        assert "--plan-for 5 --max-time 0.2" in bundle.run.command

    @pytest.mark.parametrize("wrong", [{"plan_for": -1}, {"plan_for": 100}, {"plan_for": 5, "max_minutes": 0}])
    def test_cannot_be_planned_for_what_makes_no_sense(self, settings: config.Config, wrong: dict[str, float]):
        with pytest.raises(UsageError, match=r"plan_for = .*; expected a percentage under 100, and minutes"):
            Selection(settings, RunSpec(**wrong))

    def test_of_one_arm_cannot_be_planned(self, settings: config.Config):
        with pytest.raises(UsageError, match="expected arms that are compared"):
            Selection(settings, RunSpec(plan_for=5, arms=("before",)))
