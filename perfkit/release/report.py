"""Decisions and rollbacks as notebooks, pages and JUnit XML show them.

Broken is a failure, and so is no benefit, of its own type; unproven is skipped with what it would take, because JUnit
has no third word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from perfkit.analysis import report
from perfkit.analysis.claims import Judged, expected, held, judged, measured
from perfkit.analysis.policy import Outcome
from perfkit.analysis.report import Run, render
from perfkit.analysis.tables import STATES, Subject
from perfkit.base.bundle import Bundle, reading, require_spare, write_atomically
from perfkit.base.errors import BundleError, UsageError, visible
from perfkit.base.stats import Verdict
from perfkit.base.units import NONE, unbroken
from perfkit.config import Release, restored
from perfkit.release import decision, gate
from perfkit.release import decision as seal
from perfkit.release import gate as monitoring
from perfkit.release.decision import SHORT, Decided, Seal
from perfkit.release.gate import CHECKED_NOW, LOAD, GateItem, RecordedAnswer, judge, spoken, written
from perfkit.release.rollback import FILE, Rollback, Word
from perfkit.show.html import MARKS, Block, Cell, OpenedPage, Table, code, escape, headed, listed, marked, page, style
from perfkit.show.render import GATE, page_of

REASONS = 8  # in the banner; every item is in the matrix
_SEVERITIES = {"low": "", "medium": "unsure", "high": "bad"}


def banner(decided: Decided) -> Block:
    """The decision, the numbers, and each item that led to it."""
    gate = decided.gate
    reasons = gate.reasons[:REASONS]
    rest = len(gate.reasons) - REASONS
    if rest > 0:
        reasons = (*reasons, f"And {rest} more, in the table below.")
    arms = ", ".join(gate.arms) or "none"
    meta = f"to be shipped: {arms} · {_counted(gate.items)} · decided {spoken(decided.on)}"
    return report.banner(str(gate.decision), decided.title, decided.headline, reasons, meta)


def items(decided: Decided) -> Table:
    """Every item in one line, for a terminal."""
    rows = tuple(
        (Cell(own.group), Cell(own.name), Cell(own.value), Cell(own.limit), marked(STATES[own.outcome], own.outcome))
        for own in decided.gate.items
    )
    return Table("What the decision rests on", ("group", "item", "value", "limit", "result"), rows, headers=2)


def matrix(decided: Decided) -> Table:
    """When each item lets it through, when it forbids, what was found, and how that is known."""
    rows = tuple(
        (
            Cell(own.group),
            Cell(own.name),
            _result(own),
            Cell(own.value, _explained(own)),
            Cell(own.go_if),
            Cell(own.no_go_if or "never by itself", state="" if own.no_go_if else "quiet"),
            Cell(own.evidence, state="quiet"),
        )
        for own in decided.gate.items
    )
    columns = ("", "item", "result", "found", "GO if", "NO-GO if", "evidence")
    note = (
        "GO: every item holds. NO-GO: one is broken. NO BENEFIT: none is broken, and the change improves nothing that "
        "was measured. INCONCLUSIVE: one is unproven or unanswered; below its result stands what it would take."
    )
    return Table("Go or no-go", columns, rows, headers=2, grouped=True, note=note)


def people(decided: Decided) -> Block:
    """Questions with the answer that counts, who gave it and when."""
    rows = tuple(
        (
            Cell(own.question),
            Cell(own.answer or "not answered", state={"yes": "good", "no": "bad"}.get(own.answer, "unsure")),
            Cell(own.by or NONE),
            Cell(spoken(own.on) if own.on else NONE),
        )
        for own in decided.answers
    )
    note = "" if rows else "the configuration asks no question"
    table = Table("What people were asked", ("question", "answer", "by", "when"), rows, note=note)
    return Block(f'<div class="whole">{table.to_html()}</div>', table.to_text())


def plan(steps: Sequence[Mapping[str, Any]], claims: Mapping[str, Judged]) -> Block:
    """The plan as it was written, with what was measured of it."""
    rows = tuple(
        (
            Cell(step["action"], step["when"]),
            Cell(step["time"] or NONE),
            Cell(step["risk"] or NONE),
            Cell(step["rollback"] or NONE),
            _measured(step["measures"], claims),
        )
        for step in steps
    )
    columns = ("step", "time, as planned", "risk, as planned", "taken back by", "measured")
    return _lines(Table("Plan", columns, rows, note="" if rows else "the configuration has no plan"))


def risks(found: Sequence[Mapping[str, Any]], claims: Mapping[str, Judged]) -> Block:
    """The risks as they were judged beforehand, with what was measured of them."""
    rows = tuple(
        (
            Cell(risk["name"]),
            Cell(risk["severity"], state=_SEVERITIES.get(risk["severity"], "")),
            Cell("\n".join(risk["mitigation"]) or NONE),
            _measured(risk["measures"], claims),
        )
        for risk in found
    )
    columns = ("risk", "severity, as judged", "what is done against it", "measured")
    return _lines(Table("Risks", columns, rows, note="" if rows else "the configuration names no risk"))


def sign_off(names: Iterable[str], decided: Decided, seal: Seal) -> Block:
    """A line for everybody who signs, with the decision and the content hash that they sign."""
    who = list(names) or ["Name"]
    what = f"{decided.gate.decision} for {', '.join(decided.gate.arms) or 'no arm'}: {decided.title}"
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td></td><td></td></tr>' for name in who)
    head = "".join(f'<th scope="col">{word}</th>' for word in ("role and name", "signature", "date"))
    html = (
        f'<section class="sign"><p><b>{escape(what)}</b><br>decided {escape(spoken(decided.on))}, content hash '
        f"<code>{escape(seal.content[:SHORT])}</code></p><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
        f"</table><p>Content hash in full: <code>{escape(_spaced(seal.content))}</code></p></section>"
    )
    signed = (f"{name}: ______________ Date: ________" for name in who)
    return Block(html, "\n".join([what, f"content hash {seal.content}", *signed]))


def checking(name: str, seal: Seal) -> Block:
    """How a page, on paper too, is held against its folder; `name` is the folder's."""
    commands = f"perfkit verify {name}\nperfkit verify {name} --hash {seal.content[:SHORT]}"
    said = (
        f"The content hash is a SHA-256 over the {len(seal.files)} files of evidence beside this page, as of "
        f"{spoken(seal.on)}. The first command names each file, this page too, that has changed since; the second says "
        "whether the folder is the one printed here. It is a checksum and no signature: whoever can change the folder "
        "can seal it anew, and only the hash on a signed page tells."
    )
    return Block(f'{code(commands, name="commands")}<p class="note">{escape(said)}</p>', f"{commands}\n{said}")


def _lines(table: Table) -> Block:
    """A table whose cells may have several lines."""
    return Block(f'<div class="lines">{table.to_html()}</div>', table.to_text())


def _explained(item: GateItem) -> str:
    """The sentence, where it says more than the value."""
    return item.text if item.outcome is not Outcome.HOLDS or item.evidence in (LOAD, CHECKED_NOW) else ""


def _result(item: GateItem) -> Cell:
    return marked(STATES[item.outcome], item.outcome, f"It would take {item.needs}" if item.needs else "")


def _counted(every: Sequence[GateItem]) -> str:
    outcomes = [item.outcome for item in every]
    words = {Outcome.HOLDS: "hold", Outcome.BROKEN: "broken", Outcome.UNPROVEN: "unproven", Outcome.ABSENT: "absent"}
    return ", ".join(f"{n} {word}" for outcome, word in words.items() if (n := outcomes.count(outcome)))


def _measured(texts: Sequence[str], claims: Mapping[str, Judged]) -> Cell:
    """What was measured of the claims that a step or a risk names."""
    if not texts:
        return Cell(NONE, state="quiet")
    return Cell("\n".join(_claim(text, claims.get(text)) for text in texts))


def _claim(text: str, claim: Judged | None) -> str:
    if claim is None or claim.value is None:
        return f"“{text}”: not measured in this run"
    found = measured(claim)
    spread = f" ({found.note})" if found.note else ""
    return f"“{text}”: {found.text}{spread}, claimed {expected(claim)}: {held(claim).text}, {claim.evidence}"


def _spaced(digits: str) -> str:
    return " ".join(digits[i : i + 8] for i in range(0, len(digits), 8))


# What a rollback came to: the word, the sentence, and everything that was looked at.

_WORD_STATES = {Word.SAME: "good", Word.DIFFERENT: "bad", Word.OPEN: "unsure"}


def rollback(found: Rollback) -> Block:
    """Whether it is as before, on what that rests, and what was not looked at."""
    state = _WORD_STATES[found.word]
    word = f"{MARKS[state]} {found.word}"
    title = f"Rolled back: is it as before? {found.where}"
    html = headed(state, title, word, found.sentence)
    html += _table(found).to_html() + listed(found.unseen)
    text = [f"{word}  {title}", found.sentence, "", _table(found).to_text()]
    return Block(html, "\n".join([*text, *(f"- {line}" for line in found.unseen)]))


def _table(found: Rollback) -> Table:
    rows = tuple(
        (
            Cell(item.group),
            Cell(item.text),
            marked(_WORD_STATES[item.word], item.word) if item.word else Cell(unbroken("not judged"), state="quiet"),
        )
        for item in found.items
    )
    return Table("What was looked at", ("", "what was found", "it is"), rows, grouped=True)


# A decision as JUnit XML, which every build server shows: one test case an item. Pure.

_FAILURES = (Outcome.BROKEN, Outcome.ABSENT)
_NOT_XML = re.compile("[\ufffe\uffff]")  # what XML 1.0 excludes and `visible` leaves


def junit(decided: Decided) -> str:
    """The decision as an XML document."""
    items = decided.gate.items
    top = ElementTree.Element("testsuites", _counts(f"perfkit gate: {decided.title}", items))
    for group, own in groupby(items, key=lambda item: item.group):
        cases = list(own)
        suite = ElementTree.SubElement(top, "testsuite", {**_counts(group, cases), "timestamp": decided.on.rstrip("Z")})
        properties = ElementTree.SubElement(suite, "properties")
        said = {"decision": decided.gate.decision, "arms": ", ".join(decided.gate.arms), "decided": decided.on}
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


# A decision as a notebook shows it, and how one is made: the run judged, people and watch asked, all of it sealed.


class GoNoGo(OpenedPage):
    """A decision from its folder; nothing here measures, asks or decides."""

    def __init__(self, folder: Path) -> None:
        """Read a run and the decision on it. Raises BundleError where a file is damaged or missing."""
        self.folder = folder
        self.decided: Decided = decision.read(folder)
        self.seal: seal.Seal = seal.read_seal(folder)
        self._release = _release(Bundle.open(folder))

    def render(self) -> Path:
        """Write decision.html into the run's folder and seal it too; returns the page. Raises BundleError."""
        title = f"{self.decided.gate.decision}: {self.decided.title}"
        with seal.held(self.folder):
            page = page_of(GATE, {"bundle": str(self.folder.resolve())}, self.folder / seal.PAGE, title)
            self.seal = seal.seal_pages(self.folder)
        return page

    @property
    def banner(self) -> Block:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE, and what led to it."""
        return banner(self.decided)

    @property
    def matrix(self) -> Table:
        """What lets it through, what forbids it, and what was found."""
        return matrix(self.decided)

    @property
    def items(self) -> Table:
        """The same in one line each."""
        return items(self.decided)

    @property
    def people(self) -> Block:
        """What people were asked, and what they said."""
        return people(self.decided)

    @property
    def plan(self) -> Block:
        """The plan of the release, with what was measured of it."""
        return plan(self._release["step"], self.claims)

    @property
    def risks(self) -> Block:
        """The risks of the release, with what was measured of them."""
        return risks(self._release["risk"], self.claims)

    @property
    def sign_off(self) -> Block:
        """A line for everybody who signs, and the content hash."""
        return sign_off(self._release["sign_off"], self.decided, self.seal)

    @property
    def checking(self) -> Block:
        """How a page is held against its folder."""
        return checking(self.folder.resolve().name, self.seal)

    @cached_property
    def claims(self) -> Mapping[str, Judged]:
        """The claims of the configuration with what was measured of them, by their text."""
        run = Run(Bundle.open(self.folder))
        return {own.text: own for own in judged(run.bundle.run, run.analysis, run.bundle)}

    def __repr__(self) -> str:
        return f"{self.decided.title}: {self.decided.gate.decision}, decided {self.decided.on}, in {self.folder}"


def decide(
    folder: Path, arm: str = "", watch: str = "", said: Mapping[str, str] | None = None, by: str = "", **exports: str
) -> None:
    """Decide on a run, write answers.json, verdict.json and decision.json into its folder, and seal it.

    `exports` are names of files by their kind, `junit` and `json`. Raises PerfkitError.
    """
    names = {kind: require_spare(Path(name), "gate") for kind, name in exports.items() if name}
    if len(set(names.values())) < len(names):
        raise UsageError(f"{next(iter(names.values()))}: named twice; expected a file for each format")
    run = Run(Bundle.open(folder))
    if run.subject.alone:
        raise UsageError(f"{folder}: one arm alone, compared with nothing; expected a run with an arm to be shipped")
    if "rollback" in run.bundle.run:
        raise UsageError(f"{folder}: a rollback, rehearsed; expected the run of a change that is to be shipped")
    questions = _release(run.bundle)["question"]
    with seal.held(folder):
        with reading(folder):
            every = gate.added(folder, [own["name"] for own in questions], said or {}, by)
            found = _decided(run, shipped(run.subject, arm), gate.standing(questions, every), watch)
            verdict = report.verdict(run.subject)
        for kind, text in (("junit", junit), ("json", Decided.text)):
            if kind in names:
                write_atomically(names[kind], text(found))
        if said:
            gate.write(folder, every)
        write_atomically(folder / "verdict.json", verdict)
        decision.write(folder, found)
        (folder / seal.PAGE).unlink(missing_ok=True)  # it shows another decision
        seal.seal(folder)


def _release(bundle: Bundle) -> dict[str, Any]:
    """What a run's configuration says of its release, every key of it. Raises BundleError."""
    with reading(bundle.path):
        said = bundle.run["config"].get("release") or {}
    return restored(Release, said, f"{bundle.path}/run.json: config.release").model_dump()


def _decided(run: Run, arms: Sequence[str], standing: Sequence[RecordedAnswer], watch: str) -> Decided:
    """The decision at this moment."""
    watched = None
    if watch:
        watched = monitoring.look(Path(watch))
    analysis = run.analysis
    gate = judge(run.bundle.run, analysis, arms, standing, watched)
    judged = [c for c in analysis.comparisons if c.after in arms or c.after not in run.subject.after]
    invalid = any(c.verdict is Verdict.INVALID for c in judged)
    on = written(datetime.now(UTC))
    name = Path(watch).resolve().name if watch else ""
    return Decided(gate, analysis.title, analysis.headline, on, invalid, tuple(standing), name)


def shipped(subject: Subject, arm: str = "") -> list[str]:
    """The arms that a decision is about: the one that is named, else all that are after the change.

    Raises UsageError for an arm that is not to be shipped.
    """
    if arm and arm not in subject.after:
        known = ", ".join(subject.after) or "none in this run"
        raise UsageError(f"arm '{arm}' is not to be shipped; expected one of: {known}")
    return [arm] if arm else subject.after


# A rollback as a notebook shows it: rehearsed, with the run that it rests on, or done in a database in use.


class RehearsedRun(Run):
    """The run of a rehearsed rollback, whose decision is whether everything is as before."""

    @property
    def decision(self) -> Block:
        """Whether everything is as before, item by item."""
        with reading(self.bundle.path):
            return rollback(Rollback.of(self.bundle.run["rollback"]))


class RolledBack:
    """A rollback from its folder; nothing here measures or drops anything."""

    def __init__(self, folder: Path) -> None:
        """Read rollback.json. Raises BundleError where it is missing or damaged."""
        self.folder = folder
        try:
            text = (folder / FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise BundleError(f"{folder}/{FILE}: cannot be read; expected the folder of a rollback") from None
        with reading(folder / FILE):
            self.found = Rollback.of(json.loads(text))

    def render(self) -> Path:
        """Write the report of a rehearsal's run, or rollback.html; returns the page. Raises BundleError."""
        if (self.folder / "run.json").exists():
            return render(self.folder)
        out = self.folder / "rollback.html"
        write_atomically(out, page(f"{self.found.word}: rollback", rollback(self.found).html))
        return out

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style>{rollback(self.found)._repr_html_()}"

    def __repr__(self) -> str:
        return repr(rollback(self.found))
