"""Findings in a plan: the list of rules, and `findings`, which applies them to a plan and its facts.

A new rule is a function in one of the modules here, a line in `RULES`, and a page in docs/findings.
"""

from __future__ import annotations

from functools import partial

from perfkit.explain.findings.model import Finding, Rule, Severity, judge
from perfkit.explain.findings.operations import (
    correlated_subplan,
    hash_batches,
    nested_loop,
    sort_spill,
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
from perfkit.explain.findings.statement import jit_share, misestimate, planner_setting, planning_share, trigger_time

__all__ = ["Finding", "Severity", "findings"]

RULES: tuple[Rule, ...] = (
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
findings = partial(judge, RULES)
