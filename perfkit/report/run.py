"""One run as a notebook shows it: every property is something to look at, in HTML or in text."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit.analysis import analyse
from perfkit.analysis.sentences import complete_blocks
from perfkit.bundle import Bundle, Round, reading, write_atomically
from perfkit.display import claims, database, decision, method, tables
from perfkit.display.html import Block, OpenedPage
from perfkit.display.subject import Subject
from perfkit.display.table import Table
from perfkit.errors import BundleError
from perfkit.report import files
from perfkit.report.render import LOAD, NOTEBOOK, page_of

if TYPE_CHECKING:
    from pandas import DataFrame


class Run(OpenedPage):
    """A run from its bundle, analysed; nothing here measures or writes."""

    def __init__(self, bundle: Bundle) -> None:
        """Analyse an open bundle. Raises BundleError where a file is damaged."""
        self.bundle = bundle
        self.analysis = analyse(bundle)
        self.subject = Subject(bundle, self.analysis)

    @cached_property
    def rounds(self) -> list[Round]:
        """Every round of the run."""
        return list(self.bundle.rounds())

    def render(self) -> Path:
        """Write report.html and what belongs beside it into the run's folder; returns the page. Raises BundleError."""
        return render(self.bundle.path)

    def frame(self) -> DataFrame:
        """Every request of the run, one row each, with its block, scenario and arm; times in ns."""
        from pandas import DataFrame, concat  # half a second that rendering does not need

        frames = [DataFrame(dict(r.columns)).assign(block=r.block, scenario=r.scenario, arm=r.arm) for r in self.rounds]
        return concat(frames, ignore_index=True) if frames else DataFrame()

    @property
    def decision(self) -> Block:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE with its numbers."""
        return decision.decision(self.subject)

    @property
    def weaknesses(self) -> Block:
        """What weakens the result."""
        return decision.weaknesses(self.subject)

    @property
    def levels(self) -> Table:
        """Before and after by load level."""
        return tables.levels(self.subject)

    @property
    def thresholds(self) -> Table:
        """Every rule on every arm."""
        return tables.thresholds(self.subject)

    @property
    def checks(self) -> Table:
        """Functional checks."""
        return tables.checks(self.subject)

    @property
    def claims(self) -> Block:
        """What was claimed beforehand beside what was measured, with its title; nothing without claims."""
        return claims.claims(self.subject)

    @property
    def queries(self) -> Block:
        """Queries with their change of plan and buffers."""
        return database.queries(self.subject)

    @property
    def index_costs(self) -> Table:
        """What the indexes cost."""
        return database.index_costs(self.subject)

    @property
    def index_lab(self) -> Block:
        """Which of the indexes earn their keep."""
        return database.index_lab(self.subject)

    @property
    def ecdf(self) -> Block:
        """Distribution of response times by load level."""
        from perfkit.report import charts  # matplotlib takes a second to import

        return charts.ecdf(self.subject, self.rounds)

    @property
    def rounds_over_time(self) -> Block:
        """Each round's median in the order of rounds."""
        from perfkit.report import charts

        return charts.rounds_over_time(self.subject, self.rounds)

    @property
    def plans(self) -> Block:
        """Plans, folded."""
        return database.plans(self.subject)

    @property
    def errors(self) -> Table:
        """Unexpected outcomes."""
        return tables.errors(self.subject)

    @property
    def method(self) -> Block:
        """How and on what it was measured."""
        return method.method(self.subject)

    @property
    def reproduce(self) -> Block:
        """The command that measures it again."""
        return method.reproduce(self.subject)

    def __repr__(self) -> str:
        run, path = self.bundle.run, self.bundle.path
        planned = run["parameters"]["blocks"]
        return f"{run['title']}: {run['status']}, {complete_blocks(run)} of {planned} blocks, in {path}"


def render(bundle: Path, out: Path | None = None, *, keep_notebook: Path | None = None) -> Path:
    """Write report.html, verdict.json, summary.md and samples.csv into `out`, by default the bundle itself.

    The page of one arm, compared with nothing, is load.html.
    The same bundle gives the same bytes. A run that did not end is rendered and marked as unfinished.
    Raises BundleError for a bundle that cannot be read or a folder that cannot be written.
    """
    run = Run(Bundle.open(bundle))
    folder = out or bundle
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be created ({error.strerror}); expected a writable folder") from None
    with reading(bundle):
        written = {
            "verdict.json": files.verdict(run.subject),
            "summary.md": files.summary(run.subject),
            "samples.csv": files.samples(run.rounds),
        }
    for name, text in written.items():
        write_atomically(folder / name, text)
    title = f"{run.subject.decision}: {run.analysis.title}"
    notebook, name = (LOAD, "load.html") if run.subject.alone else (NOTEBOOK, "report.html")
    return page_of(notebook, {"bundle": str(bundle.resolve())}, folder / name, title, keep_notebook)
