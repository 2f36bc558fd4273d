"""What disturbed rounds, as cautions: the machine, the server, the cache, and drift over the blocks.

Pure functions over rounds, of which only `block`, `scenario`, `arm` and `health` are looked at (see
`perfkit.surroundings` for what the latter holds), and over medians by arm, scenario and item, then by block.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from perfkit import stats
from perfkit.analysis.cautions import Caveat, CaveatKind, some
from perfkit.bundle import FLOOR, Round

Medians = Mapping[tuple[str, str, str], Mapping[int, float]]  # arm, scenario, item -> block -> ms

STEAL = 0.01  # share of the processors' time, beyond which steal is said
OTHERS = 0.25  # others' processes per processor, likewise
READ, READ_A_ROUND = 0.05, 100  # share of blocks read from outside; fewer are the catalogue's, at a connection's start
ALL = "all arms together"


def disturbances(run: Mapping[str, Any], rounds: Sequence[Round], medians: Medians) -> Iterator[Caveat]:
    """Everything that disturbed the rounds of a run's arms; the floor's do not matter."""
    own = [round_ for round_ in rounds if round_.arm != FLOOR]
    for source in (_steal, _others, _checkpoints, _autovacuums, _cache):
        yield from source(own)
    yield from _lookups(run, own)
    yield from _drift(run, {key: by_block for key, by_block in medians.items() if key[0] != FLOOR})


def _steal(rounds: Sequence[Round]) -> Iterator[Caveat]:
    shares = _by_arm(rounds, "steal", lambda r: r.health.get("wall_ms", 1.0))
    if max(shares.values(), default=0.0) >= STEAL:
        listed = ", ".join(f"{arm} {100 * share:.1f} %" for arm, share in shares.items())
        yield Caveat(
            CaveatKind.STEAL,
            f"The hypervisor gave processors' time to other machines during rounds: {listed}.",
            "Measure on a machine that does not share its processors; milliseconds suffer more than ratios.",
        )


def _others(rounds: Sequence[Round]) -> Iterator[Caveat]:
    loads = _by_arm(rounds, "others", lambda _: 1.0)
    if max(loads.values(), default=0.0) >= OTHERS:
        listed = ", ".join(f"{arm} {load:.1f}" for arm, load in loads.items())
        yield Caveat(
            CaveatKind.OTHER_LOAD,
            f"Other processes ran, or waited for a processor, as rounds began: per processor {listed}.",
            "Stop what else runs on this machine and measure again.",
        )


def _lookups(run: Mapping[str, Any], rounds: Sequence[Round]) -> Iterator[Caveat]:
    """Rows with texts, of which pgbench has none, are looked up in the server, which costs it something."""
    paced = {scenario["name"]: bool(scenario.get("rate")) for scenario in run["scenarios"]}
    for name in dict.fromkeys(round_.scenario for round_ in rounds):
        took = [r.health["lookup_ms"] for r in rounds if r.scenario == name and "lookup_ms" in r.health]
        if took:
            within = "is part of its response time" if paced.get(name) else "is between the samples"
            yield Caveat(
                CaveatKind.LOOKUP,
                f"{name}: pgbench looked the parameters of every request up in the server, which {within} and took "
                f"{median(took):.2g} ms in the typical round.",
                "Numbers as parameters cost nothing; or send it with engine 'asyncio' and compare.",
            )


def _by_arm(rounds: Sequence[Round], fact: str, weight: Callable[[Round], float]) -> dict[str, float]:
    """The weighted mean of a fact of the rounds' health; arms of which it is not known are left out."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for round_ in rounds:
        if fact in round_.health:
            found[round_.arm].append((round_.health[fact], weight(round_)))
    return {arm: sum(v * w for v, w in own) / sum(w for _, w in own) for arm, own in found.items()}


def _checkpoints(rounds: Sequence[Round]) -> Iterator[Caveat]:
    for where in _hit(rounds, "checkpoints"):
        yield Caveat(
            CaveatKind.CHECKPOINT,
            f"A checkpoint was being written during {where}.",
            "Raise checkpoint_timeout and max_wal_size of the server, or let each round be long enough to hold one.",
        )


def _autovacuums(rounds: Sequence[Round]) -> Iterator[Caveat]:
    for where in _hit(rounds, "autovacuums"):
        yield Caveat(
            CaveatKind.AUTOVACUUM,
            f"Autovacuum was at work during {where}.",
            "Turn autovacuum off for the run, or let each round be long enough to hold it.",
        )


def _hit(rounds: Sequence[Round], fact: str) -> Iterator[str]:
    """How many rounds, and which, the fact is true of; nothing where it is of none."""
    count: dict[str, list[bool]] = defaultdict(list)
    for round_ in rounds:
        count[f"{round_.scenario} on {round_.arm}"].append(round_.health.get(fact, 0.0) > 0)
    hit = sorted(((sum(own), len(own), where) for where, own in count.items() if any(own)), reverse=True)
    if hit:
        listed = some(f"{where} {n} of {of}" for n, of, where in hit)
        yield f"{sum(n for n, *_ in hit)} of {len(rounds)} rounds ({listed})"


def _cache(rounds: Sequence[Round]) -> Iterator[Caveat]:
    """By load level, the arms that read much from outside shared_buffers, beside what the others did."""
    cells: dict[str, dict[str, list[Mapping[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for round_ in rounds:
        if "blocks_read" in round_.health:
            cells[round_.scenario][round_.arm].append(round_.health)
    levels = []
    for scenario, arms in cells.items():
        read = {arm: sum(h["blocks_read"] for h in own) for arm, own in arms.items()}
        every = {arm: read[arm] + sum(h["blocks_hit"] for h in own) for arm, own in arms.items()}
        shares = {arm: read[arm] / every[arm] if every[arm] else 0.0 for arm in arms}
        if any(shares[arm] >= READ and read[arm] >= READ_A_ROUND * len(arms[arm]) for arm in arms):
            listed = ", ".join(f"{arm} {100 * share:.0f} %" for arm, share in shares.items())
            levels.append(f"{scenario} ({listed})")
    if levels:
        yield Caveat(
            CaveatKind.CACHE,
            f"Blocks came from outside shared_buffers during rounds of {some(levels)}.",
            "Where production holds them in memory, raise shared_buffers or the arms' warmup until this goes away.",
        )


def _drift(run: Mapping[str, Any], medians: Medians) -> Iterator[Caveat]:
    """Whether medians moved with the blocks, by more than the margin; Holm's correction covers what was looked at."""
    every = _centred(medians)
    series = {ALL: every, **{a: _centred({k: v for k, v in medians.items() if k[0] == a}) for a, *_ in medians}}
    trends = {name: trend(own) for name, own in series.items()}
    adjusted = dict(zip(trends, stats.holm([p for _, p in trends.values()]), strict=True))
    sizes = {name: math.expm1(change) for name, (change, _) in trends.items()}
    found = [n for n in trends if adjusted[n] < stats.ALPHA and abs(sizes[n]) > run["config"]["margin"]]
    if not found:
        return
    listed = some((f"{name} {100 * sizes[name]:+.0f} % (p = {adjusted[name]:.2g})" for name in found), 5)
    advice = "Ratios are safe, for every block holds all arms; for milliseconds, measure again on a quiet machine."
    if ALL not in found:
        advice = "Pairs of rounds do not cancel what one arm does alone: look for what grows there, as data or bloat."
    if run.get("order") == "sequential":
        advice = "The arms followed one another, so that nothing cancels it: measure again, or in a copy."
    yield Caveat(CaveatKind.DRIFT, f"Medians moved from the first block to the last: {listed}.", advice)


def _centred(medians: Medians) -> dict[int, float]:
    """By block, how far the typical level was from its own middle: the median of logs, each less its level's median."""
    found: dict[int, list[float]] = defaultdict(list)
    for by_block in medians.values():
        logs = {block: math.log(ms) for block, ms in by_block.items() if ms > 0}
        for block, value in logs.items():
            found[block].append(value - median(logs.values()))
    return {block: median(values) for block, values in sorted(found.items())}


def trend(series: Mapping[int, float]) -> tuple[float, float]:
    """The change from the first key to the last, and the two-sided p-value of there being none.

    The slope is the median of all pairs' (Theil 1950, Sen 1968); the test is on their signs, by its normal
    approximation with continuity correction (Mann 1945, Kendall 1975), which is cautious below ten.
    """
    keys = sorted(series)
    n = len(keys)
    slopes = [(series[b] - series[a]) / (b - a) for i, a in enumerate(keys) for b in keys[i + 1 :]]
    if not slopes:
        return 0.0, 1.0
    score = abs(sum((slope > 0) - (slope < 0) for slope in slopes))
    z = max(score - 1, 0) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return median(slopes) * (keys[-1] - keys[0]), math.erfc(z / math.sqrt(2))
