"""A run in words: the sentence under the decision, and what weakens the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from perfkit.bundle import FLOOR
from perfkit.explain.scans import NO_TABLE
from perfkit.results import Analysis, Comparison, Level
from perfkit.stats import Verdict

NAMED = 3  # comparisons named in a sentence; the rest are counted
FLOOR_FACTOR = 3.0  # below this many times the floor's median, a latency is mostly the client's own


def headline(run: Mapping[str, Any], analysis: Analysis) -> str:
    """The load level that was worst before, in numbers, and what else a decision needs."""
    parts = [_worst(run, analysis), *_counted(run, analysis), _errors(analysis), _checks(run)]
    said = "; ".join(part for part in parts if part)
    return f"{said[0].upper()}{said[1:]}." if said else "Nothing was measured."


def _worst(run: Mapping[str, Any], analysis: Analysis) -> str:
    """By the p95, or the median where no p95 has the samples for it."""
    before = [level for level in analysis.levels if level.arm == _arm(run, "before")]
    for metric, share in (("p95", "95 of 100 requests were"), ("p50", "half of the requests were")):
        found = [(interval.value, level) for level in before if (interval := getattr(level, metric))]
        if found:
            value, worst = max(found, key=lambda pair: pair[0])
            changes = [change for arm in _after(run) if (change := _change(run, analysis, worst, arm, metric))]
            label = next(s["label"] for s in run["scenarios"] if s["name"] == worst.scenario)
            return ", ".join([f"{label}: {share} answered within {_ms(value)} before", *changes])
    return ""


def _change(run: Mapping[str, Any], analysis: Analysis, worst: Level, arm: str, metric: str) -> str:
    level = analysis.level(arm, worst.scenario, worst.item)
    found = analysis.comparison(arm, worst.scenario, metric, worst.item)
    interval = getattr(level, metric) if level else None
    if interval is None:
        return ""
    text = f"{_ms(interval.value)} {_named(run, arm)}"
    return f"{text} ({_times(found)})" if found and found.ratio else text


def _counted(run: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    """Where several queries were measured, how many became faster and slower: one is not all of them."""
    for arm in _after(run) if len(run["queries"]) > 1 and not run["config"]["request"] else ():
        found = [c.verdict for c in analysis.comparisons if c.after == arm and c.metric == "p50"]
        faster, slower = found.count(Verdict.FASTER), found.count(Verdict.SLOWER)
        yield f"of {len(found)} medians {faster} faster and {slower} slower {_named(run, arm)}"


def _named(run: Mapping[str, Any], arm: str) -> str:
    """An arm's title as it goes on in a sentence."""
    title = str(run["arms"][arm]["title"] or arm)
    return title if title.startswith(("with ", "without ")) else f"with {title}"


def _times(found: Comparison) -> str:
    """A ratio as a person would say it."""
    assert found.ratio
    value, lo, hi = found.ratio.value, found.ratio.lo, found.ratio.hi
    if found.verdict is Verdict.FASTER:
        return f"{_three(1 / value)} times as fast, 95 % interval {_three(1 / hi)} to {_three(1 / lo)}"
    if found.verdict is Verdict.SLOWER:
        return f"{_three(value)} times as slow, 95 % interval {_three(lo)} to {_three(hi)}"
    return f"{found.verdict}: ratio {_three(value)}, 95 % interval {_three(lo)} to {_three(hi)}"


def _errors(analysis: Analysis) -> str:
    levels = [level for level in analysis.levels if level.arm != FLOOR]
    errors, sent = sum(level.errors for level in levels), sum(level.sent for level in levels)
    plural = "" if errors == 1 else "s"
    return f"{errors or 'no'} unexpected outcome{plural} in {sent:,} requests" if sent else ""


def _checks(run: Mapping[str, Any]) -> str:
    results = [check for checks in run["checks"].values() for check in checks]
    passed = sum(check["passed"] for check in results)
    return f"{passed} of {len(results)} functional checks passed" if results else ""


def circumstances(run: Mapping[str, Any], analysis: Analysis) -> tuple[str, ...]:
    """What holds of every result of a run: its order, its data, its server."""
    return tuple(line for source in (_drift, _origin, _setting) for line in source(run, analysis))


def weaknesses(run: Mapping[str, Any], analysis: Analysis) -> tuple[str, ...]:
    """What a careful reader should hold against the result, gravest first."""
    return tuple(
        line
        for source in (
            _unfinished,
            _left_out,
            _unhealthy,
            _warm_up,
            _unsettled,
            _control,
            _unverified,
            _near_floor,
            _too_few,
            _drift,
            _origin,
            _setting,
        )
        for line in source(run, analysis)
    )


def _unfinished(run: Mapping[str, Any], _: Analysis) -> Iterator[str]:
    if run["status"] != "complete":
        done, planned = complete_blocks(run), run["parameters"]["blocks"]
        why = run.get("message", "")
        yield f"The run is {run['status']}: {done} of {planned} blocks were measured. {why}".strip()


def complete_blocks(run: Mapping[str, Any]) -> int:
    """Blocks that every arm has been through; where arms follow one another, the last comes last."""
    arms = set(run["parameters"]["arms"])
    return sum(arms <= block["state"].keys() for block in run["blocks"])


def _left_out(run: Mapping[str, Any], _: Analysis) -> Iterator[str]:
    for what, names in run.get("left_out", {}).items():
        if names:
            yield f"Not measured in this run: {what} {', '.join(names)}."


def _warm_up(run: Mapping[str, Any], _: Analysis) -> Iterator[str]:
    failed: Counter[str] = Counter()
    for block in run["blocks"]:
        failed.update(block.get("warm_up_failures", {}))
    for arm, count in failed.items():
        if count:
            yield f"{arm}: {count:,} requests of the warm-up failed; they are not among the errors."


def _unhealthy(_: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    for level in analysis.levels:
        if not level.healthy and level.arm != FLOOR:
            yield f"{level.scenario} on {level.arm}: the client was too slow; its numbers are invalid."


def _unsettled(run: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    """The control arm is left out: it is inconclusive as often as chance makes it."""
    for arm, role in run["roles"].items():
        open_ = [c for c in analysis.comparisons if c.after == arm and c.verdict is Verdict.INCONCLUSIVE]
        if role == "after" and open_:
            what = ", ".join(f"{c.scenario} {c.metric} of {c.item}" for c in open_[:NAMED])
            what += f" and {len(open_) - NAMED} more" if len(open_) > NAMED else ""
            blocks = [c.blocks_needed for c in open_ if c.blocks_needed]
            more = f"; about {max(blocks)} blocks would settle the last of them" if blocks else ""
            yield f"{arm}: inconclusive in {len(open_)} of its comparisons ({what}){more}."


def _too_few(run: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    """The rule counts failures; whether their true rate is under the limit may need more requests."""
    limit = run["config"]["thresholds"]["error_rate"]
    for rule in analysis.judgement.rules:
        if rule.name == "error rate" and rule.arm in _after(run) and rule.bound and rule.bound > limit:
            yield (
                f"{rule.arm}: error rates between {100 * limit:.2g} % and {100 * rule.bound:.2g} % are not excluded by "
                "so few requests; the rule counts the failures that there were."
            )


def _control(run: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    control = _arm(run, "control")
    for c in analysis.comparisons:
        if c.after == control and c.ratio and not c.ratio.lo <= 1 <= c.ratio.hi:
            yield (
                f"The control arm, identical to before, differs in {c.scenario} ({c.metric} of {c.item}: "
                f"{c.ratio.lo:.3g} to {c.ratio.hi:.3g}); one healthy interval in twenty does. "
                "Others are judged there by a margin widened to it."
            )


def _unverified(_: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    for use in analysis.plans:
        if use.scans_expected and not use.verified and use.summary != NO_TABLE:
            yield (
                f"{use.query} on {use.arm}: the plan shown was used in {use.scans_seen:,} of "
                f"{use.scans_expected:,} executions; the others used another, which may be slower."
            )


def _near_floor(run: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    floors = {(f.scenario, f.item): f.p50.value for f in analysis.levels if f.arm == FLOOR and f.p50}
    for arm in _after(run):
        near = [
            f"{level.scenario} of {level.item} ({_ms(level.p50.value)})"
            for level in analysis.levels
            if level.arm == arm and level.p50
            if level.p50.value < FLOOR_FACTOR * floors.get((level.scenario, level.item), 0.0)
        ]
        if near:
            yield (
                f"{arm}: under {FLOOR_FACTOR:g} times what the client alone takes, so that the true gain is "
                f"larger than shown: {', '.join(near)}."
            )


def _drift(run: Mapping[str, Any], _: Analysis) -> Iterator[str]:
    if run.get("order") == "sequential":
        yield "The arms followed one another (before, after, before again): sequential, drift not cancelled."


def _origin(run: Mapping[str, Any], _: Analysis) -> Iterator[str]:
    origin = run.get("origin", {})
    if origin.get("way"):
        way = origin["way"]
        yield f"{way[0].upper()}{way[1:]}: it tells {origin['tells']}; it cannot tell {origin['cannot_tell']}."
    for lack in origin.get("missing", ()):
        yield f"Not in the copy: {lack}."


def _setting(run: Mapping[str, Any], _: Analysis) -> Iterator[str]:
    server, host = run.get("server", {}), run["host"]
    if server.get("kind") == "embedded":
        others = "the service and the load" if run["config"]["request"] else "the load"
        yield (
            f"Measured on embedded PostgreSQL {server['version']} that shares {host['cores']} cores with "
            f"{others}, fsync {server['settings'].get('fsync')}: ratios carry over "
            "to another machine better than milliseconds; whether a limit in ms holds depends on the machine."
        )
    if rtt := run["parameters"]["rtt_ms"]:
        yield (
            f"A round trip of {rtt:g} ms was put between service and database (connecting costs "
            f"{run['parameters']['connect_rtts']}); direct SQL does not pass through it."
        )
    elif run["config"]["request"]:
        yield (
            "No network lies between service and database (--rtt-ms 0), so connecting for every request "
            "costs less here than on a hosted database."
        )


def _arm(run: Mapping[str, Any], role: str) -> str:
    return next((name for name, own in run["roles"].items() if own == role), "")


def _three(value: float) -> str:
    """Three significant digits without an exponent: two would hide on which side of 1 a bound is."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _after(run: Mapping[str, Any]) -> list[str]:
    return [name for name, role in run["roles"].items() if role == "after"]


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2g} ms"
