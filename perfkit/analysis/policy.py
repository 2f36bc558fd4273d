"""Whether the change may ship: each threshold as a rule with its numbers, and the decision they lead to.

Pure functions. A rule is judged for every arm; only those of the arms after the change decide.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from perfkit.analysis import needs
from perfkit.analysis.error_rates import Difference
from perfkit.stats import MIN_SAMPLES, Interval, Ratio, Verdict, error_bound

_AGAIN = "another run"
_CLIENT = "rounds in which the client keeps up: less load, more processors for it, or pgbench."


class Outcome(StrEnum):
    """Whether a rule's estimate and bound hold, its estimate breaks it, or only its bound does."""

    HOLDS = "holds"
    BROKEN = "broken"
    UNPROVEN = "unproven"


class Decision(StrEnum):
    """What the rules say about shipping the change."""

    GO = "GO"
    NO_GO = "NO-GO"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Rule:
    """One threshold judged on one arm; `scenario` is empty where the rule is about the whole arm."""

    arm: str
    scenario: str
    name: str
    value: float | None
    bound: float | None  # the end of the value's interval that has to hold
    limit: float | None
    unit: str  # of value, bound and limit
    outcome: Outcome
    text: str  # one plain sentence with its numbers
    item: str = ""  # the request or query, where a scenario sends several
    needs: str = ""  # where it is unproven, what it would take

    @property
    def reason(self) -> str:
        """The sentence, and where it is unproven what it would take."""
        return f"{self.text} It would take {self.needs}" if self.needs else self.text


@dataclass(frozen=True, slots=True)
class Judgement:
    """The decision, the rules of every arm, and in words those that led to it."""

    decision: Decision
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
    """The q-th percentile must be under the limit by its interval's upper end; all in ms."""
    name, where = f"p{q}", f"{arm}, {scenario}{f' of {item}' if item else ''}"
    if interval is None:
        text = f"{where}: {name} needs {MIN_SAMPLES[q]} samples, has {samples}."
        lacking = needs.samples(q, samples, rounds)
        return Rule(arm, scenario, name, None, None, limit_ms, "ms", Outcome.UNPROVEN, text, item, lacking)
    value, bound = interval.value, interval.hi
    said, lacking = f"{where}: {name} {number(value)} ms", ""
    if value >= limit_ms:
        outcome, text = Outcome.BROKEN, f"{said} is not under {number(limit_ms)} ms{_range(interval)}."
    elif bound < limit_ms:
        outcome, text = Outcome.HOLDS, f"{said} is under {number(limit_ms)} ms{_range(interval)}."
    else:
        outcome = Outcome.UNPROVEN
        text = f"{said} is under {number(limit_ms)} ms, but its bound is not{_range(interval)}."
        lacking = needs.bound(interval, limit_ms)
    return Rule(arm, scenario, name, value, bound, limit_ms, "ms", outcome, text, item, lacking)


def throughput_rule(arm: str, scenario: str, interval: Interval | None, least: float, item: str = "") -> Rule:
    """Requests per second must reach the limit by their interval's lower end, at the level where most are answered."""
    where, unit = f"{arm}, {scenario}{f' of {item}' if item else ''}", "per second"
    if interval is None:
        text = f"{where}: no throughput is known, for a round answered nothing."
        return Rule(arm, scenario, "throughput", None, None, least, unit, Outcome.UNPROVEN, text, item)
    value, bound, lacking = interval.value, interval.lo, ""
    said = f"{where}: {number(value)} requests per second, the most of its load levels,"
    numbers = f"(95 % interval {_span(interval.lo, interval.hi)})" if bound else "(one round sets no lower bound)"
    if value < least:
        outcome, text = Outcome.BROKEN, f"{said} are under {number(least)} {numbers}."
    elif bound >= least:
        outcome, text = Outcome.HOLDS, f"{said} reach {number(least)} {numbers}."
    else:
        outcome, text = Outcome.UNPROVEN, f"{said} reach {number(least)}, but their bound does not {numbers}."
        lacking = needs.bound(interval, least, at_least=True)
    return Rule(arm, scenario, "throughput", value, bound, least, unit, outcome, text, item, lacking)


def error_rule(arm: str, errors: int, n: int, limit: float) -> Rule:
    """Unexpected outcomes among n requests, judged by their share; the bound says what n can exclude."""
    if n == 0:
        text = f"{arm}: no request was counted, so no error rate is known."
        return Rule(arm, "", "error rate", None, None, limit, "share", Outcome.UNPROVEN, text, needs=f"{_AGAIN}.")
    rate, bound = errors / n, error_bound(errors, n)
    outcome = Outcome.BROKEN if errors and rate >= limit else Outcome.HOLDS
    text = f"{arm}: {errors} of {n} requests failed; rates above {percent(bound)} are excluded."
    if outcome is Outcome.BROKEN:
        text = f"{arm}: {errors} of {n} requests failed, {percent(rate)}, not under {percent(limit)}."
    return Rule(arm, "", "error rate", rate, bound, limit, "share", outcome, text)


def health_rule(arm: str, scenario: str, fault: str) -> Rule:
    """Numbers of a client that was too slow prove nothing of the server."""
    text = f"{arm}, {scenario}: {fault}."
    return Rule(arm, scenario, "client kept up", None, None, None, "", Outcome.UNPROVEN, text, needs=_CLIENT)


def checks_rule(arm: str, passed: int, total: int, failed_names: Sequence[str]) -> Rule:
    """Every functional check must pass."""
    if total == 0:
        outcome, text = Outcome.UNPROVEN, f"{arm}: no functional check ran."
    elif passed < total:
        outcome = Outcome.BROKEN
        text = f"{arm}: {total - passed} of {total} functional checks failed: {', '.join(failed_names)}."
    else:
        outcome, text = Outcome.HOLDS, f"{arm}: all {total} functional checks passed."
    lacking = "" if total else "the checks, run on this arm."
    return Rule(arm, "", "checks", float(passed), None, float(total), "checks", outcome, text, needs=lacking)


def index_rule(arm: str, expected: Sequence[str], valid: Sequence[str]) -> Rule:
    """Every index the arm is prepared with must be there and valid."""
    lacking = [name for name in expected if name not in valid]
    found = len(expected) - len(lacking)
    if lacking:
        outcome = Outcome.BROKEN
        text = f"{arm}: {len(lacking)} of {len(expected)} indexes missing or invalid: {', '.join(lacking)}."
    else:
        outcome = Outcome.HOLDS
        text = f"{arm}: all {len(expected)} indexes are valid." if expected else f"{arm}: no index to build."
    return Rule(arm, "", "indexes valid", float(found), None, float(len(expected)), "indexes", outcome, text)


def comparison_rule(
    arm: str, scenario: str, metric: str, verdict: Verdict, ratio: Ratio | None, qualification: str = ""
) -> Rule:
    """Nothing may be slower than before; an inconclusive comparison blocks nothing."""
    said = f"{arm}, {scenario}: {metric}"
    numbers = f" ({number(ratio.value)} of before, 95 % interval {_span(ratio.lo, ratio.hi)})" if ratio else ""
    numbers += f", {qualification}" if qualification else ""
    why = qualification if ratio and qualification else "the rounds are too few or unhealthy"
    outcome, text = {
        Verdict.FASTER: (Outcome.HOLDS, f"{said} is faster{numbers}."),
        Verdict.EQUIVALENT: (Outcome.HOLDS, f"{said} is equivalent{numbers}."),
        Verdict.SLOWER: (Outcome.BROKEN, f"{said} is slower{numbers}."),
        Verdict.INCONCLUSIVE: (Outcome.HOLDS, f"{said} is inconclusive{numbers}, which blocks nothing."),
        Verdict.INVALID: (Outcome.UNPROVEN, f"{said} cannot be compared: {why}."),
    }[verdict]
    value, bound = (ratio.value, ratio.hi) if ratio else (None, None)
    few = ratio is None or ratio.pairs < MIN_SAMPLES[50]
    lacking = f"{MIN_SAMPLES[50]} complete blocks or more." if few else _CLIENT
    lacking = lacking if outcome is Outcome.UNPROVEN else ""
    return Rule(arm, scenario, "not slower", value, bound, 1.0, "ratio", outcome, text, needs=lacking)


def more_errors_rule(arm: str, scenario: str, difference: Difference, significant: bool, item: str = "") -> Rule:
    """An arm must not fail significantly more often than before, whatever the limit is."""
    where = f"{arm}, {scenario}{f' of {item}' if item else ''}"
    change, lo, hi = (percent(share) for share in (difference.value, difference.lo, difference.hi))
    numbers = f"by {change} of requests (95 % interval {lo} to {hi}, p = {number(difference.p_table)} over the table)"
    outcome, text = Outcome.HOLDS, f"{where}: the error rate differs {numbers}, which proves no rise."
    if significant and difference.value > 0:
        outcome, text = Outcome.BROKEN, f"{where}: fails more often than before, {numbers}."
    elif significant:
        text = f"{where}: fails less often than before, {numbers}."
    value, bound = difference.value, difference.hi
    return Rule(arm, scenario, "not failing more", value, bound, 0.0, "share", outcome, text, item)


def capacity_rule(arm: str, scenario: str, least: float, rounds: int, unheld: int) -> Rule:
    """The rate that a search begins with must hold in every round; it is broken where it held in none."""
    outcome = Outcome.HOLDS if not unheld else Outcome.BROKEN if unheld == rounds else Outcome.UNPROVEN
    rate = f"{number(least)} requests per second"
    text = f"{arm}, {scenario}: {rate} or more held in {rounds - unheld} of {rounds} rounds."
    if rounds == 0:
        outcome, text = Outcome.UNPROVEN, f"{arm}, {scenario}: no round searched for a rate."
    lacking = "" if outcome is not Outcome.UNPROVEN else f"{_AGAIN}, and the rate held in every round."
    counts = (float(rounds - unheld), None, float(rounds))
    return Rule(arm, scenario, "capacity", *counts, "rounds", outcome, text, needs=lacking)


def agreement_rule(arm: str, again: int, drifted: Sequence[str]) -> Rule:
    """Where arms follow one another, `before` at the end must be what it was at the start.

    `again` counts the comparisons of the two, `drifted` says in words which of them differ.
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


def decide(rules: Iterable[Rule], after_arms: Collection[str]) -> Judgement:
    """GO where every rule of every after arm holds, NO-GO where one is broken, else INCONCLUSIVE."""
    every = tuple(rules)
    deciding = [rule for rule in every if rule.arm in after_arms]
    broken = [rule.text for rule in deciding if rule.outcome is Outcome.BROKEN]
    unproven = [rule.reason for rule in deciding if rule.outcome is Outcome.UNPROVEN]
    unjudged = [f"{arm}: no rule was judged." for arm in after_arms if not any(r.arm == arm for r in deciding)]
    if broken:
        return Judgement(Decision.NO_GO, every, tuple(broken))
    if unproven or unjudged:
        return Judgement(Decision.INCONCLUSIVE, every, (*unproven, *unjudged))
    if not deciding:
        return Judgement(Decision.INCONCLUSIVE, every, ("No arm after the change was judged.",))
    held = tuple(f"{arm}: all {sum(r.arm == arm for r in deciding)} rules hold." for arm in after_arms)
    return Judgement(Decision.GO, every, held)


def which_arms_pass(rules: Iterable[Rule], arms: Collection[str]) -> dict[str, Decision]:
    """The decision on each arm alone: one change may be fit to ship while another is not."""
    every = tuple(rules)
    return {arm: decide(every, [arm]).decision for arm in arms}


def _range(interval: Interval) -> str:
    if math.isinf(interval.hi):
        return f"; {interval.n} samples in {interval.rounds} rounds like these set no upper bound"
    return f" (95 % interval {_span(interval.lo, interval.hi)} ms)"


def _span(lo: float, hi: float) -> str:
    return f"{number(lo)} to {number(hi)}"


def percent(share: float) -> str:
    """A share of one as a percentage with two significant digits."""
    return f"{float(f'{100 * share:.2g}'):.10g} %"


def number(value: float) -> str:
    """Four significant digits, never an exponent within the range of a latency."""
    return f"{float(f'{value:.4g}'):.10g}"
