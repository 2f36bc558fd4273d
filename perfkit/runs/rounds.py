"""Rounds read back into cells (one per arm, scenario and item), and the number of blocks that a pilot asks for.

An outcome other than `OK`, a timeout for instance, is an error of its cell and has no part in its response times.
Memory is bounded: at most `MOST` times of an item beyond those with stamps are kept, and no columns of a round that
was read.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from perfkit.base import stats
from perfkit.base.judgement import blocks_for
from perfkit.base.stats import Ratio, ratio
from perfkit.config import Limits
from perfkit.load.samples import DROPPED, OK, Rest, Samples, faults
from perfkit.runs.records import FLOOR, PlannedBlocks, Round, RunRecord, Spread

MOST = 100_000  # maximum number of times made from the histogram of a round's requests beyond `limits.samples`

Key = tuple[str, str]  # scenario, item
Use = tuple[Mapping[str, int], Mapping[str, int]]  # executions by query, scans by counter
Times = NDArray[np.float64]


_NO_REST = Rest()


@dataclass(slots=True)
class SampleCell:
    """The requests of one arm, scenario and item in all rounds; dictionaries are by block, times in ms.

    If the scenario searches for a rate, only the requests at the highest rate that held are included: the steps above
    it are meant to fail.
    """

    blocks: dict[int, Times] = field(default_factory=dict)  # response times of the successes
    medians: dict[int, float] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)  # successes per second, or the rate that a search found
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)  # failed, sent
    outcomes: Counter[str] = field(default_factory=Counter)
    n: int = 0  # successes that count, including those without a time of their own
    attempts: int = 0  # of the requests with stamps
    stamped: int = 0
    maximum: float = float("nan")
    lags: list[Times] = field(default_factory=list)  # scheduled to started, of requests with stamps
    waits: list[Times] = field(default_factory=list)  # started to a connection
    services: list[Times] = field(default_factory=list)  # started to done
    faults: dict[int, Mapping[str, float]] = field(default_factory=dict)  # why a round is invalid, see `samples.faults`
    limited: int = 0  # rounds whose search ended at its upper bound or because of the client
    unheld: int = 0  # rounds in which no rate held

    @property
    def errors(self) -> int:
        """The number of requests with an outcome other than OK, including dropped ones."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != OK)

    @property
    def fault(self) -> str:
        """The number of invalid rounds and the worst case of each reason; empty if every round is valid."""
        if not self.faults:
            return ""
        worst: dict[str, float] = {}
        for reasons in self.faults.values():
            for text, value in reasons.items():
                worst[text] = max(value, worst.get(text, value))
        reasons_text = "; ".join(text.format(value) for text, value in worst.items())
        return f"{len(self.faults)} of {len(self.blocks)} rounds invalid: {reasons_text}"


@dataclass(slots=True)
class RoundReading:
    """A bundle's rounds, read into cells, errors and uses of indexes."""

    cells: dict[tuple[str, Key], SampleCell] = field(default_factory=dict)  # by arm
    rounds: list[Round] = field(default_factory=list)  # without their columns
    uses: dict[str, list[Use]] = field(default_factory=lambda: defaultdict(list))  # by arm, of queries sent as SQL
    errors: dict[tuple[str, str, str], tuple[int, str]] = field(default_factory=dict)  # arm, scenario, outcome

    @classmethod
    def of(cls, rounds: Iterable[Round], run: RunRecord) -> RoundReading:
        """Read rounds one by one, each once."""
        searches = {scenario.name for scenario in run.scenarios if scenario.search}
        reading = cls()
        for round_ in rounds:
            reading._add(round_, round_.scenario in searches and round_.arm != FLOOR, run.config.limits)
        return reading

    def _add(self, round_: Round, searched: bool, limits: Limits) -> None:
        columns = round_.columns
        included = [row for row, counted in enumerate(columns.counted) if counted or not searched]
        rest = {item: Rest.of(record) for item, record in round_.rest.items()}
        for item in dict.fromkeys([*columns.item, *rest]):
            indexes = [row for row in included if columns.item[row] == item]
            cell = self.cells.setdefault((round_.arm, (round_.scenario, item)), SampleCell())
            _add_requests(cell, round_, indexes, rest.get(item, _NO_REST))
            if searched:  # the rate that the search found, in place of the rate of successes
                cell.rates[round_.block] = rate = round_.health["rate"]
                cell.unheld += not rate
                cell.limited += bool(round_.health["limited"])
            elif (
                round_.arm != FLOOR
                and (p50 := cell.medians.get(round_.block))
                and (reasons := faults(round_.health, p50, limits))
            ):
                cell.faults[round_.block] = reasons
        self._count_errors(round_, included, rest.values())
        answered = Counter(n for n, out in zip(columns.item, columns.outcome, strict=True) if out == OK)
        answered.update({item: requests.outcomes[OK] for item, requests in rest.items()})
        self.uses[round_.arm] += [({query: answered[query]}, scans) for query, scans in round_.usage.items()]
        self.rounds.append(replace(round_, columns=Samples(), rest={}))

    def _count_errors(self, round_: Round, included: Sequence[int], rest: Iterable[Rest]) -> None:
        seen = [(round_.columns.outcome[row], round_.columns.detail[row], 1) for row in included]
        seen += [(outcome, "", count) for requests in rest for outcome, count in requests.outcomes.items()]
        for outcome, detail, more in seen:
            if outcome != OK and more:
                key = round_.arm, round_.scenario, outcome
                count, first = self.errors.get(key, (0, detail))
                self.errors[key] = count + more, first


def _add_requests(cell: SampleCell, round_: Round, rows: Sequence[int], rest: Rest) -> None:
    """Add one round's requests of one item: those with stamps, by their rows in the columns, and the rest."""
    c, block = round_.columns, round_.block
    outcomes = Counter(c.outcome[row] for row in rows)
    outcomes.update(rest.outcomes)
    served = c.served(rows)
    due, begun, done = (np.array([column[row] for row in served], float) for column in (c.scheduled, c.started, c.done))
    held = np.array([c.started[row] if (at := c.acquired[row]) is None else at for row in served], float)
    times, answered = _with_rest((done - due) / 1e6, rest), len(served) + rest.outcomes[OK]
    cell.blocks[block] = times
    cell.counts[block] = outcomes.total() - outcomes[OK], outcomes.total()
    cell.outcomes.update(outcomes)
    cell.n += answered
    sent = [c.attempts[row] for row in rows if c.outcome[row] != DROPPED]
    cell.attempts, cell.stamped = cell.attempts + sum(sent), cell.stamped + len(sent)
    cell.lags.append((begun - due) / 1e6)
    cell.waits.append((held - begun) / 1e6)
    cell.services.append((done - begun) / 1e6)
    if len(times):
        longest = max(float((done - due).max(initial=0.0)) / 1e6, rest.times.get_max_value() / 1000)
        cell.maximum = max(longest, cell.maximum) if cell.medians else longest
        cell.medians[block] = stats.percentile(times, 50)
        cell.rates[block] = answered / _seconds(c, served, rest)


def _with_rest(times: Times, rest: Rest) -> Times:
    """Return all times of a round; if the histogram is thinned, the other times are thinned by the same share."""
    total = rest.outcomes[OK]
    if not total:
        return times
    values = rest.values_ms(MOST)
    kept = round(len(times) * len(values) / total)
    ranks = ((np.arange(kept) + 0.5) * len(times) / max(kept, 1)).astype(int)
    return np.concatenate([np.sort(times)[ranks], values])


def _seconds(columns: Samples, rows: Sequence[int], rest: Rest) -> float:
    """Return the time that the counted requests took, batch by batch; the rest continues the last batch."""
    spans: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        spans[columns.batch[row]] += [columns.scheduled[row], columns.done[row]]
    if rest.outcomes:
        spans[max(spans, default=0)] += [rest.first_ns, rest.last_ns]
    return sum(max(span) - min(span) for span in spans.values()) / 1e9


# The number of blocks is planned from a pilot's spread alone. The effect that the pilot shows is never looked at: a
# number of blocks that depends on the effect would make false findings more likely.
PILOT_BLOCKS = 4
MIN_PLANNED_BLOCKS = 6
METRICS = 2  # number of metrics of a load level that are usually compared: p50 and p95


def planned(
    cells: Mapping[tuple[str, Key], SampleCell], before: str, margin: float, block_s: float, most_s: float
) -> PlannedBlocks | None:
    """Plan a run that takes at most `most_s`; return None if nothing was compared."""
    spreads = list(_spreads(cells, before, margin))
    if not spreads:
        return None
    widest = max(spreads, key=lambda spread: (spread.blocks, spread.sd_log))
    needed = max(MIN_PLANNED_BLOCKS, widest.blocks)
    blocks = max(MIN_PLANNED_BLOCKS, min(needed, int(most_s / block_s)))
    block_s = round(block_s, 2)
    what = f"{widest.scenario} of {widest.item} on {widest.arm}"
    why = f"{what} varies by {100 * widest.sd_log:.2g} % from block to block"
    sentence = f"to find {100 * margin:g} % needs {needed} blocks, about {_time(needed * block_s)}: {why}"
    if blocks < needed:
        sentence += f"; the time allows {blocks}"
    return PlannedBlocks(
        margin=margin,
        needed=needed,
        blocks=blocks,
        block_s=block_s,
        widest=widest,
        pilot=PILOT_BLOCKS,
        sentence=sentence,
    )


def _spreads(cells: Mapping[tuple[str, Key], SampleCell], before: str, margin: float) -> Iterator[Spread]:
    """Yield the spread of each arm's medians against those of `before`, corrected together with its p95s."""
    by_arm: dict[str, list[tuple[Key, Ratio]]] = defaultdict(list)
    for (arm, key), cell in cells.items():
        other = cells.get((before, key))
        if arm in (before, FLOOR) or other is None:
            continue
        blocks = sorted(cell.medians.keys() & other.medians.keys())
        if change := ratio([other.medians[b] for b in blocks], [cell.medians[b] for b in blocks]):
            by_arm[arm].append((key, change))
    for arm, changes in by_arm.items():
        for key, change in changes:
            needed = blocks_for(change.sd_log, margin, change.pairs, comparisons=METRICS * len(changes))
            scenario, item = key
            yield Spread(arm=arm, scenario=scenario, item=item, sd_log=change.sd_log, blocks=needed)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


# The columns of samples: of the round, of the request, its times, and how it ended.
_ROUND, _REQUEST = ("block", "position", "scenario", "arm"), ("item", "user", "batch", "counted")
_TIMES, _ENDED = ("scheduled_ms", "started_ms", "acquired_ms", "done_ms"), ("outcome", "detail")


def samples(rounds: Iterable[Round]) -> dict[str, list[object]]:
    """Return the requests of all rounds by column; times in ms since the round's first release, None if unknown."""
    columns: dict[str, list[object]] = {name: [] for name in (*_ROUND, *_REQUEST, *_TIMES, *_ENDED)}
    for round_ in sorted(rounds, key=lambda r: r.position):
        recorded, number = round_.columns, len(round_.columns)
        for name in _ROUND:
            columns[name] += [getattr(round_, name)] * number
        for name in (*_REQUEST, *_ENDED):
            columns[name] += getattr(recorded, name)
        for name in _TIMES:
            columns[name] += [None if ns is None else ns / 1e6 for ns in getattr(recorded, name.removesuffix("_ms"))]
    return columns


def samples_csv(rounds: Iterable[Round]) -> str:
    """Return `samples` as CSV, one line for each request."""
    columns = samples(rounds)
    for name in _TIMES:
        columns[name] = ["" if ms is None else f"{ms:.6f}" for ms in columns[name]]
    columns["counted"] = [int(bool(counted)) for counted in columns["counted"]]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *zip(*columns.values(), strict=True)])
    return out.getvalue()
