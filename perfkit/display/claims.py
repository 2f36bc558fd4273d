"""What was said beforehand beside what was measured: by load level and arm, and one row for each other claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from perfkit import numbers
from perfkit.display.html import Block, escape
from perfkit.display.subject import Subject
from perfkit.display.table import Cell, Table
from perfkit.release.claims import elsewhere, judged
from perfkit.release.judged import Judged, Outcome

TITLE = "Expected and measured"
_MARKS: dict[Outcome, tuple[str, str]] = {
    "held": ("✓", "good"),
    "better": ("✓", "good"),
    "not held": ("✕", "bad"),
    "open": ("?", "unsure"),
    "not measured": (numbers.NONE, "quiet"),
}
_WORDS: dict[Outcome, str] = {
    "held": "held",
    "better": "better than claimed",
    "not held": "not held",
    "open": "not settled",
    "not measured": "not measured",
}
_NOTE = "Not settled: part of the 95 % interval lies within what was claimed, part of it outside."


def claims(subject: Subject) -> Block:
    """The whole section with its title; nothing where a run has no claims."""
    found = judged(subject.run, subject.analysis, subject.bundle)
    if not found:
        return Block("", "")
    levels = _by_load(subject, found)
    rest = [claim for claim in found if claim not in _at_levels(found).values()]
    tables = [*([levels] if levels else []), table(rest, "Other claims" if levels else "Claims")]
    said = " ".join([sentence(found), _setup(subject), *_left_out(subject)]).strip()
    html = f"<h2>{TITLE}</h2><p>{escape(said)}</p>{''.join(one.to_html() for one in tables)}"
    return Block(html, "\n\n".join([TITLE, said, *(one.to_text() for one in tables)]))


def sentence(found: Sequence[Judged]) -> str:
    """How many claims came out how."""
    counted = Counter(claim.outcome for claim in found)
    parts = [f"{counted[outcome]} {_WORDS[outcome]}" for outcome in _WORDS if counted[outcome]]
    return f"Of {len(found)} claim{'' if len(found) == 1 else 's'}: {', '.join(parts)}."


def table(found: Sequence[Judged], caption: str) -> Table:
    """One row for each claim."""
    columns = ("claim", "expected", "measured", "held", "evidence")
    rows = tuple(
        (
            Cell(claim.text, claim.arm, "sentence"),
            Cell(expected(claim)),
            measured(claim),
            held(claim),
            Cell(claim.evidence if claim.value is not None else numbers.NONE, "", "quiet"),
        )
        for claim in found
    )
    return Table(caption, columns, rows, frozenset(columns[1:3]), note=_NOTE)


def expected(claim: Judged) -> str:
    """What was claimed, with its unit."""
    factor, unit = (100, "%") if claim.unit == "share" else (1, claim.unit)
    low, high = (None if end is None else f"{factor * end:.4g}" for end in (claim.low, claim.high))
    said = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
    return f"{said} {unit}"


def measured(claim: Judged) -> Cell:
    """What was measured, with its interval or span."""
    if claim.value is None:
        return Cell(numbers.NONE, claim.why or "not measured", "quiet")
    ends = [numbers.unbroken(_in_unit(end, claim.unit)) for end in claim.interval or ()]
    spread = " to ".join(ends)
    return Cell(_in_unit(claim.value, claim.unit), spread)


def held(claim: Judged) -> Cell:
    """The outcome, as a mark and in words."""
    mark, state = _MARKS[claim.outcome]
    return Cell(f"{mark} {_WORDS[claim.outcome]}", "", state)


def _at_levels(found: Sequence[Judged]) -> dict[tuple[str, str], Judged]:
    """The first claim on the p95 of each load level and arm."""
    own = (claim for claim in reversed(found) if claim.measure == "p95_ms")
    return {(claim.scenario, claim.arm): claim for claim in own}


def _by_load(subject: Subject, found: Sequence[Judged]) -> Table | None:
    """Load levels as rows, arms as columns, in each cell what was claimed and measured; None without such claims."""
    claimed = _at_levels(found)
    arms = [arm for arm in subject.arms if any(arm == own for _, own in claimed)]
    loads = [scenario for scenario, _ in subject.loads if any(scenario == own for own, _ in claimed)]
    if not arms or not loads:
        return None
    rows = tuple(
        (Cell(subject.label(load), load), *(_at(subject, claimed.get((load, arm)), load, arm) for arm in arms))
        for load in dict.fromkeys(loads)
    )
    note = (
        "✓ held, or better than claimed. Below each: its 95 % interval, and what was claimed with its tolerance. "
        + _NOTE
    )
    return Table("95 of 100 requests were answered within, ms", ("load", *arms), rows, frozenset(arms), note=note)


def _at(subject: Subject, claim: Judged | None, load: str, arm: str) -> Cell:
    if claim is None:
        level = subject.analysis.level(arm, load)
        value, interval = numbers.estimate(level.p95 if level else None)
        return Cell(value, f"{interval} {numbers.unbroken('nothing claimed')}".strip(), "quiet")
    mark, state = _MARKS[claim.outcome]
    said = numbers.unbroken(f"claimed {expected(claim).removesuffix(' ms')}")
    if claim.value is None:
        return Cell(numbers.NONE, f"{claim.why}; {said}", state)
    interval = numbers.interval(*claim.interval) if claim.interval else ""
    return Cell(f"{mark} {numbers.significant(claim.value)}", f"{interval} {said}".strip(), state)


def _setup(subject: Subject) -> str:
    """The set-up that absolute figures were claimed for, where this run has it."""
    own = subject.run["parameters"]
    if not own.get("preset"):
        return ""
    return (
        f"Set-up '{own['preset']}': scale {own['scale']}, a round trip of {own['rtt_ms']:g} ms between service and "
        f"database, {own['connect_rtts']} to connect."
    )


def _left_out(subject: Subject) -> list[str]:
    """What is claimed of other set-ups alone."""
    return [
        f"{count} more make{'s' if count == 1 else ''} sense in the set-up '{name}' alone: perfkit report "
        f"--preset {name}."
        for name, count in elsewhere(subject.run).items()
    ]


def _in_unit(value: float, unit: str) -> str:
    if unit == "share":
        return numbers.percent(value)
    return numbers.seconds(value) if unit == "s" else f"{numbers.significant(value)} {unit}"
