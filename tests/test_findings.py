"""Every rule's page: its examples are found and silent on real servers, and what it advises cures them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from scripts import run_all

from perfkit.explain.capture import Capture, ExplainSpec, capture
from perfkit.explain.findings import RULES, Finding, findings
from perfkit.explain.findings.model import FindingLimits
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer

PAGES = sorted(path for path in Path("docs/findings").glob("*.md") if path.name != "README.md")


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


def of(rule: str, found: Capture, limits: FindingLimits | None = None) -> list[Finding]:
    return [f for f in findings(found.plan, found.facts, limits) if f.rule == rule]


@pytest.fixture(params=["server", "server16"])
def either(request: pytest.FixtureRequest) -> EmbeddedServer:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("path", [path for path in PAGES if not Page(path).blocks.get("needs")], ids=lambda p: p.stem)
def test_the_examples_of_a_page_are_found_or_silent_and_its_advice_cures_them(
    either: EmbeddedServer, path: Path
) -> None:
    page = Page(path)
    assert page.statements("found") and page.statements("silent"), "a page has a positive and a negative example"
    with database(either, page) as name:
        for sql in page.statements("silent"):
            assert not of(page.rule, explained(either, name, sql)), sql
        for sql in page.statements("found"):
            before = explained(either, name, sql)
            found = of(page.rule, before, FAST)
            assert found, sql
            for finding in found:
                assert finding.text.endswith(".") and "\n" not in finding.text
                assert finding.advice.endswith(".")
            with databases.connected(either, name) as connection:
                cures = [f.sql for f in found if f.sql] or page.statements("cure")
                statements = [statement for cure in cures for statement in cure.split(";\n")]
                session = [s for s in statements if s.startswith(("SET ", "RESET "))]
                for statement in statements:
                    run_all(connection, statement.encode())
            again = page.rewritten.get(sql, sql)
            after = explained(either, name, again, session)
            assert not of(page.rule, after), f"still found after its cure: {sql}"


def test_every_rule_has_its_page_and_every_page_its_rule() -> None:
    rules = {rule.__name__.replace("_", "-") for rule in RULES}
    assert {path.stem for path in PAGES} == rules


def test_the_index_of_pages_names_them_all() -> None:
    listed = re.findall(r"\]\(([\w-]+)\.md\)", Path("docs/findings/README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [path.stem for path in PAGES]
