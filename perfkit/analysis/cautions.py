"""What a careful reader should hold against a result: a caution has a kind, says what was found, and advises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class CaveatKind(StrEnum):
    """What a caution is about, in the words that label it; gravest first."""

    UNFINISHED = "unfinished"
    LEFT_OUT = "left out"
    CLIENT = "client too slow"
    FEW_ROUNDS = "too few rounds"
    SETTINGS = "settings differ"
    CONTROL = "control off"
    SEQUENTIAL = "sequential"
    DRIFT = "drift"
    OTHER_LOAD = "other load"
    STEAL = "CPU steal"
    CHECKPOINT = "checkpoint"
    AUTOVACUUM = "autovacuum"
    CACHE = "cold cache"
    WARM_UP = "warm-up failed"
    PLAN = "plan changed"
    UNSETTLED = "inconclusive"
    ERROR_RATE = "error rate"
    FLOOR = "near the floor"
    LOOKUP = "parameters looked up"
    P99 = "no p99"
    DATA = "data"
    MACHINE = "machine"


_GRAVITY = {kind: place for place, kind in enumerate(CaveatKind)}


@dataclass(frozen=True, slots=True)
class Caveat:
    """One reason to believe a result less; `text` names numbers, levels and arms, `advice` what to do about it."""

    kind: CaveatKind
    text: str
    advice: str

    @property
    def gravity(self) -> int:
        """0 for the gravest kind."""
        return _GRAVITY[self.kind]


def gravest_first(cautions: Iterable[Caveat]) -> tuple[Caveat, ...]:
    """In the order of their kinds; within a kind as they came."""
    return tuple(sorted(cautions, key=lambda caution: caution.gravity))


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of several names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    found = list(names)
    rest = len(found) - most
    return ", ".join(found[:most]) + (f" and {rest} more" if rest > 0 else "")
