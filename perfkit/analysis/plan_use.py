"""Whether the rounds used the plans that are shown, by the server's own counters of scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perfkit.analysis.cells import Use
from perfkit.analysis.results import PlanUse
from perfkit.bundle import Bundle
from perfkit.errors import BundleError, PlanError
from perfkit.explain.fingerprint import fingerprint
from perfkit.explain.plan import Plan, read_plan
from perfkit.explain.scans import Scan, in_words, scans


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


def _used(query: str, expected: Sequence[Scan], uses: Iterable[Use]) -> tuple[int, int]:
    """How often a query was executed, and in how many of these the server counted every scan of its plan."""
    executed = used = 0
    for executions, counted in uses:
        count = executions.get(query, 0)
        executed += count
        used += min([count, *(counted.get(scan.counter, 0) for scan in expected)]) if expected else 0
    return executed, used
