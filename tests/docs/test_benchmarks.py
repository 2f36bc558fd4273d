"""The benchmarks' own part: how figures are judged, and where they are written."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import Figure, Section, publish
from perfkit.base.resources import CHECKOUT
from perfkit.base.stats import Interval


class TestAFigure:
    @pytest.mark.parametrize(
        ("limits", "word"),
        [
            ({}, "shown"),
            ({"at_most": 1.1}, "met"),
            ({"at_most": 1.02}, "open"),
            ({"at_most": 0.99}, "missed"),
            ({"at_least": 1.08}, "open"),
            ({"at_least": 1.2}, "missed"),
            ({"at_least": 1.0, "at_most": 0.9}, "missed"),
        ],
    )
    def test_is_met_by_its_value_and_missed_by_its_whole_interval(self, limits: dict[str, float], word: str):
        assert Figure("p50", 1.05, 1.0, 1.1, **limits).word == word

    def test_that_could_not_be_had_is_missed(self):
        assert Figure.of("p50", None, at_most=1.1).word == "missed"
        assert math.isnan(Figure.of("p50", None).value)

    def test_says_its_interval_and_its_limit(self):
        figure = Figure.of("p50 over pgbench's", Interval(1.05, 1.01, 1.09, 100, 6), at_most=1.1)
        assert figure.cells() == ("p50 over pgbench's", "1.05", "1.01 to 1.09", "at most 1.1", "met")


def test_a_section_is_written_anew_and_the_others_stay(tmp_path: Path):
    file = tmp_path / "results.md"
    for name, value in (("http", 1.0), ("sql", 2.0), ("http", 3.0)):
        figures = [Figure("x", value, value, value, at_most=2.5)]
        assert publish(Section(name, f"About {name}", figures, ["A note."]), file) is (value <= 2.5)
    text = file.read_text()
    assert text.index("About sql") < text.index("About http")
    assert text.count("About http") == 1 and "**missed**" in text and "| met |" in text


@pytest.mark.process
def test_an_unknown_name_is_refused_before_anything_is_measured():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "spd"], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks: spd is unknown; expected: plans, ") and done.stderr.count("\n") == 1
