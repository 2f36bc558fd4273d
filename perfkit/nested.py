"""JSON that is nested deeper than Python goes by itself, as plans can be."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DEEP = 10_000  # nested values that are followed; Python's own limit is 1,000, a plan takes two for each level
_deepening = threading.Lock()
_LONE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold as it is
_INDENTED = 200  # levels; the spaces grow with their square


def loads(text: str | bytes) -> Any:
    """The value of a text. Raises ValueError."""
    with deep():
        return json.loads(text)


def dumps(value: Any, *, ascii_only: bool = False) -> str:
    """A text that files can hold, indented unless that would be most of it. Raises ValueError."""
    with deep():
        indent = 1 if _levels(value) < _INDENTED else None
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        return json.dumps(value, indent=indent) if _LONE.search(text) else text


@contextmanager
def deep() -> Iterator[None]:
    """Python's limit raised for a while; ValueError for what is nested deeper still."""
    with _deepening:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _DEEP))
        try:
            yield
        except RecursionError:
            raise ValueError(f"nested deeper than {_DEEP:,} values") from None
        finally:
            sys.setrecursionlimit(limit)


def _levels(value: Any) -> int:
    """How deep values are nested in each other."""
    levels, layer = 0, [value] if isinstance(value, dict | list) else []
    while layer and levels < _INDENTED:
        within = (outer.values() if isinstance(outer, dict) else outer for outer in layer)
        layer = [item for values in within for item in values if isinstance(item, dict | list)]
        levels += 1
    return levels
