"""What a worker writes down of each request while a batch runs: into columns that are there before it begins."""

from __future__ import annotations

from array import array
from typing import Any

from perfkit.load.answer import Answer
from perfkit.load.samples import Rest


class SampleBuffer:
    """The requests of a batch, column by column, in ns from its release; those that do not fit, as histograms."""

    def __init__(self, size: int, at: int, *, keep_body: bool = False) -> None:
        self._size, self._at, self._n = size, at, 0
        self._stamps = tuple(array("q", bytes(8 * size)) for _ in range(4))
        self._users, self._attempts = array("q", bytes(8 * size)), array("q", bytes(8 * size))
        self._items, self._outcomes, self._details = [""] * size, [""] * size, [""] * size
        self._bodies: list[str] | None = [""] * size if keep_body else None
        self.rest: dict[str, Rest] = {}

    def add(self, item: str, user: int, scheduled: int, started: int, answer: Answer) -> None:
        """One request; stamps in ns of the monotonic clock."""
        n, at = self._n, self._at
        if n == self._size:
            self.rest.setdefault(item, Rest()).add(scheduled - at, answer.done - at, answer.outcome)
            return
        due, began, acquired, done = self._stamps
        due[n], began[n], acquired[n], done[n] = scheduled - at, started - at, answer.acquired - at, answer.done - at
        self._items[n], self._users[n], self._attempts[n] = item, user, answer.attempts
        self._outcomes[n], self._details[n] = answer.outcome, answer.detail
        if self._bodies is not None:
            self._bodies[n] = answer.body
        self._n = n + 1

    def columns(self) -> dict[str, list[Any]]:
        """What was written, for JSON."""
        n = self._n
        names = ("scheduled", "started", "acquired", "done")
        found: dict[str, list[Any]] = {name: own[:n].tolist() for name, own in zip(names, self._stamps, strict=True)}
        found |= {"user": self._users[:n].tolist(), "attempts": self._attempts[:n].tolist()}
        found |= {"item": self._items[:n], "outcome": self._outcomes[:n], "detail": self._details[:n]}
        return found if self._bodies is None else {**found, "body": self._bodies[:n]}
