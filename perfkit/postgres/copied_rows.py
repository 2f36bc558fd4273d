"""The rows of a copy: a sample of the source's rows, or generated rows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod

import psycopg
from psycopg import IsolationLevel, sql

from perfkit.base.errors import ServerError, first_line
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.postgres.values import ROW, CopiedColumn, Drawing, common, distinct, value


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """A table that holds rows, as sql/catalog/copy_tables.sql returns it."""

    table: str
    rows: int
    unknown: bool  # never analysed
    bounds: str | None  # of a partition
    columns: str | None


@dataclass(frozen=True, slots=True)
class CopiedKey:
    """A foreign key, as sql/catalog/copy_foreign_keys.sql returns it."""

    child: str
    parent_rows: str
    parents: Sequence[str]
    columns: Sequence[str]
    parent_columns: Sequence[str]


@dataclass(frozen=True, slots=True)
class CopiedUnique:
    """A unique index, as sql/catalog/copy_uniques.sql returns it."""

    table: str
    columns: Sequence[str]
    predicate: str | None
    nulls_equal: bool


def _source(read: Connection, write: Connection, count: int) -> tuple[dict[str, CopiedTable], list[CopiedKey], float]:
    """Return the source's tables that the copy has, by name, its foreign keys, and the share of the rows to make."""
    # The bounds of a hash partition contain the table's oid, so they come from the copy.
    bounds = {row["table"]: row["bounds"] for row in catalog.rows(write, "copy_tables")}
    found = [CopiedTable(**row) for row in catalog.rows(read, "copy_tables") if row["table"] in bounds]
    tables = {table.table: replace(table, bounds=bounds[table.table]) for table in found}
    share = min(1.0, count / max([1, *(table.rows for table in found)]))
    return tables, [CopiedKey(**row) for row in catalog.rows(read, "copy_foreign_keys")], share


# A sample of every large table, with every row that a sampled row refers to.

_BATCH = 10_000  # rows per statement
_WHOLE = 1000  # tables with at most this many rows keep all their rows


def sample_rows(read: Connection, write: Connection, count: int, seed: int, progress: Callable[[str], None]) -> None:
    """Copy about `count` rows of the largest table, other tables in proportion, and all rows that they refer to.

    Read everything in one repeatable-read transaction. The constraints that are restored later check the result.
    """
    read.autocommit = False
    read.isolation_level = IsolationLevel.REPEATABLE_READ
    tables, keys, share = _source(read, write, count)
    chosen: dict[str, set[str]] = {table: set() for table in tables}
    fresh = [
        (table, ctid) for table, facts in tables.items() for ctid in _sampled(read, table, facts.rows, share, seed)
    ]
    while fresh:
        by_table: dict[str, set[str]] = defaultdict(set)
        for table, ctid in fresh:
            by_table[table].add(ctid)
        new = {table: ctids - chosen[table] for table, ctids in by_table.items() if table in tables}
        for table, ctids in new.items():
            chosen[table] |= ctids
        fresh = [row for key in keys for row in _referred(read, key, new.get(key.child, ()))]
    for number, (table, ctids) in enumerate(chosen.items(), 1):
        progress(f"copying rows: {table} ({number} of {len(chosen)})")
        _transfer(read, write, table, tables[table].columns, ctids)
    read.rollback()


def _sampled(read: Connection, table: str, count: int, share: float, seed: int) -> list[str]:
    """Return the sampled rows of a table; a table without statistics counts as small."""
    query = f"SELECT ctid::text AS ctid FROM ONLY {table}"
    if count > _WHOLE and share < 1:
        percent = max(share, _WHOLE / count) * 100
        query += f" TABLESAMPLE BERNOULLI ({percent:.9f}) REPEATABLE ({seed})"
    return [row["ctid"] for row in read.execute(query.encode())]


def _referred(read: Connection, key: CopiedKey, children: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the rows that these rows of a child table refer to by one foreign key."""
    pairs = " AND ".join(f"p.{p} = c.{c}" for p, c in zip(key.parent_columns, key.columns, strict=True))
    for batch in _batches(children):
        query = (
            "SELECT format('%I.%I', n.nspname, t.relname) AS name, f.ctid FROM "
            f"(SELECT DISTINCT p.tableoid, p.ctid::text FROM ONLY {key.child} c JOIN {key.parent_rows} p "
            f"ON {pairs} WHERE c.ctid = ANY ({_literal(read, batch)}::tid[])) f "
            "JOIN pg_class t ON t.oid = f.tableoid JOIN pg_namespace n ON n.oid = t.relnamespace"
        )
        for row in read.execute(query.encode()).fetchall():
            yield row["name"], row["ctid"]


def _transfer(read: Connection, write: Connection, table: str, columns: str | None, ctids: Iterable[str]) -> None:
    """Copy rows by ctid, through COPY on both sides."""
    if columns is None:  # a table without columns
        write.execute(f"INSERT INTO {table} SELECT FROM generate_series(1, {len(set(ctids))})".encode())
        return
    for batch in _batches(ctids):
        which = f"ctid = ANY ({_literal(read, batch)}::tid[])"
        out = f"COPY (SELECT {columns} FROM ONLY {table} WHERE {which}) TO STDOUT"
        with (
            read.cursor().copy(out.encode()) as source,
            write.cursor().copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as sink,
        ):
            for data in source:
                sink.write(data)


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    source = iter(sorted(items))
    while batch := list(islice(source, _BATCH)):
        yield batch


def _literal(connection: Connection, ctids: list[str]) -> str:
    return sql.Literal(ctids).as_string(connection)


# Rows generated in the server itself, to fit the planner's statistics of the source.

_SPARE = 3  # candidates per row if some may not fit
_GOLDEN = 0.6180339887  # its multiples modulo 1 spread evenly
_PLACE = '"perfkit place"'  # the position of a row among those that a key can refer to


@dataclass(frozen=True, slots=True)
class ValueSource:
    """Catalogue data of the source's tables by quoted name, and the number of rows to generate."""

    tables: Mapping[str, CopiedTable]
    columns: Mapping[str, Sequence[CopiedColumn]]
    keys: Sequence[CopiedKey]
    uniques: Mapping[str, Sequence[CopiedUnique]]
    counts: Mapping[str, int]


def generate_rows(
    read: Connection, write: Connection, wanted: int, seed: int, progress: Callable[[str], None]
) -> list[str]:
    """Fill every table, parents first; return descriptions of what could not be kept.

    Read only the catalogue of the source. Its most common values and histogram bounds are real values.
    """
    write.execute(catalog.get("copy_helpers").encode())
    source = _described(read, write, wanted)
    order = _parents_first(source)
    missing = [
        f"statistics of {table}, which was never analysed: its rows are a guess"
        for table, row in source.tables.items()
        if row.unknown
    ]
    later: list[tuple[str, CopiedKey]] = []
    filled: set[str] = set()
    for number, table in enumerate(order, 1):
        progress(f"generating rows: {table} ({number} of {len(order)})")
        keys = [key for key in source.keys if key.child == table]
        later += [(table, key) for key in keys if not filled.issuperset(key.parents)]
        earlier = [key for key in keys if filled.issuperset(key.parents)]
        missing += _fill(write, source, table, earlier, seed)
        filled.add(table)
    for table, key in later:
        _refer(write, source, table, key, seed)
    write.execute(b"DROP FUNCTION pg_temp.pk_uniform(bigint, text)")
    return missing


def _described(read: Connection, write: Connection, wanted: int) -> ValueSource:
    tables, keys, share = _source(read, write, wanted)
    columns = [CopiedColumn(**row) for row in catalog.rows(read, "copy_columns")]
    uniques = [CopiedUnique(**row) for row in catalog.rows(read, "copy_uniques")]
    return ValueSource(
        tables,
        {table: [column for column in columns if column.table == table] for table in tables},
        [key for key in keys if tables.keys() >= {key.child, *key.parents}],
        {table: [unique for unique in uniques if unique.table == table] for table in tables},
        {name: max(min(table.rows, _WHOLE), round(table.rows * share)) for name, table in tables.items()},
    )


def _parents_first(source: ValueSource) -> list[str]:
    """Return tables after those that they refer to; break a cycle anywhere."""
    order: list[str] = []
    left = list(source.tables)
    while left:
        waiting = {key.child for key in source.keys if (set(key.parents) - {key.child}) & set(left)}
        free = [table for table in left if table not in waiting]
        order += free or left[:1]
        left = [table for table in left if table not in order]
    return order


def _fill(write: Connection, source: ValueSource, table: str, keys: Sequence[CopiedKey], seed: int) -> list[str]:
    """Insert the rows; drop constraints that they violate, and return their names."""
    count = source.counts[table]
    if not count:
        return []
    statement = f"INSERT INTO {table} SELECT FROM generate_series(1, {count})"  # a table without columns
    if source.columns[table]:
        statement = _insert(write, source, table, keys, seed)
    missing: list[str] = []
    while True:
        try:
            write.execute(statement.encode())
            return missing
        except (psycopg.errors.CheckViolation, psycopg.errors.NotNullViolation) as error:
            missing.append(_drop_broken(write, table, error))
        except psycopg.Error as error:
            raise ServerError(f"rows of {table} could not be generated: {first_line(error)}") from None


def _drop_broken(write: Connection, table: str, error: psycopg.Error) -> str:
    """Drop the constraint that an error names; return its description."""
    diag = error.diag
    owner: sql.Composable
    if diag.datatype_name:
        owner = sql.Identifier(diag.schema_name or "public", diag.datatype_name)
        kind, where = sql.SQL("DOMAIN"), f"domain {diag.datatype_name}"
    else:
        kind, owner, where = sql.SQL("TABLE"), sql.SQL(table), table
    if isinstance(error, psycopg.errors.NotNullViolation):
        column = sql.SQL("ALTER COLUMN {} ").format(sql.Identifier(diag.column_name or ""))
        change = sql.SQL("{}DROP NOT NULL").format(sql.SQL("") if diag.datatype_name else column)
        name = f"NOT NULL of {diag.column_name or 'every column'}"
    else:
        name = f"constraint {diag.constraint_name}"
        change = sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(diag.constraint_name or ""))
        if not diag.datatype_name:
            found = write.execute(catalog.get("copy_check_owner"), [table, diag.constraint_name]).fetchone()
            owner = sql.SQL(found["table"] if found else table)
    write.execute(sql.SQL("ALTER {} {} {}").format(kind, owner, change))
    return f"{name} of {where}, which generated rows violate"


def _insert(write: Connection, source: ValueSource, table: str, keys: Sequence[CopiedKey], seed: int) -> str:
    """Return the statement that generates the rows, from extra candidates if some will not fit."""
    count, bounds, uniques = source.counts[table], source.tables[table].bounds, source.uniques[table]
    columns = {column.name: column for column in source.columns[table]}
    moduli = re.findall(r"satisfies_hash_partition\('\d+'::oid, (\d+),", bounds or "")
    spread = count * prod(map(int, moduli))
    draw = Drawing(lambda constant: sql.Literal(constant).as_string(write), seed, spread)
    alone = {unique.columns[0] for unique in uniques if len(unique.columns) == 1 and not unique.predicate}
    taken: dict[str, str] = {}
    joins, conditions = "", []
    for number, key in enumerate(keys):
        reference = _reference(write, source, draw, number, key, taken)
        joins += reference.join
        taken |= reference.values
        conditions.append(reference.condition)
    own = {name: value(draw, column, name in alone) for name, column in columns.items() if name not in taken}
    given = own | taken
    spare = _SPARE if bounds or any(len(unique.columns) > 1 or unique.predicate for unique in uniques) else 1
    numbered, first = "", ""
    for number, unique in enumerate(uniques):
        numbered += f", {_number(unique)} AS {_name('unique', number)}"
        first += f" AND {_name('unique', number)} = 1"
    listed = ", ".join(f"{expression} AS {name}" for name, expression in given.items())
    return (
        f"INSERT INTO {table} ({', '.join(given)}) OVERRIDING SYSTEM VALUE SELECT {', '.join(given)} FROM ("
        f"SELECT * FROM (SELECT *{numbered} FROM (SELECT {ROW}, {listed} "
        f"FROM (SELECT generate_series(1, {spread * spare}) AS {ROW}) made{joins}"
        f" WHERE {' AND '.join(['true', *filter(None, conditions)])}) candidate WHERE {bounds or 'true'}) numbered "
        # A candidate that replaces another one takes its position, so that the rows keep their order.
        f"WHERE true{first} ORDER BY {ROW} LIMIT {count}) chosen ORDER BY ({ROW} - 1) % {spread}, {ROW}"
    )


def _name(what: str, number: int) -> str:
    """Return an identifier that no column has."""
    return f'"perfkit {what} {number}"'


def _number(unique: CopiedUnique) -> str:
    """Return the number of rows up to this one that a unique index considers equal."""
    keys = [f"({key})" for key in unique.columns]
    counted = [f"({unique.predicate})"] if unique.predicate else []
    if not unique.nulls_equal:
        counted += [f"{key} IS NOT NULL" for key in keys]
    counted = counted or ["true"]
    same = ", ".join([*keys, *counted])
    return f"CASE WHEN {' AND '.join(counted)} THEN row_number() OVER (PARTITION BY {same} ORDER BY {ROW}) ELSE 1 END"


@dataclass(frozen=True, slots=True)
class CopiedReference:
    """How rows get the columns of a foreign key: a join, the new columns' values, and a condition or ""."""

    join: str
    values: Mapping[str, str]
    condition: str


def _reference(
    write: Connection, source: ValueSource, draw: Drawing, number: int, key: CopiedKey, taken: Mapping[str, str]
) -> CopiedReference:
    """Return a reference to a parent row for each new row; columns that are already `taken` must agree."""
    columns = {column.name: column for column in source.columns[key.child]}
    pairs = list(zip(key.columns, key.parent_columns, strict=True))
    shared = {parent: taken[name] for name, parent in pairs if name in taken}
    new = [name for name, _ in pairs if name not in taken]
    optional = not all(columns[name].not_null for name in new)
    p, groups = f"p{number}", f"g{number}"
    condition = "" if new and optional else f"{p}.{_PLACE} IS NOT NULL"
    if shared:
        by, drawn = ", ".join(shared), draw.uniform("parent", number, *key.columns)
        join = (
            f" LEFT JOIN (SELECT {by}, count(*) AS rows FROM {key.parent_rows} GROUP BY {by}) {groups}"
            f" ON {_equal(groups, shared)} LEFT JOIN {_numbered_rows(key, by)} {p}"
            f" ON {_equal(p, shared)} AND {p}.{_PLACE} = 1 + floor({drawn} * {groups}.rows)::bigint"
        )
        if condition:  # a key that contains NULL refers to no row
            condition = f"({' OR '.join([condition, *(f'{value} IS NULL' for value in shared.values())])})"
    else:
        join = f" LEFT JOIN {_numbered_rows(key)} {p} ON {p}.{_PLACE} = {_position(write, source, draw, key)}"
    values = {
        name: draw.or_null(columns[name], f"key {number}", f"{p}.{parent}") for name, parent in pairs if name in new
    }
    return CopiedReference(join, values, condition)


def _equal(alias: str, shared: Mapping[str, str]) -> str:
    return " AND ".join(f"{alias}.{parent} = {value}" for parent, value in shared.items())


def _numbered_rows(key: CopiedKey, by: str = "") -> str:
    """Return the rows that a key can refer to, numbered from 1 in physical order, by group if given."""
    group = f"PARTITION BY {by} " if by else ""
    complete = " AND ".join(f"{column} IS NOT NULL" for column in key.parent_columns)
    return (
        f"(SELECT {', '.join(key.parent_columns)}, row_number() OVER ({group}ORDER BY tableoid, ctid) "
        f"AS {_PLACE} FROM {key.parent_rows} WHERE {complete})"
    )


def _position(write: Connection, source: ValueSource, draw: Drawing, key: CopiedKey) -> str:
    """Return the position of the parent row, with the frequencies and number of values of the child's statistics."""
    found = write.execute(f"SELECT count(*) AS n FROM {_numbered_rows(key)} p".encode()).fetchone()
    parents = (found or {"n": 0})["n"]
    ones = set(key.columns)
    if any(ones.issuperset(unique.columns) and not unique.predicate for unique in source.uniques[key.child]):
        return f"1 + floor({draw.in_order()} * {parents})::bigint"
    parent_of = dict(zip(key.columns, key.parent_columns, strict=True))
    candidates = [column for column in source.columns[key.child] if column.name in parent_of]
    column = max(candidates, key=lambda column: distinct(column, draw.spread))
    parent = parent_of[column.name]
    there = max(1, sum(source.tables[table].rows for table in key.parents))
    number = column.n_distinct
    referred = max(1, round(number / there * parents if number > 0 else -number * draw.spread)) if number else parents
    values = column.common
    rest = max(1, min(parents, referred) - len(values))
    level = f"floor({draw.ordered(column)} * {rest})"
    position = f"1 + floor(({level} + 0.5) * {parents} / {rest})::bigint"
    if not values or not parents:
        return position
    # The row with the same value if the parent has one, else any row, but a different one for each value.
    known = f"SELECT {parent}::text AS value, {_PLACE} AS n FROM {_numbered_rows(key)} p"
    numbers = write.execute(f"{known} WHERE {parent}::text = ANY ({draw.array(values)})".encode())
    same = {row["value"]: row["n"] for row in numbers}
    places = [same.get(text, 1 + int((n + 1) * _GOLDEN % 1 * parents)) for n, text in enumerate(values)]
    complete = sum(column.frequencies) / max(1e-9, 1 - column.null_frac) > 0.999
    return common(draw, column, f"({draw.quote(places)}::bigint[])", len(places), None if complete else position)


def _refer(write: Connection, source: ValueSource, table: str, key: CopiedKey, seed: int) -> None:
    """Set the columns of a key that refers to the table itself or to a table that was filled later.

    Within one table a row refers to an earlier row, so that there is no cycle of rows.
    """
    fixed = {column for unique in source.uniques[table] for column in unique.columns}
    fixed |= {c for other in source.keys if other.child == table and other is not key for c in other.columns}
    taken = {name: f"r.{name}" for name in key.columns if name in fixed}
    if len(taken) == len(key.columns):
        taken = {}
    draw = Drawing(lambda constant: sql.Literal(constant).as_string(write), seed, max(1, source.counts[table]))
    reference = _reference(write, source, draw, 0, key, taken)
    shared = [parent for name, parent in zip(key.columns, key.parent_columns, strict=True) if name in taken]
    group = f"PARTITION BY {', '.join(shared)} " if shared else ""
    join = reference.join
    if key.parents == [table]:
        nullable = not all(c.not_null for c in source.columns[table] if c.name in reference.values)
        equal = _equal("p0", {parent: f"r.{parent}" for parent in shared}) or "true"
        join = (
            f" LEFT JOIN {_numbered_rows(key, ', '.join(shared))} p0 ON {equal} AND p0.{_PLACE} "
            f"= 1 + floor({draw.uniform('earlier', *key.columns)} * (r.{_PLACE} - 1))::bigint"
            f" AND p0.{_PLACE} {'<' if nullable else '<='} r.{_PLACE}"
        )
    changes = ", ".join(f"{name} = {expression}" for name, expression in reference.values.items())
    write.execute(
        (
            f"UPDATE ONLY {table} child SET {changes} FROM (SELECT ctid AS {_name('row', 0)}, *, row_number() OVER "
            f"(ORDER BY ctid) AS {ROW}, row_number() OVER ({group}ORDER BY ctid) AS {_PLACE} FROM ONLY {table}) r"
            f"{join} WHERE child.ctid = r.{_name('row', 0)}"
        ).encode()
    )
    write.execute(f"VACUUM (FULL) {table}".encode())
