"""Whether to ship: everything that a decision needs, as one list of items, and the decision they lead to. Pure.

NO-GO where an item is broken: a check failed, a threshold or a comparison is broken, an index is missing, the
database had trouble, a person said no. NO BENEFIT where none is, and the change has no benefit. INCONCLUSIVE where
one is unproven or unanswered. GO otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfkit.analysis.policy import Decision, Outcome
from perfkit.analysis.results import Analysis
from perfkit.monitor.standing import MISSED
from perfkit.release import measured
from perfkit.release.answers import RecordedAnswer
from perfkit.release.items import CHECKED_NOW, SAID, GateItem, spoken
from perfkit.text import visible

_LED_BY = {
    Decision.NO_GO: Outcome.BROKEN,
    Decision.NO_BENEFIT: Outcome.ABSENT,
    Decision.INCONCLUSIVE: Outcome.UNPROVEN,
}


@dataclass(frozen=True, slots=True)
class WatchState:
    """What was found of a watch: whether it is alive, in one sentence, and its last interval's age in words."""

    alive: bool
    age: str
    text: str


@dataclass(frozen=True, slots=True)
class Gate:
    """The decision on the arms to be shipped, its items in the order of the page, and what led to it."""

    decision: Decision
    arms: tuple[str, ...]
    items: tuple[GateItem, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """In words, the items that led to it; of a GO, how many hold."""
        wanted = _LED_BY.get(self.decision)
        if wanted is None:
            return (f"All {len(self.items)} items hold.",)
        return tuple(item.reason for item in self.items if item.outcome is wanted)


def judge(
    run: Mapping[str, Any],
    analysis: Analysis,
    arms: Sequence[str],
    given: Sequence[RecordedAnswer],
    watched: WatchState | None,
) -> Gate:
    """Judge the arms to be shipped by everything a run, its people (`given`: standing answers) and a watch say."""
    release = run["config"].get("release") or {}
    items = [
        *measured.measured_items(run, analysis, arms),
        *_monitoring(bool(release.get("monitoring")), watched),
        *map(_answered, given),
    ]
    return Gate(decide(items), tuple(arms), tuple(items))


def decide(items: Iterable[GateItem]) -> Decision:
    """One broken item is a NO-GO, no benefit is none whatever is open, one unproven leaves it open.

    Nothing judged is never a GO.
    """
    outcomes = {item.outcome for item in items}
    for decision in (Decision.NO_GO, Decision.NO_BENEFIT):
        if _LED_BY[decision] in outcomes:
            return decision
    return Decision.GO if outcomes == {Outcome.HOLDS} else Decision.INCONCLUSIVE


def _monitoring(required: bool, watched: WatchState | None) -> list[GateItem]:
    """Monitoring that is not ready leaves the decision open: it is among what a GO needs, and forbids nothing."""
    if watched is None and not required:
        return []
    outcome = Outcome.HOLDS if watched and watched.alive else Outcome.UNPROVEN
    value, text = (watched.age, watched.text) if watched else ("not named", "No watch was named, so none was reached.")
    needs = "" if outcome is Outcome.HOLDS else "a watch that runs, named by --watch FOLDER."
    words = ("a watch is running and reached", "", value, f"{MISSED} intervals")
    return [GateItem("monitoring", "Monitoring", *words, CHECKED_NOW, outcome, text, needs)]


def _answered(given: RecordedAnswer) -> GateItem:
    outcome = {"yes": Outcome.HOLDS, "no": Outcome.BROKEN}.get(given.answer, Outcome.UNPROVEN)
    said = "".join(f", {word} {what}" for word, what in (("said by", given.by), ("on", spoken(given.on))) if what)
    text = f"{given.question}: {given.answer or 'not answered'}{said}."
    needs = f'--answer "{given.question}=yes" (or no) --by NAME.' if outcome is Outcome.UNPROVEN else ""
    words = ("yes", "no", given.answer or "not answered", "yes")
    return GateItem("people", visible(given.question), *words, SAID, outcome, text, needs)
