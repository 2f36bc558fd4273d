"""One line of a decision: what must hold, what was found, and how that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from perfkit.analysis.policy import Outcome

LOAD, ONCE, CATALOGUE = "measured under load", "measured once", "read from the catalogue"
CHECKED_NOW, SAID, RECORDED = "checked at the decision", "said by a person", "recorded by the run"


@dataclass(frozen=True, slots=True)
class GateItem:
    """One item; `go_if` and `no_go_if` say when it lets through and when it forbids (empty: it never does)."""

    group: str
    name: str
    go_if: str
    no_go_if: str
    value: str
    limit: str
    evidence: str
    outcome: Outcome
    text: str  # one plain sentence or two, with their numbers
    needs: str = ""  # where it is unproven, what it would take

    @property
    def reason(self) -> str:
        """The sentence, and where it is unproven what it would take."""
        return f"{self.text} It would take {self.needs}" if self.needs else self.text


def written(now: datetime) -> str:
    """A time as perfkit writes it down, UTC."""
    return f"{now:%Y-%m-%dT%H:%M:%SZ}"


def spoken(on: str) -> str:
    """A time that perfkit wrote down as people read it; one that a person wrote stays as it is.

    >>> spoken("2026-01-15T09:00:00Z"), spoken("Week 1")
    ('2026-01-15 09:00:00 UTC', 'Week 1')
    """
    return f"{on[:10]} {on[11:19]} UTC" if on.endswith("Z") else on


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Broken before unproven before holds; no benefit where none has one, unproven where some have."""
    if Outcome.ABSENT in outcomes and Outcome.BROKEN not in outcomes:
        return Outcome.ABSENT if set(outcomes) == {Outcome.ABSENT} else Outcome.UNPROVEN
    return next((own for own in (Outcome.BROKEN, Outcome.UNPROVEN) if own in outcomes), Outcome.HOLDS)
