"""The record of a decision, and the seal that shows what changed since.

That content hash stands in the page, so that a page on paper can be held against the folder. It is a checksum and
no signature: whoever can change the folder can seal it anew, and only the hash on paper tells.

    <sha256>  <name>     one line for each file of the evidence, sorted by name, as `sha256sum` prints it;
                         the content hash is the SHA-256 of these lines

Not of the evidence, for they show it and hold its hash, are the pages; the list has their hashes beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from perfkit.analysis.policy import Decision, Outcome
from perfkit.base.bundle import read_object, reading, write_atomically
from perfkit.base.errors import BundleError, UsageError
from perfkit.release.gate import Gate, GateItem, RecordedAnswer, written

FILE = "decision.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision with when it was made (UTC), of what, and the answers that counted."""

    gate: Gate
    title: str
    headline: str
    on: str
    invalid: bool  # whether comparisons of the run are invalid, so that no answer makes it a GO
    answers: tuple[RecordedAnswer, ...] = ()
    watch: str = ""  # the name of the watch's folder

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it.

        Keys: format, title, decision (GO, NO-GO, NO BENEFIT, INCONCLUSIVE), invalid (of comparisons: an INCONCLUSIVE
        ends with 98), arms (to be shipped), decided (UTC), headline, reasons, items (group, name, go_if, no_go_if,
        value, limit, evidence, outcome: holds, broken, unproven, no benefit; text, needs), answers (question, answer,
        by, on), watch.
        """
        return {
            "format": FORMAT,
            "title": self.title,
            "decision": str(self.gate.decision),
            "invalid": self.invalid,
            "arms": list(self.gate.arms),
            "decided": self.on,
            "headline": self.headline,
            "reasons": list(self.gate.reasons),
            "items": [asdict(item) for item in self.gate.items],
            "answers": [asdict(answer) for answer in self.answers],
            "watch": self.watch,
        }

    def text(self) -> str:
        """The same as text."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Decided:
        """From JSON. Raises KeyError, TypeError, ValueError for what is none."""
        items = tuple(GateItem(**{**own, "outcome": Outcome(own["outcome"])}) for own in said["items"])
        gate = Gate(Decision(said["decision"]), tuple(said["arms"]), items)
        answers = tuple(RecordedAnswer(**own) for own in said["answers"])
        own = (said["title"], said["headline"], said["decided"])
        texts = chain(own, gate.arms, [said["watch"]], *map(astuple, items), *map(astuple, answers))
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text that is none")
        return cls(gate, *own, said["invalid"], answers, said["watch"])


def write(folder: Path, decided: Decided) -> None:
    """Into a run's folder. Raises BundleError."""
    write_atomically(folder / FILE, decided.text())


def read(folder: Path) -> Decided:
    """The decision that was made of a run. Raises BundleError where there is none, or it is damaged."""
    path = folder / FILE
    said = read_object(path, f"a run that was decided on: perfkit gate {folder}", "a decision", FORMAT)
    with reading(path):
        return Decided.of(said)


# A checksum over a decision's folder: `seal.json` lists every file with its SHA-256, and one hash over the list.

SEAL_FILE = "seal.json"
PAGE = "decision.html"
DERIVED = ("report.html", "load.html", "summary.md", "samples.csv")  # made of the evidence, and made again at will
SEAL_FORMAT = 1
SHORT = 12  # digits of the content hash that are read out; fewer than MIN prove little
MIN = 8


@dataclass(frozen=True, slots=True)
class Seal:
    """What was sealed: when (UTC), the hashes of the evidence and of the pages by name, and the content hash."""

    on: str
    content: str
    files: Mapping[str, str]
    pages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of a sealed folder; `content` is the hash of its evidence as it is now."""

    seal: Seal
    content: str
    differ: tuple[str, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def unchanged(self) -> bool:
        """Whether every sealed file is as it was, and none came."""
        return not (self.differ or self.missing or self.new) and self.content == self.seal.content


def seal(folder: Path, now: datetime | None = None) -> Seal:
    """Seal the evidence in a folder as it is now, before its page is written. Raises BundleError."""
    files = {name: _hash(folder / name) for name in _names(folder) if name not in (*DERIVED, PAGE)}
    return _write(folder, Seal(written(now or datetime.now(UTC)), content(files), files, {}))


def seal_pages(folder: Path) -> Seal:
    """Add the pages, which hold the content hash, to a folder's seal. Raises BundleError."""
    found = read_seal(folder)
    pages = {name: _hash(folder / name) for name in (PAGE, *DERIVED) if (folder / name).is_file()}
    return _write(folder, Seal(found.on, found.content, found.files, pages))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A run's folder for one at a time: others that decide on it or write its page wait."""
    with (folder / "run.json").open("rb") as file:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def content(files: Mapping[str, str]) -> str:
    """The content hash: SHA-256 over the sorted lines of hashes and names."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def read_seal(folder: Path) -> Seal:
    """A folder's seal. Raises BundleError where there is none, or it is damaged."""
    path = folder / SEAL_FILE
    said = read_object(path, "a folder that `perfkit gate` sealed", "a seal", SEAL_FORMAT)
    with reading(path):
        return Seal(str(said["sealed"]), str(said["content"]), dict(said["files"]), dict(said["pages"]))


def verify(path: Path) -> Verified:
    """Hold a sealed folder, or that of a page, against its seal. Raises BundleError where there is no seal to read."""
    folder = path.parent if path.is_file() else path
    found = read_seal(folder)
    if path.is_file() and path.name not in found.pages:
        raise BundleError(f"{path}: not among the sealed pages of its folder; expected {PAGE} where it was written")
    sealed = {**found.files, **found.pages}
    names = set(_names(folder))
    now = {name: _hash(folder / name) for name in sorted(names & sealed.keys())}
    return Verified(
        found,
        content({name: now[name] for name in found.files if name in now}),
        tuple(name for name, value in now.items() if value != sealed[name]),
        tuple(sorted(sealed.keys() - names)),
        tuple(sorted(names - sealed.keys() - set(DERIVED))),
    )


def require_hash(text: str) -> str:
    """The digits of a content hash, or its beginning, as they were typed. Raises UsageError for what is none."""
    digits = "".join(text.split()).lower()
    if not MIN <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
        raise UsageError(f"--hash {text}; expected {MIN} to 64 digits of 0-9 and a-f, as the page has them")
    return digits


def _write(folder: Path, found: Seal) -> Seal:
    said = {
        "format": SEAL_FORMAT,
        "sealed": found.on,
        "content": found.content,
        "files": found.files,
        "pages": found.pages,
    }
    write_atomically(folder / SEAL_FILE, json.dumps(said, indent=1) + "\n")
    return found


def _names(folder: Path) -> Iterator[str]:
    """Every file below a folder but the seal itself and what is half written, sorted."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path != folder / SEAL_FILE and path.is_file():
                yield path.relative_to(folder).as_posix()


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); expected a file of the run") from None
