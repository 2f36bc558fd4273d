"""Names of people who say something: what is kept of a decision or a review is said by somebody."""

from __future__ import annotations

from perfkit.errors import UsageError
from perfkit.text import visible

LONG = 100  # characters of a person's or a role's name


def name_of(by: str) -> str:
    """Who says something, as it was typed after --by. Raises UsageError for what is no name."""
    who = by.strip()
    if len(who) > LONG or who != visible(who) or "\n" in who:
        raise UsageError(f"--by {visible(who[:LONG])!r}; expected a name in one line of at most {LONG} characters")
    return who
