"""Findings on wrong row estimates, and on nested loops and subqueries that they lead to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from perfkit.explain.accounting import GATHERS
from perfkit.explain.candidates import candidate, conditions
from perfkit.explain.facts import Predicate, TableFacts, predicates, qualified, quoted, stale
from perfkit.explain.findings.model import Finding, FindingContext, child, counted, inclusive, took, worth
from perfkit.explain.plan import Node

JOINS = frozenset({"Nested Loop", "Hash Join", "Merge Join"})
CONDITIONS = ("Index Cond", "Recheck Cond", "Filter")
# Nodes that pass their rows on, or count them differently from the estimate.
_PASSING = frozenset(
    "Sort,Incremental Sort,Materialize,Memoize,Hash,Gather,Gather Merge,Limit,LockRows,Result,WindowAgg,ModifyTable,"
    "BitmapAnd,BitmapOr,Bitmap Index Scan,Recursive Union,WorkTable Scan".split(",")
)
# Known to be IMMUTABLE, which statistics on an expression require.
_IMMUTABLE = frozenset(
    "abs btrim ceil char_length coalesce date_part date_trunc extract floor greatest least left length lower ltrim md5 "
    "mod nullif replace reverse right round rtrim sign split_part strpos substr substring trunc upper".split()
)
_MOST_COLUMNS = 8  # that CREATE STATISTICS accepts
_NAME_BYTES = 63


def misestimate(context: FindingContext) -> Iterator[Finding]:
    """Find wrong row estimates at the lowest node, if a node above was chosen because of them."""
    nodes = context.plan.nodes
    parallel = any(node.kind in GATHERS for node in nodes)
    off = {node.number for node in nodes if node.executed and _off(context, node, parallel)}
    if not off:
        return
    said: set[int] = set()
    starts = off - _fed(nodes, off)
    for node in nodes:
        if node.number not in starts or node.kind in _PASSING:
            continue
        start = _in_cte(node, off) or node
        parent = start.parent
        key = parent.number if parent and parent.kind in ("Append", "Merge Append") else start.number
        top = _planned_for(node, off)
        if top is None or key in said:
            continue
        spent = inclusive(top) - inclusive(node) if top is not node else node.exclusive_ms or 0.0
        if not worth(context, spent):
            continue
        said.add(key)
        advice, sql = cure(context, start)
        rate, under = start.misestimate, start.misestimate > 1
        rounds = f" in {counted(start.loops, 'execution')}" if start.loops > start.processes else ""
        depends = (
            "its groups therefore spilled to disk"
            if top is node
            else f"the {top.name} above was chosen for that estimate"
        )
        yield context.finding(
            "misestimate",
            start,
            f"{start.title} returned {counted(start.rows, 'row')}{rounds}, but the planner expected"
            f" {start.estimated:,.0f}, {rate if under else 1 / rate:,.0f} times too {'few' if under else 'many'};"
            f" {depends}{took(context, spent)}.",
            advice,
            sql=sql,
            ms=spent,
        )


def cure(context: FindingContext, node: Node) -> tuple[str, str]:
    """Return advice on how to improve the estimate of a node, and the SQL that does it; "" if no statement can."""
    if node.table:
        return _of_table(context, node)
    if node.kind == "Aggregate":
        return _of_groups(context, node)
    if node.kind in JOINS:
        return (
            "The joined columns depend on each other in a way that statistics of single tables do not show: ANALYZE"
            " both tables; if that does not help, put the join's input into a temporary table and ANALYZE it.",
            "",
        )
    if node.kind in ("Function Scan", "Table Function Scan", "ProjectSet"):
        return "Tell the planner how many rows the function returns: ALTER FUNCTION ... ROWS.", ""
    if node.kind in ("Append", "Merge Append"):
        return "Small errors in the parts add up: ANALYZE the tables below.", ""
    return "The planner cannot estimate this: put these rows into a temporary table, ANALYZE it and query it.", ""


def _off(context: FindingContext, node: Node, parallel: bool) -> bool:
    """Return whether an estimate is far off for a node that was not stopped early."""
    limits, parent, rows = context.limits, node.parent, node.rows
    expected = node.estimated if parallel else node.rows_planned * node.loops  # equal, and faster
    if max(rows, expected) < limits.misestimate_rows:
        return False
    rate = node.misestimate
    if 1 / limits.misestimate < rate < limits.misestimate:
        return False
    if rate > 1:  # a merge join reads its inner side again for equal keys
        return not (parent and parent.kind == "Merge Join" and node.relationship == "Inner")
    return not node.cut_short and not _unwanted(node)


def _unwanted(node: Node) -> bool:
    """Return whether a hash join above had an empty hash table and therefore stopped reading."""
    for above in node.above():
        inner = child(above, "Inner") if above.kind == "Hash Join" and node.relationship == "Outer" else None
        if inner and not inner.rows:
            return True
        node = above
    return False


def _fed(nodes: Sequence[Node], off: set[int]) -> set[int]:
    """Return the nodes whose rows come from a node with a wrong estimate."""
    found: set[int] = set()
    for node in reversed(nodes):
        wrong = node.number in found or (node.number in off and node.kind not in _PASSING)
        if wrong and node.parent and node.relationship not in ("InitPlan", "SubPlan"):
            found.add(node.parent.number)
    return found


def _in_cte(node: Node, off: set[int]) -> Node | None:
    """Return the node of a CTE where the estimate of its scan went wrong."""
    name = f"CTE {node.cte}" if node.kind == "CTE Scan" else ""
    ctes = (c for above in node.above() for c in above.children if name and c.subplan == name)
    if (cte := next(ctes, None)) is None:
        return None
    below = [*cte.below()]
    starts = off - _fed(below, off)
    return next((n for n in below if n.number in starts and n.kind not in _PASSING), None)


def _planned_for(node: Node, off: set[int]) -> Node | None:
    """Return the last node above that this estimate decided, as far up as the estimates are wrong."""
    under = node.misestimate > 1
    last = node if under and node.kind == "Aggregate" and node.group_batches > 1 else None
    for above in node.above():
        if node.relationship in ("InitPlan", "SubPlan"):
            break
        spilled = above.sort_space_type == "Disk" or above.group_batches > 1
        if above.kind in JOINS or (under and spilled):
            last = above
        wrong = above.number in off and (above.misestimate > 1) == under
        if above.kind == "Limit" or not (wrong or above.kind in _PASSING):
            break
        node = above
    return last


def _of_table(context: FindingContext, node: Node) -> tuple[str, str]:
    relation = node.table
    table = context.facts.of(node)
    name = qualified(node.schema, relation)
    analyze = f"ANALYZE {name}"
    if table is None:
        return (
            f"ANALYZE {relation}; if that does not help, its columns depend on each other: see CREATE STATISTICS.",
            analyze,
        )
    if because := stale(table, context.limits.stale_share):
        often = ", and make autovacuum do so more often (autovacuum_analyze_scale_factor)" if table.analyzed else ""
        return f"{because}: ANALYZE it{often}.", analyze
    found = conditions(context.facts, node, *CONDITIONS)
    if any(re.search(r"\$\d", p.value) for p in found):
        return (
            "The plan was made without the parameters' values: SET plan_cache_mode = force_custom_plan makes the"
            " planner use them.",
            "",
        )
    if expression := next((p for p in found if not p.column and p.operator not in ("", "OR") and not p.cast), None):
        return _of_expression(context, node, table, expression)
    columns = list(dict.fromkeys(column for p in found for column in sorted(p.columns)))
    if len(columns) > 1:
        listed = " and ".join(columns)
        return (
            f"The planner assumes that {listed} are independent: create statistics on how they depend on each other.",
            _statistics(node, "(dependencies, mcv) ", columns[:_MOST_COLUMNS]),
        )
    if any(p.joined for p in found) or not columns:
        return (
            f"The values come from another table, and the planner expects an average number of rows of {relation} for"
            " each: ANALYZE both tables; query very uneven values by a separate statement."
            if found
            else f"ANALYZE {relation}.",
            "" if found else analyze,
        )
    return (
        f"The statistics of {columns[0]} are too coarse: raise its statistics target.",
        _finer(node, columns[0]),
    )


def _of_expression(context: FindingContext, node: Node, table: TableFacts, found: Predicate) -> tuple[str, str]:
    advice = (
        f"The planner has no statistics on {found.subject} and guesses: compare the column itself, or create"
        " statistics."
    )
    types = {column.type for name in found.columns if (column := table.column(name))}
    functions = {
        name.strip('"').lower()
        for name in re.findall(r"([\w$.\"]+)\s*\(", re.sub(r"'(?:[^']|'')*'", "''", found.subject))
    }
    if not types or any("with time zone" in each for each in types) or not functions <= _IMMUTABLE:
        return advice, ""
    parts = re.split(r"('(?:[^']|'')*')", found.subject)
    prefix = re.compile(r'(?<![\w$".])' + re.escape(quoted(node.alias) + "."))
    plain = "".join(part if at % 2 else prefix.sub("", part) for at, part in enumerate(parts))
    return advice, _statistics(node, "", sorted(found.columns), f"({plain})")


def _of_groups(context: FindingContext, node: Node) -> tuple[str, str]:
    """Return advice and SQL for a wrong number of groups; their columns are usually of one table."""
    keys = node.group_keys
    scans = {n.alias: n for n in node.below() if n.table}
    for alias, scan in scans.items():
        table = context.facts.of(scan)
        names = frozenset(column.name for column in table.columns) if table else frozenset()
        found = [p for key in keys for p in predicates(f"({key} IS NULL)", alias, names)]
        if not keys or len(found) < len(keys) or not all(p.column for p in found):
            continue
        columns = [p.column for p in found]
        if len(columns) > 1:
            return (
                f"The planner does not know how many combinations of {' and '.join(columns)} exist: create statistics"
                " that count them.",
                _statistics(scan, "(ndistinct) ", columns[:_MOST_COLUMNS]),
            )
        return (
            f"The number of distinct values of {columns[0]} is estimated poorly: raise its statistics target.",
            _finer(scan, columns[0]),
        )
    return "The planner has no statistics on the expression in GROUP BY: group by plain columns.", ""


def _statistics(node: Node, kinds: str, columns: Sequence[str], what: str = "") -> str:
    """Return CREATE STATISTICS with a name, which PostgreSQL requires before 16."""
    relation = node.table
    name = "_".join([relation, *columns]).encode()[: _NAME_BYTES - 6].decode(errors="ignore") + "_stats"
    table = qualified(node.schema, relation)
    listed = what or ", ".join(map(quoted, columns))
    return f"CREATE STATISTICS IF NOT EXISTS {quoted(name)} {kinds}ON {listed} FROM {table};\nANALYZE {table}"


def _finer(node: Node, column: str) -> str:
    table = qualified(node.schema, node.table)
    return f"ALTER TABLE {table} ALTER COLUMN {quoted(column)} SET STATISTICS 1000;\nANALYZE {table}"


# Parts of a plan that are executed again for every row of another part.

_KEEPING = frozenset({"Materialize", "Memoize"})
_INDEXED = frozenset({"Index Scan", "Index Only Scan", "Bitmap Heap Scan"})


def nested_loop(context: FindingContext) -> Iterator[Finding]:
    """Find nested loops whose inner side is executed very often."""
    for node in context.plan.nodes:
        if node.kind != "Nested Loop" or not node.executed:
            continue
        outer, inner = child(node, "Outer"), child(node, "Inner")
        if outer is None or inner is None or inner.loops < context.limits.repeats:
            continue
        spent = inclusive(inner) + (node.exclusive_ms or 0.0)
        if not _large(context, spent):
            continue
        if (found := _read_whole(context, inner)) is not None:
            yield _whole(context, node, inner, found, spent)
        elif inner.loops >= 10 * context.limits.repeats and _misled(context, outer) and _real(inner).kind in _INDEXED:
            yield _searched(context, node, outer, inner, spent)


def correlated_subplan(context: FindingContext) -> Iterator[Finding]:
    """Find subqueries that are executed once for every row of the outer query."""
    for node in context.plan.nodes:
        if node.relationship != "SubPlan" or node.loops < context.limits.repeats or node.parent is None:
            continue
        spent = inclusive(node)
        if not _large(context, spent):
            continue
        scan = _read_whole(context, node)
        often = node.loops >= context.limits.lookups and (
            not context.plan.timed or spent >= context.limits.high_share * context.plan.execution_ms
        )
        if scan is None and not often:
            continue
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
