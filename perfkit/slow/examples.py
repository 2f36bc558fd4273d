"""Example values for the parameters of a statement whose constants were replaced by `$1`, `$2`, ..."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import psycopg
from psycopg.rows import dict_row, tuple_row

from perfkit.base.errors import PlanError, first_line
from perfkit.explain.capture import ExplainSpec, effects, explain_json, session
from perfkit.explain.facts import fetched, parsed, quoted, read_facts
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import load_plan
from perfkit.postgres import catalog, commands, values
from perfkit.postgres.commands import array_literal, placeholders, send
from perfkit.postgres.databases import Database
from perfkit.postgres.sqltext import Token, scan
from perfkit.slow.statements import StatementScan, StatementUse, scans

_TYPES = frozenset("interval date time timetz timestamp timestamptz uuid inet json jsonb".split())
_ZONED = re.compile(r"^time(?:stamp)? (?:with|without) time zone$")


def preparable(text: str) -> str:
    """Return a statement in valid syntax where a placeholder follows the name of its type, or is the field of EXTRACT.

    >>> preparable("SELECT now() - interval $1, extract($2 FROM x), timestamp with time zone $3")
    'SELECT now() - $1::interval, date_part($2, x), $3::timestamp with time zone'
    """
    found, done, at = list(scan(text)), [], 0
    while at < len(found):
        ahead = found[at : at + 10] if found[at].word in _TYPES or found[at].word == "extract" else []
        if ahead and ahead[0].word == "extract":
            replaced, length = _extract(ahead)
        else:
            replaced, length = _typed(ahead)
        done.append(replaced or found[at].text)
        at += length or 1
    return "".join(done)


def cast(text: str, at: int, kind: str) -> str:
    """Return a statement with a cast of the placeholder next to the operator at a position (from 1).

    >>> cast("SELECT x::date + $1", 16, "integer")
    'SELECT x::date + $1::integer'
    """
    done, place, before, after = [], 1, -1, -1
    for n, token in enumerate(scan(text)):
        if token.kind == "parameter":
            before, after = (n, after) if place < at else (before, n if after < 0 else after)
        elif token.kind != "blank" and place < at:
            before = -1
        elif token.kind != "blank" and place > at and after < 0:
            after = n  # something else
        done.append(token.text)
        place += len(token.text)
    chosen = next((n for n in (after, before) if n >= 0 and re.fullmatch(r"\$\d+", done[n])), None)
    if chosen is not None:
        done[chosen] += f"::{kind}"
    return "".join(done)


def cast_number(text: str, number: int, kind: str) -> str:
    """Return a statement with a cast of every placeholder of one number.

    >>> cast_number("SELECT jsonb_build_object($1, x)", 1, "text")
    'SELECT jsonb_build_object($1::text, x)'
    """
    casts = {f"${number}": f"${number}::{kind}"}
    return "".join(casts.get(x.text, x.text) if x.kind == "parameter" else x.text for x in scan(text))


def unified(text: str) -> str:
    """Return a statement whose GROUP BY and ORDER BY use the placeholders of the select list for the same expression.

    pg_stat_statements gives each occurrence of a constant a number of its own, so that the expressions differ.

    >>> unified("SELECT date_trunc($1, x), count(*) FROM t GROUP BY date_trunc($2, x)")
    'SELECT date_trunc($1, x), count(*) FROM t GROUP BY date_trunc($1, x)'
    """
    pieces = list(scan(text))
    meant = [at for at, piece in enumerate(pieces) if piece.kind != "blank"]
    words = [pieces[at].word for at in meant]
    grouped = next((n for n, two in enumerate(pairwise(words)) if two == ("group", "by")), len(words))
    first: dict[tuple[str, ...], list[int]] = {}
    for start in range(len(meant) - 1):
        if pieces[meant[start]].kind in ("word", "quoted") and pieces[meant[start + 1]].text == "(":
            call = _call(pieces, meant[start:])
            key = tuple("$" if pieces[at].kind == "parameter" else pieces[at].word for at in call)
            for at, same in zip(call, first.setdefault(key, call), strict=True):
                if start > grouped and pieces[at].kind == "parameter":
                    pieces[at] = pieces[same]
    left = {f"${old}": f"${new}" for new, old in enumerate(placeholders("".join(p.text for p in pieces)), 1)}
    return "".join(left[p.text] if p.kind == "parameter" else p.text for p in pieces)


def _typed(ahead: Sequence[Token]) -> tuple[str, int]:
    """Return a placeholder after a type's name as a cast, and the number of pieces it replaces; 0 if there is none."""
    for length, token in enumerate(ahead):
        if token.kind == "parameter":
            kind = " ".join(x.word for x in ahead[:length] if x.kind == "word")
            plain = kind in _TYPES or _ZONED.search(kind)
            return (f"{token.text}::{kind}", length + 1) if plain else ("", 0)
        if token.kind not in ("blank", "word", "quoted"):
            break
    return "", 0


def _extract(ahead: Sequence[Token]) -> tuple[str, int]:
    """Return `extract($1 from` as a call of date_part, and the number of pieces it replaces; 0 if there is none."""
    words = [(n, x) for n, x in enumerate(ahead) if x.kind != "blank"][:4]
    if [x.word for _, x in words[1::2]] == ["(", "from"] and words[2][1].kind == "parameter":
        return f"date_part({words[2][1].text},", words[3][0] + 1
    return "", 0


def _call(pieces: Sequence[Token], places: Sequence[int]) -> list[int]:
    """Return the positions of a function call's pieces, from its name to the closing parenthesis."""
    depth = 0
    for n, at in enumerate(places):
        depth += {"(": 1, ")": -1}.get(pieces[at].text, 0)
        if n and not depth:
            return list(places[: n + 1])
    return []


PREPARE_TIMEOUT_S = 10.0
_PREPARE = "PREPARE perfkit_types AS "


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a parameter as in pg_type; `element` is the element type of an array."""

    number: int
    oid: int
    type: str
    category: str
    element: int
    element_category: str
    label: str | None


def prepared(place: Database, text: str) -> str:
    """Return a statement that can be prepared, from one whose constants were replaced by `$1`, `$2`, ...

    If the server cannot infer a type, the parameter becomes an integer next to an operator and text elsewhere. Raises
    PlanError in one line.
    """
    text = preparable(text)
    with session(place.session, PREPARE_TIMEOUT_S) as connection:
        for _ in range(1 + len(placeholders(text))):
            connection.execute("SAVEPOINT perfkit_prepared")
            try:
                parameter_types(connection, text)
                break
            except psycopg.errors.ProgrammingError as error:
                if (repaired := _repaired(text, error)) == text:
                    raise
                text = repaired
                connection.execute("ROLLBACK TO SAVEPOINT perfkit_prepared")
    return text


def parameter_types(connection: psycopg.Connection[Any], text: str) -> dict[int, Type]:
    """Return the types of a statement's parameters by number. Raises PlanError, psycopg.Error."""
    try:
        send(connection.cursor(), f"{_PREPARE}{text}")
    except psycopg.errors.SyntaxError as error:
        expected = "its values written out"
        if "at end of input" in str(error) or text.endswith(("…", "...")):
            expected = "the whole statement; this text is truncated"
        raise PlanError(f"{first_line(error)}; expected {expected}") from None
    cursor = connection.cursor(row_factory=dict_row).execute(catalog.get("example_types").encode())
    types = {row["number"]: Type(**row) for row in cursor}
    connection.execute("DEALLOCATE perfkit_types")
    return types


def _repaired(text: str, error: psycopg.Error) -> str:
    """Return a statement with the cause of the server's error removed, or unchanged if the cause is unknown."""
    if isinstance(error, psycopg.errors.AmbiguousFunction):
        return cast(text, int(error.diag.statement_position or 0) - len(_PREPARE), "integer")
    if isinstance(error, psycopg.errors.IndeterminateDatatype) and (number := re.search(r"\$(\d+)", str(error))):
        return cast_number(text, int(number[1]), "text")
    return unified(text) if isinstance(error, psycopg.errors.GroupingError) else text


PAGES, ROWS = 64.0, 2000  # maximum number of pages and rows to read of a table
TIMEOUT_S = 10.0
_ANY = 3  # elements of an array that a column is compared with
_ALIKE = "NDSTBA"  # categories of types whose values fit each other
_STEP = {"N": "1", "D": "interval '1 day'"}  # by category, the distance of a bound from the row that it includes


@dataclass(frozen=True, slots=True)
class Value:
    """A value for `$number` as text (None: NULL), and its origin in words."""

    number: int
    type: str
    text: str | None
    origin: str


def example_rows(place: Database, text: str, n: int = 1, seed: int = 1) -> list[tuple[Value, ...]]:
    """Return `n` sets of values for a `prepared` statement; the same for the same seed and data.

    The values come from statistics or rows of the tables, so that the statement finds rows. They are read in a
    read-only transaction: at most ROWS rows of a table, from about PAGES pages. Raises PlanError with the server's
    message if the statement cannot be prepared.
    """
    # No transaction stays open while the plan is read: it would hold back VACUUM on the user's server.
    with session(place.session, TIMEOUT_S) as connection:
        types = parameter_types(connection, text)
        raw = explain_json(connection, text, None, ExplainSpec(analyze=False, generic=True))
    plan, fixed = load_plan(raw), _fixed(text, types)
    with session(place.session, TIMEOUT_S) as connection:
        facts = fetched(connection, plan)
    tables = scans(FindingContext(plan, read_facts(parsed(facts))), text)
    with session(place.session, TIMEOUT_S) as connection:
        known = _Known(place, connection, types, n, seed)
        found = {number: _constant(known, *given) for number, given in fixed.items()}
        for scan in tables:
            found |= known.of(scan, [use for use in scan.uses if use.number in types and use.number not in found])
        found |= {number: _plain(known, types[number]) for number in types.keys() - found.keys()}
    return [tuple(found[number][at] for number in sorted(found)) for at in range(n)]


@dataclass(frozen=True, slots=True)
class _Known:
    """The sources of values: the database, the types of the parameters, and the seed."""

    place: Database
    connection: psycopg.Connection[Any]
    types: Mapping[int, Type]
    n: int
    seed: int

    def draw(self, what: object) -> Random:
        """Return a random generator for one table or parameter, independent of all others."""
        return Random(f"{self.seed}/{what}")

    def of(self, scan: StatementScan, uses: Sequence[StatementUse]) -> dict[int, list[Value]]:
        """Return values for the uses of parameters in a table, as far as it has suitable ones."""
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
        """Return the uses whose column has values of the parameter's type."""
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
        """Return values of a column from its statistics, each as often as in the rows."""
        asked = {"schema": scan.schema, "table": scan.table, "column": use.column}
        cursor = self.connection.cursor(row_factory=tuple_row)
        rows = cursor.execute(catalog.get("example_statistics").encode(), asked).fetchall()
        if not rows or (self.types[use.number].element_category == "N" and any("." in text for text, _ in rows)):
            return []  # a fraction may not fit the parameter's type
        others = max(0.0, 1.0 - sum(share or 0.0 for _, share in rows)) / max(1, sum(s is None for _, s in rows))
        draw, weights = self.draw((scan.name, use.column)), [others if share is None else share for _, share in rows]
        said, found = f"pg_stats of {scan.table}.{use.column}", []
        for _ in range(self.n):
            texts = [text for text, _ in draw.choices(rows, weights, k=_ANY if use.operator == "= ANY" else 1)]
            text = array_literal(dict.fromkeys(texts)) if use.operator == "= ANY" else texts[0]
            found.append(Value(use.number, self.types[use.number].type, text, said))
        return found

    def _rows(self, scan: StatementScan, uses: Sequence[StatementUse]) -> dict[int, list[Value]]:
        """Return values from the same row for all uses, so that the row meets all conditions on the table."""
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
                    text = array_literal(dict.fromkeys(near))
                elif use.operator in ("<>", "<> ALL", "IS DISTINCT FROM", "!~~", "!~~*"):
                    others = Counter(row[column] for row in rows if row[column] != near[0])
                    text = min(others.items(), key=lambda item: item[1])[0] if others else text
                    text = array_literal([text]) if use.operator == "<> ALL" else text
                found[use.number].append(Value(use.number, self.types[use.number].type, text, f"a row of {scan.table}"))
        return found

    def _sampled(self, scan: StatementScan, uses: Sequence[StatementUse]) -> list[tuple[str, ...]]:
        """Return rows of a table that meet the conditions without parameters; if there are none, any rows."""
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
        """Return the SQL of a parameter's value with which a row is found."""
        wanted, subject = self.types[use.number], _element(use)
        if use.operator == "= ANY" or use.operator == "<> ALL":
            return subject
        step = _STEP.get(wanted.category if "time" not in wanted.type or "timestamp" in wanted.type else "", "")
        sign = {">": "-", ">=": "-", "<": "+", "<=": "+"}.get(use.operator, "")
        return f"({subject} {sign} {step})::{wanted.type}" if step and sign else f"({subject})::{wanted.type}"

    def _harmless(self, statement: str) -> bool:
        """Return whether a query may run: on a foreign server, it must call no volatile function."""
        if not self.place.server.foreign:
            return True
        try:
            return not effects(self.place.session, statement, None).volatile
        except (PlanError, psycopg.Error):
            return False

    def _tried(self, statement: str) -> psycopg.Cursor[Any] | None:
        """Return the result of a statement; None if the server refuses it or takes too long."""
        self.connection.execute("SAVEPOINT perfkit_example")
        try:
            cursor = send(self.connection.cursor(row_factory=tuple_row), statement)
        except psycopg.Error:
            self.connection.execute("ROLLBACK TO SAVEPOINT perfkit_example")
            return None
        self.connection.execute("RELEASE SAVEPOINT perfkit_example")
        return cursor


def _element(use: StatementUse) -> str:
    """Return the SQL expression to read values from; for an array that is searched, its first element."""
    return f"({use.subject})[1]" if use.operator == "ANY =" else use.subject


def _fixed(text: str, types: Mapping[int, Type]) -> dict[int, tuple[Type, str, str]]:
    """Return type, value and meaning of the parameters whose position in the statement implies a usual value."""
    return {number: (types[number], *given) for number, given in commands.fixed(text).items() if number in types}


def _constant(known: _Known, kind: Type, value: str, what: str) -> list[Value]:
    return [Value(kind.number, kind.type, value, f"a usual value for {what}")] * known.n


def _plain(known: _Known, kind: Type, why: str = "no column to take it from: a plain one") -> list[Value]:
    """Return plain values of a type; if they must be new, a different one each time."""
    draw, new = known.draw(kind.number), "new" in why
    texts = [values.example(draw, kind.type, kind.category, kind.label, new=new) for _ in range(known.n)]
    return [Value(kind.number, kind.type, text, why) for text in texts]
