"""The record of a decision on a run, and the seal over its folder.

`answers.json` keeps every answer that people gave, `decision.json` the decision with its items, and `seal.json` the
SHA-256 of every file of evidence. The seal's content hash is printed on the page, so that a page on paper can be
checked against the folder. It is a checksum, not a signature: anyone who can change the folder can seal it again, and
only the hash on paper reveals that.

    <sha256>  <name>     one line per file of evidence, sorted by name, as `sha256sum` prints it;
                         the content hash is the SHA-256 of these lines

The pages show the evidence and its hash, so they are no evidence themselves; the seal lists their hashes separately.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

from pydantic import BaseModel, Field

from perfkit.base.bundle import read_object, read_record, reading, write_atomically
from perfkit.base.errors import BundleError, UsageError, name_of, visible
from perfkit.base.judgement import Judgement, Outcome
from perfkit.config import Question


@dataclass(frozen=True, slots=True)
class GateItem(Judgement):
    """One item of a decision; `go_if` and `no_go_if` are its conditions in words (an empty one never applies)."""

    outcome: Outcome = field(kw_only=True)
    group: str
    go_if: str
    no_go_if: str
    value: str
    limit: str
    evidence: str


def timestamp(now: datetime) -> str:
    """Return a time as perfkit's files have it, in UTC."""
    return f"{now:%Y-%m-%dT%H:%M:%SZ}"


def readable_time(on: str) -> str:
    """Return a timestamp for people to read; leave a time that a person wrote as it is.

    >>> readable_time("2026-01-15T09:00:00Z"), readable_time("Week 1")
    ('2026-01-15 09:00:00 UTC', 'Week 1')
    """
    return f"{on[:10]} {on[11:19]} UTC" if on.endswith("Z") else on


# People's answers: `answers.json` keeps all of them, and the latest answer to a question counts.

ANSWERS_FILE = "answers.json"
ANSWERS = ("yes", "no")


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """One answer to one question; `answer` is empty while nobody has answered."""

    question: str
    answer: Annotated[str, Field(pattern="^(yes|no)?$")]
    by: str
    on: str  # UTC if perfkit recorded the answer, else the configuration's text


class RecordedAnswers(BaseModel, frozen=True):
    """All answers of a run's folder, oldest first, as `answers.json` has them."""

    format: Literal[1] = 1
    answers: tuple[RecordedAnswer, ...]


def parse_answers(texts: Iterable[str]) -> dict[str, str]:
    """Return the answer to each question from texts such as `QUESTION=yes`. Raises UsageError."""
    answers: dict[str, str] = {}
    for text in texts:
        question, equals, answer = (part.strip() for part in text.rpartition("="))
        if not equals or answer.lower() not in ANSWERS:
            raise UsageError(f"--answer {text}; expected QUESTION=yes or QUESTION=no")
        if question in answers:
            raise UsageError(f"--answer {text}; expected one answer to '{question}', not two")
        answers[question] = answer.lower()
    return answers


def merged_answers(
    folder: Path, questions: Sequence[str], answers: Mapping[str, str], by: str
) -> tuple[RecordedAnswer, ...]:
    """Return the answers in a run's folder and the new ones.

    Raises UsageError for an unknown question, or if the name of the person who answers is missing.
    """
    for question in answers:
        if question not in questions:
            known = ", ".join(f'"{name}"' for name in questions) or "none: the run's configuration asks no question"
            raise UsageError(f"question '{question}' is unknown; expected one of: {known}")
    person = name_of(by)
    if answers and not person:
        raise UsageError("--by is missing; expected the name of the person who answers")
    if by and not answers:
        raise UsageError(f"--by {by}; expected an --answer with it")
    on = timestamp(datetime.now(UTC))
    new = (RecordedAnswer(question, answer, person, on) for question, answer in answers.items())
    return (*read_answers(folder), *new)


def read_answers(folder: Path) -> tuple[RecordedAnswer, ...]:
    """Return all answers, oldest first. Raises BundleError if the file is damaged."""
    path = folder / ANSWERS_FILE
    return read_record(path, RecordedAnswers, "answers", "answers").answers if path.exists() else ()


def current_answers(questions: Sequence[Question], answers: Sequence[RecordedAnswer]) -> list[RecordedAnswer]:
    """Return the answer that counts for each configured question: the latest, else the one in the configuration."""
    latest = {answer.question: answer for answer in answers}
    return [latest.get(q.name, RecordedAnswer(q.name, q.answer, q.by, q.on)) for q in questions]


# `decision.json`: the decision, its time and its items.

FILE = "decision.json"


class DecisionRecord(BaseModel, frozen=True):
    """A decision as `decision.json` has it: its items in the order of the page, and the answers that counted."""

    format: Literal[1] = 1
    title: str  # of the run
    decision: Literal["GO", "NO-GO", "NO BENEFIT", "INCONCLUSIVE"]
    invalid: bool  # comparisons of the run are invalid, so no answer can make it a GO: an INCONCLUSIVE exits with 98
    arms: tuple[str, ...]  # to be shipped
    decided: str  # UTC
    headline: str  # of the run
    reasons: tuple[str, ...]  # the items that led to the decision; for a GO, the number of items that hold
    items: tuple[GateItem, ...]
    answers: tuple[RecordedAnswer, ...] = ()
    watch: str = ""  # the name of the watch's folder

    @property
    def outcome(self) -> Outcome:
        """The outcome of all items."""
        return Outcome.of(self.decision)

    def text(self) -> str:
        """Return the content of `decision.json`."""
        return json_text(self.model_dump())


def json_text(content: Mapping[str, object]) -> str:
    """Return a record as the text of its file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read(folder: Path) -> DecisionRecord:
    """Return the decision on a run. Raises BundleError if there is none or the file is damaged."""
    return read_record(folder / FILE, DecisionRecord, f"a run that was decided on: perfkit gate {folder}", "a decision")


# A decision as JUnit XML, which every build server shows: one test case per item. JUnit has only two words for what
# did not pass: broken and no benefit are failures, of different types; unproven is skipped, with the evidence needed.

_FAILURES = (Outcome.BROKEN, Outcome.ABSENT)
_NOT_XML = re.compile("[\ufffe\uffff]")  # characters that XML 1.0 excludes and `visible` leaves


def junit(record: DecisionRecord) -> str:
    """Return the decision as an XML document."""
    items = record.items
    top = ElementTree.Element("testsuites", _counts(f"perfkit gate: {record.title}", items))
    for group, own in groupby(items, key=lambda item: item.group):
        cases = list(own)
        suite = ElementTree.SubElement(
            top, "testsuite", {**_counts(group, cases), "timestamp": record.decided.rstrip("Z")}
        )
        properties = ElementTree.SubElement(suite, "properties")
        said = {"decision": record.decision, "arms": ", ".join(record.arms), "decided": record.decided}
        for name, value in said.items():
            ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
        for item in cases:
            _case(suite, item)
    ElementTree.indent(top, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, "unicode") + "\n"


def _case(suite: ElementTree.Element, item: GateItem) -> None:
    named = {"name": _text(item.name), "classname": _text(f"perfkit.gate.{item.group.replace(' ', '_')}"), "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", named)
    if item.outcome in _FAILURES:
        said = {"message": _text(item.text), "type": str(item.outcome)}
        body = f"measured: {item.value}\nlimit: {item.limit}\nevidence: {item.evidence}"
        ElementTree.SubElement(case, "failure", said).text = _text(body)
    elif item.outcome is Outcome.UNPROVEN:
        ElementTree.SubElement(case, "skipped", {"message": _text(item.reason)})
    else:
        ElementTree.SubElement(case, "system-out").text = _text(item.text)


def _counts(name: str, items: Sequence[GateItem]) -> dict[str, str]:
    outcomes = [item.outcome for item in items]
    return {
        "name": _text(name),
        "tests": str(len(items)),
        "failures": str(sum(outcome in _FAILURES for outcome in outcomes)),
        "errors": "0",
        "skipped": str(outcomes.count(Outcome.UNPROVEN)),
        "time": "0",
    }


def _text(value: object) -> str:
    return _NOT_XML.sub("\ufffd", visible(value))


# `seal.json`: the SHA-256 of every file in the folder, and the content hash over that list.

SEAL_FILE = "seal.json"
PAGE = "decision.html"
DERIVED = ("report.html", "load.html", "summary.md", "samples.csv")  # made from the evidence, and can be made again
SEAL_FORMAT = 1
SHORT = 12  # digits of the content hash that commands show; fewer than MIN prove little
MIN = 8


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal: its time (UTC), the content hash, and the hashes of the evidence and of the pages by name."""

    on: str
    content: str
    files: Mapping[str, str]
    pages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verification:
    """A sealed folder checked against its seal; `content` is the hash of its evidence now."""

    seal: Seal
    content: str
    differ: tuple[str, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def unchanged(self) -> bool:
        """Whether every sealed file is as it was and no file is new."""
        return not (self.differ or self.missing or self.new) and self.content == self.seal.content


def seal(folder: Path, now: datetime | None = None) -> Seal:
    """Seal the evidence in a folder; call it before the page is written. Raises BundleError."""
    files = {name: _hash(folder / name) for name in _names(folder) if name not in (*DERIVED, PAGE)}
    return _write(folder, Seal(timestamp(now or datetime.now(UTC)), content(files), files, {}))


def seal_pages(folder: Path) -> Seal:
    """Add the pages, which show the content hash, to a folder's seal. Raises BundleError."""
    current = read_seal(folder)
    pages = {name: _hash(folder / name) for name in (PAGE, *DERIVED) if (folder / name).is_file()}
    return _write(folder, Seal(current.on, current.content, current.files, pages))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder; other processes that decide on the run or write its page wait."""
    with (folder / "run.json").open("rb") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def content(files: Mapping[str, str]) -> str:
    """Return the content hash: the SHA-256 of the sorted lines of hashes and names."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def read_seal(folder: Path) -> Seal:
    """Return a folder's seal. Raises BundleError if there is none or the file is damaged."""
    path = folder / SEAL_FILE
    raw = read_object(path, "a folder that `perfkit gate` sealed", "a seal", SEAL_FORMAT)
    with reading(path):
        return Seal(str(raw["sealed"]), str(raw["content"]), dict(raw["files"]), dict(raw["pages"]))


def verify(path: Path) -> Verification:
    """Check a sealed folder, or the folder of a page, against its seal. Raises BundleError if no seal can be read."""
    folder = path.parent if path.is_file() else path
    current = read_seal(folder)
    if path.is_file() and path.name not in current.pages:
        raise BundleError(f"{path}: not a sealed page of its folder; expected {PAGE} in the folder of its run")
    sealed = {**current.files, **current.pages}
    names = set(_names(folder))
    now = {name: _hash(folder / name) for name in sorted(names & sealed.keys())}
    return Verification(
        current,
        content({name: now[name] for name in current.files if name in now}),
        tuple(name for name, value in now.items() if value != sealed[name]),
        tuple(sorted(sealed.keys() - names)),
        tuple(sorted(names - sealed.keys() - set(DERIVED))),
    )


def require_hash(text: str) -> str:
    """Return the digits of a content hash or of its beginning, as typed. Raises UsageError for other text."""
    digits = "".join(text.split()).lower()
    if not MIN <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
        raise UsageError(f"--hash {text}; expected {MIN} to 64 digits of 0-9 and a-f, as on the page")
    return digits


def _write(folder: Path, new: Seal) -> Seal:
    raw = {"format": SEAL_FORMAT, "sealed": new.on, "content": new.content, "files": new.files, "pages": new.pages}
    write_atomically(folder / SEAL_FILE, json.dumps(raw, indent=1) + "\n")
    return new


def _names(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, sorted, except the seal and files that are being written."""
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
