"""Choosing indexes from what was measured of each alone and of all but one. Pure.

A set's latency is taken to be that of its best index alone, for the planner takes one of them; what only two
together give shows where one of them is missed. Fresh rounds must confirm what comes out of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from perfkit.analysis.results import Comparison
from perfkit.stats import Interval, Ratio

SLACK = 2.0  # margins by which one estimate must differ from another to be taken for more than chance
CLOSE = 0.95  # of the best gain: of indexes as good as that, the smallest is taken

Latencies = Mapping[str, float]  # by query, as a ratio to all indexes together


@dataclass(frozen=True, slots=True)
class MeasuredSets:
    """By index its latencies alone and its bytes; `none`: latencies without any.

    `missed` are those without which, all others being there, a query is slower by more than the margin.
    """

    alone: Mapping[str, Latencies]
    none: Latencies
    bytes: Mapping[str, int]
    missed: frozenset[str]


def choose(found: MeasuredSets, margin: float, budget: float = math.inf) -> list[str]:
    """The indexes to keep, of at most `budget` bytes: greedily the largest gain, then without what is spare.

    >>> alone = {"a": {"q": 1.0, "r": 9.0}, "b": {"q": 1.01, "r": 1.0}, "c": {"q": 5.0, "r": 9.0}}
    >>> choose(MeasuredSets(alone, {"q": 5.0, "r": 9.0}, {"a": 1, "b": 9, "c": 1}, frozenset()), 0.05)
    ['b']
    """
    chosen = [name for name in found.alone if name in found.missed and found.bytes[name] <= budget]
    while left := {
        name: gain
        for name in found.alone
        if name not in chosen
        and sum(found.bytes[n] for n in (*chosen, name)) <= budget
        and (gain := _gain(found, chosen, name, margin)) > 0
    }:
        best = max(left.values())
        chosen.append(min((n for n, gain in left.items() if gain >= CLOSE * best), key=found.bytes.__getitem__))
    for name in sorted(chosen, key=found.bytes.__getitem__, reverse=True):
        others = [n for n in chosen if n != name]
        if name not in found.missed and _gain(found, others, name, margin) <= 0:
            chosen = others
    return [name for name in found.alone if name in chosen]


def latencies(found: MeasuredSets, chosen: Collection[str]) -> Latencies:
    """What a set is expected to take, by query."""
    return {query: min([none, *(found.alone[name][query] for name in chosen)]) for query, none in found.none.items()}


def _gain(found: MeasuredSets, chosen: Collection[str], name: str, margin: float) -> float:
    """Sum of logarithms over the queries that become faster by more than chance."""
    least, now = math.log1p(SLACK * margin), latencies(found, chosen)
    gains = (math.log(now[query] / found.alone[name][query]) for query in now)
    return sum(gain for gain in gains if gain > least)


def within(c: Comparison, margin: float) -> bool:
    """Whether a query is known to be at most so much slower, by its whole interval."""
    return c.ratio is not None and c.ratio.hi <= 1 + margin


def worse(ratio: Ratio | None, margin: float, before: Interval, after: Interval, floor: Interval) -> bool:
    """Whether a query is slower and seems to be by more than the margin, if not by its whole interval.

    And by more than the client's own time moved between rounds: a statement that takes little more than the client
    takes twice that wherever its connection came to lie on another processor, which is no index's doing.
    """
    if ratio is None or not (ratio.value > 1 + margin and ratio.lo > 1):
        return False
    return after.value - before.value > floor.hi - floor.lo


def helper(found: MeasuredSets, chosen: Collection[str], slower: Sequence[str], budget: float = math.inf) -> str:
    """Of the indexes left out, the one that does most for queries that became slower; "" for none."""
    room = budget - sum(found.bytes[name] for name in chosen)
    left = {
        n: min(found.alone[n][q] for q in slower) for n in found.alone if n not in chosen and found.bytes[n] <= room
    }
    now = latencies(found, chosen)
    useful = {n: t for n, t in left.items() if any(found.alone[n][q] < now[q] for q in slower)}
    return min(useful or left, key=lambda n: (left[n], found.bytes[n]), default="")
