"""Parts of a plan that are executed again for every row of another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from perfkit.explain.candidates import candidate
from perfkit.explain.conditions import Predicate
from perfkit.explain.findings.estimates import conditions, cure
from perfkit.explain.findings.model import Finding, FindingContext
from perfkit.explain.findings.words import child, counted, inclusive, took, worth
from perfkit.explain.plan import Node

_KEEPING = frozenset({"Materialize", "Memoize"})
_INDEXED = frozenset({"Index Scan", "Index Only Scan", "Bitmap Heap Scan"})


def nested_loop(look: FindingContext) -> Iterator[Finding]:
    """Nested loops whose inner side is executed very often."""
    for node in look.plan.nodes:
        if node.kind != "Nested Loop" or not node.executed:
            continue
        outer, inner = child(node, "Outer"), child(node, "Inner")
        if outer is None or inner is None or inner.loops < look.limits.repeats:
            continue
        spent = inclusive(inner) + (node.exclusive_ms or 0.0)
        if not _large(look, spent):
            continue
        if (found := _read_whole(look, inner)) is not None:
            yield _whole(look, node, inner, found, spent)
        elif inner.loops >= 10 * look.limits.repeats and _misled(look, outer) and _real(inner).kind in _INDEXED:
            yield _searched(look, node, outer, inner, spent)


def correlated_subplan(look: FindingContext) -> Iterator[Finding]:
    """Subqueries that are executed once for every row of the outer query."""
    for node in look.plan.nodes:
        if node.relationship != "SubPlan" or node.loops < look.limits.repeats or node.parent is None:
            continue
        spent = inclusive(node)
        if not _large(look, spent):
            continue
        scan = _read_whole(look, node)
        often = node.loops >= look.limits.lookups and (
            not look.plan.timed or spent >= look.limits.high_share * look.plan.execution_ms
        )
        if scan is None and not often:
            continue
        compared: list[Predicate] = []
        sql = ""
        if scan is not None:
            table = look.facts.of(scan)
            compared = conditions(scan, table, ("Filter",))
            found = candidate(scan.text("Schema"), scan.text("Relation Name"), compared, table)
            useful = found and any(p.joined and p.equality for p in compared if p.column in found.columns)
            sql = found.sql if found and useful and not found.existing and scan.kind == "Seq Scan" else ""
        reads = (
            f" and reads {_of(scan)} from end to end each time, {counted(_looked(scan), 'row')} in all" if scan else ""
        )
        yield look.finding(
            "correlated-subplan",
            node,
            f"{node.text('Subplan Name') or 'A subquery'} is executed {counted(node.loops, 'time')}, once for each row"
            f" of {node.parent.title}{reads}{took(look, spent)}.",
            _rewrite(node, compared, bool(sql)),
            sql=sql,
            ms=spent,
        )


def _whole(look: FindingContext, node: Node, inner: Node, scan: Node, spent: float) -> Finding:
    """An inner side that is read from end to end each time."""
    real = _real(scan)
    table = look.facts.of(real)
    relation = real.text("Relation Name")
    found = conditions(real, table, ("Filter",), node.text("Join Filter"))
    joined = [p for p in found if p.joined]
    index = candidate(real.text("Schema"), relation, [*joined, *(p for p in found if not p.joined)], table)
    sql = ""
    if not relation:
        advice = "Put what is read again and again into a temporary table with an index on what it is joined by."
    elif not node.text("Join Filter") and not joined:
        advice = (
            "Nothing joins the two sides: every row is combined with every other; see whether a condition is missing."
        )
    elif index is None or not any(p.column in index.columns for p in joined):
        split = any(p.operator == "OR" for p in joined) or " OR " in node.text("Join Filter")
        advice = (
            "Alternatives joined by OR can use no index and no hash: write a UNION of a join for each."
            if split
            else f"The join's condition ({node.text('Join Filter') or real.text('Filter')}) can use no index as it is"
            f" written: compare the columns of {relation} as they are, by equality if possible."
        )
    elif index.existing:
        advice = (
            f"{index.existing.name} would serve the join and was not used: see that both sides have the same type, and"
            " that the tables are analysed."
        )
    else:
        advice, sql = (
            f"An index on {', '.join(index.columns)} finds the rows of {relation} without reading it all.",
            index.sql,
        )
    return look.finding(
        "nested-loop",
        node,
        f"{_of(scan)} is gone through {counted(inner.loops, 'time')}, once for each row of the other side:"
        f" {counted(_looked(scan), 'row')} looked at for {counted(node.rows, 'row')} of the result{took(look, spent)}.",
        advice,
        sql=sql,
        ms=spent,
    )


def _searched(look: FindingContext, node: Node, outer: Node, inner: Node, spent: float) -> Finding:
    """An index that is searched far more often than was planned for."""
    real = _real(inner)
    start = next(
        (n for n in reversed([*outer.below()]) if _misled(look, n) and not n.kind.startswith("Bitmap I")), outer
    )
    advice, sql = cure(look, start)
    return look.finding(
        "nested-loop",
        node,
        f"{real.title} is searched {counted(inner.loops, 'time')} where the planner expected"
        f" {counted(outer.estimated, 'time')}, and touches {counted(inner.pages, 'page')}{took(look, spent)}.",
        f"With the right number the planner could join by a hash, reading {_of(real)} once. {advice}",
        sql=sql,
        ms=spent,
    )


def _rewrite(node: Node, compared: Sequence[Predicate], indexed: bool) -> str:
    """The rewrite of a subquery, by what it is used for."""
    columns = ", ".join(p.column for p in compared if p.joined and p.equality and p.column)
    parent = node.parent
    uses = " ".join(parent.text(key) for key in ("Filter", "Join Filter")) if parent else ""
    index = "An index finds its rows without reading them all. " if indexed else ""
    if "NOT (ANY" in uses or (node.kind == "Materialize" and "NOT" in uses):
        return (
            f"{index}Write NOT EXISTS instead of NOT IN, which can be joined. If the subquery can return a null, the "
            "rows differ: NOT IN returns none then."
        )
    name = re.escape(node.text("Subplan Name"))  # alone between AND and OR, as EXISTS was printed until 16
    alone = re.search(rf"(?:^|NOT |OR |AND )\(*{name}\)+\s*(?:$| OR | AND )", uses)
    if "EXISTS" in uses or "ANY" in uses or alone:
        return (
            f"{index}Take EXISTS or IN out of the OR or CASE that it stands in, and it can be joined: by a UNION, for "
            "instance, which returns equal rows once."
        )
    if node.kind == "Aggregate":
        by = columns or "the columns it is compared by"
        return (
            f"{index}Once for all rows: LEFT JOIN a subquery that aggregates with GROUP BY {by}; where it has no row, "
            "coalesce makes a count 0."
        )
    if node.kind == "Limit":
        return f"{index}LEFT JOIN a subquery with DISTINCT ON, to find the rows for all at once."
    return f"{index}Write it as a LEFT JOIN{' by ' + columns if columns else ''}, to find the rows for all at once."


def _read_whole(look: FindingContext, top: Node) -> Node | None:
    """What is gone through from end to end each time: a sequential scan, or rows kept from one."""
    if top.kind in _KEEPING and top.kind != "Memoize":
        return top if _looked(top) >= look.limits.repeat_rows * top.loops else None
    waiting = [top]
    while waiting:
        node = waiting.pop()
        if node.kind == "Seq Scan" and node.loops >= look.limits.repeats:
            if _looked(node) >= look.limits.repeat_rows * node.loops:
                return node
        elif node.kind != "Nested Loop":
            waiting += [below for below in node.children if below.relationship not in ("InitPlan", "SubPlan")]
    return None


def _looked(node: Node) -> float:
    """Rows looked at in all loops."""
    return node.rows + node.value("Rows Removed by Filter") * node.loops


def _real(node: Node) -> Node:
    """What is under nodes that only keep rows."""
    while node.kind in _KEEPING and node.children:
        node = node.children[0]
    return node


def _of(node: Node) -> str:
    """What it reads."""
    real = _real(node)
    return real.relation or f"the result of {real.name}"


def _misled(look: FindingContext, node: Node) -> bool:
    """Whether far more rows came than expected."""
    return node.executed and node.misestimate >= look.limits.misestimate and node.rows >= look.limits.misestimate_rows


def _large(look: FindingContext, spent: float) -> bool:
    return not look.plan.timed or (worth(look, spent) and spent >= look.limits.repeat_share * look.plan.execution_ms)
