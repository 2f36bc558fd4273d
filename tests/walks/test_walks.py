"""A feature is followed through few modules: each walk is traced, and counts those whose functions run."""

import psycopg
import pytest
from tracing import traced

from perfkit.explain.capture import ExplainSpec, capture
from perfkit.explain.findings import findings
from perfkit.explain.html import PlanView
from perfkit.postgres import databases, embedded

MOST = 12  # modules outside `base` in a walk


@pytest.fixture
def database(server: embedded.EmbeddedServer):
    """A database with a table that only a full scan can search."""
    databases.create(server, "walks_plan")
    with server.connect("walks_plan") as connection:
        connection.execute("CREATE TABLE visits AS SELECT n AS id, n % 5000 AS day FROM generate_series(1, 100000) n")
        connection.execute("ANALYZE visits")
    yield databases.Database(server, "walks_plan")
    databases.drop(server, "walks_plan")


def test_a_plan_from_the_server_to_its_finding_and_its_drawing(database: databases.Database) -> None:
    def connect() -> psycopg.Connection[dict[str, object]]:
        return database.server.connect(database.name)

    with traced() as modules:
        captured = capture(connect, "SELECT * FROM visits WHERE day = 7", options=ExplainSpec(repeats=1))
        found = findings(captured.plan, captured.facts)
        page = PlanView(captured.plan, found).html()
    assert found[0].rule == "sequential-scan" and "CREATE INDEX ON visits (day)" in page
    assert len(modules) <= MOST, sorted(modules)
