"""Private copies of a database: whole, a sample, or generated rows."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE
from typing import Literal

import psycopg
from psycopg import sql

from perfkit.base.errors import ServerError, TargetRefused, first_line, visible
from perfkit.base.process import spawn, stop
from perfkit.postgres import catalog, cluster, databases
from perfkit.postgres.capabilities import require_direct, some
from perfkit.postgres.catalog import Connection, Row
from perfkit.postgres.copied_rows import generate_rows, sample_rows
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.servers import External

# Roles, storage and replication belong to the source's server; its compression methods may be missing here.
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
    """Copy everything, or one section (pre-data, post-data); return the objects that could not be copied.

    An object that only lacks a table which is `known` to be missing is not named again.
    Raises ServerError with the message of pg_dump or pg_restore, also if a table or its rows would be missing.
    """
    programs = _programs(source, server)
    with tempfile.TemporaryDirectory(prefix="perfkit-copy-") as folder:
        archive, toc = Path(folder) / "dump", Path(folder) / "list"
        _dump(source, programs, archive, section)
        contents, _ = _run([str(programs / "pg_restore"), "--list", str(archive)])
        lines = [line for line in contents.split("\n") if not _EXTENSION.match(line)]
        toc.write_text("\n".join(lines), encoding="utf-8")
        missing = _extend(source, server, name, set(_EXTENSION.findall(contents)))
        target = (f"--use-list={toc}", f"--dbname={server.conninfo(name)}", str(archive))
        # Failed statements are judged one by one: some of them are harmless.
        _, errors = _run([str(programs / "pg_restore"), *_RESTORE, *target], tolerated=_ERROR)
    return missing + _failures(errors, [*known, *missing], source.version > server.version)


def _programs(source: External, server: EmbeddedServer) -> Path:
    """Return the folder of client programs that fit both servers: as new as the newer server."""
    newest = max(source.version, server.version)
    versions = [version for version in (16, 18) if version >= newest]
    if not versions:
        raise TargetRefused(f"{source.name}: PostgreSQL {source.version}; expected at most 18 for a copy")
    if versions[0] <= server.version:
        return server.bin_dir
    return cluster.locate(versions[0], server.data_dir.parent.parent)


def _dump(source: External, programs: Path, archive: Path, section: str) -> None:
    """Run pg_dump; record its options in the audit."""
    options = [*_DUMP, *([f"--section={section}"] if section else [])]
    args = [str(programs / "pg_dump"), *options, f"--file={archive}", f"--dbname={source.conninfo()}"]
    with source.audit.noted(source.name, " ".join(["pg_dump", *options])):
        _run(args, env=_with_tls(), where=f"{source.name}: ")


def _extend(source: External, server: EmbeddedServer, name: str, required: Collection[str]) -> list[str]:
    """Create the available extensions as a superuser, and stand-ins for functions of missing extensions.

    Return the missing extensions and the stand-ins. A table can only be created if the functions in its defaults exist.
    """
    if not required:
        return []
    with source.connect() as read, server.connect(name) as write, server.connect(name, "postgres") as superuser:
        known = {row["name"] for row in write.execute("SELECT name FROM pg_available_extensions")}
        for row in catalog.rows(read, "copy_extensions"):
            if row["name"] in known & set(required):
                write.execute(f"CREATE SCHEMA IF NOT EXISTS {row['schema']}".encode())
                extend = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {}")
                superuser.execute(extend.format(sql.Identifier(row["name"]), sql.SQL(row["schema"])))
        lacking = sorted(set(required) - known)
        missing = [f"extension {visible(extension)}, and everything that needs it" for extension in lacking]
        stand_ins = catalog.rows(read, "copy_stand_ins")
        return missing + [_stand_in(write, row) for row in stand_ins if row["extension"] in lacking]


def _stand_in(write: Connection, function: Row) -> str:
    signature, returns = function["signature"], function["returns"]
    body = "pg_catalog.gen_random_uuid()" if returns == "uuid" else f"NULL::{returns}"
    write.execute(f"CREATE SCHEMA IF NOT EXISTS {function['schema']}".encode())
    write.execute(f"CREATE FUNCTION {signature} RETURNS {returns} LANGUAGE sql RETURN {body}".encode())
    return f"function {visible(signature)} of {function['extension']}: in the copy it returns {body}"


def _failures(errors: str, known: Sequence[str], newer: bool) -> list[str]:
    """Return what pg_restore could not restore, one line each. Raises ServerError if a table or its rows are lost.

    A table that needs a missing extension is named; objects that refer to this table are not.
    """
    missing: list[str] = []
    lacking = any(line.startswith("extension ") for line in known)
    for error in _ERROR.findall(errors):
        failed = _FAILED.match(error)
        if not failed:
            raise ServerError(f"pg_restore: the copy is incomplete: {visible(error.splitlines()[0])}")
        words, command = visible(failed[1]), failed[2]
        first = visible(" ".join(command.split())[:100])
        if re.fullmatch(r'schema ".*" already exists', words) or command.startswith("SET "):
            continue
        gone = re.fullmatch(r'relation "(.*)" does not exist', words)
        if gone and any(line.replace('"', "").startswith(f"table {gone[1]} (") for line in [*known, *missing]):
            continue
        if table := _TABLE.match(command):
            if not (table[1] and lacking and _UNKNOWN.match(words)):
                hint = "; the source runs a newer PostgreSQL" if newer else ""
                raise ServerError(f"pg_restore: the copy would lack a table: {first}: {words}{hint}")
            missing.append(f"table {visible(table[1])} ({words})")
        else:
            missing.append(f"{first} ({words})")
    return missing


def _with_tls() -> dict[str, str]:
    """Return an environment in which the embedded programs load psycopg's libpq, because theirs lacks TLS.

    The loader ignores a library that it cannot load; a connection that needs TLS then fails with libpq's message.
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
    """Run a program and return its two outputs; stop it on an interrupt.

    Raises ServerError with the program's message if it fails, unless the message matches `tolerated`.
    """
    process = spawn(args, env={**env, "LC_ALL": "C"}, stdout=PIPE, stderr=PIPE)  # perfkit parses the English messages
    try:
        output, errors = (text.decode("utf-8", "replace") for text in process.communicate())
    except BaseException:
        stop(process)
        raise
    if process.returncode and not (tolerated and tolerated.search(errors)):
        program = Path(args[0]).name
        raise ServerError(f"{where}{program}: {_first_error(program, errors)}")
    return output, errors


def _first_error(program: str, errors: str) -> str:
    """Return a program's first error, with the server's message if its detail has one."""
    lines = errors.splitlines()
    error, detail = f"{program}: error: ", f"{program}: detail: Error message from server: "
    first = next((line for line in lines if line.startswith(error)), lines[-1] if lines else "")
    more = [line.removeprefix(detail) for line in lines if line.startswith(detail)][:1]
    return visible("; ".join([first.removeprefix(error) or "it ended without a message", *more]))


# A private copy of the user's database, in a server that perfkit started.

_TELLS = {
    "whole": (
        "how the arms compare on the source's rows, tables and indexes at the time of the copy",
        "the effect of the source's hardware, settings, bloat, cache and other load",
    ),
    "sample": (
        "how the arms compare on a sample of the rows and all rows that they refer to",
        "the times on all data, where tables are larger and plans may differ",
    ),
    "generated": (
        "which plans the arms get on generated rows that fit the planner's statistics of the source",
        "the times on the real rows: the statistics do not describe how columns depend on each other",
    ),
}


@dataclass(frozen=True, slots=True)
class Copying:
    """How to copy: `rows` of the largest table for a sample or generated rows, `max_bytes` for a whole copy."""

    method: Literal["whole", "sample", "generated"]
    rows: int = 100_000
    max_bytes: int = 2 * 10**9
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Copied:
    """A finished copy: its rows, the objects that are missing, and what the copy can and cannot tell."""

    method: str
    rows: Mapping[str, int]
    source_rows: Mapping[str, int]  # the planner's estimates in the source
    missing: tuple[str, ...]
    tells: str
    cannot_tell: str


def copy_into(
    source: External, server: EmbeddedServer, name: str, how: Copying, progress: Callable[[str], None]
) -> Copied:
    """Create the database `name` on `server` from `source`, which is only read.

    Raises TargetRefused if the source is too large or behind a pooler, ServerError with the servers' message. A
    failed copy is dropped.
    """
    require_direct(source, "for a copy")
    sizes = _readable_sizes(source, how)
    total = sum(size["bytes"] + size["index_bytes"] for size in sizes.values())
    if how.method == "whole" and total > how.max_bytes:
        raise TargetRefused(
            f"{source.name}: {total / 1e6:,.0f} MB; expected at most {how.max_bytes / 1e6:,.0f} MB for a whole copy "
            "(copy_limit_mb), or --way sample"
        )
    if not sizes:
        raise ServerError(f"{source.name}: no visible table; expected at least one table to copy")
    progress(f"copying {source.name} ({how.method}, {total / 1e6:,.0f} MB)")
    try:
        databases.create(server, name)
        missing = _copied(source, server, name, how, progress)
        rows = {table: size["rows"] for table, size in databases.sizes(server, name).items()}
    except BaseException as error:
        with suppress(ServerError):  # if the server is gone, the database is gone too
            databases.drop(server, name)
        if isinstance(error, psycopg.Error | OSError):
            reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            raise ServerError(f"{source.name}: the copy failed: {visible(reason)}") from None
        raise
    tells, cannot = _TELLS[how.method]
    source_rows = {table: size["rows"] for table, size in sizes.items()}
    return Copied(how.method, rows, source_rows, tuple(missing), tells, cannot)


def _readable_sizes(source: External, how: Copying) -> dict[str, Row]:
    """Return rows and bytes by table. Raises TargetRefused naming tables that the role cannot read fully."""
    with databases.connected(source) as connection:
        connection.execute(catalog.get("copy_session").encode())
        _require_readable(source, catalog.rows(connection, "copy_unreadable"), how)
        return {row["table"]: row for row in catalog.rows(connection, "sizes")}


def _require_readable(source: External, relations: Sequence[Row], how: Copying) -> None:
    hidden = [row for row in relations if how.method == "whole" or not row["sequence"]]
    filtered = [row["name"] for row in hidden if row["readable"]]
    unreadable = [row["name"] for row in hidden if not row["readable"]]
    if unreadable:
        named, expected = visible(some(unreadable)), "USAGE on the schema and SELECT on all its tables"
        raise TargetRefused(f"{source.name}: this role cannot read {named}; expected {expected}")
    if filtered:
        named, expected = visible(some(filtered)), "the owner's login, or a role with BYPASSRLS"
        raise TargetRefused(f"{source.name}: row-level security hides rows of {named}; expected {expected}")


def _copied(
    source: External, server: EmbeddedServer, name: str, how: Copying, progress: Callable[[str], None]
) -> list[str]:
    """Copy by the chosen method; return the objects that could not be copied."""
    missing = _order_of_text(source, server, name)
    if how.method == "whole":
        return missing + transfer(source, server, name)
    missing += transfer(source, server, name, "pre-data")
    with source.connect() as read, server.connect(name) as write:
        read.execute(catalog.get("copy_session").encode())
        write.execute(b"SET search_path = ''")
        sequences = catalog.rows(read, "copy_sequences")
        if how.method == "sample":
            sample_rows(read, write, how.rows, how.seed, progress)
        else:
            missing += generate_rows(read, write, how.rows, how.seed, progress)
        _position(write, sequences)
    return missing + transfer(source, server, name, "post-data", missing)


def _order_of_text(source: External, server: EmbeddedServer, name: str) -> list[str]:
    """Describe a different sort order of text in the copy, which decides which indexes can serve LIKE."""
    query = b"SELECT datcollate AS name FROM pg_database WHERE datname = current_database()"
    with source.connect() as read, server.connect(name) as write:
        theirs, ours = (((c.execute(query).fetchone()) or {"name": ""})["name"] for c in (read, write))
    return [] if theirs == ours else [f"the sort order of text, {visible(theirs)}; the copy uses {ours}"]


def _position(write: Connection, sequences: Sequence[Row]) -> None:
    """Set every sequence to its position in the source, and beyond the values of its column."""
    known = {row["name"] for row in catalog.rows(write, "copy_sequences")}
    for row in (row for row in sequences if row["name"] in known):
        position: sql.Composable = sql.Literal(row["last_value"])
        if row["table"] and row["ascending"]:
            position = sql.SQL("greatest({0}, (SELECT max({2}) FROM {1} WHERE {2} <= {3}))").format(
                position, sql.SQL(row["table"]), sql.SQL(row["column"]), row["maximum"]
            )
        write.execute(sql.SQL("SELECT setval({}::regclass, {}::bigint)").format(row["name"], position))
