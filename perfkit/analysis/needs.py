"""What it would take to prove a rule that is unproven: samples, or about how many blocks. Pure functions."""

from __future__ import annotations

import math

from perfkit.stats import MIN_SAMPLES, Interval

MOST = 1000  # blocks beyond which nobody measures


def samples_needed(q: int, have: int, rounds: int) -> str:
    """What a percentile without enough samples lacks, and how many blocks of the same size would have them."""
    lacking = MIN_SAMPLES[q] - have
    if not have:
        return f"{lacking} answered requests or more."
    blocks = math.ceil(MIN_SAMPLES[q] * rounds / have) if rounds else 0
    about = f", about {blocks} blocks in all" if blocks > rounds else ""
    return f"{lacking} more answered requests{about}."


def fewer_errors(errors: int, limit: float) -> str:
    """How many requests without a further error would bring an error rate under its limit."""
    return f"another run, or more than {math.floor(errors / limit):,} requests in all with no further error."


def bound_needed(interval: Interval, limit: float) -> str:
    """About how many blocks until both ends of an interval are on that side of a limit on which its estimate is.

    The estimate stays where it is and the distance of its ends, in logs, shrinks with the square root of the blocks.
    """
    end = interval.hi if interval.value < limit else interval.lo
    if not 0 < end < math.inf or interval.value <= 0:
        return f"more blocks than {interval.rounds}: so few set no bound."
    room, reach = (abs(math.log(value / interval.value)) for value in (limit, end))
    blocks = math.ceil(interval.rounds * (reach / room) ** 2) if room else MOST + 1
    if blocks > MOST:
        return f"more than {MOST} blocks: the estimate is too near to the limit."
    return f"about {max(blocks, interval.rounds + 1)} blocks in all, if the spread stays as it is."
