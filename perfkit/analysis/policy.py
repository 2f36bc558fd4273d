"""Rules and decision: each threshold judged on each arm, the evidence that an unproven rule needs, GO or NO-GO.

Pure functions. Every rule is judged for every arm; only the rules of the arms after the change decide.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from perfkit.analysis.results import Changes, Comparison, Summary
from perfkit.base.judgement import Outcome, Verdict
from perfkit.base.stats import MIN_SAMPLES, Counts, Difference, Interval, Ratio, error_bound, share
from perfkit.runs.records import RunRecord
from perfkit.runs.rounds import RoundReading

MOST = 1000  # blocks; a larger need is reported as "more than"


def samples_needed(q: int, have: int, rounds: int) -> str:
    """Return the number of samples that a percentile lacks, and of blocks that would have them."""
    lacking = MIN_SAMPLES[q] - have
    if not have:
        return f"{lacking} answered requests or more."
    blocks = math.ceil(MIN_SAMPLES[q] * rounds / have) if rounds else 0
    about = f", about {blocks} blocks in all" if blocks > rounds else ""
    return f"{lacking} more answered requests{about}."


def fewer_errors(errors: int, limit: float) -> str:
    """Return the number of requests that would bring an error rate under its limit if no further request failed."""
    return f"another run, or more than {math.floor(errors / limit):,} requests in all with no further error."


def bound_needed(interval: Interval, limit: float) -> str:
    """Estimate the number of blocks until an interval lies wholly on its estimate's side of a limit.

    Assumes that the estimate stays and that the distance of the ends, in logs, shrinks with the square root of the
    number of blocks.
    """
    end = interval.hi if interval.value < limit else interval.lo
    if not 0 < end < math.inf or interval.value <= 0:
        return f"more blocks (now {interval.rounds}) to set a bound."
    room, reach = (abs(math.log(value / interval.value)) for value in (limit, end))
    blocks = math.ceil(interval.rounds * (reach / room) ** 2) if room else MOST + 1
    if blocks > MOST:
        return f"more than {MOST} blocks: the estimate is too close to the limit."
    return f"about {max(blocks, interval.rounds + 1)} blocks in all, if the spread stays as it is."


def some(names: Iterable[str], most: int = 3) -> str:
    """Return the first of several names and the number of the others.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    every = list(names)
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")


_AGAIN = "another run"
_CLIENT = "rounds in which the client keeps up: less load, more processors for it, or pgbench."


BENEFIT = "benefit"  # the name of the rule on whether the change improves anything


WHEN: Mapping[Outcome, str] = {
    Outcome.BROKEN: (
        "a functional check failed; an index is missing or invalid; a threshold is broken by its whole interval; a "
        "comparison is slower; errors break their limit by the lower bound of their rate, or are significantly more "
        "frequent than before"
    ),
    Outcome.HOLDS: (
        "none of the above; every threshold holds by its bound; and there is a benefit: a comparison is faster, or a "
        'threshold that was broken before holds now. With `need = "none"` no benefit is needed'
    ),
    Outcome.ABSENT: (
        "none of the reasons for NO-GO; and every comparison excludes a gain above `worth` (by default 10 %), or the "
        "change is an index that no plan of this workload uses (other workloads may)"
    ),
    Outcome.UNPROVEN: "otherwise; the reasons name the evidence that is needed",
}
"""When each decision is made; the first that applies. docs/method.md quotes these texts."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One threshold judged on one arm; `scenario` is empty if the rule is about the whole arm."""

    arm: str
    scenario: str
    name: str
    value: float | None
    bound: float | None  # the end of the interval that has to hold; the other end if even that one breaks the rule
    limit: float | None
    unit: str  # of value, bound and limit
    outcome: Outcome
    text: str  # one plain sentence with its numbers
    item: str = ""  # the request or query, if a scenario sends several
    needs: str = ""  # the evidence that an unproven rule needs

    @property
    def reason(self) -> str:
        """The text, and for an unproven rule the evidence that it needs."""
        return f"{self.text} Needed: {self.needs}" if self.needs else self.text


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome, the rules of every arm, and the texts of the rules that led to the outcome."""

    outcome: Outcome
    rules: tuple[Rule, ...]
    reasons: tuple[str, ...]


def latency_rule(
    arm: str,
    scenario: str,
    q: int,
    interval: Interval | None,
    limit_ms: float,
    samples: int,
    item: str = "",
    rounds: int = 0,
) -> Rule:
    """Judge a percentile in ms: its interval's upper end must be under the limit; the lower end breaks the rule."""
    name, where = f"p{q}", f"{arm}, {scenario}{f' of {item}' if item else ''}"
    if interval is None:
        text = f"{where}: {name} needs {MIN_SAMPLES[q]} samples, has {samples}."
        lacking = samples_needed(q, samples, rounds)
        return Rule(arm, scenario, name, None, None, limit_ms, "ms", Outcome.UNPROVEN, text, item, lacking)
    value, bound = interval.value, interval.hi
    measured, limit, lacking = f"{where}: {name} {number(value)} ms", f"{number(limit_ms)} ms", ""
    if interval.lo >= limit_ms:
        bound = interval.lo
        outcome, text = Outcome.BROKEN, f"{measured} is not under {limit}{_range(interval)}."
    elif bound < limit_ms:
        outcome, text = Outcome.HOLDS, f"{measured} is under {limit}{_range(interval)}."
    else:
        outcome, lacking = Outcome.UNPROVEN, bound_needed(interval, limit_ms)
        text = f"{measured} is under {limit}, but its upper bound is not{_range(interval)}."
        if value >= limit_ms:
            text = f"{measured} is not under {limit}, but its lower bound is{_range(interval)}."
    return Rule(arm, scenario, name, value, bound, limit_ms, "ms", outcome, text, item, lacking)


def throughput_rule(arm: str, scenario: str, interval: Interval | None, least: float, item: str = "") -> Rule:
    """Judge throughput: its interval's lower end must reach the limit; the upper end breaks the rule."""
    where, unit = f"{arm}, {scenario}{f' of {item}' if item else ''}", "per second"
    if interval is None:
        text = f"{where}: no throughput is known because a round answered no request."
        return Rule(arm, scenario, "throughput", None, None, least, unit, Outcome.UNPROVEN, text, item)
    value, bound, lacking = interval.value, interval.lo, ""
    measured = f"{where}: {number(value)} requests per second, the most of its load levels,"
    numbers = f"(95 % interval {_span(interval.lo, interval.hi)})" if bound else "(one round sets no lower bound)"
    if interval.hi < least:
        bound = interval.hi
        outcome, text = Outcome.BROKEN, f"{measured} are under {number(least)} {numbers}."
    elif bound >= least:
        outcome, text = Outcome.HOLDS, f"{measured} reach {number(least)} {numbers}."
    else:
        outcome, lacking = Outcome.UNPROVEN, bound_needed(interval, least)
        text = f"{measured} reach {number(least)}, but their lower bound does not {numbers}."
        if value < least:
            text = f"{measured} are under {number(least)}, but their upper bound is not {numbers}."
    return Rule(arm, scenario, "throughput", value, bound, least, unit, outcome, text, item, lacking)


def error_rule(arm: str, rounds: Counts, limit: float, kinds: Sequence[str] = ()) -> Rule:
    """Judge the pooled share of unexpected outcomes, with an interval by rounds; `kinds` name the outcomes.

    The lower end breaks the limit, so one stray error breaks nothing, except a limit of 0. The upper end never
    blocks a GO: proving that a rate is far below any limit takes too many requests.
    """
    rate_interval = share(rounds)
    if rate_interval is None:
        text = f"{arm}: no request was counted, so the error rate is not known."
        return Rule(arm, "", "error rate", None, None, limit, "share", Outcome.UNPROVEN, text, needs=f"{_AGAIN}.")
    errors, n, rate, lacking = sum(failed for failed, _ in rounds), rate_interval.n, rate_interval.value, ""
    if not errors:
        bound = error_bound(0, n)
        text = f"{arm}: none of {n:,} requests failed. The true error rate is below {percent(bound)} (95 % confidence)."
        return Rule(arm, "", "error rate", 0.0, bound, limit, "share", Outcome.HOLDS, text)
    ends = f"95 % interval {percent(rate_interval.lo)} to {percent(rate_interval.hi)}"
    failures, named = (
        f"{arm}: {errors:,} of {n:,} requests failed, {percent(rate)}",
        f": {some(kinds)}." if kinds else ".",
    )
    if rate_interval.lo >= limit:
        outcome, text = Outcome.BROKEN, f"{failures} ({ends}); the limit is {percent(limit)}{named}"
    elif rate < limit:
        outcome, text = Outcome.HOLDS, f"{failures}; the limit is {percent(limit)}{named}"
    else:
        outcome, lacking = Outcome.UNPROVEN, fewer_errors(errors, limit)
        text = f"{failures} ({ends}); too few requests to say whether the limit of {percent(limit)} is broken{named}"
    return Rule(arm, "", "error rate", rate, rate_interval.hi, limit, "share", outcome, text, needs=lacking)


def health_rule(arm: str, scenario: str, fault: str) -> Rule:
    """Leave unproven what a client that was too slow measured: its numbers say nothing about the server."""
    text = f"{arm}, {scenario}: {fault}."
    return Rule(arm, scenario, "client kept up", None, None, None, "", Outcome.UNPROVEN, text, needs=_CLIENT)


def checks_rule(arm: str, passed: int, total: int, failed_names: Sequence[str]) -> Rule:
    """Judge the functional checks: all must pass."""
    if total == 0:
        outcome, text = Outcome.UNPROVEN, f"{arm}: no functional check ran."
    elif passed < total:
        outcome = Outcome.BROKEN
        text = f"{arm}: {total - passed} of {total} functional checks failed: {', '.join(failed_names)}."
    else:
        outcome, text = Outcome.HOLDS, f"{arm}: all {total} functional checks passed."
    lacking = "" if total else "a run of the checks on this arm."
    return Rule(arm, "", "checks", float(passed), None, float(total), "checks", outcome, text, needs=lacking)


def index_rule(arm: str, expected: Sequence[str], valid: Sequence[str]) -> Rule:
    """Judge the indexes of an arm: all must exist and be valid."""
    missing = [name for name in expected if name not in valid]
    if missing:
        outcome = Outcome.BROKEN
        text = f"{arm}: {len(missing)} of {len(expected)} indexes missing or invalid: {', '.join(missing)}."
    else:
        outcome = Outcome.HOLDS
        text = f"{arm}: all {len(expected)} indexes are valid." if expected else f"{arm}: no index to build."
    present = float(len(expected) - len(missing))
    return Rule(arm, "", "indexes valid", present, None, float(len(expected)), "indexes", outcome, text)


def comparison_rule(
    arm: str, scenario: str, metric: str, verdict: Verdict, ratio: Ratio | None, qualification: str = ""
) -> Rule:
    """Judge a comparison: it must not be slower than before; an inconclusive one does not block a GO."""
    what = f"{arm}, {scenario}: {metric}"
    numbers = f" ({number(ratio.value)} of before, 95 % interval {_span(ratio.lo, ratio.hi)})" if ratio else ""
    numbers += f", {qualification}" if qualification else ""
    why = qualification if ratio and qualification else "there are too few healthy rounds"
    outcome, text = {
        Verdict.FASTER: (Outcome.HOLDS, f"{what} is faster{numbers}."),
        Verdict.EQUIVALENT: (Outcome.HOLDS, f"{what} is equivalent{numbers}."),
        Verdict.SLOWER: (Outcome.BROKEN, f"{what} is slower{numbers}."),
        Verdict.INCONCLUSIVE: (Outcome.HOLDS, f"{what} is inconclusive{numbers}. This does not block a GO."),
        Verdict.INVALID: (Outcome.UNPROVEN, f"{what} cannot be compared: {why}."),
    }[verdict]
    value, bound = (ratio.value, ratio.hi) if ratio else (None, None)
    few = ratio is None or ratio.pairs < MIN_SAMPLES[50]
    lacking = f"{MIN_SAMPLES[50]} complete blocks or more." if few else _CLIENT
    lacking = lacking if outcome is Outcome.UNPROVEN else ""
    return Rule(arm, scenario, "not slower", value, bound, 1.0, "ratio", outcome, text, needs=lacking)


def more_errors_rule(arm: str, scenario: str, difference: Difference, significant: bool, item: str = "") -> Rule:
    """Judge the failures: an arm must not fail significantly more often than before, whatever the limit is."""
    where = f"{arm}, {scenario}{f' of {item}' if item else ''}"
    change, lo, hi = (percent(share) for share in (difference.value, difference.lo, difference.hi))
    numbers = f"by {change} of requests (95 % interval {lo} to {hi}, p = {number(difference.p_table)} over the table)"
    outcome, text = Outcome.HOLDS, f"{where}: the error rate differs {numbers}, which proves no increase."
    if significant and difference.value > 0:
        outcome, text = Outcome.BROKEN, f"{where}: fails more often than before, {numbers}."
    elif significant:
        text = f"{where}: fails less often than before, {numbers}."
    value, bound = difference.value, difference.hi
    return Rule(arm, scenario, "not failing more", value, bound, 0.0, "share", outcome, text, item)


def capacity_rule(arm: str, scenario: str, least: float, rounds: int, unheld: int) -> Rule:
    """Judge a search: its first rate must hold in every round; the rule is broken if the rate held in no round."""
    outcome = Outcome.HOLDS if not unheld else Outcome.BROKEN if unheld == rounds else Outcome.UNPROVEN
    rate = f"{number(least)} requests per second"
    text = f"{arm}, {scenario}: {rate} or more held in {rounds - unheld} of {rounds} rounds."
    if rounds == 0:
        outcome, text = Outcome.UNPROVEN, f"{arm}, {scenario}: no round searched for a rate."
    lacking = "" if outcome is not Outcome.UNPROVEN else f"{_AGAIN}, in which the rate holds in every round."
    counts = (float(rounds - unheld), None, float(rounds))
    return Rule(arm, scenario, "capacity", *counts, "rounds", outcome, text, needs=lacking)


def agreement_rule(arm: str, again: int, drifted: Sequence[str]) -> Rule:
    """Judge a sequential run: `before` at the end must agree with `before` at the start.

    `again` is the number of comparisons of the two; `drifted` names those that differ.
    """
    if again == 0:
        outcome, text = Outcome.UNPROVEN, f"{arm}: before was not measured again at the end."
    elif drifted:
        outcome = Outcome.UNPROVEN
        text = f"{arm}: before at the end differs from before at the start: {', '.join(drifted)}."
    else:
        outcome, text = Outcome.HOLDS, f"{arm}: before at the end agrees with before at the start."
    lacking = "" if outcome is Outcome.HOLDS else f"{_AGAIN} while nothing else changes the target."
    return Rule(arm, "", "befores agree", float(len(drifted)), None, 0.0, "differences", outcome, text, needs=lacking)


def decide(rules: Iterable[Rule], after_arms: Collection[str], *, compared: bool = True) -> Decision:
    """Return the decision that the rules of all after arms lead to (see `WHEN`).

    Every arm must be fit to ship: one NO-GO is a NO-GO, a GO needs all arms, and NO BENEFIT needs all arms as well.
    If nothing is `compared`, one arm is judged by its thresholds alone and needs no benefit.
    """
    every, arms = tuple(rules), tuple(dict.fromkeys(after_arms))
    by_arm = {arm: [rule for rule in every if rule.arm == arm] for arm in arms}
    deciding = [rule for arm in arms for rule in by_arm[arm]]
    reasons_by_outcome = {o: tuple(rule.reason for rule in deciding if rule.outcome is o) for o in Outcome}
    if broken := reasons_by_outcome[Outcome.BROKEN]:
        return Decision(Outcome.BROKEN, every, broken)
    useless = [arm for arm in arms if any(rule.outcome is Outcome.ABSENT for rule in by_arm[arm])]
    if useless and len(useless) == len(arms):
        return Decision(Outcome.ABSENT, every, reasons_by_outcome[Outcome.ABSENT])
    unjudged = [f"{arm}: no rule was judged." for arm in arms if not by_arm[arm]]
    if compared:
        without_benefit_rule = (
            arm for arm in arms if by_arm[arm] and not any(rule.name == BENEFIT for rule in by_arm[arm])
        )
        unjudged += [f"{arm}: its benefit was not judged." for arm in without_benefit_rule]
    some_useless = [f"{reason} Decide on the other arms without it." for reason in reasons_by_outcome[Outcome.ABSENT]]
    if reasons := (*some_useless, *reasons_by_outcome[Outcome.UNPROVEN], *unjudged):
        return Decision(Outcome.UNPROVEN, every, reasons)
    if not arms:
        return Decision(Outcome.UNPROVEN, every, ("No arm after the change was judged.",))
    return Decision(Outcome.HOLDS, every, tuple(f"{arm}: all {len(by_arm[arm])} rules hold." for arm in arms))


def _range(interval: Interval) -> str:
    if math.isinf(interval.hi):
        return f"; {interval.n} samples in {interval.rounds} rounds like these set no upper bound"
    return f" (95 % interval {_span(interval.lo, interval.hi)} ms)"


def _span(lo: float, hi: float) -> str:
    return f"{number(lo)} to {number(hi)}"


def percent(share: float) -> str:
    """Return a share of one as a percentage with two significant digits."""
    return f"{float(f'{100 * share:.2g}'):.10g} %"


def number(value: float) -> str:
    """Return four significant digits, without an exponent within the range of a latency."""
    return f"{float(f'{value:.4g}'):.10g}"


# The rules of a run: which of the rules above apply to its arms, and with which numbers.

_MESSAGE = 100  # characters of an error message in a reason


def rules_of(run: RunRecord, levels: Sequence[Summary], changes: Changes, read: RoundReading) -> list[Rule]:
    """Return the rules of every arm in the run's order, except the benefit."""
    rules: list[Rule] = []
    for arm in run.parameters.arms:
        rules += _level_rules(run, arm, levels)
        rules.append(_error_rule(run, arm, read))
        rules += _search_rules(run, arm, [level for level in levels if level.arm == arm])
        rules += _fact_rules(run, arm)
        rules += _comparison_rules(run, arm, changes)
    return rules


def gaps_of(run: RunRecord) -> list[str]:
    """Return why a run cannot lead to a GO: it did not finish, or load levels were left out."""
    reasons = []
    if run.status != "complete":
        reasons.append(f"the run is {run.status}: {run.message or 'it has not finished'}")
    alone = len(run.parameters.arms) == 1  # one arm is judged by what was measured: nothing is to be shipped
    if (left_out := run.left_out.get("scenarios")) and not alone:
        reasons.append(f"not every load level was measured: {', '.join(left_out)} left out")
    return reasons


def _level_rules(run: RunRecord, arm: str, levels: Sequence[Summary]) -> Iterator[Rule]:
    """Yield the rules on latency, throughput and the client's health."""
    thresholds, searches = run.config.thresholds, _rates(run)
    requests = {request.name for request in run.config.request} & {level.item for level in levels}
    of_arm = [level for level in levels if level.arm == arm]
    users = [level for level in of_arm if not requests or level.item in requests]  # a service's requests are the load
    sent = {level.scenario: {other.item for other in levels if other.scenario == level.scenario} for level in users}
    names = {level: level.item if len(sent[level.scenario]) > 1 else "" for level in users}
    for q, level in product((50, 95, 99), users):
        # a search keeps to this limit by itself
        if (limit := getattr(thresholds, f"p{q}_ms")) and level.scenario not in searches:
            known = (getattr(level, f"p{q}"), limit, level.n, names[level], level.rounds)
            yield latency_rule(arm, level.scenario, q, *known)
    if (least := thresholds.throughput) and users:
        best = max(users, key=lambda level: level.throughput.value if level.throughput else 0.0)
        yield throughput_rule(arm, best.scenario, best.throughput, least, names[best])
    if len(run.parameters.arms) == 1:  # with several arms, the comparison is invalid instead
        yield from (health_rule(arm, level.scenario, level.fault) for level in of_arm if level.fault)


def _error_rule(run: RunRecord, arm: str, read: RoundReading) -> Rule:
    """Count errors by round: the items of one load level fail together."""
    rounds: dict[tuple[str, int], tuple[int, int]] = {}
    for (cell_arm, (scenario, _)), cell in read.cells.items():
        for block, (failed, sent) in cell.counts.items() if cell_arm == arm else ():
            before = rounds.get((scenario, block), (0, 0))
            rounds[scenario, block] = before[0] + failed, before[1] + sent
    kinds: dict[str, tuple[int, str]] = {}
    for (error_arm, _, outcome), (count, message) in read.errors.items():
        if error_arm == arm:
            so_far, first = kinds.get(outcome, (0, message))
            kinds[outcome] = so_far + count, first
    ranked = sorted(kinds.items(), key=lambda kind: -kind[1][0])
    named = [_kind(outcome, count, message) for outcome, (count, message) in ranked]
    return error_rule(arm, list(rounds.values()), run.config.thresholds.error_rate, named)


def _kind(outcome: str, count: int, message: str) -> str:
    """Return an outcome with its number: "1 x SQLSTATE 57P01 (terminating connection due to administrator command)"."""
    name = outcome.replace("sqlstate_", "SQLSTATE ")
    return f"{count:,} x {name}" + (f" ({message[:_MESSAGE]})" if message else "")


def _search_rules(run: RunRecord, arm: str, levels: Sequence[Summary]) -> Iterator[Rule]:
    for scenario, rate in _rates(run).items():
        if searched := [level for level in levels if level.scenario == scenario]:
            yield capacity_rule(arm, scenario, rate, searched[0].rounds, searched[0].unheld)


def _rates(run: RunRecord) -> dict[str, float]:
    """Return the first rate of each search, by scenario."""
    return {s.name: s.rate for s in run.scenarios if s.search and s.rate}


def _fact_rules(run: RunRecord, arm: str) -> Iterator[Rule]:
    """Yield the rules on functional checks and indexes."""
    if checks := run.checks.get(arm):
        failed = [check.name for check in checks if not check.passed]
        yield checks_rule(arm, len(checks) - len(failed), len(checks), failed)
    facts = run.arm(arm)
    if facts.expected_indexes:
        valid = [index.name for index in facts.indexes if index.valid]
        yield index_rule(arm, facts.expected_indexes, valid)


def _comparison_rules(run: RunRecord, arm: str, changes: Changes) -> Iterator[Rule]:
    for c in changes.comparisons:
        if c.after == arm:
            where = f"{c.scenario}: {c.item}"
            yield comparison_rule(arm, where, c.metric, c.verdict, c.ratio, c.qualification)
    for e in changes.errors:
        if e.after == arm:
            item = e.item if len({c.item for c in changes.comparisons if c.scenario == e.scenario}) > 1 else ""
            yield more_errors_rule(arm, e.scenario, e.difference, e.significant, item)
    if run.order == "sequential" and run.roles[arm] == "after":
        yield _agreement(arm, [c for c in changes.comparisons if c.after in run.of_role("control")])


def _agreement(arm: str, again: Sequence[Comparison]) -> Rule:
    drifted = [
        f"{c.scenario} {c.metric} of {c.item} ({c.ratio.lo:.3g} to {c.ratio.hi:.3g})"
        for c in again
        if c.ratio and c.verdict in (Verdict.FASTER, Verdict.SLOWER)
    ]
    return agreement_rule(arm, sum(c.ratio is not None for c in again), drifted)
