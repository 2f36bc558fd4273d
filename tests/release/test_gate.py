"""The decision to ship: what lets it through, what forbids it, what leaves it open; as the checklist has it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_run, tuned

from perfkit.analysis.policy import answers_needed, blocks_needed, error_rule, latency_rule, throughput_rule
from perfkit.analysis.results import Analysis, ErrorGroup
from perfkit.analysis.run_analysis import analyse
from perfkit.base.judgement import Outcome, worst
from perfkit.base.stats import Interval
from perfkit.config.judging import Release, Thresholds
from perfkit.release.decision import DecisionRecord, GateItem, RecordedAnswer
from perfkit.release.gate import WatchState, judge
from perfkit.runs.records import Bundle, RunRecord

ARMS = ("after-index", "after-full")
ALIVE = WatchState("watch", True, "4 s old", "The last interval ended 4 s ago.")
DEAD = WatchState("watch", False, "90 s old", "It is dead.")
READY = RecordedAnswer("Team ready for launch", "yes", "Ops Lead", "2026-01-15T09:00:00Z")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("gate") / "run").path


@pytest.fixture(scope="module")
def analysed(folder: Path) -> tuple[dict[str, Any], Analysis]:
    bundle = Bundle.open(folder)
    bundle.run.config.release = Release(monitoring=True)
    return bundle.run, analyse(bundle)


@pytest.fixture
def case(analysed: tuple[dict[str, Any], Analysis]) -> Case:
    run, analysis = analysed
    return Case(run.model_copy(deep=True), analysis)


class Case:
    """A run that is a GO, one thing of which is changed."""

    def __init__(self, run: RunRecord, analysis: Analysis) -> None:
        self.run, self.analysis = run, analysis
        self.arms: tuple[str, ...] = ARMS
        self.answers: tuple[RecordedAnswer, ...] = (READY,)
        self.watched: WatchState | None = ALIVE

    @property
    def gate(self) -> DecisionRecord:
        return judge(self.run, self.analysis, self.arms, self.answers, self.watched)

    def rule(self, name: str, **changes: Any) -> None:
        """Change the first rule of that name on an arm to be shipped."""
        rules = list(self.analysis.decision.rules)
        place = next(i for i, rule in enumerate(rules) if rule.name == name and rule.arm == "after-full")
        rules[place] = replace(rules[place], **changes)
        self.analysis = replace(self.analysis, decision=replace(self.analysis.decision, rules=tuple(rules)))

    def fail(self, group: str, arm: str = "after-full") -> None:
        next(check for check in self.run.checks[arm] if check.group == group).passed = False

    def record(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self.run, name, value)

    def errors(self, by_round: int, rounds: int, of: int = 100) -> None:
        """So many requests fail in each of some rounds, of 20 rounds."""
        failed = [(by_round, of)] * rounds
        found = error_rule("after-full", [*failed, *[(0, of)] * (20 - rounds)], 0.001)
        self.rule("error rate", value=found.value, outcome=found.outcome, text=found.text)

    def trouble(self, outcome: str, scenario: str = "queries", arm: str = "after-full") -> None:
        group = ErrorGroup(arm, scenario, outcome, 3, "the server said so")
        self.analysis = replace(self.analysis, errors=(group,))

    def set(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


def item(gate: DecisionRecord, name: str) -> GateItem:
    return next(own for own in gate.items if own.name == name)


# The checklist's own lists, line by line

GO_IF: list[tuple[str, str, Callable[[Case], None]]] = [
    ("Smoke tests pass (3/3)", "smoke checks", lambda c: c.run.checks.pop("after-full")),
    ("UAT tests pass (4/4)", "acceptance checks", lambda c: c.run.checks.pop("after-full")),
    ("Performance tests show 0% errors", "Error rate", lambda c: c.errors(3, 1)),
    ("(a benefit)", "Benefit", lambda c: c.rule("benefit", outcome=Outcome.UNPROVEN, needs="more.")),
    ("(a benefit of each)", "Benefit", lambda c: c.rule("benefit", outcome=Outcome.ABSENT)),
    ("(one accident)", "Database trouble", lambda c: c.trouble("sqlstate_57P01")),
    ("(one accident)", "Database trouble", lambda c: c.trouble("sqlstate_53300")),
    ("(one accident)", "Database trouble", lambda c: c.trouble("refused")),
    ("Monitoring dashboard ready", "Monitoring", lambda c: c.set(watched=None)),
    (
        "Monitoring dashboard ready",
        "Monitoring",
        lambda c: c.set(watched=WatchState("watch", False, "90 s old", "It is dead.")),
    ),
    ("(the run is whole)", "Run complete", lambda c: c.record(status="interrupted")),
    ("(the run is whole)", "Run complete", lambda c: c.record(left_out={"scenarios": ["burst"]})),
    ("(a latency holds)", "p95 latency", lambda c: c.rule("p95", outcome=Outcome.UNPROVEN, needs="more.")),
    ("(nothing invalid)", "Not slower than before", lambda c: c.rule("not slower", outcome=Outcome.UNPROVEN)),
    ("(people answered)", "Team ready for launch", lambda c: c.set(answers=(replace(READY, answer="", by=""),))),
]

NO_GO_IF: list[tuple[str, str, Callable[[Case], None]]] = [
    ("Any smoke/UAT test fails", "smoke checks", lambda c: c.fail("smoke")),
    ("Any smoke/UAT test fails", "acceptance checks", lambda c: c.fail("acceptance")),
    ("Error rate > 0.1%", "Error rate", lambda c: c.errors(1, 12)),
    ("Database issues detected", "Database trouble", lambda c: c.trouble("sqlstate_XX001", "burst")),
    ("Database issues detected", "Database trouble", lambda c: c.trouble("sqlstate_58030")),
    ("Database issues detected", "Database trouble", lambda c: setattr(c.run.arms["after-full"], "plans", ["gone"])),
    ("Database issues detected", "Database trouble", lambda c: c.record(status="failed", error="ServerError")),
    ("(an index is missing)", "Indexes valid", lambda c: c.rule("indexes valid", value=1.0, outcome=Outcome.BROKEN)),
    ("Team not ready for launch", "Team ready for launch", lambda c: c.set(answers=(replace(READY, answer="no"),))),
    ("(a threshold is broken)", "p95 latency", lambda c: c.rule("p95", value=900.0, outcome=Outcome.BROKEN)),
    ("(slower)", "Not slower than before", lambda c: c.rule("not slower", outcome=Outcome.BROKEN)),
]


def test_a_run_of_which_everything_holds_is_a_go(case: Case) -> None:
    gate = case.gate
    assert gate.outcome is Outcome.HOLDS
    assert gate.reasons == (f"All {len(gate.items)} items hold.",)
    assert [own.value for own in gate.items if own.group == "functional checks"] == [
        "3 of 3 on each of 2 arms",
        "4 of 4 on each of 2 arms",
    ]


@pytest.mark.parametrize(("line", "name", "change"), GO_IF)
def test_what_a_go_needs_and_lacks_leaves_the_decision_open(
    case: Case, line: str, name: str, change: Callable[[Case], None]
) -> None:
    change(case)
    gate = case.gate
    assert (gate.outcome, item(gate, name).outcome) == (Outcome.UNPROVEN, Outcome.UNPROVEN), line
    assert item(gate, name).reason in gate.reasons


@pytest.mark.parametrize(("line", "name", "change"), NO_GO_IF)
def test_each_of_these_forbids_it_whatever_else_is_open(
    case: Case, line: str, name: str, change: Callable[[Case], None]
) -> None:
    case.watched = None
    change(case)
    gate = case.gate
    assert (gate.outcome, item(gate, name).outcome) == (Outcome.BROKEN, Outcome.BROKEN), line
    assert gate.reasons == (item(gate, name).reason,)
    assert item(gate, name).no_go_if


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("errors under the limit", lambda c: c.errors(1, 1)),
        ("a statement that took too long", lambda c: c.trouble("sqlstate_57014")),
        ("a deadlock, which counts as an error", lambda c: c.trouble("sqlstate_40P01")),
        ("a service that refused a request", lambda c: c.trouble("refused", "burst")),
        ("trouble on an arm that is not shipped", lambda c: c.trouble("sqlstate_57P01", arm="before")),
        ("a check that fails before the change", lambda c: c.fail("smoke", "before")),
        ("an inconclusive comparison", lambda c: c.rule("not slower", value=1.01)),
    ],
)
def test_what_forbids_nothing(case: Case, name: str, change: Callable[[Case], None]) -> None:
    change(case)
    assert case.gate.outcome is Outcome.HOLDS, name


def test_only_the_arms_to_be_shipped_decide(case: Case) -> None:
    case.fail("smoke", "after-full")
    assert case.gate.outcome is Outcome.BROKEN
    assert item(case.gate, "smoke checks").value == "3 of 3 on after-index, 2 of 3 on after-full"
    case.arms = ("after-index",)
    assert case.gate.outcome is Outcome.HOLDS
    assert item(case.gate, "smoke checks").value == "3 of 3"


def test_nothing_to_ship_is_never_a_go(case: Case) -> None:
    case.arms = ()
    assert case.gate.outcome is Outcome.UNPROVEN
    assert worst([]) is Outcome.UNPROVEN


def test_without_a_release_table_neither_people_nor_a_watch_are_asked_for(case: Case) -> None:
    case.run.config.release = Release()
    case.answers, case.watched = (), None
    assert case.gate.outcome is Outcome.HOLDS
    assert {own.group for own in case.gate.items} == {"the run", "functional checks", "performance", "database"}


def test_an_item_of_many_rules_says_three_and_counts_the_rest(case: Case) -> None:
    rules = [
        replace(rule, outcome=Outcome.BROKEN, value=900.0) if rule.name == "p95" else rule
        for rule in case.analysis.decision.rules
    ]
    case.analysis = replace(case.analysis, decision=replace(case.analysis.decision, rules=tuple(rules)))
    found = item(case.gate, "p95 latency")
    assert found.value == "900 ms at most"
    assert found.text.endswith(" And 7 more.")


def test_hostile_names_are_made_visible_in_an_items_name(case: Case) -> None:
    case.answers = (replace(READY, question="Ready\x1b[31m?"),)
    assert "Ready⟨1B⟩[31m?" in [own.name for own in case.gate.items]


def test_server_errors_that_break_the_limit_forbid_it_as_database_trouble_too(case: Case) -> None:
    case.errors(5, 20)
    case.trouble("sqlstate_53300")
    assert case.gate.outcome is Outcome.BROKEN
    assert item(case.gate, "Database trouble").outcome is Outcome.BROKEN


def test_arms_that_all_lack_a_benefit_are_no_benefit_whatever_is_open(case: Case) -> None:
    case.watched = None
    case.rule("benefit", outcome=Outcome.ABSENT, text="after-full: no gain.")
    assert case.gate.outcome is Outcome.UNPROVEN
    case.arms = ("after-full",)
    gate = case.gate
    assert (gate.outcome, gate.reasons) == (Outcome.ABSENT, ("after-full: no gain.",))


@given(st.lists(st.sampled_from(Outcome), min_size=1, max_size=8))
def test_one_broken_item_is_a_no_go_one_unproven_leaves_it_open(outcomes: list[Outcome]) -> None:
    expected = Outcome.HOLDS
    if Outcome.UNPROVEN in outcomes:
        expected = Outcome.UNPROVEN
    if Outcome.ABSENT in outcomes:
        expected = Outcome.ABSENT
    if Outcome.BROKEN in outcomes:
        expected = Outcome.BROKEN
    assert worst(outcomes) is expected


def _no_change(_: Bundle) -> None: ...


def _fails(bundle: Bundle) -> None:
    bundle.run.checks["after-index"][0].passed = False


def _stopped(bundle: Bundle) -> None:
    bundle.run.status = "interrupted"


def _strict(bundle: Bundle) -> None:
    tuned(bundle, "thresholds", p50_ms=1.0, p99_ms=1e6, throughput=1e6)


def _unreached(bundle: Bundle) -> None:
    tuned(bundle, "thresholds", p99_ms=1e6)


@pytest.mark.parametrize("change", [_no_change, _fails, _stopped, _strict, _unreached])
def test_the_items_of_a_run_alone_decide_as_its_rules_do(
    folder: Path, tmp_path: Path, change: Callable[[Bundle], None]
) -> None:
    bundle = Bundle.open(Path(shutil.copytree(folder, tmp_path / "run")))
    change(bundle)
    analysis = analyse(bundle)
    gate = judge(bundle.run, analysis, ARMS, (), None)
    assert gate.outcome is analysis.decision.outcome
    rules = [rule for rule in analysis.decision.rules if rule.arm in ARMS]
    for outcome in (Outcome.BROKEN, Outcome.UNPROVEN):
        if any(rule.outcome is outcome for rule in rules):
            assert any(own.outcome is outcome for own in gate.items)


# Thresholds, and what would prove them


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"p50_ms": 600, "p95_ms": 500}, "p50_ms = 600 of at most p95_ms = 500"),
        ({"p95_ms": 900, "p99_ms": 800}, "p95_ms = 900 of at most p99_ms = 800"),
        ({"p50_ms": 900, "p99_ms": 800}, "p50_ms = 900 of at most p99_ms = 800"),
        ({"p50_ms": 1, "p95_ms": 3, "p99_ms": 2}, "p95_ms = 3 of at most p99_ms = 2"),
    ],
)
def test_thresholds_that_contradict_one_another_are_one_line(given: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Thresholds.model_validate(given)
    assert caught.value.error_count() == 1  # type: ignore[attr-defined]


def test_equal_thresholds_do_not_contradict() -> None:
    assert Thresholds(p50_ms=5, p95_ms=5, p99_ms=5).p99_ms == 5


def test_each_threshold_becomes_a_rule_of_every_load_level_and_throughput_one_of_an_arm(folder: Path) -> None:
    bundle = Bundle.open(folder)
    bundle.run.config.thresholds = Thresholds(p50_ms=400, p99_ms=900, throughput=10, error_rate=0.001)
    rules = [rule for rule in analyse(bundle).decision.rules if rule.arm == "after-full"]
    names = [rule.name for rule in rules]
    assert [names.count(name) for name in ("p50", "p95", "p99", "throughput")] == [5, 0, 5, 1]
    open_ = [rule for rule in rules if rule.outcome is Outcome.UNPROVEN]
    assert {rule.name for rule in open_} == {"p99"}
    assert all(rule.needs for rule in open_)


@pytest.mark.parametrize(
    ("interval", "outcome", "sentence"),
    [
        (Interval(40, 35, 46, 90, 6), "holds", "reach 30 (95 % interval 35 to 46)."),
        (Interval(25, 21, 29, 90, 6), "broken", "are under 30 (95 % interval 21 to 29)."),
        (Interval(40, 25, 64, 90, 6), "unproven", "reach 30, but their lower bound does not (95 % interval 25 to 64)."),
        (
            Interval(29, 25, 34, 90, 6),
            "unproven",
            "are under 30, but their upper bound is not (95 % interval 25 to 34).",
        ),
        (Interval(40, 0, float("inf"), 90, 1), "unproven", "lower bound does not (one round sets no lower bound)."),
        (None, "unproven", "no throughput is known because a round answered no request."),
    ],
)
def test_a_throughput_holds_and_breaks_by_its_whole_interval(
    interval: Interval | None, outcome: str, sentence: str
) -> None:
    found = throughput_rule("after-full", "ten", interval, 30)
    assert found.outcome == outcome and found.text.endswith(sentence)


def test_what_is_unproven_says_about_how_many_blocks_it_would_take() -> None:
    # log(520/480) is 1.96 times log(500/480): 12 blocks become 12 x 3.84
    found = latency_rule("after-full", "burst", 95, Interval(480, 440, 520, 400, 12), 500, 400)
    assert found.needs == "about 47 blocks in all, if the spread stays as it is."
    assert found.reason.endswith("Needed: about 47 blocks in all, if the spread stays as it is.")


def test_a_percentile_without_its_samples_says_how_many_are_missing() -> None:
    assert latency_rule("a", "single", 99, None, 500, 84, rounds=6).needs == (
        "284 more answered requests, about 27 blocks in all."
    )
    assert answers_needed(95, 0, 6) == "72 answered requests or more."


def test_an_estimate_at_its_limit_is_not_promised_to_be_proven() -> None:
    assert (
        blocks_needed(Interval(499.99, 400, 600, 100, 12), 500)
        == "more than 1000 blocks: the estimate is too close to the limit."
    )
    assert blocks_needed(Interval(400, 0, float("inf"), 100, 1), 500) == "more blocks (now 1) to set a bound."


@given(st.floats(1, 1e4), st.floats(1.001, 3), st.floats(1.001, 3), st.integers(2, 50))
def test_more_blocks_than_there_were_are_asked_for(value: float, room: float, spread: float, rounds: int) -> None:
    limit, end = value * room, value * room * spread
    said = blocks_needed(Interval(value, value / spread, end, 100, rounds), limit)
    number = int("".join(c for c in said if c.isdigit()))
    assert number > rounds
