"""A database owner's permission to change things in it, kept in the database itself.

A schema `perfkit_allowed` whose comment names what is allowed, in which database of which cluster and until
when: a restored dump, a clone or a copy carries the schema but not the permission.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from perfkit.errors import TargetRefused, UsageError
from perfkit.postgres import catalog

SCHEMA = "perfkit_allowed"
KINDS = frozenset({"writes", "ddl"})


def permissions(connection: psycopg.Connection[dict[str, Any]]) -> frozenset[str]:
    """What the owner allowed here and now, of "writes" and "ddl"."""
    row = connection.execute(catalog.get("marker").encode()).fetchone()
    if not row or not row["by_owner"]:
        return frozenset()
    try:
        said = json.loads(row["comment"] or "")
        here = (row["database"], cluster(connection, row["identifiable"]))
        if (
            "" in here
            or (said["database"], said["system"]) != here
            or date.fromisoformat(said["until"]) < datetime.now(UTC).date()
        ):
            return frozenset()
        return KINDS & frozenset(said["permissions"])
    except (ValueError, KeyError, TypeError):
        return frozenset()


def cluster(connection: psycopg.Connection[dict[str, Any]], identifiable: bool) -> str:
    """The identity of the cluster; "" where this role may not see it."""
    row = connection.execute(catalog.get("cluster").encode()).fetchone() if identifiable else None
    return str(row["system"]) if row else ""


def grant_sql(connection: psycopg.Connection[dict[str, Any]], kinds: Collection[str], days: int) -> str:
    """The statements with which an owner gives the permission, for `days` from today.

    Raises UsageError, or TargetRefused where the permission could not be told from a copy's.
    """
    if days < 1:
        raise UsageError(f"days = {days}; expected at least 1")
    row = connection.execute(catalog.get("marker_identity").encode()).fetchone() or {}
    until = (datetime.now(UTC).date() + timedelta(days=days)).isoformat()
    if not (system := cluster(connection, row["identifiable"])):
        function = "EXECUTE ON FUNCTION pg_control_system()"
        raise TargetRefused(f"this cluster cannot be told from a copy; expected its owner to run: GRANT {function} ...")
    said = {"permissions": sorted(kinds), "database": row["database"], "system": system, "until": until}
    return (
        sql.SQL("CREATE SCHEMA IF NOT EXISTS {0} AUTHORIZATION {1}; COMMENT ON SCHEMA {0} IS {2}")
        .format(sql.Identifier(SCHEMA), sql.Identifier(row["owner"]), sql.Literal(json.dumps(said)))
        .as_string(connection)
    )


def grant(connection: psycopg.Connection[dict[str, Any]], kinds: Collection[str], days: int) -> str:
    """Give the permission; returns the day until which it holds. Raises TargetRefused with SQL for the owner."""
    statements = grant_sql(connection, kinds, days)
    try:
        with connection.transaction():
            connection.execute(statements.encode())
    except psycopg.Error as error:
        raise TargetRefused(f"{_words(error)}; expected the database's owner to run: {statements}") from None
    if permissions(connection) != frozenset(kinds):
        raise TargetRefused(f"a schema {SCHEMA} of somebody else is in the way; expected it to be dropped")
    return (datetime.now(UTC).date() + timedelta(days=days)).isoformat()


def revoke(connection: psycopg.Connection[dict[str, Any]]) -> None:
    """Take every permission back. Raises TargetRefused."""
    try:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {}").format(sql.Identifier(SCHEMA)))
    except psycopg.Error as error:
        raise TargetRefused(f"{_words(error)}; expected the owner to run: DROP SCHEMA {SCHEMA}") from None


def _words(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error) or type(error).__name__).splitlines()[0]
