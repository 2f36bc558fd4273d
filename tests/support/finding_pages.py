"""The pages of the rules in docs/findings, and their SQL run on real servers."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from scripts import run_all

from perfkit.base.resources import CHECKOUT
from perfkit.explain.capture import Capture, ExplainSpec, capture
from perfkit.explain.findings.model import FindingLimits
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

PAGES = sorted(path for path in (CHECKOUT / "docs" / "findings").glob("*.md") if path.name != "README.md")


class Page:
    """The SQL blocks of a page: ```sql setup, found, cure, silent; statements that only set something come first.

    A page that `needs` what the embedded servers lack is tested elsewhere, on a server that has it.
    """

    def __init__(self, path: Path) -> None:
        self.rule = path.stem
        blocks = re.findall(r"^```sql (\w+)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        self.blocks: dict[str, list[str]] = {}
        for kind, text in blocks:
            self.blocks.setdefault(kind, []).append(text)
        pairs = [(one, other) for (_, one), (kind, other) in pairwise(blocks) if kind == "rewritten"]
        self.rewritten = {one.strip().rstrip(";"): other.strip().rstrip(";") for one, other in pairs}

    def statements(self, kind: str) -> list[str]:
        return [text.strip().rstrip(";") for text in self.blocks.get(kind, [])]


@contextmanager
def database(server: EmbeddedServer, page: Page) -> Iterator[str]:
    """A database with the page's tables."""
    name = f"finding_{page.rule.replace('-', '_')}"
    databases.create(server, name)
    try:
        with databases.connected(server, name) as connection:
            for text in page.blocks.get("setup", []):
                run_all(connection, text.encode())
                connection.execute("SELECT pg_stat_force_next_flush()")  # or ANALYZE comes before what it is for
        yield name
    finally:
        databases.drop(server, name)


def explained(server: EmbeddedServer, name: str, sql: str, more: Sequence[str] = ()) -> Capture:
    """A statement's plan; `SET ...;` lines before it hold for its session, and so do `more` after those."""
    *settings, statement = [part.strip() for part in re.split(r";\s*\n", sql)]
    settings += more

    def connect() -> psycopg.Connection[Any]:
        connection = server.connect(name)
        for setting in settings:
            run_all(connection, setting.encode())
        return connection

    return capture(connect, statement, None, ExplainSpec(writes=True))


# A machine that is many times as fast finds the same.
FAST = FindingLimits(worth_ms=0.1, jit_ms=0.5, trigger_call_ms=0.1, planning_ms=0.5)
