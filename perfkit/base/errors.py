"""Errors with their exit codes, and text from elsewhere made safe to show.

PerfkitError                  1   base: one clear line saying what, where and what was expected
├── UsageError                2   an argument, a parameter or a configuration that cannot be meant
├── ServerError               1   PostgreSQL could not be started, reached, or died
├── ServiceError              1   the HTTP service could not be started, or died
├── BundleError               1   a run on disk that is damaged, missing or of another version
├── PlanError                 1   a plan that cannot be captured or read
├── LoadError                 1   the load workers failed as such (requests that fail are samples, not errors)
├── TargetRefused            97   a guard stopped something nobody allowed
└── Interrupted             105   the user stopped it
"""

from __future__ import annotations

import re
from pathlib import Path

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)

_CLIENTS_HEADERS = re.compile(
    r"host|connection|content-length|transfer-encoding|te|trailer|upgrade|expect|keep-alive|proxy-.*|x-forwarded-host",
    re.IGNORECASE,
)


def require_header(name: str, value: str) -> None:
    """Raise ValueError for a header that could lead a request elsewhere, or make two of it."""
    if _CLIENTS_HEADERS.fullmatch(name):
        raise ValueError(f"no header {name!r}: the client sets it")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or re.search(r"[\r\n\0]", value):
        raise ValueError(f"header {name!r} of letters, digits, '_' and '-', with a value of one line")


def visible(text: object) -> str:
    r"""Text with every control or direction-changing character written as its code point; \n, \t stay.

    >>> visible("\x1b[31mred\u202e")
    '⟨1B⟩[31mred⟨202E⟩'
    """
    return _CONTROL.sub(lambda m: f"⟨{ord(m[0]):02X}⟩", str(text))


def first_line(error: BaseException) -> str:
    """What an error says first, and its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def redact_home(text: str) -> str:
    """A message without the name of anybody's home folder, for what is mailed."""
    return text.replace(str(Path.home()), "~")


# Everything perfkit raises on purpose, and the exit code the command line gives it.


class PerfkitError(Exception):
    """Base class of every error perfkit raises on purpose; its text is one line for a person.

    Notes (`add_note`) say more where there is room: the place in a statement, the server's hint.
    """

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [visible(text) for text in (self, *getattr(self, "__notes__", ()))]


class UsageError(PerfkitError):
    """An argument, notebook parameter or configuration value that cannot be meant."""

    exit_code = 2


class ServerError(PerfkitError):
    """PostgreSQL could not be started, reached, or died on the way."""


class ServiceError(PerfkitError):
    """The HTTP service could not be started, or died on the way."""


class BundleError(PerfkitError):
    """A bundle that is missing, damaged or written by another version."""


class PlanError(PerfkitError):
    """A plan that could not be captured, or text that is no plan."""


class LoadError(PerfkitError):
    """The load workers failed as such; a request that fails is a sample, never this."""


class TargetRefused(PerfkitError):
    """A guard stopped something that nobody allowed."""

    exit_code = 97


class Interrupted(PerfkitError):
    """The user stopped the run."""

    exit_code = 105


# Names of people who say something: what is kept of a decision or a review is said by somebody.

LONG = 100  # characters of a person's or a role's name


def name_of(by: str) -> str:
    """Who says something, as it was typed after --by. Raises UsageError for what is no name."""
    who = by.strip()
    if len(who) > LONG or who != visible(who) or "\n" in who:
        raise UsageError(f"--by {visible(who[:LONG])!r}; expected a name in one line of at most {LONG} characters")
    return who
