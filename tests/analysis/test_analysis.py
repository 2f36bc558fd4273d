"""From a bundle to its decision: on a real run, and on made-up runs whose truth is known."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import make_run, tuned

from perfkit import config
from perfkit.analysis.policy import Rule
from perfkit.analysis.results import Analysis, Comparison, Summary
from perfkit.analysis.run_analysis import analyse
from perfkit.base.errors import BundleError, PerfkitError
from perfkit.base.judgement import Outcome, Verdict
from perfkit.load.samples import Rest
from perfkit.runs.records import FLOOR, Bundle, Round, ServerRecord
from perfkit.runs.selection import RunSpec, Selection

ARMS = ["before", "control", "after-index", "after-full"]
AFTER = ARMS[2:]
SCENARIOS = {"single": 14, "burst": 30}  # requests a round in the made-up runs
# Milliseconds of a typical request.
SPEED = {"before": 100.0, "control": 100.0, "after-index": 50.0, "after-full": 25.0, FLOOR: 1.0}

Change = Callable[[Round], Round]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy run of two scenarios: after-index twice and after-full four times as fast as before."""
    return make(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Bundle:
    """The healthy run, to be changed."""
    return Bundle.open(Path(shutil.copytree(made, tmp_path / "run")))


def make(folder: Path, blocks: int = 6) -> Path:
    bundle = make_run(folder, blocks=blocks)
    bundle.run.parameters.scenarios = list(SCENARIOS)
    bundle.update()
    for path in (folder / "rounds").glob("*.json"):
        if path.name.split(".")[1] not in SCENARIOS:
            path.unlink()
    change(bundle, lambda r: timed(r, SPEED[r.arm]))
    return folder


def timed(round_: Round, ms: float) -> Round:
    """The round with a known median: `ms`, times its block's factor and a little chance, spread by 10 %."""
    n = len(round_.columns.item)
    arm = [*ARMS, FLOOR].index(round_.arm)
    drift = 1 + 0.02 * round_.block + (0.002 * (-1) ** (round_.block // arm) if arm else 0)
    times = [int(1e6 * ms * drift * (0.9 + 0.2 * i / (n - 1))) for i in range(n)]
    return with_columns(round_, done=times)


def with_columns(round_: Round, **columns: list[Any]) -> Round:
    return replace(round_, columns=replace(round_.columns, **columns))


def change(bundle: Bundle, how: Change, arm: str = "", scenario: str = "", blocks: range = range(100)) -> None:
    """Write the chosen rounds anew."""
    for round_ in list(bundle.rounds()):
        if arm in ("", round_.arm) and scenario in ("", round_.scenario) and round_.block in blocks:
            bundle.add_round(how(round_))


def slower(factor: float) -> Change:
    return lambda r: with_columns(r, done=[int(done * factor) for done in r.columns.done])


def failing(count: int, outcome: str = "http_500", counted: bool = True) -> Change:
    """The round's first requests fail after a long time."""

    def how(r: Round) -> Round:
        n = len(r.columns.item)
        bad = min(count, n)
        return with_columns(
            r,
            outcome=[outcome] * bad + ["ok"] * (n - bad),
            detail=["it broke"] * bad + ["201"] * (n - bad),
            done=[int(60e9)] * bad + list(r.columns.done[bad:]),
            counted=[counted] * bad + [True] * (n - bad),
        )

    return how


def level(found: Analysis, arm: str, scenario: str) -> Summary:
    known = found.level(arm, scenario)
    assert known is not None
    return known


def compared(found: Analysis, arm: str, scenario: str, metric: str = "p50") -> Comparison:
    known = found.comparison(arm, scenario, metric)
    assert known is not None
    return known


def broken(found: Analysis, arm: str) -> list[Rule]:
    return [rule for rule in found.decision.rules if rule.arm == arm and rule.outcome is Outcome.BROKEN]


def verdicts(found: Analysis) -> dict[tuple[str, str], set[str]]:
    """By arm and scenario, the verdicts on p50 and p95."""
    known: dict[tuple[str, str], set[str]] = {}
    for c in found.comparisons:
        known.setdefault((c.after, c.scenario), set()).add(str(c.verdict))
    return known


# A real run


def test_a_real_run_has_every_load_level_of_every_arm_and_the_floor(bundle: Bundle) -> None:
    found = analyse(bundle)
    items = {(level.scenario, level.item) for level in found.levels}
    assert len(items) == 5 + 4  # five load levels of bookings, four queries
    assert Counter(level.arm for level in found.levels) == dict.fromkeys([*ARMS, FLOOR], 9)


def test_every_request_of_a_real_run_is_counted_once(bundle: Bundle) -> None:
    found, sent, counted = analyse(bundle), Counter[Any](), Counter[Any]()
    for r in bundle.rounds():
        for item, is_counted in zip(r.columns.item, r.columns.counted, strict=True):
            sent[r.arm, r.scenario, item] += 1
            counted[r.arm, r.scenario, item] += is_counted
    assert {(k.arm, k.scenario, k.item): k.sent for k in found.levels} == sent
    assert {(k.arm, k.scenario, k.item): k.n for k in found.levels} == counted
    assert level(found, "before", "ramp-up").n < level(found, "before", "ramp-up").sent


def test_the_typical_latency_is_the_median_of_the_rounds_medians(bundle: Bundle) -> None:
    medians = [
        np.median(np.array(r.columns.done) - np.array(r.columns.scheduled)) / 1e6
        for r in bundle.rounds()
        if (r.arm, r.scenario) == ("before", "burst")
    ]
    p50 = level(analyse(bundle), "before", "burst").p50
    assert p50 is not None
    assert p50.value == pytest.approx(np.median(medians))
    assert (p50.lo, p50.hi) == pytest.approx((min(medians), max(medians)))  # of six rounds


def test_arms_of_a_real_run_are_compared_with_before_and_only_measured_ones(bundle: Bundle) -> None:
    found = analyse(bundle)
    assert {c.before for c in found.comparisons} == {"before"}
    assert {c.after for c in found.comparisons} == {"control", *AFTER}
    assert {c.item for c in found.comparisons if c.metric == "p95"} == {"book"}  # 12 queries carry no p95
    assert all(c.ratio and c.ratio.pairs == 6 for c in found.comparisons)


def test_the_real_plans_were_used_as_often_as_the_server_counted(bundle: Bundle) -> None:
    plans = {(use.arm, use.query): use for use in analyse(bundle).plans}
    assert plans.keys() == {(arm, query) for arm in ARMS for query in bundle.run.queries}
    use = plans["before", "conflict_check"]
    booked = sum(block.http_requests["before"]["book"] for block in bundle.run.blocks)
    queried = sum(
        r.columns.item.count("conflict_check") for r in bundle.rounds() if (r.arm, r.scenario) == ("before", "queries")
    )
    assert use.summary == "Seq Scan on appointments"
    assert use.verified and use.scans_seen == use.scans_expected == booked + queried
    assert use.buffers > plans["after-index", "conflict_check"].buffers > 0


def test_a_real_run_says_how_it_was_decided_in_words(bundle: Bundle) -> None:
    found = analyse(bundle)
    assert "answered within" in found.headline and "with the seven indexes" in found.headline
    assert "no unexpected outcomes in " in found.headline
    assert found.headline.endswith("21 of 21 functional checks passed.")
    assert any("Measured on embedded PostgreSQL 18." in line for line in found.caveat_texts)
    assert found.errors == ()
    assert {rule.name for rule in found.decision.rules} == {
        *("p95", "error rate", "checks", "indexes valid", "not slower", "benefit")
    }
    assert {rule.arm for rule in found.decision.rules} == set(ARMS)  # the floor is never judged


# What the numbers are


def test_a_healthy_run_of_a_faster_system_is_a_go(run: Bundle) -> None:
    found = analyse(run)
    assert found.decision.outcome is Outcome.HOLDS
    assert found.arm_decisions == dict.fromkeys(AFTER, Outcome.HOLDS)
    for arm, factor in (("control", 1), ("after-index", 0.5), ("after-full", 0.25)):
        for scenario in SCENARIOS:
            ratio = compared(found, arm, scenario).ratio
            assert ratio and ratio.value == pytest.approx(factor, rel=0.01)
            wanted = "equivalent" if arm == "control" else "faster"
            assert verdicts(found)[arm, scenario] == {wanted}


def test_the_latency_is_counted_from_the_scheduled_instant(run: Bundle) -> None:
    change(run, lambda r: with_columns(r, scheduled=[-int(10e6)] * len(r.columns.item)), "before", "burst")
    found, p50 = analyse(run), level(analyse(run), "before", "burst").p50
    assert p50 and p50.value == pytest.approx(105 + 10, rel=0.01)  # the blocks' drift is 5 % on average
    assert level(found, "before", "burst").lag_p99 == pytest.approx(10.08)


def test_samples_that_are_not_counted_change_no_number_but_how_many_were_sent(run: Bundle) -> None:
    def with_warm_up(r: Round) -> Round:
        ends = {"counted": False, "done": int(60e9), "outcome": "ok"}
        return with_columns(r, **{k: [ends.get(k, v[0]), *v] for k, v in r.columns.lists.items()})

    before = analyse(run)
    change(run, with_warm_up, "after-index", "burst")
    after = analyse(run)
    known = level(before, "after-index", "burst")
    assert level(after, "after-index", "burst") == replace(known, sent=known.sent + 6)
    assert after.comparisons == before.comparisons


def test_failures_are_in_the_counts_and_the_errors_and_in_no_percentile(run: Bundle) -> None:
    change(run, failing(3, "timeout"), "after-index", "burst", range(2, 6))
    change(run, failing(1, "http_500"), "after-index", "burst", range(2))
    found = level(analyse(run), "after-index", "burst")
    errors = 2 * 1 + 4 * 3
    assert (found.sent, found.errors, found.n) == (180, errors, 180 - errors)
    assert found.maximum < 100 and found.p95 and found.p95.value < 100
    assert [(e.arm, e.scenario, e.outcome, e.count, e.message) for e in analyse(run).errors] == [
        ("after-index", "burst", "http_500", 2, "it broke"),
        ("after-index", "burst", "timeout", 12, "it broke"),
    ]


def test_a_failure_before_the_counted_part_is_a_failure_all_the_same(run: Bundle) -> None:
    change(run, failing(1, counted=False), "after-full", "single")
    found = analyse(run)
    assert level(found, "after-full", "single").errors == 6
    assert found.decision.outcome is Outcome.BROKEN


def test_a_round_in_which_everything_failed_is_no_pair(run: Bundle) -> None:
    change(run, failing(30), "after-index", "burst", range(1))
    ratio = compared(analyse(run), "after-index", "burst").ratio
    assert ratio and ratio.pairs == 5
    assert verdicts(analyse(run))["after-index", "burst"] == {"invalid"}


def test_an_arm_that_only_fails_is_a_no_go_without_numbers(run: Bundle) -> None:
    change(run, lambda r: failing(len(r.columns.item))(r), "after-index")
    found = analyse(run)
    assert level(found, "after-index", "burst").p50 is None
    assert found.decision.outcome is Outcome.BROKEN
    said = "after-index: 264 of 264 requests failed, 100 % (95 % interval 9"
    (reason,) = [reason for reason in found.decision.reasons if reason.startswith(said)]
    assert reason.endswith("the limit is 0.1 %: 264 x http_500 (it broke).")


def test_throughput_is_requests_by_the_time_their_batches_took(run: Bundle) -> None:
    change(run, lambda r: with_columns(r, done=[int(2e9)] * 30, batch=[0] * 15 + [1] * 15), "before", "burst")
    throughput = level(analyse(run), "before", "burst").throughput
    assert throughput and throughput.value == pytest.approx(30 / 4)


def test_a_percentile_needs_its_samples(run: Bundle) -> None:
    found = level(analyse(run), "before", "single")
    assert found.n == 84 and found.p95 and found.p99 is None
    change(run, lambda r: with_columns(r, counted=[True] * 11 + [False] * 3), "after-full", "single")
    after = analyse(run)
    assert level(after, "after-full", "single").p95 is None
    assert after.comparison("after-full", "single", "p95") is None
    assert after.decision.outcome is Outcome.UNPROVEN
    assert after.decision.reasons == (
        "after-full, single: p95 needs 72 samples, has 66. Needed: 6 more answered requests, about 7 blocks in all.",
    )


# The rules


def no_go(found: Analysis, arm: str, sentence: str) -> None:
    """The run is a NO-GO for this one reason, and only because of that arm."""
    assert found.decision.outcome is Outcome.BROKEN
    assert [rule.text for rule in broken(found, arm)] == list(found.decision.reasons)
    assert all(sentence in reason for reason in found.decision.reasons)
    assert {a for a, own in found.arm_decisions.items() if own is not Outcome.HOLDS} == {arm}


def test_errors_over_the_limit_by_their_lower_bound_are_a_no_go(run: Bundle) -> None:
    change(run, failing(1), "after-full", "burst", range(5))
    no_go(analyse(run), "after-full", "after-full: 5 of 264 requests failed, 1.9 % (95 % interval 0.")


def test_one_stray_error_is_inconclusive_and_its_kind_is_named(run: Bundle) -> None:
    change(run, failing(1, "sqlstate_57P01"), "after-full", "burst", range(1))
    found = analyse(run)
    assert found.decision.outcome is Outcome.UNPROVEN
    assert found.arm_decisions == {"after-index": Outcome.HOLDS, "after-full": Outcome.UNPROVEN}
    (reason,) = found.decision.reasons
    assert reason.startswith("after-full: 1 of 264 requests failed, 0.38 % (95 % interval ")
    assert ": 1 x SQLSTATE 57P01 (it broke)." in reason
    assert reason.endswith("Needed: another run, or more than 1,000 requests in all with no further error.")


def test_errors_under_the_limit_are_shown_and_break_nothing(run: Bundle) -> None:
    tuned(run, "thresholds", error_rate=0.01)
    change(run, failing(1), "after-full", "burst", range(1))
    found = analyse(run)
    assert found.decision.outcome is Outcome.HOLDS
    assert "1 unexpected outcome in 1,320 requests" not in found.headline  # the floor's are no outcomes
    assert "1 unexpected outcome in 1,056 requests" in found.headline
    assert len(found.errors) == 1


def test_a_failed_check_is_a_no_go(run: Bundle) -> None:
    run.run.checks["after-index"][0].passed = False
    found = analyse(run)
    no_go(found, "after-index", "1 of 7 functional checks failed: Basic insert.")
    assert found.headline.endswith("27 of 28 functional checks passed.")


@pytest.mark.parametrize("how", ["missing", "invalid"])
def test_an_index_that_is_missing_or_invalid_is_a_no_go(run: Bundle, how: str) -> None:
    indexes = run.run.arms["after-full"].indexes
    gone = indexes.pop().name if how == "missing" else indexes[1].name
    indexes[-1] = replace(indexes[-1], valid=how == "missing")
    no_go(analyse(run), "after-full", f"1 of 2 indexes missing or invalid: {gone}.")


def test_a_slower_comparison_is_a_no_go(run: Bundle) -> None:
    change(run, slower(2.4), "after-index", "single")  # 1.2 times before
    found = analyse(run)
    no_go(found, "after-index", "is slower (1.2")
    assert verdicts(found)["after-index", "single"] == {"slower"}
    assert verdicts(found)["after-index", "burst"] == {"faster"}


def test_a_latency_over_its_limit_is_a_no_go(run: Bundle) -> None:
    tuned(run, "thresholds", p95_ms=40)
    found = analyse(run)
    assert found.decision.outcome is Outcome.BROKEN
    assert [(r.arm, r.name) for r in found.decision.rules if r.outcome is Outcome.BROKEN] == [
        (arm, "p95") for arm in ARMS[:3] for _ in SCENARIOS
    ]
    assert found.arm_decisions["after-full"] is Outcome.HOLDS


def test_a_latency_whose_bound_alone_is_over_the_limit_is_inconclusive(run: Bundle) -> None:
    p95 = level(analyse(run), "after-index", "burst").p95
    assert p95
    for limit, said in (((p95.value + p95.hi) / 2, "upper bound is not"), ((p95.value + p95.lo) / 2, "lower bound is")):
        tuned(run, "thresholds", p95_ms=limit)
        found = analyse(run)
        assert found.decision.outcome is Outcome.UNPROVEN
        assert any(f"but its {said}" in reason for reason in found.decision.reasons)


def test_only_the_arms_after_the_change_decide(run: Bundle) -> None:
    run.run.checks["before"][0].passed = False
    change(run, slower(10), "before")
    change(run, slower(20), "control")
    change(run, failing(3), "before", "burst")
    found = analyse(run)
    assert broken(found, "before") and broken(found, "control")
    assert found.arm_decisions.keys() == set(AFTER)
    assert found.decision.outcome is Outcome.HOLDS


def test_the_floor_is_shown_and_never_judged_or_compared(run: Bundle) -> None:
    change(run, slower(1e5), FLOOR)
    change(run, lambda r: replace(r, health={**r.health, "worker_cpu": 1.0}), FLOOR)
    found = analyse(run)
    assert level(found, FLOOR, "burst").healthy
    assert FLOOR not in {rule.arm for rule in found.decision.rules}
    assert FLOOR not in {c.after for c in found.comparisons}
    assert found.decision.outcome is Outcome.HOLDS


def test_a_query_beside_a_service_is_compared_and_has_no_limit_of_its_own(tmp_path: Path) -> None:
    rules = analyse(make_run(tmp_path / "run")).decision.rules
    assert "queries" not in {rule.scenario for rule in rules if rule.name == "p95"}
    assert "queries: clinic_day" in {rule.scenario for rule in rules if rule.name == "not slower"}


# What makes a comparison invalid, or widens its margin


@pytest.mark.parametrize(
    ("health", "healthy"),
    [
        ({"lag_p50_ms": 24.0}, True),  # a quarter of the typical latency
        ({"lag_p50_ms": 27.0}, False),
        ({"worker_cpu": 0.95}, True),
        ({"worker_cpu": 0.96}, False),
    ],
)
def test_one_unhealthy_round_makes_its_comparisons_invalid(
    run: Bundle, health: Mapping[str, float], healthy: bool
) -> None:
    change(run, lambda r: replace(r, health={**r.health, **health}), "before", "burst", range(3, 4))
    found = analyse(run)
    assert level(found, "before", "burst").healthy is healthy
    for arm in ("control", *AFTER):
        assert (verdicts(found)[arm, "burst"] == {"invalid"}) is not healthy
        assert "invalid" not in verdicts(found)[arm, "single"]
    assert found.decision.outcome is (Outcome.HOLDS if healthy else Outcome.UNPROVEN)
    said = "burst on before: the client was too slow; its numbers are invalid (1 of 6 rounds invalid: "
    assert any(line.startswith(said) for line in found.caveat_texts) is not healthy


def test_a_short_latency_may_lag_by_the_limit_in_ms(run: Bundle) -> None:
    change(run, slower(0.01), "before", "burst")
    change(run, lambda r: replace(r, health={**r.health, "lag_p50_ms": 4.9}), "before", "burst")
    assert level(analyse(run), "before", "burst").healthy


def test_an_unhealthy_arm_spoils_only_its_own_comparison(run: Bundle) -> None:
    change(run, lambda r: replace(r, health={**r.health, "worker_cpu": 1.0}), "after-index", "burst")
    invalid = {key for key, own in verdicts(analyse(run)).items() if own == {"invalid"}}
    assert invalid == {("after-index", "burst")}


def test_five_blocks_are_too_few(tmp_path: Path) -> None:
    found = analyse(Bundle.open(make(tmp_path / "run", blocks=5)))
    assert {str(c.verdict) for c in found.comparisons} == {"invalid"}
    assert found.decision.outcome is Outcome.UNPROVEN
    assert all(c.ratio and c.ratio.pairs == 5 for c in found.comparisons)


def test_a_control_that_differs_widens_the_margin_there_and_is_reported(run: Bundle) -> None:
    change(run, slower(2 * 1.07), "after-index")  # 1.07 times before, in both scenarios
    assert compared(analyse(run), "after-index", "single").verdict is Verdict.SLOWER
    change(run, slower(1.1), "control", "single")
    found = analyse(run)
    control = compared(found, "control", "single").ratio
    widened = compared(found, "after-index", "single")
    assert control and control.lo > 1.05
    assert widened.margin == pytest.approx(control.hi - 1)
    assert widened.verdict is Verdict.INVALID, "a disturbed control must not hide a slowdown"
    elsewhere = compared(found, "after-index", "burst")
    assert elsewhere.margin == 0.05 and elsewhere.verdict is Verdict.SLOWER
    assert (found.margin, found.margin_used) == (0.05, max(c.margin for c in found.comparisons))
    said = [line for line in found.caveat_texts if line.startswith("The control differs from before")]
    assert [line.split(" differs from before in ")[1].split(":")[0] for line in said] == [
        "single (p50 of book",
        "single (p95 of book",
    ]


def test_the_controls_own_comparison_is_judged_by_the_declared_margin(run: Bundle) -> None:
    change(run, slower(1.1), "control", "burst")
    found = compared(analyse(run), "control", "burst")
    assert (found.margin, found.verdict) == (0.05, Verdict.SLOWER)


def test_an_inconclusive_comparison_blocks_nothing_and_says_what_would_settle_it(run: Bundle) -> None:
    change(run, lambda r: slower(2 * (1.02, 0.9)[r.block % 2])(r), "after-index", "single")
    found = analyse(run)
    c = compared(found, "after-index", "single")
    assert c.verdict is Verdict.INCONCLUSIVE and c.blocks_needed and c.blocks_needed > 6
    assert found.decision.outcome is Outcome.HOLDS
    [said] = [line for line in found.caveat_texts if "inconclusive" in line]
    assert said.startswith("after-index: ") and "single p50 of book" in said and "would settle" in said


# A run that did not end


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_an_unfinished_run_is_never_a_go(run: Bundle, status: str) -> None:
    run.update(status=status, message="stopped by the user")
    found = analyse(run)
    assert found.decision.outcome is Outcome.UNPROVEN
    assert found.decision.reasons[0] == f"the run is {status}: stopped by the user"
    assert found.caveat_texts[0] == f"The run is {status}: 6 of 6 blocks were measured. stopped by the user"


def test_what_an_unfinished_run_broke_stays_broken(run: Bundle) -> None:
    run.update(status="interrupted", message="stopped by the user")
    run.run.checks["after-full"][0].passed = False
    assert analyse(run).decision.outcome is Outcome.BROKEN


def test_a_run_that_ended_before_its_first_round_says_so(tmp_path: Path) -> None:
    described = Selection(config.load(), RunSpec(profile="quick", scale="seed")).describe()
    found = analyse(Bundle.create(tmp_path / "run", described))
    assert found.decision.outcome is Outcome.UNPROVEN
    assert found.headline == "Nothing was measured."
    assert found.caveat_texts[0] == "The run is running: 0 of 6 blocks were measured."
    assert (found.levels, found.comparisons, found.plans, found.errors) == ((), (), (), ())


# Plans and words


def test_a_plan_is_verified_where_the_server_counted_each_execution(run: Bundle) -> None:
    scans = {"seq:appointments": 40, "idx_appointments_org_contact_date": 35}
    for block in run.run.blocks:
        block.http_requests = {arm: {"book": 40} for arm in ARMS}
        block.http_scans = dict.fromkeys(ARMS, scans)
    found = analyse(run)
    uses = {use.arm: use for use in found.plans if use.query == "conflict_check"}
    before, after = uses["before"], uses["after-full"]
    assert (before.scans_seen, before.scans_expected, before.verified) == (240, 240, True)
    assert (after.scans_seen, after.scans_expected, after.verified) == (210, 240, False)
    assert (before.summary, before.buffers, before.rows) == ("Seq Scan on appointments", 6178, 1)
    assert after.summary == "Index Scan using idx_appointments_org_contact_date on appointments"
    said = [line for line in found.caveat_texts if "the plan shown" in line]
    assert [line.split(";")[0] for line in said] == [
        f"conflict_check on {arm}: the plan shown was used in 210 of 240 executions" for arm in AFTER
    ]


def test_a_block_with_more_scans_does_not_make_up_for_another(run: Bundle) -> None:
    for block, count in zip(run.run.blocks, (0, 80, 40, 40, 40, 40), strict=True):
        block.http_requests = {"before": {"book": 40}}
        block.http_scans = {"before": {"seq:appointments": count}}
    use = next(u for u in analyse(run).plans if (u.arm, u.query) == ("before", "conflict_check"))
    assert (use.scans_seen, use.scans_expected, use.verified) == (200, 240, False)


def test_queries_sent_as_sql_are_counted_round_by_round_and_only_where_they_succeeded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    seen = {"conflict_check": {"seq:appointments": 2}}
    change(run, lambda r: replace(r, usage=seen), "before", "queries")
    change(run, lambda r: replace(failing(4, "sql_57014")(r), usage=seen), "before", "queries", range(1))
    use = next(u for u in analyse(run).plans if (u.arm, u.query) == ("before", "conflict_check"))
    assert (use.scans_seen, use.scans_expected) == (12, 5 * 3 + 2)  # a round sends each of four three times


def test_a_plan_that_was_never_executed_is_not_verified_and_not_held_against_the_run(run: Bundle) -> None:
    found = analyse(run)
    assert not any(use.verified for use in found.plans)
    assert not [line for line in found.caveat_texts if "the plan shown" in line]


def test_the_headline_is_the_worst_level_before_and_what_became_of_it(run: Bundle) -> None:
    change(run, slower(3), "before", "single")
    change(run, slower(3), "after-full", "single")
    found = analyse(run)
    p95 = {arm: level(found, arm, "single").p95 for arm in ("before", *AFTER)}
    ms = {arm: f"{float(f'{own.value:.3g}'):g} ms" for arm, own in p95.items() if own}
    assert ms["before"].startswith("3")
    start = f"1 request at a time: 95 of 100 requests were answered within {ms['before']} before, "
    assert found.headline.startswith(start + f"{ms['after-index']} with the seven indexes (")
    assert f"{ms['after-full']} with the seven indexes and the pooled handler (" in found.headline
    times = [float(said) for said in re.findall(r"\((\S+) times as fast, ", found.headline)]
    assert times == pytest.approx([6, 4], rel=0.02)
    assert found.headline.endswith("; no unexpected outcomes in 1,056 requests; 28 of 28 functional checks passed.")


def test_the_headlines_interval_encloses_its_estimate(run: Bundle) -> None:
    change(run, lambda r: slower((0.9, 1.1)[r.block % 2])(r), "after-index")
    said = re.search(r"seven indexes \((\S+) times as fast, 95 % interval (\S+) to (\S+)\)", analyse(run).headline)
    assert said
    value, lo, hi = map(float, said.groups())
    assert lo < value < hi


def test_the_headline_says_slower_where_it_is(run: Bundle) -> None:
    change(run, slower(6), "after-index")
    assert "with the seven indexes (3 times as slow, 95 % interval " in analyse(run).headline


def test_where_it_was_measured_is_held_against_it(run: Bundle) -> None:
    embedded, network = analyse(run).caveat_texts[-2:]
    assert embedded.startswith("Measured on embedded PostgreSQL 18.4 that shares 2 cores ")
    assert network.startswith("There is no network between service and database (--rtt-ms 0)")
    run.run.parameters.rtt_ms = 20.0
    run.run.server = ServerRecord(kind="external")
    network = analyse(run).caveat_texts[-1]
    assert network.startswith("A round trip of 20 ms was added between service and database")


def test_what_was_left_out_and_what_failed_while_warming_up_is_said(run: Bundle) -> None:
    run.run.left_out = {"arms": [], "scenarios": ["ten", "sustained"]}
    run.run.blocks[0].warm_up_failures = {"before": 0, "after-full": 3}
    said = analyse(run).caveat_texts
    assert "Not measured in this run: scenarios ten, sustained." in said
    assert "after-full: 3 requests of the warm-up failed; they are not among the errors." in said


def test_what_so_few_requests_cannot_say_of_the_error_rate_is_said(run: Bundle) -> None:
    said = [
        line
        for line in analyse(run).caveat_texts
        if "too few requests to rule out an error rate of 0.1 % to 1.2 %" in line
    ]
    assert [line.split(":")[0] for line in said] == AFTER
    tuned(run, "thresholds", error_rate=0.5)
    assert not [line for line in analyse(run).caveat_texts if "to rule out an error rate" in line]


def test_a_run_that_left_load_levels_out_is_never_a_go(run: Bundle) -> None:
    assert analyse(run).decision.outcome is Outcome.HOLDS
    run.run.left_out = {"arms": ["after-full"], "scenarios": []}
    assert analyse(run).decision.outcome is Outcome.HOLDS
    run.run.left_out = {"arms": [], "scenarios": ["ten"]}
    found = analyse(run).decision
    assert found.outcome is Outcome.UNPROVEN
    assert found.reasons[0] == "not every load level was measured: ten left out"


def test_an_arm_whose_requests_all_fail_is_an_invalid_comparison_and_a_no_go(run: Bundle) -> None:
    change(run, failing(10_000), "after-full")
    found = analyse(run)
    assert compared(found, "after-full", "burst").verdict is Verdict.INVALID
    assert found.decision.outcome is Outcome.BROKEN


def test_a_latency_near_the_floor_is_held_against_its_gain(run: Bundle) -> None:
    change(run, slower(10), FLOOR, "burst")  # 10 ms: after-full takes 25
    near = [line for line in analyse(run).caveat_texts if "what the client alone takes" in line]
    assert len(near) == 1
    assert near[0].startswith("after-full: less than 3 times") and near[0].endswith("burst of book (26.2 ms).")


# Damage


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.data())
def test_a_run_that_lacks_anything_is_analysed_or_refused_in_one_line(made: Path, data: st.DataObject) -> None:
    run = json.loads((made / "run.json").read_text())
    inside = data.draw(st.sampled_from([run, *(v for v in run.values() if isinstance(v, dict) and v)]))
    inside.pop(data.draw(st.sampled_from(sorted(inside))))
    try:
        assert analyse(Bundle(made, run)).headline
    except PerfkitError as error:
        assert "\n" not in str(error) and "; expected " in str(error)


def test_a_round_without_its_columns_is_refused(run: Bundle) -> None:
    path = run.path / "rounds" / "000.burst.before.json"
    path.write_text(path.read_text().replace('"columns"', '"rows"'))
    with pytest.raises(
        BundleError, match=r"/000.burst.before.json: not a round \(columns: Field required\); expected "
    ):
        analyse(run)


def test_a_round_with_columns_of_different_lengths_is_refused(run: Bundle) -> None:
    change(run, lambda r: with_columns(r, user=[1]), "before", "burst", range(1))
    with pytest.raises(BundleError, match=r"/000.burst.before.json: columns of different lengths; expected "):
        analyse(run)


def test_a_run_that_lost_a_round_or_a_plan_is_refused(run: Bundle) -> None:
    lost = run.path / "rounds" / "003.burst.after-index.json"
    kept = lost.read_text()
    lost.unlink()
    with pytest.raises(BundleError, match="no round of burst on after-index in block 3; expected every round"):
        analyse(run)
    lost.write_text(kept)
    shutil.rmtree(run.path / "plans" / "before")
    with pytest.raises(BundleError, match=r"no plan of \w+ on before; expected that of every query"):
        analyse(run)


# Failures, searches, one arm, long rounds


def test_when_the_arm_after_fails_more_errors_lead_and_it_is_not_called_faster(run: Bundle) -> None:
    change(run, failing(6), "after-index", "burst")
    found = analyse(run)
    (errors,) = [e for e in found.error_changes if e.significant]
    assert (errors.after, errors.scenario) == ("after-index", "burst")
    assert errors.difference.value == pytest.approx(6 / 30) and errors.fewer_answered == pytest.approx(0.2)
    assert verdicts(found)["after-index", "burst"] == {"invalid"}
    comparison = found.comparison("after-index", "burst")
    assert comparison and comparison.qualification == "of answered requests; 20 % fewer on after-index"
    assert found.decision.outcome is Outcome.BROKEN
    assert any("not failing more" in r.name and r.outcome is Outcome.BROKEN for r in found.decision.rules)


def test_when_before_fails_more_an_arm_may_still_be_faster(run: Bundle) -> None:
    change(run, failing(6), "before", "burst")
    found = analyse(run)
    assert verdicts(found)["after-index", "burst"] == {"faster"}
    assert all(r.outcome is Outcome.HOLDS for r in found.decision.rules if r.name == "not failing more")


def searching(run: Bundle, rates: dict[str, float], limited: float = 0.0) -> Analysis:
    """The burst as a search that found these rates, within a few percent."""
    scenarios = [
        s.model_copy(update={"rate": 10.0, "search": config.RateSearch(most=1000)}) if s.name == "burst" else s
        for s in run.run.scenarios
    ]
    run.run.scenarios = scenarios

    def how(r: Round) -> Round:
        rate = rates[r.arm] * (1 + 0.02 * (r.block % 3))
        return replace(r, health={**r.health, "rate": rate, "limited": limited})

    change(run, how, scenario="burst")
    return analyse(run)


RATES = {"before": 100.0, "control": 100.0, "after-index": 300.0, "after-full": 50.0, "floor": 1.0}


def test_a_search_is_compared_by_the_rate_that_held_and_more_is_better(run: Bundle) -> None:
    found = [c for c in searching(run, RATES).comparisons if c.scenario == "burst"]
    assert {c.metric for c in found} == {"throughput"}
    said = {c.after: (str(c.verdict), c.ratio and round(c.ratio.value, 2)) for c in found}
    assert said["after-index"] == ("faster", 3) and said["after-full"] == ("slower", 0.5)


def test_a_search_that_ended_before_the_target_did_proves_nothing(run: Bundle) -> None:
    found = [c for c in searching(run, RATES, limited=1.0).comparisons if c.scenario == "burst"]
    assert {str(c.verdict) for c in found if c.after == "after-index"} == {"inconclusive"}
    assert {c.qualification for c in found} == {"both searches were limited"}


def test_a_search_in_which_no_rate_held_has_no_ratio_and_breaks_the_rule(run: Bundle) -> None:
    found = searching(run, {**RATES, "after-full": 0.0})
    (comparison,) = [c for c in found.comparisons if (c.after, c.scenario) == ("after-full", "burst")]
    assert comparison.ratio is None and found.decision.outcome is Outcome.BROKEN


def test_a_run_of_one_arm_is_judged_by_its_thresholds_alone(run: Bundle) -> None:
    run.run.roles = {"before": "before"}
    run.run.parameters.arms = ["before"]
    run.run.arms = {"before": run.run.arms["before"]}
    for block in run.run.blocks:
        block.state = {"before": {}}
    for path in (run.path / "rounds").glob("*.json"):
        if path.name.split(".")[2] not in ("before", "floor"):
            path.unlink()
    found = analyse(run)
    assert found.comparisons == () and {r.arm for r in found.decision.rules} == {"before"}
    assert found.arm_decisions.keys() == {"before"}


def test_requests_beyond_the_limit_count_like_those_with_times(run: Bundle) -> None:
    before = analyse(run).level("before", "burst")

    def how(r: Round) -> Round:
        rest = Rest()
        for _ in range(500):
            rest.add(0, int(200e6), "ok")
        rest.add(0, 1, "timeout")
        return replace(r, rest={"book": rest.record})

    change(run, how, "before", "burst")
    after = analyse(run).level("before", "burst")
    assert before and after and after.p50 and after.p95
    assert (after.n, after.sent, after.errors) == (before.n + 3000, before.sent + 3006, before.errors + 6)
    assert after.p50.value == pytest.approx(200, rel=1e-3) and after.p99


def test_rounds_that_are_invalid_are_counted_with_their_reason(run: Bundle) -> None:
    change(run, lambda r: replace(r, health={**r.health, "worker_cpu": 0.97}), "before", "burst", range(3))
    level = analyse(run).level("before", "burst")
    assert level and level.fault.startswith("3 of 6 rounds invalid: ") and "97 %" in level.fault
