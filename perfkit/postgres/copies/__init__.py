"""A private copy of a database of the user's, in a server that perfkit started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import psycopg

from perfkit.errors import ServerError, TargetRefused
from perfkit.postgres import catalog, databases
from perfkit.postgres.copies import dump, generate, sample
from perfkit.postgres.embedded import Server
from perfkit.postgres.external import External

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
    seconds: float
    missing: tuple[str, ...]
    tells: str
    cannot_tell: str


def copy_into(source: External, server: Server, name: str, how: Copying, progress: Callable[[str], None]) -> Copied:
    """Make the database `name` on `server` from `source`. Only reading happens there.

    Raises TargetRefused where it is too large or behind a pooler, ServerError with the servers' words; nothing
    half made is left.
    """
    start = perf_counter()
    if source.pooler:
        raise TargetRefused(f"{source.name}: behind a pooler; expected a direct connection for a copy")
    sizes = databases.sizes(source, source.address.dbname, exact=False)
    total = sum(size["bytes"] + size["index_bytes"] for size in sizes.values())
    if how.method == "whole" and total > how.max_bytes:
        raise TargetRefused(
            f"{source.name}: {total / 1e6:,.0f} MB; expected at most {how.max_bytes / 1e6:,.0f} MB to copy whole "
            "(copy_limit_mb), or --way sample"
        )
    if not sizes:
        raise ServerError(f"{source.name}: no table that can be seen; expected at least one to copy")
    progress(f"copying {source.name} ({how.method}, {total / 1e6:,.0f} MB)")
    databases.create(server, name)
    try:
        missing = _copied(source, server, name, how, progress)
        rows = {table: size["rows"] for table, size in databases.sizes(server, name).items()}
    except BaseException as error:
        databases.drop(server, name)
        if isinstance(error, psycopg.Error):
            raise ServerError(f"{source.name}: the copy failed: {databases.words(error)}") from None
        raise
    tells, cannot = _TELLS[how.method]
    there = {table: size["rows"] for table, size in sizes.items()}
    return Copied(how.method, rows, there, perf_counter() - start, tuple(missing), tells, cannot)


def _copied(source: External, server: Server, name: str, how: Copying, progress: Callable[[str], None]) -> list[str]:
    """Copy by one of the methods; what could not be brought along."""
    if how.method == "whole":
        return dump.transfer(source, server, name)
    missing = dump.transfer(source, server, name, "pre-data")
    with source.connect() as read, server.connect(name) as write:
        write.execute(catalog.get("copy_helpers").encode())
        if how.method == "sample":
            sample.rows(read, write, how.rows, how.seed, progress)
        else:
            missing += generate.rows(read, write, how.rows, how.seed, progress)
        write.execute("DROP FUNCTION pg_temp.pk_uniform(bigint, text)")
    return missing + dump.transfer(source, server, name, "post-data")
