"""How grave a window is: the rules that its figures break, without waiting for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perfkit.config.watching import WatchRule


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that a window's figures break."""

    rule: WatchRule
    value: float
    limit: float

    @property
    def action(self) -> str:
        """What to do."""
        return self.rule.action


def breaches(rules: Sequence[WatchRule], figures_of: Callable[[str], Mapping[str, float | None]]) -> list[Breach]:
    """The rules broken, gravest first; of several on one figure only the gravest. `figures_of(item)`, "" for all."""
    told: dict[tuple[object, ...], Breach] = {}
    for rule in sorted(rules, key=gravity):
        value = figures_of(rule.item or "")[rule.metric]
        if value is not None and beyond(rule, value):
            told.setdefault(subject(rule), Breach(rule, value, limit(rule)))
    return sorted(told.values(), key=lambda breach: (breach.rule.level, rules.index(breach.rule)))


def gravity(rule: WatchRule) -> tuple[str, float]:
    """Sorts rules on one figure, the gravest first: by level, and within one by the limit that is farther out."""
    return rule.level, -limit(rule) if rule.above is not None else limit(rule)


def subject(rule: WatchRule) -> tuple[object, ...]:
    """What rules of which only the gravest is told have in common: figure, item, and the side that is bad."""
    return rule.metric, rule.item, rule.above is None


def limit(rule: WatchRule) -> float:
    """Where a figure begins to be bad, itself excluded."""
    return rule.above if rule.above is not None else rule.below or 0.0


def beyond(rule: WatchRule, value: float) -> bool:
    """Whether a figure is bad."""
    return value > limit(rule) if rule.above is not None else value < limit(rule)


def good_again(rule: WatchRule, value: float) -> bool:
    """Whether a figure is good enough to take an alert back: beyond `clear`, by default a tenth of the limit."""
    clear = rule.clear if rule.clear is not None else limit(rule) - (abs(limit(rule)) / 10 * _side(rule))
    return (clear - value) * _side(rule) >= 0


def _side(rule: WatchRule) -> int:
    """1 where large figures are bad, else -1."""
    return 1 if rule.above is not None else -1
