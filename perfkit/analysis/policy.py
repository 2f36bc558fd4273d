"""Rules and decision: each threshold judged on each arm, the evidence that an unproven rule needs, GO or NO-GO.

Pure functions. Every rule is judged for every arm; only the rules of the arms after the change decide.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

from perfkit.analysis.results import ErrorChange, Estimates, Summary
from perfkit.base.judgement import Judgement, Outcome, Verdict, evidence_needed, reaches, under
from perfkit.base.stats import MIN_SAMPLES, Counts, Estimate, Interval, Ratio, error_bound, share
from perfkit.base.units import count, exact, exact_percent, number, percent, some
from perfkit.runs.records import RunRecord
from perfkit.runs.rounds import RoundReading

BENEFIT = "benefit"  # the name of the rule on whether the change improves anything
MOST = 1000  # blocks; a larger need is reported as "more than"
_AGAIN = "another run"
_CLIENT = "rounds in which the client keeps up: less load, more processors for it, or pgbench."
_MESSAGE = 100  # characters of an error message in a reason

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
class Rule(Judgement):
    """One threshold judged on one arm; `scenario` is empty if the rule is about the whole arm."""

    outcome: Outcome = field(kw_only=True)
    arm: str
    scenario: str = ""
    item: str = ""  # the request or query, if a scenario sends several
    value: float | None = None
    bound: float | None = None  # the end of the interval that has to hold; the other end if even that breaks the rule
    limit: float | None = None
    unit: str = ""  # of value, bound and limit


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome, the rules of every arm, and the texts of the rules that led to the outcome."""

    outcome: Outcome
    rules: tuple[Rule, ...]
    reasons: tuple[str, ...]


def answers_needed(q: int, n: int, rounds: int) -> str:
    """Return the number of answers that a percentile of n answers lacks, and of blocks that would have them."""
    lacking = MIN_SAMPLES[q] - n
    if not n:
        return f"{lacking} answered requests or more."
    blocks = math.ceil(rounds * MIN_SAMPLES[q] / n)
    about = f", about {blocks} blocks in all" if blocks > rounds else ""
    return f"{lacking} more answered requests{about}."


def blocks_needed(interval: Interval, limit: float) -> str:
    """Estimate the number of blocks until an interval lies wholly on its estimate's side of a limit."""
    end = interval.hi if interval.value < limit else interval.lo
    if not 0 < end < math.inf:
        return f"more blocks (now {interval.rounds}) to set a bound."
    blocks = interval.rounds * evidence_needed(interval, limit)
    if blocks > MOST:
        return f"more than {MOST} blocks: the estimate is too close to the limit."
    return f"about {max(math.ceil(blocks), interval.rounds + 1)} blocks in all, if the spread stays as it is."


def latency_rule(
    arm: str, scenario: str, q: int, interval: Interval | None, limit: float, n: int, item: str = "", rounds: int = 0
) -> Rule:
    """Judge a percentile in ms: its interval's upper end must be under the limit; the lower end breaks the rule."""
    name, where = f"p{q}", _where(arm, scenario, item)
    rule = partial(Rule, name=name, arm=arm, scenario=scenario, item=item, limit=limit, unit="ms")
    if interval is None:
        text = f"{where}: {name} needs {MIN_SAMPLES[q]} samples, has {n}."
        return rule(outcome=Outcome.UNPROVEN, text=text, needs=answers_needed(q, n, rounds))
    spread = f" (95 % interval {_span(interval, limit)} ms)"
    if math.isinf(interval.hi):
        spread = f"; {interval.n} samples in {interval.rounds} rounds like these set no upper bound"
    subject, words = f"{where}: {name} {number(interval.value, limit)} ms", ("is under", "is not under")
    ends = ("its upper bound is not", "its lower bound is")
    outcome, text, needs = _judged(interval, limit, under, subject, words, ends, f"{exact(limit)} ms", spread)
    bound = interval.lo if outcome is Outcome.BROKEN else interval.hi
    return rule(outcome=outcome, text=text, needs=needs, value=interval.value, bound=bound)


def throughput_rule(arm: str, scenario: str, interval: Interval | None, least: float, item: str = "") -> Rule:
    """Judge throughput: its interval's lower end must reach the limit; the upper end breaks the rule."""
    where = _where(arm, scenario, item)
    rule = partial(Rule, name="throughput", arm=arm, scenario=scenario, item=item, limit=least, unit="per second")
    if interval is None:
        text = f"{where}: no throughput is known because a round answered no request."
        return rule(outcome=Outcome.UNPROVEN, text=text)
    spread = f" (95 % interval {_span(interval, least)})" if interval.lo else " (one round sets no lower bound)"
    subject = f"{where}: {number(interval.value, least)} requests per second, the most of its load levels,"
    words, ends = ("reach", "are under"), ("their lower bound does not", "their upper bound is not")
    outcome, text, needs = _judged(interval, least, reaches, subject, words, ends, exact(least), spread)
    bound = interval.hi if outcome is Outcome.BROKEN else interval.lo
    return rule(outcome=outcome, text=text, needs=needs, value=interval.value, bound=bound)


def _judged(
    interval: Interval,
    limit: float,
    judge: Callable[[Estimate, float], Outcome],
    subject: str,
    words: tuple[str, str],
    ends: tuple[str, str],
    limit_text: str,
    spread: str,
) -> tuple[Outcome, str, str]:
    """Judge an interval against a limit, in words; `words` and `ends` are for an estimate that meets it or does not."""
    outcome = judge(interval, limit)
    missed = judge(Estimate(interval.value, interval.value, interval.value), limit) is Outcome.BROKEN
    text = f"{subject} {words[missed]} {limit_text}"
    if outcome is not Outcome.UNPROVEN:
        return outcome, f"{text}{spread}.", ""
    return outcome, f"{text}, but {ends[missed]}{spread}.", blocks_needed(interval, limit)


def error_rule(arm: str, rounds: Counts, limit: float, kinds: Sequence[str] = ()) -> Rule:
    """Judge the pooled share of unexpected outcomes, with an interval by rounds; `kinds` name the outcomes.

    The lower end breaks the limit, so one stray error breaks nothing, except a limit of 0. The upper end never
    blocks a GO: proving that a rate is far below any limit takes too many requests.
    """
    rule, rate = partial(Rule, name="error rate", arm=arm, limit=limit, unit="share"), share(rounds)
    if rate is None:
        text = f"{arm}: no request was counted, so the error rate is not known."
        return rule(outcome=Outcome.UNPROVEN, text=text, needs=f"{_AGAIN}.")
    errors, sent = sum(failed for failed, _ in rounds), count(rate.n)
    if not errors:
        bound = error_bound(0, rate.n)
        most = percent(bound, up=True)
        text = f"{arm}: none of {sent} requests failed. The true error rate is below {most} (95 % confidence)."
        return rule(outcome=Outcome.HOLDS, text=text, value=0.0, bound=bound)
    rule = partial(rule, value=rate.value, bound=rate.hi)
    failures, most = f"{arm}: {count(errors)} of {sent} requests failed, {percent(rate.value)}", exact_percent(limit)
    ends = f"95 % interval {percent(rate.lo)} to {percent(rate.hi)}"
    named = f": {some(kinds)}." if kinds else "."
    if rate.lo >= limit:
        return rule(outcome=Outcome.BROKEN, text=f"{failures} ({ends}); the limit is {most}{named}")
    if rate.value < limit:
        return rule(outcome=Outcome.HOLDS, text=f"{failures}; the limit is {most}{named}")
    text = f"{failures} ({ends}); too few requests to say whether the limit of {most} is broken{named}"
    needs = f"{_AGAIN}, or more than {count(math.floor(errors / limit))} requests in all with no further error."
    return rule(outcome=Outcome.UNPROVEN, text=text, needs=needs)


def checks_rule(arm: str, passed: int, total: int, failed_names: Sequence[str]) -> Rule:
    """Judge the functional checks: all must pass."""
    outcome, needs = Outcome.HOLDS, ""
    text = f"all {total} functional checks passed."
    if total == 0:
        outcome, text, needs = Outcome.UNPROVEN, "no functional check ran.", "a run of the checks on this arm."
    elif passed < total:
        outcome = Outcome.BROKEN
        text = f"{total - passed} of {total} functional checks failed: {', '.join(failed_names)}."
    rule = partial(Rule, name="checks", value=float(passed), limit=float(total), unit="checks")
    return rule(outcome=outcome, text=f"{arm}: {text}", needs=needs, arm=arm)


def index_rule(arm: str, expected: Sequence[str], valid: Collection[str]) -> Rule:
    """Judge the indexes of an arm: all must exist and be valid."""
    total, missing = len(expected), [name for name in expected if name not in valid]
    text = f"all {total} indexes are valid." if expected else "no index to build."
    if missing:
        text = f"{len(missing)} of {total} indexes missing or invalid: {', '.join(missing)}."
    outcome, counts = Outcome.BROKEN if missing else Outcome.HOLDS, (float(total - len(missing)), None, float(total))
    return Rule(arm, "", "", *counts, "indexes", name="indexes valid", outcome=outcome, text=f"{arm}: {text}")


def comparison_rule(
    arm: str, scenario: str, metric: str, verdict: Verdict, ratio: Ratio | None, qualification: str = ""
) -> Rule:
    """Judge a comparison: it must not be slower than before; an inconclusive one does not block a GO."""
    numbers = f" ({number(ratio.value)} of before, 95 % interval {_span(ratio, 1.0)})" if ratio else ""
    numbers += f", {qualification}" if qualification else ""
    outcome, text, needs = Outcome.HOLDS, f"is {verdict}{numbers}.", ""
    if verdict is Verdict.SLOWER:
        outcome = Outcome.BROKEN
    elif verdict is Verdict.INCONCLUSIVE:
        text += " This does not block a GO."
    elif verdict is Verdict.INVALID:
        outcome = Outcome.UNPROVEN
        why = qualification if ratio and qualification else "there are too few healthy rounds"
        text = f"cannot be compared: {why}."
        few = ratio is None or ratio.pairs < MIN_SAMPLES[50]
        needs = f"{MIN_SAMPLES[50]} complete blocks or more." if few else _CLIENT
    ends: tuple[float | None, float | None] = (ratio.value, ratio.hi) if ratio else (None, None)
    text = f"{arm}, {scenario}: {metric} {text}"
    return Rule(arm, scenario, "", *ends, 1.0, "ratio", name="not slower", outcome=outcome, text=text, needs=needs)


def more_errors_rule(change: ErrorChange, item: str = "") -> Rule:
    """Judge the failures: an arm must not fail significantly more often than before, whatever the limit is."""
    arm, scenario, difference = change.after, change.scenario, change.difference
    value, lo, hi = (percent(share) for share in (difference.value, difference.lo, difference.hi))
    p = number(difference.p_table)
    numbers = f"by {value} of requests (95 % interval {lo} to {hi}, p = {p} over the table)"
    more = change.significant and difference.value > 0
    text = f"fails {'more' if more else 'less'} often than before, {numbers}."
    if not change.significant:
        text = f"the error rate differs {numbers}, which proves no increase."
    rule = partial(Rule, arm, scenario, item, difference.value, difference.hi, 0.0, "share", name="not failing more")
    return rule(outcome=Outcome.BROKEN if more else Outcome.HOLDS, text=f"{_where(arm, scenario, item)}: {text}")


def capacity_rule(arm: str, scenario: str, least: float, rounds: int, unheld: int) -> Rule:
    """Judge a search: its first rate must hold in every round; the rule is broken if the rate held in no round."""
    outcome = Outcome.HOLDS if not unheld else Outcome.BROKEN if unheld == rounds else Outcome.UNPROVEN
    text = f"{exact(least)} requests per second or more held in {rounds - unheld} of {rounds} rounds."
    if rounds == 0:
        outcome, text = Outcome.UNPROVEN, "no round searched for a rate."
    rule = partial(Rule, arm, scenario, "", float(rounds - unheld), None, float(rounds), "rounds", name="capacity")
    needs = f"{_AGAIN}, in which the rate holds in every round." if outcome is Outcome.UNPROVEN else ""
    return rule(outcome=outcome, text=f"{arm}, {scenario}: {text}", needs=needs)


def agreement_rule(arm: str, again: int, drifted: Sequence[str]) -> Rule:
    """Judge a sequential run: `before` at the end must agree with `before` at the start.

    `again` is the number of comparisons of the two; `drifted` names those that differ.
    """
    text = "before at the end agrees with before at the start."
    if drifted:
        text = f"before at the end differs from before at the start: {', '.join(drifted)}."
    if again == 0:
        text = "before was not measured again at the end."
    open_ = bool(drifted) or again == 0
    rule = partial(Rule, arm, "", "", float(len(drifted)), None, 0.0, "differences", name="befores agree")
    needs = f"{_AGAIN} while nothing else changes the target." if open_ else ""
    return rule(outcome=Outcome.UNPROVEN if open_ else Outcome.HOLDS, text=f"{arm}: {text}", needs=needs)


def decide(rules: Iterable[Rule], after_arms: Collection[str], *, compared: bool = True) -> Decision:
    """Return the decision that the rules of all after arms lead to (see `WHEN`).

    Every arm must be fit to ship: one NO-GO is a NO-GO, a GO needs all arms, and NO BENEFIT needs all arms as well.
    If nothing is `compared`, one arm is judged by its thresholds alone and needs no benefit.
    """
    every = tuple(rules)
    by_arm = {arm: [rule for rule in every if rule.arm == arm] for arm in after_arms}
    deciding = [rule for of_arm in by_arm.values() for rule in of_arm]
    broken, absent, unproven = (
        tuple(rule.reason for rule in deciding if rule.outcome is outcome)
        for outcome in (Outcome.BROKEN, Outcome.ABSENT, Outcome.UNPROVEN)
    )
    if broken:
        return Decision(Outcome.BROKEN, every, broken)
    if absent and all(any(rule.outcome is Outcome.ABSENT for rule in of_arm) for of_arm in by_arm.values()):
        return Decision(Outcome.ABSENT, every, absent)
    open_ = [*(f"{reason} Decide on the other arms without it." for reason in absent), *unproven]
    for arm, of_arm in by_arm.items():
        if not of_arm:
            open_.append(f"{arm}: no rule was judged.")
        elif compared and not any(rule.name == BENEFIT for rule in of_arm):
            open_.append(f"{arm}: its benefit was not judged.")
    if open_ or not by_arm:
        return Decision(Outcome.UNPROVEN, every, tuple(open_) or ("No arm after the change was judged.",))
    return Decision(
        Outcome.HOLDS, every, tuple(f"{arm}: all {len(of_arm)} rules hold." for arm, of_arm in by_arm.items())
    )


def _where(arm: str, scenario: str, item: str) -> str:
    return f"{arm}, {scenario}{f' of {item}' if item else ''}"


def _span(estimate: Estimate, limit: float) -> str:
    return f"{number(estimate.lo, limit)} to {number(estimate.hi, limit)}"


# The rules of a run: which of the rules above apply to its arms, and with which numbers.


def rules_of(run: RunRecord, estimates: Estimates, read: RoundReading) -> list[Rule]:
    """Return the rules of every arm in the run's order, except the benefit."""
    rules: list[Rule] = []
    levels = estimates.levels
    for arm in run.parameters.arms:
        rules += _level_rules(run, arm, levels)
        rules.append(_error_rule(run, arm, read))
        for scenario, rate in _rates(run).items():
            if level := next((level for level in levels if (level.arm, level.scenario) == (arm, scenario)), None):
                rules.append(capacity_rule(arm, scenario, rate, level.rounds, level.unheld))
        rules += _fact_rules(run, arm)
        rules += _comparison_rules(run, arm, estimates)
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
        # The numbers of a client that was too slow say nothing about the server.
        rule = partial(Rule, name="client kept up", outcome=Outcome.UNPROVEN, needs=_CLIENT, arm=arm)
        for level in of_arm:
            if level.fault:
                yield rule(text=f"{arm}, {level.scenario}: {level.fault}.", scenario=level.scenario)


def _error_rule(run: RunRecord, arm: str, read: RoundReading) -> Rule:
    """Count errors by round: the items of one load level fail together."""
    rounds: dict[tuple[str, int], tuple[int, int]] = {}
    for (cell_arm, (scenario, _)), cell in read.cells.items():
        for block, (failed, sent) in cell.counts.items() if cell_arm == arm else ():
            before = rounds.get((scenario, block), (0, 0))
            rounds[scenario, block] = before[0] + failed, before[1] + sent
    total, message = Counter[str](), dict[str, str]()
    for (error_arm, _, outcome), (times, first) in read.errors.items():
        if error_arm == arm:
            total[outcome] += times
            message.setdefault(outcome, f" ({first[:_MESSAGE]})" if first else "")
    kinds = [f"{count(n)} x {o.replace('sqlstate_', 'SQLSTATE ')}{message[o]}" for o, n in total.most_common()]
    return error_rule(arm, list(rounds.values()), run.config.thresholds.error_rate, kinds)


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
        yield index_rule(arm, facts.expected_indexes, [index.name for index in facts.indexes if index.valid])


def _comparison_rules(run: RunRecord, arm: str, estimates: Estimates) -> Iterator[Rule]:
    for c in estimates.comparisons:
        if c.after == arm:
            yield comparison_rule(arm, f"{c.scenario}: {c.item}", c.metric, c.verdict, c.ratio, c.qualification)
    for e in estimates.error_changes:
        if e.after == arm:
            several = len({c.item for c in estimates.comparisons if c.scenario == e.scenario}) > 1
            yield more_errors_rule(e, e.item if several else "")
    if run.order == "sequential" and run.roles[arm] == "after":
        again = [(c, c.ratio) for c in estimates.comparisons if c.after in run.of_role("control") and c.ratio]
        different = [(c, r) for c, r in again if c.verdict in (Verdict.FASTER, Verdict.SLOWER)]
        drifted = [f"{c.scenario} {c.metric} of {c.item} ({_span(r, 1.0)})" for c, r in different]
        yield agreement_rule(arm, len(again), drifted)
