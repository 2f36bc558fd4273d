"""EXPLAIN's JSON: found in texts, listed as raw nodes, and its inclusive figures turned into exclusive ones.

A node's figure (time, pages) includes everything executed inside the node, usually its children. Two kinds of subtree
are not executed where EXPLAIN lists them: the CTE Scans that read a CTE execute it, and the first node that needs an
InitPlan's value executes the InitPlan. That node is somewhere below the node that lists the InitPlan, or it is the
Gather that passes the value to workers.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from perfkit.base.bundle import deep, loads
from perfkit.base.errors import PlanError

Raw = Mapping[str, object]


# EXPLAIN's JSON as raw nodes.

# Rules compare the constants in a node's texts, so long constants are cut first, and then the text as a whole.
_LITERAL, _LONGEST = 200, 100_000  # characters
_QUOTED = re.compile(r"'(?:[^']|'')*+'")


def parse(raw: bytes) -> object:
    """Return the value of EXPLAIN's JSON; an empty text gives an empty list. Raises PlanError."""
    try:
        return loads(raw) if raw else []
    except ValueError as error:
        raise PlanError(f"EXPLAIN's JSON cannot be read: {error}") from None


def one_statement(document: object) -> Raw:
    """Return EXPLAIN's output for one statement: the first of its array, or the one element. Raises PlanError."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict) or not isinstance(first.get("Plan"), dict):
        raise PlanError("not a plan; expected EXPLAIN (FORMAT JSON) output with a 'Plan'")
    return first


def list_nodes(top: object) -> tuple[list[Raw], list[int]]:
    """Return the nodes in EXPLAIN's order, and the position of each node's parent."""
    raws: list[Raw] = []
    parents: list[int] = []
    waiting: list[tuple[object, int]] = [(top, -1)]
    while waiting:
        raw, parent = waiting.pop()
        if not isinstance(raw, dict) or not isinstance(raw.get("Node Type"), str):
            raise PlanError("not a plan (a node without a 'Node Type'); expected EXPLAIN (FORMAT JSON) output")
        below = raw.get("Plans", [])
        if not isinstance(below, list):
            raise PlanError("not a plan ('Plans' is not a list); expected EXPLAIN (FORMAT JSON) output")
        at = len(raws)
        waiting += [(child, at) for child in reversed(below)]
        raws.append(raw)
        parents.append(parent)
    return raws, parents


def shortened(node: Raw) -> Raw:
    """Return a raw node with its long texts cut; the same object if none is long."""
    if not any(map(_long, node.values())):
        return node
    return {key: _cut_texts(value) if _long(value) else value for key, value in node.items()}


def _long(value: object) -> bool:
    if type(value) is list:
        return any(type(item) is str and len(item) > _LITERAL for item in value)
    return type(value) is str and len(value) > _LITERAL


def _cut_texts(value: object) -> object:
    if type(value) is list:
        return [_cut_texts(item) for item in value]
    if type(value) is not str or len(value) <= _LITERAL:
        return value
    text = _QUOTED.sub(_cut, value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _cut(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) <= _LITERAL:
        return text
    begin = text[1 : _LITERAL - 2]
    whole = begin[:-1] if begin.count("'") % 2 else begin  # a quote in it is doubled: not half of one
    return f"'{whole}…'"


# Plans in a text: JSON, psql output with its frame, a CSV cell, or auto_explain's entries in a log.

EXPECTED = "expected EXPLAIN (FORMAT JSON) output, psql's or auto_explain's"
_HEADER = re.compile(r"^[ \t|│║\"]*QUERY PLAN\b\"?", re.MULTILINE)
# No line of EXPLAIN's JSON begins or ends like this.
_FRAME = re.compile(r"^[ \t|│║:,]+|[ \t]*[+↵]?[ \t]*[|│║]?[ \t]*$")
_BEGINS = re.compile(r"[\[{]\s*[\[{\"]")  # the beginning of JSON, unlike a log's prefix
_ENTRY = re.compile(r"plan:\s*(?=\{)")
_TEXT = re.compile(
    r"\((?:cost=\d+\.\d+\.\.\d+\.\d+|actual (?:time|rows)=[\d.]+)[^)\n]*\)"
    r"|^[\s|│║]*(?:QUERY PLAN[\s|│║]*)?- Plan:|<explain ",
    re.MULTILINE,
)
_SPACE = re.compile(r"\s*")


def read_documents(text: str) -> list[Raw]:
    """Return every plan in a text as a document with a 'Plan'. Raises PlanError if there is none."""
    text = text.lstrip("\ufeff").strip()
    try:
        with deep():
            for values in (_json, _framed, _logged):
                if found := [document for value in values(text) for document in _documents(value)]:
                    return found
            if _BEGINS.match(text):
                json.JSONDecoder().raw_decode(text)  # raises an error with the position
    except ValueError as error:
        raise PlanError(f"not JSON ({error}); {EXPECTED}") from None
    if _TEXT.search(text):
        raise PlanError("a plan in text format; expected EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) output")
    raise PlanError(f"no plan in it; {EXPECTED}")


def _json(text: str) -> Iterator[object]:
    """Yield consecutive JSON values; ignore text after them (psql's row count)."""
    if text.startswith(('"[', '"{')):  # a cell of CSV
        text = text[1:].replace('""', '"')
    at, decoder = 0, json.JSONDecoder()
    while text.startswith(("[", "{"), at):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return
        yield value
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches anything


def _framed(text: str) -> Iterator[object]:
    """Yield JSON from psql's output, aligned, expanded or CSV."""
    for part in _HEADER.split(text)[1:] or ([text] if text.startswith(("[", "{")) else []):
        lines = [_FRAME.sub("", line) for line in part.splitlines()]
        start = next((n for n, line in enumerate(lines) if line.lstrip('"').startswith(("[", "{"))), len(lines))
        yield from _json("\n".join(lines[start:]))


def _logged(text: str) -> Iterator[object]:
    """Yield auto_explain's entries in a log of any format; omit an entry that was cut off."""
    if text.startswith("{"):
        parts = [_message(line) for line in text.splitlines()]
    elif '{""' in text or '""Query Text""' in text:
        parts = _cells(text)
    else:
        parts = [text]
    decoder = json.JSONDecoder()
    for part in parts:
        at = 0
        while entry := _ENTRY.search(part, at):
            at = entry.end()
            with suppress(ValueError):
                value, at = decoder.raw_decode(part, at)
                yield value


def _cells(text: str) -> list[str]:
    """Return the messages of a CSV log."""
    csv.field_size_limit(1 << 28)
    with suppress(csv.Error):
        return [cell for row in csv.reader(io.StringIO(text)) for cell in row if "plan:" in cell]
    return []


def _message(line: str) -> str:
    """Return the message of a line of a JSON log."""
    with suppress(ValueError):
        value = json.loads(line)
        return str(value.get("message", "")) if isinstance(value, dict) else ""
    return ""


def _documents(value: object) -> Iterator[Raw]:
    """Yield documents of an array, of one statement, or of a bare node."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("Plan"), dict):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("Node Type"), str):
            yield {"Plan": item}


# What each node executes and spends.

GATHERS = frozenset({"Gather", "Gather Merge"})
_PRUNERS = frozenset({"Append", "Merge Append"})
_STRING = re.compile(r"'(?:[^']|'')*'")
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
        near = {n for token in tokens for n in references[token] if parent <= n < ends[parent]}
        below = {n for n in near if not node <= n < ends[node]}
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
                        for token in set(_REFERENCE.findall(_STRING.sub("''", text))):
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


def _ends(parents: Sequence[int]) -> list[int]:
    """Return for each node in preorder the position after the last node below it."""
    ends = [node + 1 for node in range(len(parents))]
    for node in range(len(parents) - 1, 0, -1):
        ends[parents[node]] = max(ends[parents[node]], ends[node])
    return ends
