"""How many worker processes this machine's client is fastest with: tried against what does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perfkit.load.crew import Target, WorkerPool
from perfkit.load.plan import Batch
from perfkit.stats import percentile

TRIES = 5
NEARLY = 1.1  # as fast: the fewer processes, the more of the machine is left to the server


@dataclass(frozen=True, slots=True)
class CalibrationTrial:
    """A number of workers, and the median of a burst to a target that does nothing, in ms."""

    workers: int
    p50_ms: float


def calibrate(crew: WorkerPool, target: Target, message: dict[str, Any], users: int) -> tuple[CalibrationTrial, ...]:
    """Bursts of so many users by 1, 2, 4 ... workers, taking turns; the median over the tries of each."""
    numbers = [1 << power for power in range(len(crew).bit_length())]
    numbers = [number for number in numbers if number <= min(len(crew), users)]
    burst = [Batch(((message,),) * users, counted=False), Batch(((message, message),) * users)]
    found: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(TRIES):
        for number in numbers:
            columns = crew.run(target, burst, workers=number).columns
            rows = zip(columns["done"], columns["scheduled"], columns["counted"], strict=True)
            found[number].append(percentile([(done - due) / 1e6 for done, due, counted in rows if counted], 50))
    return tuple(CalibrationTrial(number, round(percentile(times, 50), 4)) for number, times in found.items())


def fewest(trials: Sequence[CalibrationTrial]) -> int:
    """The fewest workers that are nearly as fast as any.

    >>> fewest([CalibrationTrial(1, 4.0), CalibrationTrial(2, 2.1), CalibrationTrial(4, 2.0)])
    2
    """
    limit = NEARLY * min(trial.p50_ms for trial in trials)
    return min(trial.workers for trial in trials if trial.p50_ms <= limit)
