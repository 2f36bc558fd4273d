"""When an incident began: the interval from which on the samples themselves were beyond the limit.

A figure over five minutes is beyond its limit long after it began, and stays there long after it ended. So the
intervals are looked at one by one, backwards from the one that raised the alert. Each scores for or against its
samples being beyond the limit, and it began with the interval, itself beyond, at which the sum is largest. An
interval's score for is no larger than a clean interval's against, so that one bad interval some time before is not
taken for the beginning; where errors are so rare that a clean interval says little, one failure counts in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

from perfkit.config.watching import WatchRule
from perfkit.monitor.figures import Baseline, chosen, figures, probes
from perfkit.monitor.model import Kind, Tick
from perfkit.monitor.severity import beyond

LASTS = ("service_down_s", "database_down_s", "lock_wait_s", "transaction_s")  # figures that say how long it has been
_TAIL = {"p50_ms": 0.5, "slowdown": 0.5, "p95_ms": 0.05, "p99_ms": 0.01}  # share of samples over it, at the limit


def since(
    rule: WatchRule, value: float, ticks: Sequence[Tick], kinds: Mapping[str, Kind], baseline: Baseline | None
) -> float:
    """When it began, on the time line; `value` is the figure at the end of these intervals.

    Right within one interval wherever one interval's samples can tell, else within the time of about one failure.
    """
    if rule.metric in LASTS:
        known = (
            ticks[-1] if rule.metric.endswith("_down_s") else next((t for t in reversed(ticks) if t.server), ticks[-1])
        )
        return max(known.t - value, 0.0)
    best, began, total = float("-inf"), ticks[-1].start, 0.0
    for place in range(len(ticks) - 1, -1, -1):
        score = _score(rule, ticks[place], ticks[place - 1] if place else None, kinds, baseline)
        total += score
        if score > 0 and total >= best:
            best, began = total, ticks[place].start
    return began


def _score(
    rule: WatchRule, tick: Tick, before: Tick | None, kinds: Mapping[str, Kind], baseline: Baseline | None
) -> float:
    """Above 0 where this interval's own samples are beyond the limit, 0 where they do not say."""
    share, bad, n = _counted(rule, tick, kinds, baseline)
    if n and 0 < share < 1:
        clean = log((1 - share) / (1 - share / 2))  # the log likelihood of the limit against half of it, per sample
        return min(bad * log(2) + (n - bad) * clean, max(log(2), -n * clean))
    own = figures([tick], kinds, baseline, rule.item or "", before=before, few=True)[rule.metric]
    return 0.0 if own is None else 1.0 if beyond(rule, own) else -1.0


def _counted(
    rule: WatchRule, tick: Tick, kinds: Mapping[str, Kind], baseline: Baseline | None
) -> tuple[float, int, int]:
    """For a figure that is a share of samples: the share at the limit, how many are bad here, of how many."""
    own = probes([tick], chosen(kinds, rule.item or ""))
    if rule.above is not None and rule.metric == "error_rate":
        return rule.above, sum(probe.failed for probe in own), sum(probe.sent for probe in own)
    if rule.above is not None and rule.metric in _TAIL:
        usual = baseline.p50_ms if baseline else 0.0
        bound = rule.above * usual if rule.metric == "slowdown" else rule.above
        slow = sum(ms > bound for probe in own for ms in probe.ms)
        return _TAIL[rule.metric], slow, sum(len(probe.ms) for probe in own)
    return 0.0, 0, 0
