"""Runs simulated from a seed: what a machine does to latencies, and how often the statistics are right about it.

Pure. A latency is lognormal, as measured ones are: its log is the machine's pace at that round (a random walk),
plus the round's own level (SD `round_sd`), plus the request's (SD `REQUEST_SD`). SDs are of natural logs: 0.1 is
about 10 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import special

from perfkit.base import judgement, stats

Floats = NDArray[np.float64]

BLOCKS = (6, 8, 12, 16, 24, 32, 48)
ROUND_SDS = (0.05, 0.1, 0.2, 0.3)
CHANGES = (1.1, 1.3)
TABLE = 12  # comparisons that share Holm's correction: six load levels, p50 and p95
REQUESTS, REQUEST_SD, MEDIAN_MS, MARGIN = 30, 0.5, 40.0, 0.05
WALK_SD = 0.05  # of one step of the machine's pace
Z95 = float(special.ndtri(0.95))


def pace(
    rng: Generator, blocks: int, step: float, *, levels: int = 1, arms: int = 2, interleaved: bool = True
) -> Floats:
    """Log of the machine's pace in every round, shape (arms, levels, blocks): a random walk in the order they run.

    Interleaved, the arms alternate in random order at each load level of each block; else all rounds of one arm
    come before those of the next.
    """
    walk = np.cumsum(rng.normal(0, step, arms * levels * blocks))
    if not interleaved:
        return walk.reshape(arms, blocks, levels).transpose(0, 2, 1)
    return rng.permuted(walk.reshape(blocks, levels, arms), axis=2).transpose(2, 1, 0)


def requests(rng: Generator, level: Floats, n: int = REQUESTS, sd: float = REQUEST_SD) -> Floats:
    """Latencies in ms of n requests in every round, whose log levels are given: the shape of these, and n."""
    return MEDIAN_MS * np.exp(level[..., None] + rng.normal(0, sd, (*level.shape, n)))


@dataclass(frozen=True, slots=True)
class Share:
    """How many of so many simulated runs."""

    hits: int
    runs: int

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.hits / self.runs

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """What the share would be in endless runs, within (Clopper & Pearson 1934)."""
        outside = (1 - confidence) / 2
        low = float(special.betaincinv(self.hits, self.runs - self.hits + 1, outside)) if self.hits else 0.0
        missed = self.runs - self.hits
        return low, float(special.betaincinv(self.hits + 1, missed, 1 - outside)) if missed else 1.0


@dataclass(frozen=True, slots=True)
class Power:
    """How often a true change is found: judged alone, and as one of a table of comparisons."""

    change: float
    round_sd: float
    blocks: int
    alone: Share
    in_table: Share


def power(repetitions: int, seed: int) -> Iterator[Power]:
    """For every change, spread and number of blocks; two arms whose rounds' medians have the SD `round_sd`.

    In a table the comparison is the only one with a change, the hardest case for Holm's correction.
    """
    for change in CHANGES:
        for round_sd in ROUND_SDS:
            for blocks in BLOCKS:
                rng = np.random.default_rng([seed, round(100 * change), round(100 * round_sd), blocks])
                alone = in_table = 0
                for before, after in np.exp(rng.normal(0, round_sd, (repetitions, 2, blocks))):
                    found = stats.ratio(before, change * after)
                    assert found
                    alone += _slower(found, found.p)
                    in_table += _slower(found, min(1.0, TABLE * found.p))
                shares = Share(alone, repetitions), Share(in_table, repetitions)
                yield Power(change, round_sd, blocks, *shares)


def _slower(found: stats.Ratio, p: float) -> bool:
    return judgement.verdict(found, p, MARGIN, healthy=True) is judgement.Verdict.SLOWER


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often each 95 % interval holds the true value."""

    round_sd: float
    blocks: int
    p50: Share
    p95: Share
    ratio_p50: Share
    ratio_p95: Share


def coverage(repetitions: int, seed: int, *, round_sd: float, blocks: int, change: float = 0.7) -> Coverage:
    """Two arms, the second `change` times as slow, in rounds of 30 requests on a machine whose pace wanders.

    The intervals within an arm are of a machine at a steady pace: they say nothing of another day.
    """
    rng = np.random.default_rng([seed, round(100 * round_sd), blocks])
    true_p95 = MEDIAN_MS * math.exp(Z95 * math.hypot(round_sd, REQUEST_SD))
    hits = [0, 0, 0, 0]
    for _ in range(repetitions):
        own = rng.normal(0, round_sd, (2, blocks))
        steady = requests(rng, own[0])
        before, after = requests(rng, own + pace(rng, blocks, WALK_SD)[:, 0])
        after = change * after
        found = (
            (stats.median(medians(steady), steady.size), MEDIAN_MS),
            (stats.tail(list(steady), 95), true_p95),
            (stats.ratio(medians(before), medians(after)), change),
            (stats.tail_ratio(list(before), list(after), 95), change),
        )
        for i, (interval, truth) in enumerate(found):
            hits[i] += interval is not None and interval.lo <= truth <= interval.hi
    return Coverage(round_sd, blocks, *(Share(count, repetitions) for count in hits))


def medians(rounds: Floats) -> Floats:
    """The p50 of every round."""
    found: Floats = np.median(rounds, axis=-1)
    return found


@dataclass(frozen=True, slots=True)
class Design:
    """How often a way of comparing two arms that are the same claims that they differ."""

    interleaved: bool
    requests: Share
    rounds: Share


def design(repetitions: int, seed: int, *, interleaved: bool, blocks: int = 12, round_sd: float = 0.1) -> Design:
    """By a t test on the logs of all requests (Welch 1947), and by paired medians of rounds; both at 5 %."""
    rng = np.random.default_rng([seed, blocks])
    by_request = by_round = 0
    for _ in range(repetitions):
        own = rng.normal(0, round_sd, (2, blocks)) + pace(rng, blocks, WALK_SD, interleaved=interleaved)[:, 0]
        arms = requests(rng, own)
        logs = np.log(arms).reshape(2, -1)
        n = logs.shape[1]
        score = abs(logs[0].mean() - logs[1].mean()) / math.sqrt(logs.var(axis=1, ddof=1).sum() / n)
        by_request += bool(2 * special.stdtr(2 * n - 2, -score) < stats.ALPHA)
        found = stats.ratio(*medians(arms))
        by_round += found is not None and found.p < stats.ALPHA
    return Design(interleaved, Share(by_request, repetitions), Share(by_round, repetitions))


@dataclass(frozen=True, slots=True)
class Answered:
    """Requests in the order they were due, in seconds: when, and the response time."""

    due: Floats
    took: Floats


LOCK = (5.0, 6.0)  # from and to, in s, of a run of RUN_S
RUN_S, SERVICE_S, USERS, RATE = 12.0, 0.005, 5, 100


def closed_model() -> Answered:
    """Users who each send the next request when the last is answered, past a lock of one second."""
    due = [0.0]
    while (end := _done(due[-1])) < RUN_S:
        due.append(end)
    every = np.repeat(due, USERS)  # alike, they stay in step
    return Answered(every, np.array([_done(at) - at for at in every]))


def open_model() -> Answered:
    """Requests that arrive at a rate, whether those before are answered or not, past the same lock."""
    due = (np.arange(round(RUN_S * RATE)) + 0.5) / RATE
    return Answered(due, np.array([_done(at) - at for at in due]))


def _done(at: float) -> float:
    """When a request sent then is answered: what the lock finds waits for its end."""
    return (LOCK[1] if LOCK[0] - SERVICE_S < at < LOCK[1] else at) + SERVICE_S
