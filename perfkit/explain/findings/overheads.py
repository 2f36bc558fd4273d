"""What costs time outside of the plan's nodes, and what kept the planner from its own choice."""

from __future__ import annotations

import re
from collections.abc import Iterator

from perfkit.explain.accounting import GATHERS
from perfkit.explain.candidates import quoted
from perfkit.explain.findings.model import Finding, FindingContext
from perfkit.explain.findings.words import counted, inclusive, percent, took, worth
from perfkit.explain.plan import Node, number
from perfkit.numbers import millis

_NAME = re.compile(r'(?:(?:[a-z_][\w$]*|"(?:[^"]|"")+")\.)?(?:[a-z_][\w$]*|"(?:[^"]|"")+")')  # as regclass prints it
_JOINS = frozenset({"Nested Loop", "Hash Join", "Merge Join"})
_MANY_JOINS, _MANY_PARTS = 6, 20  # planning time grows with each
_OWN = (
    "Its function runs once for each row: let it do less, skip rows with a WHEN condition, or handle all rows at once"
    " in a statement-level trigger with a transition table."
)
_LOADED = (
    "Each new row is looked up in the table that it refers to, which takes long: see whether that waits for locks or"
    " reads from disk, and load large amounts before the foreign key is added."
)
_REFERRED = (
    "Each changed row is looked up in the table that refers to it: see that its columns there are indexed and that few"
    " rows refer to it, or change fewer rows at a time."
)
_FORCED_BY = {
    "Seq Scan": "enable_seqscan",
    "Index Scan": "enable_indexscan",
    "Index Only Scan": "enable_indexonlyscan",
    "Bitmap Heap Scan": "enable_bitmapscan",
    "Tid Scan": "enable_tidscan",
    "Nested Loop": "enable_nestloop",
    "Hash Join": "enable_hashjoin",
    "Merge Join": "enable_mergejoin",
    "Sort": "enable_sort",
    "Incremental Sort": "enable_incremental_sort",
    "Materialize": "enable_material",
    "Memoize": "enable_memoize",
}


def workers_not_launched(look: FindingContext) -> Iterator[Finding]:
    """Parallel parts that had to do with fewer workers than planned."""
    for node in look.plan.nodes:
        if node.kind not in GATHERS or not node.executed or "Workers Launched" not in node.raw:
            continue
        planned, launched = node.value("Workers Planned"), node.value("Workers Launched")
        spent = inclusive(node)
        if launched >= planned or (look.plan.timed and spent < look.limits.workers_share * look.plan.execution_ms):
            continue
        if not worth(look, lost := spent * (planned - launched) / (planned + 1)):
            continue
        allowed = look.plan.settings.get("max_parallel_workers", "")
        short = bool(re.fullmatch(r"[0-9]{1,9}", allowed)) and int(allowed) < planned
        yield look.finding(
            "workers-not-launched",
            node,
            f"{node.name} planned {counted(planned, 'worker')} and got {launched:,.0f}, so that fewer processes shared"
            f" the work below it{took(look, spent)}.",
            f"max_parallel_workers is {allowed}; let it be at least {planned:.0f}."
            if short
            else "All workers were taken by other statements: raise max_parallel_workers (and max_worker_processes),"
            " or lower max_parallel_workers_per_gather, so that one statement plans for fewer.",
            sql=f"SET max_parallel_workers = {planned:.0f}" if short else "",
            ms=lost,
        )


def jit_share(look: FindingContext) -> Iterator[Finding]:
    """Compiling expressions took a large part of the execution."""
    plan, limits = look.plan, look.limits
    if not plan.jit_ms:
        return
    spent = plan.jit_ms / max(node.processes for node in plan.nodes)  # each process compiles for itself, all are summed
    if spent < limits.jit_ms or spent < limits.jit_share * plan.execution_ms:
        return
    jit = plan.document.get("JIT")
    functions = number(jit, "Functions") if isinstance(jit, dict) else 0.0
    cost = plan.root.value("Total Cost")
    yield look.finding(
        "jit-share",
        None,
        f"Compiling {counted(functions, 'expression')} to machine code (JIT) took {millis(spent)}"
        f" ({percent(min(1.0, spent / max(plan.execution_ms, spent)))} of the execution) and did not pay.",
        f"Turn it off for this statement's session or role, or raise jit_above_cost above this plan's {cost:,.0f}.",
        sql="SET jit = off",
        ms=spent,
    )


def trigger_time(look: FindingContext) -> Iterator[Finding]:
    """Triggers that took a large part of the execution."""
    plan = look.plan
    for trigger in plan.triggers:
        spent, calls = number(trigger, "Time"), number(trigger, "Calls")
        if not spent or spent < look.limits.trigger_share * plan.execution_ms or not worth(look, spent):
            continue
        name, constraint, relation = (
            str(trigger.get(key) or "") for key in ("Trigger Name", "Constraint Name", "Relation")
        )
        key = bool(constraint) and name.startswith("RI_ConstraintTrigger_")
        advice, sql = _foreign_key(look, name, constraint, relation, spent / max(calls, 1.0)) if key else (_OWN, "")
        if not advice:
            continue
        yield look.finding(
            "trigger-time",
            None,
            f"{f'The foreign key {constraint} was checked' if key else f'The trigger {name} ran'} for {relation}"
            f" {counted(calls, 'time')}{took(look, spent)}.",
            advice,
            sql=sql,
            ms=spent,
        )


def _foreign_key(look: FindingContext, name: str, constraint: str, relation: str, each: float) -> tuple[str, str]:
    """What makes its check faster; nothing where it is as fast as checks are, `each` of them in ms."""
    if name.startswith("RI_ConstraintTrigger_c"):  # on the table that refers to another, which has a unique index
        return (_LOADED if each >= look.limits.trigger_call_ms else ""), ""
    tables = [table for table in look.facts.tables if table.name == relation]
    reference = next((r for table in tables for r in table.referenced_by if r.constraint == constraint), None)
    if reference and not reference.indexed:
        columns = ", ".join(reference.columns)
        where = reference.table if _NAME.fullmatch(reference.table) else quoted(reference.table)
        return (
            f"{reference.table} has no index that begins with {columns}: for each row all of it is read.",
            f"CREATE INDEX ON {where} ({', '.join(quoted(column) for column in reference.columns)})",
        )
    return (_REFERRED if each >= look.limits.trigger_call_ms else ""), ""


def planning_share(look: FindingContext) -> Iterator[Finding]:
    """Planning took longer than the execution."""
    plan, limits = look.plan, look.limits
    spent, whole = plan.planning_ms, plan.planning_ms + plan.execution_ms
    if not plan.analyzed or spent < limits.planning_ms or spent < limits.planning_share * whole:
        return
    joins = sum(node.kind in _JOINS for node in plan.nodes)
    parts = max(_overhead_parts(node) for node in plan.nodes)
    reasons, advice = [], "Prepare the statement once for a connection and execute it often, so that its plan is kept."
    if parts >= _MANY_PARTS:
        reasons.append(counted(parts, "partition"))
        advice = "Have fewer, larger partitions, or name the partition key's values in the condition. " + advice
    if joins >= _MANY_JOINS:
        reasons.append(counted(joins, "join"))
        advice = (
            "Join fewer tables at once, or write explicit JOINs in a good order and set join_collapse_limit lower. "
            + advice
        )
    why = f" of {' and '.join(reasons)}" if reasons else ""
    yield look.finding(
        "planning-share",
        None,
        f"Planning{why} took {millis(spent)}, {percent(spent / whole)} of planning and execution together"
        f" ({millis(plan.execution_ms)} to execute).",
        advice,
        ms=spent,
    )


def planner_setting(look: FindingContext) -> Iterator[Finding]:
    """The planner was not free to choose: an enable_ setting is off."""
    off = {
        name for name, value in look.plan.settings.items() if value == "off" and re.fullmatch(r"enable_[a-z_]+", name)
    }
    disabled = [node for node in look.plan.nodes if (off or "Disabled" in node.raw) and node.disabled]
    names = sorted(off or {_FORCED_BY[node.kind] for node in disabled if node.kind in _FORCED_BY})
    if not names and not disabled:
        return
    first = disabled[0] if disabled else None
    listed = ", ".join(names) or "what allows it"
    forced = f"; nothing else was possible for {first.title}, which is used all the same" if first else ""
    yield look.finding(
        "planner-setting",
        first,
        f"The planner was not free in its choice: {listed} {'are' if len(names) > 1 else 'is'} off{forced}.",
        "Plan it without; where the setting comes from ALTER ROLE, ALTER DATABASE or the configuration, remove it"
        " there.",
        sql=";\n".join(f"RESET {name}" for name in names),
        ms=0.0,
    )


def _overhead_parts(node: Node) -> float:
    """Partitions that a node reads, with those that were left out."""
    if node.kind not in ("Append", "Merge Append"):
        return 0
    return len(node.children) + node.value("Subplans Removed")
