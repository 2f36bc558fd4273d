"""What came of one request."""

from __future__ import annotations

from dataclasses import dataclass

from perfkit.load.limits import OK


@dataclass(slots=True)
class Answer:
    """Stamps in ns of the monotonic clock, the outcome, its first message, and the body where it is kept."""

    acquired: int
    done: int
    outcome: str = OK
    detail: str = ""
    body: str = ""
    attempts: int = 1


def first_words(error: Exception) -> str:
    """An error's kind and the beginning of what it says."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
