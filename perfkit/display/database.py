"""What happened inside the database: queries and their plans, and what the indexes cost."""

from __future__ import annotations

from typing import Any

from perfkit import numbers
from perfkit.analysis.results import PlanUse
from perfkit.display.html import Block, code, escape, folded
from perfkit.display.plans import DiffView, PlanView
from perfkit.display.subject import Subject
from perfkit.display.table import Cell, Table
from perfkit.display.tables import compared
from perfkit.errors import BundleError, PlanError
from perfkit.explain.facts import read_facts
from perfkit.explain.findings import findings
from perfkit.explain.plan import read_plan
from perfkit.nested import dumps


def queries(subject: Subject) -> Block:
    """Every query in every arm: latency under load, plan and buffers of one execution; then its SQL."""
    columns = (
        "query",
        "arm",
        "p50, ms (under load)",
        "p50 / before",
        "plan (measured once)",
        "buffers (measured once)",
        "executions that used it",
    )
    uses = {(use.query, use.arm): use for use in subject.analysis.plans}
    rows = tuple(
        _query(subject, query, uses[query, arm], uses.get((query, subject.before)))
        for query in subject.queries
        for arm in subject.arms
        if (query, arm) in uses
    )
    note = (
        "Buffers are 8 kB pages touched by one execution. "
        "The last column compares the server's scan counters with the plan shown."
    )
    table = Table(
        "What the planner chose, and what that did",
        columns,
        rows,
        frozenset((*columns[2:4], *columns[5:])),
        2,
        True,
        note,
    )
    texts = {name: str(query.get("sql", "")) for name, query in subject.run.get("queries", {}).items()}
    for arm in subject.arms:
        rewritten = subject.run.get("arms", {}).get(arm, {}).get("rewrite", {})
        texts |= {f"{name} in {arm}": str(text) for name, text in rewritten.items()}
    sql = "".join(folded(f"SQL of {name}", code(text.strip(), name=f"SQL of {name}")) for name, text in texts.items())
    return Block(table.to_html() + sql, table.to_text())


def index_costs(subject: Subject) -> Table:
    """Every index of the change: how long it took to build, what it occupies, the WAL it wrote."""
    arms: dict[str, Any] = {arm: subject.run.get("arms", {}).get(arm, {}) for arm in subject.after}
    built = {index["name"]: index for facts in arms.values() for index in facts.get("indexes", ())}
    expected = dict.fromkeys(name for facts in arms.values() for name in facts.get("expected_indexes", ()))
    tables = {table: size for facts in arms.values() for table, size in facts.get("table_bytes", {}).items()}
    rows = [_index(index, tables.get(index["table"], 0)) for index in built.values()]
    rows += [(Cell(name, "missing", "bad"), *[Cell("")] * 5) for name in expected if name not in built]
    if built:
        rows.append(_total(list(built.values()), tables))
    columns = ("index", "definition", "size", "of its table", "WAL written", "build time")
    note = "Measured once, on an arm's template database, with the server idle and the data in memory."
    if subject.run.get("order") == "sequential":
        note = "Measured once, built CONCURRENTLY in the database as it was in use, and removed at the end."
    return Table("Size, WAL and build time of each index", columns, tuple(rows), frozenset(columns[2:]), note=note)


def index_lab(subject: Subject) -> Block:
    """What an index lab found of the change's indexes, where its summary was taken into the run."""
    found = subject.run.get("lab")
    if not found:
        text = "Which of them earn their keep was not measured here: perfkit indexes ablate, then report --lab FOLDER."
        return Block(f'<p class="note">{escape(text)}</p>', text)
    columns = tuple(found["columns"])
    rows = tuple(tuple(Cell(*cell) for cell in row) for row in found["rows"])
    note = f"Measured apart from this run: {found['command']}"
    table = Table("What each index is worth", columns, rows, frozenset(columns[4:]), note=note)
    said = str(found["sentence"])
    return Block(f"<p><strong>{escape(said)}</strong></p>{table.to_html()}", f"{said}\n\n{table.to_text()}")


def plans(subject: Subject) -> Block:
    """Every query's plan before and after, folded: what changed, both drawn, and EXPLAIN's JSON to copy."""
    found = [_drawn(subject, query) for query in subject.queries]
    html = "".join(block.html for block in found) or "<p>No plan was captured.</p>"
    return Block(html, "\n\n".join(block.text for block in found) or "No plan was captured.")


def _drawn(subject: Subject, query: str) -> Block:
    """One query: each after arm compared with before, arms with the plan of an earlier one in a sentence."""
    seen = {arm: view for arm in subject.arms if (view := _view(subject, arm, query))}
    before = seen.get(subject.before)
    shown: list[tuple[str, str]] = []
    said = ""
    drawn: list[str] = []
    for arm in sorted((arm for arm in seen if arm != subject.before), key=lambda arm: arm not in subject.after):
        pairs = (DiffView(seen[other], seen[arm]) for other in (subject.before, *drawn) if other in seen)
        if alike := next((pair for pair in pairs if pair.diff.same), None):
            line = f"{arm}: {alike.diff.sentence} ({alike.before.title} -> {arm})"
            shown.append((f"<p>{escape(line)}</p>", line))
        elif before:
            changed = DiffView(before, seen[arm])
            said = said or changed.diff.sentence
            drawn.append(arm)
            shown.append((changed.html(), changed.text()))
    if not drawn:
        shown = [(view.html(), view.text()) for view in [before or next(iter(seen.values()), None)] if view] + shown
    source = "".join(
        folded(
            f"JSON of {query} in {arm}",
            code(dumps(subject.bundle.plan(arm, query)), name=f"JSON, {arm}"),
        )
        for arm in seen
    )
    title = f"{query}: {said}" if said else query
    html = folded(title, "".join(html for html, _ in shown) + source)
    return Block(html, "\n\n".join([title, *(text for _, text in shown)]))


def _view(subject: Subject, arm: str, query: str) -> PlanView | None:
    """A captured plan with what the rules find in it."""
    if (document := subject.bundle.plan(arm, query)) is None:
        return None
    try:
        plan, beside = read_plan(document), subject.bundle.beside_plan(arm, query)
        first = read_plan(beside["earlier"][0]) if beside.get("earlier") else None
        return PlanView(plan, findings(plan, read_facts(beside.get("tables", ()))), arm, first)
    except PlanError as error:
        raise BundleError(f"{subject.bundle.path}/plans/{arm}/{query}: {error}") from None


def _query(subject: Subject, query: str, use: PlanUse, before: PlanUse | None) -> tuple[Cell, ...]:
    level = next((x for x in subject.analysis.levels if (x.arm, x.item) == (use.arm, query)), None)
    found = subject.analysis.comparison(use.arm, level.scenario, "p50", query) if level else None
    quiet = "quiet" if subject.role(use.arm) == "control" else ""
    other = before if before and before.arm != use.arm else None
    change = "" if other is None else "same plan as before" if other.fingerprint == use.fingerprint else "changed"
    fewer = f"before: {numbers.count(other.buffers)}" if other and other.buffers != use.buffers else ""
    mark = "✓" if use.verified else "?" if use.scans_seen or not use.scans_expected else "✕"
    state = {"✓": quiet or "good", "✕": "bad", "?": "unsure"}[mark]
    seen = f"{numbers.count(use.scans_seen)} of {numbers.count(use.scans_expected)}"
    seen = seen if use.scans_expected else "not counted"
    comment = str(subject.run.get("queries", {}).get(query, {}).get("comment", ""))
    return (
        Cell(query, comment),
        Cell(use.arm, "", quiet),
        Cell(*numbers.estimate(level.p50 if level else None), quiet),
        compared(found),
        Cell(use.summary, change, quiet),
        Cell(numbers.count(use.buffers), fewer, quiet),
        Cell(f"{mark} {seen}", "", state),
    )


def _index(index: dict[str, Any], table_bytes: float) -> tuple[Cell, ...]:
    definition = str(index["definition"]).split(" USING ")[-1]
    share = numbers.percent(index["bytes"] / table_bytes) if table_bytes else numbers.NONE
    return (
        Cell(str(index["name"]), "" if index["valid"] else "invalid", "" if index["valid"] else "bad"),
        Cell(f"{index['table']}: {definition}", code=True),
        Cell(numbers.size(index["bytes"])),
        Cell(share),
        Cell(numbers.NONE if index["wal_bytes"] is None else numbers.size(index["wal_bytes"])),
        Cell(numbers.seconds(index["seconds"])),
    )


def _total(built: list[dict[str, Any]], tables: dict[str, int]) -> tuple[Cell, ...]:
    size, wal = (sum(index[key] or 0 for index in built) for key in ("bytes", "wal_bytes"))
    table_bytes = sum(tables.get(table, 0) for table in {index["table"] for index in built})
    share = numbers.percent(size / table_bytes) if table_bytes else numbers.NONE
    told = Cell(
        "in total",
        f"{len(built)} index{'' if len(built) == 1 else 'es'} on tables of {numbers.size(table_bytes)}",
        "total",
    )
    last = (numbers.size(size), share, numbers.size(wal), numbers.seconds(sum(i["seconds"] for i in built)))
    return (told, Cell("", "", "total"), *(Cell(text, "", "total") for text in last))
