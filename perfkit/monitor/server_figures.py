"""What the database server's own figures say of a window of intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from perfkit.monitor.model import Tick

_MB = 1024 * 1024
_COUNTED = ("commits", "rollbacks", "blocks_hit", "blocks_read", "temp_bytes", "deadlocks", "checksum_failures")
_NOW = ("lock_wait_s", "transaction_s", "invalid_indexes")


def server_figures(ticks: Sequence[Tick]) -> dict[str, float | None]:
    """The server's metrics: counters from the first interval's end to the last's, others as last known."""
    said = [tick.server for tick in ticks if tick.server]
    counted = {name: grown(said, name) for name in _COUNTED}
    mb = counted["temp_bytes"]
    return {
        "connections_share": _share(_last(said, "connections"), _last(said, "connections_max")),
        **{name: _last(said, name) for name in _NOW},
        "deadlocks": counted["deadlocks"],
        "checksum_failures": counted["checksum_failures"],
        "cache_misses": _part(counted["blocks_read"], counted["blocks_hit"]),
        "temp_mb": None if mb is None else mb / _MB,
        "rollback_rate": _part(counted["rollbacks"], counted["commits"]),
    }


def grown(said: Sequence[Mapping[str, float]], name: str) -> float | None:
    """By how much a counter grew; None with fewer than two readings.

    A value below the one before has begun anew at 0, after a crash or a reset, and counts whole. A restart after an
    orderly shutdown keeps the counters, so another `started` alone is no new beginning.
    """
    values = [one[name] for one in said if name in one]
    if len(values) < 2:
        return None
    return sum(now - before if now >= before else now for before, now in pairwise(values))


def _last(said: Sequence[Mapping[str, float]], name: str) -> float | None:
    return next((one[name] for one in reversed(said) if name in one), None)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _part(one: float | None, other: float | None) -> float | None:
    """Of two counts the first's share of both; None where nothing was counted."""
    return None if one is None or other is None else _share(one, one + other)
