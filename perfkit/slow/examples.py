"""Values for a statement's `$1`, `$2`, ... of the right types, which find something: from statistics, or from rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from perfkit.errors import PlanError
from perfkit.explain.candidates import quoted
from perfkit.explain.capture import ExplainSpec, explained, session
from perfkit.explain.facts import ask, read_facts
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import read_plan
from perfkit.explain.safety import effects
from perfkit.postgres import catalog
from perfkit.postgres.extended import send
from perfkit.postgres.place import Database
from perfkit.slow import placing
from perfkit.slow.preparing import Type, parameter_types
from perfkit.slow.uses import StatementScan, StatementUse, scans

PAGES, ROWS = 64.0, 2000  # of a table that are looked at, at most
TIMEOUT_S = 10.0
_ANY = 3  # elements of an array that a column is compared with
_ALIKE = "NDSTBA"  # categories within which a value of one type is one of another too
_STEP = {"N": "1", "D": "interval '1 day'"}  # by category, how far a bound is put from the row that it is to let in
_PLAIN = {"N": "1", "B": "true", "D": "2026-01-01", "T": "1 hour", "S": "a", "A": "{}", "I": "127.0.0.1", "V": "0",
          "R": "empty"}  # fmt: skip
_NAMED = {"uuid": "", "json": "{}", "jsonb": "{}", "bytea": "\\x00", "time without time zone": "12:00",
          "time with time zone": "12:00+00"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """A value for `$number`, as text (None: NULL), and in words where it came from."""

    number: int
    type: str
    text: str | None
    origin: str


def example_rows(place: Database, text: str, n: int = 1, seed: int = 1) -> list[tuple[Value, ...]]:
    """`n` sets of values for a `prepared` statement with `$1`, `$2`, ...; the same for the same seed and data.

    All is read in a transaction that cannot write: at most ROWS rows of a table, in about PAGES pages. Raises PlanError
    with the server's words where the statement cannot be prepared.
    """
    with session(place.session, TIMEOUT_S) as connection:
        types = parameter_types(connection, text)
        plan = read_plan(explained(connection, text, None, ExplainSpec(analyze=False, generic=True)))
        tables = scans(FindingContext(plan, read_facts(ask(connection, plan))), text)
        known = _Known(place, connection, types, n, seed)
        found = {number: _constant(known, *given) for number, given in _fixed(text, types).items()}
        for scan in tables:
            found |= known.of(scan, [use for use in scan.uses if use.number in types and use.number not in found])
        found |= {number: _plain(known, types[number]) for number in types.keys() - found.keys()}
    return [tuple(found[number][at] for number in sorted(found)) for at in range(n)]


@dataclass(frozen=True, slots=True)
class _Known:
    """What values are made from."""

    place: Database
    connection: psycopg.Connection[Any]
    types: Mapping[int, Type]
    n: int
    seed: int

    def draw(self, what: object) -> Random:
        """Chance of its own for everything that is drawn."""
        return Random(f"{self.seed}/{what}")

    def of(self, scan: StatementScan, uses: Sequence[StatementUse]) -> dict[int, list[Value]]:
        """Values for a table's uses, as far as it has some."""
        new = {
            use.number: _plain(self, self.types[use.number], "a new one, for it is unique")
            for use in uses
            if use.unique
        }
        uses = [use for use in self._fitting(scan, uses) if not use.unique]
        alone = len(uses) == 1 and uses[0].column and uses[0].operator in ("=", "= ANY") and not scan.always
        if alone and (found := self._counted(scan, uses[0])):
            return new | {uses[0].number: found}
        return new | (self._rows(scan, uses) if uses else {})

    def _fitting(self, scan: StatementScan, uses: Sequence[StatementUse]) -> list[StatementUse]:
        """Those whose column's values are values of the parameter's type."""
        if not uses:
            return []
        probe = f"SELECT {', '.join(_element(use) for use in uses)} FROM {scan.name} AS {quoted(scan.alias)} LIMIT 0"
        cursor = self._tried(probe)
        if cursor is None or cursor.description is None:
            return []
        oids = [column.type_code for column in cursor.description]
        asked = self.connection.cursor(row_factory=tuple_row)
        kinds: dict[int, str] = dict(
            asked.execute(catalog.get("example_categories").encode(), {"types": oids}).fetchall()
        )
        return [use for use, oid in zip(uses, oids, strict=True) if self._fits(use, oid, kinds.get(oid, ""))]

    def _fits(self, use: StatementUse, oid: int, category: str) -> bool:
        wanted = self.types[use.number]
        if use.operator == "= ANY":
            return oid == wanted.element or (category == wanted.element_category and category in _ALIKE)
        return oid == wanted.oid or (category == wanted.category and category in _ALIKE)

    def _counted(self, scan: StatementScan, use: StatementUse) -> list[Value]:
        """Values of a column from its statistics, each as often as there are rows with it."""
        asked = {"schema": scan.schema, "table": scan.table, "column": use.column}
        cursor = self.connection.cursor(row_factory=tuple_row)
        rows = cursor.execute(catalog.get("example_statistics").encode(), asked).fetchall()
        if not rows or (self.types[use.number].element_category == "N" and any("." in text for text, _ in rows)):
            return []  # of a number with a fraction the parameter may be without one
        others = max(0.0, 1.0 - sum(share or 0.0 for _, share in rows)) / max(1, sum(s is None for _, s in rows))
        draw, weights = self.draw((scan.name, use.column)), [others if share is None else share for _, share in rows]
        said, found = f"pg_stats of {scan.table}.{use.column}", []
        for _ in range(self.n):
            texts = [text for text, _ in draw.choices(rows, weights, k=_ANY if use.operator == "= ANY" else 1)]
            text = _array(texts) if use.operator == "= ANY" else texts[0]
            found.append(Value(use.number, self.types[use.number].type, text, said))
        return found

    def _rows(self, scan: StatementScan, uses: Sequence[StatementUse]) -> dict[int, list[Value]]:
        """Values that stand in one row, so that all conditions on its table hold for it."""
        rows = self._sampled(scan, uses)
        if not rows:
            return {}
        draw = self.draw(scan.name)
        order = draw.sample(range(len(rows)), len(rows))
        found: dict[int, list[Value]] = {use.number: [] for use in uses}
        for at in range(self.n):
            for column, use in enumerate(uses):
                near = [rows[order[(at + more) % len(rows)]][column] for more in range(_ANY)]
                text = near[0]
                if use.operator == "= ANY":
                    text = _array(near)
                elif use.operator in ("<>", "<> ALL", "IS DISTINCT FROM", "!~~", "!~~*"):
                    others = Counter(row[column] for row in rows if row[column] != near[0])
                    text = min(others.items(), key=lambda item: item[1])[0] if others else text
                    text = _array([text]) if use.operator == "<> ALL" else text
                found[use.number].append(Value(use.number, self.types[use.number].type, text, f"a row of {scan.table}"))
        return found

    def _sampled(self, scan: StatementScan, uses: Sequence[StatementUse]) -> list[tuple[str, ...]]:
        """Rows of a table that meet the statement's other conditions, or else any."""
        values = ", ".join(f"({self._value(use)})::text" for use in uses)
        there = [f"({_element(use)}) IS NOT NULL" for use in uses]
        part = min(100.0, 100.0 * PAGES / scan.pages) if scan.pages > 0 else 100.0
        sample = f"TABLESAMPLE SYSTEM ({part:.6f}) REPEATABLE ({self.seed})"
        for how, conditions in ((sample, [*there, *scan.always]), (sample, there), ("", there)):
            where = " AND ".join(f"({condition})" for condition in conditions)
            one = f"SELECT {values} FROM {scan.name} AS {quoted(scan.alias)} {how} WHERE {where} LIMIT {ROWS}"
            cursor = self._tried(one) if self._harmless(one) else None
            if cursor is not None and (rows := cursor.fetchall()):
                return rows
        return []

    def _value(self, use: StatementUse) -> str:
        """What a parameter has to be for a row to be found."""
        wanted, subject = self.types[use.number], _element(use)
        if use.operator == "= ANY" or use.operator == "<> ALL":
            return subject
        step = _STEP.get(wanted.category if "time" not in wanted.type or "timestamp" in wanted.type else "", "")
        sign = {">": "-", ">=": "-", "<": "+", "<=": "+"}.get(use.operator, "")
        return f"({subject} {sign} {step})::{wanted.type}" if step and sign else f"({subject})::{wanted.type}"

    def _harmless(self, statement: str) -> bool:
        """On a server that perfkit did not start nothing is called that could do something."""
        if not self.place.site.foreign:
            return True
        try:
            return not effects(self.place.session, statement, None).volatile
        except (PlanError, psycopg.Error):
            return False

    def _tried(self, statement: str) -> psycopg.Cursor[Any] | None:
        """What a statement gives; None where the server refuses it or takes too long."""
        self.connection.execute("SAVEPOINT perfkit_example")
        try:
            cursor = send(self.connection.cursor(row_factory=tuple_row), statement)
        except psycopg.Error:
            self.connection.execute("ROLLBACK TO SAVEPOINT perfkit_example")
            return None
        self.connection.execute("RELEASE SAVEPOINT perfkit_example")
        return cursor


def _element(use: StatementUse) -> str:
    """What the column's values are read from; of an array that a parameter is looked for in, its first element."""
    return f"({use.subject})[1]" if use.operator == "ANY =" else use.subject


def _array(texts: Sequence[str]) -> str:
    r"""An array as PostgreSQL writes it.

    >>> _array(["a", 'b"c'])
    '{"a","b\\"c"}'
    """
    inner = (text.replace("\\", "\\\\").replace('"', '\\"') for text in dict.fromkeys(texts))
    return "{" + ",".join(f'"{text}"' for text in inner) + "}"


def _fixed(text: str, types: Mapping[int, Type]) -> dict[int, tuple[Type, str, str]]:
    """Where the place in the statement says what makes sense."""
    return {number: (types[number], *given) for number, given in placing.fixed(text).items() if number in types}


def _constant(known: _Known, kind: Type, value: str, what: str) -> list[Value]:
    return [Value(kind.number, kind.type, value, f"a usual value for {what}")] * known.n


def _plain(known: _Known, kind: Type, why: str = "no column to take it from: a plain one") -> list[Value]:
    """Some value of a type; where it has to be new, another one each time."""
    draw, new = known.draw(kind.number), "new" in why

    def values() -> Iterator[str | None]:
        for _ in range(known.n):
            if kind.type == "uuid":
                yield str(UUID(int=draw.getrandbits(128), version=4))
            elif new and kind.category in "NS":
                yield str(draw.randrange(10**4, 3 * 10**4 if kind.type == "smallint" else 2 * 10**9))
            else:
                yield _NAMED.get(kind.type) or kind.label or _PLAIN.get(kind.category)

    return [Value(kind.number, kind.type, text, why) for text in values()]
