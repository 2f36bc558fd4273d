"""Findings in a plan: the list of rules, and `findings`, which applies them.

A new rule is a function in one of the modules here, a line in `RULES`, and a page in docs/findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.findings.estimates import correlated_subplan, misestimate, nested_loop
from perfkit.explain.findings.model import Finding, FindingContext, FindingLimits, Severity
from perfkit.explain.findings.resources import (
    hash_batches,
    jit_share,
    planner_setting,
    planning_share,
    sort_spill,
    trigger_time,
    workers_not_launched,
)
from perfkit.explain.findings.scans import (
    blocked_condition,
    heap_fetches,
    index_filter,
    lossy_bitmap,
    ordered_limit,
    sequential_scan,
)
from perfkit.explain.plan import Plan

__all__ = ["Finding", "Severity", "findings"]

RULES: tuple[Callable[[FindingContext], Iterator[Finding]], ...] = (
    sequential_scan,
    index_filter,
    heap_fetches,
    lossy_bitmap,
    blocked_condition,
    ordered_limit,
    misestimate,
    sort_spill,
    hash_batches,
    nested_loop,
    correlated_subplan,
    workers_not_launched,
    jit_share,
    trigger_time,
    planning_share,
    planner_setting,
)
_ORDER = (Severity.HIGH, Severity.MEDIUM, Severity.LOW)


def findings(plan: Plan, facts: PlanFacts = NO_FACTS, limits: FindingLimits | None = None) -> list[Finding]:
    """Return what the rules find in a plan, most severe first. Never raises for a plan that could be read."""
    context = FindingContext(plan, facts, limits or FindingLimits())
    unsorted = [finding for rule in RULES for finding in rule(context)]
    return sorted(unsorted, key=lambda f: (_ORDER.index(f.severity), -f.share, f.node or 0, f.rule))
