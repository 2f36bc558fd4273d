"""Rounds read back by cell, and the number of blocks that a pilot asks for.

Memory is bounded by what is kept of a round: at most `MOST` times of an item beyond those with stamps, and no
round's columns after it was read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfkit.base import stats
from perfkit.base.bundle import FLOOR, Round
from perfkit.base.stats import Ratio, blocks_for, ratio
from perfkit.load.samples import DROPPED, OK, Rest, faults

MOST = 100_000  # of a round's requests beyond `limits.samples`, how many times are made of their histogram

Key = tuple[str, str]  # scenario, item
Use = tuple[Mapping[str, int], Mapping[str, int]]  # executions by query, scans by counter
Times = NDArray[np.float64]


_NO_REST = Rest()


@dataclass(slots=True)
class SampleCell:
    """What one arm's rounds of one scenario and item hold; by block where it says so, times in ms.

    Of a scenario that searches for a rate only the requests of the step that held are in it: that the steps
    above it fail is what they are for.
    """

    blocks: dict[int, Times] = field(default_factory=dict)  # response times of those answered as expected
    medians: dict[int, float] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)  # answered per second, or the rate that a search found
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)  # failed, sent
    outcomes: Counter[str] = field(default_factory=Counter)
    n: int = 0  # answered as expected and counted, those without a time of their own included
    attempts: int = 0  # of the requests with stamps
    stamped: int = 0
    maximum: float = float("nan")
    lags: list[Times] = field(default_factory=list)  # scheduled to started; those without stamps are missing
    waits: list[Times] = field(default_factory=list)  # started to a connection
    services: list[Times] = field(default_factory=list)  # started to done
    faults: dict[int, Mapping[str, float]] = field(default_factory=dict)  # how far a client was over which limit
    limited: int = 0  # rounds whose search ended at its bound or at the client
    unheld: int = 0  # rounds in which no rate held

    @property
    def errors(self) -> int:
        """Requests with an unexpected outcome, dropped ones included."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != OK)

    @property
    def fault(self) -> str:
        """How many rounds are invalid and the worst of each reason; empty where none is."""
        if not self.faults:
            return ""
        worst: dict[str, float] = {}
        for reasons in self.faults.values():
            for text, value in reasons.items():
                worst[text] = max(value, worst.get(text, value))
        said = "; ".join(text.format(value) for text, value in worst.items())
        return f"{len(self.faults)} of {len(self.blocks)} rounds invalid: {said}"


@dataclass(slots=True)
class RoundReading:
    """Everything that is kept of a bundle's rounds."""

    cells: dict[tuple[str, Key], SampleCell] = field(default_factory=dict)  # by arm
    rounds: list[Round] = field(default_factory=list)  # without their columns
    uses: dict[str, list[Use]] = field(default_factory=lambda: defaultdict(list))  # by arm, of queries sent as SQL
    errors: dict[tuple[str, str, str], tuple[int, str]] = field(default_factory=dict)  # arm, scenario, outcome

    @classmethod
    def of(cls, rounds: Iterable[Round], run: Mapping[str, Any]) -> RoundReading:
        """Read rounds one by one, each once."""
        searches = {scenario["name"] for scenario in run["scenarios"] if scenario.get("search")}
        found = cls()
        for round_ in rounds:
            found._take(round_, round_.scenario in searches and round_.arm != FLOOR, run["config"]["limits"])
        return found

    def _take(self, round_: Round, searched: bool, limits: Mapping[str, float]) -> None:
        columns = round_.columns
        wanted = [not searched or bool(counted) for counted in columns["counted"]]
        rest = {item: Rest.of(own) for item, own in round_.rest.items()}
        for item in dict.fromkeys([*columns["item"], *rest]):
            own = [i for i, name in enumerate(columns["item"]) if name == item and wanted[i]]
            cell = self.cells.setdefault((round_.arm, (round_.scenario, item)), SampleCell())
            _add(cell, round_, own, rest.get(item, _NO_REST))
            if searched:
                _found(cell, round_)
            elif (
                round_.arm != FLOOR
                and (p50 := cell.medians.get(round_.block))
                and (reasons := faults(round_.health, p50, limits))
            ):
                cell.faults[round_.block] = reasons
        self._count_errors(round_, wanted, rest.values())
        answered = Counter(n for n, out in zip(columns["item"], columns["outcome"], strict=True) if out == OK)
        answered.update({item: own.outcomes[OK] for item, own in rest.items()})
        self.uses[round_.arm] += [({query: answered[query]}, scans) for query, scans in round_.usage.items()]
        self.rounds.append(replace(round_, columns={}, rest={}))

    def _count_errors(self, round_: Round, wanted: Sequence[bool], rest: Iterable[Rest]) -> None:
        c = round_.columns
        seen = [(o, d, 1) for o, d, want in zip(c["outcome"], c["detail"], wanted, strict=True) if want]
        seen += [(outcome, "", count) for own in rest for outcome, count in own.outcomes.items()]
        for outcome, detail, more in seen:
            if outcome != OK and more:
                key = round_.arm, round_.scenario, outcome
                count, first = self.errors.get(key, (0, detail))
                self.errors[key] = count + more, first


def _add(cell: SampleCell, round_: Round, own: Sequence[int], rest: Rest) -> None:
    """One round's requests of one item: those with stamps, and the rest."""
    c, block = round_.columns, round_.block
    outcomes = Counter(c["outcome"][i] for i in own)
    outcomes.update(rest.outcomes)
    counted = [i for i in own if c["counted"][i] and c["outcome"][i] == OK]
    due, begun, done = (np.array([c[name][i] for i in counted], float) for name in ("scheduled", "started", "done"))
    held = np.array([begun[k] if c["acquired"][i] is None else c["acquired"][i] for k, i in enumerate(counted)], float)
    times, answered = _with_rest((done - due) / 1e6, rest), len(counted) + rest.outcomes[OK]
    cell.blocks[block] = times
    cell.counts[block] = outcomes.total() - outcomes[OK], outcomes.total()
    cell.outcomes.update(outcomes)
    cell.n += answered
    sent = [c["attempts"][i] for i in own if c["outcome"][i] != DROPPED]
    cell.attempts, cell.stamped = cell.attempts + sum(sent), cell.stamped + len(sent)
    cell.lags.append((begun - due) / 1e6)
    cell.waits.append((held - begun) / 1e6)
    cell.services.append((done - begun) / 1e6)
    if len(times):
        longest = max(float((done - due).max(initial=0.0)) / 1e6, rest.times.get_max_value() / 1000)
        cell.maximum = max(longest, cell.maximum) if cell.medians else longest
        cell.medians[block] = stats.percentile(times, 50)
        cell.rates[block] = answered / _seconds(c, counted, rest)


def _with_rest(times: Times, rest: Rest) -> Times:
    """All times of a round, or of both parts the same share, so that neither weighs more than it should."""
    total = rest.outcomes[OK]
    if not total:
        return times
    values = rest.values_ms(MOST)
    kept = round(len(times) * len(values) / total)
    places = ((np.arange(kept) + 0.5) * len(times) / max(kept, 1)).astype(int)
    return np.concatenate([np.sort(times)[places], values])


def _seconds(columns: Mapping[str, list[Any]], counted: Sequence[int], rest: Rest) -> float:
    """How long the counted requests took together, batch by batch; the rest goes on from the last."""
    spans: dict[int, list[int]] = defaultdict(list)
    for i in counted:
        spans[columns["batch"][i]] += [columns["scheduled"][i], columns["done"][i]]
    if rest.outcomes:
        spans[max(spans, default=0)] += [rest.first_ns, rest.last_ns]
    return sum(max(span) - min(span) for span in spans.values()) / 1e9


def _found(cell: SampleCell, round_: Round) -> None:
    """What a round's search found in place of what was answered in a second."""
    rate = round_.health["rate"]
    cell.rates[round_.block] = rate
    cell.unheld += not rate
    cell.limited += bool(round_.health["limited"])


# How many blocks a run needs, from a pilot's spread alone: what the pilot says of the effect is never looked at.

PILOT = 4  # blocks
LEAST = 6
METRICS = 2  # of a load level that are compared, as a rule: p50 and p95


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of one comparison's log ratio in the pilot, and the blocks that it asks for."""

    arm: str
    scenario: str
    item: str
    sd_log: float
    blocks: int


@dataclass(frozen=True, slots=True)
class PlannedBlocks:
    """The blocks of a run: those that were asked for by the widest spread, and those that the time allows."""

    margin: float  # a change by so much of any median shall be found, four times in five
    needed: int
    blocks: int
    block_s: float  # seconds, as in the pilot
    widest: Spread

    @property
    def sentence(self) -> str:
        """What is planned and why, in one line."""
        widest, seconds = self.widest, self.needed * self.block_s
        what = f"{widest.scenario} of {widest.item} on {widest.arm}"
        why = f"{what} varies by {100 * widest.sd_log:.2g} % from block to block"
        text = f"to find {100 * self.margin:g} % needs {self.needed} blocks, about {_time(seconds)}: {why}"
        if self.blocks < self.needed:
            text += f"; the time allows {self.blocks}"
        return text

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return {**asdict(self), "pilot": PILOT, "sentence": self.sentence}


def planned(
    cells: Mapping[tuple[str, Key], SampleCell], before: str, margin: float, block_s: float, most_s: float
) -> PlannedBlocks | None:
    """The plan for a run that shall not take longer than `most_s`; None where nothing was compared."""
    spreads = list(_spreads(cells, before, margin))
    if not spreads:
        return None
    widest = max(spreads, key=lambda spread: (spread.blocks, spread.sd_log))
    needed = max(LEAST, widest.blocks)
    return PlannedBlocks(margin, needed, max(LEAST, min(needed, int(most_s / block_s))), round(block_s, 2), widest)


def _spreads(cells: Mapping[tuple[str, Key], SampleCell], before: str, margin: float) -> Iterator[Spread]:
    """Of every arm's medians against those of `before`; its p95s will be corrected for together with them."""
    found: dict[str, list[tuple[Key, Ratio]]] = defaultdict(list)
    for (arm, key), cell in cells.items():
        other = cells.get((before, key))
        if arm in (before, FLOOR) or other is None:
            continue
        blocks = sorted(cell.medians.keys() & other.medians.keys())
        if own := ratio([other.medians[b] for b in blocks], [cell.medians[b] for b in blocks]):
            found[arm].append((key, own))
    for arm, ratios in found.items():
        for key, own in ratios:
            needed = blocks_for(own.sd_log, margin, own.pairs, comparisons=METRICS * len(ratios))
            yield Spread(arm, *key, own.sd_log, needed)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
