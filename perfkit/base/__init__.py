"""Errors, units, statistics, judgement, files and processes; knows nothing of PostgreSQL."""

# Modules that other rooms may import.
__all__ = ["bundle", "errors", "judgement", "options", "process", "refusals", "resources", "stats", "units"]
