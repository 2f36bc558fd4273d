"""The loop of a watch under a clock of the test: intervals, late ones, clocks that are set, ends and new starts."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import watching
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit.base.errors import TargetRefused
from perfkit.base.resources import CHECKOUT
from perfkit.config import Watch
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.loop import Loop, Notes, WatchClock
from perfkit.monitor.metrics import ServerReading
from perfkit.monitor.model import Event, Probe, Tick
from perfkit.monitor.store import Store, read

SETTINGS = Watch.model_validate({"every_s": 10, "window_s": 60})
OK_ = Probe({"ok": 20}, {"200": 20}, (5.0,) * 20)


@dataclass
class Time:
    """A clock that goes on only while somebody waits for it, and can be put forward on the way."""

    now: float = 100.0
    wall_at_0: float = watching.BEGAN
    late: dict[float, float] = field(default_factory=dict)  # by the instant waited for, by how much it is missed
    stop_at: float = float("inf")

    stop: Callable[[], None] = lambda: None

    def wait(self, seconds: float, stopped: Callable[[], bool]) -> None:
        until = self.now + seconds
        self.now = until + self.late.pop(round(until, 3), 0.0)
        if self.now >= self.stop_at:
            self.now = self.stop_at
            self.stop()

    def clock(self) -> WatchClock:
        return WatchClock(lambda: self.now, lambda: self.wall_at_0 + self.now, self.wait)


class Probes:
    """Probes without a service."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def cut(self) -> Mapping[str, Probe]:
        return {"book": OK_}

    def require_alive(self) -> None:
        if self.error:
            raise self.error


class Figures:
    """A server without PostgreSQL; `silent` while it does not answer."""

    def __init__(self) -> None:
        self.silent, self.asked = False, 0

    def ask(self) -> None:
        self.asked += 1

    def answer(self, wait_s: float = 0.0) -> ServerReading | None:
        return None if self.silent else ServerReading({"connections": 3.0}, {"by_org": self.asked})


class Watched:
    """A loop on a folder with all that belongs to it."""

    def __init__(self, folder: Path, time: Time) -> None:
        self.folder, self.time, self.notes = folder, time, Notes()
        self.probes, self.server = Probes(), Figures()
        about = watching.about(every_s=10.0)
        self.store = Store.open(folder, about)
        record = read(folder) if self.store.last else None
        alerts = Alerts(SETTINGS, self.store.about, record)
        self.loop = Loop(SETTINGS, self.store, alerts, self.probes, self.server, self.notes, time.clock())
        time.stop = lambda: setattr(self.loop, "stopped", True)
        self.events: list[Event] = []
        self.loop.on_event.append(self.events.append)

    def run(self, seconds: float) -> list[Tick]:
        try:
            self.whole = self.loop.run(seconds)
        finally:
            self.store.close()
        return list(read(self.folder).ticks)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def watched(tmp_path: Path, time: Time) -> Iterator[Watched]:
    yield Watched(tmp_path / "watch", time)


def test_every_interval_is_on_disk_with_its_probes_and_the_servers_figures(watched: Watched) -> None:
    ticks = watched.run(60)
    assert watched.whole
    assert [(tick.n, tick.t, tick.seconds) for tick in ticks] == [(n, 10.0 * (n + 1), 10.0) for n in range(6)]
    assert ticks[0].at == watching.BEGAN + 110
    assert ticks[2].probes == {"book": OK_}
    assert (ticks[2].server, ticks[2].scans) == ({"connections": 3.0}, {"by_org": 3})


def test_the_last_interval_is_as_long_as_there_is_time(watched: Watched) -> None:
    assert [tick.seconds for tick in watched.run(25)] == [10, 10, 5]


def test_a_late_interval_has_its_real_length_and_the_next_ends_where_it_would_have(watched: Watched) -> None:
    watched.time.late = {120.0: 3.0}
    assert [tick.t for tick in watched.run(40)] == [10, 23, 30, 40]


def test_a_machine_that_slept_makes_one_long_interval(watched: Watched) -> None:
    watched.time.late = {120.0: 3600.0}
    assert [tick.seconds for tick in watched.run(3650)][:3] == [10, 3610, 10]
    assert watched.events == []  # both clocks went on


@pytest.mark.parametrize(("by", "words"), [(7200.0, "forward by 7200.0 s"), (-30.0, "back by 30.0 s")])
def test_a_clock_that_is_set_is_noted_once_and_the_time_line_goes_on(watched: Watched, by: float, words: str) -> None:
    def setting(recent: object, standing: object) -> None:
        if round(watched.time.now) == 120:
            watched.time.wall_at_0 += by

    watched.loop.on_tick.append(setting)
    ticks = watched.run(60)
    assert [tick.t for tick in ticks] == [10, 20, 30, 40, 50, 60]
    assert ticks[2].at - ticks[1].at == 10 + by
    assert [(event.what, event.t, event.text) for event in watched.events] == [
        ("note", 30.0, f"the machine's clock was set {words}")
    ]
    assert list(read(watched.folder).events) == watched.events


def test_a_clock_that_drifts_is_no_news(watched: Watched) -> None:
    watched.loop.on_tick.append(lambda *_: setattr(watched.time, "wall_at_0", watched.time.wall_at_0 + 0.05))
    watched.run(60)
    assert watched.events == []


def test_a_server_that_does_not_answer_is_none_and_one_that_is_not_watched_is_empty(watched: Watched) -> None:
    watched.server.silent = True
    assert [tick.server for tick in watched.run(20)] == [None, None]


def test_a_server_that_was_started_again_is_noted(watched: Watched) -> None:
    times = iter([0.0, 0.0, 3661.0, 3661.0])
    watched.server.answer = lambda wait_s=0.0: ServerReading({"started": next(times)})  # type: ignore[method-assign]
    watched.run(40)
    assert [(event.t, event.text) for event in watched.events] == [(30.0, "PostgreSQL was restarted at 01:01:01 UTC")]


def test_a_stop_writes_what_there_is_of_the_interval(watched: Watched) -> None:
    watched.time.stop_at = 124.0
    assert [tick.t for tick in watched.run(60)] == [10, 20, 24]
    assert not watched.whole


def test_at_the_stop_a_server_without_time_to_answer_is_not_taken_for_one_that_is_down(watched: Watched) -> None:
    watched.time.stop_at = 124.0
    watched.loop.on_tick.append(lambda recent, _: setattr(watched.server, "silent", len(recent) == 2))
    assert [tick.server for tick in watched.run(60)][-1] == {}


def test_the_end_of_the_probes_ends_the_watch_after_that_interval(watched: Watched) -> None:
    watched.loop.on_tick.append(lambda *_: setattr(watched.probes, "error", TargetRefused("not allowed")))
    with pytest.raises(TargetRefused):
        watched.run(60)
    assert len(read(watched.folder).ticks) == 1


def test_begun_again_it_goes_on_with_the_next_interval_and_time_has_passed_meanwhile(
    watched: Watched, time: Time
) -> None:
    watched.run(30)
    time.now += 300.0
    again = Watched(watched.folder, time)
    assert [(tick.n, tick.t) for tick in again.run(20)][3:] == [(3, 340.0), (4, 350.0)]
    assert again.store.about.id == watched.store.about.id


def test_listeners_get_the_last_window_and_notes_come_once_of_each_kind(watched: Watched) -> None:
    lengths: list[int] = []
    watched.loop.on_tick.append(lambda recent, _: lengths.append(len(recent)))
    for _ in range(3):
        watched.notes("notify-failed", "notify: failed")
    watched.run(100)
    assert lengths == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6]
    assert [(event.what, event.text) for event in watched.events] == [("note", "notify: failed")]


@given(
    st.dictionaries(st.integers(1, 40).map(lambda n: 100.0 + 5 * n), st.floats(0.001, 60), max_size=8),
    st.floats(1, 200),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_late_intervals_follow_one_another_and_add_up(late: dict[float, float], lasts: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ticks = Watched(Path(folder) / "watch", Time(late=dict(late))).run(lasts)
    assert [tick.n for tick in ticks] == list(range(len(ticks)))
    assert ticks[0].start == pytest.approx(0, abs=0.002)
    assert all(one.t == pytest.approx(other.start, abs=0.003) for one, other in pairwise(ticks))
    assert ticks[-1].t >= lasts - 0.001 and all(tick.t < lasts for tick in ticks[:-1])
    assert all(tick.seconds <= 15.0 + sum(late.values()) for tick in ticks)


DAY = """
import sys
from pathlib import Path
import watching
from perfkit import config
import perfkit.monitor.loop
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.figures import compute_figures
from perfkit.monitor.loop import Loop, Notes
from perfkit.monitor.store import Store
from test_watch_loop import Figures, Probes, Time

settings, time = config.load().watch, Time()
hour = watching.quiet(1.0)

class Day(Probes):
    n = 0
    def cut(self):
        self.n += 1
        return hour[self.n % len(hour)].probes

store = Store.open(Path(sys.argv[1]), watching.about())
loop = Loop(settings, store, Alerts(settings, store.about), Day(), Figures(), Notes(), time.clock())
loop.on_tick.append(lambda recent, _: compute_figures(recent, store.about.kinds, None))
def peak():  # in MB, of this program alone: ru_maxrss begins with that of whoever started it
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

before = peak()
loop.run(86400)
store.close()
print(before, peak(), store.last.n + 1)
"""


@pytest.mark.slow
def test_after_a_day_a_watcher_has_used_less_than_150_mb(tmp_path: Path) -> None:
    words = [sys.executable, "-c", DAY, str(tmp_path / "day")]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests" / "support")}
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=Path(__file__).parent, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr
    _, after, ticks = map(float, done.stdout.split())
    assert ticks == 8640
    assert after < 150
