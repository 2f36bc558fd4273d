"""Set-ups that have a name: what `--preset` chooses, and what options given beside it replace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from perfkit.config.fields import Model
from perfkit.errors import UsageError


class Preset(Model):
    """One set-up by name; an option that is given replaces its value."""

    scale: str = ""
    """Size of the data; without one the database's own."""
    rtt_ms: Annotated[float, Field(ge=0)] = 0.0
    """Network round trip between service and database, in ms."""
    connect_rtts: Annotated[int, Field(ge=1)] = 6
    """Round trips that connecting costs."""
    profile: str = "standard"
    """How many blocks are measured; not part of the set-up that claims are limited to."""


def options(presets: Mapping[str, Preset], name: str, **given: Any) -> dict[str, Any]:
    """The options of a preset with those that are given (neither None nor empty) in their place.

    Without a name they are perfkit's own. Raises UsageError for an unknown name.
    """
    if name and name not in presets:
        raise UsageError(f"preset '{name}' is unknown; expected one of: {', '.join(presets) or 'none defined'}")
    chosen = presets[name] if name else Preset()
    return chosen.model_dump() | {key: value for key, value in given.items() if value not in (None, "")}
