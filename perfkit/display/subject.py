"""A run and its analysis together, with the names and the order in which a report speaks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfkit.analysis.policy import Decision
from perfkit.analysis.results import Analysis
from perfkit.bundle import FLOOR, Bundle

ALONE = {Decision.GO: "HOLDS", Decision.NO_GO: "BROKEN", Decision.INCONCLUSIVE: "UNPROVEN"}
"""What is said of one arm's thresholds, where there is no change to ship."""


def is_alone(run: Mapping[str, Any]) -> bool:
    """Whether a run measured one arm and compared it with nothing."""
    return list(run.get("roles", {}).values()) == ["before"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is shown: the bundle and what was concluded from it."""

    bundle: Bundle
    analysis: Analysis

    @property
    def run(self) -> Mapping[str, Any]:
        """The content of `run.json`."""
        return self.bundle.run

    @property
    def complete(self) -> bool:
        """Whether the run ended as planned; without that there is no GO."""
        return self.run.get("status") == "complete"

    @property
    def alone(self) -> bool:
        """Whether one arm was measured and compared with nothing."""
        return is_alone(self.run)

    @property
    def word(self) -> str:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE; of one arm alone HOLDS, BROKEN or UNPROVEN."""
        found = self.analysis.judgement.decision
        return ALONE[found] if self.alone else str(found)

    @property
    def decision(self) -> str:
        """The word; UNFINISHED where a run did not end and nothing is broken yet; of a rollback its own."""
        if found := self.run.get("rollback"):
            return str(found["word"])
        broken = self.analysis.judgement.decision is Decision.NO_GO
        return self.word if self.complete or broken else "UNFINISHED"

    @property
    def arms(self) -> list[str]:
        """Every arm in the order of the configuration, without the floor."""
        return list(self.run.get("parameters", {}).get("arms", ()))

    def role(self, arm: str) -> str:
        """before, control or after; `floor` for the floor."""
        return str(self.run.get("roles", {}).get(arm, FLOOR if arm == FLOOR else ""))

    def title(self, arm: str) -> str:
        """What an arm is, in words."""
        if arm == FLOOR:
            return "the client alone"
        return str(self.run.get("arms", {}).get(arm, {}).get("title", ""))

    @property
    def before(self) -> str:
        """The arm that every other is compared with."""
        return next((arm for arm in self.arms if self.role(arm) == "before"), "before")

    @property
    def after(self) -> list[str]:
        """The arms on which the decision rests."""
        return [arm for arm in self.arms if self.role(arm) == "after"]

    @property
    def queries(self) -> list[str]:
        """SQL queries of the workload by name."""
        return list(self.run.get("queries", {}))

    @property
    def loads(self) -> list[tuple[str, str]]:
        """(scenario, item) of every load level in the order of the configuration.

        Where there is a service, its requests; queries have a table of their own then, but not for one arm alone.
        """
        order = [s["name"] for s in self.run.get("scenarios", ())]
        every = [(level.scenario, level.item) for level in self.analysis.levels]
        requests = [pair for pair in every if pair[1] not in self.queries]
        found = dict.fromkeys(every if self.alone else requests or every)
        return sorted(found, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))

    def label(self, scenario: str) -> str:
        """What a load level offers, in words."""
        labels = {s["name"]: s.get("label", "") for s in self.run.get("scenarios", ())}
        return str(labels.get(scenario) or scenario)
