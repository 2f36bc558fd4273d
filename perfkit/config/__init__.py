"""The configuration: one frozen model of `perfkit.toml`, validated when loaded.

A path is relative to the file that names it; `perfkit:sql/...` names a file that comes with perfkit.
"""

from perfkit.config.judging import (
    Arm,
    Check,
    CheckStep,
    Claim,
    Limits,
    Metric,
    PlanStep,
    Question,
    Release,
    ReviewConfig,
    Risk,
    Target,
    Thresholds,
    Watch,
    WatchRule,
)
from perfkit.config.model import BOOKING, Config, load, restored
from perfkit.config.workload import (
    COPIES,
    DatabaseConfig,
    Generator,
    LoadStage,
    ParameterColumn,
    Preset,
    Query,
    RateSearch,
    Request,
    Scenario,
    ServiceConfig,
)
from perfkit.config.workload import options as preset

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
