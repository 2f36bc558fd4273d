"""Rounds of several tools on the same work, taking turns, and what is compared of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from perfkit.base.process import MODULE, alone, spawn, stop
from perfkit.base.stats import Interval, Ratio, percentile, ratio, typical
from perfkit.load.pool import Load
from perfkit.load.samples import OK

ROUNDS = 6
WARM = 10  # transactions of each connection that do not count: statements are prepared, caches filled


@dataclass(frozen=True, slots=True)
class Round:
    """What one tool measured once: times and schedule lags in ms, the span from first to last in s, its CPU in s."""

    times: Sequence[float]
    span_s: float
    cpu_s: float
    lags: Sequence[float] = ()
    failed: int = 0

    def value(self, metric: str) -> float:
        """A statistic by name: `p50`, `p95`, `lag p50`, `lag p99` in ms, `rate` and `rate per core` per second."""
        if metric.startswith("rate"):
            return len(self.times) / (self.span_s if metric == "rate" else self.cpu_s)
        samples = self.lags if metric.startswith("lag") else self.times
        return percentile(samples, float(metric.rpartition("p")[2]))


def taking_turns(
    tools: Mapping[str, Callable[[], Round]], rounds: int = ROUNDS, seed: str = ""
) -> dict[str, list[Round]]:
    """So many rounds of every tool, in an order that is random within each turn; one turn more goes before, uncounted.

    Raises RuntimeError where a request failed: a tool that leaves work out is not faster.
    """
    draw, found = Random(seed), {name: list[Round]() for name in tools}
    for turn in range(-1, rounds):
        for name in draw.sample(sorted(tools), len(tools)):
            round_ = tools[name]()
            if round_.failed or not round_.times:
                raise RuntimeError(f"{name}: {round_.failed} requests failed of {len(round_.times) + round_.failed}")
            if turn >= 0:
                found[name].append(round_)
        sys.stderr.write(f"\r{seed}: turn {turn + 1} of {rounds}  ")
    sys.stderr.write("\n")
    return found


def compared(others: Sequence[Round], own: Sequence[Round], metric: str) -> Ratio | None:
    """perfkit's rounds over the other tool's, paired by turn."""
    return ratio([round_.value(metric) for round_ in others], [round_.value(metric) for round_ in own])


def typical_round(rounds: Sequence[Round], metric: str) -> Interval | None:
    """A statistic's geometric mean over rounds."""
    return typical([round_.value(metric) for round_ in rounds], sum(len(round_.times) for round_ in rounds))


def of_load(load: Load) -> Round:
    """A round of perfkit's own: its counted requests, from when they were due; its CPU shared out by number."""
    c = load.columns
    kept = [i for i, counted in enumerate(c.counted) if counted]
    good = [i for i in kept if c.outcome[i] == OK]
    span = (max(c.done[i] for i in good) - min(c.scheduled[i] for i in good)) / 1e9 if good else 0.0
    return Round(
        times=[(c.done[i] - c.scheduled[i]) / 1e6 for i in good],
        span_s=span,
        cpu_s=load.health["cpu_ms"] / 1e3 * len(good) / max(len(c.item), 1),
        lags=[(c.started[i] - c.scheduled[i]) / 1e6 for i in good],
        failed=len(kept) - len(good),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """While no other run of perfkit measures on this machine."""
    with alone(lambda words: None):
        yield


@contextmanager
def null_service() -> Iterator[tuple[str, int]]:
    """The service that does nothing, in a process of its own: where it answers, and the process's number."""
    process = spawn([*MODULE, "perfkit.load.http"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}", process.pid
    finally:
        stop(process)
