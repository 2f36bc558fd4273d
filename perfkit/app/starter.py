"""First steps: what perfkit can do in a database; what it writes: a perfkit.toml, notebooks, schemas, run folders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import TypedDict

import psycopg
import tomlkit
from pydantic import TypeAdapter

from perfkit.base import resources
from perfkit.base.bundle import dumps
from perfkit.base.errors import BundleError, PerfkitError, ServerError, UsageError, visible
from perfkit.base.options import Text
from perfkit.config import DatabaseConfig
from perfkit.indexes.designs import LabRecord
from perfkit.monitor.model import About, Event, Tick
from perfkit.postgres import catalog
from perfkit.postgres.capabilities import Capabilities, Capability
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import connected
from perfkit.postgres.servers import External
from perfkit.release.decision import DecisionRecord
from perfkit.release.rollback import Rollback
from perfkit.runs.records import Round, RunRecord
from perfkit.runs.targets import scenario
from perfkit.show.html import Code, Column, Section, Table, marked, stacked
from perfkit.slow.statements import between, snapshot

EXAMPLE, NOTEBOOKS = resources.path("docs/examples/orders"), resources.path("notebooks")
TIMEOUT_S = 10
LOOKUPS, KEYS = 3, 2  # queries by foreign keys without an index, and by primary keys
STATEMENTS = 10  # of the slowest
_LOAD = re.compile(r"\s*(select|with|insert|update|delete)", re.IGNORECASE)


_STATES = {"yes": "good", "partly": "unsure", "no": "bad"}


def capabilities(database: Capabilities) -> Section:
    """Return a table of what perfkit can do in a database, and what its owner can run to allow the rest."""
    columns: tuple[Column[Capability], ...] = (
        Column("what", lambda c: c.name),
        Column("", lambda c: marked(_STATES[c.state], c.state), key="state"),
        Column("how, or why not", lambda c: c.detail),
    )
    allow = {statement: c.name for c in database.found for statement in c.allow}
    title = "What its owner or an administrator can run to allow more"
    lines = "\n".join(_line(statement, purpose) for statement, purpose in allow.items())
    return stacked(
        Table.of(f"{database.target}, PostgreSQL {database.version}", columns, database.found),
        Section([Code(lines, title)], title) if allow else None,
    )


def _line(statement: str, purpose: str) -> str:
    """Return a statement with its purpose; only SQL gets a semicolon, not a command or an instruction."""
    end = "" if statement.startswith("perfkit ") or " and a restart" in statement else ";"
    return f"{statement}{end}  -- {purpose}"


class _Table(TypedDict):
    """A table, as sql/catalog/starter_tables.sql lists it; `table` is its quoted name."""

    name: str
    table: str
    rows: int
    bytes: int
    index_bytes: int
    key: list[str]  # NULL without a primary key
    indexed: list[list[str | None]]


class _ForeignKey(TypedDict):
    """A foreign key, as sql/catalog/starter_foreign_keys.sql lists it."""

    child: str
    parent: str
    columns: list[str]


@dataclass(slots=True)
class _Draft:
    """Content of the files to be written."""

    queries: dict[str, str] = field(default_factory=dict)  # SQL, by name
    parameters: dict[str, str] = field(default_factory=dict)  # SELECT of the values, by query
    indexes: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)  # a line on each table
    statements: list[str] = field(default_factory=list)


def write(folder: Path, external: External | None, db: str = "", *, tls: bool = True) -> list[Path]:
    """Write the files and return them, perfkit.toml first.

    Raises UsageError if one of them exists, ServerError with the server's message.
    """
    files = _from_database(external, db, tls) if external else _texts(EXAMPLE)
    _write_new(folder, files)
    return [folder / name for name in sorted(files, key=lambda name: name != "perfkit.toml")]


def copy_notebooks(folder: Path) -> list[Path]:
    """Copy the notebooks into a folder and return the copies. Raises UsageError if one of them exists."""
    files = _texts(NOTEBOOKS, ".ipynb")
    _write_new(folder, files)
    return [folder / name for name in files]


def write_schemas(folder: Path) -> list[Path]:
    """Write the JSON schemas of the files that perfkit records into; overwrite none. Raises UsageError."""
    models = {"run": RunRecord, "round": Round, "lab": LabRecord, "watch": About, "tick": Tick, "event": Event}
    models |= {"decision": DecisionRecord, "rollback": Rollback}
    schemas = {f"{name}.schema.json": TypeAdapter(model).json_schema() for name, model in models.items()}
    _write_new(folder, {name: f"{dumps(schema)}\n" for name, schema in schemas.items()})
    return [folder / name for name in schemas]


def _write_new(folder: Path, files: Mapping[str, str]) -> None:
    """Write files and overwrite none."""
    for name in files:
        if (folder / name).exists():
            raise UsageError(f"{folder / name} already exists; expected a folder without it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); expected a writable folder") from None


def _texts(folder: Path, *suffixes: str) -> dict[str, str]:
    """Return the content of the files of a folder that comes with perfkit, by name."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (suffixes or (".toml", ".sql")))
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def _from_database(external: External, db: str, tls: bool) -> dict[str, str]:
    """Return files with queries by keys whose values exist, and indexes for foreign keys that have none."""
    with connected(external) as connection, connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        connection.execute(f"SET LOCAL statement_timeout = {TIMEOUT_S * 1000}")
        draft, size = _inspect(connection)
    if not draft.queries:
        raise ServerError(f"{external.name}: no readable table has rows and a key; expected at least one")
    files = {"perfkit.toml": _toml(draft, db, external.name, size, tls)}
    files |= {f"{name}.sql": f"{text}\n" for name, text in draft.queries.items()}
    files |= {f"{name}.parameters.sql": f"{text}\n" for name, text in draft.parameters.items()}
    if draft.indexes:
        files["indexes.sql"] = "".join(f"{statement};\n" for statement in draft.indexes)
    if draft.statements:
        files["statements.sql"] = "\n".join(draft.statements)
    return files


def _inspect(connection: Connection) -> tuple[_Draft, int]:
    """Return the draft, and the database's size in bytes."""
    tables: Sequence[_Table] = catalog.rows(connection, "starter_tables")  # type: ignore[assignment]
    keys: Sequence[_ForeignKey] = catalog.rows(connection, "starter_foreign_keys")  # type: ignore[assignment]
    draft, by_name = _Draft(), {table["table"]: table for table in tables}
    # Two foreign keys on the same columns need one index.
    distinct = {(key["child"], *sorted(key["columns"])): key for key in keys}.values()
    bare = [key for key in distinct if key["child"] in by_name and not _indexed(by_name[key["child"]], key["columns"])]
    bare.sort(key=lambda key: -by_name[key["child"]]["rows"])
    for key in islice((key for key in bare if _has_rows(connection, key["child"], key["columns"])), LOOKUPS):
        _lookup(draft, by_name[key["child"]], key["columns"], "by")
        draft.indexes.append(f"CREATE INDEX ON {key['child']} ({', '.join(key['columns'])})")
    keys_of = ((table, table["key"]) for table in tables if table["key"])
    keyed = ((table, key) for table, key in keys_of if _has_rows(connection, table["table"], key))
    for table, columns in islice(keyed, KEYS):
        _lookup(draft, table, columns, "one_of")
    draft.tables = [_describe(table, keys) for table in tables[:20]]
    draft.statements = list(_statements(connection))
    return draft, sum(table["bytes"] + table["index_bytes"] for table in tables)


def _has_rows(connection: Connection, table: str, columns: Sequence[str]) -> bool:
    """Return whether a row to look up by these columns is found within the time limit."""
    try:
        with connection.transaction():
            row = connection.execute(f"SELECT 1 FROM {table} WHERE {_not_null(columns)} LIMIT 1".encode()).fetchone()
            return row is not None
    except psycopg.Error:
        return False


def _not_null(columns: Sequence[str]) -> str:
    return " AND ".join(f"{column} IS NOT NULL" for column in columns)


def _indexed(table: _Table, columns: Sequence[str]) -> bool:
    """Return whether an index begins with these columns, in any order."""
    return any(set(index[: len(columns)]) == set(columns) for index in table["indexed"])


def _lookup(draft: _Draft, table: _Table, columns: Sequence[str], how: str) -> None:
    """Add a query for the rows with certain values, and a SELECT of the values that exist."""
    name = _name(f"{how}_{table['name']}", draft.queries)
    pairs = [(column, f"p{number}") for number, column in enumerate(columns, 1)]
    condition = " AND ".join(f"{column.replace('%', '%%')} = %({value})s" for column, value in pairs)
    selected = ", ".join(f"{column} AS {value}" for column, value in pairs)
    draft.queries[name] = f"SELECT * FROM {table['table'].replace('%', '%%')} WHERE {condition} LIMIT 100"
    draft.parameters[name] = f"SELECT DISTINCT {selected} FROM {table['table']} WHERE {_not_null(columns)} LIMIT :rows"


def _name(text: str, taken: Collection[str]) -> str:
    """Return a new name for a query and its files, safe for any name of a table."""
    plain = re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")[:34] or "query"
    return next(name for n in range(1, 100) if (name := plain if n == 1 else f"{plain}_{n}") not in taken)


def _describe(table: _Table, keys: Sequence[_ForeignKey]) -> str:
    refers = [f"{', '.join(k['columns'])} -> {k['parent']}" for k in keys if k["child"] == table["table"]]
    size = f"about {table['rows']:,} rows, {table['bytes'] / 1e6:,.1f} MB, indexes {table['index_bytes'] / 1e6:,.1f} MB"
    key = f"key {', '.join(table['key'])}" if table["key"] else "no primary key"
    return "; ".join([f"{table['table']}: {size}", key, *refers])


def _statements(connection: Connection) -> Iterator[str]:
    """Yield the slowest statements as comments; to use one, the user replaces `$1` by a parameter."""
    try:
        with connection.transaction():
            slowest = between(None, snapshot(connection)).statements
    except ServerError:
        return  # pg_stat_statements is not installed, or not readable for this role
    rows = [statement for statement in slowest if _LOAD.match(statement.text)][:STATEMENTS]
    if rows:
        yield "-- The slowest statements of this database. To measure one, put it into a file of its own, replace $1 by"
        yield "-- %(name)s, and add a [[query]] with a source of parameters.\n"
    for row in rows:
        yield f"-- {row.calls:,} calls, {row.mean_ms:.1f} ms each, {row.total_ms / 1000:,.1f} s in all"
        yield "\n".join(f"-- {line}" for line in visible(row.text).splitlines()) + "\n"


def _toml(draft: _Draft, db: str, name: str, size: int, tls: bool) -> str:
    document = tomlkit.document()
    _say(
        document,
        f"What perfkit found in {name}, and a first comparison.",
        f"Run it with: perfkit report --config perfkit.toml --profile quick --confirm {quote(name)}",
        "Every key: perfkit config reference",
    )
    document["title"] = f"{name.rpartition('/')[2]}: first look"
    document["allow"] = [name]
    document.add(tomlkit.nl())
    _say(document, "Its tables, the largest first:", *draft.tables)
    limit = DatabaseConfig.model_fields["copy_limit_mb"].default
    database = tomlkit.table()
    _say(
        database,
        "How perfkit uses the database. whole: a private copy on a PostgreSQL that perfkit starts; sample, generated:",
        "a smaller copy, if the database is large; clone: databases beside it; in-place: the database itself, which",
        "needs perfkit allow --ddl.",
    )
    database["target"] = db
    database["way"] = "whole" if size <= limit * 10**6 else "sample"
    if not tls:
        database["tls"] = False
    document["database"] = database
    document["parameters"] = {query: f"{query}.parameters.sql" for query in draft.parameters}
    document["query"] = [{"name": query, "file": f"{query}.sql", "parameters": query} for query in draft.queries]
    document["scenario"] = [scenario("alone", list(draft.queries), 1, 20), scenario("ten", list(draft.queries), 10, 5)]
    after: dict[str, object] = {"title": "more memory for sorts and hashes", "settings": {"work_mem": "64MB"}}
    if draft.indexes:  # without one, the setting is an example for the user to replace
        after = {"title": "foreign keys indexed", "indexes": "indexes.sql"}
    document["arm"] = [
        {"name": "before", "role": "before"},
        {"name": "control", "role": "control"},
        {"name": "after", "role": "after", **after},
    ]
    return tomlkit.dumps(document)


def _say(container: tomlkit.TOMLDocument | tomlkit.items.Table, *lines: str) -> None:
    """Add comments, each on one line: a name from a database cannot end a comment."""
    for line in lines:
        container.add(tomlkit.comment(" ".join(visible(line).split())))


def reports_folder() -> Path:
    """Return the folder for runs if none is named: `reports/` of the project that the working folder is in.

    A project is the nearest folder, from the working folder upward, with a `perfkit.toml` or a checkout of perfkit;
    without one it is the working folder itself. Raises BundleError if the working folder no longer exists.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise BundleError("reports: the working folder no longer exists; expected --reports FOLDER") from None
    return next((folder for folder in (here, *here.parents) if _is_project(folder)), here) / "reports"


def _is_project(folder: Path) -> bool:
    """Whether a folder has a configuration or is a checkout; a folder that cannot be searched is neither."""
    try:
        return any((folder / name).is_file() for name in ("perfkit.toml", resources.IN_CHECKOUT))
    except OSError:
        return False


def new_folder(reports: Text, profile: str) -> Path:
    """Create a folder for a run, named by UTC time and profile, in `reports` or else `reports_folder()`.

    Raises BundleError.
    """
    parent = Path(reports) if reports else reports_folder()
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{profile}"
    for path in [parent / name, *(parent / f"{name}-{n}" for n in range(2, 100))]:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise BundleError(f"{path}: cannot be created ({error.strerror}); expected a writable folder") from None
        return path
    raise BundleError(f"{parent}: a hundred runs began this second; expected fewer")


@contextmanager
def discarded(folder: Path, *patterns: str) -> Iterator[None]:
    """Remove a new folder if the block fails before a file with one of these names is in it: nothing was measured."""
    try:
        yield
    except BaseException as error:
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            raise
        shutil.rmtree(folder)
        if isinstance(error, PerfkitError) and f"{folder}/" in str(error):  # the message must not name a lost file
            raise type(error)(str(error).replace(f"{folder}/", "")) from None
        raise
