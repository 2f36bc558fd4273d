"""What is measured: one validated, frozen model of `perfkit.toml`, read once.

A path is relative to the file that names it; `perfkit:sql/...` names a file shipped with perfkit.
"""

from perfkit.config.claims import Claim
from perfkit.config.judging import Arm, Check, Limits, Step, Thresholds
from perfkit.config.load import BOOKING, load, restored
from perfkit.config.model import Config
from perfkit.config.presets import Preset
from perfkit.config.presets import options as preset
from perfkit.config.release import PlanStep, Question, Release, Risk
from perfkit.config.targets import COPIES, Database, Service
from perfkit.config.watching import Metric, Review, Target, Watch, WatchRule
from perfkit.config.workload import Column, Generator, Query, Request, Scenario, Search, Stage

__all__ = [
    "BOOKING",
    "COPIES",
    "Arm",
    "Check",
    "Claim",
    "Column",
    "Config",
    "Database",
    "Generator",
    "Limits",
    "Metric",
    "PlanStep",
    "Preset",
    "Query",
    "Question",
    "Release",
    "Request",
    "Review",
    "Risk",
    "Scenario",
    "Search",
    "Service",
    "Stage",
    "Step",
    "Target",
    "Thresholds",
    "Watch",
    "WatchRule",
    "load",
    "preset",
    "restored",
]
