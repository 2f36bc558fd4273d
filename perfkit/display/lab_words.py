"""What a lab found, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from perfkit import numbers
from perfkit.analysis.results import Comparison
from perfkit.analysis.sentences import FLOOR_FACTOR
from perfkit.lab.results import IndexValue, Lab
from perfkit.stats import Verdict


def sentence(lab: Lab) -> str:
    """What to keep, what the rest costs, and how sure that is."""
    if not lab.confirmed:
        return "Not measured to the end." if not lab.complete else "What each index costs; which to keep was not asked."
    kept, dropped = lab.kept, lab.dropped
    within = f"by more than {100 * lab.margin:g} %"
    if not dropped:
        return f"Keep all {len(kept)}: without any of them a query becomes slower {within}."
    names = ", ".join(worth.name for worth in kept) or "none"
    keep = f"Keep {len(kept)} of {len(lab.worths)} ({names})" if kept else f"Keep none of {len(lab.worths)}"
    size = numbers.size(sum(worth.bytes for worth in dropped))
    others = "the other" if kept else "they"
    rest = f"{others} {len(dropped)} add{'s' if len(dropped) == 1 else ''} {size}" if kept else f"they add {size}"
    return f"{keep}: {rest}{_inserts(lab)}{_queries(lab, within)}."


def _inserts(lab: Lab) -> str:
    """What the dropped indexes add to an insert into the table that has most of them."""
    sizes = {t: sum(w.bytes for w in lab.dropped if w.table == t) for t in {w.table for w in lab.dropped}}
    found = [c for c in lab.lighter if lab.is_insert(c) and sizes.get(lab.table_of(c.item))]
    c = max(found, key=lambda c: sizes[lab.table_of(c.item)], default=None)
    if c is None or c.ratio is None or c.verdict is not Verdict.FASTER:
        return ""
    value, low, high = (numbers.percent(1 / r - 1) for r in (c.ratio.value, c.ratio.hi, c.ratio.lo))
    return f" and {value} ({low} to {high}) to the latency of inserts into {lab.table_of(c.item)}"


def _queries(lab: Lab, within: str) -> str:
    """Whether the kept set is as good as all, as far as fresh rounds tell."""
    if lab.holds:
        faster = [c for c in lab.confirmed if c.verdict is Verdict.FASTER]
        also = f"; without them {listed(faster)} is faster" if faster else ""
        makes = "makes" if len(lab.dropped) == 1 else "make"
        return f" and {makes} no query faster {within}, as fresh rounds confirm{also}"
    if slower := lab.slower:
        return f"; without them {listed(slower)} may be slower {within}"
    return f"; no query was seen to be slower {within} without them, but {_wide(lab)} not every interval excludes it"


def _wide(lab: Lab) -> str:
    open_ = [c for c in lab.confirmed if c.ratio and c.ratio.hi > 1 + lab.margin]
    widest = max((c.ratio.hi for c in open_ if c.ratio), default=1.0)
    return f"(up to {numbers.percent(widest - 1)} for {listed(open_)})"


def why(lab: Lab, worth: IndexValue) -> str:
    """Why an index is kept or not."""
    if worth.kept:
        own = [c for c in lab.needs.get(worth.name, ()) if c.verdict is Verdict.SLOWER]
        if own:
            return f"without it {_changes(own)}"
        if worth.missed:
            return f"missed where it alone is left out: {_changes(worth.missed)}"
        return f"alone it does most for {listed(worth.faster)}" if worth.faster else "not shown to be spare"
    if not worth.faster:
        return "no query is faster with it alone"
    others = [k.name for k in lab.kept if {c.item for c in k.faster} & {c.item for c in worth.faster}]
    return f"what it does, {', '.join(others)} does as well" if others else "not missed where the others are"


def doubts(lab: Lab) -> Iterator[str]:
    """What a careful reader should hold against the result."""
    if not lab.complete:
        yield f"The lab is {lab.record['status']}: {lab.record.get('message', 'it has not ended')}."
    if lab.tried > 1:
        yield f"Fresh rounds looked at {lab.tried} sets, and the last is shown: every look could find by chance."
    if lab.confirmed and not lab.holds:
        within = f"within {100 * lab.margin:g} % of all indexes"
        yield f"The kept set is not known to be {within} for every query; more blocks (--profile thorough) would tell."
    for c in lab.lighter:
        if c.verdict is Verdict.SLOWER and c.ratio:
            times = f"×{numbers.significant(c.ratio.value)}"
            yield f"{lab.title_of(c.item)}: {times} with the kept set alone; no query of the workload does that."
    for line in lab.record.get("lacking", ()):
        yield f"Not measured: {line}."
    if near := lab.near_floor:
        yield (
            f"Under {FLOOR_FACTOR:g} times what the client alone takes, so that the indexes' true gain is larger than "
            f"shown: {', '.join(near)}."
        )
    yield from lab.circumstances


def listed(found: list[Comparison]) -> str:
    """The queries of comparisons."""
    return ", ".join(dict.fromkeys(c.item for c in found))


def _changes(found: list[Comparison]) -> str:
    told = [f"{c.item} takes ×{numbers.significant(c.ratio.value)}" for c in found if c.ratio]
    return ", ".join(told)
