"""A run as a notebook shows it, and the files of its report."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfkit.analysis import claims, sections, tables
from perfkit.analysis import claims as decision
from perfkit.analysis import sections as database
from perfkit.analysis import sections as method
from perfkit.analysis.analysis import analyse
from perfkit.analysis.claims import GRAVEST, Judged, judged, measured, sentence
from perfkit.analysis.results import complete_blocks
from perfkit.analysis.tables import Subject, compared, glance
from perfkit.base.bundle import Bundle, Round, reading, write_atomically
from perfkit.base.errors import BundleError, visible
from perfkit.show.html import Block, Cell, OpenedPage, Table, markdown
from perfkit.show.render import LOAD, NOTEBOOK, page_of

if TYPE_CHECKING:
    from pandas import DataFrame


FORMAT = 1
_TIMES = ("scheduled", "started", "acquired", "done")


def verdict(subject: Subject) -> str:
    """The decision and its numbers as JSON; times in ms, shares of one, null where there is no number.

    Keys: format, status, decision, arms (decision by arm), headline, reasons, rules, comparisons, error_changes,
    throughputs (shown, not judged), claims (each with its outcome), levels, weaknesses,
    cautions (the same with kind and advice), margin (declared), margin_used, parameters, command.
    """
    found = subject.analysis
    said = {
        "format": FORMAT,
        "title": found.title,
        "status": subject.run.get("status"),
        "decision": subject.word,
        "arms": {arm: str(found.arm_decisions.get(arm, "")) for arm in subject.after},
        "headline": found.headline,
        "reasons": list(found.judgement.reasons),
        "rules": [asdict(rule) for rule in found.judgement.rules],
        "comparisons": [asdict(comparison) for comparison in found.comparisons],
        "error_changes": [asdict(change) for change in found.error_changes],
        "throughputs": [asdict(change) for change in found.throughputs],
        "claims": [{**asdict(claim), "outcome": claim.outcome} for claim in _claims(subject)],
        "levels": [asdict(level) for level in found.levels],
        "weaknesses": list(found.weaknesses),
        "cautions": [asdict(caution) for caution in found.cautions],
        "margin": found.margin,
        "margin_used": found.margin_used,
        "parameters": subject.run.get("parameters"),
        "command": subject.run.get("command"),
    }
    return json.dumps(finite(said), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def summary(subject: Subject) -> str:
    """The decision, its sentence and the table by load level as Markdown."""
    found = subject.analysis
    lines = [f"**{subject.decision}** · {markdown(found.title)}", "", markdown(found.headline), ""]
    if subject.decision not in ("GO", "HOLDS"):
        lines += [*(f"- {markdown(reason)}" for reason in found.judgement.reasons), ""]
    table = glance(subject)
    if table.rows:
        lines += [markdown(table.caption), "", table.to_markdown(), "", *_ratios(subject), ""]
    if claims := _claims(subject):
        broken = [claim for claim in claims if claim.outcome == "not held"]
        told = (f"not held: {claim.text}; measured {measured(claim).text}" for claim in broken)
        lines += [f"Expected and measured. {markdown(sentence(claims))}", "", *(f"- {markdown(line)}" for line in told)]
        lines += [""] if broken else []
    if found.cautions:
        rest = len(found.cautions) - GRAVEST
        told = (f"{caution.text} {caution.advice}" for caution in found.cautions[:GRAVEST])
        lines += ["What weakens this:", "", *(f"- {markdown(line)}" for line in told)]
        lines += [*([f"- and {rest} more in the report"] if rest > 0 else []), ""]
    command = visible(subject.run.get("command") or "").replace("`", "'")
    return "\n".join([*lines, f"`{command}`" if command else "", ""]).rstrip() + "\n"


def samples(rounds: Iterable[Round]) -> str:
    """One line per request of every round; times in ms since the round's first release."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "block",
            "position",
            "scenario",
            "arm",
            "item",
            "user",
            "batch",
            "counted",
            *(f"{name}_ms" for name in _TIMES),
            "outcome",
            "detail",
        ]
    )
    for round_ in sorted(rounds, key=lambda r: r.position):
        c = round_.columns
        for i in range(len(c["item"])):
            times = ["" if c[name][i] is None else f"{c[name][i] / 1e6:.6f}" for name in _TIMES]
            writer.writerow(
                [
                    round_.block,
                    round_.position,
                    round_.scenario,
                    round_.arm,
                    c["item"][i],
                    c["user"][i],
                    c["batch"][i],
                    int(c["counted"][i]),
                    *times,
                    c["outcome"][i],
                    c["detail"][i],
                ]
            )
    return out.getvalue()


def _claims(subject: Subject) -> list[Judged]:
    return judged(subject.run, subject.analysis, subject.bundle)


def _ratios(subject: Subject) -> list[str]:
    """p95 of every after arm against before, as a second small table where there are any."""
    several = len(subject.loads) > len({scenario for scenario, _ in subject.loads})
    rows = tuple(
        (Cell(subject.label(scenario), item if several else ""), *map(compared, found))
        for scenario, item in subject.loads
        if any(found := [subject.analysis.comparison(arm, scenario, "p95", item) for arm in subject.after])
    )
    if not rows:
        return []
    return ["p95 compared with before, 95 % intervals", "", Table("", ("load", *subject.after), rows).to_markdown()]


def finite(value: Any) -> Any:
    """What JSON can say of a value: null for a number that is none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# One run as a notebook shows it: every property is something to look at, in HTML or in text.


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
        from perfkit.analysis import charts  # matplotlib takes a second to import

        return charts.ecdf(self.subject, self.rounds)

    @property
    def rounds_over_time(self) -> Block:
        """Each round's median in the order of rounds."""
        from perfkit.analysis import charts

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
            "verdict.json": verdict(run.subject),
            "summary.md": summary(run.subject),
            "samples.csv": samples(run.rounds),
        }
    for name, text in written.items():
        write_atomically(folder / name, text)
    title = f"{run.subject.decision}: {run.analysis.title}"
    notebook, name = (LOAD, "load.html") if run.subject.alone else (NOTEBOOK, "report.html")
    return page_of(notebook, {"bundle": str(bundle.resolve())}, folder / name, title, keep_notebook)


# One arm under load as a notebook shows it: a run without the comparison, and what only load tests ask for.


class LoadRun(Run):
    """A run of one arm from its bundle; nothing here measures or writes."""

    @property
    def levels(self) -> Table:
        """Percentiles and errors by load level."""
        return sections.levels(self.subject)

    @property
    def parts(self) -> Table:
        """What response times are made of: schedule lag, waiting for a connection, service."""
        return sections.parts(self.subject)

    @property
    def capacity(self) -> Block:
        """The highest rate that held, where one was searched for."""
        return sections.capacity(self.subject)

    @property
    def health(self) -> Table:
        """What the client, the server and the machine did meanwhile."""
        return sections.health(self.subject, self.rounds)

    @property
    def latency_over_time(self) -> Block:
        """Every load level's response times in the order of time."""
        from perfkit.analysis import charts  # matplotlib takes a second to import

        return charts.latency_over_time(self.subject, self.rounds)
