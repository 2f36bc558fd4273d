"""Whether the rounds used the plans that are shown, by the server's own counters of scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfkit.analysis.cells import RoundReading, Use
from perfkit.analysis.results import PlanUse
from perfkit.bundle import Bundle
from perfkit.errors import BundleError, PlanError
from perfkit.explain.fingerprint import fingerprint
from perfkit.explain.plan import Plan, read_plan
from perfkit.explain.scans import IndexScan, in_words, scans


def plan_uses(bundle: Bundle, sent: Mapping[str, Sequence[Use]]) -> list[PlanUse]:
    """What each captured plan scans, and in how many executions the server's counters agree with it.

    `sent` are by arm the queries sent as SQL; those that a service executed are in the run's blocks.
    """
    found = []
    for arm in bundle.run["parameters"]["arms"]:
        plans = {query: bundle.plan(arm, query) for query in bundle.run["queries"]}
        read = {query: _plan(bundle, arm, query, plan) for query, plan in plans.items() if plan is not None}
        uses = [*sent.get(arm, ()), *_http_uses(arm, bundle.run)]
        for query, plan in read.items():
            executed, used = _used(query, scans(plan), uses)
            cost = (plan.execution_ms, int(plan.buffers), plan.rows)
            found.append(
                PlanUse(arm, query, in_words(plan), fingerprint(plan), *cost, executed, used, 0 < executed == used)
            )
    return found


@dataclass(frozen=True, slots=True)
class Scans:
    """What is known of the use of indexes, by arm: in captured plans, and by the server's counters in all rounds."""

    planned: Mapping[str, frozenset[str]]  # only where every query's plan was captured
    shapes: Mapping[str, Mapping[str, str]]  # fingerprints of the plans by query
    counted: Mapping[str, Mapping[str, int]]  # only where every execution was counted, by index

    @classmethod
    def of(cls, bundle: Bundle, read: RoundReading) -> Scans:
        """Raises BundleError for a plan that cannot be read."""
        run = bundle.run
        plans = {
            arm: {query: _plan(bundle, arm, query, own) for query in run["queries"] if (own := bundle.plan(arm, query))}
            for arm in run["parameters"]["arms"]
        }
        whole = {arm: own for arm, own in plans.items() if own.keys() == run["queries"].keys()}
        return cls(
            {arm: frozenset(_indexes(own.values())) for arm, own in whole.items()},
            {arm: {query: fingerprint(plan) for query, plan in own.items()} for arm, own in plans.items()},
            {arm: counted for arm in plans if (counted := _counted(arm, run, read)) is not None},
        )


def _indexes(plans: Iterable[Plan]) -> set[str]:
    """Every index that a plan names, whether that part of it was executed or not."""
    return {name for plan in plans for node in plan.nodes for name in node.texts("Index Name")}


def _counted(arm: str, run: Mapping[str, Any], read: RoundReading) -> Counter[str] | None:
    """Scans by index in all rounds and by the service between them; None where some were not counted.

    Nothing is counted on a server that others use, and not by query where one round sends several in an open model.
    """
    single = {s["name"] for s in run["scenarios"] if len(s["send"]) == 1}
    closed = {s["name"] for s in run["scenarios"] if not s.get("rate") and s.get("engine") != "pgbench"}
    queries = {s["name"] for s in run["scenarios"] if set(s["send"]) <= run["queries"].keys()}
    known = all(r.usage or r.scenario not in queries for r in read.rounds if r.arm == arm)
    if not run["blocks"] or not all(arm in block["http_scans"] for block in run["blocks"]):
        return None
    if not known or queries - single - closed:
        return None
    found = Counter[str]()
    for counts in (*(block["http_scans"][arm] for block in run["blocks"]), *(own for _, own in read.uses[arm])):
        found.update(counts)
    return found


def _plan(bundle: Bundle, arm: str, query: str, document: Any) -> Plan:
    try:
        return read_plan(document)
    except PlanError as error:
        raise BundleError(f"{bundle.path}/plans/{arm}/{query}.json: {error}") from None


def _http_uses(arm: str, run: Mapping[str, Any]) -> list[Use]:
    runs = {request["name"]: request["runs"] for request in run["config"]["request"]}
    uses: list[Use] = []
    for block in run["blocks"]:
        executions: Counter[str] = Counter()
        for item, count in block["http_requests"].get(arm, {}).items():
            executions.update(dict.fromkeys(runs.get(item, ()), count))
        uses.append((executions, block["http_scans"].get(arm, {})))
    return uses


def _used(query: str, expected: Sequence[IndexScan], uses: Iterable[Use]) -> tuple[int, int]:
    """How often a query was executed, and in how many of these the server counted every scan of its plan."""
    executed = used = 0
    for executions, counted in uses:
        count = executions.get(query, 0)
        executed += count
        used += min([count, *(counted.get(scan.counter, 0) for scan in expected)]) if expected else 0
    return executed, used
