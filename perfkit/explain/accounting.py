"""What each node spent itself: inclusive figures turned into exclusive ones.

A node's figure (time, pages) includes everything executed inside the node, usually its children. Two kinds of subtree
are not executed where EXPLAIN lists them: the CTE Scans that read a CTE execute it, and the first node that needs an
InitPlan's value executes the InitPlan. That node is somewhere below the node that lists the InitPlan, or it is the
Gather that passes the value to workers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from perfkit.base.errors import PlanError

Raw = Mapping[str, object]
GATHERS = frozenset({"Gather", "Gather Merge"})
_PRUNERS = frozenset({"Append", "Merge Append"})
_LITERAL = re.compile(r"'(?:[^']|'')*'")
_REFERENCE = re.compile(r"\$\d+|\([^()]+\)(?=\.col\d)")  # until 16 and since 17
_EXPRESSIONS = {
    *("Output", "Filter", "Index Cond", "Recheck Cond", "Join Filter", "Hash Cond", "Merge Cond", "One-Time Filter"),
    *("TID Cond", "Order By", "Sort Key", "Group Key", "Cache Key", "Function Call", "Table Function Call"),
    *("Run Condition", "Conflict Filter", "Repeatable Seed", "Sampling Parameters", "Params Evaluated", "Window"),
}
_CHAIN = 50  # maximum number of nodes considered as evaluating an InitPlan


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A subtree that other nodes execute: a CTE's scans, or one of an InitPlan's `payers`, the most likely first."""

    node: int
    payers: Sequence[int]
    cte: bool
    writes: bool  # a data-modifying CTE, which runs to its end even if no scan reads it


@dataclass(frozen=True, slots=True)
class Structure:
    """Nodes in preorder: parents, regular children, and trees.

    `trees` are the root and the hoisted subtrees, each after the trees of its payers. Each tree lists its nodes that
    have children, in preorder.
    """

    parents: Sequence[int]
    children: Sequence[Sequence[int]]
    trees: Sequence[tuple[Hoisted | None, Sequence[int]]]


def structure(raws: Sequence[Raw], parents: Sequence[int], loops: Sequence[float]) -> Structure:
    """Return what each node executes. SubPlans are regular children: the node that lists one executes it.

    Raises PlanError if CTEs would execute each other.
    """
    children: list[list[int]] = [[] for _ in raws]
    lifted: list[int] = []
    tree = [0] * len(raws)  # the top of the tree that a node is in
    for node, parent in enumerate(parents):
        if parent < 0:
            continue
        if raws[node].get("Parent Relationship") == "InitPlan":
            lifted.append(node)
            tree[node] = node
        else:
            children[parent].append(node)
            tree[node] = tree[parent]
    if not lifted:
        return Structure(parents, children, [(None, [node for node, below in enumerate(children) if below])])
    found = {h.node: h for h in _hoisted(raws, parents, loops, lifted)}
    before = {n: {tree[p] for p in (*h.payers, parents[n])} for n, h in found.items()}
    try:
        order = [*TopologicalSorter({0: (), **before}).static_order()]
    except CycleError:
        raise PlanError("not a plan (its CTEs read each other); expected EXPLAIN's own JSON") from None
    inner: dict[int, list[int]] = defaultdict(list)
    for node, top in enumerate(tree):
        if children[node]:
            inner[top].append(node)
    return Structure(parents, children, [(found.get(top), inner[top]) for top in order])


def exclusive(
    found: Structure, inclusive: list[float], rounding: Sequence[float] | None = None
) -> tuple[list[float], float]:
    """Return each node's own part of a figure, and the part outside the root; all parts add up to the whole.

    Data-modifying CTEs continue after the root has ended: their work is outside the root. Counts are exact. The server
    rounds times per loop, an error of up to `rounding`: if children therefore exceed their parent, both are adjusted,
    in `inclusive` too. A CTE that several scans read is divided in proportion to their figures, because the plan does
    not show which scan executed it.
    """
    exact = rounding is None
    if rounding is not None:
        _fit(found.children, inclusive, rounding)
    own = list(inclusive)
    outside = 0.0
    for hoisted, inner in found.trees:
        if hoisted:
            top, whole = hoisted.node, inclusive[hoisted.node]
            for payer, part in _shares(hoisted, own, whole, exact):
                own[payer] -= part
                whole -= part
            if hoisted.writes or not hoisted.payers:
                outside += whole
                whole = 0.0
            lister = found.parents[top]
            while whole > 0 and lister >= 0:  # the nodes above report what ends with the statement, usually workers
                part = max(0.0, min(whole, own[lister]))
                own[lister] -= part
                whole -= part
                lister = found.parents[lister]
            if exact and whole > 0:
                own[hoisted.payers[0]] -= whole
            elif whole > 0:
                inclusive[top] -= whole
                own[top] -= whole
        for node in inner:
            below = found.children[node]
            whole, parts = inclusive[node], sum([inclusive[child] for child in below])
            if parts > whole and not exact:
                for child in below:
                    inclusive[child] = own[child] = inclusive[child] * whole / parts
                parts = whole
            own[node] -= parts
    return own, outside


def processes(raws: Sequence[Raw], parents: Sequence[int], loops: Sequence[float]) -> list[float]:
    """Return the number of processes that divided each node's loops among them; 1 outside a Gather.

    The number of executions of the Gather's child gives it, so a leader that took no part and workers that were not
    launched do not count.
    """
    found = [1.0] * len(raws)
    for node, parent in enumerate(parents):
        if parent < 0:
            continue
        found[node] = found[parent]
        if raws[parent]["Node Type"] in GATHERS and raws[node].get("Parent Relationship") == "Outer" and loops[parent]:
            found[node] *= max(1.0, loops[node] / loops[parent])
    return found


def _fit(children: Sequence[Sequence[int]], ms: list[float], rounding: Sequence[float]) -> None:
    """Adjust times by at most their rounding, so that no node has less than the sum of its children."""
    if all(ms[node] >= sum([ms[child] for child in below]) for node, below in enumerate(children) if below):
        return
    least = list(ms)
    for node in range(len(ms) - 1, -1, -1):
        below, given = children[node], ms[node]
        least[node] = max(0.0, given - rounding[node], sum(least[child] for child in below))
        ms[node] = max(given, min(given + rounding[node], sum(ms[child] for child in below)))
    for node, below in enumerate(children):
        excess = sum(ms[child] for child in below) - ms[node]
        room = [max(0.0, ms[child] - least[child]) for child in below]
        if excess > 0 and any(room):
            part = min(1.0, excess / sum(room))
            for child, space in zip(below, room, strict=True):
                ms[child] -= space * part


def _shares(hoisted: Hoisted, own: Sequence[float], whole: float, exact: bool) -> list[tuple[int, float]]:
    """Return the payers of a hoisted subtree, each with its part, which is at most its own figure."""
    if whole <= 0:
        return []
    if not hoisted.cte and (fits := next((payer for payer in hoisted.payers if own[payer] >= whole), None)) is not None:
        return [(fits, whole)]
    room = {payer: own[payer] for payer in hoisted.payers if own[payer] > 0}
    part = min(1.0, whole / sum(room.values())) if hoisted.cte and room else 0.0
    shares = {payer: float(int(has * part)) if exact else has * part for payer, has in room.items()}
    rest = whole - sum(shares.values())
    for payer in shares:
        more = min(rest, room[payer] - shares[payer])
        shares[payer] += more
        rest -= more
    return list(shares.items())


def _hoisted(
    raws: Sequence[Raw], parents: Sequence[int], loops: Sequence[float], lifted: Iterable[int]
) -> Iterable[Hoisted]:
    ends = _ends(parents)
    ctes = {(parents[node], str(raws[node].get("Subplan Name"))): node for node in lifted}
    scans = _cte_scans(raws, parents, loops, ctes)
    references = _references(raws, loops)
    pruning = {above for n, above in enumerate(parents) if not loops[n] and raws[above]["Node Type"] in _PRUNERS}
    for node in lifted:
        name, parent = str(raws[node].get("Subplan Name")), parents[node]
        if name.startswith("CTE "):
            yield Hoisted(node, scans[node], True, raws[node]["Node Type"] == "ModifyTable")
            continue
        tokens = {f"({name})", *re.findall(r"\$\d+", name)}
        near = {n for token in tokens for n in references[token] if _in(n, parent, ends)}
        below = {n for n in near if not _in(n, node, ends)}
        likely = sorted(below, key=lambda n: (ends[n], -n))  # children before parents, the outer side before the inner
        chain = _chain(raws, parents, parent, ends)
        asking = (asks for n in likely[:_CHAIN] for asks in _asks(raws, parents, pruning, n, parent))
        payers = dict.fromkeys([*asking, *chain])
        yield Hoisted(node, list(payers), False, False)


def _cte_scans(
    raws: Sequence[Raw], parents: Sequence[int], loops: Sequence[float], ctes: Mapping[tuple[int, str], int]
) -> Mapping[int, list[int]]:
    """Return the executed scans of each CTE; a name means the nearest CTE listed above."""
    found: dict[int, list[int]] = defaultdict(list)
    for node, raw in enumerate(raws):
        if raw["Node Type"] != "CTE Scan" or not loops[node]:
            continue
        name, above = f"CTE {raw.get('CTE Name')}", node
        while above >= 0 and (above, name) not in ctes:
            above = parents[above]
        if above >= 0:
            found[ctes[above, name]].append(node)
    return found


def _references(raws: Sequence[Raw], loops: Sequence[float]) -> Mapping[str, list[int]]:
    """Return executed nodes by the parameters and InitPlans that their expressions name outside constants."""
    found: dict[str, list[int]] = defaultdict(list)
    for node, raw in enumerate(raws):
        if loops[node]:
            for value in map(raw.get, raw.keys() & _EXPRESSIONS):
                for text in (value,) if type(value) is str else value if type(value) is list else ():
                    if type(text) is str and ("$" in text or ".col" in text):
                        for token in set(_REFERENCE.findall(_LITERAL.sub("''", text))):
                            found[token].append(node)
    return found


def _asks(raws: Sequence[Raw], parents: Sequence[int], pruning: Collection[int], node: int, top: int) -> Iterable[int]:
    """Return the nodes that may evaluate what `node` refers to, the most likely first.

    That is the Gather above, which passes values to workers; or the Append above, which prunes by the value (an Append
    touches no pages itself, so it can be charged only if it pruned); or the node itself.
    """
    asks, pruner = node, -1
    while node != top:
        node = parents[node]
        if raws[node]["Node Type"] in GATHERS:
            asks, pruner = node, -1
        elif node in pruning and pruner < 0:
            pruner = node
    return [pruner, asks] if pruner >= 0 else [asks]


def _chain(raws: Sequence[Raw], parents: Sequence[int], top: int, ends: Sequence[int]) -> list[int]:
    """Return a node and the nodes that its rows come from, each below the one before."""
    chain = [top]
    while len(chain) < _CHAIN:
        child = chain[-1] + 1
        while child < ends[chain[-1]] and raws[child].get("Parent Relationship") in ("InitPlan", "SubPlan"):
            child = ends[child]
        if child >= ends[chain[-1]]:
            break
        chain.append(child)
    return chain


def _in(node: int, top: int, ends: Sequence[int]) -> bool:
    return top <= node < ends[top]


def _ends(parents: Sequence[int]) -> list[int]:
    """Return for each node in preorder the position after the last node below it."""
    ends = [node + 1 for node in range(len(parents))]
    for node in range(len(parents) - 1, 0, -1):
        ends[parents[node]] = max(ends[parents[node]], ends[node])
    return ends
