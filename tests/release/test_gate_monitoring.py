"""Whether monitoring is ready: a watch that goes on, and metrics that answer where it has any."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from synthetic import make_run
from watching import about, quiet

from perfkit.app import api
from perfkit.base.errors import BundleError
from perfkit.monitor.metrics import Metrics
from perfkit.monitor.model import Event
from perfkit.monitor.store import Store
from perfkit.release.gate import WatchState, watch_state

TICKS = quiet(hours=0.02)
LAST = TICKS[-1].at


def watch(folder: Path, *events: Event, ticks: int = len(TICKS)) -> Path:
    store = Store.open(folder, about())
    for tick in TICKS[:ticks]:
        store.append(tick)
    for event in events:
        store.add(event)
    store.close()
    return folder


def note(text: str) -> Event:
    return Event("note", "note-metrics-0", 0.0, LAST, text)


def found(folder: Path, age: float) -> WatchState:
    return watch_state(folder, lambda: LAST + age)


@pytest.mark.parametrize(("age", "alive"), [(0, True), (4, True), (29, True), (31, False), (86400, False), (-4, True)])
def test_a_watch_is_alive_while_its_last_interval_is_younger_than_three(
    tmp_path: Path, age: float, alive: bool
) -> None:
    seen = found(watch(tmp_path / "watch"), age)
    assert (seen.alive, seen.age) == (alive, f"{age} s old")
    assert f"ended {age} s ago; its intervals are 10 s long" in seen.text
    assert seen.text.endswith("No alert is active." if alive else "so the watch is not running.")


def test_a_watch_from_the_future_is_not_believed(tmp_path: Path) -> None:
    seen = found(watch(tmp_path / "watch"), -3600)
    assert (seen.alive, seen.age) == (False, "in the future")
    assert seen.text.endswith("ends 3600 s from now: one of the clocks is wrong.")


def test_a_watch_that_has_only_begun_is_not_ready(tmp_path: Path) -> None:
    seen = found(watch(tmp_path / "watch", ticks=0), 1)
    assert (seen.alive, seen.age) == (False, "no interval yet")


def test_metrics_that_the_watch_offers_must_answer(tmp_path: Path) -> None:
    metrics = Metrics(about())
    port = metrics.serve()
    folder = watch(tmp_path / "watch", note(f"metrics: http://127.0.0.1:{port}/metrics"))
    try:
        seen = found(folder, 4)
    finally:
        metrics.close()
    assert seen.alive and ", and its metrics answer." in seen.text
    seen = found(folder, 4)
    assert not seen.alive and f"its metrics at http://127.0.0.1:{port}/metrics do not answer: " in seen.text


@pytest.mark.parametrize(
    "url", ["http://example.org:80/metrics", "http://127.0.0.1.example.org:80/metrics", "file:///x"]
)
def test_no_other_machine_is_asked_whatever_the_folder_says(tmp_path: Path, url: str) -> None:
    seen = found(watch(tmp_path / "watch", note(f"metrics: {url}")), 4)
    assert seen.alive and "metrics" not in seen.text


def test_alerts_that_stand_are_named_and_forbid_nothing(tmp_path: Path) -> None:
    raised = [Event("raised", name, 1, LAST, "p95 712 ms", f"latency-{name}", "P2") for name in ("600", "700")]
    cleared = Event("cleared", "700", 2, LAST, "p95 300 ms", "latency-700", "P2")
    seen = found(watch(tmp_path / "watch", *raised, cleared), 4)
    assert seen.alive and seen.text.endswith("Active alerts: P2 latency-600.")


def test_a_folder_that_is_no_watchs_is_one_line_and_decides_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run").path
    with pytest.raises(BundleError) as caught:
        api.decide(run, watch=run)
    assert str(run) in str(caught.value) and "\n" not in str(caught.value)
    assert not (run / "decision.json").exists()


def test_a_dead_watch_leaves_the_decision_open_where_none_was_even_required(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run").path
    assert api.decide(run).decided.decision == "GO"
    dead = watch(tmp_path / "watch")
    decided = api.decide(run, watch=dead).decided
    assert (decided.decision, decided.watch) == ("INCONCLUSIVE", "watch")
    assert decided.reasons[0].endswith("Needed: a running watch; pass its folder with --watch FOLDER.")
    shutil.rmtree(dead)
    assert api.decide(bundle=run).decided == decided
