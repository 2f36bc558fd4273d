"""Rules and figures: whether one is beyond its limit, and which of several rules is the gravest."""

from __future__ import annotations

from collections.abc import Iterable

from perfkit.config.watching import WatchRule


def gravest(rules: Iterable[WatchRule], value: float | None) -> WatchRule | None:
    """Of rules on one figure the gravest that it breaks, without waiting for how long."""
    broken = (rule for rule in rules if value is not None and beyond(rule, value))
    return min(broken, key=gravity, default=None)


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
