"""What is wrong with a plan: rules that each look for one thing, and stay silent on healthy plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from perfkit.explain.facts import NO_FACTS, Facts
from perfkit.explain.findings.model import Finding, Limits, Look, Severity
from perfkit.explain.plan import Plan

__all__ = ["Finding", "Severity", "findings"]

RULES: tuple[Callable[[Look], Iterator[Finding]], ...] = ()
_ORDER = (Severity.HIGH, Severity.MEDIUM, Severity.LOW)


def findings(plan: Plan, facts: Facts = NO_FACTS, limits: Limits | None = None) -> list[Finding]:
    """Everything the rules find in a plan, gravest first. Never raises for a plan that could be read."""
    look = Look(plan, facts, limits or Limits())
    found = [finding for rule in RULES for finding in rule(look)]
    return sorted(found, key=lambda f: (_ORDER.index(f.severity), -f.share, f.node or 0, f.rule))
