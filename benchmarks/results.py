"""The table of figures: judged, printed, and written into `results.md`, where each benchmark has its own section."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from perfkit.base import process
from perfkit.base.stats import Interval, Ratio

FILE = Path(__file__).with_name("results.md")
ORDER = ("sql", "http", "open_model", "verdicts", "alike", "place", "logs")
HEAD = """# Figures beside other tools

Written by `make bench` (`make bench NAME=http` for one section). All tools of a section ran on the same machine in
the same run, taking turns in random order, several rounds each. *Measured* is the typical round's value or ratio, with
the 95 % interval that rounds give. A figure is met where *measured* keeps its limit, missed where the whole interval
is beyond it, and open where only *measured* is: then these rounds cannot tell.
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; without an interval the ends are equal to the value, without a limit it is only shown."""

    name: str
    value: float
    lo: float
    hi: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @classmethod
    def of(cls, name: str, found: Ratio | Interval | None, **rest: str | float | None) -> Figure:
        """From a statistic over rounds; a statistic that could not be had is a figure without a number."""
        ends = (found.value, found.lo, found.hi) if found else (float("nan"),) * 3
        return cls(name, *ends, **rest)  # type: ignore[arg-type]

    @property
    def word(self) -> str:
        """Whether the limits hold: shown (there are none), met, open or missed. What is not a number holds nothing."""
        if self.at_most is None and self.at_least is None:
            return "shown"
        if self._keeps(self.value, self.value):
            return "met"
        return "open" if not math.isnan(self.value) and self._keeps(self.lo, self.hi) else "missed"

    def _keeps(self, lo: float, hi: float) -> bool:
        return (self.at_most is None or lo <= self.at_most) and (self.at_least is None or hi >= self.at_least)

    def cells(self) -> tuple[str, ...]:
        """Its line: name, measured, interval, limit, word."""
        interval = f"{self.lo:.3g} to {self.hi:.3g}" if self.lo < self.hi else ""
        limits = [("at least", self.at_least), ("at most", self.at_most)]
        limit = ", ".join(f"{word} {value:g}{self.unit}" for word, value in limits if value is not None)
        word = "**missed**" if self.word == "missed" else self.word
        return (self.name, f"{self.value:.4g}{self.unit}", interval, limit, word)


@dataclass(frozen=True, slots=True)
class Section:
    """What one benchmark found: its figures, and notes in Markdown on what was run and what stops a missed figure."""

    name: str
    title: str
    figures: Sequence[Figure]
    notes: Sequence[str]
    versions: Sequence[str] = ()

    @property
    def met(self) -> bool:
        """Whether no figure is missed."""
        return all(figure.word != "missed" for figure in self.figures)

    def markdown(self, when: str) -> str:
        """The section's text."""
        facts = process.facts()
        machine = f"{when}; {facts['cores']} cores of {facts['cpu']}, {facts['memory_gb']:g} GB, {facts['system']}"
        with_ = ", ".join([f"Python {facts['python']}", *self.versions])
        head = ("figure", "measured", "95 % interval", "limit", "")
        rows = [head, ("---",) * len(head), *(figure.cells() for figure in self.figures)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
        return "\n\n".join([f"## {self.title}", f"{machine}; {with_}.", table, *self.notes])


def publish(section: Section, file: Path = FILE) -> bool:
    """Print a section and put it in its place in the file; True where no figure is missed."""
    text = section.markdown(datetime.now(UTC).strftime("%Y-%m-%d"))
    print(text)
    file.write_text(placed(file.read_text("utf-8") if file.exists() else "", section.name, text), "utf-8")
    return section.met


def placed(whole: str, name: str, text: str) -> str:
    """The file with one section written anew, the others as they are.

    >>> "old" in placed(placed("", "sql", "old"), "sql", "new")
    False
    """
    found = dict(re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- end -->", whole, re.DOTALL)) | {name: text}
    parts = [f"<!-- {own} -->\n{found[own]}\n<!-- end -->" for own in ORDER if own in found]
    return "\n\n".join([HEAD.rstrip(), *parts]) + "\n"
