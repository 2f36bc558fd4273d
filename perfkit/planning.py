"""How many blocks a run needs, from a pilot's spread alone: what the pilot says of the effect is never looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from perfkit.analysis.cells import Key, SampleCell
from perfkit.bundle import FLOOR
from perfkit.stats import Ratio, blocks_for, ratio

PILOT = 4  # blocks
LEAST = 6
METRICS = 2  # of a load level that are compared, as a rule: p50 and p95


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of one comparison's log ratio in the pilot, and the blocks that it asks for."""

    arm: str
    scenario: str
    item: str
    sd_log: float
    blocks: int


@dataclass(frozen=True, slots=True)
class PlannedBlocks:
    """The blocks of a run: those that were asked for by the widest spread, and those that the time allows."""

    margin: float  # a change by so much of any median shall be found, four times in five
    needed: int
    blocks: int
    block_s: float  # seconds, as in the pilot
    widest: Spread

    @property
    def sentence(self) -> str:
        """What is planned and why, in one line."""
        widest, seconds = self.widest, self.needed * self.block_s
        what = f"{widest.scenario} of {widest.item} on {widest.arm}"
        why = f"{what} varies by {100 * widest.sd_log:.2g} % from block to block"
        text = f"to find {100 * self.margin:g} % needs {self.needed} blocks, about {_time(seconds)}: {why}"
        if self.blocks < self.needed:
            text += f"; the time allows {self.blocks}"
        return text

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return {**asdict(self), "pilot": PILOT, "sentence": self.sentence}


def planned(
    cells: Mapping[tuple[str, Key], SampleCell], before: str, margin: float, block_s: float, most_s: float
) -> PlannedBlocks | None:
    """The plan for a run that shall not take longer than `most_s`; None where nothing was compared."""
    spreads = list(_spreads(cells, before, margin))
    if not spreads:
        return None
    widest = max(spreads, key=lambda spread: (spread.blocks, spread.sd_log))
    needed = max(LEAST, widest.blocks)
    return PlannedBlocks(margin, needed, max(LEAST, min(needed, int(most_s / block_s))), round(block_s, 2), widest)


def _spreads(cells: Mapping[tuple[str, Key], SampleCell], before: str, margin: float) -> Iterator[Spread]:
    """Of every arm's medians against those of `before`; its p95s will be corrected for together with them."""
    found: dict[str, list[tuple[Key, Ratio]]] = defaultdict(list)
    for (arm, key), cell in cells.items():
        other = cells.get((before, key))
        if arm in (before, FLOOR) or other is None:
            continue
        blocks = sorted(cell.medians.keys() & other.medians.keys())
        if own := ratio([other.medians[b] for b in blocks], [cell.medians[b] for b in blocks]):
            found[arm].append((key, own))
    for arm, ratios in found.items():
        for key, own in ratios:
            needed = blocks_for(own.sd_log, margin, own.pairs, comparisons=METRICS * len(ratios))
            yield Spread(arm, *key, own.sd_log, needed)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
