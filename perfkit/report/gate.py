"""A decision as a notebook shows it, and how one is made: the run judged, people and watch asked, all of it sealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfkit.bundle import Bundle, reading, require_spare, write_atomically
from perfkit.config import Release, restored
from perfkit.display import gate as shown
from perfkit.display.html import Block, OpenedPage
from perfkit.display.subject import Subject
from perfkit.display.table import Table
from perfkit.errors import UsageError
from perfkit.release import answers, decision, seal
from perfkit.release.answers import RecordedAnswer
from perfkit.release.decision import Decided
from perfkit.release.gate import judge
from perfkit.release.items import written
from perfkit.release.junit import junit
from perfkit.report import files
from perfkit.report.run import Run
from perfkit.stats import Verdict

if TYPE_CHECKING:
    from perfkit.release.claims import Judged


class GoNoGo(OpenedPage):
    """A decision from its folder; nothing here measures, asks or decides."""

    def __init__(self, folder: Path) -> None:
        """Read a run and the decision on it. Raises BundleError where a file is damaged or missing."""
        self.folder = folder
        self.decided: Decided = decision.read(folder)
        self.seal: seal.Seal = seal.read_seal(folder)
        self._release = _release(Bundle.open(folder))

    def render(self) -> Path:
        """Write decision.html into the run's folder and seal it too; returns the page. Raises BundleError."""
        from perfkit.report.render import GATE, page_of

        title = f"{self.decided.gate.decision}: {self.decided.title}"
        with seal.held(self.folder):
            page = page_of(GATE, {"bundle": str(self.folder.resolve())}, self.folder / seal.PAGE, title)
            self.seal = seal.seal_pages(self.folder)
        return page

    @property
    def banner(self) -> Block:
        """GO, NO-GO, NO BENEFIT or INCONCLUSIVE, and what led to it."""
        return shown.banner(self.decided)

    @property
    def matrix(self) -> Table:
        """What lets it through, what forbids it, and what was found."""
        return shown.matrix(self.decided)

    @property
    def items(self) -> Table:
        """The same in one line each."""
        return shown.items(self.decided)

    @property
    def people(self) -> Block:
        """What people were asked, and what they said."""
        return shown.people(self.decided)

    @property
    def plan(self) -> Block:
        """The plan of the release, with what was measured of it."""
        return shown.plan(self._release["step"], self.claims)

    @property
    def risks(self) -> Block:
        """The risks of the release, with what was measured of them."""
        return shown.risks(self._release["risk"], self.claims)

    @property
    def sign_off(self) -> Block:
        """A line for everybody who signs, and the content hash."""
        return shown.sign_off(self._release["sign_off"], self.decided, self.seal)

    @property
    def checking(self) -> Block:
        """How a page is held against its folder."""
        return shown.checking(self.folder.resolve().name, self.seal)

    @cached_property
    def claims(self) -> Mapping[str, Judged]:
        """The claims of the configuration with what was measured of them, by their text."""
        from perfkit.release.claims import judged

        run = Run(Bundle.open(self.folder))
        return {own.text: own for own in judged(run.bundle.run, run.analysis, run.bundle)}

    def __repr__(self) -> str:
        return f"{self.decided.title}: {self.decided.gate.decision}, decided {self.decided.on}, in {self.folder}"


def decide(
    folder: Path, arm: str = "", watch: str = "", said: Mapping[str, str] | None = None, by: str = "", **exports: str
) -> None:
    """Decide on a run, write answers.json, verdict.json and decision.json into its folder, and seal it.

    `exports` are names of files by their kind, `junit` and `json`. Raises PerfkitError.
    """
    names = {kind: require_spare(Path(name), "gate") for kind, name in exports.items() if name}
    if len(set(names.values())) < len(names):
        raise UsageError(f"{next(iter(names.values()))}: named twice; expected a file for each format")
    run = Run(Bundle.open(folder))
    if run.subject.alone:
        raise UsageError(f"{folder}: one arm alone, compared with nothing; expected a run with an arm to be shipped")
    if "rollback" in run.bundle.run:
        raise UsageError(f"{folder}: a rollback, rehearsed; expected the run of a change that is to be shipped")
    questions = _release(run.bundle)["question"]
    with seal.held(folder):
        with reading(folder):
            every = answers.added(folder, [own["name"] for own in questions], said or {}, by)
            found = _decided(run, shipped(run.subject, arm), answers.standing(questions, every), watch)
            verdict = files.verdict(run.subject)
        for kind, text in (("junit", junit), ("json", Decided.text)):
            if kind in names:
                write_atomically(names[kind], text(found))
        if said:
            answers.write(folder, every)
        write_atomically(folder / "verdict.json", verdict)
        decision.write(folder, found)
        (folder / seal.PAGE).unlink(missing_ok=True)  # it shows another decision
        seal.seal(folder)


def _release(bundle: Bundle) -> dict[str, Any]:
    """What a run's configuration says of its release, every key of it. Raises BundleError."""
    with reading(bundle.path):
        said = bundle.run["config"].get("release") or {}
    return restored(Release, said, f"{bundle.path}/run.json: config.release").model_dump()


def _decided(run: Run, arms: Sequence[str], standing: Sequence[RecordedAnswer], watch: str) -> Decided:
    """The decision at this moment."""
    watched = None
    if watch:
        from perfkit.release import monitoring

        watched = monitoring.look(Path(watch))
    analysis = run.analysis
    gate = judge(run.bundle.run, analysis, arms, standing, watched)
    judged = [c for c in analysis.comparisons if c.after in arms or c.after not in run.subject.after]
    invalid = any(c.verdict is Verdict.INVALID for c in judged)
    on = written(datetime.now(UTC))
    name = Path(watch).resolve().name if watch else ""
    return Decided(gate, analysis.title, analysis.headline, on, invalid, tuple(standing), name)


def shipped(subject: Subject, arm: str = "") -> list[str]:
    """The arms that a decision is about: the one that is named, else all that are after the change.

    Raises UsageError for an arm that is not to be shipped.
    """
    if arm and arm not in subject.after:
        known = ", ".join(subject.after) or "none in this run"
        raise UsageError(f"arm '{arm}' is not to be shipped; expected one of: {known}")
    return [arm] if arm else subject.after
