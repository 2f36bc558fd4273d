"""How it was measured, on what, what the words mean, and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from perfkit import numbers
from perfkit.display.html import Block, code, escape, explained
from perfkit.display.subject import Subject
from perfkit.display.table import Cell, Table

_WORDS = {
    "response time": "from when a request was due to the last byte of its answer, any waiting included",
    "p50, p95, p99": "half, 95, 99 of 100 requests were answered within; only with the samples for it",
    "round, block": (
        "one load level on one arm, once; one round of every arm in random order. "
        "n rounds are n observations, however many requests they hold"
    ),
    "ratio": "after divided by before, paired by block; ×0.50 is half the time",
    "interval": "95 %: of a hundred such intervals about five miss the true value",
    "faster, slower": "the interval excludes 1, also after correcting for the number of comparisons (Holm)",
    "equivalent": "a difference larger than the margin, either way, is excluded (two one-sided tests, Holm)",
    "inconclusive": "neither; more blocks would tell",
    "invalid": "too few healthy rounds, or the client was the bottleneck",
    "control": "an arm identical to before: its difference from before is chance",
    "floor": "the same load against a target that does nothing: what the client costs",
    "under load, measured once": "many rounds, with an interval; one EXPLAIN ANALYZE",
}
_COMPARING = {
    "ratio",
    "faster, slower",
    "equivalent",
    "inconclusive",
    "control",
}  # words that one arm alone has no use for


def method(subject: Subject) -> Block:
    """Load levels, arms, data, machine, settings and words."""
    tables = [_scenarios(subject), _arms(subject), *_facts(subject)]
    wide, narrow = tables[:2], tables[2:]
    meant = {word: text for word, text in _WORDS.items() if not (subject.alone and word in _COMPARING)}
    html = (
        "".join(table.to_html() for table in wide)
        + f'<div class="columns">{"".join(f"<div>{table.to_html()}</div>" for table in narrow)}</div>'
        + f"<h3>Words</h3>{explained(meant.items())}"
    )
    glossary = "\n".join(f"{word}: {text}" for word, text in meant.items())
    return Block(html, "\n\n".join([*(table.to_text() for table in tables), glossary]))


SHIPPING = "What this run cannot know, people's answers and a watch, is asked by: perfkit gate, with this folder."


def reproduce(subject: Subject) -> Block:
    """The command that measures the same again, and the files beside the report."""
    command = str(subject.run.get("command") or "not recorded")
    files = ["run.json", "samples.csv", "verdict.json", "summary.md"]
    files += [name for name in ("perfkit.toml", "audit.jsonl") if (subject.bundle.path / name).exists()]
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    beside = f"Beside this file: {links}, and <code>rounds/</code> and <code>plans/</code> as recorded."
    shipping = "" if subject.alone or "rollback" in subject.run else SHIPPING
    html = f"{code(command, name='command')}<p>{beside} {escape(shipping)}</p>"
    return Block(html, f"{command}\nBeside the report: {', '.join(files)}, rounds/ and plans/. {shipping}".rstrip())


def _scenarios(subject: Subject) -> Table:
    columns = ("load", "sends", "users", "requests each", "batches", "requests a round")
    rows = tuple(
        (
            Cell(str(s.get("label") or s["name"]), s["name"]),
            Cell(", ".join(s["send"])),
            *map(Cell, _amounts(s)),
        )
        for s in subject.run.get("scenarios", ())
    )
    note = (
        "Closed model: the users of a batch are released at one instant, and each sends its next request when the last "
        "is answered. With a rate: requests arrive whether the ones before are answered or not, and users are the most "
        "that may be in flight."
    )
    return Table("Load levels", columns, rows, frozenset(columns[2:]), note=note)


def _amounts(scenario: Mapping[str, Any]) -> tuple[str, ...]:
    users, batches, rate = scenario.get("users", 1), scenario.get("batches", 1), scenario.get("rate")
    if rate or scenario.get("engine") == "pgbench":
        lasts = f"{scenario['seconds']:g} s" + (f" at {rate:g} per second" if rate else "")
        lasts += "".join(f", {stage['seconds']:g} s to {stage['rate']:g}" for stage in scenario.get("stage", ()))
        steps = ", then faster by steps" if scenario.get("search") else ""
        return numbers.count(users), numbers.NONE, numbers.NONE, lasts + steps
    requests = scenario.get("requests", 1) * len(scenario["send"])
    return tuple(map(numbers.count, (users, requests, batches, users * requests * batches)))


def _arms(subject: Subject) -> Table:
    rows = tuple(
        (
            Cell(arm),
            Cell("alone" if subject.alone else subject.role(arm)),
            Cell(subject.title(arm), _differences(subject, arm)),
        )
        for arm in subject.arms
    )
    return Table("Arms", ("arm", "role", "what it is"), rows)


def _differences(subject: Subject, arm: str) -> str:
    """Settings and server version of an arm, where it has its own."""
    facts = subject.run.get("arms", {}).get(arm, {})
    said = [f"{name} = {value}" for name, value in facts.get("settings", {}).items()]
    if len({f.get("postgres") for f in subject.run.get("arms", {}).values()}) > 1:
        said.append(f"PostgreSQL {facts.get('postgres', '?')}")
    return ", ".join(said)


def _facts(subject: Subject) -> list[Table]:
    run = subject.run
    database, sizes = run.get("database", {}), run.get("database", {}).get("bytes", {})
    data = {
        name: f"{numbers.count(rows)} rows, {numbers.size(sizes.get(name, 0))}"
        for name, rows in database.get("rows", {}).items()
    }
    given = {n: v for n, v in run.get("parameters", {}).items() if n not in ("arms", "scenarios") and v != ""}
    sequential = run.get("order") == "sequential"
    order = {
        "order": "one arm alone"
        if subject.alone
        else "one arm after the other: before, after, before again"
        if sequential
        else "all arms alternate in random order inside every block",
        "database": run.get("origin", {}).get("way", ""),
        "worker processes": run.get("workers", "?"),
        "tried on this machine": "; ".join(
            f"{trial['workers']}: {numbers.significant(trial['p50_ms'])} ms" for trial in run.get("calibration", ())
        ),
        "planned": run.get("planning", {}).get("sentence", ""),
    }
    spent = {name: numbers.seconds(value) for name, value in run.get("timings", {}).items()}
    server = run.get("server", {})
    known = [
        _pairs(
            "Parameters",
            {**given, **order, "started": run.get("started", ""), "finished": run.get("finished", "")},
        ),
        _pairs("Data", {**data, "made in": numbers.seconds(database.get("seconds", 0.0))}),
        _pairs("Machine", {**run.get("host", {}), **run.get("packages", {})}),
        _pairs(
            f"PostgreSQL {server.get('version', '?')}, {server.get('kind', '?')}: settings",
            server.get("settings", {}),
        ),
        _pairs("Where the time went", spent),
    ]
    return [table for table in known if table.rows]


def _pairs(caption: str, facts: Mapping[str, Any]) -> Table:
    rows = tuple((Cell(str(name)), Cell(_plain(value))) for name, value in facts.items())
    return Table(caption, ("name", "value"), rows)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
