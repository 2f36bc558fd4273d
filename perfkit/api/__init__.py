"""The calls behind the command line, papermill and an interactive cell."""

from perfkit.api.exploring import connect, demo, plans, slow
from perfkit.api.given import new_folder
from perfkit.api.release import decide, review, watch
from perfkit.api.runs import compare, measure, run
from perfkit.api.sets import ablate, advise, rollback

__all__ = [
    "ablate",
    "advise",
    "compare",
    "connect",
    "decide",
    "demo",
    "measure",
    "new_folder",
    "plans",
    "review",
    "rollback",
    "run",
    "slow",
    "watch",
]
