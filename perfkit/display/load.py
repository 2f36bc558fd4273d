"""One arm under load as tables: load levels, what response times are made of, capacity, health of the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from perfkit import numbers
from perfkit.analysis.results import Summary
from perfkit.analysis.sentences import FLOOR_FACTOR
from perfkit.bundle import FLOOR, Round
from perfkit.display.html import Block
from perfkit.display.subject import Subject
from perfkit.display.table import Cell, Table
from perfkit.display.tables import tail
from perfkit.stats import supported


def levels(subject: Subject) -> Table:
    """Every load level: percentiles with their intervals, requests, errors, and what the client alone takes."""
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
    found = {load: subject.analysis.level(subject.before, *load) for load in subject.loads}
    rows = tuple(_level(subject, level) for level in found.values() if level)
    note = (
        "In brackets: 95 % intervals, from what differs between rounds; few rounds leave them open. The client alone "
        "is the same load against a target that does nothing."
    )
    return Table("Response time by load level", columns, rows, frozenset(columns[1:9]), note=note)


def _level(subject: Subject, found: Summary) -> tuple[Cell, ...]:
    floor = subject.analysis.level(FLOOR, found.scenario, found.item)
    alone = floor.p50.value if floor and floor.p50 else None
    near = alone is not None and found.p50 is not None and found.p50.value < FLOOR_FACTOR * alone
    return (
        _load(subject, found.scenario, found.item, found.fault),
        Cell(*numbers.estimate(found.p50)),
        tail(found, 95, ""),
        tail(found, 99, ""),
        Cell(numbers.significant(found.maximum)),
        _least(found),
        Cell(numbers.count(found.n)),
        Cell(numbers.count(found.errors), "", "bad" if found.errors else ""),
        Cell(numbers.NONE if alone is None else numbers.significant(alone), "much of the p50" if near else "", "quiet"),
        Cell(numbers.unbroken("under load"), f"{found.rounds} round{'' if found.rounds == 1 else 's'}", "quiet"),
    )


def _load(subject: Subject, scenario: str, item: str, wrong: str = "") -> Cell:
    """What a load level is called; with several requests or queries, which."""
    several = len({other for name, other in subject.loads if name == scenario}) > 1
    name = f"{scenario}: {item}" if several else scenario
    return Cell(subject.label(scenario), f"{name}; {wrong}" if wrong else name, "unsure" if wrong else "")


def parts(subject: Subject) -> Table:
    """Where the time of a request goes: median, and below it p99; what was dropped or sent again."""
    rows = tuple(
        (_load(subject, found.scenario, found.item), *_parts(found))
        for load in subject.loads
        if (found := subject.analysis.level(subject.before, *load))
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
        "Half of the requests within; below it 99 of 100, where there are the samples for it. Schedule lag: from when "
        "a request was due to when it was sent. Service time: from then to the last byte, the wait for a connection "
        "included. Response time: from when it was due. Dropped: due when as many as may be were waiting."
    )
    return Table("Where the time goes", columns, rows, frozenset(columns[1:]), note=note)


def _parts(found: Summary) -> Iterator[Cell]:
    response = found.p50.value if found.p50 else math.nan, found.p99.value if found.p99 else math.nan
    service = found.service_p50, found.service_p99
    for half, most in ((found.lag_p50, found.lag_p99), (found.wait_p50, found.wait_p99), service, response):
        known = supported(found.n, 99) and math.isfinite(most)
        yield Cell(numbers.significant(half), f"p99 {numbers.significant(most)}" if known else "")
    yield Cell(numbers.count(found.dropped), "", "bad" if found.dropped else "")
    yield Cell(numbers.significant(found.attempts))


def capacity(subject: Subject) -> Block:
    """The highest rate that each search found to hold."""
    searched = {s["name"]: s for s in subject.run.get("scenarios", ()) if s.get("search")}
    found = {level.scenario: level for level in subject.analysis.levels if level.arm == subject.before}
    rows = tuple(_capacity(subject, found[name], s) for name, s in searched.items() if name in found)
    if not rows:
        text = "No scenario searched for the highest rate that holds; one with `search` in perfkit.toml does."
        return Block(f'<p class="note">{text}</p>', text)
    limit = numbers.significant(subject.run["config"]["thresholds"]["p95_ms"])
    columns = ("load", "searched, per second", "highest that held, per second", "rounds")
    note = (
        f"A rate holds while 95 of 100 requests are answered within {limit} ms and no more fail, or are dropped, than "
        "the limit allows. Each round searches anew, so the interval is over rounds."
    )
    table = Table("Capacity", columns, rows, frozenset(columns[1:]), note=note)
    return Block(table.to_html(), table.to_text())


def _capacity(subject: Subject, found: Summary, scenario: Mapping[str, Any]) -> tuple[Cell, ...]:
    rate = _least(found)
    doubts = [
        f"{found.limited} of {found.rounds} rounds ended at the bound of the search or of the client",
        f"no rate held in {found.unheld} of {found.rounds} rounds",
    ]
    doubts = [said for said, count in zip(doubts, (found.limited, found.unheld), strict=True) if count]
    known = [rate.note] if rate.note else []
    return (
        _load(subject, found.scenario, ""),
        Cell(f"{scenario['rate']:g} to {scenario['search']['most']:g}"),
        Cell(rate.text, "; ".join(known + doubts), "unsure" if doubts else ""),
        Cell(numbers.count(found.rounds)),
    )


def _least(found: Summary) -> Cell:
    """Requests per second; of a search that more might have held, at least so many."""
    value, interval = numbers.estimate(found.throughput)
    open_ended = found.limited and found.throughput
    return Cell(f"≥ {value}" if open_ended else value, "" if found.limited == found.rounds else interval)


# what a column of health shows: its heading, the key, how rounds become one, how that is written
_Facts = tuple[tuple[str, str, Callable[[Sequence[float]], float], Callable[[float], str]], ...]
_HEALTH: _Facts = (
    ("schedule lag, p50, ms", "lag_p50_ms", max, numbers.significant),
    ("schedule lag, p99, ms", "lag_p99_ms", max, numbers.significant),
    ("busiest worker", "worker_cpu", max, numbers.percent),
    ("garbage collection, ms", "gc_ms", max, numbers.significant),
    ("looking parameters up, ms", "lookup_ms", max, numbers.significant),
    ("taken by other machines", "steal", max, numbers.percent),
    ("rounds with a checkpoint", "checkpoints", sum, numbers.count),
    ("rounds with autovacuum", "autovacuums", sum, numbers.count),
    ("pages read", "blocks_read", sum, numbers.count),
    ("pages found in memory", "blocks_hit", sum, numbers.count),
)


def health(subject: Subject, rounds: Sequence[Round]) -> Table:
    """By load level, the worst round's client and machine, and what the server did in all rounds."""
    own = [round_ for round_ in rounds if round_.arm == subject.before]
    known = [fact for fact in _HEALTH if any(fact[1] in round_.health for round_ in own)]
    columns = ("load", "rounds", *(heading for heading, *_ in known))
    rows = []
    for name in dict.fromkeys(scenario for scenario, _ in subject.loads):
        found = [round_.health for round_ in own if round_.scenario == name]
        figures = ([health[key] for health in found if key in health] for _, key, _, _ in known)
        cells = (Cell(show(join(f)) if f else numbers.NONE) for f, (*_, join, show) in zip(figures, known, strict=True))
        rows.append((_load(subject, name, ""), Cell(numbers.count(len(found))), *cells))
    limits = subject.run["config"]["limits"]
    lag = f"{numbers.significant(limits['lag_ms'])} ms or {numbers.percent(limits['lag_share'])} of the median"
    note = (
        "Of the worst round; checkpoints, autovacuums and pages of all. A round is invalid where the typical schedule "
        f"lag is above {lag}, whichever is larger, or a worker is busy above {numbers.percent(limits['worker_cpu'])}."
    )
    return Table("Health of the rounds", columns, tuple(rows), frozenset(columns[1:]), note=note)
