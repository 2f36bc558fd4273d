"""An index lab as a notebook shows it: every property is something to look at, in HTML or in text."""

from __future__ import annotations

from pathlib import Path

from perfkit.bundle import write_atomically
from perfkit.display import lab as shown
from perfkit.display.html import Block, OpenedPage, code, escape
from perfkit.display.table import Table
from perfkit.lab.results import Lab, read


class IndexLab(OpenedPage):
    """A lab from its folder; nothing here measures."""

    def __init__(self, folder: Path) -> None:
        """Read a lab's folder. Raises BundleError where a file is damaged or missing."""
        self.lab: Lab = read(folder)

    def render(self) -> Path:
        """Write index_lab.html, keep.sql and remove.sql; returns the page. Raises BundleError."""
        from perfkit.report.render import LAB, page_of

        lab = self.lab
        if lab.confirmed:
            write_atomically(lab.folder / "keep.sql", "".join(f"{w.sql};\n" for w in lab.kept))
            write_atomically(lab.folder / "remove.sql", "".join(f"{w.drop};\n" for w in lab.dropped))
        return page_of(
            LAB, {"bundle": str(lab.folder.resolve())}, lab.folder / "index_lab.html", f"Index lab: {lab.title}"
        )

    @property
    def answer(self) -> Block:
        """The sentence that the lab is for."""
        return shown.answer(self.lab)

    @property
    def weaknesses(self) -> Block:
        """What weakens it."""
        return shown.weak(self.lab)

    @property
    def verdicts(self) -> Table:
        """The verdict on each index."""
        return shown.verdicts(self.lab)

    @property
    def picture(self) -> Block:
        """Gain against cost."""
        from perfkit.report import lab_chart  # matplotlib takes a second to import

        return lab_chart.gain_against_cost(self.lab)

    @property
    def statements(self) -> Block:
        """SQL to copy."""
        return shown.statements(self.lab)

    @property
    def confirmation(self) -> Table:
        """The chosen set by fresh rounds."""
        return shown.confirmation(self.lab)

    @property
    def costs(self) -> Block:
        """What each index costs where rows change."""
        return shown.costs(self.lab)

    @property
    def scans(self) -> Table:
        """How often each was used, and what the catalogue says."""
        return shown.scans(self.lab)

    @property
    def details(self) -> Block:
        """Every index and query."""
        return shown.details(self.lab)

    @property
    def claims(self) -> Table:
        """What was claimed, and what was measured."""
        return shown.claims(self.lab)

    @property
    def reproduce(self) -> Block:
        """The command that measures it again."""
        command = str(self.lab.record["command"]) or "# measured by a call in a notebook or a program"
        beside = "Beside this file: lab.json, and a folder with the bundle of every run."
        return Block(f"{code(command, name='command')}<p>{escape(beside)}</p>", f"{command}\n{beside}")

    def __repr__(self) -> str:
        return f"{self.lab.title}: index lab, {self.lab.record['status']}, in {self.lab.folder}"
