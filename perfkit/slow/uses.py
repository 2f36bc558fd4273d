"""Which column of which table each `$n` of a statement is compared with, or written to: from its plan, and its text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from perfkit.explain.candidates import quoted
from perfkit.explain.conditions import Predicate, alternatives, predicates
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.findings.where import conditions, home
from perfkit.explain.plan import Node
from perfkit.slow.placing import lexemes, placeholders

_CONDITIONS = ("Index Cond", "Recheck Cond", "Filter", "Order By")
_PLANNED = re.compile(r"\b(?:InitPlan|SubPlan|hashed)\b|\$")  # a value that only the whole plan knows
_RETURNS = re.compile(r"\(returns (\$[\d,$]+)\)")
WRITTEN = "="  # the operator of a column that is written


@dataclass(frozen=True, slots=True)
class StatementUse:
    """A parameter and what it meets: `subject` is SQL over the table's columns."""

    number: int
    subject: str
    column: str  # the one column in the subject; "" where there are several
    operator: str
    bare: bool  # the value is the parameter and no more
    unique: bool = False  # it is written to a column that has no value twice

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Which of several uses tells most about the values: the smallest."""
        return self.operator not in ("=", "= ANY", "ANY ="), not self.column, not self.bare


@dataclass(frozen=True, slots=True)
class StatementScan:
    """A table as a statement reads it, its parameters' uses, and the conditions that hold for any of them."""

    schema: str
    table: str
    alias: str
    pages: float
    uses: tuple[StatementUse, ...]
    always: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The table as SQL writes it."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"


def scans(look: FindingContext, text: str) -> tuple[StatementScan, ...]:
    """The tables in whose rows values for a statement's `$n` are found; each `$n` once, where most is known of it.

    `look` is at its generic plan.
    """
    taken = {number for node in look.plan.nodes for number in _inner(node)}
    found = [*_written(look, text), *(scan for node in look.plan.nodes if (scan := _read(look, node, taken)))]
    best: dict[int, tuple[tuple[bool, bool, bool], int]] = {}
    for at, scan in enumerate(found):
        for use in scan.uses:
            best[use.number] = min(best.get(use.number, (use.rank, at)), (use.rank, at))
    kept = []
    for at, scan in enumerate(found):
        own = [use for use in scan.uses if best[use.number] == (use.rank, at)]
        once = {use.number: use for use in reversed(own)}
        if once:
            kept.append(replace(scan, uses=_told(scan, once.values())))
    return tuple(kept)


def _told(scan: StatementScan, uses: Iterable[StatementUse]) -> tuple[StatementUse, ...]:
    """A parameter that bounds a column on two sides is in the middle: it equals the column."""
    times = Counter(use.number for use in scan.uses)
    middle = (
        replace(u, operator="=") if not u.bare or (times[u.number] > 1 and u.operator != "= ANY") else u for u in uses
    )
    return tuple(sorted(middle, key=lambda use: use.number))


def _read(look: FindingContext, node: Node, taken: set[int]) -> StatementScan | None:
    """A node that reads a table, with its conditions."""
    if not node.text("Relation Name") or node.kind == "ModifyTable":
        return None
    schema, table = home(look, node)
    known, alias = look.facts.of(node), node.text("Alias") or table
    names = frozenset(column.name for column in known.columns) if known else None
    all_ = list(dict.fromkeys(conditions(look, node, *_CONDITIONS)))
    one_of = [p for whole in all_ for part in alternatives(whole) for p in predicates(part, alias, names)]
    uses = [use for p in (*all_, *one_of) for use in _uses(p, alias) if use.number not in taken]
    always = tuple(p.text for p in all_ if p.operator and not p.joined and not _PLANNED.search(p.text))
    return StatementScan(schema, table, alias, known.pages if known else 0.0, tuple(uses), always)


def _uses(predicate: Predicate, alias: str) -> Iterator[StatementUse]:
    """The parameters of one condition."""
    if predicate.joined or predicate.operator == "OR":
        return
    single = next(iter(predicate.columns)) if len(predicate.columns) == 1 else ""
    subject, numbers = predicate.subject, placeholders(predicate.value)
    if not predicate.operator or placeholders(subject):  # not understood, or the column is within what is computed
        if not single:
            return
        subject, numbers = f"{quoted(alias)}.{quoted(single)}", placeholders(predicate.text)
    for number in numbers:
        bare = re.fullmatch(rf"[(\s]*\${number}[)\s]*(?:::[\w \[\].\"()]+)?", predicate.value) is not None
        yield StatementUse(
            number, subject, predicate.column or (single if predicate.cast else ""), predicate.operator, bare
        )


def _inner(node: Node) -> Iterator[int]:
    """Before 17 a plan calls what its own parts return `$n` too."""
    if found := _RETURNS.search(node.text("Subplan Name")):
        yield from placeholders(found[1])


def _written(look: FindingContext, text: str) -> Iterator[StatementScan]:
    """The columns that an INSERT or UPDATE writes a parameter to."""
    target = next((node for node in look.plan.nodes if node.kind == "ModifyTable"), None)
    if target is None:
        return
    readable = "".join(f'"{x.text}"' if x.kind == "placeholder" else x.text for x in lexemes(text))
    with suppress(SqlglotError):
        statement = sqlglot.parse_one(readable, read="postgres")
        known, alias = look.facts.of(target), target.text("Alias") or target.text("Relation Name")
        inserted = isinstance(statement, exp.Insert)
        single = {i.keys[0] for i in known.indexes if i.unique and len(i.keys) == 1} if known and inserted else set()
        uses = [
            StatementUse(number, f"{quoted(alias)}.{quoted(column)}", column, WRITTEN, True, quoted(column) in single)
            for column, value in _pairs(statement)
            for number in _numbers(value)
        ]
        yield StatementScan(*home(look, target), alias, known.pages if known else 0.0, tuple(uses))


def _pairs(statement: exp.Expr) -> Iterator[tuple[str, exp.Expr]]:
    """Columns with the expressions that are written to them."""
    if isinstance(statement, exp.Insert) and isinstance(statement.this, exp.Schema):
        columns, source = list(map(_name, statement.this.expressions)), statement.expression
        rows = [row.expressions for row in source.expressions] if isinstance(source, exp.Values) else []
        for row in rows or ([source.expressions] if isinstance(source, exp.Select) else []):
            yield from zip(columns, row, strict=False)
    for change in statement.expressions if isinstance(statement, exp.Update) else ():
        if isinstance(change, exp.EQ) and isinstance(change.this, exp.Column):
            yield _name(change.this.this), change.expression


def _numbers(value: exp.Expr) -> Iterator[int]:
    for column in value.find_all(exp.Column):
        if column.name[:1] == "$" and column.name[1:].isdigit():
            yield int(column.name[1:])


def _name(identifier: exp.Expr) -> str:
    return identifier.name if identifier.args.get("quoted") else identifier.name.lower()
