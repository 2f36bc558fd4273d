"""Private copies of a database: whole, a sample, or generated."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from subprocess import PIPE
from typing import Any, Literal

import psycopg
from psycopg import IsolationLevel, sql

from perfkit.base.errors import ServerError, TargetRefused, first_line, visible
from perfkit.base.process import spawn, stop
from perfkit.postgres import catalog, cluster, databases, values
from perfkit.postgres.capabilities import require_direct, some
from perfkit.postgres.catalog import Connection
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.servers import External

# Roles, storage and replication belong to the source's server; a compression it was built with may be missing here.
_DUMP = (
    "--format=custom",
    "--compress=0",
    "--encoding=UTF8",
    "--no-owner",
    "--no-privileges",
    "--no-publications",
    "--no-subscriptions",
    "--no-security-labels",
    "--no-tablespaces",
    "--no-table-access-method",
    "--no-toast-compression",
    "--lock-wait-timeout=5s",
)
_RESTORE = ("--no-owner", "--no-privileges", "--no-data-for-failed-tables")
_ERROR = re.compile(r"^pg_restore: error: (.*?)(?=^pg_restore: |\Z)", re.MULTILINE | re.DOTALL)
_FAILED = re.compile(r"could not execute query: ERROR:\s+([^\n]*)\n.*?^Command was: (.*)", re.MULTILINE | re.DOTALL)
_EXTENSION = re.compile(r"^\d+; \d+ \d+ (?:EXTENSION - |COMMENT - EXTENSION )(\S+)", re.MULTILINE)
_TABLE = re.compile(r"CREATE (?:UNLOGGED )?TABLE (.+?) \(|(?:ALTER TABLE \S.* ATTACH PARTITION|COPY) ", re.DOTALL)
_UNKNOWN = re.compile(r"(type|function) .* does not exist")


def transfer(
    source: External, server: EmbeddedServer, name: str, section: str = "", known: Sequence[str] = ()
) -> list[str]:
    """Copy everything, or one section (pre-data, post-data); returns what could not be brought along.

    What only lacks a table that is `known` to be missing is not named again.

    Raises ServerError with the programs' words, also where a table or its rows would be missing.
    """
    programs = _programs(source, server)
    with tempfile.TemporaryDirectory(prefix="perfkit-copy-") as folder:
        archive, wanted = Path(folder) / "dump", Path(folder) / "list"
        _dump(source, programs, archive, section)
        listed, _ = _run([str(programs / "pg_restore"), "--list", str(archive)])
        lines = [line for line in listed.split("\n") if not _EXTENSION.match(line)]
        wanted.write_text("\n".join(lines), encoding="utf-8")
        missing = _extend(source, server, name, set(_EXTENSION.findall(listed)))
        target = (f"--use-list={wanted}", f"--dbname={server.conninfo(name)}", str(archive))
        # Statements that fail are judged one by one.
        _, said = _run([str(programs / "pg_restore"), *_RESTORE, *target], tolerated=_ERROR)
    return missing + _failures(said, [*known, *missing], source.version > server.version)


def _programs(source: External, server: EmbeddedServer) -> Path:
    """Those that can read the one server and write to the other: as new as the newer of them."""
    newest = max(source.version, server.version)
    fitting = [version for version in (16, 18) if version >= newest]
    if not fitting:
        raise TargetRefused(f"{source.name}: PostgreSQL {source.version}; expected at most 18 for a copy")
    if fitting[0] <= server.version:
        return server.bin_dir
    return cluster.locate(fitting[0], server.data_dir.parent.parent)


def _dump(source: External, programs: Path, archive: Path, section: str) -> None:
    """Run pg_dump; the audit names what it was asked for."""
    asked = [*_DUMP, *([f"--section={section}"] if section else [])]
    args = [str(programs / "pg_dump"), *asked, f"--file={archive}", f"--dbname={source.conninfo()}"]
    with source.audit.noted(source.name, " ".join(["pg_dump", *asked])):
        _run(args, env=_with_tls(), where=f"{source.name}: ")


def _extend(source: External, server: EmbeddedServer, name: str, wanted: Collection[str]) -> list[str]:
    """Make the extensions that the server has, as only a superuser may, and stand-ins for functions of others.

    Returns what is lacking. A table needs the functions that its columns' defaults call to exist.
    """
    if not wanted:
        return []
    with source.connect() as read, server.connect(name) as write, server.connect(name, "postgres") as superuser:
        known = {row["name"] for row in write.execute("SELECT name FROM pg_available_extensions")}
        for row in catalog.rows(read, "copy_extensions"):
            if row["name"] in known & set(wanted):
                write.execute(f"CREATE SCHEMA IF NOT EXISTS {row['schema']}".encode())
                extend = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {}")
                superuser.execute(extend.format(sql.Identifier(row["name"]), sql.SQL(row["schema"])))
        lacking = sorted(set(wanted) - known)
        missing = [f"extension {visible(extension)}, and what needs it" for extension in lacking]
        stand_ins = catalog.rows(read, "copy_stand_ins")
        return missing + [_stand_in(write, row) for row in stand_ins if row["extension"] in lacking]


def _stand_in(write: Connection, function: Mapping[str, Any]) -> str:
    signature, returns = function["signature"], function["returns"]
    body = "pg_catalog.gen_random_uuid()" if returns == "uuid" else f"NULL::{returns}"
    write.execute(f"CREATE SCHEMA IF NOT EXISTS {function['schema']}".encode())
    write.execute(f"CREATE FUNCTION {signature} RETURNS {returns} LANGUAGE sql RETURN {body}".encode())
    return f"function {visible(signature)} of {function['extension']}: here it gives {body}"


def _failures(said: str, known: Sequence[str], newer: bool) -> list[str]:
    """What pg_restore could not do, one line each. Raises ServerError where that loses a table or its rows.

    A table that needs an extension which the server lacks is named, and not what refers to it.
    """
    missing: list[str] = []
    lacking = any(line.startswith("extension ") for line in known)
    for error in _ERROR.findall(said):
        found = _FAILED.match(error)
        if not found:
            raise ServerError(f"pg_restore: the copy is not complete: {visible(error.splitlines()[0])}")
        words, command = visible(found[1]), found[2]
        first = visible(" ".join(command.split())[:100])
        if re.fullmatch(r'schema ".*" already exists', words) or command.startswith("SET "):
            continue
        gone = re.fullmatch(r'relation "(.*)" does not exist', words)
        if gone and any(line.replace('"', "").startswith(f"table {gone[1]} (") for line in [*known, *missing]):
            continue
        if table := _TABLE.match(command):
            if not (table[1] and lacking and _UNKNOWN.match(words)):
                hint = "; the source is of a newer PostgreSQL" if newer else ""
                raise ServerError(f"pg_restore: the copy would lack a table: {first}: {words}{hint}")
            missing.append(f"table {visible(table[1])} ({words})")
        else:
            missing.append(f"{first} ({words})")
    return missing


def _with_tls() -> dict[str, str]:
    """The environment in which the embedded programs can encrypt: with psycopg's libpq in place of theirs.

    What cannot be loaded is ignored by the loader; a connection that needs it then fails with libpq's words.
    """
    found = find_spec("psycopg_binary")
    if sys.platform != "linux" or found is None or found.origin is None:
        return dict(os.environ)
    libraries = Path(found.origin).parents[1] / "psycopg_binary.libs"
    ours = sorted(str(path) for path in libraries.glob("libpq-*.so*"))[:1]
    theirs = [os.environ["LD_PRELOAD"]] if os.environ.get("LD_PRELOAD") else []
    return {**os.environ, "LD_PRELOAD": ":".join([*ours, *theirs])}


def _run(
    args: Sequence[str], env: Mapping[str, str] = os.environ, where: str = "", tolerated: re.Pattern[str] | None = None
) -> tuple[str, str]:
    """What a program wrote to its two outputs; it does not outlive an interrupt.

    Raises ServerError with its words where it failed, unless these hold what is tolerated.
    """
    process = spawn(args, env={**env, "LC_ALL": "C"}, stdout=PIPE, stderr=PIPE)  # in English, for it is read here
    try:
        output, said = (text.decode("utf-8", "replace") for text in process.communicate())
    except BaseException:
        stop(process)
        raise
    if process.returncode and not (tolerated and tolerated.search(said)):
        program = Path(args[0]).name
        raise ServerError(f"{where}{program}: {_words(program, said)}")
    return output, said


def _words(program: str, said: str) -> str:
    """A program's first error, with the detail where that is the server's message."""
    lines = said.splitlines()
    error, detail = f"{program}: error: ", f"{program}: detail: Error message from server: "
    first = next((line for line in lines if line.startswith(error)), lines[-1] if lines else "")
    more = [line.removeprefix(detail) for line in lines if line.startswith(detail)][:1]
    return visible("; ".join([first.removeprefix(error) or "it ended without a word", *more]))


# A sample of every large table, with each row that a sampled row refers to.

_BATCH = 10_000  # rows named in one statement
_WHOLE = 1000  # tables of no more rows are copied as they are

Row = tuple[str, str]  # table (quoted, with its schema) and ctid


def rows(read: Connection, write: Connection, wanted: int, seed: int, progress: Callable[[str], None]) -> None:
    """Copy about `wanted` rows of the largest table, of others in proportion, and all they refer to.

    Everything is read in one repeatable-read transaction. The constraints that come later prove the rest.
    """
    read.autocommit = False
    read.isolation_level = IsolationLevel.REPEATABLE_READ
    made = {row["table"] for row in catalog.rows(write, "copy_tables")}
    tables = {row["table"]: row for row in catalog.rows(read, "copy_tables") if row["table"] in made}
    keys = catalog.rows(read, "copy_foreign_keys")
    share = min(1.0, wanted / max([1, *(row["rows"] for row in tables.values())]))
    chosen: dict[str, set[str]] = {table: set() for table in tables}
    fresh = [(table, ctid) for table, row in tables.items() for ctid in _sampled(read, table, row["rows"], share, seed)]
    while fresh:
        by_table: dict[str, set[str]] = defaultdict(set)
        for table, ctid in fresh:
            by_table[table].add(ctid)
        new = {table: ctids - chosen[table] for table, ctids in by_table.items() if table in made}
        for table, ctids in new.items():
            chosen[table] |= ctids
        fresh = [row for key in keys for row in _referred(read, key, new.get(key["child"], ()))]
    for number, (table, ctids) in enumerate(chosen.items(), 1):
        progress(f"copying rows: {table} ({number} of {len(chosen)})")
        _transfer(read, write, table, tables[table]["columns"], ctids)
    read.rollback()


def _sampled(read: Connection, table: str, count: int, share: float, seed: int) -> list[str]:
    """The rows to begin with; a table that was never analysed counts as small."""
    query = f"SELECT ctid::text AS ctid FROM ONLY {table}"
    if count > _WHOLE and share < 1:
        percent = max(share, _WHOLE / count) * 100
        query += f" TABLESAMPLE BERNOULLI ({percent:.9f}) REPEATABLE ({seed})"
    return [row["ctid"] for row in read.execute(query.encode())]


def _referred(read: Connection, key: dict[str, Any], children: Iterable[str]) -> Iterator[Row]:
    """The rows that these rows of a child refer to by one foreign key."""
    pairs = " AND ".join(f"p.{p} = c.{c}" for p, c in zip(key["parent_columns"], key["columns"], strict=True))
    for batch in _batches(children):
        query = (
            "SELECT format('%I.%I', n.nspname, t.relname) AS name, f.ctid FROM "
            f"(SELECT DISTINCT p.tableoid, p.ctid::text FROM ONLY {key['child']} c JOIN {key['parent_rows']} p "
            f"ON {pairs} WHERE c.ctid = ANY ({_literal(read, batch)}::tid[])) f "
            "JOIN pg_class t ON t.oid = f.tableoid JOIN pg_namespace n ON n.oid = t.relnamespace"
        )
        for row in read.execute(query.encode()).fetchall():
            yield row["name"], row["ctid"]


def _transfer(read: Connection, write: Connection, table: str, columns: str | None, ctids: Iterable[str]) -> None:
    """Rows by their place, through COPY on both sides."""
    if columns is None:  # rows of nothing
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


# A private copy of a database of the user's, in a server that perfkit started.

_TELLS = {
    "whole": (
        "how the arms compare on the same rows, tables and indexes as the source had when it was copied",
        "what the source's own hardware, settings, bloat, cache and other load would add",
    ),
    "sample": (
        "how the arms compare on a sample of the rows with everything that they refer to",
        "the times on the whole data, where tables are larger and plans may be others",
    ),
    "generated": (
        "which plans the arms get on rows made up to fit the planner's statistics of the source",
        "the times on the real rows: how columns depend on one another was not known",
    ),
}


@dataclass(frozen=True, slots=True)
class Copying:
    """How to copy: rows of the largest table for a sample or made-up rows; most bytes to copy whole."""

    method: Literal["whole", "sample", "generated"]
    rows: int = 100_000
    max_bytes: int = 2 * 10**9
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, what could not be brought along, and what the copy can and cannot tell."""

    method: str
    rows: Mapping[str, int]
    source_rows: Mapping[str, int]  # as the planner there estimates them
    missing: tuple[str, ...]
    tells: str
    cannot_tell: str


def copy_into(
    source: External, server: EmbeddedServer, name: str, how: Copying, progress: Callable[[str], None]
) -> Copied:
    """Make the database `name` on `server` from `source`. Only reading happens there.

    Raises TargetRefused where it is too large or behind a pooler, ServerError with the servers' words; nothing
    half made is left.
    """
    require_direct(source, "for a copy")
    sizes = _readable_sizes(source, how)
    total = sum(size["bytes"] + size["index_bytes"] for size in sizes.values())
    if how.method == "whole" and total > how.max_bytes:
        raise TargetRefused(
            f"{source.name}: {total / 1e6:,.0f} MB; expected at most {how.max_bytes / 1e6:,.0f} MB to copy whole "
            "(copy_limit_mb), or --way sample"
        )
    if not sizes:
        raise ServerError(f"{source.name}: no table that can be seen; expected at least one to copy")
    progress(f"copying {source.name} ({how.method}, {total / 1e6:,.0f} MB)")
    try:
        databases.create(server, name)
        missing = _copied(source, server, name, how, progress)
        rows = {table: size["rows"] for table, size in databases.sizes(server, name).items()}
    except BaseException as error:
        with suppress(ServerError):  # where that server is gone, so is the database
            databases.drop(server, name)
        if isinstance(error, psycopg.Error | OSError):
            said = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            raise ServerError(f"{source.name}: the copy failed: {visible(said)}") from None
        raise
    tells, cannot = _TELLS[how.method]
    there = {table: size["rows"] for table, size in sizes.items()}
    return Copied(how.method, rows, there, tuple(missing), tells, cannot)


def _readable_sizes(source: External, how: Copying) -> dict[str, dict[str, Any]]:
    """Rows and bytes by table. Raises TargetRefused naming what the role cannot see all of."""
    with databases.connected(source) as connection:
        connection.execute(catalog.get("copy_session").encode())
        _require_readable(source, catalog.rows(connection, "copy_unreadable"), how)
        return {row["table"]: row for row in catalog.rows(connection, "sizes")}


def _require_readable(source: External, found: Sequence[Mapping[str, Any]], how: Copying) -> None:
    hidden = [row for row in found if how.method == "whole" or not row["sequence"]]
    filtered = [row["name"] for row in hidden if row["readable"]]
    unreadable = [row["name"] for row in hidden if not row["readable"]]
    if unreadable:
        named, expected = visible(some(unreadable)), "USAGE on the schema and SELECT on all of it"
        raise TargetRefused(f"{source.name}: {named} may not be read; expected {expected}")
    if filtered:
        named, expected = visible(some(filtered)), "the owner's login, or a role with BYPASSRLS"
        raise TargetRefused(f"{source.name}: row-level security hides rows of {named}; expected {expected}")


def _copied(
    source: External, server: EmbeddedServer, name: str, how: Copying, progress: Callable[[str], None]
) -> list[str]:
    """Copy by one of the methods; what could not be brought along."""
    missing = _order_of_text(source, server, name)
    if how.method == "whole":
        return missing + transfer(source, server, name)
    missing += transfer(source, server, name, "pre-data")
    with source.connect() as read, server.connect(name) as write:
        read.execute(catalog.get("copy_session").encode())
        write.execute(b"SET search_path = ''")
        sequences = catalog.rows(read, "copy_sequences")
        if how.method == "sample":
            rows(read, write, how.rows, how.seed, progress)
        else:
            missing += values.rows(read, write, how.rows, how.seed, progress)
        _position(write, sequences)
    return missing + transfer(source, server, name, "post-data", missing)


def _order_of_text(source: External, server: EmbeddedServer, name: str) -> list[str]:
    """Where text sorts otherwise in the copy, in words: it decides which indexes can serve LIKE."""
    query = b"SELECT datcollate AS name FROM pg_database WHERE datname = current_database()"
    with source.connect() as read, server.connect(name) as write:
        theirs, ours = (((c.execute(query).fetchone()) or {"name": ""})["name"] for c in (read, write))
    return [] if theirs == ours else [f"the order of text, {visible(theirs)}; here it is {ours}"]


def _position(write: Connection, sequences: Sequence[Mapping[str, Any]]) -> None:
    """Put every sequence where it stands in the source, and beyond the values of its own column."""
    known = {row["name"] for row in catalog.rows(write, "copy_sequences")}
    for row in (row for row in sequences if row["name"] in known):
        position: sql.Composable = sql.Literal(row["last_value"])
        if row["table"] and row["ascending"]:
            position = sql.SQL("greatest({0}, (SELECT max({2}) FROM {1} WHERE {2} <= {3}))").format(
                position, sql.SQL(row["table"]), sql.SQL(row["column"]), row["maximum"]
            )
        write.execute(sql.SQL("SELECT setval({}::regclass, {}::bigint)").format(row["name"], position))
