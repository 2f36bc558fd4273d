"""Decisions and rollbacks as notebooks, pages and JUnit XML show them; `decide` makes a decision and seals it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from perfkit.analysis import report
from perfkit.analysis.claims import JudgedClaim, expected, held, judged, measured
from perfkit.analysis.report import Run, render
from perfkit.analysis.tables import Subject
from perfkit.base.bundle import reading, require_spare, write_atomically
from perfkit.base.errors import BundleError, UsageError, visible
from perfkit.base.judgement import MARKS, Outcome, Verdict
from perfkit.base.units import NONE, unbroken
from perfkit.config import PlanStep, Risk
from perfkit.release import decision
from perfkit.release.decision import (
    SHORT,
    DecisionRecord,
    GateItem,
    RecordedAnswer,
    Seal,
    current_answers,
    locked,
    merged_answers,
    readable_time,
    timestamp,
    write_answers,
)
from perfkit.release.gate import CHECKED_NOW, LOAD, judge, watch_state
from perfkit.release.rollback import FILE, Rollback, Word
from perfkit.runs.records import Bundle
from perfkit.show.html import (
    Banner,
    Block,
    Bullets,
    Cell,
    OpenedPage,
    Section,
    Table,
    code,
    escape,
    marked,
    page,
    shown,
    stacked,
    style,
)
from perfkit.show.render import GATE, page_of

REASONS = 8  # in the banner; the matrix has all items
_SEVERITIES = {"low": "", "medium": "unsure", "high": "bad"}


def banner(record: DecisionRecord) -> Banner:
    """Return the decision, its numbers, and the items that led to it."""
    gate = record.gate
    reasons, rest = gate.reasons[:REASONS], len(gate.reasons) - REASONS
    reasons += (f"And {rest} more, in the table below.",) if rest > 0 else ()
    arms = ", ".join(gate.arms) or "none"
    meta = f"to be shipped: {arms} · {_counted(gate.items)} · decided {readable_time(record.on)}"
    return report.banner(gate.decision, record.title, record.headline, reasons, meta)


def items(record: DecisionRecord) -> Table:
    """Return one line per item, for a terminal."""
    rows = tuple(
        (
            Cell(item.group),
            Cell(item.name),
            Cell(item.value),
            Cell(item.limit),
            marked(item.outcome.state, item.outcome),
        )
        for item in record.gate.items
    )
    return Table("What the decision rests on", ("group", "item", "value", "limit", "result"), rows, headers=2)


def matrix(record: DecisionRecord) -> Table:
    """Return every item with its result, value, conditions and class of evidence."""
    rows = tuple(
        (
            Cell(own.group),
            Cell(own.name),
            _result(own),
            Cell(own.value, _explained(own)),
            Cell(own.go_if),
            Cell(own.no_go_if or "never on its own", state="" if own.no_go_if else "quiet"),
            Cell(own.evidence, state="quiet"),
        )
        for own in record.gate.items
    )
    columns = ("", "item", "result", "value", "GO if", "NO-GO if", "evidence")
    note = (
        "GO: every item holds. NO-GO: an item is broken. NO BENEFIT: no item is broken, and the change improves "
        "nothing that was measured. INCONCLUSIVE: an item is unproven or unanswered; below its result is what it needs."
    )
    return Table("Go or no-go", columns, rows, headers=2, grouped=True, note=note)


def people(record: DecisionRecord) -> Block:
    """Return each question with the answer that counts, its author and its time."""
    rows = tuple(
        (
            Cell(own.question),
            Cell(own.answer or "not answered", state={"yes": "good", "no": "bad"}.get(own.answer, "unsure")),
            Cell(own.by or NONE),
            Cell(readable_time(own.on) if own.on else NONE),
        )
        for own in record.answers
    )
    note = "" if rows else "the configuration has no questions"
    table = Table("Questions and answers", ("question", "answer", "by", "when"), rows, note=note)
    return Block(f'<div class="whole">{table.to_html()}</div>', table.to_text())


def plan(steps: Sequence[PlanStep], claims: Mapping[str, JudgedClaim]) -> Block:
    """Return the plan of the release, with the measured value of each claim."""
    rows = tuple(
        (
            Cell(step.action, step.when),
            Cell(step.time or NONE),
            Cell(step.risk or NONE),
            Cell(step.rollback or NONE),
            _measured(step.measures, claims),
        )
        for step in steps
    )
    columns = ("step", "time, as planned", "risk, as planned", "undone by", "measured")
    return _lines(Table("Plan", columns, rows, note="" if rows else "the configuration has no plan"))


def risks(listed_risks: Sequence[Risk], claims: Mapping[str, JudgedClaim]) -> Block:
    """Return the risks as judged beforehand, with the measured value of each claim."""
    rows = tuple(
        (
            Cell(risk.name),
            Cell(risk.severity, state=_SEVERITIES.get(risk.severity, "")),
            Cell("\n".join(risk.mitigation) or NONE),
            _measured(risk.measures, claims),
        )
        for risk in listed_risks
    )
    columns = ("risk", "severity, as judged", "mitigation", "measured")
    return _lines(Table("Risks", columns, rows, note="" if rows else "the configuration has no risks"))


def sign_off(names: Iterable[str], record: DecisionRecord, seal: Seal) -> Block:
    """Return a line for each person who signs, with the decision and the content hash that they sign."""
    signers = list(names) or ["Name"]
    what = f"{record.gate.decision} for {', '.join(record.gate.arms) or 'no arm'}: {record.title}"
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td></td><td></td></tr>' for name in signers)
    head = "".join(f'<th scope="col">{word}</th>' for word in ("role and name", "signature", "date"))
    html = (
        f'<section class="sign"><p><b>{escape(what)}</b><br>decided {escape(readable_time(record.on))}, content hash '
        f"<code>{escape(seal.content[:SHORT])}</code></p><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
        f"</table><p>Content hash in full: <code>{escape(_spaced(seal.content))}</code></p></section>"
    )
    signed = (f"{name}: ______________ Date: ________" for name in signers)
    return Block(html, "\n".join([what, f"content hash {seal.content}", *signed]))


def checking(name: str, seal: Seal) -> Block:
    """Return how to check a page, also on paper, against its folder `name`."""
    commands = f"perfkit verify {name}\nperfkit verify {name} --hash {seal.content[:SHORT]}"
    said = (
        f"The content hash is a SHA-256 over the {len(seal.files)} files of evidence beside this page, as of "
        f"{readable_time(seal.on)}. The first command names each file, including this page, that has changed since. "
        "The second checks that the folder is the one printed here. The hash is a checksum, not a signature: anyone "
        "who can change the folder can seal it again, and only the hash on a signed page reveals that."
    )
    return Block(f'{code(commands, name="commands")}<p class="note">{escape(said)}</p>', f"{commands}\n{said}")


def _lines(table: Table) -> Block:
    """Wrap a table whose cells may have several lines."""
    return Block(f'<div class="lines">{table.to_html()}</div>', table.to_text())


def _explained(item: GateItem) -> str:
    """Return the item's text if it says more than the value."""
    return item.text if item.outcome is not Outcome.HOLDS or item.evidence in (LOAD, CHECKED_NOW) else ""


def _result(item: GateItem) -> Cell:
    return marked(item.outcome.state, item.outcome, f"Needed: {item.needs}" if item.needs else "")


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


def _spaced(digits: str) -> str:
    return " ".join(digits[i : i + 8] for i in range(0, len(digits), 8))


# The result of a rollback: its word, its sentence and its items.

_WORD_STATES = {Word.SAME: "good", Word.DIFFERENT: "bad", Word.OPEN: "unsure"}


def rollback(result: Rollback) -> Section:
    """Return whether the system is as before, the items that show it, and what was not checked."""
    state = _WORD_STATES[result.word]
    title = f"Rolled back: is everything as before? {result.where}"
    head = Banner(state, title, f"{MARKS[state]} {result.word}", result.sentence)
    return stacked(head, _table(result), Bullets(result.unseen))


def _table(result: Rollback) -> Table:
    rows = tuple(
        (
            Cell(item.group),
            Cell(item.text),
            marked(_WORD_STATES[item.word], item.word) if item.word else Cell(unbroken("not judged"), state="quiet"),
        )
        for item in result.items
    )
    return Table("What was checked", ("", "finding", "result"), rows, grouped=True)


# A decision as JUnit XML, which every build server shows: one test case per item. JUnit has only two words for what
# did not pass: broken and no benefit are failures, of different types; unproven is skipped, with the evidence needed.

_FAILURES = (Outcome.BROKEN, Outcome.ABSENT)
_NOT_XML = re.compile("[\ufffe\uffff]")  # characters that XML 1.0 excludes and `visible` leaves


def junit(record: DecisionRecord) -> str:
    """Return the decision as an XML document."""
    items = record.gate.items
    top = ElementTree.Element("testsuites", _counts(f"perfkit gate: {record.title}", items))
    for group, own in groupby(items, key=lambda item: item.group):
        cases = list(own)
        suite = ElementTree.SubElement(top, "testsuite", {**_counts(group, cases), "timestamp": record.on.rstrip("Z")})
        properties = ElementTree.SubElement(suite, "properties")
        said = {"decision": record.gate.decision, "arms": ", ".join(record.gate.arms), "decided": record.on}
        for name, value in said.items():
            ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
        for item in cases:
            _case(suite, item)
    ElementTree.indent(top, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, "unicode") + "\n"


def _case(suite: ElementTree.Element, item: GateItem) -> None:
    named = {"name": _text(item.name), "classname": _text(f"perfkit.gate.{item.group.replace(' ', '_')}"), "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", named)
    if item.outcome in _FAILURES:
        said = {"message": _text(item.text), "type": str(item.outcome)}
        body = f"measured: {item.value}\nlimit: {item.limit}\nevidence: {item.evidence}"
        ElementTree.SubElement(case, "failure", said).text = _text(body)
    elif item.outcome is Outcome.UNPROVEN:
        ElementTree.SubElement(case, "skipped", {"message": _text(item.reason)})
    else:
        ElementTree.SubElement(case, "system-out").text = _text(item.text)


def _counts(name: str, items: Sequence[GateItem]) -> dict[str, str]:
    outcomes = [item.outcome for item in items]
    return {
        "name": _text(name),
        "tests": str(len(items)),
        "failures": str(sum(outcome in _FAILURES for outcome in outcomes)),
        "errors": "0",
        "skipped": str(outcomes.count(Outcome.UNPROVEN)),
        "time": "0",
    }


def _text(value: object) -> str:
    return _NOT_XML.sub("\ufffd", visible(value))


# A decision as a notebook shows it, and how a decision is made and sealed.


class GoNoGo(OpenedPage):
    """A decision read from its folder, for a notebook."""

    def __init__(self, folder: Path) -> None:
        """Read a run and the decision on it. Raises BundleError if a file is damaged or missing."""
        self.folder = folder
        self.decided: DecisionRecord = decision.read(folder)
        self.seal: Seal = decision.read_seal(folder)
        self._release = Bundle.open(folder).run.config.release

    def render(self) -> Path:
        """Write decision.html into the run's folder, seal it, and return its path. Raises BundleError."""
        title = f"{self.decided.gate.decision}: {self.decided.title}"
        with locked(self.folder):
            page = page_of(GATE, {"bundle": str(self.folder.resolve())}, self.folder / decision.PAGE, title)
            self.seal = decision.seal_pages(self.folder)
        return page

    @property
    def banner(self) -> Banner:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE, and the items that led to it."""
        return banner(self.decided)

    @property
    def matrix(self) -> Table:
        """Every item with its result, value and conditions."""
        return matrix(self.decided)

    @property
    def items(self) -> Table:
        """Every item in one line."""
        return items(self.decided)

    @property
    def people(self) -> Block:
        """Questions to people, and their answers."""
        return people(self.decided)

    @property
    def plan(self) -> Block:
        """The plan of the release, with the measured value of each claim."""
        return plan(self._release.step, self.claims)

    @property
    def risks(self) -> Block:
        """The risks of the release, with the measured value of each claim."""
        return risks(self._release.risk, self.claims)

    @property
    def sign_off(self) -> Block:
        """A line for each person who signs, and the content hash."""
        return sign_off(self._release.sign_off, self.decided, self.seal)

    @property
    def checking(self) -> Block:
        """How to check a page against its folder."""
        return checking(self.folder.resolve().name, self.seal)

    @cached_property
    def claims(self) -> Mapping[str, JudgedClaim]:
        """The claims of the configuration with their measured values, by text."""
        run = Run(Bundle.open(self.folder))
        return {own.text: own for own in judged(run.bundle.run, run.analysis, run.bundle)}

    def __repr__(self) -> str:
        return f"{self.decided.title}: {self.decided.gate.decision}, decided {self.decided.on}, in {self.folder}"


def decide(
    folder: Path, arm: str = "", watch: str = "", answers: Mapping[str, str] | None = None, by: str = "", **exports: str
) -> None:
    """Decide on a run, write answers.json, verdict.json and decision.json into its folder, and seal the folder.

    `exports` has file names by format, `junit` and `json`. Raises PerfkitError.
    """
    names = {kind: require_spare(Path(name), "gate") for kind, name in exports.items() if name}
    if len(set(names.values())) < len(names):
        raise UsageError(f"{next(iter(names.values()))}: named twice; expected a different file for each format")
    run = Run(Bundle.open(folder))
    if run.subject.alone:
        raise UsageError(f"{folder}: a run of one arm; expected a run that compares before with an arm to be shipped")
    if run.bundle.run.rollback is not None:
        raise UsageError(f"{folder}: a rehearsed rollback; expected the run of a change that is to be shipped")
    questions = run.bundle.run.config.release.question
    with locked(folder):
        with reading(folder):
            every = merged_answers(folder, [question.name for question in questions], answers or {}, by)
            found = _decided(run, shipped(run.subject, arm), current_answers(questions, every), watch)
            verdict = report.verdict(run.subject)
        for kind, text in (("junit", junit), ("json", DecisionRecord.text)):
            if kind in names:
                write_atomically(names[kind], text(found))
        if answers:
            write_answers(folder, every)
        write_atomically(folder / "verdict.json", verdict)
        decision.write(folder, found)
        (folder / decision.PAGE).unlink(missing_ok=True)  # it shows an earlier decision
        decision.seal(folder)


def _decided(run: Run, arms: Sequence[str], standing: Sequence[RecordedAnswer], watch: str) -> DecisionRecord:
    """Decide now."""
    watched = watch_state(Path(watch)) if watch else None
    analysis = run.analysis
    gate = judge(run.bundle.run, analysis, arms, standing, watched)
    judged = [c for c in analysis.comparisons if c.after in arms or c.after not in run.subject.after]
    invalid = any(c.verdict is Verdict.INVALID for c in judged)
    on = timestamp(datetime.now(UTC))
    name = Path(watch).resolve().name if watch else ""
    return DecisionRecord(gate, analysis.title, analysis.headline, on, invalid, tuple(standing), name)


def shipped(subject: Subject, arm: str = "") -> list[str]:
    """Return the arms to decide on: the named arm, or all arms after the change. Raises UsageError for other arms."""
    if arm and arm not in subject.after:
        known = ", ".join(subject.after) or "none in this run"
        raise UsageError(f"arm '{arm}' is not to be shipped; expected one of: {known}")
    return [arm] if arm else subject.after


# A rollback as a notebook shows it: rehearsed in a run, or done in a database in use.


def rehearsal(subject: Subject) -> Section:
    """Return whether everything is as before, item by item."""
    with reading(subject.bundle.path):
        return rollback(Rollback.of(subject.run.rollback or {}))


class RehearsedRun(Run):
    """The run of a rehearsed rollback; its decision says whether everything is as before."""

    decision = shown(rehearsal)


class RolledBack:
    """A rollback read from its folder, for a notebook."""

    def __init__(self, folder: Path) -> None:
        """Read rollback.json. Raises BundleError if it is missing or damaged."""
        self.folder = folder
        try:
            text = (folder / FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise BundleError(f"{folder}/{FILE}: cannot be read; expected the folder of a rollback") from None
        with reading(folder / FILE):
            self.found = Rollback.of(json.loads(text))

    def render(self) -> Path:
        """Write the report of a rehearsed run, or rollback.html, and return its path. Raises BundleError."""
        if (self.folder / "run.json").exists():
            return render(self.folder)
        out = self.folder / "rollback.html"
        write_atomically(out, page(f"{self.found.word}: rollback", rollback(self.found)))
        return out

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style>{rollback(self.found)._repr_html_()}"

    def __repr__(self) -> str:
        return repr(rollback(self.found))
