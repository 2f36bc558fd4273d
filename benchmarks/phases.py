"""Where a run's time and memory go: start, data, clones, load, everything else, rendering, peak PSS."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from perfkit import config
from perfkit.analysis.report import render
from perfkit.runs.experiment import measure
from perfkit.runs.selection import RunSpec, Selection

LIMITS = {"server start": 3.0, "data": 20.0, "overhead": 25.0, "rendering": 8.0, "memory (GB)": 2.0}


class Memory:
    """The peak proportional set size of this process and everything it started, the server included."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._done.wait(2.0):
            family = [own, *own.children(recursive=True)]
            family += [p for p in psutil.process_iter(["name"]) if p.info["name"] == "postgres"]
            self.peak = max(self.peak, sum(_pss(process) for process in set(family)))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def main(profile: str = "quick") -> bool:
    """Print each phase's seconds beside its limit; True where all hold."""
    start = time.perf_counter()
    with TemporaryDirectory() as folder, Memory() as memory:
        bundle = measure(Selection(config.load(), RunSpec(profile=profile)), Path(folder) / "run")
        measured = time.perf_counter()
        render(bundle.path)
        end = time.perf_counter()
    timings = bundle.run.timings
    found = {
        "whole": end - start,
        "server start": timings["server"],
        "data": timings["data"],
        "clones": timings["clones"],
        "load": timings["load"] + timings["warm-up"],
        "rendering": end - measured,
        "memory (GB)": memory.peak / 1e9,
    }
    found["overhead"] = found["whole"] - found["data"] - found["clones"] - found["load"]
    for name, value in found.items():
        limit = LIMITS.get(name)
        print(f"{profile:8} {name:13} {value:7.2f}" + (f"  (limit {limit:g})" if limit else ""))
    return all(found[name] <= limit for name, limit in LIMITS.items())
