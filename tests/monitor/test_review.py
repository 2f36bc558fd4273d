"""The review of the first day: every row judged by its bound, what to do derived from what was broken."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watching import BEGAN, about, quiet, record, with_incident, without

from perfkit import config
from perfkit.base.errors import BundleError, UsageError
from perfkit.base.judgement import Outcome
from perfkit.base.units import clock, duration_text
from perfkit.config import Target, Watch
from perfkit.monitor import figures
from perfkit.monitor.alerts import Alerts, Incident
from perfkit.monitor.figures import Actual
from perfkit.monitor.model import About, Alert, Event, Period, Probe, Record, Tick, select_period
from perfkit.monitor.review import ReportedValue, Reviewed, ReviewRow, judged_row, outcome_of, recommend, review

RATED = {"User rating": ReportedValue(4.3, "Product Lead")}
MET, MISSED, UNPROVEN = Outcome.HOLDS, Outcome.BROKEN, Outcome.UNPROVEN
SAMPLED = ("p50_ms", "p95_ms", "p99_ms", "mean_ms", "error_rate", "success_rate", "throughput")


def watched(ticks: list[Tick]) -> Record:
    """A record with the events that its intervals lead to."""
    booking = config.load()
    watcher = Alerts(booking.watch, about(booking))
    return record(ticks, [event for tick in ticks for event in watcher.step(tick)], booking)


def named(found: Reviewed, name: str) -> ReviewRow:
    return next(row for row in found.rows if row.target.name == name)


def plain(text: str) -> str:
    """Text whose spaces may break a line."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def judge(ticks: Sequence[Tick], said: About | None = None, **target: object) -> ReviewRow:
    """One target on some intervals."""
    return judged_row(Target.model_validate({"name": "it", **target}), Period(ticks), said or about(), None)


# Rows


@pytest.mark.parametrize(
    ("target", "value", "lo", "hi", "result"),
    [
        ({"at_most": 500}, 400, 350, 450, MET),
        ({"at_most": 500}, 400, 350, 500, MET),
        ({"at_most": 500}, 400, 350, 501, UNPROVEN),
        ({"at_most": 500}, 500, 350, 501, UNPROVEN),
        ({"at_most": 500}, 501, 350, 700, MISSED),
        ({"at_least": 30}, 40, 30, 50, MET),
        ({"at_least": 30}, 40, 29, 50, UNPROVEN),
        ({"at_least": 30}, 29, 10, 50, MISSED),
        ({"at_least": 1, "at_most": 2}, 1.5, 1.1, 1.9, MET),
        ({"at_least": 1, "at_most": 2}, 1.5, 0.9, 1.9, UNPROVEN),
        ({"at_least": 1, "at_most": 2}, 2.5, 0.9, 1.9, MISSED),
        ({"at_most": 500}, None, 0, 0, UNPROVEN),
    ],
)
def test_a_bound_proves_and_only_an_estimate_breaks(
    target: dict[str, float], value: float | None, lo: float, hi: float, result: Outcome
) -> None:
    found = Actual(value, lo, hi, 100, "")
    assert outcome_of(Target.model_validate({"name": "it", "metric": "p95_ms", **target}), found) is result


@pytest.mark.slow
def test_a_quiet_day_meets_every_target_that_probes_can_judge_and_what_people_say() -> None:
    found = review(watched(quiet(24)), values=RATED)
    assert {row.target.name for row in found.rows if row.outcome is not MET} == {"Throughput"}
    assert "48 × 30 min" in named(found, "P95 latency").actual.how
    assert (found.caveats, found.incidents, found.gaps) == ((), (), ())
    assert found.recommendation.headline == "Keep watching: Throughput not yet proven"


def test_a_percentile_without_its_samples_says_how_many_are_missing() -> None:
    own = judge(quiet(24)[:5], metric="p99_ms", at_most=800)
    assert (own.outcome, own.value_text) == (UNPROVEN, "–")
    assert plain(own.needs) == "not enough samples (200 of 368); about 1 min 32 s of watching in total is needed"


def test_one_block_of_time_bounds_nothing_and_says_what_it_would_take() -> None:
    one = judge(quiet(1)[:1], metric="p50_ms", at_most=300)
    assert (one.outcome, plain(one.interval_text)) == (UNPROVEN, "no bound")
    assert "about " in one.needs and "of watching in total is needed" in one.needs


def test_an_error_rate_is_met_where_so_many_probes_exclude_more() -> None:
    ticks = [replace(tick, probes={"book": Probe({"ok": 20}, {"201": 20}, (1.0,) * 20)}) for tick in quiet(1)]
    own = judge(ticks[:149], metric="error_rate", at_most=0.001)
    assert (own.outcome, own.actual.value, own.actual.n) == (UNPROVEN, 0, 2980)
    assert "about 27 min" in own.needs  # 3 of 0.1 % are 3,000 probes
    assert judge(ticks[:150], metric="error_rate", at_most=0.001).outcome is MET


def test_one_in_a_hundred_failed_misses_one_in_a_thousand() -> None:
    own = judge(with_incident(quiet(1), "errors", 0, 3600, 0.01), metric="error_rate", at_most=0.001)
    assert (own.outcome, plain(own.value_text)) == (MISSED, "1 %")


def test_success_of_a_request_is_its_2xx_even_where_a_conflict_was_expected() -> None:
    own = judge(quiet(3), metric="success_rate", item="book", at_least=0.98)
    assert own.outcome is MET and own.actual.value is not None and 0.99 < own.actual.value < 0.999


def test_probes_cannot_reach_a_throughput_that_they_do_not_offer() -> None:
    own = judge(quiet(1), metric="throughput", at_least=30)
    assert own.outcome is UNPROVEN and "sends only 4/s and cannot prove 30/s" in own.needs


def test_probes_that_offer_enough_judge_the_throughput() -> None:
    many, said = quiet(1, rate=20), about(rate=20)
    assert judge(many, said, metric="throughput", at_least=30).outcome is MET
    half = with_incident(many, "throughput-drop", 0, 3600, 0.5)
    assert judge(half, said, metric="throughput", at_least=30).outcome is MISSED


@pytest.mark.parametrize(("down", "result"), [(0, MET), (80, MET), (90, MISSED)])
def test_availability_is_a_share_of_the_day_and_86_seconds_are_too_much(down: int, result: Outcome) -> None:
    ticks = with_incident(quiet(24), "service-down", 3600, down) if down else quiet(24)
    own = judge(ticks, metric="availability", at_least=0.999)
    assert (own.outcome, own.actual.value) == (result, 1 - down / 86400)
    assert "one interval is 0.012 % of the time" in own.actual.how


def test_time_in_which_nobody_watched_leaves_availability_open() -> None:
    own = judge(without(quiet(24), 3600, 7200), metric="availability", at_least=0.999)
    assert own.outcome is UNPROVEN and "not watched for 1 h" in own.needs
    assert own.actual.value == 1 and own.actual.lo == pytest.approx(23 / 24)


def test_an_outage_that_a_gap_cannot_make_good_is_missed() -> None:
    ticks = without(with_incident(quiet(24), "service-down", 3600, 600), 7200, 7300)
    assert judge(ticks, metric="availability", at_least=0.999).outcome is MISSED


def test_intervals_too_coarse_for_the_target_prove_no_availability() -> None:
    own = judge(quiet(1), metric="availability", at_least=0.999)
    assert own.outcome is UNPROVEN and "2 h 46 min" in own.needs  # one interval of 10 s is 0.1 % of 10,000 s


def test_what_the_server_said_is_judged_by_its_worst_moment() -> None:
    ticks = with_incident(quiet(1), "lock", 600, 60)
    assert judge(ticks, metric="lock_wait_s", at_most=5).outcome is MISSED
    assert judge(quiet(1), metric="lock_wait_s", at_most=5).outcome is MET
    down = judge(with_incident(quiet(1), "service-down", 600, 60), metric="service_down_s", at_most=30)
    assert (down.outcome, plain(down.value_text)) == (MISSED, "1 min")


def test_a_request_that_is_not_sent_is_unproven() -> None:
    own = judge(quiet(1), metric="success_rate", item="cancel", at_least=0.98)
    assert (own.outcome, own.needs) == (UNPROVEN, "the watch does not send cancel")


def test_what_a_person_says_is_judged_and_named() -> None:
    own = named(review(watched(quiet(1)), values={"User rating": ReportedValue(3.9, "Ops Lead")}), "User rating")
    assert (own.outcome, plain(own.value_text), own.actual.how) == (MISSED, "3.9 stars", "reported by Ops Lead")
    unsaid = named(review(watched(quiet(1))), "User rating")
    assert unsaid.outcome is UNPROVEN and "--value" in unsaid.needs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Stars", ": no such target; expected one of: P50 latency, P95"),
        ("P95 latency", "this target is measured; expected"),
    ],
)
def test_what_a_person_says_of_no_row_or_of_a_measured_one_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        review(watched(quiet(1)), values={name: ReportedValue(1, "Ops Lead")})


def test_targets_of_another_configuration_can_be_held_against_the_same_record() -> None:
    booking = config.load()
    strict = booking.model_copy(
        update={"review": config.ReviewConfig(target=(Target(name="fast", metric="p50_ms", at_most=1),))}
    )
    found = review(watched(quiet(1)), settings=strict)
    assert [(own.target.name, own.outcome) for own in found.rows] == [("fast", MISSED)]


@pytest.mark.parametrize("metric", ["mean_ms", "p50_ms"])
def test_an_interval_holds_the_true_value_although_neighbouring_probes_resemble_each_other(metric: str) -> None:
    random, held = np.random.default_rng(7), 0
    for _ in range(200):
        levels = np.exp(random.normal(0, 0.2, 24))  # of blocks of time, five times as much as chance among probes
        ms = 100 * levels[:, None] * np.exp(random.normal(0, 0.4, (24, 100)))
        probes = [Probe({"ok": 100}, {}, tuple(block.tolist())) for block in ms]
        ticks = [Tick(n, 60.0 * (n + 1), 0.0, 60.0, {"book": probe}) for n, probe in enumerate(probes)]
        found = judge(ticks, metric=metric, at_most=1e9).actual
        true = 100.0 if metric == "p50_ms" else 100 * float(np.exp((0.2**2 + 0.4**2) / 2))
        held += found.lo <= true <= found.hi
    assert held >= 180


def test_a_record_with_other_settings_than_perfkit_writes_is_one_line() -> None:
    strange = about().model_copy(update={"settings": {"review": {"target": [{"name": "x"}]}}})
    with pytest.raises(BundleError, match=r"settings: target.0: at_least, at_most or both; expected"):
        review(Record(strange, quiet(1), []))


# The time


def test_where_nothing_was_to_be_answered_nothing_is_known_of_availability() -> None:
    found = judge([replace(tick, probes={}) for tick in quiet(25)], metric="availability", at_least=0.999)
    assert (found.actual.value, found.outcome, found.actual.lacks) == (None, UNPROVEN, "no probe was due")


def test_a_period_in_which_the_clock_was_put_back_has_no_gap() -> None:
    ticks = [replace(tick, at=tick.at - 1800 * (tick.t > 3600)) for tick in quiet(2)]
    found = select_period(record(ticks), since="2026-01-15T09:40", until="2026-01-15T09:50")
    assert (found.start, found.end) == (2400, 4800)
    assert not figures.find_gaps(found.ticks)


def test_the_last_hours_are_cut_along_the_time_line_and_less_than_a_day_is_said() -> None:
    found = review(watched(quiet(3)), last="90min")
    assert (found.period.start, found.period.end) == (5400, 10800)
    assert found.caveats == ("covers 1 h 30 min, less than 24 h: the load of the rest of a day is not included",)


@pytest.mark.parametrize(
    ("hours", "every_s", "width"),
    [(24, 10, 1800), (3, 10, 600), (0.5, 10, 120), (1 / 60, 2, 5), (1 / 60, 10, 10), (24, 3600, 3600)],
)
def test_a_block_of_time_is_half_an_hour_of_a_day_and_never_less_than_an_interval(
    hours: float, every_s: float, width: float
) -> None:
    ticks = [Tick(n, (n + 1) * every_s, 0.0, every_s, {}) for n in range(round(hours * 3600 / every_s))]
    assert Period(ticks).width == width


def test_from_one_time_to_another_by_the_clock() -> None:
    found = select_period(record(quiet(3)), since="2026-01-15T10:00", until="2026-01-15T12:00:00+01:00")
    assert (found.start, found.end, clock(found.wall(3600))) == (3600, 7200, "2026-01-15 10:00")
    assert clock(BEGAN) == "2026-01-15 09:00"


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({"last": "soon"}, "last = 'soon'; expected a time like"),
        ({"last": "0h"}, "last = '0h'; expected"),
        ({"since": "noon"}, "since = 'noon'; expected a time like 2026-01-15T09:00"),
        (
            {"since": "2027-01-01"},
            "no interval .* expected a time from 2026-01-15 09:00:00 to 2026-01-15 10:00:00",
        ),
        ({"last": "1h", "since": "2026-01-15"}, "expected one way"),
    ],
)
def test_a_time_that_cannot_be_meant_is_one_line(when: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        select_period(record(quiet(1)), **when)


def test_a_watch_that_has_just_begun_has_nothing_to_review() -> None:
    with pytest.raises(UsageError, match="no interval yet"):
        review(record([]))


# Properties


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_answers_within_an_interval_changes_nothing(seed: int) -> None:
    ticks, random = quiet(0.5), Random(seed)

    def shuffled(probe: Probe) -> Probe:
        return replace(probe, ms=tuple(random.sample(probe.ms, len(probe.ms))))

    mixed = [
        replace(tick, probes={name: shuffled(tick.probes[name]) for name in random.sample(list(tick.probes), 3)})
        for tick in ticks
    ]
    for one, other in zip(review(record(ticks)).rows, review(record(mixed)).rows, strict=True):
        assert one.value_text == other.value_text and one.outcome is other.outcome
        assert one.actual.lo == pytest.approx(other.actual.lo) and one.actual.hi == pytest.approx(other.actual.hi)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 179)))
def test_an_interval_written_as_two_gives_the_same_figures(places: set[int]) -> None:
    ticks = quiet(0.5)
    parts: list[Tick] = []
    for n, tick in enumerate(ticks):
        parts += _halves(tick) if n in places else [tick]
    for metric in SAMPLED:
        one, other = (judge(own, metric=metric, at_least=0).actual for own in (ticks, parts))
        assert (one.n, one.how) == (other.n, other.how)
        assert [one.value, one.lo, one.hi] == pytest.approx([other.value, other.lo, other.hi])


def _halves(tick: Tick) -> list[Tick]:
    middle = tick.t - tick.seconds / 2
    early, late = {}, {}
    for name, probe in tick.probes.items():
        cut_at = len(probe.ms) // 2
        early[name] = Probe({"ok": cut_at} if cut_at else {}, {}, probe.ms[:cut_at])
        rest = {**probe.outcomes, "ok": len(probe.ms) - cut_at}
        late[name] = Probe(rest, probe.statuses, probe.ms[cut_at:])
    half = tick.seconds / 2
    first = replace(tick, t=middle, at=tick.at - half, seconds=half, probes=early)
    return [first, replace(tick, seconds=half, probes=late)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 179))
def test_two_parts_of_a_record_together_are_the_whole(place: int) -> None:
    ticks = with_incident(quiet(0.5), "errors", 300, 600, 0.05)
    parts = [judge(own, metric="error_rate", at_most=1).actual for own in (ticks[:place], ticks[place:])]
    whole = judge(ticks, metric="error_rate", at_most=1).actual
    assert sum(part.n for part in parts) == whole.n
    assert sum((part.value or 0) * part.n for part in parts) == pytest.approx((whole.value or 0) * whole.n)


@given(st.floats(0, 1e6))
def test_a_duration_in_words_has_at_most_two_units(seconds: float) -> None:
    words = duration_text(seconds).split()
    assert words[1] in ("s", "min", "h", "days") and len(words) in (2, 4)


# What to do


def line(metric: str | None, value: float | None, result: Outcome) -> ReviewRow:
    target = Target.model_validate({"name": str(metric or "User rating"), "metric": metric, "at_most": 1})
    needs = "more" if result is UNPROVEN else ""
    actual = Actual(value, 0, 0, 1, "")
    return ReviewRow(name=target.name, outcome=result, text="", needs=needs, target=target, actual=actual)


def incident(level: str, rule: str, action: str, *, stands: bool = False) -> Incident:
    raised = Event("raised", "a", 110, 0, "", rule, level, 100, action=action)
    return Incident((Alert(raised, None if stands else replace(raised, what="cleared", t=200, eased=200)),))


WATCH = config.load().watch
GOOD = line("p95_ms", 0.5, MET)
DOWN = incident("P1", "service-down", "roll back")


@pytest.mark.parametrize(
    ("rows", "incidents", "headline", "result"),
    [
        ([GOOD], [], "Keep", MET),
        ([GOOD], [incident("P2", "latency-600", "deploy the optimised handler")], "Keep", MET),
        ([GOOD], [incident("P1", "service-down", "roll back", stands=True)], "Roll back", MISSED),
        ([GOOD], [incident("P1", "latency-1000", "scale up", stands=True)], "Scale up", MISSED),
        ([GOOD], [incident("P1", "mine", "", stands=True)], "Investigate", MISSED),
        ([GOOD], [DOWN], "Investigate", MISSED),
        ([line("error_rate", 0.02, MISSED)], [], "Investigate", MISSED),
        ([line("availability", 0.99, MISSED)], [DOWN], "Investigate", MISSED),
        ([line("success_rate", 0.9, MISSED)], [], "Investigate", MISSED),
        ([line("p95_ms", 650, MISSED)], [], "Deploy the optimised handler", MISSED),
        ([line("p95_ms", 550, MISSED)], [], "Plan optimisation", MISSED),
        ([line("p95_ms", 1100, MISSED)], [], "Scale up", MISSED),
        ([line("p50_ms", 350, MISSED)], [], "Plan optimisation", MISSED),
        ([line("throughput", 20, MISSED)], [], "Investigate", MISSED),
        ([line(None, 3.0, MISSED)], [], "Investigate", MISSED),
        ([line("p95_ms", 650, MISSED), line("error_rate", 0.02, MISSED)], [], "Investigate", MISSED),
        ([line("p95_ms", 650, MISSED)], [incident("P3", "r", "wait", stands=True)], "Wait", MISSED),
        ([GOOD], [incident("P3", "long-transaction", "find out", stands=True)], "Find out", UNPROVEN),
        ([GOOD, line("p99_ms", 1, UNPROVEN)], [], "Keep watching: p99_ms not yet proven", UNPROVEN),
        ([line("p99_ms", 1, UNPROVEN)] * 4, [], "Keep watching: 4 targets not yet proven", UNPROVEN),
        ([line(None, None, UNPROVEN)], [], "Report the missing values: User rating", UNPROVEN),
        ([], [], "Configure targets", UNPROVEN),
        ([line("p95_ms", 650, MISSED), line("p99_ms", 1, UNPROVEN)], [], "Deploy the optimised handler", MISSED),
    ],
)
def test_what_to_do_follows_from_what_was_broken(
    rows: list[ReviewRow], incidents: list[Incident], headline: str, result: Outcome
) -> None:
    found = recommend(rows, incidents, WATCH, Period(quiet(1)))
    assert (found.headline, found.outcome) == (headline, result)
    assert found.reasons


def test_the_actions_of_every_broken_rule_are_named_the_most_urgent_first() -> None:
    found = recommend([line("p95_ms", 650, MISSED)], [DOWN], WATCH, Period(quiet(1)))
    assert found.actions == ("investigate", "roll back", "deploy the optimised handler")
    assert found.reasons[0] == "P1 service-down lasted 1 min 40 s"


def test_without_rules_a_miss_is_investigated() -> None:
    assert recommend([line("p95_ms", 650, MISSED)], [], Watch(), Period(quiet(1))).actions == ("investigate",)


@pytest.mark.slow
def test_an_outage_of_95_seconds_misses_availability_is_a_P1_and_the_review_says_investigate() -> None:
    found = review(watched(with_incident(quiet(24), "service-down", 36000, 95)), values=RATED)
    assert named(found, "Availability").outcome is MISSED
    assert [own.level for own in found.incidents] == ["P1"]
    assert found.recommendation.headline == "Investigate" and "roll back" in found.recommendation.actions
