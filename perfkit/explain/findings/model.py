"""A finding, the context and the limits of its rule, and what rules share: wording and the columns of conditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import wraps

from perfkit.base.units import millis, percent
from perfkit.explain.conditions import placed
from perfkit.explain.facts import NO_FACTS, Index, PlanFacts, stale
from perfkit.explain.plan import Node, Plan


class Severity(StrEnum):
    """How much of the execution's time is at stake."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


_ORDER = tuple(Severity)


@dataclass(frozen=True, slots=True)
class FindingLimits:
    """Thresholds of all rules; each is the minimum for which its rule reports."""

    high_share: float = 0.4  # of the execution's time, for HIGH
    high_ms: float = 10.0  # minimum ms, for HIGH
    medium_share: float = 0.1
    medium_ms: float = 1.0
    worth_share: float = 0.05  # of the time: a smaller gain is not worth a change
    worth_ms: float = 1.0
    memory_mb: int = 1024  # largest work_mem that is advised for one statement
    misestimate: float = 10.0  # factor; smaller errors rarely make another plan better
    misestimate_rows: float = 1000  # the larger of estimated and actual rows: 2 instead of 40 changes no plan
    stale_share: float = 0.1  # of a table's rows changed since ANALYZE; autovacuum renews statistics at this share
    repeats: float = 100  # executions of a scan that reads the whole table
    repeat_rows: float = 100  # rows of each execution: reading a few rows again costs less than a hash table
    lookups: float = 10_000  # executions of an index scan: each reads few pages, so only very many add up
    repeat_share: float = 0.2  # of the time in the repeated part
    workers_share: float = 0.2  # of the time in a part that got fewer workers than planned
    jit_share: float = 0.25  # of the time in compilation, which should pay for itself several times over
    jit_ms: float = 5.0  # a shorter compilation is not noticed
    trigger_share: float = 0.2  # of the time
    trigger_call_ms: float = 0.2  # per check of a foreign key; a check that uses an index takes a tenth of this
    planning_share: float = 0.5  # of planning and execution: planning took longer than execution
    planning_ms: float = 5.0  # a new connection plans its first statement in 1 to 3 ms
    sifted_rows: float = 5_000  # rows read by a scan, in all loops: fewer take less than a millisecond
    sifted_share: float = 0.05  # maximum share of them that is kept; above it most pages are needed anyway
    unused_share: float = (
        0.01  # maximum share for an existing index that was not used; above it the planner may be right
    )
    scan_rows: float = 400  # rows of one sequential scan: fewer fit into a few pages, which beats an index
    heap_fetches: float = 1_000  # rows that an index-only scan looks up: fewer take less than a millisecond
    heap_fetch_share: float = 0.1  # of its rows; the changes since the last VACUUM always cause some
    lossy_pages: float = 500  # of a bitmap: about 50,000 rows are rechecked
    lossy_share: float = 0.1  # of its pages


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem in a plan that costs time and can be solved, or that limits what the plan proves."""

    rule: str  # its page is docs/findings/<rule>.md
    severity: Severity
    node: int | None  # the node's number; None: the statement as a whole
    text: str  # the problem: one sentence with its numbers
    advice: str  # what to do
    sql: str = ""  # the statement that does it, if one can
    share: float = 0.0  # of the execution's time that is at stake, 0 to 1
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class FindingContext:
    """What a rule reads: a plan, the catalogue's facts about its tables, and the limits."""

    plan: Plan
    facts: PlanFacts = NO_FACTS
    limits: FindingLimits = field(default_factory=FindingLimits)

    def finding(
        self, rule: str, node: Node | None, text: str, advice: str, *, sql: str = "", ms: float | None = None
    ) -> Finding:
        """Return a finding weighted by the node's own time, or by `ms`."""
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


Rule = Callable[[FindingContext], Iterator[Finding]]


def on(*kinds: str) -> Callable[[Callable[[FindingContext, Node], Iterator[Finding]]], Rule]:
    """Make a rule of a function that looks at one node: it is called for each node of these kinds."""

    def made(look_at: Callable[[FindingContext, Node], Iterator[Finding]]) -> Rule:
        @wraps(look_at)
        def rule(context: FindingContext) -> Iterator[Finding]:
            for node in context.plan.of_kind(*kinds):
                yield from look_at(context, node)

        return rule

    return made


def judge(
    rules: Iterable[Rule], plan: Plan, facts: PlanFacts = NO_FACTS, limits: FindingLimits | None = None
) -> list[Finding]:
    """Return what the rules find in a plan, most severe first. Never raises for a plan that could be read."""
    context = FindingContext(plan, facts, limits or FindingLimits())
    unsorted = [finding for rule in rules for finding in rule(context)]
    return sorted(unsorted, key=lambda f: (_ORDER.index(f.severity), -f.share, f.node or 0, f.rule))


# Numbers as findings write them, and whether a cost is worth reporting.

_UNITS = {"": 1.0, "kb": 1.0, "b": 1 / 1024, "mb": 1024.0, "gb": 1024.0**2, "tb": 1024.0**3}  # of work_mem, in kB


def worth(context: FindingContext, ms: float) -> bool:
    """Return whether a cost matters to the whole execution; always true for a plan without times."""
    if not context.plan.timed:
        return True
    limits = context.limits
    return ms >= limits.worth_ms and ms >= limits.worth_share * context.plan.execution_ms


def took(context: FindingContext, ms: float) -> str:
    """Return a time and its share of the execution as the end of a sentence; "" for a plan without times."""
    if not ms or not context.plan.execution_ms:
        return ""
    return f", {millis(ms)} ({percent(min(1.0, ms / context.plan.execution_ms))} of the execution)"


def memory(settings: Mapping[str, str]) -> float:
    """Return work_mem in kB from a plan's settings, which omit PostgreSQL's default of 4 MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", settings.get("work_mem", "4MB").strip().lower())
    kb = float(found[1]) * _UNITS.get(found[2], 1.0) if found else 4096.0
    return min(max(kb, 64.0), 2.0**31)  # what the server accepts


def rounded(kb: float) -> int:
    """Return the smallest power of two, in MB, that holds this many kB."""
    return 1 << max(0, (max(1, int(-(-kb // 1024))) - 1).bit_length())


def inclusive(node: Node) -> float:
    """Return the time of a node and everything below, in ms; 0 without times."""
    return node.inclusive_ms or 0.0


def child(node: Node, relationship: str) -> Node | None:
    """Return the child with this relationship; None if the node has none."""
    return next((below for below in node.children if below.relationship == relationship), None)


# The rows that a scan's conditions keep, and the index that would find them.

_SETTINGS = ("enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan")


@dataclass(frozen=True, slots=True)
class Sifted:
    """Number of rows that a scan read and kept, in all loops and processes."""

    kept: float
    seen: float
    ms: float  # its own time

    @property
    def share(self) -> float:
        """The share of the rows read that was kept."""
        return self.kept / self.seen if self.seen else 1.0

    @property
    def few(self) -> str:
        """The number of rows kept, as text."""
        return f"{self.kept:,.0f} ({percent(self.share)})" if round(self.kept) else "none"


def sifted(context: FindingContext, node: Node) -> Sifted | None:
    """Return the rows that a scan kept, or is expected to keep; None if unknown."""
    if not node.filter:
        return None
    if context.plan.analyzed:
        kept = node.rows
        seen = kept + node.removed_by_filter * node.loops
        return Sifted(kept, seen, node.exclusive_ms or 0.0) if node.executed else None
    table = context.facts.of(node) if node.kind == "Seq Scan" else None
    return Sifted(node.estimated, table.rows, 0.0) if table else None


def wasteful(context: FindingContext, node: Node, found: Sifted) -> bool:
    """Return whether a scan read many rows to keep few, in a time that matters."""
    limits = context.limits
    return found.seen >= limits.sifted_rows and found.share <= limits.sifted_share and worth(context, found.ms)


def why_unused(context: FindingContext, node: Node, index: Index) -> tuple[str, str]:
    """Return advice and SQL for an existing index that the planner did not use."""
    there = f"The planner did not use the existing index {index.name}"
    table, settings = context.facts.of(node), context.plan.settings
    if off := [name for name in _SETTINGS if settings.get(name) == "off"]:
        return f"{there}: {' and '.join(off)} is off.", ";\n".join(f"RESET {name}" for name in off)
    old = table is not None and stale(table, context.limits.stale_share)
    if old or (context.plan.analyzed and node.misestimate <= 1 / context.limits.misestimate):
        expected = f" because it expected {node.estimated:,.0f} rows" if context.plan.analyzed else ""
        return f"{there}{expected}: renew the statistics.", f"ANALYZE {placed(context.facts, node)}"
    return (
        f"{there}. Test with SET enable_seqscan = off whether it is faster; if so, random_page_cost is too high for "
        "this server (1.1 suits SSDs and data that is in memory).",
        "",
    )


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


_MATCHED = frozenset({"Inner", "Semi", "Right", "Right Semi", "Right Anti"})  # rows of the outer side need a match


_BITMAPS = frozenset({"Bitmap Index Scan", "BitmapAnd", "BitmapOr"})


def cut_short(node: Node) -> bool:
    """Return whether a node above, such as a LIMIT, a join or a subquery, may have stopped reading early."""
    while (above := node.parent) is not None and node.kind not in _BITMAPS:
        if node.relationship == "InitPlan" and node.subplan.startswith("CTE "):
            readers = [scan for scan in above.below() if scan.executed and _read_by(scan) is node]
            if not readers:
                return False
            node = max(readers, key=lambda scan: scan.rows)
            continue
        if node.relationship in ("InitPlan", "SubPlan") or _stops(above, node):
            return True
        if above.kind in ("Sort", "Hash") or above.strategy in ("Plain", "Hashed", "Mixed"):
            return False
        node = above
    return False


def _read_by(scan: Node) -> Node | None:
    """Return the CTE that a CTE Scan reads: the nearest of its name listed above."""
    name, lists = f"CTE {scan.cte}", (scan, *scan.above())
    ctes = (child for above in lists for child in reversed(above.children) if child.relationship == "InitPlan")
    named = (cte for cte in ctes if cte.subplan == name)
    return next(named, None) if scan.kind == "CTE Scan" else None


def _stops(above: Node, node: Node) -> bool:
    """Return whether a node may leave rows of a node below unread."""
    if above.kind in ("Limit", "Merge Join") or "Run Condition" in above.raw:
        return True
    if above.kind == "Nested Loop":
        first = above.join_type in ("Semi", "Anti") or above.raw.get("Inner Unique") is True
        return first and node.relationship == "Inner"
    if above.kind == "Hash Join" and node.relationship == "Outer" and above.join_type in _MATCHED:
        return any(child.kind == "Hash" and not child.rows for child in above.children)  # the hash table is empty
    return False
