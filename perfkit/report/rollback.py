"""A rollback as a notebook shows it: rehearsed, with the run that it rests on, or done in a database in use."""

from __future__ import annotations

import json
from pathlib import Path

from perfkit.bundle import reading, write_atomically
from perfkit.display import rollback as shown
from perfkit.display.html import Block, page, style
from perfkit.errors import BundleError
from perfkit.release.rollback import FILE, Rollback
from perfkit.report.run import Run, render


class RehearsedRun(Run):
    """The run of a rehearsed rollback, whose decision is whether everything is as before."""

    @property
    def decision(self) -> Block:
        """Whether everything is as before, item by item."""
        with reading(self.bundle.path):
            return shown.rollback(Rollback.of(self.bundle.run["rollback"]))


class RolledBack:
    """A rollback from its folder; nothing here measures or drops anything."""

    def __init__(self, folder: Path) -> None:
        """Read rollback.json. Raises BundleError where it is missing or damaged."""
        self.folder = folder
        try:
            text = (folder / FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise BundleError(f"{folder}/{FILE}: cannot be read; expected the folder of a rollback") from None
        with reading(folder / FILE):
            self.found = Rollback.of(json.loads(text))

    def render(self) -> Path:
        """Write the report of a rehearsal's run, or rollback.html; returns the page. Raises BundleError."""
        if (self.folder / "run.json").exists():
            return render(self.folder)
        out = self.folder / "rollback.html"
        write_atomically(out, page(f"{self.found.word}: rollback", shown.rollback(self.found).html))
        return out

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style>{shown.rollback(self.found)._repr_html_()}"

    def __repr__(self) -> str:
        return repr(shown.rollback(self.found))
