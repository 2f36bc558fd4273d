"""What changed between two plans of one statement: nodes aligned by what they are and what they work on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from perfkit.explain.fingerprint import conditions, fingerprint
from perfkit.explain.plan import Node, Plan
from perfkit.explain.scans import indexes_under

_JOINS = frozenset({"Nested Loop", "Hash Join", "Merge Join"})
_FAMILIES = {"Incremental Sort": "Sort", "Gather Merge": "Gather", "Group": "Aggregate", "Unique": "Aggregate"}
_SAID = 3  # changes that the sentence names


class ChangeKind(StrEnum):
    """What happened to a node."""

    SAME = "same"
    CHANGED = "changed"
    MOVED = "moved"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class PlanChange:
    """One node before and after; None where there is none."""

    kind: ChangeKind
    before: Node | None
    after: Node | None


@dataclass(frozen=True, slots=True)
class Diff:
    """Two plans and what became of each node: the second plan's in its order, then those that are gone."""

    before: Plan
    after: Plan
    changes: tuple[PlanChange, ...]
    same: bool  # the plans differ in numbers and constants at most

    @property
    def evidence(self) -> str:
        """The evidence class of the numbers."""
        return "measured once" if self.before.analyzed and self.after.analyzed else "estimated"

    @property
    def sentence(self) -> str:
        """What changed, in one line: `Seq Scan on visits -> Index Scan using visits_day; 312 -> 7 buffers`."""
        said = ["the same plan"] if self.same else _worded(self.changes)
        if self.evidence == "estimated":
            costs = (plan.root.value("Total Cost") for plan in (self.before, self.after))
            return f"{', '.join(said)}; cost {_to(*costs)} (estimated)"
        return f"{', '.join(said)}; {_to(self.before.buffers, self.after.buffers)} buffers"


def diff(before: Plan, after: Plan) -> Diff:
    """Align two plans. Exact matches come first, then the same table read otherwise, then the same join or step."""
    pairs: dict[Node, Node] = {}
    left, right = list(before.nodes), list(after.nodes)
    tables = {node: found for plan in (before, after) for node, found in _tables(plan).items()}
    keys: tuple[Callable[[Node], Hashable], ...] = (
        lambda node: (_exact(node), tables[node]),
        _exact,
        lambda node: (node.text("Schema"), node.relation, node.text("Alias")) if node.relation else None,
        lambda node: (_family(node), tables[node]),
        lambda node: (_family(node), conditions(node)) if conditions(node) else None,
    )
    for key in keys:
        _match(left, right, key, pairs)
        matched = set(pairs.values())
        left, right = [node for node in left if node not in pairs], [node for node in right if node not in matched]
    origin = {second: first for first, second in pairs.items()}
    changes = [PlanChange(_kind(node, origin, pairs), origin.get(node), node) for node in after.nodes]
    changes += [PlanChange(ChangeKind.REMOVED, node, None) for node in left]
    return Diff(before, after, tuple(changes), fingerprint(before) == fingerprint(after))


def _match(
    left: Iterable[Node], right: Iterable[Node], key: Callable[[Node], Hashable], pairs: dict[Node, Node]
) -> None:
    """Pair nodes of equal keys in the plans' order."""
    waiting: dict[Hashable, list[Node]] = defaultdict(list)
    for node in right:
        waiting[key(node)].append(node)
    for found in waiting.values():
        found.reverse()
    for node in left:
        if (wanted := key(node)) is not None and waiting[wanted]:
            pairs[node] = waiting[wanted].pop()


def _exact(node: Node) -> Hashable:
    where = (node.text("Schema"), node.relation, node.text("Alias"), node.text("Index Name"))
    return node.name, where, conditions(node)


def _family(node: Node) -> str:
    return "join" if node.kind in _JOINS else _FAMILIES.get(node.kind, node.kind)


def _tables(plan: Plan) -> dict[Node, int]:
    """For each node a number that stands for the tables read at and below it."""
    found: dict[Node, int] = dict.fromkeys(plan.nodes, 0)
    for node in reversed(plan.nodes):
        if node.relation:
            found[node] ^= hash((node.text("Schema"), node.relation, node.text("Alias")))
        if node.parent:
            found[node.parent] ^= found[node]
    return found


def _kind(node: Node, origin: Mapping[Node, Node], pairs: Mapping[Node, Node]) -> ChangeKind:
    """What happened to a node; it moved where the nearest pair above it is not a pair for both."""
    if (before := origin.get(node)) is None:
        return ChangeKind.ADDED
    if _exact(before) != _exact(node):
        return ChangeKind.CHANGED
    above = next((origin[n] for n in node.above() if n in origin), None)
    return ChangeKind.SAME if above is next((n for n in before.above() if n in pairs), None) else ChangeKind.MOVED


def _worded(changes: Iterable[PlanChange]) -> list[str]:
    """The changes that say most, in words: other scans, else other joins and steps, else conditions."""
    changes = list(changes)
    found = list(dict.fromkeys(_scans_of(changes))) or list(dict.fromkeys(_steps(changes))) or ["other conditions"]
    return found[:_SAID] + ([f"{len(found) - _SAID} more"] if len(found) > _SAID else [])


def _scans_of(changes: Iterable[PlanChange]) -> Iterator[str]:
    for change in changes:
        before, after = change.before, change.after
        if before and after and before.text("Relation Name") and _scan(before) != _scan(after):
            yield f"{_scan(before)} -> {_scan(after, short=True)}"


def _steps(changes: Iterable[PlanChange]) -> Iterator[str]:
    for change in changes:
        before, after = change.before, change.after
        if before and after and before.name != after.name:
            yield f"{before.name} -> {after.name}"
        elif not (before and after):
            node = before or after
            assert node
            yield f"{node.title} {change.kind}"


def _scan(node: Node, *, short: bool = False) -> str:
    """How a table is read, with the indexes; `short` leaves the table to what was said before."""
    used = indexes_under(node)
    using = f" using {', '.join(used)}" if used else ""
    return f"{node.name}{using}" if short else f"{node.name}{using} on {node.relation}"


def _to(before: float, after: float) -> str:
    return f"{before:,.0f} -> {after:,.0f}"
