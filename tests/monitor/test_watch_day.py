"""Simulated days, the clock given: every incident is raised in time, by the right rules, with when it really began.

An incident that began at `start` is raised by `start + grows_s + for_s + 2 * every_s`. `grows_s` is what the rule's
window needs: where a share `s` of the incident's samples is bad and the rule allows a share `L` in its window,
`window_s * L / s` (an error rate of 8 % against 5 %: 188 of 300 s), where `s` is a matter of chance a quarter more (two
standard deviations of the 60 slow samples that a p95 of 1,200 needs); for a duration, the limit itself; else 0. It is
cleared by `end + window_s + clear_for_s + 2 * every_s`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import watching

from perfkit import config
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.model import Event, Tick

WATCH = config.load().watch
RULES = {rule.name: rule for rule in WATCH.rule}
EVERY_S = WATCH.every_s


@dataclass(frozen=True)
class Case:
    kind: watching.Incident
    size: float | None
    seconds: float
    rule: str  # the gravest that it is
    grows_s: float
    others: frozenset[str] = frozenset()  # what else it breaks
    blurred_s: float = 0.0  # how much farther than one interval from the truth chance may put the beginning


def case(kind: watching.Incident, size: float | None, rule: str, grows_s: float, *others: str, **more: float) -> Case:
    return Case(kind, size, more.pop("seconds", 900.0), rule, grows_s, frozenset(others), **more)


def over(limit_ms: float, p95_ms: float) -> float:
    """Seconds until a twentieth of the window is over the limit, where the 95th percentile becomes `p95_ms`.

    The share over it is that of the lognormal mix of the two requests, found by counting; which of them are is chance.
    """
    ticks = watching.with_incident(watching.quiet(1), "slow", 0, 3600, p95_ms)
    samples = [ms for tick in ticks for name in watching.REQUESTS for ms in tick.probes[name].ms]
    return 1.25 * WATCH.window_s * 0.05 / (sum(ms > limit_ms for ms in samples) / len(samples))


OUTAGE = ("errors-5-percent", "throughput-drop")
CASES = [
    case("service-down", None, "service-down", 0, *OUTAGE),
    case("database-down", None, "database-down", 0, "service-down", *OUTAGE),
    case("hang", None, "service-down", 0, *OUTAGE),
    case("service-down", None, "service-down", 0, "errors-5-percent", seconds=60),
    case("errors", 0.08, "errors-5-percent", WATCH.window_s * 0.05 / 0.08, "errors-1-percent"),
    case("errors", 0.02, "errors-1-percent", WATCH.window_s * 0.01 / 0.02),
    case("errors", 0.005, "errors-tenth-percent", WATCH.window_s * 0.001 / 0.005),
    case("slow", 1100, "latency-1000", over(1000, 1100), "latency-600", "degrading", blurred_s=10),
    case("slow", 650, "latency-600", over(600, 650), "degrading", blurred_s=40),
    case("slow", 550, "latency-500", over(500, 550), blurred_s=20),
    case("corruption", 2, "corruption", 0),
    case("throughput-drop", 0.5, "throughput-drop", WATCH.window_s * 0.3 / 0.5),
    case("degrading", 3, "degrading", WATCH.window_s * 0.5 / 0.6, "latency-600"),
    case("lock", None, "lock-held", 5, seconds=120),
    case("invalid-index", 1, "invalid-index", 0),
    case("long-transaction", None, "long-transaction", 300),
]


def replayed(ticks: Sequence[Tick], alerts: Alerts | None = None) -> list[Event]:
    alerts = alerts or Alerts(WATCH, watching.about())
    return [event for tick in ticks for event in alerts.step(tick)]


@pytest.fixture(scope="module")
def day() -> tuple[list[float], list[Event]]:
    """A day with all of them, each at its time, one and a half hours apart; and what was said of it."""
    ticks, starts = watching.quiet(24, seed=3), []
    for place, given in enumerate(CASES):
        starts.append(900.0 + 5400 * place + 3.7)
        ticks = watching.with_incident(ticks, given.kind, starts[-1], given.seconds, given.size)
    return starts, replayed(ticks)


@pytest.mark.parametrize("place", range(len(CASES)), ids=[f"{c.kind}-{c.size or c.seconds:g}" for c in CASES])
def test_an_incident_is_raised_in_time_by_the_right_rules_and_cleared(
    place: int, day: tuple[list[float], list[Event]]
) -> None:
    given, start, events = CASES[place], day[0][place], day[1]
    mine = [event for event in events if start < event.t <= start + 5400]
    raised = {event.rule: event for event in mine if event.what == "raised"}
    cleared = {event.id: event for event in mine if event.what == "cleared"}
    assert raised.keys() == {given.rule, *given.others}

    rule, event = RULES[given.rule], raised[given.rule]
    assert event.level == rule.level == min(other.level for other in raised.values())
    assert event.action == rule.action
    assert start < event.t <= start + given.grows_s + rule.for_s + 2 * EVERY_S
    assert abs(event.since - start) <= EVERY_S + given.blurred_s

    for event in raised.values():
        rule = RULES[event.rule]
        assert cleared[event.id].t <= start + given.seconds + WATCH.window_s + rule.clear_for_s + 2 * EVERY_S


def test_nothing_else_is_raised_that_day(day: tuple[list[float], list[Event]]) -> None:
    assert len(day[1]) == 2 * sum(1 + len(given.others) for given in CASES)


def test_the_same_day_said_again_says_the_same(day: tuple[list[float], list[Event]]) -> None:
    ticks = watching.quiet(24, seed=3)[: 6000 // 10]
    ticks = watching.with_incident(ticks, CASES[0].kind, day[0][0], CASES[0].seconds)
    assert replayed(ticks) == [event for event in day[1] if event.t <= 6000]


def timeless(event: Event) -> Event:
    """The event, and the one that raised a cleared alert, without what the wall clock shows in them."""
    return replace(event, at=0.0, text="", raised=timeless(event.raised) if event.raised else None)


@pytest.mark.parametrize("kind", ["service-down", "errors"])
@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_wall_clock_that_jumps_by_an_hour_changes_nothing_but_what_it_shows(
    kind: watching.Incident, jump: float
) -> None:
    ticks = watching.with_incident(watching.quiet(1), kind, 1203, 600, 0.1)
    jumped = [replace(tick, at=tick.at + jump) if tick.t > 1300 else tick for tick in ticks]
    for one, other in zip(replayed(ticks), replayed(jumped), strict=True):
        late = one.t > 1300
        assert timeless(other) == timeless(one)
        assert other.at == one.at + jump * late


def quiet_days(days: int) -> Iterator[Tick]:
    for day in range(days):
        yield from watching.quiet(24, seed=100 + day, t0=day * 86400.0)


@pytest.mark.parametrize("days", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_nothing_is_raised_in_quiet_days(days: int) -> None:
    alerts = Alerts(WATCH, watching.about())
    assert [event.text for tick in quiet_days(days) for event in alerts.step(tick)] == []
