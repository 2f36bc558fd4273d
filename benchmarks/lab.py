"""What the index lab takes on the booking system's seven indexes, and what its advice brings of them at what size."""

from __future__ import annotations

import time
from tempfile import TemporaryDirectory

from benchmarks.phases import Memory
from perfkit.app import api
from perfkit.indexes.designs import ADVISED, CHOSEN

LIMITS = {"quick": 240.0, "standard": 900.0}  # seconds from the call to the page
MEMORY_GB = 1.5


def main(profile: str = "quick") -> bool:
    """Print seconds and memory beside their limits, sizes and worst queries of the sets; True where limits hold."""
    start = time.perf_counter()
    with TemporaryDirectory() as folder, Memory() as memory:
        lab = api.ablate(profile=profile, advised="auto", reports=folder)
        lab.render()
        seconds = time.perf_counter() - start
        last, whole = lab.lab.last, sum(index.bytes for index in lab.lab.index_values)
        assert last
        timings = lab.lab.ablation.bundle.run.timings
        kept, advised = (
            (sum(size for size in sizes) / whole, max((c.ratio.hi for c in own if c.ratio), default=float("nan")))
            for sizes, own in (
                ([index.bytes for index in last.built(arm)], lab.lab.confirming(arm)) for arm in (CHOSEN, ADVISED)
            )
        )
    for name, value in timings.items():
        print(f"lab  {profile:8} {name:13} {value:7.2f}")
    print(f"lab  {profile:8} {'whole':13} {seconds:7.2f}  (limit {LIMITS[profile]:g})")
    print(f"lab  {profile:8} {'memory (GB)':13} {memory.peak / 1e9:7.2f}  (limit {MEMORY_GB:g})")
    for name, (share, slowest) in {"kept": kept, "advised": advised}.items():
        print(
            f"lab  {profile:8} {name:13} {share:7.2f} of the bytes, every query at most x{slowest:.3g} of all indexes'"
        )
    return seconds <= LIMITS[profile] and memory.peak / 1e9 <= MEMORY_GB
