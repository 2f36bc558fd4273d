"""How often a verdict is wrong while something else uses the machine now and then, and what planned runs find.

Four arms of the booking system: `before`, `control` (identical), and two whose appointments table has 10 and 30 %
more rows. The conflict check reads it all, alone and from 5, 10 and 30 connections, released at once or in batches,
so the truth is known: ratios of 1, 1.1 and 1.3. A process that computes for random times and rests for random times
runs beside. One long run is cut into short ones of consecutive blocks, each judged as a run of its own. For power, a
pilot of some blocks says how many the change needs, from its spread alone, and so many blocks after it are judged.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from scipy import special
from scipy import stats as tests

from benchmarks.results import Figure, Section, publish
from perfkit import config, host, stats
from perfkit.analysis import analyse
from perfkit.bundle import Bundle
from perfkit.config import Arm, Scenario
from perfkit.experiment import measure
from perfkit.process import spawn, stop
from perfkit.results import Comparison
from perfkit.selection import Options, Selection

BLOCKS = 96  # about ten minutes on two cores
RUN = 6  # blocks of a short run, as of the profile `quick`
PILOT = 6
EFFECTS = {"plus-10": 0.1, "plus-30": 0.3}
LEVELS = (
    Scenario(name="one", label="", send=("conflict_check",), requests=10, warm=1),
    Scenario(name="five", label="", send=("conflict_check",), users=5, requests=4, warm=1),
    Scenario(name="ten", label="", send=("conflict_check",), users=10, requests=3, warm=1),
    Scenario(name="thirty", label="", send=("conflict_check",), users=30, requests=2, warm=1),
    Scenario(name="batches", label="", send=("conflict_check",), users=5, batches=6, warm=1),
)
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
        runs = [cut(whole, range(n, n + RUN), Path(folder) / f"run{n}") for n in range(0, blocks - RUN + 1, RUN)]
        alike = [c for run in runs for c in analyse(run).comparisons if c.after == "control"]
        pooled = [p for run in runs for p in _on_requests(run)]
        planned = {arm: list(_planned(whole, arm, effect, Path(folder))) for arm, effect in EFFECTS.items()}
    figures = [_false(alike, "p50", 0.05), _false(alike, "p95", 0.05)]
    figures.append(
        _share("alike: share that a Mann-Whitney test on requests calls different", [p < 0.05 for p in pooled])
    )
    for arm, found in planned.items():
        slower = [c.verdict is stats.Verdict.SLOWER for _, comparisons in found for c in comparisons]
        name = f"+{EFFECTS[arm]:.0%}: share found slower with as many blocks as planned"
        figures.append(_share(name, slower, at_least=0.8))
    return publish(Section("verdicts", "Verdicts while the machine drifts", figures, _notes(alike, planned, blocks)))


@contextmanager
def drift() -> Iterator[None]:
    """Something else that computes now and then, on one core."""
    process = spawn([sys.executable, "-c", DRIFT])
    try:
        yield
    finally:
        stop(process)


def _selection(blocks: int) -> Selection:
    booking = config.load()
    before, control = booking.arm[:2]
    more = [
        Arm(name=name, role="after", prepare=(Path(__file__).with_name(f"more_rows_{effect * 100:.0f}.sql"),))
        for name, effect in EFFECTS.items()
    ]
    arms = [arm.model_copy(update={"service": {}}) for arm in (before, control)] + more
    changed = {"arm": tuple(arms), "scenario": LEVELS, "check": (), "request": (), "service": None}
    return Selection(booking.model_copy(update=changed), Options(scale="small", blocks=blocks))


def cut(whole: Bundle, blocks: range, folder: Path) -> Bundle:
    """A run of these blocks alone, as if it had been measured so."""
    part = Bundle.create(folder, {**whole.run, "blocks": [b for b in whole.run["blocks"] if b["block"] in blocks]})
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
        own += [d - s for d, s, counted in zip(c["done"], c["scheduled"], c["counted"], strict=True) if counted]
    for level in LEVELS:
        yield float(tests.mannwhitneyu(times[level.name, "before"], times[level.name, "control"]).pvalue)


def _planned(whole: Bundle, arm: str, effect: float, folder: Path) -> Iterator[tuple[int, list[Comparison]]]:
    """One planned run after the other: its blocks, and its comparisons of the p50; no block serves twice."""
    start, end = 0, len(whole.run["blocks"])
    while start + PILOT < end:
        pilot = analyse(cut(whole, range(start, start + PILOT), folder / f"{arm}-pilot{start}"))
        own = [c for c in pilot.comparisons if c.after == arm]
        spreads = [c.ratio.sd_log for c in own if c.metric == "p50" and c.ratio]
        asked, first = stats.blocks_for(max(spreads), effect, PILOT, comparisons=len(own)), start + PILOT
        if first + asked > end:
            return
        run = analyse(cut(whole, range(first, first + asked), folder / f"{arm}-{start}"))
        yield asked, [c for c in run.comparisons if c.after == arm and c.metric == "p50"]
        start = first + asked


def _false(alike: Sequence[Comparison], metric: str, at_most: float) -> Figure:
    own = [c.verdict in (stats.Verdict.FASTER, stats.Verdict.SLOWER) for c in alike if c.metric == metric]
    return _share(f"alike: share of {metric} comparisons called faster or slower", own, at_most=at_most)


def _share(name: str, hits: Sequence[bool], at_most: float | None = None, at_least: float | None = None) -> Figure:
    """A share with its exact binomial interval (Clopper & Pearson 1934)."""
    k, n = sum(hits), len(hits)
    low = float(special.betaincinv(k, n - k + 1, 0.025)) if k else 0.0
    high = float(special.betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    value = k / n if n else float("nan")
    return Figure(f"{name} ({k} of {n})", value, low, high, at_most=at_most, at_least=at_least)


def _notes(
    alike: Sequence[Comparison], planned: dict[str, list[tuple[int, list[Comparison]]]], blocks: int
) -> list[str]:
    said = ", ".join(f"{verdict} {count}" for verdict, count in Counter(str(c.verdict) for c in alike).most_common())
    lines = [f"Verdicts on identical arms: {said}."]
    for arm, found in planned.items():
        asked = ", ".join(str(own) for own, _ in found) or f"more than the {blocks} there were"
        ratios = [c.ratio.value for _, comparisons in found for c in comparisons if c.ratio]
        typical = f"; typical ratio {stats.percentile(ratios, 50):.3f}" if ratios else ""
        lines.append(f"+{EFFECTS[arm]:.0%}: blocks planned {asked}, after pilots of {PILOT}{typical}.")
    return [(__doc__ or "").partition("\n\n")[2].strip(), f"{blocks} blocks on {host.cores()} cores.", "\n".join(lines)]
