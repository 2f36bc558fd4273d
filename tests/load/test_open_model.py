"""The open model: requests arrive by the clock, whether the ones before them are answered or not."""

import threading
import time
from itertools import pairwise

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.config import Scenario
from perfkit.load.pool import WorkerPool, sql_target
from perfkit.load.samples import COLUMNS, DROPPED, OVER_RANGE, Rest
from perfkit.load.schedule import Arrivals, Batch, batches, instants
from perfkit.postgres import databases

pytestmark = pytest.mark.alone

PING = {"item": "ping", "sql": "SELECT 1", "params": None}
NAP = {"item": "nap", "sql": "SELECT pg_sleep(%(s)s::float8)", "params": {"s": 0.2}}
rates = st.floats(0.5, 200)
segments = st.lists(st.tuples(rates, rates, st.floats(0.05, 3)), min_size=1, max_size=4)


def steady(rate: float, seconds: float, *messages, users: int = 30, seed: str | None = "1") -> Arrivals:
    return Arrivals(messages or (PING,), ((rate, rate, seconds),), users, seed)


@pytest.fixture(scope="module")
def crew():
    with WorkerPool(2) as crew:
        yield crew


@pytest.fixture(scope="module")
def target(server):
    return sql_target(server.conninfo("postgres"), 10, 10)


class TestInstants:
    @given(segments, st.none() | st.text(max_size=5))
    def test_never_decrease_and_stay_within_the_time(self, segments, seed):
        found = list(instants(segments, seed))
        assert all(a <= b for a, b in pairwise(found))
        assert all(0 <= at <= sum(seconds for *_, seconds in segments) * 1e9 + 1 for at in found)

    @given(segments)
    def test_evenly_spaced_ones_are_as_many_as_the_rates_add_up_to(self, segments):
        expected = sum((first + last) / 2 * seconds for first, last, seconds in segments)
        assert abs(len(list(instants(segments, None))) - expected) <= 0.5 + 1e-6

    @given(st.floats(1, 500), st.floats(0.1, 3))
    def test_evenly_spaced_ones_are_a_rate_apart(self, rate, seconds):
        gaps = np.diff(list(instants([(rate, rate, seconds)], None)))
        assert np.allclose(gaps, 1e9 / rate, atol=2)

    def test_a_poisson_process_has_exponential_gaps(self):
        gaps = np.diff(list(instants([(1000, 1000, 20)], "seed"))) / 1e6
        assert len(gaps) == pytest.approx(20_000, abs=5 * 20_000**0.5)
        assert gaps.mean() == pytest.approx(gaps.std(), rel=0.05)  # in ms; an exponential's are equal
        assert np.mean(gaps > gaps.mean()) == pytest.approx(np.exp(-1), abs=0.02)

    def test_a_ramp_brings_half_of_its_requests_in_the_last_three_tenths(self):
        found = np.array(list(instants([(0.001, 1000, 10)], None)))
        assert np.mean(found > 1e10 / 2**0.5) == pytest.approx(0.5, abs=0.01)

    def test_the_same_seed_gives_the_same_instants_and_another_gives_others(self):
        one, again, other = (list(instants([(100, 100, 2)], seed)) for seed in ("a", "a", "b"))
        assert one == again != other


class TestAScenario:
    def test_in_the_open_model_warms_its_connections_and_then_follows_its_stages(self):
        stages = ({"rate": 60, "seconds": 2}, {"rate": 60, "seconds": 3})
        scenario = Scenario(name="open", label="", send=("ping",), rate=10, seconds=1, stage=stages, users=4, warm=2)
        *warm, arrivals = batches(scenario, lambda _: PING, "s")
        assert [(batch.users, batch.counted) for batch in warm] == [(4, False)] * 2
        assert arrivals.segments == ((10, 10, 1), (10, 60, 2), (60, 60, 3))
        assert (arrivals.lasts_s, arrivals.expected, arrivals.peak) == (6, 10 + 70 + 180, 60)
        assert scenario.lasts_s == 6

    def test_of_any_length_goes_round_in_a_bounded_number_of_messages(self):
        scenario = Scenario(name="long", label="", send=("a", "b"), rate=1000, seconds=86_400)
        assert len(batches(scenario, lambda item: {"item": item})[0].messages) == 4000

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"rate": 10}, "seconds"),
            ({"rate": 10, "seconds": 1, "batches": 2}, "no batches"),
            ({"stage": ({"rate": 1, "seconds": 1},)}, "with a rate"),
            ({"rate": 10, "seconds": 1, "search": {"most": 5}}, "search from a rate to a higher one"),
            ({"rate": 10, "seconds": 1, "alternate": True}, "closed model"),
            ({"rate": 0, "seconds": 1}, "greater than 0"),
        ],
    )
    def test_that_contradicts_itself_is_refused(self, given, expected):
        with pytest.raises(ValueError, match=expected):
            Scenario(name="x", label="", send=("ping",), **given)


class TestArrivals:
    def test_are_sent_on_time_each_once_whoever_sends_them(self, crew, target):
        load = crew.run(target, [steady(2500, 1, users=20)])
        expected = list(instants([(2500, 2500, 1)], "1"))
        columns = load.columns
        assert sorted(columns.scheduled) == expected
        assert sorted(columns.user) == list(range(len(expected)))  # the arrivals' numbers
        assert set(columns.outcome) == {"ok"} and {len(getattr(columns, name)) for name in COLUMNS} == {len(expected)}
        rows = zip(*(getattr(columns, name) for name in ("scheduled", "started", "acquired", "done")), strict=True)
        assert all(due <= started <= acquired <= done for due, started, acquired, done in rows)

    def test_go_on_while_the_ones_before_are_not_answered(self, crew, target):
        load = crew.run(target, [steady(50, 1, NAP, seed=None)])
        started, done = np.array(load.columns.started), np.array(load.columns.done)
        in_flight = [int(np.sum((started <= at) & (done > at))) for at in started]
        assert max(in_flight) >= 8  # 50 a second, 0.2 s each: ten
        assert len(started) == 50

    def test_beyond_the_cap_are_dropped_and_counted(self, crew, target):
        load = crew.run(target, [steady(50, 1, NAP, users=4, seed=None)])
        outcomes, columns = load.columns.outcome, load.columns
        assert len(outcomes) == 50
        assert outcomes.count("ok") == pytest.approx(20, abs=4) and outcomes.count(DROPPED) + outcomes.count("ok") == 50
        dropped = [i for i, outcome in enumerate(outcomes) if outcome == DROPPED]
        assert all(columns.scheduled[i] == columns.done[i] and columns.attempts[i] == 0 for i in dropped)

    def test_wait_for_a_connection_where_there_are_fewer(self, crew, server):
        target = sql_target(server.conninfo("postgres"), 10, 10, connections=2)
        columns = crew.run(target, [steady(20, 1, NAP, seed=None)]).columns
        waits = [acquired - started for acquired, started in zip(columns.acquired, columns.started, strict=True)]
        assert set(columns.outcome) == {"ok"} and len(waits) == 20
        assert max(waits) > 0.5e9  # two connections answer ten a second: the last ones wait a second
        service = np.array(columns.done) - columns.acquired
        assert np.median(service) < 0.4e9

    def test_with_nobody_to_give_a_connection_end_as_such(self, crew, server):
        target = sql_target(server.conninfo("postgres"), 0.3, 10, connections=1)
        columns = crew.run(target, [steady(20, 0.5, {**NAP, "params": {"s": 5}}, seed=None)]).columns
        assert set(columns.outcome) == {"timeout", "pool_timeout"}


@pytest.mark.slow
def test_a_lock_held_for_one_second_of_twelve_shows_in_the_p99_of_the_open_model_alone(crew, server):
    """The closed model's five users wait for the lock and send nothing meanwhile, so that it nearly vanishes."""
    databases.create(server, "locked")
    with server.connect("locked") as connection:
        connection.execute("CREATE TABLE slots AS SELECT 1 AS id")
    look = {"item": "look", "sql": "SELECT id FROM slots, pg_sleep(0.01)", "params": None}
    target, p99 = sql_target(server.conninfo("locked"), 10, 10, connections=60), {}
    for model, batch in {"open": steady(100, 12, look, users=200), "closed": Batch(((look,) * 1000,) * 5)}.items():
        with locked_for_a_second(server.conninfo("locked"), after_s=4):
            columns = crew.run(target, [batch]).columns
        assert set(columns.outcome) == {"ok"} and 10 < max(columns.done) / 1e9 < 25
        for since in ("scheduled", "acquired"):
            took = (np.array(columns.done) - getattr(columns, since)) / 1e6
            p99[model, since] = np.percentile(took, 99)
    assert p99["open", "scheduled"] > 700  # of 1200 that arrived, 100 did while the table was locked
    assert p99["closed", "scheduled"] < 100  # of 5000 that were sent, 5 met it


class TestConflicts:
    def test_are_tried_again_as_often_as_allowed_and_the_latency_includes_that(self, crew, server):
        databases.create(server, "conflicts")
        with server.connect("conflicts") as connection:
            connection.execute("CREATE TABLE counters AS SELECT 1 AS id, 0 AS n")
        add = {
            "item": "add",
            "sql": "UPDATE counters SET n = n + 1 FROM pg_sleep(0.002) WHERE id = %(id)s",
            "params": {"id": 1},
        }
        settings = {"default_transaction_isolation": "repeatable read"}
        found = {}
        for retries in (0, 50):
            target = sql_target(server.conninfo("conflicts"), 20, 20, settings=settings, retries=retries)
            found[retries] = crew.run(target, [Batch(((add,) * 10,) * 6)]).columns
        assert "sqlstate_40001" in found[0].outcome and set(found[0].attempts) == {1}
        assert set(found[50].outcome) == {"ok"} and max(found[50].attempts) > 1
        took = np.array(found[50].done) - found[50].scheduled
        attempts = np.array(found[50].attempts)
        assert np.median(took[attempts > 1]) > np.median(took[attempts == 1])
        with server.connect("conflicts") as connection:
            done = connection.execute("SELECT n FROM counters").fetchone()["n"]
        assert done == found[0].outcome.count("ok") + 60


class TestLongRounds:
    def test_keep_every_time_up_to_a_limit_and_histograms_beyond(self, crew, target):
        load = crew.run(target, [steady(1000, 2)], samples=500)
        expected = len(list(instants([(1000, 1000, 2)], "1")))
        rest = load.rest["ping"]
        assert len(load.columns.item) == 500
        assert rest.outcomes == {"ok": expected - 500}
        values = rest.values_ms(10**6)
        assert len(values) == expected - 500 and values == sorted(values)
        assert 0.5e9 / 1.5 < rest.first_ns < rest.last_ns < 3e9

    def test_merge_the_histograms_of_several_workers_without_loss(self, crew, target):
        load = crew.run(target, [steady(3000, 1)], samples=100, workers=2)
        expected = len(list(instants([(3000, 3000, 1)], "1")))
        assert len(load.columns.item) == 100
        assert load.rest["ping"].outcomes.total() == expected - 100

    @given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=300))
    def test_a_histogram_gives_back_every_time_to_three_digits(self, times_ms):
        rest = Rest()
        for ms in times_ms:
            rest.add(0, int(ms * 1e6), "ok")
        found = Rest.of(rest.record).values_ms(1000)
        assert np.allclose(found, np.sort(times_ms), rtol=1e-3, atol=0.001)

    def test_a_time_beyond_its_range_is_an_error_and_not_lost(self):
        rest = Rest()
        rest.add(0, 2 * 3600 * 10**9, "ok")
        assert rest.outcomes == {OVER_RANGE: 1} and Rest.of(rest.record).values_ms(10) == []

    def test_thinning_keeps_the_percentiles(self):
        rest = Rest()
        for ms in np.random.default_rng(1).lognormal(1, 1, 20_000):
            rest.add(0, int(ms * 1e6), "ok")
        whole, thinned = rest.values_ms(10**6), rest.values_ms(1000)
        assert len(thinned) == 1000
        assert np.allclose(np.percentile(whole, [5, 50, 95, 99]), np.percentile(thinned, [5, 50, 95, 99]), rtol=0.03)


class locked_for_a_second:
    """A table locked in another session for a second, some time after now."""

    def __init__(self, conninfo: str, after_s: float):
        self._conninfo, self._after_s = conninfo, after_s
        self._thread = threading.Thread(target=self._hold)

    def _hold(self):
        time.sleep(self._after_s)
        with psycopg.connect(self._conninfo) as connection:
            connection.execute("LOCK TABLE slots IN ACCESS EXCLUSIVE MODE")
            time.sleep(1)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *exc):
        self._thread.join()
