"""What a window of intervals says: latency, errors, throughput, downtime, and the server's own figures."""

from dataclasses import replace
from typing import get_args

import pytest
import watching
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit import config
from perfkit.base.stats import percentile
from perfkit.config.judging import Metric, Watch
from perfkit.monitor import figures
from perfkit.monitor.figures import increase
from perfkit.monitor.model import Probe, Tick, gravest

KINDS = {"book": "request", "upcoming": "request", "conflict_check": "query"}
GOOD = Probe({"ok": 10}, {"200": 10}, (10.0,) * 10)
BAD = Probe({"refused": 10})
SERVER = {"started": 1.0, "connections": 5, "connections_max": 100}


def tick(n: int, book: Probe | None = GOOD, query: Probe | None = None, seconds: float = 10.0, **server: float) -> Tick:
    probes = {name: probe for name, probe in (("book", book), ("conflict_check", query)) if probe}
    return Tick(n, (n + 1) * 10.0, 1e9 + n * 10, seconds, probes, {**SERVER, **server} if server else {})


def said(ticks: list[Tick], item: str = "", usual: figures.Baseline | None = None) -> dict[str, float | None]:
    return figures.compute_figures(ticks, KINDS, usual, item)


# Which figures


def test_every_metric_of_the_configuration_has_a_figure() -> None:
    assert set(said([tick(0)])) == set(get_args(Metric))


def test_nothing_is_known_of_no_interval() -> None:
    assert set(said([]).values()) == {None}
    assert figures.window([], 300) == []
    assert figures.find_gaps([]) == []


def test_a_window_is_the_last_seconds_of_the_time_line() -> None:
    ticks = watching.quiet(1)
    assert [t.t for t in figures.window(ticks, 30)] == [3580, 3590, 3600]
    assert figures.window(ticks, 1e9) == ticks


# Latency


def test_a_percentile_has_the_samples_for_it_or_is_not_given() -> None:
    ticks = [tick(n) for n in range(8)]
    assert said(ticks[:7])["p95_ms"] is None  # 70 of 72
    assert said(ticks)["p95_ms"] == 10.0
    assert said(ticks)["p99_ms"] is None
    assert said([tick(n) for n in range(37)])["p99_ms"] == 10.0


def test_without_an_item_the_requests_count_and_queries_do_not() -> None:
    slow = replace(GOOD, ms=(900.0,) * 10)
    assert said([tick(n, query=slow) for n in range(8)])["p95_ms"] == 10.0
    assert said([tick(n, query=slow) for n in range(8)], "conflict_check")["p95_ms"] == 900.0


def test_where_no_request_is_sent_the_queries_count() -> None:
    ticks = [tick(n, book=None, query=GOOD) for n in range(8)]
    assert figures.compute_figures(ticks, {"conflict_check": "query"}, None)["p95_ms"] == 10.0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.floats(0.1, 9000), min_size=1, max_size=30), min_size=1, max_size=20))
def test_percentiles_are_of_raw_samples_however_they_lie_in_intervals(rounds: list[list[float]]) -> None:
    ticks = [tick(n, Probe({"ok": len(ms)}, {}, tuple(ms))) for n, ms in enumerate(rounds)]
    pooled = [value for ms in rounds for value in ms]
    found, joined = said(ticks), said([tick(0, Probe({"ok": len(pooled)}, {}, tuple(reversed(pooled))))])
    for name, q, least in (("p50_ms", 50, 6), ("p95_ms", 95, 72), ("p99_ms", 99, 368)):
        assert found[name] == joined[name]
        assert found[name] == (percentile(pooled, q) if len(pooled) >= least else None)


# Errors, throughput, success


def test_the_error_rate_is_failed_of_ended_and_pending_is_neither() -> None:
    mixed = Probe({"ok": 18, "timeout": 2}, {}, (5.0,) * 18, pending=20, oldest_s=2.0)
    assert said([tick(0, mixed)])["error_rate"] == 0.1
    assert said([tick(0, Probe(pending=3))])["error_rate"] is None


def test_throughput_is_what_was_answered_as_expected_per_second_watched() -> None:
    ticks = [tick(0), tick(1, BAD), tick(50)]  # a gap between the last two is not watched
    assert said(ticks)["throughput"] == pytest.approx(20 / 30)


def test_a_drop_and_a_slowdown_need_to_know_what_is_usual() -> None:
    ticks = [tick(n) for n in range(8)]
    assert said(ticks)["throughput_drop"] is said(ticks)["slowdown"] is None
    found = said(ticks, usual=figures.Baseline(throughput=4.0, p50_ms=5.0))
    assert found["throughput_drop"] == pytest.approx(0.75)
    assert found["slowdown"] == 2.0


def test_what_is_usual_comes_from_the_first_healthy_seconds_only() -> None:
    watch, slow = Watch(baseline_s=30.0), replace(GOOD, ms=(99.0,) * 10)
    failing = Probe({"ok": 9, "timeout": 1}, {}, (1.0,) * 9)
    ticks = [tick(0, BAD), tick(1), tick(2, failing), tick(3), tick(4), tick(5, slow)]
    assert figures.compute_baseline(ticks[:4], KINDS, watch) is None
    assert figures.compute_baseline(ticks, KINDS, watch) == figures.Baseline(1.0, 10.0)
    assert figures.compute_baseline(ticks, KINDS, watch, "conflict_check") is None


def test_a_taken_slot_is_no_error_and_no_success() -> None:
    booked = Probe({"ok": 20}, {"201": 18, "409": 2}, (5.0,) * 20)
    found = said([tick(0, booked, query=BAD)], "book")
    assert found["success_rate"] == 0.9
    assert found["error_rate"] == 0.0
    assert said([tick(0, query=GOOD)], "conflict_check")["success_rate"] == 1.0


# Downtime


@pytest.mark.parametrize(
    ("probe", "down"),
    [
        (GOOD, False),
        (BAD, True),
        (Probe({"ok": 1, "timeout": 19}, {}, (5.0,)), False),
        (Probe({"timeout": 1}, pending=5, oldest_s=4.0), True),
        (Probe(pending=5, oldest_s=9.0), None),  # due in this interval: it may yet be answered
        (Probe(pending=5, oldest_s=10.0), True),
        (Probe(), None),
    ],
)
def test_an_interval_is_down_where_something_was_due_and_nothing_was_answered(probe: Probe, down: bool | None) -> None:
    assert figures.is_down(tick(0, probe), ["book"]) is down
    assert said([tick(0, probe)])["availability"] == (0.0 if down else 1.0)
    assert said([tick(0, probe)])["service_down_s"] == (None if down is None else 10.0 if down else 0.0)


def test_a_stretch_passes_over_what_says_nothing_and_ends_where_nobody_watched() -> None:
    ticks = [
        tick(0),
        tick(1, BAD),
        tick(2, Probe()),
        tick(3, BAD),
        tick(4),
        tick(5, BAD),
        tick(7, BAD),
        tick(8, Probe()),
    ]
    found = figures.find_stretches(ticks, lambda own: figures.is_down(own, ["book"]))
    assert found == [(10.0, 40.0), (50.0, 60.0), (70.0, 80.0)]


def test_a_last_interval_cut_short_is_not_down_for_what_was_just_sent() -> None:
    assert figures.is_down(tick(0, Probe(pending=2, oldest_s=0.4), seconds=0.1), ["book"]) is None
    assert said([tick(0, Probe(), seconds=0.0)])["availability"] is None


def test_availability_is_of_the_time_that_somebody_watched() -> None:
    ticks = watching.without(watching.with_incident(watching.quiet(1), "service-down", 600, 100), 1800, 2400)
    assert figures.find_gaps(ticks) == [(1800, 2400)]
    assert said(ticks)["availability"] == pytest.approx(1 - 100 / 3000)


def test_downtime_counts_from_the_first_failed_interval_and_ends_with_the_first_answer() -> None:
    ticks = watching.with_incident(watching.quiet(0.2), "service-down", 100, 200)
    assert [said(ticks[:n])["service_down_s"] for n in (10, 11, 20, 30, 31)] == [0, 10, 100, 200, 0]


def test_an_interval_without_anything_due_neither_ends_downtime_nor_begins_it() -> None:
    assert said([tick(0, BAD), tick(1, Probe()), tick(2, BAD)])["service_down_s"] == 30
    assert said([tick(0, BAD), tick(1, Probe())])["service_down_s"] == 20


def test_nobody_saw_it_down_while_nobody_watched() -> None:
    assert said([tick(0, BAD), tick(5, BAD)])["service_down_s"] == 10
    assert said([tick(0, BAD), tick(5, Probe())])["service_down_s"] is None


@pytest.mark.parametrize(
    ("server", "query", "down"),
    [
        (None, None, True),
        (None, BAD, True),
        (None, GOOD, False),  # the monitoring connection alone is away
        (SERVER, None, False),
        (SERVER, BAD, False),  # it answers: its queries wait for a lock
        ({}, GOOD, False),
        ({}, BAD, True),
        ({}, None, None),  # nobody asked the database
    ],
)
def test_a_database_is_down_where_it_answers_nothing(
    server: dict[str, float] | None, query: Probe | None, down: bool | None
) -> None:
    one = replace(tick(0, query=query), server=server)
    assert figures.database_down(one, KINDS) is down
    assert said([one])["database_down_s"] == (None if down is None else 10.0 if down else 0.0)


# The server's own figures


def test_counters_are_counted_over_the_window_and_from_the_interval_before_it() -> None:
    ticks = [tick(n, deadlocks=5 + n, temp_bytes=n * 1024**2, commits=90 * n, rollbacks=10 * n) for n in range(4)]
    assert said(ticks)["deadlocks"] == 3
    assert said(ticks)["temp_mb"] == 3
    assert said(ticks)["rollback_rate"] == pytest.approx(0.1)
    assert figures.compute_figures(ticks[2:], KINDS, None, before=ticks[1])["deadlocks"] == 2
    assert said(ticks[:1])["deadlocks"] is None


def test_a_crash_of_the_server_begins_a_counter_anew_and_an_orderly_restart_does_not() -> None:
    crashed = [tick(0, deadlocks=7), tick(1, deadlocks=9), tick(2, deadlocks=1, started=9.0)]
    assert said(crashed)["deadlocks"] == 3
    kept = [tick(0, checksum_failures=3), tick(1, checksum_failures=3, started=9.0)]
    assert said(kept)["checksum_failures"] == 0


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=30), st.data())
def test_a_counter_grows_by_the_same_in_one_window_and_in_two_that_meet(values: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    whole, *parts = ([{"n": value} for value in part] for part in (values, values[: cut + 1], values[cut:]))
    assert increase(whole, "n") == sum(increase(part, "n") or 0 for part in parts)


def test_pages_read_are_a_share_of_pages_asked_for() -> None:
    assert said([tick(0, blocks_hit=0, blocks_read=0), tick(1, blocks_hit=90, blocks_read=10)])["cache_misses"] == 0.1
    assert said([tick(0, blocks_hit=5, blocks_read=5), tick(1, blocks_hit=5, blocks_read=5)])["cache_misses"] is None


def test_states_are_the_last_known_of_the_window() -> None:
    ticks = [tick(0, lock_wait_s=3.0, invalid_indexes=1), tick(1, lock_wait_s=8.0), replace(tick(2), server=None)]
    found = said(ticks)
    assert (found["lock_wait_s"], found["invalid_indexes"], found["connections_share"]) == (8.0, 1, 0.05)


# How grave: the escalation list, line by line

RULES = config.load().watch.rule


@pytest.mark.parametrize(
    ("metric", "value", "level", "action"),
    [
        # P1, at once
        ("database_down_s", 10.0, "P1", "roll back"),
        ("service_down_s", 10.0, "P1", "roll back"),
        ("error_rate", 0.051, "P1", "roll back"),
        ("p95_ms", 1001.0, "P1", "scale up"),
        ("checksum_failures", 1, "P1", "investigate"),
        # P2, within the hour
        ("p95_ms", 1000.0, "P2", "deploy the optimised handler"),
        ("p95_ms", 600.1, "P2", "deploy the optimised handler"),
        ("error_rate", 0.05, "P2", "investigate"),
        ("error_rate", 0.0101, "P2", "investigate"),
        ("slowdown", 2.01, "P2", "monitor"),
        ("throughput_drop", 0.31, "P2", "investigate"),
        # P3, within the day
        ("p95_ms", 600.0, "P3", "plan optimisation"),
        ("p95_ms", 500.1, "P3", "plan optimisation"),
        ("error_rate", 0.01, "P3", "analyse the log"),
        ("error_rate", 0.0011, "P3", "analyse the log"),
        # nothing
        ("p95_ms", 500.0, "", ""),
        ("error_rate", 0.001, "", ""),
        ("slowdown", 2.0, "", ""),
        ("throughput_drop", 0.3, "", ""),
        ("checksum_failures", 0, "", ""),
        ("database_down_s", None, "", ""),
    ],
)
def test_the_escalation_list(metric: str, value: float | None, level: str, action: str) -> None:
    broken = gravest([rule for rule in RULES if rule.metric == metric], value)
    assert (broken.level, broken.action) == (level, action) if broken else not level
