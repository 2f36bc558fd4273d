"""Foreign keys that a deletion checks: without an index each row deleted reads the referencing table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from perfkit.explain.candidates import quoted
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import Node
from perfkit.postgres import catalog
from perfkit.postgres.site import Connection


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key without an index on its side."""

    parent: tuple[str, str]  # schema and name
    parent_columns: tuple[str, ...]
    schema: str
    table: str
    columns: tuple[str, ...]
    pages: float

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns as an index has them."""
        return tuple(map(quoted, self.columns))


def references(connection: Connection) -> list[Reference]:
    """Every foreign key of the database that no index serves."""
    return [
        Reference(
            (row["parent_schema"], row["parent"]),
            tuple(row["parent_columns"]),
            row["schema"],
            row["table_name"],
            tuple(row["columns"]),
            float(row["pages"]),
        )
        for row in catalog.rows(connection, "referencing")
    ]


def probes(text: str, look: FindingContext, pointing: Sequence[Reference]) -> dict[Reference, tuple[str, float]]:
    """The foreign keys that a statement makes the server check: the check as a query, and for how many rows."""
    found = {}
    for node in look.plan.nodes:
        if node.kind != "ModifyTable" or node.text("Operation") not in ("Delete", "Update"):
            continue
        changed = _set(text) if node.text("Operation") == "Update" else None
        for reference in pointing:
            same = reference.parent == (node.text("Schema"), node.text("Relation Name"))
            if same and (changed is None or changed & set(reference.parent_columns)):
                found[reference] = _check(reference), max(1.0, _rows(look, node))
    return found


def _check(reference: Reference) -> str:
    """What the server asks for each row, with a key that is there."""
    schema, parent = map(quoted, reference.parent)
    pairs = zip(reference.keys, map(quoted, reference.parent_columns), strict=True)
    same = " AND ".join(f"x.{own} = (SELECT p.{key} FROM {schema}.{parent} p LIMIT 1)" for own, key in pairs)
    return f"SELECT 1 FROM {quoted(reference.schema)}.{quoted(reference.table)} x WHERE {same}"


def _rows(look: FindingContext, node: Node) -> float:
    below = node.children[0] if node.children else node
    return below.rows if look.plan.analyzed else below.estimated


def _set(text: str) -> set[str]:
    """The columns that an UPDATE sets; none where it cannot be read."""
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return set()
    targets = (e.this for update in parsed.find_all(exp.Update) for e in update.expressions if isinstance(e, exp.EQ))
    return {target.name for target in targets if isinstance(target, exp.Column)}
