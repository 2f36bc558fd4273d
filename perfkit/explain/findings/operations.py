"""Findings on memory, planning, JIT, triggers and workers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from perfkit.base.units import counted, size
from perfkit.explain.candidates import candidate
from perfkit.explain.conditions import conditions
from perfkit.explain.documents import GATHERS, Raw
from perfkit.explain.facts import Predicate
from perfkit.explain.findings.model import Finding, FindingContext, child, inclusive, memory, on, rounded, took, worth
from perfkit.explain.findings.statement import cure
from perfkit.explain.plan import Node, inner, number

_PAGE_KB = 8
_KEPT = frozenset({"Materialize", "CTE Scan", "WindowAgg", "Function Scan", "Table Function Scan"})
_LARGEST_MULTIPLIER = 16  # more is better said as work_mem
# Bytes that a row takes in memory beyond its data, as the server's sources allocate them: a sort's pointer and key
# with the tuple's and the allocator's headers; a hash table's headers and two buckets; a group's entry, twice because
# its array doubles, and its state of aggregation; a kept row's pointer and headers.
_SORTED, _HASHED, _GROUPED, _STORED = 56, 48, 176, 40
_MARGIN = 1.15
_GROUP_GROWS = 4  # times the disk that narrow rows take in memory


@on("Sort", "Incremental Sort")
def sort_spill(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find sorts that spilled to disk."""
    if not (spilled := _spilled(node)):
        return
    spent = node.exclusive_ms or 0.0
    if not worth(context, spent):
        return
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
        f"Sorting {counted(_input(node) * node.loops, 'row')} by {keys or 'their key'} spilled {size(whole * 1024)} to"
        f" disk{each}, because they did not fit into work_mem ({size(memory(context.plan.settings) * 1024)})"
        f"{took(context, spent)}.",
        kb,
        index,
        spent,
    )


@on("Hash", "Aggregate", *_KEPT)
def hash_batches(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find hash tables, hashed groups and stored rows that spilled to disk."""
    rule = {"Hash": _hash_table, "Aggregate": _groups}.get(node.kind, _stored)
    if node.executed:
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
        f" spilled {size(disk * 1024)} to disk in {counted(batches, 'batch')}{took(context, spent)}."
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
        f"{node.title} stored {counted(rows, 'row')} and spilled {size(disk * 1024)} to disk, because they did not fit"
        f" into work_mem ({size(memory(context.plan.settings) * 1024)}){took(context, spent)}."
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
            f"{first}In memory this takes about {size(kb * 1024)}, too much for one statement: let fewer or narrower"
            " rows get here (filter or group earlier, and select only the columns that are needed)."
        )
        return context.finding(rule, node, text, advice, ms=spent)
    advice = (
        f"{first}{size(mb * 1024**2)} is enough. Set it for this statement's session or role, not for the server: every"
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


@on(*GATHERS)
def workers_not_launched(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find parallel parts that ran with fewer workers than planned."""
    if not node.executed or "Workers Launched" not in node.raw:
        return
    planned, launched = node.workers_planned, node.workers_launched
    spent = inclusive(node)
    if launched >= planned or (context.plan.timed and spent < context.limits.workers_share * context.plan.execution_ms):
        return
    if not worth(context, lost := spent * (planned - launched) / (planned + 1)):
        return
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


_KEEPING = frozenset({"Materialize", "Memoize"})


_INDEXED = frozenset({"Index Scan", "Index Only Scan", "Bitmap Heap Scan"})


@on("Nested Loop")
def nested_loop(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find nested loops whose inner side is executed very often."""
    outer, inner = child(node, "Outer"), child(node, "Inner")
    if outer is None or inner is None or inner.loops < context.limits.repeats:
        return
    spent = inclusive(inner) + (node.exclusive_ms or 0.0)
    if not _large(context, spent):
        return
    if (found := _read_whole(context, inner)) is not None:
        yield _whole(context, node, inner, found, spent)
    elif inner.loops >= 10 * context.limits.repeats and _misled(context, outer) and _real(inner).kind in _INDEXED:
        yield _searched(context, node, outer, inner, spent)


@on("SubPlan")
def correlated_subplan(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find subqueries that are executed once for every row of the outer query."""
    if node.loops < context.limits.repeats or node.parent is None:
        return
    spent = inclusive(node)
    if not _large(context, spent):
        return
    scan = _read_whole(context, node)
    often = node.loops >= context.limits.lookups and (
        not context.plan.timed or spent >= context.limits.high_share * context.plan.execution_ms
    )
    if scan is None and not often:
        return
    compared: tuple[Predicate, ...] = ()
    sql = ""
    if scan is not None:
        table = context.facts.of(scan)
        compared = conditions(context.facts, scan, "Filter")
        found = candidate(scan.schema, scan.table, compared, table)
        useful = found and any(p.joined and p.equality for p in compared if p.column in found.columns)
        sql = found.sql if found and useful and not found.existing and scan.kind == "Seq Scan" else ""
    reads = f", and reads all of {_of(scan)} each time, {counted(_looked(scan), 'row')} in total" if scan else ""
    yield context.finding(
        "correlated-subplan",
        node,
        f"{node.subplan or 'A subquery'} is executed {counted(node.loops, 'time')}, once for each row"
        f" of {node.parent.title}{reads}{took(context, spent)}.",
        _rewrite(node, compared, bool(sql)),
        sql=sql,
        ms=spent,
    )


def _whole(context: FindingContext, node: Node, inner: Node, scan: Node, spent: float) -> Finding:
    """Return a finding on an inner side that is read in full each time."""
    real = _real(scan)
    table = context.facts.of(real)
    relation = real.table
    found = conditions(context.facts, real, "Filter", join=node.join_filter)
    joined = [p for p in found if p.joined]
    index = candidate(real.schema, relation, [*joined, *(p for p in found if not p.joined)], table)
    sql = ""
    if not relation:
        advice = (
            "Put the rows that are read again and again into a temporary table, indexed on the columns of the join."
        )
    elif not node.join_filter and not joined:
        advice = (
            "Nothing joins the two sides, so every row is combined with every other: check for a missing condition."
        )
    elif index is None or not any(p.column in index.columns for p in joined):
        split = any(p.operator == "OR" for p in joined) or " OR " in node.join_filter
        advice = (
            "A join on alternatives (OR) can use neither an index nor a hash: write a UNION of one join for each."
            if split
            else f"The join's condition ({node.join_filter or real.filter}) can use no index as"
            f" written: compare plain columns of {relation}, by equality if possible."
        )
    elif index.existing:
        advice = (
            f"{index.existing.name} could serve the join but was not used: check that both sides have the same type,"
            " and ANALYZE the tables."
        )
    else:
        advice, sql = (
            f"An index on {', '.join(index.columns)} finds the rows of {relation} without reading all of it.",
            index.sql,
        )
    return context.finding(
        "nested-loop",
        node,
        f"{_of(scan)} is read in full {counted(inner.loops, 'time')}, once for each row of the other side:"
        f" {counted(_looked(scan), 'row')} read for {counted(node.rows, 'row')} of the result{took(context, spent)}.",
        advice,
        sql=sql,
        ms=spent,
    )


def _searched(context: FindingContext, node: Node, outer: Node, inner: Node, spent: float) -> Finding:
    """Return a finding on an index that is searched far more often than planned."""
    real = _real(inner)
    start = next(
        (n for n in reversed([*outer.below()]) if _misled(context, n) and not n.kind.startswith("Bitmap I")), outer
    )
    advice, sql = cure(context, start)
    return context.finding(
        "nested-loop",
        node,
        f"{real.title} is searched {counted(inner.loops, 'time')}, though the planner expected"
        f" {counted(outer.estimated, 'time')}, and touches {counted(inner.pages, 'page')}{took(context, spent)}.",
        f"With a correct estimate the planner could use a hash join, which reads {_of(real)} once. {advice}",
        sql=sql,
        ms=spent,
    )


def _rewrite(node: Node, compared: Sequence[Predicate], indexed: bool) -> str:
    """Return how to rewrite a subquery, depending on its use."""
    columns = ", ".join(p.column for p in compared if p.joined and p.equality and p.column)
    parent = node.parent
    uses = f"{parent.filter} {parent.join_filter}" if parent else ""
    index = "An index finds its rows without reading all of them. " if indexed else ""
    if "NOT (ANY" in uses or (node.kind == "Materialize" and "NOT" in uses):
        return (
            f"{index}Write NOT EXISTS instead of NOT IN, so that the planner can join. If the subquery can return a "
            "null, the result differs: NOT IN then returns no rows."
        )
    name = re.escape(node.subplan)  # alone between AND and OR, as EXISTS was printed until 16
    alone = re.search(rf"(?:^|NOT |OR |AND )\(*{name}\)+\s*(?:$| OR | AND )", uses)
    if "EXISTS" in uses or "ANY" in uses or alone:
        return (
            f"{index}Take EXISTS or IN out of the OR or CASE around it, so that the planner can join: by a UNION, for "
            "example, which returns equal rows once."
        )
    if node.kind == "Aggregate":
        by = columns or "the columns that it is compared by"
        return (
            f"{index}Aggregate once for all rows: LEFT JOIN a subquery with GROUP BY {by}; where it has no row, "
            "coalesce makes a count 0."
        )
    if node.kind == "Limit":
        return f"{index}LEFT JOIN a subquery with DISTINCT ON, which finds all rows at once."
    return f"{index}Write it as a LEFT JOIN{' on ' + columns if columns else ''}, which finds all rows at once."


def _read_whole(context: FindingContext, top: Node) -> Node | None:
    """Return the node that is read in full each time: a sequential scan, or its stored rows; None if there is none."""
    if top.kind in _KEEPING and top.kind != "Memoize":
        return top if _looked(top) >= context.limits.repeat_rows * top.loops else None
    waiting = [top]
    while waiting:
        node = waiting.pop()
        if node.kind == "Seq Scan" and node.loops >= context.limits.repeats:
            if _looked(node) >= context.limits.repeat_rows * node.loops:
                return node
        elif node.kind != "Nested Loop":
            waiting += [below for below in node.children if below.relationship not in ("InitPlan", "SubPlan")]
    return None


def _looked(node: Node) -> float:
    """Return the rows read in all loops."""
    return node.rows + node.removed_by_filter * node.loops


def _real(node: Node) -> Node:
    """Return the node under nodes that only store rows."""
    while node.kind in _KEEPING and node.children:
        node = node.children[0]
    return node


def _of(node: Node) -> str:
    """Return the name of what a node reads."""
    real = _real(node)
    return real.relation or f"the result of {real.name}"


def _misled(context: FindingContext, node: Node) -> bool:
    """Return whether far more rows came than expected."""
    return (
        node.executed
        and node.misestimate >= context.limits.misestimate
        and node.rows >= context.limits.misestimate_rows
    )


def _large(context: FindingContext, spent: float) -> bool:
    return not context.plan.timed or (
        worth(context, spent) and spent >= context.limits.repeat_share * context.plan.execution_ms
    )
