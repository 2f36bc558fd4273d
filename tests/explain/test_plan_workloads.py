"""Plans of whole workloads: the booking system and the wholesaler's ten questions, before and after indexes."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from perfkit import config
from perfkit.app import session as query
from perfkit.app.evidence import Explained
from perfkit.app.session import Session
from perfkit.app.specs import ConnectSpec
from perfkit.explain.comparison import diff, fingerprint, typical_parameters
from perfkit.explain.findings import Severity, findings
from perfkit.explain.findings.model import FindingLimits
from perfkit.runs import selection

TPCH = Path("docs/examples/tpch/perfkit.toml")


class Workload(NamedTuple):
    """Every query of a configuration explained in one of its arms."""

    session: Session
    settings: config.Config

    def explained(self) -> dict[str, Explained]:
        place = self.session.database
        found = {name: selection.rows(name, source, place, "1") for name, source in self.settings.parameters.items()}
        plans = {}
        for each in self.settings.query:
            text, rows = each.file.read_text(), found[each.parameters or ""][:20]
            typical = typical_parameters(place.session, text, rows)
            plans[each.name] = self.session.explain(text, typical, analyze=True)
        return plans


def workload(path: Path | None, scale: str, arm: str, home: Path) -> Iterator[dict[str, Explained]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFKIT_HOME", str(home))
        with query.open_generated(ConnectSpec(config=path or "", scale=scale, arm=arm), lambda line: None) as session:
            yield Workload(session, config.load(path)).explained()


@pytest.fixture(scope="module")
def before(server_home: Path) -> Iterator[dict[str, Explained]]:
    yield from workload(None, "small", "before", server_home)


@pytest.fixture(scope="module")
def after(server_home: Path) -> Iterator[dict[str, Explained]]:
    yield from workload(None, "small", "after-index", server_home)


@pytest.fixture(scope="module")
def questions(server_home: Path) -> Iterator[dict[str, Explained]]:
    yield from workload(TPCH, "small", "", server_home)


def rules(found: Explained) -> set[str]:
    """What is found, however fast the machine is."""
    return {finding.rule for finding in findings(found.plan, found.capture.facts, FindingLimits(worth_ms=0.0))}


def test_the_booking_systems_slow_queries_are_named_with_the_index_that_they_lack(
    before: dict[str, Explained],
) -> None:
    for name in ("conflict_check", "upcoming_for_contact", "clinic_day"):
        (found,) = [finding for finding in before[name].findings if finding.rule == "sequential-scan"]
        assert found.sql.startswith("CREATE INDEX ON appointments ("), name
        assert found.text.startswith("Full scan of appointments: 50,000 rows"), name
    conflict = next(f for f in before["conflict_check"].findings if f.rule == "sequential-scan")
    assert {"contact_id", "org_id"} < set(conflict.sql.partition("(")[2].rstrip(")").split(", "))


def test_with_the_seven_indexes_nothing_grave_is_left(after: dict[str, Explained]) -> None:
    for name, found in after.items():
        assert not [f for f in found.findings if f.severity is not Severity.LOW], (name, found.findings)
        assert "sequential-scan" not in rules(found), name


def test_what_the_indexes_changed_is_said_for_every_query(
    before: dict[str, Explained], after: dict[str, Explained]
) -> None:
    for name in before:
        changed = diff(before[name].plan, after[name].plan)
        assert "Seq Scan on appointments -> " in changed.sentence, name
        assert changed.after.buffers < changed.before.buffers, name


def test_the_wholesalers_questions_add_up_to_their_roots(questions: dict[str, Explained]) -> None:
    assert len(questions) == 10
    for name, found in questions.items():
        plan = found.plan
        whole = (plan.root.inclusive_ms or 0) + plan.outside_ms
        assert sum(node.exclusive_ms or 0 for node in plan.nodes) == pytest.approx(whole, rel=0.01), name
        assert all((node.exclusive_ms or 0) >= 0 and node.own_pages >= 0 for node in plan.nodes), name
        assert sum(node.own_pages for node in plan.nodes) == plan.buffers, name
        assert fingerprint(found.capture.first) == fingerprint(plan), name


def test_a_lookup_without_its_index_is_found_and_a_summary_of_nearly_everything_is_not(
    questions: dict[str, Explained],
) -> None:
    for name in ("customer_orders", "part_history"):
        assert "sequential-scan" in rules(questions[name]), name
    assert "sequential-scan" not in rules(questions["pricing_summary"])
