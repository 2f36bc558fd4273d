"""What a finding is, how grave it is, and every threshold of every rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from perfkit.explain.facts import NO_FACTS, Facts
from perfkit.explain.plan import Node, Plan


class Severity(StrEnum):
    """How much of the execution is at stake, by share of its time and by the time itself."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of all rules, in one place; each is the least for which its rule speaks."""

    high_share: float = 0.4  # of the execution's time, for HIGH
    high_ms: float = 10.0  # and at least so many ms
    medium_share: float = 0.1
    medium_ms: float = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a plan that costs time and can be changed, or that should be known before it is believed."""

    rule: str  # its page is docs/findings/<rule>.md
    severity: Severity
    node: int | None  # the node's number; None: the statement as a whole
    text: str  # what is wrong, one sentence with its numbers
    advice: str  # what to do
    sql: str = ""  # the statement that does it, where one can
    share: float = 0.0  # of the execution's time that is at stake, 0 to 1
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """What rules look at: a plan, what the catalogue said of its tables, and the thresholds."""

    plan: Plan
    facts: Facts = NO_FACTS
    limits: Limits = field(default_factory=Limits)

    def finding(
        self, rule: str, node: Node | None, text: str, advice: str, *, sql: str = "", ms: float | None = None
    ) -> Finding:
        """A finding with its weight: the node's own time, or `ms`."""
        whole = self.plan.execution_ms
        spent = ms if ms is not None else (node.exclusive_ms or 0.0) if node else 0.0
        share = min(1.0, spent / whole) if whole else 0.0
        return Finding(
            rule, self._severity(share, spent), node.number if node else None, text, advice, sql, share, spent
        )

    def _severity(self, share: float, ms: float) -> Severity:
        limits = self.limits
        if share >= limits.high_share and ms >= limits.high_ms:
            return Severity.HIGH
        return Severity.MEDIUM if share >= limits.medium_share and ms >= limits.medium_ms else Severity.LOW
