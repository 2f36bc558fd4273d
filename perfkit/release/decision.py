"""A decision on disk: `decision.json` beside the run that it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from perfkit.analysis.policy import Decision, Outcome
from perfkit.bundle import read_object, reading, write_atomically
from perfkit.release.answers import RecordedAnswer
from perfkit.release.gate import Gate
from perfkit.release.items import GateItem

FILE = "decision.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision with when it was made (UTC), of what, and the answers that counted."""

    gate: Gate
    title: str
    headline: str
    on: str
    invalid: bool  # whether comparisons of the run are invalid, so that no answer makes it a GO
    answers: tuple[RecordedAnswer, ...] = ()
    watch: str = ""  # the name of the watch's folder

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it.

        Keys: format, title, decision (GO, NO-GO, NO BENEFIT, INCONCLUSIVE), invalid (of comparisons: an INCONCLUSIVE
        ends with 98), arms (to be shipped), decided (UTC), headline, reasons, items (group, name, go_if, no_go_if,
        value, limit, evidence, outcome: holds, broken, unproven, no benefit; text, needs), answers (question, answer,
        by, on), watch.
        """
        return {
            "format": FORMAT,
            "title": self.title,
            "decision": str(self.gate.decision),
            "invalid": self.invalid,
            "arms": list(self.gate.arms),
            "decided": self.on,
            "headline": self.headline,
            "reasons": list(self.gate.reasons),
            "items": [asdict(item) for item in self.gate.items],
            "answers": [asdict(answer) for answer in self.answers],
            "watch": self.watch,
        }

    def text(self) -> str:
        """The same as text."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Decided:
        """From JSON. Raises KeyError, TypeError, ValueError for what is none."""
        items = tuple(GateItem(**{**own, "outcome": Outcome(own["outcome"])}) for own in said["items"])
        gate = Gate(Decision(said["decision"]), tuple(said["arms"]), items)
        answers = tuple(RecordedAnswer(**own) for own in said["answers"])
        own = (said["title"], said["headline"], said["decided"])
        texts = chain(own, gate.arms, [said["watch"]], *map(astuple, items), *map(astuple, answers))
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text that is none")
        return cls(gate, *own, said["invalid"], answers, said["watch"])


def write(folder: Path, decided: Decided) -> None:
    """Into a run's folder. Raises BundleError."""
    write_atomically(folder / FILE, decided.text())


def read(folder: Path) -> Decided:
    """The decision that was made of a run. Raises BundleError where there is none, or it is damaged."""
    path = folder / FILE
    said = read_object(path, f"a run that was decided on: perfkit gate {folder}", "a decision", FORMAT)
    with reading(path):
        return Decided.of(said)
