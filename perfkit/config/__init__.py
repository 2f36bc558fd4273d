"""What is measured: one validated, frozen model of `perfkit.toml`, read once.

A path is relative to the file that names it; `perfkit:sql/...` names a file shipped with perfkit.
"""

from perfkit.config.claims import Claim
from perfkit.config.judging import Arm, Check, CheckStep, Limits, Thresholds
from perfkit.config.load import BOOKING, load, restored
from perfkit.config.model import Config
from perfkit.config.presets import Preset
from perfkit.config.presets import options as preset
from perfkit.config.release import PlanStep, Question, Release, Risk
from perfkit.config.targets import COPIES, DatabaseConfig, ServiceConfig
from perfkit.config.watching import Metric, ReviewConfig, Target, Watch, WatchRule
from perfkit.config.workload import Generator, LoadStage, ParameterColumn, Query, RateSearch, Request, Scenario

__all__ = [
    "BOOKING",
    "COPIES",
    "Arm",
    "Check",
    "CheckStep",
    "Claim",
    "Config",
    "DatabaseConfig",
    "Generator",
    "Limits",
    "LoadStage",
    "Metric",
    "ParameterColumn",
    "PlanStep",
    "Preset",
    "Query",
    "Question",
    "RateSearch",
    "Release",
    "Request",
    "ReviewConfig",
    "Risk",
    "Scenario",
    "ServiceConfig",
    "Target",
    "Thresholds",
    "Watch",
    "WatchRule",
    "load",
    "preset",
    "restored",
]
