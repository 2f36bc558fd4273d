"""A claim beside what was measured of it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ONCE, LOAD = "measured once", "measured under load"
Outcome = Literal["held", "better", "not held", "open", "not measured"]
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with its measured value and interval; values in `unit`: share, s, ms, kB, MB or /s."""

    text: str
    low: float | None
    high: float | None
    unit: str
    evidence: str
    value: float | None
    interval: Span | None = None
    measure: str = ""
    arm: str = ""  # the arm that it was held against
    scenario: str = ""
    why: str = ""  # it was not measured
    good: Literal["", "low", "high"] = ""  # the end beyond which more than was claimed is kept

    @property
    def holds(self) -> bool | None:
        """Whether what was measured lies within the claim; None where its interval does not settle it."""
        if self.value is None:
            return None
        low, high, (least, most) = *self._claimed, self._ends
        if low <= least and most <= high:
            return True
        return False if most < low or least > high else None

    @property
    def outcome(self) -> Outcome:
        """As a reader needs it: what is beyond a claim on its good side is better, and never leaves it open."""
        if self.value is None:
            return "not measured"
        low, high, (least, most) = *self._claimed, self._ends
        if (self.good == "low" and most < low) or (self.good == "high" and least > high):
            return "better"
        if (self.good == "low" and most <= high) or (self.good == "high" and least >= low):
            return "held"
        return {True: "held", False: "not held", None: "open"}[self.holds]  # type: ignore[return-value]

    @property
    def _claimed(self) -> Span:
        return (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)

    @property
    def _ends(self) -> Span:
        assert self.value is not None
        return self.interval or (self.value, self.value)
