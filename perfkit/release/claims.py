"""What was claimed of a change beforehand, held against what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfkit.analysis.results import Analysis, Comparison, Summary
from perfkit.bundle import Bundle
from perfkit.explain.plan import read_plan
from perfkit.release.judged import LOAD, ONCE, Judged, Span
from perfkit.stats import MIN_SAMPLES, Interval, Ratio, error_bound

__all__ = ["LAB", "Judged", "MeasuredClaim", "elsewhere", "judge", "judged"]

LAB = "insert_slowdown"  # what the index lab alone measures
Claim = Mapping[str, Any]  # as a bundle has it: see `perfkit.config.Claim`


@dataclass(frozen=True, slots=True)
class MeasuredClaim:
    """What claims are held against: one run, of whose arms `before` and `arm` are meant where a claim names none.

    `inserts` are the items of its load that insert rows.
    """

    run: Mapping[str, Any]
    analysis: Analysis
    bundle: Bundle
    before: str
    arm: str
    inserts: Collection[str] = ()


def judged(run: Mapping[str, Any], analysis: Analysis, bundle: Bundle) -> list[Judged]:
    """Every claim of a run that makes sense in its set-up.

    None where its bundle is older than claims in bundles, or where one arm was measured alone: nothing has changed.
    """
    preset = run["parameters"].get("preset", "")
    claims = [own for own in run["config"].get("claim", ()) if own.get("preset") in (None, preset)]
    roles = run.get("roles", {})
    after = [arm for arm in run["parameters"]["arms"] if roles.get(arm) == "after"]
    if not after:
        return []
    before = next((arm for arm, role in roles.items() if role == "before"), "")
    found = judge(claims, MeasuredClaim(run, analysis, bundle, before, after[0]))
    taken = {own["text"]: own for own in (run.get("lab") or {}).get("claims", ())}
    return [Judged(**_spans(taken[own.text])) if own.text in taken else own for own in found]


def judge(claims: Iterable[Claim], measured: MeasuredClaim) -> list[Judged]:
    """Claims held against one run."""
    return [_judged(claim, measured) for claim in claims]


def elsewhere(run: Mapping[str, Any]) -> dict[str, int]:
    """By preset, how many claims are left out because they make sense in that set-up alone."""
    own = run["parameters"].get("preset", "")
    named = [claim.get("preset") for claim in run["config"].get("claim", ())]
    return {name: named.count(name) for name in dict.fromkeys(named) if name and name != own}


def _spans(said: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where a claim has a pair."""
    return {**said, "interval": tuple(said["interval"]) if said["interval"] else None}


def _judged(claim: Claim, measured: MeasuredClaim) -> Judged:
    measure = claim["measure"]
    look, unit, evidence, good = _MEASURES[measure]
    arm = claim.get("arm") or measured.arm
    found: _Found = f"{arm} was not measured"
    if arm in measured.run["parameters"]["arms"]:
        found = look(claim, measured, arm)
    why, value, interval = (found, None, None) if isinstance(found, str) else ("", *found)
    better: Any = "" if arm == measured.before else good  # what was said of the past is met or it is not
    return Judged(
        claim["text"],
        claim["low"],
        claim["high"],
        unit,
        evidence,
        value,
        interval,
        measure,
        arm,
        claim.get("scenario") or "",
        why,
        better,
    )


_Found = tuple[float, Span | None] | str  # a value and its interval, or why there is none


def _size(claim: Claim, measured: MeasuredClaim, arm: str) -> _Found:
    """Bytes of the arm's indexes in kB, as a share of their tables, or with the largest of these in MB."""
    facts = measured.run.get("arms", {}).get(arm, {})
    built, tables = facts.get("indexes", ()), facts.get("table_bytes", {})
    total = sum(index["bytes"] for index in built)
    if not tables:
        return f"no size of a table is known of {arm}"
    if claim["measure"] == "table_mb":
        largest = max({index["table"] for index in built} or tables, key=lambda name: tables.get(name, 0))
        own = sum(index["bytes"] for index in built if index["table"] == largest)
        return (tables.get(largest, 0) + own) / 1024**2, None
    if not built:
        return f"no index is built on {arm}"
    if claim["measure"] == "index_kb":
        return total / 1024, None
    return total / max(sum(tables.get(name, 0) for name in {index["table"] for index in built}), 1), None


def _build(claim: Claim, measured: MeasuredClaim, arm: str) -> _Found:
    seconds = [index["seconds"] for index in measured.run.get("arms", {}).get(arm, {}).get("indexes", ())]
    if not seconds:
        return f"no index is built on {arm}"
    return (max(seconds), (min(seconds), max(seconds))) if claim["measure"] == "build_s" else (sum(seconds), None)


def _execution(claim: Claim, measured: MeasuredClaim, arm: str) -> _Found:
    """The last execution of a query under EXPLAIN, and the span of all that there were."""
    bundle, query = measured.bundle, claim["query"]
    documents = [*bundle.beside_plan(arm, query).get("earlier", ()), bundle.plan(arm, query)]
    times = [ms for d in documents if d is not None and (ms := read_plan(d).execution_ms) is not None]
    return (times[-1], (min(times), max(times))) if times else f"no plan of {query} on {arm}"


def _level(claim: Claim, measured: MeasuredClaim, arm: str) -> Summary | None:
    """The first load level of the claim's scenario, or of its query."""
    return next(
        (
            level
            for level in measured.analysis.levels
            if level.arm == arm and (level.scenario == claim.get("scenario") or level.item == claim.get("query"))
        ),
        None,
    )


def _under_load(claim: Claim, measured: MeasuredClaim, arm: str) -> _Found:
    """An estimate of the claim's load level."""
    level = _level(claim, measured, arm)
    if level is None:
        return f"no round of {claim.get('scenario') or claim.get('query')} on {arm}"
    if not level.healthy:
        return f"the client was too slow: {level.fault}"
    name = {"latency_ms": "p50", "p50_ms": "p50", "p95_ms": "p95"}.get(claim["measure"], "throughput")
    found: Interval | None = getattr(level, name)
    if found is None:
        return f"it takes {MIN_SAMPLES[95]} requests, here {level.n}" if name == "p95" else "nothing was answered"
    return found.value, (found.lo, found.hi)


def _saved(claim: Claim, measured: MeasuredClaim, arm: str) -> _Found:
    metric = "p95" if claim.get("scenario") else "p50"
    found = _first(measured.analysis.comparisons, arm, claim, metric)
    return _share(found.ratio if found else None, arm, saved=True)


def _throughput(claim: Claim, measured: MeasuredClaim, arm: str) -> _Found:
    shown = (c for c in measured.analysis.throughputs if c.after == arm and c.scenario == claim["scenario"])
    found = next(shown, None) or _first(measured.analysis.comparisons, arm, claim, "throughput")
    return _share(found.ratio if found else None, arm)


def _inserts(_: Claim, measured: MeasuredClaim, arm: str) -> _Found:
    """Of the first of the items that insert rows: those of the largest table."""
    by_item = {c.item: c for c in measured.analysis.comparisons if c.after == arm and c.metric == "p50"}
    first = next((by_item[item] for item in measured.inserts if item in by_item), None)
    return _share(first.ratio, arm) if first else "the index lab measures it: perfkit indexes ablate"


def _errors(_: Claim, measured: MeasuredClaim, arm: str) -> _Found:
    """Unexpected outcomes of all requests, and the rates that so many cannot exclude."""
    own = [level for level in measured.analysis.levels if level.arm == arm]
    failed, sent = sum(level.errors for level in own), sum(level.sent for level in own)
    if not sent:
        return f"nothing was sent to {arm}"
    return failed / sent, (1 - error_bound(sent - failed, sent), error_bound(failed, sent))


def _first(comparisons: Sequence[Comparison], arm: str, claim: Claim, metric: str) -> Comparison | None:
    about = claim.get("scenario"), claim.get("query")
    own = (c for c in comparisons if c.after == arm and c.metric == metric)
    return next((c for c in own if c.scenario == about[0] or c.item == about[1]), None)


def _share(ratio: Ratio | None, arm: str, *, saved: bool = False) -> _Found:
    """A ratio after/before as what is saved of before, or as what is added to it."""
    if ratio is None:
        return f"not compared on {arm}"
    if saved:
        return 1 - ratio.value, (1 - ratio.hi, 1 - ratio.lo)
    return ratio.value - 1, (ratio.lo - 1, ratio.hi - 1)


_Look = Callable[[Claim, MeasuredClaim, str], _Found]

#: By measure: what looks for it, its unit, its evidence, and which end of a claim may be overdone.
_MEASURES: Mapping[str, tuple[_Look, str, str, str]] = {
    "index_kb": (_size, "kB", ONCE, "low"),
    "index_share": (_size, "share", ONCE, "low"),
    "table_mb": (_size, "MB", ONCE, "low"),
    "build_s": (_build, "s", ONCE, "low"),
    "build_total_s": (_build, "s", ONCE, "low"),
    "execution_ms": (_execution, "ms", ONCE, "low"),
    "latency_ms": (_under_load, "ms", LOAD, "low"),
    "p50_ms": (_under_load, "ms", LOAD, "low"),
    "p95_ms": (_under_load, "ms", LOAD, "low"),
    "latency_saved": (_saved, "share", LOAD, "high"),
    "throughput": (_under_load, "/s", LOAD, "high"),
    "throughput_change": (_throughput, "share", LOAD, "high"),
    "error_rate": (_errors, "share", LOAD, "low"),
    LAB: (_inserts, "share", LOAD, "low"),
}
