"""The sections of a report on queries and plans, indexes, the load of one arm, and the method."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perfkit.analysis.results import FLOOR_FACTOR, PlanUse, Summary
from perfkit.analysis.tables import Subject, compared, load_cell, tail
from perfkit.base import units
from perfkit.base.bundle import dumps
from perfkit.base.errors import BundleError, PlanError
from perfkit.base.stats import supported
from perfkit.explain.facts import read_facts
from perfkit.explain.findings import findings
from perfkit.explain.html import DiffView, PlanView
from perfkit.explain.plan import read_plan
from perfkit.postgres.index_builds import Built
from perfkit.runs.records import FLOOR, ScenarioRecord
from perfkit.show.html import Block, Cell, Table, code, escape, explained, folded


def queries(subject: Subject) -> Block:
    """Return every query in every arm: latency under load, plan and buffers of one execution; then its SQL."""
    columns = (
        "query",
        "arm",
        "p50, ms (under load)",
        "p50 / before",
        "plan (measured once)",
        "buffers (measured once)",
        "executions that used it",
    )
    uses = {(use.query, use.arm): use for use in subject.analysis.plans}
    rows = tuple(
        _query(subject, query, uses[query, arm], uses.get((query, subject.before)))
        for query in subject.queries
        for arm in subject.arms
        if (query, arm) in uses
    )
    note = (
        "Buffers are 8 kB pages that one execution touches. "
        "The last column compares the server's scan counters with the plan shown."
    )
    table = Table("Plans and their effect", columns, rows, frozenset((*columns[2:4], *columns[5:])), 2, True, note)
    texts = {name: query.sql for name, query in subject.run.queries.items()}
    for arm in subject.arms:
        rewritten = subject.run.arm(arm).rewrite
        texts |= {f"{name} in {arm}": text for name, text in rewritten.items()}
    sql = "".join(folded(f"SQL of {name}", code(text.strip(), name=f"SQL of {name}")) for name, text in texts.items())
    return Block(table.to_html() + sql, table.to_text())


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
    columns = ("index", "definition", "size", "of its table", "WAL written", "build time")
    note = "Measured once, on an arm's template database, with the server idle and the data in memory."
    if subject.run.order == "sequential":
        note = "Measured once, built CONCURRENTLY in the database while it was in use, and removed at the end."
    return Table("Size, WAL and build time of each index", columns, tuple(rows), frozenset(columns[2:]), note=note)


def index_lab(subject: Subject) -> Block:
    """Return the result of an index lab, if the run contains its summary."""
    lab = subject.run.lab
    if not lab:
        text = "This run did not test which indexes are needed: perfkit indexes ablate, then report --lab FOLDER."
        return Block(f'<p class="note">{escape(text)}</p>', text)
    columns = tuple(lab.columns)
    rows = tuple(tuple(Cell(*cell) for cell in row) for row in lab.rows)
    note = f"Measured in a separate run: {lab.command}"
    table = Table("What each index is worth", columns, rows, frozenset(columns[4:]), note=note)
    html = f"<p><strong>{escape(lab.sentence)}</strong></p>{table.to_html()}"
    return Block(html, f"{lab.sentence}\n\n{table.to_text()}")


def plans(subject: Subject) -> Block:
    """Return every query's plans before and after, folded: the change, both drawings, and the JSON to copy."""
    drawn = [_drawn(subject, query) for query in subject.queries]
    html = "".join(block.html for block in drawn) or "<p>No plan was captured.</p>"
    return Block(html, "\n\n".join(block.text for block in drawn) or "No plan was captured.")


def _drawn(subject: Subject, query: str) -> Block:
    """Draw one query: each arm compared with before; an arm with the plan of an earlier one is one sentence."""
    views = {arm: view for arm in subject.arms if (view := _view(subject, arm, query))}
    before = views.get(subject.before)
    shown: list[tuple[str, str]] = []
    summary = ""
    drawn: list[str] = []
    for arm in sorted((arm for arm in views if arm != subject.before), key=lambda arm: arm not in subject.after):
        pairs = (DiffView(views[other], views[arm]) for other in (subject.before, *drawn) if other in views)
        if same := next((pair for pair in pairs if pair.diff.same), None):
            line = f"{arm}: {same.diff.sentence} ({same.before.title} -> {arm})"
            shown.append((f"<p>{escape(line)}</p>", line))
        elif before:
            changed = DiffView(before, views[arm])
            summary = summary or changed.diff.sentence
            drawn.append(arm)
            shown.append((changed.html(), changed.text()))
    if not drawn:
        shown = [(view.html(), view.text()) for view in [before or next(iter(views.values()), None)] if view] + shown
    source = "".join(
        folded(f"JSON of {query} in {arm}", code(dumps(subject.bundle.plan(arm, query)), name=f"JSON, {arm}"))
        for arm in views
    )
    title = f"{query}: {summary}" if summary else query
    html = folded(title, "".join(html for html, _ in shown) + source)
    return Block(html, "\n\n".join([title, *(text for _, text in shown)]))


def _view(subject: Subject, arm: str, query: str) -> PlanView | None:
    """Return a captured plan with its findings."""
    if (document := subject.bundle.plan(arm, query)) is None:
        return None
    try:
        plan, extra = read_plan(document), subject.bundle.beside_plan(arm, query)
        first = read_plan(extra["earlier"][0]) if extra.get("earlier") else None
        return PlanView(plan, findings(plan, read_facts(extra.get("tables", ()))), arm, first)
    except PlanError as error:
        raise BundleError(f"{subject.bundle.path}/plans/{arm}/{query}: {error}") from None


def _query(subject: Subject, query: str, use: PlanUse, before: PlanUse | None) -> tuple[Cell, ...]:
    level = next((x for x in subject.analysis.levels if (x.arm, x.item) == (use.arm, query)), None)
    comparison = subject.analysis.comparison(use.arm, level.scenario, "p50", query) if level else None
    quiet = "quiet" if subject.role(use.arm) == "control" else ""
    other = before if before and before.arm != use.arm else None
    change = "" if other is None else "same plan as before" if other.fingerprint == use.fingerprint else "changed"
    fewer = f"before: {units.count(other.buffers)}" if other and other.buffers != use.buffers else ""
    mark = "✓" if use.verified else "?" if use.scans_seen or not use.scans_expected else "✕"
    state = {"✓": quiet or "good", "✕": "bad", "?": "unsure"}[mark]
    seen = f"{units.count(use.scans_seen)} of {units.count(use.scans_expected)}"
    seen = seen if use.scans_expected else "not counted"
    return (
        Cell(query, subject.run.queries[query].comment),
        Cell(use.arm, "", quiet),
        Cell(*units.estimate(level.p50 if level else None), quiet),
        compared(comparison),
        Cell(use.summary, change, quiet),
        Cell(units.count(use.buffers), fewer, quiet),
        Cell(f"{mark} {seen}", "", state),
    )


def _index(index: Built, table_bytes: float) -> tuple[Cell, ...]:
    definition = index.definition.split(" USING ")[-1]
    share = units.percent(index.bytes / table_bytes) if table_bytes else units.NONE
    return (
        Cell(index.name, "" if index.valid else "invalid", "" if index.valid else "bad"),
        Cell(f"{index.table}: {definition}", code=True),
        Cell(units.size(index.bytes)),
        Cell(share),
        Cell(units.NONE if index.wal_bytes is None else units.size(index.wal_bytes)),
        Cell(units.seconds(index.seconds)),
    )


def _total(built: Sequence[Built], tables: dict[str, int]) -> tuple[Cell, ...]:
    size, wal = sum(index.bytes for index in built), sum(index.wal_bytes or 0 for index in built)
    table_bytes = sum(tables.get(table, 0) for table in {index.table for index in built})
    share = units.percent(size / table_bytes) if table_bytes else units.NONE
    label = Cell(
        "in total",
        f"{len(built)} index{'' if len(built) == 1 else 'es'} on tables of {units.size(table_bytes)}",
        "total",
    )
    last = (units.size(size), share, units.size(wal), units.seconds(sum(index.seconds for index in built)))
    return (label, Cell("", "", "total"), *(Cell(text, "", "total") for text in last))


# One arm under load: load levels, parts of response times, capacity.


def levels(subject: Subject) -> Table:
    """Return every load level: percentiles with their intervals, requests, errors, and the client alone."""
    columns = (
        "load",
        "p50, ms",
        "p95, ms",
        "p99, ms",
        "slowest, ms",
        "per second",
        "requests",
        "errors",
        "client alone, p50, ms",
        "evidence",
    )
    by_load = [subject.analysis.level(subject.before, *load) for load in subject.loads]
    rows = tuple(_level(subject, level) for level in by_load if level)
    note = (
        "Brackets: 95 % confidence intervals, from the differences between rounds; few rounds leave them open. The "
        "client alone is the same load against a target that does nothing."
    )
    return Table("Response time by load level", columns, rows, frozenset(columns[1:9]), note=note)


def _level(subject: Subject, level: Summary) -> tuple[Cell, ...]:
    floor = subject.analysis.level(FLOOR, level.scenario, level.item)
    alone = floor.p50.value if floor and floor.p50 else None
    near = alone is not None and level.p50 is not None and level.p50.value < FLOOR_FACTOR * alone
    return (
        load_cell(subject, level.scenario, level.item, level.fault),
        Cell(*units.estimate(level.p50)),
        tail(level, 95, ""),
        tail(level, 99, ""),
        Cell(units.significant(level.maximum)),
        _least(level),
        Cell(units.count(level.n)),
        Cell(units.count(level.errors), "", "bad" if level.errors else ""),
        Cell(units.NONE if alone is None else units.significant(alone), "much of the p50" if near else "", "quiet"),
        Cell(units.unbroken("under load"), f"{level.rounds} round{'' if level.rounds == 1 else 's'}", "quiet"),
    )


def parts(subject: Subject) -> Table:
    """Return the parts of a request's time, as median and p99, and the requests that were dropped or retried."""
    rows = tuple(
        (load_cell(subject, level.scenario, level.item), *_parts(level))
        for load in subject.loads
        if (level := subject.analysis.level(subject.before, *load))
    )
    columns = (
        "load",
        "schedule lag, ms",
        "wait for a connection, ms",
        "service time, ms",
        "response time, ms",
        "dropped",
        "attempts each",
    )
    note = (
        "Half of the requests took at most this time; below it, 99 of 100, if there are enough samples. Schedule lag: "
        "from when a request was due until it was sent. Service time: from then to the last byte, including the wait "
        "for a connection. Response time: from when it was due. Dropped: due at the limit of requests in flight."
    )
    return Table("Where the time goes", columns, rows, frozenset(columns[1:]), note=note)


def _parts(level: Summary) -> Iterator[Cell]:
    response = level.p50.value if level.p50 else math.nan, level.p99.value if level.p99 else math.nan
    service = level.service_p50, level.service_p99
    for half, most in ((level.lag_p50, level.lag_p99), (level.wait_p50, level.wait_p99), service, response):
        known = supported(level.n, 99) and math.isfinite(most)
        yield Cell(units.significant(half), f"p99 {units.significant(most)}" if known else "")
    yield Cell(units.count(level.dropped), "", "bad" if level.dropped else "")
    yield Cell(units.significant(level.attempts))


def capacity(subject: Subject) -> Block:
    """Return the highest rate that held in each search."""
    searched = {s.name: s for s in subject.run.scenarios if s.search}
    levels = {level.scenario: level for level in subject.analysis.levels if level.arm == subject.before}
    rows = tuple(_capacity(subject, levels[name], s) for name, s in searched.items() if name in levels)
    if not rows:
        text = "No scenario searched for the highest rate that holds; add `search` to a scenario in perfkit.toml."
        return Block(f'<p class="note">{text}</p>', text)
    limit = units.significant(subject.run.config.thresholds.p95_ms or math.nan)
    columns = ("load", "searched rates, per second", "highest rate that held, per second", "rounds")
    note = (
        f"A rate holds if 95 of 100 requests are answered within {limit} ms and failed and dropped requests stay "
        "within the limit. Each round searches anew, so the interval is over rounds."
    )
    table = Table("Capacity", columns, rows, frozenset(columns[1:]), note=note)
    return Block(table.to_html(), table.to_text())


def _capacity(subject: Subject, level: Summary, scenario: ScenarioRecord) -> tuple[Cell, ...]:
    rate = _least(level)
    caveats = [
        f"{level.limited} of {level.rounds} rounds ended at the limit of the search or of the client",
        f"no rate held in {level.unheld} of {level.rounds} rounds",
    ]
    caveats = [text for text, count in zip(caveats, (level.limited, level.unheld), strict=True) if count]
    known = [rate.note] if rate.note else []
    return (
        load_cell(subject, level.scenario, ""),
        Cell(f"{scenario.rate:g} to {scenario.search.most:g}" if scenario.search else ""),
        Cell(rate.text, "; ".join(known + caveats), "unsure" if caveats else ""),
        Cell(units.count(level.rounds)),
    )


def _least(level: Summary) -> Cell:
    """Return requests per second; "at least" if a search ended at its limit."""
    value, interval = units.estimate(level.throughput)
    open_ended = level.limited and level.throughput
    return Cell(f"≥ {value}" if open_ended else value, "" if level.limited == level.rounds else interval)


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
_COMPARING = {
    "ratio",
    "faster, slower",
    "equivalent",
    "inconclusive",
    "control",
}  # words that a run of one arm does not need


def method(subject: Subject) -> Block:
    """Return load levels, arms, data, machine, settings and words."""
    tables = [_scenarios(subject), _arms(subject), *_facts(subject)]
    wide, narrow = tables[:2], tables[2:]
    words = {word: text for word, text in _WORDS.items() if not (subject.alone and word in _COMPARING)}
    html = (
        "".join(table.to_html() for table in wide)
        + f'<div class="columns">{"".join(f"<div>{table.to_html()}</div>" for table in narrow)}</div>'
        + f"<h3>Words</h3>{explained(words.items())}"
    )
    glossary = "\n".join(f"{word}: {text}" for word, text in words.items())
    return Block(html, "\n\n".join([*(table.to_text() for table in tables), glossary]))


SHIPPING = "Run perfkit gate with this folder to add sign-off answers and monitoring."


def reproduce(subject: Subject) -> Block:
    """Return the command that repeats the run, and the files beside the report."""
    command = subject.run.command or "not recorded"
    files = ["run.json", "samples.csv", "verdict.json", "summary.md"]
    files += [name for name in ("perfkit.toml", "audit.jsonl") if (subject.bundle.path / name).exists()]
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    beside = f"Beside this file: {links}, and <code>rounds/</code> and <code>plans/</code> as recorded."
    shipping = "" if subject.alone or subject.run.rollback else SHIPPING
    html = f"{code(command, name='command')}<p>{beside} {escape(shipping)}</p>"
    return Block(html, f"{command}\nBeside the report: {', '.join(files)}, rounds/ and plans/. {shipping}".rstrip())


def _scenarios(subject: Subject) -> Table:
    columns = ("load", "sends", "users", "requests each", "batches", "requests a round")
    rows = tuple(
        (Cell(s.label or s.name, s.name), Cell(", ".join(s.send)), *map(Cell, _amounts(s)))
        for s in subject.run.scenarios
    )
    note = (
        "Closed model: the users of a batch start at the same instant, and each sends the next request when the last "
        "one is answered. With a rate: requests arrive whether earlier ones are answered or not, and users is the "
        "largest number in flight."
    )
    return Table("Load levels", columns, rows, frozenset(columns[2:]), note=note)


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
        if subject.alone
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


def _pairs(caption: str, facts: Mapping[str, Any]) -> Table:
    rows = tuple((Cell(str(name)), Cell(_plain(value))) for name, value in facts.items())
    return Table(caption, ("name", "value"), rows)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
