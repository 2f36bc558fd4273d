"""What people said of one run: `answers.json` in its folder, every answer that was ever given, the latest counts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perfkit.bundle import read_object, reading, write_atomically
from perfkit.errors import BundleError, UsageError
from perfkit.people import name_of
from perfkit.release.items import written

FILE = "answers.json"
FORMAT = 1
WORDS = ("yes", "no")


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """One answer to one question; `answer` is empty where nobody has said anything yet."""

    question: str
    answer: str
    by: str
    on: str  # UTC where perfkit wrote it down, else as the configuration says


def parse(texts: Iterable[str]) -> dict[str, str]:
    """Question and answer of each `QUESTION=yes`. Raises UsageError."""
    said: dict[str, str] = {}
    for text in texts:
        question, equals, answer = (part.strip() for part in text.rpartition("="))
        if not equals or answer.lower() not in WORDS:
            raise UsageError(f"--answer {text}; expected QUESTION=yes or QUESTION=no")
        if question in said:
            raise UsageError(f"--answer {text}; expected one answer to '{question}', not two")
        said[question] = answer.lower()
    return said


def added(folder: Path, asked: Sequence[str], said: Mapping[str, str], by: str) -> list[RecordedAnswer]:
    """Every answer of a run's folder and those given now. Raises UsageError for a question not asked, or nobody."""
    for question in said:
        if question not in asked:
            known = ", ".join(f'"{name}"' for name in asked) or "none: the run's configuration asks no question"
            raise UsageError(f"question '{question}' is unknown; expected one of: {known}")
    who = name_of(by)
    if said and not who:
        raise UsageError("--by is missing; expected who says it")
    if by and not said:
        raise UsageError(f"--by {by}; expected an --answer with it")
    on = written(datetime.now(UTC))
    return [*read(folder), *(RecordedAnswer(question, answer, who, on) for question, answer in said.items())]


def write(folder: Path, every: Sequence[RecordedAnswer]) -> None:
    """Keep all answers in a run's folder. Raises BundleError."""
    content = {"format": FORMAT, "answers": [asdict(own) for own in every]}
    write_atomically(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path) -> list[RecordedAnswer]:
    """Every answer in the order in which they were given. Raises BundleError for a file that is damaged."""
    path = folder / FILE
    if not path.exists():
        return []
    with reading(path):
        found = [RecordedAnswer(**own) for own in read_object(path, "answers", "answers", FORMAT)["answers"]]
    if any(own.answer not in WORDS or not isinstance(own.question, str) for own in found):
        raise BundleError(f"{path}: an answer that is neither yes nor no; expected what perfkit wrote")
    return found


def standing(questions: Sequence[Mapping[str, Any]], given: Sequence[RecordedAnswer]) -> list[RecordedAnswer]:
    """The answer to each question of a configuration that counts: the latest, else the configuration's own."""
    latest = {own.question: own for own in given}
    return [
        latest.get(own["name"], RecordedAnswer(own["name"], own["answer"], own["by"], own["on"])) for own in questions
    ]
