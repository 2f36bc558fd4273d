"""A feature is followed through few modules: each walk is traced, and counts those whose functions run."""

import asyncio
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import make_run
from tracing import traced

from perfkit.analysis import tables
from perfkit.analysis.report import Run
from perfkit.analysis.run_analysis import analyse, level_of
from perfkit.analysis.tables import Subject
from perfkit.base.bundle import read_record
from perfkit.base.resources import CHECKOUT
from perfkit.base.units import significant
from perfkit.explain import documents, plan
from perfkit.explain.capture import ExplainSpec, capture
from perfkit.explain.findings import findings
from perfkit.explain.html import DiffView, PlanView
from perfkit.indexes.designs import LabRecord
from perfkit.indexes.lab_results import Lab
from perfkit.indexes.lab_tables import IndexLab
from perfkit.load.pool import WorkerPool, http_target
from perfkit.load.samples import SampleBuffer
from perfkit.load.schedule import Batch, Message
from perfkit.load.senders import make
from perfkit.postgres import databases, embedded
from perfkit.runs.experiment import null_service
from perfkit.runs.records import Bundle, Round
from perfkit.runs.rounds import RoundReading

MOST, SAMPLE, LAB = 15, 12, 12  # modules outside `base` in a walk


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


@pytest.mark.process
def test_a_sample_from_its_worker_to_a_cell_of_the_table(tmp_path: Path) -> None:
    """The worker's part runs in this process. What a report concludes beside the cell is not on the sample's way."""
    run, message = make_run(tmp_path / "run"), Message(item="page", method="GET", path="/", json=None, expect=[200])
    analysis = analyse(run)
    with null_service() as url, WorkerPool(1) as pool:
        asyncio.run(answered(url, message))  # what runs on the first import is not part of the walk
        with traced() as modules:
            asyncio.run(answered(url, message))
            load = pool.run(http_target(url, 5), [Batch(((message,),))])
            run.add_round(Round(0, 0, "burst", "before", load.columns, load.health))
            (cell,) = RoundReading.of((r for r in run.rounds() if r.name == "000.burst.before"), run.run).cells.values()
            level = level_of("before", ("burst", "page"), cell)
            table = tables.levels(Subject(run, replace(analysis, levels=(level,), comparisons=())))
    assert cell.outcomes == {"ok": 1} and level.p50 and significant(level.p50.value) in table.text()
    assert len(modules) <= SAMPLE, " ".join(sorted(modules))


async def answered(url: str, message: Message) -> None:
    """Send a request as a worker does."""
    message = message.copy()  # the sender completes it
    sender, samples = make(http_target(url, 5)), SampleBuffer(1, 0)
    await sender.open(1)
    sender.check(message)
    samples.add(message["item"], 0, 0, 0, await sender.send(message))
    await sender.close()
    assert samples.answer()["columns"]["outcome"] == ["ok"]  # type: ignore[index]


def test_an_index_of_a_lab_from_its_rounds_to_the_page(tmp_path: Path) -> None:
    with tarfile.open(CHECKOUT / "tests" / "stored" / "lab.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    record = read_record(tmp_path / "lab.json", LabRecord, "the folder of an index lab", "a lab")
    with traced() as modules:
        page = IndexLab(Lab(tmp_path, record)).verdicts.html()
    assert "idx_organizations_id" in page and "keep" in page
    assert len(modules) <= LAB, " ".join(sorted(modules))
