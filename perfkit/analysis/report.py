"""A run as a notebook shows it, and the files of its report: page, verdict.json, summary.md, samples.csv."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit.analysis import sections, tables
from perfkit.analysis.claims import JudgedClaim, claims_block, judged, measured, sentence
from perfkit.analysis.results import Comparison
from perfkit.analysis.run_analysis import analyse
from perfkit.analysis.tables import Subject, compared, glance, per_arm
from perfkit.base import units
from perfkit.base.bundle import reading, write_atomically
from perfkit.base.errors import BundleError, visible
from perfkit.base.judgement import MARKS, Outcome
from perfkit.runs.records import Bundle, Round
from perfkit.runs.rounds import samples, samples_csv
from perfkit.show.html import (
    Banner,
    Bullets,
    Cell,
    Column,
    Folded,
    Inline,
    Paragraph,
    Section,
    Table,
    Words,
    markdown,
    stacked,
)
from perfkit.show.render import LOAD, NOTEBOOK, OpenedPage, page_of, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


FORMAT = 1


def verdict(subject: Subject) -> str:
    """Return the decision and its numbers as JSON; times in ms, shares of one, null for a missing number.

    Keys: format, status, decision, arms (decision by arm), headline, reasons, rules, comparisons, error_changes,
    throughputs (shown, not judged), claims (each with its outcome), levels, weaknesses (the caveats' texts),
    cautions (the caveats with kind, text and advice), margin (declared), margin_used, parameters, command.
    """
    analysis = subject.analysis
    content = {
        "format": FORMAT,
        "title": analysis.title,
        "status": subject.run.status,
        "decision": subject.word,
        "arms": {arm: analysis.arm_decisions[arm].decision for arm in subject.after},
        "headline": analysis.headline,
        "reasons": list(analysis.decision.reasons),
        "rules": [asdict(rule) for rule in analysis.decision.rules],
        "comparisons": [asdict(comparison) for comparison in analysis.comparisons],
        "error_changes": [asdict(change) for change in analysis.error_changes],
        "throughputs": [asdict(change) for change in analysis.throughputs],
        "claims": [{**asdict(claim), "outcome": claim.outcome} for claim in _claims(subject)],
        "levels": [asdict(level) for level in analysis.levels],
        "weaknesses": list(analysis.caveat_texts),
        "cautions": [asdict(caveat) for caveat in analysis.caveats],
        "margin": analysis.margin,
        "margin_used": analysis.margin_used,
        "parameters": subject.run.parameters.model_dump(exclude_unset=True),
        "command": subject.run.command,
    }
    return json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def summary(subject: Subject) -> str:
    """Return the decision, its sentence and the table by load level as Markdown."""
    analysis = subject.analysis
    lines = [f"**{subject.decision}** · {markdown(analysis.title)}", "", markdown(analysis.headline), ""]
    if subject.decision not in ("GO", "HOLDS"):
        lines += [*(f"- {markdown(reason)}" for reason in analysis.decision.reasons), ""]
    table = glance(subject)
    if table.rows:
        lines += [markdown(table.caption), "", table.markdown(), "", *_ratios(subject), ""]
    if claims := _claims(subject):
        broken = [claim for claim in claims if claim.outcome == "not held"]
        texts = (f"not held: {claim.text}; measured {measured(claim).text}" for claim in broken)
        lines += [
            f"Expected and measured. {markdown(sentence(claims))}",
            "",
            *(f"- {markdown(line)}" for line in texts),
        ]
        lines += [""] if broken else []
    if analysis.caveats:
        rest = len(analysis.caveats) - GRAVEST
        texts = (f"{caveat.text} {caveat.advice}" for caveat in analysis.caveats[:GRAVEST])
        lines += ["Limitations:", "", *(f"- {markdown(line)}" for line in texts)]
        lines += [*([f"- and {rest} more in the report"] if rest > 0 else []), ""]
    command = visible(subject.run.command).replace("`", "'")
    return "\n".join([*lines, f"`{command}`" if command else "", ""]).rstrip() + "\n"


def _claims(subject: Subject) -> list[JudgedClaim]:
    return judged(subject.run, subject.analysis, subject.bundle)


def _ratios(subject: Subject) -> list[str]:
    """Return a second small table with the p95 of every after arm against before, if there are any."""
    several = len(subject.loads) > len({scenario for scenario, _ in subject.loads})

    def comparison(load: tuple[str, str], arm: str) -> Comparison | None:
        return subject.analysis.comparison(arm, load[0], "p95", load[1])

    table = Table.of(
        "",
        [
            Column("load", lambda load: Cell(subject.label(load[0]), load[1] if several else "")),
            *per_arm(subject.after, lambda load, arm: compared(comparison(load, arm)), numeric=False),
        ],
        [load for load in subject.loads if any(comparison(load, arm) for arm in subject.after)],
    )
    return ["p95 compared with before, 95 % intervals", "", table.markdown()] if table.rows else []


def finite(value: object) -> object:
    """Return a value that JSON can hold: None in place of infinite numbers and NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The decision and the caveats: what people read first.

GRAVEST = 10  # caveats shown; the others are folded
REASONS = 6  # shown in the banner; the table of thresholds has all rules

# any other word has the state "unsure"
_STATES = {"GO": "good", "HOLDS": "good", "NO-GO": "bad", "BROKEN": "bad", "NO BENEFIT": "neutral"}


def decision_block(subject: Subject) -> Section:
    """Return the decision, its sentence, each arm's decision, and the p95 by load level."""
    head = banner(subject.decision, subject.analysis.title, _sentence(subject), _reasons(subject), _meta(subject))
    table = glance(subject)
    arms = Bullets([_arm(subject, arm) for arm in subject.after] if subject.complete else [], "arms")
    return stacked(replace(head, more=[arms]), table if table.rows else None)


def banner(word: str, title: str, sentence: str, reasons: Sequence[str], meta: str) -> Banner:
    """Return a decision with its icon, its sentence and its reasons."""
    state = _STATES.get(word, "unsure")
    icon = "unfinished" if word == "UNFINISHED" else state
    return Banner(state, title, word, sentence, reasons, meta, icon=icon)


def caveats_block(subject: Subject) -> Section:
    """Return the caveats of the result; all but the most serious are folded."""
    lines: list[Words] = [
        [Inline(f"{c.kind}:", "b"), f" {c.text} ", Inline(c.advice, "em")] for c in subject.analysis.caveats
    ]
    first, rest = lines[:GRAVEST], lines[GRAVEST:]
    return stacked(
        Bullets(first, "weak") if lines else Paragraph("perfkit found no limitation."),
        Folded(f"and {len(rest)} more", [Bullets(rest, "weak")]) if rest else None,
    )


def _sentence(subject: Subject) -> str:
    if subject.complete:
        return subject.analysis.headline
    run = subject.run
    how = {"running": "has not finished", "interrupted": "was interrupted", "failed": "failed"}.get(run.status, "")
    done, planned = run.complete_blocks, run.parameters.blocks
    so_far = subject.analysis.headline
    return f"The run {how}: {done} of {planned} blocks are complete. Measured so far: {so_far}"


def _reasons(subject: Subject) -> tuple[str, ...]:
    """Return the reasons against GO; the numbers of a GO are in its sentence and in the tables."""
    return () if subject.decision in ("GO", "HOLDS") else subject.analysis.decision.reasons[:REASONS]


def _arm(subject: Subject, arm: str) -> Words:
    word = subject.analysis.arm_decisions.get(arm, Outcome.UNPROVEN).decision
    state = _STATES.get(word, "unsure")
    return [Inline(f"{MARKS[state]} {word}", "strong", state), " ", Inline(arm, "b"), f" {subject.title(arm)}"]


def _meta(subject: Subject) -> str:
    run = subject.run
    parameters, rows = run.parameters, run.database.rows
    largest = max(rows.items(), key=lambda item: item[1], default=None)
    server, blocks = run.server, run.complete_blocks
    version = server.version or parameters.postgres
    parts = [
        *([f"profile {parameters.profile}"] if parameters.profile else []),
        f"{blocks} block{'' if blocks == 1 else 's'}",
        *([f"scale {parameters.scale}"] if parameters.scale else []),
        *([f"{units.count(largest[1])} rows in {largest[0]}"] if largest else []),
        *([f"PostgreSQL {version} ({server.kind or 'not started'})"] if version else []),
        run.started.replace("T", " ")[:16] + " UTC",
    ]
    return " · ".join(parts)


# A run as a notebook shows it: every property displays as HTML or text. Matplotlib takes a second to import, so only
# what is drawn imports the charts.


def _ecdf(subject: Subject) -> Section:
    """Return the distribution of response times by load level."""
    from perfkit.analysis import charts

    return charts.ecdf_pictures(subject)


def _rounds_over_time(subject: Subject) -> Section:
    """Return each round's median in the order of rounds."""
    from perfkit.analysis import charts

    return charts.round_pictures(subject)


def _latency_over_time(subject: Subject) -> Section:
    """Return every load level's response times in the order of time."""
    from perfkit.analysis import charts

    return charts.latency_pictures(subject)


class Run(OpenedPage):
    """An analysed run, read from its bundle, for a notebook."""

    def __init__(self, bundle: Bundle) -> None:
        """Analyse an open bundle. Raises BundleError if a file is damaged."""
        self.bundle = bundle
        self.analysis = analyse(bundle)
        self.subject = Subject(bundle, self.analysis)

    @property
    def rounds(self) -> list[Round]:
        """Every round of the run."""
        return self.subject.rounds

    def render(self) -> Path:
        """Write report.html and its files into the run's folder and return the page's path. Raises BundleError."""
        return render(self.bundle.path)

    @property
    def samples(self) -> DataFrame:
        """One row per request of the run: its round and arm, times in ms since the round's start, and its outcome."""
        from pandas import DataFrame  # importing pandas takes half a second, which rendering does not need

        return DataFrame(samples(self.subject.rounds))

    @property
    def plot(self) -> RunPlots:
        """The pictures of the run as matplotlib functions, such as `run.plot.ecdf(ax=ax)`."""
        return RunPlots(self.subject)

    decision = shown(decision_block)
    weaknesses = shown(caveats_block)
    levels = shown(tables.levels)
    thresholds = shown(tables.thresholds)
    checks = shown(tables.checks)
    claims = shown(claims_block)
    queries = shown(sections.queries)
    index_costs = shown(sections.index_costs)
    index_lab = shown(sections.index_lab)
    ecdf = shown(_ecdf)
    rounds_over_time = shown(_rounds_over_time)
    plans = shown(sections.plans)
    errors = shown(tables.errors)
    method = shown(sections.method)
    reproduce = shown(sections.reproduce)

    def __repr__(self) -> str:
        run, path = self.bundle.run, self.bundle.path
        planned = run.parameters.blocks
        return f"{run.title}: {run.status}, {run.complete_blocks} of {planned} blocks, in {path}"


class RunPlots:
    """The pictures of a run as matplotlib functions: `run.plot`.

    Each function draws into `ax` and returns it, so that you can change what it drew. Without `ax`, it draws into a
    new figure.
    """

    def __init__(self, subject: Subject) -> None:
        from perfkit.analysis import charts  # matplotlib takes a second to import

        self._charts, self._subject = charts, subject

    def ecdf(self, scenario: str = "", ax: Axes | None = None) -> Axes:
        """Draw the share of requests answered within a time, one line for each arm.

        Parameters
        ----------
        scenario : str, default ""
            Name of the load level, as in `run.levels.frame`; by default, the first.
        ax : matplotlib.axes.Axes, optional
            Axes to draw into; by default, those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes: response time in ms (logarithmic), and share of requests from 0 to 1.

        Raises
        ------
        UsageError
            If the run has no requests of this load level.

        Examples
        --------
        >>> ax = run.plot.ecdf("burst")
        >>> ax.get_xlabel()
        'response time, ms'
        """
        return self._charts.ecdf(self._subject, scenario, ax)

    def rounds(self, scenario: str = "", ax: Axes | None = None) -> Axes:
        """Draw the median of every round in the order of rounds, one line for each arm.

        Parameters
        ----------
        scenario : str, default ""
            Name of the load level, as in `run.levels.frame`; by default, the first.
        ax : matplotlib.axes.Axes, optional
            Axes to draw into; by default, those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes: position of the round, and its median response time in ms (logarithmic).

        Raises
        ------
        UsageError
            If the run has no answered requests of this load level.

        Examples
        --------
        >>> len(run.plot.rounds().get_lines()) == len(run.subject.arms)
        True
        """
        return self._charts.rounds(self._subject, scenario, ax)

    def levels(self, metric: str = "p50", ax: Axes | None = None) -> Axes:
        """Draw a percentile of every load level and arm with its 95 % interval.

        Parameters
        ----------
        metric : {"p50", "p95", "p99"}, default "p50"
            The percentile of response times.
        ax : matplotlib.axes.Axes, optional
            Axes to draw into; by default, those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes: response time in ms (logarithmic), and load levels from top to bottom.

        Raises
        ------
        UsageError
            If the metric is another one, or no load level has enough samples for it.

        Examples
        --------
        >>> [tick.get_text() for tick in run.plot.levels("p50").get_yticklabels()][0]
        'single'
        """
        return self._charts.levels(self._subject, metric, ax)

    def latency(self, scenario: str = "", arm: str = "", ax: Axes | None = None) -> Axes:
        """Draw the response time of each request over time, with percentiles of stretches and lost requests.

        Parameters
        ----------
        scenario : str, default ""
            Name of the load level, as in `run.levels.frame`; by default, the first.
        arm : str, default ""
            Name of the arm; by default, the first.
        ax : matplotlib.axes.Axes, optional
            Axes to draw into; by default, those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes: seconds since the round began, or requests in their order, and response time in ms
            (logarithmic).

        Raises
        ------
        UsageError
            If the run has no requests of this load level and arm.

        Examples
        --------
        >>> run.plot.latency("burst", "before").get_yscale()
        'log'
        """
        return self._charts.latency(self._subject, scenario, arm, ax)


class LoadRun(Run):
    """A run of one arm, without a comparison, with what only load tests need, for a notebook."""

    levels = shown(sections.load_levels)
    parts = shown(sections.parts)
    capacity = shown(sections.capacity)
    health = shown(tables.health)
    latency_over_time = shown(_latency_over_time)


def render(bundle: Path, out: Path | None = None, *, keep_notebook: Path | None = None) -> Path:
    """Write report.html, verdict.json, summary.md and samples.csv into `out` (default: the bundle); return the page.

    The page of a single arm is load.html. The same bundle gives the same bytes. An unfinished run is rendered and
    marked as such. Raises BundleError if the bundle cannot be read or the folder cannot be written.
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
            "samples.csv": samples_csv(run.subject.rounds),
        }
    for name, text in written.items():
        write_atomically(folder / name, text)
    title = f"{run.subject.decision}: {run.analysis.title}"
    notebook, name = (LOAD, "load.html") if run.subject.run.alone else (NOTEBOOK, "report.html")
    return page_of(notebook, {"bundle": str(bundle.resolve())}, folder / name, title, keep_notebook)
