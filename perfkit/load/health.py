"""Whether a round's numbers are the target's: what the client did wrong, by the limits of the configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping

LATE = "the typical request left {:.3g} ms late"
BUSY = "a worker was busy {:.0f} % of the time"


def faults(health: Mapping[str, float], p50_ms: float, limits: Mapping[str, float]) -> dict[str, float]:
    """The reasons for which a round is invalid, as texts to be filled with their number; empty where it is healthy.

    Schedule lag counts beyond `lag_ms` and beyond a share of the round's own median.

    >>> limits = {"lag_ms": 5, "lag_share": 0.25, "worker_cpu": 0.95}
    >>> faults({"lag_p50_ms": 6, "worker_cpu": 0.5}, 100, limits)
    {}
    >>> faults({"lag_p50_ms": 6, "worker_cpu": 0.5}, 10, limits)
    {'the typical request left {:.3g} ms late': 6}
    """
    found = {}
    if health["lag_p50_ms"] > max(limits["lag_ms"], limits["lag_share"] * p50_ms):
        found[LATE] = health["lag_p50_ms"]
    if health["worker_cpu"] > limits["worker_cpu"]:
        found[BUSY] = 100 * health["worker_cpu"]
    return found
