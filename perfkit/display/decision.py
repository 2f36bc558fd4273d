"""The decision, and what weakens it: the first things anybody reads."""

from __future__ import annotations

from collections.abc import Sequence

from perfkit import numbers
from perfkit.analysis.cautions import Caveat
from perfkit.analysis.sentences import complete_blocks
from perfkit.display.html import Block, escape, folded, headed, listed
from perfkit.display.subject import Subject
from perfkit.display.table import MARKS
from perfkit.display.tables import glance

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


def decision(subject: Subject) -> Block:
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


def weaknesses(subject: Subject) -> Block:
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
        *([f"{numbers.count(largest[1])} rows in {largest[0]}"] if largest else []),
        *([f"PostgreSQL {version} ({server.get('kind', 'not started')})"] if version else []),
        str(run.get("started", "")).replace("T", " ")[:16] + " UTC",
    ]
    return " · ".join(parts)
