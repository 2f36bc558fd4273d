"""What the catalogue says of the tables in a plan: kept with the plan, so that a report needs no server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from perfkit.errors import PlanError
from perfkit.explain.bounds import document
from perfkit.explain.plan import Node, Plan
from perfkit.postgres import catalog
from perfkit.postgres.keywords import KEYWORDS


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """`distinct`: values, or with a minus their share of the rows; None without statistics, as `commonest`."""

    name: str
    type: str
    distinct: float | None
    commonest: float | None  # share of rows with the commonest value


@dataclass(frozen=True, slots=True)
class Index:
    """`keys` are columns or expressions as PostgreSQL writes them, without those that are only included."""

    name: str
    method: str
    unique: bool
    valid: bool
    predicate: str
    keys: tuple[str, ...]
    definition: str


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """A foreign key of another table that points here, and whether an index there begins with its columns."""

    constraint: str
    table: str
    columns: tuple[str, ...]
    indexed: bool


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table: rows and pages by its statistics, its counters of changes, its columns, indexes and references.

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
    parent: tuple[str, str] | None = None  # schema and name of the partitioned table that it is a part of
    size: float | None = None  # pages that it has; None where that was not kept, or it has none of its own
    inserted: float = 0.0
    rewritten: float = 0.0
    vacuumed: bool = False  # after it was analysed
    hidden: bool = False  # whether its statistics are there for others alone

    def column(self, name: str) -> ColumnFacts | None:
        """A column by its name."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """Tables of a plan; empty where nobody could be asked."""

    tables: tuple[TableFacts, ...] = ()

    def of(self, node: Node) -> TableFacts | None:
        """The table that a node reads or writes."""
        return self.named(node.text("Relation Name"), node.text("Schema"))

    def named(self, name: str, schema: str = "") -> TableFacts | None:
        """A table by its name."""
        return next((t for t in self.tables if t.name == name and schema in ("", t.schema)), None) if name else None


NO_FACTS = PlanFacts()


def ask(connection: psycopg.Connection[Any], plan: Plan) -> list[Any]:
    """The facts about a plan's tables as JSON values. Raises psycopg.Error."""
    return parsed(fetched(connection, plan))


def parsed(tables: Sequence[Any]) -> list[Any]:
    """JSON values of facts as they came; a connection may have parsed them already."""
    return [document(table) if isinstance(table, bytes) else table for table in tables]


def fetched(connection: psycopg.Connection[Any], plan: Plan) -> list[Any]:
    """The facts about a plan's tables as they come. Raises psycopg.Error."""
    wanted = {(node.text("Schema"), name) for node in plan.nodes if (name := node.text("Relation Name"))}
    if not wanted:
        return []
    schemas, tables = zip(*sorted(wanted), strict=True)
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.execute(catalog.get("plan_tables").encode(), {"schemas": list(schemas), "tables": list(tables)})
    return [row[0] for row in cursor]


def read_facts(tables: Sequence[Mapping[str, Any]]) -> PlanFacts:
    """Facts from the JSON values that were kept. Raises PlanError where they are none."""
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
