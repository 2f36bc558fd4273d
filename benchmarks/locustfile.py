"""Locust's side of `benchmarks.http`: its own raw times, for its statistics cut them to whole milliseconds.

Runs in Locust's process, in an environment of its own that has nothing of perfkit.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import FastHttpUser, events, task  # type: ignore[import-not-found]

WARM_S, SECONDS, FOLDER = (os.environ[f"PERFKIT_BENCH_{name}"] for name in ("WARM", "SECONDS", "FOLDER"))
times: list[float] = []  # ms, as Locust's client measured them
failed: list[str] = []


class Visitor(FastHttpUser):  # type: ignore[misc]
    """Fetches the service's one page, again and again."""

    @task  # type: ignore[untyped-decorator]
    def page(self) -> None:
        """One request."""
        self.client.get("/")


def note(response_time: float, exception: BaseException | None, **_: Any) -> None:
    """One request is done."""
    if exception:
        failed.append(repr(exception))
    else:
        times.append(response_time)


def watch(**_: Any) -> None:
    """The test has begun: measure for a while when all users are there."""
    gevent.spawn(measure)


def measure() -> None:
    """Leave the beginning out, then write down what SECONDS bring, and this process's CPU time in them."""
    time.sleep(float(WARM_S))  # gevent's
    times.clear()
    cpu, wall = time.process_time(), time.perf_counter()
    time.sleep(float(SECONDS))
    found = {"cpu_s": time.process_time() - cpu, "span_s": time.perf_counter() - wall}
    if times or failed:  # a process that only leads others sends nothing
        text = json.dumps({**found, "times": times, "failed": failed})
        Path(FOLDER, f"{os.getpid()}.json").write_text(text)


events.request.add_listener(note)
events.test_start.add_listener(watch)
