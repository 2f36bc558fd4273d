"""A run as a notebook shows it, and the files of its report."""

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
from perfkit.analysis.claims import Judged, claims_block, judged, measured, sentence
from perfkit.analysis.results import complete_blocks
from perfkit.analysis.run_analysis import analyse
from perfkit.analysis.tables import Subject, compared, glance
from perfkit.base import units
from perfkit.base.bundle import Bundle, Round, reading, write_atomically
from perfkit.base.errors import BundleError, visible
from perfkit.show.html import MARKS, Block, Cell, OpenedPage, Table, escape, folded, headed, listed, markdown
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


# The decision, and what weakens it: the first things anybody reads.

GRAVEST = 10  # weaknesses shown; the rest is folded
REASONS = 6  # shown in the banner; every rule is in the table of thresholds

# any other word is unsure
_STATES = {"GO": "good", "HOLDS": "good", "NO-GO": "bad", "BROKEN": "bad", "NO BENEFIT": "neutral"}
_STROKES = {
    "good": '<path d="M7 12.5l3.5 3.5L17 8.5"/>',
    "bad": '<path d="M8 8l8 8M16 8l-8 8"/>',
    "neutral": '<path d="M8 12h8"/>',
    "unsure": '<path d="M9 9.5a3 3 0 1 1 4.2 2.8c-.8.4-1.2.9-1.2 1.9M12 17.2v.1"/>',
}


def decision_block(subject: Subject) -> Block:
    """The decision in words, one sentence of numbers, each arm's own, and p95 at a glance."""
    table = glance(subject)
    title, said = subject.analysis.title, (_sentence(subject), _reasons(subject))
    found = banner(subject.decision, title, *said, _meta(subject), _arms(subject))
    if not table.rows:
        return found
    return Block(found.html + table.to_html(), f"{found.text}\n\n{table.to_text()}")


def banner(word: str, title: str, sentence: str, reasons: Sequence[str], meta: str, more: str = "") -> Block:
    """A decision with its icon, its sentence and its reasons; `more` is HTML."""
    state, mark, strokes = _look(word)
    icon = (
        '<svg class="icon" width="40" height="40" viewBox="0 0 24 24" aria-hidden="true" fill="none"'
        ' stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round">'
        f'<circle cx="12" cy="12" r="10"/>{strokes}</svg>'
    )
    html = headed(state, title, word, sentence, listed(reasons) + more, meta, icon)
    return Block(html, "\n".join([f"{mark} {word}  {title}", sentence, *(f"- {reason}" for reason in reasons)]))


def _look(word: str) -> tuple[str, str, str]:
    """Class in the style sheet, mark in text, strokes of the icon."""
    if word == "UNFINISHED":
        return "unsure", "…", '<path d="M7 12v.1M12 12v.1M17 12v.1"/>'
    state = _STATES.get(word, "unsure")
    return state, MARKS[state], _STROKES[state]


def caveats_block(subject: Subject) -> Block:
    """Everything that makes the result say less than it seems to."""
    found = subject.analysis.cautions
    if not found:
        return Block("<p>Nothing that perfkit looks for was found.</p>", "Nothing that perfkit looks for was found.")
    first, rest = found[:GRAVEST], found[GRAVEST:]
    html = _list(first) + (folded(f"and {len(rest)} more", _list(rest)) if rest else "")
    return Block(html, "\n".join(f"- {own.kind}: {own.text} {own.advice}" for own in found))


def _list(found: Sequence[Caveat]) -> str:
    items = (f"<li><b>{escape(own.kind)}</b> {escape(own.text)} <em>{escape(own.advice)}</em></li>" for own in found)
    return f'<ul class="weak">{"".join(items)}</ul>'


def _sentence(subject: Subject) -> str:
    if subject.complete:
        return subject.analysis.headline
    run = subject.run
    how = {"running": "has not ended", "interrupted": "was interrupted", "failed": "failed"}.get(
        str(run.get("status")), ""
    )
    done, planned = complete_blocks(run), run.get("parameters", {}).get("blocks", "?")
    so_far = subject.analysis.headline
    return f"The run {how}: {done} of {planned} blocks are complete. Measured so far: {so_far}"


def _reasons(subject: Subject) -> tuple[str, ...]:
    """Why it is not GO; the numbers of a GO are in its sentence and in the tables."""
    return () if subject.decision in ("GO", "HOLDS") else subject.analysis.judgement.reasons[:REASONS]


def _arms(subject: Subject) -> str:
    if not subject.complete:
        return ""
    lines = []
    for arm in subject.after:
        word = str(subject.analysis.arm_decisions.get(arm, "INCONCLUSIVE"))
        state, mark, _ = _look(word)
        lines.append(
            f'<li><strong class="{state}">{mark} {escape(word)}</strong> '
            f"<b>{escape(arm)}</b> {escape(subject.title(arm))}</li>"
        )
    return f'<ul class="arms">{"".join(lines)}</ul>' if lines else ""


def _meta(subject: Subject) -> str:
    run = subject.run
    given, rows = run.get("parameters", {}), run.get("database", {}).get("rows", {})
    largest = max(rows.items(), key=lambda item: item[1], default=None)
    server, blocks = run.get("server", {}), complete_blocks(run)
    version = server.get("version", given.get("postgres", "?"))
    parts = [
        *([f"profile {given['profile']}"] if given.get("profile") else []),
        f"{blocks} block{'' if blocks == 1 else 's'}",
        *([f"scale {given['scale']}"] if given.get("scale") else []),
        *([f"{units.count(largest[1])} rows in {largest[0]}"] if largest else []),
        *([f"PostgreSQL {version} ({server.get('kind', 'not started')})"] if version else []),
        str(run.get("started", "")).replace("T", " ")[:16] + " UTC",
    ]
    return " · ".join(parts)


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
        return decision_block(self.subject)

    @property
    def weaknesses(self) -> Block:
        """What weakens the result."""
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
        """What was claimed beforehand beside what was measured, with its title; nothing without claims."""
        return claims_block(self.subject)

    @property
    def queries(self) -> Block:
        """Queries with their change of plan and buffers."""
        return sections.queries(self.subject)

    @property
    def index_costs(self) -> Table:
        """What the indexes cost."""
        return sections.index_costs(self.subject)

    @property
    def index_lab(self) -> Block:
        """Which of the indexes earn their keep."""
        return sections.index_lab(self.subject)

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
        return sections.plans(self.subject)

    @property
    def errors(self) -> Table:
        """Unexpected outcomes."""
        return tables.errors(self.subject)

    @property
    def method(self) -> Block:
        """How and on what it was measured."""
        return sections.method(self.subject)

    @property
    def reproduce(self) -> Block:
        """The command that measures it again."""
        return sections.reproduce(self.subject)

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
        return tables.health(self.subject, self.rounds)

    @property
    def latency_over_time(self) -> Block:
        """Every load level's response times in the order of time."""
        from perfkit.analysis import charts  # matplotlib takes a second to import

        return charts.latency_over_time(self.subject, self.rounds)
