"""pg_dump from the source, pg_restore into perfkit's server: never psql, for a dump is another's text."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from perfkit.errors import ServerError
from perfkit.postgres.embedded import Server
from perfkit.postgres.external import External
from perfkit.process import spawn, stop

_PLAIN = ("--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions", "--no-security-labels")
_FAILED = re.compile(r"could not execute query: ERROR:\s+(.*?)\nCommand was: (.*?)(?=\npg_restore:|\Z)", re.DOTALL)
_EXTENSION = re.compile(r"^\d+; \d+ \d+ (?:EXTENSION - |COMMENT - EXTENSION )(\S+)", re.MULTILINE)


def transfer(source: External, server: Server, name: str, section: str = "") -> list[str]:
    """Copy everything, or one section (pre-data, post-data); returns what could not be brought along.

    Raises ServerError with the programs' words, also where a table or its rows would be missing.
    """
    with tempfile.TemporaryDirectory(prefix="perfkit-copy-") as folder:
        archive = Path(folder) / "dump"
        sections = [f"--section={section}"] if section else []
        _run(
            [
                *(str(server.bin_dir / "pg_dump"), "--format=custom", "--compress=0", f"--file={archive}"),
                *(*_PLAIN, "--lock-wait-timeout=5s", *sections, f"--dbname={source.conninfo()}"),
            ],
            _with_tls(),
        )
        wanted = Path(folder) / "list"
        lines, lacking = _available(server, archive)
        wanted.write_text(lines, encoding="utf-8")
        said = _run(
            [
                *(
                    str(server.bin_dir / "pg_restore"),
                    "--no-owner",
                    "--no-privileges",
                    f"--use-list={wanted}",
                ),
                *(f"--dbname={server.conninfo(name)}", str(archive)),
            ],
            may_fail=True,
        )
    return lacking + _failures(said)


def _available(server: Server, archive: Path) -> tuple[str, list[str]]:
    """The archive's contents without extensions that the server lacks, and these."""
    listed = _run([str(server.bin_dir / "pg_restore"), "--list", str(archive)])
    with server.connect() as connection:
        known = {row["name"] for row in connection.execute("SELECT name FROM pg_available_extensions")}
    lacking = sorted(set(_EXTENSION.findall(listed)) - known)
    kept = [line for line in listed.splitlines() if not _names(line, lacking)]
    return "\n".join(kept) + "\n", [f"extension {name}, and what needs it" for name in lacking]


def _names(line: str, extensions: list[str]) -> bool:
    found = _EXTENSION.match(line)
    return found is not None and found[1] in extensions


def _failures(said: str) -> list[str]:
    """What pg_restore could not do, one line each. Raises ServerError where that loses a table."""
    missing = []
    for words, command in _FAILED.findall(said):
        first = " ".join(command.split())[:100]
        if words.endswith("already exists") or "unrecognized configuration parameter" in words:
            continue
        if re.match(r"CREATE (UNLOGGED )?TABLE|COPY ", command):
            raise ServerError(f"the copy lacks a table: {first}: {words}")
        missing.append(f"{first} ({words})")
    return missing


def _with_tls() -> dict[str, str]:
    """The environment in which the embedded programs can encrypt: with psycopg's libpq in place of theirs."""
    found = find_spec("psycopg_binary")
    if sys.platform != "linux" or found is None or found.origin is None:
        return dict(os.environ)
    libraries = Path(found.origin).parents[1] / "psycopg_binary.libs"
    preload = next((str(path) for path in sorted(libraries.glob("libpq-*.so*"))), "")
    return {**os.environ, **({"LD_PRELOAD": preload} if preload else {})}


def _run(args: list[str], env: dict[str, str] | None = None, *, may_fail: bool = False) -> str:
    """A program's output, or with `may_fail` its messages. Raises ServerError with its last words."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = spawn(args, env=env, stdout=out, stderr=errors)
        try:
            code = process.wait()
        except BaseException:
            stop(process)
            raise
        said = [(file.seek(0), file.read().decode("utf-8", "replace"))[1] for file in (out, errors)]
    if code and not may_fail:
        words = said[1].strip().splitlines()
        raise ServerError(f"{Path(args[0]).name}: {words[0] if words else 'it ended without a word'}")
    return said[1] if may_fail else said[0]
