"""Catalogue queries, one file each under `sql/catalog/`, loaded by name."""

from __future__ import annotations

import functools
from typing import Any

from perfkit.base import resources
from perfkit.postgres.site import Connection


@functools.cache
def get(name: str) -> str:
    """The text of a catalogue query.

    >>> get("settings").splitlines()[0][:2]
    '--'
    """
    return resources.path(f"sql/catalog/{name}.sql").read_text(encoding="utf-8")


def rows(connection: Connection, name: str) -> list[dict[str, Any]]:
    """Every row that a catalogue query gives."""
    return connection.execute(get(name).encode()).fetchall()


def row(connection: Connection, name: str) -> dict[str, Any]:
    """The first row of a catalogue query; an empty one where there is none."""
    return connection.execute(get(name).encode()).fetchone() or {}
