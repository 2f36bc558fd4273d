"""What a careful reader holds against a result: each kind of caveat where it belongs, and nowhere else."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import make_run

from perfkit import config
from perfkit.analysis.caveats import Caveat, CaveatKind, disturbances, gravest_first, trend
from perfkit.analysis.policy import some
from perfkit.analysis.run_analysis import analyse
from perfkit.load.samples import Samples
from perfkit.runs.records import Bundle, Round
from perfkit.runs.selection import RunSpec, Selection

ARMS = ("before", "after-full")
RUN = Selection(config.load(), RunSpec()).describe()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run").path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(made, tmp_path / "run")))


def of(bundle: Bundle, kind: CaveatKind) -> list[Caveat]:
    return [caveat for caveat in analyse(bundle).caveats if caveat.kind is kind]


def rounds(facts: Callable[[str, int], Mapping[str, float]], blocks: int = 12) -> list[Round]:
    """Rounds of two arms with what server and machine did beside them."""
    return [
        Round(b, b, "burst", arm, Samples(), {"wall_ms": 100.0, **facts(arm, b)}) for b in range(blocks) for arm in ARMS
    ]


def found(facts: Callable[[str, int], Mapping[str, float]]) -> dict[CaveatKind, Caveat]:
    return {caveat.kind: caveat for caveat in disturbances(RUN, rounds(facts), {})}


def medians(effect: Callable[[str, int], float], blocks: int = 12) -> dict[tuple[str, str, str], dict[int, float]]:
    """Medians of two arms, a tenth of noise, times an effect."""
    draw = np.random.default_rng(4)
    return {
        (arm, "burst", "book"): {
            block: 100 * effect(arm, block) * float(np.exp(draw.normal(0, 0.02))) for block in range(blocks)
        }
        for arm in ARMS
    }


class TestWhatDisturbedRounds:
    @pytest.mark.parametrize(
        ("kind", "facts", "quiet", "said"),
        [
            (CaveatKind.STEAL, {"steal": 0.03}, {"steal": 0.005}, "before 3 %, after-full 3 %"),
            (CaveatKind.OTHER_LOAD, {"others": 0.5}, {"others": 0.1}, "per processor: before 0.5, after-full 0.5"),
            (CaveatKind.CHECKPOINT, {"checkpoints": 1.0}, {"checkpoints": 0.0}, "24 of 24 rounds"),
            (CaveatKind.AUTOVACUUM, {"autovacuums": 1.0}, {"autovacuums": 0.0}, "24 of 24 rounds"),
            (
                CaveatKind.CACHE,
                {"blocks_read": 400.0, "blocks_hit": 600.0},
                {"blocks_read": 40.0, "blocks_hit": 9960.0},
                "burst (before 40 %, after-full 40 %)",
            ),
        ],
    )
    def test_is_said_where_it_was_and_not_where_it_was_not(
        self, kind: CaveatKind, facts: dict[str, float], quiet: dict[str, float], said: str
    ):
        assert said in found(lambda *_: facts)[kind].text and found(lambda *_: facts)[kind].advice
        assert found(lambda *_: quiet) == {}

    def test_in_one_round_names_its_arm(self):
        text = found(lambda arm, block: {"checkpoints": float((arm, block) == ("before", 3))})[
            CaveatKind.CHECKPOINT
        ].text
        assert text == "A checkpoint ran during 1 of 24 rounds (burst on before 1 of 12)."

    def test_says_what_looking_parameters_up_took_and_whether_it_is_in_the_times(self):
        looked_up = rounds(lambda *_: {"lookup_ms": 0.25})
        burst = next(scenario for scenario in RUN.scenarios if scenario.name == "burst")
        levels = [burst.model_copy(update={"rate": rate}) for rate in (None, 100)]
        runs = [RUN.model_copy(update={"scenarios": [level]}) for level in levels]
        texts = [next(disturbances(run, looked_up, {})).text for run in runs]
        assert "between the samples and took 0.25 ms" in texts[0]
        assert "part of its response time and took 0.25 ms" in texts[1]

    def test_that_nobody_counted_is_not_said(self):
        assert found(lambda *_: {}) == {}


class TestDrift:
    def drifts(self, effect: Callable[[str, int], float], **run: Any) -> list[Caveat]:
        return list(disturbances(RUN.model_copy(update=run), [], medians(effect)))

    def test_of_all_arms_is_said_with_its_size_and_leaves_ratios_alone(self):
        (caveat,) = self.drifts(lambda _, block: 1.03**block)
        assert caveat.kind is CaveatKind.DRIFT and "all arms together +3" in caveat.text
        assert caveat.advice.startswith("Ratios are safe")

    def test_of_one_arm_alone_is_not_cancelled(self):
        (caveat,) = self.drifts(lambda arm, block: 1.04**block if arm == "before" else 1.04**-block)
        assert "all arms" not in caveat.text and "before +" in caveat.text
        assert caveat.advice.startswith("Pairing does not cancel")

    def test_of_arms_that_followed_one_another_spoils_the_comparison(self):
        (caveat,) = self.drifts(lambda _, block: 1.03**block, order="sequential")
        assert "nothing cancels the drift" in caveat.advice

    def test_below_the_margin_or_by_chance_is_not_said(self):
        assert self.drifts(lambda *_: 1.0) == [] and self.drifts(lambda _, block: 1.001**block) == []

    def test_is_a_slope_that_one_wild_block_does_not_move(self):
        series = {block: 0.1 * block for block in range(11)} | {5: 40.0}
        change, p = trend(series)
        assert change == pytest.approx(1.0, abs=0.05) and p < 0.01
        assert trend({0: 1.0}) == (0.0, 1.0)


class TestWhatTheRunSays:
    def test_a_healthy_run_is_only_told_where_it_was_measured(self, run: Bundle):
        kinds = {caveat.kind for caveat in analyse(run).caveats}
        assert CaveatKind.MACHINE in kinds
        assert not kinds & {
            CaveatKind.UNFINISHED,
            CaveatKind.LEFT_OUT,
            CaveatKind.CLIENT,
            CaveatKind.SETTINGS,
            CaveatKind.FEW_ROUNDS,
            CaveatKind.WARM_UP,
        }

    def test_settings_that_nobody_declared_are_said_and_declared_ones_are_not(self, run: Bundle):
        for facts in run.run.arms.values():
            facts.server_settings = {"work_mem": "4MB", "jit": "off"}
        assert of(run, CaveatKind.SETTINGS) == []
        run.run.arms["after-full"].server_settings = {"work_mem": "64MB", "jit": "off"}
        (caveat,) = of(run, CaveatKind.SETTINGS)
        assert "work_mem 64MB instead of 4MB" in caveat.text and "after-full" in caveat.text
        run.run.arms["after-full"].settings = {"work_mem": "64MB"}
        assert of(run, CaveatKind.SETTINGS) == []

    def test_another_version_has_other_defaults(self, run: Bundle):
        for arm, facts in run.run.arms.items():
            facts.server_settings = {"io_method": "worker" if arm == "before" else "sync"}
            facts.postgres = 18 if arm == "before" else 16
        assert of(run, CaveatKind.SETTINGS) == []

    def test_a_client_that_was_too_slow_is_said_with_the_reason(self, run: Bundle):
        for round_ in list(run.rounds()):
            if (round_.arm, round_.scenario) == ("before", "burst"):
                run.add_round(replace(round_, health={**round_.health, "worker_cpu": 0.99}))
        (caveat,) = of(run, CaveatKind.CLIENT)
        assert "burst on before" in caveat.text and "busy 99 %" in caveat.text

    def test_what_was_left_out_or_did_not_end_is_said_first(self, run: Bundle):
        run.run.left_out = {"scenarios": ["burst"]}
        run.run.status = "interrupted"
        kinds = [caveat.kind for caveat in analyse(run).caveats]
        assert kinds[:2] == [CaveatKind.UNFINISHED, CaveatKind.LEFT_OUT]

    def test_failures_of_the_warm_up_are_said(self, run: Bundle):
        run.run.blocks[0].warm_up_failures = {"before": 7}
        (caveat,) = of(run, CaveatKind.WARM_UP)
        assert caveat.text.startswith("before: 7 requests of the warm-up failed")


def test_the_gravest_come_first_and_every_one_has_advice():
    given = [Caveat(kind, str(kind), "Do something.") for kind in reversed(CaveatKind)]
    assert [caveat.kind for caveat in gravest_first(given)] == list(CaveatKind)
    assert some(["a", "b"]) == "a, b"
