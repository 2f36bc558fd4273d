"""Every arm compared with `before`: latencies, capacity, error rates, and how sure that is. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfkit import stats
from perfkit.analysis.cells import Key, SampleCell
from perfkit.analysis.error_rates import differences
from perfkit.analysis.results import Change, Comparison, ErrorChange
from perfkit.stats import Ratio, Verdict

Cells = Mapping[tuple[str, Key], SampleCell]
TAILS = {"p95": 95, "p99": 99}


@dataclass(frozen=True, slots=True)
class Changes:
    """The comparisons of a run.

    Throughput is judged, within Holm's family and for shipping, only of a scenario that searches for the highest
    rate: there it is what was asked, and its latencies, each at another rate, are not compared. At a given rate
    it is that rate, less the failures, which the error rates judge; in the closed model it is the users over the
    mean latency, so that judging it too would weaken every other comparison to say the same thing twice.
    There it is shown with its interval.
    """

    comparisons: tuple[Comparison, ...] = ()
    errors: tuple[ErrorChange, ...] = ()
    throughputs: tuple[Change, ...] = ()

    @classmethod
    def of(cls, run: Mapping[str, Any], cells: Cells) -> Changes:
        """Every arm against `before`, the control first: its intervals may widen the margin for the others."""
        scenarios = {scenario["name"]: scenario for scenario in run["scenarios"]}
        before = of_role(run, "before")[0]
        comparisons: list[Comparison] = []
        errors: list[ErrorChange] = []
        throughputs: list[Change] = []
        control: dict[tuple[Key, str], list[Ratio]] = defaultdict(list)
        controls = of_role(run, "control")
        for arm in [*controls, *of_role(run, "after")]:
            pairs = {
                key: (own, cells[arm, key]) for (a, key), own in cells.items() if a == before and (arm, key) in cells
            }
            failing = _error_changes(before, arm, {k: p for k, p in pairs.items() if not scenarios[k[0]].get("search")})
            rows = list(
                _rows(pairs, scenarios, {(e.scenario, e.item): e.fewer_answered for e in failing if e.significant})
            )
            judged = _judged(before, arm, rows, control, run["config"])
            errors += failing
            comparisons += judged
            throughputs += _throughputs(before, arm, pairs, scenarios)
            for found in judged if arm in controls else ():
                if found.ratio:
                    control[(found.scenario, found.item), found.metric].append(found.ratio)
        return cls(tuple(comparisons), tuple(errors), tuple(throughputs))


def worth(config: Mapping[str, Any]) -> float:
    """The least gain that is worth having, as a share; the default in a bundle from before there was the key."""
    return float(config.get("worth", 0.1))


def of_role(run: Mapping[str, Any], role: str) -> list[str]:
    """Arms of one role, in the run's order."""
    return [name for name in run["parameters"]["arms"] if run["roles"][name] == role]


@dataclass(frozen=True, slots=True)
class _Row:
    """One metric of one load level, before it is judged together with the others."""

    key: Key
    metric: str
    before: SampleCell
    after: SampleCell
    ratio: Ratio | None
    step: float = 1.0  # the factor to within which the values are known
    fewer: float = 0.0
    bound: str = ""

    @property
    def healthy(self) -> bool:
        return not (self.before.faults or self.after.faults)


def _rows(
    pairs: Mapping[Key, tuple[SampleCell, SampleCell]],
    scenarios: Mapping[str, Mapping[str, Any]],
    fewer: Mapping[Key, float],
) -> Iterator[_Row]:
    """A tail without the samples for it is no comparison; a median or a capacity without a ratio an invalid one."""
    searched = set()
    for key, (before, after) in pairs.items():
        if search := scenarios[key[0]].get("search"):
            if key[0] not in searched:  # the rate is that of the scenario, whatever it sends
                searched.add(key[0])
                step = search["growth"] ** (0.5 ** search["closer"])
                yield _Row(
                    key, "throughput", before, after, _capacity(before, after, step), step, bound=_bound(before, after)
                )
            continue
        for metric in ("p50", *TAILS):
            ratio = _latency(before, after, metric)
            if ratio or metric == "p50":
                yield _Row(key, metric, before, after, ratio, fewer=fewer.get(key, 0.0))


def _latency(before: SampleCell, after: SampleCell, metric: str) -> Ratio | None:
    """Paired by block; tails only where both arms have the samples for them."""
    blocks = sorted(before.medians.keys() & after.medians.keys())
    if metric == "p50":
        return stats.ratio([before.medians[b] for b in blocks], [after.medians[b] for b in blocks])
    q = TAILS[metric]
    if not all(stats.supported(cell.n, q) for cell in (before, after)):
        return None
    return stats.tail_ratio([before.blocks[b] for b in blocks], [after.blocks[b] for b in blocks], q)


def _capacity(before: SampleCell, after: SampleCell, step: float) -> Ratio | None:
    """None where in a round no rate held: leaving it out would flatter."""
    if before.unheld or after.unheld:
        return None
    blocks = sorted(before.rates.keys() & after.rates.keys())
    found = stats.ratio([before.rates[b] for b in blocks], [after.rates[b] for b in blocks])
    return stats.known_within(found, step) if found else None


def _bound(before: SampleCell, after: SampleCell) -> str:
    """What a ratio of capacities is where a search ended before the target did."""
    if before.limited and after.limited:
        return "not known"
    return "at least" if after.limited else "at most" if before.limited else ""


def _judged(
    before: str,
    after: str,
    rows: Sequence[_Row],
    control: Mapping[tuple[Key, str], Sequence[Ratio]],
    config: Mapping[str, Any],
) -> list[Comparison]:
    """Verdicts of one pair of arms, Holm's correction over all of them for differences and for equivalence."""
    declared, least = config["margin"], worth(config)
    margins = [stats.widened_margin(control.get((row.key, row.metric), ()), declared) for row in rows]
    different = stats.holm([row.ratio.p if row.ratio else 1.0 for row in rows])
    alike = stats.holm(
        [stats.equivalence(r.ratio, m, r.step) if r.ratio else 1.0 for r, m in zip(rows, margins, strict=True)]
    )
    found = []
    for row, margin, p, p_alike in zip(rows, margins, different, alike, strict=True):
        more = row.metric == "throughput"
        verdict = stats.verdict(
            row.ratio,
            p,
            margin,
            healthy=row.healthy,
            declared=declared,
            p_equivalent=p_alike,
            more_is_better=more,
        )
        verdict = _limited(_of_survivors(verdict, row.fewer), row.bound)
        needed = None
        if row.ratio and verdict is Verdict.INCONCLUSIVE and not row.bound:
            needed = stats.blocks_needed(row.ratio, margin)
        found.append(
            Comparison(
                before,
                after,
                *row.key,
                metric=row.metric,
                ratio=row.ratio,
                p_holm=p,
                p_equivalent=p_alike,
                margin=margin,
                verdict=verdict,
                blocks_needed=needed,
                fewer_answered=row.fewer,
                p_gain=stats.gain(row.ratio, least, row.step, more_is_better=more) if row.ratio else 1.0,
                bound=row.bound,
            )
        )
    return found


def _of_survivors(verdict: Verdict, fewer: float) -> Verdict:
    """A verdict on those answered, where one arm answered significantly fewer.

    Requests that time out or are dropped are the slow ones, and those that fail leave room for others: the arm
    that fails more looks faster than it is. What that alone could have brought about is invalid; a change that
    shows in spite of it stays, and so does equivalence with a `before` that fails more: it is faster, if anything.
    """
    flattered = {True: (Verdict.FASTER, Verdict.EQUIVALENT), False: (Verdict.SLOWER,)}
    return Verdict.INVALID if fewer and verdict in flattered[fewer > 0] else verdict


def _limited(verdict: Verdict, bound: str) -> Verdict:
    """A verdict on capacities of which one or both are known to be at least so much."""
    known = {"": set(Verdict), "at least": {Verdict.FASTER}, "at most": {Verdict.SLOWER}, "not known": set()}[bound]
    return verdict if verdict in known or verdict is Verdict.INVALID else Verdict.INCONCLUSIVE


def _error_changes(before: str, after: str, pairs: Mapping[Key, tuple[SampleCell, SampleCell]]) -> list[ErrorChange]:
    """Differences of error rates, corrected over their own table.

    They are a family of their own: permuting six blocks cannot give less than 3 %, so that within the latencies'
    family an arm could fail every request and not be found to.
    """
    blocks = sorted({block for pair in pairs.values() for cell in pair for block in cell.counts})
    counts = [
        tuple([cell.counts.get(block, (0, 0)) for block in blocks] for cell in (one, other))
        for one, other in pairs.values()
    ]
    found = differences([(one, other) for one, other in counts])
    changes = []
    for (key, (one, other)), own in zip(pairs.items(), found, strict=True):
        if own and (one.errors or other.errors):
            answered = [1 - cell.errors / cell.outcomes.total() for cell in (one, other)]
            most = max(answered)
            fewer = (answered[0] - answered[1]) / most if most else 0.0
            changes.append(ErrorChange(before, after, *key, own, fewer, own.p_table <= stats.ALPHA))
    return changes


def _throughputs(
    before: str,
    after: str,
    pairs: Mapping[Key, tuple[SampleCell, SampleCell]],
    scenarios: Mapping[str, Mapping[str, Any]],
) -> Iterator[Change]:
    """What is shown: not of a search, and not at a given rate that was met."""
    for key, (one, other) in pairs.items():
        scenario = scenarios[key[0]]
        met = scenario.get("rate") and not (one.errors or other.errors)
        if met or scenario.get("search"):
            continue
        blocks = sorted(one.rates.keys() & other.rates.keys())
        ratio = stats.ratio([one.rates[b] for b in blocks], [other.rates[b] for b in blocks])
        if ratio:
            yield Change(before, after, *key, ratio)
