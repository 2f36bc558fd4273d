"""What was claimed of an index set beforehand, held against what the lab measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfkit.lab.results import Lab

ONCE, LOAD = "measured once", "measured under load"


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with its measured value and interval; values in `unit`: share, s or ms."""

    text: str
    low: float | None
    high: float | None
    unit: str
    evidence: str
    value: float | None
    interval: tuple[float, float] | None = None

    @property
    def holds(self) -> bool | None:
        """Whether what was measured lies within the claim; None where its interval does not settle it."""
        if self.value is None:
            return None
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        ends = self.interval or (self.value, self.value)
        if low <= ends[0] and ends[1] <= high:
            return True
        return False if ends[1] < low or ends[0] > high else None


def judged(lab: Lab) -> list[Judged]:
    """Every claim of the configuration."""
    return [_judged(lab, claim) for claim in lab.record.get("claims", ())]


def _judged(lab: Lab, claim: Mapping[str, Any]) -> Judged:
    known = (claim["text"], claim["low"], claim["high"])
    worths, measure = lab.worths, claim["measure"]
    if measure == "index_share":
        tables = {worth.table: worth.table_bytes for worth in worths}
        return Judged(*known, "share", ONCE, sum(w.bytes for w in worths) / max(sum(tables.values()), 1))
    if measure in ("build_s", "build_total_s"):
        seconds = [worth.seconds for worth in worths]
        spread = (min(seconds), max(seconds)) if measure == "build_s" else None
        return Judged(*known, "s", ONCE, max(seconds) if measure == "build_s" else sum(seconds), spread)
    if measure == "latency_ms":
        found = lab.median("all", claim["query"])
        return Judged(*known, "ms", LOAD, *(found or (None, None)))
    wanted = claim["query"] if measure == "latency_saved" else ""
    ratio = next(
        (c.ratio for c in lab.changes if c.ratio and (c.item == wanted or (not wanted and lab.is_insert(c)))), None
    )
    if ratio is None:
        return Judged(*known, "share", LOAD, None)
    if measure == "latency_saved":
        return Judged(*known, "share", LOAD, 1 - ratio.value, (1 - ratio.hi, 1 - ratio.lo))
    return Judged(*known, "share", LOAD, ratio.value - 1, (ratio.lo - 1, ratio.hi - 1))
