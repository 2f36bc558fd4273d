"""How often a verdict is wrong while something else uses the machine now and then, and what planned runs find.

Four arms (`effort/`): `before`, `control` (identical), and two whose query counts 10 and 30 % further. It is sent
alone and from 5, 10 and 30 connections, released at once or in batches, and takes so much longer than what every query
takes besides that the truth is known: ratios of 1, and of all but 1.1 and 1.3. A process that computes for random
times and rests for random times runs beside. One long run is cut into short ones of consecutive blocks, each judged as
a run of its own. For power, a pilot of some blocks says how many the change needs, from its spread alone, and so many
blocks after it are judged.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scipy import special
from scipy import stats as tests

from benchmarks.results import Figure, Section, publish
from perfkit import config
from perfkit.analysis.results import Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.base import judgement, process, stats
from perfkit.base.process import spawn, stop
from perfkit.runs.experiment import measure
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection

BLOCKS = 96  # about ten minutes on two cores
RUN = 6  # blocks of a short run, as of the profile `quick`
PILOT = 6
EFFECTS = {"plus-10": 0.1, "plus-30": 0.3}
DRIFT = """
import random, time
while True:
    end = time.monotonic() + random.expovariate(1 / 4)
    while time.monotonic() < end:
        pass
    time.sleep(random.expovariate(1 / 4))
"""


def main(blocks: int = BLOCKS) -> bool:
    """Print and write the figures; True where all hold."""
    with TemporaryDirectory() as folder:
        with drift():
            whole = measure(_selection(blocks), Path(folder) / "whole")
        return publish(judged(whole, Path(folder)))


def judged(whole: Bundle, folder: Path) -> Section:
    """What one long run says, cut into short ones in a folder."""
    blocks = len(whole.run.blocks)
    runs = [cut(whole, range(n, n + RUN), folder / f"run{n}") for n in range(0, blocks - RUN + 1, RUN)]
    alike = [c for run in runs for c in analyse(run).comparisons if c.after == "control"]
    pooled = [p for run in runs for p in _on_requests(run)]
    planned = {arm: list(_planned(whole, arm, effect, folder)) for arm, effect in EFFECTS.items()}
    figures = [false_verdicts(alike, "p50", 0.05), false_verdicts(alike, "p95", 0.05)]
    figures.append(
        _share("alike: share that a Mann-Whitney test on requests calls different", [p < 0.05 for p in pooled])
    )
    for arm, found in planned.items():
        slower = [trial.found.verdict is judgement.Verdict.SLOWER for trial in found if trial.found]
        name = f"+{EFFECTS[arm]:.0%}: share found slower with as many blocks as planned"
        figures.append(_share(name, slower, at_least=0.8))
    return Section("verdicts", "Verdicts while the machine drifts", figures, _notes(alike, planned, blocks))


@dataclass(frozen=True, slots=True)
class _Trial:
    """A planned run: the blocks that its pilot asked for, and its comparison; None where so many were not left."""

    level: str
    asked: int
    found: Comparison | None


@contextmanager
def drift() -> Iterator[None]:
    """Something else that computes now and then, on one core."""
    process = spawn([sys.executable, "-c", DRIFT])
    try:
        yield
    finally:
        stop(process)


def _selection(blocks: int) -> Selection:
    return Selection(config.load(Path(__file__).with_name("effort") / "perfkit.toml"), RunSpec(blocks=blocks))


def cut(whole: Bundle, blocks: range, folder: Path) -> Bundle:
    """A run of these blocks alone, as if it had been measured so."""
    part = Bundle.create(folder, whole.run.model_copy())
    part.update(blocks=[block for block in whole.run.blocks if block.block in blocks])
    for file in (whole.path / "rounds").iterdir():
        if int(file.name.split(".")[0]) in blocks:
            shutil.copy(file, folder / "rounds")
    shutil.copytree(whole.path / "plans", folder / "plans", dirs_exist_ok=True)
    return part


def _on_requests(run: Bundle) -> Iterator[float]:
    """By scenario, the p-value that the requests of both arms in one heap give."""
    times: dict[tuple[str, str], list[int]] = {}
    for round_ in run.rounds():
        c = round_.columns
        own = times.setdefault((round_.scenario, round_.arm), [])
        own += [d - s for d, s, counted in zip(c.done, c.scheduled, c.counted, strict=True) if counted]
    for level in (scenario.name for scenario in run.run.scenarios):
        yield float(tests.mannwhitneyu(times[level, "before"], times[level, "control"]).pvalue)


def _planned(whole: Bundle, arm: str, effect: float, folder: Path) -> Iterator[_Trial]:
    """For every load level one planned run after the other, each from its own pilot; no block of it serves twice."""
    end = len(whole.run.blocks)
    pilots: dict[int, list[Comparison]] = {}
    for level in (scenario.name for scenario in whole.run.scenarios):
        start = 0
        while start + PILOT < end:
            if start not in pilots:
                pilots[start] = _compared(whole, arm, range(start, start + PILOT), folder)
            own = pilots[start]
            spread = next(c.ratio.sd_log for c in own if (c.scenario, c.metric) == (level, "p50") and c.ratio)
            asked = judgement.blocks_for(spread, effect, PILOT, comparisons=len(own))
            first, start = start + PILOT, start + PILOT + asked
            if start <= end:
                run = _compared(whole, arm, range(first, start), folder)
                verdict = next(c for c in run if (c.scenario, c.metric) == (level, "p50"))
                yield _Trial(level, asked, verdict)
            else:
                yield _Trial(level, asked, None)


def _compared(whole: Bundle, arm: str, blocks: range, folder: Path) -> list[Comparison]:
    """The comparisons of an arm in a run of these blocks alone."""
    part = folder / f"{arm}-{blocks.start}-{blocks.stop}"
    found = analyse(Bundle.open(part) if part.exists() else cut(whole, blocks, part))
    return [c for c in found.comparisons if c.after == arm]


def false_verdicts(alike: Sequence[Comparison], metric: str, at_most: float) -> Figure:
    """The share of comparisons by one metric that are called faster or slower, of arms that are the same."""
    own = [c.verdict in (judgement.Verdict.FASTER, judgement.Verdict.SLOWER) for c in alike if c.metric == metric]
    return _share(f"alike: share of {metric} comparisons called faster or slower", own, at_most=at_most)


def _share(name: str, hits: Sequence[bool], at_most: float | None = None, at_least: float | None = None) -> Figure:
    """A share with its exact binomial interval (Clopper & Pearson 1934)."""
    k, n = sum(hits), len(hits)
    low = float(special.betaincinv(k, n - k + 1, 0.025)) if k else 0.0
    high = float(special.betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    value = k / n if n else float("nan")
    return Figure(f"{name} ({k} of {n})", value, low, high, at_most=at_most, at_least=at_least)


def _notes(alike: Sequence[Comparison], planned: dict[str, list[_Trial]], blocks: int) -> list[str]:
    said = ", ".join(f"{verdict} {count}" for verdict, count in Counter(str(c.verdict) for c in alike).most_common())
    lines = [f"Verdicts on identical arms: {said}."]
    for arm, found in planned.items():
        asked = ", ".join(
            f"{level} {'/'.join(str(t.asked) for t in found if t.level == level)}"
            for level in dict.fromkeys(t.level for t in found)
        )
        left = sum(trial.found is None for trial in found)
        ratios = [trial.found.ratio.value for trial in found if trial.found and trial.found.ratio]
        typical = f"; typical ratio {stats.percentile(ratios, 50):.3f}" if ratios else ""
        more = f"{left} of {len(found)} asked for more than were left"
        lines.append(f"+{EFFECTS[arm]:.0%}: blocks planned after pilots of {PILOT}: {asked}; {more}{typical}.")
    doc = (__doc__ or "").partition("\n\n")[2].strip()
    return [doc, f"{blocks} blocks on {process.cores()} cores.", "\n".join(f"- {line}" for line in lines)]
