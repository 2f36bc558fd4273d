"""The files beside a report: verdict.json for machines, summary.md for people, samples.csv: raw data."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from perfkit.bundle import Round
from perfkit.display.claims import measured, sentence
from perfkit.display.decision import GRAVEST
from perfkit.display.subject import Subject
from perfkit.display.table import Cell, Table, markdown
from perfkit.display.tables import compared, glance
from perfkit.release.claims import judged
from perfkit.release.judged import Judged
from perfkit.text import visible

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
    return [
        "p95 compared with before, 95 % intervals",
        "",
        Table("", ("load", *subject.after), rows).to_markdown(),
    ]


def finite(value: Any) -> Any:
    """What JSON can say of a value: null for a number that is none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
