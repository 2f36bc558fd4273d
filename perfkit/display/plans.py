"""A plan, and what changed between two, as they show themselves in a notebook, a report and a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perfkit.display import plan_diff, plan_html, plan_lines
from perfkit.display.html import style
from perfkit.display.plan_figures import Figures
from perfkit.explain.diff import Diff, Kind
from perfkit.explain.findings.model import Finding
from perfkit.explain.plan import Plan
from perfkit.text import visible

_KEPT = 400  # changed steps that are shown however little they count


@dataclass(frozen=True, repr=False)
class PlanView:
    """A plan with what was found in it."""

    plan: Plan
    findings: Sequence[Finding] = ()
    title: str = ""

    def html(self) -> str:
        """The drawing, for a page that has the style sheet."""
        return plan_html.drawn(Figures(self.plan, self.findings), self.title)

    def text(self, width: int | None = None) -> str:
        """The tree in text, `width` characters wide; None: as wide as needed."""
        figures = Figures(self.plan, self.findings)
        parts = [[visible(self.title)] if self.title else [], plan_lines.above(figures, width)]
        parts += [[""], plan_lines.lines(figures, width)]
        if found := list(plan_lines.findings(figures, width)):
            parts += [[""], found]
        return "\n".join(line for part in parts for line in part)

    def _repr_html_(self) -> str:
        return _alone(self.html())

    def __repr__(self) -> str:
        return self.text()


@dataclass(frozen=True, repr=False)
class DiffView:
    """What changed between two plans, with what was found in each."""

    diff: Diff
    before: Sequence[Finding] = ()
    after: Sequence[Finding] = ()
    labels: tuple[str, str] = ("before", "after")

    def html(self) -> str:
        """The sentence, the figures of both, and both plans side by side."""
        return plan_diff.drawn(self.diff, *self._figures(), self.labels)

    def text(self, width: int | None = None) -> str:
        """The sentence, and the second plan's tree with each step's figures before and after."""
        return "\n".join(plan_diff.lines(self.diff, *self._figures(), self.labels, width))

    def _figures(self) -> tuple[Figures, Figures]:
        changed = [change for change in self.diff.changes if change.kind != Kind.SAME]
        kept = {node for change in changed[:_KEPT] for node in (change.before, change.after) if node}
        return Figures(self.diff.before, self.before, kept), Figures(self.diff.after, self.after, kept)

    def _repr_html_(self) -> str:
        return _alone(self.html())

    def __repr__(self) -> str:
        return self.text()


def _alone(html: str) -> str:
    """HTML with the style sheet, for a cell of any notebook."""
    return f"<style>{style()}</style><div class='pk'>{html}</div>"
