"""perfkit: did the index make it faster? Measured evidence for PostgreSQL.

In a notebook, `perfkit.run` and `perfkit.compare` measure. `perfkit.ablate` tells which indexes to keep, and
`perfkit.advise` suggests new ones. `perfkit.connect(...).slow()` finds slow statements; `perfkit.connect` and
`perfkit.plans` explain them. `perfkit.decide`, `perfkit.watch`, `perfkit.review` and `perfkit.rollback` serve a
release.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "ablate",
    "advise",
    "compare",
    "connect",
    "decide",
    "demo",
    "measure",
    "plans",
    "review",
    "rollback",
    "run",
    "watch",
]


def load_ipython_extension(shell: Any) -> None:
    """Register the magics `%perfkit`, `%%explain` and `%%measure`; `%load_ext perfkit` calls this function."""
    from perfkit.app.magics import load_ipython_extension as load

    load(shell)


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported late: a load worker imports this package too and must stay small
        from perfkit.app import api

        return getattr(api, name)
    raise AttributeError(f"module 'perfkit' has no attribute {name!r}")
