"""Everything perfkit raises on purpose, and the exit code the command line gives it.

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

from perfkit.text import visible


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
