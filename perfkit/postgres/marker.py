"""A database owner's permission to change things in it, kept in the database itself.

A schema `perfkit_allowed` whose comment names what is allowed, in which database of which cluster and until
when: a restored dump, a clone or a copy carries the schema but not the permission.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta

import psycopg
from psycopg import sql

from perfkit.errors import TargetRefused, UsageError
from perfkit.postgres import catalog
from perfkit.postgres.site import Connection
from perfkit.text import first_line

SCHEMA = "perfkit_allowed"
KINDS = frozenset({"writes", "ddl"})


def permissions(connection: Connection) -> frozenset[str]:
    """What the owner allowed here and now, of "writes" and "ddl"."""
    row = catalog.row(connection, "marker")
    if not row["by_owner"]:
        return frozenset()
    try:
        said = json.loads(row["comment"] or "")
        here = (row["database"], cluster(connection, row["identifiable"]))
        valid = (said["database"], said["system"]) == here and date.fromisoformat(said["until"]) >= _today()
        return KINDS & frozenset(said["permissions"]) if valid and "" not in here else frozenset()
    except (ValueError, KeyError, TypeError):
        return frozenset()


def cluster(connection: Connection, identifiable: bool) -> str:
    """The identity of the cluster; "" where this role may not see it."""
    return str(catalog.row(connection, "cluster").get("system", "")) if identifiable else ""


def grant(connection: Connection, kinds: Collection[str], days: int) -> str:
    """Give the permission for `days` from today; returns the day until which it holds.

    Raises UsageError; TargetRefused with SQL for the owner, or where the permission could not be told from a copy's.
    """
    if days < 1:
        raise UsageError(f"days = {days}; expected at least 1")
    row = catalog.row(connection, "marker")
    until = (_today() + timedelta(days=days)).isoformat()
    if not (system := cluster(connection, row["identifiable"])):
        function = "EXECUTE ON FUNCTION pg_control_system()"
        raise TargetRefused(f"this cluster cannot be told from a copy; expected its owner to run: GRANT {function} ...")
    said = {"permissions": sorted(kinds), "database": row["database"], "system": system, "until": until}
    owned = sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}")
    made = owned.format(sql.Identifier(SCHEMA), sql.Identifier(row["owner"]))
    marked = sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(SCHEMA), sql.Literal(json.dumps(said)))
    statements = sql.SQL("; ").join([made, marked]).as_string(connection)
    try:
        with connection.transaction():
            connection.execute(made)
            connection.execute(marked)
    except psycopg.Error as error:
        raise TargetRefused(f"{first_line(error)}; expected the database's owner to run: {statements}") from None
    if permissions(connection) != frozenset(kinds):
        raise TargetRefused(f"a schema {SCHEMA} of somebody else is in the way; expected it to be dropped")
    return until


def revoke(connection: Connection) -> None:
    """Take every permission back. Raises TargetRefused."""
    try:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {}").format(sql.Identifier(SCHEMA)))
    except psycopg.Error as error:
        raise TargetRefused(f"{first_line(error)}; expected the owner to run: DROP SCHEMA {SCHEMA}") from None


def _today() -> date:
    return datetime.now(UTC).date()
