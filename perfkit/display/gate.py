"""A decision to ship as people read and sign it: banner, matrix, plan, risks, answers, lines to sign, checksum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perfkit.analysis.policy import Outcome
from perfkit.display import decision as decisions
from perfkit.display.claims import expected, held, measured
from perfkit.display.html import Block, code, escape
from perfkit.display.table import Cell, Table, marked
from perfkit.display.tables import STATES
from perfkit.numbers import NONE
from perfkit.release.decision import Decided
from perfkit.release.items import CHECKED_NOW, LOAD, GateItem, spoken
from perfkit.release.judged import Judged
from perfkit.release.seal import SHORT, Seal

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
    return decisions.banner(str(gate.decision), decided.title, decided.headline, reasons, meta)


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
