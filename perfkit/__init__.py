"""perfkit: did the index make it faster? Measured evidence for PostgreSQL.

In a notebook: `perfkit.run` and `perfkit.compare` measure, `perfkit.ablate` and `perfkit.advise` say which indexes to
keep or to make, `perfkit.connect` and `perfkit.plans` explain, and `perfkit.connect(...).slow()` finds
what to explain. `perfkit.decide`, `perfkit.watch`, `perfkit.review` and `perfkit.rollback` are for a release.
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
    """`%load_ext perfkit`: the magics `%perfkit`, `%%explain` and `%%measure`."""
    from perfkit.app.magics import load_ipython_extension as load

    load(shell)


def __getattr__(name: str) -> Any:
    if name in __all__:  # late: a load worker imports this package too and must stay small
        from perfkit.app import api

        return getattr(api, name)
    raise AttributeError(f"module 'perfkit' has no attribute {name!r}")
