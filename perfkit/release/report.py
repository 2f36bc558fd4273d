"""Decisions and rollbacks as notebooks and pages show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from perfkit.analysis import report
from perfkit.analysis.claims import JudgedClaim, expected, held, judged, measured
from perfkit.analysis.report import Run, render
from perfkit.analysis.tables import Subject
from perfkit.base.bundle import read_record, reading, write_atomically
from perfkit.base.judgement import Outcome
from perfkit.base.units import NONE, unbroken
from perfkit.config import PlanStep, Risk
from perfkit.release import decision
from perfkit.release.decision import SHORT, DecisionRecord, GateItem, RecordedAnswer, Seal, locked, readable_time
from perfkit.release.gate import CHECKED_NOW, LOAD
from perfkit.release.rollback import FILE, Rollback, RollbackItem
from perfkit.runs.records import Bundle
from perfkit.show.html import (
    Banner,
    Bullets,
    Cell,
    Code,
    Column,
    Part,
    Section,
    Table,
    View,
    marked,
    note,
    page,
    stacked,
)
from perfkit.show.render import GATE, OpenedPage, page_of, shown

REASONS = 8  # in the banner; the matrix has all items
_SEVERITIES = {"low": "", "medium": "unsure", "high": "bad"}


def banner(opened: GoNoGo) -> Banner:
    """Return GO, NO-GO, NO BENEFIT or INCONCLUSIVE, its numbers, and the items that led to it."""
    record = opened.decided
    reasons, rest = record.reasons[:REASONS], len(record.reasons) - REASONS
    reasons += (f"And {rest} more, in the table below.",) if rest > 0 else ()
    arms = ", ".join(record.arms) or "none"
    meta = f"to be shipped: {arms} · {_counted(record.items)} · decided {readable_time(record.decided)}"
    return report.banner(record.decision, record.title, record.headline, reasons, meta)


def items(opened: GoNoGo) -> Table:
    """Return every item in one line, for a terminal."""
    columns: tuple[Column[GateItem], ...] = (
        Column("group", lambda item: item.group),
        Column("item", lambda item: item.name),
        Column("value", lambda item: item.value),
        Column("limit", lambda item: item.limit),
        Column("result", lambda item: marked(item.outcome.state, item.outcome)),
    )
    return Table.of("What the decision rests on", columns, opened.decided.items, headers=2)


def matrix(opened: GoNoGo) -> Table:
    """Return every item with its result, value, conditions and class of evidence."""
    columns: tuple[Column[GateItem], ...] = (
        Column("", lambda item: item.group, key="group"),
        Column("item", lambda item: item.name),
        Column("result", lambda item: marked(item.outcome.state, item.outcome, item.needs and f"Needed: {item.needs}")),
        Column("value", lambda item: Cell(item.value, _explained(item))),
        Column("GO if", lambda item: item.go_if),
        Column("NO-GO if", lambda item: item.no_go_if or Cell("never on its own", state="quiet")),
        Column("evidence", lambda item: Cell(item.evidence, state="quiet")),
    )
    return Table.of(
        "Go or no-go",
        columns,
        opened.decided.items,
        headers=2,
        grouped=True,
        note="GO: every item holds. NO-GO: an item is broken. NO BENEFIT: no item is broken, and the change improves "
        "nothing that was measured. INCONCLUSIVE: an item is unproven or unanswered; below its result is what it "
        "needs.",
    )


def people(opened: GoNoGo) -> Section:
    """Return each question with the answer that counts, its author and its time."""
    states = {"yes": "good", "no": "bad"}
    columns: tuple[Column[RecordedAnswer], ...] = (
        Column("question", lambda own: own.question),
        Column("answer", lambda own: Cell(own.answer or "not answered", state=states.get(own.answer, "unsure"))),
        Column("by", lambda own: own.by or NONE),
        Column("when", lambda own: readable_time(own.on) if own.on else NONE),
    )
    answers = opened.decided.answers
    note = "" if answers else "the configuration has no questions"
    return Section([Table.of("Questions and answers", columns, answers, note=note)], kind="whole")


def plan(opened: GoNoGo) -> Section:
    """Return the plan of the release, with the measured value of each claim."""
    columns: tuple[Column[PlanStep], ...] = (
        Column("step", lambda step: Cell(step.action, step.when)),
        Column("time, as planned", lambda step: step.time or NONE),
        Column("risk, as planned", lambda step: step.risk or NONE),
        Column("undone by", lambda step: step.rollback or NONE),
        Column("measured", lambda step: _measured(step.measures, opened.claims)),
    )
    note = "" if opened.release.step else "the configuration has no plan"
    return Section([Table.of("Plan", columns, opened.release.step, note=note)], kind="lines")


def risks(opened: GoNoGo) -> Section:
    """Return the risks as judged beforehand, with the measured value of each claim."""
    columns: tuple[Column[Risk], ...] = (
        Column("risk", lambda risk: risk.name),
        Column("severity, as judged", lambda risk: Cell(risk.severity, state=_SEVERITIES.get(risk.severity, ""))),
        Column("mitigation", lambda risk: "\n".join(risk.mitigation) or NONE),
        Column("measured", lambda risk: _measured(risk.measures, opened.claims)),
    )
    note = "" if opened.release.risk else "the configuration has no risks"
    return Section([Table.of("Risks", columns, opened.release.risk, note=note)], kind="lines")


@dataclass(frozen=True, slots=True, repr=False)
class SignOff(Part):
    """A line for each person who signs, with the decision and the content hash that they sign."""

    template = "sign_off.html.j2"
    names: Sequence[str]
    decision: str
    on: str
    content: str

    @property
    def short(self) -> str:
        """The beginning of the content hash."""
        return self.content[:SHORT]

    def text(self) -> str:
        """Return the lines to sign on paper."""
        signed = (f"{name}: ______________ Date: ________" for name in self.names)
        return "\n".join([self.decision, f"content hash {self.content}", *signed])


def sign_off(opened: GoNoGo) -> SignOff:
    """Return a line for each person who signs, and the content hash."""
    record = opened.decided
    decided = f"{record.decision} for {', '.join(record.arms) or 'no arm'}: {record.title}"
    return SignOff(opened.release.sign_off or ["Name"], decided, readable_time(record.decided), opened.seal.content)


def checking(opened: GoNoGo) -> Section:
    """Return how to check a page, also on paper, against its folder."""
    name, seal = opened.folder.resolve().name, opened.seal
    explanation = (
        f"The content hash is a SHA-256 over the {len(seal.files)} files of evidence beside this page, as of "
        f"{readable_time(seal.on)}. The first command names each file, including this page, that has changed since. "
        "The second checks that the folder is the one printed here. The hash is a checksum, not a signature: anyone "
        "who can change the folder can seal it again, and only the hash on a signed page reveals that."
    )
    commands = f"perfkit verify {name}\nperfkit verify {name} --hash {seal.content[:SHORT]}"
    return stacked(Code(commands, "commands"), note(explanation), gap="\n")


def _explained(item: GateItem) -> str:
    """Return the item's text if it says more than the value."""
    return item.text if item.outcome is not Outcome.HOLDS or item.evidence in (LOAD, CHECKED_NOW) else ""


def _counted(every: Sequence[GateItem]) -> str:
    outcomes = [item.outcome for item in every]
    words = {Outcome.HOLDS: "hold", Outcome.BROKEN: "broken", Outcome.UNPROVEN: "unproven", Outcome.ABSENT: "absent"}
    return ", ".join(f"{n} {word}" for outcome, word in words.items() if (n := outcomes.count(outcome)))


def _measured(texts: Sequence[str], claims: Mapping[str, JudgedClaim]) -> Cell:
    """Return the measured values of the claims that a step or a risk names."""
    if not texts:
        return Cell(NONE, state="quiet")
    return Cell("\n".join(_claim(text, claims.get(text)) for text in texts))


def _claim(text: str, claim: JudgedClaim | None) -> str:
    if claim is None or claim.value is None:
        return f"“{text}”: not measured in this run"
    found = measured(claim)
    spread = f" ({found.note})" if found.note else ""
    return f"“{text}”: {found.text}{spread}, claimed {expected(claim)}: {held(claim).text}, {claim.evidence}"


# The result of a rollback: its word, its sentence and its items.


def rollback(result: Rollback) -> Section:
    """Return whether the system is as before, the items that show it, and what was not checked."""
    outcome, title = result.outcome, f"Rolled back: is everything as before? {result.where}"
    head = Banner(outcome.state, title, f"{outcome.mark} {result.word}", result.sentence)
    return stacked(head, _table(result), Bullets(result.unseen))


def _table(result: Rollback) -> Table:
    columns: tuple[Column[RollbackItem], ...] = (
        Column("", lambda item: item.group, key="group"),
        Column("finding", lambda item: item.text),
        Column("result", lambda item: marked(item.outcome.state, item.word) if item.outcome else unjudged),
    )
    unjudged = Cell(unbroken("not judged"), state="quiet")
    return Table.of("What was checked", columns, result.items, grouped=True)


# A decision as a notebook shows it, and how a decision is made and sealed.


class GoNoGo(OpenedPage):
    """A decision read from its folder, for a notebook."""

    def __init__(self, folder: Path) -> None:
        """Read a run and the decision on it. Raises BundleError if a file is damaged or missing."""
        self.folder = folder
        self.decided: DecisionRecord = decision.read(folder)
        self.seal: Seal = decision.read_seal(folder)
        self.release = Bundle.open(folder).run.config.release

    def render(self) -> Path:
        """Write decision.html into the run's folder, seal it, and return its path. Raises BundleError."""
        title = f"{self.decided.decision}: {self.decided.title}"
        with locked(self.folder):
            page = page_of(GATE, {"bundle": str(self.folder.resolve())}, self.folder / decision.PAGE, title)
            self.seal = decision.seal_pages(self.folder)
        return page

    @property
    def subject(self) -> GoNoGo:
        """The decision that its properties show."""
        return self

    banner = shown(banner)
    matrix = shown(matrix)
    items = shown(items)
    people = shown(people)
    plan = shown(plan)
    risks = shown(risks)
    sign_off = shown(sign_off)
    checking = shown(checking)

    @cached_property
    def claims(self) -> Mapping[str, JudgedClaim]:
        """The claims of the configuration with their measured values, by text."""
        run = Run(Bundle.open(self.folder))
        return {own.text: own for own in judged(run.bundle.run, run.analysis, run.bundle)}

    def __repr__(self) -> str:
        return f"{self.decided.title}: {self.decided.decision}, decided {self.decided.decided}, in {self.folder}"


# A rollback as a notebook shows it: rehearsed in a run, or done in a database in use.


def rehearsal(subject: Subject) -> Section:
    """Return whether everything is as before, item by item."""
    with reading(subject.bundle.path):
        return rollback(Rollback.model_validate(subject.run.rollback))


class RehearsedRun(Run):
    """The run of a rehearsed rollback; its decision says whether everything is as before."""

    decision = shown(rehearsal)


class RolledBack(View):
    """A rollback read from its folder, for a notebook."""

    def __init__(self, folder: Path) -> None:
        """Read rollback.json. Raises BundleError if it is missing or damaged."""
        self.folder = folder
        self.found = read_record(folder / FILE, Rollback, "the folder of a rollback", "a rollback")

    def render(self) -> Path:
        """Write the report of a rehearsed run, or rollback.html, and return its path. Raises BundleError."""
        if (self.folder / "run.json").exists():
            return render(self.folder)
        out = self.folder / "rollback.html"
        write_atomically(out, page(f"{self.found.word}: rollback", self))
        return out

    def html(self) -> str:
        """Return the result as HTML."""
        return rollback(self.found).html()

    def text(self) -> str:
        """Return the result as text."""
        return rollback(self.found).text()
