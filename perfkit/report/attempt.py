"""A step of a notebook that may not be possible here: what it gives, or why it gives nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perfkit.display.html import Block, escape
from perfkit.errors import Interrupted, PerfkitError


def attempt(step: Callable[[], Any], *, unless: str = "") -> Any:
    """What a step gives; its error as a line to show, so that the rest of a page can follow. Raises Interrupted.

    With `unless`, a reason not to, it is not tried, and that is shown.
    """
    try:
        return _line(unless) if unless else step()
    except Interrupted:
        raise
    except PerfkitError as error:
        return _line(str(error))


def _line(text: str) -> Block:
    return Block(f'<p class="note">{escape(text)}</p>', text)
