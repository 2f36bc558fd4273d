"""Removing indexes from a database in use: CONCURRENTLY, trying again where a lock is not to be had."""

from __future__ import annotations

from collections.abc import Sequence
from time import sleep

import psycopg
from psycopg import sql

from perfkit.indexes.build import LOCK_TIMEOUT, places, unhurried, wait_for_locks
from perfkit.postgres.site import Connection, Server

_ATTEMPTS, _PAUSE_S = 5, 0.5


def remove(site: Server, database: str, names: Sequence[str]) -> list[str]:
    """Drop the indexes of these names, in whatever schema, invalid ones too; those that are left, quoted."""
    left = [sql.Identifier(name).as_string() for name in names]
    for _ in range(_ATTEMPTS):
        try:
            with site.connect(database) as connection:
                unhurried(connection, LOCK_TIMEOUT)
                left = places(connection, names)
                for name in left:
                    connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.SQL(name)))
                return []
        except psycopg.Error:
            sleep(_PAUSE_S)
    return left


def clear(site: Server, database: str, index: str, *, lock: str = LOCK_TIMEOUT, wait: str = LOCK_TIMEOUT) -> None:
    """Drop an index, quoted and with its schema, if it is invalid and nobody is building it.

    Waits `lock` for its table and `wait` for transactions on that. Raises psycopg.Error where that is too short.
    """
    asked = """
        SELECT x.indisvalid AS valid, t.relkind IN ('r', 'p') AS lockable,
               quote_ident(n.nspname) || '.' || quote_ident(t.relname) AS "table"
        FROM pg_index x JOIN pg_class t ON t.oid = x.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
        WHERE x.indexrelid = to_regclass(%s::text)
    """
    with site.connect(database) as connection:
        unhurried(connection, lock)
        row = connection.execute(asked, [index]).fetchone()
        if row and row["lockable"]:
            probe(connection, row["table"])  # a build that is under way holds the lock, and may make it valid
            row = connection.execute(asked, [index]).fetchone()
        if row and not row["valid"]:
            wait_for_locks(connection, wait)
            connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}".encode())


def probe(connection: Connection, table: str) -> None:
    """Get the lock on a table that CONCURRENTLY needs, and give it back. Raises psycopg.Error."""
    with connection.transaction(force_rollback=True):
        connection.execute(f"LOCK TABLE ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE".encode())
