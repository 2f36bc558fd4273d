"""Facts about the tables of a plan, the conditions on them, and the index that each condition asks for.

The server counts a session's changes up to a second after they were made. Rows loaded and analysed in one session
are therefore counted as changed since ANALYZE, although the statistics have seen them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from psycopg.rows import tuple_row

from perfkit.base.errors import PlanError
from perfkit.explain.documents import parse
from perfkit.explain.plan import Node, Plan
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.sqltext import KEYWORDS, Token, scan


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """Statistics of a column, None if unknown; `distinct` is a count or, if negative, a share of the rows."""

    name: str
    type: str
    distinct: float | None
    commonest: float | None  # share of rows with the commonest value


@dataclass(frozen=True, slots=True)
class Index:
    """An index; `keys` are columns or expressions as PostgreSQL writes them, without INCLUDE columns."""

    name: str
    method: str
    unique: bool
    valid: bool
    predicate: str
    keys: tuple[str, ...]
    definition: str


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """A foreign key of another table that refers to this one; `indexed`: an index there begins with its columns."""

    constraint: str
    table: str
    columns: tuple[str, ...]
    indexed: bool


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table's rows and pages by its statistics, its change counters, columns, indexes and references.

    `changed` counts since ANALYZE, `inserted` and `rewritten` (updated, deleted) since the counters were reset.
    """

    schema: str
    name: str
    rows: float
    pages: float
    dead: float
    changed: float
    analyzed: bool
    columns: tuple[ColumnFacts, ...]
    indexes: tuple[Index, ...]
    referenced_by: tuple[ReferenceFacts, ...]
    parent: tuple[str, str] | None = None  # schema and name of the partitioned table
    size: float | None = None  # actual pages; None if not recorded, or if the table has no storage
    inserted: float = 0.0
    rewritten: float = 0.0
    vacuumed: bool = False  # after it was analysed
    hidden: bool = False  # whether this role may not read its statistics

    def column(self, name: str) -> ColumnFacts | None:
        """Return a column by its name; None if the table does not have it."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """The tables of a plan; empty without a server to ask."""

    tables: tuple[TableFacts, ...] = ()

    def of(self, node: Node) -> TableFacts | None:
        """Return the table that a node reads or writes; None if unknown."""
        return self.named(node.table, node.schema)

    def named(self, name: str, schema: str = "") -> TableFacts | None:
        """Return a table by its name; None if unknown."""
        return next((t for t in self.tables if t.name == name and schema in ("", t.schema)), None) if name else None


NO_FACTS = PlanFacts()


def ask(connection: Connection, plan: Plan) -> list[object]:
    """Return the facts about a plan's tables as JSON values. Raises psycopg.Error."""
    return parsed(fetched(connection, plan))


def parsed(tables: Iterable[object]) -> list[object]:
    """Return facts as JSON values; a connection may have parsed them already."""
    return [parse(table) if isinstance(table, bytes) else table for table in tables]


def fetched(connection: Connection, plan: Plan) -> list[object]:
    """Return the facts about a plan's tables as the connection gives them. Raises psycopg.Error."""
    names = relations(plan)
    if not names:
        return []
    schemas, tables = zip(*sorted(names), strict=True)
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.execute(catalog.get("plan_tables").encode(), {"schemas": list(schemas), "tables": list(tables)})
    return [row[0] for row in cursor]


def relations(plan: Plan) -> frozenset[tuple[str, str]]:
    """Return schema and name of the relations that a plan reads or changes."""
    return frozenset((node.schema, node.table) for node in plan.nodes if node.table)


def read_facts(tables: Iterable[Any]) -> PlanFacts:
    """Return facts from recorded JSON values. Raises PlanError if they are malformed."""
    try:
        return PlanFacts(tuple(_table(table) for table in tables))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlanError(f"facts about tables that cannot be read ({type(error).__name__}: {error})") from None


def _keys(written: Iterable[str]) -> tuple[str, ...]:
    """Return an index's keys with the quotes that the newest server would write."""
    return tuple(f'"{key}"' if key in KEYWORDS else key for key in written)


def _table(table: Mapping[str, Any]) -> TableFacts:
    columns = [ColumnFacts(c["name"], c["type"], c["distinct"], c["commonest"]) for c in table["columns"] or ()]
    indexes = [
        Index(i["name"], i["method"], i["unique"], i["valid"], i["predicate"] or "", _keys(i["keys"]), i["definition"])
        for i in table["indexes"] or ()
    ]
    references = [
        ReferenceFacts(r["constraint"], r["table"], tuple(r["columns"]), r["indexed"])
        for r in table["referenced_by"] or ()
    ]
    return TableFacts(
        schema=table["schema"],
        name=table["name"],
        rows=float(table["rows"] or 0),
        pages=float(table["pages"] or 0),
        dead=float(table["dead"] or 0),
        changed=float(table["changed"] or 0),
        analyzed=table["analyzed"],
        columns=tuple(columns),
        indexes=tuple(indexes),
        referenced_by=tuple(references),
        parent=(str(parent[0]), str(parent[1])) if (parent := table.get("parent")) else None,
        size=None if table.get("size") is None else float(table["size"]),
        inserted=float(table.get("inserted") or 0),
        rewritten=float(table.get("rewritten") or 0),
        vacuumed=bool(table.get("vacuumed")),
        hidden=bool(table.get("hidden")),
    )


# Whether the statistics of a table are current: by its size, or by its counters if the size cannot tell.

GROWN = 16.0  # pages of growth since the statistics; less changes no plan


def stale(table: TableFacts, share: float, least: float = 0.0) -> str:
    """Return why a table's statistics are out of date, as a clause; "" if they are current.

    They are out of date if more than `share` of the rows, and more than `least` rows, changed.
    """
    limit = max(share * max(table.rows, 1.0), least)
    exceeded = table.changed > limit
    if _unknown(table) and (exceeded or not table.analyzed):
        return f"{table.name} has no statistics yet"
    grown = table.size is not None and table.size - table.pages > max(share * table.pages, GROWN)
    if exceeded and (grown or table.size is None or (_unseen(table) > limit and not _counted_late(table))):
        return f"{table.changed:,.0f} rows of {table.name} changed since its statistics were made for {table.rows:,.0f}"
    if grown:
        return f"{table.name} grew from {table.pages:,.0f} to {table.size:,.0f} pages after its statistics were made"
    return ""


def doubt(table: TableFacts, share: float, least: float = 0.0) -> str:
    """Return why the statistics may be out of date, as a clause, if neither size nor counters tell; else ""."""
    limit = max(share * max(table.rows, 1.0), least)
    if stale(table, share, least) or min(table.changed, table.rewritten) <= limit:
        return ""
    return f"{table.rewritten:,.0f} rows of {table.name} were updated or deleted, before or after its last ANALYZE"


def _unknown(table: TableFacts) -> bool:
    """Return whether no column has statistics, provided that this role may read them."""
    return bool(table.columns) and not table.hidden and all(column.distinct is None for column in table.columns)


def _unseen(table: TableFacts) -> float:
    """Return the number of changed rows that the table's size may not show.

    Updates and deletions reuse space. A VACUUM after ANALYZE records the size again, which hides growth.
    """
    return table.changed if table.vacuumed else min(table.changed, table.rewritten)


def _counted_late(table: TableFacts) -> bool:
    """Return whether ANALYZE saw the rows before the server counted them as changed."""
    return table.analyzed and table.changed >= table.inserted + table.rewritten


# Conditions taken apart: PostgreSQL prints every operation in parentheses, so splitting at the outermost level is
# exact.

_DISTINCT = re.compile(r"IS (NOT )?DISTINCT FROM")
_SUBPLAN = re.compile(r"\((?:hashed )?SubPlan \w+\)|\((?:alternatives: )?(?:hashed )?SubPlan [^()]*\)", re.IGNORECASE)
_WORDS = frozenset(
    "and or not is null true false any all some array row case when then else end distinct from in like ilike similar "
    "between collate at time zone interval date timestamp current_date current_timestamp current_user localtime "
    "localtimestamp session_user user unknown operator escape to initplan subplan hashed exists".split()
)
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "= ANY": "ANY ="}  # the last: a value in the column's array
_RANGES = frozenset({"<", "<=", ">", ">=", "~<~", "~<=~", "~>~", "~>=~"})


@dataclass(frozen=True, slots=True)
class Predicate:
    """One condition on a table: `subject operator value`; `column` is set if the subject is a plain column."""

    text: str
    subject: str
    operator: str  # as printed: "=", "= ANY", "~~", "IS NULL", ...; "OR"; "" if not understood
    value: str
    column: str
    columns: frozenset[str]  # of the table, in the subject
    joined: bool  # the value comes from another table

    @property
    def equality(self) -> bool:
        """Whether the condition fixes its subject to one value or a few."""
        return self.operator in ("=", "= ANY", "IS NULL", "IS TRUE", "IS FALSE")

    @property
    def range(self) -> bool:
        """Whether the condition bounds its subject on one side."""
        return self.operator in _RANGES

    @property
    def prefix(self) -> bool:
        """Whether the condition is a LIKE with a fixed beginning."""
        return self.operator == "~~" and bool(re.match(r"'[^%_\\']", self.value))

    @property
    def cast(self) -> str:
        """The type that the column is cast to, if the subject is only that cast; else ""."""
        found = re.fullmatch(r"\(?([\w.\"$]+)\)?::([\w .\"]+(?:\(\d+(?:,\d+)?\))?)", self.subject)
        return found[2] if found and len(self.columns) == 1 else ""


@lru_cache(maxsize=4096)
def predicates(condition: str, alias: str = "", names: frozenset[str] | None = None) -> tuple[Predicate, ...]:
    """Return the ANDed conditions that concern the table called `alias`.

    `names` are the table's columns, if known. A condition that is not understood has no operator.
    """
    return tuple(found for text in _split(bare(condition), "and") if (found := _predicate(text, alias, names)))


def alternatives(predicate: Predicate) -> tuple[str, ...]:
    """Return the alternatives of an OR."""
    return tuple(_split(predicate.subject, "or")) if predicate.operator == "OR" else ()


def _predicate(text: str, alias: str, names: frozenset[str] | None) -> Predicate | None:
    inner = bare(text)
    own = columns_in(inner, alias, names)
    if not own:
        return None
    whole = Predicate(text, inner, "", "", "", own, False)
    if _SUBPLAN.search(unquoted(inner)):
        return whole
    if len(_split(inner, "or")) > 1:
        return Predicate(text, inner, "OR", "", "", own, False)
    left, operator, right = _operation(inner)
    if not operator:
        negated = inner.lower().startswith("not ")
        subject = bare(inner[4:] if negated else inner)
        column = _column(subject, own)
        return Predicate(text, subject, "IS TRUE", str(not negated).lower(), column, own, False) if column else whole
    if not columns_in(left, alias, names):
        left, right, operator = right, left, _FLIPPED.get(operator, operator)
    subject, mine = bare(left), columns_in(left, alias, names)
    if columns_in(right, alias, names):
        return whole  # compared with itself
    return Predicate(text, subject, operator, right, _column(subject, mine), mine, _qualified(right, alias))


def _operation(text: str) -> tuple[str, str, str]:
    """Return left side, operator and right side at the outermost level; operator "" if there is none."""
    if found := re.fullmatch(r"(?s)(.+) (IS (?:NOT )?(?:NULL|TRUE|FALSE|UNKNOWN))", text):
        return found[1], found[2], ""
    for token, depth in _levels(text):
        if depth == 0 and _operates(token) and token.start:
            left, right = text[: token.start].strip(), text[token.end :].strip()
            if quantified := re.match(r"(?i)(ANY|ALL) ?(?=\()", right):
                return left, f"{token.text} {quantified[1].upper()}", bare(right[quantified.end() :])
            return left, token.text, right
        if depth == 0 and (found := _DISTINCT.match(text, token.start)):
            return text[: token.start].strip(), found[0], text[found.end() :].strip()
    return text, "", ""


def _levels(text: str) -> Iterator[tuple[Token, int]]:
    """Yield every token but blanks, with the number of brackets that are open after it."""
    depth = 0
    for token in scan(text, blanks=False):
        depth += (token.text in ("(", "[")) - (token.text in (")", "]"))
        yield token, depth


def _operates(token: Token) -> bool:
    """Return whether a token is an operator; a cast or the colon of a slice is none."""
    return token.kind == "sign" and token.text[0] != ":"


def _split(text: str, word: str) -> list[str]:
    """Split a text at a word on the outermost level."""
    parts, start = [], 0
    for token, depth in _levels(text):
        if depth == 0 and token.word == word:
            parts.append(text[start : token.start].strip())
            start = token.end
    return [*parts, text[start:].strip()]


def bare(text: str) -> str:
    """Return a text without the parentheses around all of it."""
    text = text.strip()
    while text.startswith("(") and text.endswith(")"):
        closing = next((token for token, depth in _levels(text) if depth == 0), None)
        if closing is None or closing.end != len(text):
            break
        text = text[1:-1].strip()
    return text


def columns_in(text: str, alias: str, names: frozenset[str] | None) -> frozenset[str]:
    """Return the columns of the table called `alias` in a text; `names` are all its columns, if known."""
    return frozenset(column for qualifier, column in _references(text) if _is_own(qualifier, column, alias, names))


def _qualified(text: str, alias: str) -> bool:
    """Return whether a text names a column of another table."""
    return any(qualifier not in ("", alias) for qualifier, _ in _references(text))


def _is_own(qualifier: str, column: str, alias: str, names: frozenset[str] | None) -> bool:
    if qualifier:
        return qualifier == alias or not alias
    return column in names if names is not None else True


def _references(text: str) -> Iterator[tuple[str, str]]:
    """Yield (qualifier or "", column) for every column named in a text."""
    tokens = [*scan(text, blanks=False)]
    casting = False
    for at, token in enumerate(tokens):
        if token.text == "::":
            casting = True
            continue
        if token.kind not in ("word", "quoted"):
            casting = casting and token.text in ".[]"
            continue
        following = tokens[at + 1].text if at + 1 < len(tokens) else ""
        before = tokens[at - 1].text if at else ""
        if casting:  # the name of a type, which may have several words
            casting = following not in ("", ")", ",") and not _operates(tokens[at + 1])
            continue
        if following in ("(", ".", "FROM") or (token.word in _WORDS and before != "."):
            continue
        named = before == "." and at >= 2 and tokens[at - 2].kind in ("word", "quoted")
        qualifier = bare_name(tokens[at - 2].text) if named else ""
        if before != "." or qualifier:
            yield qualifier, bare_name(token.text)


def _column(subject: str, own: frozenset[str]) -> str:
    """Return the column, without qualifier, if the subject is a plain column; else ""."""
    found = re.fullmatch(r'(?:(?:"(?:[^"]|"")*"|[\w$]+)\.)?("(?:[^"]|"")*"|[^\W\d][\w$]*)', subject)
    return bare_name(found[1]) if found and bare_name(found[1]) in own else ""


def bare_name(text: str) -> str:
    """Return a name without its quotes."""
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def unquoted(text: str) -> str:
    """Return SQL with empty string literals."""
    return re.sub(r"'(?:[^']|'')*'", "''", text)


def squeezed(expression: str) -> str:
    """Return an expression without the differences between the planner's and the catalogue's spelling."""
    return re.sub(r"[\s()]|::text", "", expression)


# The index for conditions: columns of equality first, then those of the order, then one range.


_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")


def quoted(name: str) -> str:
    """Return a name as PostgreSQL's quote_ident writes it.

    >>> quoted("visits"), quoted("Day"), quoted("order"), quoted("left"), quoted("a$b")
    ('visits', '"Day"', '"order"', '"left"', '"a$b"')
    """
    plain = _IDENTIFIER.fullmatch(name) and name not in KEYWORDS
    return name if plain else '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """Return a table's name as SQL writes it; the schema `public` is omitted."""
    return quoted(name) if schema in ("", "public") else f"{quoted(schema)}.{quoted(name)}"
