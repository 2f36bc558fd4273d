"""Catalogue queries, one file each under `sql/catalog/`, loaded by name."""

from __future__ import annotations

import functools

from perfkit.config import ROOT


@functools.cache
def get(name: str) -> str:
    """The text of a catalogue query.

    >>> get("scans").splitlines()[0]
    '-- How often each index and each table (sequentially) was scanned so far; `seq:` marks a table.'
    """
    return (ROOT / "sql" / "catalog" / f"{name}.sql").read_text(encoding="utf-8")
