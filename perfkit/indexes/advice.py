"""Advice: the indexes to make, and the queries that none will help, each with a reason or a rewrite.

Which conditions return the same rows is decided in perfkit/explain/rewrites.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from perfkit.base.errors import visible
from perfkit.base.units import NONE, count, millis, seconds, size
from perfkit.explain.facts import Predicate, TableFacts, quoted
from perfkit.explain.findings.blocked import Blocker, added, blocks, condition
from perfkit.explain.findings.model import FindingContext, conditions, counted, home, percent, placed, plain
from perfkit.explain.findings.scans import limited
from perfkit.explain.plan import Node
from perfkit.explain.rewrites import Condition, Rewrite, operand, rewritten, span_of
from perfkit.indexes.candidates import SCANS, TINY, IndexDesign
from perfkit.indexes.trial import CostFigures, quicker
from perfkit.show.html import Block, Cell, Table, code, escape, listed

_ENDS = frozenset("GROUP_BY ORDER_BY LIMIT OFFSET HAVING UNION EXCEPT INTERSECT RETURNING FETCH FOR WINDOW SEMICOLON"
                  .split())  # fmt: skip
_OPERATORS: Mapping[type, str] = {
    exp.EQ: "=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.ILike: "~~*",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM",
}
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


# What a SELECT does with all its rows, so that they cannot be found in two parts, and what may answer differently
# in each: a function that is not known, a sample.
_OF_ALL = ("group", "order", "limit", "distinct", "having", "offset", "locks", "into", "windows", "qualify", "sample")
_UNSTEADY = (exp.AggFunc, exp.Window, exp.Anonymous, exp.Rand, exp.TableSample, exp.Uuid)


@dataclass(frozen=True, slots=True)
class _Part:
    """A condition of a WHERE: where it begins and ends in the text."""

    start: int
    end: int
    text: str


def replaced(text: str, alias: str, column: str, condition: Condition, rewrite: Rewrite) -> str:
    """Return a statement with one condition of its WHERE rewritten; "" unless exactly one is that of the plan.

    The plan prints `condition`. The statement's own is compared with it part by part, because a view or a second table
    can bring a condition on a column of the same name.
    """
    if re.search(r"\bCONFLICT\b", text, re.IGNORECASE):
        return ""  # the WHERE of ON CONFLICT names an index
    for written in (text, _expanded(text, column)):
        matched = [(part, own) for part in _parts(written) if (own := _same(part.text, alias, column, condition))]
        if len(matched) == 1:
            (part, (name, value)) = matched[0]
            typed = f"{value}::{rewrite.type}" if rewrite.type and value.startswith("'") else value
            new = rewrite.filled(name, operand(typed), part.text)
            return written[: part.start] + new + written[part.end :]
    return ""


def either(text: str) -> str:
    """Return a SELECT with an OR as a UNION ALL of both sides; "" where the same rows are not certain."""
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return ""
    simple = isinstance(parsed, exp.Select) and len([*parsed.find_all(exp.Select)]) == 1
    if not simple or any(parsed.args.get(key) for key in _OF_ALL) or parsed.find(*_UNSTEADY):
        return ""
    parts = [*_parts(text)]
    for part in parts:
        inner = part.text[1:-1] if _wrapped(part.text) else part.text
        if len(sides := [*_split(inner, "OR")]) == 2:
            one, other = (side.text for side in sides)
            first = text[: part.start] + one + text[part.end :]
            second = text[: part.start] + f"{other} AND ({one}) IS NOT TRUE" + text[part.end :]
            return f"{first.rstrip().rstrip(';')}\nUNION ALL\n{second.rstrip().rstrip(';')}"
    return ""


def _parts(text: str) -> Iterator[_Part]:
    """The conditions of every WHERE that must all hold."""
    tokens = sqlglot.tokenize(text, read="postgres")
    for at, token in enumerate(tokens):
        if token.token_type.name != "WHERE":
            continue
        depth, end = 0, token.end
        for inner in tokens[at + 1 :]:
            depth += (inner.token_type.name == "L_PAREN") - (inner.token_type.name == "R_PAREN")
            if depth < 0 or (depth == 0 and inner.token_type.name in _ENDS):
                break
            end = inner.end
        start = token.end + 1
        whole = text[start : end + 1]
        if len([*_split(whole, "OR")]) > 1:
            blank = len(whole) - len(whole.lstrip())
            yield _Part(start + blank, end + 1, whole.strip())
            continue
        for part in _split(whole, "AND"):
            yield _Part(start + part.start, start + part.end, part.text)


def _split(text: str, word: str) -> Iterator[_Part]:
    """The parts between a word outside parentheses; BETWEEN keeps its AND."""
    depth, between, start, end = 0, 0, -1, 0
    tokens: list[Any] = sqlglot.tokenize(text, read="postgres")
    for token in tokens:
        kind = token.token_type.name
        depth += (kind == "L_PAREN") - (kind == "R_PAREN")
        between += kind == "BETWEEN" and depth == 0
        if depth == 0 and kind == word:
            if word == "AND" and between:
                between -= 1
            else:
                yield _Part(start, end, text[start:end])
                start = -1
                continue
        start, end = (token.start if start < 0 else start), token.end + 1
    if start >= 0:
        yield _Part(start, end, text[start:end])


def _expanded(text: str, column: str) -> str:
    """Return a statement whose BETWEEN on something made of a column is written as two comparisons."""
    for part in _parts(text):
        parsed = _parsed(part.text)
        if isinstance(parsed, exp.Between) and {_named(c.this) for c in parsed.find_all(exp.Column)} == {column}:
            subject, low, high = (parsed.args[key].sql("postgres") for key in ("this", "low", "high"))
            return f"{text[: part.start]}{subject} >= {low} AND {subject} <= {high}{text[part.end :]}"
    return ""


def _same(text: str, alias: str, column: str, condition: Condition) -> tuple[str, str] | None:
    """Return the column and the value as a condition writes them, if it is the one that the plan prints."""
    parsed = _parsed(text)
    operator = _OPERATORS.get(type(parsed)) if parsed else None
    subject, value = _parsed(condition.subject), _parsed(condition.value)
    if parsed is None or operator is None or subject is None or value is None:
        return None
    left, right = parsed.this, parsed.expression
    if not left.find(exp.Column):
        left, right, operator = right, left, _FLIPPED.get(operator, operator)
    columns = [*left.find_all(exp.Column)]
    own = len(columns) == 1 and _named(columns[0].this) == column
    own = own and (columns[0].args.get("table") is None or _named(columns[0].args["table"]) == alias)
    if operator != condition.operator or not own or right.find(exp.Column):
        return None
    if _shape(left, True) not in (_shape(subject, True), _shape(subject, False)) or not _equal(value, right):
        return None
    return columns[0].sql("postgres"), _bare(right).sql("postgres")


def _parsed(text: str) -> exp.Expression | None:
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return None
    return _bare(parsed) if isinstance(parsed, exp.Expression) else None


def _bare(parsed: Any) -> Any:
    while isinstance(parsed, exp.Paren):
        parsed = parsed.this
    return parsed


def _named(name: Any) -> str:
    """Return a name as the catalogue has it."""
    return str(name.name if name.args.get("quoted") else name.name.lower())


def _shape(parsed: Any, casts: bool) -> Any:
    """Return an expression without what the plan spells otherwise; without `casts`, those of the column are gone."""
    parsed = _bare(parsed)
    if isinstance(parsed, exp.Column):
        return "column"
    if (constant := _constant(parsed)) is not None:
        return constant
    if isinstance(parsed, exp.Cast):
        inner = _shape(parsed.this, casts)
        return ("cast", inner, parsed.to.sql("postgres")) if casts or inner != "column" else inner
    if isinstance(parsed, exp.Expression):
        return (type(parsed).__name__, *(_shape(part, casts) for part in parsed.iter_expressions()))
    return parsed


def _constant(parsed: Any) -> tuple[str, Any] | None:
    """Return a constant whatever its type; units and intervals alike, parameters as one."""
    if isinstance(parsed, exp.Placeholder | exp.Parameter):
        return "parameter", None
    if isinstance(parsed, exp.Var):
        return "constant", parsed.name.lower()
    if isinstance(parsed, exp.Interval):
        unit = f" {parsed.args['unit'].name}" if parsed.args.get("unit") else ""
        return _interval(f"{parsed.this.name}{unit}")
    if isinstance(parsed, exp.Cast) and (inner := _constant(_bare(parsed.this))):
        return _interval(inner[1]) if parsed.is_type("interval") and inner[1] is not None else inner
    if isinstance(parsed, exp.Neg) and isinstance(parsed.this, exp.Literal):
        return "constant", f"-{parsed.this.name}"
    return (
        ("constant", parsed.name.lower() if parsed.is_string and parsed.name.isalpha() else parsed.name)
        if (isinstance(parsed, exp.Literal))
        else None
    )


def _interval(text: str) -> tuple[str, Any]:
    """Return months, days and seconds of an interval, or its text where it is written in another way."""
    plain = re.sub(r"\bmonth", "mon", text.lower())
    weeks = re.fullmatch(r"(-?\d+) weeks?", plain)
    hours = re.fullmatch(r"(-?\d+) (hour|minute|second)s?", plain)
    if weeks:
        return "interval", (0, 7 * int(weeks[1]), 0)
    if hours:
        return "interval", (0, 0, int(hours[1]) * {"hour": 3600, "minute": 60, "second": 1}[hours[2]])
    return "interval", span_of(plain) or plain


def _equal(printed: Any, written: Any) -> bool:
    """Return whether a value of the statement is the one that the plan prints; never for 'today' and the like."""
    one, other = _constant(_bare(printed)), _constant(_bare(written))
    if one is None or other is None:
        return one is other and bool(_shape(printed, True) == _shape(written, True))
    if one == other or one[0] != other[0] or one[0] != "constant":
        return one == other
    with suppress(InvalidOperation):
        return Decimal(one[1]) == Decimal(other[1])
    with suppress(ValueError):
        times = [datetime.fromisoformat(constant[1]) for constant in (one, other)]
        if not all(time.tzinfo for time in times):
            times = [time.replace(tzinfo=None) for time in times]
        return times[0] == times[1]
    return False


def _wrapped(text: str) -> bool:
    if not (text.startswith("(") and text.endswith(")")):
        return False
    depth = 0
    for token in sqlglot.tokenize(text, read="postgres"):
        depth += (token.token_type.name == "L_PAREN") - (token.token_type.name == "R_PAREN")
        if depth == 0:
            return bool(token.end == len(text) - 1)
    return False


# Why no index will help a statement, in one sentence with its numbers, and what to write instead.

MANY = 0.05  # of a table's rows: to find so many, most pages are needed in any case
EARLY = 0.1  # of a table's pages, at most, for a LIMIT that stops early
Because = tuple[str, str]  # the reason, and the rewrite


def reason(text: str, look: FindingContext, generic: FindingContext | None = None) -> Because | None:
    """Why no index helps and the statement to write instead; None where its plan does not tell.

    `generic` is the plan for any values of a statement with parameters, whose rewrite must keep them.
    """
    scans = [node for node in look.plan.nodes if node.kind in SCANS and look.facts.of(node)]
    scans.sort(key=lambda node: -_weight(look, node))
    if not scans:
        return None
    for find in (_blocked, _pattern, _early, _either, _found, _tiny, _whole, _many):
        if found := find(text, look, generic, scans):
            return found
    return None


def _blocked(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    for node, p, block in _blocks(look, scans):
        if generic is not None:
            block = _for_any_value(generic, node, p, block)
        if not block.rewrite and (block.key or not block.hint):
            continue
        if _pages(look, node) <= TINY:
            continue
        said = f"{_shown(node, p)} compares {block.what}, which an index on {', '.join(sorted(p.columns))} cannot find"
        if not block.rewrite:
            return f"{said}: {block.hint[0].lower()}{block.hint[1:].rstrip('.')}", ""
        table = _table(look, node)
        (name,) = p.columns
        ready = next((i for i in table.indexes if i.keys[:1] == (quoted(name),) and i.valid and not i.predicate), None)
        by = f"the index {ready.name}" if ready else f"CREATE INDEX ON {placed(look, node)} ({quoted(name)})"
        return f"{said}; {by} serves {block.rewrite}", _rewritten(text, generic or look, node, name)
    return None


def _for_any_value(generic: FindingContext, node: Node, p: Predicate, block: Blocker) -> Blocker:
    """Return the block of the same condition in the plan for any values of the parameters."""
    for _, same, found in _blocks(generic, _alike(generic, node)):
        if (same.columns, same.operator) == (p.columns, p.operator):
            return found
    return replace(block, rewrite="", hint=block.hint or f"{_NOT_FOR_ALL} {block.rewrite}")


_NOT_FOR_ALL = "for these parameters only, the same rows are found by"


def _rewritten(text: str, look: FindingContext, node: Node, name: str) -> str:
    """Return the statement with all such conditions on a column rewritten; "" where one of them is not certain.

    A condition of a table that the statement does not name is a view's, whose columns can have other types.
    """
    if not _names(text, look, node):
        return ""
    new = text
    for same, p, block in _blocks(look, _alike(look, node)):
        if p.columns == {name} and block.found:
            new = replaced(new, same.text("Alias"), name, condition(look, same, p), block.found)
    return new if new != text else ""


def _names(text: str, look: FindingContext, node: Node) -> bool:
    return any(
        re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) for name in (node.relation, home(look, node)[1])
    )


def _alike(look: FindingContext, node: Node) -> list[Node]:
    return [n for n in look.plan.nodes if n.kind in SCANS and n.text("Alias") == node.text("Alias")]


def _pattern(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    for node in scans:
        for p in conditions(look, node, "Filter"):
            if p.operator not in ("~~", "~~*", "~", "~*") or p.prefix or _pages(look, node) <= TINY:
                continue
            shown, (name, *_) = _shown(node, p), sorted(p.columns)
            c = condition(look, node, p) if len(p.columns) == 1 else None
            if c and p.operator == "~~*" and (found := rewritten(c)):
                made = f"CREATE INDEX ON {placed(look, node)} (lower({quoted(name)}) text_pattern_ops)"
                alone = generic is None and _names(text, look, node)
                rewrite = replaced(text, node.text("Alias"), name, c, found) if alone else ""
                serves = found.filled(quoted(name), c.value.removesuffix("::text"), "")
                return f"ILIKE ignores case and a B-tree does not; {made} serves {serves}", rewrite
            what = "may begin with anything" if p.operator == "~~" else "is not the beginning of a text"
            return (
                f"{shown} looks for a pattern that {what}, which a B-tree cannot find; a trigram index (GIN, "
                "extension pg_trgm) can",
                "",
            )
    return None


def _early(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    pages = _table(look, node).pages
    if look.plan.analyzed and limited(node) and pages > TINY and node.own_pages <= max(EARLY * pages, TINY):
        return f"the LIMIT stops it after {counted(node.own_pages, 'page')} of {pages:,.0f}", ""
    if not look.plan.analyzed and (top := limited(node)):
        part = top.value("Total Cost") / max(node.value("Total Cost"), 1.0)
        if pages > TINY and part <= EARLY:
            return f"the LIMIT is expected to stop it after {percent(part)} of {pages:,.0f} pages", ""
    return None


def _either(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    for node in look.plan.nodes:
        condition = node.text("Join Filter")
        tables = set(re.findall(r"(\w+)\.\w+", re.sub(r"'(?:[^']|'')*'", "", condition)))
        if " OR " in condition and len(tables) > 1:
            return (
                f"its OR is over columns of several tables ({', '.join(sorted(tables))}), so that it is known only "
                "after they are joined; a UNION of both parts can use an index for each",
                either(text),
            )
    return None


def _found(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    """Everything that is read is found by an index that is there."""
    if any(n.kind == "Seq Scan" and _pages(look, n) > TINY for n in scans):
        return None
    by = [n for n in scans if n.kind != "Seq Scan"]
    if not by or any("Filter" in n.raw and n.value("Rows Removed by Filter") > n.value("Actual Rows") for n in by):
        return None
    names = list(dict.fromkeys(b.text("Index Name") for n in by for b in n.below() if b.text("Index Name")))
    if any(not c.text("Index Cond") for n in by for c in n.below() if c.text("Index Name")) and not limited(by[0]):
        return None  # an index read from end to end
    pages = f" in {counted(look.plan.buffers, 'page')}" if look.plan.analyzed else ""
    rows = look.plan.rows if look.plan.analyzed else look.plan.root.estimated
    one = "already finds its" if len(names) == 1 else "already find its"
    return f"{' and '.join(names)} {one} {counted(rows, 'row')}{pages}", ""


def _tiny(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    """The table has few pages, or few of its pages are read."""
    node = scans[0]
    table = _table(look, node)
    pages = table.pages if table.size is None else table.size
    if table.size == 0:
        return f"{node.relation} is empty", ""
    if 0 < pages <= TINY:
        rows = f"the {counted(table.rows, 'row')} in " if table.rows and table.pages <= pages else ""
        return f"{node.relation} is tiny: reading {rows}its {counted(pages, 'page')} is as quick", ""
    if look.plan.analyzed and node.own_pages <= TINY:
        return f"it reads only {counted(node.own_pages, 'page')} of the {pages:,.0f} of {node.relation}", ""
    return None


def _whole(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    if "Filter" in node.raw or any("Index Cond" in n.raw for n in node.below()):
        return None
    groups = any(above.kind == "Aggregate" for above in node.above())
    joins = any(key in above.raw for above in node.above() for key in ("Hash Cond", "Merge Cond", "Join Filter"))
    rows = node.rows if look.plan.analyzed else node.estimated
    what = "aggregates" if groups else "joins" if joins else "returns"
    return f"it reads every row: it {what} all {rows:,.0f} of {node.relation}, without a condition that picks some", ""


def _many(text: str, look: FindingContext, generic: FindingContext | None, scans: Sequence[Node]) -> Because | None:
    node = scans[0]
    rows = max(_table(look, node).rows, 1.0)
    kept = node.rows if look.plan.analyzed else node.estimated
    if (node.kind == "Seq Scan" and "Filter" not in node.raw) or kept < MANY * rows or kept > 2 * rows:
        return None
    what = plain(node.text("Filter") or node.text("Recheck Cond") or node.text("Index Cond"), node.text("Alias"))
    return (
        f"{what} selects too much: {counted(kept, 'row')}, {percent(min(1.0, kept / rows))} of {node.relation}, are on "
        "most of its pages",
        "",
    )


def _blocks(look: FindingContext, scans: Sequence[Node]) -> Iterator[tuple[Node, Predicate, Blocker]]:
    for node in scans:
        every = conditions(look, node, "Filter")
        for p in every:
            if (block := blocks(look, node, p)) and not added(block, p, every):
                yield node, p, block


def _table(look: FindingContext, node: Node) -> TableFacts:
    table = look.facts.of(node)
    assert table
    return table


def _pages(look: FindingContext, node: Node) -> float:
    """Pages that a scan touches once, as far as known."""
    if look.plan.analyzed:
        return node.own_pages / max(node.loops, 1.0)
    return _table(look, node).pages if node.kind == "Seq Scan" else 0.0


def _weight(look: FindingContext, node: Node) -> float:
    return node.own_pages if look.plan.analyzed else node.value("Total Cost") * max(node.loops, 1.0)


def _shown(node: Node, p: Predicate) -> str:
    text = plain(p.text, node.text("Alias"))
    return text if len(text) <= 80 else text[:79] + "…"


# Advice: the indexes to make, whom each serves, and the queries without one.


@dataclass(frozen=True, slots=True)
class Served:
    """A query that uses a proposed index, without any and with all that are proposed."""

    query: str
    before: CostFigures
    after: CostFigures


@dataclass(frozen=True, slots=True)
class Proposal:
    """An index to make; `bytes` is None where nothing could be tried."""

    name: str
    table: str
    design: IndexDesign
    queries: tuple[Served, ...]
    bytes: int | None
    evidence: str

    @property
    def statement(self) -> str:
        """The CREATE INDEX."""
        return self.design.statement(self.name)

    @property
    def served(self) -> Iterator[str]:
        """Whom it serves, a line each, then its size and what that rests on."""
        for served in self.queries:
            after = "" if served.before == served.after else f" -> {served.after}"
            if quicker(served.before, served.after):
                after += f", {millis(served.before.ms or 0.0)} -> {millis(served.after.ms or 0.0)}"
            yield " ".join(f"{served.query}: {served.before}{after}".split())
        yield "; ".join([*([size(self.bytes)] if self.bytes is not None else []), self.evidence])


@dataclass(frozen=True, slots=True)
class Refusal:
    """A query without an index, why in one sentence, and what to write instead where that is known.

    `certain`: the plan shows that no index helps; otherwise none was found, or the question is open.
    """

    query: str
    because: str
    rewrite: str = ""
    certain: bool = True

    @property
    def sentence(self) -> str:
        """All of it but the rewrite."""
        return f"No index will help, because {self.because}" if self.certain else self.because


@dataclass(frozen=True, slots=True, repr=False)
class Advice:
    """The indexes for a workload, the queries without one, and what limits both; it shows itself."""

    target: str
    evidence: str
    proposals: tuple[Proposal, ...]
    refusals: tuple[Refusal, ...]
    limitations: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all proposed indexes, as far as known."""
        return sum(proposal.bytes or 0 for proposal in self.proposals)

    @property
    def sql(self) -> str:
        """The set as the text of a file: each index under a comment on whom it serves."""
        where = " ".join(visible(self.target).split())  # a database's name must not end the comment
        lines = [f"-- Indexes advised for {where}; {self.evidence}."]
        lines += [f"-- {' '.join(visible(limitation).split())}" for limitation in self.limitations]
        analysed = {}
        for proposal in self.proposals:
            lines += ["", *(f"-- {line}" for line in proposal.served), f"{proposal.statement};"]
            if proposal.design.expressive:
                analysed[proposal.table] = f"ANALYZE {proposal.table};"
        if analysed:
            lines += ["", "-- What is known of an expression is known through its index.", *analysed.values()]
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        return advice(self)._repr_html_()

    def __repr__(self) -> str:
        return repr(advice(self))


# Advice as it shows itself: the indexes in one table, the queries that none will help, and the set to copy.


def advice(found: Advice) -> Block:
    """All of it."""
    tables = [proposed(found), *([refused(found)] if found.refusals else [])]
    rewrites = [(refusal.query, refusal.rewrite) for refusal in found.refusals if refusal.rewrite]
    html = "".join(table.to_html() for table in tables)
    text = [table.to_text() for table in tables]
    for query, rewrite in rewrites:
        title = f"{query}, written so that an index can be used"
        html += f"<h3>{escape(title)}</h3>{code(rewrite, name=title)}"
        text += [f"{title}:\n{_indented(rewrite)}"]
    if found.limitations:
        html += f"<h3>Limitations</h3>{listed(found.limitations)}"
        text += ["Limitations:\n" + "\n".join(f"- {limitation}" for limitation in found.limitations)]
    if found.proposals:
        html += f"<h3>The set</h3>{code(found.sql, name='The set of indexes')}"
        text += [f"The set:\n{_indented(found.sql)}"]
    return Block(html, "\n\n".join(text))


def proposed(found: Advice) -> Table:
    """One line for each query that an index serves."""
    rows = tuple(
        (Cell(proposal.design.title, code=True), Cell(size(proposal.bytes) if proposal.bytes is not None else NONE),
         Cell(served.query), *_cells(served.before, served.after, proposal.evidence))
        for proposal in found.proposals
        for served in proposal.queries
    )  # fmt: skip
    several = "index" if len(found.proposals) == 1 else "indexes"
    note = f"{count(len(found.proposals))} {several}, {size(found.bytes)}; {found.evidence}." if rows else "none"
    columns = ("index", "size", "query", "before", "after", "evidence")
    return Table("Indexes to make", columns, rows, frozenset({"size", "before", "after"}), note=note)


def refused(found: Advice) -> Table:
    """The queries that no index will help."""
    rows = tuple((Cell(refusal.query), Cell(refusal.sentence)) for refusal in found.refusals)
    return Table("Queries without an index", ("query", "why"), rows)


def _cells(before: CostFigures, after: CostFigures, evidence: str) -> Iterator[Cell]:
    for found in (before, after):
        yield Cell(str(found), seconds(found.ms / 1000) if found.ms is not None else "")
    yield Cell(evidence)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.strip().splitlines())
