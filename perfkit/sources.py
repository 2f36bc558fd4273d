"""Parameter rows: what a SELECT gives, the lines of a CSV file, or values drawn at random."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from perfkit.config import Generator, ParameterColumn
from perfkit.errors import UsageError
from perfkit.postgres import databases
from perfkit.postgres.place import Database

LIMIT = 5000  # rows of a source that a run uses at most

Row = Mapping[str, Any]


def rows(name: str, source: Path | Generator, place: Database | None, seed: str) -> list[Row]:
    """The rows of one source. Raises UsageError where it gives none."""
    if isinstance(source, Generator):
        return generated(source, f"{seed}/{name}")
    if source.suffix.lower() == ".csv":
        return _lines(source)
    if place is None:
        raise UsageError(f"{source}: a SELECT needs a [database]; expected a CSV file or a generator")
    return list(databases.fetched(place.site, place.name, source, LIMIT))


def generated(source: Generator, seed: str) -> list[Row]:
    """Rows whose values the seed alone decides; dates and UUIDs as text."""
    draw = Random(seed)
    return [{name: _value(column, draw) for name, column in source.columns.items()} for _ in range(source.rows)]


def _value(column: ParameterColumn, draw: Random) -> Any:
    if column.integer:
        return draw.randint(*column.integer)
    if column.number:
        return draw.uniform(*column.number)
    if column.choice:
        return draw.choice(column.choice)
    if column.date:
        first, last = column.date
        return (first + timedelta(days=draw.randint(0, (last - first).days))).isoformat()
    return str(UUID(int=draw.getrandbits(128), version=4))


def _lines(path: Path) -> list[Row]:
    """Every value as text; an empty one is NULL."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, found = reader.fieldnames or [], list(islice(reader, LIMIT))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected CSV in UTF-8 with a header line") from None
    if not found:
        raise UsageError(f"{path}: gave no rows; expected a header line and at least one set of parameters")
    if len(set(header) - {""}) != len(header):
        raise UsageError(f"{path}: a column twice or without a name; expected a name for each in the first line")
    if any(None in row or None in row.values() for row in found):
        raise UsageError(f"{path}: lines of different lengths; expected a value for every column")
    return [{name: value or None for name, value in row.items()} for row in found]
