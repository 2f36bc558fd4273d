"""How far the build of an index is, as a second connection sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

import psycopg

from perfkit.errors import PerfkitError
from perfkit.postgres import catalog
from perfkit.postgres.site import Server

_LOOK_S = 0.25  # between two looks


@contextmanager
def watched(site: Server, database: str, pid: int, label: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say how far the build of the process `pid` is; where no second connection is to be had, nothing."""
    ended = Event()

    def watch() -> None:
        with suppress(psycopg.Error, PerfkitError), site.connect(database) as connection:
            while not ended.wait(_LOOK_S):
                row = connection.execute(catalog.get("build_progress").encode(), {"pid": pid}).fetchone()
                if row and not ended.is_set():
                    say(f"{label}: {_words(row)}")

    thread = Thread(target=watch, name="perfkit-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2.0)


def _words(row: dict[str, Any]) -> str:
    """A line of pg_stat_progress_create_index as a person reads it."""
    for unit in ("blocks", "tuples"):
        if total := row[f"{unit}_total"]:
            return f"{row['phase']}, {100 * row[f'{unit}_done'] // total} % of {unit}"
    return f"{row['phase']}, process {row['waits_for']}" if row["waits_for"] else str(row["phase"])
