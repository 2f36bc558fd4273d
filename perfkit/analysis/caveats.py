"""What weakens a result: the client, the machine, the server, the number of rounds.

Pure functions over rounds, of which only `block`, `scenario`, `arm` and `health` are looked at (see
`perfkit.postgres.capabilities` for what the latter holds), and over medians by arm, scenario and item, then by block.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from perfkit.analysis.policy import Outcome, some
from perfkit.analysis.results import FLOOR_FACTOR, Analysis, complete_blocks, of_role
from perfkit.base import stats
from perfkit.base.bundle import FLOOR, Round
from perfkit.base.stats import MIN_SAMPLES, Verdict
from perfkit.base.units import millis
from perfkit.explain.comparison import NO_TABLE

Medians = Mapping[tuple[str, str, str], Mapping[int, float]]  # arm, scenario, item -> block -> ms

STEAL = 0.01  # share of the processors' time, beyond which steal is said
OTHERS = 0.25  # others' processes per processor, likewise
READ, READ_A_ROUND = 0.05, 100  # share of blocks read from outside; fewer are the catalogue's, at a connection's start


class CaveatKind(StrEnum):
    """What a caution is about, in the words that label it; gravest first."""

    UNFINISHED = "unfinished"
    LEFT_OUT = "left out"
    CLIENT = "client too slow"
    FEW_ROUNDS = "too few rounds"
    SETTINGS = "settings differ"
    CONTROL = "control off"
    SEQUENTIAL = "sequential"
    DRIFT = "drift"
    OTHER_LOAD = "other load"
    STEAL = "CPU steal"
    CHECKPOINT = "checkpoint"
    AUTOVACUUM = "autovacuum"
    CACHE = "cold cache"
    WARM_UP = "warm-up failed"
    PLAN = "plan changed"
    UNSETTLED = "inconclusive"
    ERROR_RATE = "error rate"
    FLOOR = "near the floor"
    LOOKUP = "parameters looked up"
    P99 = "no p99"
    DATA = "data"
    MACHINE = "machine"


_GRAVITY = {kind: place for place, kind in enumerate(CaveatKind)}


@dataclass(frozen=True, slots=True)
class Caveat:
    """One reason to believe a result less; `text` names numbers, levels and arms, `advice` what to do about it."""

    kind: CaveatKind
    text: str
    advice: str

    @property
    def gravity(self) -> int:
        """0 for the gravest kind."""
        return _GRAVITY[self.kind]


def gravest_first(cautions: Iterable[Caveat]) -> tuple[Caveat, ...]:
    """In the order of their kinds; within a kind as they came."""
    return tuple(sorted(cautions, key=lambda caution: caution.gravity))


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


# A run's cautions: what its record and its results say against it, and what disturbed its rounds.

MIN_BLOCKS = MIN_SAMPLES[50]  # rounds, each of which is one sample


def cautions(
    run: Mapping[str, Any], analysis: Analysis, rounds: Sequence[Round], medians: Medians
) -> tuple[Caveat, ...]:
    """What a careful reader should hold against the result, gravest first; of rounds only the health is needed."""
    found = [caution for source in (*_OF_THE_RUN, *_OF_THE_RESULTS) for caution in source(run, analysis)]
    return gravest_first([*found, *disturbances(run, rounds, medians)])


def circumstances(run: Mapping[str, Any], analysis: Analysis) -> tuple[str, ...]:
    """What holds of every result of a run: its order, its data, its server."""
    return tuple(caution.text for source in (_order, _data, _machine) for caution in source(run, analysis))


def _unfinished(run: Mapping[str, Any], _: Analysis) -> Iterator[Caveat]:
    if run["status"] != "complete":
        done, planned, why = complete_blocks(run), run["parameters"]["blocks"], run.get("message", "")
        text = f"The run is {run['status']}: {done} of {planned} blocks were measured. {why}".strip()
        yield Caveat(CaveatKind.UNFINISHED, text, "Run it again to its end before deciding.")


def _left_out(run: Mapping[str, Any], _: Analysis) -> Iterator[Caveat]:
    for what, names in run.get("left_out", {}).items():
        if names:
            text = f"Not measured in this run: {what} {', '.join(names)}."
            yield Caveat(CaveatKind.LEFT_OUT, text, "Leave nothing out of the run that decides.")


def _client(_: Mapping[str, Any], analysis: Analysis) -> Iterator[Caveat]:
    for level in analysis.levels:
        if not level.healthy and level.arm != FLOOR:
            yield Caveat(
                CaveatKind.CLIENT,
                f"{level.scenario} on {level.arm}: the client was too slow; its numbers are invalid ({level.fault}).",
                "Offer less load, give the client more processors, or for SQL let pgbench send it.",
            )


def _few_rounds(run: Mapping[str, Any], analysis: Analysis) -> Iterator[Caveat]:
    done = min((c.ratio.pairs for c in analysis.comparisons if c.ratio), default=complete_blocks(run))
    if 0 < done < MIN_BLOCKS:
        yield Caveat(
            CaveatKind.FEW_ROUNDS,
            f"Some levels have no more than {done} complete {'block' if done == 1 else 'blocks'}: below "
            f"{MIN_BLOCKS} no interval of a median has ends, and no comparison a verdict.",
            f"Measure {MIN_BLOCKS} blocks or more; 12 are usual.",
        )


def _settings(run: Mapping[str, Any], _: Analysis) -> Iterator[Caveat]:
    """Settings of the arms' sessions that differ from those of `before`, unless the arm is declared to differ there."""
    arms, before = run.get("arms", {}), of_role(run, "before")[0]
    base: Mapping[str, str] = arms.get(before, {}).get("server_settings", {})
    for arm, facts in arms.items():
        if facts.get("postgres") != arms[before].get("postgres"):  # another version has other defaults
            continue
        own = facts.get("server_settings", {})
        declared = {name.lower() for known in (facts, arms[before]) for name in known.get("settings", {})}
        wrong = [name for name in base if name in own and own[name] != base[name] and name.lower() not in declared]
        if wrong:
            listed = some(f"{name} {own[name]} instead of {base[name]}" for name in wrong)
            yield Caveat(
                CaveatKind.SETTINGS,
                f"{arm}: settings differ from those of {before} that are no part of the change: {listed}.",
                "Give both arms the same, or name it in the arm's `settings` where it is what you compare.",
            )


def _warm_up(run: Mapping[str, Any], _: Analysis) -> Iterator[Caveat]:
    failed: Counter[str] = Counter()
    for block in run["blocks"]:
        failed.update(block.get("warm_up_failures", {}))
    for arm, count in failed.items():
        if count:
            yield Caveat(
                CaveatKind.WARM_UP,
                f"{arm}: {count:,} requests of the warm-up failed; they are not among the errors.",
                "Find out why in the service's log: what fails at first is not warm afterwards.",
            )


def _order(run: Mapping[str, Any], _: Analysis) -> Iterator[Caveat]:
    if run.get("order") == "sequential":
        yield Caveat(
            CaveatKind.SEQUENTIAL,
            "The arms followed one another (before, after, before again): sequential, drift not cancelled.",
            "Where a copy or clones can be had, measure there: arms alternate in them.",
        )


def _data(run: Mapping[str, Any], _: Analysis) -> Iterator[Caveat]:
    origin = run.get("origin", {})
    if way := origin.get("way"):
        live = way.startswith("in place")
        yield Caveat(
            CaveatKind.DATA,
            f"{way[0].upper()}{way[1:]}: it tells {origin['tells']}; it cannot tell {origin['cannot_tell']}.",
            "Measure at another hour too." if live else "After shipping, look at the real database again.",
        )
    for lack in origin.get("missing", ()):
        yield Caveat(CaveatKind.DATA, f"Not in the copy: {lack}.", "Do not judge here what depends on it.")


def _machine(run: Mapping[str, Any], _: Analysis) -> Iterator[Caveat]:
    server, host, rtt = run.get("server", {}), run["host"], run["parameters"]["rtt_ms"]
    if server.get("kind") == "embedded":
        others = "the service and the load" if run["config"]["request"] else "the load"
        yield Caveat(
            CaveatKind.MACHINE,
            f"Measured on embedded PostgreSQL {server['version']} that shares {host['cores']} cores with "
            f"{others}, fsync {server['settings'].get('fsync')}: ratios carry over "
            "to another machine better than milliseconds; whether a limit in ms holds depends on the machine.",
            "Check limits in ms on hardware like production's.",
        )
    if rtt:
        yield Caveat(
            CaveatKind.MACHINE,
            f"A round trip of {rtt:g} ms was put between service and database (connecting costs "
            f"{run['parameters']['connect_rtts']}); direct SQL does not pass through it.",
            "Compare it with the round trip that production has.",
        )
    elif run["config"]["request"]:
        yield Caveat(
            CaveatKind.MACHINE,
            "No network lies between service and database (--rtt-ms 0), so connecting for every request "
            "costs less here than on a hosted database.",
            "Give --rtt-ms the round trip that production has.",
        )


def _control(run: Mapping[str, Any], analysis: Analysis) -> Iterator[Caveat]:
    for c in analysis.comparisons:
        if c.after in of_role(run, "control") and c.ratio and not c.ratio.lo <= 1 <= c.ratio.hi:
            yield Caveat(
                CaveatKind.CONTROL,
                f"The control arm, identical to before, differs in {c.scenario} ({c.metric} of {c.item}: "
                f"{c.ratio.lo:.3g} to {c.ratio.hi:.3g}); 1 in 20 does so by chance. "
                "A larger difference was required there.",
                "Measure again; if it differs in the same place, something favours one arm.",
            )


def _unsettled(run: Mapping[str, Any], analysis: Analysis) -> Iterator[Caveat]:
    """The control arm is left out: it is inconclusive as often as chance makes it."""
    for arm in of_role(run, "after"):
        open_ = [c for c in analysis.comparisons if c.after == arm and c.verdict is Verdict.INCONCLUSIVE]
        if open_:
            what = some(f"{c.scenario} {c.metric} of {c.item}" for c in open_)
            blocks = [c.blocks_needed for c in open_ if c.blocks_needed]
            more = f"; about {max(blocks)} blocks would settle the last of them" if blocks else ""
            yield Caveat(
                CaveatKind.UNSETTLED,
                f"{arm}: inconclusive in {len(open_)} of its comparisons ({what}){more}.",
                "Measure more blocks, or declare a wider margin if smaller changes do not matter.",
            )


def _error_rate(run: Mapping[str, Any], analysis: Analysis) -> Iterator[Caveat]:
    """The upper bound of a rate never stands in the way of a GO; that it is above the limit is said here."""
    limit, arms = run["config"]["thresholds"]["error_rate"], run["parameters"]["arms"]
    judged = arms if len(arms) == 1 else of_role(run, "after")
    for rule in analysis.judgement.rules:
        held = rule.name == "error rate" and rule.arm in judged and rule.outcome is Outcome.HOLDS
        if held and rule.bound and rule.bound > limit:
            rates = f"{100 * limit:.2g}-{100 * rule.bound:.2g} %"
            enough = f"{math.ceil(3 / limit):,} requests without an error rule it out." if limit else ""
            yield Caveat(
                CaveatKind.ERROR_RATE,
                f"{rule.arm}: too few requests to rule out an error rate of {rates}.",
                enough or "No number of requests rules every error out; set error_rate to what may be borne.",
            )


def _plan(_: Mapping[str, Any], analysis: Analysis) -> Iterator[Caveat]:
    for use in analysis.plans:
        if use.scans_expected and not use.verified and use.summary != NO_TABLE:
            yield Caveat(
                CaveatKind.PLAN,
                f"{use.query} on {use.arm}: the plan shown was used in {use.scans_seen:,} of "
                f"{use.scans_expected:,} executions; the others used another, which may be slower.",
                "Explain it with its rarest and its most common parameters, and with plan_cache_mode as it is there.",
            )


def _floor(run: Mapping[str, Any], analysis: Analysis) -> Iterator[Caveat]:
    floors = {(f.scenario, f.item): f.p50.value for f in analysis.levels if f.arm == FLOOR and f.p50}
    for arm in of_role(run, "after"):
        near = [
            f"{level.scenario} of {level.item} ({millis(level.p50.value)})"
            for level in analysis.levels
            if level.arm == arm and level.p50
            if level.p50.value < FLOOR_FACTOR * floors.get((level.scenario, level.item), 0.0)
        ]
        if near:
            yield Caveat(
                CaveatKind.FLOOR,
                f"{arm}: under {FLOOR_FACTOR:g} times what the client alone takes, so that the true gain is "
                f"larger than shown: {', '.join(near)}.",
                "For the true gain, let pgbench send the SQL or look at the server's own times.",
            )


def _p99(_: Mapping[str, Any], analysis: Analysis) -> Iterator[Caveat]:
    answered = [level.n for level in analysis.levels if level.arm != FLOOR and level.n]
    few = [n for n in answered if n < MIN_SAMPLES[99]]
    if few:
        yield Caveat(
            CaveatKind.P99,
            f"{len(few)} of {len(answered)} levels have no p99, which needs {MIN_SAMPLES[99]} answered requests "
            f"(they have {min(few)} to {max(few)}); the longest is shown.",
            "Where the slowest hundredth matters, measure more blocks or more requests in a round.",
        )


_OF_THE_RUN = (_unfinished, _left_out, _settings, _warm_up, _order, _data, _machine)
_OF_THE_RESULTS = (_client, _few_rounds, _control, _unsettled, _error_rate, _plan, _floor, _p99)
