"""Command line, Python API, magics, session, starter."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from perfkit.app import api as api
    from perfkit.app import evidence as evidence
    from perfkit.app import runs as runs
    from perfkit.app import session as session
    from perfkit.app import starter as starter

# Modules that other rooms may import.
__all__ = ["api", "cli", "magics"]
_LATE = ("api", "evidence", "runs", "session", "starter")  # a second to import: a command imports them when it runs


def __getattr__(name: str) -> ModuleType:
    if name in _LATE:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
