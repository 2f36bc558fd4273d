"""What was done to a target that perfkit did not start: statements and times, never data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from perfkit.errors import BundleError
from perfkit.postgres.extended import Extended
from perfkit.postgres.limits import limited


class Audit:
    """`audit.jsonl`, one JSON object a line: a statement (`n`) before it is sent, and its end (`done`) after.

    Without a path, nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._numbers = path, count(1)

    @contextmanager
    def noted(self, target: str, statement: str) -> Iterator[None]:
        """A statement as it is sent, without its parameters' values; then how long it took, and how it failed."""
        number, start, error = next(self._numbers), perf_counter(), ""
        self._write({"n": number, "target": target, "statement": statement})
        try:
            yield
        except BaseException as failure:
            error = getattr(failure, "sqlstate", None) or type(failure).__name__
            raise
        finally:
            self._write({"done": number, "target": target, "seconds": round(perf_counter() - start, 4), "error": error})

    def load(
        self, target: str, scenario: str, arm: str, statements: Sequence[str], requests: int | None, seconds: float
    ) -> None:
        """A round of load: what was sent, how often, and how long the round took."""
        what = {"scenario": scenario, "arm": arm, "statements": list(statements), "requests": requests}
        self._write({"target": target, "load": what, "seconds": round(seconds, 4)})

    def _write(self, entry: dict[str, Any]) -> None:
        """Append and flush. Raises BundleError: what cannot be recorded must not go on."""
        if self.path is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": at, **{k: v for k, v in entry.items() if v != ""}}) + "\n")
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be written ({error.strerror}); the run ends here") from None


def audited(audit: Audit, target: str) -> type[psycopg.Cursor[dict[str, Any]]]:
    """A cursor class whose statements are all noted; its rows are dictionaries."""

    class Noted(Extended[dict[str, Any]]):
        def __init__(self, connection: Any, *, row_factory: Any = None) -> None:
            super().__init__(connection, row_factory=row_factory or dict_row)

        def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
            with audit.noted(target, _text(query)), limited(self.connection):
                return super().execute(query, params, **options)

        def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
            with audit.noted(target, _text(query)), limited(self.connection):
                super().executemany(query, params_seq, **options)

        def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[dict[str, Any]]:
            with audit.noted(target, _text(query)), limited(self.connection):
                yield from super().stream(query, params, **options)

        @contextmanager
        def copy(self, statement: Any, params: Any = None, **options: Any) -> Iterator[psycopg.Copy]:
            with (
                audit.noted(target, _text(statement)),
                limited(self.connection),
                super().copy(statement, params, **options) as copy,
            ):
                yield copy

    return Noted


def _text(query: Any) -> str:
    if isinstance(query, sql.Composable):
        return query.as_string()
    return query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)
