"""What a finding is, how grave it is, and every threshold of every rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.plan import Node, Plan


class Severity(StrEnum):
    """How much of the execution is at stake, by share of its time and by the time itself."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class FindingLimits:
    """Thresholds of all rules, in one place; each is the least for which its rule speaks."""

    high_share: float = 0.4  # of the execution's time, for HIGH
    high_ms: float = 10.0  # and at least so many ms
    medium_share: float = 0.1
    medium_ms: float = 1.0
    worth_share: float = 0.05  # of the time, and
    worth_ms: float = 1.0  # ms: for less, nobody should change anything
    memory_mb: int = 1024  # more work_mem than this for a statement is advised to nobody
    misestimate: float = 10.0  # times off; less rarely makes another plan the better one
    misestimate_rows: float = 1000  # the larger of estimate and rows: 2 instead of 40 matter to nobody
    stale_share: float = 0.1  # of a table's rows changed since ANALYZE, where autovacuum would renew the statistics
    repeats: float = 100  # executions of a scan that reads everything
    repeat_rows: float = 100  # looked at in each of them: going through a handful again costs less than a hash table
    lookups: float = 10_000  # executions of an index scan: each is a few pages, only very many add up
    repeat_share: float = 0.2  # of the time in what is repeated
    workers_share: float = 0.2  # of the time in a part that got fewer workers than planned
    jit_share: float = 0.25  # of the time in compiling: it should be paid back several times over
    jit_ms: float = 5.0  # compiling less is not felt
    trigger_share: float = 0.2  # of the time
    trigger_call_ms: float = 0.2  # of a foreign key's check: one that finds its rows by an index takes a tenth
    planning_share: float = 0.5  # of planning and execution: longer planned than executed
    planning_ms: float = 5.0  # a new connection plans its first statement in 1 to 3 ms
    sifted_rows: float = 5_000  # looked at by a scan, in all loops: fewer take less than a millisecond
    sifted_share: float = 0.05  # kept of them, at most: with more, most pages are needed in any case
    unused_share: float = 0.01  # for an index that is there and was not taken: above it the planner may be right
    scan_rows: float = 400  # in each execution of a sequential scan: fewer fit into a few pages, quicker than an index
    heap_fetches: float = 1_000  # rows that an index-only scan looks up: fewer take less than a millisecond
    heap_fetch_share: float = 0.1  # of its rows: the last changes before the next VACUUM are always there
    lossy_pages: float = 500  # of a bitmap: some 50,000 rows are checked again
    lossy_share: float = 0.1  # of its pages


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
class FindingContext:
    """What rules look at: a plan, what the catalogue said of its tables, and the thresholds."""

    plan: Plan
    facts: PlanFacts = NO_FACTS
    limits: FindingLimits = field(default_factory=FindingLimits)

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
