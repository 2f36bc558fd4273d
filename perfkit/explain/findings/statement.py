"""Findings on wrong row estimates, and on nested loops and subqueries that they lead to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from perfkit.base.units import counted, millis, percent
from perfkit.explain.conditions import conditions
from perfkit.explain.documents import GATHERS
from perfkit.explain.facts import Predicate, TableFacts, predicates, qualified, quoted, stale
from perfkit.explain.findings.model import Finding, FindingContext, child, cut_short, inclusive, took, worth
from perfkit.explain.plan import JOINS, Node, Trigger

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
    return not cut_short(node) and not _unwanted(node)


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


_NAME = re.compile(r'(?:(?:[a-z_][\w$]*|"(?:[^"]|"")+")\.)?(?:[a-z_][\w$]*|"(?:[^"]|"")+")')  # as regclass prints it


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
    joins = sum(node.kind in JOINS for node in plan.nodes)
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
