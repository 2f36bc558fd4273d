"""Errors with their exit codes, and functions that make text from elsewhere safe to show.

PerfkitError                  1   base: one clear line saying what, where and what was expected
├── UsageError                2   an argument, a parameter or a configuration value that makes no sense
├── ServerError               1   PostgreSQL could not be started, reached, or died
├── ServiceError              1   the HTTP service could not be started, or died
├── BundleError               1   a run on disk that is damaged, missing or of another version
├── PlanError                 1   a plan that cannot be captured or read
├── LoadError                 1   the load workers failed as such (requests that fail are samples, not errors)
├── TargetRefused            97   a guard stopped something that nobody allowed
└── Interrupted             105   the user stopped it
"""

from __future__ import annotations

import re
from pathlib import Path

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: object) -> str:
    r"""Return the text with control and direction-changing characters as code points; keep \n and \t.

    >>> visible("\x1b[31mred\u202e")
    '⟨1B⟩[31mred⟨202E⟩'
    """
    return _CONTROL.sub(lambda m: f"⟨{ord(m[0]):02X}⟩", str(text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def redact_home(text: str) -> str:
    """Return the text with `~` in place of the home folder: a report may be mailed and must not name its user."""
    return text.replace(str(Path.home()), "~")


class PerfkitError(Exception):
    """Base class of every error that perfkit raises on purpose; the message is one line for a person.

    Notes (`add_note`) hold details: the position in a statement, the server's hint.
    """

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [visible(text) for text in (self, *getattr(self, "__notes__", ()))]


class UsageError(PerfkitError):
    """An argument, notebook parameter or configuration value makes no sense."""

    exit_code = 2


class ServerError(PerfkitError):
    """PostgreSQL could not be started or reached, or died."""


class ServiceError(PerfkitError):
    """The HTTP service could not be started, or died."""


class BundleError(PerfkitError):
    """A bundle is missing, damaged or written by another version."""


class PlanError(PerfkitError):
    """A plan could not be captured, or a text is not a plan."""


class LoadError(PerfkitError):
    """The load workers themselves failed; a failed request is a sample and never raises this."""


class TargetRefused(PerfkitError):
    """A guard stopped something that nobody allowed."""

    exit_code = 97


class Interrupted(PerfkitError):
    """The user stopped the run."""

    exit_code = 105


_NAME_LENGTH = 100  # characters, of a person's or a role's name


def name_of(by: str) -> str:
    """Return the person or role given with --by. Raises UsageError if the text is not a name."""
    name = by.strip()
    if len(name) > _NAME_LENGTH or name != visible(name) or "\n" in name:
        shown = visible(name[:_NAME_LENGTH])
        raise UsageError(f"--by {shown!r}; expected a name in one line of at most {_NAME_LENGTH} characters")
    return name
