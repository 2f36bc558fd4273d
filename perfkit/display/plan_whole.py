"""What is said of a statement as a whole, in every form: its figures, what weakens them, and its findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perfkit import numbers
from perfkit.display.plan_figures import PlanFigures, badge, duration, ms, plural, rank, share
from perfkit.explain.findings.model import Finding
from perfkit.explain.plan import Plan, number

_WEAK = "Pages repeat from one execution to the next; the time of a single execution is weak evidence."
_GUESSED = "Costs, in the planner's own unit, and rows are what it expects."


def whole_plan(figures: PlanFigures) -> list[str]:
    """The figures of the statement, most important first."""
    plan, document = figures.plan, figures.plan.document
    told = []
    if plan.analyzed:
        if plan.execution_ms:
            told.append(f"{duration(plan.execution_ms)} executing")
    else:
        told.append(f"cost {figures.cost(plan.root)}")
    if "Planning Time" in document:
        told.append(f"{duration(plan.planning_ms)} planning")
    if figures.paged and plan.analyzed:
        told.append(f"{plural(plan.buffers, 'page')} ({numbers.size(plan.buffers * 8192)})")
    told.append(plural(plan.rows, "row") if plan.analyzed else f"{plural(plan.root.estimated, 'row')} expected")
    return [*told, "measured once" if plan.analyzed else "estimated: the statement was not executed"]


def weakness(figures: PlanFigures) -> str:
    """How far the figures can be believed."""
    told = [_WEAK if figures.plan.analyzed else _GUESSED]
    if figures.plan.analyzed and not figures.plan.timed:
        told.append("Nodes were not timed.")
    if figures.plan.analyzed and not figures.paged:
        told.append("Pages were not counted.")
    return " ".join(told)


def aside(figures: PlanFigures) -> list[tuple[str, str]]:
    """What the statement cost beside its nodes, and the settings that shaped its plan."""
    plan, whole = figures.plan, figures.plan.execution_ms
    told = [("Settings", "; ".join(f"{name} = {value}" for name, value in plan.settings.items()))]
    told.append(("First execution", _first(figures.first) if figures.first else ""))
    told.append(("Triggers", "; ".join(_triggers(plan.triggers, whole))))
    for name, spent in (
        ("JIT compilation", plan.jit_ms),
        ("Serialization", plan.serialization_ms),
        ("After the last row", plan.outside_ms),
    ):
        of = f" ({share(spent / whole)} of the execution)" if whole and name != "Serialization" else ""
        told.append((name, f"{duration(spent)}{of}" if spent else ""))
    return [(name, text) for name, text in told if text]


def _first(plan: Plan) -> str:
    """What the execution took that found the caches as they were."""
    read = sum(plan.root.value(key) for key in ("Shared Read Blocks", "Local Read Blocks"))
    return f"{duration(plan.execution_ms)}, {plural(read, 'page')} read into memory; what is shown is the last one"


def folding(figures: PlanFigures, what: str) -> str:
    """What is folded or left out of a large plan."""
    little = numbers.count(len(figures.little))
    measure = "time and pages" if figures.plan.analyzed else "cost"
    return (
        f"{plural(len(figures.plan.nodes), 'step')}, of which {little} with less than 1 % of {measure} each, "
        f"all below included, are {what}; EXPLAIN's JSON has everything."
    )


def summary(figures: PlanFigures) -> str:
    """How many findings there are, and where: `2 findings: ▲ high at 4, △ medium at 7`."""
    found = [f for nodes in figures.found.values() for f in nodes]
    if not found:
        return ""
    ranked = sorted(found, key=lambda f: (rank(f), f.node or 0))
    places = dict.fromkeys(f"{badge(f)} {place(figures, f)}" for f in ranked)
    return f"{plural(len(found), 'finding')}: {', '.join(places)}"


def place(figures: PlanFigures, finding: Finding) -> str:
    """Where a finding stands."""
    return "of the statement" if finding in figures.found.get(None, ()) else f"at {finding.node}"


def _triggers(triggers: Sequence[Mapping[str, object]], whole: float, limit: int = 12) -> list[str]:
    told = []
    for trigger in triggers[:limit]:
        name = trigger.get("Constraint Name") or trigger.get("Trigger Name") or "?"
        spent = number(trigger, "Time")
        of = f", {share(spent / whole)}" if whole and spent else ""
        where = f" on {trigger['Relation']}" if trigger.get("Relation") else ""
        told.append(f"{name}{where}: {plural(number(trigger, 'Calls'), 'call')}, {ms(spent)} ms{of}")
    return told + ([f"{len(triggers) - limit} more"] if len(triggers) > limit else [])
