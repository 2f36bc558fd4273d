"""The sections of a report on queries and plans, indexes, the load of one arm, and the method."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from perfkit.analysis.results import FLOOR_FACTOR, PlanUse, Summary
from perfkit.analysis.tables import Subject, compared, load_cell, tail, under_load
from perfkit.base import units
from perfkit.base.bundle import dumps
from perfkit.base.stats import Interval, supported
from perfkit.explain.html import DiffView, PlanView
from perfkit.postgres.index_builds import Built
from perfkit.runs.records import FLOOR, ScenarioRecord
from perfkit.show.html import (
    Cell,
    Code,
    Column,
    Folded,
    Inline,
    Paragraph,
    Part,
    Section,
    Table,
    Terms,
    cell,
    note,
    number,
    stacked,
)


def queries(subject: Subject) -> Section:
    """Return every query in every arm: latency under load, plan and buffers of one execution; then its SQL."""
    uses = {(use.query, use.arm): use for use in subject.analysis.plans}
    table = Table.of(
        "Plans and their effect",
        (
            Column("query"),
            Column("arm"),
            number("p50, ms (under load)", key="p50_ms"),
            number("p50 / before", key="p50_ratio"),
            Column("plan (measured once)", key="plan"),
            number("buffers (measured once)", key="buffers"),
            number("executions that used it", key="executions"),
        ),
        [
            _query(subject, query, uses[query, arm], uses.get((query, subject.before)))
            for query in subject.run.queries
            for arm in subject.arms
            if (query, arm) in uses
        ],
        headers=2,
        grouped=True,
        note="Buffers are 8 kB pages that one execution touches. "
        "The last column compares the server's scan counters with the plan shown.",
    )
    texts = {name: query.sql for name, query in subject.run.queries.items()}
    for arm in subject.arms:
        texts |= {f"{name} in {arm}": text for name, text in subject.run.arm(arm).rewrite.items()}
    return stacked(table, *(_source(f"SQL of {name}", text.strip()) for name, text in texts.items()))


def _source(title: str, source: str, name: str = "") -> Folded:
    """Return source text that only HTML has, folded."""
    return Folded(title, [Code(source, name or title)], in_text=False)


def _query(subject: Subject, query: str, use: PlanUse, before: PlanUse | None) -> tuple[Cell, ...]:
    level = next((x for x in subject.analysis.levels if (x.arm, x.item) == (use.arm, query)), None)
    quiet = "quiet" if subject.role(use.arm) == "control" else ""
    other = before if before and before.arm != use.arm else None
    change = "" if other is None else "same plan as before" if other.fingerprint == use.fingerprint else "changed"
    fewer = f"before: {units.count(other.buffers)}" if other and other.buffers != use.buffers else ""
    mark = "✓" if use.verified else "?" if use.scans_seen or not use.scans_expected else "✕"
    seen = f"{units.count(use.scans_seen)} of {units.count(use.scans_expected)}"
    counted = {"": use.scans_seen if use.scans_expected else math.nan, "expected": use.scans_expected}
    return (
        Cell(query, subject.run.queries[query].comment),
        Cell(use.arm, "", quiet),
        cell(level.p50 if level else None, state=quiet),
        compared(subject.analysis.comparison(use.arm, level.scenario, "p50", query) if level else None),
        Cell(use.summary, change, quiet),
        Cell(units.count(use.buffers), fewer, quiet, value=use.buffers),
        Cell(
            f"{mark} {seen if use.scans_expected else 'not counted'}",
            state={"✓": quiet or "good", "✕": "bad", "?": "unsure"}[mark],
            value=counted,
        ),
    )


def index_costs(subject: Subject) -> Table:
    """Return the size, WAL and build time of every index of the change."""
    arms = [subject.run.arm(arm) for arm in subject.after]
    built = {index.name: index for facts in arms for index in facts.indexes}
    expected = dict.fromkeys(name for facts in arms for name in facts.expected_indexes)
    tables = {table: size for facts in arms for table, size in facts.table_bytes.items()}
    rows = [_index(index, tables.get(index.table, 0)) for index in built.values()]
    rows += [(Cell(name, "missing", "bad"), *[Cell("")] * 5) for name in expected if name not in built]
    if built:
        rows.append(_total(list(built.values()), tables))
    note = "Measured once, on an arm's template database, with the server idle and the data in memory."
    if subject.run.order == "sequential":
        note = "Measured once, built CONCURRENTLY in the database while it was in use, and removed at the end."
    return Table.of(
        "Size, WAL and build time of each index",
        (
            Column("index"),
            Column("definition"),
            number("size", show=units.size, key="size_bytes"),
            number("of its table", show=units.percent, key="share_of_table"),
            number("WAL written", show=units.size, key="wal_bytes"),
            number("build time", show=units.seconds, key="build_s"),
        ),
        rows,
        note=note,
    )


def _index(index: Built, table_bytes: float) -> tuple[object, ...]:
    definition = index.definition.split(" USING ")[-1]
    return (
        Cell(index.name, "" if index.valid else "invalid", "" if index.valid else "bad"),
        Cell(f"{index.table}: {definition}", code=True),
        index.bytes,
        index.bytes / table_bytes if table_bytes else None,
        index.wal_bytes,
        index.seconds,
    )


def _total(built: Sequence[Built], tables: dict[str, int]) -> tuple[Cell, ...]:
    size, wal = sum(index.bytes for index in built), sum(index.wal_bytes or 0 for index in built)
    table_bytes = sum(tables.get(table, 0) for table in {index.table for index in built})
    on = f"{len(built)} index{'' if len(built) == 1 else 'es'} on tables of {units.size(table_bytes)}"
    return (
        Cell("in total", on, "total"),
        Cell("", state="total"),
        cell(size, units.size, "total"),
        cell(size / table_bytes if table_bytes else None, units.percent, "total"),
        cell(wal, units.size, "total"),
        cell(sum(index.seconds for index in built), units.seconds, "total"),
    )


def index_lab(subject: Subject) -> Section:
    """Return the result of an index lab, if the run contains its summary."""
    lab = subject.run.lab
    if not lab:
        text = "This run did not test which indexes are needed: perfkit indexes ablate, then report --lab FOLDER."
        return stacked(note(text))
    columns = tuple(lab.columns)
    rows = tuple(tuple(Cell(*texts) for texts in row) for row in lab.rows)
    measured = f"Measured in a separate run: {lab.command}"
    table = Table("What each index is worth", columns, rows, frozenset(columns[4:]), note=measured)
    return stacked(Paragraph(Inline(lab.sentence)), table)


def plans(subject: Subject) -> Section:
    """Return every query's plans before and after, folded: the change, both drawings, and the JSON to copy."""
    drawn: list[Part] = [_drawn(subject, query) for query in subject.run.queries]
    return stacked(*drawn or [Paragraph("No plan was captured.")])


def _drawn(subject: Subject, query: str) -> Folded:
    """Draw one query: each arm compared with before; an arm with the plan of an earlier one is one sentence."""
    views = {arm: view for arm in subject.arms if (view := _view(subject, arm, query))}
    before = views.get(subject.before)
    shown: list[Part] = []
    summary = ""
    drawn: list[str] = []
    for arm in sorted((arm for arm in views if arm != subject.before), key=lambda arm: arm not in subject.after):
        pairs = (DiffView(views[other], views[arm]) for other in (subject.before, *drawn) if other in views)
        if same := next((pair for pair in pairs if pair.diff.same), None):
            shown.append(Paragraph(f"{arm}: {same.diff.sentence} ({same.before.title} -> {arm})"))
        elif before:
            changed = DiffView(before, views[arm])
            summary = summary or changed.diff.sentence
            drawn.append(arm)
            shown.append(changed)
    if not drawn:
        shown[:0] = [view for view in [before or next(iter(views.values()), None)] if view]
    plans = ((arm, dumps([view.plan.document])) for arm, view in views.items())
    sources = (_source(f"JSON of {query} in {arm}", plan, f"JSON, {arm}") for arm, plan in plans)
    return Folded(f"{query}: {summary}" if summary else query, [*shown, *sources])


def _view(subject: Subject, arm: str, query: str) -> PlanView | None:
    """Return a captured plan with its findings."""
    capture = subject.bundle.plan(arm, query)
    return PlanView.of(capture, arm) if capture else None


# One arm under load: load levels, parts of response times, capacity.


def load_levels(subject: Subject) -> Table:
    """Return every load level: percentiles with their intervals, requests, errors, and the client alone."""
    return Table.of(
        "Response time by load level",
        (
            Column[Summary](
                "load", lambda level: load_cell(subject, level.scenario, level.item, level.fault), key="scenario"
            ),
            number("p50, ms", lambda level: level.p50),
            number("p95, ms", lambda level: tail(level, 95)),
            number("p99, ms", lambda level: tail(level, 99)),
            number("slowest, ms", lambda level: level.maximum, units.significant),
            number("per second", _least),
            number("requests", lambda level: level.n),
            number("errors", lambda level: cell(level.errors, state="bad" if level.errors else "")),
            number("client alone, p50, ms", lambda level: _client_alone(subject, level)),
            Column("evidence", under_load),
        ),
        _levels(subject),
        note="Brackets: 95 % confidence intervals, from the differences between rounds; few rounds leave them open. "
        "The client alone is the same load against a target that does nothing.",
    )


def _levels(subject: Subject) -> list[Summary]:
    """Return the load levels of a run's first arm."""
    return [level for load in subject.loads if (level := subject.analysis.level(subject.before, *load))]


def _client_alone(subject: Subject, level: Summary) -> Cell:
    floor = subject.analysis.level(FLOOR, level.scenario, level.item)
    alone = floor.p50.value if floor and floor.p50 else None
    near = alone is not None and level.p50 is not None and level.p50.value < FLOOR_FACTOR * alone
    return replace(cell(alone, state="quiet"), note="much of the p50" if near else "")


def parts(subject: Subject) -> Table:
    """Return the parts of a request's time, as median and p99, and the requests that were dropped or retried."""
    return Table.of(
        "Where the time goes",
        (
            Column[Summary]("load", lambda level: load_cell(subject, level.scenario, level.item), key="scenario"),
            number("schedule lag, ms", lambda level: _part(level, level.lag_p50, level.lag_p99)),
            number("wait for a connection, ms", lambda level: _part(level, level.wait_p50, level.wait_p99)),
            number("service time, ms", lambda level: _part(level, level.service_p50, level.service_p99)),
            number("response time, ms", lambda level: _part(level, _value(level.p50), _value(level.p99))),
            number("dropped", lambda level: cell(level.dropped, state="bad" if level.dropped else "")),
            number("attempts each", lambda level: level.attempts),
        ),
        _levels(subject),
        note="Half of the requests took at most this time; below it, 99 of 100, if there are enough samples. Schedule "
        "lag: from when a request was due until it was sent. Service time: from then to the last byte, including the "
        "wait for a connection. Response time: from when it was due. Dropped: due at the limit of requests in flight.",
    )


def _value(estimate: Interval | None) -> float:
    return estimate.value if estimate else math.nan


def _part(level: Summary, half: float, most: float) -> Cell:
    known = supported(level.n, 99) and math.isfinite(most)
    note = f"p99 {units.significant(most)}" if known else ""
    return Cell(units.significant(half), note, value={"p50": half, "p99": most if known else math.nan})


def capacity(subject: Subject) -> Table | Paragraph:
    """Return the highest rate that held in each search."""
    searched = {s.name: s for s in subject.run.scenarios if s.search}
    levels = {level.scenario: level for level in subject.analysis.levels if level.arm == subject.before}
    if not searched.keys() & levels.keys():
        return note("No scenario searched for the highest rate that holds; add `search` to a scenario in perfkit.toml.")
    limit = units.significant(subject.run.config.thresholds.p95_ms or math.nan)

    def searched_rates(level: Summary) -> str:
        scenario = searched[level.scenario]
        return f"{scenario.rate:g} to {scenario.search.most:g}" if scenario.search else ""

    return Table.of(
        "Capacity",
        (
            Column("load", lambda level: load_cell(subject, level.scenario), key="scenario"),
            number("searched rates, per second", searched_rates),
            number("highest rate that held, per second", _held, key="held_per_second"),
            number("rounds", lambda level: level.rounds),
        ),
        [levels[name] for name in searched if name in levels],
        note=f"A rate holds if 95 of 100 requests are answered within {limit} ms and failed and dropped requests stay "
        "within the limit. Each round searches anew, so the interval is over rounds.",
    )


def _held(level: Summary) -> Cell:
    """Return the highest rate that held, with the rounds that could not tell."""
    caveats = []
    if level.limited:
        caveats.append(f"{level.limited} of {level.rounds} rounds ended at the limit of the search or of the client")
    if level.unheld:
        caveats.append(f"no rate held in {level.unheld} of {level.rounds} rounds")
    rate = _least(level)
    return replace(rate, note="; ".join(filter(None, (rate.note, *caveats))), state="unsure" if caveats else "")


def _least(level: Summary) -> Cell:
    """Return requests per second; "at least" if a search ended at its limit."""
    rate = cell(level.throughput)
    text = f"≥ {rate.text}" if level.limited and level.throughput else rate.text
    return replace(rate, text=text, note="" if level.limited == level.rounds else rate.note)


# The method: how and on what the run was measured, the words, and how to repeat it.

_WORDS = {
    "response time": "from when a request was due to the last byte of its answer, including any waiting",
    "p50, p95, p99": "half, 95, 99 of 100 requests took at most this time; only with enough samples",
    "round, block": (
        "one load level on one arm, once; one round of every arm in random order. "
        "n rounds are n observations, whatever their number of requests"
    ),
    "ratio": "after divided by before, paired by block; ×0.50 is half the time",
    "interval": "95 %: of a hundred such intervals about five miss the true value",
    "faster, slower": "the interval excludes 1, also after correcting for the number of comparisons (Holm)",
    "equivalent": "a difference larger than the margin is excluded in both directions (two one-sided tests, Holm)",
    "inconclusive": "none of these; more blocks would settle it",
    "invalid": "too few healthy rounds, or the client was the bottleneck",
    "control": "an arm identical to before; it differs from before only by chance",
    "floor": "the same load against a target that does nothing: the cost of the client",
    "under load, measured once": "many rounds, with an interval; one EXPLAIN ANALYZE",
}
# Words that a run of one arm does not need.
_COMPARING = {"ratio", "faster, slower", "equivalent", "inconclusive", "control"}


def method(subject: Subject) -> Section:
    """Return load levels, arms, data, machine, settings and words."""
    words = [(word, text) for word, text in _WORDS.items() if not (subject.run.alone and word in _COMPARING)]
    return stacked(
        _scenarios(subject), _arms(subject), Section(_facts(subject), kind="columns"), Section([Terms(words)], "Words")
    )


SHIPPING = "Run perfkit gate with this folder to add sign-off answers and monitoring."


def reproduce(subject: Subject) -> Section:
    """Return the command that repeats the run, and the files beside the report."""
    command = subject.run.command or "not recorded"
    files = ["run.json", "samples.csv", "verdict.json", "summary.md"]
    files += [name for name in ("perfkit.toml", "audit.jsonl") if (subject.bundle.path / name).exists()]
    links = [part for name in files for part in (Inline(", ", ""), Inline(name, "a"))][1:]
    shipping = "" if subject.run.alone or subject.run.rollback else f" {SHIPPING}"
    folders: list[str | Inline] = [
        ", and ",
        Inline("rounds/", "code"),
        " and ",
        Inline("plans/", "code"),
        f" as recorded.{shipping}",
    ]
    return stacked(Code(command, "command"), Paragraph(["Beside this file: ", *links, *folders]), gap="\n")


def _scenarios(subject: Subject) -> Table:
    return Table.of(
        "Load levels",
        [
            Column("load"),
            Column("sends"),
            *(number(name) for name in ("users", "requests each", "batches", "requests a round")),
        ],
        [(Cell(s.label or s.name, s.name), ", ".join(s.send), *_amounts(s)) for s in subject.run.scenarios],
        note="Closed model: the users of a batch start at the same instant, and each sends the next request when the "
        "last one is answered. With a rate: requests arrive whether earlier ones are answered or not, and users is the "
        "largest number in flight.",
    )


def _amounts(scenario: ScenarioRecord) -> tuple[str, ...]:
    users, batches, rate = scenario.users, scenario.batches, scenario.rate
    if rate or scenario.pgbench:
        lasts = f"{scenario.seconds:g} s" + (f" at {rate:g} per second" if rate else "")
        lasts += "".join(f", {stage.seconds:g} s to {stage.rate:g}" for stage in scenario.stage)
        steps = ", then faster by steps" if scenario.search else ""
        return units.count(users), units.NONE, units.NONE, lasts + steps
    requests = scenario.requests * len(scenario.send)
    return tuple(map(units.count, (users, requests, batches, users * requests * batches)))


def _arms(subject: Subject) -> Table:
    columns: tuple[Column[str], ...] = (
        Column("arm", lambda arm: arm),
        Column("role", lambda arm: "alone" if subject.run.alone else subject.role(arm)),
        Column("what it is", lambda arm: Cell(subject.title(arm), _differences(subject, arm))),
    )
    return Table.of("Arms", columns, subject.arms)


def _differences(subject: Subject, arm: str) -> str:
    """Return an arm's settings, and its server version if the arms differ."""
    facts = subject.run.arm(arm)
    differences = [f"{name} = {value}" for name, value in facts.settings.items()]
    if len({other.postgres for other in subject.run.arms.values()}) > 1:
        differences.append(f"PostgreSQL {facts.postgres or '?'}")
    return ", ".join(differences)


def _facts(subject: Subject) -> list[Table]:
    run = subject.run
    database = run.database
    data = {
        name: f"{units.count(rows)} rows, {units.size(database.bytes.get(name, 0))}"
        for name, rows in database.rows.items()
    }
    options = run.parameters.model_dump(exclude_unset=True, exclude={"arms", "scenarios"})
    parameters = {name: value for name, value in options.items() if value != ""}
    sequential = run.order == "sequential"
    order = {
        "order": "one arm alone"
        if subject.run.alone
        else "one arm after the other: before, after, before again"
        if sequential
        else "all arms alternate in random order inside every block",
        "database": run.origin.way,
        "worker processes": run.workers or "?",
        "tried on this machine": "; ".join(
            f"{trial.workers}: {units.significant(trial.p50_ms)} ms" for trial in run.calibration
        ),
        "planned": run.planning.sentence if run.planning else "",
    }
    spent = {name: units.seconds(value) for name, value in run.timings.items()}
    server = run.server
    known = [
        _pairs(
            "Parameters",
            {**parameters, **order, "started": run.started, "finished": run.finished},
        ),
        _pairs("Data", {**data, "made in": units.seconds(database.seconds)}),
        _pairs("Machine", {**run.host, **run.packages}),
        _pairs(f"PostgreSQL {server.version or '?'}, {server.kind or '?'}: settings", server.settings),
        _pairs("Where the time went", spent),
    ]
    return [table for table in known if table.rows]


def _pairs(caption: str, facts: Mapping[str, object]) -> Table:
    return Table.of(caption, (Column("name"), Column("value", show=_plain)), [*facts.items()])


def _plain(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
