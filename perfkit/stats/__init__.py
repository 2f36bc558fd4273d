"""Numbers from rounds: percentiles, intervals and ratios that respect the round, and the verdict on a ratio.

Pure functions. The unit of all statistics is the round, because requests inside a round resemble each other:
samples come as one sequence per round, in any unit; rounds of two arms are paired by block. Every interval
is a 95 % interval; every ratio is after/before, so a latency's below 1 is faster.
"""

from perfkit.stats.estimates import (
    ALPHA,
    MIN_SAMPLES,
    Interval,
    Samples,
    median,
    percentile,
    share,
    supported,
    tail,
    typical,
)
from perfkit.stats.ratios import Ratio, known_within, ratio, tail_ratio
from perfkit.stats.verdicts import (
    Verdict,
    blocks_for,
    blocks_for_gain,
    blocks_needed,
    equivalence,
    error_bound,
    gain,
    holm,
    verdict,
    widened_margin,
)

__all__ = [
    "ALPHA",
    "MIN_SAMPLES",
    "Interval",
    "Ratio",
    "Samples",
    "Verdict",
    "blocks_for",
    "blocks_for_gain",
    "blocks_needed",
    "equivalence",
    "error_bound",
    "gain",
    "holm",
    "known_within",
    "median",
    "percentile",
    "ratio",
    "share",
    "supported",
    "tail",
    "tail_ratio",
    "typical",
    "verdict",
    "widened_margin",
]
