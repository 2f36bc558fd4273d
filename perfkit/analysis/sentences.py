"""A run in words: the sentence under the decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perfkit.analysis.changes import of_role
from perfkit.analysis.results import Analysis, Comparison, Summary
from perfkit.bundle import FLOOR
from perfkit.numbers import millis
from perfkit.stats import Verdict

FLOOR_FACTOR = 3.0  # below this many times the floor's median, a latency is mostly the client's own


def headline(run: Mapping[str, Any], analysis: Analysis) -> str:
    """The load level that was worst before, in numbers, and what else a decision needs."""
    parts = [_worst(run, analysis), *_counted(run, analysis), _errors(analysis), _checks(run)]
    said = "; ".join(part for part in parts if part)
    return f"{said[0].upper()}{said[1:]}." if said else "Nothing was measured."


def _worst(run: Mapping[str, Any], analysis: Analysis) -> str:
    """By the p95, or the median where no p95 has the samples for it."""
    before = [level for level in analysis.levels if level.arm in of_role(run, "before")]
    for metric, share in (("p95", "95 of 100 requests were"), ("p50", "half of the requests were")):
        found = [(interval.value, level) for level in before if (interval := getattr(level, metric))]
        if found:
            value, worst = max(found, key=lambda pair: pair[0])
            after = of_role(run, "after")
            changes = [change for arm in after if (change := _change(run, analysis, worst, arm, metric))]
            label = next(s["label"] for s in run["scenarios"] if s["name"] == worst.scenario)
            when = " before" if after else ""
            return ", ".join([f"{label}: {share} answered within {millis(value)}{when}", *changes])
    return ""


def _change(run: Mapping[str, Any], analysis: Analysis, worst: Summary, arm: str, metric: str) -> str:
    level = analysis.level(arm, worst.scenario, worst.item)
    found = analysis.comparison(arm, worst.scenario, metric, worst.item)
    interval = getattr(level, metric) if level else None
    if interval is None:
        return ""
    text = f"{millis(interval.value)} {_named(run, arm)}"
    return f"{text} ({_times(found)})" if found and found.ratio else text


def _counted(run: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    """Where several queries were measured, how many became faster and slower: one is not all of them."""
    for arm in of_role(run, "after") if len(run["queries"]) > 1 and not run["config"]["request"] else ():
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


def complete_blocks(run: Mapping[str, Any]) -> int:
    """Blocks that every arm has been through; where arms follow one another, the last comes last."""
    arms = set(run["parameters"]["arms"])
    return sum(arms <= block["state"].keys() for block in run["blocks"])


def _three(value: float) -> str:
    """Three significant digits without an exponent: two would hide on which side of 1 a bound is."""
    return f"{float(f'{value:.3g}'):,.10g}"
