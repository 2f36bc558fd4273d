"""Every rule's page: its examples are found and silent on real servers, and what it advises cures them."""

import re
from pathlib import Path

import pytest
from finding_pages import FAST, PAGES, Page, database, explained
from scripts import run_all

from perfkit.explain.capture import Capture
from perfkit.explain.findings import RULES, Finding, findings
from perfkit.explain.findings.model import FindingLimits
from perfkit.postgres import databases
from perfkit.postgres.embedded import EmbeddedServer


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
