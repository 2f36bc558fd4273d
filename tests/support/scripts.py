"""Several statements at once, as a test writes them: perfkit's own connections take one."""

from typing import Any

import psycopg


def run_all(connection: psycopg.Connection[Any], text: str | bytes) -> psycopg.Cursor[Any]:
    """Run a text of any number of statements by the simple protocol."""
    return psycopg.Cursor(connection).execute(text)
