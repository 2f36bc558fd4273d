"""What was done to a target that perfkit did not start: statements and times, never data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from perfkit.errors import BundleError


class Audit:
    """`audit.jsonl`: one JSON object a line, written before anything else happens. Without a path, nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def note(self, target: str, statement: str, seconds: float, error: str = "") -> None:
        """A statement as it was sent, without the values of its parameters, and how long it took."""
        self._write({"target": target, "statement": statement, "seconds": round(seconds, 4), "error": error})

    def load(
        self, target: str, scenario: str, arm: str, statements: Sequence[str], requests: int, seconds: float
    ) -> None:
        """A round of load: what was sent, how often, and how long the round took."""
        what = {"scenario": scenario, "arm": arm, "statements": list(statements), "requests": requests}
        self._write({"target": target, "load": what, "seconds": round(seconds, 4)})

    def _write(self, entry: dict[str, Any]) -> None:
        """Append and flush. Raises BundleError: what cannot be recorded must not go on."""
        if self._path is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": at, **{k: v for k, v in entry.items() if v != ""}}) + "\n")
        except OSError as error:
            raise BundleError(f"{self._path}: cannot be written ({error.strerror}); the run ends here") from None


def audited(audit: Audit, target: str) -> type[psycopg.Cursor[dict[str, Any]]]:
    """A cursor class whose statements are all noted; its rows are dictionaries."""

    class Noted(psycopg.Cursor[dict[str, Any]]):
        def __init__(self, connection: Any, *, row_factory: Any = None) -> None:
            super().__init__(connection, row_factory=row_factory or dict_row)

        def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
            start, error = perf_counter(), ""
            try:
                return super().execute(query, params, **options)
            except psycopg.Error as failure:
                error = failure.sqlstate or type(failure).__name__
                raise
            finally:
                audit.note(target, _text(query), perf_counter() - start, error)

        def copy(self, statement: Any, params: Any = None, **options: Any) -> Any:
            audit.note(target, _text(statement), 0.0)
            return super().copy(statement, params, **options)

    return Noted


def _text(query: Any) -> str:
    if isinstance(query, sql.Composable):
        return query.as_string()
    return query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)
