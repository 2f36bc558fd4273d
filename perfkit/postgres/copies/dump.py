"""pg_dump from the source, pg_restore into perfkit's server: never psql, for a dump is another's text."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE
from typing import Any

from psycopg import sql

from perfkit.errors import ServerError, TargetRefused
from perfkit.postgres import binaries, catalog
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.external import External
from perfkit.postgres.site import Connection
from perfkit.process import spawn, stop
from perfkit.text import visible

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
    return binaries.locate(fitting[0], server.data_dir.parent.parent)


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
