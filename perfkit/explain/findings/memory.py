"""What did not fit into work_mem: sorts, hash tables, hashed groups, kept rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

from perfkit.explain.accounting import Raw
from perfkit.explain.findings.model import Finding, FindingContext
from perfkit.explain.findings.words import child, counted, memory, rounded, size, took, worth
from perfkit.explain.plan import Node, number

_PAGE_KB = 8
_KEPT = frozenset({"Materialize", "CTE Scan", "WindowAgg", "Function Scan", "Table Function Scan"})
_LARGEST_MULTIPLIER = 16  # more is better said as work_mem
# Bytes that a row takes in memory beyond its data, as the server's sources allocate them: a sort's pointer and key
# with the tuple's and the allocator's headers; a hash table's headers and two buckets; a group's entry, twice because
# its array doubles, and its state of aggregation; a kept row's pointer and headers.
_SORTED, _HASHED, _GROUPED, _STORED = 56, 48, 176, 40
_MARGIN = 1.15
_GROUP_GROWS = 4  # times the disk that narrow rows take in memory


def sort_spill(look: FindingContext) -> Iterator[Finding]:
    """Sorts that wrote their rows to disk."""
    for node in look.plan.nodes:
        if node.kind not in ("Sort", "Incremental Sort") or not (spilled := _spilled(node)):
            continue
        spent = node.exclusive_ms or 0.0
        if not worth(look, spent):
            continue
        most, whole = max(spilled), sum(spilled)
        rows = _input(node) * most * len(spilled) / whole
        if node.kind == "Incremental Sort":  # its groups are sorted one by one, and nothing tells their rows
            kb = most * _GROUP_GROWS
        else:
            kb = max(most * 1.5, most + rows * _SORTED / 1024) * _MARGIN
        keys = ", ".join(node.texts("Sort Key"))
        each = f" in {counted(len(spilled), 'process')}" if len(spilled) > 1 else ""
        limited = any(above.kind == "Limit" for above in node.above())
        index = f"Only the first rows are wanted: an index on ({keys}) would give them in order. " if limited else ""
        yield _advised(
            look,
            "sort-spill",
            node,
            f"{counted(_input(node) * node.loops, 'row')} were sorted by {keys or 'their key'} with {size(whole)} on"
            f" disk{each}, because they did not fit into work_mem ({size(memory(look.plan.settings))})"
            f"{took(look, spent)}.",
            kb,
            index,
            spent,
        )


def hash_batches(look: FindingContext) -> Iterator[Finding]:
    """Hash tables, hashed groups and kept rows that were written to disk in part."""
    looks = {"Hash": _hash_table, "Aggregate": _groups}
    for node in look.plan.nodes:
        rule = looks.get(node.kind) or (_stored if node.kind in _KEPT else None)
        if rule and node.executed:
            yield from rule(look, node)


def _hash_table(look: FindingContext, node: Node) -> Iterator[Finding]:
    """The build side of a hash join."""
    join = node.parent
    if join is None or (batches := _largest(node, "Hash Batches")) <= 1:
        return
    spent = (node.exclusive_ms or 0.0) + (join.exclusive_ms or 0.0)
    if not worth(look, spent):
        return
    built = node.children[0] if node.children else node
    shared = node.raw.get("Parallel Aware") is True  # one table, of all processes' memory
    expected = built.estimated / (built.processes if shared else max(built.loops, 1.0))
    rows = max(built.rows / max(1.0, built.processes if shared else built.loops), expected)
    peak = _largest(node, "Peak Memory Usage")
    needed = max(rows * (_aligned(built.value("Plan Width")) + _HASHED) / 1024, peak * batches / 2)
    grown = batches > node.value("Original Hash Batches") > 0
    text = (
        f"The hash table of {counted(built.rows, 'row')} did not fit into memory, so that it and the rows that look"
        f" into it went through disk in {counted(batches, 'batch').replace('batchs', 'batches')}"
        f"{' (' + format(node.value('Original Hash Batches'), ',.0f') + ' were planned)' if grown else ''}"
        f"{took(look, spent)}."
    )
    yield _advised(look, "hash-batches", node, text, needed * _MARGIN, "", spent, hashed=True)


def _groups(look: FindingContext, node: Node) -> Iterator[Finding]:
    """A hashed aggregate."""
    batches, disk = _largest(node, "HashAgg Batches"), _largest(node, "Disk Usage")
    spent = node.exclusive_ms or 0.0
    if batches <= 1 or not disk or not worth(look, spent):
        return
    found = node.value("Actual Rows") + node.value("Rows Removed by Filter")
    rows = max(found, node.estimated / max(node.loops, 1.0))
    needed = max(rows * (2 * _aligned(node.value("Plan Width")) + _GROUPED) / 1024, _largest(node, "Peak Memory Usage"))
    keys = ", ".join(node.texts("Group Key"))
    text = (
        f"{counted(found * node.loops, 'group')} of {keys or 'the statement'} did not fit into memory:"
        f" {size(disk)} went through disk in {counted(batches, 'part')}{took(look, spent)}."
    )
    yield _advised(look, "hash-batches", node, text, needed * _MARGIN, "", spent, hashed=True)


def _stored(look: FindingContext, node: Node) -> Iterator[Finding]:
    """Rows kept to be read again; how much is told since 18, before that by the pages written."""
    disk = _PAGE_KB * node.own.get("Temp Written Blocks", 0.0)
    if node.text("Storage") == "Disk":
        disk = max(disk, node.value("Maximum Storage"))
    spent = node.exclusive_ms or 0.0
    if not disk or node.text("Storage") == "Memory" or not worth(look, spent):
        return
    rows = max([below.value("Actual Rows") for below in node.children if below.relationship == "Outer"] or [0.0])
    rows = rows or node.value("Actual Rows") + node.value("Rows Removed by Filter")
    needed = disk / max(1.0, node.loops if node.kind == "WindowAgg" else 1.0) + rows * _STORED / 1024
    text = (
        f"{node.title} kept its {counted(rows, 'row')} with {size(disk)} on disk, because they did not fit into"
        f" work_mem ({size(memory(look.plan.settings))}){took(look, spent)}."
    )
    yield _advised(look, "hash-batches", node, text, needed * _MARGIN, "", spent)


def _advised(
    look: FindingContext, rule: str, node: Node, text: str, kb: float, first: str, spent: float, *, hashed: bool = False
) -> Finding:
    """A finding with the memory that would do; a hash may use work_mem times hash_mem_multiplier."""
    now = memory(look.plan.settings)
    times = max(1, math.ceil(kb / now))
    setting, mb = f"work_mem = '{rounded(kb)}MB'", rounded(kb)
    if hashed and times <= _LARGEST_MULTIPLIER:
        setting, mb = f"hash_mem_multiplier = {times}", math.ceil(times * now / 1024)
    if mb > look.limits.memory_mb:
        advice = (
            f"{first}In memory this takes about {size(kb)}, too much to give to a statement: fewer or narrower rows"
            " should get here (a condition, a grouping or only the columns that are needed, earlier)."
        )
        return look.finding(rule, node, text, advice, ms=spent)
    advice = (
        f"{first}{size(mb * 1024.0)} would do; set it for this statement's session or role, not for the whole server,"
        " for every operation in every process may use so much."
    )
    return look.finding(rule, node, text, advice, sql=f"SET {setting}", ms=spent)


def _spilled(node: Node) -> list[float]:
    """Of each process that sorted on disk, the kB there."""
    found = []
    for part in _parts(node):
        kb = number(part, "Sort Space Used") if part.get("Sort Space Type") == "Disk" else 0.0
        for groups in ("Full-sort Groups", "Pre-sorted Groups"):
            space = part[groups].get("Sort Space Disk") if isinstance(part.get(groups), dict) else None
            kb = max(kb, number(space, "Peak Sort Space Used") if isinstance(space, dict) else 0.0)
        if kb:
            found.append(kb)
    return found


def _input(node: Node) -> float:
    """Rows that a process got at a time; a sort under LIMIT hands on fewer."""
    below = child(node, "Outer")
    return below.value("Actual Rows") if below else node.value("Actual Rows")


def _parts(node: Node) -> list[Raw]:
    """What the leader did, and each worker."""
    workers = node.raw.get("Workers")
    return [node.raw, *(w for w in (workers if isinstance(workers, list) else ()) if isinstance(w, dict))]


def _largest(node: Node, key: str) -> float:
    return max(number(part, key) for part in _parts(node))


def _aligned(width: float) -> float:
    return 8.0 * math.ceil(width / 8)
