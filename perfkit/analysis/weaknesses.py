"""A run's cautions: what its record and its results say against it, and what disturbed its rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perfkit.analysis.cautions import Caveat, CaveatKind, gravest_first, some
from perfkit.analysis.changes import of_role
from perfkit.analysis.disturbances import Medians, disturbances
from perfkit.analysis.policy import Outcome
from perfkit.analysis.results import Analysis
from perfkit.analysis.sentences import FLOOR_FACTOR, complete_blocks
from perfkit.bundle import FLOOR, Round
from perfkit.explain.scans import NO_TABLE
from perfkit.numbers import millis
from perfkit.stats import MIN_SAMPLES, Verdict

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
