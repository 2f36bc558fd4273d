"""Rows wanted in an order: the index that gives it, and what it costs to wait for enough of them."""

from __future__ import annotations

from collections.abc import Iterator

from perfkit.explain.candidates import quoted
from perfkit.explain.findings.model import Finding, FindingContext
from perfkit.explain.findings.scans import walks
from perfkit.explain.findings.where import column_of, conditions, index_for, listed, sifted, usable, wasteful
from perfkit.explain.findings.words import counted
from perfkit.explain.plan import Node

_OTHERWISE = (
    "To keep the planner from walking this index, find the rows in a WITH ... AS MATERIALIZED and sort those, or "
    "order by an expression (+ 0 for a number)."
)


def ordered_limit(look: FindingContext) -> Iterator[Finding]:
    """An index walked in the order that is wanted, past many rows that the filter does not want."""
    for node in look.plan.nodes:
        if node.kind not in ("Index Scan", "Index Only Scan") or not look.plan.analyzed:
            continue
        if not (found := sifted(look, node)) or not wasteful(look, node, found) or not walks(node):
            continue
        advice, sql = _order_remedy(look, node)
        yield look.finding(
            "ordered-limit",
            node,
            f"{node.text('Index Name')} was walked in its order until enough rows were found: "
            f"{counted(found.seen, 'row')} of {node.relation} went by, and the filter keeps {found.few}.",
            advice,
            sql=sql,
        )


def _order_remedy(look: FindingContext, node: Node) -> tuple[str, str]:
    """The filter's columns first, then the order's."""
    table = look.facts.of(node)
    filters = conditions(look, node, "Filter")
    fixed = [p for p in usable(filters, table) if p.operator == "=" or p.operator.startswith("IS ")]
    columns = {column_of(p, table) for p in fixed}
    walked = next((i for i in table.indexes if i.name == node.text("Index Name")), None) if table else None
    known = {quoted(column.name): column.name for column in table.columns} if table else {}
    order = [known.get(key, "") for key in walked.keys[:2]] if walked else []
    order = [name for name in (order if all(order) else []) if name not in columns]
    if not fixed:
        return f"No index on the filter's columns can replace it as they are compared. {_OTHERWISE}", ""
    if not order:
        walked_by = node.text("Index Name")
        return f"Make an index on {listed(sorted(columns))}, followed by the columns of {walked_by}.", ""
    best = index_for(look, node, fixed, order)
    if best is None or best.existing:
        return f"The index {best.existing.name if best and best.existing else ''} serves both. {_OTHERWISE}", ""
    return f"An index on {listed(best.columns)} has the wanted rows side by side, in order. {_OTHERWISE}", best.sql
