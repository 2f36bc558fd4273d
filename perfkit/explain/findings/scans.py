"""Findings on scans: rows read in vain, and the index that would find or sort them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import ceil

from perfkit.base.units import counted
from perfkit.explain.candidates import broken, index_for, parts_of_or, walks
from perfkit.explain.conditions import (
    SCANS,
    Blocker,
    Remedy,
    added,
    blocks,
    column_of,
    conditions,
    explained,
    other_kind,
    partial_index,
    placed,
    plain,
    ready,
    usable,
)
from perfkit.explain.facts import Predicate, bare, bare_name, qualified, quoted, squeezed
from perfkit.explain.findings.model import (
    Finding,
    FindingContext,
    Sifted,
    listed,
    memory,
    on,
    rounded,
    sifted,
    wasteful,
    why_unused,
    worth,
)
from perfkit.explain.plan import Node, number

INDEX_SCANS = frozenset({"Index Scan", "Index Only Scan", "Bitmap Heap Scan"})
_KEY = re.compile(r'(?:(?:"(?:[^"]|"")*"|[\w$]+)\.)?("(?:[^"]|"")*"|[^\W\d][\w$]*)(?P<down> DESC)?')
_ENTRY = 64  # bytes for a page in a bitmap: tidbitmap.c, tbm_calculate_entries


def sequential_scan(context: FindingContext) -> Iterator[Finding]:
    """Find tables that are read in full for a few rows."""
    for nodes in _together(context):
        node = nodes[0]
        parts = [found for part in nodes if (found := sifted(context, part))]
        total = Sifted(sum(p.kept for p in parts), sum(p.seen for p in parts), sum(p.ms for p in parts))
        scans = max(1.0, node.loops / node.processes if node.parallel else node.loops)
        if not wasteful(context, node, total) or total.seen / scans < context.limits.scan_rows:
            continue
        if not (remedy := _remedy(context, node, total.share)):
            continue
        pages = sum(part.own_pages for part in nodes) or (_known_pages(context, nodes) if scans == 1 else 0.0)
        read = "read" if context.plan.analyzed else "to be read"
        where = f" in {len(nodes)} partitions" if len(nodes) > 1 else ""
        often = f", {scans:,.0f} times" if scans > 1 else ""
        about = "about " if node.loops != 1 else ""
        kept = about + total.few if round(total.kept) else total.few
        touched = f"; {counted(pages, 'page')}" if pages else ""
        matched = "matched" if context.plan.analyzed else "expected to match"
        text = (
            f"Full scan of {_whole(context, nodes)}{where}{often}: {counted(total.seen, 'row')} {read}, "
            f"{kept} {matched}{touched}."
        )
        yield context.finding("sequential-scan", node, text, remedy[0], sql=remedy[1], ms=total.ms)


@on(*INDEX_SCANS)
def index_filter(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find indexes that return many rows of which a filter keeps few."""
    if not (found := sifted(context, node)) or not wasteful(context, node, found):
        return
    if walks(node):
        return
    remedy = _sharper(context, node)
    if remedy:
        yield context.finding(
            "index-filter",
            node,
            f"{_indexes(node)} {'return' if ' and ' in _indexes(node) else 'returns'} {counted(found.seen, 'row')} "
            f"of {node.relation}{_rounds(node)}, and the filter {_quoted_filter(node)} keeps {found.few}.",
            remedy[0],
            sql=remedy[1],
        )


@on("Index Only Scan")
def heap_fetches(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find index-only scans that visit the table anyway."""
    fetches = node.heap_fetches
    if fetches < context.limits.heap_fetches or not worth(context, node.exclusive_ms or 0.0):
        return
    seen = max(fetches, node.rows + node.removed_by_filter * node.loops)
    if fetches < context.limits.heap_fetch_share * seen:
        return
    yield context.finding(
        "heap-fetches",
        node,
        f"{node.index} covers the query, but {counted(fetches, 'row')} of {seen:,.0f} were looked up "
        f"in {node.relation}, because its pages have changed since the last VACUUM.",
        f"VACUUM {node.relation}, and make autovacuum run sooner on this table (autovacuum_vacuum_scale_factor, "
        "or autovacuum_vacuum_insert_scale_factor if rows are only inserted). If that does not help, look for a "
        "transaction that has been open for a long time.",
        sql=f"VACUUM {qualified(node.schema, node.relation)}",
    )


@on("Bitmap Heap Scan")
def lossy_bitmap(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find bitmaps that do not fit into work_mem and record pages instead of rows."""
    lossy, exact = _blocks(node, "Lossy Heap Blocks"), _blocks(node, "Exact Heap Blocks")
    if lossy < context.limits.lossy_pages or not worth(context, node.exclusive_ms or 0.0):
        return
    if lossy < context.limits.lossy_share * (lossy + exact):
        return
    mb = _bitmap_mb(context, node, lossy + exact)
    rechecked = node.removed_by_recheck * node.loops
    fits = mb <= context.limits.memory_mb and mb * 1024 > memory(context.plan.settings)
    advice = (
        f"With work_mem = {mb} MB the bitmap records every row."
        if fits
        else "Make the bitmap smaller: index more of the conditions, or read fewer rows at a time."
    )
    yield context.finding(
        "lossy-bitmap",
        node,
        f"The bitmap for {node.relation} did not fit into work_mem: of {counted(lossy + exact, 'page')}, "
        f"{lossy:,.0f} were recorded without their rows, and {counted(rechecked, 'row')} were read in vain.",
        advice,
        sql=f"SET work_mem = '{mb}MB'" if fits else "",
    )


def _together(context: FindingContext) -> Iterator[list[Node]]:
    """Yield sequential scans with a filter, grouping the partitions of one table."""
    groups: dict[tuple[object, ...], list[Node]] = {}
    for node in context.plan.of_kind("Seq Scan"):
        if not node.filter or (context.plan.analyzed and not node.executed):
            continue
        if node.schema.startswith("pg_") or node.relation.startswith("pg_"):
            continue  # the catalogue, and temporary tables
        key: tuple[object, ...] = (node.number,)
        if node.parent and node.parent.kind in ("Append", "Merge Append"):
            table = context.facts.of(node)
            stem = re.fullmatch(r"(.+)_\d+", node.alias)
            whole = table.parent if table else (stem[1] if stem and stem[0] != node.relation else None)
            key = (node.parent.number, whole) if whole else key
        groups.setdefault(key, []).append(node)
    yield from groups.values()


def _whole(context: FindingContext, nodes: Sequence[Node]) -> str:
    """Return the name of the table, or of the partitioned table, that the nodes read."""
    table = context.facts.of(nodes[0])
    if len(nodes) > 1:
        return table.parent[1] if table and table.parent else listed([node.relation for node in nodes[:3]])
    return nodes[0].relation


def _known_pages(context: FindingContext, nodes: Sequence[Node]) -> float:
    return sum(table.pages for node in nodes if (table := context.facts.of(node)))


def _remedy(context: FindingContext, node: Node, share: float) -> Remedy | None:
    """Return what would find the rows of a scan; None if nothing beats reading the whole table."""
    found, table = conditions(context.facts, node, "Filter"), context.facts.of(node)
    good = usable(found, table)
    others = [p for p in found if p not in good]
    vague = bool(good) and bool(others) and all(p.operator == "=" for p in good) and explained(good, table) > 0.25
    if not vague and (remedy := _index(context, node, found, good, share)):
        return remedy
    if not good and any(blocks(context.facts, node, p) for p in found):
        return None  # blocked-condition reports it
    for p in others:
        if (
            remedy := _either(context, node, p)
            or other_kind(context.facts, node, p)
            or partial_index(context.facts, node, p)
        ):
            return remedy
    return _index(context, node, found, good, share) if vague else None


def _index(
    context: FindingContext, node: Node, found: Sequence[Predicate], good: Sequence[Predicate], share: float
) -> Remedy | None:
    """Return the B-tree for the columns that are compared unchanged."""
    table = context.facts.of(node)
    fixed = {column_of(p, table) for p in good if p.equality}
    ranged = [column_of(p, table) for p in good if not p.equality]
    order = [name for name in _wanted_order(node) if name not in fixed]
    if not fixed or any(p.operator == "= ANY" for p in good) or (ranged and ranged[0] not in order[:1]):
        order = []
    if not (best := index_for(context.facts, node, found, order)):
        return None
    if best.existing:
        return why_unused(context, node, best.existing) if share <= context.limits.unused_share else None
    if table and (left := broken(table, best.columns)):
        again = f"REINDEX INDEX {quoted(table.schema)}.{quoted(left.name)}"
        return f"{left.name} is on these columns but invalid: the command that built it failed. Rebuild it.", again
    first = ", already in the requested order" if order else ""
    return f"An index on {listed(best.columns)} finds these rows without reading the others{first}.", best.sql


def _wanted_order(node: Node) -> tuple[str, ...]:
    """Return the columns of the ORDER BY above a scan if a LIMIT needs only the first rows; else ().

    The Sort next to a scan has only the scan's columns, so that they need no qualifier.
    """
    sort = node.parent
    if sort is None or sort.kind != "Sort":
        return ()
    top = next((above for above in sort.above() if above.kind not in ("Gather Merge", "LockRows", "Result")), None)
    keys = [_KEY.fullmatch(plain(key, node.alias)) for key in sort.sort_keys]
    if top is None or top.kind != "Limit" or not all(keys) or len({bool(key["down"]) for key in keys if key}) != 1:
        return ()
    return tuple(bare_name(key[1]) for key in keys if key)


def _either(context: FindingContext, node: Node, predicate: Predicate) -> Remedy | None:
    """Return an index for each condition of an OR."""
    parts = parts_of_or(context.facts, node, predicate)
    served = [index_for(context.facts, node, part) if part else None for part in parts]
    if not served or not all(served):
        return None
    best = [one for one in served if one]
    missing = list(dict.fromkeys(one.sql for one in best if not one.existing))
    columns = list(dict.fromkeys(listed(one.columns) for one in best))
    if not missing:
        return None
    if len(columns) == 1:
        return f"An index on {columns[0]} finds these rows without reading the others.", missing[0]
    return (
        f"An OR over several columns needs an index for each part: {'; '.join(columns)}. Alternatively, join two "
        "statements by UNION, which returns equal rows once.",
        ";\n".join(missing),
    )


def _sharper(context: FindingContext, node: Node) -> Remedy | None:
    """Return an index that has the filter's columns too."""
    table = context.facts.of(node)
    found, bitmaps = (
        conditions(context.facts, node, "Filter"),
        [n for n in node.below() if n.kind == "Bitmap Index Scan"],
    )
    by = conditions(context.facts, node, "Recheck Cond" if bitmaps else "Index Cond")
    if not usable(found, table):
        return None if any(blocks(context.facts, node, p) for p in found) else _beside(context, node, found)
    if any(p.operator == "OR" for p in by):
        columns = listed(sorted({p.column for p in usable(found, table)}))
        return f"Add {columns} to the indexes of the OR, {_indexes(node)}, before any column compared with a range.", ""
    both = usable([*by, *found], table)
    ranged = list(dict.fromkeys(column_of(p, table) for p in both if not p.equality))
    order = ranged if len(ranged) > 1 or not any(p.prefix for p in both) else []
    best = index_for(context.facts, node, both, order)
    if best is None:
        return None
    if best.existing:
        return why_unused(context, node, best.existing)
    return f"An index on {listed(best.columns)} finds only the matching rows.", best.sql


def _beside(context: FindingContext, node: Node, found: Sequence[Predicate]) -> Remedy | None:
    for p in found:
        if (
            remedy := _either(context, node, p)
            or other_kind(context.facts, node, p)
            or partial_index(context.facts, node, p)
        ):
            return remedy
    return None


def _indexes(node: Node) -> str:
    names = [below.index for below in node.below() if below.index]
    return listed(list(dict.fromkeys(names))) or "The index"


def _rounds(node: Node) -> str:
    scans = node.loops / node.processes
    return f" in {scans:,.0f} executions" if scans > 1 else ""


def _quoted_filter(node: Node) -> str:
    text = plain(node.filter, node.alias)
    return text if len(text) <= 80 else text[:79] + "…"


def _blocks(node: Node, key: str) -> float:
    """Return the pages of a bitmap, including those of workers (PostgreSQL 18 counts them separately)."""
    own = [number(worker, key) for worker in node.workers]
    # Workers that came too late report neither rows nor pages.
    idle = bool(own) and not any(worker.get("Actual Rows") for worker in node.workers)
    if not any(own) and not idle and node.parallel:  # until 17 the leader's alone are known
        return node.value(key) * node.processes
    return node.value(key) + sum(own)


def _bitmap_mb(context: FindingContext, node: Node, pages: float) -> int:
    """Return work_mem in MB, a power of two, for one execution's bitmap; each of ANDed bitmaps may cover more pages."""
    scans = max(1.0, node.loops / node.processes)
    table = context.facts.of(node)
    several = node.processes > 1 or any(below.kind == "BitmapAnd" for below in node.below())
    most = max(pages / scans, (table.pages if table else 4 * pages / scans) if several else 0.0)
    return rounded(ceil(most * _ENTRY / 1024))


# Rows requested in an order, and the index that returns them in it.

_OTHERWISE = (
    "To keep the planner from reading this index in order, find the rows in a WITH ... AS MATERIALIZED and sort them, "
    "or order by an expression (+ 0 for a number)."
)


@on("Index Scan", "Index Only Scan")
def ordered_limit(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find indexes read in the requested order, past many rows that the filter discards."""
    if not context.plan.analyzed:
        return
    if not (found := sifted(context, node)) or not wasteful(context, node, found) or not walks(node):
        return
    advice, sql = _order_remedy(context, node)
    yield context.finding(
        "ordered-limit",
        node,
        f"{node.index} was read in order until enough rows matched: "
        f"{counted(found.seen, 'row')} of {node.relation} were read, and the filter kept {found.few}.",
        advice,
        sql=sql,
    )


def _order_remedy(context: FindingContext, node: Node) -> tuple[str, str]:
    """Return advice and SQL for an index on the filter's columns, followed by those of the order."""
    table = context.facts.of(node)
    filters = conditions(context.facts, node, "Filter")
    fixed = [p for p in usable(filters, table) if p.operator == "=" or p.operator.startswith("IS ")]
    columns = {column_of(p, table) for p in fixed}
    walked = next((i for i in table.indexes if i.name == node.index), None) if table else None
    known = {quoted(column.name): column.name for column in table.columns} if table else {}
    order = [known.get(key, "") for key in walked.keys[:2]] if walked else []
    order = [name for name in (order if all(order) else []) if name not in columns]
    if not fixed:
        return f"The filter's columns are compared in a way that no index serves. {_OTHERWISE}", ""
    if not order:
        walked_by = node.index
        return f"Create an index on {listed(sorted(columns))}, followed by the columns of {walked_by}.", ""
    best = index_for(context.facts, node, fixed, order)
    if best is None or best.existing:
        return f"The index {best.existing.name if best and best.existing else ''} serves both. {_OTHERWISE}", ""
    return f"An index on {listed(best.columns)} has the matching rows together, in order. {_OTHERWISE}", best.sql


@on(*SCANS)
def blocked_condition(context: FindingContext, node: Node) -> Iterator[Finding]:
    """Find conditions on an expression, collation or pattern, which an index on the column alone cannot serve."""
    if not (found := sifted(context, node)) or not wasteful(context, node, found):
        return
    every = conditions(context.facts, node, "Filter")
    if explained(every, context.facts.of(node)) <= 2 * found.share:
        return  # the other conditions explain the few rows
    for p in every:
        if not (block := blocks(context.facts, node, p)) or added(block, p, every):
            continue
        advice, sql = _advice(context, node, p, block)
        yield context.finding(
            "blocked-condition",
            node,
            f"{_shown(p, node)} compares {block.what}, which an index on {_columns(p)} alone cannot serve: "
            f"{counted(found.seen, 'row')} of {node.relation} {'were' if context.plan.analyzed else 'will be'} "
            f"read to keep {found.few}.",
            advice,
            sql=sql,
        )


def _advice(context: FindingContext, node: Node, p: Predicate, block: Blocker) -> tuple[str, str]:
    table = context.facts.of(node)
    (name,) = p.columns
    if block.rewrite:
        if index := ready(context.facts, node, name):
            return f"Write {block.rewrite}, which the index {index.name} serves.", ""
        return (
            f"Write {block.rewrite}, and CREATE INDEX ON {placed(context.facts, node)} ({quoted(name)}) to serve it.",
            "",
        )
    if not block.key:
        return block.hint, ""
    wanted = squeezed(block.key.removesuffix(" text_pattern_ops"))
    for index in table.indexes if table else ():
        patterns = block.key.endswith(" text_pattern_ops")
        if index.keys[:1] == (quoted(name),) and "(" in block.key:
            continue  # squeezed, a cast to text is nothing
        if index.valid and not index.predicate and index.keys and squeezed(index.keys[0]) == wanted and not (
            patterns and "text_pattern_ops" not in index.definition
        ):  # fmt: skip
            return why_unused(context, node, index)
    what = "An index with this operator class" if p.column and p.prefix else "An index on the expression itself"
    what = f"An index on {name} in that collation" if " COLLATE " in block.key else what
    more = f" {block.hint}" if block.hint else ""
    return f"{what} serves it.{more}", f"CREATE INDEX ON {placed(context.facts, node)} ({block.key})"


def _columns(p: Predicate) -> str:
    return ", ".join(sorted(p.columns))


def _shown(p: Predicate, node: Node) -> str:
    text = bare(plain(p.text, node.alias))
    return text if len(text) <= 80 else text[:79] + "…"
