"""Caveats: what limits a result in the client, the machine, the server or the number of rounds.

Pure functions over rounds, of which they read only `block`, `scenario`, `arm` and `health` (its keys are in
`perfkit.postgres.capabilities`), and over medians by arm, scenario and item, then by block.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from perfkit.analysis.results import FLOOR_FACTOR, Analysis
from perfkit.base import stats
from perfkit.base.judgement import Outcome, Verdict
from perfkit.base.stats import MIN_SAMPLES
from perfkit.base.units import exact_percent, millis, number, percent, some
from perfkit.explain.comparison import NO_TABLE
from perfkit.runs.records import FLOOR, Round, RunRecord

Medians = Mapping[tuple[str, str, str], Mapping[int, float]]  # arm, scenario, item -> block -> ms

STEAL = 0.01  # share of the processors' time; steal from here on is a caveat
OTHERS = 0.25  # processes of others per processor; from here on a caveat
READ, READ_A_ROUND = 0.05, 100  # share of blocks read from outside, and blocks: a new connection reads some catalogue


class CaveatKind(StrEnum):
    """The label of a caveat; the most serious first."""

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


_GRAVITY = {kind: rank for rank, kind in enumerate(CaveatKind)}


@dataclass(frozen=True, slots=True)
class Caveat:
    """One limitation of a result: `text` with its numbers, levels and arms, `advice` on what to do."""

    kind: CaveatKind
    text: str
    advice: str


def gravest_first(every: Iterable[Caveat]) -> tuple[Caveat, ...]:
    """Sort caveats by kind, the most serious first; within a kind their order stays."""
    return tuple(sorted(every, key=lambda caveat: _GRAVITY[caveat.kind]))


ALL = "all arms together"


def disturbances(run: RunRecord, rounds: Sequence[Round], medians: Medians) -> Iterator[Caveat]:
    """Yield what disturbed the rounds of a run's arms; the floor does not matter."""
    arm_rounds = [round_ for round_ in rounds if round_.arm != FLOOR]
    for source in (_steal, _others, _events, _cache):
        yield from source(arm_rounds)
    yield from _lookups(run, arm_rounds)
    yield from _drift(run, {key: by_block for key, by_block in medians.items() if key[0] != FLOOR})


def _steal(rounds: Sequence[Round]) -> Iterator[Caveat]:
    shares = _by_arm(rounds, "steal", lambda r: r.health.get("wall_ms", 1.0))
    if max(shares.values(), default=0.0) >= STEAL:
        listed = ", ".join(f"{arm} {percent(share)}" for arm, share in shares.items())
        yield Caveat(
            CaveatKind.STEAL,
            f"The hypervisor gave CPU time to other machines during rounds: {listed}.",
            "Measure on a machine that does not share its CPUs; milliseconds suffer more than ratios.",
        )


def _others(rounds: Sequence[Round]) -> Iterator[Caveat]:
    loads = _by_arm(rounds, "others", lambda _: 1.0)
    if max(loads.values(), default=0.0) >= OTHERS:
        listed = ", ".join(f"{arm} {number(load)}" for arm, load in loads.items())
        yield Caveat(
            CaveatKind.OTHER_LOAD,
            f"Other programs were using the CPU when rounds began; processes per processor: {listed}.",
            "Stop other programs on this machine and measure again.",
        )


def _lookups(run: RunRecord, rounds: Sequence[Round]) -> Iterator[Caveat]:
    """Report look-ups: pgbench has no text variables, so it reads such parameters from the server, which costs time."""
    paced = {scenario.name: bool(scenario.rate) for scenario in run.scenarios}
    for name in dict.fromkeys(round_.scenario for round_ in rounds):
        took = [r.health["lookup_ms"] for r in rounds if r.scenario == name and "lookup_ms" in r.health]
        if took:
            within = "is part of its response time" if paced.get(name) else "is between the samples"
            yield Caveat(
                CaveatKind.LOOKUP,
                f"{name}: pgbench read the parameters of every request from the server, which {within} and took "
                f"{millis(median(took))} in the typical round.",
                "Use numbers as parameters, which cost nothing, or send with engine 'asyncio' and compare.",
            )


def _by_arm(rounds: Sequence[Round], fact: str, weight: Callable[[Round], float]) -> dict[str, float]:
    """Return the weighted mean of a health fact by arm, without the arms that lack the fact."""
    facts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for round_ in rounds:
        if fact in round_.health:
            facts[round_.arm].append((round_.health[fact], weight(round_)))
    return {arm: sum(v * w for v, w in pairs) / sum(w for _, w in pairs) for arm, pairs in facts.items()}


_LESS_OFTEN = "Raise the server's checkpoint_timeout and max_wal_size, or make every round long enough to include one."
_TURN_OFF = "Turn autovacuum off for the run, or make every round long enough to include it."
_EVENTS = (
    (CaveatKind.CHECKPOINT, "checkpoints", "A checkpoint", _LESS_OFTEN),
    (CaveatKind.AUTOVACUUM, "autovacuums", "Autovacuum", _TURN_OFF),
)


def _events(rounds: Sequence[Round]) -> Iterator[Caveat]:
    for kind, fact, name, advice in _EVENTS:
        if where := _hit(rounds, fact):
            yield Caveat(kind, f"{name} ran during {where}.", advice)


def _hit(rounds: Sequence[Round], fact: str) -> str:
    """Return the number of rounds for which a fact is true, and which they are; empty if there are none."""
    times, total = Counter[str](), Counter[str]()
    for round_ in rounds:
        where = f"{round_.scenario} on {round_.arm}"
        total[where] += 1
        times[where] += round_.health.get(fact, 0.0) > 0
    hit = sorted(((n, total[where], where) for where, n in times.items() if n), reverse=True)
    listed = some(f"{where} {n} of {of}" for n, of, where in hit)
    return f"{times.total()} of {len(rounds)} rounds ({listed})" if hit else ""


def _cache(rounds: Sequence[Round]) -> Iterator[Caveat]:
    """Report the load levels on which an arm read much from outside shared_buffers, with all arms."""
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
            listed = ", ".join(f"{arm} {percent(share)}" for arm, share in shares.items())
            levels.append(f"{scenario} ({listed})")
    if levels:
        yield Caveat(
            CaveatKind.CACHE,
            f"Blocks came from outside shared_buffers during rounds of {some(levels)}.",
            "If production has them in memory, raise shared_buffers or the arms' warmup until this caveat disappears.",
        )


def _drift(run: RunRecord, medians: Medians) -> Iterator[Caveat]:
    """Report medians that moved with the blocks by more than the margin, with Holm's correction over all series."""
    every = _centred(medians)
    series = {ALL: every, **{a: _centred({k: v for k, v in medians.items() if k[0] == a}) for a, *_ in medians}}
    trends = {name: trend(own) for name, own in series.items()}
    adjusted = dict(zip(trends, stats.holm([p for _, p in trends.values()]), strict=True))
    sizes = {name: math.expm1(change) for name, (change, _) in trends.items()}
    drifting = [n for n in trends if adjusted[n] < stats.ALPHA and abs(sizes[n]) > run.config.margin]
    if not drifting:
        return
    changes = {name: f"{'+' if sizes[name] > 0 else ''}{percent(sizes[name])}" for name in drifting}
    listed = some((f"{name} {change} (p = {number(adjusted[name])})" for name, change in changes.items()), 5)
    advice = "Ratios are safe because every block has all arms; for milliseconds, measure again on a quiet machine."
    if ALL not in drifting:
        advice = "Pairing does not cancel the drift of a single arm: look for what grows there, such as data or bloat."
    if run.order == "sequential":
        advice = "The arms ran one after the other, so nothing cancels the drift: measure again, or in a copy."
    yield Caveat(CaveatKind.DRIFT, f"Medians moved from the first block to the last: {listed}.", advice)


def _centred(medians: Medians) -> dict[int, float]:
    """Return by block the median over the levels of log latency less the level's own median."""
    deviations: dict[int, list[float]] = defaultdict(list)
    for by_block in medians.values():
        logs = {block: math.log(ms) for block, ms in by_block.items() if ms > 0}
        for block, value in logs.items():
            deviations[block].append(value - median(logs.values()))
    return {block: median(values) for block, values in sorted(deviations.items())}


def trend(series: Mapping[int, float]) -> tuple[float, float]:
    """Return the change from the first key to the last, and the two-sided p-value of no change.

    The slope is the median of all pairs' (Theil 1950, Sen 1968); the test is on their signs, by its normal
    approximation with continuity correction (Mann 1945, Kendall 1975), which is conservative below ten keys.
    """
    keys = sorted(series)
    n = len(keys)
    slopes = [(series[b] - series[a]) / (b - a) for i, a in enumerate(keys) for b in keys[i + 1 :]]
    if not slopes:
        return 0.0, 1.0
    score = abs(sum((slope > 0) - (slope < 0) for slope in slopes))
    z = max(score - 1, 0) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return median(slopes) * (keys[-1] - keys[0]), math.erfc(z / math.sqrt(2))


# The caveats of a run, from its record, its results and its rounds.

MIN_BLOCKS = MIN_SAMPLES[50]  # rounds, each of which is one sample


def caveats(run: RunRecord, analysis: Analysis, rounds: Sequence[Round], medians: Medians) -> tuple[Caveat, ...]:
    """Return all caveats of a run, the most serious first; of the rounds only the health is needed."""
    of_run = [caveat for source in (*_OF_THE_RUN, *_OF_THE_RESULTS) for caveat in source(run, analysis)]
    return gravest_first([*of_run, *disturbances(run, rounds, medians)])


def circumstances(run: RunRecord) -> tuple[str, ...]:
    """Return the circumstances of all results of a run: its order, its data, its server."""
    return tuple(caveat.text for source in (_order, _data, _machine) for caveat in source(run, None))


def _unfinished(run: RunRecord, _: Analysis) -> Iterator[Caveat]:
    if run.status != "complete":
        done, planned, why = run.complete_blocks, run.parameters.blocks, run.message
        text = f"The run is {run.status}: {done} of {planned} blocks were measured. {why}".strip()
        yield Caveat(CaveatKind.UNFINISHED, text, "Complete a run before you decide.")


def _left_out(run: RunRecord, _: Analysis) -> Iterator[Caveat]:
    for what, names in run.left_out.items():
        if names:
            text = f"Not measured in this run: {what} {', '.join(names)}."
            yield Caveat(CaveatKind.LEFT_OUT, text, "Leave nothing out of the run that you decide on.")


def _client(_: RunRecord, analysis: Analysis) -> Iterator[Caveat]:
    for level in analysis.levels:
        if not level.healthy and level.arm != FLOOR:
            yield Caveat(
                CaveatKind.CLIENT,
                f"{level.scenario} on {level.arm}: the client was too slow; its numbers are invalid ({level.fault}).",
                "Reduce the load, give the client more processors, or let pgbench send SQL.",
            )


def _few_rounds(run: RunRecord, analysis: Analysis) -> Iterator[Caveat]:
    done = min((c.ratio.pairs for c in analysis.comparisons if c.ratio), default=run.complete_blocks)
    if 0 < done < MIN_BLOCKS:
        yield Caveat(
            CaveatKind.FEW_ROUNDS,
            f"Some levels have only {done} complete {'block' if done == 1 else 'blocks'}; with fewer than "
            f"{MIN_BLOCKS}, no median has an interval and no comparison a verdict.",
            f"Measure at least {MIN_BLOCKS} blocks; 12 are usual.",
        )


def _settings(run: RunRecord, _: Analysis) -> Iterator[Caveat]:
    """Report session settings that differ from those of `before` and that the arm does not declare."""
    arms, before = run.arms, run.of_role("before")[0]
    base = run.arm(before).server_settings
    for arm, facts in arms.items():
        if facts.postgres != arms[before].postgres:  # another version has other defaults
            continue
        settings = facts.server_settings
        declared = {name.lower() for known in (facts, arms[before]) for name in known.settings}
        differing = [n for n in base if n in settings and settings[n] != base[n] and n.lower() not in declared]
        if differing:
            listed = some(f"{name} {settings[name]} instead of {base[name]}" for name in differing)
            yield Caveat(
                CaveatKind.SETTINGS,
                f"{arm}: settings outside the change differ from those of {before}: {listed}.",
                "Give both arms the same settings, or name those that you compare in the arm's `settings`.",
            )


def _warm_up(run: RunRecord, _: Analysis) -> Iterator[Caveat]:
    failed: Counter[str] = Counter()
    for block in run.blocks:
        failed.update(block.warm_up_failures)
    for arm, count in failed.items():
        if count:
            yield Caveat(
                CaveatKind.WARM_UP,
                f"{arm}: {count:,} requests of the warm-up failed; they are not among the errors.",
                "Find the cause in the service's log: a failed warm-up leaves the service cold.",
            )


def _order(run: RunRecord, _: object) -> Iterator[Caveat]:
    if run.order == "sequential":
        yield Caveat(
            CaveatKind.SEQUENTIAL,
            "The arms ran one after the other (before, after, before again): sequential, drift not cancelled.",
            "If you can use a copy or clones, measure there: the arms alternate.",
        )


def _data(run: RunRecord, _: object) -> Iterator[Caveat]:
    origin = run.origin
    if way := origin.way:
        live = way.startswith("in place")
        yield Caveat(
            CaveatKind.DATA,
            f"{way[0].upper()}{way[1:]}: this tells {origin.tells}, but not {origin.cannot_tell}.",
            "Measure at another hour too." if live else "After shipping, check the real database again.",
        )
    for lack in origin.missing:
        yield Caveat(CaveatKind.DATA, f"Not in the copy: {lack}.", "Do not judge by this run what depends on it.")


def _machine(run: RunRecord, _: object) -> Iterator[Caveat]:
    server, host, rtt = run.server, run.host, run.parameters.rtt_ms
    if server.kind == "embedded":
        others = "the service and the load" if run.config.request else "the load"
        yield Caveat(
            CaveatKind.MACHINE,
            f"Measured on embedded PostgreSQL {server.version} that shares {host['cores']} cores with "
            f"{others}, fsync {server.settings.get('fsync')}. Ratios carry over "
            "to another machine better than milliseconds, so whether a limit in ms holds depends on the machine.",
            "Check limits in ms on hardware like that of production.",
        )
    if rtt:
        yield Caveat(
            CaveatKind.MACHINE,
            f"A round trip of {rtt:g} ms was added between service and database (connecting costs "
            f"{run.parameters.connect_rtts}); direct SQL has no added round trip.",
            "Compare it with the round trip in production.",
        )
    elif run.config.request:
        yield Caveat(
            CaveatKind.MACHINE,
            "There is no network between service and database (--rtt-ms 0), so connecting for every request "
            "costs less here than on a hosted database.",
            "Set --rtt-ms to the round trip in production.",
        )


def _control(run: RunRecord, analysis: Analysis) -> Iterator[Caveat]:
    for c in analysis.comparisons:
        if c.after in run.of_role("control") and c.ratio and not c.ratio.lo <= 1 <= c.ratio.hi:
            yield Caveat(
                CaveatKind.CONTROL,
                f"The control differs from before in {c.scenario} ({c.metric} of {c.item}: "
                f"{number(c.ratio.lo)} to {number(c.ratio.hi)}); 1 in 20 does so by chance. "
                "A larger difference was required there.",
                "Measure again; if the control differs there again, something favours one arm.",
            )


def _unsettled(run: RunRecord, analysis: Analysis) -> Iterator[Caveat]:
    """Report inconclusive comparisons, except those of the control, which chance alone makes inconclusive."""
    for arm in run.of_role("after"):
        open_ = [c for c in analysis.comparisons if c.after == arm and c.verdict is Verdict.INCONCLUSIVE]
        if open_:
            what = some(f"{c.scenario} {c.metric} of {c.item}" for c in open_)
            blocks = [c.blocks_needed for c in open_ if c.blocks_needed]
            more = f"; about {max(blocks)} blocks would settle the last of them" if blocks else ""
            yield Caveat(
                CaveatKind.UNSETTLED,
                f"{arm}: {len(open_)} comparisons are inconclusive ({what}){more}.",
                "Measure more blocks, or declare a wider margin if smaller changes do not matter.",
            )


def _error_rate(run: RunRecord, analysis: Analysis) -> Iterator[Caveat]:
    """Report error rates whose upper bound is above the limit, which does not block a GO."""
    limit, arms = run.config.thresholds.error_rate, run.parameters.arms
    judged = arms if len(arms) == 1 else run.of_role("after")
    for rule in analysis.decision.rules:
        held = rule.name == "error rate" and rule.arm in judged and rule.outcome is Outcome.HOLDS
        if held and rule.bound and rule.bound > limit:
            rates = f"{exact_percent(limit)} to {percent(rule.bound, up=True)}"
            enough = f"{math.ceil(3 / limit):,} requests without an error rule it out." if limit else ""
            yield Caveat(
                CaveatKind.ERROR_RATE,
                f"{rule.arm}: too few requests to rule out an error rate of {rates}.",
                enough or "No number of requests rules out every error; set error_rate to what is acceptable.",
            )


def _plan(_: RunRecord, analysis: Analysis) -> Iterator[Caveat]:
    for use in analysis.plans:
        if use.scans_expected and not use.verified and use.summary != NO_TABLE:
            yield Caveat(
                CaveatKind.PLAN,
                f"{use.query} on {use.arm}: the plan shown was used in {use.scans_seen:,} of "
                f"{use.scans_expected:,} executions; the others used another plan, which may be slower.",
                "Explain the query with its rarest and most common parameters, and with the run's plan_cache_mode.",
            )


def _floor(run: RunRecord, analysis: Analysis) -> Iterator[Caveat]:
    floors = {(f.scenario, f.item): f.p50.value for f in analysis.levels if f.arm == FLOOR and f.p50}
    for arm in run.of_role("after"):
        near = [
            f"{level.scenario} of {level.item} ({millis(level.p50.value)})"
            for level in analysis.levels
            if level.arm == arm and level.p50
            if level.p50.value < FLOOR_FACTOR * floors.get((level.scenario, level.item), 0.0)
        ]
        if near:
            yield Caveat(
                CaveatKind.FLOOR,
                f"{arm}: less than {FLOOR_FACTOR:g} times what the client alone takes, so the true gain is "
                f"larger than shown: {', '.join(near)}.",
                "For the true gain, let pgbench send the SQL, or use the server's own times.",
            )


def _p99(_: RunRecord, analysis: Analysis) -> Iterator[Caveat]:
    answered = [level.n for level in analysis.levels if level.arm != FLOOR and level.n]
    few = [n for n in answered if n < MIN_SAMPLES[99]]
    if few:
        yield Caveat(
            CaveatKind.P99,
            f"{len(few)} of {len(answered)} levels have no p99, which needs {MIN_SAMPLES[99]} answered requests "
            f"(they have {min(few)} to {max(few)}); the slowest request is shown.",
            "If the slowest hundredth matters, measure more blocks or more requests per round.",
        )


_OF_THE_RUN = (_unfinished, _left_out, _settings, _warm_up, _order, _data, _machine)
_OF_THE_RESULTS = (_client, _few_rounds, _control, _unsettled, _error_rate, _plan, _floor, _p99)
