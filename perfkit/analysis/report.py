"""A run as a notebook shows it, and the files of its report: page, verdict.json, summary.md, samples.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfkit.analysis import sections, tables
from perfkit.analysis.caveats import Caveat
from perfkit.analysis.claims import JudgedClaim, claims_block, judged, measured, sentence
from perfkit.analysis.run_analysis import analyse
from perfkit.analysis.tables import Subject, compared, glance
from perfkit.base import units
from perfkit.base.bundle import reading, write_atomically
from perfkit.base.errors import BundleError, visible
from perfkit.base.judgement import MARKS, Outcome
from perfkit.runs.records import Bundle, Round
from perfkit.show.html import Block, Cell, OpenedPage, Table, escape, folded, headed, listed, markdown
from perfkit.show.render import LOAD, NOTEBOOK, page_of

if TYPE_CHECKING:
    from pandas import DataFrame


FORMAT = 1
_TIMES = ("scheduled", "started", "acquired", "done")


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
        lines += [markdown(table.caption), "", table.to_markdown(), "", *_ratios(subject), ""]
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


def samples(rounds: Iterable[Round]) -> str:
    """Return one CSV line per request of every round; times in ms since the round's first release."""
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


def _claims(subject: Subject) -> list[JudgedClaim]:
    return judged(subject.run, subject.analysis, subject.bundle)


def _ratios(subject: Subject) -> list[str]:
    """Return a second small table with the p95 of every after arm against before, if there are any."""
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
_STROKES = {
    "good": '<path d="M7 12.5l3.5 3.5L17 8.5"/>',
    "bad": '<path d="M8 8l8 8M16 8l-8 8"/>',
    "neutral": '<path d="M8 12h8"/>',
    "unsure": '<path d="M9 9.5a3 3 0 1 1 4.2 2.8c-.8.4-1.2.9-1.2 1.9M12 17.2v.1"/>',
}


def decision_block(subject: Subject) -> Block:
    """Return the decision, its sentence, each arm's decision, and the p95 by load level."""
    table = glance(subject)
    title, texts = subject.analysis.title, (_sentence(subject), _reasons(subject))
    block = banner(subject.decision, title, *texts, _meta(subject), _arms(subject))
    if not table.rows:
        return block
    return Block(block.html + table.to_html(), f"{block.text}\n\n{table.to_text()}")


def banner(word: str, title: str, sentence: str, reasons: Sequence[str], meta: str, more: str = "") -> Block:
    """Return a decision with its icon, its sentence and its reasons; `more` is HTML."""
    state, mark, strokes = _appearance(word)
    icon = (
        '<svg class="icon" width="40" height="40" viewBox="0 0 24 24" aria-hidden="true" fill="none"'
        ' stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round">'
        f'<circle cx="12" cy="12" r="10"/>{strokes}</svg>'
    )
    html = headed(state, title, word, sentence, listed(reasons) + more, meta, icon)
    return Block(html, "\n".join([f"{mark} {word}  {title}", sentence, *(f"- {reason}" for reason in reasons)]))


def _appearance(word: str) -> tuple[str, str, str]:
    """Return the class in the style sheet, the mark in text and the strokes of the icon."""
    if word == "UNFINISHED":
        return "unsure", "…", '<path d="M7 12v.1M12 12v.1M17 12v.1"/>'
    state = _STATES.get(word, "unsure")
    return state, MARKS[state], _STROKES[state]


def caveats_block(subject: Subject) -> Block:
    """Return the caveats of the result; all but the most serious are folded."""
    every = subject.analysis.caveats
    if not every:
        return Block("<p>perfkit found no limitation.</p>", "perfkit found no limitation.")
    first, rest = every[:GRAVEST], every[GRAVEST:]
    html = _list(first) + (folded(f"and {len(rest)} more", _list(rest)) if rest else "")
    return Block(html, "\n".join(f"- {caveat.kind}: {caveat.text} {caveat.advice}" for caveat in every))


def _list(every: Sequence[Caveat]) -> str:
    items = (f"<li><b>{escape(c.kind)}</b> {escape(c.text)} <em>{escape(c.advice)}</em></li>" for c in every)
    return f'<ul class="weak">{"".join(items)}</ul>'


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


def _arms(subject: Subject) -> str:
    if not subject.complete:
        return ""
    lines = []
    for arm in subject.after:
        word = subject.analysis.arm_decisions.get(arm, Outcome.UNPROVEN).decision
        state, mark, _ = _appearance(word)
        lines.append(
            f'<li><strong class="{state}">{mark} {escape(word)}</strong> '
            f"<b>{escape(arm)}</b> {escape(subject.title(arm))}</li>"
        )
    return f'<ul class="arms">{"".join(lines)}</ul>' if lines else ""


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


# A run as a notebook shows it: every property displays as HTML or text.


class Run(OpenedPage):
    """An analysed run, read from its bundle, for a notebook."""

    def __init__(self, bundle: Bundle) -> None:
        """Analyse an open bundle. Raises BundleError if a file is damaged."""
        self.bundle = bundle
        self.analysis = analyse(bundle)
        self.subject = Subject(bundle, self.analysis)

    @cached_property
    def rounds(self) -> list[Round]:
        """Every round of the run."""
        return list(self.bundle.rounds())

    def render(self) -> Path:
        """Write report.html and its files into the run's folder and return the page's path. Raises BundleError."""
        return render(self.bundle.path)

    def frame(self) -> DataFrame:
        """Return one row per request of the run, with its block, scenario and arm; times in ns."""
        from pandas import DataFrame, concat  # importing pandas takes half a second, which rendering does not need

        frames = [DataFrame(dict(r.columns)).assign(block=r.block, scenario=r.scenario, arm=r.arm) for r in self.rounds]
        return concat(frames, ignore_index=True) if frames else DataFrame()

    @property
    def decision(self) -> Block:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE with its numbers."""
        return decision_block(self.subject)

    @property
    def weaknesses(self) -> Block:
        """The limitations of the result."""
        return caveats_block(self.subject)

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
        """Expected and measured values of the claims, with a title; empty without claims."""
        return claims_block(self.subject)

    @property
    def queries(self) -> Block:
        """Queries with the changes of their plans and buffers."""
        return sections.queries(self.subject)

    @property
    def index_costs(self) -> Table:
        """What the indexes cost."""
        return sections.index_costs(self.subject)

    @property
    def index_lab(self) -> Block:
        """What each index is worth, from the index lab."""
        return sections.index_lab(self.subject)

    @property
    def ecdf(self) -> Block:
        """Distribution of response times by load level."""
        from perfkit.analysis import charts  # matplotlib takes a second to import

        return charts.ecdf(self.subject, self.rounds)

    @property
    def rounds_over_time(self) -> Block:
        """Each round's median in the order of rounds."""
        from perfkit.analysis import charts  # matplotlib takes a second to import

        return charts.rounds_over_time(self.subject, self.rounds)

    @property
    def plans(self) -> Block:
        """Plans, folded."""
        return sections.plans(self.subject)

    @property
    def errors(self) -> Table:
        """Unexpected outcomes."""
        return tables.errors(self.subject)

    @property
    def method(self) -> Block:
        """How the run was measured, and on what."""
        return sections.method(self.subject)

    @property
    def reproduce(self) -> Block:
        """The command that repeats the run."""
        return sections.reproduce(self.subject)

    def __repr__(self) -> str:
        run, path = self.bundle.run, self.bundle.path
        planned = run.parameters.blocks
        return f"{run.title}: {run.status}, {run.complete_blocks} of {planned} blocks, in {path}"


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
            "samples.csv": samples(run.rounds),
        }
    for name, text in written.items():
        write_atomically(folder / name, text)
    title = f"{run.subject.decision}: {run.analysis.title}"
    notebook, name = (LOAD, "load.html") if run.subject.alone else (NOTEBOOK, "report.html")
    return page_of(notebook, {"bundle": str(bundle.resolve())}, folder / name, title, keep_notebook)


# One arm under load as a notebook shows it: no comparison, and what only load tests need.


class LoadRun(Run):
    """A run of one arm, read from its bundle, for a notebook."""

    @property
    def levels(self) -> Table:
        """Percentiles and errors by load level."""
        return sections.levels(self.subject)

    @property
    def parts(self) -> Table:
        """The parts of response times: schedule lag, waiting for a connection, service."""
        return sections.parts(self.subject)

    @property
    def capacity(self) -> Block:
        """The highest rate that held, if the run searched for it."""
        return sections.capacity(self.subject)

    @property
    def health(self) -> Table:
        """The state of the client, the server and the machine during the rounds."""
        return tables.health(self.subject, self.rounds)

    @property
    def latency_over_time(self) -> Block:
        """Every load level's response times in the order of time."""
        from perfkit.analysis import charts  # matplotlib takes a second to import

        return charts.latency_over_time(self.subject, self.rounds)
