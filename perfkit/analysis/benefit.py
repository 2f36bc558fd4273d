"""Whether a change is good for anything: what it made faster or mended, or that there is no gain worth having. Pure.

"No gain" is claimed only where every comparison excludes a gain above `worth` by its own one-sided 95 % bound. That
is an intersection-union test (Berger 1982): what is rejected is "at least one comparison gains more than `worth`",
and if that is true of one comparison, this one is wrongly excluded in at most 5 % of runs, whatever the others show.
So the claim is false in at most 5 % of runs without a correction for the number of comparisons. *Faster* is the
reverse, a union of claims of which one suffices: there Holm's correction keeps the 5 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfkit import stats
from perfkit.analysis.cautions import some
from perfkit.analysis.changes import Changes, of_role, worth
from perfkit.analysis.plan_use import Scans
from perfkit.analysis.policy import BENEFIT, Outcome, Rule, number, percent
from perfkit.analysis.results import Comparison
from perfkit.stats import Verdict

_MENDED = ("p50", "p95", "p99", "throughput", "error rate", "capacity")  # thresholds that a change may mend


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the benefit of a run's arms is judged by; a run that is not `whole` proves no lack of it."""

    run: Mapping[str, Any]
    rules: tuple[Rule, ...]
    changes: Changes
    scans: Scans
    whole: bool = True

    def compared(self, arm: str) -> list[Comparison]:
        """An arm's comparisons with before."""
        return [c for c in self.changes.comparisons if c.after == arm]

    @property
    def worth(self) -> float:
        """The least gain that is worth having, as a share."""
        return worth(self.run["config"])

    def excluded(self, c: Comparison) -> bool:
        """Whether a comparison excludes a gain above that."""
        return excludes(c, self.worth, self.run["config"]["margin"])


def benefit_rule(arm: str, given: Evidence) -> Rule:
    """Whether one arm after the change has a benefit: the first that applies."""
    if given.run["config"].get("need", "benefit") == "none":
        return _rule(arm, Outcome.HOLDS, 'the configuration asks for no benefit (need = "none").')
    own = given.compared(arm)
    borne = [c for c in own if borne_out(c, given.run["config"]["margin"])]
    if borne:
        return _rule(arm, Outcome.HOLDS, f"{len(borne)} of {len(own)} comparisons are faster: {_shown(borne)}.")
    if mended := list(_mended(arm, given)):
        return _rule(arm, Outcome.HOLDS, f"a threshold that was broken before holds now: {some(mended)}.")
    if given.whole and not any(c.verdict is Verdict.FASTER for c in own):
        if _settled(arm, given) and own and all(given.excluded(c) for c in own):
            where = "its comparison" if len(own) == 1 else f"any of its {len(own)} comparisons"
            text = f"no gain above {percent(given.worth)} in {where} with before (95 % confidence)."
            return _rule(arm, Outcome.ABSENT, text)
        if unused := _unused(arm, given):
            which = f"the index {unused[0]}" if len(unused) == 1 else f"any of its {len(unused)} indexes"
            return _rule(arm, Outcome.ABSENT, f"no plan of this workload uses {which}. Other workloads may.")
    return _open(arm, own, given)


def borne_out(c: Comparison, declared: float) -> bool:
    """Whether a comparison is faster, and by more than the control arm, which changes nothing, shows there."""
    if c.verdict is not Verdict.FASTER or c.ratio is None:
        return False
    if c.margin <= declared:
        return True
    return c.ratio.lo > 1 + c.margin if c.metric == "throughput" else c.ratio.hi < 1 - c.margin


def excludes(c: Comparison, least: float, declared: float) -> bool:
    """Whether a comparison excludes a gain above the least that is worth having.

    It does not where the control arm alone shows as much, nor where a search ended before the target after did.
    """
    valid, bounded = c.verdict is not Verdict.INVALID, c.bound in ("", "at most")
    return valid and c.margin <= max(least, declared) and bounded and c.p_gain <= stats.ALPHA


def _rule(arm: str, outcome: Outcome, text: str, lacking: str = "") -> Rule:
    return Rule(arm, "", BENEFIT, None, None, None, "", outcome, f"{arm}: {text}", needs=lacking)


def _mended(arm: str, given: Evidence) -> Iterator[str]:
    """Thresholds that `before` broke by the whole interval, which no control held, and that hold now."""

    def place(rule: Rule) -> tuple[str, ...]:
        return (rule.name,) if rule.name == "throughput" else (rule.name, rule.scenario, rule.item)

    by_arm = {(rule.arm, *place(rule)): rule.outcome for rule in given.rules}
    before, controls = of_role(given.run, "before")[0], of_role(given.run, "control")
    for rule in given.rules:
        if rule.arm != arm or rule.name not in _MENDED or rule.outcome is not Outcome.HOLDS:
            continue
        held = any(by_arm.get((control, *place(rule))) is Outcome.HOLDS for control in controls)
        if by_arm.get((before, *place(rule))) is Outcome.BROKEN and not held:
            yield " of ".join(part for part in (rule.name, rule.scenario, rule.item) if part)


def _settled(arm: str, given: Evidence) -> bool:
    """Whether nothing else speaks for a gain, or against comparing: fewer failures, or a `before` that drifted."""
    fewer = any(e.after == arm and e.significant and e.difference.value < 0 for e in given.changes.errors)
    agree = (rule.outcome is Outcome.HOLDS for rule in given.rules if rule.arm == arm and rule.name == "befores agree")
    return not fewer and all(agree)


def _unused(arm: str, given: Evidence) -> Sequence[str]:
    """The indexes of an arm that adds nothing else, where its workload certainly uses none of them.

    Every query's plan was captured, none names one of them, and all are those of `before`; and the server counted no
    scan of them in any round, whatever plans other parameters or a prepared statement got there.
    """
    run, scans, before = given.run, given.scans, of_role(given.run, "before")[0]
    names = run.get("arms", {}).get(arm, {}).get("expected_indexes") or ()
    if run.get("changes", {}).get(arm) != ["indexes"] or arm not in scans.planned or arm not in scans.counted:
        return ()
    used = scans.planned[arm] | {name for name, count in scans.counted[arm].items() if count}
    alike = scans.shapes.get(arm) == scans.shapes.get(before)
    return names if alike and not used & set(names) else ()


def _open(arm: str, own: Sequence[Comparison], given: Evidence) -> Rule:
    """Neither: what is open, and about how many blocks would settle the last of it."""
    faster = [c for c in own if c.verdict is Verdict.FASTER]
    if faster:
        text = f"faster only by as much as the control, which changes nothing: {_shown(faster)}."
        return _rule(arm, Outcome.UNPROVEN, text, "another run, in which the control is like before.")
    open_ = [c for c in own if not given.excluded(c)]
    more = f"a gain above {percent(given.worth)} cannot be ruled out in {len(open_)} of {len(own)}"
    text = f"no comparison is faster, and {more}"
    if not own:
        return _rule(arm, Outcome.UNPROVEN, "nothing was compared with before.", "rounds of both.")
    if not open_:
        return _rule(arm, Outcome.UNPROVEN, f"no comparison is faster; whether {arm} gains nothing stays open.")
    ratios = [(c, c.ratio) for c in open_ if c.ratio and c.verdict is not Verdict.INVALID and not c.bound]
    blocks = [stats.blocks_for_gain(r, given.worth, more_is_better=c.metric == "throughput") for c, r in ratios]
    lacking = "complete blocks in which the client keeps up."
    if blocks and None not in blocks:
        lacking = f"about {max(filter(None, blocks))} blocks in all, if the spread stays as it is."
    elif blocks:
        lacking = "more than 1,000 blocks, or a larger `worth`."
    return _rule(arm, Outcome.UNPROVEN, f"{text}: {_shown(open_)}.", lacking)


def _shown(found: Sequence[Comparison]) -> str:
    """Comparisons with their ratios, the largest gain first."""
    return some(f"{c.scenario} {c.metric} of {c.item}{_times(c)}" for c in sorted(found, key=_size))


def _size(c: Comparison) -> float:
    if c.ratio is None:
        return 2.0
    return 1 / c.ratio.value if c.metric == "throughput" else c.ratio.value


def _times(c: Comparison) -> str:
    if c.ratio is None:
        return ""
    return f" (x{number(c.ratio.value)}, 95 % interval {number(c.ratio.lo)} to {number(c.ratio.hi)})"
