"""Parameter rows of a watch: each is used once, then the source is asked anew, so that no probe repeats another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from time import monotonic_ns

from perfkit.load.plan import Draw, Row

WORN = 0.8  # of a source's rows used: time to ask for others


class Supply:
    """Rows by source, in a random order."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._draws: dict[str, Draw] = {}
        self._used: Counter[str] = Counter()

    def put(self, source: str, rows: Sequence[Row]) -> None:
        """Rows of a source, in place of those it had."""
        self._draws[source] = Draw({source: rows}, f"watch/{monotonic_ns()}")  # a watch begun again books other slots
        self._sizes[source], self._used[source] = len(rows), 0

    def again(self, source: str) -> None:
        """Use the same rows once more."""
        self._used[source] = 0

    def __contains__(self, source: str) -> bool:
        return source in self._draws

    def __call__(self, source: str) -> Row:
        """The next row; one of a source that has run out comes again."""
        self._used[source] += 1
        return self._draws[source](source)

    def worn(self, source: str) -> bool:
        """Whether most of a source's rows have been used."""
        return self._used[source] >= WORN * self._sizes[source]
