"""A plan, and what changed between two, as they show themselves in a notebook, a report and a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from perfkit.display import plan_diff, plan_html, plan_lines
from perfkit.display.html import View
from perfkit.display.plan_figures import PlanFigures
from perfkit.explain.diff import ChangeKind, Diff, diff
from perfkit.explain.findings.model import Finding
from perfkit.explain.plan import Node, Plan
from perfkit.text import visible

_KEPT = 400  # changed steps that are shown however little they count


@dataclass(frozen=True, repr=False)
class PlanView(View):
    """A plan with what was found in it."""

    plan: Plan
    findings: Sequence[Finding] = ()
    title: str = ""
    first: Plan | None = None  # the first execution, where there was more than one

    def html(self) -> str:
        """The drawing, for a page that has the style sheet."""
        return plan_html.drawn(self.figures(), self.title)

    def text(self, width: int | None = None) -> str:
        """The tree in text, `width` characters wide; None: as wide as needed."""
        figures = self.figures()
        parts = [[visible(self.title)] if self.title else [], plan_lines.above(figures, width)]
        parts += [[""], plan_lines.lines(figures, width)]
        if found := list(plan_lines.findings(figures, width)):
            parts += [[""], found]
        return "\n".join(line for part in parts for line in part)

    def figures(self, kept: Collection[Node] = ()) -> PlanFigures:
        """Its figures as text; `kept` are nodes that are never folded."""
        return PlanFigures(self.plan, self.findings, kept, self.first)


@dataclass(frozen=True, repr=False)
class DiffView(View):
    """What changed between two plans, each with what was found in it; their titles tell them apart."""

    before: PlanView
    after: PlanView

    @cached_property
    def diff(self) -> Diff:
        """The plans aligned."""
        return diff(self.before.plan, self.after.plan)

    def html(self) -> str:
        """The sentence, the figures of both, and both plans side by side."""
        return plan_diff.diff_drawn(self.diff, *self._figures(), self._labels)

    def text(self, width: int | None = None) -> str:
        """The sentence, and the second plan's tree with each step's figures before and after."""
        return "\n".join(plan_diff.lines(self.diff, *self._figures(), self._labels, width))

    @property
    def _labels(self) -> tuple[str, str]:
        return self.before.title or "before", self.after.title or "after"

    def _figures(self) -> tuple[PlanFigures, PlanFigures]:
        changed = [change for change in self.diff.changes if change.kind != ChangeKind.SAME]
        kept = {node for change in changed[:_KEPT] for node in (change.before, change.after) if node}
        return self.before.figures(kept), self.after.figures(kept)
