"""Statistics before advice: renewed where the database is perfkit's own, asked for where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from perfkit.errors import PlanError
from perfkit.explain.candidates import distinct, quoted
from perfkit.explain.capture import Parameters
from perfkit.explain.facts import TableFacts
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.findings.where import conditions, plain
from perfkit.explain.freshness import GROWN, doubt, stale
from perfkit.explain.plan import Node
from perfkit.indexes.derive import SCANS
from perfkit.postgres.databases import connected

if TYPE_CHECKING:
    from perfkit.query import Session

LEAST = 1000.0  # rows that have to be changed: for fewer, no other index is the right one

COMMON = 100.0  # rows of each value that the statistics know: another one with none is a surprise


def analyze_first(look: FindingContext) -> str:
    """Return the sentence that asks for statistics before advice; "" where those of all tables fit."""
    found = _stale(look)
    if not found:
        return ""
    return f"ANALYZE {', '.join(dict.fromkeys(map(_named, found)))} first: {' and '.join(found.values())}"


def doubts(look: FindingContext) -> Iterator[str]:
    """Yield a sentence for each table of which nothing tells whether its statistics fit, or the asked value."""
    for table in _read(look):
        if because := doubt(table, look.limits.stale_share, LEAST):
            yield f"{because}: if after, ANALYZE {_named(table)} and ask again"
    for node in look.plan.nodes:
        table_read = look.facts.of(node) if node.kind in SCANS else None
        if table_read and node.estimated <= 1 and (unknown := _unknown_values(look, node, table_read)):
            yield (
                f"The statistics of {table_read.name} know no row with {' or '.join(unknown)}, but rows were added or "
                f"changed since: if there are many now, ANALYZE {_named(table_read)} and ask again"
            )


def renew(session: Session, queries: Mapping[str, tuple[str, Parameters]]) -> Iterator[str]:
    """Analyse the tables whose statistics are stale, in a database of perfkit's own, and yield a sentence for each."""
    found: dict[str, str] = {}
    for text, parameters in queries.values():
        with suppress(PlanError):  # which is raised again, with the query's name, when advice is sought
            capture = session.explain(text, parameters).capture
            found |= {
                _named(table): because for table, because in _stale(FindingContext(capture.plan, capture.facts)).items()
            }
    if found:
        with connected(session.place.site, session.place.name) as connection:
            for table, because in found.items():
                connection.execute(f"ANALYZE {table}".encode())
                yield f"{because}: analysed here first. Where that is so in production too, ANALYZE {table} there"


def _unknown_values(look: FindingContext, node: Node, table: TableFacts) -> list[str]:
    """Conditions on values of which the statistics know none, where each value they know has many rows."""
    if not table.changed and (table.size or 0.0) <= table.pages:
        return []
    return [
        plain(p.text, node.text("Alias"))
        for p in conditions(look, node, "Filter")
        if p.operator == "=" and p.column and not p.joined and "$" not in p.value
        and 0 < distinct(table, p.column) * COMMON <= table.rows
    ]  # fmt: skip


def _stale(look: FindingContext) -> dict[TableFacts, str]:
    """The tables with stale statistics, and why each is one."""
    found = ((table, stale(table, look.limits.stale_share, LEAST)) for table in _read(look))
    return {table: because for table, because in found if because}


def _read(look: FindingContext) -> Iterator[TableFacts]:
    """Yield the tables that a plan reads and that are not tiny, each once."""
    tables = dict.fromkeys(look.facts.of(node) for node in look.plan.nodes if node.kind in SCANS)
    yield from (t for t in tables if t and (t.size is None or t.size > GROWN) and not t.schema.startswith("pg_"))


def _named(table: TableFacts) -> str:
    """A table as SQL writes it; of a partition, the whole."""
    schema, name = table.parent or (table.schema, table.name)
    return f"{quoted(schema)}.{quoted(name)}" if schema not in ("", "public") else quoted(name)
