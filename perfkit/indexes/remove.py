"""Removing indexes by name from a database in use: CONCURRENTLY, trying again where a lock is not to be had."""

from __future__ import annotations

from collections.abc import Sequence
from time import sleep

import psycopg
from psycopg import sql

from perfkit.indexes.build import LOCK_TIMEOUT, places
from perfkit.postgres.site import Site

_ATTEMPTS, _PAUSE_S = 5, 0.5


def remove(site: Site, database: str, names: Sequence[str]) -> list[str]:
    """Drop the indexes of these names, in whatever schema, invalid ones too; those that are left, quoted."""
    left = [sql.Identifier(name).as_string() for name in names]
    for _ in range(_ATTEMPTS):
        try:
            with site.connect(database) as connection:
                connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
                connection.execute("SET statement_timeout = 0")
                left = places(connection, names)
                for name in left:
                    connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.SQL(name)))
                return []
        except psycopg.Error:
            sleep(_PAUSE_S)
    return left
