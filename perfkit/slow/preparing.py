"""A statement prepared on a server, to learn the types of its parameters; what the server misses in it is mended."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from perfkit.errors import PlanError
from perfkit.explain.capture import session
from perfkit.postgres import catalog
from perfkit.postgres.extended import send
from perfkit.postgres.place import Database
from perfkit.slow import mending
from perfkit.slow.placing import placeholders
from perfkit.text import first_line

PREPARE_TIMEOUT_S = 10.0
_PREPARE = "PREPARE perfkit_types AS "


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a parameter, as pg_type has it; `element` of an array is that of what is in it."""

    number: int
    oid: int
    type: str
    category: str
    element: int
    element_category: str
    label: str | None


def prepared(place: Database, text: str) -> str:
    """A statement that can be prepared, from one whose constants were replaced by `$1`, `$2`, ...

    Where the server cannot tell a type without the constant, it is an integer for an operator and text elsewhere; one
    constant that got several numbers is one again. Raises PlanError in one line.
    """
    text = mending.preparable(text)
    with session(place.session, PREPARE_TIMEOUT_S) as connection:
        for _ in range(1 + len(placeholders(text))):
            connection.execute("SAVEPOINT perfkit_prepared")
            try:
                parameter_types(connection, text)
                break
            except psycopg.errors.ProgrammingError as error:
                if (mended := _mended(text, error)) == text:
                    raise
                text = mended
                connection.execute("ROLLBACK TO SAVEPOINT perfkit_prepared")
    return text


def parameter_types(connection: psycopg.Connection[Any], text: str) -> dict[int, Type]:
    """By its number, a parameter's type, as the server tells it. Raises PlanError, psycopg.Error."""
    try:
        send(connection.cursor(), f"{_PREPARE}{text}")
    except psycopg.errors.SyntaxError as error:
        expected = "its values written out"
        if "at end of input" in str(error) or text.endswith(("…", "...")):
            expected = "the whole statement: this text ends in the middle"
        raise PlanError(f"{first_line(error)}; expected {expected}") from None
    cursor = connection.cursor(row_factory=dict_row).execute(catalog.get("example_types").encode())
    found = {row["number"]: Type(**row) for row in cursor}
    connection.execute("DEALLOCATE perfkit_types")
    return found


def _mended(text: str, error: psycopg.Error) -> str:
    """A statement with what the server missed in it, as far as that can be told."""
    if isinstance(error, psycopg.errors.AmbiguousFunction):
        return mending.cast(text, int(error.diag.statement_position or 0) - len(_PREPARE), "integer")
    if isinstance(error, psycopg.errors.IndeterminateDatatype) and (found := re.search(r"\$(\d+)", str(error))):
        return mending.cast_number(text, int(found[1]), "text")
    return mending.unified(text) if isinstance(error, psycopg.errors.GroupingError) else text
