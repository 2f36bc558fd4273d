"""What an index would change, as it shows itself: one sentence, and below it both plans."""

from __future__ import annotations

from dataclasses import dataclass

from perfkit.display.html import View, escape
from perfkit.display.plans import DiffView
from perfkit.numbers import count, significant, size


@dataclass(frozen=True, repr=False)
class WhatIfView(View):
    """Plans without and with an index; `built`: it was real for a moment, else HypoPG's; `limitation` of both."""

    plans: DiffView
    used: bool
    bytes: int
    evidence: str
    built: bool
    limitation: str = ""

    @property
    def sentence(self) -> str:
        """`would be used: 9,091 -> 3 pages, measured once on a rolled-back build; 22 MB`."""
        verb = "would be used" if self.used else "would not be used"
        how = "on a rolled-back build" if self.built else "by HypoPG"
        about = "" if self.built else "about "
        return f"{verb}: {self._figures()}, {self.evidence} {how}; {about}{size(self.bytes)}"

    def html(self) -> str:
        """The sentence and the plans, for a page that has the style sheet."""
        limitation = f"<p>{escape(self.limitation)}</p>" if self.limitation else ""
        return f"<p><strong>{escape(self.sentence)}</strong></p>{limitation}{self.plans.html()}"

    def text(self, width: int | None = None) -> str:
        """The same in text."""
        return "\n\n".join(part for part in (self.sentence, self.limitation, self.plans.text(width)) if part)

    def _figures(self) -> str:
        before, after = self.plans.before.plan, self.plans.after.plan
        if before.analyzed and after.analyzed:
            return f"{count(before.buffers)} -> {count(after.buffers)} pages"
        costs = (significant(plan.root.value("Total Cost")) for plan in (before, after))
        return f"cost {' -> '.join(costs)}"
