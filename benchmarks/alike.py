"""How often a verdict is wrong on copies of the same data, run after run, each with a server and services of its own.

The booking system's arms `before` and `control`, which are the same: its queries, which scan whole tables in both, and
its webhook. Where data come to lie in memory and how a service's process comes out may be the same for a whole run: the
section above, which cuts one run into many, cannot see that. Here the unit is the run, and what matters beside
the count of false verdicts is the typical ratio over all runs, which shows whether an arm is favoured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.results import Figure, Section, publish
from benchmarks.verdicts import false_verdicts
from perfkit import config
from perfkit.analysis.results import Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.base import stats
from perfkit.config import BOOKING
from perfkit.runs.experiment import measure
from perfkit.runs.selection import RunSpec, Selection

RUNS = 13  # of five comparisons by p50 each: 65
SCENARIOS = ("queries", "sustained")
BIAS = 0.03  # that a typical run may be off: well under the margin of 5 %


def main(runs: int = RUNS) -> bool:
    """Print and write the figures; True where all hold."""
    with TemporaryDirectory() as folder:
        return publish(judged([_run(Path(folder) / f"run{number}", number) for number in range(runs)]))


def judged(runs: Sequence[Sequence[Comparison]]) -> Section:
    """What the comparisons of `control` with `before` say, by run."""
    every = [c for run in runs for c in run]
    figures = [false_verdicts(every, "p50", 0.05), false_verdicts(every, "p95", 0.05)]
    lines = ["| | typical ratio | spread of a run (SD of logs) | of it expected from its rounds |", "|---|---|---|---|"]
    for item in dict.fromkeys(c.item for c in every):
        own = [c.ratio for c in every if (c.item, c.metric) == (item, "p50") and c.ratio]
        typical = stats.ratio([1.0] * len(own), [r.value for r in own])
        figures.append(Figure.of(f"{item}: control / before, p50", typical, at_least=1 - BIAS, at_most=1 + BIAS))
        within = math.sqrt(sum(r.sd_log**2 / r.pairs for r in own) / len(own))
        if typical:
            lines.append(f"| {item} | {typical.value:.3f} | {typical.sd_log:.3f} | {within:.3f} |")
    doc = (__doc__ or "").partition("\n\n")[2].strip()
    notes = [doc, f"{len(runs)} runs of the profile `quick`.", "\n".join(lines)]
    return Section("alike", "Verdicts on identical arms, run after run", figures, notes)


def _run(folder: Path, seed: int) -> list[Comparison]:
    whole = config.load(BOOKING)
    arms = tuple(arm for arm in whole.arm if arm.role in ("before", "control"))
    own = whole.model_copy(update={"arm": arms, "check": ()})
    chosen = Selection(own, RunSpec(profile="quick", seed=seed, scenarios=SCENARIOS))
    return [c for c in analyse(measure(chosen, folder)).comparisons if c.after == "control"]
