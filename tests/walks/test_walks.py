"""A feature is followed through few modules: each walk is traced, and counts those whose functions run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic import make_run
from tracing import traced

from perfkit.analysis.report import Run
from perfkit.explain import documents, plan
from perfkit.explain.capture import ExplainSpec, capture
from perfkit.explain.findings import findings
from perfkit.explain.html import DiffView, PlanView
from perfkit.postgres import databases, embedded
from perfkit.runs.records import Bundle

MOST = 17  # modules outside `base` in a walk


@pytest.fixture
def database(server: embedded.EmbeddedServer) -> Iterator[databases.Database]:
    """A database with a table that only a full scan can search."""
    made = databases.Database(server, "walks_plan")
    databases.create(server, made.name)
    with server.connect(made.name) as connection:
        connection.execute("CREATE TABLE visits AS SELECT n AS id, n % 5000 AS day FROM generate_series(1, 100000) n")
        connection.execute("ANALYZE visits")
    yield made
    databases.drop(server, made.name)


def test_a_plan_from_the_server_to_its_finding_and_its_drawing(database: databases.Database) -> None:
    connections = iter([database.session(), database.session()])  # opened before the walk
    with traced() as modules:
        captured = capture(
            lambda: next(connections), "SELECT * FROM visits WHERE day = 7", options=ExplainSpec(repeats=1)
        )
        found = findings(captured.plan, captured.facts)
        page = PlanView(captured.plan, found).html()
    assert found[0].rule == "sequential-scan" and "CREATE INDEX ON visits (day)" in page
    assert len(modules) <= MOST, " ".join(sorted(modules))


def test_a_plan_is_parsed_once_from_capture_to_report(
    database: databases.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[object] = []
    monkeypatch.setattr(plan, "list_nodes", lambda top: parsed.append(top) or documents.list_nodes(top))
    captured = capture(database.session, "SELECT * FROM visits WHERE day = 7", options=ExplainSpec(repeats=1))
    page = PlanView.of(captured).html() + DiffView(PlanView.of(captured), PlanView.of(captured)).html()
    run = make_run(tmp_path / "run")
    run.add_plan("before", "conflict_check", captured)
    made = len(parsed)
    for report in (Run(Bundle.open(run.path)) for _ in range(2)):
        assert "Seq Scan on visits" in report.plans.html()
        assert report.queries.html() and report.claims.html() and report.decision.html()
    assert "Seq Scan on visits" in page
    assert len(parsed) == made, "a report parses a plan that this process has read"
    assert len({id(top) for top in parsed}) == made, "a plan is parsed twice"
