"""Findings on memory, planning, JIT, triggers and workers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from perfkit.base.units import millis, percent
from perfkit.explain.accounting import GATHERS, Raw
from perfkit.explain.facts import quoted
from perfkit.explain.findings.model import (
    Finding,
    FindingContext,
    child,
    counted,
    inclusive,
    memory,
    rounded,
    size,
    took,
    worth,
)
from perfkit.explain.plan import Node, Trigger, inner, number

_PAGE_KB = 8
_KEPT = frozenset({"Materialize", "CTE Scan", "WindowAgg", "Function Scan", "Table Function Scan"})
_LARGEST_MULTIPLIER = 16  # more is better said as work_mem
# Bytes that a row takes in memory beyond its data, as the server's sources allocate them: a sort's pointer and key
# with the tuple's and the allocator's headers; a hash table's headers and two buckets; a group's entry, twice because
# its array doubles, and its state of aggregation; a kept row's pointer and headers.
_SORTED, _HASHED, _GROUPED, _STORED = 56, 48, 176, 40
_MARGIN = 1.15
_GROUP_GROWS = 4  # times the disk that narrow rows take in memory


def sort_spill(context: FindingContext) -> Iterator[Finding]:
    """Find sorts that spilled to disk."""
    for node in context.plan.nodes:
        if node.kind not in ("Sort", "Incremental Sort") or not (spilled := _spilled(node)):
            continue
        spent = node.exclusive_ms or 0.0
        if not worth(context, spent):
            continue
        most, whole = max(spilled), sum(spilled)
        rows = _input(node) * most * len(spilled) / whole
        if node.kind == "Incremental Sort":  # its groups are sorted one by one, and nothing tells their rows
            kb = most * _GROUP_GROWS
        else:
            kb = max(most * 1.5, most + rows * _SORTED / 1024) * _MARGIN
        keys = ", ".join(node.sort_keys)
        each = f" in {counted(len(spilled), 'process')}" if len(spilled) > 1 else ""
        limited = any(above.kind == "Limit" for above in node.above())
        index = f"Only the first rows are needed: an index on ({keys}) returns them in order. " if limited else ""
        yield _advised(
            context,
            "sort-spill",
            node,
            f"Sorting {counted(_input(node) * node.loops, 'row')} by {keys or 'their key'} spilled {size(whole)} to"
            f" disk{each}, because they did not fit into work_mem ({size(memory(context.plan.settings))})"
            f"{took(context, spent)}.",
            kb,
            index,
            spent,
        )


def hash_batches(context: FindingContext) -> Iterator[Finding]:
    """Find hash tables, hashed groups and stored rows that spilled to disk."""
    looks = {"Hash": _hash_table, "Aggregate": _groups}
    for node in context.plan.nodes:
        rule = looks.get(node.kind) or (_stored if node.kind in _KEPT else None)
        if rule and node.executed:
            yield from rule(context, node)


def _hash_table(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find a hash join whose build side spilled."""
    join = node.parent
    if join is None or (batches := _largest(node, "Hash Batches")) <= 1:
        return
    spent = (node.exclusive_ms or 0.0) + (join.exclusive_ms or 0.0)
    if not worth(context, spent):
        return
    built = node.children[0] if node.children else node
    shared = node.parallel  # one table, of all processes' memory
    expected = built.estimated / (built.processes if shared else max(built.loops, 1.0))
    rows = max(built.rows / max(1.0, built.processes if shared else built.loops), expected)
    peak = _largest(node, "Peak Memory Usage")
    needed = max(rows * (_aligned(built.width) + _HASHED) / 1024, peak * batches / 2)
    grown = batches > node.hash_batches_planned > 0
    text = (
        f"The hash table of {counted(built.rows, 'row')} did not fit into memory, so it and the rows that probe it"
        f" spilled to disk in {counted(batches, 'batch')}"
        f"{' (' + format(node.hash_batches_planned, ',.0f') + ' were planned)' if grown else ''}"
        f"{took(context, spent)}."
    )
    yield _advised(context, "hash-batches", node, text, needed * _MARGIN, "", spent, hashed=True)


def _groups(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find a hashed aggregate that spilled."""
    batches, disk = _largest(node, "HashAgg Batches"), _largest(node, "Disk Usage")
    spent = node.exclusive_ms or 0.0
    if batches <= 1 or not disk or not worth(context, spent):
        return
    found = node.rows_per_loop + node.removed_by_filter
    rows = max(found, node.estimated / max(node.loops, 1.0))
    needed = max(rows * (2 * _aligned(node.width) + _GROUPED) / 1024, _largest(node, "Peak Memory Usage"))
    keys = ", ".join(node.group_keys)
    text = (
        f"{counted(found * node.loops, 'group')} of {keys or 'the statement'} did not fit into memory and"
        f" spilled {size(disk)} to disk in {counted(batches, 'batch')}{took(context, spent)}."
    )
    yield _advised(context, "hash-batches", node, text, needed * _MARGIN, "", spent, hashed=True)


def _stored(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find stored rows that spilled; PostgreSQL 18 reports the space, older servers only the pages written."""
    disk = _PAGE_KB * node.own.get("Temp Written Blocks", 0.0)
    if node.storage == "Disk":
        disk = max(disk, node.maximum_storage_kb)
    spent = node.exclusive_ms or 0.0
    if not disk or node.storage == "Memory" or not worth(context, spent):
        return
    rows = max([below.rows_per_loop for below in node.children if below.relationship == "Outer"] or [0.0])
    rows = rows or node.rows_per_loop + node.removed_by_filter
    needed = disk / max(1.0, node.loops if node.kind == "WindowAgg" else 1.0) + rows * _STORED / 1024
    text = (
        f"{node.title} stored {counted(rows, 'row')} and spilled {size(disk)} to disk, because they did not fit into"
        f" work_mem ({size(memory(context.plan.settings))}){took(context, spent)}."
    )
    yield _advised(context, "hash-batches", node, text, needed * _MARGIN, "", spent)


def _advised(
    context: FindingContext,
    rule: str,
    node: Node,
    text: str,
    kb: float,
    first: str,
    spent: float,
    *,
    hashed: bool = False,
) -> Finding:
    """Return a finding that names the memory needed; a hash may use work_mem times hash_mem_multiplier."""
    now = memory(context.plan.settings)
    times = max(1, math.ceil(kb / now))
    setting, mb = f"work_mem = '{rounded(kb)}MB'", rounded(kb)
    if hashed and times <= _LARGEST_MULTIPLIER:
        setting, mb = f"hash_mem_multiplier = {times}", math.ceil(times * now / 1024)
    if mb > context.limits.memory_mb:
        advice = (
            f"{first}In memory this takes about {size(kb)}, too much for one statement: let fewer or narrower rows get"
            " here (filter or group earlier, and select only the columns that are needed)."
        )
        return context.finding(rule, node, text, advice, ms=spent)
    advice = (
        f"{first}{size(mb * 1024.0)} is enough. Set it for this statement's session or role, not for the server: every"
        " operation in every process can use this much."
    )
    return context.finding(rule, node, text, advice, sql=f"SET {setting}", ms=spent)


def _spilled(node: Node) -> list[float]:
    """Return the kB on disk of each process that spilled."""
    found = []
    for part in _parts(node):
        kb = number(part, "Sort Space Used") if part.get("Sort Space Type") == "Disk" else 0.0
        for groups in ("Full-sort Groups", "Pre-sorted Groups"):
            kb = max(kb, number(inner(inner(part, groups), "Sort Space Disk"), "Peak Sort Space Used"))
        if kb:
            found.append(kb)
    return found


def _input(node: Node) -> float:
    """Return the rows that one execution received; a sort under LIMIT returns fewer."""
    below = child(node, "Outer")
    return below.rows_per_loop if below else node.rows_per_loop


def _parts(node: Node) -> list[Raw]:
    """Return the figures of the leader and of each worker."""
    return [node.raw, *node.workers]


def _largest(node: Node, key: str) -> float:
    return max(number(part, key) for part in _parts(node))


def _aligned(width: float) -> float:
    return 8.0 * math.ceil(width / 8)


# Time spent outside the plan's nodes, and settings that forced the plan.

_NAME = re.compile(r'(?:(?:[a-z_][\w$]*|"(?:[^"]|"")+")\.)?(?:[a-z_][\w$]*|"(?:[^"]|"")+")')  # as regclass prints it
_JOINS = frozenset({"Nested Loop", "Hash Join", "Merge Join"})
_MANY_JOINS, _MANY_PARTS = 6, 20  # planning time grows with each
_OWN = (
    "Its function runs once per row: make it do less, skip rows with a WHEN condition, or handle all rows at once in a"
    " statement-level trigger with a transition table."
)
_LOADED = (
    "Each new row is looked up in the referenced table, which takes long: check whether the lookup waits for locks or"
    " reads from disk, and load large amounts of data before adding the foreign key."
)
_REFERRED = (
    "Each changed row is looked up in the referencing table: check that its columns there are indexed and that few rows"
    " refer to it, or change fewer rows at a time."
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


def workers_not_launched(context: FindingContext) -> Iterator[Finding]:
    """Find parallel parts that ran with fewer workers than planned."""
    for node in context.plan.nodes:
        if node.kind not in GATHERS or not node.executed or "Workers Launched" not in node.raw:
            continue
        planned, launched = node.workers_planned, node.workers_launched
        spent = inclusive(node)
        if launched >= planned or (
            context.plan.timed and spent < context.limits.workers_share * context.plan.execution_ms
        ):
            continue
        if not worth(context, lost := spent * (planned - launched) / (planned + 1)):
            continue
        allowed = context.plan.settings.get("max_parallel_workers", "")
        short = bool(re.fullmatch(r"[0-9]{1,9}", allowed)) and int(allowed) < planned
        yield context.finding(
            "workers-not-launched",
            node,
            f"{node.name} planned {counted(planned, 'worker')} but got {launched:,.0f}, so fewer processes shared the"
            f" work below it{took(context, spent)}.",
            f"max_parallel_workers is {allowed}; set it to at least {planned:.0f}."
            if short
            else "Other statements used all workers: raise max_parallel_workers (and max_worker_processes), or lower"
            " max_parallel_workers_per_gather so that each statement plans fewer.",
            sql=f"SET max_parallel_workers = {planned:.0f}" if short else "",
            ms=lost,
        )


def jit_share(context: FindingContext) -> Iterator[Finding]:
    """Find a compilation of expressions that took a large part of the execution."""
    plan, limits = context.plan, context.limits
    if not plan.jit_ms:
        return
    spent = plan.jit_ms / max(node.processes for node in plan.nodes)  # each process compiles for itself, all are summed
    if spent < limits.jit_ms or spent < limits.jit_share * plan.execution_ms:
        return
    yield context.finding(
        "jit-share",
        None,
        f"Compiling {counted(plan.jit_functions, 'expression')} to machine code (JIT) took {millis(spent)}"
        f" ({percent(min(1.0, spent / max(plan.execution_ms, spent)))} of the execution) and did not pay off.",
        "Turn JIT off for this statement's session or role, or raise jit_above_cost above this plan's"
        f" {plan.root.cost:,.0f}.",
        sql="SET jit = off",
        ms=spent,
    )


def trigger_time(context: FindingContext) -> Iterator[Finding]:
    """Find triggers that took a large part of the execution."""
    plan = context.plan
    for trigger in plan.triggers:
        spent = trigger.ms
        if not spent or spent < context.limits.trigger_share * plan.execution_ms or not worth(context, spent):
            continue
        key = bool(trigger.constraint) and trigger.name.startswith("RI_ConstraintTrigger_")
        advice, sql = _foreign_key(context, trigger) if key else (_OWN, "")
        if not advice:
            continue
        yield context.finding(
            "trigger-time",
            None,
            f"{f'The foreign key {trigger.constraint} was checked' if key else f'The trigger {trigger.name} ran'} for"
            f" {trigger.table} {counted(trigger.calls, 'time')}{took(context, spent)}.",
            advice,
            sql=sql,
            ms=spent,
        )


def _foreign_key(context: FindingContext, trigger: Trigger) -> tuple[str, str]:
    """Return advice and SQL for a slow foreign key; empty if its checks are as fast as usual."""
    slow = trigger.ms / max(trigger.calls, 1.0) >= context.limits.trigger_call_ms
    if trigger.name.startswith("RI_ConstraintTrigger_c"):  # on the referring table; the other has a unique index
        return (_LOADED if slow else ""), ""
    tables = [table for table in context.facts.tables if table.name == trigger.table]
    reference = next((r for table in tables for r in table.referenced_by if r.constraint == trigger.constraint), None)
    if reference and not reference.indexed:
        columns = ", ".join(reference.columns)
        where = reference.table if _NAME.fullmatch(reference.table) else quoted(reference.table)
        return (
            f"{reference.table} has no index that begins with {columns}: the whole table is read for each row.",
            f"CREATE INDEX ON {where} ({', '.join(quoted(column) for column in reference.columns)})",
        )
    return (_REFERRED if slow else ""), ""


def planning_share(context: FindingContext) -> Iterator[Finding]:
    """Find planning that took longer than the execution."""
    plan, limits = context.plan, context.limits
    spent, whole = plan.planning_ms, plan.planning_ms + plan.execution_ms
    if not plan.analyzed or spent < limits.planning_ms or spent < limits.planning_share * whole:
        return
    joins = sum(node.kind in _JOINS for node in plan.nodes)
    parts = max(_overhead_parts(node) for node in plan.nodes)
    reasons, advice = [], "Prepare the statement once per connection and execute it often, so that its plan is reused."
    if parts >= _MANY_PARTS:
        reasons.append(counted(parts, "partition"))
        advice = "Use fewer, larger partitions, or compare the partition key with values in the condition. " + advice
    if joins >= _MANY_JOINS:
        reasons.append(counted(joins, "join"))
        advice = (
            "Join fewer tables at once, or write explicit JOINs in a good order and set join_collapse_limit lower. "
            + advice
        )
    why = f" of {' and '.join(reasons)}" if reasons else ""
    yield context.finding(
        "planning-share",
        None,
        f"Planning{why} took {millis(spent)}, {percent(spent / whole)} of planning and execution together"
        f" ({millis(plan.execution_ms)} to execute).",
        advice,
        ms=spent,
    )


def planner_setting(context: FindingContext) -> Iterator[Finding]:
    """Find enable_ settings that are off and forced the plan."""
    off = {
        name
        for name, value in context.plan.settings.items()
        if value == "off" and re.fullmatch(r"enable_[a-z_]+", name)
    }
    disabled = [node for node in context.plan.nodes if (off or "Disabled" in node.raw) and node.disabled]
    names = sorted(off or {_FORCED_BY[node.kind] for node in disabled if node.kind in _FORCED_BY})
    if not names and not disabled:
        return
    first = disabled[0] if disabled else None
    off_names = f": {', '.join(names)} {'are' if len(names) > 1 else 'is'} off" if names else ""
    forced = f"; {first.title} is used anyway, because nothing else was possible" if first else ""
    yield context.finding(
        "planner-setting",
        first,
        f"A planner setting forced this plan{off_names}{forced}.",
        "Reset the setting; if it comes from ALTER ROLE, ALTER DATABASE or the configuration, remove it there.",
        sql=";\n".join(f"RESET {name}" for name in names),
        ms=0.0,
    )


def _overhead_parts(node: Node) -> float:
    """Return the number of partitions of a node, including those that were pruned."""
    if node.kind not in ("Append", "Merge Append"):
        return 0
    return len(node.children) + node.subplans_removed
