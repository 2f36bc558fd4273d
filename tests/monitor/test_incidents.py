"""Incidents from events: alerts that overlap are one, with its timeline; what is told twice counts once."""

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from watching import about, quiet, with_incident

from perfkit import config
from perfkit.monitor.alerts import Alerts, Incident, group_incidents
from perfkit.monitor.model import Event, Tick, collect_alerts

CLEARS = {"slow": 120.0, "down": 30.0, "errors": 120.0}


def raised(id_: str, rule: str, level: str, since: float, t: float, action: str = "") -> Event:
    return Event("raised", id_, t, t, f"{rule} is bad", rule, level, since, 1.0, 0.5, action)


def cleared(id_: str, rule: str, level: str, since: float, t: float) -> Event:
    return Event("cleared", id_, t, t, f"{rule} is good", rule, level, since, 0.1, 0.5)


def events_of(ticks: list[Tick]) -> list[Event]:
    """What a watch of the booking system would have said of these intervals."""
    booking = config.load()
    watcher = Alerts(booking.watch, about(booking))
    return [event for tick in ticks for event in watcher.step(tick)]


def grouped(events: Iterable[Event], clear_for_s: Mapping[str, float], join_s: float = 0.0) -> list[Incident]:
    return group_incidents(collect_alerts(events, clear_for_s), join_s)


def test_an_alert_lasts_from_when_it_began_until_it_was_good_again() -> None:
    (found,) = grouped([raised("a", "slow", "P2", 100, 160), cleared("a", "slow", "P2", 100, 500)], CLEARS)
    assert (found.level, found.since, found.noticed, found.eased, found.ended) == ("P2", 100, 160, 380, 500)
    assert found.lasted(1000) == 280


def test_one_that_stands_lasts_until_now() -> None:
    (found,) = grouped([raised("a", "slow", "P2", 100, 160)], CLEARS)
    assert (found.eased, found.ended, found.lasted(1000)) == (None, None, 900)


def test_alerts_that_overlap_are_one_incident_of_the_gravest_level_with_the_actions_of_all() -> None:
    (found,) = grouped(
        [
            raised("a", "slow", "P2", 100, 160, "monitor"),
            raised("b", "down", "P1", 300, 310, "roll back"),
            cleared("a", "slow", "P2", 100, 400),
            raised("c", "errors", "P3", 350, 450, "monitor"),
            cleared("b", "down", "P1", 300, 500),
            cleared("c", "errors", "P3", 350, 600),
        ],
        CLEARS,
    )
    assert [alert.raised.rule for alert in found.alerts] == ["down", "slow", "errors"]
    assert (found.level, found.since, found.noticed, found.ended) == ("P1", 100, 160, 600)
    assert found.actions == ("roll back", "monitor")


def test_alerts_apart_are_two_incidents_and_one_that_never_ended_takes_in_all_that_follow() -> None:
    first = [raised("a", "slow", "P2", 100, 160), cleared("a", "slow", "P2", 100, 300)]
    later = [raised("b", "down", "P1", 400, 410), cleared("b", "down", "P1", 400, 500)]
    assert [found.level for found in grouped(first + later, CLEARS)] == ["P2", "P1"]
    assert [found.level for found in grouped(first[:1] + later, CLEARS)] == ["P1"]
    assert len(grouped(first + later, CLEARS, join_s=100.0)) == 1


def test_the_timeline_has_every_stage_in_the_order_of_time() -> None:
    note = Event("note", "note-notify-1", 165, 165, "notify: send failed; for alert a")
    told = [raised("a", "slow", "P2", 100, 160), note, cleared("a", "slow", "P2", 100, 500)]
    (found,) = grouped(told, CLEARS)
    stages = [(moment.t, moment.stage) for moment in found.timeline([note])]
    assert stages == [(100, "began"), (160, "noticed"), (165, "note"), (380, "eased"), (500, "ended")]


def test_an_alert_told_again_after_a_restart_is_one_and_a_clear_without_a_beginning_is_none() -> None:
    again = [raised("a", "slow", "P2", 100, 160), raised("a", "slow", "P2", 100, 200)]
    assert len(collect_alerts(again, CLEARS)) == 1
    assert grouped([cleared("x", "slow", "P2", 1, 5), Event("note", "note-1", 3, 3, "stopped")], CLEARS) == []


def test_an_alert_that_is_raised_again_after_it_was_cleared_is_active() -> None:
    events = [raised("a", "slow", "P2", 100, 160), cleared("a", "slow", "P2", 100, 300)]
    again = raised("a", "slow", "P2", 100, 400)
    first, second = collect_alerts([*events, again], CLEARS)
    assert first.ended == 300 and second.raised == again and second.ended is None


def test_the_event_that_clears_an_alert_holds_it_whole_so_that_a_lost_line_loses_no_alert() -> None:
    ticks = with_incident(quiet(1), "service-down", 600, 90)
    events = events_of(ticks)
    whole = sorted(collect_alerts(events, {}), key=lambda alert: alert.ended or 0)
    cleared = [Event.of(json.loads(event.line())) for event in events if event.what == "cleared"]
    assert collect_alerts(cleared, {"service-down": 1e6}) == [alert for alert in whole if alert.cleared]
    down = next(alert for alert in whole if alert.raised.rule == "service-down")
    assert down.eased is not None and down.raised.t < down.eased < (down.ended or 0)


def test_good_again_is_never_before_it_was_noticed() -> None:
    (found,) = grouped([raised("a", "slow", "P2", 100, 160), cleared("a", "slow", "P2", 100, 170)], CLEARS)
    assert found.eased == 160


def test_a_service_that_is_down_is_one_incident_that_begins_within_an_interval() -> None:
    ticks = with_incident(quiet(2), "service-down", 3600, 90)
    (found,) = grouped(events_of(ticks), {rule.name: rule.clear_for_s for rule in config.load().watch.rule}, 10.0)
    assert found.level == "P1" and "roll back" in found.actions
    assert abs(found.since - 3600) <= 10 and found.ended is not None
    assert {alert.raised.rule for alert in found.alerts} >= {"service-down", "errors-5-percent"}


def test_a_quiet_day_has_none() -> None:
    assert grouped(events_of(quiet(3)), {}) == []


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e4), st.floats(0, 600), st.floats(0, 600), st.sampled_from(["P1", "P2", "P3"]), st.booleans()
        ),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_every_alert_is_in_one_incident_incidents_do_not_overlap_and_the_order_of_events_is_nothing(
    spans: list[tuple[float, float, float, str, bool]], random: Random
) -> None:
    told: list[Event] = []
    for n, (since, noticed, lasted, level, ends) in enumerate(spans):
        told.append(raised(f"{n}", "slow", level, since, since + noticed))
        if ends:
            told.append(cleared(f"{n}", "slow", level, since, since + noticed + lasted))
    found = grouped(told, CLEARS)
    assert sorted(alert.raised.id for own in found for alert in own.alerts) == sorted(str(n) for n in range(len(spans)))
    for one, other in pairwise(found):
        assert one.ended is not None and one.ended < other.since
    for own in found:
        assert own.level == min(alert.raised.level for alert in own.alerts)
        times = [moment.t for moment in own.timeline()]
        assert times == sorted(times) and own.lasted(1e6) >= 0
    random.shuffle(told)
    assert [own.since for own in grouped(told, CLEARS)] == [own.since for own in found]
