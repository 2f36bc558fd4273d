"""Rules that fire and clear: how long, since when, once, and the same after a restart."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import watching
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit import config
from perfkit.config.judging import Watch, WatchRule
from perfkit.monitor import notifications
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.model import Event, Probe, Record, Tick, clears

WATCH = config.load().watch
ABOUT = watching.about()


def rule(name: str = "waiting", level: str = "P2", metric: str = "lock_wait_s", **given: Any) -> WatchRule:
    return WatchRule.model_validate({"name": name, "level": level, "metric": metric, **given})


def one(*rules: WatchRule, window_s: float = 300.0) -> Watch:
    return Watch(rule=rules, window_s=window_s, baseline_s=10.0)


def said(values: Sequence[float | None], metric: str = "connections", start: int = 0) -> list[Tick]:
    """An interval of ten seconds for each value of what the server says; None where it says nothing."""
    return [
        Tick(n, 10.0 * (n + 1), watching.BEGAN + 10 * (n + 1), 10.0, {}, {} if v is None else {metric: v, **MAX})
        for n, v in enumerate(values, start)
    ]


MAX = {"connections_max": 100.0}
CROWDED = rule("crowded", metric="connections_share", above=0.8, for_s=20, clear_for_s=30, action="add a pooler")


def told(watch: Watch, ticks: Sequence[Tick], record: Record | None = None) -> list[tuple[str, float, str]]:
    alerts = Alerts(watch, ABOUT, record)
    return [(event.what, event.t, event.rule) for tick in ticks for event in alerts.step(tick)]


def events(watch: Watch, ticks: Sequence[Tick]) -> list[Event]:
    alerts = Alerts(watch, ABOUT)
    return [event for tick in ticks for event in alerts.step(tick)]


# How long


def test_a_figure_must_be_bad_for_so_long_without_a_break_and_good_for_so_long() -> None:
    values = [50, 90, 90, 70, 90, 90, 90, 90, 50, 50, 50, 50, 50]
    assert told(one(CROWDED), said(values)) == [("raised", 70.0, "crowded"), ("cleared", 120.0, "crowded")]


def test_at_once_is_in_the_first_bad_interval() -> None:
    assert told(one(CROWDED.model_copy(update={"for_s": 0, "clear_for_s": 0})), said([50, 90, 50])) == [
        ("raised", 20.0, "crowded"),
        ("cleared", 30.0, "crowded"),
    ]


def test_exactly_the_limit_is_not_beyond_it() -> None:
    assert told(one(CROWDED), said([80] * 20)) == []


def test_it_is_good_again_only_a_tenth_beyond_the_limit_so_that_it_does_not_flap() -> None:
    values = [90] * 3 + [75] * 10 + [72] * 4
    assert told(one(CROWDED), said(values)) == [("raised", 30.0, "crowded"), ("cleared", 170.0, "crowded")]


@pytest.mark.parametrize(
    ("given", "value", "good"),
    [
        ({"above": 600}, 541, False),
        ({"above": 600}, 540, True),
        ({"above": 600, "clear": 400}, 500, False),
        ({"above": 0}, 0, True),
        ({"above": 0}, 1, False),
        ({"below": 30}, 32, False),
        ({"below": 30}, 33, True),
        ({"below": 30, "clear": 30}, 30, True),
    ],
)
def test_where_it_is_good_again(given: dict[str, float], value: float, good: bool) -> None:
    assert clears(rule(**given), value) is good


def test_what_is_not_known_neither_raises_nor_clears_nor_breaks_a_run() -> None:
    short = one(CROWDED, window_s=10)
    assert told(short, said([90, None, None, None, 90])) == [("raised", 50.0, "crowded")]
    assert told(short, said([90, 90, 90] + [None] * 50)) == [("raised", 30.0, "crowded")]
    assert told(short, said([90, 90, 90, 50, None, None, 50])) == [
        ("raised", 30.0, "crowded"),
        ("cleared", 70.0, "crowded"),
    ]


def test_where_nobody_watched_a_run_begins_anew_and_an_alert_stands() -> None:
    assert told(one(CROWDED), [*said([90, 90]), *said([90, 90, 90], start=100)]) == [("raised", 1030.0, "crowded")]
    assert told(one(CROWDED), [*said([90, 90, 90, 50, 50]), *said([50, 50, 50, 50], start=100)]) == [
        ("raised", 30.0, "crowded"),
        ("cleared", 1040.0, "crowded"),
    ]


def test_an_interval_that_ends_a_little_early_does_not_delay_an_alert() -> None:
    ticks = said([50, 90, 90, 90])
    early = [replace(tick, t=tick.t - 0.4 * (tick.n == 3)) for tick in ticks]
    assert told(one(CROWDED), early) == [("raised", pytest.approx(39.6), "crowded")]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([50, 75, 90, None]), max_size=60))
def test_every_alert_is_raised_once_and_cleared_once_in_turn(values: list[float | None]) -> None:
    found = events(one(CROWDED), said(values))
    assert [event.what for event in found] == ["raised", "cleared"] * (len(found) // 2) + ["raised"] * (len(found) % 2)
    for raised, cleared in zip(found[::2], found[1::2], strict=False):
        assert raised.id == cleared.id
        assert raised.since == cleared.since <= raised.t < cleared.t
    assert len({event.id for event in found}) == (len(found) + 1) // 2


# Since when


def test_the_beginning_is_right_whatever_the_window() -> None:
    ticks = watching.with_incident(watching.quiet(1.2), "slow", 3605, 600, 900)
    begun = {}
    for window_s in (60.0, 300.0, 900.0):
        watch = WATCH.model_copy(update={"window_s": window_s})
        found = [event for event in events(watch, ticks) if event.what == "raised" and event.rule == "latency-600"]
        begun[window_s] = [abs(event.since - 3605) <= 10 for event in found]
    assert begun == {60.0: [True], 300.0: [True], 900.0: [True]}


def test_one_bad_interval_some_time_before_is_not_the_beginning() -> None:
    ticks = watching.with_incident(watching.quiet(1), "slow", 1000, 10, 1500)
    ticks = watching.with_incident(ticks, "slow", 1100, 900, 900)
    assert next(event.since for event in events(WATCH, ticks) if event.rule == "latency-600") == 1100


def test_a_good_interval_in_between_is_not_the_end() -> None:
    ticks = watching.with_incident(watching.quiet(1), "errors", 1000, 100, 0.1)
    ticks = watching.with_incident(ticks, "errors", 1110, 300, 0.1)
    assert next(event.since for event in events(WATCH, ticks) if event.rule == "errors-1-percent") == 1000


def test_rare_errors_began_with_the_first_of_them() -> None:
    ticks = watching.with_incident(watching.quiet(1, seed=5), "errors", 1000, 1800, 0.005)
    [raised] = [event for event in events(WATCH, ticks) if event.what == "raised"]
    assert (raised.rule, raised.since) == ("errors-tenth-percent", 1000)


def test_a_wait_began_as_long_ago_as_it_has_lasted() -> None:
    watch = one(rule(above=5, for_s=0))
    [raised] = events(watch, said([0, 3.5, 13.5], "lock_wait_s"))
    assert raised.since == 30 - 13.5


def test_a_wait_last_heard_of_is_counted_from_then() -> None:
    watch = one(rule(above=5, for_s=20))
    [raised] = events(watch, said([7, None, None], "lock_wait_s"))
    assert raised.since == 10 - 7


def test_what_a_counter_counted_once_began_when_it_did() -> None:
    watch = one(rule("stuck", metric="deadlocks", above=0, for_s=60))
    [raised] = events(watch, said([4, 4, 4, 5, 5, 5, 5, 5, 5, 5], "deadlocks"))
    assert (raised.t, raised.since, raised.value) == (100.0, 30.0, 1)


def test_an_incident_soon_after_another_has_its_own_beginning() -> None:
    ticks = watching.with_incident(watching.quiet(1), "slow", 600, 300, 900)
    ticks = watching.with_incident(ticks, "slow", 1500, 300, 900)
    found = [event.since for event in events(WATCH, ticks) if event.what == "raised" and event.rule == "latency-600"]
    assert found == [600, 1500]


def test_a_fall_below_a_limit_began_with_the_first_interval_below_it() -> None:
    ticks = watching.with_incident(watching.quiet(1), "throughput-drop", 1003, 900, 0.6)
    [raised, _] = events(one(rule(metric="throughput", below=3, for_s=60)), ticks)
    assert raised.since == 1000


# Of several rules the gravest

LEVELS = tuple(
    rule(f"crowded-{level.lower()}", level, "connections_share", above=above, for_s=0, clear_for_s=20)
    for level, above in (("P3", 0.5), ("P1", 0.9), ("P2", 0.7))
)


def test_of_several_rules_on_one_figure_only_the_gravest_is_raised() -> None:
    found = events(one(*LEVELS), said([10, 95, 95, 10, 10, 10, 10]))
    assert [(event.what, event.level) for event in found] == [("raised", "P1"), ("cleared", "P1")]


def test_when_it_eases_a_lesser_one_is_raised_if_its_own_figure_is_still_bad() -> None:
    found = events(one(*LEVELS), said([10, 95, 75, 75, 75, 75, 10, 10, 10]))
    assert [(event.what, event.level, event.t, event.since) for event in found] == [
        ("raised", "P1", 20.0, 10.0),
        ("cleared", "P1", 50.0, 10.0),
        ("raised", "P2", 50.0, 10.0),
        ("cleared", "P2", 90.0, 10.0),
    ]


def test_one_that_was_held_back_is_not_raised_while_its_own_figure_is_not_bad() -> None:
    found = events(one(*LEVELS[1:]), said([95, 65, 65, 65, 65, 75, 75]))
    assert [(event.what, event.level, event.t) for event in found] == [
        ("raised", "P1", 10.0),
        ("cleared", "P1", 40.0),
        ("raised", "P2", 60.0),
    ]


def test_what_was_raised_before_it_became_worse_stays_open() -> None:
    alerts = Alerts(one(*LEVELS), ABOUT)
    found = [event for tick in said([60, 75, 95]) for event in alerts.step(tick)]
    assert [event.level for event in found] == ["P3", "P2", "P1"]
    assert [event.level for event in alerts.active] == ["P1", "P2", "P3"]
    found = [event for tick in said([10] * 4, start=3) for event in alerts.step(tick)]
    assert [(event.what, event.level) for event in found] == [("cleared", "P1"), ("cleared", "P2"), ("cleared", "P3")]
    assert alerts.active == []


def test_rules_on_other_figures_or_items_are_not_held_back() -> None:
    slow = Probe({"ok": 80}, {}, (900.0,) * 80)
    rules = [rule(name, metric="p95_ms", above=500, item=name, for_s=0) for name in ("book", "upcoming")]
    ticks = [Tick(0, 10.0, 1e9, 10.0, {"book": slow, "upcoming": slow})]
    assert [event.rule for event in events(one(*rules), ticks)] == ["book", "upcoming"]


# A restart

ROUGH = watching.with_incident(
    watching.with_incident(watching.quiet(2), "service-down", 1203, 300), "errors", 3003, 1500, 0.08
)


@pytest.fixture(scope="module")
def whole() -> list[Event]:
    return events(WATCH, ROUGH)


@pytest.mark.parametrize("killed", [1210, 1230, 1300, 1510, 1900, 2400, 3200, 3310, 3600, 4800, 5000])
def test_a_restart_without_a_gap_says_the_same_as_none(killed: float, whole: list[Event]) -> None:
    before = [tick for tick in ROUGH if tick.t <= killed]
    first = [Event.of(json.loads(event.line())) for event in whole if event.t <= killed]
    alerts = Alerts(WATCH, ABOUT, watching.record(before, first))
    again = [event for tick in ROUGH[len(before) :] for event in alerts.step(tick)]
    assert [*first, *again] == whole


def test_a_restart_after_a_gap_raises_nothing_twice_and_clears_under_the_same_id() -> None:
    ticks = watching.without(watching.with_incident(watching.quiet(2), "service-down", 1203, 900), 1300, 1500)
    before = [tick for tick in ticks if tick.t <= 1300]
    first = events(WATCH, before)
    alerts = Alerts(WATCH, ABOUT, watching.record(before, first))
    assert [event.rule for event in alerts.active] == ["errors-5-percent", "service-down"]
    again = [event for tick in ticks[len(before) :] for event in alerts.step(tick)]
    raised = [event.rule for event in [*first, *again] if event.what == "raised"]
    assert sorted(raised) == ["errors-5-percent", "service-down", "throughput-drop"]
    assert {event.id for event in again if event.what == "cleared"} >= {event.id for event in first}


def test_an_alert_that_was_not_written_before_the_crash_is_raised_after_it() -> None:
    before = [tick for tick in ROUGH if tick.t <= 1230]
    [lost] = events(WATCH, before)
    alerts = Alerts(WATCH, ABOUT, watching.record(before, []))
    [found] = alerts.step(ROUGH[len(before)])
    assert (found.rule, found.id, found.since) == (lost.rule, lost.id, lost.since)


def test_an_alert_of_a_rule_that_is_no_more_is_taken_back() -> None:
    before = [tick for tick in ROUGH if tick.t <= 1230]
    first = events(WATCH, before)
    alerts = Alerts(one(CROWDED), ABOUT, watching.record(before, first))
    [gone] = alerts.step(ROUGH[len(before)])
    assert (gone.what, gone.id, gone.text) == ("cleared", first[0].id, "service-down: no longer among the rules")
    assert alerts.step(ROUGH[len(before) + 1]) == []


def test_what_is_usual_is_still_known_after_a_restart() -> None:
    ticks = watching.with_incident(watching.quiet(3), "throughput-drop", 9003, 900)
    before = [tick for tick in ticks if tick.t <= 8000]
    alerts = Alerts(WATCH, ABOUT, watching.record(before))
    found = [event.rule for tick in ticks[len(before) :] for event in alerts.step(tick) if event.what == "raised"]
    assert found == ["throughput-drop"]


# What it says


def test_an_alert_is_one_sentence_with_its_numbers_and_what_to_do() -> None:
    given = next(rule for rule in WATCH.rule if rule.name == "latency-600")
    at = watching.BEGAN + 3730
    assert notifications.raised_text(given, 712.4, 300, at, at + 90) == (
        "p95 712 ms over the last 5 min, above 600 ms, since 10:02:10 UTC: deploy the optimised handler"
    )
    assert notifications.cleared_text(given, 412.0, 300, 730) == (
        "p95 412 ms over the last 5 min, no longer above 600 ms after 12 min 10 s"
    )


@pytest.mark.parametrize(
    ("given", "value", "text"),
    [
        ({"metric": "service_down_s", "above": 0}, 20, "service down for 20 s, since 09:00:00 UTC"),
        (
            {"metric": "error_rate", "above": 0.001},
            0.0213,
            "error rate 2.1 % over the last 5 min, above 0.1 %, since 09:00:00 UTC",
        ),
        (
            {"metric": "slowdown", "above": 2, "item": "book"},
            2.5,
            "book: p50 against the usual ×2.50 over the last 5 min, above ×2, since 09:00:00 UTC",
        ),
        ({"metric": "invalid_indexes", "above": 0}, 1, "invalid indexes: 1, since 09:00:00 UTC"),
        (
            {"metric": "throughput", "below": 30},
            12,
            "throughput 12.0/s over the last 5 min, below 30/s, since 09:00:00 UTC",
        ),
    ],
)
def test_each_figure_has_its_unit(given: dict[str, Any], value: float, text: str) -> None:
    assert notifications.raised_text(rule(**given), value, 300, watching.BEGAN, watching.BEGAN + 60) == text


def test_every_metric_can_be_said() -> None:
    for metric in notifications.METRICS:
        assert notifications.figure_text(rule(metric=metric, above=1), None, 300)
        assert notifications.cleared_text(rule(metric=metric, above=0), 0.0, 300, 60).endswith("after 1 min")


def test_what_began_on_another_day_has_its_date() -> None:
    text = notifications.raised_text(rule(metric="p95_ms", above=1), 2, 300, watching.BEGAN, watching.BEGAN + 86400)
    assert text.endswith("since 2026-01-15 09:00:00 UTC")
